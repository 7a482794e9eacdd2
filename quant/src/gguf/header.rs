//! The parser: bytes to metadata and tensor table, every bound checked.
//!
//! A declared number is never believed: a count is compared with the limits below and with the bytes present before
//! anything is allocated for it, and every sum of numbers from the file is checked. Memory stays below
//! 64 MB + 4 × the bytes of the metadata. The digest that our own files carry is compared here too, before the tensor
//! table is looked at, so that a damaged header is called damaged.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use xxhash_rust::xxh3::Xxh3;

use super::keys::{self, Half};
use super::value::{Array, Value};
use crate::GgmlType;
use crate::error::printable;

/// First bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is read and written.
pub const VERSION: u32 = 3;
/// Alignment of tensor data unless the file says otherwise.
pub const DEFAULT_ALIGNMENT: u32 = 32;
/// Most metadata keys in a file.
pub const MAX_KEYS: u64 = 65_536;
/// Longest key, in bytes.
pub const MAX_KEY_BYTES: u64 = 1024;
/// Longest string value, in bytes.
pub const MAX_STRING_BYTES: u64 = 16 << 20;
/// Most elements of an array.
pub const MAX_ARRAY: u64 = 16 << 20;
/// Most elements of all string arrays of a file together: a short string costs six times its bytes in memory.
pub const MAX_ARRAY_STRINGS: u64 = 1 << 20;
/// Most tensors in a file.
pub const MAX_TENSORS: u64 = 65_536;
/// Most dimensions of a tensor.
pub const MAX_DIMS: u32 = 4;
/// Longest tensor name, in bytes.
pub const MAX_NAME_BYTES: u64 = 255;
/// Largest alignment.
pub const MAX_ALIGNMENT: u32 = 65_536;

const AGAIN: &str = "the file is damaged, or its writer does not keep to GGUF; get or convert it again";
const COMPLETE: &str = "is the download complete?";
const NOT_GGUF: &str = "give a .gguf file; `sphinx convert` makes one from a checkpoint";

/// What is wrong, before the file's name is known.
#[derive(Debug)]
pub(crate) struct Fault {
    pub what: String,
    pub tensor: Option<String>,
    pub offset: Option<u64>,
    pub remedy: &'static str,
}

impl Fault {
    fn new(what: impl Into<String>, remedy: &'static str) -> Fault {
        Fault { what: what.into(), tensor: None, offset: None, remedy }
    }

    fn at(mut self, offset: u64) -> Fault {
        self.offset = Some(offset);
        self
    }

    fn tensor(mut self, name: &str) -> Fault {
        self.tensor = Some(name.to_owned());
        self
    }
}

type Parsed<T> = Result<T, Fault>;

/// One entry of the tensor table, checked.
#[derive(Debug)]
pub(crate) struct Info {
    pub name: String,
    pub ty: GgmlType,
    pub dims: Vec<usize>,
    /// From the start of the file.
    pub start: u64,
    pub bytes: u64,
}

/// Everything before the tensor data.
#[derive(Debug)]
pub(crate) struct Header {
    pub version: u32,
    pub metadata: Vec<(String, Value)>,
    /// Where each value lies in the file.
    pub value_offsets: Vec<u64>,
    /// Indices of `metadata`, by key.
    pub key_order: Vec<u32>,
    pub tensors: Vec<Info>,
    /// Indices of `tensors`, by name.
    pub tensor_order: Vec<u32>,
    /// Indices of `tensors`, by place in the file.
    pub data_order: Vec<u32>,
    pub arch: String,
    pub alignment: u32,
    pub data_offset: u64,
    /// Bytes after the last tensor and its padding.
    pub trailing: u64,
    /// Index in `metadata` of the tensors' checksums.
    pub checksums: Option<usize>,
    /// Index in `metadata` of the experts' checksums, and for each tensor where its own begin.
    pub expert_checksums: Option<(usize, Vec<Option<usize>>)>,
}

/// Parses a whole file. `bytes` may be a map of it: only the part before the tensor data is touched.
pub(crate) fn parse(bytes: &[u8]) -> Parsed<Header> {
    let len = bytes.len() as u64;
    if !bytes.starts_with(&MAGIC) {
        return Err(not_gguf(bytes));
    }
    if bytes.len() < 24 {
        return Err(Fault::new(format!("too short for a GGUF file: {len} bytes"), COMPLETE));
    }
    let mut c = Cursor { bytes, at: 4 };
    let version = c.u32("the version")?;
    if version != VERSION {
        return Err(bad_version(version));
    }
    let tensor_count = c.u64("the tensor count")?;
    let key_count = c.u64("the key count")?;
    if tensor_count > MAX_TENSORS {
        return Err(Fault::new(format!("it declares {tensor_count} tensors; at most {MAX_TENSORS} are read"), AGAIN).at(8));
    }
    if key_count > MAX_KEYS {
        return Err(Fault::new(format!("it declares {key_count} metadata keys; at most {MAX_KEYS} are read"), AGAIN).at(16));
    }

    let mut metadata = Vec::new();
    let mut value_offsets = Vec::new();
    let mut strings = 0;
    for _ in 0..key_count {
        let (key, value, offset) = c.entry(&mut strings)?;
        metadata.push((key, value));
        value_offsets.push(offset);
    }
    let key_order = ordered(&metadata, |(k, _)| k.as_str());
    if let Some(key) = repeated(&metadata, &key_order, |(k, _)| k.as_str()) {
        return Err(Fault::new(format!("key \"{}\" appears twice", printable(key)), AGAIN));
    }
    let find = |key: &str| metadata.iter().position(|(k, _)| k == key);

    let alignment = match find(keys::ALIGNMENT).and_then(|i| metadata.get(i)).map(|(_, v)| v) {
        None => DEFAULT_ALIGNMENT,
        Some(Value::U32(a)) if a.is_power_of_two() && *a <= MAX_ALIGNMENT => *a,
        Some(Value::U32(a)) => {
            let what = format!("{} is {a}; it must be a power of two up to {MAX_ALIGNMENT}", keys::ALIGNMENT);
            return Err(Fault::new(what, AGAIN));
        }
        Some(v) => return Err(Fault::new(format!("{} is of type {}; it must be u32", keys::ALIGNMENT, v.type_name()), AGAIN)),
    };

    let mut raw = Vec::new();
    for _ in 0..tensor_count {
        raw.push(c.tensor()?);
    }
    let end = c.at as u64;
    let data_offset = end.checked_next_multiple_of(u64::from(alignment)).ok_or_else(|| Fault::new("the header is too long", AGAIN))?;

    let ours = check_digest(bytes, &metadata, &value_offsets, data_offset)?;
    let checksums = check_checksum_list(&metadata, raw.len(), ours)?;
    let imatrix = || find(keys::TYPE).and_then(|i| metadata.get(i)).is_some_and(|(_, v)| *v == Value::Str("imatrix".into()));
    let arch = match find(keys::ARCHITECTURE).and_then(|i| metadata.get(i)).map(|(_, v)| v) {
        // llama.cpp's importance matrices state none.
        None if imatrix() => "imatrix".into(),
        Some(Value::Str(s)) if !s.is_empty() => s.clone(),
        Some(Value::Str(_)) => return Err(Fault::new(format!("{} is empty", keys::ARCHITECTURE), AGAIN)),
        Some(v) => return Err(Fault::new(format!("{} is of type {}; it must be str", keys::ARCHITECTURE, v.type_name()), AGAIN)),
        None => return Err(Fault::new(format!("key \"{}\" is missing", keys::ARCHITECTURE), AGAIN)),
    };
    if raw.is_empty() {
        return Err(Fault::new("it has no tensors", "a vocabulary-only file cannot be run; give a whole model"));
    }

    let mut tensors = Vec::new();
    for r in raw {
        tensors.push(check_tensor(r, data_offset, alignment, len)?);
    }
    let tensor_order = ordered(&tensors, |t| t.name.as_str());
    if let Some(name) = repeated(&tensors, &tensor_order, |t| t.name.as_str()) {
        return Err(Fault::new("the tensor appears twice", AGAIN).tensor(name));
    }
    let mut data_order: Vec<u32> = (0..tensors.len() as u32).collect();
    data_order.sort_by_key(|&i| tensors.get(i as usize).map(|t| t.start));
    let last = check_layout(&tensors, &data_order, data_offset, alignment)?;
    if ours && last > len {
        let what = format!("its last padding ends at {last}, past the end of the file ({len})");
        return Err(Fault::new(what, COMPLETE).at(len));
    }

    let expert_checksums = check_expert_list(&metadata, &tensors, ours)?;
    Ok(Header {
        version,
        metadata,
        value_offsets,
        key_order,
        tensors,
        tensor_order,
        data_order,
        arch,
        alignment,
        data_offset,
        trailing: len.saturating_sub(last),
        checksums,
        expert_checksums,
    })
}

/// The order of `items` by name.
fn ordered<T>(items: &[T], name: impl Fn(&T) -> &str) -> Vec<u32> {
    let mut order: Vec<u32> = (0..items.len() as u32).collect();
    order.sort_by(|&a, &b| items.get(a as usize).map(&name).cmp(&items.get(b as usize).map(&name)));
    order
}

/// A name that two of `items` have, given their order.
fn repeated<'a, T>(items: &'a [T], order: &[u32], name: impl Fn(&T) -> &str) -> Option<&'a str> {
    let at = |i: u32| items.get(i as usize).map(&name);
    order.iter().zip(order.iter().skip(1)).find_map(|(&a, &b)| if at(a) == at(b) { at(a) } else { None })
}

/// Reads numbers and strings from the front of the file.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: u64, what: &str) -> Parsed<&'a [u8]> {
        let end = usize::try_from(n).ok().and_then(|n| self.at.checked_add(n));
        let Some((end, piece)) = end.and_then(|end| Some((end, self.bytes.get(self.at..end)?))) else {
            let what = format!("it ends inside {what}: {n} bytes wanted, {} left", self.left());
            return Err(Fault::new(what, COMPLETE).at(self.at as u64));
        };
        self.at = end;
        Ok(piece)
    }

    fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Parsed<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Parsed<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Parsed<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A length and as many bytes of UTF-8.
    fn string(&mut self, limit: u64, what: &str) -> Parsed<&'a str> {
        let start = self.at as u64;
        let n = self.u64(what)?;
        if n > limit {
            return Err(Fault::new(format!("{what} is {n} bytes long; at most {limit} are read"), AGAIN).at(start));
        }
        let bytes = self.take(n, what)?;
        std::str::from_utf8(bytes).map_err(|_| Fault::new(format!("{what} is not UTF-8"), AGAIN).at(start))
    }

    /// A key, its value and where the value starts. `strings` counts the array strings of the file.
    fn entry(&mut self, strings: &mut u64) -> Parsed<(String, Value, u64)> {
        let start = self.at as u64;
        let key = self.string(MAX_KEY_BYTES, "a metadata key")?;
        if key.is_empty() || key.chars().any(char::is_control) {
            let what = if key.is_empty() { "a metadata key is empty" } else { "a metadata key has control characters" };
            return Err(Fault::new(format!("{what}: \"{}\"", printable(key)), AGAIN).at(start));
        }
        let ty = self.u32("a value's type")?;
        let at = self.at as u64;
        let named = || format!("the value of \"{}\"", printable(key));
        let value = self.value(ty, &named, strings)?;
        Ok((key.to_owned(), value, at))
    }

    fn value(&mut self, ty: u32, named: &dyn Fn() -> String, strings: &mut u64) -> Parsed<Value> {
        let at = self.at as u64;
        // The name is put together only when it is needed for a message or a string.
        let w = "a value";
        Ok(match ty {
            0 => Value::U8(u8::from_le_bytes(self.array(w)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(w)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(w)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(w)?)),
            4 => Value::U32(u32::from_le_bytes(self.array(w)?)),
            5 => Value::I32(i32::from_le_bytes(self.array(w)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(w)?)),
            7 => Value::Bool(one_bool(u8::from_le_bytes(self.array(w)?)).ok_or_else(|| bad_bool(named(), at))?),
            8 => Value::Str(self.string(MAX_STRING_BYTES, &named())?.to_owned()),
            Value::ARRAY_ID => Value::Array(self.values(named, strings)?),
            10 => Value::U64(u64::from_le_bytes(self.array(w)?)),
            11 => Value::I64(i64::from_le_bytes(self.array(w)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(w)?)),
            _ => return Err(Fault::new(format!("{} is of type {ty}, unknown to this version", named()), AGAIN).at(at)),
        })
    }

    fn values(&mut self, named: &dyn Fn() -> String, strings: &mut u64) -> Parsed<Array> {
        let at = self.at as u64;
        let ty = self.u32("an array's type")?;
        let n = self.u64("an array's length")?;
        if n > MAX_ARRAY {
            return Err(Fault::new(format!("{} has {n} elements; at most {MAX_ARRAY} are read", named()), AGAIN).at(at));
        }
        Ok(match ty {
            0 => Array::U8(self.numbers(n, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(n, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(n, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(n, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(n, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(n, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(n, f32::from_le_bytes)?),
            7 => {
                let bytes = self.take(n, "an array")?;
                let all: Option<Vec<bool>> = bytes.iter().map(|&b| one_bool(b)).collect();
                Array::Bool(all.ok_or_else(|| bad_bool(named(), at))?)
            }
            8 => {
                *strings = strings.saturating_add(n);
                // Every string has at least its length.
                if *strings > MAX_ARRAY_STRINGS || n.saturating_mul(8) > self.left() as u64 {
                    let what = format!(
                        "{} has {n} strings; {} bytes are left, and at most {MAX_ARRAY_STRINGS} strings are read",
                        named(),
                        self.left()
                    );
                    return Err(Fault::new(what, COMPLETE).at(at));
                }
                let mut all = Vec::with_capacity(n as usize);
                for _ in 0..n {
                    all.push(self.string(MAX_STRING_BYTES, "a string of an array")?.to_owned());
                }
                Array::Str(all)
            }
            Value::ARRAY_ID => return Err(Fault::new(format!("{} is an array of arrays", named()), AGAIN).at(at)),
            10 => Array::U64(self.numbers(n, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(n, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(n, f64::from_le_bytes)?),
            _ => return Err(Fault::new(format!("{} is an array of type {ty}, unknown to this version", named()), AGAIN).at(at)),
        })
    }

    fn numbers<T, const N: usize>(&mut self, n: u64, from: fn([u8; N]) -> T) -> Parsed<Vec<T>> {
        let bytes = self.take(n.saturating_mul(N as u64), "an array")?;
        let (chunks, _) = bytes.as_chunks::<N>();
        Ok(chunks.iter().map(|b| from(*b)).collect())
    }

    /// An entry of the tensor table, not yet held against the rest of the file.
    fn tensor(&mut self) -> Parsed<Raw> {
        let at = self.at as u64;
        let name = self.string(MAX_NAME_BYTES, "a tensor name")?;
        check_name(name).map_err(|what| Fault::new(what, AGAIN).tensor(name).at(at))?;
        let n = self.u32("a tensor's shape")?;
        if !(1..=MAX_DIMS).contains(&n) {
            return Err(Fault::new(format!("it has {n} dimensions; 1 to {MAX_DIMS} are read"), AGAIN).tensor(name).at(at));
        }
        let mut dims = [1u64; MAX_DIMS as usize];
        for d in dims.iter_mut().take(n as usize) {
            *d = self.u64("a tensor's shape")?;
        }
        let ty = self.u32("a tensor's type")?;
        let offset = self.u64("a tensor's offset")?;
        Ok(Raw { name: name.to_owned(), n: n as usize, dims, ty, offset, at })
    }
}

/// An entry of the tensor table as the file has it.
struct Raw {
    name: String,
    n: usize,
    dims: [u64; MAX_DIMS as usize],
    ty: u32,
    offset: u64,
    at: u64,
}

/// What is wrong with a tensor name.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("a tensor has no name")
    } else if name.len() as u64 > MAX_NAME_BYTES {
        Err("the tensor name is longer than 255 bytes")
    } else if name.chars().any(char::is_control) {
        Err("the tensor name has control characters")
    } else if name.starts_with('/') || name.split(['/', '\\']).any(|part| part == "..") {
        Err("the tensor name looks like a path")
    } else {
        Ok(())
    }
}

fn one_bool(b: u8) -> Option<bool> {
    match b {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn bad_bool(named: String, at: u64) -> Fault {
    Fault::new(format!("{named} is a bool that is neither 0 nor 1"), AGAIN).at(at)
}

/// Shape, type and place of one tensor.
fn check_tensor(r: Raw, data_offset: u64, alignment: u32, len: u64) -> Parsed<Info> {
    let fault = |what: String, remedy| Fault::new(what, remedy).tensor(&r.name).at(r.at);
    let ty = GgmlType::from_id(r.ty).ok_or_else(|| {
        let (what, remedy) = unknown_type(r.ty);
        fault(what, remedy)
    })?;
    let shape: Vec<u64> = r.dims.iter().copied().take(r.n).collect();
    let too_large = || fault(format!("shape {shape:?} is too large"), AGAIN);
    if shape.contains(&0) {
        return Err(fault(format!("shape {shape:?} has a zero"), AGAIN));
    }
    let elements = shape.iter().try_fold(1u64, |a, &b| a.checked_mul(b)).filter(|&n| i64::try_from(n).is_ok()).ok_or_else(too_large)?;
    let dims: Vec<usize> = shape.iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>().map_err(|_| too_large())?;
    let cols = dims.first().copied().unwrap_or(0);
    let Some(row_bytes) = ty.row_bytes(cols) else {
        return Err(fault(format!("rows of {cols} elements are no multiple of {ty}'s block of {}", ty.block_len()), AGAIN));
    };
    let rows = elements.checked_div(cols as u64).unwrap_or(0);
    let size = rows.checked_mul(row_bytes as u64).ok_or_else(too_large)?;
    let past = |start: u128| {
        let end = start.saturating_add(u128::from(size));
        let what = format!("the tensor spans bytes {start}..{end}, past the end of the file ({len})");
        Fault::new(what, COMPLETE).tensor(&r.name).at(r.at)
    };
    let wide = u128::from(data_offset).saturating_add(u128::from(r.offset));
    let start = data_offset.checked_add(r.offset).ok_or_else(|| past(wide))?;
    if start.checked_add(size).is_none_or(|end| end > len) {
        return Err(past(wide));
    }
    if !r.offset.is_multiple_of(u64::from(alignment)) {
        return Err(fault(format!("its data offset {} is no multiple of the alignment {alignment}", r.offset), AGAIN));
    }
    if !start.is_multiple_of(4) {
        return Err(fault(format!("its data starts at {start}, which is no multiple of 4"), "write the file with an alignment of 32"));
    }
    Ok(Info { name: r.name, ty, dims, start, bytes: size })
}

/// Tensors must follow each other with nothing but alignment padding between them. Returns where the last padding ends.
fn check_layout(tensors: &[Info], order: &[u32], data_offset: u64, alignment: u32) -> Parsed<u64> {
    let mut expected = data_offset;
    let mut before: Option<&Info> = None;
    for t in order.iter().filter_map(|&i| tensors.get(i as usize)) {
        if t.start != expected {
            let previous = before.map_or("the header".into(), |b| format!("\"{}\"", printable(&b.name)));
            let what = if t.start < expected {
                format!("its data overlaps that of {previous}")
            } else {
                format!("there is a hole of {} bytes between {previous} and its data", t.start.saturating_sub(expected))
            };
            return Err(Fault::new(what, AGAIN).tensor(&t.name).at(t.start));
        }
        let end = t.start.checked_add(t.bytes).and_then(|e| e.checked_next_multiple_of(u64::from(alignment)));
        expected = end.ok_or_else(|| Fault::new("its data ends too far out", AGAIN).tensor(&t.name))?;
        before = Some(t);
    }
    Ok(expected)
}

/// The digest of everything before the tensor data, the eight bytes at `hole` taken as zero.
pub(crate) fn digest(head: &[u8], hole: usize) -> Option<u64> {
    let mut hash = Xxh3::new();
    hash.update(head.get(..hole)?);
    hash.update(&[0; 8]);
    hash.update(head.get(hole.checked_add(8)?..)?);
    Some(hash.digest())
}

/// Whether `key` is one of ours called `name`, in either half.
pub(crate) fn is_ours(key: &str, name: &str) -> bool {
    [Half::Language, Half::Vision].iter().any(|h| key.strip_prefix(h.prefix()).and_then(|k| k.strip_prefix('.')) == Some(name))
}

/// Compares the header's digest, if it carries one. Returns whether the file is one of ours.
///
/// The two checksum keys come first and last among the keys, so a flipped bit cannot lose both of them.
fn check_digest(bytes: &[u8], metadata: &[(String, Value)], offsets: &[u64], data_offset: u64) -> Parsed<bool> {
    let mut found = metadata.iter().zip(offsets).filter(|((k, _), _)| is_ours(k, keys::CHECKSUM_HEADER));
    let Some(((_, value), &at)) = found.next() else {
        return Ok(false);
    };
    let Value::U64(recorded) = value else {
        return Err(Fault::new("the header's digest is not a u64", AGAIN).at(at));
    };
    if found.next().is_some() {
        return Err(Fault::new("it has two header digests", AGAIN));
    }
    let head = usize::try_from(data_offset).ok().and_then(|end| bytes.get(..end));
    let Some(head) = head else {
        let what = format!("its header ends at {data_offset}, past the end of the file ({})", bytes.len());
        return Err(Fault::new(what, COMPLETE));
    };
    let computed = usize::try_from(at).ok().and_then(|at| digest(head, at));
    if computed != Some(*recorded) {
        let what = format!("the header is damaged: its digest is {:016x}, recorded is {recorded:016x}", computed.unwrap_or(0));
        return Err(Fault::new(what, "get or convert the file again; a tool that edits metadata must drop the two checksum keys").at(at));
    }
    Ok(true)
}

/// The list of tensor checksums: there exactly when the digest is, one per tensor.
fn check_checksum_list(metadata: &[(String, Value)], tensors: usize, ours: bool) -> Parsed<Option<usize>> {
    let index = metadata.iter().position(|(k, _)| is_ours(k, keys::CHECKSUM_TENSORS));
    match (index.and_then(|i| metadata.get(i)), ours) {
        (None, false) => Ok(None),
        (Some((_, Value::Array(Array::U64(v)))), true) if v.len() == tensors => Ok(index),
        (Some(_), true) => Err(Fault::new(format!("its tensor checksums are not a u64 array of {tensors}"), AGAIN)),
        (Some(_), false) => Err(Fault::new("it has tensor checksums and no header digest", AGAIN)),
        (None, true) => Err(Fault::new("it has a header digest and no tensor checksums", AGAIN)),
    }
}

/// Experts of a stack, which a tensor is if it has three dimensions and the name of one.
pub(crate) fn experts_of(name: &str, dims: &[usize]) -> Option<usize> {
    match dims {
        [_, _, experts] if name.contains("_exps.") => Some(*experts),
        _ => None,
    }
}

/// The list of experts' checksums, if there is one: one for each expert of each stack.
fn check_expert_list(metadata: &[(String, Value)], tensors: &[Info], ours: bool) -> Parsed<Option<(usize, Vec<Option<usize>>)>> {
    let index = metadata.iter().position(|(k, _)| is_ours(k, keys::CHECKSUM_EXPERTS));
    let Some((index, (_, value))) = index.and_then(|i| Some((i, metadata.get(i)?))) else { return Ok(None) };
    if !ours {
        return Err(Fault::new("it has checksums of experts and no header digest", AGAIN));
    }
    let mut starts = Vec::with_capacity(tensors.len());
    let mut sum = 0usize;
    for t in tensors {
        let experts = experts_of(&t.name, &t.dims);
        starts.push(experts.map(|_| sum));
        sum = sum.saturating_add(experts.unwrap_or(0));
    }
    match value {
        Value::Array(Array::U64(v)) if v.len() == sum => Ok(Some((index, starts))),
        _ => Err(Fault::new(format!("its checksums of experts are not a u64 array of {sum}"), AGAIN)),
    }
}

fn bad_version(version: u32) -> Fault {
    let remedy = match version {
        1 | 2 => "convert it again with a current tool",
        _ if version & 0xffff == 0 => "convert it again for little-endian machines",
        _ => "a newer version of this program may read it",
    };
    let what = if version & 0xffff == 0 && version != 0 {
        format!("this is a big-endian GGUF file (version {}); only little-endian ones are read", version.swap_bytes())
    } else {
        format!("GGUF version {version}; supported is version {VERSION} only")
    };
    Fault::new(what, remedy).at(4)
}

/// What a file without the magic looks like.
fn not_gguf(bytes: &[u8]) -> Fault {
    let start = bytes.get(..bytes.len().min(512)).unwrap_or_default();
    let text = start.trim_ascii_start();
    let begins = |with: &[u8]| text.get(..with.len()).is_some_and(|t| t.eq_ignore_ascii_case(with));
    let safetensors =
        start.get(8) == Some(&b'{') && start.first_chunk::<8>().is_some_and(|n| (2..=bytes.len() as u64).contains(&u64::from_le_bytes(*n)));
    let (like, remedy) = if bytes.is_empty() {
        return Fault::new("the file is empty", COMPLETE);
    } else if MAGIC.starts_with(start) {
        return Fault::new(format!("too short for a GGUF file: {} bytes", bytes.len()), COMPLETE);
    } else if start.starts_with(b"FUGG") {
        ("a byte-swapped (big-endian) GGUF file", "convert it again for little-endian machines")
    } else if start.starts_with(b"gguf") {
        ("a GGUF file with a lower-case magic", AGAIN)
    } else if safetensors {
        ("a safetensors file", NOT_GGUF)
    } else if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
        ("a zip archive, perhaps a .pth checkpoint", NOT_GGUF)
    } else if start.starts_with(b"\x80\x02") {
        ("a pickle, perhaps an old .pth checkpoint", NOT_GGUF)
    } else if begins(b"<!doctype html") || begins(b"<html") || begins(b"<head") {
        ("an HTML page", "a download page was saved instead of the file; download the file itself")
    } else if start.starts_with(b"version https://git-lfs") {
        ("a git-lfs pointer", "fetch the file itself with `git lfs pull`")
    } else if [&b"ggml"[..], b"lmgg", b"ggjt", b"tjgg", b"ggmf", b"fmgg", b"ggla", b"algg"].iter().any(|m| start.starts_with(m)) {
        ("a GGML file from before GGUF", "convert the model again with a current tool")
    } else if start.starts_with(b"\x1f\x8b") || start.starts_with(b"\x28\xb5\x2f\xfd") || start.starts_with(b"\xfd7zXZ") {
        ("a compressed file", "unpack it first")
    } else if begins(b"{") {
        ("a JSON text", NOT_GGUF)
    } else {
        ("something else", NOT_GGUF)
    };
    Fault::new(format!("this is no GGUF file: it looks like {like}"), remedy).at(0)
}

/// Why a tensor type cannot be read.
fn unknown_type(id: u32) -> (String, &'static str) {
    let known = match id {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => "",
    };
    let supported = "supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K; get or convert the model in one of them";
    if !known.is_empty() {
        return (format!("type {known} is not computed by this version"), supported);
    }
    let removed = matches!(id, 4 | 5 | 31..=33 | 36..=38);
    let why = if removed { " (ggml has removed it)" } else { "" };
    (format!("type {id} unknown to this version{why}"), supported)
}
