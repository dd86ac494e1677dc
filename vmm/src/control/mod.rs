//! A running VM's control socket: how one command reaches the VM that another one runs.
//!
//! The monitor serves it ([`ControlServer`]), whatever the VM does; a command is a [`Client`].
//! The data of processes does not pass through here: their streams are handed over as file
//! descriptors.

mod client;
mod frame;
pub mod protocol;
mod server;
mod socket;

pub use client::{Client, ClientError, Exec, ExecControl, ExecError};
pub use server::{
    ControlServer, ControlSocket, ControlTarget, ExecProcess, Refusal, StartedProcess,
};
pub use socket::NAME as SOCKET_NAME;

#[cfg(test)]
mod tests;
