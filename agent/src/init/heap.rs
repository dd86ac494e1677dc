//! The heap: it grows and gives nothing back, for the agent reads one spec and runs one command.
#![allow(unsafe_code, reason = "an allocator hands out raw memory")]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// Bytes that need no system call: zero pages of the program, which cost nothing until touched.
const FIRST: usize = 64 << 10;
/// The least that is asked of the kernel when they are used up.
const STEP: usize = 1 << 20;

#[repr(C, align(4096))]
struct First(UnsafeCell<[u8; FIRST]>);

// SAFETY: only the heap touches it, in a process of one thread.
unsafe impl Sync for First {}

static BYTES: First = First(UnsafeCell::new([0; FIRST]));

/// The unused part of the range that memory is taken from.
struct Free {
    next: *mut u8,
    left: usize,
}

struct Heap(UnsafeCell<Free>);

// SAFETY: the agent is a process of one thread and has no signal handlers.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new(Free {
    next: BYTES.0.get().cast(),
    left: FIRST,
}));

impl Free {
    fn take(&mut self, layout: Layout) -> *mut u8 {
        let padding = self.next.align_offset(layout.align());
        let Some(len) = padding.checked_add(layout.size()) else {
            return ptr::null_mut();
        };
        if len > self.left {
            return if self.grow(layout) {
                self.take(layout)
            } else {
                ptr::null_mut()
            };
        }
        let start = self.next.wrapping_add(padding);
        self.next = self.next.wrapping_add(len);
        self.left -= len;
        start
    }

    /// Goes on in fresh memory that has room for `layout`; what was left is given up.
    fn grow(&mut self, layout: Layout) -> bool {
        let Some(len) = layout.size().checked_add(layout.align()) else {
            return false;
        };
        let len = len.max(STEP);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, where the kernel likes it.
        let fresh = unsafe { mmap_anonymous(ptr::null_mut(), len, access, MapFlags::PRIVATE) };
        let Ok(fresh) = fresh else { return false };
        self.next = fresh.cast();
        self.left = len;
        true
    }
}

// SAFETY: each range is handed out once, aligned and large enough as `layout` asks.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one thread, and `take` does not call back.
        unsafe { (*self.0.get()).take(layout) }
    }

    unsafe fn dealloc(&self, _start: *mut u8, _layout: Layout) {}
}
