//! DINOv2: what attention and MLP add is scaled per channel, the position table is already resized, and colours are
//! normalised in its own way.

use sphinx_quant::gguf::names;
use sphinx_targets::Activation;

use super::params::DinoParams;
use super::views::{Map, renormalise};
use super::vit::Names;

const SWIGLU: Names = Names {
    patch: names::DINO_PATCH_W,
    patch_bias: Some(names::DINO_PATCH_B),
    class: names::DINO_CLS,
    positions: names::DINO_POS,
    pre_norm: None,
    norm1: (names::DINO_NORM1_W, names::DINO_NORM1_B),
    qkv: (names::DINO_QKV_W, names::DINO_QKV_B),
    proj: (names::DINO_PROJ_W, names::DINO_PROJ_B),
    norm2: (names::DINO_NORM2_W, names::DINO_NORM2_B),
    up: (names::DINO_W12_W, names::DINO_W12_B),
    down: (names::DINO_W3_W, names::DINO_W3_B),
    scales: Some([names::DINO_LS1, names::DINO_LS2]),
    norm: (names::DINO_NORM_W, names::DINO_NORM_B),
};

const GELU: Names = Names { up: (names::DINO_FC1_W, names::DINO_FC1_B), down: (names::DINO_FC2_W, names::DINO_FC2_B), ..SWIGLU };

/// Names of a tower whose MLP has `activation`.
pub(super) fn names(activation: Activation) -> &'static Names {
    match activation {
        Activation::SiluGate => &SWIGLU,
        Activation::Gelu | Activation::QuickGelu => &GELU,
    }
}

/// `views`, normalised by `mean` and `std`, as DINOv2 wants them.
pub(super) fn inputs(params: &DinoParams, views: &[Map], mean: [f32; 3], std: [f32; 3]) -> Vec<Map> {
    let mut inputs = views.to_vec();
    for view in &mut inputs {
        renormalise(view, mean, std, params.mean, params.std);
    }
    inputs
}
