//! Namespaces of its own, with an empty root.

#![allow(unsafe_code, reason = "unshare")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, mount_remount, move_mount, open_tree, unmount,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::{ConfineError, Confinement, Layer, Progress, privileges};

/// Where the empty root is put before it is the root: a directory that every host has.
const PLACE: &str = "/proc";

/// A network namespace with nothing in it, for a process that is to enter it later: to make one
/// takes longer than all the rest. This process stays where it is.
///
/// # Errors
/// If the host allows none.
pub fn spare_network() -> io::Result<OwnedFd> {
    let own = || {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open("/proc/self/ns/net", flags, Mode::empty())
    };
    let home = own()?;
    unshare(UnshareFlags::NEWNET)?;
    let spare = own();
    join_network(&home)?;
    Ok(spare?)
}

fn join_network(namespace: &OwnedFd) -> io::Result<()> {
    let kind = Some(LinkNameSpaceType::Network);
    Ok(move_into_link_name_space(namespace.as_fd(), kind)?)
}

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
    let entered = if root {
        let entered = enter_others(how, progress)?;
        privileges::become_user(how.ids, progress)?;
        enter_users(UnshareFlags::empty(), proc, progress)? || entered
    } else {
        let all = OTHERS.iter().fold(UnshareFlags::empty(), |all, (flag, _)| all | *flag);
        if enter_users(all, proc, progress)? {
            empty_root(how, progress)?;
            true
        } else {
            for (_, layer) in OTHERS {
                progress.without(layer, "it takes a user namespace")?;
            }
            false
        }
    };
    Ok(entered)
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: none of these namespaces takes anything away from memory or descriptors that are in
    // use here.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

fn enter_others(how: &Confinement, progress: &mut Progress) -> Result<bool, ConfineError> {
    let mut entered = false;
    for (flag, layer) in OTHERS {
        if !progress.wants(layer) {
            continue;
        }
        let result = match (&how.network, layer) {
            (Some(spare), Layer::NetworkNamespace) => join_network(spare),
            _ => unshare(flag),
        };
        match result {
            Ok(()) if layer == Layer::MountNamespace => {
                empty_root(how, progress)?;
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
    let map = |file: &str, text: String| write_at(proc, file, &text);
    map("setgroups", "deny".to_owned())
        .and_then(|()| map("uid_map", format!("{uid} {uid} 1")))
        .and_then(|()| map("gid_map", format!("{gid} {gid} 1")))
        .map_err(ConfineError::host("map its user into its namespace"))?;
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
            format!("{error} (sysctl {}={allows} allows it)", path.replace('/', "."))
        }
        None => error.to_string(),
    }
}

/// Makes a root of nothing, but for the folders with sockets, and leaves the old one.
fn empty_root(how: &Confinement, progress: &mut Progress) -> Result<(), ConfineError> {
    match make_root(&how.socket_folders) {
        Ok(()) => Ok(()),
        // What was half done is seen by this process alone.
        Err(error) => progress.without(Layer::MountNamespace, format!("no empty root: {error}")),
    }
}

fn make_root(folders: &[std::path::PathBuf]) -> io::Result<()> {
    // Nothing that is mounted here is to be seen outside.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let folders = folders
        .iter()
        .map(|folder| Ok((folder.as_path(), open_tree(CWD, folder, clone)?)))
        .collect::<io::Result<Vec<_>>>()?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", PLACE, "tmpfs", flags, c"size=64k,nr_inodes=64,mode=755")?;
    rustix::process::chdir(PLACE)?;
    for (folder, tree) in &folders {
        put(folder, tree)?;
    }
    mount_remount(".", flags | MountFlags::BIND | MountFlags::RDONLY, c"")?;
    rustix::process::pivot_root(".", ".")?;
    // The old root lies over the new one now.
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Mounts `tree` at its own name below the working directory.
fn put(folder: &Path, tree: &OwnedFd) -> io::Result<()> {
    let below = folder.strip_prefix("/").unwrap_or(folder);
    let mut made = std::path::PathBuf::new();
    for part in below.components() {
        made.push(part);
        match mkdirat(CWD, &made, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    move_mount(tree, "", CWD, below, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}
