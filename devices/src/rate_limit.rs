//! Logs that a guest can cause, kept to a rate that cannot fill a disk.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// Messages that may pass in one window.
const BURST: u32 = 10;
/// Length of a window in milliseconds.
const WINDOW_MS: u64 = 5_000;

/// Lets [`BURST`] messages pass in every [`WINDOW_MS`] and counts the rest.
///
/// One belongs to each source that a guest can provoke, so that one noisy device does not silence
/// another. It takes no lock; two threads that race may pass one message too many, no more.
#[derive(Debug, Default)]
pub struct RateLimit {
    /// Start of the window, in milliseconds since the program's first message.
    window: AtomicU64,
    passed: AtomicU32,
    dropped: AtomicU32,
}

impl RateLimit {
    /// A limit with its whole burst unspent.
    pub const fn new() -> Self {
        Self {
            window: AtomicU64::new(0),
            passed: AtomicU32::new(0),
            dropped: AtomicU32::new(0),
        }
    }

    /// Logs `message` at `level` unless too many came before it. The first message that passes
    /// after some were dropped says how many.
    pub fn log(&self, level: log::Level, message: fmt::Arguments<'_>) {
        if !log::log_enabled!(level) {
            return;
        }
        match self.admit(now_ms()) {
            Some(0) => log::log!(level, "{message}"),
            Some(dropped) => log::log!(level, "{message} ({dropped} similar messages left out)"),
            None => {}
        }
    }

    /// Some(number dropped since the last that passed) if a message may pass at `now` (in
    /// milliseconds), None if it has to be dropped.
    fn admit(&self, now: u64) -> Option<u32> {
        let window = self.window.load(Ordering::Relaxed);
        if now.saturating_sub(window) >= WINDOW_MS {
            self.window.store(now, Ordering::Relaxed);
            self.passed.store(0, Ordering::Relaxed);
        }
        let passed = self
            .passed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |passed| {
                (passed < BURST).then_some(passed + 1)
            });
        if passed.is_ok() {
            return Some(self.dropped.swap(0, Ordering::Relaxed));
        }
        // Saturates: a guest may drop more messages than fit the counter.
        let _ = self
            .dropped
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |dropped| {
                dropped.checked_add(1)
            });
        None
    }
}

fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_passes_and_the_rest_is_counted() {
        let limit = RateLimit::new();
        for _ in 0..BURST {
            assert_eq!(limit.admit(1), Some(0));
        }
        for _ in 0..1_000 {
            assert_eq!(limit.admit(WINDOW_MS - 1), None);
        }
        assert_eq!(limit.admit(WINDOW_MS), Some(1_000));
        assert_eq!(limit.admit(WINDOW_MS), Some(0));
    }

    #[test]
    fn clock_that_steps_back_drops_rather_than_floods() {
        let limit = RateLimit::new();
        for _ in 0..BURST {
            assert_eq!(limit.admit(WINDOW_MS * 9), Some(0));
        }
        assert_eq!(limit.admit(0), None);
    }
}
