//! Which of our own streams a process gets, and whether it has a terminal.

use casita_agent::spec::WindowSize;
use std::io::{self, IsTerminal};

use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;
use thiserror::Error;

use crate::console::window_size;

/// What our standard input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stdin {
    /// A terminal that is ours to read.
    Terminal,
    /// A terminal that another job has.
    Background,
    /// A pipe, a file, a device.
    Stream,
}

/// What our standard streams are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Standard input.
    pub stdin: Stdin,
    /// Whether standard output is a terminal.
    pub terminal_out: bool,
}

impl Ends {
    /// Looks at this process's own.
    pub fn of_this_process() -> Self {
        let stdin = io::stdin();
        let kind = if !stdin.is_terminal() {
            Stdin::Stream
        } else if tcgetpgrp(&stdin).is_ok_and(|group| group != getpgrp()) {
            Stdin::Background
        } else {
            Stdin::Terminal
        };
        Self {
            stdin: kind,
            terminal_out: io::stdout().is_terminal(),
        }
    }
}

/// What a process gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attach {
    /// Whether it reads our standard input.
    pub stdin: bool,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// Why it can't have what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AttachError {
    /// There is no terminal.
    #[error("-t needs a terminal, and standard input is none: leave it out")]
    NoTerminal,
}

impl Attach {
    /// As the user says with `-i` and `-t`. A pipe or file is input whether they say so or not; a
    /// terminal only if they do, or if they sit at it and say nothing.
    ///
    /// # Errors
    /// `-t` without a terminal.
    pub fn new(interactive: bool, terminal: bool, ends: Ends) -> Result<Self, AttachError> {
        if terminal && ends.stdin == Stdin::Stream {
            return Err(AttachError::NoTerminal);
        }
        let sits_there = ends.stdin == Stdin::Terminal && ends.terminal_out;
        let as_both = sits_there && !interactive && !terminal;
        Ok(Self {
            stdin: interactive || as_both || ends.stdin == Stdin::Stream,
            terminal: terminal || as_both,
        })
    }

    /// The size of its terminal, if it has one.
    pub fn size(self) -> Option<WindowSize> {
        self.terminal
            .then(|| window_size().unwrap_or(WindowSize { rows: 24, cols: 80 }))
    }

    /// Whether our own terminal only carries bytes while the process has it.
    pub fn is_raw(self) -> bool {
        self.terminal && self.stdin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attach(flags: &str, stdin: Stdin, terminal_out: bool) -> (bool, bool) {
        let ends = Ends {
            stdin,
            terminal_out,
        };
        let attach = Attach::new(flags.contains('i'), flags.contains('t'), ends).unwrap();
        (attach.stdin, attach.terminal)
    }

    #[test]
    fn a_pipe_is_input_and_never_a_terminal() {
        for flags in ["", "i"] {
            for terminal_out in [false, true] {
                assert_eq!(attach(flags, Stdin::Stream, terminal_out), (true, false));
            }
        }
    }

    #[test]
    fn who_sits_at_a_terminal_and_says_nothing_gets_one() {
        assert_eq!(attach("", Stdin::Terminal, true), (true, true));
        // Not when the output goes elsewhere, nor in the background.
        assert_eq!(attach("", Stdin::Terminal, false), (false, false));
        assert_eq!(attach("", Stdin::Background, true), (false, false));
    }

    #[test]
    fn who_says_something_gets_that() {
        assert_eq!(attach("i", Stdin::Terminal, true), (true, false));
        assert_eq!(attach("t", Stdin::Terminal, true), (false, true));
        assert_eq!(attach("it", Stdin::Terminal, true), (true, true));
        assert_eq!(attach("it", Stdin::Terminal, false), (true, true));
    }

    #[test]
    fn a_terminal_is_refused_where_there_is_none() {
        let ends = Ends {
            stdin: Stdin::Stream,
            terminal_out: true,
        };
        assert_eq!(Attach::new(true, true, ends), Err(AttachError::NoTerminal));
    }
}
