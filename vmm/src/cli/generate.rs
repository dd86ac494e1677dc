//! `casita generate`: shell completions and man pages, made from the same description as `--help`.

use std::fs;
use std::io::Write;
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
pub fn generate(args: &GenerateArgs, command: Command) -> Result<ExitCode, CliError> {
    match &args.what {
        What::Completions { shell } => {
            complete(*shell, &command, &mut std::io::stdout());
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

/// Writes completions for all commands but the hidden ones, which `clap_complete` would offer.
fn complete(shell: Shell, command: &Command, out: &mut dyn Write) {
    let shown = command.get_subcommands().filter(|one| !one.is_hide_set());
    let mut shown = Command::new("casita")
        .version(env!("CARGO_PKG_VERSION"))
        .args(command.get_arguments().cloned())
        .subcommands(shown.cloned());
    clap_complete::generate(shell, &mut shown, "casita", out);
}

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;
    use clap::CommandFactory;

    fn completions(shell: Shell) -> String {
        let mut text = Vec::new();
        complete(shell, &Cli::command(), &mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn completions_offer_commands_of_commands_and_nothing_hidden() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = completions(shell);
            assert!(text.contains("import"), "{shell}");
            assert!(text.contains("verbose"), "{shell}");
            // A hidden command, and the option that another one alone has.
            for hidden in ["sandbox-vm", "last-delay"] {
                assert!(!text.contains(hidden), "{shell} {hidden}");
            }
        }
    }

    #[test]
    fn each_command_has_a_man_page_and_hidden_ones_have_none() {
        let place = tempfile::tempdir().unwrap();
        let what = What::Man {
            dir: place.path().join("man"),
        };
        generate(&GenerateArgs { what }, Cli::command()).unwrap();
        let page = |name: &str| place.path().join("man").join(name).is_file();
        assert!(page("casita.1") && page("casita-run.1") && page("casita-image-import.1"));
        assert!(page("casita-sandbox.1") && !page("casita-sandbox-vm.1"));
        assert!(!page("casita-monitor.1"));
    }
}
