//! A process's control group (cgroup v2): what it may use together with all that it starts, and
//! what they have used.

use alloc::format;

use casita_agent::group;
use casita_agent::wire::{GroupLimit, GroupLimits, GroupUsage};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, StatVfs, mkdirat, openat, statvfs};
use rustix::io::{Errno, read, write};

use crate::failure::{Doing, Failure};

/// Milliseconds between looks at what a group has met.
pub(crate) const PAUSE: u64 = 100;
/// Where the agent has mounted the groups.
const GROUPS: &str = "/sys/fs/cgroup";
/// A disk with no more room than this is full: what is left is too little for one more file.
const FULL: u64 = 64 << 10;
/// More than any file of a group has.
const FILE: usize = 4 << 10;

/// The limits, and a place for each in what was told.
const LIMITS: [GroupLimit; 3] = [GroupLimit::Memory, GroupLimit::Processes, GroupLimit::Disk];

/// The group of a process that runs.
pub(crate) struct Group {
    dir: OwnedFd,
    told: [bool; LIMITS.len()],
    disk_before: u64,
}

impl Group {
    /// Makes the group for the process that the host calls `id`.
    pub(crate) fn new(id: u32, limits: GroupLimits) -> Result<Self, Failure> {
        let doing = || "cannot limit the process: the guest's kernel needs CONFIG_MEMCG=y and CONFIG_CGROUP_PIDS=y";
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let all = openat(CWD, GROUPS, flags, Mode::empty()).doing(doing)?;
        set(&all, "cgroup.subtree_control", "+memory +pids").doing(doing)?;
        let name = format!("casita-{id}");
        mkdirat(&all, name.as_str(), Mode::from_raw_mode(0o755)).doing(doing)?;
        let dir = openat(&all, name.as_str(), flags, Mode::empty()).doing(doing)?;
        set(&dir, "memory.max", &format!("{}", limits.memory)).doing(doing)?;
        // Half of a group is of no use to anybody.
        set(&dir, "memory.oom.group", "1").doing(doing)?;
        set(&dir, "pids.max", &format!("{}", limits.processes)).doing(doing)?;
        Ok(Group {
            dir,
            told: [false; LIMITS.len()],
            disk_before: disk().map_or(0, |disk| used(&disk)),
        })
    }

    /// Puts the calling process into the group.
    pub(crate) fn join(&self) -> Result<(), Errno> {
        set(&self.dir, "cgroup.procs", "0")
    }

    /// The limits that were met since the last call.
    pub(crate) fn exceeded(&mut self) -> impl Iterator<Item = GroupLimit> + use<> {
        let now = [
            self.count("memory.events", "oom_kill") > 0,
            self.count("pids.events", "max") > 0,
            disk().is_ok_and(|disk| is_full(&disk)),
        ];
        let before = core::mem::replace(&mut self.told, now);
        for (told, before) in self.told.iter_mut().zip(before) {
            *told |= before;
        }
        let new = now.into_iter().zip(before).map(|(now, old)| now && !old);
        LIMITS
            .into_iter()
            .zip(new)
            .filter_map(|(limit, new)| new.then_some(limit))
    }

    /// Ends all that is left in the group.
    pub(crate) fn end(&self) {
        // There may be nothing left.
        let _ = set(&self.dir, "cgroup.kill", "1");
    }

    pub(crate) fn usage(&self) -> GroupUsage {
        let number = |file| {
            let text = self.read(file);
            text.as_deref().ok().and_then(group::number).unwrap_or(0)
        };
        GroupUsage {
            user_us: self.count("cpu.stat", "user_usec"),
            system_us: self.count("cpu.stat", "system_usec"),
            memory_peak: number("memory.peak"),
            processes_peak: number("pids.peak"),
            disk: disk().map_or(0, |disk| used(&disk).saturating_sub(self.disk_before)),
        }
    }

    fn count(&self, file: &str, key: &str) -> u64 {
        let text = self.read(file);
        let value = text
            .as_deref()
            .ok()
            .and_then(|text| group::value(text, key));
        value.unwrap_or(0)
    }

    fn read(&self, file: &str) -> Result<alloc::vec::Vec<u8>, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(&self.dir, file, flags, Mode::empty())?;
        let mut text = alloc::vec![0; FILE];
        let count = read(&file, &mut text[..])?;
        text.truncate(count);
        Ok(text)
    }
}

fn set(dir: &OwnedFd, file: &str, value: &str) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(dir, file, flags, Mode::empty())?;
    write(&file, value.as_bytes()).map(drop)
}

/// The disk's figures, which are those of the guest's root.
fn disk() -> Result<StatVfs, Errno> {
    statvfs("/")
}

fn used(disk: &StatVfs) -> u64 {
    let blocks = disk.f_blocks.saturating_sub(disk.f_bfree);
    blocks.saturating_mul(disk.f_frsize)
}

fn is_full(disk: &StatVfs) -> bool {
    disk.f_bavail.saturating_mul(disk.f_frsize) < FULL || disk.f_favail == 0
}
