//! Where a disk's bytes live, and how they get there. Nothing in here knows virtio: a back end is
//! given a position, an operation and pieces of memory.

pub mod buffers;
pub mod file;
pub mod uring;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use buffers::Buffers;
pub use file::DiskFile;
use uring::{Rings, Uring};

/// How a disk's I/O is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// `io_uring` where the host has it, else system calls on the worker's thread.
    #[default]
    Auto,
    /// `io_uring`, or no disk.
    Uring,
    /// `preadv2` and `pwritev2` on the worker's thread.
    Sync,
}

/// What is to be done at which bytes of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fill the buffers from `offset` on.
    Read {
        /// First byte.
        offset: u64,
    },
    /// Write the buffers from `offset` on.
    Write {
        /// First byte.
        offset: u64,
        /// Complete only when the data is durable.
        durable: bool,
    },
    /// Make all completed writes durable.
    Flush,
    /// The bytes are not needed any more.
    Discard {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The bytes read as zeroes from now on.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The space under them may be given back.
        unmap: bool,
    },
}

/// One operation on its way through a back end, with the memory that it reads or writes.
#[derive(Debug)]
pub struct Io {
    /// Chosen by the worker, unique among those in flight, less than the back end's depth.
    pub tag: u16,
    /// What to do.
    pub operation: Operation,
    /// Memory to read from or write to; empty for an operation without data.
    pub buffers: Buffers,
}

/// An operation that has ended: the number of bytes moved (it may be fewer than asked for), or 0
/// for an operation without data.
#[derive(Debug)]
pub struct Done {
    /// The operation as it was started.
    pub io: Io,
    /// How it ended.
    pub result: io::Result<usize>,
}

/// What became of an operation that was started.
#[derive(Debug)]
pub enum Started {
    /// It has ended already.
    Done(Done),
    /// It will come out of [`Backend::reap`].
    Pending,
}

/// Carries out operations. It owns each from the start to the end, with a hold on guest memory, so
/// that nothing is freed or reused under the kernel's hands; dropping a back end waits for all.
pub trait Backend: Send {
    /// Starts an operation, at the latest at the next [`Backend::submit`].
    fn start(&mut self, io: Io) -> Started;

    /// Hands all started operations to the kernel.
    ///
    /// # Errors
    /// The host refuses to take them; the back end is of no use any more.
    fn submit(&mut self) -> io::Result<()>;

    /// The next operation that has ended, if there is one.
    fn reap(&mut self) -> Option<Done>;

    /// The number of operations that have not been reaped.
    fn in_flight(&self) -> usize;

    /// An eventfd that is signalled when operations end, if they can end later.
    fn completion_event(&self) -> Option<RawFd>;

    /// Takes the signal of [`Backend::completion_event`].
    fn acknowledge(&mut self) {}

    /// Asks for no signals while the worker looks at [`Backend::reap`] by itself. After
    /// `quiet(false)` it has to look once more, for what ended in between.
    fn quiet(&mut self, _quiet: bool) {}

    /// Waits until [`Backend::reap`] has something, if anything is in flight.
    ///
    /// # Errors
    /// The host cannot wait.
    fn wait(&mut self) -> io::Result<()>;
}

/// What opens a back end for a queue, once for each of `queues.0` at a time; given the queue's size,
/// which is at most `queues.1`. All that the host has to give is there when this returns, so that a
/// process can give up asking for more. `may_block` is that of [`open`].
///
/// # Errors
/// `engine` is [`Engine::Uring`] and the host has no usable `io_uring`.
pub fn opener(
    engine: Engine,
    disk: Arc<DiskFile>,
    queues: (u16, u16),
    may_block: bool,
) -> io::Result<impl Fn(u16) -> io::Result<Box<dyn Backend>> + Send + 'static> {
    let made = (engine != Engine::Sync).then(|| Rings::make(queues.0, queues.1));
    let rings = match made.transpose() {
        Ok(rings) => rings,
        Err(error) if engine == Engine::Uring => return Err(error),
        Err(error) => {
            log::debug!("disk I/O without io_uring, which this host refuses: {error}");
            None
        }
    };
    Ok(move |depth| -> io::Result<Box<dyn Backend>> {
        let uring = rings
            .as_ref()
            .map(|rings| rings.open(Arc::clone(&disk), depth, may_block));
        Ok(match uring {
            Some(Ok(uring)) => Box::new(uring),
            Some(Err(error)) if engine == Engine::Uring => return Err(error),
            _ => Box::new(Sync::new(Arc::clone(&disk))),
        })
    })
}

/// A back end for one queue with at most `depth` operations in flight. With `may_block` its thread
/// serves nothing else and may wait for the host where that saves work.
///
/// # Errors
/// `engine` is [`Engine::Uring`] and the host has no usable `io_uring`.
pub fn open(
    engine: Engine,
    disk: &Arc<DiskFile>,
    depth: u16,
    may_block: bool,
) -> io::Result<Box<dyn Backend>> {
    let uring = || Uring::new(Arc::clone(disk), depth, may_block);
    match engine {
        Engine::Sync => Ok(Box::new(Sync::new(Arc::clone(disk)))),
        Engine::Uring => Ok(Box::new(uring()?)),
        Engine::Auto => match uring() {
            Ok(uring) => Ok(Box::new(uring)),
            Err(error) => {
                log::debug!("disk I/O without io_uring, which this host refuses: {error}");
                Ok(Box::new(Sync::new(Arc::clone(disk))))
            }
        },
    }
}

/// Carries out each operation as it is started, on the caller's thread.
#[derive(Debug)]
pub struct Sync {
    disk: Arc<DiskFile>,
}

impl Sync {
    /// A back end for `disk`.
    pub fn new(disk: Arc<DiskFile>) -> Self {
        Self { disk }
    }
}

impl Backend for Sync {
    fn start(&mut self, io: Io) -> Started {
        let result = self.disk.execute(&io.operation, &io.buffers);
        Started::Done(Done { io, result })
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reap(&mut self) -> Option<Done> {
        None
    }

    fn in_flight(&self) -> usize {
        0
    }

    fn completion_event(&self) -> Option<RawFd> {
        None
    }

    fn wait(&mut self) -> io::Result<()> {
        Ok(())
    }
}
