//! Feed-forward parts: two linear layers with an activation between them, row tile by row tile.
//!
//! The hidden map, several times as wide as the rows, exists for one tile at a time. Where both layers are quantised it
//! never exists as numbers: while a strip of it is in cache, it goes through the activation and becomes what the
//! second layer takes. A tile has as many rows as keep unpacking the weights, which both layers do once per tile, a
//! small part of the work.

use std::ops::Range;
use std::sync::Mutex;

use sphinx_quant::Tensor;

use super::CpuTarget;
use super::buffer::Aligned;
use super::kernels::{Kernels, kind};
use super::matmul::{Activations, Out, Rows, Scratch, Weights, Worker, batch};
use super::pool::Disjoint;
use super::portable::dot::LANES;
use super::portable::gemm::{Kind, PANEL, place};
use super::q8::Q8RowMut;
use crate::{Activation, After, Linear, Mlp, Norm, Result};

/// Bytes that the hidden map of an MLP may take as numbers, and the fewest rows of a tile.
const HIDDEN_BYTES: usize = 8 << 20;
const HIDDEN_ROWS: usize = 192;
/// Codes of the hidden map, which are bytes, at most, and the fewest and the most rows of a tile.
const CODES: usize = 12 << 20;
const CODES_LEAST: usize = 512;
const CODES_MOST: usize = 4096;

/// Both layers of a feed-forward part whose hidden map need not exist as numbers.
struct Quantised<'a> {
    up: &'a Linear<CpuTarget>,
    /// Where the rows of gate and up begin, or the only ones.
    halves: [(&'a Tensor, usize); 2],
    /// 2 when there is a gate.
    halves_len: usize,
    up_kind: Kind,
    down: &'a Tensor,
    down_kind: Kind,
    inner: usize,
}

/// Batched activations that are written block by block.
struct Blocks<'a> {
    qs: Disjoint<'a, i8>,
    d: Disjoint<'a, f32>,
    aux: Disjoint<'a, i32>,
    /// Blocks of a row.
    blocks: usize,
    terms: usize,
    kind: Kind,
}

/// Numbers of the hidden map that become codes together.
const PIECE: usize = 256;
/// Rows ahead of the one being written whose places are asked for: they are far apart, and not in a near cache.
const AHEAD: usize = 6;

/// Blocks that become codes together, and where each of them goes.
struct Pieces {
    x: [f32; PIECE],
    to: [usize; PIECE / 32],
    len: usize,
    terms: [Piece; 2],
}

/// Blocks in 8 bits.
struct Piece {
    qs: [i8; PIECE],
    d: [f32; PIECE / 32],
    sums: [i16; PIECE / 16],
}

impl Piece {
    const EMPTY: Piece = Piece { qs: [0; PIECE], d: [0.0; PIECE / 32], sums: [0; PIECE / 16] };

    fn first(&mut self, n: usize) -> Q8RowMut<'_> {
        Q8RowMut { qs: &mut self.qs[..n], d: &mut self.d[..n / 32], sums: &mut self.sums[..n / 16] }
    }
}

impl Pieces {
    const EMPTY: Pieces = Pieces { x: [0.0; PIECE], to: [0; PIECE / 32], len: 0, terms: [Piece::EMPTY; 2] };
}

impl Blocks<'_> {
    /// Where block `block` of row `row` is.
    fn at(&self, row: usize, block: usize) -> usize {
        row * self.blocks + place(block, self.blocks, LANES)
    }

    /// Asks for the places of `count` blocks of row `row` from `first` on.
    fn ask(&self, row: usize, first: usize, count: usize) {
        for block in first..first + count {
            let at = self.at(row, block);
            self.qs.ask(at * self.terms * 32);
            self.d.ask(at);
            self.aux.ask(at * self.kind.groups());
        }
    }

    /// Columns of row `row` from block `first` on, whole blocks; some of them stay in `pieces`.
    ///
    /// # Safety
    /// Nobody else writes these blocks.
    unsafe fn put(&self, kernels: &Kernels, row: usize, first: usize, x: &[f32], pieces: &mut Pieces) {
        for (b, x) in x.as_chunks::<32>().0.iter().enumerate() {
            pieces.x.as_chunks_mut().0[pieces.len] = *x;
            pieces.to[pieces.len] = self.at(row, first + b);
            pieces.len += 1;
            if pieces.len == PIECE / 32 {
                // SAFETY: as promised by the caller.
                unsafe { self.flush(kernels, pieces) };
            }
        }
    }

    /// Writes the blocks in `pieces`.
    ///
    /// # Safety
    /// Nobody else writes these blocks.
    unsafe fn flush(&self, kernels: &Kernels, pieces: &mut Pieces) {
        let Pieces { x, to, len, terms: pieces } = pieces;
        let n = std::mem::take(len);
        let [high, low] = pieces;
        match self.terms {
            1 => kernels.quantize_q8(&x[..32 * n], high.first(32 * n)),
            _ => kernels.quantize_fine(&x[..32 * n], [high.first(32 * n), low.first(32 * n)]),
        }
        for (b, &at) in to[..n].iter().enumerate() {
            let groups = self.kind.groups();
            // SAFETY: blocks differ in where they are stored, and the caller has these to itself.
            let (qs, d, aux) = unsafe {
                let qs = self.qs.piece(at * self.terms * 32..(at + 1) * self.terms * 32);
                (qs, self.d.piece(at..at + 1), self.aux.piece(at * groups..(at + 1) * groups))
            };
            for (qs, piece) in qs.as_chunks_mut::<32>().0.iter_mut().zip(&*pieces) {
                *qs = piece.qs.as_chunks().0[b];
            }
            // The scales that count are those of a row's last term.
            d[0] = pieces[self.terms - 1].d[b];
            let sums = |term: usize| pieces[term].sums.as_chunks::<2>().0[b].map(i32::from);
            let [first, second] = if self.terms == 2 { [0, 1].map(|h| 256 * sums(0)[h] + sums(1)[h]) } else { sums(0) };
            match aux {
                [both] => *both = self.kind.aux(first + second, d[0]),
                halves => halves.copy_from_slice(&[self.kind.aux(first, d[0]), self.kind.aux(second, d[0])]),
            }
        }
    }
}

impl CpuTarget {
    /// `x`, normalised if there is a norm, through `mlp`.
    pub(super) fn apply_mlp(
        &self,
        x: &[f32],
        norm: Option<&Norm<CpuTarget>>,
        mlp: &Mlp<CpuTarget>,
        after: After<'_, Vec<f32>>,
        out: &mut [f32],
    ) -> Result<()> {
        let width = mlp.up.weight.cols();
        if let Some(norm) = norm.filter(|_| self.quantised(mlp, x.len() / width).is_none()) {
            let mut normed = Aligned::zeroed(x.len(), "normalised rows")?;
            self.normalise(x, &norm.weight, &norm.bias, norm.eps, &mut normed);
            return self.apply_mlp(&normed, None, mlp, after, out);
        }
        let out = Disjoint::new(out);
        let out = Out::new(&out, mlp.down.weight.rows(), None);
        self.feed_forward(Rows { norm, ..Rows::all(x, width) }, mlp, after, out)
    }

    /// Rows `slot / used` of `x` to rows `slot` of `out`, for all of `slots`, which ascend and lie inside.
    pub(super) fn apply_expert(&self, x: &[f32], slots: &[u32], used: usize, mlp: &Mlp<CpuTarget>, out: &mut [f32]) -> Result<()> {
        let x = Rows { count: slots.len(), slots: Some((slots, used)), ..Rows::all(x, mlp.up.weight.cols()) };
        let out = Disjoint::new(out);
        let out = Out::new(&out, mlp.down.weight.rows(), Some(slots));
        self.feed_forward(x, mlp, After::Nothing, out)
    }

    fn feed_forward(&self, x: Rows<'_>, mlp: &Mlp<CpuTarget>, after: After<'_, Vec<f32>>, out: Out<'_>) -> Result<()> {
        if x.count() == 0 {
            return Ok(());
        }
        if let Some(parts) = self.quantised(mlp, x.count()) {
            return self.feed_forward_codes(x, &parts, mlp, after, out);
        }
        let wide = mlp.up.weight.rows();
        let mut scratch = self.scratch();
        let Scratch { activations, hidden, workers, .. } = &mut *scratch;
        let most = (HIDDEN_BYTES / (4 * wide)).max(HIDDEN_ROWS);
        let tile = x.count.div_ceil(x.count.div_ceil(most));
        let hidden = hidden.at_least(tile * wide, "the hidden map of a feed-forward part")?;
        for first in (0..x.count).step_by(tile) {
            let count = tile.min(x.count - first);
            let hidden = &mut hidden[..count * wide];
            let after_up = match mlp.act {
                Activation::Gelu => After::Gelu,
                Activation::QuickGelu => After::QuickGelu,
                Activation::SiluGate => After::Nothing,
            };
            let up = Disjoint::new(hidden);
            self.multiply(x.part(first, count), &mlp.up, after_up, Out::new(&up, wide, None), activations, workers)?;
            let mut width = wide;
            if mlp.act == Activation::SiluGate {
                width = wide / 2;
                self.silu_gate(hidden, count, width);
            }
            let middle = Rows { width, ..Rows::all(hidden, wide) };
            self.multiply(middle, &mlp.down, after, out.part(first), activations, workers)?;
        }
        Ok(())
    }

    /// The layers of `mlp` where `rows` of its hidden map need not exist as numbers: both quantised, met by activations in
    /// 8 bits, and the rows enough for a batch.
    fn quantised<'a>(&self, mlp: &'a Mlp<CpuTarget>, rows: usize) -> Option<Quantised<'a>> {
        let (up, inner) = (&mlp.up, mlp.down.weight.cols());
        let (halves, halves_len) = match (mlp.act, &up.weight.parts[..]) {
            (Activation::SiluGate, [both]) => ([(both, 0), (both, inner)], 2),
            (Activation::SiluGate, [gate, up]) if gate.rows() == inner && up.rows() == inner => ([(gate, 0), (up, 0)], 2),
            (Activation::Gelu | Activation::QuickGelu, [up]) => ([(up, 0); 2], 1),
            _ => return None,
        };
        let [down] = &mlp.down.weight.parts[..] else { return None };
        let kind_of = |tensor: &Tensor| kind(tensor.ty()).filter(|_| self.in_8_bits(tensor.ty()));
        let (kinds, down_kind) = (halves.map(|(tensor, _)| kind_of(tensor)), kind_of(down)?);
        let up_kind = kinds[0].filter(|_| kinds[0] == kinds[1])?;
        let fits = self.recorder.is_none() && rows >= batch(self.isa()) && inner.is_multiple_of(32);
        fits.then_some(Quantised { up, halves, halves_len, up_kind, down, down_kind, inner })
    }

    fn feed_forward_codes(
        &self,
        x: Rows<'_>,
        parts: &Quantised<'_>,
        mlp: &Mlp<CpuTarget>,
        after: After<'_, Vec<f32>>,
        out: Out<'_>,
    ) -> Result<()> {
        let (inner, terms) = (parts.inner, mlp.down.weight.terms);
        let mut scratch = self.scratch();
        let Scratch { activations, hidden_activations, workers, .. } = &mut *scratch;
        let most = (CODES / (inner * terms)).clamp(CODES_LEAST / terms, CODES_MOST);
        let tile = x.count().div_ceil(x.count().div_ceil(most));
        for first in (0..x.count()).step_by(tile) {
            let (x, out) = (x.part(first, tile.min(x.count() - first)), out.part(first));
            self.hidden_codes(x, parts, mlp, activations, hidden_activations, workers)?;
            let weights = Weights { halves: &[(parts.down, 0)], rows: parts.down.rows(), blocks: inner / 32, kind: parts.down_kind };
            let finish = |sums: &mut [f32], rows: Range<usize>, panels: Range<usize>| {
                self.finish_tile(sums, rows, panels.start, panels.len(), &(0..parts.down.rows()), &mlp.down, after, out);
            };
            self.multiply_codes(hidden_activations.batch(x.count(), terms, 0), weights, workers, &finish)?;
        }
        Ok(())
    }

    /// The hidden map of the rows `x` as the second layer takes it.
    fn hidden_codes(
        &self,
        x: Rows<'_>,
        parts: &Quantised<'_>,
        mlp: &Mlp<CpuTarget>,
        activations: &mut Activations,
        hidden: &mut Activations,
        workers: &[Mutex<Worker>],
    ) -> Result<()> {
        let &Quantised { up, halves, halves_len, up_kind, down_kind, inner, .. } = parts;
        let (rows, width, up_terms, terms) = (x.count(), x.width(), up.weight.terms, mlp.down.weight.terms);
        self.deal(x, up_terms, &[up_kind], activations, workers)?;
        let (blocks, what) = (inner / 32, "the hidden map of a feed-forward part");
        let Activations { qs, d, aux, .. } = hidden;
        let to = Blocks {
            qs: Disjoint::new(qs.at_least(rows * inner * terms, what)?),
            d: Disjoint::new(d.at_least(rows * blocks, what)?),
            aux: Disjoint::new(aux.at_least(rows * blocks * down_kind.groups(), what)?),
            blocks,
            terms,
            kind: down_kind,
        };
        let finish = |sums: &mut [f32], rows: Range<usize>, panels: Range<usize>| {
            let (first, columns) = (panels.start * PANEL, panels.len() * PANEL);
            let mut pieces = Pieces::EMPTY;
            let blocks = columns / 32;
            rows.clone().take(AHEAD).for_each(|row| to.ask(row, first / 32, blocks));
            for (row, y) in rows.clone().zip(sums.chunks_exact_mut(halves_len * columns)) {
                if row + AHEAD < rows.end {
                    to.ask(row + AHEAD, first / 32, blocks);
                }
                if let Some(bias) = &up.bias {
                    for (half, y) in y.chunks_exact_mut(columns).enumerate() {
                        self.kernels.add(y, &bias[half * inner + first..][..columns]);
                    }
                }
                let (y, gated) = y.split_at_mut(columns);
                match mlp.act {
                    Activation::Gelu => self.kernels.gelu(y),
                    Activation::QuickGelu => self.kernels.quick_gelu(y),
                    Activation::SiluGate => self.kernels.silu_gate(y, gated),
                }
                // SAFETY: the panels, pairs of which make whole blocks, belong to this thread alone.
                unsafe { to.put(&self.kernels, row, first / 32, y, &mut pieces) };
            }
            // SAFETY: as above.
            unsafe { to.flush(&self.kernels, &mut pieces) };
        };
        let weights = Weights { halves: &halves[..halves_len], rows: inner, blocks: width / 32, kind: up_kind };
        self.multiply_codes(activations.batch(rows, up_terms, 0), weights, workers, &finish)
    }

    /// The first halves of `hidden` `[rows, 2 · inner]`, the gates, take in the second.
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
    }
}
