//! ConvNeXt-XXLarge, the trunk of OpenCLIP's tower. Convolutions become the matrix that a patch multiplies.

use sphinx_quant::gguf::names;
use sphinx_quant::recipe::Role;

use super::Dim::{Cnx, Cnx4, CnxBefore, CnxLast, N};
use super::{Item, Row, Sizes, row};
use crate::transform::Transform::{Depthwise, DownConv, Flatten, None};

/// In front of a stage's number.
pub const STAGES: &str = "llma.openclip_convnext_xxl.stages.";

const STEM: &[Row] = &[
    row("llma.openclip_convnext_xxl.stem.0.weight", names::CNX_STEM_W, &[Cnx, N(3), N(4), N(4)], Role::Patch, Flatten),
    row("llma.openclip_convnext_xxl.stem.0.bias", names::CNX_STEM_B, &[Cnx], Role::Vector, None),
    row("llma.openclip_convnext_xxl.stem.1.weight", names::CNX_STEM_NORM_W, &[Cnx], Role::Vector, None),
    row("llma.openclip_convnext_xxl.stem.1.bias", names::CNX_STEM_NORM_B, &[Cnx], Role::Vector, None),
];

const DOWN: &[Row] = &[
    row("llma.openclip_convnext_xxl.stages.{i}.downsample.0.weight", names::CNX_DOWN_NORM_W, &[CnxBefore], Role::Vector, None),
    row("llma.openclip_convnext_xxl.stages.{i}.downsample.0.bias", names::CNX_DOWN_NORM_B, &[CnxBefore], Role::Vector, None),
    row(
        "llma.openclip_convnext_xxl.stages.{i}.downsample.1.weight",
        names::CNX_DOWN_W,
        &[Cnx, CnxBefore, N(2), N(2)],
        Role::Matrix,
        DownConv,
    ),
    row("llma.openclip_convnext_xxl.stages.{i}.downsample.1.bias", names::CNX_DOWN_B, &[Cnx], Role::Vector, None),
];

const BLOCK: &[Row] = &[
    row(
        "llma.openclip_convnext_xxl.stages.{i}.blocks.{j}.conv_dw.weight",
        names::CNX_DW_W,
        &[Cnx, N(1), N(7), N(7)],
        Role::Kernel,
        Depthwise,
    ),
    row("llma.openclip_convnext_xxl.stages.{i}.blocks.{j}.conv_dw.bias", names::CNX_DW_B, &[Cnx], Role::Vector, None),
    row("llma.openclip_convnext_xxl.stages.{i}.blocks.{j}.norm.weight", names::CNX_NORM_W, &[Cnx], Role::Vector, None),
    row("llma.openclip_convnext_xxl.stages.{i}.blocks.{j}.norm.bias", names::CNX_NORM_B, &[Cnx], Role::Vector, None),
    row("llma.openclip_convnext_xxl.stages.{i}.blocks.{j}.mlp.fc1.weight", names::CNX_FC1_W, &[Cnx4, Cnx], Role::Matrix, None),
    row("llma.openclip_convnext_xxl.stages.{i}.blocks.{j}.mlp.fc1.bias", names::CNX_FC1_B, &[Cnx4], Role::Vector, None),
    row("llma.openclip_convnext_xxl.stages.{i}.blocks.{j}.mlp.fc2.weight", names::CNX_FC2_W, &[Cnx, Cnx4], Role::Matrix, None),
    row("llma.openclip_convnext_xxl.stages.{i}.blocks.{j}.mlp.fc2.bias", names::CNX_FC2_B, &[Cnx], Role::Vector, None),
    row("llma.openclip_convnext_xxl.stages.{i}.blocks.{j}.gamma", names::CNX_GAMMA, &[Cnx], Role::Vector, None),
];

const HEAD: &[Row] = &[
    row("llma.openclip_convnext_xxl.head.norm.weight", names::CNX_HEAD_NORM_W, &[CnxLast], Role::Vector, None),
    row("llma.openclip_convnext_xxl.head.norm.bias", names::CNX_HEAD_NORM_B, &[CnxLast], Role::Vector, None),
];

/// The trunk's tensors.
pub fn items(sizes: &Sizes) -> Vec<Item> {
    let stages = sizes.cnx_depths.len();
    let item = |row: &Row, i: usize, j: usize| Item::new(row, sizes, stages, i, j);
    let mut out: Vec<Item> = STEM.iter().map(|r| item(r, 0, 0)).collect();
    for (i, &depth) in sizes.cnx_depths.iter().enumerate() {
        if i > 0 {
            out.extend(DOWN.iter().map(|r| item(r, i, 0)));
        }
        out.extend((0..depth).flat_map(|j| BLOCK.iter().map(move |r| item(r, i, j))));
    }
    out.extend(HEAD.iter().map(|r| item(r, 0, 0)));
    out
}
