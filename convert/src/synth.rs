//! Models of random numbers: the right names, shapes and sizes, for tests, benches and demonstrations.
//!
//! Every number depends on the seed, the tensor's name and its place alone, never on threads, pieces or shards. As a directory it
//! is a checkpoint in the public layout; as a pair of GGUF files it is drawn block by block, without quantising anything.

mod draw;
mod family;
mod pth;
mod vocabulary;

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::json;
use sphinx_quant::GgmlType;
use sphinx_quant::gguf::keys::{self, Half};
use sphinx_quant::gguf::{Plan, Writer};
use sphinx_quant::recipe::{Recipe, Role};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::checkpoint::Rule;
use crate::config::Config;
use crate::convert::{Arch, Piece, alignment, architecture, mmproj_path, pair_id, pieces};
use crate::error::{ConvertError, Result};
use crate::metadata::{self, General};
use crate::pipeline::{self, Job, Limits, Slot, Source};
use crate::registry::{Dialect, Item, Model, Sizes, Skip, dinov2, sources};
use crate::report::{FileReport, Progress, Report, RowReport, Watched};
use crate::tokenizer::{Tokenizer, encode_sentencepiece};
use crate::variant::{self, Encoder, Language, PadAnchor};
use draw::Fill;
use family::{Decoder, Family};

pub use vocabulary::{intern_vocabulary, vocabulary};

/// What to make up.
#[derive(Clone, Debug)]
pub struct SynthOptions {
    /// `tiny`: TinyLlama-1.1B; `intern2`: InternLM2-7B; `plus`: LLaMA2-13B; `moe`: Mixtral-8x7B.
    pub family: String,
    /// `nano`, a few megabytes, or `full`, the real sizes.
    pub scale: String,
    /// Recipe of the language half of a GGUF pair; Q4_K_M when `None`.
    pub quant: Option<Recipe>,
    /// Recipe of its vision half; Q8_0 when `None`.
    pub vision_quant: Option<Recipe>,
    /// Whether there is a vision half.
    pub vision: bool,
    /// What it is; the family's usual one when `None`.
    pub llama_type: Option<String>,
    /// Decoder layers; the family's when `None`.
    pub layers: Option<usize>,
    /// A file that says otherwise how pictures are cut up ([`Layout::overridden_by`](crate::variant::Layout::overridden_by)).
    pub layout: Option<PathBuf>,
    /// Rows that stand for an empty sub-image; none when `None`.
    pub skip_tokens: Option<usize>,
    /// Where pictures lie in their padding, for a GGUF pair; a checkpoint does not say it.
    pub pad_anchor: Option<PadAnchor>,
    /// How uneven a mixture's routers are, in a GGUF pair: the scores of the expert of rank `r` are smaller by `(r + 1)^−skew`, so that
    /// some experts are chosen much oftener than others; 0 leaves them as they are drawn.
    pub router_skew: f32,
    /// Model-parallel shards of a directory.
    pub shards: usize,
    /// Where the numbers come from.
    pub seed: u64,
    /// `NAME.gguf` for a pair of model files, anything else for a directory.
    pub output: PathBuf,
    /// Worker threads.
    pub threads: usize,
    /// Whether existing outputs are replaced.
    pub force: bool,
}

impl SynthOptions {
    /// The usual member of a family, with seed 0 and in one shard, on one thread.
    pub fn new(family: &str, scale: &str, output: PathBuf) -> SynthOptions {
        SynthOptions {
            family: family.to_owned(),
            scale: scale.to_owned(),
            quant: None,
            vision_quant: None,
            vision: true,
            llama_type: None,
            layers: None,
            layout: None,
            skip_tokens: None,
            pad_anchor: None,
            router_skew: 0.0,
            shards: 1,
            seed: 0,
            output,
            threads: 1,
            force: false,
        }
    }

    /// The large files that will be written, each first under its name with `.partial` behind.
    pub fn files(&self) -> Vec<PathBuf> {
        if is_gguf(&self.output) {
            return vec![self.output.clone(), mmproj_path(&self.output)];
        }
        let name = |rank| format!("consolidated.{rank:02}-of-{:02}.model.pth", self.shards);
        (0..self.shards.min(MOST_SHARDS)).map(|rank| self.output.join(name(rank))).collect()
    }
}

/// Two digits would name more, but no model was ever cut into as many.
const MOST_SHARDS: usize = 64;

/// The lengths of TinyLlama-1.1B and of the released encoders, all four.
pub fn full_sizes(vocab: usize) -> Sizes {
    let decoder = Family::named("tiny").and_then(|f| f.decoder("full"));
    decoder.map_or_else(|_| Sizes::default(), |d| Decoder { vocab, ..d }.sizes(false))
}

/// Everything about a made-up model but its numbers.
struct Invented {
    model: Model,
    config: Config,
    multiplier: Option<f64>,
    tokenizer: Tokenizer,
    name: String,
}

impl Invented {
    fn new(o: &SynthOptions) -> Result<Invented> {
        let usage = |what: String| Err(ConvertError::Usage(what));
        let family = Family::named(&o.family)?;
        let mut decoder = family.decoder(&o.scale)?;
        decoder.layers = o.layers.unwrap_or(decoder.layers);
        if !(1..=1024).contains(&decoder.layers) {
            return usage(format!("{} layers — choose 1 to 1024", decoder.layers));
        }
        let llama_type = o.llama_type.as_deref().unwrap_or(family.types[usize::from(!o.vision)]);
        let mut variant = variant::find(llama_type, Path::new("--llama-type"))?;
        if variant.language.is_mixture() != family.is_mixture() {
            let has = |mixture| if mixture { "experts" } else { "no experts" };
            let (what, other) = (has(variant.language.is_mixture()), has(family.is_mixture()));
            return usage(format!("llama_type {llama_type} has {what} and family {} has {other} — choose another of the two", o.family));
        }
        let gguf = is_gguf(&o.output);
        let text = || format!("llama_type {} is text only", variant.llama_type);
        let mut skip = None;
        match &mut variant.vision {
            None if o.layout.is_some() || o.skip_tokens.is_some() || o.pad_anchor.is_some() => {
                return usage(format!("--layout, --skip-tokens and --pad-anchor are about pictures, and {} — leave them out", text()));
            }
            None => {}
            Some(layout) => {
                if let Some(file) = &o.layout {
                    *layout = layout.overridden_by(file)?;
                }
                if o.pad_anchor.is_some() && !gguf {
                    return usage("a checkpoint does not say where pictures lie in their padding — give --pad-anchor to convert".into());
                }
                layout.pad_anchor = o.pad_anchor.or(layout.pad_anchor);
                skip = o.skip_tokens.map(|tokens| Skip { source: "llma.skip_token".into(), shape: vec![1, tokens, decoder.dim], tokens });
                if skip.as_ref().is_some_and(|s| !(1..=4096).contains(&s.tokens)) {
                    return usage("--skip-tokens takes 1 to 4096 rows".into());
                }
                if skip.is_some() && layout.grid == 0 {
                    return usage(format!("--skip-tokens is given, but llama_type {llama_type} has no sub-images — choose another"));
                }
                if skip.is_some() && gguf && layout.pad_anchor.is_none() {
                    return usage("which sub-images are empty depends on where pictures lie in their padding — give --pad-anchor".into());
                }
            }
        }
        let dialect = if family.packed { Dialect::packed(variant.language) } else { Dialect::accessory(variant.language) };
        let mut model = Model::new(variant, decoder.sizes(o.scale == "nano"), &dialect, skip);
        if !o.vision {
            model.vision.clear();
        }
        Ok(Invented {
            model,
            config: decoder.config(),
            multiplier: decoder.multiplier,
            tokenizer: if family.intern { intern_vocabulary(decoder.vocab) } else { vocabulary(decoder.vocab) },
            name: format!("synthetic {} {} seed {}", o.family, o.scale, o.seed),
        })
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// Makes up a model.
///
/// # Errors
/// `Usage` for a family, scale or combination that is not made up, or an output that exists; `Io`, a full disk being found first.
pub fn synth(o: &SynthOptions, p: &dyn Progress) -> Result<Report> {
    let invented = Invented::new(o)?;
    if is_gguf(&o.output) {
        if o.shards != 1 {
            return Err(ConvertError::Usage("a model file has no shards — leave --shards out, or name a directory".into()));
        }
        pair(o, &invented, p)
    } else if o.quant.is_some() || o.vision_quant.is_some() {
        let what = format!("{} is a directory, whose tensors are not quantised", o.output.display());
        Err(ConvertError::Usage(format!("{what} — leave --quant out, or name a .gguf file")))
    } else {
        directory(o, &invented, p)
    }
}

/// Writes the headers of the files that [`synth`] would write, with holes for data: models of any size to plan for.
///
/// # Errors
/// As [`synth`], for a GGUF pair.
pub fn synth_outline(o: &SynthOptions) -> Result<()> {
    let invented = Invented::new(o)?;
    let files = [Planned::new(o, &invented, Half::Language)?, Planned::new(o, &invented, Half::Vision)?];
    files.into_iter().flatten().try_for_each(|f| Ok(sphinx_quant::gguf::outline(&f.path, &f.plan)?))
}

/// A part of one tensor's numbers, in one format.
struct Drawn {
    seed: u64,
    fill: Fill,
    /// Numbers in a row of the whole.
    width: usize,
    share: Share,
    ty: GgmlType,
    /// How uneven the rows are, for a router.
    skew: f32,
}

impl Source for Drawn {
    fn make(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
        slot.bytes.clear();
        let mut at = rows.start;
        while at < rows.end && self.skew != 0.0 {
            // Which expert has which rank differs from layer to layer.
            let rank = (at as u64 + self.seed) % self.share.height as u64;
            let fill = Fill { std: self.fill.std * (rank as f32 + 1.0).powf(-self.skew), ..self.fill };
            draw::draw(self.ty, self.seed, fill, (self.share.row(at) * self.width) as u64, self.width, &mut slot.bytes);
            at += 1;
        }
        while at < rows.end {
            // As far as rows follow one another in the whole, all at once; a part of a row alone.
            let (columns, count) = match &self.share.columns {
                Some(columns) => (columns.clone(), 1),
                None => (0..self.width, (self.share.height - at % self.share.height).min(rows.end - at)),
            };
            let first = (self.share.row(at) * self.width + columns.start) as u64;
            draw::draw(self.ty, self.seed, self.fill, first, count * columns.len(), &mut slot.bytes);
            at += count;
        }
        Ok(())
    }
}

/// Which rows and columns of a tensor somebody holds.
#[derive(Clone, Debug, PartialEq)]
struct Share {
    /// Row `i` is row `i / height · stride + first + i % height` of the whole.
    height: usize,
    stride: usize,
    first: usize,
    /// `None`: all.
    columns: Option<Range<usize>>,
}

impl Share {
    fn all(rows: usize) -> Share {
        Share { height: rows.max(1), stride: 0, first: 0, columns: None }
    }

    fn row(&self, i: usize) -> usize {
        i / self.height * self.stride + self.first + i % self.height
    }

    /// What shard `rank` of `of` holds of a tensor called `name`, and its shape.
    fn of(name: &str, shape: &[usize], rule: Rule, rank: usize, of: usize) -> Result<(Share, Vec<usize>)> {
        let rows = if shape.len() < 2 { 1 } else { shape[0] };
        let uneven = |n: usize, what: &str| {
            let what = format!("{n} {what} of tensor \"{name}\" do not divide among {of} shards");
            Err(ConvertError::Usage(format!("{what} — choose another number")))
        };
        let mut part = shape.to_vec();
        let share = match (rule, shape) {
            (Rule::Dim0, &[n, ..]) | (Rule::Dim1, &[_, n, ..]) if !n.is_multiple_of(of) => {
                return uneven(n, if rule == Rule::Dim0 { "rows" } else { "columns" });
            }
            (Rule::Dim0, &[n, ..]) => {
                part[0] = n / of;
                Share { height: n / of, stride: 0, first: rank * (n / of), columns: None }
            }
            (Rule::Dim1, &[_, n]) => {
                part[1] = n / of;
                Share { columns: Some(rank * (n / of)..(rank + 1) * (n / of)), ..Share::all(rows) }
            }
            (Rule::Expert { experts }, &[n, ..]) => {
                let h = n / experts.max(1);
                if !h.is_multiple_of(of) {
                    return uneven(h, "rows of an expert");
                }
                part[0] = n / of;
                Share { height: h / of, stride: h, first: rank * (h / of), columns: None }
            }
            _ => Share::all(rows),
        };
        Ok((share, part))
    }
}

/// A tensor's own seed.
fn seed_of(seed: u64, name: &str) -> u64 {
    xxh3_64_with_seed(name.as_bytes(), seed)
}

/// Numbers that keep activations near one through all layers.
fn fill_of(item: &Item) -> Fill {
    let inputs = item.shape.iter().skip(1).product::<usize>().max(1);
    let scale = |name: &str| [".gamma", ".ls1", ".ls2"].iter().any(|end| name.ends_with(end));
    let (mean, std) = match item.role {
        Role::Embedding => (0.0, 1.0),
        Role::Table => (0.0, 0.3),
        Role::Vector if scale(&item.name) => (0.3, 0.05),
        Role::Vector if item.name.ends_with(".bias") => (0.0, 0.02),
        Role::Vector => (1.0, 0.1),
        _ => (0.0, 1.0 / (inputs as f32).sqrt()),
    };
    Fill { mean, std }
}

fn row_report(source: &str, name: &str, to: &str, bytes: u64, shape: &[usize]) -> RowReport {
    let (source, name) = (source.to_owned(), name.to_owned());
    RowReport { source, name, from: "drawn".into(), to: to.into(), shape: shape.to_vec(), bytes_in: 0, bytes_out: bytes }
}

/// One of two model files.
struct Planned<'a> {
    half: Half,
    path: PathBuf,
    plan: Plan,
    pieces: Vec<Piece<'a>>,
}

impl<'a> Planned<'a> {
    fn new(o: &SynthOptions, invented: &'a Invented, half: Half) -> Result<Option<Planned<'a>>> {
        let Invented { model, config, tokenizer, name, .. } = invented;
        let (given, default, items, path) = match half {
            Half::Language => (&o.quant, "Q4_K_M", &model.language, o.output.clone()),
            Half::Vision => (&o.vision_quant, "Q8_0", &model.vision, mmproj_path(&o.output)),
        };
        if items.is_empty() {
            return Ok(None);
        }
        let recipe = given.clone().or_else(|| Recipe::named(default));
        let recipe = recipe.ok_or_else(|| ConvertError::Usage(format!("recipe {default} is unknown")))?;
        let experts = if half == Half::Language { config.experts } else { 0 };
        let recipe = recipe.with_experts(experts).for_half(half);
        let pieces = pieces(&recipe, items);
        let general = General { name, file_type: recipe.file_type(), quantised: pieces.iter().any(|p| !p.ty.is_float()) };
        let metadata = match half {
            Half::Language => Some(metadata::language(model, config, tokenizer, &general, architecture(&pieces, Arch::Llama), None)),
            Half::Vision => metadata::vision(model, &general, false),
        };
        Ok(metadata.map(|metadata| {
            let plan = Plan { metadata, tensors: pieces.iter().map(Piece::plan).collect(), alignment: alignment(items) };
            Planned { half, path, plan, pieces }
        }))
    }
}

/// Two model files.
fn pair(o: &SynthOptions, invented: &Invented, p: &dyn Progress) -> Result<Report> {
    let files = [Planned::new(o, invented, Half::Language)?, Planned::new(o, invented, Half::Vision)?];
    let files: Vec<Planned<'_>> = files.into_iter().flatten().collect();
    let items = || files.iter().flat_map(|f| f.pieces.iter().map(|p| p.item));
    let limits = Limits::plan(None, o.threads, 16 << 20, items().map(|i| (i.rows(), i.cols(), false)))?;
    // There is no source but the seed, so that stands for the source's checksums.
    let seeds: BTreeMap<&str, u64> = items().map(|i| (i.source.as_str(), seed_of(o.seed, &i.source))).collect();
    let mut report = Report { peak_bytes: limits.peak_bytes, pair_id: pair_id(&seeds), ..Report::default() };
    for f in &files {
        pipeline::refuse_existing(&f.path, o.force)?;
        report.files.push(FileReport { path: f.path.clone(), bytes: f.plan.file_bytes()?, tensors: f.pieces.len() });
        for (piece, t) in f.pieces.iter().zip(&f.plan.tensors) {
            let shape: Vec<usize> = t.dims.iter().rev().copied().collect();
            report.rows.push(row_report(&piece.item.source, &t.name, t.ty.name(), t.bytes()?, &shape));
        }
    }
    pipeline::check_free_space(&o.output, report.bytes())?;
    let _watched = Watched::begin(p, "synth", report.rows.iter().map(|r| r.bytes_out).sum());
    let mut finished = Vec::new();
    for f in files {
        let jobs: Vec<Job<'_>> = f.pieces.iter().map(|piece| of_piece(piece, o.seed, o.router_skew)).collect();
        let mut writer = Writer::create(&f.path, f.plan)?;
        pipeline::run(&jobs, &mut writer, &limits, p)?;
        writer.set_str(&f.half.key(keys::PAIR_ID), &report.pair_id)?;
        finished.push(writer.finish()?);
    }
    while let Some(file) = finished.pop() {
        file.commit()?;
    }
    Ok(report)
}

/// A tensor of a model file.
fn of_piece<'a>(piece: &'a Piece<'_>, seed: u64, router_skew: f32) -> Job<'a> {
    let (item, ty) = (piece.item, piece.ty);
    let (height, cols) = (item.rows() / item.experts().unwrap_or(1).max(1), item.cols());
    let rows = height * piece.experts.len();
    let share = Share { first: height * piece.experts.start, ..Share::all(rows) };
    let skew = if item.role == Role::Router { router_skew } else { 0.0 };
    let drawn = Drawn { seed: seed_of(seed, &item.source), fill: fill_of(item), width: cols, share, ty, skew };
    Job {
        source: Box::new(drawn),
        name: &piece.name,
        from: "drawn".into(),
        to: ty.to_string(),
        rows,
        cols,
        whole: false,
        bytes_in: (rows * (cols / ty.block_len()) * ty.block_bytes()) as u64,
    }
}

/// A tensor of a checkpoint.
struct Stored {
    name: String,
    shape: Vec<usize>,
    rule: Rule,
    fill: Fill,
    /// The shard that has it, if one alone has.
    owner: Option<usize>,
}

/// The tensors of a checkpoint, those that released files have and nobody needs at the end.
fn stored(invented: &Invented, shards: usize) -> Result<Vec<Stored>> {
    let Invented { model, .. } = invented;
    let mut out = Vec::new();
    for s in sources(model.language.iter().chain(&model.vision)) {
        let mut owner = None;
        if s.rule == Rule::Owner {
            let (experts, place) = (s.item.sources.len(), s.item.sources.iter().position(|n| n == s.name).unwrap_or(0));
            if !experts.is_multiple_of(shards) {
                let what = format!("{experts} experts do not divide among {shards} shards");
                return Err(ConvertError::Usage(format!("{what} — choose another number")));
            }
            owner = Some(place / (experts / shards));
        }
        out.push(Stored { name: s.name.to_owned(), shape: s.shape.to_vec(), rule: s.rule, fill: fill_of(s.item), owner });
    }
    let sizes = &model.sizes;
    let mut unused = |name: &str, shape: &[usize]| {
        out.push(Stored { name: name.into(), shape: shape.to_vec(), rule: Rule::Same, fill: Fill { mean: 0.0, std: 0.3 }, owner: None });
    };
    if !model.vision.is_empty() {
        unused(dinov2::MASK, &[1, sizes.dino_width]);
    }
    let clip = |v: &variant::Layout| v.encoders.contains(&Encoder::Clip);
    if !model.vision.is_empty() && model.variant.vision.as_ref().is_some_and(clip) {
        // The text tower's, three quarters as wide, with its own vocabulary.
        let width = sizes.clip_width * 3 / 4;
        let words = if sizes.clip_width == 1024 { 49408 } else { 64 };
        unused("llma.clip.visual.proj", &[sizes.clip_width, width]);
        unused("llma.clip.positional_embedding", &[77, width]);
        unused("llma.clip.text_projection", &[width, width]);
        unused("llma.clip.logit_scale", &[]);
        unused("llma.clip.token_embedding.weight", &[words, width]);
        unused("llma.clip.ln_final.weight", &[width]);
        unused("llma.clip.ln_final.bias", &[width]);
    }
    if !invented.config.kv_heads.is_multiple_of(shards) && out.iter().any(|s| s.name.contains(".wqkv.")) {
        let what = format!("{} key heads do not divide among {shards} shards", invented.config.kv_heads);
        return Err(ConvertError::Usage(format!("{what} — choose another number")));
    }
    Ok(out)
}

/// What a shard has of a tensor.
struct Held<'a> {
    tensor: &'a Stored,
    shape: Vec<usize>,
    share: Share,
}

impl Held<'_> {
    fn bytes(&self) -> u64 {
        2 * self.shape.iter().product::<usize>() as u64
    }

    fn job(&self, seed: u64) -> Job<'_> {
        let rows = |shape: &[usize]| if shape.len() < 2 { 1 } else { shape[0] };
        let cols = |shape: &[usize]| shape.iter().product::<usize>() / rows(shape).max(1);
        let Stored { name, fill, shape, .. } = self.tensor;
        let (seed, ty) = (seed_of(seed, name), GgmlType::BF16);
        let drawn = Drawn { seed, fill: *fill, width: cols(shape), share: self.share.clone(), ty, skew: 0.0 };
        Job {
            source: Box::new(drawn),
            name,
            from: "drawn".into(),
            to: ty.to_string(),
            rows: rows(&self.shape),
            cols: cols(&self.shape),
            whole: false,
            bytes_in: self.bytes(),
        }
    }
}

/// A checkpoint in the public layout.
fn directory(o: &SynthOptions, invented: &Invented, p: &dyn Progress) -> Result<Report> {
    let Invented { model, config, tokenizer, .. } = invented;
    let dir = &o.output;
    if !(1..=MOST_SHARDS).contains(&o.shards) {
        return Err(ConvertError::Usage(format!("{} shards — choose 1 to {MOST_SHARDS}", o.shards)));
    }
    let tensors = stored(invented, o.shards)?;
    let mut shards: Vec<(PathBuf, Vec<Held<'_>>)> = Vec::with_capacity(o.shards);
    for (rank, path) in o.files().into_iter().enumerate() {
        let mut held = Vec::with_capacity(tensors.len());
        for tensor in tensors.iter().filter(|t| t.owner.is_none_or(|owner| owner == rank)) {
            let (share, shape) = Share::of(&tensor.name, &tensor.shape, tensor.rule, rank, o.shards)?;
            held.push(Held { tensor, shape, share });
        }
        shards.push((path, held));
    }
    if !o.force && std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(ConvertError::Usage(format!("{}: exists and is not empty — use --force to write into it", dir.display())));
    }
    std::fs::create_dir_all(dir).map_err(|e| ConvertError::io(dir, e))?;
    strangers(dir, &shards.iter().map(|(path, _)| path.as_path()).collect())?;
    for (path, _) in &shards {
        pipeline::refuse_existing(path, o.force)?;
    }
    let total: u64 = shards.iter().flat_map(|(_, held)| held).map(Held::bytes).sum();
    pipeline::check_free_space(&dir.join("x"), total + (4 << 20))?;

    let mut report = Report::default();
    let _watched = Watched::begin(p, "synth", total);
    let mut closed = Vec::with_capacity(shards.len());
    for (path, held) in &shards {
        let jobs: Vec<Job<'_>> = held.iter().map(|h| h.job(o.seed)).collect();
        let limits = Limits::plan(None, o.threads, 8 << 20, jobs.iter().map(|j| (j.rows, j.cols, false)))?;
        let shapes: Vec<(&str, &[usize])> = held.iter().map(|h| (h.tensor.name.as_str(), h.shape.as_slice())).collect();
        let mut archive = pth::Archive::create(path, &shapes)?;
        pipeline::run(&jobs, &mut archive, &limits, p)?;
        let archive = archive.finish()?;
        report.peak_bytes = report.peak_bytes.max(limits.peak_bytes);
        report.files.push(FileReport { path: path.clone(), bytes: archive.bytes(), tensors: held.len() });
        closed.push(archive);
    }
    closed.into_iter().try_for_each(pth::Closed::commit)?;

    let mut settings = json!({
        "dim": config.dim, "n_layers": config.layers, "n_heads": config.heads, "n_kv_heads": config.kv_heads,
        "vocab_size": tokenizer.pieces.len(), "norm_eps": 1e-5, "rope_theta": config.rope_theta,
        "max_batch_size": 32, "max_seq_len": config.max_seq_len, "rope_scaling": null,
    });
    if model.variant.language == Language::Dense {
        settings["multiple_of"] = json!(256);
        settings["ffn_dim_multiplier"] = json!(invented.multiplier);
    } else {
        settings["hidden_dim"] = json!(config.hidden);
        settings["moe"] = json!({ "num_experts_per_tok": config.experts_used, "num_experts": config.experts });
    }
    let meta = json!({ "llama_type": model.variant.llama_type });
    for (name, content) in [
        ("tokenizer.model", encode_sentencepiece(tokenizer)),
        ("config.json", format!("{settings:#}\n").into_bytes()),
        ("meta.json", format!("{meta:#}\n").into_bytes()),
    ] {
        let path = dir.join(name);
        std::fs::write(&path, &content).map_err(|e| ConvertError::io(&path, e))?;
        report.files.push(FileReport { path, bytes: content.len() as u64, tensors: 0 });
    }
    let size = |shape: &[usize]| 2 * shape.iter().product::<usize>() as u64;
    report.rows = tensors.iter().map(|t| row_report(&t.name, &t.name, "BF16", size(&t.shape), &t.shape)).collect();
    Ok(report)
}

/// Refuses a directory with checkpoint files that are not `ours`: together they would be no checkpoint.
fn strangers(dir: &Path, ours: &HashSet<&Path>) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(|e| ConvertError::io(dir, e))? {
        let path = entry.map_err(|e| ConvertError::io(dir, e))?.path();
        let name = path.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
        if name.starts_with("consolidated.") && name.ends_with(".pth") && !ours.contains(path.as_path()) {
            return Err(ConvertError::Usage(format!(
                "{}: belongs to another checkpoint — remove it, or choose another directory",
                path.display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a shard holds, drawn piecewise.
    fn drawn(rule: Rule, shape: &[usize], rank: usize, of: usize, step: usize) -> (Vec<u16>, Vec<usize>) {
        let (share, part) = Share::of("t", shape, rule, rank, of).unwrap();
        let fill = Fill { mean: 0.0, std: 1.0 };
        let d = Drawn { seed: 7, fill, width: shape[1], share, ty: GgmlType::BF16, skew: 0.0 };
        let mut out = vec![];
        let mut slot = Slot::default();
        for start in (0..part[0]).step_by(step) {
            d.make(start..(start + step).min(part[0]), &mut slot).unwrap();
            out.extend(slot.bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b)));
        }
        (out, part)
    }

    fn full(family: &str, llama_type: Option<&str>) -> Invented {
        let o = SynthOptions { llama_type: llama_type.map(str::to_owned), ..SynthOptions::new(family, "full", "x".into()) };
        Invented::new(&o).unwrap()
    }

    #[test]
    fn full_size_decoders_count_as_published() {
        for (family, params) in
            [("tiny", 1_100_048_384usize), ("intern2", 7_737_708_544), ("plus", 13_015_864_320), ("moe", 46_702_792_704)]
        {
            let made = full(family, None);
            assert_eq!(made.model.language.iter().map(Item::len).sum::<usize>(), params, "{family}");
            // As many in the checkpoint, however they are packed there.
            let stored: usize = sources(&made.model.language).iter().map(|s| s.shape.iter().product::<usize>()).sum();
            assert_eq!(stored, params, "{family}");
            let embeddings = made.model.language.iter().find(|i| i.role == Role::Embedding).unwrap();
            assert_eq!(embeddings.rows(), made.tokenizer.pieces.len(), "{family}");
        }
        let owner = full("moe", Some("mixtral"));
        assert_eq!(owner.model.language.iter().map(Item::len).sum::<usize>(), 46_702_792_704);
        assert_eq!(stored(&owner, 8).unwrap().len(), 3 + 32 * (7 + 24));
        assert_eq!(stored(&full("intern2", None), 1).unwrap().iter().filter(|s| s.shape == [6144, 4096]).count(), 32);
    }

    #[test]
    fn full_size_encoders_are_the_published_ones() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/spec/vision_tensors.tsv");
        let Ok(text) = std::fs::read_to_string(&path) else {
            eprintln!("skipped: no {}", path.display());
            return;
        };
        // Name, shape of a model with all four encoders, and of one with two, at a decoder width of 4096.
        let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|l| l.split('\t').collect()).collect();
        assert_eq!(rows.len(), 1980);
        let shape = |text: &str| text.split('x').map(|n| n.parse().unwrap()).collect::<Vec<usize>>();
        for (family, llama_type, light) in [("moe", "mixtral_sparse_ens5", false), ("intern2", "internlm2_ens5_light", true)] {
            let want: BTreeMap<&str, Vec<usize>> = rows
                .iter()
                .filter(|r| !light || r[6] == "yes")
                .map(|r| {
                    (
                        r[0],
                        shape(
                            r[1].split(" (light: ")
                                .nth(usize::from(light))
                                .unwrap_or(r[1])
                                .trim_end_matches(')')
                                .split(' ')
                                .next()
                                .unwrap(),
                        ),
                    )
                })
                .collect();
            let made = full(family, Some(llama_type));
            let all = stored(&made, 1).unwrap();
            let decoder: HashSet<&String> = made.model.language.iter().flat_map(|i| &i.sources).collect();
            let text_tower = |n: &str| n.starts_with("llma.clip.") && !n.starts_with("llma.clip.visual.");
            let found: BTreeMap<&str, Vec<usize>> = all
                .iter()
                .filter(|s| !decoder.contains(&s.name) && !text_tower(&s.name))
                .map(|s| (s.name.as_str(), s.shape.clone()))
                .collect();
            assert_eq!(found, want, "{llama_type}");
            // 0.0386 G of CLIP's text tower that nobody needs.
            let left: usize = all.iter().filter(|s| text_tower(&s.name)).map(|s| s.shape.iter().product::<usize>()).sum();
            assert_eq!(left, if light { 0 } else { 38_595_841 });
        }
    }

    #[test]
    fn shards_are_parts_of_the_same_whole() {
        let shape = [12, 8];
        let whole = drawn(Rule::Same, &shape, 0, 1, 5).0;
        let row = |r: usize| &whole[8 * r..8 * r + 8];
        for step in [1, 2, 3, 100] {
            assert_eq!(drawn(Rule::Same, &shape, 1, 2, step), (whole.clone(), vec![12, 8]));
            assert_eq!(drawn(Rule::Dim0, &shape, 1, 3, step), ((4..8).flat_map(row).copied().collect(), vec![4, 8]));
            assert_eq!(drawn(Rule::Dim1, &shape, 1, 2, step), ((0..12).flat_map(|r| &row(r)[4..]).copied().collect(), vec![12, 4]));
            // Three experts of four rows: the second half of each.
            let want: Vec<u16> = [2, 3, 6, 7, 10, 11].into_iter().flat_map(row).copied().collect();
            assert_eq!(drawn(Rule::Expert { experts: 3 }, &shape, 1, 2, step), (want, vec![6, 8]));
        }
        let uneven = |rule| Share::of("t", &shape, rule, 0, 5).unwrap_err().to_string();
        assert!(uneven(Rule::Dim0).contains("12 rows") && uneven(Rule::Dim1).contains("8 columns"));
        assert!(uneven(Rule::Expert { experts: 3 }).contains("4 rows of an expert"));
    }
}
