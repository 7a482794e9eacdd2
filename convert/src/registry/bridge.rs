//! From features to rows of the decoder: the projections, the learned rows around every view, those that stand for an empty one.

use sphinx_quant::gguf::names;
use sphinx_quant::recipe::Role;

use super::Dim::{Embd, Features, N, Qf};
use super::{Item, Row, Sizes, Skip, row};
use crate::transform::Transform::{None, Rows, Tag};
use crate::variant::Layout;

const PROJECTION: &[Row] = &[
    row("llma.visual_proj.0.weight", names::PROJ_W, &[Embd, Features], Role::Matrix, None),
    row("llma.visual_proj.0.bias", names::PROJ_B, &[Embd], Role::Vector, None),
    row("llma.visual_proj.1.weight", names::PROJ_NORM_W, &[Embd], Role::Vector, None),
    row("llma.visual_proj.1.bias", names::PROJ_NORM_B, &[Embd], Role::Vector, None),
];

const OF_QUERIES: &[Row] = &[
    row("llma.qformer_proj.0.weight", names::QPROJ_W, &[Embd, Qf], Role::Matrix, None),
    row("llma.qformer_proj.0.bias", names::QPROJ_B, &[Embd], Role::Vector, None),
    row("llma.qformer_proj.1.weight", names::QPROJ_NORM_W, &[Embd], Role::Vector, None),
    row("llma.qformer_proj.1.bias", names::QPROJ_NORM_B, &[Embd], Role::Vector, None),
];

const TAGS: &[Row] = &[
    row("llma.start_img", names::START_IMG, &[N(1), N(1), Embd], Role::Table, Tag),
    row("llma.end_img", names::END_IMG, &[N(1), N(1), Embd], Role::Table, Tag),
];

/// The bridge's tensors. Tags are there even where nothing stands between them: skip rows may.
pub fn items(sizes: &Sizes, layout: &Layout, skip: Option<&Skip>) -> Vec<Item> {
    let queries = if layout.qformer { OF_QUERIES } else { &[] };
    let mut out: Vec<Item> = PROJECTION.iter().chain(queries).chain(TAGS).map(|r| Item::new(r, sizes, 1, 0, 0)).collect();
    out.extend(skip.map(|skip| {
        let row = row("", names::SKIP_TOKEN, &[], Role::Table, Rows);
        Item::of_shape(&row, skip.source.clone(), skip.shape.clone())
    }));
    out
}
