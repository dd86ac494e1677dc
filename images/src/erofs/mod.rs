//! Writing EROFS: Linux's read-only file system, uncompressed, in blocks of 4 KiB.
//!
//! ```text
//! block 0     superblock
//! then        files' data, each file in blocks of its own, as it comes ([`DataWriter`])
//! then        blocks of large directories and of long symbolic links
//! then        inodes, with attributes, small directories and links beside them ([`finish`])
//! then        a hole, up to a multiple of 2 MiB
//! ```
//!
//! Data is aligned to blocks and never compressed, so a guest can map it straight from the host's
//! page cache. The same tree gives the same bytes.

mod data;
mod directory;
mod format;
mod inode;
mod layout;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

pub use data::DataWriter;
pub use format::can_hold;

use crate::tree::Tree;
use format::{BLOCK, Superblock};
use layout::Layout;

/// A pmem device's length is a multiple of this.
const PADDING: u64 = 2 << 20;

/// Why an image can't be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The host.
    #[error("can't write the image: {0}")]
    Write(io::Error),
    /// More than the limit.
    #[error("the files have more than {0} bytes together (see --max-size)")]
    TooLarge(u64),
    /// More than the format can address.
    #[error("the image has more than 16 TiB")]
    TooManyBlocks,
}

/// Writes all that belongs to no file's data, and the superblock. Returns how many bytes the image
/// takes without its holes.
///
/// # Errors
/// If the host can't write it.
pub fn finish(
    tree: &Tree,
    mut writer: DataWriter,
    uuid: [u8; 16],
) -> Result<(File, u64), ErofsError> {
    let layout = Layout::of(tree, writer.next_block())?;
    let inodes = inode::write(tree, &layout, &mut writer)?;
    let (file, _) = writer.finish()?;
    let write = |bytes: &[u8], block: u64| {
        file.write_all_at(bytes, block * BLOCK as u64)
            .map_err(ErofsError::Write)
    };
    write(&inodes, u64::from(layout.inodes_block))?;
    let blocks = u64::from(layout.inodes_block) + (inodes.len() / BLOCK) as u64;
    let superblock = Superblock {
        root_nid: layout.root_nid(),
        inodes: layout.count,
        time: layout.time,
        blocks: u32::try_from(blocks).map_err(|_| ErofsError::TooManyBlocks)?,
        inodes_block: layout.inodes_block,
        uuid,
    };
    write(&superblock.encode(), 0)?;
    let len = (blocks * BLOCK as u64).next_multiple_of(PADDING);
    file.set_len(len).map_err(ErofsError::Write)?;
    let used = rustix::fs::fstat(&file).map_err(|error| ErofsError::Write(error.into()))?;
    Ok((file, used.st_blocks.cast_unsigned() * 512))
}
