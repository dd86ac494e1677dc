//! The programs that come with casita and are started by it, because what they are made of is too
//! large for it, or because they are confined.

use std::env;
use std::io;
use std::path::PathBuf;

/// Pulls and imports images.
pub const IMAGE: &str = "casita-image";
/// Serves a directory of the host to a guest.
pub const FS: &str = "casita-fs";

/// Measures VMs beside containers.
pub const BENCH: &str = "casita-bench";

/// Names the folder with the programs, where they are not beside this one.
const LIBEXEC: &str = "CASITA_LIBEXEC";

/// Why a program does not run.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// It is not installed.
    #[error("the program {} is missing; `make build` makes it, {LIBEXEC} names another folder", .0.display())]
    Missing(PathBuf),
    /// It can't be started.
    #[error("the program {} can't be started", path.display())]
    Start {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Finds a program beside this one, or where the user says.
///
/// # Errors
/// If it is not there.
pub fn find(program: &str) -> Result<PathBuf, HelperError> {
    let folder = match env::var_os(LIBEXEC).filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => env::current_exe()
            .ok()
            .and_then(|own| Some(own.parent()?.to_owned()))
            .unwrap_or_default(),
    };
    let path = folder.join(program);
    if path.is_file() {
        Ok(path)
    } else {
        Err(HelperError::Missing(path))
    }
}
