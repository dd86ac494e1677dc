//! The socket device, section 5.10: streams between ports of the guest and of the host.
//!
//! The host's ports are sockets without a name that somebody in this process listens to or has
//! connected ([`VsockHandle`]), and, if the device has a base path, Unix sockets: the guest's
//! connection to port P of the host goes to the socket `BASE_P`, and who connects to the socket
//! `BASE` itself and sends `CONNECT P` and a newline reaches port P of the guest.
//!
//! The parts: [`packet`] is the wire, `credit` the flow control, `connection` one stream, `table`
//! all of them; `worker` waits for events, `worker/tx` takes packets from the guest, `worker/rx`
//! sends them, and `worker/host` has what comes from the host.

#![deny(clippy::indexing_slicing)]

mod backlog;
mod connection;
mod credit;
mod handshake;
mod host;
pub mod packet;
mod socket;
mod table;
mod worker;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::device::{ActivateError, Activation, DeviceState, RestoreError, VirtioDevice};
use super::queue::QueueState;
use super::spec::device_type;
use crate::event_loop::Registration;
use host::Shared;
use worker::{Host, Worker};

pub use host::{
    ConnectError, Incoming, ListenError, ListenGuard, Refused, VsockHandle, VsockListener,
};

/// The host's context ID, section 5.10.4.
pub const HOST_CID: u64 = 2;
/// The first context ID that a guest can have.
pub const FIRST_GUEST_CID: u32 = 3;

/// Connections at a time, of all kinds.
pub const MAX_CONNECTIONS: usize = 1024;

/// Bytes that a connection holds for a slow reader, at most and at least. With a quarter of the
/// most, a stream from the guest is a third slower: it waits more often for word of new credit.
const CREDIT_MOST: u32 = 256 << 10;
const CREDIT_LEAST: u32 = 16 << 10;
/// What all connections together hold beyond the least of each.
const CREDIT_POOL: u32 = 16 << 20;

/// Chains that the driver may have out in the queues to the guest, from the guest, and for events.
/// Drivers fill the first with buffers of a page each; twice as many made streams 2 % faster.
const QUEUE_SIZES: [u16; 3] = [64, 128, 8];
/// Linux waits as long before it gives up on a connection that it has closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);

const RX: u16 = 0;
const TX: u16 = 1;
const EVENT: u16 = 2;

/// What a socket device is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's context ID, from [`FIRST_GUEST_CID`] to `u32::MAX - 1`. Nobody but its own
    /// host sees it, so all guests may have the same.
    pub guest_cid: u32,
    /// Where Unix sockets are; None for none.
    pub base: Option<PathBuf>,
}

impl Default for VsockConfig {
    fn default() -> Self {
        Self {
            guest_cid: FIRST_GUEST_CID,
            base: None,
        }
    }
}

/// Connects to the host's side of a vsock port, without waiting; called on the event loop's thread.
/// An error of the kind `NotFound` or `ConnectionRefused` says that nobody listens.
pub type Ports = Arc<dyn Fn(u32) -> io::Result<UnixStream> + Send + Sync>;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// A context ID that is not for guests.
    #[error("vsock: guest context ID {cid} is not from 3 to 4294967294")]
    GuestCid {
        /// The ID.
        cid: u32,
    },
    /// The Unix socket for clients of the host's could not be made.
    #[error("vsock: the socket {path} could not be made", path = path.display())]
    Bind {
        /// Where it was to be.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// No file descriptor is to be had.
    #[error("vsock: the host has no file descriptor left")]
    Descriptor(#[source] io::Error),
}

/// The device.
pub struct Vsock {
    name: String,
    guest_cid: u32,
    base: Option<PathBuf>,
    ports: Option<Ports>,
    listener: Option<Arc<UnixListener>>,
    shared: Arc<Shared>,
    worker: Option<Registration<Worker>>,
    /// How long the guest has to acknowledge that a connection has ended.
    close_timeout: Duration,
    /// A driver that goes on has to be told that its connections are gone.
    connections_lost: bool,
}

/// What a socket device has to know to go on. Connections end when it is saved.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct VsockState {
    /// The guest's context ID.
    pub guest_cid: u32,
}

impl Vsock {
    /// A device that is called `name` in logs. With a base path, its socket is there when this
    /// returns, and gone when the device is dropped.
    ///
    /// # Errors
    /// The context ID is not possible, or the socket cannot be made; one that is there already is
    /// not replaced.
    pub fn new(name: &str, config: &VsockConfig) -> Result<Self, VsockError> {
        check_cid(config.guest_cid)?;
        let shared = Arc::new(Shared::new().map_err(VsockError::Descriptor)?);
        let listener = config.base.as_ref().map(|path| {
            let bound = UnixListener::bind(path)
                .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
            bound.map(Arc::new).map_err(|source| VsockError::Bind {
                path: path.clone(),
                source,
            })
        });
        Ok(Self {
            name: name.to_owned(),
            guest_cid: config.guest_cid,
            listener: listener.transpose()?,
            base: config.base.clone(),
            ports: config.base.clone().map(worker::ports_at),
            shared,
            worker: None,
            close_timeout: CLOSE_TIMEOUT,
            connections_lost: false,
        })
    }

    /// Has ports of the host reached through `ports`, in a process that can't open sockets by name.
    /// Without a base path no port is.
    pub fn reach_ports(&mut self, ports: Ports) {
        if self.base.is_some() {
            self.ports = Some(ports);
        }
    }

    /// The way to the guest's ports for this process.
    pub fn handle(&self) -> VsockHandle {
        VsockHandle::new(Arc::clone(&self.shared))
    }
}

fn check_cid(cid: u32) -> Result<(), VsockError> {
    if (FIRST_GUEST_CID..u32::MAX).contains(&cid) {
        Ok(())
    } else {
        Err(VsockError::GuestCid { cid })
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        device_type::SOCKET
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        packet::F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // There is one field, the guest's context ID (section 5.10.4).
        let space = u64::from(self.guest_cid).to_le_bytes();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let field = space.get(from..).unwrap_or_default();
        for (byte, value) in data.iter_mut().zip(field) {
            *byte = *value;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let name = self.name.clone();
        let host = Host {
            guest_cid: u64::from(self.guest_cid),
            ports: self.ports.clone(),
            listener: self.listener.clone(),
            shared: Arc::clone(&self.shared),
            close_timeout: self.close_timeout,
        };
        let events = activation.events.clone();
        let lost = std::mem::take(&mut self.connections_lost);
        let worker = Worker::new(&name, activation, host, lost)?;
        let added = events.add(worker);
        self.worker = Some(added.map_err(|source| ActivateError::EventLoop { name, source })?);
        self.shared.set_running(true);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<(u16, QueueState)> {
        let Some(worker) = self.worker.take() else {
            return Vec::new();
        };
        self.shared.set_running(false);
        match worker.remove() {
            Ok(worker) => {
                let (queues, lost) = worker.stop();
                self.connections_lost = lost;
                queues
            }
            Err(error) => {
                log::error!("{}: its worker cannot be stopped: {error}", self.name);
                Vec::new()
            }
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(VsockState {
            guest_cid: self.guest_cid,
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let name = self.name.clone();
        let DeviceState::Vsock(state) = state else {
            return Err(RestoreError::WrongDevice { name });
        };
        check_cid(state.guest_cid).map_err(|error| RestoreError::Mismatch {
            name,
            what: error.to_string(),
        })?;
        self.guest_cid = state.guest_cid;
        self.connections_lost = true;
        Ok(())
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        if let (Some(path), Some(_)) = (&self.base, &self.listener) {
            // Whoever removed it before has done no harm.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests;
