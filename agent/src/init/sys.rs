//! The few system calls that rustix leaves to a libc or does not have: making processes, executing
//! programs, signals, vsock addresses, and permission for I/O ports.
#![allow(unsafe_code, reason = "system calls are made in assembly here")]

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::arch::asm;
use core::ffi::CStr;
use core::ptr;

use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::process::{Pid, Signal};

// arch/x86/entry/syscalls/syscall_64.tbl
const RT_SIGPROCMASK: usize = 14;
const IOCTL: usize = 16;
const CONNECT: usize = 42;
const SETSOCKOPT: usize = 54;
const FORK: usize = 57;
const EXECVE: usize = 59;
const KILL: usize = 62;
const RT_SIGTIMEDWAIT: usize = 128;
const SETRLIMIT: usize = 160;
const IOPERM: usize = 173;
const CLOCK_GETTIME: usize = 228;
const EXIT_GROUP: usize = 231;
const SIGNALFD4: usize = 289;
const DUP3: usize = 292;
const CLOSE_RANGE: usize = 436;

/// The system call `number`; unused arguments are zero.
///
/// # Safety
/// As the call's own.
#[allow(clippy::many_single_char_names, reason = "registers have longer names")]
unsafe fn syscall(number: usize, [a, b, c, d, e]: [usize; 5]) -> Result<usize, Errno> {
    let result: isize;
    // SAFETY: the kernel preserves all registers but these; memory is the caller's concern.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    match result {
        0.. => Ok(result.unsigned_abs()),
        _ => Err(i32::try_from(-result).map_or(Errno::INVAL, Errno::from_raw_os_error)),
    }
}

/// Makes a copy of this process; `None` in the copy.
pub(crate) fn fork() -> Result<Option<Pid>, Errno> {
    // SAFETY: the process has one thread, so its copy is complete.
    let pid = unsafe { syscall(FORK, [0; 5])? };
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw))
}

/// Ends this process.
pub(crate) fn exit(status: u8) -> ! {
    loop {
        // SAFETY: touches no memory, and does not return.
        let _ = unsafe { syscall(EXIT_GROUP, [status.into(), 0, 0, 0, 0]) };
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

/// From now on exactly the signals in `set` are held back until they are read.
pub(crate) fn block_signals(set: SignalSet) {
    const SIG_SETMASK: usize = 2;
    let arguments = [
        SIG_SETMASK,
        (&raw const set).addr(),
        0,
        size_of::<SignalSet>(),
        0,
    ];
    // SAFETY: `set` is as large as the fourth argument says, and is only read.
    let _ = unsafe { syscall(RT_SIGPROCMASK, arguments) };
}

/// A descriptor from which the signals in `set`, which are blocked, are read.
pub(crate) fn signalfd(set: SignalSet) -> Result<OwnedFd, Errno> {
    let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as usize;
    let arguments = [
        usize::MAX,
        (&raw const set).addr(),
        size_of::<SignalSet>(),
        flags,
        0,
    ];
    // SAFETY: `set` is as large as the third argument says, and is only read.
    let fd = unsafe { syscall(SIGNALFD4, arguments)? };
    let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to the process `pid`, or to the group `-pid`, or with -1 to all but this one.
pub(crate) fn kill(pid: i32, signal: u8) -> Result<(), Errno> {
    let pid = (pid as isize).cast_unsigned();
    // SAFETY: touches no memory.
    unsafe { syscall(KILL, [pid, signal.into(), 0, 0, 0]) }.map(drop)
}

/// Does nothing for `milliseconds`.
pub(crate) fn sleep(milliseconds: u32) {
    let milliseconds = u64::from(milliseconds);
    let timeout = [milliseconds / 1000, milliseconds % 1000 * 1_000_000];
    let none = SignalSet::EMPTY;
    let arguments = [
        (&raw const none).addr(),
        0,
        (&raw const timeout).addr(),
        size_of::<SignalSet>(),
        0,
    ];
    // SAFETY: the set is as large as the fourth argument says, the timeout is a timespec.
    let _ = unsafe { syscall(RT_SIGTIMEDWAIT, arguments) };
}

/// Milliseconds since the machine's start.
pub(crate) fn now() -> u64 {
    const CLOCK_MONOTONIC: usize = 1;
    let mut time = [0_u64; 2];
    // SAFETY: `time` is a timespec.
    let _ = unsafe {
        syscall(
            CLOCK_GETTIME,
            [CLOCK_MONOTONIC, (&raw mut time).addr(), 0, 0, 0],
        )
    };
    let [seconds, nanoseconds] = time;
    seconds * 1000 + nanoseconds / 1_000_000
}

/// Limits what this process may use, setrlimit(2).
pub(crate) fn set_limit(resource: u8, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = [soft, hard];
    let arguments = [resource.into(), (&raw const limit).addr(), 0, 0, 0];
    // SAFETY: `limit` is a struct rlimit, which is only read.
    unsafe { syscall(SETRLIMIT, arguments) }.map(drop)
}

/// Makes `new` another number of the file `old`, which a new program does not get.
pub(crate) fn duplicate_to(old: BorrowedFd<'_>, new: u16) -> Result<(), Errno> {
    if old.as_raw_fd() == i32::from(new) {
        return Ok(());
    }
    let arguments = [
        number(old),
        new.into(),
        OFlags::CLOEXEC.bits() as usize,
        0,
        0,
    ];
    // SAFETY: touches no memory. The caller owns what `new` was.
    unsafe { syscall(DUP3, arguments) }.map(drop)
}

/// Closes all files from the number `first` on. Only for a process that uses none of them again,
/// not even to close it.
pub(crate) fn close_from(first: u16) {
    let arguments = [first.into(), u32::MAX as usize, 0, 0, 0];
    // SAFETY: touches no memory; the caller vouches for the rest.
    let _ = unsafe { syscall(CLOSE_RANGE, arguments) };
}

/// Connects `socket` to the port `port` of the machine `cid`, vsock(7).
pub(crate) fn connect_vsock(socket: BorrowedFd<'_>, cid: u32, port: u32) -> Result<(), Errno> {
    /// `struct sockaddr_vm` of `linux/vm_sockets.h`.
    #[repr(C)]
    struct Address {
        family: u16,
        _reserved: u16,
        port: u32,
        cid: u32,
        _rest: [u8; 4],
    }
    let address = Address {
        family: AddressFamily::VSOCK.as_raw(),
        _reserved: 0,
        port,
        cid,
        _rest: [0; 4],
    };
    let arguments = [
        number(socket),
        (&raw const address).addr(),
        size_of::<Address>(),
        0,
        0,
    ];
    // SAFETY: the address is as long as the third argument says, and is only read.
    unsafe { syscall(CONNECT, arguments) }.map(drop)
}

/// Sets how long `socket` tries to connect.
pub(crate) fn set_vsock_timeout(socket: BorrowedFd<'_>, seconds: u64) -> Result<(), Errno> {
    const SO_VM_SOCKETS_CONNECT_TIMEOUT: usize = 6;
    let time = [seconds, 0];
    let arguments = [
        number(socket),
        AddressFamily::VSOCK.as_raw().into(),
        SO_VM_SOCKETS_CONNECT_TIMEOUT,
        (&raw const time).addr(),
        size_of_val(&time),
    ];
    // SAFETY: a timeval of 64-bit numbers, which is only read.
    unsafe { syscall(SETSOCKOPT, arguments) }.map(drop)
}

/// All that goes through `socket` goes through the interface `name`, socket(7).
pub(crate) fn bind_to_interface(socket: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    const SOL_SOCKET: usize = 1;
    const SO_BINDTODEVICE: usize = 25;
    let arguments = [
        number(socket),
        SOL_SOCKET,
        SO_BINDTODEVICE,
        name.as_ptr().addr(),
        name.len(),
    ];
    // SAFETY: the name is as long as the last argument says, and is only read.
    unsafe { syscall(SETSOCKOPT, arguments) }.map(drop)
}

/// A descriptor as an argument.
fn number(fd: BorrowedFd<'_>) -> usize {
    usize::try_from(fd.as_raw_fd()).unwrap_or(usize::MAX)
}

/// Takes or drops the permission to use `count` I/O ports from `first` on.
pub(crate) fn ioperm(first: u16, count: u16, permitted: bool) -> Result<(), Errno> {
    let arguments = [first.into(), count.into(), permitted.into(), 0, 0];
    // SAFETY: touches no memory.
    unsafe { syscall(IOPERM, arguments) }.map(drop)
}

/// Sets the flags of the network interface `name` (netdevice(7), `SIOCSIFFLAGS`).
pub(crate) fn set_interface_flags(
    socket: BorrowedFd<'_>,
    name: [u8; 16],
    flags: u16,
) -> Result<(), Errno> {
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
    let socket = number(socket);
    // SAFETY: a whole ifreq, which this request only reads.
    unsafe {
        syscall(
            IOCTL,
            [socket, SIOCSIFFLAGS, (&raw const request).addr(), 0, 0],
        )
    }
    .map(drop)
}

/// Makes the kernel refuse writes to the block device `node`.
pub(crate) fn set_read_only(node: &str) -> Result<(), Errno> {
    // include/uapi/linux/fs.h
    const BLKROSET: usize = 0x125d;
    let device = open(node, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let yes = 1_i32;
    let device = device.as_raw_fd().unsigned_abs() as usize;
    // SAFETY: an int, which this request only reads.
    unsafe { syscall(IOCTL, [device, BLKROSET, (&raw const yes).addr(), 0, 0]) }.map(drop)
}
