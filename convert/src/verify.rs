//! Is a model file whole, and how far is it from the checkpoint it was made from?

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sphinx_quant::GgmlType;
use sphinx_quant::block::dequantize;
use sphinx_quant::gguf::Gguf;
use sphinx_quant::gguf::keys::{self, Half};
use sphinx_quant::quality::Quality;
use sphinx_quant::tensor::Tensor;

use crate::convert::{Loaded, Reading, mmproj_path, read_rows};
use crate::error::Result;
use crate::gather::Assembled;
use crate::pipeline::{self, Job, Limits, Sink, Slot, Source};
use crate::quantize::pair_id;
use crate::registry::Item;
use crate::report::{Progress, Watched, lossy};
use crate::variant::PadAnchor;

/// What [`verify`] found.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// The file.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Whether nothing is wrong with it.
    pub ok: bool,
    /// Its architecture.
    pub arch: String,
    /// Its size.
    pub bytes: u64,
    /// Whether it records checksums.
    pub checksums: bool,
    /// Bytes behind the last tensor.
    pub trailing_bytes: u64,
    /// Its pair id, empty without one.
    pub pair_id: String,
    /// The other half, if it lies beside.
    pub other_half: Option<OtherHalf>,
    /// Every tensor, in file order.
    pub tensors: Vec<TensorCheck>,
    /// What is wrong.
    pub problems: Vec<String>,
    /// What is odd but does no harm.
    pub warnings: Vec<String>,
}

/// The file that belongs to the one verified.
#[derive(Clone, Debug, Serialize)]
pub struct OtherHalf {
    /// Where it is.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Its pair id.
    pub pair_id: String,
    /// Whether that is the same.
    pub matches: bool,
}

/// One tensor of a [`Verification`].
#[derive(Clone, Debug, Serialize)]
pub struct TensorCheck {
    /// Its name.
    pub name: String,
    /// Its format.
    pub ty: String,
    /// Its shape, outermost first.
    pub shape: Vec<usize>,
    /// Its size.
    pub bytes: u64,
    /// Whether its bytes match their checksum; `None` without one.
    pub intact: Option<bool>,
    /// Whether all its numbers are finite.
    pub finite: bool,
    /// How far it is from the checkpoint, if one was given.
    pub error: Option<TensorError>,
}

/// A tensor against what it was made from.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TensorError {
    /// Root of the mean squared difference.
    pub rmse: f64,
    /// That over the root mean square of the original.
    pub relative_rmse: f64,
    /// Cosine of the angle between the two.
    pub cosine: f64,
    /// The largest difference.
    pub max_abs: f32,
    /// Whether that is what the format explains.
    pub ok: bool,
}

/// The relative error that a format explains: about twice what random numbers lose. Weights have heavier tails than those, so a
/// tensor beyond it is worth a look, and one that was swapped or mis-ordered is far beyond (√2).
fn bound(ty: GgmlType) -> f64 {
    match ty {
        GgmlType::F32 => 0.0,
        GgmlType::F16 => 1e-3,
        GgmlType::BF16 => 5e-3,
        GgmlType::Q8_0 => 0.03,
        GgmlType::Q6_K => 0.06,
        GgmlType::Q5_K | GgmlType::Q5_0 | GgmlType::Q5_1 => 0.12,
        GgmlType::Q4_K | GgmlType::Q4_0 | GgmlType::Q4_1 => 0.25,
        GgmlType::Q3_K => 0.4,
        GgmlType::Q2_K => 0.7,
    }
}

/// Checks a model file: its structure, its checksums, its padding, that its numbers are finite, that the other half beside it
/// belongs to it, and, `against` a checkpoint, how far every tensor is from its original.
///
/// What is wrong is in the result, which is then not `ok`.
///
/// # Errors
/// Only when there is nothing to verify: the file cannot be opened as a model, or the checkpoint cannot be read.
pub fn verify(path: &Path, against: Option<&Path>, p: &dyn Progress) -> Result<Verification> {
    let gguf = Gguf::open(path)?;
    let mut v = Verification {
        path: path.to_owned(),
        ok: true,
        arch: gguf.arch().to_owned(),
        bytes: gguf.file_bytes(),
        checksums: gguf.has_checksums(),
        trailing_bytes: gguf.trailing_bytes(),
        pair_id: pair_id(&gguf),
        other_half: None,
        tensors: Vec::with_capacity(gguf.tensors().len()),
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    let all: u64 = gguf.tensors().iter().map(|t| t.bytes().len() as u64).sum();
    let _watched = Watched::begin(p, "verify", if against.is_some() { 2 * all } else { all });
    if v.trailing_bytes > 0 {
        v.warnings.push(format!("{} bytes follow the last tensor", v.trailing_bytes));
    }
    if !v.checksums {
        v.warnings.push("the file records no checksums; damage that leaves the structure whole cannot be seen".into());
    }
    for (index, t) in gguf.tensors().iter().enumerate() {
        p.tensor(t.name(), t.ty().name(), t.ty().name());
        let damage = gguf.check_tensor(index).err();
        let block = gguf.non_finite(index);
        v.tensors.push(TensorCheck {
            name: t.name().to_owned(),
            ty: t.ty().to_string(),
            shape: t.dims().iter().rev().copied().collect(),
            bytes: t.bytes().len() as u64,
            intact: gguf.checksum(index).map(|_| damage.is_none()),
            finite: block.is_none(),
            error: None,
        });
        v.problems.extend(damage.map(|e| e.to_string()));
        if let Some(block) = block {
            let what = format!("block {block} holds NaN or infinity");
            v.problems.push(gguf.invalid(what, Some(t.name()), "get or convert the file again").to_string());
        }
        gguf.release(t);
        p.advance(t.bytes().len() as u64);
    }
    v.problems.extend(gguf.check_padding().err().map(|e| e.to_string()));
    other_half(&gguf, &mut v);
    if let Some(checkpoint) = against {
        compare(&gguf, checkpoint, &mut v, p)?;
    }
    v.ok = v.problems.is_empty();
    Ok(v)
}

/// Looks for the other half by name and compares the ids.
fn other_half(gguf: &Gguf, v: &mut Verification) {
    let path = match gguf.half() {
        Half::Language => mmproj_path(gguf.path()),
        Half::Vision => {
            let name = gguf.path().file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("mmproj-"));
            let Some(name) = name else { return };
            gguf.path().with_file_name(name)
        }
    };
    if v.pair_id.is_empty() || !path.is_file() {
        return;
    }
    match Gguf::open(&path) {
        Ok(other) => {
            let id = pair_id(&other);
            let matches = id == v.pair_id;
            if !matches {
                v.problems.push(format!(
                    "{} is not the other half of this model: its pair id is {id}, here it is {}",
                    path.display(),
                    v.pair_id
                ));
            }
            v.other_half = Some(OtherHalf { path, pair_id: id, matches });
        }
        Err(e) => v.problems.push(e.to_string()),
    }
}

/// Measures every tensor against its original.
fn compare(gguf: &Gguf, checkpoint: &Path, v: &mut Verification, p: &dyn Progress) -> Result<()> {
    let half = gguf.half();
    let stated = gguf.opt_str(&half.key(keys::LLAMA_TYPE))?;
    // Where pictures were padded does not change a tensor.
    let how = Reading { llama_type: stated, pad_anchor: Some(PadAnchor::Centre), ..Reading::default() };
    let loaded = Loaded::open(&[checkpoint.to_owned()], &how)?;
    v.warnings.extend(loaded.warnings.iter().cloned());
    let (source, items) = loaded.half(half);
    let mut pairs = Vec::new();
    for item in items {
        match gguf.find(&item.name) {
            None => v.problems.push(format!("tensor \"{}\" is missing", item.name)),
            Some(t) if t.dims() != item.dims() => {
                v.problems.push(format!("tensor \"{}\" has dimensions {:?}, the checkpoint gives {:?}", item.name, t.dims(), item.dims()));
            }
            Some(t) => pairs.push((item, t, item.open(source)?)),
        }
    }
    let jobs: Vec<Job<'_>> = pairs.iter().map(|(item, t, merged)| Comparison::job(gguf, item, t, merged)).collect();
    let shapes = jobs.iter().map(|j| (j.rows, j.cols, j.whole));
    let limits = Limits::plan(None, std::thread::available_parallelism().map_or(1, usize::from), 8 << 20, shapes)?;
    let mut measured = Measured(vec![Quality::default(); jobs.len()]);
    pipeline::run(&jobs, &mut measured, &limits, p)?;
    for ((item, t, _), q) in pairs.iter().zip(&measured.0) {
        let ok = q.relative_rmse() <= bound(t.ty()) && q.cosine().is_finite();
        let error = TensorError { rmse: q.rmse(), relative_rmse: q.relative_rmse(), cosine: q.cosine(), max_abs: q.max_abs_error(), ok };
        if !ok {
            let (error, bound) = (error.relative_rmse, bound(t.ty()));
            v.problems.push(format!(
                "tensor \"{}\" differs from the checkpoint by {error:.4} of its size, {} explains {bound}",
                item.name,
                t.ty()
            ));
        }
        if let Some(check) = v.tensors.iter_mut().find(|c| c.name == item.name) {
            check.error = Some(error);
        }
    }
    Ok(())
}

/// Sums per tensor.
struct Measured(Vec<Quality>);

impl Sink for Measured {
    fn write(&mut self, job: usize, slot: &Slot) -> Result<()> {
        self.0[job].merge(&slot.quality);
        Ok(())
    }
}

/// Rows of a checkpoint against rows of a file.
struct Comparison<'a> {
    gguf: &'a Gguf,
    item: &'a Item,
    tensor: &'a Tensor,
    merged: &'a Assembled,
}

impl<'a> Comparison<'a> {
    fn job(gguf: &'a Gguf, item: &'a Item, tensor: &'a Tensor, merged: &'a Assembled) -> Job<'a> {
        Job {
            name: &item.source,
            from: merged.format(),
            to: tensor.ty().to_string(),
            rows: merged.rows(),
            cols: merged.cols(),
            whole: item.transform.needs_whole(),
            bytes_in: tensor.bytes().len() as u64,
            source: Box::new(Comparison { gguf, item, tensor, merged }),
        }
    }
}

impl Source for Comparison<'_> {
    fn read(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
        read_rows(self.merged, rows, slot)
    }

    fn make(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
        self.item.transform.apply(&self.item.shape, &mut slot.floats, &mut slot.scratch);
        let t = self.tensor;
        // A tensor that is cut keeps its rows; one that is not is all there.
        let row = t.row_bytes();
        let bytes = if self.item.transform.needs_whole() { t.bytes() } else { &t.bytes()[rows.start * row..rows.end * row] };
        slot.scratch.clear();
        slot.scratch.resize(slot.floats.len(), 0.0);
        dequantize(t.ty(), bytes, &mut slot.scratch);
        slot.quality.add(&slot.floats, &slot.scratch);
        if rows.end == self.merged.rows() {
            self.gguf.release(t);
        }
        Ok(())
    }
}
