//! The file system device, section 5.11, whose queues another process serves: a vhost-user back end.
//!
//! That process has the guest's memory mapped, waits for the queues' kicks itself, and raises the
//! interrupt itself; nothing of a request passes through here. What is left for this side is to tell
//! it where the queues are ([`backend`]), and to notice its end ([`watch`]): then the driver's
//! requests are answered with an error ([`orphans`]), so that nobody in the guest waits forever.

#![deny(clippy::indexing_slicing)]

mod backend;
mod orphans;
mod watch;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::device::{
    ActivateError, Activation, DeviceNotifier, DeviceState, RestoreError, VirtioDevice, WithCauses,
};
use super::queue::QueueState;
use super::spec::device_type;
use crate::event_loop::{EventLoopHandle, Registration};
use backend::Backend;
use watch::{Deadline, Watch};

pub use backend::BackendError;

/// The queue of requests that must not wait, and the one of all others.
const QUEUE_SIZES: [u16; 2] = [128, 1024];

/// Bytes of a tag, in configuration space.
const TAG_LEN: usize = 36;
/// The tag and the number of request queues (section 5.11.4).
const CONFIG_LEN: usize = TAG_LEN + 4;

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The guest mounts by this name; the field has a fixed length.
    #[error("the tag {tag:?} is not 1 to {TAG_LEN} bytes long without NUL")]
    Tag {
        /// What was asked for.
        tag: String,
    },
    /// No second descriptor for the connection.
    #[error("{name}: the connection to its back end cannot be watched")]
    Connection {
        /// The device.
        name: String,
        /// The reason.
        source: std::io::Error,
    },
}

/// The device.
pub struct Fs {
    name: String,
    config: [u8; CONFIG_LEN],
    connection: UnixStream,
    backend: Backend,
    running: Option<Running>,
}

/// What there is from activation to the next reset.
struct Running {
    watch: Registration<Watch>,
    events: EventLoopHandle,
}

/// A queue that somebody else serves.
pub(super) struct LentQueue {
    index: u16,
    /// As it was when it was lent.
    state: QueueState,
    kick: EventFd,
}

/// The back end has all that has to be known; it does not survive casita.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct FsState {}

impl Fs {
    /// A device called `name` in logs and `tag` in the guest, with a vhost-user back end at the
    /// other end of `connection`.
    ///
    /// # Errors
    /// The tag does not fit, or no file descriptor is to be had.
    pub fn new(name: &str, tag: &str, connection: UnixStream) -> Result<Self, FsError> {
        let mut config = [0; CONFIG_LEN];
        let fits = (1..=TAG_LEN).contains(&tag.len()) && !tag.contains('\0');
        if !fits {
            let tag = tag.to_owned();
            return Err(FsError::Tag { tag });
        }
        let fields = tag
            .bytes()
            .chain(std::iter::repeat_n(0, TAG_LEN - tag.len()));
        let fields = fields.chain(1_u32.to_le_bytes());
        config
            .iter_mut()
            .zip(fields)
            .for_each(|(at, byte)| *at = byte);
        let watched = connection.try_clone();
        let watched = watched.map_err(|source| FsError::Connection {
            name: name.to_owned(),
            source,
        })?;
        Ok(Self {
            name: name.to_owned(),
            config,
            connection: watched,
            backend: Backend::new(connection, QUEUE_SIZES.len() as u64),
            running: None,
        })
    }

    /// Hands the queues over. When this fails the connection is closed, so that the watcher finds it
    /// so.
    fn lend(
        &mut self,
        queues: &[LentQueue],
        features: u64,
        memory: &GuestMemoryMmap,
        events: &EventLoopHandle,
        notifier: &DeviceNotifier,
    ) -> Result<(), BackendError> {
        let interrupt = notifier.lend_interrupt().ok_or(BackendError::NoEvent)?;
        self.in_time(events, |backend| {
            backend.start(features, memory, queues, &interrupt)
        })
    }

    /// Lets the back end answer within a bounded time; after that there is no connection any more.
    fn in_time<T>(
        &mut self,
        events: &EventLoopHandle,
        ask: impl FnOnce(&mut Backend) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let deadline = Deadline::new(&self.connection).map_err(BackendError::Timer)?;
        // Dropped at the end, which stops it.
        let _running = events.add(deadline).map_err(BackendError::EventLoop)?;
        ask(&mut self.backend)
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        device_type::FILE_SYSTEM
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let fields = self.config.get(from..).unwrap_or_default();
        for (byte, value) in data.iter_mut().zip(fields) {
            *byte = *value;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            features,
            queues,
            events,
            notifier,
        } = activation;
        let lent: Vec<_> = queues
            .into_iter()
            .map(|started| LentQueue {
                index: started.index,
                state: started.queue.into_state(),
                kick: started.kick,
            })
            .collect();
        if let Err(error) = self.lend(&lent, features, &memory, &events, &notifier) {
            notifier.needs_reset(&WithCauses(&error));
            // Nobody shall write to the queues that are served here from now on.
            self.backend.disconnect(&self.connection);
        }
        let failed = |source| ActivateError::Io {
            name: self.name.clone(),
            what: "the connection to its back end cannot be watched",
            source,
        };
        let connection = self.connection.try_clone().map_err(failed)?;
        let watch = Watch::new(connection, lent, memory, features, notifier);
        let watch = events.add(watch);
        let watch = watch.map_err(|source| ActivateError::EventLoop {
            name: self.name.clone(),
            source,
        })?;
        self.running = Some(Running { watch, events });
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<(u16, QueueState)> {
        let Some(Running { watch, events }) = self.running.take() else {
            return Vec::new();
        };
        let mut watch = match watch.remove() {
            Ok(watch) => watch,
            Err(error) => {
                log::error!("{}: its watcher cannot be stopped: {error}", self.name);
                self.backend.disconnect(&self.connection);
                return Vec::new();
            }
        };
        if !watch.is_orphaned() {
            let taken = self.in_time(&events, |backend| backend.stop(watch.lent()));
            match taken {
                Ok(states) => return states,
                Err(error) => {
                    log::warn!("{}: {}", self.name, WithCauses(&error));
                    self.backend.disconnect(&self.connection);
                }
            }
            watch.adopt();
        }
        watch.into_states()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Fs(FsState {})
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Fs(FsState {}) => Ok(()),
            _ => Err(RestoreError::WrongDevice {
                name: self.name.clone(),
            }),
        }
    }
}

/// Guest memory, shared by those who serve it.
type Memory = Arc<GuestMemoryMmap>;

#[cfg(test)]
mod tests;
