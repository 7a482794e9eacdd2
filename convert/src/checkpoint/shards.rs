//! Which files make a checkpoint, told from their names alone.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use sphinx_quant::error::printable;

use super::source::Source;
use super::{Tensors, json, pth, safetensors};
use crate::error::{ConvertError, Result};

const INDEX: &str = "model.safetensors.index.json";
const EXPECTED: &str = "a checkpoint directory holds consolidated.RR-of-MM.model.pth, consolidated.RR.pth or model*.safetensors";
const FETCH: &str = "put all shards of one checkpoint into the directory, and nothing else";

/// One rank of a model-parallel checkpoint: usually one file.
pub(super) struct Rank {
    /// The file, or of several files the directory.
    pub path: PathBuf,
    pub sources: Vec<Arc<Source>>,
    pub tensors: Tensors,
    /// Integers and booleans, which are not converted.
    pub skipped: Vec<String>,
}

/// What a file's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Named {
    /// `consolidated.RR-of-MM.model.pth`
    Model { rank: usize, of: usize },
    /// `consolidated.RR-of-MM.model-diff.pth`
    Diff,
    /// `consolidated.RR.pth`
    Meta { rank: usize },
    /// `model-NNNNN-of-MMMMM.safetensors`
    Part { part: usize, of: usize },
    /// Any other `*.safetensors`, and `model.safetensors`
    Safetensors,
    /// [`INDEX`]
    Index,
}

/// Exactly `digits` decimal digits.
fn number(text: &str, digits: usize) -> Option<usize> {
    (text.len() == digits && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// The whole name must match; training leftovers (`.optimizer.pth`, `.other.pth`) match nothing.
fn named(name: &str) -> Option<Named> {
    if name == INDEX {
        return Some(Named::Index);
    }
    if let Some(stem) = name.strip_suffix(".safetensors") {
        let part = stem.strip_prefix("model-").and_then(|numbers| {
            let (part, of) = numbers.split_once("-of-")?;
            Some(Named::Part { part: number(part, 5)?, of: number(of, 5)? })
        });
        return Some(part.unwrap_or(Named::Safetensors));
    }
    let middle = name.strip_prefix("consolidated.")?.strip_suffix(".pth")?;
    if let Some(rank) = number(middle, 2) {
        return Some(Named::Meta { rank });
    }
    let (numbers, kind) = middle.split_once('.')?;
    let (rank, of) = numbers.split_once("-of-")?;
    let (rank, of) = (number(rank, 2)?, number(of, 2)?);
    match kind {
        "model" => Some(Named::Model { rank, of }),
        "model-diff" => Some(Named::Diff),
        _ => None,
    }
}

/// Opens a directory's checkpoint, ranks in order.
pub(super) fn directory(folder: &Path, notes: &mut Vec<String>) -> Result<Vec<Rank>> {
    let bad = |what: String, remedy: &str| ConvertError::invalid(folder, what, remedy);
    let mut found: BTreeMap<Named, Vec<String>> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(|e| ConvertError::io(folder, e))? {
        let name = entry.map_err(|e| ConvertError::io(folder, e))?.file_name();
        // A name that is not UTF-8 is none of ours.
        if let Some((kind, name)) = name.to_str().and_then(|n| Some((named(n)?, n))) {
            found.entry(kind).or_default().push(name.to_owned());
        }
    }
    let some = |test: fn(&Named) -> bool| found.keys().any(test);
    let formats: Vec<&str> = [
        (some(|k| matches!(k, Named::Model { .. })), "consolidated.RR-of-MM.model.pth"),
        (some(|k| matches!(k, Named::Diff)), "consolidated.RR-of-MM.model-diff.pth"),
        (some(|k| matches!(k, Named::Meta { .. })), "consolidated.RR.pth"),
        (some(|k| matches!(k, Named::Part { .. } | Named::Safetensors | Named::Index)), "*.safetensors"),
    ]
    .into_iter()
    .filter_map(|(is, name)| is.then_some(name))
    .collect();
    match formats[..] {
        [] => return Err(bad("holds no checkpoint files".into(), EXPECTED)),
        [_] => {}
        [a, b, ..] => return Err(bad(format!("holds files of two formats, {a} and {b}"), "keep one of them in the directory")),
    }
    if some(|k| matches!(k, Named::Diff)) {
        return Err(bad("holds a delta (model-diff), which is not supported".into(), "add it to its base with the public tools first"));
    }
    if some(|k| matches!(k, Named::Part { .. } | Named::Safetensors | Named::Index)) {
        return Ok(vec![safetensors_directory(folder, &found, notes)?]);
    }

    // The number of shards is the number of matching files; all of their names must be there.
    let count = found.values().map(Vec::len).sum::<usize>();
    let meta = some(|k| matches!(k, Named::Meta { .. }));
    let of = found.keys().map(|k| if let Named::Model { of, .. } = k { *of } else { count }).max().unwrap_or(count).max(count);
    let expected: Vec<String> = (0..of.min(100))
        .map(|rank| if meta { format!("consolidated.{rank:02}.pth") } else { format!("consolidated.{rank:02}-of-{of:02}.model.pth") })
        .collect();
    let present: BTreeSet<&String> = found.values().flatten().collect();
    let missing: Vec<String> = expected.iter().filter(|name| !present.contains(name)).cloned().collect();
    let odd: Vec<String> = present.iter().filter(|name| !expected.contains(name)).map(|n| (*n).clone()).collect();
    if !odd.is_empty() {
        return Err(bad(format!("holds {count} shards, among them {}, which does not belong to {of}", super::some(&odd)), FETCH));
    }
    if !missing.is_empty() {
        let there: Vec<String> = present.iter().map(|n| (*n).clone()).collect();
        return Err(bad(format!("holds {}, but {} is missing", super::some(&there), super::some(&missing)), FETCH));
    }
    let ranks = expected.iter().map(|name| pth_rank(&folder.join(name), !meta, if meta { "llma." } else { "" }, notes));
    let ranks = ranks.collect::<Result<Vec<_>>>()?;
    alike(&ranks, notes)?;
    Ok(ranks)
}

/// Opens one file as a checkpoint of its own. `alone`: a shard of several is refused.
pub(super) fn file(path: &Path, alone: bool, notes: &mut Vec<String>) -> Result<Rank> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let kind = named(name);
    let beside = |n: usize| path.with_file_name(format!("consolidated.{n:02}.pth")).exists();
    let shard = match kind {
        Some(Named::Model { of, .. }) => of != 1,
        Some(Named::Meta { rank }) => rank != 0 || beside(1),
        Some(Named::Part { of, .. }) => of != 1,
        _ => false,
    };
    if shard && alone {
        return Err(ConvertError::invalid(path, "is one shard of several", "give the directory that holds them all"));
    }
    if shard {
        notes.push(format!("{}: one shard of several; shapes are the shard's", path.display()));
    }
    match kind {
        Some(Named::Diff) => Err(ConvertError::invalid(path, "is a delta (model-diff), which is not supported", FETCH)),
        Some(Named::Index) => Err(ConvertError::invalid(path, "is an index, not a checkpoint", "give the directory that holds it")),
        Some(Named::Part { .. } | Named::Safetensors) => safetensors_rank(path, notes),
        Some(Named::Meta { .. }) => pth_rank(path, false, "llma.", notes),
        Some(Named::Model { .. }) | None => pth_rank(path, true, "", notes),
    }
}

fn pth_rank(path: &Path, wrapped: bool, prefix: &str, notes: &mut Vec<String>) -> Result<Rank> {
    rank_of(Source::open(path)?, wrapped, prefix, notes)
}

/// A `.pth` rank from an opened source.
pub(super) fn rank_of(source: Source, wrapped: bool, prefix: &str, notes: &mut Vec<String>) -> Result<Rank> {
    let source = Arc::new(source);
    let (tensors, skipped) = pth::tensors(&source, wrapped, prefix, notes)?;
    super::note_skipped(&source, &skipped, notes);
    Ok(Rank { path: source.path().to_owned(), sources: vec![source], tensors, skipped })
}

fn safetensors_rank(path: &Path, notes: &mut Vec<String>) -> Result<Rank> {
    let source = Arc::new(Source::open(path)?);
    let (tensors, skipped) = safetensors::tensors(&source)?;
    super::note_skipped(&source, &skipped, notes);
    Ok(Rank { path: path.to_owned(), sources: vec![source], tensors, skipped })
}

/// Different files, and the same keys in each (experts aside, which have one owner).
fn alike(ranks: &[Rank], notes: &mut Vec<String>) -> Result<()> {
    let mut inodes = HashMap::new();
    for rank in ranks {
        for source in &rank.sources {
            if let Some(other) = source.inode().and_then(|inode| inodes.insert(inode, &rank.path)) {
                let what = format!("is the same file as {}", shown(other));
                return Err(ConvertError::invalid(&rank.path, what, FETCH));
            }
        }
    }
    let Some((first, others)) = ranks.split_first() else { return Ok(()) };
    for other in others {
        for (a, b) in [(first, other), (other, first)] {
            if let Some(name) = a.tensors.keys().find(|n| !b.tensors.contains_key(*n) && !n.contains(".experts.")) {
                let what = format!("has a tensor that {} lacks; the shards are not of one checkpoint", shown(&b.path));
                return Err(ConvertError::invalid(&a.path, what, FETCH).of_tensor(name));
            }
        }
        let same = first.tensors.iter().all(|(name, t)| {
            t.crc32().is_some() && t.crc32() == other.tensors.get(name).and_then(|o| o.crc32()) //
        });
        if same {
            notes.push(format!("{} and {} hold the same data; is one a copy of the other?", shown(&first.path), shown(&other.path)));
        }
    }
    Ok(())
}

/// A file's name, printable.
pub(super) fn shown(path: &Path) -> String {
    printable(&path.file_name().unwrap_or(path.as_os_str()).to_string_lossy())
}

/// Several files, each with some of the tensors.
fn safetensors_directory(folder: &Path, found: &BTreeMap<Named, Vec<String>>, notes: &mut Vec<String>) -> Result<Rank> {
    let bad = |what: String| ConvertError::invalid(folder, what, FETCH);
    let parts: Vec<(usize, usize)> =
        found.keys().filter_map(|k| if let Named::Part { part, of } = k { Some((*part, *of)) } else { None }).collect();
    let plain: Vec<&String> = found.get(&Named::Safetensors).into_iter().flatten().collect();
    let mut index = None;
    let files: BTreeSet<String> = if found.contains_key(&Named::Index) {
        let map = read_index(&folder.join(INDEX))?;
        let files = map.values().cloned().collect();
        index = Some(map);
        files
    } else if plain.iter().any(|n| *n == "model.safetensors") {
        if !parts.is_empty() {
            return Err(bad("holds model.safetensors and numbered parts of another".into()));
        }
        BTreeSet::from(["model.safetensors".to_owned()])
    } else if let Some(&(_, of)) = parts.first() {
        let expected: BTreeSet<String> = (1..=of.min(parts.len() + 1)).map(|p| format!("model-{p:05}-of-{of:05}.safetensors")).collect();
        let present: BTreeSet<String> = parts.iter().map(|(p, of)| format!("model-{p:05}-of-{of:05}.safetensors")).collect();
        if expected != present {
            let missing: Vec<String> = expected.symmetric_difference(&present).cloned().collect();
            return Err(bad(format!("holds {} of {of} safetensors parts; see {}", parts.len(), super::some(&missing))));
        }
        expected
    } else {
        plain.iter().map(|n| (*n).clone()).collect()
    };

    let mut rank = Rank { path: folder.to_owned(), sources: Vec::new(), tensors: Tensors::new(), skipped: Vec::new() };
    for name in &files {
        let one = safetensors_rank(&folder.join(name), notes)?;
        for (tensor, stored) in one.tensors {
            if let Some(other) = rank.tensors.insert(tensor.clone(), stored) {
                let what = format!("has a tensor that {} has too", shown(other.file().path()));
                return Err(ConvertError::invalid(&one.path, what, FETCH).of_tensor(&tensor));
            }
        }
        rank.sources.extend(one.sources);
        rank.skipped.extend(one.skipped);
    }
    for (tensor, file) in index.iter().flatten() {
        match rank.tensors.get(tensor) {
            Some(stored) if stored.file().path() == folder.join(file) => {}
            None if rank.skipped.contains(tensor) => {}
            _ => {
                let what = format!("says that {} has a tensor that it lacks", printable(file));
                return Err(ConvertError::invalid(&folder.join(INDEX), what, "get the index and the files again").of_tensor(tensor));
            }
        }
    }
    Ok(rank)
}

/// Tensor → file, each a plain name of a file that exists in the same directory.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let bad = |what: String| ConvertError::invalid(path, what, "get the index again");
    let index = json::object(path, json::MAX_INDEX_BYTES)?;
    let Some(Value::Object(map)) = index.get("weight_map") else { return Err(bad("has no object \"weight_map\"".into())) };
    let mut out = BTreeMap::new();
    let mut known = BTreeSet::new();
    for (tensor, file) in map {
        let plain = file.as_str().filter(|f| f.ends_with(".safetensors") && !f.contains(['/', '\\', '\0']) && f.len() <= 255);
        let Some(file) = plain else {
            let what = format!("points to {}, which is not the plain name of a .safetensors file", printable(&file.to_string()));
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
