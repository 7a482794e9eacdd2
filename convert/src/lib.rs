//! Checkpoints to GGUF: what a released SPHINX directory holds and how it becomes two model files.

pub mod checkpoint;
pub mod error;
