//! What is in a checkpoint, without converting it.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, Rule};
use crate::error::Result;
use crate::variant;

/// What [`inspect_checkpoint`] found.
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointInfo {
    /// Where it is.
    #[serde(serialize_with = "crate::report::lossy")]
    pub path: PathBuf,
    /// The type in `meta.json`.
    pub llama_type: Option<String>,
    /// Whether this version converts that type.
    pub supported: bool,
    /// `config.json`, empty when missing.
    pub config: Map<String, Value>,
    /// Whether a `tokenizer.model` is there.
    pub tokenizer: bool,
    /// Bytes of all tensor files.
    pub bytes: u64,
    /// Elements of all tensors; those cut into shards whole, replicated ones once per shard.
    pub elements: u64,
    /// Every tensor, by name.
    pub tensors: Vec<CheckpointTensor>,
    /// What is odd about the files.
    pub notes: Vec<String>,
}

/// One tensor of a [`CheckpointInfo`].
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointTensor {
    /// Its name.
    pub name: String,
    /// Its number format; `None` when shards disagree or it is not read.
    pub dtype: Option<String>,
    /// Its shape in every shard that holds it, outermost first.
    pub shapes: Vec<Vec<usize>>,
}

/// Describes a checkpoint directory, or a single `.pth` or `.safetensors` file, one shard included.
///
/// # Errors
/// `Io` and `Invalid` as the checkpoint reader gives them.
pub fn inspect_checkpoint(path: &Path) -> Result<CheckpointInfo> {
    let checkpoint = Checkpoint::inspect(path)?;
    let mut tensors = Vec::new();
    let mut elements = 0u64;
    for name in checkpoint.names() {
        let shapes = checkpoint.shapes(name).unwrap_or_default();
        elements += shapes.iter().map(|s| s.iter().product::<usize>() as u64).sum::<u64>();
        let dtype =
            [Rule::Same, Rule::Owner].into_iter().find_map(|rule| checkpoint.merged(name, rule).ok()).map(|m| m.dtype().name().to_owned());
        tensors.push(CheckpointTensor { name: name.to_owned(), dtype, shapes });
    }
    let llama_type = checkpoint.llama_type().map(str::to_owned);
    Ok(CheckpointInfo {
        path: path.to_owned(),
        supported: llama_type.as_deref().is_some_and(|t| variant::find(t, path).is_ok()),
        llama_type,
        config: checkpoint.config().clone(),
        tokenizer: checkpoint.tokenizer_model().is_some(),
        bytes: checkpoint.file_bytes(),
        elements,
        tensors,
        notes: checkpoint.notes().to_vec(),
    })
}
