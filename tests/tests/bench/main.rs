//! `casita bench` where no guest has to boot: what it refuses, and what it makes of saved results.

mod browser;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::run::Finished;
use casita_tests::suite::Suite;
use libtest_mimic::Arguments;
use serde_json::Value;

/// What was measured once, of both kinds that have pictures of their own.
const BOOT: &str = include_str!("boot.json");
const DENSITY: &str = include_str!("density.json");

fn main() -> ExitCode {
    let mut suite = Suite::new();
    suite.all_miss(machine::lacks_file(&machine::casita()));
    suite.test("a_missing_helper_is_named", missing_helper);
    let helper = machine::casita().with_file_name("casita-bench");
    suite
        .all_miss(machine::lacks_file(&machine::casita()).or_else(|| machine::lacks_file(&helper)));
    for (name, arguments, says) in REFUSALS {
        suite.test_if(None, name, move || {
            refused(
                &Place::new()?.casita(arguments.iter().copied()).finish()?,
                says,
            )
        });
    }
    suite.test("every_format_is_made_of_saved_results", formats);
    suite.test("samples_in_csv_are_those_in_json", samples);
    suite.test("tables_are_put_into_a_text_between_their_comments", into);
    suite.test_if(
        machine::lacks_kvm().or_else(|| {
            machine::runs_guests().then(|| "this machine's KVM runs guests".to_owned())
        }),
        "a_kvm_that_runs_no_guests_is_refused_by_the_doctors_sentence",
        unusable,
    );
    browser::tests(&mut suite);
    suite.run(&Arguments::from_args())
}

/// A name, a command line, and what is said about it.
type Refusal = (&'static str, &'static [&'static str], &'static str);

const REFUSALS: &[Refusal] = &[
    (
        "an_unknown_subject",
        &["bench", "boot", "--against", "crun,lxc"],
        "'lxc'",
    ),
    (
        "no_subject",
        &["bench", "boot", "--against", ""],
        "--against",
    ),
    ("runs_zero", &["bench", "boot", "--runs", "0"], "1 to 10000"),
    ("runs_negative", &["bench", "io", "--runs=-1"], "1 to 10000"),
    (
        "count_zero",
        &["bench", "density", "--count", "0"],
        "1 to 10000",
    ),
    (
        "count_words",
        &["bench", "density", "--count", "many"],
        "'many'",
    ),
    (
        "seconds_zero",
        &["bench", "net", "--seconds", "0"],
        "1 to 10000",
    ),
    (
        "an_unknown_format",
        &["bench", "boot", "--format", "pdf"],
        "'pdf'",
    ),
    (
        "an_output_that_can_not_be_written",
        &["bench", "boot", "--output", "/nowhere/out.json"],
        "/nowhere/out.json",
    ),
    (
        "results_that_are_missing",
        &["bench", "report", "none.json"],
        "none.json",
    ),
    (
        "results_that_are_none",
        &["bench", "report", "/proc/version"],
        "no JSON",
    ),
    ("results_without_a_file", &["bench", "report"], "<FILE>"),
];

fn refused(finished: &Finished, says: &str) -> Result<()> {
    let complaint = finished.complaint();
    ensure!(
        finished.status.code() == Some(125),
        "125 was expected\n{finished}"
    );
    ensure!(
        finished.stdout.is_empty(),
        "no output was expected\n{finished}"
    );
    ensure!(
        complaint.starts_with("casita: ") && complaint.lines().count() == 1,
        "one line was expected\n{finished}"
    );
    ensure!(
        complaint.contains(says),
        "{says:?} was expected\n{finished}"
    );
    Ok(())
}

fn missing_helper() -> Result<()> {
    let place = Place::new()?;
    let bench = place.casita(["bench", "boot"]);
    refused(
        &bench.env("CASITA_LIBEXEC", place.path("tmp")).finish()?,
        "casita-bench is missing",
    )
}

fn unusable() -> Result<()> {
    let finished = Place::new()?
        .casita(["bench", "boot", "--runs", "1"])
        .finish()?;
    refused(&finished, "tests/lab/run")?;
    refused(&finished, "can't run a Linux guest")
}

/// A place with both results, and the first words of a command line that reports on them.
fn saved() -> Result<Place> {
    let place = Place::new()?;
    place.write("boot.json", BOOT)?;
    place.write("density.json", DENSITY)?;
    Ok(place)
}

fn report(place: &Place, options: &[&str]) -> Result<Finished> {
    let words = ["bench", "report", "boot.json", "density.json"];
    place.casita([&words, options].concat()).finish()?.expect(0)
}

fn formats() -> Result<()> {
    let place = saved()?;
    let told = |format: &str, parts: &[&str]| report(&place, &["--format", format])?.says(parts);
    let lab = "compare, don't quote";
    told("text", &[lab, "casita, idle", "Stages of casita, ms"])?;
    told(
        "csv",
        &[
            "bench,name,what,unit,run,value\n",
            "density,\"casita, idle\",private,KiB,1,",
        ],
    )?;
    told(
        "markdown",
        &["<!-- casita bench boot -->", "| casita | ", lab],
    )?;
    told("svg", &["<svg ", "</svg>", "compare, don&apos;t quote"])?;
    told("html", &["<!doctype html>", "id=\"data\"", "</html>"])?;
    let json: Value = serde_json::from_slice(&told("json", &[])?.stdout)?;
    let saved: Vec<Value> = vec![serde_json::from_str(BOOT)?, serde_json::from_str(DENSITY)?];
    ensure!(
        json == Value::Array(saved),
        "the results are not as they were saved"
    );
    report(&place, &["--format", "png", "--output", "out.png"])?;
    let png = fs::read(place.path("out.png"))?;
    ensure!(png.starts_with(b"\x89PNG\r\n\x1a\n"), "out.png is no PNG");
    Ok(())
}

fn samples() -> Result<()> {
    let text = report(&saved()?, &["--format", "csv"])?.text();
    let boot: Value = serde_json::from_str(BOOT)?;
    for result in boot["results"].as_array().context("no results")? {
        let name = result["name"].as_str().context("no name")?;
        let start = format!("boot,{name},start to exit,ms,");
        let read: Vec<f64> = text
            .lines()
            .filter_map(|line| line.strip_prefix(&start)?.split_once(',')?.1.parse().ok())
            .collect();
        let samples = result["samples_ms"].as_array().context("no samples")?;
        let saved: Vec<f64> = samples.iter().filter_map(Value::as_f64).collect();
        ensure!(
            read == saved && !read.is_empty(),
            "{name}: {read:?} is not {saved:?}"
        );
    }
    Ok(())
}

fn into() -> Result<()> {
    let place = saved()?;
    let end = "<!-- end of casita bench -->";
    let text = format!("before\n<!-- casita bench boot -->\nold\n{end}\nafter\n");
    place.write("README.md", &text)?;
    let words = ["bench", "report", "boot.json", "--into", "README.md"];
    place.casita(words).finish()?.expect(0)?;
    let new = fs::read_to_string(place.path("README.md"))?;
    ensure!(
        new.starts_with("before\n<!-- casita bench boot -->\n") && new.ends_with("\nafter\n"),
        "{new}"
    );
    ensure!(
        new.contains("| casita | ") && !new.contains("\nold\n"),
        "{new}"
    );
    let words = ["bench", "report", "density.json", "--into", "README.md"];
    refused(&place.casita(words).finish()?, "README.md: there is no")?;
    ensure!(
        fs::read_to_string(place.path("README.md"))? == new,
        "it was changed"
    );
    Ok(())
}
