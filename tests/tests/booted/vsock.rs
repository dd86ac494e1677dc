//! Streams between vsock ports of guest and host.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use casita_tests::image;
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::run::{Program, patience};
use casita_tests::suite::Suite;

pub fn tests(suite: &mut Suite) {
    suite.test_if(
        machine::lacks("cc", "gcc"),
        "a_guest_reaches_a_socket_of_the_host",
        to_the_host,
    );
    suite.test_if(
        machine::lacks("cc", "gcc"),
        "the_host_reaches_a_port_of_the_guest",
        to_the_guest,
    );
}

/// A root with the client in it, and the VM that runs `script` there.
fn program(place: &Place, script: &str) -> Result<Program> {
    let (tree, source) = (place.path("tree"), place.path("client.c"));
    image::tree(&tree, "")?;
    fs::write(&source, include_str!("vsock-client.c"))?;
    let built = Command::new("cc")
        .args(["-static", "-O1", "-o"])
        .args([&tree.join("bin/vsock-client"), &source])
        .status()?;
    ensure!(built.success(), "the client does not compile");
    let (rootfs, socket) = (place.text("tree"), place.text("v"));
    Ok(place.casita([
        "run", "--rootfs", &rootfs, "--vsock", &socket, "--", "sh", "-c", script,
    ]))
}

/// More than all buffers on the way hold.
fn pattern() -> Vec<u8> {
    (0..3_000_000_u32)
        .map(|at| (at ^ (at >> 8)) as u8)
        .collect()
}

fn to_the_host() -> Result<()> {
    let place = Place::new()?;
    let script =
        "cat /etc/large | vsock-client connect 1234; echo $?; vsock-client connect 99 </dev/null";
    let program = program(&place, script)?;
    let listener = UnixListener::bind(place.path("v_1234"))?;
    let host = thread::spawn(move || -> Result<usize> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(patience()))?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        stream.write_all(b"from the host\n")?;
        ensure!(bytes.iter().all(|byte| *byte == b'x'), "other bytes came");
        Ok(bytes.len())
    });
    // Nobody listens to port 99.
    let finished = program.finish()?.expect(1)?;
    let text = finished.text();
    ensure!(text.starts_with("from the host\n0\n"), "{finished}");
    let count = host.join().ok().context("the host's end panicked")??;
    ensure!(count == 3_000_000, "{count} bytes came");
    ensure!(!place.path("v").exists(), "the socket was left behind");
    Ok(())
}

fn to_the_guest() -> Result<()> {
    let place = Place::new()?;
    let running = program(&place, "vsock-client listen 77")?.start()?;
    running.wait_for("listening")?;
    let mut stream = UnixStream::connect(place.path("v"))?;
    stream.set_read_timeout(Some(patience()))?;
    stream.write_all(b"CONNECT 77\n")?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut answer = String::new();
    reader.read_line(&mut answer)?;
    ensure!(answer.starts_with("OK "), "the answer was {answer:?}");
    let sent = pattern();
    let bytes = sent.clone();
    let writer = thread::spawn(move || {
        stream.write_all(&bytes)?;
        stream.shutdown(Shutdown::Write)
    });
    let mut echo = Vec::new();
    reader.read_to_end(&mut echo)?;
    writer.join().ok().context("the writer panicked")??;
    ensure!(
        echo == sent,
        "{} of {} bytes came back, or others",
        echo.len(),
        sent.len()
    );
    running.finish()?.expect(0)?;
    Ok(())
}
