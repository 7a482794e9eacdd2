//! GGUF files put together by hand, wrong in any way wanted, and right ones from the writer.
#![allow(dead_code)] // each test file uses a part

use sphinx_quant::GgmlType;
use sphinx_quant::gguf::{Plan, TensorPlan, Value, Writer};

/// Types of metadata values.
pub const U8: u32 = 0;
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const BOOL: u32 = 7;
pub const STR: u32 = 8;
pub const ARRAY: u32 = 9;
pub const U64: u32 = 10;

/// A length and bytes.
pub fn string(s: impl AsRef<[u8]>) -> Vec<u8> {
    let s = s.as_ref();
    [&(s.len() as u64).to_le_bytes()[..], s].concat()
}

/// A metadata entry with any payload.
pub fn key(name: impl AsRef<[u8]>, ty: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    [&string(name)[..], &ty.to_le_bytes(), payload.as_ref()].concat()
}

/// The payload of an array.
pub fn array(ty: u32, n: u64, payload: impl AsRef<[u8]>) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &n.to_le_bytes(), payload.as_ref()].concat()
}

/// A tensor's entry.
pub fn tensor(name: impl AsRef<[u8]>, dims: &[u64], ty: u32, offset: u64) -> Vec<u8> {
    let mut out = string(name);
    out.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
    out.extend(ty.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

/// A file in the making; `arch` is put in front of `keys`.
#[derive(Clone)]
pub struct Hand {
    pub version: u32,
    pub keys: Vec<Vec<u8>>,
    pub tensors: Vec<Vec<u8>>,
    pub key_count: Option<u64>,
    pub tensor_count: Option<u64>,
    pub alignment: usize,
    pub data: usize,
}

impl Hand {
    /// A right file: architecture `llama`, one tensor `t` of eight F32.
    pub fn new() -> Hand {
        Hand {
            version: 3,
            keys: vec![key("general.architecture", STR, string("llama"))],
            tensors: vec![tensor("t", &[8], 0, 0)],
            key_count: None,
            tensor_count: None,
            alignment: 32,
            data: 32,
        }
    }

    pub fn key(mut self, k: Vec<u8>) -> Hand {
        self.keys.push(k);
        self
    }

    pub fn tensors(mut self, t: &[Vec<u8>]) -> Hand {
        self.tensors = t.to_vec();
        self
    }

    pub fn data(mut self, bytes: usize) -> Hand {
        self.data = bytes;
        self
    }

    pub fn alignment(mut self, bytes: usize) -> Hand {
        self.alignment = bytes;
        self.key(key("general.alignment", U32, (bytes as u32).to_le_bytes()))
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        out.extend(self.keys.concat());
        out.extend(self.tensors.concat());
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend((0..self.data).map(|i| i as u8));
        out
    }
}

/// Plans a tensor.
pub fn planned(name: &str, ty: GgmlType, dims: &[usize]) -> TensorPlan {
    TensorPlan { name: name.into(), ty, dims: dims.to_vec() }
}

/// A small file of ours with three tensors, two of which need padding.
pub fn small(arch: &str, alignment: u32) -> Plan {
    Plan {
        metadata: vec![
            ("general.architecture".into(), arch.into()),
            ("sphinx.pair_id".into(), "00000000000000000000000000000000".into()),
            ("tokenizer.ggml.tokens".into(), Value::from(vec!["a", "", "▁b"])),
            ("flag".into(), true.into()),
        ],
        tensors: vec![
            planned("a", GgmlType::F32, &[3, 2]),
            planned("b.weight", GgmlType::Q8_0, &[32, 3]),
            planned("c", GgmlType::F16, &[4]),
        ],
        alignment,
    }
}

/// Writes `plan` with bytes that count up; the whole file.
pub fn written(plan: Plan) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    let total: u64 = plan.tensors.iter().map(|t| t.bytes().unwrap()).sum();
    let mut w = Writer::create(&path, plan).unwrap();
    // Small numbers: no scale among them is NaN.
    let data: Vec<u8> = (0..total).map(|i| (i % 61) as u8).collect();
    data.chunks(7).for_each(|c| w.write(c).unwrap());
    w.finish().unwrap().commit().unwrap();
    std::fs::read(&path).unwrap()
}
