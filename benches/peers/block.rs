//! One block of DINOv2 or ConvNeXt over given weights and activations, for comparisons with other runtimes.
//!
//! `block CASE.safetensors TYPE CALLS OUT`: quantises the weights of the case to `TYPE` in a mapped file, runs the block
//! `CALLS` times, prints the median time in seconds and writes what the block answers as bare `f32`. `encoders.py` makes the
//! cases and reads the answers. `SPHINX_THREADS` and `SPHINX_ISA` as in the other benches.

#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;

use safetensors::SafeTensors;
use sphinx_quant::tensor::Bytes;
use sphinx_quant::{GgmlType, Tensor, block};
use sphinx_targets::cpu::{CpuOptions, CpuTarget};
use sphinx_targets::{Activation, After, AttendShape, Columns, Linear, MapShape, Mlp, Target};
use support::clock::{median, time};

const EPS: f32 = 1e-6;
/// Heads of DINOv2 ViT-g.
const HEADS: usize = 24;

type Vector = <CpuTarget as Target>::Vector;
type Buffer = <CpuTarget as Target>::Buffer;

/// A case's tensors.
struct Case<'a> {
    file: SafeTensors<'a>,
    ty: GgmlType,
    target: &'a CpuTarget,
}

impl Case<'_> {
    fn has(&self, name: &str) -> bool {
        self.file.tensor(name).is_ok()
    }

    fn numbers(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let view = self.file.tensor(name).unwrap_or_else(|_| panic!("the case has a tensor \"{name}\""));
        let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        (view.shape().to_vec(), values)
    }

    fn vector(&self, name: &str) -> Vector {
        self.target.vector_from(&self.numbers(name).1).expect("a vector")
    }

    /// A layer whose weights lie in a mapped file.
    fn linear(&self, name: &str) -> Linear<CpuTarget> {
        let (shape, values) = self.numbers(&format!("{name}.weight"));
        let (rows, cols) = (shape[0], shape[1]);
        let mut bytes = vec![0; rows * self.ty.row_bytes(cols).expect("whole blocks")];
        block::quantize(self.ty, &values, None, &mut bytes);
        let file = tempfile::tempfile().expect("a temporary file");
        std::io::Write::write_all(&mut &file, &bytes).expect("room for weights");
        let map = Arc::new(Bytes::map(&file).expect("a map"));
        let tensor = Tensor::new(name, self.ty, &[cols, rows], map, 0..bytes.len()).expect("it fits");
        Linear { weight: self.target.matrix(&[tensor]).expect("a matrix"), bias: Some(self.vector(&format!("{name}.bias"))) }
    }

    /// Weight and bias.
    fn norm(&self, name: &str) -> (Vector, Vector) {
        (self.vector(&format!("{name}.weight")), self.vector(&format!("{name}.bias")))
    }
}

fn main() {
    let all: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [case, ty, calls, out] = all.as_slice() else {
        return println!("block CASE.safetensors TYPE CALLS OUT: see encoders.py, which makes cases");
    };
    let ty = GgmlType::from_name(ty).expect("a block type");
    let threads = support::thread_counts()[0];
    let target = CpuTarget::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).expect("threads start");
    let bytes = std::fs::read(case).expect("the case can be read");
    let case = Case { file: SafeTensors::deserialize(&bytes).expect("the case is safetensors"), ty, target: &target };
    let (shape, start) = case.numbers("x");
    let (batch, rows, width) = (shape[0], shape[0] * shape[1], shape[2]);
    let mut x = target.buffer(rows, width).expect("memory");
    let mut run: Box<dyn FnMut(&mut Buffer)> =
        if case.has("qkv.weight") { dinov2(&case, batch, rows, width) } else { convnext(&case, batch, rows, width) };
    let mut took = Vec::new();
    for call in 0..=calls.parse().expect("a number of calls") {
        target.write(&start, &mut x, 0).expect("it fits");
        let once = time(threads, || run(&mut x));
        if call > 0 {
            took.push(once.seconds(threads));
        }
    }
    let answer: Vec<u8> = x.values().iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(out, answer).expect("room for the answer");
    println!("{:.6}", median(took));
}

/// As in the runtime's `vit.rs`.
fn dinov2<'a>(case: &Case<'a>, batch: usize, rows: usize, width: usize) -> Box<dyn FnMut(&mut Buffer) + 'a> {
    let t = case.target;
    let ((norm1, bias1), (norm2, bias2)) = (case.norm("norm1"), case.norm("norm2"));
    let (qkv_layer, proj, scale1, scale2) = (case.linear("qkv"), case.linear("proj"), case.vector("ls1"), case.vector("ls2"));
    let mlp = Mlp { up: case.linear("w12"), act: Activation::SiluGate, down: case.linear("w3") };
    let shape = AttendShape { batch, q_tokens: rows / batch, kv_tokens: rows / batch, heads: HEADS, head_dim: width / HEADS };
    let buffer = |width: usize| t.buffer(rows, width).expect("memory");
    let (mut normed, mut qkv, mut mixed) = (buffer(width), buffer(3 * width), buffer(width));
    Box::new(move |x| {
        t.layer_norm(x, &norm1, &bias1, EPS, &mut normed).expect("shapes fit");
        t.linear(&normed, &qkv_layer, After::Nothing, &mut qkv).expect("shapes fit");
        let part = |i: usize| Columns { buffer: &qkv, first: i * width };
        t.attend(part(0), part(1), part(2), shape, &mut mixed).expect("shapes fit");
        t.linear(&mixed, &proj, After::ScaleAdd(&scale1), x).expect("shapes fit");
        t.layer_norm(x, &norm2, &bias2, EPS, &mut normed).expect("shapes fit");
        t.mlp(&normed, &mlp, After::ScaleAdd(&scale2), x).expect("shapes fit");
    })
}

/// As in the runtime's `convnext.rs`.
fn convnext<'a>(case: &Case<'a>, batch: usize, rows: usize, width: usize) -> Box<dyn FnMut(&mut Buffer) + 'a> {
    let t = case.target;
    let side = (rows / batch).isqrt();
    let map = MapShape { batch, height: side, width: side };
    let (kernel, kernel_bias, (norm, bias), gamma) =
        (case.vector("kernel"), case.vector("kernel.bias"), case.norm("norm"), case.vector("gamma"));
    let mlp = Mlp { up: case.linear("fc1"), act: Activation::Gelu, down: case.linear("fc2") };
    let buffer = || t.buffer(rows, width).expect("memory");
    let (mut mixed, mut normed) = (buffer(), buffer());
    Box::new(move |x| {
        t.conv_depthwise(x, map, &kernel, &kernel_bias, &mut mixed).expect("shapes fit");
        t.layer_norm(&mixed, &norm, &bias, EPS, &mut normed).expect("shapes fit");
        t.mlp(&normed, &mlp, After::ScaleAdd(&gamma), x).expect("shapes fit");
    })
}
