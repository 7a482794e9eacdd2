//! Linear layers: rows of activations times the rows of a mapped weight matrix.
//!
//! Quantised weights meet activations in 8 bits, which are made once per layer and shared by all its parts; float
//! weights meet the activations as they are. Threads divide the outputs. What follows a layer (bias, activation,
//! residual) happens while its results are in cache.
//!
//! A matrix may ask for activations in 16 bits (see [`crate::Target::matrix_fine`]): those of 8, and what they leave over
//! in another 8. Every weight, read and unpacked once, meets both, and their products are added up as integers.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sphinx_quant::{GgmlType, Tensor, block};

use super::buffer::Aligned;
use super::isa::Isa;
use super::kernels::{Kernels, kind};
use super::pool::Disjoint;
use super::portable::dot::LANES;
use super::portable::gemm::{Batch, Kind, PANEL, PANEL_BLOCK, Panels, lane};
use super::q8::{Q8RowMut, Q8Rows};
use super::{CpuTarget, portable};
use crate::{After, Linear, Norm, Result, TargetError};

/// A weight matrix: parts of a mapped file, stacked along their outputs.
pub struct Matrix {
    pub(super) parts: Vec<Tensor>,
    rows: usize,
    cols: usize,
    /// Bytes of an activation that meets quantised weights: 1, or 2 where that is too coarse.
    pub(super) terms: usize,
}

impl Matrix {
    /// The parts stacked; they share their columns. `terms` is 1 or 2.
    pub(super) fn new(parts: &[Tensor], terms: usize) -> Result<Matrix> {
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
        Ok(Matrix { rows, cols, terms, parts: parts.to_vec() })
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

/// Activation rows from which on quantised weights are unpacked once for all of them: where that was measured to be
/// faster than a dot product per row. Compilers make more of the portable dot product than of the portable batch.
pub(super) const fn batch(isa: Isa) -> usize {
    match isa {
        Isa::Portable => usize::MAX,
        Isa::Avx2 | Isa::AvxVnni => 4,
        Isa::Avx512 | Isa::Avx512Vnni => 3,
        // By count of instructions: a panel costs about two dot products of its rows.
        Isa::Neon | Isa::DotProd | Isa::I8mm => 4,
    }
}
/// The same when no weights are quantised: unpacking costs more, and multiplying less.
const FLOAT_BATCH: usize = 16;
/// Activation rows that are quantised and multiplied together, at most, and the bytes that they may take in `f32`
/// unless they are fewer than the least.
const BATCH_MOST: usize = 2048;
const BATCH_BYTES: usize = 24 << 20;
const BATCH_LEAST: usize = 512;
/// Weight rows whose results are finished together, when few activation rows meet them.
const STRIP: usize = 64;
/// Of them, rows that are multiplied with one activation row after the other.
const ROWS: usize = 4;
/// Bytes of unpacked weights that a thread keeps in its cache.
const PANEL_BYTES: usize = 512 << 10;
/// Panels of unpacked weights that a thread works on, at most.
const PANELS_MOST: usize = 16;
/// Bytes of results from which on they are not expected to be in a cache when they are read.
const CACHE_BYTES: usize = 24 << 20;
/// Activation rows that a strip of panels is multiplied with between finishes, at most.
const TILE: usize = 36;

/// What linear layers need beside their operands; made once, grown when a larger layer comes.
pub(super) struct Scratch {
    pub(super) activations: Activations,
    /// The hidden map of an MLP, a tile of rows, as numbers or as the second layer takes it.
    pub(super) hidden: Aligned<f32>,
    pub(super) hidden_activations: Activations,
    pub(super) workers: Vec<Mutex<Worker>>,
}

/// A layer's input as its kernels take it.
pub(super) struct Activations {
    /// In 8 bits.
    q8: Q8Rows,
    /// In 8 bits for batches, see [`Batch`].
    pub(super) qs: Aligned<i8>,
    pub(super) d: Aligned<f32>,
    pub(super) aux: Aligned<i32>,
    /// In f32 for batches.
    floats: Aligned<f32>,
}

impl Activations {
    /// `rows` rows in `terms` bytes as batches take them; `aux` is where what their weights need of sums begins.
    pub(super) fn batch(&self, rows: usize, terms: usize, aux: usize) -> Batch<'_> {
        Batch { fine: terms == 2, qs: &self.qs, d: &self.d, aux: &self.aux[aux..], rows }
    }
}

/// Quantised weight rows that a batch is multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    /// The matrices, and where the rows begin in each: gate and up, whose results are wanted side by side, or just one.
    pub(super) halves: &'a [(&'a Tensor, usize)],
    /// Rows of each half.
    pub(super) rows: usize,
    /// Activation blocks of a row.
    pub(super) blocks: usize,
    pub(super) kind: Kind,
}

/// Takes results `[rows, halves, panels, 16]` of a tile while they are in cache; the panels belong to the calling thread.
pub(super) type FinishTile<'a> = dyn Fn(&mut [f32], Range<usize>, Range<usize>) + Sync + 'a;

/// What each thread needs.
pub(super) struct Worker {
    /// A row of activations in 8 bits.
    q8: Q8Rows,
    /// Weight rows as numbers.
    numbers: Aligned<f32>,
    /// Results before they are finished.
    sums: Aligned<f32>,
    codes: Aligned<u8>,
    s: Aligned<f32>,
    m: Aligned<f32>,
    floats: Aligned<f32>,
}

impl Scratch {
    pub(super) fn new(threads: usize) -> Scratch {
        let worker = || {
            Mutex::new(Worker {
                q8: Q8Rows::default(),
                numbers: Aligned::empty(),
                sums: Aligned::empty(),
                codes: Aligned::empty(),
                s: Aligned::empty(),
                m: Aligned::empty(),
                floats: Aligned::empty(),
            })
        };
        let activations = || Activations {
            q8: Q8Rows::default(),
            qs: Aligned::empty(),
            d: Aligned::empty(),
            aux: Aligned::empty(),
            floats: Aligned::empty(),
        };
        Scratch {
            activations: activations(),
            hidden: Aligned::empty(),
            hidden_activations: activations(),
            workers: (0..threads).map(|_| worker()).collect(),
        }
    }
}

impl Scratch {
    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        let of_activations = |activations: &Activations| {
            let Activations { q8, qs, d, aux, floats } = activations;
            q8.bytes() + qs.bytes() + d.bytes() + aux.bytes() + floats.bytes()
        };
        let of_worker = |worker: &Mutex<Worker>| {
            let Worker { q8, numbers, sums, codes, s, m, floats } = &*lock(worker);
            q8.bytes() + numbers.bytes() + sums.bytes() + codes.bytes() + s.bytes() + m.bytes() + floats.bytes()
        };
        let activations = of_activations(&self.activations) + of_activations(&self.hidden_activations);
        activations + self.hidden.bytes() + self.workers.iter().map(of_worker).sum::<usize>()
    }
}

fn lock(worker: &Mutex<Worker>) -> MutexGuard<'_, Worker> {
    worker.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The rows of a layer's input, which may lie apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: &'a [f32],
    /// From one row to the next.
    pub(super) stride: usize,
    /// Numbers of a row.
    pub(super) width: usize,
    /// The first row, and how many there are.
    pub(super) first: usize,
    pub(super) count: usize,
    /// Row `r` is row `slots[r] / used` of the values.
    pub(super) slots: Option<(&'a [u32], usize)>,
    /// What rows of a batch go through on their way to 8 bits, and there only.
    pub(super) norm: Option<&'a Norm<CpuTarget>>,
}

impl<'a> Rows<'a> {
    /// All rows of `values`, each `width` long.
    pub(super) fn all(values: &'a [f32], width: usize) -> Rows<'a> {
        Rows { values, stride: width, width, first: 0, count: values.len() / width, slots: None, norm: None }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn row(&self, r: usize) -> &'a [f32] {
        let r = self.first + r;
        let r = self.slots.map_or(r, |(slots, used)| slots[r] as usize / used);
        &self.values[r * self.stride..][..self.width]
    }

    /// `count` rows from `first` on.
    pub(super) fn part(&self, first: usize, count: usize) -> Rows<'a> {
        Rows { first: self.first + first, count, ..*self }
    }
}

/// Where results go: rows of `width` numbers, one after another or at slots.
#[derive(Clone, Copy)]
pub(super) struct Out<'a> {
    pub(super) values: &'a Disjoint<'a, f32>,
    pub(super) width: usize,
    pub(super) first: usize,
    /// Row `r` is row `slots[r]` of the values; all of them differ.
    pub(super) slots: Option<&'a [u32]>,
    /// Whether caches cannot hold them all, so that they are better written past those.
    past: bool,
}

impl<'a> Out<'a> {
    /// Rows of `width` numbers at slots, or all of them.
    pub(super) fn new(values: &'a Disjoint<'a, f32>, width: usize, slots: Option<&'a [u32]>) -> Out<'a> {
        Out { values, width, first: 0, slots, past: size_of::<f32>() * values.len() >= CACHE_BYTES }
    }

    /// Rows from `first` on.
    pub(super) fn part(&self, first: usize) -> Out<'a> {
        Out { first: self.first + first, ..*self }
    }

    /// Columns `columns` of row `r`.
    ///
    /// # Safety
    /// No two pieces that overlap may be alive at the same time; those of different rows do not.
    #[allow(clippy::mut_from_ref)] // as [`Disjoint::piece`]
    unsafe fn piece(&self, r: usize, columns: Range<usize>) -> &mut [f32] {
        let r = self.first + r;
        let at = self.slots.map_or(r, |slots| slots[r] as usize) * self.width;
        // SAFETY: rows and slots differ, so the caller's promise about pieces of rows is one about the values.
        unsafe { self.values.piece(at + columns.start..at + columns.end) }
    }
}

impl CpuTarget {
    pub(super) fn apply_linear(&self, x: &[f32], layer: &Linear<CpuTarget>, after: After<'_, Vec<f32>>, out: &mut [f32]) -> Result<()> {
        let mut scratch = self.scratch();
        let Scratch { activations, workers, .. } = &mut *scratch;
        let out = Disjoint::new(out);
        let out = Out::new(&out, layer.weight.rows, None);
        self.multiply(Rows::all(x, layer.weight.cols), layer, after, out, activations, workers)
    }

    /// `x` `[rows, k]` through a layer into as many rows of `out`.
    pub(super) fn multiply(
        &self,
        x: Rows<'_>,
        layer: &Linear<CpuTarget>,
        after: After<'_, Vec<f32>>,
        out: Out<'_>,
        activations: &mut Activations,
        workers: &[Mutex<Worker>],
    ) -> Result<()> {
        if let Some(recorder) = &self.recorder {
            recorder.lock().unwrap_or_else(PoisonError::into_inner).add(&self.pool, x, &layer.weight.parts);
        }
        let floats = !layer.weight.parts.iter().any(|t| self.in_8_bits(t.ty()));
        let terms = if floats { 1 } else { layer.weight.terms };
        let batch = if floats { FLOAT_BATCH } else { batch(self.isa()) };
        let most = (BATCH_BYTES / 4 / x.width).clamp(BATCH_LEAST, BATCH_MOST) / terms;
        let most = x.count.div_ceil(x.count.div_ceil(most).max(1)).next_multiple_of(TILE);
        for first in (0..x.count).step_by(most.max(1)) {
            let (x, out) = (x.part(first, most.min(x.count - first)), out.part(first));
            if x.count < batch {
                self.multiply_few(x, layer, after, out, activations, workers)?;
            } else {
                self.multiply_batch(x, layer, after, out, activations, workers)?;
            }
        }
        Ok(())
    }

    /// Whether a part of this format meets activations in 8 bits.
    pub(super) fn in_8_bits(&self, ty: GgmlType) -> bool {
        !ty.is_float() && !self.f32_activations
    }

    /// A few rows: every weight row is read once and multiplied with each of them.
    fn multiply_few(
        &self,
        x: Rows<'_>,
        layer: &Linear<CpuTarget>,
        after: After<'_, Vec<f32>>,
        out: Out<'_>,
        activations: &mut Activations,
        workers: &[Mutex<Worker>],
    ) -> Result<()> {
        let matrix = &layer.weight;
        let (k, rows) = (matrix.cols, x.count);
        if matrix.parts.iter().any(|t| self.in_8_bits(t.ty())) {
            self.quantize(x, matrix.terms, &mut activations.q8)?;
        }
        for worker in workers {
            let mut worker = lock(worker);
            worker.numbers.at_least(k, "a weight row")?;
            worker.sums.at_least(rows * STRIP, "results of a linear layer")?;
        }
        let q8 = &activations.q8;
        self.pool.run_by(matrix.rows, STRIP, &|thread, mine| {
            let mut worker = lock(&workers[thread]);
            let Worker { numbers, sums, .. } = &mut *worker;
            let mut first = 0;
            for tensor in &matrix.parts {
                let (ty, bytes, row_bytes) = (tensor.ty(), tensor.bytes(), tensor.row_bytes());
                let (mut at, end) = (mine.start.max(first), mine.end.min(first + tensor.rows()));
                while at < end {
                    let strip = at..(at + STRIP).min(end);
                    if self.in_8_bits(ty) {
                        // One activation row takes them as they come; several, while they are in the first cache.
                        let few = if rows == 1 { STRIP } else { ROWS };
                        for first_row in strip.clone().step_by(few) {
                            let (from, to) = (first_row, (first_row + few).min(strip.end));
                            let w = &bytes[(from - first) * row_bytes..(to - first) * row_bytes];
                            for m in 0..rows {
                                let sums = &mut sums[m * STRIP..][from - strip.start..to - strip.start];
                                match matrix.terms {
                                    1 => self.kernels.dots(ty, w, q8.row(m), sums),
                                    _ => self.kernels.dots_fine(ty, w, [q8.row(2 * m), q8.row(2 * m + 1)], sums),
                                }
                            }
                        }
                    } else {
                        for (j, r) in strip.clone().enumerate() {
                            let w = &bytes[(r - first) * row_bytes..][..row_bytes];
                            let (ty, w) = if ty.is_float() {
                                (ty, w)
                            } else {
                                block::dequantize(ty, w, &mut numbers[..k]);
                                (GgmlType::F32, bytemuck::cast_slice(&numbers[..k]))
                            };
                            for m in 0..rows {
                                sums[m * STRIP + j] = self.kernels.dot_float(ty, w, x.row(m));
                            }
                        }
                    }
                    for m in 0..rows {
                        let y = &mut sums[m * STRIP..m * STRIP + strip.len()];
                        // SAFETY: the columns of `strip` belong to this worker alone.
                        let out = unsafe { out.piece(m, strip.clone()) };
                        finish(&self.kernels, y, strip.clone(), layer, after, out, false);
                    }
                    at = strip.end;
                }
                first += tensor.rows();
            }
        });
        Ok(())
    }

    /// Many rows: weights are unpacked strip by strip, and each strip is multiplied with all rows.
    fn multiply_batch(
        &self,
        x: Rows<'_>,
        layer: &Linear<CpuTarget>,
        after: After<'_, Vec<f32>>,
        out: Out<'_>,
        activations: &mut Activations,
        workers: &[Mutex<Worker>],
    ) -> Result<()> {
        let matrix = &layer.weight;
        let (k, rows) = (matrix.cols, x.count);
        let mut kinds = [NO_KIND; KINDS];
        let mut n_kinds = 0;
        for kind in matrix.parts.iter().filter(|t| self.in_8_bits(t.ty())).filter_map(|t| kind(t.ty())) {
            if !kinds[..n_kinds].contains(&kind) {
                kinds[n_kinds] = kind;
                n_kinds += 1;
            }
        }
        if n_kinds > 0 {
            self.deal(x, matrix.terms, &kinds[..n_kinds], activations, workers)?;
        }
        if matrix.parts.iter().any(|t| !self.in_8_bits(t.ty())) {
            let dealt = activations.floats.at_least(rows * k, "activations of a batch")?;
            self.pool.rows(dealt, k, &|_, first, rows| {
                for (r, out) in rows.chunks_exact_mut(k).enumerate() {
                    portable::gemm::deal(x.row(first + r), out);
                }
            });
        }
        let mut first = 0;
        for tensor in &matrix.parts {
            let columns = first..first + tensor.rows();
            match kind(tensor.ty()).filter(|_| self.in_8_bits(tensor.ty())) {
                Some(kind) => {
                    let j = kinds.iter().position(|&k| k == kind).expect("the kinds of all parts were collected");
                    let x = activations.batch(rows, matrix.terms, aux_at(j, rows, k / 32));
                    let weights = Weights { halves: &[(tensor, 0)], rows: tensor.rows(), blocks: k / 32, kind };
                    let finish = |sums: &mut [f32], rows: Range<usize>, panels: Range<usize>| {
                        self.finish_tile(sums, rows, panels.start, panels.len(), &columns, layer, after, out);
                    };
                    self.multiply_codes(x, weights, workers, &finish)?;
                }
                None => self.multiply_floats(tensor, rows, columns, layer, after, out, &activations.floats, workers)?,
            }
            first += tensor.rows();
        }
        Ok(())
    }

    /// Batched rows of activations times weight rows, two panels or more at a time.
    pub(super) fn multiply_codes(
        &self,
        x: Batch<'_>,
        weights: Weights<'_>,
        workers: &[Mutex<Worker>],
        finish: &FinishTile<'_>,
    ) -> Result<()> {
        let Weights { halves, rows: weight_rows, blocks, kind } = weights;
        let row_len = 32 * blocks * if x.fine { 2 } else { 1 };
        let (codes_len, scales_len) = (blocks * PANEL_BLOCK, blocks * kind.groups() * PANEL);
        let minima_len = if kind.min { scales_len } else { 0 };
        let strip = (panels_of_strip(codes_len + 4 * (scales_len + minima_len)) / halves.len()).next_multiple_of(2);
        for worker in workers {
            let mut worker = lock(worker);
            let (what, panels) = ("unpacked weights", strip * halves.len());
            worker.codes.at_least(panels * codes_len, what)?;
            worker.s.at_least(panels * scales_len, what)?;
            worker.m.at_least(panels * minima_len, what)?;
            worker.sums.at_least(TILE * panels * PANEL, "results of a linear layer")?;
        }
        let panels = weight_rows.div_ceil(PANEL);
        // As even as they can be: kernels need some rows to have enough to do at the same time. Those of two scales go best by
        // fives, the largest tile whose sums registers hold.
        let tile = x.rows.div_ceil(x.rows.div_ceil(TILE)).next_multiple_of(if kind.sixteen { 5 } else { 1 }).min(TILE);
        // Pairs, which make a block of activations.
        self.pool.run_evenly(panels.div_ceil(2), strip / 2, &|thread, mine| {
            let mut worker = lock(&workers[thread]);
            let Worker { sums, codes, s, m, .. } = &mut *worker;
            let mine = 2 * mine.start..(2 * mine.end).min(panels);
            for first in mine.clone().step_by(strip) {
                let count = strip.min(mine.end - first);
                for (p, (half, panel)) in halves.iter().flat_map(|half| (first..first + count).map(move |panel| (half, panel))).enumerate()
                {
                    let (tensor, at) = *half;
                    let mine = at + panel * PANEL..at + ((panel + 1) * PANEL).min(weight_rows);
                    let bytes = &tensor.bytes()[mine.start * tensor.row_bytes()..mine.end * tensor.row_bytes()];
                    let (codes, s) = (&mut codes[p * codes_len..][..codes_len], &mut s[p * scales_len..][..scales_len]);
                    let m = &mut m[p * minima_len..][..minima_len];
                    self.kernels.pack(tensor.ty(), bytes, mine.len(), blocks, codes, s, m);
                }
                let panels = Panels { codes, s, m, blocks, count: count * halves.len(), kind };
                for row in (0..x.rows).step_by(tile) {
                    let tile = tile.min(x.rows - row);
                    let (qs, aux) = (&x.qs[row * row_len..], &x.aux[row * blocks * kind.groups()..]);
                    let x = Batch { qs, d: &x.d[row * blocks..], aux, rows: tile, ..x };
                    self.kernels.multiply(x, panels, sums, panels.count * PANEL);
                    finish(&mut sums[..tile * panels.count * PANEL], row..row + tile, first..first + count);
                }
            }
        });
        Ok(())
    }

    /// One part of a batch's layer with activations in f32: `columns` of the results.
    #[allow(clippy::too_many_arguments)] // one step of `multiply_batch`
    fn multiply_floats(
        &self,
        tensor: &Tensor,
        rows: usize,
        columns: Range<usize>,
        layer: &Linear<CpuTarget>,
        after: After<'_, Vec<f32>>,
        out: Out<'_>,
        x: &[f32],
        workers: &[Mutex<Worker>],
    ) -> Result<()> {
        let k = layer.weight.cols;
        let strip = panels_of_strip(4 * k * PANEL);
        for worker in workers {
            let mut worker = lock(worker);
            worker.numbers.at_least(k * PANEL, "weight rows")?;
            worker.floats.at_least(strip * k * PANEL, "unpacked weights")?;
            worker.sums.at_least(TILE * strip * PANEL, "results of a linear layer")?;
        }
        let panels = tensor.rows().div_ceil(PANEL);
        self.pool.run_evenly(panels, strip, &|thread, mine| {
            let mut worker = lock(&workers[thread]);
            let Worker { sums, numbers, floats, .. } = &mut *worker;
            for first in mine.clone().step_by(strip) {
                let count = strip.min(mine.end - first);
                for p in 0..count {
                    let weight_rows = (first + p) * PANEL..((first + p + 1) * PANEL).min(tensor.rows());
                    let bytes = &tensor.bytes()[weight_rows.start * tensor.row_bytes()..weight_rows.end * tensor.row_bytes()];
                    let numbers = &mut numbers[..weight_rows.len() * k];
                    block::dequantize(tensor.ty(), bytes, numbers);
                    self.kernels.pack_float(numbers, weight_rows.len(), &mut floats[p * k * PANEL..][..k * PANEL]);
                }
                for row in (0..rows).step_by(TILE) {
                    let tile = TILE.min(rows - row);
                    let x = &x[row * k..(row + tile) * k];
                    self.kernels.multiply_float(x, k, &floats[..count * k * PANEL], sums, count * PANEL);
                    self.finish_tile(sums, row..row + tile, first, count, &columns, layer, after, out);
                }
            }
        });
        Ok(())
    }

    /// Finishes results `sums` `[rows, count · PANEL]` of panels `first..` of a part that makes `columns`.
    #[allow(clippy::too_many_arguments)] // one step of `multiply_batch`
    pub(super) fn finish_tile(
        &self,
        sums: &mut [f32],
        rows: Range<usize>,
        first: usize,
        count: usize,
        columns: &Range<usize>,
        layer: &Linear<CpuTarget>,
        after: After<'_, Vec<f32>>,
        out: Out<'_>,
    ) {
        let mine = columns.start + first * PANEL..(columns.start + (first + count) * PANEL).min(columns.end);
        for (row, y) in rows.zip(sums.chunks_mut(count * PANEL)) {
            // SAFETY: the columns of these panels belong to this worker alone.
            let results = unsafe { out.piece(row, mine.clone()) };
            finish(&self.kernels, &mut y[..mine.len()], mine.clone(), layer, after, results, out.past);
        }
        if out.past {
            self.kernels.settle();
        }
    }

    /// Rows of activations as batches take them: in 8 bits, `terms` of them for each row (1 or 2), dealt out to lanes, with
    /// what weights of `kinds` need of their sums.
    pub(super) fn deal(
        &self,
        x: Rows<'_>,
        terms: usize,
        kinds: &[Kind],
        activations: &mut Activations,
        workers: &[Mutex<Worker>],
    ) -> Result<()> {
        let (rows, k) = (x.count, x.width);
        let blocks = k / 32;
        let what = "activations of a batch";
        let Activations { qs, d, aux, .. } = activations;
        for worker in workers {
            let mut worker = lock(worker);
            worker.q8.shape(terms, k)?;
            worker.numbers.at_least(if x.norm.is_some() { k } else { 0 }, "a normalised row")?;
        }
        let qs = Disjoint::new(qs.at_least(rows * terms * k, what)?);
        let d = Disjoint::new(d.at_least(rows * blocks, what)?);
        let aux = Disjoint::new(aux.at_least(kinds.len() * rows * blocks * 2, what)?);
        self.pool.run_by(rows, 4, &|thread, range| {
            let mut worker = lock(&workers[thread]);
            let Worker { q8, numbers, .. } = &mut *worker;
            for r in range {
                let row = match x.norm {
                    None => x.row(r),
                    Some(norm) => {
                        let normed = &mut numbers[..k];
                        self.kernels.layer_norm(x.row(r), &norm.weight, &norm.bias, norm.eps, normed);
                        normed
                    }
                };
                self.quantize_row(row, terms, q8);
                let all: [_; 2] = [0, terms - 1].map(|term| q8.row(term));
                let (codes, sums) = (all.map(|term| term.qs.as_chunks::<32>().0), all.map(|term| term.sums.as_chunks::<2>().0));
                // The scales that count are those of a row's last term.
                let scales = all[1].d;
                // SAFETY: every row goes to one worker.
                let (qs, d) = unsafe { (qs.piece(r * terms * k..(r + 1) * terms * k), d.piece(r * blocks..(r + 1) * blocks)) };
                let qs = qs.as_chunks_mut::<32>().0;
                for l in 0..LANES {
                    for (to, b) in lane(l, blocks, LANES).zip((l..blocks).step_by(LANES)) {
                        for (term, codes) in codes[..terms].iter().enumerate() {
                            qs[to * terms + term] = codes[b];
                        }
                        d[to] = scales[b];
                    }
                }
                for (j, kind) in kinds.iter().enumerate() {
                    let (at, groups) = (aux_at(j, rows, blocks) + r * blocks * kind.groups(), kind.groups());
                    // SAFETY: every row goes to one worker.
                    let aux = unsafe { aux.piece(at..at + blocks * groups) };
                    for l in 0..LANES {
                        for (to, b) in lane(l, blocks, LANES).zip((l..blocks).step_by(LANES)) {
                            let [high, low] = [sums[0][b], sums[1][b]].map(|sums| sums.map(i32::from));
                            let [first, second] = if terms == 2 { [0, 1].map(|h| 256 * high[h] + low[h]) } else { high };
                            if kind.sixteen {
                                aux[2 * to] = kind.aux(first, scales[b]);
                                aux[2 * to + 1] = kind.aux(second, scales[b]);
                            } else {
                                aux[to] = kind.aux(first + second, scales[b]);
                            }
                        }
                    }
                }
            }
        });
        Ok(())
    }

    /// A row of activations in 8 bits, in `terms` rows (1 or 2) of `q8`.
    fn quantize_row(&self, x: &[f32], terms: usize, q8: &mut Q8Rows) {
        let k = x.len();
        let (qs, d, sums) = q8.arrays_mut();
        match terms {
            1 => self.kernels.quantize_q8(x, Q8RowMut { qs, d, sums }),
            _ => {
                let ((high, low), (high_d, d), (high_sums, sums)) = (qs.split_at_mut(k), d.split_at_mut(k / 32), sums.split_at_mut(k / 16));
                let high = Q8RowMut { qs: high, d: high_d, sums: high_sums };
                self.kernels.quantize_fine(x, [high, Q8RowMut { qs: low, d, sums }]);
            }
        }
    }

    /// Rows of activations in 8 bits, `terms` of them (1 or 2) one after another for each row of `x`.
    fn quantize(&self, x: Rows<'_>, terms: usize, q8: &mut Q8Rows) -> Result<()> {
        let (rows, k) = (x.count, x.width);
        q8.shape(rows * terms, k)?;
        let (qs, d, sums) = q8.arrays_mut();
        let (qs, d, sums) = (Disjoint::new(qs), Disjoint::new(d), Disjoint::new(sums));
        self.pool.run(rows, &|_, range| {
            let out = |r: usize| {
                // SAFETY: every row, with its terms, goes to one worker, which asks for each term once.
                unsafe {
                    Q8RowMut {
                        qs: qs.piece(r * k..(r + 1) * k),
                        d: d.piece(r * (k / 32)..(r + 1) * (k / 32)),
                        sums: sums.piece(r * (k / 16)..(r + 1) * (k / 16)),
                    }
                }
            };
            for r in range {
                match terms {
                    1 => self.kernels.quantize_q8(x.row(r), out(r)),
                    _ => self.kernels.quantize_fine(x.row(r), [out(2 * r), out(2 * r + 1)]),
                }
            }
        });
        Ok(())
    }
}

/// Kinds of quantised formats, at most as many as a layer can mix.
const KINDS: usize = 8;
const NO_KIND: Kind = Kind { sixteen: false, min: false, offset: 0, most: 0 };

/// Where a batch's [`Batch::aux`] for its `j`-th kind of weights begins.
fn aux_at(j: usize, rows: usize, blocks: usize) -> usize {
    j * rows * blocks * 2
}

/// Panels of `bytes` each that a thread works on together: an even number.
fn panels_of_strip(bytes: usize) -> usize {
    (PANEL_BYTES / bytes).clamp(2, PANELS_MOST) / 2 * 2
}

/// Bias and `after`, from results `y` of `columns` to `out`, `past` the caches where nothing is added to it.
fn finish(
    kernels: &Kernels,
    y: &mut [f32],
    columns: Range<usize>,
    layer: &Linear<CpuTarget>,
    after: After<'_, Vec<f32>>,
    out: &mut [f32],
    past: bool,
) {
    if let Some(bias) = &layer.bias {
        kernels.add(y, &bias[columns.clone()]);
    }
    match after {
        After::Nothing => {}
        After::Gelu => kernels.gelu(y),
        After::QuickGelu => kernels.quick_gelu(y),
        After::Add => return kernels.add(out, y),
        After::ScaleAdd(scale) => return kernels.add_scaled(out, &scale[columns], y),
    }
    if past { kernels.set(out, y) } else { out.copy_from_slice(y) }
}
