//! DINOv2 ViT-g/14 without registers. The position table is resized once, here.

use sphinx_quant::gguf::names;
use sphinx_quant::recipe::Role;

use super::Dim::{self, Dino, Dino3, DinoFf, DinoFf2, N};
use super::{Item, Row, Sizes, row};
use crate::transform::Transform::{self, Flatten, None, Tag};
use crate::variant::VIT_PATCH;

/// In front of a block's number.
pub const BLOCKS: &str = "llma.dinov2_vitg14.blocks.";
/// Shows the width.
pub const CLASS: &str = "llma.dinov2_vitg14.cls_token";
/// Shows the stored grid.
pub const POSITIONS: &str = "llma.dinov2_vitg14.pos_embed";
/// Width of a head, the same in every size.
pub const HEAD_WIDTH: usize = 64;
/// In every checkpoint, used by nobody.
pub const MASK: &str = "llma.dinov2_vitg14.mask_token";

const P: Dim = N(VIT_PATCH as usize);

const HEAD: &[Row] = &[
    row("llma.dinov2_vitg14.patch_embed.proj.weight", names::DINO_PATCH_W, &[Dino, N(3), P, P], Role::Patch, Flatten),
    row("llma.dinov2_vitg14.patch_embed.proj.bias", names::DINO_PATCH_B, &[Dino], Role::Vector, None),
    row(CLASS, names::DINO_CLS, &[N(1), N(1), Dino], Role::Table, Tag),
];

/// Its transform is given the grid by [`items`].
const TABLE: Row = row(POSITIONS, names::DINO_POS, &[N(1), Dim::DinoPositions, Dino], Role::Table, None);

const BLOCK: &[Row] = &[
    row("llma.dinov2_vitg14.blocks.{i}.norm1.weight", names::DINO_NORM1_W, &[Dino], Role::Vector, None),
    row("llma.dinov2_vitg14.blocks.{i}.norm1.bias", names::DINO_NORM1_B, &[Dino], Role::Vector, None),
    row("llma.dinov2_vitg14.blocks.{i}.attn.qkv.weight", names::DINO_QKV_W, &[Dino3, Dino], Role::Matrix, None),
    row("llma.dinov2_vitg14.blocks.{i}.attn.qkv.bias", names::DINO_QKV_B, &[Dino3], Role::Vector, None),
    row("llma.dinov2_vitg14.blocks.{i}.attn.proj.weight", names::DINO_PROJ_W, &[Dino, Dino], Role::Matrix, None),
    row("llma.dinov2_vitg14.blocks.{i}.attn.proj.bias", names::DINO_PROJ_B, &[Dino], Role::Vector, None),
    row("llma.dinov2_vitg14.blocks.{i}.ls1.gamma", names::DINO_LS1, &[Dino], Role::Vector, None),
    row("llma.dinov2_vitg14.blocks.{i}.norm2.weight", names::DINO_NORM2_W, &[Dino], Role::Vector, None),
    row("llma.dinov2_vitg14.blocks.{i}.norm2.bias", names::DINO_NORM2_B, &[Dino], Role::Vector, None),
];

const SWIGLU: &[Row] = &[
    row("llma.dinov2_vitg14.blocks.{i}.mlp.w12.weight", names::DINO_W12_W, &[DinoFf2, Dino], Role::Matrix, None),
    row("llma.dinov2_vitg14.blocks.{i}.mlp.w12.bias", names::DINO_W12_B, &[DinoFf2], Role::Vector, None),
    row("llma.dinov2_vitg14.blocks.{i}.mlp.w3.weight", names::DINO_W3_W, &[Dino, DinoFf], Role::Matrix, None),
    row("llma.dinov2_vitg14.blocks.{i}.mlp.w3.bias", names::DINO_W3_B, &[Dino], Role::Vector, None),
];

const PLAIN: &[Row] = &[
    row("llma.dinov2_vitg14.blocks.{i}.mlp.fc1.weight", names::DINO_FC1_W, &[DinoFf, Dino], Role::Matrix, None),
    row("llma.dinov2_vitg14.blocks.{i}.mlp.fc1.bias", names::DINO_FC1_B, &[DinoFf], Role::Vector, None),
    row("llma.dinov2_vitg14.blocks.{i}.mlp.fc2.weight", names::DINO_FC2_W, &[Dino, DinoFf], Role::Matrix, None),
    row("llma.dinov2_vitg14.blocks.{i}.mlp.fc2.bias", names::DINO_FC2_B, &[Dino], Role::Vector, None),
];

const SCALE: &[Row] = &[row("llma.dinov2_vitg14.blocks.{i}.ls2.gamma", names::DINO_LS2, &[Dino], Role::Vector, None)];

const TAIL: &[Row] = &[
    row("llma.dinov2_vitg14.norm.weight", names::DINO_NORM_W, &[Dino], Role::Vector, None),
    row("llma.dinov2_vitg14.norm.bias", names::DINO_NORM_B, &[Dino], Role::Vector, None),
];

/// The tower's tensors, for a picture of `grid`² patches.
pub fn items(sizes: &Sizes, grid: usize) -> Vec<Item> {
    let item = |row: &Row, i: usize| Item::new(row, sizes, sizes.dino_depth, i, 0);
    let mlp = if sizes.dino_swiglu { SWIGLU } else { PLAIN };
    let table = Row { transform: Transform::DinoPositions { grid }, ..TABLE };
    let mut out: Vec<Item> = HEAD.iter().map(|r| item(r, 0)).collect();
    out.push(item(&table, 0));
    for i in 0..sizes.dino_depth {
        out.extend(BLOCK.iter().chain(mlp).chain(SCALE).map(|r| item(r, i)));
    }
    out.extend(TAIL.iter().map(|r| item(r, 0)));
    out
}
