//! The entropy device, section 5.4: fills the driver's buffers with bytes from getrandom(2).

#![deny(clippy::indexing_slicing)]

use std::io;
use std::os::fd::AsRawFd;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use super::chain::{Chain, ChainError};
use super::device::{
    ActivateError, Activation, DeviceNotifier, DeviceState, RestoreError, StartedQueue,
    VirtioDevice, WithCauses,
};
use super::queue::{Queue, QueueError, QueueState};
use super::spec::device_type;
use crate::event_loop::{Control, Handler, Interest, Registration, Source};

/// Chains that the driver may have out. A wakeup serves as many at most, so that it takes at most
/// `QUEUE_SIZE * MAX_BYTES` of entropy (256 KiB, under a millisecond) before others get their turn.
const QUEUE_SIZES: [u16; 1] = [16];

/// Most bytes for one chain. The device may use less of a buffer than there is of it.
const MAX_BYTES: u32 = 16 * 1024;

/// Bytes that are fetched and copied at once.
const PIECE: usize = 4096;

/// The device. It has no configuration and no features.
pub struct Rng {
    name: String,
    worker: Option<Registration<Worker>>,
}

/// An entropy device has nothing to remember.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct RngState {}

impl Rng {
    /// A device that is called `name` in logs.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            worker: None,
        }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        device_type::ENTROPY
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

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let requests = activation.queues.into_iter().find(|q| q.index == 0);
        let queue = requests.ok_or_else(|| ActivateError::MissingQueue {
            name: self.name.clone(),
            index: 0,
        })?;
        let worker = Worker {
            queue,
            notifier: activation.notifier,
        };
        let added = activation.events.add(worker);
        self.worker = Some(added.map_err(|source| ActivateError::EventLoop {
            name: self.name.clone(),
            source,
        })?);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<(u16, QueueState)> {
        let Some(worker) = self.worker.take() else {
            return Vec::new();
        };
        match worker.remove() {
            Ok(worker) => vec![(worker.queue.index, worker.queue.queue.into_state())],
            Err(error) => {
                log::error!("{}: its worker cannot be stopped: {error}", self.name);
                Vec::new()
            }
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng(RngState {})
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Rng(RngState {}) => Ok(()),
            _ => Err(RestoreError::WrongDevice {
                name: self.name.clone(),
            }),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum RngError {
    #[error("its queue cannot be served")]
    Queue(#[from] QueueError),
    #[error("a buffer cannot be filled")]
    Buffer(#[from] ChainError),
    #[error("the host gives no entropy")]
    Entropy(#[source] io::Error),
}

/// Serves the queue, on the event loop's thread.
struct Worker {
    queue: StartedQueue,
    notifier: DeviceNotifier,
}

impl Handler for Worker {
    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.queue.kick.as_raw_fd(),
            token: 0,
            interest: Interest::READ,
        }]
    }

    fn ready(&mut self, _token: u32, _control: &mut Control<'_>) {
        if let Err(error) = self.queue.drain(fill) {
            self.notifier.needs_reset(&WithCauses(&error));
        }
    }
}

fn fill(queue: &mut Queue, chain: Chain) -> Result<(), RngError> {
    let wanted = chain.writable_len().min(MAX_BYTES);
    let mut piece = [0; PIECE];
    let mut done = 0;
    while done < wanted {
        let len = PIECE.min((wanted - done) as usize);
        let bytes = piece.get_mut(..len).unwrap_or_default();
        fetch(bytes)?;
        chain.write_all(queue.memory(), done, bytes)?;
        done += len as u32; // at most PIECE
    }
    Ok(queue.complete(chain, wanted)?)
}

fn fetch(mut bytes: &mut [u8]) -> Result<(), RngError> {
    while !bytes.is_empty() {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(got) => bytes = bytes.get_mut(got..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(RngError::Entropy(error.into())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
