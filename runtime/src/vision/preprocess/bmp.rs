//! BMP: palettes, 16, 24 and 32 bits, run lengths; the layouts that Pillow reads.

use super::{Canvas, Fault, u16_le, u32_le};

/// Whether a header of a known size follows the signature.
pub(super) fn has_header(bytes: &[u8]) -> bool {
    u32_le(bytes, 14).is_ok_and(|size| [12, 40, 52, 56, 64, 108, 124].contains(&size))
}

pub(super) fn decode(bytes: &[u8], canvas: &mut Canvas) -> Result<(), Fault> {
    let mut offset = u32_le(bytes, 10)? as usize;
    let header = u32_le(bytes, 14)? as usize;
    let mut after = 14 + header;
    let old = header == 12;
    let (width, mut height, bits) = match old {
        true => (u16_le(bytes, 18)?.into(), u16_le(bytes, 20)?.into(), u16_le(bytes, 24)?),
        false => (u32_le(bytes, 18)?, u32_le(bytes, 22)?, u16_le(bytes, 28)?),
    };
    // A negative height means rows from the top.
    let bottom_up = old || height >> 24 != 0xff;
    if !bottom_up {
        height = height.wrapping_neg();
    }
    canvas.declare(width, height)?;
    let (compression, stated) = if old { (0, 0) } else { (u32_le(bytes, 30)?, u32_le(bytes, 46)? as usize) };
    let bits = usize::from(bits);
    let entry = if old { 3 } else { 4 };
    if !matches!(bits, 1 | 4 | 8 | 16 | 24 | 32) {
        return Err(Fault::Unsupported(format!("{bits} bits per pixel")));
    }
    let layout = match compression {
        0 | 3 => {
            let mask = |i: usize| u32_le(bytes, 54 + 4 * i);
            let masks = if compression == 3 { Some([mask(0)?, mask(1)?, mask(2)?, if header >= 56 { mask(3)? } else { 0 }]) } else { None };
            if masks.is_some() && header == 40 {
                after += 12;
            }
            layout(bits, masks)?
        }
        1 | 2 if bits <= 8 => Layout::Index,
        other => return Err(Fault::Unsupported(format!("compression {other} with {bits} bits per pixel"))),
    };
    let mut palette = [[0; 3]; 256];
    if bits <= 8 {
        let colours = if stated == 0 { 1 << bits } else { stated };
        if colours > 65_536 {
            return Err(Fault::damaged(format!("a palette of {colours} colours")));
        }
        if offset == 14 + header {
            offset += entry * colours;
        }
        let stored = bytes.get(after..after + entry * colours).ok_or(Fault::Truncated)?;
        for (rgb, bgr) in palette.iter_mut().zip(stored.chunks_exact(entry)) {
            *rgb = [bgr[2], bgr[1], bgr[0]];
        }
    }
    if offset == 0 {
        offset = after;
    }
    let data = bytes.get(offset..).ok_or(Fault::Truncated)?;
    let (width, height) = (canvas.width, canvas.height);
    if matches!(compression, 1 | 2) {
        canvas.allocate();
        return run_lengths(data, compression == 2, canvas, bottom_up, &palette);
    }
    let stride = (width * bits).div_ceil(32) * 4;
    // The last row need not be padded.
    if data.len() < stride * (height - 1) + (width * bits).div_ceil(8) {
        return Err(Fault::Truncated);
    }
    canvas.allocate();
    for y in 0..height {
        let row = &data[y * stride..];
        let out = canvas.row_from(y, bottom_up).as_chunks_mut::<3>().0.iter_mut();
        match layout {
            Layout::Index => {
                let (per_byte, mask) = (8 / bits, ((1u16 << bits) - 1) as u8);
                for (x, rgb) in out.enumerate() {
                    let index = row[x / per_byte] >> (8 - bits * (x % per_byte + 1)) & mask;
                    *rgb = palette[index as usize];
                }
            }
            Layout::Packed { green_bits } => {
                for (rgb, v) in out.zip(row.as_chunks::<2>().0) {
                    let v = u32::from(u16::from_le_bytes(*v));
                    let green = (1 << green_bits) - 1;
                    let scaled = |value: u32, top: u32| ((value & top) * 255 / top) as u8;
                    *rgb = [scaled(v >> (5 + green_bits), 31), scaled(v >> 5, green), scaled(v, 31)];
                }
            }
            Layout::Bytes { r, g, b } => {
                for (rgb, v) in out.zip(row.chunks_exact(bits / 8)) {
                    *rgb = [v[r], v[g], v[b]];
                }
            }
        }
    }
    Ok(())
}

/// How a pixel is stored.
#[derive(Clone, Copy)]
enum Layout {
    /// Palette indices of 1, 4 or 8 bits.
    Index,
    /// 5 bits of red and blue and 5 or 6 of green in two bytes.
    Packed { green_bits: u32 },
    /// Which byte holds which colour.
    Bytes { r: usize, g: usize, b: usize },
}

fn layout(bits: usize, masks: Option<[u32; 4]>) -> Result<Layout, Fault> {
    const BGR: Layout = Layout::Bytes { r: 2, g: 1, b: 0 };
    Ok(match (bits, masks) {
        (1 | 4 | 8, None) => Layout::Index,
        (16, None) => Layout::Packed { green_bits: 5 },
        (24 | 32, None) => BGR,
        (16, Some([0x7c00, 0x3e0, 0x1f, _])) => Layout::Packed { green_bits: 5 },
        (16, Some([0xf800, 0x7e0, 0x1f, _])) => Layout::Packed { green_bits: 6 },
        (24, Some([0xff0000, 0xff00, 0xff, _])) => BGR,
        (32, Some([0xff0000, 0xff00, 0xff, 0 | 0xff000000] | [0, 0, 0, 0])) => BGR,
        (32, Some([0xff000000, 0xff0000, 0xff00, 0 | 0xff])) => Layout::Bytes { r: 3, g: 2, b: 1 },
        (32, Some([0xff000000, 0xff00, 0xff, 0 | 0xff0000])) => Layout::Bytes { r: 3, g: 1, b: 0 },
        (32, Some([0xff, 0xff00, 0xff0000, 0xff000000])) => Layout::Bytes { r: 0, g: 1, b: 2 },
        (_, masks) => return Err(Fault::Unsupported(format!("{bits} bits per pixel with masks {masks:x?}"))),
    })
}

/// Run-length coded indices of 8 or 4 bits.
fn run_lengths(data: &[u8], nibbles: bool, canvas: &mut Canvas, bottom_up: bool, palette: &[[u8; 3]; 256]) -> Result<(), Fault> {
    let (width, height) = (canvas.width, canvas.height);
    canvas.rgb.as_chunks_mut::<3>().0.fill(palette[0]);
    let byte = |at: usize| data.get(at).copied().ok_or(Fault::Truncated);
    let nibble = |v: u8, i: usize| if i.is_multiple_of(2) { v >> 4 } else { v & 15 };
    let (mut at, mut x, mut y) = (0, 0, 0);
    // A position past a row's end continues in the next one, as in the reference.
    let mut put = |x: &mut usize, y: &mut usize, index: u8| {
        if *x == width {
            (*x, *y) = (0, *y + 1);
        }
        if *y < height {
            canvas.row_from(*y, bottom_up)[*x * 3..][..3].copy_from_slice(&palette[index as usize]);
            *x += 1;
        }
    };
    while y < height && !(y + 1 == height && x == width) {
        let (count, value) = (byte(at)? as usize, byte(at + 1)?);
        at += 2;
        match (count, value) {
            (0, 0) => {
                if x > 0 {
                    (x, y) = (0, y + 1);
                }
            }
            (0, 1) => break,
            (0, 2) => {
                let to = x + byte(at)? as usize + byte(at + 1)? as usize * width;
                at += 2;
                (x, y) = (to % width, y + to / width);
            }
            (0, n) => {
                let n = n as usize;
                let stored = if nibbles { n.div_ceil(2) } else { n };
                for i in 0..n {
                    let index = if nibbles { nibble(byte(at + i / 2)?, i) } else { byte(at + i)? };
                    put(&mut x, &mut y, index);
                }
                at += stored.next_multiple_of(2);
            }
            (n, value) => {
                // A run never wraps.
                for i in 0..n.min(width - x.min(width)) {
                    put(&mut x, &mut y, if nibbles { nibble(value, i) } else { value });
                }
            }
        }
    }
    Ok(())
}
