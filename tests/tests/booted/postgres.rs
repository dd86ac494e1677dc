//! A database whose data is in a volume, and the death of its monitor.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use casita_tests::place::Place;
use casita_tests::suite::Suite;
use casita_tests::vm::Vm;
use casita_tests::{machine, oci};
use rustix::process::{Pid, Signal, kill_process};

pub fn tests(suite: &mut Suite) {
    suite.test_if(
        oci::lacks("postgres"),
        "postgres_keeps_each_commit_that_it_told_of",
        survives,
    );
}

/// Answers when the server takes connections.
const READY: &str = "until pg_isready --quiet; do sleep 0.2; done";
/// The number of commits in a round before the monitor dies.
const ENOUGH: usize = 25;

/// One that is killed while it writes, again and again; `$CASITA_LONG` is 20 times.
fn survives() -> Result<()> {
    let rounds = if machine::is_long() { 20 } else { 3 };
    let place = Place::new()?;
    oci::share(&place)?;
    let options = ["--name", "db", "--memory", "512M"];
    let volume = ["-v", "numbers:/var/lib/postgresql/data", "postgres"];
    let vm = Vm::run(&place, &[&options[..], &volume].concat())?;
    vm.asks(READY)?;
    sql(&vm, "create table told (number int primary key)")?;
    let mut told = BTreeSet::new();
    for round in 1..=rounds {
        let next = told.last().map_or(1, |last| last + 1_000_000);
        let new = write_until_killed(&vm, next)?;
        ensure!(new.len() >= ENOUGH, "round {round}: {} commits", new.len());
        told.extend(new);
        vm.ends_with(137)?;
        vm.casita("start", &[]).finish()?.expect(0)?;
        vm.asks(READY)?;
        let there = numbers(&sql(&vm, "select number from told")?)?;
        let lost: Vec<_> = told.difference(&there).collect();
        ensure!(lost.is_empty(), "round {round}: lost are {lost:?}");
        // What was committed and not told of is no less there.
        told = there;
    }
    // Asked to end, it ends well, and the next start has nothing to recover.
    vm.casita("stop", &["-t", "60"]).finish()?.expect(0)?;
    vm.ends_with(0)?;
    let logs = vm.casita("logs", &[]).finish()?.expect(0)?;
    ensure!(
        logs.complaint().contains("database system is shut down"),
        "{logs}"
    );
    Ok(())
}

fn sql(vm: &Vm<'_>, statement: &str) -> Result<String> {
    let words = ["psql", "-U", "postgres", "-qAtc", statement];
    Ok(vm.exec(&[], &words).finish()?.expect(0)?.text())
}

fn numbers(text: &str) -> Result<BTreeSet<u64>> {
    let lines = text.lines().map(str::parse);
    lines.collect::<Result<_, _>>().context("not numbers")
}

/// Commits one number after the other, from `next` on, until the monitor is killed; returns those
/// that were told of. psql tells of a row when its statement has been committed.
fn write_until_killed(vm: &Vm<'_>, next: u64) -> Result<BTreeSet<u64>> {
    let script = format!(
        "n={next}; while :; do echo \"insert into told values ($n) returning number;\"; n=$((n + 1)); done |
        psql -U postgres -qAt -v ON_ERROR_STOP=1"
    );
    let pid = Pid::from_raw(vm.pid()?).context("no pid")?;
    let writer = vm.exec(&[], &["sh", "-c", &script]).start()?;
    let enough = next + u64::try_from(ENOUGH)? - 1;
    writer.wait_for(&format!("{enough}\n"))?;
    kill_process(pid, Signal::KILL)?;
    let finished = writer.finish()?;
    ensure!(!finished.status.success(), "it ended well\n{finished}");
    let text = finished.text();
    // The last line may have been cut.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    numbers(whole)
}
