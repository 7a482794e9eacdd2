//! Depthwise convolution, channels last: AVX2 and AVX-512. Siblings of `portable/conv.rs`.
//!
//! A strip of channels, one vector wide, of a band of rows is copied to compact scratch with its zero border, so that
//! the loops over taps read neighbouring memory and know no edges.

use std::ops::Range;

/// Output rows of a band.
const BAND: usize = 8;
/// Outputs of a row computed together.
const ACROSS: usize = 8;

/// Vectors in a row of a band.
fn band_width(width: usize, side: usize) -> usize {
    width.next_multiple_of(ACROSS) + side - 1
}

/// Scratch that `depthwise` needs, in numbers.
pub fn depthwise_scratch(width: usize, side: usize) -> usize {
    16 * ((BAND + side - 1) * band_width(width, side) + side * side)
}

macro_rules! kernels {
    ($name:ident, $features:literal) => {
        pub mod $name {
            use super::*;
            use crate::cpu::x86::vector::$name::*;

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
                let (taps, strip) = scratch.as_chunks_mut::<N>().0.split_at_mut(side * side);
                for first in (0..channels).step_by(N) {
                    let n = N.min(channels - first);
                    for (to, from) in taps.iter_mut().zip(kernel.chunks_exact(channels)) {
                        *to = [0.0; N];
                        to[..n].copy_from_slice(&from[first..first + n]);
                    }
                    let mut start = [0.0; N];
                    start[..n].copy_from_slice(&bias[first..first + n]);
                    for top in rows.clone().step_by(BAND) {
                        let band = BAND.min(rows.end - top);
                        for (r, to) in strip.chunks_exact_mut(across).take(band + side - 1).enumerate() {
                            match (top + r).checked_sub(pad).filter(|&y| y < height) {
                                None => to.fill([0.0; N]),
                                Some(y) => {
                                    to[..pad].fill([0.0; N]);
                                    to[pad + width..].fill([0.0; N]);
                                    let from = x[y * width * channels..].chunks_exact(channels);
                                    if n == N {
                                        for (to, from) in to[pad..pad + width].iter_mut().zip(from) {
                                            to.copy_from_slice(&from[first..first + N]);
                                        }
                                    } else {
                                        for (to, from) in to[pad..pad + width].iter_mut().zip(from) {
                                            *to = [0.0; N];
                                            to[..n].copy_from_slice(&from[first..first + n]);
                                        }
                                    }
                                }
                            }
                        }
                        for r in 0..band {
                            let out = &mut out[(top - rows.start + r) * width * channels..][..width * channels];
                            for left in (0..width).step_by(ACROSS) {
                                let mut sums = [load(&start); ACROSS];
                                for ky in 0..side {
                                    let row = &strip[(r + ky) * across + left..][..ACROSS + side - 1];
                                    for (w, row) in taps[ky * side..(ky + 1) * side].iter().zip(row.windows(ACROSS)) {
                                        let w = load(w);
                                        for i in 0..ACROSS {
                                            sums[i] = fma(load(&row[i]), w, sums[i]);
                                        }
                                    }
                                }
                                for (i, v) in sums.into_iter().enumerate().take(width - left) {
                                    let mut y = [0.0; N];
                                    store(&mut y, v);
                                    out[(left + i) * channels + first..][..n].copy_from_slice(&y[..n]);
                                }
                            }
                        }
                    }
                }
            }
        }
    };
}
kernels!(avx2, "avx2,fma,f16c");
kernels!(avx512, "avx512f,avx512bw,avx512vl,avx512dq");
