//! Random weights and activations.
#![allow(dead_code)] // each test binary uses its part

use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use sphinx_quant::{GgmlType, Tensor, block};

/// A seeded source of numbers.
pub struct Numbers(Pcg64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(Pcg64::seed_from_u64(seed))
    }

    /// From `low` up to `high`.
    pub fn uniform(&mut self, n: usize, low: f32, high: f32) -> Vec<f32> {
        (0..n).map(|_| self.0.random_range(low..high)).collect()
    }

    /// About normal, of variance 1: what weights and activations look like.
    pub fn normal(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (0..12).map(|_| self.0.random_range(-0.5f32..0.5)).sum()).collect()
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.0.random()).collect()
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.random_range(0..n)
    }
}

/// `len` elements of `ty` with every bit of a block random, but for its half-precision scales, which are moderate.
pub fn any_blocks(ty: GgmlType, len: usize, rng: &mut Numbers) -> Vec<u8> {
    let scales: &[usize] = match ty {
        GgmlType::F32 => return rng.normal(len).iter().flat_map(|v| v.to_le_bytes()).collect(),
        GgmlType::F16 => return rng.normal(len).iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        GgmlType::BF16 => return rng.normal(len).iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => &[0],
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
        GgmlType::Q2_K => &[80, 82],
        GgmlType::Q3_K => &[108],
        GgmlType::Q6_K => &[208],
    };
    let mut bytes = rng.bytes(ty.row_bytes(len).unwrap());
    for block in bytes.chunks_mut(ty.block_bytes()) {
        for &at in scales {
            let scale = f16::from_f32(rng.uniform(1, -0.1, 0.1)[0]);
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}

/// A matrix with blocks as [`any_blocks`] makes them.
pub fn any_matrix(name: &str, ty: GgmlType, rows: usize, cols: usize, rng: &mut Numbers) -> Tensor {
    Tensor::owned(name, ty, &[cols, rows], &any_blocks(ty, rows * cols, rng)).unwrap()
}

/// A matrix of normal weights of standard deviation `1 / √cols`, quantised by us.
pub fn likely_matrix(name: &str, ty: GgmlType, rows: usize, cols: usize, rng: &mut Numbers) -> Tensor {
    let scale = 1.0 / (cols as f32).sqrt();
    let values: Vec<f32> = rng.normal(rows * cols).iter().map(|v| v * scale).collect();
    let mut bytes = vec![0; ty.row_bytes(cols).unwrap() * rows];
    block::quantize(ty, &values, None, &mut bytes);
    Tensor::owned(name, ty, &[cols, rows], &bytes).unwrap()
}

/// The numbers of a matrix, as we read them.
pub fn numbers_of(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.len()];
    block::dequantize(tensor.ty(), tensor.bytes(), &mut values);
    values
}
