//! Instructions whose intrinsics are not stable: the dot products of bytes (FEAT_DotProd) and products of 2×8 matrices of bytes
//! (FEAT_I8MM).
//!
//! The directive before an instruction lets the assembler know it, whatever processor the program is compiled for.

use std::arch::aarch64::*;
use std::arch::asm;

/// `sums[i] += Σ a[4·i + j] · b[4·i + j]` over `j` in 0..4.
///
/// # Safety
/// The processor has FEAT_DotProd.
#[inline(always)]
pub unsafe fn sdot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: an instruction on registers, which the caller promises.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// `sums[i] += Σ a[4·i + j] · b[4·PART + j]` over `j` in 0..4.
///
/// # Safety
/// The processor has FEAT_DotProd.
#[inline(always)]
pub unsafe fn sdot_part<const PART: usize>(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: an instruction on registers, which the caller promises.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.4b[{part}]",
            sums = inout(vreg) sums, a = in(vreg) a, b = in(vreg) b, part = const PART,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// `sums[2·i + j] += Σ a[8·i + k] · b[8·j + k]` over `k` in 0..8.
///
/// # Safety
/// The processor has FEAT_I8MM.
#[inline(always)]
pub unsafe fn smmla(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: an instruction on registers, which the caller promises.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "smmla {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
