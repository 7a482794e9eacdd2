//! BLIP-2's Q-Former and the EVA ViT-g/14 that it looks at, as the `transformers` library names them.

use sphinx_quant::gguf::names;
use sphinx_quant::recipe::Role;

use super::Dim::{self, Eva, Eva3, EvaFf, N, Qf, QfFf, Queries, VitPositions};
use super::{Item, Row, Sizes, row};
use crate::transform::Transform::{Flatten, None, Rows, Tag};
use crate::variant::VIT_PATCH;

/// In front of a block's number.
pub const EVA_BLOCKS: &str = "llma.qformer.vision_model.encoder.layers.";
/// Shows the width.
pub const EVA_CLASS: &str = "llma.qformer.vision_model.embeddings.class_embedding";
/// Behind a block's number: shows the hidden width.
pub const EVA_FC1: &str = ".mlp.fc1.weight";
/// Width of a head, the same in every size.
pub const EVA_HEAD_WIDTH: usize = 88;
/// In front of a layer's number.
pub const LAYERS: &str = "llma.qformer.qformer.encoder.layer.";
/// Shows how many queries there are, and the width.
pub const QUERY_TOKENS: &str = "llma.qformer.query_tokens";
/// Behind a layer's number: shows the hidden width.
pub const FC1: &str = ".intermediate_query.dense.weight";
/// Behind a layer's number: shows that it looks at the tower.
pub const CROSS: &str = ".crossattention.attention.query.weight";
/// Width of a head, the same in every size.
pub const HEAD_WIDTH: usize = 64;

const P: Dim = N(VIT_PATCH as usize);

const EVA_HEAD: &[Row] = &[
    row("llma.qformer.vision_model.embeddings.patch_embedding.weight", names::EVA_PATCH_W, &[Eva, N(3), P, P], Role::Patch, Flatten),
    row("llma.qformer.vision_model.embeddings.patch_embedding.bias", names::EVA_PATCH_B, &[Eva], Role::Vector, None),
    row(EVA_CLASS, names::EVA_CLS, &[N(1), N(1), Eva], Role::Table, Tag),
    row("llma.qformer.vision_model.embeddings.position_embedding", names::EVA_POS, &[N(1), VitPositions, Eva], Role::Table, Rows),
];

const EVA_BLOCK: &[Row] = &[
    row("llma.qformer.vision_model.encoder.layers.{i}.layer_norm1.weight", names::EVA_NORM1_W, &[Eva], Role::Vector, None),
    row("llma.qformer.vision_model.encoder.layers.{i}.layer_norm1.bias", names::EVA_NORM1_B, &[Eva], Role::Vector, None),
    row("llma.qformer.vision_model.encoder.layers.{i}.self_attn.qkv.weight", names::EVA_QKV_W, &[Eva3, Eva], Role::Matrix, None),
    row("llma.qformer.vision_model.encoder.layers.{i}.self_attn.qkv.bias", names::EVA_QKV_B, &[Eva3], Role::Vector, None),
    row("llma.qformer.vision_model.encoder.layers.{i}.self_attn.projection.weight", names::EVA_PROJ_W, &[Eva, Eva], Role::Matrix, None),
    row("llma.qformer.vision_model.encoder.layers.{i}.self_attn.projection.bias", names::EVA_PROJ_B, &[Eva], Role::Vector, None),
    row("llma.qformer.vision_model.encoder.layers.{i}.layer_norm2.weight", names::EVA_NORM2_W, &[Eva], Role::Vector, None),
    row("llma.qformer.vision_model.encoder.layers.{i}.layer_norm2.bias", names::EVA_NORM2_B, &[Eva], Role::Vector, None),
    row("llma.qformer.vision_model.encoder.layers.{i}.mlp.fc1.weight", names::EVA_FC1_W, &[EvaFf, Eva], Role::Matrix, None),
    row("llma.qformer.vision_model.encoder.layers.{i}.mlp.fc1.bias", names::EVA_FC1_B, &[EvaFf], Role::Vector, None),
    row("llma.qformer.vision_model.encoder.layers.{i}.mlp.fc2.weight", names::EVA_FC2_W, &[Eva, EvaFf], Role::Matrix, None),
    row("llma.qformer.vision_model.encoder.layers.{i}.mlp.fc2.bias", names::EVA_FC2_B, &[Eva], Role::Vector, None),
];

const EVA_TAIL: &[Row] = &[
    row("llma.qformer.vision_model.post_layernorm.weight", names::EVA_NORM_W, &[Eva], Role::Vector, None),
    row("llma.qformer.vision_model.post_layernorm.bias", names::EVA_NORM_B, &[Eva], Role::Vector, None),
];

const HEAD: &[Row] = &[
    row(QUERY_TOKENS, names::QF_QUERY, &[N(1), Queries, Qf], Role::Table, Rows),
    row("llma.qformer.qformer.layernorm.weight", names::QF_EMBD_NORM_W, &[Qf], Role::Vector, None),
    row("llma.qformer.qformer.layernorm.bias", names::QF_EMBD_NORM_B, &[Qf], Role::Vector, None),
];

const SELF: &[Row] = &[
    row("llma.qformer.qformer.encoder.layer.{i}.attention.attention.query.weight", names::QF_Q_W, &[Qf, Qf], Role::Matrix, None),
    row("llma.qformer.qformer.encoder.layer.{i}.attention.attention.query.bias", names::QF_Q_B, &[Qf], Role::Vector, None),
    row("llma.qformer.qformer.encoder.layer.{i}.attention.attention.key.weight", names::QF_K_W, &[Qf, Qf], Role::Matrix, None),
    row("llma.qformer.qformer.encoder.layer.{i}.attention.attention.key.bias", names::QF_K_B, &[Qf], Role::Vector, None),
    row("llma.qformer.qformer.encoder.layer.{i}.attention.attention.value.weight", names::QF_V_W, &[Qf, Qf], Role::Matrix, None),
    row("llma.qformer.qformer.encoder.layer.{i}.attention.attention.value.bias", names::QF_V_B, &[Qf], Role::Vector, None),
    row("llma.qformer.qformer.encoder.layer.{i}.attention.output.dense.weight", names::QF_PROJ_W, &[Qf, Qf], Role::Matrix, None),
    row("llma.qformer.qformer.encoder.layer.{i}.attention.output.dense.bias", names::QF_PROJ_B, &[Qf], Role::Vector, None),
    row("llma.qformer.qformer.encoder.layer.{i}.attention.output.LayerNorm.weight", names::QF_NORM_W, &[Qf], Role::Vector, None),
    row("llma.qformer.qformer.encoder.layer.{i}.attention.output.LayerNorm.bias", names::QF_NORM_B, &[Qf], Role::Vector, None),
];

/// In layer 0 and every few layers from there.
const ACROSS: &[Row] = &[
    row("llma.qformer.qformer.encoder.layer.{i}.crossattention.attention.query.weight", names::QF_CROSS_Q_W, &[Qf, Qf], Role::Matrix, None),
    row("llma.qformer.qformer.encoder.layer.{i}.crossattention.attention.query.bias", names::QF_CROSS_Q_B, &[Qf], Role::Vector, None),
    row("llma.qformer.qformer.encoder.layer.{i}.crossattention.attention.key.weight", names::QF_CROSS_K_W, &[Qf, Eva], Role::Matrix, None),
    row("llma.qformer.qformer.encoder.layer.{i}.crossattention.attention.key.bias", names::QF_CROSS_K_B, &[Qf], Role::Vector, None),
    row(
        "llma.qformer.qformer.encoder.layer.{i}.crossattention.attention.value.weight",
        names::QF_CROSS_V_W,
        &[Qf, Eva],
        Role::Matrix,
        None,
    ),
    row("llma.qformer.qformer.encoder.layer.{i}.crossattention.attention.value.bias", names::QF_CROSS_V_B, &[Qf], Role::Vector, None),
    row("llma.qformer.qformer.encoder.layer.{i}.crossattention.output.dense.weight", names::QF_CROSS_PROJ_W, &[Qf, Qf], Role::Matrix, None),
    row("llma.qformer.qformer.encoder.layer.{i}.crossattention.output.dense.bias", names::QF_CROSS_PROJ_B, &[Qf], Role::Vector, None),
    row("llma.qformer.qformer.encoder.layer.{i}.crossattention.output.LayerNorm.weight", names::QF_CROSS_NORM_W, &[Qf], Role::Vector, None),
    row("llma.qformer.qformer.encoder.layer.{i}.crossattention.output.LayerNorm.bias", names::QF_CROSS_NORM_B, &[Qf], Role::Vector, None),
];

const FEED_FORWARD: &[Row] = &[
    row("llma.qformer.qformer.encoder.layer.{i}.intermediate_query.dense.weight", names::QF_FC1_W, &[QfFf, Qf], Role::Matrix, None),
    row("llma.qformer.qformer.encoder.layer.{i}.intermediate_query.dense.bias", names::QF_FC1_B, &[QfFf], Role::Vector, None),
    row("llma.qformer.qformer.encoder.layer.{i}.output_query.dense.weight", names::QF_FC2_W, &[Qf, QfFf], Role::Matrix, None),
    row("llma.qformer.qformer.encoder.layer.{i}.output_query.dense.bias", names::QF_FC2_B, &[Qf], Role::Vector, None),
    row("llma.qformer.qformer.encoder.layer.{i}.output_query.LayerNorm.weight", names::QF_FFN_NORM_W, &[Qf], Role::Vector, None),
    row("llma.qformer.qformer.encoder.layer.{i}.output_query.LayerNorm.bias", names::QF_FFN_NORM_B, &[Qf], Role::Vector, None),
];

/// The tensors of the tower and of the Q-Former.
pub fn items(sizes: &Sizes) -> Vec<Item> {
    let eva = |row: &Row, i: usize| Item::new(row, sizes, sizes.eva_depth, i, 0);
    let item = |row: &Row, i: usize| Item::new(row, sizes, sizes.qf_depth, i, 0);
    let mut out: Vec<Item> = EVA_HEAD.iter().map(|r| eva(r, 0)).collect();
    out.extend((0..sizes.eva_depth).flat_map(|i| EVA_BLOCK.iter().map(move |r| eva(r, i))));
    out.extend(EVA_TAIL.iter().map(|r| eva(r, 0)));
    out.extend(HEAD.iter().map(|r| item(r, 0)));
    for i in 0..sizes.qf_depth {
        let across = if i.is_multiple_of(sizes.qf_cross_every.max(1)) { ACROSS } else { &[] };
        out.extend(SELF.iter().chain(across).chain(FEED_FORWARD).map(|r| item(r, i)));
    }
    out
}
