//! How large the members of the family are: as released, and in small.

use std::path::PathBuf;

use crate::config::Config;
use crate::error::{ConvertError, Result};
use crate::registry::Sizes;

/// A decoder that can be made up.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    pub dim: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub hidden: usize,
    /// Experts per layer and used per token; 0 without a mixture.
    pub experts: (usize, usize),
    pub rope_theta: f32,
    /// `ffn_dim_multiplier`, where the hidden width needs one.
    pub multiplier: Option<f64>,
    pub max_seq_len: u32,
    pub vocab: usize,
}

/// A member, or several that differ in their eyes only.
pub struct Family {
    pub name: &'static str,
    /// `llama_type` with and without eyes.
    pub types: [&'static str; 2],
    /// Whether query, key and value are one tensor in a checkpoint.
    pub packed: bool,
    /// Whether the vocabulary has holes, a NUL piece, and puts no space in front.
    pub intern: bool,
    nano: Decoder,
    full: Decoder,
}

const NANO: Decoder = Decoder {
    dim: 256,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    hidden: 768,
    experts: (0, 0),
    rope_theta: 10000.0,
    multiplier: None,
    max_seq_len: 2048,
    vocab: 800,
};

/// TinyLlama-1.1B, InternLM2-7B, LLaMA2-13B, Mixtral-8x7B.
const FAMILIES: [Family; 4] = [
    Family {
        name: "tiny",
        types: ["llama_ens5_light", "llama"],
        packed: false,
        intern: false,
        nano: NANO,
        full: Decoder { dim: 2048, layers: 22, heads: 32, kv_heads: 4, hidden: 5632, vocab: 32000, ..NANO },
    },
    Family {
        name: "intern2",
        types: ["internlm2_ens5_light", "llama"],
        packed: true,
        intern: true,
        nano: Decoder { hidden: 1024, rope_theta: 1e6, multiplier: Some(1.3), max_seq_len: 32768, ..NANO },
        full: Decoder {
            dim: 4096,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            hidden: 14336,
            rope_theta: 1e6,
            multiplier: Some(1.3),
            max_seq_len: 32768,
            vocab: 92544,
            ..NANO
        },
    },
    Family {
        name: "plus",
        types: ["llama_ens5_light", "llama"],
        packed: false,
        intern: false,
        nano: Decoder { layers: 3, kv_heads: 4, max_seq_len: 4096, ..NANO },
        full: Decoder { dim: 5120, layers: 40, heads: 40, kv_heads: 40, hidden: 13824, max_seq_len: 4096, vocab: 32000, ..NANO },
    },
    Family {
        name: "moe",
        types: ["mixtral_sparse_ens5", "mixtral_sparse"],
        packed: false,
        intern: false,
        nano: Decoder { hidden: 256, experts: (8, 2), rope_theta: 1e6, max_seq_len: 4096, ..NANO },
        full: Decoder {
            dim: 4096,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            hidden: 14336,
            experts: (8, 2),
            rope_theta: 1e6,
            max_seq_len: 4096,
            vocab: 32000,
            ..NANO
        },
    },
];

impl Family {
    /// The family called `name`.
    ///
    /// # Errors
    /// `Usage` for another word.
    pub fn named(name: &str) -> Result<&'static Family> {
        FAMILIES.iter().find(|f| f.name == name).ok_or_else(|| {
            let names = FAMILIES.iter().map(|f| f.name).collect::<Vec<_>>().join(", ");
            ConvertError::Usage(format!("family \"{name}\" is unknown — choose one of {names}"))
        })
    }

    /// Its decoder at `nano` or `full` scale.
    ///
    /// # Errors
    /// `Usage` for another word.
    pub fn decoder(&self, scale: &str) -> Result<Decoder> {
        match scale {
            "nano" => Ok(self.nano),
            "full" => Ok(self.full),
            _ => Err(ConvertError::Usage(format!("scale \"{scale}\" is unknown — choose nano or full"))),
        }
    }

    /// Whether there are experts.
    pub fn is_mixture(&self) -> bool {
        self.full.experts.0 > 0
    }
}

impl Decoder {
    /// As a configuration file would say it.
    pub fn config(&self) -> Config {
        Config {
            dim: self.dim,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            hidden: self.hidden,
            experts: self.experts.0,
            experts_used: self.experts.1,
            norm_eps: 1e-5,
            rope_theta: self.rope_theta,
            rope_scaling: None,
            max_seq_len: Some(self.max_seq_len),
            file: PathBuf::from("config.json"),
        }
    }

    /// All lengths of a model with this decoder and encoders of `nano` or, otherwise, full size.
    pub fn sizes(&self, nano: bool) -> Sizes {
        let language = Sizes::language(&self.config(), self.vocab);
        let common = Sizes { dino_swiglu: true, dino_positions: 1 + 37 * 37, qf_queries: 32, qf_cross_every: 2, ..language };
        if nano {
            Sizes {
                cnx_depths: vec![1, 1, 2, 1],
                cnx_widths: vec![32, 64, 128, 256],
                dino_depth: 2,
                dino_width: 256,
                dino_hidden: 512,
                clip_depth: 2,
                clip_width: 256,
                clip_hidden: 1024,
                eva_depth: 2,
                eva_width: 352,
                eva_hidden: 768,
                qf_depth: 3,
                qf_width: 256,
                qf_hidden: 512,
                ..common
            }
        } else {
            Sizes {
                cnx_depths: vec![3, 4, 30, 3],
                cnx_widths: vec![384, 768, 1536, 3072],
                dino_depth: 40,
                dino_width: 1536,
                dino_hidden: 4096,
                clip_depth: 24,
                clip_width: 1024,
                clip_hidden: 4096,
                eva_depth: 39,
                eva_width: 1408,
                eva_hidden: 6144,
                qf_depth: 12,
                qf_width: 768,
                qf_hidden: 3072,
                ..common
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::hidden_size;

    #[test]
    fn what_a_checkpoint_says_gives_these_widths() {
        for f in &FAMILIES {
            for d in [f.nano, f.full] {
                assert!(d.dim.is_multiple_of(d.heads) && d.heads.is_multiple_of(d.kv_heads), "{}", f.name);
                if !f.is_mixture() {
                    assert_eq!(hidden_size(d.dim, 256, d.multiplier), d.hidden, "{}", f.name);
                }
            }
        }
    }
}
