//! `Q5_0`: 32 elements in 22 bytes, `x = d·q`, `q` in −16..=15.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::q4_0::pack;
use super::search::{self, Lanes};

/// 32 elements `d·(q − 16)`, `q` being a nibble with a fifth bit on top.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ5_0 {
    /// The scale.
    pub d: f16,
    /// The fifth bits: bit `i` of the little-endian word is element `i`'s.
    pub qh: [u8; 4],
    /// Low nibbles: elements 0–15; high nibbles: elements 16–31.
    pub qs: [u8; 16],
}

super::block!(BlockQ5_0, Q5_0, 32);

/// Writes the block's elements.
#[inline(always)]
pub fn dequantize_block(block: &BlockQ5_0, out: &mut [f32; 32]) {
    let d = block.d.to_f32();
    let q = unpack(&block.qh, &block.qs);
    for (x, q) in out.iter_mut().zip(q) {
        *x = d * f32::from(q as i8 - 16);
    }
}

/// Scales the element of largest magnitude to −16 and rounds.
#[inline(always)]
pub fn quantize_block(x: &[f32; 32]) -> BlockQ5_0 {
    let d = search::extreme(x) / -16.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let q: [u8; 32] = std::array::from_fn(|i| search::cut(x[i] * inverse + 16.5).min(31));
    BlockQ5_0 { d: f16::from_f32(d), qh: fifth_bits(&q), qs: pack(&q) }
}

/// Eight blocks at once, the least weighted squared error.
#[inline(always)]
pub(super) fn quantize_weighted(x: &Lanes<8, 32>, w: &Lanes<8, 32>) -> [BlockQ5_0; 8] {
    let (d, q) = search::scaled(x, w, -16.0, 15.0, &search::SIGNED_STARTS);
    std::array::from_fn(|j| {
        let q = q[j].map(|q| q.wrapping_add(16));
        BlockQ5_0 { d: d[j], qh: fifth_bits(&q), qs: pack(&q) }
    })
}

/// The 5-bit numbers of a block, 0..=31.
#[inline(always)]
pub(super) fn unpack(qh: &[u8; 4], qs: &[u8; 16]) -> [u8; 32] {
    let high = u32::from_le_bytes(*qh);
    std::array::from_fn(|i| {
        let nibble = if i < 16 { qs[i] & 15 } else { qs[i - 16] >> 4 };
        nibble | ((high >> i) as u8 & 1) << 4
    })
}

/// The fifth bit of each number, as a little-endian word.
#[inline(always)]
pub(super) fn fifth_bits(q: &[u8; 32]) -> [u8; 4] {
    let mut word = 0u32;
    for (i, q) in q.iter().enumerate() {
        word |= u32::from(q >> 4 & 1) << i;
    }
    word.to_le_bytes()
}
