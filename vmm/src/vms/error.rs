//! Why something could not be done with a VM's record.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Id;
use crate::dirs::DirsError;

/// Why something could not be done with a VM's record.
#[derive(Debug, Error)]
pub enum VmsError {
    /// No VM is meant.
    #[error("no VM is named {0:?} or has an ID that begins with it: casita ps -a lists them")]
    Unknown(String),
    /// More than one VM is meant.
    #[error("the IDs of {count} VMs begin with {text:?}: give more of it, or a name")]
    Ambiguous {
        /// What was given.
        text: String,
        /// How many it may mean.
        count: usize,
    },
    /// The name's VM runs.
    #[error("the name {name} is taken by the running VM {id}: casita stop {name}, or another name")]
    NameRuns {
        /// The name.
        name: String,
        /// Whose it is.
        id: Id,
    },
    /// The name's VM has ended, and has something to lose.
    #[error(
        "the name {name} is taken by VM {id}, which has ended and still has a disk: casita start \
         {name}, or casita rm {name}"
    )]
    NameKept {
        /// The name.
        name: String,
        /// Whose it is.
        id: Id,
    },
    /// Somebody owns it already.
    #[error("VM {0} is running: casita stop {0} ends it")]
    InUse(String),
    /// It was removed meanwhile.
    #[error("VM {0} has just been removed")]
    Removed(Id),
    /// Its description can't be understood.
    #[error("the record {path} is damaged ({why}): remove the folder if the VM is not needed", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The process that keeps the record of a confined VM is gone.
    #[error("the process that keeps the VM's record does not answer")]
    Keeper(#[source] io::Error),
    /// It says what went wrong.
    #[error("{0}")]
    Kept(String),
    /// The VM can't be described in a file.
    #[error("the VM can't be recorded: {0}")]
    Unwritable(String),
    /// A folder can't be used.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// The host refused something.
    #[error("can't {doing} {path}", path = path.display())]
    Io {
        /// What.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl VmsError {
    /// For `map_err`: `doing` something with `path` failed.
    pub(super) fn io<E: Into<io::Error>>(
        doing: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            doing,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}
