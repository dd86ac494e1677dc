//! A process in a guest at this process's own standard streams: the part that `run` and `exec`
//! have in common.
//!
//! A thread for each stream moves bytes, and waits for whoever is slow: nothing is stored here, so
//! a slow reader of ours slows the process down as a pipe would.

mod forward;
mod input;
mod output;
mod stop;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

pub use forward::{Forwarder, Target};
pub use input::{HANG_UP_KEY, OnHangUp};
pub use stop::StopEvent;

use input::Input;

/// The host's ends of a process's standard streams.
#[derive(Debug, Default)]
pub struct ProcessStreams {
    /// What it reads.
    pub stdin: Option<UnixStream>,
    /// What it writes; all that its terminal shows if it has one.
    pub stdout: Option<UnixStream>,
    /// What it complains.
    pub stderr: Option<UnixStream>,
}

/// Our own ends: what a session reads and writes.
#[derive(Debug)]
pub struct OwnStreams {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl OwnStreams {
    /// This process's standard streams.
    ///
    /// # Errors
    /// If the host has no descriptor left.
    pub fn of_this_process() -> io::Result<Self> {
        Ok(Self {
            stdin: io::stdin().as_fd().try_clone_to_owned()?,
            stdout: io::stdout().as_fd().try_clone_to_owned()?,
            stderr: io::stderr().as_fd().try_clone_to_owned()?,
        })
    }
}

/// A running session.
#[derive(Debug)]
#[must_use = "the input is read until this is dropped"]
pub struct Session {
    _input: Option<Input>,
    outputs: Vec<JoinHandle<()>>,
}

impl Session {
    /// Connects `process` with `own`. With `on_hang_up`, standard input is a terminal in raw mode
    /// on which [`HANG_UP_KEY`] means that.
    ///
    /// # Errors
    /// If the host has no thread or descriptor left.
    pub fn start(
        process: ProcessStreams,
        own: OwnStreams,
        on_hang_up: Option<OnHangUp>,
    ) -> io::Result<Self> {
        let mut outputs = Vec::new();
        for (name, from, to) in [
            ("stdout", process.stdout, own.stdout),
            ("stderr", process.stderr, own.stderr),
        ] {
            if let Some(from) = from {
                let thread = thread::Builder::new().name(name.into());
                outputs.push(thread.spawn(move || carry(name, &from, &to))?);
            }
        }
        let input = process
            .stdin
            .map(|to| Input::start(own.stdin, to, on_hang_up));
        Ok(Self {
            _input: input.transpose()?,
            outputs,
        })
    }

    /// Waits until all that the process wrote is written, however long that takes. What is typed
    /// still reaches the process, until the session is dropped.
    pub fn drain(&mut self) {
        for output in self.outputs.drain(..) {
            // A panic has been reported.
            let _ = output.join();
        }
    }
}

/// The stream is closed afterwards: a process that writes on after nobody reads any more is
/// told as if it had a pipe, by SIGPIPE.
fn carry(name: &str, from: &UnixStream, to: &OwnedFd) {
    if let Err(error) = output::carry(from, to.as_fd())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        log::warn!("{name} is lost from here on: {error}");
    }
}

#[cfg(test)]
mod tests;
