//! A checkpoint becomes a language file and a vision file.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sphinx_quant::GgmlType;
use sphinx_quant::error::printable;
use sphinx_quant::gguf::keys::{self, Half};
use sphinx_quant::gguf::{Plan, TensorPlan, Writer};
use sphinx_quant::imatrix::Imatrix;
use sphinx_quant::recipe::{self, Place, Recipe};
use xxhash_rust::xxh3::Xxh3;

use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::{ConvertError, Result};
use crate::gather::{Assembled, DEFAULT_PANEL_BYTES};
use crate::hf::HuggingFace;
use crate::metadata::{self, General, Metadata};
use crate::pipeline::{self, Job, Limits, Slot, Source, Weights};
use crate::registry::{self, Dialect, Item, Model, RopeOrder, Sizes, Skip};
use crate::report::{FileReport, Progress, Report, RowReport, Watched};
use crate::tokenizer::Tokenizer;
use crate::variant::{self, Encoder, PadAnchor, Variant};

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
    /// A file that says otherwise how pictures are cut up ([`Layout::overridden_by`](crate::variant::Layout::overridden_by)).
    pub layout: Option<PathBuf>,
    /// The architecture that stock tools are told.
    pub arch: Arch,
    /// In which order channels of queries and keys lie; told from the checkpoint when `None`.
    pub rope_order: Option<RopeOrder>,
    /// Whether CLIP's MLP is computed with QuickGELU.
    pub clip_quick_gelu: bool,
    /// The tensor with the rows that stand for empty sub-images, when it is not called `llma.skip_token`.
    pub skip_tensor: Option<String>,
    /// Where pictures lay in their padding in training. Rows for empty sub-images are refused without it.
    pub pad_anchor: Option<PadAnchor>,
    /// An importance matrix of this model.
    pub imatrix: Option<PathBuf>,
    /// Budget for everything, in bytes; 1 GiB when `None`.
    pub max_memory: Option<u64>,
    /// Worker threads.
    pub threads: usize,
    /// Whether existing outputs are replaced.
    pub force: bool,
    /// Whether an unknown tensor is an error.
    pub strict: bool,
}

/// The architecture that stock tools are told: what they compute is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arch {
    /// `llama`, dense or a mixture.
    #[default]
    Llama,
    /// `internlm2`, dense only.
    Internlm2,
}

impl Arch {
    /// Its name in the metadata.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Internlm2 => "internlm2",
        }
    }
}

/// The vision file that belongs to a language file: `mmproj-NAME.gguf` beside `NAME.gguf`.
pub fn mmproj_path(language: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from("mmproj-");
    name.push(language.file_name().unwrap_or_default());
    language.with_file_name(name)
}

/// How to understand a checkpoint where it does not say so itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reading<'a> {
    /// Where the vision half is, if elsewhere.
    pub vision: Option<&'a Path>,
    /// Overrides `meta.json`.
    pub llama_type: Option<&'a str>,
    /// Overrides the type's layout.
    pub layout: Option<&'a Path>,
    /// Overrides what the names suggest.
    pub rope_order: Option<RopeOrder>,
    /// The tensor of skip rows.
    pub skip_tensor: Option<&'a str>,
    /// Where pictures lay in their padding.
    pub pad_anchor: Option<PadAnchor>,
    /// Whether an unknown tensor is an error.
    pub strict: bool,
}

impl ConvertOptions {
    /// With everything else as it is unless somebody says otherwise, on as many threads as this process may use.
    pub fn new(inputs: Vec<PathBuf>, output: PathBuf, quant: Recipe, vision_quant: Recipe) -> ConvertOptions {
        ConvertOptions {
            inputs,
            output,
            quant,
            vision_quant,
            llama_type: None,
            context: None,
            vision: None,
            layout: None,
            arch: Arch::Llama,
            rope_order: None,
            clip_quick_gelu: false,
            skip_tensor: None,
            pad_anchor: None,
            imatrix: None,
            max_memory: None,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            force: false,
            strict: false,
        }
    }

    fn reading(&self) -> Reading<'_> {
        Reading {
            vision: self.vision.as_deref(),
            llama_type: self.llama_type.as_deref(),
            layout: self.layout.as_deref(),
            rope_order: self.rope_order,
            skip_tensor: self.skip_tensor.as_deref(),
            pad_anchor: self.pad_anchor,
            strict: self.strict,
        }
    }
}

/// A checkpoint that has been understood: settings, vocabulary, tensors, all cross-checked. No tensor data has been read.
pub(crate) struct Loaded {
    pub checkpoint: Checkpoint,
    /// Where the vision half is, if elsewhere.
    elsewhere: Option<Checkpoint>,
    pub dialect: Dialect,
    pub model: Model,
    pub config: Config,
    pub tokenizer: Tokenizer,
    pub warnings: Vec<String>,
}

impl Loaded {
    /// Opens and checks a checkpoint.
    pub fn open(inputs: &[PathBuf], how: &Reading<'_>) -> Result<Loaded> {
        if inputs.is_empty() {
            return Err(ConvertError::Usage("no checkpoint directory given".into()));
        }
        let checkpoint = Checkpoint::open(inputs)?;
        let elsewhere = how.vision.map(|path| Checkpoint::open(&[path.to_owned()])).transpose()?;
        let mut warnings: Vec<String> = checkpoint.notes().to_vec();
        warnings.extend(elsewhere.iter().flat_map(|c| c.notes().iter().cloned()));
        let (mut variant, config, mut dialect, tokenizer) = match HuggingFace::of(&checkpoint)? {
            Some(hub) => {
                let variant = hub.variant(how.llama_type, elsewhere.as_ref())?;
                let config = hub.config(&checkpoint, &mut warnings)?;
                let tokenizer = hub.tokenizer(&checkpoint, &mut warnings)?;
                (variant, config, hub.dialect(how.rope_order), tokenizer)
            }
            None => {
                let variant = variant::of_checkpoint(&checkpoint, how.llama_type)?;
                let config = Config::read(checkpoint.config(), &variant, checkpoint.folder(), &mut warnings)?;
                let dialect = Dialect::of(&checkpoint, variant.language);
                (variant, config, dialect, tokenizer_beside(&checkpoint)?)
            }
        };
        variant.language = dialect.language;
        dialect.rope = how.rope_order.unwrap_or(dialect.rope);
        with_layout(&mut variant, how)?;
        registry::cross_check(&checkpoint, &config, tokenizer.pieces.len(), &dialect, &variant.llama_type)?;
        let mut sizes = Sizes::language(&config, tokenizer.pieces.len());
        let sight = elsewhere.as_ref().unwrap_or(&checkpoint);
        if let Some(layout) = &variant.vision {
            sizes = sizes.with_vision(sight, layout)?;
        }
        let mut model = Model::new(variant, sizes, &dialect, None);
        if let Some(layout) = &model.variant.vision
            && let Some(skip) = Skip::find(sight, layout, model.sizes.dim, &claimed(&model), how.skip_tensor)?
        {
            model = Model::new(model.variant, model.sizes, &dialect, Some(skip));
        }
        registry::unclaimed(&checkpoint, &claimed(&model), false, how.strict, &mut warnings)?;
        if let Some(elsewhere) = &elsewhere {
            registry::unclaimed(elsewhere, &claimed(&model), true, how.strict, &mut warnings)?;
        }
        Ok(Loaded { checkpoint, elsewhere, dialect, model, config, tokenizer, warnings })
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

/// The vocabulary of a checkpoint in the public layout.
fn tokenizer_beside(checkpoint: &Checkpoint) -> Result<Tokenizer> {
    let path = checkpoint.tokenizer_model().ok_or_else(|| {
        let what = "no tokenizer.model; other tokenizers are not supported";
        ConvertError::invalid(checkpoint.folder(), what, "put the checkpoint's SentencePiece model beside it")
    })?;
    Tokenizer::read(&path)
}

/// Every name in the checkpoint that `model` wants.
fn claimed(model: &Model) -> HashSet<&str> {
    model.language.iter().chain(&model.vision).flat_map(|i| &i.sources).map(String::as_str).collect()
}

/// Puts what the caller says about pictures into the variant.
fn with_layout(variant: &mut Variant, how: &Reading<'_>) -> Result<()> {
    let flags = [(how.vision.is_some(), "--vision"), (how.layout.is_some(), "--layout"), (how.skip_tensor.is_some(), "--skip-tensor")];
    let Some(layout) = &mut variant.vision else {
        return match flags.iter().find(|(given, _)| *given) {
            None => Ok(()),
            Some((_, flag)) => {
                Err(ConvertError::Usage(format!("{flag} is given, but llama_type {} is text only — leave it out", variant.llama_type)))
            }
        };
    };
    if let Some(file) = how.layout {
        *layout = layout.overridden_by(file)?;
    }
    layout.pad_anchor = how.pad_anchor.or(layout.pad_anchor);
    Ok(())
}

/// One file to be written.
struct Planned<'a> {
    half: Half,
    path: PathBuf,
    plan: Plan,
    /// Where the items' rows come from.
    opened: Vec<Assembled>,
    pieces: Vec<Piece<'a>>,
    /// Of every piece.
    weights: Vec<Weights>,
}

/// One tensor of a model file: an item, or a run of the experts of one.
pub(crate) struct Piece<'a> {
    /// What it is, or is a part of.
    pub item: &'a Item,
    /// Which of the items that is.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Its experts; 0..1 of what is no stack.
    pub experts: Range<usize>,
    /// Its format.
    pub ty: GgmlType,
}

impl Piece<'_> {
    /// Its shape, fastest dimension first.
    pub fn dims(&self) -> Vec<usize> {
        let mut dims = self.item.dims();
        if let (Some(_), Some(experts)) = (self.item.experts(), dims.last_mut()) {
            *experts = self.experts.len();
        }
        dims
    }

    /// Rows that an expert has in the item.
    fn height(&self) -> usize {
        self.item.rows() / self.item.experts().unwrap_or(1).max(1)
    }

    /// Its name, type and shape for the writer.
    pub fn plan(&self) -> TensorPlan {
        TensorPlan { name: self.name.clone(), ty: self.ty, dims: self.dims() }
    }

    /// Whether its stack is cut into runs.
    pub fn is_cut(&self) -> bool {
        self.name != self.item.name
    }

    /// What share `of` a number for the whole item is this piece's.
    fn share(&self, of: u64) -> u64 {
        let all = self.item.experts().unwrap_or(1).max(1) as u128;
        let part = |experts: usize| (u128::from(of) * experts as u128 / all) as u64;
        part(self.experts.end) - part(self.experts.start)
    }
}

/// Asks the recipe for every item's format. A stack whose experts get several becomes a tensor per run of equal ones.
pub(crate) fn pieces<'a>(recipe: &Recipe, items: &'a [Item]) -> Vec<Piece<'a>> {
    let mut out = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let place = Place { name: &item.name, role: item.role, layer: item.layer, layers: item.layers, cols: item.cols() };
        let Some(experts) = item.experts() else {
            out.push(Piece { item, index, name: item.name.clone(), experts: 0..1, ty: recipe.choose(&place) });
            continue;
        };
        let runs = recipe.cut(&place, experts);
        let whole = runs.len() == 1;
        out.extend(runs.into_iter().map(|(experts, ty)| {
            let name = if whole { None } else { recipe::run_of(&item.name, experts.start) };
            Piece { item, index, name: name.unwrap_or_else(|| item.name.clone()), experts, ty }
        }));
    }
    recipe.arrange(out, |p| &p.name)
}

/// The architecture of a language half of these pieces.
pub(crate) fn architecture(pieces: &[Piece<'_>], wanted: Arch) -> &'static str {
    if pieces.iter().any(Piece::is_cut) { keys::ARCH_SPLIT } else { wanted.name() }
}

/// Where tensors of a file of these items begin: multiples of so many bytes. An expert of a stack shall begin with a page.
pub(crate) fn alignment(items: &[Item]) -> u32 {
    if items.iter().any(|i| i.experts().is_some()) { 16384 } else { 32 }
}

fn planned<'a>(
    o: &ConvertOptions,
    loaded: &'a Loaded,
    half: Half,
    imatrix: Option<&Imatrix>,
    warnings: &mut Vec<String>,
) -> Result<Option<Planned<'a>>> {
    let (path, recipe) = match half {
        Half::Language => (o.output.clone(), o.quant.clone().with_experts(loaded.config.experts)),
        Half::Vision => (mmproj_path(&o.output), o.vision_quant.clone()),
    };
    let recipe = recipe.for_half(half);
    let (checkpoint, items) = loaded.half(half);
    let pieces = pieces(&recipe, items);
    let name = loaded.name();
    let general = General { name: &name, file_type: recipe.file_type(), quantised: pieces.iter().any(|p| !p.ty.is_float()) };
    let metadata: Option<Metadata> = match half {
        Half::Language => {
            let arch = architecture(&pieces, o.arch);
            Some(metadata::language(&loaded.model, &loaded.config, &loaded.tokenizer, &general, arch, o.context))
        }
        Half::Vision => metadata::vision(&loaded.model, &general, o.clip_quick_gelu),
    };
    let Some(metadata) = metadata else { return Ok(None) };
    let plan = Plan { metadata, tensors: pieces.iter().map(Piece::plan).collect(), alignment: alignment(items) };
    let opened = items.iter().map(|item| item.open(checkpoint)).collect::<Result<Vec<_>>>()?;
    for (item, assembled) in items.iter().zip(&opened) {
        for note in assembled.notes() {
            if o.strict {
                let remedy = "leave --strict out to take the first";
                return Err(ConvertError::invalid(checkpoint.folder(), note, remedy).of_tensor(&item.source));
            }
            warnings.push(note.to_owned());
        }
    }
    let weigh = |p: &Piece<'_>| {
        let imatrix = imatrix.filter(|_| !p.ty.is_float());
        Weights::of(imatrix, &p.item.name, p.experts.clone(), p.height(), p.item.cols())
    };
    let weights = pieces.iter().map(weigh).collect::<Result<Vec<_>>>()?;
    Ok(Some(Planned { half, path, plan, opened, pieces, weights }))
}

/// A warning when the importance matrix does not know what is quantised.
fn unweighted(imatrix: &Imatrix, files: &[Planned<'_>]) -> Option<String> {
    let quantised = files.iter().flat_map(|f| f.pieces.iter().zip(&f.weights)).filter(|(p, _)| !p.ty.is_float());
    let (all, without): (Vec<_>, Vec<_>) = quantised.map(|(p, w)| (p, w.is_empty())).unzip();
    // Most tools measure neither embeddings nor the output matrix.
    let usual = |p: &Piece<'_>| matches!(p.item.role, recipe::Role::Embedding | recipe::Role::Output);
    let mut odd = all.iter().zip(&without).filter(|(p, without)| **without && !usual(p)).map(|(p, _)| p.name.as_str());
    let first = odd.next()?;
    let (n, of) = (1 + odd.count(), all.len());
    Some(format!(
        "the importance matrix knows {} tensors, and {n} of {of} quantised ones are not among them, \"{first}\" first",
        imatrix.len()
    ))
}

/// Both files, language first, and all warnings.
fn plan_files<'a>(o: &ConvertOptions, loaded: &'a Loaded, p: &dyn Progress) -> Result<(Vec<Planned<'a>>, Vec<String>)> {
    if o.arch == Arch::Internlm2 && loaded.config.experts > 0 {
        return Err(ConvertError::Usage("architecture internlm2 has no mixture of experts — leave --arch out".into()));
    }
    if o.pad_anchor.is_some() && loaded.model.variant.vision.is_none() {
        let llama_type = &loaded.model.variant.llama_type;
        return Err(ConvertError::Usage(format!("--pad-anchor is given, but llama_type {llama_type} is text only — leave it out")));
    }
    let clip = |layout: &variant::Layout| layout.encoders.contains(&Encoder::Clip);
    if o.clip_quick_gelu && !loaded.model.variant.vision.as_ref().is_some_and(clip) {
        let llama_type = &loaded.model.variant.llama_type;
        return Err(ConvertError::Usage(format!("--clip-activation is given, but llama_type {llama_type} has no CLIP — leave it out")));
    }
    let imatrix = o.imatrix.as_deref().map(Imatrix::read).transpose()?;
    let mut warnings = loaded.warnings.clone();
    let language = planned(o, loaded, Half::Language, imatrix.as_ref(), &mut warnings)?;
    let vision = planned(o, loaded, Half::Vision, imatrix.as_ref(), &mut warnings)?;
    let files: Vec<Planned<'_>> = [language, vision].into_iter().flatten().collect();
    warnings.extend(imatrix.as_ref().and_then(|m| unweighted(m, &files)));
    warnings.iter().for_each(|w| p.warn(w));
    Ok((files, warnings))
}

/// Divides the budget, room for turned experts included, which it gives to those who need it.
fn limits(o: &ConvertOptions, files: &mut [Planned<'_>]) -> Result<Limits> {
    let pieces: u64 = files.iter().flat_map(|f| &f.plan.metadata).map(|(k, v)| (k.len() + value_bytes(v)) as u64).sum();
    let tensors: u64 = files.iter().map(|f| f.pieces.len() as u64).sum();
    let weights: u64 = files.iter().flat_map(|f| &f.weights).map(Weights::bytes).sum();
    // Metadata is held as values, as the writer's header and as the tokenizer's pieces; a tensor is a few names and shapes.
    let fixed = 4 * pieces + 4096 * tensors + weights;
    let panel = panel_bytes(o.max_memory, fixed, files.iter().flat_map(|f| &f.opened).map(Assembled::block_bytes));
    for f in files.iter_mut() {
        f.opened = std::mem::take(&mut f.opened).into_iter().map(|a| a.with_panel(panel)).collect();
    }
    let shapes = files.iter().flat_map(|f| {
        let whole = |i: usize| f.pieces.iter().any(|p| p.index == i && p.item.transform.needs_whole());
        f.opened.iter().enumerate().map(move |(i, a)| (a.rows(), a.cols(), whole(i)))
    });
    Limits::plan(o.max_memory, o.threads, fixed + panel, shapes)
}

/// Room for a panel of turned columns: all of the largest block if a third of the budget holds it.
fn panel_bytes(max_memory: Option<u64>, fixed: u64, blocks: impl Iterator<Item = u64>) -> u64 {
    let room = max_memory.unwrap_or(pipeline::DEFAULT_MEMORY).saturating_sub(fixed) / 3;
    blocks.max().unwrap_or(0).min(room).min(DEFAULT_PANEL_BYTES)
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
        report.files.push(FileReport { path: f.path.clone(), bytes: f.plan.file_bytes()?, tensors: f.pieces.len() });
        for (piece, plan) in f.pieces.iter().zip(&f.plan.tensors) {
            let assembled = &f.opened[piece.index];
            report.rows.push(RowReport {
                source: piece.item.source.clone(),
                name: piece.name.clone(),
                from: assembled.format(),
                to: piece.ty.to_string(),
                shape: plan.dims.iter().rev().copied().collect(),
                bytes_in: piece.share(assembled.stored_bytes()),
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
    let loaded = Loaded::open(&o.inputs, &o.reading())?;
    let (mut files, warnings) = plan_files(o, &loaded, p)?;
    let limits = limits(o, &mut files)?;
    Ok(Report { dry_run: true, ..report(&files, &warnings, &limits)? })
}

/// Writes the headers of the files that [`convert`] would write, with holes for data: to price a model before it is converted.
///
/// # Errors
/// As [`dry_run`], and when a file cannot be written.
pub fn outline(o: &ConvertOptions, p: &dyn Progress) -> Result<()> {
    let loaded = Loaded::open(&o.inputs, &o.reading())?;
    let (files, _) = plan_files(o, &loaded, p)?;
    files.iter().try_for_each(|f| Ok(sphinx_quant::gguf::outline(&f.path, &f.plan)?))
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
    let loaded = Loaded::open(&o.inputs, &o.reading())?;
    let (mut files, warnings) = plan_files(o, &loaded, p)?;
    files.iter().try_for_each(|f| pipeline::refuse_existing(&f.path, o.force))?;
    let limits = limits(o, &mut files)?;
    let mut report = report(&files, &warnings, &limits)?;
    pipeline::check_free_space(&o.output, report.bytes())?;

    let mut writers = files.iter().map(|f| Ok(Writer::create(&f.path, f.plan.clone())?)).collect::<Result<Vec<_>>>()?;
    let _watched = Watched::begin(p, "convert", report.rows.iter().map(|r| r.bytes_in).sum());
    let mut checksums = BTreeMap::new();
    for (f, writer) in files.iter().zip(&mut writers) {
        let (checkpoint, items) = loaded.half(f.half);
        let hashes: Vec<Mutex<Xxh3>> = items.iter().map(|_| Mutex::new(Xxh3::new())).collect();
        let job = |(piece, weights)| FromCheckpoint::job(f, piece, weights, &hashes, checkpoint.folder());
        let jobs: Vec<Job<'_>> = f.pieces.iter().zip(&f.weights).map(job).collect();
        pipeline::run(&jobs, writer, &limits, p)?;
        let digest = |hash: &Mutex<Xxh3>| hash.lock().unwrap_or_else(|e| e.into_inner()).digest();
        checksums.extend(items.iter().zip(&hashes).map(|(i, h)| (i.source.as_str(), digest(h))));
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
    piece: &'a Piece<'a>,
    assembled: &'a Assembled,
    weights: &'a Weights,
    /// The first row of the piece in what was assembled.
    first: usize,
    /// Over the item's rows as they are assembled, as `f32` numbers, little endian. Pieces of one item follow one another.
    hash: &'a Mutex<Xxh3>,
    folder: &'a Path,
}

impl<'a> FromCheckpoint<'a> {
    fn job(f: &'a Planned<'a>, piece: &'a Piece<'a>, weights: &'a Weights, hashes: &'a [Mutex<Xxh3>], folder: &'a Path) -> Job<'a> {
        let assembled = &f.opened[piece.index];
        let height = assembled.rows() / piece.item.experts().unwrap_or(1).max(1);
        let first = piece.experts.start * height;
        Job {
            name: &piece.item.source,
            from: assembled.format(),
            to: piece.ty.to_string(),
            rows: height * piece.experts.len(),
            cols: assembled.cols(),
            whole: piece.item.transform.needs_whole(),
            bytes_in: piece.share(assembled.stored_bytes()),
            source: Box::new(FromCheckpoint { piece, assembled, weights, first, hash: &hashes[piece.index], folder }),
        }
    }
}

impl Source for FromCheckpoint<'_> {
    fn read(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
        read_rows(self.assembled, self.first + rows.start..self.first + rows.end, slot)?;
        let mut hash = self.hash.lock().unwrap_or_else(|e| e.into_inner());
        #[cfg(target_endian = "little")]
        hash.update(bytemuck::cast_slice(&slot.floats));
        #[cfg(target_endian = "big")]
        slot.floats.iter().for_each(|x| hash.update(&x.to_le_bytes()));
        Ok(())
    }

    fn make(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
        let Piece { item, ty, .. } = self.piece;
        check_range(&slot.floats, *ty).map_err(|what| {
            let what = format!("{what} in rows {}..{}", self.first + rows.start, self.first + rows.end);
            ConvertError::invalid(self.folder, what, "the checkpoint is damaged or its training failed").of_tensor(&item.source)
        })?;
        item.transform.apply(&item.shape, &mut slot.floats, &mut slot.scratch);
        slot.bytes.clear();
        self.weights.encode(*ty, rows.start, item.cols(), &slot.floats, &mut slot.bytes);
        Ok(())
    }
}

/// Fills `slot.floats` with `rows`.
pub(crate) fn read_rows(assembled: &Assembled, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
    slot.floats.clear();
    slot.floats.resize(rows.len() * assembled.cols(), 0.0);
    assembled.read_rows(rows, &mut slot.floats)
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
    fn room_for_turning_follows_the_budget() {
        let expert = 4 * 14336 * 4096;
        let blocks = || [0, expert, 100].into_iter();
        assert_eq!(panel_bytes(None, 40 << 20, blocks()), expert);
        assert_eq!(panel_bytes(Some(340 << 20), 40 << 20, blocks()), 100 << 20);
        assert_eq!(panel_bytes(Some(1 << 40), 0, [1 << 30].into_iter()), DEFAULT_PANEL_BYTES);
        assert_eq!(panel_bytes(None, 0, std::iter::empty()), 0);
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
