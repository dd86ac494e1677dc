//! What a running machine can be told to do. All of it goes through one channel to its one owner.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use thiserror::Error;

use super::{Event, EventSender};
use crate::vm_stats::VmStats;

/// What a running machine can be told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Stop all vCPUs where they are. Answered when none runs. I/O that is in flight then
    /// completes, and nothing else happens until [`Command::Resume`].
    ///
    /// To the guest it is as if its CPUs had been taken away for a while: the clocks of the host go
    /// on, so its time is right when it goes on, and timers that were due meanwhile fire at once.
    /// Its kernel is told of the gap (`KVM_KVMCLOCK_CTRL`), so that its watchdog does not take it
    /// for a lock-up.
    ///
    /// A vCPU that waits for a slow reader of the console is where it can be stopped only when
    /// that has read on.
    Pause,
    /// Let them go on.
    Resume,
    /// Tell what it uses.
    Stats,
    /// Tell how much CPU time its vCPUs have used, in the guest and for it.
    CpuTime,
    /// End at once.
    Kill,
}

/// What a machine answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// What it uses.
    Stats(Box<VmStats>),
    /// CPU time of all vCPUs.
    CpuTime(Duration),
}

/// The machine ended before it could answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the VM has just ended")]
pub struct Ended;

/// Where a machine's answer goes. Dropping it without one tells of its end.
#[derive(Debug)]
pub struct Reply(Sender<Answer>);

impl Reply {
    /// Answers; whoever asked may be gone.
    pub fn answer(self, answer: Answer) {
        let _ = self.0.send(answer);
    }
}

impl EventSender {
    /// Tells the machine to do something, and waits until it has.
    ///
    /// # Errors
    /// If it ends before.
    pub fn command(&self, command: Command) -> Result<Answer, Ended> {
        self.begin(command)?.recv().map_err(|_| Ended)
    }

    /// Tells the machine to do something; what it is told first is done first. Nothing comes where
    /// the answer would if the machine ends before.
    ///
    /// # Errors
    /// If it has ended.
    pub fn begin(&self, command: Command) -> Result<Receiver<Answer>, Ended> {
        let (reply, answer) = channel();
        // Unlike events, a command waits for its turn: no guest can make it go unheard.
        self.0
            .send(Event::Command(command, Reply(reply)))
            .map_err(|_| Ended)?;
        Ok(answer)
    }
}
