//! `casita volume`.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{CliError, EXIT_CASITA, Format, ask, json, table};
use crate::cp::volume::{Around, TARGET, with_volume};
use crate::cp::{receive_archive, send_archive};
use crate::dirs::Dirs;
use crate::disk::{DiskError, check_size, parse_size};
use crate::signals::Signals;
use crate::vms::Registry;
use crate::volume::{
    DEFAULT_SIZE, Store, Volume, VolumeError, VolumeKind, VolumeSource, VolumeSpec,
};

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume
    Create(CreateArgs),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Tell all that is known of volumes
    Inspect(InspectArgs),
    /// Remove volumes with all that is in them
    Rm(RmArgs),
    /// Remove all volumes that no VM uses
    Prune(PruneArgs),
    /// Write a volume's content as a tar archive
    Export(ExportArgs),
    /// Unpack a tar archive into a volume, which is made if it is missing
    Import(ImportArgs),
}

/// Options of `casita volume create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Size of its disk, of which the host pays for what is written [default: 10G]
    #[arg(long, value_name = "SIZE", value_parser = disk_size, conflicts_with = "shared")]
    size: Option<u64>,
    /// Make a directory that several VMs write to at once, instead of a disk
    #[arg(long)]
    shared: bool,
    /// Its name
    name: String,
}

fn disk_size(text: &str) -> Result<u64, String> {
    let size = parse_size(text).map_err(|error| error.to_string())?;
    check_size(size).map_err(|error| error.to_string())
}

/// Options of `casita volume ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Names only
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// Options of `casita volume inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Names of volumes
    #[arg(required = true)]
    names: Vec<String>,
}

/// Options of `casita volume rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Also those that VMs use which have ended; and don't mind those that are missing
    #[arg(short, long)]
    force: bool,
    /// Names of volumes
    #[arg(required = true)]
    names: Vec<String>,
}

/// Options of `casita volume prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Options of `casita volume export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Write to FILE [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    vm: VmOptions,
    /// Name of the volume
    name: String,
}

/// Options of `casita volume import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    vm: VmOptions,
    /// Name of the volume
    name: String,
    /// The archive; `-` for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
}

/// Options of what starts a VM.
#[derive(Debug, Clone, Copy, Args)]
struct VmOptions {
    /// Try to start even if this machine's KVM can't run Linux guests
    #[arg(long)]
    skip_kvm_check: bool,
}

/// All that is known of a volume.
#[derive(Debug, Serialize)]
struct Description {
    name: String,
    #[serde(flatten)]
    kind: VolumeKind,
    /// In bytes.
    used: Option<u64>,
    created: String,
    path: PathBuf,
    /// The process that has it open.
    pid: Option<u32>,
    /// The VMs that are to have it when they run.
    vms: Vec<String>,
}

/// Runs `casita volume`.
///
/// # Errors
/// As the command says.
pub fn volume(command: &VolumeCommand) -> Result<ExitCode, CliError> {
    match command {
        VolumeCommand::Create(args) => create(args),
        VolumeCommand::Ls(args) => ls(args),
        VolumeCommand::Inspect(args) => inspect(args),
        VolumeCommand::Rm(args) => rm(args),
        VolumeCommand::Prune(args) => prune(args),
        VolumeCommand::Export(args) => export(args),
        VolumeCommand::Import(args) => import(args),
    }
}

fn create(args: &CreateArgs) -> Result<ExitCode, CliError> {
    let kind = if args.shared {
        VolumeKind::Shared
    } else {
        VolumeKind::Disk {
            size: args.size.unwrap_or(DEFAULT_SIZE),
        }
    };
    let volume = Store::open(&Dirs::from_env()?)?.create(&args.name, kind)?;
    writeln!(io::stdout(), "{}", volume.name())?;
    Ok(ExitCode::SUCCESS)
}

/// The names of the VMs that are to have each volume.
struct Users(Vec<(String, Vec<VolumeSpec>)>);

impl Users {
    fn find(dirs: &Dirs) -> Result<Self, CliError> {
        let vms = Registry::open(dirs)?.list()?;
        let of = |vm: &crate::vms::Vm| {
            let record = vm.record();
            (record.name.clone(), record.config.volumes.clone())
        };
        Ok(Self(vms.iter().map(of).collect()))
    }

    fn of(&self, volume: &str) -> Vec<String> {
        let has = |spec: &VolumeSpec| matches!(&spec.source, VolumeSource::Named { name, .. } if name == volume);
        let users = self.0.iter().filter(|(_, specs)| specs.iter().any(has));
        users.map(|(vm, _)| vm.clone()).collect()
    }
}

fn describe(volume: &Volume, users: &Users) -> Description {
    Description {
        name: volume.name().to_owned(),
        kind: volume.kind(),
        used: volume.used(),
        created: crate::time::rfc3339(volume.created()),
        path: volume.path(),
        pid: volume.user(),
        vms: users.of(volume.name()),
    }
}

fn ls(args: &LsArgs) -> Result<ExitCode, CliError> {
    let dirs = Dirs::from_env()?;
    let volumes = Store::open(&dirs)?.list()?;
    let mut out = io::stdout().lock();
    if args.quiet {
        for volume in &volumes {
            writeln!(out, "{}", volume.name())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let users = Users::find(&dirs)?;
    let described: Vec<_> = volumes.iter().map(|one| describe(one, &users)).collect();
    if args.format == Format::Json {
        json::write(&mut out, &described)?;
        return Ok(ExitCode::SUCCESS);
    }
    let bytes = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), table::bytes);
    let rows: Vec<_> = described
        .into_iter()
        .map(|volume| {
            let (kind, size) = match volume.kind {
                VolumeKind::Disk { size } => ("disk", Some(size)),
                VolumeKind::Shared => ("shared", None),
            };
            vec![
                volume.name,
                kind.to_owned(),
                bytes(size),
                bytes(volume.used),
                volume.vms.join(","),
            ]
        })
        .collect();
    table::write(&mut out, &["NAME", "KIND", "SIZE", "USED", "VMS"], &rows)?;
    Ok(ExitCode::SUCCESS)
}

fn inspect(args: &InspectArgs) -> Result<ExitCode, CliError> {
    let dirs = Dirs::from_env()?;
    let (store, users) = (Store::open(&dirs)?, Users::find(&dirs)?);
    let described = args
        .names
        .iter()
        .map(|name| Ok(describe(&store.find(name)?, &users)))
        .collect::<Result<Vec<_>, VolumeError>>()?;
    let mut out = io::stdout().lock();
    match args.format {
        Format::Json => json::write_found(&mut out, &described, args.names.len())?,
        Format::Text => {
            for volume in &described {
                print(&mut out, volume)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(out: &mut impl Write, volume: &Description) -> io::Result<()> {
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<10} {value}");
    line("name", &volume.name)?;
    match volume.kind {
        VolumeKind::Disk { size } => {
            line("kind", "disk")?;
            line("size", &table::bytes(size))?;
        }
        VolumeKind::Shared => line("kind", "shared")?,
    }
    if let Some(used) = volume.used {
        line("used", &table::bytes(used))?;
    }
    line("created", &volume.created)?;
    line("path", &volume.path.display().to_string())?;
    if let Some(pid) = volume.pid {
        line("pid", &pid.to_string())?;
    }
    if !volume.vms.is_empty() {
        line("vms", &volume.vms.join(" "))?;
    }
    Ok(())
}

fn rm(args: &RmArgs) -> Result<ExitCode, CliError> {
    let dirs = Dirs::from_env()?;
    let (store, users) = (Store::open(&dirs)?, Users::find(&dirs)?);
    let remove = |name: &String| {
        let vms = users.of(name);
        if !vms.is_empty() && !args.force {
            return Err(VolumeError::Referred {
                name: name.clone(),
                users: vms.join(" "),
            });
        }
        match store.remove(name) {
            Err(VolumeError::Missing(_)) if args.force => Ok(()),
            result => result,
        }
    };
    let mut well = true;
    for name in &args.names {
        match remove(name) {
            Ok(()) => writeln!(io::stdout(), "{name}")?,
            Err(error) => {
                well = false;
                super::report(&error, false);
            }
        }
    }
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        EXIT_CASITA.into()
    })
}

fn prune(args: &PruneArgs) -> Result<ExitCode, CliError> {
    let dirs = Dirs::from_env()?;
    let (store, users) = (Store::open(&dirs)?, Users::find(&dirs)?);
    let mut volumes = store.list()?;
    volumes.retain(|one| users.of(one.name()).is_empty() && one.user().is_none());
    let names: Vec<_> = volumes.iter().map(Volume::name).collect();
    let question = format!("Remove {} for good?", names.join(", "));
    if names.is_empty() || !(args.force || ask::confirmed(&question)?) {
        return Ok(ExitCode::SUCCESS);
    }
    for volume in volumes {
        match store.remove(volume.name()) {
            Ok(()) => writeln!(io::stdout(), "{}", volume.name())?,
            // Somebody has just begun to use it, or was faster.
            Err(VolumeError::InUse { .. } | VolumeError::Missing(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn export(args: &ExportArgs) -> Result<ExitCode, CliError> {
    let signals = Signals::take_all()?;
    let dirs = Dirs::from_env()?;
    let volume = Store::open(&dirs)?.find(&args.name)?;
    let (out, path): (OwnedFd, PathBuf) = match &args.output {
        Some(path) => {
            let file = File::create(path)
                .map_err(|error| format!("can't write {}: {error}", path.display()))?;
            (file.into(), path.clone())
        }
        None if io::stdout().is_terminal() => {
            return Err("an archive is nothing for a terminal: say -o FILE, or use a pipe".into());
        }
        None => (
            io::stdout().as_fd().try_clone_to_owned()?,
            "standard output".into(),
        ),
    };
    // Whoever reads can't replay a journal; but then nobody else reads.
    let damaged =
        |error: VolumeError| matches!(error, VolumeError::Disk(DiskError::NeedsRecovery(_)));
    let shared = volume.kind() == VolumeKind::Shared;
    let read_only = shared || !volume.open_disk(true, &dirs).is_err_and(damaged);
    let around = Around {
        dirs: &dirs,
        signals: &signals,
        check_kvm: !args.vm.skip_kvm_check,
    };
    let result = with_volume(&args.name, read_only, &around, move |files| {
        let copy = files.copy_out(&format!("{TARGET}/."))?;
        receive_archive(copy, out.as_fd(), &path)
    });
    if let (Err(_), Some(path)) = (&result, &args.output) {
        // Half an archive is worth nothing.
        let _ = std::fs::remove_file(path);
    }
    result?;
    Ok(ExitCode::SUCCESS)
}

fn import(args: &ImportArgs) -> Result<ExitCode, CliError> {
    let signals = Signals::take_all()?;
    let dirs = Dirs::from_env()?;
    let store = Store::open(&dirs)?;
    let from: OwnedFd = if args.file == Path::new("-") {
        if io::stdin().is_terminal() {
            return Err("an archive is expected at standard input, which is a terminal".into());
        }
        io::stdin().as_fd().try_clone_to_owned()?
    } else {
        let file = File::open(&args.file);
        file.map_err(|error| format!("can't read {}: {error}", args.file.display()))?
            .into()
    };
    let new = store.get(&args.name)?.is_none();
    if new {
        store.create(&args.name, VolumeKind::Disk { size: DEFAULT_SIZE })?;
    }
    let around = Around {
        dirs: &dirs,
        signals: &signals,
        check_kvm: !args.vm.skip_kvm_check,
    };
    let result = with_volume(&args.name, false, &around, move |files| {
        send_archive(files.copy_in(TARGET)?, from.as_fd())
    });
    if let (Err(_), true) = (&result, new) {
        // Nobody can have missed it.
        let _ = store.remove(&args.name);
    }
    result?;
    Ok(ExitCode::SUCCESS)
}
