//! Dot products per format in bytes of weights per second, and linear layers per batch in operations per second.
//!
//! `cargo bench -p sphinx-targets -- dot`, or `-- linear/Q4_K`; `SPHINX_ISA` caps the instruction set, and
//! `SPHINX_THREADS` sets the number of threads. Each bench first checks its answer against the portable kernels.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sphinx_quant::{GgmlType, Tensor, block};
use sphinx_targets::cpu::kernels::Kernels;
use sphinx_targets::cpu::q8::{Q8Row, Q8RowMut};
use sphinx_targets::cpu::{CpuOptions, CpuTarget, Isa};
use sphinx_targets::{After, Linear, Target};

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
    let threads = std::env::var("SPHINX_THREADS").ok().and_then(|v| v.parse().ok());
    let target = |isa| CpuTarget::new(CpuOptions { threads, isa, ..CpuOptions::default() }).expect("threads start");
    let (target, portable) = (target(None), target(Some(Isa::Portable)));
    let (n, k) = (5632, 2048);
    for ty in GgmlType::ALL {
        let mut group = c.benchmark_group(format!("linear/{ty}/{}", target.name()));
        let w = tensor(ty, n, k);
        for rows in [1usize, 64, 512] {
            let run = |target: &CpuTarget, rows: usize| {
                let layer = Linear { weight: target.matrix(std::slice::from_ref(&w)).expect("a matrix"), bias: None };
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

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = dots, linears
}
criterion_main!(benches);
