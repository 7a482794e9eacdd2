//! Batches of activation rows times weight rows that were unpacked once, 16 rows to a panel.
//!
//! A result is added up exactly as [`super::dot`] adds it up: block by block within a lane, then lane by lane. So
//! that the inner loops run straight through memory, blocks (or, of float rows, elements) are stored lane by lane,
//! in the order of [`place`], in the panels as well as in the batch.

use std::ops::Range;

use super::dot::{FLOAT_LANES, LANES};
use super::unpack::Codes;

/// Weight rows of a panel.
pub const PANEL: usize = 16;
/// Bytes of a panel's codes for one activation block: 8 groups of 4 columns, 16 rows, 4 columns.
pub const PANEL_BLOCK: usize = 32 * PANEL;

/// Where item `i` of `n` is stored when items are dealt to `lanes` lanes and kept lane by lane.
#[inline(always)]
pub fn place(i: usize, n: usize, lanes: usize) -> usize {
    lane(i % lanes, n, lanes).start + i / lanes
}

/// Where the items of lane `l` are.
#[inline(always)]
pub fn lane(l: usize, n: usize, lanes: usize) -> Range<usize> {
    let start = |l: usize| l * (n / lanes) + l.min(n % lanes);
    start(l)..start(l + 1)
}

/// What kind of quantised weights panels hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Whether a scale is shared by 16 columns rather than 32.
    pub sixteen: bool,
    /// Whether groups have minima.
    pub min: bool,
    /// What is taken off a code; 0 when groups have minima.
    pub offset: i32,
    /// The largest code.
    pub most: u8,
}

impl Kind {
    /// The kind of a format.
    pub const fn of<B: Codes>() -> Kind {
        Kind { sixteen: B::GROUP == 16, min: B::MIN, offset: B::OFFSET, most: B::MOST }
    }

    /// Scales per activation block.
    pub const fn groups(self) -> usize {
        if self.sixteen { 2 } else { 1 }
    }

    /// What [`Batch::aux`] has for a group of activations whose codes add up to `sum`, of a block with scale `d`.
    pub fn aux(self, sum: i32, d: f32) -> i32 {
        if self.min { (d * sum as f32).to_bits() as i32 } else { -self.offset * sum }
    }
}

/// Unpacked weight rows.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    /// Codes: per panel and block `[8, 16, 4]`, columns in groups of 4; or `[4, 16, 8]`, where the kernels that pack and multiply are
    /// made for groups of 8.
    pub codes: &'a [u8],
    /// Scales: per panel, block and group `[16]`.
    pub s: &'a [f32],
    /// Minima, like the scales; unused without minima.
    pub m: &'a [f32],
    /// Activation blocks of a row.
    pub blocks: usize,
    /// Panels.
    pub count: usize,
    /// What the codes mean.
    pub kind: Kind,
}

/// Activation rows in 8 or 16 bits, blocks in the order of [`place`].
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// Whether the activations are in 16 bits, see [`FineRow`](crate::cpu::q8::FineRow).
    pub fine: bool,
    /// `[rows, blocks, 32]`, or, in 16 bits, `[rows, blocks, 2, 32]`: a block's high codes, then its low ones.
    pub qs: &'a [i8],
    /// `[rows, blocks]`.
    pub d: &'a [f32],
    /// Per row, block and group, made for the kind of the weights: `−offset · Σ qs` as an integer, or, for weights
    /// with minima, the bits of `d · Σ qs` as `f32`.
    pub aux: &'a [i32],
    /// Rows.
    pub rows: usize,
}

/// Operands of a tile of a batch: pointers to its first row and first panel.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Tile {
    pub qs: *const i8,
    pub d: *const f32,
    pub aux: *const i32,
    pub codes: *const u8,
    pub s: *const f32,
    pub m: *const f32,
    pub blocks: usize,
    pub out: *mut f32,
    pub stride: usize,
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl Tile {
    /// The tile that starts at `row` and `panel`.
    pub fn at(x: Batch<'_>, w: Panels<'_>, out: &mut [f32], stride: usize, row: usize, panel: usize) -> Tile {
        let (n, groups) = (w.blocks, w.kind.groups());
        let minima = if w.kind.min { panel * n * groups * PANEL } else { 0 };
        Tile {
            qs: x.qs[row * n * if x.fine { 64 } else { 32 }..].as_ptr(),
            d: x.d[row * n..].as_ptr(),
            aux: x.aux[row * n * groups..].as_ptr(),
            codes: w.codes[panel * n * PANEL_BLOCK..].as_ptr(),
            s: w.s[panel * n * groups * PANEL..].as_ptr(),
            m: w.m[minima..].as_ptr(),
            blocks: n,
            out: out[row * stride + panel * PANEL..].as_mut_ptr(),
            stride,
        }
    }

    /// The same without its first block of activations in `terms` terms, with `groups` scales.
    #[inline(always)]
    pub fn next(self, terms: usize, groups: usize) -> Tile {
        Tile {
            qs: self.qs.wrapping_add(32 * terms),
            d: self.d.wrapping_add(1),
            aux: self.aux.wrapping_add(groups),
            codes: self.codes.wrapping_add(PANEL_BLOCK),
            s: self.s.wrapping_add(groups * PANEL),
            m: self.m.wrapping_add(groups * PANEL),
            ..self
        }
    }
}

/// Unpacks up to 16 rows of `w` (whole rows, `rows` of them) into one panel; missing rows become zeros.
///
/// `codes`, `s`, `m` as in [`Panels`], of one panel.
pub fn pack<B: Codes>(w: &[B], rows: usize, codes: &mut [u8], s: &mut [f32], m: &mut [f32]) {
    pack_with(w, rows, codes, s, m, transpose, |_| {});
}

/// The codes of 16 rows of one block, four columns of a row together.
#[inline(always)]
fn transpose(rows: &[[u8; 256]; PANEL], first: usize, out: &mut [u8; PANEL_BLOCK]) {
    for (group, out) in out.as_chunks_mut::<{ 4 * PANEL }>().0.iter_mut().enumerate() {
        for (out, row) in out.as_chunks_mut::<4>().0.iter_mut().zip(rows) {
            out.copy_from_slice(&row[first + 4 * group..][..4]);
        }
    }
}

/// [`pack`] with a given way to transpose, and something to do before each activation block.
#[inline(always)]
pub(in crate::cpu) fn pack_with<B: Codes>(
    w: &[B],
    rows: usize,
    codes: &mut [u8],
    s: &mut [f32],
    m: &mut [f32],
    transpose: impl Fn(&[[u8; 256]; PANEL], usize, &mut [u8; PANEL_BLOCK]),
    ahead: impl Fn(usize),
) {
    let per_row = w.len() / rows;
    let (per_block, groups) = (B::LEN / 32, 32 / B::GROUP);
    let n = per_row * per_block;
    let mut unpacked = [[0u8; 256]; PANEL];
    let (mut scales, mut minima) = ([[0f32; 16]; PANEL], [[0f32; 16]; PANEL]);
    let codes = codes.as_chunks_mut::<PANEL_BLOCK>().0;
    let (s, m) = (s.as_chunks_mut::<PANEL>().0, m.as_chunks_mut::<PANEL>().0);
    for i in 0..per_row {
        for r in 0..rows {
            w[r * per_row + i].unpack(&mut unpacked[r][..B::LEN], &mut scales[r], &mut minima[r]);
        }
        for j in 0..per_block {
            let at = place(i * per_block + j, n, LANES);
            ahead(i * per_block + j);
            transpose(&unpacked, 32 * j, &mut codes[at]);
            for g in 0..groups {
                for r in 0..PANEL {
                    s[at * groups + g][r] = scales[r][j * groups + g];
                }
                if B::MIN {
                    for r in 0..PANEL {
                        m[at * groups + g][r] = minima[r][j * groups + g];
                    }
                }
            }
        }
    }
}

/// `out[row][column] = x[row] · w[column]`, `out` being `x.rows` rows, `stride` apart, of 16 columns per panel.
pub fn multiply(x: Batch<'_>, w: Panels<'_>, out: &mut [f32], stride: usize) {
    let (n, groups) = (w.blocks, w.kind.groups());
    let (width, terms) = (32 / groups, if x.fine { 2 } else { 1 });
    for row in 0..x.rows {
        let (qs, d) = (&x.qs[row * 32 * terms * n..][..32 * terms * n], &x.d[row * n..][..n]);
        let aux = &x.aux[row * n * groups..][..n * groups];
        for panel in 0..w.count {
            let codes = w.codes[panel * n * PANEL_BLOCK..][..n * PANEL_BLOCK].as_chunks::<PANEL_BLOCK>().0;
            let s = w.s[panel * n * groups * PANEL..][..n * groups * PANEL].as_chunks::<PANEL>().0;
            let mut total = [0f32; PANEL];
            for l in 0..LANES {
                let (mut sums, mut minima) = ([0f32; PANEL], [0f32; PANEL]);
                for b in lane(l, n, LANES) {
                    let mut block = [0f32; PANEL];
                    for g in 0..groups {
                        let mut dots = [0i32; PANEL];
                        let columns = codes[b][width * g * PANEL..][..width * PANEL].as_chunks::<{ 4 * PANEL }>().0;
                        for term in 0..terms {
                            dots = dots.map(|dot| dot << 8);
                            let x = qs[32 * (terms * b + term) + width * g..][..width].as_chunks::<4>().0;
                            for (x, column) in x.iter().zip(columns) {
                                for (dot, w) in dots.iter_mut().zip(column.as_chunks::<4>().0) {
                                    for i in 0..4 {
                                        *dot += i32::from(w[i]) * i32::from(x[i]);
                                    }
                                }
                            }
                        }
                        if !w.kind.min {
                            dots = dots.map(|dot| dot + aux[b * groups + g]);
                        }
                        for r in 0..PANEL {
                            block[r] += dots[r] as f32 * s[b * groups + g][r];
                        }
                    }
                    if w.kind.min {
                        let m = w.m[(panel * n + b) * groups * PANEL..].as_chunks::<PANEL>().0;
                        for g in 0..groups {
                            let sum = f32::from_bits(aux[b * groups + g] as u32);
                            for r in 0..PANEL {
                                minima[r] += m[g][r] * sum;
                            }
                        }
                    }
                    for r in 0..PANEL {
                        sums[r] += block[r] * d[b];
                    }
                }
                for r in 0..PANEL {
                    total[r] += sums[r] - minima[r];
                }
            }
            out[row * stride + panel * PANEL..][..PANEL].copy_from_slice(&total);
        }
    }
}

/// Transposes up to 16 float rows into one panel `[k, 16]`, columns in the order of [`place`]; missing rows become zeros.
pub fn pack_float(w: &[f32], rows: usize, panel: &mut [f32]) {
    let k = w.len() / rows;
    let panel = panel.as_chunks_mut::<PANEL>().0;
    for i in 0..k {
        let out = &mut panel[place(i, k, FLOAT_LANES)];
        for (r, out) in out.iter_mut().enumerate() {
            *out = if r < rows { w[r * k + i] } else { 0.0 };
        }
    }
}

/// A row of activations in the order of [`place`].
pub fn deal(x: &[f32], out: &mut [f32]) {
    let k = x.len();
    for l in 0..FLOAT_LANES.min(k) {
        for (out, x) in out[lane(l, k, FLOAT_LANES)].iter_mut().zip(x[l..].iter().step_by(FLOAT_LANES)) {
            *out = *x;
        }
    }
}

/// [`multiply`] for floats: `x` `[rows, k]` as [`deal`] leaves it, `w` panels of `[k, 16]`.
pub fn multiply_float(x: &[f32], k: usize, w: &[f32], out: &mut [f32], stride: usize) {
    for (x, out) in x.chunks_exact(k).zip(out.chunks_mut(stride)) {
        for (w, out) in w.chunks_exact(k * PANEL).zip(out.as_chunks_mut::<PANEL>().0) {
            let w = w.as_chunks::<PANEL>().0;
            *out = [0.0; PANEL];
            for l in 0..FLOAT_LANES {
                let mut sums = [0f32; PANEL];
                for i in lane(l, k, FLOAT_LANES) {
                    for r in 0..PANEL {
                        sums[r] += w[i][r] * x[i];
                    }
                }
                for r in 0..PANEL {
                    out[r] += sums[r];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_a_permutation_in_lane_order() {
        for n in 0..70 {
            for lanes in [8, 32] {
                let mut places: Vec<usize> = (0..n).map(|i| place(i, n, lanes)).collect();
                for l in 0..lanes {
                    let got: Vec<usize> = (l..n).step_by(lanes).map(|i| place(i, n, lanes)).collect();
                    assert_eq!(got, lane(l, n, lanes).collect::<Vec<_>>(), "{n} items, lane {l} of {lanes}");
                }
                places.sort_unstable();
                assert_eq!(places, (0..n).collect::<Vec<_>>());
            }
        }
    }
}
