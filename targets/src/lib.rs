//! What computes: one trait, [`Target`], and its implementations.
//!
//! A model is straight-line Rust over [`Target`]: it makes its buffers once, asks for coarse operations (a norm, a
//! linear layer, attention over a cache) and never sees a thread, an instruction set or a device. [`cpu`] runs on
//! our own kernels over weights that stay in the mapped file; `candle` runs the same operations on candle, as the
//! second witness of every result and as the way to GPUs.

#[cfg(feature = "candle")]
pub mod candle;
pub mod cpu;
pub mod error;
pub mod profile;
pub mod shape;

use std::any::Any;

use sphinx_quant::Tensor;

pub use error::{Result, TargetError};
pub use profile::Profile;
pub use shape::{Activation, After, AttendShape, Columns, KvShape, KvType, MapShape, Rope};

/// A linear layer: `y = x · weightᵀ + bias`.
pub struct Linear<T: Target> {
    /// `[out, in]`.
    pub weight: T::Matrix,
    /// `[out]`.
    pub bias: Option<T::Vector>,
}

/// A two-layer feed-forward part: `down(act(up(x)))`.
pub struct Mlp<T: Target> {
    /// First layer; for [`Activation::SiluGate`] it holds gate and up in one, `[2·hidden, in]`, gate first.
    pub up: Linear<T>,
    /// What stands between the layers.
    pub act: Activation,
    /// Second layer `[out, hidden]`.
    pub down: Linear<T>,
}

/// A LayerNorm: `(x − mean) / sqrt(var + eps) · weight + bias` per row.
pub struct Norm<T: Target> {
    /// `[width]`.
    pub weight: T::Vector,
    /// `[width]`.
    pub bias: T::Vector,
    /// Added to the variance.
    pub eps: f32,
}

/// Memory that is readied for copies stays so as long as this lives.
pub type Pin = Box<dyn Any + Send + Sync>;

/// Brings weights to where a target computes, from other threads than the one that computes and beside it.
pub trait Carrier<T: Target>: Send + Sync {
    /// What [`Target::matrix_fine`] makes of `parts`, with its weights at their place when it returns: nothing of `parts` is kept.
    ///
    /// # Errors
    /// As [`Target::matrix_fine`], and when the device has no memory for them.
    fn matrix_fine(&self, parts: &[Tensor]) -> Result<T::Matrix>;

    /// Readies memory that weights are brought from again and again. `None` where that is of no use, or refused.
    fn pin(&self, memory: &mut [u8]) -> Option<Pin>;
}

/// A machine that can run a model.
///
/// Buffers are row-major `[rows, width]` matrices of `f32`. A buffer is made with room for `capacity` rows and
/// has a current number of rows, which [`set_rows`](Target::set_rows) changes without allocating; operations act
/// on the current rows. Outputs are set to the input's number of rows by the operation where the two agree.
///
/// Every operation checks the shapes it is given and answers [`TargetError::Shape`] when they do not fit. A row's
/// result depends on that row alone, never on the rows it is batched with, and never on the number of threads.
pub trait Target: Sized + 'static {
    /// An activation matrix `[rows, width]`.
    type Buffer;
    /// A weight matrix `[out, in]`, in whatever format the file has.
    type Matrix: Send + Sync;
    /// Parameters used element by element, as `f32`: a norm's weight, a bias, a depthwise kernel, a table.
    type Vector: Send + Sync;
    /// Keys and values of one decoder layer, written in place.
    type Kv;

    /// What runs, for logs: `cpu avx512vnni, 2 threads`.
    fn name(&self) -> String;

    /// Whether it computes from the mapped bytes of a file, so that memory is taken by what is touched and given back when pages
    /// are dropped.
    fn computes_in_place(&self) -> bool {
        false
    }

    /// What brings weights to it while it computes; `None` where it computes with them where they are.
    fn carrier(&self) -> Option<Box<dyn Carrier<Self>>> {
        None
    }

    /// Bytes that are free where weights are copied to; `None` where they are not copied, or nobody knows.
    fn free_bytes(&self) -> Option<u64> {
        None
    }

    /// Bytes of scratch that it holds for itself.
    fn scratch_bytes(&self) -> usize {
        0
    }

    /// Frees that scratch: what comes next needs less of it, and takes its own.
    fn free_scratch(&self) {}

    // Parameters.

    /// The matrix that `parts` form when stacked along their outputs (q, k and v, say); they share their columns.
    /// Nothing is copied where the target can compute from the mapped bytes.
    fn matrix(&self, parts: &[Tensor]) -> Result<Self::Matrix>;

    /// As [`matrix`](Target::matrix), for layers whose inputs must not be rounded coarsely: a target that rounds the
    /// activations which quantised weights meet does so here to about 16 bits rather than 8.
    ///
    /// A mixture of experts needs it. Rounding to 8 bits puts an error of half a percent on every product; a dense
    /// decoder averages it away, but a router whose best experts are close together then chooses another one, and the
    /// token's result is another, not a slightly different one. It costs time (twice the multiplications), not memory:
    /// weights are still read once.
    fn matrix_fine(&self, parts: &[Tensor]) -> Result<Self::Matrix> {
        self.matrix(parts)
    }

    /// Outputs and inputs of a matrix.
    fn matrix_shape(&self, matrix: &Self::Matrix) -> (usize, usize);

    /// All elements of `tensor`, which is F32, F16 or BF16.
    fn vector(&self, tensor: &Tensor) -> Result<Self::Vector>;

    /// `values` as parameters.
    fn vector_from(&self, values: &[f32]) -> Result<Self::Vector>;

    // Buffers.

    /// A zeroed buffer with room for `capacity` rows, all of them current.
    fn buffer(&self, capacity: usize, width: usize) -> Result<Self::Buffer>;

    /// Current rows.
    fn rows(&self, buffer: &Self::Buffer) -> usize;

    /// Width of a row.
    fn width(&self, buffer: &Self::Buffer) -> usize;

    /// Makes `rows` (at most the capacity) the current number of rows; contents of the rows stay.
    fn set_rows(&self, buffer: &mut Self::Buffer, rows: usize) -> Result<()>;

    /// Copies `values` (whole rows) into `buffer` from row `first` on.
    fn write(&self, values: &[f32], buffer: &mut Self::Buffer, first: usize) -> Result<()>;

    /// Copies rows from `first` on into `values` (whole rows).
    fn read(&self, buffer: &Self::Buffer, first: usize, values: &mut [f32]) -> Result<()>;

    /// Copies `rows` rows of all columns of `src`, from row `src_row` on, to `dst` at `dst_row` and column `dst_col`.
    fn copy(&self, src: &Self::Buffer, src_row: usize, rows: usize, dst: &mut Self::Buffer, dst_row: usize, dst_col: usize) -> Result<()>;

    // Operations.

    /// Rows `ids` of an embedding table, written to `out` from row `first` on. An id past the table is an error.
    fn embed(&self, table: &Self::Matrix, ids: &[u32], out: &mut Self::Buffer, first: usize) -> Result<()>;

    /// `x · weight / sqrt(mean(x²) + eps)` per row.
    fn rms_norm(&self, x: &Self::Buffer, weight: &Self::Vector, eps: f32, out: &mut Self::Buffer) -> Result<()>;

    /// `(x − mean) / sqrt(var + eps) · weight + bias` per row, biased variance.
    fn layer_norm(&self, x: &Self::Buffer, weight: &Self::Vector, bias: &Self::Vector, eps: f32, out: &mut Self::Buffer) -> Result<()>;

    /// A linear layer, then `after`.
    fn linear(&self, x: &Self::Buffer, layer: &Linear<Self>, after: After<'_, Self::Vector>, out: &mut Self::Buffer) -> Result<()>;

    /// A feed-forward part, then `after`. The hidden map is never held for more than a tile of rows.
    fn mlp(&self, x: &Self::Buffer, mlp: &Mlp<Self>, after: After<'_, Self::Vector>, out: &mut Self::Buffer) -> Result<()>;

    /// `mlp(layer_norm(x))`, then `after`: neither the normalised rows nor the hidden map are held for more than a tile.
    fn normed_mlp(
        &self,
        x: &Self::Buffer,
        norm: &Norm<Self>,
        mlp: &Mlp<Self>,
        after: After<'_, Self::Vector>,
        out: &mut Self::Buffer,
    ) -> Result<()> {
        let mut normed = self.buffer(self.rows(x), self.width(x))?;
        self.layer_norm(x, &norm.weight, &norm.bias, norm.eps, &mut normed)?;
        self.mlp(&normed, mlp, after, out)
    }

    /// One expert of a mixture, for the tokens that are routed to it: `out[s] = expert(x[s / used])` for every slot `s`
    /// of `slots`, the other rows of `out` staying as they are.
    ///
    /// `x`: `[rows, dim]`; `out`: `[rows · used, dim]`, row `r · used + j` being for the `j`-th expert of token `r`.
    /// `slots` ascend without repetition. A slot's result is the one that [`mlp`](Target::mlp) has for its token.
    fn expert_mlp(&self, x: &Self::Buffer, slots: &[u32], used: usize, expert: &Mlp<Self>, out: &mut Self::Buffer) -> Result<()>;

    /// Adds up the results of a mixture's experts: `out[r] += Σ_j weights[r · used + j] · y[r · used + j]`, `j`
    /// ascending, so that the order in which experts came does not show.
    ///
    /// `y`: `[rows · used, dim]`, as [`expert_mlp`](Target::expert_mlp) leaves it; `weights`: `[rows · used]`; `out`:
    /// `[rows, dim]`.
    fn mix_experts(&self, y: &Self::Buffer, weights: &[f32], used: usize, out: &mut Self::Buffer) -> Result<()>;

    /// `x[r] += table[r mod tokens]`, `table` being `[tokens, width]`: position embeddings over a whole batch, so the
    /// rows of `x` are a multiple of `tokens`.
    fn add_table(&self, x: &mut Self::Buffer, table: &Self::Vector) -> Result<()>;

    /// Full, unmasked attention of each picture of a batch: `softmax(q kᵀ / sqrt(head_dim)) v`.
    ///
    /// `q` is `[batch · q_tokens, …]`, `k` and `v` are `[batch · kv_tokens, …]`, each a run of `heads · head_dim`
    /// columns of its buffer (so a packed qkv is given three times); `out` is `[batch · q_tokens, heads · head_dim]`.
    fn attend(
        &self,
        q: Columns<'_, Self::Buffer>,
        k: Columns<'_, Self::Buffer>,
        v: Columns<'_, Self::Buffer>,
        shape: AttendShape,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Depthwise convolution with odd square kernel, stride 1, zero padding; channels last.
    ///
    /// `x`, `out`: `[batch · height · width, channels]`; `kernel`: `[side · side, channels]`; `bias`: `[channels]`.
    fn conv_depthwise(
        &self,
        x: &Self::Buffer,
        map: MapShape,
        kernel: &Self::Vector,
        bias: &Self::Vector,
        out: &mut Self::Buffer,
    ) -> Result<()>;

    /// Gathers 2×2 neighbourhoods: `[batch · h · w, c]` to `[batch · h/2 · w/2, 4c]` in the order (row, column, channel).
    fn fold_2x2(&self, x: &Self::Buffer, map: MapShape, out: &mut Self::Buffer) -> Result<()>;

    /// The mean of each 2×2 neighbourhood: `[batch · h · w, c]` to `[batch · h/2 · w/2, c]`.
    fn pool_2x2(&self, x: &Self::Buffer, map: MapShape, out: &mut Self::Buffer) -> Result<()>;

    /// The mean of each run of `group` rows: `[batch · group, c]` to `[batch, c]`.
    fn mean_rows(&self, x: &Self::Buffer, group: usize, out: &mut Self::Buffer) -> Result<()>;

    // The decoder's cache.

    /// An empty cache for one layer.
    fn kv(&self, shape: KvShape) -> Result<Self::Kv>;

    /// Bytes that the cache occupies.
    fn kv_bytes(&self, kv: &Self::Kv) -> usize;

    /// Rotates the query and key heads of `qkv` `[rows, (heads + 2·kv heads) · head_dim]` (q | k | v), row `r` at
    /// position `pos + r`, in place, and stores keys and values in `kv` at these positions.
    ///
    /// Channels `2i` and `2i + 1` of a head turn together by `(pos + r) · rope.scale · rope.base^(−2i/head_dim)`.
    fn rope_append(&self, qkv: &mut Self::Buffer, rope: &Rope, kv: &mut Self::Kv, pos: usize) -> Result<()>;

    /// Causal attention of the query heads of `qkv` (row `r` at position `pos + r`) over positions `0..=pos + r` of
    /// `kv`; query head `j` reads key head `j / (heads / kv heads)`. `out`: `[rows, heads · head_dim]`.
    fn attend_cached(&self, qkv: &Self::Buffer, kv: &Self::Kv, pos: usize, out: &mut Self::Buffer) -> Result<()>;
}
