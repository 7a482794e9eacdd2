//! Activation functions, in place: AVX2, AVX-512 and NEON.
//!
//! Siblings of `portable/act.rs`, with polynomials for `exp` and, but for AVX-512, `erfc` of relative errors below 1e-6; gelu's
//! far tail (below about −5), where its value is next to nothing, is less exact than that. AVX-512 has gelu from a table of
//! polynomials in registers, with an error below 3e-7: half as many steps, and no division.

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

/// `Q(x) = erfc(x / √2) / 2`, which a normal number exceeds `x` with, around `i / 2.75`: for `i` in 0..16 the coefficients of
/// a polynomial in `2.75 · x − i`, within ±0.5, the highest first.
///
/// Source: `targets/fits/activations.py`.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::excessive_precision)] // as printed there
const TAIL: [[f32; 16]; 5] = [
    [
        -7.858838944230229e-05,
        -0.00028184536495245993,
        -0.00039873013156466186,
        -0.00031542693614028394,
        -0.00013013598800171167,
        2.9954439014545642e-05,
        0.00010249477054458112,
        0.00010053354344563559,
        6.71546658850275e-05,
        3.477836071397178e-05,
        1.4642227142758202e-05,
        5.129810688231373e-06,
        1.5157783082031528e-06,
        3.810109490132163e-07,
        8.195088696538733e-08,
        1.5146579102065516e-08,
    ],
    [
        0.0032313764095306396,
        0.002583168214187026,
        0.0011555427918210626,
        -0.00032531077158637345,
        -0.0012265564873814583,
        -0.0014042183756828308,
        -0.001110695768147707,
        -0.0006878704880364239,
        -0.0003490076633170247,
        -0.00014829089923296124,
        -5.342721851775423e-05,
        -1.645065458433237e-05,
        -4.35180800195667e-06,
        -9.927692872224725e-07,
        -1.9584746269174502e-07,
        -3.3480379357797574e-08,
    ],
    [
        -6.101805865910137e-06,
        0.008977650664746761,
        0.01472492702305317,
        0.015870047733187675,
        0.01332059781998396,
        0.009183596819639206,
        0.005325307138264179,
        0.0026303448248654604,
        0.00111505261156708,
        0.000407668121624738,
        0.00012897032138425857,
        3.538938472047448e-05,
        8.437526958005037e-06,
        1.7502168248029193e-06,
        3.161912331961503e-07,
        4.97900458640288e-08,
    ],
    [
        -0.14506953954696655,
        -0.13578785955905914,
        -0.11135827749967575,
        -0.08001244813203812,
        -0.05036917328834534,
        -0.02778065949678421,
        -0.013424198143184185,
        -0.005683284252882004,
        -0.0021080076694488525,
        -0.0006850194185972214,
        -0.00019502342911437154,
        -4.864283255301416e-05,
        -1.0629019925545435e-05,
        -2.0347147255961318e-06,
        -3.4122638226108393e-07,
        -5.013056991742815e-08,
    ],
    [
        0.5,
        0.35806477069854736,
        0.2335294485092163,
        0.13765645027160645,
        0.07289756834506989,
        0.034518174827098846,
        0.014561477117240429,
        0.005456778686493635,
        0.0018124071648344398,
        0.0005325759993866086,
        0.00013825696078129113,
        3.16712430503685e-05,
        6.3959068938856944e-06,
        1.1377776445442578e-06,
        1.7817542641296313e-07,
        2.454913783367374e-08,
    ],
];

/// ln 2 in two pieces, the first so short that a whole number times it is exact.
#[allow(clippy::excessive_precision)] // exactly these bits
const LN_2_HIGH: f32 = 0.693359375;
const LN_2_LOW: f32 = -2.121_944_4e-4;

macro_rules! kernels {
    ($name:ident, $features:literal, $gelus:item) => {
        pub mod $name {
            #[allow(unused_imports)] // of the ways to gelu
            use super::*;
            use crate::cpu::portable::act;
            use crate::cpu::simd::vector::$name::*;

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

            $gelus

            #[inline]
            #[target_feature(enable = $features)]
            fn quick_gelus<const U: usize>(x: [V; U]) -> [V; U] {
                let mut y = exp(x.map(|x| mul(x, splat(-1.702))));
                for i in 0..U {
                    y[i] = mul(x[i], reciprocal(add(splat(1.0), y[i])));
                }
                y
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn silus<const U: usize>(x: [V; U]) -> [V; U] {
                let mut y = exp(x.map(|x| sub(splat(0.0), x)));
                for i in 0..U {
                    y[i] = mul(x[i], reciprocal(add(splat(1.0), y[i])));
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

            /// See [`crate::cpu::portable::act::set`].
            #[target_feature(enable = $features)]
            pub fn set(x: &mut [f32], y: &[f32]) {
                // Whole vectors where a vector may begin.
                let first = x.as_ptr().align_offset(size_of::<V>()).min(x.len());
                let ((x_first, x), (y_first, y)) = (x.split_at_mut(first), y.split_at(first));
                let ((x, x_rest), (y, y_rest)) = (x.as_chunks_mut::<N>(), y.as_chunks::<N>());
                x_first.copy_from_slice(y_first);
                x.iter_mut().zip(y).for_each(|(x, y)| store_past(x, load(y)));
                x_rest.copy_from_slice(y_rest);
            }

            /// See [`crate::cpu::portable::act::settle`].
            #[target_feature(enable = $features)]
            pub fn settle() {
                #[cfg(target_arch = "x86_64")]
                std::arch::x86_64::_mm_sfence();
                #[cfg(not(target_arch = "x86_64"))]
                std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            }

            /// See [`crate::cpu::portable::act::add`].
            #[target_feature(enable = $features)]
            pub fn add_to(x: &mut [f32], y: &[f32]) {
                act::add(x, y);
            }

            /// See [`crate::cpu::portable::act::add_scaled`].
            #[target_feature(enable = $features)]
            pub fn add_scaled(x: &mut [f32], scale: &[f32], y: &[f32]) {
                act::add_scaled(x, scale, y);
            }
        }
    };
}
/// The kernels with gelu from `erfc`, where there are no tables in registers.
macro_rules! erfc_kernels {
    ($name:ident, $features:literal) => {
        kernels!(
            $name,
            $features,
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
        );
    };
}
#[cfg(target_arch = "x86_64")]
erfc_kernels!(avx2, "avx2,fma,f16c");
#[cfg(target_arch = "aarch64")]
erfc_kernels!(neon, "neon");
#[cfg(target_arch = "x86_64")]
kernels!(
    avx512,
    "avx512f,avx512bw,avx512vl,avx512dq",
    /// `gelu(x) = max(x, 0) − |x| · Q(|x|)`, with the polynomial of [`TAIL`] for the interval that `|x|` is in.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    fn gelus<const U: usize>(x: [V; U]) -> [V; U] {
        use std::arch::x86_64::{_mm512_castps_si512, _mm512_fnmadd_ps, _mm512_permutexvar_ps};
        /// Added to a small number, it leaves the nearest whole number in the lowest bits.
        const WHOLE: f32 = 12_582_912.0;
        // Past the last interval the tail is next to nothing. For NaN, max and min return their second argument.
        let size = x.map(|x| min(abs(x), splat(5.63)));
        let scaled = size.map(|size| mul(size, splat(2.75)));
        let whole = scaled.map(|scaled| add(scaled, splat(WHOLE)));
        let mut r = scaled;
        for i in 0..U {
            r[i] = sub(scaled[i], sub(whole[i], splat(WHOLE)));
        }
        let interval = whole.map(|whole| _mm512_castps_si512(whole));
        let mut p = interval.map(|interval| _mm512_permutexvar_ps(interval, load(&TAIL[0])));
        for table in &TAIL[1..] {
            for i in 0..U {
                p[i] = fma(p[i], r[i], _mm512_permutexvar_ps(interval[i], load(table)));
            }
        }
        for i in 0..U {
            p[i] = _mm512_fnmadd_ps(size[i], p[i], max(splat(0.0), x[i]));
        }
        p
    }
);
