//! Aids for tests of devices without a guest: an interrupt that counts, and a driver that builds
//! rings in guest memory and drives a transport's registers as a guest would.
//!
//! Everything here panics when something is not as a driver would expect it.

mod driver;
mod idle;

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::interrupt::Interrupt;

pub use driver::{FakeDriver, RingLayout, Used};
pub use idle::{Keeper, idle_net};

/// How long a device may take before a test has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Counts edges, and lets a test wait for one.
#[derive(Default)]
pub struct CountingInterrupt {
    count: Mutex<u64>,
    raised: Condvar,
}

impl CountingInterrupt {
    /// Edges so far.
    pub fn count(&self) -> u64 {
        *self.count.lock().unwrap()
    }

    /// Waits until `count` edges were raised in all; false if they were not within ten seconds.
    pub fn wait_for(&self, count: u64) -> bool {
        let guard = self.count.lock().unwrap();
        let waited = self
            .raised
            .wait_timeout_while(guard, PATIENCE, |raised| *raised < count);
        !waited.unwrap().1.timed_out()
    }
}

impl Interrupt for CountingInterrupt {
    fn raise(&self) {
        *self.count.lock().unwrap() += 1;
        self.raised.notify_all();
    }
}
