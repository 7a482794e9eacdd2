//! candle's GGUF reader and ours read each other's files, and take every format apart to the same numbers.
#![cfg(feature = "candle")]

mod support;

use std::fs::File;
use std::io::{BufReader, Cursor};

use candle_core::quantized::gguf_file::{self, Content};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use sphinx_quant::gguf::{Array, Gguf, Plan, TensorPlan, Value, Writer};
use sphinx_quant::{GgmlType, block};
use support::{Numbers, any_blocks};

/// What our de-quantisation makes of `bytes`.
fn ours(ty: GgmlType, bytes: &[u8], len: usize) -> Vec<u32> {
    let mut values = vec![0.0; len];
    block::dequantize(ty, bytes, &mut values);
    values.iter().map(|v| v.to_bits()).collect()
}

/// What candle's makes of it.
fn candles(tensor: &QTensor) -> Vec<u32> {
    let values = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap();
    values.to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
}

#[test]
fn candle_reads_what_we_write() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.gguf");
    let mut rng = Numbers::new(1);
    let mut tensors = Vec::new();
    for ty in GgmlType::ALL {
        for (dims, name) in [(vec![512, 3], "matrix"), (vec![256], "vector"), (vec![256, 2, 3], "experts")] {
            let len: usize = dims.iter().product();
            let plan = TensorPlan { name: format!("{name}.{}", ty.name()), ty, dims };
            tensors.push((plan, any_blocks(ty, len, &mut rng)));
        }
    }
    let metadata = vec![
        ("general.architecture".to_owned(), Value::Str("llama".into())),
        ("general.name".to_owned(), Value::Str("Größe 🦀".into())),
        ("llama.block_count".to_owned(), Value::U32(u32::MAX)),
        ("llama.rope.freq_base".to_owned(), Value::F32(1e6)),
        ("test.u8".to_owned(), Value::U8(200)),
        ("test.i64".to_owned(), Value::I64(i64::MIN)),
        ("test.f64".to_owned(), Value::F64(0.1)),
        ("test.bool".to_owned(), Value::Bool(true)),
        ("tokenizer.ggml.tokens".to_owned(), Value::Array(Array::Str(vec!["<s>".into(), String::new(), "▁a".into()]))),
        ("tokenizer.ggml.scores".to_owned(), Value::Array(Array::F32(vec![0.0, -1.5, f32::MIN]))),
        ("tokenizer.ggml.token_type".to_owned(), Value::Array(Array::I32(vec![3, -1]))),
    ];
    let plan = Plan { metadata: metadata.clone(), tensors: tensors.iter().map(|(plan, _)| plan.clone()).collect(), alignment: 32 };
    let mut writer = Writer::create(&path, plan).unwrap();
    for (_, bytes) in &tensors {
        writer.write(bytes).unwrap();
    }
    writer.finish().unwrap().commit().unwrap();

    let mut file = BufReader::new(File::open(&path).unwrap());
    let content = Content::read(&mut file).unwrap();
    assert_eq!(content.tensor_infos.len(), tensors.len());
    for (plan, bytes) in &tensors {
        let tensor = content.tensor(&mut file, &plan.name, &Device::Cpu).unwrap();
        let mut shape = plan.dims.clone();
        shape.reverse();
        assert_eq!(tensor.shape().dims(), shape, "{}", plan.name);
        assert_eq!(tensor.data().unwrap(), bytes.as_slice(), "{}", plan.name);
        assert!(candles(&tensor) == ours(plan.ty, bytes, shape.iter().product()), "{} is read as other numbers", plan.name);
    }

    let value = |key: &str| &content.metadata[key];
    assert_eq!(value("general.name").to_string().unwrap(), "Größe 🦀");
    assert_eq!(value("llama.block_count").to_u32().unwrap(), u32::MAX);
    assert_eq!(value("llama.rope.freq_base").to_f32().unwrap(), 1e6);
    assert_eq!(value("test.u8").to_u8().unwrap(), 200);
    assert_eq!(value("test.i64").to_i64().unwrap(), i64::MIN);
    assert_eq!(value("test.f64").to_f64().unwrap(), 0.1);
    assert!(value("test.bool").to_bool().unwrap());
    let tokens: Vec<_> = value("tokenizer.ggml.tokens").to_vec().unwrap().iter().map(|t| t.to_string().unwrap().clone()).collect();
    assert_eq!(tokens, ["<s>", "", "▁a"]);
    let scores: Vec<_> = value("tokenizer.ggml.scores").to_vec().unwrap().iter().map(|t| t.to_f32().unwrap()).collect();
    assert_eq!(scores, [0.0, -1.5, f32::MIN]);
    let types: Vec<_> = value("tokenizer.ggml.token_type").to_vec().unwrap().iter().map(|t| t.to_i32().unwrap()).collect();
    assert_eq!(types, [3, -1]);
    assert_eq!(content.metadata.len(), metadata.len() + 2, "ours and the two checksum keys");
}

#[test]
fn we_read_what_candle_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("candle.gguf");
    let mut rng = Numbers::new(2);
    let dtypes = [
        (GgmlDType::F32, GgmlType::F32),
        (GgmlDType::F16, GgmlType::F16),
        (GgmlDType::BF16, GgmlType::BF16),
        (GgmlDType::Q4_0, GgmlType::Q4_0),
        (GgmlDType::Q4_1, GgmlType::Q4_1),
        (GgmlDType::Q5_0, GgmlType::Q5_0),
        (GgmlDType::Q5_1, GgmlType::Q5_1),
        (GgmlDType::Q8_0, GgmlType::Q8_0),
        (GgmlDType::Q2K, GgmlType::Q2_K),
        (GgmlDType::Q3K, GgmlType::Q3_K),
        (GgmlDType::Q4K, GgmlType::Q4_K),
        (GgmlDType::Q5K, GgmlType::Q5_K),
        (GgmlDType::Q6K, GgmlType::Q6_K),
    ];
    let values = Tensor::from_vec(rng.normal(5 * 512), (5, 512), &Device::Cpu).unwrap();
    let made: Vec<(String, QTensor)> =
        dtypes.iter().map(|(d, ty)| (ty.name().to_owned(), QTensor::quantize(&values, *d).unwrap())).collect();
    let tensors: Vec<(&str, &QTensor)> = made.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let arch = gguf_file::Value::String("llama".into());
    let mut bytes = Cursor::new(Vec::new());
    gguf_file::write(&mut bytes, &[("general.architecture", &arch)], &tensors).unwrap();
    // candle calls its files version 2, which we do not take; version 3 differs in nothing it writes.
    let mut bytes = bytes.into_inner();
    assert_eq!(bytes[4..8], 2u32.to_le_bytes());
    bytes[4] = 3;
    std::fs::write(&path, bytes).unwrap();

    let file = Gguf::open(&path).unwrap();
    assert_eq!(file.arch(), "llama");
    for ((_, ty), (name, made)) in dtypes.iter().zip(&made) {
        let tensor = file.tensor(name).unwrap();
        assert_eq!((tensor.ty(), tensor.rows(), tensor.cols()), (*ty, 5, 512));
        assert!(candles(made) == ours(*ty, tensor.bytes(), 5 * 512), "{name} is read as other numbers");
    }
}
