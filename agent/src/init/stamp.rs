//! The guest's end of [`casita_agent::ports`].
#![allow(unsafe_code, reason = "port I/O has no system call")]

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use casita_agent::ports::{EXIT_STATUS_PORT, PORT_COUNT, STAGE_PORT, Stage};

use crate::sys;

/// Whether the kernel lets this process use the ports. Without its permission an `out` would end
/// the process, so it is left out: the guest works, only the host learns less.
static CLAIMED: AtomicBool = AtomicBool::new(false);

/// Asks the kernel for the ports.
pub(crate) fn claim() {
    let claimed = sys::ioperm(STAGE_PORT, PORT_COUNT, true).is_ok();
    CLAIMED.store(claimed, Ordering::Relaxed);
}

/// Gives the ports up, so that a program that this process becomes does not have them.
pub(crate) fn drop_claim() {
    if CLAIMED.swap(false, Ordering::Relaxed) {
        let _ = sys::ioperm(STAGE_PORT, PORT_COUNT, false);
    }
}

/// Tells the host how far the guest has come.
pub(crate) fn stage(stage: Stage) {
    if CLAIMED.load(Ordering::Relaxed) {
        // SAFETY: the port is claimed, and writing it changes nothing in this process.
        unsafe {
            asm!("out dx, al", in("dx") STAGE_PORT, in("al") stage as u8,
                options(nostack, nomem, preserves_flags));
        }
    }
}

/// Tells the host the command's exit status.
pub(crate) fn exit_status(status: u8) {
    if CLAIMED.load(Ordering::Relaxed) {
        // SAFETY: as in `stage`.
        unsafe {
            asm!("out dx, eax", in("dx") EXIT_STATUS_PORT, in("eax") u32::from(status),
                options(nostack, nomem, preserves_flags));
        }
    }
}
