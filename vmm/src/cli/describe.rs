//! A VM as `ps` and `inspect` show it.

use serde::Serialize;
use serde_json::Value;

use crate::config::{BootMode, DEFAULT_CPUS, DEFAULT_MEMORY, MachineConfig};
use crate::control::Client;
use crate::net::NetworkState;
use crate::time::{now, rfc3339, rough};
use crate::vms::{Record, State, Status, Vm};
use crate::volume::VolumeSource;

/// What `ps --format json` tells of a VM.
#[derive(Debug, Serialize)]
pub struct Line {
    pub id: String,
    pub name: String,
    pub image: String,
    pub command: Vec<String>,
    pub created: String,
    pub state: Status,
    pub status: String,
    pub pid: Option<u32>,
    pub exit_code: Option<u8>,
    /// As Docker shows them: `0.0.0.0:8080->80/tcp`. While it runs.
    pub ports: Vec<String>,
}

impl Line {
    pub fn of(record: &Record, state: &State) -> Self {
        Self {
            id: record.id.to_string(),
            name: record.name.clone(),
            image: image(record),
            command: record.config.command.clone(),
            created: rfc3339(record.created),
            state: state.status,
            status: status(state, now()),
            pid: state.pid,
            exit_code: state.exit_code,
            ports: ports(state),
        }
    }
}

fn ports(state: &State) -> Vec<String> {
    let network = state.network.as_ref().filter(|_| !state.status.has_ended());
    let ports = network.map_or(&[][..], |network| &network.ports);
    ports.iter().map(ToString::to_string).collect()
}

/// What `inspect` tells.
#[derive(Debug, Serialize)]
pub struct Description {
    pub id: String,
    pub name: String,
    pub state: Status,
    pub pid: Option<u32>,
    pub exit_code: Option<u8>,
    pub error: Option<String>,
    pub image: String,
    pub image_digest: Option<String>,
    pub created: String,
    pub started: Option<String>,
    pub finished: Option<String>,
    pub command: Vec<String>,
    pub limits: Limits,
    /// Its network as it was made the last time that it was started.
    pub network: Option<NetworkDescription>,
    pub mounts: Vec<MountDescription>,
    pub disk: Option<DiskDescription>,
    pub restart: String,
    pub restarts: u32,
    pub rm: bool,
    pub kernel: Option<String>,
    /// All of the machine's description, with the options' names.
    pub config: Value,
    pub dir: String,
}

#[derive(Debug, Serialize)]
pub struct NetworkDescription {
    #[serde(flatten)]
    pub made: NetworkState,
    /// The state of its link, while it runs and tells.
    pub link: Option<LinkDescription>,
}

#[derive(Debug, Serialize)]
pub struct LinkDescription {
    pub up: bool,
    /// Why it is down for good, if it is.
    pub closed: Option<String>,
}

/// What the monitor says of the link; nothing if it does not answer.
fn link(vm: &Vm) -> Option<LinkDescription> {
    let stats = vm.control().and_then(Client::stats).ok()?;
    let net = stats.net.into_iter().next()?;
    Some(LinkDescription {
        up: net.link_up,
        closed: net.closed,
    })
}

#[derive(Debug, Serialize)]
pub struct Limits {
    pub memory: u64,
    pub cpus: u8,
}

#[derive(Debug, Serialize)]
pub struct DiskDescription {
    pub path: String,
    /// What the guest sees.
    pub size: u64,
    /// What it takes on the host.
    pub used: u64,
}

impl Description {
    pub fn of(vm: &Vm, state: State) -> Result<Self, serde_json::Error> {
        let record = vm.record();
        let config = &record.config;
        Ok(Self {
            id: record.id.to_string(),
            name: record.name.clone(),
            state: state.status,
            pid: state.pid,
            exit_code: state.exit_code,
            error: state.error,
            image: image(record),
            image_digest: record.image.as_ref().map(|image| image.digest.clone()),
            created: rfc3339(record.created),
            started: state.started.map(rfc3339),
            finished: state.finished.map(rfc3339),
            command: config.command.clone(),
            limits: Limits {
                memory: config.memory.unwrap_or(DEFAULT_MEMORY).bytes(),
                cpus: config.cpus.unwrap_or(DEFAULT_CPUS),
            },
            network: state.network.clone().map(|made| *made).map(|made| {
                let link = (!state.status.has_ended()).then(|| link(vm)).flatten();
                NetworkDescription { made, link }
            }),
            mounts: mounts(config),
            disk: disk(vm),
            restart: record.restart.to_string(),
            restarts: state.restarts,
            rm: record.rm,
            kernel: config
                .kernel
                .as_ref()
                .map(|path| path.display().to_string()),
            config: serde_json::to_value(config)?,
            dir: vm.dir().display().to_string(),
        })
    }
}

/// What the guest mounts beside its root.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct MountDescription {
    /// `volume`, `directory` or `tmpfs`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The volume's name, or the host's directory.
    pub source: Option<String>,
    pub target: String,
    pub read_only: bool,
}

fn mounts(config: &MachineConfig) -> Vec<MountDescription> {
    let volumes = config.volumes.iter().map(|volume| {
        let (kind, source) = match &volume.source {
            VolumeSource::Named { name, .. } => ("volume", name.clone()),
            VolumeSource::Directory(path) => ("directory", path.display().to_string()),
        };
        MountDescription {
            kind,
            source: Some(source),
            target: volume.target.clone(),
            read_only: volume.read_only,
        }
    });
    let tmpfs = config.tmpfs.iter().map(|tmpfs| MountDescription {
        kind: "tmpfs",
        source: None,
        target: tmpfs.target.clone(),
        read_only: false,
    });
    volumes.chain(tmpfs).collect()
}

fn disk(vm: &Vm) -> Option<DiskDescription> {
    use std::os::unix::fs::MetadataExt;
    let path = vm.disk_path();
    let meta = path.metadata().ok()?;
    Some(DiskDescription {
        path: path.display().to_string(),
        size: meta.len(),
        used: meta.blocks() * 512,
    })
}

/// What a VM's root is made of, for people.
pub fn image(record: &Record) -> String {
    let config = &record.config;
    let path = config.rootfs.as_ref().or(config.initrd.as_ref());
    match (&record.image, &config.image, path) {
        (Some(image), _, _) => image.reference.clone(),
        (None, Some(image), _) => image.clone(),
        (None, None, Some(path)) => path.display().to_string(),
        (None, None, None) => "built-in".to_owned(),
    }
}

/// The command line, for people.
pub fn command(record: &Record) -> String {
    let words = &record.config.command;
    match (&words[..], record.config.boot) {
        ([], Some(BootMode::Plain)) => "init".to_owned(),
        ([], _) => "sh".to_owned(),
        (words, _) => words.join(" "),
    }
}

/// What a VM is doing, and since when, for people.
pub fn status(state: &State, now: u64) -> String {
    let since = |time: Option<u64>| rough(now.saturating_sub(time.unwrap_or(now)));
    let code = state.exit_code.unwrap_or_default();
    match state.status {
        Status::Created => "Created".to_owned(),
        Status::Running => format!("Up {}", since(state.started)),
        Status::Paused => format!("Up {} (Paused)", since(state.started)),
        Status::Restarting => format!("Restarting ({code}) {} ago", since(state.finished)),
        Status::Exited => format!("Exited ({code}) {} ago", since(state.finished)),
        Status::Dead => format!("Dead ({code}) {} ago", since(state.finished)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_say_what_is_where() {
        let config = MachineConfig {
            volumes: vec!["db:/d:ro".parse().unwrap(), "/x:/y".parse().unwrap()],
            tmpfs: vec!["/t:size=1M".parse().unwrap()],
            ..MachineConfig::default()
        };
        let told: Vec<_> = mounts(&config)
            .into_iter()
            .map(|mount| (mount.kind, mount.source, mount.target, mount.read_only))
            .collect();
        let own = |text: &str| text.to_owned();
        assert_eq!(
            told,
            [
                ("volume", Some(own("db")), own("/d"), true),
                ("directory", Some(own("/x")), own("/y"), false),
                ("tmpfs", None, own("/t"), false),
            ]
        );
    }

    #[test]
    fn a_status_says_what_and_since_when() {
        let state = |status| State {
            status,
            exit_code: Some(3),
            started: Some(100),
            finished: Some(160),
            ..State::default()
        };
        let text = |of| status(&state(of), 220);
        assert_eq!(text(Status::Running), "Up 2 minutes");
        assert_eq!(text(Status::Paused), "Up 2 minutes (Paused)");
        assert_eq!(text(Status::Exited), "Exited (3) 1 minute ago");
        assert_eq!(text(Status::Dead), "Dead (3) 1 minute ago");
        assert_eq!(text(Status::Created), "Created");
    }
}
