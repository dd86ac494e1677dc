//! What all queues of a device have in common while it runs. It has no lock: the control queue sets it, and
//! the others look.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use super::MacAddress;
use super::backend::Offloads;
use super::link::LinkState;
use super::traffic::Traffic;
use crate::rate_limit::RateLimit;
use crate::virtio::device::{DeviceNotifier, WithCauses};

/// Bits of [`Filter`]'s mode.
pub(super) mod mode {
    pub const PROMISCUOUS: u8 = 1;
    pub const ALL_MULTICAST: u8 = 1 << 1;
    pub const ALL_UNICAST: u8 = 1 << 2;
    pub const NO_MULTICAST: u8 = 1 << 3;
    pub const NO_UNICAST: u8 = 1 << 4;
    pub const NO_BROADCAST: u8 = 1 << 5;
}

/// What the driver wants to receive, by destination address. It is as exact as a network card's, which the
/// specification allows (section 5.1.6.5.1): tables of addresses are kept as 64 bits of hashes.
#[derive(Debug)]
pub(super) struct Filter {
    mode: AtomicU8,
    mac: AtomicU64,
    unicast: AtomicU64,
    multicast: AtomicU64,
}

/// A filter as it is saved.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct FilterState {
    /// The address that the driver has set, or was given.
    pub mac: MacAddress,
    /// Receive modes.
    pub mode: u8,
    /// Hashes of further unicast addresses.
    pub unicast: u64,
    /// Hashes of multicast addresses.
    pub multicast: u64,
}

impl FilterState {
    /// That of a device that was reset: until a driver says otherwise it gets everything but other
    /// machines' frames.
    pub fn new(mac: MacAddress) -> Self {
        Self {
            mac,
            mode: mode::ALL_MULTICAST,
            unicast: 0,
            multicast: 0,
        }
    }
}

impl Filter {
    pub fn new(state: &FilterState) -> Self {
        Self {
            mode: AtomicU8::new(state.mode),
            mac: AtomicU64::new(number(state.mac.0)),
            unicast: AtomicU64::new(state.unicast),
            multicast: AtomicU64::new(state.multicast),
        }
    }

    pub fn state(&self) -> FilterState {
        let [_, _, mac @ ..] = self.mac.load(Relaxed).to_be_bytes();
        FilterState {
            mac: MacAddress(mac),
            mode: self.mode.load(Relaxed),
            unicast: self.unicast.load(Relaxed),
            multicast: self.multicast.load(Relaxed),
        }
    }

    pub fn set_mode(&self, bit: u8, on: bool) {
        if on {
            self.mode.fetch_or(bit, Relaxed);
        } else {
            self.mode.fetch_and(!bit, Relaxed);
        }
    }

    pub fn set_mac(&self, mac: MacAddress) {
        self.mac.store(number(mac.0), Relaxed);
    }

    pub fn set_tables(&self, unicast: u64, multicast: u64) {
        self.unicast.store(unicast, Relaxed);
        self.multicast.store(multicast, Relaxed);
        // Now the driver has said which ones it wants.
        self.set_mode(mode::ALL_MULTICAST, false);
    }

    /// Whether a frame that starts with `head` is for the driver.
    pub fn accepts(&self, head: &[u8]) -> bool {
        let Some(&to) = head.first_chunk::<6>() else {
            return false;
        };
        let mode = self.mode.load(Relaxed);
        let is = |bit| mode & bit != 0;
        if is(mode::PROMISCUOUS) {
            return true;
        }
        if to == [0xff; 6] {
            return !is(mode::NO_BROADCAST);
        }
        if to[0] & 1 != 0 {
            let listed = self.multicast.load(Relaxed) & hash_bit(to) != 0;
            return !is(mode::NO_MULTICAST) && (is(mode::ALL_MULTICAST) || listed);
        }
        let listed = || self.unicast.load(Relaxed) & hash_bit(to) != 0;
        let own = self.mac.load(Relaxed) == number(to);
        !is(mode::NO_UNICAST) && (own || is(mode::ALL_UNICAST) || listed())
    }
}

/// The bit that stands for an address in a table.
pub(super) fn hash_bit(address: [u8; 6]) -> u64 {
    // Fibonacci hashing: the top six bits of a product with 2^64 divided by the golden ratio.
    let product = number(address).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    1 << (product >> 58)
}

fn number(address: [u8; 6]) -> u64 {
    let bytes = address.iter();
    bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// All of it.
#[derive(Debug)]
pub(super) struct Shared {
    /// The device's name, for messages.
    pub name: String,
    pub notifier: DeviceNotifier,
    pub link: LinkState,
    pub traffic: Arc<Traffic>,
    pub filter: Filter,
    /// What was negotiated.
    pub features: u64,
    /// What the driver may ask of the device.
    pub from_guest: Offloads,
    /// What the driver takes now, as bits of [`Offloads`].
    pub to_guest: AtomicU8,
    /// Queue pairs that the driver uses, from the first on.
    pub active_pairs: AtomicU16,
    pub limit: RateLimit,
}

impl Shared {
    pub fn to_guest(&self) -> Offloads {
        Offloads::from_bits(self.to_guest.load(Relaxed))
    }

    pub fn active_pairs(&self) -> u16 {
        self.active_pairs.load(Relaxed)
    }

    /// The other end has gone: the link is down for good, and that is said once.
    pub fn closed(&self, error: &io::Error) {
        if self.link.close(&error.to_string()) {
            log::warn!(
                "{}: the other end has gone, the guest's link is down from now on: {error}",
                self.name
            );
        }
    }

    /// A frame of the guest's was not sent.
    pub fn refused(&self, error: &dyn std::error::Error) {
        let level = log::Level::Debug;
        let error = WithCauses(error);
        self.limit
            .log(level, format_args!("{}: {error}", self.name));
    }
}
