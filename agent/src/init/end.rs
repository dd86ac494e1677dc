//! The end of the guest: nothing that was written is lost, and the host learns how it went.

use casita_agent::spec::GuestSpec;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, openat, sync};
use rustix::io::{Errno, write};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, fsconfig_create, fsconfig_reconfigure,
    fsconfig_set_flag, fsmount, fsopen, fspick,
};
use rustix::system::{RebootCommand, reboot};

use crate::{mounts, stamp, sys};

/// How often the disk is asked to become read-only while the last file is being closed, and the
/// milliseconds between.
const BUSY_ATTEMPTS: u32 = 20;
const BUSY_PAUSE: u32 = 5;

/// Ends the machine with the exit status `status`, after what is to be kept was written back: the
/// disk in `initramfs`, and volumes.
pub(crate) fn end(status: u8, initramfs: Option<&OwnedFd>, spec: Option<&GuestSpec>) -> ! {
    // Without a spec nobody knows whether the disk is to be kept.
    let keep_disk = spec.is_none_or(|spec| spec.keep_disk);
    if let Some(initramfs) = initramfs {
        for index in 0..mounts::kept() {
            write_back(initramfs, &mounts::place(index));
        }
        if keep_disk {
            sync();
            write_back(initramfs, "disk");
        }
    }
    let _ = silence_kernel();
    stamp::exit_status(status);
    let _ = reboot(RebootCommand::PowerOff);
    let _ = reboot(RebootCommand::Restart);
    loop {
        let _ = reboot(RebootCommand::Halt);
        sys::sleep(1000);
    }
}

/// Writes the file system at `path` back, its journal too, so that the next start need not replay
/// it. It is the file system that becomes read-only, wherever the guest has mounted it.
fn write_back(initramfs: &OwnedFd, path: &str) {
    let mut result = make_read_only(initramfs, path);
    for _ in 0..BUSY_ATTEMPTS {
        if result != Err(Errno::BUSY) {
            break;
        }
        sys::sleep(BUSY_PAUSE);
        result = make_read_only(initramfs, path);
    }
}

fn make_read_only(initramfs: &OwnedFd, path: &str) -> Result<(), Errno> {
    let disk = fspick(initramfs, path, FsPickFlags::FSPICK_CLOEXEC)?;
    fsconfig_set_flag(&disk, "ro")?;
    fsconfig_reconfigure(&disk)
}

/// Keeps the kernel's farewell ("reboot: Power down") off the console. It takes a /proc of its
/// own, for the guest's may be gone or not yet there.
fn silence_kernel() -> Result<(), Errno> {
    let proc = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&proc)?;
    let proc = fsmount(
        &proc,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let levels = openat(&proc, "sys/kernel/printk", flags, Mode::empty())?;
    write(&levels, b"0").map(drop)
}
