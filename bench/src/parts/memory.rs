//! What idle VMs keep of the host's memory.

use std::process::Command;

use anyhow::{Context, Result};

use crate::parts::result::{Goal, PartResult};
use crate::peers::{self, CASITA, QEMU, Qemu};
use crate::process::Running;
use crate::smaps::{guest_ram, mappings, total};
use crate::subjects::Subjects;

/// VMs of each monitor at once.
const VMS: usize = 4;
/// Guest RAM of each, in KiB.
const RAM_KIB: u64 = 128 * 1024;
const READY: &str = "bench-ready";
const SHELL: [&str; 3] = ["/bin/sh", "-c", "echo bench-ready; exec sleep 1000"];

/// Starts four VMs of each monitor from one image and looks at them when all are idle.
pub fn measure(subjects: &Subjects, result: &mut PartResult) -> Result<()> {
    result.note(format!(
        "{VMS} VMs of 128 MiB at once from one kernel and one image, each idle in `sleep` after its \
         boot: Private_Clean + Private_Dirty of /proc/PID/smaps, one value for each VM. 'Beside \
         guest RAM' leaves out the mappings that make up the guest's 128 MiB. A VM that is alone \
         shares its file pages with nobody, and so they count as private."
    ));
    result.note(peers::WHAT_RUNS);
    let cmdline = peers::casita_cmdline(subjects)?;
    for who in [CASITA, QEMU] {
        let mut running = Vec::new();
        for vm in 0..VMS {
            let mut command = if who == CASITA {
                let mut command = peers::casita(subjects, "128M")?;
                command.arg("--").args(SHELL);
                command
            } else {
                let disk = peers::make_disk(subjects, &format!("memory-{vm}.disk"), "2G")?;
                qemu(subjects, &cmdline, &disk)
            };
            let mut started = Running::start(&mut command)?;
            started.line_with(READY)?;
            started.idle()?;
            if vm == 0 {
                let usage = total(&mappings(started.id())?);
                result.add("idle VM, alone: private", who, "MiB", mib(usage.private));
            }
            running.push(started);
        }
        for vm in &running {
            record(vm.id(), who, result)?;
        }
    }
    result.set_goal("beside guest RAM: private", CASITA, Goal::AtMost(3.0));
    result.set_goal("idle VM: private", CASITA, Goal::AtMost(16.0));
    Ok(())
}

fn qemu(subjects: &Subjects, cmdline: &str, disk: &std::path::Path) -> Command {
    Qemu {
        memory: "128M",
        cmdline,
        words: &SHELL,
        root: &subjects.image,
        disk,
        disk_options: "",
        io_thread: false,
        exit_at_stage: false,
    }
    .command(subjects)
}

fn record(pid: u32, who: &str, result: &mut PartResult) -> Result<()> {
    let mappings = mappings(pid)?;
    let ram = guest_ram(&mappings, RAM_KIB).context("no mappings make up the guest's RAM")?;
    let all = total(&mappings);
    let ram = total(ram);
    result.add("idle VM: private", who, "MiB", mib(all.private));
    let beside = all.private - ram.private;
    result.add("beside guest RAM: private", who, "MiB", mib(beside));
    result.add("guest RAM: private", who, "MiB", mib(ram.private));
    result.add("guest RAM: shared", who, "MiB", mib(ram.shared));
    let beside = all.shared - ram.shared;
    result.add("beside guest RAM: shared", who, "MiB", mib(beside));
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "small")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
