//! A guest's port of its network's switch: the members, the names, and the way out.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use casita_devices::virtio::net::backend::{
    Abilities, Backend, Frame, HEAD_LEN, Landing, Offloads, Received, Sent,
};
use casita_devices::virtio::net::header::Checksum;
use casita_net::dns::{self, Code, Question};
use casita_net::frame::{self, Arp, ArpOperation, Content, IpPacket, Udp, Upper};
use casita_net::names::{self, Answered, Named};
use casita_net::reply::{self, Ends};
use casita_net::{EgressPolicy, Guard, GuardConfig, Mac, Resolved};

use super::mesh::{Incoming, Mesh, OFFLOADS};
use super::{Member, Membership};

/// As many of our own frames wait for the guest to take them.
const MAX_ANSWERS: usize = 64;
/// The longest question that is looked at.
const MAX_QUESTION: usize = 1500;

/// What a port is to do beside being a member.
#[derive(Debug, Clone, Default)]
pub struct SwitchConfig {
    /// Whom the guest asks for names; those that are not members' are asked of the uplink.
    pub resolvers: Vec<IpAddr>,
    /// Routers, beside the network's own gateway.
    pub gateways: Vec<IpAddr>,
    /// What may leave the network.
    pub policy: EgressPolicy,
    /// What the policy's names mean.
    pub resolved: Resolved,
}

/// The port, a back end around the uplink.
pub struct Switch {
    uplink: Uplink,
    guard: Guard,
    mesh: Mesh,
    own: Member,
    network: String,
    gateways: Vec<IpAddr>,
    resolvers: Vec<IpAddr>,
    silent: bool,
    /// Our own frames for the guest.
    answers: VecDeque<Vec<u8>>,
    to_guest: Offloads,
    /// Whose turn it is to be received from.
    uplink_next: bool,
}

struct Uplink {
    backend: Box<dyn Backend>,
    buffer: Vec<u8>,
}
