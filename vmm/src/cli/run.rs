//! `casita run`.

use std::path::PathBuf;
use std::process::ExitCode;

use casita_devices::stamp::monotonic_ns;
use clap::Args;

use super::{CliError, EXIT_CASITA};
use crate::assemble::{AssembleError, Surroundings, assemble};
use crate::config::{
    BootMode, DEFAULT_CPUS, DEFAULT_MEMORY, MachineConfig, MemorySize, parse_cpus,
};
use crate::console::{Console, RawTerminal};
use crate::dirs::Dirs;
use crate::disk::{self, DiskSpec};
use crate::machine::{End, Outcome, events};
use crate::share::Share;
use crate::signals::SignalHandler;
use crate::stats::RunStats;

/// Options of `casita run`.
#[derive(Debug, Args)]
#[command(after_help = "\
The exit status is the command's; 128+n if signal n ended it, 126 if it could not be run, 127 if it \
was not found, 125 if casita itself failed. Ctrl-] ends a VM whose console has the terminal.

Examples:
  casita run -- uname -a                       a command in the built-in image
  casita run --rootfs ./tree                   a shell in a directory's content
  casita run --name db --disk 10G -- sh        a disk that is kept
  casita run --kernel vmlinuz --rootfs debian.iso --boot plain")]
pub struct RunArgs {
    /// Guest kernel, an ELF vmlinux or a bzImage [default: the one that `make kernel` built]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Root image (EROFS, squashfs, ext4, ISO 9660) or a directory; never written to [default: a
    /// small one with busybox]
    #[arg(long, value_name = "FILE|DIR")]
    rootfs: Option<PathBuf>,
    /// Initial RAM file system
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// More parameters for the guest kernel
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// Writable disk: a size for a new one (kept under --name, else gone afterwards), or a raw
    /// file, made if it is missing [default: a temporary one]
    #[arg(long, value_name = "SIZE|FILE[,size=SIZE]")]
    disk: Option<DiskSpec>,
    #[arg(short, long, value_name = "SIZE", help = format!("Guest memory, whole MiB [default: {DEFAULT_MEMORY}]"))]
    memory: Option<MemorySize>,
    #[arg(short, long, value_name = "N", value_parser = parse_cpus, help = format!("Number of vCPUs [default: {DEFAULT_CPUS}]"))]
    cpus: Option<u8>,
    /// How to start: with casita's agent, or the image's own init and nothing of casita's
    #[arg(long, value_name = "MODE")]
    boot: Option<BootMode>,
    /// Name of the VM: its hostname, and the name of its disk
    #[arg(long, value_name = "NAME", value_parser = vm_name)]
    name: Option<String>,
    /// Unix socket for the guest's vsock: write `CONNECT P` to it for port P of the guest; what the
    /// guest opens to port P of the host comes to FILE_P
    #[arg(long, value_name = "FILE")]
    vsock: Option<PathBuf>,
    /// Machine file, TOML or JSON, with the names of these options as fields; options go over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write the stages of the boot and the VM exits to FILE, as JSON
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Try to start even if this machine's KVM can't run Linux guests
    #[arg(long)]
    skip_kvm_check: bool,
    /// Directory of the host: `DIR,TAG` or `DIR,TAG,ro`
    #[arg(long, hide = true, value_name = "DIR,TAG[,ro]")]
    share: Vec<String>,
    /// Command and arguments [default: a shell]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn vm_name(text: &str) -> Result<String, String> {
    disk::check_name(text)
        .map(|()| text.to_owned())
        .map_err(|error| error.to_string())
}

impl RunArgs {
    fn machine(&self) -> Result<MachineConfig, CliError> {
        let file = match &self.config {
            Some(path) => MachineConfig::read(path)?,
            None => MachineConfig::default(),
        };
        let config = file.overlaid(MachineConfig {
            kernel: self.kernel.clone(),
            rootfs: self.rootfs.clone(),
            initrd: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            disk: self.disk.clone(),
            memory: self.memory,
            cpus: self.cpus,
            boot: self.boot,
            name: self.name.clone(),
            vsock: self.vsock.clone(),
            command: self.command.clone(),
        });
        if let Some(name) = &config.name {
            vm_name(name)?;
        }
        Ok(config)
    }
}

impl RunArgs {
    fn shares(&self) -> Result<Vec<Share>, CliError> {
        let start = |text: &String| {
            let mut fields = text.split(',');
            let (dir, tag) = (fields.next().unwrap_or_default(), fields.next());
            let read_only = fields.next() == Some("ro");
            let share = Share::start(dir.as_ref(), tag.unwrap_or("share"), read_only);
            share.map_err(|error| CliError::from(AssembleError::from(error)))
        };
        self.share.iter().map(start).collect()
    }
}

/// Boots a machine and waits for its end.
///
/// # Errors
/// If it can't be made, or can't go on.
pub fn run(args: &RunArgs) -> Result<ExitCode, CliError> {
    let mut stats = RunStats::default();
    stats.stage("main", monotonic_ns());
    let config = args.machine()?;
    let dirs = Dirs::from_env()?;
    let console = Console::detect();
    let (sender, receiver) = events();
    let signals = SignalHandler::new(sender.clone())?;
    let shares = args.shares()?;
    let machine = assemble(
        &config,
        Surroundings {
            dirs: &dirs,
            console,
            sender,
            events: receiver,
            signals,
            check_kvm: !args.skip_kvm_check,
            shares,
            stats,
        },
    )?;
    let terminal = match console {
        Console::Terminal(_) => Some(RawTerminal::enter()?),
        Console::Stream | Console::OutputOnly => None,
    };
    let outcome = machine.run();
    drop(terminal);
    let outcome = outcome?;
    log_summary(&outcome);
    if let Some(path) = &args.stats {
        outcome.stats.write(path).map_err(|error| {
            format!("stats could not be written to {}: {error}", path.display())
        })?;
    }
    exit_code(outcome, config.boot.unwrap_or_default())
}

fn log_summary(outcome: &Outcome) {
    let stats = &outcome.stats;
    let ms = |name| {
        stats
            .ms_to(name)
            .map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"))
    };
    log::info!(
        "ms from start: first KVM_RUN {}, init {}, command {}, end {}; {} exits",
        ms("first-kvm-run"),
        ms("init"),
        ms("command-started"),
        ms("end"),
        stats.exits.total(),
    );
}

fn exit_code(outcome: Outcome, boot: BootMode) -> Result<ExitCode, CliError> {
    match (outcome.end, outcome.exit_status) {
        (End::Failed(failure), _) => Err(failure.to_string().into()),
        (End::Signal(number), _) => Ok(ExitCode::from(128 + u8::try_from(number).unwrap_or(0))),
        (End::Escape, _) => Ok(EXIT_CASITA.into()),
        (_, Some(status)) => Ok(status.into()),
        // Root in the guest may power it off; so may a plain image's init, or reboot.
        (End::PowerOff, None) => Ok(ExitCode::SUCCESS),
        (End::Reset, None) if boot == BootMode::Plain => Ok(ExitCode::SUCCESS),
        (End::Reset, None) => Err(
            "the guest reset itself before its command had ended, as a kernel does that panics: \
             see its messages with --cmdline loglevel=7"
                .into(),
        ),
    }
}
