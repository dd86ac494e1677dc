//! Why there was no run.

use std::io;
use std::path::PathBuf;

use casita_agent::copy::CopyError;
use thiserror::Error;

use super::request::RequestError;

/// Why there was no run, or nobody knows how it ended: the caller's fault or the host's, never the
/// command's.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The request asks for what is not possible.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// There is no `casita`.
    #[error("the program casita was not found beside this one or in PATH; name it in CASITA_BIN")]
    NoProgram,
    /// `casita` can't be started.
    #[error("the program {} can't be started", path.display())]
    Start {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file that is to be put in can't be read.
    #[error("can't put in {}", path.display())]
    Input {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A directory that is to be put in can't be packed.
    #[error("can't put in {}: {why}", path.display())]
    Pack {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: CopyError,
    },
    /// The VM could not be made, or not be prepared; nothing of the command has run. One line.
    #[error("{0}")]
    Refused(String),
    /// The image could not be pulled, and why was told at the standard error that is shared.
    #[error("the image could not be pulled")]
    Told,
    /// The host refused something ordinary.
    #[error("the host could not {0}")]
    Host(&'static str, #[source] io::Error),
    /// The VM's monitor ended, or was ended, without a word.
    #[error("the VM's monitor ended without a result{}", said(.0))]
    Lost(String),
    /// It said what it never says.
    #[error("the VM's monitor broke its word, and was ended")]
    Broken,
    /// It went on when it was to have ended long ago.
    #[error("the VM's monitor did not end in time, and was ended")]
    Stuck,
    /// A file that was taken out can't be written.
    #[error("can't write {}", path.display())]
    Save {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn said(text: &str) -> String {
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    last.map_or_else(String::new, |line| format!(": {line}"))
}
