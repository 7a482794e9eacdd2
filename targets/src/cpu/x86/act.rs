//! Activation functions, in place: AVX2 and AVX-512.
//!
//! Siblings of `portable/act.rs`, with polynomials for `exp` and `erfc` whose relative errors stay below 1e-6.

/// `erfc(z) = t · exp(−z² + P(t))` with `t = 1 / (1 + z/2)`: the coefficients of P, the highest first.
///
/// Source: W. H. Press et al., Numerical Recipes, 2nd edition, function `erfcc`.
const ERFC: [f32; 10] = [
    0.170_872_77,
    -0.822_152_23,
    1.488_515_87,
    -1.135_203_98,
    0.278_868_07,
    -0.186_288_06,
    0.096_784_18,
    0.374_091_96,
    1.000_023_68,
    -1.265_512_23,
];

macro_rules! kernels {
    ($name:ident, $features:literal) => {
        pub mod $name {
            use super::ERFC;
            use crate::cpu::x86::vector::$name::*;

            /// `exp(x)`; what overflows becomes 2·10³⁸ and what vanishes 10⁻³⁸. NaN stays.
            #[inline]
            #[target_feature(enable = $features)]
            pub fn exp(x: V) -> V {
                // 88.3 and −87.3 are where 2^127 and 2^−126 are left behind; max and min return their second
                // argument for NaN.
                let x = max(splat(-87.3), min(splat(88.3), x));
                let n = round(mul(x, splat(std::f32::consts::LOG2_E)));
                let r = fma(n, splat(-0.693_359_375), x);
                let r = fma(n, splat(2.121_944_4e-4), r);
                let mut p = splat(1.987_569_2e-4);
                for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.0e-1] {
                    p = fma(p, r, splat(c));
                }
                let p = add(fma(p, mul(r, r), r), splat(1.0));
                scale_by_power(p, n)
            }

            /// Calls `f` on the whole vectors of `x`, and on a padded one for the rest.
            macro_rules! each {
                ($x:expr, $f:expr) => {{
                    let (whole, rest) = $x.as_chunks_mut::<N>();
                    for v in whole {
                        let y = $f(load(v));
                        store(v, y);
                    }
                    if !rest.is_empty() {
                        let mut padded = [0f32; N];
                        padded[..rest.len()].copy_from_slice(rest);
                        let y = $f(load(&padded));
                        store(&mut padded, y);
                        rest.copy_from_slice(&padded[..rest.len()]);
                    }
                }};
            }

            /// See [`crate::cpu::portable::act::gelu`].
            #[target_feature(enable = $features)]
            pub fn gelu(x: &mut [f32]) {
                each!(x, |x: V| {
                    let z = mul(abs(x), splat(std::f32::consts::FRAC_1_SQRT_2));
                    let t = div(splat(1.0), fma(z, splat(0.5), splat(1.0)));
                    let mut p = splat(ERFC[0]);
                    for &c in &ERFC[1..] {
                        p = fma(p, t, splat(c));
                    }
                    let half_erfc = mul(mul(t, splat(0.5)), exp(fma(sub(splat(0.0), z), z, p)));
                    // x · (1 − erfc/2) for positive x, x · erfc/2 for negative.
                    let side = with_sign(splat(0.5), x);
                    mul(x, add(add(side, splat(0.5)), sub(splat(0.0), with_sign(half_erfc, x))))
                });
            }

            /// See [`crate::cpu::portable::act::quick_gelu`].
            #[target_feature(enable = $features)]
            pub fn quick_gelu(x: &mut [f32]) {
                each!(x, |x: V| div(x, add(splat(1.0), exp(mul(x, splat(-1.702))))));
            }

            /// See [`crate::cpu::portable::act::silu_gate`].
            #[target_feature(enable = $features)]
            pub fn silu_gate(gate: &mut [f32], up: &[f32]) {
                let silu = |g: V| div(g, add(splat(1.0), exp(sub(splat(0.0), g))));
                let ((gates, gate_rest), (ups, up_rest)) = (gate.as_chunks_mut::<N>(), up.as_chunks::<N>());
                for (g, u) in gates.iter_mut().zip(ups) {
                    let y = mul(silu(load(g)), load(u));
                    store(g, y);
                }
                each!(gate_rest, silu);
                for (g, u) in gate_rest.iter_mut().zip(up_rest) {
                    *g *= u;
                }
            }
        }
    };
}
kernels!(avx2, "avx2,fma,f16c");
kernels!(avx512, "avx512f,avx512bw,avx512vl,avx512dq");
