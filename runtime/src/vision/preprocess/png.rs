//! PNG: any colour type and depth, interlaced or not, row by row.

use std::io::Cursor;

use png::{BitDepth, ColorType, DecodingError, Limits, Transformations};

use super::{Canvas, Fault, palette_of};

/// First column, column step, first row and row step of each Adam7 pass.
const PASSES: [[usize; 4]; 7] = [[0, 8, 0, 8], [4, 8, 0, 8], [0, 4, 4, 8], [2, 4, 0, 4], [0, 2, 2, 4], [1, 2, 0, 2], [0, 1, 1, 2]];
/// A picture that is not interlaced: one pass over all.
const WHOLE: [[usize; 4]; 1] = [[0, 1, 0, 1]];

pub(super) fn decode(bytes: &[u8], canvas: &mut Canvas) -> Result<(), Fault> {
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: 64 << 20 });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::IDENTITY);
    let header = decoder.read_header_info().map_err(fault)?;
    canvas.declare(header.width, header.height)?;
    let mut reader = decoder.read_info().map_err(fault)?;
    let info = reader.info();
    let depth = info.bit_depth;
    let palette = match (info.color_type, &info.palette) {
        (ColorType::Indexed, Some(rgb)) => palette_of(rgb),
        (ColorType::Indexed, None) => return Err(Fault::damaged("no palette")),
        _ => palette_of(&[]),
    };
    let pixel = match info.color_type {
        ColorType::Grayscale if depth == BitDepth::Sixteen => Pixel::WideGrey,
        ColorType::Indexed => Pixel::Index(Box::new(palette)),
        ColorType::Grayscale => Pixel::Index(Box::new(grey_ramp(depth))),
        ColorType::GrayscaleAlpha => Pixel::Grey { stride: 2 * sample_bytes(depth) },
        ColorType::Rgb => Pixel::Rgb { stride: 3 * sample_bytes(depth), step: sample_bytes(depth) },
        ColorType::Rgba => Pixel::Rgb { stride: 4 * sample_bytes(depth), step: sample_bytes(depth) },
    };
    let passes: &[[usize; 4]] = if info.interlaced { &PASSES } else { &WHOLE };
    let (width, height) = (canvas.width, canvas.height);
    canvas.allocate();
    for &[x0, dx, y0, dy] in passes {
        if x0 >= width {
            continue;
        }
        for y in (y0..height).step_by(dy) {
            let row = reader.next_row().map_err(fault)?.ok_or(Fault::Truncated)?;
            let out = canvas.row(y).chunks_exact_mut(3).skip(x0).step_by(dx);
            pixel.expand(row.data(), depth as usize, out);
        }
    }
    Ok(())
}

/// How a row's bytes become pixels.
enum Pixel {
    /// Up to 8 bits of palette or grey.
    Index(Box<[[u8; 3]; 256]>),
    /// 16-bit grey, which the reference clips to 8 bits instead of scaling.
    WideGrey,
    /// The first byte of every `stride` is a grey.
    Grey { stride: usize },
    /// Three bytes, `step` apart, of every `stride`.
    Rgb { stride: usize, step: usize },
}

impl Pixel {
    fn expand<'a>(&self, row: &[u8], depth: usize, out: impl Iterator<Item = &'a mut [u8]>) {
        match self {
            Pixel::Index(palette) if depth == 8 => out.zip(row).for_each(|(rgb, &i)| rgb.copy_from_slice(&palette[i as usize])),
            Pixel::Index(palette) => {
                let (per_byte, mask) = (8 / depth, (1u8 << depth) - 1);
                for (i, rgb) in out.enumerate() {
                    let byte = row.get(i / per_byte).copied().unwrap_or(0);
                    let index = byte >> (8 - depth * (i % per_byte + 1)) & mask;
                    rgb.copy_from_slice(&palette[index as usize]);
                }
            }
            Pixel::WideGrey => out.zip(row.as_chunks::<2>().0).for_each(|(rgb, &v)| rgb.fill(u16::from_be_bytes(v).min(255) as u8)),
            Pixel::Grey { stride } => out.zip(row.chunks_exact(*stride)).for_each(|(rgb, v)| rgb.fill(v[0])),
            Pixel::Rgb { stride, step } => {
                for (rgb, v) in out.zip(row.chunks_exact(*stride)) {
                    rgb.copy_from_slice(&[v[0], v[*step], v[2 * step]]);
                }
            }
        }
    }
}

/// Greys of 1, 2, 4 or 8 bits, stretched to 0..=255.
fn grey_ramp(depth: BitDepth) -> [[u8; 3]; 256] {
    let top = (1usize << (depth as usize).min(8)) - 1;
    std::array::from_fn(|i| [(i.min(top) * 255 / top) as u8; 3])
}

fn sample_bytes(depth: BitDepth) -> usize {
    if depth == BitDepth::Sixteen { 2 } else { 1 }
}

fn fault(error: DecodingError) -> Fault {
    match error {
        DecodingError::IoError(_) => Fault::Truncated,
        DecodingError::LimitsExceeded => Fault::Unsupported("a chunk is larger than 64 MiB".into()),
        other => Fault::Damaged(other.to_string()),
    }
}
