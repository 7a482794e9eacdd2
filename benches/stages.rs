//! What stands between the matrices, and whole feed-forward parts, at the sizes of the models: each rate beside the limit that
//! it could run into, measured before it.
//!
//! `cargo bench -p sphinx-targets --no-default-features --bench stages`, then words that a case must have one of, such as
//! `-- conv` or `-- attend`, and `--rounds N`. `SPHINX_ISA` and `SPHINX_THREADS` as in the other benches. A small case of each
//! is compared with the portable kernels. Processor time below 100 % of the threads' time means that something else ran, too.

mod support;

use sphinx_quant::GgmlType;
use sphinx_targets::cpu::{CpuOptions, CpuTarget, Isa};
use sphinx_targets::{Activation, After, AttendShape, Columns, KvShape, KvType, Linear, MapShape, Mlp, Rope, Target};
use support::clock::{median, time};
use support::limits::{Limit, Limits};
use support::weights;

type Buffer = <CpuTarget as Target>::Buffer;

/// Something to measure.
struct Case<'a> {
    name: String,
    /// Operations, or bytes that are read or written at least.
    amount: f64,
    limit: Limit,
    /// Does it once, and says what came out.
    run: Box<dyn FnMut() -> f32 + 'a>,
}

fn main() {
    let arguments = support::Arguments::read(9);
    let target = |threads, isa| CpuTarget::new(CpuOptions { threads: Some(threads), isa, ..CpuOptions::default() }).expect("threads start");
    for threads in support::thread_counts() {
        let mut limits = Limits::new(threads);
        let target = target(threads, None);
        println!("{}, medians of {} rounds", target.name(), arguments.rounds);
        println!("| | time | rate | limit | share | processor |\n|---|---:|---:|---|---:|---:|");
        for case in cases(&target, &arguments, 1) {
            measure(case, &mut limits, arguments.rounds);
        }
    }
    let (best, portable) = (target(1, None), target(1, Some(Isa::Portable)));
    for (mut a, mut b) in cases(&best, &arguments, 32).into_iter().zip(cases(&portable, &arguments, 32)) {
        let (a, b, name) = ((a.run)(), (b.run)(), a.name);
        assert!((a - b).abs() <= 2e-2 * b.abs().max(0.05), "{name}: {a} is not {b}");
    }
}

fn measure(mut case: Case<'_>, limits: &mut Limits, rounds: usize) {
    let threads = limits.threads();
    (case.run)();
    let once = time(threads, || _ = (case.run)()).seconds(threads);
    let calls = (0.02 / once).ceil().clamp(1.0, 1e4);
    let (mut rates, mut shares, mut busy) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let limit = limits.rate(case.limit);
        let took = time(threads, || (0..calls as usize).for_each(|_| _ = (case.run)()));
        busy.push(100.0 * took.cpu / took.wall);
        let took = took.seconds(threads) / calls;
        rates.push(case.amount / took);
        shares.push(100.0 * case.amount / took / limit.unwrap_or(f64::NAN));
    }
    let rate = median(rates);
    println!(
        "| {} | {:.3} ms | {:.3} {} | {} | {:.1} % | {:.0} % |",
        case.name,
        1e3 * case.amount / rate,
        case.limit.in_units(rate),
        case.limit.unit(),
        case.limit.name(),
        median(shares),
        median(busy)
    );
}

/// A buffer of random numbers.
fn filled(t: &CpuTarget, rows: usize, width: usize) -> Buffer {
    let mut buffer = t.buffer(rows, width).expect("memory");
    let values = weights::numbers(width + rows, 3);
    (0..rows).for_each(|r| t.write(&values[r..r + width], &mut buffer, r).expect("it fits"));
    buffer
}

/// All cases that are wanted, with `part` times fewer rows.
fn cases<'a>(t: &'a CpuTarget, arguments: &support::Arguments, part: usize) -> Vec<Case<'a>> {
    let isa = t.isa();
    let floats = if isa >= Isa::Avx512 { Limit::Fma512 } else { Limit::Fma256 };
    let bytes = Limit::int8(isa).unwrap_or(Limit::Maddubs256);
    let mut all = Vec::new();
    let want = |name: &str| arguments.want(name);
    let mut add = |name: &str, amount: f64, limit: Limit, make: &dyn Fn() -> Box<dyn FnMut() -> f32 + 'a>| {
        if want(name) {
            all.push(Case { name: name.to_owned(), amount, limit, run: make() });
        }
    };

    let (tokens, heads, head_dim) = (257, 24 / part.min(24), 64);
    let shape = AttendShape { batch: 1, q_tokens: tokens, kv_tokens: tokens, heads, head_dim };
    let width = heads * head_dim;
    add("attend of DINOv2", 4.0 * (tokens * tokens * width) as f64, floats, &|| {
        let (qkv, mut out) = (filled(t, tokens, 3 * width), filled(t, tokens, width));
        Box::new(move || {
            let columns = |i: usize| Columns { buffer: &qkv, first: i * width };
            t.attend(columns(0), columns(1), columns(2), shape, &mut out).expect("shapes fit");
            out.values()[width + 1]
        })
    });

    let (heads, kv_heads, layers) = (32, 4, 22);
    for (name, ty, number) in [("f16", KvType::F16, 2.0), ("q8_0", KvType::Q8_0, 34.0 / 32.0)] {
        let caches = move |count: usize| -> Vec<_> {
            (0..count).map(|_| t.kv(KvShape { capacity: 1408, heads, kv_heads, head_dim, ty }).expect("memory")).collect()
        };
        let wide = (heads + 2 * kv_heads) * head_dim;
        let rope = Rope::new(head_dim, 10_000.0, 1.0);
        let rows = 1300 / part;
        let (of_rope, of_prompt) = (rope.clone(), rope.clone());
        add(&format!("rope_append of 512 rows, {name}"), 4.0 * (2 * 512 / part * wide) as f64, Limit::Read, &|| {
            let (mut qkv, mut kv, rope) = (filled(t, 512 / part, wide), caches(1), of_rope.clone());
            Box::new(move || {
                t.rope_append(&mut qkv, &rope, &mut kv[0], 0).expect("shapes fit");
                qkv.values()[1]
            })
        });
        let amount = 4.0 * (heads * head_dim) as f64 * (rows * (rows + 1) / 2) as f64;
        add(&format!("attend of a prompt of 1300, {name}"), amount, floats, &|| {
            let (mut qkv, mut kv, mut out) = (filled(t, rows, wide), caches(1), filled(t, rows, heads * head_dim));
            t.rope_append(&mut qkv, &of_prompt, &mut kv[0], 0).expect("shapes fit");
            Box::new(move || {
                t.attend_cached(&qkv, &kv[0], 0, &mut out).expect("shapes fit");
                out.values()[heads * head_dim + 1]
            })
        });
        // All layers' caches in turn, as a token sees them.
        let read = layers as f64 * 1400.0 * 2.0 * (kv_heads * head_dim) as f64 * number;
        add(&format!("attend of a token at 1400, 22 layers, {name}"), read, Limit::Read, &|| {
            let mut kv = caches(layers);
            let mut prompt = filled(t, 1400, wide);
            kv.iter_mut().for_each(|kv| t.rope_append(&mut prompt, &rope, kv, 0).expect("shapes fit"));
            let (qkv, mut out) = (filled(t, 1, wide), filled(t, 1, heads * head_dim));
            Box::new(move || {
                kv.iter().for_each(|kv| t.attend_cached(&qkv, kv, 1399, &mut out).expect("shapes fit"));
                out.values()[1]
            })
        });
    }

    for (stage, side, channels) in [(1, 128, 384), (2, 64, 768), (3, 32, 1536), (4, 16, 3072)] {
        let channels = (channels / part).next_multiple_of(16);
        let map = MapShape { batch: 1, height: side, width: side };
        add(&format!("conv 7x7 of stage {stage}"), 98.0 * (side * side * channels) as f64, floats, &|| {
            let (x, mut out) = (filled(t, side * side, channels), filled(t, side * side, channels));
            let kernel = t.vector_from(&weights::numbers(49 * channels, 4)).expect("memory");
            let bias = t.vector_from(&weights::numbers(channels, 5)).expect("memory");
            Box::new(move || {
                t.conv_depthwise(&x, map, &kernel, &bias, &mut out).expect("shapes fit");
                out.values()[side * channels + 1]
            })
        });
    }

    for (name, rows, width) in [("rms_norm", 512, 2048), ("layer_norm", 1024, 1536)] {
        let rows = rows / part;
        add(&format!("{name} of {width}"), 8.0 * (rows * width) as f64, Limit::Read, &|| {
            let (x, mut out) = (filled(t, rows, width), filled(t, rows, width));
            let weight = t.vector_from(&weights::numbers(width, 4)).expect("memory");
            let bias = t.vector_from(&weights::numbers(width, 5)).expect("memory");
            Box::new(move || {
                match name {
                    "rms_norm" => t.rms_norm(&x, &weight, 1e-5, &mut out).expect("shapes fit"),
                    _ => t.layer_norm(&x, &weight, &bias, 1e-6, &mut out).expect("shapes fit"),
                }
                out.values()[1]
            })
        });
    }

    let layer = |ty, outputs, inputs| Linear { weight: t.matrix(&weights::mapped(ty, outputs, inputs, 1)).expect("a matrix"), bias: None };
    for (name, rows, width, hidden, act, ty) in [
        ("mlp of DINOv2", 257, 1536, 4096, Activation::SiluGate, GgmlType::Q8_0),
        ("mlp of ConvNeXt 1", 16384, 384, 1536, Activation::Gelu, GgmlType::Q8_0),
        ("mlp of ConvNeXt 2", 4096, 768, 3072, Activation::Gelu, GgmlType::Q8_0),
        ("mlp of ConvNeXt 3", 1024, 1536, 6144, Activation::Gelu, GgmlType::Q8_0),
        ("mlp of ConvNeXt 4", 256, 3072, 12288, Activation::Gelu, GgmlType::Q8_0),
        ("mlp of TinyLlama", 512, 2048, 5632, Activation::SiluGate, GgmlType::Q4_K),
    ] {
        let gated = if act == Activation::SiluGate { 2 } else { 1 };
        let rows = rows / part;
        add(&format!("{name}, {rows} rows, {ty}"), 2.0 * (rows * (gated + 1) * hidden * width) as f64, bytes, &|| {
            let mlp = Mlp { up: layer(ty, gated * hidden, width), act, down: layer(ty, width, hidden) };
            let (x, mut out) = (filled(t, rows, width), filled(t, rows, width));
            Box::new(move || {
                t.mlp(&x, &mlp, After::Nothing, &mut out).expect("shapes fit");
                out.values()[1]
            })
        });
    }
    all
}
