//! The visual tower of CLIP ViT-L/14, as OpenCLIP names it. Its last projection is not used, nor is the text tower.

use sphinx_quant::gguf::names;
use sphinx_quant::recipe::Role;

use super::Dim::{self, Clip, Clip3, ClipFf, N, VitPositions};
use super::{Item, Row, Sizes, row};
use crate::transform::Transform::{Flatten, None};
use crate::variant::VIT_PATCH;

/// In front of a block's number.
pub const BLOCKS: &str = "llma.clip.visual.transformer.resblocks.";
/// Shows the width.
pub const CLASS: &str = "llma.clip.visual.class_embedding";
/// Behind a block's number: shows the hidden width.
pub const FC1: &str = ".mlp.c_fc.weight";
/// Width of a head, the same in every size.
pub const HEAD_WIDTH: usize = 64;

const P: Dim = N(VIT_PATCH as usize);

const HEAD: &[Row] = &[
    row("llma.clip.visual.conv1.weight", names::CLIP_PATCH_W, &[Clip, N(3), P, P], Role::Patch, Flatten),
    row(CLASS, names::CLIP_CLS, &[Clip], Role::Table, None),
    row("llma.clip.visual.positional_embedding", names::CLIP_POS, &[VitPositions, Clip], Role::Table, None),
    row("llma.clip.visual.ln_pre.weight", names::CLIP_PRE_NORM_W, &[Clip], Role::Vector, None),
    row("llma.clip.visual.ln_pre.bias", names::CLIP_PRE_NORM_B, &[Clip], Role::Vector, None),
];

const BLOCK: &[Row] = &[
    row("llma.clip.visual.transformer.resblocks.{i}.ln_1.weight", names::CLIP_NORM1_W, &[Clip], Role::Vector, None),
    row("llma.clip.visual.transformer.resblocks.{i}.ln_1.bias", names::CLIP_NORM1_B, &[Clip], Role::Vector, None),
    row("llma.clip.visual.transformer.resblocks.{i}.attn.in_proj_weight", names::CLIP_QKV_W, &[Clip3, Clip], Role::Matrix, None),
    row("llma.clip.visual.transformer.resblocks.{i}.attn.in_proj_bias", names::CLIP_QKV_B, &[Clip3], Role::Vector, None),
    row("llma.clip.visual.transformer.resblocks.{i}.attn.out_proj.weight", names::CLIP_PROJ_W, &[Clip, Clip], Role::Matrix, None),
    row("llma.clip.visual.transformer.resblocks.{i}.attn.out_proj.bias", names::CLIP_PROJ_B, &[Clip], Role::Vector, None),
    row("llma.clip.visual.transformer.resblocks.{i}.ln_2.weight", names::CLIP_NORM2_W, &[Clip], Role::Vector, None),
    row("llma.clip.visual.transformer.resblocks.{i}.ln_2.bias", names::CLIP_NORM2_B, &[Clip], Role::Vector, None),
    row("llma.clip.visual.transformer.resblocks.{i}.mlp.c_fc.weight", names::CLIP_FC1_W, &[ClipFf, Clip], Role::Matrix, None),
    row("llma.clip.visual.transformer.resblocks.{i}.mlp.c_fc.bias", names::CLIP_FC1_B, &[ClipFf], Role::Vector, None),
    row("llma.clip.visual.transformer.resblocks.{i}.mlp.c_proj.weight", names::CLIP_FC2_W, &[Clip, ClipFf], Role::Matrix, None),
    row("llma.clip.visual.transformer.resblocks.{i}.mlp.c_proj.bias", names::CLIP_FC2_B, &[Clip], Role::Vector, None),
];

const TAIL: &[Row] = &[
    row("llma.clip.visual.ln_post.weight", names::CLIP_NORM_W, &[Clip], Role::Vector, None),
    row("llma.clip.visual.ln_post.bias", names::CLIP_NORM_B, &[Clip], Role::Vector, None),
];

/// The tower's tensors.
pub fn items(sizes: &Sizes) -> Vec<Item> {
    let item = |row: &Row, i: usize| Item::new(row, sizes, sizes.clip_depth, i, 0);
    let mut out: Vec<Item> = HEAD.iter().map(|r| item(r, 0)).collect();
    out.extend((0..sizes.clip_depth).flat_map(|i| BLOCK.iter().map(move |r| item(r, i))));
    out.extend(TAIL.iter().map(|r| item(r, 0)));
    out
}
