//! One tensor of one file: where its elements lie, and reading boxes of them with bounded memory.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use half::slice::HalfFloatSliceExt;

use super::Dtype;
use super::source::Source;
use crate::error::{ConvertError, Result};

/// Most bytes read at once.
const PIECE_BYTES: usize = 1 << 20;
/// A gap longer than this, in bytes, is jumped over rather than read.
const GAP_BYTES: usize = 64 << 10;
/// Most dimensions of a tensor.
const MAX_DIMS: usize = 8;

/// What a tensor's elements are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Element {
    /// A type that is read.
    Float(Dtype),
    /// A type that is not, with its name and its size in bytes.
    Other(String, u64),
}

impl Element {
    fn bytes(&self) -> u64 {
        match self {
            Element::Float(dtype) => dtype.bytes() as u64,
            Element::Other(_, bytes) => *bytes,
        }
    }
}

/// A run of bytes in a file, with the checksum they should have, if it is known.
pub(super) struct Storage {
    pub file: Arc<Source>,
    pub start: u64,
    pub bytes: u64,
    crc: Option<Check>,
}

struct Check {
    wanted: u32,
    seen: Mutex<Seen>,
}

/// The checksum of the bytes up to `upto`; done when that is the end.
struct Seen {
    hasher: crc32fast::Hasher,
    upto: u64,
}

impl Storage {
    pub fn new(file: Arc<Source>, start: u64, bytes: u64, crc32: Option<u32>) -> Storage {
        let crc = crc32.map(|wanted| Check { wanted, seen: Mutex::new(Seen { hasher: crc32fast::Hasher::new(), upto: 0 }) });
        Storage { file, start, bytes, crc }
    }

    /// The checksum the file states.
    pub fn crc32(&self) -> Option<u32> {
        self.crc.as_ref().map(|c| c.wanted)
    }

    /// Reads `out.len()` bytes from `offset`, and takes them into the checksum if they are the next.
    fn read(&self, offset: u64, out: &mut [u8], ordered: bool) -> Result<()> {
        let at = self.start.saturating_add(offset);
        self.file.read(at, out)?;
        if ordered {
            self.note(offset, out)?;
        }
        self.file.forget(at, out.len());
        Ok(())
    }

    /// Takes bytes just read into the checksum. Ones already taken are skipped, ones left out so far are read first: threads may
    /// bring their pieces in any order.
    fn note(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some(check) = &self.crc else { return Ok(()) };
        // A thread that panicked while hashing left at worst a wrong checksum, which is then reported.
        let mut seen = check.seen.lock().unwrap_or_else(PoisonError::into_inner);
        self.catch_up(check, &mut seen, offset)?;
        let known = usize::try_from(seen.upto.saturating_sub(offset)).unwrap_or(usize::MAX);
        match bytes.get(known..) {
            Some(fresh) if !fresh.is_empty() => self.feed(check, &mut seen, fresh),
            _ => Ok(()),
        }
    }

    fn catch_up(&self, check: &Check, seen: &mut Seen, upto: u64) -> Result<()> {
        let mut buffer = Vec::new();
        while seen.upto < upto {
            let count = (upto - seen.upto).min(PIECE_BYTES as u64) as usize;
            buffer.resize(count, 0);
            let at = self.start.saturating_add(seen.upto);
            self.file.read(at, &mut buffer)?;
            self.feed(check, seen, &buffer)?;
            self.file.forget(at, count);
        }
        Ok(())
    }

    fn feed(&self, check: &Check, seen: &mut Seen, bytes: &[u8]) -> Result<()> {
        seen.hasher.update(bytes);
        seen.upto += bytes.len() as u64;
        if seen.upto < self.bytes {
            return Ok(());
        }
        let found = seen.hasher.clone().finalize();
        if found == check.wanted {
            return Ok(());
        }
        // Whoever asks next is told again.
        *seen = Seen { hasher: crc32fast::Hasher::new(), upto: 0 };
        let what = format!("its data does not match its checksum (CRC-32 {found:#010x}, stated {:#010x})", check.wanted);
        Err(ConvertError::invalid(self.file.path(), what, "the file is damaged; get it again").at(self.start))
    }

    /// Checks all bytes, unless that was done before.
    fn verify(&self) -> Result<()> {
        let Some(check) = &self.crc else { return Ok(()) };
        let mut seen = check.seen.lock().unwrap_or_else(PoisonError::into_inner);
        self.catch_up(check, &mut seen, self.bytes)
    }
}

/// Which elements of a storage make a tensor.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// First element.
    offset: usize,
    /// Sizes, outermost first.
    shape: Vec<usize>,
    /// In elements.
    stride: Vec<usize>,
}

impl Layout {
    /// Row-major from the storage's first element.
    pub fn contiguous(shape: Vec<usize>) -> Layout {
        let stride = dense(&shape);
        Layout { offset: 0, shape, stride }
    }

    /// From the numbers a pickle states, which may be anything.
    pub fn from_pickle(offset: i64, shape: &[i64], stride: &[i64]) -> Result<Layout, String> {
        let whole = |numbers: &[i64]| numbers.iter().map(|&n| usize::try_from(n)).collect::<Result<Vec<_>, _>>();
        match (usize::try_from(offset), whole(shape), whole(stride)) {
            (Ok(offset), Ok(shape), Ok(stride)) if shape.len() == stride.len() => Ok(Layout { offset, shape, stride }),
            _ => Err(format!("has an impossible layout: offset {offset}, shape {shape:?}, stride {stride:?}")),
        }
    }

    /// Elements; none on overflow.
    fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
    }

    /// One past the last element used; none on overflow.
    fn end(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(self.offset);
        }
        let reach = self.shape.iter().zip(&self.stride).try_fold(0usize, |n, (&d, &s)| n.checked_add((d - 1).checked_mul(s)?))?;
        self.offset.checked_add(reach)?.checked_add(1)
    }
}

/// Row-major strides.
fn dense(shape: &[usize]) -> Vec<usize> {
    let mut stride: Vec<usize> = shape
        .iter()
        .rev()
        .scan(1usize, |n, &d| {
            let this = *n;
            *n = n.saturating_mul(d);
            Some(this)
        })
        .collect();
    stride.reverse();
    stride
}

/// A tensor of one file. Every element it names lies in its storage.
pub(super) struct Stored {
    element: Element,
    layout: Layout,
    storage: Arc<Storage>,
    /// The tensor is the storage, element for element.
    whole: bool,
}

/// One direction of a box: how many steps, and how far one goes in the storage and in the output, in elements.
#[derive(Clone, Copy, Debug)]
struct Axis {
    count: usize,
    from: usize,
    to: usize,
}

impl Stored {
    /// # Errors
    /// A text, when the layout leaves the storage, repeats elements beyond its size or has too many dimensions.
    pub fn new(element: Element, layout: Layout, storage: Arc<Storage>) -> Result<Stored, String> {
        let held = usize::try_from(storage.bytes / element.bytes()).unwrap_or(usize::MAX);
        let Layout { offset, shape, stride } = &layout;
        if shape.len() > MAX_DIMS {
            return Err(format!("has {} dimensions; at most {MAX_DIMS} are read", shape.len()));
        }
        let (Some(elements), Some(end)) = (layout.elements(), layout.end()) else {
            return Err(format!("has an impossible layout: offset {offset}, shape {shape:?}, stride {stride:?}"));
        };
        if end > held {
            return Err(format!(
                "reaches element {end} of a storage of {held} elements (offset {offset}, shape {shape:?}, stride {stride:?})"
            ));
        }
        if elements > held {
            return Err(format!("is expanded: shape {shape:?} over a storage of {held} elements; save it with .contiguous()"));
        }
        let packed = shape.iter().zip(stride).zip(dense(shape)).all(|((&d, &s), t)| d == 1 || s == t);
        let whole = *offset == 0 && elements == held && packed;
        Ok(Stored { element, layout, storage, whole })
    }

    /// A tensor of an unsupported type, known only by its shape.
    pub fn unreadable(element: Element, shape: Vec<usize>, storage: Arc<Storage>) -> Stored {
        Stored { element, layout: Layout::contiguous(shape), storage, whole: false }
    }

    pub fn shape(&self) -> &[usize] {
        &self.layout.shape
    }

    pub fn file(&self) -> &Source {
        &self.storage.file
    }

    /// The element type, if it is one that is read.
    pub fn dtype(&self) -> Result<Dtype> {
        match &self.element {
            Element::Float(dtype) => Ok(*dtype),
            Element::Other(name, _) => Err(ConvertError::invalid(
                self.file().path(),
                format!("holds elements of type {name}; F32, F16 and BF16 are read"),
                "convert the tensor to one of these before saving",
            )
            .at(self.storage.start)),
        }
    }

    /// The stated checksum of the tensor's bytes: known when it is a whole storage.
    pub fn crc32(&self) -> Option<u32> {
        self.storage.crc32().filter(|_| self.whole)
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> u64 {
        self.layout.elements().unwrap_or(0) as u64 * self.element.bytes()
    }

    /// Reads `rows` of dimension 0 (of a scalar: the one element), as f32. Row r begins at `out[at + (r - rows.start) * pitch]`
    /// and is dense from there.
    ///
    /// # Errors
    /// A failed read, or a wrong checksum. A tensor that is a whole storage is checked as it is read; the others' storages are checked
    /// in whole before the first use.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32], at: usize, pitch: usize) -> Result<()> {
        self.read_in_pieces(rows, out, at, pitch, PIECE_BYTES, GAP_BYTES)
    }

    fn read_in_pieces(&self, rows: Range<usize>, out: &mut [f32], at: usize, pitch: usize, most: usize, gap: usize) -> Result<()> {
        let dtype = self.dtype()?;
        if !self.whole {
            self.storage.verify()?;
        }
        if rows.is_empty() || self.layout.shape.contains(&0) {
            return Ok(());
        }
        let layout = &self.layout;
        let to = dense(&layout.shape);
        let mut axes: Vec<Axis> =
            layout.shape.iter().zip(&layout.stride).zip(&to).map(|((&count, &from), &to)| Axis { count, from, to }).collect();
        let mut start = layout.offset;
        if let Some(first) = axes.first_mut() {
            start += rows.start * first.from;
            first.count = rows.len();
            first.to = pitch;
        }
        let axes = simplified(axes);
        let mut reader = Reader { storage: &self.storage, dtype, ordered: self.whole, most, gap, buffer: Vec::new() };
        reader.gather(start, &axes, out, at)
    }
}

/// The same box with as few axes as possible, the longest steps in the storage first.
fn simplified(mut axes: Vec<Axis>) -> Vec<Axis> {
    axes.retain(|a| a.count > 1);
    axes.sort_by_key(|a| std::cmp::Reverse(a.from));
    let mut out: Vec<Axis> = Vec::with_capacity(axes.len());
    for inner in axes {
        match out.last_mut() {
            Some(outer) if outer.from == inner.count * inner.from && outer.to == inner.count * inner.to => {
                *outer = Axis { count: outer.count * inner.count, ..inner };
            }
            _ => out.push(inner),
        }
    }
    out
}

struct Reader<'a> {
    storage: &'a Storage,
    dtype: Dtype,
    ordered: bool,
    /// Most bytes read at once.
    most: usize,
    /// The longest gap read over, in bytes.
    gap: usize,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    /// Copies a box, cutting it along its longest steps until a piece's bytes, gaps included, are few enough to be read at once.
    fn gather(&mut self, start: usize, axes: &[Axis], out: &mut [f32], at: usize) -> Result<()> {
        let size = self.dtype.bytes();
        let span: usize = 1 + axes.iter().map(|a| (a.count - 1) * a.from).sum::<usize>();
        let (outer, inner) = match axes.split_first() {
            // One element fits, so there is an axis when something does not.
            Some((outer, inner)) if span * size > self.most => (*outer, inner),
            _ => return self.piece(start, span, axes, out, at),
        };
        let inner_span: usize = 1 + inner.iter().map(|a| (a.count - 1) * a.from).sum::<usize>();
        let step = outer.from.max(1);
        let gap = step.saturating_sub(inner_span) * size;
        let room = (self.most / size).saturating_sub(inner_span);
        let most = if gap > self.gap { 1 } else { 1 + room / step };
        let mut done = 0;
        while done < outer.count {
            let count = most.min(outer.count - done);
            let mut piece = Vec::with_capacity(axes.len());
            if count > 1 {
                piece.push(Axis { count, ..outer });
            }
            piece.extend_from_slice(inner);
            self.gather(start + done * outer.from, &piece, out, at + done * outer.to)?;
            done += count;
        }
        Ok(())
    }

    fn piece(&mut self, start: usize, span: usize, axes: &[Axis], out: &mut [f32], at: usize) -> Result<()> {
        let size = self.dtype.bytes();
        debug_assert!(axes.iter().map(|a| (a.count - 1) * a.to).sum::<usize>() + at < out.len());
        self.buffer.resize(span * size, 0);
        self.storage.read((start * size) as u64, &mut self.buffer, self.ordered)?;
        scatter(self.dtype, &self.buffer, axes, out, at);
        Ok(())
    }
}

/// Converts the elements of a box, whose first is the first of `bytes`.
fn scatter(dtype: Dtype, bytes: &[u8], axes: &[Axis], out: &mut [f32], at: usize) {
    let size = dtype.bytes();
    match axes {
        [] => widen(dtype, bytes.get(..size).unwrap_or_default(), out.get_mut(at..at + 1).unwrap_or_default()),
        [Axis { count, from: 1, to: 1 }] => {
            widen(dtype, bytes.get(..count * size).unwrap_or_default(), out.get_mut(at..at + count).unwrap_or_default());
        }
        [outer, inner @ ..] => {
            for i in 0..outer.count {
                let rest = bytes.get(i * outer.from * size..).unwrap_or_default();
                scatter(dtype, rest, inner, out, at + i * outer.to);
            }
        }
    }
}

/// `out[i]` = element i of `bytes`, little-endian.
fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    debug_assert_eq!(bytes.len(), out.len() * dtype.bytes());
    match dtype {
        Dtype::F32 => {
            let (elements, _) = bytes.as_chunks::<4>();
            out.iter_mut().zip(elements).for_each(|(o, b)| *o = f32::from_le_bytes(*b));
        }
        Dtype::BF16 => {
            let (elements, _) = bytes.as_chunks::<2>();
            out.iter_mut().zip(elements).for_each(|(o, b)| *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16));
        }
        Dtype::F16 => match bytemuck::try_cast_slice::<u8, u16>(bytes) {
            // Bytes of an even place in the buffer: the crate's vector conversion can be used.
            Ok(words) if cfg!(target_endian = "little") && words.len() == out.len() => {
                half::slice::HalfBitsSliceExt::reinterpret_cast::<half::f16>(words).convert_to_f32_slice(out);
            }
            _ => {
                let (elements, _) = bytes.as_chunks::<2>();
                out.iter_mut().zip(elements).for_each(|(o, b)| *o = half::f16::from_le_bytes(*b).to_f32());
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    fn storage(elements: usize, crc: bool) -> (Vec<f32>, Arc<Storage>) {
        let values: Vec<f32> = (0..elements).map(|i| i as f32 - 7.5).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let crc32 = crc.then(|| crc32fast::hash(&bytes));
        let length = bytes.len() as u64;
        (values, Arc::new(Storage::new(Arc::new(Source::memory(Path::new("memory"), bytes)), 0, length, crc32)))
    }

    proptest! {
        /// Any layout, read in any pieces, is what indexing says.
        #[test]
        fn any_layout_reads_as_indexed(
            dims in prop::collection::vec((1usize..6, 0usize..14), 0..5),
            offset in 0usize..9,
            cut in (0usize..6, 0usize..6),
            most in 4usize..96,
            gap in 0usize..64,
        ) {
            let shape: Vec<usize> = dims.iter().map(|d| d.0).collect();
            let stride: Vec<usize> = dims.iter().map(|d| d.1).collect();
            let (values, storage) = storage(1600, true);
            let layout = Layout { offset, shape: shape.clone(), stride: stride.clone() };
            let stored = Stored::new(Element::Float(Dtype::F32), layout, storage).unwrap();
            let rows = shape.first().copied().unwrap_or(1);
            let (a, b) = (cut.0.min(rows), cut.1.min(rows));
            let (a, b) = if shape.is_empty() { (0, 1) } else { (a.min(b), a.max(b)) };
            let width: usize = shape.iter().skip(1).product();
            let pitch = width + 3;
            let mut out = vec![f32::NAN; 2 + (b - a) * pitch];
            stored.read_in_pieces(a..b, &mut out, 2, pitch, most, gap).unwrap();
            for r in a..b {
                for c in 0..width {
                    let (mut rest, mut at) = (c, offset);
                    for (&d, &s) in shape.iter().zip(&stride).skip(1).rev() {
                        at += rest % d * s;
                        rest /= d;
                    }
                    at += r * stride.first().copied().unwrap_or(0);
                    prop_assert_eq!(out[2 + (r - a) * pitch + c], values[at]);
                }
            }
            // Nothing else was written.
            prop_assert_eq!(out.iter().filter(|v| !v.is_nan()).count(), (b - a) * width);
        }
    }

    #[test]
    fn a_whole_storage_is_checked_in_any_order() {
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 3, 0]] {
            for damaged in [false, true] {
                let (_, good) = storage(64, true);
                let crc = good.crc32().unwrap() ^ u32::from(damaged);
                let storage = Arc::new(Storage::new(good.file.clone(), 0, good.bytes, Some(crc)));
                let stored = Stored::new(Element::Float(Dtype::F32), Layout::contiguous(vec![4, 16]), storage).unwrap();
                assert!(stored.whole);
                let mut out = [0.0; 16];
                let read = order.iter().try_for_each(|&r| stored.read_rows(r..r + 1, &mut out, 0, 16));
                assert_eq!(read.is_err(), damaged, "{order:?}");
                if let Err(e) = read {
                    assert!(e.to_string().contains("does not match its checksum"), "{e}");
                }
            }
        }
    }

    #[test]
    fn a_part_of_a_damaged_storage_is_not_given_out() {
        let (_, good) = storage(64, true);
        let storage = Arc::new(Storage::new(good.file.clone(), 0, good.bytes, Some(good.crc32().unwrap() ^ 1)));
        let layout = Layout { offset: 0, shape: vec![1], stride: vec![1] };
        let stored = Stored::new(Element::Float(Dtype::F32), layout, storage).unwrap();
        for _ in 0..2 {
            assert!(stored.read_rows(0..1, &mut [0.0], 0, 1).is_err());
        }
    }

    #[test]
    fn layouts_that_leave_the_storage_are_refused() {
        let cases: [(i64, &[i64], &[i64], &str); 9] = [
            (-1, &[2], &[1], "impossible"),
            (0, &[-2], &[1], "impossible"),
            (0, &[2, 2], &[-2, 1], "impossible"),
            (0, &[2, 2], &[1], "impossible"),
            (0, &[1 << 40, 1 << 40], &[1, 1], "impossible"),
            (0, &[3, 3], &[i64::MAX, i64::MAX], "impossible"),
            (63, &[2], &[1], "reaches element 65 of a storage of 64"),
            (0, &[2, 2], &[1 << 40, 1], "reaches element"),
            (0, &[1_000_000_000_000], &[0], "is expanded"),
        ];
        for (offset, shape, stride, wanted) in cases {
            let made =
                Layout::from_pickle(offset, shape, stride).and_then(|l| Stored::new(Element::Float(Dtype::F32), l, storage(64, false).1));
            let what = made.err().unwrap();
            assert!(what.contains(wanted), "{what}");
        }
        // Steps of a single element do not matter.
        let layout = Layout::from_pickle(63, &[1, 1], &[i64::MAX, 0]).unwrap();
        let stored = Stored::new(Element::Float(Dtype::F32), layout, storage(64, false).1).unwrap();
        let mut out = [0.0];
        stored.read_rows(0..1, &mut out, 0, 1).unwrap();
        assert_eq!(out, [55.5]);
    }
}
