//! From a picture's file to 8-bit RGB, exactly as the model's training pipeline read it.
//!
//! The reference is Pillow's `Image.open(f).convert("RGB")`: alpha is dropped and the colour under it kept, palettes
//! lose their transparency, EXIF orientation and ICC profiles are ignored, an animation gives its first frame. PNG
//! and WebP bitstreams are read by the crates that do that well; JPEG, GIF and BMP are read here, because
//! agreeing with the reference to the last bit is what matters and no crate promises it.
//!
//! Everything is bounded before it is allocated: encoded bytes, sides, pixels. Decoding never holds more than 8 bytes
//! per pixel, decoders' buffers included.

mod bmp;
mod gif;
mod jpeg;
mod png;
mod webp;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

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

impl Picture {
    /// Reads and decodes a file.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] when it cannot be read; [`RuntimeError::Picture`] when it is no picture of a format read
    /// here (PNG, JPEG, WebP, GIF, BMP, told by content), damaged, cut short, or beyond the caps.
    pub fn open(path: &Path) -> Result<Picture> {
        let io = |source| RuntimeError::Io { file: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let mut bytes = Vec::new();
        file.take(MAX_ENCODED_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        decode(&bytes, path)
    }

    /// Decodes the bytes of a file; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`Picture::open`].
    pub fn from_bytes(bytes: &[u8], name: &str) -> Result<Picture> {
        decode(bytes, Path::new(name))
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
}

impl Fault {
    /// A contradiction in the file.
    fn damaged(what: impl Into<String>) -> Fault {
        Fault::Damaged(what.into())
    }
}

/// What a decoder fills: the size first, the pixels later.
#[derive(Default)]
struct Canvas {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Canvas {
    /// Notes the size and holds it against the caps; nothing is allocated.
    fn declare(&mut self, width: u32, height: u32) -> Result<(), Fault> {
        self.width = width as usize;
        self.height = height as usize;
        if width == 0 || height == 0 {
            return Err(Fault::damaged("a side of no pixels"));
        }
        if width > MAX_SIDE || height > MAX_SIDE || u64::from(width) * u64::from(height) > MAX_PIXELS {
            return Err(Fault::TooLarge);
        }
        Ok(())
    }

    /// Black pixels of the declared size.
    fn allocate(&mut self) {
        self.rgb = vec![0; self.width * self.height * 3];
    }

    /// The pixels of row `y`.
    fn row(&mut self, y: usize) -> &mut [u8] {
        let n = self.width * 3;
        &mut self.rgb[y * n..(y + 1) * n]
    }

    /// The row of the file's `y`th row, counted from the bottom or the top.
    fn row_from(&mut self, y: usize, bottom_up: bool) -> &mut [u8] {
        let y = if bottom_up { self.height - 1 - y } else { y };
        self.row(y)
    }

    /// Takes pixels of four bytes as its own, dropping each fourth byte, in place.
    fn take_rgba(&mut self, mut rgba: Vec<u8>) {
        let pixels = rgba.len() / 4;
        for i in 1..pixels {
            rgba.copy_within(4 * i..4 * i + 3, 3 * i);
        }
        rgba.truncate(pixels * 3);
        rgba.shrink_to_fit();
        self.rgb = rgba;
    }
}

type Decoder = fn(&[u8], &mut Canvas) -> Result<(), Fault>;

/// The format of `bytes`, by content, and who reads it.
fn sniff(bytes: &[u8]) -> (&'static str, Option<Decoder>) {
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if at(0, b"\x89PNG\r\n\x1a\n") {
        return ("PNG", Some(png::decode));
    }
    if at(0, b"\xff\xd8\xff") {
        return ("JPEG", Some(jpeg::decode));
    }
    if at(0, b"RIFF") && at(8, b"WEBP") {
        return ("WebP", Some(webp::decode));
    }
    if at(0, b"GIF87a") || at(0, b"GIF89a") {
        return ("GIF", Some(gif::decode));
    }
    if at(0, b"BM") && bmp::has_header(bytes) {
        return ("BMP", Some(bmp::decode));
    }
    (foreign(bytes), None)
}

/// The name of a format that is not read here.
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
    if at(0, b"II*\0") || at(0, b"MM\0*") || at(0, b"II+\0") || at(0, b"MM\0+") {
        return "TIFF";
    }
    for (magic, name) in [
        (&b"%PDF"[..], "PDF"),
        (b"8BPS", "PSD"),
        (b"\0\0\x01\0", "ICO"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"qoif", "QOI"),
        (b"\x76\x2f\x31\x01", "OpenEXR"),
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
fn decode(bytes: &[u8], file: &Path) -> Result<Picture> {
    let (format, decoder) = sniff(bytes);
    let mut canvas = Canvas::default();
    let outcome = match decoder {
        _ if bytes.len() as u64 > MAX_ENCODED_BYTES => Err(Fault::TooLarge),
        None => Err(Fault::Unsupported("not a format read here".into())),
        Some(decoder) => decoder(bytes, &mut canvas),
    };
    outcome.map_err(|fault| describe(fault, format, &canvas, file))?;
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

/// A palette of `[entries, 3]` bytes, padded with black to 256.
fn palette_of(rgb: &[u8]) -> [[u8; 3]; 256] {
    let mut palette = [[0; 3]; 256];
    for (entry, rgb) in palette.iter_mut().zip(rgb.as_chunks::<3>().0) {
        *entry = *rgb;
    }
    palette
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
    fn from_rgb_checks_sizes() {
        assert!(Picture::from_rgb(2, 1, vec![0; 6]).is_ok());
        assert!(Picture::from_rgb(2, 1, vec![0; 5]).is_err());
        assert!(Picture::from_rgb(0, 1, vec![]).is_err());
        assert!(Picture::from_rgb(20_001, 1, vec![0; 60_003]).is_err());
    }
}
