//! Environment variables, from the command line and from files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why variables were refused.
#[derive(Debug, Error)]
pub enum EnvError {
    /// The file can't be read.
    #[error("environment file {path} could not be read", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line of it is not a variable.
    #[error("environment file {path}, line {line}: {problem}", path = path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Not a variable.
    #[error("environment variable {0:?} has no name: write NAME=value, or NAME for casita's own")]
    NoName(String),
}

/// More than any list of variables that fits into a process.
const MAX_FILE: u64 = 1 << 20;

/// Completes variables: `NAME` alone stands for the value that `lookup` has, and for nothing if it
/// has none.
///
/// # Errors
/// If one has no name.
pub fn resolve_env(
    variables: &[String],
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>, EnvError> {
    let mut resolved = Vec::with_capacity(variables.len());
    for variable in variables {
        match variable.split_once('=') {
            Some(("", _)) => return Err(EnvError::NoName(variable.clone())),
            Some(_) => resolved.push(variable.clone()),
            None if variable.is_empty() => return Err(EnvError::NoName(variable.clone())),
            None => resolved.extend(lookup(variable).map(|value| format!("{variable}={value}"))),
        }
    }
    Ok(resolved)
}

/// The variables of a file: a line for each, `NAME=value` or `NAME`, without quotes; lines that
/// begin with `#` do not count.
///
/// # Errors
/// If it can't be read, or a line has no name or a blank in it.
pub fn read_env_file(path: &Path) -> Result<Vec<String>, EnvError> {
    let read = |source| EnvError::Read {
        path: path.to_owned(),
        source,
    };
    let meta = fs::metadata(path).map_err(read)?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        let problem = "not a regular file of at most 1 MiB";
        return Err(read(io::Error::other(problem)));
    }
    let text = fs::read_to_string(path).map_err(read)?;
    parse(&text).map_err(|(line, problem)| EnvError::Line {
        path: path.to_owned(),
        line,
        problem,
    })
}

fn parse(text: &str) -> Result<Vec<String>, (usize, &'static str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut variables = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() {
            return Err((number, "no name before '='"));
        }
        if name.contains(char::is_whitespace) {
            return Err((number, "a blank in the variable's name"));
        }
        variables.push(line.to_owned());
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_takes_the_hosts_value_or_nothing() {
        let lookup = |name: &str| (name == "HERE").then(|| "x=y".to_owned());
        let given = ["A=1", "HERE", "MISSING", "EMPTY="].map(str::to_owned);
        let resolved = resolve_env(&given, &lookup).unwrap();
        assert_eq!(resolved, ["A=1", "HERE=x=y", "EMPTY="]);
        for bad in ["", "=x"] {
            assert!(resolve_env(&[bad.to_owned()], &lookup).is_err());
        }
    }

    #[test]
    fn a_file_has_a_variable_in_each_line_and_quotes_are_bytes() {
        let text = "\u{feff}# comment\n\nA=1\r\n  B=\"two words\" # kept\nC\n";
        assert_eq!(parse(text).unwrap(), ["A=1", "B=\"two words\" # kept", "C"]);
        assert_eq!(parse("A=1\nB C=2\n").unwrap_err().0, 2);
        assert_eq!(parse("=1\n").unwrap_err().0, 1);
    }
}
