//! What the new process does before it becomes the command.

use alloc::ffi::CString;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use casita_agent::command::{self, Attempts, SHELLS};
use casita_agent::ports::{EXIT_NOT_EXECUTABLE, Stage};
use casita_agent::spec::GuestSpec;
use rustix::fs::{Access, Mode, OFlags, access, mkdir, open};
use rustix::io::Errno;
use rustix::process::{chdir, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::failure::Failure;
use crate::stamp;
use crate::sys::{self, SignalSet, Strings};

/// The terminal behind the console. `/dev/console` itself is nobody's controlling terminal.
const TERMINAL: &str = "/dev/ttyS0";

/// Everything that the command is started with, made before the process is.
pub(crate) struct Command<'a> {
    spec: &'a GuestSpec,
    env: Vec<Vec<u8>>,
    env_strings: Strings,
}

impl<'a> Command<'a> {
    /// Fails with `EINVAL` if a string has a NUL inside.
    pub(crate) fn new(spec: &'a GuestSpec) -> Result<Self, Errno> {
        let env = command::environment(spec);
        let env_strings = Strings::new(&env)?;
        Ok(Command {
            spec,
            env,
            env_strings,
        })
    }

    /// Turns this process into the command.
    pub(crate) fn become_it(&self) -> ! {
        sys::block_signals(SignalSet::EMPTY);
        if let Err(failure) = self.prepare() {
            failure.print();
            sys::exit(EXIT_NOT_EXECUTABLE)
        }
        stamp::stage(Stage::CommandStarted);
        stamp::drop_claim();
        let (status, line) = match self.spec.command.first() {
            Some(name) => self.execute(name),
            None => self.execute_shell(),
        };
        Failure::new(line).print();
        sys::exit(status)
    }

    fn prepare(&self) -> Result<(), Failure> {
        let stdio = setsid().and_then(|_| self.connect_stdio());
        stdio
            .map_err(|errno| Failure::errno("cannot connect the command to the console", errno))?;
        let workdir = match self.spec.workdir.as_slice() {
            // The root is where this process already is.
            [] | b"/" => return Ok(()),
            workdir => workdir,
        };
        enter(workdir).map_err(|errno| {
            let workdir = String::from_utf8_lossy(workdir);
            Failure::errno(
                format_args!("cannot enter the working directory {workdir:?}"),
                errno,
            )
        })
    }

    /// Without a terminal the command has the console as PID 1 has it, and no controlling
    /// terminal. The first terminal that the leader of a session opens becomes its own.
    fn connect_stdio(&self) -> Result<(), Errno> {
        if self.spec.terminal.is_some() {
            let terminal = open(TERMINAL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            dup2_stdin(&terminal)?;
            dup2_stdout(&terminal)?;
            dup2_stderr(&terminal)
        } else if self.spec.stdin_open {
            Ok(())
        } else {
            let nothing = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            dup2_stdin(&nothing)
        }
    }

    /// Tries each place for the command `name`; returns why none would do.
    fn execute(&self, name: &[u8]) -> (u8, String) {
        let mut attempts = Attempts::default();
        let path = command::variable(&self.env, b"PATH").unwrap_or(command::DEFAULT_PATH);
        let Ok(arguments) = Strings::new(&self.spec.command) else {
            return attempts.verdict(name, false);
        };
        for candidate in command::candidates(name, path) {
            let errno = match CString::new(candidate) {
                Ok(candidate) => sys::execve(&candidate, &arguments, &self.env_strings),
                Err(_) => Errno::NOENT,
            };
            if !attempts.failed(errno.raw_os_error()) {
                break;
            }
        }
        let exists = command::candidates(name, path)
            .any(|candidate| access(candidate, Access::EXISTS).is_ok());
        attempts.verdict(name, exists)
    }

    fn execute_shell(&self) -> (u8, String) {
        let login = self.spec.terminal.is_some();
        let mut attempts = Attempts::default();
        for (file, login_name, name) in SHELLS {
            // Without a person at the console, its commands are a script: a shell that finds a
            // terminal there would write prompts between their output.
            let arguments = if login {
                vec![login_name.to_vec()]
            } else {
                vec![name.to_vec(), b"/dev/stdin".to_vec()]
            };
            if let (Ok(file), Ok(arguments)) = (CString::new(file), Strings::new(&arguments)) {
                let errno = sys::execve(&file, &arguments, &self.env_strings);
                attempts.failed(errno.raw_os_error());
            }
        }
        attempts.verdict(b"/bin/sh", access(c"/bin/sh", Access::EXISTS).is_ok())
    }
}

/// Enters a directory, which is made with its parents if it is missing, as container runtimes do.
fn enter(dir: &[u8]) -> Result<(), Errno> {
    match chdir(dir) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let ends = dir.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    for end in ends.map(|(end, _)| end).chain([dir.len()]) {
        let ancestor = dir.get(..end).unwrap_or_default();
        if !ancestor.is_empty() {
            match mkdir(ancestor, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    chdir(dir)
}
