//! Activations to 8 bits.

use crate::cpu::q8::Q8RowMut;

/// The least magnitude that is not taken for zero: far below any activation, far above where `127 / x` overflows.
pub const TINY: f32 = 1e-30;

/// Blocks of 32: `d = max |x| / 127`, `q = round(x · 127 / max |x|)`, ties to even.
///
/// A block with an infinity or NaN gets such a scale, so that the fault shows in every result it touches.
pub fn q8(x: &[f32], out: Q8RowMut<'_>) {
    let (blocks, qs, sums) = (x.as_chunks::<32>().0, out.qs.as_chunks_mut::<32>().0, out.sums.as_chunks_mut::<2>().0);
    for (((x, q), d), sums) in blocks.iter().zip(qs).zip(out.d).zip(sums) {
        // Magnitudes compare as integers, with NaN above infinity.
        let largest = f32::from_bits(x.iter().map(|v| v.to_bits() & 0x7fff_ffff).fold(0, u32::max));
        if largest < TINY {
            (*q, *d, *sums) = ([0; 32], 0.0, [0; 2]);
            continue;
        }
        *d = largest / 127.0;
        let inverse = 127.0 / largest;
        for (q, &x) in q.iter_mut().zip(x) {
            *q = (x * inverse).round_ties_even() as i8;
        }
        for (sum, half) in sums.iter_mut().zip(q.as_chunks::<16>().0) {
            *sum = half.iter().map(|&v| i16::from(v)).sum();
        }
    }
}

/// The low row of [`FineRow`](crate::cpu::q8::FineRow), from the codes and scales that [`q8`] made of `x`: what they leave
/// over, in 256ths of their step, ties to even. Where that would be ±128, half a step, it is ±127.
///
/// Plain products and sums, so that it is the same on every instruction set.
pub fn low(x: &[f32], qs: &[i8], d: &[f32], out: Q8RowMut<'_>) {
    /// Adding and taking off this number rounds what is far smaller to a whole number, ties to even.
    const WHOLE: f32 = 12_582_912.0;
    let (blocks, qs) = (x.as_chunks::<32>().0.iter().zip(qs.as_chunks::<32>().0), out.qs.as_chunks_mut::<32>().0);
    for (((((x, high), &d), q), out_d), sums) in blocks.zip(d).zip(qs).zip(out.d).zip(out.sums.as_chunks_mut::<2>().0) {
        *out_d = d / 256.0;
        let inverse = if d > 0.0 { 256.0 / d } else { 0.0 };
        for ((q, x), &high) in q.iter_mut().zip(x).zip(high) {
            let left = (x - d * f32::from(high)) * inverse;
            *q = (left.clamp(-127.0, 127.0) + WHOLE - WHOLE) as i8;
        }
        for (sum, half) in sums.iter_mut().zip(q.as_chunks::<16>().0) {
            *sum = half.iter().map(|&v| i16::from(v)).sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantized(x: &[f32]) -> (Vec<i8>, Vec<f32>, Vec<i16>) {
        let (mut qs, mut d, mut sums) = (vec![99; x.len()], vec![9.0; x.len() / 32], vec![99; x.len() / 16]);
        q8(x, Q8RowMut { qs: &mut qs, d: &mut d, sums: &mut sums });
        (qs, d, sums)
    }

    #[test]
    fn extremes_reach_127_and_errors_stay_below_half_a_step() {
        let x: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 31.0) * 0.37).collect();
        let (qs, d, sums) = quantized(&x);
        for (b, block) in x.chunks(32).enumerate() {
            let largest = block.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(qs[32 * b..32 * b + 32].iter().any(|q| q.unsigned_abs() == 127));
            assert!((d[b] - largest / 127.0).abs() < 1e-9);
        }
        for (i, &v) in x.iter().enumerate() {
            assert!((v - d[i / 32] * f32::from(qs[i])).abs() <= d[i / 32] * 0.5001, "{i}");
        }
        assert_eq!(sums[1], qs[16..32].iter().map(|&q| i16::from(q)).sum::<i16>());
    }

    #[test]
    fn low_codes_take_what_high_ones_leave_over() {
        let mut x: Vec<f32> = (0..128).map(|i| ((i * 37 % 96) as f32 - 47.3) * 0.11 * if i < 32 { 1e-4 } else { 1.0 }).collect();
        x[96..].fill(1e-38);
        x[64] = 127.0; // a step of 1
        (x[65], x[66], x[67]) = (0.5, 3.0 + 1.0 / 256.0, -1.25);
        let (qs, d, _) = quantized(&x);
        let (mut low_qs, mut low_d, mut sums) = (vec![99; 128], vec![9.0; 4], vec![99; 8]);
        low(&x, &qs, &d, Q8RowMut { qs: &mut low_qs, d: &mut low_d, sums: &mut sums });
        for (i, &v) in x.iter().enumerate() {
            let code = 256.0 * f64::from(qs[i]) + f64::from(low_qs[i]);
            let off = (f64::from(v) - f64::from(low_d[i / 32]) * code).abs();
            // Half a step, or a whole one where a code would be 128.
            let steps = if low_qs[i].unsigned_abs() == 127 { 1.01 } else { 0.51 };
            assert!(off <= f64::from(low_d[i / 32]) * steps + 2e-38, "{i}: {v} is off by {off}");
        }
        assert_eq!((low_d[2], low_qs[65], low_qs[66], low_qs[67]), (1.0 / 256.0, 127, 1, -64));
        assert_eq!((&low_qs[96..], low_d[3]), ([0; 32].as_slice(), 0.0));
        assert_eq!(sums[3], low_qs[48..64].iter().map(|&q| i16::from(q)).sum::<i16>());
        // A fault shows in the scale.
        let faults = [f32::NAN; 32];
        low(&faults, &[0; 32], &[f32::NAN], Q8RowMut { qs: &mut low_qs[..32], d: &mut low_d[..1], sums: &mut sums[..2] });
        assert!(low_d[0].is_nan());
    }

    #[test]
    fn zeros_and_faults() {
        let (qs, d, sums) = quantized(&[1e-38; 32]);
        assert!(qs.iter().all(|&q| q == 0) && d == [0.0] && sums == [0, 0]);
        let mut x = [1.0; 32];
        x[7] = f32::NAN;
        assert!(quantized(&x).1[0].is_nan());
        x[7] = f32::INFINITY;
        assert_eq!(quantized(&x).1, [f32::INFINITY]);
    }
}
