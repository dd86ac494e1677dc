//! A volume's files while no VM of the user's has it: in a small VM that is there for nothing else.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;

use super::{CpError, GuestFiles};
use crate::config::MachineConfig;
use crate::control::Client;
use crate::dirs::Dirs;
use crate::monitor::{self, Attachment, VmRun};
use crate::net::Identity;
use crate::net::spec::{NetMode, NetSpec};
use crate::signals::Signals;
use crate::stats::RunStats;
use crate::volume::{VolumeSource, VolumeSpec};

/// Where the VM has the volume.
pub const TARGET: &str = "/volume";
/// Enough to unpack into any volume.
const MEMORY: &str = "96M";
/// Runs until it is ended.
const COMMAND: [&str; 2] = ["sleep", "2147483647"];
const KILL: u8 = 9;

/// What a [`with_volume`] needs of its surroundings.
pub struct Around<'a> {
    /// Where casita keeps its files.
    pub dirs: &'a Dirs,
    /// Our signals, taken over before any other thread existed.
    pub signals: &'a Signals,
    /// Whether to refuse a KVM that can't run Linux before trying.
    pub check_kvm: bool,
}

/// Starts a VM that has the volume `name` at [`TARGET`], runs `work` with its files, and ends it.
///
/// # Errors
/// If the VM can't be run, or `work` fails.
pub fn with_volume(
    name: &str,
    read_only: bool,
    around: &Around<'_>,
    work: impl FnOnce(&GuestFiles) -> Result<(), CpError> + Send + 'static,
) -> Result<(), CpError> {
    let config = MachineConfig {
        memory: Some(MEMORY.parse().map_err(CpError::Vm)?),
        volumes: vec![VolumeSpec {
            source: VolumeSource::Named {
                name: name.to_owned(),
                shared: false,
            },
            target: TARGET.to_owned(),
            read_only,
        }],
        command: COMMAND.map(ToOwned::to_owned).to_vec(),
        net: Some(NetSpec {
            mode: NetMode::None,
            ..NetSpec::default()
        }),
        ..MachineConfig::default()
    };
    let folder = Folder::make(around.dirs)?;
    let (sender, results) = mpsc::channel();
    let runtime_dir = folder.0.clone();
    let given_up = folder.0.clone();
    let on_started = move |_| {
        let files = GuestFiles::of(&runtime_dir);
        let begin = move || {
            // Nobody waits any more if the VM has ended.
            let _ = sender.send(work(&files));
            if let Err(error) = Client::connect(&runtime_dir).and_then(|vm| vm.signal(KILL)) {
                log::debug!("the volume's VM has ended by itself: {error}");
            }
        };
        thread::spawn(begin);
    };
    let ended = monitor::run(VmRun {
        config: &config,
        dirs: around.dirs,
        signals: around.signals,
        attachment: Attachment::Logged {
            stdout: Box::new(std::io::sink()),
            stderr: Box::new(std::io::stderr()),
            terminal: false,
        },
        runtime_dir: Some(&folder.0),
        console_log: None,
        check_kvm: around.check_kvm,
        on_started: Some(Box::new(on_started)),
        on_given_up: Some(Box::new(move || drop(std::fs::remove_dir_all(given_up)))),
        teller: None,
        identity: Identity::default(),
        confine: None,
        stats: RunStats::default(),
    })
    .map_err(Box::new)?;
    // What it told before the end counts, and nothing is told after that.
    match (results.try_recv(), ended.error) {
        (Ok(result), _) => result,
        (Err(_), Some(error)) => Err(CpError::Vm(error)),
        (Err(_), None) => Err(CpError::Vm("the volume's VM was ended".to_owned())),
    }
}

/// A folder for the control socket, for as long as the VM runs.
struct Folder(PathBuf);

impl Folder {
    fn make(dirs: &Dirs) -> Result<Self, CpError> {
        let runtime = dirs.runtime();
        Dirs::ensure(&runtime)?;
        let path = runtime.join(format!("volume-{}", std::process::id()));
        // What a killed process of this number left.
        let _ = std::fs::remove_dir_all(&path);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Self(path)),
            Err(source) => Err(CpError::Io {
                action: "make",
                path,
                source,
            }),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
