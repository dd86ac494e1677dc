//! The worker of one queue: takes requests from the ring, has the back end carry them out, and
//! gives them back with their status.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::backend::{Backend, Buffers, Done, Io, Operation, Started};
use super::data::point_at_data;
use super::layout::{F_FLUSH, SECTOR_SIZE, SERIAL_LEN, Status};
use super::request::{Limits, Range, Request, RequestError, STATUS_LEN};
use super::traffic::Traffic;
use crate::event_loop::{Control, Handler, Interest, Source};
use crate::rate_limit::RateLimit;
use crate::token_bucket::Throttle;
use crate::virtio::chain::Chain;
use crate::virtio::device::{DeviceNotifier, StartedQueue};
use crate::virtio::queue::{Queue, QueueError, QueueState};

const KICK: u32 = 0;
const COMPLETION: u32 = 1;
const TIMER: u32 = 2;

/// So many requests are taken before those that have ended are made known to the driver.
const BATCH: usize = 32;
/// So many batches are served before other handlers on the same thread have their turn.
const ROUNDS: usize = 16;

/// What the workers of a disk have in common.
#[derive(Debug)]
pub struct Disk {
    /// The disk's name in messages: its path.
    pub name: String,
    /// What requests are checked against.
    pub limits: Limits,
    /// The serial number, padded with zeroes.
    pub serial: [u8; SERIAL_LEN],
    /// Length of the backing file in bytes. Only the last sector may reach beyond it.
    pub file_len: u64,
    /// What has gone through it.
    pub traffic: Arc<Traffic>,
}

impl Disk {
    /// Without `VIRTIO_BLK_F_FLUSH` a driver cannot ask for durability, so it has to come with
    /// each write (section 5.2.6.2).
    fn write_through(&self) -> bool {
        self.limits.features & F_FLUSH == 0
    }
}

/// A request that the back end is working on.
#[derive(Debug)]
struct Slot {
    chain: Chain,
    request: Request,
    /// Bytes moved so far, or ranges dealt with.
    done: u32,
}

/// What follows after an operation has ended.
enum Next {
    /// This one, for the same request.
    Operation(Operation),
    /// The request has ended.
    Finish(Status),
}

/// The worker. It lives on an event loop; [`Worker::stop`] ends it and gives the queue back.
pub struct Worker {
    index: u16,
    queue: Queue,
    kick: vmm_sys_util::eventfd::EventFd,
    // Before the slots: a back end that is dropped waits for what is in flight.
    backend: Box<dyn Backend>,
    slots: Vec<Option<Slot>>,
    free: Vec<u16>,
    /// Lists that were used and can be filled again.
    spare: Vec<Buffers>,
    disk: Arc<Disk>,
    notifier: DeviceNotifier,
    limit: RateLimit,
    /// Requests were given back since the driver was last notified.
    unannounced: bool,
    /// The limit to what goes through the disk.
    throttle: Option<Throttle>,
    broken: bool,
}

impl Worker {
    /// A worker for `started`, whose back end takes as many operations as the queue has entries.
    pub fn new(
        started: StartedQueue,
        backend: Box<dyn Backend>,
        disk: Arc<Disk>,
        notifier: DeviceNotifier,
        throttle: Option<Throttle>,
    ) -> Self {
        let size = started.queue.size();
        Self {
            index: started.index,
            queue: started.queue,
            kick: started.kick,
            backend,
            slots: (0..size).map(|_| None).collect(),
            free: (0..size).rev().collect(),
            spare: Vec::new(),
            disk,
            notifier,
            limit: RateLimit::new(),
            unannounced: false,
            throttle,
            broken: false,
        }
    }

    /// Waits for what is in flight, gives it back to the driver, and returns the queue's state.
    /// Requests that were not taken yet stay in the ring.
    pub fn stop(mut self) -> (u16, QueueState) {
        while self.backend.in_flight() > 0 {
            if let Err(error) = self.backend.wait() {
                log::error!("{}: cannot wait for disk I/O: {error}", self.disk.name);
                break;
            }
            self.reap();
            // A short read goes on with a new operation.
            self.submit();
        }
        self.announce();
        (self.index, self.queue.into_state())
    }

    /// Serves the ring until it is empty, for a bounded time.
    fn process(&mut self) {
        self.backend.quiet(true);
        let served = self.serve();
        if let Err(error) = served {
            self.fail(&error);
        }
        self.backend.quiet(false);
        // What ended between the last look and `quiet(false)` sent no signal.
        if self.reap() > 0 {
            self.submit();
            self.announce();
            self.signal_self();
        }
    }

    fn serve(&mut self) -> Result<(), QueueError> {
        self.reap();
        self.submit();
        for _ in 0..ROUNDS {
            if self.broken {
                return Ok(());
            }
            self.queue.disable_notification()?;
            let taken = self.take_batch()?;
            self.submit();
            self.reap();
            self.submit();
            self.announce();
            if self.throttle.as_ref().is_some_and(Throttle::is_waiting) {
                // Its timer brings the worker back here.
                return Ok(());
            }
            if self.free.is_empty() {
                // The next completion brings the worker back here.
                return Ok(());
            }
            if taken < BATCH && !self.queue.enable_notification()? {
                return Ok(());
            }
        }
        self.signal_self();
        Ok(())
    }

    /// Starts up to [`BATCH`] requests and returns how many.
    fn take_batch(&mut self) -> Result<usize, QueueError> {
        for taken in 0..BATCH {
            if self.broken || self.free.is_empty() || !self.may_start() {
                return Ok(taken);
            }
            match self.queue.pop()? {
                Some(chain) => self.begin(chain),
                None => return Ok(taken),
            }
        }
        Ok(BATCH)
    }

    fn may_start(&mut self) -> bool {
        self.throttle.as_mut().is_none_or(Throttle::may_start)
    }

    fn begin(&mut self, chain: Chain) {
        let memory = Arc::clone(self.queue.memory());
        let request = match Request::read(&chain, &memory, &self.disk.limits) {
            Ok(request) => {
                self.charge(&request);
                request
            }
            Err(error) => {
                self.charge(&Request::Flush);
                return self.refuse(chain, &error);
            }
        };
        if let Request::GetId { len } = request {
            let len = SERIAL_LEN.min(len as usize);
            let serial = self.disk.serial.get(..len).unwrap_or_default();
            let status = match chain.write_all(&memory, 0, serial) {
                Ok(()) => Status::Ok,
                Err(_) => Status::IoErr,
            };
            return self.finish(chain, status);
        }
        let Some(operation) = self.operation(&request, 0) else {
            return self.finish(chain, Status::Ok);
        };
        let mut buffers = self.spare.pop().unwrap_or_else(|| Buffers::new(memory));
        if let Err(error) = point_at_data(&mut buffers, &chain, &request) {
            self.warn("a request's buffers", &error);
            return self.finish(chain, Status::IoErr);
        }
        let tag = self.free.pop();
        let place = tag.and_then(|tag| Some((tag, self.slots.get_mut(usize::from(tag))?)));
        let Some((tag, place)) = place else {
            // The caller looked for a free slot before it took the chain.
            return self.finish(chain, Status::IoErr);
        };
        *place = Some(Slot {
            chain,
            request,
            done: 0,
        });
        self.start(Io {
            tag,
            operation,
            buffers,
        });
    }

    /// A request costs its bytes, if it moves some, and one operation in any case.
    fn charge(&self, request: &Request) {
        if let Some(throttle) = &self.throttle {
            throttle.charge(match request {
                Request::Read { len, .. } | Request::Write { len, .. } => u64::from(*len),
                _ => 0,
            });
        }
    }

    /// The operation that carries a request on from `done`, or `None` if nothing is left to do.
    fn operation(&self, request: &Request, done: u32) -> Option<Operation> {
        let durable = self.disk.write_through();
        match request {
            Request::Read { offset, len } if done < *len => Some(Operation::Read {
                offset: offset + u64::from(done),
            }),
            Request::Write { offset, len } if done < *len => Some(Operation::Write {
                offset: offset + u64::from(done),
                durable,
            }),
            Request::Flush if done == 0 => Some(Operation::Flush),
            Request::Discard(ranges) => {
                range_operation(ranges, done, durable, |range| Operation::Discard {
                    offset: range.offset,
                    len: range.len,
                })
            }
            Request::WriteZeroes(ranges) => {
                range_operation(ranges, done, durable, |range| Operation::WriteZeroes {
                    offset: range.offset,
                    len: range.len,
                    unmap: range.unmap,
                })
            }
            _ => None,
        }
    }

    /// Starts an operation, and those that follow it for as long as each ends at once.
    fn start(&mut self, mut io: Io) {
        while let Started::Done(done) = self.backend.start(io) {
            match self.step(done) {
                Some(next) => io = next,
                None => return,
            }
        }
    }

    /// Takes everything that has ended; returns how many operations that were.
    fn reap(&mut self) -> usize {
        let mut count = 0;
        while let Some(done) = self.backend.reap() {
            count += 1;
            if let Some(next) = self.step(done) {
                self.start(next);
            }
        }
        count
    }

    /// Goes on after an operation: returns the next one of the same request, or ends the request.
    fn step(&mut self, done: Done) -> Option<Io> {
        let Done { mut io, result } = done;
        let tag = usize::from(io.tag);
        let Some(mut slot) = self.slots.get_mut(tag).and_then(Option::take) else {
            // The back end made it up. Its memory is safe, and no request waits for it.
            log::error!("{}: completion for no request", self.disk.name);
            return None;
        };
        match self.after(&mut slot, &mut io, result) {
            Next::Operation(operation) => {
                io.operation = operation;
                if let Some(place) = self.slots.get_mut(tag) {
                    *place = Some(slot);
                }
                Some(io)
            }
            Next::Finish(status) => {
                if status == Status::Ok {
                    self.disk.traffic.count(&slot.request);
                }
                io.buffers.clear();
                self.spare.push(io.buffers);
                self.free.push(io.tag);
                self.finish(slot.chain, status);
                None
            }
        }
    }

    fn after(&self, slot: &mut Slot, io: &mut Io, result: io::Result<usize>) -> Next {
        let moved = match result {
            Ok(moved) => moved,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return Next::Operation(io.operation);
            }
            // Discarding is a hint; a file system that cannot take it has not failed.
            Err(error)
                if error.kind() == io::ErrorKind::Unsupported
                    && matches!(io.operation, Operation::Discard { .. }) =>
            {
                0
            }
            Err(error) => return self.host_error(&io.operation, &error),
        };
        match slot.request {
            Request::Read { len, .. } | Request::Write { len, .. } => {
                if moved == 0 {
                    return self.at_end(slot, io);
                }
                let left = len - slot.done;
                let moved = u32::try_from(moved).unwrap_or(u32::MAX).min(left);
                slot.done += moved;
                io.buffers.advance(moved as usize);
            }
            _ => slot.done += 1,
        }
        match self.operation(&slot.request, slot.done) {
            Some(operation) => Next::Operation(operation),
            None => Next::Finish(Status::Ok),
        }
    }

    /// Nothing was moved: the file ends here. Within the last sector the rest reads as zeroes;
    /// anything else means that someone has cut the file.
    fn at_end(&self, slot: &Slot, io: &Io) -> Next {
        if let Request::Read { offset, len } = slot.request {
            let left = len - slot.done;
            let at = offset + u64::from(slot.done);
            if at == self.disk.file_len && u64::from(left) < SECTOR_SIZE {
                let zeroes = vec![0; left as usize];
                let memory = self.queue.memory();
                return match slot.chain.write_all(memory, slot.done, &zeroes) {
                    Ok(()) => Next::Finish(Status::Ok),
                    Err(_) => Next::Finish(Status::IoErr),
                };
            }
        }
        self.host_error(&io.operation, &io::ErrorKind::UnexpectedEof.into())
    }

    fn host_error(&self, operation: &Operation, error: &io::Error) -> Next {
        self.warn(&format!("{operation:?}"), error);
        Next::Finish(Status::IoErr)
    }

    fn warn(&self, what: &str, error: &dyn std::fmt::Display) {
        self.limit.log(
            log::Level::Warn,
            format_args!(
                "{}: {what} failed, the guest sees an I/O error: {error}",
                self.disk.name
            ),
        );
    }

    fn refuse(&mut self, chain: Chain, error: &RequestError) {
        self.limit.log(
            log::Level::Debug,
            format_args!("{}: request refused: {error}", self.disk.name),
        );
        if *error == RequestError::NoStatus {
            self.complete(chain, 0);
        } else {
            self.finish(chain, error.status());
        }
    }

    /// Writes the status and gives the chain back. The length covers the status in any case, as a
    /// driver may look at nothing beyond it.
    fn finish(&mut self, chain: Chain, status: Status) {
        let len = chain.writable_len();
        let memory = self.queue.memory();
        let written = chain.write_all(memory, len.saturating_sub(STATUS_LEN), &[status as u8]);
        if let Err(error) = written {
            self.warn("writing a status", &error);
        }
        self.complete(chain, len);
    }

    fn complete(&mut self, chain: Chain, len: u32) {
        self.unannounced = true;
        if let Err(error) = self.queue.complete(chain, len) {
            self.fail(&error);
        }
    }

    fn submit(&mut self) {
        if let Err(error) = self.backend.submit() {
            self.fail(&error);
        }
    }

    fn announce(&mut self) {
        if std::mem::take(&mut self.unannounced)
            && let Err(error) = self.queue.notify()
        {
            self.fail(&error);
        }
    }

    /// Comes back after other handlers had their turn.
    fn signal_self(&self) {
        // A full counter is a signal too.
        let _ = self.kick.write(1);
    }

    /// The queue or the host is past help: nothing more is taken until the driver resets.
    fn fail(&mut self, error: &dyn std::fmt::Display) {
        if !self.broken {
            self.broken = true;
            self.notifier.needs_reset(error);
        }
    }
}

impl Handler for Worker {
    fn sources(&self) -> Vec<Source> {
        let source = |fd, token| Source {
            fd,
            token,
            interest: Interest::READ,
        };
        let mut sources = vec![source(self.kick.as_raw_fd(), KICK)];
        if let Some(fd) = self.backend.completion_event() {
            sources.push(source(fd, COMPLETION));
        }
        if let Some(throttle) = &self.throttle {
            sources.push(source(throttle.as_raw_fd(), TIMER));
        }
        sources
    }

    fn ready(&mut self, token: u32, _control: &mut Control<'_>) {
        match token {
            COMPLETION => self.backend.acknowledge(),
            TIMER => {
                if let Some(throttle) = &mut self.throttle {
                    throttle.expired();
                }
            }
            // Nothing to take is fine: the ring is looked at all the same.
            _ => drop(self.kick.read()),
        }
        self.process();
    }
}

/// The operation of range `done`; after the last one a flush if the ranges have to be `durable`.
fn range_operation(
    ranges: &[Range],
    done: u32,
    durable: bool,
    operation: impl Fn(&Range) -> Operation,
) -> Option<Operation> {
    let done = done as usize;
    match ranges.get(done) {
        Some(range) => Some(operation(range)),
        None if durable && done == ranges.len() => Some(Operation::Flush),
        None => None,
    }
}
