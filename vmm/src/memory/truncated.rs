//! A mapped file that becomes shorter: whoever touches what is gone gets SIGBUS, which ends a process
//! that has no answer. Ours is a page of zeros in the place of the one that is gone. Only the guest
//! misses it, which asked for it, and its file system has checksums and limits of its own.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use vmm_sys_util::signal::register_signal_handler;

/// Mappings that are watched over. A machine has one; tests have some at once.
const PLACES: usize = 16;
/// First address and length of each, in bytes; an unused place has no length.
static MAPPINGS: [(AtomicUsize, AtomicUsize); PLACES] =
    [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; PLACES];
static NEXT: AtomicUsize = AtomicUsize::new(0);

const PAGE: usize = 4096;

/// From now on, the `len` bytes of a file that are mapped at `start` can be read even when the file
/// has none there any more.
pub(super) fn survive(start: usize, len: usize) -> io::Result<()> {
    let next = NEXT.fetch_add(1, Ordering::Relaxed) % PLACES;
    if let Some((place, length)) = MAPPINGS.get(next) {
        length.store(0, Ordering::SeqCst);
        place.store(start, Ordering::SeqCst);
        length.store(len, Ordering::SeqCst);
    }
    register_signal_handler(libc::SIGBUS, on_bus_error).map_err(io::Error::from)
}

/// The page of a watched mapping that `addr` is in.
fn page_of(addr: usize) -> Option<usize> {
    let inside = MAPPINGS.iter().any(|(start, len)| {
        let (start, len) = (start.load(Ordering::SeqCst), len.load(Ordering::SeqCst));
        addr.checked_sub(start).is_some_and(|offset| offset < len)
    });
    inside.then_some(addr / PAGE * PAGE)
}

extern "C" fn on_bus_error(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo, which for SIGBUS has an address. mmap(2) is a plain
    // system call; the page is one of a mapping that its owner knows can be replaced so, and there
    // are no references into it. signal(2) may be called here.
    unsafe {
        if let Some(page) = page_of((*info).si_addr() as usize) {
            let zeros = libc::mmap(
                page as *mut libc::c_void,
                PAGE,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            );
            if zeros != libc::MAP_FAILED {
                return;
            }
        }
        // Somebody else's: it comes again, and ends the process as if this were not here.
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
}
