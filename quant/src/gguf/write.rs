//! The writer: header first, then tensor bytes as they come, checksums patched in at the end.
//!
//! The file grows beside its name as `NAME.partial` and gets its name only when it is whole and on the disk.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::header::{self, MAX_ALIGNMENT, MAX_ARRAY, MAX_ARRAY_STRINGS, MAX_KEY_BYTES, MAX_KEYS, MAX_STRING_BYTES, MAX_TENSORS};
use super::keys::{self, Half};
use super::value::{Array, Value};
use crate::GgmlType;
use crate::error::{QuantError, Result};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPlan {
    /// Its name.
    pub name: String,
    /// Its format.
    pub ty: GgmlType,
    /// Its shape, fastest dimension first.
    pub dims: Vec<usize>,
}

impl TensorPlan {
    /// Bytes of its data.
    ///
    /// # Errors
    /// [`QuantError::RowLength`] when rows are no whole number of blocks, [`QuantError::Internal`] for an impossible shape.
    pub fn bytes(&self) -> Result<u64> {
        let cols = self.dims.first().copied().unwrap_or(0);
        if self.dims.is_empty() || self.dims.len() > header::MAX_DIMS as usize || self.dims.contains(&0) {
            return Err(QuantError::Internal(format!("tensor \"{}\" planned with shape {:?}", self.name, self.dims)));
        }
        let row = self.ty.row_bytes(cols).ok_or_else(|| QuantError::RowLength {
            tensor: self.name.clone(),
            cols,
            ty: self.ty,
            block: self.ty.block_len(),
        })?;
        let size = self.dims.iter().skip(1).try_fold(row as u64, |a, &b| a.checked_mul(b as u64));
        size.filter(|&n| i64::try_from(n).is_ok())
            .ok_or_else(|| QuantError::Internal(format!("tensor \"{}\" planned with shape {:?}", self.name, self.dims)))
    }
}

/// What a file will hold.
#[derive(Clone, Debug)]
pub struct Plan {
    /// All metadata but the checksums, in file order; must hold `general.architecture`.
    pub metadata: Vec<(String, Value)>,
    /// The tensors, in file order.
    pub tensors: Vec<TensorPlan>,
    /// Alignment of tensor data in bytes, a power of two from 4; 32 unless there is a reason.
    pub alignment: u32,
}

impl Plan {
    /// Size that the file will have, in bytes.
    ///
    /// # Errors
    /// As [`Writer::create`], for what is wrong with the plan.
    pub fn file_bytes(&self) -> Result<u64> {
        let head = Head::new(self)?;
        let data = head
            .sizes
            .iter()
            .try_fold(head.bytes.len() as u64, |a, n| n.checked_next_multiple_of(u64::from(self.alignment)).and_then(|n| a.checked_add(n)));
        data.ok_or_else(|| QuantError::Internal("planned file size overflows".into()))
    }
}

/// The header of a planned file, encoded, and where the parts that change at the end lie in it.
struct Head {
    bytes: Vec<u8>,
    sizes: Vec<u64>,
    digest: usize,
    checksums: usize,
    /// Where the checksums of experts begin; of each tensor where its own do among them, and how many they are.
    expert_checksums: usize,
    experts: Vec<Option<(usize, usize)>>,
    /// Key, first byte and length of every string value.
    strings: Vec<(String, usize, usize)>,
}

impl Head {
    fn new(plan: &Plan) -> Result<Head> {
        let bug = |what: String| Err(QuantError::Internal(what));
        let arch = plan.metadata.iter().find_map(|(k, v)| match v {
            Value::Str(s) if k == keys::ARCHITECTURE && !s.is_empty() => Some(s.as_str()),
            _ => None,
        });
        let Some(arch) = arch else {
            return bug(format!("a planned file has no {}", keys::ARCHITECTURE));
        };
        let half = Half::of(arch);
        if !plan.alignment.is_power_of_two() || !(4..=MAX_ALIGNMENT).contains(&plan.alignment) {
            return bug(format!("alignment {} planned", plan.alignment));
        }
        // What a plan copied from another file carries over and what this file must say itself.
        let own = |k: &str| {
            k == keys::ALIGNMENT
                || header::is_ours(k, keys::CHECKSUM_HEADER)
                || header::is_ours(k, keys::CHECKSUM_TENSORS)
                || header::is_ours(k, keys::CHECKSUM_EXPERTS)
        };
        let metadata: Vec<_> = plan.metadata.iter().filter(|(k, _)| !own(k)).collect();
        let aligned = plan.alignment != header::DEFAULT_ALIGNMENT;
        let mut sums = 0;
        let mut experts = Vec::with_capacity(plan.tensors.len());
        for t in &plan.tensors {
            let of = header::experts_of(&t.name, &t.dims);
            experts.push(of.map(|n| (sums, n)));
            sums += of.unwrap_or(0);
        }
        let key_count = metadata.len() as u64 + 2 + u64::from(aligned) + u64::from(sums > 0);
        if key_count > MAX_KEYS || plan.tensors.is_empty() || plan.tensors.len() as u64 > MAX_TENSORS {
            return bug(format!("{key_count} keys and {} tensors planned", plan.tensors.len()));
        }
        let mut names: Vec<&str> = metadata.iter().map(|(k, _)| k.as_str()).collect();
        names.sort_unstable();
        if let Some(w) = names.windows(2).find(|w| w[0] == w[1]) {
            return bug(format!("key \"{}\" planned twice", w[0]));
        }
        let mut names: Vec<&str> = plan.tensors.iter().map(|t| t.name.as_str()).collect();
        names.sort_unstable();
        if let Some(w) = names.windows(2).find(|w| w[0] == w[1]) {
            return bug(format!("tensor \"{}\" planned twice", w[0]));
        }

        let mut h =
            Head { bytes: Vec::new(), sizes: Vec::new(), digest: 0, checksums: 0, expert_checksums: 0, experts, strings: Vec::new() };
        h.bytes.extend(header::MAGIC);
        h.bytes.extend(header::VERSION.to_le_bytes());
        h.bytes.extend((plan.tensors.len() as u64).to_le_bytes());
        h.bytes.extend(key_count.to_le_bytes());
        h.entry(&half.key(keys::CHECKSUM_HEADER), &Value::U64(0))?;
        h.digest = h.bytes.len() - 8;
        let mut strings = 0;
        for (k, v) in metadata {
            if let Value::Array(Array::Str(s)) = v {
                strings += s.len() as u64;
            }
            h.entry(k, v)?;
        }
        if strings > MAX_ARRAY_STRINGS {
            return bug(format!("{strings} strings planned"));
        }
        if aligned {
            h.entry(keys::ALIGNMENT, &Value::U32(plan.alignment))?;
        }
        if sums > 0 {
            h.entry(&half.key(keys::CHECKSUM_EXPERTS), &Value::Array(Array::U64(vec![0; sums])))?;
            h.expert_checksums = h.bytes.len() - 8 * sums;
        }
        h.entry(&half.key(keys::CHECKSUM_TENSORS), &Value::Array(Array::U64(vec![0; plan.tensors.len()])))?;
        h.checksums = h.bytes.len() - 8 * plan.tensors.len();

        let mut offset = 0u64;
        for t in &plan.tensors {
            if let Err(what) = header::check_name(&t.name) {
                return bug(format!("\"{}\" planned: {what}", t.name));
            }
            let size = t.bytes()?;
            h.string(&t.name);
            h.bytes.extend((t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|&d| h.bytes.extend((d as u64).to_le_bytes()));
            h.bytes.extend(t.ty.id().to_le_bytes());
            h.bytes.extend(offset.to_le_bytes());
            let next = offset.checked_add(size).and_then(|o| o.checked_next_multiple_of(u64::from(plan.alignment)));
            offset = next.ok_or_else(|| QuantError::Internal("planned file size overflows".into()))?;
            h.sizes.push(size);
        }
        let end = h.bytes.len().next_multiple_of(plan.alignment as usize);
        h.bytes.resize(end, 0);
        Ok(h)
    }

    fn string(&mut self, s: &str) {
        self.bytes.extend((s.len() as u64).to_le_bytes());
        self.bytes.extend(s.as_bytes());
    }

    fn entry(&mut self, key: &str, value: &Value) -> Result<()> {
        let long = match value {
            Value::Str(s) => s.len() as u64 > MAX_STRING_BYTES,
            Value::Array(a) => a.len() as u64 > MAX_ARRAY,
            _ => false,
        };
        if key.is_empty() || key.len() as u64 > MAX_KEY_BYTES || key.chars().any(char::is_control) || long {
            return Err(QuantError::Internal(format!("key \"{key}\" planned, or its value, breaks the limits of the format")));
        }
        self.string(key);
        self.bytes.extend(value.id().to_le_bytes());
        match value {
            Value::U8(v) => self.bytes.extend(v.to_le_bytes()),
            Value::I8(v) => self.bytes.extend(v.to_le_bytes()),
            Value::U16(v) => self.bytes.extend(v.to_le_bytes()),
            Value::I16(v) => self.bytes.extend(v.to_le_bytes()),
            Value::U32(v) => self.bytes.extend(v.to_le_bytes()),
            Value::I32(v) => self.bytes.extend(v.to_le_bytes()),
            Value::F32(v) => self.bytes.extend(v.to_le_bytes()),
            Value::Bool(v) => self.bytes.push(u8::from(*v)),
            Value::Str(v) => {
                self.string(v);
                self.strings.push((key.to_owned(), self.bytes.len() - v.len(), v.len()));
            }
            Value::U64(v) => self.bytes.extend(v.to_le_bytes()),
            Value::I64(v) => self.bytes.extend(v.to_le_bytes()),
            Value::F64(v) => self.bytes.extend(v.to_le_bytes()),
            Value::Array(a) => self.array(a),
        }
        Ok(())
    }

    fn array(&mut self, a: &Array) {
        self.bytes.extend(a.element_id().to_le_bytes());
        self.bytes.extend((a.len() as u64).to_le_bytes());
        let out = &mut self.bytes;
        match a {
            Array::U8(v) => out.extend(v),
            Array::I8(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
            Array::U16(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
            Array::I16(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
            Array::U32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
            Array::I32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
            Array::F32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
            Array::Bool(v) => out.extend(v.iter().map(|&b| u8::from(b))),
            Array::Str(v) => v.iter().for_each(|s| self.string(s)),
            Array::U64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
            Array::I64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
            Array::F64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        }
    }
}

/// Writes the header of a planned file to `path`, and nothing but a hole behind it: to see what the file will say before it is
/// made. Checksums of tensors are 0.
///
/// # Errors
/// As [`Writer::create`].
pub fn outline(path: &Path, plan: &Plan) -> Result<()> {
    let mut head = Head::new(plan)?;
    let digest = header::digest(&head.bytes, head.digest).unwrap_or(0);
    head.bytes[head.digest..head.digest + 8].copy_from_slice(&digest.to_le_bytes());
    let bytes = plan.file_bytes()?;
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(&head.bytes)?;
        file.set_len(bytes)
    };
    write().map_err(|source| QuantError::Io { file: path.to_owned(), source })
}

/// `NAME.partial`, removed when dropped before it got its name.
struct Partial {
    path: PathBuf,
    partial: PathBuf,
    armed: bool,
}

impl Partial {
    fn io(&self, source: io::Error) -> QuantError {
        QuantError::Io { file: self.path.clone(), source }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.armed {
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Writes a file from front to back. Dropping it before [`finish`](Writer::finish) and [`Finished::commit`] leaves nothing behind.
pub struct Writer {
    out: BufWriter<File>,
    partial: Partial,
    head: Head,
    alignment: u64,
    /// The tensor being written and how much of it is.
    tensor: usize,
    done: u64,
    hash: Xxh3,
    /// Of the expert being written.
    expert_hash: Xxh3,
}

impl Writer {
    /// Opens `path` with `.partial` appended and writes the header. A stale `.partial` of a run that was killed is replaced.
    ///
    /// The key of the header's digest is put in front of the plan's metadata and the tensors' checksums after it, so both
    /// are in every file; `general.alignment` follows the plan's alignment. Such keys in the plan are left out.
    ///
    /// # Errors
    /// [`QuantError::Io`] when it cannot be created or another process is writing it; [`QuantError::RowLength`] or
    /// [`QuantError::Internal`] for a plan that no file can hold.
    pub fn create(path: &Path, plan: Plan) -> Result<Writer> {
        let head = Head::new(&plan)?;
        let mut name = path.as_os_str().to_owned();
        name.push(".partial");
        let mut partial = Partial { path: path.to_owned(), partial: PathBuf::from(name), armed: false };
        if path.is_dir() {
            return Err(partial.io(io::Error::new(io::ErrorKind::IsADirectory, "a directory has this name")));
        }
        let file = create_new(&partial.partial).map_err(|e| partial.io(e))?;
        partial.armed = true;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&head.bytes).map_err(|e| partial.io(e))?;
        Ok(Writer {
            out,
            partial,
            head,
            alignment: u64::from(plan.alignment),
            tensor: 0,
            done: 0,
            hash: Xxh3::new(),
            expert_hash: Xxh3::new(),
        })
    }

    /// Writes the next bytes of the tensors' data, in the plan's order; a piece may end one tensor and begin the next.
    ///
    /// # Errors
    /// [`QuantError::Io`] when the system fails or the disk is full; [`QuantError::Internal`] for more bytes than planned.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let Some(&size) = self.head.sizes.get(self.tensor) else {
                return Err(QuantError::Internal(format!("{} bytes written past the last tensor", bytes.len())));
            };
            // Pieces end where an expert does.
            let expert = self.head.experts[self.tensor].map(|(first, experts)| (first, size / experts as u64));
            let left = expert.map_or(size - self.done, |(_, each)| each - self.done % each);
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            let (now, rest) = bytes.split_at(n);
            self.hash.update(now);
            if let Some((first, each)) = expert {
                self.expert_hash.update(now);
                if (self.done + n as u64).is_multiple_of(each) {
                    let at = self.head.expert_checksums + 8 * (first + (self.done / each) as usize);
                    self.head.bytes[at..at + 8].copy_from_slice(&self.expert_hash.digest().to_le_bytes());
                    self.expert_hash.reset();
                }
            }
            self.out.write_all(now).map_err(|e| self.partial.io(e))?;
            self.done += n as u64;
            if self.done == size {
                let at = self.head.checksums + 8 * self.tensor;
                self.head.bytes[at..at + 8].copy_from_slice(&self.hash.digest().to_le_bytes());
                let padding = (size.next_multiple_of(self.alignment) - size) as usize;
                self.out.write_all(&vec![0; padding]).map_err(|e| self.partial.io(e))?;
                self.hash.reset();
                self.tensor += 1;
                self.done = 0;
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Replaces a string value by one of equal length, for what is known only at the end.
    ///
    /// # Errors
    /// [`QuantError::Internal`] when the plan has no such string or the lengths differ.
    pub fn set_str(&mut self, key: &str, value: &str) -> Result<()> {
        match self.head.strings.iter().find(|(k, _, _)| k == key) {
            Some(&(_, at, len)) if len == value.len() => {
                self.head.bytes[at..at + len].copy_from_slice(value.as_bytes());
                Ok(())
            }
            _ => Err(QuantError::Internal(format!("key \"{key}\" has no planned string of {} bytes", value.len()))),
        }
    }

    /// Checksums of the tensors written so far, in file order: what [`Gguf::checksum`](super::Gguf::checksum) will give.
    pub fn checksums(&self) -> Vec<u64> {
        let all = &self.head.bytes[self.head.checksums..self.head.checksums + 8 * self.tensor];
        all.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect()
    }

    /// Completes the header and puts everything on the disk, still under the `.partial` name.
    ///
    /// # Errors
    /// [`QuantError::Internal`] when tensor bytes are missing, else [`QuantError::Io`].
    pub fn finish(mut self) -> Result<Finished> {
        if self.tensor != self.head.sizes.len() {
            return Err(QuantError::Internal(format!("{} of {} tensors written", self.tensor, self.head.sizes.len())));
        }
        let digest = header::digest(&self.head.bytes, self.head.digest).unwrap_or(0);
        self.head.bytes[self.head.digest..self.head.digest + 8].copy_from_slice(&digest.to_le_bytes());
        let Writer { mut out, partial, head, .. } = self;
        let mut last = || -> io::Result<()> {
            out.seek(SeekFrom::Start(0))?;
            out.write_all(&head.bytes)?;
            out.flush()?;
            out.get_ref().sync_all()
        };
        last().map_err(|e| partial.io(e))?;
        Ok(Finished { partial, _file: out })
    }
}

/// A whole file on the disk that has not got its name yet. Dropping it removes it.
pub struct Finished {
    partial: Partial,
    /// Kept open: it holds the lock.
    _file: BufWriter<File>,
}

impl Finished {
    /// Gives the file its name, replacing what had it.
    ///
    /// # Errors
    /// [`QuantError::Io`] when renaming fails; the file is removed then.
    pub fn commit(mut self) -> Result<()> {
        fs::rename(&self.partial.partial, &self.partial.path).map_err(|e| self.partial.io(e))?;
        self.partial.armed = false;
        #[cfg(unix)]
        {
            let parent = self.partial.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(parent).and_then(|d| d.sync_all()).map_err(|e| self.partial.io(e))?;
        }
        Ok(())
    }
}

/// Creates `path`, which must not be a link or anything but a stale file that nobody writes.
fn create_new(path: &Path) -> io::Result<File> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
        Ok(m) if !m.is_file() => {
            let what = format!("{} is in the way and not a regular file; remove it", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        Ok(_) => {
            if let Err(TryLockError::WouldBlock) = File::open(path)?.try_lock() {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process is writing this file"));
            }
            fs::remove_file(path)?;
        }
    }
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    // A file system without locks only loses the warning above.
    let _ = file.try_lock();
    Ok(file)
}
