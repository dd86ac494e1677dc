//! Volumes: data that outlives the VMs that use it.
//!
//! A volume is a folder `NAME` among Casita's data with a `volume.json`, and either `disk.raw`, an
//! ext4 disk, or `data`, a directory that is shared through virtio-fs. It is made under another
//! name and gets its own when it is complete, so there are no halves. Whoever uses a volume holds
//! an flock on its `disk.raw` or `data`: exclusive for the one who writes to a disk, else shared.

mod error;
mod plan;
mod spec;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::dirs::Dirs;
use crate::disk::{self, Disk, DiskError, DiskSpec, Expect, check_name};
use crate::staging::{self, Moment, is_at};
use crate::time::now;

pub use error::VolumeError;
pub use plan::{Attach, NewVolumes, PlannedMount, guest_mounts, plan};
pub use spec::{TmpfsSpec, VolumeSource, VolumeSpec, VolumeSpecError};

/// The size of a volume that nobody gave one: 10 GiB, of which the host pays for what is written.
pub const DEFAULT_SIZE: u64 = 10 << 30;

const DISK: &str = "disk.raw";
const DATA: &str = "data";
const META: &str = "volume.json";
/// Volumes in the making and volumes being removed. No volume's name begins so.
const HALF: &str = ".half-";

/// What a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum VolumeKind {
    /// A disk: one VM writes to it, or many read.
    Disk {
        /// Its size in bytes.
        size: u64,
    },
    /// A directory that is shared through virtio-fs: many VMs write to it.
    Shared,
}

/// What `volume.json` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Meta {
    #[serde(flatten)]
    kind: VolumeKind,
    created: u64,
}

/// All volumes of this user.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    dirs: Dirs,
}

impl Store {
    /// Opens the store, which is made if it is missing.
    ///
    /// # Errors
    /// If its folder can't be made.
    pub fn open(dirs: &Dirs) -> Result<Self, VolumeError> {
        let folder = dirs.data().join("volumes");
        Dirs::ensure(&folder)?;
        Ok(Self {
            folder,
            dirs: dirs.clone(),
        })
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// If there is one, or it can't be made; nothing is left then.
    pub fn create(&self, name: &str, kind: VolumeKind) -> Result<Volume, VolumeError> {
        check_name(name)?;
        let _lock = self.lock()?;
        if self.get(name)?.is_some() {
            return Err(VolumeError::Exists(name.to_owned()));
        }
        self.sweep();
        let half = Half::make(self.folder.join(format!("{HALF}{name}")))?;
        let meta = Meta {
            kind,
            created: now(),
        };
        match kind {
            VolumeKind::Disk { size } => {
                let spec = DiskSpec::File {
                    path: half.0.join(DISK),
                    size: Some(size),
                };
                let disk = disk::open(&spec, Expect::Ext4, &self.dirs)?;
                // Whoever makes it opens it next, even if a program that is just being started
                // still has a copy of the descriptor.
                let _ = rustix::fs::flock(&disk.file, FlockOperation::Unlock);
            }
            VolumeKind::Shared => make_folder(&half.0.join(DATA), 0o755)?,
        }
        let text = serde_json::to_vec_pretty(&meta).map_err(io::Error::from);
        text.and_then(|text| staging::replace(&half.0.join(META), &text, true))
            .map_err(VolumeError::io("write", &half.0))?;
        let folder = self.folder.join(name);
        fs::rename(&half.0, &folder).map_err(VolumeError::io("make", &folder))?;
        Ok(Volume {
            name: name.to_owned(),
            folder,
            meta,
        })
    }

    /// The volume of this name, if there is one.
    ///
    /// # Errors
    /// If the name can't be one, or what is there is not a volume.
    pub fn get(&self, name: &str) -> Result<Option<Volume>, VolumeError> {
        check_name(name)?;
        let folder = self.folder.join(name);
        let damaged = |why: String| VolumeError::Damaged {
            path: folder.clone(),
            why,
        };
        let text = match staging::read_record(&folder.join(META)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if fs::symlink_metadata(&folder).is_err() {
                    return Ok(None);
                }
                return Err(damaged(format!("it has no {META}")));
            }
            Err(error) => return Err(VolumeError::io("read", &folder)(error)),
        };
        let meta = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        Ok(Some(Volume {
            name: name.to_owned(),
            folder,
            meta,
        }))
    }

    /// The volume of this name.
    ///
    /// # Errors
    /// Also if there is none.
    pub fn find(&self, name: &str) -> Result<Volume, VolumeError> {
        self.get(name)?
            .ok_or_else(|| VolumeError::Missing(name.to_owned()))
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// If the store can't be read. What is no volume in it is left out.
    pub fn list(&self) -> Result<Vec<Volume>, VolumeError> {
        let entries = fs::read_dir(&self.folder).map_err(VolumeError::io("read", &self.folder))?;
        let mut volumes: Vec<Volume> = entries
            .flatten()
            .filter_map(|entry| self.get(entry.file_name().to_str()?).ok()?)
            .collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Removes a volume and all that is in it.
    ///
    /// # Errors
    /// If there is none, or a VM uses it.
    pub fn remove(&self, name: &str) -> Result<(), VolumeError> {
        let _lock = self.lock()?;
        let volume = self.find(name)?;
        let _own = volume.hold(FlockOperation::NonBlockingLockExclusive)?;
        self.discard(&volume)
    }

    /// Removes a volume that nobody else uses.
    fn discard(&self, volume: &Volume) -> Result<(), VolumeError> {
        let half = Half(self.folder.join(format!("{HALF}{}", volume.name)));
        half.clear()?;
        fs::rename(&volume.folder, &half.0).map_err(VolumeError::io("remove", &volume.folder))?;
        half.clear()
    }

    /// Removes what killed processes left half made or half removed. The store is locked, so
    /// nobody is at it.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(HALF.as_bytes()) {
                // What can't be removed is for the next one.
                drop(Half(entry.path()));
            }
        }
    }

    /// Only one process at a time makes or removes volumes.
    fn lock(&self) -> Result<Moment, VolumeError> {
        Moment::lock(&self.folder).map_err(VolumeError::io("lock", &self.folder))
    }
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    name: String,
    folder: PathBuf,
    meta: Meta,
}

impl Volume {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    pub fn kind(&self) -> VolumeKind {
        self.meta.kind
    }

    /// When it was made, in seconds since the beginning of 1970.
    pub fn created(&self) -> u64 {
        self.meta.created
    }

    /// Its disk or its directory.
    pub fn path(&self) -> PathBuf {
        self.folder.join(match self.meta.kind {
            VolumeKind::Disk { .. } => DISK,
            VolumeKind::Shared => DATA,
        })
    }

    /// The bytes that a disk takes on the host; not known of a directory.
    pub fn used(&self) -> Option<u64> {
        match self.meta.kind {
            VolumeKind::Disk { .. } => fs::metadata(self.path())
                .ok()
                .map(|found| found.blocks() * 512),
            VolumeKind::Shared => None,
        }
    }

    /// A process that uses it, where the system says.
    pub fn user(&self) -> Option<u32> {
        disk::lock_holder(&fs::metadata(self.path()).ok()?)
    }

    /// Opens its disk: for this VM alone, or for reading together with others.
    ///
    /// # Errors
    /// If it is in use otherwise, or damaged.
    pub fn open_disk(&self, read_only: bool, dirs: &Dirs) -> Result<Disk, VolumeError> {
        let path = self.path();
        let opened = if read_only {
            disk::open_read_only(&path)
        } else {
            let spec = DiskSpec::File { path, size: None };
            disk::open(&spec, Expect::Ext4, dirs)
        };
        opened.map_err(|error| match error {
            DiskError::InUse { pid, .. } => VolumeError::InUse {
                name: self.name.clone(),
                pid,
            },
            DiskError::Missing(_) => VolumeError::Missing(self.name.clone()),
            error => error.into(),
        })
    }

    /// Keeps a directory from being removed while the result is open.
    ///
    /// # Errors
    /// If it is gone.
    pub fn hold_directory(&self) -> Result<File, VolumeError> {
        self.hold(FlockOperation::NonBlockingLockShared)
    }

    fn hold(&self, operation: FlockOperation) -> Result<File, VolumeError> {
        let path = self.path();
        let missing = || VolumeError::Missing(self.name.clone());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            Err(error) => return Err(VolumeError::io("open", &path)(error)),
        };
        match rustix::fs::flock(&file, operation) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(VolumeError::InUse {
                    name: self.name.clone(),
                    pid: self.user(),
                });
            }
            Err(error) => return Err(VolumeError::io("lock", &path)(error.into())),
        }
        // It may have been removed before it was locked.
        if is_at(&file, &path).map_err(VolumeError::io("look at", &path))? {
            Ok(file)
        } else {
            Err(missing())
        }
    }
}

/// A folder that is removed with all that is in it, unless it has another name by then.
struct Half(PathBuf);

impl Half {
    fn make(path: PathBuf) -> Result<Self, VolumeError> {
        let half = Self(path);
        // What a killed process left; the store is locked, so nobody else is at it.
        half.clear()?;
        make_folder(&half.0, 0o700)?;
        Ok(half)
    }

    fn clear(&self) -> Result<(), VolumeError> {
        staging::remove_tree(&self.0).map_err(VolumeError::io("remove", &self.0))
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        let _ = self.clear();
    }
}

fn make_folder(path: &Path, mode: u32) -> Result<(), VolumeError> {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(VolumeError::io("make", path))
}

#[cfg(test)]
mod tests;
