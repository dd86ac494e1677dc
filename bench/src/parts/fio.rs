//! fio in the guest, on the raw disk: Casita's virtio-block beside QEMU's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::parts::result::{Goal, PartResult};
use crate::peers::{self, CASITA, Qemu};
use crate::process::{CpuTime, Running};
use crate::subjects::Subjects;

const QEMU_IO_URING: &str = "QEMU microvm, I/O thread, io_uring";
const QEMU_THREADS: &str = "QEMU microvm, as it comes (threads)";
/// Where the file system's own blocks end, and how much behind them is read and written: the image
/// of a disk stays one that casita accepts.
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet loglevel=3 pci=off tsc=reliable no_timer_check \
                       random.trust_cpu=on init=/bench";
const DISK: &str = "512M";
const FIRST_MIB: u64 = 128;
const LAST_MIB: u64 = 384;

/// What one job came to.
struct Job {
    name: String,
    /// Reads and writes that were done.
    operations: f64,
    /// For how long, in milliseconds.
    span: f64,
    /// Bytes of one.
    block: f64,
}

/// Runs all jobs in one VM of each subject, in turns.
pub fn measure(subjects: &Subjects, result: &mut PartResult) -> Result<()> {
    result.note(
        "One vCPU, 256 MiB, the same kernel and image, /bench of the image as init, fio with \
         direct=1 and libaio on the raw disk: a file whose 256 MiB in use are in the host's page \
         cache, for QEMU with cache=writeback, as casita has it. Each value is one VM's job of 4 s.",
    );
    result.note(
        "CPU is that of the monitor's process by /proc/PID/stat, from the job's begin to its end, \
         divided by its I/Os; 'outside the guest' leaves out guest_time.",
    );
    let disk = make_disk(subjects)?;
    for run in 0..subjects.runs {
        for who in [CASITA, QEMU_IO_URING, QEMU_THREADS] {
            let mut command = command(subjects, who, &disk)?;
            run_jobs(&mut command, who, result).with_context(|| format!("fio under {who}"))?;
            eprintln!("fio: round {} of {}, {who}", run + 1, subjects.runs);
        }
    }
    set_goals(result);
    Ok(())
}

fn command(subjects: &Subjects, who: &str, disk: &Path) -> Result<Command> {
    if who == CASITA {
        let mut command = peers::casita(subjects, "256M")?;
        command.arg("--disk").arg(disk);
        command.args(["--boot", "plain", "--cmdline"]);
        command.arg(format!("root=/dev/vda ro {CMDLINE}"));
        return Ok(command);
    }
    let qemu = Qemu {
        memory: "256M",
        cmdline: &format!("root=/dev/vda ro {CMDLINE}"),
        words: &[],
        root: &subjects.image,
        disk,
        disk_options: if who == QEMU_IO_URING {
            ",cache=writeback,discard=unmap,aio=io_uring"
        } else {
            ",cache=writeback"
        },
        io_thread: who == QEMU_IO_URING,
        exit_at_stage: false,
    };
    Ok(qemu.command(subjects))
}

/// A file system, because casita takes no other file as a disk, with data behind its own blocks.
fn make_disk(subjects: &Subjects) -> Result<PathBuf> {
    let disk = peers::make_disk(subjects, "fio.disk", DISK)?;
    let status = Command::new("dd")
        .args(["if=/dev/urandom", "bs=1M", "conv=notrunc", "status=none"])
        .arg(format!("of={}", disk.display()))
        .arg(format!("seek={FIRST_MIB}"))
        .arg(format!("count={}", LAST_MIB - FIRST_MIB))
        .status()?;
    ensure!(status.success(), "{} can't be filled", disk.display());
    Ok(disk)
}

/// The image's script writes one line when a job begins, and one with fio's terse output when it
/// has ended.
fn run_jobs(command: &mut Command, who: &str, result: &mut PartResult) -> Result<()> {
    let mut running = Running::start(command)?;
    let count: usize = running.line_with("bench-jobs ")?.trim().parse()?;
    for _ in 0..count {
        running.line_with("bench-begin")?;
        let before = CpuTime::of(running.id())?;
        let line = running.line_with("bench-end ")?;
        let after = CpuTime::of(running.id())?;
        let job = parse_terse(&line).with_context(|| format!("fio said: {line}"))?;
        let rate = job.operations / job.span * 1000.0;
        if job.block < 1e6 {
            result.add(&format!("{}: IOPS", job.name), who, "", rate);
        } else {
            let mib = rate * job.block / f64::from(1 << 20);
            result.add(&format!("{}: throughput", job.name), who, "MiB/s", mib);
        }
        let cpu = |name: &str, ms: f64, result: &mut PartResult| {
            let each = ms * 1000.0 / job.operations;
            result.add(&format!("{}: {name}", job.name), who, "us", each);
        };
        let all = after.total_ms() - before.total_ms();
        cpu("CPU per I/O", all, result);
        let outside = after.outside_guest_ms() - before.outside_guest_ms();
        cpu("CPU per I/O, outside the guest", outside, result);
    }
    Ok(())
}

/// Reads a line of fio's terse output, version 3 (fio's HOWTO, "Terse output"). The job's name
/// ends with its block size in bytes, as in `randread-qd1-4096`.
fn parse_terse(line: &str) -> Option<Job> {
    let fields: Vec<&str> = line.split(';').collect();
    let number = |index: usize| fields.get(index)?.trim().parse::<f64>().ok();
    let name = *fields.get(2)?;
    let block: f64 = name.rsplit_once('-')?.1.parse().ok()?;
    let (read_kib, read_ms) = (number(5)?, number(8)?);
    let (written_kib, written_ms) = (number(46)?, number(49)?);
    let error = number(4)?;
    let operations = (read_kib + written_kib) * 1024.0 / block;
    (error == 0.0 && operations > 0.0).then(|| Job {
        name: name
            .rsplit_once('-')
            .map_or(name, |(name, _)| name)
            .to_owned(),
        operations,
        span: read_ms.max(written_ms),
        block,
    })
}

/// At least what the better of the peers does, with less CPU than that one.
fn set_goals(result: &mut PartResult) {
    let rates: Vec<String> = result
        .rows
        .iter()
        .filter(|row| row.who == CASITA && !row.what.contains("CPU"))
        .map(|row| row.what.clone())
        .collect();
    for what in rates {
        let median = |who: &str| {
            result
                .row(&what, who)
                .map_or(0.0, crate::parts::result::Row::median)
        };
        let best = if median(QEMU_IO_URING) >= median(QEMU_THREADS) {
            QEMU_IO_URING
        } else {
            QEMU_THREADS
        };
        let rate = median(best);
        result.set_goal(&what, CASITA, Goal::AtLeast(rate));
        let job = what.split(':').next().unwrap_or_default();
        let cpu = format!("{job}: CPU per I/O");
        if let Some(limit) = result
            .row(&cpu, best)
            .map(crate::parts::result::Row::median)
        {
            result.set_goal(&cpu, CASITA, Goal::AtMost(limit));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terse_output_is_read_for_reads_and_writes() {
        let mut fields = vec!["0"; 130];
        fields[2] = "randwrite-qd32-4096";
        fields[46] = "4000";
        fields[49] = "500";
        let job = parse_terse(&fields.join(";")).unwrap();
        assert_eq!(job.name, "randwrite-qd32");
        assert!((job.operations - 1000.0).abs() < 1e-9);
        assert!((job.span - 500.0).abs() < 1e-9);
        fields[4] = "5";
        assert!(parse_terse(&fields.join(";")).is_none());
    }
}
