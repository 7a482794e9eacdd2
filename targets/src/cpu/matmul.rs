//! Linear layers: rows of activations times the rows of a mapped weight matrix.
//!
//! Quantised weights meet activations in 8 bits, which are made once per layer and shared by all its parts; float
//! weights meet the activations as they are. Threads divide the outputs. What follows a layer (bias, activation,
//! residual) happens while its results are in cache.

use std::sync::Mutex;

use sphinx_quant::{Tensor, block};

use super::CpuTarget;
use super::buffer::Aligned;
use super::kernels::Kernels;
use super::pool::{Disjoint, part};
use super::q8::Q8Rows;
use crate::{Activation, After, Linear, Mlp, Result, TargetError};

/// A weight matrix: parts of a mapped file, stacked along their outputs.
pub struct Matrix {
    parts: Vec<Tensor>,
    rows: usize,
    cols: usize,
}

impl Matrix {
    /// The parts stacked; they share their columns.
    pub(super) fn new(parts: &[Tensor]) -> Result<Matrix> {
        let Some(first) = parts.first() else {
            return Err(TargetError::Shape { op: "matrix", what: "no parts".into() });
        };
        let cols = first.cols();
        if let Some(odd) = parts.iter().find(|t| t.cols() != cols) {
            let what = format!("\"{}\" has {cols} columns and \"{}\" {}", first.name(), odd.name(), odd.cols());
            return Err(TargetError::Shape { op: "matrix", what });
        }
        let rows = parts.iter().map(Tensor::rows).sum();
        if rows == 0 || cols == 0 {
            return Err(TargetError::Shape { op: "matrix", what: format!("\"{}\" is [{rows}, {cols}]", first.name()) });
        }
        Ok(Matrix { rows, cols, parts: parts.to_vec() })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `row` as numbers.
    pub(super) fn dequantize_row(&self, mut row: usize, out: &mut [f32]) {
        for part in &self.parts {
            if row < part.rows() {
                return block::dequantize(part.ty(), part.row(row), out);
            }
            row -= part.rows();
        }
        panic!("row {row} past the end of a matrix");
    }
}

/// Weight rows whose results are finished together.
const STRIP: usize = 64;

/// What linear layers need beside their operands; made once, grown when a larger layer comes.
pub(super) struct Scratch {
    /// Activations in 8 bits.
    q8: Q8Rows,
    /// The hidden map of an MLP, a tile of rows.
    hidden: Aligned<f32>,
    workers: Vec<Mutex<Worker>>,
}

/// What each thread needs.
struct Worker {
    /// A weight row as numbers.
    row: Aligned<f32>,
    /// Results before they are finished: `[activation rows, STRIP]`.
    sums: Aligned<f32>,
}

impl Scratch {
    pub(super) fn new(threads: usize) -> Scratch {
        let worker = || Mutex::new(Worker { row: Aligned::empty(), sums: Aligned::empty() });
        Scratch { q8: Q8Rows::new(), hidden: Aligned::empty(), workers: (0..threads).map(|_| worker()).collect() }
    }
}

/// Bytes that the hidden map of an MLP may take, and the fewest rows of a tile.
const HIDDEN_BYTES: usize = 8 << 20;
const HIDDEN_ROWS: usize = 256;

impl CpuTarget {
    pub(super) fn apply_linear(&self, x: &[f32], layer: &Linear<CpuTarget>, after: After<'_, Vec<f32>>, out: &mut [f32]) -> Result<()> {
        let mut scratch = self.scratch();
        let Scratch { q8, workers, .. } = &mut *scratch;
        self.multiply(x, layer, after, out, q8, workers)
    }

    pub(super) fn apply_mlp(&self, x: &[f32], mlp: &Mlp<CpuTarget>, after: After<'_, Vec<f32>>, out: &mut [f32]) -> Result<()> {
        let (k, wide, n) = (mlp.up.weight.cols, mlp.up.weight.rows, mlp.down.weight.rows);
        let rows = x.len() / k;
        if rows == 0 {
            return Ok(());
        }
        let mut scratch = self.scratch();
        let Scratch { q8, hidden, workers } = &mut *scratch;
        let most = (HIDDEN_BYTES / (4 * wide)).max(HIDDEN_ROWS);
        let tile = rows.div_ceil(rows.div_ceil(most));
        let hidden = hidden.at_least(tile * wide, "the hidden map of a feed-forward part")?;
        for (x, out) in x.chunks(tile * k).zip(out.chunks_mut(tile * n)) {
            let rows = x.len() / k;
            let hidden = &mut hidden[..rows * wide];
            let after_up = match mlp.act {
                Activation::Gelu => After::Gelu,
                Activation::QuickGelu => After::QuickGelu,
                Activation::SiluGate => After::Nothing,
            };
            self.multiply(x, &mlp.up, after_up, hidden, q8, workers)?;
            let mut inner = wide;
            if mlp.act == Activation::SiluGate {
                inner = wide / 2;
                self.silu_gate(hidden, rows, inner);
            }
            self.multiply(&hidden[..rows * inner], &mlp.down, after, out, q8, workers)?;
        }
        Ok(())
    }

    /// `hidden` `[rows, 2 · inner]` becomes `[rows, inner]`, packed at its start.
    fn silu_gate(&self, hidden: &mut [f32], rows: usize, inner: usize) {
        if rows == 1 {
            let (gate, up) = hidden.split_at_mut(inner);
            let gate = Disjoint::new(gate);
            self.pool.run(inner.div_ceil(64), &|_, range| {
                let range = range.start * 64..(range.end * 64).min(inner);
                // SAFETY: ranges of one run do not overlap.
                self.kernels.silu_gate(unsafe { gate.piece(range.clone()) }, &up[range]);
            });
            return;
        }
        self.pool.rows(hidden, 2 * inner, &|_, _, rows| {
            for row in rows.chunks_exact_mut(2 * inner) {
                let (gate, up) = row.split_at_mut(inner);
                self.kernels.silu_gate(gate, up);
            }
        });
        for row in 1..rows {
            hidden.copy_within(2 * row * inner..(2 * row + 1) * inner, row * inner);
        }
    }

    /// `x` `[rows, k]` through a layer into `out` `[rows, n]`.
    fn multiply(
        &self,
        x: &[f32],
        layer: &Linear<CpuTarget>,
        after: After<'_, Vec<f32>>,
        out: &mut [f32],
        q8: &mut Q8Rows,
        workers: &[Mutex<Worker>],
    ) -> Result<()> {
        let matrix = &layer.weight;
        let (k, n) = (matrix.cols, matrix.rows);
        let rows = x.len() / k;
        let in_8_bits = !self.f32_activations && matrix.parts.iter().any(|t| !t.ty().is_float());
        if in_8_bits {
            self.quantize(x, k, q8)?;
        }
        for worker in workers {
            let mut worker = worker.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            worker.row.at_least(k, "a weight row")?;
            worker.sums.at_least(rows * STRIP, "results of a linear layer")?;
        }
        let out = Disjoint::new(out);
        let q8 = &*q8;
        self.pool.run(self.pool.threads(), &|_, pieces| {
            for piece in pieces {
                let mut worker = workers[piece].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let Worker { row, sums } = &mut *worker;
                let (mine, mut first) = (part(n, self.pool.threads(), piece), 0);
                for tensor in &matrix.parts {
                    let (start, end) = (mine.start.max(first), mine.end.min(first + tensor.rows()));
                    let mut at = start;
                    while at < end {
                        let strip = at..(at + STRIP).min(end);
                        for (j, r) in strip.clone().enumerate() {
                            let w = tensor.row(r - first);
                            if tensor.ty().is_float() {
                                for m in 0..rows {
                                    sums[m * STRIP + j] = self.kernels.dot_float(tensor.ty(), w, &x[m * k..(m + 1) * k]);
                                }
                            } else if self.f32_activations {
                                let row = &mut row[..k];
                                block::dequantize(tensor.ty(), w, row);
                                for m in 0..rows {
                                    let w = bytemuck::cast_slice(row);
                                    let x = &x[m * k..(m + 1) * k];
                                    sums[m * STRIP + j] = self.kernels.dot_float(sphinx_quant::GgmlType::F32, w, x);
                                }
                            } else {
                                for m in 0..rows {
                                    sums[m * STRIP + j] = self.kernels.dot(tensor.ty(), w, q8.row(m));
                                }
                            }
                        }
                        for m in 0..rows {
                            let y = &mut sums[m * STRIP..m * STRIP + strip.len()];
                            let bias = layer.bias.as_ref().map(|b| &b[strip.clone()]);
                            let scale = if let After::ScaleAdd(s) = after { &s[strip.clone()] } else { &[] };
                            // SAFETY: the columns of `strip` belong to this piece alone.
                            let out = unsafe { out.piece(m * n + strip.start..m * n + strip.end) };
                            finish(&self.kernels, y, bias, after, scale, out);
                        }
                        at = strip.end;
                    }
                    first += tensor.rows();
                }
            }
        });
        Ok(())
    }

    /// Rows of `k` activations in 8 bits.
    fn quantize(&self, x: &[f32], k: usize, q8: &mut Q8Rows) -> Result<()> {
        let rows = x.len() / k;
        q8.shape(rows, k)?;
        let (qs, d, sums) = q8.arrays_mut();
        let (qs, d, sums) = (Disjoint::new(qs), Disjoint::new(d), Disjoint::new(sums));
        self.pool.run(rows, &|_, range| {
            for r in range {
                // SAFETY: every row goes to one worker.
                let out = unsafe {
                    super::q8::Q8RowMut {
                        qs: qs.piece(r * k..(r + 1) * k),
                        d: d.piece(r * (k / 32)..(r + 1) * (k / 32)),
                        sums: sums.piece(r * (k / 16)..(r + 1) * (k / 16)),
                    }
                };
                self.kernels.quantize_q8(&x[r * k..(r + 1) * k], out);
            }
        });
        Ok(())
    }
}

/// Bias and `after`, from results `y` to `out`; `scale` for [`After::ScaleAdd`].
fn finish(kernels: &Kernels, y: &mut [f32], bias: Option<&[f32]>, after: After<'_, Vec<f32>>, scale: &[f32], out: &mut [f32]) {
    if let Some(bias) = bias {
        y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
    match after {
        After::Nothing => out.copy_from_slice(y),
        After::Gelu => {
            kernels.gelu(y);
            out.copy_from_slice(y);
        }
        After::QuickGelu => {
            kernels.quick_gelu(y);
            out.copy_from_slice(y);
        }
        After::Add => out.iter_mut().zip(y).for_each(|(out, y)| *out += *y),
        After::ScaleAdd(_) => out.iter_mut().zip(y).zip(scale).for_each(|((out, y), s)| *out += s * *y),
    }
}
