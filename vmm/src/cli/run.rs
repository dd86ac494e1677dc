//! `casita run`.

use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use casita_devices::stamp::monotonic_ns;
use casita_devices::token_bucket::Rate;
use casita_devices::virtio::net::MacAddress;
use casita_net::EgressPolicy;
use clap::Args;

use super::process_args::{ProcessArgs, complete_env};
use super::{CliError, report_console};
use crate::config::{
    BootMode, DEFAULT_CPUS, DEFAULT_MEMORY, MachineConfig, MemorySize, default_kernel, parse_cpus,
};
use crate::confine::{Sandbox, inherited_descriptors};
use crate::dirs::Dirs;
use crate::disk::{self, DiskSpec};
use crate::images::{self, PullPolicy};
use crate::life::{self, Surroundings};
use crate::monitor::{Attachment, Ended};
use crate::net;
use crate::net::spec::{IpSpec, Mtu, NetSpec, PortSpec, parse_mac};
use crate::process_config::{Attach, Ends, Period, Signal, Ulimit};
use crate::rootfs::RootfsMode;
use crate::signals::Signals;
use crate::stats::RunStats;
use crate::vms::{ImageUse, NewVm, Registry, RestartPolicy};
use crate::volume::{TmpfsSpec, VolumeSpec};

/// Groups of options in the help.
const PROCESS: &str = "Process";
const LIFE: &str = "Life";
const STORAGE: &str = "Storage";
const NETWORK: &str = "Network";
const MACHINE: &str = "Machine";
const SANDBOX: &str = "Sandbox";

/// Options of `casita run`.
#[derive(Debug, Args)]
#[command(after_help = "\
The exit status is the command's; 128+n if signal n ended it, 126 if it could not be run, 127 if it \
was not found, 124 if its time was over, 125 if casita itself failed. SIGTERM, SIGINT, SIGHUP, \
SIGQUIT, SIGUSR1 and SIGUSR2 reach the command; a second SIGTERM or SIGINT ends the VM, as does \
Ctrl-] at its terminal.

Examples:
  casita run --rm -it debian bash              a shell in an image, pulled if it is missing
  casita run -d --name web -p 8080:80 nginx    left alone: casita logs, exec and stop web
  casita run --rm -v data:/srv -v ./src:/src:ro debian ls /srv /src
  casita run --rm debian sort < words.txt      a pipe or file is the command's input
  casita run -m 1G -c 2 -- uname -a            a command in the built-in image
  casita run --name db --disk 10G -- sh        a disk that is kept
  casita run --kernel vmlinuz --rootfs debian.iso --boot plain")]
#[allow(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub struct RunArgs {
    /// Image, then command and arguments; after -- a command in the built-in image or --rootfs
    /// [default: the image's command, or a shell]
    #[arg(trailing_var_arg = true, value_name = "IMAGE] [COMMAND")]
    words: Vec<String>,
    /// Machine file, TOML or JSON, with the names of these options as fields; options go over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// When to ask a registry for the image
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pull: PullPolicy,
    #[command(flatten, next_help_heading = PROCESS)]
    process: ProcessArgs,
    /// Program that goes before the command, in place of the image's; empty for none
    #[arg(long, value_name = "PROGRAM", help_heading = PROCESS)]
    entrypoint: Option<String>,
    /// Resource limit of the command, such as nofile=1024:4096
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = PROCESS)]
    ulimit: Vec<Ulimit>,
    /// Start the VM with nobody attached, and print its ID
    #[arg(short, long, conflicts_with = "stats", help_heading = LIFE)]
    detach: bool,
    /// Name of the VM: its hostname, and the name of its disk
    #[arg(long, value_name = "NAME", value_parser = vm_name, help_heading = LIFE)]
    name: Option<String>,
    /// Remove the VM, with its own disk, when it ends
    #[arg(long, help_heading = LIFE)]
    rm: bool,
    /// What follows when the VM ends by itself: no, on-failure[:N] or always
    #[arg(long, value_name = "POLICY", default_value_t, help_heading = LIFE)]
    restart: RestartPolicy,
    /// End the VM after this time, such as 30, 1.5m or 2h: the stop signal, and at last by force
    #[arg(long, value_name = "TIME", help_heading = LIFE)]
    timeout: Option<Period>,
    /// Signal that asks the command to end [default: the image's, or TERM]
    #[arg(long, value_name = "SIGNAL", help_heading = LIFE)]
    stop_signal: Option<Signal>,
    /// Time that the command has after the stop signal [default: 10]
    #[arg(long, value_name = "TIME", help_heading = LIFE)]
    stop_timeout: Option<Period>,
    /// Root image (EROFS, squashfs, ext4, ISO 9660) or a directory; never written to [default: a
    /// small one with busybox]
    #[arg(long, value_name = "FILE|DIR", help_heading = STORAGE)]
    rootfs: Option<PathBuf>,
    /// How the guest gets at the root image: pmem for memory that all guests share, block for a disk;
    /// an image that can't be memory is a disk [default: auto]
    #[arg(long, value_name = "MODE", hide_possible_values = true, help_heading = STORAGE)]
    rootfs_mode: Option<RootfsMode>,
    /// Writable disk: a size for a new one (kept under --name, else gone with the VM), or a raw
    /// file, made if it is missing [default: one that goes with the VM]
    #[arg(long, value_name = "SIZE|FILE[,size=SIZE]", help_heading = STORAGE)]
    disk: Option<DiskSpec>,
    /// Mount a volume, made if it is missing, or a directory of the host's; with :ro the guest can't
    /// write to it, with :shared several VMs can; can be given many times
    #[arg(short, long, value_name = "NAME|DIR:/PATH[:ro|:shared]", help_heading = STORAGE)]
    volume: Vec<VolumeSpec>,
    /// Mount a file system in memory; can be given many times
    #[arg(long, value_name = "/PATH[:size=SIZE,mode=MODE]", help_heading = STORAGE)]
    tmpfs: Vec<TmpfsSpec>,
    /// The most that goes through each disk a second: bytes, requests, or both
    #[arg(long, value_name = "BYTES[,burst=BYTES][,ops=N][,ops-burst=N]", help_heading = STORAGE)]
    disk_rate: Option<Rate>,
    /// What the network device leads to: user (connections made by passt, which takes no right),
    /// tap[:NAME], bridge:NAME, or none; with ,mac=MAC and ,mtu=N, and for the middle two
    /// ,netns=NAME|PATH and ,queues=N [default: user]
    #[arg(long, value_name = "NETWORK", help_heading = NETWORK)]
    net: Option<NetSpec>,
    /// Lead a port of the host's to one of the guest's, or a range to a range; without HOST one that
    /// is free; can be given many times
    #[arg(short, long, value_name = "[IP:][HOST:]GUEST[/udp]", help_heading = NETWORK)]
    publish: Vec<PortSpec>,
    /// Publish all ports that the image exposes, at free ports of the host's
    #[arg(short = 'P', long, help_heading = NETWORK)]
    publish_all: bool,
    /// Address of the guest, with the length of its network's prefix and the router in it; can be
    /// given for IPv4 and IPv6 [default: one that suits the network]
    #[arg(long, value_name = "ADDRESS[/PREFIX][,gw=ADDRESS]", help_heading = NETWORK)]
    ip: Vec<IpSpec>,
    /// Name server of the guest; can be given many times [default: the host's]
    #[arg(long, value_name = "ADDRESS", help_heading = NETWORK)]
    dns: Vec<IpAddr>,
    /// MAC address of the network device [default: made from the VM's ID]
    #[arg(long, value_name = "MAC", value_parser = parse_mac, help_heading = NETWORK)]
    mac: Option<MacAddress>,
    /// MTU of the network device, in bytes [default: 65520 with passt, else the tap device's]
    #[arg(long, value_name = "N", help_heading = NETWORK)]
    mtu: Option<Mtu>,
    /// The most that goes through the network device a second, in each direction
    #[arg(long, value_name = "BYTES[,burst=BYTES][,ops=N][,ops-burst=N]", help_heading = NETWORK)]
    net_rate: Option<Rate>,
    /// Be on a network of casita network create: its VMs reach each other by name
    #[arg(long, value_name = "NAME", help_heading = NETWORK)]
    network: Option<String>,
    /// One more name on that network; can be given many times
    #[arg(long, value_name = "NAME", help_heading = NETWORK)]
    network_alias: Vec<String>,
    /// What the guest may reach outside: all, none, or a list of CIDR, CIDR:PORT, HOST and HOST:PORT,
    /// each with /tcp or /udp behind it if need be [default: all]
    #[arg(long, value_name = "all|none|ITEM,ITEM...", help_heading = NETWORK)]
    egress: Option<EgressPolicy>,
    #[arg(short, long, value_name = "SIZE", help = format!("Guest memory, whole MiB [default: {DEFAULT_MEMORY}]"), help_heading = MACHINE)]
    memory: Option<MemorySize>,
    #[arg(short, long, value_name = "N", value_parser = parse_cpus, help = format!("Number of vCPUs [default: {DEFAULT_CPUS}]"), help_heading = MACHINE)]
    cpus: Option<u8>,
    /// Let the host look for pages that are equal to other VMs' (KSM)
    #[arg(long, help_heading = MACHINE)]
    mergeable: bool,
    /// Hostname of the guest [default: its name]
    #[arg(long, value_name = "NAME", help_heading = MACHINE)]
    hostname: Option<String>,
    /// Unix socket for the guest's vsock: write `CONNECT P` to it for port P of the guest; what the
    /// guest opens to port P of the host comes to FILE_P
    #[arg(long, value_name = "FILE", help_heading = MACHINE)]
    vsock: Option<PathBuf>,
    /// Guest kernel, an ELF vmlinux or a bzImage [default: the one that `make kernel` built]
    #[arg(long, value_name = "FILE", help_heading = MACHINE)]
    kernel: Option<PathBuf>,
    /// Initial RAM file system
    #[arg(long, value_name = "FILE", help_heading = MACHINE)]
    initrd: Option<PathBuf>,
    /// More parameters for the guest kernel
    #[arg(long, value_name = "TEXT", help_heading = MACHINE)]
    cmdline: Option<String>,
    /// How to start: with casita's agent, or the image's own init and nothing of casita's
    #[arg(long, value_name = "MODE", help_heading = MACHINE)]
    boot: Option<BootMode>,
    /// How much the VM's monitor confines itself on this host: as far as the host allows, not at
    /// all, or wholly or not at all [default: default]
    #[arg(long, value_name = "MODE", help_heading = SANDBOX)]
    sandbox: Option<Sandbox>,
    /// User of the host that the monitor becomes, which takes root; 0 to stay root [default: for root
    /// one of the VM's own]
    #[arg(long, value_name = "NUMBER", help_heading = SANDBOX)]
    uid: Option<u32>,
    /// Its group [default: the user's number]
    #[arg(long, value_name = "NUMBER", help_heading = SANDBOX)]
    gid: Option<u32>,
    /// Most threads of the monitor on this host [default: 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(16..), help_heading = SANDBOX)]
    pids_limit: Option<u64>,
    /// Weight of CPU time beside others, from 2 to 262144, if a cgroup can be made [default: 1024]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=262_144), help_heading = SANDBOX)]
    cpu_shares: Option<u32>,
    /// Weight of block I/O beside others, from 10 to 1000, if a cgroup can be made
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(10..=1000), help_heading = SANDBOX)]
    blkio_weight: Option<u16>,
    /// Write the stages of the boot and the VM exits to FILE, as JSON
    #[arg(long, value_name = "FILE", help_heading = MACHINE)]
    stats: Option<PathBuf>,
    /// Try to start even if this machine's KVM can't run Linux guests
    #[arg(long, help_heading = MACHINE)]
    skip_kvm_check: bool,
}

/// The image and the command: `[IMAGE [COMMAND...]]`, or `[IMAGE] -- COMMAND...`. The parser swallows
/// a `--` before all words, and it makes a difference: `program` are the words of the whole command
/// line, of which `words` are the last.
pub(super) fn image_and_command(
    words: &[String],
    program: &[String],
) -> (Option<String>, Vec<String>) {
    let before = program.len().checked_sub(words.len() + 1);
    let only_command = before.is_some_and(|place| program[place] == "--");
    let mut words = words.iter().cloned();
    let image = if only_command { None } else { words.next() };
    let mut command: Vec<String> = words.collect();
    if !only_command && command.first().is_some_and(|word| word == "--") {
        command.remove(0);
    }
    (image, command)
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
        let program = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
        let program: Vec<String> = program.collect();
        let (image, command) = image_and_command(&self.words, &program);
        let mut config = file.overlaid(MachineConfig {
            kernel: self.kernel.clone(),
            rootfs: self.rootfs.clone(),
            rootfs_mode: self.rootfs_mode,
            initrd: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            disk: self.disk.clone(),
            memory: self.memory,
            mergeable: self.mergeable,
            balloon: None,
            cpus: self.cpus,
            boot: self.boot,
            name: self.name.clone(),
            vsock: self.vsock.clone(),
            volumes: self.volume.clone(),
            tmpfs: self.tmpfs.clone(),
            image,
            entrypoint: self.entrypoint.clone(),
            command,
            env: self.process.variables()?,
            workdir: self.process.workdir.clone(),
            user: self.process.user.clone(),
            hostname: self.hostname.clone(),
            interactive: self.process.interactive,
            tty: self.process.tty,
            timeout: self.timeout,
            stop_signal: self.stop_signal,
            stop_timeout: self.stop_timeout,
            ulimit: self.ulimit.clone(),
            net: self.net.clone(),
            ip: self.ip.clone(),
            mac: self.mac,
            mtu: self.mtu,
            dns: self.dns.clone(),
            publish: self.publish.clone(),
            publish_all: self.publish_all,
            exposed: Vec::new(),
            net_rate: self.net_rate,
            disk_rate: self.disk_rate,
            network: self.network.clone(),
            network_alias: self.network_alias.clone(),
            egress: self.egress.clone(),
            sandbox: self.sandbox,
            uid: self.uid,
            gid: self.gid,
            pids_limit: self.pids_limit,
            cpu_shares: self.cpu_shares,
            blkio_weight: self.blkio_weight,
        });
        if let Some(name) = &config.name {
            vm_name(name)?;
        }
        config.env = complete_env(&config.env)?;
        config.check_process()?;
        check_plain(&config)?;
        net::check(&config)?;
        Ok(config)
    }
}

impl RunArgs {
    /// The VM of `config`, with the image that it names, pulled if need be.
    fn new_vm(&self, mut config: MachineConfig, dirs: &Dirs) -> Result<NewVm, CliError> {
        if config.kernel.is_none() {
            // What it is started with again does not depend on what is the default then.
            config.kernel = Some(default_kernel(dirs)?);
        }
        // Its monitor may be started again from anywhere.
        resolve(&mut config, &std::env::current_dir())?;
        let (config, image) = self.with_image(config, dirs)?;
        Ok(NewVm {
            name: config.name.clone(),
            config,
            image,
            rm: self.rm,
            restart: self.restart,
            skip_kvm_check: self.skip_kvm_check,
        })
    }

    fn with_image(
        &self,
        config: MachineConfig,
        dirs: &Dirs,
    ) -> Result<(MachineConfig, Option<ImageUse>), CliError> {
        let Some(name) = config.image.clone() else {
            return Ok((config, None));
        };
        if config.rootfs.is_some() {
            return Err(format!(
                "there is an image, {name}, and --rootfs: leave out one, or write the command after --"
            )
            .into());
        }
        let image = images::resolve(&name, self.pull, dirs)?;
        let config = MachineConfig {
            rootfs: Some(image.path),
            ..config.with_image(&image.config)
        };
        let used = ImageUse {
            reference: name,
            digest: image.digest.to_string(),
        };
        Ok((config, Some(used)))
    }
}

/// Makes all paths of `config` absolute. Without a working directory, because it was removed, there
/// may be no others.
fn resolve(config: &mut MachineConfig, base: &std::io::Result<PathBuf>) -> Result<(), CliError> {
    match (base, config.relative_path()) {
        (Ok(base), _) => config.resolve_paths(base),
        (Err(_), None) => {}
        (Err(error), Some(path)) => {
            return Err(format!(
                "{path} is relative to the working directory, which can't be used: {error}; \
                 give an absolute path, or cd to a directory that exists",
                path = path.display()
            )
            .into());
        }
    }
    Ok(())
}

/// A plain boot runs the image's own init: options for a command would have no effect.
fn check_plain(config: &MachineConfig) -> Result<(), CliError> {
    if config.boot.unwrap_or_default() != BootMode::Plain {
        return Ok(());
    }
    let options = [
        ("--interactive", config.interactive),
        ("--tty", config.tty),
        ("--env", !config.env.is_empty()),
        ("--workdir", config.workdir.is_some()),
        ("--user", config.user.is_some()),
        ("--entrypoint", config.entrypoint.is_some()),
        ("--hostname", config.hostname.is_some()),
        ("--stop-signal", config.stop_signal.is_some()),
        ("--stop-timeout", config.stop_timeout.is_some()),
        ("--ulimit", !config.ulimit.is_empty()),
    ];
    match options.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((name, _)) => Err(format!(
            "--boot plain runs the image's own init, not a command: leave out {name}"
        )
        .into()),
    }
}

/// Boots a machine and waits for its end.
///
/// # Errors
/// If it can't be made, or can't go on.
pub fn run(args: &RunArgs) -> Result<ExitCode, CliError> {
    let mut stats = RunStats::default();
    stats.stage("main", monotonic_ns());
    let inherited = inherited_descriptors();
    let signals = Signals::take_all()?;
    let config = args.machine()?;
    let dirs = Dirs::from_env()?;
    let registry = Registry::open(&dirs)?;
    if args.detach {
        let id = life::run_detached(&registry, args.new_vm(config, &dirs)?)?;
        writeln!(std::io::stdout(), "{id}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let attach = Attach::new(config.interactive, config.tty, Ends::of_this_process())?;
    let around = Surroundings {
        dirs: &dirs,
        signals: &signals,
        attachment: Attachment::Attached(attach),
        stats,
        inherited,
    };
    let stats_failed =
        |path: &Path, error| format!("stats could not be written to {}: {error}", path.display());
    // Opened before the VM runs: afterwards this process can't open anything.
    let stats_file = match &args.stats {
        Some(path) => Some((
            path,
            File::create(path).map_err(|error| stats_failed(path, error))?,
        )),
        None => None,
    };
    let ended = life::run_attached(&registry, args.new_vm(config, &dirs)?, around)?;
    log_summary(&ended.stats);
    if let Some((path, file)) = stats_file {
        let written = ended.stats.write(file);
        written.map_err(|error| stats_failed(path, error))?;
    }
    Ok(report_end(&ended))
}

/// Tells what went wrong, if something did; the exit status.
fn report_end(ended: &Ended) -> ExitCode {
    report_console(&ended.console);
    if let Some(error) = &ended.error {
        super::report_line(error);
    }
    ended.status.into()
}

fn log_summary(stats: &RunStats) {
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

#[cfg(test)]
mod tests {
    use super::super::{Cli, Command};
    use super::*;
    use clap::Parser;

    #[test]
    fn without_a_working_directory_only_relative_paths_are_refused() {
        let gone = || Err(std::io::Error::from_raw_os_error(libc::ENOENT));
        let mut config = MachineConfig {
            kernel: Some("/k".into()),
            volumes: vec!["/d:/d".parse().unwrap(), "db:/db".parse().unwrap()],
            disk: Some("1G".parse().unwrap()),
            ..MachineConfig::default()
        };
        let before = config.clone();
        resolve(&mut config, &gone()).unwrap();
        assert_eq!(config, before);
        for relative in [
            MachineConfig {
                rootfs: Some("here/tree".into()),
                ..MachineConfig::default()
            },
            MachineConfig {
                volumes: vec!["./here:/d".parse().unwrap()],
                ..MachineConfig::default()
            },
            MachineConfig {
                disk: Some("here.raw,size=1G".parse().unwrap()),
                ..MachineConfig::default()
            },
        ] {
            let error = resolve(&mut relative.clone(), &gone()).unwrap_err();
            let error = error.to_string();
            assert!(
                error.contains("here") && error.contains("working directory"),
                "{error}"
            );
            assert!(error.contains("cd to"), "{error}");
        }
    }

    fn parsed(words: &str) -> (Option<String>, String) {
        let words = ["casita", "run"]
            .into_iter()
            .chain(words.split_whitespace());
        let words: Vec<String> = words.map(str::to_owned).collect();
        let Command::Run(args) = Cli::try_parse_from(&words).unwrap().command else {
            panic!("not a run");
        };
        let (image, command) = image_and_command(&args.words, &words);
        (image, command.join(" "))
    }

    #[test]
    fn image_and_command_are_told_apart_as_in_docker() {
        let image = |name: &str| Some(name.to_owned());
        assert_eq!(parsed(""), (None, String::new()));
        assert_eq!(parsed("-- ls -l"), (None, "ls -l".to_owned()));
        assert_eq!(parsed("-m 64M nginx"), (image("nginx"), String::new()));
        assert_eq!(parsed("nginx ls -l"), (image("nginx"), "ls -l".to_owned()));
        assert_eq!(
            parsed("nginx -- ls -l"),
            (image("nginx"), "ls -l".to_owned())
        );
        // What comes after the image is the command's, whatever it looks like.
        assert_eq!(parsed("nginx -c x"), (image("nginx"), "-c x".to_owned()));
        assert_eq!(
            parsed("nginx sh -c x -- y"),
            (image("nginx"), "sh -c x -- y".to_owned())
        );
        assert_eq!(parsed("-- sh -- y"), (None, "sh -- y".to_owned()));
    }
}
