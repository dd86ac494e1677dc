//! Numbers and layouts of section 5.1.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The device handles frames with partial checksums.
pub const F_CSUM: u64 = 1;
/// The driver does.
pub const F_GUEST_CSUM: u64 = 1 << 1;
/// The driver changes its offloads by the control queue.
pub const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// There is an MTU in configuration space.
pub const F_MTU: u64 = 1 << 3;
/// There is a MAC address.
pub const F_MAC: u64 = 1 << 5;
/// The driver takes TSOv4 frames.
pub const F_GUEST_TSO4: u64 = 1 << 7;
/// The driver takes TSOv6 frames.
pub const F_GUEST_TSO6: u64 = 1 << 8;
/// The driver takes TSO frames with ECN.
pub const F_GUEST_ECN: u64 = 1 << 9;
/// The device takes TSOv4 frames.
pub const F_HOST_TSO4: u64 = 1 << 11;
/// The device takes TSOv6 frames.
pub const F_HOST_TSO6: u64 = 1 << 12;
/// The device takes TSO frames with ECN.
pub const F_HOST_ECN: u64 = 1 << 13;
/// A received frame may take several buffers.
pub const F_MRG_RXBUF: u64 = 1 << 15;
/// There is a link status.
pub const F_STATUS: u64 = 1 << 16;
/// There is a control queue.
pub const F_CTRL_VQ: u64 = 1 << 17;
/// It takes receive modes.
pub const F_CTRL_RX: u64 = 1 << 18;
/// It takes more receive modes.
pub const F_CTRL_RX_EXTRA: u64 = 1 << 20;
/// There are several queue pairs.
pub const F_MQ: u64 = 1 << 22;
/// The control queue sets the MAC address.
pub const F_CTRL_MAC_ADDR: u64 = 1 << 23;
/// The driver takes USO frames over IPv4.
pub const F_GUEST_USO4: u64 = 1 << 54;
/// The driver takes USO frames over IPv6.
pub const F_GUEST_USO6: u64 = 1 << 55;
/// The device takes USO frames.
pub const F_HOST_USO: u64 = 1 << 56;

/// `VIRTIO_NET_S_LINK_UP` in the configuration's status.
pub const S_LINK_UP: u16 = 1;

/// Configuration space, section 5.1.4.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConfigSpace {
    /// The MAC address.
    pub mac: [u8; 6],
    /// See [`S_LINK_UP`].
    pub status: U16,
    /// Queue pairs.
    pub max_virtqueue_pairs: U16,
    /// The MTU in bytes.
    pub mtu: U16,
    /// Speed in Mbit/s; there is no such field without its feature.
    pub speed: U32,
}

/// Commands of the control queue, section 5.1.6.5.
pub mod ctrl {
    /// The class of receive modes.
    pub const RX: u8 = 0;
    /// Take every frame.
    pub const RX_PROMISC: u8 = 0;
    /// Take every multicast frame.
    pub const RX_ALLMULTI: u8 = 1;
    /// Take every unicast frame.
    pub const RX_ALLUNI: u8 = 2;
    /// Take no multicast frames.
    pub const RX_NOMULTI: u8 = 3;
    /// Take no unicast frames.
    pub const RX_NOUNI: u8 = 4;
    /// Take no broadcast frames.
    pub const RX_NOBCAST: u8 = 5;

    /// The class of MAC addresses.
    pub const MAC: u8 = 1;
    /// Tables of addresses to receive.
    pub const MAC_TABLE_SET: u8 = 0;
    /// The device's own address.
    pub const MAC_ADDR_SET: u8 = 1;

    /// The class of several queues.
    pub const MQ: u8 = 4;
    /// How many queue pairs are in use.
    pub const MQ_VQ_PAIRS_SET: u8 = 0;

    /// The class of offloads.
    pub const GUEST_OFFLOADS: u8 = 5;
    /// What the driver takes from now on.
    pub const GUEST_OFFLOADS_SET: u8 = 0;

    /// The answer when it was done.
    pub const OK: u8 = 0;
    /// The answer when it was not.
    pub const ERR: u8 = 1;
}
