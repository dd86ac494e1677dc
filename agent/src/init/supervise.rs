//! PID 1's duties while the command runs and when it has ended.

use casita_agent::spec::GuestSpec;
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, wait,
};

use crate::child::Command;
use crate::failure::{Doing, Failure};
use crate::sys::{self, SignalSet};

/// Signals that are the command's, whoever sends them to PID 1.
const FORWARDED: [Signal; 6] = [
    Signal::TERM,
    Signal::INT,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
];

/// Milliseconds that what the command left behind gets to end by itself, and then at all.
const GRACE: u32 = 100;
const GRACE_AFTER_KILL: u32 = 1000;
/// Milliseconds between looking whether it has.
const GRACE_STEP: u32 = 10;

/// Runs the spec's command and everything that it starts; returns its exit status when nothing of
/// it is left.
pub(crate) fn run(spec: &GuestSpec) -> Result<u8, Failure> {
    let command = Command::new(spec).doing(|| "cannot prepare the command")?;
    let mut signals = [Signal::CHILD; FORWARDED.len() + 1];
    for (slot, signal) in signals.iter_mut().zip(FORWARDED) {
        *slot = signal;
    }
    let signals = SignalSet::of(&signals);
    // Held back from now on, none is lost between looking and waiting.
    sys::block_signals(signals);
    let Some(pid) = sys::fork().doing(|| "cannot start a process")? else {
        command.become_it()
    };
    let status = loop {
        if let Some(status) = reap(Some(pid)).ended {
            break status;
        }
        match sys::wait_for_signal(signals, None) {
            None | Some(Signal::CHILD) => {}
            Some(signal) => {
                // It may have ended just now.
                let _ = kill_process(pid, signal);
            }
        }
    };
    end_the_rest();
    Ok(exit_status(status))
}

/// What [`reap`] found.
struct Reaped {
    /// How the process that was asked for ended, if it did.
    ended: Option<WaitStatus>,
    /// Whether processes are left. Those without a parent are PID 1's children, so if it has none,
    /// there is none.
    left: bool,
}

/// Collects all processes that have ended.
fn reap(asked: Option<Pid>) -> Reaped {
    let mut ended = None;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if Some(pid) == asked => ended = Some(status),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return Reaped { ended, left: true },
            Err(_) => return Reaped { ended, left: false },
        }
    }
}

/// Ends what the command left behind: politely, then for good.
fn end_the_rest() {
    for (signal, grace) in [(Signal::TERM, GRACE), (Signal::KILL, GRACE_AFTER_KILL)] {
        if !reap(None).left {
            return;
        }
        // To rustix the group of PID 1 is kill(2)'s -1: every process but this one.
        let _ = kill_process_group(Pid::INIT, signal);
        let children = SignalSet::of(&[Signal::CHILD]);
        for _ in 0..grace / GRACE_STEP {
            if !reap(None).left {
                return;
            }
            sys::wait_for_signal(children, Some(GRACE_STEP));
        }
    }
}

/// An exit status as shells report it: the command's own, or 128 and the signal that ended it.
fn exit_status(status: WaitStatus) -> u8 {
    let status = match status.terminating_signal() {
        Some(signal) => 128 + signal,
        None => status.exit_status().unwrap_or_default(),
    };
    u8::try_from(status & 0xff).unwrap_or(u8::MAX)
}
