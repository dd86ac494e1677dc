//! What becomes of the command: its environment, where it is looked for, and what to say when it
//! cannot be run. These are the rules of `execvp` and of container runtimes.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::errno;
use crate::ports::{EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND};
use crate::wire::ProcessSpec;

/// Where commands are looked for unless the environment says otherwise.
pub const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A shell for a process without a command: the file, and its name when it is a login shell and when
/// it is not. The first one that the root has is taken.
pub const SHELLS: [(&[u8], &[u8], &[u8]); 2] = [
    (b"/bin/bash", b"-bash", b"bash"),
    (b"/bin/sh", b"-sh", b"sh"),
];

/// The environment of `process` on the machine `hostname`: its own variables, and the agent's
/// defaults for those that it does not name. Of several variables with one name the last counts, in
/// the place of the first. Its user's home directory is `home`.
pub fn environment(process: &ProcessSpec, hostname: &str, home: &[u8]) -> Vec<Vec<u8>> {
    let mut env: Vec<Vec<u8>> = Vec::with_capacity(process.env.len() + 4);
    for variable in &process.env {
        match env
            .iter_mut()
            .find(|known| name_of(known) == name_of(variable))
        {
            Some(known) => known.clone_from(variable),
            None => env.push(variable.clone()),
        }
    }
    let terminal: Option<&[u8]> = process.terminal.map(|_| b"linux".as_slice());
    let defaults: [(&[u8], Option<&[u8]>); 4] = [
        (b"PATH", Some(DEFAULT_PATH)),
        (b"HOME", Some(home)),
        (b"HOSTNAME", Some(hostname.as_bytes())),
        (b"TERM", terminal),
    ];
    for (name, value) in defaults {
        if let Some(value) = value
            && variable(&env, name).is_none()
        {
            env.push([name, b"=", value].concat());
        }
    }
    env
}

/// The value of the variable `name` in `env`.
pub fn variable<'a>(env: &'a [Vec<u8>], name: &[u8]) -> Option<&'a [u8]> {
    env.iter()
        .find_map(|variable| variable.strip_prefix(name)?.strip_prefix(b"="))
}

fn name_of(variable: &[u8]) -> &[u8] {
    variable
        .split(|byte| *byte == b'=')
        .next()
        .unwrap_or(variable)
}

/// The files to try for the command `name`, in order: `name` itself if it has a slash, otherwise
/// `name` in each directory of `path` (an empty one is the working directory).
pub fn candidates<'a>(name: &'a [u8], path: &'a [u8]) -> impl Iterator<Item = Vec<u8>> + 'a {
    let direct = name.contains(&b'/').then(|| name.to_vec());
    let searched = direct.is_none() && !name.is_empty();
    let in_path = path
        .split(|byte| *byte == b':')
        .filter(move |_| searched)
        .map(move |dir| match dir {
            [] => name.to_vec(),
            [.., b'/'] => [dir, name].concat(),
            _ => [dir, b"/", name].concat(),
        });
    direct.into_iter().chain(in_path)
}

/// What trying the candidates of a command came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Attempts {
    /// The error that will be reported, should no candidate run.
    error: Option<i32>,
}

impl Attempts {
    /// Notes that executing a candidate failed with `errno`, and whether to try the next one, as
    /// `execvp` does: a candidate that is not there or may not be run leaves hope for the others.
    pub fn failed(&mut self, errno: i32) -> bool {
        let absent = matches!(errno, errno::ENOENT | errno::ENOTDIR);
        if !absent || self.error.is_none() {
            self.error = Some(errno);
        }
        absent || errno == errno::EACCES
    }

    /// The exit status and the line for people: 127 when nothing was found, 126 when what was
    /// found cannot be run. `exists` tells whether a candidate is there although the kernel did not
    /// find it: then it is the interpreter that is missing.
    pub fn verdict(self, name: &[u8], exists: bool) -> (u8, String) {
        let shown = String::from_utf8_lossy(name);
        let searched = !name.contains(&b'/');
        match self.error.unwrap_or(errno::ENOENT) {
            errno::ENOENT if exists => (
                EXIT_NOT_EXECUTABLE,
                format!(
                    "exec {shown:?}: the interpreter that it names (after #!, or its dynamic \
                     loader) is not there"
                ),
            ),
            errno::ENOENT | errno::ENOTDIR if searched => {
                (EXIT_NOT_FOUND, format!("exec {shown:?}: not found in PATH"))
            }
            error => {
                let absent = matches!(error, errno::ENOENT | errno::ENOTDIR);
                let status = if absent {
                    EXIT_NOT_FOUND
                } else {
                    EXIT_NOT_EXECUTABLE
                };
                (
                    status,
                    format!("exec {shown:?}: {}", errno::describe(error)),
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
