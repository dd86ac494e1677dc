//! `casita logs`.

use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use clap::Args;
use rustix::event::{EventfdFlags, eventfd};

use super::{CliError, vms};
use crate::vms::Vm;
use crate::vms::log::Show;

/// Options of `casita logs`.
#[derive(Debug, Args)]
#[command(
    after_help = "What is shown is what a VM wrote while nobody was attached: at least the last \
                  32 MiB of it. Its standard output goes to standard output, its standard error to \
                  standard error."
)]
pub struct LogsArgs {
    /// The VM, by name or ID
    #[arg(value_name = "VM")]
    vm: String,
    /// Go on until the VM ends
    #[arg(short, long)]
    follow: bool,
    /// Put the time in front of each line
    #[arg(short, long)]
    timestamps: bool,
    /// Show only so many lines at the end
    #[arg(short = 'n', long, value_name = "N", value_parser = tail, default_value = "all")]
    tail: Tail,
}

#[derive(Debug, Clone, Copy)]
struct Tail(Option<u64>);

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail(None)),
        number => number
            .parse()
            .map(|lines| Tail(Some(lines)))
            .map_err(|_| format!("{text:?} is not a number of lines: give one, or all")),
    }
}

/// Shows what a VM wrote.
///
/// # Errors
/// If there is no such VM, or its log can't be read or printed.
pub fn logs(args: &LogsArgs) -> Result<ExitCode, CliError> {
    let vm = vms::registry()?.find(&args.vm)?;
    let show = Show {
        tail: args.tail.0,
        timestamps: args.timestamps,
    };
    let mut stdout = BufWriter::new(io::stdout().lock());
    let mut stderr = io::stderr();
    let reader = vm.log_reader();
    let shown = if args.follow {
        let end = end_of(vm)?;
        reader.follow(show, &end, &mut stdout, &mut stderr)
    } else {
        reader.print(show, &mut stdout, &mut stderr)
    };
    match shown.and_then(|()| stdout.flush()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(format!("the log of {} could not be shown: {error}", args.vm).into()),
    }
}

/// Becomes readable when the VM has ended.
fn end_of(vm: Vm) -> io::Result<OwnedFd> {
    let end = eventfd(0, EventfdFlags::CLOEXEC)?;
    let told = end.try_clone()?;
    std::thread::spawn(move || {
        // A VM that is gone has ended, too.
        let _ = vm.wait();
        let _ = rustix::io::write(&told, &1_u64.to_ne_bytes());
    });
    Ok(end)
}
