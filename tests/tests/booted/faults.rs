//! Faults on the host while Linux guests run on it: disks that fail, are slow or full, memory that
//! is short, kills at random moments, clocks that jump. The guest gets an honest error, what it was
//! told to be on the disk is there, and the next command works.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casita_tests::place::Place;
use casita_tests::suite::Suite;
use casita_tests::vm::Vm;
use casita_tests::{image, machine};
use rustix::process::Signal;

use super::shell;

/// Kills in the middle of a guest's writes.
const KILLS: u32 = 20;

pub fn tests(suite: &mut Suite) {
    let mapper = || {
        let lab = (!machine::is_lab()).then(|| "makes block devices, which the lab has".to_owned());
        lab.or_else(|| machine::lacks("dmsetup", "dmsetup"))
    };
    suite.test_if(
        mapper(),
        "host_fault_a_disk_that_fails_is_the_guests_error",
        disk_fails,
    );
    suite.test_if(
        mapper(),
        "host_fault_a_disk_that_is_slow_is_waited_for",
        disk_is_slow,
    );
    let erofs = machine::lacks(image::EROFS.0, image::EROFS.1);
    suite.test_if(
        mapper().or(erofs.clone()),
        "host_fault_an_image_that_fails_is_the_guests_error",
        image_fails,
    );
    suite.test_if(
        erofs,
        "host_fault_an_image_that_is_cut_off_is_the_guests_error",
        image_is_cut,
    );
    suite.test("host_fault_twenty_kills_while_a_guest_writes", kills);
    let lab =
        || (!machine::is_lab()).then(|| "changes the machine, which the lab is for".to_owned());
    suite.test_if(
        lab(),
        "host_fault_a_host_without_memory_loses_that_vm_alone",
        out_of_memory,
    );
    suite.test_if(
        lab(),
        "host_fault_a_clock_that_jumps_changes_nothing",
        clock,
    );
    suite.test_if(
        machine::lacks_mounts(),
        "host_fault_a_log_without_room_stops_no_command",
        full_log,
    );
}

fn run(words: &[&str]) -> Result<()> {
    let (name, arguments) = words.split_first().context("no command")?;
    // The lab has no udev; dmsetup makes its device nodes itself then.
    let status = Command::new(name)
        .args(arguments)
        .env("DM_DISABLE_UDEV", "1")
        .status()?;
    ensure!(status.success(), "{words:?}: {status}");
    Ok(())
}

/// A file system on a device of the device mapper, whose table can be changed while it is used.
struct Mapped {
    name: String,
    device: String,
    sectors: u64,
    folder: String,
}

impl Mapped {
    /// In the place's folder of this name, with so many MiB.
    fn new(place: &Place, name: &str, mib: u64) -> Result<Self> {
        let backing = place.text(&format!("{name}.backing"));
        fs::File::create(&backing)?.set_len(mib << 20)?;
        run(&["modprobe", "loop"])?;
        run(&["modprobe", "dm-mod"])?;
        let output = Command::new("losetup")
            .args(["--find", "--show", &backing])
            .output()?;
        ensure!(output.status.success(), "no loop device");
        let mapped = Self {
            name: format!("casita-{name}"),
            device: String::from_utf8(output.stdout)?.trim().to_owned(),
            sectors: mib << 11,
            folder: place.text(name),
        };
        run(&[
            "dmsetup",
            "create",
            &mapped.name,
            "--table",
            &mapped.table("linear", " 0"),
        ])?;
        let node = format!("/dev/mapper/{}", mapped.name);
        // Without a journal, which would end at the first error.
        run(&[
            "mkfs.ext4",
            "-q",
            "-O",
            "^has_journal",
            "-e",
            "continue",
            &node,
        ])?;
        fs::create_dir(&mapped.folder)?;
        run(&["mount", &node, &mapped.folder])?;
        Ok(mapped)
    }

    fn table(&self, kind: &str, more: &str) -> String {
        let device = if kind == "error" {
            String::new()
        } else {
            format!(" {}", self.device)
        };
        format!("0 {} {kind}{device}{more}", self.sectors)
    }

    /// From now on the device is of this kind.
    fn becomes(&self, kind: &str, more: &str) -> Result<()> {
        run(&["dmsetup", "suspend", "--noflush", "--nolockfs", &self.name])?;
        run(&[
            "dmsetup",
            "load",
            &self.name,
            "--table",
            &self.table(kind, more),
        ])?;
        run(&["dmsetup", "resume", &self.name])
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = run(&["umount", "-l", &self.folder]);
        let _ = run(&["dmsetup", "remove", "--deferred", &self.name]);
        let _ = run(&["losetup", "--detach", &self.device]);
    }
}

fn disk_fails() -> Result<()> {
    let place = Place::new()?;
    let mapped = Mapped::new(&place, "fails", 96)?;
    let options = ["--disk", "fails/d.raw,size=64M"];
    let script = "echo kept > /kept; sync; echo ready; read -r x
        dd if=/dev/urandom of=/file bs=64k count=16 conv=fsync; echo \"dd: $?\"; echo alive; exit 9";
    let mut running = shell(&place, &options, script).start_piped()?;
    running.wait_for("ready")?;
    mapped.becomes("error", "")?;
    running.send("go on\n")?;
    let finished = running.finish()?.expect(9)?.says(&["dd: 1", "alive"])?;
    let complaint = finished.complaint();
    ensure!(
        complaint.contains("I/O error") || complaint.contains("Input/output error"),
        "EIO was expected in the guest\n{finished}"
    );
    // The disk is well again: what was synced before is there, and others were not harmed.
    mapped.becomes("linear", " 0")?;
    shell(&place, &options, "cat /kept")
        .finish()?
        .expect(0)?
        .says(&["kept"])?;
    shell(&place, &["--rm"], "echo next")
        .finish()?
        .expect(0)?
        .says(&["next"])?;
    Ok(())
}

/// A tenth of a second for each request; nobody gives up, and what is waited for can be ended.
fn disk_is_slow() -> Result<()> {
    let place = Place::new()?;
    run(&["modprobe", "dm-delay"])?;
    let mapped = Mapped::new(&place, "slow", 96)?;
    mapped.becomes("delay", " 0 100")?;
    let options = ["--disk", "slow/d.raw,size=64M"];
    let script = "dd if=/dev/zero of=/file bs=64k count=4 conv=fsync 2>/dev/null; echo \"dd: $?\"";
    shell(&place, &options, script)
        .finish()?
        .expect(0)?
        .says(&["dd: 0"])?;
    let script = "echo ready; while :; do echo x >> /file; sync; done";
    let running = shell(&place, &options, script).start()?;
    running.wait_for("ready")?;
    running.signal(Signal::TERM)?;
    running.signal(Signal::TERM)?;
    running.finish()?.expect(143)?;
    Ok(())
}

fn drop_caches() -> Result<()> {
    run(&["sync"])?;
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
}

/// What the guest's shell has open and loaded it keeps; what it reads then is an error.
const READS: &str = "echo ready; read -r x
    cat /etc/large > /dev/null; echo \"cat: $?\"; echo alive; exit 9";

fn image_fails() -> Result<()> {
    let place = Place::new()?;
    let mapped = Mapped::new(&place, "fails", 96)?;
    image::tree(&place.path("tree"), "")?;
    image::erofs(&place.path("tree"), &place.path("fails/image"))?;
    let mut running = shell(&place, &["--rootfs", "fails/image"], READS).start_piped()?;
    running.wait_for("ready")?;
    drop_caches()?;
    mapped.becomes("error", "")?;
    running.send("go on\n")?;
    running.finish()?.expect(9)?.says(&["cat: 1", "alive"])?;
    mapped.becomes("linear", " 0")?;
    let script = "wc -c < /etc/large";
    shell(&place, &["--rootfs", "fails/image"], script)
        .finish()?
        .expect(0)?
        .says(&["3000000"])?;
    Ok(())
}

fn image_is_cut() -> Result<()> {
    let place = Place::new()?;
    image::tree(&place.path("tree"), "")?;
    image::erofs(&place.path("tree"), &place.path("image"))?;
    let whole = fs::metadata(place.path("image"))?.len();
    let mut running = shell(&place, &["--rootfs", "image"], READS).start_piped()?;
    running.wait_for("ready")?;
    // Its end has the end of the largest file.
    fs::File::options()
        .write(true)
        .open(place.path("image"))?
        .set_len(whole / 2)?;
    running.send("go on\n")?;
    let finished = running.finish()?.expect(9)?.says(&["alive"])?;
    ensure!(
        !finished.text().contains("cat: 0"),
        "it read what is not there\n{finished}"
    );
    Ok(())
}

/// A guest counts, and says each number once fsync has answered for it. After the kill the number on
/// its disk is that one, or a later one.
fn kills() -> Result<()> {
    let place = Place::new()?;
    let options = ["--disk", "./d.raw,size=64M"];
    let script = "n=$(cat /n 2>/dev/null || echo 0); echo \"found $n.\"
        while :; do n=$((n + 1)); echo $n > /new; sync /new; mv /new /n; sync; echo \"acked $n.\"; done";
    let (mut acked, mut moment) = (0, 12_345_u64);
    for round in 0..KILLS {
        let running = shell(&place, &options, script).start()?;
        running.wait_for("acked ")?;
        moment = moment
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        thread::sleep(Duration::from_micros((moment >> 33) % 300_000));
        running.signal(Signal::KILL)?;
        let text = running.finish()?.expect_killed()?.text();
        let number = |word: &str| -> Option<u64> {
            let (_, rest) = text.rsplit_once(word)?;
            rest.split_once('.')?.0.parse().ok()
        };
        let found = number("found ").context("nothing was found")?;
        ensure!(
            found >= acked,
            "round {round}: {found} after {acked} was acknowledged"
        );
        // The last line may have been cut off.
        acked = number("acked ").unwrap_or(found);
    }
    ensure!(acked >= u64::from(KILLS), "{acked} writes in all");
    let ids = place.casita(["ps", "-aq"]).finish()?.expect(0)?.text();
    let ids: Vec<_> = ids.split_whitespace().collect();
    place
        .casita([&["rm", "-f"], &ids[..]].concat())
        .finish()?
        .expect(0)?;
    Ok(())
}

/// In a cgroup that has less than the guest wants.
fn out_of_memory() -> Result<()> {
    let place = Place::new()?;
    let other = Vm::start(
        &place,
        &["--name", "other"],
        "while :; do sleep 100000; done",
    )?;
    let group = Path::new("/sys/fs/cgroup/casita-test-oom");
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")?;
    fs::create_dir_all(group)?;
    fs::write(group.join("memory.max"), "120M")?;
    let join = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.display());
    let script = "echo ready; dd if=/dev/zero of=/tmp/x bs=1M count=400; echo never";
    let options = [
        "--name",
        "greedy",
        "--memory",
        "512M",
        "--tmpfs",
        "/tmp:size=480M",
    ];
    let finished = shell(&place, &options, script)
        .under(&["sh", "-c", &join, "sh"])
        .finish()?
        .expect_killed()?;
    ensure!(!finished.text().contains("never"), "{finished}");
    let listed = place.casita(["ps", "-a"]).finish()?.expect(0)?;
    ensure!(listed.text().contains("greedy"), "{listed}");
    ensure!(other.asks("echo fine")? == "fine\n");
    place.casita(["rm", "greedy"]).finish()?.expect(0)?;
    shell(&place, &["--rm"], "echo next")
        .finish()?
        .expect(0)?
        .says(&["next"])?;
    let _ = fs::remove_dir(group);
    Ok(())
}

/// A day ahead and back, while a VM runs that has an hour to live.
fn clock() -> Result<()> {
    let place = Place::new()?;
    let vm = Vm::start(
        &place,
        &["--timeout", "1h"],
        "echo ready; while :; do sleep 100000; done",
    )?;
    vm.says("ready")?;
    for jump in ["+1 day", "-2 days", "+1 day"] {
        run(&["date", "--set", jump])?;
        ensure!(
            vm.state()? == "running",
            "after {jump} it is {}",
            vm.state()?
        );
        ensure!(vm.asks("sleep 0.1; echo fine")? == "fine\n");
        let listed = place.casita(["ps"]).finish()?.expect(0)?;
        ensure!(listed.text().contains("Up "), "{listed}");
        vm.casita("logs", &["--timestamps"])
            .finish()?
            .expect(0)?
            .says(&["ready"])?;
        shell(&place, &["--rm"], "echo next")
            .finish()?
            .expect(0)?
            .says(&["next"])?;
    }
    vm.casita("stop", &["-t", "1"]).finish()?.expect(0)?;
    ensure!(vm.state()? == "exited");
    Ok(())
}

/// The file system is filled up beside the log while the command waits.
fn full_log() -> Result<()> {
    let place = Place::new()?;
    let data = place.text("data");
    let script = format!(
        r#"mount -t tmpfs -o size=64m none {data} || exit 99
        "$0" "$@" >/dev/null || exit 98
        "$0" exec v -- sh -c 'until test -p /go; do sleep 0.1; done' || exit 97
        dd if=/dev/zero of={data}/ballast bs=64k 2>/dev/null
        "$0" exec v -- sh -c 'echo > /go' || exit 96
        echo "wait $("$0" wait v)"
        "$0" logs v >log; echo "logs $?"
        "$0" rm v || exit 95"#
    );
    let mut under = machine::own_mounts().to_vec();
    under.extend(["sh", "-c", &script]);
    let guest = "echo begin; mkfifo /go; read -r x < /go; yes | head -c 300000; exit 4";
    let words = [
        "run", "-d", "--name", "v", "--tmpfs", "/tmp", "--", "sh", "-c", guest,
    ];
    let program = place.casita(words).under(&under);
    let finished = program
        .finish()?
        .expect(0)?
        .says(&["wait 4\n", "logs 0\n"])?;
    let log = fs::read_to_string(place.path("log"))?;
    ensure!(log.starts_with("begin\n"), "{log:.100}\n{finished}");
    Ok(())
}
