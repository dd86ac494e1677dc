//! What the link's threads share: who is connected, who waits for what.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use casita_agent::wire::{
    AgentMessage, Exit, HostMessage, Key, MAX_LISTED, ProcessInfo, encode_frame,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, write};
use rustix::net::{SendFlags, send};

use super::worker::{MAX_UNKNOWN, SEND_TIMEOUT};
use super::{LinkError, LinkEvent};

/// The longest line that an agent has to say why a process can't be started, in bytes.
const MAX_MESSAGE: usize = 4 << 10;
/// The longest command in a list of processes, in bytes.
const MAX_COMMAND: usize = 256;

/// How far the link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The agent is not ready yet.
    Waiting,
    Ready,
    Gone,
}

/// One of a process's standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Stdin,
    Stdout,
    Stderr,
}

/// What comes for whoever starts a process.
pub(super) enum Part {
    Started(u32),
    Failed(u8, String),
    Stream(Which, UnixStream),
}

/// A process that was asked for and of which not everything is known yet.
pub(super) struct Entry {
    /// Whoever starts it, while it does.
    pub parts: Option<Sender<Part>>,
    /// The agent has said whether it runs.
    pub is_answered: bool,
    /// Whoever waits for its end, until that.
    pub exit: Option<SyncSender<Exit>>,
}

pub(super) struct State {
    pub phase: Phase,
    /// The control connection, while there is one.
    pub control: Option<Arc<UnixStream>>,
    /// Connections that the link's thread has not looked at yet.
    pub arrived: VecDeque<UnixStream>,
    pub next_number: u32,
    pub processes: BTreeMap<u32, Entry>,
    /// Streams that the agent was asked for and has not connected yet.
    pub keys: Vec<(Key, u32, Which)>,
    pub lists: BTreeMap<u32, SyncSender<Vec<ProcessInfo>>>,
}

impl State {
    /// A number that was not used before.
    pub fn number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number
    }

    /// Whoever starts the process `id` has all of it, or gives up.
    pub fn stop_waiting(&mut self, id: u32) {
        self.keys.retain(|(_, process, _)| *process != id);
        if let Some(entry) = self.processes.get_mut(&id) {
            entry.parts = None;
            if entry.exit.is_none() {
                self.processes.remove(&id);
            }
        }
    }
}

pub(super) struct Shared {
    pub key: Key,
    state: Mutex<State>,
    /// The phase has changed.
    changed: Condvar,
    /// Wakes the link's thread.
    pub wake: OwnedFd,
    /// Held while a frame is sent, which may take a while.
    sending: Mutex<()>,
    on_event: Box<dyn Fn(LinkEvent) + Send + Sync>,
}

impl Shared {
    pub fn new(
        key: Key,
        wake: OwnedFd,
        on_event: impl Fn(LinkEvent) + Send + Sync + 'static,
    ) -> Self {
        Self {
            key,
            state: Mutex::new(State {
                phase: Phase::Waiting,
                control: None,
                arrived: VecDeque::new(),
                next_number: 0,
                processes: BTreeMap::new(),
                keys: Vec::new(),
                lists: BTreeMap::new(),
            }),
            changed: Condvar::new(),
            wake,
            sending: Mutex::new(()),
            on_event: Box::new(on_event),
        }
    }

    /// There is no state in here that a panic leaves half changed.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change of the phase, for at most what is left of `timeout`.
    pub fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        timeout: Option<std::time::Duration>,
    ) -> MutexGuard<'a, State> {
        match timeout {
            None => self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                let waited = self.changed.wait_timeout(state, timeout);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Takes a connection that the guest has opened. It never waits. False if it is not wanted.
    pub fn accept(&self, stream: UnixStream) -> bool {
        let mut state = self.lock();
        if state.phase == Phase::Gone {
            return false;
        }
        if state.arrived.len() >= MAX_UNKNOWN {
            state.arrived.pop_front();
        }
        state.arrived.push_back(stream);
        drop(state);
        self.wake();
        true
    }

    fn wake(&self) {
        // A full counter wakes it too.
        let _ = write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// The agent is here: frames can be sent to it.
    pub fn connected(&self, control: Arc<UnixStream>) {
        let mut state = self.lock();
        if state.phase != Phase::Gone {
            state.control = Some(control);
        }
    }

    /// Sends a message. An agent that does not take it in time is gone.
    pub fn send(&self, message: &HostMessage) -> Result<(), LinkError> {
        let frame = encode_frame(message).map_err(LinkError::Message)?;
        let control = self.lock().control.clone().ok_or(LinkError::Gone)?;
        let sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = write_in_time(&control, &frame);
        drop(sending);
        sent.map_err(|error| {
            log::debug!("the guest's agent does not take messages: {error}");
            self.end();
            LinkError::Gone
        })
    }

    /// Acts upon what the agent says. What it says of processes or questions that nobody knows is
    /// ignored.
    pub fn take(&self, message: AgentMessage) {
        match message {
            AgentMessage::Ready => self.ready(),
            AgentMessage::Started { id, pid } => self.answer(id, Part::Started(pid)),
            AgentMessage::Failed {
                id,
                status,
                mut message,
            } => {
                message.truncate(message.floor_char_boundary(MAX_MESSAGE));
                self.answer(id, Part::Failed(status, message));
            }
            AgentMessage::Exceeded { id, limit } => {
                self.tell_of_group(id, LinkEvent::Exceeded(limit));
            }
            AgentMessage::Used { id, usage } => self.tell_of_group(id, LinkEvent::Used(usage)),
            AgentMessage::Exited { id, exit } => self.exited(id, exit),
            AgentMessage::Processes {
                request,
                mut processes,
            } => {
                processes.truncate(MAX_LISTED);
                processes.iter_mut().for_each(tidy);
                if let Some(asker) = self.lock().lists.remove(&request) {
                    // It may have given up.
                    let _ = asker.try_send(processes);
                }
            }
        }
    }

    fn ready(&self) {
        let mut state = self.lock();
        if state.phase != Phase::Waiting {
            return;
        }
        state.phase = Phase::Ready;
        drop(state);
        self.changed.notify_all();
        (self.on_event)(LinkEvent::Ready);
    }

    fn answer(&self, id: u32, part: Part) {
        let mut state = self.lock();
        let Some(entry) = state.processes.get_mut(&id) else {
            return;
        };
        if std::mem::replace(&mut entry.is_answered, true) {
            return;
        }
        if matches!(part, Part::Failed(..)) {
            entry.exit = None;
        }
        if let Some(starter) = &entry.parts {
            let _ = starter.send(part);
        }
        if entry.parts.is_none() && entry.exit.is_none() {
            state.processes.remove(&id);
        }
    }

    /// The owner learns something of the group of a process, if there is such a process.
    fn tell_of_group(&self, id: u32, event: LinkEvent) {
        let runs = self
            .lock()
            .processes
            .get(&id)
            .is_some_and(|it| it.is_answered);
        if runs {
            (self.on_event)(event);
        }
    }

    fn exited(&self, id: u32, exit: Exit) {
        let mut state = self.lock();
        let Some(entry) = state.processes.get_mut(&id) else {
            return;
        };
        if !entry.is_answered {
            return;
        }
        if let Some(waiter) = entry.exit.take() {
            let _ = waiter.try_send(exit);
        }
        if entry.parts.is_none() {
            state.processes.remove(&id);
        }
    }

    /// Gives a stream to whoever starts the process that it belongs to.
    pub fn take_stream(&self, key: Key, stream: UnixStream) {
        let mut state = self.lock();
        let Some(index) = state.keys.iter().position(|(known, ..)| *known == key) else {
            return;
        };
        let (_, id, which) = state.keys.swap_remove(index);
        if let Some(starter) = state.processes.get(&id).and_then(|it| it.parts.as_ref()) {
            let _ = starter.send(Part::Stream(which, stream));
        }
    }

    /// The link has ended. Everybody who waits for something learns it.
    pub fn end(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Gone {
            return;
        }
        state.phase = Phase::Gone;
        let control = state.control.take();
        let left = (
            std::mem::take(&mut state.processes),
            std::mem::take(&mut state.lists),
            std::mem::take(&mut state.arrived),
        );
        state.keys.clear();
        drop(state);
        drop(left);
        // Whoever is sending stops.
        if let Some(control) = control {
            let _ = control.shutdown(Shutdown::Both);
        }
        self.wake();
        self.changed.notify_all();
        (self.on_event)(LinkEvent::Gone);
    }
}

/// Makes what an agent may say of a process of what it has said.
fn tidy(process: &mut ProcessInfo) {
    process.command.retain(|c| !c.is_control());
    let end = process.command.floor_char_boundary(MAX_COMMAND);
    process.command.truncate(end);
    if !process.state.is_ascii_graphic() {
        process.state = b'?';
    }
}

/// Writes all of `bytes`. A guest that takes them bit by bit has no more time than one that takes
/// nothing: others wait for their turn meanwhile.
fn write_in_time(stream: &UnixStream, bytes: &[u8]) -> io::Result<()> {
    const FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
    let deadline = Instant::now() + SEND_TIMEOUT;
    let mut rest = bytes;
    while !rest.is_empty() {
        match send(stream, rest, FLAGS) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                let left = Timespec::try_from(left).map_err(io::Error::other)?;
                match poll(&mut [PollFd::new(stream, PollFlags::OUT)], Some(&left)) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
