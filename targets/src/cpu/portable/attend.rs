//! The products of attention: queries with keys, and weights with values; and how parts of a context join.
//!
//! A context is attended to in parts, cut by position alone. Of each part a query keeps its largest score, the sum of
//! its weights relative to that, and the values mixed by them ([`Share`]); [`fold`] joins these one part after the
//! other. So no row of scores is longer than a part, parts may be computed by different threads, and the result is the
//! same however they were dealt out.
//!
//! Keys lie in tiles of 16 positions, `[tiles, head_dim, 16]`, so that a vector holds one channel of 16 positions and
//! no sum runs across a vector. A score is added up channel by channel, a mixed value position by position: the
//! order is the same for every batch of queries.

/// Positions of a key tile.
pub const TILE: usize = 16;

/// Numbers of scratch in which kernels keep keys or values that they have widened for several passes.
pub const ROOM: usize = 8192;

/// Keys of one head.
#[derive(Clone, Copy)]
pub enum Keys<'a> {
    /// `[tiles, head_dim, 16]`.
    F32(&'a [f32]),
    /// `[tiles, head_dim, 16]`, half precision.
    F16(&'a [u16]),
    /// Codes `[tiles, head_dim, 16]` and half-precision scales `[tiles, head_dim / 32, 16]`.
    Q8(&'a [i8], &'a [u16]),
}

/// Values of one head, a row per position.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    /// `[positions, head_dim]`.
    F32(&'a [f32]),
    /// `[positions, head_dim]`, half precision.
    F16(&'a [u16]),
    /// Codes `[positions, head_dim]` and half-precision scales `[positions, head_dim / 32]`.
    Q8(&'a [i8], &'a [u16]),
}

/// What `n` queries have found in a part of the context, or in several parts together.
pub struct Share<'a> {
    /// Each query's largest score: `[n]`.
    pub tops: &'a mut [f32],
    /// Each query's sum of weights `exp(scale · (score − top))`: `[n]`; 0 where it saw no position.
    pub sums: &'a mut [f32],
    /// The values mixed by these weights, not divided by their sum: `[n, head_dim]`.
    pub mixed: &'a mut [f32],
}

use super::unpack::half;

/// `out[i][p] = q[i] · k[p]` for all positions of the first `tiles` tiles.
///
/// `q`: `[head_dim, n]`; `out`: `n` rows, `stride` apart. An 8-bit key is its code times its scale, which f32 holds
/// exactly. `room` is scratch of [`ROOM`] numbers.
#[allow(clippy::too_many_arguments)] // shapes of a product
pub fn scores(q: &[f32], head_dim: usize, k: Keys<'_>, tiles: usize, _room: &mut [f32], out: &mut [f32], stride: usize) {
    match k {
        Keys::F32(k) => scores_of(q, head_dim, tiles, out, stride, |at| *vector(k, at)),
        Keys::F16(k) => scores_of(q, head_dim, tiles, out, stride, |at| vector(k, at).map(half)),
        Keys::Q8(k, scales) => scores_of(q, head_dim, tiles, out, stride, |at| {
            // Scales of a tile lie as its channels do, a 32nd of them.
            let (k, scales) = (vector(k, at), vector(scales, at / TILE / 32 * TILE));
            std::array::from_fn(|l| f32::from(k[l]) * half(scales[l]))
        }),
    }
}

/// One channel of a tile, or its scales.
fn vector<T>(x: &[T], at: usize) -> &[T; TILE] {
    x[at..].first_chunk().expect("a tile has whole vectors")
}

/// `key` has the keys that begin at a place of the tiles.
fn scores_of(q: &[f32], head_dim: usize, tiles: usize, out: &mut [f32], stride: usize, key: impl Fn(usize) -> [f32; TILE]) {
    let n = q.len() / head_dim;
    for (i, out) in out.chunks_mut(stride).take(n).enumerate() {
        for (tile, out) in out.as_chunks_mut::<TILE>().0.iter_mut().take(tiles).enumerate() {
            *out = [0.0; TILE];
            for (c, q) in q.chunks_exact(n).enumerate() {
                let k = key((tile * head_dim + c) * TILE);
                for l in 0..TILE {
                    out[l] += q[i] * k[l];
                }
            }
        }
    }
}

/// `out[i] = Σ p[i][j] · v[j]` over the first `positions` positions.
///
/// `p`: `n` rows, `stride` apart, a multiple of 16; `out`: `[n, head_dim]`; `room` is scratch of [`ROOM`] numbers.
#[allow(clippy::too_many_arguments)] // shapes of a product
pub fn mix(p: &[f32], stride: usize, v: Values<'_>, positions: usize, head_dim: usize, _room: &mut [f32], out: &mut [f32]) {
    for (p, out) in p.chunks(stride).zip(out.chunks_exact_mut(head_dim)) {
        out.fill(0.0);
        for (j, &p) in p[..positions].iter().enumerate() {
            let row = j * head_dim..(j + 1) * head_dim;
            match v {
                Values::F32(v) => {
                    for (out, &v) in out.iter_mut().zip(&v[row]) {
                        *out += p * v;
                    }
                }
                Values::F16(v) => {
                    for (out, &v) in out.iter_mut().zip(&v[row]) {
                        *out += p * half(v);
                    }
                }
                Values::Q8(v, scales) => {
                    let scales = &scales[row.start / 32..row.end / 32];
                    for ((out, v), &scale) in out.chunks_exact_mut(32).zip(v[row].as_chunks::<32>().0).zip(scales) {
                        let scale = half(scale);
                        for (out, &v) in out.iter_mut().zip(v) {
                            *out += p * (f32::from(v) * scale);
                        }
                    }
                }
            }
        }
    }
}

/// Adds to what `n` queries found in the parts so far what they found in the next: weights become relative to the
/// larger of both tops. Queries that saw nothing there stay as they are.
pub fn fold(into: Share<'_>, part: Share<'_>, head_dim: usize, scale: f32) {
    let rows = into.mixed.chunks_exact_mut(head_dim).zip(part.mixed.chunks_exact(head_dim));
    for (i, (mixed, more)) in rows.enumerate() {
        if part.sums[i] == 0.0 {
            continue;
        }
        let top = into.tops[i].max(part.tops[i]);
        let (old, new) = (((into.tops[i] - top) * scale).exp(), ((part.tops[i] - top) * scale).exp());
        into.tops[i] = top;
        into.sums[i] = into.sums[i] * old + part.sums[i] * new;
        for (mixed, more) in mixed.iter_mut().zip(more) {
            *mixed = *mixed * old + more * new;
        }
    }
}

/// Up to 16 rows of `cols` numbers, `stride` apart, as columns: `out[c][r] = x[r][c]`, rows of `out` being
/// `out_stride` apart.
pub fn turn(x: &[f32], stride: usize, rows: usize, cols: usize, out: &mut [f32], out_stride: usize) {
    for (r, x) in x.chunks(stride).take(rows).enumerate() {
        for (c, x) in x[..cols].iter().enumerate() {
            out[c * out_stride + r] = *x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_join_to_the_softmax_of_all() {
        let scores = [1.0f64, 4.0, -2.0, 3.0, 3.5];
        let values = [10.0f64, -3.0, 0.5, 2.0, 7.0];
        let share = |of: std::ops::Range<usize>| {
            let top = scores[of.clone()].iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights = scores[of.clone()].iter().map(|s| (0.5 * (s - top)).exp());
            let mixed: f64 = weights.clone().zip(&values[of]).map(|(w, v)| w * v).sum();
            ([top as f32], [weights.sum::<f64>() as f32], [mixed as f32])
        };
        let (mut tops, mut sums, mut mixed) = share(0..2);
        for of in [2..3, 3..5, 5..5] {
            let (mut t, mut s, mut m) = share(of);
            let into = Share { tops: &mut tops, sums: &mut sums, mixed: &mut mixed };
            fold(into, Share { tops: &mut t, sums: &mut s, mixed: &mut m }, 1, 0.5);
        }
        let (_, [sum], [want]) = share(0..5);
        assert_eq!(tops, [4.0]);
        assert!((sums[0] - sum).abs() < 1e-6 && (mixed[0] - want).abs() < 1e-5, "{sums:?} {mixed:?}: {sum} {want}");
    }
}
