//! Where everything but files' data goes: decided before any of it is written, as directories name
//! inodes by their places.

use std::collections::HashMap;

use super::ErofsError;
use super::directory;
use super::format::{BLOCK, COMPACT, EXTENDED, SLOT, xattrs_len};
use crate::archive::Time;
use crate::tree::{Content, Inode, InodeId, ROOT, Tree};

/// The places of all inodes.
pub(super) struct Layout {
    /// By the inodes' places in the tree.
    slots: Vec<Option<Slot>>,
    /// The inodes in the order in which their blocks lie.
    pub(super) order: Vec<InodeId>,
    /// Where the area of the inodes starts.
    pub(super) inodes_block: u32,
    /// How many bytes it has, a multiple of a block.
    pub(super) inodes_len: u64,
    /// How many inodes there are.
    pub(super) count: u64,
    /// The time that most inodes have; those need less room.
    pub(super) time: Time,
}

/// One inode's place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// Its place in the area of the inodes, in units of 32 bytes.
    pub(super) nid: u32,
    /// The first of its own blocks, for directories and links.
    pub(super) block: u32,
    /// The short form.
    pub(super) compact: bool,
    /// The end of its content stands beside it.
    pub(super) inline: bool,
    /// Its content's length: a directory's, a link's, a file's.
    pub(super) size: u64,
}

impl Layout {
    /// `block` is the first that is free.
    pub(super) fn of(tree: &Tree, block: u64) -> Result<Self, ErofsError> {
        let order = order(tree);
        let time = common_time(tree);
        let mut slots = vec![None; tree.capacity()];
        let (mut area, mut block) = (Area::default(), block);
        for &id in &order {
            let inode = tree.inode(id);
            let size = size(id, inode);
            let compact = is_compact(inode, size, time);
            let header = if compact { COMPACT } else { EXTENDED } + xattrs_len(&inode.meta.xattrs);
            let has_blocks = matches!(inode.content, Content::Directory(_) | Content::Symlink(_));
            let tail = (size % BLOCK as u64) as usize;
            let inline = has_blocks && tail > 0 && header + tail <= BLOCK;
            let first = block;
            if has_blocks {
                block += size / BLOCK as u64 + u64::from(tail > 0 && !inline);
            }
            let at = area.place(header, if inline { tail } else { 0 });
            slots[id.index()] = Some(Slot {
                nid: u32::try_from(at / SLOT as u64).map_err(|_| ErofsError::TooManyBlocks)?,
                block: u32::try_from(first).map_err(|_| ErofsError::TooManyBlocks)?,
                compact,
                inline,
                size,
            });
        }
        Ok(Self {
            slots,
            count: order.len() as u64,
            order,
            inodes_block: u32::try_from(block).map_err(|_| ErofsError::TooManyBlocks)?,
            inodes_len: area.end.next_multiple_of(BLOCK as u64),
            time,
        })
    }

    pub(super) fn slot(&self, id: InodeId) -> Slot {
        self.slots[id.index()].expect("all inodes with names have a place")
    }

    /// The root comes first, so it fits into the superblock's 16 bits.
    pub(super) fn root_nid(&self) -> u16 {
        self.slot(ROOT).nid as u16
    }
}

/// The area of the inodes while it is filled. What stands beside an inode may not cross the end of
/// a block; smaller inodes fill the gap that is left then.
#[derive(Default)]
struct Area {
    end: u64,
    gap: std::ops::Range<u64>,
}

impl Area {
    fn place(&mut self, header: usize, tail: usize) -> u64 {
        let len = ((header + tail) as u64).next_multiple_of(SLOT as u64);
        if len <= self.gap.end - self.gap.start {
            let at = self.gap.start;
            self.gap.start += len;
            return at;
        }
        let mut at = self.end;
        let in_block = at % BLOCK as u64;
        if tail > 0 && in_block + (header + tail) as u64 > BLOCK as u64 {
            at = at.next_multiple_of(BLOCK as u64);
            if at - self.end > self.gap.end - self.gap.start {
                self.gap = self.end..at;
            }
        }
        self.end = at + len;
        at
    }
}

/// All inodes, each once: a directory, what is in it that is no directory, then the directories in
/// it, so that what is looked at together lies together.
fn order(tree: &Tree) -> Vec<InodeId> {
    let mut seen = vec![false; tree.capacity()];
    let mut order = vec![ROOT];
    let mut todo = vec![ROOT];
    while let Some(id) = todo.pop() {
        let Some(directory) = tree.directory(id) else {
            continue;
        };
        let first = todo.len();
        for entry in directory.entries.values() {
            if std::mem::replace(&mut seen[entry.inode.index()], true) {
                continue;
            }
            order.push(entry.inode);
            if tree.directory(entry.inode).is_some() {
                todo.push(entry.inode);
            }
        }
        todo[first..].reverse();
    }
    order
}

/// The time that most inodes have; of several, the latest.
fn common_time(tree: &Tree) -> Time {
    let mut counts: HashMap<Time, u32> = HashMap::new();
    for inode in tree.inodes() {
        *counts.entry(inode.meta.mtime).or_default() += 1;
    }
    let common = counts
        .into_iter()
        .max_by_key(|(time, count)| (*count, *time));
    common.map(|(time, _)| time).unwrap_or_default()
}

fn size(id: InodeId, inode: &Inode) -> u64 {
    match &inode.content {
        Content::Directory(content) => directory::len(id, content),
        Content::File(data) => data.size,
        Content::Symlink(target) => target.len() as u64,
        Content::Char(_) | Content::Block(_) | Content::Fifo | Content::Socket => 0,
    }
}

fn is_compact(inode: &Inode, size: u64, time: Time) -> bool {
    let short = u32::from(u16::MAX);
    let meta = &inode.meta;
    // A directory has a link for each directory in it.
    let links = match &inode.content {
        Content::Directory(directory) => directory.entries.len() + 2,
        _ => inode.links as usize,
    };
    meta.mtime == time
        && meta.uid <= short
        && meta.gid <= short
        && links <= short as usize
        && u32::try_from(size).is_ok()
}
