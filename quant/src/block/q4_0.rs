//! `Q4_0`: 32 elements in 18 bytes, `x = d·q`, `q` in −8..=7.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::search::{self, Lanes};

/// 32 elements `d·(nibble − 8)`.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ4_0 {
    /// The scale.
    pub d: f16,
    /// Low nibbles: elements 0–15; high nibbles: elements 16–31.
    pub qs: [u8; 16],
}

super::block!(BlockQ4_0, Q4_0, 32);

/// Writes the block's elements.
#[inline(always)]
pub fn dequantize_block(block: &BlockQ4_0, out: &mut [f32; 32]) {
    let d = block.d.to_f32();
    for (i, q) in block.qs.iter().enumerate() {
        out[i] = d * f32::from((q & 15) as i8 - 8);
        out[i + 16] = d * f32::from((q >> 4) as i8 - 8);
    }
}

/// Scales the element of largest magnitude to −8 and rounds.
#[inline(always)]
pub fn quantize_block(x: &[f32; 32]) -> BlockQ4_0 {
    let d = search::extreme(x) / -8.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let q: [u8; 32] = std::array::from_fn(|i| search::cut(x[i] * inverse + 8.5).min(15));
    BlockQ4_0 { d: f16::from_f32(d), qs: pack(&q) }
}

/// Eight blocks at once, the least weighted squared error.
#[inline(always)]
pub(super) fn quantize_weighted(x: &Lanes<8, 32>, w: &Lanes<8, 32>) -> [BlockQ4_0; 8] {
    let (d, q) = search::scaled(x, w, -8.0, 7.0, &search::SIGNED_STARTS);
    std::array::from_fn(|j| BlockQ4_0 { d: d[j], qs: pack(&q[j].map(|q| q.wrapping_add(8))) })
}

/// Nibbles of elements 0–15 low, 16–31 high.
#[inline(always)]
pub(super) fn pack(q: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| (q[i] & 15) | (q[i + 16] << 4))
}
