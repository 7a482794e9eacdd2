//! Frames of a film: evenly spaced pictures out of a folder, an animated GIF or an animated WebP.
//!
//! The released models were given one picture; several at once, film frames or not, are an addition of this project. Other
//! containers (MP4 and the like) are left to an external decoder that writes a folder of pictures.

use std::io::{BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use image::codecs::gif::GifDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, Frame, ImageDecoder, ImageFormat, ImageResult, Limits};

use crate::vision::preprocess::MAX_ENCODED_BYTES;
use crate::vision::{Picture, Room};
use crate::{Result, RuntimeError};

/// Most pictures of a folder, and most frames of an animation.
pub const MAX_FRAMES: usize = 100_000;
/// Most pixels of an animation's frame; two of them are held while it is decoded.
pub const MAX_FRAME_PIXELS: u64 = 16_000_000;
/// Most pixels of all frames together: what is decoded to find the wanted ones.
const MAX_FILM_PIXELS: u64 = 20_000_000_000;
/// What the name of a picture ends in, in a folder of frames.
const ENDINGS: &[&str] = &["png", "jpg", "jpeg", "webp", "gif", "bmp"];

const SPLIT: &str = "have an external decoder write its frames into a folder, and give that";

/// A film that has been looked at: how many frames there are, and where.
#[derive(Debug)]
pub struct Film {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Pictures in the order of their names.
    Folder(Vec<PathBuf>),
    Animation {
        bytes: Vec<u8>,
        format: ImageFormat,
        frames: usize,
    },
}

impl Film {
    /// Opens a folder of pictures (in the order of their names, numbers in them by value) or an animated GIF or WebP, and
    /// counts its frames.
    ///
    /// # Errors
    /// [`RuntimeError::Io`] when it cannot be read; [`RuntimeError::Picture`] for a folder without pictures, another format,
    /// a damaged animation, or one beyond the caps.
    pub fn open(path: &Path) -> Result<Film> {
        let io = |source| RuntimeError::Io { file: path.to_owned(), source };
        let about = std::fs::metadata(path).map_err(io)?;
        if about.is_dir() {
            return Film::folder(path);
        }
        if !about.is_file() {
            return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let mut bytes = Vec::new();
        std::fs::File::open(path).map_err(io)?.take(MAX_ENCODED_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MAX_ENCODED_BYTES {
            return Err(bad(path, format!("longer than {} MiB", MAX_ENCODED_BYTES >> 20), SPLIT));
        }
        let format = match image::guess_format(&bytes) {
            Ok(format @ (ImageFormat::Gif | ImageFormat::WebP)) => format,
            _ => return Err(bad(path, "no folder, animated GIF or animated WebP".into(), SPLIT)),
        };
        let frames = each(path, &bytes, format, &mut |_, _| true)?;
        Ok(Film { path: path.to_owned(), kind: Kind::Animation { bytes, format, frames } })
    }

    fn folder(path: &Path) -> Result<Film> {
        let io = |source| RuntimeError::Io { file: path.to_owned(), source };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(io)? {
            let file = entry.map_err(io)?.path();
            let ending = file.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
            if ending.is_some_and(|e| ENDINGS.contains(&e.as_str())) && file.is_file() {
                files.push(file);
            }
            if files.len() > MAX_FRAMES {
                return Err(bad(path, format!("more than {MAX_FRAMES} pictures"), "give a folder of fewer"));
            }
        }
        if files.is_empty() {
            return Err(bad(path, "no picture in the folder".into(), "its frames are to end in .png, .jpg, .webp, .gif or .bmp"));
        }
        files.sort_by_cached_key(|f| by_number(&f.file_name().unwrap_or_default().to_string_lossy()));
        Ok(Film { path: path.to_owned(), kind: Kind::Folder(files) })
    }

    /// How many frames there are.
    pub fn frames(&self) -> usize {
        match &self.kind {
            Kind::Folder(files) => files.len(),
            Kind::Animation { frames, .. } => *frames,
        }
    }

    /// `count` frames, evenly spaced: the middle ones of as many equal stretches; all when there are fewer.
    ///
    /// # Errors
    /// As [`Picture::open_within`] for a picture of a folder; [`RuntimeError::Budget`] when frames have no room.
    pub fn pick(&self, count: usize, room: &mut Room) -> Result<Vec<Picture>> {
        let wanted = evenly(count, self.frames());
        match &self.kind {
            Kind::Folder(files) => wanted.iter().map(|&i| Picture::open_within(&files[i], room)).collect(),
            Kind::Animation { bytes, format, .. } => {
                let mut pictures = Vec::with_capacity(wanted.len());
                let mut failed = None;
                each(&self.path, bytes, *format, &mut |index, frame| {
                    if wanted.contains(&index) {
                        let buffer = frame.into_buffer();
                        let (w, h) = (buffer.width() as usize, buffer.height() as usize);
                        let taken = match room.holds((w * h) as u64) {
                            true => Picture::from_rgb(w, h, buffer.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect()),
                            false => Err(room.refusal(&self.path, w, h)),
                        };
                        match taken {
                            Ok(picture) => {
                                room.keep(&picture);
                                pictures.push(picture);
                            }
                            Err(e) => failed = Some(e),
                        }
                    }
                    failed.is_none() && wanted.last().is_some_and(|&last| index < last)
                })?;
                failed.map_or(Ok(pictures), Err)
            }
        }
    }
}

/// The middle frames of `count` equal stretches of `total`; all of them when there are no more.
fn evenly(count: usize, total: usize) -> Vec<usize> {
    if count >= total {
        return (0..total).collect();
    }
    (0..count).map(|i| (2 * i + 1) * total / (2 * count)).collect()
}

/// A key that puts `frame2` before `frame10`: runs of digits count by value.
fn by_number(name: &str) -> Vec<(String, u128, String)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (before, after) = rest.split_at(text);
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (number, after) = after.split_at(digits);
        key.push((before.to_owned(), number.parse().unwrap_or(u128::MAX), number.to_owned()));
        rest = after;
    }
    key
}

/// Hands the composed frames of an animation to `take` until it has enough; returns how many it saw.
fn each(path: &Path, bytes: &[u8], format: ImageFormat, take: &mut dyn FnMut(usize, Frame) -> bool) -> Result<usize> {
    let damaged = |e: image::ImageError| bad(path, e.to_string(), "the file is damaged or incomplete; get it again");
    let reader = || BufReader::new(Cursor::new(bytes));
    let within = |(w, h): (u32, u32)| match u64::from(w) * u64::from(h) {
        pixels if pixels > MAX_FRAME_PIXELS => {
            Err(bad(path, format!("frames of {w} × {h} pixels; cap {} MP", MAX_FRAME_PIXELS / 1_000_000), SPLIT))
        }
        _ => Ok((w, h)),
    };
    let mut limits = Limits::default();
    limits.max_alloc = Some(16 * MAX_FRAME_PIXELS);
    let (size, frames): ((u32, u32), Box<dyn Iterator<Item = ImageResult<Frame>>>) = if format == ImageFormat::Gif {
        let mut decoder = GifDecoder::new(reader()).map_err(damaged)?;
        let size = within(decoder.dimensions())?;
        decoder.set_limits(limits).map_err(damaged)?;
        (size, Box::new(decoder.into_frames()))
    } else {
        let mut decoder = WebPDecoder::new(reader()).map_err(damaged)?;
        let size = within(decoder.dimensions())?;
        decoder.set_limits(limits).map_err(damaged)?;
        (size, Box::new(decoder.into_frames()))
    };
    let pixels = u64::from(size.0) * u64::from(size.1);
    let mut seen = 0;
    for frame in frames {
        let frame = frame.map_err(damaged)?;
        seen += 1;
        if seen > MAX_FRAMES || seen as u64 * pixels > MAX_FILM_PIXELS {
            return Err(bad(path, format!("more than {} frames of {} × {} pixels", seen - 1, size.0, size.1), SPLIT));
        }
        if !take(seen - 1, frame) {
            break;
        }
    }
    if seen == 0 {
        return Err(bad(path, "no frame in it".into(), "give an animation, or a picture with --image"));
    }
    Ok(seen)
}

fn bad(path: &Path, what: String, remedy: &'static str) -> RuntimeError {
    RuntimeError::Picture { file: path.to_owned(), what, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::gif::GifEncoder;
    use image::{Delay, Rgba, RgbaImage};

    #[test]
    fn frames_are_evenly_spaced() {
        assert_eq!(evenly(1, 9), [4]);
        assert_eq!(evenly(3, 9), [1, 4, 7]);
        assert_eq!(evenly(4, 10), [1, 3, 6, 8]);
        assert_eq!(evenly(5, 3), [0, 1, 2]);
        for (n, total) in [(7, 8), (99, 100), (2, 3)] {
            let picked = evenly(n, total);
            assert!(picked.len() == n && picked.is_sorted_by(|a, b| a < b) && picked[n - 1] < total, "{picked:?}");
        }
    }

    /// A film of `n` frames, the red of a frame being 20 times its number.
    fn gif(n: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = GifEncoder::new(&mut bytes);
        for i in 0..n {
            let frame = RgbaImage::from_pixel(6, 4, Rgba([20 * i, 0, 40, 255]));
            encoder.encode_frame(Frame::from_parts(frame, 0, 0, Delay::from_numer_denom_ms(100, 1))).unwrap();
        }
        drop(encoder);
        bytes
    }

    fn reds(pictures: &[Picture]) -> Vec<u8> {
        pictures.iter().map(|p| p.rgb()[0]).collect()
    }

    #[test]
    fn an_animation_gives_the_frames_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("film.gif");
        std::fs::write(&path, gif(9)).unwrap();
        let film = Film::open(&path).unwrap();
        assert_eq!(film.frames(), 9);
        let three = film.pick(3, &mut { Room::UNLIMITED }).unwrap();
        assert_eq!((three[0].width(), three[0].height()), (6, 4));
        assert_eq!(reds(&three), [20, 80, 140]);
        assert_eq!(film.pick(20, &mut { Room::UNLIMITED }).unwrap().len(), 9);
        let room = Room { decoding: u64::MAX, keeping: 3 * 3 * 6 * 4 };
        assert_eq!(film.pick(3, &mut { room }).unwrap().len(), 3);
        assert!(film.pick(4, &mut { room }).unwrap_err().to_string().contains("6 × 4"));
    }

    #[test]
    fn a_folder_goes_by_numbers() {
        let folder = tempfile::tempdir().unwrap();
        for i in [1u8, 2, 10, 9] {
            RgbaImage::from_pixel(2, 2, Rgba([i, 0, 0, 255])).save(folder.path().join(format!("frame{i}.png"))).unwrap();
        }
        std::fs::write(folder.path().join("notes.txt"), "no picture").unwrap();
        let film = Film::open(folder.path()).unwrap();
        assert_eq!(reds(&film.pick(4, &mut { Room::UNLIMITED }).unwrap()), [1, 2, 9, 10]);
        assert_eq!(reds(&film.pick(2, &mut { Room::UNLIMITED }).unwrap()), [2, 10]);
    }

    #[test]
    fn what_is_no_film_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |name: &str, bytes: &[u8], word: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let e = Film::open(&path).unwrap_err();
            assert!(e.kind() == sphinx_quant::ErrorKind::Invalid && e.to_string().contains(word), "{name}: {e}");
        };
        let empty = tempfile::tempdir().unwrap();
        assert!(Film::open(empty.path()).unwrap_err().to_string().contains("no picture in the folder"));
        assert_eq!(Film::open(&folder.path().join("missing")).unwrap_err().kind(), sphinx_quant::ErrorKind::Io);
        refused("film.mp4", b"\0\0\0\x18ftypmp42", "external decoder");
        refused("text.gif", b"hello", "external decoder");
        let film = gif(5);
        refused("cut.gif", &film[..film.len() / 2], "damaged");
        let mut wide = film.clone();
        wide[6..10].copy_from_slice(&[0xff; 4]); // 65,535 × 65,535
        refused("wide.gif", &wide, "cap 16 MP");
    }
}
