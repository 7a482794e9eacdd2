//! EVA ViT-g/14, the tower that the Q-Former of BLIP-2 looks at: heads of 88 channels, GELU, its last norm over every token.

use sphinx_quant::gguf::names;

use super::vit::Names;

pub(super) const NAMES: Names = Names {
    patch: names::EVA_PATCH_W,
    patch_bias: Some(names::EVA_PATCH_B),
    class: names::EVA_CLS,
    positions: names::EVA_POS,
    pre_norm: None,
    norm1: (names::EVA_NORM1_W, names::EVA_NORM1_B),
    qkv: (names::EVA_QKV_W, names::EVA_QKV_B),
    proj: (names::EVA_PROJ_W, names::EVA_PROJ_B),
    norm2: (names::EVA_NORM2_W, names::EVA_NORM2_B),
    up: (names::EVA_FC1_W, names::EVA_FC1_B),
    down: (names::EVA_FC2_W, names::EVA_FC2_B),
    scales: None,
    norm: (names::EVA_NORM_W, names::EVA_NORM_B),
};
