//! `config.json`: the numbers of the decoder that its tensors do not show.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{ConvertError, Result};
use crate::variant::{Defaults, Variant};

/// The decoder's settings, defaults filled in and plausible one by one; [`crate::registry`] checks them against the tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of a row.
    pub dim: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads; they divide `dim`.
    pub heads: usize,
    /// Key and value heads; they divide `heads`.
    pub kv_heads: usize,
    /// Hidden width of the feed-forward part, of one expert in a mixture.
    pub hidden: usize,
    /// Experts per layer; 0 without a mixture.
    pub experts: usize,
    /// Experts used per token.
    pub experts_used: usize,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Multiplier of the position, 1 when absent.
    pub rope_scaling: Option<f32>,
    /// `max_seq_len`, if stated.
    pub max_seq_len: Option<u32>,
    /// Where it came from, for messages.
    pub file: PathBuf,
}

/// Keys that are read here, or that have no influence on what the model computes.
const KNOWN: &[&str] = &[
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "multiple_of",
    "ffn_dim_multiplier",
    "norm_eps",
    "rope_theta",
    "rope_scaling",
    "vocab_size",
    "max_seq_len",
    "max_batch_size",
    "head_dim",
    "load_balancing_weight",
    "load_pretrained_visual_encoder",
    "trainable_mode",
];

/// Keys of a mixture alone.
const OF_MIXTURES: &[&str] = &["hidden_dim", "moe"];

/// Keys that would change the arithmetic when switched on.
const ADAPTERS: &[&str] = &["lora_rank", "bias_tuning", "norm_tuning"];

/// Widths and counts beyond this are no model of ours.
const LARGEST: u64 = 1 << 20;

impl Config {
    /// Reads the merged `config.json` found beside the checkpoint (`folder` is for messages). Pushes a warning per unknown key.
    ///
    /// # Errors
    /// `Invalid` for a value of the wrong kind or out of range, or a switch that changes what the model computes.
    pub fn read(raw: &Map<String, Value>, variant: &Variant, folder: &Path, warnings: &mut Vec<String>) -> Result<Config> {
        let file = folder.join("config.json");
        let bad = |key: &str, found: &Value, wanted: &str| {
            let mut found = found.to_string();
            if found.len() > 80 {
                found = format!("{}…", found.chars().take(80).collect::<String>());
            }
            ConvertError::invalid(&file, format!("{key} is {found}, expected {wanted}"), "correct it; is this a SPHINX checkpoint?")
        };
        let mixture = variant.language.is_mixture();
        for (key, value) in raw {
            if ADAPTERS.contains(&key.as_str()) {
                let off = value.is_null() || value == &Value::Bool(false) || value.as_f64() == Some(0.0);
                if !off {
                    return Err(ConvertError::invalid(
                        &file,
                        format!("{key} is switched on; the checkpoint computes something this program does not"),
                        "merge the adapter into the weights first",
                    ));
                }
            } else if !KNOWN.contains(&key.as_str()) && (!mixture || !OF_MIXTURES.contains(&key.as_str())) {
                warnings.push(format!("{}: unknown key \"{}\" is ignored", file.display(), sphinx_quant::error::printable(key)));
            }
        }
        let count = |key: &str, default: u64| match raw.get(key).filter(|v| !v.is_null()) {
            None => Ok(default as usize),
            Some(v) => match v.as_u64() {
                Some(n) if (1..=LARGEST).contains(&n) => Ok(n as usize),
                _ => Err(bad(key, v, "a whole number from 1 to 1048576")),
            },
        };
        let positive = |key: &str| match raw.get(key).filter(|v| !v.is_null()) {
            None => Ok(None),
            Some(v) => match v.as_f64().map(|x| x as f32) {
                Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
                _ => Err(bad(key, v, "a positive number")),
            },
        };
        let defaults = variant.defaults;
        let dim = count("dim", u64::from(defaults.dim))?;
        let layers = count("n_layers", u64::from(defaults.layers))?;
        let heads = count("n_heads", u64::from(defaults.heads))?;
        let kv_heads = count("n_kv_heads", heads as u64)?;
        if !dim.is_multiple_of(heads) || !(dim / heads).is_multiple_of(2) {
            return Err(ConvertError::invalid(
                &file,
                format!("dim {dim} does not split into {heads} heads of even width"),
                "correct dim or n_heads",
            ));
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(ConvertError::invalid(
                &file,
                format!("{heads} query heads do not share {kv_heads} key heads evenly"),
                "correct n_heads or n_kv_heads",
            ));
        }
        let multiple_of = count("multiple_of", 256)?;
        let multiplier = match raw.get("ffn_dim_multiplier").filter(|v| !v.is_null()) {
            None => None,
            Some(v) => match v.as_f64() {
                Some(x) if x.is_finite() && x > 0.0 && x < 64.0 => Some(x),
                _ => return Err(bad("ffn_dim_multiplier", v, "a positive number below 64")),
            },
        };
        let max_seq_len = match raw.get("max_seq_len").filter(|v| !v.is_null()) {
            None => None,
            Some(v) => match v.as_u64().and_then(|n| u32::try_from(n).ok()) {
                Some(n) if n > 0 => Some(n),
                _ => return Err(bad("max_seq_len", v, "a whole number")),
            },
        };
        let (mut experts, mut experts_used) = (0, 0);
        let mut hidden = hidden_size(dim, multiple_of, multiplier);
        if mixture {
            hidden = count("hidden_dim", u64::from(defaults.hidden))?;
            (experts, experts_used) = mixture_of(raw, defaults).map_err(|v| {
                let wanted = format!("{{\"num_experts\": 1 to {MOST_EXPERTS}, \"num_experts_per_tok\": no more than that}}");
                bad("moe", &v, &wanted)
            })?;
        }
        let rope_theta = positive("rope_theta")?;
        if rope_theta.is_none() && variant.states_theta() {
            let theta = defaults.rope_theta;
            warnings.push(format!("{}: rope_theta is not stated; {theta} is taken, that of InternLM2-7B", file.display()));
        }
        Ok(Config {
            dim,
            layers,
            heads,
            kv_heads,
            hidden,
            experts,
            experts_used,
            norm_eps: positive("norm_eps")?.unwrap_or(1e-5),
            rope_theta: rope_theta.unwrap_or(defaults.rope_theta),
            rope_scaling: positive("rope_scaling")?,
            max_seq_len,
            file,
        })
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.dim / self.heads
    }
}

/// Most experts of a layer.
const MOST_EXPERTS: u64 = 1024;

/// `num_experts` and `num_experts_per_tok` of the object `moe`, or that object when it makes no sense.
fn mixture_of(raw: &Map<String, Value>, defaults: Defaults) -> Result<(usize, usize), Value> {
    let (experts, used) = (u64::from(defaults.experts), u64::from(defaults.experts_used));
    let (experts, used) = match raw.get("moe") {
        None | Some(Value::Null) => (experts, used),
        Some(Value::Object(moe)) => {
            let whole = |key: &str, default: u64| moe.get(key).map_or(Some(default), Value::as_u64);
            let known = moe.keys().all(|k| ["num_experts", "num_experts_per_tok"].contains(&k.as_str()));
            match (whole("num_experts", experts), whole("num_experts_per_tok", used)) {
                (Some(experts), Some(used)) if known => (experts, used),
                _ => return Err(Value::Object(moe.clone())),
            }
        }
        Some(other) => return Err(other.clone()),
    };
    let sensible = (1..=MOST_EXPERTS).contains(&experts) && (1..=experts).contains(&used);
    if sensible { Ok((experts as usize, used as usize)) } else { Err(raw.get("moe").cloned().unwrap_or_default()) }
}

/// The hidden width that the public code gives a dense feed-forward part: two thirds of 4·dim, times the multiplier,
/// truncated each time, rounded up to a multiple of `multiple_of`.
pub fn hidden_size(dim: usize, multiple_of: usize, multiplier: Option<f64>) -> usize {
    let mut hidden = dim * 4 * 2 / 3;
    if let Some(m) = multiplier {
        hidden = (m * hidden as f64) as usize;
    }
    hidden.div_ceil(multiple_of) * multiple_of
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::variant;

    fn read_as(llama_type: &str, json: &str) -> (Result<Config>, Vec<String>) {
        let raw: Map<String, Value> = serde_json::from_str(json).unwrap();
        let mut warnings = vec![];
        let variant = variant::find(llama_type, Path::new("")).unwrap();
        (Config::read(&raw, &variant, Path::new("d"), &mut warnings), warnings)
    }

    fn read(json: &str) -> (Result<Config>, Vec<String>) {
        read_as("llama_ens_light", json)
    }

    #[test]
    fn mixtures_have_settings_of_their_own() {
        let (c, w) = read_as("mixtral_sparse", "{}");
        let c = c.unwrap();
        assert_eq!((c.dim, c.layers, c.kv_heads, c.hidden, c.experts, c.experts_used), (4096, 32, 32, 16384, 8, 2));
        assert!(c.rope_theta == 1e6 && w.is_empty());
        let json = r#"{"hidden_dim": 14336, "moe": {"num_experts_per_tok": 1, "num_experts": 4}, "head_dim": 99}"#;
        let (c, w) = read_as("mixtral", json);
        let c = c.unwrap();
        assert_eq!((c.hidden, c.experts, c.experts_used, c.head_dim()), (14336, 4, 1, 128));
        assert!(w.is_empty(), "{w:?}");
        // In a dense model these keys mean nothing.
        assert_eq!(read(json).1.len(), 2);
        for moe in ["3", "[]", r#"{"num_experts": 0}"#, r#"{"num_experts": 1e9}"#, r#"{"num_experts": 1}"#, r#"{"top_k": 2}"#] {
            let (c, _) = read_as("mixtral", &format!(r#"{{"moe": {moe}}}"#));
            assert!(c.expect_err(moe).to_string().contains("moe is"));
        }
    }

    #[test]
    fn a_base_that_nobody_states_is_said() {
        let (c, w) = read_as("internlm2_ens_light", "{}");
        assert!(c.unwrap().rope_theta == 1e6 && w.len() == 1 && w[0].contains("rope_theta"));
        let (c, w) = read_as("internlm2_ens_light", r#"{"rope_theta": 10000}"#);
        assert!(c.unwrap().rope_theta == 1e4 && w.is_empty());
    }

    #[test]
    fn hidden_sizes_of_the_family() {
        assert_eq!(hidden_size(2048, 256, None), 5632);
        assert_eq!(hidden_size(5120, 256, None), 13824);
        assert_eq!(hidden_size(4096, 256, Some(1.3)), 14336);
        assert_eq!(hidden_size(256, 256, None), 768);
    }

    #[test]
    fn defaults_and_nulls() {
        let (c, w) = read(r#"{"n_kv_heads": null, "rope_theta": 10000, "max_seq_len": 2048}"#);
        let c = c.unwrap();
        assert_eq!((c.dim, c.layers, c.heads, c.kv_heads, c.hidden), (5120, 40, 40, 40, 13824));
        assert_eq!((c.head_dim(), c.rope_scaling, c.max_seq_len), (128, None, Some(2048)));
        assert!(w.is_empty());
    }

    #[test]
    fn what_is_refused() {
        for json in [
            r#"{"dim": 2048.5}"#,
            r#"{"dim": 0}"#,
            r#"{"dim": -1}"#,
            r#"{"dim": "big"}"#,
            r#"{"dim": 99999999999}"#,
            r#"{"n_heads": 0}"#,
            r#"{"n_heads": 37}"#,
            r#"{"n_kv_heads": 3}"#,
            r#"{"multiple_of": 0}"#,
            r#"{"ffn_dim_multiplier": -1}"#,
            r#"{"norm_eps": 0}"#,
            r#"{"rope_theta": -3}"#,
            r#"{"rope_scaling": {"type": "dynamic"}}"#,
            r#"{"lora_rank": 16}"#,
            r#"{"bias_tuning": true}"#,
            r#"{"norm_tuning": true}"#,
        ] {
            let (c, _) = read(json);
            assert_eq!(c.expect_err(json).kind(), sphinx_quant::ErrorKind::Invalid, "{json}");
        }
        assert!(read(r#"{"lora_rank": 0, "bias_tuning": false, "norm_tuning": null}"#).0.is_ok());
    }

    #[test]
    fn unknown_keys_are_named() {
        let (c, w) = read(r#"{"surprise": 1}"#);
        assert!(c.is_ok() && w.len() == 1 && w[0].contains("surprise"));
    }
}
