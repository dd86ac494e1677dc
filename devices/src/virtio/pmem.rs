//! The persistent memory device, section 5.19: tells its driver of an image that lies in guest
//! memory, where the guest reads it without asking anybody.
//!
//! Only images that nobody writes are given so. The host has mapped them read-only, and KVM lets the
//! guest only read them: a write becomes an access to a device at that address, which is [`ReadOnly`].

#![deny(clippy::indexing_slicing)]

use std::os::fd::AsRawFd;

use serde::{Deserialize, Serialize};

use super::chain::{Chain, ChainError};
use super::device::{
    ActivateError, Activation, DeviceNotifier, DeviceState, RestoreError, StartedQueue,
    VirtioDevice, WithCauses,
};
use super::queue::{Queue, QueueError, QueueState};
use super::spec::device_type;
use crate::bus::BusDevice;
use crate::event_loop::{Control, Handler, Interest, Registration, Source};
use crate::rate_limit::RateLimit;

/// Flush requests that the driver may have out.
const QUEUE_SIZES: [u16; 1] = [16];

/// `struct virtio_pmem_req`, section 5.19.6: its only field is the type.
const REQUEST_LEN: u32 = 4;
const TYPE_FLUSH: u32 = 0;
/// `struct virtio_pmem_resp`: its only field.
const RESPONSE_LEN: u32 = 4;
const RESPONSE_OK: u32 = 0;
const RESPONSE_EIO: u32 = 1;

/// The device: it has the address and the length of the image, and a queue for flushes.
pub struct Pmem {
    name: String,
    region: PmemState,
    worker: Option<Registration<Worker>>,
}

/// Where the image lies, which is all of the device's configuration.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct PmemState {
    /// Guest physical address of its first byte.
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
}

impl Pmem {
    /// A device that is called `name` in logs, for the image at `region`, which is in guest memory.
    pub fn new(name: &str, region: PmemState) -> Self {
        Self {
            name: name.to_owned(),
            region,
            worker: None,
        }
    }
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> u32 {
        device_type::PMEM
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
        let PmemState { start, size } = self.region;
        let fields = [start.to_le_bytes(), size.to_le_bytes()];
        let bytes = fields.as_flattened().get(offset as usize..);
        for (to, from) in data.iter_mut().zip(bytes.unwrap_or_default()) {
            *to = *from;
        }
    }

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
        DeviceState::Pmem(self.region)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Pmem(saved) = state else {
            return Err(RestoreError::WrongDevice {
                name: self.name.clone(),
            });
        };
        if *saved != self.region {
            let (PmemState { start, size }, own) = (*saved, self.region);
            return Err(RestoreError::Mismatch {
                name: self.name.clone(),
                what: format!(
                    "its image was {size} bytes at {start:#x}, and is {} bytes at {:#x}",
                    own.size, own.start
                ),
            });
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum PmemError {
    #[error("its queue cannot be served")]
    Queue(#[from] QueueError),
    #[error("a buffer cannot be reached")]
    Buffer(#[from] ChainError),
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
        if let Err(error) = self.queue.drain(answer) {
            self.notifier.needs_reset(&WithCauses(&error));
        }
    }
}

/// There is nothing to flush in what nobody can have changed.
fn answer(queue: &mut Queue, chain: Chain) -> Result<(), PmemError> {
    let mut request = [0; REQUEST_LEN as usize];
    let response = if chain.readable_len() < REQUEST_LEN {
        RESPONSE_EIO
    } else {
        chain.read_exact(queue.memory(), 0, &mut request)?;
        match u32::from_le_bytes(request) {
            TYPE_FLUSH => RESPONSE_OK,
            _ => RESPONSE_EIO,
        }
    };
    let room = chain.writable_len() >= RESPONSE_LEN;
    if room {
        chain.write_all(queue.memory(), 0, &response.to_le_bytes())?;
    }
    Ok(queue.complete(chain, if room { RESPONSE_LEN } else { 0 })?)
}

/// What answers the writes that KVM does not let the guest do: nobody, and a line in the log.
pub struct ReadOnly {
    name: String,
    limit: RateLimit,
}

impl ReadOnly {
    /// For the image that is called `name` in logs.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            limit: RateLimit::new(),
        }
    }
}

impl BusDevice for ReadOnly {
    // KVM reads the image itself, so nothing is ever read here.
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, offset: u64, _data: &[u8]) {
        self.limit.log(
            log::Level::Warn,
            format_args!(
                "{}: the guest's write to byte {offset:#x} is ignored: the image is read-only",
                self.name
            ),
        );
    }
}

#[cfg(test)]
mod tests;
