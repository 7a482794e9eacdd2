//! Activations in 8 bits: what quantised weight rows are multiplied with.

use std::ops::Range;

use super::buffer::Aligned;
use crate::Result;

/// Elements of an activation block.
pub const BLOCK: usize = 32;

/// One row of activations in 8 bits, as a structure of arrays: `x[i] ≈ d[i / 32] · qs[i]`.
#[derive(Clone, Copy)]
pub struct Q8Row<'a> {
    /// −127..=127: `[k]`.
    pub qs: &'a [i8],
    /// The scales: `[k / 32]`.
    pub d: &'a [f32],
    /// Sums of 16 neighbours of `qs`: `[k / 16]`.
    pub sums: &'a [i16],
}

/// One row of activations in 16 bits, as two rows of 8, the high and the low one:
/// `x[i] ≈ low.d[i / 32] · (256 · high.qs[i] + low.qs[i])`. The high row alone, with its own scales, is the one in 8 bits.
///
/// Codes of the low row are −127..=127 as well, so that kernels for bytes take both.
pub type FineRow<'a> = [Q8Row<'a>; 2];

/// A [`Q8Row`] to be written.
pub struct Q8RowMut<'a> {
    /// As [`Q8Row::qs`].
    pub qs: &'a mut [i8],
    /// As [`Q8Row::d`].
    pub d: &'a mut [f32],
    /// As [`Q8Row::sums`].
    pub sums: &'a mut [i16],
}

/// Rows of activations in 8 bits; grows as needed and is used again.
pub struct Q8Rows {
    qs: Aligned<i8>,
    d: Aligned<f32>,
    sums: Aligned<i16>,
    k: usize,
    rows: usize,
}

impl Default for Q8Rows {
    fn default() -> Self {
        Q8Rows { qs: Aligned::empty(), d: Aligned::empty(), sums: Aligned::empty(), k: 0, rows: 0 }
    }
}

impl Q8Rows {
    /// Makes room for `rows` rows of `k` elements; contents are lost.
    pub fn shape(&mut self, rows: usize, k: usize) -> Result<()> {
        let what = "activations in 8 bits";
        self.qs.at_least(rows * k, what)?;
        self.d.at_least(rows * (k / BLOCK), what)?;
        self.sums.at_least(rows * (k / 16), what)?;
        (self.rows, self.k) = (rows, k);
        Ok(())
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.qs.bytes() + self.d.bytes() + self.sums.bytes()
    }

    /// The three arrays, whole, to be written row by row.
    pub fn arrays_mut(&mut self) -> (&mut [i8], &mut [f32], &mut [i16]) {
        let (n, k) = (self.rows, self.k);
        (&mut self.qs[..n * k], &mut self.d[..n * (k / BLOCK)], &mut self.sums[..n * (k / 16)])
    }

    /// Row `r`.
    pub fn row(&self, r: usize) -> Q8Row<'_> {
        let k = self.k;
        let of = |len: usize| -> Range<usize> { r * len..(r + 1) * len };
        Q8Row { qs: &self.qs[of(k)], d: &self.d[of(k / BLOCK)], sums: &self.sums[of(k / 16)] }
    }
}
