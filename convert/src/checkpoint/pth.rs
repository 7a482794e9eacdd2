//! One `.pth` file: a zip archive with a pickle that names tensors and one entry per storage.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::collections::HashMap;
use std::sync::Arc;

use sphinx_quant::error::printable;

use super::pickle::{self, Element as Stated, Pickle, Value};
use super::source::Source;
use super::stored::{Element, Layout, Storage, Stored};
use super::zip::{self, Entry};
use super::{Dtype, MAX_TENSORS, Tensors};
use crate::error::{ConvertError, Result};

const RESAVE: &str = "load it with torch and re-save the state with torch.save, whose zip format is the one that is read";
const AGAIN: &str = "get the file again, or re-save it with torch.save";

/// Reads names, shapes and places of all tensors; data is left where it is.
///
/// Integers and booleans are left out; their names come second. `wrapped`: the state may lie under a top-level key `model`. `prefix` is put in front of every name.
///
/// # Errors
/// [`ConvertError::Invalid`] for anything but a zip archive of tensors that lie within their storages.
pub(super) fn tensors(file: &Arc<Source>, wrapped: bool, prefix: &str, notes: &mut Vec<String>) -> Result<(Tensors, Vec<String>)> {
    recognise(file)?;
    let entries = zip::entries(file)?;
    let bad = |what: String, remedy: &str| ConvertError::invalid(file.path(), what, remedy);

    let mut pickles = entries.iter().filter_map(|e| e.name.strip_suffix("/data.pkl").map(|stem| (stem, e)));
    let Some((stem, description)) = pickles.next() else {
        return Err(bad("is a zip archive without data.pkl".into(), RESAVE));
    };
    if pickles.next().is_some() {
        return Err(bad("holds more than one data.pkl".into(), RESAVE));
    }
    let inside: HashMap<&str, &Entry> = entries.iter().filter_map(|e| Some((e.name.strip_prefix(stem)?.strip_prefix('/')?, e))).collect();
    if inside.keys().any(|name| *name == "constants.pkl" || name.starts_with("code/")) {
        return Err(bad("is a TorchScript archive (a program, not a state)".into(), RESAVE));
    }
    if let Some(order) = inside.get("byteorder") {
        let order = small(file, order, 64)?;
        if order != b"little" {
            let found = printable(&String::from_utf8_lossy(&order));
            return Err(bad(format!("was saved in {found}-endian byte order; little is read"), RESAVE));
        }
    }

    let stream = small(file, description, pickle::MAX_STREAM_BYTES as u64)?;
    let made = pickle::unpickle(&stream)
        .map_err(|fault| bad(fault.what, fault.remedy).at(description.start.saturating_add(fault.offset as u64)))?;
    collect(file, &made, &inside, wrapped, prefix, notes)
}

/// Refuses what is no zip archive, saying what it is if that can be told.
fn recognise(file: &Source) -> Result<()> {
    let head = file.read_vec(0, file.bytes().min(512) as usize)?;
    let starts = |magic: &[u8]| head.starts_with(magic);
    let (what, remedy) = if starts(b"PK\x03\x04") || starts(b"PK\x05\x06") {
        return Ok(());
    } else if head.is_empty() {
        ("is empty", "get the file again; its download is probably incomplete")
    } else if head.get(257..262) == Some(b"ustar") || head.iter().take(16).eq([0u8; 16].iter()) {
        ("is no zip archive (perhaps a tar archive, torch's first format, or a hole)", RESAVE)
    } else if starts(&[0x80, 2, 0x8a, 10]) || starts(&[0x80]) {
        ("is a legacy (non-zip) torch file", RESAVE)
    } else if starts(b"version https://git-lfs") {
        ("is a git-lfs pointer, not the file itself", "run git lfs pull")
    } else if starts(b"GGUF") {
        ("is a GGUF file, not a checkpoint", "give it to a command that takes a model")
    } else if starts(b"<") {
        ("looks like a web page", "get the file again")
    } else if head.get(8) == Some(&b'{') {
        ("looks like a safetensors file", "rename it to end in .safetensors")
    } else {
        ("is no zip archive", AGAIN)
    };
    Err(ConvertError::invalid(file.path(), what, remedy))
}

/// Reads a whole entry of at most `most` bytes and compares its checksum.
fn small(file: &Source, entry: &Entry, most: u64) -> Result<Vec<u8>> {
    let bad = |what: &str| ConvertError::invalid(file.path(), format!("entry {} {what}", printable(&entry.name)), AGAIN).at(entry.start);
    if entry.bytes > most {
        return Err(bad(&format!("is {} bytes long, at most {most} are read", entry.bytes)));
    }
    let data = file.read_vec(entry.start, entry.bytes as usize)?;
    if crc32fast::hash(&data) != entry.crc32 {
        return Err(bad("does not match its checksum (CRC-32)"));
    }
    Ok(data)
}

fn collect(
    file: &Arc<Source>,
    made: &Pickle,
    inside: &HashMap<&str, &Entry>,
    wrapped: bool,
    prefix: &str,
    notes: &mut Vec<String>,
) -> Result<(Tensors, Vec<String>)> {
    let bad = |what: String| ConvertError::invalid(file.path(), what, AGAIN);
    let Some(mut state) = made.dict(made.root) else { return Err(bad("holds no dictionary of tensors".into())) };
    if wrapped {
        let inner: Vec<_> = state.iter().filter(|(key, _)| *key == Value::Str("model")).collect();
        match inner[..] {
            [] => {}
            [(_, value)] => state = made.dict(*value).unwrap_or(state),
            _ => return Err(bad("has the key \"model\" twice".into())),
        }
    }

    let mut storages: HashMap<&str, Arc<Storage>> = HashMap::new();
    let mut out = Tensors::new();
    let (mut skipped, mut no_tensors) = (Vec::new(), Vec::new());
    for (key, value) in state {
        let Value::Str(key) = key else { return Err(bad("has a key that is not text in its table of tensors".into())) };
        let Value::Tensor(id) = value else {
            no_tensors.push((*key).to_owned());
            continue;
        };
        super::check_name(file, key)?;
        let name = format!("{prefix}{key}");
        let wrong = |what: String| bad(what).of_tensor(&name);
        let tensor = made.tensors.get(*id as usize);
        let Some((tensor, storage)) = tensor.and_then(|t| Some((t, made.storages.get(t.storage as usize)?))) else {
            return Err(wrong("refers to nothing".into()));
        };
        let element = match (storage.element, tensor.element) {
            (Some(a), None) => a,
            (Some(a), Some(b)) if a == b => a,
            (None, Some(b)) => b,
            _ => return Err(wrong("does not state one element type".into())),
        };
        let Some(entry) = inside.get(format!("data/{}", storage.key).as_str()) else {
            return Err(wrong(format!("its storage, entry data/{}, is missing from the archive", printable(storage.key))));
        };
        let wrong = |what: String| bad(what).of_tensor(&name).at(entry.start);
        let unit = if storage.element.is_some() { element.bytes() } else { 1 };
        let stated = u64::try_from(storage.elements).ok().and_then(|n| n.checked_mul(unit));
        if stated != Some(entry.bytes) {
            return Err(wrong(format!(
                "its storage should hold {} elements of {unit} bytes, its entry {} bytes",
                storage.elements, entry.bytes
            )));
        }
        let element = match element {
            Stated::F32 => Element::Float(Dtype::F32),
            Stated::F16 => Element::Float(Dtype::F16),
            Stated::BF16 => Element::Float(Dtype::BF16),
            Stated::F64 | Stated::F8 | Stated::Complex64 | Stated::Complex128 => Element::Other(format!("{element:?}"), element.bytes()),
            _ => {
                skipped.push(name);
                continue;
            }
        };
        let data = storages
            .entry(storage.key)
            .or_insert_with(|| Arc::new(Storage::new(file.clone(), entry.start, entry.bytes, Some(entry.crc32))))
            .clone();
        let layout = Layout::from_pickle(tensor.offset, &tensor.shape, &tensor.stride).map_err(wrong)?;
        let stored = Stored::new(element, layout, data).map_err(wrong)?;
        if out.insert(name.clone(), Arc::new(stored)).is_some() {
            return Err(wrong("comes twice".into()));
        }
        if out.len() > MAX_TENSORS {
            return Err(bad(format!("holds more than {MAX_TENSORS} tensors")));
        }
    }
    if out.is_empty() {
        return Err(bad("holds no tensors that can be read".into()));
    }
    if !no_tensors.is_empty() {
        notes.push(format!("{}: not tensors, ignored: {}", file.path().display(), super::some(&no_tensors)));
    }
    Ok((out, skipped))
}
