//! `Q4_K`: 256 elements in 144 bytes, 8 sub-blocks of 32, `x = d·s·q − dmin·m`, `q` in 0..=15.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::{k_scales, pack_k_scales, search};

/// 256 elements `d·s·q − dmin·m`, `s` and `m` per sub-block of 32.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ4_K {
    /// The scale of the scales.
    pub d: f16,
    /// The scale of the minima.
    pub dmin: f16,
    /// 6-bit scales and minima, see [`k_scales`].
    pub scales: [u8; 12],
    /// Byte `32·p + l`: low nibble element `64·p + l`, high nibble element `64·p + 32 + l`.
    pub qs: [u8; 128],
}

super::block!(BlockQ4_K, Q4_K, 256);

/// Writes the block's elements.
#[inline(always)]
pub fn dequantize_block(block: &BlockQ4_K, out: &mut [f32; 256]) {
    let (d, dmin) = (block.d.to_f32(), block.dmin.to_f32());
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (s, m) = k_scales(&block.scales, j);
        let (scale, min) = (d * f32::from(s), dmin * f32::from(m));
        let (start, shift) = (j / 2 * 32, j % 2 * 4);
        for (i, x) in out.iter_mut().enumerate() {
            *x = scale * f32::from(block.qs[start + i] >> shift & 15) - min;
        }
    }
}

/// The least squared error that the search finds, weighted by `weights` if any.
#[inline(always)]
pub fn quantize_block(x: &[f32; 256], weights: Option<&[f32; 256]>) -> BlockQ4_K {
    let found = search::affine_k::<8, 32>(x, weights, 15.0, 63.0, &search::AFFINE_STARTS, 2);
    BlockQ4_K { d: found.d, dmin: found.dmin, scales: pack_k_scales(&found.scales), qs: pack(&found.q) }
}

/// The low nibble of each number, two to a byte.
#[inline(always)]
pub(super) fn pack(q: &[u8; 256]) -> [u8; 128] {
    let mut out = [0; 128];
    for (out, q) in out.as_chunks_mut::<32>().0.iter_mut().zip(q.as_chunks::<64>().0) {
        for l in 0..32 {
            out[l] = (q[l] & 15) | q[l + 32] << 4;
        }
    }
    out
}
