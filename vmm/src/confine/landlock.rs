//! Landlock (landlock(7)): what a process may reach by name. Here that is nothing.

#![allow(unsafe_code, reason = "Landlock's system calls have no safe interface")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{ConfineError, Layer, Progress};

const CREATE_RULESET_VERSION: u32 = 1;

/// `struct landlock_ruleset_attr`, of which older kernels take a part.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

impl RulesetAttr {
    /// Everything that version `abi` can deny, and the size of the part that it knows.
    fn of(abi: i32) -> (Self, usize) {
        let fs = match abi {
            1 => 13,
            2 => 14,
            3 | 4 => 15,
            _ => 16,
        };
        let attr = Self {
            handled_access_fs: (1 << fs) - 1,
            // Bind and connect.
            handled_access_net: if abi >= 4 { 0b11 } else { 0 },
            // Abstract Unix sockets, signals.
            scoped: if abi >= 6 { 0b11 } else { 0 },
        };
        let size = match abi {
            ..=3 => 8,
            4 | 5 => 16,
            _ => 24,
        };
        (attr, size)
    }
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The version that this kernel has.
pub(super) fn abi() -> io::Result<i32> {
    // SAFETY: with this flag the call takes no pointer.
    let version = check(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<RulesetAttr>(),
            0,
            CREATE_RULESET_VERSION,
        )
    })?;
    Ok(i32::try_from(version).unwrap_or(i32::MAX))
}

fn create(attr: &RulesetAttr, size: usize) -> io::Result<OwnedFd> {
    // SAFETY: the pointer is good for the size, which is at most that of what it points to; the
    // descriptor that is returned is new.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::from_ref(attr),
            size.min(size_of::<RulesetAttr>()),
            0,
        )
    })?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Restricts this thread and those that it starts. Returns the version that was used.
pub(super) fn restrict(progress: &mut Progress) -> Result<Option<i32>, ConfineError> {
    if !progress.wants(Layer::Landlock) {
        return Ok(None);
    }
    let abi = match abi() {
        Ok(abi) => abi,
        Err(error) => {
            let why = match error.raw_os_error() {
                Some(libc::ENOSYS) => "this kernel has no Landlock".to_owned(),
                Some(libc::EOPNOTSUPP) => {
                    "Landlock is off: add landlock to the kernel's parameter lsm=".to_owned()
                }
                _ => error.to_string(),
            };
            progress.without(Layer::Landlock, why)?;
            return Ok(None);
        }
    };
    let (attr, size) = RulesetAttr::of(abi);
    let restricted = create(&attr, size).and_then(|ruleset| {
        // SAFETY: the call takes no pointer.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })
    });
    match restricted {
        Ok(_) => Ok(Some(abi)),
        Err(error) => {
            progress.without(Layer::Landlock, error.to_string())?;
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_asked_for_what_it_knows() {
        assert_eq!(RulesetAttr::of(1).0.handled_access_fs, 0x1fff);
        assert_eq!(RulesetAttr::of(1).1, 8);
        let (attr, size) = RulesetAttr::of(4);
        assert_eq!((attr.handled_access_net, attr.scoped, size), (3, 0, 16));
        let (attr, size) = RulesetAttr::of(99);
        assert_eq!((attr.handled_access_fs, attr.scoped, size), (0xffff, 3, 24));
    }
}
