//! Which tensor gets which format.
//!
//! A recipe is a base format with exceptions. The named ones mix formats as llama.cpp does for the same names, so that
//! file sizes and quality are those that people know:
//!
//! | recipe | most matrices | `output` | `attn_v` | `ffn_down` | `attn_qkv` |
//! |---|---|---|---|---|---|
//! | `F32` | F32 | F32 | F32 | F32 | F32 |
//! | `F16` | F16 | F16 | F16 | F16 | F16 |
//! | `Q8_0` | Q8_0 | Q8_0 | Q8_0 | Q8_0 | Q8_0 |
//! | `Q6_K` | Q6_K | Q6_K | Q6_K | Q6_K | Q6_K |
//! | `Q5_K_M` | Q5_K | Q6_K | Q6_K in half the layers | Q6_K in half the layers | Q6_K |
//! | `Q4_K_M` | Q4_K | Q6_K | Q6_K in half the layers | Q6_K in half the layers | Q5_K |
//! | `Q4_K_S` | Q4_K | Q6_K | Q5_K in the first 4 layers | Q5_K in the first eighth | Q4_K |
//! | `Q4_0` | Q4_0 | Q6_K | Q4_0 | Q4_0 | Q4_0 |
//!
//! "Half the layers" are the first eighth, the last eighth and every third between, where errors hurt most. In a mixture
//! of eight experts `attn_k` and `attn_v` are Q8_0 in every quantised recipe, being small, and `attn_output` is Q5_K
//! in the `Q4_K` mixes ([`Recipe::with_experts`]).
//!
//! Whatever the recipe: vectors, position tables, routers and depthwise kernels are F32; patch embeddings are F16, or
//! F32 under `F32`; a row that is no multiple of 256 takes Q8_0 for a K format, one that is no multiple of 32 takes F16.
//!
//! A recipe file is TOML. The first rule that fits a matrix decides, and what no rule fits follows the base:
//!
//! ```toml
//! base = "Q4_K_M"
//! vision_base = "Q8_0"                # of the vision half; optional, the base when it is not there
//!
//! [[rule]]
//! pattern = "blk.*.ffn_down.weight"   # a glob over tensor names
//! type = "Q6_K"
//! layers = "0-7,31"                   # optional
//!
//! [[rule]]
//! tower = "dinov2"
//! type = "Q6_K"
//!
//! [[rule]]
//! pattern = "blk.*_exps.weight"
//! experts = "0-3,6"
//! type = "Q8_0"
//! ```
//!
//! | key of a rule | what it fits |
//! |---|---|
//! | `pattern` | names that the glob matches; stacks of experts under the name of the whole, `blk.*.ffn_up_exps.weight` |
//! | `tower` | one part of the model: `language`, `convnext`, `dinov2`, `clip`, `eva`, `qformer` or `bridge` ([`Tower`]) |
//! | `layers` | layers, blocks or stages of these numbers |
//! | `experts` | these experts of a stack, and nothing that is no stack |
//! | `type` | a block format, which is what the rule gives |
//!
//! A rule has a `pattern` or a `tower` or both, and fits where all its keys do. Where experts of one stack get different
//! formats the stack is cut into runs of equal format ([`Recipe::cut`]); such a file is for this runtime only.

use std::io::{self, Read};
use std::ops::{Range, RangeInclusive};
use std::path::Path;

use globset::{Glob, GlobMatcher};
use serde::Deserialize;

use crate::GgmlType;
use crate::error::{QuantError, Result, one_line, printable};
use crate::gguf::keys::Half;
use crate::gguf::names;

/// The parts of a model that a recipe tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tower {
    /// The language model.
    Language,
    /// ConvNeXt.
    Convnext,
    /// DINOv2.
    Dinov2,
    /// CLIP's visual tower.
    Clip,
    /// The EVA tower that the Q-Former looks at.
    Eva,
    /// The Q-Former.
    Qformer,
    /// Projections into the language model, image tags, skip rows.
    Bridge,
}

/// Every tower, under the name that a recipe file calls it.
const TOWERS: [(&str, Tower); 7] = [
    ("language", Tower::Language),
    ("convnext", Tower::Convnext),
    ("dinov2", Tower::Dinov2),
    ("clip", Tower::Clip),
    ("eva", Tower::Eva),
    ("qformer", Tower::Qformer),
    ("bridge", Tower::Bridge),
];

impl Tower {
    /// Every tower.
    pub const ALL: [Tower; 7] = [Tower::Language, Tower::Convnext, Tower::Dinov2, Tower::Clip, Tower::Eva, Tower::Qformer, Tower::Bridge];

    /// The tower that the tensor called `name` in a GGUF file belongs to.
    pub fn of(name: &str) -> Tower {
        let Some(rest) = name.strip_prefix("v.") else { return Tower::Language };
        match rest.split('.').next() {
            Some("cnx") => Tower::Convnext,
            Some("dino") => Tower::Dinov2,
            Some("clip") => Tower::Clip,
            Some("eva") => Tower::Eva,
            Some("qf") => Tower::Qformer,
            _ => Tower::Bridge,
        }
    }

    /// What a recipe file calls it.
    pub fn name(self) -> &'static str {
        TOWERS[self as usize].0
    }

    /// The half of a model it is in.
    pub fn half(self) -> Half {
        if self == Tower::Language { Half::Language } else { Half::Vision }
    }
}

/// What a tensor does in the model, as far as its format depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Token embeddings. A model that has no output matrix uses them twice: give their place as [`Role::Output`] then.
    Embedding,
    /// Logits projection.
    Output,
    /// Query projection.
    AttnQ,
    /// Key projection.
    AttnK,
    /// Value projection.
    AttnV,
    /// Query, key and value in one, in a language model.
    AttnQkv,
    /// Output projection of attention.
    AttnOutput,
    /// Gate of a feed-forward part, or of experts.
    FfnGate,
    /// Up projection of a feed-forward part, or of experts.
    FfnUp,
    /// Down projection of a feed-forward part, or of experts.
    FfnDown,
    /// Chooses experts.
    Router,
    /// Any other linear layer: encoders, projections.
    Matrix,
    /// Patch embedding or stem.
    Patch,
    /// Depthwise kernel.
    Kernel,
    /// Norms, biases, scales: anything of one dimension.
    Vector,
    /// Position tables, class tokens, image tags.
    Table,
}

/// A tensor and where it sits.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its GGUF name.
    pub name: &'a str,
    /// What it does.
    pub role: Role,
    /// Its layer, from 0; 0 for a tensor outside of layers.
    pub layer: usize,
    /// Layers of its stack.
    pub layers: usize,
    /// Elements in a row.
    pub cols: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)] // the recipes' own names
enum Mix {
    F32,
    F16,
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q4_K_M,
    Q4_K_S,
    Q4_0,
}

const MIXES: [Mix; 8] = [Mix::F32, Mix::F16, Mix::Q8_0, Mix::Q6_K, Mix::Q5_K_M, Mix::Q4_K_M, Mix::Q4_K_S, Mix::Q4_0];
const NAMES: [&str; 8] = ["F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q4_0"];

impl Mix {
    fn named(name: &str) -> Option<Mix> {
        NAMES.iter().position(|n| n.eq_ignore_ascii_case(name)).map(|i| MIXES[i])
    }

    /// What most matrices get.
    fn base(self) -> GgmlType {
        match self {
            Mix::F32 => GgmlType::F32,
            Mix::F16 => GgmlType::F16,
            Mix::Q8_0 => GgmlType::Q8_0,
            Mix::Q6_K => GgmlType::Q6_K,
            Mix::Q5_K_M => GgmlType::Q5_K,
            Mix::Q4_K_M | Mix::Q4_K_S => GgmlType::Q4_K,
            Mix::Q4_0 => GgmlType::Q4_0,
        }
    }

    /// llama.cpp's number for the mix.
    fn file_type(self) -> u32 {
        match self {
            Mix::F32 => 0,
            Mix::F16 => 1,
            Mix::Q4_0 => 2,
            Mix::Q8_0 => 7,
            Mix::Q4_K_S => 14,
            Mix::Q4_K_M => 15,
            Mix::Q5_K_M => 17,
            Mix::Q6_K => 18,
        }
    }

    /// The format of a matrix, before its row length is looked at.
    ///
    /// Source: `llama_tensor_get_type` of llama.cpp, the branches of architecture `llama` without an importance matrix.
    fn matrix(self, p: &Place, experts: usize) -> GgmlType {
        let quantised = !matches!(self, Mix::F32 | Mix::F16);
        match (self, p.role) {
            (Mix::Q6_K | Mix::Q5_K_M | Mix::Q4_K_M | Mix::Q4_K_S | Mix::Q4_0, Role::Output) => GgmlType::Q6_K,
            (_, Role::AttnV | Role::AttnK) if experts == 8 && quantised => GgmlType::Q8_0,
            (Mix::Q4_K_M | Mix::Q4_K_S, Role::AttnOutput) if experts == 8 => GgmlType::Q5_K,
            (Mix::Q5_K_M | Mix::Q4_K_M, Role::AttnV | Role::FfnDown) if more_bits(p.layer, p.layers) => GgmlType::Q6_K,
            (Mix::Q5_K_M, Role::AttnQkv) => GgmlType::Q6_K,
            (Mix::Q4_K_M, Role::AttnQkv) => GgmlType::Q5_K,
            (Mix::Q4_K_S, Role::AttnV) if p.layer < 4 => GgmlType::Q5_K,
            (Mix::Q4_K_S, Role::FfnDown) if p.layer < p.layers / 8 => GgmlType::Q5_K,
            _ => self.base(),
        }
    }
}

/// llama.cpp's `use_more_bits`: the first and last eighth of the layers, and every third between.
fn more_bits(layer: usize, layers: usize) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

/// Numbers as a recipe lists them.
type Numbers = Vec<RangeInclusive<usize>>;

#[derive(Clone, Debug)]
struct Rule {
    /// `None`: every name.
    pattern: Option<GlobMatcher>,
    /// `None`: every tower.
    tower: Option<Tower>,
    ty: GgmlType,
    /// `None`: all layers, and tensors outside of layers.
    layers: Option<Numbers>,
    /// `None`: all experts, and what is no stack of them.
    experts: Option<Numbers>,
}

impl Rule {
    /// Whether it decides over `p`, or over expert `expert` of the stack `p`.
    fn fits(&self, p: &Place, expert: Option<usize>) -> bool {
        let among = |numbers: &Numbers, n: usize| numbers.iter().any(|r| r.contains(&n));
        let layer = |l: &Numbers| p.name.split('.').any(|part| part.parse::<usize>().is_ok()) && among(l, p.layer);
        self.pattern.as_ref().is_none_or(|g| g.is_match(p.name))
            && self.tower.is_none_or(|t| t == Tower::of(p.name))
            && self.layers.as_ref().is_none_or(layer)
            && self.experts.as_ref().is_none_or(|e| expert.is_some_and(|n| among(e, n)))
    }
}

/// Chooses a format for every tensor of a model.
#[derive(Clone, Debug)]
pub struct Recipe {
    name: String,
    mix: Mix,
    /// That of the vision half, if another.
    vision: Option<Mix>,
    experts: usize,
    rules: Vec<Rule>,
    layout: ExpertLayout,
}

/// How a mixture's experts lie in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpertLayout {
    /// All experts of a layer in three tensors, as stock tools have them.
    #[default]
    Stacked,
    /// Gate, up and down of one expert side by side, a tensor each: one read fetches an expert. For this runtime alone.
    Contiguous,
}

/// A recipe file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeFile {
    base: String,
    vision_base: Option<String>,
    #[serde(default)]
    rule: Vec<RuleFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    pattern: Option<String>,
    tower: Option<String>,
    #[serde(rename = "type")]
    ty: String,
    layers: Option<String>,
    experts: Option<String>,
}

impl RuleFile {
    /// What a message calls it.
    fn shown(&self) -> String {
        let part = |key: &str, text: &Option<String>| text.as_ref().map(|t| format!("{key} \"{}\"", printable(t)));
        part("pattern", &self.pattern).or_else(|| part("tower", &self.tower)).unwrap_or_else(|| "no pattern".into())
    }
}

/// Longest recipe file, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

impl Recipe {
    /// The recipe called `name`, in any case.
    pub fn named(name: &str) -> Option<Recipe> {
        Mix::named(name).map(|mix| Recipe {
            name: NAMES[mix as usize].into(),
            mix,
            vision: None,
            experts: 0,
            rules: Vec::new(),
            layout: ExpertLayout::default(),
        })
    }

    /// The names that [`named`](Recipe::named) knows, most precise first.
    pub fn names() -> &'static [&'static str] {
        &NAMES
    }

    /// Reads a recipe file.
    ///
    /// # Errors
    /// [`QuantError::Io`] when it cannot be read, [`QuantError::Recipe`] for unknown keys, names, formats and patterns.
    pub fn from_file(path: &Path) -> Result<Recipe> {
        let io = |source| QuantError::Io { file: path.to_owned(), source };
        let meta = std::fs::metadata(path).map_err(io)?;
        if !meta.is_file() {
            return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let mut text = String::new();
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy();
        let mut file = std::fs::File::open(path).map_err(io)?.take(MAX_FILE_BYTES + 1);
        match file.read_to_string(&mut text) {
            Ok(n) if n as u64 > MAX_FILE_BYTES => Err(bad(&name, "longer than 1 MiB; a recipe is a short text".into())),
            Ok(_) => Recipe::parse(&name, &text),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(bad(&name, "not UTF-8 text".into())),
            Err(e) => Err(io(e)),
        }
    }

    /// Reads the text of a recipe file; `name` is what messages and reports call it.
    ///
    /// # Errors
    /// [`QuantError::Recipe`] for unknown keys, names, formats and patterns.
    pub fn parse(name: &str, text: &str) -> Result<Recipe> {
        let file: RecipeFile = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|s| 1 + text.bytes().take(s.start).filter(|&b| b == b'\n').count());
            let at = line.map_or(String::new(), |n| format!("line {n}: "));
            bad(name, format!("{at}{}", one_line(e.message())))
        })?;
        let mix = |key: &str, text: &str| {
            let no = || bad(name, format!("{key} = \"{}\" is no recipe; there are {}", printable(text), NAMES.join(", ")));
            Mix::named(text).ok_or_else(no)
        };
        let base = mix("base", &file.base)?;
        let vision = file.vision_base.as_deref().map(|text| mix("vision_base", text)).transpose()?;
        let made = |(i, r): (usize, &RuleFile)| rule(r).map_err(|what| bad(name, format!("rule {} ({}): {what}", i + 1, r.shown())));
        let rules = file.rule.iter().enumerate().map(made).collect::<Result<_>>()?;
        Ok(Recipe { name: printable(name), mix: base, vision, experts: 0, rules, layout: ExpertLayout::default() })
    }

    /// The same recipe for a mixture of `experts` experts.
    pub fn with_experts(mut self, experts: usize) -> Recipe {
        self.experts = experts;
        self
    }

    /// The same recipe for files whose experts lie so.
    #[must_use]
    pub fn with_expert_layout(mut self, layout: ExpertLayout) -> Recipe {
        self.layout = layout;
        self
    }

    /// Puts what a layer's experts consist of in the order of the layout. `tensors` are those of a file, in file order, runs
    /// already cut; `name` tells what they are called.
    pub fn arrange<T>(&self, tensors: Vec<T>, name: impl Fn(&T) -> &str) -> Vec<T> {
        if self.layout == ExpertLayout::Stacked {
            return tensors;
        }
        // Per layer its experts' tensors, in the place of the first of them.
        let place = |t: &T| {
            let (stack, run) = STACKS.iter().enumerate().find_map(|(i, (_, run))| Some((i, names::numbers(run, name(t))?)))?;
            Some((run.0, run.1, stack))
        };
        let mut layers: Vec<(usize, Vec<T>)> = Vec::new();
        let mut out: Vec<Result<T, usize>> = Vec::with_capacity(tensors.len());
        for t in tensors {
            let Some((layer, ..)) = place(&t) else {
                out.push(Ok(t));
                continue;
            };
            match layers.iter_mut().find(|(l, _)| *l == layer) {
                Some((_, all)) => all.push(t),
                None => {
                    out.push(Err(layers.len()));
                    layers.push((layer, vec![t]));
                }
            }
        }
        for (_, all) in &mut layers {
            all.sort_by_key(|t| place(t).map(|(_, first, stack)| (first, stack)));
        }
        let mut done = Vec::with_capacity(out.len());
        for t in out {
            match t {
                Ok(t) => done.push(t),
                Err(layer) => done.append(&mut layers[layer].1),
            }
        }
        done
    }

    /// Its name, or its file's without the extension.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same recipe with the base of `half`, for a file that is this half; what it chooses does not depend on it.
    pub fn for_half(mut self, half: Half) -> Recipe {
        if let (Half::Vision, Some(mix)) = (half, self.vision) {
            self.mix = mix;
        }
        self
    }

    /// llama.cpp's number for it, `general.file_type`; that of its base for a recipe from a file.
    pub fn file_type(&self) -> u32 {
        self.mix.file_type()
    }

    /// The format for a tensor; always one whose block divides its rows. Rules with `experts` do not count here.
    pub fn choose(&self, place: &Place) -> GgmlType {
        self.pick(place, None)
    }

    /// The formats inside a stack of `experts` experts, as runs in order that cover all of it: one run where nothing differs.
    /// `place` is the stack as a whole, under its whole name.
    pub fn cut(&self, place: &Place, experts: usize) -> Vec<(Range<usize>, GgmlType)> {
        if self.layout == ExpertLayout::Contiguous {
            return (0..experts).map(|e| (e..e + 1, self.pick(place, Some(e)))).collect();
        }
        if self.rules.iter().all(|r| r.experts.is_none()) {
            return vec![(0..experts, self.pick(place, None))];
        }
        let mut runs: Vec<(Range<usize>, GgmlType)> = Vec::new();
        for expert in 0..experts {
            let ty = self.pick(place, Some(expert));
            match runs.last_mut() {
                Some((run, last)) if *last == ty => run.end = expert + 1,
                _ => runs.push((expert..expert + 1, ty)),
            }
        }
        runs
    }

    fn pick(&self, place: &Place, expert: Option<usize>) -> GgmlType {
        let mix = self.vision.filter(|_| Tower::of(place.name).half() == Half::Vision).unwrap_or(self.mix);
        let float = if mix == Mix::F32 { GgmlType::F32 } else { GgmlType::F16 };
        let ty = match place.role {
            Role::Vector | Role::Table | Role::Router | Role::Kernel => return GgmlType::F32,
            Role::Patch => return float,
            _ => self.rules.iter().find(|r| r.fits(place, expert)).map_or_else(|| mix.matrix(place, self.experts), |r| r.ty),
        };
        if place.cols.is_multiple_of(ty.block_len()) {
            ty
        } else if place.cols.is_multiple_of(32) {
            GgmlType::Q8_0
        } else {
            float
        }
    }
}

fn bad(name: &str, what: String) -> QuantError {
    QuantError::Recipe { name: printable(name), what }
}

fn rule(r: &RuleFile) -> Result<Rule, String> {
    let ty = GgmlType::from_name(&r.ty).ok_or_else(|| {
        let all: Vec<_> = GgmlType::ALL.iter().map(|t| t.name()).collect();
        let hint = if Mix::named(&r.ty).is_some() { "a recipe, not a format" } else { "no format" };
        format!("type = \"{}\" is {hint}; formats are {}", printable(&r.ty), all.join(", "))
    })?;
    let glob = |p: &str| Glob::new(p).map_err(|e| format!("not a glob: {}", one_line(&e.kind().to_string()))).map(|g| g.compile_matcher());
    let tower = |text: &str| {
        let names: Vec<_> = TOWERS.iter().map(|(name, _)| *name).collect();
        let found = TOWERS.iter().find(|(name, _)| *name == text).map(|&(_, tower)| tower);
        found.ok_or_else(|| format!("tower = \"{}\" is no part of a model; parts are {}", printable(text), names.join(", ")))
    };
    if r.pattern.is_none() && r.tower.is_none() {
        return Err("it fits everything; give it a pattern or a tower, or change the base".into());
    }
    Ok(Rule {
        pattern: r.pattern.as_deref().map(glob).transpose()?,
        tower: r.tower.as_deref().map(tower).transpose()?,
        ty,
        layers: r.layers.as_deref().map(|text| numbers("layers", text)).transpose()?,
        experts: r.experts.as_deref().map(|text| numbers("experts", text)).transpose()?,
    })
}

/// `0-7,31` as ranges.
fn numbers(key: &str, text: &str) -> Result<Numbers, String> {
    let one = |part: &str| -> Option<RangeInclusive<usize>> {
        let (a, b) = part.split_once('-').unwrap_or((part, part));
        let (a, b) = (a.trim().parse().ok()?, b.trim().parse().ok()?);
        (a <= b).then_some(a..=b)
    };
    let all = text.split(',').map(one).collect::<Option<Vec<_>>>();
    all.ok_or_else(|| format!("{key} = \"{}\" is no list like \"0-7,31\"", printable(text)))
}

/// What each tensor of [`names`] does.
const ROLES: &[(&str, Role)] = &[
    (names::TOKEN_EMBD, Role::Embedding),
    (names::OUTPUT_NORM, Role::Vector),
    (names::OUTPUT, Role::Output),
    (names::ATTN_NORM, Role::Vector),
    (names::ATTN_Q, Role::AttnQ),
    (names::ATTN_K, Role::AttnK),
    (names::ATTN_V, Role::AttnV),
    (names::ATTN_OUTPUT, Role::AttnOutput),
    (names::FFN_NORM, Role::Vector),
    (names::FFN_GATE, Role::FfnGate),
    (names::FFN_UP, Role::FfnUp),
    (names::FFN_DOWN, Role::FfnDown),
    (names::FFN_GATE_INP, Role::Router),
    (names::FFN_GATE_EXPS, Role::FfnGate),
    (names::FFN_UP_EXPS, Role::FfnUp),
    (names::FFN_DOWN_EXPS, Role::FfnDown),
    (names::FFN_GATE_EXPS_FROM, Role::FfnGate),
    (names::FFN_UP_EXPS_FROM, Role::FfnUp),
    (names::FFN_DOWN_EXPS_FROM, Role::FfnDown),
    (names::CNX_STEM_W, Role::Patch),
    (names::CNX_STEM_B, Role::Vector),
    (names::CNX_STEM_NORM_W, Role::Vector),
    (names::CNX_STEM_NORM_B, Role::Vector),
    (names::CNX_DOWN_NORM_W, Role::Vector),
    (names::CNX_DOWN_NORM_B, Role::Vector),
    (names::CNX_DOWN_W, Role::Matrix),
    (names::CNX_DOWN_B, Role::Vector),
    (names::CNX_DW_W, Role::Kernel),
    (names::CNX_DW_B, Role::Vector),
    (names::CNX_NORM_W, Role::Vector),
    (names::CNX_NORM_B, Role::Vector),
    (names::CNX_FC1_W, Role::Matrix),
    (names::CNX_FC1_B, Role::Vector),
    (names::CNX_FC2_W, Role::Matrix),
    (names::CNX_FC2_B, Role::Vector),
    (names::CNX_GAMMA, Role::Vector),
    (names::CNX_HEAD_NORM_W, Role::Vector),
    (names::CNX_HEAD_NORM_B, Role::Vector),
    (names::DINO_PATCH_W, Role::Patch),
    (names::DINO_PATCH_B, Role::Vector),
    (names::DINO_CLS, Role::Table),
    (names::DINO_POS, Role::Table),
    (names::DINO_NORM1_W, Role::Vector),
    (names::DINO_NORM1_B, Role::Vector),
    (names::DINO_QKV_W, Role::Matrix),
    (names::DINO_QKV_B, Role::Vector),
    (names::DINO_PROJ_W, Role::Matrix),
    (names::DINO_PROJ_B, Role::Vector),
    (names::DINO_LS1, Role::Vector),
    (names::DINO_NORM2_W, Role::Vector),
    (names::DINO_NORM2_B, Role::Vector),
    (names::DINO_W12_W, Role::Matrix),
    (names::DINO_W12_B, Role::Vector),
    (names::DINO_W3_W, Role::Matrix),
    (names::DINO_W3_B, Role::Vector),
    (names::DINO_FC1_W, Role::Matrix),
    (names::DINO_FC1_B, Role::Vector),
    (names::DINO_FC2_W, Role::Matrix),
    (names::DINO_FC2_B, Role::Vector),
    (names::DINO_LS2, Role::Vector),
    (names::DINO_NORM_W, Role::Vector),
    (names::DINO_NORM_B, Role::Vector),
    (names::PROJ_W, Role::Matrix),
    (names::PROJ_B, Role::Vector),
    (names::PROJ_NORM_W, Role::Vector),
    (names::PROJ_NORM_B, Role::Vector),
    (names::START_IMG, Role::Table),
    (names::END_IMG, Role::Table),
    (names::CLIP_PATCH_W, Role::Patch),
    (names::CLIP_CLS, Role::Table),
    (names::CLIP_POS, Role::Table),
    (names::CLIP_PRE_NORM_W, Role::Vector),
    (names::CLIP_PRE_NORM_B, Role::Vector),
    (names::CLIP_NORM1_W, Role::Vector),
    (names::CLIP_NORM1_B, Role::Vector),
    (names::CLIP_QKV_W, Role::Matrix),
    (names::CLIP_QKV_B, Role::Vector),
    (names::CLIP_PROJ_W, Role::Matrix),
    (names::CLIP_PROJ_B, Role::Vector),
    (names::CLIP_NORM2_W, Role::Vector),
    (names::CLIP_NORM2_B, Role::Vector),
    (names::CLIP_FC1_W, Role::Matrix),
    (names::CLIP_FC1_B, Role::Vector),
    (names::CLIP_FC2_W, Role::Matrix),
    (names::CLIP_FC2_B, Role::Vector),
    (names::CLIP_NORM_W, Role::Vector),
    (names::CLIP_NORM_B, Role::Vector),
    (names::EVA_PATCH_W, Role::Patch),
    (names::EVA_PATCH_B, Role::Vector),
    (names::EVA_CLS, Role::Table),
    (names::EVA_POS, Role::Table),
    (names::EVA_NORM1_W, Role::Vector),
    (names::EVA_NORM1_B, Role::Vector),
    (names::EVA_QKV_W, Role::Matrix),
    (names::EVA_QKV_B, Role::Vector),
    (names::EVA_PROJ_W, Role::Matrix),
    (names::EVA_PROJ_B, Role::Vector),
    (names::EVA_NORM2_W, Role::Vector),
    (names::EVA_NORM2_B, Role::Vector),
    (names::EVA_FC1_W, Role::Matrix),
    (names::EVA_FC1_B, Role::Vector),
    (names::EVA_FC2_W, Role::Matrix),
    (names::EVA_FC2_B, Role::Vector),
    (names::EVA_NORM_W, Role::Vector),
    (names::EVA_NORM_B, Role::Vector),
    (names::QF_QUERY, Role::Table),
    (names::QF_EMBD_NORM_W, Role::Vector),
    (names::QF_EMBD_NORM_B, Role::Vector),
    (names::QF_Q_W, Role::Matrix),
    (names::QF_Q_B, Role::Vector),
    (names::QF_K_W, Role::Matrix),
    (names::QF_K_B, Role::Vector),
    (names::QF_V_W, Role::Matrix),
    (names::QF_V_B, Role::Vector),
    (names::QF_PROJ_W, Role::Matrix),
    (names::QF_PROJ_B, Role::Vector),
    (names::QF_NORM_W, Role::Vector),
    (names::QF_NORM_B, Role::Vector),
    (names::QF_CROSS_Q_W, Role::Matrix),
    (names::QF_CROSS_Q_B, Role::Vector),
    (names::QF_CROSS_K_W, Role::Matrix),
    (names::QF_CROSS_K_B, Role::Vector),
    (names::QF_CROSS_V_W, Role::Matrix),
    (names::QF_CROSS_V_B, Role::Vector),
    (names::QF_CROSS_PROJ_W, Role::Matrix),
    (names::QF_CROSS_PROJ_B, Role::Vector),
    (names::QF_CROSS_NORM_W, Role::Vector),
    (names::QF_CROSS_NORM_B, Role::Vector),
    (names::QF_FC1_W, Role::Matrix),
    (names::QF_FC1_B, Role::Vector),
    (names::QF_FC2_W, Role::Matrix),
    (names::QF_FC2_B, Role::Vector),
    (names::QF_FFN_NORM_W, Role::Vector),
    (names::QF_FFN_NORM_B, Role::Vector),
    (names::QPROJ_W, Role::Matrix),
    (names::QPROJ_B, Role::Vector),
    (names::QPROJ_NORM_W, Role::Vector),
    (names::QPROJ_NORM_B, Role::Vector),
    (names::SKIP_TOKEN, Role::Table),
];

/// What the tensor of a GGUF file called `name` does; `None` for a name that is not one of ours.
pub fn role_of(name: &str) -> Option<Role> {
    ROLES.iter().find(|(template, _)| names::numbers(template, name).is_some()).map(|&(_, role)| role)
}

/// The stacks of experts: the name of the whole, and of a run of experts.
const STACKS: [(&str, &str); 3] = [
    (names::FFN_GATE_EXPS, names::FFN_GATE_EXPS_FROM),
    (names::FFN_UP_EXPS, names::FFN_UP_EXPS_FROM),
    (names::FFN_DOWN_EXPS, names::FFN_DOWN_EXPS_FROM),
];

/// The stack of experts that the tensor called `name` is, or is a run of: the name of the whole stack, and the first expert in
/// this tensor. `None` for what is no stack.
pub fn stack_of(name: &str) -> Option<(String, usize)> {
    STACKS.iter().find_map(|(whole, run)| {
        let (i, first) = names::numbers(whole, name).or_else(|| names::numbers(run, name))?;
        Some((names::at(whole, i, 0), first))
    })
}

/// What the run of the stack called `stack` is called that begins with expert `first`; `None` for what is no stack.
pub fn run_of(stack: &str, first: usize) -> Option<String> {
    STACKS.iter().find_map(|(whole, run)| names::numbers(whole, stack).map(|(i, _)| names::at(run, i, first)))
}

impl Recipe {
    /// What the tensor of a GGUF file called `name` does; `None` for a name that is not one of ours.
    pub fn role_of(name: &str) -> Option<Role> {
        role_of(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_side_by_side() {
        let r = Recipe::named("Q4_K_M").unwrap().with_expert_layout(ExpertLayout::Contiguous);
        let names = [
            "a",
            "blk.0.ffn_gate_exps.0.weight",
            "blk.0.ffn_gate_exps.1.weight",
            "blk.0.ffn_down_exps.0.weight",
            "b",
            "blk.0.ffn_down_exps.1.weight",
            "blk.0.ffn_up_exps.0.weight",
            "blk.0.ffn_up_exps.1.weight",
            "blk.1.ffn_up_exps.0.weight",
            "c",
        ];
        let arranged = r.arrange(names.to_vec(), |n| n);
        assert_eq!(
            arranged,
            [
                "a",
                "blk.0.ffn_gate_exps.0.weight",
                "blk.0.ffn_up_exps.0.weight",
                "blk.0.ffn_down_exps.0.weight",
                "blk.0.ffn_gate_exps.1.weight",
                "blk.0.ffn_up_exps.1.weight",
                "blk.0.ffn_down_exps.1.weight",
                "b",
                "blk.1.ffn_up_exps.0.weight",
                "c"
            ]
        );
        assert_eq!(Recipe::named("Q4_K_M").unwrap().arrange(names.to_vec(), |n| n), names);
        let place =
            Place { name: "blk.0.ffn_up_exps.weight", role: role_of("blk.0.ffn_up_exps.weight").unwrap(), layer: 0, layers: 2, cols: 256 };
        assert_eq!(r.cut(&place, 3).len(), 3);
    }

    fn choose(recipe: &Recipe, name: &str, layer: usize, layers: usize, cols: usize) -> GgmlType {
        recipe.choose(&Place { name, role: role_of(name).expect(name), layer, layers, cols })
    }

    /// Layers of `n` in which `template` gets `ty`.
    fn with(recipe: &str, template: &str, ty: GgmlType, n: usize) -> Vec<usize> {
        let r = Recipe::named(recipe).unwrap();
        (0..n).filter(|&i| choose(&r, &names::at(template, i, 0), i, n, 4096) == ty).collect()
    }

    #[test]
    fn mixes_follow_llama_cpp() {
        use GgmlType::*;
        // Counted from what llama.cpp writes for 32 and 22 layers.
        let more32 = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];
        let more22 = [0, 1, 4, 7, 10, 13, 16, 19, 20, 21];
        for t in [names::ATTN_V, names::FFN_DOWN] {
            assert_eq!(with("Q4_K_M", t, Q6_K, 32), more32);
            assert_eq!(with("Q5_K_M", t, Q6_K, 32), more32);
            assert_eq!(with("Q4_K_M", t, Q6_K, 22), more22);
        }
        assert_eq!(with("Q4_K_S", names::ATTN_V, Q5_K, 40), [0, 1, 2, 3]);
        assert_eq!(with("Q4_K_S", names::FFN_DOWN, Q5_K, 40), [0, 1, 2, 3, 4]);
        assert_eq!(with("Q4_0", names::FFN_DOWN, Q4_0, 8).len(), 8);
        for t in [names::ATTN_Q, names::ATTN_K, names::ATTN_OUTPUT, names::FFN_GATE, names::FFN_UP] {
            assert_eq!(with("Q4_K_M", t, Q4_K, 32).len(), 32);
            assert_eq!(with("Q5_K_M", t, Q5_K, 32).len(), 32);
        }
        let output = [F32, F16, Q8_0, Q6_K, Q6_K, Q6_K, Q6_K, Q6_K];
        let embedding = [F32, F16, Q8_0, Q6_K, Q5_K, Q4_K, Q4_K, Q4_0];
        for (i, name) in Recipe::names().iter().enumerate() {
            let r = Recipe::named(name).unwrap();
            assert_eq!(r.name(), *name);
            assert_eq!(choose(&r, names::OUTPUT, 0, 32, 4096), output[i], "{name}");
            assert_eq!(choose(&r, names::TOKEN_EMBD, 0, 32, 4096), embedding[i], "{name}");
            assert_eq!(choose(&r, "v.dino.3.qkv.weight", 3, 40, 1536), embedding[i], "{name}");
        }
        let types: Vec<u32> = Recipe::names().iter().map(|n| Recipe::named(n).unwrap().file_type()).collect();
        assert_eq!(types, [0, 1, 7, 18, 17, 15, 14, 2]);
    }

    #[test]
    fn eight_experts() {
        let r = Recipe::named("q4_k_m").unwrap().with_experts(8);
        assert_eq!(choose(&r, "blk.5.attn_k.weight", 5, 32, 4096), GgmlType::Q8_0);
        assert_eq!(choose(&r, "blk.5.attn_v.weight", 5, 32, 4096), GgmlType::Q8_0);
        assert_eq!(choose(&r, "blk.5.attn_output.weight", 5, 32, 4096), GgmlType::Q5_K);
        assert_eq!(choose(&r, "blk.5.ffn_gate_inp.weight", 5, 32, 4096), GgmlType::F32);
        assert_eq!(choose(&r, "blk.0.ffn_down_exps.weight", 0, 32, 14336), GgmlType::Q6_K);
        let f16 = Recipe::named("F16").unwrap().with_experts(8);
        assert_eq!(choose(&f16, "blk.5.attn_k.weight", 5, 32, 4096), GgmlType::F16);
    }

    #[test]
    fn awkward_rows_and_small_things() {
        use GgmlType::*;
        let q = Recipe::named("Q4_K_M").unwrap();
        let f = Recipe::named("F32").unwrap();
        for (name, cols, quantised, float) in [
            ("blk.0.ffn_gate.weight", 288, Q8_0, F32),
            ("blk.0.ffn_gate.weight", 100, F16, F32),
            ("v.cnx.0.2.fc1.weight", 384, Q8_0, F32),
            ("v.dino.patch.weight", 588, F16, F32),
            ("v.cnx.stem.weight", 48, F16, F32),
            ("v.cnx.1.down.weight", 1536, Q4_K, F32),
            ("v.cnx.2.11.dw.weight", 1536, F32, F32),
            ("v.dino.pos", 1536, F32, F32),
            ("v.start_img", 2048, F32, F32),
            ("output_norm.weight", 2048, F32, F32),
            ("v.cnx.3.0.gamma", 3072, F32, F32),
        ] {
            assert_eq!(choose(&q, name, 0, 4, cols), quantised, "{name}");
            assert_eq!(choose(&f, name, 0, 4, cols), float, "{name}");
        }
        let q4_0 = Recipe::named("Q4_0").unwrap();
        assert_eq!(choose(&q4_0, "blk.0.ffn_gate.weight", 0, 4, 288), Q4_0);
        assert_eq!(choose(&q4_0, "output.weight", 0, 4, 288), Q8_0);
    }

    #[test]
    fn every_name_has_a_role() {
        let source = include_str!("gguf/names.rs");
        let templates = source.lines().filter_map(|l| l.strip_prefix("pub const ")?.split('"').nth(1));
        let mut n = 0;
        for t in templates {
            let role = role_of(&names::at(t, 17, 4));
            assert!(role.is_some(), "{t}");
            assert!(!t.ends_with(".bias") || role == Some(Role::Vector), "{t}");
            n += 1;
        }
        assert_eq!(n, ROLES.len());
        for other in ["blk.x.attn_q.weight", "blk.1.attn_q.weights", "blk..attn_q.weight", "rope_freqs.weight", "v.dino.1.2.qkv.weight", ""]
        {
            assert_eq!(role_of(other), None, "{other}");
        }
    }

    #[test]
    fn recipe_files() {
        let text = r#"
            base = "Q4_K_M"
            [[rule]]
            pattern = "blk.*.ffn_down.weight"
            type = "Q8_0"
            layers = "0-2, 7"
            [[rule]]
            pattern = "blk.*"
            type = "q5_k"
            [[rule]]
            pattern = "*norm*"
            type = "Q4_0"
        "#;
        let r = Recipe::parse("mine", text).unwrap();
        assert_eq!((r.name(), r.file_type()), ("mine", 15));
        assert_eq!(choose(&r, "blk.2.ffn_down.weight", 2, 8, 4096), GgmlType::Q8_0);
        assert_eq!(choose(&r, "blk.3.ffn_down.weight", 3, 8, 4096), GgmlType::Q5_K);
        assert_eq!(choose(&r, "blk.7.ffn_down.weight", 7, 8, 4096), GgmlType::Q8_0);
        assert_eq!(choose(&r, "blk.7.ffn_down.weight", 7, 8, 100), GgmlType::F16);
        assert_eq!(choose(&r, "blk.0.attn_norm.weight", 0, 8, 4096), GgmlType::F32);
        assert_eq!(choose(&r, "output.weight", 0, 8, 4096), GgmlType::Q6_K);
    }

    #[test]
    fn towers_and_halves() {
        let text = r#"
            base = "Q4_K_M"
            vision_base = "F16"
            [[rule]]
            tower = "dinov2"
            layers = "1-39"
            type = "Q6_K"
            [[rule]]
            pattern = "*.qkv.weight"
            tower = "clip"
            type = "Q5_K"
        "#;
        let r = Recipe::parse("both", text).unwrap();
        for (name, layer, ty) in [
            ("blk.3.attn_q.weight", 3, GgmlType::Q4_K),
            ("v.dino.0.qkv.weight", 0, GgmlType::F16),
            ("v.dino.1.qkv.weight", 1, GgmlType::Q6_K),
            ("v.clip.1.qkv.weight", 1, GgmlType::Q5_K),
            ("v.clip.1.proj.weight", 1, GgmlType::F16),
            ("v.eva.1.qkv.weight", 1, GgmlType::F16),
            ("v.proj.weight", 0, GgmlType::F16),
            ("v.dino.1.norm1.weight", 1, GgmlType::F32),
        ] {
            assert_eq!(choose(&r, name, layer, 40, 1536), ty, "{name}");
        }
        assert_eq!(r.clone().for_half(Half::Language).file_type(), 15);
        assert_eq!(r.for_half(Half::Vision).file_type(), 1);
        let one = Recipe::parse("one", "base = \"Q8_0\"").unwrap().for_half(Half::Vision);
        assert_eq!((one.file_type(), choose(&one, "v.proj.weight", 0, 1, 4608)), (7, GgmlType::Q8_0));
    }

    #[test]
    fn towers_of_names() {
        let of = |name: &str| Tower::of(name).name();
        let all = ["output.weight", "v.cnx.0.1.fc1.weight", "v.dino.pos", "v.clip.cls", "v.eva.3.qkv.bias", "v.qf.query", "v.qproj.weight"];
        assert_eq!(all.map(of), ["language", "convnext", "dinov2", "clip", "eva", "qformer", "bridge"]);
        assert_eq!(["v.proj_norm.bias", "v.start_img", "v.skip_token"].map(of), ["bridge"; 3]);
        assert_eq!(Tower::ALL.map(|t| TOWERS[t as usize].1), Tower::ALL);
        // Every name of ours lies where its prefix says.
        for (template, _) in ROLES {
            assert_eq!(Tower::of(template) == Tower::Language, !template.starts_with("v."), "{template}");
        }
    }

    #[test]
    fn stacks_and_runs_by_name() {
        assert_eq!(stack_of("blk.3.ffn_up_exps.weight"), Some(("blk.3.ffn_up_exps.weight".into(), 0)));
        assert_eq!(stack_of("blk.3.ffn_down_exps.5.weight"), Some(("blk.3.ffn_down_exps.weight".into(), 5)));
        assert_eq!((stack_of("blk.3.ffn_up.weight"), stack_of("blk.3.ffn_up_exps.05.weight")), (None, None));
        assert_eq!(run_of("blk.3.ffn_gate_exps.weight", 6).as_deref(), Some("blk.3.ffn_gate_exps.6.weight"));
        assert_eq!(run_of("blk.3.ffn_gate.weight", 6), None);
    }

    #[test]
    fn stacks_are_cut_where_experts_differ() {
        use GgmlType::*;
        let place = |name: &'static str, layer, cols| Place { name, role: role_of(name).unwrap(), layer, layers: 32, cols };
        let up = place("blk.5.ffn_up_exps.weight", 5, 4096);
        assert_eq!(Recipe::named("Q4_K_M").unwrap().with_experts(8).cut(&up, 8), [(0..8, Q4_K)]);
        let text = r#"
            base = "Q4_K_M"
            [[rule]]
            pattern = "blk.*.ffn_down_exps.weight"
            experts = "0-1,6"
            type = "Q8_0"
            [[rule]]
            pattern = "blk.*_exps.weight"
            experts = "2"
            layers = "0-5"
            type = "Q5_K"
        "#;
        let r = Recipe::parse("cut", text).unwrap().with_experts(8);
        assert_eq!(r.cut(&up, 8), [(0..2, Q4_K), (2..3, Q5_K), (3..8, Q4_K)]);
        assert_eq!(r.cut(&place("blk.6.ffn_up_exps.weight", 6, 4096), 8), [(0..8, Q4_K)]);
        let down = place("blk.0.ffn_down_exps.weight", 0, 14336);
        assert_eq!(r.cut(&down, 8), [(0..2, Q8_0), (2..3, Q5_K), (3..6, Q6_K), (6..7, Q8_0), (7..8, Q6_K)]);
        // Rows that no K format divides: both fall back to the same, and nothing is cut.
        assert_eq!(r.cut(&place("blk.0.ffn_down_exps.weight", 0, 96), 8), [(0..8, Q8_0)]);
        assert_eq!(r.cut(&down, 1), [(0..1, Q8_0)]);
        // What is no stack has no experts.
        assert_eq!(r.choose(&down), Q6_K);
        assert_eq!(choose(&r, "blk.1.attn_q.weight", 1, 32, 4096), Q4_K);
    }

    #[test]
    fn recipe_files_that_teach() {
        let rule = |r: &str| format!("base = \"F16\"\n[[rule]]\n{r}");
        for (text, wanted) in [
            ("".into(), "missing field `base`"),
            ("base = \"Q4\"".into(), "base = \"Q4\" is no recipe; there are F32, F16, Q8_0"),
            ("base = 3".into(), "line 1: invalid type"),
            ("base = \"F16\"\nrules = 1".into(), "line 2: unknown field `rules`, expected one of `base`, `vision_base`, `rule`"),
            ("base = \"F16\"\nvision_base = \"Q8\"".into(), "vision_base = \"Q8\" is no recipe; there are F32"),
            (rule("type = \"Q8_0\""), "rule 1 (no pattern): it fits everything"),
            (rule("tower = \"dino\"\ntype = \"Q8_0\""), "tower = \"dino\" is no part of a model; parts are language, convnext, dinov2"),
            (rule("pattern = \"a\"\ntype = \"Q8_0\"\nexperts = \"a\""), "experts = \"a\" is no list like"),
            (rule("pattern = \"a\""), "missing field `type`"),
            (rule("pattern = \"a\"\ntype = \"Q8\""), "rule 1 (pattern \"a\"): type = \"Q8\" is no format; formats are F32"),
            (rule("pattern = \"a\"\ntype = \"Q4_K_M\""), "is a recipe, not a format"),
            (rule("pattern = \"a[\"\ntype = \"Q8_0\""), "not a glob"),
            (rule("pattern = \"a\"\ntype = \"Q8_0\"\nlayers = \"7-0\""), "layers = \"7-0\" is no list like"),
            (rule("pattern = \"a\"\ntype = \"Q8_0\"\nlayer = \"7\""), "unknown field `layer`"),
            ("base = ".into(), "line 1: "),
        ] {
            let e = Recipe::parse("r", &text).unwrap_err().to_string();
            assert!(e.contains(wanted) && e.starts_with("recipe r: ") && !e.contains('\n'), "{text}\n→ {e}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small.toml");
        assert_eq!(Recipe::from_file(&path).unwrap_err().kind(), crate::ErrorKind::Io);
        assert_eq!(Recipe::from_file(folder.path()).unwrap_err().kind(), crate::ErrorKind::Io);
        std::fs::write(&path, "base = \"q8_0\"\n").unwrap();
        assert_eq!(Recipe::from_file(&path).unwrap().name(), "small");
        std::fs::write(&path, b"base = \"\xff\"\n").unwrap();
        assert!(Recipe::from_file(&path).unwrap_err().to_string().contains("not UTF-8"));
    }
}
