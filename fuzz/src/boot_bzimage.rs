//! A bzImage with any header is refused or planned safely.

use casita_boot::Cmdline;
use crate::boot::plan_kernel;

const MAGIC: &[(usize, &[u8])] = &[(0x1fe, &[0x55, 0xaa]), (0x202, b"HdrS")];

/// One input.
pub fn run(data: &[u8]) {
    let cmdline = Cmdline::new("console=ttyS0 quiet").unwrap_or_default();
    plan_kernel(data, MAGIC, &cmdline);
}
