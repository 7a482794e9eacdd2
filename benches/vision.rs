//! What the encoders do beside plain linear layers, at their true shapes: depthwise convolutions, norms, activations,
//! and whole feed-forward parts with what stands in front of them and behind.
//!
//! `cargo bench -p sphinx-targets --no-default-features --bench vision`, then words that a case must have one of, such as
//! `-- conv` or `-- mlp`, and `--rounds N`. `SPHINX_ISA` caps the instruction set; `SPHINX_THREADS` sets the larger number of
//! threads. Rates are medians of rounds; the share is of the machine's limit, measured beside each of them.

mod support;

use sphinx_quant::GgmlType;
use sphinx_targets::cpu::kernels::Kernels;
use sphinx_targets::cpu::{CpuOptions, CpuTarget, Isa};
use sphinx_targets::{Activation, After, Linear, MapShape, Mlp, Norm, Target};
use support::clock::{median, time};
use support::limits::{Limit, Limits};
use support::weights;

/// Sides and channels of ConvNeXt-XXL's stages, and how many views make a few dozen megabytes.
const STAGES: [(usize, usize, usize); 4] = [(128, 384, 1), (64, 768, 2), (32, 1536, 5), (16, 3072, 5)];
/// Side of a kernel.
const SIDE: usize = 7;
/// Seconds that a measurement takes at least.
const SECONDS: f64 = 0.05;

/// Something to measure: its name, its limit, and what it counts (operations, or bytes) in one call.
struct Case<'a> {
    name: String,
    limit: Option<Limit>,
    count: f64,
    call: Box<dyn FnMut() + 'a>,
}

fn main() {
    let arguments = support::Arguments::read(5);
    for threads in support::thread_counts() {
        let options = CpuOptions { threads: Some(threads), ..CpuOptions::default() };
        let target = CpuTarget::new(options).expect("threads start");
        let mut limits = Limits::new(threads);
        println!("{}, medians of {} rounds", target.name(), arguments.rounds);
        let makers: [fn(&CpuTarget) -> Vec<Case<'_>>; 4] = [convolutions, norms, activations, feed_forward_parts];
        for mut case in makers.into_iter().flat_map(|make| make(&target)).filter(|case| arguments.want(&case.name)) {
            measure(&mut case, &mut limits, threads, arguments.rounds);
        }
    }
}

fn measure(case: &mut Case<'_>, limits: &mut Limits, threads: usize, rounds: usize) {
    (case.call)();
    let once = time(threads, || (case.call)()).seconds(threads);
    let calls = (SECONDS / once).ceil().max(1.0);
    let (mut rates, mut shares) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let limit = case.limit.and_then(|limit| limits.rate(limit)).unwrap_or(f64::NAN);
        let took = time(threads, || (0..calls as usize).for_each(|_| (case.call)())).seconds(threads) / calls;
        rates.push(case.count / took);
        shares.push(case.count / took / limit);
    }
    let (rate, share) = (median(rates) / 1e9, 100.0 * median(shares));
    match case.limit {
        None => println!("{:<36} {:8.3} ns per number", case.name, 1.0 / rate),
        Some(Limit::Read) => println!("{:<36} {rate:8.1} GB/s    {share:5.1} % of reading", case.name),
        Some(limit) => println!("{:<36} {rate:8.1} Gop/s   {share:5.1} % of {}", case.name, limit.name()),
    }
}

/// A buffer of rows that differ.
fn filled(t: &CpuTarget, rows: usize, width: usize) -> <CpuTarget as Target>::Buffer {
    let mut buffer = t.buffer(rows, width).expect("memory");
    let values = weights::numbers(width + rows, 2);
    (0..rows).for_each(|r| t.write(&values[r..r + width], &mut buffer, r).expect("it fits"));
    buffer
}

fn convolutions(t: &CpuTarget) -> Vec<Case<'_>> {
    let limit = if t.isa() >= Isa::Avx512 { Limit::Fma512 } else { Limit::Fma256 };
    let case = |(stage, (side, channels, views)): (usize, (usize, usize, usize))| {
        let map = MapShape { batch: views, height: side, width: side };
        let (x, mut out) = (filled(t, map.positions(), channels), t.buffer(map.positions(), channels).expect("memory"));
        let (kernel, bias) = (weights::numbers(SIDE * SIDE * channels, 3), weights::numbers(channels, 4));
        t.conv_depthwise(&x, map, &kernel, &bias, &mut out).expect("shapes fit");
        let row = side * channels;
        let mut want = vec![0.0; row];
        let picture = &x.values()[..side * row];
        Kernels::for_isa(Isa::Portable).conv_depthwise(picture, side, channels, &kernel, SIDE, &bias, 5..6, &mut want, &mut []);
        let found = &out.values()[5 * row..6 * row];
        assert!(want.iter().zip(found).all(|(a, b)| (a - b).abs() < 1e-3), "another row than that of the portable kernel");
        let call = move || t.conv_depthwise(&x, map, &kernel, &bias, &mut out).expect("shapes fit");
        let count = (2 * SIDE * SIDE * map.positions() * channels) as f64;
        Case { name: format!("conv stage {} {side}x{side}x{channels}", stage + 1), limit: Some(limit), count, call: Box::new(call) }
    };
    STAGES.into_iter().enumerate().map(case).collect()
}

fn norms(t: &CpuTarget) -> Vec<Case<'_>> {
    let case = |(rows, width, rms): (usize, usize, bool)| {
        let (x, mut out) = (filled(t, rows, width), t.buffer(rows, width).expect("memory"));
        let (weight, bias) = (vec![1.0; width], vec![0.0; width]);
        let mut call = move || {
            if rms {
                t.rms_norm(&x, &weight, 1e-6, &mut out).expect("shapes fit");
            } else {
                t.layer_norm(&x, &weight, &bias, 1e-6, &mut out).expect("shapes fit");
            }
            out.values()[..width].iter().map(|v| v * v).sum::<f32>() / width as f32
        };
        let variance = call();
        assert!((variance - 1.0).abs() < 1e-3, "a variance of {variance}");
        let name = format!("norm {} {rows}x{width}", if rms { "rms" } else { "layer" });
        let call = Box::new(move || {
            std::hint::black_box(call());
        });
        Case { name, limit: Some(Limit::Read), count: (8 * rows * width) as f64, call }
    };
    [(16384, 384, false), (5120, 1536, false), (257, 1536, false), (512, 2048, true)].into_iter().map(case).collect()
}

/// On one thread, in its cache.
fn activations(t: &CpuTarget) -> Vec<Case<'_>> {
    const N: usize = 4096;
    let case = |act: Activation| {
        let kernels = Kernels::for_isa(t.isa());
        let run = move |kernels: &Kernels, y: &mut [f32], up: &[f32]| match act {
            Activation::Gelu => kernels.gelu(y),
            Activation::QuickGelu => kernels.quick_gelu(y),
            Activation::SiluGate => kernels.silu_gate(y, up),
        };
        let (x, up) = (weights::numbers(N, 5), vec![1.0; N]);
        let (mut y, mut want) = (x.clone(), x.clone());
        run(&kernels, &mut y, &up);
        run(&Kernels::for_isa(Isa::Portable), &mut want, &up);
        assert!(y.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-6), "other values than those of the portable kernel");
        let call = move || {
            y.copy_from_slice(&x);
            run(&kernels, std::hint::black_box(&mut y), &up);
        };
        Case { name: format!("act {act:?}"), limit: None, count: N as f64, call: Box::new(call) }
    };
    [Activation::Gelu, Activation::QuickGelu, Activation::SiluGate].into_iter().map(case).collect()
}

/// Feed-forward parts: name, rows, width, inner width, and whether it is ConvNeXt's.
fn feed_forward_parts(t: &CpuTarget) -> Vec<Case<'_>> {
    let portable = CpuTarget::new(CpuOptions { threads: Some(1), isa: Some(Isa::Portable), ..CpuOptions::default() }).expect("a target");
    let case = |(name, rows, width, inner, convnext): (&str, usize, usize, usize, bool)| {
        let wide = if convnext { inner } else { 2 * inner };
        let (up, down) =
            (weights::mapped(GgmlType::Q8_0, wide, width, 1).remove(0), weights::mapped(GgmlType::Q8_0, width, inner, 1).remove(0));
        let norm = || Norm { weight: vec![1.0; width], bias: vec![0.1; width], eps: 1e-6 };
        let scale = weights::numbers(width, 6);
        let mlp = |t: &CpuTarget| {
            let layer = |w: &sphinx_quant::Tensor, bias: usize| Linear {
                weight: t.matrix(std::slice::from_ref(w)).expect("a matrix"),
                bias: Some(weights::numbers(bias, 7)),
            };
            Mlp { up: layer(&up, wide), act: if convnext { Activation::Gelu } else { Activation::SiluGate }, down: layer(&down, width) }
        };
        let run = |t: &CpuTarget, norm: &Norm<CpuTarget>, mlp: &Mlp<CpuTarget>, x: &_, out: &mut _| {
            let after = After::ScaleAdd(&scale);
            if convnext { t.normed_mlp(x, norm, mlp, after, out) } else { t.mlp(x, mlp, after, out) }.expect("shapes fit");
        };
        let (x, mut out) = (filled(t, rows, width), t.buffer(rows, width).expect("memory"));
        let (own, mut one) = (mlp(t), portable.buffer(1, width).expect("memory"));
        run(t, &norm(), &own, &x, &mut out);
        run(&portable, &norm(), &mlp(&portable), &filled(&portable, 1, width), &mut one);
        let off: f32 = one.values().iter().zip(out.values()).map(|(a, b)| (a - b).powi(2)).sum();
        let size: f32 = one.values().iter().map(|v| v * v).sum();
        assert!(off < 1e-4 * size, "another row than that of the portable kernels: {off} of {size}");
        let (norm, scale) = (norm(), scale.clone());
        let call = move || {
            let after = After::ScaleAdd(&scale);
            if convnext { t.normed_mlp(&x, &norm, &own, after, &mut out) } else { t.mlp(&x, &own, after, &mut out) }.expect("shapes fit");
        };
        let count = 2.0 * (rows * width * (wide + inner)) as f64;
        Case { name: format!("mlp {name} {rows}x{width}x{inner}"), limit: Limit::int8(t.isa()), count, call: Box::new(call) }
    };
    let stages = STAGES.into_iter().enumerate().map(|(i, (side, width, views))| (i, views * side * side, width));
    let mut all: Vec<_> = stages.map(|(i, rows, width)| case((&format!("stage {}", i + 1), rows, width, 4 * width, true))).collect();
    all.push(case(("DINOv2", 257, 1536, 4096, false)));
    all.push(case(("DINOv2", 1285, 1536, 4096, false)));
    all
}
