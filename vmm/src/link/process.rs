//! Processes in the guest, as the host has them.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;

use casita_agent::wire::Exit;
use serde::{Deserialize, Serialize};

use super::LinkError;

/// Which standard streams the host wants; the others are `/dev/null`. A process with a terminal has
/// no standard error of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output; with a terminal, all that it shows.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

impl Streams {
    /// All three.
    pub const ALL: Self = Self {
        stdin: true,
        stdout: true,
        stderr: true,
    };
}

/// A process that runs in the guest.
#[derive(Debug)]
pub struct Process {
    /// The link's number for it.
    pub id: u32,
    /// Its number in the guest.
    pub pid: u32,
    /// Its standard input. To end it, shut the writing half down, or drop it.
    pub stdin: Option<UnixStream>,
    /// Its standard output. When it is dropped the process can't write any more.
    pub stdout: Option<UnixStream>,
    /// Its standard error.
    pub stderr: Option<UnixStream>,
    /// Tells when it has ended. All that it wrote is in its streams then, and ends.
    pub exit: ExitWaiter,
}

/// Waits for the end of a process.
#[derive(Debug)]
pub struct ExitWaiter(pub(super) Receiver<Exit>);

impl ExitWaiter {
    /// Waits.
    ///
    /// # Errors
    /// [`LinkError::Gone`] if the guest ended first.
    pub fn wait(self) -> Result<Exit, LinkError> {
        self.0.recv().map_err(|_| LinkError::Gone)
    }
}
