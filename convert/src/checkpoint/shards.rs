//! Which files make a checkpoint, told from their names alone.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sphinx_quant::error::printable;

use super::parts::{self, File, Format};
use super::source::Source;
use super::{Tensors, pth, safetensors};
use crate::error::{ConvertError, Result};

const EXPECTED: &str =
    "a checkpoint directory holds consolidated.RR-of-MM.model.pth, consolidated.RR.pth, model*.safetensors or pytorch_model*.bin";
pub(super) const FETCH: &str = "put all shards of one checkpoint into the directory, and nothing else";

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
    /// Belongs to a set of files that each hold some of the tensors.
    Set(Format, File),
}

/// Exactly `digits` decimal digits.
pub(super) fn number(text: &str, digits: usize) -> Option<usize> {
    (text.len() == digits && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// The whole name must match; training leftovers (`.optimizer.pth`, `.other.pth`) match nothing.
fn named(name: &str) -> Option<Named> {
    if let Some((format, file)) = parts::named(name) {
        return Some(Named::Set(format, file));
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
    let of_set = |found: &BTreeMap<Named, Vec<String>>, wanted: Format| found.keys().any(|k| matches!(k, Named::Set(f, _) if *f == wanted));
    if of_set(&found, Format::Safetensors) && of_set(&found, Format::Torch) {
        // Many directories hold the same weights twice; what needs no unpickling is taken, as transformers does.
        found.retain(|k, _| !matches!(k, Named::Set(Format::Torch, _)));
        let (taken, left) = (Format::Safetensors.pattern(), Format::Torch.pattern());
        notes.push(format!("{}: holds {taken} and {left}; {taken} is taken", folder.display()));
    }
    let some = |test: fn(&Named) -> bool| found.keys().any(test);
    let formats: Vec<&str> = [
        (some(|k| matches!(k, Named::Model { .. })), "consolidated.RR-of-MM.model.pth"),
        (some(|k| matches!(k, Named::Diff)), "consolidated.RR-of-MM.model-diff.pth"),
        (some(|k| matches!(k, Named::Meta { .. })), "consolidated.RR.pth"),
        (of_set(&found, Format::Safetensors), Format::Safetensors.pattern()),
        (of_set(&found, Format::Torch), Format::Torch.pattern()),
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
    if let Some(format) = found.keys().find_map(|k| if let Named::Set(format, _) = k { Some(*format) } else { None }) {
        let file = |(k, names): (&Named, &Vec<String>)| {
            let Named::Set(_, file) = *k else { return Vec::new() };
            names.iter().map(|name| (file, name.clone())).collect()
        };
        let files: Vec<(File, String)> = found.iter().flat_map(file).collect();
        return Ok(vec![parts::directory(folder, format, &files, notes)?]);
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
        Some(Named::Set(_, File::Part { of, .. })) => of != 1,
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
        Some(Named::Set(_, File::Index)) => {
            Err(ConvertError::invalid(path, "is an index, not a checkpoint", "give the directory that holds it"))
        }
        Some(Named::Set(format, _)) => format.open(path, notes),
        Some(Named::Meta { .. }) => pth_rank(path, false, "llma.", notes),
        Some(Named::Model { .. }) | None => pth_rank(path, true, "", notes),
    }
}

pub(super) fn pth_rank(path: &Path, wrapped: bool, prefix: &str, notes: &mut Vec<String>) -> Result<Rank> {
    rank_of(Source::open(path)?, wrapped, prefix, notes)
}

/// A `.pth` rank from an opened source.
pub(super) fn rank_of(source: Source, wrapped: bool, prefix: &str, notes: &mut Vec<String>) -> Result<Rank> {
    let source = Arc::new(source);
    let (tensors, skipped) = pth::tensors(&source, wrapped, prefix, notes)?;
    super::note_skipped(&source, &skipped, notes);
    Ok(Rank { path: source.path().to_owned(), sources: vec![source], tensors, skipped })
}

pub(super) fn safetensors_rank(path: &Path, notes: &mut Vec<String>) -> Result<Rank> {
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
