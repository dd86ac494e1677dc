//! The command line: verbs, flags and exit codes as Docker has them.

pub mod doctor;
pub mod generate;
pub mod image;
pub mod run;
pub mod show;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use log::LevelFilter;

use crate::images::ImagesError;
use crate::progress;

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
    /// Say more: causes of errors, what is done; twice for details
    #[arg(short, long, global = true, display_order = 100, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Say nothing but errors
    #[arg(
        short,
        long,
        global = true,
        display_order = 101,
        conflicts_with = "verbose"
    )]
    quiet: bool,
}

impl Global {
    /// Whether causes of errors are asked for.
    pub fn is_verbose(&self) -> bool {
        self.verbose > 0
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a VM and run a command in it
    Run(Box<run::RunArgs>),
    /// Pull, import, list and remove images
    Image(image::ImageArgs),
    /// As `image pull`
    #[command(hide = true)]
    Pull(image::PullArgs),
    /// As `image ls`
    #[command(hide = true)]
    Images(image::LsArgs),
    /// As `image rm`
    #[command(hide = true)]
    Rmi(image::RmArgs),
    /// Tell what this machine can do, why not, and what mends it
    Doctor(doctor::DoctorArgs),
    /// Print shell completions or write man pages
    Generate(generate::GenerateArgs),
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
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report_usage(&error),
    };
    init_log(cli.global);
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Image(args) => image::image(&args, cli.global),
        Command::Pull(args) => image::pull(&args, cli.global),
        Command::Images(args) => image::ls(&args, cli.global),
        Command::Rmi(args) => image::rm(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Generate(args) => generate::generate(&args, Cli::command()),
    };
    result.unwrap_or_else(|error| {
        let told = error.downcast_ref::<ImagesError>();
        if !told.is_some_and(ImagesError::is_told) {
            report(&*error, cli.global.verbose > 0);
        }
        EXIT_CASITA.into()
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
    let tips = paragraphs.map(words).find(|text| text.starts_with("tip: "));
    let tip = tips.map_or_else(String::new, |tip| format!("; {tip}"));
    format!("{what}{tip}; more with --help")
}

/// One line for people: what failed and its root. With `chain`, every cause between on a line of
/// its own.
pub fn report(error: &(dyn Error + 'static), chain: bool) {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    let mut line = error.to_string();
    if let (false, Some(root)) = (chain, causes.last())
        && !line.contains(root.as_str())
    {
        line = format!("{line}: {root}");
    }
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "casita: {}", one_line(&line));
    if chain {
        for cause in causes {
            let _ = writeln!(stderr, "  because: {}", one_line(&cause));
        }
    }
}

/// Without characters that would break the line or drive the terminal.
fn one_line(text: &str) -> String {
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
    let level = match (global.quiet, global.verbose) {
        (true, _) => LevelFilter::Error,
        (false, 0) => LevelFilter::Warn,
        (false, 1) => LevelFilter::Info,
        (false, _) => LevelFilter::Debug,
    };
    progress::set_quiet(global.quiet);
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
