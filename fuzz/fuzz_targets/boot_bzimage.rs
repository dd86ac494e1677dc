//! A bzImage with any header is refused or planned safely.
#![no_main]

use casita_boot::Cmdline;
use casita_fuzz::boot::plan_kernel;
use libfuzzer_sys::fuzz_target;

const MAGIC: &[(usize, &[u8])] = &[(0x1fe, &[0x55, 0xaa]), (0x202, b"HdrS")];

fuzz_target!(|data: &[u8]| {
    let cmdline = Cmdline::new("console=ttyS0 quiet").unwrap_or_default();
    plan_kernel(data, MAGIC, &cmdline);
});
