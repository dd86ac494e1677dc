//! How a transport and its device are saved and go on elsewhere.

use serde::{Deserialize, Serialize};

use super::{Inner, MmioTransport, TransportError};
use crate::virtio::device::{DeviceState, RestoreError};
use crate::virtio::queue::QueueState;
use crate::virtio::spec::{feature, interrupt, status};

/// All that a driver can see of a device, and what the device itself has to know.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct TransportState {
    /// The device's number in section 5.
    pub device_type: u32,
    /// Status bits that the driver has set.
    pub status: u32,
    /// DEVICE_NEEDS_RESET.
    pub needs_reset: bool,
    /// DeviceFeaturesSel.
    pub device_features_sel: u32,
    /// DriverFeaturesSel.
    pub driver_features_sel: u32,
    /// Features that the driver took.
    pub driver_features: u64,
    /// The driver asked for features from bit 64 up.
    pub unknown_features: bool,
    /// QueueSel.
    pub queue_sel: u32,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
    /// The queues.
    pub queues: Vec<QueueState>,
    /// The device's own state.
    pub device: DeviceState,
}

impl MmioTransport {
    /// Stops the device, once what is in flight has finished, and returns all of its state. It
    /// stays stopped until [`MmioTransport::resume`].
    ///
    /// # Errors
    /// A worker has ended, and its queue's state with it.
    pub fn save(&self) -> Result<TransportState, TransportError> {
        let inner = &mut *self.lock();
        inner.paused = true;
        if std::mem::take(&mut inner.active) {
            inner.take_back_queues()?;
        }
        Ok(TransportState {
            device_type: inner.device.device_type(),
            status: inner.status,
            needs_reset: self.notifier.is_reset_needed(),
            device_features_sel: inner.device_features_sel,
            driver_features_sel: inner.driver_features_sel,
            driver_features: inner.driver_features,
            unknown_features: inner.unknown_features,
            queue_sel: inner.queue_sel,
            interrupt_status: self.notifier.pending(),
            config_generation: self.notifier.config_generation(),
            queues: inner.queues.clone(),
            device: inner.device.save(),
        })
    }

    /// Puts a saved state into a device that does not run. It runs from
    /// [`MmioTransport::resume`] on, if it ran when it was saved.
    ///
    /// # Errors
    /// The device runs, or the state is not valid or not for this device; nothing has changed
    /// then.
    pub fn restore(&self, state: &TransportState) -> Result<(), TransportError> {
        let inner = &mut *self.lock();
        if inner.active {
            let name = inner.device.name().to_owned();
            return Err(TransportError::Running { name });
        }
        inner.check(state)?;
        inner.device.restore(&state.device)?;
        inner.paused = true;
        inner.status = state.status;
        inner.device_features_sel = state.device_features_sel;
        inner.driver_features_sel = state.driver_features_sel;
        inner.driver_features = state.driver_features;
        inner.unknown_features = state.unknown_features;
        inner.queue_sel = state.queue_sel;
        inner.queues.clone_from(&state.queues);
        let (pending, generation) = (state.interrupt_status, state.config_generation);
        self.notifier
            .restore(pending, generation, state.needs_reset);
        Ok(())
    }

    /// Lets a device run that was saved or restored.
    ///
    /// Its driver is interrupted and its queues are kicked once, whether it is needed or not: an
    /// edge or a kick that was on its way when the state was taken is not part of the state.
    ///
    /// # Errors
    /// The device cannot start; it needs a reset then, as its driver is told.
    pub fn resume(&self) -> Result<(), TransportError> {
        let inner = &mut *self.lock();
        inner.paused = false;
        if !inner.has(status::DRIVER_OK) {
            return Ok(());
        }
        if let Err(error) = self.activate(inner) {
            self.notifier.needs_reset(&error);
            return Err(error.into());
        }
        for index in 0..inner.queues.len() as u32 {
            self.kick(index);
        }
        self.notifier.buffers_used();
        Ok(())
    }
}

impl Inner {
    fn take_back_queues(&mut self) -> Result<(), TransportError> {
        let mut returned = self.device.deactivate();
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if !queue.ready {
                continue;
            }
            let at = returned.iter().position(|(i, _)| usize::from(*i) == index);
            let Some(at) = at else {
                let name = self.device.name().to_owned();
                return Err(TransportError::LostQueue { name, index });
            };
            *queue = returned.swap_remove(at).1;
        }
        Ok(())
    }

    /// A saved state comes from a file, which anybody may have written: it is checked as what a
    /// driver writes is.
    fn check(&self, state: &TransportState) -> Result<(), RestoreError> {
        let name = self.device.name();
        let mismatch = |what: String| RestoreError::Mismatch {
            name: name.to_owned(),
            what,
        };
        if state.device_type != self.device.device_type() {
            return Err(RestoreError::WrongDevice {
                name: name.to_owned(),
            });
        }
        if !is_reachable(state.status) {
            return Err(mismatch(format!("status {:#x}", state.status)));
        }
        let alien = state.driver_features & !self.offered_features();
        let negotiated = state.status & status::FEATURES_OK != 0;
        let modern = state.driver_features & feature::VERSION_1 != 0 && !state.unknown_features;
        if negotiated && (alien != 0 || !modern) {
            let features = state.driver_features;
            return Err(mismatch(format!("features {features:#x}")));
        }
        if state.interrupt_status & !(interrupt::USED_BUFFER | interrupt::CONFIG_CHANGE) != 0 {
            let pending = state.interrupt_status;
            return Err(mismatch(format!("interrupt status {pending:#x}")));
        }
        if state.queues.len() != self.queues.len() {
            let (saved, here) = (state.queues.len(), self.queues.len());
            return Err(mismatch(format!("{saved} queues instead of {here}")));
        }
        for (index, (queue, own)) in state.queues.iter().zip(&self.queues).enumerate() {
            if queue.max_size != own.max_size || queue.ready && !negotiated {
                return Err(mismatch(format!("settings of queue {index}")));
            }
            if queue.ready {
                let valid = queue.validate(&self.memory);
                valid.map_err(|source| RestoreError::Queue {
                    name: name.to_owned(),
                    index,
                    source,
                })?;
            }
        }
        Ok(())
    }
}

/// Whether a driver can get the status register to this value.
fn is_reachable(value: u32) -> bool {
    let steps = [
        status::ACKNOWLEDGE,
        status::DRIVER,
        status::FEATURES_OK,
        status::DRIVER_OK,
    ];
    let mut reached = 0;
    steps.into_iter().any(|step| {
        let here = value & !status::FAILED == reached;
        reached |= step;
        here
    }) || value & !status::FAILED == reached
}
