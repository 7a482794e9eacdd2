//! One model file into another precision.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use sphinx_quant::GgmlType;
use sphinx_quant::block::dequantize;
use sphinx_quant::gguf::{Gguf, Plan, TensorPlan, Value, Writer, keys, names};
use sphinx_quant::recipe::{self, Place, Recipe, Role};
use sphinx_quant::tensor::Tensor;
use xxhash_rust::xxh3::Xxh3;

use crate::convert::{check_range, encode};
use crate::error::{ConvertError, Result};
use crate::pipeline::{self, Job, Limits, Slot, Source};
use crate::report::{FileReport, Progress, Report, RowReport, Watched};

/// What to quantise, and how.
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// Either half of a model, or any llama GGUF.
    pub input: PathBuf,
    /// The file to write.
    pub output: PathBuf,
    /// What every tensor becomes.
    pub quant: Recipe,
    /// Worker threads.
    pub threads: usize,
    /// Budget for everything, in bytes; 1 GiB when `None`.
    pub max_memory: Option<u64>,
    /// Whether an existing output is replaced.
    pub force: bool,
}

/// Rewrites a model file with another recipe. Metadata and pair id stay; a tensor that keeps its type keeps its bytes, and a
/// quantised one becomes the numbers it stands for before it is anything else.
///
/// # Errors
/// `Usage` for an output that exists or is the input, `Invalid` for a file that is no model or is damaged, `Io`, `Budget`.
pub fn quantize(o: &QuantizeOptions, p: &dyn Progress) -> Result<Report> {
    pipeline::refuse_existing(&o.output, o.force)?;
    let gguf = Gguf::open(&o.input)?;
    if let (Ok(a), Ok(b)) = (o.input.canonicalize(), o.output.canonicalize())
        && a == b
    {
        return Err(ConvertError::Usage(format!("{}: is the input itself — choose another name", o.output.display())));
    }
    let layers = gguf.opt_u32(&gguf.arch_key(keys::BLOCK_COUNT))?.unwrap_or(0) as usize;
    let tied = gguf.find(names::OUTPUT).is_none();
    let types: Vec<GgmlType> = gguf.tensors().iter().map(|t| target(&o.quant, t, layers, tied)).collect();
    let plan = Plan {
        metadata: metadata(&gguf, &o.quant, types.iter().any(|t| !t.is_float())),
        tensors: gguf
            .tensors()
            .iter()
            .zip(&types)
            .map(|(t, &ty)| TensorPlan { name: t.name().to_owned(), ty, dims: t.dims().to_vec() })
            .collect(),
        alignment: gguf.alignment().max(32),
    };
    let shapes = gguf.tensors().iter().map(|t| (t.rows(), t.cols(), false));
    let limits = Limits::plan(o.max_memory, o.threads, 4 * gguf.data_offset() + 2 * RELEASE as u64, shapes)?;
    let mut report = Report { peak_bytes: limits.peak_bytes, pair_id: pair_id(&gguf), ..Report::default() };
    report.files.push(FileReport { path: o.output.clone(), bytes: plan.file_bytes()?, tensors: types.len() });
    for (t, planned) in gguf.tensors().iter().zip(&plan.tensors) {
        report.rows.push(RowReport {
            source: t.name().to_owned(),
            name: t.name().to_owned(),
            from: t.ty().to_string(),
            to: planned.ty.to_string(),
            shape: t.dims().iter().rev().copied().collect(),
            bytes_in: t.bytes().len() as u64,
            bytes_out: planned.bytes()?,
        });
    }
    pipeline::check_free_space(&o.output, report.bytes())?;

    let mut writer = Writer::create(&o.output, plan)?;
    let _watched = Watched::begin(p, "quantize", report.rows.iter().map(|r| r.bytes_in).sum());
    let hashes: Vec<Mutex<Xxh3>> = types.iter().map(|_| Mutex::new(Xxh3::new())).collect();
    let jobs: Vec<Job<'_>> = (0..types.len()).map(|i| Mapped::job(&gguf, i, types[i], &hashes[i])).collect();
    pipeline::run(&jobs, &mut writer, &limits, p)?;
    for (index, (t, hash)) in gguf.tensors().iter().zip(&hashes).enumerate() {
        let computed = hash.lock().unwrap_or_else(|e| e.into_inner()).digest();
        if gguf.checksum(index).is_some_and(|recorded| recorded != computed) {
            return Err(gguf.invalid("the data do not match their checksum", Some(t.name()), "get or convert the file again").into());
        }
    }
    writer.finish()?.commit()?;
    Ok(report)
}

/// The type that `recipe` gives a tensor; one that nobody knows stays as it is.
fn target(recipe: &Recipe, t: &Tensor, layers: usize, tied: bool) -> GgmlType {
    let Some(role) = recipe::role_of(t.name()) else { return t.ty() };
    let role = if tied && role == Role::Embedding { Role::Output } else { role };
    let layer = t.name().split('.').find_map(|part| part.parse().ok()).unwrap_or(0);
    recipe.choose(&Place { name: t.name(), role, layer, layers, cols: t.cols() })
}

/// The input's keys, those that name the precision brought up to date.
fn metadata(gguf: &Gguf, recipe: &Recipe, quantised: bool) -> Vec<(String, Value)> {
    let mut out: Vec<(String, Value)> = Vec::with_capacity(gguf.metadata().len() + 2);
    let ours = [keys::FILE_TYPE, keys::QUANTIZATION_VERSION];
    let at = gguf.metadata().iter().position(|(k, _)| ours.contains(&k.as_str())).unwrap_or(1.min(gguf.metadata().len()));
    for (index, (key, value)) in gguf.metadata().iter().enumerate() {
        if index == at {
            out.push((keys::FILE_TYPE.into(), Value::U32(recipe.file_type())));
            if quantised {
                out.push((keys::QUANTIZATION_VERSION.into(), Value::U32(2)));
            }
        }
        if !ours.contains(&key.as_str()) {
            out.push((key.clone(), value.clone()));
        }
    }
    out
}

/// The pair id a file carries, or nothing.
pub(crate) fn pair_id(gguf: &Gguf) -> String {
    match gguf.get(&gguf.half().key(keys::PAIR_ID)) {
        Some(Value::Str(id)) => id.clone(),
        _ => String::new(),
    }
}

/// Pages are given back after this many bytes of a tensor.
const RELEASE: usize = 32 << 20;

/// Rows of a mapped file.
struct Mapped<'a> {
    gguf: &'a Gguf,
    tensor: &'a Tensor,
    ty: GgmlType,
    /// Over the tensor's bytes.
    hash: &'a Mutex<Xxh3>,
    /// Bytes done since pages were given back.
    seen: AtomicUsize,
}

impl<'a> Mapped<'a> {
    fn job(gguf: &'a Gguf, index: usize, ty: GgmlType, hash: &'a Mutex<Xxh3>) -> Job<'a> {
        let tensor = &gguf.tensors()[index];
        Job {
            name: tensor.name(),
            from: tensor.ty().to_string(),
            to: ty.to_string(),
            rows: tensor.rows(),
            cols: tensor.cols(),
            whole: false,
            bytes_in: tensor.bytes().len() as u64,
            source: Box::new(Mapped { gguf, tensor, ty, hash, seen: AtomicUsize::new(0) }),
        }
    }

    fn bytes(&self, rows: &Range<usize>) -> &'a [u8] {
        let row = self.tensor.row_bytes();
        &self.tensor.bytes()[rows.start * row..rows.end * row]
    }
}

impl Source for Mapped<'_> {
    fn read(&self, rows: Range<usize>, _slot: &mut Slot) -> Result<()> {
        self.hash.lock().unwrap_or_else(|e| e.into_inner()).update(self.bytes(&rows));
        Ok(())
    }

    fn make(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
        let t = self.tensor;
        let bytes = self.bytes(&rows);
        let invalid = |what: String| self.gguf.invalid(what, Some(t.name()), "get or convert the file again");
        if let Some(block) = t.ty().first_non_finite(bytes) {
            return Err(invalid(format!("block {block} of rows {}..{} holds NaN or infinity", rows.start, rows.end)).into());
        }
        if t.ty() == self.ty {
            slot.bytes.clear();
            slot.bytes.extend_from_slice(bytes);
        } else {
            slot.floats.clear();
            slot.floats.resize(rows.len() * t.cols(), 0.0);
            dequantize(t.ty(), bytes, &mut slot.floats);
            check_range(&slot.floats, self.ty).map_err(|what| invalid(format!("{what} in rows {}..{}", rows.start, rows.end)))?;
            encode(self.ty, slot);
        }
        let end = rows.end == t.rows();
        if end || self.seen.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len() >= RELEASE {
            self.seen.store(0, Ordering::Relaxed);
            self.gguf.release(t);
        }
        Ok(())
    }
}
