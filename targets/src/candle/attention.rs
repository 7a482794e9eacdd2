//! Attention, rotary positions and the decoder's cache.

use std::sync::PoisonError;

use candle_core::{DType, Device, Tensor};

use candle_nn::ops::softmax_last_dim;
use candle_nn::rotary_emb::rope_i;

use super::{CandleBuffer, CandleTarget, require};
use crate::{AttendShape, Columns, KvShape, KvType, Result, Rope};

/// Scores of a tile of queries take at most about this many bytes.
const SCORE_BYTES: usize = if cfg!(test) { 100 } else { 64 << 20 };

/// Numbers per block of [`KvType::Q8_0`].
const BLOCK: usize = 32;

/// Keys and values of one layer.
#[derive(Debug)]
pub struct CandleKv {
    shape: KvShape,
    /// `[kv heads, capacity, head_dim]`, `f32` or `f16`; `f32` for [`KvType::Q8_0`].
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
}

impl CandleKv {
    pub(super) fn new(target: &CandleTarget, shape: KvShape) -> Result<CandleKv> {
        let KvShape { capacity, heads, kv_heads, head_dim, ty } = shape;
        require(kv_heads > 0 && heads > 0 && heads.is_multiple_of(kv_heads), "kv", || format!("{heads} heads over {kv_heads} key heads"))?;
        require(head_dim > 0 && head_dim.is_multiple_of(2), "kv", || format!("heads of width {head_dim}"))?;
        require(capacity > 0, "kv", || "a cache for no position".into())?;
        let blocks = ty != KvType::Q8_0 || head_dim.is_multiple_of(BLOCK);
        require(blocks, "kv", || format!("heads of width {head_dim} are no whole blocks of {BLOCK}"))?;
        let dtype = if ty == KvType::F16 { DType::F16 } else { DType::F32 };
        let half = || target.zeros(&[kv_heads, capacity, head_dim], dtype, "a key-value cache");
        Ok(CandleKv { shape, keys: half()?, values: half()? })
    }

    pub(super) fn bytes(&self) -> usize {
        2 * self.keys.elem_count() * self.keys.dtype().size_in_bytes()
    }

    /// Stores `x` `[kv heads, rows, head_dim]` in `half` from position `pos` on.
    fn store(&self, half: &Tensor, x: &Tensor, pos: usize) -> Result<()> {
        let x = match self.shape.ty {
            KvType::F32 => x.contiguous()?,
            KvType::F16 => x.contiguous()?.to_dtype(DType::F16)?,
            KvType::Q8_0 => through_q8_0(&x.contiguous()?)?,
        };
        Ok(half.slice_set(&x, 1, pos)?)
    }

    /// The first `positions` of `half` as `f32`.
    fn load(&self, half: &Tensor, positions: usize) -> Result<Tensor> {
        Ok(half.narrow(1, 0, positions)?.to_dtype(DType::F32)?)
    }

    /// `rows` rows of a packed qkv fit at `pos`.
    fn fits(&self, op: &'static str, qkv: &CandleBuffer, pos: usize) -> Result<()> {
        let s = &self.shape;
        qkv.is_wide(op, "qkv", (s.heads + 2 * s.kv_heads) * s.head_dim)?;
        let inside = pos.checked_add(qkv.rows).is_some_and(|end| end <= s.capacity);
        require(inside, op, || format!("positions {pos}..{} of {}", pos.saturating_add(qkv.rows), s.capacity))
    }
}

/// `x`, contiguous, as it comes back from blocks of 32 with an `f16` scale: `d = max|x| / 127`, `q = round(x / d)`
/// with halves away from zero, and `q · f16(d)`.
fn through_q8_0(x: &Tensor) -> Result<Tensor> {
    let blocks = x.reshape(((), BLOCK))?;
    let scale = (blocks.abs()?.max_keepdim(1)? / 127.0)?;
    let inverse = scale.gt(0f32)?.where_cond(&scale.recip()?, &scale.zeros_like()?)?;
    let quants = blocks.broadcast_mul(&inverse)?.round()?;
    let scale = scale.to_dtype(DType::F16)?.to_dtype(DType::F32)?;
    Ok(quants.broadcast_mul(&scale)?.reshape(x.shape())?)
}

/// Rows of a run of columns as `[heads, rows, head_dim]`, contiguous.
fn heads_of(buffer: &CandleBuffer, row: usize, rows: usize, col: usize, heads: usize, head_dim: usize) -> Result<Tensor> {
    let x = buffer.block(row, rows, col, heads * head_dim)?.reshape((rows, heads, head_dim))?;
    Ok(x.transpose(0, 1)?.contiguous()?)
}

/// `[heads, rows, head_dim]` back to rows.
fn rows_of(x: &Tensor) -> Result<Tensor> {
    let (heads, rows, head_dim) = x.dims3()?;
    Ok(x.transpose(0, 1)?.reshape((rows, heads * head_dim))?)
}

/// Queries whose scores over `keys` keys are formed at once.
fn query_tile(heads: usize, keys: usize) -> usize {
    (SCORE_BYTES / 4 / heads.max(1) / keys.max(1)).max(1)
}

pub(super) fn attend(
    q: Columns<'_, CandleBuffer>,
    k: Columns<'_, CandleBuffer>,
    v: Columns<'_, CandleBuffer>,
    shape: AttendShape,
    out: &mut CandleBuffer,
) -> Result<()> {
    let AttendShape { batch, q_tokens, kv_tokens, heads, head_dim } = shape;
    let width = heads * head_dim;
    require(kv_tokens > 0 && width > 0, "attend", || format!("{shape:?}"))?;
    for (name, columns, tokens) in [("q", &q, q_tokens), ("k", &k, kv_tokens), ("v", &v, kv_tokens)] {
        let (rows, all) = (columns.buffer.rows, columns.buffer.width());
        require(rows == batch * tokens, "attend", || format!("{name} has {rows} rows, not {batch} · {tokens}"))?;
        let inside = columns.first.checked_add(width).is_some_and(|end| end <= all);
        require(inside, "attend", || format!("{name} takes {width} columns from {} on, of {all}", columns.first))?;
    }
    out.is_wide("attend", "out", width)?;
    out.resize("attend", batch * q_tokens)?;

    let scale = 1.0 / (head_dim as f64).sqrt();
    let tile = query_tile(heads, kv_tokens);
    for picture in 0..batch {
        let k = heads_of(k.buffer, picture * kv_tokens, kv_tokens, k.first, heads, head_dim)?;
        let v = heads_of(v.buffer, picture * kv_tokens, kv_tokens, v.first, heads, head_dim)?;
        for first in (0..q_tokens).step_by(tile) {
            let row = picture * q_tokens + first;
            let q = heads_of(q.buffer, row, tile.min(q_tokens - first), q.first, heads, head_dim)?;
            let weights = softmax_last_dim(&(q * scale)?.matmul(&k.t()?)?)?;
            out.put(rows_of(&weights.matmul(&v)?)?, row, 0)?;
        }
    }
    Ok(())
}

/// Cosines and sines `[rows, pairs]` of the angles by which rows turn that stand at `pos` and after it.
#[derive(Debug)]
pub(super) struct Angles {
    pos: usize,
    rows: usize,
    frequencies: Vec<f32>,
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    fn new(rope: &Rope, pos: usize, rows: usize, device: &Device) -> Result<Angles> {
        let positions: Vec<f32> = (pos..pos + rows).map(|p| p as f32).collect();
        let positions = Tensor::from_vec(positions, (rows, 1), device)?;
        let frequencies = Tensor::from_slice(&rope.frequencies, (1, rope.frequencies.len()), device)?;
        let angles = positions.broadcast_mul(&frequencies)?;
        Ok(Angles { pos, rows, frequencies: rope.frequencies.to_vec(), cos: angles.cos()?, sin: angles.sin()? })
    }

    fn are(&self, rope: &Rope, pos: usize, rows: usize) -> bool {
        (self.pos, self.rows) == (pos, rows) && self.frequencies == rope.frequencies
    }
}

pub(super) fn rope_append(t: &CandleTarget, qkv: &mut CandleBuffer, rope: &Rope, kv: &mut CandleKv, pos: usize) -> Result<()> {
    let KvShape { heads, kv_heads, head_dim, .. } = kv.shape;
    kv.fits("rope_append", qkv, pos)?;
    let pairs = head_dim / 2;
    require(rope.frequencies.len() == pairs, "rope_append", || format!("{} frequencies for heads of {head_dim}", rope.frequencies.len()))?;
    let rows = qkv.rows;
    if rows == 0 {
        return Ok(());
    }

    let mut angles = t.angles.lock().unwrap_or_else(PoisonError::into_inner);
    let angles = match &mut *angles {
        Some(angles) if angles.are(rope, pos, rows) => angles,
        other => other.insert(Angles::new(rope, pos, rows, t.device())?),
    };
    let turning = heads + kv_heads;
    let values = heads_of(qkv, 0, rows, turning * head_dim, kv_heads, head_dim)?;
    let turned = heads_of(qkv, 0, rows, 0, turning, head_dim)?.unsqueeze(0)?;
    let turned = rope_i(&turned, &angles.cos, &angles.sin)?.squeeze(0)?;
    kv.store(&kv.keys, &turned.narrow(0, heads, kv_heads)?, pos)?;
    kv.store(&kv.values, &values, pos)?;
    qkv.put(rows_of(&turned)?, 0, 0)
}

pub(super) fn attend_cached(qkv: &CandleBuffer, kv: &CandleKv, pos: usize, out: &mut CandleBuffer) -> Result<()> {
    let KvShape { heads, kv_heads, head_dim, .. } = kv.shape;
    kv.fits("attend_cached", qkv, pos)?;
    out.is_wide("attend_cached", "out", heads * head_dim)?;
    out.resize("attend_cached", qkv.rows)?;

    let rows = qkv.rows;
    let group = heads / kv_heads;
    let scale = 1.0 / (head_dim as f64).sqrt();
    let tile = query_tile(heads, pos + rows);
    for first in (0..rows).step_by(tile) {
        let n = tile.min(rows - first);
        let end = pos + first + n;
        let (k, v) = (kv.load(&kv.keys, end)?, kv.load(&kv.values, end)?);
        // The heads of a group are neighbours, so they stack into the rows of one product with their key head.
        let q = (heads_of(qkv, first, n, 0, heads, head_dim)?.reshape((kv_heads, group * n, head_dim))? * scale)?;
        let scores = q.matmul(&k.t()?)?.reshape((heads, n, end))?;
        // A single row sees everything.
        let scores = if n == 1 { scores } else { scores.broadcast_add(&causal(n, end, scores.device())?)? };
        let weights = softmax_last_dim(&scores)?;
        let mixed = weights.reshape((kv_heads, group * n, end))?.matmul(&v)?.reshape((heads, n, head_dim))?;
        out.put(rows_of(&mixed)?, first, 0)?;
    }
    Ok(())
}

/// `[n, end]`: 0 where the row that stands at `end − n + r` sees the column, −∞ after it.
fn causal(n: usize, end: usize, device: &Device) -> Result<Tensor> {
    let mask: Vec<f32> = (end - n..end).flat_map(|at| (0..end).map(move |key| if key <= at { 0.0 } else { f32::NEG_INFINITY })).collect();
    Ok(Tensor::from_vec(mask, (n, end), device)?)
}
