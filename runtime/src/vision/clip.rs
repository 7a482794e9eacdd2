//! CLIP's visual tower, ViT-L/14: its last norm over every token, and no projection into CLIP's own space.
//!
//! A norm stands in front of the first block, and the patch embedding has no bias. Its weights were trained with QuickGELU;
//! the released inference code runs them with GELU. Metadata say which.

use sphinx_quant::gguf::names;

use super::vit::Names;

pub(super) const NAMES: Names = Names {
    patch: names::CLIP_PATCH_W,
    patch_bias: None,
    class: names::CLIP_CLS,
    positions: names::CLIP_POS,
    pre_norm: Some((names::CLIP_PRE_NORM_W, names::CLIP_PRE_NORM_B)),
    norm1: (names::CLIP_NORM1_W, names::CLIP_NORM1_B),
    qkv: (names::CLIP_QKV_W, names::CLIP_QKV_B),
    proj: (names::CLIP_PROJ_W, names::CLIP_PROJ_B),
    norm2: (names::CLIP_NORM2_W, names::CLIP_NORM2_B),
    up: (names::CLIP_FC1_W, names::CLIP_FC1_B),
    down: (names::CLIP_FC2_W, names::CLIP_FC2_B),
    scales: None,
    norm: (names::CLIP_NORM_W, names::CLIP_NORM_B),
};
