//! One row per tensor: where it comes from, what it is called in the model file, its shape, its part and its transform.
//!
//! Converter, synthesiser and verifier read the same rows. A checkpoint tensor that no row claims is reported; a row that
//! nothing fills is an error.

pub mod bridge;
pub mod clip;
pub mod convnext;
pub mod dinov2;
pub mod internlm2;
pub mod llama;
pub mod mixtral;
pub mod qformer;

use std::collections::{BTreeSet, HashSet};

use sphinx_quant::error::printable;
use sphinx_quant::gguf::names;
use sphinx_quant::recipe::Role;

use crate::checkpoint::{Checkpoint, Rule};
use crate::config::Config;
use crate::error::{ConvertError, Result};
use crate::gather::{Assembled, Gather, Heads};
use crate::transform::Transform;
use crate::variant::{Encoder, Language, Layout, VIT_PATCH, Variant};

/// One tensor, or one per layer, stage or block: `{i}` and `{j}` in the names count them. Of experts that have a tensor each,
/// `{j}` counts the experts.
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
    /// What of the source it is.
    pub take: Take,
    /// What happens to it on the way.
    pub transform: Transform,
}

/// What of its source, or sources, a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// All of it.
    All,
    /// Query heads, whose channels the dialect may have in another order.
    QueryHeads,
    /// Key heads, likewise.
    KeyHeads,
    /// The query heads of packed attention.
    FusedQuery,
    /// Its key heads.
    FusedKey,
    /// Its value heads.
    FusedValue,
    /// Experts of a layer, which lie one below the other.
    Blocks,
    /// The same, each the other way round.
    Turned,
    /// One source per expert.
    Each,
}

/// In which order the channels of a query or key head lie that turn together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RopeOrder {
    /// Side by side, as Meta has them: what model files have.
    #[default]
    Pairs,
    /// Half a head apart, as Hugging Face has them.
    Halves,
}

/// How a checkpoint spells and packs the tensors of its decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// Names of ours, as the rows have them, and what stands for them; a name not listed is the same.
    pub names: &'static [(&'static str, &'static str)],
    /// The feed-forward part.
    pub language: Language,
    /// Whether query, key and value are one tensor, packed as InternLM2 packs them.
    pub fused: bool,
    /// Order of the channels of queries and keys.
    pub rope: RopeOrder,
}

impl Dialect {
    /// The public code's.
    pub fn accessory(language: Language) -> Dialect {
        Dialect { names: &[], language, fused: false, rope: RopeOrder::Pairs }
    }

    /// The public code's names with attention packed: weights of InternLM2 that were trained on in place.
    pub fn packed(language: Language) -> Dialect {
        Dialect { fused: true, rope: RopeOrder::Halves, ..Dialect::accessory(language) }
    }

    /// That of a checkpoint with the public code's names: packed if its tensors are, experts as they lie.
    pub fn of(checkpoint: &Checkpoint, language: Language) -> Dialect {
        let has = |part: &str| checkpoint.names().any(|n| n.contains(part));
        let language = match language {
            Language::Dense => Language::Dense,
            _ if has(".feed_forward.experts.") => Language::MixtureOwner,
            _ => Language::Mixture,
        };
        if has(".attention.wqkv.") { Dialect::packed(language) } else { Dialect::accessory(language) }
    }

    /// What stands for our name `template`, numbers open.
    fn template(&self, template: &'static str) -> &'static str {
        self.names.iter().find(|n| n.0 == template).map_or(template, |n| n.1)
    }

    /// The same with layer `i` and expert `j`.
    pub fn spell(&self, template: &'static str, i: usize, j: usize) -> String {
        names::at(self.template(template), i, j)
    }

    /// What stands in front of `hole` (`{i}` or `{j}`) in our name `template`, of layer 0.
    fn before(&self, template: &'static str, hole: &str) -> String {
        let whole = self.template(template);
        names::at(whole.split_once(hole).map_or(whole, |(before, _)| before), 0, 0)
    }
}

/// A replicated row; those of the language model change the rule with [`Row::sharded`].
const fn row(source: &'static str, name: &'static str, shape: &'static [Dim], role: Role, transform: Transform) -> Row {
    Row { source, name, shape, rule: Rule::Same, role, take: Take::All, transform }
}

impl Row {
    /// The same row, put together by `rule`.
    const fn sharded(mut self, rule: Rule) -> Row {
        self.rule = rule;
        self
    }

    /// The same row, this much of its source.
    const fn taking(mut self, take: Take) -> Row {
        self.take = take;
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
    /// Query, key and value heads together.
    Qkv,
    /// Hidden width of the feed-forward part, of one expert in a mixture.
    Ff,
    /// Experts.
    Experts,
    /// Hidden widths of all experts together.
    ExpertsFf,
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
    /// Rows of a ViT's view: the class row and the patches.
    VitPositions,
    /// Width of CLIP.
    Clip,
    /// Three times that.
    Clip3,
    /// Hidden width of its MLP.
    ClipFf,
    /// Width of EVA.
    Eva,
    /// Three times that.
    Eva3,
    /// Hidden width of its MLP.
    EvaFf,
    /// Width of the Q-Former.
    Qf,
    /// Hidden width of its feed-forward parts.
    QfFf,
    /// Its queries.
    Queries,
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
    /// Experts used per token.
    pub experts_used: usize,
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
    /// Rows of a ViT's view, the class row included; [`vision_items`] sets it from the layout.
    pub vit_positions: usize,
    /// Width of the encoders' features side by side; [`vision_items`] sets it from the layout.
    pub features: usize,
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
            Dim::Qkv => self.q + 2 * self.kv,
            Dim::Ff => self.hidden,
            Dim::Experts => self.experts,
            Dim::ExpertsFf => self.experts * self.hidden,
            Dim::Cnx => width(i),
            Dim::Cnx4 => 4 * width(i),
            Dim::CnxBefore => i.checked_sub(1).map_or(0, width),
            Dim::CnxLast => self.cnx_widths.last().copied().unwrap_or(0),
            Dim::Dino => self.dino_width,
            Dim::Dino3 => 3 * self.dino_width,
            Dim::DinoFf => self.dino_hidden,
            Dim::DinoFf2 => 2 * self.dino_hidden,
            Dim::DinoPositions => self.dino_positions,
            Dim::VitPositions => self.vit_positions,
            Dim::Clip => self.clip_width,
            Dim::Clip3 => 3 * self.clip_width,
            Dim::ClipFf => self.clip_hidden,
            Dim::Eva => self.eva_width,
            Dim::Eva3 => 3 * self.eva_width,
            Dim::EvaFf => self.eva_hidden,
            Dim::Qf => self.qf_width,
            Dim::QfFf => self.qf_hidden,
            Dim::Queries => self.qf_queries,
            Dim::Features => self.features,
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
            experts_used: config.experts_used,
            layers: config.layers,
            ..Sizes::default()
        }
    }

    /// Width of a decoder's head.
    pub fn head_dim(&self) -> usize {
        self.q / self.heads.max(1)
    }

    /// The same with what `layout` says about the encoders' inputs and outputs.
    fn seen_through(&self, layout: &Layout) -> Sizes {
        let grid = layout.vit_grid() as usize;
        let width = |e: &Encoder| match e {
            Encoder::Clip => self.clip_width,
            Encoder::ConvNext => self.of(Dim::CnxLast, 0),
            Encoder::Dinov2 => self.dino_width,
        };
        Sizes { vit_positions: 1 + grid * grid, features: layout.encoders.iter().map(width).sum(), ..self.clone() }
    }

    /// Adds the lengths of `layout`'s encoders, read from the tensors' names and shapes.
    ///
    /// # Errors
    /// `Invalid` when a tensor that shows a length is missing, numbers of stages or blocks have a gap, or a width does not
    /// divide into heads.
    pub fn with_vision(mut self, checkpoint: &Checkpoint, layout: &Layout) -> Result<Sizes> {
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
        let heads = |what: &str, width: usize, head: usize, tensor: &str| {
            if width.is_multiple_of(head) {
                return Ok(());
            }
            let what = format!("{what} is {width} wide, expected a multiple of {head}, the width of its heads");
            Err(ConvertError::invalid(checkpoint.folder(), what, "is this a SPHINX checkpoint?").of_tensor(tensor))
        };
        heads("DINOv2", self.dino_width, dinov2::HEAD_WIDTH, dinov2::CLASS)?;
        if layout.encoders.contains(&Encoder::Clip) {
            self.clip_depth = indices(checkpoint, clip::BLOCKS)?;
            self.clip_width = length(checkpoint, clip::CLASS, 0)?;
            self.clip_hidden = length(checkpoint, &format!("{}0{}", clip::BLOCKS, clip::FC1), 0)?;
            heads("CLIP", self.clip_width, clip::HEAD_WIDTH, clip::CLASS)?;
        }
        if layout.qformer {
            self.eva_depth = indices(checkpoint, qformer::EVA_BLOCKS)?;
            self.eva_width = length(checkpoint, qformer::EVA_CLASS, 2)?;
            self.eva_hidden = length(checkpoint, &format!("{}0{}", qformer::EVA_BLOCKS, qformer::EVA_FC1), 0)?;
            heads("the tower of the Q-Former", self.eva_width, qformer::EVA_HEAD_WIDTH, qformer::EVA_CLASS)?;
            self.qf_depth = indices(checkpoint, qformer::LAYERS)?;
            self.qf_queries = length(checkpoint, qformer::QUERY_TOKENS, 1)?;
            self.qf_width = length(checkpoint, qformer::QUERY_TOKENS, 2)?;
            self.qf_hidden = length(checkpoint, &format!("{}0{}", qformer::LAYERS, qformer::FC1), 0)?;
            heads("the Q-Former", self.qf_width, qformer::HEAD_WIDTH, qformer::QUERY_TOKENS)?;
            // Which layers look at the tower: 0 and every few from there. If these are others, a row is missing or one too many.
            let looks = |i: usize| checkpoint.shapes(&format!("{}{i}{}", qformer::LAYERS, qformer::CROSS)).is_some();
            self.qf_cross_every = (1..self.qf_depth).find(|&i| looks(i)).unwrap_or(self.qf_depth);
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

/// A row with its numbers filled in: one tensor of the model file.
#[derive(Clone, Debug)]
pub struct Item {
    /// What it is made from, for reports and messages: a tensor's name, with a mark where it is a part of it or several.
    pub source: String,
    /// Names in the checkpoint.
    pub sources: Vec<String>,
    /// Shape of each of those, outermost first.
    pub source_shape: Vec<usize>,
    /// How shards make the whole of one.
    pub rule: Rule,
    /// Which rows of them it has.
    pub gather: Gather,
    /// Its shape before the transform, outermost first.
    pub shape: Vec<usize>,
    /// What happens to it on the way.
    pub transform: Transform,
    /// Name in the model file.
    pub name: String,
    /// Shape in the model file, outermost first: 1-D, rows and columns, or experts, rows and columns.
    pub out: Vec<usize>,
    /// What it does.
    pub role: Role,
    /// Layer, stage or block.
    pub layer: usize,
    /// How many of those there are.
    pub layers: usize,
}

impl Item {
    /// A tensor of the vision half.
    fn new(row: &Row, sizes: &Sizes, layers: usize, i: usize, j: usize) -> Item {
        let shape = row.shape.iter().map(|&d| sizes.of(d, i)).collect();
        let item = Item::of_shape(row, names::at(row.source, i, j), shape);
        Item { name: names::at(row.name, i, j), layer: i, layers, ..item }
    }

    /// A tensor outside of layers whose source and shape are known.
    fn of_shape(row: &Row, source: String, shape: Vec<usize>) -> Item {
        Item {
            sources: vec![source.clone()],
            source,
            source_shape: shape.clone(),
            rule: row.rule,
            gather: Gather::Whole,
            out: row.transform.shape(&shape),
            shape,
            transform: row.transform,
            name: row.name.to_owned(),
            role: row.role,
            layer: 0,
            layers: 1,
        }
    }

    /// A tensor of the decoder, in the checkpoint's dialect.
    fn spelled(row: &Row, sizes: &Sizes, dialect: &Dialect, i: usize) -> Item {
        let template = dialect.template(row.source);
        let source_shape: Vec<usize> = row.shape.iter().map(|&d| sizes.of(d, i)).collect();
        let width = sizes.head_dim();
        let halves = dialect.rope == RopeOrder::Halves;
        let queries = sizes.heads / sizes.kv_heads.max(1);
        let packed = |first, taken, halves| Gather::Heads(Heads { width, group: queries + 2, first, taken, halves });
        let gather = match row.take {
            Take::QueryHeads | Take::KeyHeads if halves => Gather::Heads(Heads { width, group: 1, first: 0, taken: 1, halves }),
            Take::All | Take::QueryHeads | Take::KeyHeads | Take::Blocks => Gather::Whole,
            Take::FusedQuery => packed(0, queries, halves),
            Take::FusedKey => packed(queries, 1, halves),
            Take::FusedValue => packed(queries + 1, 1, false),
            Take::Turned => Gather::Turned { experts: sizes.experts },
            Take::Each => Gather::Stack,
        };
        let count = if row.take == Take::Each { sizes.experts } else { 1 };
        let sources: Vec<String> = (0..count).map(|j| names::at(template, i, j)).collect();
        let part = match row.take {
            Take::FusedQuery => " [q]",
            Take::FusedKey => " [k]",
            Take::FusedValue => " [v]",
            _ => "",
        };
        let shape = gather.shape(&source_shape, count);
        let out = match (row.take, shape.as_slice()) {
            (Take::Blocks | Take::Turned | Take::Each, &[rows, cols]) => vec![sizes.experts, rows / sizes.experts.max(1), cols],
            _ => row.transform.shape(&shape),
        };
        Item {
            source: format!("{}{part}", template.replace("{i}", &i.to_string()).replace("{j}", &format!("{{0..{}}}", count.max(1) - 1))),
            sources,
            source_shape,
            rule: if let Rule::Expert { .. } = row.rule { Rule::Expert { experts: sizes.experts } } else { row.rule },
            gather,
            shape,
            transform: row.transform,
            name: names::at(row.name, i, 0),
            out,
            role: row.role,
            layer: i,
            layers: sizes.layers,
        }
    }

    /// How many experts are stacked in it, if it is a stack.
    pub fn experts(&self) -> Option<usize> {
        match *self.out {
            [experts, _, _] => Some(experts),
            _ => None,
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

    /// The tensor in `checkpoint`, sources of the shapes this row promises.
    ///
    /// # Errors
    /// `Invalid` when one is missing or has another shape.
    pub fn open(&self, checkpoint: &Checkpoint) -> Result<Assembled> {
        let open = |source: &String| {
            if checkpoint.shapes(source).is_none() {
                return Err(missing(checkpoint, source));
            }
            let merged = checkpoint.merged(source, self.rule)?;
            if merged.shape() != self.source_shape {
                let what = format!("shape is {:?}, expected {:?}", merged.shape(), self.source_shape);
                let remedy = "do config.json, tokenizer.model and llama_type belong to this checkpoint?";
                return Err(ConvertError::invalid(checkpoint.folder(), what, remedy).of_tensor(source));
            }
            Ok(merged)
        };
        Ok(Assembled::new(self.sources.iter().map(open).collect::<Result<_>>()?, self.gather))
    }
}

/// A tensor of a checkpoint, as some items want it.
#[derive(Clone, Debug)]
pub struct SourceTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its whole shape, outermost first.
    pub shape: &'a [usize],
    /// How shards make the whole.
    pub rule: Rule,
    /// The first item that is made from it.
    pub item: &'a Item,
}

/// The tensors of the checkpoint behind `items`, each once, in the order of their first use.
pub fn sources<'a>(items: impl IntoIterator<Item = &'a Item>) -> Vec<SourceTensor<'a>> {
    let mut seen = HashSet::new();
    let all = items.into_iter().flat_map(|item| item.sources.iter().map(move |name| (name, item)));
    all.filter(|(name, _)| seen.insert(*name))
        .map(|(name, item)| SourceTensor { name, shape: &item.source_shape, rule: item.rule, item })
        .collect()
}

/// The language half of a model of these sizes, in file order.
pub fn language_items(sizes: &Sizes, dialect: &Dialect) -> Vec<Item> {
    llama::items(sizes, dialect)
}

/// The vision half, in file order: the order in which the encoders use it.
pub fn vision_items(sizes: &Sizes, layout: &Layout, skip: Option<&Skip>) -> Vec<Item> {
    let sizes = &sizes.seen_through(layout);
    let mut out = vec![];
    if layout.encoders.contains(&Encoder::Clip) {
        out.extend(clip::items(sizes));
    }
    out.extend(convnext::items(sizes));
    out.extend(dinov2::items(sizes, layout.vit_grid() as usize));
    if layout.qformer {
        out.extend(qformer::items(sizes));
    }
    out.extend(bridge::items(sizes, layout, skip));
    out
}

/// Checks the decoder's settings against the tensors that show them, so that a wrong file is named rather than its last symptom.
///
/// # Errors
/// `Invalid` when width, vocabulary, hidden width, number of layers or experts differ, when a router is there that the type has no
/// use for, or when packed attention is cut inside of a group of heads.
pub fn cross_check(checkpoint: &Checkpoint, config: &Config, vocab: usize, dialect: &Dialect, llama_type: &str) -> Result<()> {
    let whole = |name: &str, rule: Rule| -> Result<Vec<usize>> {
        checkpoint.shapes(name).ok_or_else(|| missing(checkpoint, name))?;
        Ok(checkpoint.merged(name, rule)?.shape().to_vec())
    };
    let differ = |what: String, name: &str, remedy: &str| Err(ConvertError::invalid(&config.file, what, remedy).of_tensor(name));
    let name = dialect.spell(llama::EMBEDDINGS, 0, 0);
    let embeddings = whole(&name, Rule::Dim1)?;
    let [rows, width] = embeddings.as_slice() else {
        return differ(format!("shape is {embeddings:?}, expected [vocabulary, dim]"), &name, "is the checkpoint complete?");
    };
    if *width != config.dim {
        let what = format!("dim is {}, but the embeddings are {width} wide", config.dim);
        return differ(what, &name, "is config.json there, and the checkpoint's own?");
    }
    if *rows != vocab {
        let what = format!("the tokenizer has {vocab} pieces, but there are {rows} embeddings");
        return differ(what, &name, "is tokenizer.model the checkpoint's own?");
    }
    experts_check(checkpoint, config, dialect, llama_type)?;
    if dialect.fused {
        let name = dialect.spell(internlm2::WQKV, 0, 0);
        let shards = checkpoint.shapes(&name).ok_or_else(|| missing(checkpoint, &name))?.len();
        if !config.kv_heads.is_multiple_of(shards) {
            let what =
                format!("{} key heads do not divide among {shards} shards, so packed attention is cut inside of a group", config.kv_heads);
            return Err(ConvertError::invalid(checkpoint.folder(), what, "merge the shards with the tool that cut them").of_tensor(&name));
        }
    }
    let prefix = dialect.before(llama::W_O, "{i}");
    let layers = indices(checkpoint, &prefix)?;
    if layers > config.layers {
        let what = format!("n_layers is {}, but the checkpoint has {layers} layers", config.layers);
        return differ(what, &format!("{prefix}{}.…", config.layers), "correct n_layers");
    }
    // Before anything is made per layer: the number is the file's, the layers are not.
    if layers < config.layers {
        return Err(missing(checkpoint, &format!("{prefix}{layers}.…")));
    }
    Ok(())
}

/// The part of [`cross_check`] about the feed-forward part.
fn experts_check(checkpoint: &Checkpoint, config: &Config, dialect: &Dialect, llama_type: &str) -> Result<()> {
    let rows = |name: &str, rule: Rule| -> Result<(usize, Vec<usize>)> {
        checkpoint.shapes(name).ok_or_else(|| missing(checkpoint, name))?;
        let shape = checkpoint.merged(name, rule)?.shape().to_vec();
        Ok((shape.first().copied().unwrap_or(0), shape))
    };
    let differ = |what: String, name: &str, remedy: &str| Err(ConvertError::invalid(&config.file, what, remedy).of_tensor(name));
    let gate = dialect.spell(mixtral::GATE, 0, 0);
    let (experts, hidden) = (config.experts, config.hidden);
    if dialect.language == Language::Dense {
        if checkpoint.shapes(&gate).is_some() {
            let what = format!("there is a router, but llama_type {llama_type} is no mixture of experts");
            return Err(ConvertError::invalid(checkpoint.folder(), what, "state the right one with --llama-type").of_tensor(&gate));
        }
        let name = dialect.spell(llama::W1, 0, 0);
        let (found, shape) = rows(&name, Rule::Dim0)?;
        if found != hidden {
            let what = format!("the hidden width works out as {hidden}, but the tensor has shape {shape:?}");
            return differ(what, &name, "check multiple_of and ffn_dim_multiplier in config.json");
        }
        return Ok(());
    }
    if checkpoint.shapes(&gate).is_none() {
        let what = format!("there is no router, but llama_type {llama_type} is a mixture of experts");
        return Err(ConvertError::invalid(checkpoint.folder(), what, "state the right one with --llama-type").of_tensor(&gate));
    }
    let (found, shape) = rows(&gate, Rule::Same)?;
    if found != experts {
        let what = format!("moe.num_experts is {experts}, but the router has shape {shape:?}");
        return differ(what, &gate, "correct moe in config.json");
    }
    let (name, rule, wanted) = match dialect.language {
        Language::Mixture => (dialect.spell(mixtral::W1, 0, 0), Rule::Expert { experts }, experts * hidden),
        _ => (dialect.spell(mixtral::EACH_W1, 0, 0), Rule::Owner, hidden),
    };
    let (found, shape) = rows(&name, rule)?;
    if found != wanted {
        let what = format!("hidden_dim is {hidden} in {experts} experts, but the tensor has shape {shape:?}");
        return differ(what, &name, "correct hidden_dim in config.json");
    }
    if dialect.language == Language::MixtureOwner {
        let prefix = dialect.before(mixtral::EACH_W1, "{j}");
        let found = indices(checkpoint, &prefix)?;
        if found < experts {
            return Err(missing(checkpoint, &format!("{prefix}{found}.…")));
        }
        if found > experts {
            return differ(format!("moe.num_experts is {experts}, but the checkpoint has {found}"), &prefix, "correct moe in config.json");
        }
    }
    Ok(())
}

/// Learned rows that stand for an empty sub-image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// Their name in the checkpoint.
    pub source: String,
    /// Their shape there.
    pub shape: Vec<usize>,
    /// Rows per sub-image.
    pub tokens: usize,
}

/// What such rows are called unless the caller says otherwise.
const SKIP_TOKEN: &str = "llma.skip_token";

impl Skip {
    /// The rows in a tensor of this shape: `[dim]`, `[1, dim]`, `[1, k, dim]`, `[n², k, dim]` with one set per sub-image, and of a
    /// tensor that is known to be one `[k, dim]`.
    fn of(source: &str, shape: &[usize], dim: usize, layout: &Layout, known: bool) -> Option<Skip> {
        let places = (layout.grid * layout.grid) as usize;
        let tokens = match *shape {
            [n] if n == dim => 1,
            [k, n] if n == dim && (k == 1 || known) => k,
            [p, k, n] if n == dim && (p == 1 || p == places) => k,
            _ => return None,
        };
        (1..=4096).contains(&tokens).then(|| Skip { source: source.to_owned(), shape: shape.to_vec(), tokens })
    }

    /// Looks for skip rows: the tensor called `stated`, else `llma.skip_token`, else the one tensor outside of `claimed` that is
    /// called something with "skip" and has a fitting shape. A layout without sub-images has no use for any.
    ///
    /// # Errors
    /// `Invalid` when the tensor is missing, has an impossible shape, or there are several; and when there is one but nothing states
    /// where pictures were padded, because the weights do not show which sub-images are empty.
    pub fn find(
        checkpoint: &Checkpoint,
        layout: &Layout,
        dim: usize,
        claimed: &HashSet<&str>,
        stated: Option<&str>,
    ) -> Result<Option<Skip>> {
        if layout.grid == 0 {
            return match stated {
                None => Ok(None),
                Some(name) => {
                    Err(ConvertError::Usage(format!("--skip-tensor {} is given, but the layout has no sub-images", printable(name))))
                }
            };
        }
        let shape = |name: &str| checkpoint.shapes(name)?.into_iter().next();
        let invalid =
            |name: &str, what: String, remedy: &str| Err(ConvertError::invalid(checkpoint.folder(), what, remedy).of_tensor(name));
        let known = stated.or(shape(SKIP_TOKEN).is_some().then_some(SKIP_TOKEN));
        let skip = if let Some(name) = known {
            let Some(shape) = shape(name) else { return Err(missing(checkpoint, name)) };
            let Some(skip) = Skip::of(name, &shape, dim, layout, true) else {
                let what = format!(
                    "shape {shape:?} is not that of skip rows: [{dim}], [k, {dim}], [1, k, {dim}] or [{}, k, {dim}]",
                    layout.grid * layout.grid
                );
                return invalid(name, what, "name the right tensor with --skip-tensor");
            };
            skip
        } else {
            let fits = |name: &str| Skip::of(name, &shape(name)?, dim, layout, false);
            let unknown = checkpoint.names().filter(|n| !claimed.contains(n) && !silent(n) && n.contains("skip"));
            let mut found: Vec<Skip> = unknown.filter_map(fits).collect();
            match (found.pop(), found.pop()) {
                (None, _) => return Ok(None),
                (Some(only), None) => only,
                (Some(a), Some(b)) => {
                    let what = format!("this and \"{}\" both look like learned skip rows", printable(&b.source));
                    return invalid(&a.source, what, "say which with --skip-tensor");
                }
            }
        };
        if layout.pad_anchor.is_none() {
            let what = "learned skip rows stand for empty sub-images, and nothing states where pictures were padded in training; \
                        the public code's centred padding leaves no quarter of a picture empty";
            return invalid(&skip.source, what.into(), "state it with --pad-anchor: top_left or centre");
        }
        Ok(Some(skip))
    }
}

/// Names that a checkpoint carries and nobody needs.
pub(crate) fn silent(name: &str) -> bool {
    name == dinov2::MASK
        || ["position_ids", "rope.freqs", "rope.inv_freq", "rotary_emb.inv_freq", "num_batches_tracked"]
            .iter()
            .any(|end| name.ends_with(end))
        || ["llma.clip.visual.proj", "llma.clip.positional_embedding", "llma.clip.text_projection", "llma.clip.logit_scale"].contains(&name)
        || name == "llma.clip.token_embedding.weight"
        || name.starts_with("llma.clip.ln_final.")
}

/// Names the tensors of `checkpoint` that no row of `claimed` wants. Of one that gives its `visual` half alone the decoder is not
/// looked for.
///
/// # Errors
/// `Invalid` with `strict` for the first of them.
pub fn unclaimed(checkpoint: &Checkpoint, claimed: &HashSet<&str>, visual: bool, strict: bool, warnings: &mut Vec<String>) -> Result<()> {
    let decoder = |n: &str| ["llma.layers.", "llma.tok_embeddings.", "llma.norm.", "llma.output."].iter().any(|p| n.starts_with(p));
    let expected = |n: &str| claimed.contains(n) || silent(n) || visual && decoder(n);
    for name in checkpoint.names().filter(|n| !expected(n)) {
        let folder = checkpoint.folder();
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
    /// Its skip rows, if it has some.
    pub skip: Option<Skip>,
    /// Tensors of the language half.
    pub language: Vec<Item>,
    /// Tensors of the vision half; empty for text only.
    pub vision: Vec<Item>,
}

impl Model {
    /// The tensors of a `variant` of these sizes, as a checkpoint of this dialect has them.
    pub fn new(mut variant: Variant, sizes: Sizes, dialect: &Dialect, skip: Option<Skip>) -> Model {
        if let Some(layout) = variant.vision.as_mut().filter(|layout| layout.qformer) {
            layout.queries = u32::try_from(sizes.qf_queries).unwrap_or(u32::MAX);
        }
        let language = language_items(&sizes, dialect);
        let vision = variant.vision.as_ref().map_or(vec![], |layout| vision_items(&sizes, layout, skip.as_ref()));
        Model { variant, sizes, skip, language, vision }
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
        let variant = find("llama_ens5_light", std::path::Path::new("")).unwrap();
        Model::new(variant, crate::synth::full_sizes(32000), &Dialect::accessory(Language::Dense), None)
    }

    /// The real sizes of SPHINX-MoE-1k.
    fn moe() -> Model {
        let sizes = Sizes {
            dim: 4096,
            vocab: 32000,
            q: 4096,
            kv: 1024,
            heads: 32,
            kv_heads: 8,
            hidden: 14336,
            experts: 8,
            layers: 32,
            ..crate::synth::full_sizes(32000)
        };
        let variant = find("mixtral_sparse_ens5", std::path::Path::new("")).unwrap();
        Model::new(variant, sizes, &Dialect::accessory(Language::Mixture), None)
    }

    #[test]
    fn full_size_mixtures_and_four_encoders_count_as_published() {
        let m = moe();
        let params = |items: &[Item]| items.iter().map(|i| i.shape.iter().product::<usize>()).sum::<usize>();
        assert_eq!(params(&m.language), 46_702_792_704);
        let part = |p: &str| m.vision.iter().filter(|i| i.source.starts_with(p)).cloned().collect::<Vec<_>>();
        // CLIP's own last projection, 1024 × 768, is not converted.
        let clip = part("llma.clip.");
        assert_eq!((clip.len(), params(&clip)), (295, 303_966_208 - 1024 * 768));
        assert_eq!(params(&part("llma.qformer.vision_model.")), 985_952_256);
        assert_eq!(params(&part("llma.qformer.qformer.")) + params(&part("llma.qformer.query_tokens")), 105_162_240);
        assert_eq!(params(&part("llma.visual_proj.")), 23_080_960);
        assert_eq!(m.variant.vision.unwrap().image_rows(), 1455);
        let down = m.language.iter().find(|i| i.name == "blk.3.ffn_down_exps.weight").unwrap();
        assert_eq!((down.source_shape.as_slice(), down.dims()), (&[114_688, 4096][..], vec![14336, 4096, 8]));
        assert_eq!((down.experts(), down.rows(), down.cols()), (Some(8), 8 * 4096, 14336));
    }

    #[test]
    fn packed_attention_is_three_tensors_of_one() {
        let sizes = Sizes { layers: 1, ..moe().sizes };
        let items = language_items(&sizes, &Dialect::packed(Language::Dense));
        let qkv: Vec<&Item> = items.iter().filter(|i| i.sources[0].contains("wqkv")).collect();
        assert_eq!(
            qkv.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(),
            ["blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"]
        );
        assert!(qkv.iter().all(|i| i.source_shape == [6144, 4096]));
        assert_eq!(qkv.iter().map(|i| i.rows()).collect::<Vec<_>>(), [4096, 1024, 1024]);
        let halves = |i: &Item| matches!(i.gather, Gather::Heads(Heads { halves: true, .. }));
        assert_eq!(qkv.iter().map(|i| halves(i)).collect::<Vec<_>>(), [true, true, false], "values do not turn");
        assert_eq!(sources(&items).len(), items.len() - 2);
        assert_eq!(sources(&items).iter().filter(|s| s.shape == [6144, 4096]).count(), 1);
    }

    #[test]
    fn experts_of_their_own_are_one_stack() {
        let sizes = Sizes { layers: 2, ..moe().sizes };
        let items = language_items(&sizes, &Dialect::accessory(Language::MixtureOwner));
        let down = items.iter().find(|i| i.name == "blk.1.ffn_down_exps.weight").unwrap();
        assert_eq!((down.sources.len(), down.source_shape.as_slice()), (8, &[4096, 14336][..]));
        assert_eq!(down.sources[7], "llma.layers.1.feed_forward.experts.7.w2.weight");
        assert_eq!(down.source, "llma.layers.1.feed_forward.experts.{0..7}.w2.weight");
        let fused = language_items(&sizes, &Dialect::accessory(Language::Mixture));
        let shown = |items: &[Item]| items.iter().map(|i| (i.name.clone(), i.dims(), i.role)).collect::<Vec<_>>();
        assert_eq!(shown(&items), shown(&fused), "both make the same file");
    }

    #[test]
    fn skip_rows_have_many_shapes() {
        let layout = find("llama_ens5_light", std::path::Path::new("")).unwrap().vision.unwrap();
        let of = |shape: &[usize], known| Skip::of("s", shape, 8, &layout, known).map(|s| s.tokens);
        for (shape, unknown, known) in [
            (&[8][..], Some(1), Some(1)),
            (&[1, 8], Some(1), Some(1)),
            (&[3, 8], None, Some(3)),
            (&[1, 1, 8], Some(1), Some(1)),
            (&[1, 5, 8], Some(5), Some(5)),
            (&[4, 2, 8], Some(2), Some(2)),
            (&[3, 2, 8], None, None),
            (&[9], None, None),
            (&[0, 8], None, None),
            (&[1, 1, 1, 8], None, None),
        ] {
            assert_eq!((of(shape, false), of(shape, true)), (unknown, known), "{shape:?}");
        }
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
        for m in [tiny(), moe()] {
            check_names(&m);
        }
    }

    fn check_names(m: &Model) {
        for items in [&m.language, &m.vision] {
            let names: HashSet<_> = items.iter().map(|i| &i.name).collect();
            assert_eq!(names.len(), items.len());
            for i in items.iter() {
                assert!(!i.name.contains('{') && i.sources.iter().all(|s| !s.contains('{') && s.starts_with("llma.")), "{i:?}");
                assert!(i.shape.iter().all(|&n| n > 0) && (i.out.len() <= 2 || i.experts().is_some()), "{i:?}");
                assert_eq!(sphinx_quant::recipe::role_of(&i.name), Some(i.role), "{i:?}");
                let grown = matches!(i.transform, Transform::DinoPositions { .. });
                assert!(grown || i.len() == i.shape.iter().product::<usize>(), "{i:?}");
            }
            let labels: HashSet<_> = items.iter().map(|i| &i.source).collect();
            assert_eq!(labels.len(), items.len());
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
