//! Importance matrices: how large the inputs of every matrix are, column by column.
//!
//! Quantising spends its error where it hurts least, and the mean square of a column's input is a good measure of that. An
//! importance matrix holds, for every matrix of a model, the sum of squares of each column's inputs over all rows that were
//! seen, and their number; for a stack of experts, one of each per expert.
//!
//! On disk it is llama.cpp's GGUF layout, in both directions: `general.type` is `imatrix`, tensor `NAME` has its sums in
//! `NAME.in_sum2` `[columns, experts]` and its counts in `NAME.counts` `[1, experts]`, both F32. Matrices of the vision half
//! stand under their own names beside those of the language model. Tensors of other endings are passed over.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::GgmlType;
use crate::error::{QuantError, Result, printable};
use crate::gguf::{Array, Gguf, Plan, TensorPlan, Value, Writer, header, keys};
use crate::tensor::Tensor;

/// `general.type`, and the architecture that our own files state besides.
const IMATRIX: &str = "imatrix";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
/// The largest file read: two hundred times what the largest model of the family needs.
const MAX_FILE_BYTES: u64 = 1 << 30;
const AGAIN: &str = "make it again with `sphinx imatrix` or llama.cpp's llama-imatrix";

/// What activations were seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    entries: BTreeMap<String, Entry>,
    /// The files that the activations came from.
    pub datasets: Vec<String>,
    /// Pieces of those that went through the model.
    pub chunks: u32,
    /// Tokens in such a piece.
    pub chunk_size: u32,
    /// Where it was read from, for messages.
    file: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
struct Entry {
    cols: usize,
    /// Sums of squares, expert by expert.
    sums: Vec<f64>,
    /// Rows behind them, one number per expert.
    rows: Vec<f64>,
}

impl Imatrix {
    /// One that has seen nothing.
    pub fn new() -> Imatrix {
        Imatrix::default()
    }

    /// Takes in what `rows` inputs of expert `expert` of `tensor` add up to: `sums` of their squares, one per column. What is no
    /// stack has one expert, number 0. A stack that is cut into runs goes by the name of the whole
    /// ([`stack_of`](crate::recipe::stack_of)).
    ///
    /// # Panics
    /// When the tensor was added with another shape before, or has no such expert: the caller's bug.
    pub fn add(&mut self, tensor: &str, experts: usize, expert: usize, sums: &[f64], rows: u64) {
        let cols = sums.len();
        let empty = || Entry { cols, sums: vec![0.0; cols * experts], rows: vec![0.0; experts] };
        let entry = self.entries.entry(tensor.to_owned()).or_insert_with(empty);
        assert!(entry.cols == cols && entry.rows.len() == experts && expert < experts, "tensor \"{tensor}\" changes its shape");
        entry.sums[expert * cols..][..cols].iter_mut().zip(sums).for_each(|(a, b)| *a += b);
        entry.rows[expert] += rows as f64;
    }

    /// The importance of each of the `cols` columns of expert `expert` of `tensor`: the mean square of its inputs.
    ///
    /// `None` when nothing is known of the tensor. An expert that no row reached has the mean of those of its stack that some
    /// did: they see the same residual stream, so that is a better guess than all columns alike.
    ///
    /// # Errors
    /// [`QuantError::Invalid`] when the tensor is known with another shape: the matrix belongs to another model.
    pub fn weights(&self, tensor: &str, expert: usize, cols: usize) -> Result<Option<Vec<f32>>> {
        let Some(e) = self.entries.get(tensor) else { return Ok(None) };
        if e.cols != cols || expert >= e.rows.len() {
            let what = format!(
                "it knows {} columns and {} experts; the model has {cols} columns, and expert {expert} is asked for",
                e.cols,
                e.rows.len()
            );
            return Err(self.invalid(what, Some(tensor), "give the importance matrix of this model"));
        }
        let mean = |sums: &mut dyn Iterator<Item = f64>, rows: f64| sums.map(|s| (s / rows) as f32).collect::<Vec<f32>>();
        let rows = e.rows[expert];
        if rows > 0.0 {
            return Ok(Some(mean(&mut e.sums[expert * cols..][..cols].iter().copied(), rows)));
        }
        let all: f64 = e.rows.iter().sum();
        let seen = |c: usize| e.rows.iter().zip(e.sums.iter().skip(c).step_by(cols)).filter(|(n, _)| **n > 0.0).map(|(_, s)| s).sum();
        Ok((all > 0.0).then(|| mean(&mut (0..cols).map(seen), all)))
    }

    /// The tensors it knows, by name.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Tensors it knows.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Memory that its numbers take, in bytes.
    pub fn bytes(&self) -> u64 {
        self.entries.values().map(|e| 8 * (e.sums.len() + e.rows.len()) as u64).sum()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn invalid(&self, what: impl Into<String>, tensor: Option<&str>, remedy: &'static str) -> QuantError {
        QuantError::Invalid { file: self.file.clone(), what: what.into(), tensor: tensor.map(str::to_owned), offset: None, remedy }
    }

    /// Reads a file of llama.cpp's GGUF layout, ours or its own.
    ///
    /// # Errors
    /// [`QuantError::Io`], and [`QuantError::Invalid`] for any other file, for sums without counts or counts without sums, and
    /// for numbers that are negative or not finite.
    pub fn read(path: &Path) -> Result<Imatrix> {
        let mut out = Imatrix { file: path.to_owned(), ..Imatrix::default() };
        let io = |source| QuantError::Io { file: path.to_owned(), source };
        let meta = std::fs::metadata(path).map_err(io)?;
        if meta.is_file() {
            let mut first = Vec::new();
            File::open(path).and_then(|f| f.take(4).read_to_end(&mut first)).map_err(io)?;
            if first != header::MAGIC {
                let what = "this is no importance matrix in GGUF layout; older .dat files are not read";
                return Err(out.invalid(what, None, "llama.cpp turns them: llama-imatrix --in-file OLD.dat -o NEW.gguf"));
            }
        }
        if meta.len() > MAX_FILE_BYTES {
            let what = format!("{} bytes are too many for an importance matrix; at most {MAX_FILE_BYTES} are read", meta.len());
            return Err(out.invalid(what, None, AGAIN));
        }
        let gguf = Gguf::open(path)?;
        if gguf.opt_str(keys::TYPE)? != Some(IMATRIX) {
            return Err(out.invalid(
                format!("this is a file of architecture {}", printable(gguf.arch())),
                None,
                "give an importance matrix",
            ));
        }
        out.datasets = gguf.opt_str_array(keys::IMATRIX_DATASETS)?.unwrap_or_default().to_vec();
        out.chunks = gguf.opt_u32(keys::IMATRIX_CHUNK_COUNT)?.unwrap_or(0);
        out.chunk_size = gguf.opt_u32(keys::IMATRIX_CHUNK_SIZE)?.unwrap_or(0);
        for (index, sums) in gguf.tensors().iter().enumerate() {
            gguf.check_tensor(index)?;
            if let Some(name) = sums.name().strip_suffix(COUNTS)
                && gguf.find(&format!("{name}{SUMS}")).is_none()
            {
                return Err(gguf.invalid("counts without sums", Some(sums.name()), AGAIN));
            }
            let Some(name) = sums.name().strip_suffix(SUMS) else { continue };
            let counts = gguf.find(&format!("{name}{COUNTS}"));
            let counts = counts.ok_or_else(|| gguf.invalid("sums without counts", Some(sums.name()), AGAIN))?;
            if counts.len() != sums.rows() {
                let what = format!("{} counts belong to {} sums", counts.len(), sums.rows());
                return Err(gguf.invalid(what, Some(sums.name()), AGAIN));
            }
            let entry = Entry { cols: sums.cols(), sums: numbers(&gguf, sums)?, rows: numbers(&gguf, counts)? };
            out.entries.insert(name.to_owned(), entry);
        }
        if out.is_empty() {
            return Err(out.invalid("it holds no sums", None, AGAIN));
        }
        Ok(out)
    }

    /// Writes it as llama.cpp does. The file appears whole or not at all and replaces what had its name.
    ///
    /// # Errors
    /// [`QuantError::Invalid`] when nothing was recorded or sums have grown beyond what is finite, [`QuantError::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let here = Imatrix { file: path.to_owned(), ..Imatrix::default() };
        if self.is_empty() {
            return Err(here.invalid("no activation was recorded", None, "give data that reaches the model"));
        }
        let tensors = self.entries.iter().flat_map(|(name, e)| {
            let plan =
                |suffix: &str, cols| TensorPlan { name: format!("{name}{suffix}"), ty: GgmlType::F32, dims: vec![cols, e.rows.len()] };
            [plan(SUMS, e.cols), plan(COUNTS, 1)]
        });
        let plan = Plan {
            metadata: vec![
                // llama.cpp states none, but then readers of models have no word for the file.
                (keys::ARCHITECTURE.into(), Value::Str(IMATRIX.into())),
                (keys::TYPE.into(), Value::Str(IMATRIX.into())),
                (keys::IMATRIX_DATASETS.into(), Value::Array(Array::Str(self.datasets.clone()))),
                (keys::IMATRIX_CHUNK_COUNT.into(), Value::U32(self.chunks)),
                (keys::IMATRIX_CHUNK_SIZE.into(), Value::U32(self.chunk_size)),
            ],
            tensors: tensors.collect(),
            alignment: header::DEFAULT_ALIGNMENT,
        };
        let mut writer = Writer::create(path, plan)?;
        for (name, e) in &self.entries {
            for (suffix, numbers) in [(SUMS, &e.sums), (COUNTS, &e.rows)] {
                let numbers: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
                if !numbers.iter().all(|x| x.is_finite()) {
                    let what = "the activations are not finite";
                    return Err(here.invalid(what, Some(&format!("{name}{suffix}")), "does the model answer at all? check it with verify"));
                }
                let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                writer.write(&bytes)?;
            }
        }
        writer.finish()?.commit()
    }
}

/// Numbers that are neither negative nor endless.
fn numbers(gguf: &Gguf, t: &Tensor) -> Result<Vec<f64>> {
    if t.ty() != GgmlType::F32 {
        return Err(gguf.invalid(format!("its numbers are {}, expected F32", t.ty()), Some(t.name()), AGAIN));
    }
    let numbers: Vec<f64> = t.bytes().as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    match numbers.iter().position(|x| !x.is_finite() || *x < 0.0) {
        Some(at) => Err(gguf.invalid(format!("number {at} is {}; none can be negative or endless", numbers[at]), Some(t.name()), AGAIN)),
        None => Ok(numbers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_experts() -> Imatrix {
        let mut m = Imatrix::new();
        m.add("blk.0.ffn_up_exps.weight", 3, 0, &[8.0, 2.0], 2);
        m.add("blk.0.ffn_up_exps.weight", 3, 2, &[0.0, 6.0], 2);
        m.add("output.weight", 1, 0, &[1.0, 2.0, 3.0], 1);
        m.add("output.weight", 1, 0, &[3.0, 2.0, 1.0], 3);
        m.datasets = vec!["a.jsonl".into()];
        (m.chunks, m.chunk_size) = (7, 512);
        m
    }

    #[test]
    fn weights_are_mean_squares() {
        let m = two_experts();
        assert_eq!(m.weights("output.weight", 0, 3).unwrap(), Some(vec![1.0; 3]));
        assert_eq!(m.weights("blk.0.ffn_up_exps.weight", 0, 2).unwrap(), Some(vec![4.0, 1.0]));
        // Expert 1 saw nothing: the mean over the rows of its stack.
        assert_eq!(m.weights("blk.0.ffn_up_exps.weight", 1, 2).unwrap(), Some(vec![2.0, 2.0]));
        assert_eq!(m.weights("blk.0.attn_q.weight", 0, 2).unwrap(), None);
        let error = m.weights("output.weight", 0, 4).unwrap_err().to_string();
        assert!(error.contains("\"output.weight\"") && error.contains("3 columns"), "{error}");
        assert!(m.weights("output.weight", 1, 3).is_err());
        let mut unseen = Imatrix::new();
        unseen.add("x", 2, 0, &[0.0], 0);
        assert_eq!(unseen.weights("x", 1, 1).unwrap(), None);
    }

    #[test]
    #[should_panic(expected = "changes its shape")]
    fn a_shape_stays() {
        two_experts().add("output.weight", 1, 0, &[1.0], 1);
    }
}
