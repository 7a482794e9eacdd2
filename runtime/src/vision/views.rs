//! From the preprocessed square to what each encoder sees: the whole picture, then its tiles in raster order.

use super::params::{Tiling, VisionParams};

/// A square of f32 planes.
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// Pixels a side.
    pub side: usize,
    /// `[3, side, side]`.
    pub planes: Vec<f32>,
}

/// Encoder inputs, one per view, the whole picture first.
pub struct Views {
    /// For vision transformers: `[3, vit.input, vit.input]` each.
    pub vit: Vec<Map>,
    /// For ConvNeXt: `[3, convnext.input, convnext.input]` each.
    pub convnext: Vec<Map>,
}

impl Views {
    /// Cuts `image` `[3, S, S]` as `params` say.
    ///
    /// Source: `encode_image` of the released SPHINX model code.
    pub fn new(image: &Map, params: &VisionParams) -> Views {
        let vit = views_of(image, params.vit, params.grid);
        let convnext = match params.convnext.tiling {
            Some(tiling) => views_of(image, tiling, params.grid),
            None => vit.iter().map(|view| nearest(view, params.convnext.input)).collect(),
        };
        Views { vit, convnext }
    }
}

/// The whole of `image` at the input's size, then the tiles of the board.
fn views_of(image: &Map, tiling: Tiling, grid: usize) -> Vec<Map> {
    let mut views = vec![resized(image, tiling.input)];
    if grid > 0 {
        let board = resized(image, tiling.board);
        views.extend((0..grid * grid).map(|i| tile(&board, tiling.input, i / grid, i % grid)));
    }
    views
}

fn resized(image: &Map, side: usize) -> Map {
    if image.side == side { image.clone() } else { cubic(image, side) }
}

/// Tile (`row`, `column`) of `board`, tiles being `side` pixels a side.
fn tile(board: &Map, side: usize, row: usize, column: usize) -> Map {
    let mut planes = Vec::with_capacity(3 * side * side);
    for plane in board.planes.chunks_exact(board.side * board.side) {
        for y in row * side..(row + 1) * side {
            planes.extend_from_slice(&plane[y * board.side + column * side..][..side]);
        }
    }
    Map { side, planes }
}

/// The model's own resize: a cubic of four taps, a = −3/4, pixel centres aligned, edges repeated, no antialiasing.
///
/// Horizontally, then vertically, in f32, taps added from the left and the top.
pub fn cubic(image: &Map, side: usize) -> Map {
    let from = image.side;
    let axis = cubic_axis(from, side);
    let mut planes = Vec::with_capacity(3 * side * side);
    // The horizontally resized input rows that an output row reads, by input row.
    let mut rows: [(usize, Vec<f32>); 4] = std::array::from_fn(|_| (usize::MAX, vec![0.0; side]));
    for plane in image.planes.chunks_exact(from * from) {
        rows.iter_mut().for_each(|row| row.0 = usize::MAX);
        for (index, weights) in &axis {
            for &y in index {
                // Four rows in a row fall into four different slots.
                let (held, row) = &mut rows[y % 4];
                if *held != y {
                    *held = y;
                    let source = &plane[y * from..][..from];
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
    use super::*;

    fn ramp(side: usize) -> Map {
        Map { side, planes: (0..3 * side * side).map(|i| (i * 37 % 101) as f32 / 7.0 - 5.0).collect() }
    }

    #[test]
    fn a_third_is_pure_decimation() {
        let image = ramp(12);
        let small = cubic(&image, 4);
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
        assert!(cubic(&flat, 13).planes.iter().all(|v| (v - 1.5).abs() < 1e-5));
        assert_eq!(cubic(&ramp(6), 6), ramp(6));
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
        let views = views_of(&ramp(8), Tiling { input: 4, board: 8 }, 2);
        assert_eq!(views.len(), 5);
        assert_eq!(views[2].planes[0], ramp(8).planes[4]);
        assert_eq!(views[3].planes[0], ramp(8).planes[32]);
    }
}
