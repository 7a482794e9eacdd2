//! How a checkpoint's tensor is laid out anew for the model file.
//!
//! Most tensors keep their order; a convolution becomes the matrix that a patch multiplies. Everything is `f32` here.

/// What happens to a tensor between the checkpoint and the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// Nothing.
    None,
    /// `[out, …]` becomes `[out, product of the rest]`, order kept.
    Flatten,
    /// `[1, …, n]` becomes `[n]`.
    Tag,
    /// `[…, n]` becomes `[product of the rest, n]`, order kept.
    Rows,
    /// `[out, in, 2, 2]` becomes `[out, 2·2·in]` in the order (row, column, channel).
    DownConv,
    /// `[channels, 1, 7, 7]` becomes `[7·7, channels]`.
    Depthwise,
    /// `[1, 1 + m², width]` becomes `[1 + grid², width]`: the class row kept, the grid resized as DINOv2 does.
    DinoPositions {
        /// Side of the grid wanted.
        grid: usize,
    },
}

impl Transform {
    /// Shape after the transform, outermost first. `shape` is one the registry has checked.
    pub fn shape(self, shape: &[usize]) -> Vec<usize> {
        let rest = |from: usize| shape.iter().skip(from).product::<usize>();
        let at = |i: usize| shape.get(i).copied().unwrap_or(1);
        match self {
            Transform::None => shape.to_vec(),
            Transform::Flatten => vec![at(0), rest(1)],
            Transform::Tag => vec![rest(0)],
            Transform::Rows => {
                let cols = shape.last().copied().unwrap_or(1);
                vec![rest(0) / cols.max(1), cols]
            }
            Transform::DownConv => vec![at(0), rest(1)],
            Transform::Depthwise => vec![rest(1), at(0)],
            Transform::DinoPositions { grid } => vec![1 + grid * grid, at(2)],
        }
    }

    /// Whether a row of the result needs more than the same row of the source, so that the tensor is handled in one piece.
    pub fn needs_whole(self) -> bool {
        matches!(self, Transform::Depthwise | Transform::DinoPositions { .. })
    }

    /// Lays `rows` anew, in place: whole rows of a tensor of this (source) `shape`, all of it where
    /// [`needs_whole`](Transform::needs_whole). `scratch` is reused between calls.
    pub fn apply(self, shape: &[usize], rows: &mut Vec<f32>, scratch: &mut Vec<f32>) {
        match self {
            Transform::None | Transform::Flatten | Transform::Tag | Transform::Rows => {}
            Transform::DownConv => {
                let [_, channels, height, width] = shape else { return };
                let taps = height * width;
                for row in rows.chunks_exact_mut(channels * taps) {
                    scratch.clear();
                    scratch.extend_from_slice(row);
                    for (tap, out) in row.chunks_exact_mut(*channels).enumerate() {
                        for (channel, out) in out.iter_mut().enumerate() {
                            *out = scratch[channel * taps + tap];
                        }
                    }
                }
            }
            Transform::Depthwise => {
                let channels = shape.first().copied().unwrap_or(1).max(1);
                let taps = rows.len() / channels;
                scratch.clear();
                scratch.extend_from_slice(rows);
                for (tap, out) in rows.chunks_exact_mut(channels).enumerate() {
                    for (channel, out) in out.iter_mut().enumerate() {
                        *out = scratch[channel * taps + tap];
                    }
                }
            }
            Transform::DinoPositions { grid } => {
                let [_, stored, width] = shape else { return };
                let side = (stored - 1).isqrt();
                *scratch = dino_positions(rows, side, grid, *width);
                std::mem::swap(rows, scratch);
            }
        }
    }
}

/// Resizes a DINOv2 position table from `side`² to `grid`² patches, keeping the class row: `[1 + side², width]` to
/// `[1 + grid², width]`.
///
/// Four taps with a = −0.75, no antialiasing, pixel centres aligned, indices clamped to the edge, columns first; the step is
/// `side / (grid + 0.1)`, the compatibility offset of the released code. Equal sides pass through.
///
/// Source: `interpolate_pos_encoding` of DINOv2 with offset 0.1.
pub fn dino_positions(table: &[f32], side: usize, grid: usize, width: usize) -> Vec<f32> {
    if side == grid {
        return table.to_vec();
    }
    let step = (1.0 / ((grid as f64 + 0.1) / side as f64)) as f32;
    let taps: Vec<([usize; 4], [f32; 4])> = (0..grid).map(|o| cubic_taps(side, step, o)).collect();
    let (class, patches) = table.split_at(width);
    // [side, grid, width]: every row resized along its columns.
    let mut narrow = vec![0f32; side * grid * width];
    for (y, out_row) in narrow.chunks_exact_mut(grid * width).enumerate() {
        for (x, out) in out_row.chunks_exact_mut(width).enumerate() {
            let (index, weight) = taps[x];
            let source = |k: usize| &patches[(y * side + index[k]) * width..][..width];
            weighted_sum([source(0), source(1), source(2), source(3)], weight, out);
        }
    }
    let mut out = Vec::with_capacity((1 + grid * grid) * width);
    out.extend_from_slice(class);
    out.resize((1 + grid * grid) * width, 0.0);
    for (y, out_row) in out[width..].chunks_exact_mut(grid * width).enumerate() {
        let (index, weight) = taps[y];
        let source = |k: usize| &narrow[index[k] * grid * width..][..grid * width];
        weighted_sum([source(0), source(1), source(2), source(3)], weight, out_row);
    }
    out
}

/// `out[i] = Σₖ rows[k][i] · weight[k]`, added in the order of `k`.
fn weighted_sum(rows: [&[f32]; 4], weight: [f32; 4], out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = rows[0][i] * weight[0] + rows[1][i] * weight[1] + rows[2][i] * weight[2] + rows[3][i] * weight[3];
    }
}

/// Source indices and weights of output sample `o`, for `n` samples in and `step` input samples per output sample.
fn cubic_taps(n: usize, step: f32, o: usize) -> ([usize; 4], [f32; 4]) {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let source = step * (o as f32 + 0.5) - 0.5;
    let base = source.floor();
    let t = source - base;
    let index = [-1.0, 0.0, 1.0, 2.0].map(|k| (base + k).clamp(0.0, (n - 1) as f32) as usize);
    (index, [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn down_conv_gathers_channels_last() {
        // [1 out, 3 in, 2, 2]: value = 10·channel + tap
        let mut row: Vec<f32> = (0..3).flat_map(|c| (0..4).map(move |t| (10 * c + t) as f32)).collect();
        Transform::DownConv.apply(&[1, 3, 2, 2], &mut row, &mut vec![]);
        assert_eq!(row, [0., 10., 20., 1., 11., 21., 2., 12., 22., 3., 13., 23.]);
        assert_eq!(Transform::DownConv.shape(&[8, 3, 2, 2]), [8, 12]);
    }

    #[test]
    fn rows_are_all_but_the_last_dimension() {
        for (shape, rows) in [(&[8][..], [1, 8]), (&[3, 8], [3, 8]), (&[1, 1, 8], [1, 8]), (&[4, 2, 8], [8, 8])] {
            assert_eq!(Transform::Rows.shape(shape), rows);
        }
    }

    #[test]
    fn depthwise_puts_channels_last() {
        let (channels, taps) = (5, 49);
        let mut rows: Vec<f32> = (0..channels * taps).map(|i| i as f32).collect();
        Transform::Depthwise.apply(&[channels, 1, 7, 7], &mut rows, &mut vec![]);
        assert_eq!(Transform::Depthwise.shape(&[channels, 1, 7, 7]), [taps, channels]);
        for tap in 0..taps {
            for c in 0..channels {
                assert_eq!(rows[tap * channels + c], (c * taps + tap) as f32);
            }
        }
    }

    #[test]
    fn position_taps_have_the_published_places() {
        let step = (1.0f64 / (16.1 / 37.0)) as f32;
        for (o, at) in [(0, 0.649_068_36_f32), (1, 2.947_205), (7, 16.736_025), (15, 35.121_12)] {
            assert!((step * (o as f32 + 0.5) - 0.5 - at).abs() < 1e-5);
            let (index, weight) = cubic_taps(37, step, o);
            assert_eq!(index[1], at.floor() as usize);
            assert!((weight.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
        assert_eq!(cubic_taps(37, step, 0).0, [0, 0, 1, 2]);
        assert_eq!(cubic_taps(37, step, 15).0, [34, 35, 36, 36]);
    }

    #[test]
    fn positions_equal_the_reference_bit_by_bit() {
        let table = |side: usize, width: usize| (0..(1 + side * side) * width).map(|i| ((i * 37) % 101) as f32 / 128.0).collect::<Vec<_>>();
        // Recorded from the PyTorch reference.
        let want = [
            0x0000_0000,
            0x3e94_0000,
            0x3eea_8c2e,
            0x3e8c_98d9,
            0x3eaf_325f,
            0x3f17_fe8b,
            0x3ea5_a279,
            0x3e36_4a0b,
            0x3ee2_1d4a,
            0x3ed8_cf05,
            0x3f0b_290d,
            0x3e87_04bc,
            0x3ee8_79d4,
            0x3f0f_daa0,
            0x3e27_508e,
            0x3eee_e0bd,
            0x3f14_edf9,
            0x3e9e_5900,
            0x3eae_faa0,
            0x3ea8_0e26,
        ];
        let got: Vec<u32> = dino_positions(&table(6, 2), 6, 3, 2).iter().map(|x| x.to_bits()).collect();
        assert_eq!(got, want);
        let got = dino_positions(&table(37, 3), 37, 16, 3);
        assert_eq!(got.len(), 771);
        for (i, want) in [(0, 0), (3, 0x3eff_c970), (100, 0x3f2a_61d4), (400, 0x3e14_e709), (767, 0x3e8c_37c2), (770, 0x3ebf_928a)] {
            assert_eq!(got[i].to_bits(), want, "{i}");
        }
        assert_eq!(dino_positions(&table(4, 2), 4, 4, 2), table(4, 2));
    }
}
