//! Weighted sums of 8-bit pixels: NEON. Sibling of `portable/resample.rs`; sums are integers and match it exactly.

use std::arch::aarch64::*;

use crate::cpu::portable::resample::{FRACTION, whole};

/// See [`crate::cpu::portable::resample::across`]. A pixel is read with the byte behind it.
pub fn across(row: &[u8], firsts: &[u32], weights: &[i32], starts: &[[i32; 3]], out: &mut [u8]) {
    let taps = weights.len() / firsts.len();
    let outputs = out.as_chunks_mut::<3>().0.iter_mut().zip(firsts).zip(weights.chunks_exact(taps)).zip(starts);
    for (((out, &first), weights), &[a, b, c]) in outputs {
        let row = &row[first as usize * 3..][..taps * 3 + 1];
        // SAFETY: NEON; the array holds the 4 numbers read here.
        unsafe {
            let mut sums = vld1q_s32([a, b, c, 0].as_ptr());
            for (pixel, &weight) in row.windows(4).step_by(3).zip(weights) {
                let pixel = u32::from_le_bytes([pixel[0], pixel[1], pixel[2], pixel[3]]);
                let pixel = vget_low_u16(vmovl_u8(vcreate_u8(u64::from(pixel))));
                sums = vmlaq_n_s32(sums, vreinterpretq_s32_u32(vmovl_u16(pixel)), weight);
            }
            let samples = vqmovun_s32(vshrq_n_s32::<{ FRACTION as i32 }>(sums));
            let bytes = vget_lane_u32::<0>(vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(samples, samples)))).to_le_bytes();
            *out = [bytes[0], bytes[1], bytes[2]];
        }
    }
}

/// See [`crate::cpu::portable::resample::down`].
pub fn down(rows: &[&[u8]], weights: &[i32], start: [i32; 3], out: &mut [u8]) {
    /// Samples whose sums are made together: they begin at the same channel each time.
    const SAMPLES: usize = 48;
    let mut starts = [0; SAMPLES];
    starts.as_chunks_mut().0.fill(start);
    let (whole_parts, rest) = out.as_chunks_mut::<SAMPLES>();
    for (c, out) in whole_parts.iter_mut().enumerate() {
        // SAFETY: NEON; all places are inside the arrays, and `part` inside a row, as its slice says.
        unsafe {
            let mut sums: [int32x4_t; SAMPLES / 4] = std::array::from_fn(|v| vld1q_s32(starts.as_ptr().add(4 * v)));
            for (row, &weight) in rows.iter().zip(weights) {
                let part = &row[SAMPLES * c..][..SAMPLES];
                for (i, sums) in sums.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    let x = vld1q_u8(part.as_ptr().add(16 * i));
                    let halves = [vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x)];
                    for (j, sum) in sums.iter_mut().enumerate() {
                        let half = halves[j / 2];
                        let four = if j % 2 == 0 { vmovl_u16(vget_low_u16(half)) } else { vmovl_high_u16(half) };
                        *sum = vmlaq_n_s32(*sum, vreinterpretq_s32_u32(four), weight);
                    }
                }
            }
            for (i, sums) in sums.as_chunks::<4>().0.iter().enumerate() {
                let [a, b, c, d] = sums.map(|sum| vqmovun_s32(vshrq_n_s32::<{ FRACTION as i32 }>(sum)));
                let samples = vcombine_u8(vqmovn_u16(vcombine_u16(a, b)), vqmovn_u16(vcombine_u16(c, d)));
                vst1q_u8(out.as_mut_ptr().add(16 * i), samples);
            }
        }
    }
    let done = SAMPLES * whole_parts.len();
    for (i, out) in rest.iter_mut().enumerate() {
        let sum = rows.iter().zip(weights).fold(start[i % 3], |sum, (row, weight)| sum + weight * i32::from(row[done + i]));
        *out = whole(sum);
    }
}
