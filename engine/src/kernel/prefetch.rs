//! The one hint that the kernel gives the processor: "this line is needed soon".
//!
//! A decision at 10 M members is one random read in a few hundred megabytes. A shard that knows
//! its next batch hides most of that wait behind the decisions before it.

#![allow(unsafe_code, reason = "the prefetch instruction has no safe form in the standard library")]

/// Bytes of a cache line.
const LINE_LEN: usize = 64;

/// Asks for `count` cache lines from `at` on.
#[inline]
pub(super) fn prefetch_lines<T>(at: *const T, count: usize) {
    for line in 0..count {
        prefetch(at.cast::<u8>().wrapping_add(LINE_LEN * line));
    }
}

/// Asks for the cache line at `at`. Never reads or writes, whatever the address.
#[inline(always)]
#[allow(clippy::inline_always, reason = "a call would cost more than the instruction")]
fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: PREFETCHT0 is a hint: it does not fault on any address and changes no memory, and
    // SSE is part of every x86_64 processor.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
