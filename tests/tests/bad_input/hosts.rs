//! Hosts that can't run guests.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::suite::Suite;

use super::{check_refusal, fill, place};

pub fn tests(suite: &mut Suite) {
    let ordinary = Place::lacks_ordinary();
    suite.test_if(
        ordinary,
        "an_ordinary_user_can_not_become_another",
        another_user,
    );
    suite.test("working_directory_is_gone", no_directory);
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

fn another_user() -> Result<()> {
    let files = [
        "--kernel", "kernel", "--boot", "plain", "--initrd", "initrd",
    ];
    for (option, number) in [("--uid", "5"), ("--uid", "0"), ("--gid", "5")] {
        let place = fill(Place::of_an_ordinary_user()?)?;
        let words = [&["run"], &files[..], &[option, number]].concat();
        let takes = format!("{option} {number} takes root");
        check_refusal(&place.casita(words).finish()?, &[&takes, "leave it out"])?;
    }
    Ok(())
}

/// Only what is relative to it needs it.
fn no_directory() -> Result<()> {
    let place = place()?;
    let script = "mkdir gone && cd gone && rmdir ../gone && exec \"$@\"";
    let program = |kernel: &str| {
        place
            .casita(["run", "--kernel", kernel, "--rootfs", "/no/such/image"])
            .under(&["sh", "-c", script, "sh"])
            .finish()
    };
    check_refusal(
        &program("kernel")?,
        &["kernel", "working directory", "cd to"],
    )?;
    let finished = program("/no/such/kernel")?;
    ensure!(
        !finished.complaint().contains("working directory"),
        "{finished}"
    );
    Ok(())
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
    fs::set_permissions(&node, PermissionsExt::from_mode(0o0))?;
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
