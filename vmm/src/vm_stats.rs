//! What a running VM uses of its host, as the host's kernel counts it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use casita_devices::virtio::block::Traffic;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// What a running VM uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmStats {
    /// CPU time of its monitor, vCPUs and devices together, in milliseconds.
    pub cpu_ms: u64,
    /// That of each vCPU, with what the host did for it.
    pub vcpus_ms: Vec<u64>,
    /// Memory.
    pub memory: MemoryStats,
    /// Disks, in the order in which the guest sees them.
    pub block: Vec<BlockStats>,
    /// Since its start, in milliseconds; time while it was paused counts.
    pub uptime_ms: u64,
    /// Exits from the guest to the monitor.
    pub exits: u64,
}

/// Memory of the host's that a VM's monitor has, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryStats {
    /// What the guest has been given.
    pub limit: u64,
    /// What of it, and of the monitor itself, is in the host's memory.
    pub resident: u64,
    /// The part of that which no other process uses.
    pub private: u64,
    /// The part that others use too, such as the guest kernel's pages.
    pub shared: u64,
}

/// What has gone through a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockStats {
    /// Which.
    pub device: String,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Requests to read.
    pub reads: u64,
    /// Requests to write.
    pub writes: u64,
}

impl BlockStats {
    /// Of the disk `device`, whose traffic is counted in `traffic`.
    pub fn of(device: &str, traffic: &Traffic) -> Self {
        Self {
            device: device.to_owned(),
            read_bytes: traffic.read_bytes(),
            write_bytes: traffic.write_bytes(),
            reads: traffic.reads(),
            writes: traffic.writes(),
        }
    }
}

/// Where the host's kernel counts this process's memory: opened before the process can't open
/// anything any more.
#[derive(Debug)]
pub struct OwnMemory(Option<File>);

impl OwnMemory {
    /// Opens it; a host without it tells nothing.
    pub fn open() -> Self {
        Self(File::open("/proc/self/smaps_rollup").ok())
    }

    /// As it is now, for a guest with `limit` bytes. What the host does not tell is 0.
    pub fn stats(&self, limit: u64) -> MemoryStats {
        // More than it has; it is made anew by each read of its beginning.
        let mut text = vec![0; 4096];
        let count = self
            .0
            .as_ref()
            .and_then(|file| file.read_at(&mut text, 0).ok());
        text.truncate(count.unwrap_or(0));
        MemoryStats {
            limit,
            ..MemoryStats::parse(&String::from_utf8_lossy(&text))
        }
    }
}

impl MemoryStats {
    /// proc_pid_smaps_rollup(5).
    fn parse(rollup: &str) -> Self {
        let sum = |names: &[&str]| -> u64 {
            rollup
                .lines()
                .filter_map(|line| line.split_once(':'))
                .filter(|(name, _)| names.contains(name))
                .filter_map(|(_, value)| value.trim().strip_suffix(" kB")?.parse::<u64>().ok())
                .sum::<u64>()
                * 1024
        };
        Self {
            limit: 0,
            resident: sum(&["Rss"]),
            private: sum(&["Private_Clean", "Private_Dirty", "Private_Hugetlb"]),
            shared: sum(&["Shared_Clean", "Shared_Dirty", "Shared_Hugetlb"]),
        }
    }
}

/// CPU time of this process, in milliseconds.
pub fn cpu_ms() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    u64::try_from(time.tv_sec * 1000 + time.tv_nsec / 1_000_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_understood() {
        let text = "7f0000-7fff rollup\nRss:   1000 kB\nPss:  1 kB\nShared_Clean: 300 kB\n\
                    Shared_Dirty: 0 kB\nPrivate_Clean: 200 kB\nPrivate_Dirty: 500 kB\nSwap: x kB\n";
        let stats = MemoryStats::parse(text);
        assert_eq!(stats.resident, 1000 << 10);
        assert_eq!((stats.private, stats.shared), (700 << 10, 300 << 10));
    }

    #[test]
    fn this_process_is_in_memory() {
        let memory = OwnMemory::open();
        for limit in [5, 6] {
            let stats = memory.stats(limit);
            assert_eq!(stats.limit, limit);
            assert!(stats.resident > 0 && stats.resident >= stats.private);
        }
    }
}
