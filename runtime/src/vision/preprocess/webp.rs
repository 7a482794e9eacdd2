//! WebP: the bitstream of the picture or of an animation's first frame, alpha left aside.
//!
//! `image` decodes; it is handed the bitstream in a file of its own, because it would blend an animation's first frame
//! with nothing, losing the colour under alpha, and hold 10 bytes per pixel to unpack an alpha that is then dropped.

use std::io::Cursor;

use image::codecs::webp::WebPDecoder;

use super::{Canvas, Fault, Room, read, u16_le, u32_le};

/// A frame inside the canvas.
struct Frame<'a> {
    /// `VP8 ` or `VP8L`.
    kind: &'a [u8],
    data: &'a [u8],
    /// Column and row of its top left pixel.
    x: usize,
    y: usize,
    /// Canvas size, where the file states one.
    canvas: Option<(u32, u32)>,
}

impl Frame<'_> {
    /// Pixels of the frame, by its bitstream.
    fn size(&self) -> Result<(u32, u32), Fault> {
        Ok(match self.kind {
            b"VP8L" => {
                let bits = u32_le(self.data, 1)?;
                (1 + (bits & 0x3fff), 1 + (bits >> 14 & 0x3fff))
            }
            _ => ((u16_le(self.data, 6)? & 0x3fff).into(), (u16_le(self.data, 8)? & 0x3fff).into()),
        })
    }
}

pub(super) fn decode(bytes: &[u8], canvas: &mut Canvas) -> Result<(), Fault> {
    let frame = first_frame(bytes)?;
    let (w, h) = frame.size()?;
    let (cw, ch) = frame.canvas.unwrap_or((w, h));
    canvas.declare(cw, ch)?;
    if frame.x as u64 + u64::from(w) > u64::from(cw) || frame.y as u64 + u64::from(h) > u64::from(ch) {
        return Err(Fault::damaged(format!("a frame of {w} × {h} reaches out of the picture")));
    }
    // A file of this frame only: without its alpha plane, and with lossless pixels declared to have four channels,
    // so that they are decoded straight into the buffer that is returned.
    let mut file = Vec::with_capacity(frame.data.len() + 21);
    file.extend(b"RIFF");
    file.extend((frame.data.len() as u32 + 12).to_le_bytes());
    file.extend(b"WEBP");
    file.extend(frame.kind);
    file.extend((frame.data.len() as u32).to_le_bytes());
    file.extend(frame.data);
    if frame.kind == b"VP8L" {
        *file.get_mut(24).ok_or(Fault::Truncated)? |= 0x10;
    }
    file.resize(file.len().next_multiple_of(2), 0);

    let mut frame_canvas = Canvas::within(Room::UNLIMITED);
    let (samples, colour) = read(WebPDecoder::new(Cursor::new(file))?, &mut frame_canvas)?;
    if (frame_canvas.width, frame_canvas.height) != (w as usize, h as usize) {
        return Err(Fault::Unsupported(format!("a frame of {w} × {h}")));
    }
    frame_canvas.take(samples, colour)?;
    if (frame_canvas.width, frame_canvas.height) == (canvas.width, canvas.height) {
        canvas.rgb = frame_canvas.rgb;
        return Ok(());
    }
    canvas.allocate();
    let row_bytes = canvas.width * 3;
    for (y, row) in frame_canvas.rgb.chunks_exact(frame_canvas.width * 3).enumerate() {
        canvas.rgb[(frame.y + y) * row_bytes + frame.x * 3..][..row.len()].copy_from_slice(row);
    }
    Ok(())
}

/// A RIFF chunk at `at`: its name, its data and where the next one starts.
fn chunk(bytes: &[u8], at: usize) -> Result<(&[u8], &[u8], usize), Fault> {
    let size = u32_le(bytes, at + 4)? as usize;
    let data = bytes.get(at + 8..).and_then(|rest| rest.get(..size)).ok_or(Fault::Truncated)?;
    Ok((&bytes[at..at + 4], data, at + 8 + size.next_multiple_of(2)))
}

fn u24(bytes: &[u8], at: usize) -> Result<u32, Fault> {
    bytes.get(at..at + 3).map(|b| u32::from_le_bytes([b[0], b[1], b[2], 0])).ok_or(Fault::Truncated)
}

fn first_frame(bytes: &[u8]) -> Result<Frame<'_>, Fault> {
    let (kind, data, mut at) = chunk(bytes, 12)?;
    if kind != b"VP8X" {
        return match kind {
            b"VP8 " | b"VP8L" => Ok(Frame { kind, data, x: 0, y: 0, canvas: None }),
            _ => Err(Fault::damaged("no picture in it")),
        };
    }
    let canvas = Some((u24(data, 4)? + 1, u24(data, 7)? + 1));
    loop {
        let (kind, data, next) = chunk(bytes, at)?;
        match kind {
            b"VP8 " | b"VP8L" => return Ok(Frame { kind, data, x: 0, y: 0, canvas }),
            b"ANMF" => {
                let (x, y) = (2 * u24(data, 0)? as usize, 2 * u24(data, 3)? as usize);
                let mut at = 16;
                loop {
                    let (kind, inner, next) = chunk(data, at)?;
                    if kind == b"VP8 " || kind == b"VP8L" {
                        return Ok(Frame { kind, data: inner, x, y, canvas });
                    }
                    at = next;
                }
            }
            _ => at = next,
        }
    }
}
