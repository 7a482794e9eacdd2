//! Attention over a cache, and full attention of encoders.
//!
//! Queries go over keys and values in tiles of some queries and parts of some positions, so that the scores of a tile stay
//! in the first cache. All query heads that share a key head are in one tile. Where there are fewer tiles than threads have
//! use for, in decoding, the parts of a tile are dealt out, too; they join in the same order, so nobody can tell.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::CpuTarget;
use super::buffer::{Aligned, Buffer};
use super::kernels::Kernels;
use super::pool::Disjoint;
use super::portable::attend::{Keys, ROOM, Share, TILE, Values};
use super::q8::Q8RowMut;
use crate::{AttendShape, Columns, KvShape, KvType, Result, Rope, TargetError};

/// Queries that read the keys together.
const QUERIES: usize = 48;

/// Positions of a part of a cache. Where parts begin depends on nothing but the position: a part's results are rounded
/// before they join those of others.
const PART: usize = 256;

/// Most positions of a part in full attention, whose parts are even: those of a picture are usually one.
const FULL_PART: usize = 512;

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

/// A cache while the threads of a job write different tiles of it.
enum Cells<'a> {
    F32 { k: Disjoint<'a, f32>, v: Disjoint<'a, f32> },
    F16 { k: Disjoint<'a, u16>, v: Disjoint<'a, u16> },
    Q8 { k: Disjoint<'a, i8>, k_scales: Disjoint<'a, u16>, v: Disjoint<'a, i8>, v_scales: Disjoint<'a, u16> },
}

/// What each thread needs for attention.
pub(super) struct Worker {
    /// Queries `[head_dim, n]`.
    q: Aligned<f32>,
    scores: Aligned<f32>,
    room: Aligned<f32>,
    /// What the parts so far have given, and the current one: tops, sums, mixed values.
    so_far: Aligned<f32>,
    part: Aligned<f32>,
    /// A head of a picture.
    keys: Aligned<f32>,
    values: Aligned<f32>,
    /// Keys and values of a row as the cache keeps them.
    halves: Aligned<u16>,
    codes: Aligned<i8>,
    scales: Aligned<f32>,
    sums: Aligned<i16>,
}

impl Worker {
    pub(super) fn new() -> Worker {
        let floats = Aligned::<f32>::empty;
        Worker {
            q: floats(),
            scores: floats(),
            room: floats(),
            so_far: floats(),
            part: floats(),
            keys: floats(),
            values: floats(),
            halves: Aligned::empty(),
            codes: Aligned::empty(),
            scales: floats(),
            sums: Aligned::empty(),
        }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        let floats = [&self.q, &self.scores, &self.room, &self.so_far, &self.part, &self.keys, &self.values, &self.scales];
        floats.iter().map(|a| a.bytes()).sum::<usize>() + self.halves.bytes() + self.codes.bytes() + self.sums.bytes()
    }

    /// Room for tiles of queries with parts of `part` positions, and for a head of `whole` positions.
    fn make_room(&mut self, part: usize, head_dim: usize, whole: usize) -> Result<()> {
        let what = "scratch of attention";
        self.q.at_least(QUERIES * head_dim, what)?;
        self.scores.at_least(QUERIES * part, what)?;
        self.room.at_least(ROOM, what)?;
        self.so_far.at_least(share_len(QUERIES, head_dim), what)?;
        self.part.at_least(share_len(QUERIES, head_dim), what)?;
        self.keys.at_least(whole * head_dim, what)?;
        self.values.at_least(whole * head_dim, what)?;
        Ok(())
    }

    /// Room for the `n` numbers of a row that go to a cache.
    fn make_room_for_row(&mut self, n: usize, ty: KvType) -> Result<()> {
        let what = "scratch of keys and values";
        match ty {
            KvType::F32 => {}
            KvType::F16 => {
                self.halves.at_least(n, what)?;
            }
            KvType::Q8_0 => {
                self.codes.at_least(n, what)?;
                self.scales.at_least(n / 32, what)?;
                self.sums.at_least(n / 16, what)?;
            }
        }
        Ok(())
    }
}

/// Cosines and sines of positions: computed once for all layers.
pub(super) struct Angles {
    frequencies: Vec<f32>,
    first: usize,
    rows: usize,
    /// `[rows, head_dim]`, the cosines of a row first.
    table: Aligned<f32>,
}

impl Angles {
    pub(super) fn new() -> Angles {
        Angles { frequencies: Vec::new(), first: 0, rows: 0, table: Aligned::empty() }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.table.bytes() + 4 * self.frequencies.capacity()
    }

    /// The table of `rows` positions from `first` on.
    fn of(&mut self, rope: &Rope, first: usize, rows: usize) -> Result<&[f32]> {
        let half = rope.frequencies.len();
        let known = self.frequencies == rope.frequencies && self.first <= first && first + rows <= self.first + self.rows;
        if !known {
            // Nothing is known until all is there.
            self.rows = 0;
            self.frequencies.clone_from(&rope.frequencies);
            let table = self.table.at_least(rows * 2 * half, "angles of positions")?;
            for (row, table) in table.chunks_exact_mut(2 * half).enumerate() {
                let (cos, sin) = table.split_at_mut(half);
                for ((c, s), f) in cos.iter_mut().zip(sin).zip(&rope.frequencies) {
                    (*s, *c) = ((first + row) as f32 * f).sin_cos();
                }
            }
            (self.first, self.rows) = (first, rows);
        }
        Ok(&self.table[(first - self.first) * 2 * half..][..rows * 2 * half])
    }
}

/// What the parts of tiles have given that were dealt out to different threads.
pub(super) struct Parts {
    shares: Aligned<f32>,
    /// Per tile, how many parts are still to come.
    left: Vec<AtomicUsize>,
}

impl Parts {
    pub(super) fn new() -> Parts {
        Parts { shares: Aligned::empty(), left: Vec::new() }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.shares.bytes() + self.left.capacity() * size_of::<AtomicUsize>()
    }
}

/// Numbers of a share of `n` queries.
fn share_len(n: usize, head_dim: usize) -> usize {
    // Mixed values begin at a cache line.
    (2 * n).next_multiple_of(TILE) + n * head_dim
}

/// The share of `n` queries that lies in `x`.
fn share(x: &mut [f32], n: usize, head_dim: usize) -> Share<'_> {
    let (tops, rest) = x.split_at_mut(n);
    let (sums, rest) = rest.split_at_mut(n);
    let skip = (2 * n).next_multiple_of(TILE) - 2 * n;
    Share { tops, sums, mixed: &mut rest[skip..skip + n * head_dim] }
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

    /// Keys of a head from position `first` on, which begins a tile.
    fn keys(&self, head: usize, first: usize) -> Keys<'_> {
        let n = self.head_len();
        let at = head * n + first * self.shape.head_dim;
        let (of, scales) = (at..(head + 1) * n, at / 32..(head + 1) * n / 32);
        match &self.store {
            Store::F32 { k, .. } => Keys::F32(&k[of]),
            Store::F16 { k, .. } => Keys::F16(&k[of]),
            Store::Q8 { k, k_scales, .. } => Keys::Q8(&k[of], &k_scales[scales]),
        }
    }

    /// Values of a head from position `first` on.
    fn values(&self, head: usize, first: usize) -> Values<'_> {
        let n = self.head_len();
        let at = head * n + first * self.shape.head_dim;
        let (of, scales) = (at..(head + 1) * n, at / 32..(head + 1) * n / 32);
        match &self.store {
            Store::F32 { v, .. } => Values::F32(&v[of]),
            Store::F16 { v, .. } => Values::F16(&v[of]),
            Store::Q8 { v, v_scales, .. } => Values::Q8(&v[of], &v_scales[scales]),
        }
    }

    fn cells(&mut self) -> Cells<'_> {
        let new = Disjoint::<f32>::new;
        match &mut self.store {
            Store::F32 { k, v } => Cells::F32 { k: new(k), v: new(v) },
            Store::F16 { k, v } => Cells::F16 { k: Disjoint::new(k), v: Disjoint::new(v) },
            Store::Q8 { k, k_scales, v, v_scales } => {
                Cells::Q8 { k: Disjoint::new(k), k_scales: Disjoint::new(k_scales), v: Disjoint::new(v), v_scales: Disjoint::new(v_scales) }
            }
        }
    }
}

impl Cells<'_> {
    /// Stores a row at position `p`: `x` is its keys, head by head, then its values; a head takes `n` numbers of the cache.
    ///
    /// # Safety
    /// Nobody else may write positions of the tile that holds `p` at the same time.
    unsafe fn put(&self, kernels: &Kernels, x: &[f32], p: usize, head_dim: usize, n: usize, worker: &mut Worker) {
        let (keys, values) = x.split_at(x.len() / 2);
        // Where the tile's keys and the position's values of a head begin, and the row within the tile.
        let (tile, row, lane) = (p / TILE * TILE * head_dim, p * head_dim, p % TILE);
        let heads = |len: usize| (0..keys.len() / head_dim).map(move |head| (head * n, head * len..(head + 1) * len));
        match self {
            Cells::F32 { k, v } => {
                for (at, of) in heads(head_dim) {
                    // SAFETY: keys of the tile and values of the position, which are the caller's.
                    let (k, v) = unsafe { (k.piece(at + tile..at + tile + TILE * head_dim), v.piece(at + row..at + row + head_dim)) };
                    scatter(&keys[of.clone()], k, lane);
                    v.copy_from_slice(&values[of]);
                }
            }
            Cells::F16 { k, v } => {
                let halves = &mut worker.halves[..x.len()];
                halves.reinterpret_cast_mut::<f16>().convert_from_f32_slice(x);
                let (keys, values) = halves.split_at(keys.len());
                for (at, of) in heads(head_dim) {
                    // SAFETY: as above.
                    let (k, v) = unsafe { (k.piece(at + tile..at + tile + TILE * head_dim), v.piece(at + row..at + row + head_dim)) };
                    scatter(&keys[of.clone()], k, lane);
                    v.copy_from_slice(&values[of]);
                }
            }
            Cells::Q8 { k, k_scales, v, v_scales } => {
                let (codes, scales) = (&mut worker.codes[..x.len()], &mut worker.scales[..x.len() / 32]);
                kernels.quantize_q8(x, Q8RowMut { qs: codes, d: scales, sums: &mut worker.sums[..x.len() / 16] });
                let (codes, scales) = (codes.split_at(keys.len()), scales.split_at(keys.len() / 32));
                for (at, of) in heads(head_dim) {
                    // SAFETY: as above.
                    let (k, v) = unsafe { (k.piece(at + tile..at + tile + TILE * head_dim), v.piece(at + row..at + row + head_dim)) };
                    scatter(&codes.0[of.clone()], k, lane);
                    v.copy_from_slice(&codes.1[of]);
                }
                let blocks = head_dim / 32;
                for (at, of) in heads(blocks) {
                    let (tile, row) = (at / 32 + tile / 32, at / 32 + row / 32);
                    // SAFETY: scales of the same keys and values.
                    let (k, v) = unsafe { (k_scales.piece(tile..tile + TILE * blocks), v_scales.piece(row..row + blocks)) };
                    for (b, (k, v)) in k.chunks_exact_mut(TILE).zip(v).enumerate() {
                        k[lane] = f16::from_f32(scales.0[of.start + b]).to_bits();
                        *v = f16::from_f32(scales.1[of.start + b]).to_bits();
                    }
                }
            }
        }
    }
}

/// A position's channels into its tile: `tile[c][lane] = x[c]`.
fn scatter<T: Copy>(x: &[T], tile: &mut [T], lane: usize) {
    for (tile, x) in tile.chunks_exact_mut(TILE).zip(x) {
        tile[lane] = *x;
    }
}

impl CpuTarget {
    pub(super) fn rotate_and_store(&self, qkv: &mut Buffer, rope: &Rope, kv: &mut Kv, pos: usize) -> Result<()> {
        let KvShape { capacity, heads, kv_heads, head_dim, ty } = kv.shape;
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
        for worker in &self.attention {
            worker.lock().unwrap_or_else(PoisonError::into_inner).make_room_for_row(2 * kv_heads * head_dim, ty)?;
        }
        let mut angles = self.angles.lock().unwrap_or_else(PoisonError::into_inner);
        let angles = angles.of(rope, pos, rows)?;
        let (turned, n) = ((heads + kv_heads) * head_dim, kv.head_len());
        let cells = kv.cells();
        let x = Disjoint::new(qkv.values_mut());
        // Rows go to the threads by key tiles, which two of them could not write at once.
        let first_tile = pos / TILE;
        let tiles = (pos + rows).div_ceil(TILE) - first_tile;
        self.pool.run_by(tiles, 2, &|worker, tiles| {
            let mut worker = self.attention[worker].lock().unwrap_or_else(PoisonError::into_inner);
            let positions = (first_tile + tiles.start) * TILE..(first_tile + tiles.end) * TILE;
            for p in positions.start.max(pos)..positions.end.min(pos + rows) {
                let row = p - pos;
                // SAFETY: every row goes to one worker.
                let x = unsafe { x.piece(row * width..(row + 1) * width) };
                let (cos, sin) = angles[row * head_dim..(row + 1) * head_dim].split_at(head_dim / 2);
                self.kernels.rotate(&mut x[..turned], cos, sin);
                // SAFETY: every tile goes to one worker.
                unsafe { cells.put(&self.kernels, &x[heads * head_dim..], p, head_dim, n, &mut worker) };
            }
        });
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
        self.attention_room(PART, head_dim, 0)?;
        let group = heads / kv_heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        // A head's queries in the order (row, head of the group), cut into tiles.
        let queries = rows * group;
        let tiles = queries.div_ceil(QUERIES);
        let tile = |t: usize| Tile { first: t * QUERIES, n: QUERIES.min(queries - t * QUERIES), group, pos };
        let out_width = out.width;
        let (x, out) = (qkv.values(), Disjoint::new(out.values_mut()));
        // Queries of a tile, turned: members of a group are beside each other, groups of one head below each other.
        let gather = |tile: &Tile, head: usize, q: &mut [f32]| {
            let mut i = 0;
            while i < tile.n {
                let (row, member) = tile.place(i);
                let (n, stride) = if group == 1 { (tile.n - i, width) } else { ((group - member).min(tile.n - i), head_dim) };
                let n = n.min(TILE);
                self.kernels.turn(&x[row * width + (head * group + member) * head_dim..], stride, n, head_dim, &mut q[i..], tile.n);
                i += n;
            }
        };
        let finish = |tile: &Tile, head: usize, done: Share<'_>| {
            for (i, mixed) in done.mixed.chunks_exact(head_dim).enumerate() {
                let (row, member) = tile.place(i);
                let at = row * out_width + (head * group + member) * head_dim;
                // SAFETY: every (row, head) belongs to one tile, which is finished once.
                divide(mixed, done.sums[i], unsafe { out.piece(at..at + head_dim) });
            }
        };
        // A part of the context for a tile of queries.
        let part = |tile: &Tile, head: usize, first: usize, q: &[f32], scores: &mut [f32], room: &mut [f32], share: Share<'_>| {
            let mut valid = [0; QUERIES];
            for (i, valid) in valid[..tile.n].iter_mut().enumerate() {
                *valid = (tile.positions(i)).saturating_sub(first).min(PART);
            }
            let (keys, values) = (kv.keys(head, first), kv.values(head, first));
            self.attend_part(q, keys, values, &valid[..tile.n], scale, scores, PART, room, share);
        };
        let parts = (pos + rows).div_ceil(PART);
        if tiles == 1 && kv_heads < 4 * self.pool.threads() {
            let tile = tile(0);
            let one = share_len(tile.n, head_dim).next_multiple_of(TILE);
            let mut dealt = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
            let Parts { shares, left } = &mut *dealt;
            left.resize_with(kv_heads.max(left.len()), AtomicUsize::default);
            left.iter_mut().for_each(|left| *left.get_mut() = parts);
            // All that this cache can need, so that it does not grow from token to token.
            shares.at_least(kv_heads * kv.tiles.div_ceil(PART / TILE) * one, "parts of attention")?;
            let shares = Disjoint::new(&mut shares[..kv_heads * parts * one]);
            self.pool.run_by(kv_heads * parts, 1, &|worker, items| {
                let mut worker = self.attention[worker].lock().unwrap_or_else(PoisonError::into_inner);
                let Worker { q, scores, room, .. } = &mut *worker;
                for item in items {
                    let head = item / parts;
                    let q = &mut q[..tile.n * head_dim];
                    gather(&tile, head, q);
                    {
                        // SAFETY: every item has its own.
                        let mine = unsafe { shares.piece(item * one..(item + 1) * one) };
                        part(&tile, head, item % parts * PART, q, scores, room, share(mine, tile.n, head_dim));
                    }
                    if left[head].fetch_sub(1, Ordering::AcqRel) > 1 {
                        continue;
                    }
                    // SAFETY: all parts of the head are done, and nobody else sees that this was the last.
                    let all = unsafe { shares.piece(head * parts * one..(head + 1) * parts * one) };
                    let (so_far, others) = all.split_at_mut(one);
                    for other in others.chunks_exact_mut(one) {
                        let (so_far, other) = (share(so_far, tile.n, head_dim), share(other, tile.n, head_dim));
                        self.kernels.fold(so_far, other, head_dim, scale);
                    }
                    finish(&tile, head, share(so_far, tile.n, head_dim));
                }
            });
            return Ok(());
        }
        self.pool.run_by(kv_heads * tiles, 1, &|worker, items| {
            let mut worker = self.attention[worker].lock().unwrap_or_else(PoisonError::into_inner);
            let Worker { q, scores, room, so_far, part: next, .. } = &mut *worker;
            for item in items {
                let (head, tile) = (item / tiles, tile(item % tiles));
                let q = &mut q[..tile.n * head_dim];
                gather(&tile, head, q);
                part(&tile, head, 0, q, scores, room, share(so_far, tile.n, head_dim));
                for first in (PART..tile.positions(tile.n - 1)).step_by(PART) {
                    part(&tile, head, first, q, scores, room, share(next, tile.n, head_dim));
                    self.kernels.fold(share(so_far, tile.n, head_dim), share(next, tile.n, head_dim), head_dim, scale);
                }
                finish(&tile, head, share(so_far, tile.n, head_dim));
            }
        });
        Ok(())
    }

    /// Queries `[head_dim, n]` over the keys and values of a part, of which query `i` sees the first `valid[i]`; at least
    /// one of them sees something. Rows of `scores` are `stride` apart.
    #[allow(clippy::too_many_arguments)] // what it reads, and where it writes
    fn attend_part(
        &self,
        q: &[f32],
        keys: Keys<'_>,
        values: Values<'_>,
        valid: &[usize],
        scale: f32,
        scores: &mut [f32],
        stride: usize,
        room: &mut [f32],
        share: Share<'_>,
    ) {
        let head_dim = q.len() / valid.len();
        let positions = valid.iter().copied().max().unwrap_or(0);
        let tiles = positions.div_ceil(TILE);
        self.kernels.scores(q, head_dim, keys, tiles, room, scores, stride);
        self.kernels.softmax_exp(scores, stride, tiles * TILE, valid, scale, share.tops, share.sums);
        self.kernels.mix(scores, stride, values, positions, head_dim, room, share.mixed);
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
        let part = kv_tokens.div_ceil(kv_tokens.div_ceil(FULL_PART)).next_multiple_of(TILE);
        self.attention_room(part, head_dim, kv_tokens.next_multiple_of(TILE))?;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let (qs, ks, vs) = (q.buffer.values(), k.buffer.values(), v.buffer.values());
        let (q_width, k_width, v_width) = (q.buffer.width, k.buffer.width, v.buffer.width);
        let out = Disjoint::new(out.values_mut());
        self.pool.run_by(batch * heads, 1, &|worker, items| {
            let mut worker = self.attention[worker].lock().unwrap_or_else(PoisonError::into_inner);
            let Worker { q: queries, scores, room, so_far, part: next, keys, values, .. } = &mut *worker;
            for item in items {
                let (picture, head) = (item / heads, item % heads);
                let from = |first: usize, width: usize, columns: usize| first * width + columns + head * head_dim;
                for (tile, keys) in keys.chunks_exact_mut(TILE * head_dim).enumerate().take(kv_tokens.div_ceil(TILE)) {
                    let n = TILE.min(kv_tokens - tile * TILE);
                    if n < TILE {
                        keys.fill(0.0);
                    }
                    let at = from(picture * kv_tokens + tile * TILE, k_width, k.first);
                    self.kernels.turn(&ks[at..], k_width, n, head_dim, keys, TILE);
                }
                for (p, value) in values.chunks_exact_mut(head_dim).enumerate().take(kv_tokens) {
                    value.copy_from_slice(&vs[from(picture * kv_tokens + p, v_width, v.first)..][..head_dim]);
                }
                for first in (0..q_tokens).step_by(QUERIES) {
                    let n = QUERIES.min(q_tokens - first);
                    let queries = &mut queries[..n * head_dim];
                    for i in (0..n).step_by(TILE) {
                        let at = from(picture * q_tokens + first + i, q_width, q.first);
                        self.kernels.turn(&qs[at..], q_width, TILE.min(n - i), head_dim, &mut queries[i..], n);
                    }
                    for start in (0..kv_tokens).step_by(part) {
                        let valid = [part.min(kv_tokens - start); QUERIES];
                        let (keys, values) = (Keys::F32(&keys[start * head_dim..]), Values::F32(&values[start * head_dim..]));
                        let to = if start == 0 { &mut *so_far } else { &mut *next };
                        self.attend_part(queries, keys, values, &valid[..n], scale, scores, part, room, share(to, n, head_dim));
                        if start > 0 {
                            self.kernels.fold(share(so_far, n, head_dim), share(next, n, head_dim), head_dim, scale);
                        }
                    }
                    let done = share(so_far, n, head_dim);
                    for (i, mixed) in done.mixed.chunks_exact(head_dim).enumerate() {
                        let at = (picture * q_tokens + first + i) * wide + head * head_dim;
                        // SAFETY: every (row, head) belongs to one item.
                        divide(mixed, done.sums[i], unsafe { out.piece(at..at + head_dim) });
                    }
                }
            }
        });
        Ok(())
    }

    /// Makes the threads' scratch large enough.
    fn attention_room(&self, part: usize, head_dim: usize, whole: usize) -> Result<()> {
        for worker in &self.attention {
            worker.lock().unwrap_or_else(PoisonError::into_inner).make_room(part, head_dim, whole)?;
        }
        Ok(())
    }
}

/// Some of the queries that read a key head together.
struct Tile {
    /// The first of them, in the order (row, head of the group).
    first: usize,
    n: usize,
    /// Query heads per key head.
    group: usize,
    /// Position of row 0.
    pos: usize,
}

impl Tile {
    /// Row and member of the group that query `i` is.
    fn place(&self, i: usize) -> (usize, usize) {
        ((self.first + i) / self.group, (self.first + i) % self.group)
    }

    /// Positions that query `i` sees.
    fn positions(&self, i: usize) -> usize {
        self.pos + self.place(i).0 + 1
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
    use crate::Target;
    use crate::cpu::CpuOptions;

    #[test]
    fn a_fault_in_a_cache_shows() {
        let t = CpuTarget::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
        for ty in [KvType::F32, KvType::F16, KvType::Q8_0] {
            for fault in [f32::NAN, f32::INFINITY] {
                let mut kv = t.kv(KvShape { capacity: 4, heads: 1, kv_heads: 1, head_dim: 32, ty }).unwrap();
                let rope = Rope::new(32, 1e4, 1.0);
                let mut results = Vec::new();
                for (pos, at) in [(0, 96), (1, 70), (2, 96)] {
                    let mut x = t.buffer(1, 96).unwrap();
                    let mut row = [0.5; 97];
                    row[at] = fault;
                    t.write(&row[..96], &mut x, 0).unwrap();
                    let mut out = t.buffer(1, 32).unwrap();
                    t.rope_append(&mut x, &rope, &mut kv, pos).unwrap();
                    t.attend_cached(&x, &kv, pos, &mut out).unwrap();
                    results.push(out.values().iter().all(|v| v.is_finite()));
                }
                // Before, with, and after the faulty value.
                assert_eq!(results, [true, false, false], "{ty:?} {fault}");
            }
        }
    }

    #[test]
    fn angles_are_kept_and_made_anew() {
        let (a, b) = (Rope::new(8, 1e4, 1.0), Rope::new(8, 1e4, 0.5));
        let mut kept = Angles::new();
        for (rope, first, rows) in [(&a, 3, 5), (&a, 4, 2), (&a, 7, 2), (&b, 7, 2), (&b, 0, 3), (&a, 0, 3), (&a, 2, 1)] {
            let want = Angles::new().of(rope, first, rows).unwrap().to_vec();
            assert_eq!(kept.of(rope, first, rows).unwrap(), want, "{rows} from {first}");
        }
    }
}
