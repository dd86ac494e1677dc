//! How many bytes a second pass through a command's standard output and input.

use std::io::{Read, Write};
use std::process::{ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::containers::{Containers, Kind};
use crate::interrupt::{self, Child};
use crate::parts::result::{Goal, PartResult};
use crate::peers::{self, CASITA};
use crate::process::{ms, now_ns};
use crate::subjects::Subjects;

const OUTPUT: &str = "standard output to a pipe";
const INPUT: &str = "standard input from a pipe";
/// The same command with nothing around it.
const ALONE: &str = "no container";
const READY: &[u8] = b"bench-ready\n";
const DONE: &[u8] = b"bench-done\n";
/// Bytes that pass, in each direction. All buffers on the way hold less than a hundredth of it.
const BYTES: usize = 64 << 20;
/// How much is read and written at a time, on both sides of each pipe.
const CHUNK: usize = 64 << 10;

type Measure = fn(&mut Command) -> Result<f64>;

/// Measures both directions for casita and the containers, in turns.
pub fn measure(subjects: &Subjects, result: &mut PartResult) -> Result<()> {
    result.note(format!(
        "{} MiB through a pipe, 64 KiB a read or write on both sides: `dd` inside, this benchmark \
         outside. The clock starts when the command inside says that it is there, so that a start \
         is in no figure, and ends with the last byte; for the input, with the line that the command \
         writes after it.",
        BYTES >> 20
    ));
    result.note(
        "Copying counts as the instructions that it takes, eight bytes each with most copies; how \
         much memory bandwidth hardware has is not in it.",
    );
    let containers = Containers::new(subjects)?;
    let count = (BYTES / CHUNK).to_string();
    let writes = format!(
        "echo bench-ready; exec /bin/busybox dd if=/dev/zero bs=64k count={count} 2>/dev/null"
    );
    let reads =
        "echo bench-ready; /bin/busybox dd of=/dev/null bs=64k 2>/dev/null; echo bench-done";
    let directions: [(&str, &str, Measure); 2] =
        [(OUTPUT, &writes, output_rate), (INPUT, reads, input_rate)];
    for run in 0..=subjects.runs {
        for (what, script, measure) in directions {
            let words = ["/bin/sh", "-c", script];
            let mut round = Vec::new();
            let mut casita = peers::casita(subjects, "256M")?;
            round.push((CASITA, measure(casita.arg("--").args(words))?));
            for kind in containers.oci() {
                let mut command = containers.run(kind, &format!("bench-{run}"), &words)?;
                round.push((kind.name(), measure(&mut command)?));
            }
            round.push((ALONE, measure(Command::new(words[0]).args(&words[1..]))?));
            for (who, rate) in round.into_iter().filter(|_| run > 0) {
                result.add(what, who, "MiB/s", rate);
            }
        }
        eprintln!("streams: round {run} of {}", subjects.runs);
    }
    for what in [OUTPUT, INPUT] {
        let goal = (what == OUTPUT).then_some(Goal::AtLeast(0.5));
        result.add_ratio(what, CASITA, Kind::Crun.name(), goal);
    }
    Ok(())
}

/// Starts `command` and waits for its first line.
fn start(command: &mut Command) -> Result<(Child, ChildStdout)> {
    let mut child = Child::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let mut output = child.stdout().context("its output is a pipe")?;
    expect(&mut output, READY).with_context(|| format!("{command:?}"))?;
    Ok((child, output))
}

/// Reads just as many bytes as `wanted` has, which they have to be.
fn expect(output: &mut ChildStdout, wanted: &[u8]) -> Result<()> {
    let mut got = vec![0; wanted.len()];
    output
        .read_exact(&mut got)
        .with_context(|| format!("{:?} was not written", String::from_utf8_lossy(wanted)))?;
    ensure!(
        got == wanted,
        "{:?} was written",
        String::from_utf8_lossy(&got)
    );
    Ok(())
}

fn end(mut child: Child) -> Result<()> {
    let status = child.wait()?;
    interrupt::check()?;
    ensure!(status.success(), "it ended with {status}");
    Ok(())
}

/// MiB a second since `start`.
#[allow(clippy::cast_precision_loss, reason = "small")]
fn rate_since(start: u64) -> f64 {
    (BYTES >> 20) as f64 / ms(start, now_ns()) * 1000.0
}

fn output_rate(command: &mut Command) -> Result<f64> {
    let (mut child, mut output) = start(command)?;
    drop(child.stdin());
    let start = now_ns();
    let mut buffer = vec![0; CHUNK];
    let mut left = BYTES;
    while left > 0 {
        let count = output.read(&mut buffer)?;
        ensure!(count > 0, "{left} bytes are missing");
        left = left.checked_sub(count).context("too many bytes came")?;
    }
    let rate = rate_since(start);
    end(child)?;
    Ok(rate)
}

fn input_rate(command: &mut Command) -> Result<f64> {
    let (mut child, mut output) = start(command)?;
    let mut input = child.stdin().context("its input is a pipe")?;
    let buffer = vec![0; CHUNK];
    let start = now_ns();
    for _ in 0..BYTES / CHUNK {
        input.write_all(&buffer)?;
    }
    drop(input);
    expect(&mut output, DONE)?;
    let rate = rate_since(start);
    end(child)?;
    Ok(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn an_output_that_is_too_short_is_no_figure() {
        let error = output_rate(&mut shell("echo bench-ready; echo few")).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
        let error = output_rate(&mut shell("echo something")).unwrap_err();
        assert!(format!("{error:#}").contains("bench-ready"), "{error:#}");
    }

    #[test]
    fn an_input_counts_when_all_of_it_was_read() {
        let script = "echo bench-ready; wc -c >/dev/null; echo bench-done";
        assert!(input_rate(&mut shell(script)).unwrap() > 0.0);
        let error = input_rate(&mut shell("echo bench-ready; exec head -c 1")).unwrap_err();
        assert!(
            format!("{error:#}").to_lowercase().contains("pipe"),
            "{error:#}"
        );
    }
}
