//! What a judge says of one run.

use std::fmt;

use casita::sandbox::{End, Limit, SandboxResult};

/// A verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Accepted: the answer is right.
    Accepted,
    /// The answer is wrong.
    WrongAnswer,
    /// Too slow.
    TimeLimit,
    /// Too much memory.
    MemoryLimit,
    /// It ended badly, or met a limit that has no verdict of its own.
    RuntimeError,
    /// It wrote too much.
    OutputLimit,
    /// It was not compiled.
    CompileError,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accepted => "AC",
            Self::WrongAnswer => "WA",
            Self::TimeLimit => "TLE",
            Self::MemoryLimit => "MLE",
            Self::RuntimeError => "RE",
            Self::OutputLimit => "OLE",
            Self::CompileError => "CE",
        })
    }
}

/// The verdict on a run whose output should have been `expected`.
pub fn verdict(result: &SandboxResult, expected: &[u8]) -> Verdict {
    match &result.end {
        End::Exited { code: 0 } if is_right(&result.stdout.data.0, expected) => Verdict::Accepted,
        End::Exited { code: 0 } => Verdict::WrongAnswer,
        End::Limit { limit } => match limit {
            Limit::Time | Limit::CpuTime => Verdict::TimeLimit,
            Limit::Memory => Verdict::MemoryLimit,
            Limit::Output => Verdict::OutputLimit,
            Limit::Disk | Limit::Processes => Verdict::RuntimeError,
        },
        End::Exited { .. } | End::Signaled { .. } | End::NotStarted { .. } | End::Broken { .. } => {
            Verdict::RuntimeError
        }
    }
}

/// Whether two outputs are the same but for blanks at the ends of lines and lines at the end.
fn is_right(output: &[u8], expected: &[u8]) -> bool {
    let lines = |bytes: &[u8]| -> Vec<Vec<u8>> {
        let lines = bytes.split(|byte| *byte == b'\n');
        let mut lines: Vec<_> = lines.map(|line| line.trim_ascii_end().to_vec()).collect();
        while lines.last().is_some_and(Vec::is_empty) {
            lines.pop();
        }
        lines
    };
    lines(output) == lines(expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use casita::sandbox::{Bytes, Output, Usage, VERSION};

    fn result(end: End, stdout: &str) -> SandboxResult {
        SandboxResult {
            version: VERSION,
            end,
            stdout: Output {
                data: Bytes::from(stdout),
                truncated: false,
            },
            stderr: Output::default(),
            files: Vec::new(),
            not_taken: Vec::new(),
            usage: Usage::default(),
        }
    }

    #[test]
    fn each_end_has_a_verdict() {
        let exited = |code| End::Exited { code };
        let limit = |limit| End::Limit { limit };
        for (end, stdout, expected) in [
            (exited(0), "1 2\n3\n", Verdict::Accepted),
            (exited(0), "1 2  \n3", Verdict::Accepted),
            (exited(0), "1 2\n3\n\n", Verdict::Accepted),
            (exited(0), "1  2\n3\n", Verdict::WrongAnswer),
            (exited(0), "", Verdict::WrongAnswer),
            (exited(1), "1 2\n3\n", Verdict::RuntimeError),
            (
                End::Signaled { signal: 11 },
                "1 2\n3\n",
                Verdict::RuntimeError,
            ),
            (limit(Limit::Time), "", Verdict::TimeLimit),
            (limit(Limit::CpuTime), "", Verdict::TimeLimit),
            (limit(Limit::Memory), "", Verdict::MemoryLimit),
            (limit(Limit::Output), "", Verdict::OutputLimit),
            (limit(Limit::Processes), "", Verdict::RuntimeError),
        ] {
            let verdict = verdict(&result(end.clone(), stdout), b"1 2\n3\n");
            assert_eq!(verdict, expected, "{end:?} {stdout:?}");
        }
    }
}
