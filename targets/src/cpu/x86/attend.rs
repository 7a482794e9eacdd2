//! The two products of attention: AVX2 and AVX-512. Siblings of `portable/attend.rs`, adding up in its order.

use crate::cpu::portable::attend::{Keys, TILE, Values};
use crate::cpu::portable::unpack::half;

macro_rules! kernels {
    ($name:ident, $features:literal, $queries:literal, $mixed:literal) => {
        pub mod $name {
            use super::*;
            use crate::cpu::x86::vector::$name::*;

            /// Vectors of a key tile.
            const TILE_VECTORS: usize = TILE / N;

            /// See [`crate::cpu::portable::attend::scores`].
            #[target_feature(enable = $features)]
            pub fn scores(q: &[f32], head_dim: usize, k: Keys<'_>, tiles: usize, out: &mut [f32], stride: usize) {
                let n = q.len() / head_dim;
                let mut first = 0;
                while first < n {
                    let (q, out) = (&q[first * head_dim..], &mut out[first * stride..]);
                    first += match n - first {
                        left if left >= $queries => some::<$queries>(q, head_dim, k, tiles, out, stride),
                        left if left >= 4 => some::<4>(q, head_dim, k, tiles, out, stride),
                        2 | 3 => some::<2>(q, head_dim, k, tiles, out, stride),
                        _ => some::<1>(q, head_dim, k, tiles, out, stride),
                    };
                }
            }

            /// The scores of `Q` queries; returns `Q`.
            #[inline]
            #[target_feature(enable = $features)]
            fn some<const Q: usize>(q: &[f32], head_dim: usize, k: Keys<'_>, tiles: usize, out: &mut [f32], stride: usize) -> usize {
                let q: [&[f32]; Q] = std::array::from_fn(|r| &q[r * head_dim..(r + 1) * head_dim]);
                for tile in 0..tiles {
                    let at = tile * head_dim * TILE;
                    let mut sums = [[splat(0.0); TILE_VECTORS]; Q];
                    match k {
                        Keys::F32(k) => {
                            for (c, k) in k[at..at + head_dim * TILE].as_chunks::<TILE>().0.iter().enumerate() {
                                let k = k.as_chunks::<N>().0;
                                for r in 0..Q {
                                    let q = splat(q[r][c]);
                                    for v in 0..TILE_VECTORS {
                                        sums[r][v] = fma(load(&k[v]), q, sums[r][v]);
                                    }
                                }
                            }
                        }
                        Keys::F16(k) => {
                            for (c, k) in k[at..at + head_dim * TILE].as_chunks::<TILE>().0.iter().enumerate() {
                                let k = k.as_chunks::<N>().0;
                                let k: [V; TILE_VECTORS] = std::array::from_fn(|v| load_half(&k[v]));
                                for r in 0..Q {
                                    let q = splat(q[r][c]);
                                    for v in 0..TILE_VECTORS {
                                        sums[r][v] = fma(k[v], q, sums[r][v]);
                                    }
                                }
                            }
                        }
                        Keys::Q8(k, scales) => {
                            let scales = scales[at / 32..].as_chunks::<TILE>().0;
                            let blocks = k[at..at + head_dim * TILE].chunks_exact(32 * TILE);
                            for (b, (k, scales)) in blocks.zip(scales).enumerate() {
                                let mut block = [[splat(0.0); TILE_VECTORS]; Q];
                                for (c, k) in k.as_chunks::<TILE>().0.iter().enumerate() {
                                    let k = k.as_chunks::<N>().0;
                                    let k: [V; TILE_VECTORS] = std::array::from_fn(|v| load_i8(&k[v]));
                                    for r in 0..Q {
                                        let q = splat(q[r][32 * b + c]);
                                        for v in 0..TILE_VECTORS {
                                            block[r][v] = fma(k[v], q, block[r][v]);
                                        }
                                    }
                                }
                                let scales = scales.as_chunks::<N>().0;
                                for r in 0..Q {
                                    for v in 0..TILE_VECTORS {
                                        sums[r][v] = fma(block[r][v], load_half(&scales[v]), sums[r][v]);
                                    }
                                }
                            }
                        }
                    }
                    for r in 0..Q {
                        let out = &mut out[r * stride + tile * TILE..][..TILE];
                        for (out, sum) in out.as_chunks_mut::<N>().0.iter_mut().zip(sums[r]) {
                            store(out, sum);
                        }
                    }
                }
                Q
            }

            /// See [`crate::cpu::portable::attend::mix`].
            #[target_feature(enable = $features)]
            pub fn mix(p: &[f32], stride: usize, v: Values<'_>, positions: usize, head_dim: usize, out: &mut [f32]) {
                let n = out.len() / head_dim;
                let mut first = 0;
                while first < n {
                    let (p, out) = (&p[first * stride..], &mut out[first * head_dim..]);
                    first += match n - first {
                        left if left >= $mixed => rows::<$mixed>(p, stride, v, positions, head_dim, out),
                        2 | 3 => rows::<2>(p, stride, v, positions, head_dim, out),
                        _ => rows::<1>(p, stride, v, positions, head_dim, out),
                    };
                }
            }

            /// The mixtures of `Q` queries; returns `Q`.
            #[inline]
            #[target_feature(enable = $features)]
            fn rows<const Q: usize>(p: &[f32], stride: usize, v: Values<'_>, positions: usize, head_dim: usize, out: &mut [f32]) -> usize {
                let p: [&[f32]; Q] = std::array::from_fn(|r| &p[r * stride..r * stride + positions]);
                match v {
                    Values::F32(v, wide) => {
                        channels(
                            p,
                            head_dim,
                            out,
                            |j, c| load(v[j * wide + c..].first_chunk().expect("a value row has these")),
                            |j, c| v[j * wide + c],
                        );
                    }
                    Values::F16(v) => channels(
                        p,
                        head_dim,
                        out,
                        |j, c| load_half(v[j * head_dim + c..].first_chunk().expect("a value row has these")),
                        |j, c| half(v[j * head_dim + c]),
                    ),
                    Values::Q8(v, scales) => {
                        const VECTORS: usize = 32 / N;
                        for b in 0..head_dim / 32 {
                            let mut sums = [[splat(0.0); VECTORS]; Q];
                            for j in 0..positions {
                                let block = v[j * head_dim + 32 * b..][..32].as_chunks::<N>().0;
                                let block: [V; VECTORS] = std::array::from_fn(|i| load_i8(&block[i]));
                                let scale = half(scales[j * (head_dim / 32) + b]);
                                for r in 0..Q {
                                    let p = splat(p[r][j] * scale);
                                    for i in 0..VECTORS {
                                        sums[r][i] = fma(block[i], p, sums[r][i]);
                                    }
                                }
                            }
                            for r in 0..Q {
                                let out = &mut out[r * head_dim + 32 * b..][..32];
                                for (out, sum) in out.as_chunks_mut::<N>().0.iter_mut().zip(sums[r]) {
                                    store(out, sum);
                                }
                            }
                        }
                    }
                }
                Q
            }

            /// Channels in groups of four vectors, then of one; one by one when a head is narrower than a vector.
            #[inline]
            #[target_feature(enable = $features)]
            fn channels<const Q: usize>(
                p: [&[f32]; Q],
                head_dim: usize,
                out: &mut [f32],
                vector: impl Fn(usize, usize) -> V,
                number: impl Fn(usize, usize) -> f32,
            ) {
                let mut c = 0;
                while c + 4 * N <= head_dim {
                    group::<Q, 4>(p, head_dim, out, c, &vector);
                    c += 4 * N;
                }
                while c + N <= head_dim {
                    group::<Q, 1>(p, head_dim, out, c, &vector);
                    c += N;
                }
                if c < head_dim && head_dim >= N {
                    // A last vector that overlaps the one before: a channel comes out the same in either.
                    group::<Q, 1>(p, head_dim, out, head_dim - N, &vector);
                    c = head_dim;
                }
                for c in c..head_dim {
                    for r in 0..Q {
                        out[r * head_dim + c] = p[r].iter().enumerate().fold(0.0, |sum, (j, p)| p.mul_add(number(j, c), sum));
                    }
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn group<const Q: usize, const G: usize>(
                p: [&[f32]; Q],
                head_dim: usize,
                out: &mut [f32],
                c: usize,
                vector: &impl Fn(usize, usize) -> V,
            ) {
                let mut sums = [[splat(0.0); G]; Q];
                for j in 0..p[0].len() {
                    let v: [V; G] = std::array::from_fn(|i| vector(j, c + i * N));
                    for r in 0..Q {
                        let p = splat(p[r][j]);
                        for i in 0..G {
                            sums[r][i] = fma(v[i], p, sums[r][i]);
                        }
                    }
                }
                for r in 0..Q {
                    let out = &mut out[r * head_dim + c..][..G * N];
                    for (out, sum) in out.as_chunks_mut::<N>().0.iter_mut().zip(sums[r]) {
                        store(out, sum);
                    }
                }
            }
        }
    };
}
kernels!(avx2, "avx2,fma,f16c", 4, 2);
kernels!(avx512, "avx512f,avx512bw,avx512vl,avx512dq", 8, 4);
