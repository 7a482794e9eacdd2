//! Models of random numbers: the right names, shapes and sizes, for tests, benches and demonstrations.
//!
//! Every number depends on the seed, the tensor's name and its place alone, never on threads or pieces. As a directory it is a
//! checkpoint in the public layout; as a pair of GGUF files it is drawn block by block, without quantising anything.

mod draw;
mod pth;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::json;
use sphinx_quant::GgmlType;
use sphinx_quant::gguf::keys::{self, Half};
use sphinx_quant::gguf::{Plan, Writer};
use sphinx_quant::recipe::{Recipe, Role};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::config::Config;
use crate::convert::{Arch, alignment, architecture, mmproj_path, pair_id, pieces};
use crate::error::{ConvertError, Result};
use crate::metadata::{self, General};
use crate::pipeline::{self, Job, Limits, Slot, Source};
use crate::registry::{Dialect, Item, Model, Sizes, dinov2};
use crate::report::{FileReport, Progress, Report, RowReport, Watched};
use crate::tokenizer::{Kind, Piece, Tokenizer, encode_sentencepiece};
use crate::variant;
use draw::Fill;

/// What to make up.
#[derive(Clone, Debug)]
pub struct SynthOptions {
    /// `tiny`: TinyLlama-1.1B with two encoders.
    pub family: String,
    /// `nano`, a few megabytes, or `full`, the real sizes.
    pub scale: String,
    /// Recipe of the language half of a GGUF pair; Q4_K_M when `None`.
    pub quant: Option<Recipe>,
    /// Recipe of its vision half; Q8_0 when `None`.
    pub vision_quant: Option<Recipe>,
    /// Whether there is a vision half.
    pub vision: bool,
    /// `llama_ens5_light` when `None`, or `llama` without vision.
    pub llama_type: Option<String>,
    /// Where the numbers come from.
    pub seed: u64,
    /// `NAME.gguf` for a pair of model files, anything else for a directory.
    pub output: PathBuf,
    /// Worker threads.
    pub threads: usize,
    /// Whether existing outputs are replaced.
    pub force: bool,
}

/// The lengths of TinyLlama-1.1B with ConvNeXt-XXLarge and DINOv2 ViT-g/14, as released.
pub fn full_sizes(vocab: usize) -> Sizes {
    Sizes {
        cnx_depths: vec![3, 4, 30, 3],
        cnx_widths: vec![384, 768, 1536, 3072],
        dino_depth: 40,
        dino_width: 1536,
        dino_hidden: 4096,
        dino_swiglu: true,
        dino_positions: 1 + 37 * 37,
        ..Sizes::language(&tiny_config(2048, 22, 32, 4, 5632), vocab)
    }
}

/// The same structure at about a thousandth of the size.
pub fn nano_sizes(vocab: usize) -> Sizes {
    Sizes {
        cnx_depths: vec![1, 1, 2, 1],
        cnx_widths: vec![32, 64, 128, 256],
        dino_depth: 2,
        dino_width: 256,
        dino_hidden: 512,
        dino_swiglu: true,
        dino_positions: 1 + 37 * 37,
        ..Sizes::language(&tiny_config(256, 2, 4, 2, 768), vocab)
    }
}

fn tiny_config(dim: usize, layers: usize, heads: usize, kv_heads: usize, hidden: usize) -> Config {
    Config {
        dim,
        layers,
        heads,
        kv_heads,
        hidden,
        experts: 0,
        experts_used: 0,
        norm_eps: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: None,
        max_seq_len: Some(2048),
        file: PathBuf::from("config.json"),
    }
}

/// Everything about a made-up model but its numbers.
struct Invented {
    model: Model,
    config: Config,
    tokenizer: Tokenizer,
    name: String,
}

impl Invented {
    fn new(o: &SynthOptions) -> Result<Invented> {
        if o.family != "tiny" {
            let what = match o.family.as_str() {
                "intern2" | "plus" | "moe" => format!("family {} cannot be made up by this version yet", o.family),
                _ => format!("family \"{}\" is unknown", o.family),
            };
            return Err(ConvertError::Usage(format!("{what} — choose --family tiny")));
        }
        let (config, vocab) = match o.scale.as_str() {
            "nano" => (tiny_config(256, 2, 4, 2, 768), 800),
            "full" => (tiny_config(2048, 22, 32, 4, 5632), 32000),
            _ => return Err(ConvertError::Usage(format!("scale \"{}\" is unknown — choose nano or full", o.scale))),
        };
        let sizes = if o.scale == "nano" { nano_sizes(vocab) } else { full_sizes(vocab) };
        let default = if o.vision { "llama_ens5_light" } else { "llama" };
        let llama_type = o.llama_type.as_deref().unwrap_or(default);
        let variant = variant::find(llama_type, Path::new("--llama-type"))?;
        let dialect = Dialect::accessory(variant.language);
        let mut model = Model::new(variant, sizes, &dialect, None);
        if !o.vision {
            model.vision.clear();
        }
        let name = format!("synthetic {} {} seed {}", o.family, o.scale, o.seed);
        Ok(Invented { model, config, tokenizer: vocabulary(vocab), name })
    }
}

/// Makes up a model.
///
/// # Errors
/// `Usage` for a family, scale or combination that is not made up, or an output that exists; `Io`, a full disk being found first.
pub fn synth(o: &SynthOptions, p: &dyn Progress) -> Result<Report> {
    let invented = Invented::new(o)?;
    if o.output.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        pair(o, &invented, p)
    } else if o.quant.is_some() || o.vision_quant.is_some() {
        let what = format!("{} is a directory, whose tensors are not quantised", o.output.display());
        Err(ConvertError::Usage(format!("{what} — leave --quant out, or name a .gguf file")))
    } else {
        directory(o, &invented, p)
    }
}

/// One tensor's numbers, in one format.
struct Drawn {
    seed: u64,
    fill: Fill,
    cols: usize,
    ty: GgmlType,
}

impl Source for Drawn {
    fn make(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
        let first = (rows.start * self.cols) as u64;
        draw::draw(self.ty, self.seed, self.fill, first, rows.len() * self.cols, &mut slot.bytes);
        Ok(())
    }
}

/// A tensor's own seed.
fn seed_of(seed: u64, name: &str) -> u64 {
    xxh3_64_with_seed(name.as_bytes(), seed)
}

/// Numbers that keep activations near one through all layers.
fn fill_of(item: &Item) -> Fill {
    let inputs = item.shape.iter().skip(1).product::<usize>().max(1);
    let (mean, std) = match item.role {
        Role::Embedding => (0.0, 1.0),
        Role::Table => (0.0, 0.3),
        Role::Vector if item.source.ends_with(".gamma") => (0.3, 0.05),
        Role::Vector if item.source.ends_with(".bias") => (0.0, 0.02),
        Role::Vector => (1.0, 0.1),
        _ => (0.0, 1.0 / (inputs as f32).sqrt()),
    };
    Fill { mean, std }
}

fn job<'a>(name: &'a str, seed: u64, fill: Fill, rows: usize, cols: usize, ty: GgmlType) -> Job<'a> {
    let bytes_in = (rows * (cols / ty.block_len()) * ty.block_bytes()) as u64;
    let source = Box::new(Drawn { seed: seed_of(seed, name), fill, cols, ty });
    Job { source, name, from: "drawn".into(), to: ty.to_string(), rows, cols, whole: false, bytes_in }
}

fn row_report(item: &Item, to: &str, bytes: u64, shape: &[usize]) -> RowReport {
    let (source, name) = (item.source.clone(), item.name.clone());
    RowReport { source, name, from: "drawn".into(), to: to.into(), shape: shape.to_vec(), bytes_in: 0, bytes_out: bytes }
}

/// One of two model files.
struct Planned<'a> {
    half: Half,
    path: PathBuf,
    plan: Plan,
    items: &'a [Item],
}

impl<'a> Planned<'a> {
    fn new(o: &SynthOptions, invented: &'a Invented, half: Half) -> Result<Option<Planned<'a>>> {
        let Invented { model, config, tokenizer, name } = invented;
        let (given, default, items, path) = match half {
            Half::Language => (&o.quant, "Q4_K_M", &model.language, o.output.clone()),
            Half::Vision => (&o.vision_quant, "Q8_0", &model.vision, mmproj_path(&o.output)),
        };
        if items.is_empty() {
            return Ok(None);
        }
        let recipe = given.clone().or_else(|| Recipe::named(default));
        let recipe = recipe.ok_or_else(|| ConvertError::Usage(format!("recipe {default} is unknown")))?;
        let pieces = pieces(&recipe, items);
        let general = General { name, file_type: recipe.file_type(), quantised: pieces.iter().any(|p| !p.ty.is_float()) };
        let metadata = match half {
            Half::Language => {
                Some(metadata::language(model, config, tokenizer, &general, architecture(&pieces, Arch::Llama), None))
            }
            Half::Vision => metadata::vision(model, &general, false),
        };
        Ok(metadata.map(|metadata| {
            let plan = Plan { metadata, tensors: pieces.iter().map(|p| p.plan()).collect(), alignment: alignment(items) };
            Planned { half, path, plan, items }
        }))
    }
}

/// Two model files.
fn pair(o: &SynthOptions, invented: &Invented, p: &dyn Progress) -> Result<Report> {
    let files = [Planned::new(o, invented, Half::Language)?, Planned::new(o, invented, Half::Vision)?];
    let files: Vec<Planned<'_>> = files.into_iter().flatten().collect();
    let items = || files.iter().flat_map(|f| f.items);
    let limits = Limits::plan(None, o.threads, 16 << 20, items().map(|i| (i.rows(), i.cols(), false)))?;
    // There is no source but the seed, so that stands for the source's checksums.
    let seeds: BTreeMap<&str, u64> = items().map(|i| (i.source.as_str(), seed_of(o.seed, &i.source))).collect();
    let mut report = Report { peak_bytes: limits.peak_bytes, pair_id: pair_id(&seeds), ..Report::default() };
    for f in &files {
        pipeline::refuse_existing(&f.path, o.force)?;
        report.files.push(FileReport { path: f.path.clone(), bytes: f.plan.file_bytes()?, tensors: f.items.len() });
        for (item, t) in f.items.iter().zip(&f.plan.tensors) {
            report.rows.push(row_report(item, t.ty.name(), t.bytes()?, &item.out));
        }
    }
    pipeline::check_free_space(&o.output, report.bytes())?;
    let _watched = Watched::begin(p, "synth", report.rows.iter().map(|r| r.bytes_out).sum());
    let mut finished = Vec::new();
    for f in files {
        let jobs: Vec<Job<'_>> = f.items.iter().zip(&f.plan.tensors).map(|(item, t)| job_of(item, o.seed, t.ty)).collect();
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

fn job_of(item: &Item, seed: u64, ty: GgmlType) -> Job<'_> {
    Job { name: &item.name, ..job(&item.source, seed, fill_of(item), item.rows(), item.cols(), ty) }
}

/// A checkpoint in the public layout.
fn directory(o: &SynthOptions, invented: &Invented, p: &dyn Progress) -> Result<Report> {
    const FILE: &str = "consolidated.00-of-01.model.pth";
    let Invented { model, config, tokenizer, .. } = invented;
    let dir = &o.output;
    if !o.force && std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(ConvertError::Usage(format!("{}: exists and is not empty — use --force to write into it", dir.display())));
    }
    std::fs::create_dir_all(dir).map_err(|e| ConvertError::io(dir, e))?;
    let path = dir.join(FILE);
    pipeline::refuse_existing(&path, o.force)?;

    // In the released files too, and of no use.
    let width = model.sizes.dino_width;
    let mask = (!model.vision.is_empty()).then(|| (dinov2::MASK.to_owned(), vec![1, width], Fill { mean: 0.0, std: 0.3 }));
    let items = model.language.iter().chain(&model.vision);
    let tensors: Vec<(String, Vec<usize>, Fill)> = items.map(|i| (i.source.clone(), i.shape.clone(), fill_of(i))).chain(mask).collect();
    let size = |shape: &[usize]| 2 * shape.iter().product::<usize>() as u64;
    let total: u64 = tensors.iter().map(|(_, shape, _)| size(shape)).sum();
    pipeline::check_free_space(&path, total + (4 << 20))?;

    let rows = |shape: &[usize]| if shape.len() < 2 { 1 } else { shape[0] };
    let jobs: Vec<Job<'_>> = tensors
        .iter()
        .map(|(name, shape, fill)| job(name, o.seed, *fill, rows(shape), shape.iter().product::<usize>() / rows(shape), GgmlType::BF16))
        .collect();
    let limits = Limits::plan(None, o.threads, 8 << 20, jobs.iter().map(|j| (j.rows, j.cols, false)))?;
    let _watched = Watched::begin(p, "synth", total);
    let shapes: Vec<(&str, &[usize])> = tensors.iter().map(|(name, shape, _)| (name.as_str(), shape.as_slice())).collect();
    let mut archive = pth::Archive::create(&path, &shapes)?;
    pipeline::run(&jobs, &mut archive, &limits, p)?;
    let bytes = archive.finish()?;

    let settings = json!({
        "dim": config.dim, "n_layers": config.layers, "n_heads": config.heads, "n_kv_heads": config.kv_heads,
        "vocab_size": tokenizer.pieces.len(), "multiple_of": 256, "ffn_dim_multiplier": null, "norm_eps": 1e-5, "rope_theta": 10000,
        "max_batch_size": 32, "max_seq_len": config.max_seq_len, "rope_scaling": null,
    });
    let meta = json!({ "llama_type": model.variant.llama_type });
    let mut report = Report { peak_bytes: limits.peak_bytes, ..Report::default() };
    report.files.push(FileReport { path, bytes, tensors: tensors.len() });
    for (name, content) in [
        ("tokenizer.model", encode_sentencepiece(tokenizer)),
        ("config.json", format!("{settings:#}\n").into_bytes()),
        ("meta.json", format!("{meta:#}\n").into_bytes()),
    ] {
        let path = dir.join(name);
        std::fs::write(&path, &content).map_err(|e| ConvertError::io(&path, e))?;
        report.files.push(FileReport { path, bytes: content.len() as u64, tensors: 0 });
    }
    report.rows = model.language.iter().chain(&model.vision).map(|i| row_report(i, "BF16", size(&i.shape), &i.shape)).collect();
    Ok(report)
}

/// A vocabulary of `count` pieces: unknown, BOS, EOS, 256 bytes, then words that can be merged from letters, scores falling, then
/// the letters themselves.
///
/// Every word is a shorter one and a letter, so merging reaches all of them.
pub fn vocabulary(count: usize) -> Tokenizer {
    let piece = |text: String, score: f32, kind: Kind| Piece { text, score, kind };
    let mut pieces = vec![piece("<unk>".into(), 0.0, Kind::Unknown)];
    pieces.extend(["<s>", "</s>"].map(|t| piece(t.into(), 0.0, Kind::Control)));
    pieces.extend((0..=255u8).map(|b| piece(format!("<0x{b:02X}>"), 0.0, Kind::Byte)));
    let letters: Vec<String> = std::iter::once("▁".to_owned()).chain((b'!'..=b'~').map(|b| char::from(b).to_string())).collect();
    let words = count.saturating_sub(pieces.len() + letters.len());
    // Letters by how common they are, so that a small vocabulary has likely words.
    let common = "etaoinshrdlucmfwypvbgkjqxz";
    let mut known: Vec<String> = std::iter::once("▁".to_owned()).chain(common.chars().map(String::from)).collect();
    let mut shorter = 0;
    let mut made = 0;
    while made < words {
        let stem = known[shorter].clone();
        shorter += 1;
        for letter in common.chars().take(words - made) {
            let word = format!("{stem}{letter}");
            pieces.push(piece(word.clone(), -(made as f32), Kind::Normal));
            known.push(word);
            made += 1;
        }
    }
    pieces.extend(letters.into_iter().enumerate().map(|(i, l)| piece(l, -((words + i) as f32), Kind::Normal)));
    Tokenizer { pieces, unk: 0, bos: 1, eos: 2, add_space_prefix: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::parse_sentencepiece;
    use std::collections::HashSet;

    #[test]
    fn vocabularies_are_valid_and_can_be_merged() {
        for count in [800, 32000] {
            let t = vocabulary(count);
            assert_eq!(t.pieces.len(), count);
            assert_eq!(parse_sentencepiece(&encode_sentencepiece(&t)).unwrap(), t);
            let normal: Vec<&Piece> = t.pieces.iter().filter(|p| p.kind == Kind::Normal).collect();
            assert!(normal.windows(2).all(|w| w[0].score > w[1].score));
            let texts: HashSet<&str> = normal.iter().map(|p| p.text.as_str()).collect();
            for p in &normal {
                let mut stem = p.text.clone();
                let last = stem.pop().unwrap().to_string();
                assert!(texts.contains(last.as_str()) && (stem.is_empty() || texts.contains(stem.as_str())), "{}", p.text);
            }
        }
    }
}
