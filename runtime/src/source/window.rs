//! Weights that are in memory only while they are used.
//!
//! What runs block by block, an encoder or a decoder, needs the weights of one block at a time. Where memory does not hold them
//! all, a thread has the next block read while one computes, and what has been used is dropped at once, so that no page is kept
//! that will not be wanted before all others were.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use sphinx_quant::tensor::Bytes;

/// Bytes that are read at a time.
const STEP: usize = 4 << 20;

/// The blocks of something that runs them in order, again and again.
#[derive(Debug)]
pub(crate) struct Window {
    bytes: Arc<Bytes>,
    /// What each block's weights occupy in the file; nothing for a block that stays.
    blocks: Arc<Vec<Vec<Range<usize>>>>,
    /// Whether the first block follows the last.
    again: bool,
    /// Which block is to be read, and the turn that it is read for.
    ask: Mutex<Option<Sender<(usize, u64)>>>,
    /// Turns that have begun, and the last that has ended.
    begun: AtomicU64,
    ended: Arc<AtomicU64>,
    reader: Option<JoinHandle<()>>,
}

impl Window {
    /// A window over `blocks`, whose weights lie at these places of `bytes`. Empty ones stay in memory. With `again` the first block is
    /// read while the last one runs.
    pub(crate) fn new(bytes: &Arc<Bytes>, blocks: Vec<Vec<Range<usize>>>, again: bool) -> Window {
        let blocks = Arc::new(blocks);
        let (ask, asked) = channel::<(usize, u64)>();
        let ended = Arc::new(AtomicU64::new(0));
        let over = Arc::clone(&ended);
        let (bytes, theirs, places) = (Arc::clone(bytes), Arc::clone(bytes), Arc::clone(&blocks));
        let read = move || {
            while let Ok((mut block, mut turn)) = asked.recv() {
                // Whoever asks faster than the disk reads wants the last.
                while let Ok(later) = asked.try_recv() {
                    (block, turn) = later;
                }
                // A block that has run meanwhile is not wanted any more, and what was read of it too late goes again.
                let is_over = || over.load(Ordering::Acquire) >= turn;
                for range in &places[block] {
                    range.clone().step_by(STEP).take_while(|_| !is_over()).for_each(|at| theirs.fetch(at..(at + STEP).min(range.end)));
                }
                if is_over() {
                    places[block].iter().for_each(|range| theirs.evict(range.clone()));
                }
            }
        };
        // Without the thread, pages are read when they are touched.
        let reader = std::thread::Builder::new().name("sphinx-window".into()).spawn(read).ok();
        Window { bytes, blocks, again, ask: Mutex::new(Some(ask)), begun: AtomicU64::new(0), ended, reader }
    }

    /// Says that block `block` is about to run: the one after it is read meanwhile. When what this returns is dropped, the block
    /// has run.
    pub(crate) fn turn(&self, block: usize) -> Turn<'_> {
        let turn = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let next = if block + 1 == self.blocks.len() && self.again { 0 } else { block + 1 };
        if next != block
            && self.blocks.get(next).is_some_and(|places| !places.is_empty())
            && let Some(ask) = &*self.ask.lock().unwrap_or_else(PoisonError::into_inner)
        {
            let _ = ask.send((next, turn + 1));
        }
        Turn { window: self, block, turn }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.ask.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// While it lives, a block runs.
pub(crate) struct Turn<'a> {
    window: &'a Window,
    block: usize,
    turn: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.window.ended.store(self.turn, Ordering::Release);
        for range in &self.window.blocks[self.block] {
            self.window.bytes.evict(range.clone());
        }
    }
}

/// What lies at `places`, in order and without overlap, each cut to whole pages inside it: neighbours may be in use.
pub(crate) fn whole_pages(mut places: Vec<Range<usize>>) -> Vec<Range<usize>> {
    const PAGE: usize = 4096;
    places.sort_unstable_by_key(|range| range.start);
    places.dedup_by(|next, last| {
        let near = next.start < last.end + PAGE;
        if near {
            last.end = last.end.max(next.end);
        }
        near
    });
    let inner = |r: Range<usize>| r.start.next_multiple_of(PAGE)..r.end / PAGE * PAGE;
    places.into_iter().map(inner).filter(|r| r.start < r.end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_neighbours_are_left_alone() {
        let pairs = |places| whole_pages(places).into_iter().map(|r| (r.start, r.end)).collect::<Vec<_>>();
        assert_eq!(pairs(vec![10_000..20_000, 100..9_000]), [(4096, 16_384)]);
        assert_eq!(pairs(vec![0..4096, 12_288..12_300]), [(0, 4096)]);
    }

    #[test]
    fn blocks_are_the_same_every_time() {
        let mut file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i / 4096) as u8).collect();
        std::io::Write::write_all(&mut file, &data).unwrap();
        let bytes = Arc::new(Bytes::map(&file).unwrap());
        let blocks: Vec<_> = (0..8).map(|b| Vec::from_iter((b != 3).then_some(b << 17..(b + 1) << 17))).collect();
        let window = Window::new(&bytes, blocks, true);
        for _ in 0..3 {
            for b in 0..8 {
                let _turn = window.turn(b);
                assert!(bytes.as_slice()[b << 17..(b + 1) << 17] == data[b << 17..(b + 1) << 17]);
            }
        }
    }
}
