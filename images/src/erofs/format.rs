//! EROFS as it lies on disk (Linux: fs/erofs/erofs_fs.h). All numbers are little-endian.

use crate::archive::{Time, Xattr};

/// The only block size that all kernels know.
pub(super) const BLOCK: usize = 4096;
const BLOCK_BITS: u8 = 12;

const SUPER_OFFSET: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
/// The superblock has a checksum.
const COMPAT_CHECKSUM: u32 = 1;
/// Times are those of the last change of content.
const COMPAT_MTIME: u32 = 2;

/// An inode's number is its place in units of this.
pub(super) const SLOT: usize = 32;
pub(super) const COMPACT: usize = 32;
pub(super) const EXTENDED: usize = 64;
pub(super) const DIRENT: usize = 12;
const XATTR_HEADER: usize = 12;
const XATTR_ENTRY: usize = 4;

/// Data in blocks of its own.
pub(super) const FLAT_PLAIN: u16 = 0;
/// The last block's data beside the inode.
pub(super) const FLAT_INLINE: u16 = 2;

/// How attributes' prefixes are numbered. An access list's number is its whole name.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// An attribute's prefix as a number, and the rest of its name.
fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    let (prefix, index) = PREFIXES
        .iter()
        .find(|(prefix, _)| name.starts_with(prefix))?;
    let rest = &name[prefix.len()..];
    // After a dot there has to be something, and after a whole name nothing.
    (rest.is_empty() != prefix.ends_with(b".")).then_some((*index, rest))
}

/// Whether EROFS knows attributes of such a name.
pub fn can_hold(name: &[u8]) -> bool {
    split_name(name).is_some()
}

/// How many bytes attributes take beside their inode.
pub(super) fn xattrs_len(xattrs: &[Xattr]) -> usize {
    let entries: usize = xattrs
        .iter()
        .filter_map(|xattr| Some((split_name(&xattr.name)?.1, &xattr.value)))
        .map(|(name, value)| (XATTR_ENTRY + name.len() + value.len()).next_multiple_of(4))
        .sum();
    if entries == 0 {
        0
    } else {
        XATTR_HEADER + entries
    }
}

/// Attributes as they stand beside their inode.
pub(super) fn encode_xattrs(xattrs: &[Xattr], into: &mut Vec<u8>) {
    if xattrs_len(xattrs) == 0 {
        return;
    }
    into.extend_from_slice(&[0; XATTR_HEADER]);
    for xattr in xattrs {
        let Some((index, name)) = split_name(&xattr.name) else {
            continue;
        };
        // Names of more than 255 bytes and values of more than 65535 are refused before.
        into.extend_from_slice(&[name.len() as u8, index]);
        into.extend_from_slice(&(xattr.value.len() as u16).to_le_bytes());
        into.extend_from_slice(name);
        into.extend_from_slice(&xattr.value);
        into.resize(into.len().next_multiple_of(4), 0);
    }
}

/// The field that tells how long attributes are: a header counts as one, then each four bytes.
pub(super) fn xattr_count(len: usize) -> u16 {
    if len == 0 {
        0
    } else {
        ((len - XATTR_HEADER) / 4 + 1) as u16
    }
}

/// An inode's fields, for both of its forms.
pub(super) struct RawInode {
    pub(super) layout: u16,
    pub(super) xattr_count: u16,
    pub(super) mode: u16,
    pub(super) links: u32,
    pub(super) size: u64,
    /// A block, or a device's number.
    pub(super) place: u32,
    /// For those who want numbers of 32 bits.
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
}

impl RawInode {
    pub(super) fn encode(&self, compact: bool, into: &mut Vec<u8>) {
        let mut put = |bytes: &[u8]| into.extend_from_slice(bytes);
        put(&(self.layout << 1 | u16::from(!compact)).to_le_bytes());
        put(&self.xattr_count.to_le_bytes());
        put(&self.mode.to_le_bytes());
        if compact {
            put(&(self.links as u16).to_le_bytes());
            put(&(self.size as u32).to_le_bytes());
            put(&[0; 4]);
            put(&self.place.to_le_bytes());
            put(&self.number.to_le_bytes());
            put(&(self.uid as u16).to_le_bytes());
            put(&(self.gid as u16).to_le_bytes());
            put(&[0; 4]);
        } else {
            put(&[0; 2]);
            put(&self.size.to_le_bytes());
            put(&self.place.to_le_bytes());
            put(&self.number.to_le_bytes());
            put(&self.uid.to_le_bytes());
            put(&self.gid.to_le_bytes());
            put(&self.mtime.seconds.to_le_bytes());
            put(&self.mtime.nanoseconds.to_le_bytes());
            put(&self.links.to_le_bytes());
            put(&[0; 16]);
        }
    }
}

/// What the superblock says.
pub(super) struct Superblock {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    /// That of compact inodes.
    pub(super) time: Time,
    pub(super) blocks: u32,
    pub(super) inodes_block: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// The whole first block.
    pub(super) fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| {
            block[SUPER_OFFSET + at..][..bytes.len()].copy_from_slice(bytes);
        };
        put(0, &MAGIC.to_le_bytes());
        put(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[BLOCK_BITS]);
        put(14, &self.root_nid.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(24, &self.time.seconds.to_le_bytes());
        put(32, &self.time.nanoseconds.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.inodes_block.to_le_bytes());
        put(48, &self.uuid);
        // Taken with zeroes in its own place.
        let checksum = crc32c(&block[SUPER_OFFSET..]);
        block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// Castagnoli's CRC as the kernel takes it: without the inversion at its end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // The standard check value, which is inverted at its end.
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn attributes_are_known_by_their_prefix() {
        for (name, expected) in [
            (&b"user.a"[..], Some((1, &b"a"[..]))),
            (b"system.posix_acl_access", Some((2, b""))),
            (b"system.posix_acl_default", Some((3, b""))),
            (b"trusted.a.b", Some((4, b"a.b"))),
            (b"security.capability", Some((6, b"capability"))),
            (b"user.", None),
            (b"user", None),
            (b"system.posix_acl_accessx", None),
            (b"btrfs.x", None),
        ] {
            assert_eq!(split_name(name), expected, "{name:?}");
        }
    }
}
