//! The kernels for aarch64 on bytes and codes: siblings of [`super::portable`], file by file and function by function. Those on
//! numbers alone are in [`super::simd`].
//!
//! Kernels are written over [`Products`], the ways to multiply bytes: plain NEON, which every processor here has, and the dot
//! products of later ones. Their intrinsics are not stable yet; [`instructions`] has the few that are needed.

pub mod dot;
pub mod gemm;
mod instructions;
pub mod pack;
pub mod quantize;
pub mod resample;

use std::arch::aarch64::*;

/// A way to multiply bytes.
trait Products {
    /// Adds the products of 16 codes with 16 activations to four sums; which product goes to which sum is its own affair.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn add(sums: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t;
}

/// With NEON alone.
struct Plain;

impl Products for Plain {
    #[inline(always)]
    unsafe fn add(sums: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
        // A code is −128..=127 and an activation −127..=127, so that two products add up in 16 bits.
        // SAFETY: NEON is part of every aarch64 processor that runs this program.
        unsafe {
            let twos = vmlal_high_s8(vmull_s8(vget_low_s8(codes), vget_low_s8(x)), codes, x);
            vpadalq_s16(sums, twos)
        }
    }
}

/// With the dot products of four bytes.
struct DotProd;

impl Products for DotProd {
    #[inline(always)]
    unsafe fn add(sums: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the caller's promise.
        unsafe { instructions::sdot(sums, codes, x) }
    }
}
