//! Writable disks.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Result, ensure};
use casita_tests::place::Place;
use casita_tests::suite::Suite;
use casita_tests::{image, machine};
use rustix::fs::{FlockOperation, flock};

use super::{KERNEL, each, place, refused, special_files};

pub fn tests(suite: &mut Suite) {
    suite.test("disk_missing", || {
        refused_disk(&place()?, "./none.raw", &["none.raw", "does not exist"])
    });
    suite.test("disk_in_a_missing_folder", || {
        refused_disk(&place()?, "none/d.raw,size=64M", &["none/d.raw"])
    });
    suite.test("disk_not_a_file", || {
        let place = place()?;
        special_files(&place, |name| {
            let path = if name.starts_with('/') {
                name.to_owned()
            } else {
                format!("./{name}")
            };
            refused_disk(&place, &path, &[name, "regular file"])
        })
    });
    suite.test("disk_behind_a_dangling_link", || {
        let place = place()?;
        symlink("elsewhere.raw", place.path("link"))?;
        refused_disk(&place, "./link,size=64M", &["link"])
    });
    suite.test("disk_with_foreign_data", || {
        let place = place()?;
        let content = b"somebody's data ".repeat(2 << 20);
        place.write("d.raw", &content)?;
        refused_disk(&place, "./d.raw", &["d.raw", "not an ext4 file system"])?;
        ensure!(
            fs::read(place.path("d.raw"))? == content,
            "it has been changed"
        );
        Ok(())
    });
    suite.test("disk_too_small", || {
        let place = place()?;
        place.write("d.raw", vec![0; 4096])?;
        refused_disk(&place, "./d.raw", &["d.raw", "16 MiB"])
    });
    suite.test("disk_of_half_a_sector", || {
        let place = place()?;
        place.write("d.raw", vec![0; (32 << 20) + 100])?;
        refused_disk(&place, "./d.raw", &["d.raw", "512-byte"])
    });
    suite.test("disk_of_another_size", || {
        let place = place()?;
        fs::File::create(place.path("d.raw"))?.set_len(64 << 20)?;
        refused_disk(&place, "./d.raw,size=128M", &["d.raw", "64M", "128M"])
    });
    suite.test_if(lacks_mke2fs(), "disk_smaller_than_its_file_system", || {
        let place = place()?;
        let disk = formatted(&place)?;
        disk.set_len(32 << 20)?;
        refused_disk(
            &place,
            "./d.raw",
            &["d.raw", "smaller than its file system"],
        )
    });
    suite.test_if(lacks_mke2fs(), "disk_in_use", || {
        let place = place()?;
        let disk = formatted(&place)?;
        flock(&disk, FlockOperation::NonBlockingLockExclusive)?;
        let holder = format!("pid {}", std::process::id());
        refused_disk(&place, "./d.raw", &["d.raw", "in use", &holder])
    });
    let cases: &[(&str, (&str, &str))] = &[
        ("disk_size_zero", ("0", "16M to 64T")),
        ("disk_size_tiny", ("1M", "16M to 64T")),
        ("disk_size_huge", ("65T", "16M to 64T")),
        ("disk_size_beyond_64_bits", ("99999999999T", "too large")),
        ("disk_size_odd", ("33554433", "4096-byte")),
        ("disk_size_of_unknown_unit", ("2X", "'2X'")),
        ("disk_size_negative", ("d.raw,size=-1", "'-1'")),
        ("disk_neither_size_nor_file", ("huge", "'huge'")),
        ("disk_unknown_option", ("d.raw,format=qcow2", "'format'")),
        ("disk_empty", ("", "empty")),
    ];
    each(suite, cases, |place, (disk, says)| {
        refused(
            place,
            &[&format!("--disk={disk}"), "--boot=agent", "--rootfs=root"],
            &[says],
        )
    });
}

fn lacks_mke2fs() -> Option<String> {
    machine::lacks(image::EXT4.0, image::EXT4.1)
}

/// A disk that casita's agent is to use. A plain boot takes any.
fn refused_disk(place: &Place, disk: &str, parts: &[&str]) -> Result<()> {
    let arguments = ["--boot=agent", "--rootfs=root", "--disk", disk];
    refused(place, &arguments, parts)
}

/// A disk of 64 MiB as the program itself makes it.
fn formatted(place: &Place) -> Result<fs::File> {
    let arguments = [
        "run",
        "--skip-kvm-check",
        "--kernel",
        KERNEL,
        "--rootfs",
        "root",
    ];
    let disk = ["--disk", "d.raw,size=64M"];
    place
        .casita([&arguments[..], &disk].concat())
        .finish()?
        .expect(0)?;
    Ok(fs::File::options()
        .read(true)
        .write(true)
        .open(place.path("d.raw"))?)
}
