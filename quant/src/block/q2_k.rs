//! `Q2_K`: 256 elements in 84 bytes, 16 sub-blocks of 16, `x = d·s·q − dmin·m`, `q` in 0..=3.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::search;

/// 256 elements `d·s·q − dmin·m`, `s` and `m` per sub-block of 16.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ2_K {
    /// One byte per sub-block: low nibble the scale, high nibble the minimum.
    pub scales: [u8; 16],
    /// Two bytes' worth of bits per eight elements: byte `32·h + l` holds elements `128·h + l + {0, 32, 64, 96}`, lowest bits first.
    pub qs: [u8; 64],
    /// The scale of the scales.
    pub d: f16,
    /// The scale of the minima.
    pub dmin: f16,
}

super::block!(BlockQ2_K, Q2_K, 256);

/// Writes the block's elements.
#[inline(always)]
pub fn dequantize_block(block: &BlockQ2_K, out: &mut [f32; 256]) {
    let (d, dmin) = (block.d.to_f32(), block.dmin.to_f32());
    for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(block.scales[j] & 15);
        let min = dmin * f32::from(block.scales[j] >> 4);
        let (start, shift) = (j / 8 * 32 + j % 2 * 16, j % 8 / 2 * 2);
        for (i, x) in out.iter_mut().enumerate() {
            *x = scale * f32::from(block.qs[start + i] >> shift & 3) - min;
        }
    }
}

/// The least squared error that the search finds, weighted by `weights` if any.
#[inline(always)]
pub fn quantize_block(x: &[f32; 256], weights: Option<&[f32; 256]>) -> BlockQ2_K {
    let found = search::affine_k::<16, 16>(x, weights, 3.0, 15.0, &search::COARSE_STARTS, 3);
    BlockQ2_K {
        scales: std::array::from_fn(|j| found.scales[j].0 | found.scales[j].1 << 4),
        qs: pack(&found.q),
        d: found.d,
        dmin: found.dmin,
    }
}

/// The low two bits of each number, four to a byte.
#[inline(always)]
pub(super) fn pack(q: &[u8; 256]) -> [u8; 64] {
    let mut out = [0; 64];
    for (out, q) in out.as_chunks_mut::<32>().0.iter_mut().zip(q.as_chunks::<128>().0) {
        for l in 0..32 {
            out[l] = (q[l] & 3) | (q[l + 32] & 3) << 2 | (q[l + 64] & 3) << 4 | (q[l + 96] & 3) << 6;
        }
    }
    out
}
