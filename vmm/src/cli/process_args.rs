//! What `run` and `exec` have in common: how a process is to run.

use std::path::PathBuf;

use clap::Args;

use crate::process_config::{EnvError, overlay_env, read_env_file, resolve_env};

/// Options of a process.
#[derive(Debug, Clone, Default, Args)]
pub struct ProcessArgs {
    /// Let the command read the terminal; a pipe or file it reads anyway
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal [default: as -it if standard input and output are terminals and
    /// neither is said]
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable; without a value, to casita's own
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Set the variables that FILE has, one in a line
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Working directory of the command, made if it is missing
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Who runs the command, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
}

impl ProcessArgs {
    /// The variables of files and options, in which the latter go over the former.
    ///
    /// # Errors
    /// If a file can't be read or a variable has no name.
    pub fn variables(&self) -> Result<Vec<String>, EnvError> {
        let mut variables = Vec::new();
        for file in &self.env_file {
            variables.extend(read_env_file(file)?);
        }
        variables.extend(self.env.iter().cloned());
        complete_env(&variables)
    }
}

/// Gives variables without a value our own, and drops what is said twice.
///
/// # Errors
/// If one has no name.
pub fn complete_env(variables: &[String]) -> Result<Vec<String>, EnvError> {
    let resolved = resolve_env(variables, &|name| std::env::var(name).ok())?;
    Ok(overlay_env(&[], &resolved))
}
