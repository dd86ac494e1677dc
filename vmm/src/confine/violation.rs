//! A system call that is not in the filters: told to whoever keeps the VM's record, and then this
//! process ends by SIGSYS.
//!
//! The filters trap instead of killing at once, so that it can be told which call it was, on which
//! thread. That weakens nothing: the call is not made, and the handler can't be replaced, as
//! rt_sigaction(2) is in no filter.

#![allow(unsafe_code, reason = "a signal handler")]

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

/// What is told of a system call that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its number.
    pub call: i32,
    /// The thread's name.
    pub thread: String,
}

/// The length of a thread's name, with its end.
const NAME: usize = 16;
/// How the message begins, which no other does.
const MARK: &[u8; 4] = b"\xffSYS";
const LEN: usize = MARK.len() + size_of::<i32>() + NAME;

impl Violation {
    /// Reads the message, if it is one.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let rest = message.strip_prefix(MARK)?;
        let (call, name) = rest.split_first_chunk()?;
        let name = name.split(|byte| *byte == 0).next()?;
        Some(Self {
            call: i32::from_ne_bytes(*call),
            thread: String::from_utf8_lossy(name).replace(char::is_control, "?"),
        })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = name_of(i64::from(self.call));
        write!(
            f,
            "the sandbox ended the VM's monitor: its thread {:?} made system call {}{name}, which \
             is not allowed; that is an attack by the guest, or a bug of casita's",
            self.thread, self.call
        )
    }
}

/// Names of those that are likeliest to be tried.
fn name_of(call: i64) -> &'static str {
    let names = [
        (libc::SYS_socket, " (socket)"),
        (libc::SYS_connect, " (connect)"),
        (libc::SYS_execve, " (execve)"),
        (libc::SYS_fork, " (fork)"),
        (libc::SYS_clone, " (clone)"),
        (libc::SYS_ioctl, " (ioctl)"),
        (libc::SYS_ptrace, " (ptrace)"),
        (libc::SYS_mount, " (mount)"),
        (libc::SYS_unshare, " (unshare)"),
        (libc::SYS_setuid, " (setuid)"),
        (libc::SYS_finit_module, " (finit_module)"),
        (libc::SYS_init_module, " (init_module)"),
        (libc::SYS_tgkill, " (tgkill)"),
        (libc::SYS_mmap, " (mmap)"),
        (libc::SYS_mprotect, " (mprotect)"),
        (libc::SYS_io_uring_setup, " (io_uring_setup)"),
        (libc::SYS_bpf, " (bpf)"),
        (libc::SYS_mkdir, " (mkdir)"),
        (libc::SYS_setrlimit, " (setrlimit)"),
    ];
    let found = names.into_iter().find(|(number, _)| *number == call);
    found.map_or("", |(_, name)| name)
}

/// Who is told of a violation, and what goes with the word.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// A socket that keeps messages apart.
    pub socket: RawFd,
    /// What locks the VM: until the word is noted, nobody is to find it free, and without a reason.
    pub lock: Option<RawFd>,
}

static SOCKET: AtomicI32 = AtomicI32::new(-1);
static LOCK: AtomicI32 = AtomicI32::new(-1);

/// From here on `told` is told of a system call that is not allowed.
pub(super) fn tell(told: Told) -> io::Result<()> {
    SOCKET.store(told.socket, Ordering::Relaxed);
    LOCK.store(told.lock.unwrap_or(-1), Ordering::Relaxed);
    // SAFETY: the structure is plain, and the handler does only what a handler may.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_violation as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        if libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Where the kernel puts the call's number: behind `si_signo`, `si_errno`, `si_code`, a gap and
/// `si_call_addr`.
const SI_SYSCALL: usize = 24;

extern "C" fn on_violation(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a siginfo of SIGSYS, which has the call's number there; all others
    // are system calls on memory of this function.
    unsafe {
        let call: i32 = info
            .cast::<u8>()
            .add(SI_SYSCALL)
            .cast::<i32>()
            .read_unaligned();
        let mut message = [0_u8; LEN];
        message[..4].copy_from_slice(MARK);
        message[4..8].copy_from_slice(&call.to_ne_bytes());
        libc::prctl(libc::PR_GET_NAME, message[8..].as_mut_ptr());
        send(&mut message);
        // Another one, while the signal is held back: that is fatal, and says so in the status.
        libc::syscall(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0);
        libc::_exit(128 + libc::SIGSYS);
    }
}

/// Space for the header of a control message and one descriptor.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

// SAFETY: only adds.
const CONTROL: usize = unsafe { libc::CMSG_SPACE(size_of::<RawFd>() as u32) } as usize;

/// Sends a message, with the lock if there is one.
///
/// # Safety
/// It does only what the handler of a signal may.
unsafe fn send(message: &mut [u8; LEN]) {
    let socket = SOCKET.load(Ordering::Relaxed);
    let lock = LOCK.load(Ordering::Relaxed);
    let mut part = libc::iovec {
        iov_base: message.as_mut_ptr().cast(),
        iov_len: LEN,
    };
    let mut control = Control([0; CONTROL]);
    // SAFETY: the structures are plain; the header points at what lives until the call is over, and
    // the control message is as long as its space.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        if lock >= 0 {
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as usize;
            libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(lock);
        }
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        if libc::sendmsg(socket, &raw const header, flags) < 0 {
            // The lock may be gone, handed over with the word of the end.
            header.msg_controllen = 0;
            libc::sendmsg(socket, &raw const header, flags);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_is_written_and_others_are_not() {
        let mut message = [0_u8; LEN];
        message[..4].copy_from_slice(MARK);
        message[4..8].copy_from_slice(&41_i32.to_ne_bytes());
        message[8..13].copy_from_slice(b"vcpu0");
        let violation = Violation::parse(&message).unwrap();
        assert_eq!((violation.call, &*violation.thread), (41, "vcpu0"));
        assert!(violation.to_string().contains("41 (socket)"));
        assert_eq!(Violation::parse(b"{}"), None);
        assert_eq!(Violation::parse(b"\xffSYS\x01"), None);
    }

    /// A lock taken by one descriptor is free when its last copy is closed, and no sooner.
    #[test]
    fn the_lock_is_held_until_the_word_is_read() {
        use rustix::fs::{FlockOperation, flock};
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        use std::os::fd::AsRawFd;
        let file = tempfile::NamedTempFile::new().unwrap();
        let lock = file.reopen().unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        SOCKET.store(ours.as_raw_fd(), Ordering::Relaxed);
        LOCK.store(lock.as_raw_fd(), Ordering::Relaxed);
        let mut message = [7; LEN];
        // SAFETY: this is no handler, and may do all that one may.
        unsafe { send(&mut message) };
        // What the end of a process does.
        drop((lock, ours));
        let other = file.reopen().unwrap();
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        let mut read = [0; 2 * LEN];
        assert_eq!(rustix::io::read(&theirs, &mut read), Ok(LEN));
        assert_eq!(read[..LEN], message);
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    }
}
