//! Outside witnesses: gguf-rs reads the files we write, and candle-transformers computes the same logits from them.
//!
//! How candle-core and our GGUF reader read each other's files is tested beside the candle target.

mod support;

use std::path::Path;

use gguf_rs::GGUFModel;
use serde_json::{Value as Json, json};
use sphinx_quant::GgmlType;
use sphinx_quant::gguf::{Array, Gguf, Value};
use support::{convert, fixture, foreign};

/// The file through gguf-rs, which panics on what it does not know.
fn through_gguf_rs(path: &Path) -> GGUFModel {
    let name = path.to_str().expect("UTF-8").to_owned();
    let read = std::panic::catch_unwind(|| gguf_rs::get_gguf_container_array_size(&name, u64::MAX).and_then(|mut c| c.decode()));
    read.expect("gguf-rs does not panic").expect("gguf-rs reads the file")
}

/// A value as gguf-rs gives it: JSON, whose numbers have no width.
fn as_json(value: &Value) -> Json {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::F32(v) => json!(v),
        Value::Bool(v) => json!(v),
        Value::Str(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F64(v) => json!(v),
        Value::Array(Array::U8(v)) => json!(v),
        Value::Array(Array::I8(v)) => json!(v),
        Value::Array(Array::U16(v)) => json!(v),
        Value::Array(Array::I16(v)) => json!(v),
        Value::Array(Array::U32(v)) => json!(v),
        Value::Array(Array::I32(v)) => json!(v),
        Value::Array(Array::F32(v)) => json!(v),
        Value::Array(Array::Bool(v)) => json!(v),
        Value::Array(Array::Str(v)) => json!(v),
        Value::Array(Array::U64(v)) => json!(v),
        Value::Array(Array::I64(v)) => json!(v),
        Value::Array(Array::F64(v)) => json!(v),
    }
}

/// Both readers find the same in `path`. Returns the formats that were compared in size, too.
fn read_alike(path: &Path) -> Vec<GgmlType> {
    let (ours, theirs) = (Gguf::open(path).expect("a file of ours"), through_gguf_rs(path));
    assert_eq!(theirs.get_version(), "v3");
    assert_eq!((theirs.data_offset(), theirs.alignment()), (ours.data_offset(), u64::from(ours.alignment())));
    assert_eq!(theirs.metadata().len(), ours.metadata().len());
    for (key, value) in ours.metadata() {
        assert_eq!(theirs.metadata()[key], as_json(value), "{key}");
    }
    assert_eq!(theirs.tensors().len(), ours.tensors().len());
    let mut types = Vec::new();
    for (index, (a, b)) in ours.tensors().iter().zip(theirs.tensors()).enumerate() {
        let dims: Vec<u64> = a.dims().iter().map(|&d| d as u64).collect();
        assert_eq!((a.name(), &dims, a.ty().id()), (b.name.as_str(), &b.shape, b.kind));
        assert_eq!(ours.offset(index), theirs.data_offset() + b.offset, "{}", a.name());
        assert_eq!(a.bytes().len() as u64, b.size, "{}", a.name());
        if !types.contains(&a.ty()) {
            types.push(a.ty());
        }
    }
    types
}

#[test]
fn gguf_rs_reads_both_halves() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut seen = Vec::new();
    for case in ["light", "light5"] {
        for quant in ["F32", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"] {
            let model = convert(&fixture(case).join("checkpoint"), folder.path(), &format!("{case}-{quant}"), quant);
            seen.extend(read_alike(&model));
            seen.extend(read_alike(&sphinx_convert::mmproj_path(&model)));
        }
    }
    for ty in [GgmlType::F32, GgmlType::F16, GgmlType::Q8_0, GgmlType::Q6_K, GgmlType::Q5_K, GgmlType::Q4_K, GgmlType::Q4_0] {
        assert!(seen.contains(&ty), "no tensor was of type {ty}");
    }
}

#[test]
fn we_read_what_gguf_rs_writes() {
    let folder = tempfile::tempdir().expect("a directory");
    let model = convert(&fixture("light/checkpoint"), folder.path(), "light", "Q4_K_M");
    let path = folder.path().join("plain.gguf");
    foreign(&model, &path);
    read_alike(&path);
    let (ours, plain) = (Gguf::open(&model).expect("our file"), Gguf::open(&path).expect("its copy"));
    assert!(!plain.has_checksums() && plain.get("sphinx.pair_id").is_none());
    for t in ours.tensors() {
        let copy = plain.tensor(t.name()).expect("the tensor");
        assert_eq!((copy.ty(), copy.dims()), (t.ty(), t.dims()));
        assert!(copy.bytes() == t.bytes(), "{}", t.name());
    }
}

#[cfg(feature = "candle")]
mod candle {
    use std::fs::File;
    use std::path::Path;

    use candle_core::quantized::gguf_file::Content;
    use candle_core::{Device, Tensor};
    use candle_transformers::models::quantized_llama::ModelWeights;
    use sphinx_runtime::{Options, Sphinx};
    use sphinx_targets::cpu::{CpuOptions, CpuTarget};

    use super::support::{convert, cosines, fixture, max_abs, recorded, widen};

    /// Logits `[tokens, vocabulary]` of candle-transformers' LLaMA, which gives those of the last token only: the tokens go in
    /// one by one.
    fn theirs(model: &Path, tokens: &[u32]) -> Vec<f32> {
        let mut file = File::open(model).expect("the model");
        let content = Content::read(&mut file).expect("candle reads the file");
        let mut weights = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).expect("candle builds the model");
        let rows = tokens.iter().enumerate().map(|(pos, &id)| {
            let input = Tensor::new(&[[id]], &Device::Cpu).expect("a tensor");
            let row = weights.forward(&input, pos).expect("candle computes");
            row.flatten_all().and_then(|r| r.to_vec1::<f32>()).expect("logits")
        });
        rows.flatten().collect()
    }

    fn ours(model: &Path, tokens: &[u32]) -> Vec<f32> {
        let target = CpuTarget::new(CpuOptions::default()).expect("a target");
        let model = Sphinx::open(target, model, &Options::default()).expect("the model opens");
        model.session().expect("a session").logits(tokens, None).expect("logits")
    }

    /// The ids of a case's prompt.
    fn prompt(case: &str) -> Vec<u32> {
        recorded(&fixture(case).join("expected.safetensors"))["tokens"].1.iter().map(|&id| id as u32).collect()
    }

    #[test]
    fn candle_transformers_agrees_on_logits() {
        let folder = tempfile::tempdir().expect("a directory");
        for case in ["light", "light5"] {
            let model = convert(&fixture(case).join("checkpoint"), folder.path(), case, "F32");
            let tokens = prompt(case);
            let (ours, theirs) = (ours(&model, &tokens), theirs(&model, &tokens));
            let error = max_abs(&ours, &theirs);
            eprintln!("{case}: {} tokens, largest difference of a logit {error:e}", tokens.len());
            assert!(error <= 1e-3, "{case}: logits differ by {error}");
        }
    }

    #[test]
    fn candle_transformers_agrees_on_quantised_logits() {
        let folder = tempfile::tempdir().expect("a directory");
        let model = convert(&fixture("light5/checkpoint"), folder.path(), "quantised", "Q4_K_M");
        let tokens = prompt("light5");
        let width = ours(&model, &tokens).len() / tokens.len();
        // The same de-quantised weights, so only the arithmetic differs.
        let wide = widen(&model, "wide");
        let error = max_abs(&ours(&wide, &tokens), &theirs(&wide, &tokens));
        assert!(error <= 1e-3, "logits differ by {error}");
        // With activations rounded to 8 bits, in blocks of 32 here and of 256 there.
        let (least, mean) = cosines(&ours(&model, &tokens), &theirs(&model, &tokens), width);
        eprintln!("Q4_K_M: cosine of a row of logits: least {least:.6}, mean {mean:.6}");
        assert!(least >= 0.995 && mean >= 0.999, "rows of logits have cosines of {least} at least, {mean} on average");
    }
}
