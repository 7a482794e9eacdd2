//! The kernels as plain Rust: the specification of every sibling, and what runs where there is none.

#![allow(clippy::needless_range_loop)] // lanes read best by index

pub mod act;
pub mod attend;
pub mod conv;
pub mod dot;
pub mod gemm;
pub mod norm;
pub mod quantize;
pub mod resample;
pub mod rope;
pub mod softmax;
pub mod unpack;
