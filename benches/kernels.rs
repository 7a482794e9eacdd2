//! Dot products per format in bytes of weights per second, and linear layers per batch in operations per second; then
//! the layers of the family's larger decoders at their true shapes, beside what memory gives to a plain read.
//!
//! `cargo bench -p sphinx-targets -- dot`, or `-- linear/Q4_K`, `-- 'decode|read'`, `-- prefill`, `-- expert`;
//! `SPHINX_ISA` caps the instruction set, and `SPHINX_THREADS` sets the number of threads. Each bench first checks its
//! answer against the portable kernels.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sphinx_quant::{GgmlType, Tensor, block};
use sphinx_targets::cpu::kernels::Kernels;
use sphinx_targets::cpu::q8::{Q8Row, Q8RowMut};
use sphinx_targets::cpu::{CpuOptions, CpuTarget, Isa};
use sphinx_targets::{Activation, After, Linear, Mlp, Target};

/// Numbers that look random enough: a step through a range, none of them zero.
fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.4999).collect()
}

/// A matrix of `rows` equal rows, which is quick to quantise.
fn tensor(ty: GgmlType, rows: usize, cols: usize) -> Tensor {
    let mut row = vec![0u8; ty.row_bytes(cols).expect("whole blocks")];
    block::quantize(ty, &numbers(cols), None, &mut row);
    Tensor::owned("bench", ty, &[cols, rows], &row.repeat(rows)).expect("the bytes are a matrix")
}

fn close(a: f32, b: f32, k: usize) {
    assert!((a - b).abs() <= 1e-6 * k as f32, "{a} is not {b}");
}

/// Many rows from memory with one activation row, on one thread: bytes of weights per second.
fn dots(c: &mut Criterion) {
    let isa = Isa::best(Isa::cap_from_env().expect("a known instruction set"));
    let (kernels, portable) = (Kernels::for_isa(isa), Kernels::for_isa(Isa::Portable));
    let (k, rows) = (2048, 4096);
    let x = numbers(k);
    let (mut qs, mut d, mut sums) = (vec![0; k], vec![0.0; k / 32], vec![0; k / 16]);
    kernels.quantize_q8(&x, Q8RowMut { qs: &mut qs, d: &mut d, sums: &mut sums });
    let q8 = Q8Row { qs: &qs, d: &d, sums: &sums };
    let mut group = c.benchmark_group(format!("dot/{isa}"));
    for ty in GgmlType::ALL {
        let w = tensor(ty, rows, k);
        let dot = |kernels: &Kernels, row: &[u8]| if ty.is_float() { kernels.dot_float(ty, row, &x) } else { kernels.dot(ty, row, q8) };
        close(dot(&kernels, w.row(0)), dot(&portable, w.row(0)), k);
        group.throughput(Throughput::Bytes(w.bytes().len() as u64));
        group.bench_function(ty.name(), |b| {
            b.iter(|| w.bytes().chunks_exact(w.row_bytes()).map(|row| dot(&kernels, black_box(row))).sum::<f32>());
        });
    }
}

/// A linear layer of a small language model on all threads: elements are multiplications and additions.
fn linears(c: &mut Criterion) {
    let (target, portable) = targets();
    let (n, k) = (5632, 2048);
    for ty in GgmlType::ALL {
        let mut group = c.benchmark_group(format!("linear/{ty}/{}", target.name()));
        let w = tensor(ty, n, k);
        for rows in [1usize, 64, 512] {
            let run = |target: &CpuTarget, rows: usize| {
                let layer = layer(target, &w);
                let (mut x, mut out) = (target.buffer(rows, k).expect("memory"), target.buffer(rows, n).expect("memory"));
                target.write(&numbers(rows * k), &mut x, 0).expect("it fits");
                target.linear(&x, &layer, After::Nothing, &mut out).expect("shapes fit");
                (layer, x, out)
            };
            let (layer, x, mut out) = run(&target, rows);
            close(out.values()[0], run(&portable, 1).2.values()[0], k);
            group.throughput(Throughput::Elements((2 * rows * n * k) as u64));
            group.bench_function(BenchmarkId::from_parameter(rows), |b| {
                b.iter(|| target.linear(&x, &layer, After::Nothing, &mut out).expect("shapes fit"));
            });
        }
    }
}

/// Matrices `[outputs, inputs]` of LLaMA2-13B, and of InternLM2-7B, whose feed-forward part is as large as one expert
/// of Mixtral.
const SHAPES: [(&str, usize, usize); 4] =
    [("13B gate and up", 27648, 5120), ("13B down", 5120, 13824), ("7B gate and up", 28672, 4096), ("7B down", 4096, 14336)];
const TYPES: [GgmlType; 3] = [GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q8_0];

fn threads() -> Option<usize> {
    std::env::var("SPHINX_THREADS").ok().and_then(|v| v.parse().ok())
}

fn targets() -> (CpuTarget, CpuTarget) {
    let target = |isa| CpuTarget::new(CpuOptions { threads: threads(), isa, ..CpuOptions::default() }).expect("threads start");
    (target(None), target(Some(Isa::Portable)))
}

fn layer(t: &CpuTarget, w: &Tensor) -> Linear<CpuTarget> {
    Linear { weight: t.matrix(std::slice::from_ref(w)).expect("a matrix"), bias: None }
}

/// What all threads together read from memory and do nothing with: the limit of decoding.
fn reads(c: &mut Criterion) {
    let (target, _) = targets();
    let data = vec![1u64; 32 << 20];
    let mut group = c.benchmark_group(format!("read/{}", target.name()));
    group.throughput(Throughput::Bytes(8 * data.len() as u64));
    let read = |part: &[u64]| {
        let mut sums = [0u64; 32];
        part.as_chunks::<32>().0.iter().for_each(|part| sums.iter_mut().zip(part).for_each(|(sum, v)| *sum ^= v));
        black_box(sums);
    };
    group.bench_function("memory", |b| {
        b.iter(|| {
            std::thread::scope(|s| data.chunks(data.len().div_ceil(target.threads())).for_each(|part| drop(s.spawn(move || read(part)))))
        });
    });
}

/// As [`layer`], with activations in two terms.
fn fine_layer(t: &CpuTarget, w: &Tensor) -> Linear<CpuTarget> {
    Linear { weight: t.matrix_fine(std::slice::from_ref(w)).expect("a matrix"), bias: None }
}

/// How layers are made, and what is added to a bench's name.
type Make = fn(&CpuTarget, &Tensor) -> Linear<CpuTarget>;
const MAKES: [(&str, Make); 2] = [("", layer), (", fine", fine_layer)];

/// One row, or 512, through the large matrices: bytes of weights, or multiplications and additions, per second.
fn large(c: &mut Criterion) {
    let (target, portable) = targets();
    for (ty, (what_fine, layer)) in TYPES.into_iter().flat_map(|ty| MAKES.map(|make| (ty, make))) {
        for (name, n, k) in SHAPES {
            let w = tensor(ty, n, k);
            let weights = layer(&target, &w);
            let one = {
                let (mut x, mut out) = (portable.buffer(1, k).expect("memory"), portable.buffer(1, n).expect("memory"));
                portable.write(&numbers(k), &mut x, 0).expect("it fits");
                portable.linear(&x, &layer(&portable, &w), After::Nothing, &mut out).expect("shapes fit");
                out.values()[0]
            };
            for (what, rows, rate) in
                [("decode", 1, Throughput::Bytes(w.bytes().len() as u64)), ("prefill", 512, Throughput::Elements((2 * 512 * n * k) as u64))]
            {
                let (mut x, mut out) = (target.buffer(rows, k).expect("memory"), target.buffer(rows, n).expect("memory"));
                target.write(&numbers(rows * k), &mut x, 0).expect("it fits");
                let mut group = c.benchmark_group(format!("{what}{what_fine}/{ty}/{}", target.name()));
                group.throughput(rate);
                let mut run = || target.linear(&x, &weights, After::Nothing, &mut out).expect("shapes fit");
                group.bench_function(name, |b| b.iter(&mut run));
                run();
                close(out.values()[0], one, k);
            }
        }
    }
}

/// One expert of Mixtral on as many tokens of 512 as it may get, two experts being used: operations per second.
fn experts(c: &mut Criterion) {
    let (target, portable) = targets();
    let (k, hidden, rows) = (4096, 14336, 512);
    for (ty, (what_fine, layer)) in TYPES.into_iter().flat_map(|ty| MAKES.map(|make| (ty, make))) {
        let (up, down) = (tensor(ty, 2 * hidden, k), tensor(ty, k, hidden));
        let expert = |t: &CpuTarget| Mlp { up: layer(t, &up), act: Activation::SiluGate, down: layer(t, &down) };
        let run = |t: &CpuTarget, expert: &Mlp<CpuTarget>, slots: &[u32]| {
            let (mut x, mut out) = (t.buffer(rows, k).expect("memory"), t.buffer(2 * rows, k).expect("memory"));
            t.write(&numbers(rows * k), &mut x, 0).expect("it fits");
            t.expert_mlp(&x, slots, 2, expert, &mut out).expect("shapes fit");
            (x, out)
        };
        let one = run(&portable, &expert(&portable), &[0]).1.values()[0];
        let expert = expert(&target);
        let mut group = c.benchmark_group(format!("expert{what_fine}/{ty}/{}", target.name()));
        for n in [1usize, 2, 3, 17, 128] {
            let slots: Vec<u32> = (0..n as u32).map(|i| 7 * i).collect();
            let (x, mut out) = run(&target, &expert, &slots);
            // A last bit of a hidden number may move its 8-bit code.
            let found = out.values()[0];
            assert!((found - one).abs() <= 1e-3 * one.abs(), "{found} is not {one}");
            group.throughput(Throughput::Elements((6 * n * k * hidden) as u64));
            group.bench_function(BenchmarkId::from_parameter(n), |b| {
                b.iter(|| target.expert_mlp(&x, &slots, 2, &expert, &mut out).expect("shapes fit"));
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = dots, linears, reads, large, experts
}
criterion_main!(benches);
