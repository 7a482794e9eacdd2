//! A tensor whose bytes stay where they are: in a mapped file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::AnyBitPattern;
use memmap2::{Mmap, MmapMut};

use crate::GgmlType;

/// The bytes behind one or more tensors.
#[derive(Debug)]
pub enum Bytes {
    /// A mapped file, shared by all its tensors.
    Mapped(Mmap, File),
    /// Bytes in memory, in 8-byte words so that blocks are aligned; the length in bytes (for tests and small tables).
    Owned(Vec<u64>, usize),
    /// Whole pages of memory that a part of a file is read into, again and again.
    Pages(MmapMut),
}

impl Bytes {
    /// Maps a whole file for reading.
    ///
    /// # Errors
    /// What the system says: out of address space, not a file.
    pub fn map(file: &File) -> io::Result<Bytes> {
        // SAFETY: the map is read-only and private to this process, and nothing here writes to a model file: outputs
        // are written under another name and renamed. A stranger who writes into the file while it is mapped changes
        // numbers that are checked or harmless, or ends the process by truncation; neither reaches other memory.
        let map = unsafe { Mmap::map(file)? };
        Ok(Bytes::Mapped(map, file.try_clone()?))
    }

    /// A copy in memory.
    pub fn owned(data: &[u8]) -> Bytes {
        let mut words = vec![0u64; data.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..data.len()].copy_from_slice(data);
        Bytes::Owned(words, data.len())
    }

    /// Zeroed pages, at least `len` bytes.
    ///
    /// # Errors
    /// What the system says: no memory.
    pub fn pages(len: usize) -> io::Result<Bytes> {
        let map = MmapMut::map_anon(len.max(1))?;
        #[cfg(target_os = "linux")]
        if len >= 4 << 20 {
            // Only a wish: without large pages everything is as before.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Bytes::Pages(map))
    }

    /// The bytes to be written; `None` for those of a file.
    pub fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        match self {
            Bytes::Mapped(..) => None,
            Bytes::Owned(words, len) => Some(&mut bytemuck::cast_slice_mut(words)[..*len]),
            Bytes::Pages(map) => Some(map),
        }
    }

    /// Lets the system drop the pages of `range`; they are read from the file again when touched. Does nothing for
    /// bytes in memory, or when the system does not care to.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map, _) = self
            && range.start < range.end
            && range.end <= map.len()
        {
            // SAFETY: the map is read-only and backed by a file, so a dropped page holds the same bytes when it comes back.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// As [`release`](Bytes::release), and has the system drop the pages from its cache of the file too, as far as nobody else
    /// maps them.
    pub fn evict(&self, range: Range<usize>) {
        self.release(range.clone());
        #[cfg(all(unix, not(target_vendor = "apple")))]
        if let Bytes::Mapped(_, file) = self
            && let Some(len) = std::num::NonZeroU64::new(range.len() as u64)
        {
            // Only a wish, too.
            let _ = rustix::fs::fadvise(file, range.start as u64, Some(len), rustix::fs::Advice::DontNeed);
        }
    }

    /// Has the pages of `range` read from the file and mapped, and returns when they are there. Does nothing for bytes in memory;
    /// where the system has no such call, it is asked to begin reading.
    pub fn fetch(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped(map, _) = self
            && range.start < range.end
            && range.end <= map.len()
        {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            if map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len()).is_ok() {
                return;
            }
            let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Does `work`, which touches small parts of the file: meanwhile the system reads them without the megabytes around that it
    /// reads otherwise. Once for many of them, because it stops whoever maps memory at the time, and waits for them.
    pub fn sparsely<R>(&self, work: impl FnOnce() -> R) -> R {
        self.expect_order(false);
        let done = work();
        self.expect_order(true);
        done
    }

    /// Whether the system may count on what comes next in the file being read next.
    fn expect_order(&self, yes: bool) {
        #[cfg(unix)]
        if let Bytes::Mapped(map, _) = self
            && !map.is_empty()
        {
            // If the system does not care to, nothing is lost but time.
            let _ = map.advise(if yes { memmap2::Advice::Normal } else { memmap2::Advice::Random });
        }
        #[cfg(not(unix))]
        let _ = yes;
    }

    /// The bytes themselves.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map, _) => map,
            Bytes::Owned(words, len) => &bytemuck::cast_slice(words)[..*len],
            Bytes::Pages(map) => map,
        }
    }
}

/// A named tensor of a GGUF file: a format, a shape and borrowed bytes. Cloning copies a pointer.
///
/// The shape is kept as GGUF has it, fastest dimension first; as a matrix it is [`rows`](Tensor::rows) ×
/// [`cols`](Tensor::cols), `cols` being the fastest dimension (the inputs of a linear layer).
#[derive(Clone, Debug)]
pub struct Tensor {
    name: Arc<str>,
    ty: GgmlType,
    dims: Vec<usize>,
    bytes: Arc<Bytes>,
    range: Range<usize>,
}

impl Tensor {
    /// A view of `range` of `bytes`; `None` unless the range lies inside and holds exactly `dims` of `ty`,
    /// aligned for it.
    pub fn new(name: &str, ty: GgmlType, dims: &[usize], bytes: Arc<Bytes>, range: Range<usize>) -> Option<Tensor> {
        let rows = dims.iter().skip(1).try_fold(1usize, |a, &b| a.checked_mul(b))?;
        let want = ty.row_bytes(*dims.first()?)?.checked_mul(rows)?;
        let slice = bytes.as_slice().get(range.clone())?;
        // Blocks hold half-precision scales, so that even addresses do; an expert of a stack may begin at any.
        let align = if ty == GgmlType::F32 { 4 } else { 2 };
        if slice.len() != want || !(slice.as_ptr() as usize).is_multiple_of(align) {
            return None;
        }
        Some(Tensor { name: name.into(), ty, dims: dims.to_vec(), bytes, range })
    }

    /// A tensor in memory, of `rows` × `cols`, holding `data` as `ty` already encodes it.
    pub fn owned(name: &str, ty: GgmlType, dims: &[usize], data: &[u8]) -> Option<Tensor> {
        Tensor::new(name, ty, dims, Arc::new(Bytes::owned(data)), 0..data.len())
    }

    /// Its name in the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its element format.
    pub fn ty(&self) -> GgmlType {
        self.ty
    }

    /// Its shape, fastest dimension first.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Elements in a row: the fastest dimension.
    pub fn cols(&self) -> usize {
        self.dims[0]
    }

    /// Rows: the product of all other dimensions.
    pub fn rows(&self) -> usize {
        self.dims[1..].iter().product()
    }

    /// Elements altogether.
    pub fn len(&self) -> usize {
        self.rows() * self.cols()
    }

    /// Whether it has no element; never true for a tensor of a file.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.range.len() / self.rows().max(1)
    }

    /// All its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes.as_slice()[self.range.clone()]
    }

    /// The bytes of row `row`.
    pub fn row(&self, row: usize) -> &[u8] {
        let n = self.row_bytes();
        &self.bytes()[row * n..(row + 1) * n]
    }

    /// Rows `rows` as a tensor of their own, `[cols, rows]` whatever the shape of the whole: one expert of a stack. It keeps
    /// the name; [`backing`](Tensor::backing) tells parts apart. `None` when the rows are not all there.
    pub fn part(&self, rows: Range<usize>) -> Option<Tensor> {
        if rows.start > rows.end || rows.end > self.rows() {
            return None;
        }
        let (first, n) = (self.range.start, self.row_bytes());
        let dims = [self.cols(), rows.len()];
        let mut part = Tensor::new("", self.ty, &dims, self.bytes.clone(), first + rows.start * n..first + rows.end * n)?;
        part.name = self.name.clone();
        Some(part)
    }

    /// Its bytes as blocks of type `B`, or numbers. The caller names the block type that [`ty`](Tensor::ty) calls for.
    ///
    /// # Panics
    /// When `B`'s size does not divide the tensor or its alignment exceeds 4: a bug of ours, never a property of a file.
    pub fn blocks<B: AnyBitPattern>(&self) -> &[B] {
        bytemuck::cast_slice(self.bytes())
    }

    /// See [`Bytes::fetch`].
    pub fn fetch(&self) {
        self.bytes.fetch(self.range.clone());
    }

    /// The bytes that back it, and where in them it lies.
    pub fn backing(&self) -> (&Arc<Bytes>, Range<usize>) {
        (&self.bytes, self.range.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_rows_they_say() {
        let data: Vec<u8> = (0..2 * 3 * 34u32).map(|i| i as u8).collect();
        let stack = Tensor::owned("blk.0.ffn_up_exps.weight", GgmlType::Q8_0, &[32, 3, 2], &data).unwrap();
        let second = stack.part(3..6).unwrap();
        assert_eq!((second.name(), second.dims(), second.rows()), (stack.name(), [32, 3].as_slice(), 3));
        assert_eq!(second.bytes(), &data[102..]);
        assert_eq!(second.backing().1, 102..204);
        assert!(stack.part(4..7).is_none() && stack.part(6..6).is_some_and(|t| t.is_empty()));
    }

    #[test]
    fn fetched_bytes_are_those_of_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        io::Write::write_all(&mut file, &data).unwrap();
        for bytes in [Bytes::map(&file).unwrap(), Bytes::owned(&data)] {
            for range in [0..0, 0..100_000, 5_000..5_001, 4_000..90_000, 9..200_000] {
                bytes.sparsely(|| bytes.fetch(range.clone()));
                bytes.evict(range.clone());
                bytes.fetch(range);
            }
            assert!(bytes.as_slice() == data);
        }
    }
}
