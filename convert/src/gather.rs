//! A tensor of the model file, row by row, from tensors of the checkpoint that lie otherwise.
//!
//! Most are one tensor as it is. Attention may be packed or turn other pairs of channels, experts may have a tensor each, and the
//! second matrix of fused experts is stored the other way round. [`Gather`] says which of these it is and [`Assembled`] reads rows
//! of the result; convert, verify and the hash behind the pair id all see the same rows.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::checkpoint::Merged;
use crate::error::Result;

/// Which rows of the sources make the rows of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gather {
    /// One source as it is.
    Whole,
    /// Some heads of one source.
    Heads(Heads),
    /// Several sources of one shape, one below the other.
    Stack,
    /// One source of `experts` blocks, each turned: `[experts · n, m]` becomes `[experts · m, n]`.
    Turned {
        /// Blocks.
        experts: usize,
    },
}

/// Heads out of a matrix whose rows are groups of heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Rows of a head.
    pub width: usize,
    /// Heads that lie together in the source.
    pub group: usize,
    /// The first one wanted of every group.
    pub first: usize,
    /// How many of every group are wanted.
    pub taken: usize,
    /// Whether channel `i` of a head turns with `i + width / 2`; in the result `2i` turns with `2i + 1`.
    pub halves: bool,
}

impl Heads {
    /// The row of the source that becomes row `row`.
    fn source(&self, row: usize) -> usize {
        let (head, channel) = (row / self.width, row % self.width);
        let channel = if self.halves { channel / 2 + channel % 2 * (self.width / 2) } else { channel };
        (head / self.taken * self.group + self.first + head % self.taken) * self.width + channel
    }
}

impl Gather {
    /// The shape of the result, from that of each of `sources` sources. The shape is one the registry made.
    pub fn shape(&self, source: &[usize], sources: usize) -> Vec<usize> {
        let mut shape = source.to_vec();
        match (self, shape.as_mut_slice()) {
            (Gather::Heads(h), [rows, ..]) => *rows = *rows / h.group.max(1) * h.taken,
            (Gather::Stack, [rows, ..]) => *rows *= sources,
            (Gather::Turned { experts }, [rows, cols]) => (*rows, *cols) = (experts * *cols, *rows / (*experts).max(1)),
            _ => {}
        }
        shape
    }
}

/// Room for turned columns unless somebody plans for less, in bytes: an expert of Mixtral's size has 224 MiB.
pub const DEFAULT_PANEL_BYTES: u64 = 256 << 20;
/// Numbers of the source read at once for turning.
const STRIP: usize = 1 << 18;

/// A tensor to be, with its sources opened. Rows are read as f32; memory beyond the caller's is about a MiB, and of a
/// turned tensor a panel of columns ([`with_panel`](Assembled::with_panel)) until the last row is read.
pub struct Assembled {
    parts: Vec<Merged>,
    gather: Gather,
    shape: Vec<usize>,
    panel_bytes: u64,
    panel: Mutex<Panel>,
}

/// Columns `columns` of block `block`, turned.
#[derive(Default)]
struct Panel {
    block: usize,
    columns: Range<usize>,
    data: Vec<f32>,
}

impl Assembled {
    /// What `gather` makes of `parts`, which are of one shape and fit it: the registry has seen to that.
    pub fn new(parts: Vec<Merged>, gather: Gather) -> Assembled {
        let shape = parts.first().map_or(vec![], |p| gather.shape(p.shape(), parts.len()));
        Assembled { parts, gather, shape, panel_bytes: DEFAULT_PANEL_BYTES, panel: Mutex::default() }
    }

    /// The same with at most this much room for turned columns, in bytes; one column is held in any case. What is read does not
    /// depend on it, how often the sources are read does: once per panel.
    pub fn with_panel(mut self, bytes: u64) -> Assembled {
        self.panel_bytes = bytes;
        self
    }

    /// The room that holds all of a block, in bytes; 0 unless blocks are turned.
    pub fn block_bytes(&self) -> u64 {
        match self.gather {
            Gather::Turned { experts } => 4 * (self.rows() / experts.max(1)) as u64 * self.cols() as u64,
            _ => 0,
        }
    }

    /// The shape, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Dimension 0; 1 for a scalar or a vector.
    pub fn rows(&self) -> usize {
        if self.shape.len() < 2 { 1 } else { self.shape[0] }
    }

    /// Elements of one row: the product of the other dimensions, or a vector's length.
    pub fn cols(&self) -> usize {
        if self.shape.len() < 2 { self.shape.iter().product() } else { self.shape[1..].iter().product() }
    }

    /// The stored number format, of all sources.
    pub fn format(&self) -> String {
        let mut names: Vec<&str> = self.parts.iter().map(|p| p.dtype().name()).collect();
        names.dedup();
        names.join("+")
    }

    /// Bytes of what is read, as stored: of a source from which some heads are taken, their share.
    pub fn stored_bytes(&self) -> u64 {
        let bytes: u64 = self.parts.iter().map(Merged::stored_bytes).sum();
        match self.gather {
            Gather::Heads(h) => bytes / h.group.max(1) as u64 * h.taken as u64,
            _ => bytes,
        }
    }

    /// Warnings about the shards, see [`Merged::note`].
    pub fn notes(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(Merged::note)
    }

    /// Reads rows as f32 into `out` `[rows.len(), cols]`. Rows that rise from call to call are cheapest.
    ///
    /// # Errors
    /// As [`Merged::read_rows`].
    ///
    /// # Panics
    /// When `rows` is not within [`rows`](Assembled::rows), or `out` has another length: the caller's mistakes.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        assert!(rows.start <= rows.end && rows.end <= self.rows(), "rows {rows:?} of {}", self.rows());
        assert_eq!(out.len(), rows.len() * self.cols(), "room for the rows");
        if out.is_empty() {
            return Ok(());
        }
        match self.gather {
            Gather::Whole => self.parts[0].read_rows(rows, out),
            Gather::Heads(heads) => self.heads(heads, rows, out),
            Gather::Stack => self.stack(rows, out),
            Gather::Turned { experts } => self.turned(self.rows() / experts, rows, out),
        }
    }

    fn heads(&self, heads: Heads, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (source, cols) = (&self.parts[0], self.cols());
        // Rows of the result that are `step` apart lie together in the source.
        let step = if heads.halves { 2 } else { 1 };
        let mut run = Vec::new();
        let mut at = rows.start;
        while at < rows.end {
            let end = rows.end.min((at / heads.width + 1) * heads.width);
            for first in (at..end).take(step) {
                let count = (end - first).div_ceil(step);
                let from = heads.source(first);
                let to = &mut out[(first - rows.start) * cols..(end - rows.start) * cols];
                if step == 1 {
                    source.read_rows(from..from + count, to)?;
                    continue;
                }
                run.resize(count * cols, 0.0);
                source.read_rows(from..from + count, &mut run)?;
                for (row, to) in run.chunks_exact(cols).zip(to.chunks_mut(step * cols)) {
                    to[..cols].copy_from_slice(row);
                }
            }
            at = end;
        }
        Ok(())
    }

    fn stack(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (height, cols) = (self.rows() / self.parts.len(), self.cols());
        let mut at = rows.start;
        while at < rows.end {
            let (part, first) = (at / height, at % height);
            let count = (height - first).min(rows.end - at);
            self.parts[part].read_rows(first..first + count, &mut out[(at - rows.start) * cols..][..count * cols])?;
            at += count;
        }
        Ok(())
    }

    /// `columns`: of a block in the source, rows of one in the result.
    fn turned(&self, columns: usize, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let height = self.cols();
        let most = (self.panel_bytes / (4 * height as u64)).clamp(1, columns as u64) as usize;
        let mut panel = self.panel.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = rows.start;
        while at < rows.end {
            let (block, column) = (at / columns, at % columns);
            if panel.block != block || !panel.columns.contains(&column) {
                let first = column / most * most;
                self.fill(&mut panel, block, first..(first + most).min(columns), columns)?;
            }
            let count = (panel.columns.end - column).min(rows.end - at);
            let from = (column - panel.columns.start) * height;
            out[(at - rows.start) * height..][..count * height].copy_from_slice(&panel.data[from..][..count * height]);
            at += count;
        }
        if rows.end == self.rows() {
            *panel = Panel::default();
        }
        Ok(())
    }

    fn fill(&self, panel: &mut Panel, block: usize, columns: Range<usize>, width: usize) -> Result<()> {
        let height = self.cols();
        panel.columns = 0..0;
        panel.data.resize(columns.len() * height, 0.0);
        let step = (STRIP / width).clamp(1, height);
        let mut strip = vec![0.0; step * width];
        for first in (0..height).step_by(step) {
            let count = step.min(height - first);
            let strip = &mut strip[..count * width];
            let from = block * height + first;
            self.parts[0].read_rows(from..from + count, strip)?;
            turn(strip, width, columns.clone(), &mut panel.data, height, first);
        }
        (panel.block, panel.columns) = (block, columns);
        Ok(())
    }
}

/// Columns `columns` of `strip` `[n, width]` become rows of `out`, each `height` long, from its element `at` on.
fn turn(strip: &[f32], width: usize, columns: Range<usize>, out: &mut [f32], height: usize, at: usize) {
    // Small tiles, so that neither side leaves the cache between one row and the next.
    const TILE: (usize, usize) = (8, 16);
    for (t, rows) in strip.chunks(TILE.0 * width).enumerate() {
        let at = at + t * TILE.0;
        for first in columns.clone().step_by(TILE.1) {
            for column in first..(first + TILE.1).min(columns.end) {
                let to = &mut out[(column - columns.start) * height + at..][..rows.len() / width];
                for (to, row) in to.iter_mut().zip(rows.chunks_exact(width)) {
                    *to = row[column];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::{Checkpoint, Rule};

    /// Tensors `[rows, cols]` that count upwards from a start of their own.
    fn checkpoint(folder: &Path, tensors: &[(&str, usize, usize, f32)]) -> Checkpoint {
        let data: Vec<(String, Vec<u8>, [usize; 2])> = tensors
            .iter()
            .map(|&(name, rows, cols, start)| {
                let bytes = (0..rows * cols).flat_map(|i| (start + i as f32).to_le_bytes()).collect();
                (name.to_owned(), bytes, [rows, cols])
            })
            .collect();
        let views = data.iter().map(|(name, bytes, shape)| {
            (name.as_str(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).unwrap())
        });
        let path = folder.join("model.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        Checkpoint::open(&[path]).unwrap()
    }

    /// Reads all rows in pieces of `step`.
    fn read(a: &Assembled, step: usize) -> Vec<f32> {
        let mut out = Vec::new();
        for first in (0..a.rows()).step_by(step) {
            let rows = first..(first + step).min(a.rows());
            let mut piece = vec![f32::NAN; rows.len() * a.cols()];
            a.read_rows(rows, &mut piece).unwrap();
            out.extend(piece);
        }
        out
    }

    fn held(a: &Assembled) -> usize {
        4 * a.panel.lock().unwrap().data.capacity()
    }

    #[test]
    fn heads_are_taken_out_of_groups_and_turned_to_pairs() {
        let folder = tempfile::tempdir().unwrap();
        // Two groups of two query heads, a key head and a value head, each 6 rows; 3 columns.
        let c = checkpoint(folder.path(), &[("wqkv", 48, 3, 0.0)]);
        let part = |first, taken, halves| {
            let heads = Heads { width: 6, group: 4, first, taken, halves };
            Assembled::new(vec![c.merged("wqkv", Rule::Dim0).unwrap()], Gather::Heads(heads))
        };
        let rows = |list: &[usize]| list.iter().flat_map(|r| (0..3).map(move |c| (3 * r + c) as f32)).collect::<Vec<_>>();
        let value: Vec<usize> = (18..24).chain(42..48).collect();
        let key: Vec<usize> = [12, 15, 13, 16, 14, 17].into_iter().flat_map(|r| [r]).chain([36, 39, 37, 40, 38, 41]).collect();
        let order = [0, 3, 1, 4, 2, 5];
        let query: Vec<usize> = [0, 6, 24, 30].into_iter().flat_map(|h| order.map(|r| h + r)).collect();
        for step in [1, 2, 5, 7, 100] {
            assert_eq!(read(&part(3, 1, false), step), rows(&value), "{step}");
            assert_eq!(read(&part(2, 1, true), step), rows(&key), "{step}");
            assert_eq!(read(&part(0, 2, true), step), rows(&query), "{step}");
        }
        assert_eq!((part(0, 2, true).shape(), part(2, 1, true).shape()), (&[24, 3][..], &[12, 3][..]));
        assert_eq!(part(0, 2, true).stored_bytes(), 24 * 3 * 4);
    }

    #[test]
    fn experts_of_their_own_lie_one_below_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let c = checkpoint(folder.path(), &[("a", 4, 3, 0.0), ("b", 4, 3, 100.0), ("c", 4, 3, 200.0)]);
        let parts = ["a", "b", "c"].map(|n| c.merged(n, Rule::Owner).unwrap());
        let a = Assembled::new(parts.into(), Gather::Stack);
        let want: Vec<f32> = [0, 100, 200].into_iter().flat_map(|s| (s..s + 12).map(|x| x as f32)).collect();
        assert_eq!(a.shape(), [12, 3]);
        for step in [1, 3, 4, 5, 12] {
            assert_eq!(read(&a, step), want);
        }
    }

    #[test]
    fn turned_blocks_do_not_depend_on_the_room() {
        let folder = tempfile::tempdir().unwrap();
        let (experts, height, width) = (3, 37, 21);
        let c = checkpoint(folder.path(), &[("w2", experts * height, width, 0.0)]);
        let open = |bytes| Assembled::new(vec![c.merged("w2", Rule::Dim0).unwrap()], Gather::Turned { experts }).with_panel(bytes);
        let value = |e: usize, column: usize, row: usize| ((e * height + row) * width + column) as f32;
        let want: Vec<f32> = (0..experts).flat_map(|e| (0..width).flat_map(move |c| (0..height).map(move |r| value(e, c, r)))).collect();
        let block = 4 * height * width;
        assert_eq!(open(0).block_bytes(), block as u64);
        for bytes in [0, 4 * height, 4 * height * 5 + 3, block - 1, block, 10 * block] {
            for step in [1, 4, 21, 50] {
                let a = open(bytes as u64);
                assert_eq!(a.shape(), [experts * width, height]);
                assert!(read(&a, step) == want, "room {bytes}, step {step}");
                assert_eq!(held(&a), 0, "nothing is held at the end");
                a.read_rows(0..1, &mut vec![0.0; height]).unwrap();
                assert!(held(&a) <= bytes.clamp(4 * height, block), "{} of {bytes}", held(&a));
            }
        }
        // In any order too.
        let a = open(4 * height as u64 * 4);
        for row in [40, 3, 62, 0, 41] {
            let mut out = vec![0.0; height];
            a.read_rows(row..row + 1, &mut out).unwrap();
            assert_eq!(out, want[row * height..][..height]);
        }
    }
}
