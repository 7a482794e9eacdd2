//! Memory that kernels read and write: numbers aligned to a cache line.

use bytemuck::Pod;
use memmap2::MmapMut;

use crate::{Result, TargetError};

/// Bytes of a cache line, and of the widest vector.
const LINE: usize = 64;

/// From this many bytes on memory is mapped rather than allocated. An allocator that has seen a large block once serves the
/// next one from memory it has to clear, and a cleared page is an occupied one.
const MAPPED_BYTES: usize = 256 << 10;

/// From this many bytes on activations ask for large pages: they are written whole, and a fault for every 4 KiB of them is
/// more work than clearing them.
const HUGE_BYTES: usize = 8 << 20;

/// A fixed number of zeroed elements, the first of them at a multiple of 64 bytes.
///
/// The system hands out zeroed memory lazily, so a large cache occupies what was written to it.
pub struct Aligned<T> {
    data: Data<T>,
    skip: usize,
    len: usize,
}

enum Data<T> {
    Allocated(Vec<T>),
    Mapped(MmapMut),
}

impl<T: Pod> Data<T> {
    fn all(&self) -> &[T] {
        match self {
            Data::Allocated(data) => data,
            // A map begins at a page and holds whole elements.
            Data::Mapped(map) => bytemuck::cast_slice(map),
        }
    }

    fn all_mut(&mut self) -> &mut [T] {
        match self {
            Data::Allocated(data) => data,
            Data::Mapped(map) => bytemuck::cast_slice_mut(map),
        }
    }
}

impl<T: Pod> Aligned<T> {
    /// `len` zeros; `what` names them when there is no memory.
    pub fn zeroed(len: usize, what: &'static str) -> Result<Aligned<T>> {
        let room = LINE / size_of::<T>();
        let no_memory = || TargetError::Memory { bytes: len.saturating_mul(size_of::<T>()), what };
        let total = len.checked_add(room).ok_or_else(no_memory)?;
        let bytes = total.checked_mul(size_of::<T>()).filter(|&n| isize::try_from(n).is_ok()).ok_or_else(no_memory)?;
        let data = if bytes >= MAPPED_BYTES {
            Data::Mapped(MmapMut::map_anon(bytes).map_err(|_| no_memory())?)
        } else {
            Data::Allocated(vec![T::zeroed(); total])
        };
        let skip = data.all().as_ptr().align_offset(LINE).min(room);
        Ok(Aligned { data, skip, len })
    }

    /// Nothing yet.
    pub fn empty() -> Aligned<T> {
        Aligned { data: Data::Allocated(Vec::new()), skip: 0, len: 0 }
    }

    /// Asks for large pages where the system has them.
    fn huge(self) -> Aligned<T> {
        #[cfg(target_os = "linux")]
        if let Data::Mapped(map) = &self.data {
            // Only a wish: without it everything is as before.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        self
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(self.data.all())
    }

    /// The first `len` elements, after making room for them; what was there is lost when it has to grow.
    pub fn at_least(&mut self, len: usize, what: &'static str) -> Result<&mut [T]> {
        if self.len < len {
            *self = Aligned::empty();
            *self = Aligned::zeroed(len, what)?;
        }
        Ok(&mut self.data.all_mut()[self.skip..self.skip + len])
    }
}

impl<T: Pod> std::ops::Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.data.all()[self.skip..self.skip + self.len]
    }
}

impl<T: Pod> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data.all_mut()[self.skip..self.skip + self.len]
    }
}

/// An activation matrix `[rows, width]`, row-major.
pub struct Buffer {
    pub(super) data: Aligned<f32>,
    pub(super) capacity: usize,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl Buffer {
    /// A zeroed matrix of `capacity` rows.
    pub(super) fn new(capacity: usize, width: usize) -> Result<Buffer> {
        let len = capacity.checked_mul(width).ok_or(TargetError::Memory { bytes: usize::MAX, what: "an activation buffer" })?;
        let data = Aligned::zeroed(len, "an activation buffer")?;
        let data = if data.bytes() >= HUGE_BYTES { data.huge() } else { data };
        Ok(Buffer { data, capacity, rows: capacity, width })
    }

    /// The current rows.
    pub fn values(&self) -> &[f32] {
        &self.data[..self.rows * self.width]
    }

    /// The current rows, to be written.
    pub fn values_mut(&mut self) -> &mut [f32] {
        let len = self.rows * self.width;
        &mut self.data[..len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_zeros_of_any_length() {
        for len in [0, 1, 15, 16, 17, 1000, 70_000] {
            let a = Aligned::<f32>::zeroed(len, "test").unwrap();
            assert_eq!(a.len(), len);
            assert_eq!(a.as_ptr() as usize % 64, 0);
            assert!(a.iter().all(|&v| v == 0.0));
        }
        assert!(matches!(Aligned::<f32>::zeroed(usize::MAX / 2, "test"), Err(TargetError::Memory { .. })));
    }

    /// Bytes of this process that are its own and occupied.
    #[cfg(target_os = "linux")]
    fn occupied() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() << 10
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn large_zeros_occupy_nothing_until_they_are_written() {
        let before = occupied();
        let fresh = || {
            // Given back at once, so that an allocator has memory to use again, which it would have to clear.
            drop(std::hint::black_box(Vec::<f32>::with_capacity(4 << 20)));
            Aligned::<f32>::zeroed(4 << 20, "test").unwrap()
        };
        let kept: Vec<_> = (0..32).map(|_| fresh()).collect();
        let grown = occupied().saturating_sub(before);
        // 512 MiB were asked for; other tests of this process take some meanwhile.
        assert!(grown < 256 << 20, "{} MiB for {} caches", grown >> 20, kept.len());
    }

    #[test]
    fn growing_keeps_alignment() {
        let mut a = Aligned::<i8>::empty();
        assert_eq!(a.at_least(10, "test").unwrap().len(), 10);
        assert_eq!(a.at_least(1000, "test").unwrap().len(), 1000);
        assert_eq!(a.at_least(3, "test").unwrap().len(), 3);
        assert_eq!(a.as_ptr() as usize % 64, 0);
    }
}
