//! What a language file says about itself, checked before anything is computed from it.

use std::collections::HashSet;

use sphinx_quant::error::printable;
use sphinx_quant::gguf::keys::{self, Half};
use sphinx_quant::gguf::{Gguf, names};
use sphinx_quant::{GgmlType, QuantError, Tensor};

use super::ARCHITECTURES;
use super::stacks::{self, Stack};
use crate::prompt::Template;
use crate::session::{MAX_STOP_BYTES, MAX_STOPS};
use crate::{Result, RuntimeError};

pub(super) const DAMAGED: &str = "the file is damaged or was made for something else; convert it again";
const UNSUPPORTED: &str = "this version cannot run the model; nothing is computed half right";
/// Context of a file that is not ours and allows more.
const PLAIN_CONTEXT: usize = 4096;
/// Most experts of a layer.
const MAX_EXPERTS: u32 = 1024;

/// Sizes and constants of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct LanguageParams {
    /// `general.name`.
    pub name: Option<String>,
    /// The checkpoint's type, in files of ours.
    pub llama_type: Option<String>,
    /// Shared with the vision half, in files of ours.
    pub pair_id: Option<String>,
    /// Decoder layers.
    pub layers: usize,
    /// Width of a row.
    pub dim: usize,
    /// Hidden width of the feed-forward part; of one expert in a mixture.
    pub hidden: usize,
    /// Experts of every layer; 0 in a dense model.
    pub experts: usize,
    /// Experts that a token goes through; 0 in a dense model.
    pub experts_used: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head: `dim / heads`, even.
    pub head_dim: usize,
    /// Pieces, and rows of the embedding table.
    pub vocabulary: usize,
    /// Positions to use unless the caller wants another number.
    pub context: usize,
    /// Added to the mean square in norms.
    pub eps: f32,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Multiplies positions; 1 without scaling.
    pub rope_scale: f32,
    /// Rows that a picture adds after the first token, if the file says; the most where views can be skipped.
    pub image_rows: Option<usize>,
    /// What goes around a question.
    pub template: Template,
    /// Texts that end a reply.
    pub stop: Vec<String>,
    /// Whether the output projection is the embedding table.
    pub tied_output: bool,
    /// Whether every matrix is F32: a file for reference runs.
    pub whole_precision: bool,
    /// Tensors that nothing here uses.
    pub unused_tensors: Vec<String>,
}

impl LanguageParams {
    /// Reads and checks the metadata and the shapes of all tensors of `file`.
    ///
    /// # Errors
    /// Naming the file, the key or the tensor, what was expected and what was found.
    pub fn read(file: &Gguf) -> Result<LanguageParams> {
        check_architecture(file)?;
        let size = |key: &str, most: u32| size(file, key, most);
        let layers = size(keys::BLOCK_COUNT, 1024)?;
        let dim = size(keys::EMBEDDING_LENGTH, 1 << 17)?;
        let hidden = size(keys::FEED_FORWARD_LENGTH, 1 << 20)?;
        let heads = size(keys::HEAD_COUNT, 1024)?;
        let kv_heads = match file.get(&file.arch_key(keys::HEAD_COUNT_KV)) {
            Some(_) => size(keys::HEAD_COUNT_KV, 1024)?,
            None => heads,
        };
        let (experts, experts_used) = mixture(file, hidden)?;
        let of_file = size(keys::CONTEXT_LENGTH, 1 << 24)?;
        let wrong = |key: &str, what: String| wrong(file, key, &what);
        if !dim.is_multiple_of(heads) || !(dim / heads).is_multiple_of(2) {
            return Err(wrong(keys::HEAD_COUNT, format!("is {heads}: rows of {dim} do not divide into that many heads of even width")));
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(wrong(keys::HEAD_COUNT_KV, format!("is {kv_heads}, which does not divide the {heads} query heads")));
        }
        let head_dim = dim / heads;
        for key in [keys::ROPE_DIM, "attention.key_length", "attention.value_length"] {
            if let Some(found) = file.opt_u32(&file.arch_key(key))?.filter(|&found| found as usize != head_dim) {
                return Err(wrong(key, format!("is {found}, expected {head_dim} (width {dim} / {heads} heads)")));
            }
        }
        let eps = file.f32(&file.arch_key(keys::RMS_EPS))?;
        if !(eps > 0.0 && eps < 1.0) {
            return Err(wrong(keys::RMS_EPS, format!("is {eps}, expected a small positive number")));
        }
        let rope_base = file.opt_f32(&file.arch_key(keys::ROPE_BASE))?.unwrap_or(10000.0);
        if !(1.0..1e30).contains(&rope_base) {
            return Err(wrong(keys::ROPE_BASE, format!("is {rope_base}, expected at least 1")));
        }
        let own = |key: &str| Half::Language.key(key);
        let pair_id = file.opt_str(&own(keys::PAIR_ID))?.map(str::to_owned);
        let ours = pair_id.is_some();
        let image_rows = file.opt_u32(&own(keys::IMAGE_ROWS))?.map(|n| n as usize);
        if of_file < 2 + image_rows.unwrap_or(0) {
            let with = image_rows.map_or(String::new(), |n| format!(", of which a picture takes {n}"));
            return Err(wrong(keys::CONTEXT_LENGTH, format!("is {of_file}{with}: no room for a text")));
        }
        let template = template(file)?;
        let stop = match file.opt_str_array(&own(keys::STOP))? {
            Some(stop) if stop.len() > MAX_STOPS || stop.iter().any(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) => {
                let what = format!("key \"{}\" holds {} texts", own(keys::STOP), stop.len());
                let what = format!("{what}; expected at most {MAX_STOPS}, each of 1 to {MAX_STOP_BYTES} bytes");
                return Err(file.invalid(what, None, DAMAGED).into());
            }
            Some(stop) => stop.to_vec(),
            None => vec![template.stop().to_owned()],
        };
        let mut params = LanguageParams {
            name: file.opt_str(keys::NAME)?.map(str::to_owned),
            llama_type: file.opt_str(&own(keys::LLAMA_TYPE))?.map(str::to_owned),
            pair_id,
            layers,
            dim,
            hidden,
            experts,
            experts_used,
            heads,
            kv_heads,
            head_dim,
            vocabulary: vocabulary(file)?,
            context: if ours { of_file } else { of_file.min(PLAIN_CONTEXT) },
            eps,
            rope_base,
            rope_scale: rope_scale(file)?,
            image_rows,
            template,
            stop,
            tied_output: !ours && file.find(names::OUTPUT).is_none(),
            whole_precision: true,
            unused_tensors: Vec::new(),
        };
        params.check_tensors(file)?;
        Ok(params)
    }

    /// Columns of the stacked query, key and value.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Whether the feed-forward parts are mixtures of experts.
    pub fn is_mixture(&self) -> bool {
        self.experts > 0
    }

    /// Names and shapes, outermost dimension first, of all tensors but stacks of experts.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (dim, hidden, kv) = (self.dim, self.hidden, self.kv_heads * self.head_dim);
        let mut all = vec![(names::TOKEN_EMBD.to_owned(), vec![self.vocabulary, dim]), (names::OUTPUT_NORM.to_owned(), vec![dim])];
        if !self.tied_output {
            all.push((names::OUTPUT.to_owned(), vec![self.vocabulary, dim]));
        }
        for i in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| all.push((names::at(name, i, 0), shape.to_vec()));
            add(names::ATTN_NORM, &[dim]);
            add(names::ATTN_Q, &[dim, dim]);
            add(names::ATTN_K, &[kv, dim]);
            add(names::ATTN_V, &[kv, dim]);
            add(names::ATTN_OUTPUT, &[dim, dim]);
            add(names::FFN_NORM, &[dim]);
            if self.is_mixture() {
                add(names::FFN_GATE_INP, &[self.experts, dim]);
            } else {
                add(names::FFN_GATE, &[hidden, dim]);
                add(names::FFN_UP, &[hidden, dim]);
                add(names::FFN_DOWN, &[dim, hidden]);
            }
        }
        all
    }

    fn check_tensors(&mut self, file: &Gguf) -> Result<()> {
        if self.is_mixture()
            && let Some(tensor) = file.tensors().iter().find(|t| Stack::single(t.name()).is_some())
        {
            let what = "the tensor holds one expert: the file is of the old form of mixtures, in which experts are not stacked";
            let remedy = "convert the model again, with `sphinx convert` or a llama.cpp of 2024 or later";
            return Err(file.invalid(what, Some(tensor.name()), remedy).into());
        }
        let mut known = HashSet::new();
        for (name, shape) in self.tensors() {
            let tensor = file.tensor(&name)?;
            check_shape(file, tensor, &shape)?;
            // Norms are used element by element; a router decides, so it is never quantised.
            let plain = shape.len() == 1 || names::numbers(names::FFN_GATE_INP, &name).is_some();
            if plain && !matches!(tensor.ty(), GgmlType::F32 | GgmlType::F16 | GgmlType::BF16) {
                return Err(file.invalid(format!("the type is {}, expected a plain float type", tensor.ty()), Some(&name), DAMAGED).into());
            }
            self.whole_precision &= tensor.ty() == GgmlType::F32;
            known.insert(tensor.name());
        }
        let layers = if self.is_mixture() { self.layers } else { 0 };
        for (layer, stack) in (0..layers).flat_map(|i| Stack::ALL.map(|stack| (i, stack))) {
            let (rows, cols) = if stack == Stack::Down { (self.dim, self.hidden) } else { (self.hidden, self.dim) };
            for run in stacks::runs(file, stack, layer, self.experts)? {
                // A stack of one may be written as a matrix.
                if run.experts != 1 || run.tensor.dims() != [cols, rows] {
                    check_shape(file, run.tensor, &[run.experts, rows, cols])?;
                }
                self.whole_precision &= run.tensor.ty() == GgmlType::F32;
                known.insert(run.tensor.name());
            }
        }
        for tensor in file.tensors().iter().filter(|t| !known.contains(t.name())) {
            if let Some(what) = self.changes_the_result(tensor.name()) {
                return Err(file.invalid(what, Some(tensor.name()), UNSUPPORTED).into());
            }
            self.unused_tensors.push(tensor.name().to_owned());
        }
        Ok(())
    }

    /// Why a tensor that nothing claims cannot be left out, if so.
    fn changes_the_result(&self, name: &str) -> Option<String> {
        if let Some((layer, rest)) = name.strip_prefix("blk.").and_then(|n| n.split_once('.')) {
            let layers = self.layers;
            if layer.parse::<usize>().is_ok_and(|i| i >= layers) {
                return Some(format!("the metadata promise {layers} layers, this tensor belongs to a further one"));
            }
            if rest.ends_with(".bias") || ["attn_q_norm", "attn_k_norm", "post_", "exp_probs_b"].iter().any(|p| rest.starts_with(p)) {
                return Some("the decoder has parameters that a llama model has not".into());
            }
            if let Some((_, _, first)) = Stack::of(name).filter(|_| self.is_mixture()) {
                return Some(format!("expert {first} is in another tensor too: stacks of experts may not overlap"));
            }
            let dense = Stack::ALL.iter().any(|stack| names::numbers(stack.dense(), name).is_some());
            if self.is_mixture() && (dense || rest.contains("_shexp") || rest.contains("_chexp")) {
                return Some("the decoder has a feed-forward part beside its experts, which a Mixtral has not".into());
            }
            if rest.contains("_exps") || rest.contains("_inp") || rest.contains("_shexp") || Stack::single(name).is_some() {
                let said = if self.is_mixture() { "a plain one" } else { "dense" };
                return Some(format!("the tensor belongs to a mixture of experts, but the metadata say that the model is {said}"));
            }
        }
        (name.starts_with("rope_") || name == "output.bias" || name == "output_norm.bias")
            .then(|| "the model has parameters that a llama model has not".into())
    }
}

/// Experts of a layer and how many of them a token goes through; 0 and 0 in a dense model.
fn mixture(file: &Gguf, hidden: usize) -> Result<(usize, usize)> {
    let experts = file.opt_u32(&file.arch_key(keys::EXPERT_COUNT))?.unwrap_or(0);
    if experts > MAX_EXPERTS {
        return Err(wrong(file, keys::EXPERT_COUNT, &format!("is {experts}, expected at most {MAX_EXPERTS}")));
    }
    if experts == 0 {
        return match file.opt_u32(&file.arch_key(keys::EXPERT_USED_COUNT))?.unwrap_or(0) {
            0 => Ok((0, 0)),
            used => {
                let what = format!("is {used}, but key \"{}\" says that there are no experts", file.arch_key(keys::EXPERT_COUNT));
                Err(wrong(file, keys::EXPERT_USED_COUNT, &what))
            }
        };
    }
    let used = size(file, keys::EXPERT_USED_COUNT, experts)?;
    // What other mixtures do and this one does not.
    let other = |key: &str, found: String| {
        let what = format!("key \"{}\" is {found}: only mixtures of Mixtral's kind are supported", file.arch_key(key));
        Err(file.invalid(what, None, UNSUPPORTED).into())
    };
    for (key, usual) in [("expert_shared_count", 0), ("expert_gating_func", 1), ("expert_feed_forward_length", hidden as u32)] {
        if let Some(found) = file.opt_u32(&file.arch_key(key))?.filter(|&found| found != 0 && found != usual) {
            return other(key, found.to_string());
        }
    }
    if let Some(found) = file.opt_f32(&file.arch_key("expert_weights_scale"))?.filter(|&found| found != 0.0 && found != 1.0) {
        return other("expert_weights_scale", found.to_string());
    }
    if file.opt_bool(&file.arch_key("expert_weights_norm"))? == Some(false) {
        return other("expert_weights_norm", "false".into());
    }
    Ok((experts as usize, used))
}

/// Refuses a tensor whose shape, outermost dimension first, is not `expected`.
fn check_shape(file: &Gguf, tensor: &Tensor, expected: &[usize]) -> Result<()> {
    if tensor.dims().iter().rev().eq(expected) {
        return Ok(());
    }
    let found = shape(tensor.dims().iter().rev());
    Err(file.invalid(format!("the shape is {found}, expected {}", shape(expected.iter())), Some(tensor.name()), DAMAGED).into())
}

/// A shape as a matrix is written, outermost first.
fn shape<'a>(dims: impl Iterator<Item = &'a usize>) -> String {
    format!("[{}]", dims.map(usize::to_string).collect::<Vec<_>>().join(", "))
}
fn check_architecture(file: &Gguf) -> Result<()> {
    let refuse = |what: String, remedy| Err(RuntimeError::Invalid { file: file.path().to_owned(), what, remedy });
    if file.half() == Half::Vision {
        return refuse(
            "this is the vision half of a model".into(),
            "give the language file, NAME.gguf beside mmproj-NAME.gguf; the vision half is found by itself",
        );
    }
    if ARCHITECTURES.contains(&file.arch()) {
        return Ok(());
    }
    let what = format!("the architecture is \"{}\", expected one of {}", printable(file.arch()), ARCHITECTURES.join(", "));
    refuse(what, "convert a SPHINX or LLaMA checkpoint with `sphinx convert`")
}

fn wrong(file: &Gguf, key: &str, what: &str) -> RuntimeError {
    file.invalid(format!("key \"{}\" {what}", file.arch_key(key)), None, DAMAGED).into()
}

/// The number at `key`, 1 to `most`.
fn size(file: &Gguf, key: &str, most: u32) -> Result<usize> {
    let found = file.u32(&file.arch_key(key))?;
    if found == 0 || found > most {
        return Err(wrong(file, key, &format!("is {found}, expected 1 to {most}")));
    }
    Ok(found as usize)
}

/// Pieces of the vocabulary, which are the rows of the embedding table and what the metadata say.
fn vocabulary(file: &Gguf) -> Result<usize> {
    let pieces = file.str_array(keys::TOK_TOKENS)?.len();
    let table = file.tensor(names::TOKEN_EMBD)?;
    if table.rows() != pieces {
        let what = format!("the embedding table has {} rows, but key \"{}\" has {pieces} pieces", table.rows(), keys::TOK_TOKENS);
        return Err(file.invalid(what, Some(names::TOKEN_EMBD), DAMAGED).into());
    }
    match file.opt_u32(&file.arch_key(keys::VOCAB_SIZE))? {
        Some(said) if said as usize != pieces => {
            Err(wrong(file, keys::VOCAB_SIZE, &format!("is {said}, but key \"{}\" has {pieces} pieces", keys::TOK_TOKENS)))
        }
        _ => Ok(pieces),
    }
}

/// What positions are multiplied by.
fn rope_scale(file: &Gguf) -> Result<f32, QuantError> {
    let kind = file.opt_str(&file.arch_key(keys::ROPE_SCALING_TYPE))?;
    if let Some(kind) = kind.filter(|kind| !matches!(*kind, "linear" | "none")) {
        let what = format!("key \"{}\" is \"{}\", expected linear or none", file.arch_key(keys::ROPE_SCALING_TYPE), printable(kind));
        return Err(file.invalid(what, None, UNSUPPORTED));
    }
    let mut key = file.arch_key(keys::ROPE_SCALING_FACTOR);
    let mut factor = file.opt_f32(&key)?;
    if factor.is_none() {
        key = file.arch_key("rope.scale_linear"); // what older writers used
        factor = file.opt_f32(&key)?;
    }
    match factor {
        None => Ok(1.0),
        // llama.cpp takes a factor of 0 as "none".
        Some(0.0) => Ok(1.0),
        Some(_) if kind == Some("none") => Ok(1.0),
        Some(factor) if factor > 0.0 && factor.is_finite() && (1.0 / factor).is_finite() => Ok(1.0 / factor),
        Some(factor) => Err(file.invalid(format!("key \"{key}\" is {factor}, expected a positive number"), None, DAMAGED)),
    }
}

fn template(file: &Gguf) -> Result<Template, QuantError> {
    let key = Half::Language.key(keys::TEMPLATE);
    let Some(name) = file.opt_str(&key)? else { return Ok(Template::default()) };
    Template::named(name).ok_or_else(|| {
        let what = format!("key \"{key}\" is \"{}\", expected one of {}", printable(name), Template::NAMES.join(", "));
        file.invalid(what, None, "chat templates from files are never run; use a built-in one")
    })
}
