//! The small descriptions that operations take.

use crate::{Result, TargetError};

/// What happens to a linear layer's result `y`.
#[derive(Debug)]
pub enum After<'a, V> {
    /// `out = y`.
    Nothing,
    /// `out = gelu(y)`, the exact (erf) form.
    Gelu,
    /// `out = y · sigmoid(1.702 y)`.
    QuickGelu,
    /// `out += y`.
    Add,
    /// `out += scale ⊙ y`, `scale` per output channel (LayerScale, ConvNeXt's gamma).
    ScaleAdd(&'a V),
}

impl<V> Clone for After<'_, V> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<V> Copy for After<'_, V> {}

/// What stands between the two layers of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// The exact (erf) form.
    Gelu,
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    /// `silu(gate) ⊙ up`, the first half of the columns being the gate.
    SiluGate,
}

/// A run of columns of a buffer.
#[derive(Debug)]
pub struct Columns<'a, B> {
    /// The buffer.
    pub buffer: &'a B,
    /// Its first column.
    pub first: usize,
}

/// Full attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttendShape {
    /// Independent pictures.
    pub batch: usize,
    /// Query rows of each.
    pub q_tokens: usize,
    /// Key and value rows of each.
    pub kv_tokens: usize,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// A batch of feature maps, channels last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// Maps.
    pub batch: usize,
    /// Rows of a map.
    pub height: usize,
    /// Columns of a map.
    pub width: usize,
}

impl MapShape {
    /// Positions of all maps together.
    pub fn positions(&self) -> usize {
        self.batch * self.height * self.width
    }
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 4 bytes a number: for reference runs.
    F32,
    /// 2 bytes a number.
    F16,
    /// Blocks of 32 with one scale: 34 bytes per 32 numbers.
    Q8_0,
}

/// One decoder layer's attention and cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Positions it holds.
    pub capacity: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// How numbers are kept.
    pub ty: KvType,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// `base^(−2i/head_dim) · scale` for pair `i`: `[head_dim / 2]`, the angle per position.
    pub frequencies: Vec<f32>,
}

impl Rope {
    /// Frequencies for heads of `head_dim` channels; `scale` multiplies positions (1 without scaling).
    ///
    /// Computed as the reference does: `1 / base^(2i/head_dim)` in f32.
    pub fn new(head_dim: usize, base: f32, scale: f32) -> Rope {
        let frequencies = (0..head_dim / 2).map(|i| scale / base.powf((2 * i) as f32 / head_dim as f32)).collect();
        Rope { frequencies }
    }
}

/// `slots` ascend without repetition among the `rows · used` rows of an output, of which `out_rows` are current.
pub(crate) fn check_slots(op: &'static str, rows: usize, slots: &[u32], used: usize, out_rows: usize) -> Result<()> {
    let refused = |what: String| Err(TargetError::Shape { op, what });
    if used == 0 || rows.checked_mul(used) != Some(out_rows) {
        return refused(format!("{used} experts for each of {rows} rows, and {out_rows} rows of results"));
    }
    if let Some(pair) = slots.windows(2).find(|pair| pair[0] >= pair[1]) {
        return refused(format!("slot {} after slot {}", pair[1], pair[0]));
    }
    match slots.last() {
        Some(&last) if last as usize >= out_rows => refused(format!("slot {last} of {out_rows}")),
        _ => Ok(()),
    }
}

/// `used` results and weights for each of `rows` rows.
pub(crate) fn check_weights(op: &'static str, rows: usize, weights: usize, used: usize, results: usize) -> Result<()> {
    if used == 0 || rows.checked_mul(used) != Some(results) || weights != results {
        let what = format!("{weights} weights and {results} results, for {used} experts for each of {rows} rows");
        return Err(TargetError::Shape { op, what });
    }
    Ok(())
}
