//! Numbers and layouts of virtio 1.2 that more than one device needs. Sections are those of
//! "Virtual I/O Device (VIRTIO) Version 1.2", OASIS, 2022.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Device types, section 5.
pub mod device_type {
    /// Network device, section 5.1.
    pub const NET: u32 = 1;
    /// Block device, section 5.2.
    pub const BLOCK: u32 = 2;
    /// Entropy device, section 5.4.
    pub const ENTROPY: u32 = 4;
    /// Memory balloon device, section 5.5.
    pub const BALLOON: u32 = 5;
    /// Socket device, section 5.10.
    pub const SOCKET: u32 = 19;
    /// File system device, section 5.11.
    pub const FILE_SYSTEM: u32 = 26;
    /// Persistent memory device, section 5.19.
    pub const PMEM: u32 = 27;
}

/// Bits of the device status field, section 2.1.
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The guest knows how to drive it.
    pub const DRIVER: u32 = 2;
    /// The driver is set up.
    pub const DRIVER_OK: u32 = 4;
    /// The driver has acknowledged all the features that it understands.
    pub const FEATURES_OK: u32 = 8;
    /// The device cannot go on until it is reset.
    pub const DEVICE_NEEDS_RESET: u32 = 64;
    /// The guest has given up on the device.
    pub const FAILED: u32 = 128;
}

/// Feature bits of every device, section 6, as masks.
pub mod feature {
    /// Descriptors may refer to tables of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// The `used_event` and `avail_event` fields are in use.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// The device complies with version 1 of the specification.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Bits of InterruptStatus and InterruptACK, section 4.2.2.
pub mod interrupt {
    /// The device has used a buffer.
    pub const USED_BUFFER: u32 = 1;
    /// The device's configuration or its status has changed.
    pub const CONFIG_CHANGE: u32 = 2;
}

/// Register offsets of the MMIO transport, section 4.2.2.
pub mod mmio {
    /// "virt", R.
    pub const MAGIC_VALUE: u64 = 0x000;
    /// Device version number, R.
    pub const VERSION: u64 = 0x004;
    /// Device type, R.
    pub const DEVICE_ID: u64 = 0x008;
    /// Vendor, R.
    pub const VENDOR_ID: u64 = 0x00c;
    /// Features that the device offers, 32 bits at a time, R.
    pub const DEVICE_FEATURES: u64 = 0x010;
    /// Which 32 bits, W.
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    /// Features that the driver takes, 32 bits at a time, W.
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// Which 32 bits, W.
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    /// The queue that the following registers are about, W.
    pub const QUEUE_SEL: u64 = 0x030;
    /// Largest size of the queue, R.
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    /// Size of the queue, W.
    pub const QUEUE_NUM: u64 = 0x038;
    /// Ready bit of the queue, RW.
    pub const QUEUE_READY: u64 = 0x044;
    /// Number of the queue that has new buffers, W.
    pub const QUEUE_NOTIFY: u64 = 0x050;
    /// Why an interrupt was raised, R.
    pub const INTERRUPT_STATUS: u64 = 0x060;
    /// Causes that were handled, W.
    pub const INTERRUPT_ACK: u64 = 0x064;
    /// Device status, RW.
    pub const STATUS: u64 = 0x070;
    /// Address of the descriptor table, W.
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    /// Its upper half.
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    /// Address of the available ring, W.
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    /// Its upper half.
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    /// Address of the used ring, W.
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    /// Its upper half.
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// Which shared memory region the following registers are about, W.
    pub const SHM_SEL: u64 = 0x0ac;
    /// Its length, R; all ones where there is no such region.
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    /// Upper half of the length.
    pub const SHM_LEN_HIGH: u64 = 0x0b4;
    /// Its address, R.
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    /// Upper half of the address.
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// Changes whenever the configuration space may have changed, R.
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    /// Start of the device's configuration space.
    pub const CONFIG: u64 = 0x100;

    /// Value of [`MAGIC_VALUE`].
    pub const MAGIC: u32 = u32::from_le_bytes(*b"virt");
    /// Value of [`VERSION`]: the modern interface, with no legacy one beside it.
    pub const VERSION_MODERN: u32 = 2;
    /// Bytes of address space that a device takes: the registers, and the largest
    /// configuration space that there is.
    pub const LENGTH: u64 = 0x1000;
}

/// Descriptor flags, section 2.7.5.
pub mod desc_flags {
    /// The chain goes on at `next`.
    pub const NEXT: u16 = 1;
    /// The device may write the buffer (and only write it).
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// `virtq_avail.flags`: the driver wants no used-buffer notifications, section 2.7.6.
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// `virtq_used.flags`: the device wants no kicks, section 2.7.8.
pub const USED_F_NO_NOTIFY: u16 = 1;

/// Alignment of a descriptor table in bytes, section 2.7.
pub const DESC_TABLE_ALIGN: u64 = 16;
/// Alignment of an available ring in bytes.
pub const AVAIL_RING_ALIGN: u64 = 2;
/// Alignment of a used ring in bytes.
pub const USED_RING_ALIGN: u64 = 4;
/// Largest queue size, section 2.7.
pub const QUEUE_SIZE_LIMIT: u16 = 32768;

/// A descriptor of a split queue, section 2.7.5.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    /// Guest physical address of the buffer.
    pub addr: U64,
    /// Its length in bytes.
    pub len: U32,
    /// See [`desc_flags`].
    pub flags: U16,
    /// Index of the next descriptor if `flags` say so.
    pub next: U16,
}

/// Bytes of a [`Descriptor`].
pub const DESCRIPTOR_SIZE: u64 = size_of::<Descriptor>() as u64;
