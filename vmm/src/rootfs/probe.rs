//! What is on an image, by its magic numbers, and whether it is all there.
#![deny(clippy::indexing_slicing)]

use casita_agent::spec::FsType;

use crate::disk::Superblock;

/// How much of an image's beginning [`identify`] looks at: up to the end of ISO 9660's first volume
/// descriptor, in bytes.
pub(super) const HEAD_LEN: usize = 34 << 10;

/// EROFS: `struct erofs_super_block` in the kernel's fs/erofs/erofs_fs.h, at 1024.
const EROFS_SUPER: usize = 1024;
const EROFS_MAGIC: u32 = 0xE0F5_E1E2;
const EROFS_INCOMPAT_DEVICE_TABLE: u32 = 0x8;
/// What casita's own images have and others mostly do not: blocks as large as pages, no feature
/// (compression, chunks, fragments) that puts files' data elsewhere than plainly into blocks, and a
/// length of whole 2 MiB.
const EROFS_PAGE_BITS: u8 = 12;
const EROFS_PADDING: u64 = 2 << 20;
/// ext4's superblock, see [`Superblock`].
const EXT4_SUPER: usize = 1024;
/// ISO 9660 (ECMA-119, 8.4): the primary volume descriptor, in sector 16.
const ISO_VOLUME: usize = 32768;

/// Why a file can't be a root image. Written to follow "the root image PATH".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It has no bytes.
    #[error("is empty")]
    Empty,
    /// It holds less than its superblock says.
    #[error("is truncated: it has {len} bytes and its {} file system {wanted}", fs.name())]
    Truncated {
        /// What it is.
        fs: FsType,
        /// Its length in bytes.
        len: u64,
        /// The length that its superblock speaks of.
        wanted: u64,
    },
    /// It is the right kind of file system, but its superblock makes no sense or needs more.
    #[error("can't be used: its {} superblock {what}", fs.name())]
    Superblock {
        /// What it is.
        fs: FsType,
        /// What is the matter.
        what: &'static str,
    },
    /// A journal that has to be replayed, which takes writing.
    #[error("was not unmounted cleanly and can't be mounted read-only; run e2fsck -fy on it")]
    NeedsRecovery,
    /// Something else that was recognised.
    #[error("is {what}; {advice}")]
    Foreign {
        /// What it seems to be.
        what: &'static str,
        /// What to do with it.
        advice: &'static str,
    },
    /// Nothing known.
    #[error("is of unknown type; it has to be EROFS, squashfs, ext4, ISO 9660 or a directory")]
    Unknown,
}

const UNPACK: &str = "unpack it into a directory and give that";
const DECOMPRESS: &str = "decompress it first";
const TO_RAW: &str = "convert it with qemu-img convert -O raw";
const AS_KERNEL: &str = "a kernel is given with --kernel";
const AS_INITRD: &str = "an initramfs is given with --initrd";
const SUPPORTED: &str = "it has to be EROFS, squashfs, ext4, ISO 9660 or a directory";

/// What people give by mistake: offset, magic, what it is, what to do.
const FOREIGN: &[(usize, &[u8], &str, &str)] = &[
    (0, b"\x1F\x8B", "gzip data", DECOMPRESS),
    (0, b"\x28\xB5\x2F\xFD", "zstd data", DECOMPRESS),
    (0, b"\xFD7zXZ\0", "xz data", DECOMPRESS),
    (0, b"BZh", "bzip2 data", DECOMPRESS),
    (0, b"\x04\x22\x4D\x18", "lz4 data", DECOMPRESS),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"PK\x03\x04", "a zip archive", UNPACK),
    (0, b"070701", "a cpio archive", AS_INITRD),
    (0, b"QFI\xFB", "a qcow2 disk", TO_RAW),
    (0, b"KDMV", "a VMDK disk", TO_RAW),
    (0, b"vhdxfile", "a VHDX disk", TO_RAW),
    (0, b"\x7FELF", "an ELF program or kernel", AS_KERNEL),
    (0x202, b"HdrS", "a bzImage kernel", AS_KERNEL),
    (0, b"MZ", "a PE program or kernel", AS_KERNEL),
    (0, b"#!", "a script", SUPPORTED),
    (0, b"XFSB", "an XFS file system", SUPPORTED),
    (
        512,
        b"EFI PART",
        "a partitioned disk",
        "give its root partition alone",
    ),
    (
        510,
        b"\x55\xAA",
        "a partitioned or bootable disk",
        "give its root partition alone",
    ),
];

/// Tells the type of an image of `len` bytes from its first [`HEAD_LEN`] bytes (fewer when it is
/// shorter), and checks that it is as long as its superblock says.
pub(super) fn identify(head: &[u8], len: u64) -> Result<FsType, Problem> {
    if len == 0 {
        return Err(Problem::Empty);
    }
    let (fs, wanted) = if let Some(wanted) = erofs(head)? {
        (FsType::Erofs, wanted)
    } else if let Some(wanted) = squashfs(head)? {
        (FsType::Squashfs, wanted)
    } else if let Some(wanted) = ext4(head)? {
        (FsType::Ext4, wanted)
    } else if let Some(wanted) = iso9660(head)? {
        (FsType::Iso9660, wanted)
    } else {
        return Err(foreign(head));
    };
    if wanted > len {
        return Err(Problem::Truncated { fs, len, wanted });
    }
    Ok(fs)
}

fn foreign(head: &[u8]) -> Problem {
    if head.iter().all(|byte| *byte == 0) {
        return Problem::Foreign {
            what: "all zeros",
            advice: SUPPORTED,
        };
    }
    FOREIGN
        .iter()
        .find(|(at, magic, ..)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
        .map_or(Problem::Unknown, |(_, _, what, advice)| Problem::Foreign {
            what,
            advice,
        })
}

/// Each gives the file system's length in bytes, or `None` when the magic is another's.
fn erofs(head: &[u8]) -> Result<Option<u64>, Problem> {
    let wrong = |what| {
        Err(Problem::Superblock {
            fs: FsType::Erofs,
            what,
        })
    };
    if le32(head, EROFS_SUPER) != Some(EROFS_MAGIC) {
        return Ok(None);
    }
    let (Some([bits]), Some(blocks), Some(incompat)) = (
        bytes::<1>(head, EROFS_SUPER + 12),
        le32(head, EROFS_SUPER + 36),
        le32(head, EROFS_SUPER + 80),
    ) else {
        return wrong("is cut off");
    };
    // A kernel with 4 KiB pages mounts blocks up to that.
    if !(9..=12).contains(&bits) {
        return wrong("has a block size outside of 512 to 4096 bytes");
    }
    if incompat & EROFS_INCOMPAT_DEVICE_TABLE != 0 {
        return wrong("refers to further devices");
    }
    Ok(Some(u64::from(blocks) << bits))
}

/// Whether the files of an EROFS image of `len` bytes lie in it as they are in memory.
pub(super) fn is_in_place(head: &[u8], len: u64) -> bool {
    bytes(head, EROFS_SUPER + 12) == Some([EROFS_PAGE_BITS])
        && le32(head, EROFS_SUPER + 80) == Some(0)
        && len.is_multiple_of(EROFS_PADDING)
}

/// Squashfs 4.0: `struct squashfs_super_block` in the kernel's fs/squashfs/squashfs_fs.h.
fn squashfs(head: &[u8]) -> Result<Option<u64>, Problem> {
    let wrong = |what| {
        Err(Problem::Superblock {
            fs: FsType::Squashfs,
            what,
        })
    };
    if !head.starts_with(b"hsqs") {
        return Ok(None);
    }
    let (Some(major), Some(used)) = (le16(head, 28), le64(head, 40)) else {
        return wrong("is cut off");
    };
    if major != 4 {
        return wrong("is not of version 4");
    }
    Ok(Some(used))
}

fn ext4(head: &[u8]) -> Result<Option<u64>, Problem> {
    let Some(superblock) = head.get(EXT4_SUPER..).and_then(Superblock::parse) else {
        return Ok(None);
    };
    if superblock.journal_device {
        return Err(Problem::Superblock {
            fs: FsType::Ext4,
            what: "is that of an external journal",
        });
    }
    // Without its journal ("noload") it could be mounted, but not with what was written last.
    if superblock.needs_recovery {
        return Err(Problem::NeedsRecovery);
    }
    Ok(Some(superblock.len))
}

fn iso9660(head: &[u8]) -> Result<Option<u64>, Problem> {
    if head.get(ISO_VOLUME + 1..ISO_VOLUME + 6) != Some(b"CD001") {
        return Ok(None);
    }
    let (Some(blocks), Some(block_size)) =
        (le32(head, ISO_VOLUME + 80), le16(head, ISO_VOLUME + 128))
    else {
        return Err(Problem::Superblock {
            fs: FsType::Iso9660,
            what: "is cut off",
        });
    };
    Ok(Some(u64::from(blocks) * u64::from(block_size)))
}

fn bytes<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..)?.first_chunk().copied()
}

fn le16(head: &[u8], at: usize) -> Option<u16> {
    bytes(head, at).map(u16::from_le_bytes)
}

fn le32(head: &[u8], at: usize) -> Option<u32> {
    bytes(head, at).map(u32::from_le_bytes)
}

fn le64(head: &[u8], at: usize) -> Option<u64> {
    bytes(head, at).map(u64::from_le_bytes)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "the tests' own buffers")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD_LEN];
        for (at, bytes) in parts {
            head[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    const EROFS: (usize, &[u8]) = (1024, &EROFS_MAGIC.to_le_bytes());
    const EXT4: (usize, &[u8]) = (1080, &0xEF53_u16.to_le_bytes());

    #[test]
    fn each_type_is_known_and_its_length_checked() {
        let cases = [
            (
                with(&[EROFS, (1036, &[12]), (1060, &[10])]),
                FsType::Erofs,
                40960,
            ),
            (
                with(&[(0, b"hsqs"), (28, &[4]), (40, &[0, 0, 1])]),
                FsType::Squashfs,
                65536,
            ),
            (
                with(&[EXT4, (1028, &[64]), (1048, &[2])]),
                FsType::Ext4,
                64 * 4096,
            ),
            (
                with(&[(32769, b"CD001"), (32848, &[100]), (32896, &[0, 8])]),
                FsType::Iso9660,
                100 * 2048,
            ),
        ];
        for (head, fs, wanted) in cases {
            assert_eq!(identify(&head, wanted), Ok(fs));
            let len = wanted - 1;
            assert_eq!(
                identify(&head, len),
                Err(Problem::Truncated { fs, len, wanted })
            );
        }
    }

    #[test]
    fn superblocks_that_can_not_be_mounted_are_refused() {
        let refused = |head: &[u8]| identify(head, 1 << 40).unwrap_err();
        for head in [
            with(&[EROFS, (1036, &[16])]),
            with(&[EROFS, (1036, &[12]), (1104, &[8])]),
            with(&[(0, b"hsqs"), (28, &[3])]),
            with(&[EXT4, (1120, &[8])]),
        ] {
            assert!(matches!(refused(&head), Problem::Superblock { .. }));
        }
        assert_eq!(
            refused(&with(&[EXT4, (1120, &[4])])),
            Problem::NeedsRecovery
        );
    }

    #[test]
    fn common_mistakes_are_named() {
        let said = |parts| identify(&with(parts), 1 << 20).unwrap_err().to_string();
        assert_eq!(identify(&[], 0), Err(Problem::Empty));
        assert!(said(&[(0, b"\x1F\x8B")]).starts_with("is gzip data; "));
        assert!(said(&[(257, b"ustar")]).starts_with("is a tar archive; "));
        assert!(said(&[(0, b"QFI\xFB")]).contains("qcow2"));
        assert!(said(&[(0, b"\x7FELF")]).contains("--kernel"));
        assert!(said(&[(0, b"MZ"), (0x202, b"HdrS")]).contains("bzImage"));
        assert!(said(&[(510, b"\x55\xAA")]).contains("partition"));
        assert!(said(&[(0, b"hello")]).contains("unknown type"));
        assert!(said(&[]).contains("all zeros"));
    }

    proptest! {
        #[test]
        fn random_heads_never_panic(
            seed in proptest::collection::vec(any::<u8>(), 0..1500),
            cut in 0..=HEAD_LEN,
            magic in 0..5_usize,
            len: u64,
        ) {
            // Random bytes at each superblock, behind each magic, cut off anywhere.
            let mut head = vec![0; HEAD_LEN + 4096];
            for at in [0, 1024, ISO_VOLUME] {
                head[at..at + seed.len()].copy_from_slice(&seed);
            }
            let (at, bytes): (usize, &[u8]) =
                [EROFS, (0, b"hsqs"), EXT4, (32769, b"CD001"), (0, b"")][magic];
            head[at..at + bytes.len()].copy_from_slice(bytes);
            let _ = identify(&head[..cut], len);
        }
    }
}
