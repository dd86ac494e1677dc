//! Signals of this process, taken from a file descriptor by one thread that may wait and lock.

use std::io;
use std::mem;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read};

use crate::confine::{self, Role};
use crate::session::StopEvent;

/// Signals that ask for the end.
pub const ENDING: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// Signals that a command may use for what it likes.
pub const OTHERS: [libc::c_int; 3] = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

/// Signals that are taken over: they wait here, and have no other effect on this process.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Takes `signals` over from here on. Call it before any other thread exists: threads inherit
    /// which signals are blocked.
    ///
    /// # Errors
    /// If the host refuses.
    #[allow(unsafe_code, reason = "signal sets have no safe interface")]
    pub fn take(signals: &[libc::c_int]) -> io::Result<Self> {
        // SAFETY: `set` is a plain C struct that sigemptyset initializes before all other use; the
        // descriptor that signalfd returns is new and owned by nobody else.
        let fd = unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                libc::sigaddset(&raw mut set, *signal);
            }
            let blocked =
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            if blocked != 0 {
                return Err(io::Error::from_raw_os_error(blocked));
            }
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self(fd))
    }

    /// Takes over all that Casita has a use for.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn take_all() -> io::Result<Self> {
        Self::take(&[&ENDING[..], &OTHERS[..]].concat())
    }

    /// Calls `handler` with each signal's number, on a thread of its own, until the watcher is
    /// dropped. The signals can be watched again afterwards.
    ///
    /// # Errors
    /// If the host has no thread or descriptor left.
    pub fn watch(&self, mut handler: impl FnMut(i32) + Send + 'static) -> io::Result<Watcher> {
        let fd = self.0.try_clone()?;
        let stop = StopEvent::new()?;
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                confine::enter_role(Role::Control);
                while wait(&fd, &stopped) {
                    drain(&fd, &mut handler);
                }
            })?;
        Ok(Watcher {
            stop,
            thread: Some(thread),
        })
    }
}

/// Whether a signal came before the stop.
fn wait(fd: &OwnedFd, stop: &StopEvent) -> bool {
    loop {
        let mut fds = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(fd, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(_) => return false,
            Ok(_) => return fds[0].revents().is_empty(),
        }
    }
}

fn drain(fd: &OwnedFd, handler: &mut impl FnMut(i32)) {
    const INFO: usize = size_of::<libc::signalfd_siginfo>();
    let mut info = [0; INFO];
    while let Ok(INFO) = read(fd.as_fd(), &mut info) {
        // `ssi_signo` is the first field.
        handler(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]));
    }
}

/// Signals are watched until this is dropped.
#[derive(Debug)]
#[must_use = "signals are watched until this is dropped"]
pub struct Watcher {
    stop: StopEvent,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            // A handler that panicked has said so.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_that_hears_nothing_ends_when_it_is_dropped_and_can_be_followed_by_another() {
        let signals = Signals::take(&[libc::SIGURG]).unwrap();
        for _ in 0..2 {
            drop(signals.watch(|_| ()).unwrap());
        }
    }
}
