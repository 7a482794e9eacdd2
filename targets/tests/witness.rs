//! Two implementations of one trait: what our kernels compute, candle computes too.
//!
//! Every operation is written once over [`Target`] and run by both. Bounds are computed from the data: with
//! activations in `f32`, results differ by rounding; with activations in 8 bits, by what 8 bits cost.
#![cfg(feature = "candle")]

mod support;

use std::sync::OnceLock;

use sphinx_quant::{GgmlType, Tensor};
use sphinx_targets::candle::CandleTarget;
use sphinx_targets::cpu::{CpuOptions, CpuTarget, Isa};
use sphinx_targets::{Activation, After, AttendShape, Columns, KvShape, KvType, Linear, MapShape, Mlp, Norm, Rope, Target, TargetError};
use support::{Numbers, any_matrix, likely_matrix, numbers_of};

const EPSILON: f32 = f32::EPSILON;

/// candle on its CPU device, or on the GPU that `SPHINX_CANDLE` names.
fn witness() -> CandleTarget {
    static TARGET: OnceLock<CandleTarget> = OnceLock::new();
    TARGET.get_or_init(|| CandleTarget::from_env().unwrap()).clone().with_quantized_matmul(false)
}

fn cpu(threads: usize, isa: Option<Isa>, f32_activations: bool) -> CpuTarget {
    CpuTarget::new(CpuOptions { threads: Some(threads), isa, f32_activations, ..CpuOptions::default() }).unwrap()
}

/// Every instruction set that this processor has, on one thread or three.
fn cpus(f32_activations: bool) -> Vec<CpuTarget> {
    let threads = [1, 3].into_iter().cycle();
    Isa::supported().zip(threads).map(|(isa, threads)| cpu(threads, Some(isa), f32_activations)).collect()
}

fn buffer<T: Target>(t: &T, values: &[f32], width: usize) -> T::Buffer {
    let mut buffer = t.buffer(values.len() / width, width).unwrap();
    t.write(values, &mut buffer, 0).unwrap();
    buffer
}

fn contents<T: Target>(t: &T, buffer: &T::Buffer) -> Vec<f32> {
    let mut values = vec![f32::NAN; t.rows(buffer) * t.width(buffer)];
    t.read(buffer, 0, &mut values).unwrap();
    values
}

/// Every element within its bound.
#[track_caller]
fn close(what: &str, found: &[f32], wanted: &[f32], bound: impl Fn(usize) -> f32) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
        assert!((f - w).abs() <= bound(i), "{what}: element {i} is {f}, not {w} ± {:e}", bound(i));
    }
}

/// Root mean square of the difference, relative to that of `wanted`.
fn distance(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    let square = |v: f32| f64::from(v).powi(2);
    let difference: f64 = found.iter().zip(wanted).map(|(f, w)| square(f - w)).sum();
    let size: f64 = wanted.iter().map(|&w| square(w)).sum();
    (difference / size.max(f64::MIN_POSITIVE)).sqrt() as f32
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// `Σ |w·x|` of every product `[rows of x, rows of w]`.
fn magnitudes(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    let sum = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum();
    x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| sum(x, w))).collect()
}

/// Activations with a few columns that stand out, as a decoder's do.
fn activations(rng: &mut Numbers, rows: usize, width: usize) -> Vec<f32> {
    let mut x = rng.normal(rows * width);
    for row in x.chunks_mut(width) {
        row[width / 3] *= 8.0;
    }
    x
}

/// Rows, columns in blocks of 256 (or of 32 and odd ones where the format has them), outputs.
fn shapes(ty: GgmlType) -> &'static [(usize, usize, usize)] {
    match ty.block_len() {
        256 => &[(1, 256, 1), (3, 512, 5), (7, 768, 67), (33, 256, 130), (1, 2048, 64)],
        32 => &[(1, 32, 1), (3, 96, 5), (7, 288, 67), (33, 160, 130), (1, 2048, 64)],
        _ => &[(1, 1, 1), (3, 33, 5), (7, 300, 67), (33, 131, 130), (1, 2048, 64)],
    }
}

/// The same at the widths of the family: of its decoders where blocks of 256 fit, and of EVA (1408 and 6144), whose
/// width is no multiple of 256; a router is 8 outputs in F32.
fn wide_shapes(ty: GgmlType) -> &'static [(usize, usize, usize)] {
    match ty.block_len() {
        256 => &[(9, 5120, 17), (2, 13824, 3), (17, 14336, 16), (1, 6144, 18)],
        32 => &[(2, 1408, 67), (16, 1408, 18), (9, 6144, 17), (1, 13824, 3)],
        _ => &[(1, 4096, 8), (17, 4096, 8), (16, 1408, 18), (9, 588, 33)],
    }
}

fn linear<T: Target>(t: &T, x: &[f32], parts: &[Tensor], bias: Option<&[f32]>) -> Vec<f32> {
    multiplied(t, x, t.matrix(parts).unwrap(), bias)
}

fn multiplied<T: Target>(t: &T, x: &[f32], weight: T::Matrix, bias: Option<&[f32]>) -> Vec<f32> {
    let (n, k) = t.matrix_shape(&weight);
    let layer = Linear { weight, bias: bias.map(|b| t.vector_from(b).unwrap()) };
    let x = buffer(t, x, k);
    // One row more than needed: outputs take the input's number of rows.
    let mut out = t.buffer(t.rows(&x) + 1, n).unwrap();
    t.linear(&x, &layer, After::Nothing, &mut out).unwrap();
    contents(t, &out)
}

/// A row alone goes another way than rows in company, where a GPU has a kernel for it.
#[test]
fn fine_matrices_round_no_row() {
    let mut rng = Numbers::new(11);
    let t = witness().with_quantized_matmul(true);
    for ty in GgmlType::ALL {
        for (rows, k, n) in shapes(ty).iter().chain(wide_shapes(ty)).copied() {
            let w = [likely_matrix("a", ty, n, k, &mut rng), likely_matrix("b", ty, n.div_ceil(2), k, &mut rng)];
            let x = activations(&mut rng, rows, k);
            let widened: Vec<f32> = w.iter().flat_map(numbers_of).collect();
            let size = magnitudes(&x, &widened, k);
            let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>() as f32;
            let wanted: Vec<f32> = x.chunks(k).flat_map(|x| widened.chunks(k).map(move |w| dot(x, w))).collect();
            let together = multiplied(&t, &x, t.matrix_fine(&w).unwrap(), None);
            let alone: Vec<f32> = x.chunks(k).flat_map(|row| multiplied(&t, row, t.matrix_fine(&w).unwrap(), None)).collect();
            for (what, found) in [("together", together), ("alone", alone)] {
                close(&format!("{ty} {rows}x{k}x{n} {what}"), &found, &wanted, |i| 1e-6 * size[i]);
            }
        }
    }
}

#[test]
fn every_format_is_read_alike_to_the_bit() {
    let mut rng = Numbers::new(1);
    for ty in GgmlType::ALL {
        let width = 3 * ty.block_len().max(11);
        let tensors = [any_matrix("a", ty, 5, width, &mut rng), likely_matrix("b", ty, 3, width, &mut rng)];
        let rows = |t: &dyn Fn(&[u32]) -> Vec<f32>| t(&[7, 0, 4, 5, 4]).iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        fn embed<T: Target>(t: &T, parts: &[Tensor], ids: &[u32]) -> Vec<f32> {
            let table = t.matrix(parts).unwrap();
            let mut out = t.buffer(ids.len() + 2, t.matrix_shape(&table).1).unwrap();
            t.embed(&table, ids, &mut out, 1).unwrap();
            contents(t, &out)
        }
        let wanted = rows(&|ids| embed(&witness(), &tensors, ids));
        assert!(wanted[..width].iter().all(|&v| v == 0) && wanted[width..2 * width].iter().any(|&v| v != 0));
        for cpu in cpus(false) {
            assert!(rows(&|ids| embed(&cpu, &tensors, ids)) == wanted, "{ty} on {}", cpu.name());
        }
        if ty.is_float() {
            fn vector<T: Target>(t: &T, tensor: &Tensor) -> Vec<f32> {
                let mut out = t.buffer(tensor.rows(), tensor.cols()).unwrap();
                t.add_table(&mut out, &t.vector(tensor).unwrap()).unwrap();
                contents(t, &out)
            }
            assert_eq!(vector(&cpu(1, None, false), &tensors[0]), vector(&witness(), &tensors[0]), "{ty}");
        } else {
            assert!(matches!(witness().vector(&tensors[0]), Err(TargetError::Type { .. })));
            assert!(matches!(cpu(1, None, false).vector(&tensors[0]), Err(TargetError::Type { .. })));
        }
    }
}

#[test]
fn linear_layers_of_every_format() {
    let mut rng = Numbers::new(2);
    for ty in GgmlType::ALL {
        for &(rows, k, n) in shapes(ty).iter().chain(wide_shapes(ty)) {
            let x = activations(&mut rng, rows, k);
            let bias = rng.normal(n);
            for (kind, w) in [("any", any_matrix("w", ty, n, k, &mut rng)), ("likely", likely_matrix("w", ty, n, k, &mut rng))] {
                let w = [w];
                let wanted = linear(&witness(), &x, &w, Some(&bias));
                let numbers = numbers_of(&w[0]);
                let size = magnitudes(&x, &numbers, k);
                let weight_sums: Vec<f32> = numbers.chunks(k).map(|w| w.iter().map(|w| w.abs()).sum()).collect();
                let tight = |i: usize| 0.5 * (k as f32).sqrt() * EPSILON * size[i] + 2.0 * EPSILON * (size[i] + bias[i % n].abs());
                for cpu in cpus(true) {
                    let what = format!("{kind} {ty} [{n}, {k}], {rows} rows, {}", cpu.name());
                    close(&what, &linear(&cpu, &x, &w, Some(&bias)), &wanted, tight);
                }
                for cpu in cpus(false) {
                    let what = format!("{kind} {ty} [{n}, {k}], {rows} rows, 8 bits, {}", cpu.name());
                    let found = linear(&cpu, &x, &w, Some(&bias));
                    if ty.is_float() {
                        close(&what, &found, &wanted, tight);
                        continue;
                    }
                    // An activation is off by at most half a step of its block, 1/254 of the block's largest.
                    let half_step = largest(&x) / 254.0;
                    close(&what, &found, &wanted, |i| 1.01 * half_step * weight_sums[i % n] + tight(i));
                    if rows * n >= 64 && kind == "likely" {
                        let off = distance(&found, &wanted);
                        assert!(off <= 0.01, "{what}: off by {off}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_large_vocabulary() {
    let (vocabulary, k) = (92_544, 32);
    let mut rng = Numbers::new(16);
    let w = [likely_matrix("output", GgmlType::Q8_0, vocabulary, k, &mut rng)];
    for rows in [1, 9] {
        let x = activations(&mut rng, rows, k);
        let wanted = linear(&witness(), &x, &w, None);
        for cpu in cpus(false) {
            let found = linear(&cpu, &x, &w, None);
            let off = distance(&found, &wanted);
            // One block a row, with the activation that stands out in it.
            assert!(off <= 0.02, "{rows} rows, {}: off by {off}", cpu.name());
            let last = &found[rows * vocabulary - 100..];
            assert!(distance(last, &wanted[rows * vocabulary - 100..]) <= 0.02, "{rows} rows, {}: the last words", cpu.name());
        }
    }
    fn row<T: Target>(t: &T, table: &[Tensor], id: u32) -> Vec<f32> {
        let mut out = t.buffer(1, table[0].cols()).unwrap();
        t.embed(&t.matrix(table).unwrap(), &[id], &mut out, 0).unwrap();
        contents(t, &out)
    }
    assert_eq!(row(&cpu(1, None, false), &w, 92_543), row(&witness(), &w, 92_543));
}

#[test]
fn parts_of_several_formats_make_one_matrix() {
    let mut rng = Numbers::new(3);
    let parts = [(GgmlType::Q4_K, 70), (GgmlType::F16, 3), (GgmlType::Q6_K, 65), (GgmlType::Q8_0, 1), (GgmlType::F32, 9)];
    let parts: Vec<Tensor> = parts.iter().map(|&(ty, n)| likely_matrix("w", ty, n, 512, &mut rng)).collect();
    let w: Vec<f32> = parts.iter().flat_map(numbers_of).collect();
    let x = activations(&mut rng, 3, 512);
    let (wanted, size) = (linear(&witness(), &x, &parts, None), magnitudes(&x, &w, 512));
    for cpu in cpus(true) {
        close(&cpu.name(), &linear(&cpu, &x, &parts, None), &wanted, |i| 1e-6 * size[i]);
    }
    for cpu in cpus(false) {
        let off = distance(&linear(&cpu, &x, &parts, None), &wanted);
        assert!(off <= 0.01, "{}: off by {off}", cpu.name());
    }
}

#[test]
fn candles_own_quantised_products_agree_loosely() {
    let mut rng = Numbers::new(4);
    let quantised = witness().with_quantized_matmul(true);
    for ty in GgmlType::ALL {
        for rows in [1, 9] {
            let (x, w) = (rng.normal(rows * 512), [likely_matrix("w", ty, 67, 512, &mut rng)]);
            let (found, wanted) = (linear(&quantised, &x, &w, None), linear(&witness(), &x, &w, None));
            let off = distance(&found, &wanted);
            assert!(off <= if ty.is_float() { 1e-6 } else { 0.015 }, "{ty}, {rows} rows: off by {off}");
            let layer = Linear { weight: quantised.matrix_fine(&w).unwrap(), bias: None };
            let mut out = quantised.buffer(rows, 67).unwrap();
            quantised.linear(&buffer(&quantised, &x, 512), &layer, After::Nothing, &mut out).unwrap();
            assert_eq!(contents(&quantised, &out), wanted, "{ty}, {rows} rows: fine matrices are multiplied in f32");
        }
    }
}

#[test]
fn what_follows_a_layer() {
    let mut rng = Numbers::new(5);
    let (rows, k, n) = (5, 96, 131);
    let w = [likely_matrix("w", GgmlType::F32, n, k, &mut rng)];
    let (x, bias, old, scale) = (activations(&mut rng, rows, k), rng.normal(n), rng.normal(rows * n), rng.normal(n));
    fn run<T: Target>(t: &T, case: usize, x: &[f32], w: &[Tensor], bias: &[f32], old: &[f32], scale: &[f32]) -> Vec<f32> {
        let layer = Linear { weight: t.matrix(w).unwrap(), bias: Some(t.vector_from(bias).unwrap()) };
        let scale = t.vector_from(scale).unwrap();
        let after = [After::Nothing, After::Gelu, After::QuickGelu, After::Add, After::ScaleAdd(&scale)][case];
        let mut out = buffer(t, old, bias.len());
        t.linear(&buffer(t, x, w[0].cols()), &layer, after, &mut out).unwrap();
        contents(t, &out)
    }
    let size = magnitudes(&x, &numbers_of(&w[0]), k);
    for case in 0..5 {
        let wanted = run(&witness(), case, &x, &w, &bias, &old, &scale);
        for cpu in cpus(false) {
            let found = run(&cpu, case, &x, &w, &bias, &old, &scale);
            let bound = |i: usize| 1e-6 * size[i] * scale[i % n].abs().max(1.2) + 4.0 * EPSILON * (1.0 + wanted[i].abs());
            close(&format!("case {case} on {}", cpu.name()), &found, &wanted, bound);
        }
    }
}

fn mlp<T: Target>(t: &T, x: &[f32], up: &Tensor, act: Activation, down: &Tensor, biases: [&[f32]; 2], old: &[f32]) -> Vec<f32> {
    let layer = |w: &Tensor, bias: &[f32]| Linear {
        weight: t.matrix(std::slice::from_ref(w)).unwrap(),
        bias: (!bias.is_empty()).then(|| t.vector_from(bias).unwrap()),
    };
    let mlp = Mlp { up: layer(up, biases[0]), act, down: layer(down, biases[1]) };
    let mut out = buffer(t, old, down.rows());
    t.mlp(&buffer(t, x, up.cols()), &mlp, After::Add, &mut out).unwrap();
    contents(t, &out)
}

#[test]
fn feed_forward_parts() {
    let mut rng = Numbers::new(6);
    for act in [Activation::Gelu, Activation::QuickGelu, Activation::SiluGate] {
        for (ty, k, hidden) in [(GgmlType::F32, 20, 37), (GgmlType::Q4_K, 256, 512), (GgmlType::Q8_0, 96, 160), (GgmlType::F16, 64, 130)] {
            for rows in [1, 5, 70] {
                let wide = if act == Activation::SiluGate { 2 * hidden } else { hidden };
                let (up, down) = (likely_matrix("up", ty, wide, k, &mut rng), likely_matrix("down", ty, k, hidden, &mut rng));
                let (x, old) = (activations(&mut rng, rows, k), rng.normal(rows * k));
                let (a, b) = (rng.normal(wide), rng.normal(k));
                let biases: [&[f32]; 2] = if rows == 5 { [&[], &[]] } else { [&a, &b] };
                let wanted = mlp(&witness(), &x, &up, act, &down, biases, &old);
                let what = |t: &CpuTarget| format!("{act:?} {ty} {k} → {hidden}, {rows} rows, {}", t.name());
                for cpu in cpus(true) {
                    let off = distance(&mlp(&cpu, &x, &up, act, &down, biases, &old), &wanted);
                    assert!(off <= 1e-6, "{}: off by {off}", what(&cpu));
                }
                for cpu in cpus(false) {
                    // Activations are rounded twice, and a gate multiplies what two products are off by.
                    let off = distance(&mlp(&cpu, &x, &up, act, &down, biases, &old), &wanted);
                    assert!(off <= if ty.is_float() { 1e-6 } else { 0.02 }, "{}: off by {off}", what(&cpu));
                }
            }
        }
    }
}

#[test]
fn feed_forward_parts_behind_a_norm() {
    let mut rng = Numbers::new(16);
    for (ty, k, hidden) in [(GgmlType::F32, 20, 37), (GgmlType::Q8_0, 96, 160)] {
        for rows in [1, 5, 70] {
            let (up, down) = (likely_matrix("up", ty, hidden, k, &mut rng), likely_matrix("down", ty, k, hidden, &mut rng));
            let (x, old, scale) = (activations(&mut rng, rows, k), rng.normal(rows * k), rng.normal(k));
            let (weight, bias, biases) = (rng.normal(k), rng.normal(k), [rng.normal(hidden), rng.normal(k)]);
            fn run<T: Target>(t: &T, x: &[f32], old: &[f32], [up, down]: [&Tensor; 2], vectors: [&[f32]; 5]) -> Vec<f32> {
                let [weight, bias, scale, up_bias, down_bias] = vectors.map(|v| t.vector_from(v).unwrap());
                let layer = |w: &Tensor, bias| Linear { weight: t.matrix(std::slice::from_ref(w)).unwrap(), bias: Some(bias) };
                let mlp = Mlp { up: layer(up, up_bias), act: Activation::Gelu, down: layer(down, down_bias) };
                let mut out = buffer(t, old, down.rows());
                let norm = Norm { weight, bias, eps: 1e-5 };
                t.normed_mlp(&buffer(t, x, up.cols()), &norm, &mlp, After::ScaleAdd(&scale), &mut out).unwrap();
                contents(t, &out)
            }
            let vectors = [&weight[..], &bias, &scale, &biases[0], &biases[1]];
            let wanted = run(&witness(), &x, &old, [&up, &down], vectors);
            for (exact, cpu) in [true, false].into_iter().flat_map(|exact| cpus(exact).into_iter().map(move |cpu| (exact, cpu))) {
                let off = distance(&run(&cpu, &x, &old, [&up, &down], vectors), &wanted);
                let most = if exact || ty.is_float() { 1e-6 } else { 0.02 };
                assert!(off <= most, "{ty} {k} → {hidden}, {rows} rows, {}: off by {off}", cpu.name());
            }
        }
    }
}

/// Tokens, and the slots of each of three experts that two are used of.
fn routed(rng: &mut Numbers, rows: usize) -> [Vec<u32>; 3] {
    let mut slots = [const { Vec::new() }; 3];
    for r in 0..rows {
        let (first, step) = (rng.below(3), 1 + rng.below(2));
        slots[first].push(2 * r as u32);
        slots[(first + step) % 3].push(2 * r as u32 + 1);
    }
    slots
}

#[test]
fn mixtures_of_experts() {
    fn run<T: Target>(t: &T, x: &[f32], stacks: &[Tensor; 3], slots: &[Vec<u32>; 3], weights: &[f32]) -> Vec<f32> {
        let (k, hidden) = (stacks[0].cols(), stacks[2].cols());
        let x = buffer(t, x, k);
        let rows = t.rows(&x);
        let mut y = t.buffer(2 * rows + 1, k).unwrap();
        t.set_rows(&mut y, 2 * rows).unwrap();
        for (e, slots) in slots.iter().enumerate() {
            let part = |i: usize, n: usize| stacks[i].part(e * n..(e + 1) * n).unwrap();
            let layer = |parts: &[Tensor]| Linear { weight: t.matrix(parts).unwrap(), bias: None };
            let expert = Mlp { up: layer(&[part(0, hidden), part(1, hidden)]), act: Activation::SiluGate, down: layer(&[part(2, k)]) };
            t.expert_mlp(&x, slots, 2, &expert, &mut y).unwrap();
        }
        let mut out = t.buffer(rows, k).unwrap();
        t.copy(&x, 0, rows, &mut out, 0, 0).unwrap();
        t.mix_experts(&y, weights, 2, &mut out).unwrap();
        contents(t, &out)
    }
    let mut rng = Numbers::new(15);
    for (ty, k, hidden) in [(GgmlType::F32, 20, 37), (GgmlType::Q4_K, 256, 512), (GgmlType::Q6_K, 512, 256), (GgmlType::Q8_0, 96, 160)] {
        for rows in [1, 5, 40] {
            let stacks = [(hidden, k), (hidden, k), (k, hidden)].map(|(n, k)| likely_matrix("stack", ty, 3 * n, k, &mut rng));
            let x = activations(&mut rng, rows, k);
            let (slots, weights) = (routed(&mut rng, rows), rng.uniform(2 * rows, 0.1, 0.9));
            let wanted = run(&witness(), &x, &stacks, &slots, &weights);
            for (f32_activations, bound) in [(true, 1e-6), (false, if ty.is_float() { 1e-6 } else { 0.02 })] {
                for cpu in cpus(f32_activations) {
                    let off = distance(&run(&cpu, &x, &stacks, &slots, &weights), &wanted);
                    assert!(off <= bound, "{ty} {k} → {hidden}, {rows} rows, {}: off by {off}", cpu.name());
                }
            }
        }
    }
}

#[test]
fn norms() {
    fn run<T: Target>(t: &T, x: &[f32], w: &[f32], b: Option<&[f32]>, eps: f32) -> Vec<f32> {
        let (x, w) = (buffer(t, x, w.len()), t.vector_from(w).unwrap());
        let mut out = t.buffer(t.rows(&x), t.width(&x)).unwrap();
        match b {
            Some(b) => t.layer_norm(&x, &w, &t.vector_from(b).unwrap(), eps, &mut out).unwrap(),
            None => t.rms_norm(&x, &w, eps, &mut out).unwrap(),
        }
        contents(t, &out)
    }
    let mut rng = Numbers::new(7);
    for (rows, width, size, eps) in
        [(1, 1, 1.0, 1e-5), (3, 7, 100.0, 1e-6), (5, 1025, 1e-3, 1e-6), (2, 4096, 1.0, 1e-5), (33, 64, 1e-6, 1e-5)]
            .into_iter()
            // A Q-Former's, where an eps of 1e-12 shows, and where it does not; EVA's and a 13B decoder's.
            .chain([(32, 768, 1e-6, 1e-12), (3, 768, 1.0, 1e-12), (5, 1408, 1.0, 1e-6), (2, 5120, 1.0, 1e-5)])
    {
        let x: Vec<f32> = activations(&mut rng, rows, width).iter().map(|v| v * size).collect();
        let (w, b) = (rng.normal(width), rng.normal(width));
        for bias in [None, Some(&b[..])] {
            let wanted = run(&witness(), &x, &w, bias, eps);
            // Candle sums in f32, and takes the mean away before it scales up.
            let bound = 4.0 * EPSILON * (1.0 + largest(&wanted));
            for cpu in cpus(false) {
                let what = format!("[{rows}, {width}] of {size}, bias {}, {}", bias.is_some(), cpu.name());
                close(&what, &run(&cpu, &x, &w, bias, eps), &wanted, |_| bound);
            }
        }
    }
}

#[test]
fn full_attention() {
    fn run<T: Target>(t: &T, q: &[f32], kv: &[f32], s: AttendShape, packed: bool) -> Vec<f32> {
        let width = s.heads * s.head_dim;
        let mut out = t.buffer(s.batch * s.q_tokens, width).unwrap();
        let at = |buffer, first| Columns { buffer, first };
        if packed {
            let qkv = buffer(t, q, 3 * width);
            t.attend(at(&qkv, 0), at(&qkv, width), at(&qkv, 2 * width), s, &mut out).unwrap();
        } else {
            let (q, kv) = (buffer(t, q, width), buffer(t, kv, 2 * width + 3));
            t.attend(at(&q, 0), at(&kv, 3 + width), at(&kv, 1), s, &mut out).unwrap();
        }
        contents(t, &out)
    }
    let mut rng = Numbers::new(8);
    let shape = |batch, q_tokens, kv_tokens, heads, head_dim| AttendShape { batch, q_tokens, kv_tokens, heads, head_dim };
    let cases =
        [shape(1, 1, 1, 1, 1), shape(5, 17, 17, 3, 64), shape(2, 33, 129, 2, 40), shape(1, 257, 257, 1, 64), shape(3, 1, 50, 12, 7)];
    // EVA's heads; a Q-Former's queries among themselves and over a picture.
    let family = [shape(2, 257, 257, 2, 88), shape(1, 32, 32, 12, 64), shape(2, 32, 257, 12, 64)];
    for s in cases.into_iter().chain(family) {
        let packed = s.q_tokens == s.kv_tokens;
        let width = s.heads * s.head_dim;
        let q = rng.normal(s.batch * s.q_tokens * width * if packed { 3 } else { 1 });
        let kv = rng.normal(s.batch * s.kv_tokens * (2 * width + 3));
        let wanted = run(&witness(), &q, &kv, s, packed);
        // A score's rounding error becomes a weight's relative one.
        let score = largest(&q) * largest(&q).max(largest(&kv)) * (s.head_dim as f32).sqrt();
        let bound = 0.5 * EPSILON * (1.0 + score) * largest(&wanted).max(1.0);
        for cpu in cpus(false) {
            close(&format!("{s:?} on {}", cpu.name()), &run(&cpu, &q, &kv, s, packed), &wanted, |_| bound);
        }
    }
}

#[test]
fn feature_maps() {
    fn conv<T: Target>(t: &T, x: &[f32], map: MapShape, kernel: &[f32], bias: &[f32]) -> Vec<f32> {
        let mut out = t.buffer(map.positions(), bias.len()).unwrap();
        let (kernel, bias_vector) = (t.vector_from(kernel).unwrap(), t.vector_from(bias).unwrap());
        t.conv_depthwise(&buffer(t, x, bias.len()), map, &kernel, &bias_vector, &mut out).unwrap();
        contents(t, &out)
    }
    fn fold<T: Target>(t: &T, x: &[f32], map: MapShape, channels: usize) -> Vec<f32> {
        let mut out = t.buffer(map.positions(), 4 * channels).unwrap();
        t.fold_2x2(&buffer(t, x, channels), map, &mut out).unwrap();
        contents(t, &out)
    }
    fn pool<T: Target>(t: &T, x: &[f32], map: MapShape, channels: usize) -> Vec<f32> {
        let mut out = t.buffer(map.positions(), channels).unwrap();
        t.pool_2x2(&buffer(t, x, channels), map, &mut out).unwrap();
        contents(t, &out)
    }
    fn mean<T: Target>(t: &T, x: &[f32], group: usize, channels: usize) -> Vec<f32> {
        let mut out = t.buffer(x.len(), channels).unwrap();
        t.mean_rows(&buffer(t, x, channels), group, &mut out).unwrap();
        contents(t, &out)
    }
    let mut rng = Numbers::new(9);
    let map = |batch, height, width| MapShape { batch, height, width };
    let cases = [
        (map(1, 1, 1), 1, 7),
        (map(2, 2, 3), 5, 7),
        (map(5, 8, 6), 16, 7),
        (map(1, 9, 16), 33, 3),
        (map(1, 16, 16), 96, 7),
        (map(2, 3, 40), 8, 1),
        // The last map of a ConvNeXt that is given 256 pixels.
        (map(2, 8, 8), 48, 7),
    ];
    for (map, channels, side) in cases {
        let (x, kernel, bias) = (rng.normal(map.positions() * channels), rng.normal(side * side * channels), rng.normal(channels));
        let wanted = conv(&witness(), &x, map, &kernel, &bias);
        let size = largest(&x);
        let bound = EPSILON * side as f32 * side as f32 * size * largest(&kernel);
        for cpu in cpus(false) {
            let what = format!("{map:?}, {channels} channels, kernel {side}, {}", cpu.name());
            close(&what, &conv(&cpu, &x, map, &kernel, &bias), &wanted, |_| bound);
            if map.height % 2 == 0 && map.width % 2 == 0 {
                assert_eq!(fold(&cpu, &x, map, channels), fold(&witness(), &x, map, channels), "{what}");
                close(&what, &pool(&cpu, &x, map, channels), &pool(&witness(), &x, map, channels), |_| EPSILON * size);
            }
            let group = map.height * map.width;
            close(&what, &mean(&cpu, &x, group, channels), &mean(&witness(), &x, group, channels), |_| 1e-6 * size);
        }
    }
}

/// The rotated rows and the attention of a sequence that comes in chunks.
fn decode<T: Target>(t: &T, shape: KvShape, qkv: &[f32], pos: usize, chunks: &[usize]) -> [Vec<f32>; 2] {
    let width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
    let rope = Rope::new(shape.head_dim, 10_000.0, 1.0);
    let mut kv = t.kv(shape).unwrap();
    let (mut turned, mut mixed) = (Vec::new(), Vec::new());
    // Positions before `pos` come in one piece and are not looked at.
    let (mut at, mut row) = (0, 0);
    for rows in std::iter::once(&pos).chain(chunks).copied().filter(|&rows| rows > 0) {
        let mut b = buffer(t, &qkv[row * width..(row + rows) * width], width);
        t.rope_append(&mut b, &rope, &mut kv, at).unwrap();
        let mut out = t.buffer(rows, shape.heads * shape.head_dim).unwrap();
        t.attend_cached(&b, &kv, at, &mut out).unwrap();
        if at >= pos {
            turned.extend(contents(t, &b));
            mixed.extend(contents(t, &out));
        }
        (at, row) = (at + rows, row + rows);
    }
    [turned, mixed]
}

/// Heads, key heads, width of a head, position of the first row, and chunks.
const SEQUENCES: [(usize, usize, usize, usize, &[usize]); 8] = [
    (1, 1, 32, 0, &[1, 1, 1]),
    (4, 1, 64, 0, &[19]),
    (4, 1, 64, 37, &[19, 1, 1]),
    (8, 2, 128, 5, &[3, 40, 1, 2]),
    (2, 2, 96, 150, &[1]),
    (12, 4, 32, 15, &[17, 16, 1]),
    (40, 40, 128, 3, &[2, 1]),
    (32, 8, 128, 20, &[5, 1]),
];

#[test]
fn attention_over_a_cache() {
    let mut rng = Numbers::new(10);
    for (heads, kv_heads, head_dim, pos, chunks) in SEQUENCES {
        let rows = pos + chunks.iter().sum::<usize>();
        let qkv = rng.normal(rows * (heads + 2 * kv_heads) * head_dim);
        let size = largest(&qkv);
        for ty in [KvType::F32, KvType::F16, KvType::Q8_0] {
            let shape = KvShape { capacity: rows + 3, heads, kv_heads, head_dim, ty };
            let [turned, mixed] = decode(&witness(), shape, &qkv, pos, chunks);
            for cpu in cpus(false) {
                let what = format!("{shape:?} from {pos} by {chunks:?} on {}", cpu.name());
                let [found_turned, found_mixed] = decode(&cpu, shape, &qkv, pos, chunks);
                close(&what, &found_turned, &turned, |_| 4.0 * EPSILON * size);
                // In small caches a last bit of a rotated key may round to the next number the cache has.
                let step = match ty {
                    KvType::F32 => 0.0,
                    KvType::F16 => 1.0 / 2048.0,
                    KvType::Q8_0 => 1.0 / 127.0,
                };
                let score = size.powi(2) * (head_dim as f32).sqrt();
                let bound = (0.5 * EPSILON * (1.0 + score) + 0.1 * step) * size;
                close(&what, &found_mixed, &mixed, |_| bound);
                let off = distance(&found_mixed, &mixed);
                assert!(off <= 1e-6 + 0.02 * step, "{what}: off by {off}");
            }
        }
    }
}

#[test]
fn chunks_do_not_change_what_candle_attends_to() {
    let mut rng = Numbers::new(11);
    let shape = KvShape { capacity: 64, heads: 8, kv_heads: 2, head_dim: 64, ty: KvType::F32 };
    let qkv = rng.normal(60 * 12 * 64);
    let [_, whole] = decode(&witness(), shape, &qkv, 0, &[60]);
    let [_, pieces] = decode(&witness(), shape, &qkv, 0, &[7, 1, 32, 20]);
    close("chunks", &pieces, &whole, |_| 2e-6);
}

/// On the CPU target this holds to the bit, for any batch and any number of threads.
#[test]
fn a_row_depends_on_itself_alone() {
    for isa in Isa::supported() {
        rows_depend_on_themselves(&[1, 2, 3].map(|threads| cpu(threads, Some(isa), false)));
    }
}

fn rows_depend_on_themselves(targets: &[CpuTarget]) {
    let mut rng = Numbers::new(12);
    for ty in GgmlType::ALL {
        let (rows, k, hidden) = (21, 256, 512 + if ty.is_float() { 5 } else { 0 });
        let x = activations(&mut rng, rows, k);
        let (up, down) = (likely_matrix("up", ty, 2 * hidden, k, &mut rng), likely_matrix("down", ty, 131, hidden, &mut rng));
        let up_plain = likely_matrix("up", ty, hidden, k, &mut rng);
        let old = rng.normal(rows * 131);
        let gated = |t: &CpuTarget, x: &[f32], old: &[f32]| mlp(t, x, &up, Activation::SiluGate, &down, [&[], &[]], old);
        let gelu = |t: &CpuTarget, x: &[f32], old: &[f32]| mlp(t, x, &up_plain, Activation::Gelu, &down, [&[], &[]], old);
        let (wanted_gated, wanted_gelu) = (gated(&targets[0], &x, &old), gelu(&targets[0], &x, &old));
        for t in targets {
            for n in [1, 5, 8] {
                for first in (0..rows).step_by(n) {
                    let end = rows.min(first + n);
                    let (x, old) = (&x[first * k..end * k], &old[first * 131..end * 131]);
                    let of = first * 131..end * 131;
                    assert_eq!(gated(t, x, old), wanted_gated[of.clone()], "{ty}, rows {first}..{end}, {}", t.name());
                    assert_eq!(gelu(t, x, old), wanted_gelu[of], "{ty}, rows {first}..{end}, {}", t.name());
                }
            }
        }
    }
    for ty in [KvType::F32, KvType::F16, KvType::Q8_0] {
        let shape = KvShape { capacity: 70, heads: 8, kv_heads: 2, head_dim: 64, ty };
        let qkv = rng.normal(60 * 12 * 64);
        let wanted = decode(&targets[0], shape, &qkv, 0, &[60]);
        for t in targets {
            for chunks in [&[60][..], &[1; 60], &[7, 1, 32, 20]] {
                assert!(decode(t, shape, &qkv, 0, chunks) == wanted, "{ty:?}, {chunks:?}, {}", t.name());
            }
        }
    }
}

/// One error after another, and no panic.
fn refuses<T: Target>(t: &T) {
    let mut rng = Numbers::new(13);
    let f32_matrix = |n, k, rng: &mut Numbers| t.matrix(&[likely_matrix("w", GgmlType::F32, n, k, rng)]).unwrap();
    let vector = |n| t.vector_from(&vec![1.0; n]).unwrap();
    let refused = |r: Result<(), TargetError>, what: &str| {
        assert!(matches!(r, Err(TargetError::Shape { .. })), "{}: {what}: {r:?}", t.name());
    };
    let (x, mut y) = (t.buffer(4, 8).unwrap(), t.buffer(4, 6).unwrap());
    let mut short = t.buffer(3, 8).unwrap();
    let mut same = t.buffer(4, 8).unwrap();

    refused(t.matrix(&[]).map(|_| ()), "a matrix of nothing");
    let parts = [likely_matrix("a", GgmlType::F32, 2, 4, &mut rng), likely_matrix("b", GgmlType::F32, 2, 5, &mut rng)];
    refused(t.matrix(&parts).map(|_| ()), "parts of different widths");
    refused(t.set_rows(&mut same, 5), "rows past the capacity");
    refused(t.write(&[0.0; 7], &mut same, 0), "a piece of a row");
    refused(t.write(&[0.0; 16], &mut same, 3), "a row past the end");
    refused(t.write(&[0.0; 8], &mut same, usize::MAX), "a row far past the end");
    refused(t.read(&same, 4, &mut [0.0; 8]), "reading past the end");
    refused(t.copy(&x, 3, 2, &mut same, 0, 0), "copying past the end");
    refused(t.copy(&x, 0, 1, &mut same, 0, 1), "copying past the last column");
    refused(t.copy(&x, 0, usize::MAX, &mut same, 1, 0), "copying everything");

    refused(t.rms_norm(&x, &vector(7), 1e-5, &mut same), "a short weight");
    refused(t.rms_norm(&x, &vector(8), 1e-5, &mut y), "another width");
    refused(t.rms_norm(&x, &vector(8), 1e-5, &mut short), "too few rows");
    refused(t.layer_norm(&x, &vector(8), &vector(9), 1e-5, &mut same), "a long bias");

    let layer = Linear { weight: f32_matrix(6, 8, &mut rng), bias: None };
    refused(t.linear(&y, &layer, After::Nothing, &mut same), "inputs");
    refused(t.linear(&x, &layer, After::Nothing, &mut same), "outputs");
    refused(t.linear(&x, &layer, After::ScaleAdd(&vector(5)), &mut y), "a short scale");
    t.set_rows(&mut y, 3).unwrap();
    refused(t.linear(&x, &layer, After::Add, &mut y), "adding to other rows");
    t.set_rows(&mut y, 4).unwrap();
    let biased = Linear { weight: f32_matrix(6, 8, &mut rng), bias: Some(vector(5)) };
    refused(t.linear(&x, &biased, After::Nothing, &mut y), "a short bias");
    let plain = |n, k, rng: &mut Numbers| Linear { weight: f32_matrix(n, k, rng), bias: None };
    let mlp = Mlp { up: plain(10, 8, &mut rng), act: Activation::SiluGate, down: plain(6, 10, &mut rng) };
    refused(t.mlp(&x, &mlp, After::Nothing, &mut y), "a gate without its half");
    let mlp = Mlp { up: plain(11, 8, &mut rng), act: Activation::SiluGate, down: plain(6, 5, &mut rng) };
    refused(t.mlp(&x, &mlp, After::Nothing, &mut y), "an odd gate");

    refused(t.expert_mlp(&x, &[0], 1, &mlp, &mut y), "an odd gate of an expert");
    let mlp = Mlp { up: plain(10, 8, &mut rng), act: Activation::SiluGate, down: plain(6, 5, &mut rng) };
    let mut results = t.buffer(8, 6).unwrap();
    refused(t.expert_mlp(&x, &[3, 3], 2, &mlp, &mut results), "a slot twice");
    refused(t.expert_mlp(&x, &[4, 3], 2, &mlp, &mut results), "slots that descend");
    refused(t.expert_mlp(&x, &[7, 8], 2, &mlp, &mut results), "a slot past the last");
    refused(t.expert_mlp(&x, &[0], 3, &mlp, &mut results), "rows for another number of experts");
    refused(t.expert_mlp(&x, &[], 0, &mlp, &mut results), "no experts");
    refused(t.expert_mlp(&x, &[0], 1, &mlp, &mut same), "an expert of another width");
    refused(t.expert_mlp(&y, &[0], 2, &mlp, &mut results), "an expert of other inputs");
    refused(t.mix_experts(&results, &[0.5; 7], 2, &mut y), "a weight too few");
    refused(t.mix_experts(&results, &[0.5; 4], 1, &mut y), "results left over");
    refused(t.mix_experts(&results, &[0.5; 8], 2, &mut same), "results of another width");
    refused(t.mix_experts(&results, &[0.5; 8], 0, &mut y), "weights of no experts");

    refused(t.embed(&layer.weight, &[6], &mut same, 0), "an id past the table");
    refused(t.embed(&layer.weight, &[0], &mut y, 0), "a table of another width");
    refused(t.embed(&layer.weight, &[0, 0], &mut same, 3), "ids past the last row");
    refused(t.add_table(&mut same, &vector(12)), "a piece of a table row");
    refused(t.add_table(&mut same, &vector(0)), "an empty table");
    refused(t.mean_rows(&x, 3, &mut same), "a piece of a group");
    refused(t.mean_rows(&x, 0, &mut same), "groups of nothing");

    let map = |height, width| MapShape { batch: 1, height, width };
    refused(t.conv_depthwise(&x, map(2, 3), &vector(72), &vector(8), &mut same), "another map");
    refused(t.conv_depthwise(&x, map(2, 2), &vector(4 * 8), &vector(8), &mut same), "an even kernel");
    refused(t.conv_depthwise(&x, map(2, 2), &vector(72), &vector(1), &mut same), "a short bias");
    let mut folded = t.buffer(1, 32).unwrap();
    refused(t.fold_2x2(&x, map(4, 1), &mut folded), "an odd map");
    refused(t.fold_2x2(&x, map(2, 2), &mut same), "a narrow fold");
    refused(t.pool_2x2(&x, map(4, 1), &mut same), "an odd map to pool");
    refused(t.pool_2x2(&x, map(4, 2), &mut same), "another map to pool");
    refused(t.pool_2x2(&x, map(2, 2), &mut folded), "pooling into another width");

    let s = AttendShape { batch: 2, q_tokens: 2, kv_tokens: 2, heads: 1, head_dim: 8 };
    fn at<B>(buffer: &B, first: usize) -> Columns<'_, B> {
        Columns { buffer, first }
    }
    refused(t.attend(at(&x, 1), at(&x, 0), at(&x, 0), s, &mut same), "columns past the last");
    refused(t.attend(at(&x, 0), at(&x, 0), at(&x, 0), AttendShape { batch: 3, ..s }, &mut same), "another batch");
    refused(t.attend(at(&x, 0), at(&x, 0), at(&x, 0), AttendShape { kv_tokens: 0, ..s }, &mut same), "no keys");
    refused(t.attend(at(&x, 0), at(&x, 0), at(&x, 0), s, &mut y), "another width");

    let shape = KvShape { capacity: 4, heads: 4, kv_heads: 2, head_dim: 4, ty: KvType::F32 };
    refused(t.kv(KvShape { kv_heads: 3, ..shape }).map(|_| ()), "heads that do not divide");
    refused(t.kv(KvShape { kv_heads: 0, ..shape }).map(|_| ()), "no key heads");
    refused(t.kv(KvShape { head_dim: 5, ..shape }).map(|_| ()), "an odd head");
    refused(t.kv(KvShape { ty: KvType::Q8_0, ..shape }).map(|_| ()), "a piece of a block");
    let (mut kv, mut qkv, mut out) = (t.kv(shape).unwrap(), t.buffer(3, 32).unwrap(), t.buffer(3, 16).unwrap());
    let rope = Rope::new(4, 10_000.0, 1.0);
    refused(t.rope_append(&mut qkv, &Rope::new(6, 10_000.0, 1.0), &mut kv, 0), "other frequencies");
    refused(t.rope_append(&mut qkv, &rope, &mut kv, 2), "positions past the cache");
    refused(t.rope_append(&mut qkv, &rope, &mut kv, usize::MAX), "positions far past the cache");
    refused(t.rope_append(&mut same, &rope, &mut kv, 0), "rows of another width");
    refused(t.attend_cached(&qkv, &kv, 2, &mut out), "attending past the cache");
    refused(t.attend_cached(&qkv, &kv, 0, &mut same), "another output");
    assert!(matches!(t.buffer(usize::MAX / 16, 64), Err(TargetError::Memory { .. })), "{}", t.name());
}

#[test]
fn both_refuse_what_does_not_fit() {
    refuses(&witness());
    cpus(false).iter().for_each(refuses);
}

/// Every operation on no rows: nothing happens.
fn idles<T: Target>(t: &T) {
    let mut rng = Numbers::new(14);
    let empty = |width| {
        let mut b = t.buffer(2, width).unwrap();
        t.set_rows(&mut b, 0).unwrap();
        b
    };
    let vector = |n| t.vector_from(&vec![1.0; n]).unwrap();
    let layer =
        |n, k, rng: &mut Numbers| Linear { weight: t.matrix(&[likely_matrix("w", GgmlType::Q8_0, n, k, rng)]).unwrap(), bias: None };
    let (x, mut out) = (empty(32), t.buffer(2, 32).unwrap());
    let none = |out: &mut T::Buffer| {
        assert_eq!(t.rows(out), 0);
        t.set_rows(out, 2).unwrap();
    };
    t.rms_norm(&x, &vector(32), 1e-5, &mut out).unwrap();
    none(&mut out);
    t.layer_norm(&x, &vector(32), &vector(32), 1e-5, &mut out).unwrap();
    none(&mut out);
    t.linear(&x, &layer(32, 32, &mut rng), After::Gelu, &mut out).unwrap();
    none(&mut out);
    let mlp = Mlp { up: layer(64, 32, &mut rng), act: Activation::SiluGate, down: layer(32, 32, &mut rng) };
    t.mlp(&x, &mlp, After::Nothing, &mut out).unwrap();
    none(&mut out);
    let mut no_slots = empty(32);
    t.expert_mlp(&x, &[], 2, &mlp, &mut no_slots).unwrap();
    t.mix_experts(&no_slots, &[], 2, &mut empty(32)).unwrap();
    t.mean_rows(&x, 4, &mut out).unwrap();
    none(&mut out);
    let map = MapShape { batch: 0, height: 2, width: 2 };
    t.conv_depthwise(&x, map, &vector(9 * 32), &vector(32), &mut out).unwrap();
    none(&mut out);
    t.fold_2x2(&empty(8), map, &mut out).unwrap();
    none(&mut out);
    t.pool_2x2(&x, map, &mut out).unwrap();
    none(&mut out);
    let columns = || Columns { buffer: &x, first: 0 };
    let s = AttendShape { batch: 0, q_tokens: 3, kv_tokens: 3, heads: 2, head_dim: 16 };
    t.attend(columns(), columns(), columns(), s, &mut out).unwrap();
    none(&mut out);
    let mut kv = t.kv(KvShape { capacity: 2, heads: 2, kv_heads: 1, head_dim: 16, ty: KvType::F16 }).unwrap();
    let mut qkv = empty(64);
    t.rope_append(&mut qkv, &Rope::new(16, 10_000.0, 1.0), &mut kv, 2).unwrap();
    t.attend_cached(&qkv, &kv, 0, &mut out).unwrap();
    none(&mut out);
    t.embed(&layer(2, 32, &mut rng).weight, &[], &mut out, 2).unwrap();
    t.add_table(&mut empty(32), &vector(64)).unwrap();
    t.copy(&x, 0, 0, &mut out, 2, 0).unwrap();
    t.write(&[], &mut out, 2).unwrap();
    t.read(&out, 2, &mut []).unwrap();
    assert!(contents(t, &out).iter().all(|&v| v == 0.0));
}

#[test]
fn no_rows_are_no_trouble() {
    idles(&witness());
    cpus(false).iter().for_each(idles);
}
