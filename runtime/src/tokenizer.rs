//! Text to ids and back, as SentencePiece's byte-pair model does it.
//!
//! The vocabulary comes from the arrays of a GGUF file. Encoding replaces spaces by U+2581, puts one in front where
//! the file says so, cuts the text into characters and joins neighbours: among all adjacent pairs that form a piece the
//! one of the highest score is joined first, the leftmost of equals. Characters without a piece become their bytes.
//! Control, unknown and byte pieces are never matched in text: whatever a user types is text.
//!
//! A piece of type unused takes part in joins, but never comes out, as SentencePiece has it: a join to one is undone in the end,
//! and a character whose piece it is has none. Of two equal pieces the later one is used for encoding; both decode.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use ahash::{AHashMap, RandomState};
use sphinx_quant::error::printable;

use crate::stream::TextStream;
use crate::{Result, RuntimeError};

mod gguf;
mod witness;

/// The character that stands for a space inside pieces.
const SPACE: char = '\u{2581}';
/// Most pieces a vocabulary may have.
const MAX_PIECES: usize = 1 << 20;
/// Longest piece in bytes.
const MAX_PIECE_BYTES: usize = 1024;
/// Longest stretch that is merged as one, in bytes.
const MAX_WORD_BYTES: usize = 1 << 30;
/// What an unknown piece decodes to.
const UNKNOWN_SURFACE: &str = " \u{2047} ";

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ordinary text.
    Normal,
    /// Stands for what has no piece.
    Unknown,
    /// Begin and end of a sequence: never text.
    Control,
    /// Found in the text before anything else, and never joined.
    UserDefined,
    /// Takes part in joins, but never comes out of a text; ids of it decode as those of ordinary text.
    Unused,
    /// One byte.
    Byte(u8),
}

/// The arrays of a file, as they are there.
#[derive(Clone, Copy, Debug)]
pub struct Vocabulary<'a> {
    /// The pieces, spaces written as U+2581.
    pub pieces: &'a [String],
    /// One score per piece; higher joins first.
    pub scores: &'a [f32],
    /// One type per piece: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub types: &'a [i32],
    /// Begin of sequence.
    pub bos: u32,
    /// End of sequence.
    pub eos: u32,
    /// The unknown piece.
    pub unk: u32,
    /// Whether a space is put in front of every text.
    pub add_space_prefix: bool,
    /// The piece that is the NUL character, whatever text stands for it in `pieces`: strings of a GGUF file do not hold it.
    pub nul: Option<u32>,
}

/// A SentencePiece byte-pair tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    pieces: Pieces,
    scores: Vec<f32>,
    kinds: Vec<Kind>,
    /// Normal, user-defined and unused pieces.
    ids: Index,
    longest_bytes: usize,
    bytes: Option<Box<[u32; 256]>>,
    user: Option<Trie>,
    /// Whether some piece is of type unused, and joins must be undone.
    unused: bool,
    /// Whether words are independent of each other: U+2581 stands only at the front of pieces, and a join to an unused piece
    /// is undone in the same way wherever it happens.
    words: bool,
    /// What a cut-out segment needs in front; `None` when the vocabulary follows neither known style.
    style: Option<Style>,
    bos: u32,
    eos: u32,
    unk: u32,
    add_space_prefix: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// A text encodes at its start as it does after a space (LLaMA).
    Plain,
    /// A segment must be given with its space in front (InternLM2).
    NeedsSpace,
}

impl Tokenizer {
    /// A tokenizer over `v`.
    ///
    /// # Errors
    /// What is wrong with the arrays, in words: lengths that differ, scores that are no numbers, types or byte pieces
    /// that do not exist, ids outside the vocabulary.
    pub fn new(v: Vocabulary<'_>) -> Result<Tokenizer, String> {
        let n = v.pieces.len();
        if n == 0 || n > MAX_PIECES {
            return Err(format!("the vocabulary has {n} pieces, expected 1 to {MAX_PIECES}"));
        }
        if v.scores.len() != n || v.types.len() != n {
            return Err(format!("{n} pieces, {} scores and {} types: they must be equally many", v.scores.len(), v.types.len()));
        }
        for (name, id) in [("begin", v.bos), ("end", v.eos), ("unknown", v.unk)] {
            if id as usize >= n {
                return Err(format!("the id of the {name} piece is {id}, but the vocabulary has {n} pieces"));
            }
        }
        if let Some(nul) = v.nul.filter(|&nul| !matches!(v.types.get(nul as usize), Some(1 | 4 | 5))) {
            return Err(format!("the id of the NUL piece is {nul}, which is no piece of text"));
        }
        let text_bytes: usize = v.pieces.iter().map(String::len).sum();
        let mut t = Tokenizer {
            pieces: Pieces::with_capacity(n, text_bytes + 1),
            scores: Vec::with_capacity(n),
            kinds: Vec::with_capacity(n),
            ids: Index::with_capacity(n),
            longest_bytes: 0,
            bytes: None,
            user: None,
            unused: false,
            words: true,
            style: None,
            bos: v.bos,
            eos: v.eos,
            unk: v.unk,
            add_space_prefix: v.add_space_prefix,
        };
        let mut byte_ids = [u32::MAX; 256];
        for (id, ((piece, &score), &ty)) in (0u32..).zip(v.pieces.iter().zip(v.scores).zip(v.types)) {
            let piece = if v.nul == Some(id) { "\0" } else { piece };
            t.add(id, piece, score, ty, &mut byte_ids)?;
        }
        t.words &= !t.unused_joins_differ();
        match byte_ids.iter().filter(|&&id| id != u32::MAX).count() {
            0 => {}
            256 => t.bytes = Some(Box::new(byte_ids)),
            found => return Err(format!("{found} byte pieces, expected all 256 or none")),
        }
        t.style = t.probe_style();
        Ok(t)
    }

    /// Adds the piece `id`.
    fn add(&mut self, id: u32, piece: &str, score: f32, ty: i32, byte_ids: &mut [u32; 256]) -> Result<(), String> {
        let name = || format!("piece {id} \"{}\"", printable(piece));
        if piece.len() > MAX_PIECE_BYTES {
            return Err(format!("{} has {} bytes, at most {MAX_PIECE_BYTES} are allowed", name(), piece.len()));
        }
        if !score.is_finite() {
            return Err(format!("{} has the score {score}", name()));
        }
        let kind = match ty {
            1 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => {
                let byte = byte_of(piece).ok_or_else(|| format!("{} is a byte piece, which is written <0x00> to <0xFF>", name()))?;
                if std::mem::replace(&mut byte_ids[usize::from(byte)], id) != u32::MAX {
                    return Err(format!("{}: this byte has two pieces", name()));
                }
                Kind::Byte(byte)
            }
            other => return Err(format!("{} has the type {other}, expected 1 to 6", name())),
        };
        if matches!(kind, Kind::Normal | Kind::UserDefined | Kind::Unused) {
            if piece.is_empty() {
                return Err(format!("piece {id} is empty"));
            }
            self.longest_bytes = self.longest_bytes.max(piece.len());
            self.unused |= kind == Kind::Unused;
            if kind == Kind::UserDefined {
                // Some writers put the space itself into user-defined pieces.
                let text = escape(piece);
                self.longest_bytes = self.longest_bytes.max(text.len());
                self.words &= !text.trim_start_matches(SPACE).contains(SPACE);
                self.user.get_or_insert_default().insert(&text, id);
            } else {
                self.words &= !piece.trim_start_matches(SPACE).contains(SPACE);
            }
        }
        self.pieces.push(piece);
        if matches!(kind, Kind::Normal | Kind::UserDefined | Kind::Unused) {
            self.ids.insert(id, &self.pieces);
        }
        self.scores.push(score + 0.0); // -0 becomes 0, so that the two compare equal
        self.kinds.push(kind);
        Ok(())
    }

    /// Whether some unused piece can be joined from its parts in more than one way. SentencePiece undoes every join to it as
    /// the last one came about, wherever in the text that was.
    fn unused_joins_differ(&self) -> bool {
        const MOST: usize = 4096;
        let unused = || (0u32..).zip(&self.kinds).filter(|(_, kind)| **kind == Kind::Unused).map(|(id, _)| self.pieces.get(id));
        let symbol = |text: &str| text.chars().nth(1).is_none() || self.ids.find(text, &self.pieces).is_some();
        let joins = |piece: &str| {
            let cuts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
            cuts.filter(|(left, right)| symbol(left) && symbol(right)).take(2).count()
        };
        self.unused && (unused().nth(MOST).is_some() || unused().flatten().any(|piece| joins(piece) > 1))
    }

    /// Number of pieces.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The piece `id`, spaces written as U+2581.
    pub fn piece(&self, id: u32) -> Option<&str> {
        self.pieces.get(id)
    }

    /// What the piece `id` is.
    pub fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    /// Id of the piece that begins every sequence.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// Id of the piece that ends a reply.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Id of the unknown piece.
    pub fn unk(&self) -> u32 {
        self.unk
    }

    /// Whether a space is put in front of every text.
    pub fn add_space_prefix(&self) -> bool {
        self.add_space_prefix
    }

    /// The least number of ids that a text of so many bytes can have: to refuse one that is far too long unread.
    pub fn fewest_ids(&self, text_bytes: usize) -> usize {
        // Without byte pieces any stretch may be one unknown id. A piece is never shorter than the text it stands for.
        if self.bytes.is_some() { text_bytes.div_ceil(self.longest_bytes.max(1)) } else { text_bytes.min(1) }
    }

    /// The ids of `text`; nothing is added at the ends.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut out = Out { ids: Vec::with_capacity(text.len() / 3 + 4), unknown: false };
        if text.is_empty() {
            return out.ids;
        }
        let mut escaped = escape(text);
        if self.add_space_prefix {
            escaped.insert(0, SPACE);
        }
        let mut merge = Merge::default();
        let mut rest = escaped.as_str();
        if let Some(user) = self.user.as_ref().filter(|_| self.words) {
            let mut at = 0;
            while at < rest.len() {
                match user.longest(&rest.as_bytes()[at..]) {
                    Some((len, id)) => {
                        self.encode_plain(&rest[..at], &mut merge, &mut out);
                        out.push(id, false);
                        rest = &rest[at + len..];
                        at = 0;
                    }
                    None => at += rest[at..].chars().next().map_or(1, char::len_utf8),
                }
            }
        }
        self.encode_plain(rest, &mut merge, &mut out);
        out.ids
    }

    /// The ids of `text` with the begin piece in front.
    pub fn encode_with_bos(&self, text: &str) -> Vec<u32> {
        let mut ids = self.encode(text);
        ids.insert(0, self.bos);
        ids
    }

    /// The ids of `text` as it would be encoded after a space inside a longer text.
    ///
    /// # Errors
    /// When the vocabulary follows neither known style.
    pub fn segment(&self, text: &str) -> Result<Vec<u32>> {
        let text = text.trim_start_matches(' ');
        Ok(match self.known_style()? {
            Style::Plain => self.encode(text),
            Style::NeedsSpace => self.encode(&format!(" {text}")),
        })
    }

    /// The ids of `text` as it would be encoded straight after another word, with no space between.
    ///
    /// # Errors
    /// When the vocabulary follows neither known style, or joins `text` with everything that could precede it.
    pub fn joined(&self, text: &str) -> Result<Vec<u32>> {
        if self.known_style()? == Style::NeedsSpace {
            return Ok(self.encode(text));
        }
        for lead in ["@", "\n", "\\", "=", ">", "`"] {
            let alone = self.encode(lead);
            let both = self.encode(&format!("{lead}{text}"));
            if let Some(rest) = both.strip_prefix(alone.as_slice()) {
                return Ok(rest.to_vec());
            }
        }
        Err(RuntimeError::Usage(format!("\"{}\" cannot be encoded apart from what precedes it", printable(text))))
    }

    fn known_style(&self) -> Result<Style> {
        self.style
            .ok_or_else(|| RuntimeError::Usage("this vocabulary encodes words differently inside a text; segments are not defined".into()))
    }

    fn probe_style(&self) -> Option<Style> {
        let whole = self.encode("Hi my darling");
        if whole.ends_with(&self.encode("my darling")) {
            Some(Style::Plain)
        } else {
            whole.ends_with(&self.encode(" my darling")).then_some(Style::NeedsSpace)
        }
    }

    /// The text of `ids`, as SentencePiece decodes it: control pieces vanish, unknown ones become ` ⁇ `, bytes are
    /// joined to characters (U+FFFD for every byte that belongs to none), and the space that encoding put in front is
    /// dropped. An id outside the vocabulary becomes U+FFFD; see [`check`](Tokenizer::check).
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut text = String::with_capacity(ids.len() * 4);
        let mut stream = TextStream::new(self);
        for &id in ids {
            stream.push(id, &mut text);
        }
        stream.finish(&mut text);
        text
    }

    /// Whether all `ids` are pieces.
    ///
    /// # Errors
    /// [`RuntimeError::Usage`] naming the first that is not.
    pub fn check(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|&&id| id as usize >= self.len()) {
            Some(id) => Err(RuntimeError::Usage(format!("token {id} is outside the vocabulary of {} pieces", self.len()))),
            None => Ok(()),
        }
    }

    /// What `id` adds to a text, spaces as spaces; `None` for control pieces and bytes.
    pub(crate) fn surface(&self, id: u32) -> Surface<'_> {
        match (self.kind(id), self.piece(id)) {
            (Some(Kind::Control), _) => Surface::Nothing,
            (Some(Kind::Byte(byte)), _) => Surface::Byte(byte),
            (Some(Kind::Unknown), _) => Surface::Whole(UNKNOWN_SURFACE),
            (Some(_), Some(piece)) => Surface::Piece(piece),
            _ => Surface::Whole("\u{FFFD}"),
        }
    }

    /// Encodes text without user-defined pieces, or, where words depend on each other, all of a text.
    fn encode_plain(&self, text: &str, merge: &mut Merge, out: &mut Out) {
        let mut rest = text;
        while !rest.is_empty() {
            let end = if self.words { word_end(rest) } else { rest.len() };
            let end = (0..=end.min(MAX_WORD_BYTES)).rev().find(|&i| rest.is_char_boundary(i)).unwrap_or(end);
            let (word, tail) = rest.split_at(end);
            self.encode_word(word, merge, out);
            rest = tail;
        }
    }

    /// Joins the characters of `word`, best pair first.
    fn encode_word(&self, word: &str, merge: &mut Merge, out: &mut Out) {
        let Merge { symbols, pairs, splits } = merge;
        symbols.clear();
        pairs.clear();
        splits.clear();
        let user = self.user.as_ref().filter(|_| !self.words);
        let mut start = 0;
        while let Some(c) = word[start..].chars().next() {
            let (bytes, id) = user.and_then(|user| user.longest(&word.as_bytes()[start..])).unwrap_or((c.len_utf8(), NONE));
            let (i, end) = (symbols.len() as u32, start + bytes);
            symbols.push(Symbol { start: start as u32, end: end as u32, prev: i.wrapping_sub(1), next: i + 1, id, fixed: id != NONE });
            start = end;
        }
        let count = symbols.len() as u32;
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        for right in 1..count {
            self.offer(word, symbols, pairs, splits, right - 1, right);
        }
        while let Some(Pair { left, right, bytes, id, .. }) = pairs.pop() {
            let (l, r) = (symbols[left as usize], symbols[right as usize]);
            // A symbol that was joined away is empty; one that has grown no longer adds up.
            if l.start == l.end || r.start == r.end || r.end - l.start != bytes {
                continue;
            }
            symbols[left as usize] = Symbol { end: r.end, next: r.next, id, ..l };
            symbols[right as usize] = Symbol { end: r.start, ..r };
            if r.next != NONE {
                symbols[r.next as usize].prev = left;
            }
            // In SentencePiece's order, of which unused pieces keep the last.
            if l.prev != NONE {
                self.offer(word, symbols, pairs, splits, l.prev, left);
            }
            if r.next != NONE {
                self.offer(word, symbols, pairs, splits, left, r.next);
            }
        }
        let mut at = 0;
        while at != NONE && at < count {
            let symbol = symbols[at as usize];
            self.emit(&word[symbol.start as usize..symbol.end as usize], symbol.id, splits, out);
            at = symbol.next;
        }
    }

    /// Queues the pair of adjacent symbols `left` and `right` if it forms a piece.
    fn offer(&self, word: &str, symbols: &[Symbol], pairs: &mut BinaryHeap<Pair>, splits: &mut AHashMap<u32, u32>, left: u32, right: u32) {
        let (l, r) = (symbols[left as usize], symbols[right as usize]);
        let bytes = r.end - l.start;
        if bytes as usize > self.longest_bytes || l.fixed || r.fixed {
            return;
        }
        let Some(id) = self.ids.find(&word[l.start as usize..r.end as usize], &self.pieces) else { return };
        pairs.push(Pair { score: self.scores[id as usize], left, right, bytes, id });
        if self.unused && self.kinds[id as usize] == Kind::Unused {
            splits.insert(id, l.end - l.start);
        }
    }

    /// Puts out the symbol `text`, whose piece is `id` if it was joined. Joins to unused pieces are undone; a character
    /// whose piece is unused is one that has none.
    fn emit(&self, text: &str, id: u32, splits: &AHashMap<u32, u32>, out: &mut Out) {
        let known = if id == NONE { self.ids.find(text, &self.pieces) } else { Some(id) };
        let unused = known.filter(|&id| self.unused && self.kinds[id as usize] == Kind::Unused);
        if let Some(&at) = unused.and_then(|id| splits.get(&id)) {
            let (left, right) = text.split_at(at as usize);
            self.emit(left, NONE, splits, out);
            self.emit(right, NONE, splits, out);
        } else if let Some(id) = known.filter(|_| unused.is_none()) {
            out.push(id, false);
        } else if let Some(bytes) = &self.bytes {
            text.bytes().for_each(|b| out.push(bytes[usize::from(b)], false));
        } else {
            out.push(self.unk, true);
        }
    }
}

/// What one id adds to a text.
pub(crate) enum Surface<'a> {
    Nothing,
    Byte(u8),
    /// Text as it is, spaces and all.
    Whole(&'a str),
    /// A piece, U+2581 for spaces.
    Piece(&'a str),
}

const NONE: u32 = u32::MAX;

/// A stretch of the word, linked with its neighbours.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    start: u32,
    end: u32,
    prev: u32,
    next: u32,
    /// The piece it was joined to, or [`NONE`] for a single character.
    id: u32,
    /// Whether it is a user-defined piece, which joins nothing.
    fixed: bool,
}

/// Two neighbours that form a piece.
#[derive(Clone, Copy, Debug)]
struct Pair {
    score: f32,
    left: u32,
    right: u32,
    bytes: u32,
    id: u32,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}
impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Pair {}

/// Working memory of one call.
#[derive(Default)]
struct Merge {
    symbols: Vec<Symbol>,
    pairs: BinaryHeap<Pair>,
    /// For unused pieces: bytes of the left part of the pair that formed them.
    splits: AHashMap<u32, u32>,
}

/// Ids so far. Neighbouring unknown pieces become one.
struct Out {
    ids: Vec<u32>,
    unknown: bool,
}

impl Out {
    fn push(&mut self, id: u32, unknown: bool) {
        if !(unknown && self.unknown) {
            self.ids.push(id);
        }
        self.unknown = unknown;
    }
}

/// All pieces, end to end in one text.
#[derive(Debug)]
struct Pieces {
    text: String,
    ends: Vec<u32>,
}

impl Pieces {
    fn with_capacity(pieces: usize, bytes: usize) -> Pieces {
        Pieces { text: String::with_capacity(bytes), ends: Vec::with_capacity(pieces) }
    }

    fn push(&mut self, piece: &str) {
        self.text.push_str(piece);
        self.ends.push(self.text.len() as u32); // at most MAX_PIECES · MAX_PIECE_BYTES
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, id: u32) -> Option<&str> {
        let id = id as usize;
        let end = *self.ends.get(id)? as usize;
        let start = if id == 0 { 0 } else { *self.ends.get(id - 1)? as usize };
        self.text.get(start..end)
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len() as u32).map_while(|id| self.get(id))
    }
}

/// Pieces by their text: ids at the places that their hashes say, or the next free ones.
#[derive(Debug)]
struct Index {
    /// At most half full, so that a search ends soon; a power of two of them.
    places: Vec<u32>,
    hash: RandomState,
}

impl Index {
    fn with_capacity(pieces: usize) -> Index {
        Index { places: vec![NONE; (2 * pieces).next_power_of_two()], hash: RandomState::new() }
    }

    /// The place of `text`, or the free one where it belongs.
    fn place(&self, text: &str, pieces: &Pieces) -> usize {
        let mask = self.places.len() - 1;
        let mut at = self.hash.hash_one(text.as_bytes()) as usize & mask;
        while self.places[at] != NONE && pieces.get(self.places[at]) != Some(text) {
            at = (at + 1) & mask;
        }
        at
    }

    /// Adds the piece `id`, in place of an equal one.
    fn insert(&mut self, id: u32, pieces: &Pieces) {
        let at = self.place(pieces.get(id).unwrap_or_default(), pieces);
        self.places[at] = id;
    }

    fn find(&self, text: &str, pieces: &Pieces) -> Option<u32> {
        Some(self.places[self.place(text, pieces)]).filter(|&id| id != NONE)
    }
}

/// User-defined pieces by their bytes.
#[derive(Debug, Default)]
struct Trie {
    children: AHashMap<(u32, u8), u32>,
    /// The piece that ends at a node.
    ends: Vec<Option<u32>>,
}

impl Trie {
    fn insert(&mut self, text: &str, id: u32) {
        if self.ends.is_empty() {
            self.ends.push(None);
        }
        let mut node = 0;
        for byte in text.bytes() {
            node = *self.children.entry((node, byte)).or_insert_with(|| {
                self.ends.push(None);
                self.ends.len() as u32 - 1
            });
        }
        if let Some(end) = self.ends.get_mut(node as usize) {
            *end = Some(id);
        }
    }

    /// Length and id of the longest piece that `bytes` begin with.
    fn longest(&self, bytes: &[u8]) -> Option<(usize, u32)> {
        let (mut node, mut found) = (0, None);
        for (i, &byte) in bytes.iter().enumerate() {
            match self.children.get(&(node, byte)) {
                Some(&next) => node = next,
                None => break,
            }
            if let Some(id) = self.ends.get(node as usize).copied().flatten() {
                found = Some((i + 1, id));
            }
        }
        found
    }
}

/// `text` with U+2581 for every space.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 3 + 3);
    for c in text.chars() {
        out.push(if c == ' ' { SPACE } else { c });
    }
    out
}

/// Bytes of the first word of `text`: up to the first U+2581 that follows something else.
fn word_end(text: &str) -> usize {
    let body = text.trim_start_matches(SPACE);
    text.len() - body.len() + body.find(SPACE).unwrap_or(body.len())
}

/// The byte that a byte piece stands for.
fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then(|| u8::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vocabulary of `(piece, score, type)`, unknown, begin and end first.
    fn tokenizer(rows: &[(&str, f32, i32)], add_space_prefix: bool) -> Result<Tokenizer, String> {
        let all = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)];
        let rows: Vec<_> = all.iter().chain(rows).collect();
        let pieces: Vec<String> = rows.iter().map(|r| r.0.to_string()).collect();
        let scores: Vec<f32> = rows.iter().map(|r| r.1).collect();
        let types: Vec<i32> = rows.iter().map(|r| r.2).collect();
        Tokenizer::new(Vocabulary { pieces: &pieces, scores: &scores, types: &types, bos: 1, eos: 2, unk: 0, add_space_prefix, nul: None })
    }

    #[test]
    fn joins_best_pair_first_then_leftmost() {
        let t = tokenizer(&[("a", -9.0, 1), ("b", -9.0, 1), ("ab", -2.0, 1), ("ba", -1.0, 1), ("aa", -3.0, 1)], false).unwrap();
        assert_eq!(t.encode("aba"), [3, 6]); // "ba" has the higher score, although "ab" comes first
        assert_eq!(t.encode("aaa"), [7, 3]); // equal scores: the left pair
        assert_eq!(t.encode("baba"), [6, 6]);
    }

    #[test]
    fn user_defined_pieces_are_longest_first_and_stay_apart() {
        let t = tokenizer(&[("a", -9.0, 1), ("<x>", 0.0, 4), ("<x>a", 0.0, 4), ("aa", -1.0, 1), ("[ ]", 0.0, 4)], false).unwrap();
        assert_eq!(t.encode("<x>aaa<x>"), [5, 6, 4]);
        assert_eq!(t.encode("a[ ]a"), [3, 7, 3]);
        assert_eq!(t.decode(&[3, 7, 3]), "a[ ]a");
    }

    #[test]
    fn joins_to_unused_pieces_are_undone() {
        let t = tokenizer(&[("a", -9.0, 1), ("b", -9.0, 1), ("c", -9.0, 1), ("ab", -1.0, 5), ("abc", -2.0, 5)], false).unwrap();
        assert_eq!(t.encode("abc"), [3, 4, 5]);
        let t = tokenizer(&[("a", -9.0, 1), ("b", -9.0, 1), ("c", -9.0, 1), ("ab", -1.0, 5), ("abc", -2.0, 1)], false).unwrap();
        assert_eq!(t.encode("abcab"), [7, 3, 4]);
    }

    /// The rule for unused pieces in so many words: join over the whole text, remember how each unused piece came about last,
    /// and take joins to them apart in that way.
    fn join_and_undo(t: &Tokenizer, text: &str) -> Vec<u32> {
        fn undo(t: &Tokenizer, text: &str, splits: &AHashMap<String, usize>, ids: &mut Vec<u32>) {
            let id = t.ids.find(text, &t.pieces).unwrap_or(t.unk);
            match splits.get(text).filter(|_| t.kinds[id as usize] == Kind::Unused) {
                Some(&at) => {
                    undo(t, &text[..at], splits, ids);
                    undo(t, &text[at..], splits, ids);
                }
                None => ids.push(id),
            }
        }
        let escaped = escape(text);
        let mut symbols: Vec<&str> = escaped.char_indices().map(|(at, c)| &escaped[at..at + c.len_utf8()]).collect();
        let mut splits = AHashMap::new();
        let joined = |at: usize, symbols: &[&str]| symbols[at].to_owned() + symbols[at + 1];
        let mut note = |at: usize, symbols: &[&str]| {
            if let Some(id) = t.ids.find(&joined(at, symbols), &t.pieces).filter(|&id| t.kinds[id as usize] == Kind::Unused) {
                splits.insert(t.pieces.get(id).unwrap().to_owned(), symbols[at].len());
            }
        };
        (1..symbols.len()).for_each(|right| note(right - 1, &symbols));
        loop {
            let score = |at: usize| t.ids.find(&joined(at, &symbols), &t.pieces).map(|id| t.scores[id as usize]);
            let mut best: Option<(f32, usize)> = None;
            for at in 0..symbols.len().saturating_sub(1) {
                if let Some(score) = score(at).filter(|&s| best.is_none_or(|b| s > b.0)) {
                    best = Some((score, at));
                }
            }
            let Some((_, at)) = best else { break };
            let start = symbols[at].as_ptr() as usize - escaped.as_ptr() as usize;
            let bytes = symbols[at].len() + symbols[at + 1].len();
            symbols.remove(at + 1);
            symbols[at] = &escaped[start..start + bytes];
            if at > 0 {
                note(at - 1, &symbols);
            }
            if at + 1 < symbols.len() {
                note(at, &symbols);
            }
        }
        let mut ids = Vec::new();
        symbols.iter().for_each(|symbol| undo(t, symbol, &splits, &mut ids));
        ids
    }

    #[test]
    fn an_unused_piece_is_taken_apart_as_it_last_came_about() {
        // "abc" is "ab" + "c" or "a" + "bc", after whichever word came last.
        let rows = [("a", -9.0, 1), ("b", -9.0, 1), ("c", -9.0, 1), ("\u{2581}", -9.0, 1), ("ab", -3.0, 1), ("bc", -2.0, 1)];
        let rows: Vec<_> = rows.into_iter().chain([("abc", -1.0, 5), ("ca", -1.5, 1), ("\u{2581}a", -1.2, 1)]).collect();
        let t = tokenizer(&rows, false).unwrap();
        assert!(!t.words && t.unused);
        for text in ["abc", "abc abc", "ab c abc", "abcabc", "cab abc bc", "abc cabc abc ab"] {
            assert_eq!(t.encode(text), join_and_undo(&t, text), "{text:?}");
        }
        // With one way only, words stay apart.
        let one_way: Vec<_> = rows.iter().filter(|r| r.0 != "bc").copied().collect();
        let t = tokenizer(&one_way, false).unwrap();
        assert!(t.words);
        for text in ["abc", "abc abc", "ab c abc", "abcabc", "cab abc bc"] {
            assert_eq!(t.encode(text), join_and_undo(&t, text), "{text:?}");
        }
    }

    #[test]
    fn user_defined_pieces_stay_apart_where_words_do_not() {
        let rows =
            [("a", -9.0, 1), ("\u{2581}", -9.0, 1), ("a\u{2581}a", -1.0, 1), ("a\u{2581}", -2.0, 1), ("<x>", 0.0, 4), ("[ ]", 0.0, 4)];
        let t = tokenizer(&rows, false).unwrap();
        assert!(!t.words);
        assert_eq!(t.encode("a a<x>a a"), [5, 7, 5]);
        assert_eq!(t.encode("a <x> a[ ]"), [6, 7, 4, 3, 8]);
    }

    #[test]
    fn the_nul_piece_is_nul_and_nothing_else() {
        let pieces: Vec<String> = ["<unk>", "<s>", "a", "\u{1F409}", "aa"].map(Into::into).into();
        let v = Vocabulary {
            pieces: &pieces,
            scores: &[0.0; 5],
            types: &[2, 3, 1, 1, 1],
            bos: 1,
            eos: 1,
            unk: 0,
            add_space_prefix: false,
            nul: Some(3),
        };
        let t = Tokenizer::new(v).unwrap();
        assert_eq!(t.encode("a\0aa\0"), [2, 3, 4, 3]);
        assert_eq!(t.decode(&[2, 3, 4]), "a\0aa");
        assert_eq!(t.encode("\u{1F409}"), [0]); // not the text that stood for it
        assert_eq!((t.piece(3), t.piece(4), t.piece(5)), (Some("\0"), Some("aa"), None));
        assert_eq!(Tokenizer::new(Vocabulary { nul: None, ..v }).unwrap().encode("\0\u{1F409}"), [0, 3]);
        assert!(Tokenizer::new(Vocabulary { nul: Some(1), ..v }).unwrap_err().contains("NUL piece is 1"));
        assert!(Tokenizer::new(Vocabulary { nul: Some(5), ..v }).unwrap_err().contains("NUL piece is 5"));
    }

    #[test]
    fn without_byte_pieces_a_run_of_unknowns_is_one() {
        let t = tokenizer(&[("a", -9.0, 1)], false).unwrap();
        assert_eq!(t.encode("xyzaq"), [0, 3, 0]);
        assert_eq!(t.decode(&[0, 3]), " \u{2047} a");
    }

    #[test]
    fn control_pieces_are_never_found_in_text() {
        let t = tokenizer(&[("<", -9.0, 1), ("s", -9.0, 1), (">", -9.0, 1), ("#", 0.0, 3)], false).unwrap();
        assert_eq!(t.encode("<s>#"), [3, 4, 5, 0]);
    }

    #[test]
    fn pieces_with_inner_spaces_are_found_across_words() {
        let rows = [("a", -9.0, 1), ("b", -9.0, 1), ("\u{2581}", -9.0, 1), ("a\u{2581}", -2.0, 1), ("a\u{2581}b", -1.0, 1)];
        let t = tokenizer(&rows, false).unwrap();
        assert!(!t.words);
        assert_eq!(t.encode("a b"), [7]);
    }

    #[test]
    fn broken_arrays_are_named() {
        let wrong = |rows: &[(&str, f32, i32)], words: &str| {
            let message = tokenizer(rows, true).unwrap_err();
            assert!(message.contains(words), "{message}");
        };
        wrong(&[("a", f32::NAN, 1)], "score NaN");
        wrong(&[("a", f32::INFINITY, 1)], "score inf");
        wrong(&[("a", 0.0, 0)], "type 0");
        wrong(&[("a", 0.0, 7)], "type 7");
        wrong(&[("", 0.0, 1)], "empty");
        wrong(&[("<0xGG>", 0.0, 6)], "byte piece");
        wrong(&[("<0x-1>", 0.0, 6)], "byte piece");
        wrong(&[("<0x100>", 0.0, 6)], "byte piece");
        wrong(&[("<0x+A>", 0.0, 6)], "byte piece");
        wrong(&[("<0x0A>", 0.0, 6)], "1 byte pieces");
        wrong(&[("<0x0A>", 0.0, 6), ("<0x0a>", 0.0, 6)], "two pieces");
        wrong(&[(&"x".repeat(1025), 0.0, 1)], "1025 bytes");
        let v =
            Vocabulary { pieces: &["a".into()], scores: &[0.0], types: &[1], bos: 0, eos: 0, unk: 0, add_space_prefix: true, nul: None };
        assert!(Tokenizer::new(v).is_ok());
        assert!(Tokenizer::new(Vocabulary { bos: 1, ..v }).unwrap_err().contains("begin piece is 1"));
        assert!(Tokenizer::new(Vocabulary { scores: &[], ..v }).unwrap_err().contains("0 scores"));
        assert!(Tokenizer::new(Vocabulary { pieces: &[], ..v }).unwrap_err().contains("0 pieces"));
    }

    #[test]
    fn the_fewest_ids_of_a_text() {
        let t = tokenizer(&[("ab", 0.0, 1)], true).unwrap();
        assert_eq!((t.fewest_ids(0), t.fewest_ids(1000)), (0, 1));
        let bytes: Vec<String> = (0..256).map(|b| format!("<0x{b:02X}>")).collect();
        let rows: Vec<(&str, f32, i32)> = bytes.iter().map(|b| (b.as_str(), 0.0, 6)).chain([("aaaa", 0.0, 1)]).collect();
        let t = tokenizer(&rows, true).unwrap();
        assert_eq!((t.fewest_ids(0), t.fewest_ids(9)), (0, 3));
        for text in ["aaaaaaaaa", "a b", "\u{1F600}"] {
            assert!(t.encode(text).len() >= t.fewest_ids(text.len()));
        }
    }

    #[test]
    fn ids_outside_the_vocabulary() {
        let t = tokenizer(&[("a", 0.0, 1)], true).unwrap();
        assert!(t.check(&[0, 3]).is_ok());
        assert!(t.check(&[0, 4]).unwrap_err().to_string().contains("token 4"));
        assert_eq!(t.decode(&[3, 4]), "a\u{FFFD}");
    }
}
