//! What all decoders share, and the dense feed-forward part, as Meta and the public SPHINX code name them.

use sphinx_quant::gguf::names;
use sphinx_quant::recipe::Role;

use super::Dim::{Embd, Ff, Kv, Q, Vocab};
use super::Take::{KeyHeads, QueryHeads};
use super::{Dialect, Item, Row, Sizes, internlm2, mixtral, row};
use crate::checkpoint::Rule::{Dim0, Dim1};
use crate::transform::Transform;
use crate::variant::Language;

/// Shows vocabulary and width.
pub const EMBEDDINGS: &str = "llma.tok_embeddings.weight";
/// Shows the hidden width.
pub const W1: &str = "llma.layers.{i}.feed_forward.w1.weight";

/// In every decoder, whatever its attention and feed-forward part.
pub const W_O: &str = "llma.layers.{i}.attention.wo.weight";

const NONE: Transform = Transform::None;

const HEAD: &[Row] = &[row(EMBEDDINGS, names::TOKEN_EMBD, &[Vocab, Embd], Role::Embedding, NONE).sharded(Dim1)];

const NORM: &[Row] = &[row("llma.layers.{i}.attention_norm.weight", names::ATTN_NORM, &[Embd], Role::Vector, NONE)];

/// Whether channels move depends on the dialect.
const ATTENTION: &[Row] = &[
    row("llma.layers.{i}.attention.wq.weight", names::ATTN_Q, &[Q, Embd], Role::AttnQ, NONE).sharded(Dim0).taking(QueryHeads),
    row("llma.layers.{i}.attention.wk.weight", names::ATTN_K, &[Kv, Embd], Role::AttnK, NONE).sharded(Dim0).taking(KeyHeads),
    row("llma.layers.{i}.attention.wv.weight", names::ATTN_V, &[Kv, Embd], Role::AttnV, NONE).sharded(Dim0),
];

const BETWEEN: &[Row] = &[
    row(W_O, names::ATTN_OUTPUT, &[Embd, Q], Role::AttnOutput, NONE).sharded(Dim1),
    row("llma.layers.{i}.ffn_norm.weight", names::FFN_NORM, &[Embd], Role::Vector, NONE),
];

const DENSE: &[Row] = &[
    row(W1, names::FFN_GATE, &[Ff, Embd], Role::FfnGate, NONE).sharded(Dim0),
    row("llma.layers.{i}.feed_forward.w3.weight", names::FFN_UP, &[Ff, Embd], Role::FfnUp, NONE).sharded(Dim0),
    row("llma.layers.{i}.feed_forward.w2.weight", names::FFN_DOWN, &[Embd, Ff], Role::FfnDown, NONE).sharded(Dim1),
];

const TAIL: &[Row] = &[
    row("llma.norm.weight", names::OUTPUT_NORM, &[Embd], Role::Vector, NONE),
    row("llma.output.weight", names::OUTPUT, &[Vocab, Embd], Role::Output, NONE).sharded(Dim0),
];

/// The decoder's tensors.
pub fn items(sizes: &Sizes, dialect: &Dialect) -> Vec<Item> {
    let attention = if dialect.fused { internlm2::ATTENTION } else { ATTENTION };
    let feed_forward = match dialect.language {
        Language::Dense => DENSE,
        Language::Mixture => mixtral::FUSED,
        Language::MixtureOwner => mixtral::EACH,
    };
    let item = |row: &Row, i: usize| Item::spelled(row, sizes, dialect, i);
    let mut out: Vec<Item> = HEAD.iter().map(|r| item(r, 0)).collect();
    for i in 0..sizes.layers {
        out.extend(NORM.iter().chain(attention).chain(BETWEEN).chain(feed_forward).map(|r| item(r, i)));
    }
    out.extend(TAIL.iter().map(|r| item(r, 0)));
    out
}
