//! Further commands in a VM that runs.

use std::thread;

use anyhow::{Context, Result, ensure};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::suite::Suite;
use casita_tests::terminal::Seat;
use casita_tests::vm::Vm;
use rustix::process::Signal;

pub fn tests(suite: &mut Suite) {
    suite.test("a_running_vm_takes_commands", commands);
    suite.test("many_commands_at_once_do_not_mix", many);
    suite.test("a_command_without_its_client_ends", dead_client);
    suite.test("the_vms_end_is_every_commands_end", end_of_vm);
    suite.test("a_vm_that_does_not_run_takes_no_commands", not_running);
}

const SLEEPS: &str = "echo ready; while :; do sleep 100000; done";

fn commands() -> Result<()> {
    let place = Place::new()?;
    let options = [
        "--name",
        "box",
        "-e",
        "FROM_RUN=yes",
        "-w",
        "/home/of",
        "--ulimit",
        "nofile=99",
    ];
    let vm = Vm::start(&place, &options, SLEEPS)?;
    let script = "echo out; echo err >&2; cat; exit 3";
    let finished = vm
        .exec(&["-i"], &["sh", "-c", script])
        .finish_with(b"in\n")?
        .expect(3)?;
    ensure!(
        finished.text() == "out\nin\n" && finished.complaint() == "err\n",
        "{finished}"
    );
    // Surroundings are the VM's unless something else is said.
    let script = "echo $FROM_RUN $ADDED; pwd; id -u; ulimit -n; hostname";
    let program = vm.exec(&["-e", "ADDED=too"], &["sh", "-c", script]);
    let finished = program.finish()?.expect(0)?;
    ensure!(
        finished.text() == "yes too\n/home/of\n0\n99\nbox\n",
        "{finished}"
    );
    let options = ["-u", "7:8", "-w", "/tmp", "-e", "FROM_RUN=no"];
    let finished = vm
        .exec(&options, &["sh", "-c", "echo $FROM_RUN; pwd; id -u; id -g"])
        .finish()?
        .expect(0)?;
    ensure!(finished.text() == "no\n/tmp\n7\n8\n", "{finished}");
    for (words, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "kill -9 $$"], 137),
        (&["no-such-program"], 127),
        (&["/etc/passwd"], 126),
    ] {
        let finished = vm.exec(&[], words).finish()?.expect(code)?;
        let complaints = usize::from([126, 127].contains(&code));
        ensure!(
            finished.complaint().lines().count() == complaints,
            "{finished}"
        );
    }
    // By its name and by the beginning of its ID, and without the two dashes.
    for vm in ["box", &vm.id[..4]] {
        let words = ["exec", vm, "hostname"];
        place.casita(words).finish()?.expect(0)?.says(&["box\n"])?;
    }
    ensure!(vm.state()? == "running", "the VM did not stay");
    Ok(())
}

/// Each has its own data on both ways, more than any buffer holds, and its own status.
fn many() -> Result<()> {
    let count: usize = if machine::is_lab() { 12 } else { 100 };
    let place = Place::new()?;
    let vm = Vm::start(&place, &[], SLEEPS)?;
    let one = |number: usize| -> Result<()> {
        let code = i32::try_from(number % 100)?;
        let input = format!("{number} and so on\n").repeat(20_000);
        let script = format!("cat; exit {code}");
        let program = vm.exec(&["-i"], &["sh", "-c", &script]);
        let finished = program.finish_with(input.as_bytes())?.expect(code)?;
        ensure!(
            finished.stdout == input.as_bytes(),
            "command {number} got {} bytes back, or others",
            finished.stdout.len()
        );
        Ok(())
    };
    thread::scope(|scope| {
        let all: Vec<_> = (0..count)
            .map(|number| scope.spawn(move || one(number)))
            .collect();
        all.into_iter()
            .try_for_each(|command| command.join().ok().context("a thread panicked")?)
    })?;
    let left = vm.asks("ps | grep -c '[c]at'; true")?;
    ensure!(left == "0\n", "{left} of them are left");
    Ok(())
}

/// Killed clients leave commands that find their input at its end, or their terminal hung up.
fn dead_client() -> Result<()> {
    let place = Place::new()?;
    let vm = Vm::start(&place, &[], SLEEPS)?;
    let gone = "until ! kill -0 $(cat /tmp/pid) 2>/dev/null; do sleep 0.1; done";
    let mut client = vm
        .exec(
            &["-i"],
            &["sh", "-c", "echo $$ > /tmp/pid; echo ready; cat; echo"],
        )
        .start_piped()?;
    client.wait_for("ready")?;
    client.send("more\n")?;
    client.signal(Signal::KILL)?;
    client.finish()?.expect_killed()?;
    vm.asks(gone)?;
    if machine::lacks("setsid", "util-linux").is_none() {
        let script = "echo $$ > /tmp/pid; echo ready; while :; do sleep 100000; done";
        let mut seat = Seat::start(vm.exec(&["-it"], &["sh", "-c", script]), 24, 80)?;
        seat.shows("ready")?;
        drop(seat);
        vm.asks(gone)?;
    }
    Ok(())
}

fn end_of_vm() -> Result<()> {
    let place = Place::new()?;
    let vm = Vm::start(&place, &[], SLEEPS)?;
    let client = vm
        .exec(
            &[],
            &["sh", "-c", "echo ready; while :; do sleep 100000; done"],
        )
        .start()?;
    client.wait_for("ready")?;
    vm.casita("kill", &[]).finish()?.expect(0)?;
    let finished = client.finish()?;
    let code = finished.status.code();
    ensure!(
        code.is_some_and(|code| code >= 125),
        "a failure was expected\n{finished}"
    );
    vm.ends_with(137)
}

fn not_running() -> Result<()> {
    let place = Place::new()?;
    let vm = Vm::start(&place, &["--name", "ended"], "true")?;
    vm.ends_with(0)?;
    for (name, why) in [("ended", "not run"), ("never-was", "never-was")] {
        let finished = place
            .casita(["exec", name, "--", "true"])
            .finish()?
            .expect(125)?;
        let complaint = finished.complaint();
        ensure!(
            complaint.contains(name) && complaint.contains(why) && complaint.lines().count() == 1,
            "one line about {name} was expected\n{finished}"
        );
    }
    Ok(())
}
