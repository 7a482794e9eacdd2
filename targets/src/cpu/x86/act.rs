//! Activation functions, in place: AVX2 and AVX-512.
//!
//! Siblings of `portable/act.rs`, with polynomials for `exp` and `erfc` of relative errors below 1e-6; gelu's far tail
//! (below about −5), where its value is next to nothing, is less exact than that.

/// `erfc(z) = t · exp(−z² + P(t))` with `t = 1 / (1 + z/2)`: the coefficients of P, the highest first.
///
/// Source: `targets/fits/activations.py`.
#[allow(clippy::excessive_precision)] // as printed there
const ERFC: [f32; 10] = [
    0.1820451021194458,
    -0.8726416826248169,
    1.5835967063903809,
    -1.2317614555358887,
    0.3360064625740051,
    -0.20613956451416016,
    0.10065419971942902,
    0.3737148344516754,
    1.0000377893447876,
    -1.2655123472213745,
];

/// `exp(r) = 1 + r + r² · P(r)` for `|r| ≤ ln 2 / 2`: the coefficients of P, the highest first.
///
/// Source: `targets/fits/activations.py`.
#[allow(clippy::excessive_precision)] // as printed there
const EXP: [f32; 6] = [0.00019890980911441147, 0.0013933641603216529, 0.00833331048488617, 0.04166646674275398, 0.1666666716337204, 0.5];

/// ln 2 in two pieces, the first so short that a whole number times it is exact.
#[allow(clippy::excessive_precision)] // exactly these bits
const LN_2_HIGH: f32 = 0.693359375;
const LN_2_LOW: f32 = -2.121_944_4e-4;

macro_rules! kernels {
    ($name:ident, $features:literal) => {
        pub mod $name {
            use super::{ERFC, EXP, LN_2_HIGH, LN_2_LOW};
            use crate::cpu::x86::vector::$name::*;

            /// `exp` of several vectors at a time, so that one's delays are another's work; what overflows becomes
            /// 2·10³⁸ and what vanishes 10⁻³⁸. NaN stays.
            #[inline]
            #[target_feature(enable = $features)]
            pub fn exp<const U: usize>(x: [V; U]) -> [V; U] {
                // 88.3 and −87.3 are where 2^127 and 2^−126 are left behind; max and min return their second
                // argument for NaN.
                let x = x.map(|x| max(splat(-87.3), min(splat(88.3), x)));
                let n = x.map(|x| round(mul(x, splat(std::f32::consts::LOG2_E))));
                let mut r = x;
                for i in 0..U {
                    r[i] = fma(n[i], splat(-LN_2_HIGH), r[i]);
                    r[i] = fma(n[i], splat(-LN_2_LOW), r[i]);
                }
                let mut p = [splat(EXP[0]); U];
                for &c in &EXP[1..] {
                    for i in 0..U {
                        p[i] = fma(p[i], r[i], splat(c));
                    }
                }
                for i in 0..U {
                    p[i] = scale_by_power(add(fma(p[i], mul(r[i], r[i]), r[i]), splat(1.0)), n[i]);
                }
                p
            }

            /// Calls `$f` on arrays of four vectors of `$x`, of one, and of a padded one for the rest.
            macro_rules! each {
                ($x:expr, $f:ident) => {{
                    let (fours, rest) = $x.as_chunks_mut::<{ 4 * N }>();
                    for x in fours {
                        let x = x.as_chunks_mut::<N>().0;
                        let y = $f([load(&x[0]), load(&x[1]), load(&x[2]), load(&x[3])]);
                        for i in 0..4 {
                            store(&mut x[i], y[i]);
                        }
                    }
                    for x in rest.chunks_mut(N) {
                        let mut padded = [0f32; N];
                        padded[..x.len()].copy_from_slice(x);
                        let [y] = $f([load(&padded)]);
                        store(&mut padded, y);
                        x.copy_from_slice(&padded[..x.len()]);
                    }
                }};
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn gelus<const U: usize>(x: [V; U]) -> [V; U] {
                let z = x.map(|x| mul(abs(x), splat(std::f32::consts::FRAC_1_SQRT_2)));
                let t = z.map(|z| div(splat(1.0), fma(z, splat(0.5), splat(1.0))));
                let mut p = [splat(ERFC[0]); U];
                for &c in &ERFC[1..] {
                    for i in 0..U {
                        p[i] = fma(p[i], t[i], splat(c));
                    }
                }
                for i in 0..U {
                    p[i] = fma(sub(splat(0.0), z[i]), z[i], p[i]);
                }
                let mut y = exp(p);
                for i in 0..U {
                    let half_erfc = mul(mul(t[i], splat(0.5)), y[i]);
                    // x · (1 − erfc/2) for positive x, x · erfc/2 for negative.
                    let side = add(with_sign(splat(0.5), x[i]), splat(0.5));
                    y[i] = mul(x[i], sub(side, with_sign(half_erfc, x[i])));
                }
                y
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn quick_gelus<const U: usize>(x: [V; U]) -> [V; U] {
                let mut y = exp(x.map(|x| mul(x, splat(-1.702))));
                for i in 0..U {
                    y[i] = div(x[i], add(splat(1.0), y[i]));
                }
                y
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn silus<const U: usize>(x: [V; U]) -> [V; U] {
                let mut y = exp(x.map(|x| sub(splat(0.0), x)));
                for i in 0..U {
                    y[i] = div(x[i], add(splat(1.0), y[i]));
                }
                y
            }

            /// See [`crate::cpu::portable::act::gelu`].
            #[target_feature(enable = $features)]
            pub fn gelu(x: &mut [f32]) {
                each!(x, gelus);
            }

            /// See [`crate::cpu::portable::act::quick_gelu`].
            #[target_feature(enable = $features)]
            pub fn quick_gelu(x: &mut [f32]) {
                each!(x, quick_gelus);
            }

            /// See [`crate::cpu::portable::act::silu_gate`].
            #[target_feature(enable = $features)]
            pub fn silu_gate(gate: &mut [f32], up: &[f32]) {
                each!(gate, silus);
                for (g, u) in gate.iter_mut().zip(up) {
                    *g *= u;
                }
            }
        }
    };
}
kernels!(avx2, "avx2,fma,f16c");
kernels!(avx512, "avx512f,avx512bw,avx512vl,avx512dq");
