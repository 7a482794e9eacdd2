//! Model file to model file: stacks of experts cut and joined, columns weighed.

use std::path::{Path, PathBuf};

use sphinx_convert::*;
use sphinx_quant::block::dequantize;
use sphinx_quant::gguf::{Gguf, Plan, TensorPlan, Writer};
use sphinx_quant::imatrix::Imatrix;
use sphinx_quant::recipe::Recipe;
use sphinx_quant::{ErrorKind, GgmlType, Tensor};
use tempfile::TempDir;

fn recipe(name: &str) -> Recipe {
    Recipe::named(name).unwrap()
}

fn own(text: &str) -> Recipe {
    Recipe::parse("own", text).unwrap()
}

fn options(input: &Path, output: &Path, quant: Recipe) -> QuantizeOptions {
    let (input, output) = (input.to_owned(), output.to_owned());
    QuantizeOptions { input, output, quant, imatrix: None, threads: 2, max_memory: None, force: true }
}

/// A made-up language half of the family, in the format.
fn made(family: &str, quant: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("made.gguf");
    let o = SynthOptions { vision: false, quant: Some(recipe(quant)), ..SynthOptions::new(family, "nano", output.clone()) };
    synth(&o, &()).unwrap();
    (dir, output)
}

fn numbers(t: &Tensor) -> Vec<f32> {
    let mut out = vec![0.0; t.len()];
    dequantize(t.ty(), t.bytes(), &mut out);
    out
}

/// Some experts in F16 and the others in F32.
const CUT: &str = r#"
    base = "F16"
    [[rule]]
    pattern = "blk.*.ffn_down_exps.weight"
    experts = "0-1,6"
    type = "F32"
    [[rule]]
    pattern = "blk.*.ffn_up_exps.weight"
    layers = "1"
    experts = "3"
    type = "F32"
"#;

#[test]
fn stacks_are_cut_and_joined() {
    let (dir, input) = made("moe", "F16");
    let (cut, joined) = (dir.path().join("cut.gguf"), dir.path().join("joined.gguf"));
    let report = quantize(&options(&input, &cut, own(CUT)), &()).unwrap();
    assert_eq!(report.bytes(), std::fs::metadata(&cut).unwrap().len());
    let (a, b) = (Gguf::open(&input).unwrap(), Gguf::open(&cut).unwrap());
    assert_eq!((a.arch(), b.arch()), ("llama", "sphinx-llama"));
    assert_eq!((b.alignment(), b.u32("sphinx-llama.expert_count").unwrap()), (16384, 8));
    assert!(b.get("llama.expert_count").is_none() && a.metadata().len() == b.metadata().len());
    let runs: Vec<_> =
        b.tensors().iter().filter(|t| t.name().contains("blk.0.ffn_down_exps")).map(|t| (t.name(), t.ty(), t.dims()[2])).collect();
    use GgmlType::{F16, F32};
    assert_eq!(
        runs,
        [
            ("blk.0.ffn_down_exps.0.weight", F32, 2),
            ("blk.0.ffn_down_exps.2.weight", F16, 4),
            ("blk.0.ffn_down_exps.6.weight", F32, 1),
            ("blk.0.ffn_down_exps.7.weight", F16, 1)
        ]
    );
    assert!(b.find("blk.0.ffn_up_exps.weight").is_some() && b.find("blk.1.ffn_up_exps.3.weight").is_some());
    let whole = numbers(a.tensor("blk.0.ffn_down_exps.weight").unwrap());
    let parts: Vec<f32> = b.tensors().iter().filter(|t| t.name().contains("blk.0.ffn_down_exps")).flat_map(numbers).collect();
    assert!(whole == parts);
    // And back: the file it was.
    quantize(&options(&cut, &joined, recipe("F16")), &()).unwrap();
    assert!(std::fs::read(&joined).unwrap() == std::fs::read(&input).unwrap());
    // From runs to other runs.
    let other = dir.path().join("other.gguf");
    quantize(&options(&cut, &other, own("base = \"F16\"\n[[rule]]\npattern = \"*_exps.weight\"\nexperts = \"1-4\"\ntype = \"F32\"")), &())
        .unwrap();
    let again = dir.path().join("again.gguf");
    quantize(&options(&other, &again, own(CUT)), &()).unwrap();
    assert!(std::fs::read(&again).unwrap() == std::fs::read(&cut).unwrap());
    for path in [&cut, &joined, &other] {
        assert!(verify(path, None, &()).unwrap().ok);
    }
}

#[test]
fn cutting_does_not_depend_on_threads_or_budget() {
    let (dir, input) = made("moe", "F16");
    let text = "base = \"Q4_K_M\"\n[[rule]]\npattern = \"*_exps.weight\"\nexperts = \"1,4-5\"\ntype = \"Q8_0\"";
    let mut first = None;
    for (threads, max_memory) in [(1, None), (3, Some(96 << 20))] {
        let output = dir.path().join("cut.gguf");
        quantize(&QuantizeOptions { threads, max_memory, ..options(&input, &output, own(text)) }, &()).unwrap();
        let bytes = std::fs::read(&output).unwrap();
        assert!(*first.get_or_insert_with(|| bytes.clone()) == bytes);
    }
}

#[test]
fn a_mixture_is_mixed_as_stock_tools_mix_it() {
    let (dir, input) = made("moe", "F16");
    let output = dir.path().join("q.gguf");
    quantize(&options(&input, &output, recipe("Q4_K_M")), &()).unwrap();
    let g = Gguf::open(&output).unwrap();
    let ty = |name: &str| g.tensor(name).unwrap().ty();
    assert_eq!((ty("blk.0.attn_k.weight"), ty("blk.1.attn_v.weight")), (GgmlType::Q8_0, GgmlType::Q8_0));
    assert_eq!((ty("blk.0.attn_output.weight"), ty("blk.0.ffn_gate_inp.weight")), (GgmlType::Q5_K, GgmlType::F32));
    assert_eq!((ty("blk.0.ffn_up_exps.weight"), ty("output.weight")), (GgmlType::Q4_K, GgmlType::Q6_K));
}

/// How much the columns of a matrix count in this test: a few of them far more.
fn skewed(cols: usize, seed: usize) -> Vec<f64> {
    (0..cols).map(|c| if (c * 7 + seed).is_multiple_of(16) { 900.0 } else { 1.0 + (c % 5) as f64 }).collect()
}

/// The weighted mean squared error of each expert.
fn errors(whole: &Gguf, got: &Gguf, name: &str, weights: impl Fn(usize) -> Vec<f64>) -> Vec<f64> {
    let (a, b) = (whole.tensor(name).unwrap(), got.tensor(name).unwrap());
    let experts = a.dims().get(2).copied().unwrap_or(1);
    let (a, b, cols) = (numbers(a), numbers(b), a.cols());
    let of = |e: usize| {
        let n = a.len() / experts;
        let w = weights(e);
        let pairs = a[e * n..(e + 1) * n].iter().zip(&b[e * n..(e + 1) * n]).enumerate();
        pairs.map(|(i, (x, y))| w[i % cols] * f64::from(x - y).powi(2)).sum::<f64>()
    };
    (0..experts).map(of).collect()
}

#[test]
fn weights_lower_the_weighted_error_of_every_format_and_expert() {
    let (dir, input) = made("moe", "F32");
    let (stack, matrix) = ("blk.0.ffn_up_exps.weight", "blk.1.attn_q.weight");
    let mut m = Imatrix::new();
    for e in 0..8 {
        m.add(stack, 8, e, &skewed(256, 3 * e), 1);
    }
    m.add(matrix, 1, 0, &skewed(256, 1), 1);
    let imatrix = dir.path().join("m.gguf");
    m.write(&imatrix).unwrap();
    let whole = Gguf::open(&input).unwrap();
    for ty in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"] {
        let text = format!("base = \"F32\"\n[[rule]]\npattern = \"blk.*\"\ntype = \"{ty}\"");
        let (plain, weighted) = (dir.path().join("plain.gguf"), dir.path().join("weighted.gguf"));
        quantize(&options(&input, &plain, own(&text)), &()).unwrap();
        let o = QuantizeOptions { imatrix: Some(imatrix.clone()), ..options(&input, &weighted, own(&text)) };
        let report = quantize(&o, &()).unwrap();
        assert!(report.warnings.len() == 1 && report.warnings[0].contains("2 tensors"), "{:?}", report.warnings);
        let (p, w) = (Gguf::open(&plain).unwrap(), Gguf::open(&weighted).unwrap());
        let lower = |name: &str, weights: &dyn Fn(usize) -> Vec<f64>| {
            let (a, b) = (errors(&whole, &p, name, weights), errors(&whole, &w, name, weights));
            assert!(a.iter().zip(&b).all(|(a, b)| b < &(0.97 * a)), "{ty} {name}: {a:?} without, {b:?} with");
        };
        lower(stack, &|e| skewed(256, 3 * e));
        lower(matrix, &|_| skewed(256, 1));
        // What the matrix does not know is as without it.
        for t in p.tensors().iter().filter(|t| t.name() != stack && t.name() != matrix) {
            assert!(t.bytes() == w.tensor(t.name()).unwrap().bytes(), "{ty} {}", t.name());
        }
    }
}

#[test]
fn converting_weighs_as_quantising_does() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("made");
    synth(&SynthOptions::new("moe", "nano", checkpoint.clone()), &()).unwrap();
    let mut m = Imatrix::new();
    for e in 0..8 {
        m.add("blk.0.ffn_down_exps.weight", 8, e, &skewed(256, e), 1);
    }
    m.add("v.clip.0.fc1.weight", 1, 0, &skewed(256, 2), 1);
    let imatrix = dir.path().join("m.gguf");
    m.write(&imatrix).unwrap();
    let cut =
        "base = \"Q4_K_M\"\nvision_base = \"Q4_K_S\"\n[[rule]]\npattern = \"*ffn_down_exps.weight\"\nexperts = \"2,5\"\ntype = \"Q3_K\"";
    let to = |name: &str| dir.path().join(format!("{name}.gguf"));
    convert(&ConvertOptions::new(vec![checkpoint.clone()], to("whole"), recipe("F32"), recipe("F32")), &()).unwrap();
    let mut o = ConvertOptions::new(vec![checkpoint], to("direct"), own(cut), own(cut));
    convert(&o, &()).unwrap();
    let unweighted = [to("direct"), to("mmproj-direct")].map(|p| std::fs::read(p).unwrap());
    (o.imatrix, o.force) = (Some(imatrix.clone()), true);
    convert(&o, &()).unwrap();
    for (i, (from, name)) in [("whole", "direct"), ("mmproj-whole", "mmproj-direct")].into_iter().enumerate() {
        let q = QuantizeOptions { imatrix: Some(imatrix.clone()), ..options(&to(from), &to("again"), own(cut)) };
        quantize(&q, &()).unwrap();
        let direct = std::fs::read(to(name)).unwrap();
        assert!(direct == std::fs::read(to("again")).unwrap(), "{name}");
        assert!(direct != unweighted[i], "{name}: the weights did nothing");
    }
}

#[test]
fn an_importance_matrix_of_another_model() {
    let (dir, input) = made("tiny", "F32");
    let mut m = Imatrix::new();
    m.add("blk.0.attn_q.weight", 1, 0, &[1.0; 512], 1);
    let imatrix = dir.path().join("m.gguf");
    m.write(&imatrix).unwrap();
    let o = QuantizeOptions { imatrix: Some(imatrix.clone()), ..options(&input, &dir.path().join("q.gguf"), recipe("Q4_K_M")) };
    let e = quantize(&o, &()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid);
    for word in ["m.gguf", "blk.0.attn_q.weight", "512 columns", "256"] {
        assert!(e.to_string().contains(word), "{e}");
    }
    std::fs::write(&imatrix, b"no").unwrap();
    assert_eq!(quantize(&o, &()).unwrap_err().kind(), ErrorKind::Invalid);
    std::fs::remove_file(&imatrix).unwrap();
    assert_eq!(quantize(&o, &()).unwrap_err().kind(), ErrorKind::Io);
    assert!(!dir.path().join("q.gguf").exists());
}

/// A file of the architecture with some tensors of zeros, F32.
fn by_hand(path: &Path, arch: &str, experts: u32, tensors: &[(&str, &[usize])]) {
    let tensors: Vec<TensorPlan> =
        tensors.iter().map(|(name, dims)| TensorPlan { name: (*name).into(), ty: GgmlType::F32, dims: dims.to_vec() }).collect();
    let bytes: u64 = tensors.iter().map(|t| t.bytes().unwrap()).sum();
    let metadata = vec![("general.architecture".into(), arch.into()), (format!("{arch}.expert_count"), experts.into())];
    let mut w = Writer::create(path, Plan { metadata, tensors, alignment: 32 }).unwrap();
    w.write(&vec![0; bytes as usize]).unwrap();
    w.finish().unwrap().commit().unwrap();
}

#[test]
fn stacks_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.gguf"), dir.path().join("out.gguf"));
    let up = "blk.0.ffn_up_exps.weight";
    let run = |j: usize| format!("blk.0.ffn_up_exps.{j}.weight");
    let (zero, two, three) = (run(0), run(2), run(3));
    for (tensors, word) in [
        (&[(up, &[32, 4, 3][..])][..], "3 experts"),
        (&[(zero.as_str(), &[32, 4, 2][..]), (three.as_str(), &[32, 4, 2])], "do not join"),
        (&[(two.as_str(), &[32, 4, 2])], "do not join"),
        (&[(zero.as_str(), &[32, 4, 2]), (up, &[32, 4, 4])], "do not join"),
        (&[(zero.as_str(), &[32, 4, 2]), (two.as_str(), &[64, 4, 2])], "different shapes"),
        (&[(zero.as_str(), &[32, 4, 2]), (two.as_str(), &[32, 5, 2])], "different shapes"),
        (&[(up, &[32])], "no stack"),
        (&[(up, &[32, 2, 2, 4])], "no stack"),
    ] {
        by_hand(&input, "llama", 4, tensors);
        let e = quantize(&options(&input, &output, recipe("Q8_0")), &()).unwrap_err();
        assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains(word) && e.to_string().contains("in.gguf"), "{word}: {e}");
    }
    // Stock tools leave a dimension of one out; whoever is not llama has no runs.
    by_hand(&input, "llama", 1, &[(up, &[32, 4])]);
    quantize(&options(&input, &output, recipe("Q8_0")), &()).unwrap();
    assert_eq!(Gguf::open(&output).unwrap().tensor(up).unwrap().dims(), [32, 4, 1]);
    by_hand(&input, "qwen2moe", 4, &[(up, &[32, 4, 4])]);
    quantize(&options(&input, &output, recipe("Q8_0")), &()).unwrap();
    let e = quantize(&options(&input, &output, own(&CUT.replace("layers = \"1\"", ""))), &()).unwrap_err();
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("qwen2moe"), "{e}");
}
