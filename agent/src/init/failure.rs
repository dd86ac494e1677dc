//! Why there is no command to run, as one line on the console.

use alloc::string::{String, ToString};
use core::fmt::Display;

use casita_agent::errno;
use rustix::io::Errno;

use crate::terminal;

/// What went wrong, for people.
#[derive(Clone)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(what: impl Display) -> Self {
        Failure(what.to_string())
    }

    /// `what` could not be done because of `errno`.
    pub(crate) fn errno(what: impl Display, errno: Errno) -> Self {
        let errno = errno::describe(errno.raw_os_error());
        Failure(alloc::format!("{what}: {errno}"))
    }

    /// Writes the line to the console. Nobody could be told if that failed.
    pub(crate) fn print(&self) {
        let line = alloc::format!("casita: {}\n", self.0);
        let mut rest = line.as_bytes();
        while let Ok(written @ 1..) = rustix::io::write(terminal::console(), rest) {
            rest = rest.get(written..).unwrap_or_default();
        }
    }
}

/// Names what was being done when a system call failed.
pub(crate) trait Doing<T> {
    fn doing<D: Display>(self, what: impl FnOnce() -> D) -> Result<T, Failure>;
}

impl<T> Doing<T> for Result<T, Errno> {
    fn doing<D: Display>(self, what: impl FnOnce() -> D) -> Result<T, Failure> {
        self.map_err(|errno| Failure::errno(what(), errno))
    }
}
