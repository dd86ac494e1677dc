//! Real Linux guests, started as people start them. Where this machine's KVM can't run Linux, the
//! whole program goes on in the lab.

mod bench;
mod command;
mod detached;
mod disks;
mod egress;
mod ends;
mod escape;
mod exec;
mod faults;
mod hardware;
mod hostile;
mod images;
mod life;
mod memory;
mod net;
mod networks;
mod oci;
mod ordinary;
mod parting;
mod plain;
mod postgres;
mod process;
mod sandbox;
mod shares;
mod terminal;
mod volumes;
mod vsock;

use std::process::ExitCode;

use anyhow::Result;
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::run::{Finished, Program};
use casita_tests::suite::Suite;
use libtest_mimic::Arguments;

/// More than twice what all of it takes in the lab on two cores that are busy with other things.
const LAB_SECONDS: u32 = 2400;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = machine::lacks_file(&machine::casita())
        .or_else(|| machine::lacks_file(&machine::default_kernel()));
    let runs = missing.is_none() && !arguments.list;
    if runs
        && !machine::is_lab()
        && let Err(error) = casita_tests::oci::prepare()
    {
        eprintln!("{error:#}");
    }
    if runs && !machine::is_lab() && !machine::runs_guests() {
        println!("this machine's KVM can't run guests: the tests run in the lab");
        warm_up();
        if let Err(error) = machine::go_on_in_the_lab(LAB_SECONDS) {
            eprintln!("{error:#}");
        }
        return ExitCode::FAILURE;
    }
    let mut suite = Suite::new();
    suite.all_miss(missing);
    bench::tests(&mut suite);
    command::tests(&mut suite);
    detached::tests(&mut suite);
    disks::tests(&mut suite);
    egress::tests(&mut suite);
    ends::tests(&mut suite);
    escape::tests(&mut suite);
    exec::tests(&mut suite);
    hardware::tests(&mut suite);
    images::tests(&mut suite);
    life::tests(&mut suite);
    memory::tests(&mut suite);
    net::tests(&mut suite);
    networks::tests(&mut suite);
    oci::tests(&mut suite);
    ordinary::tests(&mut suite);
    parting::tests(&mut suite);
    plain::tests(&mut suite);
    postgres::tests(&mut suite);
    process::tests(&mut suite);
    sandbox::tests(&mut suite);
    shares::tests(&mut suite);
    terminal::tests(&mut suite);
    volumes::tests(&mut suite);
    vsock::tests(&mut suite);
    faults::tests(&mut suite);
    hostile::tests(&mut suite);
    suite.run(&arguments)
}

/// Makes the templates of the disks that the tests use, which the lab would make anew each time. A
/// command line that no kernel takes ends each start as soon as its files are open.
fn warm_up() {
    let long = "x".repeat(60_000);
    let Ok(place) = Place::new() else { return };
    for disk in [
        &[][..],
        &["--disk", "d.raw,size=64M"],
        &["--disk", "e.raw,size=1G"],
    ] {
        let arguments = ["run", "--skip-kvm-check", "--cmdline", &long];
        // What is missing shows in the tests themselves.
        let _ = place.casita([&arguments, disk].concat()).finish();
    }
    let _ = place.casita(["volume", "create", "v"]).finish();
}

/// `casita run` with `options`, and a shell that runs `script`.
fn shell(place: &Place, options: &[&str], script: &str) -> Program {
    let command = ["--", "sh", "-c", script];
    place.casita([&["run"], options, &command].concat())
}

/// `casita run --rm` with `options`, and a shell that runs `script`.
fn vm(place: &Place, options: &[&str], script: &str) -> Program {
    shell(place, &[&["--rm"], options].concat(), script)
}

/// Runs a shell to its end, which has to be with status 0.
fn sh(options: &[&str], script: &str) -> Result<Finished> {
    shell(&Place::new()?, options, script).finish()?.expect(0)
}
