//! What is in a checkpoint, without converting it.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, Rule};
use crate::convert::{Loaded, Reading};
use crate::error::Result;
use crate::registry::RopeOrder;
use crate::variant::{self, PadAnchor};

/// What [`inspect_checkpoint`] found.
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointInfo {
    /// Where it is.
    #[serde(serialize_with = "crate::report::lossy")]
    pub path: PathBuf,
    /// The type in `meta.json`.
    pub llama_type: Option<String>,
    /// Whether this version converts that type, or understands the checkpoint without one.
    pub supported: bool,
    /// What it is, if it is whole and says enough about itself.
    pub card: Option<Card>,
    /// Why there is no card, or what converting needs to be told.
    pub problem: Option<String>,
    /// `config.json`, empty when missing.
    pub config: Map<String, Value>,
    /// Whether a `tokenizer.model` is there.
    pub tokenizer: bool,
    /// Bytes of all tensor files.
    pub bytes: u64,
    /// Elements of all tensors; those cut into shards whole, replicated ones once per shard.
    pub elements: u64,
    /// Every tensor, by name.
    pub tensors: Vec<CheckpointTensor>,
    /// What is odd about the files.
    pub notes: Vec<String>,
}

/// One tensor of a [`CheckpointInfo`].
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointTensor {
    /// Its name.
    pub name: String,
    /// Its number format; `None` when shards disagree or it is not read.
    pub dtype: Option<String>,
    /// Its shape in every shard that holds it, outermost first.
    pub shapes: Vec<Vec<usize>>,
}

/// What a checkpoint is, as a member of the family.
#[derive(Clone, Debug, Serialize)]
pub struct Card {
    /// Its type, under its usual name.
    pub llama_type: String,
    /// Its language model.
    pub decoder: DecoderCard,
    /// How it sees; `None` for text only.
    pub picture: Option<PictureCard>,
    /// What it is made of, in the order of the model files.
    pub parts: Vec<PartCard>,
    /// Numbers altogether, replicas in other shards not counted.
    pub parameters: u64,
    /// Bytes of those, as they are stored.
    pub bytes: u64,
}

/// The language model of a [`Card`].
#[derive(Clone, Debug, Serialize)]
pub struct DecoderCard {
    /// Layers.
    pub layers: usize,
    /// Width of a row.
    pub dim: usize,
    /// Hidden width of the feed-forward part, of one expert in a mixture.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Pieces.
    pub vocabulary: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Its experts, if it is a mixture.
    pub mixture: Option<MixtureCard>,
    /// Whether query, key and value are one tensor.
    pub packed_attention: bool,
    /// How rotary channels lie: `pairs` or `halves`.
    pub rope_order: &'static str,
}

/// The experts of a [`DecoderCard`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MixtureCard {
    /// Experts of a layer.
    pub experts: usize,
    /// Those used per token.
    pub used: usize,
}

/// How the model of a [`Card`] sees.
#[derive(Clone, Debug, Serialize)]
pub struct PictureCard {
    /// Side of the preprocessed square.
    pub square: u32,
    /// Sub-images per side; 0 for the global view only.
    pub grid: u32,
    /// Views of a picture.
    pub views: u32,
    /// Rows that a picture becomes when nothing of it is skipped.
    pub rows: u32,
    /// Its encoders.
    pub towers: Vec<&'static str>,
    /// Whether there are rows that stand for empty sub-images.
    pub skip_tokens: bool,
    /// Whether sub-images are averaged over neighbourhoods.
    pub pooled_parts: bool,
}

/// One part of the model of a [`Card`].
#[derive(Clone, Debug, Serialize)]
pub struct PartCard {
    /// Which.
    pub part: &'static str,
    /// Its numbers.
    pub parameters: u64,
    /// Bytes of those, as they are stored.
    pub bytes: u64,
}

/// Parts, by what names in the model files begin with; the first that fits decides.
const PARTS: &[(&str, &str)] = &[
    ("token_embd.", "embeddings"),
    ("output.", "output"),
    ("output_norm.", "decoder"),
    ("blk.", "decoder"),
    ("v.clip.", "clip"),
    ("v.cnx.", "convnext"),
    ("v.dino.", "dinov2"),
    ("v.eva.", "eva"),
    ("v.qf.", "q-former"),
    ("v.", "projections"),
];

/// The part of a model that its tensor `name` belongs to.
pub fn part_of(name: &str) -> &'static str {
    if name.contains("_exps.") {
        return "experts";
    }
    PARTS.iter().find(|(start, _)| name.starts_with(start)).map_or("other", |(_, part)| part)
}

impl Card {
    fn of(loaded: &Loaded) -> Result<Card> {
        let (config, model) = (&loaded.config, &loaded.model);
        let mut parts: Vec<PartCard> = Vec::new();
        for item in model.language.iter().chain(&model.vision) {
            let (part, parameters) = (part_of(&item.name), item.shape.iter().product::<usize>() as u64);
            let bytes = item.open(&loaded.checkpoint)?.stored_bytes();
            match parts.iter_mut().find(|p| p.part == part) {
                Some(p) => (p.parameters, p.bytes) = (p.parameters + parameters, p.bytes + bytes),
                None => parts.push(PartCard { part, parameters, bytes }),
            }
        }
        let picture = model.variant.vision.as_ref().map(|layout| PictureCard {
            square: layout.image_size,
            grid: layout.grid,
            views: layout.views(),
            rows: layout.image_rows(),
            towers: layout.encoders.iter().map(|e| e.name()).chain(layout.qformer.then_some("qformer")).collect(),
            skip_tokens: model.skip.is_some(),
            pooled_parts: layout.pool_parts,
        });
        Ok(Card {
            llama_type: model.variant.llama_type.clone(),
            decoder: DecoderCard {
                layers: config.layers,
                dim: config.dim,
                hidden: config.hidden,
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim(),
                vocabulary: model.sizes.vocab,
                rope_base: config.rope_theta,
                mixture: (config.experts > 0).then_some(MixtureCard { experts: config.experts, used: config.experts_used }),
                packed_attention: loaded.dialect.fused,
                rope_order: if loaded.dialect.rope == RopeOrder::Pairs { "pairs" } else { "halves" },
            },
            picture,
            parameters: parts.iter().map(|p| p.parameters).sum(),
            bytes: parts.iter().map(|p| p.bytes).sum(),
            parts,
        })
    }
}

/// The card of the checkpoint at `path`, and what stands in the way of converting it.
fn card(path: &Path) -> (Option<Card>, Option<String>) {
    // To look at a checkpoint nobody needs to know where its pictures were padded.
    let how = Reading { pad_anchor: Some(PadAnchor::Centre), ..Reading::default() };
    let loaded = Loaded::open(&[path.to_owned()], &how);
    match loaded.and_then(|loaded| Ok((Card::of(&loaded)?, loaded.model.skip.is_some()))) {
        Ok((card, skips)) => {
            let needs = "it has rows that stand for empty sub-images; converting it needs --pad-anchor";
            (Some(card), skips.then(|| needs.to_owned()))
        }
        Err(e) => (None, Some(e.to_string())),
    }
}

/// Describes a checkpoint directory, or a single `.pth` or `.safetensors` file, one shard included.
///
/// # Errors
/// `Io` and `Invalid` as the checkpoint reader gives them.
pub fn inspect_checkpoint(path: &Path) -> Result<CheckpointInfo> {
    let checkpoint = Checkpoint::inspect(path)?;
    let mut tensors = Vec::new();
    let mut elements = 0u64;
    for name in checkpoint.names() {
        let shapes = checkpoint.shapes(name).unwrap_or_default();
        elements += shapes.iter().map(|s| s.iter().product::<usize>() as u64).sum::<u64>();
        let dtype =
            [Rule::Same, Rule::Owner].into_iter().find_map(|rule| checkpoint.merged(name, rule).ok()).map(|m| m.dtype().name().to_owned());
        tensors.push(CheckpointTensor { name: name.to_owned(), dtype, shapes });
    }
    let llama_type = checkpoint.llama_type().map(str::to_owned);
    let (card, problem) = card(path);
    Ok(CheckpointInfo {
        path: path.to_owned(),
        supported: card.is_some() || llama_type.as_deref().is_some_and(|t| variant::find(t, path).is_ok()),
        card,
        problem,
        llama_type,
        config: checkpoint.config().clone(),
        tokenizer: checkpoint.tokenizer_model().is_some(),
        bytes: checkpoint.file_bytes(),
        elements,
        tensors,
        notes: checkpoint.notes().to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sphinx_quant::gguf::names;

    #[test]
    fn every_tensor_has_a_part() {
        for (name, part) in [
            (names::TOKEN_EMBD, "embeddings"),
            (names::OUTPUT, "output"),
            (names::OUTPUT_NORM, "decoder"),
            ("blk.3.attn_q.weight", "decoder"),
            ("blk.3.ffn_gate_inp.weight", "decoder"),
            ("blk.3.ffn_down_exps.weight", "experts"),
            ("blk.3.ffn_down_exps.4.weight", "experts"),
            (names::CNX_STEM_W, "convnext"),
            (names::DINO_POS, "dinov2"),
            (names::CLIP_POS, "clip"),
            (names::EVA_CLS, "eva"),
            (names::QF_QUERY, "q-former"),
            (names::QPROJ_W, "projections"),
            (names::SKIP_TOKEN, "projections"),
            ("stranger", "other"),
        ] {
            assert_eq!(part_of(name), part, "{name}");
        }
    }
}
