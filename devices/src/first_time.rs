//! When something happened first, for the account of a boot: one load for each time after that.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::stamp::monotonic_ns;

/// The time of the first of many events.
#[derive(Debug, Default)]
pub struct FirstTime(AtomicU64);

impl FirstTime {
    /// It happens now; only the first call counts.
    pub fn note(&self) {
        if self.0.load(Relaxed) == 0 {
            // Whoever comes second at the same moment loses nothing by it.
            let _ = self
                .0
                .compare_exchange(0, monotonic_ns().max(1), Relaxed, Relaxed);
        }
    }

    /// `CLOCK_MONOTONIC` then, in nanoseconds; None before.
    pub fn at_ns(&self) -> Option<u64> {
        Some(self.0.load(Relaxed)).filter(|at| *at != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_call_counts() {
        let first = FirstTime::default();
        assert_eq!(first.at_ns(), None);
        let before = monotonic_ns();
        first.note();
        let at = first.at_ns().unwrap();
        assert!((before..=monotonic_ns()).contains(&at));
        while monotonic_ns() == at {}
        first.note();
        assert_eq!(first.at_ns(), Some(at));
    }
}
