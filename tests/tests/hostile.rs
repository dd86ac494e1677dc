//! Guests that attack their monitor, wherever there is a KVM: slices of what `booted` does in full
//! where Linux guests run.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use casita_tests::attacker::{self, Attacker, Observer};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::suite::Suite;
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.all_miss(machine::lacks_kvm().or_else(attacker::lacks));
    suite.test("registers_in_every_status", || attack("registers step=3"));
    suite.test("queues_that_are_not_in_memory", || attack("queues"));
    suite.test("chains_that_break_the_rules", || attack("chains"));
    suite.test("kicks_in_a_storm", || attack("kicks"));
    suite.test("resets_with_requests_in_flight", || attack("resets"));
    suite.test("packets_in_every_state", || attack("vsock"));
    suite.test("ports_in_a_storm", || attack("ports step=2 ports=8192"));
    suite.test("anything_in_any_order", || attack("random turns=5000 seed=7"));
    suite.run(&Arguments::from_args())
}

/// Two machines with a disk and streams; one is attacked.
fn attack(words: &str) -> Result<()> {
    let place = Place::new()?;
    attacker::build(&place)?;
    let options = |disk| -> Result<[String; 6]> {
        let disk = place.write(disk, vec![0; 4 << 20])?;
        let sockets = format!("{disk}.v");
        Ok(["--memory", "16M", "--disk", &disk, "--vsock", &sockets].map(str::to_owned))
    };
    let (own, others) = (options("a")?, options("b")?);
    let host = attacker::Listener::at(&place.path("a.v_1"))?;
    let mut observer = Observer::start(&place, &others.each_ref().map(String::as_str))?;
    let words = format!("attack={words}");
    let mut attacker = Attacker::start(&place, &words, &own.each_ref().map(String::as_str))?;
    attacker.attack()?;
    ensure!(
        !words.contains("vsock") || host.was_reached(),
        "no connection was opened"
    );
    attacker.has_not_grown()?;
    attacker.rests(&mut observer)?;
    attacker.end()?;
    observer.end()
}
