//! From features to rows of the decoder: the projection and the learned rows around every view.

use sphinx_quant::gguf::names;
use sphinx_quant::recipe::Role;

use super::Dim::{Embd, Features, N};
use super::{Item, Row, Sizes, row};
use crate::transform::Transform::{None, Tag};

const ROWS: &[Row] = &[
    row("llma.visual_proj.0.weight", names::PROJ_W, &[Embd, Features], Role::Matrix, None),
    row("llma.visual_proj.0.bias", names::PROJ_B, &[Embd], Role::Vector, None),
    row("llma.visual_proj.1.weight", names::PROJ_NORM_W, &[Embd], Role::Vector, None),
    row("llma.visual_proj.1.bias", names::PROJ_NORM_B, &[Embd], Role::Vector, None),
    row("llma.start_img", names::START_IMG, &[N(1), N(1), Embd], Role::Table, Tag),
    row("llma.end_img", names::END_IMG, &[N(1), N(1), Embd], Role::Table, Tag),
];

/// The bridge's tensors.
pub fn items(sizes: &Sizes) -> Vec<Item> {
    ROWS.iter().map(|r| Item::new(r, sizes, 1, 0, 0)).collect()
}
