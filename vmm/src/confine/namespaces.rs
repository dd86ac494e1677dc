//! Namespaces of its own, with an empty root.

#![allow(unsafe_code, reason = "unshare")]

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use rustix::thread::UnshareFlags;

use super::{ConfineError, Confinement, Layer, Progress, privileges};

/// Where the empty root is put before it is the root: a directory that every host has.
const PLACE: &str = "/proc";

/// The namespaces beside the one of users.
const OTHERS: [(UnshareFlags, Layer); 5] = [
    (UnshareFlags::NEWNS, Layer::MountNamespace),
    (UnshareFlags::NEWIPC, Layer::IpcNamespace),
    (UnshareFlags::NEWUTS, Layer::UtsNamespace),
    (UnshareFlags::NEWNET, Layer::NetworkNamespace),
    (UnshareFlags::NEWCGROUP, Layer::CgroupNamespace),
];

/// Enters all namespaces that the host allows, and becomes another user if that is asked for. Tells
/// whether there are any. An ordinary user needs the namespace of users for the others; root makes
/// them first, as the user that it becomes may not be allowed to.
pub(super) fn enter(
    how: &Confinement,
    proc: Option<&OwnedFd>,
    progress: &mut Progress,
) -> Result<bool, ConfineError> {
    let root = rustix::process::geteuid().is_root();
    if let Some(room) = &how.room
        && !all_layers().any(super::is_left_out)
    {
        match join(room, namespaces_of(root)) {
            Ok(()) if root => {
                privileges::become_user(how.ids, progress)?;
                enter_users(UnshareFlags::empty(), proc, progress)?;
                return Ok(true);
            }
            Ok(()) => return Ok(true),
            Err(error) => log::debug!("namespaces that were made can't be entered: {error}"),
        }
    }
    let entered = if root {
        let entered = enter_others(progress)?;
        privileges::become_user(how.ids, progress)?;
        enter_users(UnshareFlags::empty(), proc, progress)? || entered
    } else if enter_users(others(), proc, progress)? {
        empty_root(progress)?;
        true
    } else {
        for (_, layer) in OTHERS {
            progress.without(layer, "it takes a user namespace")?;
        }
        false
    };
    Ok(entered)
}

fn all_layers() -> impl Iterator<Item = Layer> {
    let others = OTHERS.iter().map(|(_, layer)| *layer);
    others.chain([Layer::UserNamespace])
}

fn others() -> UnshareFlags {
    let flags = OTHERS.iter().map(|(flag, _)| *flag);
    flags.fold(UnshareFlags::empty(), |all, flag| all | flag)
}

/// Those that are made beforehand: root makes its namespace of users as the user that it becomes.
fn namespaces_of(root: bool) -> UnshareFlags {
    if root {
        others()
    } else {
        others() | UnshareFlags::NEWUSER
    }
}

/// Enters namespaces of the process that `room` is a descriptor of.
fn join(room: &OwnedFd, namespaces: UnshareFlags) -> io::Result<()> {
    // SAFETY: none of these namespaces takes anything away from memory or descriptors that are in
    // use here.
    match unsafe { libc::setns(room.as_raw_fd(), namespaces.bits().cast_signed()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Namespaces that are made beforehand for another process of this user, which then enters them in
/// no time. They are those of a process that waits until this is dropped.
#[derive(Debug)]
pub struct Room {
    process: OwnedFd,
    child: Pid,
    /// Its end is the child's.
    stay: Option<PipeWriter>,
}

impl Room {
    /// Makes them, with an empty root. This process has to have one thread.
    ///
    /// # Errors
    /// If the host does not allow all of them.
    pub fn make() -> io::Result<Self> {
        let (mut made, tell_made) = io::pipe()?;
        let (staying, stay) = io::pipe()?;
        // SAFETY: this process has one thread, so that its copy is whole; it ends without returning.
        let child = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                drop((made, stay));
                let done = furnish();
                if done.is_ok() {
                    wait_inside(tell_made, staying);
                }
                // SAFETY: ends this process at once.
                unsafe { libc::_exit(done.map_or_else(|_| 1, |()| 0)) }
            }
            child => Pid::from_raw(child).ok_or(io::ErrorKind::InvalidData)?,
        };
        drop((tell_made, staying));
        let process = pidfd_open(child, PidfdFlags::empty())?;
        let room = Self {
            process,
            child,
            stay: Some(stay),
        };
        made.read_exact(&mut [0])?;
        Ok(room)
    }

    /// What the other process enters them by.
    pub fn process(&self) -> &OwnedFd {
        &self.process
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(self.stay.take());
        while let Err(rustix::io::Errno::INTR) = waitpid(Some(self.child), WaitOptions::empty()) {}
    }
}

/// In the process that has the namespaces.
fn furnish() -> io::Result<()> {
    let root = rustix::process::geteuid().is_root();
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let proc = super::open_proc().ok_or(io::ErrorKind::NotFound)?;
    unshare(namespaces_of(root))?;
    if !root {
        map_user(&proc, uid.as_raw(), gid.as_raw())?;
    }
    make_root()
}

fn wait_inside(mut tell_made: PipeWriter, mut staying: PipeReader) {
    let _ = tell_made
        .write_all(&[1])
        .and_then(|()| staying.read(&mut [0]));
}

fn map_user(proc: &OwnedFd, uid: u32, gid: u32) -> io::Result<()> {
    write_at(proc, "setgroups", "deny")?;
    write_at(proc, "uid_map", &format!("{uid} {uid} 1"))?;
    write_at(proc, "gid_map", &format!("{gid} {gid} 1"))
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: none of these namespaces takes anything away from memory or descriptors that are in
    // use here.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

fn enter_others(progress: &mut Progress) -> Result<bool, ConfineError> {
    let mut entered = false;
    for (flag, layer) in OTHERS {
        if !progress.wants(layer) {
            continue;
        }
        match unshare(flag) {
            Ok(()) if layer == Layer::MountNamespace => {
                empty_root(progress)?;
                entered = true;
            }
            Ok(()) => entered = true,
            Err(error) => progress.without(layer, error.to_string())?,
        }
    }
    Ok(entered)
}

/// Enters a namespace in which there is no user but this one, with those of `others`.
fn enter_users(
    others: UnshareFlags,
    proc: Option<&OwnedFd>,
    progress: &mut Progress,
) -> Result<bool, ConfineError> {
    if !progress.wants(Layer::UserNamespace) {
        return Ok(false);
    }
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let Some(proc) = proc else {
        progress.without(Layer::UserNamespace, "there is no /proc")?;
        return Ok(false);
    };
    if let Err(error) = unshare(UnshareFlags::NEWUSER | others) {
        progress.without(Layer::UserNamespace, forbidden(&error))?;
        return Ok(false);
    }
    map_user(proc, uid, gid).map_err(ConfineError::host("map its user into its namespace"))?;
    Ok(true)
}

fn write_at(proc: &OwnedFd, file: &str, text: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(proc.as_fd(), file, flags, Mode::empty())?;
    rustix::io::write(&file, text.as_bytes())?;
    Ok(())
}

/// Why there is no user namespace, with the setting that forbids it.
fn forbidden(error: &io::Error) -> String {
    let settings = [
        ("kernel/unprivileged_userns_clone", "0", "1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
        ("user/max_user_namespaces", "0", "10000"),
    ];
    let forbids = settings.into_iter().find(|(path, forbids, _)| {
        std::fs::read_to_string(format!("/proc/sys/{path}")).is_ok_and(|is| is.trim() == *forbids)
    });
    match forbids {
        Some((path, _, allows)) => {
            format!(
                "{error} (sysctl {}={allows} allows it)",
                path.replace('/', ".")
            )
        }
        None => error.to_string(),
    }
}

/// Makes a root of nothing, and leaves the old one.
fn empty_root(progress: &mut Progress) -> Result<(), ConfineError> {
    match make_root() {
        Ok(()) => Ok(()),
        // What was half done is seen by this process alone.
        Err(error) => progress.without(Layer::MountNamespace, format!("no empty root: {error}")),
    }
}

fn make_root() -> io::Result<()> {
    // Nothing that is mounted here is to be seen outside.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(
        "none",
        PLACE,
        "tmpfs",
        flags,
        c"size=64k,nr_inodes=64,mode=755",
    )?;
    rustix::process::chdir(PLACE)?;
    mount_remount(".", flags | MountFlags::BIND | MountFlags::RDONLY, c"")?;
    rustix::process::pivot_root(".", ".")?;
    // The old root lies over the new one now.
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}
