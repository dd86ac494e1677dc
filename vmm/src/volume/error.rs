//! What can be wrong with a volume, in one line each.

use std::io;
use std::path::{Path, PathBuf};

use casita_agent::mounts::MountError;

use crate::dirs::DirsError;
use crate::disk::{DiskError, SpecError};

/// Why a volume or another mount can't be used.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A name or a size that can't be one.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A directory of ours is not usable.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// A volume's disk is not usable.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The guest can't have these mounts.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// There is none.
    #[error("there is no volume {0}: see casita volume ls")]
    Missing(String),
    /// There is one already.
    #[error("the volume {0} exists already")]
    Exists(String),
    /// A VM has it and may write to it.
    #[error(
        "the volume {name} is in use by another VM{by}; a volume has one VM that writes, or many \
         that mount it with :ro", by = by(*pid)
    )]
    InUse {
        /// Its name.
        name: String,
        /// The process that locked it, where the system says.
        pid: Option<u32>,
    },
    /// One VM is to have it at two places.
    #[error("the volume {0} is to be mounted twice; a VM has a volume once")]
    Twice(String),
    /// VMs that have ended would not find it again.
    #[error("the volume {name} is in use by {users}; remove that first: casita rm {users}")]
    Referred {
        /// Its name.
        name: String,
        /// Names of VMs.
        users: String,
    },
    /// A disk where a shared volume was asked for.
    #[error(
        "the volume {0} is a disk, to which one VM writes at a time; make another for several: \
         casita volume create --shared NAME"
    )]
    NotShared(String),
    /// A directory among the volumes that is none.
    #[error("{} is not a volume: {why}", path.display())]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A directory of the host's that can't be shared.
    #[error("the host's directory {} can't be shared", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A plain boot has nobody who mounts.
    #[error(
        "--boot plain runs the image's own init, which mounts no volumes: leave out -v and --tmpfs"
    )]
    PlainBoot,
    /// Anything else the system said.
    #[error("can't {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn by(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

impl VolumeError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
        let path = path.to_owned();
        move |source| VolumeError::Io {
            action,
            path,
            source,
        }
    }
}
