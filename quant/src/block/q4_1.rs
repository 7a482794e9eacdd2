//! `Q4_1`: 32 elements in 20 bytes, `x = d·q + m`, `q` in 0..=15.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::q4_0::pack;
use super::search::{self, Lanes};

/// 32 elements `d·nibble + m`.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ4_1 {
    /// The scale.
    pub d: f16,
    /// The least element.
    pub m: f16,
    /// Low nibbles: elements 0–15; high nibbles: elements 16–31.
    pub qs: [u8; 16],
}

super::block!(BlockQ4_1, Q4_1, 32);

/// Writes the block's elements.
#[inline(always)]
pub fn dequantize_block(block: &BlockQ4_1, out: &mut [f32; 32]) {
    let (d, m) = (block.d.to_f32(), block.m.to_f32());
    for (i, q) in block.qs.iter().enumerate() {
        out[i] = d * f32::from(q & 15) + m;
        out[i + 16] = d * f32::from(q >> 4) + m;
    }
}

/// Spreads 0..=15 from the least to the greatest element and rounds.
#[inline(always)]
pub fn quantize_block(x: &[f32; 32]) -> BlockQ4_1 {
    let (min, max) = search::ends(x);
    let d = (max - min) / 15.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let q: [u8; 32] = std::array::from_fn(|i| search::cut((x[i] - min) * inverse + 0.5).min(15));
    BlockQ4_1 { d: f16::from_f32(d), m: f16::from_f32(min), qs: pack(&q) }
}

/// Eight blocks at once, the least weighted squared error.
#[inline(always)]
pub(super) fn quantize_weighted(x: &Lanes<8, 32>, w: &Lanes<8, 32>) -> [BlockQ4_1; 8] {
    let (d, m, q) = search::shifted(x, w, 15.0, &search::AFFINE_STARTS);
    std::array::from_fn(|j| BlockQ4_1 { d: d[j], m: m[j], qs: pack(&q[j]) })
}
