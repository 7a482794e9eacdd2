//! The tokenizer against recorded SentencePiece vectors and against Hugging Face's `tokenizers`.
//!
//! `fixtures/make_vocabulary.py` made the vocabularies.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde::Deserialize;
use sphinx_runtime::stream::TextStream;
use sphinx_runtime::tokenizer::{Kind, Tokenizer, Vocabulary};

/// LLaMA style: a space goes in front of every text.
const TINY: &str = include_str!("fixtures/tokenizer-tiny.json");
/// InternLM style: it does not.
const NO_PREFIX: &str = include_str!("fixtures/tokenizer-tiny-noprefix.json");
/// Small vocabularies with unused and user-defined pieces; `fixtures/make_odd_vocabularies.py` made them.
const ODD: &str = include_str!("fixtures/odd-vocabularies.json");

#[derive(Deserialize)]
struct Fixture {
    add_space_prefix: bool,
    bos: u32,
    eos: u32,
    unk: u32,
    pieces: String,
    scores: Vec<f32>,
    types: String,
    encode: Vec<Encoded>,
    decode: Vec<Decoded>,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[derive(Deserialize)]
struct Decoded {
    ids: Vec<u32>,
    decoded: String,
}

#[derive(Deserialize)]
struct Odd {
    bytes: bool,
    add_space_prefix: bool,
    pieces: Vec<(String, f32, i32)>,
    vectors: Vec<(String, Vec<u32>, String)>,
}

impl Odd {
    fn tokenizer(&self) -> Tokenizer {
        let mut all: Vec<(String, f32, i32)> = [("<unk>", 2), ("<s>", 3), ("</s>", 3)].map(|(p, ty)| (p.to_owned(), 0.0, ty)).into();
        all.extend((0..if self.bytes { 256 } else { 0 }).map(|b| (format!("<0x{b:02X}>"), 0.0, 6)));
        all.extend(self.pieces.iter().cloned());
        let pieces: Vec<String> = all.iter().map(|p| p.0.clone()).collect();
        let scores: Vec<f32> = all.iter().map(|p| p.1).collect();
        let types: Vec<i32> = all.iter().map(|p| p.2).collect();
        let add_space_prefix = self.add_space_prefix;
        let v = Vocabulary { pieces: &pieces, scores: &scores, types: &types, bos: 1, eos: 2, unk: 0, add_space_prefix, nul: None };
        Tokenizer::new(v).unwrap()
    }
}

fn load(json: &str) -> (Tokenizer, Fixture) {
    let f: Fixture = serde_json::from_str(json).unwrap();
    let pieces: Vec<String> = f.pieces.split('\n').map(Into::into).collect();
    let types: Vec<i32> = f.types.bytes().map(|b| i32::from(b - b'0')).collect();
    let (scores, add_space_prefix) = (&f.scores, f.add_space_prefix);
    let v = Vocabulary { pieces: &pieces, scores, types: &types, bos: f.bos, eos: f.eos, unk: f.unk, add_space_prefix, nul: None };
    (Tokenizer::new(v).unwrap(), f)
}

/// Words in ten scripts, digits, spaces and marks, in random company.
fn line(random: &mut Pcg64) -> String {
    const RANGES: [(u32, u32); 12] = [
        (0x61, 0x7A),       // Latin
        (0x391, 0x3C9),     // Greek
        (0x410, 0x44F),     // Cyrillic
        (0x5D0, 0x5EA),     // Hebrew
        (0x621, 0x64A),     // Arabic
        (0x905, 0x939),     // Devanagari
        (0xE01, 0xE2E),     // Thai
        (0x3041, 0x30FE),   // Kana
        (0xAC00, 0xAE00),   // Hangul
        (0x4E00, 0x5200),   // Han
        (0x1F600, 0x1F640), // emoji
        (0x21, 0x40),       // digits and marks
    ];
    const WHOLE: [&str; 12] =
        ["the red car", "### Human:", "\n", "  ", "\t", "\u{2581}", "<s>", "<0x0A>", "e\u{301}", "[0.120,0.250]", "table.", "\u{0}"];
    let mut text = String::new();
    for _ in 0..random.random_range(0..12) {
        if random.random_range(0..3) == 0 {
            text.push_str(WHOLE[random.random_range(0..WHOLE.len())]);
        } else {
            let (low, high) = RANGES[random.random_range(0..RANGES.len())];
            text.extend((0..random.random_range(1..9)).filter_map(|_| char::from_u32(random.random_range(low..=high))));
        }
        if random.random_range(0..2) == 0 {
            text.push(' ');
        }
    }
    text
}

#[test]
fn recorded_vectors() {
    for json in [TINY, NO_PREFIX] {
        let (tokenizer, fixture) = load(json);
        assert!(fixture.encode.len() > 30 && fixture.decode.len() > 5);
        for row in fixture.encode {
            assert_eq!(tokenizer.encode(&row.text), row.ids, "{:?}", row.text);
            assert_eq!(tokenizer.decode(&row.ids), row.decoded, "{:?}", row.text);
        }
        for row in fixture.decode {
            assert_eq!(tokenizer.decode(&row.ids), row.decoded, "{:?}", row.ids);
        }
    }
}

#[test]
fn unused_and_user_defined_pieces_as_sentencepiece_has_them() {
    let all: Vec<Odd> = serde_json::from_str(ODD).unwrap();
    let (mut with_unused, mut seen_user) = (0, 0);
    for odd in &all {
        let tokenizer = odd.tokenizer();
        for (text, ids, decoded) in &odd.vectors {
            assert_eq!(&tokenizer.encode(text), ids, "{text:?} with {:?}", odd.pieces);
            assert_eq!(&tokenizer.decode(ids), decoded, "{text:?}");
            assert!(ids.iter().all(|&id| tokenizer.kind(id) != Some(Kind::Unused)));
            with_unused += usize::from(odd.pieces.iter().any(|p| p.2 == 5 && text.replace(' ', "\u{2581}").contains(&p.0)));
            seen_user += ids.iter().filter(|&&id| tokenizer.kind(id) == Some(Kind::UserDefined)).count();
        }
    }
    assert!(all.len() > 20 && with_unused > 100 && seen_user > 100, "{with_unused} {seen_user}");
}

#[test]
fn what_comes_out_while_a_reply_grows_is_whole_characters() {
    for json in [TINY, NO_PREFIX] {
        let (tokenizer, _) = load(json);
        let mut random = Pcg64::seed_from_u64(41);
        for _ in 0..1000 {
            let text = line(&mut random).replace('\u{2581}', " ");
            let (mut stream, mut all) = (TextStream::new(&tokenizer), String::new());
            for id in tokenizer.encode(&text) {
                let mut shown = String::new();
                stream.push(id, &mut shown);
                assert!(!shown.contains('\u{FFFD}'), "{text:?}: half a character came out");
                all.push_str(&shown);
                assert!(text.starts_with(&all), "{text:?}: {all:?}");
            }
            let mut rest = String::new();
            stream.finish(&mut rest);
            assert_eq!((all.as_str(), rest.as_str()), (text.as_str(), ""));
        }
    }
}

/// As many pieces as InternLM2 has: it may take 15 ms to make them ready. What a debug build or a busy machine takes says
/// nothing, so the best of several counts, and debug builds have ten times as long.
#[test]
fn a_large_vocabulary_is_ready_soon() {
    const PIECES: usize = 92_544;
    let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>"].map(Into::into).into();
    pieces.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    pieces.extend((0..400).map(|i| format!("[UNUSED_TOKEN_{i}]")));
    let mut random = Pcg64::seed_from_u64(5);
    while pieces.len() < PIECES {
        let start = if random.random_range(0..2) == 0 { "\u{2581}" } else { "" };
        let low = [0x61, 0x61, 0x4E00, 0x410][random.random_range(0..4)];
        let body = (0..random.random_range(2..8)).filter_map(|_| char::from_u32(low + random.random_range(0..26)));
        pieces.push(start.chars().chain(body).collect());
    }
    let scores: Vec<f32> = (0..PIECES).map(|i| -(i as f32)).collect();
    let types: Vec<i32> = (0..PIECES)
        .map(|i| {
            if i == 0 {
                2
            } else if i < 3 {
                3
            } else if i < 259 {
                6
            } else if i < 659 {
                5
            } else {
                1
            }
        })
        .collect();
    let v = Vocabulary { pieces: &pieces, scores: &scores, types: &types, bos: 1, eos: 2, unk: 0, add_space_prefix: false, nul: Some(700) };
    let best = (0..7).map(|_| {
        let start = Instant::now();
        let tokenizer = Tokenizer::new(v).unwrap();
        assert_eq!(tokenizer.encode("\0"), [700]);
        start.elapsed()
    });
    let best = best.min().unwrap();
    println!("{PIECES} pieces in {best:?}");
    assert!(best < Duration::from_millis(if cfg!(debug_assertions) { 150 } else { 15 }), "{best:?}");
}

#[test]
fn hugging_face_agrees_in_ten_scripts() {
    for json in [TINY, NO_PREFIX] {
        let (tokenizer, _) = load(json);
        let witness = tokenizer.hugging_face().unwrap();
        let mut random = Pcg64::seed_from_u64(29);
        for _ in 0..2000 {
            let text = line(&mut random);
            let ids = tokenizer.encode(&text);
            assert_eq!(ids, witness.encode(text.as_str(), false).unwrap().get_ids(), "{text:?}");
            assert_eq!(tokenizer.decode(&ids), witness.decode(&ids, false).unwrap(), "{text:?}");
        }
    }
}

#[test]
fn segments_of_the_stop_text() {
    let (tiny, _) = load(TINY);
    let (no_prefix, _) = load(NO_PREFIX);
    for tokenizer in [&tiny, &no_prefix] {
        let (segment, joined) = (tokenizer.segment("\n###").unwrap(), tokenizer.joined("\n###").unwrap());
        assert!(segment.ends_with(&joined) && segment.len() == joined.len() + 1, "{segment:?} {joined:?}");
        let inside = tokenizer.encode("### Human: table\n###");
        assert!(inside.ends_with(&joined));
        assert_eq!(tokenizer.piece(segment[0]), Some("\u{2581}"));
    }
    assert_eq!(tiny.segment("  cat").unwrap(), tiny.encode("cat"));
    assert_eq!(no_prefix.segment("cat").unwrap(), no_prefix.encode(" cat"));
    assert_eq!(no_prefix.joined("cat").unwrap(), no_prefix.encode("cat"));
}

#[test]
fn typed_control_strings_stay_text() {
    let (tokenizer, _) = load(TINY);
    let ids = tokenizer.encode("<s></s><unk><0x0A>");
    assert!(ids.iter().all(|&id| !matches!(tokenizer.kind(id), Some(Kind::Control | Kind::Unknown))));
    assert_eq!(tokenizer.decode(&ids), "<s></s><unk><0x0A>");
    assert_eq!(tokenizer.encode_with_bos("a")[0], tokenizer.bos());
}

/// Every id at once, by the rules of SentencePiece's decoder.
fn decode_whole(t: &Tokenizer, ids: &[u32]) -> String {
    fn flush(bytes: &mut Vec<u8>, out: &mut String) {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let char_bytes = (1..=rest.len().min(4)).find(|&n| std::str::from_utf8(&rest[..n]).is_ok());
            out.push_str(char_bytes.map_or("\u{FFFD}", |n| std::str::from_utf8(&rest[..n]).unwrap()));
            rest = &rest[char_bytes.unwrap_or(1)..];
        }
        bytes.clear();
    }
    let (mut out, mut bytes, mut space_seen) = (String::new(), Vec::new(), false);
    for &id in ids {
        if let Kind::Byte(byte) = t.kind(id).unwrap() {
            bytes.push(byte);
            continue;
        }
        flush(&mut bytes, &mut out);
        match t.kind(id).unwrap() {
            Kind::Control => {}
            Kind::Unknown => out.push_str(" \u{2047} "),
            _ => {
                let piece = t.piece(id).unwrap();
                let first = out.is_empty() && !space_seen && t.add_space_prefix();
                let cut = first && piece.starts_with('\u{2581}');
                space_seen |= cut;
                out.push_str(&piece[if cut { 3 } else { 0 }..].replace('\u{2581}', " "));
            }
        }
    }
    flush(&mut bytes, &mut out);
    out
}

#[test]
fn streaming_equals_decoding_from_the_start() {
    for json in [TINY, NO_PREFIX] {
        let (tokenizer, _) = load(json);
        let mut random = Pcg64::seed_from_u64(7);
        for _ in 0..3000 {
            let ids: Vec<u32> = (0..random.random_range(0..40))
                .map(|_| match random.random_range(0..4) {
                    0 => random.random_range(0..tokenizer.len() as u32),
                    1 => [0, 1, 2, 707][random.random_range(0..4)],
                    _ => random.random_range(3 + 0x80..3 + 0x100), // bytes above ASCII
                })
                .collect();
            let mut stream = TextStream::new(&tokenizer);
            let mut shown = String::new();
            for (i, &id) in ids.iter().enumerate() {
                stream.push(id, &mut shown);
                assert!(decode_whole(&tokenizer, &ids[..=i]).starts_with(&shown), "{ids:?}");
            }
            stream.finish(&mut shown);
            assert_eq!(shown, decode_whole(&tokenizer, &ids), "{ids:?}");
            assert_eq!(shown, tokenizer.decode(&ids));
        }
    }
}

#[test]
fn a_megabyte_takes_no_quadratic_time() {
    let (tokenizer, _) = load(TINY);
    let mut random = Pcg64::seed_from_u64(3);
    let scripts: String = std::iter::repeat_with(|| line(&mut random)).take(20_000).collect();
    for text in ["a".repeat(1 << 20), "e\u{301}".repeat(1 << 19), " ".repeat(1 << 20), scripts] {
        let start = Instant::now();
        let ids = tokenizer.encode(&text);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?} for {} bytes", start.elapsed(), text.len());
        assert_eq!(tokenizer.decode(&ids), text.replace('\u{2581}', " "));
    }
}

/// The rule without any cleverness: join the best neighbours of the whole text until there are none.
fn join_naively(pieces: &[String], scores: &[f32], text: &str) -> Vec<u32> {
    let mut symbols: Vec<String> = text.replace(' ', "\u{2581}").chars().map(String::from).collect();
    let find = |symbol: &str| pieces.iter().rposition(|p| p == symbol);
    loop {
        let mut best: Option<(f32, usize)> = None;
        for i in 1..symbols.len() {
            let score = find(&symbols[i - 1..=i].concat()).map(|id| scores[id]);
            if let Some(score) = score.filter(|&s| best.is_none_or(|b| s > b.0)) {
                best = Some((score, i - 1));
            }
        }
        let Some((_, i)) = best else { break };
        let right = symbols.remove(i + 1);
        symbols[i].push_str(&right);
    }
    symbols.iter().map(|s| find(s).unwrap_or(0) as u32).collect()
}

proptest! {
    #[test]
    fn any_vocabulary_joins_as_the_rule_says(
        pieces in proptest::collection::vec(("[ab \u{2581}é]{1,4}", 0..5i32), 1..30),
        text in "[ab é]{0,40}",
    ) {
        // Unknown, then every character, then the drawn pieces.
        let mut all: Vec<String> = ["<unk>", "a", "b", "\u{2581}", "é"].map(Into::into).into();
        let mut scores = vec![-9.0; 5];
        for (piece, score) in pieces {
            all.push(piece);
            scores.push(score as f32);
        }
        let mut types = vec![1; all.len()];
        types[0] = 2;
        let v = Vocabulary { pieces: &all, scores: &scores, types: &types, bos: 0, eos: 0, unk: 0, add_space_prefix: false, nul: None };
        let tokenizer = Tokenizer::new(v).unwrap();
        prop_assert_eq!(tokenizer.encode(&text), join_naively(&all, &scores, &text));
    }

    #[test]
    fn any_text_comes_back(text in "\\PC*", control in any::<char>()) {
        let (tokenizer, _) = load(TINY);
        let text = format!("{text}{control}").replace('\u{2581}', " ");
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text)), text);
    }
}
