//! virtio-block (virtio 1.2, section 5.2): a raw file or block device of the host as the guest's
//! disk.
//!
//! What is in the file is never looked at: a disk is raw, whatever a guest writes into it. A
//! read-only disk is one that the host opened for reading alone; the device only says so.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod backend;
mod data;
pub mod layout;
mod open;
pub mod request;
mod traffic;
pub mod worker;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes;

pub use backend::Engine;
pub use open::BlockError;
pub use traffic::Traffic;

use self::backend::{Backend, DiskFile};
use self::layout::{
    ConfigSpace, F_BLK_SIZE, F_DISCARD, F_FLUSH, F_MQ, F_RO, F_SEG_MAX, F_TOPOLOGY, F_WRITE_ZEROES,
    MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS, PHYSICAL_BLOCK_EXPONENT,
    SECTOR_SIZE, SERIAL_LEN,
};
use self::request::Limits;
use self::worker::{Disk, Worker};
use super::device::{
    ActivateError, Activation, DeviceState, RestoreError, StartedQueue, VirtioDevice,
};
use super::panic_relay;
use super::queue::QueueState;
use crate::event_loop::{EventLoop, EventLoopHandle, Registration};
use crate::token_bucket::{Rate, Throttle, TokenBucket};

/// The most queues of a disk.
pub const MAX_QUEUES: u16 = 32;
/// The largest queue size.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// A disk's settings, the same on the command line and in a machine file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlockConfig {
    /// The guest cannot change the disk.
    pub read_only: bool,
    /// Number of queues, 1 to [`MAX_QUEUES`]; one for each vCPU lets them do I/O side by side.
    pub queues: u16,
    /// Entries in each queue: a power of two from 2 to [`MAX_QUEUE_SIZE`].
    pub queue_size: u16,
    /// Serial number, at most 20 bytes; `/dev/disk/by-id` in the guest is made of it.
    pub serial: String,
    /// How the host does the I/O.
    pub engine: Engine,
    /// A thread of its own for each queue, instead of the thread that all devices share. Writes
    /// cost much less then, as the thread may wait for the host and need not hand them on.
    pub dedicated_thread: bool,
    /// The most that goes through it, reads and writes together.
    pub rate: Option<Rate>,
}

impl Default for BlockConfig {
    fn default() -> Self {
        Self {
            read_only: false,
            queues: 1,
            queue_size: 256,
            serial: String::new(),
            engine: Engine::Auto,
            dedicated_thread: false,
            rate: None,
        }
    }
}

/// What a disk has to keep over a save, beside its queues. Its content is not part of it: that is
/// the file's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Capacity in sectors of 512 bytes, as the driver has read it.
    pub capacity: u64,
    /// The guest cannot change the disk.
    pub read_only: bool,
    /// The serial number.
    pub serial: String,
}

type OpenBackend = dyn Fn(u16) -> io::Result<Box<dyn Backend>> + Send;

/// A queue's worker where it runs.
struct Running {
    index: u16,
    registration: Registration<Worker>,
    /// The worker's own thread, if it has one; it ends after the registration.
    _thread: Option<EventLoop>,
}

/// The device.
pub struct Block {
    path: PathBuf,
    name: String,
    config: BlockConfig,
    serial: [u8; SERIAL_LEN],
    capacity: u64,
    file_len: u64,
    queue_sizes: Vec<u16>,
    open_backend: Box<OpenBackend>,
    running: Vec<Running>,
    traffic: Arc<Traffic>,
}

impl Block {
    /// A disk over `file`, which the caller opened at `path`: for reading alone if the disk is
    /// read-only, else for reading and writing.
    ///
    /// # Errors
    /// `file` cannot be a disk, or `config` asks for what the device cannot do.
    pub fn new(mut file: File, path: &Path, config: &BlockConfig) -> Result<Self, BlockError> {
        check_config(config, path)?;
        let len = open::examine(&mut file, path, config.read_only)?;
        if !config.read_only && !len.is_multiple_of(SECTOR_SIZE) {
            log::warn!(
                "disk {}: the guest does not see the last {} bytes, which are no whole sector",
                path.display(),
                len % SECTOR_SIZE
            );
        }
        let file = Arc::new(DiskFile::new(file, len));
        let open = backend::opener(
            config.engine,
            file,
            (config.queues, config.queue_size),
            config.dedicated_thread,
        );
        let open = open.map_err(|source| BlockError::Uring {
            path: path.to_owned(),
            source,
        })?;
        Self::with_backend(len, path, config, open)
    }

    /// A disk of `len` bytes whose queues get their back ends from `open_backend`, which is given
    /// the queue's size.
    ///
    /// # Errors
    /// `config` asks for what the device cannot do.
    pub fn with_backend(
        len: u64,
        path: &Path,
        config: &BlockConfig,
        open_backend: impl Fn(u16) -> io::Result<Box<dyn Backend>> + Send + 'static,
    ) -> Result<Self, BlockError> {
        check_config(config, path)?;
        Ok(Self {
            path: path.to_owned(),
            name: format!("disk {}", path.display()),
            serial: open::serial_bytes(&config.serial, path)?,
            capacity: open::capacity(len, config.read_only),
            file_len: len,
            queue_sizes: vec![config.queue_size; usize::from(config.queues)],
            config: config.clone(),
            open_backend: Box::new(open_backend),
            running: Vec::new(),
            traffic: Arc::default(),
        })
    }

    /// Capacity in sectors of 512 bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The length of its file, in bytes; no request reaches beyond it.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// What has gone through it.
    pub fn traffic(&self) -> Arc<Traffic> {
        self.traffic.clone()
    }

    /// The file that the disk's bytes are in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn config_space(&self) -> ConfigSpace {
        ConfigSpace {
            capacity: self.capacity.into(),
            // Header and status take a descriptor each.
            seg_max: u32::from(self.config.queue_size)
                .saturating_sub(2)
                .max(1)
                .into(),
            blk_size: (SECTOR_SIZE as u32).into(),
            physical_block_exp: PHYSICAL_BLOCK_EXPONENT,
            min_io_size: (1 << PHYSICAL_BLOCK_EXPONENT).into(),
            writeback: 1,
            num_queues: self.config.queues.into(),
            max_discard_sectors: MAX_DISCARD_SECTORS.into(),
            max_discard_seg: MAX_RANGES.into(),
            discard_sector_alignment: (1 << PHYSICAL_BLOCK_EXPONENT).into(),
            max_write_zeroes_sectors: MAX_WRITE_ZEROES_SECTORS.into(),
            max_write_zeroes_seg: MAX_RANGES.into(),
            write_zeroes_may_unmap: 1,
            ..ConfigSpace::default()
        }
    }

    fn start_queue(
        &self,
        started: StartedQueue,
        disk: &Arc<Disk>,
        activation: &Shared,
    ) -> Result<Running, ActivateError> {
        let index = started.index;
        let backend =
            (self.open_backend)(started.queue.size()).map_err(|source| ActivateError::Io {
                name: self.name.clone(),
                what: "its I/O engine cannot be started",
                source,
            })?;
        let throttle = activation.bucket.as_ref();
        let throttle = throttle.map(|bucket| Throttle::new(Arc::clone(bucket)));
        let throttle = throttle.transpose().map_err(|source| ActivateError::Io {
            name: self.name.clone(),
            what: "no timer is to be had",
            source,
        })?;
        let worker = Worker::new(
            started,
            backend,
            Arc::clone(disk),
            activation.notifier.clone(),
            throttle,
        );
        let event_loop = |source| ActivateError::EventLoop {
            name: self.name.clone(),
            source,
        };
        let thread = if self.config.dedicated_thread {
            let shared = activation.events.clone();
            let name = format!("block-{index}");
            Some(
                EventLoop::spawn(&name, move |message| panic_relay::relay(message, &shared))
                    .map_err(event_loop)?,
            )
        } else {
            None
        };
        let events = thread
            .as_ref()
            .map_or_else(|| activation.events.clone(), EventLoop::handle);
        Ok(Running {
            index,
            registration: events.add(worker).map_err(event_loop)?,
            _thread: thread,
        })
    }
}

/// What all queues of an activation need.
struct Shared {
    events: EventLoopHandle,
    notifier: super::device::DeviceNotifier,
    bucket: Option<Arc<TokenBucket>>,
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        layout::DEVICE_TYPE
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn features(&self) -> u64 {
        let mut features = F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY;
        if self.config.queues > 1 {
            features |= F_MQ;
        }
        features
            | if self.config.read_only {
                F_RO
            } else {
                F_FLUSH | F_DISCARD | F_WRITE_ZEROES
            }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.config_space();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let fields = space.as_bytes().get(from..).unwrap_or_default();
        for (byte, field) in data.iter_mut().zip(fields) {
            *byte = *field;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let disk = Arc::new(Disk {
            name: self.name.clone(),
            limits: Limits {
                capacity: self.capacity,
                read_only: self.config.read_only,
                features: activation.features,
            },
            serial: self.serial,
            file_len: self.file_len,
            traffic: self.traffic.clone(),
        });
        let shared = Shared {
            events: activation.events,
            notifier: activation.notifier,
            bucket: self.config.rate.as_ref().map(TokenBucket::new),
        };
        let mut running = Vec::with_capacity(activation.queues.len());
        for started in activation.queues {
            // An error drops, and so removes, the workers that run already.
            running.push(self.start_queue(started, &disk, &shared)?);
        }
        self.running = running;
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<(u16, QueueState)> {
        // First none of them takes new requests, then the I/O of all of them ends together.
        let workers: Vec<_> = std::mem::take(&mut self.running)
            .into_iter()
            .map(|running| (running.index, running.registration.remove()))
            .collect();
        let mut states = Vec::with_capacity(workers.len());
        for (index, worker) in workers {
            match worker {
                Ok(worker) => states.push(worker.stop()),
                Err(error) => log::error!("{}: queue {index} is lost: {error}", self.name),
            }
        }
        states
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(BlockState {
            capacity: self.capacity,
            read_only: self.config.read_only,
            serial: self.config.serial.clone(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Block(state) = state else {
            return Err(RestoreError::WrongDevice {
                name: self.name.clone(),
            });
        };
        let mismatch = |what| RestoreError::Mismatch {
            name: self.name.clone(),
            what,
        };
        if state.capacity != self.capacity {
            return Err(mismatch(format!(
                "it has {} sectors, the saved disk had {}",
                self.capacity, state.capacity
            )));
        }
        if state.read_only != self.config.read_only {
            let was = if state.read_only { "" } else { "not " };
            return Err(mismatch(format!("the saved disk was {was}read-only")));
        }
        self.serial =
            open::serial_bytes(&state.serial, &self.path).map_err(|e| mismatch(e.to_string()))?;
        self.config.serial.clone_from(&state.serial);
        Ok(())
    }
}

fn check_config(config: &BlockConfig, path: &Path) -> Result<(), BlockError> {
    let refuse = |setting, value: u16, allowed| {
        Err(BlockError::Setting {
            path: path.to_owned(),
            setting,
            value: value.to_string(),
            allowed,
        })
    };
    if !(1..=MAX_QUEUES).contains(&config.queues) {
        return refuse("queues", config.queues, "it is from 1 to 32");
    }
    let size = config.queue_size;
    if !size.is_power_of_two() || !(2..=MAX_QUEUE_SIZE).contains(&size) {
        return refuse("queue_size", size, "it is a power of two from 2 to 1024");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
