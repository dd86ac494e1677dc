//! The process that a VM is there for, from the agent's first word to the machine's last.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use casita_agent::wire::Exit;

use super::hub::Hub;
use crate::console::RawTerminal;
use crate::link::{AgentLink, Process, StartError, Streams};
use crate::machine::{Event, EventSender};
use crate::process_config::Attach;
use crate::session::{Forwarder, OnHangUp, OwnStreams, ProcessStreams, Session};

/// Where the main process's streams lead.
pub enum Attachment {
    /// To this process's own.
    Attached(Attach),
    /// Nobody is there: what it writes goes here.
    Logged {
        /// Its standard output; all that its terminal shows if it has one.
        stdout: Box<dyn Write + Send>,
        /// Its standard error.
        stderr: Box<dyn Write + Send>,
        /// Whether it has a terminal.
        terminal: bool,
    },
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attached(attach) => f.debug_tuple("Attached").field(attach).finish(),
            Self::Logged { .. } => f.debug_struct("Logged").finish_non_exhaustive(),
        }
    }
}

impl Attachment {
    /// Whether our own terminal is raw while the process runs.
    pub(super) fn is_raw(&self) -> bool {
        matches!(self, Self::Attached(attach) if attach.is_raw())
    }

    fn attach(&self) -> Attach {
        match self {
            Self::Attached(attach) => *attach,
            Self::Logged { terminal, .. } => Attach {
                stdin: false,
                terminal: *terminal,
            },
        }
    }
}

/// What became of the main process.
#[derive(Debug)]
pub(super) enum Told {
    /// It ran, and ended so.
    Exited(Exit),
    /// It could not be started.
    Refused {
        /// The exit status.
        status: u8,
        /// One line for people.
        message: String,
    },
    /// The guest ended before it did.
    Gone,
    /// This host could not do its part.
    Failed(io::Error),
}

/// Called once with the main process's number in the guest, when it runs.
pub type OnStarted = Box<dyn FnOnce(u32) + Send>;

pub(super) struct MainProcess {
    pub(super) hub: Arc<Hub>,
    pub(super) link: AgentLink,
    pub(super) events: EventSender,
    pub(super) attachment: Attachment,
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) on_started: Option<OnStarted>,
}

impl MainProcess {
    /// Waits for the guest, runs the process, and asks the guest to end.
    pub(super) fn run(self) -> Told {
        let (hub, link) = (self.hub.clone(), self.link.clone());
        let told = self.start_and_wait();
        // From here on nobody reads what is typed, however long the guest takes to end: the keys
        // that make signals have to work.
        hub.restore_terminal();
        hub.finished();
        let status = match &told {
            Told::Exited(exit) => exit.status(),
            Told::Refused { status, .. } => *status,
            Told::Failed(_) => crate::cli::EXIT_CASITA,
            Told::Gone => return told,
        };
        hub.main_process_ended();
        // A guest that is gone has ended by itself.
        let _ = link.shutdown(status);
        told
    }

    fn start_and_wait(self) -> Told {
        if self.link.wait_ready(None).is_err() {
            return Told::Gone;
        }
        let attach = self.attachment.attach();
        if self.attachment.is_raw() {
            match RawTerminal::enter() {
                Ok(terminal) => self.hub.keep_terminal(terminal),
                Err(error) => return Told::Failed(error),
            }
        }
        let streams = Streams {
            stdin: attach.stdin,
            stdout: true,
            stderr: !attach.terminal,
        };
        let spec = self.hub.config().main_process(attach.size());
        let process = match self.link.start(spec, streams) {
            Ok(process) => process,
            Err(StartError::Refused { status, message }) => {
                return Told::Refused { status, message };
            }
            Err(_) => return Told::Gone,
        };
        self.hub.main_process_runs(process.id);
        self.forwarder.started();
        if let Some(on_started) = self.on_started {
            on_started(process.pid);
        }
        attached(process, self.attachment, attach, &self.events)
    }
}

fn attached(
    process: Process,
    attachment: Attachment,
    attach: Attach,
    events: &EventSender,
) -> Told {
    let streams = ProcessStreams {
        stdin: process.stdin,
        stdout: process.stdout,
        stderr: process.stderr,
    };
    let mut carriers = match start_carriers(streams, attachment, attach, events) {
        Ok(carriers) => carriers,
        Err(error) => return Told::Failed(error),
    };
    carriers.drain();
    // Before the input is let go: a process may close what it writes and read on.
    let exit = process.exit.wait();
    drop(carriers);
    exit.map_or(Told::Gone, Told::Exited)
}

enum Carriers {
    Session(Session),
    Loggers(Vec<JoinHandle<()>>),
}

impl Carriers {
    /// Waits until all that the process wrote is where it belongs.
    fn drain(&mut self) {
        match self {
            Self::Session(session) => session.drain(),
            Self::Loggers(threads) => threads.drain(..).for_each(|thread| {
                // A panic has been reported.
                let _ = thread.join();
            }),
        }
    }
}

fn start_carriers(
    streams: ProcessStreams,
    attachment: Attachment,
    attach: Attach,
    events: &EventSender,
) -> io::Result<Carriers> {
    match attachment {
        Attachment::Attached(_) => {
            let events = events.clone();
            let hang_up: OnHangUp = Box::new(move || events.send(Event::Escape));
            let hang_up = attach.is_raw().then_some(hang_up);
            let own = OwnStreams::of_this_process()?;
            Session::start(streams, own, hang_up).map(Carriers::Session)
        }
        Attachment::Logged { stdout, stderr, .. } => {
            let pairs = [
                ("stdout", streams.stdout, stdout),
                ("stderr", streams.stderr, stderr),
            ];
            let mut threads = Vec::new();
            for (name, from, to) in pairs {
                if let Some(from) = from {
                    let thread = thread::Builder::new().name(name.into());
                    threads.push(thread.spawn(move || keep(name, from, to))?);
                }
            }
            Ok(Carriers::Loggers(threads))
        }
    }
}

/// Writes all of `from` into a log. One that takes no more, on a full disk, is no reason for the
/// process to stand still.
fn keep(name: &str, mut from: UnixStream, to: Box<dyn Write + Send>) {
    let mut buffer = vec![0; 64 << 10];
    let mut to = Some(to);
    loop {
        let count = match from.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The guest is gone; what it sent has been read.
            Err(_) => 0,
        };
        if count == 0 {
            return;
        }
        if let Some(log) = &mut to
            && let Err(error) = log.write_all(&buffer[..count])
        {
            log::warn!("the log of {name} is given up: {error}");
            to = None;
        }
    }
}
