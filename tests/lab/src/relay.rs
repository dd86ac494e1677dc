//! The machine's end: starts QEMU, hands it the request, and stands in for the command.

use std::error::Error;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::command::{CONTROL, ERROR, INPUT, OUTPUT};
use crate::request::Request;
use crate::stream;
use crate::sys;

/// Exit code when the lab itself fails, as `docker run` has it.
const LAB_FAILED: u8 = 125;
/// Exit code when the time is over, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// How long the lab may take to start; a busy machine needs a tenth of it.
const START_LIMIT: Duration = Duration::from_mins(3);

/// What `tests/lab/run` has prepared. See [`Plan::from_arguments`].
struct Plan {
    limit: Option<Duration>,
    log: PathBuf,
    qemu: Vec<OsString>,
    request: Request,
}

/// What the threads beside a port report.
enum Event {
    /// The lab is up and starts the command.
    Running,
    /// One of the output streams has been passed on to its end.
    StreamEnded,
    /// The command's exit status.
    Status(u8),
    /// QEMU closed a port: it is gone.
    Gone,
    /// A stream of ours broke for another reason than its reader's leaving.
    Broken(String),
}

enum Outcome {
    Finished(u8),
    TimedOut(Duration),
    Failed(String),
}

/// The relay's whole run; the exit code is the command's, or the lab's own 124 or 125.
///
/// With the one argument `tsc` it prints [`time_stamp_rate`] instead.
pub fn main() -> ExitCode {
    if std::env::args_os().skip(1).eq(["tsc"]) {
        println!("{}", time_stamp_rate());
        return ExitCode::SUCCESS;
    }
    let plan = match Plan::from_arguments(std::env::args_os().skip(1)) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("lab: {error}");
            return LAB_FAILED.into();
        }
    };
    let outcome = run(&plan).unwrap_or_else(|error| Outcome::Failed(error.to_string()));
    let (code, message) = match outcome {
        Outcome::Finished(code) => return code.into(),
        Outcome::TimedOut(limit) => (
            TIMED_OUT,
            format!("the command did not end within {} s", limit.as_secs_f64()),
        ),
        Outcome::Failed(message) => (LAB_FAILED, message),
    };
    eprintln!("lab: {message} (log: {})", plan.log.display());
    code.into()
}

/// The rate in kHz of this machine's time stamp counter, which QEMU passes on to the lab.
///
/// The lab's kernel would measure it against a timer, and on a busy machine gets it wrong by any factor.
fn time_stamp_rate() -> u128 {
    let (first, started) = time_stamp();
    thread::sleep(Duration::from_millis(10));
    let (last, ended) = time_stamp();
    u128::from(last - first) * 1_000_000 / (ended - started).as_nanos()
}

/// A time stamp and the moment of it: the closest pair of a few, as this thread may be interrupted.
fn time_stamp() -> (u64, Instant) {
    let pair = |_| {
        let before = sys::time_stamp();
        let now = Instant::now();
        let width = sys::time_stamp() - before;
        (width, (before + width / 2, now))
    };
    (0..8)
        .map(pair)
        .min_by_key(|(width, _)| *width)
        .map_or((0, Instant::now()), |(_, pair)| pair)
}

impl Plan {
    /// Reads `LIMIT LOG SHARE MODULES ENVIRON COUNT QEMU... COMMAND...`, where LIMIT is in seconds
    /// (0 for none), ENVIRON a file of NUL-terminated variables, and COUNT the number of words in
    /// QEMU's command line.
    fn from_arguments(mut words: impl Iterator<Item = OsString>) -> Result<Self, Box<dyn Error>> {
        let mut next = |name| {
            words
                .next()
                .ok_or_else(|| format!("the relay misses its {name}"))
        };
        let limit = text(next("limit")?)?.parse()?;
        let log = next("log")?.into();
        let share = next("share")?;
        let modules = next("modules")?;
        let environment = fs::read(next("environment")?)?
            .split(|byte| *byte == 0)
            .filter(|entry| !entry.is_empty())
            .map(|entry| OsString::from_vec(entry.to_vec()))
            .collect();
        let count = text(next("count")?)?.parse()?;
        let qemu = words.by_ref().take(count).collect();
        let arguments = words.collect();
        let directory = std::env::current_dir()?.into();
        let request = Request {
            directory,
            share,
            modules,
            arguments,
            environment,
        };
        let limit = (limit > 0).then_some(Duration::from_secs(limit));
        Ok(Self {
            limit,
            log,
            qemu,
            request,
        })
    }
}

fn text(word: OsString) -> Result<String, String> {
    word.into_string()
        .map_err(|word| format!("not a number: {}", word.display()))
}

/// QEMU, killed and reaped when this goes away.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only if it is reaped already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(plan: &Plan) -> Result<Outcome, Box<dyn Error>> {
    let started = Instant::now();
    let (control, control_theirs) = UnixStream::pair()?;
    let (input, input_theirs) = UnixStream::pair()?;
    let (output, output_theirs) = UnixStream::pair()?;
    let (error, error_theirs) = UnixStream::pair()?;
    let theirs = [
        (CONTROL, OwnedFd::from(control_theirs)),
        (INPUT, input_theirs.into()),
        (OUTPUT, output_theirs.into()),
        (ERROR, error_theirs.into()),
    ];
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&plan.log)?;
    let mut qemu = Qemu(start_qemu(plan, &theirs, log)?);
    drop(theirs);

    let (events, inbox) = mpsc::channel();
    let mut requests = control.try_clone()?;
    let bytes = plan.request.encode();
    thread::spawn(move || stream::write_frame(&mut requests, &bytes));
    // `input` itself stays open here to the end: QEMU drops what it has not read when a socket closes.
    let typed = input.try_clone()?;
    thread::spawn(move || stream::send(io::stdin().lock(), typed, &AtomicBool::new(false)));
    let stop = control.try_clone()?;
    pass_on(
        output,
        duplicate(&io::stdout())?,
        OUTPUT,
        stop.try_clone()?,
        &events,
    );
    pass_on(error, duplicate(&io::stderr())?, ERROR, stop, &events);
    thread::spawn(move || listen(control, &events));
    follow(plan, started, &inbox, &mut qemu.0)
}

/// Waits for the command's status and the ends of both its streams, or for what comes instead.
fn follow(
    plan: &Plan,
    started: Instant,
    inbox: &Receiver<Event>,
    qemu: &mut Child,
) -> Result<Outcome, Box<dyn Error>> {
    let (mut running, mut status, mut open) = (false, None, 2);
    loop {
        if let (Some(status), 0) = (status, open) {
            return Ok(Outcome::Finished(status));
        }
        let limits = [plan.limit, (!running).then_some(START_LIMIT)];
        let left = limits
            .into_iter()
            .flatten()
            .min()
            .map_or(Duration::MAX, |limit| {
                limit.saturating_sub(started.elapsed())
            });
        match inbox.recv_timeout(left) {
            Ok(Event::Running) => running = true,
            Ok(Event::StreamEnded) => open -= 1,
            Ok(Event::Status(code)) => status = Some(code),
            Ok(Event::Broken(message)) => return Ok(Outcome::Failed(message)),
            Ok(Event::Gone) | Err(RecvTimeoutError::Disconnected) => {
                return Ok(Outcome::Failed(why_gone(plan, qemu)?));
            }
            Err(RecvTimeoutError::Timeout) => {
                return Ok(match plan.limit {
                    Some(limit) if limit <= started.elapsed() => Outcome::TimedOut(limit),
                    _ => Outcome::Failed(format!("no start within {} s", START_LIMIT.as_secs())),
                });
            }
        }
    }
}

/// The stream without std's buffer, which would hold back what is not a whole line.
fn duplicate(stream: &impl AsFd) -> io::Result<File> {
    Ok(stream.as_fd().try_clone_to_owned()?.into())
}

fn start_qemu(plan: &Plan, ports: &[(u32, OwnedFd)], log: File) -> Result<Child, Box<dyn Error>> {
    let (program, arguments) = plan
        .qemu
        .split_first()
        .ok_or("QEMU's command line is empty")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .args(["-device", "virtio-serial-pci,max_ports=5"]);
    for (number, fd) in ports {
        let fd = fd.as_raw_fd();
        command.args(["-chardev", &format!("socket,id=port{number},fd={fd}")]);
        command.args([
            "-device",
            &format!("virtserialport,nr={number},chardev=port{number}"),
        ]);
    }
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    sys::inherit_and_die_with_parent(
        &mut command,
        ports.iter().map(|(_, fd)| fd.as_raw_fd()).collect(),
    );
    command
        .spawn()
        .map_err(|error| format!("cannot start {}: {error}", program.display()).into())
}

/// Passes an output port on to `to`. When the reader behind `to` leaves, the lab is told to close
/// the command's pipe, so that the command notices as it would on the machine.
fn pass_on(port: UnixStream, to: File, number: u32, mut stop: UnixStream, events: &Sender<Event>) {
    let events = events.clone();
    thread::spawn(move || {
        let result = stream::receive(port, to, |error| {
            if error.kind() == io::ErrorKind::BrokenPipe {
                // If this fails the lab is gone, which the control port reports.
                let _ = stream::write_frame(&mut stop, &[number as u8]);
            } else {
                let _ = events.send(Event::Broken(format!(
                    "cannot write the command's output: {error}"
                )));
            }
        });
        events.send(if result.is_ok() {
            Event::StreamEnded
        } else {
            Event::Gone
        })
    });
}

/// Reports what the lab says on the control port: nothing when the command starts, then its status.
fn listen(mut control: impl Read, events: &Sender<Event>) {
    let mut payload = Vec::new();
    loop {
        let event = match stream::read_frame(&mut control, &mut payload) {
            Ok(()) => payload
                .first()
                .map_or(Event::Running, |code| Event::Status(*code)),
            Err(_) => Event::Gone,
        };
        let last = matches!(event, Event::Gone);
        if events.send(event).is_err() || last {
            return;
        }
    }
}

/// The lab ended before its command: the last line of the log that says why.
fn why_gone(plan: &Plan, qemu: &mut Child) -> io::Result<String> {
    let status = qemu.wait()?;
    let log = fs::read(&plan.log)?;
    let reason = log
        .split(|byte| *byte == b'\n')
        .map(|line| String::from_utf8_lossy(line).trim().to_owned())
        .rfind(|line| {
            ["lab: ", "Kernel panic", "qemu-system"]
                .iter()
                .any(|sign| line.contains(sign))
        });
    Ok(match reason {
        Some(line) => format!("the lab ended before the command did: {line}"),
        None => format!("the lab ended before the command did, QEMU with {status}"),
    })
}
