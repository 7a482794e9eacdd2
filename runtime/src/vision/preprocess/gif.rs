//! GIF: the first frame, placed on its canvas as Pillow places it.

use super::{Canvas, Fault, palette_of, u16_le};

pub(super) fn decode(bytes: &[u8], canvas: &mut Canvas) -> Result<(), Fault> {
    let byte = |at: usize| bytes.get(at).copied().ok_or(Fault::Truncated);
    let (mut width, mut height) = (u16_le(bytes, 6)?, u16_le(bytes, 8)?);
    let mut at = 13;
    let mut palette = None;
    read_palette(bytes, &mut at, byte(10)?, &mut palette)?;
    let mut transparent = None;
    loop {
        at += 1;
        match byte(at - 1)? {
            b'!' => {
                let (label, block) = (byte(at)?, at + 1);
                if label == 0xf9 && byte(block)? >= 4 && byte(block + 1)? & 1 == 1 {
                    transparent = Some(byte(block + 4)?);
                }
                at = block;
                while byte(at)? != 0 {
                    at += 1 + byte(at)? as usize;
                }
                at += 1;
            }
            b',' => break,
            b';' => return Err(Fault::damaged("no frame in it")),
            _ => {}
        }
    }
    let (x0, y0) = (u16_le(bytes, at)? as usize, u16_le(bytes, at + 2)? as usize);
    let (w, h) = (u16_le(bytes, at + 4)? as usize, u16_le(bytes, at + 6)? as usize);
    let flags = byte(at + 8)?;
    at += 9;
    read_palette(bytes, &mut at, flags, &mut palette)?;
    if w == 0 || h == 0 {
        canvas.declare(width.into(), height.into())?;
        return Err(Fault::damaged("a first frame of no pixels"));
    }
    // A frame that reaches out of the canvas widens it.
    width = width.max(u16::try_from(x0 + w).map_err(|_| Fault::TooLarge)?);
    height = height.max(u16::try_from(y0 + h).map_err(|_| Fault::TooLarge)?);
    canvas.declare(width.into(), height.into())?;

    let palette = match palette {
        Some(rgb) if is_ramp(rgb) => std::array::from_fn(|i| [i as u8; 3]),
        Some(rgb) => palette_of(rgb),
        None => std::array::from_fn(|i| [i as u8; 3]),
    };
    canvas.allocate();
    let around = palette[transparent.unwrap_or(0) as usize];
    if (w, h) != (canvas.width, canvas.height) && around != [0; 3] {
        canvas.rgb.as_chunks_mut::<3>().0.fill(around);
    }
    let mut rows = row_order(h, flags & 0x40 != 0);
    let mut y = rows.next();
    let mut x = 0;
    unpack(bytes, at, |index| {
        let Some(row) = y else { return false };
        let to = (x0 + x) * 3;
        canvas.row(y0 + row)[to..to + 3].copy_from_slice(&palette[index as usize]);
        x += 1;
        if x == w {
            (x, y) = (0, rows.next());
        }
        y.is_some()
    })?;
    if y.is_some() { Err(Fault::Truncated) } else { Ok(()) }
}

/// Takes the palette that `flags` announce at `at`.
fn read_palette<'a>(bytes: &'a [u8], at: &mut usize, flags: u8, palette: &mut Option<&'a [u8]>) -> Result<(), Fault> {
    if flags & 0x80 != 0 {
        let end = *at + (3 << ((flags & 7) + 1));
        *palette = Some(bytes.get(*at..end).ok_or(Fault::Truncated)?);
        *at = end;
    }
    Ok(())
}

/// Whether each entry is the grey of its own index: such a palette is dropped, and indices past it are greys.
fn is_ramp(rgb: &[u8]) -> bool {
    rgb.as_chunks::<3>().0.iter().enumerate().all(|(i, c)| c.iter().all(|&v| v as usize == i))
}

/// Rows in the order in which they are stored.
fn row_order(height: usize, interlaced: bool) -> impl Iterator<Item = usize> {
    let passes: &[(usize, usize)] = if interlaced { &[(0, 8), (4, 8), (2, 4), (1, 2)] } else { &[(0, 1)] };
    passes.iter().flat_map(move |&(first, step)| (first..height).step_by(step))
}

/// Unpacks LZW data at `at`, giving each index to `put` until it says that it has enough.
fn unpack(bytes: &[u8], mut at: usize, mut put: impl FnMut(u8) -> bool) -> Result<(), Fault> {
    let root_bits = u32::from(*bytes.get(at).ok_or(Fault::Truncated)?);
    if !(1..=11).contains(&root_bits) {
        return Err(Fault::damaged(format!("LZW codes of {root_bits} bits")));
    }
    at += 1;
    let (clear, end) = (1usize << root_bits, (1usize << root_bits) + 1);
    // Each code is its predecessor and one more index.
    let mut before = [0u16; 4096];
    let mut last = [0u8; 4096];
    for (code, index) in last.iter_mut().enumerate().take(clear.min(256)) {
        *index = code as u8;
    }
    let (mut next, mut bits, mut previous) = (end + 1, root_bits + 1, None::<usize>);
    let (mut word, mut have) = (0u32, 0u32);
    let mut first_index = 0u8;
    let mut text = Vec::with_capacity(4096);
    let mut left = 0usize;
    loop {
        while have < bits {
            if left == 0 {
                left = *bytes.get(at).ok_or(Fault::Truncated)? as usize;
                at += 1;
                if left == 0 {
                    return Ok(());
                }
            }
            word |= u32::from(*bytes.get(at).ok_or(Fault::Truncated)?) << have;
            at += 1;
            left -= 1;
            have += 8;
        }
        let code = (word & ((1 << bits) - 1)) as usize;
        word >>= bits;
        have -= bits;
        if code == clear {
            (next, bits, previous) = (end + 1, root_bits + 1, None);
            continue;
        }
        if code == end {
            return Ok(());
        }
        text.clear();
        let mut walk = code;
        match previous {
            Some(p) if code == next => {
                text.push(first_index);
                walk = p;
            }
            _ if code > next || (code >= clear && previous.is_none()) || (code == next && next > end) => {
                return Err(Fault::damaged("an LZW code out of order"));
            }
            _ => {}
        }
        while walk > end {
            text.push(last[walk]);
            walk = before[walk] as usize;
        }
        first_index = last[walk];
        text.push(first_index);
        if let (Some(p), true) = (previous, next < 4096) {
            before[next] = p as u16;
            last[next] = first_index;
            next += 1;
            if next == 1 << bits && bits < 12 {
                bits += 1;
            }
        }
        previous = Some(code);
        for &index in text.iter().rev() {
            if !put(index) {
                return Ok(());
            }
        }
    }
}
