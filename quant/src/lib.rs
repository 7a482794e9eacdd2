//! What bytes mean: ggml block formats and GGUF files.
//!
//! A model on disk is a GGUF file, a list of named tensors whose rows are cut into small *blocks* that carry
//! a few shared scales and many low-bit numbers. [`GgmlType`] names the block formats, [`block`] turns rows of
//! `f32` into blocks and back, [`gguf`] reads files through a memory map and writes them one piece at a time,
//! [`recipe`] decides which tensor gets which format, [`imatrix`] says which columns matter, and [`quality`] measures what
//! that cost.
//!
//! Nothing here knows what a model computes; nothing here panics on bytes it was given.

#[cfg(windows)]
compile_error!("sphinx-edge does not run on Windows by itself: it maps files and sets limits as Unix does. Build it in WSL.");

pub mod block;
pub mod error;
pub mod ggml_type;
pub mod gguf;
pub mod imatrix;
pub mod quality;
pub mod recipe;
pub mod tensor;

pub use error::{ErrorKind, QuantError, Result};
pub use ggml_type::GgmlType;
pub use tensor::Tensor;
