//! The dense decoder, as Meta and the public SPHINX code name it. Rotary pairs are adjacent already; nothing is permuted.

use sphinx_quant::gguf::names;
use sphinx_quant::recipe::Role;

use super::Dim::{Embd, Ff, Kv, Q, Vocab};
use super::{Item, Row, Sizes, row};
use crate::checkpoint::Rule::{Dim0, Dim1};
use crate::transform::Transform;

/// In front of a layer's number.
pub const LAYERS: &str = "llma.layers.";
/// Shows vocabulary and width.
pub const EMBEDDINGS: &str = "llma.tok_embeddings.weight";
/// Shows the hidden width.
pub const FIRST_W1: &str = "llma.layers.0.feed_forward.w1.weight";

const NONE: Transform = Transform::None;

const HEAD: &[Row] = &[row(EMBEDDINGS, names::TOKEN_EMBD, &[Vocab, Embd], Role::Embedding, NONE).sharded(Dim1)];

const LAYER: &[Row] = &[
    row("llma.layers.{i}.attention_norm.weight", names::ATTN_NORM, &[Embd], Role::Vector, NONE),
    row("llma.layers.{i}.attention.wq.weight", names::ATTN_Q, &[Q, Embd], Role::AttnQ, NONE).sharded(Dim0),
    row("llma.layers.{i}.attention.wk.weight", names::ATTN_K, &[Kv, Embd], Role::AttnK, NONE).sharded(Dim0),
    row("llma.layers.{i}.attention.wv.weight", names::ATTN_V, &[Kv, Embd], Role::AttnV, NONE).sharded(Dim0),
    row("llma.layers.{i}.attention.wo.weight", names::ATTN_OUTPUT, &[Embd, Q], Role::AttnOutput, NONE).sharded(Dim1),
    row("llma.layers.{i}.ffn_norm.weight", names::FFN_NORM, &[Embd], Role::Vector, NONE),
    row("llma.layers.{i}.feed_forward.w1.weight", names::FFN_GATE, &[Ff, Embd], Role::FfnGate, NONE).sharded(Dim0),
    row("llma.layers.{i}.feed_forward.w3.weight", names::FFN_UP, &[Ff, Embd], Role::FfnUp, NONE).sharded(Dim0),
    row("llma.layers.{i}.feed_forward.w2.weight", names::FFN_DOWN, &[Embd, Ff], Role::FfnDown, NONE).sharded(Dim1),
];

const TAIL: &[Row] = &[
    row("llma.norm.weight", names::OUTPUT_NORM, &[Embd], Role::Vector, NONE),
    row("llma.output.weight", names::OUTPUT, &[Vocab, Embd], Role::Output, NONE).sharded(Dim0),
];

/// The decoder's tensors.
pub fn items(sizes: &Sizes) -> Vec<Item> {
    let item = |row: &Row, i: usize| Item::new(row, sizes, sizes.layers, i, 0);
    let mut out: Vec<Item> = HEAD.iter().map(|r| item(r, 0)).collect();
    out.extend((0..sizes.layers).flat_map(|i| LAYER.iter().map(move |r| item(r, i))));
    out.extend(TAIL.iter().map(|r| item(r, 0)));
    out
}
