//! Attention as InternLM2 packs it: for every key head its query heads, itself and its value head, one below the other.
//!
//! Shards hold whole groups, so that joining them along dimension 0 is right when the key heads divide among them.
//!
//! Source: `modeling_internlm2.py` of InternLM2 and llama.cpp's converter of it.

use sphinx_quant::gguf::names;
use sphinx_quant::recipe::Role;

use super::Dim::{Embd, Qkv};
use super::Take::{FusedKey, FusedQuery, FusedValue};
use super::{Row, row};
use crate::checkpoint::Rule::Dim0;
use crate::transform::Transform::None;

/// Shows that attention is packed.
pub const WQKV: &str = "llma.layers.{i}.attention.wqkv.weight";

/// Three tensors out of one.
pub const ATTENTION: &[Row] = &[
    row(WQKV, names::ATTN_Q, &[Qkv, Embd], Role::AttnQ, None).sharded(Dim0).taking(FusedQuery),
    row(WQKV, names::ATTN_K, &[Qkv, Embd], Role::AttnK, None).sharded(Dim0).taking(FusedKey),
    row(WQKV, names::ATTN_V, &[Qkv, Embd], Role::AttnV, None).sharded(Dim0).taking(FusedValue),
];
