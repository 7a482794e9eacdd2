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
