//! The caller's side of a run: it starts the process that runs the VM, sends it what it needs, and
//! hears what comes of it. That process is trusted with nothing but its work: what it sends is
//! bounded, and so is its time.

use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::channel::{self, Kind, Report};
use super::error::SandboxError;
use super::inputs::Inputs;
use super::request::{RequestError, SandboxRequest};
use super::result::{Output, SandboxResult, VERSION};
use super::taken::Taken;
use super::vm::PATIENCE_TAKE;
use super::{Bytes, Limits, Stream, VERB};

/// How much later than it should a monitor may come to its end.
const SLACK: Duration = Duration::from_mins(1);
/// What is kept of what a monitor says beside its result, in bytes.
const MAX_SAID: u64 = 64 << 10;

/// How a caller wants its monitors.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) program: PathBuf,
    /// The monitor's warnings go to our own standard error; else they are part of errors.
    pub(super) shares_stderr: bool,
    pub(super) check_kvm: bool,
}

/// Told of output as it comes.
pub(super) type Sink<'a> = &'a mut dyn FnMut(Stream, &[u8]);

/// Runs `request` to its end.
pub(super) fn run(
    way: &Way,
    request: &SandboxRequest,
    sink: Sink<'_>,
) -> Result<SandboxResult, SandboxError> {
    request.check()?;
    let inputs = Inputs::open(request)?;
    let order = inputs.order(request, way.check_kvm);
    let mut monitor = Monitor::start(way)?;
    let host = |error| SandboxError::Host("talk to the VM's monitor", error);
    let to = monitor.socket.try_clone().map_err(host)?;
    let sender = thread::Builder::new()
        .name("inputs".to_owned())
        .spawn(move || {
            let sent = channel::send_json(&mut &to, Kind::Order, &order);
            let result = match sent {
                Ok(()) => inputs.send(&to),
                Err(error) if error.kind() == ErrorKind::InvalidInput => {
                    Err(RequestError::Long.into())
                }
                // It has ended, and has said why or is told of as lost.
                Err(_) => Ok(()),
            };
            if result.is_err() {
                // Half of the files are of no use: it ends.
                let _ = to.shutdown(std::net::Shutdown::Both);
            }
            result
        });
    let sender = sender.map_err(host)?;
    let heard = monitor.hear(request.limits, sink);
    // The sender sees that too, wherever it waits.
    let _ = monitor.socket.shutdown(std::net::Shutdown::Both);
    let said = monitor.end();
    match (heard, sender.join()) {
        (heard, Ok(Ok(()))) => heard.map_err(|error| error.with(said)),
        (_, Ok(Err(error))) => Err(error),
        (_, Err(_)) => Err(SandboxError::Lost("the sender panicked".to_owned())),
    }
}

impl SandboxError {
    /// With what the monitor said beside its result.
    fn with(self, said: String) -> Self {
        match self {
            Self::Lost(_) => Self::Lost(said),
            Self::Refused(why) if why.is_empty() => {
                let last = said.lines().rev().find(|line| !line.trim().is_empty());
                last.map_or(Self::Told, |last| Self::Refused(last.to_owned()))
            }
            other => other,
        }
    }
}

/// The process that runs the VM. It is killed if it is dropped before its end.
struct Monitor {
    child: Child,
    socket: UnixStream,
    said: Option<JoinHandle<String>>,
}

impl Monitor {
    fn start(way: &Way) -> Result<Self, SandboxError> {
        let host = |error| SandboxError::Host("make a socket", error);
        let (socket, theirs) = UnixStream::pair().map_err(host)?;
        let mut command = Command::new(&way.program);
        command
            .arg(VERB)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null());
        if !way.shares_stderr {
            command.stderr(Stdio::piped());
        }
        let mut child = command.spawn().map_err(|source| SandboxError::Start {
            path: way.program.clone(),
            source,
        })?;
        let said = child
            .stderr
            .take()
            .map(|stderr| thread::spawn(|| keep(stderr)));
        Ok(Self {
            child,
            socket,
            said,
        })
    }

    /// Hears of the run until its end.
    fn hear(&mut self, limits: Limits, sink: Sink<'_>) -> Result<SandboxResult, SandboxError> {
        let mut heard = Heard::new(limits);
        let mut content = Vec::new();
        let mut deadline = None;
        loop {
            self.wait_until(deadline)?;
            let kind = match channel::receive(&mut self.socket, &mut content) {
                Ok(Some(kind)) => kind,
                Ok(None) => return Err(SandboxError::Lost(String::new())),
                Err(error) => return Err(lost(&error)),
            };
            match kind {
                Kind::Started if deadline.is_none() => {
                    let most = limits.time + PATIENCE_TAKE + SLACK;
                    deadline = Instant::now().checked_add(most);
                }
                Kind::Refused => {
                    let why = String::from_utf8_lossy(&content).into_owned();
                    return Err(SandboxError::Refused(why));
                }
                Kind::Report => {
                    let report = channel::json(&content).map_err(|_| SandboxError::Broken)?;
                    return Ok(heard.result(report));
                }
                kind => heard.take(kind, &content, sink)?,
            }
        }
    }

    /// Has reads fail from `deadline` on.
    fn wait_until(&self, deadline: Option<Instant>) -> Result<(), SandboxError> {
        let Some(deadline) = deadline else {
            return Ok(());
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(SandboxError::Stuck);
        }
        let host = |error| SandboxError::Host("wait for the VM's monitor", error);
        self.socket.set_read_timeout(Some(left)).map_err(host)
    }

    /// Waits until it is gone. What it has said.
    fn end(mut self) -> String {
        self.reap();
        let said = self.said.take().and_then(|said| said.join().ok());
        said.unwrap_or_default()
    }

    /// It has nothing more to do: there is no reason to wait for it.
    fn reap(&mut self) {
        // It has ended already if it fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.reap();
    }
}

fn lost(error: &std::io::Error) -> SandboxError {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => SandboxError::Stuck,
        ErrorKind::InvalidData => SandboxError::Broken,
        _ => SandboxError::Lost(String::new()),
    }
}

/// Keeps what a monitor says, and lets it say more.
fn keep(mut from: ChildStderr) -> String {
    let mut said = Vec::new();
    let _ = (&mut from).take(MAX_SAID).read_to_end(&mut said);
    let _ = std::io::copy(&mut from, &mut std::io::sink());
    String::from_utf8_lossy(&said).into_owned()
}

/// What was heard of a run so far.
struct Heard {
    /// Output that there may still be.
    left: [u64; 2],
    taken: Taken,
}

impl Heard {
    fn new(limits: Limits) -> Self {
        Self {
            left: [limits.output; 2],
            taken: Taken::new(limits.take),
        }
    }

    fn take(&mut self, kind: Kind, content: &[u8], sink: Sink<'_>) -> Result<(), SandboxError> {
        match kind {
            Kind::Stdout => self.output(Stream::Stdout, content, sink),
            Kind::Stderr => self.output(Stream::Stderr, content, sink),
            Kind::Take => {
                self.taken.begin(&String::from_utf8_lossy(content));
                Ok(())
            }
            Kind::Archive => {
                self.taken.part(content);
                Ok(())
            }
            Kind::TakeEnd => {
                self.taken.end(&String::from_utf8_lossy(content));
                Ok(())
            }
            _ => Err(SandboxError::Broken),
        }
    }

    fn output(&mut self, of: Stream, bytes: &[u8], sink: Sink<'_>) -> Result<(), SandboxError> {
        let left = &mut self.left[of as usize];
        *left = left
            .checked_sub(bytes.len() as u64)
            .ok_or(SandboxError::Broken)?;
        sink(of, bytes);
        Ok(())
    }

    /// The result, but for the output's content.
    fn result(self, report: Report) -> SandboxResult {
        let output = |truncated| Output {
            data: Bytes::default(),
            truncated,
        };
        let [stdout, stderr] = report.truncated;
        SandboxResult {
            version: VERSION,
            end: report.end,
            stdout: output(stdout),
            stderr: output(stderr),
            files: self.taken.files,
            not_taken: [self.taken.left_out, report.not_taken].concat(),
            usage: report.usage,
        }
    }
}

#[cfg(test)]
mod tests;
