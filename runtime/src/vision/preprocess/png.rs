//! PNG: any colour type and depth, interlaced or not; of an animation, the default picture.

use std::io::Cursor;

use image::codecs::png::PngDecoder;
use image::{ColorType, Limits};

use super::{Canvas, Fault, read};

/// Most text chunks before the pixels: `image` keeps them all, however many a file has.
const MAX_TEXTS: usize = 4096;
/// Where the header tells the colour type, and which means grey without alpha.
const COLOUR_TYPE: usize = 25;
const GREY: u8 = 0;

pub(super) fn decode(bytes: &[u8], canvas: &mut Canvas) -> Result<(), Fault> {
    if texts(bytes) > MAX_TEXTS {
        return Err(Fault::Unsupported(format!("more than {MAX_TEXTS} text chunks")));
    }
    // The limit is one on text, profiles and the like: the size is held against the caps before pixels are read.
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(32 << 20);
    let (mut samples, colour) = read(PngDecoder::with_limits(Cursor::new(bytes), limits)?, canvas)?;
    // The reference clips 16-bit grey to 8 bits, where it takes the high byte of any other 16-bit sample. A grey may
    // come with an alpha that was no channel but one transparent level, so it is the file's own colour type that counts.
    if matches!(colour, ColorType::L16 | ColorType::La16) && bytes.get(COLOUR_TYPE) == Some(&GREY) {
        for sample in samples.as_chunks_mut::<2>().0 {
            *sample = [u16::from_ne_bytes(*sample).min(255) as u8; 2];
        }
    }
    canvas.take(samples, colour)
}

/// How many text chunks come before the pixels.
fn texts(bytes: &[u8]) -> usize {
    let (mut at, mut texts) = (8usize, 0);
    while let Some([a, b, c, d, kind @ ..]) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        match kind {
            b"tEXt" | b"zTXt" | b"iTXt" => texts += 1,
            b"IDAT" => break,
            _ => {}
        }
        at = at.saturating_add(u32::from_be_bytes([*a, *b, *c, *d]) as usize + 12);
    }
    texts
}
