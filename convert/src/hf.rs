//! Hugging Face directories: the same decoders under other names, with other settings and another order of rotary channels.
//!
//! A directory is one when its tensors are called as `transformers` calls them; `config.json` then says which family it is. What
//! that changes is a [`Dialect`], a [`Config`] and a vocabulary ([`Tokenizer::read_hub`]); the rest of the conversion does not know.
//! The numbers of the model file do not depend on the layout they came from, bit for bit.
//!
//! Source: `transformers` (`configuration_llama.py`, `configuration_mixtral.py`), the code that InternLM2 is published with, and
//! llama.cpp's converter.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::path::PathBuf;

use serde_json::{Map, Value};
use sphinx_quant::error::printable;

use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::{ConvertError, Result};
use crate::registry::{Dialect, RopeOrder};
use crate::tokenizer::Tokenizer;
use crate::variant::{self, Language, Variant};

/// Our names and what stands for them. The first entry holds for a model that has no output matrix of its own.
type Names = [(&'static str, &'static str)];

/// LLaMA and Mixtral.
const LLAMA_NAMES: &Names = &[
    ("llma.output.weight", "model.embed_tokens.weight"),
    ("llma.output.weight", "lm_head.weight"),
    ("llma.tok_embeddings.weight", "model.embed_tokens.weight"),
    ("llma.norm.weight", "model.norm.weight"),
    ("llma.layers.{i}.attention_norm.weight", "model.layers.{i}.input_layernorm.weight"),
    ("llma.layers.{i}.attention.wq.weight", "model.layers.{i}.self_attn.q_proj.weight"),
    ("llma.layers.{i}.attention.wk.weight", "model.layers.{i}.self_attn.k_proj.weight"),
    ("llma.layers.{i}.attention.wv.weight", "model.layers.{i}.self_attn.v_proj.weight"),
    ("llma.layers.{i}.attention.wo.weight", "model.layers.{i}.self_attn.o_proj.weight"),
    ("llma.layers.{i}.ffn_norm.weight", "model.layers.{i}.post_attention_layernorm.weight"),
    ("llma.layers.{i}.feed_forward.w1.weight", "model.layers.{i}.mlp.gate_proj.weight"),
    ("llma.layers.{i}.feed_forward.w2.weight", "model.layers.{i}.mlp.down_proj.weight"),
    ("llma.layers.{i}.feed_forward.w3.weight", "model.layers.{i}.mlp.up_proj.weight"),
    ("llma.layers.{i}.feed_forward.gate.weight", "model.layers.{i}.block_sparse_moe.gate.weight"),
    ("llma.layers.{i}.feed_forward.experts.{j}.w1.weight", "model.layers.{i}.block_sparse_moe.experts.{j}.w1.weight"),
    ("llma.layers.{i}.feed_forward.experts.{j}.w2.weight", "model.layers.{i}.block_sparse_moe.experts.{j}.w2.weight"),
    ("llma.layers.{i}.feed_forward.experts.{j}.w3.weight", "model.layers.{i}.block_sparse_moe.experts.{j}.w3.weight"),
];

/// InternLM2: the public code's own names behind another prefix, attention packed or not.
const INTERN_NAMES: &Names = &[
    ("llma.output.weight", "model.tok_embeddings.weight"),
    ("llma.output.weight", "output.weight"),
    ("llma.tok_embeddings.weight", "model.tok_embeddings.weight"),
    ("llma.norm.weight", "model.norm.weight"),
    ("llma.layers.{i}.attention_norm.weight", "model.layers.{i}.attention_norm.weight"),
    ("llma.layers.{i}.attention.wqkv.weight", "model.layers.{i}.attention.wqkv.weight"),
    ("llma.layers.{i}.attention.wq.weight", "model.layers.{i}.attention.wq.weight"),
    ("llma.layers.{i}.attention.wk.weight", "model.layers.{i}.attention.wk.weight"),
    ("llma.layers.{i}.attention.wv.weight", "model.layers.{i}.attention.wv.weight"),
    ("llma.layers.{i}.attention.wo.weight", "model.layers.{i}.attention.wo.weight"),
    ("llma.layers.{i}.ffn_norm.weight", "model.layers.{i}.ffn_norm.weight"),
    ("llma.layers.{i}.feed_forward.w1.weight", "model.layers.{i}.feed_forward.w1.weight"),
    ("llma.layers.{i}.feed_forward.w2.weight", "model.layers.{i}.feed_forward.w2.weight"),
    ("llma.layers.{i}.feed_forward.w3.weight", "model.layers.{i}.feed_forward.w3.weight"),
];

/// What is read of such directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `LlamaForCausalLM`.
    Llama,
    /// `MixtralForCausalLM`.
    Mixtral,
    /// `InternLM2ForCausalLM`.
    InternLm2,
}

/// `model_type`, `architectures` and the family.
const FAMILIES: &[(&str, &[&str], Family)] = &[
    ("llama", &["LlamaForCausalLM", "LLaMAForCausalLM"], Family::Llama),
    ("mixtral", &["MixtralForCausalLM"], Family::Mixtral),
    ("internlm2", &["InternLM2ForCausalLM"], Family::InternLm2),
];

/// Switches that change what is computed, and must be off or missing.
const OFF: &[&str] = &["attention_bias", "bias", "mlp_bias", "quantization_config"];
/// Widths and counts beyond this are no model of ours.
const LARGEST: u64 = 1 << 20;
/// Most experts of a layer.
const MOST_EXPERTS: usize = 1024;
const CORRECT: &str = "correct config.json, or get it again";

/// A decoder in a Hugging Face directory.
#[derive(Clone, Debug)]
pub struct HuggingFace {
    family: Family,
    /// Whether the embeddings are the output matrix too.
    tied: bool,
    /// Whether query, key and value are one tensor.
    fused: bool,
    config: Map<String, Value>,
    folder: PathBuf,
}

impl HuggingFace {
    /// What `checkpoint` is if its tensors have `transformers`' names; `None` for the public code's.
    ///
    /// # Errors
    /// `Invalid` for names of both kinds, a model that is none of [`Family`], and biases, which no member of the family has.
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<HuggingFace>> {
        let shows = |n: &str| n.starts_with("model.layers.") || n == "model.embed_tokens.weight" || n == "model.tok_embeddings.weight";
        let Some(theirs) = checkpoint.names().find(|n| shows(n)) else { return Ok(None) };
        let folder = checkpoint.folder();
        if let Some(ours) = checkpoint.names().find(|n| n.starts_with("llma.")) {
            let what = format!("holds tensors of two layouts, \"{}\" and \"{}\"", printable(theirs), printable(ours));
            return Err(ConvertError::invalid(folder, what, "give the decoder's directory alone, and the visual half with --vision"));
        }
        if let Some(bias) = checkpoint.names().find(|n| n.starts_with("model.") && n.ends_with(".bias")) {
            let what = "has a bias, which no decoder of the family has";
            return Err(ConvertError::invalid(folder, what, "give a LLaMA, Mixtral or InternLM2 without biases").of_tensor(bias));
        }
        let config = checkpoint.config().clone();
        let family = family(&config).map_err(|what| {
            let known: Vec<&str> = FAMILIES.iter().map(|f| f.0).collect();
            ConvertError::invalid(&folder.join("config.json"), what, format!("supported Hugging Face models: {}", known.join(", ")))
        })?;
        let own = names(family).iter().skip(1).find(|n| n.0 == "llma.output.weight").map_or("", |n| n.1);
        let tied = config.get("tie_word_embeddings") == Some(&Value::Bool(true)) && checkpoint.shapes(own).is_none();
        let fused = family == Family::InternLm2 && checkpoint.names().any(|n| n.ends_with(".attention.wqkv.weight"));
        Ok(Some(HuggingFace { family, tied, fused, config, folder: folder.to_owned() }))
    }

    /// What it is.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The member of the family that this decoder and a visual half make: the one `stated`, else the one that the metadata beside the
    /// visual half states; without a visual half the decoder alone.
    ///
    /// # Errors
    /// `Usage` when nothing says how pictures are cut up; `Invalid` for a type that is unknown or has another decoder.
    pub fn variant(&self, stated: Option<&str>, visual: Option<&Checkpoint>) -> Result<Variant> {
        let alone = if self.family == Family::Mixtral { "mixtral" } else { "llama" };
        let example = if self.family == Family::Mixtral { "mixtral_sparse_ens5" } else { "llama_ens5_light" };
        let (llama_type, file) = match (stated, visual) {
            (Some(stated), _) => (stated, self.folder.clone()),
            (None, None) => (alone, self.folder.clone()),
            (None, Some(visual)) => match visual.llama_type() {
                Some(beside) => (beside, visual.folder().join("meta.json")),
                None => {
                    let what = "--vision is given, but nothing says how its pictures are cut up";
                    return Err(ConvertError::Usage(format!("{what} — state it with --llama-type, for example {example}")));
                }
            },
        };
        let mut variant = variant::find(llama_type, &file)?;
        if variant.language.is_mixture() != (self.family == Family::Mixtral) {
            let has = if variant.language.is_mixture() { "a mixture of experts" } else { "no experts" };
            let what = format!("llama_type {llama_type} has {has}, which is not what this decoder is");
            return Err(ConvertError::invalid(&self.folder, what, format!("state another, for example --llama-type {example}")));
        }
        variant.language = self.language();
        Ok(variant)
    }

    fn language(&self) -> Language {
        if self.family == Family::Mixtral { Language::MixtureOwner } else { Language::Dense }
    }

    /// How it spells and packs its tensors. `rope` is for weights that were turned after their training.
    pub fn dialect(&self, rope: Option<RopeOrder>) -> Dialect {
        let names = names(self.family);
        Dialect {
            names: if self.tied { names } else { names.get(1..).unwrap_or_default() },
            language: self.language(),
            fused: self.fused,
            rope: rope.unwrap_or(RopeOrder::Halves),
        }
    }

    /// `config.json` in our terms, checked against the tensors that show the same.
    ///
    /// # Errors
    /// `Invalid` for a value that is missing, of the wrong kind or out of range, for a switch that changes what the model
    /// computes, and for a number that the tensors contradict.
    pub fn config(&self, checkpoint: &Checkpoint, warnings: &mut Vec<String>) -> Result<Config> {
        let file = self.folder.join("config.json");
        let settings = Settings { raw: &self.config, file: file.clone() };
        self.unsupported(&settings, warnings)?;
        let dim = settings.needed("hidden_size")?;
        let layers = settings.needed("num_hidden_layers")?;
        let heads = settings.needed("num_attention_heads")?;
        let hidden = settings.needed("intermediate_size")?;
        let mixture = self.family == Family::Mixtral;
        let kv_heads = settings.count("num_key_value_heads")?.unwrap_or(if mixture { 8 } else { heads });
        if !dim.is_multiple_of(heads) || !(dim / heads).is_multiple_of(2) {
            return Err(settings.wrong(format!("hidden_size {dim} does not split into {heads} heads of even width")));
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(settings.wrong(format!("{heads} query heads do not share {kv_heads} key heads evenly")));
        }
        if let Some(width) = settings.count("head_dim")?.filter(|&width| width != dim / heads) {
            let what = format!("head_dim is {width}, but hidden_size {dim} in {heads} heads makes {}", dim / heads);
            return Err(ConvertError::invalid(&file, what, "heads of another width are not supported"));
        }
        let (mut experts, mut experts_used) = (0, 0);
        if mixture {
            experts = settings.count("num_local_experts")?.unwrap_or(8);
            experts_used = settings.count("num_experts_per_tok")?.unwrap_or(2);
            if experts > MOST_EXPERTS || experts_used > experts {
                let what = format!("num_experts_per_tok is {experts_used} and num_local_experts {experts}");
                return Err(settings.wrong(format!("{what}, expected at most {MOST_EXPERTS} experts and no more used than there are")));
            }
        }
        let (rope_theta, rope_scaling) = settings.rope(warnings)?;
        let config = Config {
            dim,
            layers,
            heads,
            kv_heads,
            hidden,
            experts,
            experts_used,
            norm_eps: settings.positive(&self.config, "rms_norm_eps")?.unwrap_or(if mixture { 1e-5 } else { 1e-6 }),
            rope_theta: rope_theta.unwrap_or(if mixture { 1e6 } else { 10000.0 }),
            rope_scaling,
            max_seq_len: settings.count("max_position_embeddings")?.map(|n| n as u32),
            file,
        };
        self.compare(&settings, &config, checkpoint)?;
        Ok(config)
    }

    /// The vocabulary; what was chosen against its model file goes into `notes`.
    ///
    /// # Errors
    /// As [`Tokenizer::read_hub`].
    pub fn tokenizer(&self, checkpoint: &Checkpoint, notes: &mut Vec<String>) -> Result<Tokenizer> {
        let rows = self.rows(checkpoint, "llma.tok_embeddings.weight").unwrap_or(0);
        Tokenizer::read_hub(&self.folder, &self.config, self.family == Family::InternLm2, rows, notes)
    }

    /// Refuses what would be computed otherwise here than there.
    fn unsupported(&self, settings: &Settings<'_>, warnings: &mut Vec<String>) -> Result<()> {
        let set = |key: &str| self.config.get(key).filter(|v| !v.is_null() && **v != Value::Bool(false));
        if let Some((key, value)) = OFF.iter().find_map(|key| Some((key, set(key)?))) {
            let what = format!("{key} is {}, which this program does not compute", shown(value));
            return Err(ConvertError::invalid(&settings.file, what, "give the plain model, unquantised and without biases"));
        }
        if let Some(act) = set("hidden_act").filter(|act| !["silu", "swish"].iter().any(|name| act.as_str() == Some(name))) {
            return Err(settings.wrong(format!("hidden_act is {}, expected \"silu\"", shown(act))));
        }
        if let Some(part) = set("partial_rotary_factor").filter(|part| part.as_f64() != Some(1.0)) {
            return Err(settings.wrong(format!("partial_rotary_factor is {}, expected 1", shown(part))));
        }
        if let Some(window) = set("sliding_window") {
            let file = settings.file.display();
            warnings.push(format!("{file}: sliding_window {} is ignored; attention sees the whole sequence", shown(window)));
        }
        Ok(())
    }

    /// Dimension 0 of a tensor that stands for our `name` in layer 0.
    fn rows(&self, checkpoint: &Checkpoint, name: &'static str) -> Option<usize> {
        let name = self.dialect(None).spell(name, 0, 0);
        checkpoint.shapes(&name)?.first()?.first().copied()
    }

    /// Names the setting that a tensor contradicts, in the words of this file.
    fn compare(&self, settings: &Settings<'_>, config: &Config, checkpoint: &Checkpoint) -> Result<()> {
        let w1 = if config.experts > 0 {
            "llma.layers.{i}.feed_forward.experts.{j}.w1.weight"
        } else {
            "llma.layers.{i}.feed_forward.w1.weight"
        };
        let vocab = settings.count("vocab_size")?;
        for (key, stated, name) in [
            ("vocab_size", vocab, "llma.tok_embeddings.weight"),
            ("hidden_size", Some(config.dim), "llma.norm.weight"),
            ("intermediate_size", Some(config.hidden), w1),
            ("num_local_experts", Some(config.experts).filter(|&n| n > 0), "llma.layers.{i}.feed_forward.gate.weight"),
        ] {
            if let (Some(stated), Some(found)) = (stated, self.rows(checkpoint, name))
                && stated != found
            {
                let name = self.dialect(None).spell(name, 0, 0);
                return Err(settings.wrong(format!("{key} is {stated}, but the tensor has {found} rows")).of_tensor(&name));
            }
        }
        let beyond = self.dialect(None).spell("llma.layers.{i}.attention_norm.weight", config.layers, 0);
        if checkpoint.shapes(&beyond).is_some() {
            return Err(settings.wrong(format!("num_hidden_layers is {}, but there is a layer beyond", config.layers)).of_tensor(&beyond));
        }
        Ok(())
    }
}

fn names(family: Family) -> &'static Names {
    match family {
        Family::Llama | Family::Mixtral => LLAMA_NAMES,
        Family::InternLm2 => INTERN_NAMES,
    }
}

/// The family that `model_type` and `architectures` agree on; one of them is enough.
fn family(config: &Map<String, Value>) -> std::result::Result<Family, String> {
    let by_type = match config.get("model_type") {
        None | Some(Value::Null) => None,
        Some(stated) => match FAMILIES.iter().find(|f| stated.as_str() == Some(f.0)) {
            Some(found) => Some(found.2),
            None => return Err(format!("model_type is {}, which is not supported", shown(stated))),
        },
    };
    let by_class = match config.get("architectures") {
        None | Some(Value::Null) => None,
        Some(stated) => {
            let classes: &[Value] = stated.as_array().map_or(&[], Vec::as_slice);
            let of = |class: &Value| FAMILIES.iter().find(|f| f.1.iter().any(|name| class.as_str() == Some(name))).map(|f| f.2);
            match classes {
                [class] => Some(of(class).ok_or_else(|| format!("architectures is {}, which is not supported", shown(stated)))?),
                _ => return Err(format!("architectures is {}, expected one class", shown(stated))),
            }
        }
    };
    match (by_type, by_class) {
        (Some(a), Some(b)) if a != b => Err("model_type and architectures name different models".into()),
        (Some(family), _) | (None, Some(family)) => Ok(family),
        (None, None) => {
            Err("the tensors have the names of a Hugging Face model, but neither model_type nor architectures says which".into())
        }
    }
}

/// A value for a message: printable and short.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    let short: String = text.chars().take(80).collect();
    printable(&if short.len() < text.len() { format!("{short}…") } else { short })
}

/// Base of the rotary frequencies and multiplier of the position, where stated.
type Rope = (Option<f32>, Option<f32>);

/// `config.json` as it is there.
struct Settings<'a> {
    raw: &'a Map<String, Value>,
    file: PathBuf,
}

impl Settings<'_> {
    fn wrong(&self, what: String) -> ConvertError {
        ConvertError::invalid(&self.file, what, CORRECT)
    }

    /// A number of things, if stated.
    fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.raw.get(key).filter(|v| !v.is_null()) {
            None => Ok(None),
            Some(v) => match v.as_u64() {
                // Positions may be more than that; nothing is made of their number.
                Some(n) if n >= 1 && (n <= LARGEST || key == "max_position_embeddings" && n <= u64::from(u32::MAX)) => Ok(Some(n as usize)),
                _ => Err(self.wrong(format!("{key} is {}, expected a whole number from 1 to {LARGEST}", shown(v)))),
            },
        }
    }

    fn needed(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.wrong(format!("{key} is missing")))
    }

    /// A number above 0 in `map`, if stated.
    fn positive(&self, map: &Map<String, Value>, key: &str) -> Result<Option<f32>> {
        match map.get(key).filter(|v| !v.is_null()) {
            None => Ok(None),
            Some(v) => match v.as_f64().map(|x| x as f32) {
                Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
                _ => Err(self.wrong(format!("{key} is {}, expected a positive number", shown(v)))),
            },
        }
    }

    /// Base of the rotary frequencies and multiplier of the position. `rope_parameters` is the newer spelling of `rope_theta`
    /// and `rope_scaling` together; where both are there they must agree.
    fn rope(&self, warnings: &mut Vec<String>) -> Result<Rope> {
        let mut theta = self.positive(self.raw, "rope_theta")?;
        let older = self.scaling("rope_scaling", warnings)?;
        let newer = self.scaling("rope_parameters", warnings)?;
        if let Some(Value::Object(map)) = self.raw.get("rope_parameters") {
            let inner = self.positive(map, "rope_theta")?;
            if let (Some(a), Some(b)) = (theta, inner)
                && a != b
            {
                return Err(self.wrong(format!("rope_theta is {a}, but {b} in rope_parameters")));
            }
            theta = inner.or(theta);
        }
        match (older, newer) {
            (Some(a), Some(b)) if a != b => Err(self.wrong("rope_scaling and rope_parameters differ".into())),
            (older, newer) => Ok((theta, newer.or(older).flatten())),
        }
    }

    /// The multiplier that the object `key` means, `Some(None)` when it means none, `None` when it is not there.
    fn scaling(&self, key: &str, warnings: &mut Vec<String>) -> Result<Option<Option<f32>>> {
        let map = match self.raw.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(map)) => map,
            Some(other) => return Err(self.wrong(format!("{key} is {}, expected an object", shown(other)))),
        };
        // `type` is the older name; files for old and new readers have both.
        let mut kinds = ["rope_type", "type"].iter().filter_map(|k| map.get(*k).filter(|v| !v.is_null()));
        let kind = kinds.next();
        if let (Some(a), Some(b)) = (kind, kinds.next())
            && a != b
        {
            return Err(self.wrong(format!("{key} is of type {} and {}", shown(a), shown(b))));
        }
        match kind.map(Value::as_str) {
            None if key == "rope_parameters" && map.values().all(|v| !v.is_object()) => Ok(Some(None)),
            Some(Some("default")) => Ok(Some(None)),
            Some(Some("linear")) => match self.positive(map, "factor")? {
                Some(factor) => Ok(Some(Some(1.0 / factor).filter(|&multiplier| multiplier != 1.0))),
                None => Err(self.wrong(format!("{key} is linear without a factor"))),
            },
            Some(Some("dynamic")) => {
                let file = self.file.display();
                warnings.push(format!("{file}: {key} is dynamic, which acts beyond the trained positions only; it is ignored"));
                Ok(Some(None))
            }
            _ => {
                let what = format!("{key} is {}", shown(&Value::Object(map.clone())));
                Err(ConvertError::invalid(&self.file, what, "linear scaling is supported, dynamic scaling ignored"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::registry::{Sizes, language_items};

    fn map(value: Value) -> Map<String, Value> {
        let Value::Object(map) = value else { panic!("{value}") };
        map
    }

    fn rope(config: Value) -> (Result<Rope>, usize) {
        let raw = map(config);
        let mut warnings = vec![];
        let settings = Settings { raw: &raw, file: "config.json".into() };
        (settings.rope(&mut warnings), warnings.len())
    }

    #[test]
    fn families_are_told_by_type_or_class() {
        let of = |v: Value| family(&map(v));
        assert_eq!(of(json!({"model_type": "llama"})), Ok(Family::Llama));
        assert_eq!(of(json!({"architectures": ["MixtralForCausalLM"]})), Ok(Family::Mixtral));
        assert_eq!(of(json!({"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"]})), Ok(Family::InternLm2));
        for (config, want) in [
            (json!({}), "neither model_type nor architectures"),
            (json!({"model_type": "qwen2"}), "\"qwen2\", which is not supported"),
            (json!({"model_type": 7}), "7, which is not supported"),
            (json!({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}), "LlamaForSequenceClassification"),
            (json!({"model_type": "llama", "architectures": ["MixtralForCausalLM"]}), "different models"),
            (json!({"model_type": "llama", "architectures": []}), "expected one class"),
            (json!({"model_type": "llama", "architectures": "LlamaForCausalLM"}), "expected one class"),
            (json!({"model_type": "\u{1b}[31m".repeat(1000)}), "which is not supported"),
        ] {
            let message = of(config).unwrap_err();
            assert!(message.contains(want) && message.len() < 400 && !message.contains('\u{1b}'), "{message}");
        }
    }

    #[test]
    fn every_row_has_a_name_of_theirs() {
        let sizes = Sizes { dim: 8, vocab: 9, q: 8, kv: 4, hidden: 6, layers: 2, experts: 2, heads: 2, kv_heads: 1, ..Sizes::default() };
        for (family, fused) in [(Family::Llama, false), (Family::Mixtral, false), (Family::InternLm2, true), (Family::InternLm2, false)] {
            for tied in [false, true] {
                let hub = HuggingFace { family, tied, fused, config: Map::new(), folder: Path::new("d").into() };
                let items = language_items(&sizes, &hub.dialect(None));
                assert!(items.iter().flat_map(|i| &i.sources).all(|name| !name.contains("llma.") && !name.contains('{')), "{family:?}");
                let source = |name: &str| items.iter().find(|i| i.name == name).unwrap().sources[0].clone();
                assert_eq!(source("output.weight") == source("token_embd.weight"), tied, "{family:?}");
            }
        }
    }

    #[test]
    fn rotary_settings_in_both_spellings() {
        for (config, theta, multiplier, notes) in [
            (json!({}), None, None, 0),
            (json!({"rope_theta": 10000, "rope_scaling": null}), Some(1e4), None, 0),
            (json!({"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 4.0}}), Some(1e6), Some(0.25), 0),
            (json!({"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2}}), None, Some(0.5), 0),
            (json!({"rope_scaling": {"type": "linear", "factor": 1.0}}), None, None, 0),
            (json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), None, None, 1),
            (json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}), Some(5e5), None, 0),
            (json!({"rope_parameters": {"rope_theta": 5e5}}), Some(5e5), None, 0),
            (
                json!({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 8}}),
                Some(5e5),
                Some(0.125),
                0,
            ),
        ] {
            let (found, warnings) = rope(config.clone());
            assert_eq!((found.unwrap(), warnings), ((theta, multiplier), notes), "{config}");
        }
        for config in [
            json!({"rope_theta": 0}),
            json!({"rope_theta": "big"}),
            json!({"rope_theta": 1e300}),
            json!({"rope_scaling": 0.5}),
            json!({"rope_scaling": []}),
            json!({"rope_scaling": {}}),
            json!({"rope_scaling": {"type": "linear"}}),
            json!({"rope_scaling": {"type": "linear", "factor": 0}}),
            json!({"rope_scaling": {"type": "linear", "factor": "2"}}),
            json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}),
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
            json!({"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 8.0}}),
            json!({"rope_scaling": {"type": ["linear"], "factor": 2.0}}),
            json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}),
            json!({"rope_parameters": {"full_attention": {"rope_theta": 5e5}}}),
            json!({"rope_parameters": {"rope_type": "longrope", "rope_theta": 5e5}}),
            json!({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "linear", "factor": 4}}),
        ] {
            let error = rope(config.clone()).0.expect_err(&config.to_string());
            assert_eq!(error.kind(), sphinx_quant::ErrorKind::Invalid, "{config}");
        }
    }
}
