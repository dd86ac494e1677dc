//! What a virtio device is to its transport.

use std::fmt::{self, Display};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::chain::Chain;
use super::queue::{Queue, QueueError, QueueState};
use super::{rng, spec};
use crate::event_loop::{EventLoopError, EventLoopHandle};
use crate::interrupt::Interrupt;
use crate::rate_limit::RateLimit;

/// A device behind a transport: its identity, its configuration space, and the start and stop of
/// its queues. The transport calls it under its own lock, one call at a time.
pub trait VirtioDevice: Send {
    /// The device's number in section 5.
    fn device_type(&self) -> u32;

    /// A name for logs and errors.
    fn name(&self) -> &str;

    /// The bits of the device's own section. Those of every device (VERSION_1, EVENT_IDX,
    /// INDIRECT_DESC) are the transport's.
    fn features(&self) -> u64;

    /// Largest size of each queue, a power of two up to 32768. The number of queues never changes.
    fn queue_sizes(&self) -> &[u16];

    /// Reads configuration space. The guest chooses offset and width; `data` is zeroed, and
    /// stays so where there is no field.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes configuration space. Where no field is writable nothing happens.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts to serve the queues. The device is not running when this is called.
    ///
    /// # Errors
    /// The device cannot run; it needs a reset, and is then as if this had not been called.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops, for a reset or to be saved: workers have ended and I/O in flight has finished when
    /// this returns, and nothing touches guest memory any more. Returns the queues' state, each
    /// with its index. Does nothing if the device is not running.
    fn deactivate(&mut self) -> Vec<(u16, QueueState)>;

    /// Back to what the device was before any driver: what a driver has told it is forgotten. It is not
    /// running.
    fn reset(&mut self) {}

    /// What the device has to know to go on, beside its queues. It is not running.
    fn save(&self) -> DeviceState;

    /// Takes over what [`VirtioDevice::save`] returned. It is not running.
    ///
    /// # Errors
    /// The state is that of another device.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError>;
}

/// All that a device needs to run.
pub struct Activation {
    /// The guest's memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// The features that were negotiated.
    pub features: u64,
    /// The queues that the driver has set up, which need not be all.
    pub queues: Vec<StartedQueue>,
    /// The loop that hosts queues, unless the device has its own.
    pub events: EventLoopHandle,
    /// The way back to the driver.
    pub notifier: DeviceNotifier,
}

/// A queue and the event that tells of new chains in it.
pub struct StartedQueue {
    /// The queue's number.
    pub index: u16,
    /// The queue.
    pub queue: Queue,
    /// Signalled when the driver kicks the queue; non-blocking.
    pub kick: EventFd,
}

impl StartedQueue {
    /// Answers a kick, for devices that serve a chain at once: takes the kick, calls `serve` for
    /// each chain, and tells the driver. At most as many chains as the queue is long are served;
    /// if there may be more, the kick is signalled again, so that others get their turn.
    ///
    /// # Errors
    /// The queue is broken, or `serve` failed, which breaks it.
    pub fn drain<E: From<QueueError>>(
        &mut self,
        mut serve: impl FnMut(&mut Queue, Chain) -> Result<(), E>,
    ) -> Result<(), E> {
        // An error means that there was no kick, and no harm in looking all the same.
        let _ = self.kick.read();
        self.queue.disable_notification()?;
        let mut budget = self.queue.size();
        loop {
            if budget == 0 {
                let _ = self.kick.write(1);
                break;
            }
            budget -= 1;
            if let Some(chain) = self.queue.pop()? {
                serve(&mut self.queue, chain).inspect_err(|_| self.queue.break_off())?;
            } else if !self.queue.enable_notification()? {
                break;
            }
        }
        Ok(self.queue.notify()?)
    }
}

/// The way from a device back to its driver: interrupts, and word of a configuration that changed
/// or of a device that cannot go on. It takes no lock, so a worker may hold it.
#[derive(Clone)]
pub struct DeviceNotifier {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    interrupt: Arc<dyn Interrupt>,
    /// The InterruptStatus register.
    pending: AtomicU32,
    config_generation: AtomicU32,
    needs_reset: AtomicBool,
    /// Another process raises the interrupt for used buffers.
    lent: AtomicBool,
    limit: RateLimit,
}

impl DeviceNotifier {
    /// A notifier for the device called `name`.
    pub fn new(name: &str, interrupt: Arc<dyn Interrupt>) -> Self {
        Self {
            shared: Arc::new(Shared {
                name: name.to_owned(),
                interrupt,
                pending: AtomicU32::new(0),
                config_generation: AtomicU32::new(0),
                needs_reset: AtomicBool::new(false),
                lent: AtomicBool::new(false),
                limit: RateLimit::new(),
            }),
        }
    }

    /// Tells the driver that chains were used. [`Queue::notify`] asks first whether it wants to
    /// know.
    pub fn buffers_used(&self) {
        self.raise(spec::interrupt::USED_BUFFER);
    }

    /// The eventfd by which another process tells the driver of used buffers, without a detour
    /// through this one. None if the interrupt has none.
    ///
    /// That process can't set InterruptStatus: until the device is reset the register always
    /// names used buffers. A driver that looks and finds none has lost nothing.
    pub fn lend_interrupt(&self) -> Option<EventFd> {
        let event = self.shared.interrupt.event()?.try_clone().ok()?;
        self.shared.lent.store(true, Ordering::Release);
        Some(event)
    }

    /// Tells the driver that configuration space has changed. The change is visible before this
    /// is called.
    pub fn config_changed(&self) {
        self.shared.config_generation.fetch_add(1, Ordering::AcqRel);
        self.raise(spec::interrupt::CONFIG_CHANGE);
    }

    /// Sets DEVICE_NEEDS_RESET and tells the driver (section 2.1.2). `why` goes to the log. A
    /// device that is in this state already stays as it is.
    pub fn needs_reset(&self, why: &dyn Display) {
        if !self.shared.needs_reset.swap(true, Ordering::AcqRel) {
            self.shared.limit.log(
                log::Level::Warn,
                format_args!(
                    "{}: stopped until its driver resets it: {why}",
                    self.shared.name
                ),
            );
            self.raise(spec::interrupt::CONFIG_CHANGE);
        }
    }

    /// Logs what a guest can provoke, at a bounded rate.
    pub fn warn(&self, message: &dyn Display) {
        self.shared.limit.log(
            log::Level::Warn,
            format_args!("{}: {message}", self.shared.name),
        );
    }

    fn raise(&self, cause: u32) {
        self.shared.pending.fetch_or(cause, Ordering::AcqRel);
        self.shared.interrupt.raise();
    }

    /// The InterruptStatus register.
    pub(crate) fn pending(&self) -> u32 {
        let lent = self.shared.lent.load(Ordering::Acquire);
        let always = if lent {
            spec::interrupt::USED_BUFFER
        } else {
            0
        };
        self.shared.pending.load(Ordering::Acquire) | always
    }

    /// Clears causes, as a write of InterruptACK does.
    pub(crate) fn acknowledge(&self, causes: u32) {
        self.shared.pending.fetch_and(!causes, Ordering::AcqRel);
    }

    pub(crate) fn config_generation(&self) -> u32 {
        self.shared.config_generation.load(Ordering::Acquire)
    }

    pub(crate) fn is_reset_needed(&self) -> bool {
        self.shared.needs_reset.load(Ordering::Acquire)
    }

    /// Back to what a reset device shows. The generation goes on: a driver that comes after must
    /// not take the old configuration for the new one.
    pub(crate) fn reset(&self) {
        self.shared.pending.store(0, Ordering::Release);
        self.shared.needs_reset.store(false, Ordering::Release);
        self.shared.lent.store(false, Ordering::Release);
    }

    pub(crate) fn restore(&self, pending: u32, config_generation: u32, needs_reset: bool) {
        self.shared.pending.store(pending, Ordering::Release);
        let generation = &self.shared.config_generation;
        generation.store(config_generation, Ordering::Release);
        self.shared
            .needs_reset
            .store(needs_reset, Ordering::Release);
    }
}

impl fmt::Debug for DeviceNotifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceNotifier")
            .field("name", &self.shared.name)
            .field("pending", &self.shared.pending)
            .field("needs_reset", &self.shared.needs_reset)
            .finish_non_exhaustive()
    }
}

/// What a device has to know to go on, by kind of device.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub enum DeviceState {
    /// A memory balloon.
    Balloon(super::balloon::BalloonState),
    /// A disk.
    Block(super::block::BlockState),
    /// A network device.
    Net(super::net::NetState),
    /// A file system.
    Fs(super::fs::FsState),
    /// Persistent memory.
    Pmem(super::pmem::PmemState),
    /// An entropy device.
    Rng(rng::RngState),
    /// A socket device.
    Vsock(super::vsock::VsockState),
}

/// An error with all its causes, on one line.
pub struct WithCauses<'a>(pub &'a dyn std::error::Error);

impl Display for WithCauses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Why a device could not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The event loop did not take the device's worker.
    #[error("{name}: the event loop did not take its worker")]
    EventLoop {
        /// The device.
        name: String,
        /// The reason.
        source: EventLoopError,
    },
    /// The system refused something.
    #[error("{name}: {what}")]
    Io {
        /// The device.
        name: String,
        /// What was refused.
        what: &'static str,
        /// The reason.
        source: std::io::Error,
    },
    /// The driver started the device without a queue that it cannot do without.
    #[error("{name}: the driver has not set up queue {index}")]
    MissingQueue {
        /// The device.
        name: String,
        /// The queue.
        index: u16,
    },
    /// A queue cannot run.
    #[error("{name}: queue {index} cannot run")]
    Queue {
        /// The device.
        name: String,
        /// The queue.
        index: u16,
        /// The reason.
        source: QueueError,
    },
}

/// Why a saved state does not fit.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It is the state of another kind of device.
    #[error("{name}: the saved state is that of another kind of device")]
    WrongDevice {
        /// The device.
        name: String,
    },
    /// A value is not possible, or not possible for this device.
    #[error("{name}: the saved state does not fit: {what}")]
    Mismatch {
        /// The device.
        name: String,
        /// What does not fit.
        what: String,
    },
    /// A queue's state is not valid.
    #[error("{name}: the saved state of queue {index} is not valid")]
    Queue {
        /// The device.
        name: String,
        /// The queue.
        index: usize,
        /// The reason.
        source: QueueError,
    },
}
