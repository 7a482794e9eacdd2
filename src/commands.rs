//! One file per command.

pub mod bench;
pub mod card;
pub mod chat;
pub mod completions;
pub mod convert;
pub mod demo;
pub mod doctor;
pub mod embed;
pub mod eval;
pub mod fit;
pub mod imatrix;
pub mod inspect;
pub mod logits;
pub mod model;
pub mod quantize;
pub mod run;
pub mod synth;
pub mod tokenize;
pub mod verify;
