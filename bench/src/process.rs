//! Children under measurement: the clock before they start, their output line by line, their end.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::time::{ClockId, clock_gettime};

use crate::interrupt::{self, Child};
use crate::place;

/// Longer than anything takes that works, on the slowest CPU. A clock that counts instructions may
/// jump to the next timer while the lab waits for its file server: then the lab's own deadline counts.
fn deadline() -> Instant {
    let counts = place::lab() == Some(place::Lab::Instructions);
    Instant::now() + Duration::from_mins(if counts { 1 << 20 } else { 3 })
}

/// `CLOCK_MONOTONIC`, in nanoseconds: the clock that casita's own stamps have.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Milliseconds between two readings of [`now_ns`].
#[allow(clippy::cast_precision_loss, reason = "short spans")]
pub fn ms(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}

/// A child whose output is read line by line. It is killed when this is dropped.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    /// What it wrote so far, for messages.
    seen: Vec<String>,
    /// The clock right before it was started.
    pub started_ns: u64,
}

impl Running {
    /// Starts `command` with empty input.
    pub fn start(command: &mut Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let started_ns = now_ns();
        let mut child = Child::start(command)?;
        let output = child.stdout().context("standard output is a pipe")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line)
                    .trim_end_matches('\r')
                    .to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            lines,
            seen: Vec::new(),
            started_ns,
        })
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line with `mark` and returns what follows the mark.
    pub fn line_with(&mut self, mark: &str) -> Result<String> {
        let until = deadline();
        loop {
            match self.lines.recv_timeout(until - Instant::now()) {
                Ok(line) => {
                    if let Some((_, rest)) = line.split_once(mark) {
                        return Ok(rest.to_owned());
                    }
                    self.seen.push(line);
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("no line with '{mark}' came; so far: {:?}", self.seen)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    interrupt::check()?;
                    bail!(
                        "ended ({status}) without '{mark}'; it wrote {:?}",
                        self.seen
                    )
                }
            }
        }
    }

    /// Waits for the end and returns all further lines, and whether the status is 0.
    pub fn rest(mut self) -> Result<(String, bool)> {
        let mut text = String::new();
        for line in &self.lines {
            text.push_str(&line);
            text.push('\n');
        }
        let status = self.child.wait()?;
        Ok((text, status.success()))
    }

    /// Waits for the end and returns the clock then, and whether the status is 0.
    pub fn end(mut self) -> Result<(u64, bool)> {
        let status = self.child.wait()?;
        Ok((now_ns(), status.success()))
    }

    /// Waits until the process has used no CPU for half a second.
    pub fn idle(&self) -> Result<()> {
        const STEP: Duration = Duration::from_millis(500);
        let until = deadline();
        let mut before = CpuTime::of(self.id())?;
        while Instant::now() < until {
            std::thread::sleep(STEP);
            let now = CpuTime::of(self.id())?;
            // A guest's timer ticks now and then.
            if now.total_ms() - before.total_ms() <= 20.0 {
                return Ok(());
            }
            before = now;
        }
        bail!("process {} is never idle", self.id())
    }
}

/// CPU time of all threads of a process, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct CpuTime {
    /// In user space, guests' time included.
    pub user: f64,
    /// In the kernel.
    pub system: f64,
    /// In guests.
    pub guest: f64,
}

impl CpuTime {
    /// Reads /proc/PID/stat; see proc_pid_stat(5).
    pub fn of(pid: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&stat).with_context(|| format!("/proc/{pid}/stat is {stat:?}"))
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name, in parentheses, may hold anything; field 3 follows it.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let ticks = |field: usize| fields.get(field - 3)?.trim().parse::<f64>().ok();
        // A tick of /proc is 10 ms.
        Some(Self {
            user: ticks(14)? * 10.0,
            system: ticks(15)? * 10.0,
            guest: ticks(43)? * 10.0,
        })
    }

    /// All of it.
    pub fn total_ms(&self) -> f64 {
        self.user + self.system
    }

    /// All but the guest's.
    pub fn outside_guest_ms(&self) -> f64 {
        self.total_ms() - self.guest
    }
}

/// Runs `command` to its end without a word and returns the clock from before its start and at its
/// end, and what it left.
pub fn run_quietly(command: &mut Command) -> Result<(u64, u64, Output)> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let start = now_ns();
    let output = Child::start(command)?.wait_with_output()?;
    let end = now_ns();
    interrupt::check()?;
    Ok((start, end, output))
}

/// Runs `command` to its end without a word and returns the milliseconds that it took.
pub fn time_to_end(command: &mut Command) -> Result<f64> {
    let (start, end, output) = run_quietly(command)?;
    ensure!(
        output.status.success(),
        "{} failed ({}): {}",
        command.get_program().display(),
        output.status,
        interrupt::last_line(&output.stderr)
    );
    Ok(ms(start, end))
}

/// What the shim is to stamp.
#[derive(Debug, Clone, Copy)]
pub enum StampAt {
    /// The first `ioctl(KVM_RUN)`, which then ends the process.
    KvmRun,
    /// `exit()`.
    Exit,
}

/// Runs `command` under the shim and returns the milliseconds from before its start to the event.
pub fn time_to_event(command: &mut Command, shim: &Path, at: StampAt, stamp: &Path) -> Result<f64> {
    let _ = std::fs::remove_file(stamp);
    command
        .env("LD_PRELOAD", shim)
        .env("BENCH_STAMP_FILE", stamp)
        .env(
            "BENCH_STAMP_AT",
            match at {
                StampAt::KvmRun => "kvm-run",
                StampAt::Exit => "exit",
            },
        );
    let (start, _, output) = run_quietly(command)?;
    let stamped = std::fs::read_to_string(stamp).ok();
    let text = stamped.filter(|text| !text.is_empty()).with_context(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!(
            "{command:?} never came to {at:?}: {}: {said}",
            output.status
        )
    })?;
    Ok(ms(start, text.trim().parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_a_name_with_spaces_and_parentheses() {
        let rest: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let time = CpuTime::parse(&format!("1 (a) b)) S {}\n", rest.join(" "))).unwrap();
        assert!((time.user - 140.0).abs() < 1e-9);
        assert!((time.system - 150.0).abs() < 1e-9);
        assert!((time.guest - 430.0).abs() < 1e-9);
    }

    #[test]
    fn output_before_the_mark_is_skipped_and_an_early_end_is_told() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two mark three; exit 4"]);
        let mut running = Running::start(&mut command).unwrap();
        assert_eq!(running.line_with("mark ").unwrap(), "three");
        let error = running.line_with("other").unwrap_err().to_string();
        assert!(error.contains("exit status: 4"), "{error}");
    }
}
