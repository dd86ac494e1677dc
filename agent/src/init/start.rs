//! The program's entry point.
#![allow(
    unsafe_code,
    reason = "the kernel enters a program with a stack and nothing else"
)]

use casita_agent::ports::EXIT_AGENT_FAILED;

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

/// The library's code for heap memory is compiled so that it could unwind, and names these two.
/// Nothing unwinds here, so they are never called.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    crate::sys::exit(EXIT_AGENT_FAILED)
}

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() -> ! {
    crate::sys::exit(EXIT_AGENT_FAILED)
}
