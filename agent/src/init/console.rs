//! The console, which is for the kernel's complaints and the agent's own.
#![allow(
    unsafe_code,
    reason = "the console's descriptor comes from the kernel, owned by nobody"
)]

use rustix::fd::BorrowedFd;
use rustix::termios::tcdrain;

/// The console, which the kernel opened for PID 1.
fn console() -> BorrowedFd<'static> {
    // SAFETY: the agent never closes its standard error. Had the kernel no console to open, then
    // whatever is done with this descriptor fails.
    unsafe { rustix::stdio::stderr() }
}

/// Writes a line, and waits until it is out. Nobody could be told if that failed.
pub(crate) fn print(line: &str) {
    let mut rest = line.as_bytes();
    while let Ok(written @ 1..) = rustix::io::write(console(), rest) {
        rest = rest.get(written..).unwrap_or_default();
    }
    let _ = tcdrain(console());
}
