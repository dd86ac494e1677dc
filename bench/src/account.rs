//! casita's own account of a run (`casita run --stats FILE`) as stages that follow each other.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process::ms;
use crate::record::{By, Stage};
use crate::statistics::median;

/// A point that was reached.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Reached {
    /// Its name in casita.
    pub name: String,
    /// `CLOCK_MONOTONIC` then, in nanoseconds.
    pub at_ns: u64,
}

/// What casita writes.
#[derive(Debug, Clone, Deserialize)]
pub struct Account {
    /// In the order in which they were reached.
    pub stages: Vec<Reached>,
    /// Exits to user space by kind.
    pub exits: BTreeMap<String, u64>,
}

impl Account {
    /// Reads what casita wrote.
    ///
    /// # Errors
    /// If it is not there, or is something else.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))
    }

    /// When a stage was reached.
    ///
    /// # Errors
    /// If it never was.
    pub fn at(&self, name: &str) -> Result<u64> {
        let stage = self.stages.iter().find(|stage| stage.name == name);
        stage
            .map(|stage| stage.at_ns)
            .with_context(|| format!("casita tells of no stage {name}"))
    }

    /// How long each stage took in a run that began at `start` and ended at `end`, in the words of
    /// people: they add up to the whole.
    pub fn spans(&self, start: u64, end: u64) -> Vec<Stage> {
        let mut before = start;
        let mut by = By::Monitor;
        let mut spans: Vec<Stage> = Vec::new();
        for stage in &self.stages {
            let (name, owner) = words(&stage.name, by);
            spans.push(Stage {
                name,
                ms: ms(before, stage.at_ns),
                by: owner,
            });
            by = match stage.name.as_str() {
                "first-kvm-run" => By::Kernel,
                "init" => By::Guest,
                "end" => By::End,
                _ => by,
            };
            before = before.max(stage.at_ns);
        }
        spans.push(Stage {
            name: "clean up, exit".to_owned(),
            ms: ms(before, end),
            by: By::End,
        });
        spans
    }
}

/// What is done up to a stage, and by whom. One that is not known here has whose turn it is.
fn words(name: &str, turn: By) -> (String, By) {
    let known = match name {
        "main" => "exec, program loaded",
        "config-read" => "config: options, image, record",
        "kvm-opened" => "KVM opened",
        "files-opened" => "files: kernel, image, disk",
        "vm-created" => "memory and VM",
        "devices-made" => "devices",
        "memory-loaded" => "kernel into memory",
        "vcpus-made" => "vCPUs",
        "confined" => "confinement",
        "first-kvm-run" => "threads, first KVM_RUN",
        "kernel-entered" => "kernel entry to first exit",
        "devices-probed" => "kernel to its first device",
        "init" => "kernel to init",
        "agent-ready" => "init: mounts, agent ready",
        "command-started" => "agent: command started",
        "command-exited" => "command",
        "end" => return ("guest ends, power off".to_owned(), By::End),
        other => {
            let name = if let Some(device) = other.strip_prefix("driver-") {
                format!("driver of {device}")
            } else if let Some(disk) = other.strip_prefix("first-read-") {
                format!("first read of {disk}")
            } else {
                other.replace('-', " ")
            };
            return (name, turn);
        }
    };
    (known.to_owned(), turn)
}

/// One list of stages for all runs: of each stage its median, in the order of the first run; stages
/// that not all runs have are where the first one that has them puts them.
pub fn medians(runs: &[Vec<Stage>]) -> Vec<Stage> {
    let mut all: Vec<Stage> = Vec::new();
    for run in runs {
        let mut place = 0;
        for stage in run {
            if let Some(at) = all.iter().position(|other| other.name == stage.name) {
                place = at + 1;
            } else {
                all.insert(place, stage.clone());
                place += 1;
            }
        }
    }
    for stage in &mut all {
        let times: Vec<f64> = runs
            .iter()
            .map(|run| {
                let same = run.iter().filter(|other| other.name == stage.name);
                same.map(|other| other.ms).sum()
            })
            .collect();
        stage.ms = median(&times);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(stages: &[(&str, u64)]) -> Account {
        Account {
            stages: stages
                .iter()
                .map(|(name, ms)| Reached {
                    name: (*name).to_owned(),
                    at_ns: ms * 1_000_000,
                })
                .collect(),
            exits: BTreeMap::new(),
        }
    }

    #[test]
    fn stages_add_up_to_the_whole_and_each_has_its_owner() {
        let account = account(&[
            ("main", 12),
            ("first-kvm-run", 15),
            ("driver-root", 40),
            ("init", 50),
            ("something-new", 60),
            ("end", 70),
        ]);
        let spans = account.spans(10_000_000, 75_000_000);
        let sum: f64 = spans.iter().map(|stage| stage.ms).sum();
        assert!((sum - 65.0).abs() < 1e-9);
        let told: Vec<_> = spans.iter().map(|s| (s.name.as_str(), s.by)).collect();
        assert_eq!(
            told,
            [
                ("exec, program loaded", By::Monitor),
                ("threads, first KVM_RUN", By::Monitor),
                ("driver of root", By::Kernel),
                ("kernel to init", By::Kernel),
                ("something new", By::Guest),
                ("guest ends, power off", By::End),
                ("clean up, exit", By::End),
            ]
        );
        assert!(account.at("init").is_ok() && account.at("other").is_err());
    }

    #[test]
    fn the_median_of_a_stage_counts_runs_without_it_as_nothing() {
        let stage = |name: &str, ms: f64| Stage {
            name: name.to_owned(),
            ms,
            by: By::Kernel,
        };
        let runs = [
            vec![stage("a", 1.0), stage("c", 5.0)],
            vec![stage("a", 3.0), stage("b", 9.0), stage("c", 7.0)],
            vec![stage("a", 2.0), stage("b", 1.0), stage("c", 6.0)],
        ];
        let all = medians(&runs);
        let told: Vec<_> = all.iter().map(|s| (s.name.as_str(), s.ms)).collect();
        assert_eq!(told, [("a", 2.0), ("b", 1.0), ("c", 6.0)]);
        assert!(medians(&[]).is_empty());
    }
}
