//! Ctrl-C: children die at once with all that they started, then the measuring ends as if it had
//! failed, and so takes away on its way out what stands.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Output};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Process groups of the children that run.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The measuring was asked to end.
#[derive(Debug, PartialEq, Eq)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted; what was started has been ended")
    }
}

impl std::error::Error for Interrupted {}

/// Ends all children at SIGINT, SIGTERM and SIGHUP from here on.
///
/// # Errors
/// If the signals can't be taken.
pub fn watch() -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for _ in signals.forever() {
                interrupt();
            }
        })?;
    Ok(())
}

fn interrupt() {
    let children = running();
    INTERRUPTED.store(true, SeqCst);
    children.iter().for_each(|group| kill(*group));
}

fn kill(group: u32) {
    if let Some(group) = i32::try_from(group).ok().and_then(Pid::from_raw) {
        // One that has ended already needs no killing.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// Whether the measuring was asked to end.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(SeqCst)
}

/// # Errors
/// [`Interrupted`] if the measuring was asked to end.
pub fn check() -> Result<(), Interrupted> {
    if is_interrupted() {
        Err(Interrupted)
    } else {
        Ok(())
    }
}

/// A child in a process group of its own, which is killed as a whole when this is dropped, or at
/// Ctrl-C.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
    ended: bool,
}

impl Child {
    /// Starts `command`.
    ///
    /// # Errors
    /// If it can't be started, or the measuring was asked to end.
    pub fn start(command: &mut Command) -> Result<Self> {
        // The lock is held, so that no child is between its start and this list at Ctrl-C.
        let mut running = running();
        check()?;
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("{command:?} could not be started"))?;
        running.push(child.id());
        Ok(Self {
            child,
            ended: false,
        })
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its output, if that is a pipe and nobody has taken it.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its input, likewise.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Whether it has ended; does not wait.
    ///
    /// # Errors
    /// If it is not ours to ask for.
    pub fn has_ended(&mut self) -> io::Result<bool> {
        let ended = self.child.try_wait()?.is_some();
        if ended {
            self.forget();
        }
        Ok(ended)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it is not ours to wait for.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.forget();
        Ok(status)
    }

    /// Reads all that it writes to standard error, and to standard output if that is a pipe, and
    /// waits for its end.
    ///
    /// # Errors
    /// If that can't be read.
    pub fn wait_with_output(mut self) -> io::Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut errors = self.child.stderr.take();
        let reader = thread::spawn(move || {
            if let Some(errors) = &mut errors {
                // What can't be read is missing in a message only.
                let _ = io::Read::read_to_end(errors, &mut stderr);
            }
            stderr
        });
        if let Some(output) = &mut self.child.stdout {
            io::Read::read_to_end(output, &mut stdout)?;
        }
        let status = self.wait()?;
        let stderr = reader.join().unwrap_or_default();
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }

    fn forget(&mut self) {
        self.ended = true;
        let id = self.child.id();
        running().retain(|other| *other != id);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.ended {
            kill(self.child.id());
            let _ = self.child.wait();
            self.forget();
        }
    }
}

/// Runs `command` to its end and returns what it wrote to standard output.
///
/// # Errors
/// If it can't be started, or fails: with the last that it said.
pub fn output_of(command: &mut Command) -> Result<Vec<u8>> {
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let output = Child::start(command)?.wait_with_output()?;
    check()?;
    ensure!(
        output.status.success(),
        "{} failed ({}): {}",
        command.get_program().display(),
        how(output.status),
        last_line(&output.stderr)
    );
    Ok(output.stdout)
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no status".to_owned(),
    }
}

/// The last line with something in it.
pub fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or("it said nothing").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn a_dropped_child_takes_its_own_children_along() {
        let mut command = Command::new("sh");
        command
            .args(["-c", "sleep 1000 & echo there; wait"])
            .stdout(Stdio::piped());
        let mut child = Child::start(&mut command).unwrap();
        let mut output = io::BufReader::new(child.stdout().unwrap());
        let mut text = String::new();
        io::BufRead::read_line(&mut output, &mut text).unwrap();
        drop(child);
        // The pipe ends when the last that holds it is gone.
        io::Read::read_to_string(&mut output, &mut text).unwrap();
        assert_eq!(text, "there\n");
    }

    #[test]
    fn a_failure_is_told_with_the_last_that_was_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one >&2; echo two >&2; echo >&2; exit 3"]);
        let error = output_of(&mut command).unwrap_err().to_string();
        assert_eq!(error, "sh failed (exit status 3): two");
    }

    #[test]
    fn both_streams_are_read_however_much_there_is() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero",
        ]);
        assert_eq!(output_of(&mut command).unwrap().len(), 300_000);
    }
}
