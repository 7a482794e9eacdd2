//! Activations to 8 bits: NEON. Results equal those of `portable/quantize.rs`.

use std::arch::aarch64::*;

use crate::cpu::portable::quantize::TINY;
use crate::cpu::q8::Q8RowMut;

/// See [`crate::cpu::portable::quantize::q8`].
pub fn q8(x: &[f32], out: Q8RowMut<'_>) {
    let (blocks, qs, sums) = (x.as_chunks::<32>().0, out.qs.as_chunks_mut::<32>().0, out.sums.as_chunks_mut::<2>().0);
    for (((x, q), d), sums) in blocks.iter().zip(qs).zip(out.d).zip(sums) {
        // SAFETY: NEON; a block holds the eight times 4 numbers read here, and its codes the twice 16 written.
        unsafe {
            let v: [float32x4_t; 8] = std::array::from_fn(|i| vld1q_f32(x.as_ptr().add(4 * i)));
            let magnitude = |i: usize| vandq_u32(vreinterpretq_u32_f32(v[i]), vdupq_n_u32(0x7fff_ffff));
            let two = |i: usize| vmaxq_u32(magnitude(i), magnitude(i + 1));
            let largest = f32::from_bits(vmaxvq_u32(vmaxq_u32(vmaxq_u32(two(0), two(2)), vmaxq_u32(two(4), two(6)))));
            if largest < TINY {
                (*q, *d, *sums) = ([0; 32], 0.0, [0; 2]);
                continue;
            }
            *d = largest / 127.0;
            let inverse = vdupq_n_f32(127.0 / largest);
            for (half, sum) in sums.iter_mut().enumerate() {
                // To the nearest, ties to even; what is no number becomes 0, as in a cast.
                let whole = |i: usize| vmovn_s32(vcvtnq_s32_f32(vmulq_f32(v[4 * half + i], inverse)));
                let (a, b) = (vcombine_s16(whole(0), whole(1)), vcombine_s16(whole(2), whole(3)));
                let codes = vcombine_s8(vmovn_s16(a), vmovn_s16(b));
                vst1q_s8(q.as_mut_ptr().add(16 * half), codes);
                *sum = vaddlvq_s8(codes);
            }
        }
    }
}
