//! What the vision half's metadata say about its layout and its encoders, every value checked before it sizes anything.
//!
//! A key that is optional means, where it is missing, what every file meant before there was such a key.

use std::ops::RangeInclusive;

use sphinx_quant::error::printable;
use sphinx_quant::gguf::{Gguf, keys, keys::Half};
use sphinx_targets::Activation;

use super::resize::{Anchor, Padding, PaddingOrder};
use super::views::empty_parts;
use crate::Result;

/// What to do about metadata or tensors that do not fit.
pub(super) const REMEDY: &str = "convert the checkpoint again with this version";
/// Most sub-images a side.
const MAX_GRID: usize = 9;
/// Longest side of a square, in pixels.
const MAX_SQUARE: usize = 8192;
/// Longest side of a view, in pixels.
const MAX_INPUT: usize = 4096;
/// Most numbers in the rows of a picture.
const MAX_NUMBERS: usize = 1 << 29;
/// Most patches a side of a view.
const MAX_ACROSS: usize = 64;

/// A ViT or ConvNeXt input: the size of a view and of the square from which tiles are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Pixels a side of a view.
    pub input: usize,
    /// Pixels a side of the square that tiles are cut from; `input` times the grid.
    pub board: usize,
}

/// An encoder whose features are concatenated with the others'.
#[derive(Clone, Debug, PartialEq)]
pub enum Encoder {
    /// CLIP's visual tower.
    Clip(VitParams),
    /// ConvNeXt, the trunk of an OpenCLIP model.
    ConvNext(ConvNextParams),
    /// DINOv2.
    DinoV2(DinoParams),
}

impl Encoder {
    /// Its name in metadata and stages.
    pub fn name(&self) -> &'static str {
        match self {
            Encoder::Clip(_) => "clip",
            Encoder::ConvNext(_) => "convnext",
            Encoder::DinoV2(_) => "dinov2",
        }
    }

    /// Width of its features.
    pub fn width(&self) -> usize {
        match self {
            Encoder::Clip(vit) => vit.width,
            Encoder::ConvNext(convnext) => convnext.width(),
            Encoder::DinoV2(dino) => dino.vit.width,
        }
    }
}

/// A vision transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct VitParams {
    /// Blocks.
    pub blocks: usize,
    /// Channels.
    pub width: usize,
    /// Hidden channels of its MLP.
    pub hidden: usize,
    /// Heads.
    pub heads: usize,
    /// Pixels a side of a patch.
    pub patch: usize,
    /// Epsilon of its LayerNorms.
    pub eps: f32,
    /// What stands in its MLP.
    pub activation: Activation,
}

/// Outputs of an MLP's first layer.
pub(super) fn mlp_rows(activation: Activation, hidden: usize) -> usize {
    match activation {
        Activation::SiluGate => 2 * hidden,
        Activation::Gelu | Activation::QuickGelu => hidden,
    }
}

/// ConvNeXt.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvNextParams {
    /// Pixels a side of its input.
    pub input: usize,
    /// Where its inputs are cut from; `None`: it sees the ViT's views, resized.
    pub tiling: Option<Tiling>,
    /// Blocks per stage.
    pub depths: Vec<usize>,
    /// Channels per stage.
    pub widths: Vec<usize>,
    /// Epsilon of its LayerNorms.
    pub eps: f32,
}

impl ConvNextParams {
    /// Pixels a side of a stem patch.
    pub const PATCH: usize = 4;
    /// Side of the depthwise kernels.
    pub const KERNEL: usize = 7;

    /// Side of the map that stage `stage` works on.
    pub fn side(&self, stage: usize) -> usize {
        (self.input / Self::PATCH) >> stage
    }

    /// Side of the last stage's map.
    pub fn last_side(&self) -> usize {
        self.side(self.depths.len() - 1)
    }

    /// Channels of the last stage.
    pub fn width(&self) -> usize {
        self.widths[self.widths.len() - 1]
    }
}

/// DINOv2.
#[derive(Clone, Debug, PartialEq)]
pub struct DinoParams {
    /// The tower; its activation is [`Activation::SiluGate`] or [`Activation::Gelu`].
    pub vit: VitParams,
    /// Mean and standard deviation of the colours it was trained on.
    pub mean: [f32; 3],
    /// See `mean`.
    pub std: [f32; 3],
}

/// The Q-Former of BLIP-2 and the EVA tower it looks at.
#[derive(Clone, Debug, PartialEq)]
pub struct QFormerParams {
    /// The tower.
    pub eva: VitParams,
    /// Layers.
    pub blocks: usize,
    /// Channels.
    pub width: usize,
    /// Hidden channels of its MLP.
    pub hidden: usize,
    /// Heads.
    pub heads: usize,
    /// Epsilon of its LayerNorms.
    pub eps: f32,
    /// Learned queries, which are its rows.
    pub queries: usize,
    /// Layer 0 and every layer that is a multiple of this look at the tower's rows.
    pub cross_every: usize,
}

impl QFormerParams {
    /// Whether layer `layer` looks at the tower's rows.
    pub fn crosses(&self, layer: usize) -> bool {
        layer.is_multiple_of(self.cross_every)
    }
}

/// What rows of a view are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewRows {
    /// One per query of the Q-Former.
    QFormer,
    /// One for the whole, one per patch.
    Features,
}

/// What stands for a sub-image in which there is nothing of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkipParams {
    /// Learned rows.
    pub tokens: usize,
    /// Whether these stand between a start row and an end row.
    pub tagged: bool,
}

/// The layout of the vision half.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionParams {
    /// Width of the rows that enter the decoder.
    pub projection_dim: usize,
    /// Pixels a side of the preprocessed square.
    pub image_size: usize,
    /// Mean of its normalisation.
    pub image_mean: [f32; 3],
    /// Standard deviation of its normalisation.
    pub image_std: [f32; 3],
    /// How a picture becomes a square.
    pub padding: Padding,
    /// Sub-images per side; 0 for the whole picture only.
    pub grid: usize,
    /// ViT inputs.
    pub vit: Tiling,
    /// Encoders in the order in which their features are concatenated.
    pub encoders: Vec<Encoder>,
    /// The Q-Former, where a view has rows of it.
    pub qformer: Option<QFormerParams>,
    /// What the rows of a view are, in order.
    pub view_rows: Vec<ViewRows>,
    /// Whether the patch rows of sub-images are averaged over 2×2 neighbourhoods before the projection.
    pub pool_parts: bool,
    /// Whether a view stands between a start row and an end row.
    pub tagged: bool,
    /// Whether sub-images without content are left out, and what stands for them.
    pub skip: Option<SkipParams>,
    /// Epsilon of the projections' LayerNorms.
    pub projector_eps: f32,
    /// Patches a side of a view; every encoder's map is brought to this size.
    across: usize,
}

impl VisionParams {
    /// Reads and checks the metadata of `file`.
    ///
    /// # Errors
    /// `Invalid` naming the key whose value is missing, of another type, out of range or at odds with another.
    pub fn read(file: &Gguf) -> Result<VisionParams> {
        if file.half() != Half::Vision {
            return Err(file
                .invalid(format!("architecture `{}` is no vision half", file.arch()), None, "give the mmproj file of the model")
                .into());
        }
        let r = Reader { file };
        let grid = r.count(keys::GRID, 0..=MAX_GRID)?;
        let vit_input = r.count(keys::VIT_INPUT, 1..=MAX_INPUT)?;
        let vit = r.tiling(grid, vit_input, keys::VIT_BOARD, r.count(keys::VIT_BOARD, 0..=MAX_SQUARE)?)?;
        let encoders = r.encoders(grid)?;
        let across = r.across(&encoders, vit.input)?;
        let view_rows = r.view_rows()?;
        let qformer = if view_rows.contains(&ViewRows::QFormer) { Some(r.qformer(vit.input)?) } else { None };
        let pool_parts = r.flag(keys::VIEW_POOL_PARTS, false)?;
        if pool_parts && !across.is_multiple_of(2) {
            return Err(r.bad(keys::VIEW_POOL_PARTS, true, &format!("false where views have {across} × {across} patches")));
        }
        let params = VisionParams {
            projection_dim: r.count(keys::PROJECTION_DIM, 1..=65_536)?,
            image_size: r.count(keys::IMAGE_SIZE, 1..=MAX_SQUARE)?,
            image_mean: r.triple(keys::IMAGE_MEAN, false)?,
            image_std: r.triple(keys::IMAGE_STD, true)?,
            padding: r.padding()?,
            grid,
            vit,
            encoders,
            qformer,
            view_rows,
            pool_parts,
            tagged: r.flag(keys::VIEW_TAGGED, true)?,
            skip: r.skip(grid)?,
            projector_eps: r.eps(keys::PROJ_EPS)?,
            across,
        };
        let (rows, dim) = (params.image_rows(), params.projection_dim);
        if rows * dim > MAX_NUMBERS {
            return Err(r.bad(keys::PROJECTION_DIM, dim, &format!("{} at most where a picture becomes {rows} rows", MAX_NUMBERS / rows)));
        }
        Ok(params)
    }

    /// Views of a picture: the whole and its sub-images.
    pub fn views(&self) -> usize {
        1 + self.grid * self.grid
    }

    /// Patches a side of a view; every encoder's map is brought to this size.
    pub fn patches_across(&self) -> usize {
        self.across
    }

    /// Rows of an encoder's output for a view: one for the whole, one per patch.
    pub fn tokens(&self) -> usize {
        1 + self.across.pow(2)
    }

    /// Rows of view `view` that come from the encoders, pooled where its patches are.
    pub fn feature_rows(&self, view: usize) -> usize {
        if self.pool_parts && view > 0 { 1 + (self.across / 2).pow(2) } else { self.tokens() }
    }

    /// Rows of view `view` without its tags.
    pub fn view_tokens(&self, view: usize) -> usize {
        self.qformer.as_ref().map_or(0, |q| q.queries) + self.feature_rows(view)
    }

    /// Rows of view `view`, its tags included.
    pub fn view_rows(&self, view: usize) -> usize {
        self.view_tokens(view) + if self.tagged { 2 } else { 0 }
    }

    /// Rows that a picture adds to a prompt when nothing of it is skipped, tags included.
    pub fn image_rows(&self) -> usize {
        (0..self.views()).map(|k| self.view_rows(k)).sum()
    }

    /// Which views of a picture of `width` × `height` pixels are skipped. The whole picture never is.
    pub fn skipped(&self, width: usize, height: usize) -> Vec<bool> {
        let mut skipped = vec![false; self.views()];
        if self.skip.is_some() {
            skipped[1..].copy_from_slice(&empty_parts(self.padding.frame(width, height, self.image_size), self.grid));
        }
        skipped
    }

    /// Rows that a picture of `width` × `height` pixels adds to a prompt, tags included.
    pub fn rows_of(&self, width: usize, height: usize) -> usize {
        let empty = self.skip.map_or(0, |skip| skip.tokens + if skip.tagged { 2 } else { 0 });
        self.skipped(width, height).iter().enumerate().map(|(k, &skipped)| if skipped { empty } else { self.view_rows(k) }).sum()
    }

    /// Width of the concatenated features.
    pub fn features(&self) -> usize {
        self.encoders.iter().map(Encoder::width).sum()
    }

    /// ConvNeXt, if it is there.
    pub fn convnext(&self) -> Option<&ConvNextParams> {
        self.encoders.iter().find_map(|encoder| if let Encoder::ConvNext(convnext) = encoder { Some(convnext) } else { None })
    }
}

/// Our key `name` of the vision half.
fn key(name: &str) -> String {
    Half::Vision.key(name)
}

/// Where the sizes of a vision transformer stand.
struct VitKeys {
    blocks: &'static str,
    width: &'static str,
    hidden: &'static str,
    heads: &'static str,
    patch: &'static str,
    eps: &'static str,
}

const CLIP: VitKeys = VitKeys {
    blocks: keys::CLIP_BLOCK_COUNT,
    width: keys::CLIP_EMBEDDING_LENGTH,
    hidden: keys::CLIP_FEED_FORWARD_LENGTH,
    heads: keys::CLIP_HEAD_COUNT,
    patch: keys::CLIP_PATCH,
    eps: keys::CLIP_EPS,
};

const EVA: VitKeys = VitKeys {
    blocks: keys::EVA_BLOCK_COUNT,
    width: keys::EVA_EMBEDDING_LENGTH,
    hidden: keys::EVA_FEED_FORWARD_LENGTH,
    heads: keys::EVA_HEAD_COUNT,
    patch: keys::EVA_PATCH,
    eps: keys::EVA_EPS,
};

const DINO: VitKeys = VitKeys {
    blocks: keys::DINO_BLOCK_COUNT,
    width: keys::DINO_EMBEDDING_LENGTH,
    hidden: keys::DINO_FEED_FORWARD_LENGTH,
    heads: keys::DINO_HEAD_COUNT,
    patch: keys::DINO_PATCH,
    eps: keys::DINO_EPS,
};

/// Checked access to metadata.
struct Reader<'a> {
    file: &'a Gguf,
}

impl Reader<'_> {
    fn bad(&self, name: &str, found: impl std::fmt::Display, expected: &str) -> crate::RuntimeError {
        self.file.invalid(format!("metadata `{}` is {found}, expected {expected}", key(name)), None, REMEDY).into()
    }

    /// What a word stands for, of `known` words.
    fn word<V: Copy>(&self, name: &str, word: &str, known: &[(&str, V)]) -> Result<V> {
        let found = known.iter().find(|(w, _)| *w == word);
        found.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<String> = known.iter().map(|(w, _)| format!("`{w}`")).collect();
            self.bad(name, format!("`{}`", printable(word)), &words.join(" or "))
        })
    }

    fn in_range(&self, name: &str, value: u32, range: &RangeInclusive<usize>) -> Result<usize> {
        let value = value as usize;
        if range.contains(&value) {
            return Ok(value);
        }
        Err(self.bad(name, value, &format!("{} to {}", range.start(), range.end())))
    }

    fn count(&self, name: &str, range: RangeInclusive<usize>) -> Result<usize> {
        self.in_range(name, self.file.u32(&key(name))?, &range)
    }

    fn counts(&self, name: &str, range: RangeInclusive<usize>) -> Result<Vec<usize>> {
        self.file.u32_array(&key(name))?.into_iter().map(|v| self.in_range(name, v, &range)).collect()
    }

    fn flag(&self, name: &str, absent: bool) -> Result<bool> {
        Ok(self.file.opt_bool(&key(name))?.unwrap_or(absent))
    }

    fn eps(&self, name: &str) -> Result<f32> {
        let value = self.file.f32(&key(name))?;
        if value > 0.0 && value <= 0.1 { Ok(value) } else { Err(self.bad(name, value, "a small positive number")) }
    }

    fn triple(&self, name: &str, positive: bool) -> Result<[f32; 3]> {
        let values = self.file.f32_array(&key(name))?;
        let Ok(triple) = <[f32; 3]>::try_from(values) else {
            return Err(self.bad(name, format!("{} values", values.len()), "3"));
        };
        let fine = |v: &f32| v.abs() <= 100.0 && (!positive || *v >= 1e-3);
        match triple.iter().find(|v| !fine(v)) {
            None => Ok(triple),
            Some(v) => Err(self.bad(name, v, if positive { "0.001 to 100" } else { "-100 to 100" })),
        }
    }

    /// Views of `input` cut from a square of `board`, which is what `board_key` says.
    fn tiling(&self, grid: usize, input: usize, board_key: &str, board: usize) -> Result<Tiling> {
        match grid {
            0 => Ok(Tiling { input, board: input }),
            _ if board == input * grid => Ok(Tiling { input, board }),
            _ => Err(self.bad(board_key, board, &format!("{} (views of {input} in a grid of {grid})", input * grid))),
        }
    }

    fn padding(&self) -> Result<Padding> {
        let order = self.file.opt_str(&key(keys::PAD_ORDER))?.unwrap_or("pad_resize");
        Ok(Padding {
            rgb: match self.file.u8_array(&key(keys::PAD_RGB))? {
                &[r, g, b] => [r, g, b],
                other => return Err(self.bad(keys::PAD_RGB, format!("{} values", other.len()), "3")),
            },
            anchor: self.word(
                keys::PAD_ANCHOR,
                self.file.str(&key(keys::PAD_ANCHOR))?,
                &[("centre", Anchor::Centre), ("top_left", Anchor::TopLeft)],
            )?,
            order: self.word(
                keys::PAD_ORDER,
                order,
                &[("pad_resize", PaddingOrder::PadResize), ("resize_pad", PaddingOrder::ResizePad)],
            )?,
        })
    }

    fn skip(&self, grid: usize) -> Result<Option<SkipParams>> {
        if !self.flag(keys::SKIP_ENABLED, false)? {
            return Ok(None);
        }
        if grid == 0 {
            return Err(self.bad(keys::SKIP_ENABLED, true, "false where there are no sub-images"));
        }
        let tokens = self.file.opt_u32(&key(keys::SKIP_TOKENS))?.unwrap_or(1);
        Ok(Some(SkipParams {
            tokens: self.in_range(keys::SKIP_TOKENS, tokens, &(1..=4096))?,
            tagged: self.flag(keys::SKIP_TAGGED, false)?,
        }))
    }

    /// Names at `name`, each one of `known` and given once, some of them.
    fn names<'k>(&self, name: &str, names: &[String], known: &[&'k str]) -> Result<Vec<&'k str>> {
        let found: Option<Vec<&str>> = names.iter().map(|n| known.iter().copied().find(|k| k == n)).collect();
        let once = |found: &Vec<&str>| !found.is_empty() && (1..found.len()).all(|i| !found[..i].contains(&found[i]));
        found.filter(once).ok_or_else(|| {
            let shown = printable(&names.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", "));
            self.bad(name, format!("`{shown}`"), &format!("some of `{}`, each once", known.join("`, `")))
        })
    }

    fn view_rows(&self) -> Result<Vec<ViewRows>> {
        let Some(names) = self.file.opt_str_array(&key(keys::VIEW_ROWS))? else { return Ok(vec![ViewRows::Features]) };
        let names = self.names(keys::VIEW_ROWS, names, &["qformer", "features"])?;
        if !names.contains(&"features") {
            return Err(self.bad(keys::VIEW_ROWS, "`qformer`", "`features` among them"));
        }
        Ok(names.iter().map(|&name| if name == "qformer" { ViewRows::QFormer } else { ViewRows::Features }).collect())
    }

    fn encoders(&self, grid: usize) -> Result<Vec<Encoder>> {
        let names = self.names(keys::ENCODERS, self.file.str_array(&key(keys::ENCODERS))?, &["clip", "convnext", "dinov2"])?;
        let encoder = |&name: &&str| match name {
            "clip" => self.clip().map(Encoder::Clip),
            "convnext" => self.convnext(grid).map(Encoder::ConvNext),
            _ => self.dino().map(Encoder::DinoV2),
        };
        names.iter().map(encoder).collect()
    }

    fn vit(&self, k: &VitKeys, activation: Activation) -> Result<VitParams> {
        let vit = VitParams {
            blocks: self.count(k.blocks, 1..=1024)?,
            width: self.count(k.width, 1..=16_384)?,
            hidden: self.count(k.hidden, 1..=131_072)?,
            heads: self.count(k.heads, 1..=1024)?,
            patch: self.count(k.patch, 1..=256)?,
            eps: self.eps(k.eps)?,
            activation,
        };
        self.whole_heads(k.heads, vit.heads, vit.width)?;
        Ok(vit)
    }

    fn whole_heads(&self, name: &str, heads: usize, width: usize) -> Result<()> {
        if width.is_multiple_of(heads) { Ok(()) } else { Err(self.bad(name, heads, &format!("a divisor of the width, {width}"))) }
    }

    /// Patches a side of a ViT's input.
    fn patches(&self, name: &str, patch: usize, input: usize) -> Result<usize> {
        if !input.is_multiple_of(patch) {
            return Err(self.bad(name, patch, &format!("a divisor of the input, {input}")));
        }
        match input / patch {
            across if across <= MAX_ACROSS => Ok(across),
            across => Err(self.bad(name, patch, &format!("at most {MAX_ACROSS} patches a side, not {across}"))),
        }
    }

    /// Patches a side on which all encoders agree.
    fn across(&self, encoders: &[Encoder], vit_input: usize) -> Result<usize> {
        let mut agreed = None;
        for encoder in encoders {
            let (name, patch) = match encoder {
                Encoder::Clip(vit) => (CLIP.patch, vit.patch),
                Encoder::DinoV2(dino) => (DINO.patch, dino.vit.patch),
                Encoder::ConvNext(_) => continue,
            };
            let across = self.patches(name, patch, vit_input)?;
            match agreed {
                Some(other) if other != across => {
                    return Err(self.bad(name, patch, &format!("{}, which is the other encoder's", vit_input / other)));
                }
                _ => agreed = Some(across),
            }
        }
        for encoder in encoders {
            let Encoder::ConvNext(convnext) = encoder else { continue };
            let side = convnext.last_side();
            let across = *agreed.get_or_insert(side);
            if across > MAX_ACROSS || !across.is_multiple_of(side) {
                let expected = format!("one whose last map ({side} a side) fits {across} × {across} patches, {MAX_ACROSS} a side at most");
                return Err(self.bad(keys::CONVNEXT_INPUT, convnext.input, &expected));
            }
        }
        agreed.ok_or_else(|| self.bad(keys::ENCODERS, "empty", "an encoder"))
    }

    fn clip(&self) -> Result<VitParams> {
        let quick = self.flag(keys::CLIP_QUICK_GELU, false)?;
        self.vit(&CLIP, if quick { Activation::QuickGelu } else { Activation::Gelu })
    }

    fn convnext(&self, grid: usize) -> Result<ConvNextParams> {
        let input = self.count(keys::CONVNEXT_INPUT, 1..=MAX_INPUT)?;
        let board = self.count(keys::CONVNEXT_BOARD, 0..=MAX_SQUARE)?;
        let depths = self.counts(keys::CONVNEXT_DEPTHS, 1..=1024)?;
        let widths = self.counts(keys::CONVNEXT_WIDTHS, 1..=16_384)?;
        if depths.is_empty() || depths.len() > 8 {
            return Err(self.bad(keys::CONVNEXT_DEPTHS, format!("{} stages", depths.len()), "1 to 8"));
        }
        if widths.len() != depths.len() {
            let expected = format!("{}, as many as depths", depths.len());
            return Err(self.bad(keys::CONVNEXT_WIDTHS, format!("{} stages", widths.len()), &expected));
        }
        let stride = ConvNextParams::PATCH << (depths.len() - 1);
        if !input.is_multiple_of(stride) {
            return Err(self.bad(keys::CONVNEXT_INPUT, input, &format!("a multiple of {stride}")));
        }
        let tiling = if board == 0 { None } else { Some(self.tiling(grid, input, keys::CONVNEXT_BOARD, board)?) };
        Ok(ConvNextParams { input, tiling, depths, widths, eps: self.eps(keys::CONVNEXT_EPS)? })
    }

    fn dino(&self) -> Result<DinoParams> {
        let known = [("swiglu", Activation::SiluGate), ("gelu", Activation::Gelu)];
        let activation = self.word(keys::DINO_MLP, self.file.str(&key(keys::DINO_MLP))?, &known)?;
        Ok(DinoParams {
            vit: self.vit(&DINO, activation)?,
            mean: self.triple(keys::DINO_MEAN, false)?,
            std: self.triple(keys::DINO_STD, true)?,
        })
    }

    fn qformer(&self, vit_input: usize) -> Result<QFormerParams> {
        let eva = self.vit(&EVA, Activation::Gelu)?;
        self.patches(EVA.patch, eva.patch, vit_input)?;
        let params = QFormerParams {
            eva,
            blocks: self.count(keys::QF_BLOCK_COUNT, 1..=1024)?,
            width: self.count(keys::QF_EMBEDDING_LENGTH, 1..=16_384)?,
            hidden: self.count(keys::QF_FEED_FORWARD_LENGTH, 1..=131_072)?,
            heads: self.count(keys::QF_HEAD_COUNT, 1..=1024)?,
            eps: self.eps(keys::QF_EPS)?,
            queries: self.count(keys::QF_QUERIES, 1..=4096)?,
            cross_every: self.count(keys::QF_CROSS_EVERY, 1..=1024)?,
        };
        self.whole_heads(keys::QF_HEAD_COUNT, params.heads, params.width)?;
        Ok(params)
    }
}
