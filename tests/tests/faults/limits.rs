//! Too few descriptors, too little memory.

use anyhow::{Result, ensure};
use casita_tests::machine;
use casita_tests::suite::Suite;

use super::{Host, honest};

pub fn tests(suite: &mut Suite) {
    let prlimit = || machine::lacks("prlimit", "util-linux");
    suite.test_if(prlimit(), "a_start_with_so_many_descriptors", descriptors);
    suite.test_if(prlimit(), "a_start_with_so_much_memory", memory);
}

/// A start either works or says why not, whichever descriptor is the last.
fn descriptors() -> Result<()> {
    let host = Host::new()?;
    let (mut failed, mut worked) = (0, 0);
    for count in 3..=64 {
        let limit = format!("--nofile={count}:{count}");
        let finished = host
            .run(&["--rm"], "ends")
            .under(&["prlimit", &limit])
            .finish()?;
        match finished.status.code() {
            Some(3) => worked += 1,
            // Not even its libraries can be opened.
            Some(127) if count < 5 => {}
            _ => {
                honest(&finished)?;
                failed += 1;
            }
        }
    }
    ensure!(failed > 0 && worked > 0, "{failed} failed, {worked} worked");
    host.is_consistent()
}

/// So little address space that each allocation is the one that fails, sooner or later. A program
/// without memory may end by SIGABRT, which is no answer of its own; what it leaves is in order.
fn memory() -> Result<()> {
    let host = Host::new()?;
    let (mut failed, mut worked) = (0, 0);
    for mib in (8..140).step_by(3) {
        let limit = format!("--as={}", mib << 20);
        let finished = host
            .run(&["--rm"], "ends")
            .under(&["prlimit", &limit])
            .finish()?;
        match finished.status.code() {
            Some(3) => worked += 1,
            Some(125) => {
                honest(&finished)?;
                failed += 1;
            }
            // The loader's own word, or an abort.
            Some(127) | None => failed += 1,
            _ => anyhow::bail!("with {mib} MiB\n{finished}"),
        }
        ensure!(
            !finished.complaint().contains("panicked"),
            "a panic with {mib} MiB\n{finished}"
        );
    }
    ensure!(failed > 0 && worked > 0, "{failed} failed, {worked} worked");
    host.is_consistent()
}
