//! Decoding a token allocates nothing, and changes nothing for any number of threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use sphinx_quant::{GgmlType, Tensor, block};
use sphinx_targets::cpu::{CpuOptions, CpuTarget};
use sphinx_targets::{Activation, After, KvShape, KvType, Linear, Mlp, Result, Rope, Target};

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

fn tensor(ty: GgmlType, rows: usize, cols: usize) -> Tensor {
    let row_bytes = ty.row_bytes(cols).expect("whole blocks");
    let mut bytes = vec![0u8; rows * row_bytes];
    for (r, out) in bytes.chunks_mut(row_bytes).enumerate() {
        let row: Vec<f32> = (0..cols).map(|c| ((r * 31 + c * 17) % 101) as f32 * 0.002 - 0.1).collect();
        block::quantize(ty, &row, None, out);
    }
    Tensor::owned("t", ty, &[cols, rows], &bytes).expect("the bytes are a matrix")
}

/// Decodes `tokens` tokens through one layer; returns the last state and the allocations after the first token.
fn decode(t: &CpuTarget, weights: GgmlType, cache: KvType, tokens: usize) -> Result<(Vec<f32>, usize)> {
    let (embd, heads, kv_heads, head_dim, hidden) = (256, 4, 2, 64, 512);
    let matrix = |rows, cols| t.matrix(&[tensor(weights, rows, cols)]);
    let linear = |rows, cols| Ok::<_, sphinx_targets::TargetError>(Linear { weight: matrix(rows, cols)?, bias: None });
    let (table, norm) = (matrix(50, embd)?, t.vector_from(&vec![1.0; embd])?);
    let (qkv, output) = (linear((heads + 2 * kv_heads) * head_dim, embd)?, linear(embd, heads * head_dim)?);
    let mlp = Mlp { up: linear(2 * hidden, embd)?, act: Activation::SiluGate, down: linear(embd, hidden)? };
    let fine =
        |rows, cols| Ok::<_, sphinx_targets::TargetError>(Linear { weight: t.matrix_fine(&[tensor(weights, rows, cols)])?, bias: None });
    let (fine_output, expert) =
        (fine(embd, heads * head_dim)?, Mlp { up: fine(2 * hidden, embd)?, act: Activation::SiluGate, down: fine(embd, hidden)? });
    let router = Linear { weight: t.matrix(&[tensor(GgmlType::F32, 8, embd)])?, bias: None };
    let (mut logits, mut chosen) = (t.buffer(1, 8)?, t.buffer(2, embd)?);
    let mut scores = [0.0; 8];
    let mut kv = t.kv(KvShape { capacity: 100, heads, kv_heads, head_dim, ty: cache })?;
    let rope = Rope::new(head_dim, 10000.0, 1.0);
    let (mut x, mut normed) = (t.buffer(1, embd)?, t.buffer(1, embd)?);
    let (mut packed, mut mixed) = (t.buffer(1, (heads + 2 * kv_heads) * head_dim)?, t.buffer(1, heads * head_dim)?);
    let mut before = 0;
    for pos in 0..tokens {
        if pos == 1 {
            // Nobody waits for the threads to start, and starting allocates.
            std::thread::sleep(std::time::Duration::from_millis(50));
            before = COUNT.load(Ordering::SeqCst);
        }
        t.embed(&table, &[(pos * 7 % 50) as u32], &mut x, 0)?;
        t.rms_norm(&x, &norm, 1e-5, &mut normed)?;
        t.linear(&normed, &qkv, After::Nothing, &mut packed)?;
        t.rope_append(&mut packed, &rope, &mut kv, pos)?;
        t.attend_cached(&packed, &kv, pos, &mut mixed)?;
        t.linear(&mixed, &output, After::Add, &mut x)?;
        t.linear(&mixed, &fine_output, After::Add, &mut x)?;
        t.rms_norm(&x, &norm, 1e-5, &mut normed)?;
        t.mlp(&normed, &mlp, After::Add, &mut x)?;
        t.linear(&normed, &router, After::Nothing, &mut logits)?;
        t.read(&logits, 0, &mut scores)?;
        t.expert_mlp(&normed, &[1], 2, &expert, &mut chosen)?;
        t.expert_mlp(&normed, &[0], 2, &mlp, &mut chosen)?;
        t.mix_experts(&chosen, &[scores[0].abs().min(0.5), 0.25], 2, &mut x)?;
    }
    let after = COUNT.load(Ordering::SeqCst);
    Ok((x.values().to_vec(), after - before))
}

// One test, so that nothing else allocates meanwhile.
#[test]
fn decoding_allocates_nothing() -> Result<()> {
    for (weights, cache) in [(GgmlType::Q4_K, KvType::F16), (GgmlType::Q8_0, KvType::Q8_0), (GgmlType::F16, KvType::F32)] {
        let mut states = Vec::new();
        for threads in [1, 2, 5] {
            let t = CpuTarget::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() })?;
            let (state, allocations) = decode(&t, weights, cache, 40)?;
            assert_eq!(allocations, 0, "{weights} {}", t.name());
            assert!(state.iter().all(|v| v.is_finite()));
            states.push(state);
        }
        assert!(states.iter().all(|s| *s == states[0]), "{weights}: results depend on the number of threads");
    }
    Ok(())
}
