//! Depthwise convolution, channels last: AVX2, AVX-512 and NEON. Siblings of `portable/conv.rs`.
//!
//! Strips of channels, one vector wide, of a band of rows are copied to compact scratch with their zero border, so that
//! the loops over taps read neighbouring memory and know no edges. Several strips are copied together, whose channels
//! are neighbours: a position's lines come one after another then, which is what memory is quick at. Two rows of outputs
//! are computed together, so that what is loaded meets two rows of taps.

use std::ops::Range;

/// Output rows of a band: more would leave the nearest cache, fewer read more rows twice.
const BAND: usize = 16;
/// Strips that are copied together.
const STRIPS: usize = 4;
/// Outputs of a row computed together, at most.
const ACROSS: usize = 8;

/// Vectors in a row of a band.
fn band_width(width: usize, side: usize) -> usize {
    width.next_multiple_of(ACROSS) + side - 1
}

/// Rows of a strip: those that a band needs, and one that the second of two output rows reads when there is no such row.
fn strip_rows(side: usize) -> usize {
    BAND + side
}

/// Scratch that `depthwise` needs, in numbers.
pub fn depthwise_scratch(width: usize, side: usize) -> usize {
    16 * (STRIPS * strip_rows(side) * band_width(width, side) + side * side)
}

macro_rules! kernels {
    ($name:ident, $features:literal, across $across:literal) => {
        pub mod $name {
            use super::*;
            use crate::cpu::simd::vector::$name::*;

            /// Vectors of a row of outputs that fit in registers with those of the row below.
            const A: usize = $across;

            /// See [`crate::cpu::portable::conv::depthwise`].
            #[target_feature(enable = $features)]
            #[allow(clippy::too_many_arguments)] // shapes of a convolution
            pub fn depthwise(
                x: &[f32],
                width: usize,
                channels: usize,
                kernel: &[f32],
                side: usize,
                bias: &[f32],
                rows: Range<usize>,
                out: &mut [f32],
                scratch: &mut [f32],
            ) {
                let height = x.len() / (width * channels);
                let pad = side / 2;
                let across = band_width(width, side);
                let (taps, strips) = scratch.as_chunks_mut::<N>().0.split_at_mut(side * side);
                let strip_len = across * strip_rows(side);
                for top in rows.clone().step_by(BAND) {
                    let band = BAND.min(rows.end - top);
                    let out = &mut out[(top - rows.start) * width * channels..][..band * width * channels];
                    for group in (0..channels).step_by(N * STRIPS) {
                        let count = STRIPS.min((channels - group).div_ceil(N));
                        for r in 0..band + side {
                            let y = (top + r).checked_sub(pad).filter(|&y| y < height && r < band + side - 1);
                            let from = y.map(|y| &x[y * width * channels..][..width * channels]);
                            copy_row(from, channels, group, &mut strips[r * across..], strip_len, across, pad, count);
                        }
                        for (s, strip) in strips.chunks_exact(strip_len).take(count).enumerate() {
                            let first = group + s * N;
                            let n = N.min(channels - first);
                            for (to, from) in taps.iter_mut().zip(kernel.chunks_exact(channels)) {
                                *to = part(&from[first..first + n]);
                            }
                            let start = load(&part(&bias[first..first + n]));
                            for r in (0..band).step_by(2) {
                                for left in (0..width).step_by(A) {
                                    let sums = two_rows(&strip[r * across + left..], across, taps, side, start);
                                    for (row, sums) in (r..band).zip(sums) {
                                        let out = &mut out[(row * width + left) * channels..][..A.min(width - left) * channels];
                                        for (out, sum) in out.chunks_exact_mut(channels).zip(sums) {
                                            match out[first..].first_chunk_mut() {
                                                Some(out) => store(out, sum),
                                                None => {
                                                    let mut y = [0.0; N];
                                                    store(&mut y, sum);
                                                    out[first..].copy_from_slice(&y[..n]);
                                                }
                                            }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }

            /// Up to a vector of numbers, zeros behind them.
            #[inline]
            #[target_feature(enable = $features)]
            fn part(x: &[f32]) -> [f32; N] {
                let mut part = [0.0; N];
                part[..x.len()].copy_from_slice(x);
                part
            }

            /// One row of a map, or a row of zeros, to a row of `count` strips `strip_len` apart.
            #[inline]
            #[target_feature(enable = $features)]
            #[allow(clippy::too_many_arguments)] // two places and their shapes
            fn copy_row(
                from: Option<&[f32]>,
                channels: usize,
                group: usize,
                to: &mut [[f32; N]],
                strip_len: usize,
                across: usize,
                pad: usize,
                count: usize,
            ) {
                let Some(from) = from else {
                    return to.chunks_mut(strip_len).take(count).for_each(|to| to[..across].fill([0.0; N]));
                };
                let width = from.len() / channels;
                for to in to.chunks_mut(strip_len).take(count) {
                    to[..pad].fill([0.0; N]);
                    to[pad + width..across].fill([0.0; N]);
                }
                for (i, from) in from.chunks_exact(channels).enumerate() {
                    let (whole, rest) = from[group..].as_chunks::<N>();
                    for s in 0..count {
                        to[s * strip_len + pad + i] = whole.get(s).copied().unwrap_or_else(|| part(rest));
                    }
                }
            }

            /// Two rows of `A` outputs whose inputs begin at `x`, rows of which are `across` apart.
            #[inline]
            #[target_feature(enable = $features)]
            fn two_rows(x: &[[f32; N]], across: usize, taps: &[[f32; N]], side: usize, start: V) -> [[V; A]; 2] {
                let (mut upper, mut lower) = ([start; A], [start; A]);
                let row = |y: usize| x[y * across..][..A + side - 1].windows(A);
                let taps_of = |y: usize| &taps[y * side..][..side];
                for (w, x) in taps_of(0).iter().zip(row(0)) {
                    let w = load(w);
                    for i in 0..A {
                        upper[i] = fma(load(&x[i]), w, upper[i]);
                    }
                }
                for y in 1..side {
                    for ((w, above), x) in taps_of(y).iter().zip(taps_of(y - 1)).zip(row(y)) {
                        let (w, above) = (load(w), load(above));
                        for i in 0..A {
                            let x = load(&x[i]);
                            upper[i] = fma(x, w, upper[i]);
                            lower[i] = fma(x, above, lower[i]);
                        }
                    }
                }
                for (w, x) in taps_of(side - 1).iter().zip(row(side)) {
                    let w = load(w);
                    for i in 0..A {
                        lower[i] = fma(load(&x[i]), w, lower[i]);
                    }
                }
                [upper, lower]
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
kernels!(avx2, "avx2,fma,f16c", across 4);
#[cfg(target_arch = "x86_64")]
kernels!(avx512, "avx512f,avx512bw,avx512vl,avx512dq", across 8);
// Registers of 128 bits are 32, in pairs half as many.
#[cfg(target_arch = "aarch64")]
kernels!(neon, "neon", across 4);
