//! Softmax of rows of scores: AVX2, AVX-512 and NEON. Siblings of `portable/softmax.rs`.

/// `2^r = 1 + r · P(r)` for `|r| ≤ 1/2`: the coefficients of P, the highest first.
///
/// Source: `targets/fits/activations.py`.
#[allow(clippy::excessive_precision)] // as printed there
const EXP2: [f32; 6] =
    [0.00015453163359779865, 0.0013390863314270973, 0.009618083015084267, 0.055503569543361664, 0.24022650718688965, 0.6931471824645996];

macro_rules! kernels {
    ($name:ident, $features:literal) => {
        pub mod $name {
            use super::EXP2;
            use crate::cpu::simd::vector::$name::*;

            /// `2^x` of several vectors at a time for `x ≤ 0`, exactly 1 for 0; what vanishes becomes 10⁻³⁸. NaN stays.
            #[inline]
            #[target_feature(enable = $features)]
            pub fn exp2<const U: usize>(x: [V; U]) -> [V; U] {
                // `max` returns its second argument for NaN.
                let x = x.map(|x| max(splat(-126.0), x));
                let n = x.map(|x| round(x));
                let mut p = [splat(EXP2[0]); U];
                let r: [V; U] = std::array::from_fn(|i| sub(x[i], n[i]));
                for &c in &EXP2[1..] {
                    for i in 0..U {
                        p[i] = fma(p[i], r[i], splat(c));
                    }
                }
                for i in 0..U {
                    p[i] = scale_by_power(fma(p[i], r[i], splat(1.0)), n[i]);
                }
                p
            }

            /// See [`crate::cpu::portable::softmax::exp`].
            #[target_feature(enable = $features)]
            pub fn exp(scores: &mut [f32], stride: usize, width: usize, valid: &[usize], scale: f32, tops: &mut [f32], sums: &mut [f32]) {
                let scale = splat(scale * std::f32::consts::LOG2_E);
                for (((row, &valid), top), sum) in scores.chunks_mut(stride).zip(valid).zip(tops).zip(sums) {
                    let row = &mut row[..width];
                    // Whole vectors, as far as the row has them: what is filled up takes no part.
                    let whole = valid.next_multiple_of(N);
                    if valid == 0 || whole > width {
                        (*top, *sum) = few(row, valid, scale);
                        continue;
                    }
                    row[valid..whole].fill(f32::NEG_INFINITY);
                    let (fours, ones) = row[..whole].as_chunks_mut::<N>().0.as_chunks_mut::<4>();
                    let mut largest = [splat(f32::NEG_INFINITY); 4];
                    for v in &*fours {
                        for i in 0..4 {
                            largest[i] = max(largest[i], load(&v[i]));
                        }
                    }
                    for (v, largest) in ones.iter().zip(&mut largest) {
                        *largest = max(*largest, load(v));
                    }
                    *top = greatest(max(max(largest[0], largest[1]), max(largest[2], largest[3])));
                    let f = |v: V| mul(sub(v, splat(*top)), scale);
                    let mut totals = [splat(0.0); 4];
                    for v in fours {
                        let y = exp2([f(load(&v[0])), f(load(&v[1])), f(load(&v[2])), f(load(&v[3]))]);
                        for i in 0..4 {
                            store(&mut v[i], y[i]);
                            totals[i] = add(totals[i], y[i]);
                        }
                    }
                    for (v, total) in ones.iter_mut().zip(&mut totals) {
                        let [y] = exp2([f(load(v))]);
                        store(v, y);
                        *total = add(*total, y);
                    }
                    *sum = total(add(add(totals[0], totals[1]), add(totals[2], totals[3])));
                    row[valid..].fill(0.0);
                }
            }

            /// A row that ends within a vector, or has nothing valid.
            #[target_feature(enable = $features)]
            fn few(row: &mut [f32], valid: usize, scale: V) -> (f32, f32) {
                let (row, rest) = row.split_at_mut(valid);
                rest.fill(0.0);
                let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let mut sum = 0.0;
                for row in row.chunks_mut(N) {
                    let mut padded = [0f32; N];
                    padded[..row.len()].copy_from_slice(row);
                    let [y] = exp2([mul(sub(load(&padded), splat(top)), scale)]);
                    store(&mut padded, y);
                    row.copy_from_slice(&padded[..row.len()]);
                    sum += row.iter().sum::<f32>();
                }
                (top, sum)
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
kernels!(avx2, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
kernels!(avx512, "avx512f,avx512bw,avx512vl,avx512dq");
#[cfg(target_arch = "aarch64")]
kernels!(neon, "neon");
