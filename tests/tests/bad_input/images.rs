//! Root images.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use anyhow::Result;
use casita_tests::kernel::patched;
use casita_tests::suite::Suite;
use casita_tests::{image, machine};

use super::{
    ContentCase, KERNEL, check_refusal, each, good, place, refused, special_files, squashfs,
};

pub fn tests(suite: &mut Suite) {
    let cases: &[(&str, ContentCase)] = &[
        ("image_empty", (Vec::new, "empty")),
        ("image_of_one_byte", (|| vec![1], "unknown type")),
        (
            "image_of_unknown_type",
            (|| b"what is this?".repeat(5000), "unknown type"),
        ),
        ("image_script", (|| b"#!/bin/sh\n".to_vec(), "a script")),
        (
            "image_tar",
            (|| patched(vec![b'a'; 4096], 257, b"ustar"), "tar archive"),
        ),
        (
            "image_gzip",
            (|| patched(vec![b'a'; 4096], 0, b"\x1f\x8b"), "gzip"),
        ),
        (
            "image_qcow2",
            (|| patched(vec![b'a'; 4096], 0, b"QFI\xfb"), "qcow2"),
        ),
        ("image_kernel", (good, "--kernel")),
        ("image_squashfs_cut", (|| squashfs(1 << 20), "truncated")),
        (
            "image_squashfs_cut_in_its_superblock",
            (|| b"hsqs\0\0\0\0".to_vec(), "squashfs"),
        ),
    ];
    each(suite, cases, |place, (content, says)| {
        place.write("image", content())?;
        refused(place, &["--rootfs", "image"], &["image", says])
    });
    suite.test("image_missing", || {
        refused(
            &place()?,
            &["--rootfs", "no.erofs"],
            &["no.erofs", "does not exist"],
        )
    });
    suite.test("image_behind_a_dangling_link", || {
        let place = place()?;
        symlink("nowhere", place.path("link"))?;
        refused(&place, &["--rootfs", "link"], &["link"])
    });
    suite.test("image_not_a_file", || {
        let place = place()?;
        special_files(&place, |name| match name {
            "folder" => Ok(()), // that is an image
            name => refused(&place, &["--rootfs", name], &[name]),
        })
    });
    suite.test_if(machine::lacks_permissions(), "image_unreadable", || {
        unreadable("--rootfs", "image", "no permission")
    });
    suite.test_if(machine::lacks_permissions(), "kernel_unreadable", || {
        unreadable("--kernel", "other", "Permission denied")
    });
    suite.test_if(
        machine::lacks(image::EROFS.0, image::EROFS.1),
        "image_erofs_cut",
        || {
            let place = place()?;
            fs::create_dir(place.path("tree"))?;
            fs::write(place.path("tree/file"), vec![7; 100_000])?;
            image::erofs(&place.path("tree"), &place.path("image"))?;
            fs::File::options()
                .write(true)
                .open(place.path("image"))?
                .set_len(50_000)?;
            refused(&place, &["--rootfs", "image"], &["image", "truncated"])
        },
    );
    suite.test("command_in_a_plain_boot", || {
        refused(&place()?, &["--", "ls"], &["--boot plain", "ls"])
    });
    suite.test("plain_boot_of_nothing", || {
        let place = place()?;
        let arguments = [
            "run",
            "--skip-kvm-check",
            "--kernel",
            "kernel",
            "--boot",
            "plain",
        ];
        check_refusal(
            &place.casita(arguments).finish()?,
            &["--rootfs or --initrd"],
        )
    });
}

/// A file that nobody may read.
fn unreadable(option: &str, name: &str, says: &str) -> Result<()> {
    let place = place()?;
    let path = place.write(name, "secret")?;
    fs::set_permissions(&path, PermissionsExt::from_mode(0o0))?;
    let mut arguments = vec![
        "run",
        "--skip-kvm-check",
        "--boot",
        "plain",
        "--initrd",
        "initrd",
    ];
    if option != "--kernel" {
        arguments.extend(["--kernel", KERNEL]);
    }
    arguments.extend([option, name]);
    let program = place
        .casita(arguments)
        .under(machine::bound_by_permissions());
    check_refusal(&program.finish()?, &[name, says])
}
