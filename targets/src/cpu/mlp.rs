//! Feed-forward parts: two linear layers with an activation between them, row tile by row tile.
//!
//! The hidden map, several times as wide as the rows, exists for one tile at a time. A tile has as many rows as keep
//! unpacking the weights, which both layers do once per tile, a small part of the work.

use super::CpuTarget;
use super::matmul::{Out, Rows, Scratch};
use super::pool::Disjoint;
use crate::{Activation, After, Mlp, Result};

/// Bytes that the hidden map of an MLP may take, and the fewest rows of a tile.
const HIDDEN_BYTES: usize = 8 << 20;
const HIDDEN_ROWS: usize = 256;

impl CpuTarget {
    pub(super) fn apply_mlp(&self, x: &[f32], mlp: &Mlp<CpuTarget>, after: After<'_, Vec<f32>>, out: &mut [f32]) -> Result<()> {
        let out = Out { values: &Disjoint::new(out), width: mlp.down.weight.rows(), first: 0, slots: None };
        self.feed_forward(Rows::all(x, mlp.up.weight.cols()), mlp, after, out)
    }

    /// Rows `slot / used` of `x` to rows `slot` of `out`, for all of `slots`, which ascend and lie inside.
    pub(super) fn apply_expert(&self, x: &[f32], slots: &[u32], used: usize, mlp: &Mlp<CpuTarget>, out: &mut [f32]) -> Result<()> {
        let x = Rows { count: slots.len(), slots: Some((slots, used)), ..Rows::all(x, mlp.up.weight.cols()) };
        let out = Out { values: &Disjoint::new(out), width: mlp.down.weight.rows(), first: 0, slots: Some(slots) };
        self.feed_forward(x, mlp, After::Nothing, out)
    }

    fn feed_forward(&self, x: Rows<'_>, mlp: &Mlp<CpuTarget>, after: After<'_, Vec<f32>>, out: Out<'_>) -> Result<()> {
        if x.count == 0 {
            return Ok(());
        }
        let wide = mlp.up.weight.rows();
        let mut scratch = self.scratch();
        let Scratch { activations, hidden, workers } = &mut *scratch;
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
            let up = Out { values: &Disjoint::new(hidden), width: wide, first: 0, slots: None };
            self.multiply(x.part(first, count), &mlp.up, after_up, up, activations, workers)?;
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
