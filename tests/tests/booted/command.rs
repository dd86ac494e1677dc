//! What goes to a guest's command and comes from it: arguments, input, output, exit status.

use std::fmt::Write;
use std::fs;

use anyhow::{Result, ensure};
use casita_tests::machine;
use casita_tests::place::Place;
use casita_tests::suite::Suite;
use serde_json::Value;

use super::{sh, shell};

pub fn tests(suite: &mut Suite) {
    suite.test("arguments_arrive_as_they_are", arguments);
    suite.test("the_commands_exit_status_is_casitas", exit_status);
    suite.test(
        "a_command_that_a_signal_ends_is_128_and_its_number",
        signalled,
    );
    suite.test("input_arrives_whole_and_ends", input);
    suite.test("a_closed_input_is_empty", closed_input);
    suite.test("much_output_arrives_whole_and_in_order", output);
    suite.test("machine_files_say_what_options_say", machine_files);
    suite.test("stats_tell_the_stages_of_a_boot", stats);
    suite.test("without_a_command_a_shell_reads_the_input", default_shell);
}

fn arguments() -> Result<()> {
    let words = [
        "plain",
        "two words",
        "",
        " ",
        "'single'",
        "\"double\"",
        "new\nline",
        "tab\there",
        "back\\slash",
        "$HOME `id` $(id)",
        "*",
        "-n",
        "--help",
        "grüße, 世界 🏠",
        "#!;&|<>",
    ];
    let place = Place::new()?;
    let command = ["run", "--", "/usr/bin/printf", "[%s]\\n"];
    let finished = place
        .casita([&command[..], &words].concat())
        .finish()?
        .expect(0)?;
    let mut expected = String::new();
    for word in words {
        writeln!(expected, "[{word}]")?;
    }
    ensure!(
        finished.text() == expected,
        "{expected}\nwas expected\n{finished}"
    );
    ensure!(
        finished.stderr.is_empty(),
        "no complaint was expected\n{finished}"
    );
    Ok(())
}

fn exit_status() -> Result<()> {
    let place = Place::new()?;
    let options = ["--rm", "--name", "guest-1"];
    let finished = shell(&place, &options, "hostname; exit 3").finish()?;
    let finished = finished.expect(3)?;
    ensure!(
        finished.text() == "guest-1\n",
        "its name was expected alone\n{finished}"
    );
    let left = place.listing()?;
    ensure!(
        !left.iter().any(|name| name.starts_with("tmp")),
        "something was left behind: {left:?}"
    );
    let left = place.casita(["ps", "-aq"]).finish()?.expect(0)?;
    ensure!(left.stdout.is_empty(), "left behind: {left}");
    Ok(())
}

fn signalled() -> Result<()> {
    shell(&Place::new()?, &[], "kill -9 $$")
        .finish()?
        .expect(137)?;
    Ok(())
}

/// Lines, the last one not ended; each byte that a terminal would act upon is only a byte. The
/// first line's reader takes no more than that.
fn input() -> Result<()> {
    let mut text = String::from("first\n");
    for line in 0..400 {
        writeln!(
            text,
            "{line}: \u{3}\u{1c}\u{1a}\r\u{15}\u{7f}\u{11}\u{13} ordinary text"
        )?;
    }
    text.push_str("the last line has no end");
    let script = "read -r one; echo \"one: $one\"; cat; echo; echo end";
    let place = Place::new()?;
    let finished = shell(&place, &[], script)
        .finish_with(text.as_bytes())?
        .expect(0)?;
    let rest = text.strip_prefix("first\n").unwrap_or_default();
    let expected = format!("one: first\n{rest}\nend\n");
    ensure!(
        finished.text() == expected,
        "{expected}\nwas expected\n{finished}"
    );
    Ok(())
}

fn closed_input() -> Result<()> {
    let place = Place::new()?;
    let finished = shell(&place, &[], "cat; echo over")
        .under(&["sh", "-c", "exec \"$@\" <&-", "sh"])
        .finish()?
        .expect(0)?;
    ensure!(finished.text() == "over\n", "{finished}");
    Ok(())
}

/// A megabyte where a byte's exit costs a microsecond, a few screens in the lab. The test of a
/// payload's output has the megabyte everywhere.
fn output() -> Result<()> {
    let count: u32 = if machine::is_lab() { 2_000 } else { 160_000 };
    let finished = sh(&[], &format!("seq 1 {count}"))?;
    let mut lines = finished.stdout.split(|byte| *byte == b'\n');
    for number in 1..=count {
        let line = lines.next().unwrap_or_default();
        ensure!(
            line == number.to_string().as_bytes(),
            "line {number} is {:?}",
            String::from_utf8_lossy(line)
        );
    }
    ensure!(
        lines.next() == Some(b"") && lines.next().is_none(),
        "more follows"
    );
    Ok(())
}

fn machine_files() -> Result<()> {
    let place = Place::new()?;
    place.write(
        "m.toml",
        "cpus = 2\nmemory = '128M'\nname = 'from-toml'\ncommand = ['sh', '-c', 'nproc; hostname']\n",
    )?;
    let finished = place
        .casita(["run", "--config", "m.toml"])
        .finish()?
        .expect(0)?;
    ensure!(finished.text() == "2\nfrom-toml\n", "{finished}");
    place.write(
        "m.json",
        r#"{"cpus": 4, "memory": 134217728, "name": "from-json", "cmdline": "casita.test=a",
            "command": ["sh", "-c", "nproc; hostname; cat /proc/cmdline"]}"#,
    )?;
    // What the command line says goes over it.
    let arguments = ["run", "--config", "m.json", "--cpus", "1"];
    let finished = place.casita(arguments).finish()?.expect(0)?;
    let text = finished.text();
    ensure!(text.starts_with("1\nfrom-json\n"), "{finished}");
    ensure!(text.ends_with(" casita.test=a\n"), "{finished}");
    Ok(())
}

fn stats() -> Result<()> {
    let place = Place::new()?;
    shell(&place, &["--stats", "stats.json"], "true")
        .finish()?
        .expect(0)?;
    let stats: Value = serde_json::from_slice(&fs::read(place.path("stats.json"))?)?;
    let stages = stats["stages"].as_array().cloned().unwrap_or_default();
    let at = |name: &str| stages.iter().position(|stage| stage["name"] == name);
    let names = [
        "main",
        "first-kvm-run",
        "kernel-entered",
        "devices-probed",
        "driver-root",
        "init",
        "agent-ready",
        "command-started",
        "command-exited",
        "end",
    ];
    let places: Vec<_> = names.into_iter().map(at).collect();
    ensure!(
        places.iter().all(Option::is_some),
        "a stage of {names:?} is missing: {stats}"
    );
    ensure!(places.is_sorted(), "the stages are out of order: {stats}");
    let times: Vec<_> = stages
        .iter()
        .filter_map(|stage| stage["at_ns"].as_u64())
        .collect();
    ensure!(times.is_sorted(), "the times are out of order: {stats}");
    ensure!(
        stats["exits"]["port_out"]
            .as_u64()
            .is_some_and(|count| count > 0),
        "{stats}"
    );
    Ok(())
}

fn default_shell() -> Result<()> {
    let place = Place::new()?;
    let finished = place
        .casita(["run"])
        .finish_with(b"echo $((6 * 7))\nexit 6\n")?
        .expect(6)?;
    ensure!(finished.text() == "42\n", "{finished}");
    Ok(())
}
