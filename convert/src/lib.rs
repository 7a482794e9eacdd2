//! Checkpoints to GGUF: what a released SPHINX directory holds and how it becomes two model files.
//!
//! [`checkpoint`] reads PyTorch archives and safetensors, whole or in shards. [`variant`] says what a `llama_type` is, [`config`]
//! and [`tokenizer`] read what lies beside the tensors, and [`registry`] has one row for every tensor: its name there, its name
//! here, its shape, its part and its [`transform`]; [`gather`] finds its rows where several tensors make one or one makes several.
//! [`convert()`] streams the rows through the quantisers into two files;
//! [`quantize()`] does the same from model file to model file, [`verify()`] compares the two ends, and [`synth()`] makes up
//! models of random numbers in both forms.
//!
//! Nothing is ever in memory in whole: a few MiB of rows go from one reading thread over the workers to one writer.

pub mod checkpoint;
pub mod config;
pub mod convert;
pub mod error;
pub mod gather;
pub mod hf;
pub mod inspect;
pub mod metadata;
mod pipeline;
pub mod quantize;
pub mod registry;
pub mod report;
pub mod synth;
pub mod tokenizer;
pub mod transform;
pub mod variant;
pub mod verify;

pub use convert::{Arch, ConvertOptions, convert, dry_run, mmproj_path, outline};
pub use error::{ConvertError, Result};
pub use inspect::{Card, CheckpointInfo, CheckpointTensor, inspect_checkpoint};
pub use quantize::{QuantizeOptions, quantize};
pub use report::{FileReport, Progress, Report, RowReport};
pub use synth::{SynthOptions, synth, synth_outline};
pub use verify::{Against, Verification, verify};
