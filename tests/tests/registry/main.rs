//! Images: pulled from a real registry and from one that misbehaves as told, imported from all that
//! other programs write, compared with what `umoci` unpacks. No guest is needed.

mod compare;
mod fake;
mod imports;
mod made;
mod refusals;
mod served;
mod transfers;
mod verbs;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::run::{Finished, Program};
use casita_tests::suite::Suite;
use libtest_mimic::Arguments;
use serde_json::Value;

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.all_miss(machine::lacks_file(&machine::casita()));
    verbs::missing_helper(&mut suite);
    suite.all_miss(machine::lacks_file(
        &machine::casita().with_file_name("casita-image"),
    ));
    transfers::tests(&mut suite);
    refusals::tests(&mut suite);
    verbs::tests(&mut suite);
    for (program, package) in [
        ("umoci", "umoci"),
        ("skopeo", "skopeo"),
        ("fsck.erofs", "erofs-utils"),
        ("docker-registry", "docker-registry"),
    ] {
        suite.all_miss(machine::lacks(program, package));
    }
    suite.all_miss((!machine::is_root()).then(|| "umoci keeps owners only for root".to_owned()));
    suite.all_miss(compare::lacks_erofs());
    served::tests(&mut suite);
    imports::tests(&mut suite);
    suite.run(&Arguments::from_args())
}

/// Runs `casita image` with these arguments to its end.
fn image(place: &Place, arguments: &[&str]) -> Program {
    let all = ["image"].iter().chain(arguments);
    place.casita(all.map(|word| (*word).to_owned()))
}

/// What `--format json` says of a pull or an import that works.
fn made(place: &Place, arguments: &[&str]) -> Result<Value> {
    let mut all = arguments.to_vec();
    all.extend(["--format", "json"]);
    let finished = image(place, &all).finish()?.expect(0)?;
    serde_json::from_slice(&finished.stdout).with_context(|| format!("no JSON\n{finished}"))
}

/// It has to fail in one line with these parts, and leave nothing in the store.
fn refused(place: &Place, finished: &Finished, parts: &[&str]) -> Result<()> {
    let complaint = finished.complaint();
    ensure!(
        finished.status.code() == Some(125) && finished.stdout.is_empty(),
        "status 125 and no output were expected\n{finished}"
    );
    ensure!(
        complaint.starts_with("casita: ") && complaint.lines().count() == 1,
        "one line was expected\n{finished}"
    );
    for part in parts {
        ensure!(
            complaint.contains(part),
            "{part:?} was expected\n{finished}"
        );
    }
    let left = stored(place)?;
    ensure!(left.is_empty(), "left behind: {left:?}\n{finished}");
    Ok(())
}

/// The files in the store but its lock.
fn stored(place: &Place) -> Result<Vec<String>> {
    let store = "data/casita/images/";
    let files = place.listing()?.into_iter();
    let files = files.filter_map(|name| Some(name.strip_prefix(store)?.to_owned()));
    Ok(files.filter(|name| name != "lock").collect())
}

/// Runs another program that has to succeed.
fn run(words: &[&str]) -> Result<Finished> {
    Program::new(words.iter().copied()).finish()?.expect(0)
}
