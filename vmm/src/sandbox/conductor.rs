//! A run inside its monitor, from the guest's first word to the last file that is taken out: files
//! are put in, the command runs with its streams, files come out.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use casita_agent::find::{MAX_FOUND, is_pattern};
use casita_agent::tar::EXIT_MISSING;
use casita_agent::wire::{Exit, ProcessSpec, Program};

use super::channel::{self, Kind, Order, PART};
use super::result::{Limit, NotTaken};
use super::watch::Watch;
use crate::link::{AgentLink, Process, StartError, Streams};

/// The most that is kept of what the guest complains, in bytes.
const MAX_COMPLAINT: u64 = 4 << 10;
/// What the archives of all files that are taken may have beside the files' content, in bytes.
const MAX_HEADERS: u64 = 32 << 20;
/// The longest path in it.
const MAX_PATH: usize = 4096;
/// The most that is told of what was not taken, in bytes: in JSON it is up to six times as long.
const MAX_LEFT_OUT: usize = 1 << 20;
/// What each takes beside its path and the reason.
const LEFT_OUT_COST: usize = 32;
/// Why most of it is not taken.
const MISSING: &str = "it does not exist";
/// The most that a list of paths takes, in bytes.
const MAX_LIST: u64 = 17 << 20;

/// What became of the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// It ended so.
    Exited(Exit),
    /// It could not be started.
    NotStarted {
        /// 126 or 127.
        code: u8,
        /// One line for people.
        message: String,
    },
    /// The guest ended before it did.
    Gone,
}

/// What became of a run.
#[derive(Debug)]
pub(super) struct Conducted {
    /// An error is one of the caller's: the files could not be put in. One line.
    pub(super) told: Result<Told, String>,
    /// Whether there was more output than was sent.
    pub(super) truncated: [bool; 2],
    pub(super) not_taken: Vec<NotTaken>,
}

/// The caller, to whom several threads talk.
#[derive(Debug, Clone)]
pub(super) struct Caller(Arc<Mutex<UnixStream>>);

impl Caller {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self(Arc::new(Mutex::new(socket)))
    }

    /// Sends a frame. One that is gone is noticed by whoever watches the socket.
    pub(super) fn send(&self, kind: Kind, content: &[u8]) {
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = channel::send(&mut *socket, kind, content) {
            log::debug!("the caller does not listen: {error}");
        }
    }
}

/// A run to be conducted.
pub(super) struct Conductor {
    pub(super) order: Order,
    /// The command.
    pub(super) process: ProcessSpec,
    pub(super) link: AgentLink,
    pub(super) watch: Arc<Watch>,
    pub(super) caller: Caller,
    /// Where archives and standard input come from.
    pub(super) inputs: UnixStream,
}

impl Conductor {
    /// Conducts it.
    pub(super) fn run(mut self) -> Conducted {
        let mut conducted = Conducted {
            told: Ok(Told::Gone),
            truncated: [false; 2],
            not_taken: Vec::new(),
        };
        if self.link.wait_ready(None).is_err() {
            return conducted;
        }
        if let Err(why) = self.put() {
            conducted.told = Err(why);
            return conducted;
        }
        self.watch.command_starts();
        self.caller.send(Kind::Started, &[]);
        let (told, truncated) = self.command();
        conducted.truncated = truncated;
        let is_free = self.watch.command_ended();
        if is_free && let Told::Exited(_) = told {
            conducted.not_taken = self.take();
        }
        conducted.told = Ok(told);
        conducted
    }

    /// Has the archives unpacked, each in its directory.
    fn put(&mut self) -> Result<(), String> {
        for directory in std::mem::take(&mut self.order.archives) {
            let failed = |why: String| format!("can't put files into {directory}: {why}");
            let own = own_process(Program::CopyIn(b".".to_vec()), &directory);
            let streams = Streams {
                stdin: true,
                stdout: false,
                stderr: true,
            };
            let process = self.link.start(own, streams);
            let process = process.map_err(|error| failed(error.to_string()))?;
            let stdin = process.stdin.as_ref();
            // One that has failed takes no more; the rest of its archive is not the next one's.
            carry_in(&mut self.inputs, stdin).map_err(|error| failed(error.to_string()))?;
            let said = complaint(&process);
            match process.exit.wait() {
                Ok(Exit::Code(0)) => {}
                Ok(_) if !said.is_empty() => return Err(failed(said)),
                Ok(exit) => return Err(failed(format!("status {}", exit.status()))),
                Err(error) => return Err(failed(error.to_string())),
            }
        }
        Ok(())
    }

    /// Runs the command to its end, or to that of the guest.
    fn command(&mut self) -> (Told, [bool; 2]) {
        let streams = Streams {
            stdin: self.order.stdin,
            stdout: true,
            stderr: true,
        };
        let process = match self.link.start(self.process.clone(), streams) {
            Ok(process) => process,
            Err(StartError::Refused { status, message }) => {
                let code = status;
                return (Told::NotStarted { code, message }, [false; 2]);
            }
            Err(_) => return (Told::Gone, [false; 2]),
        };
        let carriers = [
            (Kind::Stdout, process.stdout),
            (Kind::Stderr, process.stderr),
        ]
        .map(|(kind, from)| from.and_then(|from| self.carry_out(kind, from)));
        self.feed(process.stdin);
        let exit = process.exit.wait();
        // The time goes on until all of it is here: a guest may hold it back.
        let truncated = carriers.map(|carrier| {
            let carried = carrier.and_then(|carrier| carrier.join().ok());
            carried.unwrap_or_default()
        });
        (exit.map_or(Told::Gone, Told::Exited), truncated)
    }

    /// Sends what comes of a stream, as much as may come. Whether there was more.
    fn carry_out(&self, kind: Kind, mut from: UnixStream) -> Option<JoinHandle<bool>> {
        let (caller, watch) = (self.caller.clone(), self.watch.clone());
        let mut left = self.order.limits.output;
        let carry = move || {
            let mut buffer = vec![0; PART];
            loop {
                let count = match from.read(&mut buffer) {
                    Ok(0) => return false,
                    Ok(count) => count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    // The guest is gone; what it sent has been read.
                    Err(_) => return false,
                };
                let part = usize::try_from(left).unwrap_or(usize::MAX).min(count);
                if part > 0 {
                    caller.send(kind, &buffer[..part]);
                    left -= part as u64;
                }
                if part < count {
                    watch.exceed(Limit::Output);
                    return true;
                }
            }
        };
        let carrier = thread::Builder::new()
            .name("output".to_owned())
            .spawn(carry);
        carrier
            .inspect_err(|error| log::error!("no thread for the command's output: {error}"))
            .ok()
    }

    /// Gives the command its input, on a thread that nobody waits for.
    fn feed(&self, stdin: Option<UnixStream>) {
        let (Some(stdin), Ok(mut inputs)) = (stdin, self.inputs.try_clone()) else {
            return;
        };
        let feed = move || {
            // A command need not read all of it.
            let _ = carry_in(&mut inputs, Some(&stdin));
            let _ = stdin.shutdown(Shutdown::Write);
        };
        if let Err(error) = thread::Builder::new().name("stdin".to_owned()).spawn(feed) {
            log::error!("no thread for the command's input: {error}");
        }
    }

    /// Sends the archives of what is to be taken out. What could not be.
    fn take(&self) -> Vec<NotTaken> {
        let mut left_out = LeftOut::default();
        let mut left = self.order.limits.take + MAX_HEADERS;
        for wanted in &self.order.take {
            let paths = if is_pattern(wanted.as_bytes()) {
                self.find(wanted)
            } else {
                vec![wanted.clone()]
            };
            if paths.is_empty() {
                left_out.add(wanted, MISSING);
            }
            for path in paths {
                match self.take_one(&path, &mut left) {
                    Ok(true) => {}
                    Ok(false) => left_out.add(&path, MISSING),
                    Err(why) => left_out.add(&path, &why),
                }
            }
        }
        left_out.all
    }

    /// The paths that a pattern leads to.
    fn find(&self, pattern: &str) -> Vec<String> {
        let own = own_process(Program::Find(pattern.as_bytes().to_vec()), "/");
        let streams = Streams {
            stdout: true,
            ..Streams::default()
        };
        let mut list = Vec::new();
        if let Ok(process) = self.link.start(own, streams)
            && let Some(stdout) = process.stdout
        {
            let _ = stdout.take(MAX_LIST).read_to_end(&mut list);
        }
        let paths = list
            .split(|byte| *byte == 0)
            .filter(|path| path.starts_with(b"/") && path.len() <= MAX_PATH);
        let paths = paths.map(|path| String::from_utf8_lossy(path).into_owned());
        paths.take(MAX_FOUND).collect()
    }

    /// Sends an archive of what is at `path`. False if there is nothing.
    fn take_one(&self, path: &str, left: &mut u64) -> Result<bool, String> {
        let own = own_process(Program::CopyOut(path.as_bytes().to_vec()), "/");
        let streams = Streams {
            stdout: true,
            ..Streams::default()
        };
        let process = self.link.start(own, streams);
        let process = process.map_err(|error| error.to_string())?;
        let mut stdout = process.stdout.ok_or("it sent no archive")?;
        let mut buffer = vec![0; PART];
        let mut is_begun = false;
        let why = loop {
            let count = match stdout.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            if count == 0 {
                break "";
            }
            if !std::mem::replace(&mut is_begun, true) {
                self.caller.send(Kind::Take, path.as_bytes());
            }
            *left = left.saturating_sub(count as u64);
            if *left == 0 {
                break "there is more to take than the limit allows";
            }
            self.caller.send(Kind::Archive, &buffer[..count]);
        };
        drop(stdout);
        let exit = process.exit.wait();
        if is_begun {
            self.caller.send(Kind::TakeEnd, why.as_bytes());
        }
        match exit {
            Ok(Exit::Code(0)) => Ok(true),
            Ok(Exit::Code(EXIT_MISSING)) if !is_begun => Ok(false),
            _ if !why.is_empty() => Ok(true),
            Ok(_) if is_begun => Err("the guest could not read all of it".to_owned()),
            Ok(_) => Err("the guest could not read it".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What was not taken, as far as there is room to tell of it.
#[derive(Default)]
struct LeftOut {
    all: Vec<NotTaken>,
    bytes: usize,
}

impl LeftOut {
    fn add(&mut self, path: &str, why: &str) {
        self.bytes += path.len() + why.len() + LEFT_OUT_COST;
        if self.bytes <= MAX_LEFT_OUT {
            self.all.push(NotTaken {
                path: path.to_owned(),
                why: why.to_owned(),
            });
        }
    }
}

/// A process of the agent's own, in `directory`, which is made if it is missing.
fn own_process(program: Program, directory: &str) -> ProcessSpec {
    ProcessSpec {
        program,
        env: Vec::new(),
        workdir: directory.as_bytes().to_vec(),
        user: "0:0".to_owned(),
        terminal: None,
        limits: Vec::new(),
        group: None,
    }
}

/// Carries one of the caller's streams into the guest, until its end. A guest that takes no more
/// does not keep the rest from being read.
fn carry_in(from: &mut UnixStream, mut to: Option<&UnixStream>) -> io::Result<()> {
    let mut content = Vec::new();
    loop {
        match channel::receive(from, &mut content)? {
            Some(Kind::Data) => {
                if to.is_some_and(|mut stream| stream.write_all(&content).is_err()) {
                    to = None;
                }
            }
            Some(Kind::End) => {
                // One that has ended has closed its side already.
                let _ = to.map(|to| to.shutdown(Shutdown::Write));
                return Ok(());
            }
            Some(_) => return Err(ErrorKind::InvalidData.into()),
            None => return Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The last line that a process of the agent's complained, which it has ended to do.
fn complaint(process: &Process) -> String {
    let mut said = Vec::new();
    if let Some(stderr) = &process.stderr {
        let _ = stderr.take(MAX_COMPLAINT).read_to_end(&mut said);
    }
    let said = String::from_utf8_lossy(&said);
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    last.unwrap_or_default().replace(char::is_control, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::channel::MAX_FRAME;

    #[test]
    fn what_was_not_taken_fits_a_report_whatever_its_name() {
        let mut left_out = LeftOut::default();
        for _ in 0..5000 {
            left_out.add(&"\u{1}".repeat(MAX_PATH), MISSING);
        }
        assert!(left_out.all.len() > 100);
        let json = serde_json::to_vec(&left_out.all).unwrap();
        assert!(json.len() < MAX_FRAME, "{}", json.len());
    }

    #[test]
    fn an_input_is_read_to_its_end_though_nobody_takes_it() {
        let (mut from, to) = UnixStream::pair().unwrap();
        let (stdin, guest) = UnixStream::pair().unwrap();
        drop(guest);
        let sender = thread::spawn(move || {
            for _ in 0..20 {
                channel::send(&mut &to, Kind::Data, &vec![0; PART]).unwrap();
            }
            channel::send(&mut &to, Kind::End, &[]).unwrap();
            channel::send(&mut &to, Kind::Stdout, &[]).unwrap();
        });
        carry_in(&mut from, Some(&stdin)).unwrap();
        // What comes next is not an input's, and then there is nothing.
        carry_in(&mut from, None).unwrap_err();
        carry_in(&mut from, None).unwrap_err();
        sender.join().unwrap();
    }
}
