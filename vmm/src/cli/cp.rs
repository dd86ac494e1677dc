//! `casita cp`.

use std::process::ExitCode;

use clap::Args;

use super::CliError;
use crate::cp::rules::{Place, RuleError};
use crate::cp::{GuestFiles, Options, from_guest, to_guest};
use crate::dirs::Dirs;
use crate::vms::Registry;

/// Options of `casita cp`.
#[derive(Debug, Args)]
#[command(after_help = "\
A directory is copied with all that is in it: into a directory that exists under its own name, with \
/. behind it only its content, and else under the name that is given. `-` stands for a tar archive at \
standard input or output.

Examples:
  casita cp notes.txt db:/tmp
  casita cp db:/var/log ./logs
  casita cp db:/etc - | tar -t")]
pub struct CpArgs {
    /// Keep owners, and as root devices and extended attributes
    #[arg(short, long)]
    archive: bool,
    /// Copy what SOURCE leads to if it is a symbolic link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// What to copy
    #[arg(value_name = "PATH|VM:PATH|-")]
    source: Place,
    /// Where to
    #[arg(value_name = "PATH|VM:PATH|-")]
    target: Place,
}

/// Copies files into a running VM or out of one.
///
/// # Errors
/// If anything of it can't be copied.
pub fn cp(args: &CpArgs) -> Result<ExitCode, CliError> {
    let options = Options {
        archive: args.archive,
        follow: args.follow_link,
    };
    let files = |vm: &str| -> Result<GuestFiles, CliError> {
        let vm = Registry::open(&Dirs::from_env()?)?.find(vm)?;
        if vm.is_owned()? {
            Ok(GuestFiles::of(&vm.runtime_dir()))
        } else {
            let name = &vm.record().name;
            Err(format!("VM {name} is not running: casita start {name}").into())
        }
    };
    match (&args.source, &args.target) {
        (Place::Guest { vm, path }, Place::Host(target)) => {
            from_guest(&files(vm)?, path, Some(target), options)?;
        }
        (Place::Guest { vm, path }, Place::Stream) => {
            from_guest(&files(vm)?, path, None, options)?;
        }
        (Place::Host(source), Place::Guest { vm, path }) => {
            to_guest(&files(vm)?, Some(source), path, options)?;
        }
        (Place::Stream, Place::Guest { vm, path }) => {
            to_guest(&files(vm)?, None, path, options)?;
        }
        _ => return Err(RuleError::OneVm.into()),
    }
    Ok(ExitCode::SUCCESS)
}
