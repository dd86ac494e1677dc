//! How a command and whoever started it part: by a closed pipe, by a time limit, by signals.

use anyhow::{Result, ensure};
use casita_tests::place::Place;
use casita_tests::run::{Program, Running};
use casita_tests::suite::Suite;
use rustix::process::Signal;

use super::shell;

pub fn tests(suite: &mut Suite) {
    suite.test("a_reader_that_goes_ends_the_writer_by_sigpipe", broken_pipe);
    suite.test("the_time_limit_is_124", timeout);
    suite.test("the_time_limit_kills_who_does_not_listen", timeout_kills);
    suite.test("signals_reach_what_exec_started", exec_signals);
    suite.test("exec_can_leave_a_command_behind", exec_detached);
}

fn broken_pipe() -> Result<()> {
    let place = Place::new()?;
    let pipe = "\"$@\" | head -n 1; exit ${PIPESTATUS[0]}";
    let program = place.casita(["run", "--rm", "--", "yes"]);
    let finished = program
        .under(&["bash", "-c", pipe, "bash"])
        .finish()?
        .expect(141)?;
    ensure!(finished.text() == "y\n", "{finished}");
    Ok(())
}

fn timeout() -> Result<()> {
    let script = "trap 'echo asked; exit 0' INT; while :; do sleep 0.1; done";
    let options = ["--rm", "--timeout", "3", "--stop-signal", "INT"];
    let finished = shell(&Place::new()?, &options, script)
        .finish()?
        .expect(124)?;
    ensure!(finished.text() == "asked\n", "{finished}");
    Ok(())
}

fn timeout_kills() -> Result<()> {
    let script = "trap '' TERM; while :; do sleep 0.1; done";
    let options = ["--rm", "--timeout", "2", "--stop-timeout", "500ms"];
    let finished = shell(&Place::new()?, &options, script).finish()?;
    finished.expect(124)?;
    Ok(())
}

/// A VM to enter.
struct Vm {
    place: Place,
    running: Running,
}

impl Vm {
    fn start(options: &[&str]) -> Result<Self> {
        let place = Place::new()?;
        let options = [&["--rm", "--name", "vm"], options].concat();
        let script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done";
        let running = shell(&place, &options, script).start()?;
        running.wait_for("ready")?;
        Ok(Self { place, running })
    }

    fn exec(&self, options: &[&str], script: &str) -> Program {
        let command = ["vm", "sh", "-c", script];
        self.place.casita([&["exec"], options, &command].concat())
    }

    fn end(self) -> Result<()> {
        self.running.signal(Signal::TERM)?;
        self.running.finish()?.expect(0)?;
        Ok(())
    }
}

fn exec_signals() -> Result<()> {
    let vm = Vm::start(&[])?;
    let script = "trap 'echo got' TERM; echo ready; while :; do sleep 0.1; done";
    let client = vm.exec(&[], script).start()?;
    client.wait_for("ready")?;
    client.signal(Signal::TERM)?;
    client.wait_for("got")?;
    client.signal(Signal::TERM)?;
    client.finish()?.expect(143)?;
    vm.end()
}

fn exec_detached() -> Result<()> {
    let vm = Vm::start(&[])?;
    let detached = vm.exec(&["-d"], "echo x > /tmp/made; echo y");
    let finished = detached.finish()?.expect(0)?;
    ensure!(finished.stdout.is_empty(), "{finished}");
    let wait = "while ! test -s /tmp/made; do sleep 0.1; done";
    vm.exec(&[], wait).finish()?.expect(0)?;
    vm.end()
}
