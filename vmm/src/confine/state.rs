//! How a process is confined, as its host's kernel tells: not what was meant to be.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Confined, Layer};

/// How a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Is {
    /// In force.
    On,
    /// Not in force.
    Off,
    /// The kernel does not tell this user.
    Hidden,
}

/// A layer as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerState {
    /// Which.
    pub layer: Layer,
    /// Whether it is in force.
    pub is: Is,
    /// What was seen.
    pub detail: String,
    /// Why it is not in force, as the process told when it found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl LayerState {
    /// One line for people.
    pub fn in_words(&self) -> String {
        let is = match self.is {
            Is::On => "on",
            Is::Off => "off",
            Is::Hidden => "hidden",
        };
        let mut line = is.to_owned();
        for more in [Some(&self.detail), self.why.as_ref()]
            .into_iter()
            .flatten()
        {
            if !more.is_empty() {
                line += ": ";
                line += more;
            }
        }
        line
    }
}

/// What is looked at.
struct Process<'a> {
    dir: PathBuf,
    /// What each thread's `status` says.
    threads: Vec<BTreeMap<String, String>>,
    told: Option<&'a Confined>,
}

/// Looks at process `pid`, which `told` this of itself, layer by layer. None if it is gone.
pub fn read(pid: u32, told: Option<&Confined>) -> Option<Vec<LayerState>> {
    let process = Process::new(PathBuf::from(format!("/proc/{pid}")), told)?;
    let layers = Layer::ALL.into_iter().map(|layer| {
        let (is, detail) = process.look(layer);
        let missing = told.iter().flat_map(|told| &told.missing);
        let why = missing
            .filter(|missing| missing.layer == layer && is != Is::On)
            .map(|missing| missing.why.clone())
            .next();
        LayerState {
            layer,
            is,
            detail,
            why,
        }
    });
    Some(layers.collect())
}

/// proc_pid_status(5).
fn fields(status: &str) -> BTreeMap<String, String> {
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().to_owned()))
    };
    status.lines().filter_map(field).collect()
}

impl<'a> Process<'a> {
    fn new(dir: PathBuf, told: Option<&'a Confined>) -> Option<Self> {
        let tasks = fs::read_dir(dir.join("task")).ok()?.flatten();
        let threads: Vec<_> = tasks
            .filter_map(|task| fs::read_to_string(task.path().join("status")).ok())
            .map(|status| fields(&status))
            .collect();
        (!threads.is_empty()).then_some(Self { dir, threads, told })
    }

    fn look(&self, layer: Layer) -> (Is, String) {
        match layer {
            Layer::Uid => self.user(),
            Layer::UserNamespace => self.namespace("user"),
            Layer::MountNamespace => self.mounts(),
            Layer::IpcNamespace => self.namespace("ipc"),
            Layer::UtsNamespace => self.namespace("uts"),
            Layer::NetworkNamespace => self.namespace("net"),
            Layer::CgroupNamespace => self.namespace("cgroup"),
            Layer::Capabilities => self.capabilities(),
            Layer::NoNewPrivs => self.every_thread("NoNewPrivs", "1"),
            Layer::Seccomp => self.seccomp(),
            Layer::Landlock => self.landlock(),
            Layer::ResourceLimits => self.limits(),
            Layer::NotDumpable => self.dumpable(),
            Layer::Descriptors => self.descriptors(),
            Layer::CgroupLimits => self.cgroup(),
        }
    }

    fn values(&self, field: &str) -> impl Iterator<Item = &str> {
        self.threads
            .iter()
            .map(move |thread| thread.get(field).map_or("", String::as_str))
    }

    fn every_thread(&self, field: &str, wanted: &str) -> (Is, String) {
        let well = self.values(field).filter(|value| *value == wanted).count();
        let detail = format!("{well} of {} threads", self.threads.len());
        (on(well == self.threads.len()), detail)
    }

    fn user(&self) -> (Is, String) {
        let uids = self.values("Uid").next().unwrap_or_default();
        let root = uids.split_whitespace().any(|uid| uid == "0");
        let uid = uids.split_whitespace().next().unwrap_or("?");
        (on(!root), format!("user {uid}"))
    }

    fn capabilities(&self) -> (Is, String) {
        let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
        let none = |set: &str| {
            self.values(set)
                .all(|value| !value.is_empty() && value.bytes().all(|digit| digit == b'0'))
        };
        let some: Vec<&str> = sets.into_iter().filter(|set| !none(set)).collect();
        if some.is_empty() {
            (Is::On, "none in any set".to_owned())
        } else {
            (Is::Off, format!("there are some in {}", some.join(", ")))
        }
    }

    fn seccomp(&self) -> (Is, String) {
        let (is, detail) = self.every_thread("Seccomp", "2");
        let counts = self.values("Seccomp_filters");
        let counts: Vec<u32> = counts.filter_map(|count| count.parse().ok()).collect();
        let filters = match (counts.iter().min(), counts.iter().max()) {
            (Some(least), Some(most)) if least == most => format!(", {most} filters each"),
            (Some(least), Some(most)) => format!(", {least} to {most} filters each"),
            _ => String::new(),
        };
        (is, detail + &filters)
    }

    /// A process that can't be traced keeps its links from its own user; what it told then counts.
    fn namespace(&self, kind: &str) -> (Is, String) {
        let link = |dir: &Path| fs::read_link(dir.join("ns").join(kind));
        let ours = link(Path::new("/proc/self"));
        let theirs = link(&self.dir).ok();
        let told = self.told.and_then(|told| told.namespaces.get(kind));
        let (theirs, told) = match (theirs, told) {
            (Some(theirs), _) => (theirs.display().to_string(), ""),
            (None, Some(told)) => (told.clone(), ", as it told"),
            (None, None) => return (Is::Hidden, String::new()),
        };
        match ours {
            Ok(ours) => (
                on(ours.display().to_string() != theirs),
                format!("{theirs}{told}"),
            ),
            Err(_) => (Is::Hidden, theirs),
        }
    }

    fn mounts(&self) -> (Is, String) {
        let (is, name) = self.namespace("mnt");
        let Ok(mounts) = fs::read_to_string(self.dir.join("mountinfo")) else {
            return (is, name);
        };
        let points = |text: &str| -> Vec<String> {
            let point = |line: &str| Some(line.split_whitespace().nth(4)?.to_owned());
            text.lines().filter_map(point).collect()
        };
        let points = points(&mounts);
        let others: Vec<&str> = points
            .iter()
            .map(String::as_str)
            .filter(|point| *point != "/")
            .collect();
        // An empty root.
        let own = Path::new("/proc/self/mountinfo");
        let same = fs::read_to_string(own).is_ok_and(|own| own == mounts);
        let root = mounts
            .lines()
            .any(|line| line.contains(" / / ro") && line.contains("tmpfs"));
        let detail = match others.len() {
            0 => format!("{name}, nothing mounted but an empty root"),
            count => format!(
                "{name}, {count} mounts beside the root: {}",
                others.join(" ")
            ),
        };
        match (is, root && !same) {
            (Is::Off, _) | (_, false) => (Is::Off, detail),
            (is, true) => (is, detail),
        }
    }

    /// The kernel has no way to ask.
    fn landlock(&self) -> (Is, String) {
        match self.told.and_then(|told| told.landlock_abi) {
            Some(abi) => (
                Is::On,
                format!("version {abi}, as it told: the kernel does not"),
            ),
            None => (Is::Off, "none was told of".to_owned()),
        }
    }

    fn limits(&self) -> (Is, String) {
        let text = fs::read_to_string(self.dir.join("limits")).unwrap_or_default();
        let hard = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_whitespace().nth(1)?.to_owned())
        };
        let shown = |name: &str| hard(name).unwrap_or_else(|| "?".to_owned());
        let (core, threads) = (shown("Max core file size"), shown("Max processes"));
        (
            on(core == "0"),
            format!("core files {core}, threads {threads}"),
        )
    }

    fn dumpable(&self) -> (Is, String) {
        let uids = self.values("Uid").next().unwrap_or_default();
        let user: Option<u32> = uids
            .split_whitespace()
            .next()
            .and_then(|uid| uid.parse().ok());
        let owner = fs::metadata(self.dir.join("fd")).map(|files| files.uid());
        match (user, owner) {
            (Some(0) | None, _) | (_, Err(_)) => (Is::Hidden, String::new()),
            (Some(user), Ok(owner)) => {
                let detail = format!("its files in /proc are user {owner}'s");
                (on(user != owner), detail)
            }
        }
    }

    fn descriptors(&self) -> (Is, String) {
        let Ok(listed) = fs::read_dir(self.dir.join("fd")) else {
            let told = "the kernel does not list those of a process that can't be traced";
            return (Is::Hidden, told.to_owned());
        };
        let links: Vec<_> = listed
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .collect();
        (Is::On, format!("{} are open", links.len()))
    }

    fn cgroup(&self) -> (Is, String) {
        let own = self.told.and_then(|told| told.cgroup.as_deref());
        let Some(dir) = own else {
            return (Is::Off, "no cgroup of its own".to_owned());
        };
        let listed = fs::read_to_string(dir.join("cgroup.threads"))
            .or_else(|_| fs::read_to_string(dir.join("cgroup.procs")));
        let pid = self.dir.file_name().unwrap_or_default().to_string_lossy();
        let inside = listed.is_ok_and(|listed| listed.lines().any(|line| line == pid));
        let limits = ["memory.max", "pids.max", "cpu.max", "io.max"]
            .into_iter()
            .filter_map(|file| {
                let value = fs::read_to_string(dir.join(file)).ok()?;
                let value = value.trim();
                (!value.is_empty() && !value.starts_with("max")).then(|| format!("{file} {value}"))
            })
            .collect::<Vec<_>>();
        let detail = format!("{}: {}", dir.display(), limits.join(", "));
        (on(inside && !limits.is_empty()), detail)
    }
}

fn on(is: bool) -> Is {
    if is { Is::On } else { Is::Off }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_not_confined_is_shown_so() {
        let layers = read(std::process::id(), None).unwrap();
        let is = |layer| layers.iter().find(|found| found.layer == layer).unwrap().is;
        assert_eq!(layers.len(), Layer::ALL.len());
        for layer in [
            Layer::UserNamespace,
            Layer::MountNamespace,
            Layer::NetworkNamespace,
            Layer::Landlock,
            Layer::CgroupLimits,
        ] {
            assert_eq!(is(layer), Is::Off, "{layer}");
        }
        assert!(read(u32::MAX, None).is_none());
    }

    #[test]
    fn status_fields_are_read() {
        let fields = fields("Name:\tcasita\nSeccomp:\t2\nUid:\t1\t2\t3\t4\n");
        assert_eq!(fields["Seccomp"], "2");
        assert_eq!(fields["Uid"], "1\t2\t3\t4");
    }
}
