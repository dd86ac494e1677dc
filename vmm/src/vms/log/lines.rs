//! Chunks of two streams as lines: which ones are shown, and when each began.

use std::io::{self, Write};

use super::LogStream;
use crate::vms::log::Header;

/// Follows both streams' lines through their chunks. The lines of both are numbered in the order
/// in which they begin.
#[derive(Debug, Default)]
pub struct Lines {
    begun: u64,
    open: [Option<u64>; 2],
}

/// A part of a line.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The line's number.
    pub line: u64,
    /// Whether the line begins with it.
    pub first: bool,
    /// Its bytes, with the line's end if they reach it.
    pub bytes: &'a [u8],
}

impl Lines {
    /// How many lines have begun.
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Cuts a chunk of `stream` into pieces of lines.
    pub fn cut<'a>(
        &mut self,
        stream: LogStream,
        chunk: &'a [u8],
    ) -> impl Iterator<Item = Piece<'a>> {
        chunk
            .split_inclusive(|byte| *byte == b'\n')
            .map(move |bytes| {
                let open = &mut self.open[stream as usize - 1];
                let first = open.is_none();
                let line = *open.get_or_insert_with(|| {
                    self.begun += 1;
                    self.begun - 1
                });
                if bytes.ends_with(b"\n") {
                    *open = None;
                }
                Piece { line, first, bytes }
            })
    }
}

/// Writes lines from the number `from` on to the two outputs.
pub struct Printer<'a> {
    pub lines: Lines,
    pub from: u64,
    pub timestamps: bool,
    pub stdout: &'a mut dyn Write,
    pub stderr: &'a mut dyn Write,
}

impl Printer<'_> {
    pub fn print(&mut self, header: Header, chunk: &[u8]) -> io::Result<()> {
        let out = match header.stream {
            LogStream::Stdout => &mut self.stdout,
            LogStream::Stderr => &mut self.stderr,
        };
        for piece in self.lines.cut(header.stream, chunk) {
            if piece.line < self.from {
                continue;
            }
            if piece.first && self.timestamps {
                write!(out, "{} ", crate::time::rfc3339_ns(header.time_ns))?;
            }
            out.write_all(piece.bytes)?;
        }
        Ok(())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()?;
        self.stderr.flush()
    }
}
