//! What the root tests share: committed cases, conversion into a temporary folder, and comparison.
#![allow(dead_code)] // every test file uses its part

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use sphinx_convert::variant::PadAnchor;
use sphinx_convert::{ConvertOptions, Progress, QuantizeOptions};
use sphinx_quant::recipe::Recipe;

/// What runs the built program `binary`: itself, or, for a foreign processor, an emulator before it, as cargo is told to run tests.
pub fn command_line(binary: &Path) -> Vec<std::ffi::OsString> {
    let runner = format!("CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER", std::env::consts::ARCH.to_uppercase());
    let runner = std::env::var(runner).unwrap_or_default();
    runner.split_whitespace().map(Into::into).chain([binary.into()]).collect()
}

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A committed fixture.
pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

/// More cases of the same form beside the repository, if they are there; a test that wants them says when it skips.
pub fn shared_case(name: &str) -> Option<PathBuf> {
    let path = root().parent()?.join("shared/goldens").join(name);
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("skipped: {} is not there", path.display());
    None
}

/// No progress, no warnings.
pub struct Quiet;

impl Progress for Quiet {}

/// The recipe called `name`.
pub fn recipe(name: &str) -> Recipe {
    Recipe::named(name).expect("a recipe's name")
}

/// What is known of a case.
pub fn case_json(case: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(case.join("case.json")).expect("case.json")).expect("JSON")
}

/// Converts `checkpoint` to `folder/NAME.gguf` and its vision half, with the settings that the case beside it calls for.
pub fn convert(checkpoint: &Path, folder: &Path, name: &str, quant: &str) -> PathBuf {
    let output = folder.join(format!("{name}.gguf"));
    let mut options = ConvertOptions::new(vec![checkpoint.to_owned()], output.clone(), recipe(quant), recipe(quant));
    (options.threads, options.strict) = (2, true);
    let case = checkpoint.parent().expect("a case");
    if case.join("case.json").exists() {
        let about = case_json(case);
        options.clip_quick_gelu = about["clip_quick_gelu"] == true;
        options.pad_anchor = (about["skip"] == true).then_some(PadAnchor::TopLeft);
        options.layout = Some(case.join("layout.toml")).filter(|l| l.exists());
    }
    sphinx_convert::convert(&options, &Quiet).expect("the case converts");
    output
}

/// Both halves of `model`, de-quantised to F32 under another name.
pub fn widen(model: &Path, name: &str) -> PathBuf {
    let wide = model.with_file_name(format!("{name}.gguf"));
    let vision = |p: &Path| p.with_file_name(format!("mmproj-{}", p.file_name().expect("a file").to_string_lossy()));
    // A text model has one half.
    for (input, output) in [(model.to_owned(), wide.clone()), (vision(model), vision(&wide))].into_iter().filter(|(i, _)| i.exists()) {
        let options = QuantizeOptions { input, output, quant: recipe("F32"), imatrix: None, threads: 2, max_memory: None, force: false };
        sphinx_convert::quantize(&options, &Quiet).expect("the file widens");
    }
    wide
}

/// Recorded tensors by name: shape and values (I64 and F16 widened).
pub fn recorded(path: &Path) -> HashMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path).expect("a recorded file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let wide = |t: &safetensors::tensor::TensorView| -> Vec<f32> {
        let d = t.data();
        match t.dtype() {
            Dtype::F32 => d.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect(),
            Dtype::F16 => d.chunks_exact(2).map(|c| half::f16::from_le_bytes([c[0], c[1]]).to_f32()).collect(),
            Dtype::I64 => d.chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().expect("8 bytes")) as f32).collect(),
            other => panic!("{other:?}"),
        }
    };
    file.tensors().into_iter().map(|(name, t)| (name, (t.shape().to_vec(), wide(&t)))).collect()
}

/// Largest absolute difference; the lengths must agree.
pub fn max_abs(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, |m, d| if d.is_nan() { f32::NAN } else { m.max(d) })
}

/// The cosine of every row of two `[_, width]` matrices.
pub fn row_cosines(a: &[f32], b: &[f32], width: usize) -> Vec<f64> {
    assert_eq!(a.len(), b.len());
    let each = a.chunks_exact(width).zip(b.chunks_exact(width)).map(|(x, y)| {
        let dot = |p: &[f32], q: &[f32]| p.iter().zip(q).map(|(&u, &v)| f64::from(u) * f64::from(v)).sum::<f64>();
        dot(x, y) / (dot(x, x) * dot(y, y)).sqrt()
    });
    let all: Vec<f64> = each.collect();
    assert!(!all.is_empty() && all.iter().all(|c| c.is_finite()));
    all
}

/// The least and the mean of these.
pub fn cosines(a: &[f32], b: &[f32], width: usize) -> (f64, f64) {
    let all = row_cosines(a, b, width);
    (all.iter().copied().fold(f64::MAX, f64::min), all.iter().sum::<f64>() / all.len() as f64)
}

/// Every `step`-th row of a `[_, width]` matrix.
pub fn every(values: &[f32], width: usize, step: usize) -> Vec<f32> {
    values.chunks_exact(width).step_by(step).flatten().copied().collect()
}

/// Writes the language file `model` as another program would, gguf-rs in this case: its own order of keys, none of ours.
pub fn foreign(model: &Path, path: &Path) {
    use gguf_rs::writer::{GGUFWriter, MetadataValue as Meta, TensorInfo};
    use sphinx_quant::gguf::{Array, Gguf, Value};

    let file = Gguf::open(model).expect("a model");
    let mut writer = GGUFWriter::new(path, 3).expect("a writer");
    for (key, value) in file.metadata().iter().filter(|(key, _)| !key.starts_with("sphinx.")) {
        match value {
            Value::U32(v) => writer.add_metadata_u32(key, *v),
            Value::F32(v) => writer.add_metadata_f32(key, *v),
            Value::Bool(v) => writer.add_metadata_bool(key, *v),
            Value::Str(v) => writer.add_metadata(key, v),
            Value::Array(Array::Str(v)) => writer.add_metadata_array(key, v.iter().cloned().map(Meta::String).collect()),
            Value::Array(Array::F32(v)) => writer.add_metadata_array(key, v.iter().copied().map(Meta::Float32).collect()),
            Value::Array(Array::I32(v)) => writer.add_metadata_array(key, v.iter().copied().map(Meta::Int32).collect()),
            other => panic!("{key} holds {other:?}"),
        }
    }
    for t in file.tensors() {
        let shape = t.dims().iter().map(|&d| d as u64).collect();
        writer.add_tensor(TensorInfo { name: t.name().to_owned(), shape, dtype: t.ty().id() });
    }
    writer.write().expect("a header");
    for (index, t) in file.tensors().iter().enumerate() {
        writer.write_tensor_data(index, t.bytes()).expect("data");
    }
    writer.finalize().expect("an end");
}
