//! The programs of `examples/`, with real guests.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::run::{Finished, Program, patience};
use rustix::process::Signal;

use super::example;

/// An example, started as `casita` is.
fn program(place: &Place, name: &str, arguments: &[&str]) -> Result<Program> {
    let like = place.casita(["x"]).command()?;
    let words = [
        &[example(name).display().to_string()],
        &arguments
            .iter()
            .map(|&it| it.to_owned())
            .collect::<Vec<_>>()[..],
    ];
    let mut program = Program::new(words.concat()).env("CASITA_BIN", machine::casita());
    for (variable, value) in like.get_envs() {
        if let (Some(variable), Some(value)) = (variable.to_str(), value) {
            program = program.env(variable, value);
        }
    }
    Ok(program)
}

pub fn judge() -> Result<()> {
    let place = Place::new()?;
    fs::create_dir(place.path("tests"))?;
    for (name, input, output) in [("1", "2 3\n", "5\n"), ("2", "20 22\n", "42\n")] {
        place.write(&format!("tests/{name}.in"), input)?;
        place.write(&format!("tests/{name}.out"), output)?;
    }
    let tests = place.text("tests");
    let judged = |source: &str, compile: &str| -> Result<Finished> {
        let source = place.write("a.sh", source)?;
        let mut words = vec!["--source", &source, "--time", "2", "--memory", "24"];
        if compile.is_empty() {
            words.extend(["--run", "sh /box/a.sh"]);
        } else {
            words.extend(["--compile", compile]);
        }
        words.push(&tests);
        program(&place, "judge", &words)?.finish()
    };
    let verdicts = |finished: &Finished| -> String {
        let text = finished.text();
        let words = text
            .lines()
            .map(|line| line.split(' ').nth(1).unwrap_or_default().to_owned());
        words.collect::<Vec<_>>().join(" ")
    };
    for (source, expected, status) in [
        ("read a b; echo $((a + b))", "AC AC of", 0),
        ("echo 5", "AC WA of", 1),
        (
            "read a b; [ $a = 2 ] && exit 3; echo $((a + b))",
            "RE AC of",
            1,
        ),
        ("while :; do :; done", "TLE TLE of", 1),
        ("x=aaaaaaaa; while :; do x=$x$x; done", "MLE MLE of", 1),
        ("yes", "OLE OLE of", 1),
        ("f() { f & f & }; f; sleep 9", "RE RE of", 1),
    ] {
        let finished = judged(source, "")?.expect(status)?;
        ensure!(verdicts(&finished) == expected, "{source}\n{finished}");
    }
    let finished = judged(
        "read a b; echo $((a + b))",
        "(echo '#!/bin/sh'; cat a.sh) >program",
    )?;
    ensure!(verdicts(&finished.expect(0)?) == "AC AC of");
    let finished = judged("x", "echo syntax error >&2; exit 1")?.expect(1)?;
    let text = finished.text();
    ensure!(
        text.starts_with("CE\n") && text.contains("syntax error"),
        "{finished}"
    );
    Ok(())
}

pub fn snippet() -> Result<()> {
    let place = Place::new()?;
    casita_tests::oci::share(&place)?;
    let snippet = program(&place, "snippet", &["--image", "python", "--seconds", "30"])?;
    let code =
        "import os, sys\nprint(6 * 7, os.getuid())\nprint('e', file=sys.stderr)\nsys.exit(5)\n";
    let finished = snippet.finish_with(code.as_bytes())?.expect(5)?;
    ensure!(
        finished.text() == "42 65534\n" && finished.complaint() == "e\n",
        "{finished}"
    );
    let finished = snippet.finish_with(b"x = []\nwhile True: x.append('x' * 1000000)\n")?;
    let finished = finished.expect(124)?;
    ensure!(
        finished.complaint().contains("limit of memory"),
        "{finished}"
    );
    Ok(())
}

pub fn serve() -> Result<()> {
    let place = Place::new()?;
    let socket = place.text("s");
    let words = [
        "--socket",
        &socket,
        "--workers",
        "2",
        "--queue",
        "2",
        "--deadline",
        "100",
    ];
    let mut command = program(&place, "serve", &words)?.command()?;
    let mut server = command.stdin(Stdio::null()).spawn().context("serve")?;
    let served = clients(&socket);
    rustix::process::kill_process(rustix::process::Pid::from_child(&server), Signal::TERM)?;
    let start = Instant::now();
    let status = loop {
        if let Some(status) = server.try_wait()? {
            break status;
        }
        if start.elapsed() > patience() {
            server.kill()?;
            server.wait()?;
        }
        thread::sleep(Duration::from_millis(10));
    };
    served?;
    ensure!(status.success() && !place.path("s").exists(), "{status}");
    Ok(())
}

fn ask(socket: &str, body: &str) -> Result<String> {
    let start = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error) if start.elapsed() > patience() => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    };
    let length = body.len();
    write!(
        stream,
        "POST /run HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Six at once, for two workers and a queue of two: four are served, and two are sent away.
fn clients(socket: &str) -> Result<()> {
    let body = r#"{"command": ["sh", "-c", "sleep 3; echo served"],
        "limits": {"time_ms": 60000, "cpu_time_ms": 60000, "memory_bytes": 33554432}}"#;
    let answers = thread::scope(|scope| {
        let clients: Vec<_> = (0..6).map(|_| scope.spawn(|| ask(socket, body))).collect();
        let answers = clients.into_iter().map(thread::ScopedJoinHandle::join);
        answers
            .map(|answer| answer.map_err(|_| anyhow::anyhow!("panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    let count = |text: &str| {
        answers
            .iter()
            .filter(|answer| answer.contains(text))
            .count()
    };
    ensure!(count("\"text\":\"served\\n\"") == 4, "{answers:#?}");
    ensure!(count("HTTP/1.1 503") == 2, "{answers:#?}");
    Ok(())
}
