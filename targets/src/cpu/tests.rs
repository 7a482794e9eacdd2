//! Every operation of the CPU target against plain formulas in f64, for every instruction set of this processor.

#![allow(clippy::needless_range_loop)] // positions of several arrays at once

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use sphinx_quant::GgmlType;

use super::*;
use crate::KvType;

fn targets() -> Vec<CpuTarget> {
    let make = |isa, threads| CpuTarget::new(CpuOptions { threads: Some(threads), isa: Some(isa), ..CpuOptions::default() }).unwrap();
    Isa::supported().flat_map(|isa| [make(isa, 1), make(isa, 3)]).collect()
}

fn random(rng: &mut Pcg64, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn tensor(ty: GgmlType, rows: usize, cols: usize, values: &[f32]) -> Tensor {
    let row_bytes = ty.row_bytes(cols).unwrap();
    let mut bytes = vec![0u8; rows * row_bytes];
    for (row, out) in values.chunks(cols).zip(bytes.chunks_mut(row_bytes)) {
        block::quantize(ty, row, None, out);
    }
    Tensor::owned("t", ty, &[cols, rows], &bytes).unwrap()
}

/// The matrix as f64, `[rows][cols]`.
fn numbers(t: &Tensor) -> Vec<Vec<f64>> {
    let mut row = vec![0f32; t.cols()];
    (0..t.rows())
        .map(|r| {
            block::dequantize(t.ty(), t.row(r), &mut row);
            row.iter().map(|&v| f64::from(v)).collect()
        })
        .collect()
}

fn filled(t: &CpuTarget, values: &[f32], width: usize) -> Buffer {
    let mut b = t.buffer(values.len() / width, width).unwrap();
    t.write(values, &mut b, 0).unwrap();
    b
}

/// `y[m][n]` and the bound `Σ |w| |x|` that rounding is measured against.
fn product(x: &[f32], w: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
    let k = w[0].len();
    let pairs = x.chunks(k).flat_map(|x| {
        w.iter().map(move |w| {
            let terms = x.iter().zip(w).map(|(&x, w)| f64::from(x) * w);
            (terms.clone().sum::<f64>(), terms.map(f64::abs).sum::<f64>())
        })
    });
    pairs.unzip()
}

#[test]
fn linear_layers_of_all_types_and_batches() {
    let mut rng = Pcg64::seed_from_u64(1);
    let k = 512;
    for ty in GgmlType::ALL {
        let first = tensor(ty, 70, k, &random(&mut rng, 70 * k));
        let second = tensor(ty, 5, k, &random(&mut rng, 5 * k));
        let w: Vec<_> = numbers(&first).into_iter().chain(numbers(&second)).collect();
        let bias = random(&mut rng, 75);
        let x = random(&mut rng, 21 * k);
        let (want, size) = product(&x, &w);
        let mut alone: Vec<(Isa, Vec<f32>)> = Vec::new();
        for t in targets() {
            let layer = Linear { weight: t.matrix(&[first.clone(), second.clone()]).unwrap(), bias: Some(bias.clone()) };
            for rows in [1, 2, 7, 8, 21] {
                let x = filled(&t, &x[..rows * k], k);
                let mut out = t.buffer(21, 75).unwrap();
                out.values_mut().fill(f32::NAN);
                t.linear(&x, &layer, After::Nothing, &mut out).unwrap();
                assert_eq!(t.rows(&out), rows);
                // Activations in 8 bits are off by half a step of a 127th of the block's largest, at worst.
                let tolerance = if ty.is_float() { 2e-6 } else { 0.01 };
                for (i, &got) in out.values().iter().enumerate() {
                    let want = want[i] + f64::from(bias[i % 75]);
                    assert!((f64::from(got) - want).abs() <= tolerance * size[i], "{ty} {} {rows} rows, {i}: {got} {want}", t.name());
                }
                // A row's result is the same in every batch and for every number of threads.
                match alone.iter().find(|(isa, _)| *isa == t.isa()) {
                    None => alone.push((t.isa(), out.values().to_vec())),
                    Some((_, one)) => assert_eq!(out.values()[..75], one[..75], "{ty} {} {rows} rows", t.name()),
                }
            }
        }
    }
}

#[test]
fn activations_in_f32_are_exact() {
    let mut rng = Pcg64::seed_from_u64(2);
    let k = 256;
    for ty in GgmlType::ALL {
        let w = tensor(ty, 9, k, &random(&mut rng, 9 * k));
        let x = random(&mut rng, 10 * k);
        let (want, size) = product(&x, &numbers(&w));
        for isa in Isa::supported() {
            let t =
                CpuTarget::new(CpuOptions { threads: Some(2), isa: Some(isa), f32_activations: true, ..CpuOptions::default() }).unwrap();
            let layer = Linear { weight: t.matrix(std::slice::from_ref(&w)).unwrap(), bias: None };
            let mut out = t.buffer(10, 9).unwrap();
            t.linear(&filled(&t, &x, k), &layer, After::Nothing, &mut out).unwrap();
            for (i, &got) in out.values().iter().enumerate() {
                assert!((f64::from(got) - want[i]).abs() <= 1e-6 * size[i], "{ty} {isa} {i}: {got} {}", want[i]);
            }
        }
    }
}

#[test]
fn what_follows_a_layer() {
    let mut rng = Pcg64::seed_from_u64(3);
    let (k, n, rows) = (96, 67, 9);
    let w = tensor(GgmlType::F32, n, k, &random(&mut rng, n * k));
    let (x, before, scale) = (random(&mut rng, rows * k), random(&mut rng, rows * n), random(&mut rng, n));
    let (y, _) = product(&x, &numbers(&w));
    for t in targets() {
        let layer = Linear { weight: t.matrix(std::slice::from_ref(&w)).unwrap(), bias: None };
        let x = filled(&t, &x, k);
        let gelu = |y: f64| y * 0.5 * (1.0 + libm::erf(y / 2f64.sqrt()));
        let check = |after: After<'_, Vec<f32>>, f: &dyn Fn(usize) -> f64| {
            let mut out = filled(&t, &before, n);
            t.linear(&x, &layer, after, &mut out).unwrap();
            for (i, &got) in out.values().iter().enumerate() {
                assert!((f64::from(got) - f(i)).abs() < 1e-5, "{after:?} {} {i}: {got} {}", t.name(), f(i));
            }
        };
        check(After::Nothing, &|i| y[i]);
        check(After::Gelu, &|i| gelu(y[i]));
        check(After::QuickGelu, &|i| y[i] / (1.0 + (-1.702 * y[i]).exp()));
        check(After::Add, &|i| f64::from(before[i]) + y[i]);
        check(After::ScaleAdd(&scale), &|i| f64::from(before[i]) + f64::from(scale[i % n]) * y[i]);
    }
}

/// More results than are expected to stay in a cache, in rows that begin anywhere, are those of the rows alone.
#[test]
fn results_past_the_caches() {
    let mut rng = Pcg64::seed_from_u64(31);
    let (k, n, rows) = (32, 6001, 1100);
    let w = tensor(GgmlType::Q8_0, n, k, &random(&mut rng, n * k));
    let x = random(&mut rng, rows * k);
    for t in targets() {
        let layer = Linear { weight: t.matrix(std::slice::from_ref(&w)).unwrap(), bias: None };
        let mut out = filled(&t, &vec![f32::NAN; rows * n], n);
        t.linear(&filled(&t, &x, k), &layer, After::Nothing, &mut out).unwrap();
        assert!(out.values().iter().all(|v| v.is_finite()), "{}", t.name());
        for r in [0, 1, 35, 36, rows / 2, rows - 1] {
            let mut alone = t.buffer(1, n).unwrap();
            t.linear(&filled(&t, &x[r * k..][..k], k), &layer, After::Nothing, &mut alone).unwrap();
            assert!(out.values()[r * n..][..n] == *alone.values(), "{} row {r}", t.name());
        }
    }
}

#[test]
fn feed_forward_parts_in_tiles() {
    let mut rng = Pcg64::seed_from_u64(4);
    // Wide enough that 300 rows need two tiles.
    let (k, inner, rows) = (32, 4500, 300);
    for act in [Activation::Gelu, Activation::QuickGelu, Activation::SiluGate] {
        let wide = if act == Activation::SiluGate { 2 * inner } else { inner };
        let up = tensor(GgmlType::F32, wide, k, &random(&mut rng, wide * k));
        let down = tensor(GgmlType::F16, k, inner, &random(&mut rng, inner * k));
        let x = random(&mut rng, rows * k);
        let mut first: Option<Vec<f32>> = None;
        for t in targets() {
            let layer = |w: &Tensor| Linear { weight: t.matrix(std::slice::from_ref(w)).unwrap(), bias: None };
            let mlp = Mlp { up: layer(&up), act, down: layer(&down) };
            let mut out = t.buffer(rows, k).unwrap();
            t.mlp(&filled(&t, &x, k), &mlp, After::Nothing, &mut out).unwrap();
            let mut one = t.buffer(1, k).unwrap();
            t.mlp(&filled(&t, &x[k..2 * k], k), &mlp, After::Nothing, &mut one).unwrap();
            assert_eq!(one.values(), &out.values()[k..2 * k], "{act:?} {}: a row alone", t.name());
            let (down64, up64) = (numbers(&down), numbers(&up));
            for row in [0, rows - 1] {
                let (h, _) = product(&x[row * k..(row + 1) * k], &up64);
                let mid: Vec<f32> = (0..inner)
                    .map(|i| match act {
                        Activation::Gelu => h[i] * 0.5 * (1.0 + libm::erf(h[i] / 2f64.sqrt())),
                        Activation::QuickGelu => h[i] / (1.0 + (-1.702 * h[i]).exp()),
                        Activation::SiluGate => h[i] / (1.0 + (-h[i]).exp()) * h[inner + i],
                    } as f32)
                    .collect();
                let (want, size) = product(&mid, &down64);
                for i in 0..k {
                    let got = f64::from(out.values()[row * k + i]);
                    assert!((got - want[i]).abs() < 5e-6 * size[i], "{act:?} {} row {row}: {got} {}", t.name(), want[i]);
                }
            }
            let first = first.get_or_insert_with(|| out.values().to_vec());
            assert!(first.iter().zip(out.values()).all(|(a, b)| (a - b).abs() < 1e-2), "{act:?} {}", t.name());
        }
    }
}

#[test]
fn a_hidden_map_of_codes_is_the_one_of_numbers() {
    let mut rng = Pcg64::seed_from_u64(14);
    // Wide enough that the rows need two tiles; few rows alone go through numbers.
    let (k, inner, rows) = (32, 24576, 514);
    let types = [GgmlType::Q8_0, GgmlType::Q4_K, GgmlType::Q6_K];
    for (i, act) in [Activation::Gelu, Activation::QuickGelu, Activation::SiluGate, Activation::SiluGate].into_iter().enumerate() {
        let wide = if act == Activation::SiluGate { 2 * inner } else { inner };
        let up = tensor(GgmlType::Q8_0, wide, k, &random(&mut rng, wide * k));
        let down = tensor(types[i % 3], k, inner, &random(&mut rng, inner * k));
        let (x, bias) = (random(&mut rng, rows * k), random(&mut rng, wide));
        // The portable kernels make no batches.
        for t in targets().into_iter().filter(|t| t.isa() != Isa::Portable) {
            // Gate and up as one tensor and as two.
            let halves = if i == 3 { vec![up.part(0..inner).unwrap(), up.part(inner..wide).unwrap()] } else { vec![up.clone()] };
            for fine in [false, true] {
                let matrix = |parts: &[Tensor]| if fine { t.matrix_fine(parts) } else { t.matrix(parts) }.unwrap();
                let up = Linear { weight: matrix(&halves), bias: Some(bias.clone()) };
                let mlp = Mlp { up, act, down: Linear { weight: matrix(std::slice::from_ref(&down)), bias: None } };
                let norm = Norm { weight: x[..k].to_vec(), bias: x[k..2 * k].to_vec(), eps: 1e-6 };
                let (mut normed, mut out) = (t.buffer(rows, k).unwrap(), t.buffer(rows, k).unwrap());
                t.layer_norm(&filled(&t, &x, k), &norm.weight, &norm.bias, norm.eps, &mut normed).unwrap();
                t.normed_mlp(&filled(&t, &x, k), &norm, &mlp, After::Nothing, &mut out).unwrap();
                for row in [0, 1, 255, 257, rows - 1] {
                    let (mut one, mut other) = (t.buffer(1, k).unwrap(), t.buffer(1, k).unwrap());
                    t.mlp(&filled(&t, &normed.values()[row * k..(row + 1) * k], k), &mlp, After::Nothing, &mut one).unwrap();
                    assert_eq!(one.values(), &out.values()[row * k..(row + 1) * k], "{act:?} {} fine {fine}: row {row}", t.name());
                    t.normed_mlp(&filled(&t, &x[row * k..(row + 1) * k], k), &norm, &mlp, After::Nothing, &mut other).unwrap();
                    assert_eq!(one.values(), other.values(), "{act:?} {} fine {fine}: row {row} alone", t.name());
                }
            }
        }
    }
}

/// A routing of `rows` tokens to two of `experts` each, as slots of every expert.
fn routes(rng: &mut Pcg64, rows: usize, experts: usize) -> Vec<Vec<u32>> {
    let mut slots = vec![Vec::new(); experts];
    for r in 0..rows {
        let first = rng.random_range(0..experts);
        let second = (first + rng.random_range(1..experts)) % experts;
        slots[first].push(2 * r as u32);
        slots[second].push(2 * r as u32 + 1);
    }
    slots
}

#[test]
fn an_expert_is_the_feed_forward_part_of_its_tokens() {
    let mut rng = Pcg64::seed_from_u64(10);
    let (k, inner, rows, experts) = (256, 512, 33, 4);
    for ty in [GgmlType::F32, GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q8_0] {
        let stacks: [Tensor; 3] = [(inner, k), (inner, k), (k, inner)].map(|(n, k)| {
            let all = tensor(ty, experts * n, k, &random(&mut rng, experts * n * k));
            Tensor::owned("stack", ty, &[k, n, experts], all.bytes()).unwrap()
        });
        let x = random(&mut rng, rows * k);
        let slots = routes(&mut rng, rows, experts);
        let (weights, old) = (random(&mut rng, 2 * rows), random(&mut rng, rows * k));
        let mut by_isa: Vec<(Isa, Vec<f32>)> = Vec::new();
        for t in targets() {
            let all: Vec<Mlp<CpuTarget>> = (0..experts)
                .map(|e| {
                    let part = |i: usize, n: usize| stacks[i].part(e * n..(e + 1) * n).unwrap();
                    let up = Linear { weight: t.matrix(&[part(0, inner), part(1, inner)]).unwrap(), bias: None };
                    Mlp { up, act: Activation::SiluGate, down: Linear { weight: t.matrix(&[part(2, k)]).unwrap(), bias: None } }
                })
                .collect();
            let x_all = filled(&t, &x, k);
            let run = |order: &[usize]| {
                let mut y = t.buffer(2 * rows, k).unwrap();
                y.values_mut().fill(f32::NAN);
                let mut filled_slots = 0;
                for &e in order {
                    t.expert_mlp(&x_all, &slots[e], 2, &all[e], &mut y).unwrap();
                    filled_slots += slots[e].len();
                    assert_eq!(y.values().chunks(k).filter(|row| row.iter().all(|v| !v.is_nan())).count(), filled_slots, "others stay");
                }
                let mut out = filled(&t, &old, k);
                t.mix_experts(&y, &weights, 2, &mut out).unwrap();
                (y.values().to_vec(), out.values().to_vec())
            };
            let (y, out) = run(&[0, 1, 2, 3]);
            assert_eq!(run(&[2, 0, 3, 1]), (y.clone(), out.clone()), "{ty} {}: the order of experts", t.name());
            for (e, slots) in slots.iter().enumerate() {
                for &slot in slots {
                    let (slot, row) = (slot as usize, slot as usize / 2);
                    let mut one = t.buffer(1, k).unwrap();
                    t.mlp(&filled(&t, &x[row * k..(row + 1) * k], k), &all[e], After::Nothing, &mut one).unwrap();
                    assert_eq!(one.values(), &y[slot * k..(slot + 1) * k], "{ty} {}: slot {slot} alone", t.name());
                }
            }
            for (i, &got) in out.iter().enumerate() {
                let (r, c) = (i / k, i % k);
                let sum = weights[2 * r] * y[2 * r * k + c] + weights[2 * r + 1] * y[(2 * r + 1) * k + c];
                assert_eq!(got, old[i] + sum, "{ty} {} row {r} column {c}", t.name());
            }
            match by_isa.iter().find(|(isa, _)| *isa == t.isa()) {
                None => by_isa.push((t.isa(), out)),
                Some((_, other)) => assert_eq!(&out, other, "{ty} {}: threads", t.name()),
            }
        }
        let (_, portable) = &by_isa[0];
        let size = portable.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (isa, out) in &by_isa[1..] {
            // A last bit of a hidden number may move its 8-bit code by one.
            let bound = size * if ty.is_float() { 1e-5 } else { 1e-3 };
            assert!(out.iter().zip(portable).all(|(a, b)| (a - b).abs() <= bound), "{ty} {isa}");
        }
    }
}

/// Of each activation block the largest magnitude, for all its elements: `[x.len()]`.
fn extents(x: &[f32]) -> Vec<f32> {
    x.chunks(32).flat_map(|block| [block.iter().fold(0f32, |m, v| m.max(v.abs())); 32]).collect()
}

/// What activations of 8 bits can be off by in every product: half a step, 1/254 of the largest of their block.
fn half_steps(x: &[f32], w: &[Vec<f64>]) -> Vec<f64> {
    product(&extents(x), w).1.iter().map(|size| size / 254.0).collect()
}

/// Root of the mean of squares of how far `got` is from `want`.
fn distance(got: &[f32], want: &[f64]) -> f64 {
    let squares = got.iter().zip(want).map(|(&got, want)| (f64::from(got) - want).powi(2));
    (squares.sum::<f64>() / want.len() as f64).sqrt()
}

#[test]
fn fine_matrices_are_a_hundred_times_closer() {
    let mut rng = Pcg64::seed_from_u64(20);
    let (k, n) = (768, 83);
    for ty in GgmlType::ALL.into_iter().filter(|ty| !ty.is_float()) {
        // Two parts of the format and a float one, as a stack may have.
        let parts = [(ty, 49), (GgmlType::F16, 3), (ty, 31)].map(|(ty, n)| tensor(ty, n, k, &random(&mut rng, n * k)));
        let w: Vec<_> = parts.iter().flat_map(numbers).collect();
        let (bias, scale) = (random(&mut rng, n), random(&mut rng, n));
        let rows = 130;
        // Sizes as a decoder's are: most small, some large.
        let x: Vec<f32> = random(&mut rng, rows * k).iter().map(|v| v.powi(3) * 4.0).collect();
        let old = random(&mut rng, rows * n);
        let (want, half_steps) = (product(&x, &w).0, half_steps(&x, &w));
        let want: Vec<f64> = want.iter().enumerate().map(|(i, y)| y + f64::from(bias[i % n])).collect();
        let mut by_isa: Vec<(Isa, [Vec<f32>; 5])> = Vec::new();
        for t in targets() {
            let layer = Linear { weight: t.matrix_fine(&parts).unwrap(), bias: Some(bias.clone()) };
            let afters = [After::Nothing, After::Gelu, After::QuickGelu, After::Add, After::ScaleAdd(&scale)];
            for rows in [130, 17, 3, 2, 1] {
                let xb = filled(&t, &x[..rows * k], k);
                let all = afters.map(|after| {
                    let mut out = filled(&t, &old[..rows * n], n);
                    t.linear(&xb, &layer, after, &mut out).unwrap();
                    out.values().to_vec()
                });
                for (i, want) in want[..rows * n].iter().enumerate() {
                    let gelu = |y: f64| y * 0.5 * (1.0 + libm::erf(y / 2f64.sqrt()));
                    let (old, scale) = (f64::from(old[i]), f64::from(scale[i % n]));
                    let wants = [*want, gelu(*want), want / (1.0 + (-1.702 * want).exp()), old + want, old + scale * want];
                    for (case, (all, want)) in all.iter().zip(wants).enumerate() {
                        let off = (f64::from(all[i]) - want).abs();
                        // Neither activation is steeper than 1.2; what follows is rounded as well.
                        let bound = half_steps[i] / 100.0 * 1.2 + 3e-7 * (want.abs() + old.abs());
                        assert!(off <= bound, "{ty} {} {rows} rows, case {case}, {i}: off by {off}, bound {bound}", t.name());
                    }
                }
                // Whatever the batch and the number of threads.
                match by_isa.iter().find(|(isa, _)| *isa == t.isa()) {
                    None => by_isa.push((t.isa(), all)),
                    Some((_, most)) => {
                        for (all, most) in all.iter().zip(most) {
                            assert!(all[..] == most[..rows * n], "{ty} {} {rows} rows", t.name());
                        }
                    }
                }
            }
            let coarse = Linear { weight: t.matrix(&parts).unwrap(), bias: Some(bias.clone()) };
            let mut out = t.buffer(rows, n).unwrap();
            t.linear(&filled(&t, &x, k), &coarse, After::Nothing, &mut out).unwrap();
            let fine = &by_isa.iter().find(|(isa, _)| *isa == t.isa()).unwrap().1[0];
            let (coarse, fine) = (distance(out.values(), &want), distance(fine, &want));
            assert!(coarse >= 100.0 * fine, "{ty} {}: off by {fine}, and {coarse} without", t.name());
        }
    }
    // Float weights meet the activations as they are, in either case.
    let w = tensor(GgmlType::F16, 40, 100, &random(&mut rng, 4000));
    let x = random(&mut rng, 1900);
    for t in targets() {
        let run = |weight: Result<Matrix>| {
            let mut out = t.buffer(19, 40).unwrap();
            t.linear(&filled(&t, &x, 100), &Linear { weight: weight.unwrap(), bias: None }, After::Nothing, &mut out).unwrap();
            out.values().to_vec()
        };
        assert_eq!(run(t.matrix_fine(std::slice::from_ref(&w))), run(t.matrix(std::slice::from_ref(&w))), "{}", t.name());
    }
}

#[test]
fn fine_feed_forward_parts_and_experts() {
    let mut rng = Pcg64::seed_from_u64(21);
    let (k, inner, rows) = (256, 512, 130);
    for ty in [GgmlType::Q8_0, GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q5_K, GgmlType::Q4_0] {
        let up = tensor(ty, 2 * inner, k, &random(&mut rng, 2 * inner * k));
        let down = tensor(ty, k, inner, &random(&mut rng, inner * k));
        let (x, old, bias) = (random(&mut rng, rows * k), random(&mut rng, rows * k), random(&mut rng, 2 * inner));
        // In f64, the map between the layers rounded to f32 as it is in memory.
        let hidden = product(&x, &numbers(&up)).0;
        let hidden: Vec<f64> = hidden.iter().enumerate().map(|(i, h)| h + f64::from(bias[i % (2 * inner)])).collect();
        let middle: Vec<f32> =
            hidden.chunks(2 * inner).flat_map(|h| (0..inner).map(move |i| (h[i] / (1.0 + (-h[i]).exp()) * h[inner + i]) as f32)).collect();
        let want = product(&middle, &numbers(&down)).0;
        let mut by_isa: Vec<(Isa, Vec<f32>)> = Vec::new();
        for t in targets() {
            let mlp = |fine: bool| {
                let matrix = |w: &Tensor| if fine { t.matrix_fine(std::slice::from_ref(w)) } else { t.matrix(std::slice::from_ref(w)) };
                let up = Linear { weight: matrix(&up).unwrap(), bias: Some(bias.clone()) };
                Mlp { up, act: Activation::SiluGate, down: Linear { weight: matrix(&down).unwrap(), bias: None } }
            };
            let run = |mlp: &Mlp<CpuTarget>, rows: usize, after| {
                let mut out = filled(&t, &old[..rows * k], k);
                t.mlp(&filled(&t, &x[..rows * k], k), mlp, after, &mut out).unwrap();
                out.values().to_vec()
            };
            let fine = mlp(true);
            let y = run(&fine, rows, After::Nothing);
            let ratio = distance(&run(&mlp(false), rows, After::Nothing), &want) / distance(&y, &want);
            assert!(ratio >= 100.0, "{ty} {}: {ratio} times closer", t.name());
            for rows in [1, 2, 3, 17] {
                assert!(run(&fine, rows, After::Nothing) == y[..rows * k], "{ty} {} {rows} rows", t.name());
            }
            for (got, (old, y)) in run(&fine, rows, After::Add).iter().zip(old.iter().zip(&y)) {
                assert_eq!(*got, old + y, "{ty} {}", t.name());
            }
            // As an expert, for every third token, then for one.
            let xb = filled(&t, &x, k);
            for slots in [(0..rows as u32).step_by(3).map(|r| 2 * r + 1).collect(), vec![34u32]] {
                let mut out = t.buffer(2 * rows, k).unwrap();
                t.expert_mlp(&xb, &slots, 2, &fine, &mut out).unwrap();
                for &slot in &slots {
                    let (slot, row) = (slot as usize, slot as usize / 2);
                    assert!(out.values()[slot * k..][..k] == y[row * k..][..k], "{ty} {} slot {slot}", t.name());
                }
            }
            match by_isa.iter().find(|(isa, _)| *isa == t.isa()) {
                None => by_isa.push((t.isa(), y)),
                Some((_, other)) => assert!(*other == y, "{ty} {}: threads", t.name()),
            }
        }
    }
}

#[test]
fn what_is_recorded_is_the_sum_of_squares() {
    let mut rng = Pcg64::seed_from_u64(11);
    let (k, inner, experts, rows) = (96, 160, 3, 21);
    let x = random(&mut rng, rows * k);
    let plain = tensor(GgmlType::F16, 40, k, &random(&mut rng, 40 * k));
    let stack = |n: usize, k: usize, rng: &mut Pcg64| {
        let values = tensor(GgmlType::Q8_0, experts * n, k, &random(rng, experts * n * k));
        Tensor::owned(if k == inner { "down" } else { "up" }, GgmlType::Q8_0, &[k, n, experts], values.bytes()).unwrap()
    };
    let (up, down) = (stack(inner, k, &mut rng), stack(k, inner, &mut rng));
    let slots = [vec![0u32, 5, 6, 40], vec![], (7..40).collect()];
    let mut first: [Option<Vec<Recorded>>; 2] = [None, None];
    for threads in [1, 2, 5] {
        for (f32_activations, fine) in [(false, false), (true, false), (false, true)] {
            let options = CpuOptions { threads: Some(threads), record: true, f32_activations, isa: Some(Isa::Portable) };
            let t = CpuTarget::new(options).unwrap();
            let matrix = |w: Tensor| if fine { t.matrix_fine(&[w]) } else { t.matrix(&[w]) };
            let layer = |w: Tensor| Linear { weight: matrix(w).unwrap(), bias: None };
            let xb = filled(&t, &x, k);
            let mut out = t.buffer(rows, 40).unwrap();
            t.linear(&xb, &layer(plain.clone()), After::Nothing, &mut out).unwrap();
            let mut one = t.buffer(1, 40).unwrap();
            t.linear(&filled(&t, &x[..k], k), &layer(plain.clone()), After::Nothing, &mut one).unwrap();
            let mut y = t.buffer(2 * rows, k).unwrap();
            for (e, slots) in slots.iter().enumerate() {
                let up = layer(up.part(e * inner..(e + 1) * inner).unwrap());
                let expert = Mlp { up, act: Activation::Gelu, down: layer(down.part(e * k..(e + 1) * k).unwrap()) };
                t.expert_mlp(&xb, slots, 2, &expert, &mut y).unwrap();
            }
            let record = t.take_record();
            assert_eq!(t.take_record(), [], "taken");
            let names: Vec<_> = record.iter().map(|r| (&r.tensor[..], r.rows)).collect();
            assert_eq!(names, [("down", 4), ("down", 33), ("t", 22), ("up", 4), ("up", 33)]);
            assert_eq!([record[3].matrices(&up), record[4].matrices(&up)], [Some(0..1), Some(2..3)]);
            assert_eq!([record[1].matrices(&down), record[1].matrices(&up)], [Some(2..3), None]);
            assert_eq!(record[2].matrices(&plain), Some(0..1));
            let squares = |rows: &mut dyn Iterator<Item = &[f32]>| {
                rows.fold(vec![0f64; k], |sums, row| sums.iter().zip(row).map(|(s, &v)| s + f64::from(v).powi(2)).collect())
            };
            let near = |a: &[f64], b: &[f64]| assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-13 * b), "{a:?} {b:?}");
            near(&record[2].sums, &squares(&mut x.chunks(k).chain(x.chunks(k).take(1))));
            near(&record[4].sums, &squares(&mut slots[2].iter().map(|&s| &x[s as usize / 2 * k..][..k])));
            // The hidden map of the first expert, by definition.
            let w = numbers(&up);
            let mut want = vec![0f64; inner];
            for &slot in &slots[0] {
                let (h, _) = product(&x[slot as usize / 2 * k..][..k], &w[..inner]);
                want.iter_mut().zip(h).for_each(|(sum, h)| *sum += (h * 0.5 * (1.0 + libm::erf(h / 2f64.sqrt()))).powi(2));
            }
            let tolerance = match (f32_activations, fine) {
                (true, _) => 1e-5,
                (_, true) => 5e-4,
                _ => 0.05,
            };
            let largest = want.iter().fold(0f64, |m, &v| m.max(v));
            assert!(record[0].sums.iter().zip(&want).all(|(a, b)| (a - b).abs() <= tolerance * largest));
            if !f32_activations {
                assert_eq!(first[usize::from(fine)].get_or_insert_with(|| record.clone()), &record, "{threads} threads");
            }
        }
    }
    let t = &targets()[0];
    let layer = Linear { weight: t.matrix(&[plain]).unwrap(), bias: None };
    t.linear(&filled(t, &x, k), &layer, After::Nothing, &mut t.buffer(rows, 40).unwrap()).unwrap();
    assert_eq!(t.take_record(), [], "not asked for");
}

fn attention64(q: &[f64], keys: &[&[f32]], values: &[&[f32]], scale: f64) -> Vec<f64> {
    let scores: Vec<f64> = keys.iter().map(|k| q.iter().zip(*k).map(|(a, &b)| a * f64::from(b)).sum::<f64>() * scale).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..q.len()).map(|c| weights.iter().zip(values).map(|(w, v)| w * f64::from(v[c])).sum::<f64>() / sum).collect()
}

#[test]
fn full_attention() {
    let mut rng = Pcg64::seed_from_u64(5);
    for (batch, q_tokens, kv_tokens, heads, head_dim) in
        [(2, 37, 37, 3, 16), (1, 5, 19, 2, 64), (1, 1, 1, 1, 24), (1, 33, 40, 2, 128), (2, 35, 257, 2, 88), (1, 32, 1025, 2, 64)]
    {
        let shape = AttendShape { batch, q_tokens, kv_tokens, heads, head_dim };
        let wide = heads * head_dim;
        let (q, kv) = (random(&mut rng, batch * q_tokens * wide), random(&mut rng, batch * kv_tokens * 2 * wide));
        for t in targets() {
            let (qb, kvb) = (filled(&t, &q, wide), filled(&t, &kv, 2 * wide));
            let mut out = t.buffer(batch * q_tokens, wide).unwrap();
            out.values_mut().fill(f32::NAN);
            let at = |first| Columns { buffer: &kvb, first };
            t.attend(Columns { buffer: &qb, first: 0 }, at(0), at(wide), shape, &mut out).unwrap();
            for b in 0..batch {
                for h in 0..heads {
                    let cut = |p: usize, first: usize| &kv[((b * kv_tokens + p) * 2 * wide) + first + h * head_dim..][..head_dim];
                    let keys: Vec<&[f32]> = (0..kv_tokens).map(|p| cut(p, 0)).collect();
                    let values: Vec<&[f32]> = (0..kv_tokens).map(|p| cut(p, wide)).collect();
                    for r in 0..q_tokens {
                        let at = (b * q_tokens + r) * wide + h * head_dim;
                        let query: Vec<f64> = q[at..at + head_dim].iter().map(|&v| f64::from(v)).collect();
                        let want = attention64(&query, &keys, &values, 1.0 / (head_dim as f64).sqrt());
                        for c in 0..head_dim {
                            let got = f64::from(out.values()[at + c]);
                            assert!((got - want[c]).abs() < 2e-6, "{shape:?} {} row {r} channel {c}: {got} {}", t.name(), want[c]);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn cached_attention_in_one_piece_and_in_many() {
    let mut rng = Pcg64::seed_from_u64(6);
    for (heads, kv_heads, head_dim) in [(8, 2, 32), (3, 3, 64), (4, 1, 128)] {
        // Three parts, which one row alone reads side by side and many rows one after the other.
        let (rows, capacity) = (600, 610);
        let width = (heads + 2 * kv_heads) * head_dim;
        let qkv = random(&mut rng, rows * width);
        let rope = Rope::new(head_dim, 10000.0, 1.0);
        for (ty, tolerance) in [(KvType::F32, 2e-6), (KvType::F16, 1e-3), (KvType::Q8_0, 2e-2)] {
            let shape = KvShape { capacity, heads, kv_heads, head_dim, ty };
            let mut by_isa: Vec<(Isa, Vec<f32>)> = Vec::new();
            for t in targets() {
                let run = |pieces: &[usize]| {
                    let mut kv = t.kv(shape).unwrap();
                    let (mut all, mut turned, mut pos) = (Vec::new(), Vec::new(), 0);
                    for &n in pieces {
                        let mut x = filled(&t, &qkv[pos * width..(pos + n) * width], width);
                        let mut out = t.buffer(n, heads * head_dim).unwrap();
                        t.rope_append(&mut x, &rope, &mut kv, pos).unwrap();
                        t.attend_cached(&x, &kv, pos, &mut out).unwrap();
                        all.extend_from_slice(out.values());
                        turned.extend_from_slice(x.values());
                        pos += n;
                    }
                    (all, turned)
                };
                let (whole, turned) = run(&[rows]);
                assert_eq!(
                    run(&[1, 1, 14, 1, 30, 6, 190, 13, 1, 3, 20, 12, 1, 220, 1, 60, 1, 25]).0,
                    whole,
                    "{shape:?} {}: pieces",
                    t.name()
                );
                match by_isa.iter().find(|(isa, _)| *isa == t.isa()) {
                    None => by_isa.push((t.isa(), whole.clone())),
                    Some((_, other)) => assert_eq!(&whole, other, "{shape:?} {}: threads", t.name()),
                }
                let cut = |r: usize, head: usize| &turned[r * width + head * head_dim..][..head_dim];
                for r in (0..rows).step_by(7) {
                    for h in 0..heads {
                        let key_head = h / (heads / kv_heads);
                        let keys: Vec<&[f32]> = (0..=r).map(|p| cut(p, heads + key_head)).collect();
                        let values: Vec<&[f32]> = (0..=r).map(|p| cut(p, heads + kv_heads + key_head)).collect();
                        let query: Vec<f64> = cut(r, h).iter().map(|&v| f64::from(v)).collect();
                        let want = attention64(&query, &keys, &values, 1.0 / (head_dim as f64).sqrt());
                        for c in 0..head_dim {
                            let got = f64::from(whole[(r * heads + h) * head_dim + c]);
                            assert!((got - want[c]).abs() < tolerance, "{shape:?} {} row {r} head {h}: {got} {}", t.name(), want[c]);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn rotation_is_by_position_and_leaves_values_alone() {
    let mut rng = Pcg64::seed_from_u64(7);
    let (heads, kv_heads, head_dim) = (2, 1, 8);
    let width = 4 * head_dim;
    let x = random(&mut rng, 3 * width);
    let rope = Rope::new(head_dim, 10000.0, 0.25);
    for t in targets() {
        let mut kv = t.kv(KvShape { capacity: 10, heads, kv_heads, head_dim, ty: KvType::F32 }).unwrap();
        let mut b = filled(&t, &x, width);
        t.rope_append(&mut b, &rope, &mut kv, 5).unwrap();
        for r in 0..3 {
            for i in (0..width).step_by(2) {
                let (a, c) = (f64::from(x[r * width + i]), f64::from(x[r * width + i + 1]));
                let angle = (5 + r) as f64 * 0.25 * 10000f64.powf(-((i % head_dim) as f64) / head_dim as f64);
                let turned = if i < 3 * head_dim { [a * angle.cos() - c * angle.sin(), a * angle.sin() + c * angle.cos()] } else { [a, c] };
                for (j, want) in turned.into_iter().enumerate() {
                    assert!((f64::from(b.values()[r * width + i + j]) - want).abs() < 1e-6, "{} row {r} column {i}", t.name());
                }
            }
        }
    }
}

#[test]
fn maps() {
    let mut rng = Pcg64::seed_from_u64(8);
    for (batch, height, width, channels, side) in [(2, 5, 9, 7, 7), (1, 1, 1, 3, 3), (1, 16, 18, 40, 7), (2, 4, 4, 16, 5)] {
        let map = MapShape { batch, height, width };
        let x = random(&mut rng, map.positions() * channels);
        let (kernel, bias) = (random(&mut rng, side * side * channels), random(&mut rng, channels));
        for t in targets() {
            let b = filled(&t, &x, channels);
            let mut out = t.buffer(map.positions(), channels).unwrap();
            out.values_mut().fill(f32::NAN);
            t.conv_depthwise(&b, map, &kernel, &bias, &mut out).unwrap();
            for (i, &got) in out.values().iter().enumerate() {
                let (c, column, y, n) = (i % channels, i / channels % width, i / channels / width % height, i / channels / width / height);
                let mut want = f64::from(bias[c]);
                for ky in 0..side {
                    for kx in 0..side {
                        let (fy, fx) = ((y + ky).wrapping_sub(side / 2), (column + kx).wrapping_sub(side / 2));
                        if fy < height && fx < width {
                            let v = x[((n * height + fy) * width + fx) * channels + c];
                            want += f64::from(v) * f64::from(kernel[(ky * side + kx) * channels + c]);
                        }
                    }
                }
                assert!((f64::from(got) - want).abs() < 1e-5, "{map:?} {} at {i}: {got} {want}", t.name());
            }
        }
    }
    let t = &targets()[0];
    // [2 maps, 2, 4, 1] numbered in order.
    let x: Vec<f32> = (0..16).map(|v| v as f32).collect();
    let b = filled(t, &x, 1);
    let mut out = t.buffer(4, 4).unwrap();
    t.fold_2x2(&b, MapShape { batch: 2, height: 2, width: 4 }, &mut out).unwrap();
    assert_eq!(out.values(), [0., 1., 4., 5., 2., 3., 6., 7., 8., 9., 12., 13., 10., 11., 14., 15.]);
    let mut pooled = t.buffer(5, 1).unwrap();
    t.pool_2x2(&b, MapShape { batch: 2, height: 2, width: 4 }, &mut pooled).unwrap();
    assert_eq!(pooled.values(), [2.5, 4.5, 10.5, 12.5]);
    let mut means = t.buffer(2, 4).unwrap();
    t.mean_rows(&out, 2, &mut means).unwrap();
    assert_eq!(means.values(), [1., 2., 5., 6., 9., 10., 13., 14.]);
    t.add_table(&mut out, &(0..8).map(|v| v as f32).collect()).unwrap();
    assert_eq!(out.values()[8..12], [8., 10., 14., 16.]);
}

#[test]
fn scratch_is_bounded_by_tiles() {
    let t = CpuTarget::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
    let rows = 5000;
    let matrix = |ty: GgmlType, n: usize, k: usize, fine: bool| {
        let w = [Tensor::owned("t", ty, &[k, n], &vec![0; n * ty.row_bytes(k).unwrap()]).unwrap()];
        if fine { t.matrix_fine(&w) } else { t.matrix(&w) }
    };
    // The hidden map of a 13B decoder, and inputs as wide as all encoders' features together.
    for (ty, fine) in [(GgmlType::Q8_0, false), (GgmlType::F16, false), (GgmlType::Q8_0, true)] {
        let ones = |ty, n, k| Linear { weight: matrix(ty, n, k, fine).unwrap(), bias: None };
        let mlp = Mlp { up: ones(ty, 2 * 13824, 32), act: Activation::SiluGate, down: ones(ty, 16, 13824) };
        t.mlp(&t.buffer(600, 32).unwrap(), &mlp, After::Nothing, &mut t.buffer(600, 16).unwrap()).unwrap();
        t.linear(&t.buffer(rows, 8704).unwrap(), &ones(ty, 16, 8704), After::Nothing, &mut t.buffer(rows, 16).unwrap()).unwrap();
        let mib = t.scratch_bytes() as f64 / (1 << 20) as f64;
        assert!((14.0..64.0).contains(&mib), "{ty}: {mib:.1} MiB");
    }
    // Freed, it is gone, and the next operation makes what it needs.
    t.free_scratch();
    assert_eq!(t.scratch_bytes(), 0);
    let one = Linear { weight: matrix(GgmlType::Q8_0, 16, 64, false).unwrap(), bias: None };
    t.linear(&t.buffer(2, 64).unwrap(), &one, After::Nothing, &mut t.buffer(2, 16).unwrap()).unwrap();
    assert!(t.scratch_bytes() > 0);
}

#[test]
fn norms_follow_their_rows() {
    let mut rng = Pcg64::seed_from_u64(9);
    let (rows, width) = (11, 70);
    let x: Vec<f32> = random(&mut rng, rows * width).iter().map(|v| v * 2e-3).collect();
    let (w, b) = (random(&mut rng, width), random(&mut rng, width));
    for t in targets() {
        let xb = filled(&t, &x, width);
        let mut out = t.buffer(20, width).unwrap();
        for eps in [1e-5f32, 1e-6] {
            t.rms_norm(&xb, &w, eps, &mut out).unwrap();
            assert_eq!(t.rows(&out), rows);
            for (i, &got) in out.values().iter().enumerate() {
                let row = &x[i / width * width..][..width];
                let mean = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / width as f64;
                let want = f64::from(x[i]) / (mean + f64::from(eps)).sqrt() * f64::from(w[i % width]);
                assert!((f64::from(got) - want).abs() < 1e-6, "{} {i}: {got} {want}", t.name());
            }
            t.layer_norm(&xb, &w, &b, eps, &mut out).unwrap();
            for (i, &got) in out.values().iter().enumerate() {
                let row = &x[i / width * width..][..width];
                let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / width as f64;
                let var = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / width as f64;
                let want = (f64::from(x[i]) - mean) / (var + f64::from(eps)).sqrt() * f64::from(w[i % width]) + f64::from(b[i % width]);
                assert!((f64::from(got) - want).abs() < 2e-6, "{} {i}: {got} {want}", t.name());
            }
        }
    }
}

#[test]
fn rows_move_between_buffers() {
    let t = &targets()[0];
    let mut a = filled(t, &[1., 2., 3., 4., 5., 6.], 2);
    let mut b = t.buffer(3, 4).unwrap();
    t.copy(&a, 1, 2, &mut b, 0, 2).unwrap();
    assert_eq!(b.values(), [0., 0., 3., 4., 0., 0., 5., 6., 0., 0., 0., 0.]);
    t.set_rows(&mut a, 1).unwrap();
    assert_eq!((t.rows(&a), a.values()), (1, &[1., 2.][..]));
    t.set_rows(&mut a, 3).unwrap();
    assert_eq!(a.values(), [1., 2., 3., 4., 5., 6.]);
    let mut out = [0.0; 2];
    t.read(&a, 2, &mut out).unwrap();
    assert_eq!(out, [5., 6.]);
    let table = t.matrix(&[tensor(GgmlType::F16, 3, 2, &[1., 2., 3., 4., 5., 6.])]).unwrap();
    t.embed(&table, &[2, 0], &mut a, 1).unwrap();
    assert_eq!(a.values(), [1., 2., 5., 6., 1., 2.]);
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let t = &targets()[0];
    let shape = |r: Result<()>| assert!(matches!(r, Err(TargetError::Shape { .. })), "{r:?}");
    let mut small = t.buffer(1, 4).unwrap();
    let big = t.buffer(2, 4).unwrap();
    let w = vec![1.0; 4];
    shape(t.rms_norm(&big, &w, 1e-5, &mut small));
    shape(t.rms_norm(&filled(t, &[0.0; 4], 2), &w, 1e-5, &mut small));
    shape(t.set_rows(&mut small, 2));
    shape(t.write(&[1.0; 5], &mut small, 0));
    shape(t.write(&[1.0; 4], &mut small, 1));
    shape(t.read(&small, 0, &mut [0.0; 3]));
    shape(t.copy(&big, 1, 2, &mut small, 0, 0));
    let layer = Linear { weight: t.matrix(&[tensor(GgmlType::F32, 3, 4, &[0.0; 12])]).unwrap(), bias: None };
    shape(t.linear(&big, &layer, After::Nothing, &mut small));
    let mut three = t.buffer(1, 3).unwrap();
    shape(t.linear(&big, &layer, After::Add, &mut three));
    shape(t.embed(&layer.weight, &[3], &mut small, 0));
    shape(t.fold_2x2(&big, MapShape { batch: 1, height: 1, width: 2 }, &mut small));
    shape(t.mean_rows(&big, 3, &mut small));
    shape(t.add_table(&mut small, &vec![0.0; 8]));
    shape(t.conv_depthwise(&big, MapShape { batch: 1, height: 1, width: 2 }, &vec![0.0; 16], &w, &mut small));
    shape(t.matrix(&[]).map(|_| ()));
    let kv = |capacity, heads, kv_heads, head_dim, ty| t.kv(KvShape { capacity, heads, kv_heads, head_dim, ty });
    shape(kv(4, 3, 2, 8, KvType::F32).map(|_| ()));
    shape(kv(4, 2, 2, 48, KvType::Q8_0).map(|_| ()));
    let mut cache = kv(4, 2, 1, 8, KvType::F16).unwrap();
    let mut qkv = t.buffer(3, 32).unwrap();
    shape(t.rope_append(&mut qkv, &Rope::new(8, 1e4, 1.0), &mut cache, 2));
    shape(t.rope_append(&mut qkv, &Rope::new(16, 1e4, 1.0), &mut cache, 0));
    let mut out = t.buffer(3, 16).unwrap();
    shape(t.attend_cached(&qkv, &cache, usize::MAX, &mut out));
    let quantised = tensor(GgmlType::Q8_0, 1, 32, &[1.0; 32]);
    assert!(matches!(t.vector(&quantised), Err(TargetError::Type { .. })));
}

#[test]
fn settings_are_understood_or_refused() {
    assert!(f32_activations(Some("f32")).unwrap());
    assert!(!f32_activations(Some("q8")).unwrap() && !f32_activations(None).unwrap());
    let e = f32_activations(Some("f64")).unwrap_err();
    assert!(e.to_string().contains("SPHINX_ACTIVATIONS=f64"), "{e}");
    let t = CpuTarget::new(CpuOptions { threads: Some(1), isa: Some(Isa::Portable), ..CpuOptions::default() }).unwrap();
    assert_eq!(t.name(), "cpu portable, 1 thread");
}
