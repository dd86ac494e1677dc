//! Everything that a machine reads and writes, opened and checked before any of it is made.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use casita_agent::spec::Network;
use casita_agent::wire::Key;

use crate::assemble::AssembleError;
use crate::config::{BootMode, DEFAULT_MEMORY, MachineConfig, default_kernel};
use crate::dirs::Dirs;
use crate::disk::{self, Disk, DiskSpec, Expect, NewFile};
use crate::guest;
use crate::rootfs::{self, Circumstances, RootDevice, RootImage};
use crate::volume::{self, Attach, NewVolumes, PlannedMount, VolumeError};

/// A file and where it is.
pub struct Opened {
    /// The file, open for reading.
    pub file: File,
    /// Its path, for messages.
    pub path: PathBuf,
}

/// The files of one machine.
pub struct Files {
    /// The guest kernel.
    pub kernel: Opened,
    /// The read-only root image.
    pub root: Option<RootImage>,
    /// What the guest has it as.
    pub root_device: RootDevice,
    /// The writable disk, locked.
    pub disk: Option<Disk>,
    /// The user's initrd.
    pub initrd: Option<Opened>,
    /// What the guest mounts beside its root, in this order.
    pub mounts: Vec<PlannedMount>,
    /// The volumes among them that were made just now.
    pub new_volumes: Option<NewVolumes>,
}

impl Files {
    /// Opens what `config` names, or its defaults.
    ///
    /// # Errors
    /// If a file is missing, not what it should be, or in use.
    pub fn open(config: &MachineConfig, dirs: &Dirs) -> Result<Self, AssembleError> {
        let kernel = match &config.kernel {
            Some(path) => path.clone(),
            None => default_kernel(dirs)?,
        };
        let kernel = open_file("kernel", &kernel)?;
        let initrd = config
            .initrd
            .as_deref()
            .map(|path| open_file("initrd", path))
            .transpose()?;
        let agent = config.boot.unwrap_or_default() == BootMode::Agent;
        if !agent && config.rootfs.is_none() && initrd.is_none() {
            return Err(AssembleError::NothingToBoot);
        }
        if let (false, Some(word)) = (agent, config.command.first()) {
            return Err(AssembleError::CommandInPlainBoot(word.clone()));
        }
        let mounts = !config.volumes.is_empty() || !config.tmpfs.is_empty();
        if mounts && !agent {
            return Err(VolumeError::PlainBoot.into());
        }
        let root = match &config.rootfs {
            Some(path) => Some(rootfs::open(path, dirs)?),
            None if agent => Some(rootfs::builtin(dirs)?),
            None => None,
        };
        let disk = match config.disk.clone() {
            Some(spec) => Some(kept(spec, config.name.as_deref())),
            None => agent.then_some(DiskSpec::Temporary {
                size: disk::DEFAULT_SIZE,
            }),
        };
        let expect = if agent {
            Expect::Ext4
        } else {
            Expect::Anything
        };
        let disk = disk
            .map(|spec| disk::open(&spec, expect, dirs))
            .transpose()?;
        let new_disk = disk.as_ref().map(NewFile::of);
        let (mounts, new_volumes) = volume::plan(&config.volumes, &config.tmpfs, dirs)?;
        if let Some(file) = new_disk {
            // From here on whoever has the files watches over it.
            file.keep();
        }
        let around = Circumstances {
            memory: config.memory.unwrap_or(DEFAULT_MEMORY).bytes(),
            plain: !agent,
            shared_memory: mounts
                .iter()
                .any(|mount| matches!(mount.attach, Attach::Share { .. })),
        };
        let mode = config.rootfs_mode.unwrap_or_default();
        let root_device = root
            .as_ref()
            .map_or(RootDevice::Block, |image| mode.device(image, around));
        Ok(Self {
            kernel,
            root,
            root_device,
            disk,
            initrd,
            mounts,
            new_volumes,
        })
    }

    /// The initrd with casita's agent, unless the boot is plain.
    ///
    /// # Errors
    /// If a name or an argument can't be given to a guest.
    pub fn agent_initrd(
        &self,
        config: &MachineConfig,
        key: Key,
        network: Option<&Network>,
    ) -> Result<Option<Vec<u8>>, AssembleError> {
        match (config.boot.unwrap_or_default(), &self.root) {
            (BootMode::Agent, Some(root)) => Ok(Some(guest::agent_initrd(
                config,
                key,
                (self.root_device, root.fs),
                self.disk.as_ref(),
                &self.mounts,
                network,
            )?)),
            _ => Ok(None),
        }
    }
}

/// The disk of a VM with a name is kept under that name.
fn kept(spec: DiskSpec, name: Option<&str>) -> DiskSpec {
    match (spec, name) {
        (DiskSpec::Temporary { size }, Some(name)) => DiskSpec::Named {
            name: name.to_owned(),
            size: Some(size),
        },
        (spec, _) => spec,
    }
}

/// Opens a regular file for reading; never waits, whatever `path` is.
fn open_file(what: &'static str, path: &Path) -> Result<Opened, AssembleError> {
    let failed = |source| AssembleError::File {
        what,
        path: path.to_owned(),
        source,
    };
    let not_a_file = || failed(io::Error::other("not a regular file"));
    // Before it is opened, as a socket can't be; and again on what was opened.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(not_a_file());
    }
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(not_a_file());
    }
    Ok(Opened {
        file,
        path: path.to_owned(),
    })
}
