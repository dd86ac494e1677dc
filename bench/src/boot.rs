//! `casita bench boot`: start to exit of one command, in turns, each in a VM or container of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use casita::cli::bench::{BootArgs, Rival};

use crate::account::{Account, medians};
use crate::containers::{Containers, Kind, Standing};
use crate::fingerprint::Fingerprint;
use crate::interrupt;
use crate::peers::{self, CASITA, QEMU, Qemu};
use crate::process::{ms, run_quietly, time_to_end};
use crate::progress::Progress;
use crate::record::{Missing, Record, Results, Settings, Stage, Timed};
use crate::subjects::{self, Subjects};

/// What runs where nothing else is asked for.
const TRUE: &str = "/bin/true";

/// Somebody in the race.
struct Racer<'a> {
    name: &'static str,
    kind: RacerKind<'a>,
    samples: Vec<f64>,
    stages: Vec<Vec<Stage>>,
}

enum RacerKind<'a> {
    Casita,
    Container(Kind, &'a Containers),
    Qemu { disk: PathBuf, cmdline: String },
}

/// Measures casita and those that it is to be measured beside.
///
/// # Errors
/// If casita itself can't be measured.
pub fn measure(args: &BootArgs, casita: &Path) -> Result<Record> {
    let subjects = Subjects::of(&args.setup, casita, &subjects::default_place())?;
    let host = Fingerprint::take(&subjects)?;
    let given: Vec<&str> = args.command.iter().map(String::as_str).collect();
    let words = if given.is_empty() { vec![TRUE] } else { given };
    let race = Race {
        subjects: &subjects,
        words: &words,
        memory: args.memory,
    };
    let containers = Containers::new(&subjects)?;
    let mut missing = Vec::new();
    let mut racers = race.racers(&args.against, &containers, &mut missing)?;
    race.warm_up(&mut racers, &mut missing)?;
    let mut progress = Progress::new("boot", args.runs * racers.len());
    for run in 1..=args.runs {
        // Who comes first in a round may find caches that another has filled: everybody in turns.
        let count = racers.len();
        racers.rotate_left(usize::from(run > 1).min(count));
        for racer in &mut racers {
            race.once(racer, run)
                .with_context(|| format!("run {run} of {}", racer.name))?;
            progress.step(racer.name);
        }
    }
    drop(progress);
    let order = |name: &str| {
        let listed = args.against.iter().position(|one| name_of(*one) == name);
        listed.map_or(0, |place| place + 1)
    };
    racers.sort_by_key(|racer| order(racer.name));
    Ok(Record {
        host,
        settings: Settings {
            image: args
                .setup
                .image
                .clone()
                .unwrap_or_else(|| "built-in".to_owned()),
            command: words.join(" "),
            memory_mib: args.memory,
            runs: args.runs,
        },
        notes: notes(&args.against),
        missing,
        results: Results::Boot(
            racers
                .into_iter()
                .map(|racer| {
                    let stages = medians(&racer.stages);
                    Timed::new(racer.name, racer.samples, stages)
                })
                .collect(),
        ),
    })
}

struct Race<'a> {
    subjects: &'a Subjects,
    words: &'a [&'a str],
    memory: usize,
}

impl Race<'_> {
    /// Casita, and all others that are installed.
    fn racers<'a>(
        &self,
        against: &[Rival],
        containers: &'a Containers,
        missing: &mut Vec<Missing>,
    ) -> Result<Vec<Racer<'a>>> {
        let racer = |name, kind| Racer {
            name,
            kind,
            samples: Vec::new(),
            stages: Vec::new(),
        };
        let mut racers = vec![racer(CASITA, RacerKind::Casita)];
        let mut asked: Vec<Rival> = Vec::new();
        for rival in against {
            if asked.contains(rival) {
                continue;
            }
            asked.push(*rival);
            let name = name_of(*rival);
            let kind = match container(*rival) {
                Some(kind) if containers.can_run(kind) => RacerKind::Container(kind, containers),
                None if crate::containers::is_installed(peers::QEMU_PROGRAM) => RacerKind::Qemu {
                    disk: peers::make_disk(self.subjects, "boot.disk", "2G")?,
                    cmdline: peers::casita_cmdline(self.subjects)?,
                },
                _ => {
                    missing.push(Missing {
                        name: name.to_owned(),
                        reason: "not installed".to_owned(),
                    });
                    continue;
                }
            };
            racers.push(racer(name, kind));
        }
        Ok(racers)
    }

    /// One run of each that is not counted. Who can't work here is told and left out.
    fn warm_up(&self, racers: &mut Vec<Racer<'_>>, missing: &mut Vec<Missing>) -> Result<()> {
        let mut able = Vec::new();
        for mut racer in racers.drain(..) {
            match self.once(&mut racer, 0) {
                Ok(()) => {
                    racer.samples.clear();
                    racer.stages.clear();
                    able.push(racer);
                }
                Err(error) => {
                    interrupt::check()?;
                    if racer.name == CASITA {
                        return Err(error);
                    }
                    missing.push(Missing {
                        name: racer.name.to_owned(),
                        reason: format!("does not work here: {error:#}"),
                    });
                }
            }
        }
        *racers = able;
        Ok(())
    }

    fn once(&self, racer: &mut Racer<'_>, run: usize) -> Result<()> {
        let time = match &racer.kind {
            RacerKind::Casita => {
                let (time, stages) = self.casita()?;
                racer.stages.push(stages);
                time
            }
            RacerKind::Container(kind, containers) => {
                let name = format!("casita-bench-{}-{run}", std::process::id());
                let mut command = containers.run(*kind, &name, self.words)?;
                // Only what failed or was interrupted has left something; the rest is gone itself.
                let standing = Standing::new(*kind, &name);
                let time = time_to_end(&mut command)?;
                standing.forget();
                time
            }
            RacerKind::Qemu { disk, cmdline } => {
                let qemu = Qemu {
                    memory: &format!("{}M", self.memory),
                    cmdline,
                    words: self.words,
                    root: &self.subjects.image,
                    disk,
                    disk_options: "",
                    io_thread: false,
                    exit_at_stage: false,
                };
                time_to_end(&mut qemu.command(self.subjects))?
            }
        };
        racer.samples.push(time);
        Ok(())
    }

    fn casita(&self) -> Result<(f64, Vec<Stage>)> {
        let path = self.subjects.work.join("stats.json");
        let mut command = peers::casita(self.subjects, &format!("{}M", self.memory))?;
        command.arg("--stats").arg(&path).arg("--").args(self.words);
        let (start, end, output) = run_quietly(&mut command)?;
        if !output.status.success() {
            bail!(
                "`{}` in a VM ended with {}: {}",
                self.words.join(" "),
                output.status,
                interrupt::last_line(&output.stderr)
            );
        }
        let account = Account::read(&path)?;
        Ok((ms(start, end), account.spans(start, end)))
    }
}

/// A container program's; None for QEMU.
pub fn container(rival: Rival) -> Option<Kind> {
    Some(match rival {
        Rival::Crun => Kind::Crun,
        Rival::Runc => Kind::Runc,
        Rival::Bwrap => Kind::Bwrap,
        Rival::Unshare => Kind::Unshare,
        Rival::Podman => Kind::Podman,
        Rival::Qemu => return None,
    })
}

/// As tables have it.
pub fn name_of(rival: Rival) -> &'static str {
    container(rival).map_or(QEMU, Kind::name)
}

fn notes(against: &[Rival]) -> Vec<String> {
    let mut notes = vec![
        "Each program is started, makes its VM or container from the same root file system, without a network, runs the \
         command in it, cleans up and exits. The clock runs from right before posix_spawn to the \
         return of wait4. Runs take turns, each round begins with another; the first of each is not \
         counted. Intervals: 95 % percentile bootstrap."
            .to_owned(),
        "Stages are casita's own, by the host's clock: those of the guest are writes to an I/O port, \
         and what its kernel does to its devices. Each is the median of its runs, so their sum \
         differs a little from the median of the whole."
            .to_owned(),
    ];
    if against.contains(&Rival::Qemu) {
        notes.push(peers::WHAT_RUNS.to_owned());
    }
    if crate::place::lab().is_some() {
        notes.push(
            "The lab leaves out what a VM exit costs on hardware, and its clock can jump while it \
             waits for its file server: the median is the figure."
                .to_owned(),
        );
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rivals_have_the_names_of_their_programs() {
        assert_eq!(name_of(Rival::Crun), "crun");
        assert_eq!(name_of(Rival::Podman), "podman");
        assert_eq!(name_of(Rival::Qemu), QEMU);
    }
}
