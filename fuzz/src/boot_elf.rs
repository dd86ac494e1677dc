//! An ELF file with any headers is refused or planned safely.

use casita_boot::Cmdline;
use crate::boot::plan_kernel;

/// 64 bits, little-endian, an executable for x86-64, program headers of the right size.
const MAGIC: &[(usize, &[u8])] = &[
    (0, b"\x7fELF\x02\x01\x01"),
    (16, &[2, 0, 62, 0]),
    (54, &[56, 0]),
];

/// See [`plan_kernel`].
pub fn run(data: &[u8]) {
    plan_kernel(data, MAGIC, &Cmdline::default());
}
