//! The host's side inside of this process: ports that listen, and connections to the guest, as
//! sockets without a name.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::MAX_CONNECTIONS;

/// A connection that a guest has opened.
#[derive(Debug)]
pub struct Incoming {
    /// The host's end, in blocking mode.
    pub stream: UnixStream,
    /// The guest's port.
    pub guest_port: u32,
}

/// Whoever listens does not want a connection now; the guest is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

type Accept = dyn Fn(Incoming) -> Result<(), Refused> + Send + Sync;
type Done = Box<dyn FnOnce(Result<UnixStream, ConnectError>) + Send>;

/// Why a port can't be listened to.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody in this process listens to it.
    #[error("vsock port {port} of the host is listened to already")]
    Taken {
        /// The port.
        port: u32,
    },
}

/// Why there is no connection to a guest's port.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No driver has started the device yet.
    #[error("the guest has not started its vsock device")]
    NotRunning,
    /// Nobody in the guest listens to the port.
    #[error("the guest refused the connection: nobody listens to its vsock port")]
    Refused,
    /// The guest did not answer in time.
    #[error("the guest did not answer in time")]
    TimedOut,
    /// There are as many connections as there can be.
    #[error("the guest has {MAX_CONNECTIONS} vsock connections, more are not possible")]
    TooMany,
    /// The device was reset or stopped before the guest answered.
    #[error("the guest's vsock device was reset or stopped")]
    Closed,
    /// The host has no socket left.
    #[error("the host has no socket for a connection to the guest")]
    Io(#[from] io::Error),
}

/// A wish for a connection. If it is dropped its owner is told that the device has stopped.
pub(super) struct Request {
    pub port: u32,
    pub timeout: Duration,
    done: Option<Done>,
}

impl Request {
    /// Answers it.
    pub fn answer(mut self, result: Result<UnixStream, ConnectError>) {
        if let Some(done) = self.done.take() {
            done(result);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(Err(ConnectError::Closed));
        }
    }
}

/// What the handles and the worker have in common. No callback is called with the lock held.
pub(super) struct Shared {
    inner: Mutex<Inner>,
    /// Signalled when there are requests.
    pub wake: EventFd,
}

#[derive(Default)]
struct Inner {
    running: bool,
    listeners: BTreeMap<u32, Arc<Accept>>,
    requests: VecDeque<Request>,
}

impl Shared {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            inner: Mutex::default(),
            wake: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// There is no state in here that a panic leaves half changed.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether requests are taken. Those that wait when it stops are answered.
    pub fn set_running(&self, running: bool) {
        let mut inner = self.lock();
        inner.running = running;
        let left = std::mem::take(&mut inner.requests);
        drop(inner);
        drop(left);
    }

    pub fn take_requests(&self) -> VecDeque<Request> {
        std::mem::take(&mut self.lock().requests)
    }

    pub fn listener(&self, port: u32) -> Option<Arc<Accept>> {
        self.lock().listeners.get(&port).cloned()
    }

    fn submit(&self, request: Request) {
        let mut inner = self.lock();
        let refusal = if !inner.running {
            ConnectError::NotRunning
        } else if inner.requests.len() >= MAX_CONNECTIONS {
            ConnectError::TooMany
        } else {
            inner.requests.push_back(request);
            drop(inner);
            // A full counter is a signal too.
            let _ = self.wake.write(1);
            return;
        };
        drop(inner);
        request.answer(Err(refusal));
    }
}

/// The way to a guest's ports and to those of the host that the guest can reach, without a file.
/// It stays good over resets of the device; connections do not.
#[derive(Clone)]
pub struct VsockHandle {
    shared: Arc<Shared>,
}

impl VsockHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Listens to `port` of the host. At most `backlog` connections wait to be accepted; the guest
    /// is refused beyond that.
    ///
    /// # Errors
    /// The port is listened to already.
    pub fn listen(&self, port: u32, backlog: usize) -> Result<VsockListener, ListenError> {
        let (sender, incoming) = sync_channel(backlog.max(1));
        let guard = self.listen_with(port, move |connection| {
            sender.try_send(connection).map_err(|_| Refused)
        })?;
        Ok(VsockListener {
            incoming,
            _guard: guard,
        })
    }

    /// Calls `accept` for each connection to `port` of the host, on the event loop's thread, where
    /// it may not wait for anything.
    ///
    /// # Errors
    /// The port is listened to already.
    pub fn listen_with(
        &self,
        port: u32,
        accept: impl Fn(Incoming) -> Result<(), Refused> + Send + Sync + 'static,
    ) -> Result<ListenGuard, ListenError> {
        let mut inner = self.shared.lock();
        if inner.listeners.contains_key(&port) {
            return Err(ListenError::Taken { port });
        }
        inner.listeners.insert(port, Arc::new(accept));
        Ok(ListenGuard {
            shared: Arc::downgrade(&self.shared),
            port,
        })
    }

    /// Connects to `port` of the guest and waits for its answer. Not to be called on the event
    /// loop's thread, which brings the answer.
    ///
    /// # Errors
    /// The guest refused, did not answer within `timeout`, or there can be no connection now.
    pub fn connect(&self, port: u32, timeout: Duration) -> Result<UnixStream, ConnectError> {
        let (sender, answer) = sync_channel(1);
        self.connect_then(port, timeout, move |result| {
            // Whoever asked waits below.
            let _ = sender.try_send(result);
        });
        answer.recv().unwrap_or(Err(ConnectError::Closed))
    }

    /// Connects to `port` of the guest and calls `done` with the result: on the event loop's
    /// thread, on the caller's if it is known at once, or on the one that resets or drops the
    /// device. It may not wait for anything, nor touch the device.
    pub fn connect_then(
        &self,
        port: u32,
        timeout: Duration,
        done: impl FnOnce(Result<UnixStream, ConnectError>) + Send + 'static,
    ) {
        self.shared.submit(Request {
            port,
            timeout,
            done: Some(Box::new(done)),
        });
    }
}

impl fmt::Debug for VsockHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VsockHandle").finish_non_exhaustive()
    }
}

/// A port of the host that the guest can connect to. Dropping it ends that, and closes what was
/// not accepted.
#[derive(Debug)]
pub struct VsockListener {
    incoming: Receiver<Incoming>,
    _guard: ListenGuard,
}

impl VsockListener {
    /// Waits for a connection. None if there will never be one, because the device is gone.
    pub fn accept(&self) -> Option<Incoming> {
        self.incoming.recv().ok()
    }

    /// Waits for a connection for at most `timeout`.
    pub fn accept_timeout(&self, timeout: Duration) -> Option<Incoming> {
        self.incoming.recv_timeout(timeout).ok()
    }

    /// A connection that is there already.
    pub fn try_accept(&self) -> Option<Incoming> {
        self.incoming.try_recv().ok()
    }
}

/// Listens until it is dropped.
#[must_use = "the port is listened to until this is dropped"]
pub struct ListenGuard {
    // The device and the handles keep it, so that a listener learns when they are gone.
    shared: Weak<Shared>,
    port: u32,
}

impl Drop for ListenGuard {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            let accept = shared.lock().listeners.remove(&self.port);
            drop(accept);
        }
    }
}

impl fmt::Debug for ListenGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenGuard")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}
