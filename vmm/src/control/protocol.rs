//! What is said over a VM's control socket: one request for each connection and its reply, as JSON
//! in frames. [`super::frame`] has the frames.
//!
//! An `exec` connection stays for its process: after `started` the client may send `signal` and
//! `resize`, which mean that process, and `exited` is the last reply.

use casita_agent::spec::WindowSize;
use casita_agent::wire::{Exit, Limit, ProcessInfo, Program};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use crate::link::Streams;
pub use crate::vm_stats::VmStats;

/// The longest frame, in bytes without its length.
pub const MAX_FRAME: usize = 1 << 20;

/// What a client asks of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Start a process. Replies: `Started` with the streams' descriptors, then `Exited`.
    Exec {
        /// What to start.
        process: ProcessRequest,
        /// Which streams the client wants; they come in the order of their numbers.
        streams: Streams,
    },
    /// Send a signal to the VM's main process; on an `exec` connection, to that process. SIGKILL
    /// for the main process ends the VM, and is replied to when that has happened.
    Signal {
        /// Its number, 1 to 64.
        signal: u8,
    },
    /// Change the size of the terminal. On `exec` connections only.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        cols: u16,
    },
    /// Ask the main process to end, wait, then end the VM. Replied to when that has happened.
    Stop {
        /// How long to wait.
        timeout_ms: u64,
    },
    /// Stop the vCPUs.
    Pause,
    /// Let them go on.
    Resume,
    /// What the VM has used.
    Stats,
    /// The guest's processes.
    Processes,
}

/// A process to start, as a user asks for it. What is not said is as for the VM's main process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessRequest {
    /// What is to run.
    pub program: ProgramRequest,
    /// Variables, as `NAME=value`; they go over the main process's.
    pub env: Vec<String>,
    /// The working directory.
    pub workdir: Option<String>,
    /// `USER[:GROUP]`.
    pub user: Option<String>,
    /// The size of its terminal; without one it has pipes.
    pub terminal: Option<WindowSize>,
    /// Resource limits; without any, the main process's.
    pub limits: Vec<Limit>,
}

/// What is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProgramRequest {
    /// A command and its arguments; empty for a shell.
    Command(Vec<String>),
    /// Write this file or directory to standard output, as a tar archive.
    CopyOut(String),
    /// Unpack the tar archive at standard input below this directory.
    CopyIn(String),
}

impl Default for ProgramRequest {
    fn default() -> Self {
        Self::Command(Vec::new())
    }
}

impl From<ProgramRequest> for Program {
    fn from(request: ProgramRequest) -> Self {
        match request {
            ProgramRequest::Command(words) => {
                Self::Command(words.into_iter().map(String::into_bytes).collect())
            }
            ProgramRequest::CopyOut(path) => Self::CopyOut(path.into_bytes()),
            ProgramRequest::CopyIn(path) => Self::CopyIn(path.into_bytes()),
        }
    }
}

/// What a VM answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// It is done.
    Done,
    /// The process runs. The streams that were asked for come with this.
    Started {
        /// Its number in the guest.
        pid: u32,
    },
    /// The process has ended; the streams' ends follow what they still hold.
    Exited {
        /// How.
        exit: Exit,
    },
    /// The process could not be started.
    Failed {
        /// 126 or 127 as in a shell, 125 if it is the VM's fault.
        status: u8,
        /// One line for people.
        message: String,
    },
    /// What the VM has used.
    Stats(VmStats),
    /// The guest's processes.
    Processes {
        /// In no order.
        processes: Vec<ProcessInfo>,
    },
    /// It could not be done.
    Error {
        /// One line for people.
        message: String,
    },
}

/// Why a request is refused before anybody looks at the VM.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    /// Not one of ours.
    #[error("not a request that this VM's casita knows, which may be of another version: {0}")]
    Unknown(String),
    /// A signal that Linux does not have.
    #[error("signal {0} does not exist: give 1 to 64")]
    Signal(u8),
    /// A string that goes to the guest's kernel as a C string has a NUL inside.
    #[error("{0} has a NUL byte inside; leave it out")]
    Nul(&'static str),
    /// An environment variable is not `NAME=value`.
    #[error("environment variable {0:?} is not NAME=value")]
    Variable(String),
    /// A path in the guest is not absolute.
    #[error("{0} {1:?} is not an absolute path")]
    Relative(&'static str, String),
}

/// Decodes and checks a request.
///
/// # Errors
/// If `bytes` are not what a client of this version sends.
pub fn decode_request(bytes: &[u8]) -> Result<Request, RequestError> {
    let request: Request =
        serde_json::from_slice(bytes).map_err(|error| RequestError::Unknown(error.to_string()))?;
    match &request {
        Request::Signal { signal } if !(1..=64).contains(signal) => {
            return Err(RequestError::Signal(*signal));
        }
        Request::Exec { process, .. } => process.check()?,
        _ => {}
    }
    Ok(request)
}

impl ProcessRequest {
    /// Refuses what no guest could follow.
    ///
    /// # Errors
    /// If a string has a NUL inside, a path is relative, or a variable is not `NAME=value`.
    pub fn check(&self) -> Result<(), RequestError> {
        let no_nul = |what, text: &str| {
            if text.contains('\0') {
                return Err(RequestError::Nul(what));
            }
            Ok(())
        };
        let absolute = |what, text: &str| {
            no_nul(what, text)?;
            if text.starts_with('/') {
                return Ok(());
            }
            Err(RequestError::Relative(what, text.to_owned()))
        };
        match &self.program {
            ProgramRequest::Command(words) => {
                for word in words {
                    no_nul("an argument", word)?;
                }
            }
            ProgramRequest::CopyIn(path) | ProgramRequest::CopyOut(path) => {
                absolute("path", path)?;
            }
        }
        for variable in &self.env {
            no_nul("an environment variable", variable)?;
            if matches!(variable.find('='), None | Some(0)) {
                return Err(RequestError::Variable(variable.clone()));
            }
        }
        if let Some(workdir) = &self.workdir {
            absolute("working directory", workdir)?;
        }
        no_nul("the user", self.user.as_deref().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_names_that_clients_write() {
        let cases: [(&str, Request); 4] = [
            (r#"{"request":"pause"}"#, Request::Pause),
            (
                r#"{"request":"signal","signal":15}"#,
                Request::Signal { signal: 15 },
            ),
            (
                r#"{"request":"stop","timeout_ms":5000}"#,
                Request::Stop { timeout_ms: 5000 },
            ),
            (
                r#"{"request":"exec","process":{"program":{"command":["ls"]}},"streams":{"stdin":false,"stdout":true,"stderr":true}}"#,
                Request::Exec {
                    process: ProcessRequest {
                        program: ProgramRequest::Command(vec!["ls".to_owned()]),
                        ..ProcessRequest::default()
                    },
                    streams: Streams {
                        stdin: false,
                        stdout: true,
                        stderr: true,
                    },
                },
            ),
        ];
        for (text, request) in cases {
            assert_eq!(decode_request(text.as_bytes()), Ok(request.clone()));
            let written = serde_json::to_vec(&request).unwrap();
            assert_eq!(decode_request(&written), Ok(request));
        }
    }

    #[test]
    fn what_a_guest_could_not_follow_is_refused() {
        let exec = |process: &str| {
            let text = format!(
                r#"{{"request":"exec","process":{process},"streams":{{"stdin":false,"stdout":false,"stderr":false}}}}"#
            );
            decode_request(text.as_bytes()).unwrap_err().to_string()
        };
        for (process, told) in [
            (r#"{"program":{"command":["a\u0000b"]}}"#, "NUL"),
            (r#"{"program":{"copy-out":"etc"}}"#, "not an absolute path"),
            (r#"{"env":["=x"]}"#, "NAME=value"),
            (r#"{"env":["x"]}"#, "NAME=value"),
            (r#"{"workdir":"here"}"#, "not an absolute path"),
            (r#"{"user":"\u0000"}"#, "NUL"),
        ] {
            let error = exec(process);
            assert!(error.contains(told), "{process}: {error}");
        }
        for signal in [0, 65, 255] {
            let text = format!(r#"{{"request":"signal","signal":{signal}}}"#);
            assert_eq!(
                decode_request(text.as_bytes()),
                Err(RequestError::Signal(signal))
            );
        }
        for garbage in ["", "{", "null", "[]", r#"{"request":"fly"}"#, "\u{1f600}"] {
            assert!(decode_request(garbage.as_bytes()).is_err(), "{garbage}");
        }
        let deep = "[".repeat(100_000);
        assert!(decode_request(deep.as_bytes()).is_err());
    }
}
