//! Root in a guest does what root can, and what it can't: the host and another VM don't notice.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use casita_tests::place::Place;
use casita_tests::suite::Suite;
use casita_tests::vm::Vm;

pub fn tests(suite: &mut Suite) {
    suite.test("root_in_a_guest_harms_nobody_else", root_attacks);
    suite.test("a_running_vm_is_confined_layer_by_layer", layers);
}

/// Each attempt may fail or succeed in the guest; the script says how, and goes on.
const ATTEMPTS: &str = r#"
try() { if "$@" > /dev/null 2>&1; then echo "could: $*"; else echo "could not: $*"; fi; }
try mount -t tmpfs none /mnt
try mount /dev/vda /mnt
try mknod /tmp/mem c 1 1
try dd if=/dev/zero of=/tmp/mem bs=4096 count=1
try dd if=/dev/zero of=/dev/pmem0 bs=4096 count=64
try dd if=/dev/zero of=/dev/port bs=1 count=256
try insmod /bin/busybox
try chroot / true
echo 1 > /proc/sys/kernel/sysrq
for i in $(seq 300); do sleep 30 & done 2> /dev/null
dd if=/dev/zero of=/fill bs=1M 2> /dev/null
rm -f /fill
dd if=/dev/zero of=/dev/null bs=1000M count=1 2> /dev/null
echo all tried
"#;

fn root_attacks() -> Result<()> {
    let place = Place::new()?;
    let bystander = Vm::start(&place, &["--rm", "--memory", "64M"], "sleep 1000")?;
    let options = ["--rm", "--memory", "96M", "--disk", "64M"];
    let attacker = Vm::start(&place, &options, "sleep 1000")?;
    let image = image_of(attacker.pid()?)?;
    let before = fs::read(&image)?;
    let tried = attacker.exec(&[], &["sh", "-c", ATTEMPTS]).finish()?;
    // The guest may have ended the shell for want of memory; the VM goes on.
    let tried = tried.says(&[
        "could not: dd if=/dev/zero of=/dev/pmem0",
        "could not: insmod",
    ])?;
    ensure!(attacker.asks("echo alive")? == "alive\n", "{tried}");
    ensure!(bystander.asks("echo alive")? == "alive\n", "{tried}");
    ensure!(fs::read(&image)? == before, "the image was changed");
    let limit = (96 << 20) + (64 << 20);
    let resident = resident(attacker.pid()?)?;
    ensure!(
        resident < limit,
        "its monitor has {resident} bytes of memory"
    );
    Ok(())
}

/// The root image that is in the memory of process `pid`.
fn image_of(pid: i32) -> Result<std::path::PathBuf> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut paths = maps
        .lines()
        .filter_map(|line| Some(Path::new(line.get(line.find('/')?..)?)));
    paths
        .find(|path| path.extension().is_some_and(|end| end == "erofs"))
        .map(Path::to_owned)
        .context("its monitor has no image open")
}

fn resident(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("no VmRSS")?.parse::<u64>()? << 10)
}

/// What `inspect` calls on is on, for each thread; seen here without casita.
fn layers() -> Result<()> {
    let place = Place::new()?;
    let vm = Vm::start(&place, &["--rm"], "sleep 1000")?;
    let told = vm.inspect()?;
    let layers = told["sandbox"]["layers"].as_array().context("no layers")?;
    let is = |name: &str| {
        let layer = layers.iter().find(|layer| layer["layer"] == name);
        layer.map_or("", |layer| layer["is"].as_str().unwrap_or(""))
    };
    for layer in [
        "user-namespace",
        "mount-namespace",
        "ipc-namespace",
        "uts-namespace",
        "network-namespace",
        "capabilities",
        "no-new-privs",
        "seccomp",
        "resource-limits",
    ] {
        ensure!(is(layer) == "on", "{layer}: {told}");
    }
    confined(vm.pid()?)?;
    // A fresh command through the socket, and a copy, work from outside all the same.
    ensure!(vm.asks("echo hello")? == "hello\n");
    Ok(())
}

/// Whether each thread of the monitor `pid` is confined, as this kernel tells.
pub(super) fn confined(pid: i32) -> Result<()> {
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        // It may have ended meanwhile.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else {
            continue;
        };
        for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
            ensure!(status.contains(line), "{line} was expected in\n{status}");
        }
        threads += 1;
    }
    ensure!(threads > 0, "process {pid} is gone");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    ensure!(
        mounts.lines().count() == 1,
        "an empty root was expected:\n{mounts}"
    );
    for kind in ["user", "mnt", "net", "ipc", "uts"] {
        let link = |who: &str| fs::read_link(Path::new("/proc").join(who).join("ns").join(kind));
        ensure!(link(&pid.to_string())? != link("self")?, "{kind}");
    }
    Ok(())
}
