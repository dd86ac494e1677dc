//! What each register does, section 4.2.2. Registers that are not named here read as 0 and ignore
//! writes, as those do that the transport has no use for.

use super::{Inner, MmioTransport};
use crate::virtio::device::WithCauses;
use crate::virtio::queue::QueueState;
use crate::virtio::spec::{mmio, status};

/// VendorID: "CASA" in memory.
const VENDOR: u32 = u32::from_le_bytes(*b"CASA");

impl MmioTransport {
    pub(super) fn read_register(&self, offset: u64) -> u32 {
        match offset {
            mmio::MAGIC_VALUE => {
                self.probed.note();
                mmio::MAGIC
            }
            mmio::VERSION => mmio::VERSION_MODERN,
            mmio::VENDOR_ID => VENDOR,
            mmio::INTERRUPT_STATUS => self.notifier.pending(),
            mmio::CONFIG_GENERATION => self.notifier.config_generation(),
            // There are no shared memory regions: a length of all ones says so.
            mmio::SHM_LEN_LOW | mmio::SHM_LEN_HIGH | mmio::SHM_BASE_LOW | mmio::SHM_BASE_HIGH => {
                u32::MAX
            }
            mmio::STATUS => {
                let needs_reset = if self.notifier.is_reset_needed() {
                    status::DEVICE_NEEDS_RESET
                } else {
                    0
                };
                self.lock().status | needs_reset
            }
            _ => self.lock().read_register(offset),
        }
    }

    pub(super) fn write_register(&self, offset: u64, value: u32) {
        match offset {
            mmio::QUEUE_NOTIFY => self.kick(value),
            mmio::INTERRUPT_ACK => self.notifier.acknowledge(value),
            mmio::STATUS => self.write_status(&mut self.lock(), value),
            mmio::QUEUE_READY => self.write_queue_ready(&mut self.lock(), value),
            _ => self.lock().write_register(offset, value),
        }
    }

    /// A queue that is ready has settings that were checked, and that stay as they are until it
    /// is made unready, which it cannot be once the driver has said DRIVER_OK.
    fn write_queue_ready(&self, inner: &mut Inner, value: u32) {
        if !inner.queues_may_change() {
            return;
        }
        let memory = std::sync::Arc::clone(&inner.memory);
        let Some(queue) = inner.selected() else {
            return;
        };
        match value {
            0 => queue.ready = false,
            1 if !queue.ready => match queue.validate(&memory) {
                Ok(()) => queue.ready = true,
                Err(error) => self.notifier.needs_reset(&WithCauses(&error)),
            },
            _ => {}
        }
    }
}

impl Inner {
    fn read_register(&mut self, offset: u64) -> u32 {
        match offset {
            mmio::DEVICE_ID => self.device.device_type(),
            mmio::DEVICE_FEATURES => half(self.offered_features(), self.device_features_sel),
            mmio::QUEUE_NUM_MAX => self.selected().map_or(0, |q| u32::from(q.max_size)),
            mmio::QUEUE_READY => self.selected().map_or(0, |q| u32::from(q.ready)),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            mmio::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            mmio::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            mmio::DRIVER_FEATURES => self.write_driver_features(value),
            mmio::QUEUE_SEL => self.queue_sel = value,
            _ => self.write_queue_setting(offset, value),
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        if !self.has(status::DRIVER) || self.has(status::FEATURES_OK) {
            return;
        }
        let features = &mut self.driver_features;
        match self.driver_features_sel {
            0 => set_low(features, value),
            1 => set_high(features, value),
            _ => self.unknown_features |= value != 0,
        }
    }

    fn write_queue_setting(&mut self, offset: u64, value: u32) {
        if !self.queues_may_change() {
            return;
        }
        let Some(queue) = self.selected().filter(|queue| !queue.ready) else {
            return;
        };
        match offset {
            mmio::QUEUE_NUM => {
                let size = u16::try_from(value).unwrap_or(0);
                let possible = size.is_power_of_two() && size <= queue.max_size;
                queue.size = if possible { size } else { 0 };
            }
            mmio::QUEUE_DESC_LOW => set_low(&mut queue.desc_table, value),
            mmio::QUEUE_DESC_HIGH => set_high(&mut queue.desc_table, value),
            mmio::QUEUE_DRIVER_LOW => set_low(&mut queue.avail_ring, value),
            mmio::QUEUE_DRIVER_HIGH => set_high(&mut queue.avail_ring, value),
            mmio::QUEUE_DEVICE_LOW => set_low(&mut queue.used_ring, value),
            mmio::QUEUE_DEVICE_HIGH => set_high(&mut queue.used_ring, value),
            _ => {}
        }
    }

    /// Queues are set up between FEATURES_OK and DRIVER_OK (section 3.1.1), and never after.
    fn queues_may_change(&self) -> bool {
        self.has(status::FEATURES_OK) && !self.has(status::DRIVER_OK)
    }

    fn selected(&mut self) -> Option<&mut QueueState> {
        self.queues.get_mut(self.queue_sel as usize)
    }
}

fn half(value: u64, which: u32) -> u32 {
    match which {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_low(value: &mut u64, low: u32) {
    *value = *value & !u64::from(u32::MAX) | u64::from(low);
}

fn set_high(value: &mut u64, high: u32) {
    *value = *value & u64::from(u32::MAX) | u64::from(high) << 32;
}
