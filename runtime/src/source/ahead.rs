//! Weights read from disk ahead of their use.
//!
//! A page of a mapped file that is not in memory is read when a kernel touches it, and the kernel waits. Here a thread has the
//! weights of a file read in their order, which is that of their use, while the first layers compute.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sphinx_quant::gguf::Gguf;
use sphinx_quant::tensor::Bytes;

use crate::Memory;

/// Bytes asked for at a time, between looks whether anybody still wants them.
const STEP: usize = 4 << 20;

/// Reads ahead until it is done or dropped.
#[derive(Debug)]
pub(crate) struct Ahead {
    stop: Arc<AtomicBool>,
}

impl Ahead {
    /// Begins to read the tensors of `file` whose names are `wanted`; `None` when the memory that is available does not hold
    /// them beside as much again: then reading one would push out another.
    pub(crate) fn start(file: &Gguf, wanted: impl Fn(&str) -> bool) -> Option<Ahead> {
        let (bytes, _) = file.tensors().first()?.backing();
        let places = file.tensors().iter().filter(|t| wanted(t.name())).map(|t| t.backing().1);
        let ranges = joined(places.collect(), file.alignment() as usize);
        let sum: usize = ranges.iter().map(Range::len).sum();
        if sum as u64 > Memory::available()? / 2 {
            return None;
        }
        let ahead = Ahead { stop: Arc::default() };
        let (bytes, stop) = (Arc::clone(bytes), Arc::clone(&ahead.stop));
        let read = move || read(&bytes, &ranges, &stop);
        std::thread::Builder::new().name("sphinx-ahead".into()).spawn(read).ok()?;
        Some(ahead)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What lies at `places`, in order; what only padding parts as one.
fn joined(mut places: Vec<Range<usize>>, padding: usize) -> Vec<Range<usize>> {
    places.sort_unstable_by_key(|range| range.start);
    places.dedup_by(|next, last| {
        let near = next.start < last.end + padding;
        if near {
            last.end = last.end.max(next.end);
        }
        near
    });
    places
}

fn read(bytes: &Bytes, ranges: &[Range<usize>], stop: &AtomicBool) {
    for range in ranges {
        for start in range.clone().step_by(STEP) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            bytes.fetch(start..(start + STEP).min(range.end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_read_as_one() {
        assert_eq!(joined(vec![64..90, 0..60, 96..100, 200..300], 32), [0..100, 200..300]);
        assert_eq!(joined(vec![0..10, 2..5, 42..50], 32), [0..10, 42..50]);
        assert!(joined(Vec::new(), 32).is_empty());
    }

    #[test]
    fn files_end_anywhere() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &vec![7u8; 3 * STEP + 5]).unwrap();
        let bytes = Bytes::map(&file).unwrap();
        read(&bytes, &[0..3 * STEP + 5, 9..9, STEP..5 * STEP], &AtomicBool::new(false));
        assert!(bytes.as_slice().iter().all(|&b| b == 7));
    }
}
