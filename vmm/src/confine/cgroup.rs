//! A cgroup (v2) of a VM's own, where this user may make one: what its monitor and helpers use
//! together is limited there.
//!
//! It is made and removed by the monitor's keeper, which stays outside of it. Moving a process may
//! take the kernel some milliseconds; a guest waits for that only if its sandbox is strict.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a monitor and its helpers need beside the guest's memory, page cache included.
const OWN_MEMORY: u64 = 384 << 20;
/// One CPU's time, in the microseconds of a period.
const PERIOD: u64 = 100_000;
/// Tries to remove one, whose last process is ending.
const TRIES: u32 = 200;
/// The controllers that limits are set by.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];

/// Limits of one VM on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CgroupLimits {
    /// The guest's memory, in bytes.
    pub memory: u64,
    /// Its vCPUs; one CPU more is for its devices.
    pub cpus: u8,
    /// Threads and processes.
    pub pids: u64,
    /// Docker's weight of CPU time, from 2 to 262144.
    pub cpu_shares: Option<u32>,
    /// Docker's weight of block I/O, from 10 to 1000.
    pub blkio_weight: Option<u16>,
}

impl CgroupLimits {
    /// Files and what is written to them.
    fn settings(&self) -> Vec<(&'static str, &'static str, String)> {
        let quota = (u64::from(self.cpus) + 1) * PERIOD;
        let mut settings = vec![
            (
                "memory",
                "memory.max",
                (self.memory + OWN_MEMORY).to_string(),
            ),
            ("memory", "memory.oom.group", "1".to_owned()),
            ("pids", "pids.max", self.pids.to_string()),
            ("cpu", "cpu.max", format!("{quota} {PERIOD}")),
        ];
        if let Some(shares) = self.cpu_shares {
            let weight = 1 + (u64::from(shares.max(2)) - 2) * 9999 / 262_142;
            settings.push(("cpu", "cpu.weight", weight.to_string()));
        }
        if let Some(weight) = self.blkio_weight {
            settings.push((
                "io",
                "io.weight",
                format!("default {}", u32::from(weight) * 10),
            ));
        }
        settings
    }
}

/// A cgroup that was made for a VM.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    /// Where its processes came from.
    home: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup of the VM `id` with `limits`, in which nobody is yet.
    ///
    /// # Errors
    /// Why there is none, in one line.
    pub fn make(id: &str, limits: &CgroupLimits) -> Result<Self, String> {
        let (root, own) = find().ok_or("no cgroup v2 file system is mounted")?;
        let home = root.join(own.trim_start_matches('/'));
        let parent = if rustix::process::geteuid().is_root() {
            let parent = root.join("casita");
            enable(&root);
            let _ = fs::create_dir(&parent);
            parent
        } else {
            beside(&root, &home).to_owned()
        };
        // Who limits what starts VMs limits the VMs, and does not want them elsewhere.
        if let Some(limit) = limit_left(&home, &parent) {
            return Err(format!(
                "it stays in the cgroup that it was started in, which has a limit of its own: {}",
                limit.display()
            ));
        }
        enable(&parent);
        let has = fs::read_to_string(parent.join("cgroup.subtree_control"))
            .map_err(|error| format!("{}: {error}", parent.display()))?;
        let delegated = |controller: &str| has.split_whitespace().any(|name| name == controller);
        if !CONTROLLERS.iter().any(|controller| delegated(controller)) {
            return Err(format!(
                "no controller is delegated to {}: systemd-run --user --scope -p Delegate=yes, or \
                 root, has some",
                parent.display()
            ));
        }
        let dir = parent.join(format!("casita-{id}"));
        fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let cgroup = Self { dir, home };
        for (controller, file, value) in limits.settings() {
            if delegated(controller)
                && let Err(error) = fs::write(cgroup.dir.join(file), &value)
            {
                log::debug!("{file} of the VM's cgroup can't be {value}: {error}");
            }
        }
        Ok(cgroup)
    }

    /// Moves process `pid` there. That may take the kernel some milliseconds.
    ///
    /// # Errors
    /// Why it can't, in one line; the cgroup is gone then.
    pub fn take(self, pid: u32) -> Result<Self, String> {
        match fs::write(self.dir.join("cgroup.procs"), pid.to_string()) {
            Ok(()) => Ok(self),
            Err(error) => {
                let why = format!("no process can be moved to {}: {error}", self.dir.display());
                let _ = fs::remove_dir(&self.dir);
                Err(why)
            }
        }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Lets process `pid`, which is about to end, go back to where it came from. That may take the
    /// kernel some milliseconds, as all that moves a process.
    pub fn let_go(&self, pid: u32) {
        let _ = fs::write(self.home.join("cgroup.procs"), pid.to_string());
    }

    /// Has process `pid` here again.
    pub fn hold(&self, pid: u32) {
        let _ = fs::write(self.dir.join("cgroup.procs"), pid.to_string());
    }

    /// Removes it, and ends what is still there.
    pub fn remove(self) {
        for attempt in 0..TRIES {
            match fs::remove_dir(&self.dir) {
                Err(busy) if busy.kind() == io::ErrorKind::ResourceBusy => {
                    if attempt == 0 {
                        let _ = fs::write(self.dir.join("cgroup.kill"), "1");
                    }
                    thread::sleep(Duration::from_millis(5));
                }
                _ => return,
            }
        }
        log::warn!("the cgroup {} could not be removed", self.dir.display());
    }
}

/// Where the cgroups of an ordinary user's VMs are: beside `home`, in which they are, as that may
/// have no limits for processes that are in it themselves; below `root` in any case.
fn beside<'a>(root: &'a Path, home: &'a Path) -> &'a Path {
    home.parent()
        .filter(|parent| parent.starts_with(root))
        .unwrap_or(root)
}

/// A limit of memory or CPU time that a process leaves which goes from the cgroup `home` to one below
/// `parent`.
fn limit_left(home: &Path, parent: &Path) -> Option<PathBuf> {
    let left = home.ancestors().take_while(|dir| !parent.starts_with(dir));
    left.flat_map(|dir| ["memory.max", "memory.high", "cpu.max"].map(|name| dir.join(name)))
        .find(|file| fs::read_to_string(file).is_ok_and(|limit| !limit.starts_with("max")))
}

/// Lets cgroups below `dir` have controllers, as far as it has some itself.
fn enable(dir: &Path) {
    for controller in CONTROLLERS {
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Where cgroup v2 is mounted, and this process's path there.
fn find() -> Option<(PathBuf, String)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let root = mounts.lines().find_map(mount_point)?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some((root.into(), own.to_owned()))
}

/// The mount point of a line of mountinfo that is about cgroup v2.
fn mount_point(line: &str) -> Option<&str> {
    let (mount, kind) = line.split_once(" - ")?;
    kind.starts_with("cgroup2 ")
        .then(|| mount.split_whitespace().nth(4))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_made_below_the_root_alone() {
        let root = Path::new("/sys/fs/cgroup");
        let of = |home: &str| beside(root, Path::new(home)).to_owned();
        assert_eq!(of("/sys/fs/cgroup/user/session"), root.join("user"));
        assert_eq!(of("/sys/fs/cgroup/user"), root);
        assert_eq!(of("/sys/fs/cgroup/"), root);
    }

    #[test]
    fn limits_are_what_the_machine_needs_and_some() {
        let limits = CgroupLimits {
            memory: 256 << 20,
            cpus: 2,
            pids: 100,
            cpu_shares: Some(1024),
            blkio_weight: Some(500),
        };
        let settings = limits.settings();
        let value = |file: &str| &settings.iter().find(|setting| setting.1 == file).unwrap().2;
        assert_eq!(value("memory.max"), &(640_u64 << 20).to_string());
        assert_eq!(value("cpu.max"), "300000 100000");
        assert_eq!(value("pids.max"), "100");
        assert_eq!(value("cpu.weight"), "39");
        assert_eq!(value("io.weight"), "default 5000");
    }

    #[test]
    fn limits_of_who_starts_vms_are_not_left() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("a/b");
        fs::create_dir_all(&home).unwrap();
        fs::write(root.path().join("memory.max"), "1\n").unwrap();
        fs::write(home.join("memory.max"), "max\n").unwrap();
        fs::write(home.join("cpu.max"), "max 100000\n").unwrap();
        let elsewhere = root.path().join("casita");
        assert_eq!(limit_left(&home, &elsewhere), None);
        fs::write(root.path().join("a/cpu.max"), "50000 100000\n").unwrap();
        assert_eq!(
            limit_left(&home, &elsewhere),
            Some(root.path().join("a/cpu.max"))
        );
        // Beside it that limit holds as well.
        assert_eq!(limit_left(&home, &root.path().join("a")), None);
        fs::write(home.join("memory.max"), "120\n").unwrap();
        assert_eq!(
            limit_left(&home, &root.path().join("a")),
            Some(home.join("memory.max"))
        );
    }

    #[test]
    fn the_second_version_is_found_among_others() {
        let first = "30 25 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";
        let second = "40 25 0:35 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw";
        assert_eq!(mount_point(first), None);
        assert_eq!(mount_point(second), Some("/sys/fs/cgroup/unified"));
    }
}
