use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex};
use std::thread::{self, JoinHandle};

use casita::sandbox::{Bytes as Data, End, Output, Usage, VERSION};

use super::*;

/// A gate that runs stand before until it is opened.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let open = self.open.lock().unwrap();
        drop(self.changed.wait_while(open, |open| !*open).unwrap());
    }
}

struct Server {
    place: tempfile::TempDir,
    gate: Arc<Gate>,
    /// One word for each run that begins.
    begun: Receiver<Duration>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

fn echo(request: &SandboxRequest) -> SandboxResult {
    SandboxResult {
        version: VERSION,
        end: End::Exited { code: 0 },
        stdout: Output {
            data: Data::from(request.command.join(" ").as_str()),
            truncated: false,
        },
        stderr: Output::default(),
        files: Vec::new(),
        not_taken: Vec::new(),
        usage: Usage::default(),
    }
}

impl Server {
    fn start(workers: usize, queue: usize, deadline: Duration) -> Self {
        let place = tempfile::tempdir().unwrap();
        let gate = Arc::new(Gate::default());
        let (sender, begun): (Sender<Duration>, _) = channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (path, standing) = (place.path().join("s"), gate.clone());
        let sender = Mutex::new(sender);
        let service = Arc::new(Service {
            pool: Pool::new(workers, queue),
            deadline,
            runner: Box::new(move |request| {
                let _ = sender.lock().unwrap().send(request.limits.time);
                standing.pass();
                if request.command == ["refuse"] {
                    return Err(SandboxError::Refused("no such image".to_owned()));
                }
                Ok(echo(request))
            }),
        });
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let stop = async move {
                let _ = stopped.await;
            };
            runtime
                .unwrap()
                .block_on(serve(&path, service, stop))
                .unwrap();
        });
        let server = Self {
            place,
            gate,
            begun,
            stop: Some(stop),
            thread: Some(thread),
        };
        while UnixStream::connect(server.place.path().join("s")).is_err() {
            thread::yield_now();
        }
        server
    }

    /// Sends a request and leaves it there.
    fn send(&self, head: &str, body: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.place.path().join("s")).unwrap();
        let length = body.len();
        write!(
            stream,
            "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        stream
    }

    fn ask(&self, head: &str, body: &str) -> String {
        answer(self.send(head, body))
    }

    fn load(&self) -> String {
        self.ask("GET /health", "")
    }

    fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

fn answer(mut stream: UnixStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

const RUN: &str = r#"{"command": ["a", "b"]}"#;

#[test]
fn a_run_is_answered_with_its_result_and_a_bad_request_with_why() {
    let server = Server::start(1, 1, Duration::from_mins(1));
    server.gate.open();
    let answer = server.ask("POST /run", RUN);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("\"text\":\"a b\""), "{answer}");
    for (head, body, status) in [
        ("POST /run", "{", 400),
        ("POST /run", r#"{"limits": {"processes": 0}}"#, 400),
        ("POST /run", r#"{"stdin": {"file": "/etc/passwd"}}"#, 400),
        (
            "POST /run",
            r#"{"put": [{"path": "/a", "file": "/etc/passwd"}]}"#,
            400,
        ),
        ("POST /run", r#"{"image": {"rootfs": "/"}}"#, 400),
        ("POST /run", r#"{"kernel": "/boot/vmlinuz"}"#, 400),
        ("POST /run", r#"{"egress": "all"}"#, 400),
        ("POST /run", r#"{"command": ["refuse"]}"#, 422),
        ("GET /run", "", 405),
        ("GET /", "", 404),
    ] {
        let answer = server.ask(head, body);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{body}: {answer}"
        );
        assert!(answer.contains("\"error\""), "{answer}");
    }
}

#[test]
fn who_comes_when_the_queue_is_full_is_sent_away() {
    let server = Server::start(1, 1, Duration::from_mins(10));
    let first = server.send("POST /run", RUN);
    server.begun.recv().unwrap();
    let second = server.send("POST /run", RUN);
    while !server.load().contains("\"waiting\":1") {
        thread::yield_now();
    }
    let third = server.ask("POST /run", RUN);
    assert!(third.starts_with("HTTP/1.1 503"), "{third}");
    assert!(third.to_lowercase().contains("retry-after: 1"), "{third}");
    server.gate.open();
    for stream in [first, second] {
        let answer = answer(stream);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[test]
fn a_request_whose_time_is_over_is_not_started_and_one_that_is_has_the_rest() {
    let server = Server::start(1, 1, Duration::from_millis(300));
    let first = server.send("POST /run", RUN);
    let time = server.begun.recv().unwrap();
    assert!(time <= Duration::from_millis(300), "{time:?}");
    let second = server.ask("POST /run", RUN);
    assert!(second.starts_with("HTTP/1.1 504"), "{second}");
    server.gate.open();
    assert!(answer(first).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_client_that_leaves_keeps_its_worker_until_its_run_is_over() {
    let server = Server::start(1, 0, Duration::from_mins(1));
    drop(server.send("POST /run", RUN));
    server.begun.recv().unwrap();
    let other = server.ask("POST /run", RUN);
    assert!(other.starts_with("HTTP/1.1 503"), "{other}");
    server.gate.open();
    while !server.load().contains("\"running\":0") {
        thread::yield_now();
    }
    assert!(server.ask("POST /run", RUN).starts_with("HTTP/1.1 200"));
}

#[test]
fn the_end_waits_for_what_has_begun_and_takes_nothing_more() {
    let mut server = Server::start(1, 1, Duration::from_mins(10));
    let first = server.send("POST /run", RUN);
    server.begun.recv().unwrap();
    server.stop();
    let path = server.place.path().join("s");
    while path.exists() {
        thread::yield_now();
    }
    assert!(UnixStream::connect(&path).is_err());
    assert!(!server.thread.as_ref().unwrap().is_finished());
    server.gate.open();
    assert!(answer(first).starts_with("HTTP/1.1 200"));
    server.thread.take().unwrap().join().unwrap();
}
