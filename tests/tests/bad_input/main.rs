//! Input that can't be right, and hosts that can't run guests: each ends in one line that says what
//! is wrong with what, exit status 125, and nothing left behind.

mod disks;
mod hosts;
mod images;
mod kernels;
mod machine_files;
mod networks;
mod numbers;
mod sandbox;
mod vm_networks;
mod volumes;

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use casita_tests::kernel::{EXIT_STATUS, Payload, patched};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::run::Finished;
use casita_tests::suite::Suite;
use libtest_mimic::Arguments;
use rustix::fs::{CWD, FileType, Mode, mknodat};

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.all_miss(machine::lacks_file(&machine::casita()));
    hosts::tests(&mut suite);
    suite.all_miss(machine::lacks_kvm());
    kernels::tests(&mut suite);
    images::tests(&mut suite);
    disks::tests(&mut suite);
    numbers::tests(&mut suite);
    sandbox::tests(&mut suite);
    volumes::tests(&mut suite);
    machine_files::tests(&mut suite);
    networks::tests(&mut suite);
    vm_networks::tests(&mut suite);
    suite.test("with_v_every_cause_has_a_line", causes);
    suite.test("a_failed_start_leaves_no_new_disk", no_new_disk);
    suite.test("a_vsock_path_that_is_taken", || vsock("root", "in use"));
    suite.test("a_vsock_path_without_a_folder", || {
        vsock("no/v", "No such file")
    });
    suite.test("a_vsock_path_that_is_too_long", || {
        vsock(&"v".repeat(120), "SUN_LEN")
    });
    suite.run(&Arguments::from_args())
}

/// What is right, where a test does not say otherwise: a kernel that powers off at once.
const KERNEL: &str = "kernel";

fn place() -> Result<Place> {
    fill(Place::new()?)
}

fn fill(place: Place) -> Result<Place> {
    let payload = Payload::new().out32(EXIT_STATUS, 0).power_off();
    place.write(KERNEL, payload.elf())?;
    place.write("root", squashfs(4096))?;
    place.write("initrd", "initrd")?;
    Ok(place)
}

fn vsock(path: &str, says: &str) -> Result<()> {
    refused(&place()?, &["--vsock", path], &[path, says])
}

fn good() -> Vec<u8> {
    Payload::new().power_off().elf()
}

/// The beginning of a squashfs that says that it has `len` bytes.
fn squashfs(len: u64) -> Vec<u8> {
    let superblock = patched(vec![0; 4096], 0, b"hsqs");
    patched(patched(superblock, 28, &[4]), 40, &len.to_le_bytes())
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

/// A file's content, and what is said about it.
type ContentCase = (fn() -> Vec<u8>, &'static str);

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
            if what == format!("casita: kernel {} could not be opened", place.text("none"))
                && why.starts_with("  because: No such file")),
        "two lines were expected\n{finished}"
    );
    Ok(())
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
