//! The members of a tar that can be sought in: where each lies, so that it can be read by name.
//!
//! Archives of images have few members with short names. What is not of that kind is passed over;
//! nothing here ever reaches the host's file system.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tar::{EntryType, Header, PaxExtensions};

use crate::section::Section;

const BLOCK: u64 = 512;
/// More than an image of the most layers has, in the most wasteful format.
const MAX_MEMBERS: usize = 100_000;
/// What a header says beside the header.
const MAX_EXTENSION: u64 = 64 << 10;
/// The longest name. Those of images have less than 100 bytes.
const MAX_NAME: usize = 1024;
/// Docker once wrote a layer that it had written before as a link to that.
const MAX_LINKS: usize = 4;

/// What is wrong with a tar.
#[derive(Debug, thiserror::Error)]
pub enum MembersError {
    /// The file itself.
    #[error("it can't be read")]
    Read(#[from] io::Error),
    /// It ends within a member.
    #[error("it ends too early, at byte {0}")]
    Truncated(u64),
    /// A header is none.
    #[error("it is damaged at byte {at}: {cause}")]
    Header {
        /// Where.
        at: u64,
        /// What is wrong with it.
        cause: io::Error,
    },
    /// No archive of an image has so many.
    #[error("it has more than {MAX_MEMBERS} members")]
    TooMany,
}

#[derive(Debug, Clone)]
enum Member {
    File { at: u64, len: u64 },
    Link(String),
}

/// An indexed tar.
#[derive(Debug)]
pub struct Members {
    file: Arc<File>,
    members: HashMap<String, Member>,
}

/// What an extension header says of the next member.
#[derive(Default)]
struct Said {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Members {
    /// Reads all headers of a tar.
    ///
    /// # Errors
    /// If it is none, or a broken one.
    pub fn index(file: File) -> Result<Self, MembersError> {
        let end = file.metadata()?.len();
        let mut members = HashMap::new();
        let mut said = Said::default();
        let mut at = 0;
        while at + BLOCK <= end {
            let mut block = [0; BLOCK as usize];
            file.read_exact_at(&mut block, at)?;
            // Two empty blocks are the end, and so is one.
            if block.iter().all(|byte| *byte == 0) {
                break;
            }
            let wrong = |cause| MembersError::Header { at, cause };
            let header = Header::from_byte_slice(&block);
            check(header).map_err(wrong)?;
            let kind = header.entry_type();
            let mut len = header.entry_size().map_err(wrong)?;
            let data = at + BLOCK;
            if is_extension(kind) {
                fits(data, len, end)?;
                if len <= MAX_EXTENSION {
                    let mut text = vec![0; usize::try_from(len).unwrap_or(0)];
                    file.read_exact_at(&mut text, data)?;
                    said.take(kind, &text);
                }
            } else {
                let told = std::mem::take(&mut said);
                len = told.size.unwrap_or(len);
                fits(data, len, end)?;
                let name = told.name.or_else(|| text(&header.path_bytes()));
                let link = told
                    .link
                    .or_else(|| header.link_name_bytes().as_deref().and_then(text));
                let member = match kind {
                    EntryType::Regular | EntryType::Continuous => {
                        Some(Member::File { at: data, len })
                    }
                    EntryType::Symlink => link
                        .zip(name.as_deref())
                        .and_then(|(link, name)| Some(Member::Link(beside(name, &link)?))),
                    EntryType::Link => link.and_then(|link| beside("", &link)).map(Member::Link),
                    _ => None,
                };
                if let Some((name, member)) = name.and_then(|name| beside("", &name)).zip(member) {
                    members.insert(name, member);
                }
                if members.len() > MAX_MEMBERS {
                    return Err(MembersError::TooMany);
                }
            }
            at = data
                .saturating_add(len)
                .checked_next_multiple_of(BLOCK)
                .ok_or(MembersError::Truncated(end))?;
        }
        Ok(Self {
            file: Arc::new(file),
            members,
        })
    }

    /// The member of this name, if there is one.
    pub fn open(&self, name: &str) -> Option<Section> {
        let mut name = beside("", name)?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&name)? {
                Member::File { at, len } => {
                    return Some(Section::new(self.file.clone(), *at, *len));
                }
                Member::Link(to) => name.clone_from(to),
            }
        }
        None
    }
}

fn is_extension(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::XHeader
            | EntryType::XGlobalHeader
            | EntryType::GNULongName
            | EntryType::GNULongLink
    )
}

fn fits(data: u64, len: u64, end: u64) -> Result<(), MembersError> {
    match data.checked_add(len) {
        Some(stop) if stop <= end => Ok(()),
        _ => Err(MembersError::Truncated(end)),
    }
}

impl Said {
    fn take(&mut self, kind: EntryType, data: &[u8]) {
        match kind {
            EntryType::GNULongName => self.name = text(data),
            EntryType::GNULongLink => self.link = text(data),
            EntryType::XHeader => {
                for record in PaxExtensions::new(data).flatten() {
                    let value = || text(record.value_bytes());
                    match record.key() {
                        Ok("path") => self.name = value(),
                        Ok("linkpath") => self.link = value(),
                        Ok("size") => self.size = value().and_then(|value| value.parse().ok()),
                        _ => (),
                    }
                }
            }
            _ => (),
        }
    }
}

/// The sum over the header, as everyone writes it.
fn check(header: &Header) -> io::Result<()> {
    let sum = header
        .as_bytes()
        .iter()
        .enumerate()
        .map(|(at, byte)| match at {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        })
        .sum::<u32>();
    if header.cksum()? == sum {
        Ok(())
    } else {
        Err(io::Error::other("a header's checksum is wrong"))
    }
}

/// A name; none if it is longer than any that is looked for.
fn text(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let short = bytes.len() <= MAX_NAME;
    short.then(|| String::from_utf8(bytes.to_vec()).ok())?
}

/// The name `to` as seen from the folder of `from`, without `.` and `..`; none if it leads out.
fn beside(from: &str, to: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in to.split('/') {
        match part {
            "" | "." => (),
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    parts.retain(|part| !matches!(*part, "" | "."));
    Some(parts.join("/"))
}

/// What a tar's first member says of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Images, in Docker's or OCI's format.
    Images,
    /// Files.
    Files,
    /// No tar at all.
    NoTar,
}

/// Looks at the beginning of a tar. A member's name says which kind it is: images are kept as
/// `blobs/...`, `HEX.tar`, `HEX/...`, and a few fixed names beside those.
pub fn kind(head: &[u8]) -> Kind {
    let mut rest = head;
    let mut kind = Kind::NoTar;
    while let Some((block, after)) = rest.split_at_checked(BLOCK as usize) {
        let header = Header::from_byte_slice(block);
        if block.iter().all(|byte| *byte == 0) {
            // An empty tar is an empty file system.
            return Kind::Files;
        }
        if check(header).is_err() {
            return kind;
        }
        kind = Kind::Files;
        let name = text(&header.path_bytes()).and_then(|name| beside("", &name));
        match name.as_deref() {
            _ if is_extension(header.entry_type()) => (),
            // The folder itself, as in `tar -C FOLDER -c .`
            Some("") => (),
            Some(name) if is_of_images(name) => return Kind::Images,
            _ => return Kind::Files,
        }
        let len = header.entry_size().unwrap_or(0);
        let len = len.checked_next_multiple_of(BLOCK);
        let len = len.and_then(|len| usize::try_from(len).ok());
        match len.and_then(|len| after.get(len..)) {
            Some(next) => rest = next,
            None => return kind,
        }
    }
    kind
}

fn is_of_images(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or(name);
    let hex = first
        .strip_suffix(".tar")
        .or_else(|| first.strip_suffix(".json"))
        .unwrap_or(first);
    matches!(
        first,
        "blobs" | "oci-layout" | "index.json" | "manifest.json" | "repositories"
    ) || (hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
#[path = "members_tests.rs"]
mod tests;
