//! Queue pairs that the host's kernel serves (vhost-net): frames go between the tap device and the guest's
//! memory without this process.
//!
//! The kernel gets the queues' addresses and eventfds when the device starts, and gives the indexes back when
//! it stops. Each pair has a worker here all the same: for the link, the driver's offloads, and errors.
#![allow(unsafe_code, reason = "ioctls of the kernel's vhost-net")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::{Backend, Offloads, has_ended};
use super::layout::F_MRG_RXBUF;
use super::shared::Shared;
use super::tap::Tap;
use crate::event_loop::{Control, Handler, Interest, Source};
use crate::virtio::queue::QueueState;
use crate::virtio::spec::feature;

const GET_FEATURES: libc::c_ulong = 0x8008_af00;
const SET_FEATURES: libc::c_ulong = 0x4008_af00;
const SET_OWNER: libc::c_ulong = 0xaf01;
const SET_MEM_TABLE: libc::c_ulong = 0x4008_af03;
const SET_VRING_NUM: libc::c_ulong = 0x4008_af10;
const SET_VRING_ADDR: libc::c_ulong = 0x4028_af11;
const SET_VRING_BASE: libc::c_ulong = 0x4008_af12;
const GET_VRING_BASE: libc::c_ulong = 0xc008_af12;
const SET_VRING_KICK: libc::c_ulong = 0x4008_af20;
const SET_VRING_CALL: libc::c_ulong = 0x4008_af21;
const SET_VRING_ERR: libc::c_ulong = 0x4008_af22;
const NET_SET_BACKEND: libc::c_ulong = 0x4008_af30;

/// Features of rings and buffers that the kernel has to have, as they are offered to the driver.
const NEEDED: u64 = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC | F_MRG_RXBUF;

/// Regions of guest memory that the kernel takes at least.
const MAX_REGIONS: usize = 64;

#[repr(C)]
struct VringState {
    index: u32,
    num: u32,
}

#[repr(C)]
struct VringFile {
    index: u32,
    fd: RawFd,
}

#[repr(C)]
struct VringAddr {
    index: u32,
    flags: u32,
    desc: u64,
    used: u64,
    avail: u64,
    log: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MemoryRegion {
    guest_addr: u64,
    len: u64,
    user_addr: u64,
    flags: u64,
}

#[repr(C)]
struct MemoryTable {
    count: u32,
    padding: u32,
    regions: [MemoryRegion; MAX_REGIONS],
}

/// Why the kernel cannot serve a queue pair.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// It is too old for what the device offers.
    #[error("the kernel's vhost-net lacks features {missing:#x}")]
    Lacks {
        /// The features.
        missing: u64,
    },
    /// It refused something.
    #[error("the kernel's vhost-net refused {what}")]
    Refused {
        /// What was refused.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// Guest memory is in more parts than the kernel takes, or a ring is not in it.
    #[error("the guest's memory cannot be described to the kernel's vhost-net")]
    Memory,
}

/// A queue of a tap device, and /dev/vhost-net, opened for it.
pub struct VhostPair {
    vhost: File,
    tap: Tap,
}

impl VhostPair {
    /// Claims `vhost`, which was opened for this pair alone.
    ///
    /// # Errors
    /// The kernel refuses, or is too old.
    pub fn new(vhost: File, tap: Tap) -> Result<Self, VhostError> {
        let pair = Self { vhost, tap };
        pair.number(SET_OWNER, 0, "an owner")?;
        let mut features = 0_u64;
        pair.pointer(GET_FEATURES, &mut features, "to tell its features")?;
        match NEEDED & !features {
            0 => Ok(pair),
            missing => Err(VhostError::Lacks { missing }),
        }
    }

    /// The tap device's queue.
    pub fn tap(&self) -> &Tap {
        &self.tap
    }

    fn start(&mut self, features: u64, memory: &GuestMemoryMmap) -> Result<(), VhostError> {
        let mut features = features & NEEDED;
        self.pointer(SET_FEATURES, &mut features, "the driver's features")?;
        let mut table = table(memory)?;
        self.pointer(SET_MEM_TABLE, &mut table, "the guest's memory")
    }

    fn start_ring(
        &mut self,
        ring: u32,
        lent: &LentQueue,
        memory: &GuestMemoryMmap,
        interrupt: &EventFd,
        error: &EventFd,
    ) -> Result<(), VhostError> {
        let state = &lent.state;
        let size = u32::from(state.size);
        let host = |addr| {
            let addr = memory.get_host_address(GuestAddress(addr));
            addr.map(|addr| addr as u64).map_err(|_| VhostError::Memory)
        };
        let mut num = VringState {
            index: ring,
            num: size,
        };
        self.pointer(SET_VRING_NUM, &mut num, "a queue's size")?;
        let mut base = VringState {
            index: ring,
            num: u32::from(state.next_avail),
        };
        self.pointer(SET_VRING_BASE, &mut base, "a queue's index")?;
        let mut addr = VringAddr {
            index: ring,
            flags: 0,
            desc: host(state.desc_table)?,
            used: host(state.used_ring)?,
            avail: host(state.avail_ring)?,
            log: 0,
        };
        self.pointer(SET_VRING_ADDR, &mut addr, "a queue's addresses")?;
        for (request, event) in [
            (SET_VRING_KICK, &lent.kick),
            (SET_VRING_CALL, interrupt),
            (SET_VRING_ERR, error),
        ] {
            let mut file = VringFile {
                index: ring,
                fd: event.as_raw_fd(),
            };
            self.pointer(request, &mut file, "a queue's eventfd")?;
        }
        Ok(())
    }

    /// Connects a ring with the tap device, or takes it off. What was being done is done when this returns.
    fn connect(&self, ring: u32, on: bool) -> Result<(), VhostError> {
        let fd = if on { self.tap.fd().as_raw_fd() } else { -1 };
        let mut file = VringFile { index: ring, fd };
        self.pointer(NET_SET_BACKEND, &mut file, "the tap device")
    }

    fn take_back(&self, ring: u32) -> Result<u16, VhostError> {
        self.connect(ring, false)?;
        let mut base = VringState {
            index: ring,
            num: 0,
        };
        self.pointer(GET_VRING_BASE, &mut base, "to give a queue back")?;
        Ok(base.num as u16) // the rest is for another kind of queue
    }

    fn number(
        &self,
        request: libc::c_ulong,
        value: libc::c_ulong,
        what: &'static str,
    ) -> Result<(), VhostError> {
        // SAFETY: the request takes a number, no pointer.
        let done = unsafe { libc::ioctl(self.vhost.as_raw_fd(), request, value) };
        check(done, what)
    }

    fn pointer<T>(
        &self,
        request: libc::c_ulong,
        value: &mut T,
        what: &'static str,
    ) -> Result<(), VhostError> {
        let value = std::ptr::from_mut(value);
        // SAFETY: the callers pair each request with the structure that it is defined for, which is
        // borrowed during the call. The addresses in it are of guest memory, which is mapped for as long
        // as the rings run: the worker that stops them holds it.
        let done = unsafe { libc::ioctl(self.vhost.as_raw_fd(), request, value) };
        check(done, what)
    }
}

fn check(done: libc::c_int, what: &'static str) -> Result<(), VhostError> {
    if done < 0 {
        let source = io::Error::last_os_error();
        return Err(VhostError::Refused { what, source });
    }
    Ok(())
}

fn table(memory: &GuestMemoryMmap) -> Result<MemoryTable, VhostError> {
    let mut table = MemoryTable {
        count: 0,
        padding: 0,
        regions: [MemoryRegion::default(); MAX_REGIONS],
    };
    let mut places = table.regions.iter_mut();
    for region in memory.iter() {
        let place = places.next().ok_or(VhostError::Memory)?;
        let host = region.get_host_address(MemoryRegionAddress(0));
        *place = MemoryRegion {
            guest_addr: region.start_addr().0,
            len: region.len(),
            user_addr: host.map_err(|_| VhostError::Memory)? as u64,
            flags: 0,
        };
        table.count += 1;
    }
    Ok(table)
}

/// A queue that the kernel serves.
pub(super) struct LentQueue {
    pub index: u16,
    /// As it was when it was lent.
    pub state: QueueState,
    pub kick: EventFd,
}

const POKE: u32 = 0;
const ERROR: u32 = 1;
const TIMER: u32 = 2;

/// Seconds between two looks at the tap device. The kernel tells of its end as of each frame, which is
/// not to wake anybody here.
const LOOK_EVERY: i64 = 2;

/// The worker of a pair while the kernel serves it.
pub(super) struct Lender {
    index: u16,
    pair: VhostPair,
    /// The receive queue and the transmit queue: the kernel's rings 0 and 1.
    queues: [LentQueue; 2],
    shared: Arc<Shared>,
    poke: EventFd,
    error: EventFd,
    timer: OwnedFd,
    connected: bool,
    to_guest: Offloads,
    /// The kernel has their addresses for as long as this lives.
    _memory: Arc<GuestMemoryMmap>,
}

/// What is left of a pair that was stopped.
pub(super) struct Returned {
    pub index: u16,
    pub pair: VhostPair,
    pub states: Vec<(u16, QueueState)>,
}

impl Lender {
    /// Hands the queues over.
    ///
    /// # Errors
    /// The pair comes back when the kernel refuses, or no eventfd is to be had.
    pub fn start(
        index: u16,
        mut pair: VhostPair,
        queues: [LentQueue; 2],
        (shared, memory): (&Arc<Shared>, &Arc<GuestMemoryMmap>),
        (interrupt, poke): (&EventFd, EventFd),
    ) -> Result<Self, (VhostPair, VhostError)> {
        let refused = |what| move |source| VhostError::Refused { what, source };
        let mut start = || -> Result<(EventFd, OwnedFd), VhostError> {
            let error = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(refused("an eventfd"))?;
            let timer = timer().map_err(refused("a timer"))?;
            pair.start(shared.features, memory)?;
            for (ring, queue) in (0..).zip(&queues) {
                pair.start_ring(ring, queue, memory, interrupt, &error)?;
            }
            let offloads = shared.to_guest();
            let set = pair.tap.set_offloads(offloads);
            set.map_err(refused("the tap device's offloads"))?;
            Ok((error, timer))
        };
        match start() {
            Ok((error, timer)) => Ok(Self {
                index,
                pair,
                queues,
                to_guest: shared.to_guest(),
                shared: Arc::clone(shared),
                poke,
                error,
                timer,
                connected: false,
                _memory: Arc::clone(memory),
            }),
            Err(error) => Err((pair, error)),
        }
    }

    /// Connects or disconnects the rings as the link and the driver have it.
    pub fn look(&mut self) -> Result<(), VhostError> {
        let refused = |source| VhostError::Refused {
            what: "the tap device's offloads",
            source,
        };
        let to_guest = self.shared.to_guest();
        if to_guest != self.to_guest {
            self.to_guest = to_guest;
            self.pair.tap.set_offloads(to_guest).map_err(refused)?;
        }
        let active = self.index < self.shared.active_pairs();
        let wanted = active && self.shared.link.is_up();
        if wanted == self.connected {
            return Ok(());
        }
        self.pair.tap.set_active(active).map_err(refused)?;
        for ring in 0..2 {
            self.pair.connect(ring, wanted)?;
        }
        self.connected = wanted;
        for queue in &self.queues {
            // For what the driver has sent before anybody waited; a full counter is a kick, too.
            let _ = queue.kick.write(1);
        }
        Ok(())
    }

    /// Takes the queues back.
    pub fn stop(self) -> Returned {
        let mut states = Vec::new();
        for (
            ring,
            LentQueue {
                index, mut state, ..
            },
        ) in (0..).zip(self.queues)
        {
            match self.pair.take_back(ring) {
                Ok(next) => {
                    // Everything that the kernel has taken it has also given back.
                    state.next_avail = next;
                    state.next_used = next;
                    states.push((index, state));
                }
                Err(error) => log::error!("{}: queue {index} is lost: {error}", self.shared.name),
            }
        }
        Returned {
            index: self.index,
            pair: self.pair,
            states,
        }
    }

    fn check_tap(&mut self) {
        // A timer that has not fired is no harm.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        if self.shared.link.closed().is_none() && has_ended(self.pair.tap.fd()) {
            let gone = io::Error::from_raw_os_error(libc::ENODEV);
            self.shared.closed(&gone);
            if let Err(error) = self.look() {
                self.shared.notifier.warn(&error);
            }
        }
    }
}

fn timer() -> io::Result<OwnedFd> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    let period = Timespec {
        tv_sec: LOOK_EVERY,
        tv_nsec: 0,
    };
    let time = Itimerspec {
        it_interval: period,
        it_value: period,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &time)?;
    Ok(timer)
}

impl Handler for Lender {
    fn sources(&self) -> Vec<Source> {
        let source = |fd, token| Source {
            fd,
            token,
            interest: Interest::READ,
        };
        vec![
            source(self.poke.as_raw_fd(), POKE),
            source(self.error.as_raw_fd(), ERROR),
            source(self.timer.as_raw_fd(), TIMER),
        ]
    }

    fn ready(&mut self, token: u32, _control: &mut Control<'_>) {
        match token {
            POKE => {
                // A poke that is not there any more is no harm.
                let _ = self.poke.read();
                if let Err(error) = self.look() {
                    self.shared.notifier.needs_reset(&error);
                }
            }
            ERROR => {
                let _ = self.error.read();
                let why = "the kernel cannot go on with a queue";
                self.shared.notifier.needs_reset(&why);
            }
            _ => self.check_tap(),
        }
    }
}
