//! A directory's blocks: entries of 12 bytes, sorted by name, then their names.

use std::iter;

use super::format::{BLOCK, DIRENT};
use crate::tree::{Content, Directory, InodeId, Tree};

/// A directory's names with `.` and `..`, which have their places in the order like any other.
fn names(id: InodeId, directory: &Directory) -> impl Iterator<Item = (&[u8], InodeId)> {
    let mut own = [(&b"."[..], id), (&b".."[..], directory.parent)]
        .into_iter()
        .peekable();
    let mut others = directory
        .entries
        .iter()
        .map(|(name, entry)| (&**name, entry.inode))
        .peekable();
    iter::from_fn(move || match (own.peek(), others.peek()) {
        (Some((own_name, _)), Some((name, _))) if own_name < name => own.next(),
        (Some(_), None) => own.next(),
        _ => others.next(),
    })
}

/// How many bytes the directory has: full blocks, and what is used of the last.
pub(super) fn len(id: InodeId, directory: &Directory) -> u64 {
    let (mut blocks, mut used) = (0u64, 0);
    for (name, _) in names(id, directory) {
        let more = DIRENT + name.len();
        if used + more > BLOCK {
            (blocks, used) = (blocks + 1, 0);
        }
        used += more;
    }
    blocks * BLOCK as u64 + used as u64
}

/// The directory's bytes, as many as `len` says.
pub(super) fn encode(
    tree: &Tree,
    id: InodeId,
    directory: &Directory,
    nid: &dyn Fn(InodeId) -> u64,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut block: Vec<(&[u8], InodeId)> = Vec::new();
    let mut used = 0;
    for (name, inode) in names(id, directory) {
        let more = DIRENT + name.len();
        if used + more > BLOCK {
            encode_block(tree, &block, nid, &mut bytes);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            block.clear();
            used = 0;
        }
        block.push((name, inode));
        used += more;
    }
    encode_block(tree, &block, nid, &mut bytes);
    bytes
}

fn encode_block(
    tree: &Tree,
    block: &[(&[u8], InodeId)],
    nid: &dyn Fn(InodeId) -> u64,
    into: &mut Vec<u8>,
) {
    let mut name_at = block.len() * DIRENT;
    for (name, inode) in block {
        into.extend_from_slice(&nid(*inode).to_le_bytes());
        into.extend_from_slice(&(name_at as u16).to_le_bytes());
        into.extend_from_slice(&[file_type(&tree.inode(*inode).content), 0]);
        name_at += name.len();
    }
    for (name, _) in block {
        into.extend_from_slice(name);
    }
}

/// Linux's FT_*.
fn file_type(content: &Content) -> u8 {
    match content {
        Content::File(_) => 1,
        Content::Directory(_) => 2,
        Content::Char(_) => 3,
        Content::Block(_) => 4,
        Content::Fifo => 5,
        Content::Socket => 6,
        Content::Symlink(_) => 7,
    }
}
