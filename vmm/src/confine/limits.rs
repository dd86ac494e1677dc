//! Resource limits, and descriptors that nobody needs.

#![allow(unsafe_code, reason = "inherited descriptors are numbers")]

use std::os::fd::{AsRawFd, RawFd};

use rustix::fs::{Dir, Mode, OFlags, open};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{ConfineError, Layer, Progress};

/// Threads of a monitor, when nothing is said: two for each process of a client's, and some.
pub const THREADS: u64 = 4096;

/// The descriptors that this process was started with, beside the standard streams. Call it before
/// any is opened.
pub fn inherited_descriptors() -> Vec<RawFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(listed) = open("/proc/self/fd", flags, Mode::empty()) else {
        return Vec::new();
    };
    let own = listed.as_raw_fd();
    let Ok(dir) = Dir::read_from(&listed) else {
        return Vec::new();
    };
    dir.flatten()
        .filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok())
        // The listing itself has two: this one and the iterator's, which is closed on exec.
        .filter(|fd| *fd > 2 && *fd != own && is_inherited(*fd))
        .collect()
}

/// What this process has opened itself is closed on exec.
fn is_inherited(fd: RawFd) -> bool {
    // SAFETY: F_GETFD reads a flag of whatever the number is.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

/// Closes all descriptors but the standard streams and `kept`: those of another process's copy.
///
/// # Errors
/// If the kernel can't.
pub fn close_all_but(kept: &[RawFd]) -> std::io::Result<()> {
    let mut numbers: Vec<u32> = kept.iter().map(|fd| fd.cast_unsigned()).collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers.into_iter().chain([u32::MAX]) {
        if first < number {
            let last = if number == u32::MAX {
                number
            } else {
                number - 1
            };
            // SAFETY: the caller has no use for what has these numbers.
            if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        first = number.saturating_add(1);
    }
    Ok(())
}

/// Closes what was inherited.
pub(super) fn close(inherited: &[RawFd]) {
    for fd in inherited {
        // SAFETY: the process was started with it, and nothing here has taken it over.
        unsafe { libc::close(*fd) };
    }
}

/// What a monitor has of its own beside guest memory and stacks, far more than it uses.
const OWN_MEMORY: u64 = 256 << 20;
/// The stack of a thread.
const STACK: u64 = 2 << 20;

/// What a process may use at most.
#[derive(Debug, Clone, Copy, Default)]
pub struct Most {
    /// Threads.
    pub threads: Option<u64>,
    /// The guest's memory, in bytes.
    pub guest_memory: u64,
    /// The length of the largest file that it may write to, in bytes.
    pub file: Option<u64>,
}

/// Linux counts a user's processes by namespace since 5.14; before that the limit would be one for
/// all that the user runs.
fn counts_by_namespace() -> bool {
    let release = rustix::system::uname();
    let release = release.release().to_str().unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || -> Option<u32> { numbers.next()?.parse().ok() };
    (number(), number()) >= (Some(5), Some(14))
}

/// Sets the limits of this process.
pub(super) fn set(most: Most, progress: &mut Progress) -> Result<(), ConfineError> {
    if !progress.wants(Layer::ResourceLimits) {
        return Ok(());
    }
    let threads = most.threads.unwrap_or(THREADS);
    let both = |limit| Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    let user_namespace = !progress
        .missing
        .iter()
        .any(|missing| matches!(missing.layer, Layer::UserNamespace));
    let mut limits = vec![(Resource::Core, 0), (Resource::Msgqueue, 0)];
    if user_namespace && counts_by_namespace() {
        // Counted for the user in its namespace, which is this process.
        limits.push((Resource::Nproc, threads));
    }
    if most.guest_memory > 0 {
        let data = most.guest_memory + OWN_MEMORY + threads * STACK;
        limits.push((Resource::Data, data));
    }
    if let Some(file) = most.file {
        // A write beyond the limit is an error, and no signal.
        // SAFETY: ignoring a signal runs no handler.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        limits.push((Resource::Fsize, file));
    }
    for (resource, limit) in limits {
        if let Err(error) = setrlimit(resource, both(limit)) {
            return progress.without(Layer::ResourceLimits, format!("{resource:?}: {error}"));
        }
    }
    Ok(())
}
