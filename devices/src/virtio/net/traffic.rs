//! What has gone through a network device, counted for people who look at it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Frames, their bytes, and those that were lost, since the device was made. 'Sent' and 'received' are
/// the guest's words.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: Counters,
    received: Counters,
}

/// One direction.
#[derive(Debug, Default)]
pub struct Counters {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Traffic {
    /// What the guest has sent.
    pub fn sent(&self) -> &Counters {
        &self.sent
    }

    /// What the guest has received.
    pub fn received(&self) -> &Counters {
        &self.received
    }
}

impl Counters {
    /// Frames that went through; one that is to be cut into segments counts as one.
    pub fn frames(&self) -> u64 {
        self.frames.load(Relaxed)
    }

    /// Their bytes, with Ethernet's headers.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Frames that did not: malformed or not allowed, no room for them, or the link was down.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    pub(super) fn count(&self, bytes: usize) {
        self.frames.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn count_dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }
}
