//! Square padding and Pillow's antialiased bicubic resize of 8-bit pixels, and their normalisation.

use sphinx_targets::cpu::Isa;
use sphinx_targets::cpu::kernels::Kernels;
use sphinx_targets::cpu::portable::resample::FRACTION;

use super::preprocess::Picture;

/// Where the picture lies in its square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// In the middle; the odd pixel of padding goes to the right or the bottom.
    Centre,
    /// At the top left.
    TopLeft,
}

/// Which comes first, the padding or the resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaddingOrder {
    /// Pad to a square, resize that: content bleeds a little into the padding.
    PadResize,
    /// Resize so that the long side fits the square, pad the rest: nothing bleeds.
    ResizePad,
}

/// How a picture becomes a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    /// Colour of what is not picture.
    pub rgb: [u8; 3],
    /// Where the picture lies.
    pub anchor: Anchor,
    /// What is done first.
    pub order: PaddingOrder,
}

/// A picture in the square where it is padded. Pixels of the picture before its resize, or of the result after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Pixels a side of the square.
    pub side: usize,
    /// First column of content.
    pub left: usize,
    /// First row of content.
    pub top: usize,
    /// Columns of content.
    pub width: usize,
    /// Rows of content.
    pub height: usize,
}

impl Padding {
    /// Where a picture of `width` × `height` lies in its square, which becomes, or is, one of `side`.
    pub fn frame(&self, width: usize, height: usize, side: usize) -> Frame {
        let (width, height, side) = match self.order {
            PaddingOrder::PadResize => (width, height, width.max(height)),
            PaddingOrder::ResizePad => {
                let (w, h) = fitted(width, height, side);
                (w, h, side)
            }
        };
        Frame { side, left: start(side, width, self.anchor), top: start(side, height, self.anchor), width, height }
    }

    /// `picture` as a square of `side` × `side`.
    pub fn square(&self, picture: &Picture, side: usize) -> Square {
        match self.order {
            PaddingOrder::PadResize => pad_and_resize(picture, side, self.rgb, self.anchor),
            PaddingOrder::ResizePad => resize_and_pad(picture, side, self.rgb, self.anchor),
        }
    }
}

/// First of `length` samples of content among `of`.
fn start(of: usize, length: usize, anchor: Anchor) -> usize {
    if anchor == Anchor::Centre { (of - length) / 2 } else { 0 }
}

/// The size at which the long side is `side`; the short side is rounded to the nearest, halves up, and never vanishes.
fn fitted(width: usize, height: usize, side: usize) -> (usize, usize) {
    let long = width.max(height);
    let fit = |length: usize| ((length * side + long / 2) / long).max(1);
    (fit(width), fit(height))
}

/// A square of 8-bit RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Square {
    /// Pixels a side.
    pub side: usize,
    /// `[side, side, 3]`.
    pub rgb: Vec<u8>,
}

/// The input samples behind one output sample.
#[derive(Debug)]
struct Taps {
    /// First input sample, inside the content.
    first: usize,
    /// Their weights, in units of 2⁻²².
    weights: Vec<i32>,
    /// Sum of the weights of samples that are padding.
    padding: i32,
}

/// Pads `picture` to a square of `pad` and resizes that to `side` × `side`, to the bit as Pillow does.
///
/// The padded square is never made.
pub fn pad_and_resize(picture: &Picture, side: usize, pad: [u8; 3], anchor: Anchor) -> Square {
    let (width, height) = (picture.width(), picture.height());
    let from = width.max(height);
    let (left, top) = (start(from, width, anchor), start(from, height, anchor));
    if from == side {
        return place(picture.rgb(), width, side, (left, top), pad);
    }
    let rgb = resample(picture, &taps(from, side, left, width), &taps(from, side, top, height), pad);
    Square { side, rgb }
}

/// Resizes `picture` as Pillow does so that its long side is `side`, and pads it to a square of `pad`.
pub fn resize_and_pad(picture: &Picture, side: usize, pad: [u8; 3], anchor: Anchor) -> Square {
    let (width, height) = (picture.width(), picture.height());
    let (w, h) = fitted(width, height, side);
    // An axis that does not change has one tap of weight 1, which is to leave it as it is.
    let small = resample(picture, &taps(width, w, 0, width), &taps(height, h, 0, height), pad);
    place(&small, w, side, (start(side, w, anchor), start(side, h, anchor)), pad)
}

/// Pixels in rows of `width` at column `left` and row `top` of a square of `pad`.
fn place(pixels: &[u8], width: usize, side: usize, (left, top): (usize, usize), pad: [u8; 3]) -> Square {
    let mut rgb = vec![0; side * side * 3];
    rgb.as_chunks_mut::<3>().0.fill(pad);
    for (y, row) in pixels.chunks_exact(width * 3).enumerate() {
        rgb[((top + y) * side + left) * 3..][..width * 3].copy_from_slice(row);
    }
    Square { side, rgb }
}

/// `picture` resampled by `across` and `down`: `[down, across, 3]`.
///
/// The horizontal pass runs over rows of content only, each when the vertical pass first needs it, and as many of them are
/// held as one output row reads.
///
/// Source: Pillow's `Resample.c`, BICUBIC with 8 bits per channel.
fn resample(picture: &Picture, across: &[Taps], down: &[Taps], pad: [u8; 3]) -> Vec<u8> {
    let (from, to) = (picture.width() * 3, across.len() * 3);
    let mut rgb = vec![0; down.len() * to];
    // Horizontally resized content rows, row `y` in slot `y mod held`.
    let held = down.iter().map(|t| t.weights.len()).max().unwrap_or(0).max(1);
    let mut rows = vec![0u8; held * to];
    let mut made = 0;
    let across = Across::new(across, picture.width(), pad);
    // A value that is no instruction set was refused when a target was made.
    let kernels = Kernels::for_isa(Isa::best(Isa::cap_from_env().ok().flatten()));
    // Kernels read the byte behind a row: only the last one has none.
    let (pixels, mut last) = (picture.rgb(), vec![0; from + 1]);
    last[..from].copy_from_slice(&pixels[pixels.len() - from..]);
    for (out, taps) in rgb.chunks_exact_mut(to).zip(down) {
        for y in made.max(taps.first)..taps.first + taps.weights.len() {
            let row = pixels.get(y * from..(y + 1) * from + 1).unwrap_or(&last);
            kernels.resample_across(row, &across.firsts, &across.weights, &across.starts, &mut rows[y % held * to..][..to]);
        }
        made = made.max(taps.first + taps.weights.len());
        let behind: Vec<&[u8]> = (0..taps.weights.len()).map(|i| &rows[(taps.first + i) % held * to..][..to]).collect();
        kernels.resample_down(&behind, &taps.weights, start_sums(taps.padding, pad), out);
    }
    rgb
}

/// Taps as the kernel takes them: equally many for every output sample.
struct Across {
    /// First input sample.
    firsts: Vec<u32>,
    /// `[outputs, taps]`.
    weights: Vec<i32>,
    /// What sums start with.
    starts: Vec<[i32; 3]>,
}

impl Across {
    fn new(taps: &[Taps], content: usize, pad: [u8; 3]) -> Across {
        let most = taps.iter().map(|t| t.weights.len()).max().unwrap_or(0).max(1);
        let mut across = Across { firsts: Vec::new(), weights: vec![0; taps.len() * most], starts: Vec::new() };
        for (t, weights) in taps.iter().zip(across.weights.chunks_exact_mut(most)) {
            // Weights of 0 fill it up, before the others where the content ends.
            let first = t.first.min(content - most);
            weights[t.first - first..][..t.weights.len()].copy_from_slice(&t.weights);
            across.firsts.push(first as u32);
            across.starts.push(start_sums(t.padding, pad));
        }
        across
    }
}

/// Rounding, and the part of a sum that padding contributes.
fn start_sums(padding: i32, pad: [u8; 3]) -> [i32; 3] {
    pad.map(|value| (1 << (FRACTION - 1)) + padding * i32::from(value))
}

/// Taps of `from` → `to` samples, of which `content` samples from `start` on are content and the rest padding.
fn taps(from: usize, to: usize, start: usize, content: usize) -> Vec<Taps> {
    let (first, weights): (Vec<_>, Vec<_>) = pillow_taps(from, to).into_iter().unzip();
    let clip = |(first, weights): (usize, Vec<i32>)| {
        let inside = |i: &usize| (start..start + content).contains(&(first + i));
        let kept: Vec<i32> = (0..weights.len()).filter(inside).map(|i| weights[i]).collect();
        let padding = weights.iter().sum::<i32>() - kept.iter().sum::<i32>();
        // Without content the place does not matter, but it must not run backwards.
        Taps { first: first.saturating_sub(start).min(content), weights: kept, padding }
    };
    first.into_iter().zip(weights).map(clip).collect()
}

/// First input sample and weights, in units of 2⁻²², of each output sample of Pillow's bicubic filter.
pub fn pillow_taps(from: usize, to: usize) -> Vec<(usize, Vec<i32>)> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let inverse = 1.0 / stretch;
    let tap = |o: usize| {
        let centre = (o as f64 + 0.5) * scale;
        let low = (centre - support + 0.5).max(0.0) as usize;
        let high = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (low..high).map(|i| bicubic((i as f64 - centre + 0.5) * inverse)).collect();
        let total = weights.iter().fold(0.0, |sum, w| sum + w);
        let fixed = |w: &f64| {
            let w = if total != 0.0 { w / total } else { *w } * f64::from(1 << FRACTION);
            (if w < 0.0 { w - 0.5 } else { w + 0.5 }) as i32
        };
        (low, weights.iter().map(fixed).collect())
    };
    (0..to).map(tap).collect()
}

/// Keys' cubic with a = −1/2.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// `(v / 255 − mean) / std` per channel in f32, each step rounded, as `[3, side, side]`.
pub fn normalise(square: &Square, mean: [f32; 3], std: [f32; 3]) -> Vec<f32> {
    let table: [[f32; 256]; 3] = std::array::from_fn(|c| std::array::from_fn(|v| (v as f32 / 255.0 - mean[c]) / std[c]));
    let mut out = Vec::with_capacity(square.rgb.len());
    for (c, table) in table.iter().enumerate() {
        out.extend(square.rgb.as_chunks::<3>().0.iter().map(|pixel| table[pixel[c] as usize]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_coefficients() {
        assert_eq!(pillow_taps(8, 4)[0], (0, vec![1947982, 1947982, 508932, -157945, -52648]));
        assert_eq!(pillow_taps(5, 2)[0], (0, vec![1455822, 1743238, 1004169, 122286, -131211]));
        assert_eq!(pillow_taps(2, 5)[0], (0, vec![4609778, -415474]));
    }

    /// The padded square itself, resized by the same taps without any clipping to the content.
    fn plainly(picture: &Picture, side: usize, pad: [u8; 3], anchor: Anchor) -> Vec<u8> {
        let from = picture.width().max(picture.height());
        let mut square = vec![0; from * from * 3];
        square.as_chunks_mut::<3>().0.fill(pad);
        let (x0, y0) = match anchor {
            Anchor::Centre => ((from - picture.width()) / 2, (from - picture.height()) / 2),
            Anchor::TopLeft => (0, 0),
        };
        for (y, row) in picture.rgb().chunks_exact(picture.width() * 3).enumerate() {
            square[((y0 + y) * from + x0) * 3..][..row.len()].copy_from_slice(row);
        }
        if from == side {
            return square;
        }
        let taps = pillow_taps(from, side);
        let pass = |data: &[u8], rows: usize, at: &dyn Fn(usize, usize, usize) -> usize| -> Vec<u8> {
            let mut out = Vec::new();
            for r in 0..rows {
                for (first, weights) in &taps {
                    for c in 0..3 {
                        let sum: i32 = weights.iter().enumerate().map(|(i, w)| w * i32::from(data[at(r, first + i, c)])).sum();
                        out.push(((sum + (1 << 21)) >> 22).clamp(0, 255) as u8);
                    }
                }
            }
            out
        };
        let wide = pass(&square, from, &|r, x, c| (r * from + x) * 3 + c);
        let turned = pass(&wide, side, &|x, y, c| (y * side + x) * 3 + c);
        let mut out = vec![0; side * side * 3];
        for x in 0..side {
            for y in 0..side {
                for c in 0..3 {
                    out[(y * side + x) * 3 + c] = turned[(x * side + y) * 3 + c];
                }
            }
        }
        out
    }

    #[test]
    fn the_padded_square_need_not_exist() {
        for (w, h) in [(1, 1), (2, 1), (1, 9), (7, 7), (24, 24), (40, 3), (5, 61), (33, 32), (24, 10), (100, 99)] {
            let rgb = (0..w * h * 3).map(|i| (i * 89 % 251) as u8).collect();
            let picture = Picture::from_rgb(w, h, rgb).unwrap();
            for anchor in [Anchor::Centre, Anchor::TopLeft] {
                let got = pad_and_resize(&picture, 24, [122, 116, 104], anchor);
                assert_eq!(got.rgb, plainly(&picture, 24, [122, 116, 104], anchor), "{w}×{h} {anchor:?}");
            }
        }
    }

    #[test]
    fn resized_then_padded() {
        let padding = |anchor| Padding { rgb: [1, 2, 3], anchor, order: PaddingOrder::ResizePad };
        for (w, h) in [(40, 24), (24, 40), (7, 3), (24, 24), (24, 10), (10, 24), (300, 1), (5, 5), (61, 60)] {
            let rgb: Vec<u8> = (0..w * h * 3).map(|i| (i * 89 % 251) as u8).collect();
            let picture = Picture::from_rgb(w, h, rgb).unwrap();
            for anchor in [Anchor::Centre, Anchor::TopLeft] {
                let frame = padding(anchor).frame(w, h, 24);
                let got = padding(anchor).square(&picture, 24);
                assert_eq!((frame.side, frame.width.max(frame.height)), (24, 24));
                // What is outside of the frame is padding; what is inside is the picture resized on its own, one axis at a
                // time by plain sums.
                let taps = (pillow_taps(w, frame.width), pillow_taps(h, frame.height));
                let sum = |weights: &[i32], at: &dyn Fn(usize) -> u8| {
                    let sum: i32 = weights.iter().enumerate().map(|(i, &k)| k * i32::from(at(i))).sum();
                    ((sum + (1 << 21)) >> 22).clamp(0, 255) as u8
                };
                for (i, &value) in got.rgb.iter().enumerate() {
                    let (y, x, c) = (i / 72, i / 3 % 24, i % 3);
                    let inside = (frame.left..frame.left + frame.width).contains(&x) && (frame.top..frame.top + frame.height).contains(&y);
                    let want = if inside {
                        let ((x0, across), (y0, down)) = (&taps.0[x - frame.left], &taps.1[y - frame.top]);
                        sum(down, &|j| sum(across, &|i| picture.rgb()[((y0 + j) * w + x0 + i) * 3 + c]))
                    } else {
                        [1, 2, 3][c]
                    };
                    assert_eq!(value, want, "{w}×{h} {anchor:?} at {x}, {y}");
                }
            }
        }
    }

    #[test]
    fn frames() {
        let frame = |order, anchor, w, h| {
            let f = Padding { rgb: [0; 3], anchor, order }.frame(w, h, 672);
            (f.side, f.left, f.top, f.width, f.height)
        };
        assert_eq!(frame(PaddingOrder::PadResize, Anchor::Centre, 1000, 101), (1000, 0, 449, 1000, 101));
        assert_eq!(frame(PaddingOrder::PadResize, Anchor::TopLeft, 3, 1000), (1000, 0, 0, 3, 1000));
        assert_eq!(frame(PaddingOrder::ResizePad, Anchor::Centre, 1000, 100), (672, 0, 302, 672, 67));
        assert_eq!(frame(PaddingOrder::ResizePad, Anchor::Centre, 1000, 101), (672, 0, 302, 672, 68));
        assert_eq!(frame(PaddingOrder::ResizePad, Anchor::Centre, 1, 20_000), (672, 335, 0, 1, 672));
        assert_eq!(frame(PaddingOrder::ResizePad, Anchor::TopLeft, 4, 3), (672, 0, 0, 672, 504));
    }

    #[test]
    fn normalised_spot_values() {
        let square = Square { side: 1, rgb: vec![255, 128, 255] };
        let (mean, std) = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.2613026, 0.2757771]);
        assert_eq!(normalise(&square, mean, std), [1.930_336_1, 0.168_897_32, 2.145_897]);
    }
}
