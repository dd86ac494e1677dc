//! Input that can't be right, and hosts that can't run guests: each ends in one line that says what
//! is wrong with what, exit status 125, and nothing left behind.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use casita_tests::kernel::{EXIT_STATUS, Payload, field, patched};
use casita_tests::place::Place;
use casita_tests::run::Finished;
use casita_tests::suite::Suite;
use casita_tests::{image, machine};
use libtest_mimic::Arguments;
use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat};

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.all_miss(machine::lacks_file(&machine::casita()));
    hosts(&mut suite);
    suite.all_miss(machine::lacks_kvm());
    kernels(&mut suite);
    images(&mut suite);
    disks(&mut suite);
    sizes(&mut suite);
    machine_files(&mut suite);
    suite.test("with_v_every_cause_has_a_line", causes);
    suite.test("a_failed_start_leaves_no_new_disk", no_new_disk);
    suite.run(&Arguments::from_args())
}

/// What is right, where a test does not say otherwise: a kernel that powers off at once.
const KERNEL: &str = "kernel";

fn place() -> Result<Place> {
    let place = Place::new()?;
    let payload = Payload::new().out32(EXIT_STATUS, 0).power_off();
    place.write(KERNEL, payload.elf())?;
    place.write("root", squashfs(4096))?;
    place.write("initrd", "initrd")?;
    Ok(place)
}

/// Runs `casita run --skip-kvm-check` with `arguments`, behind `--kernel kernel --boot plain
/// --initrd initrd` as far as those don't say it themselves. It has to be refused in one line that
/// has all of `parts`.
fn refused(place: &Place, arguments: &[&str], parts: &[&str]) -> Result<()> {
    let mut all = vec!["run", "--skip-kvm-check"];
    let defaults = ["--kernel=kernel", "--boot=plain", "--initrd=initrd"];
    let said = |option: &str| {
        let name = option.split('=').next().unwrap_or(option);
        arguments
            .iter()
            .any(|argument| argument.split('=').next() == Some(name))
    };
    if !said("--config") {
        all.extend(defaults.iter().filter(|option| !said(option)));
    }
    all.extend(arguments);
    let before = place.listing()?;
    let finished = place.casita(all.iter().copied()).finish()?;
    check_refusal(&finished, parts)?;
    let after = place.listing()?;
    let left: Vec<_> = after.difference(&before).collect();
    ensure!(left.is_empty(), "left behind: {left:?}\n{finished}");
    let lost: Vec<_> = before.difference(&after).collect();
    ensure!(lost.is_empty(), "removed: {lost:?}\n{finished}");
    Ok(())
}

fn check_refusal(finished: &Finished, parts: &[&str]) -> Result<()> {
    let complaint = finished.complaint();
    ensure!(
        finished.status.code() == Some(125),
        "exit status 125 was expected\n{finished}"
    );
    ensure!(
        finished.stdout.is_empty(),
        "no output was expected\n{finished}"
    );
    ensure!(
        complaint.starts_with("casita: ")
            && complaint.ends_with('\n')
            && complaint.lines().count() == 1,
        "one line was expected that starts with \"casita: \"\n{finished}"
    );
    for part in parts {
        ensure!(
            complaint.contains(part),
            "{part:?} was expected\n{finished}"
        );
    }
    Ok(())
}

/// A test of each name in `cases`, with a place of its own.
fn each<C: Copy + Send + 'static>(
    suite: &mut Suite,
    cases: &[(&str, C)],
    body: fn(&Place, C) -> Result<()>,
) {
    for (name, case) in cases {
        let case = *case;
        suite.test_if(None, name, move || body(&place()?, case));
    }
}

// --- Kernels

/// A kernel's content, and what is said about it.
type KernelCase = (fn() -> Vec<u8>, &'static str);

fn kernels(suite: &mut Suite) {
    let cases: &[(&str, KernelCase)] = &[
        ("kernel_empty", (Vec::new, "empty")),
        ("kernel_of_one_byte", (|| vec![0x7f], "")),
        (
            "kernel_script",
            (|| b"#!/bin/sh\necho hello\n".to_vec(), "a script"),
        ),
        ("kernel_text", (|| b"just some words\n".repeat(100), "text")),
        ("kernel_zeros", (|| vec![0; 10_000], "zeros")),
        (
            "kernel_gzip",
            (|| b"\x1f\x8b\x08\0aaaaaaaaaaaaaaaaaaaaaa".to_vec(), "gzip"),
        ),
        ("kernel_pe", (pe, "PE")),
        ("kernel_aarch64_image", (aarch64_image, "aarch64")),
        (
            "kernel_aarch64_elf",
            (|| changed(field::MACHINE, &[183, 0]), ""),
        ),
        ("kernel_elf_cut_in_its_header", (|| cut(40), "truncated")),
        (
            "kernel_elf_cut_in_its_program_headers",
            (|| cut(100), "truncated"),
        ),
        ("kernel_elf_cut_in_its_text", (|| cut(0x1001), "truncated")),
        (
            "kernel_elf_headers_far_outside",
            (|| changed(field::SEGMENTS_OFFSET, &[0xff; 8]), ""),
        ),
        (
            "kernel_elf_too_many_headers",
            (|| changed(field::SEGMENT_COUNT, &[0xff; 2]), ""),
        ),
        (
            "kernel_elf_without_segments",
            (|| changed(field::SEGMENT_COUNT, &[0; 2]), "no segment"),
        ),
        (
            "kernel_elf_huge_file_size",
            (|| changed(field::FILE_SIZE, &[0xff; 8]), "segment 0"),
        ),
        (
            "kernel_elf_huge_memory_size",
            (|| changed(field::MEMORY_SIZE, &[0xff; 8]), "segment 0"),
        ),
        (
            "kernel_elf_offset_wraps",
            (|| changed(field::OFFSET, &[0xff; 8]), "segment 0"),
        ),
        (
            "kernel_elf_address_wraps",
            (|| changed(field::ADDRESS, &[0xff; 8]), "segment 0"),
        ),
        (
            "kernel_elf_in_low_memory",
            (
                || changed(field::ADDRESS, &0x1000_u64.to_le_bytes()),
                "1 MiB",
            ),
        ),
        (
            "kernel_elf_outside_of_memory",
            (
                || changed(field::ADDRESS, &(1_u64 << 32).to_le_bytes()),
                "outside of the guest's memory",
            ),
        ),
        ("kernel_elf_segments_overlap", (overlapping, "overlap")),
        (
            "kernel_elf_entry_outside",
            (
                || changed(field::PVH_ENTRY, &[0, 0, 0, 0x40]),
                "entry point",
            ),
        ),
        ("kernel_bzimage_cut", (|| bzimage(0x0f0f_0f0f), "truncated")),
        ("kernel_bzimage_old", (old_bzimage, "2.12")),
    ];
    each(suite, cases, |place, (content, says)| {
        place.write("foreign", content())?;
        refused(place, &["--kernel", "foreign"], &["foreign", says])
    });
    suite.test("kernel_missing", || {
        let says = ["missing.elf", "No such file"];
        refused(&place()?, &["--kernel", "missing.elf"], &says)
    });
    suite.test("kernel_not_a_file", || {
        let place = place()?;
        special_files(&place, |name| {
            refused(&place, &["--kernel", name], &[name, "not a regular file"])
        })
    });
    suite.test("initrd_not_a_file", || {
        let place = place()?;
        special_files(&place, |name| {
            refused(&place, &["--initrd", name], &[name, "not a regular file"])
        })
    });
    suite.test("initrd_missing", || {
        refused(&place()?, &["--initrd", "none.cpio"], &["none.cpio"])
    });
    suite.test("initrd_empty", || {
        let place = place()?;
        place.write("nothing", "")?;
        refused(&place, &["--initrd", "nothing"], &["nothing", "empty"])
    });
    suite.test("initrd_larger_than_memory", || {
        let place = place()?;
        fs::File::create(place.path("large"))?.set_len(64 << 20)?;
        refused(
            &place,
            &["--initrd", "large", "--memory", "32M"],
            &["large", "does not fit"],
        )
    });
    suite.test("cmdline_too_long", || {
        let long = "x".repeat(3000);
        refused(&place()?, &["--cmdline", &long], &["command line", "2047"])
    });
    suite.test("cmdline_longer_than_its_room", || {
        let long = "x".repeat(100_000);
        refused(&place()?, &["--cmdline", &long], &["command line", "65535"])
    });
    suite.test("cmdline_with_nul", || {
        let place = place()?;
        place.write(
            "m.json",
            r#"{"kernel": "kernel", "initrd": "initrd", "boot": "plain", "cmdline": "a\u0000b"}"#,
        )?;
        refused(&place, &["--config", "m.json"], &["command line", "NUL"])
    });
}

fn good() -> Vec<u8> {
    Payload::new().power_off().elf()
}

fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    patched(good(), at, bytes)
}

fn cut(len: usize) -> Vec<u8> {
    let mut file = good();
    file.truncate(len);
    file
}

/// The note's header made into another segment at the first one's address.
fn overlapping() -> Vec<u8> {
    let second = changed(field::SECOND_KIND, &1_u32.to_le_bytes());
    patched(
        second,
        field::SECOND_KIND + 24,
        &u64::from(Payload::ENTRY).to_le_bytes(),
    )
}

/// A PE program that is no Linux kernel.
fn pe() -> Vec<u8> {
    let mut file = vec![0; 4096];
    file = patched(file, 0, b"MZ");
    patched(patched(file, 0x3c, &[0x80]), 0x80, b"PE\0\0d\x86")
}

/// The header of `Documentation/arch/arm64/booting.rst`.
fn aarch64_image() -> Vec<u8> {
    patched(pe(), 0x38, b"ARM\x64")
}

/// The setup header of `Documentation/arch/x86/boot.rst`, with a payload of `paragraphs`.
fn bzimage(paragraphs: u32) -> Vec<u8> {
    let mut file = vec![0; 8192];
    for (at, bytes) in [
        (0x1f1, &[1][..]),
        (0x1f4, &paragraphs.to_le_bytes()),
        (0x1fe, &[0x55, 0xaa]),
        (0x200, &[0xeb, 0x6a]),
        (0x202, b"HdrS"),
        (0x206, &[0x0f, 0x02]),
        (0x211, &[1]),
        (0x236, &[1, 0]),
        (0x238, &[0xff, 7, 0, 0]),
        (0x258, &0x100_0000_u64.to_le_bytes()),
        (0x260, &0x10_0000_u32.to_le_bytes()),
    ] {
        file = patched(file, at, bytes);
    }
    file
}

fn old_bzimage() -> Vec<u8> {
    patched(bzimage(100), 0x206, &[0x00, 0x02])
}

/// Calls `body` with the names of a folder, a FIFO, a socket and devices. A FIFO that was opened
/// without care would wait for a writer for ever.
fn special_files(place: &Place, body: impl Fn(&str) -> Result<()>) -> Result<()> {
    fs::create_dir(place.path("folder"))?;
    fs::write(place.path("folder/file"), "")?;
    mknodat(
        CWD,
        place.path("fifo"),
        FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )?;
    let _listener = UnixListener::bind(place.path("socket"))?;
    for name in [
        "folder",
        "fifo",
        "socket",
        "/dev/null",
        "/dev/zero",
        "/dev/tty",
    ] {
        body(name).with_context(|| name.to_owned())?;
    }
    Ok(())
}

// --- Root images

fn images(suite: &mut Suite) {
    let cases: &[(&str, KernelCase)] = &[
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

/// The beginning of a squashfs that says that it has `len` bytes.
fn squashfs(len: u64) -> Vec<u8> {
    let superblock = patched(vec![0; 4096], 0, b"hsqs");
    patched(patched(superblock, 28, &[4]), 40, &len.to_le_bytes())
}

/// A file that nobody may read.
fn unreadable(option: &str, name: &str, says: &str) -> Result<()> {
    let place = place()?;
    let path = place.write(name, "secret")?;
    fs::set_permissions(&path, PermissionsExt::from_mode(0))?;
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

// --- Disks

fn disks(suite: &mut Suite) {
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

fn no_new_disk() -> Result<()> {
    let place = place()?;
    place.write("bad", "#!/bin/sh\n")?;
    refused(
        &place,
        &["--kernel", "bad", "--disk", "new.raw,size=64M"],
        &["bad"],
    )?;
    refused(
        &place,
        &["--kernel", "bad", "--name", "new", "--disk", "64M"],
        &["bad"],
    )?;
    let long = "x".repeat(3000);
    refused(
        &place,
        &["--cmdline", &long, "--disk", "new.raw,size=64M"],
        &["2047"],
    )
}

// --- Numbers

fn sizes(suite: &mut Suite) {
    let cases: &[(&str, (&str, &str))] = &[
        ("memory_zero", ("--memory=0", "at least 16M")),
        ("memory_tiny", ("--memory=1M", "at least 16M")),
        ("memory_odd", ("--memory=100000001", "whole MiB")),
        ("memory_fraction", ("--memory=1.5G", "'1.5G'")),
        ("memory_negative", ("--memory=-1", "-1")),
        ("memory_words", ("--memory=lots", "'lots'")),
        ("memory_empty", ("--memory=", "''")),
        (
            "memory_larger_than_the_host",
            ("--memory=900G", "more than this host's"),
        ),
        (
            "memory_larger_than_possible",
            ("--memory=2000000G", "1024 GiB"),
        ),
        (
            "memory_beyond_64_bits",
            ("--memory=99999999999T", "too large"),
        ),
        ("cpus_zero", ("--cpus=0", "1 to 32")),
        ("cpus_33", ("--cpus=33", "1 to 32")),
        ("cpus_negative", ("--cpus=-1", "1 to 32")),
        ("cpus_words", ("--cpus=x", "1 to 32")),
        ("cpus_beyond_8_bits", ("--cpus=257", "1 to 32")),
        ("name_with_slash", ("--name=../escape", "'../escape'")),
        ("name_empty", ("--name=", "''")),
        ("name_like_an_option", ("--name=-v", "'-v'")),
        ("boot_unknown", ("--boot=uefi", "uefi")),
        ("option_unknown", ("--frobnicate", "--frobnicate")),
        (
            "option_with_a_control_character",
            ("--memory=\x1b[2J", "\\u{1b}"),
        ),
    ];
    each(suite, cases, |place, (option, says)| {
        refused(place, &[option], &[says])
    });
}

// --- Machine files

/// A file's name, its content, and what is said about it.
type FileCase = (&'static str, &'static str, &'static str);

fn machine_files(suite: &mut Suite) {
    let cases: &[(&str, FileCase)] = &[
        (
            "config_toml_unknown_field",
            ("m.toml", "cpus = 1\nfoo = 1\n", "`foo`"),
        ),
        (
            "config_json_unknown_field",
            ("m.json", r#"{"foo": 1}"#, "`foo`"),
        ),
        (
            "config_toml_wrong_type",
            ("m.toml", "cpus = 'two'\n", "line 1"),
        ),
        (
            "config_json_wrong_type",
            ("m.json", r#"{"kernel": 3}"#, "invalid type"),
        ),
        ("config_cpus_zero", ("m.toml", "cpus = 0\n", "1 to 32")),
        (
            "config_cpus_huge",
            ("m.json", r#"{"cpus": 4294967297}"#, "1 to 32"),
        ),
        (
            "config_memory_odd",
            ("m.toml", "memory = 3\n", "at least 16M"),
        ),
        ("config_memory_negative", ("m.toml", "memory = -5\n", "")),
        ("config_bad_disk", ("m.toml", "disk = '5'\n", "16M to 64T")),
        ("config_bad_name", ("m.toml", "name = '../x'\n", "'../x'")),
        ("config_bad_boot", ("m.toml", "boot = 'uefi'\n", "uefi")),
        ("config_toml_broken", ("m.toml", "cpus = = 1\n", "line 1")),
        ("config_json_cut", ("m.json", r#"{"cpus": 1"#, "line 1")),
        ("config_json_deep", ("m.json", DEEP, "")),
        ("config_not_utf8", ("m.toml", "", "")),
    ];
    each(suite, cases, |place, (name, content, says)| {
        match content {
            "" => place.write(name, b"cpus = \xff\xfe")?,
            DEEP => place.write(name, "[".repeat(100_000))?,
            content => place.write(name, content)?,
        };
        // The name may come from the command line too, so its message does not tell where it stood.
        let file = if says == "'../x'" { "" } else { name };
        refused(place, &["--config", name], &[file, says])
    });
    suite.test("config_missing", || {
        refused(
            &place()?,
            &["--config", "no.toml"],
            &["no.toml", "No such file"],
        )
    });
    suite.test("config_not_a_file", || {
        let place = place()?;
        special_files(&place, |name| refused(&place, &["--config", name], &[name]))
    });
    suite.test("config_huge", || {
        let place = place()?;
        fs::File::create(place.path("huge.toml"))?.set_len(1 << 40)?;
        refused(
            &place,
            &["--config", "huge.toml"],
            &["huge.toml", "larger than"],
        )
    });
}

const DEEP: &str = "(deeply nested)";

// --- Hosts

fn hosts(suite: &mut Suite) {
    suite.test_if(machine::lacks_mounts(), "no_dev_kvm", || {
        hidden_kvm("mount -t tmpfs none /dev", &["/dev/kvm"])
    });
    suite.test_if(machine::lacks_mounts(), "dev_kvm_is_something_else", || {
        hidden_kvm("mount --bind /dev/null /dev/kvm", &["/dev/kvm"])
    });
    let private = machine::lacks_mounts()
        .or_else(machine::lacks_permissions)
        // A user who is root in a namespace of their own is still one who may read their files.
        .or_else(|| (!machine::is_root()).then(|| "needs root".to_owned()));
    suite.test_if(private, "no_permission_for_dev_kvm", no_permission);
    let usable = machine::runs_guests().then(|| "needs a KVM that can't run Linux".to_owned());
    suite.test_if(
        machine::lacks_kvm().or(usable),
        "kvm_that_can_not_run_linux",
        || {
            let place = place()?;
            let arguments = [
                "run", "--kernel", "kernel", "--boot", "plain", "--initrd", "initrd",
            ];
            let before = place.listing()?;
            let finished = place.casita(arguments).finish()?;
            check_refusal(
                &finished,
                &[
                    "/dev/kvm is there but can't run a Linux guest",
                    "tests/lab/run",
                ],
            )?;
            ensure!(place.listing()? == before, "something was left behind");
            Ok(())
        },
    );
}

/// Runs a plain boot in a mount namespace in which `mount` has hidden the host's /dev/kvm.
fn hidden_kvm(mount: &str, parts: &[&str]) -> Result<()> {
    let place = place()?;
    let script = format!("{mount} && exec \"$@\"");
    let mut under = machine::own_mounts().to_vec();
    under.extend(["sh", "-c", &script, "sh"]);
    let arguments = [
        "run", "--kernel", "kernel", "--boot", "plain", "--initrd", "initrd",
    ];
    let finished = place.casita(arguments).under(&under).finish()?;
    check_refusal(&finished, parts)
}

fn no_permission() -> Result<()> {
    let place = place()?;
    let node = place.write("kvm", "")?;
    fs::set_permissions(&node, PermissionsExt::from_mode(0))?;
    let step_down = machine::bound_by_permissions().join(" ");
    let script = format!("mount --bind {node} /dev/kvm && exec {step_down} \"$@\"");
    let mut under = machine::own_mounts().to_vec();
    under.extend(["sh", "-c", &script, "sh"]);
    let arguments = [
        "run", "--kernel", "kernel", "--boot", "plain", "--initrd", "initrd",
    ];
    let finished = place.casita(arguments).under(&under).finish()?;
    check_refusal(&finished, &["/dev/kvm", "usermod -aG kvm"])
}

// --- More words on demand

fn causes() -> Result<()> {
    let place = place()?;
    let finished = place
        .casita(["-v", "run", "--skip-kvm-check", "--kernel", "none"])
        .finish()?;
    let complaint = finished.complaint();
    let lines: Vec<_> = complaint.lines().collect();
    ensure!(finished.status.code() == Some(125), "{finished}");
    ensure!(
        matches!(lines[..], [what, why]
            if what == "casita: kernel none could not be opened"
                && why.starts_with("  because: No such file")),
        "two lines were expected\n{finished}"
    );
    Ok(())
}
