//! The available and the used ring where they are in the host's memory, sections 2.7.6 to 2.7.10.
//!
//! They are found in guest memory once, when the queue starts. After that an access is one load or
//! one store.
#![allow(
    unsafe_code,
    reason = "the rings are memory that the guest has too; here alone they are raw pointers"
)]
#![deny(clippy::indexing_slicing)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

use super::QueueState;

/// Bytes of flags and index at the start of a ring.
const START: usize = 4;
const INDEX: usize = 2;
const HEAD_SIZE: usize = 2;
const USED_SIZE: usize = 8;

/// Both rings of a queue.
#[derive(Debug)]
pub(super) struct Rings {
    available: Area,
    used: Area,
    size: usize,
}

impl Rings {
    /// The rings of a queue whose settings are valid.
    ///
    /// # Errors
    /// One of them is not in one mapping of RAM.
    pub fn new(
        memory: &Arc<GuestMemoryMmap>,
        state: &QueueState,
    ) -> Result<Self, GuestMemoryError> {
        let size = usize::from(state.size);
        // The flags and the index, the entries, and the event field.
        let available = START + HEAD_SIZE * size + 2;
        let used = START + USED_SIZE * size + 2;
        Ok(Self {
            available: Area::new(memory, state.avail_ring, available)?,
            used: Area::new(memory, state.used_ring, used)?,
            size,
        })
    }

    /// The driver's index. What it wrote before the index is seen after this.
    pub fn available_index(&self) -> u16 {
        let index = self.available.half(INDEX).load(Ordering::Acquire);
        u16::from_le(index)
    }

    /// The driver's flags.
    pub fn available_flags(&self) -> u16 {
        u16::from_le(self.available.half(0).load(Ordering::Relaxed))
    }

    /// The head that the driver wrote for `index`.
    pub fn head(&self, index: u16) -> u16 {
        let at = START + HEAD_SIZE * self.slot(index);
        u16::from_le(self.available.half(at).load(Ordering::Relaxed))
    }

    /// The used index at which the driver wants an interrupt.
    pub fn used_event(&self) -> u16 {
        let at = START + HEAD_SIZE * self.size;
        u16::from_le(self.available.half(at).load(Ordering::Relaxed))
    }

    /// Writes the used element of `index`, which the driver does not look at yet.
    pub fn set_used(&self, index: u16, head: u16, len: u32) {
        let at = START + USED_SIZE * self.slot(index);
        let id = u32::from(head).to_le();
        self.used.word(at).store(id, Ordering::Relaxed);
        self.used.word(at + 4).store(len.to_le(), Ordering::Relaxed);
    }

    /// Lets the driver see all elements before `index`, and what was written into their chains.
    pub fn set_used_index(&self, index: u16) {
        self.used
            .half(INDEX)
            .store(index.to_le(), Ordering::Release);
    }

    /// Writes the device's flags.
    pub fn set_used_flags(&self, flags: u16) {
        self.used.half(0).store(flags.to_le(), Ordering::Relaxed);
    }

    /// Writes the available index at which the device wants a kick.
    pub fn set_available_event(&self, index: u16) {
        let at = START + USED_SIZE * self.size;
        self.used.half(at).store(index.to_le(), Ordering::Relaxed);
    }

    /// The size is a power of two.
    fn slot(&self, index: u16) -> usize {
        usize::from(index) & (self.size - 1)
    }
}

/// A part of guest memory, mapped for as long as this lives.
#[derive(Debug)]
struct Area {
    base: *mut u8,
    len: usize,
    /// Keeps it mapped.
    _memory: Arc<GuestMemoryMmap>,
}

// SAFETY: the pointer points into `_memory`, which is Send and Sync; all accesses are atomic.
unsafe impl Send for Area {}

impl Area {
    fn new(memory: &Arc<GuestMemoryMmap>, addr: u64, len: usize) -> Result<Self, GuestMemoryError> {
        let slice = memory.get_slice(GuestAddress(addr), len)?;
        Ok(Self {
            base: slice.ptr_guard_mut().as_ptr(),
            len,
            _memory: Arc::clone(memory),
        })
    }

    /// The 16 bits at `at`.
    fn half(&self, at: usize) -> &AtomicU16 {
        // SAFETY: `place` has checked it; guest memory is only accessed atomically, as volatile slices
        // and by the kernel.
        unsafe { AtomicU16::from_ptr(self.place::<u16>(at)) }
    }

    /// The 32 bits at `at`.
    fn word(&self, at: usize) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.place::<u32>(at)) }
    }

    /// A pointer that is aligned and inside, whose memory stays mapped for as long as `self` is borrowed.
    fn place<T>(&self, at: usize) -> *mut T {
        let fits = at
            .checked_add(size_of::<T>())
            .is_some_and(|end| end <= self.len);
        let place = self.base.wrapping_add(at).cast::<T>();
        assert!(fits && place.is_aligned(), "{at} is not in the ring");
        place
    }
}
