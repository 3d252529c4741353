//! The functions that compiled code expects of a C library.
//!
//! String instructions, as loops would be compiled into calls of these very functions.

use core::arch::asm;
use core::ffi::c_int;

/// `memcpy(3)`.
///
/// # Safety
/// Both areas must be valid for `count` bytes and must not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both areas; the direction flag is clear, as the ABI demands.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// `memmove(3)`.
///
/// # Safety
/// Both areas must be valid for `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: the caller vouches for both areas; copied upwards, no byte is overwritten before
        // it is read.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: the caller vouches for both areas; copied downwards from their last bytes, for which
    // reason `count` is not 0 here; the direction flag is clear again afterwards.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _,
            inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// `memset(3)`.
///
/// # Safety
/// The area must be valid for `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: c_int, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the area; the direction flag is clear, as the ABI demands.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") value as u8,
            options(nostack, preserves_flags));
    }
    to
}

/// `memcmp(3)`.
///
/// # Safety
/// Both areas must be valid for `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> c_int {
    for n in 0..count {
        // SAFETY: `n` is below `count`, for which the caller vouches.
        let left = unsafe { a.wrapping_add(n).read_volatile() };
        // SAFETY: as above.
        let right = unsafe { b.wrapping_add(n).read_volatile() };
        if left != right {
            return c_int::from(left) - c_int::from(right);
        }
    }
    0
}

/// `bcmp(3)`, which the compiler calls where only equality counts.
///
/// # Safety
/// Both areas must be valid for `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> c_int {
    // SAFETY: the caller vouches for both areas.
    unsafe { memcmp(a, b, count) }
}

/// Named by the core library, which was compiled for programs that unwind; never called.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
