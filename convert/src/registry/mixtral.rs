//! The feed-forward part of a sparse mixture, in the public code's two layouts. Both become stacks of experts.

use sphinx_quant::gguf::names;
use sphinx_quant::recipe::Role;

use super::Dim::{Embd, Experts, ExpertsFf, Ff};
use super::Take::{Blocks, Each, Turned};
use super::{Row, row};
use crate::checkpoint::Rule;
use crate::transform::Transform::None;

/// Shows that there are experts, and how many.
pub const GATE: &str = "llma.layers.{i}.feed_forward.gate.weight";
/// Shows experts and hidden width of the fused layout.
pub const W1: &str = "llma.layers.{i}.feed_forward.w1";
/// Shows the hidden width of the other.
pub const EACH_W1: &str = "llma.layers.{i}.feed_forward.experts.{j}.w1.weight";

const ROUTER: Row = row(GATE, names::FFN_GATE_INP, &[Experts, Embd], Role::Router, None);
/// The number of experts is filled in with the sizes.
const GROUPED: Rule = Rule::Expert { experts: 0 };

/// All experts of a layer in one tensor; every shard has some rows of each. Hidden units are rows in all three, so that the
/// third is not what a linear layer holds but the other way round.
pub const FUSED: &[Row] = &[
    ROUTER,
    row(W1, names::FFN_GATE_EXPS, &[ExpertsFf, Embd], Role::FfnGate, None).sharded(GROUPED).taking(Blocks),
    row("llma.layers.{i}.feed_forward.w3", names::FFN_UP_EXPS, &[ExpertsFf, Embd], Role::FfnUp, None).sharded(GROUPED).taking(Blocks),
    row("llma.layers.{i}.feed_forward.w2", names::FFN_DOWN_EXPS, &[ExpertsFf, Embd], Role::FfnDown, None).sharded(GROUPED).taking(Turned),
];

/// One tensor per expert, each in one shard.
pub const EACH: &[Row] = &[
    ROUTER,
    row(EACH_W1, names::FFN_GATE_EXPS, &[Ff, Embd], Role::FfnGate, None).sharded(Rule::Owner).taking(Each),
    row("llma.layers.{i}.feed_forward.experts.{j}.w3.weight", names::FFN_UP_EXPS, &[Ff, Embd], Role::FfnUp, None)
        .sharded(Rule::Owner)
        .taking(Each),
    row("llma.layers.{i}.feed_forward.experts.{j}.w2.weight", names::FFN_DOWN_EXPS, &[Embd, Ff], Role::FfnDown, None)
        .sharded(Rule::Owner)
        .taking(Each),
];
