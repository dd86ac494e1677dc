//! The standard streams of a new process: pipes, so that it can open `/dev/stdout` again, or a
//! terminal.

use casita_agent::spec::WindowSize;
use casita_agent::wire::Start;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::failure::{Doing, Failure};
use crate::vsock;

/// Both ends of a process's standard input, output and error. What is missing is `/dev/null`.
pub(crate) struct Stdio {
    pub(crate) child: [Option<OwnedFd>; 3],
    /// The agent's ends, on which no call waits.
    pub(crate) local: [Option<OwnedFd>; 3],
    /// The terminal's end that whoever sits at it has.
    pub(crate) terminal: Option<OwnedFd>,
}

impl Stdio {
    pub(crate) fn new(start: &Start) -> Result<Self, Failure> {
        match start.process.terminal {
            Some(size) => Self::terminal(start, size).doing(|| "cannot make a terminal"),
            None => Self::pipes(start).doing(|| "cannot make a pipe"),
        }
    }

    fn pipes(start: &Start) -> Result<Self, Errno> {
        let pipe = |wanted: bool| wanted.then(new_pipe).transpose().map(Option::unzip);
        let (stdin, to_stdin) = pipe(start.stdin.is_some())?;
        let (from_stdout, stdout) = pipe(start.stdout.is_some())?;
        let (from_stderr, stderr) = pipe(start.stderr.is_some())?;
        let local = [to_stdin, from_stdout, from_stderr];
        local
            .iter()
            .flatten()
            .try_for_each(vsock::set_nonblocking)?;
        Ok(Stdio {
            child: [stdin, stdout, stderr],
            local,
            terminal: None,
        })
    }

    fn terminal(start: &Start, size: WindowSize) -> Result<Self, Errno> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let terminal = open("/dev/pts/ptmx", flags, Mode::empty())?;
        unlockpt(&terminal)?;
        resize(&terminal, size)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let process = ioctl_tiocgptpeer(&terminal, flags)?;
        let again = |file: &OwnedFd| fcntl_dupfd_cloexec(file, 0);
        let end = |wanted: bool| wanted.then(|| again(&terminal)).transpose();
        Ok(Stdio {
            local: [
                end(start.stdin.is_some())?,
                end(start.stdout.is_some())?,
                None,
            ],
            child: [
                Some(again(&process)?),
                Some(again(&process)?),
                Some(process),
            ],
            terminal: Some(terminal),
        })
    }
}

/// As large as the kernel likes: four times as large was not faster.
fn new_pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    pipe_with(PipeFlags::CLOEXEC)
}

/// Gives a terminal another size; its foreground group is told.
pub(crate) fn resize(terminal: &OwnedFd, size: WindowSize) -> Result<(), Errno> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size)
}
