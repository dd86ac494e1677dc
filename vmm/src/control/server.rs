//! The monitor's side of the control socket.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use casita_agent::spec::WindowSize;
use casita_agent::wire::{Exit, ProcessInfo};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;

use super::protocol::{ProcessRequest, Reply, Request, Streams, VmStats, decode_request};
use super::{frame, socket};
use crate::confine::{self, Role};
use crate::session::{ProcessStreams, StopEvent, Target};

/// Connections that are served at a time, those of processes not counted.
const MAX_CONNECTIONS: usize = 64;
/// Connections of processes at a time.
const MAX_EXECS: usize = casita_agent::wire::MAX_PROCESSES;
/// How long a client may take to say what it wants, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why something is not done: one line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The exit status that goes with it.
    pub status: u8,
    /// What is told.
    pub message: String,
}

impl Refusal {
    /// The VM can't do it.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            status: crate::cli::EXIT_CASITA,
            message: message.into(),
        }
    }
}

/// A process that was started for a client.
pub struct StartedProcess {
    /// Its number in the guest.
    pub pid: u32,
    /// Our ends of its streams, which go to the client.
    pub streams: ProcessStreams,
    /// The process itself.
    pub process: Arc<dyn ExecProcess>,
}

/// A process, as long as its connection lives.
pub trait ExecProcess: Target {
    /// Waits for its end; None if the guest ends first.
    fn wait(&self) -> Option<Exit>;
}

/// A VM, for the control socket. Each is called on a connection's own thread, and may wait.
pub trait ControlTarget: Send + Sync + 'static {
    /// Starts a process.
    ///
    /// # Errors
    /// If it can't be started.
    fn exec(&self, process: ProcessRequest, streams: Streams) -> Result<StartedProcess, Refusal>;
    /// Sends a signal to the main process. SIGKILL ends the VM, even if there is no process to take
    /// it, and returns when it has ended.
    ///
    /// # Errors
    /// If there is none to take it, or the VM goes on.
    fn signal(&self, signal: u8) -> Result<(), Refusal>;
    /// Asks the main process to end, and ends the VM after `timeout` if that has no effect.
    /// Returns when the VM has ended.
    ///
    /// # Errors
    /// If it goes on.
    fn stop(&self, timeout: Duration) -> Result<(), Refusal>;
    /// Stops the vCPUs.
    ///
    /// # Errors
    /// If they do not stop.
    fn pause(&self) -> Result<(), Refusal>;
    /// Lets them go on.
    ///
    /// # Errors
    /// If they were not stopped.
    fn resume(&self) -> Result<(), Refusal>;
    /// What the VM has used.
    ///
    /// # Errors
    /// If the host does not tell.
    fn stats(&self) -> Result<VmStats, Refusal>;
    /// The guest's processes.
    ///
    /// # Errors
    /// If the guest does not tell.
    fn processes(&self) -> Result<Vec<ProcessInfo>, Refusal>;
}

/// A socket that clients can come to, who wait until they are served.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Listens in `dir`, which is private to this user.
    ///
    /// # Errors
    /// If the socket can't be made.
    pub fn listen(dir: &Path) -> io::Result<Self> {
        let listener = socket::listen(dir)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            path: dir.join(socket::NAME),
        })
    }
}

/// The listening socket, and those that it serves.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    stop: StopEvent,
    acceptor: Option<JoinHandle<()>>,
    places: Arc<Places>,
}

impl ControlServer {
    /// Listens in `dir`, which is private to this user, and serves `target`.
    ///
    /// # Errors
    /// If the socket can't be made.
    #[cfg(test)]
    pub fn start(dir: &Path, target: Arc<dyn ControlTarget>) -> io::Result<Self> {
        Self::serve(ControlSocket::listen(dir)?, target)
    }

    /// Serves `target` to those who come to the socket.
    ///
    /// # Errors
    /// If the host has no thread left.
    pub fn serve(socket: ControlSocket, target: Arc<dyn ControlTarget>) -> io::Result<Self> {
        let ControlSocket { listener, path } = socket;
        let stop = StopEvent::new()?;
        let places = Arc::new(Places::default());
        let (stopped, serving) = (stop.clone(), places.clone());
        let acceptor = thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                confine::enter_role(Role::Control);
                accept_all(&listener, &stopped, &serving, &target);
            })?;
        Ok(Self {
            path,
            stop,
            acceptor: Some(acceptor),
            places,
        })
    }

    /// Takes no more clients, and gives those that are served `patience` to take their last reply.
    pub fn finish(mut self, patience: Duration) {
        self.stop_accepting();
        // What is not told in time is told by the connection's end.
        let _ = self.places.wait_for_none(patience);
    }

    /// Waits until nobody is served; tells whether that is so.
    #[cfg(test)]
    pub(super) fn wait_idle(&self, patience: Duration) -> bool {
        self.places.wait_for_none(patience)
    }

    fn stop_accepting(&mut self) {
        self.stop.stop();
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
            // Whoever removed it before has done no harm.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop_accepting();
    }
}

/// How many connections there are.
#[derive(Debug, Default)]
struct Places {
    taken: Mutex<[usize; 2]>,
    left: Condvar,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Plain,
    Exec,
}

/// One connection's place; it is free again when this is dropped.
struct Place {
    places: Arc<Places>,
    kind: Kind,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, [usize; 2]> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, kind: Kind) -> Option<Place> {
        let most = match kind {
            Kind::Plain => MAX_CONNECTIONS,
            Kind::Exec => MAX_EXECS,
        };
        let taken = &mut self.lock()[kind as usize];
        if *taken >= most {
            return None;
        }
        *taken += 1;
        Some(Place {
            places: self.clone(),
            kind,
        })
    }

    /// Tells whether there are none.
    fn wait_for_none(&self, patience: Duration) -> bool {
        let busy = |taken: &mut [usize; 2]| taken.iter().any(|count| *count > 0);
        let waited = self.left.wait_timeout_while(self.lock(), patience, busy);
        waited.is_ok_and(|(_, time)| !time.timed_out())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock()[self.kind as usize] -= 1;
        self.places.left.notify_all();
    }
}

fn accept_all(
    listener: &UnixListener,
    stop: &StopEvent,
    places: &Arc<Places>,
    target: &Arc<dyn ControlTarget>,
) {
    const PAUSE: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 100_000_000,
    };
    loop {
        let mut fds = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(listener, PollFlags::IN),
        ];
        let _ = poll(&mut fds, None);
        if !fds[0].revents().is_empty() {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => serve(stream, places, target),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // No descriptor is left: whoever wants in waits until there is one.
                log::warn!("a client of the control socket was not let in: {error}");
                let _ = poll(&mut [PollFd::new(stop, PollFlags::IN)], Some(&PAUSE));
            }
        }
    }
}

/// The number that the kernel shows for users who are not in this process's namespace.
const OVERFLOW: u32 = 65534;

/// Whether it is a process of this user or of root. To a confined process root has no number; but
/// only this user and root can enter the socket's folder.
fn is_ours(stream: &UnixStream) -> bool {
    socket_peercred(stream).is_ok_and(|peer| {
        peer.uid.is_root()
            || peer.uid == rustix::process::geteuid()
            || (confine::is_confined() && peer.uid.as_raw() == OVERFLOW)
    })
}

fn serve(stream: UnixStream, places: &Arc<Places>, target: &Arc<dyn ControlTarget>) {
    let limited = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    if limited.is_err() || !is_ours(&stream) {
        return;
    }
    let Some(place) = places.take(Kind::Plain) else {
        return refuse(&stream, "the VM has too many clients: try again later");
    };
    let connection = Connection {
        stream,
        place: Arc::new(place),
        target: target.clone(),
    };
    let thread = thread::Builder::new().name("control".into());
    if let Err(error) = thread.spawn(move || connection.serve()) {
        log::warn!("a client of the control socket was not served: {error}");
    }
}

/// A client that is gone, or does not read, misses the answer.
fn reply(stream: &UnixStream, reply: &Reply) {
    if let Err(error @ frame::FrameError::TooLong(_)) = frame::send(stream, reply, &[]) {
        let message = format!("the VM's answer does not fit: {error}");
        let _ = frame::send(stream, &Reply::Error { message }, &[]);
    }
}

fn refuse(stream: &UnixStream, message: impl Into<String>) {
    let message = message.into();
    reply(stream, &Reply::Error { message });
}

struct Connection {
    stream: UnixStream,
    place: Arc<Place>,
    target: Arc<dyn ControlTarget>,
}

impl Connection {
    fn serve(self) {
        let bytes = match self.receive(Some(PATIENCE)) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(error) => return refuse(&self.stream, error.to_string()),
        };
        let answer = match decode_request(&bytes) {
            Err(error) => Err(Refusal::new(error.to_string())),
            Ok(Request::Exec { process, streams }) => return self.exec(process, streams),
            Ok(Request::Resize { .. }) => Err(Refusal::new(
                "only a process that was started by exec can be resized",
            )),
            Ok(Request::Signal { signal }) => self.target.signal(signal).map(|()| Reply::Done),
            Ok(Request::Stop { timeout_ms }) => {
                let timeout = Duration::from_millis(timeout_ms);
                self.target.stop(timeout).map(|()| Reply::Done)
            }
            Ok(Request::Pause) => self.target.pause().map(|()| Reply::Done),
            Ok(Request::Resume) => self.target.resume().map(|()| Reply::Done),
            Ok(Request::Stats) => self.target.stats().map(Reply::Stats),
            Ok(Request::Processes) => self
                .target
                .processes()
                .map(|processes| Reply::Processes { processes }),
        };
        let answer = answer.unwrap_or_else(|Refusal { message, .. }| Reply::Error { message });
        reply(&self.stream, &answer);
    }

    /// Descriptors that a client sends are nobody's wish, and are closed.
    fn receive(&self, patience: Option<Duration>) -> Result<Option<Vec<u8>>, frame::FrameError> {
        frame::receive(&self.stream, patience, PATIENCE, &mut Vec::new())
    }

    fn exec(mut self, request: ProcessRequest, wanted: Streams) {
        let Some(place) = self.place.places.take(Kind::Exec) else {
            return refuse(&self.stream, "the VM has too many processes of clients");
        };
        self.place = Arc::new(place);
        let has_terminal = request.terminal.is_some();
        let started = match self.target.exec(request, wanted) {
            Ok(started) => started,
            Err(Refusal { status, message }) => {
                return reply(&self.stream, &Reply::Failed { status, message });
            }
        };
        let process = started.process;
        let told = tell_started(&self.stream, started.pid, &started.streams);
        // From here on the client alone holds them, so that they end with it.
        drop(started.streams);
        let spawned = told.and_then(|()| self.tell_exit(process.clone()));
        if spawned.is_ok() {
            self.obey(&*process);
        }
        if has_terminal {
            // As when a terminal is closed; a process that has ended does not mind.
            process.signal(libc::SIGHUP as u8);
        }
    }

    /// Tells the client of the process's end, on a thread of its own.
    fn tell_exit(&self, process: Arc<dyn ExecProcess>) -> Result<(), frame::FrameError> {
        let stream = self.stream.try_clone()?;
        let place = self.place.clone();
        thread::Builder::new().name("exec".into()).spawn(move || {
            match process.wait() {
                Some(exit) => reply(&stream, &Reply::Exited { exit }),
                None => refuse(&stream, "the VM has ended"),
            }
            // Ends `obey` too.
            let _ = stream.shutdown(Shutdown::Both);
            drop(place);
        })?;
        Ok(())
    }

    /// Does what the client wants of its process, until it leaves or the process has ended.
    fn obey(&self, process: &dyn ExecProcess) {
        while let Ok(Some(bytes)) = self.receive(None) {
            match decode_request(&bytes) {
                Ok(Request::Signal { signal }) => process.signal(signal),
                Ok(Request::Resize { rows, cols }) => process.resize(WindowSize { rows, cols }),
                // A client that does not know what it says is not listened to any more.
                _ => return,
            }
        }
    }
}

fn tell_started(
    stream: &UnixStream,
    pid: u32,
    streams: &ProcessStreams,
) -> Result<(), frame::FrameError> {
    let fds: Vec<BorrowedFd<'_>> = [&streams.stdin, &streams.stdout, &streams.stderr]
        .into_iter()
        .flatten()
        .map(AsFd::as_fd)
        .collect();
    frame::send(stream, &Reply::Started { pid }, &fds)
}
