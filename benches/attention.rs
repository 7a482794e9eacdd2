//! Attention: prompts and pictures in operations per second, as a share of what f32 multiplications reach; decoding in
//! bytes of keys and values per second, as a share of a plain read.
//!
//! `cargo bench -p sphinx-targets --no-default-features --bench attention`, then words that a case must have one of, such
//! as `-- decode` or `-- tinyllama`, and `--rounds N`. `SPHINX_ISA` caps the instruction set and the limit with it;
//! `SPHINX_THREADS` sets the larger number of threads. Every case is first checked against the portable kernels.

mod support;

use sphinx_targets::cpu::attention::Kv;
use sphinx_targets::cpu::buffer::Buffer;
use sphinx_targets::cpu::{CpuOptions, CpuTarget, Isa};
use sphinx_targets::{AttendShape, Columns, KvShape, KvType, Rope, Target};
use support::clock::{Took, median, time};
use support::limits::{Limit, Limits};
use support::weights;

/// Name, query heads, key heads, width of a head.
const DECODERS: [(&str, usize, usize, usize); 3] = [("tinyllama", 32, 4, 64), ("internlm2-7b", 32, 8, 128), ("llama2-13b", 40, 40, 128)];
/// Name, heads, width of a head, queries of a picture with 257 keys.
const ENCODERS: [(&str, usize, usize, usize); 4] =
    [("dinov2", 24, 64, 257), ("clip", 16, 64, 257), ("eva", 16, 88, 257), ("qformer", 12, 64, 32)];
const KINDS: [(&str, KvType); 2] = [("f16", KvType::F16), ("q8_0", KvType::Q8_0)];
/// Rows of a prompt, and how many go through together.
const PROMPT: usize = 1300;
const CHUNK: usize = 512;
/// Positions that a decoded token sees.
const CONTEXTS: [usize; 3] = [64, 1400, 4096];
/// Caches that take turns, so that one does not stay in the last cache.
const LAYERS: usize = 8;
const PICTURES: usize = 2;
const PICTURE_TOKENS: usize = 257;
/// How far results may lie apart, of values of a few units.
const APART: f32 = 1e-4;

/// What is measured.
enum Case {
    Prefill { shape: KvShape },
    Decode { shape: KvShape, context: usize },
    Encode { shape: AttendShape },
}

fn main() {
    let arguments = support::Arguments::read(7);
    let mut cases = Vec::new();
    for (name, heads, kv_heads, head_dim) in DECODERS {
        for (kind, ty) in KINDS {
            let shape = |capacity| KvShape { capacity, heads, kv_heads, head_dim, ty };
            cases.push((format!("prefill/{name}/{kind}/{PROMPT}"), Case::Prefill { shape: shape(PROMPT) }));
            for context in CONTEXTS {
                cases.push((format!("decode/{name}/{kind}/{context}"), Case::Decode { shape: shape(context + 1), context }));
            }
        }
    }
    for (name, heads, head_dim, q_tokens) in ENCODERS {
        let shape = AttendShape { batch: PICTURES, q_tokens, kv_tokens: PICTURE_TOKENS, heads, head_dim };
        cases.push((format!("encode/{name}/{q_tokens}"), Case::Encode { shape }));
    }
    cases.retain(|(name, _)| arguments.want(name));
    for threads in support::thread_counts() {
        measure(&cases, threads, arguments.rounds);
    }
}

fn target(threads: usize, isa: Option<Isa>) -> CpuTarget {
    CpuTarget::new(CpuOptions { threads: Some(threads), isa, ..CpuOptions::default() }).expect("threads start")
}

fn measure(cases: &[(String, Case)], threads: usize, rounds: usize) {
    let mut limits = Limits::new(threads);
    let t = target(threads, None);
    let products = if t.isa() >= Isa::Avx512 { Limit::Fma512 } else { Limit::Fma256 };
    println!("{}: medians of {rounds} rounds", t.name());
    println!("| case | rate | of the limit | |\n|---|---:|---:|---|");
    for (name, case) in cases {
        let limit = if matches!(case, Case::Decode { .. }) { Limit::Read } else { products };
        let mut run = prepare(&t, case);
        run();
        let (mut rates, mut shares) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let most = limits.rate(limit).unwrap_or(f64::NAN);
            let (took, amount) = run();
            rates.push(amount / took.seconds(threads));
            shares.push(amount / took.seconds(threads) / most);
        }
        let unit = if limit == Limit::Read { "GB/s" } else { "GFLOP/s" };
        let share = 100.0 * median(shares);
        println!("| {name} | {:.1} {unit} | {share:.1} % | {} |", median(rates) / 1e9, limit.name());
    }
}

/// Checks a case, and makes what runs it once: how long that took, and how many operations or bytes it was.
fn prepare<'a>(t: &'a CpuTarget, case: &Case) -> Box<dyn FnMut() -> (Took, f64) + 'a> {
    let portable = target(2, Some(Isa::Portable));
    match *case {
        Case::Prefill { shape } => {
            let rope = Rope::new(shape.head_dim, 1e4, 1.0);
            // The first rows are what they are without the others.
            let some = 64;
            same(&last_rows(t, shape, &rope, &[some], some), &last_rows(&portable, shape, &rope, &[some], some));
            let chunks: Vec<usize> = (0..PROMPT).step_by(CHUNK).map(|first| CHUNK.min(PROMPT - first)).collect();
            let (mut qkv, mut out) = buffers(t, shape, CHUNK);
            let mut kv = t.kv(shape).expect("memory");
            let operations = 2.0 * (shape.heads * shape.head_dim) as f64 * (PROMPT * (PROMPT + 1)) as f64;
            Box::new(move || {
                let mut pos = 0;
                let mut all = Took { wall: 0.0, cpu: 0.0 };
                for &rows in &chunks {
                    fill(t, &mut qkv, rows, pos);
                    let took = time(t.threads(), || {
                        t.rope_append(&mut qkv, &rope, &mut kv, pos).expect("it fits");
                        t.attend_cached(&qkv, &kv, pos, &mut out).expect("shapes fit");
                    });
                    all = Took { wall: all.wall + took.wall, cpu: all.cpu + took.cpu };
                    pos += rows;
                }
                (all, operations)
            })
        }
        Case::Decode { shape, context } => {
            let rope = Rope::new(shape.head_dim, 1e4, 1.0);
            let pieces = [context, 1];
            same(&last_rows(t, shape, &rope, &pieces, 1), &last_rows(&portable, shape, &rope, &pieces, 1));
            let mut caches: Vec<Kv> = (0..LAYERS).map(|_| t.kv(shape).expect("memory")).collect();
            let (mut qkv, mut out) = buffers(t, shape, context);
            for kv in &mut caches {
                fill(t, &mut qkv, context, 0);
                t.rope_append(&mut qkv, &rope, kv, 0).expect("it fits");
            }
            fill(t, &mut qkv, 1, context);
            let bytes = t.kv_bytes(&caches[0]) as f64 * (context + 1) as f64 / (context + 1).next_multiple_of(16) as f64;
            let turns = (1 << 16) / context;
            Box::new(move || {
                let took = time(t.threads(), || {
                    for _ in 0..turns.div_ceil(LAYERS) {
                        for kv in &mut caches {
                            t.rope_append(&mut qkv, &rope, kv, context).expect("it fits");
                            t.attend_cached(&qkv, kv, context, &mut out).expect("shapes fit");
                        }
                    }
                });
                (took, bytes * (turns.div_ceil(LAYERS) * LAYERS) as f64)
            })
        }
        Case::Encode { shape } => {
            let AttendShape { batch, q_tokens, kv_tokens, heads, head_dim } = shape;
            let wide = heads * head_dim;
            let make = |t: &CpuTarget| {
                let mut q = t.buffer(batch * q_tokens, wide).expect("memory");
                let mut kv = t.buffer(batch * kv_tokens, 2 * wide).expect("memory");
                fill(t, &mut q, batch * q_tokens, 0);
                fill(t, &mut kv, batch * kv_tokens, 1);
                (q, kv, t.buffer(batch * q_tokens, wide).expect("memory"))
            };
            let once = move |t: &CpuTarget, q: &Buffer, kv: &Buffer, out: &mut Buffer| {
                let at = |buffer, first| Columns { buffer, first };
                t.attend(at(q, 0), at(kv, 0), at(kv, wide), shape, out).expect("shapes fit");
            };
            let results = [t, &portable].map(|t| {
                let (q, kv, mut out) = make(t);
                once(t, &q, &kv, &mut out);
                out.values().to_vec()
            });
            same(&results[0], &results[1]);
            let (q, kv, mut out) = make(t);
            let operations = 4.0 * (batch * q_tokens * kv_tokens * wide) as f64;
            let calls = (2e10 / operations).ceil();
            Box::new(move || {
                let took = time(t.threads(), || (0..calls as usize).for_each(|_| once(t, &q, &kv, &mut out)));
                (took, operations * calls)
            })
        }
    }
}

/// Rows `[q | k | v]` of a decoder, and their results.
fn buffers(t: &CpuTarget, shape: KvShape, rows: usize) -> (Buffer, Buffer) {
    let wide = shape.heads * shape.head_dim;
    let width = wide + 2 * shape.kv_heads * shape.head_dim;
    (t.buffer(rows, width).expect("memory"), t.buffer(rows, wide).expect("memory"))
}

/// Gives a buffer `rows` rows, of which each begins at another place of the same numbers.
fn fill(t: &CpuTarget, buffer: &mut Buffer, rows: usize, from: usize) {
    t.set_rows(buffer, rows).expect("it fits");
    let width = t.width(buffer);
    let values = weights::numbers(width + 4099, 2);
    (0..rows).for_each(|r| t.write(&values[(from + r) % 4099..][..width], buffer, r).expect("it fits"));
}

/// Results of the last `rows` rows of a decoder's layer, whose input comes in pieces.
fn last_rows(t: &CpuTarget, shape: KvShape, rope: &Rope, pieces: &[usize], rows: usize) -> Vec<f32> {
    let mut kv = t.kv(shape).expect("memory");
    let mut pos = 0;
    let (mut qkv, mut out) = buffers(t, shape, *pieces.iter().max().expect("there are pieces"));
    for &n in pieces {
        fill(t, &mut qkv, n, pos);
        t.rope_append(&mut qkv, rope, &mut kv, pos).expect("it fits");
        if pos + n == pieces.iter().sum::<usize>() {
            t.attend_cached(&qkv, &kv, pos, &mut out).expect("shapes fit");
        }
        pos += n;
    }
    out.values()[out.values().len() - rows * t.width(&out)..].to_vec()
}

fn same(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= APART, "result {i} is {a}, of the portable kernels {b}");
    }
}
