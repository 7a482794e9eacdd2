//! Each operation against its definition, written out as loops in `f64`.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use super::*;
use crate::KvType;

fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = Pcg64::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn buffer(t: &CandleTarget, values: &[f32], width: usize) -> CandleBuffer {
    let mut b = t.buffer(values.len() / width, width).unwrap();
    t.write(values, &mut b, 0).unwrap();
    b
}

fn contents(t: &CandleTarget, b: &CandleBuffer) -> Vec<f32> {
    let mut values = vec![f32::NAN; t.rows(b) * t.width(b)];
    t.read(b, 0, &mut values).unwrap();
    values
}

/// A stored F32 matrix.
fn stored(values: &[f32], cols: usize) -> Stored {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Stored::owned("w", sphinx_quant::GgmlType::F32, &[cols, values.len() / cols], &bytes).unwrap()
}

fn layer(t: &CandleTarget, values: &[f32], cols: usize, bias: Option<&[f32]>) -> Linear<CandleTarget> {
    Linear { weight: t.matrix(&[stored(values, cols)]).unwrap(), bias: bias.map(|b| t.vector_from(b).unwrap()) }
}

#[track_caller]
fn close(found: &[f32], wanted: &[f64], bound: f64) {
    assert_eq!(found.len(), wanted.len());
    for (i, (&f, &w)) in found.iter().zip(wanted).enumerate() {
        assert!((f64::from(f) - w).abs() <= bound, "element {i}: {f} instead of {w}");
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Attention of one query over the rows of `k` and `v`.
fn attention(q: &[f32], k: &[&[f32]], v: &[&[f32]]) -> Vec<f64> {
    let scores: Vec<f64> = k.iter().map(|k| dot(q, k) / (q.len() as f64).sqrt()).collect();
    let top = scores.iter().fold(f64::MIN, |a, &b| a.max(b));
    let e: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let sum: f64 = e.iter().sum();
    (0..q.len()).map(|c| e.iter().zip(v).map(|(e, v)| e / sum * f64::from(v[c])).sum()).collect()
}

/// A result that is kept as it is must not be the input's memory, which is written to again.
#[test]
fn what_changes_no_places_is_a_copy_all_the_same() {
    let t = CandleTarget::cpu().unwrap();
    let (mut x, mut out) = (buffer(&t, &numbers(1, 12), 3), t.buffer(1, 12).unwrap());
    // As after a piece was written, so that it lies in the buffer's own memory.
    t.write(&numbers(2, 3), &mut x, 0).unwrap();
    let before = contents(&t, &x);
    t.fold_2x2(&x, MapShape { batch: 1, height: 2, width: 2 }, &mut out).unwrap();
    t.write(&[9.0; 3], &mut x, 1).unwrap();
    assert_eq!(contents(&t, &out), before);
    assert_ne!(contents(&t, &x), before);
}

#[test]
fn buffers_keep_their_rows_and_refuse_others() {
    let t = CandleTarget::cpu().unwrap();
    let mut b = t.buffer(4, 3).unwrap();
    assert_eq!((t.rows(&b), t.width(&b)), (4, 3));
    t.write(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &mut b, 2).unwrap();
    t.set_rows(&mut b, 1).unwrap();
    assert_eq!(contents(&t, &b), [0.0; 3]);
    assert!(matches!(t.write(&[0.0; 3], &mut b, 1), Err(TargetError::Shape { op: "write", .. })));
    t.set_rows(&mut b, 4).unwrap();
    assert_eq!(contents(&t, &b)[6..], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert!(matches!(t.set_rows(&mut b, 5), Err(TargetError::Shape { .. })));
    assert!(matches!(t.read(&b, 0, &mut [0.0; 4]), Err(TargetError::Shape { op: "read", .. })));

    let src = buffer(&t, &[7.0, 8.0, 9.0, 10.0], 2);
    t.copy(&src, 1, 1, &mut b, 3, 1).unwrap();
    assert_eq!(contents(&t, &b)[9..], [4.0, 9.0, 10.0]);
    assert!(t.copy(&src, 1, 1, &mut b, 3, 2).is_err());
    assert!(t.copy(&src, 1, 2, &mut b, 0, 0).is_err());
    assert!(matches!(t.buffer(usize::MAX / 8, 64), Err(TargetError::Memory { .. })));
}

#[test]
fn norms() {
    let t = CandleTarget::cpu().unwrap();
    let (x, w, b) = (numbers(1, 3 * 37), numbers(2, 37), numbers(3, 37));
    let (mut rms, mut ln) = (Vec::new(), Vec::new());
    for x in x.chunks(37) {
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / 37.0;
        let var = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / 37.0;
        for c in 0..37 {
            rms.push(f64::from(x[c]) * f64::from(w[c]) / (dot(x, x) / 37.0 + 1e-5).sqrt());
            ln.push((f64::from(x[c]) - mean) / (var + 1e-6).sqrt() * f64::from(w[c]) + f64::from(b[c]));
        }
    }
    let x = buffer(&t, &x, 37);
    let (w, b) = (t.vector_from(&w).unwrap(), t.vector_from(&b).unwrap());
    let mut out = t.buffer(5, 37).unwrap();
    t.rms_norm(&x, &w, 1e-5, &mut out).unwrap();
    close(&contents(&t, &out), &rms, 1e-6);
    t.layer_norm(&x, &w, &b, 1e-6, &mut out).unwrap();
    close(&contents(&t, &out), &ln, 3e-6);
}

#[test]
fn linear_and_what_follows() {
    let t = CandleTarget::cpu().unwrap();
    let (rows, k, n) = (3, 20, 7);
    let (x, w, b, old, scale) = (numbers(1, rows * k), numbers(2, n * k), numbers(3, n), numbers(4, rows * n), numbers(5, n));
    let y: Vec<f64> = (0..rows * n).map(|i| dot(&x[i / n * k..][..k], &w[i % n * k..][..k]) + f64::from(b[i % n])).collect();
    let x = buffer(&t, &x, k);
    // The same layer from two parts.
    let weight = t.matrix(&[stored(&w[..2 * k], k), stored(&w[2 * k..], k)]).unwrap();
    assert_eq!(t.matrix_shape(&weight), (n, k));
    let layer = Linear { weight, bias: Some(t.vector_from(&b).unwrap()) };
    let scale_vector = t.vector_from(&scale).unwrap();
    let at = |i: usize| f64::from(old[i]);
    let all: Vec<_> = (0..rows * n).collect();
    let cases = [
        (After::Nothing, all.iter().map(|&i| y[i]).collect::<Vec<f64>>()),
        (After::Gelu, all.iter().map(|&i| 0.5 * y[i] * (1.0 + libm::erf(y[i] / 2f64.sqrt()))).collect()),
        (After::QuickGelu, all.iter().map(|&i| y[i] / (1.0 + (-1.702 * y[i]).exp())).collect()),
        (After::Add, all.iter().map(|&i| at(i) + y[i]).collect()),
        (After::ScaleAdd(&scale_vector), all.iter().map(|&i| at(i) + f64::from(scale[i % n]) * y[i]).collect()),
    ];
    for (after, wanted) in cases {
        let mut out = buffer(&t, &old, n);
        t.linear(&x, &layer, after, &mut out).unwrap();
        close(&contents(&t, &out), &wanted, 3e-6);
    }
    let mut narrow = t.buffer(rows, n - 1).unwrap();
    assert!(matches!(t.linear(&x, &layer, After::Nothing, &mut narrow), Err(TargetError::Shape { op: "linear", .. })));
    let mut short = t.buffer(rows - 1, n).unwrap();
    assert!(t.linear(&x, &layer, After::Nothing, &mut short).is_err());
    assert!(t.matrix(&[]).is_err());
    assert!(t.matrix(&[stored(&w[..20], 20), stored(&w[..20], 10)]).is_err());
}

#[test]
fn gated_mlp() {
    let t = CandleTarget::cpu().unwrap();
    let (rows, k, hidden) = (2, 8, 12);
    let (x, up, down) = (numbers(1, rows * k), numbers(2, 2 * hidden * k), numbers(3, k * hidden));
    let mut wanted = Vec::new();
    for x in x.chunks(k) {
        let h: Vec<f32> = (0..hidden)
            .map(|i| {
                let (gate, up) = (dot(x, &up[i * k..][..k]), dot(x, &up[(hidden + i) * k..][..k]));
                (gate / (1.0 + (-gate).exp()) * up) as f32
            })
            .collect();
        wanted.extend((0..k).map(|o| dot(&h, &down[o * hidden..][..hidden])));
    }
    let mlp = Mlp { up: layer(&t, &up, k, None), act: Activation::SiluGate, down: layer(&t, &down, hidden, None) };
    let mut out = t.buffer(rows, k).unwrap();
    t.mlp(&buffer(&t, &x, k), &mlp, After::Nothing, &mut out).unwrap();
    close(&contents(&t, &out), &wanted, 3e-6);
    let wrong = Mlp { act: Activation::Gelu, ..mlp };
    assert!(matches!(t.mlp(&buffer(&t, &x, k), &wrong, After::Nothing, &mut out), Err(TargetError::Shape { op: "mlp", .. })));
}

#[test]
fn tables_means_and_folds() {
    let t = CandleTarget::cpu().unwrap();
    let x: Vec<f32> = (0..10).map(|v| v as f32).collect();
    let mut b = buffer(&t, &x[..8], 2);
    t.add_table(&mut b, &t.vector_from(&[100.0, 200.0, 300.0, 400.0]).unwrap()).unwrap();
    assert_eq!(contents(&t, &b), [100.0, 201.0, 302.0, 403.0, 104.0, 205.0, 306.0, 407.0]);
    assert!(t.add_table(&mut b, &t.vector_from(&[0.0; 6]).unwrap()).is_err(), "3 rows to 4");
    let mut mean = t.buffer(2, 2).unwrap();
    t.mean_rows(&b, 2, &mut mean).unwrap();
    assert_eq!(contents(&t, &mean), [201.0, 302.0, 205.0, 306.0]);

    // One map of 2 rows and 4 columns with 1 channel.
    let map = MapShape { batch: 1, height: 2, width: 4 };
    let mut folded = t.buffer(9, 4).unwrap();
    t.fold_2x2(&buffer(&t, &x[..8], 1), map, &mut folded).unwrap();
    assert_eq!(contents(&t, &folded), [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);

    let table = t.matrix(&[stored(&x, 2)]).unwrap();
    let mut out = t.buffer(3, 2).unwrap();
    t.embed(&table, &[4, 0], &mut out, 1).unwrap();
    assert_eq!(contents(&t, &out), [0.0, 0.0, 8.0, 9.0, 0.0, 1.0]);
    assert!(matches!(t.embed(&table, &[5], &mut out, 0), Err(TargetError::Shape { op: "embed", .. })));
    assert!(t.embed(&table, &[1, 1], &mut out, 2).is_err());
}

#[test]
fn depthwise_convolution() {
    let t = CandleTarget::cpu().unwrap();
    let map = MapShape { batch: 2, height: 4, width: 5 };
    let (side, c) = (7usize, 3usize);
    let (x, kernel, bias) = (numbers(1, map.positions() * c), numbers(2, side * side * c), numbers(3, c));
    let mut wanted = Vec::new();
    for at in 0..map.positions() * c {
        let (channel, col, row, batch) = (at % c, at / c % map.width, at / c / map.width % map.height, at / c / map.width / map.height);
        let mut sum = f64::from(bias[channel]);
        for tap in 0..side * side {
            let (r, k) = ((row + tap / side).wrapping_sub(3), (col + tap % side).wrapping_sub(3));
            if r < map.height && k < map.width {
                let value = x[((batch * map.height + r) * map.width + k) * c + channel];
                sum += f64::from(value) * f64::from(kernel[tap * c + channel]);
            }
        }
        wanted.push(sum);
    }
    let mut out = t.buffer(map.positions(), c).unwrap();
    let (kernel, bias) = (t.vector_from(&kernel).unwrap(), t.vector_from(&bias).unwrap());
    t.conv_depthwise(&buffer(&t, &x, c), map, &kernel, &bias, &mut out).unwrap();
    close(&contents(&t, &out), &wanted, 5e-6);
}

#[test]
fn full_attention_of_a_batch() {
    let t = CandleTarget::cpu().unwrap();
    let s = AttendShape { batch: 2, q_tokens: 3, kv_tokens: 5, heads: 2, head_dim: 4 };
    // Queries alone; keys and values packed with a column to skip.
    let (q, kv) = (numbers(1, 6 * 8), numbers(2, 10 * 17));
    let mut wanted = Vec::new();
    for row in 0..6 {
        for head in 0..2 {
            let at = |column: usize| -> Vec<&[f32]> { (0..5).map(|j| &kv[(row / 3 * 5 + j) * 17 + column + head * 4..][..4]).collect() };
            wanted.extend(attention(&q[row * 8 + head * 4..][..4], &at(1), &at(9)));
        }
    }
    let (q, kv) = (buffer(&t, &q, 8), buffer(&t, &kv, 17));
    let mut out = t.buffer(6, 8).unwrap();
    let at = |buffer, first| Columns { buffer, first };
    t.attend(at(&q, 0), at(&kv, 1), at(&kv, 9), s, &mut out).unwrap();
    close(&contents(&t, &out), &wanted, 1e-6);
    assert!(matches!(t.attend(at(&q, 0), at(&kv, 1), at(&kv, 10), s, &mut out), Err(TargetError::Shape { op: "attend", .. })));
}

#[test]
fn rotated_and_cached_attention() {
    let t = CandleTarget::cpu().unwrap();
    let (heads, kv_heads, hd, total) = (4usize, 2usize, 6usize, 9usize);
    let width = (heads + 2 * kv_heads) * hd;
    let qkv = numbers(1, total * width);
    let rope = Rope::new(hd, 10_000.0, 1.0);
    // Rotated by definition.
    let mut turned = qkv.clone();
    for (pos, row) in turned.chunks_mut(width).enumerate() {
        for (i, pair) in row[..(heads + kv_heads) * hd].chunks_mut(2).enumerate() {
            let angle = pos as f64 * f64::from(rope.frequencies[i % (hd / 2)]);
            let (a, b) = (f64::from(pair[0]), f64::from(pair[1]));
            pair[0] = (a * angle.cos() - b * angle.sin()) as f32;
            pair[1] = (a * angle.sin() + b * angle.cos()) as f32;
        }
    }
    let mut wanted = Vec::new();
    for row in 0..total {
        for head in 0..heads {
            let at = |first: usize| -> Vec<&[f32]> { (0..=row).map(|j| &turned[j * width + (first + head / 2) * hd..][..hd]).collect() };
            wanted.extend(attention(&turned[row * width + head * hd..][..hd], &at(heads), &at(heads + kv_heads)));
        }
    }
    for (ty, bound) in [(KvType::F32, 3e-6), (KvType::F16, 2e-3)] {
        let mut kv = t.kv(KvShape { capacity: total, heads, kv_heads, head_dim: hd, ty }).unwrap();
        let bytes = if ty == KvType::F32 { 4 } else { 2 };
        assert_eq!(t.kv_bytes(&kv), 2 * total * kv_heads * hd * bytes);
        let mut found = Vec::new();
        let mut pos = 0;
        for rows in [4, 1, 3, 1] {
            let mut b = buffer(&t, &qkv[pos * width..(pos + rows) * width], width);
            t.rope_append(&mut b, &rope, &mut kv, pos).unwrap();
            let mut out = t.buffer(4, heads * hd).unwrap();
            t.attend_cached(&b, &kv, pos, &mut out).unwrap();
            found.extend(contents(&t, &out));
            pos += rows;
        }
        close(&found, &wanted, bound);
        let mut b = t.buffer(1, width).unwrap();
        assert!(matches!(t.rope_append(&mut b, &rope, &mut kv, total), Err(TargetError::Shape { op: "rope_append", .. })));
    }
}

#[test]
fn eight_bit_caches_round_like_the_block_format() {
    let t = CandleTarget::cpu().unwrap();
    assert!(t.kv(KvShape { capacity: 1, heads: 1, kv_heads: 1, head_dim: 48, ty: KvType::Q8_0 }).is_err());
    let mut kv = t.kv(KvShape { capacity: 2, heads: 1, kv_heads: 1, head_dim: 64, ty: KvType::Q8_0 }).unwrap();
    let mut row = numbers(1, 3 * 64);
    row[128..160].fill(0.0); // an all-zero block of values
    let mut b = buffer(&t, &row, 192);
    // Position 0: nothing turns.
    t.rope_append(&mut b, &Rope::new(64, 10_000.0, 1.0), &mut kv, 0).unwrap();
    for (half, values) in [(&kv.keys, &row[64..128]), (&kv.values, &row[128..])] {
        let found = half.narrow(1, 0, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (found, x) in found.chunks(32).zip(values.chunks(32)) {
            let d = x.iter().fold(0f32, |a, v| a.max(v.abs())) / 127.0;
            let id = if d > 0.0 { 1.0 / d } else { 0.0 };
            let wanted: Vec<f32> = x.iter().map(|v| (v * id).round() * half::f16::from_f32(d).to_f32()).collect();
            assert_eq!(found, wanted);
        }
    }
}
