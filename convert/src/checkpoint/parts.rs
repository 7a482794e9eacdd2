//! A checkpoint in files that each hold some of the tensors, as Hugging Face lays it out: `model.safetensors` or
//! `pytorch_model.bin`, or numbered parts of either with an index beside them.
//!
//! The index is a convenience of the loader it was written for; here it is checked against the files. Every tensor is in
//! exactly one file, the one the index says, and the files lie in the same directory.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use sphinx_quant::error::printable;

use super::shards::{FETCH, Rank, number, pth_rank, safetensors_rank, shown};
use super::{MAX_TENSORS, Tensors, json, some};
use crate::error::{ConvertError, Result};

/// The container of every file of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Format {
    Safetensors,
    /// An archive of `torch.save`, the state itself at its top.
    Torch,
}

/// What the name of a file of a set says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum File {
    /// `model-NNNNN-of-MMMMM.safetensors`, `pytorch_model-NNNNN-of-MMMMM.bin`
    Part { part: usize, of: usize },
    /// `model.safetensors` and any other `*.safetensors`, `pytorch_model.bin`
    Whole,
    /// `model.safetensors.index.json`, `pytorch_model.bin.index.json`
    Index,
}

impl Format {
    fn stem(self) -> &'static str {
        match self {
            Format::Safetensors => "model",
            Format::Torch => "pytorch_model",
        }
    }

    /// With its dot.
    fn extension(self) -> &'static str {
        match self {
            Format::Safetensors => ".safetensors",
            Format::Torch => ".bin",
        }
    }

    fn whole(self) -> String {
        format!("{}{}", self.stem(), self.extension())
    }

    fn index(self) -> String {
        format!("{}.index.json", self.whole())
    }

    fn part(self, part: usize, of: usize) -> String {
        format!("{}-{part:05}-of-{of:05}{}", self.stem(), self.extension())
    }

    /// What users know its files by.
    pub fn pattern(self) -> &'static str {
        match self {
            Format::Safetensors => "*.safetensors",
            Format::Torch => "pytorch_model*.bin",
        }
    }

    /// Reads one file's description.
    pub fn open(self, path: &Path, notes: &mut Vec<String>) -> Result<Rank> {
        match self {
            Format::Safetensors => safetensors_rank(path, notes),
            Format::Torch => pth_rank(path, false, "", notes),
        }
    }
}

/// The role of a file, told from its whole name.
pub(super) fn named(name: &str) -> Option<(Format, File)> {
    for format in [Format::Safetensors, Format::Torch] {
        if name == format.index() {
            return Some((format, File::Index));
        }
        let Some(stem) = name.strip_suffix(format.extension()) else { continue };
        let part = stem.strip_prefix(format.stem()).and_then(|s| s.strip_prefix('-')).and_then(|numbers| {
            let (part, of) = numbers.split_once("-of-")?;
            Some(File::Part { part: number(part, 5)?, of: number(of, 5)? })
        });
        return match part {
            Some(part) => Some((format, part)),
            // Of torch's own files the extension says nothing: optimisers and settings carry it too.
            None if format == Format::Safetensors || stem == format.stem() => Some((format, File::Whole)),
            None => None,
        };
    }
    None
}

/// Opens the set of this format in `folder`, whose files `found` names.
pub(super) fn directory(folder: &Path, format: Format, found: &[(File, String)], notes: &mut Vec<String>) -> Result<Rank> {
    let bad = |what: String| ConvertError::invalid(folder, what, FETCH);
    let index = found.iter().any(|(file, _)| *file == File::Index);
    let index = index.then(|| read_index(&folder.join(format.index()), format)).transpose()?;
    let files = match &index {
        Some(map) => map.values().cloned().collect(),
        None => unlisted(folder, format, found)?,
    };

    let mut rank = Rank { path: folder.to_owned(), sources: Vec::new(), tensors: Tensors::new(), skipped: Vec::new() };
    for name in &files {
        let one = format.open(&folder.join(name), notes)?;
        for (tensor, stored) in one.tensors {
            if let Some(other) = rank.tensors.insert(tensor.clone(), stored) {
                let what = format!("has a tensor that {} has too", shown(other.file().path()));
                return Err(ConvertError::invalid(&one.path, what, FETCH).of_tensor(&tensor));
            }
        }
        if rank.tensors.len() > MAX_TENSORS {
            return Err(bad(format!("holds more than {MAX_TENSORS} tensors")));
        }
        rank.sources.extend(one.sources);
        rank.skipped.extend(one.skipped);
    }
    let odd: Vec<String> =
        found.iter().filter(|(file, name)| matches!(file, File::Part { .. }) && !files.contains(name)).map(|(_, n)| n.clone()).collect();
    if !odd.is_empty() {
        return Err(bad(format!("holds {}, which its index does not mention", some(&odd))));
    }
    if let Some(index) = index {
        check_index(folder, format, &index, &rank, notes)?;
    }
    Ok(rank)
}

/// The files of a set without an index: the whole, else all parts, else whatever there is.
fn unlisted(folder: &Path, format: Format, found: &[(File, String)]) -> Result<BTreeSet<String>> {
    let bad = |what: String| Err(ConvertError::invalid(folder, what, FETCH));
    let parts: Vec<(usize, usize)> =
        found.iter().filter_map(|(file, _)| if let File::Part { part, of } = file { Some((*part, *of)) } else { None }).collect();
    let whole = format.whole();
    if found.iter().any(|(_, name)| *name == whole) {
        if !parts.is_empty() {
            return bad(format!("holds {whole} and numbered parts of another"));
        }
        return Ok(BTreeSet::from([whole]));
    }
    let Some(&(_, of)) = parts.first() else { return Ok(found.iter().map(|(_, name)| name.clone()).collect()) };
    let expected: BTreeSet<String> = (1..=of.min(parts.len() + 1)).map(|p| format.part(p, of)).collect();
    let present: BTreeSet<String> = parts.iter().map(|&(p, of)| format.part(p, of)).collect();
    if expected != present {
        let missing: Vec<String> = expected.symmetric_difference(&present).cloned().collect();
        let kind = format.extension().trim_start_matches('.');
        return bad(format!("holds {} of {of} {kind} parts; see {}", parts.len(), some(&missing)));
    }
    Ok(expected)
}

/// Every tensor of the index lies where it says; what it does not list is worth a note.
fn check_index(folder: &Path, format: Format, index: &BTreeMap<String, String>, rank: &Rank, notes: &mut Vec<String>) -> Result<()> {
    let path = folder.join(format.index());
    for (tensor, file) in index {
        let what = match rank.tensors.get(tensor) {
            Some(stored) if stored.file().path() == folder.join(file) => continue,
            Some(stored) => format!("says that {} has a tensor that is in {}", printable(file), shown(stored.file().path())),
            None if rank.skipped.contains(tensor) => continue,
            None => format!("says that {} has a tensor that it lacks", printable(file)),
        };
        return Err(ConvertError::invalid(&path, what, "get the index and the files again").of_tensor(tensor));
    }
    let unlisted: Vec<String> = rank.tensors.keys().filter(|name| !index.contains_key(*name)).cloned().collect();
    if !unlisted.is_empty() {
        notes.push(format!("{}: the files hold tensors that it does not list: {}", path.display(), some(&unlisted)));
    }
    Ok(())
}

/// Tensor → file, each a plain name of a file that exists in the same directory.
fn read_index(path: &Path, format: Format) -> Result<BTreeMap<String, String>> {
    let bad = |what: String| ConvertError::invalid(path, what, "get the index again");
    let index = json::object(path, json::MAX_INDEX_BYTES)?;
    let Some(Value::Object(map)) = index.get("weight_map") else { return Err(bad("has no object \"weight_map\"".into())) };
    let extension = format.extension();
    let mut out = BTreeMap::new();
    let mut known = BTreeSet::new();
    for (tensor, file) in map {
        let plain = file.as_str().filter(|f| f.ends_with(extension) && !f.contains(['/', '\\', '\0']) && f.len() <= 255);
        let Some(file) = plain else {
            let what = format!("points to {}, which is not the plain name of a {extension} file", printable(&file.to_string()));
            return Err(bad(what).of_tensor(tensor));
        };
        if known.insert(file.to_owned()) && path.with_file_name(file).symlink_metadata().is_err() {
            return Err(bad(format!("points to {}, which is missing", printable(file))).of_tensor(tensor));
        }
        out.insert(tensor.clone(), file.to_owned());
    }
    if out.is_empty() {
        return Err(bad("lists no tensors".into()));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_file_is() {
        use File::*;
        for (name, want) in [
            ("model.safetensors", Some((Format::Safetensors, Whole))),
            ("adapter.safetensors", Some((Format::Safetensors, Whole))),
            ("model-00002-of-00010.safetensors", Some((Format::Safetensors, Part { part: 2, of: 10 }))),
            ("model.safetensors.index.json", Some((Format::Safetensors, Index))),
            ("pytorch_model.bin", Some((Format::Torch, Whole))),
            ("pytorch_model-00001-of-00002.bin", Some((Format::Torch, Part { part: 1, of: 2 }))),
            ("pytorch_model.bin.index.json", Some((Format::Torch, Index))),
            ("pytorch_model-1-of-2.bin", None),
            ("pytorch_model-00001-of-00002.bin.partial", None),
            ("training_args.bin", None),
            ("optimizer.bin", None),
            ("consolidated.00.pth", None),
        ] {
            assert_eq!(named(name), want, "{name}");
        }
    }
}
