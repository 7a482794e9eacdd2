//! Checkpoint files: PyTorch archives and safetensors, whole or in shards.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{ConvertError, Result};

/// The number types a tensor can be read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
}

/// How the shards of one tensor make the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Every shard holds the same; the first is taken.
    Same,
    /// Concatenated along dimension 0.
    Dim0,
    /// Concatenated along dimension 1.
    Dim1,
    /// Rows are grouped by expert in every shard: `[E, h/MM, …]`, concatenated along the middle.
    Expert {
        /// E.
        experts: usize,
    },
    /// Exactly one shard holds it.
    Owner,
}

/// An opened checkpoint: names, shapes and settings; data is read when asked for.
pub struct Checkpoint {
    folder: PathBuf,
    config: Map<String, Value>,
    names: Vec<String>,
}

/// One whole tensor, put together from its shards as it is read. Owns what it needs; shared between threads freely.
pub struct Merged {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl Checkpoint {
    /// Opens directories in the public layout (later ones override), a directory of safetensors, or a single file.
    pub fn open(paths: &[PathBuf]) -> Result<Checkpoint> {
        let _ = paths;
        Err(ConvertError::Usage("not written yet".into()))
    }
    /// The same, but a single shard of several is welcome: for looking, not for converting.
    pub fn inspect(path: &Path) -> Result<Checkpoint> {
        Checkpoint::open(&[path.to_owned()])
    }
    /// The last directory given (of a file: the one it lies in).
    pub fn folder(&self) -> &Path {
        &self.folder
    }
    /// The merged `config.json`, empty when there is none.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }
    /// `llama_type` of the last directory's `meta.json`.
    pub fn llama_type(&self) -> Option<&str> {
        None
    }
    /// The last directory's `tokenizer.model`.
    pub fn tokenizer_model(&self) -> Option<PathBuf> {
        None
    }
    /// Tensor names, sorted, as stored; `llma.` is put in front of Meta's own.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }
    /// The tensor's shape in every shard that holds it.
    pub fn shapes(&self, name: &str) -> Option<Vec<Vec<usize>>> {
        let _ = name;
        None
    }
    /// The tensor, put together by `rule`.
    pub fn merged(&self, name: &str, rule: Rule) -> Result<Merged> {
        let _ = (name, rule);
        Err(ConvertError::Usage("not written yet".into()))
    }
    /// What a user should know about the files: skipped tensors and the like.
    pub fn notes(&self) -> &[String] {
        &[]
    }
    /// Bytes of all the files the tensors lie in.
    pub fn file_bytes(&self) -> u64 {
        0
    }
    /// Checks that no file changed since it was opened: size, time of change, inode. Call it before committing a result.
    pub fn unchanged(&self) -> Result<()> {
        Ok(())
    }
}

impl Merged {
    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The whole shape, in torch's order, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// The stored type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }
    /// Bytes of the whole tensor as stored.
    pub fn stored_bytes(&self) -> u64 {
        0
    }
    /// Dimension 0; 1 for a scalar or a vector.
    pub fn rows(&self) -> usize {
        1
    }
    /// Elements of one row.
    pub fn cols(&self) -> usize {
        1
    }
    /// A warning about the shards, for [`Rule::Same`]: replicas that are not equal (told by their CRC-32, so only for whole storages).
    pub fn note(&self) -> Option<&str> {
        None
    }
    /// Reads rows, as f32, into `out` `[rows.len(), cols]`.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let _ = (rows, out);
        Ok(())
    }
}
