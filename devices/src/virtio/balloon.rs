//! The memory balloon device, section 5.5: gives memory that the guest does not use back to the host.
//!
//! The driver reports free pages by itself (free page reporting, section 5.5.6.8): that is how memory
//! comes back, and nobody has to ask for it. It can also put pages into the balloon, and take them
//! out, as drivers have always done; the host's wish is that there are none in it.

#![deny(clippy::indexing_slicing)]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::chain::{Chain, ChainError};
use super::device::{
    ActivateError, Activation, DeviceNotifier, DeviceState, RestoreError, StartedQueue,
    VirtioDevice, WithCauses,
};
use super::memory::is_writable;
use super::queue::{Queue, QueueError, QueueState};
use super::spec::device_type;
use crate::event_loop::{Control, Handler, Interest, Registration, Source};

/// Feature bits, section 5.5.3.
pub mod feature {
    /// The driver may take pages out of the balloon when it has no others.
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// The driver reports pages that are free.
    pub const PAGE_REPORTING: u64 = 1 << 5;
}

/// Queues: inflate, deflate, and free pages. Section 5.5.2 gives the last one number 4, but drivers
/// count only the queues that there are, and Linux is such a driver.
const QUEUE_SIZES: [u16; 3] = [16, 16, REPORTED];
const INFLATE: u16 = 0;
const REPORTING: u16 = 2;
/// Linux reports 32 ranges at once, and wants that many descriptors.
const REPORTED: u16 = 32;

/// Bytes of a page of the balloon's, whatever a page of the guest's is.
const PAGE: u64 = 4096;
/// Ranges of a report that are looked at, and page numbers of a chain. Whoever sends more keeps
/// them; the bound is on the time until other devices get their turn.
const MAX_RANGES: usize = 128;
const MAX_PAGES: u32 = 1024;

/// Bytes of `struct virtio_balloon_config` that are in use, and where `actual` is in it.
const CONFIG_LEN: usize = 8;
const ACTUAL: u64 = 4;

/// Who owns the guest's RAM, and can do without a part of it.
pub trait Discard: Send + Sync {
    /// Gives `len` bytes at `addr`, whole pages of RAM, back to the host. What the guest finds there
    /// next is zeros.
    ///
    /// # Errors
    /// The host refused.
    fn discard(&self, addr: GuestAddress, len: u64) -> io::Result<()>;
}

/// The device.
pub struct Balloon {
    name: String,
    owner: Arc<dyn Discard>,
    /// The pages that the driver says are in the balloon.
    actual: AtomicU32,
    worker: Option<Registration<Worker>>,
}

/// What a balloon has to remember.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BalloonState {
    /// The pages that the driver says are in it.
    pub actual: u32,
}

impl Balloon {
    /// A device that is called `name` in logs, for memory of `owner`'s.
    pub fn new(name: &str, owner: Arc<dyn Discard>) -> Self {
        Self {
            name: name.to_owned(),
            owner,
            actual: AtomicU32::new(0),
            worker: None,
        }
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        device_type::BALLOON
    }

    fn name(&self) -> &str {
        &self.name
    }

    /// PAGE_POISON is not among them: a driver that wants its free pages to keep a content does not
    /// report them then.
    fn features(&self) -> u64 {
        feature::DEFLATE_ON_OOM | feature::PAGE_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `num_pages`, the host's wish, is the first field.
        let mut config = [0; CONFIG_LEN];
        let actual = self.actual.load(Ordering::Relaxed).to_le_bytes();
        for (to, from) in config.iter_mut().skip(ACTUAL as usize).zip(actual) {
            *to = from;
        }
        let bytes = config.get(offset as usize..).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(bytes)) = (offset, data.try_into()) {
            let pages = u32::from_le_bytes(bytes);
            self.actual.store(pages, Ordering::Relaxed);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let worker = Worker {
            queues: activation.queues,
            owner: self.owner.clone(),
            reporting: activation.features & feature::PAGE_REPORTING != 0,
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
            Ok(worker) => worker
                .queues
                .into_iter()
                .map(|queue| (queue.index, queue.queue.into_state()))
                .collect(),
            Err(error) => {
                log::error!("{}: its worker cannot be stopped: {error}", self.name);
                Vec::new()
            }
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon(BalloonState {
            actual: self.actual.load(Ordering::Relaxed),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Balloon(BalloonState { actual }) = state else {
            return Err(RestoreError::WrongDevice {
                name: self.name.clone(),
            });
        };
        self.actual.store(*actual, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum BalloonError {
    #[error("a queue cannot be served")]
    Queue(#[from] QueueError),
    #[error("a buffer cannot be read")]
    Buffer(#[from] ChainError),
    #[error("page {page:#x} is not in RAM")]
    NotRam { page: u32 },
}

/// Serves the queues, on the event loop's thread.
struct Worker {
    queues: Vec<StartedQueue>,
    owner: Arc<dyn Discard>,
    reporting: bool,
    notifier: DeviceNotifier,
}

impl Handler for Worker {
    fn sources(&self) -> Vec<Source> {
        let kicks = self.queues.iter().map(|queue| Source {
            fd: queue.kick.as_raw_fd(),
            token: queue.index.into(),
            interest: Interest::READ,
        });
        kicks.collect()
    }

    fn ready(&mut self, token: u32, _control: &mut Control<'_>) {
        let mut queues = self.queues.iter_mut();
        let Some(started) = queues.find(|queue| u32::from(queue.index) == token) else {
            return;
        };
        let host = Host {
            owner: &*self.owner,
            notifier: &self.notifier,
        };
        let served = match started.index {
            INFLATE => started.drain(|queue, chain| host.inflate(queue, chain)),
            REPORTING if self.reporting => started.drain(|queue, chain| host.free(queue, chain)),
            // A page that is taken out of the balloon is there when it is touched.
            _ => started.drain(|queue, chain| Ok(queue.complete(chain, 0)?)),
        };
        if let Err(error) = served {
            self.notifier.needs_reset(&WithCauses(&error));
        }
    }
}

/// Gives memory back; what the host will not take stays where it is, and is no error of the guest's.
struct Host<'a> {
    owner: &'a dyn Discard,
    notifier: &'a DeviceNotifier,
}

impl Host<'_> {
    /// A report: each writable buffer of the chain is a range of free pages.
    fn free(&self, queue: &mut Queue, chain: Chain) -> Result<(), BalloonError> {
        for segment in chain.writable().iter().take(MAX_RANGES) {
            let (start, end) = (segment.addr.0, segment.addr.0 + u64::from(segment.len));
            // Only whole pages can go; drivers report no others.
            self.discard(start.next_multiple_of(PAGE), end / PAGE * PAGE);
        }
        Ok(queue.complete(chain, 0)?)
    }

    /// Page numbers, 32 bits each. Neighbours go together.
    fn inflate(&self, queue: &mut Queue, chain: Chain) -> Result<(), BalloonError> {
        let len = (chain.readable_len() / 4).min(MAX_PAGES) * 4;
        let mut numbers = vec![0; len as usize];
        chain.read_exact(queue.memory(), 0, &mut numbers)?;
        let mut run = 0..0;
        for number in numbers.chunks_exact(4) {
            let page = number.try_into().map_or(0, u32::from_le_bytes);
            let start = u64::from(page) * PAGE;
            if !is_ram(queue.memory(), start) {
                return Err(BalloonError::NotRam { page });
            }
            if start == run.end {
                run.end += PAGE;
            } else if start + PAGE == run.start {
                run.start -= PAGE;
            } else {
                self.discard(run.start, run.end);
                run = start..start + PAGE;
            }
        }
        self.discard(run.start, run.end);
        Ok(queue.complete(chain, 0)?)
    }

    fn discard(&self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Err(error) = self.owner.discard(GuestAddress(start), end - start) {
            let len = end - start;
            self.notifier.warn(&format_args!(
                "the host does not take back {len} bytes at {start:#x}: {error}"
            ));
        }
    }
}

fn is_ram(memory: &GuestMemoryMmap, page: u64) -> bool {
    let addr = GuestAddress(page);
    memory.check_range(addr, PAGE as usize) && is_writable(memory, addr, PAGE)
}

#[cfg(test)]
mod tests;
