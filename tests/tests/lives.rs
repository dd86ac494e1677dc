//! The lives of VMs that nobody is attached to: started, listed, paused, stopped, killed, removed,
//! and all of it at the same time. Their guests are payloads of a few instructions.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use casita_tests::kernel::{EXIT_STATUS, Payload};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::run::{Finished, Program, patience};
use casita_tests::suite::Suite;
use libtest_mimic::Arguments;
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal, getsid, kill_process};
use serde_json::Value;

type Body = fn() -> Result<()>;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.all_miss(machine::lacks_kvm());
    let tests: &[(&str, Body)] = &[
        ("a_vm_is_started_seen_stopped_and_removed", whole_life),
        (
            "a_start_that_fails_says_why_and_leaves_nothing",
            failed_start,
        ),
        (
            "a_paused_vm_makes_no_progress_and_a_resumed_one_does",
            pause,
        ),
        (
            "a_killed_monitor_leaves_a_dead_vm_that_starts_again",
            killed_monitor,
        ),
        (
            "a_killed_monitor_of_a_temporary_vm_leaves_nothing",
            killed_temporary,
        ),
        ("waiting_tells_the_exit_code_of_what_is_gone_too", wait),
        ("a_followed_log_ends_with_its_vm", followed_log),
        (
            "a_failing_vm_is_restarted_as_often_as_it_says",
            restart_on_failure,
        ),
        ("a_stop_is_not_undone_by_a_restart_policy", stop_of_always),
        ("a_running_vm_is_not_removed_unless_forced", removal),
        ("a_name_belongs_to_one_vm", names),
        (
            "a_monitor_is_nobodys_child_and_keeps_nothing_open",
            detached,
        ),
        ("verbs_try_each_vm_and_say_which_failed", several),
        ("inspect_is_one_object_for_one_vm", inspect),
        ("what_is_given_up_while_it_is_made_leaves_nothing", given_up),
        ("fifty_start_and_stop_at_the_same_time", fifty),
        ("fifty_want_one_name_and_one_gets_it", one_name),
        ("of_many_starts_of_a_vm_one_succeeds", one_start),
    ];
    for (name, body) in tests {
        suite.test(name, *body);
    }
    suite.run(&Arguments::from_args())
}

/// A folder with the payloads. Whatever a test leaves running is ended with it.
struct Lives(Place);

impl Lives {
    fn new() -> Result<Self> {
        let place = Place::new()?;
        place.write("initrd", "INITRD")?;
        let three = Payload::new().print("three\n").out32(EXIT_STATUS, 3);
        let payloads = [
            ("halts", Payload::new().print("halted\n").halt()),
            // in al, 0x99; jmp back: an exit to the monitor each time.
            (
                "works",
                Payload::new()
                    .print("working\n")
                    .code(&[0x66, 0xba, 0x99, 0, 0xec, 0xeb, 0xfd]),
            ),
            ("ends", three.power_off()),
        ];
        for (name, payload) in payloads {
            place.write(name, payload.elf())?;
        }
        Ok(Self(place))
    }

    fn casita(&self, arguments: &[&str]) -> Program {
        self.0.casita(arguments.iter().copied())
    }

    /// What starts `payload` with nobody attached.
    fn run(&self, payload: &str, more: &[&str]) -> Program {
        let arguments = ["run", "-d", "--skip-kvm-check", "--boot", "plain"];
        let machine = ["--memory", "16M", "--kernel", payload, "--initrd", "initrd"];
        self.casita(&[&arguments[..], &machine, more].concat())
    }

    /// Starts it; its ID.
    fn start(&self, payload: &str, more: &[&str]) -> Result<String> {
        let finished = self.run(payload, more).finish()?.expect(0)?;
        let id = finished.text().trim().to_owned();
        ensure!(id.len() == 12, "an ID was expected\n{finished}");
        Ok(id)
    }

    fn ok(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.casita(arguments).finish()?.expect(0)?.text())
    }

    /// It fails, with one line that says each of `texts`.
    fn fails(&self, arguments: &[&str], texts: &[&str]) -> Result<Finished> {
        complains(self.casita(arguments).finish()?, texts)
    }

    fn inspect(&self, name: &str) -> Result<Value> {
        let text = self.ok(&["inspect", "--format", "json", name])?;
        Ok(serde_json::from_str(&text)?)
    }

    fn pid(&self, name: &str) -> Result<Pid> {
        let pid = self.inspect(name)?["pid"].as_i64();
        let pid = pid.and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        pid.with_context(|| format!("{name} has no process"))
    }

    fn exits(&self, name: &str) -> Result<u64> {
        let text = self.ok(&["stats", "--format", "json", name])?;
        let stats: Value = serde_json::from_str(&text)?;
        stats[0]["exits"].as_u64().context("no exits")
    }

    /// All VMs, by name, with their states.
    fn all(&self) -> Result<Vec<(String, String)>> {
        let vms: Value = serde_json::from_str(&self.ok(&["ps", "-a", "--format", "json"])?)?;
        let text = |vm: &Value, field: &str| vm[field].as_str().unwrap_or_default().to_owned();
        let vms = vms.as_array().context("no array")?;
        Ok(vms
            .iter()
            .map(|vm| (text(vm, "name"), text(vm, "state")))
            .collect())
    }

    /// Nothing of any VM is left.
    fn is_empty(&self) -> Result<()> {
        ensure!(self.all()?.is_empty(), "{:?}", self.all()?);
        let mine = |name: &&String| {
            name.starts_with("data/casita/vms/") || name.starts_with("run/casita/")
        };
        let listing = self.0.listing()?;
        let left: Vec<_> = listing.iter().filter(mine).collect();
        ensure!(left.is_empty(), "{left:?} were left");
        Ok(())
    }
}

impl Drop for Lives {
    fn drop(&mut self) {
        if let Ok(ids) = self.ok(&["ps", "-aq"])
            && !ids.is_empty()
        {
            let words: Vec<_> = ["rm", "-f"]
                .into_iter()
                .chain(ids.split_whitespace())
                .collect();
            let _ = self.casita(&words).finish();
        }
    }
}

fn complains(finished: Finished, texts: &[&str]) -> Result<Finished> {
    let finished = finished.expect(125)?;
    let complaint = finished.complaint();
    ensure!(
        complaint.lines().count() == 1 && complaint.starts_with("casita: "),
        "one line was expected\n{finished}"
    );
    for text in texts {
        ensure!(
            complaint.contains(text),
            "{text:?} was expected\n{finished}"
        );
    }
    Ok(finished)
}

/// Looks again and again until `seen` is true. Each look is a program's run, so it is no busy wait.
fn until(what: &str, mut seen: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !seen()? {
        if start.elapsed() > patience() {
            bail!("{what}: not in time");
        }
    }
    Ok(())
}

fn whole_life() -> Result<()> {
    let lives = Lives::new()?;
    let id = lives.start("halts", &["--name", "a"])?;
    let listed = lives.ok(&["ps"])?;
    ensure!(listed.contains(&id) && listed.contains("Up "), "{listed}");
    until("its output", || Ok(lives.ok(&["logs", "a"])? == "halted\n"))?;
    ensure!(lives.ok(&["ps", "-q"])?.trim() == id);
    ensure!(lives.ok(&["stop", &id[..4]])?.trim() == "a");
    ensure!(lives.ok(&["ps", "-q"])?.is_empty());
    ensure!(lives.all()? == [("a".to_owned(), "exited".to_owned())]);
    // Once more is no error, and its log is still there.
    lives.ok(&["stop", "a"])?;
    ensure!(lives.ok(&["logs", "a"])? == "halted\n");
    lives.ok(&["rm", "a"])?;
    lives.is_empty()
}

fn failed_start() -> Result<()> {
    let lives = Lives::new()?;
    complains(lives.run("nothing", &[]).finish()?, &["kernel", "nothing"])?;
    fs::write(lives.0.path("text"), "not a kernel")?;
    complains(lives.run("text", &["--name", "t"]).finish()?, &["text"])?;
    let both = ["--rm", "--restart", "always"];
    complains(lives.run("halts", &both).finish()?, &["--rm", "--restart"])?;
    lives.is_empty()
}

fn pause() -> Result<()> {
    let lives = Lives::new()?;
    lives.start("works", &["--name", "a"])?;
    let before = lives.exits("a")?;
    until("progress", || Ok(lives.exits("a")? > before))?;
    lives.ok(&["pause", "a"])?;
    ensure!(lives.inspect("a")?["state"] == "paused");
    let paused = lives.exits("a")?;
    for _ in 0..5 {
        ensure!(lives.exits("a")? == paused, "it goes on while it is paused");
    }
    lives.ok(&["resume", "a"])?;
    ensure!(lives.inspect("a")?["state"] == "running");
    until("progress", || Ok(lives.exits("a")? > paused))?;
    // A paused one can be stopped.
    lives.ok(&["pause", "a"])?;
    lives.ok(&["stop", "-t", "1", "a"])?;
    lives.fails(&["pause", "a"], &["a is not running"])?;
    Ok(())
}

fn killed_monitor() -> Result<()> {
    let lives = Lives::new()?;
    lives.start("halts", &["--name", "a"])?;
    kill_process(lives.pid("a")?, Signal::KILL)?;
    // The lock goes with the process, which takes a moment.
    until("its end", || Ok(lives.inspect("a")?["state"] == "dead"))?;
    let a = lives.inspect("a")?;
    ensure!(a["exit_code"] == 137 && a["pid"].is_null(), "{a}");
    let left = lives.0.listing()?;
    let sockets: Vec<_> = left
        .iter()
        .filter(|name| name.ends_with("control.sock"))
        .collect();
    ensure!(sockets.is_empty(), "{sockets:?} were left");
    ensure!(lives.ok(&["wait", "a"])? == "137\n");
    lives.ok(&["start", "a"])?;
    ensure!(lives.inspect("a")?["state"] == "running");
    Ok(())
}

fn killed_temporary() -> Result<()> {
    let lives = Lives::new()?;
    lives.start("halts", &["--name", "a", "--rm"])?;
    kill_process(lives.pid("a")?, Signal::KILL)?;
    until("its removal", || Ok(lives.all()?.is_empty()))?;
    lives.is_empty()
}

fn wait() -> Result<()> {
    let lives = Lives::new()?;
    lives.start("ends", &["--name", "a"])?;
    let b = lives.start("halts", &["--name", "b", "--rm"])?;
    let waiting = lives.casita(&["wait", "a", "b"]).start()?;
    until("its waiting", || {
        let files = fs::read_dir(format!("/proc/{}/fd", waiting.id()))?.flatten();
        let mut files = files.filter_map(|file| fs::read_link(file.path()).ok());
        Ok(files.any(|file| file.ends_with(format!("{b}/lock"))))
    })?;
    lives.ok(&["kill", "b"])?;
    let finished = waiting.finish()?.expect(0)?;
    ensure!(finished.text() == "3\n137\n", "{finished}");
    ensure!(lives.all()?.len() == 1);
    Ok(())
}

fn followed_log() -> Result<()> {
    let lives = Lives::new()?;
    lives.start("halts", &["--name", "a"])?;
    let following = lives.casita(&["logs", "-f", "-t", "a"]).start()?;
    following.wait_for("Z halted\n")?;
    lives.ok(&["kill", "a"])?;
    following.finish()?.expect(0)?;
    // One that has ended has nothing to wait for.
    ensure!(lives.ok(&["logs", "-f", "-n", "1", "a"])? == "halted\n");
    Ok(())
}

fn restart_on_failure() -> Result<()> {
    let lives = Lives::new()?;
    lives.start("ends", &["--name", "a", "--restart", "on-failure:2"])?;
    ensure!(lives.ok(&["wait", "a"])? == "3\n");
    let a = lives.inspect("a")?;
    ensure!(a["restarts"] == 2 && a["state"] == "exited", "{a}");
    ensure!(lives.ok(&["logs", "a"])? == "three\n".repeat(3));
    Ok(())
}

fn stop_of_always() -> Result<()> {
    let lives = Lives::new()?;
    lives.start("ends", &["--name", "a", "--restart", "always"])?;
    until("a restart", || {
        Ok(lives.inspect("a")?["restarts"].as_u64() > Some(0))
    })?;
    lives.ok(&["stop", "a"])?;
    ensure!(lives.inspect("a")?["state"] == "exited");
    lives.start("halts", &["--name", "b", "--restart", "always"])?;
    lives.ok(&["kill", "b"])?;
    ensure!(lives.inspect("b")?["state"] == "exited");
    Ok(())
}

/// The image never gets packed, and the second signal does not wait for it.
fn given_up() -> Result<()> {
    let lives = Lives::new()?;
    let place = &lives.0;
    fs::create_dir_all(place.path("bin"))?;
    fs::create_dir_all(place.path("tree"))?;
    let mkfs = place.write(
        "bin/mkfs.erofs",
        "#!/bin/sh\necho $$ > packing\nread -r _ < fifo\n",
    )?;
    fs::set_permissions(&mkfs, fs::Permissions::from_mode(0o700))?;
    mkfifoat(CWD, place.path("fifo"), Mode::RWXU)?;
    let path = format!("{}:{}", place.text("bin"), std::env::var("PATH")?);
    for (options, second) in [
        (&["--rm"][..], Signal::INT),
        (&["--name", "kept"], Signal::HUP),
    ] {
        let machine = ["--skip-kvm-check", "--boot", "plain", "--memory", "16M"];
        let files = ["--kernel", "halts", "--rootfs", "tree"];
        let words = [&["run"], options, &machine, &files].concat();
        let running = lives.casita(&words).env("PATH", &path).start()?;
        let packing = || {
            let told = fs::read_to_string(place.path("packing")).unwrap_or_default();
            Pid::from_raw(told.strip_suffix('\n')?.parse().ok()?)
        };
        until("the packing", || Ok(packing().is_some()))?;
        running.signal(Signal::TERM)?;
        running.signal(second)?;
        // Two that wait at the same time are taken in the order of their numbers.
        let finished = running.finish()?;
        // It would never end.
        kill_process(packing().context("no packing")?, Signal::KILL)?;
        fs::remove_file(place.path("packing"))?;
        let code = finished.status.code().unwrap_or_default();
        let either = [Signal::TERM, second].map(|signal| 128 + signal.as_raw());
        ensure!(
            either.contains(&code),
            "one of {either:?} was expected\n{finished}"
        );
        // Before any other command that would clean up.
        let listing = place.listing()?;
        let left: Vec<_> = listing
            .iter()
            .filter(|name| name.contains("config.json") || name.contains("control.sock"))
            .collect();
        ensure!(left.is_empty(), "{left:?} were left");
        lives.is_empty()?;
    }
    Ok(())
}

fn removal() -> Result<()> {
    let lives = Lives::new()?;
    lives.start("halts", &["--name", "a"])?;
    lives.fails(&["rm", "a"], &["VM a is running", "rm -f a"])?;
    ensure!(lives.inspect("a")?["state"] == "running");
    lives.ok(&["rm", "-f", "a"])?;
    lives.is_empty()?;
    lives.fails(&["rm", "-f", "a"], &["no VM is named", "\"a\""])?;
    Ok(())
}

fn names() -> Result<()> {
    let lives = Lives::new()?;
    let id = lives.start("halts", &["--name", "a"])?;
    let again = lives.run("halts", &["--name", "a"]);
    complains(again.finish()?, &["the name a is taken", &id])?;
    lives.ok(&["stop", "a"])?;
    // It has ended and has nothing to lose.
    let second = lives.start("halts", &["--name", "a"])?;
    ensure!(id != second && lives.all()?.len() == 1);
    Ok(())
}

fn detached() -> Result<()> {
    let lives = Lives::new()?;
    lives.start("halts", &["--name", "a"])?;
    let pid = lives.pid("a")?;
    ensure!(getsid(Some(pid))? == pid, "it is in somebody's session");
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    ensure!(fs::read_link(format!("{proc}/cwd"))? == Path::new("/"));
    for number in 0..2 {
        let to = fs::read_link(format!("{proc}/fd/{number}"))?;
        ensure!(to == Path::new("/dev/null"), "{number} is {}", to.display());
    }
    Ok(())
}

fn several() -> Result<()> {
    let lives = Lives::new()?;
    lives.start("halts", &["--name", "a"])?;
    lives.start("halts", &["--name", "b"])?;
    let finished = lives.fails(&["stop", "a", "nobody", "b"], &["\"nobody\""])?;
    ensure!(finished.text() == "a\nb\n", "{finished}");
    lives.fails(&["kill", "a"], &["a is not running"])?;
    lives.fails(&["top", "a"], &["a is not running"])?;
    lives.fails(&["stats", "a"], &["a is not running"])?;
    lives.fails(&["logs", "nobody"], &["no VM is named"])?;
    lives.ok(&["restart", "a", "b"])?;
    lives.fails(&["start", "a"], &["a is running already"])?;
    lives.fails(&["stop", "-t", "soon", "a"], &["soon"])?;
    lives.fails(&["kill", "-s", "NO", "a"], &["NO"])?;
    Ok(())
}

fn inspect() -> Result<()> {
    let lives = Lives::new()?;
    let id = lives.start("halts", &["--name", "a"])?;
    let a = lives.inspect(&id)?;
    ensure!(a["id"] == id.as_str() && a["name"] == "a", "{a}");
    ensure!(a["state"] == "running" && a["exit_code"].is_null(), "{a}");
    ensure!(
        a["limits"]["memory"] == 16 << 20 && a["limits"]["cpus"] == 1,
        "{a}"
    );
    ensure!(a["restart"] == "no" && a["mounts"].is_array(), "{a}");
    let fields = [
        "network", "image", "created", "started", "finished", "command", "disk",
    ];
    for field in fields {
        ensure!(a.get(field).is_some(), "no {field}: {a}");
    }
    lives.start("halts", &["--name", "b"])?;
    let both: Value = serde_json::from_str(&lives.ok(&["inspect", "--format", "json", "a", "b"])?)?;
    ensure!(both.as_array().is_some_and(|vms| vms.len() == 2), "{both}");
    Ok(())
}

/// Runs programs at the same time.
fn at_once(programs: &[Program]) -> Result<Vec<Finished>> {
    thread::scope(|scope| {
        let running: Vec<_> = programs
            .iter()
            .map(|program| scope.spawn(|| program.finish()))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
            .collect()
    })
}

const MANY: usize = 50;

fn fifty() -> Result<()> {
    let lives = Lives::new()?;
    let names: Vec<_> = (0..MANY).map(|number| format!("vm{number}")).collect();
    let starts = names
        .iter()
        .map(|name| lives.run("halts", &["--name", name]));
    for finished in at_once(&starts.collect::<Vec<_>>())? {
        finished.expect(0)?;
    }
    let ids = lives.ok(&["ps", "-q"])?;
    let different: BTreeSet<_> = ids.lines().collect();
    ensure!(different.len() == MANY, "{} of {MANY} run", different.len());
    // Each way to end, and looks at all of them meanwhile.
    let ends = names
        .iter()
        .enumerate()
        .map(|(number, name)| match number % 5 {
            0 => lives.casita(&["stop", name]),
            1 => lives.casita(&["kill", name]),
            2 => lives.casita(&["rm", "-f", name]),
            3 => lives.casita(&["restart", name]),
            _ => lives.casita(&["ps", "-a"]),
        });
    for finished in at_once(&ends.collect::<Vec<_>>())? {
        finished.expect(0)?;
    }
    let all = lives.all()?;
    let of = |state: &str| all.iter().filter(|(_, found)| found == state).count();
    ensure!(all.len() == MANY * 4 / 5, "{all:?}");
    ensure!(
        (of("exited"), of("running")) == (MANY * 2 / 5, MANY * 2 / 5),
        "{all:?}"
    );
    let removals = all
        .iter()
        .map(|(name, _)| lives.casita(&["rm", "-f", name]));
    for finished in at_once(&removals.collect::<Vec<_>>())? {
        finished.expect(0)?;
    }
    lives.is_empty()
}

fn one_name() -> Result<()> {
    let lives = Lives::new()?;
    let starts = (0..MANY).map(|_| lives.run("halts", &["--name", "a"]));
    let finished = at_once(&starts.collect::<Vec<_>>())?;
    let (winners, others): (Vec<_>, Vec<_>) =
        finished.into_iter().partition(|one| one.status.success());
    ensure!(winners.len() == 1, "{} have it", winners.len());
    for other in others {
        complains(other, &["the name a is taken by the running VM"])?;
    }
    ensure!(lives.all()? == [("a".to_owned(), "running".to_owned())]);
    Ok(())
}

fn one_start() -> Result<()> {
    let lives = Lives::new()?;
    lives.start("halts", &["--name", "a"])?;
    lives.ok(&["stop", "a"])?;
    let starts = (0..20).map(|_| lives.casita(&["start", "a"]));
    let finished = at_once(&starts.collect::<Vec<_>>())?;
    let started = finished.iter().filter(|one| one.status.success()).count();
    ensure!(started == 1, "{started} started it");
    ensure!(lives.all()? == [("a".to_owned(), "running".to_owned())]);
    Ok(())
}
