//! From exec to the first `KVM_RUN`: what a monitor does before its guest may run at all.

use anyhow::Result;

use crate::parts::result::{Goal, PartResult};
use crate::peers::{self, CASITA, QEMU, Qemu};
use crate::process::{StampAt, time_to_event};
use crate::subjects::Subjects;

const WHAT: &str = "exec to first KVM_RUN";
/// The same without the sandbox: the difference is what that costs.
const WITHOUT: &str = "the same with --sandbox=off";

/// Measures casita and QEMU in turns.
pub fn measure(subjects: &Subjects, result: &mut PartResult) -> Result<()> {
    let disk = peers::make_disk(subjects, "start.disk", "2G")?;
    let stamp = subjects.work.join("stamp");
    result.note(
        "256 MiB, one vCPU, root image, disk of 2 GiB, rng, serial port. One library (LD_PRELOAD) \
         in all monitors stamps CLOCK_MONOTONIC at the first ioctl(KVM_RUN); the clock's start is \
         right before posix_spawn. Caches are warm. QEMU is given a formatted disk; casita makes \
         and formats its own within the time.",
    );
    // The first run of each warms caches and is not counted.
    for run in 0..=subjects.runs {
        let mut casita = peers::casita(subjects, "256M")?;
        casita.args(["--skip-kvm-check", "--", "true"]);
        let mut bare = peers::casita(subjects, "256M")?;
        bare.args(["--sandbox=off", "--skip-kvm-check", "--", "true"]);
        let mut qemu = Qemu {
            memory: "256M",
            cmdline: "console=ttyS0",
            words: &[],
            root: &subjects.image,
            disk: &disk,
            disk_options: "",
            io_thread: false,
            exit_at_stage: false,
        }
        .command(subjects);
        let commands = [
            (WHAT, CASITA, &mut casita),
            (WITHOUT, CASITA, &mut bare),
            (WHAT, QEMU, &mut qemu),
        ];
        for (what, who, command) in commands {
            let ms = time_to_event(command, &subjects.shim, StampAt::KvmRun, &stamp)?;
            peers::forget_killed(subjects)?;
            if run > 0 {
                result.add(what, who, "ms", ms);
            }
        }
    }
    result.set_goal(WHAT, CASITA, Goal::AtMost(2.5));
    Ok(())
}
