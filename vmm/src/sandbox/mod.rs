//! Untrusted code behind a VM of its own: an image, files to put in, a command and limits go in;
//! how it ended, what it wrote, what it used and files to take out come back.
//!
//! ```no_run
//! use std::time::Duration;
//! use casita::sandbox::{End, ImageSource, Limits, PutFile, Sandbox, SandboxRequest};
//!
//! let request = SandboxRequest {
//!     image: ImageSource::Reference("python:3-slim".to_owned()),
//!     put: vec![PutFile::new("/work/a.py", "open('/work/out', 'w').write('hi')\n")],
//!     command: vec!["python3".to_owned(), "/work/a.py".to_owned()],
//!     take: vec!["/work/out".to_owned()],
//!     limits: Limits {
//!         time: Duration::from_secs(5),
//!         memory: 128 << 20,
//!         ..Limits::default()
//!     },
//!     ..SandboxRequest::default()
//! };
//! let result = Sandbox::new()?.run(&request)?;
//! match result.end {
//!     End::Exited { code } => println!("status {code}: {}", result.stdout.data.to_text()),
//!     End::Limit { limit } => println!("it met its limit of {limit}"),
//!     other => println!("{other:?}"),
//! }
//! for file in &result.files {
//!     println!("{} has {} bytes", file.path, file.data.0.len());
//! }
//! # Ok::<(), casita::sandbox::SandboxError>(())
//! ```
//!
//! # How it works
//!
//! A monitor changes its process for good as it confines itself, so a library can't be one inside
//! its caller. [`Sandbox::run`] starts the program `casita` for each run, and that process is the
//! VM's monitor. The caller opens the files that are put in, writes those that are taken out, and
//! speaks with the monitor through one socket; the monitor needs no more of the host than the
//! image. When the caller ends, so does the monitor; when the monitor ends, nothing is left of the
//! run: the disk never had a name, and there is no record.
//!
//! Programs in other languages use `casita sandbox --request - --format json`: one
//! [`SandboxRequest`] in JSON at standard input, one [`SandboxResult`] in JSON at standard output.
//!
//! # What a limit is worth
//!
//! | limit | who enforces it |
//! |---|---|
//! | time, CPU time | the monitor, by the host's clocks |
//! | output | the monitor: what is beyond is not read |
//! | disk | the monitor: the disk has no more blocks |
//! | memory | the guest's kernel, for the command; the monitor, a little above that, for the VM |
//! | processes | the guest's kernel |
//!
//! A command that is root in its guest can undo what the guest's kernel enforces, and then has the
//! whole VM, which is as large as the limits made it. Give it a `user` to keep it from that. What a
//! guest says of itself is in [`Usage::guest`]; the rest of a result is the host's own account.
//!
//! A run reaches nothing beyond its VM, unless [`SandboxRequest::egress`] says otherwise.

mod bytes;
mod caller;
mod channel;
mod conductor;
mod error;
mod inputs;
mod limits;
mod request;
mod result;
mod rusage;
mod save;
mod taken;
mod vm;
mod watch;

use std::env;
use std::path::{Path, PathBuf};

pub use crate::images::PullPolicy;
pub use bytes::Bytes;
pub use casita_net::EgressPolicy;
pub use error::SandboxError;
pub use limits::{LimitError, Limits};
pub use request::{Content, ImageSource, MAX_REQUEST, PutFile, RequestError, SandboxRequest};
pub use result::{
    End, GuestUsage, Limit, MonitorUsage, NotTaken, Output, SandboxResult, TakenFile, Usage,
    VERSION,
};
pub use vm::vm_process;

use caller::Way;

/// The verb of the process that runs a VM.
pub(crate) const VERB: &str = "sandbox-vm";
/// Names the program, where it is not beside this one.
const PROGRAM: &str = "CASITA_BIN";

/// A stream of a command's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

/// Runs requests, each in a VM of its own. It has no state: as many threads as like may use one.
#[derive(Debug, Clone)]
pub struct Sandbox {
    way: Way,
}

impl Sandbox {
    /// With the `casita` that `$CASITA_BIN` names, that is in this program's folder or the one
    /// above it, or in `$PATH`, in this order.
    ///
    /// # Errors
    /// If there is none.
    pub fn new() -> Result<Self, SandboxError> {
        let named = env::var_os(PROGRAM).filter(|path| !path.is_empty());
        let named = named.map(PathBuf::from);
        let own = env::current_exe().ok();
        let beside = own.iter().flat_map(|own| own.ancestors().skip(1).take(2));
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = beside.map(Path::to_owned).chain(env::split_paths(&path));
        let found = named.or_else(|| {
            let mut programs = folders.map(|folder| folder.join("casita"));
            programs.find(|program| program.is_file())
        });
        found.map(Self::with_program).ok_or(SandboxError::NoProgram)
    }

    /// With the `casita` at `program`.
    pub fn with_program(program: impl Into<PathBuf>) -> Self {
        Self {
            way: Way {
                program: program.into(),
                shares_stderr: false,
                check_kvm: true,
            },
        }
    }

    /// Lets warnings of the monitors go to this process's standard error. Without, they are part
    /// of errors.
    #[must_use]
    pub fn sharing_stderr(mut self) -> Self {
        self.way.shares_stderr = true;
        self
    }

    /// Tries to run even where this machine's KVM is known not to run Linux.
    #[must_use]
    pub fn without_kvm_check(mut self) -> Self {
        self.way.check_kvm = false;
        self
    }

    /// Runs `request` to its end.
    ///
    /// # Errors
    /// If there was no run, or its end is not known: never because of what the command did.
    pub fn run(&self, request: &SandboxRequest) -> Result<SandboxResult, SandboxError> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut result = self.run_with(request, &mut |stream, bytes| match stream {
            Stream::Stdout => stdout.extend_from_slice(bytes),
            Stream::Stderr => stderr.extend_from_slice(bytes),
        })?;
        result.stdout.data = Bytes(stdout);
        result.stderr.data = Bytes(stderr);
        Ok(result)
    }

    /// Runs `request` to its end. Its output goes to `sink` as it comes, and is not in the result.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with(
        &self,
        request: &SandboxRequest,
        sink: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<SandboxResult, SandboxError> {
        caller::run(&self.way, request, sink)
    }
}
