//! A small random language model, written as a GGUF file and run in plain `f64`.
#![allow(dead_code)] // each test binary uses its part

use std::collections::BTreeMap;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use sphinx_quant::gguf::write::{Plan, TensorPlan, Writer};
use sphinx_quant::gguf::{Array, Value};
use sphinx_quant::{GgmlType, block};

/// Width of a row.
pub const DIM: usize = 64;
/// Hidden width (of one expert).
pub const HIDDEN: usize = 96;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const LAYERS: usize = 2;
pub const VOCABULARY: usize = 48;
const HEAD_DIM: usize = DIM / HEADS;
const KV: usize = KV_HEADS * HEAD_DIM;
const EPS: f32 = 1e-5;
const ROPE_BASE: f32 = 10000.0;

/// Weights by name, with their shapes, outermost dimension first.
#[derive(Clone)]
pub struct Model {
    pub experts: usize,
    pub used: usize,
    pub weights: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

/// How a model is written.
pub struct Form<'a> {
    pub arch: &'a str,
    /// The type of a tensor, by name.
    pub ty: &'a dyn Fn(&str) -> GgmlType,
    /// The first expert of each run into which stacks are cut; none for whole stacks.
    pub runs: &'a [usize],
}

impl Form<'static> {
    /// Whole stacks in F32.
    pub const PLAIN: Form<'static> = Form { arch: "llama", ty: &|_| GgmlType::F32, runs: &[] };
}

impl Model {
    /// Random weights; dense when there are no experts.
    pub fn random(seed: u64, experts: usize, used: usize) -> Model {
        let mut random = Pcg64::seed_from_u64(seed);
        let mut weights = BTreeMap::new();
        let mut add = |name: String, shape: &[usize], scale: f32, mean: f32| {
            let mut normal = || (0..12).map(|_| random.random_range(-0.5f32..0.5)).sum::<f32>();
            let values = (0..shape.iter().product()).map(|_| mean + scale * normal()).collect();
            weights.insert(name, (shape.to_vec(), values));
        };
        let per = |cols: usize| 1.0 / (cols as f32).sqrt();
        add("token_embd.weight".into(), &[VOCABULARY, DIM], 1.0, 0.0);
        add("output_norm.weight".into(), &[DIM], 0.1, 1.0);
        add("output.weight".into(), &[VOCABULARY, DIM], per(DIM), 0.0);
        for i in 0..LAYERS {
            let name = |rest: &str| format!("blk.{i}.{rest}.weight");
            add(name("attn_norm"), &[DIM], 0.1, 1.0);
            add(name("ffn_norm"), &[DIM], 0.1, 1.0);
            add(name("attn_q"), &[DIM, DIM], per(DIM), 0.0);
            add(name("attn_k"), &[KV, DIM], per(DIM), 0.0);
            add(name("attn_v"), &[KV, DIM], per(DIM), 0.0);
            add(name("attn_output"), &[DIM, DIM], per(DIM), 0.0);
            if experts == 0 {
                add(name("ffn_gate"), &[HIDDEN, DIM], per(DIM), 0.0);
                add(name("ffn_up"), &[HIDDEN, DIM], per(DIM), 0.0);
                add(name("ffn_down"), &[DIM, HIDDEN], per(HIDDEN), 0.0);
            } else {
                add(name("ffn_gate_inp"), &[experts, DIM], 2.0 * per(DIM), 0.0);
                add(name("ffn_gate_exps"), &[experts, HIDDEN, DIM], per(DIM), 0.0);
                add(name("ffn_up_exps"), &[experts, HIDDEN, DIM], per(DIM), 0.0);
                add(name("ffn_down_exps"), &[experts, DIM, HIDDEN], per(HIDDEN), 0.0);
            }
        }
        Model { experts, used, weights }
    }

    /// Metadata as any converter of LLaMA models writes them.
    pub fn metadata(&self, arch: &str) -> Vec<(String, Value)> {
        let mut all: Vec<(String, Value)> = vec![("general.architecture".into(), Value::Str(arch.into()))];
        let mut number = |key: &str, n: usize| all.push((format!("{arch}.{key}"), Value::U32(n as u32)));
        number("block_count", LAYERS);
        number("embedding_length", DIM);
        number("feed_forward_length", HIDDEN);
        number("attention.head_count", HEADS);
        number("attention.head_count_kv", KV_HEADS);
        number("context_length", 256);
        if self.experts > 0 {
            number("expert_count", self.experts);
            number("expert_used_count", self.used);
        }
        all.push((format!("{arch}.attention.layer_norm_rms_epsilon"), Value::F32(EPS)));
        all.push((format!("{arch}.rope.freq_base"), Value::F32(ROPE_BASE)));
        let pieces: Vec<String> =
            (0..VOCABULARY).map(|i| if i < 3 { format!("<{i}>") } else { char::from(b'A' + i as u8).into() }).collect();
        all.push(("tokenizer.ggml.model".into(), Value::Str("llama".into())));
        all.push(("tokenizer.ggml.tokens".into(), Value::Array(Array::Str(pieces))));
        all.push(("tokenizer.ggml.scores".into(), Value::from(vec![0f32; VOCABULARY])));
        let types: Vec<i32> = (0..VOCABULARY)
            .map(|i| {
                if i == 0 {
                    2
                } else if i < 3 {
                    3
                } else {
                    1
                }
            })
            .collect();
        all.push(("tokenizer.ggml.token_type".into(), Value::from(types)));
        all.push(("tokenizer.ggml.add_space_prefix".into(), Value::Bool(false)));
        all
    }

    /// The tensors of a file of that form.
    pub fn tensors(&self, form: &Form<'_>) -> Vec<(TensorPlan, Vec<u8>)> {
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize], values: &[f32]| {
            let ty = (form.ty)(&name);
            let dims: Vec<usize> = shape.iter().rev().copied().collect();
            let mut bytes = vec![0; ty.row_bytes(dims[0]).unwrap() * dims[1..].iter().product::<usize>()];
            block::quantize(ty, values, None, &mut bytes);
            all.push((TensorPlan { name, ty, dims }, bytes));
        };
        for (name, (shape, values)) in &self.weights {
            if !name.contains("_exps") || form.runs.is_empty() {
                add(name.clone(), shape, values);
                continue;
            }
            let one = shape[1] * shape[2];
            let ends = form.runs.iter().skip(1).copied().chain([self.experts]);
            for (first, end) in form.runs.iter().copied().zip(ends) {
                let name = name.replace(".weight", &format!(".{first}.weight"));
                add(name, &[end - first, shape[1], shape[2]], &values[first * one..end * one]);
            }
        }
        all
    }

    /// Writes a file of that form.
    pub fn write(&self, path: &Path, form: &Form<'_>) {
        write(path, self.metadata(form.arch), &self.tensors(form));
    }

    /// These weights as `ty` keeps them.
    pub fn rounded(&self, ty: &dyn Fn(&str) -> GgmlType) -> Model {
        let mut model = self.clone();
        for (name, (shape, values)) in &mut model.weights {
            let ty = ty(name);
            let mut bytes = vec![0; ty.row_bytes(*shape.last().unwrap()).unwrap() * (values.len() / shape.last().unwrap())];
            block::quantize(ty, values, None, &mut bytes);
            block::dequantize(ty, &bytes, values);
        }
        model
    }

    fn tensor(&self, layer: usize, name: &str) -> &[f32] {
        &self.weights[&format!("blk.{layer}.{name}.weight")].1
    }

    /// Logits after every token, in `f64` and without any cleverness; `rows` `[n, DIM]` stand after the first token.
    /// What comes back is one row per position, picture rows included, and the experts that each layer chose per position.
    pub fn logits(&self, ids: &[u32], rows: &[f32]) -> (Vec<Vec<f64>>, Vec<Vec<Vec<usize>>>) {
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let embed = |id: &u32| wide(&self.weights["token_embd.weight"].1[*id as usize * DIM..][..DIM]);
        let mut xs: Vec<Vec<f64>> = vec![embed(&ids[0])];
        xs.extend(rows.chunks(DIM).map(wide));
        xs.extend(ids[1..].iter().map(embed));
        let mut routes = Vec::new();
        for i in 0..LAYERS {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            let mut chosen = Vec::new();
            for (position, x) in xs.iter_mut().enumerate() {
                let normed = norm(x, self.tensor(i, "attn_norm"));
                let (q, k) =
                    (rotate(mul(self.tensor(i, "attn_q"), &normed), position), rotate(mul(self.tensor(i, "attn_k"), &normed), position));
                keys.push(k);
                values.push(mul(self.tensor(i, "attn_v"), &normed));
                let mut mixed = vec![0.0; DIM];
                for head in 0..HEADS {
                    let of = head / (HEADS / KV_HEADS) * HEAD_DIM;
                    let q = &q[head * HEAD_DIM..][..HEAD_DIM];
                    let scores: Vec<f64> = keys.iter().map(|k| dot(q, &k[of..of + HEAD_DIM]) / (HEAD_DIM as f64).sqrt()).collect();
                    for (p, v) in softmax(&scores).iter().zip(&values) {
                        (0..HEAD_DIM).for_each(|c| mixed[head * HEAD_DIM + c] += p * v[of + c]);
                    }
                }
                add(x, &mul(self.tensor(i, "attn_output"), &mixed), 1.0);
                let normed = norm(x, self.tensor(i, "ffn_norm"));
                if self.experts == 0 {
                    add(x, &feed(self.tensor(i, "ffn_gate"), self.tensor(i, "ffn_up"), self.tensor(i, "ffn_down"), &normed), 1.0);
                    continue;
                }
                let p = softmax(&mul(self.tensor(i, "ffn_gate_inp"), &normed));
                let mut best: Vec<usize> = (0..self.experts).collect();
                best.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
                best.truncate(self.used);
                let sum: f64 = best.iter().map(|&e| p[e]).sum();
                for &e in &best {
                    let part = |name| &self.tensor(i, name)[e * HIDDEN * DIM..][..HIDDEN * DIM];
                    add(x, &feed(part("ffn_gate_exps"), part("ffn_up_exps"), part("ffn_down_exps"), &normed), p[e] / sum);
                }
                chosen.push(best);
            }
            routes.push(chosen);
        }
        let logits = xs.iter().map(|x| mul(&self.weights["output.weight"].1, &norm(x, &self.weights["output_norm.weight"].1)));
        (logits.collect(), routes)
    }
}

/// Writes a file of these metadata and tensors.
pub fn write(path: &Path, metadata: Vec<(String, Value)>, tensors: &[(TensorPlan, Vec<u8>)]) {
    let plan = Plan { metadata, tensors: tensors.iter().map(|t| t.0.clone()).collect(), alignment: 32 };
    let mut writer = Writer::create(path, plan).unwrap();
    for (_, bytes) in tensors {
        writer.write(bytes).unwrap();
    }
    writer.finish().unwrap().commit().unwrap();
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn mul(matrix: &[f32], x: &[f64]) -> Vec<f64> {
    matrix.chunks(x.len()).map(|row| row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum()).collect()
}

fn add(x: &mut [f64], y: &[f64], scale: f64) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += scale * y);
}

fn norm(x: &[f64], weight: &[f32]) -> Vec<f64> {
    let scale = 1.0 / (dot(x, x) / x.len() as f64 + f64::from(EPS)).sqrt();
    x.iter().zip(weight).map(|(x, &w)| x * scale * f64::from(w)).collect()
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|x| (x - largest).exp()).sum();
    x.iter().map(|x| (x - largest).exp() / sum).collect()
}

fn rotate(mut x: Vec<f64>, position: usize) -> Vec<f64> {
    for head in x.chunks_mut(HEAD_DIM) {
        for (i, pair) in head.chunks_mut(2).enumerate() {
            let angle = position as f64 * f64::from(ROPE_BASE).powf(-2.0 * i as f64 / HEAD_DIM as f64);
            let (a, b) = (pair[0], pair[1]);
            pair.copy_from_slice(&[a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]);
        }
    }
    x
}

fn feed(gate: &[f32], up: &[f32], down: &[f32], x: &[f64]) -> Vec<f64> {
    let hidden: Vec<f64> = mul(gate, x).iter().zip(mul(up, x)).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    mul(down, &hidden)
}
