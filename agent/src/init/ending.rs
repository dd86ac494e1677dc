//! The machine's last moments: what runs is asked to end, then made to, and the host reads what it
//! has written.

use crate::sys;

/// Milliseconds that processes get to end by themselves, and then at all.
const GRACE: u64 = 100;
const GRACE_AFTER_KILL: u64 = 1000;
/// Milliseconds that the host gets to read.
const GRACE_TO_READ: u64 = 2000;

const KILL: u8 = 9;
const TERM: u8 = 15;
const CONT: u8 = 18;

enum Phase {
    Asked,
    Killed,
    Reading,
}

pub(crate) struct Ending {
    status: u8,
    phase: Phase,
    deadline: u64,
}

/// What the end waits for.
pub(crate) struct Left {
    /// There are processes.
    pub(crate) processes: bool,
    /// There is something that the host has not read.
    pub(crate) unread: bool,
}

impl Ending {
    pub(crate) fn begin(status: u8) -> Self {
        everybody(TERM);
        // One that is stopped could not act upon it.
        everybody(CONT);
        Ending {
            status,
            phase: Phase::Asked,
            deadline: sys::now() + GRACE,
        }
    }

    /// Goes on as far as it goes; returns the exit status when nothing is left, or no time.
    pub(crate) fn go_on(&mut self, left: &Left) -> Option<u8> {
        loop {
            let over = sys::now() >= self.deadline;
            let (phase, grace) = match self.phase {
                Phase::Asked | Phase::Killed if !left.processes => (Phase::Reading, GRACE_TO_READ),
                Phase::Asked if over => {
                    everybody(KILL);
                    (Phase::Killed, GRACE_AFTER_KILL)
                }
                // It hangs in the kernel.
                Phase::Killed if over => (Phase::Reading, GRACE_TO_READ),
                Phase::Reading if over || !left.unread => return Some(self.status),
                _ => return None,
            };
            self.phase = phase;
            self.deadline = sys::now() + grace;
        }
    }

    /// Milliseconds until it goes on in any case.
    pub(crate) fn time_left(&self) -> u64 {
        self.deadline.saturating_sub(sys::now())
    }
}

fn everybody(signal: u8) {
    let _ = sys::kill(-1, signal);
}
