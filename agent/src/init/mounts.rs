//! The guest's volumes, shares and tmpfs.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use core::ffi::CStr;
use core::sync::atomic::{AtomicUsize, Ordering};

use casita_agent::mounts::GuestMount;
use casita_agent::spec::{FsType, Mount};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, mkdir, mkdirat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};

use crate::failure::{Doing, Failure};
use crate::populate;
use crate::root::mount_device;

/// How many file systems are held in the initial RAM file system, at [`place`].
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// The number of file systems that have to be written back before the machine ends.
pub(crate) fn kept() -> usize {
    KEPT.load(Ordering::Relaxed)
}

/// Where the initial RAM file system has the one of number `index`.
pub(crate) fn place(index: usize) -> String {
    format!("volume{index}")
}

/// Mounts all of `mounts` in the guest's root.
pub(crate) fn mount_all(initramfs: &OwnedFd, mounts: &[GuestMount]) -> Result<(), Failure> {
    for wanted in mounts {
        let target = wanted.target();
        let made = make_directories(target)
            .doing(|| format!("cannot make the mount point {:?}", lossy(target)))?;
        let fills = matches!(
            wanted,
            GuestMount::Volume {
                read_only: false,
                ..
            }
        );
        let image = (fills && !made).then(|| populate::mount_point(target));
        match wanted {
            GuestMount::Volume {
                device, read_only, ..
            } => mount_volume(device, target, *read_only)?,
            GuestMount::Tmpfs { size, mode, .. } => mount_tmpfs(target, *size, *mode)?,
            GuestMount::Share { tag, read_only, .. } => mount_share(tag, target, *read_only)?,
        }
        if fills {
            populate::fill(target, image.flatten().as_ref())?;
        }
        let written = match wanted {
            GuestMount::Volume { read_only, .. } | GuestMount::Share { read_only, .. } => {
                !read_only
            }
            GuestMount::Tmpfs { .. } => false,
        };
        if written {
            hold(initramfs, target).doing(|| format!("cannot hold {:?}", lossy(target)))?;
        }
    }
    Ok(())
}

fn mount_volume(device: &str, target: &[u8], read_only: bool) -> Result<(), Failure> {
    let mut flags = MountFlags::NOATIME;
    // Who may only read can't replay a journal either. The host has seen that there is none to be.
    let mut options = c"noload";
    if read_only {
        flags |= MountFlags::RDONLY;
    } else {
        // As the machine's own disk.
        options = c"discard,noinit_itable";
    }
    let device = Mount {
        device: device.into(),
        fs: FsType::Ext4,
    };
    let role = format!("volume for {:?},", lossy(target));
    mount_device(&role, &device, target, flags, Some(options))
}

fn mount_tmpfs(target: &[u8], size: u64, mode: u32) -> Result<(), Failure> {
    let size = match size {
        0 => String::new(),
        size => format!("size={size},"),
    };
    let options = CString::new(format!("{size}mode={mode:o}")).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount_at("tmpfs", "tmpfs", target, flags, &options)
}

fn mount_share(tag: &str, target: &[u8], read_only: bool) -> Result<(), Failure> {
    let flags = if read_only {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    mount_at(tag, "virtiofs", target, flags, c"")
}

fn mount_at(
    source: &str,
    fs: &str,
    target: &[u8],
    flags: MountFlags,
    options: &CStr,
) -> Result<(), Failure> {
    mount(source, target, fs, flags, options).map_err(|errno| {
        let hint = match (errno, fs) {
            (Errno::NODEV, _) => format!("; the guest's kernel has no {fs}"),
            (Errno::NOTDIR, _) => String::from("; it is not a directory"),
            (Errno::INVAL, "virtiofs") => String::from("; the machine has no such share"),
            _ => String::new(),
        };
        let errno = casita_agent::errno::describe(errno.raw_os_error());
        let target = lossy(target);
        Failure::new(format_args!(
            "cannot mount {fs} on {target:?}: {errno}{hint}"
        ))
    })
}

/// Makes what is missing of `path`; tells whether anything was. Symbolic links in it lead where
/// they lead in the guest.
fn make_directories(path: &[u8]) -> Result<bool, Errno> {
    let mut made = false;
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    for end in ends.map(|(end, _)| end).chain([path.len()]) {
        let ancestor = path.get(..end).unwrap_or_default();
        if !ancestor.is_empty() {
            match mkdir(ancestor, Mode::from_raw_mode(0o755)) {
                Ok(()) => made = true,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(made)
}

/// Mounts what is at `target` a second time, where no process of the guest's comes. Whatever
/// becomes of the first mount, the file system is there to be written back at the end.
fn hold(initramfs: &OwnedFd, target: &[u8]) -> Result<(), Errno> {
    let index = kept();
    let place = place(index);
    mkdirat(initramfs, place.as_str(), Mode::RWXU)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, target, flags)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&tree, "", initramfs, place.as_str(), flags)?;
    KEPT.store(index + 1, Ordering::Relaxed);
    Ok(())
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
