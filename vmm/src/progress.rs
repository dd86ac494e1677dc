//! A sign of life for work that takes longer than a second: one line that is redrawn on a
//! terminal, plain lines elsewhere, nothing with `--quiet`. No colours, so `NO_COLOR` holds anyway.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

static QUIET: AtomicBool = AtomicBool::new(false);
/// Work below this is not spoken of.
const PATIENCE: Duration = Duration::from_secs(1);
const REDRAW: Duration = Duration::from_millis(100);
const NEXT_LINE: Duration = Duration::from_secs(10);

/// Turns all progress off, for `--quiet`.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// How far some work is, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Done so far; 0 shows no figure.
    pub done: u64,
    /// All there is to do, where it is known.
    pub total: Option<u64>,
}

/// Shows that work is going on until it is dropped.
#[derive(Debug)]
pub struct Progress {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// `label` says what is going on: "packing DIR".
    pub fn start(label: impl Into<String>) -> Self {
        Self::with_bytes(label, Bytes::default)
    }

    /// The same with a figure that `bytes` gives whenever a line is drawn.
    pub fn with_bytes(
        label: impl Into<String>,
        bytes: impl Fn() -> Bytes + Send + 'static,
    ) -> Self {
        if QUIET.load(Ordering::Relaxed) {
            return Self {
                stop: None,
                thread: None,
            };
        }
        // It may hold a path, and a path anything; a terminal is to be drawn on by us alone.
        let label = label.into().replace(char::is_control, "?");
        let terminal = std::io::stderr().is_terminal()
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let (stop, stopped) = channel::<()>();
        // Without a thread the work is only silent.
        let thread = std::thread::Builder::new()
            .name("progress".into())
            .spawn(move || {
                draw(&mut std::io::stderr(), terminal, &label, &bytes, |pause| {
                    stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout)
                });
            })
            .ok();
        Self {
            stop: Some(stop),
            thread,
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Draws until `wait` says that the work has ended. Errors of the terminal are not the work's.
fn draw(
    out: &mut dyn Write,
    terminal: bool,
    label: &str,
    bytes: &dyn Fn() -> Bytes,
    wait: impl Fn(Duration) -> bool,
) {
    let begin = Instant::now();
    let mut pause = PATIENCE;
    let mut widest = 0;
    while wait(pause) {
        let bytes = bytes();
        let bar = terminal.then(|| bar(bytes)).flatten().unwrap_or_default();
        let line = line(label, &bar, bytes, begin.elapsed());
        if terminal {
            widest = widest.max(line.chars().count());
            let _ = write!(out, "\r{line:<widest$}");
        } else {
            let _ = writeln!(out, "{line}");
        }
        let _ = out.flush();
        pause = if terminal { REDRAW } else { NEXT_LINE };
    }
    if widest > 0 {
        let _ = write!(out, "\r{:widest$}\r", "");
        let _ = out.flush();
    }
}

/// How much of the whole is done, as a picture.
fn bar(bytes: Bytes) -> Option<String> {
    const WIDTH: usize = 24;
    let total = u128::from(bytes.total.filter(|total| *total > 0)?);
    let full = u128::from(bytes.done).min(total) * WIDTH as u128 / total;
    let full = "#".repeat(usize::try_from(full).unwrap_or(WIDTH));
    Some(format!(" [{full:.<WIDTH$}]"))
}

fn line(label: &str, bar: &str, bytes: Bytes, elapsed: Duration) -> String {
    const MIB: u64 = 1 << 20;
    let figure = match bytes {
        Bytes { done: 0, .. } => String::new(),
        Bytes { done, total: None } => format!(" {} MiB", done / MIB),
        Bytes {
            done,
            total: Some(total),
        } => format!(" {} of {} MiB", done / MIB, total.div_ceil(MIB)),
    };
    format!("casita: {label} ...{bar}{figure} {} s", elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn drawn(terminal: bool, lines: u32) -> String {
        let left = Cell::new(lines);
        let mut out = Vec::new();
        let wait = |_| {
            let more = left.get() > 0;
            left.set(left.get().saturating_sub(1));
            more
        };
        draw(&mut out, terminal, "packing d", &Bytes::default, wait);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn short_work_is_silent() {
        assert_eq!(drawn(true, 0), "");
        assert_eq!(drawn(false, 0), "");
    }

    #[test]
    fn a_terminal_gets_one_line_that_is_wiped() {
        let text = drawn(true, 2);
        assert!(!text.contains('\n'), "{text:?}");
        assert!(text.starts_with("\rcasita: packing d ... 0 s"), "{text:?}");
        assert!(text.ends_with(" \r"), "{text:?}");
    }

    #[test]
    fn a_log_gets_whole_lines() {
        assert_eq!(
            drawn(false, 2),
            "casita: packing d ... 0 s\ncasita: packing d ... 0 s\n"
        );
    }

    #[test]
    fn figures_are_in_mib() {
        let bytes = Bytes {
            done: 5 << 20,
            total: Some((9 << 20) + 1),
        };
        assert_eq!(
            line("x", "", bytes, Duration::from_secs(3)),
            "casita: x ... 5 of 10 MiB 3 s"
        );
    }

    #[test]
    fn a_terminal_gets_a_bar_where_the_whole_is_known() {
        let bar = |done, total| bar(Bytes { done, total });
        assert_eq!(bar(5, None), None);
        assert_eq!(bar(0, Some(0)), None);
        assert_eq!(
            bar(3, Some(4)).as_deref(),
            Some(" [##################......]")
        );
        assert_eq!(
            bar(9, Some(4)).as_deref(),
            Some(" [########################]")
        );
    }

    #[test]
    fn dropping_it_ends_the_thread() {
        drop(Progress::start("nothing"));
    }
}
