//! A checkpoint becomes a language file and a vision file.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sphinx_quant::GgmlType;
use sphinx_quant::block::quantize;
use sphinx_quant::error::printable;
use sphinx_quant::gguf::keys::{self, Half};
use sphinx_quant::gguf::{Plan, TensorPlan, Writer};
use sphinx_quant::recipe::{Place, Recipe};
use xxhash_rust::xxh3::Xxh3;

use crate::checkpoint::{Checkpoint, Merged};
use crate::config::Config;
use crate::error::{ConvertError, Result};
use crate::metadata::{self, Metadata};
use crate::pipeline::{self, Job, Limits, Slot, Source};
use crate::registry::{self, Item, Model, Sizes};
use crate::report::{FileReport, Progress, Report, RowReport, Watched};
use crate::tokenizer::Tokenizer;
use crate::variant;

/// What to convert, and how.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// Checkpoint directories; later ones override earlier ones.
    pub inputs: Vec<PathBuf>,
    /// The language file; the vision file lies beside it ([`mmproj_path`]).
    pub output: PathBuf,
    /// Recipe of the language half.
    pub quant: Recipe,
    /// Recipe of the vision half.
    pub vision_quant: Recipe,
    /// Overrides `meta.json`.
    pub llama_type: Option<String>,
    /// Positions the model is used with; 4096 when `None`.
    pub context: Option<u32>,
    /// A checkpoint that holds the vision half, when the first does not.
    pub vision: Option<PathBuf>,
    /// Budget for everything, in bytes; 1 GiB when `None`.
    pub max_memory: Option<u64>,
    /// Worker threads.
    pub threads: usize,
    /// Whether existing outputs are replaced.
    pub force: bool,
    /// Whether an unknown tensor is an error.
    pub strict: bool,
}

/// The vision file that belongs to a language file: `mmproj-NAME.gguf` beside `NAME.gguf`.
pub fn mmproj_path(language: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from("mmproj-");
    name.push(language.file_name().unwrap_or_default());
    language.with_file_name(name)
}

/// A checkpoint that has been understood: settings, vocabulary, tensors, all cross-checked. No tensor data has been read.
pub(crate) struct Loaded {
    pub checkpoint: Checkpoint,
    /// Where the vision half is, if elsewhere.
    elsewhere: Option<Checkpoint>,
    pub model: Model,
    pub config: Config,
    pub tokenizer: Tokenizer,
    pub warnings: Vec<String>,
}

impl Loaded {
    /// Opens and checks a checkpoint.
    pub fn open(inputs: &[PathBuf], vision: Option<&Path>, llama_type: Option<&str>, strict: bool) -> Result<Loaded> {
        if inputs.is_empty() {
            return Err(ConvertError::Usage("no checkpoint directory given".into()));
        }
        let checkpoint = Checkpoint::open(inputs)?;
        let elsewhere = vision.map(|path| Checkpoint::open(&[path.to_owned()])).transpose()?;
        let mut warnings: Vec<String> = checkpoint.notes().to_vec();
        warnings.extend(elsewhere.iter().flat_map(|c| c.notes().iter().cloned()));
        let variant = variant::of_checkpoint(&checkpoint, llama_type)?;
        if elsewhere.is_some() && variant.vision.is_none() {
            return Err(ConvertError::Usage(format!("--vision is given, but llama_type {} is text only", variant.llama_type)));
        }
        let config = Config::read(checkpoint.config(), &variant, checkpoint.folder(), &mut warnings)?;
        let tokenizer = checkpoint.tokenizer_model().ok_or_else(|| {
            let what = "no tokenizer.model; other tokenizers are not supported";
            ConvertError::invalid(checkpoint.folder(), what, "put the checkpoint's SentencePiece model beside it")
        })?;
        let tokenizer = Tokenizer::read(&tokenizer)?;
        registry::cross_check(&checkpoint, &config, tokenizer.pieces.len())?;
        let mut sizes = Sizes::language(&config, tokenizer.pieces.len());
        if variant.vision.is_some() {
            sizes = sizes.with_vision(elsewhere.as_ref().unwrap_or(&checkpoint))?;
            if !sizes.dino_width.is_multiple_of(metadata::DINO_HEAD) {
                let what = format!("DINOv2 is {} wide, expected a multiple of {}", sizes.dino_width, metadata::DINO_HEAD);
                return Err(
                    ConvertError::invalid(checkpoint.folder(), what, "is this a SPHINX checkpoint?").of_tensor(registry::dinov2::CLASS)
                );
            }
        }
        let model = Model::new(variant, sizes);
        let claimed: HashSet<&str> = model.language.iter().chain(&model.vision).map(|i| i.source.as_str()).collect();
        for c in [Some(&checkpoint), elsewhere.as_ref()].into_iter().flatten() {
            registry::unclaimed(c, &claimed, strict, &mut warnings)?;
        }
        Ok(Loaded { checkpoint, elsewhere, model, config, tokenizer, warnings })
    }

    /// Where the items of `half` are, and the items.
    pub fn half(&self, half: Half) -> (&Checkpoint, &[Item]) {
        match half {
            Half::Language => (&self.checkpoint, &self.model.language),
            Half::Vision => (self.elsewhere.as_ref().unwrap_or(&self.checkpoint), &self.model.vision),
        }
    }

    /// A name for the model: what its directory is called, so that the same checkpoint gives the same file wherever it goes.
    fn name(&self) -> String {
        let folder = self.checkpoint.folder();
        let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        whole.file_name().map_or("sphinx".into(), |n| printable(&n.to_string_lossy()))
    }

    fn unchanged(&self) -> Result<()> {
        self.checkpoint.unchanged()?;
        self.elsewhere.as_ref().map_or(Ok(()), Checkpoint::unchanged)
    }
}

/// One file to be written.
struct Planned<'a> {
    half: Half,
    path: PathBuf,
    plan: Plan,
    rows: Vec<Entry<'a>>,
}

/// One tensor of it.
struct Entry<'a> {
    item: &'a Item,
    merged: Merged,
    ty: GgmlType,
}

/// Asks the recipe for every tensor's type.
pub(crate) fn choose(recipe: &Recipe, items: &[Item]) -> Vec<GgmlType> {
    let place = |i: &Item| recipe.choose(&Place { name: &i.name, role: i.role, layer: i.layer, layers: i.layers, cols: i.cols() });
    items.iter().map(place).collect()
}

/// Names, types and shapes for the writer.
pub(crate) fn tensor_plans(items: &[Item], types: &[GgmlType]) -> Vec<TensorPlan> {
    items.iter().zip(types).map(|(i, &ty)| TensorPlan { name: i.name.clone(), ty, dims: i.dims() }).collect()
}

fn planned<'a>(o: &ConvertOptions, loaded: &'a Loaded, half: Half, warnings: &mut Vec<String>) -> Result<Option<Planned<'a>>> {
    let (path, recipe) = match half {
        Half::Language => (o.output.clone(), &o.quant),
        Half::Vision => (mmproj_path(&o.output), &o.vision_quant),
    };
    let (checkpoint, items) = loaded.half(half);
    let types = choose(recipe, items);
    let quantised = types.iter().any(|t| !t.is_float());
    let (name, file_type) = (loaded.name(), recipe.file_type());
    let metadata: Option<Metadata> = match half {
        Half::Language => {
            Some(metadata::language(&loaded.model, &loaded.config, &loaded.tokenizer, &name, o.context, file_type, quantised))
        }
        Half::Vision => metadata::vision(&loaded.model, &name, file_type, quantised),
    };
    let Some(metadata) = metadata else { return Ok(None) };
    let plan = Plan { metadata, tensors: tensor_plans(items, &types), alignment: 32 };
    let entry = |(item, ty): (&'a Item, GgmlType)| Ok(Entry { item, merged: item.open(checkpoint)?, ty });
    let rows = items.iter().zip(types).map(entry).collect::<Result<Vec<_>>>()?;
    for (e, note) in rows.iter().filter_map(|e| Some((e, e.merged.note()?))) {
        if o.strict {
            return Err(ConvertError::invalid(checkpoint.folder(), note, "leave --strict out to take the first").of_tensor(&e.item.source));
        }
        warnings.push(note.to_owned());
    }
    Ok(Some(Planned { half, path, plan, rows }))
}

/// Both files, language first, and all warnings.
fn plan_files<'a>(o: &ConvertOptions, loaded: &'a Loaded, p: &dyn Progress) -> Result<(Vec<Planned<'a>>, Vec<String>)> {
    let mut warnings = loaded.warnings.clone();
    let language = planned(o, loaded, Half::Language, &mut warnings)?;
    let vision = planned(o, loaded, Half::Vision, &mut warnings)?;
    warnings.iter().for_each(|w| p.warn(w));
    Ok(([language, vision].into_iter().flatten().collect(), warnings))
}

fn limits(o: &ConvertOptions, files: &[Planned<'_>]) -> Result<Limits> {
    let pieces: u64 = files.iter().flat_map(|f| &f.plan.metadata).map(|(k, v)| (k.len() + value_bytes(v)) as u64).sum();
    let tensors: u64 = files.iter().map(|f| f.rows.len() as u64).sum();
    // Metadata is held as values, as the writer's header and as the tokenizer's pieces; a tensor is a few names and shapes.
    let fixed = 4 * pieces + 4096 * tensors;
    let shapes = files.iter().flat_map(|f| &f.rows).map(|e| (e.merged.rows(), e.merged.cols(), e.item.transform.needs_whole()));
    Limits::plan(o.max_memory, o.threads, fixed, shapes)
}

fn value_bytes(value: &sphinx_quant::gguf::Value) -> usize {
    use sphinx_quant::gguf::{Array, Value};
    match value {
        Value::Str(s) => s.len(),
        Value::Array(Array::Str(s)) => s.iter().map(|s| s.len() + 24).sum(),
        Value::Array(a) => 8 * a.len(),
        _ => 8,
    }
}

fn report(files: &[Planned<'_>], warnings: &[String], limits: &Limits) -> Result<Report> {
    let mut report = Report { warnings: warnings.to_vec(), peak_bytes: limits.peak_bytes, ..Report::default() };
    for f in files {
        report.files.push(FileReport { path: f.path.clone(), bytes: f.plan.file_bytes()?, tensors: f.rows.len() });
        for (e, plan) in f.rows.iter().zip(&f.plan.tensors) {
            report.rows.push(RowReport {
                source: e.item.source.clone(),
                name: e.item.name.clone(),
                from: e.merged.dtype().name().into(),
                to: e.ty.to_string(),
                shape: e.item.out.clone(),
                bytes_in: e.merged.stored_bytes(),
                bytes_out: plan.bytes()?,
            });
        }
    }
    Ok(report)
}

/// Prices a conversion: what [`convert`] would write and how much memory it would take. Reads no tensor data, writes nothing.
///
/// # Errors
/// As [`convert`], for all that can be known without reading the data.
pub fn dry_run(o: &ConvertOptions, p: &dyn Progress) -> Result<Report> {
    let loaded = Loaded::open(&o.inputs, o.vision.as_deref(), o.llama_type.as_deref(), o.strict)?;
    let (files, warnings) = plan_files(o, &loaded, p)?;
    let limits = limits(o, &files)?;
    Ok(Report { dry_run: true, ..report(&files, &warnings, &limits)? })
}

/// Converts a checkpoint into `NAME.gguf` and, unless it is text only, `mmproj-NAME.gguf`.
///
/// Tensors are read, quantised and written a few MiB at a time. The files depend on the checkpoint and the recipes alone, not
/// on the number of threads or the budget. Both get their names at the very end, or neither does.
///
/// # Errors
/// `Usage` for an output that exists, `Invalid` for a checkpoint that is incomplete, inconsistent, of an unsupported type or
/// holds numbers that are not finite, `Io`, and `Budget` when the work does not fit `max_memory`.
pub fn convert(o: &ConvertOptions, p: &dyn Progress) -> Result<Report> {
    if o.output.file_name().is_none() {
        return Err(ConvertError::Usage(format!("{}: is no file name — give NAME.gguf", o.output.display())));
    }
    pipeline::refuse_existing(&o.output, o.force)?;
    let loaded = Loaded::open(&o.inputs, o.vision.as_deref(), o.llama_type.as_deref(), o.strict)?;
    let (files, warnings) = plan_files(o, &loaded, p)?;
    files.iter().try_for_each(|f| pipeline::refuse_existing(&f.path, o.force))?;
    let limits = limits(o, &files)?;
    let mut report = report(&files, &warnings, &limits)?;
    pipeline::check_free_space(&o.output, report.bytes())?;

    let mut writers = files.iter().map(|f| Ok(Writer::create(&f.path, f.plan.clone())?)).collect::<Result<Vec<_>>>()?;
    let _watched = Watched::begin(p, "convert", report.rows.iter().map(|r| r.bytes_in).sum());
    let mut checksums = BTreeMap::new();
    for (f, writer) in files.iter().zip(&mut writers) {
        let hashes: Vec<Mutex<Xxh3>> = f.rows.iter().map(|_| Mutex::new(Xxh3::new())).collect();
        let job = |(entry, hash)| FromCheckpoint::job(entry, hash, loaded.half(f.half).0.folder());
        let jobs: Vec<Job<'_>> = f.rows.iter().zip(&hashes).map(job).collect();
        pipeline::run(&jobs, writer, &limits, p)?;
        let digest = |hash: &Mutex<Xxh3>| hash.lock().unwrap_or_else(|e| e.into_inner()).digest();
        checksums.extend(f.rows.iter().zip(&hashes).map(|(e, h)| (e.item.source.as_str(), digest(h))));
    }
    report.pair_id = pair_id(&checksums);
    loaded.unchanged()?;
    let mut finished = Vec::new();
    for (f, mut writer) in files.iter().zip(writers) {
        writer.set_str(&f.half.key(keys::PAIR_ID), &report.pair_id)?;
        finished.push(writer.finish()?);
    }
    // The language file last: who sees it sees a whole model.
    while let Some(file) = finished.pop() {
        file.commit()?;
    }
    Ok(report)
}

/// The id that two halves share: a hash over names and checksums of all source tensors, in the order of their names.
pub(crate) fn pair_id(checksums: &BTreeMap<&str, u64>) -> String {
    let mut hash = Xxh3::new();
    for (name, checksum) in checksums {
        hash.update(name.as_bytes());
        hash.update(&[0]);
        hash.update(&checksum.to_le_bytes());
    }
    format!("{:032x}", hash.digest128())
}

/// Rows of a checkpoint, laid anew and quantised.
struct FromCheckpoint<'a> {
    entry: &'a Entry<'a>,
    /// Over the tensor as `f32` numbers, little endian, in its own order.
    hash: &'a Mutex<Xxh3>,
    folder: &'a Path,
}

impl<'a> FromCheckpoint<'a> {
    fn job(entry: &'a Entry<'a>, hash: &'a Mutex<Xxh3>, folder: &'a Path) -> Job<'a> {
        Job {
            name: &entry.item.source,
            from: entry.merged.dtype().name().into(),
            to: entry.ty.to_string(),
            rows: entry.merged.rows(),
            cols: entry.merged.cols(),
            whole: entry.item.transform.needs_whole(),
            bytes_in: entry.merged.stored_bytes(),
            source: Box::new(FromCheckpoint { entry, hash, folder }),
        }
    }
}

impl Source for FromCheckpoint<'_> {
    fn read(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
        read_rows(&self.entry.merged, rows, slot)?;
        let mut hash = self.hash.lock().unwrap_or_else(|e| e.into_inner());
        #[cfg(target_endian = "little")]
        hash.update(bytemuck::cast_slice(&slot.floats));
        #[cfg(target_endian = "big")]
        slot.floats.iter().for_each(|x| hash.update(&x.to_le_bytes()));
        Ok(())
    }

    fn make(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
        let Entry { item, merged, ty } = self.entry;
        check_range(&slot.floats, *ty).map_err(|what| {
            let what = format!("{what} in rows {}..{}", rows.start, rows.end);
            ConvertError::invalid(self.folder, what, "the checkpoint is damaged or its training failed").of_tensor(merged.name())
        })?;
        item.transform.apply(&item.shape, &mut slot.floats, &mut slot.scratch);
        encode(*ty, slot);
        Ok(())
    }
}

/// Fills `slot.floats` with `rows`.
pub(crate) fn read_rows(merged: &Merged, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
    slot.floats.clear();
    slot.floats.resize(rows.len() * merged.cols(), 0.0);
    merged.read_rows(rows, &mut slot.floats)
}

/// Puts `slot.floats` into `slot.bytes` as `ty`.
pub(crate) fn encode(ty: GgmlType, slot: &mut Slot) {
    let bytes = slot.floats.len() / ty.block_len() * ty.block_bytes();
    slot.bytes.clear();
    slot.bytes.resize(bytes, 0);
    quantize(ty, &slot.floats, None, &mut slot.bytes);
}

/// Refuses numbers that are not finite, or that a half-precision number or scale cannot hold.
pub(crate) fn check_range(values: &[f32], ty: GgmlType) -> std::result::Result<(), &'static str> {
    // The order of magnitudes is the order of their bits; NaN and infinity come last.
    let largest = values.iter().fold(0u32, |m, x| m.max(x.to_bits() & 0x7fff_ffff));
    if largest >= f32::INFINITY.to_bits() {
        Err("NaN or infinity")
    } else if largest > 65504f32.to_bits() && !matches!(ty, GgmlType::F32 | GgmlType::BF16) {
        Err("a number beyond 65504, too large for the chosen format,")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mmproj_lies_beside() {
        assert_eq!(mmproj_path(Path::new("a/b.gguf")), Path::new("a/mmproj-b.gguf"));
        assert_eq!(mmproj_path(Path::new("b.gguf")), Path::new("mmproj-b.gguf"));
    }

    #[test]
    fn odd_numbers_are_found() {
        assert!(check_range(&[0.0, -1.0, 65504.0, f32::MIN_POSITIVE / 2.0], GgmlType::F16).is_ok());
        assert!(check_range(&[0.0, -65600.0], GgmlType::Q8_0).is_err());
        assert!(check_range(&[0.0, -65600.0], GgmlType::F32).is_ok());
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(check_range(&[1.0, bad, 1.0], GgmlType::F32).is_err());
        }
    }

    #[test]
    fn pair_ids_depend_on_names_and_checksums() {
        let id = |v: &[(&'static str, u64)]| pair_id(&v.iter().copied().collect());
        let a = id(&[("x", 1), ("y", 2)]);
        assert_eq!((a.len(), &a), (32, &id(&[("y", 2), ("x", 1)])));
        assert_ne!(a, id(&[("x", 2), ("y", 1)]));
        assert_ne!(a, id(&[("x", 1), ("z", 2)]));
    }
}
