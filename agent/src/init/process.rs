//! A process that the host has started.

use alloc::vec::Vec;

use casita_agent::spec::WindowSize;
use casita_agent::wire::Exit;
use rustix::fd::OwnedFd;
use rustix::process::WaitStatus;
use rustix::termios::tcgetpgrp;

use crate::group::Group;
use crate::slots::Token;
use crate::{stdio, sys};

pub(crate) struct Process {
    /// The host's number for it.
    pub(crate) id: u32,
    pub(crate) pid: i32,
    terminal: Option<OwnedFd>,
    /// Its control group, if it has one of its own.
    pub(crate) group: Option<Group>,
    /// Where it tells whether it could become its program, until it has.
    pub(crate) report: Option<Token>,
    /// It could not, and the host knows.
    pub(crate) failed: bool,
    pub(crate) exit: Option<Exit>,
    /// Its standard streams.
    pub(crate) streams: Vec<Token>,
    /// How many of them still carry what it writes.
    pub(crate) outputs: usize,
}

impl Process {
    pub(crate) fn new(id: u32, pid: i32, terminal: Option<OwnedFd>, report: Token) -> Self {
        Process {
            id,
            pid,
            terminal,
            group: None,
            report: Some(report),
            failed: false,
            exit: None,
            streams: Vec::new(),
            outputs: 0,
        }
    }

    /// Whether nothing more will be told of it.
    pub(crate) fn is_over(&self) -> bool {
        self.exit.is_some() && self.report.is_none() && (self.failed || self.outputs == 0)
    }

    /// Sends it a signal, and whatever has its terminal now.
    pub(crate) fn signal(&self, signal: u8) {
        // Its number may be another's by now.
        if self.exit.is_some() || !(1..=64).contains(&signal) {
            return;
        }
        let group = self.terminal.as_ref().and_then(|it| tcgetpgrp(it).ok());
        let group = group.map(|group| group.as_raw_nonzero().get());
        // It may have ended just now.
        if group != Some(self.pid) {
            let _ = sys::kill(self.pid, signal);
        }
        if let Some(group) = group {
            let _ = sys::kill(-group, signal);
        }
    }

    pub(crate) fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.terminal {
            let _ = stdio::resize(terminal, size);
        }
    }
}

/// How a process ended, of which the kernel says `status`.
pub(crate) fn exit_of(status: WaitStatus) -> Exit {
    // Both are bits of the kernel's status word, and fit.
    let byte = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
    match status.terminating_signal() {
        Some(signal) => Exit::Signal(byte(signal)),
        None => Exit::Code(byte(status.exit_status().unwrap_or_default())),
    }
}
