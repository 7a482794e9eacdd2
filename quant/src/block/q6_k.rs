//! `Q6_K`: 256 elements in 210 bytes, 16 sub-blocks of 16, `x = d·s·q`, `s` in −128..=127, `q` in −32..=31.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::search;

/// 256 elements `d·s·(q − 32)`, `s` per sub-block of 16.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ6_K {
    /// Low nibbles. Byte `64·h + l`: elements `128·h + l` (low half) and `128·h + 64 + l` (high half).
    pub ql: [u8; 128],
    /// High bits. Byte `32·h + l`: elements `128·h + l + {0, 32, 64, 96}`, lowest bits first.
    pub qh: [u8; 64],
    /// One scale per sub-block.
    pub scales: [i8; 16],
    /// The scale of the scales.
    pub d: f16,
}

super::block!(BlockQ6_K, Q6_K, 256);

/// Writes the block's elements.
#[inline(always)]
pub fn dequantize_block(block: &BlockQ6_K, out: &mut [f32; 256]) {
    let d = block.d.to_f32();
    for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(block.scales[j]);
        let (half, part, start) = (j / 8, j % 8 / 2, j % 2 * 16);
        let ql = 64 * half + 32 * (part % 2) + start;
        let qh = 32 * half + start;
        for (i, x) in out.iter_mut().enumerate() {
            let low = block.ql[ql + i] >> (part / 2 * 4) & 15;
            let high = block.qh[qh + i] >> (2 * part) & 3;
            *x = scale * f32::from((low | high << 4) as i8 - 32);
        }
    }
}

/// The least squared error that the search finds, weighted by `weights` if any.
#[inline(always)]
pub fn quantize_block(x: &[f32; 256], weights: Option<&[f32; 256]>) -> BlockQ6_K {
    let found = search::signed_k::<16, 16>(x, weights, (-32.0, 31.0), (-128.0, 127.0), &search::SIGNED_STARTS, 1);
    let (mut ql, mut qh) = ([0; 128], [0; 64]);
    let q = found.q.map(|q| q.wrapping_add(32));
    for (h, q) in q.as_chunks::<128>().0.iter().enumerate() {
        let (ql, qh) = (&mut ql[64 * h..][..64], &mut qh[32 * h..][..32]);
        for l in 0..64 {
            ql[l] = (q[l] & 15) | q[l + 64] << 4;
        }
        for l in 0..32 {
            qh[l] = q[l] >> 4 | (q[l + 32] >> 4) << 2 | (q[l + 64] >> 4) << 4 | (q[l + 96] >> 4) << 6;
        }
    }
    BlockQ6_K { ql, qh, scales: found.scales, d: found.d }
}
