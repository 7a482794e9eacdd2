//! Dot products of one row of floats with one activation row: AVX2, AVX-512 and NEON. Siblings of `portable/dot.rs`.

use crate::cpu::portable::dot::sum;
use crate::cpu::portable::unpack::half;

/// Float rows: 32 lanes in registers, whatever is left over lane by lane.
macro_rules! floats {
    ($features:literal, $vector:ident) => {
        pub mod $vector {
            use super::*;
            use crate::cpu::simd::vector::$vector::*;

            floats! {
                $features:
                f32: f32, load, |w: f32| w;
                f16: ::half::f16, |w| load_half(bits(w)), |w: ::half::f16| half(w.to_bits());
                bf16: ::half::bf16, |w| load_brain(brain_bits(w)), |w: ::half::bf16| f32::from_bits(u32::from(w.to_bits()) << 16);
            }
        }
    };
    ($features:literal: $($name:ident: $w:ty, $load:expr, $one:expr;)*) => {$(
        /// See [`crate::cpu::portable::dot`].
        #[target_feature(enable = $features)]
        pub fn $name(w: &[$w], x: &[f32]) -> f32 {
            const VECTORS: usize = 32 / N;
            let mut sums = [splat(0.0); VECTORS];
            let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<32>(), x.as_chunks::<32>());
            for (w, x) in w.iter().zip(x) {
                let (w, x) = (w.as_chunks::<N>().0, x.as_chunks::<N>().0);
                for i in 0..VECTORS {
                    sums[i] = fma($load(&w[i]), load(&x[i]), sums[i]);
                }
            }
            let mut lanes = [0f32; 32];
            for (lanes, sums) in lanes.as_chunks_mut::<N>().0.iter_mut().zip(sums) {
                store(lanes, sums);
            }
            for (lane, (&w, &x)) in lanes.iter_mut().zip(w_rest.iter().zip(x_rest)) {
                *lane = $one(w).mul_add(x, *lane);
            }
            sum(&lanes)
        }
    )*};
}

/// Half-precision numbers as bits, for vector loads.
#[inline(always)]
fn bits<const N: usize>(w: &[::half::f16; N]) -> &[u16; N] {
    bytemuck::cast_ref(w)
}

#[inline(always)]
fn brain_bits<const N: usize>(w: &[::half::bf16; N]) -> &[u16; N] {
    bytemuck::cast_ref(w)
}
#[cfg(target_arch = "x86_64")]
floats!("avx2,fma,f16c", avx2);
#[cfg(target_arch = "x86_64")]
floats!("avx512f,avx512bw,avx512vl,avx512dq", avx512);
#[cfg(target_arch = "aarch64")]
floats!("neon", neon);
