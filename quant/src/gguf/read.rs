//! The reader: a mapped file, its metadata and its tensors.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::header::{self, Fault, Header};
use super::keys::Half;
use super::value::{Array, Value};
use crate::error::{QuantError, Result, printable};
use crate::tensor::{Bytes, Tensor};

const METADATA: &str = "the file is damaged or was made for something else; convert it again";

/// An open GGUF file. Tensor bytes stay in the file until they are touched.
pub struct Gguf {
    path: PathBuf,
    bytes: Arc<Bytes>,
    header: Header,
    tensors: Vec<Tensor>,
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gguf({}: {} keys, {} tensors)", self.path.display(), self.metadata().len(), self.tensors.len())
    }
}

impl Gguf {
    /// Maps and checks the file at `path`. Everything before the tensor data is checked here; the data itself is not
    /// read ([`check_tensor`](Gguf::check_tensor) does).
    ///
    /// # Errors
    /// [`QuantError::Io`] when it cannot be opened or is not a regular file, [`QuantError::Invalid`] for anything in it
    /// that is not as GGUF version 3 says, or damaged, or of a type this version does not compute.
    pub fn open(path: &Path) -> Result<Gguf> {
        let io = |source| QuantError::Io { file: path.to_owned(), source };
        if path.extension().is_some_and(|e| e == "partial") {
            return Err(invalid(
                path,
                Fault { what: "this is an unfinished file".into(), tensor: None, offset: None, remedy: "convert again" },
            ));
        }
        // Asked before opening: opening a fifo would wait for its writer.
        let meta = std::fs::metadata(path).map_err(io)?;
        if meta.is_dir() {
            return Err(io(io::Error::new(io::ErrorKind::IsADirectory, "a directory, where a .gguf file is wanted")));
        }
        if !meta.is_file() {
            return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let file = File::open(path).map_err(io)?;
        let bytes = Bytes::map(&file).map_err(io)?;
        Gguf::build(path.to_owned(), bytes)
    }

    /// Checks a file that is in memory; `name` stands for its path in messages. For tests and fuzzing.
    ///
    /// # Errors
    /// As [`open`](Gguf::open).
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Gguf> {
        Gguf::build(PathBuf::from(name), Bytes::owned(&bytes))
    }

    fn build(path: PathBuf, bytes: Bytes) -> Result<Gguf> {
        let header = header::parse(bytes.as_slice()).map_err(|f| invalid(&path, f))?;
        let bytes = Arc::new(bytes);
        let mut tensors = Vec::with_capacity(header.tensors.len());
        for t in &header.tensors {
            let range = usize::try_from(t.start).ok().zip(usize::try_from(t.start + t.bytes).ok());
            let tensor = range.and_then(|(a, b)| Tensor::new(&t.name, t.ty, &t.dims, bytes.clone(), a..b));
            tensors.push(tensor.ok_or_else(|| {
                let what = "the tensor does not fit this machine's address space".into();
                invalid(&path, Fault { what, tensor: Some(t.name.clone()), offset: Some(t.start), remedy: "use a 64-bit machine" })
            })?);
        }
        let gguf = Gguf { path, bytes, header, tensors };
        let parts = gguf.opt("split.count", "u16", |v| match v {
            Value::U16(parts) => Some(*parts),
            _ => None,
        })?;
        if let Some(parts) = parts.filter(|&parts| parts > 1) {
            return Err(gguf.invalid(format!("this is one of {parts} parts of a model"), None, "join the parts into one file first"));
        }
        Ok(gguf)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `general.architecture`.
    pub fn arch(&self) -> &str {
        &self.header.arch
    }

    /// Which half of a model the architecture makes it.
    pub fn half(&self) -> Half {
        Half::of(self.arch())
    }

    /// GGUF's version: always 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// Alignment of tensor data, in bytes.
    pub fn alignment(&self) -> u32 {
        self.header.alignment
    }

    /// Where tensor data starts, in bytes.
    pub fn data_offset(&self) -> u64 {
        self.header.data_offset
    }

    /// See [`Bytes::sparsely`].
    pub fn sparsely<R>(&self, work: impl FnOnce() -> R) -> R {
        self.bytes.sparsely(work)
    }

    /// Bytes of the whole file.
    pub fn file_bytes(&self) -> u64 {
        self.bytes.as_slice().len() as u64
    }

    /// Bytes after the last tensor and its padding; a sign of damage when not 0.
    pub fn trailing_bytes(&self) -> u64 {
        self.header.trailing
    }

    /// All metadata, in file order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.header.metadata
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.key_index(key).map(|i| &self.header.metadata[i].1)
    }

    fn key_index(&self, key: &str) -> Option<usize> {
        let order = &self.header.key_order;
        let at = order.binary_search_by(|&i| self.header.metadata[i as usize].0.as_str().cmp(key)).ok()?;
        Some(order[at] as usize)
    }

    /// `suffix` with the architecture in front: `llama.block_count`.
    pub fn arch_key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.arch())
    }

    /// All tensors, in the order of the file's table.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensor_index(name).map(|i| &self.tensors[i])
    }

    /// The place in [`tensors`](Gguf::tensors) of the tensor called `name`.
    pub fn tensor_index(&self, name: &str) -> Option<usize> {
        let order = &self.header.tensor_order;
        let at = order.binary_search_by(|&i| self.tensors[i as usize].name().cmp(name)).ok()?;
        Some(order[at] as usize)
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`QuantError::Invalid`] when the file has none.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.find(name).ok_or_else(|| self.invalid("the tensor is missing", Some(name), METADATA))
    }

    /// Where the data of tensor `index` starts in the file, in bytes.
    pub fn offset(&self, index: usize) -> u64 {
        self.header.tensors[index].start
    }

    /// The XXH3-64 that the file records for tensor `index`, if it is one of ours.
    pub fn checksum(&self, index: usize) -> Option<u64> {
        match &self.header.metadata[self.header.checksums?].1 {
            Value::Array(Array::U64(v)) => v.get(index).copied(),
            _ => None,
        }
    }

    /// The XXH3-64 that the file records for the bytes of `part`, a tensor of this file or one expert of a stack.
    pub fn part_checksum(&self, part: &Tensor) -> Option<u64> {
        let index = self.tensor_index(part.name())?;
        let (whole, part) = (self.tensors[index].backing().1, part.backing().1);
        if whole == part {
            return self.checksum(index);
        }
        let (list, starts) = self.header.expert_checksums.as_ref()?;
        let (start, bytes) = (*starts.get(index)?.as_ref()?, part.len());
        let at = part.start.checked_sub(whole.start)?;
        let Value::Array(Array::U64(sums)) = &self.header.metadata.get(*list)?.1 else { return None };
        (bytes > 0 && at.is_multiple_of(bytes) && bytes * self.tensors[index].dims().get(2)? == whole.len())
            .then(|| sums.get(start + at / bytes).copied())?
    }

    /// Whether the file records checksums: whether this program wrote it.
    pub fn has_checksums(&self) -> bool {
        self.header.checksums.is_some()
    }

    /// An error about this file; with a tensor that it has, the message gives its place too.
    pub fn invalid(&self, what: impl Into<String>, tensor: Option<&str>, remedy: &'static str) -> QuantError {
        let offset = tensor.and_then(|t| self.tensor_index(t)).map(|i| self.offset(i));
        invalid(&self.path, Fault { what: what.into(), tensor: tensor.map(str::to_owned), offset, remedy })
    }

    /// Tells the system that the pages of `tensor` are no longer needed. They come back from the file when touched.
    pub fn release(&self, tensor: &Tensor) {
        let (bytes, range) = tensor.backing();
        if Arc::ptr_eq(bytes, &self.bytes) {
            self.bytes.release(range);
        }
    }

    /// Reads tensor `index` in whole and compares it with its recorded checksum. Without one there is nothing to compare.
    ///
    /// # Errors
    /// [`QuantError::Invalid`] naming the tensor when its bytes have changed.
    pub fn check_tensor(&self, index: usize) -> Result<()> {
        let Some(recorded) = self.checksum(index) else {
            return Ok(());
        };
        let t = &self.tensors[index];
        let computed = xxh3_64(t.bytes());
        if computed == recorded {
            return Ok(());
        }
        let what = format!("the data are damaged: their checksum is {computed:016x}, recorded is {recorded:016x}");
        Err(self.invalid(what, Some(t.name()), "get or convert the file again"))
    }

    /// Checks that the padding before, between and after tensors is zero.
    ///
    /// # Errors
    /// [`QuantError::Invalid`] with the place of the first byte that is not.
    pub fn check_padding(&self) -> Result<()> {
        let all = self.bytes.as_slice();
        let alignment = u64::from(self.alignment());
        for &i in &self.header.data_order {
            let t = &self.header.tensors[i as usize];
            let end = t.start + t.bytes;
            let padded = end.next_multiple_of(alignment).min(all.len() as u64);
            if let Some(at) = all[end as usize..padded as usize].iter().position(|&b| b != 0) {
                let fault = Fault {
                    what: "the padding after the tensor is not zero".into(),
                    tensor: Some(t.name.clone()),
                    offset: Some(end + at as u64),
                    remedy: "get or convert the file again",
                };
                return Err(invalid(&self.path, fault));
            }
        }
        Ok(())
    }

    /// The first block of tensor `index` whose scale, or number, is NaN or infinite.
    pub fn non_finite(&self, index: usize) -> Option<usize> {
        let t = &self.tensors[index];
        t.ty().first_non_finite(t.bytes())
    }

    // Metadata by type. A key of the wrong type is an error even where a missing one is not.

    fn missing(&self, key: &str) -> QuantError {
        self.invalid(format!("key \"{}\" is missing", printable(key)), None, METADATA)
    }

    fn wrong(&self, key: &str, want: &str) -> QuantError {
        let index = self.key_index(key);
        let found = index.map_or("nothing".into(), |i| self.header.metadata[i].1.type_name());
        let fault = Fault {
            what: format!("key \"{}\" is of type {found}, expected {want}", printable(key)),
            tensor: None,
            offset: index.map(|i| self.header.value_offsets[i]),
            remedy: METADATA,
        };
        invalid(&self.path, fault)
    }

    fn opt<'a, T>(&'a self, key: &str, want: &str, pick: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(key).map(|v| pick(v).ok_or_else(|| self.wrong(key, want))).transpose()
    }
}

/// Required and optional getters in pairs.
macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident, $opt:ident, $ty:ty, $want:literal, $pick:expr;)*) => {
        /// Metadata by type: the plain name fails when the key is missing or of another type, `opt_` is `None` when it
        /// is missing.
        impl Gguf {$(
            $(#[$doc])*
            ///
            /// # Errors
            /// [`QuantError::Invalid`] naming the key when it is missing or of another type.
            pub fn $name(&self, key: &str) -> Result<$ty> {
                self.$opt(key)?.ok_or_else(|| self.missing(key))
            }

            $(#[$doc])*
            /// `None` when it is missing.
            ///
            /// # Errors
            /// [`QuantError::Invalid`] naming the key when it is of another type.
            pub fn $opt(&self, key: &str) -> Result<Option<$ty>> {
                self.opt(key, $want, $pick)
            }
        )*}
    };
}

getters! {
    /// The `u32` at `key`.
    u32, opt_u32, u32, "u32", |v| match v { Value::U32(v) => Some(*v), _ => None };
    /// The `i32` at `key`.
    i32, opt_i32, i32, "i32", |v| match v { Value::I32(v) => Some(*v), _ => None };
    /// The `u64` at `key`.
    u64, opt_u64, u64, "u64", |v| match v { Value::U64(v) => Some(*v), _ => None };
    /// The `f32` at `key`.
    f32, opt_f32, f32, "f32", |v| match v { Value::F32(v) => Some(*v), _ => None };
    /// The `bool` at `key`.
    bool, opt_bool, bool, "bool", |v| match v { Value::Bool(v) => Some(*v), _ => None };
    /// The string at `key`.
    str, opt_str, &str, "str", |v| match v { Value::Str(v) => Some(v.as_str()), _ => None };
    /// The integers at `key`: any integer array whose numbers are not negative and fit.
    u32_array, opt_u32_array, Vec<u32>, "array of non-negative integers", |v| match v { Value::Array(a) => a.to_u32(), _ => None };
    /// The `i32` array at `key`.
    i32_array, opt_i32_array, &[i32], "i32 array", |v| match v { Value::Array(Array::I32(v)) => Some(v.as_slice()), _ => None };
    /// The `f32` array at `key`.
    f32_array, opt_f32_array, &[f32], "f32 array", |v| match v { Value::Array(Array::F32(v)) => Some(v.as_slice()), _ => None };
    /// The `u8` array at `key`.
    u8_array, opt_u8_array, &[u8], "u8 array", |v| match v { Value::Array(Array::U8(v)) => Some(v.as_slice()), _ => None };
    /// The string array at `key`.
    str_array, opt_str_array, &[String], "str array", |v| match v { Value::Array(Array::Str(v)) => Some(v.as_slice()), _ => None };
}

fn invalid(path: &Path, f: Fault) -> QuantError {
    QuantError::Invalid { file: path.to_owned(), what: f.what, tensor: f.tensor, offset: f.offset, remedy: f.remedy }
}
