//! virtio over MMIO, section 4.2: the registers, and the life of a device behind them.
//!
//! Modern devices only (version 2). A kick signals the queue's eventfd, whether KVM does it
//! (ioeventfd) or a write of QueueNotify that got here; the device's worker does the rest.

#![deny(clippy::indexing_slicing)]

mod registers;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::event_loop::EventLoopHandle;
use crate::first_time::FirstTime;
use crate::interrupt::Interrupt;
use crate::virtio::device::{
    ActivateError, Activation, DeviceNotifier, RestoreError, StartedQueue, VirtioDevice, WithCauses,
};
use crate::virtio::queue::{Queue, QueueState};
use crate::virtio::spec::{QUEUE_SIZE_LIMIT, feature, mmio, status};

pub use state::TransportState;

/// What every device offers beside its own features.
const TRANSPORT_FEATURES: u64 = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;

/// Why a transport cannot be made, saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The device asks for a queue size that the specification does not have.
    #[error("{name}: size {size} of queue {index} is not a power of two up to 32768")]
    QueueSize {
        /// The device.
        name: String,
        /// The queue.
        index: usize,
        /// Its size.
        size: u16,
    },
    /// No eventfd is to be had.
    #[error("{name}: an eventfd cannot be created")]
    EventFd {
        /// The device.
        name: String,
        /// The reason.
        source: std::io::Error,
    },
    /// A running queue's state did not come back, because its worker has ended.
    #[error("{name}: the state of queue {index} is lost, its worker has ended")]
    LostQueue {
        /// The device.
        name: String,
        /// The queue.
        index: usize,
    },
    /// The device runs; a state can only be put into one that does not.
    #[error("{name}: a running device cannot be restored")]
    Running {
        /// The device.
        name: String,
    },
    /// The state does not fit the device.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The device could not start.
    #[error(transparent)]
    Activate(#[from] ActivateError),
}

/// A device's registers, [`mmio::LENGTH`] bytes of the guest's address space.
///
/// There is one lock, `inner`, and nothing else is locked while it is held but by the device in
/// its own calls, which may wait for its workers. So workers never take it: they have the
/// notifier, and kicks reach them through eventfds.
pub struct MmioTransport {
    inner: Mutex<Inner>,
    notifier: DeviceNotifier,
    kicks: Vec<EventFd>,
    probed: FirstTime,
    driver_ok: FirstTime,
}

struct Inner {
    device: Box<dyn VirtioDevice>,
    memory: Arc<GuestMemoryMmap>,
    events: EventLoopHandle,
    /// Status bits that the driver has set and that were accepted.
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    /// The driver asked for feature bits from 64 up, none of which there is.
    unknown_features: bool,
    queue_sel: u32,
    queues: Vec<QueueState>,
    /// The device runs: it has the queues, and `queues` is what they were when it started.
    active: bool,
    /// The device must not start, whatever the driver does.
    paused: bool,
}

impl MmioTransport {
    /// Puts `device` behind registers. `interrupt` is the line that its driver listens to,
    /// `events` the loop that serves its queues.
    ///
    /// # Errors
    /// The device's queue sizes are not possible, or no file descriptor is to be had.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemoryMmap>,
        interrupt: Arc<dyn Interrupt>,
        events: EventLoopHandle,
    ) -> Result<Self, TransportError> {
        let name = device.name().to_owned();
        let mut queues = Vec::new();
        let mut kicks = Vec::new();
        for (index, &size) in device.queue_sizes().iter().enumerate() {
            if !size.is_power_of_two() || size > QUEUE_SIZE_LIMIT {
                return Err(TransportError::QueueSize { name, index, size });
            }
            queues.push(QueueState::new(size));
            let kick = EventFd::new(EFD_NONBLOCK);
            kicks.push(kick.map_err(|source| TransportError::EventFd {
                name: name.clone(),
                source,
            })?);
        }
        let inner = Inner {
            device,
            memory,
            events,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            unknown_features: false,
            queue_sel: 0,
            queues,
            active: false,
            paused: false,
        };
        Ok(Self {
            inner: Mutex::new(inner),
            notifier: DeviceNotifier::new(&name, interrupt),
            kicks,
            probed: FirstTime::default(),
            driver_ok: FirstTime::default(),
        })
    }

    /// One event for each queue, which tells its worker of new chains. Each is to be registered
    /// as an ioeventfd at [`mmio::QUEUE_NOTIFY`], 4 bytes wide, for a write of the queue's number.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.kicks
    }

    /// When a driver first looked whether there is a device: `CLOCK_MONOTONIC` in nanoseconds.
    pub fn probed_ns(&self) -> Option<u64> {
        self.probed.at_ns()
    }

    /// When a driver first said that it drives the device (DRIVER_OK), by the same clock.
    pub fn driver_ok_ns(&self) -> Option<u64> {
        self.driver_ok.at_ns()
    }

    /// The device's number in section 5, and its name.
    pub fn device(&self) -> (u32, String) {
        let inner = self.lock();
        (inner.device.device_type(), inner.device.name().to_owned())
    }

    /// A panic while the lock was held has ended the VM's thread; what is here then is at worst a
    /// device that does not run, and is still to be stopped in an orderly way.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kick(&self, index: u32) {
        // A full counter is a kick already; a queue that there is not has nobody to hear it.
        if let Some(kick) = self.kicks.get(index as usize) {
            let _ = kick.write(1);
        }
    }

    /// The status register was written, section 2.1 and 3.1.1. Bits can only be added, in the
    /// order in which the specification has them; a write of 0 resets the device.
    fn write_status(&self, inner: &mut Inner, value: u32) {
        if value == 0 {
            self.reset(inner);
            return;
        }
        if value & status::FAILED != 0 {
            inner.status |= status::FAILED;
        }
        let wants = |bit| value & bit != 0;
        if wants(status::ACKNOWLEDGE) {
            inner.status |= status::ACKNOWLEDGE;
        }
        if wants(status::DRIVER) && inner.has(status::ACKNOWLEDGE) {
            inner.status |= status::DRIVER;
        }
        if wants(status::FEATURES_OK) && inner.has(status::DRIVER) && inner.features_are_ok() {
            inner.status |= status::FEATURES_OK;
        }
        let starts = wants(status::DRIVER_OK) && !inner.has(status::DRIVER_OK);
        if starts && inner.has(status::FEATURES_OK) && !inner.has(status::FAILED) {
            inner.status |= status::DRIVER_OK;
            self.driver_ok.note();
            if let Err(error) = self.activate(inner) {
                self.notifier.needs_reset(&WithCauses(&error));
            }
        }
    }

    /// Starts the device if it is to run.
    fn activate(&self, inner: &mut Inner) -> Result<(), ActivateError> {
        let runs = inner.has(status::DRIVER_OK) && !self.notifier.is_reset_needed();
        if !runs || inner.paused || inner.active {
            return Ok(());
        }
        let name = inner.device.name().to_owned();
        let mut queues = Vec::new();
        let pairs = (0..).zip(inner.queues.iter_mut().zip(&self.kicks));
        for (index, (state, kick)) in pairs.filter(|(_, (state, _))| state.ready) {
            state.event_idx = inner.driver_features & feature::EVENT_IDX != 0;
            let memory = Arc::clone(&inner.memory);
            let notifier = self.notifier.clone();
            let queue = Queue::new(memory, state, inner.driver_features, notifier);
            let kick = kick.try_clone();
            queues.push(StartedQueue {
                index,
                queue: queue.map_err(|source| ActivateError::Queue {
                    name: name.clone(),
                    index,
                    source,
                })?,
                kick: kick.map_err(|source| ActivateError::Io {
                    name: name.clone(),
                    what: "the eventfd of a queue cannot be shared",
                    source,
                })?,
            });
        }
        inner.device.activate(Activation {
            memory: Arc::clone(&inner.memory),
            features: inner.driver_features,
            queues,
            events: inner.events.clone(),
            notifier: self.notifier.clone(),
        })?;
        inner.active = true;
        Ok(())
    }

    /// Back to what the device was before any driver, section 2.4.
    fn reset(&self, inner: &mut Inner) {
        if std::mem::take(&mut inner.active) {
            inner.device.deactivate();
        }
        inner.device.reset();
        for queue in &mut inner.queues {
            *queue = QueueState::new(queue.max_size);
        }
        inner.status = 0;
        inner.device_features_sel = 0;
        inner.driver_features_sel = 0;
        inner.driver_features = 0;
        inner.unknown_features = false;
        inner.queue_sel = 0;
        self.notifier.reset();
        for kick in &self.kicks {
            // Kicks of the driver that was there; an error means that there were none.
            let _ = kick.read();
        }
    }
}

impl Inner {
    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    /// Whether the device goes along with what the driver took, section 2.2 and 6.1.
    fn features_are_ok(&self) -> bool {
        let offered = self.driver_features & !self.offered_features() == 0;
        offered && !self.unknown_features && self.driver_features & feature::VERSION_1 != 0
    }
}

impl Drop for MmioTransport {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        if inner.active {
            inner.device.deactivate();
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(mmio::CONFIG) {
            if matches!(data.len(), 1 | 2 | 4 | 8) {
                self.lock().device.read_config(offset, data);
            }
        } else if offset.is_multiple_of(4)
            && let Ok(register) = <&mut [u8; 4]>::try_from(data)
        {
            *register = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(mmio::CONFIG) {
            let mut inner = self.lock();
            if matches!(data.len(), 1 | 2 | 4 | 8) && inner.has(status::DRIVER) {
                inner.device.write_config(offset, data);
            }
        } else if offset.is_multiple_of(4)
            && let Ok(register) = <[u8; 4]>::try_from(data)
        {
            self.write_register(offset, u32::from_le_bytes(register));
        }
    }
}

#[cfg(test)]
mod tests;
