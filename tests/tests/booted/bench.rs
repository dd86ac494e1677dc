//! `casita bench` with guests: a short race, a runtime that is missing, and an end by Ctrl-C.

use std::fs;

use anyhow::{Context, Result, ensure};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::suite::Suite;
use rustix::process::Signal;
use serde_json::Value;

pub fn tests(suite: &mut Suite) {
    let helper = machine::lacks_file(&machine::casita().with_file_name("casita-bench"));
    let crun = helper
        .clone()
        .or_else(|| machine::lacks("crun", "crun"))
        .or_else(|| machine::lacks("fsck.erofs", "erofs-utils"));
    suite.test_if(crun.clone(), "bench_races_two_runs_beside_crun", race);
    suite.test_if(
        crun.clone(),
        "bench_names_who_is_not_installed_and_leaves_it_out",
        missing,
    );
    suite.test_if(
        crun,
        "bench_takes_all_of_a_crowd_away_at_ctrl_c",
        interrupted,
    );
}

/// What `casita bench` keeps while it measures: nothing may be left of it.
fn check_nothing_left(place: &Place) -> Result<()> {
    for folder in ["/dev/shm", "/lab-disk", &place.text("tmp")] {
        let Ok(entries) = fs::read_dir(folder) else {
            continue;
        };
        for entry in entries {
            let name = entry?.file_name();
            let ours = name.to_string_lossy().starts_with("casita-bench.");
            ensure!(!ours, "{} is left in {folder}", name.display());
        }
    }
    Ok(())
}

fn race() -> Result<()> {
    let place = Place::new()?;
    let words = [
        "bench",
        "boot",
        "--runs",
        "2",
        "--against",
        "crun,crun",
        "--format",
        "json",
    ];
    let finished = place.casita(words).finish()?.expect(0)?;
    let told: Value = serde_json::from_slice(&finished.stdout)?;
    ensure!(
        told["bench"] == "boot" && told["host"]["kvm"].is_string(),
        "{told}"
    );
    let results = told["results"].as_array().context("no results")?;
    let names: Vec<_> = results.iter().map(|result| &result["name"]).collect();
    ensure!(
        names == ["casita", "crun"],
        "{names:?}; left out: {}",
        told["missing"]
    );
    for result in results {
        let samples = result["samples_ms"].as_array().context("no samples")?;
        let positive = |sample: &Value| sample.as_f64().is_some_and(|ms| ms > 0.0);
        ensure!(
            samples.len() == 2 && samples.iter().all(positive),
            "{result}"
        );
    }
    let stages = results[0]["stages"].as_array().context("no stages")?;
    for by in ["monitor", "kernel", "guest", "end"] {
        let own: Vec<_> = stages.iter().filter(|stage| stage["by"] == by).collect();
        ensure!(!own.is_empty(), "{by} has no stage: {stages:?}");
    }
    // Of two runs the medians are the means, so the stages add up to the whole.
    let sum: f64 = stages.iter().filter_map(|stage| stage["ms"].as_f64()).sum();
    let whole = results[0]["p50_ms"].as_f64().context("no p50")?;
    ensure!(
        (sum - whole).abs() < whole / 1000.0,
        "{sum} ms of stages, {whole} in all"
    );
    check_nothing_left(&place)
}

fn missing() -> Result<()> {
    let place = Place::new()?;
    let words = [
        "bench",
        "boot",
        "--runs",
        "1",
        "--against",
        "podman,bwrap",
        "--format",
        "json",
    ];
    // Where the tools for file systems are, and no container's.
    let program = place.casita(words).env("PATH", "/usr/sbin:/sbin");
    let told: Value = serde_json::from_slice(&program.finish()?.expect(0)?.stdout)?;
    for (index, name) in ["podman", "bwrap"].into_iter().enumerate() {
        let missing = &told["missing"][index];
        ensure!(
            missing["name"] == name && missing["reason"] == "not installed",
            "{told}"
        );
    }
    ensure!(
        told["results"].as_array().is_some_and(|all| all.len() == 1),
        "{told}"
    );
    Ok(())
}

fn interrupted() -> Result<()> {
    let place = Place::new()?;
    let words = ["bench", "density", "--count", "50"];
    // Progress is told where errors are.
    let joined = ["sh", "-c", "exec \"$@\" 2>&1", "sh"];
    let running = place.casita(words).under(&joined).start()?;
    running.wait_for("bench density: 1 of")?;
    running.signal(Signal::INT)?;
    running.finish()?.expect(130)?.says(&["interrupted"])?;
    check_nothing_left(&place)?;
    let left = with_word("casita-bench.")?;
    ensure!(left.is_empty(), "{left:?} still run");
    Ok(())
}

/// Command lines of processes that have `part` in them.
fn with_word(part: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        // What is no process, or has ended, has none.
        let Ok(line) = fs::read(entry?.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(part) {
            found.push(line);
        }
    }
    Ok(found)
}
