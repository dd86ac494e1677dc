//! What a machine is to be: one description, filled from the command line and from a machine file.

use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use casita_devices::token_bucket::Rate;
use casita_devices::virtio::net::MacAddress;
use casita_net::EgressPolicy;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::confine::Sandbox;
use crate::dirs::Dirs;
use crate::disk::{self, DiskSpec};
use crate::net::spec::{IpSpec, Mtu, NetSpec, PortSpec};
use crate::process_config::{Period, Signal, Ulimit};
use crate::rootfs::RootfsMode;
use crate::volume::{TmpfsSpec, VolumeSource, VolumeSpec};

/// Guest memory when nothing else is said.
pub const DEFAULT_MEMORY: MemorySize = MemorySize(256 << 20);
/// vCPUs when nothing else is said.
pub const DEFAULT_CPUS: u8 = 1;
/// The most vCPUs of one guest.
pub const MAX_CPUS: u8 = casita_boot::layout::MAX_VCPUS;

/// An amount of guest memory, in bytes: at least 16 MiB, whole MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct MemorySize(u64);

impl MemorySize {
    const MIB: u64 = 1 << 20;

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    fn new(bytes: u64) -> Result<Self, String> {
        let least = casita_boot::layout::MIN_MEMORY;
        if bytes < least {
            return Err(format!(
                "{bytes} bytes are too little memory for a guest: give at least {}M",
                least / Self::MIB
            ));
        }
        if !bytes.is_multiple_of(Self::MIB) {
            return Err(format!(
                "{bytes} bytes are not whole MiB: write for example 256M or 1G"
            ));
        }
        Ok(Self(bytes))
    }
}

impl FromStr for MemorySize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        disk::parse_size(text)
            .map_err(|error| error.to_string())
            .and_then(Self::new)
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}M", self.0 / Self::MIB)
    }
}

/// How a guest is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BootMode {
    /// Casita's agent is PID 1: it makes one writable root of image and disk and runs a command.
    #[default]
    Agent,
    /// The image's own init, the console on the serial port, nothing of casita's in the guest.
    Plain,
}

/// A machine. Fields are named as the options of `casita run`; what is `None` takes its default.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own"
)]
pub struct MachineConfig {
    /// Guest kernel: an ELF vmlinux or a bzImage.
    pub kernel: Option<PathBuf>,
    /// Root image (EROFS, squashfs, ext4, ISO 9660) or a directory.
    pub rootfs: Option<PathBuf>,
    /// Whether the root image is memory or a disk.
    pub rootfs_mode: Option<RootfsMode>,
    /// Initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// More parameters for the guest kernel.
    pub cmdline: Option<String>,
    /// Writable disk.
    #[serde(
        deserialize_with = "from_text",
        serialize_with = "as_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub disk: Option<DiskSpec>,
    /// Guest memory.
    #[serde(
        deserialize_with = "from_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub memory: Option<MemorySize>,
    /// Whether the host may look for pages that are equal to other machines' (KSM).
    pub mergeable: bool,
    /// Whether memory that the guest does not use goes back to the host (virtio-balloon with free
    /// page reporting); it does if nothing is said.
    pub balloon: Option<bool>,
    /// Number of vCPUs.
    #[serde(
        deserialize_with = "checked_cpus",
        skip_serializing_if = "Option::is_none"
    )]
    pub cpus: Option<u8>,
    /// How to start.
    pub boot: Option<BootMode>,
    /// The VM's name: its hostname, and the name under which its disk is kept.
    pub name: Option<String>,
    /// Unix socket through which host and guest open streams to each other's vsock ports.
    pub vsock: Option<PathBuf>,
    /// Volumes and directories of the host's that the guest mounts.
    pub volumes: Vec<VolumeSpec>,
    /// File systems in memory that the guest mounts.
    pub tmpfs: Vec<TmpfsSpec>,
    /// The image that the root file system comes from.
    pub image: Option<String>,
    /// A program that goes before the command, in place of the image's; empty for none.
    pub entrypoint: Option<String>,
    /// Command and arguments; none for the image's, or a shell.
    pub command: Vec<String>,
    /// Variables, as `NAME=value`, or `NAME` for casita's own value.
    pub env: Vec<String>,
    /// The command's working directory.
    pub workdir: Option<String>,
    /// The command's `USER[:GROUP]`.
    pub user: Option<String>,
    /// The guest's hostname; without one its name is it.
    pub hostname: Option<String>,
    /// Whether the command reads a terminal.
    pub interactive: bool,
    /// Whether the command has a terminal.
    pub tty: bool,
    /// How long the VM may run.
    #[serde(
        deserialize_with = "from_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout: Option<Period>,
    /// The signal that asks the command to end.
    #[serde(
        deserialize_with = "from_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub stop_signal: Option<Signal>,
    /// How long the command has after that.
    #[serde(
        deserialize_with = "from_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub stop_timeout: Option<Period>,
    /// The command's resource limits, as `NAME=SOFT[:HARD]`.
    pub ulimit: Vec<Ulimit>,
    /// What the network device leads to: `user`, `tap[:NAME]`, `bridge:NAME` or `none`.
    pub net: Option<NetSpec>,
    /// The guest's addresses, as `ADDRESS[/PREFIX][,gw=ADDRESS]`.
    pub ip: Vec<IpSpec>,
    /// The network device's address.
    pub mac: Option<MacAddress>,
    /// The network device's MTU in bytes.
    #[serde(
        deserialize_with = "from_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub mtu: Option<Mtu>,
    /// The guest's name servers.
    pub dns: Vec<IpAddr>,
    /// Ports of the host's that lead to the guest, as `[IP:][HOST:]GUEST[/udp]`.
    pub publish: Vec<PortSpec>,
    /// Whether all ports that the image exposes are published at free ones of the host's.
    pub publish_all: bool,
    /// The ports that the image exposes, such as `80/tcp`.
    pub exposed: Vec<String>,
    /// The most that goes through the network device, in each direction.
    pub net_rate: Option<Rate>,
    /// The most that goes through each disk.
    pub disk_rate: Option<Rate>,
    /// The network of the user's VMs that it is on.
    pub network: Option<String>,
    /// More names that it has there.
    pub network_alias: Vec<String>,
    /// What it may reach outside; everything if nothing is said.
    pub egress: Option<EgressPolicy>,
    /// How much the monitor confines itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Sandbox>,
    /// The host's user that a monitor of root's becomes; 0 to stay root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The most threads of the monitor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u64>,
    /// The VM's weight of the host's CPU time, as Docker counts it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u32>,
    /// Its weight of the host's block I/O.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blkio_weight: Option<u16>,
}

/// Why a machine file was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error("machine file {path} could not be read", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is too large to be one.
    #[error("machine file {path} is larger than {MAX_FILE} bytes", path = path.display())]
    Large {
        /// Which.
        path: PathBuf,
    },
    /// It says something that is not understood.
    #[error("machine file {path}: {message}", path = path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// What and where, in one line.
        message: String,
    },
    /// No kernel is named and the default one is not built.
    #[error("no default guest kernel at {path}: build it with `make kernel`, or name one with --kernel", path = path.display())]
    NoKernel {
        /// Where it would be.
        path: PathBuf,
    },
}

/// More than any machine file needs.
const MAX_FILE: u64 = 1 << 20;

impl MachineConfig {
    /// Reads a machine file: JSON if its name ends so or it starts with a brace, else TOML. Paths
    /// in it are relative to its folder.
    ///
    /// # Errors
    /// If it can't be read or has a field that is unknown or wrong.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let meta = fs::metadata(path).map_err(read)?;
        if !meta.is_file() {
            return Err(read(io::Error::other("not a regular file")));
        }
        if meta.len() > MAX_FILE {
            return Err(ConfigError::Large {
                path: path.to_owned(),
            });
        }
        let text = fs::read_to_string(path).map_err(read)?;
        let json =
            path.extension().is_some_and(|end| end == "json") || text.trim_start().starts_with('{');
        let parsed = if json {
            serde_json::from_str(&text).map_err(|error| error.to_string())
        } else {
            toml::from_str(&text).map_err(|error| toml_message(&text, &error))
        };
        let mut config: Self = parsed.map_err(|message| ConfigError::Parse {
            path: path.to_owned(),
            message,
        })?;
        config.resolve_paths(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// One of its relative paths, if it has any.
    pub(crate) fn relative_path(&self) -> Option<&Path> {
        let disk = match &self.disk {
            Some(DiskSpec::File { path, .. }) => Some(path),
            _ => None,
        };
        let volumes = self
            .volumes
            .iter()
            .filter_map(|volume| match &volume.source {
                VolumeSource::Directory(path) => Some(path),
                VolumeSource::Named { .. } => None,
            });
        [&self.kernel, &self.rootfs, &self.initrd, &self.vsock]
            .into_iter()
            .flatten()
            .chain(disk)
            .chain(volumes)
            .map(PathBuf::as_path)
            .find(|path| path.is_relative())
    }

    /// Makes relative paths relative to `base`.
    pub(crate) fn resolve_paths(&mut self, base: &Path) {
        for path in [
            &mut self.kernel,
            &mut self.rootfs,
            &mut self.initrd,
            &mut self.vsock,
        ]
        .into_iter()
        .flatten()
        {
            *path = join(base, path);
        }
        if let Some(DiskSpec::File { path, .. }) = &mut self.disk {
            *path = join(base, path);
        }
        for volume in &mut self.volumes {
            volume.resolve(base);
        }
    }

    /// This machine, with everything that `over` says put over it.
    #[must_use]
    pub fn overlaid(self, over: Self) -> Self {
        Self {
            kernel: over.kernel.or(self.kernel),
            rootfs: over.rootfs.or(self.rootfs),
            rootfs_mode: over.rootfs_mode.or(self.rootfs_mode),
            initrd: over.initrd.or(self.initrd),
            cmdline: over.cmdline.or(self.cmdline),
            disk: over.disk.or(self.disk),
            memory: over.memory.or(self.memory),
            mergeable: over.mergeable || self.mergeable,
            balloon: over.balloon.or(self.balloon),
            cpus: over.cpus.or(self.cpus),
            boot: over.boot.or(self.boot),
            name: over.name.or(self.name),
            vsock: over.vsock.or(self.vsock),
            volumes: [self.volumes, over.volumes].concat(),
            tmpfs: [self.tmpfs, over.tmpfs].concat(),
            image: over.image.or(self.image),
            entrypoint: over.entrypoint.or(self.entrypoint),
            command: if over.command.is_empty() {
                self.command
            } else {
                over.command
            },
            env: [self.env, over.env].concat(),
            workdir: over.workdir.or(self.workdir),
            user: over.user.or(self.user),
            hostname: over.hostname.or(self.hostname),
            interactive: over.interactive || self.interactive,
            tty: over.tty || self.tty,
            timeout: over.timeout.or(self.timeout),
            stop_signal: over.stop_signal.or(self.stop_signal),
            stop_timeout: over.stop_timeout.or(self.stop_timeout),
            ulimit: [self.ulimit, over.ulimit].concat(),
            net: over.net.or(self.net),
            ip: [self.ip, over.ip].concat(),
            mac: over.mac.or(self.mac),
            mtu: over.mtu.or(self.mtu),
            dns: [self.dns, over.dns].concat(),
            publish: [self.publish, over.publish].concat(),
            publish_all: over.publish_all || self.publish_all,
            exposed: [self.exposed, over.exposed].concat(),
            net_rate: over.net_rate.or(self.net_rate),
            disk_rate: over.disk_rate.or(self.disk_rate),
            network: over.network.or(self.network),
            network_alias: [self.network_alias, over.network_alias].concat(),
            egress: over.egress.or(self.egress),
            sandbox: over.sandbox.or(self.sandbox),
            uid: over.uid.or(self.uid),
            gid: over.gid.or(self.gid),
            pids_limit: over.pids_limit.or(self.pids_limit),
            cpu_shares: over.cpu_shares.or(self.cpu_shares),
            blkio_weight: over.blkio_weight.or(self.blkio_weight),
        }
    }

    /// The guest's hostname.
    pub fn hostname(&self) -> &str {
        let own = self.hostname.as_deref().or(self.name.as_deref());
        own.unwrap_or("casita")
    }
}

/// `path` below `base`, unless it is absolute, without `.` in between.
fn join(base: &Path, path: &Path) -> PathBuf {
    let joined = base.join(path);
    joined.components().collect()
}

/// TOML's errors span lines; people get one.
fn toml_message(text: &str, error: &toml::de::Error) -> String {
    let message = error
        .message()
        .lines()
        .next()
        .unwrap_or("not TOML")
        .to_owned();
    match error.span() {
        Some(span) => {
            let line = text
                .get(..span.start)
                .unwrap_or_default()
                .matches('\n')
                .count()
                + 1;
            format!("{message} at line {line}")
        }
        None => message,
    }
}

/// A value that is written as on the command line; a bare number is taken as its digits.
fn from_text<'de, D: Deserializer<'de>, T: FromStr>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T::Err: fmt::Display,
{
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected a text such as \"256M\" or a number of bytes"
    )]
    enum Raw {
        Text(String),
        Number(u64),
    }
    let text = match Raw::deserialize(deserializer)? {
        Raw::Text(text) => text,
        Raw::Number(number) => number.to_string(),
    };
    text.parse().map(Some).map_err(D::Error::custom)
}

#[allow(clippy::ref_option, reason = "serde's signature")]
fn as_text<S: Serializer, T: fmt::Display>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&value.as_ref().map_or_else(String::new, T::to_string))
}

fn checked_cpus<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u8>, D::Error> {
    let cpus = i64::deserialize(deserializer)?;
    parse_cpus(&cpus.to_string())
        .map(Some)
        .map_err(D::Error::custom)
}

/// A number of vCPUs, 1 to [`MAX_CPUS`].
///
/// # Errors
/// If it is anything else.
pub fn parse_cpus(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(cpus) if (1..=MAX_CPUS).contains(&cpus) => Ok(cpus),
        _ => Err(format!(
            "{text} vCPUs are not possible: give 1 to {MAX_CPUS}"
        )),
    }
}

/// The guest kernel for a machine that names none: `$CASITA_KERNEL`, the one that `make kernel`
/// built for this user, or an installed one.
///
/// # Errors
/// If there is none.
pub fn default_kernel(dirs: &Dirs) -> Result<PathBuf, ConfigError> {
    if let Some(path) = std::env::var_os("CASITA_KERNEL").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let own = dirs.data().join("kernel/vmlinux");
    let places = [
        own.clone(),
        "/usr/local/share/casita/vmlinux".into(),
        "/usr/share/casita/vmlinux".into(),
    ];
    places
        .into_iter()
        .find(|path| path.exists())
        .ok_or(ConfigError::NoKernel { path: own })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(name: &str, text: &str) -> Result<MachineConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::File::create(&path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        MachineConfig::read(&path)
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = read(
            "m.toml",
            "memory = \"128M\"\ncpus = 2\nboot = \"plain\"\ncommand = [\"ls\", \"-l\"]\n",
        )
        .unwrap();
        let json = read(
            "m.json",
            r#"{"memory": 134217728, "cpus": 2, "boot": "plain", "command": ["ls", "-l"]}"#,
        )
        .unwrap();
        assert_eq!(toml, json);
        assert_eq!(toml.memory.unwrap().bytes(), 128 << 20);
    }

    #[test]
    fn an_unknown_field_is_named_with_its_line() {
        let error = read("m.toml", "cpus = 1\nmemroy = \"1G\"\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("memroy") && error.contains("line 2"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1);
        let error = read("m.json", r#"{"kernal": "x"}"#)
            .unwrap_err()
            .to_string();
        assert!(error.contains("kernal"), "{error}");
    }

    #[test]
    fn the_command_line_goes_over_the_file() {
        let file = read("m.toml", "memory = \"128M\"\ncpus = 2\n").unwrap();
        let over = MachineConfig {
            cpus: Some(4),
            ..MachineConfig::default()
        };
        let both = file.overlaid(over);
        assert_eq!(
            (both.cpus, both.memory.unwrap().bytes()),
            (Some(4), 128 << 20)
        );
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.toml");
        fs::write(&path, "kernel = \"k/vmlinux\"\nrootfs = \"/abs\"\n").unwrap();
        let config = MachineConfig::read(&path).unwrap();
        assert_eq!(config.kernel.unwrap(), dir.path().join("k/vmlinux"));
        assert_eq!(config.rootfs.unwrap(), Path::new("/abs"));
    }

    #[test]
    fn a_record_of_a_machine_says_all_that_the_machine_is() {
        let config = MachineConfig {
            kernel: Some("/k".into()),
            disk: Some("/d.raw,size=64M".parse().unwrap()),
            memory: Some("64M".parse().unwrap()),
            cpus: Some(3),
            rootfs_mode: Some(RootfsMode::Pmem),
            mergeable: true,
            balloon: Some(false),
            boot: Some(BootMode::Agent),
            volumes: vec!["db:/d:ro".parse().unwrap(), "/x:/y".parse().unwrap()],
            tmpfs: vec!["/t:size=1M".parse().unwrap()],
            image: Some("nginx".to_owned()),
            command: vec!["a".to_owned(), String::new()],
            env: vec!["A=b=c".to_owned()],
            tty: true,
            timeout: Some("1500ms".parse().unwrap()),
            stop_signal: Some("RTMIN+3".parse().unwrap()),
            stop_timeout: Some("1m".parse().unwrap()),
            ulimit: vec!["nofile=1:unlimited".parse().unwrap()],
            network: Some("backend".to_owned()),
            network_alias: vec!["db".to_owned()],
            egress: Some("10.0.0.0/8,db.example:5432/tcp".parse().unwrap()),
            ..MachineConfig::default()
        };
        for config in [config, MachineConfig::default()] {
            let json = serde_json::to_string(&config).unwrap();
            assert_eq!(read("m.json", &json).unwrap(), config, "{json}");
        }
    }

    #[test]
    fn mounts_of_the_file_and_of_the_command_line_add_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.toml");
        let text = "volumes = [\"db:/data\", \"./d:/d:ro\"]\ntmpfs = [\"/t:size=1M\"]\n";
        fs::write(&path, text).unwrap();
        let over = MachineConfig {
            volumes: vec!["/x:/y".parse().unwrap()],
            ..MachineConfig::default()
        };
        let both = MachineConfig::read(&path).unwrap().overlaid(over);
        let volumes: Vec<_> = both.volumes.iter().map(ToString::to_string).collect();
        let below = format!("{}/./d:/d:ro", dir.path().display());
        assert_eq!(volumes, ["db:/data", &below, "/x:/y"]);
        assert_eq!(both.tmpfs.len(), 1);
        let error = read("m.toml", "volumes = [\"db\"]\n").unwrap_err();
        assert!(error.to_string().contains("'db'"), "{error}");
    }

    #[test]
    fn impossible_memory_and_cpus_are_refused_with_what_is_possible() {
        for bad in ["0", "1", "12345", "17000000", "x", "-1", "1.5G", ""] {
            assert!(bad.parse::<MemorySize>().is_err(), "{bad}");
        }
        for bad in ["0", "33", "-1", "x", "256"] {
            assert!(parse_cpus(bad).unwrap_err().contains("1 to 32"), "{bad}");
        }
        assert_eq!("64M".parse::<MemorySize>().unwrap().to_string(), "64M");
    }
}
