//! Applying one layer to the tree: entries, whiteouts, opaque directories.

use std::io::BufRead;

use crate::archive::{Archive, ArchiveError, Entry, Kind, Sink};
use crate::erofs::{self, DataWriter, ErofsError};
use crate::stream::StreamError;
use crate::tree::{
    Content, Data, InodeId, MAX_PATH, Meta, PathError, Place, Tree, TreeError, components,
    device_number,
};

const WHITEOUT: &[u8] = b".wh.";
/// AUFS's own files; of them only the next one is part of the format.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why a layer is refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Its bytes can't be had.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// It is no archive, or a damaged one; behind this entry, if any.
    #[error("{}{cause}", behind(.after.as_deref()))]
    Archive {
        /// The last entry that was read.
        after: Option<String>,
        /// What is wrong.
        cause: ArchiveError,
    },
    /// An entry.
    #[error("the entry {entry:?} {cause}")]
    Entry {
        /// Its name.
        entry: String,
        /// What is wrong with it.
        cause: EntryError,
    },
    /// Writing the image.
    #[error(transparent)]
    Write(#[from] ErofsError),
    /// The tar has another digest than the configuration says.
    #[error("it unpacks to {actual}, and the image's configuration says {expected}")]
    DiffId {
        /// What the configuration says.
        expected: crate::Digest,
        /// What it is.
        actual: crate::Digest,
    },
}

fn behind(entry: Option<&str>) -> String {
    entry
        .map(|entry| format!("after the entry {entry:?}: "))
        .unwrap_or_default()
}

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Its place in the tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Its data.
    #[error("can't be read: {0}")]
    Archive(#[from] ArchiveError),
    /// Writing the image.
    #[error("can't be stored: {0}")]
    Write(#[from] ErofsError),
    /// A whiteout of nothing.
    #[error("is a whiteout without a name")]
    Whiteout,
    /// A symbolic link without a target, or with one that no file system takes.
    #[error("is a symbolic link with an impossible target")]
    LinkTarget,
    /// A relative target with more `..` than there are directories.
    #[error("is a symbolic link to {0:?}, which leads out of the image")]
    LinkOut(String),
    /// A device that Linux can't have.
    #[error("is a device with the numbers {major}:{minor}; Linux has at most 4095:1048575")]
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// An attribute.
    #[error(
        "has an extended attribute with an impossible name or a value of more than 65535 bytes"
    )]
    Xattr,
}

impl From<PathError> for EntryError {
    fn from(error: PathError) -> Self {
        Self::Tree(error.into())
    }
}

/// What an absolute name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbsoluteNames {
    /// The same below the image's root, as to every container engine: some tools write all names so.
    BelowRoot,
    /// An error: in a plain tar of a root file system they are a mistake.
    Refused,
}

/// Applies a layer's archive. Its reader is given back, as the digest of a layer is that of all of
/// its bytes, also of those behind the archive's end.
///
/// # Errors
/// If anything is wrong with it.
pub fn apply<R: BufRead>(
    tree: &mut Tree,
    writer: &mut DataWriter,
    reader: R,
    absolute: AbsoluteNames,
    progress: &mut dyn FnMut(&R),
) -> Result<R, LayerError> {
    let mut archive = Archive::new(reader);
    let mut last = None;
    loop {
        progress(archive.input());
        let entry = match archive.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(cause) => {
                return Err(LayerError::Archive {
                    after: last.as_deref().map(shown),
                    cause,
                });
            }
        };
        let mut applier = Applier {
            tree,
            writer,
            absolute,
        };
        if let Err(cause) = applier.entry(&mut archive, &entry) {
            return Err(LayerError::Entry {
                entry: shown(&entry.path),
                cause,
            });
        }
        last = Some(entry.path);
    }
    writer.punch(&tree.take_dead())?;
    archive
        .drain()
        .map_err(|cause| LayerError::Archive { after: None, cause })
}

fn shown(path: &[u8]) -> String {
    crate::tree::lossy(path)
}

struct Applier<'a> {
    tree: &'a mut Tree,
    writer: &'a mut DataWriter,
    absolute: AbsoluteNames,
}

impl Applier<'_> {
    fn entry<R: BufRead>(
        &mut self,
        archive: &mut Archive<R>,
        entry: &Entry,
    ) -> Result<(), EntryError> {
        let parts = self.parts(&entry.path)?;
        if parts.iter().any(|part| part.starts_with(WHITEOUT)) {
            self.tree.count_entry()?;
            return self.whiteout(&parts);
        }
        // A link's target is looked for before directories are made for its name.
        let target = match entry.kind {
            Kind::HardLink => Some(self.target(&entry.link)?),
            _ => None,
        };
        let place = self.tree.place(&parts, entry.mtime)?;
        if let Some(target) = target {
            return Ok(self.tree.link(&place, target)?);
        }
        let content = match entry.kind {
            Kind::Directory => self.tree.new_directory(),
            // It would be refused after its data was written.
            Kind::File if place == Place::Root => return Err(TreeError::Root.into()),
            Kind::File | Kind::HardLink => Content::File(self.file(archive, entry)?),
            Kind::Symlink => Content::Symlink(symlink(&parts, &entry.link)?),
            Kind::Char => Content::Char(device(entry.device)?),
            Kind::Block => Content::Block(device(entry.device)?),
            Kind::Fifo => Content::Fifo,
        };
        self.tree.put(&place, meta(entry)?, content)?;
        Ok(())
    }

    fn parts<'p>(&self, path: &'p [u8]) -> Result<Vec<&'p [u8]>, PathError> {
        if path.starts_with(b"/") && self.absolute == AbsoluteNames::Refused {
            return Err(PathError::Absolute(shown(path)));
        }
        components(path)
    }

    fn whiteout(&mut self, parts: &[&[u8]]) -> Result<(), EntryError> {
        let Some((name, directories)) = parts.split_last() else {
            return Ok(());
        };
        if *name == OPAQUE {
            let found = self.tree.find_place(directories)?;
            if let Some(directory) = found.and_then(|place| self.tree.directory_at(&place)) {
                self.tree.opaque(directory);
            }
            return Ok(());
        }
        // Anything else of AUFS, and whatever is in a directory of such a name.
        if name.starts_with(WHITEOUT_META) || !name.starts_with(WHITEOUT) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(EntryError::Whiteout);
        }
        let hidden = [directories, &[hidden]].concat();
        match self.tree.find_place(&hidden) {
            Ok(Some(place)) => self.tree.whiteout(&place),
            // A directory that the layer replaces by a file: umoci hides each of its files, too.
            Ok(None) | Err(TreeError::Path(PathError::NotDirectory(_))) => (),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn target(&self, link: &[u8]) -> Result<InodeId, EntryError> {
        let parts = self.parts(link)?;
        let found = self
            .tree
            .find_place(&parts)?
            .and_then(|place| self.tree.at(&place));
        let target = found.ok_or_else(|| TreeError::NoTarget(shown(link)))?;
        if self.tree.directory(target).is_some() {
            return Err(TreeError::DirectoryTarget(shown(link)).into());
        }
        Ok(target)
    }

    fn file<R: BufRead>(
        &mut self,
        archive: &mut Archive<R>,
        entry: &Entry,
    ) -> Result<Data, EntryError> {
        let block = self.writer.begin(entry.size)?;
        archive.copy(entry, &mut FileSink(self.writer))?;
        self.writer.end()?;
        Ok(Data {
            block,
            size: entry.size,
        })
    }
}

struct FileSink<'a>(&'a mut DataWriter);

impl Sink for FileSink<'_> {
    type Error = EntryError;

    fn data(&mut self, bytes: &[u8]) -> Result<(), EntryError> {
        Ok(self.0.data(bytes)?)
    }

    fn hole(&mut self, len: u64) -> Result<(), EntryError> {
        Ok(self.0.hole(len)?)
    }
}

fn symlink(parts: &[&[u8]], target: &[u8]) -> Result<Box<[u8]>, EntryError> {
    if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
        return Err(EntryError::LinkTarget);
    }
    if !target.starts_with(b"/") {
        let mut depth = parts.len().saturating_sub(1);
        for part in target.split(|&byte| byte == b'/') {
            depth = match part {
                b"" | b"." => depth,
                b".." => depth
                    .checked_sub(1)
                    .ok_or_else(|| EntryError::LinkOut(shown(target)))?,
                _ => depth + 1,
            };
        }
    }
    Ok(target.into())
}

fn device((major, minor): (u32, u32)) -> Result<u32, EntryError> {
    device_number(major, minor).ok_or(EntryError::Device { major, minor })
}

/// Whether an attribute gets into an image. Those of an overlay would make the guest's overlay
/// believe things, and some EROFS can't hold.
pub(crate) fn keeps_xattr(name: &[u8]) -> bool {
    erofs::can_hold(name) && !name.starts_with(b"trusted.overlay.")
}

fn meta(entry: &Entry) -> Result<Meta, EntryError> {
    let mut xattrs = entry.xattrs.clone();
    for xattr in &xattrs {
        let name = &xattr.name;
        if name.is_empty() || name.len() > 255 || name.contains(&0) || xattr.value.len() > 65535 {
            return Err(EntryError::Xattr);
        }
    }
    xattrs.retain(|xattr| keeps_xattr(&xattr.name));
    Ok(Meta {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs,
    })
}
