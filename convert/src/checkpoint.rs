//! Checkpoint files: PyTorch archives and safetensors, whole or in shards.
//!
//! [`Checkpoint::open`] reads only descriptions: which files there are, which tensors they name, and where each lies. A tensor's data
//! is read when [`Merged::read_rows`] asks for it, in bounded pieces, put together from its shards and widened to `f32` on
//! the way; what was read is dropped from memory again. Files are opened for reading at positions and never mapped, so that neither
//! their size nor somebody else's `truncate` can hurt.
//!
//! `zip` reads the container of a `.pth`, `pickle` its description, `safetensors` the other format, `shards` knows how the files of
//! a directory are named, `parts` what holds for files that an index lists, and `stored` reads boxes of elements.

pub(crate) mod json;
mod parts;
pub mod pickle;
mod pth;
mod safetensors;
mod shards;
mod source;
mod stored;
mod zip;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use sphinx_quant::error::printable;

use crate::error::{ConvertError, Result};
use shards::{Rank, shown};
use source::Source;
use stored::Stored;

/// The most tensors one file may hold.
const MAX_TENSORS: usize = 65_536;
/// The longest tensor name, in bytes.
const MAX_NAME_BYTES: usize = 255;

const ONE_CHECKPOINT: &str = "put the shards of one checkpoint into the directory";

/// Tensors of one file or rank by name.
type Tensors = BTreeMap<String, Arc<Stored>>;

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

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
        }
    }

    /// `F32`, `F16` or `BF16`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
        }
    }
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
    /// Rows are grouped by expert in every shard, `[E · h/MM, …]`; the whole is `[E · h, …]`, grouped the same way.
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
    llama_type: Option<String>,
    /// One per path given: the ranks of its shards.
    sets: Vec<Vec<Rank>>,
    /// Which set a name is taken from: the last that has it.
    index: BTreeMap<String, usize>,
    notes: Vec<String>,
}

/// One whole tensor, put together from its shards as it is read. Owns what it needs and may be shared between threads.
pub struct Merged {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    rule: Rule,
    parts: Vec<Arc<Stored>>,
    note: Option<String>,
}

impl Checkpoint {
    /// Opens checkpoints in the public layout (later directories override tensors and settings of earlier ones), a directory of
    /// `model*.safetensors` or `pytorch_model*.bin` files, or a single `.pth`, `.bin` or `.safetensors` file.
    ///
    /// # Errors
    /// [`ConvertError::Io`] when a path is missing or cannot be read; [`ConvertError::Invalid`] for everything that is wrong with
    /// the files themselves, including a shard that is missing or not of the same checkpoint.
    ///
    /// Source: the public loader, `accessory/util/tensor_parallel.py`.
    pub fn open(paths: &[PathBuf]) -> Result<Checkpoint> {
        Checkpoint::load(paths, true)
    }

    /// The same for one path, but a single shard of several is welcome: to look at, not to convert.
    ///
    /// # Errors
    /// As [`open`](Checkpoint::open).
    pub fn inspect(path: &Path) -> Result<Checkpoint> {
        Checkpoint::load(&[path.to_owned()], false)
    }

    /// A `.pth` file's bytes as a checkpoint; `name` stands for its path in messages.
    ///
    /// # Errors
    /// As [`open`](Checkpoint::open).
    pub fn from_pth_bytes(name: &Path, bytes: Vec<u8>) -> Result<Checkpoint> {
        let mut notes = Vec::new();
        let rank = shards::rank_of(Source::memory(name, bytes), true, "", &mut notes)?;
        Ok(Checkpoint::assemble(parent(name), vec![vec![rank]], notes))
    }

    fn load(paths: &[PathBuf], complete: bool) -> Result<Checkpoint> {
        let mut notes = Vec::new();
        let mut sets = Vec::new();
        let mut config = Map::new();
        let mut llama_type = None;
        let mut folder = None;
        for path in paths {
            let is_directory = std::fs::metadata(path).map_err(|e| ConvertError::io(path, e))?.is_dir();
            let home = if is_directory { path.clone() } else { parent(path) };
            let set = if is_directory { shards::directory(path, &mut notes)? } else { vec![shards::file(path, complete, &mut notes)?] };
            sets.push(set);
            if let Some(settings) = settings(&home.join("config.json"))? {
                config.extend(settings);
            }
            llama_type = stated_type(&home.join("meta.json"))?;
            folder = Some(home);
        }
        let Some(folder) = folder else { return Err(ConvertError::Usage("no checkpoint was given".into())) };
        Ok(Checkpoint { config, llama_type, ..Checkpoint::assemble(folder, sets, notes) })
    }

    fn assemble(folder: PathBuf, sets: Vec<Vec<Rank>>, notes: Vec<String>) -> Checkpoint {
        let mut index = BTreeMap::new();
        for (i, set) in sets.iter().enumerate() {
            index.extend(set.iter().flat_map(|rank| rank.tensors.keys()).map(|name| (name.clone(), i)));
        }
        Checkpoint { folder, config: Map::new(), llama_type: None, sets, index, notes }
    }

    /// The last directory given (of a file: the one it lies in).
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `config.json` of all directories, later ones overriding key by key; empty when there is none.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// `llama_type` of the last directory's `meta.json`.
    pub fn llama_type(&self) -> Option<&str> {
        self.llama_type.as_deref()
    }

    /// The last directory's `tokenizer.model`, if it is there.
    pub fn tokenizer_model(&self) -> Option<PathBuf> {
        Some(self.folder.join("tokenizer.model")).filter(|p| p.is_file())
    }

    /// Tensor names, sorted, as stored; `llma.` is put in front of Meta's own.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// The tensor's shape in every shard that holds it, in rank order.
    pub fn shapes(&self, name: &str) -> Option<Vec<Vec<usize>>> {
        let set = &self.sets[*self.index.get(name)?];
        Some(set.iter().filter_map(|rank| rank.tensors.get(name)).map(|t| t.shape().to_vec()).collect())
    }

    /// The tensor, put together by `rule`.
    ///
    /// # Errors
    /// [`ConvertError::Invalid`] when a shard lacks the tensor, shapes or types differ, the rule does not fit the shape,
    /// or the elements are of a type that is not read; the message names both shards.
    pub fn merged(&self, name: &str, rule: Rule) -> Result<Merged> {
        let Some(&set) = self.index.get(name) else {
            return Err(ConvertError::invalid(&self.folder, "has no such tensor", "check that the checkpoint is complete").of_tensor(name));
        };
        let holders: Vec<(&Rank, &Arc<Stored>)> =
            self.sets[set].iter().filter_map(|rank| rank.tensors.get(name).map(|stored| (rank, stored))).collect();
        let (first_rank, first) = holders[0];
        let bad = |rank: &Rank, what: String| ConvertError::invalid(&rank.path, what, ONE_CHECKPOINT).of_tensor(name);

        if rule == Rule::Owner {
            if let Some((second, _)) = holders.get(1) {
                return Err(bad(first_rank, format!("holds a tensor that {} holds too, it should be in one shard", shown(&second.path))));
            }
        } else if let Some(lacking) = self.sets[set].iter().find(|rank| !rank.tensors.contains_key(name)) {
            return Err(bad(lacking, format!("lacks a tensor that {} has", shown(&first_rank.path))));
        }
        let dtype = first.dtype().map_err(|e| e.of_tensor(name))?;
        for (rank, stored) in &holders[1..] {
            let other = stored.dtype().map_err(|e| e.of_tensor(name))?;
            if (stored.shape(), other) != (first.shape(), dtype) {
                let (here, there) = (first.shape(), stored.shape());
                let what = format!("{dtype:?} of shape {here:?} in {}, {other:?} of shape {there:?} here", shown(&first_rank.path));
                return Err(bad(rank, what));
            }
        }

        let mut shape = first.shape().to_vec();
        let axis = match rule {
            Rule::Same | Rule::Owner => None,
            Rule::Dim0 | Rule::Expert { .. } => Some(0),
            Rule::Dim1 => Some(1),
        };
        if let Some(axis) = axis {
            let Some(dim) = shape.get_mut(axis) else {
                return Err(bad(first_rank, format!("has shape {shape:?}, which cannot be joined along dimension {axis}")));
            };
            if let Rule::Expert { experts } = rule
                && (experts == 0 || !dim.is_multiple_of(experts))
            {
                return Err(bad(first_rank, format!("has {dim} rows, which is no multiple of {experts} experts")));
            }
            *dim = dim.checked_mul(holders.len()).ok_or_else(|| bad(first_rank, "is too large".into()))?;
        }
        let note = if rule == Rule::Same { differing(name, &holders) } else { None };
        let parts = match rule {
            Rule::Same => vec![first.clone()],
            _ => holders.iter().map(|(_, stored)| (*stored).clone()).collect(),
        };
        Ok(Merged { name: name.to_owned(), shape, dtype, rule, parts, note })
    }

    /// What a user should know about the files: skipped tensors and the like. What concerns one tensor is in [`Merged::note`].
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Bytes of all the files the tensors lie in.
    pub fn file_bytes(&self) -> u64 {
        self.sources().map(Source::bytes).sum()
    }

    /// Checks that no file changed since it was opened: its size, its time of change, its inode. To be called before a result is committed.
    ///
    /// # Errors
    /// [`ConvertError::Io`] naming the file.
    pub fn unchanged(&self) -> Result<()> {
        self.sources().try_for_each(Source::unchanged)
    }

    fn sources(&self) -> impl Iterator<Item = &Source> {
        self.sets.iter().flatten().flat_map(|rank| &rank.sources).map(|s| &**s)
    }
}

/// A warning when replicas state different checksums.
fn differing(name: &str, holders: &[(&Rank, &Arc<Stored>)]) -> Option<String> {
    let (first_rank, first) = holders.first()?;
    let wanted = first.crc32()?;
    let (other, _) = holders.iter().find(|(_, s)| s.crc32().is_some_and(|crc| crc != wanted))?;
    Some(format!(
        "tensor \"{}\" should be the same in every shard but differs between {} and {}; the first is taken",
        printable(name),
        shown(&first_rank.path),
        shown(&other.path)
    ))
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
        self.parts.iter().map(|p| p.bytes()).sum()
    }

    /// Dimension 0; 1 for a scalar or a vector.
    pub fn rows(&self) -> usize {
        if self.shape.len() < 2 { 1 } else { self.shape[0] }
    }

    /// Elements of one row: the product of the other dimensions, or a vector's length.
    pub fn cols(&self) -> usize {
        if self.shape.len() < 2 { self.shape.iter().product() } else { self.shape[1..].iter().product() }
    }

    /// A warning about the shards, for [`Rule::Same`]: replicas that are not equal. They are told apart by the checksums the files
    /// state, so only tensors that are whole storages of `.pth` files are compared, and nothing is read for it.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Reads rows as f32 into `out` `[rows.len(), cols]`.
    ///
    /// Memory beyond `out` is about a MiB, whatever the tensor's size and strides. Rows that rise from call to call are cheapest: CRC-32
    /// is then checked on the way; any order is right, also from several threads. The checksum of a whole storage is known to be
    /// right once its last row was read.
    ///
    /// # Errors
    /// [`ConvertError::Io`] when reading fails, [`ConvertError::Invalid`] when the data does not match its checksum.
    ///
    /// # Panics
    /// When `rows` is not within [`rows`](Merged::rows), or `out` has another length: the caller's mistakes.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let cols = self.cols();
        assert!(rows.start <= rows.end && rows.end <= self.rows(), "rows {rows:?} of {}", self.rows());
        assert_eq!(out.len(), rows.len() * cols, "room for the rows of tensor {}", self.name);
        if out.is_empty() {
            return Ok(());
        }
        self.pieces(rows, out).map_err(|e| e.of_tensor(&self.name))
    }

    fn pieces(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let cols = self.cols();
        let flat = self.shape.len() < 2;
        // A part's first dimension; of a scalar or a vector all of it is the one row.
        let part_rows = self.parts[0].shape().first().copied().unwrap_or(1);
        match self.rule {
            Rule::Same | Rule::Owner => {
                let rows = if flat { 0..part_rows } else { rows };
                self.parts[0].read_rows(rows, out, 0, if flat { 1 } else { cols })
            }
            Rule::Dim1 => {
                let width = cols / self.parts.len();
                let mut parts = self.parts.iter().enumerate();
                parts.try_for_each(|(p, part)| part.read_rows(rows.clone(), out, p * width, cols))
            }
            Rule::Dim0 | Rule::Expert { .. } => {
                // In whole rows of dimension 0, vectors too.
                let (rows, cols) = if flat { (0..self.shape[0], 1) } else { (rows, cols) };
                let experts = if let Rule::Expert { experts } = self.rule { experts } else { 1 };
                let slice = part_rows / experts; // rows of one expert in one part
                let mut row = rows.start;
                while row < rows.end {
                    let group = row / slice;
                    let (expert, part) = (group / self.parts.len(), group % self.parts.len());
                    let first = expert * slice + row % slice;
                    let count = (slice - row % slice).min(rows.end - row);
                    self.parts[part].read_rows(first..first + count, out, (row - rows.start) * cols, cols)?;
                    row += count;
                }
                Ok(())
            }
        }
    }
}

/// The directory a file lies in.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The object in a settings file; none when there is no such file.
fn settings(path: &Path) -> Result<Option<Map<String, Value>>> {
    match path.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => json::object(path, json::MAX_SETTINGS_BYTES).map(Some),
    }
}

fn stated_type(path: &Path) -> Result<Option<String>> {
    match settings(path)?.as_mut().and_then(|meta| meta.remove("llama_type")) {
        None => Ok(None),
        Some(Value::String(name)) => Ok(Some(name)),
        Some(_) => Err(ConvertError::invalid(path, "has a llama_type that is not text", "repair the file, or state the type yourself")),
    }
}

fn check_name(file: &Source, name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        let what = format!("names a tensor by {} bytes of text that are no proper name", name.len());
        return Err(ConvertError::invalid(file.path(), what, "re-save the checkpoint with proper names").of_tensor(name));
    }
    Ok(())
}

fn note_skipped(file: &Source, names: &[String], notes: &mut Vec<String>) {
    if !names.is_empty() {
        notes.push(format!("{}: integers or booleans, not converted: {}", file.path().display(), some(names)));
    }
}

/// The first few of some names, printable.
fn some(names: &[String]) -> String {
    let mut text = names.iter().take(4).map(|n| printable(n)).collect::<Vec<_>>().join(", ");
    if names.len() > 4 {
        text += &format!(" and {} more", names.len() - 4);
    }
    text
}
