//! What a model needs of memory, part by part, and what of it is resident, streamed or dropped to keep to a budget.
//!
//! Everything is priced from the files' headers, so that a model that does not fit is refused before a weight is read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;
use sphinx_quant::error::printable;
use sphinx_quant::gguf::{Gguf, names};
use sphinx_targets::KvType;

use crate::experts::{Policy, READERS, Streaming};
use crate::source::LanguageParams;
use crate::source::stacks::Stack;
use crate::vision::params::{ConvNextParams, Encoder, VitParams};
use crate::vision::{BATCHED_POSITIONS, Room, VisionParams};
use crate::{Memory, Result, RuntimeError};

/// What a plan is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Bytes for everything; `None` for what the machine has free.
    pub memory: Option<u64>,
    /// Positions of a session.
    pub context: usize,
    /// How keys and values are kept.
    pub kv: KvType,
    /// Rows of a prompt that run at once, if the caller has a wish.
    pub chunk: Option<usize>,
    /// Threads that compute.
    pub threads: usize,
    /// Bytes of the expert cache, if the caller has a wish.
    pub expert_cache: Option<u64>,
    /// What gives way in it.
    pub policy: Policy,
    /// Compare checksums at every read.
    pub verify_reads: bool,
}

impl Default for Wish {
    fn default() -> Wish {
        Wish {
            memory: None,
            context: 4096,
            kv: KvType::F16,
            chunk: None,
            threads: 1,
            expert_cache: None,
            policy: Policy::default(),
            verify_reads: false,
        }
    }
}

/// How a part is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Holding {
    /// All of it stays.
    Resident,
    /// It is read when it is used, into a cache of these bytes or a few blocks at a time.
    Streamed,
    /// It grows to this while something runs.
    Buffers,
}

/// A part of the memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// How it is held.
    pub holding: Holding,
    /// Bytes of memory.
    pub bytes: u64,
    /// Bytes in the file, where that is more.
    pub of_bytes: u64,
}

/// How a model is held in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Bytes that there are.
    pub budget_bytes: u64,
    /// Whether the caller said how many.
    pub budget_given: bool,
    /// The parts.
    pub parts: Vec<Part>,
    /// What is taken at the peak of an answer.
    pub peak_bytes: u64,
    /// Positions of a session.
    pub context: usize,
    /// Rows of a prompt that run at once.
    pub chunk: usize,
    /// How a mixture's experts are streamed, if they are.
    #[serde(skip)]
    pub streaming: Option<Streaming>,
    /// Decoder layers that stay in memory; the others are read for every token.
    pub resident_layers: usize,
    /// Whether encoders are read block by block and dropped again.
    pub encoders_streamed: bool,
    /// Whether everything that is resident may be read ahead of its use.
    #[serde(skip)]
    pub ahead: bool,
}

impl Plan {
    /// What the plan leaves for decoded pictures: without a budget that somebody gave, whatever they take.
    pub fn room_for_pictures(&self) -> Room {
        if !self.budget_given {
            return Room::UNLIMITED;
        }
        let keeping = self.budget_bytes.saturating_sub(self.peak_bytes) + ORDINARY_PICTURE;
        // Pictures are decoded before there is anything else in buffers.
        let buffers: u64 = self.parts.iter().filter(|part| part.holding == Holding::Buffers).map(|part| part.bytes).sum();
        Room { decoding: keeping + buffers, keeping }
    }
}

/// Rows of a prompt that are run at once, unless the caller has another wish.
const CHUNK: usize = 512;
/// The same for a mixture: a picture of nine sub-images and its question in one piece, so that each expert is read once.
const MIXTURE_CHUNK: usize = 4096;
/// And with little memory: a picture of five views and its question.
const SMALL_MIXTURE_CHUNK: usize = 2048;

/// What a plan has for decoded pictures at least: one of some megapixels.
const ORDINARY_PICTURE: u64 = 16 << 20;

/// What the program itself takes, threads and tokenizer aside, and what a piece of the vocabulary adds.
const PROGRAM: u64 = 10 << 20;
const PROGRAM_PER_PIECE: u64 = 100;
/// What a thread takes: its stack, unpacked weights, parts of attention.
const PER_THREAD: u64 = 3 << 20;
/// Of a budget, what is left alone: pages of the file's header and of others' code, tables of the system.
const MARGIN: u64 = 64;
/// Blocks of something streamed that are in memory at a time: the one that runs, and the next.
const BLOCKS: u64 = 2;
/// Bytes that come into memory with a row of the embedding table.
const AROUND: f64 = 65_536.0;
/// What a cache of experts should hold at least, in experts.
const LEAST_EXPERTS: u64 = 4;
/// Of what is free on a device, what is left for numbers that its library makes on the way: one part in so many.
const DEVICE_MARGIN: u64 = 16;

/// Sizes of a file's weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Weights {
    /// The embedding table, of which a few rows are used.
    table: u64,
    /// Each decoder layer without experts.
    layers: Vec<u64>,
    /// Experts of all layers, and the largest one.
    experts: u64,
    expert: u64,
    /// All else.
    rest: u64,
}

impl Weights {
    fn of(file: &Gguf, params: &LanguageParams) -> Weights {
        let mut w = Weights { layers: vec![0; params.layers], ..Weights::default() };
        let mut matrices = vec![[0u64; 3]; params.layers];
        for t in file.tensors() {
            let bytes = t.bytes().len() as u64;
            if let Some((stack, layer, _)) = Stack::of(t.name()).filter(|(_, layer, _)| *layer < params.layers) {
                w.experts += bytes;
                matrices[layer][stack as usize] += bytes.div_ceil(params.experts.max(1) as u64) + 2 * 4096;
            } else if t.name() == names::TOKEN_EMBD && !params.tied_output {
                w.table += bytes;
            } else if let Some(layer) = block_of(t.name()).filter(|&layer| layer < params.layers) {
                w.layers[layer] += bytes;
            } else {
                w.rest += bytes;
            }
        }
        w.expert = matrices.iter().map(|m| m.iter().sum()).max().unwrap_or(0);
        w
    }

    fn layers_from(&self, first: usize) -> u64 {
        self.layers[first..].iter().sum()
    }
}

/// The decoder layer of a tensor.
fn block_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// Where in the file the weights of each decoder layer lie, experts aside.
pub(crate) fn layer_places(file: &Gguf, layers: usize) -> Vec<Vec<Range<usize>>> {
    let mut places = vec![Vec::new(); layers];
    for t in file.tensors().iter().filter(|t| Stack::of(t.name()).is_none()) {
        if let Some(layer) = block_of(t.name()).filter(|&layer| layer < layers) {
            places[layer].push(t.backing().1);
        }
    }
    places
}

/// Bytes that `rows` activations of `k` numbers take as kernels meet them.
fn activations(rows: u64, k: u64, terms: u64) -> u64 {
    rows * k * terms + rows * k / 32 * 20
}

/// Rows that kernels take together.
fn together(rows: u64, k: u64) -> u64 {
    rows.min((6 << 20) / k.max(1)).clamp(rows.min(512), 2048)
}

/// Bytes of keys and values.
pub fn kv_bytes(params: &LanguageParams, context: usize, kv: KvType) -> u64 {
    let numbers = (2 * params.layers * params.kv_heads * params.head_dim) as u64 * context.next_multiple_of(16) as u64;
    match kv {
        KvType::F32 => 4 * numbers,
        KvType::F16 => 2 * numbers,
        KvType::Q8_0 => numbers + numbers / 16,
    }
}

/// Bytes of a session's buffers with prompts in pieces of `rows`, scratch of the kernels included.
fn session_bytes(params: &LanguageParams, rows: usize) -> u64 {
    let [rows, dim, hidden, vocabulary] = [rows, params.dim, params.hidden, params.vocabulary].map(|n| n as u64);
    let qkv = params.qkv_width() as u64;
    let used = params.experts_used as u64;
    let terms = if params.is_mixture() { 2 } else { 1 };
    let maps = 4 * rows * (3 * dim + qkv + used * dim) + 4 * rows * params.experts as u64;
    let logits = 2 * 4 * 16 * vocabulary + activations(16, dim, terms);
    let batch = together(rows, hidden);
    maps + logits + activations(together(rows, dim), dim, terms) + activations(batch, hidden, terms) + 4 * batch.min(64) * hidden
}

/// Bytes of the buffers of a transformer over `views` views.
fn vit_bytes(vit: &VitParams, input: usize, views: u64, terms: u64) -> u64 {
    let tokens = 1 + (input / vit.patch).pow(2) as u64;
    let (width, hidden, rows) = (vit.width as u64, vit.hidden as u64, views.min(16) * tokens);
    let batch = together(rows, hidden);
    4 * rows * 6 * width + activations(together(rows, width), width, terms) + activations(batch, hidden, terms) + rows * 16
}

fn convnext_bytes(net: &ConvNextParams, views: u64, terms: u64) -> u64 {
    let map = |stage: usize| 4 * (net.side(stage).pow(2) * net.widths[stage]) as u64;
    let views = views.min(16);
    let stages = net.depths.len();
    let alone = if views > 1 { (0..stages).take_while(|&i| net.side(i).pow(2) > BATCHED_POSITIONS).count() } else { 0 };
    // Of a view alone, and of all together: a map and the mixed one, or, on the way to the next stage, two of the larger.
    let one = (0..alone).map(|i| 2 * map(i)).max().unwrap_or(0);
    let joined = if alone > 0 { views * map(alone - 1) } else { 0 };
    let batched = (alone..stages).map(|i| 2 * views * map(i.saturating_sub(1))).max().unwrap_or(0);
    let scratch = (0..stages).map(|i| {
        let (rows, width) = (net.side(i).pow(2) as u64 * if i < alone { 1 } else { views }, net.widths[i] as u64);
        activations(together(rows, width), width, terms) + activations(together(rows, 4 * width), 4 * width, terms)
    });
    (joined + one).max(batched) + scratch.max().unwrap_or(0)
}

/// Bytes of the buffers while `params` describes how a picture is encoded.
fn picture_bytes(params: &VisionParams, fine: bool) -> u64 {
    let terms = if fine { 2 } else { 1 };
    let views = params.views() as u64;
    let tower = |encoder: &Encoder| match encoder {
        Encoder::Clip(vit) => vit_bytes(vit, params.vit.input, views, terms),
        Encoder::DinoV2(dino) => vit_bytes(&dino.vit, params.vit.input, views, terms) + 12 * views * (params.vit.input as u64).pow(2),
        Encoder::ConvNext(net) => convnext_bytes(net, views, terms),
    };
    let qformer = params.qformer.as_ref().map(|q| vit_bytes(&q.eva, params.vit.input, views, terms));
    let features = 4 * views * params.tokens() as u64 * params.features() as u64;
    // Features are written when the first encoder has run.
    let joined = |(i, bytes): (usize, u64)| if i == 0 { bytes.max(features) } else { bytes + features };
    let towers = params.encoders.iter().map(tower).chain(qformer).enumerate().map(joined).max().unwrap_or(0);
    // The square as bytes and as numbers, its views, a picture of ordinary size before it is cut up.
    let inputs: u64 = params.encoders.iter().map(|e| if let Encoder::ConvNext(n) = e { n.input } else { 0 } as u64).max().unwrap_or(0);
    let pixels = 12 * views * ((params.vit.input as u64).pow(2) + inputs.pow(2));
    towers + pixels + ORDINARY_PICTURE
}

/// Bytes of an encoder's file.
#[derive(Clone, Copy, Debug, Default)]
struct EncoderWeights {
    all: u64,
    /// What stays in memory when blocks are streamed.
    kept: u64,
    /// The largest block.
    block: u64,
    /// Of all, what is used number by number, and copied for that: norms, biases, tables.
    copied: u64,
}

impl EncoderWeights {
    fn of(file: &Gguf, params: &VisionParams) -> EncoderWeights {
        let mut w = EncoderWeights::default();
        let mut blocks: BTreeMap<String, u64> = BTreeMap::new();
        for t in file.tensors() {
            let bytes = t.bytes().len() as u64;
            w.all += bytes;
            if t.rows() == 1 || t.name().ends_with(".dw.weight") || t.name().ends_with(".pos") {
                w.copied += 4 * t.len() as u64;
            }
            match streamed_block(t.name(), params) {
                Some(block) => *blocks.entry(block).or_default() += bytes,
                None => w.kept += bytes,
            }
        }
        w.block = blocks.into_values().max().unwrap_or(0);
        w
    }
}

/// The block that a tensor belongs to, if it is one that can be streamed: `v.dino.3`, `v.cnx.2.5`.
fn streamed_block(name: &str, params: &VisionParams) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    match parts.as_slice() {
        ["v", "cnx", stage, block, ..] if block.parse::<usize>().is_ok() => {
            let side = params.convnext()?.side(stage.parse().ok()?);
            (side.pow(2) <= BATCHED_POSITIONS).then(|| format!("v.cnx.{stage}.{block}"))
        }
        ["v", tower @ ("clip" | "dino" | "eva"), block, ..] if block.parse::<usize>().is_ok() => Some(format!("v.{tower}.{block}")),
        _ => None,
    }
}

/// What a model's files say that matters here.
pub struct Priced<'a> {
    file: PathBuf,
    params: &'a LanguageParams,
    weights: Weights,
    vision: Option<(VisionParams, EncoderWeights)>,
}

impl<'a> Priced<'a> {
    /// The files of a model; `vision` is left out when no picture will come.
    ///
    /// # Errors
    /// When the vision half is none.
    pub fn new(language: &Gguf, params: &'a LanguageParams, vision: Option<&Gguf>) -> Result<Priced<'a>> {
        let encoder = |file: &Gguf| -> Result<_> {
            let params = VisionParams::read(file)?;
            let weights = EncoderWeights::of(file, &params);
            Ok((params, weights))
        };
        Ok(Priced {
            file: language.path().to_owned(),
            params,
            weights: Weights::of(language, params),
            vision: vision.map(encoder).transpose()?,
        })
    }

    /// The plan for `wish`.
    ///
    /// # Errors
    /// [`RuntimeError::Budget`] with what is needed, and the cheapest change that would fit.
    pub fn plan(&self, wish: &Wish) -> Result<Plan> {
        let budget = wish.memory.or_else(Memory::available).unwrap_or(u64::MAX);
        match self.fitted(wish, budget) {
            Ok(plan) => Ok(plan),
            // What nobody asked for is no promise: without a stated budget the system's memory is used as far as it goes.
            Err(_) if wish.memory.is_none() => self
                .fitted(wish, u64::MAX)
                .map(|plan| Plan { budget_bytes: budget, ahead: false, ..plan })
                .map_err(|need| self.refusal(wish, budget, need)),
            Err(need) => Err(self.refusal(wish, budget, need)),
        }
    }

    /// The plan for a device that weights are copied to, of which `free` bytes are free, if that is known. Everything stays there,
    /// experts as far as they fit: those that do not are copied when they are wanted.
    ///
    /// # Errors
    /// [`RuntimeError::Budget`] when the device has no room for the rest.
    pub fn copied(&self, wish: &Wish, free: Option<u64>) -> Result<Plan> {
        let wish = Wish { memory: Some(u64::MAX), ..wish.clone() };
        let whole = Wish { expert_cache: None, ..wish.clone() };
        let unlimited = |wish: &Wish| self.fitted(wish, u64::MAX).map_err(|need| self.refusal(wish, u64::MAX, need));
        let all = unlimited(&whole)?;
        let (experts, usable) = (self.weights.experts, free.map(|free| free - free / DEVICE_MARGIN));
        let bare = Weights { experts: 0, ..self.weights.clone() };
        let bare = Priced { file: self.file.clone(), params: self.params, weights: bare, vision: self.vision.clone() };
        let others = bare.fitted(&whole, u64::MAX).map_or(all.peak_bytes, |plan| plan.peak_bytes);
        let least = others + experts.min(LEAST_EXPERTS * self.weights.expert);
        if let Some((usable, free)) = usable.zip(free).filter(|(usable, _)| least > *usable) {
            let (file, over) = (printable(&self.file.display().to_string()), size(least.saturating_sub(usable)));
            let advice = "free some, use --device cpu, or convert to fewer bits";
            let (least, free) = (size(least), size(free));
            return Err(RuntimeError::Budget(format!(
                "{file}: the device needs {least}, {free} are free there: {over} too few — {advice}"
            )));
        }
        let room = usable.map(|usable| usable - others).filter(|room| *room < experts);
        let cache = match (wish.expert_cache, room) {
            (Some(wished), Some(room)) => Some(wished.min(room)),
            (wished, room) => wished.or(room),
        };
        let mut plan = match cache.filter(|_| experts > 0) {
            None => all,
            Some(cache) => {
                let plan = unlimited(&Wish { expert_cache: Some(cache), ..wish })?;
                let cache = plan.streaming.map_or(0, |streaming| streaming.cache_bytes as u64);
                Plan { peak_bytes: others + cache, ..plan }
            }
        };
        for part in plan.parts.iter_mut().filter(|part| part.name == "encoders") {
            *part = Part { holding: Holding::Resident, bytes: part.of_bytes, ..*part };
        }
        Ok(Plan { budget_given: false, encoders_streamed: false, resident_layers: self.params.layers, ahead: true, ..plan })
    }

    /// The plan within `budget`, or what the least one needs.
    fn fitted(&self, wish: &Wish, budget: u64) -> Result<Plan, u64> {
        let (p, w) = (self.params, &self.weights);
        let mixture = p.is_mixture();
        let given = wish.memory.is_some();
        // What is free now may be wanted by others soon.
        let usable = budget - budget / if given { MARGIN } else { MARGIN / 4 };
        let chunk = wish.chunk.unwrap_or(match (mixture, given && budget <= 16 << 30) {
            (false, _) => CHUNK,
            (true, false) => MIXTURE_CHUNK,
            (true, true) => SMALL_MIXTURE_CHUNK,
        });
        let chunk = chunk.min(wish.context);
        let program = PROGRAM + PROGRAM_PER_PIECE * p.vocabulary as u64 + PER_THREAD * wish.threads as u64;
        let kv = kv_bytes(p, wish.context, wish.kv);
        let session = session_bytes(p, chunk);
        // Each text token touches a row of the table, and the system maps what it has read around it: where tokens fall anywhere,
        // so much of the table is touched once or more.
        let text = wish.context.saturating_sub(self.vision.as_ref().map_or(0, |(params, _)| params.image_rows()));
        let table = (w.table as f64 * (1.0 - (-(text as f64) * AROUND / w.table.max(1) as f64).exp())) as u64;
        let (EncoderWeights { all: encoders, kept, block, copied }, picture, rows) = match &self.vision {
            Some((params, weights)) => (*weights, picture_bytes(params, mixture), 4 * (params.image_rows() * p.dim) as u64),
            None => (EncoderWeights::default(), 0, 0),
        };
        // What a picture leaves behind: its rows, and small parameters of the encoders.
        let seen = copied + rows;
        let language: u64 = table + w.rest + w.layers.iter().sum::<u64>();
        let fixed = program + kv + table + w.rest;
        let whole_layers = w.layers_from(0);
        // While a picture is encoded there are no keys and values yet, and afterwards its buffers are gone.
        let sum = program + language + encoders + seen + (w.experts + kv + session).max(picture);

        let mut parts = vec![part("program", Holding::Resident, program + seen)];
        let mut plan = Plan {
            budget_bytes: budget,
            budget_given: given,
            parts: Vec::new(),
            peak_bytes: sum,
            context: wish.context,
            chunk,
            streaming: None,
            resident_layers: p.layers,
            encoders_streamed: false,
            ahead: true,
        };
        let streamed = |cache: u64| Streaming {
            cache_bytes: usize::try_from(cache.min(w.experts + (p.layers * p.experts * 3 * 4096) as u64)).unwrap_or(usize::MAX),
            policy: wish.policy,
            verify_reads: wish.verify_reads,
            readers: READERS,
        };
        let everything = sum <= usable && !(mixture && wish.expert_cache.is_some());
        let window = BLOCKS * block;
        if everything {
            parts.push(part("language", Holding::Resident, language));
            if mixture {
                parts.push(part("experts", Holding::Resident, w.experts));
            }
            if self.vision.is_some() {
                parts.push(part("encoders", Holding::Resident, encoders));
            }
        } else {
            plan.ahead = false;
            // Encoders are used once a picture, everything else once a token: they are the first to go.
            plan.encoders_streamed = self.vision.is_some();
            let at_a_time = (kept + copied + window).min(encoders);
            let working = seen + session.max(picture + at_a_time);
            if mixture {
                let least = LEAST_EXPERTS * w.expert;
                let others = fixed + whole_layers + working;
                if others + least > usable {
                    return Err(others + least);
                }
                let cache = wish.expert_cache.unwrap_or(usable - others).min(usable - others);
                let streaming = streamed(cache);
                plan.streaming = Some(streaming);
                let cache = streaming.cache_bytes as u64;
                parts.push(part("language", Holding::Resident, language));
                parts.push(Part { name: "experts", holding: Holding::Streamed, bytes: cache, of_bytes: w.experts });
                plan.peak_bytes = (fixed + whole_layers + seen + session + cache).max(program + seen + picture + at_a_time);
            } else {
                let largest = w.layers.iter().copied().max().unwrap_or(0);
                let left = usable.checked_sub(fixed + working).ok_or(fixed + working + BLOCKS * largest)?;
                let layers = if whole_layers <= left {
                    p.layers
                } else {
                    let left = left.checked_sub(BLOCKS * largest).ok_or(fixed + working + BLOCKS * largest)?;
                    let fits = |n: &usize| w.layers[..*n].iter().sum::<u64>() <= left;
                    (0..p.layers).rev().find(fits).unwrap_or(0)
                };
                plan.resident_layers = layers;
                let held = w.layers[..layers].iter().sum::<u64>() + if layers < p.layers { BLOCKS * largest } else { 0 };
                let bytes = table + w.rest + held;
                let holding = if layers < p.layers { Holding::Streamed } else { Holding::Resident };
                parts.push(Part { name: "language", holding, bytes, of_bytes: language });
                // The decoder's weights come after the picture's.
                let answer = fixed + held + seen + session;
                plan.peak_bytes = answer.max(program + seen + picture + at_a_time);
            }
            if self.vision.is_some() {
                parts.push(Part { name: "encoders", holding: Holding::Streamed, bytes: at_a_time, of_bytes: encoders });
            }
        }
        parts.push(part("keys and values", Holding::Resident, kv));
        parts.push(part("buffers", Holding::Buffers, session.max(picture)));
        plan.parts = parts;
        Ok(plan)
    }

    /// The error for a budget that does not do, with what would.
    fn refusal(&self, wish: &Wish, budget: u64, need: u64) -> RuntimeError {
        let tries = |change: &dyn Fn(&mut Wish)| {
            let mut other = wish.clone();
            change(&mut other);
            (other != *wish).then(|| match self.fitted(&other, budget) {
                Ok(plan) => Ok(plan.peak_bytes),
                Err(need) => Err(need),
            })
        };
        let text = Priced { file: self.file.clone(), params: self.params, weights: self.weights.clone(), vision: None };
        let mut remedies = Vec::new();
        let smaller = (1..12)
            .map(|i| wish.context >> i)
            .filter(|&c| c >= 256)
            .find(|&c| self.fitted(&Wish { context: c, ..wish.clone() }, budget).is_ok());
        if let Some(Ok(_)) = tries(&|w| w.chunk = Some(128)) {
            remedies.push("--chunk 128".to_owned());
        }
        if let Some(Ok(_)) = tries(&|w| w.kv = KvType::Q8_0) {
            remedies.push("--kv q8_0".to_owned());
        }
        if let Some(context) = smaller {
            remedies.push(format!("--context {context}"));
        }
        if self.vision.is_some() && text.fitted(wish, budget).is_ok() {
            remedies.push("text without a picture".to_owned());
        }
        let advice = match remedies.first() {
            Some(first) => format!("try {first}, or --memory {}", size(need + need / (MARGIN - 1)).replace(' ', "")),
            None => format!("give --memory {} or more, or convert to fewer bits", size(need + need / (MARGIN - 1)).replace(' ', "")),
        };
        let file = printable(&self.file.display().to_string());
        RuntimeError::Budget(format!("{file}: the model needs {} at least, the budget is {} — {advice}", size(need), size(budget)))
    }
}

/// Bytes as an error says them.
fn size(bytes: u64) -> String {
    match bytes {
        ..0x4000_0000 => format!("{} MiB", bytes.div_ceil(1 << 20)),
        _ => format!("{:.2} GiB", (bytes as f64 / f64::from(1 << 30) * 100.0).ceil() / 100.0),
    }
}

fn part(name: &'static str, holding: Holding, bytes: u64) -> Part {
    Part { name, holding, bytes, of_bytes: bytes }
}
