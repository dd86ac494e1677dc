//! All the ways in which a VM ends.

use anyhow::{Result, ensure};
use casita_tests::place::Place;
use casita_tests::run::Finished;
use casita_tests::suite::Suite;
use rustix::process::Signal;

use super::shell;

pub fn tests(suite: &mut Suite) {
    suite.test("sigterm_is_143", || signal(Signal::TERM, 143));
    suite.test("sigint_is_130", || signal(Signal::INT, 130));
    suite.test("sighup_is_129", || signal(Signal::HUP, 129));
    suite.test("a_guest_may_power_itself_off", powers_off);
    suite.test("a_guest_that_resets_itself_is_told", resets);
    suite.test("a_kernel_panic_is_told", panic);
    suite.test(
        "what_the_command_left_running_does_not_hold_the_end",
        left_running,
    );
}

fn signal(signal: Signal, code: i32) -> Result<()> {
    let place = Place::new()?;
    let options = ["--rm", "--cpus", "2"];
    let running = shell(&place, &options, "echo ready; while :; do :; done").start()?;
    running.wait_for("ready")?;
    running.signal(signal)?;
    let finished = running.finish()?.expect(code)?;
    ensure!(
        finished.stderr.is_empty(),
        "no complaint was expected\n{finished}"
    );
    let left = place.casita(["ps", "-aq"]).finish()?.expect(0)?;
    ensure!(left.stdout.is_empty(), "left behind: {left}");
    Ok(())
}

/// Runs a shell that ends the guest by `deed` once its word has arrived here: what is still under
/// way when a kernel stops is lost with it.
fn ends_guest(options: &[&str], deed: &str, code: i32) -> Result<Finished> {
    let script = format!("echo before; read word; {deed}; while :; do sleep 1000; done");
    let mut running = shell(&Place::new()?, options, &script).start_piped()?;
    running.wait_for("before")?;
    running.send("go\n")?;
    running.finish()?.expect(code)
}

fn powers_off() -> Result<()> {
    let finished = ends_guest(&[], "poweroff -f", 0)?;
    ensure!(
        finished.stderr.is_empty(),
        "no complaint was expected\n{finished}"
    );
    Ok(())
}

fn resets() -> Result<()> {
    let finished = ends_guest(&[], "reboot -f", 125)?;
    let complaint = finished.complaint();
    ensure!(
        complaint.starts_with("casita: the guest reset itself") && complaint.lines().count() == 1,
        "one line about the reset was expected\n{finished}"
    );
    Ok(())
}

fn panic() -> Result<()> {
    let finished = ends_guest(&["--cpus", "2"], "echo c > /proc/sysrq-trigger", 125)?;
    let complaint = finished.complaint();
    for text in [
        "casita: console: ",
        "Kernel panic - not syncing: sysrq triggered crash",
        "as a kernel does that panics",
    ] {
        ensure!(complaint.contains(text), "{text:?} is missing\n{finished}");
    }
    Ok(())
}

fn left_running() -> Result<()> {
    let script =
        "trap '' TERM; (trap '' TERM HUP; while :; do sleep 1000; done) & echo started; exit 8";
    shell(&Place::new()?, &[], script)
        .finish()?
        .expect(8)?
        .says(&["started"])?;
    Ok(())
}
