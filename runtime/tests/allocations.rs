//! A token of a reply allocates nothing, in dense models and in mixtures.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use sphinx_quant::GgmlType;
use sphinx_runtime::{Options, Sphinx};
use sphinx_targets::KvType;
use sphinx_targets::cpu::{CpuOptions, CpuTarget};
use support::{Form, Model, VOCABULARY};

/// The system's allocator, with a count.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises about `at` and `layout` are passed on.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises about `layout` are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises about `at`, `layout` and `size` are passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// One test, so that nothing else allocates meanwhile.
#[test]
fn a_token_allocates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (experts, used) in [(0, 0), (8, 2), (5, 1)] {
        for ty in [GgmlType::F32, GgmlType::Q8_0] {
            let path = folder.path().join(format!("{experts}-{ty}.gguf"));
            let form = Form { ty: &|name| if name.contains("norm") || name.contains("_inp") { GgmlType::F32 } else { ty }, ..Form::PLAIN };
            Model::random(1, experts, used).write(&path, &form);
            for threads in [1, 3] {
                let target = CpuTarget::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap();
                let model = Sphinx::open(target, &path, &Options { kv: Some(KvType::F16), ..Options::default() }).unwrap();
                let mut session = model.session().unwrap();
                session.prefill(&[1, 5, 9], None).unwrap();
                session.step(7).unwrap(); // what is made once for a single row
                // Nobody waits for the threads to start, and starting allocates.
                std::thread::sleep(std::time::Duration::from_millis(50));
                let before = COUNT.load(Ordering::SeqCst);
                for i in 0..50 {
                    session.step(i * 11 % VOCABULARY as u32).unwrap();
                }
                let allocations = COUNT.load(Ordering::SeqCst) - before;
                assert_eq!(allocations, 0, "{experts} experts, {ty}, {threads} threads");
            }
        }
    }
}
