//! Norms of one row: the portable kernels compiled for AVX2 and AVX-512, with the same results.

use crate::cpu::portable::norm;

macro_rules! wide {
    ($name:ident, $features:literal) => {
        pub mod $name {
            use super::norm;

            /// See [`norm::rms`].
            #[target_feature(enable = $features)]
            pub fn rms(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
                norm::rms(x, weight, eps, out);
            }

            /// See [`norm::layer`].
            #[target_feature(enable = $features)]
            pub fn layer(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
                norm::layer(x, weight, bias, eps, out);
            }
        }
    };
}
wide!(avx2, "avx2");
wide!(avx512, "avx512f,avx512bw,avx512vl,avx512dq");
