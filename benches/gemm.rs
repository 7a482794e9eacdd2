//! Matrix times matrix from mapped blocks, at the shapes of the models, in operations per second and as a share of what
//! the processor's 8-bit instructions do at most, measured before each of them.
//!
//! `cargo bench -p sphinx-targets --no-default-features --bench gemm`, then words that a case must have one of, such as
//! `-- Q4_K` or `-- 512x14336x4096`, and `--rounds N`. `SPHINX_ISA` caps the instruction set and the limit with it;
//! `SPHINX_THREADS` sets the larger number of threads. Several threads are timed by the clock on the wall; beside it stands
//! the share by processor time, and where the two differ the machine was busy with something else.

mod support;

use sphinx_quant::{GgmlType, Tensor};
use sphinx_targets::cpu::{CpuOptions, CpuTarget};
use sphinx_targets::{After, Linear, Target};
use support::clock::{Took, median, time};
use support::limits::{Limit, Limits};
use support::weights;

/// Rows, outputs, inputs: short prompts, DINOv2's first layer, InternLM2-7B's gate, TinyLlama's down after a picture,
/// and a stage of ConvNeXt over five views.
const SHAPES: [(usize, usize, usize); 6] =
    [(16, 5632, 2048), (64, 5632, 2048), (257, 4608, 1536), (512, 14336, 4096), (1300, 2048, 5632), (5120, 6144, 1536)];
const TYPES: [GgmlType; 4] = [GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::Q4_K, GgmlType::Q6_K];
/// Operations after which a measurement has seen enough: some hundredths of a second.
const OPERATIONS: f64 = 3e10;

struct Case {
    ty: GgmlType,
    shape: (usize, usize, usize),
    weight: Tensor,
}

fn main() {
    let arguments = support::Arguments::read(7);
    let mut cases = Vec::new();
    for shape @ (m, n, k) in SHAPES {
        for ty in TYPES.into_iter().filter(|ty| arguments.want(&format!("{ty}/{m}x{n}x{k}"))) {
            cases.push(Case { ty, shape, weight: weights::mapped(ty, n, k, 1).remove(0) });
        }
    }
    for threads in support::thread_counts() {
        measure(&cases, threads, arguments.rounds);
    }
}

/// What a round says of a case.
struct Round {
    peak: f64,
    took: Took,
}

fn measure(cases: &[Case], threads: usize, rounds: usize) {
    let mut limits = Limits::new(threads);
    let options = CpuOptions { threads: Some(threads), ..CpuOptions::default() };
    let target = CpuTarget::new(options).expect("threads start");
    let limit = Limit::int8(target.isa());
    let mut found: Vec<Vec<Round>> = cases.iter().map(|_| Vec::new()).collect();
    for round in 0..=rounds {
        for (case, found) in cases.iter().zip(&mut found) {
            let peak = limit.and_then(|limit| limits.rate(limit)).unwrap_or(f64::NAN);
            let took = run(&target, case, round == 0);
            // The first round warms everything up, and is checked.
            if round > 0 {
                found.push(Round { peak, took });
            }
        }
    }
    let peak = median(found.iter().flatten().map(|r| r.peak)) / 1e12;
    println!("{}: {} {peak:.3} TOPS, medians of {rounds} rounds", target.name(), limit.map_or("no limit", Limit::name));
    println!("| M, N, K | {} |", TYPES.map(|t| format!("{t:^29}")).join(" | "));
    println!("|---|{}", "---:|".repeat(TYPES.len()));
    for shape @ (m, n, k) in SHAPES {
        let row = TYPES.map(|ty| {
            let Some(at) = cases.iter().position(|c| c.ty == ty && c.shape == shape) else { return format!("{:29}", "") };
            let operations = operations(shape);
            let of = |f: &dyn Fn(&Round) -> f64| median(found[at].iter().map(f));
            let tops = of(&|r| operations / r.took.seconds(threads)) / 1e12;
            let share = of(&|r| operations / r.took.seconds(threads) / r.peak);
            let by_cpu = of(&|r| operations / r.took.cpu / r.peak);
            match threads {
                1 => format!("{tops:.3} TOPS {:5.1} %           ", 100.0 * share),
                _ => format!("{tops:.3} TOPS {:5.1} % (cpu {:4.1})", 100.0 * share, 100.0 * by_cpu),
            }
        });
        if cases.iter().any(|c| c.shape == shape) {
            println!("| {:<16} | {} |", format!("{m}, {n}, {k}"), row.join(" | "));
        }
    }
}

fn operations((m, n, k): (usize, usize, usize)) -> f64 {
    2.0 * m as f64 * n as f64 * k as f64
}

/// The time of one call, from as many as are worth timing.
fn run(target: &CpuTarget, case: &Case, check: bool) -> Took {
    let (m, n, k) = case.shape;
    let layer = Linear { weight: target.matrix(std::slice::from_ref(&case.weight)).expect("a matrix"), bias: None };
    let (mut x, mut out) = (target.buffer(m, k).expect("memory"), target.buffer(m, n).expect("memory"));
    // Rows are all there and all different, but not all drawn.
    let values = weights::numbers(k + m, 2);
    (0..m).for_each(|r| target.write(&values[r..r + k], &mut x, r).expect("it fits"));
    let mut once = || target.linear(&x, &layer, After::Nothing, &mut out).expect("shapes fit");
    once();
    let calls = (OPERATIONS * target.threads() as f64 / 2.0 / operations(case.shape)).ceil().max(1.0);
    let took = time(target.threads(), || (0..calls as usize).for_each(|_| once()));
    if check {
        weights::check(&case.weight, x.values(), out.values());
    }
    Took { wall: took.wall / calls, cpu: took.cpu / calls }
}
