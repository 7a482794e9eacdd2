//! Rotary positions: the portable kernel compiled for AVX2 and AVX-512, with the same results.

use crate::cpu::portable::rope;

macro_rules! wide {
    ($name:ident, $features:literal) => {
        pub mod $name {
            use super::rope;

            /// See [`rope::rotate`].
            #[target_feature(enable = $features)]
            pub fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32]) {
                rope::rotate(x, cos, sin);
            }
        }
    };
}
wide!(avx2, "avx2");
wide!(avx512, "avx512f,avx512bw,avx512vl,avx512dq");
