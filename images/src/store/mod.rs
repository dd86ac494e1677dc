//! The images of a user: one EROFS file and one record for each digest, and the names that lead
//! to them.
//!
//! `HEX.erofs` and `HEX.json` appear and go whole, by rename and unlink; the record comes first and
//! goes last, so an image that is found has one. `refs.json` maps names to digests and is replaced
//! under `lock`. Readers need no lock: they see the names before or after a change. Whoever has an
//! image open keeps it, even when it is removed.

mod files;
pub mod import;
mod refs;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::reference::Reference;
use files::{io_error, remove_if_there};
use refs::Refs;

/// A prefix of a digest is taken for one from this length on.
const MIN_PREFIX: usize = 6;

/// The store.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The digest of its manifest.
    pub digest: Digest,
    /// Its names, canonical, in order.
    pub references: Vec<String>,
    /// The EROFS file.
    pub path: PathBuf,
    /// How many bytes it takes on disk.
    pub size: u64,
    /// When it was made, by its own word; where it has none, when it was stored. Seconds since
    /// 1970.
    pub created: u64,
    /// How to run it.
    pub config: ImageConfig,
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Of which image.
    pub digest: Digest,
    /// The names that are gone.
    pub references: Vec<String>,
    /// Whether the image itself is gone; it stays while it has other names, or VMs use it.
    pub deleted: bool,
    /// How many bytes of disk that freed.
    pub bytes: u64,
}

/// Why the store can't do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file of the store.
    #[error("can't {action} {path:?}: {source}")]
    Io {
        /// What failed.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that this program wrote is not as it was written.
    #[error("{path:?} is damaged ({cause}): remove it, and pull or import its images again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: serde_json::Error,
    },
    /// Several digests start so.
    #[error("{0:?} is the start of several images' digests: give more of it")]
    Ambiguous(String),
    /// There is none.
    #[error("there is no image {0:?}: `casita image ls` lists what there is")]
    NotFound(String),
    /// A digest whose image has several names, without force.
    #[error("the image {name:?} has several names ({names}): remove those, or use --force")]
    SeveralNames {
        /// What was asked for.
        name: String,
        /// Its names.
        names: String,
    },
}

/// What is kept beside an image, in `HEX.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    created: u64,
    size: u64,
    config: ImageConfig,
}

impl Store {
    /// Opens the store in a directory, and makes it where there is none.
    ///
    /// # Errors
    /// If the directory can't be made.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        files::make_dir(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// A directory for partial downloads, made if it is missing.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn blobs(&self) -> Result<PathBuf, StoreError> {
        let dir = self.dir.join("blobs");
        files::make_dir(&dir)?;
        Ok(dir)
    }

    /// The image with this name, digest, or start of a digest (6 digits at least).
    ///
    /// # Errors
    /// If several digests start so, or the store can't be read.
    pub fn get(&self, name: &str) -> Result<Option<Image>, StoreError> {
        let refs = Refs::read(&self.dir)?;
        match self.resolve(name, &refs)? {
            Some(digest) => self.load(&digest, &refs),
            None => Ok(None),
        }
    }

    /// The image with this digest.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn by_digest(&self, digest: &Digest) -> Result<Option<Image>, StoreError> {
        self.load(digest, &Refs::read(&self.dir)?)
    }

    /// All images, the latest first.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn list(&self) -> Result<Vec<Image>, StoreError> {
        let refs = Refs::read(&self.dir)?;
        let mut images = Vec::new();
        for digest in self.digests()? {
            images.extend(self.load(&digest, &refs)?);
        }
        images.sort_by(|a, b| {
            (b.created, &a.references, a.digest).cmp(&(a.created, &b.references, b.digest))
        });
        Ok(images)
    }

    /// Gives an image a name, which another image loses if it had it.
    ///
    /// # Errors
    /// If there is no such image, or the store can't be written.
    pub fn tag(&self, digest: &Digest, reference: &Reference) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        if !self.image_path(digest).exists() {
            return Err(StoreError::NotFound(digest.to_string()));
        }
        self.tag_locked(digest, reference)
    }

    fn tag_locked(&self, digest: &Digest, reference: &Reference) -> Result<(), StoreError> {
        let mut refs = Refs::read(&self.dir)?;
        refs.set(reference, *digest);
        refs.write(&self.dir)
    }

    /// Takes away a name, and the image with its last one, unless `in_use` says that a VM needs it.
    /// By digest, all names go; with several it takes `force`.
    ///
    /// # Errors
    /// If there is no such image, it has several names, or the store can't be written.
    pub fn remove(
        &self,
        name: &str,
        force: bool,
        in_use: &dyn Fn(&Digest) -> bool,
    ) -> Result<Removed, StoreError> {
        let _lock = self.lock()?;
        let mut refs = Refs::read(&self.dir)?;
        let not_found = || StoreError::NotFound(name.to_owned());
        let by_name = name
            .parse::<Reference>()
            .ok()
            .filter(|name| refs.get(name).is_some());
        let (digest, gone) = if let Some(reference) = by_name {
            let digest = refs.get(&reference).ok_or_else(not_found)?;
            (digest, refs.take(&reference))
        } else {
            let digest = self.resolve(name, &refs)?.ok_or_else(not_found)?;
            let names = refs.names(&digest);
            if names.len() > 1 && !force {
                let names = names.join(", ");
                return Err(StoreError::SeveralNames {
                    name: name.to_owned(),
                    names,
                });
            }
            (digest, refs.take_all(&digest))
        };
        refs.write(&self.dir)?;
        let keep = !refs.names(&digest).is_empty() || in_use(&digest);
        let bytes = if keep { None } else { self.delete(&digest)? };
        Ok(Removed {
            digest,
            references: gone,
            deleted: !keep,
            bytes: bytes.unwrap_or(0),
        })
    }

    /// Removes images without a name; with `all`, each that no VM uses. Also what broken-off
    /// imports have left.
    ///
    /// # Errors
    /// If the store can't be read or written.
    pub fn prune(
        &self,
        all: bool,
        in_use: &dyn Fn(&Digest) -> bool,
    ) -> Result<Vec<Removed>, StoreError> {
        let _lock = self.lock()?;
        files::sweep(&self.dir)?;
        let mut refs = Refs::read(&self.dir)?;
        let mut removed = Vec::new();
        for digest in self.digests()? {
            if in_use(&digest) || (!all && !refs.names(&digest).is_empty()) {
                continue;
            }
            let references = refs.take_all(&digest);
            if !references.is_empty() {
                refs.write(&self.dir)?;
            }
            let bytes = self.delete(&digest)?.unwrap_or(0);
            removed.push(Removed {
                digest,
                references,
                deleted: true,
                bytes,
            });
        }
        Ok(removed)
    }

    /// From what a person writes to a digest that may have an image.
    fn resolve(&self, name: &str, refs: &Refs) -> Result<Option<Digest>, StoreError> {
        if let Ok(digest) = name.parse::<Digest>() {
            return Ok(Some(digest));
        }
        if let Some(digest) = name
            .parse::<Reference>()
            .ok()
            .and_then(|name| refs.get(&name))
        {
            return Ok(Some(digest));
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if prefix.len() < MIN_PREFIX || !prefix.bytes().all(hex) {
            return Ok(None);
        }
        let mut found = self
            .digests()?
            .into_iter()
            .filter(|it| it.hex().starts_with(prefix));
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(StoreError::Ambiguous(name.to_owned())),
            (found, _) => Ok(found),
        }
    }

    fn load(&self, digest: &Digest, refs: &Refs) -> Result<Option<Image>, StoreError> {
        let path = self.image_path(digest);
        if !path.exists() {
            return Ok(None);
        }
        // It may be removed between the two looks.
        let Some(record) = files::read_json::<Record>(&self.record_path(digest))? else {
            return Ok(None);
        };
        Ok(Some(Image {
            digest: *digest,
            references: refs.names(digest),
            path,
            size: record.size,
            created: record.created,
            config: record.config,
        }))
    }

    fn digests(&self) -> Result<Vec<Digest>, StoreError> {
        let mut digests: Vec<Digest> = files::names(&self.dir)?
            .iter()
            .filter_map(|name| Digest::from_hex(name.strip_suffix(".erofs")?))
            .collect();
        digests.sort();
        Ok(digests)
    }

    fn delete(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let record = files::read_json::<Record>(&self.record_path(digest))
            .ok()
            .flatten();
        remove_if_there(&self.image_path(digest))?;
        remove_if_there(&self.record_path(digest))?;
        Ok(record.map(|record| record.size))
    }

    fn image_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.erofs", digest.hex()))
    }

    fn record_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.json", digest.hex()))
    }

    fn lock(&self) -> Result<std::fs::File, StoreError> {
        let path = self.dir.join("lock");
        files::lock(&path).map_err(io_error("lock", &path))
    }
}
