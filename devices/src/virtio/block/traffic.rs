//! What has gone through a disk, counted for people who look at it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::request::Request;
use crate::first_time::FirstTime;

/// Requests that succeeded, and their bytes, since the device was made.
#[derive(Debug, Default)]
pub struct Traffic {
    reads: AtomicU64,
    writes: AtomicU64,
    read_bytes: AtomicU64,
    write_bytes: AtomicU64,
    first_read: FirstTime,
}

impl Traffic {
    /// Requests to read.
    pub fn reads(&self) -> u64 {
        self.reads.load(Relaxed)
    }

    /// Requests to write.
    pub fn writes(&self) -> u64 {
        self.writes.load(Relaxed)
    }

    /// Bytes read.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Relaxed)
    }

    /// Bytes written.
    pub fn write_bytes(&self) -> u64 {
        self.write_bytes.load(Relaxed)
    }

    /// When the first request to read was done: `CLOCK_MONOTONIC` in nanoseconds.
    pub fn first_read_ns(&self) -> Option<u64> {
        self.first_read.at_ns()
    }

    pub(super) fn count(&self, request: &Request) {
        let (requests, bytes, len) = match request {
            Request::Read { len, .. } => {
                self.first_read.note();
                (&self.reads, &self.read_bytes, len)
            }
            Request::Write { len, .. } => (&self.writes, &self.write_bytes, len),
            _ => return,
        };
        requests.fetch_add(1, Relaxed);
        bytes.fetch_add(u64::from(*len), Relaxed);
    }
}
