//! This process confines itself before the guest's first instruction: what it needs is open by
//! then, and nothing else can be had, should a guest ever take it over.
//!
//! ```text
//! enter()          once, by the only thread that there is, after the machine is assembled
//!   namespaces     user, mount (an empty root), IPC, UTS, network and cgroup namespaces of its own
//!   privileges     another user if it is root; no capabilities, and none to be had again
//!   landlock       no path, no TCP port, no abstract socket and no process of others
//!   limits         no core files, guest memory in none, no more threads than a VM needs
//!   seccomp        the system calls of `syscalls`, all roles together
//! enter_role()     each thread, before it does anything: those of its role alone
//! ```
//!
//! There is no namespace of processes: one is entered by a fork, and the process that is asked for
//! a VM is the one that runs it. What it would keep out is kept out three times: system calls that
//! name another process are not in the filters, Landlock ends signals at the process itself, and
//! there is no /proc.
//!
//! What the host can't give is told in [`Confined::missing`]; nothing is taken for done because it
//! was meant to be.

mod cgroup;
mod landlock;
mod limits;
mod mode;
mod namespaces;
mod privileges;
mod seccomp;
pub mod state;
mod syscalls;
mod trial;
mod violation;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use thiserror::Error;

// In a build that is there for attacks on the other layers.
#[cfg(feature = "takeover")]
use crate::takeover::is_without as is_left_out;

pub use cgroup::{Cgroup, CgroupLimits};
pub use limits::{Most, THREADS, close_all_but, inherited_descriptors};
pub use mode::Sandbox;
pub use namespaces::Room;
pub use privileges::Ids;
pub use seccomp::enter_role;
pub use syscalls::{Role, describe};
pub use trial::trial;
pub use violation::{Told, Violation};

/// What stands between a taken-over monitor and its host, each on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the kernel's names")]
pub enum Layer {
    /// Another user than root, of this VM alone.
    Uid,
    UserNamespace,
    /// With an empty root.
    MountNamespace,
    IpcNamespace,
    UtsNamespace,
    NetworkNamespace,
    CgroupNamespace,
    /// None, in any set.
    Capabilities,
    NoNewPrivs,
    Landlock,
    Seccomp,
    /// Core files, threads.
    ResourceLimits,
    /// Not to be traced, nor read by others of its user.
    NotDumpable,
    /// Nothing that was inherited without a purpose.
    Descriptors,
    /// Memory, CPU, threads and I/O, as its cgroup counts them.
    CgroupLimits,
}

impl Layer {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Uid,
        Self::UserNamespace,
        Self::MountNamespace,
        Self::IpcNamespace,
        Self::UtsNamespace,
        Self::NetworkNamespace,
        Self::CgroupNamespace,
        Self::Capabilities,
        Self::NoNewPrivs,
        Self::Landlock,
        Self::Seccomp,
        Self::ResourceLimits,
        Self::NotDumpable,
        Self::Descriptors,
        Self::CgroupLimits,
    ];

    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uid => "uid",
            Self::UserNamespace => "user-namespace",
            Self::MountNamespace => "mount-namespace",
            Self::IpcNamespace => "ipc-namespace",
            Self::UtsNamespace => "uts-namespace",
            Self::NetworkNamespace => "network-namespace",
            Self::CgroupNamespace => "cgroup-namespace",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivs => "no-new-privs",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::ResourceLimits => "resource-limits",
            Self::NotDumpable => "not-dumpable",
            Self::Descriptors => "descriptors",
            Self::CgroupLimits => "cgroup-limits",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why this process is not confined as it was to be.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// A layer that `--sandbox=strict` insists on.
    #[error(
        "the sandbox has no {} on this host: {why}; --sandbox=default does without",
        layer.name()
    )]
    Missing {
        /// Which.
        layer: Layer,
        /// Why.
        why: String,
    },
    /// Half a layer is worse than none: it can't go on.
    #[error("the sandbox could not {doing}")]
    Host {
        /// What failed.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ConfineError {
    fn host<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            doing,
            source: source.into(),
        }
    }
}

/// A layer that is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Which.
    pub layer: Layer,
    /// Why, in one line.
    pub why: String,
}

/// How this process is to be confined.
#[derive(Debug, Default)]
pub struct Confinement {
    /// Whether a missing layer is an error.
    pub strict: bool,
    /// Whom to become, if this is root.
    pub ids: Option<Ids>,
    /// What this process may use at most.
    pub most: Most,
    /// What is missing already: layers that somebody else was to give.
    pub missing: Vec<Missing>,
    /// The cgroup that was made for this VM.
    pub cgroup: Option<PathBuf>,
    /// The process of a [`Room`], whose namespaces are entered; without it some are made.
    pub room: Option<OwnedFd>,
    /// Descriptors that this process was started with and has no use for.
    pub inherited: Vec<RawFd>,
    /// Who is told of a system call that is not allowed.
    pub told: Option<Told>,
}

/// How this process is confined, as it was told once it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Confined {
    /// Layers that the host does not give.
    pub missing: Vec<Missing>,
    /// The process's namespaces, as its links in /proc named them: what the kernel hides of a
    /// process that can't be traced.
    pub namespaces: BTreeMap<String, String>,
    /// Of Landlock's interface, the version that was used.
    pub landlock_abi: Option<i32>,
    /// The cgroup that was made for this VM.
    pub cgroup: Option<PathBuf>,
}

/// All are wanted.
#[cfg(not(feature = "takeover"))]
fn is_left_out(_: Layer) -> bool {
    false
}

/// Collects what the host can't give.
pub(crate) struct Progress {
    strict: bool,
    missing: Vec<Missing>,
}

impl Progress {
    /// Whether a layer is wanted.
    fn wants(&mut self, layer: Layer) -> bool {
        let left_out = is_left_out(layer);
        if left_out {
            self.missing.push(Missing {
                layer,
                why: "a test left it out".to_owned(),
            });
        }
        !left_out
    }

    /// Goes on without a layer, if that is allowed.
    fn without(&mut self, layer: Layer, why: impl Into<String>) -> Result<(), ConfineError> {
        let why = why.into();
        if self.strict {
            return Err(ConfineError::Missing { layer, why });
        }
        log::info!("the sandbox has no {layer} on this host: {why}");
        self.missing.push(Missing { layer, why });
        Ok(())
    }
}

/// Confines this process. It must have one thread; those that it starts are confined with it.
///
/// # Errors
/// If it is strict and a layer is missing, or if a layer failed half-way.
pub fn enter(mut how: Confinement) -> Result<Confined, ConfineError> {
    let mut progress = Progress {
        strict: how.strict,
        missing: Vec::new(),
    };
    for missing in std::mem::take(&mut how.missing) {
        progress.without(missing.layer, missing.why)?;
    }
    limits::close(&how.inherited);
    let proc = open_proc();
    wait_until_alone(proc.as_ref());
    let namespaces = namespaces::enter(&how, proc.as_ref(), &mut progress)?;
    privileges::drop_all(&mut progress)?;
    limits::set(how.most, &mut progress)?;
    let landlock_abi = landlock::restrict(&mut progress)?;
    privileges::hide(&mut progress)?;
    let namespaces = match &proc {
        Some(proc) if namespaces => names_of_namespaces(proc),
        _ => BTreeMap::new(),
    };
    // It leads to all of the host's processes.
    drop(proc);
    drop(how.room.take());
    if let Some(told) = how.told {
        violation::tell(told).map_err(ConfineError::host("handle violations"))?;
    }
    CONFINED.store(true, Ordering::Release);
    seccomp::install(&mut progress)?;
    Ok(Confined {
        missing: progress.missing,
        namespaces,
        landlock_abi,
        cgroup: how.cgroup,
    })
}

static CONFINED: AtomicBool = AtomicBool::new(false);

/// Whether this process has confined itself.
pub fn is_confined() -> bool {
    CONFINED.load(Ordering::Acquire)
}

fn open_proc() -> Option<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open("/proc/self", flags, Mode::empty()).ok()
}

/// A thread that has been joined is still there for a moment, and the kernel would take it for one
/// that goes on.
fn wait_until_alone(proc: Option<&OwnedFd>) {
    /// `.`, `..` and this thread.
    const ALONE: u64 = 3;
    const TRIES: u32 = 1000;
    let Some(proc) = proc else { return };
    for _ in 0..TRIES {
        let found = rustix::fs::statat(proc.as_fd(), "task", rustix::fs::AtFlags::empty());
        if found.is_ok_and(|found| found.st_nlink <= ALONE) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    log::debug!("there are more threads than one");
}

/// The links of `/proc/self/ns`.
fn names_of_namespaces(proc: &OwnedFd) -> BTreeMap<String, String> {
    let name = |kind: &str| {
        let link = rustix::fs::readlinkat(proc.as_fd(), format!("ns/{kind}"), Vec::new()).ok()?;
        Some((kind.to_owned(), link.into_string().ok()?))
    };
    ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]
        .into_iter()
        .filter_map(name)
        .collect()
}
