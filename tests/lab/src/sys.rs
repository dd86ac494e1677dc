//! The system calls that std does not wrap. All of the lab's unsafe code is here.
#![allow(
    unsafe_code,
    reason = "mount, modules and process control have no safe wrapper in std"
)]

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong, c_void};
use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};

unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn chroot(path: *const c_char) -> c_int;
    fn mknod(path: *const c_char, mode: u32, device: u64) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn reboot(command: c_int) -> c_int;
    fn syncfs(fd: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

/// `MS_RDONLY` of mount(2).
pub const MS_RDONLY: u64 = 1;
/// `MS_MOVE` of mount(2).
pub const MS_MOVE: u64 = 8192;

const SYS_FINIT_MODULE: c_long = 313;
const EEXIST: i32 = 17;
const S_IFCHR: u32 = 0o020_000;
const SIGKILL: c_int = 9;
const F_SETFD: c_int = 2;
const FD_CLOEXEC: c_int = 1;
const PR_SET_PDEATHSIG: c_int = 1;
const RB_POWER_OFF: c_int = 0x4321_fedc;
const SIOCSIFFLAGS: c_ulong = 0x8914;
const IFF_UP: u16 = 1;
const KVM_CREATE_VM: c_ulong = 0xae01;
const KVM_CREATE_IRQCHIP: c_ulong = 0xae60;
const KVM_CREATE_VCPU: c_ulong = 0xae41;

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// mount(2). `flags` are the `MS_*` above.
///
/// # Errors
/// What the kernel answers.
pub fn mount_at(source: &str, target: &Path, kind: &str, flags: u64, data: &str) -> io::Result<()> {
    let (source, kind, data) = (
        CString::new(source)?,
        CString::new(kind)?,
        CString::new(data)?,
    );
    let target = c_path(target)?;
    // SAFETY: all four are NUL-terminated strings that live until the call returns.
    check(unsafe {
        mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    })?;
    Ok(())
}

/// Makes the working directory the root of this process, as chroot(2) does.
///
/// # Errors
/// What the kernel answers.
pub fn chroot_here() -> io::Result<()> {
    // SAFETY: the path is a constant C string.
    check(unsafe { chroot(c".".as_ptr()) })?;
    Ok(())
}

/// Makes a character device node of the given major and minor number with mode 0666.
///
/// # Errors
/// What the kernel answers, except that the node exists already.
pub fn character_device(path: &Path, major: u64, minor: u64) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the path is a NUL-terminated string; the numbers are below 256, where dev_t is `major << 8 | minor`.
    match check(unsafe { mknod(path.as_ptr(), S_IFCHR | 0o666, major << 8 | minor) }) {
        Err(error) if error.raw_os_error() != Some(EEXIST) => Err(error),
        _ => Ok(()),
    }
}

/// Loads the kernel module in `file` with `parameters`. One that is loaded already is no error.
///
/// # Errors
/// What the kernel answers.
pub fn load_module(file: &File, parameters: &CStr) -> io::Result<()> {
    // SAFETY: finit_module(fd, const char *, flags); the string lives until the call returns.
    let result = unsafe {
        syscall(
            SYS_FINIT_MODULE,
            c_long::from(file.as_raw_fd()),
            parameters.as_ptr(),
            0,
        )
    };
    match check(result as c_int) {
        Err(error) if error.raw_os_error() != Some(EEXIST) => Err(error),
        _ => Ok(()),
    }
}

/// Sets the loopback interface up.
///
/// # Errors
/// What the kernel answers.
pub fn loopback_up() -> io::Result<()> {
    // struct ifreq of netdevice(7): a name of 16 bytes, then a union of 24 whose first member here is the flags.
    #[repr(C)]
    struct Ifreq {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    let mut request = Ifreq {
        name: [0; 16],
        flags: IFF_UP,
        rest: [0; 22],
    };
    request.name[..2].copy_from_slice(b"lo");
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: SIOCSIFFLAGS reads one struct ifreq, whose layout and size (40 bytes) are those above.
    check(unsafe { ioctl(socket.as_raw_fd(), SIOCSIFFLAGS, &raw const request) })?;
    Ok(())
}

/// Waits for any child to end. `None` when there is none left.
pub fn wait_any() -> Option<(u32, ExitStatus)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the kernel to write to.
        match check(unsafe { waitpid(-1, &raw mut status, 0) }) {
            Ok(pid) => return Some((pid.cast_unsigned(), ExitStatus::from_raw(status))),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// Kills every process but this one and PID 1.
pub fn kill_all() {
    // SAFETY: kill(2) touches no memory.
    unsafe { kill(-1, SIGKILL) };
}

/// Powers the machine off, without writing anything back.
pub fn power_off() -> ! {
    // SAFETY: reboot(2), as libc wraps it, takes a number.
    unsafe { reboot(RB_POWER_OFF) };
    loop {
        std::thread::park();
    }
}

/// Writes back the file system that `path` is on.
///
/// # Errors
/// When `path` cannot be opened, or what the kernel answers.
pub fn sync(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: syncfs(2) takes a descriptor, which is open here.
    check(unsafe { syncfs(file.as_raw_fd()) })?;
    Ok(())
}

/// The processor's time stamp counter.
pub fn time_stamp() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and Linux lets programs use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Lets the child inherit `fds`, and has the kernel kill it when the calling thread ends.
pub fn inherit_and_die_with_parent(command: &mut Command, fds: Vec<RawFd>) {
    let prepare = move || {
        for &fd in &fds {
            // SAFETY: clearing FD_CLOEXEC of a descriptor that the parent holds open.
            check(unsafe { fcntl(fd, F_SETFD, 0) })?;
        }
        // SAFETY: PR_SET_PDEATHSIG takes a signal number by value.
        check(unsafe { prctl(PR_SET_PDEATHSIG, SIGKILL as c_ulong) })?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure only calls fcntl and prctl, and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// Makes a virtual machine of KVM's with one processor, which never runs. Its descriptors stay open
/// until this process ends.
///
/// # Errors
/// When KVM refuses.
pub fn keep_virtual_machine(kvm: &File) -> io::Result<()> {
    // SAFETY: none of these requests takes a pointer. The first and the last return new
    // descriptors, which nobody closes.
    unsafe {
        let machine = check(ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0))?;
        check(ioctl(machine, KVM_CREATE_IRQCHIP, 0))?;
        let processor = check(ioctl(machine, KVM_CREATE_VCPU, 0))?;
        for descriptor in [machine, processor] {
            check(fcntl(descriptor, F_SETFD, FD_CLOEXEC))?;
        }
    }
    Ok(())
}
