//! One conversation: a cache of what the model has seen, and replies.
//!
//! A sequence is the first token, the rows of the pictures if there are any, and the other tokens. What a session has in
//! its cache is kept as far as the next sequence agrees with it, so that a conversation only pays for what is new.

use std::hash::{DefaultHasher, Hasher};
use std::ops::ControlFlow;
use std::time::Instant;

use sphinx_targets::{KvType, Target};

use crate::decoder::{LOGIT_ROWS, Scratch};
use crate::sampler::{Sampler, Sampling};
use crate::sphinx::Sphinx;
use crate::stream::{StopGuard, TextStream};
use crate::tokenizer::Tokenizer;
use crate::vision::ImageRows;
use crate::{Result, RuntimeError};

/// Most texts that may end a reply.
pub(crate) const MAX_STOPS: usize = 64;
/// Longest of them in bytes.
pub(crate) const MAX_STOP_BYTES: usize = 1024;

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Request<'a> {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens of the reply, at least 1.
    pub max_tokens: usize,
    /// Texts that end the reply and are no part of it.
    pub stop: &'a [String],
    /// Drop the front of a prompt that is too long, as the released code does, instead of refusing it. The first
    /// token goes too, and the picture then follows whatever comes first.
    pub truncate: bool,
}

impl Default for Request<'_> {
    /// Temperature 0.1, top-p 0.5, at most 512 tokens, no stop text.
    fn default() -> Self {
        Request { sampling: Sampling::default(), max_tokens: 512, stop: &[], truncate: false }
    }
}

/// Why a reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop text came.
    Stop,
    /// It reached its greatest length.
    Length,
    /// The caller broke it off.
    Cancelled,
}

impl FinishReason {
    /// The reason as JSON spells it.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// A reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// Its text, not trimmed, without the stop text.
    pub text: String,
    /// Its tokens, without the end token and the tokens of the stop text.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Text tokens of the prompt, the first one counted.
    pub prompt_tokens: usize,
    /// Rows of the pictures.
    pub image_tokens: usize,
    /// Tokens that were dropped from the front of the prompt.
    pub dropped_tokens: usize,
    /// How long it took.
    pub timings: Timings,
}

/// Seconds, and what was done in them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Running the prompt (and the pictures' rows) through the decoder.
    pub prefill_s: f64,
    /// Positions that this took; those still in the cache are not among them.
    pub prefill_positions: usize,
    /// From the start of the prefill to the first token.
    pub first_token_s: f64,
    /// All tokens after the first.
    pub decode_s: f64,
    /// How many these were.
    pub decode_tokens: usize,
}

/// A conversation with a model: one cache, one set of buffers.
pub struct Session<'m, T: Target> {
    model: &'m Sphinx<T>,
    caches: Vec<T::Kv>,
    scratch: Scratch<T>,
    capacity: usize,
    chunk: usize,
    /// Tokens of the current sequence.
    ids: Vec<u32>,
    /// A hash of each row of its pictures.
    image: Vec<u64>,
    /// Positions of the current sequence whose keys and values are in the cache.
    done: usize,
    /// Logits of up to 16 rows `[rows, vocabulary]`.
    logits: Vec<f32>,
    last_reused: usize,
}

/// How many tokens a prompt may have beside its pictures and the reply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget<'a> {
    /// Positions of the session.
    pub capacity: usize,
    /// Tokens of the prompt, the first one counted.
    pub tokens: usize,
    /// Rows of each picture.
    pub pictures: &'a [usize],
    /// Most tokens of the reply.
    pub new: usize,
}

impl Budget<'_> {
    fn rows(&self) -> usize {
        self.pictures.iter().fold(0, |all, &n| all.saturating_add(n))
    }

    /// Positions that are left for the prompt's tokens.
    fn available(&self) -> usize {
        self.capacity.saturating_sub(self.rows()).saturating_sub(self.new)
    }

    /// How many of the prompt's tokens are used: all, or the last that fit when the others may be dropped.
    ///
    /// # Errors
    /// [`RuntimeError::Usage`] stating the sum and what would fit.
    pub fn kept(&self, truncate: bool) -> Result<usize> {
        let (tokens, available) = (self.tokens, self.available());
        if available == 0 {
            return Err(RuntimeError::Usage(format!("no position is left for the prompt: {}", self.sum())));
        }
        if tokens > available && !truncate {
            let drop = if self.new > 0 { ", or drop the front of the text with --truncate" } else { "" };
            return Err(RuntimeError::Usage(format!("the prompt needs {tokens} tokens, {available} are available: {}{drop}", self.sum())));
        }
        Ok(tokens.min(available))
    }

    /// What is asked for, what there is, how many pictures would fit, and what to do.
    fn sum(&self) -> String {
        let text = self.tokens.saturating_sub(1);
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let pictures = match self.pictures {
            [] => String::new(),
            [first, rest @ ..] if rest.iter().all(|n| n == first) => {
                format!(" + {} × {first} rows", count(self.pictures.len(), "picture"))
            }
            all => format!(" + {} rows of {}", self.rows(), count(all.len(), "picture")),
        };
        let total = self.tokens.saturating_add(self.rows()).saturating_add(self.new);
        let room = self.capacity.saturating_sub(self.tokens).saturating_sub(self.new);
        let fit = match self.pictures.iter().max().map(|&largest| (largest, room.checked_div(largest))) {
            Some((largest, Some(0))) => format!("; not one picture of {largest} rows would fit"),
            Some((largest, Some(n))) => format!("; at most {} of {largest} rows would fit", count(n, "picture")),
            _ => String::new(),
        };
        let fewer = if self.pictures.len() > 1 { "give fewer pictures, " } else { "" };
        let (new_tokens, ask) = match self.new {
            0 => (String::new(), ""),
            n => (format!(" + {}", count(n, "new token")), ", ask for fewer new tokens"),
        };
        format!(
            "1 first token + {text} of text{pictures}{new_tokens} = {total}, the context has {}{fit} — {fewer}shorten the text{ask}, \
             give --context {total} or more",
            self.capacity
        )
    }
}

/// A hash per row.
fn hashes(image: &ImageRows) -> Vec<u64> {
    let row = |row: &[f32]| {
        let mut hasher = DefaultHasher::new();
        hasher.write(bytemuck::cast_slice(row));
        hasher.finish()
    };
    image.rows.chunks_exact(image.dim.max(1)).map(row).collect()
}

/// How many of the first items of both are equal.
fn common<E: PartialEq>(a: &[E], b: &[E]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl<'m, T: Target> Session<'m, T> {
    /// A session of `capacity` positions that takes prompts in pieces of `chunk` rows.
    pub(crate) fn new(model: &'m Sphinx<T>, capacity: usize, chunk: usize, kv: KvType) -> Result<Session<'m, T>> {
        let t = model.target();
        Ok(Session {
            model,
            caches: model.decoder().caches(t, capacity, kv)?,
            scratch: model.decoder().scratch(t, chunk)?,
            capacity,
            chunk,
            ids: Vec::with_capacity(capacity),
            image: Vec::new(),
            done: 0,
            logits: vec![0.0; chunk.min(LOGIT_ROWS) * model.params().vocabulary],
            last_reused: 0,
        })
    }

    /// Positions that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Positions in the cache.
    pub fn positions(&self) -> usize {
        self.done
    }

    /// Positions that the last prompt found in the cache.
    pub fn reused_positions(&self) -> usize {
        self.last_reused
    }

    /// Bytes of the caches.
    pub fn cache_bytes(&self) -> usize {
        self.caches.iter().map(|kv| self.model.target().kv_bytes(kv)).sum()
    }

    /// Bytes that keys and values written so far take, and those of the session's buffers.
    pub fn taken_bytes(&self) -> (usize, usize) {
        let buffers = self.scratch.bytes(self.model.target(), self.chunk) + 4 * self.logits.len();
        (self.cache_bytes() * self.done / self.capacity, buffers)
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.done = 0;
    }

    /// Runs `ids` and the pictures, and returns the logits after the last token `[vocabulary]`. What the cache already
    /// holds of this sequence is not run again.
    ///
    /// # Errors
    /// [`RuntimeError::Usage`] when there is no token, one is outside the vocabulary, or the sequence exceeds the
    /// context; [`RuntimeError::NotFinite`] when the model's numbers are none.
    pub fn prefill(&mut self, ids: &[u32], image: Option<&ImageRows>) -> Result<&[f32]> {
        let _ = self.feed(ids, image, ids.len().saturating_sub(1), &mut || ControlFlow::Continue(()), &mut |_| {})?;
        Ok(&self.logits[..self.model.params().vocabulary])
    }

    /// Appends one token to the sequence and returns the logits after it `[vocabulary]`.
    ///
    /// # Errors
    /// As [`prefill`](Session::prefill); also when nothing precedes it.
    pub fn step(&mut self, id: u32) -> Result<&[f32]> {
        self.model.tokenizer().check(&[id])?;
        let pos = self.done;
        if pos == 0 || pos != self.ids.len() + self.image.len() {
            return Err(RuntimeError::Usage("a token can only be appended to a sequence that is complete".into()));
        }
        if pos >= self.capacity {
            return Err(RuntimeError::Usage(format!("the context of {} positions is full — give more with --context", self.capacity)));
        }
        let (t, decoder, s) = (self.model.target(), self.model.decoder(), &mut self.scratch);
        t.set_rows(&mut s.x, 1)?;
        decoder.embed(t, &[id], s, 0)?;
        decoder.forward(t, s, &mut self.caches, pos)?;
        let row = &mut self.logits[..decoder.params().vocabulary];
        decoder.logits(t, s, 0, 1, row)?;
        self.ids.push(id);
        self.done = pos + 1;
        finite(self.model, row, pos)?;
        Ok(row)
    }

    /// Logits `[tokens, vocabulary]` for a given text: row `i` predicts token `i + 1`. With pictures, row 0 is
    /// read at their last row.
    ///
    /// # Errors
    /// As [`prefill`](Session::prefill).
    pub fn logits(&mut self, tokens: &[u32], image: Option<&ImageRows>) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(tokens.len() * self.model.params().vocabulary);
        let _ = self.feed(tokens, image, 0, &mut || ControlFlow::Continue(()), &mut |rows| all.extend_from_slice(rows))?;
        Ok(all)
    }

    /// Runs `ids` and the pictures for what the target sees of them, logits of every token included. Nothing of an earlier
    /// sequence is reused.
    pub(crate) fn run_all(&mut self, ids: &[u32], image: Option<&ImageRows>) -> Result<()> {
        self.reset();
        self.feed(ids, image, 0, &mut || ControlFlow::Continue(()), &mut |_| {}).map(|_| ())
    }

    /// Generates a reply to `prompt` about the pictures.
    ///
    /// `on_text` gets the reply's text as it comes, whole characters only and nothing that may turn out to begin a stop
    /// text; it is called once per token and once per piece of the prompt, with an empty text where there is none, and
    /// can break off.
    ///
    /// # Errors
    /// As [`prefill`](Session::prefill); [`RuntimeError::Usage`] also for senseless parameters and when the prompt
    /// leaves no room for `max_tokens` tokens (unless it may be truncated).
    pub fn generate(
        &mut self,
        prompt: &[u32],
        image: Option<&ImageRows>,
        request: &Request<'_>,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reply> {
        let start = Instant::now();
        let mut sampler = Sampler::new(request.sampling, self.model.params().vocabulary)?;
        let image_tokens = image.map_or(0, |i| i.count);
        let dropped = prompt.len() - self.kept_tokens(prompt.len(), image, request)?;
        let prompt = prompt.get(dropped..).unwrap_or_default();
        let tokenizer = self.model.tokenizer();
        let mut reply = Reply {
            text: String::new(),
            tokens: Vec::with_capacity(request.max_tokens),
            finish: FinishReason::Length,
            prompt_tokens: prompt.len(),
            image_tokens,
            dropped_tokens: dropped,
            timings: Timings::default(),
        };
        let flow = self.feed(prompt, image, prompt.len().saturating_sub(1), &mut || on_text(""), &mut |_| {})?;
        reply.timings.prefill_s = start.elapsed().as_secs_f64();
        reply.timings.prefill_positions = prompt.len() + image_tokens - self.last_reused;
        if flow.is_break() {
            reply.finish = FinishReason::Cancelled;
            return Ok(reply);
        }

        let mut stream = TextStream::new(tokenizer);
        let mut guard = StopGuard::new(request.stop);
        let mut starts = Vec::with_capacity(request.max_tokens); // where each token's text begins, in bytes
        let (mut decoded_bytes, mut fresh, mut shown) = (0, String::new(), String::new());
        let mut decode_start = start;
        loop {
            let id = sampler.pick(&self.logits[..self.model.params().vocabulary]);
            if starts.is_empty() {
                reply.timings.first_token_s = start.elapsed().as_secs_f64();
                decode_start = Instant::now();
            } else {
                reply.timings.decode_tokens += 1;
            }
            if id == tokenizer.eos() {
                reply.finish = FinishReason::Stop;
                break;
            }
            reply.tokens.push(id);
            starts.push(decoded_bytes);
            fresh.clear();
            shown.clear();
            stream.push(id, &mut fresh);
            decoded_bytes += fresh.len();
            let hit = guard.push(&fresh, &mut shown);
            reply.text.push_str(&shown);
            if hit {
                reply.finish = FinishReason::Stop;
                cut_stop(tokenizer, request.stop, &starts, guard.passed_bytes(), &mut reply.tokens);
                let _ = on_text(&shown);
                reply.timings.decode_s = decode_start.elapsed().as_secs_f64();
                return Ok(reply);
            }
            if on_text(&shown).is_break() {
                reply.finish = FinishReason::Cancelled;
                break;
            }
            if reply.tokens.len() == request.max_tokens {
                break;
            }
            self.step(id)?;
        }
        reply.timings.decode_s = decode_start.elapsed().as_secs_f64();
        fresh.clear();
        shown.clear();
        stream.finish(&mut fresh);
        if !guard.push(&fresh, &mut shown) {
            guard.finish(&mut shown);
        }
        reply.text.push_str(&shown);
        if !shown.is_empty() {
            let _ = on_text(&shown);
        }
        Ok(reply)
    }

    /// How many of `tokens` prompt tokens are used: all, or, where the caller wants truncation, the last that fit.
    fn kept_tokens(&self, tokens: usize, image: Option<&ImageRows>, request: &Request<'_>) -> Result<usize> {
        let usage = |what: String| Err(RuntimeError::Usage(what));
        let new = request.max_tokens;
        if new == 0 {
            return usage("0 new tokens were asked for, expected at least 1".into());
        }
        if request.stop.len() > MAX_STOPS || request.stop.iter().any(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
            return usage(format!("at most {MAX_STOPS} stop texts of 1 to {MAX_STOP_BYTES} bytes are allowed"));
        }
        let pictures = image.map_or(&[][..], |i| i.pictures.as_slice());
        Budget { capacity: self.capacity, tokens, pictures, new }.kept(request.truncate)
    }

    /// Makes `ids` and the pictures the session's sequence and runs what the cache does not hold, in chunks.
    ///
    /// `on_rows` gets the logits of text rows from `first_row` on, in order, up to 16 rows at a time; the last of these
    /// stay in `self.logits`. `pause` is asked between chunks whether to go on.
    fn feed(
        &mut self,
        ids: &[u32],
        image: Option<&ImageRows>,
        first_row: usize,
        pause: &mut dyn FnMut() -> ControlFlow<()>,
        on_rows: &mut dyn FnMut(&[f32]),
    ) -> Result<ControlFlow<()>> {
        let model = self.model;
        let (t, decoder, dim) = (model.target(), model.decoder(), model.params().dim);
        if ids.is_empty() {
            return Err(RuntimeError::Usage("there is no token to run".into()));
        }
        model.tokenizer().check(ids)?;
        let block: &[f32] = image.map_or(&[], |i| i.rows.as_slice());
        let rows = image.map_or(0, |i| i.count);
        if let Some(image) = image.filter(|i| i.dim != dim || i.rows.len() != rows * dim || i.pictures.iter().sum::<usize>() != rows) {
            let (found, width, of) = (image.rows.len(), image.dim, &image.pictures);
            let what = format!("the picture has {found} numbers as {rows} rows of width {width} ({of:?} per picture)");
            return Err(RuntimeError::Usage(format!("{what}, the model takes rows of width {dim}")));
        }
        let end = ids.len() + rows;
        if end > self.capacity {
            let pictures = image.map_or(&[][..], |i| i.pictures.as_slice());
            Budget { capacity: self.capacity, tokens: ids.len(), pictures, new: 0 }.kept(false)?;
        }
        // Text row r is read at position rows + r: with pictures, row 0 at their last row.
        let wanted = rows + first_row;
        let hashes = image.map_or_else(Vec::new, hashes);
        let mut pos = self.common(ids, &hashes).min(wanted);
        self.last_reused = pos;
        self.ids.clear();
        self.ids.extend_from_slice(ids);
        (self.image, self.done) = (hashes, pos);

        while pos < end {
            let to = end.min(pos + self.chunk);
            let s = &mut self.scratch;
            t.set_rows(&mut s.x, to - pos)?;
            if pos == 0 {
                decoder.embed(t, &ids[..1], s, 0)?;
            }
            let (a, b) = (pos.max(1), to.min(1 + rows));
            if a < b {
                t.write(&block[(a - 1) * dim..(b - 1) * dim], &mut s.x, a - pos)?;
            }
            let a = pos.max(1 + rows);
            if a < to {
                decoder.embed(t, &ids[a - rows..to - rows], s, a - pos)?;
            }
            decoder.forward(t, s, &mut self.caches, pos)?;
            let mut at = wanted.max(pos);
            while at < to {
                let n = (to - at).min(LOGIT_ROWS).min(self.chunk);
                let out = &mut self.logits[..n * decoder.params().vocabulary];
                decoder.logits(t, s, at - pos, n, out)?;
                finite(model, out, at)?;
                on_rows(out);
                at += n;
            }
            pos = to;
            self.done = pos;
            if pos < end && pause().is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Positions of the cache that the sequence of `ids` and the pictures shares. Of pictures the first ones may be the
    /// same: when one is added, those before it are not run again.
    fn common(&self, ids: &[u32], image: &[u64]) -> usize {
        let (tokens, rows) = (common(&self.ids, ids), common(&self.image, image));
        let positions = match tokens {
            0 => 0,
            _ if rows < self.image.len().max(image.len()) => 1 + rows,
            n => n + rows,
        };
        positions.min(self.done)
    }
}

/// Refuses logits that are no numbers; `pos` is the position of the first row.
fn finite<T: Target>(model: &Sphinx<T>, logits: &[f32], pos: usize) -> Result<()> {
    match logits.iter().position(|x| !x.is_finite()) {
        Some(at) => {
            let position = pos + at / model.params().vocabulary;
            Err(RuntimeError::NotFinite { file: model.language().path().to_owned(), what: "a logit", position })
        }
        None => Ok(()),
    }
}

/// Cuts the tokens of the stop text off: those of one of its two encodings where the reply ends with it, else all whose
/// text begins at `cut_bytes` or later.
fn cut_stop(tokenizer: &Tokenizer, stops: &[String], starts: &[usize], cut_bytes: usize, tokens: &mut Vec<u32>) {
    let forms = stops.iter().flat_map(|stop| [tokenizer.segment(stop), tokenizer.joined(stop)]);
    let form = forms.filter_map(Result::ok).find(|form| !form.is_empty() && tokens.ends_with(form));
    let keep = match form {
        Some(form) => tokens.len() - form.len(),
        None => starts.partition_point(|&start| start < cut_bytes),
    };
    tokens.truncate(keep);
}
