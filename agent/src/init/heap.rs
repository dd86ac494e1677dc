//! The heap: blocks of powers of two, kept for others of their size when they are freed. What is
//! larger is the kernel's business.
#![allow(unsafe_code, reason = "an allocator hands out raw memory")]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes that need no system call: zero pages of the program, which cost nothing until touched.
const FIRST: usize = 64 << 10;
/// What is asked of the kernel when they are used up.
const STEP: usize = 1 << 20;

/// The smallest block, and what all blocks are aligned to.
const LEAST: usize = 16;
/// How many sizes of blocks there are; the largest is 64 KiB.
const SIZES: usize = 13;

#[repr(C, align(4096))]
struct First(UnsafeCell<[u8; FIRST]>);

// SAFETY: only the heap touches it, in a process of one thread.
unsafe impl Sync for First {}

static BYTES: First = First(UnsafeCell::new([0; FIRST]));

/// A block that nobody uses; its first bytes point to the next one of its size.
#[repr(C, align(16))]
struct Block {
    next: *mut Block,
}

struct State {
    /// The unused part of the range that blocks are cut from.
    next: *mut u8,
    left: usize,
    /// Freed blocks of each size.
    freed: [*mut Block; SIZES],
}

struct Heap(UnsafeCell<State>);

// SAFETY: the agent is a process of one thread and has no signal handlers.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new(State {
    next: BYTES.0.get().cast(),
    left: FIRST,
    freed: [ptr::null_mut(); SIZES],
}));

/// Which size of blocks `layout` gets; `None` if it is the kernel's business.
fn size_index(layout: Layout) -> Option<usize> {
    if layout.align() > LEAST {
        return None;
    }
    let blocks = layout.size().max(LEAST).checked_next_power_of_two()? / LEAST;
    let index = blocks.trailing_zeros() as usize;
    (index < SIZES).then_some(index)
}

impl State {
    fn take(&mut self, index: usize) -> *mut u8 {
        let size = LEAST << index;
        let Some(first) = self.freed.get_mut(index) else {
            return ptr::null_mut();
        };
        let block = *first;
        if !block.is_null() {
            // SAFETY: `give` put it there, with the next one's address in its first bytes.
            *first = unsafe { (*block).next };
            return block.cast();
        }
        if size > self.left {
            // What was left is given up.
            let fresh = map(STEP);
            if fresh.is_null() {
                return fresh;
            }
            self.next = fresh;
            self.left = STEP;
        }
        let start = self.next;
        self.next = start.wrapping_add(size);
        self.left -= size;
        start
    }

    /// # Safety
    /// `block` came from `take` with the same `index`, and nobody uses it any more.
    unsafe fn give(&mut self, block: *mut Block, index: usize) {
        if let Some(first) = self.freed.get_mut(index) {
            // SAFETY: a block has room for this and is aligned for it.
            unsafe { block.write(Block { next: *first }) };
            *first = block;
        }
    }
}

/// Fresh zeroed memory from the kernel; null if it has none.
fn map(len: usize) -> *mut u8 {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, where the kernel likes it.
    let fresh = unsafe { mmap_anonymous(ptr::null_mut(), len, access, MapFlags::PRIVATE) };
    fresh.map_or(ptr::null_mut(), <*mut _>::cast)
}

// SAFETY: each range is handed out to one owner at a time, aligned and large enough as `layout`
// asks: blocks are aligned to the most that `size_index` lets through, mappings to a page. An
// alignment beyond that is refused.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match size_index(layout) {
            // SAFETY: one thread, and `take` does not call back.
            Some(index) => unsafe { (*self.0.get()).take(index) },
            None if layout.align() <= 4096 => map(layout.size()),
            None => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        match size_index(layout) {
            Some(index) => {
                #[allow(clippy::cast_ptr_alignment, reason = "all blocks are aligned so")]
                let block = start.cast();
                // SAFETY: one thread, and it came from `alloc` with the same layout.
                unsafe { (*self.0.get()).give(block, index) }
            }
            // SAFETY: a mapping of this length, which nobody uses any more.
            None => drop(unsafe { munmap(start.cast(), layout.size()) }),
        }
    }
}
