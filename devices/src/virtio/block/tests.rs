//! From the kick to the interrupt, through the transport, with real files and with a back end
//! that does as a test says.

mod faults;
mod requests;
mod settings;

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backend::{Done, Io, Operation, Started};
use super::layout::{Header, Status, WireRange};
use super::*;
use crate::testing::{CountingInterrupt, FakeDriver};
use crate::virtio::transport::mmio::MmioTransport;

const EVENT_IDX: u64 = 1 << 29;
const ALL: u64 = u64::MAX;

/// A device behind its transport, its driver, and the loop that serves it.
struct Rig {
    driver: FakeDriver,
    transport: Arc<MmioTransport>,
    panics: Receiver<String>,
    // After the transport, whose device has handlers on it.
    _events: EventLoop,
}

impl Rig {
    fn new(block: Block) -> Self {
        let (sender, panics) = channel();
        let events = EventLoop::spawn("test", move |message| {
            let _ = sender.send(message);
        })
        .unwrap();
        let memory = FakeDriver::memory();
        let interrupt = Arc::new(CountingInterrupt::default());
        let transport = MmioTransport::new(
            Box::new(block),
            Arc::clone(&memory),
            Arc::clone(&interrupt) as Arc<dyn crate::interrupt::Interrupt>,
            events.handle(),
        )
        .unwrap();
        let transport = Arc::new(transport);
        let device = Arc::clone(&transport) as Arc<dyn crate::bus::BusDevice>;
        Self {
            driver: FakeDriver::new(device, memory, interrupt),
            transport,
            panics,
            _events: events,
        }
    }

    /// A started device over a file.
    fn started(file: &File, config: &BlockConfig) -> Self {
        let mut rig = Self::new(block(file, config));
        rig.driver.start(ALL);
        rig
    }

    /// Sends one request, kicks, and returns status and data.
    fn ask(&mut self, readable: &[&[u8]], writable: &[u32]) -> (u8, Vec<u8>) {
        self.driver.send(0, readable, writable);
        self.driver.kick(0);
        self.answer()
    }

    fn answer(&mut self) -> (u8, Vec<u8>) {
        let used = self.driver.wait_used(0, 1).remove(0);
        let mut data = used.data;
        assert_eq!(used.len as usize, data.len());
        (data.pop().unwrap(), data)
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let header = Header {
        kind: kind.into(),
        reserved: 0.into(),
        sector: sector.into(),
    };
    header.as_bytes().to_vec()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let range = WireRange {
        sector: sector.into(),
        sectors: sectors.into(),
        flags: flags.into(),
    };
    range.as_bytes().to_vec()
}

/// `len` bytes in which each sector differs from the others.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512 * 7 + at % 251) as u8).collect()
}

fn file_with(content: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, content, 0).unwrap();
    file
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).unwrap();
    bytes
}

/// A descriptor of the same file that can only read.
fn reopen_read_only(file: &File) -> File {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}

fn block(file: &File, config: &BlockConfig) -> Block {
    let file = if config.read_only {
        reopen_read_only(file)
    } else {
        file.try_clone().unwrap()
    };
    Block::new(file, Path::new("test.img"), config).unwrap()
}

fn with_engine(engine: Engine) -> BlockConfig {
    BlockConfig {
        engine,
        ..BlockConfig::default()
    }
}

/// The engines that this host can run; a host without `io_uring` still tests the other.
fn engines() -> Vec<Engine> {
    let file = Arc::new(DiskFile::new(tempfile::tempfile().unwrap(), 512));
    let uring = backend::open(Engine::Uring, &file, 1, false).is_ok();
    let mut engines = vec![Engine::Sync];
    engines.extend(uring.then_some(Engine::Uring));
    engines
}

/// What a [`Fake`] does with an operation.
enum Answer {
    Now(io::Result<usize>),
    /// When the test sends something.
    Later,
}

/// A test's side of its fake back ends.
#[derive(Default)]
struct Script {
    /// Answers in order; what follows is answered with success.
    answers: VecDeque<Answer>,
    operations: Vec<Operation>,
    submissions: usize,
}

struct Fake {
    script: Arc<Mutex<Script>>,
    pending: VecDeque<Io>,
    /// The test lets one operation end with each message.
    release: Receiver<()>,
    waiting: Sender<()>,
    event: EventFd,
    started: bool,
}

impl Fake {
    fn end(&mut self) -> Option<Done> {
        let io = self.pending.pop_front()?;
        let result = Ok(io.buffers.len());
        Some(Done { io, result })
    }
}

impl Backend for Fake {
    fn start(&mut self, io: Io) -> Started {
        let mut script = self.script.lock().unwrap();
        script.operations.push(io.operation);
        self.started = true;
        let answer = script.answers.pop_front();
        let result = match answer {
            Some(Answer::Later) => {
                self.pending.push_back(io);
                return Started::Pending;
            }
            Some(Answer::Now(result)) => result,
            None => Ok(io.buffers.len()),
        };
        Started::Done(Done { io, result })
    }

    fn submit(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.started) {
            self.script.lock().unwrap().submissions += 1;
        }
        Ok(())
    }

    fn reap(&mut self) -> Option<Done> {
        if self.pending.is_empty() {
            return None;
        }
        self.release.try_recv().ok()?;
        self.end()
    }

    fn in_flight(&self) -> usize {
        self.pending.len()
    }

    fn completion_event(&self) -> Option<std::os::fd::RawFd> {
        Some(self.event.as_raw_fd())
    }

    fn acknowledge(&mut self) {
        let _ = self.event.read();
    }

    fn wait(&mut self) -> io::Result<()> {
        let _ = self.waiting.send(());
        // Puts the message back for `reap`, which there is only one reader to do.
        self.release.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
        let (again, release) = channel();
        again.send(()).unwrap();
        while let Ok(message) = self.release.try_recv() {
            again.send(message).unwrap();
        }
        self.release = release;
        Ok(())
    }
}

/// A test's hold on a device with a fake back end.
struct FakeControl {
    script: Arc<Mutex<Script>>,
    release: Sender<()>,
    waiting: Receiver<()>,
    event: EventFd,
}

impl FakeControl {
    fn answer(&self, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().unwrap().answers.extend(answers);
    }

    fn operations(&self) -> Vec<Operation> {
        self.script.lock().unwrap().operations.clone()
    }
}

/// A device of 1 MiB with one queue and a fake back end.
fn fake_block(config: &BlockConfig) -> (Block, FakeControl) {
    let script = Arc::new(Mutex::new(Script::default()));
    let (release, releases) = channel();
    let (waits, waiting) = channel();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let control = FakeControl {
        script: Arc::clone(&script),
        release,
        waiting,
        event: event.try_clone().unwrap(),
    };
    let fake = Mutex::new(Some(Fake {
        script,
        pending: VecDeque::new(),
        release: releases,
        waiting: waits,
        event,
        started: false,
    }));
    let open = move |_| {
        let fake = fake.lock().unwrap().take();
        fake.map(|fake| Box::new(fake) as Box<dyn Backend>)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
    };
    let block = Block::with_backend(1 << 20, Path::new("fake.img"), config, open).unwrap();
    (block, control)
}
