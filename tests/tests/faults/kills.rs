//! SIGKILL at random moments: of starts, ends, removals, volumes, imports.

use std::time::Instant;
use std::{fs, thread, time::Duration};

use anyhow::{Result, ensure};
use casita_tests::machine;
use casita_tests::suite::Suite;
use rustix::process::Signal;

use super::{Host, Random};

pub fn tests(suite: &mut Suite) {
    suite.test("two_hundred_kills_at_random_moments", commands);
    let importer = machine::casita().with_file_name("casita-image");
    let missing = machine::lacks_file(&importer);
    suite.test_if(
        missing,
        "imports_that_are_killed_at_random_moments",
        imports,
    );
}

/// Starts `words` and kills it after a random part of the time that it takes when it is left alone.
fn kill(host: &Host, words: &[&str], whole: Duration, random: &mut Random) -> Result<()> {
    let running = host.casita(words).start()?;
    let moment = random.below(whole.as_micros().max(1).try_into()?);
    thread::sleep(Duration::from_micros(moment));
    // It may have ended.
    let _ = running.signal(Signal::KILL);
    running.finish()?;
    Ok(())
}

fn run<'a>(options: &[&'a str], payload: &'a str) -> Vec<&'a str> {
    [&["run"], options, &super::MACHINE, &["--kernel", payload]].concat()
}

fn commands() -> Result<()> {
    let host = Host::new()?;
    let disk = host.0.write("d.raw", vec![0; 1 << 20])?;
    let start = Instant::now();
    host.run(&["--rm"], "ends").finish()?.expect(3)?;
    let whole = start.elapsed() * 2;
    let cases = [
        run(&["--name", "a"], "halts"),
        run(&["--rm", "--disk", &disk], "ends"),
        run(&["-d", "--name", "a"], "halts"),
        run(&["-d", "--rm", "--restart", "no"], "ends"),
        run(&["-d", "--name", "b", "--restart", "always"], "ends"),
        vec!["stop", "-t", "0", "live"],
        vec!["restart", "-t", "0", "live"],
        vec!["rm", "-f", "live"],
        vec!["volume", "create", "--shared", "v"],
        vec!["volume", "rm", "v"],
    ];
    let mut random = Random(5);
    for round in 0..200 {
        let words = &cases[round % cases.len()];
        if words.contains(&"live") {
            host.run(&["-d", "--name", "live"], "halts")
                .finish()?
                .expect(0)?;
        }
        kill(&host, words, whole, &mut random)?;
        // Whoever looks next finds order, and takes each name again.
        if round % 4 == 3 {
            host.is_consistent()?;
        } else {
            host.remove_all()?;
        }
    }
    host.is_consistent()?;
    let finished = host
        .casita(&["volume", "create", "--shared", "v"])
        .finish()?;
    ensure!(
        finished.status.success() || finished.complaint().contains("exists"),
        "{finished}"
    );
    host.ok(&["volume", "rm", "v"])?;
    let volumes = fs::read_dir(host.0.path("data/casita/volumes"))?;
    let left: Vec<_> = volumes.flatten().map(|entry| entry.file_name()).collect();
    ensure!(
        left.iter().all(|name| name == ".lock"),
        "{left:?} were left"
    );
    Ok(())
}

fn imports() -> Result<()> {
    let host = Host::new()?;
    let import = ["image", "import", "tree", "x:1"];
    let start = Instant::now();
    let digest = host.ok(&import)?;
    let whole = start.elapsed();
    let mut random = Random(9);
    for _ in 0..30 {
        host.ok(&["image", "rm", "-f", "x:1"])?;
        kill(&host, &import, whole, &mut random)?;
        let finished = host.casita(&["image", "ls"]).finish()?.expect(0)?;
        ensure!(finished.stderr.is_empty(), "{finished}");
        ensure!(host.ok(&import)? == digest, "another image");
    }
    host.ok(&["image", "rm", "-f", "x:1"])?;
    host.ok(&["image", "prune", "--force"])?;
    let listing = host.0.listing()?;
    let left: Vec<_> = listing
        .iter()
        .filter(|name| name.starts_with("data/casita/images/"))
        .filter(|name| !name.ends_with("/refs.json") && !name.ends_with("lock"))
        .collect();
    ensure!(left.is_empty(), "{left:?} were left");
    host.is_consistent()
}
