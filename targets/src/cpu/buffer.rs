//! Memory that kernels read and write: numbers aligned to a cache line.

use crate::{Result, TargetError};

/// Bytes of a cache line, and of the widest vector.
const LINE: usize = 64;

/// A fixed number of zeroed elements, the first of them at a multiple of 64 bytes.
///
/// The system hands out zeroed memory lazily, so a large cache occupies what was written to it.
pub struct Aligned<T> {
    data: Vec<T>,
    skip: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// `len` zeros; `what` names them when there is no memory.
    pub fn zeroed(len: usize, what: &'static str) -> Result<Aligned<T>> {
        let room = LINE / size_of::<T>();
        let no_memory = || TargetError::Memory { bytes: len.saturating_mul(size_of::<T>()), what };
        let total = len.checked_add(room).filter(|n| n.checked_mul(size_of::<T>()).is_some()).ok_or_else(no_memory)?;
        // Asked for and given back, so that a size the system refuses is an error; `vec!` would abort.
        Vec::<T>::new().try_reserve_exact(total).map_err(|_| no_memory())?;
        let data = vec![T::default(); total];
        let skip = data.as_ptr().align_offset(LINE).min(room);
        Ok(Aligned { data, skip, len })
    }

    /// Nothing yet.
    pub fn empty() -> Aligned<T> {
        Aligned { data: Vec::new(), skip: 0, len: 0 }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<T>()
    }

    /// The first `len` elements, after making room for them; what was there is lost when it has to grow.
    pub fn at_least(&mut self, len: usize, what: &'static str) -> Result<&mut [T]> {
        if self.len < len {
            *self = Aligned::empty();
            *self = Aligned::zeroed(len, what)?;
        }
        Ok(&mut self.data[self.skip..self.skip + len])
    }
}

impl<T> std::ops::Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.data[self.skip..self.skip + self.len]
    }
}

impl<T> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.data[self.skip..self.skip + self.len]
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
        Ok(Buffer { data: Aligned::zeroed(len, "an activation buffer")?, capacity, rows: capacity, width })
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
        for len in [0, 1, 15, 16, 17, 1000] {
            let a = Aligned::<f32>::zeroed(len, "test").unwrap();
            assert_eq!(a.len(), len);
            assert_eq!(a.as_ptr() as usize % 64, 0);
            assert!(a.iter().all(|&v| v == 0.0));
        }
        assert!(matches!(Aligned::<f32>::zeroed(usize::MAX / 2, "test"), Err(TargetError::Memory { .. })));
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
