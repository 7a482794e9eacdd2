//! GGUF version 3: a checked reader over a memory map, and a streaming writer.

pub mod keys;
pub mod names;
pub mod read;
pub mod write;

pub use keys::Half;
