//! One heap for all threads.
//!
//! glibc gives each thread a heap of its own, of which a VM's dozen threads touch a few pages each and
//! never give one back. They allocate little once a guest runs: nothing that they would wait for.

#![allow(unsafe_code, reason = "mallopt has no safe wrapper")]

/// `M_ARENA_MAX` of glibc's malloc.h.
const ARENA_MAX: libc::c_int = -8;

/// From now on there is one heap. To be called before the first thread is started.
pub fn share() {
    // SAFETY: sets a number in the allocator; a refusal, of which there is no reason, changes nothing.
    unsafe { libc::mallopt(ARENA_MAX, 1) };
}
