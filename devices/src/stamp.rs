//! Casita's own port device: the guest's agent says how far the boot has come, and what its
//! command's exit status was.
//!
//! A guest needs nothing but `outb` and `outl` for it, so it works from the first instruction to
//! the last, and costs one exit each time. Misuse harms nobody: the list of stamps is bounded, and
//! a status is only a number that the monitor reports.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;

/// First I/O port of the device.
pub const PORT: u64 = 0x6c0;
/// Number of ports.
pub const LEN: u64 = 8;
/// Offset from [`PORT`] of the stage register: an 8-bit write records the stage with its time.
pub const STAGE: u64 = 0;
/// Offset from [`PORT`] of the exit status register: a 32-bit little-endian write.
pub const EXIT_STATUS: u64 = 4;
/// The number of stamps that are kept. Later ones are dropped.
pub const CAPACITY: usize = 64;

/// Set above the 32 status bits once a guest has written a status.
const STATUS_PRESENT: u64 = 1 << 32;

/// One stage that the guest reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The number that the guest wrote; its meaning is the agent's.
    pub stage: u8,
    /// The host's `CLOCK_MONOTONIC` at the write, in nanoseconds.
    pub at_ns: u64,
}

impl Stamp {
    /// The time of the stamp as a duration since the clock's start.
    pub fn at(&self) -> Duration {
        Duration::from_nanos(self.at_ns)
    }
}

/// The device. Both registers read as zero.
#[derive(Default)]
pub struct StampDevice {
    stamps: Mutex<Vec<Stamp>>,
    exit_status: AtomicU64,
    /// Told when the guest first tells a status.
    on_end: Option<Box<dyn Fn() + Send + Sync>>,
}

impl StampDevice {
    /// A device without stamps and without a status.
    pub fn new() -> Self {
        Self::default()
    }

    /// A device that calls `on_end` on the vCPU's thread when the guest tells an exit status: once,
    /// however often it does.
    pub fn with_end(on_end: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            on_end: Some(Box::new(on_end)),
            ..Self::default()
        }
    }

    /// The first [`CAPACITY`] stamps, in the order in which they were written.
    pub fn stamps(&self) -> Vec<Stamp> {
        self.stamps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The status that the guest wrote last, or `None` if it never wrote one.
    pub fn exit_status(&self) -> Option<u32> {
        let value = self.exit_status.load(Ordering::Acquire);
        (value & STATUS_PRESENT != 0).then_some(value as u32)
    }

    fn record(&self, stage: u8) {
        let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        if stamps.len() >= CAPACITY {
            return;
        }
        stamps.push(Stamp {
            stage,
            at_ns: monotonic_ns(),
        });
    }

    fn set_exit_status(&self, status: u32) {
        let value = STATUS_PRESENT | u64::from(status);
        let before = self.exit_status.swap(value, Ordering::AcqRel);
        if let (0, Some(on_end)) = (before & STATUS_PRESENT, &self.on_end) {
            on_end();
        }
    }
}

impl BusDevice for StampDevice {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (STAGE, &[stage]) => self.record(stage),
            (EXIT_STATUS, &[a, b, c, d]) => self.set_exit_status(u32::from_le_bytes([a, b, c, d])),
            _ => {}
        }
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds: the clock to compare a [`Stamp`] with.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_once_however_often_a_status_is_written() {
        let ends = std::sync::Arc::new(AtomicU64::new(0));
        let counted = ends.clone();
        let device = StampDevice::with_end(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        device.write(STAGE, &[0x10]);
        assert_eq!(ends.load(Ordering::Relaxed), 0);
        for _ in 0..100 {
            device.write(EXIT_STATUS, &7_u32.to_le_bytes());
        }
        assert_eq!(ends.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn stages_are_recorded_in_order_with_a_rising_clock() {
        let device = StampDevice::new();
        let before = monotonic_ns();
        device.write(STAGE, &[3]);
        device.write(STAGE, &[1]);
        let after = monotonic_ns();
        let stamps = device.stamps();
        let stages: Vec<u8> = stamps.iter().map(|stamp| stamp.stage).collect();
        assert_eq!(stages, [3, 1]);
        assert!(before <= stamps[0].at_ns);
        assert!(stamps[0].at_ns <= stamps[1].at_ns);
        assert!(stamps[1].at_ns <= after);
    }

    #[test]
    fn stamps_past_the_capacity_are_dropped() {
        let device = StampDevice::new();
        for round in 0..=255u8 {
            device.write(STAGE, &[round]);
        }
        assert_eq!(device.stamps().len(), CAPACITY);
        assert_eq!(device.stamps()[CAPACITY - 1].stage, 63);
    }

    #[test]
    fn a_status_of_zero_differs_from_no_status() {
        let device = StampDevice::new();
        assert_eq!(device.exit_status(), None);
        device.write(EXIT_STATUS, &0u32.to_le_bytes());
        assert_eq!(device.exit_status(), Some(0));
        device.write(EXIT_STATUS, &u32::MAX.to_le_bytes());
        assert_eq!(device.exit_status(), Some(u32::MAX));
    }

    #[test]
    fn other_widths_and_offsets_change_nothing() {
        let device = StampDevice::new();
        for offset in 0..LEN {
            device.write(offset, &[]);
            device.write(offset, &[1, 2]);
        }
        device.write(STAGE, &[1, 2, 3, 4]);
        device.write(EXIT_STATUS, &[1]);
        assert!(device.stamps().is_empty());
        assert_eq!(device.exit_status(), None);
        let mut data = [0xaa; 4];
        device.read(EXIT_STATUS, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
