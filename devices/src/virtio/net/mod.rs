//! The network device, section 5.1: frames between the guest and a back end of the host's.
//!
//! A frame stays where the guest has put it; what is copied, once, are its header and its first bytes
//! ([`backend::HEAD_LEN`]), so that nobody who looks at them can be shown something else than what is
//! sent.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod backend;
pub mod header;
pub mod layout;
mod link;
mod mac;
pub mod pieces;
mod traffic;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::backend::Backend;
use crate::token_bucket::Rate;

pub use link::LinkState;
pub use mac::{MacAddress, MacError};
pub use traffic::{Counters, Traffic};

/// The most queue pairs of a device.
pub const MAX_QUEUE_PAIRS: usize = 8;
/// The largest queue size.
pub const MAX_QUEUE_SIZE: u16 = 1024;
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
}

/// The device.
pub struct Net {
    name: String,
    config: NetConfig,
    backends: Vec<Box<dyn Backend>>,
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
        Ok(Self {
            name: name.to_owned(),
            config: config.clone(),
            backends,
            link: LinkState::default(),
            traffic: Arc::default(),
        })
    }

    /// The hold on its link.
    pub fn link(&self) -> LinkState {
        self.link.clone()
    }

    /// What has gone through it.
    pub fn traffic(&self) -> Arc<Traffic> {
        self.traffic.clone()
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
