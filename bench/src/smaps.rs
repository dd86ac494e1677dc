//! Memory of processes, as their mappings tell it.

use std::fs;

use anyhow::{Context, Result};

/// Private and shared memory of a process, in KiB.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Used by nobody else.
    pub private: u64,
    /// Used by others too.
    pub shared: u64,
    /// All, with what is shared divided among those that share it.
    pub proportional: u64,
    /// The part of that which is in tmpfs or shared anonymous memory.
    pub shmem: u64,
}

/// The parts of /proc/PID/smaps that count here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    start: u64,
    end: u64,
    writable: bool,
    /// What it has in memory.
    pub usage: Usage,
}

/// All mappings together.
pub fn total(mappings: &[Mapping]) -> Usage {
    mappings
        .iter()
        .fold(Usage::default(), |sum, mapping| Usage {
            private: sum.private + mapping.usage.private,
            shared: sum.shared + mapping.usage.shared,
            proportional: sum.proportional + mapping.usage.proportional,
            shmem: sum.shmem + mapping.usage.shmem,
        })
}

/// The neighbours without a gap, all writable, that together are as long as the guest's RAM. A
/// monitor may have the kernel's file mapped in the middle of it.
pub fn guest_ram(mappings: &[Mapping], kib: u64) -> Option<&[Mapping]> {
    (0..mappings.len()).find_map(|first| {
        let mut length = 0;
        for (last, mapping) in mappings.iter().enumerate().skip(first) {
            let adjacent = last == first || mappings[last - 1].end == mapping.start;
            if !mapping.writable || !adjacent {
                return None;
            }
            length += (mapping.end - mapping.start) / 1024;
            if length >= kib {
                return (length == kib).then_some(&mappings[first..=last]);
            }
        }
        None
    })
}

/// Reads /proc/PID/smaps.
///
/// # Errors
/// If there is no such process, or it is not ours to look at.
pub fn mappings(pid: u32) -> Result<Vec<Mapping>> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    Ok(parse(&text))
}

/// Reads the format of proc_pid_smaps(5).
fn parse(text: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some((start, end)) = words.first().and_then(|word| range(word)) {
            mappings.push(Mapping {
                start,
                end,
                writable: words.get(1).is_some_and(|flags| flags.contains('w')),
                usage: Usage::default(),
            });
            continue;
        }
        let (Some(mapping), [name, kib, ..]) = (mappings.last_mut(), &words[..]) else {
            continue;
        };
        let kib: u64 = kib.parse().unwrap_or(0);
        match *name {
            "Private_Clean:" | "Private_Dirty:" => mapping.usage.private += kib,
            "Pss_Shmem:" => mapping.usage.shmem += kib,
            "Pss:" => mapping.usage.proportional += kib,
            "Shared_Clean:" | "Shared_Dirty:" => mapping.usage.shared += kib,
            _ => {}
        }
    }
    mappings
}

fn range(word: &str) -> Option<(u64, u64)> {
    let (start, end) = word.split_once('-')?;
    Some((
        u64::from_str_radix(start, 16).ok()?,
        u64::from_str_radix(end, 16).ok()?,
    ))
}

/// All of a process, as the kernel sums it up: cheaper, and of one moment.
///
/// # Errors
/// As [`mappings`].
pub fn rollup(pid: u32) -> Result<Usage> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    Ok(total(&parse(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_found_with_a_file_mapped_in_its_middle() {
        let text = "\
1000-3000 rw-p 00000000 00:00 0 [heap]
Private_Dirty: 8 kB
10000-12000 rw-p 00000000 00:00 0
Private_Dirty: 4 kB
Shared_Clean: 0 kB
12000-13000 rw-p 00001000 08:01 7 /boot/vmlinux
Private_Clean: 0 kB
Shared_Clean: 4 kB
13000-14000 rw-p 00000000 00:00 0
Private_Dirty: 1 kB
14000-15000 ---p 00000000 00:00 0
";
        let mappings = parse(text);
        let ram = guest_ram(&mappings, 16).unwrap();
        assert_eq!(ram.len(), 3);
        assert_eq!(
            total(ram),
            Usage {
                private: 5,
                shared: 4,
                proportional: 0,
                shmem: 0
            }
        );
        assert_eq!(total(&mappings).private, 13);
        assert_eq!(guest_ram(&mappings, 20), None);
    }
}
