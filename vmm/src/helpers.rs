//! The programs that come with casita and are started by it, because what they are made of is too
//! large for it, or because they are confined.

#![allow(
    unsafe_code,
    reason = "what a child does before it becomes the program"
)]

use std::env;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Pulls and imports images.
pub const IMAGE: &str = "casita-image";
/// Serves a directory of the host to a guest.
pub const FS: &str = "casita-fs";

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

/// Has a program that serves a guest start with what it can't do without: it gets the descriptors
/// that it is given as standard streams and no others, leaves no core file, which could have guest
/// memory in it, and can get no privilege by executing anything. What more it can give up, it knows
/// best itself.
pub fn harden(command: &mut Command) {
    let confine = || {
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: these are system calls on values of this function, and allocate nothing.
        let done = unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none) == 0
                && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        };
        if !done {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the flag closes nothing before the program is executed. A kernel without it
        // leaves what is inherited, which is only what the user passed on without a purpose.
        unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(confine) };
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
