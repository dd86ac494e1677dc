//! Tar archives of the guest's files, through standard output and input.

use casita_agent::ports::EXIT_NOT_EXECUTABLE;
use rustix::io::write;

/// Writes the file or directory at `path` to standard output; returns the exit status.
pub(crate) fn copy_out(_path: &[u8]) -> u8 {
    not_available()
}

/// Unpacks standard input below `dir`; returns the exit status.
pub(crate) fn copy_in(_dir: &[u8]) -> u8 {
    not_available()
}

#[allow(unsafe_code, reason = "the process's own standard error")]
fn not_available() -> u8 {
    // SAFETY: the process's standard error stays open.
    let stderr = unsafe { rustix::stdio::stderr() };
    let _ = write(stderr, b"casita: this agent cannot copy files\n");
    EXIT_NOT_EXECUTABLE
}
