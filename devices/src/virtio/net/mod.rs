//! The network device, section 5.1: frames between the guest and a back end of the host's.
//!
//! A frame stays where the guest has put it; what is copied, once, are its header and its first bytes
//! ([`backend::HEAD_LEN`]), so that nobody who looks at them can be shown something else than what is
//! sent.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod backend;
mod control;
mod features;
pub mod header;
pub mod layout;
mod link;
mod mac;
mod pair;
pub mod pieces;
mod rx;
mod shared;
mod start;
pub mod stream;
pub mod tap;
mod traffic;
mod tx;
mod vector;
pub mod vhost;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes;

use self::backend::{Abilities, Backend, Offloads};
use self::layout::{ConfigSpace, F_MQ, F_MTU, S_LINK_UP};
use self::start::{Ends, Running};
use self::vhost::VhostPair;
use super::device::{ActivateError, Activation, DeviceState, RestoreError, VirtioDevice};
use super::queue::QueueState;
use super::spec::device_type;
use crate::token_bucket::Rate;

pub use link::LinkState;
pub use mac::{MacAddress, MacError};
pub use shared::FilterState;
pub use traffic::{Counters, Traffic};

/// The most queue pairs of a device.
pub const MAX_QUEUE_PAIRS: usize = 8;
/// The largest queue size.
pub const MAX_QUEUE_SIZE: u16 = 1024;
/// Entries of the control queue.
const CONTROL_QUEUE_SIZE: u16 = 64;
/// Ethernet's MTU, which holds where none is said.
const DEFAULT_MTU: u16 = 1500;
/// The smallest MTU: what each host on the Internet has to take (RFC 791).
pub const MIN_MTU: u16 = 68;
/// The largest MTU: with an Ethernet header the frame has a length of 16 bits.
pub const MAX_MTU: u16 = 65_520;

/// A network device's settings, beside its back ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The address that the guest's driver is to use.
    pub mac: MacAddress,
    /// What the guest's interface takes as its MTU, from [`MIN_MTU`] to [`MAX_MTU`]; without it, Ethernet's
    /// 1500.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Entries in each queue: a power of two from 2 to [`MAX_QUEUE_SIZE`].
    #[serde(default = "NetConfig::default_queue_size")]
    pub queue_size: u16,
    /// A thread of its own for each queue pair, instead of the thread that all devices share.
    #[serde(default)]
    pub dedicated_thread: bool,
    /// The most that goes through it, in each direction.
    #[serde(default)]
    pub rate: Option<Rate>,
}

impl NetConfig {
    /// A device with this address, and everything else as it usually is.
    pub fn new(mac: MacAddress) -> Self {
        Self {
            mac,
            mtu: None,
            queue_size: Self::default_queue_size(),
            dedicated_thread: false,
            rate: None,
        }
    }

    const fn default_queue_size() -> u16 {
        256
    }
}

/// Why there is no such device.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetError {
    /// The MTU is not possible.
    #[error("{name}: an MTU of {mtu} is not possible; it is from {MIN_MTU} to {MAX_MTU}")]
    Mtu {
        /// The device.
        name: String,
        /// What was asked for.
        mtu: u16,
    },
    /// The queue size is not possible.
    #[error(
        "{name}: a queue size of {size} is not possible; it is a power of two from 2 to {MAX_QUEUE_SIZE}"
    )]
    QueueSize {
        /// The device.
        name: String,
        /// What was asked for.
        size: u16,
    },
    /// No or too many queue pairs.
    #[error("{name}: {count} queue pairs are not possible; they are from 1 to {MAX_QUEUE_PAIRS}")]
    QueuePairs {
        /// The device.
        name: String,
        /// How many back ends there are.
        count: usize,
    },
    /// The host's kernel serves the queues, and knows no limits.
    #[error(
        "{name}: traffic that the host's kernel serves (vhost-net) cannot be limited; switch one of both off"
    )]
    RateWithVhost {
        /// The device.
        name: String,
    },
}

/// What a driver has told the device, and what is saved of it, beside its queues.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct NetState {
    /// The MAC address in configuration space.
    pub mac: MacAddress,
    /// The MTU in configuration space.
    pub mtu: Option<u16>,
    /// Queue pairs that there are.
    pub queue_pairs: u16,
    /// What a driver has told; None if none has.
    pub told: Option<Told>,
}

/// What a driver tells by the control queue.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    /// What it wants to receive.
    pub filter: FilterState,
    /// Offloads that it takes, as bits.
    pub to_guest: u8,
    /// Queue pairs that it uses.
    pub active_pairs: u16,
}

/// The device.
pub struct Net {
    name: String,
    config: NetConfig,
    abilities: Abilities,
    queue_sizes: Vec<u16>,
    ends: Ends,
    told: Option<Told>,
    running: Option<Running>,
    link: LinkState,
    traffic: Arc<Traffic>,
}

impl Net {
    /// A device called `name` in logs, with a queue pair for each back end.
    ///
    /// # Errors
    /// `config` asks for what the device cannot do.
    pub fn new(
        name: &str,
        config: &NetConfig,
        backends: Vec<Box<dyn Backend>>,
    ) -> Result<Self, NetError> {
        check_config(name, config, backends.len())?;
        let abilities = common(backends.iter().map(Backend::abilities));
        Ok(Self::with_ends(
            name,
            config,
            abilities,
            backends.len(),
            Ends::Here(backends.into_iter().map(Some).collect()),
        ))
    }

    /// A device whose queue pairs the host's kernel serves. What goes through it is not counted in
    /// [`Net::traffic`].
    ///
    /// # Errors
    /// `config` asks for what the device cannot do.
    pub fn with_vhost(
        name: &str,
        config: &NetConfig,
        pairs: Vec<VhostPair>,
    ) -> Result<Self, NetError> {
        check_config(name, config, pairs.len())?;
        if config.rate.is_some() {
            let name = name.to_owned();
            return Err(NetError::RateWithVhost { name });
        }
        let abilities = common(pairs.iter().map(|pair| pair.tap().abilities()));
        Ok(Self::with_ends(
            name,
            config,
            abilities,
            pairs.len(),
            Ends::Kernel(pairs.into_iter().map(Some).collect()),
        ))
    }

    fn with_ends(
        name: &str,
        config: &NetConfig,
        abilities: Abilities,
        pairs: usize,
        ends: Ends,
    ) -> Self {
        let mut queue_sizes = vec![config.queue_size; 2 * pairs];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        Self {
            name: name.to_owned(),
            config: config.clone(),
            abilities,
            queue_sizes,
            ends,
            told: None,
            running: None,
            link: LinkState::default(),
            traffic: Arc::default(),
        }
    }

    /// The hold on its link.
    pub fn link(&self) -> LinkState {
        self.link.clone()
    }

    /// What has gone through it.
    pub fn traffic(&self) -> Arc<Traffic> {
        self.traffic.clone()
    }

    /// Queue pairs that there are.
    fn pairs(&self) -> u16 {
        (self.queue_sizes.len() / 2) as u16 // at most MAX_QUEUE_PAIRS
    }

    fn config_space(&self) -> ConfigSpace {
        ConfigSpace {
            mac: self.config.mac.0,
            status: if self.link.is_up() { S_LINK_UP } else { 0 }.into(),
            max_virtqueue_pairs: self.pairs().into(),
            mtu: self.config.mtu.unwrap_or(DEFAULT_MTU).into(),
            ..ConfigSpace::default()
        }
    }
}

/// What all of them can do.
fn common(mut all: impl Iterator<Item = Abilities>) -> Abilities {
    let first = all.next().unwrap_or_default();
    all.fold(first, |common, next| Abilities {
        from_guest: common.from_guest & next.from_guest,
        to_guest: common.to_guest & next.to_guest,
    })
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        device_type::NET
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        let mut features = features::ALWAYS | features::of_abilities(self.abilities);
        if self.pairs() > 1 {
            features |= F_MQ;
        }
        if self.config.mtu.is_some() {
            features |= F_MTU;
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.config_space();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let fields = space.as_bytes().get(from..).unwrap_or_default();
        for (byte, field) in data.iter_mut().zip(fields) {
            *byte = *field;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.running = Some(self.start(activation)?);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<(u16, QueueState)> {
        let Some(running) = self.running.take() else {
            return Vec::new();
        };
        let shared = Arc::clone(&running.shared);
        let states = self.stop(running);
        self.told = Some(Told {
            filter: shared.filter.state(),
            to_guest: shared.to_guest.load(Relaxed),
            active_pairs: shared.active_pairs(),
        });
        states
    }

    fn reset(&mut self) {
        self.told = None;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(NetState {
            mac: self.config.mac,
            mtu: self.config.mtu,
            queue_pairs: self.pairs(),
            told: self.told,
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Net(state) = state else {
            return Err(RestoreError::WrongDevice {
                name: self.name.clone(),
            });
        };
        let mismatch = |what| RestoreError::Mismatch {
            name: self.name.clone(),
            what,
        };
        if state.queue_pairs != self.pairs() {
            let (has, had) = (self.pairs(), state.queue_pairs);
            return Err(mismatch(format!(
                "it has {has} queue pairs, the saved device had {had}"
            )));
        }
        if state.mtu != self.config.mtu {
            return Err(mismatch("its MTU is not the saved one's".to_owned()));
        }
        if let Some(told) = &state.told {
            let offloads = Offloads::from_bits(told.to_guest);
            if offloads.bits() != told.to_guest || !self.abilities.to_guest.contains(offloads) {
                return Err(mismatch(
                    "its back end lacks offloads that the driver takes".to_owned(),
                ));
            }
            if !(1..=self.pairs()).contains(&told.active_pairs) {
                return Err(mismatch(format!(
                    "{} queue pairs in use",
                    told.active_pairs
                )));
            }
        }
        self.config.mac = state.mac;
        self.told = state.told;
        Ok(())
    }
}

fn check_config(name: &str, config: &NetConfig, pairs: usize) -> Result<(), NetError> {
    let name = name.to_owned();
    if !(1..=MAX_QUEUE_PAIRS).contains(&pairs) {
        return Err(NetError::QueuePairs { name, count: pairs });
    }
    let size = config.queue_size;
    if !size.is_power_of_two() || !(2..=MAX_QUEUE_SIZE).contains(&size) {
        return Err(NetError::QueueSize { name, size });
    }
    match config.mtu {
        Some(mtu) if !(MIN_MTU..=MAX_MTU).contains(&mtu) => Err(NetError::Mtu { name, mtu }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
