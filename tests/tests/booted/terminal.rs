//! A person at a terminal.

use anyhow::Result;
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::suite::Suite;
use casita_tests::terminal::Seat;
use rustix::process::Signal;

use super::shell;

pub fn tests(suite: &mut Suite) {
    let missing = || machine::lacks("setsid", "util-linux");
    suite.test_if(missing(), "a_shell_at_a_terminal", interactive);
    suite.test_if(missing(), "the_escape_key_ends_it", escape);
    suite.test_if(missing(), "the_terminal_is_restored_after_a_failure", fails);
    suite.test_if(
        missing(),
        "a_terminal_may_be_input_without_being_one",
        input_only,
    );
    suite.test_if(missing(), "a_command_has_a_terminal_of_its_own", exec);
}

/// `-i` without `-t`: the line discipline is the host's.
fn input_only() -> Result<()> {
    let place = Place::new()?;
    let script = "test -t 0 || echo no\"\"ne; cat; exit 3";
    let program = place.casita(["run", "--rm", "-i", "--", "sh", "-c", script]);
    let mut seat = Seat::start(program, 24, 80)?;
    seat.shows("none\r\n")?;
    seat.types("line\r")?;
    seat.shows("line\r\nline\r\n")?;
    seat.types("\x04")?;
    seat.ends_with(3)
}

fn exec() -> Result<()> {
    let place = Place::new()?;
    let vm = shell(&place, &["--name", "vm"], "echo ready; sleep 1000").start()?;
    vm.wait_for("ready")?;
    let mut seat = Seat::start(place.casita(["exec", "vm", "sh"]), 20, 50)?;
    seat.shows("# ")?;
    seat.is_raw()?;
    seat.types("stty size; tty\r")?;
    seat.shows("20 50\r\n/dev/pts/")?;
    seat.resize(21, 51)?;
    // Only a size that has arrived ends the loop.
    seat.types("until [ \"$(stty size)\" = '21 51' ]; do :; done; echo resi\"\"zed\r")?;
    seat.shows("resized\r\n")?;
    seat.types("exit 5\r")?;
    seat.ends_with(5)?;
    // The key that leaves hangs the terminal up, and the VM runs on.
    let script = "echo rea\"\"dy; exec sleep 4321";
    let mut seat = Seat::start(place.casita(["exec", "vm", "sh", "-c", script]), 24, 80)?;
    seat.shows("ready")?;
    seat.types("\x1d")?;
    seat.ends_with(0)?;
    let gone = "while ps | grep -q '[4]321'; do sleep 0.1; done";
    let finished = place.casita(["exec", "vm", "sh", "-c", gone]).finish()?;
    finished.expect(0)?;
    vm.signal(Signal::TERM)?;
    vm.finish()?.expect(143)?;
    Ok(())
}

/// What is typed is echoed, so the commands are written such that their output is not in them.
fn interactive() -> Result<()> {
    const PROMPT: &str = "root@box:/# ";
    let place = Place::new()?;
    let mut seat = Seat::start(place.casita(["run", "--name", "box"]), 33, 101)?;
    seat.shows(PROMPT)?;
    seat.is_raw()?;
    seat.types("stty size; echo $TERM; tty\r")?;
    seat.shows("33 101\r\n")?;
    seat.shows("vt100\r\n")?;
    seat.shows("/dev/pts/0\r\n")?;
    seat.shows(PROMPT)?;
    seat.resize(40, 90)?;
    seat.types("until stty size | grep '40 90'; do sleep 0.1; done\r")?;
    seat.shows("\r\n40 90\r\n")?;
    seat.shows(PROMPT)?;
    // Ctrl-C ends what runs in the foreground, and not the VM.
    seat.types("sh -c 'echo sle\"\"eping; exec sleep 1000'\r")?;
    seat.shows("sleeping\r\n")?;
    seat.types("\x03")?;
    seat.shows(PROMPT)?;
    seat.types("echo ali\"\"ve\r")?;
    seat.shows("alive\r\n")?;
    // A line is corrected as everywhere.
    seat.types("sh -c 'echo rea\"\"dy; exec cat'\r")?;
    seat.shows("ready\r\n")?;
    seat.types("wrong\x15ri\x7fight\r")?;
    seat.shows("\nright\r\n")?;
    seat.types("\x04")?;
    seat.shows(PROMPT)?;
    seat.types("exit 5\r")?;
    seat.ends_with(5)
}

fn escape() -> Result<()> {
    let place = Place::new()?;
    let mut seat = Seat::start(
        shell(&place, &[], "trap '' INT; echo ready; while :; do :; done"),
        24,
        80,
    )?;
    seat.shows("ready")?;
    seat.types("\x03\x1c\x1d")?;
    seat.ends_with(125)
}

fn fails() -> Result<()> {
    let place = Place::new()?;
    let mut seat = Seat::start(
        shell(&place, &[], "echo ready; reboot -f; sleep 1000"),
        24,
        80,
    )?;
    seat.shows("casita: the guest reset itself")?;
    seat.ends_with(125)
}
