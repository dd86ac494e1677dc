//! The host's side of the guest's agent: processes are started, signalled and waited for through
//! its connection, and their standard streams come as sockets.
//!
//! Only one thread reads what the guest says; whoever asks for something waits for it here. Nothing
//! that the guest does makes any of them wait for longer than the guest lives, but starting a
//! process, which takes the guest as long as it likes.

mod error;
mod process;
mod state;
mod worker;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use casita_agent::spec::WindowSize;
use casita_agent::wire::{
    GroupLimit, GroupUsage, HostMessage, Key, MAX_PROCESSES, PORT, ProcessInfo, ProcessSpec, Start,
};
use casita_devices::virtio::vsock::{ListenGuard, Refused, VsockHandle};
use rustix::event::{EventfdFlags, eventfd};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::confine::{self, Role};
pub use error::{LinkError, StartError};
pub use process::{ExitWaiter, Process, Streams};
use state::{Entry, Part, Phase, Shared, Which};
use worker::Worker;

/// How long the standard streams of a process may come after the word that it runs.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(20);
/// Lists of processes that may be asked for at a time.
const MAX_LISTS: usize = 64;

const SIGKILL: u8 = 9;

/// What the owner of a link is told, on the link's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkEvent {
    /// The guest is prepared and takes processes.
    Ready,
    /// The group of a process that runs has met a limit.
    Exceeded(GroupLimit),
    /// The group of a process that has just ended has used this.
    Used(GroupUsage),
    /// The guest has ended, or its agent does not answer any more. The last event.
    Gone,
}

/// The connection to a guest's agent. Clones are the same one; it ends with the last of them.
#[derive(Clone)]
pub struct AgentLink {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
    _port: Option<ListenGuard>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.end();
    }
}

/// A new key.
///
/// # Errors
/// The host has no random numbers.
pub fn new_key() -> Result<Key, LinkError> {
    let mut key = Key([0; 16]);
    let filled = rustix::io::retry_on_intr(|| getrandom(&mut key.0[..], GetRandomFlags::empty()));
    match filled {
        Ok(16) => Ok(key),
        Ok(_) => Err(LinkError::Host(
            "get random numbers",
            std::io::ErrorKind::UnexpectedEof.into(),
        )),
        Err(error) => Err(LinkError::Host("get random numbers", error.into())),
    }
}

impl AgentLink {
    /// Takes connections of the guest behind `vsock`, whose agent will show `key`. It is heard once
    /// [`Self::listen_to_agent`] is called.
    ///
    /// # Errors
    /// Somebody listens already, or the host has no file descriptor left.
    pub fn listen(
        vsock: &VsockHandle,
        key: Key,
        on_event: impl Fn(LinkEvent) + Send + Sync + 'static,
    ) -> Result<Self, LinkError> {
        let shared = shared(key, on_event)?;
        let accepting = Arc::clone(&shared);
        let port = vsock.listen_with(PORT, move |incoming| {
            let taken = accepting.accept(incoming.stream);
            if taken { Ok(()) } else { Err(Refused) }
        });
        let port = port.inspect_err(|_| shared.end())?;
        let owner = Arc::new(Owner {
            shared,
            _port: Some(port),
        });
        Ok(Self { owner })
    }

    /// Starts the thread that hears the agent. Call it once.
    ///
    /// # Errors
    /// If the host has no thread left.
    pub fn listen_to_agent(&self) -> Result<(), LinkError> {
        let worker = Worker::new(Arc::clone(&self.owner.shared));
        thread::Builder::new()
            .name("agent".to_owned())
            .spawn(move || {
                confine::enter_role(Role::Control);
                worker.run();
            })
            .map(drop)
            .map_err(|error| LinkError::Host("start a thread", error))
    }

    /// A link whose connections come through the returned function, which never waits and tells
    /// whether they are wanted.
    #[cfg(test)]
    fn with_connections(
        key: Key,
        on_event: impl Fn(LinkEvent) + Send + Sync + 'static,
    ) -> Result<
        (
            Self,
            impl Fn(std::os::unix::net::UnixStream) -> bool + Send + Sync + 'static,
        ),
        LinkError,
    > {
        let shared = shared(key, on_event)?;
        let accepting = Arc::clone(&shared);
        let owner = Arc::new(Owner {
            shared,
            _port: None,
        });
        let link = Self { owner };
        link.listen_to_agent()?;
        Ok((link, move |stream| accepting.accept(stream)))
    }

    /// Waits until the guest takes processes.
    ///
    /// # Errors
    /// The guest has ended, or is not ready in time.
    pub fn wait_ready(&self, timeout: Option<Duration>) -> Result<(), LinkError> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.owner.shared.lock();
        loop {
            match state.phase {
                Phase::Ready => return Ok(()),
                Phase::Gone => return Err(LinkError::Gone),
                Phase::Waiting => {}
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(LinkError::TimedOut);
            }
            state = self.owner.shared.wait(state, left);
        }
    }

    /// Starts a process, and waits until it runs or the guest says why not. A guest that is not
    /// ready yet is waited for.
    ///
    /// # Errors
    /// The guest can't start it, has ended, or runs too many.
    pub fn start(&self, process: ProcessSpec, streams: Streams) -> Result<Process, StartError> {
        self.wait_ready(None)?;
        let wanted = [
            (Which::Stdin, streams.stdin),
            (Which::Stdout, streams.stdout),
            (Which::Stderr, streams.stderr && process.terminal.is_none()),
        ];
        let mut keys = [None; 3];
        for (key, (_, wanted)) in keys.iter_mut().zip(wanted) {
            *key = wanted.then(new_key).transpose()?;
        }
        let (parts, incoming) = channel();
        let (exit, waiter) = sync_channel(1);
        let mut state = self.owner.shared.lock();
        if state.phase == Phase::Gone {
            return Err(StartError::Gone);
        }
        if state.processes.len() >= MAX_PROCESSES {
            return Err(StartError::TooMany);
        }
        let id = state.number();
        let entry = Entry {
            parts: Some(parts),
            is_answered: false,
            exit: Some(exit),
        };
        state.processes.insert(id, entry);
        let named = keys.into_iter().zip(wanted);
        let named = named.filter_map(|(key, (which, _))| Some((key?, id, which)));
        state.keys.extend(named);
        drop(state);

        let [stdin, stdout, stderr] = keys;
        let message = HostMessage::Start(Start {
            id,
            process,
            stdin,
            stdout,
            stderr,
        });
        let count = keys.iter().flatten().count();
        let result = match self.owner.shared.send(&message) {
            Ok(()) => collect(&incoming, count, id, ExitWaiter(waiter)),
            Err(error) => {
                self.owner.shared.lock().processes.remove(&id);
                Err(error.into())
            }
        };
        self.owner.shared.lock().stop_waiting(id);
        if matches!(result, Err(StartError::NoStreams)) {
            let _ = self.signal(id, SIGKILL);
        }
        result
    }

    /// Sends a signal to a process, and to whatever has its terminal. Nothing happens if it has
    /// ended.
    ///
    /// # Errors
    /// The guest has ended.
    pub fn signal(&self, id: u32, signal: u8) -> Result<(), LinkError> {
        self.owner.shared.send(&HostMessage::Signal { id, signal })
    }

    /// Changes the size of a process's terminal.
    ///
    /// # Errors
    /// The guest has ended.
    pub fn resize(&self, id: u32, size: WindowSize) -> Result<(), LinkError> {
        self.owner.shared.send(&HostMessage::Resize { id, size })
    }

    /// The guest's processes.
    ///
    /// # Errors
    /// The guest has ended, or does not answer in time.
    pub fn processes(&self, timeout: Duration) -> Result<Vec<ProcessInfo>, LinkError> {
        let (answer, processes) = sync_channel(1);
        let mut state = self.owner.shared.lock();
        if state.phase == Phase::Gone {
            return Err(LinkError::Gone);
        }
        if state.lists.len() >= MAX_LISTS {
            return Err(LinkError::Busy(MAX_LISTS));
        }
        let request = state.number();
        state.lists.insert(request, answer);
        drop(state);
        let sent = self.owner.shared.send(&HostMessage::List { request });
        let result = sent.and_then(|()| match processes.recv_timeout(timeout) {
            Ok(processes) => Ok(processes),
            Err(RecvTimeoutError::Timeout) => Err(LinkError::TimedOut),
            Err(RecvTimeoutError::Disconnected) => Err(LinkError::Gone),
        });
        self.owner.shared.lock().lists.remove(&request);
        result
    }

    /// Ends the machine: what still runs in it is ended, disks are written back, and `status`
    /// becomes its exit status.
    ///
    /// # Errors
    /// The guest has ended.
    pub fn shutdown(&self, status: u8) -> Result<(), LinkError> {
        self.owner.shared.send(&HostMessage::Shutdown { status })
    }

    /// The machine has ended: whoever waits for its guest learns it.
    pub fn gone(&self) {
        self.owner.shared.end();
    }
}

impl std::fmt::Debug for AgentLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentLink").finish_non_exhaustive()
    }
}

fn shared(
    key: Key,
    on_event: impl Fn(LinkEvent) + Send + Sync + 'static,
) -> Result<Arc<Shared>, LinkError> {
    let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
        .map_err(|error| LinkError::Host("make an event", error.into()))?;
    Ok(Arc::new(Shared::new(key, wake, on_event)))
}

/// Puts a process together from what comes of it.
fn collect(
    incoming: &Receiver<Part>,
    streams: usize,
    id: u32,
    exit: ExitWaiter,
) -> Result<Process, StartError> {
    let mut process = Process {
        id,
        pid: 0,
        stdin: None,
        stdout: None,
        stderr: None,
        exit,
    };
    let mut missing = streams;
    let mut deadline = None;
    while deadline.is_none() || missing > 0 {
        let part = match deadline {
            None => incoming.recv().map_err(|_| StartError::Gone)?,
            Some(at) => {
                let left = Instant::saturating_duration_since(&at, Instant::now());
                incoming.recv_timeout(left).map_err(|error| match error {
                    RecvTimeoutError::Timeout => StartError::NoStreams,
                    RecvTimeoutError::Disconnected => StartError::Gone,
                })?
            }
        };
        match part {
            Part::Started(pid) => {
                process.pid = pid;
                deadline = Some(Instant::now() + STREAMS_TIMEOUT);
            }
            Part::Failed(status, message) => return Err(StartError::Refused { status, message }),
            Part::Stream(which, stream) => {
                missing -= 1;
                let place = match which {
                    Which::Stdin => &mut process.stdin,
                    Which::Stdout => &mut process.stdout,
                    Which::Stderr => &mut process.stderr,
                };
                *place = Some(stream);
            }
        }
    }
    Ok(process)
}

#[cfg(test)]
mod tests;
