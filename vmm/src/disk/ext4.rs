//! The ext4 superblock: enough to recognise one, to see that it fits its disk, and to give a copy
//! an identity of its own. Layout: the kernel's `Documentation/filesystems/ext4/super.rst`.
//!
//! What is read here may have been written by a guest, so every field can lie.
#![deny(clippy::indexing_slicing)]

/// Where the superblock lies on a disk, in bytes.
pub const SUPERBLOCK_OFFSET: usize = 1024;
/// How long it is, in bytes.
pub const SUPERBLOCK_LEN: usize = 1024;

const MAGIC: u16 = 0xEF53;
const S_BLOCKS_COUNT_LO: usize = 0x4;
const S_LOG_BLOCK_SIZE: usize = 0x18;
const S_MAGIC: usize = 0x38;
const S_FEATURE_INCOMPAT: usize = 0x60;
const S_UUID: usize = 0x68;
const S_HASH_SEED: usize = 0xEC;
const S_BLOCKS_COUNT_HI: usize = 0x150;
const S_CHECKSUM: usize = 0x3FC;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
const INCOMPAT_64BIT: u32 = 0x80;

/// What a superblock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// The file system's length in bytes.
    pub len: u64,
    /// It was not unmounted cleanly: its journal has to be replayed, which takes writing.
    pub needs_recovery: bool,
    /// It is another file system's journal and holds no files.
    pub journal_device: bool,
}

impl Superblock {
    /// Reads the [`SUPERBLOCK_LEN`] bytes at [`SUPERBLOCK_OFFSET`]. `None` when they are not an
    /// ext2, ext3 or ext4 superblock.
    pub fn parse(block: &[u8]) -> Option<Self> {
        if u16::from_le_bytes(field(block, S_MAGIC)?) != MAGIC {
            return None;
        }
        let incompat = u32::from_le_bytes(field(block, S_FEATURE_INCOMPAT)?);
        let low = u32::from_le_bytes(field(block, S_BLOCKS_COUNT_LO)?);
        let high = if incompat & INCOMPAT_64BIT == 0 {
            0
        } else {
            u32::from_le_bytes(field(block, S_BLOCKS_COUNT_HI)?)
        };
        // EXT4_MAX_BLOCK_LOG_SIZE is 16, and blocks of 1 KiB are log 0.
        let log = u32::from_le_bytes(field(block, S_LOG_BLOCK_SIZE)?);
        let block_size = if log <= 6 {
            1024_u64 << log
        } else {
            return None;
        };
        let blocks = u64::from(high) << 32 | u64::from(low);
        Some(Self {
            len: blocks.saturating_mul(block_size),
            needs_recovery: incompat & INCOMPAT_RECOVER != 0,
            journal_device: incompat & INCOMPAT_JOURNAL_DEV != 0,
        })
    }
}

/// Gives a superblock, or a backup of one, another identity. It has to have the metadata_csum and
/// metadata_csum_seed features, so that no other checksum of the file system depends on the UUID.
/// Returns whether `block` was long enough.
#[must_use]
pub fn set_identity(block: &mut [u8], uuid: [u8; 16], hash_seed: [u8; 16]) -> bool {
    fn put(block: &mut [u8], at: usize, value: &[u8]) -> Option<()> {
        block
            .get_mut(at..at.checked_add(value.len())?)?
            .copy_from_slice(value);
        Some(())
    }
    (|| {
        put(block, S_UUID, &uuid)?;
        put(block, S_HASH_SEED, &hash_seed)?;
        let sum = crc32c(block.get(..S_CHECKSUM)?);
        put(block, S_CHECKSUM, &sum.to_le_bytes())
    })()
    .is_some()
}

fn field<const N: usize>(block: &[u8], at: usize) -> Option<[u8; N]> {
    block.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// CRC-32C as ext4 uses it: begins with all ones and is not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            // The Castagnoli polynomial, bits reversed.
            crc >> 1 ^ (0x82F6_3B78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_checksum_is_crc32c_without_the_last_inversion() {
        // RFC 3720, B.4: 32 bytes of zeros give 0x8A9136AA.
        assert_eq!(!crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn a_short_or_foreign_block_is_no_superblock() {
        assert_eq!(Superblock::parse(&[]), None);
        assert_eq!(Superblock::parse(&[0; SUPERBLOCK_LEN]), None);
        assert!(!set_identity(&mut [0; 100], [0; 16], [0; 16]));
    }

    #[test]
    fn lying_sizes_saturate() {
        let mut block = [0xFF; SUPERBLOCK_LEN];
        block[S_MAGIC..S_MAGIC + 2].copy_from_slice(&MAGIC.to_le_bytes());
        assert_eq!(Superblock::parse(&block), None, "log of block size");
        block[S_LOG_BLOCK_SIZE..S_LOG_BLOCK_SIZE + 4].copy_from_slice(&6_u32.to_le_bytes());
        assert_eq!(Superblock::parse(&block).map(|sb| sb.len), Some(u64::MAX));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut block in proptest::collection::vec(any::<u8>(), 0..1100)) {
            let _ = Superblock::parse(&block);
            if let Some(magic) = block.get_mut(S_MAGIC..S_MAGIC + 2) {
                magic.copy_from_slice(&MAGIC.to_le_bytes());
            }
            let _ = Superblock::parse(&block);
        }
    }
}
