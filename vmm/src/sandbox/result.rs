//! What became of a run.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Bytes;

/// The version of [`SandboxResult`]'s JSON. Fields may be added within a version.
pub const VERSION: u32 = 1;

/// What became of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxResult {
    /// [`VERSION`].
    pub version: u32,
    /// How it ended.
    pub end: End,
    /// What it wrote to its standard output.
    pub stdout: Output,
    /// What it wrote to its standard error.
    pub stderr: Output,
    /// The files that were taken out, in the order in which they were asked for.
    pub files: Vec<TakenFile>,
    /// What was to be taken out and was not.
    pub not_taken: Vec<NotTaken>,
    /// What it used.
    pub usage: Usage,
}

impl SandboxResult {
    /// Whether the command ended by itself with status 0.
    pub fn is_success(&self) -> bool {
        self.end == End::Exited { code: 0 }
    }
}

/// How a run ended. In JSON an object with the field `kind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum End {
    /// The command ended by itself.
    Exited {
        /// With this status.
        code: u8,
    },
    /// A signal ended the command.
    Signaled {
        /// Its number on x86-64.
        signal: u8,
    },
    /// A limit was met, and the VM was ended for it.
    Limit {
        /// Which.
        limit: Limit,
    },
    /// There was no such command, or it could not be executed.
    NotStarted {
        /// As in a shell: 127 if it was not found, 126 if it could not be run.
        code: u8,
        /// One line for people.
        message: String,
    },
    /// The guest ended before the command did: something in it has broken it or has switched it
    /// off.
    Broken {
        /// One line for people.
        message: String,
    },
}

impl End {
    /// The exit status that stands for it, as `casita sandbox` has it: the command's own, 128 and
    /// the signal's number, 124 for a limit, 137 for a guest that was broken.
    pub fn status(&self) -> u8 {
        match self {
            Self::Exited { code } | Self::NotStarted { code, .. } => *code,
            Self::Signaled { signal } => 128 | (signal & 0x7f),
            Self::Limit { .. } => 124,
            Self::Broken { .. } => 137,
        }
    }
}

/// A limit that ends runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// [`Limits::time`](super::Limits::time).
    Time,
    /// [`Limits::cpu_time`](super::Limits::cpu_time).
    CpuTime,
    /// [`Limits::memory`](super::Limits::memory): a process was ended for want of it.
    Memory,
    /// [`Limits::disk`](super::Limits::disk): it was full.
    Disk,
    /// [`Limits::output`](super::Limits::output).
    Output,
    /// [`Limits::processes`](super::Limits::processes): one more could not be made.
    Processes,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Time => "time",
            Self::CpuTime => "CPU time",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Output => "output",
            Self::Processes => "processes",
        })
    }
}

/// What a command wrote to one of its streams.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Output {
    /// As much of it as there may be.
    #[serde(flatten)]
    pub data: Bytes,
    /// Whether there was more.
    pub truncated: bool,
}

/// A file that was taken out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenFile {
    /// Its absolute path in the guest.
    pub path: String,
    /// Its permissions, without set-id bits.
    pub mode: u32,
    /// Its content.
    #[serde(flatten)]
    pub data: Bytes,
}

/// What was not taken out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotTaken {
    /// Its path, or the pattern that was given.
    pub path: String,
    /// Why not: one line for people.
    pub why: String,
}

/// What a run used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// From the command's start to its end.
    pub wall_ms: u64,
    /// CPU time of the VM's processors meanwhile, as the host counts it.
    pub cpu_ms: u64,
    /// What went to the disk, in bytes, as the host counts it.
    pub disk_written_bytes: u64,
    /// Exits from the guest to its monitor, since the VM's start.
    pub exits: u64,
    /// From the monitor's start to the command's.
    pub start_ms: u64,
    /// What the guest's kernel counts, if it came to tell.
    pub guest: Option<GuestUsage>,
    /// The monitor with its VM, from the start to the end.
    pub monitor: MonitorUsage,
}

/// What the guest's kernel counts of the command and all that it has started. A guest that has been
/// taken over may tell anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestUsage {
    /// CPU time in programs.
    pub user_ms: u64,
    /// CPU time in the guest's kernel.
    pub system_ms: u64,
    /// The most memory at a time.
    pub memory_peak_bytes: u64,
    /// The most processes and threads at a time.
    pub processes_peak: u64,
    /// What it has added to the disk and not removed.
    pub disk_bytes: u64,
}

/// What the host's kernel counts of the process that runs the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MonitorUsage {
    /// CPU time in the monitor and in the guest.
    pub user_ms: u64,
    /// CPU time in the host's kernel.
    pub system_ms: u64,
    /// The most memory at a time, with the guest's.
    pub memory_peak_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs rely on these names.
    #[test]
    fn the_json_is_what_it_was() {
        let result = SandboxResult {
            version: VERSION,
            end: End::Limit {
                limit: Limit::CpuTime,
            },
            stdout: Output {
                data: Bytes::from("hi\n"),
                truncated: true,
            },
            stderr: Output::default(),
            files: vec![TakenFile {
                path: "/a".to_owned(),
                mode: 0o644,
                data: Bytes(vec![0xff]),
            }],
            not_taken: vec![NotTaken {
                path: "/b".to_owned(),
                why: "it does not exist".to_owned(),
            }],
            usage: Usage {
                guest: Some(GuestUsage::default()),
                ..Usage::default()
            },
        };
        let json = serde_json::to_value(&result).unwrap();
        let expected = serde_json::json!({
            "version": 1,
            "end": {"kind": "limit", "limit": "cpu-time"},
            "stdout": {"text": "hi\n", "truncated": true},
            "stderr": {"text": "", "truncated": false},
            "files": [{"path": "/a", "mode": 420, "base64": "/w=="}],
            "not_taken": [{"path": "/b", "why": "it does not exist"}],
            "usage": {
                "wall_ms": 0, "cpu_ms": 0, "disk_written_bytes": 0, "exits": 0, "start_ms": 0,
                "guest": {"user_ms": 0, "system_ms": 0, "memory_peak_bytes": 0,
                    "processes_peak": 0, "disk_bytes": 0},
                "monitor": {"user_ms": 0, "system_ms": 0, "memory_peak_bytes": 0},
            },
        });
        assert_eq!(json, expected);
        let read: SandboxResult = serde_json::from_value(json).unwrap();
        assert_eq!(read, result);
    }

    #[test]
    fn each_end_has_a_name_and_a_status() {
        let message = String::new;
        for (end, kind, status) in [
            (End::Exited { code: 3 }, "exited", 3),
            (End::Signaled { signal: 11 }, "signaled", 139),
            (End::Limit { limit: Limit::Disk }, "limit", 124),
            (
                End::NotStarted {
                    code: 127,
                    message: message(),
                },
                "not-started",
                127,
            ),
            (End::Broken { message: message() }, "broken", 137),
        ] {
            assert_eq!(serde_json::to_value(&end).unwrap()["kind"], kind);
            assert_eq!(end.status(), status);
        }
    }
}
