//! A VM's command is a process like any other: streams, status, signals, surroundings, terminal.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::run::Finished;
use casita_tests::suite::Suite;
use casita_tests::terminal::Seat;
use rustix::process::Signal;

use super::vm;

pub fn tests(suite: &mut Suite) {
    suite.test("output_and_errors_are_two_streams", two_streams);
    suite.test("streams_carry_every_byte", binary);
    suite.test("streams_can_be_opened_by_their_names", reopened);
    suite.test(
        "an_output_that_nobody_reads_stops_its_writer",
        back_pressure,
    );
    suite.test("what_ends_right_after_writing_loses_nothing", last_words);
    suite.test("what_can_not_be_started_is_told_in_one_line", not_started);
    suite.test("signals_reach_the_command", signals);
    suite.test("a_second_sigterm_ends_the_vm", second_signal);
    suite.test("options_say_what_surrounds_the_command", surroundings);
    suite.test("an_entrypoint_takes_the_words_as_arguments", entrypoint);
    let setsid = || machine::lacks("setsid", "util-linux");
    suite.test_if(setsid(), "a_terminal_follows_its_window", window);
    suite.test_if(setsid(), "a_terminal_has_job_control", job_control);
    suite.test_if(
        setsid(),
        "an_editor_and_top_work_at_a_terminal",
        full_screen,
    );
    suite.test("a_terminal_is_refused_where_there_is_none", no_terminal);
}

fn run(options: &[&str], script: &str) -> Result<Finished> {
    vm(&Place::new()?, options, script).finish()
}

fn expect_text(finished: &Finished, stdout: &str, stderr: &str) -> Result<()> {
    ensure!(
        finished.text() == stdout && finished.complaint() == stderr,
        "{stdout:?} and {stderr:?} were expected\n{finished}"
    );
    Ok(())
}

fn two_streams() -> Result<()> {
    let script = "echo one; echo two >&2; cat; echo three >&2; echo four; exit 6";
    let finished = vm(&Place::new()?, &[], script)
        .finish_with(b"read\n")?
        .expect(6)?;
    expect_text(&finished, "one\nread\nfour\n", "two\nthree\n")
}

/// Random bytes there and back, from a file and from a pipe: none is changed, lost or doubled. A
/// gibibyte where it takes seconds.
fn binary() -> Result<()> {
    let mib = if machine::is_lab() && !machine::is_long() {
        24
    } else {
        1024
    };
    let place = Place::new()?;
    make_random(&place, mib)?;
    for pipe in [
        "\"$@\" < sent | cmp - sent",
        "cat sent | \"$@\" | cmp - sent",
    ] {
        let pipe = format!("set -o pipefail; {pipe}");
        vm(&place, &[], "exec cat")
            .under(&["bash", "-c", &pipe, "bash"])
            .finish()?
            .expect(0)?;
    }
    Ok(())
}

fn make_random(place: &Place, mib: u64) -> Result<()> {
    let mut random = File::open("/dev/urandom")?.take(mib << 20);
    let copied = std::io::copy(&mut random, &mut File::create(place.path("sent"))?)?;
    ensure!(copied == mib << 20, "{copied} random bytes");
    Ok(())
}

/// Through /dev and /proc, as servers open their logs; for a user who is not root, too.
fn reopened() -> Result<()> {
    let script = "echo out > /dev/stdout; echo err > /dev/stderr
        cat < /dev/stdin; echo again >> /proc/self/fd/1";
    for options in [&[][..], &["-u", "1234:1234"]] {
        let finished = vm(&Place::new()?, options, script)
            .finish_with(b"in\n")?
            .expect(0)?;
        expect_text(&finished, "out\nin\nagain\n", "err\n")?;
    }
    Ok(())
}

/// Nobody reads, so the guest's writer comes to a stand, and the monitor does not grow by what it
/// wrote. Then somebody reads, and all of it is there.
fn back_pressure() -> Result<()> {
    const MIB: u64 = 150;
    let script = format!(
        "dd if=/dev/zero bs=64k count={} 2>/dev/null & writer=$!
        turns() {{ grep ctxt_switches /proc/$writer/status 2>/dev/null | tr -d '\\n'; }}
        before=; while now=$(turns); [ \"$now\" != \"$before\" ]; do before=$now; sleep 0.5; done
        if [ -n \"$now\" ]; then echo stands >&2; else echo ended >&2; fi
        wait",
        MIB << 4
    );
    let place = Place::new()?;
    let mut child = vm(&place, &["--memory", "64M"], &script)
        .command()?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(child.stderr.take().context("no standard error")?).lines();
    let first = said.next().context("nothing was said")??;
    ensure!(first == "stands", "the writer did not stop: {first}");
    let peak = peak_kib(child.id())?;
    // The guest's own memory, and the monitor's.
    ensure!(peak < 110 << 10, "the monitor has {peak} KiB");
    let mut output = child.stdout.take().context("no standard output")?;
    let count = std::io::copy(&mut output, &mut std::io::sink())?;
    ensure!(count == MIB << 20, "{count} bytes came");
    ensure!(child.wait()?.success(), "it failed");
    Ok(())
}

/// The most memory that a process had at a time.
fn peak_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let Some(kib) = line.and_then(|rest| rest.split_whitespace().next()) else {
        bail!("no peak in\n{status}");
    };
    Ok(kib.parse()?)
}

/// The pipes are full when the command ends, and another process still has them.
fn last_words() -> Result<()> {
    let script = "sleep 100000 & yes | head -c 60000; yes | head -c 60000 >&2; exit 9";
    let finished = run(&[], script)?.expect(9)?;
    let (out, err) = (finished.stdout.len(), finished.stderr.len());
    ensure!(out == 60_000 && err == 60_000, "{out} and {err} bytes came");
    Ok(())
}

fn not_started() -> Result<()> {
    for (command, code, why) in [
        ("no-such-program", 127, "not found in PATH"),
        ("/etc/passwd", 126, "Permission denied"),
        ("/etc", 126, ""),
    ] {
        let finished = Place::new()?
            .casita(["run", "--rm", "--", command])
            .finish()?
            .expect(code)?;
        let complaint = finished.complaint();
        ensure!(
            finished.stdout.is_empty()
                && complaint.starts_with(&format!("casita: exec \"{command}\": {why}"))
                && complaint.lines().count() == 1,
            "one line about {command} was expected\n{finished}"
        );
    }
    Ok(())
}

fn signals() -> Result<()> {
    let script = "for s in HUP QUIT USR1 USR2 INT; do trap \"echo got $s\" $s; done
        trap 'echo got TERM; exit 5' TERM
        echo ready; while :; do sleep 100000 & wait; done";
    let place = Place::new()?;
    let running = vm(&place, &[], script).start()?;
    running.wait_for("ready")?;
    for (signal, name) in [
        (Signal::HUP, "HUP"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::TERM, "TERM"),
    ] {
        running.signal(signal)?;
        running.wait_for(&format!("got {name}\n"))?;
    }
    let finished = running.finish()?.expect(5)?;
    ensure!(finished.stderr.is_empty(), "a complaint\n{finished}");
    Ok(())
}

fn second_signal() -> Result<()> {
    for (signal, name, code) in [(Signal::TERM, "TERM", 143), (Signal::INT, "INT", 130)] {
        let script = format!(
            "trap 'echo not yet' {name}; echo ready; while :; do sleep 100000 & wait; done"
        );
        let place = Place::new()?;
        let running = vm(&place, &[], &script).start()?;
        running.wait_for("ready")?;
        running.signal(signal)?;
        running.wait_for("not yet")?;
        running.signal(signal)?;
        running.finish()?.expect(code)?;
    }
    Ok(())
}

fn surroundings() -> Result<()> {
    let place = Place::new()?;
    place.write("env", "# a comment\nFROM_FILE=file's own\n\nOVER=file\n")?;
    let options = [
        "-e",
        "A=1",
        "--env",
        "B=two words = two",
        "-e",
        "FROM_HOST",
        "-e",
        "NOT_THERE",
        "--env-file",
        "env",
        "-e",
        "OVER=option",
        "-w",
        "/made/for/it",
        "-u",
        "1234:4321",
        "--hostname",
        "other.name",
        "--name",
        "named",
        "--ulimit",
        "nofile=100:200",
        "--ulimit",
        "core=0",
    ];
    let script = "echo \"$A|$B|$FROM_HOST|${NOT_THERE-unset}|$FROM_FILE|$OVER\"
        pwd; id -u; id -g; hostname; ulimit -n; ulimit -H -n; ulimit -c";
    let finished = vm(&place, &options, script)
        .env("FROM_HOST", "host's")
        .finish()?
        .expect(0)?;
    let expected = "1|two words = two|host's|unset|file's own|option\n/made/for/it\n1234\n4321\n\
                    other.name\n100\n200\n0\n";
    expect_text(&finished, expected, "")?;
    // Nobody has that name in the guest.
    let finished = run(&["-u", "no-such-user"], "true")?.expect(126)?;
    let complaint = finished.complaint();
    ensure!(
        complaint.contains("no-such-user") && complaint.lines().count() == 1,
        "{finished}"
    );
    Ok(())
}

fn entrypoint() -> Result<()> {
    let place = Place::new()?;
    let words = [
        "run",
        "--rm",
        "--entrypoint",
        "/bin/echo",
        "--",
        "-n",
        "a",
        "b c",
    ];
    let finished = place.casita(words).finish()?.expect(0)?;
    expect_text(&finished, "a b c", "")
}

fn window() -> Result<()> {
    let place = Place::new()?;
    let script = "trap 'echo \"now $(stty size)\"' WINCH
        echo \"first $(stty size) $TERM\"; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && tty
        while :; do sleep 100000 & wait; done";
    let mut seat = Seat::start(vm(&place, &["-it"], script), 33, 101)?;
    seat.shows("first 33 101 vt100\r\n/dev/pts/")?;
    seat.is_raw()?;
    for (rows, cols) in [(50, 132), (10, 20)] {
        seat.resize(rows, cols)?;
        seat.shows(&format!("now {rows} {cols}\r\n"))?;
    }
    seat.signal(Signal::TERM)?;
    seat.ends_with(143)
}

/// What is typed is echoed, so the commands are written such that their output is not in them.
fn job_control() -> Result<()> {
    let place = Place::new()?;
    let program = place.casita(["run", "--rm", "-it", "--hostname", "box", "--", "sh", "-i"]);
    let mut seat = Seat::start(program, 24, 80)?;
    seat.shows("# ")?;
    // What cat gives back shows that it has the terminal.
    seat.types("sh -c 'echo rea\"\"dy; exec cat'\r")?;
    seat.shows("ready\r\n")?;
    seat.types("there\r")?;
    seat.shows("there\r\nthere\r\n")?;
    seat.types("\x1a")?;
    seat.shows("Stopped")?;
    seat.shows("# ")?;
    seat.types("echo still he\"\"re; jobs\r")?;
    seat.shows("still here\r\n")?;
    seat.shows("Stopped")?;
    seat.shows("# ")?;
    seat.types("fg\r")?;
    seat.shows("exec cat")?;
    seat.types("again\r")?;
    seat.shows("again\r\nagain\r\n")?;
    seat.types("\x03")?;
    seat.shows("# ")?;
    seat.types("sleep 100000 &\r")?;
    seat.shows("# ")?;
    seat.types("kill %1; wait %1; echo ended wi\"\"th $?\r")?;
    seat.shows("ended with 143\r\n")?;
    // Only at its prompt the shell reads the key itself.
    seat.shows("# ")?;
    seat.types("\x04")?;
    seat.ends_with(0)
}

fn full_screen() -> Result<()> {
    let place = Place::new()?;
    let program = place.casita(["run", "--rm", "-it", "--", "sh", "-i"]);
    let mut seat = Seat::start(program, 24, 80)?;
    seat.shows("# ")?;
    seat.types("vi /tmp/letter\r")?;
    // An editor asks the terminal nothing before it draws its empty lines.
    seat.shows("~")?;
    seat.types("ifirst line\rsecond linx\x7fe")?;
    seat.shows("[Modified]")?;
    // Right behind it, another key would be read as a part of an escape sequence.
    seat.types("\x1b")?;
    seat.shows("- /tmp/letter")?;
    seat.types(":wq\r")?;
    seat.shows("# ")?;
    seat.types("md5sum < /tmp/letter\r")?;
    // Of "first line\nsecond line\n".
    seat.shows("7565a01bd35f31ba82ab55c978c1b755")?;
    seat.shows("# ")?;
    seat.types("top\r")?;
    seat.shows("Mem:")?;
    seat.shows("PID")?;
    seat.types("q")?;
    seat.shows("# ")?;
    seat.types("exit 4\r")?;
    seat.ends_with(4)
}

fn no_terminal() -> Result<()> {
    let finished = run(&["-t", "-i"], "true")?.expect(125)?;
    let complaint = finished.complaint();
    ensure!(
        complaint.to_lowercase().contains("terminal") && complaint.lines().count() == 1,
        "one line about the terminal was expected\n{finished}"
    );
    Ok(())
}
