//! One model file into another precision.

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use sphinx_quant::GgmlType;
use sphinx_quant::block::dequantize;
use sphinx_quant::error::printable;
use sphinx_quant::gguf::{Gguf, Plan, TensorPlan, Value, Writer, keys, names};
use sphinx_quant::imatrix::Imatrix;
use sphinx_quant::recipe::{self, Place, Recipe, Role};
use sphinx_quant::tensor::Tensor;
use xxhash_rust::xxh3::Xxh3;

use crate::convert::check_range;
use crate::error::{ConvertError, Result};
use crate::pipeline::{self, Job, Limits, Slot, Source, Weights};
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
    /// An importance matrix of this model: which columns matter.
    pub imatrix: Option<PathBuf>,
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
/// Where the recipe gives experts of one stack different formats the stack is cut into runs, and the architecture changes with
/// it; where it no longer does, the runs become one stack again.
///
/// # Errors
/// `Usage` for an output that exists or is the input, `Invalid` for a file that is no model or is damaged or an importance matrix
/// of another model, `Io`, `Budget`.
pub fn quantize(o: &QuantizeOptions, p: &dyn Progress) -> Result<Report> {
    pipeline::refuse_existing(&o.output, o.force)?;
    let gguf = Gguf::open(&o.input)?;
    if let (Ok(a), Ok(b)) = (o.input.canonicalize(), o.output.canonicalize())
        && a == b
    {
        return Err(ConvertError::Usage(format!("{}: is the input itself — choose another name", o.output.display())));
    }
    let imatrix = o.imatrix.as_deref().map(Imatrix::read).transpose()?;
    let (outputs, arch) = plan(&gguf, &o.quant, imatrix.as_ref())?;
    let plan = Plan {
        metadata: metadata(&gguf, &arch, &o.quant.clone().for_half(gguf.half()), outputs.iter().any(|t| !t.plan.ty.is_float())),
        tensors: outputs.iter().map(|t| t.plan.clone()).collect(),
        alignment: gguf.alignment().max(32),
    };
    let shapes = outputs.iter().map(|t| (t.rows(), t.cols(), false));
    let known = imatrix.as_ref().map_or(0, Imatrix::bytes) + outputs.iter().map(|t| t.weights.bytes()).sum::<u64>();
    let limits = Limits::plan(o.max_memory, o.threads, 4 * gguf.data_offset() + 2 * RELEASE as u64 + known, shapes)?;
    let mut report = Report { peak_bytes: limits.peak_bytes, pair_id: pair_id(&gguf), ..Report::default() };
    report.warnings.extend(imatrix.as_ref().and_then(|m| unweighted(m, &outputs)));
    report.warnings.iter().for_each(|w| p.warn(w));
    report.files.push(FileReport { path: o.output.clone(), bytes: plan.file_bytes()?, tensors: outputs.len() });
    for t in &outputs {
        report.rows.push(RowReport {
            source: t.pieces.first().map_or(String::new(), |piece| piece.tensor.name().to_owned()),
            name: t.plan.name.clone(),
            from: t.from(),
            to: t.plan.ty.to_string(),
            shape: t.plan.dims.iter().rev().copied().collect(),
            bytes_in: t.bytes_in(),
            bytes_out: t.plan.bytes()?,
        });
    }
    pipeline::check_free_space(&o.output, report.bytes())?;

    let mut writer = Writer::create(&o.output, plan)?;
    let _watched = Watched::begin(p, "quantize", report.rows.iter().map(|r| r.bytes_in).sum());
    let hashes: Vec<Mutex<Xxh3>> = gguf.tensors().iter().map(|_| Mutex::new(Xxh3::new())).collect();
    let jobs: Vec<Job<'_>> = outputs.iter().map(|output| Mapped::job(&gguf, output, &hashes)).collect();
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

/// Rows of the input that follow one another in an output tensor.
struct Piece<'a> {
    index: usize,
    tensor: &'a Tensor,
    rows: Range<usize>,
}

/// A tensor of the output, and where its rows come from.
struct Output<'a> {
    plan: TensorPlan,
    pieces: Vec<Piece<'a>>,
    weights: Weights,
}

impl<'a> Output<'a> {
    /// A tensor that stays whole.
    fn same(index: usize, tensor: &'a Tensor, ty: GgmlType, weights: Weights) -> Output<'a> {
        let plan = TensorPlan { name: tensor.name().to_owned(), ty, dims: tensor.dims().to_vec() };
        Output { plan, pieces: vec![Piece { index, tensor, rows: 0..tensor.rows() }], weights }
    }

    fn rows(&self) -> usize {
        self.pieces.iter().map(|p| p.rows.len()).sum()
    }

    fn cols(&self) -> usize {
        self.plan.dims.first().copied().unwrap_or(1)
    }

    fn bytes_in(&self) -> u64 {
        self.pieces.iter().map(|p| (p.rows.len() * p.tensor.row_bytes()) as u64).sum()
    }

    /// The formats it has in the input.
    fn from(&self) -> String {
        let mut types: Vec<&str> = self.pieces.iter().map(|p| p.tensor.ty().name()).collect();
        types.dedup();
        types.join("+")
    }

    /// The input tensors behind `rows`, and which of their rows.
    fn parts(&self, rows: &Range<usize>) -> impl Iterator<Item = (&Piece<'a>, Range<usize>)> {
        let (start, end) = (rows.start, rows.end);
        let mut at = 0;
        self.pieces.iter().filter_map(move |p| {
            let first = at;
            at += p.rows.len();
            let (a, b) = (start.max(first), end.min(at));
            (a < b).then(|| (p, p.rows.start + (a - first)..p.rows.start + (b - first)))
        })
    }
}

/// The stack of experts that the tensors called `whole` or after its runs make up: index and first expert, in order.
///
/// `Err` says what is wrong with it.
fn stack<'a>(gguf: &'a Gguf, whole: &str) -> std::result::Result<Vec<(usize, &'a Tensor, usize)>, String> {
    let of = |t: &Tensor| recipe::stack_of(t.name()).filter(|(name, _)| name == whole).map(|(_, first)| first);
    let mut runs: Vec<_> = gguf.tensors().iter().enumerate().filter_map(|(i, t)| Some((i, t, of(t)?))).collect();
    runs.sort_by_key(|&(_, _, first)| first);
    let mut next = 0;
    for &(_, t, first) in &runs {
        let (&[cols, rows] | &[cols, rows, _]) = t.dims() else { return Err(format!("its shape {:?} is no stack of matrices", t.dims())) };
        if first != next {
            return Err(format!("its runs of experts do not join: one begins with {first}, the one before ends with {next}"));
        }
        if runs.first().is_some_and(|(_, t, _)| t.dims().get(..2) != Some(&[cols, rows])) {
            return Err("its runs have matrices of different shapes".into());
        }
        next += t.dims().get(2).copied().unwrap_or(1);
    }
    Ok(runs)
}

/// What the output holds, and its architecture.
fn plan<'a>(gguf: &'a Gguf, recipe: &Recipe, imatrix: Option<&Imatrix>) -> Result<(Vec<Output<'a>>, String)> {
    let number = |key| -> Result<usize> { Ok(gguf.opt_u32(&gguf.arch_key(key))?.unwrap_or(0) as usize) };
    let (layers, experts) = (number(keys::BLOCK_COUNT)?, number(keys::EXPERT_COUNT)?);
    let recipe = recipe.clone().with_experts(experts);
    let tied = gguf.find(names::OUTPUT).is_none();
    let layer = |name: &str| name.split('.').find_map(|part| part.parse().ok()).unwrap_or(0);
    let mut out: Vec<Output<'a>> = Vec::with_capacity(gguf.tensors().len());
    let (mut done, mut cut) = (HashSet::new(), false);
    for (index, t) in gguf.tensors().iter().enumerate() {
        // A tensor that nobody knows stays as it is.
        let Some(role) = recipe::role_of(t.name()) else {
            out.push(Output::same(index, t, t.ty(), Weights::none()));
            continue;
        };
        let Some((whole, _)) = recipe::stack_of(t.name()) else {
            let role = if tied && role == Role::Embedding { Role::Output } else { role };
            let ty = recipe.choose(&Place { name: t.name(), role, layer: layer(t.name()), layers, cols: t.cols() });
            let weights = Weights::of(imatrix.filter(|_| !ty.is_float()), t.name(), 0..1, t.rows(), t.cols())?;
            out.push(Output::same(index, t, ty, weights));
            continue;
        };
        if !done.insert(whole.clone()) {
            continue;
        }
        let invalid = |what: String| gguf.invalid(what, Some(t.name()), "get or convert the file again");
        let runs = stack(gguf, &whole).map_err(invalid)?;
        let count: usize = runs.iter().map(|(_, t, _)| t.dims().get(2).copied().unwrap_or(1)).sum();
        if experts > 0 && count != experts {
            return Err(invalid(format!("it holds {count} experts, the file declares {experts}")).into());
        }
        let (cols, rows) = (t.cols(), t.dims().get(1).copied().unwrap_or(1));
        let types = recipe.cut(&Place { name: &whole, role, layer: layer(&whole), layers, cols }, count);
        cut |= types.len() > 1;
        for (range, ty) in &types {
            let name = if types.len() == 1 { whole.clone() } else { recipe::run_of(&whole, range.start).unwrap_or_default() };
            let pieces = runs.iter().filter_map(|&(index, tensor, first)| {
                let end = first + tensor.dims().get(2).copied().unwrap_or(1);
                let (a, b) = (range.start.max(first), range.end.min(end));
                (a < b).then(|| Piece { index, tensor, rows: (a - first) * rows..(b - first) * rows })
            });
            let weights = Weights::of(imatrix.filter(|_| !ty.is_float()), &whole, range.clone(), rows, cols)?;
            let plan = TensorPlan { name, ty: *ty, dims: vec![cols, rows, range.len()] };
            out.push(Output { plan, pieces: pieces.collect(), weights });
        }
    }
    let out = recipe.arrange(out, |t| &t.plan.name);
    let arch = match gguf.arch() {
        keys::ARCH_SPLIT | "llama" if cut => keys::ARCH_SPLIT,
        other if cut => {
            let what =
                format!("the recipe gives experts of one stack different formats, which architecture {} does not know", printable(other));
            return Err(gguf.invalid(what, None, "leave experts out of the recipe").into());
        }
        keys::ARCH_SPLIT => "llama",
        other => other,
    };
    Ok((out, arch.to_owned()))
}

/// What is odd about the importance matrix for these tensors.
fn unweighted(imatrix: &Imatrix, outputs: &[Output<'_>]) -> Option<String> {
    let quantised = outputs.iter().filter(|t| !t.plan.ty.is_float());
    let (all, without) = quantised.fold((0, 0), |(n, without), t| (n + 1, without + usize::from(t.weights.is_empty())));
    let first = outputs.iter().find(|t| !t.plan.ty.is_float() && t.weights.is_empty())?;
    // llama.cpp measures neither of these unless told.
    let usual = without <= 2 && [names::TOKEN_EMBD, names::OUTPUT].contains(&first.plan.name.as_str());
    let what = format!("the importance matrix knows {} tensors, and {without} of {all} quantised ones are not among them", imatrix.len());
    (!usual).then(|| format!("{what}, \"{}\" first", printable(&first.plan.name)))
}

/// The input's keys, those that name architecture and precision brought up to date.
fn metadata(gguf: &Gguf, arch: &str, recipe: &Recipe, quantised: bool) -> Vec<(String, Value)> {
    let mut out: Vec<(String, Value)> = Vec::with_capacity(gguf.metadata().len() + 2);
    let ours = [keys::FILE_TYPE, keys::QUANTIZATION_VERSION];
    let at = gguf.metadata().iter().position(|(k, _)| ours.contains(&k.as_str())).unwrap_or(1.min(gguf.metadata().len()));
    let prefix = gguf.arch_key("");
    for (index, (key, value)) in gguf.metadata().iter().enumerate() {
        if index == at {
            out.push((keys::FILE_TYPE.into(), Value::U32(recipe.file_type())));
            if quantised {
                out.push((keys::QUANTIZATION_VERSION.into(), Value::U32(2)));
            }
        }
        match key.strip_prefix(&prefix) {
            _ if ours.contains(&key.as_str()) => {}
            _ if key == keys::ARCHITECTURE => out.push((key.clone(), Value::Str(arch.to_owned()))),
            Some(suffix) => out.push((format!("{arch}.{suffix}"), value.clone())),
            None => out.push((key.clone(), value.clone())),
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
pub(crate) const RELEASE: usize = 32 << 20;

/// Rows of a mapped file.
struct Mapped<'a> {
    gguf: &'a Gguf,
    output: &'a Output<'a>,
    /// Over the bytes of every tensor of the input.
    hashes: &'a [Mutex<Xxh3>],
    /// Bytes done since pages were given back.
    seen: AtomicUsize,
}

impl<'a> Mapped<'a> {
    fn job(gguf: &'a Gguf, output: &'a Output<'a>, hashes: &'a [Mutex<Xxh3>]) -> Job<'a> {
        Job {
            name: &output.plan.name,
            from: output.from(),
            to: output.plan.ty.to_string(),
            rows: output.rows(),
            cols: output.cols(),
            whole: false,
            bytes_in: output.bytes_in(),
            source: Box::new(Mapped { gguf, output, hashes, seen: AtomicUsize::new(0) }),
        }
    }
}

/// The bytes of some rows.
fn bytes(t: &Tensor, rows: Range<usize>) -> &[u8] {
    let row = t.row_bytes();
    &t.bytes()[rows.start * row..rows.end * row]
}

impl Source for Mapped<'_> {
    fn read(&self, rows: Range<usize>, _slot: &mut Slot) -> Result<()> {
        for (piece, rows) in self.output.parts(&rows) {
            self.hashes[piece.index].lock().unwrap_or_else(|e| e.into_inner()).update(bytes(piece.tensor, rows));
        }
        Ok(())
    }

    fn make(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
        let Output { plan, weights, .. } = self.output;
        let (ty, cols) = (plan.ty, self.output.cols());
        slot.bytes.clear();
        let mut at = rows.start;
        for (Piece { tensor: t, .. }, part) in self.output.parts(&rows) {
            let bytes = bytes(t, part.clone());
            let invalid = |what: String| self.gguf.invalid(what, Some(t.name()), "get or convert the file again");
            if let Some(block) = t.ty().first_non_finite(bytes) {
                return Err(invalid(format!("block {block} of rows {}..{} holds NaN or infinity", part.start, part.end)).into());
            }
            if t.ty() == ty {
                slot.bytes.extend_from_slice(bytes);
            } else {
                slot.floats.clear();
                slot.floats.resize(part.len() * cols, 0.0);
                dequantize(t.ty(), bytes, &mut slot.floats);
                check_range(&slot.floats, ty).map_err(|what| invalid(format!("{what} in rows {}..{}", part.start, part.end)))?;
                weights.encode(ty, at, cols, &slot.floats, &mut slot.bytes);
            }
            at += part.len();
            let end = part.end == t.rows();
            if end || self.seen.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len() >= RELEASE {
                self.seen.store(0, Ordering::Relaxed);
                self.gguf.release(t);
            }
        }
        Ok(())
    }
}
