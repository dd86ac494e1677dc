//! Terminals and pipes that go away, and output that nobody takes.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{fs::File, thread};

use anyhow::{Context, Result, ensure};
use casita_tests::machine;
use casita_tests::run::patience;
use casita_tests::suite::Suite;
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::Host;

pub fn tests(suite: &mut Suite) {
    let setsid = machine::lacks("setsid", "util-linux");
    suite.test_if(setsid, "a_terminal_that_is_closed_ends_its_vm", terminal);
    suite.test("a_pipe_without_a_reader_does_not_stop_the_guest", pipe);
    suite.test("output_without_room_does_not_stop_the_guest", full);
}

fn wait(child: &mut Child) -> Result<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if start.elapsed() > patience() {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("it did not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// In the middle of output, which fills the terminal's buffer.
fn terminal() -> Result<()> {
    let host = Host::new()?;
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NOCTTY.bits().cast_signed())
        .open(name.to_str()?)?;
    let mut child = host
        .run(&["--name", "v"], "babbles")
        .under(&["setsid", "--ctty"])
        .command()?
        .stdin(Stdio::from(terminal.try_clone()?))
        .stdout(Stdio::from(terminal.try_clone()?))
        .stderr(Stdio::from(terminal))
        .spawn()
        .context("setsid")?;
    let mut master = File::from(master);
    master.read_exact(&mut [0; 100])?;
    drop(master);
    let status = wait(&mut child)?;
    // 128 and SIGHUP's number.
    ensure!(status.code() == Some(129), "{status}");
    ensure!(host.ok(&["ps", "-q"])?.is_empty(), "it still runs");
    host.is_consistent()
}

fn pipe() -> Result<()> {
    let host = Host::new()?;
    let mut child = host
        .run(&["--rm"], "talks")
        .command()?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut output = child.stdout.take().context("no pipe")?;
    output.read_exact(&mut [0; 100])?;
    drop(output);
    let status = wait(&mut child)?;
    ensure!(status.code() == Some(7), "{status}");
    host.is_consistent()
}

fn full() -> Result<()> {
    let host = Host::new()?;
    let full = OpenOptions::new().write(true).open("/dev/full")?;
    let mut child = host
        .run(&["--rm"], "talks")
        .command()?
        .stdin(Stdio::null())
        .stdout(Stdio::from(full.try_clone()?))
        .stderr(Stdio::from(full))
        .spawn()?;
    let status = wait(&mut child)?;
    ensure!(status.code() == Some(7), "{status}");
    host.is_consistent()
}
