//! What can be wrong with a network, in one line each.

use std::io;
use std::path::{Path, PathBuf};

use casita_net::subnet::SubnetError;

use crate::dirs::DirsError;
use crate::disk::SpecError;

/// Why a network can't be used.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A name that can't be one.
    #[error(
        "{0:?} can't be a network's name: letters, digits, '_', '.' and '-' are possible, at most 64 of them"
    )]
    Name(String),
    /// A name that a member can't have.
    #[error(
        "{0:?} can't be a name on a network: letters, digits, '_' and '-' are possible, with dots between them"
    )]
    Alias(String),
    /// A range that can't be a network's.
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    /// A directory of ours is not usable.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// There is none.
    #[error("there is no network {0}: make it with casita network create {0}")]
    Missing(String),
    /// There is one already.
    #[error("the network {0} exists already")]
    Exists(String),
    /// VMs run on it.
    #[error("the network {name} is in use by {users}; stop that first: casita stop {users}")]
    InUse {
        /// Its name.
        name: String,
        /// Names of VMs.
        users: String,
    },
    /// VMs that have ended would not find it again.
    #[error("the network {name} is in use by {users}; remove that first: casita rm {users}")]
    Referred {
        /// Its name.
        name: String,
        /// Names of VMs.
        users: String,
    },
    /// No range is left that nobody else has.
    #[error("all ranges that networks get by themselves are taken: give one with --subnet")]
    NoRange,
    /// All addresses are taken.
    #[error("all addresses of the network {0} are taken")]
    Full(String),
    /// The MAC address is another's.
    #[error(
        "the MAC address {mac} is that of {owner} on the network {name}; give another with --mac"
    )]
    MacTaken {
        /// The network.
        name: String,
        /// The address.
        mac: String,
        /// Who has it.
        owner: String,
    },
    /// The VM is on it already.
    #[error("the VM {id} is on the network {name} already")]
    Twice {
        /// The network.
        name: String,
        /// The VM.
        id: String,
    },
    /// A folder among the networks that is none.
    #[error("{} is not a network: {why}", path.display())]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A name of an egress list that means nothing here.
    #[error("egress: the host {name} can't be resolved: {why}")]
    Unresolved {
        /// The name.
        name: String,
        /// What the resolver said.
        why: String,
    },
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

impl From<SpecError> for NetworkError {
    fn from(error: SpecError) -> Self {
        match error {
            SpecError::Name(name) => Self::Name(name),
            other => Self::Name(other.to_string()),
        }
    }
}

impl NetworkError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NetworkError {
        let path = path.to_owned();
        move |source| NetworkError::Io {
            action,
            path,
            source,
        }
    }
}
