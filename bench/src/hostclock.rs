//! A load in a guest counts by the guest's clock; here that is held against the host's.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::interrupt;
use crate::process::{Running, ms, now_ns};

/// Tells the guest's clock, runs the words behind it with their output put aside, tells the clock
/// again, and then what they wrote.
const SCRIPT: &str = "clock() { read -r now rest </proc/uptime; echo \"bench-clock $now\"; }; \
    clock; \"$@\" >/tmp/bench.$$; status=$?; clock; \
    cat /tmp/bench.$$; rm /tmp/bench.$$; exit $status";
const MARK: &str = "bench-clock ";

/// What a load wrote, and how many seconds of the host's one of its own was.
pub struct Held {
    /// Its standard output.
    pub output: Vec<u8>,
    /// Rates that it tells are to be divided by this, and times multiplied.
    pub host_per_guest: f64,
}

/// Runs `words` by `command`, which is to run a command in a guest.
///
/// # Errors
/// If it fails, or the guest's clock stands still.
pub fn held(command: &mut Command, words: &[String]) -> Result<Held> {
    command.args(["/bin/sh", "-c", SCRIPT, "sh"]).args(words);
    let mut running = Running::start(command)?;
    let first = reading(&running.line_with(MARK)?)?;
    let begin = now_ns();
    let second = reading(&running.line_with(MARK)?)?;
    let end = now_ns();
    let (output, success) = running.rest()?;
    interrupt::check()?;
    let told = interrupt::last_line(output.as_bytes());
    ensure!(success, "{} failed in the guest: {told}", words.join(" "));
    Ok(Held {
        output: output.into_bytes(),
        host_per_guest: ratio(ms(begin, end), (second - first) * 1000.0)?,
    })
}

fn reading(text: &str) -> Result<f64> {
    text.trim()
        .parse()
        .with_context(|| format!("the guest's clock says {text:?}"))
}

fn ratio(host_ms: f64, guest_ms: f64) -> Result<f64> {
    ensure!(
        guest_ms > 0.0 && host_ms > 0.0,
        "the guest's clock went from {guest_ms} ms on in {host_ms} ms of the host's"
    );
    Ok(host_ms / guest_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_without_a_guest_has_the_hosts_clock() {
        // `env` runs a command as casita does, with nothing around it.
        let a_tick = "read -r a rest </proc/uptime; while read -r b rest </proc/uptime; \
                      [ $a = $b ]; do :; done; echo done";
        let words = ["sh", "-c", a_tick].map(str::to_owned);
        let held = held(&mut Command::new("env"), &words).unwrap();
        assert_eq!(held.output, b"done\n");
        assert!(held.host_per_guest > 0.0);
    }

    #[test]
    fn a_clock_that_stands_still_is_no_clock() {
        assert!(ratio(10.0, 0.0).is_err());
        assert!((ratio(10.0, 5.0).unwrap() - 2.0).abs() < 1e-9);
        assert!(reading("soon").is_err());
    }

    #[test]
    fn a_load_that_fails_is_told() {
        let words = ["sh", "-c", "echo broken; exit 3"].map(str::to_owned);
        let error = held(&mut Command::new("env"), &words).err().unwrap();
        assert!(error.to_string().contains("broken"), "{error}");
    }
}
