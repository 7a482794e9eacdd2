//! What a Hugging Face directory says about a vocabulary outside the model file.
//!
//! `added_tokens.json`, `added_tokens_decoder` of `tokenizer_config.json` and `special_tokens_map.json` name pieces, at the ids of
//! fillers or behind the last. A named piece is control when it is called special, user-defined otherwise, as llama.cpp's converter
//! has it; the one difference is that `special_tokens_map.json` counts too, so that nobody types a chat mark by accident.
//!
//! BOS and EOS are the model file's unless `bos_token` and `eos_token` of `tokenizer_config.json` name an added piece, or else
//! `bos_token_id` and `eos_token_id` of `config.json` a control piece; an InternLM2 vocabulary that has `<|im_end|>` ends
//! replies with it. All this as llama.cpp does it; like there, `generation_config.json` is not asked.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value};
use sphinx_quant::error::printable;

use super::{Kind, MAX_PIECE_BYTES, MAX_PIECES, Piece, Tokenizer, unique};
use crate::checkpoint::json;
use crate::error::{ConvertError, Result};

const ADDED: &str = "added_tokens.json";
const SETTINGS: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
/// The score that added pieces get; none of them is ever joined.
const SCORE: f32 = -1000.0;
/// What ends a reply of InternLM2's chat models.
const END_OF_TURN: &str = "<|im_end|>";
const REMEDY: &str = "get the tokenizer's files again, all from the same model";

/// One added piece.
struct Added {
    text: String,
    special: bool,
}

/// BOS or EOS of a tokenizer.
type End = fn(&mut Tokenizer) -> &mut u32;

/// An object in a file that may be missing.
fn optional(folder: &Path, name: &str) -> Result<Map<String, Value>> {
    let path = folder.join(name);
    match path.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Map::new()),
        _ => json::object(&path, json::MAX_INDEX_BYTES),
    }
}

/// A token as these files spell it: its text, or an object that has it as `content`.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// Whether a token that nobody calls special looks it, by the rules of llama.cpp's converter.
fn looks_special(text: &str) -> bool {
    let between = |head: &str, tail: &str| text.starts_with(head) && text.ends_with(tail);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text) || between("<|", "|>") || between("<｜", "｜>") || between("<unused", ">")
}

impl Tokenizer {
    /// The vocabulary of a Hugging Face directory: its `tokenizer.model`, and what the files beside it add or rename.
    ///
    /// `rows` is the number of embeddings, `config` is `config.json`, `intern` says that the model is an InternLM2. What was chosen
    /// against the model file goes into `notes`.
    ///
    /// # Errors
    /// `Io` when a file cannot be read; `Invalid` when `tokenizer.model` is missing or no model this version tokenises exactly, and
    /// when the other files make no vocabulary of it: a hole in the ids, a name that two pieces have, a byte renamed.
    pub fn read_hub(folder: &Path, config: &Map<String, Value>, intern: bool, rows: usize, notes: &mut Vec<String>) -> Result<Tokenizer> {
        let model = folder.join("tokenizer.model");
        if model.symlink_metadata().is_err() {
            let what = "no tokenizer.model; other tokenizers are not supported";
            return Err(ConvertError::invalid(folder, what, "put the model's SentencePiece file beside it"));
        }
        let mut tokenizer = Tokenizer::read(&model)?;
        let settings = optional(folder, SETTINGS)?;
        let added = added(folder, &settings, intern)?;
        tokenizer.add(folder, &added, rows, notes)?;
        tokenizer.choose_ends(folder, &settings, config, &added, notes);
        if intern && let Some((&id, _)) = added.iter().find(|(id, a)| a.text == END_OF_TURN && (**id as usize) < tokenizer.pieces.len()) {
            tokenizer.choose(|t| &mut t.eos, id, &format!("{}: EOS", folder.display()), notes);
        }
        if !intern && let Some(prefix) = settings.get("add_prefix_space").and_then(Value::as_bool) {
            if prefix != tokenizer.add_space_prefix {
                let path = folder.join(SETTINGS);
                notes.push(format!("{}: add_prefix_space is {prefix}, which tokenizer.model denies; it is followed", path.display()));
            }
            tokenizer.add_space_prefix = prefix;
        }
        Ok(tokenizer)
    }

    /// Puts the added pieces in their places.
    fn add(&mut self, folder: &Path, added: &BTreeMap<u32, Added>, rows: usize, notes: &mut Vec<String>) -> Result<()> {
        let bad = |what: String| ConvertError::invalid(&folder.join(SETTINGS), what, REMEDY);
        let (mut beyond, mut replaced) = (Vec::new(), Vec::new());
        for (&id, token) in added {
            let index = id as usize;
            if index >= rows {
                beyond.push(token.text.clone());
                continue;
            }
            let kind = if token.special { Kind::Control } else { Kind::UserDefined };
            let count = self.pieces.len();
            match self.pieces.get_mut(index) {
                None if index == count => self.pieces.push(Piece { text: token.text.clone(), score: SCORE, kind }),
                None => {
                    let what = format!("adds token {id} \"{}\" to {count} pieces, which leaves a hole", printable(&token.text));
                    return Err(bad(what));
                }
                Some(piece) => match piece.kind {
                    Kind::Unknown | Kind::Control | Kind::Byte if piece.text == token.text => {}
                    Kind::Byte => {
                        let what = format!("calls the byte piece {id} {} \"{}\"", piece.text, printable(&token.text));
                        return Err(bad(what));
                    }
                    Kind::Unknown | Kind::Control => {
                        replaced.push(format!("{} by {}", piece.text, token.text));
                        piece.text.clone_from(&token.text);
                    }
                    old => {
                        if old != Kind::Unused && piece.text != token.text {
                            replaced.push(format!("{} by {}", piece.text, token.text));
                        }
                        *piece = Piece { text: token.text.clone(), score: SCORE, kind };
                    }
                },
            }
        }
        let tell = |names: &[String], what: &str| {
            let shown: Vec<String> = names.iter().take(4).map(|n| printable(n)).collect();
            let more = if names.len() > 4 { format!(" and {} more", names.len() - 4) } else { String::new() };
            format!("{}: {what}: {}{more}", folder.display(), shown.join(", "))
        };
        if !beyond.is_empty() {
            notes.push(tell(&beyond, &format!("added tokens beyond the model's {rows} embeddings, ignored")));
        }
        if !replaced.is_empty() {
            notes.push(tell(&replaced, "pieces of tokenizer.model that added tokens replace"));
        }
        unique(&self.pieces).map_err(bad)
    }

    /// Sets BOS and EOS from the settings.
    fn choose_ends(
        &mut self,
        folder: &Path,
        settings: &Map<String, Value>,
        config: &Map<String, Value>,
        added: &BTreeMap<u32, Added>,
        notes: &mut Vec<String>,
    ) {
        let ends: [(&str, &str, End); 2] = [("bos", "BOS", |t| &mut t.bos), ("eos", "EOS", |t| &mut t.eos)];
        for (key, shown, end) in ends {
            let name = settings.get(&format!("{key}_token")).and_then(content);
            let named = name.and_then(|name| added.iter().find(|(_, a)| a.text == name)).map(|(&id, _)| id);
            let stated = config.get(&format!("{key}_token_id")).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
            if let Some(id) = named.or(stated) {
                let file = folder.join(if named.is_some() { SETTINGS } else { "config.json" });
                self.choose(end, id, &format!("{}: {shown}", file.display()), notes);
            }
        }
    }

    /// Makes the control piece `id` an end; any other piece would come out of ordinary text, and is not taken.
    fn choose(&mut self, end: End, id: u32, what: &str, notes: &mut Vec<String>) {
        let old = *end(self);
        if old == id {
            return;
        }
        let shown = |t: &Tokenizer, id: u32| t.pieces.get(id as usize).map_or(String::new(), |p| format!(" {}", printable(&p.text)));
        if self.pieces.get(id as usize).is_some_and(|p| p.kind == Kind::Control) {
            notes.push(format!("{what} is {id}{}, not tokenizer.model's {old}{}", shown(self, id), shown(self, old)));
            *end(self) = id;
        } else {
            notes.push(format!("{what} {id}{} is no control piece; tokenizer.model's {old}{} is kept", shown(self, id), shown(self, old)));
        }
    }
}

/// All added tokens by id.
fn added(folder: &Path, settings: &Map<String, Value>, intern: bool) -> Result<BTreeMap<u32, Added>> {
    let special = special(folder)?;
    let mut out = BTreeMap::new();
    let mut put = |file: &str, id: Option<u64>, text: Option<&str>, flagged: bool| {
        let bad = |what: String| ConvertError::invalid(&folder.join(file), what, REMEDY);
        let Some(id) = id.and_then(|id| u32::try_from(id).ok()).filter(|&id| (id as usize) < MAX_PIECES) else {
            return Err(bad(format!("an added token has no id below {MAX_PIECES}")));
        };
        let Some(text) = text.filter(|t| !t.is_empty() && t.len() <= MAX_PIECE_BYTES && !t.contains('\0')) else {
            return Err(bad(format!("added token {id} has no text of 1 to {MAX_PIECE_BYTES} bytes")));
        };
        let special = flagged || special.contains(text) || (!intern && looks_special(text));
        // A user-defined piece is compared with text in which spaces are not yet escaped.
        let text = if special || intern { text.to_owned() } else { text.replace('\u{2581}', " ") };
        out.insert(id, Added { text, special });
        Ok(())
    };
    for (text, id) in &optional(folder, ADDED)? {
        put(ADDED, id.as_u64(), Some(text), false)?;
    }
    match settings.get("added_tokens_decoder") {
        None | Some(Value::Null) => {}
        Some(Value::Object(decoder)) => {
            for (id, token) in decoder {
                let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
                put(SETTINGS, id.parse().ok(), content(token), special)?;
            }
        }
        Some(_) => return Err(ConvertError::invalid(&folder.join(SETTINGS), "added_tokens_decoder is not an object", REMEDY)),
    }
    Ok(out)
}

/// Every text that `special_tokens_map.json` mentions.
fn special(folder: &Path) -> Result<HashSet<String>> {
    let map = optional(folder, SPECIAL)?;
    let tokens = map.values().flat_map(|value| value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice));
    Ok(tokens.filter_map(content).map(str::to_owned).collect())
}
