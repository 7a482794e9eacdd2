//! Is a model file whole, and how far is it from the checkpoint it was made from?

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;
use sphinx_quant::GgmlType;
use sphinx_quant::block::dequantize;
use sphinx_quant::error::printable;
use sphinx_quant::gguf::Gguf;
use sphinx_quant::gguf::keys::{self, Half};
use sphinx_quant::quality::Quality;
use sphinx_quant::recipe::stack_of;
use sphinx_quant::tensor::Tensor;

use crate::checkpoint::Checkpoint;
use crate::convert::{Loaded, Reading, mmproj_path, read_rows};
use crate::error::Result;
use crate::gather::{Assembled, DEFAULT_PANEL_BYTES};
use crate::pipeline::{self, DEFAULT_MEMORY, Job, Limits, Sink, Slot, Source};
use crate::quantize::{RELEASE, pair_id};
use crate::registry::{self, Item, RopeOrder};
use crate::report::{Progress, Watched, lossy};
use crate::variant::PadAnchor;

/// The checkpoint that a model file is measured against, and how to read it where it does not say so itself.
#[derive(Clone, Debug, Default)]
pub struct Against {
    /// Checkpoint directories; later ones override earlier ones.
    pub inputs: Vec<PathBuf>,
    /// What it is; the file's own word when `None`.
    pub llama_type: Option<String>,
    /// A checkpoint that holds the vision half, when the first does not.
    pub vision: Option<PathBuf>,
    /// A file that says otherwise how pictures are cut up.
    pub layout: Option<PathBuf>,
    /// In which order channels of queries and keys lie; told from the checkpoint when `None`.
    pub rope_order: Option<RopeOrder>,
    /// The tensor with the rows that stand for empty sub-images.
    pub skip_tensor: Option<String>,
    /// Where pictures lay in their padding; no tensor depends on it.
    pub pad_anchor: Option<PadAnchor>,
    /// The root mean squared error that no tensor may exceed.
    pub max_rmse: Option<f64>,
    /// Whether an unknown tensor in it is an error.
    pub strict: bool,
    /// Worker threads; one per core when `None`.
    pub threads: Option<usize>,
    /// Budget for everything, in bytes; 1 GiB when `None`.
    pub max_memory: Option<u64>,
}

impl Against {
    /// A checkpoint that says itself what it is.
    pub fn new(checkpoint: &Path) -> Against {
        Against { inputs: vec![checkpoint.to_owned()], ..Against::default() }
    }
}

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
    /// What became of the checkpoint's tensors, if one was given.
    pub sources: Option<Sources>,
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

/// Every tensor of a checkpoint, by what became of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sources {
    /// All of them.
    pub total: usize,
    /// Those that the verified file was compared with.
    pub compared: usize,
    /// Those that belong to the other half.
    pub other_half: usize,
    /// Those that released checkpoints carry and no model needs.
    pub unused: Vec<String>,
    /// Those that nobody knows.
    pub unknown: Vec<String>,
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
/// belongs to it, and, `against` a checkpoint, how far every tensor is from its original. Then every tensor of the file has an
/// original, and every tensor of the checkpoint is accounted for.
///
/// What is wrong is in the result, which is then not `ok`.
///
/// # Errors
/// Only when there is nothing to verify: the file cannot be opened as a model, or the checkpoint cannot be read.
pub fn verify(path: &Path, against: Option<&Against>, p: &dyn Progress) -> Result<Verification> {
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
        sources: None,
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
    if let Some(against) = against {
        compare(&gguf, against, &mut v, p)?;
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

/// Opens the checkpoint as what the file says it is.
fn open(gguf: &Gguf, against: &Against) -> Result<Loaded> {
    let half = gguf.half();
    let mut llama_type = match &against.llama_type {
        Some(stated) => Some(stated.as_str()),
        None => gguf.opt_str(&half.key(keys::LLAMA_TYPE))?,
    };
    // A language half may come from a directory that sees nothing, under the name of the whole.
    if half == Half::Language && against.vision.is_none() && against.llama_type.is_none() {
        let checkpoint = Checkpoint::open(&against.inputs)?;
        if !checkpoint.names().any(|n| n.contains("visual_proj")) {
            let experts = gguf.opt_u32(&gguf.arch_key(keys::EXPERT_COUNT))?.unwrap_or(0);
            llama_type = Some(if experts > 0 { "mixtral" } else { "llama" });
        }
    }
    let how = Reading {
        vision: against.vision.as_deref(),
        llama_type,
        layout: against.layout.as_deref(),
        rope_order: against.rope_order,
        skip_tensor: against.skip_tensor.as_deref(),
        // Where pictures were padded does not change a tensor.
        pad_anchor: Some(against.pad_anchor.unwrap_or_default()),
        strict: against.strict,
    };
    Loaded::open(&against.inputs, &how)
}

/// A tensor of the file and what it was made from: an item, or some experts of one.
struct Pair<'a> {
    tensor: &'a Tensor,
    item: &'a Item,
    merged: usize,
    /// Rows of the item as it is assembled.
    rows: Range<usize>,
}

/// Finds the tensors of the file that `item` has become; `Err` says what is wrong with them.
fn tensors_of<'a>(
    gguf: &'a Gguf,
    runs: &HashMap<String, Vec<&'a Tensor>>,
    item: &Item,
) -> std::result::Result<Vec<(&'a Tensor, Range<usize>)>, String> {
    let differ = |t: &Tensor| format!("tensor \"{}\" has dimensions {:?}, the checkpoint gives {:?}", t.name(), t.dims(), item.dims());
    let missing = || format!("tensor \"{}\" is missing", item.name);
    let Some(experts) = item.experts() else {
        let t = gguf.find(&item.name).ok_or_else(missing)?;
        return if t.dims() == item.dims() { Ok(vec![(t, 0..1)]) } else { Err(differ(t)) };
    };
    let mut next = 0;
    let mut out = Vec::new();
    for &t in runs.get(&item.name).ok_or_else(missing)? {
        let (Some((_, first)), count) = (stack_of(t.name()), t.dims().get(2).copied().unwrap_or(1)) else { return Err(missing()) };
        if t.dims().get(..2) != item.dims().get(..2) || t.dims().len() > 3 {
            return Err(differ(t));
        }
        if first != next {
            return Err(format!("tensor \"{}\" begins with expert {first}, the one before ends with {next}", t.name()));
        }
        next = first + count;
        out.push((t, first..next));
    }
    if next == experts { Ok(out) } else { Err(format!("tensor \"{}\" has {next} experts, the checkpoint gives {experts}", item.name)) }
}

/// Measures every tensor against its original and accounts for those of the checkpoint.
fn compare(gguf: &Gguf, against: &Against, v: &mut Verification, p: &dyn Progress) -> Result<()> {
    let half = gguf.half();
    let loaded = open(gguf, against)?;
    v.warnings.extend(loaded.warnings.iter().cloned());
    let (source, items) = loaded.half(half);
    // Stacks of experts by the name of the whole, runs in order.
    let mut runs: HashMap<String, Vec<&Tensor>> = HashMap::new();
    for t in gguf.tensors() {
        if let Some((whole, _)) = stack_of(t.name()) {
            runs.entry(whole).or_default().push(t);
        }
    }
    runs.values_mut().for_each(|all| all.sort_by_key(|t| stack_of(t.name()).map(|(_, first)| first)));
    let mut merged: Vec<Assembled> = Vec::with_capacity(items.len());
    let mut pairs: Vec<Pair<'_>> = Vec::with_capacity(items.len());
    for item in items {
        match tensors_of(gguf, &runs, item) {
            Err(what) => v.problems.push(what),
            Ok(found) => {
                let assembled = item.open(source)?;
                let height = assembled.rows() / item.experts().unwrap_or(1).max(1);
                let index = merged.len();
                pairs.extend(found.into_iter().map(|(tensor, experts)| Pair {
                    tensor,
                    item,
                    merged: index,
                    rows: experts.start * height..experts.end * height,
                }));
                merged.push(assembled);
            }
        }
    }
    let matched: HashSet<&str> = pairs.iter().map(|pair| pair.tensor.name()).collect();
    let known: HashSet<&str> = items.iter().map(|i| i.name.as_str()).collect();
    for t in gguf.tensors().iter().filter(|t| !matched.contains(t.name())) {
        let whole = stack_of(t.name()).map(|(whole, _)| whole);
        if !known.contains(whole.as_deref().unwrap_or(t.name())) {
            v.problems.push(format!("tensor \"{}\" has no original in the checkpoint", printable(t.name())));
        }
    }
    v.sources = Some(account(&loaded, half));

    let budget = against.max_memory.unwrap_or(DEFAULT_MEMORY);
    let panel = merged.iter().map(Assembled::block_bytes).max().unwrap_or(0).min(DEFAULT_PANEL_BYTES).min(budget / 3);
    let merged: Vec<Assembled> = merged.into_iter().map(|m| m.with_panel(panel)).collect();
    let jobs: Vec<Job<'_>> = pairs.iter().map(|pair| Comparison::job(gguf, pair, &merged[pair.merged])).collect();
    let shapes = jobs.iter().map(|j| (j.rows, j.cols, j.whole));
    let threads = against.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let limits = Limits::plan(against.max_memory, threads, (8 << 20) + panel, shapes)?;
    let mut measured = Measured(vec![Quality::default(); jobs.len()]);
    pipeline::run(&jobs, &mut measured, &limits, p)?;
    let mut checks: HashMap<String, &mut TensorCheck> = v.tensors.iter_mut().map(|c| (c.name.clone(), c)).collect();
    for (pair, q) in pairs.iter().zip(&measured.0) {
        let (name, ty) = (pair.tensor.name(), pair.tensor.ty());
        let explained = q.relative_rmse() <= bound(ty) && q.cosine().is_finite();
        let within = against.max_rmse.is_none_or(|most| q.rmse() <= most);
        let error = TensorError {
            rmse: q.rmse(),
            relative_rmse: q.relative_rmse(),
            cosine: q.cosine(),
            max_abs: q.max_abs_error(),
            ok: explained && within,
        };
        if !explained {
            let (error, bound) = (error.relative_rmse, bound(ty));
            v.problems.push(format!("tensor \"{name}\" differs from the checkpoint by {error:.4} of its size, {ty} explains {bound}"));
        } else if !within {
            let most = against.max_rmse.unwrap_or(f64::INFINITY);
            let what = format!("tensor \"{name}\" has a root mean squared error of {:.3e}, above {most:.3e}", error.rmse);
            v.problems.push(format!("{what} — give it a better format, or allow more"));
        }
        if let Some(check) = checks.get_mut(name) {
            check.error = Some(error);
        }
    }
    Ok(())
}

/// What became of every tensor of the checkpoint, or of both, when the halves lie apart.
fn account(loaded: &Loaded, half: Half) -> Sources {
    let named = |half: Half| -> HashSet<&str> { loaded.half(half).1.iter().flat_map(|i| &i.sources).map(String::as_str).collect() };
    let (language, vision) = (named(Half::Language), named(Half::Vision));
    let (here, there) = if half == Half::Language { (&language, &vision) } else { (&vision, &language) };
    let all: BTreeSet<&str> = [Half::Language, Half::Vision].into_iter().flat_map(|h| loaded.half(h).0.names()).collect();
    let mut out = Sources { total: all.len(), ..Sources::default() };
    for name in all {
        if here.contains(name) {
            out.compared += 1;
        } else if there.contains(name) {
            out.other_half += 1;
        } else if registry::silent(name) {
            out.unused.push(printable(name));
        } else {
            out.unknown.push(printable(name));
        }
    }
    out
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
    pair: &'a Pair<'a>,
    merged: &'a Assembled,
    /// Bytes done since pages were given back.
    seen: AtomicUsize,
}

impl<'a> Comparison<'a> {
    fn job(gguf: &'a Gguf, pair: &'a Pair<'a>, merged: &'a Assembled) -> Job<'a> {
        Job {
            name: &pair.item.source,
            from: merged.format(),
            to: pair.tensor.ty().to_string(),
            rows: pair.rows.len(),
            cols: merged.cols(),
            whole: pair.item.transform.needs_whole(),
            bytes_in: pair.tensor.bytes().len() as u64,
            source: Box::new(Comparison { gguf, pair, merged, seen: AtomicUsize::new(0) }),
        }
    }
}

impl Source for Comparison<'_> {
    fn read(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
        let first = self.pair.rows.start;
        read_rows(self.merged, first + rows.start..first + rows.end, slot)
    }

    fn make(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
        let Pair { tensor: t, item, .. } = self.pair;
        item.transform.apply(&item.shape, &mut slot.floats, &mut slot.scratch);
        // A tensor that is cut keeps its rows, or lays each out as several; one that is not is all there.
        let row = t.row_bytes() * (self.merged.cols() / t.cols().max(1));
        let bytes = if item.transform.needs_whole() { t.bytes() } else { &t.bytes()[rows.start * row..rows.end * row] };
        slot.scratch.clear();
        slot.scratch.resize(slot.floats.len(), 0.0);
        dequantize(t.ty(), bytes, &mut slot.scratch);
        slot.quality.add(&slot.floats, &slot.scratch);
        if rows.end == self.pair.rows.len() || self.seen.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len() >= RELEASE {
            self.seen.store(0, Ordering::Relaxed);
            self.gguf.release(t);
        }
        Ok(())
    }
}
