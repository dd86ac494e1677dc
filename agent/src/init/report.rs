//! How a new process tells that it could not become its program: through a pipe that closes when it
//! does.

use alloc::string::String;
use alloc::vec::Vec;

use rustix::buffer::spare_capacity;
use rustix::fd::OwnedFd;
use rustix::io::{Errno, read};

/// The longest report, in bytes.
const MOST: usize = 4 << 10;

/// The agent's end of the pipe.
pub(crate) struct Report {
    /// The host's number of the process.
    pub(crate) process: u32,
    pub(crate) pipe: OwnedFd,
    bytes: Vec<u8>,
}

/// What became of the process.
pub(crate) enum Outcome {
    Started,
    /// The exit status that shells give for it, and why.
    Failed(u8, String),
}

impl Report {
    pub(crate) fn new(process: u32, pipe: OwnedFd) -> Self {
        Report {
            process,
            pipe,
            bytes: Vec::with_capacity(MOST),
        }
    }

    /// Reads what there is; `None` as long as the process is still on its way.
    pub(crate) fn read(&mut self) -> Option<Outcome> {
        while self.bytes.len() < MOST {
            match read(&self.pipe, spare_capacity(&mut self.bytes)) {
                Ok(1..) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Ok(0) | Err(_) => break,
            }
        }
        Some(match self.bytes.split_first() {
            None => Outcome::Started,
            Some((status, message)) => {
                Outcome::Failed(*status, String::from_utf8_lossy(message).into_owned())
            }
        })
    }
}

/// A report as the process writes it.
pub(crate) fn encode(status: u8, message: &str) -> Vec<u8> {
    let message = message.as_bytes().iter().take(MOST - 1);
    core::iter::once(&status).chain(message).copied().collect()
}
