//! Few rows times many mapped weights, as in decoding: bytes of weights per second beside what a plain read of memory gets,
//! measured before each of them.
//!
//! Weights are the matrices of many layers, one after the other, more than any cache holds. `cargo bench -p sphinx-targets
//! --no-default-features --bench decode`, then words that a case must have one of, such as `-- Q4_K` or `-- 5632x2048`, and
//! `--rounds N`. `SPHINX_ISA` and `SPHINX_THREADS` as in the other benches. Every block type can be named, the usual ones are
//! measured when none is.

mod support;

use sphinx_quant::{GgmlType, Tensor};
use sphinx_targets::cpu::{CpuOptions, CpuTarget};
use sphinx_targets::{After, Linear, Target};
use support::clock::{Took, median, time};
use support::limits::{Limit, Limits};
use support::weights;

/// Outputs and inputs: TinyLlama's and InternLM2-7B's gate.
const SHAPES: [(usize, usize); 2] = [(5632, 2048), (14336, 4096)];
const TYPES: [GgmlType; 4] = [GgmlType::Q4_0, GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q8_0];
/// Sequences that are decoded together.
const ROWS: [usize; 4] = [1, 2, 4, 8];
/// Bytes of weights, at least.
const BYTES: usize = 256 << 20;

fn main() {
    let arguments = support::Arguments::read(9);
    let named = GgmlType::ALL.into_iter().filter(|ty| !TYPES.contains(ty) && std::env::args().any(|a| a == ty.name()));
    let types: Vec<GgmlType> = TYPES.into_iter().chain(named).collect();
    for threads in support::thread_counts() {
        let mut limits = Limits::new(threads);
        let options = CpuOptions { threads: Some(threads), ..CpuOptions::default() };
        let target = CpuTarget::new(options).expect("threads start");
        println!("{}, medians of {} rounds; GB/s of weights, and the share of a read", target.name(), arguments.rounds);
        println!("Processor time below 100 % of the threads' time: something else ran, too.");
        println!("| type, N, K | read | read of the mapped weights | {} | processor |", ROWS.map(|r| format!("{r} rows")).join(" | "));
        println!("|---|---:|---:|{}---:|", "---:|".repeat(ROWS.len()));
        for &ty in &types {
            for (n, k) in SHAPES.into_iter().filter(|(n, k)| arguments.want(&format!("{ty}/{n}x{k}"))) {
                measure(&target, &mut limits, ty, n, k, arguments.rounds);
            }
        }
    }
}

fn measure(target: &CpuTarget, limits: &mut Limits, ty: GgmlType, n: usize, k: usize, rounds: usize) {
    let threads = target.threads();
    let size = n * ty.row_bytes(k).expect("whole blocks");
    let tensors = weights::mapped(ty, n, k, BYTES.div_ceil(size));
    let bytes = (size * tensors.len()) as f64;
    let layer = |w: &Tensor| Linear { weight: target.matrix(std::slice::from_ref(w)).expect("a matrix"), bias: None };
    let layers: Vec<_> = tensors.iter().map(layer).collect();
    let whole = tensors[0].backing().0.as_slice();
    // Reads, reads of the map, and a walk through all layers per number of rows, in bytes per second.
    let (mut reads, mut maps, mut walks) = (Vec::new(), Vec::new(), ROWS.map(|_| Vec::new()));
    let (mut shares, mut busy) = (walks.clone(), Vec::new());
    for round in 0..=rounds {
        let mut read = limits.rate(Limit::Read).expect("memory can be read");
        let map = bytes / limits.read(whole).seconds(threads);
        for (i, rows) in ROWS.into_iter().enumerate() {
            let took = walk(target, &layers, &tensors, rows, round == 0);
            let after = limits.rate(Limit::Read).expect("memory can be read");
            let rate = bytes / took.seconds(threads);
            // The first round reads the file, and is checked.
            if round > 0 {
                walks[i].push(rate);
                // The bandwidth drifts, so the read before and the one after count.
                shares[i].push(2.0 * rate / (read + after));
                reads.push(read);
                busy.push(100.0 * took.cpu / took.wall);
            }
            read = after;
        }
        if round > 0 {
            maps.push(map);
        }
    }
    let cells = walks.into_iter().zip(shares).map(|(w, s)| format!("{:5.1}  {:5.1} %", median(w) / 1e9, 100.0 * median(s)));
    let cells: Vec<String> = cells.collect();
    println!("| {ty}, {n}, {k} | {:.1} | {:.1} | {} | {:.0} % |", median(reads) / 1e9, median(maps) / 1e9, cells.join(" | "), median(busy));
}

fn walk(target: &CpuTarget, layers: &[Linear<CpuTarget>], tensors: &[Tensor], rows: usize, check: bool) -> Took {
    let (n, k) = target.matrix_shape(&layers[0].weight);
    let (mut x, mut out) = (target.buffer(rows, k).expect("memory"), target.buffer(rows, n).expect("memory"));
    target.write(&weights::numbers(rows * k, 2), &mut x, 0).expect("it fits");
    let took = time(target.threads(), || {
        for layer in layers {
            target.linear(&x, layer, After::Nothing, &mut out).expect("shapes fit");
        }
    });
    if check {
        weights::check(&tensors[tensors.len() - 1], x.values(), out.values());
    }
    took
}
