//! The signals that end a VM, taken from a file descriptor on the I/O thread.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use casita_devices::event_loop::{Control, Handler, Interest, Source};
use rustix::io::read;

use crate::machine::{Event, EventSender};

/// Signals that end a VM cleanly.
const ENDING: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Waits for [`ENDING`] signals and tells the machine.
pub struct SignalHandler {
    fd: OwnedFd,
    events: EventSender,
}

impl SignalHandler {
    /// Takes the signals over from here on. Call it before any other thread exists: threads
    /// inherit which signals are blocked.
    ///
    /// # Errors
    /// If the host refuses.
    #[allow(unsafe_code, reason = "signal sets have no safe interface")]
    pub fn new(events: EventSender) -> io::Result<Self> {
        // SAFETY: `set` is a plain C struct that sigemptyset initializes before all other use; the
        // descriptor that signalfd returns is new and owned by nobody else.
        let fd = unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in ENDING {
                libc::sigaddset(&raw mut set, signal);
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
        Ok(Self { fd, events })
    }
}

impl Handler for SignalHandler {
    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.fd.as_raw_fd(),
            token: 0,
            interest: Interest::READ,
        }]
    }

    fn ready(&mut self, _token: u32, _control: &mut Control<'_>) {
        const INFO: usize = size_of::<libc::signalfd_siginfo>();
        let mut info = [0; INFO];
        while let Ok(INFO) = read(self.fd.as_fd(), &mut info) {
            // `ssi_signo` is the first field.
            let number = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            self.events.send(Event::Signal(number));
        }
    }
}
