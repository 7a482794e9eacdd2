//! One row per tensor: where it comes from, what it is called in the model file, its shape, its part and its transform.
//!
//! Converter, synthesiser and verifier read the same rows. A checkpoint tensor that no row claims is reported; a row that
//! nothing fills is an error.

pub mod bridge;
pub mod convnext;
pub mod dinov2;
pub mod llama;

use std::collections::{BTreeSet, HashSet};

use sphinx_quant::error::printable;
use sphinx_quant::gguf::names;
use sphinx_quant::recipe::Role;

use crate::checkpoint::{Checkpoint, Merged, Rule};
use crate::config::Config;
use crate::error::{ConvertError, Result};
use crate::transform::Transform;
use crate::variant::{Layout, VIT_PATCH, Variant};

/// One tensor, or one per layer, stage or block: `{i}` and `{j}` in the names count them.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Name in the checkpoint.
    pub source: &'static str,
    /// Name in the model file.
    pub name: &'static str,
    /// Shape in the checkpoint, outermost first.
    pub shape: &'static [Dim],
    /// How shards make the whole.
    pub rule: Rule,
    /// What it does, for the recipe.
    pub role: Role,
    /// What happens to it on the way.
    pub transform: Transform,
}

/// A replicated row; those of the language model change the rule with [`Row::sharded`].
const fn row(source: &'static str, name: &'static str, shape: &'static [Dim], role: Role, transform: Transform) -> Row {
    Row { source, name, shape, rule: Rule::Same, role, transform }
}

impl Row {
    /// The same row, put together by `rule`.
    const fn sharded(mut self, rule: Rule) -> Row {
        self.rule = rule;
        self
    }
}

/// A length in a checkpoint's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    /// A fixed length.
    N(usize),
    /// Width of the decoder.
    Embd,
    /// Pieces in the vocabulary.
    Vocab,
    /// All query heads together.
    Q,
    /// All key heads together.
    Kv,
    /// Hidden width of the feed-forward part.
    Ff,
    /// Width of ConvNeXt stage `{i}`.
    Cnx,
    /// Four times that.
    Cnx4,
    /// Width of the stage before.
    CnxBefore,
    /// Width of the last ConvNeXt stage.
    CnxLast,
    /// Width of DINOv2.
    Dino,
    /// Three times that.
    Dino3,
    /// Hidden width of its MLP.
    DinoFf,
    /// Twice that.
    DinoFf2,
    /// Entries of its stored position table.
    DinoPositions,
    /// All encoders' features side by side.
    Features,
}

/// Every length a model has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Width of the decoder.
    pub dim: usize,
    /// Pieces in the vocabulary.
    pub vocab: usize,
    /// Query heads times their width.
    pub q: usize,
    /// Key heads times their width.
    pub kv: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Hidden width of the feed-forward part, of one expert in a mixture.
    pub hidden: usize,
    /// Experts per layer; 0 without a mixture.
    pub experts: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Blocks of every ConvNeXt stage.
    pub cnx_depths: Vec<usize>,
    /// Width of every ConvNeXt stage.
    pub cnx_widths: Vec<usize>,
    /// Blocks of DINOv2.
    pub dino_depth: usize,
    /// Width of DINOv2.
    pub dino_width: usize,
    /// Hidden width of its MLP.
    pub dino_hidden: usize,
    /// Whether that MLP is a SwiGLU.
    pub dino_swiglu: bool,
    /// Entries of its stored position table, class row included.
    pub dino_positions: usize,
    /// Blocks of CLIP's visual tower; 0 without one.
    pub clip_depth: usize,
    /// Width of CLIP's visual tower.
    pub clip_width: usize,
    /// Hidden width of its MLP.
    pub clip_hidden: usize,
    /// Blocks of the EVA tower; 0 without a Q-Former.
    pub eva_depth: usize,
    /// Width of the EVA tower.
    pub eva_width: usize,
    /// Hidden width of its MLP.
    pub eva_hidden: usize,
    /// Layers of the Q-Former.
    pub qf_depth: usize,
    /// Width of the Q-Former.
    pub qf_width: usize,
    /// Hidden width of its feed-forward parts.
    pub qf_hidden: usize,
    /// Its learned queries.
    pub qf_queries: usize,
    /// Layer 0 and every multiple of this look at the EVA tower.
    pub qf_cross_every: usize,
    /// Rows that stand for an empty sub-image, all places together; 0 without skip rows.
    pub skip_rows: usize,
}

impl Sizes {
    /// The length of `dim` in layer, stage or block `i`.
    pub fn of(&self, dim: Dim, i: usize) -> usize {
        let width = |i: usize| self.cnx_widths.get(i).copied().unwrap_or(0);
        match dim {
            Dim::N(n) => n,
            Dim::Embd => self.dim,
            Dim::Vocab => self.vocab,
            Dim::Q => self.q,
            Dim::Kv => self.kv,
            Dim::Ff => self.hidden,
            Dim::Cnx => width(i),
            Dim::Cnx4 => 4 * width(i),
            Dim::CnxBefore => i.checked_sub(1).map_or(0, width),
            Dim::CnxLast => self.cnx_widths.last().copied().unwrap_or(0),
            Dim::Dino => self.dino_width,
            Dim::Dino3 => 3 * self.dino_width,
            Dim::DinoFf => self.dino_hidden,
            Dim::DinoFf2 => 2 * self.dino_hidden,
            Dim::DinoPositions => self.dino_positions,
            Dim::Features => self.of(Dim::CnxLast, 0) + self.dino_width,
        }
    }

    /// The decoder's lengths. `vocab` is the tokenizer's.
    pub fn language(config: &Config, vocab: usize) -> Sizes {
        Sizes {
            dim: config.dim,
            vocab,
            q: config.dim,
            kv: config.kv_heads * config.head_dim(),
            heads: config.heads,
            kv_heads: config.kv_heads,
            hidden: config.hidden,
            experts: config.experts,
            layers: config.layers,
            ..Sizes::default()
        }
    }

    /// Adds the encoders' lengths, read from the tensors' names and shapes.
    ///
    /// # Errors
    /// `Invalid` when a tensor that shows a length is missing, or numbers of stages or blocks have a gap.
    pub fn with_vision(mut self, checkpoint: &Checkpoint) -> Result<Sizes> {
        let stages = indices(checkpoint, convnext::STAGES)?;
        for stage in 0..stages {
            let blocks = format!("{}{stage}.blocks.", convnext::STAGES);
            self.cnx_depths.push(indices(checkpoint, &blocks)?);
            self.cnx_widths.push(length(checkpoint, &format!("{blocks}0.conv_dw.weight"), 0)?);
        }
        self.dino_depth = indices(checkpoint, dinov2::BLOCKS)?;
        self.dino_width = length(checkpoint, dinov2::CLASS, 2)?;
        self.dino_positions = length(checkpoint, dinov2::POSITIONS, 1)?;
        self.dino_swiglu = !checkpoint.names().any(|n| n.starts_with(dinov2::BLOCKS) && n.contains(".mlp.fc1."));
        let (name, dim) = if self.dino_swiglu { ("0.mlp.w3.weight", 1) } else { ("0.mlp.fc1.weight", 0) };
        self.dino_hidden = length(checkpoint, &format!("{}{name}", dinov2::BLOCKS), dim)?;
        let side = self.dino_positions.saturating_sub(1).isqrt();
        if side == 0 || side * side + 1 != self.dino_positions {
            let what = format!("{} positions are no class row and square", self.dino_positions);
            return Err(ConvertError::invalid(checkpoint.folder(), what, "is the checkpoint complete?").of_tensor(dinov2::POSITIONS));
        }
        Ok(self)
    }
}

/// How many stages, layers or blocks there are: names starting with `prefix` and a number, which must count from 0 without a gap.
fn indices(checkpoint: &Checkpoint, prefix: &str) -> Result<usize> {
    let found: BTreeSet<usize> = checkpoint.names().filter_map(|n| number(n.strip_prefix(prefix)?)).collect();
    for (want, &have) in found.iter().enumerate() {
        if want != have {
            return Err(missing(checkpoint, &format!("{prefix}{want}.…")));
        }
    }
    if found.is_empty() { Err(missing(checkpoint, &format!("{prefix}0.…"))) } else { Ok(found.len()) }
}

/// The number in front of the first dot, spelled as a number of ours would be.
fn number(rest: &str) -> Option<usize> {
    let digits = rest.split('.').next()?;
    let n: usize = digits.parse().ok()?;
    (n.to_string() == digits).then_some(n)
}

/// Length `dim` of a replicated tensor.
fn length(checkpoint: &Checkpoint, name: &str, dim: usize) -> Result<usize> {
    let shapes = checkpoint.shapes(name).ok_or_else(|| missing(checkpoint, name))?;
    let shape = shapes.first().ok_or_else(|| missing(checkpoint, name))?;
    match shape.get(dim) {
        Some(&n) if (1..=1 << 24).contains(&n) => Ok(n),
        _ => Err(ConvertError::invalid(
            checkpoint.folder(),
            format!("shape {shape:?} is not what this tensor has"),
            "is the checkpoint complete?",
        )
        .of_tensor(name)),
    }
}

fn missing(checkpoint: &Checkpoint, name: &str) -> ConvertError {
    ConvertError::invalid(checkpoint.folder(), "an expected tensor is missing", "is the checkpoint complete, and its llama_type right?")
        .of_tensor(name)
}

/// A row with its numbers filled in: one tensor.
#[derive(Clone, Debug)]
pub struct Item {
    /// Name in the checkpoint.
    pub source: String,
    /// Name in the model file.
    pub name: String,
    /// Shape in the checkpoint, outermost first.
    pub shape: Vec<usize>,
    /// Shape in the model file, outermost first: 1-D, or rows and columns.
    pub out: Vec<usize>,
    /// How shards make the whole.
    pub rule: Rule,
    /// What it does.
    pub role: Role,
    /// What happens to it on the way.
    pub transform: Transform,
    /// Layer, stage or block.
    pub layer: usize,
    /// How many of those there are.
    pub layers: usize,
}

impl Item {
    fn new(row: &Row, sizes: &Sizes, layers: usize, i: usize, j: usize) -> Item {
        let shape: Vec<usize> = row.shape.iter().map(|&d| sizes.of(d, i)).collect();
        Item {
            source: names::at(row.source, i, j),
            name: names::at(row.name, i, j),
            out: row.transform.shape(&shape),
            shape,
            rule: row.rule,
            role: row.role,
            transform: row.transform,
            layer: i,
            layers,
        }
    }

    /// Elements in a row of the file.
    pub fn cols(&self) -> usize {
        self.out.last().copied().unwrap_or(1)
    }

    /// Rows in the file.
    pub fn rows(&self) -> usize {
        self.out.iter().rev().skip(1).product()
    }

    /// Elements altogether.
    pub fn len(&self) -> usize {
        self.rows() * self.cols()
    }

    /// Whether there are none; never so for a resolved item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shape in the file as GGUF has it, fastest dimension first.
    pub fn dims(&self) -> Vec<usize> {
        self.out.iter().rev().copied().collect()
    }

    /// The tensor in `checkpoint`, with the shape this row promises.
    ///
    /// # Errors
    /// `Invalid` when it is missing or has another shape.
    pub fn open(&self, checkpoint: &Checkpoint) -> Result<Merged> {
        if checkpoint.shapes(&self.source).is_none() {
            return Err(missing(checkpoint, &self.source));
        }
        let merged = checkpoint.merged(&self.source, self.rule)?;
        if merged.shape() != self.shape {
            let what = format!("shape is {:?}, expected {:?}", merged.shape(), self.shape);
            let remedy = "do config.json, tokenizer.model and llama_type belong to this checkpoint?";
            return Err(ConvertError::invalid(checkpoint.folder(), what, remedy).of_tensor(&self.source));
        }
        Ok(merged)
    }
}

/// The language half of a model of these sizes, in file order.
pub fn language_items(sizes: &Sizes) -> Vec<Item> {
    llama::items(sizes)
}

/// The vision half, in file order: the order in which the encoders use it.
pub fn vision_items(sizes: &Sizes, layout: &Layout) -> Vec<Item> {
    let mut out = convnext::items(sizes);
    out.extend(dinov2::items(sizes, layout.vit_grid() as usize));
    out.extend(bridge::items(sizes));
    out
}

/// Checks the decoder's settings against the tensors that show them, so that a wrong file is named rather than its last symptom.
///
/// # Errors
/// `Invalid` when width, vocabulary, hidden width or number of layers differ.
pub fn cross_check(checkpoint: &Checkpoint, config: &Config, vocab: usize) -> Result<()> {
    let whole = |name: &str, rule: Rule| -> Result<Vec<usize>> {
        checkpoint.shapes(name).ok_or_else(|| missing(checkpoint, name))?;
        Ok(checkpoint.merged(name, rule)?.shape().to_vec())
    };
    let differ = |what: String, name: &str, remedy: &str| Err(ConvertError::invalid(&config.file, what, remedy).of_tensor(name));
    let embeddings = whole(llama::EMBEDDINGS, Rule::Dim1)?;
    let [rows, width] = embeddings.as_slice() else {
        return differ(format!("shape is {embeddings:?}, expected [vocabulary, dim]"), llama::EMBEDDINGS, "is the checkpoint complete?");
    };
    if *width != config.dim {
        let what = format!("dim is {}, but the embeddings are {width} wide", config.dim);
        return differ(what, llama::EMBEDDINGS, "is config.json there, and the checkpoint's own?");
    }
    if *rows != vocab {
        let what = format!("the tokenizer has {vocab} pieces, but there are {rows} embeddings");
        return differ(what, llama::EMBEDDINGS, "is tokenizer.model the checkpoint's own?");
    }
    let w1 = whole(llama::FIRST_W1, Rule::Dim0)?;
    if w1.first() != Some(&config.hidden) {
        let what = format!("the hidden width works out as {}, but the tensor has shape {w1:?}", config.hidden);
        return differ(what, llama::FIRST_W1, "check multiple_of and ffn_dim_multiplier in config.json");
    }
    let layers = indices(checkpoint, llama::LAYERS)?;
    if layers > config.layers {
        let what = format!("n_layers is {}, but the checkpoint has {layers} layers", config.layers);
        return differ(what, &format!("{}{}.…", llama::LAYERS, config.layers), "correct n_layers");
    }
    // Before anything is made per layer: the number is the file's, the layers are not.
    if layers < config.layers {
        return Err(missing(checkpoint, &format!("{}{layers}.…", llama::LAYERS)));
    }
    Ok(())
}

/// Names that a checkpoint carries and nobody needs.
fn silent(name: &str) -> bool {
    name == dinov2::MASK
        || ["position_ids", "rope.freqs", "rope.inv_freq", "num_batches_tracked"].iter().any(|end| name.ends_with(end))
        || ["llma.clip.visual.proj", "llma.clip.positional_embedding", "llma.clip.text_projection", "llma.clip.logit_scale"].contains(&name)
        || name == "llma.clip.token_embedding.weight"
        || name.starts_with("llma.clip.ln_final.")
}

/// Names the tensors of `checkpoint` that no row of `claimed` wants.
///
/// # Errors
/// `Invalid` with `strict` for the first of them; without, for a learned skip token, which changes what the model computes.
pub fn unclaimed(checkpoint: &Checkpoint, claimed: &HashSet<&str>, strict: bool, warnings: &mut Vec<String>) -> Result<()> {
    for name in checkpoint.names().filter(|n| !claimed.contains(n) && !silent(n)) {
        let folder = checkpoint.folder();
        if name.contains("skip") && checkpoint.shapes(name).is_some_and(|s| s.first().is_some_and(|s| s.len() <= 3)) {
            let what = "a learned skip token stands for empty sub-images, and nothing says where its pictures were padded";
            let remedy = "skip tokens are not supported by this version yet";
            return Err(ConvertError::invalid(folder, what, remedy).of_tensor(name));
        }
        if strict {
            return Err(ConvertError::invalid(folder, "unknown tensor", "leave --strict out to ignore it").of_tensor(name));
        }
        warnings.push(format!("{}: unknown tensor \"{}\" is ignored", folder.display(), printable(name)));
    }
    Ok(())
}

/// All of a model: its variant and lengths, and its two lists of tensors.
#[derive(Clone, Debug)]
pub struct Model {
    /// What it is.
    pub variant: Variant,
    /// Its lengths.
    pub sizes: Sizes,
    /// Tensors of the language half.
    pub language: Vec<Item>,
    /// Tensors of the vision half; empty for text only.
    pub vision: Vec<Item>,
}

impl Model {
    /// The tensors of a `variant` of these sizes.
    pub fn new(variant: Variant, sizes: Sizes) -> Model {
        let language = language_items(&sizes);
        let vision = variant.vision.as_ref().map_or(vec![], |layout| vision_items(&sizes, layout));
        Model { variant, sizes, language, vision }
    }

    /// Side of DINOv2's patches.
    pub fn patch(&self) -> usize {
        VIT_PATCH as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::variant::find;

    /// The real sizes of SPHINX-Tiny-1k.
    fn tiny() -> Model {
        Model::new(find("llama_ens5_light", std::path::Path::new("")).unwrap(), crate::synth::full_sizes(32000))
    }

    #[test]
    fn full_size_counts_are_the_published_ones() {
        let m = tiny();
        let params = |items: &[Item]| items.iter().map(|i| i.shape.iter().product::<usize>()).sum::<usize>();
        assert_eq!(params(&m.language), 1_100_048_384);
        let part = |p: &str| m.vision.iter().filter(|i| i.source.starts_with(p)).cloned().collect::<Vec<_>>();
        assert_eq!((part("llma.openclip_convnext_xxl.").len(), params(&part("llma.openclip_convnext_xxl."))), (378, 843_398_016));
        // without the mask token, which is not converted
        assert_eq!((part("llma.dinov2_vitg14.").len(), params(&part("llma.dinov2_vitg14."))), (566, 1_136_480_768 - 1536));
        assert_eq!(part("llma.visual_proj.").len(), 4);
        assert_eq!(m.vision.len(), 378 + 566 + 4 + 2);
    }

    #[test]
    fn names_are_unique_and_filled_in() {
        let m = tiny();
        for items in [&m.language, &m.vision] {
            let names: HashSet<_> = items.iter().map(|i| &i.name).collect();
            assert_eq!(names.len(), items.len());
            for i in items.iter() {
                assert!(!i.name.contains('{') && !i.source.contains('{') && i.source.starts_with("llma."), "{i:?}");
                assert!(i.shape.iter().all(|&n| n > 0) && i.out.len() <= 2, "{i:?}");
                let grown = matches!(i.transform, Transform::DinoPositions { .. });
                assert!(grown || i.len() == i.shape.iter().product::<usize>(), "{i:?}");
            }
        }
    }

    #[test]
    fn numbers_are_canonical() {
        assert_eq!(number("12.x"), Some(12));
        for bad in ["", ".x", "01.x", "+1.x", "-1.x", "1a.x", "99999999999999999999999.x"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }
}
