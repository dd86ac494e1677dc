//! VMs in the background, from their start to their removal.

use std::fs;
use std::thread;

use anyhow::{Context, Result, ensure};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::run::Finished;
use casita_tests::suite::Suite;
use casita_tests::vm::Vm;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub fn tests(suite: &mut Suite) {
    suite.test("a_vm_in_the_background_lives_and_ends", whole_life);
    suite.test("a_log_is_followed_to_the_end", follow);
    suite.test("a_paused_vm_does_nothing", pause);
    suite.test("a_stop_asks_first", stop_asks);
    suite.test("a_stop_that_is_not_heard_ends_the_vm", stop_insists);
    suite.test("a_kill_sends_any_signal", kill);
    suite.test("a_restart_keeps_the_disk", restart);
    suite.test("a_failure_is_tried_again_so_often", on_failure);
    suite.test("names_are_unique_while_they_are_used", names);
    suite.test("inspect_stats_and_top_tell_what_is", facts);
    suite.test("a_killed_monitor_leaves_a_dead_vm", killed_monitor);
    suite.test("starts_and_stops_at_once_stay_apart", at_once);
}

const SLEEPS: &str = "echo ready; while :; do sleep 100000; done";
/// A shell whose traps are run at once.
const WAITS: &str = "echo ready; while :; do sleep 100000 & wait; done";

/// The list of VMs as programs read it.
fn list(place: &Place, options: &[&str]) -> Result<Vec<Value>> {
    let words = [&["ps", "--format", "json"], options].concat();
    let finished = place.casita(words).finish()?.expect(0)?;
    serde_json::from_slice(&finished.stdout).with_context(|| finished.to_string())
}

/// Checks for one line on standard error with each of `parts`.
fn one_line(finished: &Finished, parts: &[&str]) -> Result<()> {
    let complaint = finished.complaint();
    ensure!(
        complaint.lines().count() == 1
            && complaint.starts_with("casita: ")
            && parts.iter().all(|part| complaint.contains(part)),
        "one line with {parts:?} was expected\n{finished}"
    );
    Ok(())
}

/// Files of VMs, whatever they are called; the registry's own lock is none.
fn left(place: &Place) -> Result<Vec<String>> {
    let listing = place.listing()?;
    let of_vms = |name: &String| {
        let recorded = name.contains("/vms/") && !name.ends_with("/vms/.lock");
        recorded || name.contains("control.sock")
    };
    Ok(listing.into_iter().filter(of_vms).collect())
}

fn whole_life() -> Result<()> {
    let place = Place::new()?;
    // Nobody is at its standard input, so `cat` ends.
    let script =
        "printf '\\377\\000\\n'; echo err >&2; cat; mkfifo /f; echo ready; read -r x < /f; exit 3";
    let vm = Vm::start(&place, &["--name", "one"], script)?;
    vm.says("ready")?;
    let listed = list(&place, &[])?;
    ensure!(
        listed.len() == 1
            && listed[0]["id"] == vm.id.as_str()
            && listed[0]["name"] == "one"
            && listed[0]["state"] == "running",
        "{listed:?}"
    );
    let text = place.casita(["ps"]).finish()?.expect(0)?;
    text.says(&["ID", "NAME", "STATUS", &vm.id, "one", "Up "])?;
    vm.asks("echo > /f")?;
    vm.ends_with(3)?;
    ensure!(list(&place, &[])?.is_empty(), "it is still listed");
    let ended = list(&place, &["-a"])?;
    ensure!(
        ended.len() == 1 && ended[0]["state"] == "exited" && ended[0]["exit_code"] == 3,
        "{ended:?}"
    );
    let logs = vm.casita("logs", &[]).finish()?.expect(0)?;
    ensure!(
        logs.stdout == b"\xff\0\nready\n" && logs.complaint() == "err\n",
        "{logs}"
    );
    let logs = vm.casita("logs", &["-n", "1"]).finish()?.expect(0)?;
    ensure!(logs.text() == "ready\n", "{logs}");
    let quiet = place.casita(["ps", "-a", "-q"]).finish()?.expect(0)?;
    ensure!(quiet.text() == format!("{}\n", vm.id), "{quiet}");
    vm.casita("rm", &[]).finish()?.expect(0)?;
    ensure!(list(&place, &["-a"])?.is_empty(), "it is still there");
    let left = left(&place)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    one_line(&vm.casita("logs", &[]).finish()?.expect(125)?, &[&vm.id])
}

fn follow() -> Result<()> {
    let place = Place::new()?;
    let script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; done; mkfifo /f; read -r x < /f; echo last";
    let vm = Vm::start(&place, &[], script)?;
    let following = vm.follow()?;
    following.wait_for("\n3000\n")?;
    vm.asks("echo > /f")?;
    let finished = following.finish()?.expect(0)?;
    let text = finished.text();
    let mut lines = text.lines();
    for number in 1..=3000 {
        let line = lines.next().unwrap_or_default();
        ensure!(line == number.to_string(), "line {number} is {line:?}");
    }
    ensure!(lines.eq(["last"]), "the last line is missing\n{finished}");
    Ok(())
}

/// A guest that counts all the time: between two looks at its log there are many lines, unless it
/// is paused. A kernel whose watchdog saw the gap would say so.
fn pause() -> Result<()> {
    let place = Place::new()?;
    let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done";
    let vm = Vm::start(&place, &[], script)?;
    vm.says("\n5\n")?;
    vm.casita("pause", &[]).finish()?.expect(0)?;
    ensure!(vm.state()? == "paused", "{}", vm.state()?);
    let count = || -> Result<u64> {
        let finished = vm.casita("logs", &["-n", "1"]).finish()?.expect(0)?;
        Ok(finished.text().trim().parse()?)
    };
    ensure!(list(&place, &[])?.len() == 1, "a paused VM is not listed");
    // The first look may find some of it still on its way to the log.
    let looks = (0..4).map(|_| count()).collect::<Result<Vec<_>>>()?;
    let before = looks[3];
    ensure!(looks[2] == before, "a paused VM went on: {looks:?}");
    let refused = vm.exec(&[], &["true"]).finish()?.expect(125)?;
    one_line(&refused, &["paused"])?;
    vm.casita("resume", &[]).finish()?.expect(0)?;
    vm.says(&format!("\n{}\n", before + 10))?;
    ensure!(vm.state()? == "running", "{}", vm.state()?);
    let told = vm.asks("dmesg")?;
    ensure!(!told.contains("soft lockup"), "{told}");
    // One that is paused can be ended.
    vm.casita("pause", &[]).finish()?.expect(0)?;
    vm.casita("kill", &[]).finish()?.expect(0)?;
    vm.ends_with(137)?;
    let vm = Vm::start(&place, &[], &format!("trap 'exit 7' TERM; {WAITS}"))?;
    vm.says("ready")?;
    vm.casita("pause", &[]).finish()?.expect(0)?;
    vm.casita("stop", &[]).finish()?.expect(0)?;
    vm.ends_with(7)
}

fn stop_asks() -> Result<()> {
    let place = Place::new()?;
    let script = format!("trap 'echo bye; exit 7' TERM; {WAITS}");
    let vm = Vm::start(&place, &[], &script)?;
    vm.says("ready")?;
    vm.casita("stop", &[]).finish()?.expect(0)?;
    vm.ends_with(7)?;
    let logs = vm.casita("logs", &[]).finish()?.expect(0)?;
    ensure!(logs.text() == "ready\nbye\n", "{logs}");
    // Another signal may be the one that it wants.
    let script = format!("trap 'exit 8' USR1; {WAITS}");
    let vm = Vm::start(&place, &["--stop-signal", "USR1"], &script)?;
    vm.says("ready")?;
    vm.casita("stop", &[]).finish()?.expect(0)?;
    vm.ends_with(8)?;
    // Docker's too: one that has ended is stopped.
    vm.casita("stop", &[]).finish()?.expect(0)?;
    Ok(())
}

fn stop_insists() -> Result<()> {
    let place = Place::new()?;
    let vm = Vm::start(&place, &[], &format!("trap '' TERM; {SLEEPS}"))?;
    vm.says("ready")?;
    vm.casita("stop", &["-t", "1"]).finish()?.expect(0)?;
    vm.ends_with(137)
}

fn kill() -> Result<()> {
    let place = Place::new()?;
    let vm = Vm::start(&place, &[], &format!("trap 'echo heard' USR2; {WAITS}"))?;
    vm.says("ready")?;
    for signal in ["USR2", "SIGUSR2", "12"] {
        vm.casita("kill", &["-s", signal]).finish()?.expect(0)?;
    }
    vm.says("heard")?;
    vm.casita("kill", &["-s", "TERM"]).finish()?.expect(0)?;
    vm.ends_with(143)?;
    let again = vm.casita("kill", &[]).finish()?.expect(125)?;
    one_line(&again, &["not run"])?;
    // Without a signal nobody is asked, and what was written stays.
    for options in [&[][..], &["-s", "KILL"]] {
        let script = "trap 'echo heard; exit 9' TERM HUP INT; echo kept > /file";
        let vm = Vm::start(&place, &[], &format!("{script}; {WAITS}"))?;
        vm.says("ready")?;
        vm.casita("kill", options).finish()?.expect(0)?;
        vm.ends_with(137)?;
        let logs = vm.casita("logs", &[]).finish()?.expect(0)?;
        ensure!(logs.text() == "ready\n", "it was asked\n{logs}");
        vm.casita("start", &[]).finish()?.expect(0)?;
        ensure!(vm.asks("cat /file")? == "kept\n", "the file is lost");
    }
    Ok(())
}

fn restart() -> Result<()> {
    let place = Place::new()?;
    let script = format!("echo x >> /starts; sync; echo start $(wc -l < /starts); {SLEEPS}");
    let vm = Vm::start(&place, &[], &script)?;
    vm.says("start 1")?;
    vm.casita("restart", &["-t", "1"]).finish()?.expect(0)?;
    vm.says("start 2")?;
    vm.casita("kill", &[]).finish()?.expect(0)?;
    vm.ends_with(137)?;
    vm.casita("start", &[]).finish()?.expect(0)?;
    vm.says("start 3")?;
    ensure!(vm.state()? == "running", "{}", vm.state()?);
    let again = vm.casita("start", &[]).finish()?.expect(125)?;
    one_line(&again, &["running"])
}

fn on_failure() -> Result<()> {
    let place = Place::new()?;
    let fails = "echo x >> /starts; sync; wc -l < /starts; exit 9";
    let vm = Vm::start(&place, &["--restart", "on-failure:2"], fails)?;
    vm.ends_with(9)?;
    let inspected = vm.inspect()?;
    ensure!(inspected["restarts"] == 2, "{inspected}");
    let logs = vm.casita("logs", &[]).finish()?.expect(0)?;
    ensure!(
        logs.text() == "1\n2\n3\n",
        "three starts were expected\n{logs}"
    );
    // What ends well is not tried again, and neither is what was stopped.
    let vm = Vm::start(&place, &["--restart", "on-failure"], "exit 0")?;
    vm.ends_with(0)?;
    let vm = Vm::start(&place, &["--restart", "always"], SLEEPS)?;
    vm.says("ready")?;
    vm.casita("stop", &[]).finish()?.expect(0)?;
    vm.ends_with(143)?;
    ensure!(vm.inspect()?["restarts"] == 0, "it was started again");
    Ok(())
}

fn names() -> Result<()> {
    let place = Place::new()?;
    let vm = Vm::start(&place, &["--name", "db"], SLEEPS)?;
    let second = place.casita(["run", "-d", "--name", "db", "--", "true"]);
    one_line(&second.finish()?.expect(125)?, &["db", "taken", &vm.id])?;
    let refused = place.casita(["rm", "db"]).finish()?.expect(125)?;
    one_line(&refused, &["db", "running"])?;
    // One that nobody has named has a name, too.
    let other = Vm::start(&place, &[], SLEEPS)?;
    let name = other.inspect()?["name"].as_str().map(str::to_owned);
    let name = name.filter(|name| !name.is_empty()).context("no name")?;
    place
        .casita(["stop", "-t", "1", &name])
        .finish()?
        .expect(0)?;
    other.ends_with(143)?;
    // Several at once; those that are there are removed.
    let words = ["rm", "-f", "db", "no-such", &other.id[..6]];
    one_line(&place.casita(words).finish()?.expect(125)?, &["no-such"])?;
    ensure!(list(&place, &["-a"])?.is_empty(), "some are left");
    Ok(())
}

fn facts() -> Result<()> {
    let place = Place::new()?;
    let options = ["--name", "box", "--memory", "128M", "--cpus", "2"];
    let script =
        "dd if=/dev/urandom of=/file bs=1M count=3 conv=fsync 2>/dev/null; exec sleep 100001";
    let vm = Vm::start(&place, &options, &format!("echo ready; {script}"))?;
    vm.says("ready")?;
    vm.asks("until ps | grep -q '[s]leep 100001'; do sleep 0.1; done")?;
    let inspected = vm.inspect()?;
    let command = &inspected["command"];
    ensure!(
        inspected["id"] == vm.id.as_str()
            && inspected["name"] == "box"
            && inspected["state"] == "running"
            && inspected["exit_code"].is_null()
            && inspected["network"]["mode"].is_string()
            && inspected["mounts"].is_array()
            && inspected["limits"]["memory"] == 128 << 20
            && inspected["limits"]["cpus"] == 2
            && inspected["disk"]["size"]
                .as_u64()
                .is_some_and(|size| size > 0)
            && inspected["created"].is_string()
            && inspected["started"].is_string()
            && inspected["finished"].is_null()
            && inspected["kernel"].is_string()
            && inspected["restart"].is_string()
            && command[0] == "sh",
        "{inspected}"
    );
    let pid = vm.pid()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm"))?;
    ensure!(name.contains("casita"), "process {pid} is {name}");

    let program = vm.casita("stats", &["--format", "json"]);
    let finished = program.finish()?.expect(0)?;
    let stats: Value = serde_json::from_slice(&finished.stdout)?;
    let stats = if stats.is_array() { &stats[0] } else { &stats };
    let number = |pointer: &str| stats.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    ensure!(
        stats["name"] == "box"
            && number("/cpu_ms") > 0
            && number("/memory/limit") == 128 << 20
            && number("/memory/resident") > 1 << 20
            && number("/memory/private") <= number("/memory/resident"),
        "{stats}"
    );
    let written: u64 = stats["block"].as_array().map_or(0, |disks| {
        let bytes = disks.iter().filter_map(|disk| disk["write_bytes"].as_u64());
        bytes.sum()
    });
    ensure!(written >= 3 << 20, "{written} bytes were written: {stats}");

    let top = vm.casita("top", &[]).finish()?.expect(0)?;
    top.says(&["PID", "sleep 100001"])?;
    let both = place.casita(["inspect", "--format", "json", "box", &vm.id]);
    let both: Value = serde_json::from_slice(&both.finish()?.expect(0)?.stdout)?;
    ensure!(both.as_array().is_some_and(|all| all.len() == 2), "{both}");
    Ok(())
}

/// The next command finds it out, whichever it is, and leaves nothing of the runtime's.
fn killed_monitor() -> Result<()> {
    let place = Place::new()?;
    let script = format!("echo x >> /starts; sync; echo start $(wc -l < /starts); {SLEEPS}");
    let vm = Vm::start(&place, &["--name", "kept"], &script)?;
    let gone = Vm::start(&place, &["--name", "gone", "--rm"], SLEEPS)?;
    vm.says("start 1")?;
    gone.says("ready")?;
    for vm in [&vm, &gone] {
        let pid = Pid::from_raw(vm.pid()?).context("no pid")?;
        kill_process(pid, Signal::KILL)?;
    }
    // This waits for the monitor's lock, which goes with it.
    vm.ends_with(137)?;
    let listed = list(&place, &["-a"])?;
    ensure!(
        listed.len() == 1 && listed[0]["state"] == "dead" && listed[0]["exit_code"] == 137,
        "one dead VM was expected: {listed:?}"
    );
    let sockets: Vec<_> = left(&place)?
        .into_iter()
        .filter(|name| name.contains("control.sock"))
        .collect();
    ensure!(sockets.is_empty(), "left behind: {sockets:?}");
    let refused = vm.exec(&[], &["true"]).finish()?.expect(125)?;
    one_line(&refused, &["not run"])?;
    vm.casita("start", &[]).finish()?.expect(0)?;
    vm.says("start 2")
}

/// Guests that compete for everything: names, the registry's folders, one another's ends.
fn at_once() -> Result<()> {
    let count = if machine::is_lab() && !machine::is_long() {
        8
    } else {
        50
    };
    let place = Place::new()?;
    let one = |number: usize| -> Result<()> {
        let name = format!("vm-{number}");
        let vm = Vm::start(&place, &["--memory", "64M", "--name", &name], SLEEPS)?;
        vm.says("ready")?;
        list(&place, &["-a"])?;
        match number % 3 {
            0 => vm.casita("stop", &[]).finish()?.expect(0)?,
            1 => vm.casita("kill", &[]).finish()?.expect(0)?,
            _ => vm.casita("rm", &["-f"]).finish()?.expect(0)?,
        };
        if let Some(code) = [143, 137].get(number % 3) {
            vm.ends_with(*code)?;
            vm.casita("rm", &[]).finish()?.expect(0)?;
        }
        Ok(())
    };
    let race = || -> Result<()> {
        let words = [
            "run",
            "-d",
            "--name",
            "contested",
            "--memory",
            "64M",
            "--",
            "sh",
            "-c",
            SLEEPS,
        ];
        let finished = place.casita(words).finish()?;
        let code = finished.status.code();
        ensure!(code == Some(0) || code == Some(125), "{finished}");
        Ok(())
    };
    thread::scope(|scope| {
        let mut all: Vec<_> = (0..count)
            .map(|number| scope.spawn(move || one(number)))
            .collect();
        all.extend((0..3).map(|_| scope.spawn(race)));
        all.into_iter()
            .try_for_each(|vm| vm.join().ok().context("a thread panicked")?)
    })?;
    let listed = list(&place, &["-a"])?;
    ensure!(
        listed.len() == 1 && listed[0]["name"] == "contested",
        "one VM was expected: {listed:?}"
    );
    place
        .casita(["rm", "-f", "contested"])
        .finish()?
        .expect(0)?;
    let left = left(&place)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
