//! What is promised about vocabularies: the ids of a tiny model with fillers and a NUL piece, and what a Hugging Face directory adds.

use std::path::Path;

use serde_json::{Map, Value, json};
use sphinx_convert::tokenizer::{Kind, Piece, Tokenizer, encode_sentencepiece};
use sphinx_quant::ErrorKind;
use tempfile::TempDir;

/// Pieces before the fillers: unknown, BOS, EOS, 256 bytes, NUL, three of text.
const PLAIN: usize = 3 + 256 + 1 + 3;
const NUL: u32 = 3 + 256;
const FILLERS: usize = 4;
const COUNT: usize = PLAIN + FILLERS;

/// A vocabulary as InternLM2 has it, in small.
fn intern() -> Tokenizer {
    let piece = |text: &str, score: f32, kind: Kind| Piece { text: text.into(), score, kind };
    let mut pieces = vec![piece("<unk>", 0.0, Kind::Unknown), piece("<s>", 0.0, Kind::Control), piece("</s>", 0.0, Kind::Control)];
    pieces.extend((0..256).map(|b| piece(&format!("<0x{b:02X}>"), 0.0, Kind::Byte)));
    pieces.extend([piece("\0", -1.0, Kind::Normal), piece("▁a", -2.0, Kind::Normal), piece("▁", -3.0, Kind::Normal)]);
    pieces.push(piece("a", -4.0, Kind::Normal));
    pieces.extend((0..FILLERS).map(|i| piece(&format!("[UNUSED_TOKEN_{i}]"), -5.0 - i as f32, Kind::Normal)));
    Tokenizer { pieces, unk: 0, bos: 1, eos: 2, add_space_prefix: false }
}

/// A directory with that model and these files beside it.
fn folder(files: &[(&str, Value)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.model"), encode_sentencepiece(&intern())).unwrap();
    for (name, value) in files {
        std::fs::write(dir.path().join(name), value.to_string()).unwrap();
    }
    dir
}

fn read(dir: &Path, intern: bool, rows: usize, config: Value) -> (sphinx_convert::Result<Tokenizer>, Vec<String>) {
    let Value::Object(config) = config else { panic!() };
    let mut notes = Vec::new();
    (Tokenizer::read_hub(dir, &config, intern, rows, &mut notes), notes)
}

/// The pieces that differ from the model file's, by id.
fn changed(t: &Tokenizer) -> Vec<(usize, &str, Kind)> {
    let old = Tokenizer::read_hub(folder(&[]).path(), &Map::new(), true, COUNT, &mut vec![]).unwrap();
    let new = |(id, p): &(usize, &Piece)| old.pieces.get(*id) != Some(*p);
    t.pieces.iter().enumerate().filter(new).map(|(id, p)| (id, p.text.as_str(), p.kind)).collect()
}

#[test]
fn fillers_are_unused_and_nul_stands_under_another_name() {
    let dir = folder(&[]);
    let t = Tokenizer::read(&dir.path().join("tokenizer.model")).unwrap();
    assert_eq!((t.pieces.len(), t.nul_piece(), t.add_space_prefix), (COUNT, Some(NUL), false));
    assert!(t.pieces[PLAIN..].iter().all(|p| p.kind == Kind::Unused));
    assert_eq!((t.texts()[NUL as usize].as_str(), t.pieces[NUL as usize].kind), ("🐉", Kind::Normal));
    let (hub, notes) = read(dir.path(), true, COUNT, json!({"bos_token_id": 1, "eos_token_id": 2}));
    assert_eq!((hub.unwrap(), notes), (t, vec![]));
}

#[test]
fn a_chat_model_renames_fillers_and_ends_with_its_mark() {
    let decoder = json!({
        "0": {"content": "<unk>", "special": true},
        "1": {"content": "<s>", "special": true},
        "2": {"content": "</s>", "special": true},
        (PLAIN + 1).to_string(): {"content": "<|plugin|>", "special": false},
        (PLAIN + 2).to_string(): {"content": "<|im_end|>", "special": true, "lstrip": false},
    });
    let dir = folder(&[("tokenizer_config.json", json!({"added_tokens_decoder": decoder, "eos_token": "</s>", "add_prefix_space": true}))]);
    let (t, notes) = read(dir.path(), true, COUNT, json!({"eos_token_id": 2}));
    let t = t.unwrap();
    assert_eq!(changed(&t), [(PLAIN + 1, "<|plugin|>", Kind::UserDefined), (PLAIN + 2, "<|im_end|>", Kind::Control)]);
    assert_eq!((t.unk, t.bos, t.eos as usize, t.pieces[0].kind, t.add_space_prefix), (0, 1, PLAIN + 2, Kind::Unknown, false));
    assert!(notes.len() == 1 && notes[0].contains("<|im_end|>, not tokenizer.model's 2 </s>"), "{notes:?}");

    // The rules for LLaMA: what looks special is, EOS stays, the prefix is the settings'.
    let (t, notes) = read(dir.path(), false, COUNT, json!({"eos_token_id": 2}));
    let t = t.unwrap();
    assert_eq!(changed(&t), [(PLAIN + 1, "<|plugin|>", Kind::Control), (PLAIN + 2, "<|im_end|>", Kind::Control)]);
    assert_eq!((t.eos, t.add_space_prefix), (2, true));
    assert!(notes.len() == 1 && notes[0].contains("add_prefix_space is true"), "{notes:?}");
}

#[test]
fn older_files_extend_the_vocabulary() {
    let dir = folder(&[
        ("added_tokens.json", json!({"<mark>": COUNT, "▁two words": COUNT + 1, "<end>": COUNT + 2})),
        ("special_tokens_map.json", json!({"eos_token": {"content": "<end>"}, "additional_special_tokens": ["<mark>"], "odd": 7})),
        ("tokenizer_config.json", json!({"eos_token": {"content": "<end>"}})),
    ]);
    let (t, notes) = read(dir.path(), false, COUNT + 3, json!({"eos_token_id": [2, 1]}));
    let t = t.unwrap();
    let want = [(COUNT, "<mark>", Kind::Control), (COUNT + 1, " two words", Kind::UserDefined), (COUNT + 2, "<end>", Kind::Control)];
    assert_eq!((changed(&t), t.eos as usize, notes.len()), (want.to_vec(), COUNT + 2, 1));
    // Two embeddings fewer: what is beyond them is left out and said.
    let (t, notes) = read(dir.path(), false, COUNT + 1, json!({}));
    let t = t.unwrap();
    assert_eq!((t.pieces.len(), t.eos), (COUNT + 1, 2));
    assert!(notes.iter().any(|n| n.contains("beyond") && n.contains("two words")), "{notes:?}");
    assert!(notes.iter().any(|n| n.contains("no control piece")), "{notes:?}");
}

#[test]
fn ends_are_control_pieces_or_not_taken() {
    let ends = |config: Value| {
        let (t, notes) = read(folder(&[]).path(), false, COUNT, config);
        let t = t.unwrap();
        (t.bos, t.eos, notes.len())
    };
    assert_eq!(ends(json!({})), (1, 2, 0));
    assert_eq!(ends(json!({"bos_token_id": 2, "eos_token_id": 1})), (2, 1, 2));
    assert_eq!(ends(json!({"bos_token_id": 0, "eos_token_id": PLAIN - 1})), (1, 2, 2));
    assert_eq!(ends(json!({"bos_token_id": COUNT, "eos_token_id": u64::MAX})), (1, 2, 1));
    assert_eq!(ends(json!({"bos_token_id": null, "eos_token_id": [2]})), (1, 2, 0));
    assert_eq!(ends(json!({"bos_token_id": -1, "eos_token_id": "</s>"})), (1, 2, 0));
}

#[test]
fn names_that_make_no_vocabulary_are_refused() {
    let decoder = |id: &str, token: Value| json!({"added_tokens_decoder": {id: token}});
    let token = |text: &str| json!({"content": text, "special": true});
    for (name, value, want) in [
        ("added_tokens.json", json!({"<x>": COUNT + 1}), "leaves a hole"),
        ("added_tokens.json", json!({"<x>": -1}), "no id below"),
        ("added_tokens.json", json!({"<x>": 1 << 20}), "no id below"),
        ("added_tokens.json", json!({"<x>": 4.5}), "no id below"),
        ("added_tokens.json", json!({"<x>": "9"}), "no id below"),
        ("added_tokens.json", json!({"": COUNT}), "no text of 1 to 1024 bytes"),
        ("added_tokens.json", json!({"a\0": COUNT}), "no text of 1 to 1024 bytes"),
        ("added_tokens.json", json!({"x".repeat(1025): COUNT}), "no text of 1 to 1024 bytes"),
        ("added_tokens.json", json!({"▁a": COUNT}), "no error"),
        ("added_tokens.json", json!(["<x>"]), "not an object"),
        ("tokenizer_config.json", decoder(&COUNT.to_string(), token("a")), "\"a\" occurs twice"),
        ("tokenizer_config.json", decoder("x", token("<x>")), "no id below"),
        ("tokenizer_config.json", decoder("-1", token("<x>")), "no id below"),
        ("tokenizer_config.json", decoder("99999999999999999999", token("<x>")), "no id below"),
        ("tokenizer_config.json", decoder("7", json!(7)), "no text"),
        ("tokenizer_config.json", decoder("7", json!({"content": ["x"]})), "no text"),
        ("tokenizer_config.json", decoder("13", token("<x>")), "calls the byte piece 13 <0x0A> \"<x>\""),
        ("tokenizer_config.json", json!({"added_tokens_decoder": [1]}), "is not an object"),
        ("tokenizer_config.json", json!({"added_tokens_decoder": null}), "no error"),
        ("special_tokens_map.json", json!(3), "not an object"),
        ("special_tokens_map.json", json!({"a": [[["x"]]], "b": null, "c": {"content": 1}}), "no error"),
    ] {
        let dir = folder(&[(name, value)]);
        let (result, _) = read(dir.path(), false, COUNT + 5, json!({}));
        match result {
            Ok(_) => assert_eq!(want, "no error"),
            Err(e) => {
                assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains(want), "{want}: {e}");
                assert!(e.to_string().contains(name) || e.to_string().contains("tokenizer_config.json"), "{e}");
            }
        }
    }
    for (name, bytes, want) in [
        ("tokenizer_config.json", vec![b' '; (16 << 20) + 1], "at most 16777216 are read"),
        ("tokenizer_config.json", b"{\"a\": 1, \"a\": 2}".to_vec(), "comes twice"),
        ("added_tokens.json", b"\xff\xfe".to_vec(), "is not valid JSON"),
        ("special_tokens_map.json", "[".repeat(100_000).into_bytes(), "is not valid JSON"),
        ("tokenizer.model", b"{}".to_vec(), "not a SentencePiece model"),
    ] {
        let dir = folder(&[]);
        std::fs::write(dir.path().join(name), bytes).unwrap();
        let error = read(dir.path(), true, COUNT, json!({})).0.unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains(want), "{error}");
    }
    let dir = folder(&[]);
    std::fs::remove_file(dir.path().join("tokenizer.model")).unwrap();
    assert!(read(dir.path(), true, COUNT, json!({})).0.unwrap_err().to_string().contains("no tokenizer.model"));
}
