//! Depthwise convolution, channels last.

use std::ops::Range;

/// Rows `rows` of one map's convolution with an odd square kernel, stride 1, zero padding.
///
/// `x`: `[height, width, channels]`; `kernel`: `[side, side, channels]`; `bias`: `[channels]`; `out`: the rows asked
/// for, `[rows, width, channels]`. `scratch` is for siblings that copy strips of the map; they say how much.
#[allow(clippy::too_many_arguments)] // shapes of a convolution
pub fn depthwise(
    x: &[f32],
    width: usize,
    channels: usize,
    kernel: &[f32],
    side: usize,
    bias: &[f32],
    rows: Range<usize>,
    out: &mut [f32],
    _scratch: &mut [f32],
) {
    let height = x.len() / (width * channels);
    let pad = side / 2;
    for (y, out_row) in rows.zip(out.chunks_exact_mut(width * channels)) {
        for (column, out) in out_row.chunks_exact_mut(channels).enumerate() {
            out.copy_from_slice(bias);
            for ky in 0..side {
                let Some(from_y) = (y + ky).checked_sub(pad).filter(|&v| v < height) else { continue };
                for kx in 0..side {
                    let Some(from_x) = (column + kx).checked_sub(pad).filter(|&v| v < width) else { continue };
                    let input = &x[(from_y * width + from_x) * channels..][..channels];
                    let weights = &kernel[(ky * side + kx) * channels..][..channels];
                    for ((out, &v), &w) in out.iter_mut().zip(input).zip(weights) {
                        *out += v * w;
                    }
                }
            }
        }
    }
}

/// Scratch that `depthwise` needs, in numbers.
pub fn depthwise_scratch(_width: usize, _side: usize) -> usize {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_counts_neighbours() {
        let (h, w, c) = (3, 4, 2);
        let x: Vec<f32> = (0..h * w * c).map(|i| if i % 2 == 0 { 1.0 } else { 2.0 }).collect();
        let mut out = vec![f32::NAN; 2 * w * c];
        depthwise(&x, w, c, &[1.0; 18], 3, &[0.5, 0.0], 1..3, &mut out, &mut []);
        assert_eq!(out[..8], [6.5, 12.0, 9.5, 18.0, 9.5, 18.0, 6.5, 12.0]);
        assert_eq!(out[8..10], [4.5, 8.0]);
    }
}
