//! Handlers on the event loop that look after the connection to the back end.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::orphans::Orphan;
use super::{LentQueue, Memory};
use crate::event_loop::{Control, Handler, Interest, Source};
use crate::virtio::device::{DeviceNotifier, WithCauses};
use crate::virtio::fs::BackendError;
use crate::virtio::queue::QueueState;

/// Longer than a request takes that somebody waits for, shorter than a person does.
const ANSWER_SECONDS: i64 = 5;

/// Ends the connection when the back end has had its time to answer. (Its socket has no timeout of
/// its own: the library takes one for a signal, and goes on to wait.)
pub(super) struct Deadline {
    timer: OwnedFd,
    connection: UnixStream,
}

impl Deadline {
    pub(super) fn new(connection: &UnixStream) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let once = Itimerspec {
            it_interval: zero,
            it_value: Timespec {
                tv_sec: ANSWER_SECONDS,
                ..zero
            },
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(Self {
            timer,
            connection: connection.try_clone()?,
        })
    }

    fn source(&self) -> Source {
        Source {
            fd: self.timer.as_raw_fd(),
            token: 0,
            interest: Interest::READ,
        }
    }
}

impl Handler for Deadline {
    fn sources(&self) -> Vec<Source> {
        vec![self.source()]
    }

    fn ready(&mut self, _token: u32, control: &mut Control<'_>) {
        // Whoever waits for an answer is told that there will be none.
        let _ = self.connection.shutdown(Shutdown::Both);
        let _ = control.disable(self.source());
    }
}

/// Token of the connection; those of the queues are their numbers.
const CONNECTION: u32 = u32::MAX;

/// Waits for the end of the connection, and then serves the queues in the back end's place.
pub(super) struct Watch {
    connection: UnixStream,
    lent: Vec<LentQueue>,
    orphans: Option<Vec<Orphan>>,
    memory: Memory,
    features: u64,
    notifier: DeviceNotifier,
}

impl Watch {
    pub(super) fn new(
        connection: UnixStream,
        lent: Vec<LentQueue>,
        memory: Memory,
        features: u64,
        notifier: DeviceNotifier,
    ) -> Self {
        Self {
            connection,
            lent,
            orphans: None,
            memory,
            features,
            notifier,
        }
    }

    pub(super) fn lent(&self) -> &[LentQueue] {
        &self.lent
    }

    /// The back end has ended, and the queues are here.
    pub(super) fn is_orphaned(&self) -> bool {
        self.orphans.is_some()
    }

    /// Takes the queues over from a back end that is gone.
    pub(super) fn adopt(&mut self) {
        let mut orphans = Vec::new();
        for queue in self.lent.drain(..) {
            match Orphan::adopt(queue, &self.memory, self.features, &self.notifier) {
                Ok(orphan) => orphans.push(orphan),
                Err(error) => self.notifier.warn(&WithCauses(&error)),
            }
        }
        self.orphans = Some(orphans);
    }

    /// The queues, for whoever serves them next.
    pub(super) fn into_states(self) -> Vec<(u16, QueueState)> {
        let orphans = self.orphans.unwrap_or_default();
        orphans.into_iter().map(Orphan::into_state).collect()
    }

    fn connection_source(&self) -> Source {
        Source {
            fd: self.connection.as_raw_fd(),
            token: CONNECTION,
            interest: Interest::HANG_UP,
        }
    }

    fn lost(&mut self, control: &mut Control<'_>) {
        let _ = control.disable(self.connection_source());
        self.notifier.needs_reset(&BackendError::Gone);
        self.adopt();
        for orphan in self.orphans.iter_mut().flatten() {
            if let Err(error) = control.enable(orphan.source()) {
                self.notifier.warn(&WithCauses(&error));
            }
            orphan.serve(&self.notifier);
        }
    }
}

impl Handler for Watch {
    fn sources(&self) -> Vec<Source> {
        vec![self.connection_source()]
    }

    fn ready(&mut self, token: u32, control: &mut Control<'_>) {
        if token == CONNECTION {
            self.lost(control);
            return;
        }
        let orphans = self.orphans.iter_mut().flatten();
        for orphan in orphans.filter(|orphan| orphan.source().token == token) {
            orphan.serve(&self.notifier);
        }
    }
}
