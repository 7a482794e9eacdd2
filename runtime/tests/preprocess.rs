//! Decoding (JPEG within a level or two), padding and resizing agree with Pillow to the bit; hostile files are refused
//! without a panic.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sphinx_quant::ErrorKind;
use sphinx_runtime::vision::Picture;
use sphinx_runtime::vision::resize::{Anchor, normalise, pad_and_resize};

const PAD: [u8; 3] = [122, 116, 104];
const MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f32; 3] = [0.26862954, 0.2613026, 0.2757771];

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Kinds that Pillow reads and that are refused here.
const REFUSED: [(&str, &str); 1] = [("no_palette.gif", "no color table")];

/// Largest and mean absolute difference of two pictures of one size.
fn difference(a: &Picture, b: &Picture) -> (u8, f64) {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    let each = || a.rgb().iter().zip(b.rgb()).map(|(a, b)| a.abs_diff(*b));
    (each().max().unwrap(), each().map(f64::from).sum::<f64>() / a.rgb().len() as f64)
}

#[test]
fn every_kind_of_picture_as_pillow_reads_it() {
    let expected = json(&fixtures().join("expected.json"));
    let pictures = expected["pictures"].as_object().unwrap();
    assert!(pictures.len() > 70);
    let mut wrong = Vec::new();
    for (name, want) in pictures {
        let mut picture = match (Picture::open(&fixtures().join(name)), REFUSED.iter().find(|r| r.0 == name)) {
            (Ok(picture), None) => picture,
            (Err(e), Some((_, why))) if e.to_string().contains(why) => continue,
            (outcome, _) => {
                wrong.push(format!("{name}: {outcome:?}"));
                continue;
            }
        };
        assert_eq!(
            (want["width"].as_u64(), want["height"].as_u64()),
            (Some(picture.width() as u64), Some(picture.height() as u64)),
            "{name}"
        );
        if name.ends_with(".jpg") {
            // Decoders of JPEG differ by small amounts.
            let decoded = Picture::open(&fixtures().join(format!("decoded/{name}.png"))).unwrap();
            let (largest, mean) = difference(&picture, &decoded);
            // Five pixels by three with chroma halved both ways are nothing but edges.
            let (largest_allowed, mean_allowed) = if name == "odd2.jpg" { (8, 4.0) } else { (3, 0.5) };
            if largest > largest_allowed || mean > mean_allowed {
                wrong.push(format!("{name}: differs by {largest}, {mean:.3} in the mean"));
            }
            picture = decoded;
        }
        if want["rgb"] != hex(picture.rgb()) {
            wrong.push(format!("{name}: pixels"));
            continue;
        }
        for side in [24, 64] {
            let square = pad_and_resize(&picture, side, PAD, Anchor::Centre);
            if want[side.to_string()] != hex(&square.rgb) {
                wrong.push(format!("{name}: resized to {side}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The shared test images; `None` beside a clone that lacks them.
fn shared() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/oracle/images");
    if !folder.exists() {
        eprintln!("skipped: no {}", folder.display());
        return None;
    }
    Some(folder)
}

#[test]
fn shared_images_at_every_size() {
    let Some(folder) = shared() else { return };
    let expected = json(&folder.join("expected.json"));
    let mut checked = 0;
    for (name, want) in expected["images"].as_object().unwrap() {
        let mut picture = Picture::open(&folder.join(name)).unwrap();
        if let Some(decoded) = want["decoded_png"].as_str() {
            let decoded = Picture::open(&folder.join(decoded)).unwrap();
            let (largest, mean) = difference(&picture, &decoded);
            // More at the edges of chroma that is halved both ways.
            let allowed = if ["photo_420.jpg", "exif_orient6.jpg"].contains(&name.as_str()) { 6 } else { 3 };
            assert!(largest <= allowed && mean <= 0.5, "{name}: differs by {largest}, {mean:.3} in the mean");
            picture = decoded;
        }
        assert_eq!(want["rgb_sha256"], hex(picture.rgb()), "{name}");
        for (side, want) in want["sizes"].as_object().unwrap() {
            let square = pad_and_resize(&picture, side.parse().unwrap(), PAD, Anchor::Centre);
            assert_eq!(want["u8_hwc_sha256"], hex(&square.rgb), "{name} at {side}");
            let planes: Vec<u8> = normalise(&square, MEAN, STD).iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(want["f32_chw_le_sha256"], hex(&planes), "{name} at {side}");
            checked += 1;
        }
    }
    assert_eq!(checked, 70);
}

/// One small picture of every format.
const ONE_EACH: [&str; 16] = [
    "rgb.png",
    "interlaced16.png",
    "animated.png",
    "palette_missing.png",
    "420_restart.jpg",
    "420_progressive.jpg",
    "cmyk.jpg",
    "lossless.webp",
    "lossless_alpha.webp",
    "animated.webp",
    "still.gif",
    "part_transparent.gif",
    "rgb.bmp",
    "rle8.bmp",
    "rle4.bmp",
    "old.bmp",
];

#[test]
fn a_cut_file_is_refused_or_whole() {
    for name in ONE_EACH {
        let bytes = std::fs::read(fixtures().join(name)).unwrap();
        let whole = Picture::from_bytes(&bytes, name).unwrap();
        let mut refused = 0;
        for end in 0..bytes.len() {
            match Picture::from_bytes(&bytes[..end], name) {
                // What is cut may lie behind the pixels.
                Ok(picture) => assert_eq!(picture, whole, "{name} cut to {end}"),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Invalid, "{name} cut to {end}");
                    let text = e.to_string();
                    assert!(text.contains("format ") && text.contains("; pixels ") && text.contains("; cap "), "{text}");
                    refused += 1;
                }
            }
        }
        // A first frame may end long before an animation does.
        assert!(refused * 5 > bytes.len() * 2, "{name}: {refused} of {}", bytes.len());
    }
}

#[test]
fn files_that_are_not_there() {
    let error = Picture::open(&fixtures().join("none.png")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(Picture::open(&fixtures()).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn a_wrong_extension_does_not_matter() {
    let bytes = std::fs::read(fixtures().join("444.jpg")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("picture.png");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(Picture::open(&path).unwrap(), Picture::from_bytes(&bytes, "x").unwrap());
}

/// Declared sizes beyond the caps, in a few bytes of each format.
#[test]
fn bombs_are_refused_by_their_headers() {
    let patched = |name: &str, at: usize, bytes: &[u8]| {
        let mut file = std::fs::read(fixtures().join(name)).unwrap();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let jpeg = std::fs::read(fixtures().join("444.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    let mut png = patched("rgb.png", 16, &[0, 1, 0x11, 0x70, 0, 0, 0, 9]);
    let crc = crc32(&png[12..29]).to_be_bytes();
    png[29..33].copy_from_slice(&crc);
    let cases = [
        ("PNG", png, "70000 × 9"),
        ("JPEG", patched("444.jpg", frame + 5, &[0xff, 0xff, 0xff, 0xff]), "65535 × 65535"),
        ("GIF", patched("still.gif", 6, &[0x21, 0x4e, 1, 0]), "20001 × 1"),
        ("WebP", patched("lossless.webp", 21, &[0xff, 0xff, 0xff, 0x0f]), "16384 × 16384"),
        ("BMP", patched("rgb.bmp", 18, &[0x21, 0x4e, 0, 0]), "20001 × 9"),
        ("BMP", patched("rgb.bmp", 18, &[0, 0, 0, 0x80]), "unknown"),
    ];
    for (format, bytes, pixels) in cases {
        let text = Picture::from_bytes(&bytes, "bomb").unwrap_err().to_string();
        assert!(text.starts_with(&format!("bomb: format {format}; pixels {pixels}; cap 100 MP")), "{text}");
    }
}

/// CRC-32 as PNG has it.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &b| (0..8).fold(crc ^ u32::from(b), step))
}

#[test]
fn a_scan_may_name_a_table_that_it_does_not_need() {
    let mut file = std::fs::read(fixtures().join("grey_progressive.jpg")).unwrap();
    let whole = Picture::from_bytes(&file, "x").unwrap();
    let first = file.windows(2).position(|w| w == [0xff, 0xda]).unwrap();
    assert_eq!(file[first + 4..first + 7], [1, 1, 0], "one component, tables 0 and 0");
    file[first + 6] |= 13;
    assert_eq!(Picture::from_bytes(&file, "x").unwrap(), whole);
    file[first + 6] = 13 << 4;
    assert_eq!(Picture::from_bytes(&file, "x").unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn scans_are_counted() {
    // A refinement scan again and again: each reads little and visits every block.
    let file = std::fs::read(fixtures().join("grey_progressive.jpg")).unwrap();
    let end = file.len() - 2;
    let last = file.windows(2).rposition(|w| w == [0xff, 0xda]).unwrap();
    let mut bomb = file[..end].to_vec();
    for _ in 0..300 {
        bomb.extend_from_slice(&file[last..end]);
    }
    bomb.extend_from_slice(&file[end..]);
    let text = Picture::from_bytes(&bomb, "x").unwrap_err().to_string();
    assert!(text.contains("more than 200 scans"), "{text}");
}

/// A JPEG of four inks whose blocks are flat: `[blocks, 4]` levels as stored, `columns` blocks a row.
fn flat_cmyk(levels: &[[u8; 4]], columns: usize) -> Vec<u8> {
    let side = |blocks: usize| (blocks as u16 * 8).to_be_bytes();
    let mut file = b"\xff\xd8\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0\xff\xdb\0\x43\0".to_vec();
    file.extend([1; 64]);
    file.extend(b"\xff\xc0\0\x14\x08");
    file.extend(side(levels.len() / columns));
    file.extend(side(columns));
    file.extend(b"\x04\x01\x11\0\x02\x11\0\x03\x11\0\x04\x11\0");
    // Codes of four bits for the sizes 0 to 11 of a difference, and of one bit for the end of a block.
    file.extend(b"\xff\xc4\0\x1f\0\0\0\0\x0c\0\0\0\0\0\0\0\0\0\0\0\0");
    file.extend(0..12);
    file.extend(b"\xff\xc4\0\x14\x10\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    file.extend(b"\xff\xda\0\x0e\x04\x01\0\x02\0\x03\0\x04\0\0\x3f\0");
    let (mut word, mut have, mut before) = (0u64, 0, [0; 4]);
    let mut put = |value: i32, bits: u32| {
        word = word << bits | value as u64;
        have += bits;
        while have >= 8 {
            have -= 8;
            let byte = (word >> have) as u8;
            file.push(byte);
            if byte == 0xff {
                file.push(0);
            }
        }
    };
    for block in levels {
        for (before, level) in before.iter_mut().zip(block) {
            let difference = 8 * (i32::from(*level) - 128) - *before;
            *before += difference;
            let bits = 32 - difference.unsigned_abs().leading_zeros();
            put(bits as i32, 4);
            put(if difference < 0 { difference + (1 << bits) - 1 } else { difference }, bits);
            put(0, 1);
        }
    }
    put(0x7f, 7);
    file.extend(b"\xff\xd9");
    file
}

#[test]
fn inks_over_all_pairs() {
    // Each ink over each black, in blocks; they are stored inverted.
    let pairs: Vec<[u8; 2]> = (0..=255).flat_map(|ink| (0..=255).map(move |k| [ink, k])).collect();
    let stored: Vec<[u8; 4]> = pairs.iter().map(|&[ink, k]| [255 - ink, ink, 255, 255 - k]).collect();
    let picture = Picture::from_bytes(&flat_cmyk(&stored, 256), "x").unwrap();
    let mul_div_255 = |a: u8, b: u8| {
        let t = u32::from(a) * u32::from(b) + 128;
        (((t >> 8) + t) >> 8) as u8
    };
    for (i, &[ink, k]) in pairs.iter().enumerate() {
        let light = 255 - k;
        let want = [ink, 255 - ink, 0].map(|ink| light.saturating_sub(mul_div_255(ink, light)));
        let pixel = (i / 256 * 8 * picture.width() + i % 256 * 8) * 3;
        assert_eq!(picture.rgb()[pixel..pixel + 3], want, "{ink} {k}");
    }
}

/// What this decoder would read otherwise than the reference is refused.
#[test]
fn jpegs_out_of_the_ordinary_are_refused() {
    let patched = |name: &str, what: &[u8], skip: usize, to: u8| {
        let mut file = std::fs::read(fixtures().join(name)).unwrap();
        let at = file.windows(what.len()).position(|w| w == what).unwrap();
        file[at + skip] = to;
        Picture::from_bytes(&file, "x").unwrap_err().to_string()
    };
    let frame = [0xff, 0xc0];
    let text = patched("444.jpg", &frame, 14, 0x22);
    assert!(text.contains("sampling factors"), "{text}");
    let text = patched("cmyk.jpg", b"Adobe", 11, 1);
    assert!(text.contains("marked in an unusual way"), "{text}");
    let text = patched("444.jpg", &frame, 4, 12);
    assert!(text.contains("12 bits per sample"), "{text}");
    let text = patched("444.jpg", &frame, 1, 0xc9);
    assert!(text.contains("arithmetic coding"), "{text}");
    // Four inks kept as 16-bit numbers until the last scan take 11 bytes per pixel: 5000 × 4000 would be 209 MiB, and
    // 5000 × 4200 is more than 8 bytes per pixel and more than is always allowed.
    let mut file = std::fs::read(fixtures().join("cmyk_progressive.jpg")).unwrap();
    let at = file.windows(2).position(|w| w == [0xff, 0xc2]).unwrap();
    file[at + 5..at + 9].copy_from_slice(&[0x10, 0x68, 0x13, 0x88]);
    let text = Picture::from_bytes(&file, "x").unwrap_err().to_string();
    assert!(text.contains("pixels 5000 × 4200") && text.contains("220 MiB to decode; save it as a baseline JPEG"), "{text}");
}

#[test]
fn metadata_is_bounded() {
    let jpeg = std::fs::read(fixtures().join("444.jpg")).unwrap();
    let comments = [&jpeg[..2], &b"\xff\xfe\0\x02".repeat(5000), &jpeg[2..]].concat();
    let text = Picture::from_bytes(&comments, "x").unwrap_err().to_string();
    assert!(text.contains("more than 4096 segments"), "{text}");
    let png = std::fs::read(fixtures().join("rgb.png")).unwrap();
    let mut chunk = b"\0\0\0\x03tEXtx\0y".to_vec();
    let crc = crc32(&chunk[4..]).to_be_bytes();
    chunk.extend(crc);
    let few = [&png[..33], &chunk.repeat(50), &png[33..]].concat();
    assert_eq!(Picture::from_bytes(&few, "x").unwrap(), Picture::from_bytes(&png, "x").unwrap());
    let many = [&png[..33], &chunk.repeat(5000), &png[33..]].concat();
    let text = Picture::from_bytes(&many, "x").unwrap_err().to_string();
    assert!(text.contains("more than 4096 text chunks"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_never_panic(which in 0..ONE_EACH.len(), hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = std::fs::read(fixtures().join(ONE_EACH[which])).unwrap();
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(picture) = Picture::from_bytes(&bytes, "x") {
            prop_assert_eq!(picture.rgb().len(), picture.width() * picture.height() * 3);
        }
    }

    #[test]
    fn random_bytes_never_panic(magic in 0..6usize, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let start: &[u8] = [&b"\x89PNG\r\n\x1a\n"[..], b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"GIF89a", b"BM", b""][magic];
        let _ = Picture::from_bytes(&[start, &bytes].concat(), "x");
    }
}
