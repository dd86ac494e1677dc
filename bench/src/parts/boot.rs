//! From exec to the guest's first process, to the end of a command, and the VM exits on the way.

use std::fs;

use anyhow::Result;

use crate::account::Account;
use crate::containers::Containers;
use crate::parts::result::{Goal, PartResult};
use crate::peers::{self, CASITA, QEMU, Qemu};
use crate::process::{Running, StampAt, ms, time_to_end, time_to_event};
use crate::subjects::Subjects;

const TO_INIT: &str = "exec to init";
const TO_COMMAND: &str = "exec to command";
const TO_END: &str = "exec to the end of `true`";
const EXITS: &str = "VM exits by KVM: ";
const READY: &str = "bench-ready";
const SHELL: [&str; 3] = ["/bin/sh", "-c", "echo bench-ready; exec sleep 1000"];
const TRUE: &str = "/bin/true";

/// The disk of the peer's guests, and what they are told.
struct Peer {
    disk: std::path::PathBuf,
    cmdline: String,
}

impl Peer {
    fn qemu(
        &self,
        subjects: &Subjects,
        words: &[&str],
        exit_at_stage: bool,
    ) -> std::process::Command {
        Qemu {
            memory: "256M",
            cmdline: &self.cmdline,
            words,
            root: &subjects.image,
            disk: &self.disk,
            disk_options: "",
            io_thread: false,
            exit_at_stage,
        }
        .command(subjects)
    }
}

/// Measures casita, QEMU and namespace containers in turns.
pub fn measure(subjects: &Subjects, result: &mut PartResult) -> Result<()> {
    result.note(
        "256 MiB, one vCPU, root image, disk, rng, serial port. 'init' is the first write of PID 1 \
         to a stage port, before it does anything else: casita stamps it with CLOCK_MONOTONIC, and \
         QEMU has isa-debug-exit at that port and is stamped in exit(). The clock's start is right \
         before posix_spawn.",
    );
    result.note(peers::WHAT_RUNS);
    result.note(
        "An instruction counter as clock leaves out what a VM exit costs on hardware: see the \
         exits. It jumps while the lab waits for its file server, which some runs show: the median \
         is the figure. Those by KVM are /sys/kernel/debug/kvm's of one boot to an idle shell (pf_taken: nested \
         page faults); those to user space are casita's own, to the end of `true`.",
    );
    let peer = Peer {
        disk: peers::make_disk(subjects, "boot.disk", "2G")?,
        cmdline: peers::casita_cmdline(subjects)?,
    };
    // First, because it shows that both come as far as to a shell.
    let mut exits = PartResult::new("", result.fingerprint.clone());
    count_exits(subjects, &peer, &mut exits)?;
    let containers = Containers::new(subjects)?;
    for run in 0..=subjects.runs {
        let counted = run > 0; // the first one warms caches
        let mut round = PartResult::new("", result.fingerprint.clone());
        one_casita(subjects, &mut round)?;
        one_qemu(subjects, &peer, &mut round)?;
        for kind in containers.installed() {
            let mut command = containers.run(kind, &format!("bench-{run}"), &[TRUE])?;
            round.add(TO_END, kind.name(), "ms", time_to_end(&mut command)?);
        }
        for row in round.rows.iter().filter(|_| counted) {
            result.add(&row.what, &row.who, &row.unit, row.values[0]);
        }
        eprintln!("boot: round {run} of {}", subjects.runs);
    }
    result.set_goal(TO_INIT, CASITA, Goal::AtMost(70.0));
    result.rows.append(&mut exits.rows);
    Ok(())
}

fn one_casita(subjects: &Subjects, round: &mut PartResult) -> Result<()> {
    let path = subjects.work.join("stats.json");
    let mut command = peers::casita(subjects, "256M")?;
    command.arg("--stats").arg(&path).args(["--", TRUE]);
    let running = Running::start(&mut command)?;
    let start = running.started_ns;
    let (end, success) = running.end()?;
    anyhow::ensure!(success, "casita run -- true failed");
    let stats = Account::read(&path)?;
    round.add(TO_INIT, CASITA, "ms", ms(start, stats.at("init")?));
    round.add(
        TO_COMMAND,
        CASITA,
        "ms",
        ms(start, stats.at("command-started")?),
    );
    round.add(TO_END, CASITA, "ms", ms(start, end));
    let mut before = start;
    for stage in &stats.stages {
        let what = format!("  casita, up to {}", stage.name);
        round.add(&what, CASITA, "ms", ms(before, stage.at_ns));
        before = stage.at_ns;
    }
    #[allow(clippy::cast_precision_loss, reason = "some hundred")]
    for (kind, count) in &stats.exits {
        let what = format!("exits to user space: {kind}");
        round.add(&what, CASITA, "", *count as f64);
    }
    Ok(())
}

fn one_qemu(subjects: &Subjects, peer: &Peer, round: &mut PartResult) -> Result<()> {
    let stamp = subjects.work.join("stamp");
    let mut to_init = peer.qemu(subjects, &[TRUE], true);
    let init = time_to_event(&mut to_init, &subjects.shim, StampAt::Exit, &stamp)?;
    round.add(TO_INIT, QEMU, "ms", init);
    let mut to_end = peer.qemu(subjects, &[TRUE], false);
    round.add(TO_END, QEMU, "ms", time_to_end(&mut to_end)?);
    Ok(())
}

/// Reads KVM's counters of one VM of each monitor, booted to an idle shell.
fn count_exits(subjects: &Subjects, peer: &Peer, result: &mut PartResult) -> Result<()> {
    let mut casita = peers::casita(subjects, "256M")?;
    casita.arg("--").args(SHELL);
    let mut qemu = peer.qemu(subjects, &SHELL, false);
    for (who, command) in [(CASITA, &mut casita), (QEMU, &mut qemu)] {
        let mut running = Running::start(command)?;
        running.line_with(READY)?;
        for (kind, count) in kvm_counters(running.id())? {
            result.add(&format!("{EXITS}{kind}"), who, "", count);
        }
    }
    Ok(())
}

/// The VM's counters whose names speak of exits, from debugfs; empty where that can't be read.
fn kvm_counters(pid: u32) -> Result<Vec<(String, f64)>> {
    const KINDS: [&str; 8] = [
        "exits",
        "io_exits",
        "mmio_exits",
        "halt_exits",
        "irq_exits",
        "irq_window_exits",
        "pf_taken",
        "hypercalls",
    ];
    let Ok(folders) = fs::read_dir("/sys/kernel/debug/kvm") else {
        return Ok(Vec::new());
    };
    let prefix = format!("{pid}-");
    let mut found = Vec::new();
    for folder in folders {
        let folder = folder?;
        if !folder.file_name().to_string_lossy().starts_with(&prefix) {
            continue;
        }
        for kind in KINDS {
            if let Ok(text) = fs::read_to_string(folder.path().join(kind)) {
                found.push((kind.to_owned(), text.trim().parse()?));
            }
        }
    }
    Ok(found)
}
