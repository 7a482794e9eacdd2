//! Attention over a cache, and full attention of encoders.

use std::sync::{Mutex, PoisonError};

use half::f16;

use super::CpuTarget;
use super::buffer::{Aligned, Buffer};
use super::pool::Disjoint;
use super::portable::attend::{Keys, TILE, Values};
use crate::{AttendShape, Columns, KvShape, KvType, Result, Rope, TargetError};

/// Queries that read the keys together.
const QUERIES: usize = 16;

/// Keys and values of one decoder layer.
///
/// Keys: per head, tiles of 16 positions, each `[head_dim, 16]`; values: per head, a row per position.
pub struct Kv {
    shape: KvShape,
    /// Key tiles of a head.
    tiles: usize,
    store: Store,
}

enum Store {
    F32 { k: Aligned<f32>, v: Aligned<f32> },
    F16 { k: Aligned<u16>, v: Aligned<u16> },
    Q8 { k: Aligned<i8>, k_scales: Aligned<u16>, v: Aligned<i8>, v_scales: Aligned<u16> },
}

/// What each thread needs for attention.
pub(super) struct Worker {
    q: Aligned<f32>,
    scores: Aligned<f32>,
    mixed: Aligned<f32>,
    keys: Aligned<f32>,
}

impl Worker {
    pub(super) fn new() -> Worker {
        Worker { q: Aligned::empty(), scores: Aligned::empty(), mixed: Aligned::empty(), keys: Aligned::empty() }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.q.bytes() + self.scores.bytes() + self.mixed.bytes() + self.keys.bytes()
    }

    fn make_room(&mut self, stride: usize, head_dim: usize, key_tiles: usize) -> Result<()> {
        let what = "scratch of attention";
        self.q.at_least(QUERIES * head_dim, what)?;
        self.scores.at_least(QUERIES * stride, what)?;
        self.mixed.at_least(QUERIES * head_dim, what)?;
        self.keys.at_least(key_tiles * TILE * head_dim, what)?;
        Ok(())
    }
}

impl Kv {
    pub(super) fn new(shape: KvShape) -> Result<Kv> {
        let KvShape { capacity, heads, kv_heads, head_dim, ty } = shape;
        let bad = |what: String| Err(TargetError::Shape { op: "kv", what });
        if kv_heads == 0 || head_dim == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) || !head_dim.is_multiple_of(2) {
            return bad(format!("{heads} heads of {head_dim} over {kv_heads} key heads"));
        }
        if ty == KvType::Q8_0 && !head_dim.is_multiple_of(32) {
            return bad(format!("an 8-bit cache needs heads of a multiple of 32 channels, not {head_dim}"));
        }
        let tiles = capacity.div_ceil(TILE);
        let numbers = (tiles * TILE).checked_mul(kv_heads).and_then(|n| n.checked_mul(head_dim));
        let Some(n) = numbers else { return bad(format!("a cache of {capacity} positions")) };
        let what = "keys and values";
        let store = match ty {
            KvType::F32 => Store::F32 { k: Aligned::zeroed(n, what)?, v: Aligned::zeroed(n, what)? },
            KvType::F16 => Store::F16 { k: Aligned::zeroed(n, what)?, v: Aligned::zeroed(n, what)? },
            KvType::Q8_0 => Store::Q8 {
                k: Aligned::zeroed(n, what)?,
                k_scales: Aligned::zeroed(n / 32, what)?,
                v: Aligned::zeroed(n, what)?,
                v_scales: Aligned::zeroed(n / 32, what)?,
            },
        };
        Ok(Kv { shape, tiles, store })
    }

    pub(super) fn bytes(&self) -> usize {
        match &self.store {
            Store::F32 { k, v } => 4 * (k.len() + v.len()),
            Store::F16 { k, v } => 2 * (k.len() + v.len()),
            Store::Q8 { k, k_scales, v, v_scales } => k.len() + v.len() + 2 * (k_scales.len() + v_scales.len()),
        }
    }

    /// Numbers of one head, keys or values.
    fn head_len(&self) -> usize {
        self.tiles * TILE * self.shape.head_dim
    }

    fn keys(&self, head: usize) -> Keys<'_> {
        let n = self.head_len();
        let (of, scales) = (head * n..(head + 1) * n, head * n / 32..(head + 1) * n / 32);
        match &self.store {
            Store::F32 { k, .. } => Keys::F32(&k[of]),
            Store::F16 { k, .. } => Keys::F16(&k[of]),
            Store::Q8 { k, k_scales, .. } => Keys::Q8(&k[of], &k_scales[scales]),
        }
    }

    fn values(&self, head: usize) -> Values<'_> {
        let n = self.head_len();
        let (of, scales) = (head * n..(head + 1) * n, head * n / 32..(head + 1) * n / 32);
        match &self.store {
            Store::F32 { v, .. } => Values::F32(&v[of], self.shape.head_dim),
            Store::F16 { v, .. } => Values::F16(&v[of]),
            Store::Q8 { v, v_scales, .. } => Values::Q8(&v[of], &v_scales[scales]),
        }
    }
}

/// Where the number of channel `c` at position `p` of a head's key tiles lies.
fn key_at(p: usize, c: usize, head_dim: usize) -> usize {
    (p / TILE * head_dim + c) * TILE + p % TILE
}

/// 8-bit codes of 32 numbers with a half-precision scale; returns the scale's bits.
fn code(x: &[f32], mut put: impl FnMut(usize, i8)) -> u16 {
    // `max` passes over NaN, and a fault must not become a quiet 0.
    let largest = if x.iter().any(|v| v.is_nan()) { f32::NAN } else { x.iter().fold(0f32, |m, v| m.max(v.abs())) };
    let d = largest / 127.0;
    let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
    for (i, &v) in x.iter().enumerate() {
        put(i, (v * inverse).round_ties_even() as i8);
    }
    f16::from_f32(d).to_bits()
}

impl CpuTarget {
    pub(super) fn rotate_and_store(&self, qkv: &mut Buffer, rope: &Rope, kv: &mut Kv, pos: usize) -> Result<()> {
        let KvShape { capacity, heads, kv_heads, head_dim, .. } = kv.shape;
        let (rows, width) = (qkv.rows, qkv.width);
        let bad = |what: String| Err(TargetError::Shape { op: "rope_append", what });
        if width != (heads + 2 * kv_heads) * head_dim {
            return bad(format!("rows of {width} for {heads} + 2 · {kv_heads} heads of {head_dim}"));
        }
        if rope.frequencies.len() * 2 != head_dim {
            return bad(format!("{} frequencies for heads of {head_dim}", rope.frequencies.len()));
        }
        if pos.checked_add(rows).is_none_or(|end| end > capacity) {
            return bad(format!("positions {pos}..{} of a cache of {capacity}", pos.saturating_add(rows)));
        }
        let turned = (heads + kv_heads) * head_dim;
        let mut angles = self.angles.lock().unwrap_or_else(PoisonError::into_inner);
        let half = head_dim / 2;
        let angles = angles.at_least(rows * head_dim, "angles of positions")?;
        let turn = |row: usize, x: &mut [f32], angles: &mut [f32]| {
            let (cos, sin) = angles.split_at_mut(half);
            for ((c, s), f) in cos.iter_mut().zip(sin.iter_mut()).zip(&rope.frequencies) {
                (*s, *c) = ((pos + row) as f32 * f).sin_cos();
            }
            self.kernels.rotate(&mut x[..turned], cos, sin);
        };
        {
            let angles = Disjoint::new(angles);
            self.pool.rows(qkv.values_mut(), width, &|_, first, x| {
                for (r, x) in x.chunks_exact_mut(width).enumerate() {
                    let row = first + r;
                    // SAFETY: every row goes to one worker.
                    turn(row, x, unsafe { angles.piece(row * head_dim..(row + 1) * head_dim) });
                }
            });
        }
        let n = kv.head_len();
        let x = qkv.values();
        // Keys and values of head `head` at row `row`.
        let key = |row: usize, head: usize| &x[row * width + heads * head_dim + head * head_dim..][..head_dim];
        let value = |row: usize, head: usize| &x[row * width + (heads + kv_heads + head) * head_dim..][..head_dim];
        match &mut kv.store {
            Store::F32 { k, v } => {
                let v = Disjoint::new(v);
                self.pool.rows(k, n, &|_, first, k| {
                    for (h, k) in k.chunks_exact_mut(n).enumerate() {
                        let head = first + h;
                        // SAFETY: every head goes to one worker.
                        let v = unsafe { v.piece(head * n..(head + 1) * n) };
                        for row in 0..rows {
                            let p = pos + row;
                            key(row, head).iter().enumerate().for_each(|(c, &x)| k[key_at(p, c, head_dim)] = x);
                            v[p * head_dim..(p + 1) * head_dim].copy_from_slice(value(row, head));
                        }
                    }
                });
            }
            Store::F16 { k, v } => {
                let v = Disjoint::new(v);
                self.pool.rows(k, n, &|_, first, k| {
                    for (h, k) in k.chunks_exact_mut(n).enumerate() {
                        let head = first + h;
                        // SAFETY: every head goes to one worker.
                        let v = unsafe { v.piece(head * n..(head + 1) * n) };
                        for row in 0..rows {
                            let p = pos + row;
                            for (c, &x) in key(row, head).iter().enumerate() {
                                k[key_at(p, c, head_dim)] = f16::from_f32(x).to_bits();
                            }
                            for (v, &x) in v[p * head_dim..(p + 1) * head_dim].iter_mut().zip(value(row, head)) {
                                *v = f16::from_f32(x).to_bits();
                            }
                        }
                    }
                });
            }
            Store::Q8 { k, k_scales, v, v_scales } => {
                let (k_scales, v, v_scales) = (Disjoint::new(k_scales), Disjoint::new(v), Disjoint::new(v_scales));
                self.pool.rows(k, n, &|_, first, k| {
                    for (h, k) in k.chunks_exact_mut(n).enumerate() {
                        let head = first + h;
                        // SAFETY: every head goes to one worker.
                        let (k_scales, v, v_scales) = unsafe {
                            let scales = head * n / 32..(head + 1) * n / 32;
                            (k_scales.piece(scales.clone()), v.piece(head * n..(head + 1) * n), v_scales.piece(scales))
                        };
                        for row in 0..rows {
                            let p = pos + row;
                            for (b, x) in key(row, head).chunks_exact(32).enumerate() {
                                let scale = code(x, |i, q| k[key_at(p, 32 * b + i, head_dim)] = q);
                                k_scales[key_at(p, b, head_dim / 32)] = scale;
                            }
                            for (b, x) in value(row, head).chunks_exact(32).enumerate() {
                                let at = p * head_dim + 32 * b;
                                v_scales[at / 32] = code(x, |i, q| v[at + i] = q);
                            }
                        }
                    }
                });
            }
        }
        Ok(())
    }

    pub(super) fn attention_cached(&self, qkv: &Buffer, kv: &Kv, pos: usize, out: &mut Buffer) -> Result<()> {
        let KvShape { capacity, heads, kv_heads, head_dim, .. } = kv.shape;
        let (rows, width) = (qkv.rows, qkv.width);
        let bad = |what: String| Err(TargetError::Shape { op: "attend_cached", what });
        if width != (heads + 2 * kv_heads) * head_dim || out.width != heads * head_dim {
            return bad(format!("rows of {width} to rows of {}, for {heads} + 2 · {kv_heads} heads of {head_dim}", out.width));
        }
        if pos.checked_add(rows).is_none_or(|end| end > capacity) {
            return bad(format!("positions {pos}..{} of a cache of {capacity}", pos.saturating_add(rows)));
        }
        super::match_rows("attend_cached", rows, out)?;
        let workers = self.attention_room(kv.tiles * TILE, head_dim, 0)?;
        let group = heads / kv_heads;
        // A head's queries in the order (row, head of the group); tiles of them are dealt out in turn, since later
        // ones have more to do.
        let queries = rows * group;
        let tiles = queries.div_ceil(QUERIES);
        let items = tiles * kv_heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let (stride, out_width) = (kv.tiles * TILE, out.width);
        let x = qkv.values();
        let out = Disjoint::new(out.values_mut());
        let threads = self.pool.threads().min(items);
        self.pool.run(threads, &|_, pieces| {
            for piece in pieces {
                let mut worker = workers[piece].lock().unwrap_or_else(PoisonError::into_inner);
                let Worker { q, scores, mixed, .. } = &mut *worker;
                for item in (piece..items).step_by(threads) {
                    let (head, first) = (item % kv_heads, item / kv_heads * QUERIES);
                    let n = QUERIES.min(queries - first);
                    let place = |i: usize| ((first + i) / group, head * group + (first + i) % group);
                    for i in 0..n {
                        let (row, head) = place(i);
                        let from = row * width + head * head_dim;
                        q[i * head_dim..(i + 1) * head_dim].copy_from_slice(&x[from..from + head_dim]);
                    }
                    let positions = pos + place(n - 1).0 + 1;
                    let key_tiles = positions.div_ceil(TILE);
                    self.kernels.scores(&q[..n * head_dim], head_dim, kv.keys(head), key_tiles, scores, stride);
                    let mut sums = [0f32; QUERIES];
                    for i in 0..n {
                        let row = &mut scores[i * stride..][..key_tiles * TILE];
                        sums[i] = self.kernels.softmax_exp(row, pos + place(i).0 + 1, scale);
                    }
                    let mixed = &mut mixed[..n * head_dim];
                    self.kernels.mix(scores, stride, kv.values(head), positions, head_dim, mixed);
                    for i in 0..n {
                        let (row, head) = place(i);
                        let at = row * out_width + head * head_dim;
                        // SAFETY: every (row, head) belongs to one item.
                        let out = unsafe { out.piece(at..at + head_dim) };
                        divide(&mixed[i * head_dim..(i + 1) * head_dim], sums[i], out);
                    }
                }
            }
        });
        Ok(())
    }

    pub(super) fn attention_full(
        &self,
        q: Columns<'_, Buffer>,
        k: Columns<'_, Buffer>,
        v: Columns<'_, Buffer>,
        shape: AttendShape,
        out: &mut Buffer,
    ) -> Result<()> {
        let AttendShape { batch, q_tokens, kv_tokens, heads, head_dim } = shape;
        let wide = heads * head_dim;
        let bad = |what: String| Err(TargetError::Shape { op: "attend", what });
        for (name, columns, tokens) in [("q", &q, q_tokens), ("k", &k, kv_tokens), ("v", &v, kv_tokens)] {
            if columns.buffer.rows != batch * tokens || columns.first + wide > columns.buffer.width {
                let (rows, width) = (columns.buffer.rows, columns.buffer.width);
                return bad(format!("{name}: columns {} + {wide} of [{rows}, {width}], batch {batch} of {tokens}", columns.first));
            }
        }
        if out.width != wide || head_dim == 0 || kv_tokens == 0 {
            return bad(format!("{heads} heads of {head_dim} over {kv_tokens} tokens to rows of {}", out.width));
        }
        super::match_rows("attend", batch * q_tokens, out)?;
        let key_tiles = kv_tokens.div_ceil(TILE);
        let stride = key_tiles * TILE;
        let workers = self.attention_room(stride, head_dim, key_tiles)?;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let (qs, ks, vs) = (q.buffer.values(), k.buffer.values(), v.buffer.values());
        let (q_width, k_width, v_width) = (q.buffer.width, k.buffer.width, v.buffer.width);
        let out = Disjoint::new(out.values_mut());
        self.pool.run(batch * heads, &|thread, items| {
            let mut worker = workers[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let Worker { q: queries, scores, mixed, keys } = &mut *worker;
            for item in items {
                let (picture, head) = (item / heads, item % heads);
                let from = picture * kv_tokens * k_width + k.first + head * head_dim;
                keys[..key_tiles * TILE * head_dim].fill(0.0);
                for p in 0..kv_tokens {
                    for (c, &x) in ks[from + p * k_width..][..head_dim].iter().enumerate() {
                        keys[key_at(p, c, head_dim)] = x;
                    }
                }
                let values = Values::F32(&vs[picture * kv_tokens * v_width + v.first + head * head_dim..], v_width);
                for first in (0..q_tokens).step_by(QUERIES) {
                    let n = QUERIES.min(q_tokens - first);
                    for i in 0..n {
                        let at = (picture * q_tokens + first + i) * q_width + q.first + head * head_dim;
                        queries[i * head_dim..(i + 1) * head_dim].copy_from_slice(&qs[at..at + head_dim]);
                    }
                    self.kernels.scores(&queries[..n * head_dim], head_dim, Keys::F32(keys), key_tiles, scores, stride);
                    let mut sums = [0f32; QUERIES];
                    for i in 0..n {
                        sums[i] = self.kernels.softmax_exp(&mut scores[i * stride..][..stride], kv_tokens, scale);
                    }
                    let mixed = &mut mixed[..n * head_dim];
                    self.kernels.mix(scores, stride, values, kv_tokens, head_dim, mixed);
                    for i in 0..n {
                        let at = (picture * q_tokens + first + i) * wide + head * head_dim;
                        // SAFETY: every (row, head) belongs to one item.
                        let out = unsafe { out.piece(at..at + head_dim) };
                        divide(&mixed[i * head_dim..(i + 1) * head_dim], sums[i], out);
                    }
                }
            }
        });
        Ok(())
    }

    /// The threads' scratch, large enough.
    fn attention_room(&self, stride: usize, head_dim: usize, key_tiles: usize) -> Result<&[Mutex<Worker>]> {
        for worker in &self.attention {
            worker.lock().unwrap_or_else(PoisonError::into_inner).make_room(stride, head_dim, key_tiles)?;
        }
        Ok(&self.attention)
    }
}

/// `out = x / sum`.
fn divide(x: &[f32], sum: f32, out: &mut [f32]) {
    let inverse = 1.0 / sum;
    out.iter_mut().zip(x).for_each(|(out, x)| *out = x * inverse);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_in_an_eight_bit_cache_shows() {
        let mut x = [0.5f32; 32];
        let scale = |x: &[f32]| f16::from_bits(code(x, |_, _| ()));
        assert_eq!(scale(&x), f16::from_f32(0.5 / 127.0));
        x[3] = f32::NAN;
        assert!(scale(&x).is_nan());
        x[3] = f32::INFINITY;
        assert!(scale(&x).is_infinite());
    }
}
