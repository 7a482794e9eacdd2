//! A model file against its checkpoint, whatever the checkpoint looks like, and every tensor of both accounted for.

use std::path::{Path, PathBuf};

use sphinx_convert::registry::RopeOrder;
use sphinx_convert::*;
use sphinx_quant::ErrorKind;
use sphinx_quant::gguf::{Gguf, Plan, TensorPlan, Value, Writer};
use sphinx_quant::recipe::Recipe;
use tempfile::TempDir;

fn recipe(name: &str) -> Recipe {
    Recipe::named(name).unwrap()
}

fn made(family: &str, change: impl Fn(SynthOptions) -> SynthOptions) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("made");
    synth(&change(SynthOptions { threads: 2, ..SynthOptions::new(family, "nano", checkpoint.clone()) }), &()).unwrap();
    (dir, checkpoint)
}

fn options(input: &Path, output: &Path, quant: Recipe) -> ConvertOptions {
    ConvertOptions { threads: 2, force: true, ..ConvertOptions::new(vec![input.to_owned()], output.to_owned(), quant.clone(), quant) }
}

/// The file again, its tensors and bytes changed.
fn rewrite(path: &Path, change: impl Fn(&mut Vec<(TensorPlan, Vec<u8>)>)) {
    let g = Gguf::open(path).unwrap();
    let of = |t: &sphinx_quant::Tensor| (TensorPlan { name: t.name().into(), ty: t.ty(), dims: t.dims().to_vec() }, t.bytes().to_vec());
    let mut tensors: Vec<_> = g.tensors().iter().map(of).collect();
    change(&mut tensors);
    let metadata = g.metadata().iter().filter(|(k, _)| !k.contains("checksum")).cloned().collect();
    let plan = Plan { metadata, tensors: tensors.iter().map(|t| t.0.clone()).collect(), alignment: g.alignment() };
    let mut w = Writer::create(path, plan).unwrap();
    tensors.iter().for_each(|t| w.write(&t.1).unwrap());
    w.finish().unwrap().commit().unwrap();
}

const CUT: &str = "base = \"Q8_0\"\n[[rule]]\npattern = \"*_exps.weight\"\nexperts = \"1-2,7\"\ntype = \"Q4_K\"";

#[test]
fn mixtures_whole_and_cut() {
    for llama_type in ["mixtral_sparse", "mixtral"] {
        let (dir, checkpoint) = made("moe", |o| SynthOptions { llama_type: Some(llama_type.into()), shards: 2, ..o });
        let output = dir.path().join("m.gguf");
        for (quant, tensors) in [(recipe("Q4_K_M"), 3 + 2 * 10), (Recipe::parse("cut", CUT).unwrap(), 3 + 2 * (7 + 3 * 4))] {
            convert(&options(&checkpoint, &output, quant), &()).unwrap();
            let against = Against { max_memory: Some(64 << 20), max_rmse: Some(0.08), ..Against::new(&checkpoint) };
            let v = verify(&output, Some(&against), &()).unwrap();
            assert!(v.ok, "{llama_type}: {:?}", v.problems);
            assert_eq!(v.tensors.len(), tensors);
            for t in &v.tensors {
                let e = t.error.unwrap();
                assert!(e.ok && e.cosine > 0.99 && e.relative_rmse < 0.12 && f64::from(e.max_abs) >= e.rmse, "{t:?}");
            }
            // All are of this half.
            let s = v.sources.as_ref().unwrap();
            assert_eq!((s.compared, s.other_half, s.unused.len(), s.unknown.len()), (s.total, 0, 0, 0));
            let json: serde_json::Value = serde_json::to_value(&v).unwrap();
            assert!(json["tensors"][0]["error"]["cosine"].is_number() && json["sources"]["total"].is_u64());
        }
    }
}

#[test]
fn swapped_experts_are_found() {
    let (dir, checkpoint) = made("moe", |o| SynthOptions { vision: false, ..o });
    let output = dir.path().join("m.gguf");
    convert(&options(&checkpoint, &output, recipe("Q8_0")), &()).unwrap();
    rewrite(&output, |tensors| {
        let (plan, bytes) = tensors.iter_mut().find(|t| t.0.name == "blk.1.ffn_down_exps.weight").unwrap();
        let n = bytes.len() / plan.dims[2];
        bytes.rotate_left(n);
    });
    let v = verify(&output, Some(&Against::new(&checkpoint)), &()).unwrap();
    assert!(!v.ok && v.problems.len() == 1, "{:?}", v.problems);
    assert!(v.problems[0].contains("\"blk.1.ffn_down_exps.weight\"") && v.problems[0].contains("differs"), "{:?}", v.problems);
}

#[test]
fn every_tensor_of_both_sides_is_accounted_for() {
    let (dir, checkpoint) = made("plus", |o| SynthOptions { llama_type: Some("llama_ens5".into()), skip_tokens: Some(1), ..o });
    let output = dir.path().join("m.gguf");
    let o = ConvertOptions { pad_anchor: Some(variant::PadAnchor::Centre), ..options(&checkpoint, &output, recipe("Q8_0")) };
    let report = convert(&o, &()).unwrap();
    let count = |path: &Path| Gguf::open(path).unwrap().tensors().len();
    for path in [output.clone(), mmproj_path(&output)] {
        let v = verify(&path, Some(&Against::new(&checkpoint)), &()).unwrap();
        assert!(v.ok, "{:?}", v.problems);
        let s = v.sources.unwrap();
        assert_eq!(s.compared, count(&path));
        assert_eq!(s.compared + s.other_half, report.rows.len());
        // The mask of DINOv2, CLIP's projection and the six leftovers of its text tower.
        assert_eq!((s.unused.len(), s.unknown.len(), s.total), (8, 0, report.rows.len() + 8));
    }
    // One too many, one too few, one of another shape.
    let spoil = |change: fn(&mut Vec<(TensorPlan, Vec<u8>)>)| {
        convert(&o, &()).unwrap();
        rewrite(&mmproj_path(&output), change);
        let v = verify(&mmproj_path(&output), Some(&Against::new(&checkpoint)), &()).unwrap();
        assert!(!v.ok && v.problems.len() == 1, "{:?}", v.problems);
        v.problems[0].clone()
    };
    let extra = spoil(|t| {
        let mut more = t[1].clone();
        more.0.name = "v.odd".into();
        t.push(more);
    });
    assert!(extra.contains("\"v.odd\" has no original"), "{extra}");
    let missing = spoil(|t| t.retain(|t| t.0.name != "v.qf.1.q.weight"));
    assert!(missing.contains("\"v.qf.1.q.weight\" is missing"), "{missing}");
    let shape = spoil(|t| t.iter_mut().find(|t| t.0.name == "v.clip.0.qkv.weight").unwrap().0.dims = vec![768, 256]);
    assert!(shape.contains("v.clip.0.qkv.weight") && shape.contains("[768, 256]"), "{shape}");
}

#[test]
fn unknown_tensors_are_named() {
    // A checkpoint of one view holds nothing that five do not, but with skip rows it has a tensor that one view has no use for.
    let (dir, checkpoint) = made("tiny", |o| SynthOptions { skip_tokens: Some(1), ..o });
    let output = dir.path().join("m.gguf");
    let o = ConvertOptions { llama_type: Some("llama_ens_light".into()), ..options(&checkpoint, &output, recipe("F16")) };
    convert(&o, &()).unwrap();
    let v = verify(&output, Some(&Against::new(&checkpoint)), &()).unwrap();
    assert!(v.ok && v.sources.unwrap().unknown == ["llma.skip_token"]);
    assert!(v.warnings.iter().any(|w| w.contains("llma.skip_token")), "{:?}", v.warnings);
    let strict = Against { strict: true, ..Against::new(&checkpoint) };
    assert_eq!(verify(&output, Some(&strict), &()).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_gate_names_what_does_not_pass() {
    let (dir, checkpoint) = made("tiny", |o| o);
    let output = dir.path().join("m.gguf");
    convert(&options(&checkpoint, &output, recipe("Q4_K_M")), &()).unwrap();
    let gate = |max_rmse| {
        let against = Against { max_rmse: Some(max_rmse), ..Against::new(&checkpoint) };
        verify(&output, Some(&against), &()).unwrap()
    };
    assert!(gate(1.0).ok);
    let v = gate(0.0045);
    // Embeddings have unit variance, four bits of which cost most; norms cost nothing.
    assert!(!v.ok && v.problems.iter().any(|p| p.contains("\"token_embd.weight\"") && p.contains("4.500e-3")), "{:?}", v.problems);
    let over = v.tensors.iter().filter(|t| t.error.unwrap().rmse > 0.0045).count();
    assert_eq!((v.problems.len(), v.tensors.iter().filter(|t| !t.error.unwrap().ok).count()), (over, over));
    assert!(v.tensors.iter().all(|t| t.ty != "F32" || t.error.unwrap().ok));
    assert!(gate(0.0).problems.len() > over);
}

#[test]
fn halves_that_come_from_two_places() {
    let (dir, seeing) = made("intern2", |o| o);
    let blind = dir.path().join("blind");
    synth(&SynthOptions { vision: false, seed: 9, ..SynthOptions::new("intern2", "nano", blind.clone()) }, &()).unwrap();
    let output = dir.path().join("m.gguf");
    let mut o = options(&blind, &output, recipe("Q8_0"));
    (o.vision, o.llama_type) = (Some(seeing.clone()), Some("internlm2_ens5_light".into()));
    convert(&o, &()).unwrap();
    let both = Against { vision: Some(seeing.clone()), ..Against::new(&blind) };
    for path in [output.clone(), mmproj_path(&output)] {
        let v = verify(&path, Some(&both), &()).unwrap();
        assert!(v.ok, "{:?}", v.problems);
    }
    // The language half against its own directory alone, which sees nothing; and against the other, which it is not from.
    assert!(verify(&output, Some(&Against::new(&blind)), &()).unwrap().ok);
    assert!(!verify(&output, Some(&Against::new(&seeing)), &()).unwrap().ok);
    assert!(verify(&mmproj_path(&output), Some(&Against::new(&blind)), &()).is_err());
}

#[test]
fn packed_attention_in_both_orders() {
    let (dir, checkpoint) = made("intern2", |o| SynthOptions { vision: false, ..o });
    let output = dir.path().join("m.gguf");
    let o = ConvertOptions { rope_order: Some(RopeOrder::Pairs), ..options(&checkpoint, &output, recipe("F16")) };
    convert(&o, &()).unwrap();
    let against = |rope_order| Against { rope_order, ..Against::new(&checkpoint) };
    assert!(verify(&output, Some(&against(Some(RopeOrder::Pairs))), &()).unwrap().ok);
    let v = verify(&output, Some(&against(None)), &()).unwrap();
    let wrong: Vec<_> = v.tensors.iter().filter(|t| !t.error.unwrap().ok).map(|t| t.name.rsplit('.').nth(1).unwrap()).collect();
    assert_eq!(wrong, ["attn_q", "attn_k", "attn_q", "attn_k"], "values do not turn");
}

#[test]
fn what_cannot_be_compared() {
    let (dir, checkpoint) = made("tiny", |o| SynthOptions { vision: false, ..o });
    let output = dir.path().join("m.gguf");
    convert(&options(&checkpoint, &output, recipe("F16")), &()).unwrap();
    let none = Against::new(&dir.path().join("nowhere"));
    assert_eq!(verify(&output, Some(&none), &()).unwrap_err().kind(), ErrorKind::Io);
    let other = Against { llama_type: Some("mixtral_sparse".into()), ..Against::new(&checkpoint) };
    assert_eq!(verify(&output, Some(&other), &()).unwrap_err().kind(), ErrorKind::Invalid);
    let tight = Against { max_memory: Some(1 << 20), ..Against::new(&checkpoint) };
    assert_eq!(verify(&output, Some(&tight), &()).unwrap_err().kind(), ErrorKind::Budget);
    assert!(matches!(Gguf::open(&output).unwrap().get("sphinx.llama_type"), Some(Value::Str(s)) if s == "llama"));
}
