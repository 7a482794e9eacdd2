//! `Q5_K`: 256 elements in 176 bytes, 8 sub-blocks of 32, `x = d·s·q − dmin·m`, `q` in 0..=31.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::{k_scales, pack_k_scales, q4_k, search};

/// 256 elements `d·s·q − dmin·m`, `s` and `m` per sub-block of 32.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ5_K {
    /// The scale of the scales.
    pub d: f16,
    /// The scale of the minima.
    pub dmin: f16,
    /// 6-bit scales and minima, see [`k_scales`].
    pub scales: [u8; 12],
    /// The fifth bits: bit `h` of byte `l` is that of element `32·h + l`.
    pub qh: [u8; 32],
    /// The low nibbles, laid out as in `Q4_K`.
    pub qs: [u8; 128],
}

super::block!(BlockQ5_K, Q5_K, 256);

/// Writes the block's elements.
#[inline(always)]
pub fn dequantize_block(block: &BlockQ5_K, out: &mut [f32; 256]) {
    let (d, dmin) = (block.d.to_f32(), block.dmin.to_f32());
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (s, m) = k_scales(&block.scales, j);
        let (scale, min) = (d * f32::from(s), dmin * f32::from(m));
        let (start, shift) = (j / 2 * 32, j % 2 * 4);
        for (i, x) in out.iter_mut().enumerate() {
            let q = (block.qs[start + i] >> shift & 15) | (block.qh[i] >> j & 1) << 4;
            *x = scale * f32::from(q) - min;
        }
    }
}

/// The least squared error that the search finds, weighted by `weights` if any.
#[inline(always)]
pub fn quantize_block(x: &[f32; 256], weights: Option<&[f32; 256]>) -> BlockQ5_K {
    let found = search::affine_k::<8, 32>(x, weights, 31.0, 63.0, &search::AFFINE_STARTS, 2);
    let mut qh = [0; 32];
    for (h, q) in found.q.as_chunks::<32>().0.iter().enumerate() {
        for (high, q) in qh.iter_mut().zip(q) {
            *high |= (q >> 4 & 1) << h;
        }
    }
    BlockQ5_K { d: found.d, dmin: found.dmin, scales: pack_k_scales(&found.scales), qh, qs: q4_k::pack(&found.q) }
}
