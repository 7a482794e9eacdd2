//! `config.json`: the numbers of the decoder that its tensors do not show.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{ConvertError, Result};
use crate::variant::Variant;

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
    /// Hidden width of the feed-forward part.
    pub hidden: usize,
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
            } else if !KNOWN.contains(&key.as_str()) {
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
        let (dim, layers, heads) = variant.defaults;
        let dim = count("dim", u64::from(dim))?;
        let layers = count("n_layers", u64::from(layers))?;
        let heads = count("n_heads", u64::from(heads))?;
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
        Ok(Config {
            dim,
            layers,
            heads,
            kv_heads,
            hidden: hidden_size(dim, multiple_of, multiplier),
            norm_eps: positive("norm_eps")?.unwrap_or(1e-5),
            rope_theta: positive("rope_theta")?.unwrap_or(10000.0),
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

    fn read(json: &str) -> (Result<Config>, Vec<String>) {
        let raw: Map<String, Value> = serde_json::from_str(json).unwrap();
        let mut warnings = vec![];
        let variant = variant::find("llama_ens_light", Path::new("")).unwrap();
        (Config::read(&raw, variant, Path::new("d"), &mut warnings), warnings)
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
