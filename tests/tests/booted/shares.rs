//! Directories of the host in guests, through virtio-fs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use casita_tests::place::Place;
use casita_tests::run::Program;
use casita_tests::suite::Suite;
use rustix::process::{Pid, Signal, kill_process};

use super::shell;

pub fn tests(suite: &mut Suite) {
    suite.test("a_guest_works_in_a_directory_of_the_host", read_write);
    suite.test(
        "a_read_only_directory_stays_as_it_is_whatever_root_does",
        read_only,
    );
    suite.test("two_guests_write_to_one_directory", two_guests);
    suite.test(
        "a_guest_outlives_the_program_that_serves_a_directory",
        killed_program,
    );
}

/// A VM that runs `script`, with the folder `dir` of `place` at /data.
fn guest(place: &Place, dir: &str, read_only: bool, script: &str) -> Program {
    let how = if read_only { ":ro" } else { "" };
    let volume = format!("{}:/data{how}", place.text(dir));
    shell(place, &["-v", &volume], script)
}

/// A place with a folder `shared` that has a few files.
fn place() -> Result<Place> {
    let place = Place::new()?;
    fs::create_dir_all(place.path("shared/sub"))?;
    place.write("shared/file", "from the host\n")?;
    place.write("shared/sub/large", vec![b'x'; 3_000_000])?;
    place.write("secret", "the host's own\n")?;
    std::os::unix::fs::symlink(place.path("secret"), place.path("shared/out"))?;
    Ok(place)
}

/// All files below `dir`, with their contents and modes.
fn tree(dir: &Path) -> Result<BTreeMap<PathBuf, (fs::Permissions, Vec<u8>)>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let data = path.symlink_metadata()?;
            let mut contents = Vec::new();
            if data.is_dir() {
                dirs.push(path.clone());
            } else if data.is_file() {
                contents = fs::read(&path)?;
            }
            found.insert(path, (data.permissions(), contents));
        }
    }
    Ok(found)
}

fn read_write() -> Result<()> {
    let place = place()?;
    let script = r"
        set -e
        cat /data/file
        wc -c < /data/sub/large
        cat /data/sub/large /data/sub/large > /data/copy
        mkdir /data/new; echo made > /data/new/made; mv /data/new /data/moved
        rm /data/file; ln -s moved/made /data/link; cat /data/link
        cmp /data/copy /data/copy
        ! cat /data/out
        ! cat /data/../secret
        echo done
    ";
    let finished = guest(&place, "shared", false, script).finish()?.expect(0)?;
    let finished = finished.says(&["from the host", "3000000", "made", "done"])?;
    ensure!(!finished.text().contains("the host's own"), "{finished}");
    let copy = fs::read(place.path("shared/copy"))?;
    ensure!(copy == vec![b'x'; 6_000_000], "{} bytes", copy.len());
    let made = fs::read_to_string(place.path("shared/moved/made"))?;
    ensure!(made == "made\n", "{made:?}");
    ensure!(!place.path("shared/file").exists(), "it was not removed");
    Ok(())
}

fn read_only() -> Result<()> {
    let place = place()?;
    let before = tree(&place.path("shared"))?;
    let script = r"
        cat /data/file
        mount -o remount,rw /data
        for file in /data/file /data/new /data/sub/large; do
            echo x > $file && echo WRITTEN
            echo x >> $file && echo WRITTEN
        done
        mkdir /data/dir && echo WRITTEN
        rm -r /data/sub && echo WRITTEN
        mv /data/file /data/moved && echo WRITTEN
        chmod 777 /data/file && echo WRITTEN
        umount /data; mount -t virtiofs -o rw share0 /data
        touch /data/file && echo WRITTEN
        echo done
    ";
    let finished = guest(&place, "shared", true, script).finish()?.expect(0)?;
    let finished = finished.says(&["from the host", "done"])?;
    ensure!(!finished.text().contains("WRITTEN"), "{finished}");
    ensure!(before == tree(&place.path("shared"))?, "{finished}");
    Ok(())
}

/// Each writes its own file and waits for the other's.
fn two_guests() -> Result<()> {
    let place = place()?;
    let script = |own: &str, other: &str| {
        format!(
            "for n in $(seq 300); do echo $n >> /data/{own}.part; done
             mv /data/{own}.part /data/{own}
             until [ -e /data/{other} ]; do :; done
             tail -n 1 /data/{other}; echo done"
        )
    };
    let first = guest(&place, "shared", false, &script("a", "b")).start()?;
    let second = guest(&place, "shared", false, &script("b", "a")).start()?;
    for running in [first, second] {
        running.finish()?.expect(0)?.says(&["300", "done"])?;
    }
    for name in ["shared/a", "shared/b"] {
        let text = fs::read_to_string(place.path(name))?;
        let lines = text.lines().map(str::parse);
        ensure!(lines.eq((1..=300).map(Ok::<u32, _>)), "{name}: {text:?}");
    }
    Ok(())
}

fn killed_program() -> Result<()> {
    let place = place()?;
    let script = "cat /data/file; echo ready; read line
        cat /data/sub/large > /dev/null || echo refused
        echo x > /data/new || echo refused too
        echo alive > /root/file; cat /root/file";
    let mut running = guest(&place, "shared", false, script).start_piped()?;
    running.wait_for("ready")?;
    kill_process(serving(running.id())?, Signal::KILL)?;
    running.send("go on\n")?;
    let finished = running.finish()?.expect(0)?;
    let finished = finished.says(&["refused", "refused too", "alive"])?;
    let complaint = finished.complaint();
    let count = complaint.matches("the program that serves it").count();
    ensure!(count == 1, "it was said {count} times\n{finished}");
    Ok(())
}

/// The casita-fs of the casita `id`.
fn serving(id: u32) -> Result<Pid> {
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let has = |line: &str| status.lines().any(|is| is == line);
        if has("Name:\tcasita-fs") && has(&format!("PPid:\t{id}")) {
            return Pid::from_raw(pid).context("no process id");
        }
    }
    anyhow::bail!("casita {id} has no casita-fs")
}
