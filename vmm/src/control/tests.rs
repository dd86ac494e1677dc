use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use casita_agent::spec::WindowSize;
use casita_agent::wire::{Exit, ProcessInfo};

use super::protocol::{MAX_FRAME, ProcessRequest, ProgramRequest, Reply, Streams, VmStats};
use super::*;
use crate::session::{ProcessStreams, Target};

const LONG: Duration = Duration::from_secs(10);
const ALL: Streams = Streams {
    stdin: true,
    stdout: true,
    stderr: true,
};

/// A process that echoes its input and ends when that does; or at SIGKILL.
struct FakeProcess {
    told: Sender<String>,
    end: Mutex<Receiver<Exit>>,
    ended: Sender<Exit>,
}

impl Target for FakeProcess {
    fn signal(&self, signal: u8) {
        let _ = self.told.send(format!("signal {signal}"));
        if signal == 9 {
            let _ = self.ended.send(Exit::Signal(9));
        }
    }
    fn resize(&self, size: WindowSize) {
        let _ = self
            .told
            .send(format!("resize {}x{}", size.rows, size.cols));
    }
    fn kill(&self, _: u8) {}
}

impl ExecProcess for FakeProcess {
    fn wait(&self) -> Option<Exit> {
        self.end.lock().unwrap().recv().ok()
    }
}

struct FakeVm(Sender<String>);

impl FakeVm {
    fn told(&self, what: impl Into<String>) {
        let _ = self.0.send(what.into());
    }
}

impl ControlTarget for FakeVm {
    fn exec(&self, request: ProcessRequest, streams: Streams) -> Result<StartedProcess, Refusal> {
        if request.program == ProgramRequest::Command(vec!["missing".to_owned()]) {
            return Err(Refusal {
                status: 127,
                message: "missing: not found".to_owned(),
            });
        }
        let (sender, receiver) = channel();
        let process = Arc::new(FakeProcess {
            told: self.0.clone(),
            end: Mutex::new(receiver),
            ended: sender.clone(),
        });
        let pair = |wanted: bool| wanted.then(|| UnixStream::pair().unwrap()).unzip();
        let (stdin, guest_in) = pair(streams.stdin);
        let (stdout, guest_out) = pair(streams.stdout);
        let (stderr, guest_err) = pair(streams.stderr);
        let told = self.0.clone();
        thread::spawn(move || {
            let mut read = Vec::new();
            if let Some(mut stream) = guest_in {
                let _ = stream.read_to_end(&mut read);
                let _ = told.send("stdin ended".to_owned());
            }
            let wrote = guest_out.map(|mut stream| stream.write_all(&read));
            if let Some(mut stream) = guest_err {
                let _ = stream.write_all(b"complaint");
            }
            if wrote.is_none_or(|result| result.is_ok()) {
                let _ = sender.send(Exit::Code(3));
            }
        });
        Ok(StartedProcess {
            pid: 42,
            streams: ProcessStreams {
                stdin,
                stdout,
                stderr,
            },
            process,
        })
    }
    fn signal(&self, signal: u8) -> Result<(), Refusal> {
        self.told(format!("main signal {signal}"));
        Ok(())
    }
    fn stop(&self, timeout: Duration) -> Result<(), Refusal> {
        self.told(format!("stop {timeout:?}"));
        Ok(())
    }
    fn pause(&self) -> Result<(), Refusal> {
        self.told("pause");
        Ok(())
    }
    fn resume(&self) -> Result<(), Refusal> {
        Err(Refusal::new("the VM is not paused"))
    }
    fn stats(&self) -> Result<VmStats, Refusal> {
        Ok(VmStats {
            cpu_ms: 7,
            ..VmStats::default()
        })
    }
    fn processes(&self) -> Result<Vec<ProcessInfo>, Refusal> {
        Ok(Vec::new())
    }
}

struct Rig {
    dir: tempfile::TempDir,
    server: Option<ControlServer>,
    told: Receiver<String>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (sender, told) = channel();
        let server = ControlServer::start(dir.path(), Arc::new(FakeVm(sender))).unwrap();
        Self {
            dir,
            server: Some(server),
            told,
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.dir.path()).unwrap()
    }

    fn raw(&self) -> UnixStream {
        let stream = socket::connect(self.dir.path()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    fn told(&self) -> String {
        self.told.recv_timeout(LONG).unwrap()
    }
}

fn exec(client: Client, words: &[&str], streams: Streams) -> Result<Exec, ExecError> {
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    let process = ProcessRequest {
        program: ProgramRequest::Command(words),
        ..ProcessRequest::default()
    };
    client.exec(process, streams)
}

fn frame_of(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes()[..], body].concat()
}

fn read_reply(stream: &UnixStream) -> Reply {
    let bytes = frame::receive(stream, Some(LONG), LONG, &mut Vec::new());
    serde_json::from_slice(&bytes.unwrap().unwrap()).unwrap()
}

#[test]
fn each_request_reaches_the_vm_and_its_answer_the_client() {
    let rig = Rig::new();
    rig.client().signal(15).unwrap();
    assert_eq!(rig.told(), "main signal 15");
    rig.client().stop(Duration::from_secs(3)).unwrap();
    assert_eq!(rig.told(), "stop 3s");
    rig.client().pause().unwrap();
    assert_eq!(rig.told(), "pause");
    let refused = rig.client().resume().unwrap_err();
    assert_eq!(refused.to_string(), "the VM is not paused");
    assert_eq!(rig.client().stats().unwrap().cpu_ms, 7);
    assert_eq!(rig.client().processes().unwrap(), []);
}

#[test]
fn a_process_s_streams_and_its_end_reach_the_client() {
    let rig = Rig::new();
    let exec = exec(rig.client(), &["cat"], ALL).unwrap();
    assert_eq!(exec.pid, 42);
    exec.control.signal(10).unwrap();
    let size = WindowSize { rows: 5, cols: 9 };
    exec.control.resize(size).unwrap();
    assert_eq!([rig.told(), rig.told()], ["signal 10", "resize 5x9"]);
    let mut streams = exec.streams;
    let mut stdin = streams.stdin.take().unwrap();
    stdin.write_all(b"a\0\xffb").unwrap();
    stdin.shutdown(Shutdown::Write).unwrap();
    let mut text = Vec::new();
    let mut stdout = streams.stdout.unwrap();
    stdout.read_to_end(&mut text).unwrap();
    assert_eq!(text, b"a\0\xffb");
    text.clear();
    streams.stderr.unwrap().read_to_end(&mut text).unwrap();
    assert_eq!(text, b"complaint");
    assert_eq!(exec.control.wait().unwrap(), Exit::Code(3));
}

#[test]
fn streams_come_in_order_whichever_are_asked_for() {
    let rig = Rig::new();
    let only_stderr = Streams {
        stdin: false,
        stdout: false,
        stderr: true,
    };
    let exec = exec(rig.client(), &["x"], only_stderr).unwrap();
    assert!(exec.streams.stdin.is_none() && exec.streams.stdout.is_none());
    let mut text = String::new();
    let mut stderr = exec.streams.stderr.unwrap();
    stderr.read_to_string(&mut text).unwrap();
    assert_eq!(text, "complaint");
}

#[test]
fn a_command_that_is_not_found_has_its_status() {
    let rig = Rig::new();
    let error = exec(rig.client(), &["missing"], ALL).unwrap_err();
    assert!(matches!(error, ExecError::Failed { status: 127, .. }));
    assert_eq!(error.to_string(), "missing: not found");
}

#[test]
fn several_processes_at_once_do_not_disturb_each_other() {
    let rig = Rig::new();
    let started: Vec<Exec> = (0..40)
        .map(|_| exec(rig.client(), &["cat"], ALL).unwrap())
        .collect();
    for (number, exec) in started.into_iter().enumerate().rev() {
        let mut streams = exec.streams;
        let mut stdin = streams.stdin.take().unwrap();
        write!(stdin, "{number}").unwrap();
        drop(stdin);
        let mut text = String::new();
        let mut stdout = streams.stdout.unwrap();
        stdout.read_to_string(&mut text).unwrap();
        assert_eq!(text, number.to_string());
        assert_eq!(exec.control.wait().unwrap(), Exit::Code(3));
    }
}

#[test]
fn a_client_that_dies_takes_its_streams_with_it_and_hangs_its_terminal_up() {
    let rig = Rig::new();
    let process = ProcessRequest {
        terminal: Some(WindowSize { rows: 1, cols: 1 }),
        ..ProcessRequest::default()
    };
    let exec = rig.client().exec(process, ALL).unwrap();
    drop(exec);
    let mut told = [rig.told(), rig.told()];
    told.sort();
    assert_eq!(told, ["signal 1", "stdin ended"]);
}

#[test]
fn garbage_is_answered_and_does_no_harm() {
    let rig = Rig::new();
    for body in [&b"\xff\xfe"[..], b"", b"{}", b"{\"request\":\"fly\"}"] {
        let mut stream = rig.raw();
        stream.write_all(&frame_of(body)).unwrap();
        assert!(matches!(read_reply(&stream), Reply::Error { .. }));
    }
    let mut stream = rig.raw();
    stream
        .write_all(&(MAX_FRAME as u32 + 1).to_le_bytes())
        .unwrap();
    let Reply::Error { message } = read_reply(&stream) else {
        panic!("a huge frame was accepted");
    };
    assert!(message.contains("longer than"), "{message}");
    rig.client().stats().unwrap();
}

#[test]
fn garbage_after_the_start_hangs_up() {
    let rig = Rig::new();
    let mut stream = rig.raw();
    let process = ProcessRequest {
        terminal: Some(WindowSize { rows: 1, cols: 1 }),
        ..ProcessRequest::default()
    };
    let request = protocol::Request::Exec {
        process,
        streams: ALL,
    };
    frame::send(&stream, &request, &[]).unwrap();
    let mut fds = Vec::new();
    frame::receive(&stream, Some(LONG), LONG, &mut fds).unwrap();
    assert_eq!(fds.len(), 3);
    stream.write_all(&frame_of(b"nonsense")).unwrap();
    assert_eq!(rig.told(), "signal 1");
}

#[test]
fn a_client_may_leave_in_every_phase() {
    let rig = Rig::new();
    let request =
        br#"{"request":"exec","process":{},"streams":{"stdin":true,"stdout":true,"stderr":true}}"#;
    let frame = frame_of(request);
    let phases: Vec<usize> = (0..=frame.len()).collect();
    // No more at a time than there are places.
    for some in phases.chunks(32) {
        for len in some {
            let mut stream = rig.raw();
            stream.write_all(&frame[..*len]).unwrap();
        }
        // Clients are let in in turn, so all of these have been.
        rig.client().stats().unwrap();
        let server = rig.server.as_ref().unwrap();
        assert!(server.wait_idle(LONG), "places stay taken: {some:?}");
    }
}

#[test]
fn descriptors_that_a_client_sends_are_closed() {
    let rig = Rig::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stream = rig.raw();
    frame::send(&stream, &protocol::Request::Stats, &[theirs.as_fd()]).unwrap();
    drop(theirs);
    assert!(matches!(read_reply(&stream), Reply::Stats(_)));
    let mut ours = ours;
    ours.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
}

#[test]
fn more_clients_than_there_are_places_are_refused_and_silent_ones_are_shown_out() {
    let rig = Rig::new();
    let silent: Vec<_> = (0..64).map(|_| rig.raw()).collect();
    let refused = rig.client().stats().unwrap_err().to_string();
    assert!(refused.contains("too many clients"), "{refused}");
    // Each is told that its time is over, and its place is free again.
    for stream in silent {
        assert!(matches!(read_reply(&stream), Reply::Error { .. }));
    }
    rig.client().stats().unwrap();
}

#[test]
fn after_the_end_nobody_listens_and_no_file_is_left() {
    let mut rig = Rig::new();
    let path = rig.dir.path().join(SOCKET_NAME);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    rig.server.take().unwrap().finish(Duration::ZERO);
    assert!(!path.exists());
    let error = Client::connect(rig.dir.path()).unwrap_err();
    assert!(matches!(error, ClientError::NotRunning), "{error}");
}

#[test]
fn a_socket_that_was_left_behind_is_replaced() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap());
    assert!(matches!(
        Client::connect(dir.path()),
        Err(ClientError::NotRunning)
    ));
    let target = Arc::new(FakeVm(channel().0));
    let _server = ControlServer::start(dir.path(), target).unwrap();
    Client::connect(dir.path()).unwrap().stats().unwrap();
    drop(rig);
}

#[test]
fn the_folder_s_path_may_be_longer_than_a_socket_s_address() {
    let base = tempfile::tempdir().unwrap();
    let deep: PathBuf = (0..5).map(|_| "d".repeat(60)).collect();
    let dir: &Path = &base.path().join(deep);
    std::fs::create_dir_all(dir).unwrap();
    let target = Arc::new(FakeVm(channel().0));
    let _server = ControlServer::start(dir, target).unwrap();
    Client::connect(dir).unwrap().stats().unwrap();
}
