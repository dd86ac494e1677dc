//! From the transmit register to the host, in batches and without waiting on the event loop.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use vmm_sys_util::timerfd::TimerFd;

use super::input::is_pollable;
use crate::event_loop::{Control, Handler, Interest, Source};

/// A vCPU waits when so many bytes have not been taken from the queue.
const CAPACITY: usize = 64 * 1024;
/// Output is written at most once in this time. Nobody sees a delay this short.
const INTERVAL: Duration = Duration::from_millis(1);
/// What goes into one write to a descriptor that may block although it was ready: terminals and
/// pipes take so much when they say that they are ready.
const CAUTIOUS_WRITE: usize = 256;

const TIMER: u32 = 0;
const WRITABLE: u32 = 1;

/// Where the guest's output goes.
pub struct Output(Kind);

enum Kind {
    /// Written to as it is.
    Writer(Box<dyn Write + Send>),
    /// A terminal, pipe or socket, written to when it is ready.
    Polled { file: File, nonblocking: bool },
}

impl Output {
    /// A writer that does not block for long, as it is used on the event loop.
    pub fn writer(writer: impl Write + Send + 'static) -> Self {
        Self(Kind::Writer(Box::new(writer)))
    }

    /// A descriptor of any kind. It is duplicated. Its flags stay as they are, as other processes
    /// may share them.
    ///
    /// # Errors
    /// The descriptor is not open, or no more can be had.
    pub fn descriptor(fd: impl AsFd) -> io::Result<Self> {
        let fd = fd.as_fd();
        let copy = fd.try_clone_to_owned()?;
        if !is_pollable(fd) {
            return Ok(Self::writer(File::from(copy)));
        }
        Ok(Self(match reopen_nonblocking(&copy) {
            Some(own) => Kind::Polled {
                file: own.into(),
                nonblocking: true,
            },
            None => Kind::Polled {
                file: copy.into(),
                nonblocking: false,
            },
        }))
    }
}

/// Opens a terminal or pipe anew, for a non-blocking mode that nobody else sees.
fn reopen_nonblocking(fd: &OwnedFd) -> Option<OwnedFd> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(fd).ok()?.st_mode);
    if !matches!(kind, FileType::CharacterDevice | FileType::Fifo) {
        return None;
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

/// Bytes on their way from the vCPUs to the event loop.
pub(super) struct OutputQueue {
    waiting: Mutex<Waiting>,
    /// Signalled when bytes were taken.
    room: Condvar,
    timer_fd: RawFd,
}

struct Waiting {
    bytes: Vec<u8>,
    /// The handler comes by itself: the timer runs, or the output is not ready.
    expected: bool,
    flushed: Option<Instant>,
    timer: TimerFd,
    /// Nobody waits for room any more.
    released: bool,
    /// The output has failed; nothing is kept for it.
    broken: bool,
    lost: usize,
}

impl OutputQueue {
    pub(super) fn new() -> io::Result<Self> {
        let timer = TimerFd::new().map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        Ok(Self {
            timer_fd: timer.as_raw_fd(),
            waiting: Mutex::new(Waiting {
                bytes: Vec::new(),
                expected: false,
                flushed: None,
                timer,
                released: false,
                broken: false,
                lost: 0,
            }),
            room: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that wait, for tests.
    #[cfg(test)]
    pub(super) fn waiting_bytes(&self) -> usize {
        self.lock().bytes.len()
    }

    /// Waits until a byte has room, or until it would be dropped anyway. Several vCPUs may leave
    /// at once, so the bound is exceeded by some bytes at most.
    pub(super) fn wait_for_room(&self) {
        let full = |waiting: &mut Waiting| {
            waiting.bytes.len() >= CAPACITY && !waiting.released && !waiting.broken
        };
        drop(self.room.wait_while(self.lock(), full));
    }

    /// Bytes that were dropped, because the output failed or was given up.
    pub(super) fn lost(&self) -> usize {
        self.lock().lost
    }

    pub(super) fn release(&self) {
        self.lock().released = true;
        self.room.notify_all();
    }

    fn push(&self, bytes: &[u8]) {
        let mut waiting = self.lock();
        if waiting.broken || (waiting.released && waiting.bytes.len() >= CAPACITY) {
            waiting.lost += bytes.len();
            return;
        }
        waiting.bytes.extend_from_slice(bytes);
        if !waiting.expected {
            waiting.expected = true;
            let since = waiting.flushed.map_or(INTERVAL, |at| at.elapsed());
            // A timer that is set to zero is off.
            let delay = INTERVAL.saturating_sub(since).max(Duration::from_nanos(1));
            if let Err(error) = waiting.timer.reset(delay, None) {
                waiting.expected = false;
                log::error!("the serial port's timer cannot be set: {error}");
            }
        }
    }

    /// Moves what waits to `into`, which is empty. If nothing does, the next byte sets the timer.
    fn take(&self, into: &mut Vec<u8>) {
        let mut waiting = self.lock();
        if waiting.bytes.is_empty() {
            waiting.expected = false;
            waiting.flushed = Some(Instant::now());
        } else {
            std::mem::swap(&mut waiting.bytes, into);
            drop(waiting);
            self.room.notify_all();
        }
    }

    fn fail(&self, unwritten: usize) {
        let mut waiting = self.lock();
        waiting.broken = true;
        waiting.lost += unwritten + waiting.bytes.len();
        waiting.bytes = Vec::new();
        drop(waiting);
        self.room.notify_all();
    }

    fn acknowledge_timer(&self) {
        // Reads what made the handler ready; only a timer that ran out is read.
        let _ = self.lock().timer.wait();
    }
}

/// The transmit side as vm-superio sees it.
pub(super) struct QueueWriter(pub(super) Arc<OutputQueue>);

impl Write for QueueWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The output and what it has not taken yet.
pub(super) struct Sink {
    kind: Kind,
    bytes: Vec<u8>,
    written: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Flushed {
    /// Nothing is left.
    All,
    /// The output takes no more for now.
    Blocked,
}

impl From<Output> for Sink {
    fn from(output: Output) -> Self {
        Self {
            kind: output.0,
            bytes: Vec::new(),
            written: 0,
        }
    }
}

impl Sink {
    /// The descriptor to wait for when the output is blocked.
    fn poll_fd(&self) -> Option<RawFd> {
        match &self.kind {
            Kind::Writer(_) => None,
            Kind::Polled { file, .. } => Some(file.as_raw_fd()),
        }
    }

    fn write(&mut self) -> io::Result<usize> {
        let bytes = self.bytes.get(self.written..).unwrap_or_default();
        match &mut self.kind {
            Kind::Writer(writer) => writer.write(bytes),
            Kind::Polled {
                file,
                nonblocking: true,
            } => file.write(bytes),
            Kind::Polled { file, .. } => {
                if !wait_writable(file, Duration::ZERO)? {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                file.write(bytes.get(..CAUTIOUS_WRITE).unwrap_or(bytes))
            }
        }
    }

    /// Writes all that is in the queue, or as much as the output takes.
    fn flush(&mut self, queue: &OutputQueue) -> Flushed {
        loop {
            if self.written >= self.bytes.len() {
                self.written = 0;
                self.bytes.clear();
                queue.take(&mut self.bytes);
                if self.bytes.is_empty() {
                    if let Kind::Writer(writer) = &mut self.kind {
                        let _ = writer.flush();
                    }
                    return Flushed::All;
                }
            }
            let error = match self.write() {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(count) => {
                    self.written += count;
                    continue;
                }
                Err(error) => error,
            };
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock if self.poll_fd().is_some() => return Flushed::Blocked,
                _ => {
                    log::warn!("the guest's console output is dropped from here on: {error}");
                    queue.fail(self.bytes.len() - self.written);
                    self.bytes = Vec::new();
                    self.written = 0;
                    return Flushed::All;
                }
            }
        }
    }

    fn unwritten(&self) -> usize {
        self.bytes.len() - self.written
    }
}

/// Writes the queue's bytes to the sink when the timer says so.
pub(super) struct OutputHandler {
    queue: Arc<OutputQueue>,
    sink: Arc<Mutex<Sink>>,
    /// The loop watches the output.
    watching: bool,
}

impl OutputHandler {
    pub(super) fn new(queue: Arc<OutputQueue>, sink: Arc<Mutex<Sink>>) -> Self {
        Self {
            queue,
            sink,
            watching: false,
        }
    }
}

fn lock_sink(sink: &Mutex<Sink>) -> MutexGuard<'_, Sink> {
    sink.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handler for OutputHandler {
    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.queue.timer_fd,
            token: TIMER,
            interest: Interest::READ,
        }]
    }

    fn ready(&mut self, token: u32, control: &mut Control<'_>) {
        if token == TIMER {
            self.queue.acknowledge_timer();
        }
        let mut sink = lock_sink(&self.sink);
        let blocked = sink.flush(&self.queue) == Flushed::Blocked;
        let Some(fd) = sink.poll_fd() else { return };
        if blocked == self.watching {
            return;
        }
        let source = Source {
            fd,
            token: WRITABLE,
            interest: Interest::WRITE,
        };
        let changed = if blocked {
            control.enable(source)
        } else {
            control.disable(source)
        };
        match changed {
            Ok(()) => self.watching = blocked,
            Err(error) => {
                log::error!("the guest's console output is dropped from here on: {error}");
                self.queue.fail(sink.unwritten());
            }
        }
    }
}

/// See [`super::Serial::drain`].
pub(super) fn drain(queue: &OutputQueue, sink: &Mutex<Sink>, timeout: Duration) -> usize {
    let deadline = Instant::now() + timeout;
    let mut sink = lock_sink(sink);
    while sink.flush(queue) == Flushed::Blocked {
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = match &sink.kind {
            Kind::Polled { file, .. } if !left.is_zero() => wait_writable(file, left),
            _ => Ok(false),
        };
        if !ready.unwrap_or(false) {
            break;
        }
    }
    let waiting = queue.lock();
    waiting.bytes.len() + sink.unwritten()
}

/// Waits until `file` takes bytes, or has failed, which a write then tells.
fn wait_writable(file: &File, timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut fds = [PollFd::new(file, PollFlags::OUT)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(count) => Ok(count > 0),
        // The caller looks at its clock and comes back.
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}
