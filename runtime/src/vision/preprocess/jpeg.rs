//! JPEG: baseline and progressive, Huffman coded, 8 bits.
//!
//! Read by `zune-jpeg` itself: `image` runs the same decoder in a mode that paints over what is missing or damaged,
//! and copies the file first. Inks (CMYK, YCCK) come out by Pillow's formula: stored inverted, `c·k/255` rounded is
//! `k − (255 − c)·k/255` rounded, 255 being odd.
//!
//! The markers are walked beforehand, since the decoder neither misses an end marker nor bounds its time and memory.
//!
//! Source: ITU-T T.81, annex B, for the markers.

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Canvas, Fault, MAX_PIXELS, MAX_SIDE};

/// Most scans of a file, and most pixels times scans: time bounds, far above what encoders write.
const MAX_SCANS: u64 = 200;
const MAX_SCANNED_PIXELS: u64 = 40 * MAX_PIXELS;
/// What any picture may take to decode, in bytes; a larger one gets 8 bytes per pixel. The decoder keeps all coefficients
/// of a progressive picture, 9 bytes per pixel with full-size colour and 11 with four inks: 24 and 20 megapixels fit.
const MODEST_BYTES: u64 = 210 << 20;
/// Most marker segments of a file: a time bound, since the decoder sorts some of them again for each new one.
const MAX_SEGMENTS: usize = 4096;

pub(super) fn decode(bytes: &[u8], canvas: &mut Canvas) -> Result<(), Fault> {
    let colours = walk(bytes, canvas)?;
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(MAX_SIDE as usize)
        .set_max_height(MAX_SIDE as usize)
        .jpeg_set_max_scans(MAX_SCANS as usize)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(fault)?;
    if decoder.dimensions() != Some((canvas.width, canvas.height)) {
        return Err(Fault::damaged("two frame headers"));
    }
    // Both follow the same conventions, but not in every corner.
    if decoder.input_colorspace() != Some(colours) {
        return Err(Fault::Unsupported(format!("channels of {colours:?}, marked in an unusual way")));
    }
    canvas.allocate();
    decoder.decode_into(&mut canvas.rgb).map_err(fault)
}

/// Goes from marker to marker up to the end marker: size, bounds on time and memory, and what the channels mean.
fn walk(bytes: &[u8], canvas: &mut Canvas) -> Result<ColorSpace, Fault> {
    let (mut at, mut scans, mut frame) = (2, 0, None::<Frame>);
    let (mut jfif, mut adobe) = (false, None);
    for _ in 0..MAX_SEGMENTS {
        let marker = next_marker(bytes, &mut at).ok_or(Fault::Truncated)?;
        if marker == 0xd9 {
            return match frame {
                Some(frame) if scans > 0 => colours(&frame, jfif, adobe),
                _ => Err(Fault::damaged("no scan in it")),
            };
        }
        if matches!(marker, 0x01 | 0xd8) {
            continue;
        }
        let length = bytes.get(at..).and_then(|b| b.first_chunk()).map_or(2, |b| u16::from_be_bytes(*b).max(2));
        let body = bytes.get(at + 2..at + usize::from(length)).ok_or(Fault::Truncated)?;
        at += usize::from(length);
        match marker {
            0xe0 if scans == 0 => jfif |= body.starts_with(b"JFIF\0"),
            0xee if scans == 0 && body.starts_with(b"Adobe") => adobe = body.get(11).copied(),
            0xc0..=0xc2 if frame.is_some() => return Err(Fault::damaged("two frame headers")),
            0xc0..=0xc2 => frame = Some(read_frame(body, marker == 0xc2, canvas)?),
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                return Err(Fault::Unsupported(format!("lossless, hierarchical or arithmetic coding (marker {marker:#x})")));
            }
            0xda => {
                let frame = frame.as_ref().ok_or_else(|| Fault::damaged("a scan before the frame header"))?;
                // Unless its first scan has it all, a picture waits as 16-bit numbers for its last.
                let whole = !frame.progressive && body.first().is_some_and(|&n| usize::from(n) == frame.ids.len());
                let held = if whole { 0 } else { 2 * frame.samples };
                let pixels = (canvas.width * canvas.height) as u64;
                let bytes = held + 3 * pixels;
                if bytes > (8 * pixels).max(MODEST_BYTES) {
                    let mebi = bytes >> 20;
                    return Err(Fault::Unsupported(format!(
                        "several scans of {pixels} pixels, which take {mebi} MiB to decode; save it as a baseline JPEG"
                    )));
                }
                scans += 1;
                if scans > MAX_SCANS || scans * pixels > MAX_SCANNED_PIXELS {
                    return Err(Fault::Unsupported(format!("more than {} scans", scans - 1)));
                }
            }
            _ => {}
        }
    }
    Err(Fault::Unsupported(format!("more than {MAX_SEGMENTS} segments")))
}

/// The code of the next marker from `at` on, leaving `at` behind it; coded data and its restarts are passed over.
fn next_marker(bytes: &[u8], at: &mut usize) -> Option<u8> {
    loop {
        *at += bytes.get(*at..)?.iter().position(|&b| b == 0xff)?;
        *at += bytes.get(*at..)?.iter().position(|&b| b != 0xff)?;
        *at += 1;
        match bytes[*at - 1] {
            0 | 0xd0..=0xd7 => {}
            marker => return Some(marker),
        }
    }
}

/// What a frame header says.
struct Frame {
    progressive: bool,
    /// Names of the components.
    ids: Vec<u8>,
    /// Samples of all components, whole blocks.
    samples: u64,
}

fn read_frame(body: &[u8], progressive: bool, canvas: &mut Canvas) -> Result<Frame, Fault> {
    let head: &[u8; 6] = body.first_chunk().ok_or_else(|| Fault::damaged("a short frame header"))?;
    let [precision, h1, h0, w1, w0, components] = *head;
    canvas.declare(u16::from_be_bytes([w1, w0]).into(), u16::from_be_bytes([h1, h0]).into())?;
    if precision != 8 {
        return Err(Fault::Unsupported(format!("{precision} bits per sample")));
    }
    let described = body[6..].as_chunks::<3>().0;
    if described.len() != usize::from(components) {
        return Err(Fault::damaged("a frame header of another length"));
    }
    let factors = || described.iter().map(|c| (u64::from(c[1] >> 4), u64::from(c[1] & 15)));
    let (h_max, v_max) = factors().next().unwrap_or((1, 1));
    if factors().any(|(h, v)| h == 0 || v == 0 || h_max % h != 0 || v_max % v != 0) {
        return Err(Fault::Unsupported("sampling factors of which the first are no multiples of the others".into()));
    }
    let mcus = (canvas.width as u64).div_ceil(8 * h_max) * (canvas.height as u64).div_ceil(8 * v_max);
    let samples = factors().map(|(h, v)| 64 * mcus * h * v).sum();
    Ok(Frame { progressive, ids: described.iter().map(|c| c[0]).collect(), samples })
}

/// What the channels mean, by libjpeg's rules.
fn colours(frame: &Frame, jfif: bool, adobe: Option<u8>) -> Result<ColorSpace, Fault> {
    Ok(match (&frame.ids[..], adobe) {
        ([_], _) => ColorSpace::Luma,
        ([_, _, _], _) if jfif => ColorSpace::YCbCr,
        ([_, _, _], Some(0)) | (b"RGB", None) => ColorSpace::RGB,
        ([_, _, _], _) => ColorSpace::YCbCr,
        ([_, _, _, _], None | Some(0)) => ColorSpace::CMYK,
        ([_, _, _, _], _) => ColorSpace::YCCK,
        (ids, _) => return Err(Fault::Unsupported(format!("{} components", ids.len()))),
    })
}

fn fault(error: DecodeErrors) -> Fault {
    match error {
        DecodeErrors::ExhaustedData => Fault::Truncated,
        DecodeErrors::Unsupported(what) => Fault::Unsupported(format!("{what:?}")),
        DecodeErrors::Format(what) => Fault::Damaged(what),
        DecodeErrors::FormatStatic(what) => Fault::damaged(what),
        other => Fault::Damaged(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_behind_fill_bytes() {
        let bytes = [0xff, 0xff, 0xff, 0xd9, 0xff, 0x00, 0xff, 0xd3, 0xff, 0xc4, 0xff];
        let mut at = 0;
        assert_eq!((next_marker(&bytes, &mut at), at), (Some(0xd9), 4));
        assert_eq!((next_marker(&bytes, &mut at), at), (Some(0xc4), 10));
        assert_eq!(next_marker(&bytes, &mut at), None);
    }
}
