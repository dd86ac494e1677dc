//! Running the command inside the lab, with its three streams on three ports.

use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::init::open_port;
use crate::request::Request;
use crate::stream::{self, Port};
use crate::sys;

/// Number of the port for the request and the exit status.
pub const CONTROL: u32 = 1;
/// Number of the port for standard input.
pub const INPUT: u32 = 2;
/// Number of the port for standard output.
pub const OUTPUT: u32 = 3;
/// Number of the port for standard error.
pub const ERROR: u32 = 4;

/// Set when nobody reads the command's standard output any more.
static OUTPUT_STOP: AtomicBool = AtomicBool::new(false);
/// The same for standard error.
static ERROR_STOP: AtomicBool = AtomicBool::new(false);

/// Runs the command to its end, ends everything it left running, and reports its status.
///
/// # Errors
/// When a port fails; a command that cannot be started is reported as a shell would.
pub fn run(request: &Request, mut control: File) -> Result<(), Box<dyn Error>> {
    let input = open_port(INPUT)?;
    let output = open_port(OUTPUT)?;
    let mut error = open_port(ERROR)?;
    let (out_read, out_write) = io::pipe()?;
    let (err_read, err_write) = io::pipe()?;
    let (in_read, in_write) = io::pipe()?;
    stream::write_frame(&mut control, b"")?;
    let status = match spawn(request, in_read.into(), out_write.into(), err_write.into()) {
        Ok(child) => {
            thread::spawn(move || stream::receive(Port(input), in_write, |_| ()));
            let senders = [
                thread::spawn(move || stream::send(out_read, output, &OUTPUT_STOP)),
                thread::spawn(move || stream::send(err_read, error, &ERROR_STOP)),
            ];
            let stops = control.try_clone()?;
            thread::spawn(move || watch_stops(stops));
            let status = wait(child.id());
            for sender in senders {
                sender.join().map_err(|_| "a stream's thread panicked")??;
            }
            status
        }
        Err(reason) => {
            let name = request.arguments.first().cloned().unwrap_or_default();
            let message = format!("lab: {}: {reason}\n", name.display());
            stream::write_frame(&mut error, message.as_bytes())?;
            for mut port in [output, error] {
                stream::write_frame(&mut port, b"")?;
            }
            if reason.kind() == io::ErrorKind::NotFound {
                127
            } else {
                126
            }
        }
    };
    sys::sync(Path::new(&request.share))?;
    stream::write_frame(&mut control, &[status])?;
    // The relay ends the lab, QEMU and all, as soon as it has read everything.
    loop {
        thread::park();
    }
}

/// Reads which of the output ports has lost its reader on the machine.
fn watch_stops(control: File) {
    let mut control = Port(control);
    let mut payload = Vec::new();
    while stream::read_frame(&mut control, &mut payload).is_ok() {
        match payload.first().copied().map(u32::from) {
            Some(OUTPUT) => OUTPUT_STOP.store(true, Ordering::Relaxed),
            Some(ERROR) => ERROR_STOP.store(true, Ordering::Relaxed),
            _ => {}
        }
    }
}

fn spawn(request: &Request, input: Stdio, output: Stdio, error: Stdio) -> io::Result<Child> {
    let (name, arguments) = request
        .arguments
        .split_first()
        .ok_or(io::ErrorKind::InvalidInput)?;
    if !Path::new(&request.directory).is_dir() {
        return Err(io::Error::other(format!(
            "no such directory in the lab: {}",
            request.directory.display()
        )));
    }
    Command::new(name)
        .args(arguments)
        .env_clear()
        .envs(request.environment.iter().filter_map(split_variable))
        .env("CASITA_LAB", "1")
        .current_dir(&request.directory)
        .stdin(input)
        .stdout(output)
        .stderr(error)
        .spawn()
}

fn split_variable(entry: &OsString) -> Option<(OsString, OsString)> {
    // A name is never empty, so the search for `=` starts behind its first byte.
    let bytes = entry.as_bytes();
    let split = 1 + bytes.get(1..)?.iter().position(|byte| *byte == b'=')?;
    let (name, value) = bytes.split_at_checked(split)?;
    Some((
        OsString::from_vec(name.to_vec()),
        OsString::from_vec(value.get(1..)?.to_vec()),
    ))
}

/// Reaps children until `main` ends, then kills and reaps the rest.
fn wait(main: u32) -> u8 {
    let mut code = 255;
    while let Some((pid, status)) = sys::wait_any() {
        if pid == main {
            code = exit_code(status);
            sys::kill_all();
        }
    }
    code
}

/// The status as a shell shows it: 128 + n for signal n.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(255);
    u8::try_from(code).unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_128_and_its_number() {
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
    }

    #[test]
    fn variables_split_at_the_first_equals_sign() {
        let split = |text: &str| split_variable(&text.into());
        assert_eq!(split("A=b=c"), Some(("A".into(), "b=c".into())));
        assert_eq!(split("A="), Some(("A".into(), "".into())));
        assert_eq!(split("no value"), None);
        assert_eq!(split(""), None);
    }
}
