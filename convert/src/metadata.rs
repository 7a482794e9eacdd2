//! The keys in front of the tensors, for both halves.

use sphinx_quant::gguf::keys::{self, Half};
use sphinx_quant::gguf::{Array, Value};

use crate::config::Config;
use crate::registry::{Model, clip, dinov2, qformer};
use crate::tokenizer::Tokenizer;
use crate::variant::Encoder;

/// The pair id before it is known: 32 hex digits' room.
pub const NO_PAIR_ID: &str = "00000000000000000000000000000000";
/// Positions a model is used with unless somebody says otherwise.
pub const DEFAULT_CONTEXT: u32 = 4096;
/// What ends a reply in the family's chat template.
const STOP: &str = "\n###";

const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];
/// The CLIP mean, times 255, truncated.
const PAD_RGB: [u8; 3] = [122, 116, 104];

/// Pairs of key and value in file order.
pub type Metadata = Vec<(String, Value)>;

fn text(value: &str) -> Value {
    Value::Str(value.to_owned())
}

/// What every file says of itself.
#[derive(Clone, Copy, Debug)]
pub struct General<'a> {
    /// The model's name.
    pub name: &'a str,
    /// llama.cpp's number for the recipe.
    pub file_type: u32,
    /// Whether any tensor is quantised.
    pub quantised: bool,
}

impl General<'_> {
    /// `general.*`: what the file is, and what its recipe is called in numbers.
    fn keys(&self, arch: &str) -> Metadata {
        let mut out = vec![
            (keys::ARCHITECTURE.into(), text(arch)),
            (keys::NAME.into(), text(self.name)),
            (keys::FILE_TYPE.into(), Value::U32(self.file_type)),
        ];
        if self.quantised {
            out.push((keys::QUANTIZATION_VERSION.into(), Value::U32(2)));
        }
        out
    }
}

/// Everything in front of the language half: what stock llama.cpp needs, the tokenizer, and our own few keys.
pub fn language(
    model: &Model,
    config: &Config,
    tokenizer: &Tokenizer,
    general: &General<'_>,
    architecture: &str,
    context: Option<u32>,
) -> Metadata {
    let arch = |suffix: &str| format!("{architecture}.{suffix}");
    let ours = |suffix: &str| Half::Language.key(suffix);
    let count = |n: usize| Value::U32(n as u32);
    let mut out = general.keys(architecture);
    out.extend([
        (arch(keys::CONTEXT_LENGTH), Value::U32(context.unwrap_or(DEFAULT_CONTEXT))),
        (arch(keys::EMBEDDING_LENGTH), count(config.dim)),
        (arch(keys::BLOCK_COUNT), count(config.layers)),
        (arch(keys::FEED_FORWARD_LENGTH), count(config.hidden)),
        (arch(keys::HEAD_COUNT), count(config.heads)),
        (arch(keys::HEAD_COUNT_KV), count(config.kv_heads)),
        (arch(keys::RMS_EPS), Value::F32(config.norm_eps)),
        (arch(keys::ROPE_BASE), Value::F32(config.rope_theta)),
        (arch(keys::ROPE_DIM), count(config.head_dim())),
        (arch(keys::VOCAB_SIZE), count(tokenizer.pieces.len())),
    ]);
    if config.experts > 0 {
        out.push((arch(keys::EXPERT_COUNT), count(config.experts)));
        out.push((arch(keys::EXPERT_USED_COUNT), count(config.experts_used)));
    }
    if let Some(scaling) = config.rope_scaling {
        out.push((arch(keys::ROPE_SCALING_TYPE), text("linear")));
        out.push((arch(keys::ROPE_SCALING_FACTOR), Value::F32(1.0 / scaling)));
    }
    let pieces = &tokenizer.pieces;
    out.extend([
        (keys::TOK_MODEL.into(), text("llama")),
        (keys::TOK_PRE.into(), text("default")),
        (keys::TOK_TOKENS.into(), Value::Array(Array::Str(tokenizer.texts()))),
        (keys::TOK_SCORES.into(), Value::Array(Array::F32(pieces.iter().map(|p| p.score).collect()))),
        (keys::TOK_TYPES.into(), Value::Array(Array::I32(pieces.iter().map(|p| p.kind as i32).collect()))),
        (keys::TOK_BOS.into(), Value::U32(tokenizer.bos)),
        (keys::TOK_EOS.into(), Value::U32(tokenizer.eos)),
        (keys::TOK_UNK.into(), Value::U32(tokenizer.unk)),
        (keys::TOK_ADD_BOS.into(), Value::Bool(true)),
        (keys::TOK_ADD_EOS.into(), Value::Bool(false)),
        (keys::TOK_ADD_SPACE_PREFIX.into(), Value::Bool(tokenizer.add_space_prefix)),
    ]);
    if let Some(id) = tokenizer.nul_piece() {
        out.push((ours(keys::NUL_PIECE), Value::U32(id)));
    }
    out.push((ours(keys::LLAMA_TYPE), text(&model.variant.llama_type)));
    out.push((ours(keys::PAIR_ID), text(NO_PAIR_ID)));
    if let Some(layout) = &model.variant.vision {
        out.push((ours(keys::IMAGE_ROWS), Value::U32(layout.image_rows())));
    }
    out.push((ours(keys::TEMPLATE), text("v1")));
    out.push((ours(keys::STOP), Value::Array(Array::Str(vec![STOP.into()]))));
    if let Some(n) = config.max_seq_len {
        out.push((ours(keys::CONFIG_MAX_SEQ_LEN), Value::U32(n)));
    }
    out
}

/// Everything in front of the vision half; `None` for a model without one.
pub fn vision(model: &Model, general: &General<'_>, clip_quick_gelu: bool) -> Option<Metadata> {
    let layout = model.variant.vision.as_ref()?;
    let sizes = &model.sizes;
    let key = |suffix: &str| Half::Vision.key(suffix);
    let count = |n: usize| Value::U32(n as u32);
    let counts = |v: &[usize]| Value::Array(Array::U32(v.iter().map(|&n| n as u32).collect()));
    let floats = |v: [f32; 3]| Value::Array(Array::F32(v.to_vec()));
    let texts = |v: &[&str]| Value::Array(Array::Str(v.iter().map(|&t| t.to_owned()).collect()));
    let mut out = general.keys(keys::ARCH_VISION);
    out.extend([
        (key(keys::LLAMA_TYPE), text(&model.variant.llama_type)),
        (key(keys::PAIR_ID), text(NO_PAIR_ID)),
        (key(keys::PROJECTION_DIM), count(sizes.dim)),
        (key(keys::IMAGE_SIZE), Value::U32(layout.image_size)),
        (key(keys::IMAGE_MEAN), floats(CLIP_MEAN)),
        (key(keys::IMAGE_STD), floats(CLIP_STD)),
        (key(keys::PAD_RGB), Value::Array(Array::U8(PAD_RGB.to_vec()))),
        (key(keys::PAD_ANCHOR), text(layout.pad_anchor.unwrap_or_default().name())),
        (key(keys::PAD_ORDER), text(layout.pad_order.name())),
        (key(keys::GRID), Value::U32(layout.grid)),
        (key(keys::ENCODERS), texts(&layout.encoders.iter().map(|e| e.name()).collect::<Vec<_>>())),
        (key(keys::VIEW_ROWS), texts(if layout.qformer { &["qformer", "features"] } else { &["features"] })),
        (key(keys::VIEW_POOL_PARTS), Value::Bool(layout.pool_parts)),
        (key(keys::VIEW_TAGGED), Value::Bool(layout.tagged)),
        (key(keys::VIT_INPUT), Value::U32(layout.vit_input)),
        (key(keys::VIT_BOARD), Value::U32(layout.vit_board)),
        (key(keys::CONVNEXT_INPUT), Value::U32(layout.convnext_input)),
        (key(keys::CONVNEXT_BOARD), Value::U32(layout.convnext_board)),
        (key(keys::CONVNEXT_DEPTHS), counts(&sizes.cnx_depths)),
        (key(keys::CONVNEXT_WIDTHS), counts(&sizes.cnx_widths)),
        (key(keys::CONVNEXT_EPS), Value::F32(1e-5)),
        (key(keys::DINO_BLOCK_COUNT), count(sizes.dino_depth)),
        (key(keys::DINO_EMBEDDING_LENGTH), count(sizes.dino_width)),
        (key(keys::DINO_FEED_FORWARD_LENGTH), count(sizes.dino_hidden)),
        (key(keys::DINO_HEAD_COUNT), count(sizes.dino_width / dinov2::HEAD_WIDTH)),
        (key(keys::DINO_PATCH), count(model.patch())),
        (key(keys::DINO_EPS), Value::F32(1e-6)),
        (key(keys::DINO_MLP), text(if sizes.dino_swiglu { "swiglu" } else { "gelu" })),
        (key(keys::DINO_MEAN), floats(IMAGENET_MEAN)),
        (key(keys::DINO_STD), floats(IMAGENET_STD)),
        (key(keys::PROJ_EPS), Value::F32(1e-5)),
    ]);
    if layout.encoders.contains(&Encoder::Clip) {
        out.extend([
            (key(keys::CLIP_BLOCK_COUNT), count(sizes.clip_depth)),
            (key(keys::CLIP_EMBEDDING_LENGTH), count(sizes.clip_width)),
            (key(keys::CLIP_FEED_FORWARD_LENGTH), count(sizes.clip_hidden)),
            (key(keys::CLIP_HEAD_COUNT), count(sizes.clip_width / clip::HEAD_WIDTH)),
            (key(keys::CLIP_PATCH), count(model.patch())),
            (key(keys::CLIP_EPS), Value::F32(1e-5)),
            (key(keys::CLIP_QUICK_GELU), Value::Bool(clip_quick_gelu)),
        ]);
    }
    if layout.qformer {
        out.extend([
            (key(keys::EVA_BLOCK_COUNT), count(sizes.eva_depth)),
            (key(keys::EVA_EMBEDDING_LENGTH), count(sizes.eva_width)),
            (key(keys::EVA_FEED_FORWARD_LENGTH), count(sizes.eva_hidden)),
            (key(keys::EVA_HEAD_COUNT), count(sizes.eva_width / qformer::EVA_HEAD_WIDTH)),
            (key(keys::EVA_PATCH), count(model.patch())),
            (key(keys::EVA_EPS), Value::F32(1e-6)),
            (key(keys::QF_BLOCK_COUNT), count(sizes.qf_depth)),
            (key(keys::QF_EMBEDDING_LENGTH), count(sizes.qf_width)),
            (key(keys::QF_FEED_FORWARD_LENGTH), count(sizes.qf_hidden)),
            (key(keys::QF_HEAD_COUNT), count(sizes.qf_width / qformer::HEAD_WIDTH)),
            (key(keys::QF_EPS), Value::F32(1e-12)),
            (key(keys::QF_QUERIES), count(sizes.qf_queries)),
            (key(keys::QF_CROSS_EVERY), count(sizes.qf_cross_every)),
        ]);
    }
    if let Some(skip) = &model.skip {
        out.extend([
            (key(keys::SKIP_ENABLED), Value::Bool(true)),
            (key(keys::SKIP_TOKENS), count(skip.tokens)),
            (key(keys::SKIP_TAGGED), Value::Bool(layout.skip_tagged)),
        ]);
    }
    Some(out)
}
