//! What a `llama_type` is: which language model, and how a picture is cut up for which encoders.
//!
//! A variant is data. Nothing after this file asks for a type's name; to add a member of the family, add a row to
//! `MEMBERS` (and, for a new part, its registry). [`Layout::overridden_by`] makes members that have no name.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use sphinx_quant::error::{one_line, printable};

use crate::checkpoint::Checkpoint;
use crate::error::{ConvertError, Result};

/// The kinds of decoder, by their feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// One feed-forward part per layer.
    Dense,
    /// A sparse mixture whose experts of a layer lie in one tensor, the second matrix the other way round.
    Mixture,
    /// The same mixture with one tensor per expert, each in one shard.
    MixtureOwner,
}

impl Language {
    /// Whether a router chooses among experts.
    pub fn is_mixture(self) -> bool {
        self != Language::Dense
    }
}

/// The picture encoders whose features are put side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoder {
    /// The visual tower of CLIP ViT-L/14.
    Clip,
    /// ConvNeXt-XXLarge of OpenCLIP.
    ConvNext,
    /// DINOv2 ViT-g/14.
    Dinov2,
}

impl Encoder {
    /// Its name in the metadata.
    pub fn name(self) -> &'static str {
        match self {
            Encoder::Clip => "clip",
            Encoder::ConvNext => "convnext",
            Encoder::Dinov2 => "dinov2",
        }
    }
}

/// Where a picture that is no square lies in its padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PadAnchor {
    /// In the middle, as the public code has it.
    #[default]
    Centre,
    /// In the top left corner.
    TopLeft,
}

impl PadAnchor {
    /// Its name in the metadata.
    pub fn name(self) -> &'static str {
        match self {
            PadAnchor::Centre => "centre",
            PadAnchor::TopLeft => "top_left",
        }
    }
}

/// Which comes first, padding or resizing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PadOrder {
    /// Pad to a square, then resize that, as the public code does.
    #[default]
    PadResize,
    /// Resize the long side, then pad.
    ResizePad,
}

impl PadOrder {
    /// Its name in the metadata.
    pub fn name(self) -> &'static str {
        match self {
            PadOrder::PadResize => "pad_resize",
            PadOrder::ResizePad => "resize_pad",
        }
    }
}

/// From a picture to what the encoders see and what the decoder gets. Sides are in pixels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Side of the preprocessed square.
    pub image_size: u32,
    /// Sub-images per side; 0 for the global view only.
    pub grid: u32,
    /// Side of a ViT input.
    pub vit_input: u32,
    /// Side of the square from which ViT tiles are cut.
    pub vit_board: u32,
    /// Side of a ConvNeXt input.
    pub convnext_input: u32,
    /// Side of the square from which ConvNeXt tiles are cut; 0: nearest resize of the ViT tile.
    pub convnext_board: u32,
    /// Encoders in the order of their features.
    pub encoders: Vec<Encoder>,
    /// Whether the rows of a Q-Former come first in a view.
    pub qformer: bool,
    /// How many rows that are; the checkpoint's tensors say, the public ones have 32.
    pub queries: u32,
    /// Whether the patch rows of sub-images are averaged over 2×2 neighbourhoods.
    pub pool_parts: bool,
    /// Whether a view stands between a start row and an end row.
    pub tagged: bool,
    /// Where a picture lies in its square, if anything states it; in the middle otherwise.
    pub pad_anchor: Option<PadAnchor>,
    /// Which of padding and resizing comes first.
    pub pad_order: PadOrder,
    /// Whether skip rows, if there are any, stand between a start row and an end row.
    pub skip_tagged: bool,
}

/// Side of a ViT patch, the same in every member of the family.
pub const VIT_PATCH: u32 = 14;
/// Rows of the public Q-Former.
pub const QUERIES: u32 = 32;

/// A layout file: TOML, with the names of [`Layout`]'s fields; what is not named stays as the `llama_type` has it.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayoutFile {
    image_size: Option<u32>,
    grid: Option<u32>,
    vit_input: Option<u32>,
    vit_board: Option<u32>,
    convnext_input: Option<u32>,
    convnext_board: Option<u32>,
    encoders: Option<Vec<Encoder>>,
    qformer: Option<bool>,
    pool_parts: Option<bool>,
    tagged: Option<bool>,
    pad_anchor: Option<PadAnchor>,
    pad_order: Option<PadOrder>,
    skip_tagged: Option<bool>,
}

/// Longest layout file, in bytes.
const MAX_LAYOUT_BYTES: u64 = 64 << 10;

impl Layout {
    /// Views of one picture: the whole, then its parts.
    pub fn views(&self) -> u32 {
        1 + self.grid * self.grid
    }

    /// Patches per side of a ViT input.
    pub fn vit_grid(&self) -> u32 {
        self.vit_input / VIT_PATCH
    }

    /// Rows of view number `view`, tags included: the queries, a class row, the patches.
    pub fn view_rows(&self, view: u32) -> u32 {
        let side = if self.pool_parts && view > 0 { self.vit_grid() / 2 } else { self.vit_grid() };
        let queries = if self.qformer { self.queries } else { 0 };
        let tags = if self.tagged { 2 } else { 0 };
        tags + queries + 1 + side * side
    }

    /// Rows that a picture adds after BOS when nothing of it is skipped.
    pub fn image_rows(&self) -> u32 {
        (0..self.views()).map(|view| self.view_rows(view)).sum()
    }

    /// The same layout with what the TOML file says instead.
    ///
    /// # Errors
    /// `Io` when it cannot be read, `Invalid` for unknown fields, wrong kinds, and lengths that do not go together.
    pub fn overridden_by(&self, file: &Path) -> Result<Layout> {
        const REMEDY: &str = "correct the layout file; its fields are image_size, grid, vit_input, vit_board, convnext_input, \
                              convnext_board, encoders, qformer, pool_parts, tagged, pad_anchor, pad_order, skip_tagged";
        let io = |e| ConvertError::io(file, e);
        let mut text = String::new();
        let size = std::fs::File::open(file).map_err(io)?.take(MAX_LAYOUT_BYTES + 1).read_to_string(&mut text).map_err(io)?;
        if size as u64 > MAX_LAYOUT_BYTES {
            return Err(ConvertError::invalid(file, "longer than 64 KiB; a layout is a short text", REMEDY));
        }
        let stated: LayoutFile = toml::from_str(&text).map_err(|e| {
            let line = e.span().map(|s| 1 + text.bytes().take(s.start).filter(|&b| b == b'\n').count());
            let at = line.map_or(String::new(), |n| format!("line {n}: "));
            ConvertError::invalid(file, format!("{at}{}", printable(&one_line(e.message()))), REMEDY)
        })?;
        let layout = self.with(stated);
        layout.check().map_err(|what| ConvertError::invalid(file, what, REMEDY))?;
        Ok(layout)
    }

    /// Boards that the file does not name follow its grid and inputs.
    fn with(&self, f: LayoutFile) -> Layout {
        let grid = f.grid.unwrap_or(self.grid);
        let vit_input = f.vit_input.unwrap_or(self.vit_input);
        let convnext_input = f.convnext_input.unwrap_or(self.convnext_input);
        let board = |input: u32| input.saturating_mul(grid.max(1));
        let convnext_board = if self.convnext_board == 0 { 0 } else { board(convnext_input) };
        Layout {
            image_size: f.image_size.unwrap_or(self.image_size),
            grid,
            vit_input,
            vit_board: f.vit_board.unwrap_or(board(vit_input)),
            convnext_input,
            convnext_board: f.convnext_board.unwrap_or(convnext_board),
            encoders: f.encoders.unwrap_or_else(|| self.encoders.clone()),
            qformer: f.qformer.unwrap_or(self.qformer),
            queries: self.queries,
            pool_parts: f.pool_parts.unwrap_or(self.pool_parts),
            tagged: f.tagged.unwrap_or(self.tagged),
            pad_anchor: f.pad_anchor.or(self.pad_anchor),
            pad_order: f.pad_order.unwrap_or(self.pad_order),
            skip_tagged: f.skip_tagged.unwrap_or(self.skip_tagged),
        }
    }

    /// What does not go together, if anything.
    fn check(&self) -> Result<(), String> {
        let within = |name: &str, n: u32, most: u32| {
            if (1..=most).contains(&n) { Ok(()) } else { Err(format!("{name} = {n}, expected 1 to {most}")) }
        };
        if self.grid == 1 || self.grid > 8 {
            return Err(format!("grid = {}, expected 0 (no sub-images) or 2 to 8", self.grid));
        }
        within("image_size", self.image_size, 8192)?;
        within("vit_input", self.vit_input, 896)?;
        within("convnext_input", self.convnext_input, 4096)?;
        if !self.vit_input.is_multiple_of(VIT_PATCH) {
            return Err(format!("vit_input = {}, expected a multiple of {VIT_PATCH}", self.vit_input));
        }
        let tiles = self.grid.max(1);
        for (name, board, input) in
            [("vit_board", self.vit_board, self.vit_input), ("convnext_board", self.convnext_board, self.convnext_input)]
        {
            let nearest = name == "convnext_board" && board == 0;
            if !nearest && board != tiles * input {
                return Err(format!("{name} = {board}, expected {} ({tiles} tiles of {input} a side)", tiles * input));
            }
        }
        let map = self.convnext_input / 32;
        if !self.convnext_input.is_multiple_of(32) || !self.vit_grid().is_multiple_of(map) {
            return Err(format!(
                "convnext_input = {}, whose map does not fit {2} × {2} patches of vit_input = {1}",
                self.convnext_input,
                self.vit_input,
                self.vit_grid()
            ));
        }
        if self.pool_parts && !self.vit_grid().is_multiple_of(2) {
            return Err(format!("pool_parts = true, but there are {0} × {0} patches, which is odd", self.vit_grid()));
        }
        if !self.encoders.contains(&Encoder::ConvNext) || !self.encoders.contains(&Encoder::Dinov2) {
            return Err("encoders lacks convnext or dinov2; every member of the family has both".into());
        }
        if (1..self.encoders.len()).any(|i| self.encoders[i..].contains(&self.encoders[i - 1])) {
            return Err("encoders names one twice".into());
        }
        Ok(())
    }
}

/// What holds when config.json does not say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// Width of a row.
    pub dim: u32,
    /// Decoder layers.
    pub layers: u32,
    /// Query heads.
    pub heads: u32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Hidden width of an expert; of a dense part it follows from `dim`.
    pub hidden: u32,
    /// Experts per layer; 0 without a mixture.
    pub experts: u32,
    /// Experts used per token.
    pub experts_used: u32,
}

/// A member of the family.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// Its name in `meta.json`; of several the one we write.
    pub llama_type: String,
    /// Its decoder.
    pub language: Language,
    /// How it sees; `None` for text only.
    pub vision: Option<Layout>,
    /// What holds when config.json does not say.
    pub defaults: Defaults,
}

impl Variant {
    /// Whether a checkpoint of it should say `rope_theta` itself: there is no public code whose default would hold.
    pub fn states_theta(&self) -> bool {
        self.language == Language::Dense && self.defaults.rope_theta != SMALL.rope_theta
    }
}

/// Ways of seeing: side of the square, sub-images per side, input and board of ConvNeXt, all four encoders or two, pooling.
struct Eyes(u32, u32, u32, u32, bool, bool);

const LIGHT: Eyes = Eyes(512, 0, 512, 512, false, false);
const LIGHT5: Eyes = Eyes(1024, 2, 512, 1024, false, false);
const ALL: Eyes = Eyes(512, 0, 512, 512, true, false);
const ALL5: Eyes = Eyes(1024, 2, 512, 1024, true, false);
const FIRST: Eyes = Eyes(224, 0, 256, 0, true, false);
const FIRST5: Eyes = Eyes(448, 2, 256, 0, true, false);
const FIRST5P2: Eyes = Eyes(448, 2, 256, 0, true, true);
const FIRST10: Eyes = Eyes(672, 3, 256, 0, true, false);

impl Eyes {
    fn layout(&self) -> Layout {
        let &Eyes(image_size, grid, convnext_input, convnext_board, all, pool_parts) = self;
        let encoders = if all { &[Encoder::Clip, Encoder::ConvNext, Encoder::Dinov2][..] } else { &[Encoder::ConvNext, Encoder::Dinov2] };
        Layout {
            image_size,
            grid,
            vit_input: 224,
            vit_board: 224 * grid.max(1),
            convnext_input,
            convnext_board,
            encoders: encoders.to_vec(),
            qformer: all,
            queries: QUERIES,
            pool_parts,
            tagged: true,
            pad_anchor: None,
            pad_order: PadOrder::PadResize,
            skip_tagged: false,
        }
    }
}

const SMALL: Defaults = Defaults { dim: 4096, layers: 32, heads: 32, rope_theta: 10000.0, hidden: 0, experts: 0, experts_used: 0 };
const LARGE: Defaults = Defaults { dim: 5120, layers: 40, heads: 40, ..SMALL };
const INTERN: Defaults = Defaults { rope_theta: 1e6, ..SMALL };
const MIXTRAL: Defaults = Defaults { rope_theta: 1e6, hidden: 16384, experts: 8, experts_used: 2, ..SMALL };

use Language::{Dense, Mixture, MixtureOwner};

/// What this version converts: name, decoder, eyes, defaults.
const MEMBERS: &[(&str, Language, Option<Eyes>, Defaults)] = &[
    ("llama_ens_light", Dense, Some(LIGHT), LARGE),
    ("llama_ens5_light", Dense, Some(LIGHT5), LARGE),
    ("llama_ens", Dense, Some(FIRST), LARGE),
    ("llama_ens5", Dense, Some(FIRST5), LARGE),
    ("llama_ens5p2", Dense, Some(FIRST5P2), LARGE),
    ("llama_ens10", Dense, Some(FIRST10), LARGE),
    ("mixtral_sparse_ens", Mixture, Some(ALL), MIXTRAL),
    ("mixtral_sparse_ens5", Mixture, Some(ALL5), MIXTRAL),
    ("mixtral_sparse_ens_light", Mixture, Some(LIGHT), MIXTRAL),
    ("mixtral_sparse_ens5_light", Mixture, Some(LIGHT5), MIXTRAL),
    ("internlm2_ens_light", Dense, Some(LIGHT), INTERN),
    ("internlm2_ens5_light", Dense, Some(LIGHT5), INTERN),
    ("llama", Dense, None, SMALL),
    ("mixtral_sparse", Mixture, None, MIXTRAL),
    ("mixtral", MixtureOwner, None, MIXTRAL),
];

/// Names that some published metadata has, and what they mean.
const ALIASES: &[(&str, &str)] = &[("mistral_sparse", "mixtral_sparse"), ("mistral", "mixtral")];

/// The names of all members, for messages and help texts.
pub fn supported() -> String {
    MEMBERS.iter().map(|m| m.0).collect::<Vec<_>>().join(", ")
}

/// The variant called `llama_type`; the name came from `file`.
///
/// # Errors
/// `Invalid`, naming the type and what is supported, for anything else: apart for types of the same code base that do not belong
/// to the family and for unknown words.
pub fn find(llama_type: &str, file: &Path) -> Result<Variant> {
    let name = ALIASES.iter().find(|a| a.0 == llama_type).map_or(llama_type, |a| a.1);
    if let Some((name, language, eyes, defaults)) = MEMBERS.iter().find(|m| m.0 == name) {
        let vision = eyes.as_ref().map(Eyes::layout);
        return Ok(Variant { llama_type: (*name).to_owned(), language: *language, vision, defaults: *defaults });
    }
    let shown = printable(llama_type);
    let foreign = llama_type.ends_with("_peft")
        || llama_type == "llama_adapter"
        || llama_type.starts_with("llama_qformerv2")
        || llama_type.starts_with("falcon")
        || llama_type == "internlm";
    let what = if foreign {
        format!("llama_type \"{shown}\" is not a member of the SPHINX family and is not supported")
    } else {
        format!("llama_type \"{shown}\" is unknown")
    };
    Err(ConvertError::invalid(file, what, format!("supported types: {}", supported())))
}

/// The variant of a checkpoint: what the caller says, else `meta.json`, else what the tensor names leave no doubt about.
///
/// # Errors
/// `Invalid` when the type is not supported, or is not stated and cannot be told from the names.
pub fn of_checkpoint(checkpoint: &Checkpoint, stated: Option<&str>) -> Result<Variant> {
    let folder = checkpoint.folder();
    if let Some(llama_type) = stated {
        return find(llama_type, folder);
    }
    if let Some(llama_type) = checkpoint.llama_type() {
        return find(llama_type, &folder.join("meta.json"));
    }
    of_names(&checkpoint.names().collect::<Vec<_>>(), folder)
}

/// The variant that tensor names alone leave no doubt about.
fn of_names(names: &[&str], folder: &Path) -> Result<Variant> {
    let has = |part: &str| names.iter().any(|n| n.contains(part));
    let sees = has("visual_proj");
    let candidates: &[&str] = match (has("feed_forward.gate."), has("qformer_proj"), sees, has("attention.wqkv")) {
        (true, true, ..) => &["mixtral_sparse_ens", "mixtral_sparse_ens5"],
        (true, false, true, _) => &["mixtral_sparse_ens_light", "mixtral_sparse_ens5_light"],
        (true, false, false, _) if has("feed_forward.experts.") => &["mixtral"],
        (true, false, false, _) => &["mixtral_sparse"],
        (false, true, ..) => &["llama_ens", "llama_ens5", "llama_ens5p2", "llama_ens10"],
        (false, false, true, true) => &["internlm2_ens_light", "internlm2_ens5_light"],
        (false, false, true, false) => &["llama_ens_light", "llama_ens5_light"],
        (false, false, false, _) => &["llama"],
    };
    if let [only] = candidates {
        return find(only, folder);
    }
    let shown = |name: &&str| {
        let n = find(name, folder).ok()?.vision?.views();
        Some(format!("{name} ({n} view{})", if n == 1 { "" } else { "s" }))
    };
    let listed: Vec<String> = candidates.iter().filter_map(shown).collect();
    Err(ConvertError::invalid(
        folder,
        "no meta.json says which llama_type this is; the tensors do not show how many views it uses",
        format!("state it with --llama-type: {}", listed.join(", ")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(t: &str) -> Layout {
        find(t, Path::new("m")).unwrap().vision.unwrap()
    }

    #[test]
    fn image_rows_are_the_published_ones() {
        for (t, views, rows) in [
            ("llama_ens_light", 1, 259),
            ("llama_ens5_light", 5, 1295),
            ("mixtral_sparse_ens", 1, 291),
            ("mixtral_sparse_ens5", 5, 1455),
            ("llama_ens", 1, 291),
            ("llama_ens5", 5, 1455),
            ("llama_ens5p2", 5, 687),
            ("llama_ens10", 10, 2910),
            ("mixtral_sparse_ens5_light", 5, 1295),
            ("internlm2_ens_light", 1, 259),
        ] {
            assert_eq!((layout(t).views(), layout(t).image_rows()), (views, rows), "{t}");
            layout(t).check().unwrap();
        }
        for t in ["llama", "mixtral", "mixtral_sparse"] {
            assert_eq!(find(t, Path::new("m")).unwrap().vision, None);
        }
    }

    #[test]
    fn aliases_are_recorded_under_the_usual_name() {
        assert_eq!(find("mistral_sparse", Path::new("")).unwrap(), find("mixtral_sparse", Path::new("")).unwrap());
        assert_eq!(find("mistral", Path::new("")).unwrap().llama_type, "mixtral");
    }

    #[test]
    fn refusals_name_the_type_and_what_works() {
        for (t, word) in [
            ("llama_peft", "not a member"),
            ("llama_qformerv2_peft", "not a member"),
            ("falcon_40b", "not a member"),
            ("internlm", "not a member"),
            ("gpt", "unknown"),
        ] {
            let message = find(t, Path::new("meta.json")).unwrap_err().to_string();
            assert!(message.contains(t) && message.contains(word) && message.contains("llama_ens5_light"), "{message}");
        }
    }

    #[test]
    fn names_show_what_they_can() {
        let of = |names: &[&str]| of_names(names, Path::new("m"));
        let gate = "llma.layers.0.feed_forward.gate.weight";
        assert_eq!(of(&["llma.norm.weight"]).unwrap().llama_type, "llama");
        assert_eq!(of(&[gate, "llma.layers.0.feed_forward.w1"]).unwrap().llama_type, "mixtral_sparse");
        assert_eq!(of(&[gate, "llma.layers.0.feed_forward.experts.0.w1.weight"]).unwrap().llama_type, "mixtral");
        for (names, both) in [
            (vec![gate, "llma.qformer_proj.0.weight", "llma.visual_proj.0.weight"], "mixtral_sparse_ens (1 view), mixtral_sparse_ens5 (5"),
            (vec![gate, "llma.visual_proj.0.weight"], "mixtral_sparse_ens_light (1 view), mixtral_sparse_ens5_light"),
            (vec!["llma.qformer_proj.0.weight", "llma.visual_proj.0.weight"], "llama_ens5p2 (5 views), llama_ens10 (10 views)"),
            (vec!["llma.layers.0.attention.wqkv.weight", "llma.visual_proj.0.weight"], "internlm2_ens5_light"),
            (vec!["llma.visual_proj.0.weight"], "llama_ens_light (1 view), llama_ens5_light (5 views)"),
        ] {
            let message = of(&names).unwrap_err().to_string();
            assert!(message.contains(both) && message.contains("--llama-type"), "{message}");
        }
    }

    #[test]
    fn a_file_overrides_what_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layout.toml");
        let read = |text: &str, base: &str| {
            std::fs::write(&path, text).unwrap();
            layout(base).overridden_by(&path)
        };
        let nine = read("image_size = 1536\ngrid = 3\n", "llama_ens5_light").unwrap();
        assert_eq!((nine.vit_board, nine.convnext_board, nine.views(), nine.image_rows()), (672, 1536, 10, 2590));
        let plain = read("tagged = false\nqformer = false\nencoders = [\"dinov2\", \"convnext\"]\n", "llama_ens5").unwrap();
        assert_eq!((plain.image_rows(), plain.encoders[0], plain.convnext_board), (5 * 257, Encoder::Dinov2, 0));
        assert_eq!(read("", "llama_ens5p2").unwrap(), layout("llama_ens5p2"));
        for (bad, word) in [
            ("grid = 1", "grid"),
            ("grid = 9", "grid"),
            ("grid = -1", "line 1"),
            ("gird = 3", "gird"),
            ("vit_input = 225", "multiple of 14"),
            ("vit_input = 0", "vit_input"),
            ("vit_board = 1000", "vit_board = 1000, expected 448"),
            ("convnext_input = 4294967295", "convnext_input"),
            ("convnext_input = 384", "does not fit"),
            ("encoders = [\"dinov2\"]", "convnext"),
            ("encoders = [\"dinov2\", \"convnext\", \"dinov2\"]", "twice"),
            ("encoders = [\"sam\"]", "sam"),
            ("pad_anchor = \"left\"", "left"),
        ] {
            let message = read(bad, "llama_ens5_light").unwrap_err().to_string();
            assert!(message.contains(word) && message.contains("layout.toml"), "{bad}: {message}");
        }
    }
}
