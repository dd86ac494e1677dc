//! `casita bench io`: fio in a VM's own disk, in a container, and without either, on one disk of the
//! host's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use casita::cli::bench::LoadArgs;
use serde::Deserialize;

use crate::boot::{container, name_of};
use crate::containers::{Containers, Extras, Kind, Standing};
use crate::fingerprint::Fingerprint;
use crate::hostclock;
use crate::interrupt::{self, output_of};
use crate::peers::{self, CASITA};
use crate::progress::Progress;
use crate::record::{Load, Missing, Record, Results, Settings};
use crate::statistics::median;
use crate::subjects::{self, Subjects};
use crate::toolimage;

/// What fio does, and its name.
struct Job {
    name: &'static str,
    /// fio's pattern.
    pattern: &'static str,
    block: u64,
    depth: u32,
}

const JOBS: [Job; 6] = [
    Job {
        name: "4 KiB random read, 1 at once",
        pattern: "randread",
        block: 4096,
        depth: 1,
    },
    Job {
        name: "4 KiB random read, 32 at once",
        pattern: "randread",
        block: 4096,
        depth: 32,
    },
    Job {
        name: "4 KiB random write, 1 at once",
        pattern: "randwrite",
        block: 4096,
        depth: 1,
    },
    Job {
        name: "4 KiB random write, 32 at once",
        pattern: "randwrite",
        block: 4096,
        depth: 32,
    },
    Job {
        name: "1 MiB sequential read, 4 at once",
        pattern: "read",
        block: 1 << 20,
        depth: 4,
    },
    Job {
        name: "1 MiB sequential write, 4 at once",
        pattern: "write",
        block: 1 << 20,
        depth: 4,
    },
];

/// The file that is read and written, where each has its disk.
const FILE: &str = "/data/bench.fio";
const SIZE: &str = "256M";

/// Measures casita, containers and the host itself.
///
/// # Errors
/// If casita itself can't be measured.
pub fn measure(args: &LoadArgs, casita: &Path) -> Result<Record> {
    let below = folder(args);
    let work = subjects::work_folder(&below)?;
    let image = work.path().join("image.erofs");
    toolimage::make(&image, &["fio"], work.path())?;
    let subjects = Subjects::with_image(&image, args.kernel.as_deref(), casita, &below)?;
    let host = Fingerprint::take(&subjects)?;
    let data = subjects.work.join("data");
    std::fs::create_dir_all(&data)?;
    let containers = Containers::new(&subjects)?;
    let mut who = vec![(CASITA, Who::Casita)];
    let mut missing = Vec::new();
    for rival in &args.against {
        match container(*rival).filter(|kind| containers.can_run(*kind)) {
            Some(kind) => who.push((kind.name(), Who::Container(kind))),
            None => missing.push(Missing {
                name: name_of(*rival).to_owned(),
                reason: match container(*rival) {
                    Some(_) => "not installed".to_owned(),
                    None => "no container; `make bench fio` measures its disk".to_owned(),
                },
            }),
        }
    }
    who.push(("host", Who::Host));
    let bench = Bench {
        subjects: &subjects,
        containers: &containers,
        data,
        seconds: args.seconds,
    };
    let results = bench.run(args.runs, who, &mut missing)?;
    Ok(Record {
        host,
        settings: Settings {
            image: "busybox and fio".to_owned(),
            command: "fio".to_owned(),
            memory_mib: 256,
            runs: args.runs,
        },
        notes: vec![
            format!(
                "fio with libaio on a file of {SIZE}, direct=1, {} s each, on the file system of {}. In \
                 the VM the file is on the guest's own ext4, on virtio-block, on a sparse file there; \
                 in the container it is on that file system itself, as it is for 'host', which has \
                 nothing around it. Runs take turns. What fio counts in the guest is held against the \
                 host's clock.",
                args.seconds,
                below.display()
            ),
            "What the VM's disk writes is in the host's page cache until the guest flushes, which is \
             what its disk promises; the container's direct=1 goes past that cache."
                .to_owned(),
        ],
        missing,
        results: Results::Io(results),
    })
}

/// Where the disk is that is measured: in the lab its own, if it has one.
fn folder(args: &LoadArgs) -> PathBuf {
    let disk = Path::new("/lab-disk");
    match &args.folder {
        Some(folder) => folder.clone(),
        None if crate::place::lab().is_some() && disk.is_dir() => disk.to_owned(),
        None => std::env::temp_dir(),
    }
}

enum Who {
    Casita,
    Container(Kind),
    Host,
}

/// What one run of fio came to.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ran {
    operations_per_second: f64,
    bytes_per_second: f64,
    half_us: f64,
    most_us: f64,
}

impl Ran {
    /// The same if a second of whoever counted was `host_seconds` of the host's.
    fn by_the_hosts_clock(self, host_seconds: f64) -> Self {
        Self {
            operations_per_second: self.operations_per_second / host_seconds,
            bytes_per_second: self.bytes_per_second / host_seconds,
            half_us: self.half_us * host_seconds,
            most_us: self.most_us * host_seconds,
        }
    }
}

struct Bench<'a> {
    subjects: &'a Subjects,
    containers: &'a Containers,
    data: PathBuf,
    seconds: usize,
}

impl Bench<'_> {
    fn run(
        &self,
        runs: usize,
        mut who: Vec<(&'static str, Who)>,
        missing: &mut Vec<Missing>,
    ) -> Result<Vec<Load>> {
        let mut progress = Progress::new("io", JOBS.len() * runs * who.len());
        let mut results = Vec::new();
        for job in &JOBS {
            let mut ran: Vec<Vec<Ran>> = who.iter().map(|_| Vec::new()).collect();
            for _ in 0..runs {
                let mut failed = Vec::new();
                for (index, (name, one)) in who.iter().enumerate() {
                    match self.once(one, job) {
                        Ok(one) => ran[index].push(one),
                        Err(error) => {
                            interrupt::check()?;
                            if *name == CASITA {
                                return Err(error.context(format!("{} in a VM", job.name)));
                            }
                            let reason = format!("does not work here: {error:#}");
                            let name = (*name).to_owned();
                            missing.push(Missing { name, reason });
                            failed.push(index);
                        }
                    }
                    progress.step(name);
                }
                for index in failed.into_iter().rev() {
                    who.remove(index);
                    ran.remove(index);
                }
            }
            results.extend(
                who.iter()
                    .zip(&ran)
                    .map(|((name, _), ran)| load(name, job, ran)),
            );
        }
        Ok(results)
    }

    fn once(&self, who: &Who, job: &Job) -> Result<Ran> {
        let host_file = self.data.join("bench.fio");
        let output = match who {
            Who::Casita => {
                // Under the guest's root, which is a disk of its own.
                let words = self.words("/bench.fio", job);
                let mut command = peers::casita(self.subjects, "256M")?;
                let disk = self.subjects.work.join("vm.disk");
                command
                    .arg("--disk")
                    .arg(format!("{},size=1G", disk.display()));
                let held = hostclock::held(command.arg("--"), &words)?;
                return Ok(parse(&held.output)?.by_the_hosts_clock(held.host_per_guest));
            }
            Who::Container(kind) => {
                let name = format!("casita-bench-{}-io", std::process::id());
                let extras = Extras {
                    folder: Some((self.data.clone(), "/data")),
                    network: None,
                };
                let words = self.words(FILE, job);
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let mut command = self.containers.run_with(*kind, &name, &words, &extras)?;
                let standing = Standing::new(*kind, &name);
                let output = output_of(&mut command)?;
                standing.forget();
                output
            }
            Who::Host => {
                let words = self.words(&host_file.display().to_string(), job);
                output_of(Command::new(&words[0]).args(&words[1..]))?
            }
        };
        parse(&output)
    }

    /// fio's command line. The file is laid out first, which is not measured.
    fn words(&self, file: &str, job: &Job) -> Vec<String> {
        [
            "fio".to_owned(),
            "--name=bench".to_owned(),
            format!("--filename={file}"),
            format!("--size={SIZE}"),
            "--direct=1".to_owned(),
            "--ioengine=libaio".to_owned(),
            "--thread".to_owned(),
            "--randrepeat=1".to_owned(),
            format!("--rw={}", job.pattern),
            format!("--bs={}", job.block),
            format!("--iodepth={}", job.depth),
            "--time_based".to_owned(),
            format!("--runtime={}", self.seconds),
            "--output-format=json".to_owned(),
        ]
        .to_vec()
    }
}

/// Small blocks are counted, large ones measured.
fn load(name: &str, job: &Job, ran: &[Ran]) -> Load {
    let figures = |get: fn(&Ran) -> f64| ran.iter().map(get).collect::<Vec<f64>>();
    let mut load = if job.block < 1 << 20 {
        let rates = figures(|ran| ran.operations_per_second);
        Load::new(name, job.name, "IOPS", rates)
    } else {
        let rates = figures(|ran| ran.bytes_per_second / f64::from(1 << 20));
        Load::new(name, job.name, "MiB/s", rates)
    };
    load.latency_p50_us = Some(median(&figures(|ran| ran.half_us)));
    load.latency_p99_us = Some(median(&figures(|ran| ran.most_us)));
    load
}

#[derive(Deserialize)]
struct Fio {
    jobs: Vec<FioJob>,
}

#[derive(Deserialize)]
struct FioJob {
    error: i64,
    read: FioSide,
    write: FioSide,
}

#[derive(Deserialize)]
struct FioSide {
    iops: f64,
    bw_bytes: f64,
    total_ios: u64,
    clat_ns: FioLatency,
}

#[derive(Deserialize)]
struct FioLatency {
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, f64>,
}

/// Reads fio's JSON (its manual, "JSON output"); what it says before that is left out.
fn parse(output: &[u8]) -> Result<Ran> {
    let text = String::from_utf8_lossy(output);
    let json = text.find('{').map_or("", |at| &text[at..]);
    let fio: Fio = serde_json::from_str(json)
        .with_context(|| format!("fio said: {}", interrupt::last_line(output)))?;
    let job = fio.jobs.first().context("fio ran no job")?;
    ensure!(job.error == 0, "fio failed with error {}", job.error);
    let side = if job.read.total_ios > 0 {
        &job.read
    } else {
        &job.write
    };
    ensure!(side.total_ios > 0, "fio did nothing");
    let percentile = |name: &str| side.clat_ns.percentile.get(name).copied();
    Ok(Ran {
        operations_per_second: side.iops,
        bytes_per_second: side.bw_bytes,
        half_us: percentile("50.000000").unwrap_or(f64::NAN) / 1000.0,
        most_us: percentile("99.000000").unwrap_or(f64::NAN) / 1000.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(error: i64, reads: u64, writes: u64) -> String {
        let side = |ios: u64| {
            format!(
                "{{\"iops\": {ios}.5, \"bw_bytes\": 4096, \"total_ios\": {ios}, \"clat_ns\": \
                 {{\"percentile\": {{\"50.000000\": 2000, \"99.000000\": 9000}}}}}}"
            )
        };
        format!(
            "fio: a warning\n{{\"jobs\": [{{\"error\": {error}, \"read\": {}, \"write\": {}}}]}}",
            side(reads),
            side(writes)
        )
    }

    #[test]
    fn the_side_that_was_used_counts() {
        let ran = parse(said(0, 0, 7).as_bytes()).unwrap();
        assert!((ran.operations_per_second - 7.5).abs() < 1e-9);
        assert!((ran.half_us - 2.0).abs() < 1e-9 && (ran.most_us - 9.0).abs() < 1e-9);
        assert!(parse(said(5, 7, 0).as_bytes()).is_err());
        assert!(parse(said(0, 0, 0).as_bytes()).is_err());
        assert!(parse(b"fio: no such engine").is_err());
    }

    #[test]
    fn a_guest_whose_clock_is_slow_is_not_faster_for_it() {
        let ran = parse(said(0, 8, 0).as_bytes())
            .unwrap()
            .by_the_hosts_clock(2.0);
        assert!((ran.operations_per_second - 4.25).abs() < 1e-9);
        assert!((ran.half_us - 4.0).abs() < 1e-9);
    }

    #[test]
    fn small_blocks_are_counted_and_large_ones_measured() {
        let ran = parse(said(0, 3, 0).as_bytes()).unwrap();
        assert_eq!(load("a", &JOBS[0], &[ran]).unit, "IOPS");
        assert_eq!(load("a", &JOBS[5], &[ran]).unit, "MiB/s");
    }
}
