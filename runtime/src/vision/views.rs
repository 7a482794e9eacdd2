//! From the preprocessed square to what each encoder sees: the whole picture, then its tiles in raster order.

use super::params::{Tiling, VisionParams};
use super::resize::Frame;

/// A square of f32 planes.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// Pixels a side.
    pub side: usize,
    /// `[3, side, side]`.
    pub planes: Vec<f32>,
}

impl Map {
    /// The map, row by row.
    pub fn rows(&self) -> Rows<'_> {
        Rows { side: self.side, step: self.side, values: &self.planes }
    }
}

/// A square of f32 planes, read by rows.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Pixels a side.
    side: usize,
    /// Values from one row of a plane to the next: `side`, or 0 where all rows are one.
    step: usize,
    /// Three planes.
    values: &'a [f32],
}

impl<'a> Rows<'a> {
    /// A square whose rows are all alike: `row` `[3, side]`.
    pub fn alike(row: &'a [f32]) -> Rows<'a> {
        Rows { side: row.len() / 3, step: 0, values: row }
    }

    /// Row `y` of plane `plane`.
    fn row(&self, plane: usize, y: usize) -> &'a [f32] {
        &self.values[plane * (self.values.len() / 3) + y * self.step..][..self.side]
    }
}

/// Encoder inputs of some views of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Views {
    /// Which views: 0 is the whole picture, the sub-images follow in raster order.
    pub places: Vec<usize>,
    /// For vision transformers: `[3, vit.input, vit.input]` each.
    pub vit: Vec<Map>,
    /// For ConvNeXt, if there is one: `[3, convnext.input, convnext.input]` each.
    pub convnext: Vec<Map>,
}

impl Views {
    /// Views `places` of `image` `[3, S, S]`, cut as `params` say.
    ///
    /// Source: `encode_image` of the released SPHINX model code.
    pub fn new(image: Rows<'_>, params: &VisionParams, places: &[usize]) -> Views {
        let vit = views_of(image, params.vit, params.grid, places);
        let convnext = match params.convnext().map(|convnext| (convnext.input, convnext.tiling)) {
            None => Vec::new(),
            Some((_, Some(tiling))) => views_of(image, tiling, params.grid, places),
            Some((input, None)) => vit.iter().map(|view| nearest(view, input)).collect(),
        };
        Views { places: places.to_vec(), vit, convnext }
    }

    /// Drops the views whose place `keep` does not want.
    pub fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        let kept: Vec<bool> = self.places.iter().map(|&k| keep(k)).collect();
        let mut at = kept.iter();
        self.vit.retain(|_| at.next() == Some(&true));
        let mut at = kept.iter();
        self.convnext.retain(|_| at.next() == Some(&true));
        self.places.retain(|&k| keep(k));
    }

    /// Places whose inputs equal, bit for bit, what a square all of `colour` (normalised) would put there.
    pub fn padding(&self, params: &VisionParams, colour: [f32; 3]) -> Vec<usize> {
        // A look at the first pixel spares most pictures the comparison.
        let near = |view: &Map| view.planes.chunks_exact(view.side * view.side).zip(colour).all(|(plane, c)| (plane[0] - c).abs() < 1e-3);
        let candidates: Vec<usize> = (0..self.places.len()).filter(|&i| near(&self.vit[i])).collect();
        if candidates.is_empty() {
            return Vec::new();
        }
        let row: Vec<f32> = colour.iter().flat_map(|&c| std::iter::repeat_n(c, params.image_size)).collect();
        let places: Vec<usize> = candidates.iter().map(|&i| self.places[i]).collect();
        let flat = Views::new(Rows::alike(&row), params, &places);
        let same = |a: &Map, b: &Map| a.planes.iter().map(|v| v.to_bits()).eq(b.planes.iter().map(|v| v.to_bits()));
        let equal = |j: usize, i: usize| {
            let convnext = match (flat.convnext.get(j), self.convnext.get(i)) {
                (Some(a), Some(b)) => same(a, b),
                _ => true,
            };
            convnext && same(&flat.vit[j], &self.vit[i])
        };
        candidates.iter().enumerate().filter(|&(j, &i)| equal(j, i)).map(|(j, _)| places[j]).collect()
    }
}

/// Which sub-images of `grid` × `grid` hold nothing of the picture, in raster order: their nominal rectangle in the padded
/// square is compared in whole numbers, and the pixel or two that a resize lets content bleed over do not count.
///
/// Along an axis on which the picture is one pixel thick, nothing is empty.
pub fn empty_parts(frame: Frame, grid: usize) -> Vec<bool> {
    let empty = |from: usize, length: usize, tile: usize| {
        length >= 2 && (grid * (from + length) <= tile * frame.side || grid * from >= (tile + 1) * frame.side)
    };
    let part = |i: usize| empty(frame.top, frame.height, i / grid) || empty(frame.left, frame.width, i % grid);
    (0..grid * grid).map(part).collect()
}

/// The whole of `image` at the input's size, and tiles of the board: those at `places`.
fn views_of(image: Rows<'_>, tiling: Tiling, grid: usize, places: &[usize]) -> Vec<Map> {
    let parts = places.iter().any(|&k| k > 0);
    let resized = (parts && image.side != tiling.board).then(|| cubic(image, tiling.board));
    let board = resized.as_ref().map_or(image, Map::rows);
    let view = |&place: &usize| match place.checked_sub(1) {
        Some(part) => tile(board, tiling.input, part / grid, part % grid),
        None if image.side == tiling.input => tile(image, image.side, 0, 0),
        None => cubic(image, tiling.input),
    };
    places.iter().map(view).collect()
}

/// Tile (`row`, `column`) of `board`, tiles being `side` pixels a side.
fn tile(board: Rows<'_>, side: usize, row: usize, column: usize) -> Map {
    let mut planes = Vec::with_capacity(3 * side * side);
    for plane in 0..3 {
        for y in row * side..(row + 1) * side {
            planes.extend_from_slice(&board.row(plane, y)[column * side..][..side]);
        }
    }
    Map { side, planes }
}

/// The model's own resize: a cubic of four taps, a = −3/4, pixel centres aligned, edges repeated, no antialiasing.
///
/// Horizontally, then vertically, in f32, taps added from the left and the top.
pub fn cubic(image: Rows<'_>, side: usize) -> Map {
    let from = image.side;
    let axis = cubic_axis(from, side);
    let mut planes = Vec::with_capacity(3 * side * side);
    // The horizontally resized input rows that an output row reads, by input row.
    let mut rows: [(usize, Vec<f32>); 4] = std::array::from_fn(|_| (usize::MAX, vec![0.0; side]));
    for plane in 0..3 {
        rows.iter_mut().for_each(|row| row.0 = usize::MAX);
        for (index, weights) in &axis {
            for &y in index {
                // Four rows in a row fall into four different slots.
                let (held, row) = &mut rows[y % 4];
                if *held != y {
                    *held = y;
                    let source = image.row(plane, y);
                    for (to, (x, w)) in row.iter_mut().zip(&axis) {
                        *to = source[x[0]] * w[0] + source[x[1]] * w[1] + source[x[2]] * w[2] + source[x[3]] * w[3];
                    }
                }
            }
            let [a, b, c, d] = index.map(|y| &rows[y % 4].1);
            let w = weights;
            planes.extend((0..side).map(|x| a[x] * w[0] + b[x] * w[1] + c[x] * w[2] + d[x] * w[3]));
        }
    }
    Map { side, planes }
}

/// Input samples and weights of each output sample.
fn cubic_axis(from: usize, to: usize) -> Vec<([usize; 4], [f32; 4])> {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let scale = from as f32 / to as f32;
    let sample = |o: usize| {
        let source = scale * (o as f32 + 0.5) - 0.5;
        let base = source.floor();
        let t = source - base;
        let index = std::array::from_fn(|k| (base as isize + k as isize - 1).clamp(0, from as isize - 1) as usize);
        (index, [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)])
    };
    (0..to).map(sample).collect()
}

/// The nearest input sample of each output sample, rounded down.
pub fn nearest(image: &Map, side: usize) -> Map {
    let from = image.side;
    if from == side {
        return image.clone();
    }
    let source: Vec<usize> = (0..side).map(|o| (o * from / side).min(from - 1)).collect();
    let mut planes = Vec::with_capacity(3 * side * side);
    for plane in image.planes.chunks_exact(from * from) {
        for &y in &source {
            planes.extend(source.iter().map(|&x| plane[y * from + x]));
        }
    }
    Map { side, planes }
}

/// Non-overlapping patches as rows: `[3, side, side]` to `[(side / patch)², 3 · patch · patch]`, channel-major inside a patch.
pub fn patchify(map: &Map, patch: usize) -> Vec<f32> {
    let (side, across) = (map.side, map.side / patch);
    let mut rows = Vec::with_capacity(3 * (across * patch).pow(2));
    for row in 0..across {
        for column in 0..across {
            for plane in map.planes.chunks_exact(side * side) {
                for y in row * patch..(row + 1) * patch {
                    rows.extend_from_slice(&plane[y * side + column * patch..][..patch]);
                }
            }
        }
    }
    rows
}

/// Values normalised by `mean` and `std` made those of `to_mean` and `to_std`, in one multiplication and one addition.
pub fn renormalise(map: &mut Map, mean: [f32; 3], std: [f32; 3], to_mean: [f32; 3], to_std: [f32; 3]) {
    for (c, plane) in map.planes.chunks_exact_mut(map.side * map.side).enumerate() {
        let (factor, shift) = (std[c] / to_std[c], (mean[c] - to_mean[c]) / to_std[c]);
        for value in plane {
            *value = *value * factor + shift;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::resize::{Anchor, Padding, PaddingOrder};
    use super::*;

    fn ramp(side: usize) -> Map {
        Map { side, planes: (0..3 * side * side).map(|i| (i * 37 % 101) as f32 / 7.0 - 5.0).collect() }
    }

    #[test]
    fn a_third_is_pure_decimation() {
        let image = ramp(12);
        let small = cubic(image.rows(), 4);
        for (i, &value) in small.planes.iter().enumerate() {
            let (c, y, x) = (i / 16, i / 4 % 4, i % 4);
            assert_eq!(value, image.planes[c * 144 + (3 * y + 1) * 12 + 3 * x + 1]);
        }
    }

    #[test]
    fn cubic_weights() {
        assert_eq!(cubic_axis(448, 224)[7], ([13, 14, 15, 16], [-0.09375, 0.59375, 0.59375, -0.09375]));
        let (index, weights) = cubic_axis(1024, 448)[0];
        assert_eq!(index, [0, 0, 1, 2]);
        for (got, want) in weights.iter().zip([-0.06149817, 0.40224117, 0.76995265, -0.11069608]) {
            assert!((got - want).abs() < 1e-7, "{got} {want}");
        }
    }

    #[test]
    fn constants_and_enlargement() {
        let flat = Map { side: 5, planes: vec![1.5; 75] };
        assert!(cubic(flat.rows(), 13).planes.iter().all(|v| (v - 1.5).abs() < 1e-5));
        assert_eq!(cubic(ramp(6).rows(), 6), ramp(6));
        // A square of equal rows is the same square, kept in less.
        let row: Vec<f32> = (0..15).map(|i| i as f32).collect();
        let whole = Map { side: 5, planes: (0..75).map(|i| row[i / 25 * 5 + i % 5]).collect() };
        assert_eq!(cubic(Rows::alike(&row), 7), cubic(whole.rows(), 7));
        assert_eq!(tile(Rows::alike(&row), 2, 1, 1), tile(whole.rows(), 2, 1, 1));
    }

    #[test]
    fn nearest_repeats() {
        let got = nearest(&ramp(2), 4);
        assert_eq!(got.planes[..4], [ramp(2).planes[0], ramp(2).planes[0], ramp(2).planes[1], ramp(2).planes[1]]);
    }

    #[test]
    fn patches_are_channel_major() {
        let rows = patchify(&Map { side: 4, planes: (0..48).map(|v| v as f32).collect() }, 2);
        assert_eq!(rows[12..24], [2.0, 3.0, 6.0, 7.0, 18.0, 19.0, 22.0, 23.0, 34.0, 35.0, 38.0, 39.0]);
    }

    #[test]
    fn tiles_in_raster_order() {
        let views = |places: &[usize]| views_of(ramp(8).rows(), Tiling { input: 4, board: 8 }, 2, places);
        let all = views(&[0, 1, 2, 3, 4]);
        assert_eq!(all.len(), 5);
        assert_eq!(all[2].planes[0], ramp(8).planes[4]);
        assert_eq!(all[3].planes[0], ramp(8).planes[32]);
        assert_eq!(views(&[0, 2, 4]), [all[0].clone(), all[2].clone(), all[4].clone()]);
        assert_eq!(views(&[0]), [all[0].clone()]);
    }

    /// Empty sub-images of a picture, as many as there are.
    fn empty(w: usize, h: usize, grid: usize, anchor: Anchor) -> usize {
        let frame = |w, h| Padding { rgb: [0; 3], anchor, order: PaddingOrder::PadResize }.frame(w, h, 0);
        let (wide, tall) = (empty_parts(frame(w, h), grid), empty_parts(frame(h, w), grid));
        for i in 0..grid * grid {
            assert_eq!(wide[i], tall[i % grid * grid + i / grid], "the turned picture");
        }
        wide.iter().filter(|&&e| e).count()
    }

    /// The nominal column of the table of skippable sub-images by ratio, and the formulas for other grids.
    #[test]
    fn empty_parts_by_aspect_ratio() {
        let l = 1344;
        // Ratio as (long, short), then 2×2 and 3×3 centred, 2×2 and 3×3 at the edge.
        for (a, b, want) in [
            (1, 1, [0, 0, 0, 0]),
            (4, 3, [0, 0, 0, 0]),
            (3, 2, [0, 0, 0, 3]),
            (16, 9, [0, 0, 0, 3]),
            (2, 1, [0, 0, 2, 3]),
            (5, 2, [0, 0, 2, 3]),
            (3, 1, [0, 6, 2, 6]),
            (61, 20, [0, 6, 2, 6]),
            (4, 1, [0, 6, 2, 6]),
            (5, 1, [0, 6, 2, 6]),
            (10, 1, [0, 6, 2, 6]),
        ] {
            let h = l * b / a;
            let got =
                [(2, Anchor::Centre), (3, Anchor::Centre), (2, Anchor::TopLeft), (3, Anchor::TopLeft)].map(|(n, at)| empty(l, h, n, at));
            assert_eq!(got, want, "{a}:{b}");
        }
        assert_eq!([(720, 360), (720, 361), (720, 362)].map(|(w, h)| empty(w, h, 4, Anchor::Centre)), [8, 4, 0]);
        assert_eq!([(900, 540), (900, 542), (900, 180), (900, 182)].map(|(w, h)| empty(w, h, 5, Anchor::Centre)), [10, 0, 20, 10]);
        assert_eq!([(900, 600), (900, 300), (900, 302)].map(|(w, h)| empty(w, h, 6, Anchor::Centre)), [12, 24, 12]);
        // The odd row of padding goes to the bottom: one side only.
        assert_eq!([(1000, 332), (1000, 333), (1000, 334)].map(|(w, h)| empty(w, h, 3, Anchor::Centre)), [6, 3, 0]);
        // One pixel is never between two tiles; two are, or are not.
        assert_eq!([(448, 1), (448, 2), (449, 1)].map(|(w, h)| empty(w, h, 2, Anchor::Centre)), [0, 0, 0]);
        assert_eq!([(448, 1), (448, 2)].map(|(w, h)| empty(w, h, 2, Anchor::TopLeft)), [0, 2]);
        assert_eq!(empty(1, 1, 3, Anchor::TopLeft), 0);
        assert_eq!(empty_parts(Frame { side: 1000, left: 0, top: 0, width: 1000, height: 100 }, 2), [false, false, true, true]);
    }
}
