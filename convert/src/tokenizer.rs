//! SentencePiece models: the `tokenizer.model` of a checkpoint, read as untrusted bytes and written for synthetic ones.
//!
//! What is accepted is what the decoder family ships: BPE with scores and byte fallback, identity normalisation, extra white
//! space kept. Anything else would tokenise differently, so it is refused rather than approximated.
//!
//! A Hugging Face directory changes the vocabulary in files beside the model: `added` reads those.

mod added;

use std::collections::HashSet;
use std::path::Path;

use prost::Message;
use sphinx_quant::error::printable;

use crate::error::{ConvertError, Result};

/// Most pieces of a vocabulary.
pub const MAX_PIECES: usize = 1 << 20;
/// Longest piece, in bytes.
pub const MAX_PIECE_BYTES: usize = 1 << 10;
/// Largest file, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// What may stand in a model file for a piece that is the NUL character: readers in C take that for an empty text. The first is what
/// llama.cpp's converter writes; the others are for a vocabulary that has it already.
const NUL_STAND_INS: [&str; 3] = ["🐉", "[NUL]", "[NUL PIECE]"];
/// How the pieces that hold InternLM2's numbering open begin; a number and `]` follow.
const FILLER: &str = "[UNUSED_TOKEN_";

/// What a piece is, with the numbers that both SentencePiece and GGUF give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Kind {
    /// Text.
    Normal = 1,
    /// Stands for what cannot be spelled.
    Unknown = 2,
    /// Never in text: BOS, EOS.
    Control = 3,
    /// Text that is never split.
    UserDefined = 4,
    /// A hole in the numbering.
    Unused = 5,
    /// One byte of UTF-8.
    Byte = 6,
}

/// One entry of a vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Its text, a space written as U+2581; see [`Tokenizer::texts`] for the one that is NUL.
    pub text: String,
    /// Merges with higher scores go first.
    pub score: f32,
    /// What it is.
    pub kind: Kind,
}

/// A vocabulary: ids are indices.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokenizer {
    /// All pieces.
    pub pieces: Vec<Piece>,
    /// Id of the unknown piece.
    pub unk: u32,
    /// Id of the piece that starts a text.
    pub bos: u32,
    /// Id of the piece that ends a text.
    pub eos: u32,
    /// Whether a space is put in front of a text.
    pub add_space_prefix: bool,
}

// The messages of sentencepiece_model.proto, the fields that matter.

#[derive(Clone, PartialEq, Message)]
struct PieceProto {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerProto {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(int32, optional, tag = "4")]
    vocab_size: Option<i32>,
    #[prost(bool, optional, tag = "24")]
    treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42")]
    eos_id: Option<i32>,
    #[prost(int32, optional, tag = "43")]
    pad_id: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerProto {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    escape_whitespaces: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<PieceProto>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerProto>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerProto>,
}

/// SentencePiece's number for BPE.
const MODEL_TYPE_BPE: i32 = 2;

impl Tokenizer {
    /// Reads a `tokenizer.model`.
    ///
    /// # Errors
    /// `Io` when the file cannot be read, `Invalid` when it is no model that this version tokenises exactly.
    pub fn read(path: &Path) -> Result<Tokenizer> {
        let meta = std::fs::metadata(path).map_err(|e| ConvertError::io(path, e))?;
        if !meta.is_file() || meta.len() > MAX_FILE_BYTES {
            let what = format!("a SentencePiece model is a regular file of at most {} MiB", MAX_FILE_BYTES >> 20);
            return Err(ConvertError::invalid(path, what, "give the checkpoint its own tokenizer.model"));
        }
        let bytes = std::fs::read(path).map_err(|e| ConvertError::io(path, e))?;
        parse_sentencepiece(&bytes).map_err(|what| ConvertError::invalid(path, what, "give the checkpoint its own tokenizer.model"))
    }

    /// Id of the piece that is the NUL character, if there is one.
    pub fn nul_piece(&self) -> Option<u32> {
        self.pieces.iter().position(|p| p.text == "\0").map(|id| id as u32)
    }

    /// The pieces as a model file has them: [`nul_piece`](Tokenizer::nul_piece) under another name.
    pub fn texts(&self) -> Vec<String> {
        let mut out: Vec<String> = self.pieces.iter().map(|p| p.text.clone()).collect();
        let nul = self.nul_piece().and_then(|id| out.get_mut(id as usize));
        let free = NUL_STAND_INS.iter().find(|name| self.pieces.iter().all(|p| p.text != **name));
        if let (Some(nul), Some(free)) = (nul, free) {
            *nul = (*free).to_owned();
        }
        out
    }
}

/// Takes a SentencePiece model apart. The error says in one line what is wrong; it is safe to print.
///
/// Never allocates more than a small multiple of `bytes`, and checks every piece: length, score, type, that none occurs twice,
/// that all 256 byte pieces are there, and that unknown, BOS and EOS are what their ids say.
///
/// # Errors
/// A sentence for whoever chose the file.
pub fn parse_sentencepiece(bytes: &[u8]) -> std::result::Result<Tokenizer, String> {
    let mut pieces = Vec::new();
    let mut trainer: Option<TrainerProto> = None;
    let mut normalizer: Option<NormalizerProto> = None;
    let mut rest = bytes;
    while !rest.is_empty() {
        let offset = bytes.len() - rest.len();
        let broken = || format!("not a SentencePiece model: the field at offset {offset:#x} is cut off or malformed");
        let key = varint(&mut rest).ok_or_else(broken)?;
        match (key >> 3, key & 7) {
            (0, _) => return Err(broken()),
            (field, 2) => {
                let len = varint(&mut rest).and_then(|n| usize::try_from(n).ok()).ok_or_else(broken)?;
                let (body, after) = rest.split_at_checked(len).ok_or_else(broken)?;
                rest = after;
                let bad = |e: prost::DecodeError| {
                    format!("not a SentencePiece model: the field at offset {offset:#x}: {}", printable(&e.to_string()))
                };
                match field {
                    1 if pieces.len() == MAX_PIECES => return Err(format!("the tokenizer has more than {MAX_PIECES} pieces")),
                    1 => pieces.push(piece(pieces.len(), PieceProto::decode(body).map_err(bad)?)?),
                    // A message that is split over several fields is merged, as protobuf asks.
                    2 => trainer.get_or_insert_default().merge(body).map_err(bad)?,
                    3 => normalizer.get_or_insert_default().merge(body).map_err(bad)?,
                    5 if NormalizerProto::decode(body).map_err(bad)?.precompiled_charsmap.is_some_and(|m| !m.is_empty()) => {
                        return Err("the tokenizer rewrites decoded text, which is not supported".into());
                    }
                    _ => {}
                }
            }
            (_, 0) => drop(varint(&mut rest).ok_or_else(broken)?),
            (_, 1) => rest = rest.get(8..).ok_or_else(broken)?,
            (_, 5) => rest = rest.get(4..).ok_or_else(broken)?,
            _ => return Err(broken()),
        }
    }
    if pieces.is_empty() {
        return Err("the tokenizer has no pieces".into());
    }
    let trainer = trainer.unwrap_or_default();
    match trainer.model_type.unwrap_or(1) {
        MODEL_TYPE_BPE => {}
        1 => return Err("the tokenizer is a unigram model, expected BPE".into()),
        n => return Err(format!("the tokenizer is of model type {n}, expected BPE (2)")),
    }
    if trainer.treat_whitespace_as_suffix == Some(true) {
        return Err("the tokenizer puts spaces behind words, which is not supported".into());
    }
    let normalizer = normalizer.unwrap_or_default();
    if normalizer.precompiled_charsmap.as_ref().is_some_and(|m| !m.is_empty()) {
        let name = printable(normalizer.name.as_deref().unwrap_or(""));
        return Err(format!("the tokenizer rewrites its text (normaliser \"{name}\"), expected identity"));
    }
    if normalizer.remove_extra_whitespaces.unwrap_or(true) {
        return Err("the tokenizer removes extra white space, which is not supported".into());
    }
    if normalizer.escape_whitespaces == Some(false) {
        return Err("the tokenizer does not write spaces as U+2581, which is not supported".into());
    }
    all_bytes(&pieces)?;
    unique(&pieces)?;
    let id = |what: &str, id: i32, kind: Kind| {
        let index = usize::try_from(id).ok().filter(|&i| i < pieces.len());
        match index.and_then(|i| pieces.get(i)) {
            Some(p) if p.kind == kind => Ok(id as u32),
            Some(p) => Err(format!("the tokenizer's {what} id {id} is the {:?} piece \"{}\"", p.kind, printable(&p.text))),
            None => Err(format!("the tokenizer has no {what} piece (id {id} of {})", pieces.len())),
        }
    };
    let unk = id("unknown", trainer.unk_id.unwrap_or(0), Kind::Unknown)?;
    let bos = id("BOS", trainer.bos_id.unwrap_or(1), Kind::Control)?;
    let eos = id("EOS", trainer.eos_id.unwrap_or(2), Kind::Control)?;
    if let Some(other) = pieces.iter().enumerate().position(|(i, p)| p.kind == Kind::Unknown && i != unk as usize) {
        return Err(format!("the tokenizer has two unknown pieces, {unk} and {other}"));
    }
    Ok(Tokenizer { unk, bos, eos, add_space_prefix: normalizer.add_dummy_prefix.unwrap_or(true), pieces })
}

/// One piece, checked by itself.
fn piece(index: usize, p: PieceProto) -> std::result::Result<Piece, String> {
    let text = p.piece.unwrap_or_default();
    let score = p.score.unwrap_or(0.0);
    if text.is_empty() {
        return Err(format!("tokenizer piece {index} is empty"));
    }
    if text.len() > MAX_PIECE_BYTES {
        return Err(format!("tokenizer piece {index} has {} bytes, at most {MAX_PIECE_BYTES} are allowed", text.len()));
    }
    if text.contains('\0') && text != "\0" {
        return Err(format!("tokenizer piece {index} has a NUL among other characters"));
    }
    if !score.is_finite() {
        return Err(format!("tokenizer piece {index} has the score {score}"));
    }
    let kind = match p.kind.unwrap_or(1) {
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte,
        n => return Err(format!("tokenizer piece {index} has the unknown type {n}")),
    };
    // Nothing was trained on a filler: it is no text, as llama.cpp's converter sees it too.
    let kind = if matches!(kind, Kind::Normal | Kind::UserDefined) && is_filler(&text) { Kind::Unused } else { kind };
    Ok(Piece { text, score, kind })
}

/// Exactly one byte piece for each of the 256 bytes.
fn all_bytes(pieces: &[Piece]) -> std::result::Result<(), String> {
    let mut seen = [false; 256];
    for (index, p) in pieces.iter().enumerate().filter(|(_, p)| p.kind == Kind::Byte) {
        let value = byte_of(&p.text)
            .ok_or_else(|| format!("tokenizer piece {index} \"{}\" is no byte, expected <0x00> to <0xFF>", printable(&p.text)))?;
        seen[usize::from(value)] = true; // a second one is found as a duplicate piece
    }
    match seen.iter().position(|s| !s) {
        Some(byte) => Err(format!("the tokenizer has no piece <0x{byte:02X}>; byte fallback needs all 256")),
        None => Ok(()),
    }
}

/// The byte that `<0xNN>` spells.
fn byte_of(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    upper.then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// Whether the text is `[UNUSED_TOKEN_` and a number.
fn is_filler(text: &str) -> bool {
    let number = text.strip_prefix(FILLER).and_then(|rest| rest.strip_suffix(']'));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Refuses a piece that occurs twice, and a NUL piece that no name is left for.
fn unique(pieces: &[Piece]) -> std::result::Result<(), String> {
    let mut seen = HashSet::with_capacity(pieces.len());
    for (index, p) in pieces.iter().enumerate() {
        if !seen.insert(p.text.as_str()) {
            return Err(format!("tokenizer piece {index} \"{}\" occurs twice", printable(&p.text)));
        }
    }
    if seen.contains("\0") && NUL_STAND_INS.iter().all(|name| seen.contains(name)) {
        return Err("the tokenizer has a NUL piece and all that would stand for it".into());
    }
    Ok(())
}

/// A protobuf varint: at most ten bytes, at most 64 bits.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        if shift == 63 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// The bytes of a `tokenizer.model` that [`parse_sentencepiece`] and SentencePiece read as `tokenizer`.
pub fn encode_sentencepiece(tokenizer: &Tokenizer) -> Vec<u8> {
    let proto = |p: &Piece| PieceProto {
        piece: Some(p.text.clone()),
        score: Some(p.score),
        kind: (p.kind != Kind::Normal).then_some(p.kind as i32),
    };
    ModelProto {
        pieces: tokenizer.pieces.iter().map(proto).collect(),
        trainer: Some(TrainerProto {
            model_type: Some(MODEL_TYPE_BPE),
            vocab_size: Some(tokenizer.pieces.len() as i32),
            treat_whitespace_as_suffix: None,
            byte_fallback: Some(true),
            unk_id: Some(tokenizer.unk as i32),
            bos_id: Some(tokenizer.bos as i32),
            eos_id: Some(tokenizer.eos as i32),
            pad_id: Some(-1),
        }),
        normalizer: Some(NormalizerProto {
            name: Some("identity".into()),
            precompiled_charsmap: None,
            add_dummy_prefix: Some(tokenizer.add_space_prefix),
            remove_extra_whitespaces: Some(false),
            escape_whitespaces: Some(true),
        }),
    }
    .encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, score: f32, kind: Kind) -> Piece {
        Piece { text: text.into(), score, kind }
    }

    fn small() -> Tokenizer {
        let mut pieces = vec![piece("<unk>", 0.0, Kind::Unknown), piece("<s>", 0.0, Kind::Control), piece("</s>", 0.0, Kind::Control)];
        pieces.extend((0..256).map(|b| piece(&format!("<0x{b:02X}>"), 0.0, Kind::Byte)));
        pieces.extend([piece("▁a", -0.0, Kind::Normal), piece("▁", -1.0, Kind::Normal), piece("a", -2.0, Kind::Normal)]);
        Tokenizer { pieces, unk: 0, bos: 1, eos: 2, add_space_prefix: true }
    }

    fn model(t: &Tokenizer) -> ModelProto {
        ModelProto::decode(encode_sentencepiece(t).as_slice()).unwrap()
    }

    #[test]
    fn written_models_are_read_back() {
        for add_space_prefix in [true, false] {
            let t = Tokenizer { add_space_prefix, ..small() };
            assert_eq!(parse_sentencepiece(&encode_sentencepiece(&t)).unwrap(), t);
        }
    }

    #[test]
    fn nul_gets_a_stand_in() {
        let mut t = small();
        assert_eq!(t.nul_piece(), None);
        assert!(t.texts().iter().zip(&t.pieces).all(|(text, p)| *text == p.text));
        t.pieces[260].text = "\0".into();
        for (i, name) in NUL_STAND_INS.iter().enumerate() {
            let read = parse_sentencepiece(&encode_sentencepiece(&t)).unwrap();
            assert_eq!((read.nul_piece(), read.texts()[260].as_str()), (Some(260), *name));
            let unique: HashSet<String> = read.texts().into_iter().collect();
            assert_eq!(unique.len(), read.pieces.len());
            t.pieces.push(piece(NUL_STAND_INS[i], -3.0, Kind::Normal));
        }
        assert!(parse_sentencepiece(&encode_sentencepiece(&t)).unwrap_err().contains("all that would stand for it"));
        let mut t = small();
        t.pieces[261].text = "a\0".into();
        assert!(parse_sentencepiece(&encode_sentencepiece(&t)).is_err());
    }

    #[test]
    fn fillers_are_no_text() {
        let mut t = small();
        for (text, kind) in [
            ("[UNUSED_TOKEN_0]", Kind::Unused),
            ("[UNUSED_TOKEN_145]", Kind::Unused),
            ("[UNUSED_TOKEN_]", Kind::Normal),
            ("[UNUSED_TOKEN_1", Kind::Normal),
            ("[UNUSED_TOKEN_-1]", Kind::Normal),
        ] {
            t.pieces.push(piece(text, -9.0, Kind::Normal));
            assert_eq!(parse_sentencepiece(&encode_sentencepiece(&t)).unwrap().pieces.last().unwrap().kind, kind, "{text}");
        }
    }

    #[test]
    fn bad_pieces_are_refused() {
        type Spoil = fn(&mut Vec<Piece>);
        let cases: &[(&str, Spoil)] = &[
            ("empty", |p| p[259].text = String::new()),
            ("twice", |p| p[259].text = "a".into()),
            ("bytes, at most", |p| p[259].text = "x".repeat(MAX_PIECE_BYTES + 1)),
            ("NaN", |p| p[259].score = f32::NAN),
            ("inf", |p| p[259].score = f32::INFINITY),
            ("no byte", |p| p[3].text = "<0x-1>".into()),
            ("no byte", |p| p[3].text = "<0xGG>".into()),
            ("no byte", |p| p[3].text = "<0x100>".into()),
            ("no byte", |p| p[3].text = "<0xff>".into()),
            ("no byte", |p| p[3].text = "<0x+1>".into()),
            ("<0x00>", |p| p[3] = Piece { text: "zz".into(), score: 0.0, kind: Kind::Normal }),
            ("twice", |p| p[259] = Piece { text: "<0x00>".into(), score: 0.0, kind: Kind::Byte }),
            ("unknown id 0", |p| p[0].kind = Kind::Normal),
            ("BOS", |p| p[1].kind = Kind::Normal),
            ("EOS", |p| p[2].kind = Kind::Unused),
            ("two unknown", |p| p[259].kind = Kind::Unknown),
            ("no pieces", |p| p.clear()),
        ];
        for (want, spoil) in cases {
            let mut t = small();
            spoil(&mut t.pieces);
            let error = parse_sentencepiece(&encode_sentencepiece(&t)).expect_err(want);
            assert!(error.contains(want), "{error} should say {want}");
        }
    }

    #[test]
    fn bad_settings_are_refused() {
        type Spoil = fn(&mut TrainerProto, &mut NormalizerProto);
        let cases: &[(&str, Spoil)] = &[
            ("unigram", |t, _| t.model_type = None),
            ("model type 7", |t, _| t.model_type = Some(7)),
            ("behind words", |t, _| t.treat_whitespace_as_suffix = Some(true)),
            ("no unknown", |t, _| t.unk_id = Some(-1)),
            ("no BOS", |t, _| t.bos_id = Some(1 << 30)),
            ("no EOS", |t, _| t.eos_id = Some(i32::MIN)),
            ("rewrites its text", |_, n| n.precompiled_charsmap = Some(vec![1, 2, 3])),
            ("extra white space", |_, n| n.remove_extra_whitespaces = None),
            ("U+2581", |_, n| n.escape_whitespaces = Some(false)),
        ];
        for (want, spoil) in cases {
            let mut m = model(&small());
            let (mut t, mut n) = (m.trainer.take().unwrap(), m.normalizer.take().unwrap());
            spoil(&mut t, &mut n);
            let m = ModelProto { trainer: Some(t), normalizer: Some(n), ..m };
            let error = parse_sentencepiece(&m.encode_to_vec()).expect_err(want);
            assert!(error.contains(want), "{error} should say {want}");
        }
        let mut m = model(&small());
        m.pieces[259].kind = Some(9);
        assert!(parse_sentencepiece(&m.encode_to_vec()).unwrap_err().contains("type 9"));
    }

    #[test]
    fn broken_protobuf_is_refused() {
        let good = encode_sentencepiece(&small());
        for bad in [
            vec![],
            vec![0x0a],                                                                   // a key and no length
            vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], // eleven bytes of varint
            vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],             // length 2^63 − 1
            vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],       // beyond 64 bits
            vec![0x02, 0x00],                                                             // field 0
            vec![0x0b; 4000],                                                             // groups in groups
            vec![0x0c],                                                                   // the end of a group never begun
            [good.as_slice(), &[0x0a, 0x05, 0x0a, 0x03, 0xff, 0xfe, 0xfd]].concat(),      // invalid UTF-8
            [good.as_slice(), &[0x0a, 0x03, 0x0a, 0x7f, 0x61]].concat(),                  // a string longer than its message
            [good.as_slice(), &[0x09, 1, 2, 3]].concat(),                                 // a cut-off fixed64
        ] {
            assert!(parse_sentencepiece(&bad).is_err(), "{bad:?}");
        }
        // An unknown field is no harm.
        assert!(parse_sentencepiece(&[good.as_slice(), &[0x78, 0x01, 0x7a, 0x01, 0x00]].concat()).is_ok());
        // No cut-off model parses as another.
        for len in (0..good.len()).step_by(7) {
            assert!(parse_sentencepiece(&good[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn any_flipped_byte_is_read_or_refused() {
        let good = encode_sentencepiece(&small());
        for at in 0..good.len() {
            for bit in [1, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= bit;
                if let Ok(t) = parse_sentencepiece(&bad) {
                    let n = t.pieces.len();
                    assert!([t.unk, t.bos, t.eos].iter().all(|&id| (id as usize) < n), "byte {at}");
                }
            }
        }
    }

    #[test]
    fn too_many_pieces_stop_early() {
        let flood: Vec<u8> = std::iter::repeat_n([0x0a, 0x03, 0x0a, 0x01, b'a'], MAX_PIECES + 1).flatten().collect();
        assert!(parse_sentencepiece(&flood).unwrap_err().contains("more than"));
    }
}
