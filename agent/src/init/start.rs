//! The program's entry point.
#![allow(
    unsafe_code,
    reason = "the kernel enters a program with a stack and nothing else"
)]

/// Where the kernel enters the program: aligns the stack as the System V ABI wants it for a call,
/// and marks its outermost frame.
///
/// # Safety
/// For the kernel alone.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    core::arch::naked_asm!(
        "xor ebp, ebp",
        "and rsp, -16",
        "call {main}",
        "ud2",
        main = sym main,
    )
}

extern "C" fn main() -> ! {
    crate::run()
}
