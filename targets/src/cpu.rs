//! Our own kernels, over weights that stay in the mapped file.
//!
//! [`CpuTarget`] checks shapes and divides work between threads ([`pool`]); [`matmul`] and [`attention`] say how the
//! two large operations are cut up; [`kernels`] is a table of plain functions on slices, written first in
//! [`portable`], their specification, and again where a processor offers more.

#[cfg(target_arch = "aarch64")]
mod arm;
pub mod attention;
pub mod buffer;
pub mod isa;
pub mod kernels;
pub mod matmul;
mod mlp;
pub mod pool;
pub mod portable;
pub mod q8;
pub mod record;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod simd;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::{Mutex, MutexGuard, PoisonError};

use sphinx_quant::{Tensor, block};

use crate::shape::{check_slots, check_weights};
use crate::{Activation, After, AttendShape, Columns, KvShape, Linear, MapShape, Mlp, Norm, Result, Rope, Target, TargetError};
use attention::Kv;
use buffer::{Aligned, Buffer};
pub use isa::{Isa, features};
use kernels::Kernels;
use matmul::Matrix;
use pool::Pool;
pub use record::Recorded;
use record::Recorder;

/// The environment variable that keeps activations in `f32` (value `f32`; `q8` is the usual way).
pub const ACTIVATIONS_VARIABLE: &str = "SPHINX_ACTIVATIONS";

/// How to make a [`CpuTarget`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads; `None` for the physical cores that the process may use.
    pub threads: Option<usize>,
    /// The most capable instruction set to use; `None` for what the processor has, capped by `SPHINX_ISA`.
    pub isa: Option<Isa>,
    /// Whether quantised weights are multiplied with activations in `f32` rather than in 8 bits: slow, for
    /// measuring what the 8 bits cost.
    pub f32_activations: bool,
    /// Whether the inputs of every weight matrix are summed up, squared, for [`CpuTarget::take_record`].
    pub record: bool,
}

impl CpuOptions {
    /// What `SPHINX_ISA` and `SPHINX_ACTIVATIONS` ask for.
    ///
    /// # Errors
    /// [`TargetError::Option`] for values they do not have.
    pub fn from_env() -> Result<CpuOptions> {
        let activations = std::env::var_os(ACTIVATIONS_VARIABLE).map(|v| v.to_string_lossy().into_owned());
        let f32_activations = f32_activations(activations.as_deref())?;
        Ok(CpuOptions { isa: Isa::cap_from_env()?, f32_activations, ..CpuOptions::default() })
    }
}

/// What a value of `SPHINX_ACTIVATIONS` means.
fn f32_activations(value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("q8") => Ok(false),
        Some("f32") => Ok(true),
        Some(value) => {
            Err(TargetError::Option { name: ACTIVATIONS_VARIABLE, value: value.to_owned(), remedy: "use f32 or q8, or leave it unset" })
        }
    }
}

/// The processor, with a pool of threads and scratch that is used again.
pub struct CpuTarget {
    kernels: Kernels,
    pool: Pool,
    f32_activations: bool,
    scratch: Mutex<matmul::Scratch>,
    attention: Vec<Mutex<attention::Worker>>,
    conv: Vec<Mutex<Aligned<f32>>>,
    angles: Mutex<attention::Angles>,
    parts: Mutex<attention::Parts>,
    recorder: Option<Mutex<Recorder>>,
}

impl CpuTarget {
    /// Finds the instruction set and starts the threads.
    ///
    /// # Errors
    /// [`TargetError::Option`] when `SPHINX_ISA` is consulted and has an unknown value; [`TargetError::Threads`] when
    /// one of them does not start.
    pub fn new(options: CpuOptions) -> Result<CpuTarget> {
        let cap = match options.isa {
            Some(isa) => Some(isa),
            None => Isa::cap_from_env()?,
        };
        let kernels = Kernels::for_isa(Isa::best(cap));
        let threads = options.threads.unwrap_or_else(pool::default_threads).max(1);
        let pool = Pool::new(threads).map_err(|source| TargetError::Threads { count: threads, source })?;
        let target = CpuTarget {
            kernels,
            f32_activations: options.f32_activations,
            scratch: Mutex::new(matmul::Scratch::new(threads)),
            attention: (0..threads).map(|_| Mutex::new(attention::Worker::new())).collect(),
            conv: (0..threads).map(|_| Mutex::new(Aligned::empty())).collect(),
            angles: Mutex::new(attention::Angles::new()),
            parts: Mutex::new(attention::Parts::new()),
            recorder: options.record.then(Mutex::default),
            pool,
        };
        tracing::info!(isa = %target.isa(), threads, f32_activations = options.f32_activations, "cpu target");
        Ok(target)
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa()
    }

    /// Threads in use, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// What was recorded since the last time, by tensor name and place in the file, and starts anew; nothing unless
    /// [`CpuOptions::record`] is on.
    ///
    /// Sums are added up row by row in the order of calls, for any number of threads.
    pub fn take_record(&self) -> Vec<Recorded> {
        let take = |recorder: &Mutex<Recorder>| std::mem::take(&mut *recorder.lock().unwrap_or_else(PoisonError::into_inner));
        self.recorder.as_ref().map_or_else(Vec::new, |recorder| take(recorder).finish())
    }

    /// LayerNorm of rows as long as `weight`.
    fn normalise(&self, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let width = weight.len();
        self.pool.rows_by(out, width, piece_rows(width), &|_, first, out| {
            for (out, x) in out.chunks_exact_mut(width).zip(x[first * width..].chunks_exact(width)) {
                self.kernels.layer_norm(x, weight, bias, eps, out);
            }
        });
    }

    fn scratch(&self) -> MutexGuard<'_, matmul::Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rows of a map that a thread convolves at a time: what its kernel works on together.
const MAP_ROWS: usize = 16;
/// Bytes that a thread writes at a time where an operation only passes over its rows.
const PIECE_BYTES: usize = 128 << 10;

/// As many rows of numbers as make a piece of work.
fn piece_rows(width: usize) -> usize {
    (PIECE_BYTES / 4 / width.max(1)).max(1)
}

/// An error of `op` unless `ok`.
fn expect(op: &'static str, ok: bool, what: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(TargetError::Shape { op, what: what() }) }
}

/// Gives `out` `rows` rows.
fn match_rows(op: &'static str, rows: usize, out: &mut Buffer) -> Result<()> {
    expect(op, rows <= out.capacity, || format!("{rows} rows into a buffer of {}", out.capacity))?;
    out.rows = rows;
    Ok(())
}

/// Gives `out` the rows of a layer's input, unless the layer adds to what is there.
fn match_layer_rows(op: &'static str, rows: usize, after: After<'_, Vec<f32>>, out: &mut Buffer) -> Result<()> {
    if matches!(after, After::Add | After::ScaleAdd(_)) {
        return expect(op, rows == out.rows, || format!("{rows} rows added to {}", out.rows));
    }
    match_rows(op, rows, out)
}

/// Checks a layer against its input and what follows.
fn check_layer(op: &'static str, layer: &Linear<CpuTarget>, width: usize) -> Result<()> {
    let (n, k) = (layer.weight.rows(), layer.weight.cols());
    expect(op, width == k, || format!("rows of {width} into a matrix of [{n}, {k}]"))?;
    let bias = layer.bias.as_ref().map_or(n, Vec::len);
    expect(op, bias == n, || format!("a bias of {bias} for {n} outputs"))
}

/// Checks both layers of a feed-forward part whose input is `width` wide.
fn check_mlp(op: &'static str, mlp: &Mlp<CpuTarget>, width: usize) -> Result<()> {
    let wide = mlp.up.weight.rows();
    let inner = if mlp.act == Activation::SiluGate { wide / 2 } else { wide };
    expect(op, mlp.act != Activation::SiluGate || wide == 2 * inner, || format!("gate and up of {wide} outputs together"))?;
    check_layer(op, &mlp.up, width)?;
    check_layer(op, &mlp.down, inner)
}

/// Checks the width of a layer's results.
fn check_after(op: &'static str, n: usize, after: After<'_, Vec<f32>>, out: &Buffer) -> Result<()> {
    expect(op, out.width == n, || format!("{n} outputs into rows of {}", out.width))?;
    if let After::ScaleAdd(scale) = after {
        expect(op, scale.len() == n, || format!("a scale of {} for {n} outputs", scale.len()))?;
    }
    Ok(())
}

impl Target for CpuTarget {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Kv = Kv;

    fn name(&self) -> String {
        let threads = self.threads();
        format!("cpu {}, {threads} thread{}", self.isa(), if threads == 1 { "" } else { "s" })
    }

    fn computes_in_place(&self) -> bool {
        true
    }

    /// What the largest operations so far needed.
    fn scratch_bytes(&self) -> usize {
        fn sum<T>(all: &[Mutex<T>], bytes: impl Fn(&T) -> usize) -> usize {
            all.iter().map(|one| bytes(&one.lock().unwrap_or_else(PoisonError::into_inner))).sum()
        }
        let angles = self.angles.lock().unwrap_or_else(PoisonError::into_inner).bytes();
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner).bytes();
        self.scratch().bytes() + sum(&self.attention, attention::Worker::bytes) + sum(&self.conv, Aligned::bytes) + angles + parts
    }

    fn free_scratch(&self) {
        fn put<T>(place: &Mutex<T>, fresh: T) {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
        put(&self.scratch, matmul::Scratch::new(self.threads()));
        self.attention.iter().for_each(|worker| put(worker, attention::Worker::new()));
        self.conv.iter().for_each(|map| put(map, Aligned::empty()));
        put(&self.angles, attention::Angles::new());
        put(&self.parts, attention::Parts::new());
    }

    fn matrix(&self, parts: &[Tensor]) -> Result<Matrix> {
        Matrix::new(parts, 1)
    }

    fn matrix_fine(&self, parts: &[Tensor]) -> Result<Matrix> {
        Matrix::new(parts, 2)
    }

    fn matrix_shape(&self, matrix: &Matrix) -> (usize, usize) {
        (matrix.rows(), matrix.cols())
    }

    fn vector(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        if !tensor.ty().is_float() {
            return Err(TargetError::Type { op: "vector", tensor: tensor.name().to_owned(), ty: tensor.ty() });
        }
        tensor.fetch();
        let mut values = vec![0.0; tensor.len()];
        block::dequantize(tensor.ty(), tensor.bytes(), &mut values);
        Ok(values)
    }

    fn vector_from(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn buffer(&self, capacity: usize, width: usize) -> Result<Buffer> {
        Buffer::new(capacity, width)
    }

    fn rows(&self, buffer: &Buffer) -> usize {
        buffer.rows
    }

    fn width(&self, buffer: &Buffer) -> usize {
        buffer.width
    }

    fn set_rows(&self, buffer: &mut Buffer, rows: usize) -> Result<()> {
        match_rows("set_rows", rows, buffer)
    }

    fn write(&self, values: &[f32], buffer: &mut Buffer, first: usize) -> Result<()> {
        let (rows, width) = (buffer.rows, buffer.width);
        let end = first.checked_mul(width).and_then(|at| at.checked_add(values.len())).filter(|&end| end <= rows * width);
        let fits = end.is_some() && (width == 0 || values.len().is_multiple_of(width));
        expect("write", fits, || format!("{} values at row {first} of [{rows}, {width}]", values.len()))?;
        buffer.values_mut()[first * width..][..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn read(&self, buffer: &Buffer, first: usize, values: &mut [f32]) -> Result<()> {
        let (rows, width) = (buffer.rows, buffer.width);
        let end = first.checked_mul(width).and_then(|at| at.checked_add(values.len())).filter(|&end| end <= rows * width);
        let fits = end.is_some() && (width == 0 || values.len().is_multiple_of(width));
        expect("read", fits, || format!("{} values from row {first} of [{rows}, {width}]", values.len()))?;
        values.copy_from_slice(&buffer.values()[first * width..][..values.len()]);
        Ok(())
    }

    fn copy(&self, src: &Buffer, src_row: usize, rows: usize, dst: &mut Buffer, dst_row: usize, dst_col: usize) -> Result<()> {
        let inside = |first: usize, len: usize, of: usize| first.checked_add(len).is_some_and(|end| end <= of);
        let fits = inside(src_row, rows, src.rows) && inside(dst_row, rows, dst.rows) && inside(dst_col, src.width, dst.width);
        expect("copy", fits, || {
            let (sr, sw, dr, dw) = (src.rows, src.width, dst.rows, dst.width);
            format!("{rows} rows from {src_row} of [{sr}, {sw}] to row {dst_row}, column {dst_col} of [{dr}, {dw}]")
        })?;
        let (sw, dw) = (src.width, dst.width);
        for r in 0..rows {
            let from = &src.values()[(src_row + r) * sw..][..sw];
            dst.values_mut()[(dst_row + r) * dw + dst_col..][..sw].copy_from_slice(from);
        }
        Ok(())
    }

    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut Buffer, first: usize) -> Result<()> {
        let (n, width) = (table.rows(), table.cols());
        let fits = out.width == width && first.checked_add(ids.len()).is_some_and(|end| end <= out.rows);
        let (rows, out_width) = (out.rows, out.width);
        expect("embed", fits, || format!("{} rows of {width} at row {first} of [{rows}, {out_width}]", ids.len()))?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= n) {
            return Err(TargetError::Shape { op: "embed", what: format!("id {id} of a table of {n}") });
        }
        let out = &mut out.values_mut()[first * width..][..ids.len() * width];
        for (out, &id) in out.chunks_exact_mut(width.max(1)).zip(ids) {
            table.dequantize_row(id as usize, out);
        }
        Ok(())
    }

    fn rms_norm(&self, x: &Buffer, weight: &Vec<f32>, eps: f32, out: &mut Buffer) -> Result<()> {
        let width = x.width;
        let fits = weight.len() == width && out.width == width;
        expect("rms_norm", fits, || format!("rows of {width}, weight {}, out {}", weight.len(), out.width))?;
        match_rows("rms_norm", x.rows, out)?;
        let x = x.values();
        self.pool.rows_by(out.values_mut(), width, piece_rows(width), &|_, first, out| {
            for (out, x) in out.chunks_exact_mut(width).zip(x[first * width..].chunks_exact(width)) {
                self.kernels.rms_norm(x, weight, eps, out);
            }
        });
        Ok(())
    }

    fn layer_norm(&self, x: &Buffer, weight: &Vec<f32>, bias: &Vec<f32>, eps: f32, out: &mut Buffer) -> Result<()> {
        let width = x.width;
        let fits = weight.len() == width && bias.len() == width && out.width == width;
        let what = || format!("rows of {width}, weight {}, bias {}, out {}", weight.len(), bias.len(), out.width);
        expect("layer_norm", fits, what)?;
        match_rows("layer_norm", x.rows, out)?;
        self.normalise(x.values(), weight, bias, eps, out.values_mut());
        Ok(())
    }

    fn linear(&self, x: &Buffer, layer: &Linear<Self>, after: After<'_, Vec<f32>>, out: &mut Buffer) -> Result<()> {
        check_layer("linear", layer, x.width)?;
        check_after("linear", layer.weight.rows(), after, out)?;
        match_layer_rows("linear", x.rows, after, out)?;
        self.apply_linear(x.values(), layer, after, out.values_mut())
    }

    fn mlp(&self, x: &Buffer, mlp: &Mlp<Self>, after: After<'_, Vec<f32>>, out: &mut Buffer) -> Result<()> {
        check_mlp("mlp", mlp, x.width)?;
        check_after("mlp", mlp.down.weight.rows(), after, out)?;
        match_layer_rows("mlp", x.rows, after, out)?;
        self.apply_mlp(x.values(), None, mlp, after, out.values_mut())
    }

    fn normed_mlp(&self, x: &Buffer, norm: &Norm<Self>, mlp: &Mlp<Self>, after: After<'_, Vec<f32>>, out: &mut Buffer) -> Result<()> {
        let (width, weights, biases) = (x.width, norm.weight.len(), norm.bias.len());
        expect("normed_mlp", weights == width && biases == width, || format!("rows of {width}, weight {weights}, bias {biases}"))?;
        check_mlp("normed_mlp", mlp, width)?;
        check_after("normed_mlp", mlp.down.weight.rows(), after, out)?;
        match_layer_rows("normed_mlp", x.rows, after, out)?;
        self.apply_mlp(x.values(), Some(norm), mlp, after, out.values_mut())
    }

    fn expert_mlp(&self, x: &Buffer, slots: &[u32], used: usize, expert: &Mlp<Self>, out: &mut Buffer) -> Result<()> {
        check_mlp("expert_mlp", expert, x.width)?;
        check_after("expert_mlp", expert.down.weight.rows(), After::Nothing, out)?;
        check_slots("expert_mlp", x.rows, slots, used, out.rows)?;
        self.apply_expert(x.values(), slots, used, expert, out.values_mut())
    }

    fn mix_experts(&self, y: &Buffer, weights: &[f32], used: usize, out: &mut Buffer) -> Result<()> {
        let width = y.width;
        expect("mix_experts", out.width == width, || format!("rows of {width} to rows of {}", out.width))?;
        check_weights("mix_experts", out.rows, weights.len(), used, y.rows)?;
        let y = y.values();
        self.pool.rows_by(out.values_mut(), width, piece_rows(width), &|_, first, out| {
            for (r, out) in out.chunks_exact_mut(width).enumerate() {
                let slots = (first + r) * used..(first + r + 1) * used;
                let (y, weights) = (&y[slots.start * width..slots.end * width], &weights[slots]);
                for (c, out) in out.chunks_mut(64).enumerate() {
                    let mut sums = [0f32; 64];
                    for (y, weight) in y.chunks_exact(width).zip(weights) {
                        sums.iter_mut().zip(&y[64 * c..]).for_each(|(sum, y)| *sum += weight * y);
                    }
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                }
            }
        });
        Ok(())
    }

    fn add_table(&self, x: &mut Buffer, table: &Vec<f32>) -> Result<()> {
        let (rows, width) = (x.rows, x.width);
        let fits = width > 0 && !table.is_empty() && table.len().is_multiple_of(width) && rows.is_multiple_of(table.len() / width);
        expect("add_table", fits, || format!("a table of {} to [{rows}, {width}]", table.len()))?;
        for rows in x.values_mut().chunks_exact_mut(table.len()) {
            rows.iter_mut().zip(table).for_each(|(x, t)| *x += t);
        }
        Ok(())
    }

    fn attend(
        &self,
        q: Columns<'_, Buffer>,
        k: Columns<'_, Buffer>,
        v: Columns<'_, Buffer>,
        shape: AttendShape,
        out: &mut Buffer,
    ) -> Result<()> {
        self.attention_full(q, k, v, shape, out)
    }

    fn conv_depthwise(&self, x: &Buffer, map: MapShape, kernel: &Vec<f32>, bias: &Vec<f32>, out: &mut Buffer) -> Result<()> {
        let channels = x.width;
        let side = (1..64).step_by(2).find(|side| side * side * channels == kernel.len());
        let fits = channels > 0 && x.rows == map.positions() && out.width == channels && bias.len() == channels;
        let Some(side) = side.filter(|_| fits) else {
            let (rows, taps, biases) = (x.rows, kernel.len(), bias.len());
            let what = format!("[{rows}, {channels}] as {map:?} with a kernel of {taps} and a bias of {biases} to rows of {}", out.width);
            return Err(TargetError::Shape { op: "conv_depthwise", what });
        };
        match_rows("conv_depthwise", x.rows, out)?;
        let (x, row, one) = (x.values(), map.width * channels, map.height * map.width * channels);
        for scratch in &self.conv {
            let mut scratch = scratch.lock().unwrap_or_else(PoisonError::into_inner);
            scratch.at_least(self.kernels.conv_scratch(map.width, side), "scratch of a convolution")?;
        }
        // Every piece reads some rows of its neighbours, too, so that they are not cut smaller than the threads ask for.
        let grain = (map.batch * map.height).div_ceil(self.threads()).min(MAP_ROWS);
        self.pool.rows_by(out.values_mut(), row, grain, &|worker, first, mut out| {
            let mut scratch = self.conv[worker].lock().unwrap_or_else(PoisonError::into_inner);
            let mut at = first;
            while !out.is_empty() {
                let (picture, y) = (at / map.height, at % map.height);
                let rows = (map.height - y).min(out.len() / row);
                let (mine, rest) = out.split_at_mut(rows * row);
                let x = &x[picture * one..(picture + 1) * one];
                self.kernels.conv_depthwise(x, map.width, channels, kernel, side, bias, y..y + rows, mine, &mut scratch);
                (at, out) = (at + rows, rest);
            }
        });
        Ok(())
    }

    fn fold_2x2(&self, x: &Buffer, map: MapShape, out: &mut Buffer) -> Result<()> {
        let c = x.width;
        let even = map.height.is_multiple_of(2) && map.width.is_multiple_of(2);
        expect("fold_2x2", even && x.rows == map.positions() && out.width == 4 * c, || {
            format!("[{}, {c}] as {map:?} to rows of {}", x.rows, out.width)
        })?;
        match_rows("fold_2x2", x.rows / 4, out)?;
        let (x, columns) = (x.values(), map.width / 2);
        self.pool.rows_by(out.values_mut(), 4 * c, piece_rows(4 * c), &|_, first, out| {
            for (r, out) in out.chunks_exact_mut(4 * c).enumerate() {
                // Rows of all pictures run through, since each has an even number of them.
                let (y, column) = ((first + r) / columns, (first + r) % columns);
                for dy in 0..2 {
                    let from = ((2 * y + dy) * map.width + 2 * column) * c;
                    out[dy * 2 * c..(dy + 1) * 2 * c].copy_from_slice(&x[from..from + 2 * c]);
                }
            }
        });
        Ok(())
    }

    fn pool_2x2(&self, x: &Buffer, map: MapShape, out: &mut Buffer) -> Result<()> {
        let c = x.width;
        let even = map.height.is_multiple_of(2) && map.width.is_multiple_of(2);
        expect("pool_2x2", even && x.rows == map.positions() && out.width == c, || {
            format!("[{}, {c}] as {map:?} to rows of {}", x.rows, out.width)
        })?;
        match_rows("pool_2x2", x.rows / 4, out)?;
        let (x, columns) = (x.values(), map.width / 2);
        self.pool.rows_by(out.values_mut(), c, piece_rows(c), &|_, first, out| {
            for (r, out) in out.chunks_exact_mut(c).enumerate() {
                // Rows of all pictures run through, since each has an even number of them.
                let (y, column) = ((first + r) / columns, (first + r) % columns);
                let row = |dy: usize| &x[((2 * y + dy) * map.width + 2 * column) * c..][..2 * c];
                let ((a, b), (d, e)) = (row(0).split_at(c), row(1).split_at(c));
                for ((((out, a), b), d), e) in out.iter_mut().zip(a).zip(b).zip(d).zip(e) {
                    *out = ((a + b) + (d + e)) * 0.25;
                }
            }
        });
        Ok(())
    }

    fn mean_rows(&self, x: &Buffer, group: usize, out: &mut Buffer) -> Result<()> {
        let c = x.width;
        let fits = group > 0 && x.rows.is_multiple_of(group) && out.width == c;
        expect("mean_rows", fits, || format!("[{}, {c}] in groups of {group} to rows of {}", x.rows, out.width))?;
        match_rows("mean_rows", x.rows / group, out)?;
        for (out, x) in out.values_mut().chunks_exact_mut(c.max(1)).zip(x.values().chunks_exact((group * c).max(1))) {
            for (i, out) in out.iter_mut().enumerate() {
                let sum: f64 = (0..group).map(|r| f64::from(x[r * c + i])).sum();
                *out = (sum / group as f64) as f32;
            }
        }
        Ok(())
    }

    fn kv(&self, shape: KvShape) -> Result<Kv> {
        Kv::new(shape)
    }

    fn kv_bytes(&self, kv: &Kv) -> usize {
        kv.bytes()
    }

    fn rope_append(&self, qkv: &mut Buffer, rope: &Rope, kv: &mut Kv, pos: usize) -> Result<()> {
        self.rotate_and_store(qkv, rope, kv, pos)
    }

    fn attend_cached(&self, qkv: &Buffer, kv: &Kv, pos: usize, out: &mut Buffer) -> Result<()> {
        self.attention_cached(qkv, kv, pos, out)
    }
}

#[cfg(test)]
mod parity;
#[cfg(test)]
mod tests;
