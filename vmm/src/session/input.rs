//! From our standard input to a process's stream.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read};
use rustix::net::{SendFlags, send};

use super::StopEvent;

/// Ctrl-], as in telnet: leaves a terminal whose command does not answer.
pub const HANG_UP_KEY: u8 = 0x1d;

/// What is read at a time, and what a terminal holds for a command that does not read.
const BUFFER: usize = 64 << 10;

/// Called when the user types [`HANG_UP_KEY`].
pub type OnHangUp = Box<dyn Fn() + Send>;

/// A running pump; it ends when this is dropped, whether its input says something or not.
#[derive(Debug)]
pub(super) struct Input {
    stop: StopEvent,
    thread: Option<thread::JoinHandle<()>>,
}

impl Input {
    /// Carries all bytes of `from` to `to`, and then its end.
    pub(super) fn start(
        from: OwnedFd,
        to: UnixStream,
        on_hang_up: Option<OnHangUp>,
    ) -> io::Result<Self> {
        let stop = StopEvent::new()?;
        let stopped = stop.clone();
        let mut pump = Pump {
            from,
            to,
            on_hang_up,
            waiting: Vec::with_capacity(BUFFER),
            sent: 0,
            at_end: false,
        };
        let thread = thread::Builder::new()
            .name("stdin".into())
            .spawn(move || while pump.step(&stopped) {})?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Pump {
    from: OwnedFd,
    to: UnixStream,
    on_hang_up: Option<OnHangUp>,
    waiting: Vec<u8>,
    /// How much of `waiting` is sent.
    sent: usize,
    at_end: bool,
}

impl Pump {
    /// Waits, reads, sends; false at the end.
    fn step(&mut self, stop: &StopEvent) -> bool {
        let unsent = self.sent < self.waiting.len();
        // A terminal is read on: the key that leaves must work while the command does not read.
        let reads = !self.at_end && (!unsent || self.on_hang_up.is_some());
        let takes = if unsent {
            PollFlags::OUT
        } else {
            PollFlags::empty()
        };
        let mut fds = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(&self.to, takes),
            PollFd::new(&self.from, PollFlags::IN),
        ];
        let count = if reads { 3 } else { 2 };
        match poll(&mut fds[..count], None) {
            Err(Errno::INTR) => return true,
            Err(_) => return false,
            Ok(_) => {}
        }
        let [stopped, to, from] = fds.map(|fd| fd.revents());
        // The process is gone, or has closed its input.
        let closed = to.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
        if !stopped.is_empty() || closed {
            return false;
        }
        if reads && !from.is_empty() && !self.read() {
            return false;
        }
        self.send()
    }

    /// False if the user hangs up.
    fn read(&mut self) -> bool {
        if self.sent == self.waiting.len() {
            self.sent = 0;
            self.waiting.clear();
        }
        let mut spill = [0; 512];
        let room = self.waiting.len();
        // What is typed beyond a full buffer is lost, as in any terminal.
        let got = if room < BUFFER {
            self.waiting.resize(BUFFER, 0);
            let got = read(&self.from, &mut self.waiting[room..]);
            self.waiting.truncate(room + got.unwrap_or(0));
            got
        } else {
            read(&self.from, &mut spill)
        };
        let new = match got {
            Ok(0) => {
                self.at_end = true;
                return true;
            }
            Ok(_) if room < BUFFER => &self.waiting[room..],
            Ok(count) => &spill[..count],
            Err(Errno::INTR | Errno::AGAIN) => return true,
            // A terminal that has hung up; a directory.
            Err(_) => {
                self.at_end = true;
                return true;
            }
        };
        if let (Some(on_hang_up), true) = (&self.on_hang_up, new.contains(&HANG_UP_KEY)) {
            on_hang_up();
            return false;
        }
        true
    }

    /// Sends what the stream takes now; false if there will be no more.
    fn send(&mut self) -> bool {
        const FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
        while self.sent < self.waiting.len() {
            match send(self.to.as_fd(), &self.waiting[self.sent..], FLAGS) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        if self.at_end {
            // The other end may be gone; then nobody misses it.
            let _ = self.to.shutdown(Shutdown::Write);
        }
        !self.at_end
    }
}
