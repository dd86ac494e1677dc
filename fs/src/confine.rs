//! A process that has the shared directory and nothing else.
//!
//! It enters namespaces of its own (users, mounts, processes, network, IPC), makes the directory its
//! root, and gives up all capabilities but those for files; these count only for users that are in
//! its namespace. An ordinary user can do all of that.

#![allow(unsafe_code, reason = "fork and mount_setattr")]

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::exit;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use crate::ids::IdMaps;

/// What the file system needs of the world outside its directory.
pub struct Root {
    /// `/proc/self/fd`, and no way up from there.
    pub descriptors: OwnedFd,
    /// The host's user is the only one.
    pub one_user: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("the host does not let it make user namespaces{}", advice())]
    Namespaces(#[source] io::Error),
    #[error("the host does not let it mount in its own namespace{}", advice())]
    Mount(#[source] io::Error),
    #[error("{0}")]
    Host(&'static str, #[source] io::Error),
}

impl ConfineError {
    fn host(what: &'static str) -> impl Fn(rustix::io::Errno) -> Self {
        move |error| Self::Host(what, error.into())
    }
}

/// The setting of the host that forbids namespaces, if one does.
fn advice() -> String {
    let settings = [
        ("kernel/unprivileged_userns_clone", "0", "1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user/max_user_namespaces", "0", "10000"),
    ];
    let forbids = settings.into_iter().find(|(path, forbids, _)| {
        fs::read_to_string(format!("/proc/sys/{path}")).is_ok_and(|is| is.trim() == *forbids)
    });
    forbids.map_or_else(String::new, |(path, _, allows)| {
        format!(" (sysctl {}={allows} allows it)", path.replace('/', "."))
    })
}

/// Returns in a new process that is confined to the current directory. This one waits for it, and
/// ends as it does.
pub fn enter(read_only: bool) -> Result<Root, ConfineError> {
    let maps = IdMaps::of_this_process()
        .map_err(|error| ConfineError::Host("its capabilities could not be read", error))?;
    enter_namespaces(&maps)?;
    // The first process that is made after entering a namespace of processes is in it.
    if let Some(child) = fork()? {
        exit(wait(child));
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(
        ConfineError::host("it could not ask to end with its parent"),
    )?;
    let descriptors = change_root(read_only).map_err(|error| ConfineError::Mount(error.into()))?;
    keep_file_capabilities()
        .map_err(ConfineError::host("its capabilities could not be given up"))?;
    rustix::thread::set_no_new_privs(true)
        .map_err(ConfineError::host("it could not renounce new privileges"))?;
    Ok(Root {
        descriptors,
        one_user: maps.one_user,
    })
}

/// The maps are written by a process that stays outside.
fn enter_namespaces(maps: &IdMaps) -> Result<(), ConfineError> {
    let pipe = || io::pipe().map_err(|error| ConfineError::Host("no pipe is to be had", error));
    let (entered, tell_entered) = pipe()?;
    let Some(mapper) = fork()? else {
        drop(tell_entered);
        exit(give_maps(maps, entered));
    };
    drop(entered);
    let flags = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS;
    // SAFETY: none of these namespaces takes anything away from memory or descriptors that are in
    // use here.
    let unshared = unsafe { rustix::thread::unshare_unsafe(flags) };
    if unshared.is_ok() {
        go_on(tell_entered);
    } else {
        drop(tell_entered);
    }
    let mapped = wait(mapper);
    unshared.map_err(|error| ConfineError::Namespaces(error.into()))?;
    match mapped {
        0 => Ok(()),
        error => Err(ConfineError::Namespaces(io::Error::from_raw_os_error(
            error,
        ))),
    }
}

fn go_on(mut pipe: PipeWriter) {
    // A reader that is gone has an exit status, which tells more.
    let _ = pipe.write_all(&[1]);
}

/// In the process outside. Its exit status is an error number.
fn give_maps(maps: &IdMaps, mut entered: PipeReader) -> i32 {
    let Some(parent) = rustix::process::getppid() else {
        return libc::ESRCH;
    };
    let given = entered
        .read_exact(&mut [0])
        .and_then(|()| maps.give_to(parent));
    given.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EPIPE), |()| 0)
}

fn fork() -> Result<Option<Pid>, ConfineError> {
    // SAFETY: this process has one thread, so that its copy is whole.
    match unsafe { libc::fork() } {
        -1 => {
            let error = io::Error::last_os_error();
            Err(ConfineError::Host("no process is to be had", error))
        }
        child => Ok(Pid::from_raw(child)),
    }
}

/// The exit status of a child; 101 if it ended by a signal.
fn wait(child: Pid) -> i32 {
    const NOT_BY_ITSELF: i32 = 101;
    loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => return status.exit_status().unwrap_or(NOT_BY_ITSELF),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return NOT_BY_ITSELF,
        }
    }
}

/// Makes the current directory the root of everything. What is mounted below it comes along; if it
/// is to be read only, so is that.
fn change_root(read_only: bool) -> rustix::io::Result<OwnedFd> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    // A mount of nothing but that directory: there is no way up from it to other processes' files.
    let descriptors = open_tree(CWD, "/proc/self/fd", clone)?;
    let tree = open_tree(CWD, ".", clone | OpenTreeFlags::AT_RECURSIVE)?;
    restrict(&tree, read_only)?;
    let old = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // pivot_root wants a mount point, which the directory may not be.
    let from_fd = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&tree, "", CWD, ".", from_fd)?;
    rustix::process::fchdir(&tree)?;
    rustix::process::pivot_root(".", ".")?;
    // The old root lies over the new one now.
    rustix::process::fchdir(&old)?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(descriptors)
}

/// The guest uses the files; this process never executes one, nor uses one as a device.
fn restrict(tree: &OwnedFd, read_only: bool) -> rustix::io::Result<()> {
    let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    if read_only {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    let change = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a string that ends, and the size is that of what the pointer points to.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const change,
            size_of_val(&change),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(
            rustix::io::Errno::from_io_error(&io::Error::last_os_error())
                .unwrap_or(rustix::io::Errno::IO),
        ),
    }
}

/// Those that a file server uses to act for the guest's users. The bounding set does not matter: the
/// filter of system calls has no execve.
fn keep_file_capabilities() -> rustix::io::Result<()> {
    let kept = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets)
}
