//! From a picture's file to 8-bit RGB, exactly as the model's training pipeline read it.
//!
//! The reference is Pillow's `Image.open(f).convert("RGB")`: alpha is dropped and the colour under it kept, palettes
//! lose their transparency, EXIF orientation and ICC profiles are ignored, an animation gives its first frame.
//! `image` and the decoders it is built on read the bitstreams; what is done here is the choice of bytes that this
//! asks for. PNG, GIF, BMP and lossless WebP agree with the reference to the bit, JPEG within a level or two.
//!
//! Everything is bounded before it is allocated: encoded bytes, sides, pixels. Decoding holds at most 8 bytes per
//! pixel, decoders' buffers included, or 9 (11 with four inks) for a progressive JPEG without subsampling; in all
//! never more than 8 bytes for each of [`MAX_PIXELS`].

mod bmp;
mod gif;
mod jpeg;
mod png;
mod webp;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use image::{ColorType, ImageDecoder, ImageError, ImageFormat};
use sphinx_quant::error::printable;

use crate::{Result, RuntimeError};

/// Most pixels of a picture.
pub const MAX_PIXELS: u64 = 100_000_000;
/// Longest side of a picture, in pixels.
pub const MAX_SIDE: u32 = 20_000;
/// Longest picture file, in bytes.
pub const MAX_ENCODED_BYTES: u64 = 64 << 20;

/// A decoded picture: 8-bit RGB, rows from the top, within the caps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

/// Memory that there is for decoded pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes while one is decoded.
    pub decoding: u64,
    /// Bytes that they may take together when they are decoded.
    pub keeping: u64,
}

impl Room {
    /// As much as a picture within the caps takes.
    pub const UNLIMITED: Room = Room { decoding: u64::MAX, keeping: u64::MAX };

    /// Whether a picture of so many pixels can be decoded and kept.
    pub(crate) fn holds(&self, pixels: u64) -> bool {
        DECODING_BYTES * pixels <= self.decoding && KEPT_BYTES * pixels <= self.keeping
    }

    /// A picture is kept.
    pub(crate) fn keep(&mut self, picture: &Picture) {
        self.keeping = self.keeping.saturating_sub(picture.rgb.len() as u64);
    }

    /// The error for a picture of `file` that it does not hold.
    pub(crate) fn refusal(&self, file: &Path, width: usize, height: usize) -> RuntimeError {
        let pixels = (width * height) as u64;
        let (need, left) = match DECODING_BYTES * pixels > self.decoding {
            true => (DECODING_BYTES * pixels, self.decoding),
            false => (KEPT_BYTES * pixels, self.keeping),
        };
        let (file, need, left) = (printable(&file.display().to_string()), need.div_ceil(1 << 20), left >> 20);
        let what = format!("{file}: a picture of {width} × {height} takes {need} MiB, the model leaves {left} MiB of the budget");
        RuntimeError::Budget(format!("{what} — scale the picture down first, or give more with --memory"))
    }
}

/// Bytes per pixel while a picture is decoded, and afterwards.
const DECODING_BYTES: u64 = 8;
const KEPT_BYTES: u64 = 3;

impl Picture {
    /// Reads and decodes a file.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] when it cannot be read; [`RuntimeError::Picture`] when it is no picture of a format read
    /// here (PNG, JPEG, WebP, GIF, BMP, told by content), damaged, cut short, or beyond the caps.
    pub fn open(path: &Path) -> Result<Picture> {
        Picture::open_within(path, &mut { Room::UNLIMITED })
    }

    /// As [`open`](Picture::open), in `room`, which gets smaller by the picture.
    ///
    /// # Errors
    /// [`RuntimeError::Budget`] too, when the picture has no room; it is not decoded then.
    pub fn open_within(path: &Path, room: &mut Room) -> Result<Picture> {
        let io = |source| RuntimeError::Io { file: path.to_owned(), source };
        // Asked before opening: opening a fifo would wait for its writer.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let file = File::open(path).map_err(io)?;
        let mut bytes = Vec::new();
        file.take(MAX_ENCODED_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        let picture = decode(&bytes, path, *room)?;
        room.keep(&picture);
        Ok(picture)
    }

    /// Decodes the bytes of a file; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`Picture::open`].
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Picture> {
        decode(bytes, Path::new(name), Room::UNLIMITED)
    }

    /// A picture from its pixels, `rgb` being `[height, width, 3]`.
    ///
    /// # Errors
    /// [`RuntimeError::Usage`] when the sizes do not agree, one is zero or beyond the caps.
    pub fn from_rgb(width: usize, height: usize, rgb: Vec<u8>) -> Result<Picture> {
        let fits = |side: usize| side > 0 && side <= MAX_SIDE as usize;
        if !fits(width) || !fits(height) || (width * height) as u64 > MAX_PIXELS || rgb.len() != width * height * 3 {
            return Err(RuntimeError::Usage(format!(
                "{} bytes are no picture; pixels {width} × {height}; cap {} MP, {MAX_SIDE} a side",
                rgb.len(),
                MAX_PIXELS / 1_000_000
            )));
        }
        Ok(Picture { width, height, rgb })
    }

    /// Pixels per row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels, `[height, width, 3]`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }
}

/// Why a decoder gave up.
#[derive(Debug)]
enum Fault {
    /// The bytes end before the picture does.
    Truncated,
    /// The bytes contradict the format.
    Damaged(String),
    /// A part of the format that is not read here.
    Unsupported(String),
    /// Beyond the caps.
    TooLarge,
    /// Within them, and more than there is memory for.
    NoRoom,
}

impl Fault {
    /// A contradiction in the file.
    fn damaged(what: impl Into<String>) -> Fault {
        Fault::Damaged(what.into())
    }
}

/// What a decoder fills: the size first, the pixels later.
struct Canvas {
    room: Room,
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Canvas {
    /// One that may grow so far.
    fn within(room: Room) -> Canvas {
        Canvas { room, width: 0, height: 0, rgb: Vec::new() }
    }

    /// Notes the size and holds it against the caps; nothing is allocated.
    fn declare(&mut self, width: u32, height: u32) -> Result<(), Fault> {
        self.width = width as usize;
        self.height = height as usize;
        if width == 0 || height == 0 {
            return Err(Fault::damaged("a side of no pixels"));
        }
        let pixels = u64::from(width) * u64::from(height);
        if width > MAX_SIDE || height > MAX_SIDE || pixels > MAX_PIXELS {
            return Err(Fault::TooLarge);
        }
        if !self.room.holds(pixels) {
            return Err(Fault::NoRoom);
        }
        Ok(())
    }

    /// Black pixels of the declared size.
    fn allocate(&mut self) {
        self.rgb = vec![0; self.width * self.height * 3];
    }

    /// Takes the pixels of a decoder of `image`, without their alpha and without the low bytes of 16-bit samples.
    fn take(&mut self, samples: Vec<u8>, colour: ColorType) -> Result<(), Fault> {
        const HIGH: usize = cfg!(target_endian = "little") as usize;
        let (stride, bytes) = match colour {
            ColorType::L8 => (1, [0; 3]),
            ColorType::La8 => (2, [0; 3]),
            ColorType::Rgb8 => (3, [0, 1, 2]),
            ColorType::Rgba8 => (4, [0, 1, 2]),
            ColorType::L16 => (2, [HIGH; 3]),
            ColorType::La16 => (4, [HIGH; 3]),
            ColorType::Rgb16 => (6, [HIGH, HIGH + 2, HIGH + 4]),
            ColorType::Rgba16 => (8, [HIGH, HIGH + 2, HIGH + 4]),
            other => return Err(Fault::Unsupported(format!("pixels of {other:?}"))),
        };
        self.rgb = pick(samples, stride, bytes);
        Ok(())
    }
}

/// The bytes `bytes` of every `stride`; in place where pixels do not grow.
fn pick(mut samples: Vec<u8>, stride: usize, bytes: [usize; 3]) -> Vec<u8> {
    if stride < 3 {
        let mut rgb = vec![0; samples.len() / stride * 3];
        for (to, pixel) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(samples.chunks_exact(stride)) {
            *to = bytes.map(|b| pixel[b]);
        }
        return rgb;
    }
    if stride > 3 {
        let pixels = samples.len() / stride;
        for i in 0..pixels {
            let rgb = bytes.map(|b| samples[i * stride + b]);
            samples[3 * i..][..3].copy_from_slice(&rgb);
        }
        samples.truncate(pixels * 3);
        samples.shrink_to_fit();
    }
    samples
}

/// All samples of a decoder of `image`, once its size is within the caps.
fn read(decoder: impl ImageDecoder, canvas: &mut Canvas) -> Result<(Vec<u8>, ColorType), Fault> {
    let (width, height) = decoder.dimensions();
    canvas.declare(width, height)?;
    let colour = decoder.color_type();
    let mut samples = vec![0; canvas.width * canvas.height * usize::from(colour.bytes_per_pixel())];
    decoder.read_image(&mut samples)?;
    Ok((samples, colour))
}

impl From<ImageError> for Fault {
    fn from(error: ImageError) -> Fault {
        match error {
            ImageError::IoError(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Fault::Truncated,
            ImageError::Unsupported(e) => Fault::Unsupported(e.to_string()),
            ImageError::Limits(e) => Fault::Unsupported(e.to_string()),
            other => Fault::Damaged(other.to_string()),
        }
    }
}

type Decoder = fn(&[u8], &mut Canvas) -> Result<(), Fault>;

/// The format of `bytes`, by content, and who reads it.
fn sniff(bytes: &[u8]) -> (String, Option<Decoder>) {
    match image::guess_format(bytes) {
        Ok(ImageFormat::Png) => ("PNG".into(), Some(png::decode)),
        Ok(ImageFormat::Jpeg) => ("JPEG".into(), Some(jpeg::decode)),
        Ok(ImageFormat::WebP) => ("WebP".into(), Some(webp::decode)),
        Ok(ImageFormat::Gif) => ("GIF".into(), Some(gif::decode)),
        Ok(ImageFormat::Bmp) => ("BMP".into(), Some(bmp::decode)),
        Ok(other) => (format!("{other:?}").to_uppercase(), None),
        Err(_) => (foreign(bytes).into(), None),
    }
}

/// The name of a format that `image` does not know.
fn foreign(bytes: &[u8]) -> &'static str {
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if at(4, b"ftyp") {
        // Major and compatible brands of ISO media files.
        let brands = bytes.get(8..bytes.len().min(64)).unwrap_or_default();
        let has = |brand: &[u8]| brands.chunks_exact(4).any(|b| b == brand);
        return match () {
            _ if has(b"avif") || has(b"avis") => "AVIF",
            _ if has(b"heic") || has(b"heix") || has(b"hevc") || has(b"heim") || has(b"heis") || has(b"mif1") || has(b"msf1") => "HEIC",
            _ => "MP4",
        };
    }
    if at(0, b"II+\0") || at(0, b"MM\0+") {
        return "BigTIFF";
    }
    for (magic, name) in [
        (&b"%PDF"[..], "PDF"),
        (b"8BPS", "PSD"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"PK\x03\x04", "ZIP"),
        (b"\x1f\x8b", "gzip"),
        (b"GGUF", "GGUF"),
    ] {
        if at(0, magic) {
            return name;
        }
    }
    if bytes.is_empty() {
        return "none (the file is empty)";
    }
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).to_ascii_lowercase();
    let text = head.trim_start_matches(['\u{feff}', '\u{fffd}', ' ', '\t', '\r', '\n']);
    if text.starts_with("<!doctype html") || text.starts_with("<html") || text.starts_with("<head") || text.starts_with("<body") {
        return "HTML";
    }
    if text.starts_with("<svg") || (text.starts_with('<') && head.contains("<svg")) {
        return "SVG";
    }
    "unknown"
}

/// Decodes `bytes`, or says of `file` what is wrong with it.
fn decode(bytes: &[u8], file: &Path, room: Room) -> Result<Picture> {
    let (format, decoder) = sniff(bytes);
    let mut canvas = Canvas::within(room);
    let outcome = match decoder {
        _ if bytes.len() as u64 > MAX_ENCODED_BYTES => Err(Fault::TooLarge),
        None => Err(Fault::Unsupported("not a format read here".into())),
        Some(decoder) => decoder(bytes, &mut canvas),
    };
    outcome.map_err(|fault| describe(fault, &format, &canvas, file))?;
    Ok(Picture { width: canvas.width, height: canvas.height, rgb: canvas.rgb })
}

/// The error for `fault`.
fn describe(fault: Fault, format: &str, canvas: &Canvas, file: &Path) -> RuntimeError {
    let pixels = match (canvas.width, canvas.height) {
        (0, 0) => "unknown".to_owned(),
        (w, h) => format!("{w} × {h}"),
    };
    let (problem, remedy) = match fault {
        Fault::Truncated => ("the file ends before the picture does".to_owned(), "is the file complete?"),
        Fault::Damaged(what) => (what, "the file is damaged; save the picture again"),
        Fault::Unsupported(what) => (what, "convert the picture to PNG, JPEG, WebP, GIF or BMP"),
        Fault::TooLarge => ("beyond the cap".to_owned(), "scale the picture down first"),
        Fault::NoRoom => return canvas.room.refusal(file, canvas.width, canvas.height),
    };
    let cap = format!("cap {} MP, {MAX_SIDE} a side, {} MiB", MAX_PIXELS / 1_000_000, MAX_ENCODED_BYTES >> 20);
    RuntimeError::Picture { file: PathBuf::from(file), what: format!("format {format}; pixels {pixels}; {cap}: {problem}"), remedy }
}

/// Little-endian numbers at an offset; truncated when they are not there.
fn u16_le(bytes: &[u8], at: usize) -> Result<u16, Fault> {
    bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u16::from_le_bytes(*b)).ok_or(Fault::Truncated)
}

fn u32_le(bytes: &[u8], at: usize) -> Result<u32, Fault> {
    bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b)).ok_or(Fault::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> String {
        Picture::from_bytes(bytes, "x").unwrap_err().to_string()
    }

    #[test]
    fn foreign_formats_are_named() {
        for (bytes, name) in [
            (&b"<?xml version='1.0'?><svg xmlns='x'/>"[..], "SVG"),
            (b"  <svg/>", "SVG"),
            (b"<!DOCTYPE html><html>", "HTML"),
            (b"%PDF-1.7", "PDF"),
            (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
            (b"\0\0\0\x1cftypheic\0\0\0\0", "HEIC"),
            (b"II*\0\x08\0\0\0", "TIFF"),
            (b"hello", "unknown"),
            (b"", "none"),
        ] {
            let text = message(bytes);
            assert!(text.contains(&format!("format {name}")), "{text}");
            assert!(text.contains("pixels unknown; cap 100 MP"), "{text}");
        }
    }

    #[test]
    fn caps_are_checked_before_decoding() {
        let mut bmp = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
        bmp.extend(20_001u32.to_le_bytes());
        bmp.extend(1u32.to_le_bytes());
        bmp.extend([1, 0, 24, 0]);
        bmp.extend([0; 24]);
        let text = message(&bmp);
        assert!(text.contains("format BMP; pixels 20001 × 1; cap 100 MP, 20000 a side, 64 MiB: beyond the cap"), "{text}");
        assert!(message(&vec![0; (MAX_ENCODED_BYTES + 1) as usize]).contains("beyond the cap"));
    }

    #[test]
    fn pictures_keep_to_the_room_there_is() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let png = image::RgbImage::new(300, 200);
        png.write_to(file.as_file_mut(), ImageFormat::Png).unwrap();
        let mut room = Room { decoding: 480_000, keeping: 400_000 };
        assert_eq!(Picture::open_within(file.path(), &mut room).unwrap().width(), 300);
        assert_eq!(room.keeping, 220_000);
        Picture::open_within(file.path(), &mut room).unwrap();
        for mut small in [room, Room { decoding: 479_999, keeping: 400_000 }] {
            let error = Picture::open_within(file.path(), &mut small).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.kind(), sphinx_quant::ErrorKind::Budget);
            assert!(text.contains("300 × 200 takes 1 MiB") && text.contains("--memory"), "{text}");
        }
    }

    #[test]
    fn from_rgb_checks_sizes() {
        assert!(Picture::from_rgb(2, 1, vec![0; 6]).is_ok());
        assert!(Picture::from_rgb(2, 1, vec![0; 5]).is_err());
        assert!(Picture::from_rgb(0, 1, vec![]).is_err());
        assert!(Picture::from_rgb(20_001, 1, vec![0; 60_003]).is_err());
    }
}
