//! What this host gives to a sandbox, found out by a process that is confined and looked at.

#![allow(unsafe_code, reason = "fork")]

use std::io::{self, Read, Write};

use rustix::process::{Pid, WaitOptions, waitpid};

use super::state::{LayerState, read};
use super::{ConfineError, Confined, Confinement, Ids, enter};

/// Layer by layer. This process has to have one thread.
///
/// # Errors
/// If the host has no process left, or a process can't be confined at all: the reason.
pub fn trial() -> Result<Vec<LayerState>, String> {
    try_it().map_err(|error| error.to_string())?
}

fn try_it() -> io::Result<Result<Vec<LayerState>, String>> {
    let (mut told, tell) = io::pipe()?;
    let (stay, go) = io::pipe()?;
    // SAFETY: this process has one thread, so that its copy is whole; it ends without returning.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            drop(go);
            confine_and_wait(tell, stay);
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(0) }
        }
        child => Pid::from_raw(child).ok_or(io::ErrorKind::InvalidData)?,
    };
    drop((tell, stay));
    let mut line = Vec::new();
    let mut byte = [0];
    while told.read(&mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
    }
    let layers = match serde_json::from_slice::<Result<Confined, String>>(&line) {
        Ok(Ok(confined)) => read(child.as_raw_pid().cast_unsigned(), Some(&confined))
            .ok_or_else(|| "the process that was confined is gone".to_owned()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err("the process that was confined ended without a word".to_owned()),
    };
    drop(go);
    while let Err(rustix::io::Errno::INTR) = waitpid(Some(child), WaitOptions::empty()) {}
    Ok(layers)
}

fn confine_and_wait(mut tell: io::PipeWriter, mut stay: io::PipeReader) {
    let confined = enter(Confinement {
        ids: Some(Ids::of_vm("")),
        ..Confinement::default()
    });
    let confined = confined.map_err(|error: ConfineError| crate::cli::in_one_line(&error));
    let told = serde_json::to_vec(&confined).unwrap_or_default();
    let _ = tell.write_all(&told).and_then(|()| tell.write_all(b"\n"));
    let _ = stay.read(&mut [0]);
}
