//! The cpio archive that a kernel unpacks into its first root: the "newc" format of
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

use alloc::format;
use alloc::vec::Vec;

/// What an entry is.
pub(crate) enum Entry<'a> {
    /// A directory that everyone may enter.
    Directory,
    /// A file with its permissions.
    File { mode: u32, data: &'a [u8] },
    /// A character device for root.
    CharDevice { major: u32, minor: u32 },
}

/// An archive in the making.
pub(crate) struct Archive {
    bytes: Vec<u8>,
    /// Inode numbers only have to differ: files with the same number would be hard links.
    next_inode: u32,
}

const S_IFCHR: u32 = 0o020_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const TRAILER: &str = "TRAILER!!!";

impl Archive {
    /// An empty archive with room for `capacity` bytes.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Archive {
            bytes: Vec::with_capacity(capacity),
            next_inode: 1,
        }
    }

    /// Adds an entry. `name` has no leading slash; its parent directory comes before it. Returns
    /// `None` when the data are longer than the format's 32 bits.
    pub(crate) fn add(&mut self, name: &str, entry: &Entry<'_>) -> Option<()> {
        let (mode, (major, minor), data): (_, _, &[u8]) = match *entry {
            Entry::Directory => (S_IFDIR | 0o755, (0, 0), &[]),
            Entry::File { mode, data } => (S_IFREG | mode, (0, 0), data),
            Entry::CharDevice { major, minor } => (S_IFCHR | 0o600, (major, minor), &[]),
        };
        let links = if matches!(entry, Entry::Directory) {
            2
        } else {
            1
        };
        let inode = self.next_inode;
        self.next_inode += 1;
        self.record(name, [inode, mode, links, major, minor], data)
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Option<Vec<u8>> {
        self.record(TRAILER, [0, 0, 1, 0, 0], &[])?;
        Some(self.bytes)
    }

    fn record(&mut self, name: &str, fields: [u32; 5], data: &[u8]) -> Option<()> {
        let [inode, mode, links, major, minor] = fields;
        let data_len = u32::try_from(data.len()).ok()?;
        let name_len = u32::try_from(name.len()).ok()?.checked_add(1)?;
        // magic, inode, mode, uid, gid, links, mtime, size, device, rdevice, name, checksum
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{links:08x}{0:08x}{data_len:08x}\
             {0:08x}{0:08x}{major:08x}{minor:08x}{name_len:08x}{0:08x}",
            0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(data);
        self.align();
        Some(())
    }

    /// Name and data both end on a multiple of four bytes.
    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
