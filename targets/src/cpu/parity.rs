//! Every table this processor can build against the portable one.
//!
//! Integer sums must be equal: with all scales 1, so must results be. Floats may differ by `c · ε · Σ |wᵢ xᵢ|`, a bound
//! computed from the data. Outputs start poisoned, lengths are awkward, values extreme.

use half::f16;
use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64;
use sphinx_quant::{GgmlType, block};

use super::isa::Isa;
use super::kernels::{Kernels, kind};
use super::portable::attend::{Keys, ROOM, Share, TILE, Values};
use super::portable::gemm::{Batch, PANEL, PANEL_BLOCK, Panels, lane, place};
use super::q8::{Q8Row, Q8RowMut};

/// The portable table and the ones that are compared with it.
fn tables() -> (Kernels, Vec<Kernels>) {
    let siblings = Isa::supported().filter(|&isa| isa != Isa::Portable).map(Kernels::for_isa);
    (Kernels::for_isa(Isa::Portable), siblings.collect())
}

fn quantised() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.into_iter().filter(|ty| !ty.is_float())
}

/// Offsets of the half-precision numbers of a block.
fn halves(ty: GgmlType) -> &'static [usize] {
    match ty {
        GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => &[0],
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
        GgmlType::Q2_K => &[80, 82],
        GgmlType::Q3_K => &[108],
        GgmlType::Q6_K => &[208],
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => &[],
    }
}

/// What a row's codes and scales look like.
#[derive(Clone, Copy, Debug)]
enum Fill {
    Random,
    Zeros,
    Ones,
}

/// Bytes that start where blocks may start, as those of a file do.
struct Bytes(Vec<u64>, usize);

impl Bytes {
    fn zeroed(len: usize) -> Bytes {
        Bytes(vec![0; len.div_ceil(8)], len)
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.0)[..self.1]
    }
}

impl std::ops::DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.0)[..self.1]
    }
}

/// Rows of random codes, with scales from `scale`.
fn weights(rng: &mut Pcg64, ty: GgmlType, blocks: usize, fill: Fill, mut scale: impl FnMut(&mut Pcg64) -> f32) -> Bytes {
    let mut bytes = Bytes::zeroed(blocks * ty.block_bytes());
    match fill {
        Fill::Random => rng.fill_bytes(&mut bytes),
        Fill::Zeros => {}
        Fill::Ones => bytes.fill(0xff),
    }
    for block in bytes.chunks_mut(ty.block_bytes()) {
        for &at in halves(ty) {
            block[at..at + 2].copy_from_slice(&f16::from_f32(scale(rng)).to_le_bytes());
        }
    }
    bytes
}

/// Activations in 8 bits.
#[derive(Clone)]
struct Row {
    qs: Vec<i8>,
    d: Vec<f32>,
    sums: Vec<i16>,
}

impl Row {
    fn new(qs: Vec<i8>, d: Vec<f32>) -> Row {
        let sums = qs.chunks(16).map(|c| c.iter().map(|&q| i16::from(q)).sum()).collect();
        Row { qs, d, sums }
    }

    fn view(&self) -> Q8Row<'_> {
        Q8Row { qs: &self.qs, d: &self.d, sums: &self.sums }
    }
}

fn activations(rng: &mut Pcg64, k: usize, fill: Fill, unit: bool) -> Row {
    let code = |rng: &mut Pcg64| match fill {
        Fill::Random => rng.random_range(-127..=127i8),
        Fill::Zeros => -127,
        Fill::Ones => 127,
    };
    let qs = (0..k).map(|_| code(rng)).collect();
    let d = (0..k / 32).map(|_| if unit { 1.0 } else { rng.random_range(0.0..0.1f32) }).collect();
    Row::new(qs, d)
}

/// `Σ |w x|` over a row, minima counted apart from codes: what rounding errors are measured against.
fn magnitude(ty: GgmlType, w: &[u8], x: &Row) -> f64 {
    let k = x.qs.len();
    let mut numbers = vec![0f32; k];
    block::dequantize(ty, w, &mut numbers);
    // Weights that are small because a minimum cancels the codes are bounded by their block's extent.
    let len = ty.block_len();
    let extent = |i: usize| numbers[i / len * len..][..len].iter().fold(0f32, |m, v| m.max(v.abs()));
    (0..k).map(|i| f64::from(extent(i)) * f64::from(x.qs[i].unsigned_abs()) * f64::from(x.d[i / 32])).sum()
}

const EPSILON: f64 = f32::EPSILON as f64;

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn dots_of_quantised_rows(seed: u64, blocks in prop_oneof![Just(0usize), Just(1), 2..20usize, Just(64)]) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let (portable, siblings) = tables();
        for ty in quantised() {
            let k = blocks * ty.block_len();
            for (w_fill, x_fill) in [(Fill::Random, Fill::Random), (Fill::Zeros, Fill::Zeros), (Fill::Ones, Fill::Ones), (Fill::Ones, Fill::Zeros)] {
                let scales = |rng: &mut Pcg64| match rng.random_range(0..10) {
                    0 => 0.0,
                    1 => 6e-8, // the least denormal
                    2 => -0.5,
                    _ => rng.random_range(0.0..2.0f32),
                };
                let w = weights(&mut rng, ty, blocks, w_fill, scales);
                let x = activations(&mut rng, k, x_fill, false);
                let want = portable.dot(ty, &w, x.view());
                let bound = 16.0 * EPSILON * magnitude(ty, &w, &x);
                for table in &siblings {
                    let got = table.dot(ty, &w, x.view());
                    let off = (f64::from(got) - f64::from(want)).abs();
                    prop_assert!(off <= bound, "{} {} {} blocks, {:?}: {} {} (bound {})", ty, table.isa(), blocks, w_fill, got, want, bound);
                }
                // With scales of 1 everything is a whole number that f32 holds exactly.
                let few = blocks.min(if ty.block_len() == 32 { 9 } else { 1 });
                let w = weights(&mut rng, ty, few, w_fill, |_| 1.0);
                let x = activations(&mut rng, few * ty.block_len(), x_fill, true);
                let want = portable.dot(ty, &w, x.view());
                for table in &siblings {
                    let got = table.dot(ty, &w, x.view());
                    let exact = ty != GgmlType::Q6_K || f64::from(want).abs() < 16_777_216.0 / 4.0;
                    let close = (f64::from(got) - f64::from(want)).abs() <= 4.0 * EPSILON * magnitude(ty, &w, &x);
                    prop_assert!(if exact { got == want } else { close }, "{} {} {:?}: {} {}", ty, table.isa(), w_fill, got, want);
                }
            }
        }
    }

    #[test]
    fn several_rows_equal_one_by_one(seed: u64, blocks in prop_oneof![Just(0usize), 1..12usize], rows in 0..5usize) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let (portable, siblings) = tables();
        for ty in quantised() {
            let (k, row_bytes) = (blocks * ty.block_len(), blocks * ty.block_bytes());
            let w = weights(&mut rng, ty, rows * blocks, Fill::Random, |rng| rng.random_range(-1.0..1.0f32));
            let x = [activations(&mut rng, k, Fill::Random, false), activations(&mut rng, k, Fill::Random, false)];
            for table in siblings.iter().chain([&portable]) {
                let (mut out, mut fine) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
                table.dots(ty, &w, x[0].view(), &mut out);
                table.dots_fine(ty, &w, x.each_ref().map(Row::view), &mut fine);
                for r in 0..rows {
                    let w = &w[r * row_bytes..][..row_bytes];
                    prop_assert_eq!(out[r], table.dot(ty, w, x[0].view()), "{} {}, row {}", ty, table.isa(), r);
                    prop_assert_eq!(fine[r], table.dot_fine(ty, w, x.each_ref().map(Row::view)), "{} {}, row {}", ty, table.isa(), r);
                }
            }
        }
    }

    #[test]
    fn dots_with_activations_in_16_bits(seed: u64, blocks in prop_oneof![Just(0usize), 1..20usize]) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let (portable, siblings) = tables();
        for ty in quantised() {
            for (w_fill, high, low) in [(Fill::Random, Fill::Random, Fill::Random), (Fill::Ones, Fill::Ones, Fill::Ones), (Fill::Zeros, Fill::Zeros, Fill::Zeros), (Fill::Random, Fill::Ones, Fill::Zeros)] {
                let w = weights(&mut rng, ty, blocks, w_fill, |rng| rng.random_range(-1.0..1.0f32));
                let k = blocks * ty.block_len();
                let x = [activations(&mut rng, k, high, true), activations(&mut rng, k, low, false)];
                let want = portable.dot_fine(ty, &w, x.each_ref().map(Row::view));
                // By definition, in f64, with the low row's scales.
                let mut numbers = vec![0f32; k];
                block::dequantize(ty, &w, &mut numbers);
                let code = |i: usize| f64::from(x[1].d[i / 32]) * (256.0 * f64::from(x[0].qs[i]) + f64::from(x[1].qs[i]));
                let exact: f64 = (0..k).map(|i| f64::from(numbers[i]) * code(i)).sum();
                let scaled = Row { d: x[1].d.iter().map(|d| 256.0 * d).collect(), ..x[0].clone() };
                let bound = 16.0 * EPSILON * (magnitude(ty, &w, &scaled) + magnitude(ty, &w, &x[1]));
                for table in siblings.iter().chain([&portable]) {
                    let got = f64::from(table.dot_fine(ty, &w, x.each_ref().map(Row::view)));
                    prop_assert!((got - f64::from(want)).abs() <= bound && (got - exact).abs() <= 2.0 * bound, "{} {}: {} {} {} (bound {})", ty, table.isa(), got, want, exact, bound);
                }
            }
        }
    }

    #[test]
    fn dots_of_float_rows(seed: u64, k in prop_oneof![Just(0usize), Just(1), 7..10usize, 15..18usize, 31..34usize, 63..66usize, 2..300usize, Just(2048), Just(5632)]) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let (portable, siblings) = tables();
        let numbers: Vec<f32> = (0..k).map(|_| rng.random_range(-2.0..2.0f32) * if rng.random_range(0..9) == 0 { 1e-6 } else { 1.0 }).collect();
        let x: Vec<f32> = (0..k).map(|_| rng.random_range(-2.0..2.0f32)).collect();
        for ty in [GgmlType::F32, GgmlType::F16, GgmlType::BF16] {
            let mut w = Bytes::zeroed(ty.row_bytes(k).unwrap());
            block::quantize(ty, &numbers, None, &mut w);
            let want = portable.dot_float(ty, &w, &x);
            let size: f64 = numbers.iter().zip(&x).map(|(w, x)| f64::from(w * x).abs()).sum();
            for table in &siblings {
                let got = table.dot_float(ty, &w, &x);
                prop_assert!((f64::from(got) - f64::from(want)).abs() <= (4.0 + k as f64 / 32.0) * EPSILON * size, "{} {} {}: {} {}", ty, table.isa(), k, got, want);
            }
        }
    }

    #[test]
    fn batches_equal_their_rows(seed: u64, blocks in prop_oneof![Just(1usize), 2..12usize], rows in 1..15usize, weight_rows in 1..50usize) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let (portable, siblings) = tables();
        for table in siblings.iter().chain([&portable]) {
            for ty in quantised() {
                let kind = kind(ty).unwrap();
                // The largest codes with the largest activations now and then: sums of 16 bits must hold them.
                let (w_fill, x_fill) = [(Fill::Random, Fill::Random), (Fill::Ones, Fill::Ones), (Fill::Ones, Fill::Zeros)][rows % 3];
                let w = weights(&mut rng, ty, blocks * weight_rows, w_fill, |rng| rng.random_range(-1.0..1.0f32));
                let row_bytes = blocks * ty.block_bytes();
                let (k, n) = (blocks * ty.block_len(), blocks * ty.block_len() / 32);
                let x: Vec<[Row; 2]> = (0..rows).map(|_| [(); 2].map(|()| activations(&mut rng, k, x_fill, false))).collect();
                let count = weight_rows.div_ceil(PANEL);
                let (codes_len, scales) = (n * PANEL_BLOCK, n * kind.groups() * PANEL);
                let minima = if kind.min { scales } else { 0 };
                let (mut codes, mut s, mut m) = (vec![0xaau8; count * codes_len], vec![f32::NAN; count * scales], vec![f32::NAN; count * minima]);
                for p in 0..count {
                    let these = PANEL.min(weight_rows - p * PANEL);
                    let bytes = &w[p * PANEL * row_bytes..][..these * row_bytes];
                    let s = &mut s[p * scales..][..scales];
                    table.pack(ty, bytes, these, n, &mut codes[p * codes_len..][..codes_len], s, &mut m[p * minima..][..minima]);
                }
                for fine in [false, true] {
                    let (mut qs, mut d, mut aux) = (Vec::new(), Vec::new(), Vec::new());
                    for [high, low] in &x {
                        for l in 0..8 {
                            for (at, b) in lane(l, n, 8).zip((l..n).step_by(8)) {
                                assert_eq!(at, place(b, n, 8));
                                qs.extend_from_slice(&high.qs[32 * b..32 * b + 32]);
                                if fine {
                                    qs.extend_from_slice(&low.qs[32 * b..32 * b + 32]);
                                }
                                d.push(if fine { low.d[b] } else { high.d[b] });
                                let sum = |i: usize| if fine { 256 * i32::from(high.sums[i]) + i32::from(low.sums[i]) } else { i32::from(high.sums[i]) };
                                let sums = [sum(2 * b), sum(2 * b + 1)];
                                let sums = if kind.sixteen { sums.to_vec() } else { vec![sums.iter().sum()] };
                                let scale = *d.last().expect("one of each block");
                                aux.extend(sums.iter().map(|&v| kind.aux(v, scale)));
                            }
                        }
                    }
                    let stride = count * PANEL + 3;
                    let mut out = vec![f32::NAN; rows * stride];
                    let batch = Batch { fine, qs: &qs, d: &d, aux: &aux, rows };
                    table.multiply(batch, Panels { codes: &codes, s: &s, m: &m, blocks: n, count, kind }, &mut out, stride);
                    for r in 0..rows {
                        for c in 0..weight_rows {
                            let (w, x) = (&w[c * row_bytes..(c + 1) * row_bytes], x[r].each_ref().map(Row::view));
                            let want = if fine { table.dot_fine(ty, w, x) } else { table.dot(ty, w, x[0]) };
                            prop_assert_eq!(out[r * stride + c], want, "{} {} row {} column {}", ty, table.isa(), r, c);
                        }
                        prop_assert!(out[r * stride + count * PANEL..(r + 1) * stride].iter().all(|v| v.is_nan()), "written past the panels");
                    }
                }
            }
        }
    }

    #[test]
    fn float_batches_equal_their_rows(seed: u64, k in prop_oneof![1..70usize, Just(588usize)], rows in 1..30usize, weight_rows in 1..50usize) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let (portable, siblings) = tables();
        let w: Vec<f32> = (0..weight_rows * k).map(|_| rng.random_range(-1.0..1.0f32)).collect();
        let x: Vec<f32> = (0..rows * k).map(|_| rng.random_range(-1.0..1.0f32)).collect();
        let mut dealt = vec![f32::NAN; rows * k];
        for (x, out) in x.chunks(k).zip(dealt.chunks_mut(k)) {
            super::portable::gemm::deal(x, out);
        }
        let count = weight_rows.div_ceil(PANEL);
        for table in siblings.iter().chain([&portable]) {
            let mut panels = vec![f32::NAN; count * k * PANEL];
            for p in 0..count {
                let these = PANEL.min(weight_rows - p * PANEL);
                table.pack_float(&w[p * PANEL * k..][..these * k], these, &mut panels[p * k * PANEL..][..k * PANEL]);
            }
            let stride = count * PANEL + 1;
            let mut out = vec![f32::NAN; rows * stride];
            table.multiply_float(&dealt, k, &panels, &mut out, stride);
            for r in 0..rows {
                for c in 0..weight_rows {
                    let want = table.dot_float(GgmlType::F32, bytemuck::cast_slice(&w[c * k..(c + 1) * k]), &x[r * k..(r + 1) * k]);
                    prop_assert_eq!(out[r * stride + c], want, "{} row {} column {}", table.isa(), r, c);
                }
                prop_assert!(out[r * stride + count * PANEL].is_nan(), "written past the panels");
            }
        }
    }

    #[test]
    fn quantised_activations(seed: u64, blocks in 0..10usize) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let (portable, siblings) = tables();
        let mut x = Vec::new();
        for _ in 0..blocks {
            let size = [1.0, 1e-3, 1e20, 1e-29, 1e-31, 1e-40, 0.0][rng.random_range(0..7)];
            x.extend((0..32).map(|_| rng.random_range(-1.0..1.0f32) * size));
        }
        let run = |table: &Kernels| {
            let mut row = Row { qs: vec![99; x.len()], d: vec![f32::NAN; blocks], sums: vec![999; 2 * blocks] };
            table.quantize_q8(&x, Q8RowMut { qs: &mut row.qs, d: &mut row.d, sums: &mut row.sums });
            (row.qs, row.d, row.sums)
        };
        let want = run(&portable);
        for table in &siblings {
            prop_assert_eq!(&run(table), &want, "{}", table.isa());
        }
        let fine = |table: &Kernels| {
            let mut both: [Row; 2] = std::array::from_fn(|_| Row { qs: vec![99; x.len()], d: vec![f32::NAN; blocks], sums: vec![999; 2 * blocks] });
            table.quantize_fine(&x, both.each_mut().map(|r| Q8RowMut { qs: &mut r.qs, d: &mut r.d, sums: &mut r.sums }));
            both.map(|r| (r.qs, r.d, r.sums))
        };
        let [high, low] = fine(&portable);
        prop_assert_eq!(&high, &want);
        for table in &siblings {
            prop_assert_eq!(fine(table), [high.clone(), low.clone()], "{}", table.isa());
        }
    }

    #[test]
    fn numbers_written_past_caches(n in 0..200usize, from in 0..20usize) {
        let y: Vec<f32> = (0..n).map(|i| i as f32 - 0.5).collect();
        let (portable, tables) = tables();
        for table in tables.iter().chain([&portable]) {
            let mut x = vec![f32::NAN; from + n + 20];
            table.set(&mut x[from..from + n], &y);
            table.settle();
            prop_assert_eq!(&x[from..from + n], &y[..], "{}", table.isa());
            prop_assert!(x[..from].iter().chain(&x[from + n..]).all(|v| v.is_nan()), "{}", table.isa());
        }
    }

    #[test]
    fn norms_and_rotations(seed: u64, n in prop_oneof![1..40usize, Just(1536usize), Just(2048)]) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let (portable, siblings) = tables();
        let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-3.0..3.0f32)).collect() };
        let (x, w, b) = (numbers(n), numbers(n), numbers(n));
        let (heads, cos, sin) = (numbers(6 * n), numbers(n), numbers(n));
        let run = |table: &Kernels| {
            let (mut rms, mut layer, mut turned) = (vec![f32::NAN; n], vec![f32::NAN; n], heads.clone());
            table.rms_norm(&x, &w, 1e-5, &mut rms);
            table.layer_norm(&x, &w, &b, 1e-6, &mut layer);
            table.rotate(&mut turned, &cos, &sin);
            (rms, layer, turned)
        };
        let want = run(&portable);
        for table in &siblings {
            prop_assert_eq!(&run(table), &want, "{}", table.isa());
        }
    }

    #[test]
    fn softmax_rows(seed: u64, n in 1..100usize, rest in 0..40usize, rows in 1..4usize) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let (portable, siblings) = tables();
        let size = [0.1, 5.0, 1000.0][rng.random_range(0..3)];
        let (width, stride) = (n + rest, n + rest + 3);
        let valid: Vec<usize> = (0..rows).map(|i| if i == 0 { n } else { rng.random_range(0..=n) }).collect();
        let all: Vec<f32> = (0..rows * stride).map(|i| if i % stride < valid[i / stride] { rng.random_range(-size..size) } else { f32::NAN }).collect();
        let run = |table: &Kernels| {
            let (mut x, mut tops, mut sums) = (all.clone(), vec![f32::NAN; rows], vec![f32::NAN; rows]);
            table.softmax_exp(&mut x, stride, width, &valid, 0.125, &mut tops, &mut sums);
            (x, tops, sums)
        };
        let (want, want_tops, want_sums) = run(&portable);
        for table in &siblings {
            let (got, tops, sums) = run(table);
            prop_assert_eq!(&tops, &want_tops, "{}", table.isa());
            for (sum, want) in sums.iter().zip(&want_sums) {
                prop_assert!((sum - want).abs() <= 2e-6 * want, "{}: sum {} {}", table.isa(), sum, want);
            }
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                // The argument's own rounding grows with its size.
                let tolerance = (1e-6 + 2e-7 * want.ln().abs().min(200.0)) * want + 2e-38;
                prop_assert!(if i % stride < width { (got - want).abs() <= tolerance } else { got.is_nan() }, "{} at {}: {} {}", table.isa(), i, got, want);
            }
            // A row alone comes out as in company.
            let (last, mut alone, mut top, mut sum) = (rows - 1, all[(rows - 1) * stride..].to_vec(), [0.0], [0.0]);
            table.softmax_exp(&mut alone, stride, width, &valid[last..], 0.125, &mut top, &mut sum);
            prop_assert_eq!(&alone[..width], &got[last * stride..][..width], "{}", table.isa());
            prop_assert_eq!((top[0], sum[0]), (tops[last], sums[last]), "{}", table.isa());
        }
    }

    #[test]
    fn convolutions(seed: u64, height in 1..24usize, width in 1..20usize, channels in 1..90usize, half in 0..4usize, first in 0..24usize) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let (portable, siblings) = tables();
        let side = 2 * half + 1;
        let rows = first.min(height - 1)..height;
        let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0f32)).collect() };
        let (x, kernel, bias) = (numbers(height * width * channels), numbers(side * side * channels), numbers(channels));
        let run = |table: &Kernels| {
            let mut out = vec![f32::NAN; rows.len() * width * channels];
            let mut scratch = vec![f32::NAN; table.conv_scratch(width, side)];
            table.conv_depthwise(&x, width, channels, &kernel, side, &bias, rows.clone(), &mut out, &mut scratch);
            out
        };
        let want = run(&portable);
        for table in &siblings {
            for (i, (got, want)) in run(table).iter().zip(&want).enumerate() {
                let bound = EPSILON as f32 * (side * side) as f32 * (side * side + 1) as f32;
                prop_assert!((got - want).abs() <= bound, "{} at {}: {} {}", table.isa(), i, got, want);
            }
        }
    }

    #[test]
    fn resampled_pixels(seed: u64, outputs in 1..70usize, taps in 1..20usize, beyond in 0..30usize) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let (portable, siblings) = tables();
        let pixels = taps + beyond;
        // A multiple of the vectors' samples now and then; sums stay inside 32 bits.
        let outputs = if seed.is_multiple_of(3) { outputs.next_multiple_of(16) } else { outputs };
        let row: Vec<u8> = (0..3 * pixels + 1).map(|_| if rng.random() { rng.random() } else { 255 }).collect();
        let firsts: Vec<u32> = (0..outputs).map(|_| rng.random_range(0..=beyond as u32)).collect();
        let weights: Vec<i32> = (0..outputs * taps).map(|_| rng.random_range(-(1 << 18)..1 << 18)).collect();
        let starts: Vec<[i32; 3]> = (0..outputs).map(|_| std::array::from_fn(|_| rng.random_range(-(1 << 29)..1 << 29))).collect();
        let rows: Vec<Vec<u8>> = (0..taps).map(|_| (0..3 * outputs).map(|_| rng.random()).collect()).collect();
        let rows: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
        let run = |table: &Kernels| {
            let (mut across, mut down) = (vec![7; 3 * outputs], vec![7; 3 * outputs]);
            table.resample_across(&row, &firsts, &weights, &starts, &mut across);
            table.resample_down(&rows, &weights[..taps], starts[0], &mut down);
            (across, down)
        };
        let want = run(&portable);
        for table in &siblings {
            prop_assert!(run(table) == want, "{}", table.isa());
        }
    }

    #[test]
    fn attention_products(seed: u64, queries in prop_oneof![1..30usize, Just(24usize)], positions in prop_oneof![1..70usize, 120..300usize], head_dim in prop_oneof![Just(8usize), Just(24), Just(32), Just(64), Just(72), Just(88), Just(128), Just(544)]) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let (portable, siblings) = tables();
        let tiles = positions.div_ceil(TILE);
        let stride = tiles * TILE + 5;
        let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0f32)).collect() };
        let (q, p) = (numbers(queries * head_dim), numbers(queries * stride));
        let floats = numbers(tiles * TILE * head_dim);
        let halves: Vec<u16> = floats.iter().map(|&v| f16::from_f32(v).to_bits()).collect();
        let codes: Vec<i8> = floats.iter().map(|v| (v * 127.0) as i8).collect();
        let mut kinds = vec![(Keys::F32(&floats), Values::F32(&floats)), (Keys::F16(&halves), Values::F16(&halves))];
        if head_dim % 32 == 0 {
            kinds.push((Keys::Q8(&codes, &halves), Values::Q8(&codes, &halves)));
        }
        let last = queries - 1;
        let q_last: Vec<f32> = q[last..].iter().step_by(queries).copied().collect();
        for (k, v) in kinds {
            let mut room = vec![f32::NAN; ROOM];
            let mut run = |table: &Kernels| {
                let (mut scores, mut mixed) = (vec![f32::NAN; queries * stride], vec![f32::NAN; queries * head_dim]);
                table.scores(&q, head_dim, k, tiles, &mut room, &mut scores, stride);
                table.mix(&p, stride, v, positions, head_dim, &mut room, &mut mixed);
                (scores, mixed)
            };
            let size = if matches!(k, Keys::Q8(..)) { 128.0 } else { 1.0 };
            let (want, want_mixed) = run(&portable);
            for table in &siblings {
                let (got, got_mixed) = run(table);
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let close = (got - want).abs() <= 2.0 * size * EPSILON as f32 * (head_dim * head_dim) as f32;
                    prop_assert!(if i % stride < tiles * TILE { close } else { got.is_nan() }, "{} score {}: {} {}", table.isa(), i, got, want);
                }
                for (i, (got, want)) in got_mixed.iter().zip(&want_mixed).enumerate() {
                    let bound = 2.0 * size * EPSILON as f32 * (positions * positions) as f32;
                    prop_assert!((got - want).abs() <= bound, "{} channel {}: {} {}", table.isa(), i, got, want);
                }
                // A query alone comes out as in company.
                let (mut alone, mut mixed) = (vec![f32::NAN; stride], vec![f32::NAN; head_dim]);
                let mut room = vec![f32::NAN; ROOM];
                table.scores(&q_last, head_dim, k, tiles, &mut room, &mut alone, stride);
                table.mix(&p[last * stride..], stride, v, positions, head_dim, &mut room, &mut mixed);
                prop_assert_eq!(&alone[..tiles * TILE], &got[last * stride..][..tiles * TILE], "{}", table.isa());
                prop_assert_eq!(&mixed[..], &got_mixed[last * head_dim..], "{}", table.isa());
            }
        }
    }

    #[test]
    fn parts_join(seed: u64, n in 1..40usize, head_dim in 1..70usize) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let (portable, siblings) = tables();
        let mut numbers = |n: usize, size: f32| -> Vec<f32> { (0..n).map(|_| rng.random_range(-size..size)).collect() };
        let (mut tops, mut sums, mixed) = (numbers(2 * n, 20.0), numbers(2 * n, 3.0), numbers(2 * n * head_dim, 1.0));
        sums.iter_mut().for_each(|sum| *sum = sum.abs() + 1.0);
        // One that saw nothing in the second part, and one whose tops are equal.
        (sums[n], tops[n]) = (0.0, f32::NEG_INFINITY);
        tops[2 * n - 1] = if n > 1 { tops[n - 1] } else { tops[n] };
        let run = |table: &Kernels, from: usize| {
            let (mut tops, mut sums, mut mixed) = (tops.clone(), sums.clone(), mixed.clone());
            let ((tops, next_tops), (sums, next_sums)) = (tops.split_at_mut(n), sums.split_at_mut(n));
            let (mixed, next_mixed) = mixed.split_at_mut(n * head_dim);
            let into = Share { tops: &mut tops[from..], sums: &mut sums[from..], mixed: &mut mixed[from * head_dim..] };
            let part = Share { tops: &mut next_tops[from..], sums: &mut next_sums[from..], mixed: &mut next_mixed[from * head_dim..] };
            table.fold(into, part, head_dim, 0.125);
            (tops.to_vec(), sums.to_vec(), mixed.to_vec())
        };
        let (want_tops, want_sums, want) = run(&portable, 0);
        prop_assert_eq!((want_tops[0], want_sums[0], &want[..head_dim]), (tops[0], sums[0], &mixed[..head_dim]));
        for table in &siblings {
            let (got_tops, got_sums, got) = run(table, 0);
            prop_assert_eq!(&got_tops, &want_tops, "{}", table.isa());
            prop_assert!(got_sums.iter().zip(&want_sums).all(|(a, b)| (a - b).abs() < 4e-6 * b), "{}", table.isa());
            prop_assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 4e-6), "{}: {:?} {:?}", table.isa(), got, want);
            let alone = run(table, n - 1);
            prop_assert_eq!(&alone.2[(n - 1) * head_dim..], &got[(n - 1) * head_dim..], "{}", table.isa());
            prop_assert_eq!((alone.0[n - 1], alone.1[n - 1]), (got_tops[n - 1], got_sums[n - 1]), "{}", table.isa());
        }
    }

    #[test]
    fn turned_rows(seed: u64, rows in prop_oneof![1..=16usize, Just(16usize)], cols in 1..70usize, more in 0..5usize) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let (portable, siblings) = tables();
        let (stride, out_stride) = (cols + more, rows + more);
        let x: Vec<f32> = (0..(rows - 1) * stride + cols).map(|_| rng.random_range(-1.0..1.0f32)).collect();
        for table in siblings.iter().chain([&portable]) {
            let mut out = vec![9.0; (cols - 1) * out_stride + rows];
            table.turn(&x, stride, rows, cols, &mut out, out_stride);
            for (i, &got) in out.iter().enumerate() {
                let (c, r) = (i / out_stride, i % out_stride);
                prop_assert_eq!(got, if r < rows { x[r * stride + c] } else { 9.0 }, "{} at {}", table.isa(), i);
            }
        }
    }
}

/// Codes of panels whose columns are in groups of 8, in groups of 4.
fn in_fours(eights: &[u8]) -> Vec<u8> {
    let columns = 8;
    let mut fours = vec![0; eights.len()];
    for (block, out) in eights.chunks(PANEL_BLOCK).zip(fours.chunks_mut(PANEL_BLOCK)) {
        for (at, &code) in block.iter().enumerate() {
            let (row, column) = (at / columns % PANEL, at / (columns * PANEL) * columns + at % columns);
            out[column / 4 * 4 * PANEL + 4 * row + column % 4] = code;
        }
    }
    fours
}

#[test]
fn packed_panels_are_equal() {
    let mut rng = Pcg64::seed_from_u64(3);
    let (portable, siblings) = tables();
    for ty in quantised() {
        for (blocks, rows) in [(1, 16), (3, 5), (9, 16)] {
            let kind = kind(ty).unwrap();
            let w = weights(&mut rng, ty, blocks * rows, Fill::Random, |rng| rng.random_range(-1.0..1.0f32));
            let n = blocks * ty.block_len() / 32;
            let scales = n * kind.groups() * PANEL;
            let run = |table: &Kernels| {
                let minima = if kind.min { scales } else { 0 };
                let (mut codes, mut s, mut m) = (vec![0x77; n * PANEL_BLOCK], vec![f32::NAN; scales], vec![f32::NAN; minima]);
                table.pack(ty, &w, rows, n, &mut codes, &mut s, &mut m);
                (if table.isa() == Isa::I8mm { in_fours(&codes) } else { codes }, s, m)
            };
            let want = run(&portable);
            for table in &siblings {
                assert!(run(table) == want, "{ty} {} {blocks} blocks of {rows} rows", table.isa());
            }
        }
    }
}

#[test]
fn activation_functions_against_f64() {
    let (portable, siblings) = tables();
    let mut x: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.003).collect();
    x.extend([0.0, -0.0, 1e-20, -1e-20, 1e-40, 30.0, -30.0, 100.0, -100.0, 1e30, -1e30]);
    let gelu = |x: f64| x * 0.5 * libm::erfc(-x / 2f64.sqrt());
    let quick = |x: f64| x / (1.0 + (-1.702 * x).exp());
    let silu = |x: f64| x / (1.0 + (-x).exp());
    for table in siblings.iter().chain([&portable]) {
        let check = |name: &str, got: &[f32], f: &dyn Fn(f64) -> f64| {
            for (&x, &got) in x.iter().zip(got) {
                let want = f(f64::from(x));
                let off = (f64::from(got) - want).abs();
                assert!(off <= 1e-6 * want.abs() + 5e-7 * f64::from(x).abs().min(1.0), "{} {name}({x}): {got} {want}", table.isa());
            }
        };
        let mut y = x.clone();
        table.gelu(&mut y);
        check("gelu", &y, &gelu);
        let mut y = x.clone();
        table.quick_gelu(&mut y);
        check("quick_gelu", &y, &quick);
        let mut y = x.clone();
        table.silu_gate(&mut y, &vec![1.0; x.len()]);
        check("silu", &y, &silu);
        // Every length, the last vector being a part of one.
        for n in 0..40 {
            let (mut a, mut b, mut c) = (x[3000..3000 + n].to_vec(), x[3000..3000 + n].to_vec(), x[3000..3000 + n].to_vec());
            table.gelu(&mut a);
            table.quick_gelu(&mut b);
            table.silu_gate(&mut c, &vec![2.0; n]);
            for i in 0..n {
                let x = f64::from(x[3000 + i]);
                let near = |got: f32, want: f64| (f64::from(got) - want).abs() < 5e-6;
                assert!(near(a[i], gelu(x)) && near(b[i], quick(x)) && near(c[i], 2.0 * silu(x)), "{} {n} at {i}", table.isa());
            }
        }
        let mut faults = [f32::NAN; 3];
        table.gelu(&mut faults[..1]);
        table.quick_gelu(&mut faults[1..2]);
        table.silu_gate(&mut faults[2..], &[1.0]);
        assert!(faults.iter().all(|v| v.is_nan()), "{}: NaN stays", table.isa());
    }
}
