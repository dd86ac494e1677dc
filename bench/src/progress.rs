//! How far the measuring is: one line that is redrawn on a terminal, plain lines elsewhere, nothing
//! with `--quiet`. It is drawn between runs only, so that it takes no time from them.

use std::io::{IsTerminal, Write, stderr};

/// Steps that are done one after the other.
pub struct Progress {
    what: &'static str,
    total: usize,
    done: usize,
    terminal: bool,
    quiet: bool,
    width: usize,
    /// Tenths of the whole that a log has been told of.
    told: usize,
}

impl Progress {
    /// `total` steps of `what`.
    pub fn new(what: &'static str, total: usize) -> Self {
        Self {
            what,
            total: total.max(1),
            done: 0,
            terminal: stderr().is_terminal()
                && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
            quiet: log::max_level() == log::LevelFilter::Error,
            width: 0,
            told: 0,
        }
    }

    /// One more is done; `next` says whose turn it is.
    pub fn step(&mut self, next: &str) {
        self.done = (self.done + 1).min(self.total);
        self.draw(&mut stderr(), next);
    }

    fn draw(&mut self, out: &mut dyn Write, next: &str) {
        if self.quiet {
            return;
        }
        let line = line(self.what, self.done, self.total, next);
        if self.terminal {
            self.width = self.width.max(line.chars().count());
            let _ = write!(out, "\r{line:<width$}", width = self.width);
            let _ = out.flush();
            return;
        }
        // A log is told ten times, however many steps there are.
        let tenths = self.done * 10 / self.total;
        if tenths > self.told || self.told == 0 {
            self.told = tenths.max(1);
            let (what, done, total) = (self.what, self.done, self.total);
            let _ = writeln!(out, "casita: bench {what}: {done} of {total}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.width > 0 {
            let mut out = stderr();
            let _ = write!(out, "\r{:width$}\r", "", width = self.width);
            let _ = out.flush();
        }
    }
}

fn line(what: &str, done: usize, total: usize, next: &str) -> String {
    const WIDTH: usize = 24;
    let full = "#".repeat(done.min(total) * WIDTH / total);
    format!("casita: bench {what} [{full:.<WIDTH$}] {done} of {total} {next}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(terminal: bool, steps: usize) -> String {
        let mut progress = Progress {
            terminal,
            quiet: false,
            ..Progress::new("boot", steps)
        };
        let mut out = Vec::new();
        for _ in 0..steps {
            progress.done += 1;
            progress.draw(&mut out, "crun");
        }
        progress.width = 0;
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_terminal_gets_one_line_with_a_bar() {
        let text = drawn(true, 2);
        assert!(!text.contains('\n'), "{text:?}");
        assert!(
            text.contains("boot [############............] 1 of 2 crun"),
            "{text:?}"
        );
        assert!(text.contains("[########################] 2 of 2"));
    }

    #[test]
    fn a_log_gets_some_ten_lines_however_many_steps_there_are() {
        assert_eq!(
            drawn(false, 2),
            "casita: bench boot: 1 of 2\ncasita: bench boot: 2 of 2\n"
        );
        assert!((9..=11).contains(&drawn(false, 1000).lines().count()));
    }
}
