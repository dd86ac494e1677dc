//! Headers as archives get them.

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use super::{BLOCK, Entry, Kind, MAX_EXTENSION, MAX_PATH, TarError, number, padding, pax};

/// Adds `entry`'s header to `out`: a ustar header, behind an extended one if that can't say all of
/// it. The content follows, and [`padding`].
///
/// # Errors
/// If its path or its attributes are none that an archive can have.
pub fn header(entry: &Entry, out: &mut Vec<u8>) -> Result<(), TarError> {
    let link: &[u8] = match &entry.kind {
        Kind::Symlink(target) | Kind::HardLink(target) => target,
        _ => &[],
    };
    let links = matches!(entry.kind, Kind::Symlink(_) | Kind::HardLink(_));
    for path in core::iter::once(entry.path.as_slice()).chain(links.then_some(link)) {
        if path.is_empty() || path.len() > MAX_PATH || path.contains(&0) {
            return Err(TarError::Path);
        }
    }
    let mut block = Block::new(kind_letter(&entry.kind));
    let mut records = Vec::new();
    if !block.text(0, 100, &entry.path) {
        pax::push(&mut records, b"path", &entry.path);
    }
    if !block.text(157, 100, link) {
        pax::push(&mut records, b"linkpath", link);
    }
    block.number(100, 8, u64::from(entry.mode & 0o7777));
    let mut number = |at, len, key: &[u8], value: u64| {
        if !block.number(at, len, value) {
            pax::push(&mut records, key, value.to_string().as_bytes());
        }
    };
    number(108, 8, b"uid", entry.uid.into());
    number(116, 8, b"gid", entry.gid.into());
    number(124, 12, b"size", entry.size);
    let seconds = u64::try_from(entry.mtime.seconds).unwrap_or_default();
    let whole = block.number(136, 12, seconds);
    if !whole || entry.mtime.seconds < 0 || entry.mtime.nanoseconds != 0 {
        pax::push_time(&mut records, b"mtime", entry.mtime);
    }
    if let Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } = entry.kind
        && !(block.number(329, 8, major.into()) && block.number(337, 8, minor.into()))
    {
        return Err(TarError::Field("device number"));
    }
    for (name, value) in &entry.xattrs {
        if name.is_empty() || name.contains(&0) || name.contains(&b'=') {
            return Err(TarError::Field("name of an extended attribute"));
        }
        pax::push(&mut records, &[pax::XATTR, name].concat(), value);
    }
    if records.len() as u64 > MAX_EXTENSION {
        return Err(TarError::Extension);
    }
    if !records.is_empty() {
        let mut extended = Block::new(b'x');
        extended.text(0, 100, b"././@PaxHeader");
        extended.number(100, 8, 0o644);
        for (at, len) in [(108, 8), (116, 8), (136, 12)] {
            extended.number(at, len, 0);
        }
        extended.number(124, 12, records.len() as u64);
        out.extend_from_slice(&extended.finish());
        let padding = padding(records.len() as u64);
        out.append(&mut records);
        out.extend_from_slice(&vec![0; padding]);
    }
    out.extend_from_slice(&block.finish());
    Ok(())
}

/// Adds the archive's end to `out`.
pub fn end(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; 2 * BLOCK]);
}

fn kind_letter(kind: &Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::HardLink(_) => b'1',
        Kind::Symlink(_) => b'2',
        Kind::CharDevice { .. } => b'3',
        Kind::BlockDevice { .. } => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}

/// A header block in the making.
struct Block([u8; BLOCK]);

impl Block {
    fn new(kind: u8) -> Self {
        let mut block = Block([0; BLOCK]);
        block.text(156, 1, &[kind]);
        block.text(257, 8, b"ustar\x0000");
        block
    }

    /// Puts the beginning of `text` into a field; tells whether that was all.
    fn text(&mut self, at: usize, len: usize, text: &[u8]) -> bool {
        let field = self.0.get_mut(at..at + len).unwrap_or_default();
        for (byte, from) in field.iter_mut().zip(text) {
            *byte = *from;
        }
        text.len() <= len
    }

    /// Puts a number into a field; the field is zero and the answer no if it is too large.
    fn number(&mut self, at: usize, len: usize, value: u64) -> bool {
        let field = self.0.get_mut(at..at + len).unwrap_or_default();
        let fits = number::write(field, value);
        if !fits {
            number::write(field, 0);
        }
        fits
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.text(148, 8, b"        ");
        let sum = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.number(148, 7, sum);
        self.0
    }
}
