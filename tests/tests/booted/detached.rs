//! Guests that nobody is attached to: what they write, how they are asked to end, and what they
//! find when they are started again.

use anyhow::{Result, ensure};
use casita_tests::place::Place;
use casita_tests::run::Finished;
use casita_tests::suite::Suite;

pub fn tests(suite: &mut Suite) {
    suite.test("a_detached_commands_streams_are_in_its_log", log);
    suite.test("a_stop_lets_the_command_finish_its_work", stop);
    suite.test("a_command_that_ignores_the_stop_is_killed", deaf);
    suite.test("a_vm_finds_its_disk_when_it_is_started_again", again);
    suite.test("a_detached_command_that_is_not_there_is_127", missing);
    suite.test("a_guest_sleeps_through_a_pause_without_complaint", pause);
    suite.test("a_temporary_vms_disk_goes_with_it", temporary);
}

fn ok(place: &Place, arguments: &[&str]) -> Result<Finished> {
    place.casita(arguments.iter().copied()).finish()?.expect(0)
}

/// Starts a shell with `script`, as the VM `a`.
fn start(place: &Place, options: &[&str], script: &str) -> Result<()> {
    let command = ["--", "sh", "-c", script];
    ok(place, &[&["run", "-d", "--name", "a"], options, &command].concat())?;
    Ok(())
}

/// Follows the log until `text` is there.
fn until_logged(place: &Place, text: &str) -> Result<()> {
    let following = place.casita(["logs", "-f", "a"]).start()?;
    following.wait_for(text)
}

fn log() -> Result<()> {
    let place = Place::new()?;
    start(&place, &[], "echo out; echo err >&2; printf '\\377\\000'; exit 5")?;
    ensure!(ok(&place, &["wait", "a"])?.text() == "5\n");
    let log = ok(&place, &["logs", "a"])?;
    ensure!(log.stdout == b"out\n\xff\0" && log.stderr == b"err\n", "{log}");
    Ok(())
}

fn stop() -> Result<()> {
    let place = Place::new()?;
    let script = "trap 'echo saved; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    start(&place, &[], script)?;
    until_logged(&place, "ready\n")?;
    ok(&place, &["stop", "a"])?;
    ensure!(ok(&place, &["wait", "a"])?.text() == "9\n");
    ensure!(ok(&place, &["logs", "-n", "1", "a"])?.text() == "saved\n");
    Ok(())
}

fn deaf() -> Result<()> {
    let place = Place::new()?;
    start(&place, &[], "trap '' TERM; echo ready; while :; do sleep 1000; done")?;
    until_logged(&place, "ready\n")?;
    ok(&place, &["stop", "-t", "100ms", "a"])?;
    ensure!(ok(&place, &["wait", "a"])?.text() == "137\n");
    Ok(())
}

fn again() -> Result<()> {
    let place = Place::new()?;
    start(&place, &["--disk", "64M"], "cat /runs 2>/dev/null; echo run >> /runs")?;
    ok(&place, &["wait", "a"])?;
    ok(&place, &["start", "a"])?;
    ok(&place, &["wait", "a"])?;
    ensure!(ok(&place, &["logs", "a"])?.text() == "run\n");
    Ok(())
}

fn missing() -> Result<()> {
    let place = Place::new()?;
    let run = place.casita(["run", "-d", "--", "/no/such"]).finish()?;
    let run = run.expect(127)?;
    ensure!(run.complaint().contains("/no/such") && run.stdout.is_empty(), "{run}");
    ensure!(ok(&place, &["ps", "-aq"])?.stdout.is_empty());
    Ok(())
}

/// A kernel whose watchdog saw the gap would say so.
fn pause() -> Result<()> {
    let place = Place::new()?;
    start(&place, &[], "echo ready; while :; do sleep 0.1; done")?;
    until_logged(&place, "ready\n")?;
    ok(&place, &["pause", "a"])?;
    let refused = place.casita(["exec", "a", "true"]).finish()?.expect(125)?;
    ensure!(refused.complaint().contains("paused"), "{refused}");
    ok(&place, &["resume", "a"])?;
    let dmesg = ok(&place, &["exec", "a", "dmesg"])?.text();
    ensure!(!dmesg.contains("soft lockup"), "{dmesg}");
    ok(&place, &["kill", "a"])?;
    Ok(())
}

fn temporary() -> Result<()> {
    let place = Place::new()?;
    start(&place, &["--rm"], "echo x > /x; sleep 1000")?;
    ok(&place, &["kill", "a"])?;
    ensure!(ok(&place, &["ps", "-aq"])?.stdout.is_empty());
    let left = place.listing()?;
    let left: Vec<_> = left.iter().filter(|name| name.contains("vms/")).collect();
    ensure!(left.is_empty(), "{left:?} were left");
    Ok(())
}
