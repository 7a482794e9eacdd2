//! `Q3_K`: 256 elements in 110 bytes, 16 sub-blocks of 16, `x = d·s·q`, `s` in −32..=31, `q` in −4..=3.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::{q2_k, search};

/// 256 elements `d·(s − 32)·q`, `s` per sub-block of 16, `q` two bits, less 4 where the mask bit is clear.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ3_K {
    /// The third bits: bit `h` of byte `l` is that of element `32·h + l`.
    pub hmask: [u8; 32],
    /// The low bits, laid out as in `Q2_K`.
    pub qs: [u8; 64],
    /// The 6-bit scales, see [`scales`].
    pub scales: [u8; 12],
    /// The scale of the scales.
    pub d: f16,
}

super::block!(BlockQ3_K, Q3_K, 256);

/// The scales of the 16 sub-blocks, −32..=31.
///
/// Low nibbles: bytes 0–7, sub-blocks 0–7 in their low and 8–15 in their high half; the two high bits of sub-block
/// `j`: bits `2·(j / 4)` of byte `8 + j % 4`.
#[inline(always)]
pub fn scales(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|j| {
        let low = packed[j % 8] >> (j / 8 * 4) & 15;
        let high = packed[8 + j % 4] >> (j / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// Writes the block's elements.
#[inline(always)]
pub fn dequantize_block(block: &BlockQ3_K, out: &mut [f32; 256]) {
    let (d, scales) = (block.d.to_f32(), scales(&block.scales));
    for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[j]);
        let (start, shift) = (j / 8 * 32 + j % 2 * 16, j % 8 / 2 * 2);
        for (i, x) in out.iter_mut().enumerate() {
            let low = (block.qs[start + i] >> shift & 3) as i8;
            let high = (block.hmask[j % 2 * 16 + i] >> (j / 2) & 1) as i8;
            *x = scale * f32::from(low - 4 * (1 - high));
        }
    }
}

/// The least squared error that the search finds, weighted by `weights` if any.
#[inline(always)]
pub fn quantize_block(x: &[f32; 256], weights: Option<&[f32; 256]>) -> BlockQ3_K {
    let found = search::signed_k::<16, 16>(x, weights, (-4.0, 3.0), (-32.0, 31.0), &search::SIGNED_COARSE_STARTS, 2);
    let q = found.q.map(|q| q.wrapping_add(4));
    let mut hmask = [0; 32];
    for (h, q) in q.as_chunks::<32>().0.iter().enumerate() {
        for (mask, q) in hmask.iter_mut().zip(q) {
            *mask |= (q >> 2 & 1) << h;
        }
    }
    BlockQ3_K { hmask, qs: q2_k::pack(&q), scales: pack_scales(&found.scales), d: found.d }
}

/// The inverse of [`scales`].
#[inline(always)]
fn pack_scales(scales: &[i8; 16]) -> [u8; 12] {
    let mut out = [0; 12];
    for (j, s) in scales.iter().enumerate() {
        let s = (s + 32) as u8;
        out[j % 8] |= (s & 15) << (j / 8 * 4);
        out[8 + j % 4] |= (s >> 4) << (j / 4 * 2);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_survive_packing() {
        for seed in 0..64usize {
            let s = std::array::from_fn(|j| ((seed * 13 + j * 29) % 64) as i8 - 32);
            assert_eq!(scales(&pack_scales(&s)), s);
        }
    }
}
