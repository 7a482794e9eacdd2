//! Weights in a mapped file, as models have them, and what a layer should answer.

use std::io::{BufWriter, Write};
use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use sphinx_quant::tensor::Bytes;
use sphinx_quant::{GgmlType, Tensor, block};

/// Rows that differ; a matrix repeats them. A prime, so that no panel of rows is like its neighbour.
const DISTINCT: usize = 61;

/// About normal, of variance 1.
pub fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Pcg64::seed_from_u64(seed);
    (0..n).map(|_| (0..12).map(|_| random.random_range(-0.5f32..0.5)).sum()).collect()
}

/// `count` matrices `[rows, cols]` one after the other in a mapped file without a name.
pub fn mapped(ty: GgmlType, rows: usize, cols: usize, count: usize) -> Vec<Tensor> {
    let row_bytes = ty.row_bytes(cols).expect("whole blocks");
    let mut some = vec![0u8; DISTINCT * row_bytes];
    let scale = 1.0 / (cols as f32).sqrt();
    let values: Vec<f32> = numbers(DISTINCT * cols, 1).iter().map(|v| v * scale).collect();
    block::quantize(ty, &values, None, &mut some);
    let file = tempfile::tempfile().expect("a temporary file");
    let mut out = BufWriter::with_capacity(1 << 20, &file);
    for i in 0..rows * count {
        out.write_all(&some[i % DISTINCT * row_bytes..][..row_bytes]).expect("room for weights");
    }
    out.flush().expect("room for weights");
    drop(out);
    let bytes = Arc::new(Bytes::map(&file).expect("a map"));
    let size = rows * row_bytes;
    let matrix = |i: usize| Tensor::new("bench", ty, &[cols, rows], bytes.clone(), i * size..(i + 1) * size).expect("it fits");
    (0..count).map(matrix).collect()
}

/// Checks some results of `x · wᵀ`, rows of `x` and of `out` being as long as the matrix says, within what rounding
/// activations to 8 bits can do.
pub fn check(w: &Tensor, x: &[f32], out: &[f32]) {
    let (n, k) = (w.rows(), w.cols());
    let rows = out.len() / n;
    let mut row = vec![0.0f32; k];
    for (i, (r, c)) in [(0, 0), (rows / 2, n / 3), (rows - 1, n - 1), (rows / 3, n / 2 + 1)].into_iter().enumerate() {
        block::dequantize(w.ty(), w.row(c), &mut row);
        let x = &x[r * k..][..k];
        let want: f64 = row.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
        // Rounding errors are spread evenly over a step; six standard deviations of their sum.
        let step = f64::from(x.iter().fold(0.0f32, |a, v| a.max(v.abs()))) / 127.0;
        let norm: f64 = row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>().sqrt();
        let (got, most) = (f64::from(out[r * n + c]), 6.0 * norm * step / 12f64.sqrt() + 1e-5);
        assert!((got - want).abs() <= most, "{}, sample {i}: {got} is not {want} within {most}", w.ty());
    }
}
