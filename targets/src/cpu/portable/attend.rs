//! The two products of attention: queries with keys, and weights with values.
//!
//! Keys lie in tiles of 16 positions, `[tiles, head_dim, 16]`, so that a vector holds one channel of 16 positions and
//! no sum runs across a vector. A score is added up channel by channel, a mixed value position by position: the
//! order is the same for every batch of queries.

/// Positions of a key tile.
pub const TILE: usize = 16;

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
    /// Rows of `head_dim`, `stride` apart.
    F32(&'a [f32], usize),
    /// `[positions, head_dim]`, half precision.
    F16(&'a [u16]),
    /// Codes `[positions, head_dim]` and half-precision scales `[positions, head_dim / 32]`.
    Q8(&'a [i8], &'a [u16]),
}

use super::unpack::half;

/// `out[i][p] = q[i] · k[p]` for all positions of the first `tiles` tiles.
///
/// `q`: `[n, head_dim]`; `out`: `n` rows, `stride` apart.
pub fn scores(q: &[f32], head_dim: usize, k: Keys<'_>, tiles: usize, out: &mut [f32], stride: usize) {
    for (q, out) in q.chunks_exact(head_dim).zip(out.chunks_mut(stride)) {
        for (tile, out) in out.as_chunks_mut::<TILE>().0.iter_mut().take(tiles).enumerate() {
            let at = tile * head_dim * TILE;
            *out = [0.0; TILE];
            match k {
                Keys::F32(k) => {
                    for (&q, k) in q.iter().zip(k[at..].as_chunks::<TILE>().0) {
                        for l in 0..TILE {
                            out[l] += q * k[l];
                        }
                    }
                }
                Keys::F16(k) => {
                    for (&q, k) in q.iter().zip(k[at..].as_chunks::<TILE>().0) {
                        for l in 0..TILE {
                            out[l] += q * half(k[l]);
                        }
                    }
                }
                Keys::Q8(k, scales) => {
                    let scales = scales[at / 32..].as_chunks::<TILE>().0;
                    for ((q, k), scales) in q.chunks_exact(32).zip(k[at..].chunks_exact(32 * TILE)).zip(scales) {
                        let mut sums = [0f32; TILE];
                        for (&q, k) in q.iter().zip(k.as_chunks::<TILE>().0) {
                            for l in 0..TILE {
                                sums[l] += q * f32::from(k[l]);
                            }
                        }
                        for l in 0..TILE {
                            out[l] += sums[l] * half(scales[l]);
                        }
                    }
                }
            }
        }
    }
}

/// `out[i] = Σ p[i][j] · v[j]` over the first `positions` positions.
///
/// `p`: `n` rows, `stride` apart; `out`: `[n, head_dim]`.
pub fn mix(p: &[f32], stride: usize, v: Values<'_>, positions: usize, head_dim: usize, out: &mut [f32]) {
    for (p, out) in p.chunks(stride).zip(out.chunks_exact_mut(head_dim)) {
        out.fill(0.0);
        for (j, &p) in p[..positions].iter().enumerate() {
            match v {
                Values::F32(v, stride) => {
                    for (out, &v) in out.iter_mut().zip(&v[j * stride..][..head_dim]) {
                        *out += p * v;
                    }
                }
                Values::F16(v) => {
                    for (out, &v) in out.iter_mut().zip(&v[j * head_dim..][..head_dim]) {
                        *out += p * half(v);
                    }
                }
                Values::Q8(v, scales) => {
                    let scales = &scales[j * head_dim / 32..];
                    for ((out, v), &scale) in out.chunks_exact_mut(32).zip(v[j * head_dim..].as_chunks::<32>().0).zip(scales) {
                        let p = p * half(scale);
                        for (out, &v) in out.iter_mut().zip(v) {
                            *out += p * f32::from(v);
                        }
                    }
                }
            }
        }
    }
}
