//! `Q8_0`: 32 elements in 34 bytes, `x = d·q`, `q` in −127..=127.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::search::{self, Lanes};

/// 32 elements `d·qs[i]`.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ8_0 {
    /// The scale.
    pub d: f16,
    /// One number per element.
    pub qs: [i8; 32],
}

super::block!(BlockQ8_0, Q8_0, 32);

/// Writes the block's elements.
#[inline(always)]
pub fn dequantize_block(block: &BlockQ8_0, out: &mut [f32; 32]) {
    let d = block.d.to_f32();
    for (x, q) in out.iter_mut().zip(block.qs) {
        *x = f32::from(q) * d;
    }
}

/// Scales the largest magnitude to 127 and rounds, halves away from zero.
#[inline(always)]
pub fn quantize_block(x: &[f32; 32]) -> BlockQ8_0 {
    let mut lanes = [0.0f32; 8];
    for x in x.as_chunks::<8>().0 {
        for (a, x) in lanes.iter_mut().zip(x) {
            *a = if x.abs() > *a { x.abs() } else { *a };
        }
    }
    let d = lanes.iter().fold(0.0f32, |a, &b| a.max(b)) / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let mut qs = [0; 32];
    for (q, x) in qs.iter_mut().zip(x) {
        let v = x * inverse;
        let a = v.abs();
        // Infinite or NaN only when the scale is infinite or subnormal; it counts as zero.
        let a = if a < 256.0 { a } else { 0.0 };
        let whole = a as i32;
        let rounded = whole + i32::from(a - whole as f32 >= 0.5);
        *q = if v < 0.0 { -rounded } else { rounded } as i8;
    }
    BlockQ8_0 { d: f16::from_f32(d), qs }
}

/// Eight blocks at once, the least weighted squared error.
#[inline(always)]
pub(super) fn quantize_weighted(x: &Lanes<8, 32>, w: &Lanes<8, 32>) -> [BlockQ8_0; 8] {
    let (d, q) = search::scaled(x, w, -127.0, 127.0, &[(1.0, 0.0), (1.0, 0.4), (1.0, -0.4)]);
    std::array::from_fn(|j| BlockQ8_0 { d: d[j], qs: q[j].map(|q| q as i8) })
}
