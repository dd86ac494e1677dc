//! An address space of devices: which one answers at an address.

use std::fmt;
use std::sync::Arc;

/// A device that answers reads and writes of a range of addresses.
///
/// The guest chooses offset and width, so every combination has to be harmless. `offset` is less
/// than the length of the range, `offset + data.len()` never exceeds it.
pub trait BusDevice: Send + Sync {
    /// Fills `data`, which the bus has zeroed.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A range that cannot be put on the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The range has no addresses, or runs past the last address.
    #[error("{name} cannot have {len:#x} bytes at {base:#x}: the range is empty or too long")]
    BadRange {
        /// The device's name.
        name: String,
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Two devices would answer for the same address.
    #[error("{name} at {base:#x} overlaps {other} at {other_base:#x}")]
    Overlap {
        /// The device that was to be added.
        name: String,
        /// Its first address.
        base: u64,
        /// The device that is there.
        other: String,
        /// Its first address.
        other_base: u64,
    },
}

struct Range {
    base: u64,
    /// Last address, inclusive, so that a range may end at the top of the address space.
    last: u64,
    name: String,
    device: Arc<dyn BusDevice>,
}

/// Devices sorted by address. It is built once and then only read, so that the way from a VM exit
/// to a device takes no lock.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<Range>,
}

impl Bus {
    /// Lets `device` answer for the `len` addresses from `base`.
    ///
    /// # Errors
    /// The range is empty, runs past the last address, or overlaps one that is there.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        name: &str,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|last| base.checked_add(last))
            .ok_or_else(|| BusError::BadRange {
                name: name.to_owned(),
                base,
                len,
            })?;
        let overlapping = |range: &&Range| range.base <= last && base <= range.last;
        if let Some(other) = self.ranges.iter().find(overlapping) {
            return Err(BusError::Overlap {
                name: name.to_owned(),
                base,
                other: other.name.clone(),
                other_base: other.base,
            });
        }
        let at = self.ranges.partition_point(|range| range.base < base);
        self.ranges.insert(
            at,
            Range {
                base,
                last,
                name: name.to_owned(),
                device,
            },
        );
        Ok(())
    }

    /// Reads from the device at `addr`. False if there is none, or if the access runs past its
    /// end; `data` is then all ones, as on a bus that nobody drives.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        if let Some((range, offset)) = self.find(addr, data.len()) {
            data.fill(0);
            range.device.read(offset, data);
            return true;
        }
        data.fill(0xff);
        false
    }

    /// Writes to the device at `addr`. False if there is none, or if the access runs past its end.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        let Some((range, offset)) = self.find(addr, data.len()) else {
            return false;
        };
        range.device.write(offset, data);
        true
    }

    fn find(&self, addr: u64, len: usize) -> Option<(&Range, u64)> {
        let after = self.ranges.partition_point(|range| range.base <= addr);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        let last = addr.checked_add((len as u64).checked_sub(1)?)?;
        (last <= range.last).then_some((range, addr - range.base))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.ranges.iter().map(|range| {
                let name = &range.name;
                (
                    name,
                    format_args!("{:#x}..={:#x}", range.base, range.last).to_string(),
                )
            }))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Mutex;

    /// Answers reads with the low byte of each offset and keeps what was written.
    #[derive(Default)]
    struct Echo(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            for (byte, at) in data.iter_mut().zip(offset..) {
                *byte = at as u8;
            }
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn accesses_reach_the_device_with_its_own_offsets() {
        let echo = Arc::new(Echo::default());
        let mut bus = Bus::default();
        bus.insert(0x2000, 0x100, "high", Arc::new(Echo::default()))
            .unwrap();
        bus.insert(0x1000, 0x100, "low", echo.clone()).unwrap();

        let mut data = [0; 4];
        assert!(bus.read(0x1010, &mut data));
        assert_eq!(data, [0x10, 0x11, 0x12, 0x13]);
        assert!(bus.write(0x10ff, &[7]));
        assert_eq!(*echo.0.lock().unwrap(), [(0xff, vec![7])]);
    }

    #[test]
    fn holes_and_accesses_past_the_end_read_as_ones() {
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x10, "device", Arc::new(Echo::default()))
            .unwrap();
        for addr in [0, 0xfff, 0x100e, 0x1010, u64::MAX, u64::MAX - 1] {
            let mut data = [0; 4];
            assert!(!bus.read(addr, &mut data), "{addr:#x}");
            assert_eq!(data, [0xff; 4]);
            assert!(!bus.write(addr, &data));
        }
        assert!(!bus.write(0x1000, &[]));
    }

    #[test]
    fn empty_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::default();
        for (base, len) in [(0x1000, 0), (u64::MAX, 2), (2, u64::MAX)] {
            let error = bus.insert(base, len, "bad", Arc::new(Echo::default()));
            assert!(matches!(error, Err(BusError::BadRange { .. })));
        }
        bus.insert(u64::MAX, 1, "top", Arc::new(Echo::default()))
            .unwrap();
        assert!(bus.write(u64::MAX, &[1]));
    }

    proptest! {
        /// However ranges are inserted, none that was accepted overlaps another, and each address
        /// is answered by the one range that holds it.
        #[test]
        fn no_address_has_two_devices(wanted in prop::collection::vec((0u64..64, 0u64..16), 0..20)) {
            let mut bus = Bus::default();
            let mut owners = [0_u32; 96];
            for (base, len) in wanted {
                if bus.insert(base, len, "device", Arc::new(Echo::default())).is_ok() {
                    for owner in &mut owners[base as usize..(base + len) as usize] {
                        *owner += 1;
                    }
                }
            }
            for (addr, owner) in owners.into_iter().enumerate() {
                prop_assert!(owner <= 1);
                prop_assert_eq!(bus.write(addr as u64, &[0]), owner == 1);
            }
        }
    }
}
