//! The functions that the compiler calls for copying, filling and comparing memory, which a
//! program without libc has to bring along. The processor's string instructions are short, and
//! fast enough for the little that the agent moves.
#![allow(unsafe_code, reason = "the compiler calls these with raw pointers")]

use core::arch::asm;
use core::ffi::c_int;

/// # Safety
/// As C's `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(dest: *mut u8, src: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges; the ABI leaves the direction flag clear.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") dest => _, inout("rsi") src => _,
            options(nostack, preserves_flags));
    }
    dest
}

/// # Safety
/// As C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(dest: *mut u8, src: *const u8, len: usize) -> *mut u8 {
    if dest.addr().wrapping_sub(src.addr()) >= len {
        // SAFETY: copying upwards never overwrites a byte of `src` before it was read.
        return unsafe { memcpy(dest, src, len) };
    }
    let last = len.wrapping_sub(1);
    // SAFETY: the caller vouches for both ranges, which are not empty here; the direction flag is
    // clear again afterwards.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _,
            inout("rdi") dest.wrapping_add(last) => _, inout("rsi") src.wrapping_add(last) => _,
            options(nostack));
    }
    dest
}

/// # Safety
/// As C's `memset`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(dest: *mut u8, byte: c_int, len: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the range; the ABI leaves the direction flag clear.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") dest => _, in("eax") byte,
            options(nostack, preserves_flags));
    }
    dest
}

/// # Safety
/// As C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> c_int {
    for offset in 0..len {
        // SAFETY: the caller vouches for `len` bytes at both.
        let (a, b) = unsafe { (a.add(offset).read(), b.add(offset).read()) };
        if a != b {
            return c_int::from(a) - c_int::from(b);
        }
    }
    0
}

/// # Safety
/// As `memcmp`; only whether the result is zero counts.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> c_int {
    // SAFETY: as the caller's.
    unsafe { memcmp(a, b, len) }
}

/// # Safety
/// As C's `strlen`.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(string: *const u8) -> usize {
    // Not a loop, which the compiler would take for a call of this very function.
    let left: usize;
    // SAFETY: the caller vouches for all bytes up to the NUL; the ABI leaves the direction flag
    // clear.
    unsafe {
        asm!("repne scasb", inout("rcx") usize::MAX => left, inout("rdi") string => _,
            in("al") 0_u8, options(nostack, readonly));
    }
    // The NUL was counted, too.
    usize::MAX - left - 1
}
