//! From the start of a program to its exit, with one short command inside.

use anyhow::Result;

use crate::containers::{Containers, Kind};
use crate::parts::result::{Goal, PartResult};
use crate::peers::{self, CASITA};
use crate::process::time_to_end;
use crate::subjects::Subjects;

const TIME: &str = "start to exit of `true`";
const TRUE: &str = "/bin/true";
/// As users have it, who do not say `--net none`.
const WITH_NETWORK: &str = "casita, with a network";

/// Races `casita run` against containers, in turns.
pub fn measure(subjects: &Subjects, result: &mut PartResult) -> Result<()> {
    result.note(
        "Each program is started, makes its container or VM from the same root file system, runs \
         /bin/true in it, cleans up and exits; the clock runs from right before posix_spawn to the \
         return of wait4. Casita has 256 MiB, one vCPU and a disk of its own for what is written; \
         the containers' roots are read-only. It has no network, as they have none but their \
         loopback devices; once more it has the one of a VM of which nothing else is said, and \
         which starts no passt as long as nothing is sent. The first round is not counted.",
    );
    result.note(
        "An instruction counter as clock leaves out what a VM exit costs on hardware. It jumps \
         while the lab waits for its file server, which some runs show: the median is the figure.",
    );
    let containers = Containers::new(subjects)?;
    for run in 0..=subjects.runs {
        let counted = run > 0;
        let mut add = |who: &str, time: f64| {
            if counted {
                result.add(TIME, who, "ms", time);
            }
        };
        let mut casita = peers::casita(subjects, "256M")?;
        add(CASITA, time_to_end(casita.args(["--", TRUE]))?);
        let mut casita = peers::casita_with_network(subjects, "256M")?;
        add(WITH_NETWORK, time_to_end(casita.args(["--", TRUE]))?);
        for kind in containers.installed() {
            let mut command = containers.run(kind, &format!("bench-{run}"), &[TRUE])?;
            add(kind.name(), time_to_end(&mut command)?);
        }
        eprintln!("run: round {run} of {}", subjects.runs);
    }
    result.add_ratio(TIME, CASITA, Kind::Crun.name(), Some(Goal::AtMost(6.0)));
    for kind in [Kind::Runc, Kind::Bwrap, Kind::Unshare] {
        result.add_ratio(TIME, CASITA, kind.name(), None);
    }
    Ok(())
}
