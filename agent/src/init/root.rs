//! The guest's root: the image and the disk, joined by overlayfs, with the kernel's file systems
//! where programs look for them.

use alloc::format;
use alloc::string::String;
use core::ffi::CStr;

use casita_agent::initrd::{
    DEV_DIR, DISK_DIR, HOSTNAME_PATH, HOSTS_PATH, IMAGE_DIR, RESOLV_PATH, ROOT_DIR,
};
use casita_agent::spec::{FsType, GuestSpec, Mount};
use rustix::fd::OwnedFd;
use rustix::fs::{
    Access, CWD, Gid, Mode, OFlags, Uid, access, chmod, chown, mkdir, open, openat, stat, symlink,
    unlink,
};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, mount, mount_move, move_mount, open_tree,
};
use rustix::path::Arg;
use rustix::process::{chdir, chroot};

use crate::failure::{Doing, Failure};
use crate::sys;

/// How often a missing device is looked for again, and how many milliseconds lie between.
const DEVICE_ATTEMPTS: u32 = 200;
const DEVICE_PAUSE: u32 = 10;

/// How the nodes of persistent memory begin.
const PMEM: &str = "/dev/pmem";

const UPPER_DIR: &str = "/disk/upper";
const WORK_DIR: &str = "/disk/work";

/// Flags of mounts that hold neither devices nor programs.
const PLAIN: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// The kernel's first root. It stays reachable through this when the guest has got its own.
pub(crate) fn open_initramfs() -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open("/", flags, Mode::empty()).doing(|| "cannot open the initial RAM file system")
}

/// Mounts everything and makes it this process's root.
pub(crate) fn prepare(initramfs: &OwnedFd, spec: &GuestSpec) -> Result<(), Failure> {
    mount_simple("devtmpfs", DEV_DIR, MountFlags::NOSUID, c"mode=755")?;
    mount_image(&spec.root)?;
    mount_disk(spec.disk.as_ref())?;
    join()?;
    switch(initramfs).doing(|| "cannot switch to the guest's root")?;
    mount_kernel_interfaces()?;
    fill_dev().doing(|| "cannot make the links in /dev")?;
    // An image may have made something else of these, and is then left alone.
    let _ = lay_over(initramfs, HOSTS_PATH, "/etc/hosts");
    let _ = lay_over(initramfs, HOSTNAME_PATH, "/etc/hostname");
    if spec.network.is_some() {
        let _ = lay_over(initramfs, RESOLV_PATH, "/etc/resolv.conf");
    }
    Ok(())
}

fn mount_image(image: &Mount) -> Result<(), Failure> {
    // An image is written by nobody, so neither is its journal: what is in it would have to be
    // replayed first. Images are made complete.
    let options = match image.fs {
        FsType::Ext4 => Some(c"noload"),
        // Memory that all guests share: files are used where they are.
        FsType::Erofs if image.device.starts_with(PMEM) => {
            // The host ignores what is written there; who tries should hear of it. A device that is
            // not there yet is waited for below, and then has to do without.
            let _ = sys::set_read_only(image.device.as_str());
            Some(c"dax=always")
        }
        _ => None,
    };
    let flags = MountFlags::RDONLY | MountFlags::NOATIME;
    mount_device("root image", image, IMAGE_DIR, flags, options)
}

fn mount_disk(disk: Option<&Mount>) -> Result<(), Failure> {
    let Some(disk) = disk else {
        return mount_simple("tmpfs", DISK_DIR, MountFlags::empty(), c"mode=755");
    };
    // The disk is a sparse file: what the guest frees goes back to the host, and inode tables that
    // were never written are zero already.
    let options = Some(c"discard,noinit_itable");
    mount_device("disk", disk, DISK_DIR, MountFlags::NOATIME, options)
}

/// Mounts a block device, which may still be on its way.
pub(crate) fn mount_device(
    role: &str,
    device: &Mount,
    target: impl Arg + Copy,
    flags: MountFlags,
    options: Option<&CStr>,
) -> Result<(), Failure> {
    let (node, fs) = (device.device.as_str(), device.fs.name());
    let mut result = mount(node, target, fs, flags, options);
    if matches!(result, Err(Errno::NOENT | Errno::NXIO)) && wait_for(node) {
        result = mount(node, target, fs, flags, options);
    }
    result.map_err(|errno| {
        let hint = match errno {
            Errno::NODEV => format!("; the guest's kernel has no {fs}"),
            Errno::NOENT | Errno::NXIO if node.starts_with(PMEM) => String::from(
                "; the guest's kernel has no virtio-pmem: start with --rootfs-mode block",
            ),
            Errno::NOENT | Errno::NXIO => String::from("; the machine has no such device"),
            Errno::NOTDIR => String::from("; the mount point is not a directory"),
            Errno::INVAL | Errno::UCLEAN | Errno::BADMSG | Errno::IO => {
                format!("; it is damaged, or not {fs}")
            }
            _ => String::new(),
        };
        let errno = casita_agent::errno::describe(errno.raw_os_error());
        Failure::new(format_args!(
            "cannot mount the {role} {node} as {fs}: {errno}{hint}"
        ))
    })
}

/// Waits until the node `path` is there; tells whether it is.
fn wait_for(path: &str) -> bool {
    let there = || access(path, Access::EXISTS).is_ok();
    (0..DEVICE_ATTEMPTS).any(|_| {
        sys::sleep(DEVICE_PAUSE);
        there()
    })
}

/// Joins image and disk. The upper directory's owner and mode are those of the guest's root, so on
/// a new disk it gets the image's.
fn join() -> Result<(), Failure> {
    let new = make_dir(UPPER_DIR).doing(|| "cannot write to the disk")?;
    if new {
        take_over_owner().doing(|| "cannot write to the disk")?;
        make_dir(WORK_DIR).doing(|| "cannot write to the disk")?;
    }
    let options = c"lowerdir=/image,upperdir=/disk/upper,workdir=/disk/work";
    mount("overlay", ROOT_DIR, "overlay", MountFlags::NOATIME, options)
        .doing(|| "cannot join the root image and the disk with overlayfs")
}

fn take_over_owner() -> Result<(), Errno> {
    let image = stat(IMAGE_DIR)?;
    let mode = image.st_mode & 0o7777;
    if (image.st_uid, image.st_gid) != (0, 0) {
        let (user, group) = (Uid::from_raw(image.st_uid), Gid::from_raw(image.st_gid));
        chown(UPPER_DIR, Some(user), Some(group))?;
    }
    if mode == 0o755 {
        return Ok(());
    }
    chmod(UPPER_DIR, Mode::from_raw_mode(mode))
}

/// Makes a directory; tells whether it was not there yet.
fn make_dir(path: &str) -> Result<bool, Errno> {
    match mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Makes the joined root the root of everything, as switch_root(8) does: a root that was only
/// changed with chroot would keep its processes from making user namespaces.
fn switch(initramfs: &OwnedFd) -> Result<(), Errno> {
    chdir(ROOT_DIR)?;
    mount_move(".", "/")?;
    chroot(".")?;
    at_mount_point("/dev", || {
        move_mount(initramfs, "dev", CWD, "/dev", MoveMountFlags::empty())
    })
}

fn mount_kernel_interfaces() -> Result<(), Failure> {
    mount_simple("proc", "/proc", PLAIN, c"")?;
    mount_simple("sysfs", "/sys", PLAIN, c"")?;
    let terminals = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_simple(
        "devpts",
        "/dev/pts",
        terminals,
        c"gid=5,mode=620,ptmxmode=666",
    )?;
    let shared_memory = MountFlags::NOSUID | MountFlags::NODEV;
    mount_simple("tmpfs", "/dev/shm", shared_memory, c"mode=1777")?;
    // A kernel without control groups has no such place, which its guest then does without.
    let options = c"nsdelegate,memory_recursiveprot";
    let _ = mount("cgroup2", "/sys/fs/cgroup", "cgroup2", PLAIN, options);
    Ok(())
}

fn mount_simple(fs: &str, at: &str, flags: MountFlags, options: &CStr) -> Result<(), Failure> {
    at_mount_point(at, || mount(fs, at, fs, flags, options))
        .doing(|| format!("cannot mount {fs} on {at}"))
}

/// Mounts something at `path`, which is made if it is missing.
fn at_mount_point(
    path: &str,
    mut mounting: impl FnMut() -> Result<(), Errno>,
) -> Result<(), Errno> {
    match mounting() {
        Err(Errno::NOENT) => {
            make_dir(path)?;
            mounting()
        }
        result => result,
    }
}

fn fill_dev() -> Result<(), Errno> {
    for (target, link) in [
        (c"/proc/self/fd", c"/dev/fd"),
        (c"/proc/self/fd/0", c"/dev/stdin"),
        (c"/proc/self/fd/1", c"/dev/stdout"),
        (c"/proc/self/fd/2", c"/dev/stderr"),
    ] {
        symlink(target, link)?;
    }
    Ok(())
}

/// Lays a file of the initial RAM file system over `target`, so that nothing is written to the
/// disk for it. An empty file is made for it where the image has none.
fn lay_over(initramfs: &OwnedFd, file: &str, target: &str) -> Result<(), Errno> {
    let file = file.strip_prefix('/').unwrap_or(file);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(initramfs, file, flags)?;
    let attach = || {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
        move_mount(&tree, "", CWD, target, flags)
    };
    match attach() {
        Err(Errno::NOENT) => {
            make_dir("/etc")?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            let make = || openat(CWD, target, flags, Mode::from_raw_mode(0o644));
            // A link that leads to nowhere waits for a program that images for machines run.
            let made = make().or_else(|_| unlink(target).and_then(|()| make()));
            drop(made?);
            attach()
        }
        result => result,
    }
}
