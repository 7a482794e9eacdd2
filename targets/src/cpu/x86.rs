//! The kernels for x86-64 on bytes and codes: siblings of [`super::portable`], file by file and function by function. Those on
//! numbers alone are in [`super::simd`].
//!
//! A file holds up to four modules, `avx2`, `avxvnni`, `avx512` and `vnni`, as [`super::isa::Isa`] names them. Floats use
//! fused multiply-add throughout, which the portable kernels do not; integer sums are the same everywhere.

#![allow(clippy::needless_range_loop)] // register tiles read best by index

pub mod dot;
pub mod gemm;
pub mod pack;
pub mod quantize;
pub mod resample;

/// The same number, of which the compiler forgets how it was made: it would otherwise put numbers that are shifted
/// together in general registers together in vectors, where shuffles are scarce, with false dependencies on top.
#[inline(always)]
fn opaque(mut v: u64) -> u64 {
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) v, options(pure, nomem, nostack, preserves_flags));
    }
    v
}
