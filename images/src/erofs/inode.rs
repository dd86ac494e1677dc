//! Writing inodes, and the blocks of directories and links, into the places that are laid out.

use super::directory;
use super::format::{
    BLOCK, FLAT_INLINE, FLAT_PLAIN, RawInode, SLOT, encode_xattrs, xattr_count, xattrs_len,
};
use super::layout::Layout;
use super::{DataWriter, ErofsError};
use crate::tree::{Content, Directory, InodeId, Tree};

/// Linux's S_IF*.
fn type_bits(content: &Content) -> u16 {
    match content {
        Content::File(_) => 0o100_000,
        Content::Directory(_) => 0o040_000,
        Content::Char(_) => 0o020_000,
        Content::Block(_) => 0o060_000,
        Content::Fifo => 0o010_000,
        Content::Socket => 0o140_000,
        Content::Symlink(_) => 0o120_000,
    }
}

/// Writes the blocks, and returns the area of the inodes.
pub(super) fn write(
    tree: &Tree,
    layout: &Layout,
    writer: &mut DataWriter,
) -> Result<Vec<u8>, ErofsError> {
    let mut area =
        vec![0; usize::try_from(layout.inodes_len).map_err(|_| ErofsError::TooManyBlocks)?];
    let nid = |id: InodeId| u64::from(layout.slot(id).nid);
    let mut bytes = Vec::new();
    for (number, &id) in layout.order.iter().enumerate() {
        let (inode, slot) = (tree.inode(id), layout.slot(id));
        let content = match &inode.content {
            Content::Directory(directory) => directory::encode(tree, id, directory, &nid),
            Content::Symlink(target) => target.to_vec(),
            _ => Vec::new(),
        };
        let in_blocks = if slot.inline {
            content.len() - content.len() % BLOCK
        } else {
            content.len()
        };
        let (blocks, beside) = content.split_at(in_blocks);
        let raw = RawInode {
            layout: if slot.inline { FLAT_INLINE } else { FLAT_PLAIN },
            xattr_count: xattr_count(xattrs_len(&inode.meta.xattrs)),
            mode: inode.meta.mode | type_bits(&inode.content),
            links: links(tree, &inode.content, inode.links),
            size: slot.size,
            place: match inode.content {
                Content::File(data) if data.size > 0 => data.block,
                Content::Directory(_) | Content::Symlink(_) if !blocks.is_empty() => slot.block,
                Content::Char(device) | Content::Block(device) => device,
                _ => 0,
            },
            number: number as u32 + 1,
            uid: inode.meta.uid,
            gid: inode.meta.gid,
            mtime: inode.meta.mtime,
        };
        bytes.clear();
        raw.encode(slot.compact, &mut bytes);
        encode_xattrs(&inode.meta.xattrs, &mut bytes);
        bytes.extend_from_slice(beside);
        area[slot.nid as usize * SLOT..][..bytes.len()].copy_from_slice(&bytes);
        if !blocks.is_empty() {
            debug_assert_eq!(writer.next_block(), u64::from(slot.block));
            writer.data(blocks)?;
            writer.end()?;
        }
    }
    Ok(area)
}

/// A directory's own name, its `.`, and the `..` of each directory in it.
fn links(tree: &Tree, content: &Content, names: u32) -> u32 {
    let below = |directory: &Directory| {
        let inside = directory.entries.values();
        inside
            .filter(|entry| tree.directory(entry.inode).is_some())
            .count() as u32
    };
    match content {
        Content::Directory(directory) => 2 + below(directory),
        _ => names,
    }
}
