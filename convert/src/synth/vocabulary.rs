//! Vocabularies: real in structure, meaningless in content.

use crate::tokenizer::{Kind, Piece, Tokenizer};

fn piece(text: String, score: f32, kind: Kind) -> Piece {
    Piece { text, score, kind }
}

/// A vocabulary of `count` pieces: unknown, BOS, EOS, 256 bytes, then words that can be merged from letters, scores falling, then
/// the letters themselves.
///
/// Every word is a shorter one and a letter, so merging reaches all of them.
pub fn vocabulary(count: usize) -> Tokenizer {
    Tokenizer { pieces: pieces(count), unk: 0, bos: 1, eos: 2, add_space_prefix: true }
}

/// A vocabulary of `count` pieces as InternLM2 has it: no space is put in front of a text, there is a piece that is the NUL
/// character, and some numbers at the end are held free by fillers.
pub fn intern_vocabulary(count: usize) -> Tokenizer {
    let fillers = (count / 50).clamp(4, 400).min(count);
    let mut pieces = pieces(count.saturating_sub(fillers + 1));
    let least = pieces.iter().map(|p| p.score).fold(0.0, f32::min);
    pieces.push(piece("\0".into(), least - 1.0, Kind::Normal));
    pieces.extend((0..fillers).map(|i| piece(format!("[UNUSED_TOKEN_{i}]"), 0.0, Kind::Unused)));
    Tokenizer { pieces, unk: 0, bos: 1, eos: 2, add_space_prefix: false }
}

fn pieces(count: usize) -> Vec<Piece> {
    let mut pieces = vec![piece("<unk>".into(), 0.0, Kind::Unknown)];
    pieces.extend(["<s>", "</s>"].map(|t| piece(t.into(), 0.0, Kind::Control)));
    pieces.extend((0..=255u8).map(|b| piece(format!("<0x{b:02X}>"), 0.0, Kind::Byte)));
    let letters: Vec<String> = std::iter::once("▁".to_owned()).chain((b'!'..=b'~').map(|b| char::from(b).to_string())).collect();
    let words = count.saturating_sub(pieces.len() + letters.len());
    // Letters by how common they are, so that a small vocabulary has likely words.
    let common = "etaoinshrdlucmfwypvbgkjqxz";
    let mut known: Vec<String> = std::iter::once("▁".to_owned()).chain(common.chars().map(String::from)).collect();
    let mut shorter = 0;
    let mut made = 0;
    while made < words {
        let stem = known[shorter].clone();
        shorter += 1;
        for letter in common.chars().take(words - made) {
            let word = format!("{stem}{letter}");
            pieces.push(piece(word.clone(), -(made as f32), Kind::Normal));
            known.push(word);
            made += 1;
        }
    }
    pieces.extend(letters.into_iter().enumerate().map(|(i, l)| piece(l, -((words + i) as f32), Kind::Normal)));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{encode_sentencepiece, parse_sentencepiece};
    use std::collections::HashSet;

    #[test]
    fn vocabularies_are_valid_and_can_be_merged() {
        let all = [vocabulary(800), vocabulary(32000), intern_vocabulary(800), intern_vocabulary(92544)];
        for (t, count) in all.iter().zip([800, 32000, 800, 92544]) {
            assert_eq!(t.pieces.len(), count);
            assert!(parse_sentencepiece(&encode_sentencepiece(t)).unwrap() == *t);
            let normal: Vec<&Piece> = t.pieces.iter().filter(|p| p.kind == Kind::Normal).collect();
            assert!(normal.windows(2).all(|w| w[0].score > w[1].score));
            let texts: HashSet<&str> = normal.iter().map(|p| p.text.as_str()).collect();
            for p in &normal {
                let mut stem = p.text.clone();
                let last = stem.pop().unwrap().to_string();
                assert!(texts.contains(last.as_str()) && (stem.is_empty() || texts.contains(stem.as_str())), "{}", p.text);
            }
        }
        let holes = |t: &Tokenizer| t.pieces.iter().filter(|p| p.kind == Kind::Unused).count();
        assert_eq!(all.each_ref().map(holes), [0, 0, 16, 400]);
        assert_eq!(all.each_ref().map(Tokenizer::nul_piece), [None, None, Some(783), Some(92143)]);
    }
}
