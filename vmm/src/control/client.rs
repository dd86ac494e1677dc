//! A command's side of the control socket.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use casita_agent::spec::WindowSize;
use casita_agent::wire::{Exit, ProcessInfo};
use thiserror::Error;

use super::frame::{self, FrameError};
use super::protocol::{ProcessRequest, Reply, Request, Streams, VmStats};
use super::socket;
use crate::session::ProcessStreams;

/// How long a VM may take to answer a question that needs nothing of its guest.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the rest of a frame may take.
const PACE: Duration = Duration::from_secs(5);

/// Why a VM did not do what it was asked for.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens: it does not run, or is about to end.
    #[error("the VM is not running")]
    NotRunning,
    /// Its socket can't be used.
    #[error("the VM's control socket could not be reached")]
    Connect(#[source] io::Error),
    /// It was reached, and then was not.
    #[error("the VM did not answer: {0}")]
    Frame(#[from] FrameError),
    /// It ended before it answered.
    #[error("the VM ended before it answered")]
    Ended,
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// It said something else.
    #[error("the VM's answer was not understood: {0}")]
    Answer(String),
}

/// Why a process was not started.
#[derive(Debug, Error)]
pub enum ExecError {
    /// The guest could not, with the status that shells give for it.
    #[error("{message}")]
    Failed {
        /// 126, 127, or 125 for casita.
        status: u8,
        /// One line for people.
        message: String,
    },
    /// It was never asked.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// A connection to a VM, for one request.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to the VM whose control socket is in `dir`.
    ///
    /// # Errors
    /// If it does not run.
    pub fn connect(dir: &Path) -> Result<Self, ClientError> {
        let stream = socket::connect(dir).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning,
            _ => ClientError::Connect(error),
        })?;
        stream
            .set_write_timeout(Some(PATIENCE))
            .map_err(ClientError::Connect)?;
        Ok(Self { stream })
    }

    /// Asks for something that has one answer; a refusal is an error. `patience` is for the
    /// answer; without one there is no limit.
    ///
    /// # Errors
    /// If the VM refuses, ends, or does not answer in time.
    pub fn request(
        self,
        request: &Request,
        patience: Option<Duration>,
    ) -> Result<Reply, ClientError> {
        frame::send(&self.stream, request, &[])?;
        receive(&self.stream, patience, &mut Vec::new())
    }

    fn order(self, request: &Request, patience: Option<Duration>) -> Result<(), ClientError> {
        match self.request(request, patience)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a signal to the VM's main process.
    ///
    /// # Errors
    /// If the VM can't do that now.
    pub fn signal(self, signal: u8) -> Result<(), ClientError> {
        self.order(&Request::Signal { signal }, Some(PATIENCE))
    }

    /// Asks the main process to end, waits for at most `timeout`, and ends the VM. Returns when it
    /// has ended, or is about to: the lock of its record tells for sure.
    ///
    /// # Errors
    /// If the VM can't do that now.
    pub fn stop(self, timeout: Duration) -> Result<(), ClientError> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        match self.order(&Request::Stop { timeout_ms }, None) {
            // Which is what was wanted.
            Err(ClientError::Ended) => Ok(()),
            result => result,
        }
    }

    /// Stops the vCPUs.
    ///
    /// # Errors
    /// If the VM can't do that now.
    pub fn pause(self) -> Result<(), ClientError> {
        self.order(&Request::Pause, Some(PATIENCE))
    }

    /// Lets the vCPUs go on.
    ///
    /// # Errors
    /// If they were not stopped.
    pub fn resume(self) -> Result<(), ClientError> {
        self.order(&Request::Resume, Some(PATIENCE))
    }

    /// What the VM has used.
    ///
    /// # Errors
    /// If it does not tell.
    pub fn stats(self) -> Result<VmStats, ClientError> {
        match self.request(&Request::Stats, Some(PATIENCE))? {
            Reply::Stats(stats) => Ok(stats),
            other => Err(unexpected(&other)),
        }
    }

    /// The guest's processes.
    ///
    /// # Errors
    /// If the VM or its guest does not tell.
    pub fn processes(self) -> Result<Vec<ProcessInfo>, ClientError> {
        match self.request(&Request::Processes, Some(2 * PATIENCE))? {
            Reply::Processes { processes } => Ok(processes),
            other => Err(unexpected(&other)),
        }
    }

    /// Starts a process. Waits for as long as the guest takes. With a terminal there is no stream
    /// for standard error.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn exec(self, process: ProcessRequest, mut streams: Streams) -> Result<Exec, ExecError> {
        streams.stderr &= process.terminal.is_none();
        let request = Request::Exec { process, streams };
        frame::send(&self.stream, &request, &[]).map_err(ClientError::from)?;
        let mut fds = Vec::new();
        match receive(&self.stream, None, &mut fds)? {
            Reply::Started { pid } => Ok(Exec {
                pid,
                streams: assign(streams, fds)?,
                control: ExecControl {
                    stream: self.stream,
                    sending: Mutex::new(()),
                },
            }),
            Reply::Failed { status, message } => Err(ExecError::Failed { status, message }),
            other => Err(unexpected(&other).into()),
        }
    }
}

fn receive(
    stream: &UnixStream,
    patience: Option<Duration>,
    fds: &mut Vec<OwnedFd>,
) -> Result<Reply, ClientError> {
    let bytes = frame::receive(stream, patience, PACE, fds)?.ok_or(ClientError::Ended)?;
    match serde_json::from_slice(&bytes) {
        Ok(Reply::Error { message }) => Err(ClientError::Refused(message)),
        Ok(reply) => Ok(reply),
        Err(error) => Err(ClientError::Answer(error.to_string())),
    }
}

fn unexpected(reply: &Reply) -> ClientError {
    ClientError::Answer(format!("{reply:?}"))
}

/// Which descriptor is which: they come in the order of their numbers.
fn assign(streams: Streams, fds: Vec<OwnedFd>) -> Result<ProcessStreams, ClientError> {
    let wanted = [streams.stdin, streams.stdout, streams.stderr];
    let count = wanted.iter().filter(|wanted| **wanted).count();
    if fds.len() != count {
        let came = fds.len();
        let told = format!("{came} streams came where {count} were asked for");
        return Err(ClientError::Answer(told));
    }
    let mut fds = fds.into_iter().map(UnixStream::from);
    let [stdin, stdout, stderr] = wanted.map(|wanted| wanted.then(|| fds.next()).flatten());
    Ok(ProcessStreams {
        stdin,
        stdout,
        stderr,
    })
}

/// A process that was started.
#[derive(Debug)]
pub struct Exec {
    /// Its number in the guest.
    pub pid: u32,
    /// Its streams.
    pub streams: ProcessStreams,
    /// The way to itself.
    pub control: ExecControl,
}

/// The connection of a process. When it is dropped the VM sends SIGHUP to a process with a
/// terminal.
#[derive(Debug)]
pub struct ExecControl {
    stream: UnixStream,
    /// Frames are whole.
    sending: Mutex<()>,
}

impl ExecControl {
    fn send(&self, request: &Request) -> Result<(), ClientError> {
        let _sending = self.sending.lock();
        Ok(frame::send(&self.stream, request, &[])?)
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// If the VM is gone.
    pub fn signal(&self, signal: u8) -> Result<(), ClientError> {
        self.send(&Request::Signal { signal })
    }

    /// Tells the process the size of its terminal.
    ///
    /// # Errors
    /// If the VM is gone.
    pub fn resize(&self, size: WindowSize) -> Result<(), ClientError> {
        self.send(&Request::Resize {
            rows: size.rows,
            cols: size.cols,
        })
    }

    /// Waits for the process's end. To be called once.
    ///
    /// # Errors
    /// If the VM ends first.
    pub fn wait(&self) -> Result<Exit, ClientError> {
        match receive(&self.stream, None, &mut Vec::new())? {
            Reply::Exited { exit } => Ok(exit),
            other => Err(unexpected(&other)),
        }
    }
}
