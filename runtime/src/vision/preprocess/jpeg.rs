//! JPEG: baseline and progressive, Huffman coded, 8 bits; the very samples that libjpeg-turbo gives.
//!
//! The reference decodes with libjpeg-turbo's defaults: the exact integer inverse DCT ("islow"), triangle ("fancy")
//! upsampling of chroma and 16-bit fixed-point colour conversion. All three are defined down to the bit, so a
//! photograph gives the same numbers here as there. Coefficients of a progressive file are turned into samples in
//! place, so that 6 bytes per pixel are the most that is ever held.
//!
//! Source: ITU-T T.81; libjpeg's `jidctint.c`, `jdsample.c`, `jdcolor.c` for the arithmetic.

mod entropy;
mod samples;

use super::{Canvas, Fault};
use entropy::{Bits, Huffman, ScanKind};
use samples::{inverse_dct, upsample_row};

/// Most scans of a file: a time bound, far above what any encoder writes.
const MAX_SCANS: usize = 200;

/// Position in a block of the coefficient stored `i`th.
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28, 35, 42, 49, 56,
    57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// One of up to four colour planes.
#[derive(Default)]
struct Component {
    id: u8,
    /// Sampling factors.
    h: usize,
    v: usize,
    quant_id: usize,
    /// Quantisation table, zigzag undone; taken when the component's first scan begins.
    quant: Option<[u16; 64]>,
    /// Samples that belong to the picture.
    width: usize,
    height: usize,
    /// Blocks that hold them, and blocks per stored row (whole MCUs).
    blocks: (usize, usize),
    stride: usize,
    /// Progressive: coefficients `[rows, stride, 64]`.
    coefficients: Vec<i16>,
    /// Samples `[rows, stride, 8, 8]`.
    samples: Vec<u8>,
}

/// What the frame header says.
struct Frame {
    progressive: bool,
    components: Vec<Component>,
    h_max: usize,
    v_max: usize,
    mcus: (usize, usize),
}

#[derive(Default)]
struct Tables {
    quant: [Option<[u16; 64]>; 4],
    dc: [Option<Box<Huffman>>; 4],
    ac: [Option<Box<Huffman>>; 4],
    restart_interval: usize,
}

/// What the channels mean.
#[derive(Clone, Copy, PartialEq)]
enum Colour {
    Grey,
    YCbCr,
    Rgb,
    Cmyk,
    Ycck,
}

pub(super) fn decode(bytes: &[u8], canvas: &mut Canvas) -> Result<(), Fault> {
    let mut tables = Tables::default();
    let mut frame = None::<Frame>;
    let (mut jfif, mut adobe) = (false, None::<u8>);
    let (mut at, mut scans) = (2, 0);
    loop {
        let Some(marker) = next_marker(bytes, &mut at) else {
            // Without an end marker a progressive picture may lack scans; a sequential one is whole once it is all there.
            match &frame {
                Some(f) if !f.progressive && f.components.iter().all(|c| !c.samples.is_empty()) => break,
                _ => return Err(Fault::Truncated),
            }
        };
        match marker {
            0xd9 => break,
            0x01 | 0xd0..=0xd8 => continue,
            _ => {}
        }
        let length = bytes.get(at..at + 2).map(|b| usize::from(b[0]) << 8 | usize::from(b[1])).ok_or(Fault::Truncated)?;
        let body = bytes.get(at + 2..at + length.max(2)).ok_or(Fault::Truncated)?;
        at += length.max(2);
        match marker {
            0xe0 => jfif |= body.starts_with(b"JFIF\0"),
            0xee if body.starts_with(b"Adobe") && body.len() >= 12 => adobe = Some(body[11]),
            0xdb => read_quantisation(body, &mut tables)?,
            0xc4 => read_huffman(body, &mut tables)?,
            0xdd => tables.restart_interval = body.get(..2).map(|b| usize::from(b[0]) << 8 | usize::from(b[1])).ok_or(Fault::Truncated)?,
            0xc0..=0xc2 if frame.is_some() => return Err(Fault::damaged("two frame headers")),
            0xc0..=0xc2 => frame = Some(read_frame(body, marker == 0xc2, canvas)?),
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                return Err(Fault::Unsupported(format!("lossless, hierarchical or arithmetic coding (marker {marker:#x})")));
            }
            0xda => {
                let frame = frame.as_mut().ok_or_else(|| Fault::damaged("a scan before the frame header"))?;
                scans += 1;
                if scans > MAX_SCANS {
                    return Err(Fault::Unsupported(format!("more than {MAX_SCANS} scans")));
                }
                at = read_scan(bytes, at, body, frame, &tables)?;
            }
            _ => {}
        }
    }
    let frame = frame.ok_or_else(|| Fault::damaged("no frame header"))?;
    let colour = colour_of(&frame.components, jfif, adobe);
    paint(frame, colour, canvas)
}

/// The code of the next marker from `at` on, leaving `at` behind it.
fn next_marker(bytes: &[u8], at: &mut usize) -> Option<u8> {
    loop {
        *at += bytes.get(*at..)?.iter().position(|&b| b == 0xff)?;
        *at += bytes.get(*at..)?.iter().position(|&b| b != 0xff)?;
        *at += 1;
        match bytes[*at - 1] {
            0 => {}
            marker => return Some(marker),
        }
    }
}

fn read_quantisation(mut body: &[u8], tables: &mut Tables) -> Result<(), Fault> {
    while let Some((&head, rest)) = body.split_first() {
        let (wide, id) = (head >> 4 != 0, usize::from(head & 15));
        let bytes = if wide { 128 } else { 64 };
        let values = rest.get(..bytes).ok_or_else(|| Fault::damaged("a short quantisation table"))?;
        let mut table = [0; 64];
        for (i, &to) in ZIGZAG.iter().enumerate() {
            table[to as usize] = if wide { u16::from_be_bytes([values[2 * i], values[2 * i + 1]]) } else { values[i].into() };
        }
        *tables.quant.get_mut(id).ok_or_else(|| Fault::damaged(format!("quantisation table {id}")))? = Some(table);
        body = &rest[bytes..];
    }
    Ok(())
}

fn read_huffman(mut body: &[u8], tables: &mut Tables) -> Result<(), Fault> {
    while let Some((&head, rest)) = body.split_first() {
        let short = || Fault::damaged("a short Huffman table");
        let counts: &[u8; 16] = rest.first_chunk().ok_or_else(short)?;
        let total = counts.iter().map(|&n| usize::from(n)).sum::<usize>();
        let symbols = rest.get(16..16 + total).ok_or_else(short)?;
        let (ac, id) = (head & 0x10 != 0, usize::from(head & 0xef));
        let set = if ac { &mut tables.ac } else { &mut tables.dc };
        let slot = set.get_mut(id).ok_or_else(|| Fault::damaged(format!("Huffman table {id}")))?;
        if !ac && symbols.iter().any(|&s| s > 15) {
            return Err(Fault::damaged("a DC code of more than 15 bits"));
        }
        *slot = Some(Box::new(Huffman::new(counts, symbols).ok_or_else(|| Fault::damaged("an impossible Huffman table"))?));
        body = &rest[16 + total..];
    }
    Ok(())
}

fn read_frame(body: &[u8], progressive: bool, canvas: &mut Canvas) -> Result<Frame, Fault> {
    let head: &[u8; 6] = body.first_chunk().ok_or_else(|| Fault::damaged("a short frame header"))?;
    let [precision, h1, h0, w1, w0, count] = *head;
    canvas.declare(u16::from_be_bytes([w1, w0]).into(), u16::from_be_bytes([h1, h0]).into())?;
    if precision != 8 {
        return Err(Fault::Unsupported(format!("{precision} bits per sample")));
    }
    if !matches!(count, 1 | 3 | 4) {
        return Err(Fault::Unsupported(format!("{count} components")));
    }
    let described = body.get(6..6 + 3 * usize::from(count)).ok_or_else(|| Fault::damaged("a short frame header"))?;
    let mut components: Vec<Component> = described
        .chunks_exact(3)
        .map(|d| Component { id: d[0], h: (d[1] >> 4).into(), v: (d[1] & 15).into(), quant_id: d[2].into(), ..Component::default() })
        .collect();
    if components.iter().any(|c| !(1..=4).contains(&c.h) || !(1..=4).contains(&c.v)) {
        return Err(Fault::damaged("a sampling factor outside 1 to 4"));
    }
    let (h_max, v_max) = components.iter().fold((1, 1), |(h, v), c| (h.max(c.h), v.max(c.v)));
    if components.iter().any(|c| h_max % c.h != 0 || v_max % c.v != 0) {
        return Err(Fault::Unsupported("fractional chroma sampling".into()));
    }
    let mcus = (canvas.width.div_ceil(8 * h_max), canvas.height.div_ceil(8 * v_max));
    for c in &mut components {
        c.width = (canvas.width * c.h).div_ceil(h_max);
        c.height = (canvas.height * c.v).div_ceil(v_max);
        c.blocks = (c.width.div_ceil(8), c.height.div_ceil(8));
        c.stride = mcus.0 * c.h;
    }
    Ok(Frame { progressive, components, h_max, v_max, mcus })
}

/// Reads one scan, whose header is `body` and whose data begin at `at`; returns where they end.
fn read_scan(bytes: &[u8], at: usize, body: &[u8], frame: &mut Frame, tables: &Tables) -> Result<usize, Fault> {
    let short = || Fault::damaged("a short scan header");
    let count = usize::from(*body.first().ok_or_else(short)?);
    let tail: &[u8; 3] = body.get(1 + 2 * count..).and_then(|t| t.first_chunk()).ok_or_else(short)?;
    let kind = ScanKind::new(frame.progressive, tail, count)?;

    // Which component, and the tables of each.
    let mut members: Vec<(usize, usize, usize)> = Vec::with_capacity(count);
    for selector in body[1..1 + 2 * count].as_chunks::<2>().0 {
        let index = frame.components.iter().position(|c| c.id == selector[0]).ok_or_else(|| Fault::damaged("a scan of no component"))?;
        if members.iter().any(|&(i, ..)| i == index) {
            return Err(Fault::damaged("a scan with a component twice"));
        }
        let (dc, ac) = (usize::from(selector[1] >> 4), usize::from(selector[1] & 15));
        if kind.needs_dc() && table(&tables.dc, dc).is_none() || kind.needs_ac() && table(&tables.ac, ac).is_none() {
            return Err(Fault::damaged("a scan without its Huffman tables"));
        }
        members.push((index, dc, ac));
    }
    if members.is_empty() || members.len() > 4 {
        return Err(short());
    }
    let rows = frame.mcus.1;
    for &(index, ..) in &members {
        let c = &mut frame.components[index];
        if c.quant.is_none() {
            let table = tables.quant.get(c.quant_id).copied().flatten();
            c.quant = Some(table.ok_or_else(|| Fault::damaged("a scan without its quantisation table"))?);
        }
        let elements = c.stride * rows * c.v * 64;
        if frame.progressive && c.coefficients.is_empty() {
            c.coefficients = vec![0; elements];
        } else if !frame.progressive && c.samples.is_empty() {
            c.samples = vec![128; elements];
        }
    }

    let mut bits = Bits::new(bytes, at);
    let mut predictions = [0i32; 4];
    let mut end_of_band = 0u32;
    let alone = members.len() == 1;
    let (columns, rows) = if alone { frame.components[members[0].0].blocks } else { frame.mcus };
    let mut until_restart = tables.restart_interval;
    'mcus: for row in 0..rows {
        for column in 0..columns {
            if tables.restart_interval > 0 {
                if until_restart == 0 {
                    if !bits.restart() {
                        break 'mcus;
                    }
                    (predictions, end_of_band, until_restart) = ([0; 4], 0, tables.restart_interval);
                }
                until_restart -= 1;
            }
            if bits.exhausted() {
                // As the reference does: what a scan lacks stays as it is, up to the next restart.
                if bits.at_end() {
                    return Err(Fault::Truncated);
                }
                if tables.restart_interval == 0 {
                    break 'mcus;
                }
                continue;
            }
            for (member, &(index, dc, ac)) in members.iter().enumerate() {
                let c = &mut frame.components[index];
                let (h, v) = if alone { (1, 1) } else { (c.h, c.v) };
                for i in 0..h * v {
                    let block = (row * v + i / h) * c.stride + column * h + i % h;
                    let (dc, ac) = (table(&tables.dc, dc), table(&tables.ac, ac));
                    if frame.progressive {
                        let Some(block) = c.coefficients.as_chunks_mut::<64>().0.get_mut(block) else { continue };
                        kind.read(&mut bits, dc, ac, &mut predictions[member], &mut end_of_band, block);
                    } else {
                        let mut coefficients = [0; 64];
                        kind.read(&mut bits, dc, ac, &mut predictions[member], &mut end_of_band, &mut coefficients);
                        let (Some(block), Some(quant)) = (c.samples.as_chunks_mut::<64>().0.get_mut(block), &c.quant) else { continue };
                        inverse_dct(&coefficients, quant, block);
                    }
                }
            }
        }
    }
    if bits.exhausted() && bits.at_end() { Err(Fault::Truncated) } else { Ok(bits.position()) }
}

/// Table `id`, if there is one; a scan may name one that it does not need.
fn table(set: &[Option<Box<Huffman>>; 4], id: usize) -> Option<&Huffman> {
    set.get(id)?.as_deref()
}

/// What the channels mean, by libjpeg's rules.
fn colour_of(components: &[Component], jfif: bool, adobe: Option<u8>) -> Colour {
    let ids: Vec<u8> = components.iter().map(|c| c.id).collect();
    match (components.len(), adobe) {
        (1, _) => Colour::Grey,
        (3, _) if jfif => Colour::YCbCr,
        (3, Some(0)) => Colour::Rgb,
        (3, None) if ids == *b"RGB" => Colour::Rgb,
        (3, _) => Colour::YCbCr,
        (_, None | Some(0)) => Colour::Cmyk,
        _ => Colour::Ycck,
    }
}

/// Turns the components into pixels.
fn paint(mut frame: Frame, colour: Colour, canvas: &mut Canvas) -> Result<(), Fault> {
    for c in &mut frame.components {
        if frame.progressive {
            let quant = c.quant.ok_or_else(|| Fault::damaged("a component without a scan"))?;
            // Samples take the place of coefficients: block `b` goes to bytes 64 b, which the blocks not yet read lie behind.
            let blocks = c.coefficients.len() / 64;
            for b in 0..blocks {
                let block: [i16; 64] = *c.coefficients[64 * b..].first_chunk().ok_or(Fault::Truncated)?;
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut c.coefficients);
                if let Some(out) = bytes[64 * b..].first_chunk_mut() {
                    inverse_dct(&block, &quant, out);
                }
            }
            c.coefficients.truncate(blocks * 32);
            c.coefficients.shrink_to_fit();
        } else if c.samples.is_empty() {
            return Err(Fault::damaged("a component without a scan"));
        }
    }
    canvas.allocate();
    let width = canvas.width;
    // Rows are made with room for the last block's padding.
    let room = frame.mcus.0 * 8 * frame.h_max;
    let mut rows: Vec<Vec<u8>> = frame.components.iter().map(|_| vec![0; room]).collect();
    let mut scratch = [vec![0; room], vec![0; room]];
    let convert = samples::Convert::new();
    for y in 0..canvas.height {
        for (c, row) in frame.components.iter().zip(&mut rows) {
            let samples = if frame.progressive { bytemuck::cast_slice(&c.coefficients) } else { &c.samples[..] };
            let plane = samples::Plane { samples, stride: c.stride, width: c.width, height: c.height };
            upsample_row(&plane, frame.h_max / c.h, frame.v_max / c.v, y, &mut scratch, row);
        }
        let out = canvas.row(y).as_chunks_mut::<3>().0.iter_mut().enumerate();
        let rows: Vec<&[u8]> = rows.iter().map(|r| &r[..width]).collect();
        match (colour, &rows[..]) {
            (Colour::Grey, [grey]) => out.for_each(|(x, rgb)| *rgb = [grey[x]; 3]),
            (Colour::Rgb, [r, g, b]) => out.for_each(|(x, rgb)| *rgb = [r[x], g[x], b[x]]),
            (Colour::YCbCr, [luma, cb, cr]) => out.for_each(|(x, rgb)| *rgb = convert.rgb(luma[x], cb[x], cr[x])),
            // Both are stored inverted: what is read is 255 minus the ink.
            (Colour::Cmyk, [c, m, y, k]) => out.for_each(|(x, rgb)| *rgb = cmyk_to_rgb([255 - c[x], 255 - m[x], 255 - y[x], 255 - k[x]])),
            (Colour::Ycck, [luma, cb, cr, k]) => out.for_each(|(x, rgb)| {
                // YCCK hides 255 minus RGB in its first three channels, and that is stored inverted once more.
                let [c, m, y] = convert.rgb(luma[x], cb[x], cr[x]);
                *rgb = cmyk_to_rgb([c, m, y, 255 - k[x]]);
            }),
            _ => return Err(Fault::damaged("components that do not fit the colour space")),
        }
    }
    Ok(())
}

/// Inks to light, as Pillow computes it: `k' − C·k'/255` with `k' = 255 − K`, the division rounded.
pub(super) fn cmyk_to_rgb([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let light = 255 - k;
    let mul_div_255 = |a: u8, b: u8| {
        let t = u32::from(a) * u32::from(b) + 128;
        ((t >> 8) + t) >> 8
    };
    [c, m, y].map(|ink| (i32::from(light) - mul_div_255(ink, light) as i32).clamp(0, 255) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cmyk_over_all_pairs() {
        for ink in 0..=255u8 {
            for k in 0..=255u8 {
                let light = 255 - i32::from(k);
                // Nearest integer to ink · light / 255; ties cannot happen, 255 being odd.
                let shade = (2 * i32::from(ink) * light + 255) / 510;
                assert_eq!(cmyk_to_rgb([ink, 0, 255, k]), [(light - shade) as u8, light as u8, 0], "{ink} {k}");
            }
        }
    }

    #[test]
    fn markers_are_found_behind_fill_bytes() {
        let bytes = [0xff, 0xff, 0xff, 0xd9, 0xff, 0x00, 0xff, 0xc4, 0xff];
        let mut at = 0;
        assert_eq!((next_marker(&bytes, &mut at), at), (Some(0xd9), 4));
        assert_eq!((next_marker(&bytes, &mut at), at), (Some(0xc4), 8));
        assert_eq!(next_marker(&bytes, &mut at), None);
    }
}
