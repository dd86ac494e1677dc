//! Reading a log, and following it until its VM ends.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;

use super::lines::{Lines, Printer};
use super::{HEADER, Header, MAX_CHUNK, current, previous};
use crate::staging::is_at;

/// What is shown of a log.
#[derive(Debug, Clone, Copy, Default)]
pub struct Show {
    /// Only so many lines at the end.
    pub tail: Option<u64>,
    /// The time in front of each line.
    pub timestamps: bool,
}

/// Reads a VM's log.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
}

impl LogReader {
    pub(in crate::vms) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Writes what is there to `stdout` and `stderr`.
    ///
    /// # Errors
    /// If it can't be read, or its reader is gone.
    pub fn print(
        &self,
        show: Show,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> io::Result<()> {
        let mut printer = self.printer(show, stdout, stderr)?;
        let mut source = Source::oldest(&self.dir)?;
        source.drain(&mut printer)?;
        printer.flush()
    }

    /// As [`Self::print`], and what comes, until `end` becomes readable: then what is there still.
    ///
    /// # Errors
    /// If it can't be read or watched, or its reader is gone.
    pub fn follow(
        &self,
        show: Show,
        end: &OwnedFd,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> io::Result<()> {
        let mut printer = self.printer(show, stdout, stderr)?;
        let watch = Watch::new(&self.dir)?;
        let mut source = Source::oldest(&self.dir)?;
        loop {
            // Asked before the last look, so that nothing comes between.
            watch.watch_current(&self.dir)?;
            source.drain(&mut printer)?;
            printer.flush()?;
            if watch.wait(end)? {
                source.drain(&mut printer)?;
                return printer.flush();
            }
        }
    }

    fn printer<'a>(
        &self,
        show: Show,
        stdout: &'a mut dyn Write,
        stderr: &'a mut dyn Write,
    ) -> io::Result<Printer<'a>> {
        let from = match show.tail {
            Some(tail) => self.count_lines()?.saturating_sub(tail),
            None => 0,
        };
        Ok(Printer {
            lines: Lines::default(),
            from,
            timestamps: show.timestamps,
            stdout,
            stderr,
        })
    }

    fn count_lines(&self) -> io::Result<u64> {
        let mut lines = Lines::default();
        let mut source = Source::oldest(&self.dir)?;
        while let Some((header, chunk)) = source.next()? {
            lines.cut(header.stream, &chunk).for_each(drop);
        }
        Ok(lines.begun())
    }
}

/// Reads record after record, from file to file as they are rotated.
pub(super) struct Source {
    dir: PathBuf,
    file: Option<BufReader<File>>,
    at: u64,
}

impl Source {
    pub(super) fn oldest(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            file: open_oldest(dir)?.map(buffered),
            at: 0,
        })
    }

    fn drain(&mut self, printer: &mut Printer<'_>) -> io::Result<()> {
        while let Some((header, chunk)) = self.next()? {
            printer.print(header, &chunk)?;
        }
        Ok(())
    }

    /// The next record; `None` if there is none yet.
    pub(super) fn next(&mut self) -> io::Result<Option<(Header, Vec<u8>)>> {
        loop {
            if let Some(record) = self.next_here()? {
                return Ok(Some(record));
            }
            // Looked at first: a file that has been put aside gets nothing more.
            let Some(next) = self.newer()? else {
                return Ok(None);
            };
            if let Some(record) = self.next_here()? {
                return Ok(Some(record));
            }
            self.file = Some(buffered(next));
            self.at = 0;
        }
    }

    /// The file that comes after this one, if there is one.
    fn newer(&self) -> io::Result<Option<File>> {
        let Some(reader) = &self.file else {
            return open_oldest(&self.dir);
        };
        if is_at(reader.get_ref(), &current(&self.dir))? {
            return Ok(None);
        }
        if is_at(reader.get_ref(), &previous(&self.dir))? {
            return open(&current(&self.dir));
        }
        // So far behind that a whole file was thrown away meanwhile.
        open_oldest(&self.dir)
    }

    fn next_here(&mut self) -> io::Result<Option<(Header, Vec<u8>)>> {
        let Some(reader) = &mut self.file else {
            return Ok(None);
        };
        let mut bytes = [0; HEADER];
        let mut chunk = Vec::new();
        let header = match reader.read_exact(&mut bytes) {
            Ok(()) => Header::parse(bytes).ok_or_else(|| io::Error::other("the log is damaged"))?,
            Err(error) => return self.part(error),
        };
        debug_assert!(header.len <= MAX_CHUNK, "checked by the parser");
        chunk.resize(header.len, 0);
        if let Err(error) = reader.read_exact(&mut chunk) {
            return self.part(error);
        }
        self.at += (HEADER + header.len) as u64;
        Ok(Some((header, chunk)))
    }

    /// A record that is not all there is looked at again later, from its beginning.
    fn part(&mut self, error: io::Error) -> io::Result<Option<(Header, Vec<u8>)>> {
        if error.kind() != ErrorKind::UnexpectedEof {
            return Err(error);
        }
        if let Some(reader) = &mut self.file {
            reader.seek(SeekFrom::Start(self.at))?;
        }
        Ok(None)
    }
}

fn buffered(file: File) -> BufReader<File> {
    BufReader::with_capacity(HEADER + MAX_CHUNK, file)
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(none) if none.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn open_oldest(dir: &Path) -> io::Result<Option<File>> {
    // In this order: a file that is rotated in between is read, not missed.
    let now = open(&current(dir))?;
    let before = open(&previous(dir))?;
    Ok(before.or(now))
}

/// Tells when a log has grown, without looking again and again.
struct Watch(OwnedFd);

impl Watch {
    fn new(dir: &Path) -> io::Result<Self> {
        let inotify =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        // New files only: the disk is in this folder too, and is written to all the time.
        inotify::add_watch(&inotify, dir, inotify::WatchFlags::CREATE)?;
        Ok(Self(inotify))
    }

    fn watch_current(&self, dir: &Path) -> io::Result<()> {
        match inotify::add_watch(&self.0, current(dir), inotify::WatchFlags::MODIFY) {
            // Without one nothing was written yet, and the folder tells of the first.
            Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until there may be more; `true` if `end` says that there will not.
    fn wait(&self, end: &OwnedFd) -> io::Result<bool> {
        let mut fds = [
            PollFd::new(&self.0, PollFlags::IN),
            PollFd::new(end, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        if !fds[1].revents().is_empty() {
            return Ok(true);
        }
        let mut events = [0; 4096];
        loop {
            match rustix::io::read(&self.0, &mut events) {
                Ok(1..) | Err(rustix::io::Errno::INTR) => {}
                Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
