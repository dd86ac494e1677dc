//! Files into running VMs and out of them, as tar archives through the agent.
//!
//! The guest is trusted with nothing: what it sends is unpacked by [`casita_agent::copy`], which
//! never leaves the directory that it was given.

mod guest;
mod host;
pub mod rules;
pub mod volume;

use std::io;
use std::path::PathBuf;

use casita_agent::copy::CopyError;
use thiserror::Error;

use crate::control::{ClientError, ExecError};
use crate::dirs::DirsError;
use crate::monitor::MonitorError;
use rules::RuleError;

pub use guest::GuestFiles;
pub use host::{Options, from_guest, to_guest};
pub(crate) use host::{receive_archive, send_archive};

/// Why files could not be copied.
#[derive(Debug, Error)]
pub enum CpError {
    /// The paths don't go together.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The VM can't be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The guest could not start the copy.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// On the host's side.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// There is no such path in the guest.
    #[error("{0} does not exist in the VM")]
    Missing(String),
    /// The guest's side failed; it has said why.
    #[error("the VM could not copy {path}: {why}")]
    Guest {
        /// The path in the guest.
        path: String,
        /// What it said.
        why: String,
    },
    /// Something was left out, and each complained about.
    #[error("not everything was copied")]
    LeftOut,
    /// A chain of links in the guest without end.
    #[error("{0} leads through too many symbolic links in the VM")]
    Links(String),
    /// A directory of ours is not usable.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// A volume's own VM could not be run.
    #[error(transparent)]
    Monitor(#[from] Box<MonitorError>),
    /// A volume's own VM went wrong.
    #[error("{0}")]
    Vm(String),
    /// The host refused something ordinary.
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
