//! Mixtures of experts: against a naive model in `f64`, in every form a file may have, and in forms it may not.

mod support;

use std::path::PathBuf;

use proptest::prelude::*;
use sphinx_quant::gguf::Value;
use sphinx_quant::gguf::write::TensorPlan;
use sphinx_quant::imatrix::Imatrix;
use sphinx_quant::{ErrorKind, GgmlType};
use sphinx_runtime::imatrix::Collector;
use sphinx_runtime::{Options, RuntimeError, Sphinx};
use sphinx_targets::cpu::{CpuOptions, CpuTarget};
use sphinx_targets::{KvType, Target};
use support::{DIM, Form, LAYERS, Model, VOCABULARY};

/// A sequence of some length without a pattern.
fn ids(n: usize) -> Vec<u32> {
    (0..n).map(|i| (i * i * 7 + 3 * i + 1) as u32 % VOCABULARY as u32).collect()
}

struct Saved {
    folder: tempfile::TempDir,
}

impl Saved {
    fn new(model: &Model, form: &Form<'_>) -> Saved {
        let saved = Saved { folder: tempfile::tempdir().unwrap() };
        model.write(&saved.path(), form);
        saved
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("model.gguf")
    }

    fn on<T: Target>(&self, target: T, chunk: usize) -> Result<Sphinx<T>, RuntimeError> {
        Sphinx::open(target, &self.path(), &Options { chunk: Some(chunk), kv: Some(KvType::F32), ..Options::default() })
    }

    fn open(&self) -> Result<Sphinx<CpuTarget>, RuntimeError> {
        self.on(cpu(1, false), 512)
    }

    fn logits(&self, threads: usize, chunk: usize, f32_activations: bool) -> Vec<f32> {
        self.on(cpu(threads, f32_activations), chunk).unwrap().session().unwrap().logits(&ids(40), None).unwrap()
    }
}

fn cpu(threads: usize, f32_activations: bool) -> CpuTarget {
    CpuTarget::new(CpuOptions { threads: Some(threads), f32_activations, ..CpuOptions::default() }).unwrap()
}

fn worst(ours: &[f32], theirs: &[Vec<f64>]) -> f64 {
    assert_eq!(ours.len(), theirs.len() * VOCABULARY);
    ours.iter().zip(theirs.concat()).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}

#[test]
fn logits_are_those_of_the_naive_model() {
    for (seed, experts, used) in [(1, 8, 2), (2, 3, 1), (3, 5, 3), (4, 2, 2), (5, 1, 1), (6, 0, 0)] {
        let model = Model::random(seed, experts, used);
        let file = Saved::new(&model, &Form::PLAIN);
        let sphinx = file.open().unwrap();
        assert_eq!((sphinx.params().experts, sphinx.params().experts_used), (experts, used));
        let ours = sphinx.session().unwrap().logits(&ids(40), None).unwrap();
        let (theirs, routes) = model.logits(&ids(40), &[]);
        let worst = worst(&ours, &theirs);
        assert!(worst < 1e-4, "{experts} experts, {used} used: differs by {worst}");
        // The choice differs from row to row, or this shows little.
        assert!(experts <= used || routes[0].iter().any(|r| *r != routes[0][0]));
    }
}

#[test]
fn results_do_not_depend_on_chunks_or_threads() {
    let model = Model::random(11, 8, 2);
    for ty in [GgmlType::F32, GgmlType::F16, GgmlType::Q8_0, GgmlType::Q4_0] {
        let file = Saved::new(&model, &Form { ty: &|name| if name.contains("_exps") { ty } else { GgmlType::F32 }, ..Form::PLAIN });
        let one = file.logits(1, 512, false);
        for (threads, chunk) in [(1, 1), (1, 3), (2, 16), (3, 512), (2, 1), (5, 39)] {
            assert_eq!(file.logits(threads, chunk, false), one, "{ty}: {threads} threads, chunks of {chunk}");
        }
        // Token by token.
        let sphinx = file.open().unwrap();
        let mut session = sphinx.session().unwrap();
        let all = ids(40);
        session.prefill(&all[..1], None).unwrap();
        for (n, &id) in all.iter().enumerate().skip(1) {
            assert_eq!(session.step(id).unwrap(), &one[n * VOCABULARY..(n + 1) * VOCABULARY], "{ty}: token {n}");
        }
    }
}

#[test]
fn quantised_experts_are_their_rounded_weights() {
    let model = Model::random(12, 8, 2);
    for ty in [GgmlType::F16, GgmlType::BF16, GgmlType::Q8_0, GgmlType::Q5_1, GgmlType::Q4_0] {
        let ty = |name: &str| if name.contains("_exps") || name.contains("attn_q.") { ty } else { GgmlType::F32 };
        let ours = Saved::new(&model, &Form { ty: &ty, ..Form::PLAIN }).logits(1, 512, true);
        let worst = worst(&ours, &model.rounded(&ty).logits(&ids(40), &[]).0);
        assert!(worst < 1e-4, "{}: differs by {worst}", ty("_exps"));
    }
}

#[test]
fn a_router_in_half_precision_is_read_too() {
    let model = Model::random(13, 8, 2);
    for ty in [GgmlType::F16, GgmlType::BF16] {
        let ty = |name: &str| if name.contains("_inp") { ty } else { GgmlType::F32 };
        let ours = Saved::new(&model, &Form { ty: &ty, ..Form::PLAIN }).logits(1, 512, true);
        assert!(worst(&ours, &model.rounded(&ty).logits(&ids(40), &[]).0) < 1e-4);
    }
}

#[test]
fn stacks_that_are_cut_into_runs_are_the_same_model() {
    let model = Model::random(14, 8, 2);
    let whole = Saved::new(&model, &Form::PLAIN).logits(1, 512, false);
    for runs in [&[0, 4][..], &[0, 1, 2, 7], &[0, 1, 2, 3, 4, 5, 6, 7], &[0]] {
        let cut = Saved::new(&model, &Form { arch: "sphinx-llama", runs, ..Form::PLAIN });
        assert_eq!(cut.logits(1, 512, false), whole, "{runs:?}");
    }
    // Experts of different types, and matrices of an expert cut in different places.
    let ty = |name: &str| match name {
        n if n.contains("_down_exps.6") || n.contains("_up_exps.0") => GgmlType::Q8_0,
        n if n.contains("_gate_exps.6") => GgmlType::F16,
        _ => GgmlType::F32,
    };
    let cut = Saved::new(&model, &Form { arch: "sphinx-llama", ty: &ty, runs: &[0, 6] });
    let mut rounded = model.clone();
    for (name, (shape, values)) in &mut rounded.weights {
        let one = shape[1..].iter().product::<usize>();
        for (first, range) in [(0, 0..6), (6, 6..8)] {
            let ty = ty(&name.replace(".weight", &format!(".{first}.weight")));
            if name.contains("_exps") && ty != GgmlType::F32 {
                let part = Model {
                    experts: 0,
                    used: 0,
                    weights: [("w".into(), (vec![1, shape[2]], values[range.start * one..range.end * one].to_vec()))].into(),
                };
                values[range.start * one..range.end * one].copy_from_slice(&part.rounded(&|_| ty).weights["w"].1);
            }
        }
    }
    let worst = worst(&cut.logits(1, 512, true), &rounded.logits(&ids(40), &[]).0);
    assert!(worst < 1e-4, "differs by {worst}");
}

#[test]
fn other_architectures_with_experts() {
    let model = Model::random(15, 4, 2);
    let one = Saved::new(&model, &Form::PLAIN).logits(1, 512, false);
    for arch in ["internlm2", "sphinx-llama"] {
        assert_eq!(Saved::new(&model, &Form { arch, ..Form::PLAIN }).logits(1, 512, false), one);
    }
}

#[cfg(feature = "candle")]
#[test]
fn candle_computes_the_same() {
    use sphinx_targets::candle::CandleTarget;
    let model = Model::random(16, 8, 2);
    for (ty, bound) in [(GgmlType::F32, 1e-4), (GgmlType::Q8_0, 1e-4)] {
        let ty = |name: &str| if name.contains("_exps") { ty } else { GgmlType::F32 };
        let file = Saved::new(&model, &Form { ty: &ty, ..Form::PLAIN });
        let theirs = model.rounded(&ty).logits(&ids(40), &[]).0;
        for chunk in [512, 7] {
            let sphinx = file.on(CandleTarget::cpu().unwrap(), chunk).unwrap();
            let ours = sphinx.session().unwrap().logits(&ids(40), None).unwrap();
            let worst = worst(&ours, &theirs);
            assert!(worst < bound, "{}, chunks of {chunk}: differs by {worst}", ty("_exps"));
        }
    }
}

/// A mixture's file that can be spoiled.
struct Edit {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(TensorPlan, Vec<u8>)>,
}

impl Edit {
    fn new(runs: &[usize]) -> Edit {
        let model = Model::random(17, 8, 2);
        let arch = if runs.is_empty() { "llama" } else { "sphinx-llama" };
        Edit { metadata: model.metadata(arch), tensors: model.tensors(&Form { arch, runs, ..Form::PLAIN }) }
    }

    fn set(mut self, key: &str, value: Value) -> Edit {
        self.metadata.retain(|(k, _)| k != key);
        self.metadata.push((key.into(), value));
        self
    }

    fn without(mut self, name: &str) -> Edit {
        let before = self.metadata.len() + self.tensors.len();
        self.metadata.retain(|(k, _)| k != name);
        self.tensors.retain(|t| t.0.name != name);
        assert_eq!(before, self.metadata.len() + self.tensors.len() + 1, "{name}");
        self
    }

    fn with(mut self, name: &str, ty: GgmlType, dims: &[usize]) -> Edit {
        self.tensors.retain(|t| t.0.name != name);
        let bytes = vec![0; ty.row_bytes(dims[0]).unwrap() * dims[1..].iter().product::<usize>()];
        self.tensors.push((TensorPlan { name: name.into(), ty, dims: dims.to_vec() }, bytes));
        self
    }

    #[track_caller]
    fn refused(self, words: &[&str]) {
        let saved = Saved { folder: tempfile::tempdir().unwrap() };
        support::write(&saved.path(), self.metadata, &self.tensors);
        let Err(e) = saved.open() else { panic!("was not refused, expected {words:?}") };
        assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
        let message = e.to_string();
        assert!(message.starts_with(&saved.path().display().to_string()), "{message}");
        assert!(words.iter().all(|w| message.contains(w)), "{message}: expected {words:?}");
    }
}

#[test]
fn counts_of_experts_that_make_no_sense() {
    let whole = || Edit::new(&[]);
    whole().set("llama.expert_count", Value::U32(u32::MAX)).refused(&["llama.expert_count", "at most 1024"]);
    whole().set("llama.expert_count", Value::U32(0)).refused(&["llama.expert_used_count", "no experts"]);
    whole().without("llama.expert_count").refused(&["llama.expert_used_count", "no experts"]);
    whole().set("llama.expert_count", Value::Str("8".into())).refused(&["llama.expert_count"]);
    whole().set("llama.expert_count", Value::I32(-8)).refused(&["llama.expert_count"]);
    whole().set("llama.expert_count", Value::U32(7)).refused(&["ffn_gate_inp", "expected [7, 64]"]);
    for used in [0, 9, u32::MAX] {
        whole().set("llama.expert_used_count", Value::U32(used)).refused(&["llama.expert_used_count", "expected 1 to 8"]);
    }
    whole().without("llama.expert_used_count").refused(&["llama.expert_used_count"]);
    whole().set("llama.expert_shared_count", Value::U32(1)).refused(&["expert_shared_count", "Mixtral"]);
    whole().set("llama.expert_gating_func", Value::U32(2)).refused(&["expert_gating_func", "Mixtral"]);
    whole().set("llama.expert_feed_forward_length", Value::U32(97)).refused(&["expert_feed_forward_length"]);
    whole().set("llama.expert_weights_scale", Value::F32(2.5)).refused(&["expert_weights_scale"]);
    whole().set("llama.expert_weights_norm", Value::Bool(false)).refused(&["expert_weights_norm"]);
}

#[test]
fn stacks_that_do_not_fit() {
    let whole = || Edit::new(&[]);
    for stack in ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_inp"] {
        let name = format!("blk.1.{stack}.weight");
        whole().without(&name).refused(&["missing", &name]);
        whole().with(&name, GgmlType::F32, &[64, 96]).refused(&[&name, "expected ["]);
        whole().with(&name, GgmlType::F32, &[64, 96, 7]).refused(&[&name, "expected ["]);
        whole().with(&name, GgmlType::F32, &[96, 64, 9]).refused(&[&name, "expected ["]);
        whole().with(&name, GgmlType::F32, &[64, 96, 4, 2]).refused(&[&name, "expected ["]);
    }
    whole().with("blk.0.ffn_gate_inp.weight", GgmlType::Q8_0, &[64, 8]).refused(&["ffn_gate_inp", "Q8_0", "plain float"]);
    whole().with("blk.0.ffn_gate_inp.bias", GgmlType::F32, &[8]).refused(&["ffn_gate_inp.bias", "llama model has not"]);
    whole().with("blk.0.exp_probs_b.bias", GgmlType::F32, &[8]).refused(&["exp_probs_b", "llama model has not"]);
    whole().with("blk.0.ffn_gate_shexp.weight", GgmlType::F32, &[64, 96]).refused(&["ffn_gate_shexp", "beside its experts"]);
    whole().with("blk.0.ffn_up.weight", GgmlType::F32, &[64, 96]).refused(&["blk.0.ffn_up.weight", "beside its experts"]);
    whole().with("blk.2.ffn_up_exps.weight", GgmlType::F32, &[64, 96, 8]).refused(&["blk.2.", "2 layers"]);
    // One tensor per expert, as it was once done; named before anything that is missing because of it.
    let old = whole().without("blk.0.ffn_gate_exps.weight").with("blk.0.ffn_gate.3.weight", GgmlType::F32, &[64, 96]);
    old.refused(&["blk.0.ffn_gate.3.weight", "one expert", "not stacked", "convert the model again"]);
    // A dense model with parts of a mixture.
    let dense = |name: &str| {
        let model = Model::random(18, 0, 0);
        let edit = Edit { metadata: model.metadata("llama"), tensors: model.tensors(&Form::PLAIN) };
        edit.with(name, GgmlType::F32, &[64, 96, 2]).refused(&[name, "metadata say that the model is dense"]);
    };
    ["blk.0.ffn_up_exps.weight", "blk.0.ffn_up_exps.2.weight", "blk.0.ffn_up.2.weight", "blk.0.ffn_gate_inp.weight"]
        .into_iter()
        .for_each(dense);
}

#[test]
fn runs_with_gaps_or_overlaps() {
    let cut = || Edit::new(&[0, 3, 6]);
    cut().without("blk.0.ffn_up_exps.3.weight").refused(&["blk.0.ffn_up_exps.3.weight", "missing", "experts 3 to 7 of 8"]);
    cut().without("blk.0.ffn_up_exps.0.weight").refused(&["blk.0.ffn_up_exps.weight", "missing"]);
    cut().without("blk.0.ffn_up_exps.6.weight").refused(&["blk.0.ffn_up_exps.6.weight", "missing", "6 to 7"]);
    let name = "blk.0.ffn_up_exps.3.weight";
    cut().with(name, GgmlType::F32, &[64, 96, 2]).refused(&["blk.0.ffn_up_exps.5.weight", "missing"]);
    cut().with(name, GgmlType::F32, &[64, 96, 4]).refused(&["blk.0.ffn_up_exps.7.weight", "missing"]);
    cut().with(name, GgmlType::F32, &[64, 96, 5]).refused(&["blk.0.ffn_up_exps.6.weight", "another tensor too"]);
    cut().with(name, GgmlType::F32, &[64, 96, 6]).refused(&[name, "holds 6 experts from 3 on", "8 in all"]);
    cut().with(name, GgmlType::F32, &[64, 96, 1, 3]).refused(&[name, "holds 0 experts"]);
    cut().with(name, GgmlType::F32, &[96, 64, 3]).refused(&[name, "expected [3, 96, 64]"]);
    cut().with("blk.0.ffn_up_exps.8.weight", GgmlType::F32, &[64, 96, 1]).refused(&["ffn_up_exps.8", "another tensor too"]);
    cut().with("blk.0.ffn_up_exps.03.weight", GgmlType::F32, &[64, 96, 3]).refused(&["ffn_up_exps.03"]);
    // Beside a whole stack.
    Edit::new(&[]).with(name, GgmlType::F32, &[64, 96, 3]).refused(&[name, "another tensor too"]);
}

#[test]
fn numbers_that_are_none_in_a_router_end_the_run() {
    let model = Model::random(19, 8, 2);
    for spoil in [f32::NAN, f32::INFINITY] {
        let mut model = model.clone();
        model.weights.get_mut("blk.0.ffn_gate_inp.weight").unwrap().1[5] = spoil;
        let file = Saved::new(&model, &Form::PLAIN);
        let e = file.open().unwrap().session().unwrap().logits(&ids(3), None).unwrap_err();
        assert!(matches!(e, RuntimeError::NotFinite { .. }), "{e}");
    }
}

/// What the recorded importance of `blk.{layer}.{name}.weight` must be: from the naive model's activations.
fn collected(model: &Model, form: &Form<'_>, texts: &[&str], context: usize) -> Imatrix {
    let file = Saved::new(model, form);
    let target = CpuTarget::new(CpuOptions { threads: Some(2), record: true, ..CpuOptions::default() }).unwrap();
    let options = Options { context: Some(context), kv: Some(KvType::F32), chunk: Some(5), ..Options::default() };
    let sphinx = Sphinx::open(target, &file.path(), &options).unwrap();
    let mut collector = Collector::new(&sphinx).unwrap();
    texts.iter().for_each(|text| collector.add(&[], text).unwrap());
    collector.finish()
}

#[test]
fn importance_is_collected_per_expert() {
    let model = Model::random(20, 8, 2);
    let text: String = (0..30u8).map(|i| char::from(b'D' + i * 7 % 40)).collect();
    let matrix = collected(&model, &Form::PLAIN, &[&text], 256);
    assert_eq!((matrix.chunks, matrix.chunk_size), (1, 256));
    let mut names: Vec<&str> =
        model.weights.iter().filter(|(n, w)| w.0.len() > 1 && *n != "token_embd.weight").map(|(n, _)| n.as_str()).collect();
    names.sort_unstable();
    assert_eq!(matrix.names().collect::<Vec<_>>(), names);
    // Runs of a stack go by the name of the whole.
    let cut = collected(&model, &Form { arch: "sphinx-llama", runs: &[0, 3, 4], ..Form::PLAIN }, &[&text], 256);
    assert_eq!(cut.names().collect::<Vec<_>>(), names);
    for name in &names {
        for expert in 0..if name.contains("_exps") { 8 } else { 1 } {
            let cols = *model.weights[*name].0.last().unwrap();
            assert_eq!(matrix.weights(name, expert, cols).unwrap(), cut.weights(name, expert, cols).unwrap(), "{name} {expert}");
        }
    }
    // Gate and up see what the router sees, by the experts it chose: together as much as there was.
    let ids: Vec<u32> = [1].into_iter().chain(text.bytes().map(|b| u32::from(b - b'A'))).collect();
    let routes = model.logits(&ids, &[]).1;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("imatrix.gguf");
    matrix.write(&path).unwrap();
    let file = sphinx_quant::gguf::Gguf::open(&path).unwrap();
    assert_eq!(routes.len(), LAYERS);
    for (layer, routes) in routes.iter().enumerate() {
        for stack in ["gate", "up", "down"] {
            let counts = file.tensor(&format!("blk.{layer}.ffn_{stack}_exps.weight.counts")).unwrap();
            let expected: Vec<f32> = (0..8).map(|e| routes.iter().filter(|r| r.contains(&e)).count() as f32).collect();
            assert_eq!(counts.blocks::<f32>(), expected, "layer {layer}, {stack}");
        }
    }
    let counts = file.tensor("output.weight.counts").unwrap();
    assert_eq!(counts.blocks::<f32>(), [ids.len() as f32]);
    let sums = |name: &str| file.tensor(&format!("{name}.in_sum2")).unwrap().blocks::<f32>().to_vec();
    let (router, gate) = (sums("blk.1.ffn_gate_inp.weight"), sums("blk.1.ffn_gate_exps.weight"));
    for (c, one) in router.iter().enumerate() {
        let all: f32 = gate.iter().skip(c).step_by(DIM).sum();
        assert!((all - 2.0 * one).abs() <= 1e-4 * all, "column {c}: {all} of {one}");
    }
}

#[test]
fn a_text_longer_than_the_context_goes_on_in_another_sequence() {
    let model = Model::random(21, 4, 1);
    let matrix = collected(&model, &Form::PLAIN, &["DEFGHIJKLMNOP", "", "DE"], 6);
    assert_eq!(matrix.chunks, 5); // 13 tokens, five at a time after the begin token; none; two
}

#[test]
fn a_target_that_does_not_record_is_named() {
    let file = Saved::new(&Model::random(22, 4, 1), &Form::PLAIN);
    let sphinx = file.open().unwrap();
    let e = Collector::new(&sphinx).unwrap().add(&[], "D").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Usage);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn any_mixture_is_the_naive_one(seed in 100u64..200, experts in 1usize..12, used in 1usize..4, chunk in 1usize..20) {
        let model = Model::random(seed, experts, used.min(experts));
        let file = Saved::new(&model, &Form::PLAIN);
        let ours = file.on(cpu(2, false), chunk).unwrap().session().unwrap().logits(&ids(17), None).unwrap();
        let (theirs, _) = model.logits(&ids(17), &[]);
        prop_assert!(worst(&ours, &theirs) < 2e-4, "differs by {}", worst(&ours, &theirs));
    }
}
