//! Memory while a file is opened: at most 64 MB and four times the metadata that is there.
//!
//! Alone in its file, so that nothing else allocates meanwhile.

mod gguf_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use gguf_support::*;
use sphinx_quant::gguf::Gguf;

struct Counting;
static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // malloc's own share: 16-byte steps and a header.
        PEAK.fetch_max(NOW.fetch_add(layout.size() + 16, Relaxed) + layout.size() + 16, Relaxed);
        // SAFETY: the caller keeps GlobalAlloc's promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size() + 16, Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Peak bytes beyond the file itself while it is opened, and whether it opened.
fn peak(path: &std::path::Path, bytes: &[u8]) -> (usize, bool) {
    std::fs::write(path, bytes).unwrap();
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let opened = Gguf::open(path).is_ok();
    (PEAK.load(Relaxed) - before, opened)
}

#[test]
fn bounded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let strings = |n: usize, s: &str| key("s", ARRAY, array(STR, n as u64, string(s).repeat(n)));
    let many_keys = |n: usize| {
        let mut hand = Hand::new();
        hand.keys.extend((0..n).map(|i| key(format!("{i:x}"), U8, [0])));
        hand.bytes()
    };
    let many_tensors = |n: usize| {
        let all: Vec<_> = (0..n).map(|i| tensor(format!("{i:x}"), &[1], 0, 32 * i as u64)).collect();
        Hand::new().tensors(&all).data(32 * n).bytes()
    };
    for (what, file, opens) in [
        ("a million empty strings", Hand::new().key(strings(1 << 20, "")).bytes(), true),
        ("a million short strings", Hand::new().key(strings(1 << 20, "x")).bytes(), true),
        ("more strings than are read", Hand::new().key(strings((1 << 20) + 1, "")).bytes(), false),
        ("numbers", Hand::new().key(key("n", ARRAY, array(U8, 16 << 20, vec![1; 16 << 20]))).bytes(), true),
        ("all keys", many_keys(65_535), true),
        ("all tensors", many_tensors(65_536), true),
        ("declared strings, large data", Hand::new().key(key("s", ARRAY, array(STR, 1 << 20, []))).data(64 << 20).bytes(), false),
        ("a declared array", Hand::new().key(key("n", ARRAY, array(U64, 16 << 20, []))).data(1 << 20).bytes(), false),
    ] {
        let (peak, opened) = peak(&path, &file);
        let metadata = if opened { Gguf::open(&path).unwrap().data_offset() as usize } else { 0 };
        assert_eq!(opened, opens, "{what}");
        assert!(peak <= (64 << 20) + 4 * metadata, "{what}: {} MiB for {} MiB", peak >> 20, metadata >> 20);
    }
}
