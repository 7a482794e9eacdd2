//! GGUF version 3: a checked reader over a memory map, and a streaming writer.
//!
//! A file is a header (metadata keys and values, then a table of tensors) and, after padding, the tensors' bytes. Files
//! written here carry two keys of ours: the first key holds a digest of the header, the last one a checksum per tensor.

pub mod header;
pub mod keys;
pub mod names;
pub mod read;
pub mod value;
pub mod write;

pub use keys::Half;
pub use read::Gguf;
pub use value::{Array, Value};
pub use write::{Finished, Plan, TensorPlan, Writer, outline};
