//! The host's memory: what the kernel keeps, what is cached of files, whose child is whose.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::containers::is_installed;
use crate::interrupt::output_of;

/// The parts of /proc/meminfo that count here, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(clippy::struct_field_names, reason = "the unit")]
pub struct HostMemory {
    /// What could be given to others.
    pub available_kib: u64,
    /// The kernel's own objects.
    pub slab_kib: u64,
    /// Page tables of processes.
    pub page_tables_kib: u64,
    /// Page tables of guests.
    pub guest_page_tables_kib: u64,
    /// Files of tmpfs, and memory that processes share.
    pub shmem_kib: u64,
    /// A stack for each thread.
    pub stacks_kib: u64,
}

impl HostMemory {
    /// As it is now.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut memory = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(name), Some(kib)) = (words.next(), words.next()) else {
                continue;
            };
            let field = match name {
                "MemAvailable:" => &mut memory.available_kib,
                "Shmem:" => &mut memory.shmem_kib,
                "Slab:" => &mut memory.slab_kib,
                "PageTables:" => &mut memory.page_tables_kib,
                "SecPageTables:" => &mut memory.guest_page_tables_kib,
                "KernelStack:" => &mut memory.stacks_kib,
                _ => continue,
            };
            *field = kib.parse().unwrap_or(0);
        }
        memory
    }

    /// All that the kernel keeps for processes and guests.
    pub fn kernel_kib(&self) -> u64 {
        self.slab_kib + self.page_tables_kib + self.guest_page_tables_kib + self.stacks_kib
    }
}

/// All regular files below a folder.
///
/// # Errors
/// If a folder can't be listed.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// KiB of `files` that are in the page cache, by fincore of util-linux; 0 where that is missing.
///
/// # Errors
/// If it fails.
pub fn cached_kib(files: &[PathBuf]) -> Result<u64> {
    if !is_installed("fincore") {
        return Ok(0);
    }
    let mut bytes = 0;
    // A command line has room for some thousand names.
    for some in files.chunks(500) {
        let mut command = Command::new("fincore");
        command.args(["--bytes", "--noheadings", "--output", "RES", "--"]);
        let output = output_of(command.args(some))?;
        let sizes = String::from_utf8_lossy(&output);
        bytes += sizes
            .split_whitespace()
            .filter_map(|size| size.parse::<u64>().ok())
            .sum::<u64>();
    }
    Ok(bytes / 1024)
}

/// Who started whom.
pub struct Processes {
    parents: BTreeMap<u32, u32>,
}

impl Processes {
    /// Those that there are now.
    ///
    /// # Errors
    /// If /proc can't be listed.
    pub fn now() -> Result<Self> {
        let mut parents = BTreeMap::new();
        for entry in fs::read_dir("/proc").context("listing /proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // One that has ended meanwhile is nobody's.
            if let Some(parent) = parent(pid) {
                parents.insert(pid, parent);
            }
        }
        Ok(Self { parents })
    }

    /// A process and all that descend from it.
    pub fn family(&self, root: u32) -> Vec<u32> {
        let mut family = vec![root];
        let mut next = 0;
        while let Some(&member) = family.get(next) {
            let children = self.parents.iter().filter(|(_, parent)| **parent == member);
            for (&child, _) in children {
                // A number that was given anew while this was read could make a ring.
                if !family.contains(&child) {
                    family.push(child);
                }
            }
            next += 1;
        }
        family
    }
}

/// Field 4 of proc_pid_stat(5).
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_part_is_the_sum_of_what_it_keeps() {
        let text = "MemTotal: 9 kB\nMemAvailable:  1000 kB\nSlab: 1 kB\nSReclaimable: 500 kB\n\
                    KernelStack:  2 kB\nPageTables:   4 kB\nSecPageTables: 8 kB\n";
        let memory = HostMemory::parse(text);
        assert_eq!((memory.available_kib, memory.kernel_kib()), (1000, 15));
        assert_eq!(HostMemory::parse("nonsense\n"), HostMemory::default());
    }

    #[test]
    fn a_family_has_grandchildren_and_no_strangers() {
        let processes = Processes {
            parents: [(2, 1), (3, 2), (4, 3), (5, 1), (6, 5), (3, 2)].into(),
        };
        assert_eq!(processes.family(2), [2, 3, 4]);
        assert_eq!(processes.family(9), [9]);
        let ring = Processes {
            parents: [(1, 2), (2, 1)].into(),
        };
        assert_eq!(ring.family(1), [1, 2]);
    }

    #[test]
    fn this_process_is_its_parents_family() {
        let own = std::process::id();
        let processes = Processes::now().unwrap();
        let parent = parent(own).unwrap();
        assert!(processes.family(parent).contains(&own));
    }

    #[test]
    fn a_file_that_was_just_written_is_cached() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        fs::write(&path, vec![1; 64 << 10]).unwrap();
        let files = files_below(place.path()).unwrap();
        assert_eq!(files, [path]);
        if is_installed("fincore") {
            assert_eq!(cached_kib(&files).unwrap(), 64);
        }
    }
}
