//! Questions before something is removed.

use std::io::{self, IsTerminal, Write};

use super::CliError;

/// Whether the person at the terminal says yes to what `question` tells.
///
/// # Errors
/// If nobody can be asked.
pub fn confirmed(question: &str) -> Result<bool, CliError> {
    if !io::stdin().is_terminal() {
        return Err("there is no terminal to ask on; --force removes without asking".into());
    }
    let mut stderr = io::stderr();
    write!(stderr, "{question} [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "y" | "yes"
    ))
}
