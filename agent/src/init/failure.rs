//! Why something could not be done, as one line for people.

use alloc::string::{String, ToString};
use core::fmt::Display;

use casita_agent::errno;
use rustix::io::Errno;

use crate::console;

/// What went wrong.
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

    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// Writes the line to the console.
    pub(crate) fn print(&self) {
        console::print(&alloc::format!("casita: {}\n", self.0));
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
