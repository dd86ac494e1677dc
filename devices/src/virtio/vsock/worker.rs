//! The worker: it owns the queues and all connections, and lives on the event loop.
//!
//! Every event ends in the same two steps: the connection that was touched is settled (what it
//! has to tell, what it waits for, whether it has ended), and [`Worker::pump`] sends as much to
//! the guest as there are buffers for, within a bound.

mod host;
mod rx;
mod tx;

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use vm_memory::GuestMemoryMmap;

pub(super) use host::ports_at;

use super::connection::{End, State};
use super::host::{ConnectError, Shared};
use super::packet::{Header, Op, Shutdown};
use super::socket::Pieces;
use super::table::Table;
use super::{EVENT, Ports, RX, TX};
use crate::event_loop::{Control, Handler, Interest, Source};
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::device::{ActivateError, Activation, DeviceNotifier, StartedQueue, WithCauses};
use crate::virtio::queue::{QueueError, QueueState};

/// Tokens of what is always waited for; those of connections follow.
mod token {
    pub const RX: u32 = 0;
    pub const TX: u32 = 1;
    pub const EVENT: u32 = 2;
    pub const WAKE: u32 = 3;
    pub const TIMER: u32 = 4;
    pub const LISTENER: u32 = 5;
    pub const FIRST_CONNECTION: u32 = 16;
}

/// RSTs that wait for the driver's buffers before no more packets are taken from it.
const MAX_RESETS: usize = 256;
/// How long a client may take to say which port it wants.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the guest has to answer a client.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long no client is accepted after the host had no descriptor for one.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What the device knows of the host.
pub(super) struct Host {
    pub guest_cid: u64,
    pub ports: Option<Ports>,
    pub listener: Option<Arc<UnixListener>>,
    pub shared: Arc<Shared>,
    pub close_timeout: Duration,
}

/// What is due at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Connection(u32),
    Listener,
}

#[derive(Debug, thiserror::Error)]
enum WorkerError {
    #[error("a queue cannot be served")]
    Queue(#[from] QueueError),
    #[error("a packet cannot be read or written")]
    Packet(#[from] ChainError),
}

/// The worker.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each says something of its own"
)]
pub(super) struct Worker {
    host: Host,
    memory: Arc<GuestMemoryMmap>,
    notifier: DeviceNotifier,
    rx: StartedQueue,
    tx: StartedQueue,
    event: Option<StartedQueue>,
    connections: Table,
    /// RSTs for the guest.
    resets: VecDeque<Header>,
    /// Connections that have something else to tell.
    queued: VecDeque<u32>,
    /// Connections to receive from, each in its turn.
    runnable: VecDeque<u32>,
    due: BTreeSet<(Instant, Due)>,
    timer: OwnedFd,
    armed: Option<Instant>,
    /// No packets are taken from the guest until it has taken some.
    tx_paused: bool,
    /// The driver is asked to tell of new buffers.
    rx_awaited: bool,
    /// The event loop waits for clients.
    is_listening: bool,
    /// The host had no descriptor for a client; it may have one later.
    listening_paused: bool,
    /// The driver has to be told that connections are gone.
    reset_untold: bool,
    broken: bool,
    pieces: Pieces,
    /// Buffers of the driver's, while they are received into.
    batch: Vec<Chain>,
}

impl Worker {
    /// A worker for the queues of `activation`. `lost` is whether the driver has to be told that
    /// the connections it knows are gone.
    pub fn new(
        name: &str,
        activation: Activation,
        host: Host,
        lost: bool,
    ) -> Result<Self, ActivateError> {
        let mut queues = activation.queues;
        let mut take = |index| {
            let at = queues.iter().position(|queue| queue.index == index);
            at.map(|at| queues.swap_remove(at))
                .ok_or_else(|| ActivateError::MissingQueue {
                    name: name.to_owned(),
                    index,
                })
        };
        let (rx, tx, event) = (take(RX)?, take(TX)?, take(EVENT).ok());
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags);
        Ok(Self {
            timer: timer.map_err(|error| ActivateError::Io {
                name: name.to_owned(),
                what: "no timer is to be had",
                source: error.into(),
            })?,
            is_listening: host.listener.is_some(),
            listening_paused: false,
            host,
            memory: activation.memory,
            notifier: activation.notifier,
            rx,
            tx,
            event,
            connections: Table::new(),
            resets: VecDeque::new(),
            queued: VecDeque::new(),
            runnable: VecDeque::new(),
            due: BTreeSet::new(),
            armed: None,
            tx_paused: false,
            rx_awaited: true,
            reset_untold: lost,
            broken: false,
            pieces: Pieces::default(),
            batch: Vec::new(),
        })
    }

    /// Closes all connections and gives the queues back. True if the driver does not know that
    /// connections are gone.
    pub fn stop(self) -> (Vec<(u16, QueueState)>, bool) {
        let lost = self.reset_untold || self.connections.len() > 0 || !self.resets.is_empty();
        let queues = [Some(self.rx), Some(self.tx), self.event];
        let states = queues.into_iter().flatten();
        let states = states.map(|queue| (queue.index, queue.queue.into_state()));
        (states.collect(), lost)
    }

    fn dispatch(&mut self, token: u32, control: &mut Control<'_>) -> Result<(), WorkerError> {
        let mut touched = None;
        match token {
            token::RX => drop(self.rx.kick.read()),
            token::TX => self.take_packets(control)?,
            token::EVENT => self.tell_of_reset()?,
            token::WAKE => self.take_requests(control),
            token::TIMER => self.expire(control),
            token::LISTENER => self.accept_clients(control),
            _ => {
                let slot = token - token::FIRST_CONNECTION;
                self.connection_is_ready(slot, control);
                touched = Some(slot);
            }
        }
        self.pump(control)?;
        if let Some(slot) = touched {
            // It may not have had its turn, and must not be waited for then.
            self.settle(slot, control);
        }
        self.update_listening(control);
        self.arm();
        Ok(())
    }

    fn connection_is_ready(&mut self, slot: u32, control: &mut Control<'_>) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        if matches!(connection.state, State::Handshake(_)) {
            self.go_on_with_handshake(slot, control);
            return;
        }
        let receives = connection.is_ready();
        if connection.end.is_some() {
            self.settle(slot, control);
        } else if receives && !connection.is_runnable {
            connection.is_runnable = true;
            self.runnable.push_back(slot);
        } else {
            self.settle(slot, control);
        }
    }

    /// Draws the consequences of whatever has happened to a connection.
    fn settle(&mut self, slot: u32, control: &mut Control<'_>) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        if let Some(end) = connection.end {
            return self.close(slot, end, ConnectError::Closed, control);
        }
        if matches!(connection.state, State::Open) {
            if connection.receive.is_news() {
                connection.pending.add(Op::CreditUpdate);
            }
            let stalled = connection.is_receiving() && connection.send.available() == 0;
            if connection.is_stalled && !stalled && connection.wants_to_receive() {
                // There was no credit before, so nobody has looked at the socket.
                if !connection.is_runnable {
                    connection.is_runnable = true;
                    self.runnable.push_back(slot);
                }
            }
            connection.is_stalled = stalled;
        }
        if !connection.pending.is_empty() && !connection.is_queued {
            connection.is_queued = true;
            self.queued.push_back(slot);
        }
        if connection.host_closed.has(Shutdown::BOTH) && connection.deadline.is_none() {
            self.set_deadline(slot, self.host.close_timeout);
        }
        self.watch(slot, control);
    }

    /// Has the event loop wait for what the connection needs.
    fn watch(&mut self, slot: u32, control: &mut Control<'_>) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        let (before, after) = (connection.watched, connection.interest());
        if before == after {
            return;
        }
        let source = |interest| Source {
            fd: connection.fd(),
            token: token::FIRST_CONNECTION + slot,
            interest,
        };
        let done = match (before, after) {
            (None, Some(interest)) => control.enable(source(interest)),
            (Some(_), Some(interest)) => control.modify(source(interest)),
            (Some(interest), None) => control.disable(source(interest)),
            (None, None) => Ok(()),
        };
        match done {
            Ok(()) => connection.watched = after,
            Err(error) => {
                self.notifier.warn(&error);
                self.close(slot, End::Reset, ConnectError::Closed, control);
            }
        }
    }

    /// Ends a connection. `why` is for those who wait for it to open.
    fn close(&mut self, slot: u32, end: End, why: ConnectError, control: &mut Control<'_>) {
        self.clear_deadline(slot);
        let Some(connection) = self.connections.remove(slot) else {
            return;
        };
        if connection.is_queued {
            self.queued.retain(|other| *other != slot);
        }
        if connection.is_runnable {
            self.runnable.retain(|other| *other != slot);
        }
        if let Some(interest) = connection.watched {
            let source = Source {
                fd: connection.fd(),
                token: token::FIRST_CONNECTION + slot,
                interest,
            };
            if let Err(error) = control.disable(source) {
                log::error!("a vsock connection was not watched: {error}");
            }
        }
        // The guest does not know of one whose request was never sent.
        let unknown = connection.pending.first() == Some(Op::Request);
        if let (End::Reset, Some(key), false) = (end, connection.key, unknown) {
            let (host, guest) = (key.host_port, key.guest_port);
            let reset = Header::to_guest(host, guest, Op::Rst, self.host.guest_cid);
            self.resets.push_back(reset);
        }
        connection.fail_to_open(why);
    }

    fn set_deadline(&mut self, slot: u32, timeout: Duration) {
        let Some(at) = Instant::now().checked_add(timeout) else {
            return; // longer than this host will live
        };
        self.clear_deadline(slot);
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.deadline = Some(at);
            self.due.insert((at, Due::Connection(slot)));
        }
    }

    fn clear_deadline(&mut self, slot: u32) {
        let connection = self.connections.get_mut(slot);
        if let Some(at) = connection.and_then(|it| it.deadline.take()) {
            self.due.remove(&(at, Due::Connection(slot)));
        }
    }

    fn expire(&mut self, control: &mut Control<'_>) {
        let mut count = [0; 8];
        // An error means that it was set anew meanwhile.
        let _ = rustix::io::read(&self.timer, &mut count);
        self.armed = None;
        let now = Instant::now();
        while let Some(&(at, what)) = self.due.first()
            && at <= now
        {
            self.due.remove(&(at, what));
            match what {
                Due::Connection(slot) => {
                    self.close(slot, End::Reset, ConnectError::TimedOut, control);
                }
                Due::Listener => self.listening_paused = false,
            }
        }
    }

    /// Sets the timer to what is due first, unless it rings before that anyway.
    fn arm(&mut self) {
        let Some(&(first, _)) = self.due.first() else {
            return;
        };
        if self.armed.is_some_and(|armed| armed <= first) {
            return;
        }
        // Not 0, which would stop it.
        let left = first.saturating_duration_since(Instant::now());
        let left = left.max(Duration::from_nanos(1));
        let time = |left: Duration| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let setting = Itimerspec {
            it_interval: time(Duration::ZERO),
            it_value: time(left),
        };
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting) {
            Ok(_) => self.armed = Some(first),
            Err(error) => log::error!("the vsock device's timer cannot be set: {error}"),
        }
    }

    /// The queues, or guest memory, cannot be used: all connections end.
    fn fail(&mut self, error: &WorkerError, control: &mut Control<'_>) {
        self.broken = true;
        self.notifier.needs_reset(&WithCauses(error));
        self.host.shared.set_running(false);
        for slot in self.connections.taken() {
            self.close(slot, End::Silent, ConnectError::Closed, control);
        }
        self.update_listening(control);
    }

    /// Takes the signal of an event that nothing is done about any more.
    fn ignore(&mut self, token: u32) {
        // An error means that there was no signal.
        let _ = match token {
            token::RX => self.rx.kick.read(),
            token::TX => self.tx.kick.read(),
            token::EVENT => self.event.as_ref().map_or(Ok(0), |queue| queue.kick.read()),
            token::WAKE => self.host.shared.wake.read(),
            _ => Ok(0),
        };
    }
}

impl Handler for Worker {
    fn sources(&self) -> Vec<Source> {
        let source = |fd, token| Source {
            fd,
            token,
            interest: Interest::READ,
        };
        let mut sources = vec![
            source(self.rx.kick.as_raw_fd(), token::RX),
            source(self.tx.kick.as_raw_fd(), token::TX),
            source(self.host.shared.wake.as_raw_fd(), token::WAKE),
            source(self.timer.as_raw_fd(), token::TIMER),
        ];
        if let Some(event) = &self.event {
            sources.push(source(event.kick.as_raw_fd(), token::EVENT));
        }
        if let Some(listener) = &self.host.listener {
            sources.push(source(listener.as_raw_fd(), token::LISTENER));
        }
        sources
    }

    fn ready(&mut self, token: u32, control: &mut Control<'_>) {
        if self.broken {
            self.ignore(token);
        } else if let Err(error) = self.dispatch(token, control) {
            self.fail(&error, control);
        }
    }
}
