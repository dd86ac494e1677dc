//! Connections: those that the guest opens, and those that the host opens.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::{ACCEPT_PAUSE, CLIENT_TIMEOUT, Due, HANDSHAKE_TIMEOUT, MAX_RESETS, Worker, token};
use crate::event_loop::{Control, Interest, Source};
use crate::virtio::vsock::Ports;
use crate::virtio::vsock::connection::{Connection, End, Key, Opener, State};
use crate::virtio::vsock::handshake::Handshake;
use crate::virtio::vsock::host::{ConnectError, Incoming, Request};
use crate::virtio::vsock::packet::{Header, Op};

/// Clients that are accepted before other handlers have their turn.
const BUDGET: usize = 16;

impl Worker {
    /// The guest wants to connect to a port of the host.
    pub(super) fn take_request(&mut self, header: &Header, control: &mut Control<'_>) {
        let key = Key {
            host_port: header.dst_port.get(),
            guest_port: header.src_port.get(),
        };
        if self.connections.is_full() {
            self.notifier.warn(&"too many connections");
            return self.refuse(header);
        }
        let stream = match self.open_host_port(key) {
            Ok(Some(stream)) => stream,
            Ok(None) => return self.refuse(header),
            Err(error) => {
                let warning = format_args!("port {}: {error}", key.host_port).to_string();
                self.notifier.warn(&warning);
                return self.refuse(header);
            }
        };
        let mut connection = Connection::new(State::Open, stream);
        let (alloc, forwarded) = (header.buf_alloc.get(), header.fwd_cnt.get());
        connection.send.update(alloc, forwarded);
        connection.pending.add(Op::Response);
        if let Some(slot) = self.connections.insert(connection) {
            self.connections.name(slot, key);
            self.settle(slot, control);
        }
    }

    /// Our end of a stream to whoever listens to a port of the host. None if nobody does, or does
    /// not want to.
    fn open_host_port(&self, key: Key) -> io::Result<Option<UnixStream>> {
        if let Some(accept) = self.host.shared.listener(key.host_port) {
            let (ours, stream) = UnixStream::pair()?;
            let guest_port = key.guest_port;
            let taken = accept(Incoming { stream, guest_port });
            return Ok(taken.is_ok().then_some(ours));
        }
        let Some(ports) = &self.host.ports else {
            return Ok(None);
        };
        match ports(key.host_port) {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if is_nobody(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Somebody in this process wants to connect to ports of the guest.
    pub(super) fn take_requests(&mut self, control: &mut Control<'_>) {
        // An error means that there was no signal.
        let _ = self.host.shared.wake.read();
        for request in self.host.shared.take_requests() {
            if self.connections.is_full() || self.resets.len() >= MAX_RESETS {
                request.answer(Err(ConnectError::TooMany));
                continue;
            }
            match UnixStream::pair() {
                Ok((ours, theirs)) => self.open(request, ours, theirs, control),
                Err(error) => request.answer(Err(error.into())),
            }
        }
    }

    fn open(
        &mut self,
        request: Request,
        ours: UnixStream,
        theirs: UnixStream,
        control: &mut Control<'_>,
    ) {
        let (port, timeout) = (request.port, request.timeout);
        let key = self.connections.free_key(port);
        let state = State::Requested(Opener::InProcess(request, theirs));
        let mut connection = Connection::new(state, ours);
        connection.pending.add(Op::Request);
        if let Some(slot) = self.connections.insert(connection) {
            self.connections.name(slot, key);
            self.set_deadline(slot, timeout);
            self.settle(slot, control);
        }
    }

    /// Programs of the host's want to connect to ports of the guest.
    pub(super) fn accept_clients(&mut self, control: &mut Control<'_>) {
        for _ in 0..BUDGET {
            let Some(listener) = &self.host.listener else {
                return;
            };
            if self.connections.is_full() || self.resets.len() >= MAX_RESETS {
                return;
            }
            match listener.accept() {
                Ok((client, _)) => self.accept_client(client, control),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        self.notifier.warn(&error);
                        let at = Instant::now() + ACCEPT_PAUSE;
                        self.due.insert((at, Due::Listener));
                        self.listening_paused = true;
                        return;
                    }
                },
            }
        }
    }

    fn accept_client(&mut self, client: UnixStream, control: &mut Control<'_>) {
        let state = State::Handshake(Handshake::default());
        let connection = Connection::new(state, client);
        if let Some(slot) = self.connections.insert(connection) {
            self.set_deadline(slot, HANDSHAKE_TIMEOUT);
            self.settle(slot, control);
        }
    }

    /// A client has sent something, or hung up.
    pub(super) fn go_on_with_handshake(&mut self, slot: u32, control: &mut Control<'_>) {
        let Some(connection) = self.connections.get_mut(slot) else {
            return;
        };
        let State::Handshake(handshake) = &mut connection.state else {
            return;
        };
        match handshake.read(&connection.stream) {
            Ok(None) => {}
            Ok(Some(port)) => {
                let key = self.connections.free_key(port);
                self.connections.name(slot, key);
                if let Some(connection) = self.connections.get_mut(slot) {
                    let host_port = key.host_port;
                    connection.state = State::Requested(Opener::Client { host_port });
                    connection.pending.add(Op::Request);
                }
                self.set_deadline(slot, CLIENT_TIMEOUT);
                self.settle(slot, control);
            }
            Err(error) => {
                log::debug!("vsock: {error}");
                self.close(slot, End::Silent, ConnectError::Closed, control);
            }
        }
    }

    /// Waits for clients while there is room for one.
    pub(super) fn update_listening(&mut self, control: &mut Control<'_>) {
        let Some(listener) = &self.host.listener else {
            return;
        };
        let source = Source {
            fd: listener.as_raw_fd(),
            token: token::LISTENER,
            interest: Interest::READ,
        };
        let room = !self.connections.is_full() && self.resets.len() < MAX_RESETS;
        let wanted = room && !self.listening_paused && !self.broken;
        if wanted == self.is_listening {
            return;
        }
        let done = if wanted {
            control.enable(source)
        } else {
            control.disable(source)
        };
        match done {
            Ok(()) => self.is_listening = wanted,
            Err(error) => self.notifier.warn(&error),
        }
    }
}

/// Ports whose Unix sockets are at `base`.
pub(in crate::virtio::vsock) fn ports_at(base: PathBuf) -> Ports {
    Arc::new(move |port| {
        let mut path = OsString::from(&base);
        path.push(format!("_{port}"));
        connect_to(Path::new(&path))
    })
}

/// Connects to a Unix socket without waiting for whoever listens to it.
fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}

/// Nobody listens, or has time for one more.
fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
    )
}
