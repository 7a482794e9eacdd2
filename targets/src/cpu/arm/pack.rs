//! Up to 16 weight rows unpacked into a panel: NEON. Siblings of `gemm::pack` of the portable kernels, with the same results, but for the
//! order of codes where products of matrices want another.
//!
//! Blocks are taken apart by the portable code, which compilers turn into vectors well; what they do not see is that a panel is
//! a transpose of words.

use std::arch::aarch64::*;

use sphinx_quant::block::{BlockQ2_K, BlockQ3_K, BlockQ4_0, BlockQ4_1, BlockQ4_K, BlockQ5_0, BlockQ5_1, BlockQ5_K, BlockQ6_K, BlockQ8_0};

use crate::cpu::portable::gemm::{PANEL, PANEL_BLOCK, pack_with};

/// Four columns of 16 rows together: 4×4 transposes of words.
#[inline(always)]
fn transpose(rows: &[[u8; 256]; PANEL], first: usize, out: &mut [u8; PANEL_BLOCK]) {
    assert!(first + 32 <= 256);
    for half in 0..2 {
        for four in 0..PANEL / 4 {
            // SAFETY: NEON; 16 bytes at `first + 16 · half` are inside each row, as asserted, and 16 at `64 · (4 · half + i) + 16 ·
            // four` inside the 512 for `i` in 0..4.
            unsafe {
                let row = |r: usize| vreinterpretq_s32_u8(vld1q_u8(rows[4 * four + r].as_ptr().add(first + 16 * half)));
                let (a, b, c, d) = (row(0), row(1), row(2), row(3));
                let wide = |v| vreinterpretq_s64_s32(v);
                let (even, odd) = ((wide(vtrn1q_s32(a, b)), wide(vtrn1q_s32(c, d))), (wide(vtrn2q_s32(a, b)), wide(vtrn2q_s32(c, d))));
                let columns = [vtrn1q_s64(even.0, even.1), vtrn1q_s64(odd.0, odd.1), vtrn2q_s64(even.0, even.1), vtrn2q_s64(odd.0, odd.1)];
                for (i, column) in columns.into_iter().enumerate() {
                    vst1q_u8(out.as_mut_ptr().add(64 * (4 * half + i) + 16 * four), vreinterpretq_u8_s64(column));
                }
            }
        }
    }
}

/// Eight columns of 16 rows together, so that two rows are a matrix that goes into a product of matrices.
#[inline(always)]
fn transpose_eights(rows: &[[u8; 256]; PANEL], first: usize, out: &mut [u8; PANEL_BLOCK]) {
    assert!(first + 32 <= 256);
    for half in 0..2 {
        for two in 0..PANEL / 2 {
            // SAFETY: NEON; 16 bytes at `first + 16 · half` are inside each row, as asserted, and 16 at `128 · (2 · half + i) + 16 ·
            // two` inside the 512 for `i` in 0..2.
            unsafe {
                let row = |r: usize| vreinterpretq_u64_u8(vld1q_u8(rows[2 * two + r].as_ptr().add(first + 16 * half)));
                let (a, b) = (row(0), row(1));
                for (i, columns) in [vzip1q_u64(a, b), vzip2q_u64(a, b)].into_iter().enumerate() {
                    vst1q_u8(out.as_mut_ptr().add(128 * (2 * half + i) + 16 * two), vreinterpretq_u8_u64(columns));
                }
            }
        }
    }
}

macro_rules! packs {
    ($($name:ident: $block:ty;)*) => {
        $(
            /// See [`crate::cpu::portable::gemm::pack`].
            pub fn $name(w: &[$block], rows: usize, codes: &mut [u8], s: &mut [f32], m: &mut [f32]) {
                pack_with(w, rows, codes, s, m, transpose, |_| {});
            }
        )*

        /// The same with eight columns of a row together.
        pub mod eights {
            use super::*;

            $(
                /// See [`crate::cpu::portable::gemm::pack`].
                pub fn $name(w: &[$block], rows: usize, codes: &mut [u8], s: &mut [f32], m: &mut [f32]) {
                    pack_with(w, rows, codes, s, m, transpose_eights, |_| {});
                }
            )*
        }
    };
}
packs! {
    q4_0: BlockQ4_0;
    q4_1: BlockQ4_1;
    q5_0: BlockQ5_0;
    q5_1: BlockQ5_1;
    q8_0: BlockQ8_0;
    q2_k: BlockQ2_K;
    q3_k: BlockQ3_K;
    q4_k: BlockQ4_K;
    q5_k: BlockQ5_K;
    q6_k: BlockQ6_K;
}
