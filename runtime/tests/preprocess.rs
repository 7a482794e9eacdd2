//! Decoding, padding and resizing agree with Pillow to the bit; hostile files are refused without a panic.

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

#[test]
fn every_kind_of_picture_as_pillow_reads_it() {
    let expected = json(&fixtures().join("expected.json"));
    let pictures = expected["pictures"].as_object().unwrap();
    assert!(pictures.len() > 70);
    let mut wrong = Vec::new();
    for (name, want) in pictures {
        let picture = match Picture::open(&fixtures().join(name)) {
            Ok(picture) => picture,
            Err(e) => {
                wrong.push(format!("{name}: {e}"));
                continue;
            }
        };
        assert_eq!(
            (want["width"].as_u64(), want["height"].as_u64()),
            (Some(picture.width() as u64), Some(picture.height() as u64)),
            "{name}"
        );
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
        let picture = Picture::open(&folder.join(name)).unwrap();
        assert_eq!(want["rgb_sha256"], hex(picture.rgb()), "{name}");
        if let Some(decoded) = want["decoded_png"].as_str() {
            assert_eq!(picture, Picture::open(&folder.join(decoded)).unwrap(), "{name}");
        }
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
        ("GIF", patched("still.gif", 6, &[0x21, 0x4e, 1, 0]), "20001 × 23"),
        ("WebP", patched("lossless.webp", 21, &[0xff, 0xff, 0xff, 0x0f]), "16384 × 16384"),
        ("BMP", patched("rgb.bmp", 18, &[0, 0, 0, 0x80]), "2147483648 × 9"),
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
    assert!(Picture::from_bytes(&file, "x").unwrap_err().to_string().contains("without its Huffman tables"));
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
