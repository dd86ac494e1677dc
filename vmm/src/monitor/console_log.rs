//! What the guest's kernel and agent write to the console while a command has streams of its own:
//! a bounded file, and the last of it in memory for when something goes wrong.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The largest file. When it is full it begins again with what is in memory.
const MAX_FILE: u64 = 1 << 20;
/// What is kept in memory.
const MAX_TAIL: usize = 16 << 10;
/// The lines that people are shown.
const SHOWN_LINES: usize = 20;
/// How Linux begins its last words.
const PANIC: &str = "Kernel panic - ";

/// The console's log; clones are the same log.
#[derive(Debug, Clone)]
pub struct ConsoleLog(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    file: Option<File>,
    written: u64,
    tail: VecDeque<u8>,
    /// Also shown as it comes.
    shown: bool,
}

impl ConsoleLog {
    /// A log in `file`, if there is one, emptied first. With `shown` it also goes to standard
    /// error at once.
    ///
    /// # Errors
    /// If the file can't be emptied.
    pub fn new(file: Option<File>, shown: bool) -> io::Result<Self> {
        if let Some(file) = &file {
            file.set_len(0)?;
        }
        Ok(Self(Arc::new(Mutex::new(Inner {
            file,
            written: 0,
            tail: VecDeque::new(),
            shown,
        }))))
    }

    /// The last lines, or those from the kernel's panic on, without what could drive a terminal.
    pub fn last_lines(&self) -> Vec<String> {
        let inner = self.lock();
        if inner.shown {
            return Vec::new();
        }
        let bytes: Vec<u8> = inner.tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let clean = |line: &str| line.replace('\t', " ").replace(char::is_control, "");
        let lines: Vec<String> = text
            .lines()
            .map(clean)
            .filter(|line| !line.trim().is_empty())
            .collect();
        // What a kernel that panics says first tells why; a register dump follows.
        let panic = lines.iter().rposition(|line| line.contains(PANIC));
        let first = panic.unwrap_or(lines.len().saturating_sub(SHOWN_LINES));
        let last = lines.len().min(first + SHOWN_LINES);
        lines[first..last].to_vec()
    }

    /// The same if the kernel panicked; else nothing.
    pub fn panic(&self) -> Vec<String> {
        let mut lines = self.last_lines();
        lines.drain(
            ..lines
                .iter()
                .position(|line| line.contains(PANIC))
                .unwrap_or(lines.len()),
        );
        lines
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let full = self.written + bytes.len() as u64 > MAX_FILE;
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        if full {
            file.set_len(0)?;
            file.rewind()?;
            let (first, second) = self.tail.as_slices();
            file.write_all(first)?;
            file.write_all(second)?;
            self.written = self.tail.len() as u64;
        }
        let fits = bytes.len().min(MAX_TAIL);
        file.write_all(&bytes[bytes.len() - fits..])?;
        self.written += fits as u64;
        Ok(())
    }
}

impl Write for ConsoleLog {
    /// Never fails: a full disk is no reason to stop the guest.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.lock();
        if inner.shown {
            let _ = io::stderr().write_all(bytes);
        }
        if let Err(error) = inner.append(bytes) {
            log::warn!("the console's log is given up: {error}");
            inner.file = None;
        }
        let fits = bytes.len().min(MAX_TAIL);
        let keep = MAX_TAIL - fits;
        let surplus = inner.tail.len().saturating_sub(keep);
        inner.tail.drain(..surplus);
        inner.tail.extend(&bytes[bytes.len() - fits..]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_file_stays_bounded_and_ends_with_what_was_written_last() {
        let mut file = tempfile::tempfile().unwrap();
        let mut log = ConsoleLog::new(Some(file.try_clone().unwrap()), false).unwrap();
        for number in 0..200_000 {
            writeln!(log, "line {number}").unwrap();
        }
        assert!(file.metadata().unwrap().len() <= MAX_FILE);
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("line 199998\nline 199999\n"));
        let lines = log.last_lines();
        assert_eq!(lines.len(), SHOWN_LINES);
        assert_eq!(lines[SHOWN_LINES - 1], "line 199999");
        assert!(log.panic().is_empty());
    }

    #[test]
    fn more_than_fits_at_once_leaves_the_end_of_it() {
        let mut file = tempfile::tempfile().unwrap();
        let mut log = ConsoleLog::new(Some(file.try_clone().unwrap()), false).unwrap();
        let mut much = vec![b'x'; 3 << 20];
        much.extend(b"\nlast\n");
        log.write_all(&much).unwrap();
        assert_eq!(log.last_lines().last().unwrap(), "last");
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert!(text.len() <= MAX_TAIL && text.ends_with("\nlast\n"));
    }

    #[test]
    fn a_panic_is_shown_from_its_reason_on() {
        let mut log = ConsoleLog::new(None, false).unwrap();
        log.write_all(b"[1] before\n[2] Kernel panic - not syncing: x\n")
            .unwrap();
        for number in 0..30 {
            writeln!(log, "[3] register {number}").unwrap();
        }
        let lines = log.last_lines();
        assert_eq!(lines.len(), SHOWN_LINES);
        assert_eq!(lines[0], "[2] Kernel panic - not syncing: x");
        assert_eq!(log.panic(), lines);
    }

    #[test]
    fn nothing_that_a_guest_writes_drives_the_terminal() {
        let mut log = ConsoleLog::new(None, false).unwrap();
        log.write_all(b"\x1b[2Ja\tb\r\n\x07\n\xff\n").unwrap();
        assert_eq!(log.last_lines(), ["[2Ja b", "\u{fffd}"]);
    }
}
