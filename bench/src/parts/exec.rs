//! A further command in a VM, or in a container, that runs already.

use anyhow::Result;

use crate::containers::{Containers, Kind};
use crate::parts::result::{Goal, PartResult};
use crate::peers::{self, CASITA};
use crate::process::time_to_end;
use crate::subjects::Subjects;

const TIME: &str = "start to exit of `exec true`";
const SLEEP: [&str; 3] = ["/bin/busybox", "sleep", "1000000"];
const TRUE: &str = "/bin/true";

/// Enters one VM and one container of each runtime again and again, in turns.
pub fn measure(subjects: &Subjects, result: &mut PartResult) -> Result<()> {
    result.note(
        "One VM and one container of each runtime stand idle in `sleep`, with the same root file \
         system. Each value is one `exec` of /bin/true in it, from right before posix_spawn to the \
         return of wait4. The first round is not counted.",
    );
    let vm = peers::StandingVm::start(subjects, "256M", "bench-exec", &SLEEP)?;
    let containers = Containers::new(subjects)?;
    let standing: Vec<_> = containers
        .oci()
        .map(|kind| Ok((kind, containers.start(kind, "bench-exec", &SLEEP)?)))
        .collect::<Result<_>>()?;
    for run in 0..=subjects.runs {
        let counted = run > 0;
        let mut add = |who: &str, time: f64| {
            if counted {
                result.add(TIME, who, "ms", time);
            }
        };
        add(CASITA, time_to_end(&mut vm.exec(&[TRUE])?)?);
        for (kind, container) in &standing {
            add(kind.name(), time_to_end(&mut container.exec(&[TRUE]))?);
        }
        eprintln!("exec: round {run} of {}", subjects.runs);
    }
    result.add_ratio(TIME, CASITA, Kind::Crun.name(), Some(Goal::AtMost(2.0)));
    result.add_ratio(TIME, CASITA, Kind::Runc.name(), None);
    Ok(())
}
