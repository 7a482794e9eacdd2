//! What the inputs of weight matrices look like: the statistics behind importance matrices.

use std::collections::HashMap;
use std::ops::Range;

use sphinx_quant::Tensor;

use super::matmul::Rows;
use super::pool::{Disjoint, Pool};

/// The squared inputs that one weight matrix, or one part of a stack of them, was multiplied with.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// The tensor's name; parts of a stack share it.
    pub tensor: String,
    /// Where the part begins in the bytes that back it: for a mapped model, in its file.
    pub offset_bytes: usize,
    /// Rows (outputs) of the part.
    pub outputs: usize,
    /// Bytes of one of these rows.
    pub row_bytes: usize,
    /// `Σ x[c]²` per column `c` of the inputs, which were `f32`, over all rows of activations.
    pub sums: Vec<f64>,
    /// Rows of activations.
    pub rows: u64,
}

impl Recorded {
    /// Which matrices of `whole` these are, `whole` being the tensor that they are a part of: `3..4` for the fourth
    /// expert of a stack `[cols, outputs, experts]`, `0..1` for a tensor that is no stack. `None` when this is no
    /// part of `whole`, or not a run of its matrices.
    pub fn matrices(&self, whole: &Tensor) -> Option<Range<usize>> {
        let (_, range) = whole.backing();
        let of_one = whole.dims().get(1).copied().unwrap_or(1).checked_mul(whole.row_bytes()).filter(|&n| n > 0)?;
        let (first, len) = (self.offset_bytes.checked_sub(range.start)?, self.outputs.checked_mul(self.row_bytes)?);
        let end = first.checked_add(len).filter(|&end| end <= range.len())?;
        let whole_ones = first.is_multiple_of(of_one) && end.is_multiple_of(of_one) && self.tensor == whole.name();
        whole_ones.then(|| first / of_one..end / of_one)
    }
}

/// Sums in the making.
#[derive(Default)]
pub(super) struct Recorder {
    /// By name, then one by one: a stack has few parts.
    parts: HashMap<String, Vec<Recorded>>,
    /// `Σ x²` of one call.
    sums: Vec<f64>,
}

/// Columns that a thread adds up together.
const COLUMNS: usize = 64;

impl Recorder {
    /// Adds the rows of `x`, which all of `parts` are multiplied with. Threads divide the columns, so each sum is
    /// added up in one order.
    pub(super) fn add(&mut self, pool: &Pool, x: Rows<'_>, parts: &[Tensor]) {
        let (width, count) = (x.width(), x.count());
        self.sums.clear();
        self.sums.resize(width, 0.0);
        {
            let sums = Disjoint::new(&mut self.sums);
            pool.run(width.div_ceil(COLUMNS), &|_, range| {
                let columns = range.start * COLUMNS..(range.end * COLUMNS).min(width);
                // SAFETY: ranges of one run do not overlap.
                let sums = unsafe { sums.piece(columns.clone()) };
                for r in 0..count {
                    for (sum, &x) in sums.iter_mut().zip(&x.row(r)[columns.clone()]) {
                        *sum += f64::from(x) * f64::from(x);
                    }
                }
            });
        }
        for part in parts {
            let (offset_bytes, outputs) = (part.backing().1.start, part.rows());
            if !self.parts.contains_key(part.name()) {
                self.parts.insert(part.name().to_owned(), Vec::new());
            }
            let Some(all) = self.parts.get_mut(part.name()) else { continue };
            let same = |r: &Recorded| r.offset_bytes == offset_bytes && r.outputs == outputs && r.sums.len() == width;
            let at = all.iter().position(same).unwrap_or_else(|| {
                let (tensor, row_bytes, sums) = (part.name().to_owned(), part.row_bytes(), vec![0.0; width]);
                all.push(Recorded { tensor, offset_bytes, outputs, row_bytes, sums, rows: 0 });
                all.len() - 1
            });
            let recorded = &mut all[at];
            recorded.sums.iter_mut().zip(&self.sums).for_each(|(all, sum)| *all += sum);
            recorded.rows += count as u64;
        }
    }

    /// By name and place.
    pub(super) fn finish(self) -> Vec<Recorded> {
        let mut all: Vec<Recorded> = self.parts.into_values().flatten().collect();
        all.sort_by(|a, b| (&a.tensor, a.offset_bytes, a.outputs).cmp(&(&b.tensor, b.offset_bytes, b.outputs)));
        all
    }
}
