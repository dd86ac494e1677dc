//! The user's terminal: raw while a guest has it, and as it was afterwards, however casita ends.

use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic;
use std::sync::Mutex;

use casita_agent::spec::WindowSize;
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};

use crate::session::HANG_UP_KEY;

/// What casita's standard input and output are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// A terminal that a person sits at.
    Terminal,
    /// Pipes or files.
    Stream,
    /// As `Stream`, and the input must not be read: it is closed, or a terminal that is in use by
    /// another job.
    OutputOnly,
}

impl Console {
    /// Looks at the process's own standard streams.
    pub fn detect() -> Self {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        if !stdin.is_terminal() {
            return match rustix::io::fcntl_getfd(&stdin) {
                Ok(_) => Self::Stream,
                Err(_) => Self::OutputOnly,
            };
        }
        if tcgetpgrp(&stdin).is_ok_and(|group| group != getpgrp()) {
            return Self::OutputOnly;
        }
        if !stdout.is_terminal() {
            return Self::Stream;
        }
        Self::Terminal
    }
}

/// The size of the terminal at standard output, if there is one.
pub fn window_size() -> Option<WindowSize> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    Some(WindowSize {
        rows: size.ws_row,
        cols: size.ws_col,
    })
}

/// Ctrl-D: ends the input of a line discipline that is in canonical mode.
const END_OF_INPUT: u8 = 0x04;

/// How often a guest that reads on finds the end of its input.
const ENDINGS: u8 = 4;

/// Casita's standard input as the keyboard of a guest without an agent.
pub struct ConsoleInput {
    fd: OwnedFd,
    /// Called when the user types [`HANG_UP_KEY`]; without one it is a byte like others.
    on_escape: Option<Box<dyn Fn() + Send>>,
    /// What the guest is told when the input has ended.
    ending: Ending,
    at_line_start: bool,
}

enum Ending {
    /// Nothing: whoever sits at a terminal types Ctrl-D.
    Silent,
    /// So many Ctrl-D: each ends one read of the guest's, and where a pipe stays at its end, a
    /// terminal does not. One more comes first if the last line is not complete.
    Due(u8),
}

impl ConsoleInput {
    /// The input that fits `console`, if it is to be read at all.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new(
        console: Console,
        on_escape: impl Fn() + Send + 'static,
    ) -> io::Result<Option<Self>> {
        let (on_escape, ending) = match console {
            Console::OutputOnly => return Ok(None),
            Console::Stream => (None, Ending::Due(ENDINGS)),
            Console::Terminal => (
                Some(Box::new(on_escape) as Box<dyn Fn() + Send>),
                Ending::Silent,
            ),
        };
        let fd = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Some(Self {
            fd,
            on_escape,
            ending,
            at_line_start: true,
        }))
    }
}

impl Read for ConsoleInput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = rustix::io::read(&self.fd, &mut *buffer)?;
        if let Some(last) = buffer[..count].last() {
            self.at_line_start = *last == b'\n';
            if let (Some(on_escape), true) =
                (&self.on_escape, buffer[..count].contains(&HANG_UP_KEY))
            {
                on_escape();
            }
            return Ok(count);
        }
        if let (Ending::Due(left @ 1..), Some(first)) = (&mut self.ending, buffer.first_mut()) {
            *first = END_OF_INPUT;
            if self.at_line_start {
                *left -= 1;
            }
            self.at_line_start = true;
            return Ok(1);
        }
        Ok(0)
    }
}

impl AsFd for ConsoleInput {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The settings to go back to.
static SAVED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// A terminal in raw mode; it is restored when this is dropped, or on a panic before that.
pub struct RawTerminal(());

impl RawTerminal {
    /// Puts the terminal at standard input into raw mode. One that is closed has none, and is no error:
    /// whoever it is closed to hears of that by SIGHUP, or at its next read.
    ///
    /// # Errors
    /// If it is none.
    pub fn enter() -> io::Result<Self> {
        let fd = io::stdin().as_fd().try_clone_to_owned()?;
        let Some(before) = settings(&fd)? else {
            return Ok(Self(()));
        };
        let mut raw = before.clone();
        raw.make_raw();
        *saved() = Some((fd, before));
        let guard = Self(());
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
        if let Some((fd, _)) = &*saved() {
            unless_closed(tcsetattr(fd, OptionalActions::Now, &raw))?;
        }
        Ok(guard)
    }
}

/// The terminal's settings; None if it is closed.
fn settings(terminal: &OwnedFd) -> io::Result<Option<Termios>> {
    unless_closed(tcgetattr(terminal))
}

/// What a terminal answers that may be closed: at its other end, where the kernel says EIO.
fn unless_closed<T>(answer: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(rustix::io::Errno::IO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn saved() -> std::sync::MutexGuard<'static, Option<(OwnedFd, Termios)>> {
    SAVED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn restore() {
    if let Some((fd, before)) = saved().take() {
        // Waits until what was written is out; a terminal that is gone needs nothing.
        let _ = tcsetattr(&fd, OptionalActions::Drain, &before);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{Mode, OFlags, open};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;

    #[test]
    fn a_terminal_that_is_closed_has_no_settings() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let terminal = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        assert!(settings(&terminal).unwrap().is_some());
        drop(master);
        assert!(settings(&terminal).unwrap().is_none());
        let file = File::open("/dev/null").unwrap();
        assert!(settings(&file.into()).is_err());
    }
}
