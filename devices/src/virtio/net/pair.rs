//! One queue pair and its back end, on the thread of an event loop.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::backend::{Backend, Landing, Offloads, Received, Sent, has_ended};
use super::pieces::PiecesMut;
use super::rx::{self, Receiver};
use super::shared::Shared;
use super::tx::{self, Transmitter};
use crate::event_loop::{Control, Handler, Interest, Source};
use crate::token_bucket::Throttle;
use crate::virtio::device::WithCauses;
use crate::virtio::queue::{QueueError, QueueState};

const RX_KICK: u32 = 0;
const TX_KICK: u32 = 1;
const BACKEND: u32 = 2;
const SIDE: u32 = 3;
const RX_TIMER: u32 = 4;
const TX_TIMER: u32 = 5;
const POKE: u32 = 6;

/// The worker of a pair. A queue that the driver has not set up is absent.
pub(super) struct Pair {
    /// Its number.
    index: u16,
    rx: Option<Receiver>,
    tx: Option<Transmitter>,
    backend: Box<dyn Backend>,
    shared: Arc<Shared>,
    /// Signalled when something has changed that the pair has to look at: the link, offloads, pairs in use.
    poke: EventFd,
    wanted: Wanted,
    /// What is watched on the back end's descriptor, and whether the other one is.
    watched: Option<Interest>,
    side_watched: bool,
    /// The offloads that the back end was told.
    to_guest: Offloads,
    active: bool,
    state: State,
}

/// How far a pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Serving,
    /// The back end has closed. What the driver sends is lost, as always while the link is down.
    Closed,
    /// A queue is broken: nothing more is done.
    Ended,
}

/// What is left of a pair that was stopped.
pub(super) struct Stopped {
    pub index: u16,
    pub backend: Box<dyn Backend>,
    pub states: Vec<(u16, QueueState)>,
}

impl Pair {
    pub fn new(
        index: u16,
        (rx, tx): (Option<Receiver>, Option<Transmitter>),
        backend: Box<dyn Backend>,
        shared: Arc<Shared>,
        poke: EventFd,
    ) -> Self {
        Self {
            index,
            rx,
            tx,
            backend,
            to_guest: shared.to_guest(),
            active: true,
            shared,
            poke,
            wanted: Wanted::default(),
            watched: None,
            side_watched: false,
            state: State::Serving,
        }
    }

    /// Tells the back end how it is to start.
    ///
    /// # Errors
    /// The host refused.
    pub fn prepare(&mut self) -> io::Result<()> {
        self.to_guest = self.shared.to_guest();
        self.backend.set_offloads(self.to_guest)?;
        self.activate()
    }

    fn activate(&mut self) -> io::Result<()> {
        self.active = self.index < self.shared.active_pairs();
        self.backend.set_active(self.active)
    }

    /// Gives everything back.
    pub fn stop(mut self) -> Stopped {
        let mut states = Vec::new();
        if let Some(mut rx) = self.rx.take() {
            rx.release();
            states.push((rx.started.index, rx.started.queue.into_state()));
        }
        if let Some(tx) = self.tx.take() {
            states.push((tx.started.index, tx.started.queue.into_state()));
        }
        Stopped {
            index: self.index,
            backend: self.backend,
            states,
        }
    }

    /// What has changed elsewhere.
    fn look(&mut self) -> io::Result<()> {
        if self.state == State::Closed {
            return Ok(());
        }
        let to_guest = self.shared.to_guest();
        if to_guest != self.to_guest {
            self.to_guest = to_guest;
            self.backend.set_offloads(to_guest)?;
        }
        if self.active != (self.index < self.shared.active_pairs()) {
            self.activate()?;
        }
        Ok(())
    }

    /// Does what `token` asks for, for a bounded time, and says what to wait for on the back end.
    fn serve(&mut self, token: u32) -> Result<Wanted, QueueError> {
        let mut wanted = self.wanted;
        let may_send = wanted.write || !matches!(token, RX_KICK | RX_TIMER | BACKEND | SIDE);
        if may_send {
            wanted.write = self.send()?;
        }
        // A kick of the transmit queue says nothing of frames that wait.
        let may_receive = !matches!(token, TX_KICK | TX_TIMER);
        if may_receive || (self.state == State::Serving && self.backend.has_waiting()) {
            wanted.read = self.receive()?;
        }
        Ok(wanted)
    }

    /// True if the back end is full.
    fn send(&mut self) -> Result<bool, QueueError> {
        if self.flush() {
            return Ok(true);
        }
        if let Some(tx) = &mut self.tx {
            match tx.send(&mut *self.backend, &self.shared)? {
                tx::Paused::Empty | tx::Paused::Throttled => {}
                tx::Paused::Full => return Ok(true),
                tx::Paused::Budget => signal(&tx.started.kick),
                tx::Paused::Closed => {
                    self.state = State::Closed;
                    // What is still in the queue is lost, and not kept back.
                    signal(&tx.started.kick);
                }
            }
        }
        Ok(self.flush())
    }

    /// True if the back end still has something to send.
    fn flush(&mut self) -> bool {
        if self.state == State::Closed {
            return false;
        }
        match self.backend.flush() {
            Sent::Full => true,
            Sent::Done | Sent::Dropped => false,
            Sent::Closed(error) => {
                self.close(&error);
                false
            }
        }
    }

    /// True if frames can be received.
    fn receive(&mut self) -> Result<bool, QueueError> {
        let Some(rx) = &mut self.rx else {
            return Ok(false);
        };
        if !self.shared.link.is_up() {
            return Ok(false);
        }
        match rx.receive(&mut *self.backend, &self.shared)? {
            rx::Paused::Idle => Ok(true),
            rx::Paused::NoRoom | rx::Paused::Throttled => Ok(false),
            rx::Paused::Budget => {
                signal(&rx.started.kick);
                Ok(true)
            }
            rx::Paused::Closed => {
                self.state = State::Closed;
                Ok(false)
            }
        }
    }

    fn close(&mut self, error: &io::Error) {
        self.shared.closed(error);
        self.state = State::Closed;
    }

    /// Its other end has gone while nothing is wanted of the back end. What it still has is for nobody.
    fn find_end(&mut self) {
        for _ in 0..MAX_LEFTOVERS {
            let mut nowhere = Landing::new(&mut [], PiecesMut::of_bytes(&mut []));
            match self.backend.receive(&mut nowhere) {
                Received::Closed(error) => return self.close(&error),
                Received::Nothing => {
                    let error = io::ErrorKind::ConnectionReset.into();
                    return self.close(&error);
                }
                Received::Dropped | Received::Frame { .. } => {}
            }
        }
    }

    fn watch(&mut self, control: &mut Control<'_>) {
        let wanted = self.wanted;
        let interest = match (wanted.read, wanted.write) {
            _ if self.state != State::Serving => None,
            (true, true) => Some(Interest::READ | Interest::WRITE),
            (true, false) => Some(Interest::READ),
            (false, true) => Some(Interest::WRITE),
            // To notice when the other end goes, of which a tap device tells as of a frame.
            (false, false) => Some(Interest::NEWS),
        };
        let fd = self.backend.fd().as_raw_fd();
        let source = |interest| Source {
            fd,
            token: BACKEND,
            interest,
        };
        let changed = match (self.watched, interest) {
            (old, new) if old == new => Ok(()),
            (None, Some(new)) => control.enable(source(new)),
            (Some(_), Some(new)) => control.modify(source(new)),
            (Some(old), None) => control.disable(source(old)),
            (None, None) => Ok(()),
        };
        self.watched = interest;
        let side_wanted = wanted.read && interest.is_some();
        let side = self.side_source();
        let side_changed = match side {
            Some(side) if side_wanted && !self.side_watched => control.enable(side),
            Some(side) if !side_wanted && self.side_watched => control.disable(side),
            _ => Ok(()),
        };
        self.side_watched = side_wanted && side.is_some();
        if let Err(error) = changed.and(side_changed) {
            self.fail(&WithCauses(&error));
        }
    }

    fn side_source(&self) -> Option<Source> {
        Some(Source {
            fd: self.backend.side_fd()?.as_raw_fd(),
            token: SIDE,
            interest: Interest::READ,
        })
    }

    /// Nothing more is done until the driver resets.
    fn fail(&mut self, why: &dyn std::fmt::Display) {
        self.state = State::Ended;
        self.shared.notifier.needs_reset(why);
    }

    /// Takes the event that has led here.
    fn acknowledge(&mut self, token: u32) {
        // A kick or a poke that is not there any more is no harm.
        let (rx, tx) = (self.rx.as_mut(), self.tx.as_mut());
        match token {
            RX_KICK => drop(rx.map(|rx| rx.started.kick.read())),
            TX_KICK => drop(tx.map(|tx| tx.started.kick.read())),
            RX_TIMER => drop(rx.and_then(|rx| rx.throttle.as_mut().map(Throttle::expired))),
            TX_TIMER => drop(tx.and_then(|tx| tx.throttle.as_mut().map(Throttle::expired))),
            POKE => drop(self.poke.read()),
            _ => {}
        }
    }
}

/// So many frames are thrown away at once to find the end behind them.
const MAX_LEFTOVERS: usize = 256;

/// What to wait for on the back end's descriptor.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    read: bool,
    write: bool,
}

/// Comes back after other handlers had their turn; a full counter is a signal, too.
fn signal(kick: &EventFd) {
    let _ = kick.write(1);
}

impl Handler for Pair {
    fn sources(&self) -> Vec<Source> {
        let source = |fd, token| Source {
            fd,
            token,
            interest: Interest::READ,
        };
        let mut sources = vec![source(self.poke.as_raw_fd(), POKE)];
        let timers = |throttle: &Option<Throttle>, token| {
            throttle.as_ref().map(|t| source(t.as_raw_fd(), token))
        };
        if let Some(rx) = &self.rx {
            sources.push(source(rx.started.kick.as_raw_fd(), RX_KICK));
            sources.extend(timers(&rx.throttle, RX_TIMER));
        }
        if let Some(tx) = &self.tx {
            sources.push(source(tx.started.kick.as_raw_fd(), TX_KICK));
            sources.extend(timers(&tx.throttle, TX_TIMER));
        }
        sources
    }

    fn ready(&mut self, token: u32, control: &mut Control<'_>) {
        self.acknowledge(token);
        if self.state == State::Ended {
            return;
        }
        if token == POKE
            && let Err(error) = self.look()
        {
            return self.fail(&format_args!("the back end refuses its offloads: {error}"));
        }
        if token == BACKEND && self.watched == Some(Interest::NEWS) {
            if !has_ended(self.backend.fd()) {
                return;
            }
            self.find_end();
        }
        match self.serve(token) {
            Ok(wanted) => self.wanted = wanted,
            Err(error) => self.fail(&WithCauses(&error)),
        }
        self.watch(control);
    }
}
