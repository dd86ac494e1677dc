//! A back end whose frames are judged by a guard.

use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use casita_devices::virtio::net::backend::{
    Backend, Frame, HEAD_LEN, Landing, MAX_FRAME_LEN, Received, Sent, Wrapper,
};
use casita_devices::virtio::net::pieces::PiecesMut;
use casita_net::{EgressPolicy, Guard, Resolved, Verdict};

use super::NetworkError;

/// An uplink that takes only what the guard lets pass.
pub struct Guarded<B> {
    inner: B,
    guard: Arc<Mutex<Guard>>,
    learns: bool,
    /// Where frames land whose every byte is looked at, out of the guest's reach.
    buffer: Vec<u8>,
}

impl<B: Backend> Guarded<B> {
    /// Puts `guard` before `inner`. The queue pairs of one device share a guard.
    pub fn new(inner: B, guard: Arc<Mutex<Guard>>) -> Self {
        let (learns, whole) = {
            let guard = lock(&guard);
            (guard.learns(), guard.reads_answers())
        };
        let buffer = if whole {
            vec![0; MAX_FRAME_LEN as usize]
        } else {
            Vec::new()
        };
        Self {
            inner,
            guard,
            learns,
            buffer,
        }
    }

    /// Receives a frame and lets the guard learn from it.
    pub(super) fn receive_and_learn(&mut self, landing: &mut Landing<'_>) -> Received {
        if !self.buffer.is_empty() {
            return self.receive_whole(landing);
        }
        let received = self.inner.receive(landing);
        if let (Received::Frame { len, .. }, true) = (&received, self.learns) {
            let head = landing.head();
            let head = head.get(..*len).unwrap_or(head);
            lock(&self.guard).learn(head, *len, Instant::now());
        }
        received
    }

    /// The same by way of the host's memory.
    fn receive_whole(&mut self, landing: &mut Landing<'_>) -> Received {
        let (head, rest) = self.buffer.split_at_mut(HEAD_LEN);
        let mut own = Landing::new(head, PiecesMut::of_bytes(rest));
        let received = self.inner.receive(&mut own);
        let Received::Frame { len, .. } = &received else {
            return received;
        };
        let frame = self.buffer.get(..*len).unwrap_or_default();
        lock(&self.guard).learn(frame, *len, Instant::now());
        if landing.place(frame) {
            received
        } else {
            Received::Dropped
        }
    }
}

fn lock(guard: &Mutex<Guard>) -> MutexGuard<'_, Guard> {
    guard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Backend> Wrapper for Guarded<B> {
    type Inner = B;

    fn inner(&self) -> &B {
        &self.inner
    }

    fn inner_mut(&mut self) -> &mut B {
        &mut self.inner
    }

    fn pass_out(&mut self, frame: &Frame<'_>) -> Sent {
        let verdict = lock(&self.guard).judge(frame.head, frame.len(), Instant::now());
        match verdict {
            Verdict::Pass => self.inner.send(frame),
            Verdict::Drop(reason) => {
                log::trace!("not sent: {reason}");
                Sent::Dropped
            }
        }
    }

    fn pass_in(&mut self, landing: &mut Landing<'_>) -> Received {
        self.receive_and_learn(landing)
    }
}

/// What the names of `policy` mean to this host.
///
/// # Errors
/// If one means nothing, or nothing that a guest could reach.
pub fn resolve(policy: &EgressPolicy) -> Result<Resolved, NetworkError> {
    let mut resolved = Resolved::new();
    for name in policy.names() {
        let unresolved = |why: String| NetworkError::Unresolved {
            name: name.to_string(),
            why,
        };
        let found = (name.as_str(), 0).to_socket_addrs();
        let found = found.map_err(|error| unresolved(error.to_string()))?;
        let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
        addresses.retain(|address| casita_net::frame::is_station(*address));
        addresses.sort();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(unresolved(
                "it has no address that a guest can reach".to_owned(),
            ));
        }
        resolved.insert(name.clone(), addresses);
    }
    Ok(resolved)
}
