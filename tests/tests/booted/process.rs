//! A command in a guest is a process: its streams, its signals, its surroundings; and so are those
//! that enter a VM later.

use std::thread;

use anyhow::{Result, ensure};
use casita_tests::place::Place;
use casita_tests::run::{Program, Running};
use casita_tests::suite::Suite;
use rustix::process::Signal;

use super::{sh, shell};

pub fn tests(suite: &mut Suite) {
    suite.test("output_and_complaints_are_apart_and_binary", apart);
    suite.test("a_mebibyte_of_any_bytes_comes_back", mebibyte);
    suite.test("a_reader_that_goes_ends_the_writer_by_sigpipe", broken_pipe);
    suite.test("a_signal_reaches_the_command", forwarded);
    suite.test("the_second_sigterm_kills", killed);
    suite.test("the_time_limit_is_124", timeout);
    suite.test("the_time_limit_kills_who_does_not_listen", timeout_kills);
    suite.test("user_folder_variables_name_and_limits", surroundings);
    suite.test("a_terminal_is_refused_where_there_is_none", no_terminal);
    suite.test("exec_has_streams_and_a_status_of_its_own", exec);
    suite.test(
        "exec_has_what_the_main_command_has_or_its_own",
        exec_surroundings,
    );
    suite.test("many_execs_at_once_do_not_disturb_each_other", many_execs);
    suite.test("a_client_that_is_killed_ends_its_streams", client_killed);
    suite.test("signals_reach_what_exec_started", exec_signals);
    suite.test("exec_in_a_vm_that_is_not_there_is_125", exec_nowhere);
}

fn apart() -> Result<()> {
    let script = "printf 'a\\0\\377\\r\\n'; printf 'e\\0\\376' >&2";
    let finished = sh(&["--rm"], script)?;
    ensure!(finished.stdout == b"a\0\xff\r\n", "{finished}");
    ensure!(finished.stderr == b"e\0\xfe", "{finished}");
    Ok(())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn mebibyte() -> Result<()> {
    let bytes = pattern(1 << 20);
    let place = Place::new()?;
    let finished = shell(&place, &["--rm"], "cat")
        .finish_with(&bytes)?
        .expect(0)?;
    ensure!(finished.stdout == bytes, "{} bytes", finished.stdout.len());
    Ok(())
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

fn forwarded() -> Result<()> {
    for (signal, name) in [(Signal::USR1, "USR1"), (Signal::TERM, "TERM")] {
        let place = Place::new()?;
        let script =
            format!("trap 'echo got; exit 9' {name}; echo ready; while :; do sleep 0.1; done");
        let running = shell(&place, &["--rm"], &script).start()?;
        running.wait_for("ready")?;
        running.signal(signal)?;
        let finished = running.finish()?.expect(9)?;
        ensure!(finished.text() == "ready\ngot\n", "{finished}");
    }
    Ok(())
}

fn killed() -> Result<()> {
    let place = Place::new()?;
    let script = "trap 'echo got' TERM; echo ready; while :; do sleep 0.1; done";
    let running = shell(&place, &["--rm"], script).start()?;
    running.wait_for("ready")?;
    running.signal(Signal::TERM)?;
    running.wait_for("got")?;
    running.signal(Signal::TERM)?;
    running.finish()?.expect(143)?;
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

fn surroundings() -> Result<()> {
    let place = Place::new()?;
    place.write("vars", "# of a file\nFROM_FILE=1\nBOTH=file\n")?;
    let options = [
        "--rm",
        "--env-file",
        "vars",
        "-e",
        "BOTH=option",
        "-e",
        "HOSTS",
        "-w",
        "/srv/new",
        "-u",
        "1000:1001",
        "--hostname",
        "box",
        "--ulimit",
        "nofile=99:100",
    ];
    let script = "echo $FROM_FILE $BOTH $HOSTS; pwd; id -u; id -g; hostname; ulimit -n";
    let finished = shell(&place, &options, script)
        .env("HOSTS", "own")
        .finish()?
        .expect(0)?;
    let expected = "1 option own\n/srv/new\n1000\n1001\nbox\n99\n";
    ensure!(finished.text() == expected, "{finished}");
    let entry = ["run", "--rm", "--entrypoint", "echo", "--", "a", "b"];
    let finished = place.casita(entry).finish()?.expect(0)?;
    ensure!(finished.text() == "a b\n", "{finished}");
    Ok(())
}

fn no_terminal() -> Result<()> {
    let finished = Place::new()?
        .casita(["run", "-t", "--", "true"])
        .finish()?
        .expect(125)?;
    ensure!(
        finished.complaint().contains("-t needs a terminal"),
        "{finished}"
    );
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

fn exec() -> Result<()> {
    let vm = Vm::start(&[])?;
    let finished = vm
        .exec(&[], "cat; echo e >&2; exit 6")
        .finish_with(b"a\0\xff")?
        .expect(6)?;
    ensure!(finished.stdout == b"a\0\xff", "{finished}");
    ensure!(finished.stderr == b"e\n", "{finished}");
    vm.exec(&[], "kill -9 $$").finish()?.expect(137)?;
    let missing = vm.place.casita(["exec", "vm", "no-such-program"]);
    missing.finish()?.expect(127)?;
    let detached = vm.exec(&["-d"], "echo x > /tmp/made; echo y");
    let finished = detached.finish()?.expect(0)?;
    ensure!(finished.stdout.is_empty(), "{finished}");
    let wait = "while ! test -s /tmp/made; do sleep 0.1; done";
    vm.exec(&[], wait).finish()?.expect(0)?;
    vm.end()
}

fn exec_surroundings() -> Result<()> {
    let vm = Vm::start(&["-e", "MAIN=1", "-e", "BOTH=main", "-w", "/srv"])?;
    let script = "echo $MAIN $BOTH; pwd; id -u";
    let finished = vm.exec(&[], script).finish()?.expect(0)?;
    ensure!(finished.text() == "1 main\n/srv\n0\n", "{finished}");
    let options = ["-e", "BOTH=exec", "-w", "/tmp", "-u", "5"];
    let finished = vm.exec(&options, script).finish()?.expect(0)?;
    ensure!(finished.text() == "1 exec\n/tmp\n5\n", "{finished}");
    vm.end()
}

fn many_execs() -> Result<()> {
    let vm = Vm::start(&[])?;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..12)
            .map(|number| {
                let vm = &vm;
                scope.spawn(move || {
                    let input = vec![b'a' + number; 40_000];
                    let program = vm.exec(&[], &format!("cat; exit {number}"));
                    let finished = program.finish_with(&input)?.expect(i32::from(number))?;
                    ensure!(finished.stdout == input, "client {number}: {finished}");
                    Ok(())
                })
            })
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().expect("no panic"))
    })?;
    vm.end()
}

fn client_killed() -> Result<()> {
    let vm = Vm::start(&[])?;
    let client = vm
        .exec(&[], "echo ready; cat; echo ended > /tmp/ended")
        .start_piped()?;
    client.wait_for("ready")?;
    client.signal(Signal::KILL)?;
    client.finish()?.expect_killed()?;
    let wait = "while ! test -s /tmp/ended; do sleep 0.1; done";
    vm.exec(&[], wait).finish()?.expect(0)?;
    vm.end()
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

fn exec_nowhere() -> Result<()> {
    let place = Place::new()?;
    let finished = place.casita(["exec", "nobody", "true"]).finish()?;
    let complaint = finished.expect(125)?.complaint();
    ensure!(
        complaint.contains("nobody") && complaint.lines().count() == 1,
        "{complaint}"
    );
    Ok(())
}
