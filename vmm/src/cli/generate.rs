//! `casita generate`: shell completions and man pages, made from the same description as `--help`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command, Subcommand};
use clap_complete::Shell;

use super::CliError;

/// Options of `casita generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print completions for a shell to standard output
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Write the man pages
    Man {
        /// Folder to write them to; made if it is missing
        dir: PathBuf,
    },
}

/// Generates what was asked for from `command`, the program's description.
///
/// # Errors
/// If it can't be written.
pub fn generate(args: &GenerateArgs, mut command: Command) -> Result<ExitCode, CliError> {
    match &args.what {
        What::Completions { shell } => {
            clap_complete::generate(*shell, &mut command, "casita", &mut std::io::stdout());
        }
        What::Man { dir } => {
            let failed = |error| {
                format!(
                    "man pages could not be written to {}: {error}",
                    dir.display()
                )
            };
            fs::create_dir_all(dir).map_err(failed)?;
            clap_mangen::generate_to(command, dir).map_err(failed)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
