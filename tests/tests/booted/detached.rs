//! VMs in the background that leave nothing: one that can't start, and one that is not kept.

use anyhow::{Result, ensure};
use casita_tests::place::Place;
use casita_tests::run::Finished;
use casita_tests::suite::Suite;

pub fn tests(suite: &mut Suite) {
    suite.test("a_detached_command_that_is_not_there_is_127", missing);
    suite.test("a_temporary_vms_disk_goes_with_it", temporary);
}

fn ok(place: &Place, arguments: &[&str]) -> Result<Finished> {
    place.casita(arguments.iter().copied()).finish()?.expect(0)
}

fn missing() -> Result<()> {
    let place = Place::new()?;
    let run = place.casita(["run", "-d", "--", "/no/such"]).finish()?;
    let run = run.expect(127)?;
    ensure!(
        run.complaint().contains("/no/such") && run.stdout.is_empty(),
        "{run}"
    );
    ensure!(ok(&place, &["ps", "-aq"])?.stdout.is_empty());
    Ok(())
}

fn temporary() -> Result<()> {
    let place = Place::new()?;
    let run = ["run", "-d", "--rm", "--name", "a", "--"];
    let command = ["sh", "-c", "echo x > /x; sleep 1000"];
    ok(&place, &[&run[..], &command].concat())?;
    ok(&place, &["kill", "a"])?;
    ensure!(ok(&place, &["ps", "-aq"])?.stdout.is_empty());
    let left = place.listing()?;
    let left: Vec<_> = left.iter().filter(|name| name.contains("vms/")).collect();
    ensure!(left.is_empty(), "{left:?} were left");
    Ok(())
}
