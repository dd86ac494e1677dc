//! The command line: verbs, flags and exit codes as Docker has them.

mod ask;
pub mod bench;
pub mod cp;
mod describe;
pub mod doctor;
pub mod exec;
pub mod generate;
pub mod image;
pub mod inspect;
mod json;
pub mod lifecycle;
pub mod logs;
pub mod network;
pub mod port;
pub mod process_args;
pub mod ps;
pub mod run;
pub mod sandbox;
pub mod stats;
mod swift;
mod table;
pub mod top;
mod vms;
pub mod volume;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use log::LevelFilter;

use crate::heap;
use crate::images::ImagesError;
use crate::life::StartFailure;
use crate::progress;
use crate::sandbox::SandboxError;

/// Casita's own failure, as opposed to the command's exit status.
pub const EXIT_CASITA: u8 = 125;

/// A KVM micro-VM monitor: each workload its own Linux kernel, at a container's price.
#[derive(Debug, Parser)]
#[command(name = "casita", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Copy, Args)]
pub struct Global {
    /// Say more: causes of errors, what is done; twice for details. As `-v` before the command
    #[arg(long, global = true, display_order = 100, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Say nothing but errors. As `-q` before the command
    #[arg(long, global = true, display_order = 101, conflicts_with = "verbose")]
    quiet: bool,
    // Behind a command these letters can mean something else, as with Docker.
    #[arg(short = 'v', hide = true, action = clap::ArgAction::Count)]
    verbose_letter: u8,
    #[arg(short = 'q', hide = true, conflicts_with_all = ["verbose", "verbose_letter"])]
    quiet_letter: bool,
}

impl Global {
    /// Whether causes of errors are asked for.
    pub fn is_verbose(self) -> bool {
        self.verbosity() > 0
    }

    fn verbosity(self) -> u8 {
        self.verbose.saturating_add(self.verbose_letter)
    }

    fn is_quiet(self) -> bool {
        self.quiet || self.quiet_letter
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a VM and run a command in it
    Run(Box<run::RunArgs>),
    /// Run untrusted code in a VM of its own, within limits, and leave nothing of it
    Sandbox(Box<sandbox::SandboxArgs>),
    /// Run a command in a running VM
    Exec(exec::ExecArgs),
    /// List VMs
    Ps(ps::PsArgs),
    /// Show what a detached VM wrote
    Logs(logs::LogsArgs),
    /// Ask VMs to end, then end them
    Stop(lifecycle::StopArgs),
    /// End VMs at once, or send their commands a signal
    Kill(lifecycle::KillArgs),
    /// Start VMs that have ended
    Start(lifecycle::VmsArgs),
    /// Stop VMs and start them again
    Restart(lifecycle::StopArgs),
    /// Remove VMs with their own disks
    Rm(lifecycle::RmArgs),
    /// Wait until VMs have ended, and print their exit codes
    Wait(lifecycle::VmsArgs),
    /// Stop VMs in their tracks
    Pause(lifecycle::VmsArgs),
    /// Let paused VMs go on
    Resume(lifecycle::VmsArgs),
    /// Tell all that is known of VMs
    Inspect(inspect::InspectArgs),
    /// Show what VMs use
    Stats(stats::StatsArgs),
    /// List the processes in a VM
    Top(top::TopArgs),
    /// Tell where a VM's ports are reached
    Port(port::PortArgs),
    /// Copy files into a running VM or out of one
    Cp(cp::CpArgs),
    /// Pull, import, list and remove images
    Image(image::ImageArgs),
    /// Make, list and remove networks, on which VMs reach each other by name
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Make, list, remove, export and import volumes
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Tell what this machine can do, why not, and what mends it
    Doctor(doctor::DoctorArgs),
    /// Measure VMs beside containers: start, memory, disk, network
    Bench(bench::BenchArgs),
    /// Print shell completions or write man pages
    Generate(generate::GenerateArgs),
    /// As `image pull`
    #[command(hide = true)]
    Pull(image::PullArgs),
    /// As `image ls`
    #[command(hide = true)]
    Images(image::LsArgs),
    /// As `image rm`
    #[command(hide = true)]
    Rmi(image::RmArgs),
    #[command(hide = true)]
    SandboxVm,
    #[command(hide = true)]
    Monitor(lifecycle::MonitorArgs),
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Runs the program with the process's own arguments.
pub fn main() -> ExitCode {
    heap::share();
    let words: Vec<_> = std::env::args_os().collect();
    let cli = match swift::parse(&words).map_or_else(|| Cli::try_parse_from(&words), Ok) {
        Ok(cli) => cli,
        Err(error) => return report_usage(&error),
    };
    init_log(cli.global);
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Sandbox(args) => sandbox::sandbox(&args),
        Command::SandboxVm => crate::sandbox::vm_process(),
        Command::Cp(args) => cp::cp(&args),
        Command::Exec(args) => exec::exec(&args),
        Command::Ps(args) => ps::ps(&args),
        Command::Logs(args) => logs::logs(&args),
        Command::Wait(args) => lifecycle::wait(&args),
        Command::Pause(args) => lifecycle::pause(&args),
        Command::Resume(args) => lifecycle::resume(&args),
        Command::Stop(args) => lifecycle::stop(&args),
        Command::Kill(args) => lifecycle::kill(&args),
        Command::Start(args) => lifecycle::start(&args),
        Command::Restart(args) => lifecycle::restart(&args),
        Command::Rm(args) => lifecycle::rm(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Stats(args) => stats::stats(&args),
        Command::Top(args) => top::top(&args),
        Command::Network(command) => network::network(&command),
        Command::Port(args) => port::port(&args),
        Command::Volume(command) => volume::volume(&command),
        Command::Monitor(args) => lifecycle::monitor(&args),
        Command::Image(args) => image::image(&args, cli.global),
        Command::Pull(args) => image::pull(&args, cli.global),
        Command::Images(args) => image::ls(&args, cli.global),
        Command::Rmi(args) => image::rm(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Generate(args) => generate::generate(&args, Cli::command()),
    };
    result.unwrap_or_else(|error| {
        let told = error.downcast_ref::<ImagesError>();
        let told = told.is_some_and(ImagesError::is_told)
            || matches!(error.downcast_ref(), Some(SandboxError::Told));
        if !told {
            report(&*error, cli.global.is_verbose());
        }
        let status = error.downcast_ref::<StartFailure>();
        status.map_or(EXIT_CASITA, |failure| failure.status).into()
    })
}

/// Help is printed as it is; a wrong command line is told in one line like any other failure.
pub fn report_usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    let help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if help || !error.use_stderr() {
        let _ = error.print();
        return if help {
            EXIT_CASITA.into()
        } else {
            ExitCode::SUCCESS
        };
    }
    let message: CliError = usage_message(&error.to_string()).into();
    report(&*message, false);
    // Docker's: a wrong flag is our failure, not the command's.
    EXIT_CASITA.into()
}

/// What is wrong with a command line: the first paragraph of clap's text, and its tips.
fn usage_message(text: &str) -> String {
    let mut paragraphs = text.split("\n\n");
    let words = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let what = words(paragraphs.next().unwrap_or_default());
    let what = what.strip_prefix("error: ").unwrap_or(&what).to_owned();
    // "To pass '-p' as a value" is hardly what anybody wanted.
    let helps = |text: &String| text.starts_with("tip: ") && !text.starts_with("tip: to pass ");
    let tips = paragraphs.map(words).find(helps);
    let tip = tips.map_or_else(String::new, |tip| format!("; {tip}"));
    format!("{what}{tip}; more with --help")
}

/// One line for people: what failed and its root. With `chain`, every cause between on a line of
/// its own.
pub fn report(error: &(dyn Error + 'static), chain: bool) {
    let mut stderr = std::io::stderr().lock();
    let line = if chain {
        error.to_string()
    } else {
        in_one_line(error)
    };
    let _ = writeln!(stderr, "casita: {}", one_line(&line));
    if chain {
        for cause in causes(error) {
            let _ = writeln!(stderr, "  because: {}", one_line(&cause));
        }
    }
}

fn causes(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    causes
}

/// What failed, and the root of it.
pub(crate) fn in_one_line(error: &(dyn Error + 'static)) -> String {
    let line = error.to_string();
    match causes(error).last() {
        Some(root) if !line.contains(root.as_str()) => format!("{line}: {root}"),
        _ => line,
    }
}

/// One line for people about what went wrong.
fn report_line(text: &str) {
    let mut stderr = std::io::stderr().lock();
    // A closed standard error is no reason to fail.
    let _ = writeln!(stderr, "casita: {}", one_line(text));
}

/// The last that the guest's kernel and agent said.
fn report_console(lines: &[String]) {
    for line in lines {
        report_line(&format!("console: {line}"));
    }
}

/// Without characters that would break the line or drive the terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

struct StderrLog;

/// Libraries that log what they also return, so that people would be told twice.
const TELL_TWICE: [&str; 4] = ["hyper", "oci_client", "reqwest", "rustls"];

impl log::Log for StderrLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        let target = metadata.target();
        log::max_level() >= LevelFilter::Debug
            || !TELL_TWICE.iter().any(|name| target.starts_with(name))
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut stderr = std::io::stderr().lock();
        // A closed standard error is no reason to fail.
        let _ = writeln!(
            stderr,
            "casita: {}: {}",
            record.level().as_str().to_lowercase(),
            one_line(&record.args().to_string())
        );
    }

    fn flush(&self) {}
}

/// Sets how much is said, by the log and by progress.
pub fn init_log(global: Global) {
    let level = match (global.is_quiet(), global.verbosity()) {
        (true, _) => LevelFilter::Error,
        (false, 0) => LevelFilter::Warn,
        (false, 1) => LevelFilter::Info,
        (false, _) => LevelFilter::Debug,
    };
    progress::set_quiet(global.is_quiet());
    if log::set_logger(&StderrLog).is_ok() {
        log::set_max_level(level);
    }
}

/// The error that `main` reports.
pub type CliError = Box<dyn Error + 'static>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_command_line_is_told_in_one_line() {
        let told = |words: &[&str]| {
            let words = ["casita"].iter().chain(words);
            usage_message(&Cli::try_parse_from(words).unwrap_err().to_string())
        };
        assert_eq!(
            told(&["run", "--cpus", "0"]),
            "invalid value '0' for '--cpus <N>': 0 vCPUs are not possible: give 1 to 32; more with \
             --help"
        );
        let unknown = told(&["run", "--dsik", "2G"]);
        assert!(unknown.contains("'--dsik' found; tip: "), "{unknown}");
        assert!(!unknown.contains('\n'), "{unknown}");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(one_line("a\nb\x1b[2J"), "a\\nb\\u{1b}[2J");
    }
}
