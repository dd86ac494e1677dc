//! Volumes and other mounts.

use std::fs;

use anyhow::{Result, ensure};
use casita_tests::place::Place;
use casita_tests::suite::Suite;
use casita_tests::{image, machine};
use rustix::fs::{FlockOperation, flock};

use super::{check_refusal, each, place, refused, special_files};

pub fn tests(suite: &mut Suite) {
    let cases: &[(&str, (&str, &str))] = &[
        ("volume_without_a_target", ("-vdb", "'db'")),
        ("volume_of_an_impossible_name", ("-va b:/d", "'a b'")),
        ("volume_of_a_path_like_a_name", ("-va/b:/d", "./")),
        ("volume_at_a_relative_path", ("-vdb:data", "\"data\"")),
        ("volume_at_the_root", ("-vdb:/", "root")),
        ("volume_at_a_path_that_goes_up", ("-vdb:/a/../b", "'..'")),
        ("volume_with_an_unknown_option", ("-vdb:/d:rx", "'rx'")),
        ("volume_of_a_missing_directory", ("-v./none:/d", "none")),
        (
            "volume_of_a_shared_directory",
            ("-v.:/d:shared", "'shared'"),
        ),
        ("tmpfs_of_no_size", ("--tmpfs=/t:size=0", "size 0")),
        ("tmpfs_of_an_odd_mode", ("--tmpfs=/t:mode=8", "'8'")),
        (
            "tmpfs_with_an_unknown_option",
            ("--tmpfs=/t:nr=1", "'nr=1'"),
        ),
    ];
    each(suite, cases, |place, (option, says)| {
        with_agent(place, &[option], &[says])
    });
    suite.test("volume_of_what_is_no_directory", || {
        let place = place()?;
        special_files(&place, |name| {
            if name == "folder" {
                return Ok(());
            }
            let path = if name.starts_with('/') { "" } else { "./" };
            let volume = format!("{path}{name}:/d");
            with_agent(&place, &["-v", &volume], &[name, "irectory"])
        })
    });
    suite.test("two_mounts_at_one_place", || {
        let mounts = ["--tmpfs", "/d", "--tmpfs", "/d/"];
        with_agent(&place()?, &mounts, &["/d"])
    });
    suite.test("mounts_in_a_plain_boot", || {
        refused(&place()?, &["--tmpfs", "/d"], &["--boot plain"])
    });
    let lacks_mke2fs = || machine::lacks(image::EXT4.0, image::EXT4.1);
    suite.test_if(lacks_mke2fs(), "volume_in_use", in_use);
    suite.test_if(
        lacks_mke2fs(),
        "a_failed_start_leaves_no_new_volume",
        || {
            let long = "x".repeat(3000);
            with_agent(&place()?, &["-v", "new:/d", "--cmdline", &long], &["2047"])
        },
    );
    suite.test("a_volume_that_exists_already", || {
        let place = place()?;
        let create = ["volume", "create", "--shared", "v"];
        place.casita(create).finish()?.expect(0)?;
        check_refusal(&place.casita(create).finish()?, &["v", "exists already"])
    });
    suite.test("a_volume_that_does_not_exist", || {
        let place = place()?;
        for command in ["rm", "inspect", "export"] {
            let finished = place.casita(["volume", command, "none"]).finish()?;
            check_refusal(&finished, &["no volume none"])?;
        }
        Ok(())
    });
    suite.test("a_copy_between_places_that_do_not_go_together", || {
        let place = place()?;
        for (paths, says) in [
            (["a", "b"], "VM"),
            (["a:/b", "c:/d"], "VM"),
            (["a:", "b"], "empty"),
        ] {
            check_refusal(
                &place.casita([&["cp"][..], &paths].concat()).finish()?,
                &[says],
            )?;
        }
        check_refusal(&place.casita(["cp", "none:/f", "f"]).finish()?, &["none"])
    });
}

/// A plain boot mounts nothing.
fn with_agent(place: &Place, options: &[&str], parts: &[&str]) -> Result<()> {
    refused(
        place,
        &[&["--boot=agent", "--rootfs=root"], options].concat(),
        parts,
    )
}

/// This process is the other one.
fn in_use() -> Result<()> {
    let place = place()?;
    let create = ["volume", "create", "--size", "64M", "v"];
    place.casita(create).finish()?.expect(0)?;
    let path = place.path("data/casita/volumes/v/disk.raw");
    let disk = fs::File::options().read(true).write(true).open(path)?;
    let holder = format!("pid {}", std::process::id());
    flock(&disk, FlockOperation::NonBlockingLockExclusive)?;
    for how in ["v:/d", "v:/d:ro"] {
        with_agent(&place, &["-v", how], &["volume v is in use", &holder])?;
    }
    let removed = place.casita(["volume", "rm", "v"]).finish()?;
    check_refusal(&removed, &["volume v is in use"])?;
    flock(&disk, FlockOperation::NonBlockingLockShared)?;
    with_agent(&place, &["-v", "v:/d"], &["volume v is in use", &holder])?;
    drop(disk);
    place.casita(["volume", "rm", "v"]).finish()?.expect(0)?;
    ensure!(!place.path("data/casita/volumes/v").exists());
    Ok(())
}
