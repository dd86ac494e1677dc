//! What idle VMs keep of the host's memory.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::Subjects;
use crate::peers::{self, CASITA, QEMU, Qemu};
use crate::process::Running;
use crate::result::{Goal, PartResult};

/// VMs of each monitor at once.
const VMS: usize = 4;
/// Guest RAM of each, in KiB.
const RAM_KIB: u64 = 128 * 1024;
const READY: &str = "bench-ready";
const SHELL: [&str; 3] = ["/bin/sh", "-c", "echo bench-ready; exec sleep 1000"];

/// Private and shared memory of a process, in KiB.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Usage {
    private: u64,
    shared: u64,
}

/// The parts of /proc/PID/smaps that count here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    writable: bool,
    usage: Usage,
}

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

fn total(mappings: &[Mapping]) -> Usage {
    mappings
        .iter()
        .fold(Usage::default(), |sum, mapping| Usage {
            private: sum.private + mapping.usage.private,
            shared: sum.shared + mapping.usage.shared,
        })
}

/// The neighbours without a gap, all writable, that together are as long as the guest's RAM. A
/// monitor may have the kernel's file mapped in the middle of it.
fn guest_ram(mappings: &[Mapping], kib: u64) -> Option<&[Mapping]> {
    (0..mappings.len()).find_map(|first| {
        let mut length = 0;
        for (last, mapping) in mappings.iter().enumerate().skip(first) {
            let adjacent = last == first || mappings[last - 1].end == mapping.start;
            if !mapping.writable || !adjacent {
                return None;
            }
            length += (mapping.end - mapping.start) / 1024;
            if length >= kib {
                return (length == kib).then_some(&mappings[first..=last]);
            }
        }
        None
    })
}

fn mappings(pid: u32) -> Result<Vec<Mapping>> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    Ok(parse(&text))
}

/// Reads the format of proc_pid_smaps(5).
fn parse(text: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some((start, end)) = words.first().and_then(|word| range(word)) {
            mappings.push(Mapping {
                start,
                end,
                writable: words.get(1).is_some_and(|flags| flags.contains('w')),
                usage: Usage::default(),
            });
            continue;
        }
        let (Some(mapping), [name, kib, ..]) = (mappings.last_mut(), &words[..]) else {
            continue;
        };
        let kib: u64 = kib.parse().unwrap_or(0);
        match *name {
            "Private_Clean:" | "Private_Dirty:" => mapping.usage.private += kib,
            "Shared_Clean:" | "Shared_Dirty:" => mapping.usage.shared += kib,
            _ => {}
        }
    }
    mappings
}

fn range(word: &str) -> Option<(u64, u64)> {
    let (start, end) = word.split_once('-')?;
    Some((
        u64::from_str_radix(start, 16).ok()?,
        u64::from_str_radix(end, 16).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_found_with_a_file_mapped_in_its_middle() {
        let text = "\
1000-3000 rw-p 00000000 00:00 0 [heap]
Private_Dirty: 8 kB
10000-12000 rw-p 00000000 00:00 0
Private_Dirty: 4 kB
Shared_Clean: 0 kB
12000-13000 rw-p 00001000 08:01 7 /boot/vmlinux
Private_Clean: 0 kB
Shared_Clean: 4 kB
13000-14000 rw-p 00000000 00:00 0
Private_Dirty: 1 kB
14000-15000 ---p 00000000 00:00 0
";
        let mappings = parse(text);
        let ram = guest_ram(&mappings, 16).unwrap();
        assert_eq!(ram.len(), 3);
        assert_eq!(
            total(ram),
            Usage {
                private: 5,
                shared: 4
            }
        );
        assert_eq!(total(&mappings).private, 13);
        assert_eq!(guest_ram(&mappings, 20), None);
    }
}
