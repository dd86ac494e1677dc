//! Disk I/O by `io_uring`: all that one kick brings goes to the kernel in one system call, and
//! what waits for the device does not hold up the worker.
#![allow(
    unsafe_code,
    reason = "submission entries hold raw pointers into guest memory"
)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use io_uring::register::Restriction;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::file::is_unsupported;
use super::{Backend, Buffers, DiskFile, Done, Io, Operation, Started};

/// The longest read that looks into the page cache before it takes the ring.
const CACHED_READ_MAX: usize = 256 * 1024;
/// A submission that the host refuses for want of resources is tried so many times.
const SUBMIT_ATTEMPTS: u32 = 1000;

/// A ring, and the operations that the kernel has.
///
/// The file is not registered with the ring: the kernel takes a ring apart some time after its
/// process is gone, and a registered file, with its lock, would live as long.
pub struct Uring {
    ring: ManuallyDrop<Ring>,
    /// Where the ring goes when this is dropped.
    home: Option<Arc<Rings>>,
    disk: Arc<DiskFile>,
    /// By tag: what the ring has. The kernel reads and writes its buffers.
    pending: Vec<Option<Io>>,
    in_flight: usize,
    /// The file system can tell what its page cache has.
    cached_reads: bool,
    /// Nobody minds if the thread waits for the host now and then.
    may_block: bool,
}

impl Uring {
    /// A ring for at most `depth` operations on `disk`. With `may_block`, writes to the page cache
    /// are made on the caller's thread: most file systems cannot promise that such a write does
    /// not wait, so the ring hands it to a kernel thread, at twice the price of the write.
    ///
    /// # Errors
    /// The host has no `io_uring`, forbids it, or lacks an operation.
    pub fn new(disk: Arc<DiskFile>, depth: u16, may_block: bool) -> io::Result<Self> {
        Ok(Self::with_ring(
            Ring::new(depth)?,
            None,
            disk,
            depth,
            may_block,
        ))
    }

    fn with_ring(
        ring: Ring,
        home: Option<Arc<Rings>>,
        disk: Arc<DiskFile>,
        depth: u16,
        may_block: bool,
    ) -> Self {
        Self {
            ring: ManuallyDrop::new(ring),
            home,
            disk,
            pending: (0..depth).map(|_| None).collect(),
            in_flight: 0,
            cached_reads: true,
            may_block,
        }
    }

    /// Does what is cheaper without the ring: an entry and its completion cost more than a read
    /// from the page cache. While the ring is in use reads go there, as they are likely to miss
    /// the cache too, and many entries share one system call.
    fn try_inline(&mut self, io: &Io) -> Option<io::Result<usize>> {
        match io.operation {
            Operation::Write { durable: false, .. } if self.may_block => {
                Some(self.disk.execute(&io.operation, &io.buffers))
            }
            Operation::Read { offset }
                if self.cached_reads
                    && self.in_flight == 0
                    && io.buffers.len() <= CACHED_READ_MAX =>
            {
                match self.disk.read_cached(&io.buffers, offset) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                    result if is_unsupported(&result) => {
                        self.cached_reads = false;
                        None
                    }
                    result => Some(result),
                }
            }
            _ => None,
        }
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: what the entry points to is owned by `pending` until its completion was
            // reaped, and `drop` waits for completions before it lets go of it.
            if unsafe { self.ring.io.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.submit()?;
        }
    }

    /// Entries that were pushed and that the kernel has not taken.
    fn unsubmitted(&mut self) -> usize {
        self.ring.io.submission().len()
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        for _ in 0..SUBMIT_ATTEMPTS {
            match self.ring.io.submit_and_wait(want) {
                Ok(_) if self.unsubmitted() == 0 => return Ok(()),
                // Taken in part: the rest goes with the next call.
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Out of memory, or the completion queue is full: what is there has to be
                    // reaped before more fits, and the caller does that after each submission.
                    Some(libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
                    _ => return Err(error),
                },
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// What the kernel could not do asynchronously is done here and now.
    fn finish(&self, io: &Io, code: i32) -> io::Result<usize> {
        if let Ok(count) = usize::try_from(code) {
            return Ok(count);
        }
        match -code {
            libc::EAGAIN | libc::EOPNOTSUPP => self.disk.execute(&io.operation, &io.buffers),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

impl Backend for Uring {
    fn start(&mut self, io: Io) -> Started {
        if let Some(result) = self.try_inline(&io) {
            return Started::Done(Done { io, result });
        }
        let tag = usize::from(io.tag);
        let fail = |io, error| {
            Started::Done(Done {
                io,
                result: Err(error),
            })
        };
        if !matches!(self.pending.get(tag), Some(None)) {
            return fail(io, io::ErrorKind::InvalidInput.into());
        }
        let entry = match entry(self.disk.raw_fd(), &io) {
            Ok(entry) => entry.user_data(u64::from(io.tag)),
            Err(error) => return fail(io, error),
        };
        match self.push(&entry) {
            Ok(()) => {
                if let Some(slot) = self.pending.get_mut(tag) {
                    *slot = Some(io);
                    self.in_flight += 1;
                }
                Started::Pending
            }
            Err(error) => fail(io, error),
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        if self.unsubmitted() == 0 {
            return Ok(());
        }
        self.enter(0)
    }

    fn reap(&mut self) -> Option<Done> {
        let completion = self.ring.io.completion().next()?;
        let tag = usize::try_from(completion.user_data()).ok()?;
        let io = self.pending.get_mut(tag)?.take()?;
        self.in_flight -= 1;
        let result = self.finish(&io, completion.result());
        Some(Done { io, result })
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn completion_event(&self) -> Option<RawFd> {
        Some(self.ring.event.as_raw_fd())
    }

    fn acknowledge(&mut self) {
        // Nothing to take is fine: it was taken before.
        let _ = self.ring.event.read();
    }

    fn quiet(&mut self, quiet: bool) {
        let completion = self.ring.io.completion();
        if quiet {
            completion.disable_eventfd();
        } else {
            completion.enable_eventfd();
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        if self.in_flight == 0 || !self.ring.io.completion().is_empty() {
            return Ok(());
        }
        self.enter(1)
    }
}

/// A ring that can do nothing but what disks need: read, write, flush, allocate. No file can be
/// opened through it, nor a socket, whoever has it: filters of system calls do not see what goes
/// through a ring.
struct Ring {
    io: IoUring,
    event: EventFd,
}

/// The operations of a ring.
const OPERATIONS: [u8; 6] = [
    opcode::Read::CODE,
    opcode::Readv::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

impl Ring {
    fn new(depth: u16) -> io::Result<Self> {
        let entries = u32::from(depth.max(1)).next_power_of_two();
        let builder = || {
            let mut builder = IoUring::builder();
            builder.dontfork().setup_r_disabled();
            builder
        };
        let io = builder()
            .setup_coop_taskrun()
            .build(entries)
            // COOP_TASKRUN came with Linux 5.19; it saves interrupts and nothing else.
            .or_else(|_| builder().build(entries))?;
        check_operations(&io)?;
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let submitter = io.submitter();
        submitter.register_eventfd(event.as_raw_fd())?;
        submitter.register_restrictions(&mut OPERATIONS.map(Restriction::sqe_op))?;
        submitter.register_enable_rings()?;
        Ok(Self { io, event })
    }
}

/// Rings that are made beforehand, for a process that can't make any once a guest runs. Each is
/// lent to a back end and comes back from it.
pub struct Rings {
    depth: u16,
    spare: Mutex<Vec<Ring>>,
}

impl Rings {
    /// `count` rings for at most `depth` operations each.
    ///
    /// # Errors
    /// The host has no `io_uring`, forbids it, or lacks an operation.
    pub fn make(count: u16, depth: u16) -> io::Result<Arc<Self>> {
        let rings = (0..count).map(|_| Ring::new(depth));
        Ok(Arc::new(Self {
            depth,
            spare: Mutex::new(rings.collect::<io::Result<_>>()?),
        }))
    }

    /// A back end with one of them, for at most `depth` operations on `disk`; see [`Uring::new`].
    ///
    /// # Errors
    /// None is left, or it would be too small.
    pub fn open(
        self: &Arc<Self>,
        disk: Arc<DiskFile>,
        depth: u16,
        may_block: bool,
    ) -> io::Result<Uring> {
        if depth > self.depth {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut ring = self.spare().pop().ok_or(io::ErrorKind::Unsupported)?;
        ring.io.completion().enable_eventfd();
        // A signal of the last one that had it; none is fine.
        let _ = ring.event.read();
        let home = Some(Arc::clone(self));
        Ok(Uring::with_ring(ring, home, disk, depth, may_block))
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Ring>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Whatever the kernel has taken still moves data to and from guest memory.
        let mut failures = 0;
        while self.in_flight > self.unsubmitted() && failures < SUBMIT_ATTEMPTS {
            if self.wait().is_err() {
                failures += 1;
            }
            while self.reap().is_some() {}
        }
        if self.in_flight > self.unsubmitted() {
            // The kernel may still write there: leaking the memory is the only safe way out.
            std::mem::forget(std::mem::take(&mut self.pending));
            log::error!("disk I/O did not end; its memory is kept");
        }
        let idle = self.in_flight == 0 && self.unsubmitted() == 0;
        // SAFETY: the ring is not used after this.
        let ring = unsafe { ManuallyDrop::take(&mut self.ring) };
        if let (Some(home), true) = (&self.home, idle) {
            home.spare().push(ring);
        }
    }
}

/// The submission entry of an operation. It points into `io`'s buffers.
fn entry(fd: RawFd, io: &Io) -> io::Result<squeue::Entry> {
    let fd = types::Fd(fd);
    Ok(match io.operation {
        Operation::Read { offset } => {
            if let Some((base, len)) = single(&io.buffers)? {
                opcode::Read::new(fd, base, len).offset(offset).build()
            } else {
                let (pieces, count) = pieces(&io.buffers)?;
                opcode::Readv::new(fd, pieces, count).offset(offset).build()
            }
        }
        Operation::Write { offset, durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            if let Some((base, len)) = single(&io.buffers)? {
                let write = opcode::Write::new(fd, base, len);
                write.offset(offset).rw_flags(flags).build()
            } else {
                let (pieces, count) = pieces(&io.buffers)?;
                let write = opcode::Writev::new(fd, pieces, count);
                write.offset(offset).rw_flags(flags).build()
            }
        }
        Operation::Flush => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Operation::Discard { offset, len } => {
            allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, len)
        }
        Operation::WriteZeroes { offset, len, unmap } => {
            let mode = if unmap {
                FALLOC_FL_PUNCH_HOLE
            } else {
                FALLOC_FL_ZERO_RANGE
            };
            allocate(fd, mode | FALLOC_FL_KEEP_SIZE, offset, len)
        }
    })
}

fn allocate(fd: types::Fd, mode: i32, offset: u64, len: u64) -> squeue::Entry {
    opcode::Fallocate::new(fd, len)
        .offset(offset)
        .mode(mode)
        .build()
}

/// Base and length of the buffers if they are one piece, which costs the kernel less to take.
fn single(buffers: &Buffers) -> io::Result<Option<(*mut u8, u32)>> {
    match buffers.pieces() {
        &[piece] => {
            let len = u32::try_from(piece.iov_len).map_err(|_| io::ErrorKind::InvalidInput)?;
            Ok(Some((piece.iov_base.cast(), len)))
        }
        _ => Ok(None),
    }
}

fn pieces(buffers: &Buffers) -> io::Result<(*const libc::iovec, u32)> {
    let pieces = buffers.pieces();
    let count = u32::try_from(pieces.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok((pieces.as_ptr(), count))
}

/// Whether the host offers what [`Uring`] needs.
///
/// # Errors
/// As [`Uring::new`].
pub fn available() -> io::Result<()> {
    check_operations(&IoUring::new(1)?)
}

fn check_operations(ring: &IoUring) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if OPERATIONS.iter().all(|&code| probe.is_supported(code)) {
        Ok(())
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_opens_no_file_and_comes_back_to_be_lent_again() {
        let Ok(rings) = Rings::make(1, 4) else {
            return;
        };
        let file = tempfile::tempfile().unwrap();
        let disk = Arc::new(DiskFile::new(file, 0));
        for _ in 0..2 {
            let mut uring = rings.open(Arc::clone(&disk), 4, false).unwrap();
            assert!(rings.open(Arc::clone(&disk), 4, false).is_err());
            let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/".as_ptr()).build();
            uring.push(&open).unwrap();
            uring.enter(1).unwrap();
            let result = uring.ring.io.completion().next().unwrap().result();
            assert_eq!(result, -libc::EACCES);
        }
    }
}
