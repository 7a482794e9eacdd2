//! Softmax of one row of scores: AVX2 and AVX-512. Siblings of `portable/softmax.rs`.

macro_rules! kernels {
    ($name:ident, $features:literal) => {
        pub mod $name {
            use crate::cpu::x86::{act, vector::$name::*};

            /// See [`crate::cpu::portable::softmax::exp`].
            #[target_feature(enable = $features)]
            pub fn exp(scores: &mut [f32], valid: usize, scale: f32) -> f32 {
                let (row, rest) = scores.split_at_mut(valid);
                rest.fill(0.0);
                let (whole, tail) = row.as_chunks_mut::<N>();
                let mut largest = [splat(f32::NEG_INFINITY); 4];
                let (fours, others) = whole.as_chunks::<4>();
                for v in fours {
                    for i in 0..4 {
                        largest[i] = max(largest[i], load(&v[i]));
                    }
                }
                for v in others {
                    largest[0] = max(largest[0], load(v));
                }
                let mut lanes = [0f32; N];
                store(&mut lanes, max(max(largest[0], largest[1]), max(largest[2], largest[3])));
                let top = lanes.iter().chain(&*tail).copied().fold(f32::NEG_INFINITY, f32::max);
                let f = |v: V| act::$name::exp([mul(sub(v, splat(top)), splat(scale))])[0];
                let mut sums = splat(0.0);
                for v in whole {
                    let y = f(load(v));
                    store(v, y);
                    sums = add(sums, y);
                }
                store(&mut lanes, sums);
                if !tail.is_empty() {
                    let mut padded = [0f32; N];
                    padded[..tail.len()].copy_from_slice(tail);
                    let y = f(load(&padded));
                    store(&mut padded, y);
                    for ((v, y), lane) in tail.iter_mut().zip(padded).zip(&mut lanes) {
                        *v = y;
                        *lane += y;
                    }
                }
                lanes.iter().sum()
            }
        }
    };
}
kernels!(avx2, "avx2,fma,f16c");
kernels!(avx512, "avx512f,avx512bw,avx512vl,avx512dq");
