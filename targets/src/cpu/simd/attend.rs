//! The products of attention: AVX2, AVX-512 and NEON. Siblings of `portable/attend.rs`, adding up in its order.
//!
//! A pass multiplies a few queries with a few vectors of keys or values, all sums in registers. Where several passes
//! need the same keys or values of fewer bytes, these are widened once, into scratch that stays in the first cache.

use crate::cpu::portable::attend::{Keys, ROOM, Share, TILE, Values};
use crate::cpu::portable::unpack::half;
use crate::cpu::simd::prefetch;

macro_rules! kernels {
    (
        $name:ident, $features:literal,
        // Queries and vectors of one pass over keys; queries of one over values, with at most `$sums` sums together and
        // `$vectors` vectors where there are many queries; with more than `$few` there are many, and codes are widened.
        scores: [$($sq:literal x $st:literal),*], mix: [$($mq:literal),*], vectors: $vectors:literal, sums: $sums:literal, few: $few:literal
    ) => {
        #[allow(clippy::modulo_one)] // a tile is one vector of 512 bits
        pub mod $name {
            use super::*;
            use crate::cpu::simd::{softmax::$name::exp2, vector::$name::*};

            /// Vectors of a key tile.
            const TILE_VECTORS: usize = TILE / N;
            /// Bytes by which values are fetched ahead of their use.
            const AHEAD: usize = 4096;
            /// Most channels of a value that are widened together.
            const WIDE: usize = 4 * N;

            /// See [`crate::cpu::portable::attend::scores`].
            #[target_feature(enable = $features)]
            pub fn scores(q: &[f32], head_dim: usize, k: Keys<'_>, tiles: usize, room: &mut [f32], out: &mut [f32], stride: usize) {
                let n = q.len() / head_dim;
                let one = head_dim * TILE;
                // Tiles that stay in the first cache while all queries pass over them.
                let some = (ROOM / one).min(4);
                let widen = n > $few && some > 0;
                let some = if n > $few { some.max(1) } else { tiles };
                for first in (0..tiles).step_by(some) {
                    let tiles = first..tiles.min(first + some);
                    match k {
                        Keys::F32(k) => passes(q, n, all(tiles, stride), out, head_dim, |_, _| splat(1.0), |at, _, _| load(exactly(k, at))),
                        Keys::F16(k) => {
                            let key = |at, ahead, _| {
                                fetch(k, at + ahead);
                                load_half(exactly(k, at))
                            };
                            passes(q, n, all(tiles, stride), out, head_dim, |_, _| splat(1.0), key);
                        }
                        Keys::Q8(k, scales) if widen => {
                            let (k, wide) = (&k[tiles.start * one..tiles.end * one], &mut room[..tiles.len() * one]);
                            let scales = scales[tiles.start * one / 32..tiles.end * one / 32].as_chunks::<TILE>().0;
                            let blocks = k.as_chunks::<{ 32 * TILE }>().0.iter().zip(wide.as_chunks_mut::<{ 32 * TILE }>().0);
                            for ((k, wide), scales) in blocks.zip(scales) {
                                let scales: [V; TILE_VECTORS] = std::array::from_fn(|v| load_half(&scales.as_chunks::<N>().0[v]));
                                for (i, (k, wide)) in k.as_chunks::<N>().0.iter().zip(wide.as_chunks_mut::<N>().0).enumerate() {
                                    store(wide, mul(load_i8(k), scales[i % TILE_VECTORS]));
                                }
                            }
                            let out = &mut out[tiles.start * TILE..];
                            passes(q, n, all(0..tiles.len(), stride), out, head_dim, |_, _| splat(1.0), |at, _, _| load(exactly(wide, at)));
                        }
                        Keys::Q8(k, scales) => {
                            let scale = |at, _| load_half(exactly(scales, at));
                            let key = |at, ahead, scale| {
                                fetch(k, at + ahead);
                                mul(load_i8(exactly(k, at)), scale)
                            };
                            passes(q, n, all(tiles, stride), out, 32, scale, key);
                        }
                    }
                }
            }

            /// The vectors of tiles, and the stride of their results.
            fn all(tiles: std::ops::Range<usize>, stride: usize) -> (std::ops::Range<usize>, usize) {
                (tiles.start * TILE_VECTORS..tiles.end * TILE_VECTORS, stride)
            }

            /// A vector's elements.
            #[inline(always)]
            fn exactly<T>(x: &[T], at: usize) -> &[T; N] {
                x[at..].first_chunk().expect("a tile or row has whole vectors")
            }

            /// Has the cache line of an element that is read soon fetched, if there is such an element.
            #[inline(always)]
            fn fetch<T>(x: &[T], at: usize) {
                prefetch(x.as_ptr().wrapping_add(at));
            }

            /// All queries with the keys of some tiles. Keys share a scale in blocks of `block` channels, `scale` being
            /// asked once for each, by the place of the scale.
            #[inline]
            #[target_feature(enable = $features)]
            fn passes(
                q: &[f32],
                n: usize,
                (vectors, stride): (std::ops::Range<usize>, usize),
                out: &mut [f32],
                block: usize,
                scale: impl Fn(usize, usize) -> V + Copy,
                key: impl Fn(usize, usize, V) -> V + Copy,
            ) {
                let mut first = 0;
                while first < n {
                    $(
                        if n - first >= $sq {
                            let mut v = vectors.start;
                            while v + $st <= vectors.end {
                                pass::<$sq, $st>(q, n, first, v, stride, out, block, scale, key);
                                v += $st;
                            }
                            while v < vectors.end {
                                pass::<$sq, TILE_VECTORS>(q, n, first, v, stride, out, block, scale, key);
                                v += TILE_VECTORS;
                            }
                            first += $sq;
                            continue;
                        }
                    )*
                }
            }

            /// `Q` queries with `T` vectors of keys, the first being vector `v`.
            #[inline]
            #[target_feature(enable = $features)]
            #[allow(clippy::too_many_arguments)] // as above
            fn pass<const Q: usize, const T: usize>(
                q: &[f32],
                n: usize,
                first: usize,
                v: usize,
                stride: usize,
                out: &mut [f32],
                block: usize,
                scale: impl Fn(usize, usize) -> V,
                key: impl Fn(usize, usize, V) -> V,
            ) {
                let head_dim = q.len() / n;
                let blocks = head_dim / block;
                let place = |t: usize, c: usize, channels: usize| ((v + t) / TILE_VECTORS * channels + c) * TILE + (v + t) % TILE_VECTORS * N;
                // What the next pass reads is fetched from memory meanwhile.
                let ahead = T / TILE_VECTORS * head_dim * TILE;
                let mut sums = [[splat(0.0); T]; Q];
                for (b, q) in q.chunks_exact(block * n).enumerate() {
                    let scales: [V; T] = std::array::from_fn(|t| scale(place(t, b, blocks), t));
                    let from: [usize; T] = std::array::from_fn(|t| place(t, b * block, head_dim));
                    for (c, q) in q.chunks_exact(n).enumerate() {
                        let q: &[f32; Q] = q[first..].first_chunk().expect("this many queries are left");
                        let k: [V; T] = std::array::from_fn(|t| key(from[t] + c * TILE, ahead, scales[t]));
                        for r in 0..Q {
                            let q = splat(q[r]);
                            for t in 0..T {
                                sums[r][t] = fma(k[t], q, sums[r][t]);
                            }
                        }
                    }
                }
                for r in 0..Q {
                    let out = &mut out[(first + r) * stride + v * N..][..T * N];
                    for (out, sum) in out.as_chunks_mut::<N>().0.iter_mut().zip(sums[r]) {
                        store(out, sum);
                    }
                }
            }

            /// See [`crate::cpu::portable::attend::mix`].
            #[target_feature(enable = $features)]
            pub fn mix(p: &[f32], stride: usize, v: Values<'_>, positions: usize, head_dim: usize, room: &mut [f32], out: &mut [f32]) {
                if head_dim < N {
                    return narrow(p, stride, v, positions, head_dim, out);
                }
                // With eight queries beside each other what is converted is used twice as often.
                let vectors = match out.len() / head_dim {
                    n if n > $few => $vectors,
                    8 => 2,
                    _ => 4,
                };
                for c in (0..head_dim).step_by(vectors * N) {
                    match (head_dim - c).div_ceil(N).min(vectors) {
                        1 => channels::<1>(p, stride, v, positions, head_dim, c, room, out),
                        2 => channels::<2>(p, stride, v, positions, head_dim, c, room, out),
                        3 => channels::<3>(p, stride, v, positions, head_dim, c, room, out),
                        _ => channels::<4>(p, stride, v, positions, head_dim, c, room, out),
                    }
                }
            }

            /// Some positions and channels of a mixture.
            #[derive(Clone, Copy)]
            struct Place<'a, const G: usize> {
                /// Weights, rows `stride` apart, of which `count` from `from` on are taken.
                p: &'a [f32],
                stride: usize,
                from: usize,
                count: usize,
                head_dim: usize,
                /// Where each vector of channels begins. The last overlaps the one before where the channels end within
                /// it: a channel comes out the same in either.
                channels: [usize; G],
            }

            /// `G` vectors of channels, from channel `c` on.
            #[inline]
            #[target_feature(enable = $features)]
            #[allow(clippy::too_many_arguments)] // those of `mix`
            fn channels<const G: usize>(
                p: &[f32],
                stride: usize,
                v: Values<'_>,
                positions: usize,
                head_dim: usize,
                c: usize,
                room: &mut [f32],
                out: &mut [f32],
            ) {
                let many = out.len() / head_dim > $few;
                // Positions whose values stay in the first cache while all queries pass over them.
                let some = if many { ROOM / WIDE } else { positions };
                let channels: [usize; G] = std::array::from_fn(|i| (c + i * N).min(head_dim - N));
                for from in (0..positions).step_by(some) {
                    let count = some.min(positions - from);
                    let to = Place { p, stride, from, count, head_dim, channels };
                    let rows = from * head_dim..(from + count) * head_dim;
                    match v {
                        Values::F32(v) => {
                            let v = &v[rows];
                            each(to, out, |j| channels.map(|c| load(exactly(v, j * head_dim + c))));
                        }
                        Values::F16(v) => {
                            let v = &v[rows];
                            let value = |j: usize| channels.map(|c| load_half(exactly(v, j * head_dim + c)));
                            if many {
                                each(to, out, value);
                            } else {
                                each(to, out, |j| {
                                    // Two vectors of 512 bits are a cache line.
                                    for c in channels.into_iter().step_by(32 / N) {
                                        fetch(v, j * head_dim + c + AHEAD / 2);
                                    }
                                    value(j)
                                });
                            }
                        }
                        Values::Q8(v, scales) => {
                            let (v, scales) = (&v[rows.clone()], &scales[rows.start / 32..rows.end / 32]);
                            let value = |row: &[i8], scales: &[u16]| channels.map(|c| mul(load_i8(exactly(row, c)), splat_half(scales[c / 32])));
                            let blocks = head_dim / 32;
                            if many {
                                let wide = room.as_chunks_mut::<WIDE>().0;
                                for ((row, scales), wide) in v.chunks_exact(head_dim).zip(scales.chunks_exact(blocks)).zip(&mut *wide) {
                                    keep(value(row, scales), wide);
                                }
                                each(to, out, |j| kept(&wide[j]));
                            } else {
                                each(to, out, |j| {
                                    fetch(v, j * head_dim + channels[0] + AHEAD);
                                    value(&v[j * head_dim..(j + 1) * head_dim], &scales[j * blocks..(j + 1) * blocks])
                                });
                            }
                        }
                    }
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn keep<const G: usize>(v: [V; G], wide: &mut [f32; WIDE]) {
                for (wide, v) in wide.as_chunks_mut::<N>().0.iter_mut().zip(v) {
                    store(wide, v);
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn kept<const G: usize>(wide: &[f32; WIDE]) -> [V; G] {
                std::array::from_fn(|i| load(&wide.as_chunks::<N>().0[i]))
            }

            /// All queries; `value` has the vectors of a position.
            #[inline]
            #[target_feature(enable = $features)]
            fn each<const G: usize>(to: Place<'_, G>, out: &mut [f32], value: impl Fn(usize) -> [V; G] + Copy) {
                let n = out.len() / to.head_dim;
                let mut first = 0;
                while first < n {
                    $(
                        if n - first >= $mq && $mq * G <= $sums {
                            mix_pass::<$mq, G>(to, first, out, value);
                            first += $mq;
                            continue;
                        }
                    )*
                }
            }

            /// `Q` queries.
            #[inline]
            #[target_feature(enable = $features)]
            fn mix_pass<const Q: usize, const G: usize>(to: Place<'_, G>, first: usize, out: &mut [f32], value: impl Fn(usize) -> [V; G]) {
                let mut sums = [[splat(0.0); G]; Q];
                if to.from > 0 {
                    for r in 0..Q {
                        sums[r] = to.channels.map(|c| load(exactly(out, (first + r) * to.head_dim + c)));
                    }
                }
                let p: [&[f32]; Q] = std::array::from_fn(|r| &to.p[(first + r) * to.stride + to.from..][..to.count]);
                for j in 0..to.count {
                    let v = value(j);
                    for r in 0..Q {
                        // SAFETY: each of the rows has `count` weights.
                        let p = splat(*unsafe { p[r].get_unchecked(j) });
                        for i in 0..G {
                            sums[r][i] = fma(v[i], p, sums[r][i]);
                        }
                    }
                }
                for r in 0..Q {
                    for (c, sum) in to.channels.into_iter().zip(sums[r]) {
                        let at = (first + r) * to.head_dim + c;
                        store(out[at..].first_chunk_mut().expect("a row has whole vectors"), sum);
                    }
                }
            }

            /// Heads that are narrower than a vector, number by number.
            #[target_feature(enable = $features)]
            fn narrow(p: &[f32], stride: usize, v: Values<'_>, positions: usize, head_dim: usize, out: &mut [f32]) {
                for (p, out) in p.chunks(stride).zip(out.chunks_exact_mut(head_dim)) {
                    for (c, out) in out.iter_mut().enumerate() {
                        *out = p[..positions].iter().enumerate().fold(0.0, |sum, (j, p)| {
                            let at = j * head_dim + c;
                            let v = match v {
                                Values::F32(v) => v[at],
                                Values::F16(v) => half(v[at]),
                                Values::Q8(v, scales) => f32::from(v[at]) * half(scales[at / 32]),
                            };
                            p.mul_add(v, sum)
                        });
                    }
                }
            }

            /// See [`crate::cpu::portable::attend::fold`].
            #[target_feature(enable = $features)]
            pub fn fold(into: Share<'_>, part: Share<'_>, head_dim: usize, scale: f32) {
                let scale = splat(scale * std::f32::consts::LOG2_E);
                for first in (0..into.tops.len()).step_by(N) {
                    let n = N.min(into.tops.len() - first);
                    let (mut tops, mut new_tops) = ([0f32; N], [0f32; N]);
                    tops[..n].copy_from_slice(&into.tops[first..first + n]);
                    new_tops[..n].copy_from_slice(&part.tops[first..first + n]);
                    let (top, new_top) = (load(&tops), load(&new_tops));
                    let greater = max(top, new_top);
                    let [old, new] = exp2([mul(sub(top, greater), scale), mul(sub(new_top, greater), scale)]);
                    let (mut olds, mut news) = ([0f32; N], [0f32; N]);
                    store(&mut tops, greater);
                    store(&mut olds, old);
                    store(&mut news, new);
                    for i in 0..n {
                        let row = first + i;
                        if part.sums[row] == 0.0 {
                            continue;
                        }
                        into.tops[row] = tops[i];
                        into.sums[row] = part.sums[row].mul_add(news[i], into.sums[row] * olds[i]);
                        let mixed = into.mixed[row * head_dim..(row + 1) * head_dim].as_chunks_mut::<N>();
                        let more = part.mixed[row * head_dim..(row + 1) * head_dim].as_chunks::<N>();
                        for (mixed, more) in mixed.0.iter_mut().zip(more.0) {
                            store(mixed, fma(load(more), splat(news[i]), mul(load(mixed), splat(olds[i]))));
                        }
                        for (mixed, more) in mixed.1.iter_mut().zip(more.1) {
                            *mixed = more.mul_add(news[i], *mixed * olds[i]);
                        }
                    }
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
kernels!(
    avx2, "avx2,fma,f16c",
    scores: [6 x 2, 4 x 2, 2 x 4, 1 x 4], mix: [6, 2, 1], vectors: 2, sums: 12, few: 4
);
#[cfg(target_arch = "x86_64")]
kernels!(
    avx512, "avx512f,avx512bw,avx512vl,avx512dq",
    scores: [12 x 2, 8 x 2, 4 x 4, 2 x 4, 1 x 4], mix: [8, 6, 4, 2, 1], vectors: 4, sums: 24, few: 8
);

#[cfg(target_arch = "aarch64")]
kernels!(
    neon, "neon",
    scores: [6 x 2, 4 x 2, 2 x 4, 1 x 4], mix: [6, 2, 1], vectors: 2, sums: 12, few: 4
);

#[cfg(target_arch = "x86_64")]
pub mod turned {
    use std::arch::x86_64::*;

    use crate::cpu::portable::attend;

    /// See [`attend::turn`].
    #[target_feature(enable = "avx2")]
    pub fn avx2(x: &[f32], stride: usize, rows: usize, cols: usize, out: &mut [f32], out_stride: usize) {
        attend::turn(x, stride, rows, cols, out, out_stride);
    }

    /// See [`attend::turn`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub fn avx512(x: &[f32], stride: usize, rows: usize, cols: usize, out: &mut [f32], out_stride: usize) {
        let whole = cols / 16 * 16;
        assert!(rows <= 16 && (whole == 0 || (x.len() >= (rows - 1) * stride + whole && out.len() >= (whole - 1) * out_stride + rows)));
        let mask = ((1u32 << rows) - 1) as u16;
        for first in (0..whole).step_by(16) {
            // SAFETY: 16 numbers from column `first` on lie inside each of the rows, as asserted.
            let load = |r: usize| unsafe { _mm512_loadu_ps(x.as_ptr().add(r * stride + first)) };
            let row = |r: usize| if r < rows { load(r) } else { _mm512_setzero_ps() };
            // 32-bit words within quarters, then quarters: column 4·q + i comes from part q of vector i.
            let mut t = [_mm512_setzero_ps(); 16];
            for q in 0..4 {
                let (a, b, c, d) = (row(4 * q), row(4 * q + 1), row(4 * q + 2), row(4 * q + 3));
                let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
                let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
                t[4 * q] = _mm512_shuffle_ps::<0x44>(ab, cd);
                t[4 * q + 1] = _mm512_shuffle_ps::<0xee>(ab, cd);
                t[4 * q + 2] = _mm512_shuffle_ps::<0x44>(ab_high, cd_high);
                t[4 * q + 3] = _mm512_shuffle_ps::<0xee>(ab_high, cd_high);
            }
            for i in 0..4 {
                let (a, b, c, d) = (t[i], t[4 + i], t[8 + i], t[12 + i]);
                let (ab, cd) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d));
                let (ab_high, cd_high) = (_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(c, d));
                let columns = [
                    _mm512_shuffle_f32x4::<0x88>(ab, cd),
                    _mm512_shuffle_f32x4::<0xdd>(ab, cd),
                    _mm512_shuffle_f32x4::<0x88>(ab_high, cd_high),
                    _mm512_shuffle_f32x4::<0xdd>(ab_high, cd_high),
                ];
                for (q, column) in columns.into_iter().enumerate() {
                    let at = (first + 4 * q + i) * out_stride;
                    // SAFETY: the mask's numbers of this row of `out` are inside it, as asserted.
                    unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr().add(at), mask, column) }
                }
            }
        }
        if whole < cols {
            attend::turn(&x[whole..], stride, rows, cols - whole, &mut out[whole * out_stride..], out_stride);
        }
    }
}
