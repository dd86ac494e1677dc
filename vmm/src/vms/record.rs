//! What is known of a VM: what it is, and what has become of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Id;
use crate::config::MachineConfig;
use crate::confine::Confined;
use crate::net::NetworkState;
use crate::time::now;

/// A VM to be recorded.
#[derive(Debug, Clone, Default)]
pub struct NewVm {
    /// Its name; one is made up if there is none.
    pub name: Option<String>,
    /// What it is; all paths absolute.
    pub config: MachineConfig,
    /// The image that it runs.
    pub image: Option<ImageUse>,
    /// Whether the record goes when the VM ends.
    pub rm: bool,
    /// What happens when it ends by itself.
    pub restart: RestartPolicy,
    /// Whether to start it even if this machine's KVM can't run Linux guests.
    pub skip_kvm_check: bool,
}

/// The image of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUse {
    /// As it was asked for.
    pub reference: String,
    /// What that meant then.
    pub digest: String,
}

/// What a VM is. Does not change once it is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its ID.
    pub id: Id,
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// What it is; all paths absolute.
    pub config: MachineConfig,
    /// The image that it runs.
    pub image: Option<ImageUse>,
    /// Whether the record goes when the VM ends.
    pub rm: bool,
    /// What happens when it ends by itself.
    pub restart: RestartPolicy,
    /// Whether to start it even if this machine's KVM can't run Linux guests.
    pub skip_kvm_check: bool,
}

/// What a VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is about to run for the first time.
    #[default]
    Created,
    /// It runs.
    Running,
    /// It was stopped in its tracks and can go on.
    Paused,
    /// It has ended and its owner is about to start it again.
    Restarting,
    /// It has ended.
    Exited,
    /// Its monitor was killed, or the host went down.
    Dead,
}

impl Status {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }

    /// Whether it has come to an end.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Exited | Self::Dead)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What has become of a VM, as its owner last told.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// What it is doing.
    pub status: Status,
    /// Its monitor's process, while it has one.
    pub pid: Option<u32>,
    /// Its exit code, once it has ended.
    pub exit_code: Option<u8>,
    /// Why it could not start or go on, in one line.
    pub error: Option<String>,
    /// When it was last started, in seconds since 1970.
    pub started: Option<u64>,
    /// When it last ended.
    pub finished: Option<u64>,
    /// How often it was started again by its restart policy.
    pub restarts: u32,
    /// Its network, as it was made the last time.
    pub network: Option<Box<NetworkState>>,
    /// The host's boot in which this was written: `pid` means nothing in another.
    pub boot_id: String,
    /// How its monitor is confined, as that told; None if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Confined>,
}

/// What a VM's monitor has to tell of it while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum News {
    /// Its command runs.
    Running,
    /// It was stopped in its tracks.
    Paused,
    /// It goes on.
    Resumed,
}

/// The exit code of a VM whose monitor was killed: as if by SIGKILL.
pub const KILLED: u8 = 128 + 9;

impl State {
    /// Takes notice of `news`.
    pub fn hear(&mut self, news: News) {
        match (news, self.status) {
            (News::Running, Status::Created | Status::Restarting) => {
                self.status = Status::Running;
                self.started = Some(now());
            }
            (News::Paused, Status::Running) => self.status = Status::Paused,
            (News::Resumed, Status::Paused) => self.status = Status::Running,
            _ => {}
        }
    }

    /// What became of a VM that nobody owns and that has not ended: its monitor was killed.
    #[must_use]
    pub fn dead(self) -> Self {
        Self {
            status: Status::Dead,
            pid: None,
            exit_code: Some(KILLED),
            error: Some("its monitor was killed, or the host went down".to_owned()),
            finished: Some(now()),
            ..self
        }
    }
}

/// What happens when a VM ends by itself: neither `stop` nor `kill` asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    /// Nothing.
    #[default]
    No,
    /// It is started again if its exit code is not 0.
    OnFailure {
        /// At most so many times in a row.
        most: Option<u32>,
    },
    /// It is started again.
    Always,
}

impl RestartPolicy {
    /// Whether a VM that ended with `exit_code`, after `restarts` restarts, is started again.
    pub fn says_again(self, exit_code: u8, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure { most } => exit_code != 0 && most.is_none_or(|most| restarts < most),
            Self::Always => true,
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} is not a restart policy: give no, on-failure, on-failure:N or always")
        };
        match text.split_once(':') {
            None if text == "no" => Ok(Self::No),
            None if text == "always" => Ok(Self::Always),
            None if text == "on-failure" => Ok(Self::OnFailure { most: None }),
            Some(("on-failure", most)) => {
                let most = Some(most.parse().map_err(|_| wrong())?);
                Ok(Self::OnFailure { most })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure { most: None } => f.write_str("on-failure"),
            Self::OnFailure { most: Some(most) } => write!(f, "on-failure:{most}"),
            Self::Always => f.write_str("always"),
        }
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_policies_are_read_as_they_are_written() {
        for text in ["no", "always", "on-failure", "on-failure:3"] {
            assert_eq!(text.parse::<RestartPolicy>().unwrap().to_string(), text);
        }
        for bad in ["", "yes", "on-failure:", "on-failure:x", "always:1", "no:0"] {
            assert!(bad.parse::<RestartPolicy>().is_err(), "{bad}");
        }
    }

    #[test]
    fn on_failure_restarts_failures_and_not_for_ever() {
        let twice: RestartPolicy = "on-failure:2".parse().unwrap();
        assert!(twice.says_again(1, 0) && twice.says_again(137, 1));
        assert!(!twice.says_again(1, 2) && !twice.says_again(0, 0));
        assert!(RestartPolicy::Always.says_again(0, 1000));
        assert!(!RestartPolicy::No.says_again(1, 0));
    }
}
