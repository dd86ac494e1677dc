//! What a new process does before it becomes its program.

use alloc::ffi::CString;
use alloc::string::String;
use alloc::vec::Vec;

use casita_agent::command::{self, Attempts, SHELLS};
use casita_agent::ports::{EXIT_NOT_EXECUTABLE, Stage};
use casita_agent::users::{self, Identity};
use casita_agent::wire::{ProcessSpec, Program};
use rustix::buffer::spare_capacity;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Access, Gid, Mode, OFlags, Uid, access, fchown, mkdir, open};
use rustix::io::{Errno, read, write};
use rustix::process::{Resource, Rlimit, chdir, ioctl_tiocsctty, setrlimit, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::failure::{Doing, Failure};
use crate::group::Group;
use crate::stdio::Stdio;
use crate::sys::{self, SignalSet, Strings};
use crate::{copy, report, stamp};

/// The number of the pipe for a report, the only file beside the standard streams.
const REPORT: u16 = 3;
/// The most that is read of `/etc/passwd` and `/etc/group`, in bytes.
const MOST_USERS: usize = 4 << 20;

/// What a process is started with.
pub(crate) struct Child<'a> {
    pub(crate) process: &'a ProcessSpec,
    pub(crate) hostname: &'a str,
    pub(crate) stdio: &'a Stdio,
    pub(crate) report: &'a OwnedFd,
    /// The control group that it goes into.
    pub(crate) group: Option<&'a Group>,
    /// How many files it may have, unless it is to have another limit.
    pub(crate) files: Rlimit,
    /// It is the machine's first, whose start the host wants to know the time of.
    pub(crate) is_first: bool,
}

impl Child<'_> {
    /// Turns this process into the program.
    pub(crate) fn become_it(&self) -> ! {
        sys::block_signals(SignalSet::EMPTY);
        // While it has the agent's files.
        let joined = self.group.map_or(Ok(()), Group::join);
        if self.connect().is_err() {
            // There is no pipe for a report, but the agent learns the exit status.
            sys::exit(EXIT_NOT_EXECUTABLE)
        }
        let ready = joined.doing(|| "cannot enter the control group");
        let env = match ready.and_then(|()| self.prepare()) {
            Ok(env) => env,
            Err(failure) => fail(EXIT_NOT_EXECUTABLE, failure.text()),
        };
        if self.is_first {
            stamp::stage(Stage::CommandStarted);
        }
        stamp::drop_claim();
        let (status, line) = match &self.process.program {
            Program::CopyOut(path) => {
                sys::close_from(REPORT);
                sys::exit(copy::copy_out(path))
            }
            Program::CopyIn(dir) => {
                sys::close_from(REPORT);
                sys::exit(copy::copy_in(dir))
            }
            Program::Find(pattern) => {
                sys::close_from(REPORT);
                sys::exit(copy::find(pattern))
            }
            Program::Command(command) => match (command.split_first(), Strings::new(&env)) {
                (_, Err(_)) => (
                    EXIT_NOT_EXECUTABLE,
                    String::from("an environment variable has a NUL byte; leave it out"),
                ),
                (Some((name, _)), Ok(strings)) => execute(name, command, &env, &strings),
                (None, Ok(strings)) => self.execute_shell(&strings),
            },
        };
        fail(status, &line)
    }

    /// A session of its own, the standard streams, and nothing else of the agent's.
    fn connect(&self) -> Result<(), Errno> {
        setsid()?;
        if let [Some(terminal), ..] = &self.stdio.child
            && self.stdio.terminal.is_some()
        {
            ioctl_tiocsctty(terminal)?;
        }
        let nothing = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let [stdin, stdout, stderr] = &self.stdio.child;
        dup2_stdin(stdin.as_ref().unwrap_or(&nothing))?;
        dup2_stdout(stdout.as_ref().unwrap_or(&nothing))?;
        dup2_stderr(stderr.as_ref().unwrap_or(&nothing))?;
        sys::duplicate_to(self.report.as_fd(), REPORT)?;
        sys::close_from(REPORT + 1);
        Ok(())
    }

    /// Limits, working directory, user. Returns the environment.
    fn prepare(&self) -> Result<Vec<Vec<u8>>, Failure> {
        let process = self.process;
        setrlimit(Resource::Nofile, self.files).doing(|| "cannot limit the number of files")?;
        for limit in &process.limits {
            sys::set_limit(limit.resource, limit.soft, limit.hard).doing(|| {
                alloc::format!(
                    "cannot set the limit {} to {}:{}",
                    limit.resource,
                    limit.soft,
                    limit.hard
                )
            })?;
        }
        if let workdir @ [_, ..] = process.workdir.as_slice() {
            if workdir.first() != Some(&b'/') {
                let workdir = String::from_utf8_lossy(workdir);
                return Err(Failure::new(format_args!(
                    "working directory {workdir:?} is not an absolute path"
                )));
            }
            enter(workdir).doing(|| {
                let workdir = String::from_utf8_lossy(workdir);
                alloc::format!("cannot enter the working directory {workdir:?}")
            })?;
        }
        let passwd = read_users("/etc/passwd")?;
        let group = read_users("/etc/group")?;
        let identity = users::identity(&process.user, &passwd, &group).map_err(Failure::new)?;
        let env = command::environment(process, self.hostname, &identity.home);
        self.become_user(&identity)
            .doing(|| alloc::format!("cannot become the user {:?}", process.user))?;
        Ok(env)
    }

    fn become_user(&self, identity: &Identity) -> Result<(), Errno> {
        let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
        if !uid.is_root() {
            // It may open them again, as /dev/stdout.
            for file in self.stdio.child.iter().zip(standard_streams()) {
                if let (Some(_), stream) = file {
                    fchown(stream, Some(uid), None)?;
                }
            }
        }
        let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)
    }

    fn execute_shell(&self, env: &Strings) -> (u8, String) {
        let login = self.process.terminal.is_some();
        let mut attempts = Attempts::default();
        for (file, login_name, name) in SHELLS {
            let name = if login { login_name } else { name };
            let arguments = Strings::new(&[name.to_vec()]);
            if let (Ok(file), Ok(arguments)) = (CString::new(file), arguments) {
                let errno = sys::execve(&file, &arguments, env);
                attempts.failed(errno.raw_os_error());
            }
        }
        attempts.verdict(b"/bin/sh", access(c"/bin/sh", Access::EXISTS).is_ok())
    }
}

/// Tries each place for the command `name`; returns why none would do.
fn execute(name: &[u8], command: &[Vec<u8>], env: &[Vec<u8>], strings: &Strings) -> (u8, String) {
    let mut attempts = Attempts::default();
    let path = command::variable(env, b"PATH").unwrap_or(command::DEFAULT_PATH);
    let Ok(arguments) = Strings::new(command) else {
        let line = String::from("an argument has a NUL byte; leave it out");
        return (EXIT_NOT_EXECUTABLE, line);
    };
    for candidate in command::candidates(name, path) {
        let errno = match CString::new(candidate) {
            Ok(candidate) => sys::execve(&candidate, &arguments, strings),
            Err(_) => Errno::NOENT,
        };
        if !attempts.failed(errno.raw_os_error()) {
            break;
        }
    }
    let exists =
        command::candidates(name, path).any(|candidate| access(candidate, Access::EXISTS).is_ok());
    attempts.verdict(name, exists)
}

/// Tells the agent why there is no program, and ends.
#[allow(unsafe_code, reason = "the report's pipe has a number of its own")]
fn fail(status: u8, line: &str) -> ! {
    // SAFETY: `connect` has put it there, and nothing closes it before the program is executed.
    let pipe = unsafe { BorrowedFd::borrow_raw(REPORT.into()) };
    let _ = write(pipe, &report::encode(status, line));
    sys::exit(status)
}

#[allow(unsafe_code, reason = "the standard streams belong to nobody")]
fn standard_streams() -> [BorrowedFd<'static>; 3] {
    // SAFETY: `connect` has opened them, and nothing closes them.
    unsafe {
        [
            rustix::stdio::stdin(),
            rustix::stdio::stdout(),
            rustix::stdio::stderr(),
        ]
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

/// Reads a file of the guest's that tells of users; one that is not there is empty.
fn read_users(path: &str) -> Result<Vec<u8>, Failure> {
    let read_all = || -> Result<Vec<u8>, Errno> {
        // It may be anything; a pipe must not be waited for.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match open(path, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            file => file?,
        };
        let mut bytes = Vec::new();
        loop {
            bytes.reserve(4 << 10);
            if read(&file, spare_capacity(&mut bytes))? == 0 {
                return Ok(bytes);
            }
            if bytes.len() > MOST_USERS {
                return Err(Errno::FBIG);
            }
        }
    };
    read_all().doing(|| alloc::format!("cannot read {path}"))
}
