//! The end of the guest: nothing that was written is lost, and the host learns how it went.

use casita_agent::mounts::GuestMount;
use casita_agent::spec::GuestSpec;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, openat, sync};
use rustix::io::{Errno, write};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, UnmountFlags, fsconfig_create,
    fsconfig_reconfigure, fsconfig_set_flag, fsmount, fsopen, fspick, unmount,
};
use rustix::system::{RebootCommand, reboot};

use crate::{stamp, sys};

/// How often the disk is asked to become read-only while the last file is being closed, and the
/// milliseconds between.
const BUSY_ATTEMPTS: u32 = 20;
const BUSY_PAUSE: u32 = 5;

/// Ends the machine with the exit status `status`, after what is to be kept was written back: the
/// disk in `initramfs`, and volumes.
pub(crate) fn end(status: u8, initramfs: Option<&OwnedFd>, spec: Option<&GuestSpec>) -> ! {
    // Without a spec nobody knows whether the disk is to be kept.
    let keep_disk = spec.is_none_or(|spec| spec.keep_disk);
    let mounts = spec.map_or(&[][..], |spec| &spec.mounts);
    let written = mounts.iter().rev().filter_map(|mount| match mount {
        GuestMount::Volume {
            target, read_only, ..
        }
        | GuestMount::Share {
            target, read_only, ..
        } => (!read_only).then_some(target),
        GuestMount::Tmpfs { .. } => None,
    });
    if keep_disk || written.clone().next().is_some() {
        sync();
    }
    for target in written {
        // One that is in use was written back above, and replays its journal at its next start.
        let _ = until_not_busy(|| unmount(target.as_slice(), UnmountFlags::NOFOLLOW));
    }
    if let (Some(initramfs), true) = (initramfs, keep_disk) {
        let _ = until_not_busy(|| make_disk_read_only(initramfs));
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

fn until_not_busy(mut attempt: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    let mut result = attempt();
    for _ in 0..BUSY_ATTEMPTS {
        if result != Err(Errno::BUSY) {
            break;
        }
        sys::sleep(BUSY_PAUSE);
        result = attempt();
    }
    result
}

/// Writes the disk's journal back, so that the next start need not replay it. It is the file
/// system that becomes read-only: overlayfs holds it, wherever the guest has mounted what.
fn make_disk_read_only(initramfs: &OwnedFd) -> Result<(), Errno> {
    let disk = fspick(initramfs, "disk", FsPickFlags::FSPICK_CLOEXEC)?;
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
