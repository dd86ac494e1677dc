//! From what `-v` and `--tmpfs` say to what a machine gets.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use casita_agent::mounts::{GuestMount, validate};
use rustix::fs::FlockOperation;

use super::{
    DEFAULT_SIZE, Store, TmpfsSpec, Volume, VolumeError, VolumeKind, VolumeSource, VolumeSpec,
};
use crate::dirs::Dirs;
use crate::disk::Disk;

/// A mount whose source is open, or known to be there.
#[derive(Debug)]
pub struct PlannedMount {
    /// Where the guest gets it.
    pub target: String,
    /// How.
    pub attach: Attach,
}

/// How something is brought into a guest.
#[derive(Debug)]
pub enum Attach {
    /// As a disk of its own.
    VolumeDisk {
        /// The volume's name.
        name: String,
        /// The disk, locked.
        disk: Disk,
        /// Whether the guest can't write to it.
        read_only: bool,
    },
    /// As memory of the guest's.
    Tmpfs {
        /// The most that it holds, in bytes; 0 for the kernel's default.
        size: u64,
        /// The mode of its root.
        mode: u32,
    },
    /// As a directory of the host's, through virtio-fs.
    Share {
        /// The directory, an absolute path without symbolic links.
        dir: PathBuf,
        /// The device's tag.
        tag: String,
        /// Whether the guest can't write to it.
        read_only: bool,
        /// A volume's directory can't be removed while this is open.
        hold: Option<File>,
    },
}

/// Volumes that were made for a machine that is not there yet: removed again unless they are kept.
#[derive(Debug)]
pub struct NewVolumes {
    store: Store,
    made: Vec<Volume>,
}

impl NewVolumes {
    /// The machine is there: the volumes stay.
    pub fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for NewVolumes {
    fn drop(&mut self) {
        for volume in &self.made {
            let Ok(_lock) = self.store.lock() else { return };
            // A disk is still locked by this process; others may have begun to use a directory.
            let alone = matches!(volume.kind(), VolumeKind::Disk { .. })
                || volume
                    .hold(FlockOperation::NonBlockingLockExclusive)
                    .is_ok();
            if alone {
                let _ = self.store.discard(volume);
            }
        }
    }
}

/// Opens what a machine is to mount, and makes the volumes that are missing. The order is that in
/// which the guest mounts: a directory before what is mounted below it.
///
/// # Errors
/// If a volume is in use, a directory of the host's is missing, or two have the same target.
pub fn plan(
    volumes: &[VolumeSpec],
    tmpfs: &[TmpfsSpec],
    dirs: &Dirs,
) -> Result<(Vec<PlannedMount>, Option<NewVolumes>), VolumeError> {
    // Dropped after the mounts, which hold what is removed then.
    let mut new = None;
    let mut mounts: Vec<PlannedMount> = tmpfs
        .iter()
        .map(|spec| PlannedMount {
            target: spec.target.clone(),
            attach: Attach::Tmpfs {
                size: spec.size.unwrap_or(0),
                mode: spec.mode,
            },
        })
        .collect();
    for (index, spec) in volumes.iter().enumerate() {
        let tag = format!("share{index}");
        let attach = match &spec.source {
            VolumeSource::Named { name, shared } => {
                let new = match &mut new {
                    Some(new) => new,
                    None => new.insert(NewVolumes {
                        store: Store::open(dirs)?,
                        made: Vec::new(),
                    }),
                };
                let volume = find_or_make(name, *shared, new)?;
                open(&volume, tag, spec.read_only, dirs)?
            }
            VolumeSource::Directory(path) => Attach::Share {
                dir: host_directory(path)?,
                tag,
                read_only: spec.read_only,
                hold: None,
            },
        };
        mounts.push(PlannedMount {
            target: spec.target.clone(),
            attach,
        });
    }
    Ok((checked(mounts)?, new))
}

fn checked(mut mounts: Vec<PlannedMount>) -> Result<Vec<PlannedMount>, VolumeError> {
    // Names, not texts: `/a/b` is below `/a`, but `/a-b` sorts between the two.
    mounts.sort_by(|a, b| Path::new(&a.target).cmp(Path::new(&b.target)));
    validate(&guest_mounts(&mounts, 0))?;
    Ok(mounts)
}

fn find_or_make(name: &str, shared: bool, new: &mut NewVolumes) -> Result<Volume, VolumeError> {
    // Others may make or remove it meanwhile; more than a few times is not chance.
    let mut last = VolumeError::Missing(name.to_owned());
    for _ in 0..4 {
        if let Some(volume) = new.store.get(name)? {
            if shared && volume.kind() != VolumeKind::Shared {
                return Err(VolumeError::NotShared(name.to_owned()));
            }
            return Ok(volume);
        }
        let kind = if shared {
            VolumeKind::Shared
        } else {
            VolumeKind::Disk { size: DEFAULT_SIZE }
        };
        match new.store.create(name, kind) {
            Ok(volume) => {
                new.made.push(volume.clone());
                return Ok(volume);
            }
            Err(error @ VolumeError::Exists(_)) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

fn open(volume: &Volume, tag: String, read_only: bool, dirs: &Dirs) -> Result<Attach, VolumeError> {
    match volume.kind() {
        VolumeKind::Shared => Ok(Attach::Share {
            hold: Some(volume.hold_directory()?),
            dir: volume.path(),
            tag,
            read_only,
        }),
        VolumeKind::Disk { .. } => match volume.open_disk(read_only, dirs) {
            Ok(disk) => Ok(Attach::VolumeDisk {
                name: volume.name().to_owned(),
                disk,
                read_only,
            }),
            Err(VolumeError::InUse { name, pid }) if pid == Some(std::process::id()) => {
                Err(VolumeError::Twice(name))
            }
            Err(error) => Err(error),
        },
    }
}

fn host_directory(path: &Path) -> Result<PathBuf, VolumeError> {
    let failed = |source| VolumeError::Directory {
        path: path.to_owned(),
        source,
    };
    let found = fs::canonicalize(path).map_err(failed)?;
    if fs::metadata(&found).map_err(failed)?.is_dir() {
        Ok(found)
    } else {
        Err(failed(io::ErrorKind::NotADirectory.into()))
    }
}

/// What the guest is told: `mounts` in order, with its disks counted on from the one of number
/// `first_disk`.
pub fn guest_mounts(mounts: &[PlannedMount], first_disk: u8) -> Vec<GuestMount> {
    let mut letters = (b'a'..=b'z').skip(first_disk.into());
    let to_guest = |mount: &PlannedMount| {
        let target = mount.target.clone().into_bytes();
        match &mount.attach {
            Attach::VolumeDisk { read_only, .. } => GuestMount::Volume {
                // There are more letters than places on the bus.
                device: format!("/dev/vd{}", char::from(letters.next().unwrap_or(b'z'))),
                target,
                read_only: *read_only,
            },
            Attach::Tmpfs { size, mode } => GuestMount::Tmpfs {
                target,
                size: *size,
                mode: *mode,
            },
            Attach::Share { tag, read_only, .. } => GuestMount::Share {
                tag: tag.clone(),
                target,
                read_only: *read_only,
            },
        }
    };
    mounts.iter().map(to_guest).collect()
}
