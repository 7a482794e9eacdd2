//! Text while it is being generated: ids to characters, and stop texts held back.

use crate::tokenizer::{Surface, Tokenizer};

/// Decodes ids one at a time; all text together is what [`Tokenizer::decode`] gives for all ids together.
///
/// Only whole characters come out: bytes of an unfinished character wait for the next id.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    /// Bytes of a character that is not complete.
    bytes: Vec<u8>,
    /// Whether a space in front would be the one that encoding put there.
    leading: bool,
}

impl<'t> TextStream<'t> {
    /// At the start of a text.
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        TextStream { tokenizer, bytes: Vec::with_capacity(4), leading: tokenizer.add_space_prefix() }
    }

    /// Appends to `out` what `id` adds.
    pub fn push(&mut self, id: u32, out: &mut String) {
        match self.tokenizer.surface(id) {
            Surface::Byte(byte) => {
                self.leading = false;
                self.bytes.push(byte);
                self.drain(out);
            }
            Surface::Nothing => self.finish(out),
            Surface::Whole(text) => {
                self.finish(out);
                self.leading = false;
                out.push_str(text);
            }
            Surface::Piece(piece) => {
                self.finish(out);
                let piece = if self.leading { piece.strip_prefix('\u{2581}').unwrap_or(piece) } else { piece };
                self.leading = false;
                out.extend(piece.chars().map(|c| if c == '\u{2581}' { ' ' } else { c }));
            }
        }
    }

    /// Appends what is still waiting: U+FFFD for every byte of an unfinished character.
    pub fn finish(&mut self, out: &mut String) {
        out.extend(self.bytes.drain(..).map(|_| char::REPLACEMENT_CHARACTER));
    }

    /// Moves complete characters to `out`, U+FFFD for bytes that cannot become one.
    fn drain(&mut self, out: &mut String) {
        loop {
            match std::str::from_utf8(&self.bytes) {
                Ok(text) => {
                    out.push_str(text);
                    self.bytes.clear();
                    return;
                }
                Err(e) => {
                    let good = e.valid_up_to();
                    out.push_str(&String::from_utf8_lossy(&self.bytes[..good]));
                    self.bytes.drain(..good);
                    if e.error_len().is_none() {
                        return;
                    }
                    out.push(char::REPLACEMENT_CHARACTER);
                    self.bytes.remove(0);
                }
            }
        }
    }
}

/// Lets text through up to the first stop text, keeping back what may be the beginning of one.
#[derive(Debug)]
pub struct StopGuard<'s> {
    stops: &'s [String],
    held: String,
    passed_bytes: usize,
}

impl<'s> StopGuard<'s> {
    /// Watches for `stops`, none of which is empty.
    pub fn new(stops: &'s [String]) -> Self {
        StopGuard { stops, held: String::new(), passed_bytes: 0 }
    }

    /// Takes `text` and appends to `out` what may be shown. Returns true at the first stop text, which, like all that
    /// follows it, never comes out.
    pub fn push(&mut self, text: &str, out: &mut String) -> bool {
        self.held.push_str(text);
        let hit = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let keep = match hit {
            Some(at) => at,
            None => self.held.len() - self.beginning_of_a_stop(),
        };
        self.pass(keep, out);
        if hit.is_some() {
            self.held.clear();
        }
        hit.is_some()
    }

    /// The text is over: what was held back is shown.
    pub fn finish(&mut self, out: &mut String) {
        self.pass(self.held.len(), out);
    }

    /// Bytes let through so far: after a hit, where the reply was cut.
    pub fn passed_bytes(&self) -> usize {
        self.passed_bytes
    }

    fn pass(&mut self, bytes: usize, out: &mut String) {
        out.extend(self.held.drain(..bytes));
        self.passed_bytes += bytes;
    }

    /// Bytes of the longest end of the held text that some stop text begins with.
    fn beginning_of_a_stop(&self) -> usize {
        let longest = self.stops.iter().map(|s| s.len().saturating_sub(1)).max().unwrap_or(0).min(self.held.len());
        (1..=longest)
            .rev()
            .find(|&n| {
                let at = self.held.len() - n;
                self.held.is_char_boundary(at) && self.stops.iter().any(|stop| stop.starts_with(&self.held[at..]))
            })
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut guard = StopGuard::new(&stops);
        let mut out = Vec::new();
        for piece in pieces {
            let mut text = String::new();
            let hit = guard.push(piece, &mut text);
            out.push(text);
            if hit {
                assert_eq!(guard.passed_bytes(), out.concat().len());
                return (out, true);
            }
        }
        let mut text = String::new();
        guard.finish(&mut text);
        out.push(text);
        (out, false)
    }

    #[test]
    fn holds_back_what_may_be_a_stop() {
        let (out, hit) = shown(&["\n###"], &["a", "\n", "##", "b", "\n#", "##x"]);
        assert!(hit);
        assert_eq!(out, ["a", "", "", "\n##b", "", ""]);
    }

    #[test]
    fn shows_what_turned_out_to_be_none() {
        let (out, hit) = shown(&["\n###", "END"], &["EN", "\n\n##"]);
        assert!(!hit);
        assert_eq!(out.concat(), "EN\n\n##");
    }

    #[test]
    fn cuts_at_the_first_of_several() {
        assert_eq!(shown(&["cd", "bcd"], &["abcde"]), (vec!["a".to_string()], true));
        assert_eq!(shown(&["é#"], &["é", "#"]), (vec![String::new(), String::new()], true));
        assert_eq!(shown(&[], &["x"]).0.concat(), "x");
    }
}
