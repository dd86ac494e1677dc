//! The few system calls that rustix leaves to a libc: making processes, executing programs,
//! waiting for signals, and permission for I/O ports.
#![allow(unsafe_code, reason = "system calls are made in assembly here")]

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::arch::asm;
use core::ffi::CStr;
use core::ptr;

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

// arch/x86/entry/syscalls/syscall_64.tbl
const RT_SIGPROCMASK: usize = 14;
const IOCTL: usize = 16;
const FORK: usize = 57;
const EXECVE: usize = 59;
const RT_SIGTIMEDWAIT: usize = 128;
const IOPERM: usize = 173;
const EXIT_GROUP: usize = 231;

/// The system call `number`; unused arguments are zero.
///
/// # Safety
/// As the call's own.
unsafe fn syscall(number: usize, [a, b, c, d]: [usize; 4]) -> Result<usize, Errno> {
    let result: isize;
    // SAFETY: the kernel preserves all registers but these; memory is the caller's concern.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    match result {
        0.. => Ok(result.unsigned_abs()),
        _ => Err(i32::try_from(-result).map_or(Errno::INVAL, Errno::from_raw_os_error)),
    }
}

/// Makes a copy of this process; `None` in the copy.
pub(crate) fn fork() -> Result<Option<Pid>, Errno> {
    // SAFETY: the process has one thread, so its copy is complete.
    let pid = unsafe { syscall(FORK, [0; 4])? };
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw))
}

/// Ends this process.
pub(crate) fn exit(status: u8) -> ! {
    loop {
        // SAFETY: touches no memory, and does not return.
        let _ = unsafe { syscall(EXIT_GROUP, [status.into(), 0, 0, 0]) };
    }
}

/// Strings for [`execve`]: the kernel's format, made once and used for each attempt.
pub(crate) struct Strings {
    /// What `pointers` point to.
    _strings: Vec<CString>,
    pointers: Vec<*const u8>,
}

impl Strings {
    /// Fails with `EINVAL` if a string has a NUL inside.
    pub(crate) fn new(strings: &[Vec<u8>]) -> Result<Self, Errno> {
        let strings: Vec<CString> = strings
            .iter()
            .map(|string| CString::new(string.as_slice()).map_err(|_| Errno::INVAL))
            .collect::<Result<_, _>>()?;
        let mut pointers: Vec<*const u8> = strings
            .iter()
            .map(|string| string.as_ptr().cast())
            .collect();
        pointers.push(ptr::null());
        Ok(Strings {
            _strings: strings,
            pointers,
        })
    }
}

/// Replaces this process by the program at `path`; returns only why that failed.
pub(crate) fn execve(path: &CStr, arguments: &Strings, environment: &Strings) -> Errno {
    let arguments = [
        path.as_ptr().addr(),
        arguments.pointers.as_ptr().addr(),
        environment.pointers.as_ptr().addr(),
        0,
    ];
    // SAFETY: a C string and two arrays of such, each ending with a null pointer.
    match unsafe { syscall(EXECVE, arguments) } {
        Err(errno) => errno,
        Ok(_) => Errno::INVAL,
    }
}

/// A set of signals as the kernel keeps it: signal n is bit n - 1.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct SignalSet(u64);

impl SignalSet {
    pub(crate) const EMPTY: SignalSet = SignalSet(0);

    pub(crate) fn of(signals: &[Signal]) -> Self {
        SignalSet(
            signals
                .iter()
                .fold(0, |set, signal| set | 1 << (signal.as_raw() - 1)),
        )
    }
}

/// From now on exactly the signals in `set` are held back until they are waited for.
pub(crate) fn block_signals(set: SignalSet) {
    const SIG_SETMASK: usize = 2;
    let arguments = [
        SIG_SETMASK,
        (&raw const set).addr(),
        0,
        size_of::<SignalSet>(),
    ];
    // SAFETY: `set` is as large as the last argument says, and is only read.
    let _ = unsafe { syscall(RT_SIGPROCMASK, arguments) };
}

/// Waits for one of the signals in `set`, which are blocked, for at most `milliseconds`. `None`
/// when none came.
pub(crate) fn wait_for_signal(set: SignalSet, milliseconds: Option<u32>) -> Option<Signal> {
    let timeout = milliseconds.map(|milliseconds| {
        let milliseconds = u64::from(milliseconds);
        [milliseconds / 1000, milliseconds % 1000 * 1_000_000]
    });
    let timeout = timeout
        .as_ref()
        .map_or(0, |timeout| ptr::from_ref(timeout).addr());
    let arguments = [(&raw const set).addr(), 0, timeout, size_of::<SignalSet>()];
    // SAFETY: `set` is as large as the last argument says, `timeout` is null or a timespec.
    let signal = unsafe { syscall(RT_SIGTIMEDWAIT, arguments) };
    i32::try_from(signal.ok()?)
        .ok()
        .and_then(Signal::from_named_raw)
}

/// Does nothing for `milliseconds`.
pub(crate) fn sleep(milliseconds: u32) {
    wait_for_signal(SignalSet::EMPTY, Some(milliseconds));
}

/// Takes or drops the permission to use `count` I/O ports from `first` on.
pub(crate) fn ioperm(first: u16, count: u16, permitted: bool) -> Result<(), Errno> {
    let arguments = [first.into(), count.into(), permitted.into(), 0];
    // SAFETY: touches no memory.
    unsafe { syscall(IOPERM, arguments) }.map(drop)
}

/// Sets the flags of the network interface `name` (netdevice(7), `SIOCSIFFLAGS`).
pub(crate) fn set_interface_flags(
    socket: rustix::fd::BorrowedFd<'_>,
    name: [u8; 16],
    flags: u16,
) -> Result<(), Errno> {
    use rustix::fd::AsRawFd;
    const SIOCSIFFLAGS: usize = 0x8914;
    /// `struct ifreq` of `linux/if.h`, 40 bytes.
    #[repr(C)]
    struct InterfaceRequest {
        name: [u8; 16],
        flags: u16,
        _rest: [u8; 22],
    }
    let request = InterfaceRequest {
        name,
        flags,
        _rest: [0; 22],
    };
    let socket = usize::try_from(socket.as_raw_fd()).unwrap_or(usize::MAX);
    // SAFETY: a whole ifreq, which this request only reads.
    unsafe {
        syscall(
            IOCTL,
            [socket, SIOCSIFFLAGS, (&raw const request).addr(), 0],
        )
    }
    .map(drop)
}
