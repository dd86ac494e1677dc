//! Wire layouts and numbers of virtio-block (virtio 1.2, section 5.2).

use virtio_bindings::virtio_blk;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Device ID of a block device (section 5.2.1).
pub const DEVICE_TYPE: u32 = 2;

/// log2 of [`SECTOR_SIZE`].
pub const SECTOR_SHIFT: u32 = 9;
/// The unit of capacity and of a request's position, in bytes, whatever the block size is.
pub const SECTOR_SIZE: u64 = 1 << SECTOR_SHIFT;
/// Length of the identification string that [`TYPE_GET_ID`] returns (section 5.2.6).
pub const SERIAL_LEN: usize = virtio_blk::VIRTIO_BLK_ID_BYTES as usize;
/// Length of the header at the start of each request.
pub const HEADER_LEN: u32 = 16;
/// Length of one range of a discard or write-zeroes request.
pub const RANGE_LEN: u32 = 16;

/// Feature bit: `seg_max` is valid.
pub const F_SEG_MAX: u64 = 1 << virtio_blk::VIRTIO_BLK_F_SEG_MAX;
/// Feature bit: the device is read-only.
pub const F_RO: u64 = 1 << virtio_blk::VIRTIO_BLK_F_RO;
/// Feature bit: `blk_size` is valid.
pub const F_BLK_SIZE: u64 = 1 << virtio_blk::VIRTIO_BLK_F_BLK_SIZE;
/// Feature bit: the cache can be flushed.
pub const F_FLUSH: u64 = 1 << virtio_blk::VIRTIO_BLK_F_FLUSH;
/// Feature bit: `topology` is valid.
pub const F_TOPOLOGY: u64 = 1 << virtio_blk::VIRTIO_BLK_F_TOPOLOGY;
/// Feature bit: there is more than one queue.
pub const F_MQ: u64 = 1 << virtio_blk::VIRTIO_BLK_F_MQ;
/// Feature bit: discard requests are served.
pub const F_DISCARD: u64 = 1 << virtio_blk::VIRTIO_BLK_F_DISCARD;
/// Feature bit: write-zeroes requests are served.
pub const F_WRITE_ZEROES: u64 = 1 << virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES;

/// Request type: read.
pub const TYPE_IN: u32 = virtio_blk::VIRTIO_BLK_T_IN;
/// Request type: write.
pub const TYPE_OUT: u32 = virtio_blk::VIRTIO_BLK_T_OUT;
/// Request type: make completed writes durable.
pub const TYPE_FLUSH: u32 = virtio_blk::VIRTIO_BLK_T_FLUSH;
/// Request type: return the serial number.
pub const TYPE_GET_ID: u32 = virtio_blk::VIRTIO_BLK_T_GET_ID;
/// Request type: the ranges' content is no longer needed.
pub const TYPE_DISCARD: u32 = virtio_blk::VIRTIO_BLK_T_DISCARD;
/// Request type: the ranges read as zeroes from now on.
pub const TYPE_WRITE_ZEROES: u32 = virtio_blk::VIRTIO_BLK_T_WRITE_ZEROES;

/// Flag of a range: its blocks may be given back.
pub const RANGE_FLAG_UNMAP: u32 = 1;

/// The most ranges in one discard or write-zeroes request (`max_discard_seg`).
pub const MAX_RANGES: u32 = 16;
/// The longest range that may be discarded, in sectors: 4 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 23;
/// The longest range that may be zeroed, in sectors: 64 MiB. It is short because a file system
/// that cannot zero a range has the zeroes written.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 17;
/// log2 of sectors in a physical block: 4 KiB, the page cache's unit.
pub const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// The status byte that ends each request (section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// `VIRTIO_BLK_S_OK`
    Ok = virtio_blk::VIRTIO_BLK_S_OK as u8,
    /// `VIRTIO_BLK_S_IOERR`
    IoErr = virtio_blk::VIRTIO_BLK_S_IOERR as u8,
    /// `VIRTIO_BLK_S_UNSUPP`
    Unsupported = virtio_blk::VIRTIO_BLK_S_UNSUPP as u8,
}

/// `struct virtio_blk_req` up to its data.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Request type.
    pub kind: U32,
    /// Unused, once a priority.
    pub reserved: U32,
    /// First sector, in units of 512 bytes.
    pub sector: U64,
}

/// `struct virtio_blk_discard_write_zeroes`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct WireRange {
    /// First sector, in units of 512 bytes.
    pub sector: U64,
    /// Length in sectors.
    pub sectors: U32,
    /// [`RANGE_FLAG_UNMAP`] or nothing.
    pub flags: U32,
}

/// `struct virtio_blk_config` (section 5.2.4).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConfigSpace {
    /// Capacity in sectors.
    pub capacity: U64,
    /// Longest segment; valid with `VIRTIO_BLK_F_SIZE_MAX` only.
    pub size_max: U32,
    /// The most data segments in a request.
    pub seg_max: U32,
    /// Legacy geometry; valid with `VIRTIO_BLK_F_GEOMETRY` only.
    pub geometry: [u8; 4],
    /// Logical block size in bytes.
    pub blk_size: U32,
    /// log2 of logical blocks in a physical block.
    pub physical_block_exp: u8,
    /// Offset of the first aligned logical block.
    pub alignment_offset: u8,
    /// Smallest I/O that costs no read-modify-write, in logical blocks.
    pub min_io_size: U16,
    /// Best length of sustained I/O in logical blocks; 0: nothing to say.
    pub opt_io_size: U32,
    /// Cache mode; valid with `VIRTIO_BLK_F_CONFIG_WCE` only.
    pub writeback: u8,
    /// Padding.
    pub unused0: u8,
    /// Number of request queues.
    pub num_queues: U16,
    /// Longest discard range in sectors.
    pub max_discard_sectors: U32,
    /// The most ranges in a discard request.
    pub max_discard_seg: U32,
    /// Alignment of discard ranges in sectors.
    pub discard_sector_alignment: U32,
    /// Longest write-zeroes range in sectors.
    pub max_write_zeroes_sectors: U32,
    /// The most ranges in a write-zeroes request.
    pub max_write_zeroes_seg: U32,
    /// 1 if a write-zeroes request may give blocks back.
    pub write_zeroes_may_unmap: u8,
    /// Padding.
    pub unused1: [u8; 3],
    /// Secure erase and zoned devices are not served.
    pub unused2: [u8; 12],
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn layouts_match_the_specification() {
        assert_eq!(size_of::<Header>(), HEADER_LEN as usize);
        assert_eq!(size_of::<WireRange>(), RANGE_LEN as usize);
        assert_eq!(offset_of!(ConfigSpace, seg_max), 12);
        assert_eq!(offset_of!(ConfigSpace, blk_size), 20);
        assert_eq!(offset_of!(ConfigSpace, min_io_size), 26);
        assert_eq!(offset_of!(ConfigSpace, writeback), 32);
        assert_eq!(offset_of!(ConfigSpace, num_queues), 34);
        assert_eq!(offset_of!(ConfigSpace, max_discard_sectors), 36);
        assert_eq!(offset_of!(ConfigSpace, write_zeroes_may_unmap), 56);
        assert_eq!(size_of::<ConfigSpace>(), 72);
    }
}
