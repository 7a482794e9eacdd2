//! BMP: palettes, 16, 24 and 32 bits, run lengths.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;

use super::{Canvas, Fault, read, u16_le, u32_le};

pub(super) fn decode(bytes: &[u8], canvas: &mut Canvas) -> Result<(), Fault> {
    let (samples, colour) = read(BmpDecoder::new(Cursor::new(bytes))?, canvas)?;
    canvas.take(samples, colour)?;
    if u16_le(bytes, 28)? == 16 {
        cut_levels(bytes, canvas)?;
    }
    Ok(())
}

/// Colours of 5 and 6 bits become 8 by cutting off what is below a level, where `image` rounds.
fn cut_levels(bytes: &[u8], canvas: &mut Canvas) -> Result<(), Fault> {
    let masks = match u32_le(bytes, 30)? {
        3 => [u32_le(bytes, 54)?, u32_le(bytes, 58)?, u32_le(bytes, 62)?],
        _ => [0x7c00, 0x3e0, 0x1f],
    };
    let tops = match masks {
        [0x7c00, 0x3e0, 0x1f] => [31, 31, 31],
        [0xf800, 0x7e0, 0x1f] => [31, 63, 31],
        other => return Err(Fault::Unsupported(format!("16 bits per pixel with masks {other:x?}"))),
    };
    for rgb in canvas.rgb.as_chunks_mut::<3>().0 {
        for (level, top) in rgb.iter_mut().zip(tops) {
            let stored = (u32::from(*level) * top + 127) / 255;
            *level = (stored * 255 / top) as u8;
        }
    }
    Ok(())
}
