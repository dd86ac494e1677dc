//! What can go wrong between the monitor and the guest's agent.

use std::io;

use casita_agent::wire::{MAX_PROCESSES, WireError};
use casita_devices::virtio::vsock::ListenError;
use thiserror::Error;

/// Why the agent can't be asked.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The guest has ended, or its agent does not answer any more.
    #[error("the guest's agent is gone: the guest has ended, or does not answer any more")]
    Gone,
    /// No answer came in time.
    #[error("the guest's agent did not answer in time")]
    TimedOut,
    /// Too many questions are open.
    #[error("the guest's agent has {0} questions to answer; ask again later")]
    Busy(usize),
    /// A message can't be sent.
    #[error("the guest's agent can't be told: {0}")]
    Message(WireError),
    /// The agent's port is taken.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The host has no thread or file descriptor left.
    #[error("the host could not {0} for the guest's agent")]
    Host(&'static str, #[source] io::Error),
}

/// Why a process was not started.
#[derive(Debug, Error)]
pub enum StartError {
    /// The guest could not start it.
    #[error("{message}")]
    Refused {
        /// The exit status that shells give for it: 126 or 127.
        status: u8,
        /// One line for people.
        message: String,
    },
    /// There are as many as there can be.
    #[error("{MAX_PROCESSES} processes run in the guest, more are not possible")]
    TooMany,
    /// The guest has ended, or its agent does not answer any more.
    #[error("the guest's agent is gone: the guest has ended, or does not answer any more")]
    Gone,
    /// The agent did not connect the process's standard streams.
    #[error("the guest's agent did not connect the standard streams of the process")]
    NoStreams,
    /// Arguments and environment are too long, or the host has no random numbers.
    #[error(transparent)]
    Link(LinkError),
}

impl From<LinkError> for StartError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Gone => Self::Gone,
            other => Self::Link(other),
        }
    }
}
