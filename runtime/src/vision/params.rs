//! What the vision half's metadata say about its encoders, every value checked before it sizes anything.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::RangeInclusive;

use sphinx_quant::Tensor;
use sphinx_quant::error::printable;
use sphinx_quant::gguf::{Gguf, keys, keys::Half};
use sphinx_targets::{Activation, Linear, Target};

use super::resize::Anchor;
use crate::Result;

/// What to do about metadata or tensors that do not fit.
const REMEDY: &str = "convert the checkpoint again with this version";

/// A ViT or ConvNeXt input: the size of a view and of the square from which tiles are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Pixels a side of a view.
    pub input: usize,
    /// Pixels a side of the square that tiles are cut from; `input` times the grid.
    pub board: usize,
}

/// An encoder, as metadata name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoder {
    /// ConvNeXt, the trunk of an OpenCLIP model.
    ConvNext,
    /// DINOv2.
    DinoV2,
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
    /// What stands in its MLP: [`Activation::SiluGate`] or [`Activation::Gelu`].
    pub activation: Activation,
    /// Mean and standard deviation of the colours it was trained on.
    pub mean: [f32; 3],
    /// See `mean`.
    pub std: [f32; 3],
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
    /// Colour of the square padding.
    pub pad_rgb: [u8; 3],
    /// Where the picture lies in its square.
    pub pad_anchor: Anchor,
    /// Sub-images per side; 0 for the whole picture only.
    pub grid: usize,
    /// Encoders in the order in which their features are concatenated.
    pub encoders: Vec<Encoder>,
    /// ViT inputs.
    pub vit: Tiling,
    /// ConvNeXt.
    pub convnext: ConvNextParams,
    /// DINOv2.
    pub dino: DinoParams,
    /// Epsilon of the projection's LayerNorm.
    pub projector_eps: f32,
}

impl VisionParams {
    /// Reads and checks the metadata of `file`.
    ///
    /// # Errors
    /// `Invalid` naming the key whose value is missing, of another type, out of range or at odds with another.
    pub fn read(file: &Gguf) -> Result<VisionParams> {
        let r = Reader { file };
        if file.half() != Half::Vision {
            return Err(file
                .invalid(format!("architecture `{}` is no vision half", file.arch()), None, "give the mmproj file of the model")
                .into());
        }
        let grid = r.count(keys::GRID, 0..=8)?;
        let tiling = |input: usize, board_key: &str, board: usize| match (grid, board) {
            (0, _) => Ok(Tiling { input, board: input }),
            _ if board == input * grid => Ok(Tiling { input, board }),
            _ => Err(r.bad(board_key, board, &format!("{} (views of {input} in a grid of {grid})", input * grid))),
        };
        let vit_input = r.count(keys::VIT_INPUT, 1..=4096)?;
        let vit = tiling(vit_input, keys::VIT_BOARD, r.count(keys::VIT_BOARD, 0..=32_768)?)?;

        let convnext_input = r.count(keys::CONVNEXT_INPUT, 1..=4096)?;
        let board = r.count(keys::CONVNEXT_BOARD, 0..=32_768)?;
        let depths = r.counts(keys::CONVNEXT_DEPTHS, 1..=1024)?;
        let widths = r.counts(keys::CONVNEXT_WIDTHS, 1..=16_384)?;
        if depths.is_empty() || depths.len() > 8 {
            return Err(r.bad(keys::CONVNEXT_DEPTHS, format!("{} stages", depths.len()), "1 to 8"));
        }
        if widths.len() != depths.len() {
            return Err(r.bad(keys::CONVNEXT_WIDTHS, format!("{} stages", widths.len()), &format!("{}, as many as depths", depths.len())));
        }
        let stride = ConvNextParams::PATCH << (depths.len() - 1);
        if !convnext_input.is_multiple_of(stride) {
            return Err(r.bad(keys::CONVNEXT_INPUT, convnext_input, &format!("a multiple of {stride}")));
        }
        let tiling = if board == 0 { None } else { Some(tiling(convnext_input, keys::CONVNEXT_BOARD, board)?) };
        let convnext = ConvNextParams { input: convnext_input, tiling, depths, widths, eps: r.eps(keys::CONVNEXT_EPS)? };

        let dino = DinoParams {
            blocks: r.count(keys::DINO_BLOCK_COUNT, 1..=1024)?,
            width: r.count(keys::DINO_EMBEDDING_LENGTH, 1..=16_384)?,
            hidden: r.count(keys::DINO_FEED_FORWARD_LENGTH, 1..=131_072)?,
            heads: r.count(keys::DINO_HEAD_COUNT, 1..=1024)?,
            patch: r.count(keys::DINO_PATCH, 1..=256)?,
            eps: r.eps(keys::DINO_EPS)?,
            activation: match file.str(&key(keys::DINO_MLP))? {
                "swiglu" => Activation::SiluGate,
                "gelu" => Activation::Gelu,
                other => return Err(r.bad(keys::DINO_MLP, format!("`{}`", printable(other)), "`swiglu` or `gelu`")),
            },
            mean: r.triple(keys::DINO_MEAN, false)?,
            std: r.triple(keys::DINO_STD, true)?,
        };
        if !dino.width.is_multiple_of(dino.heads) {
            return Err(r.bad(keys::DINO_HEAD_COUNT, dino.heads, &format!("a divisor of the width, {}", dino.width)));
        }
        if !vit.input.is_multiple_of(dino.patch) {
            return Err(r.bad(keys::DINO_PATCH, dino.patch, &format!("a divisor of the input, {}", vit.input)));
        }
        let across = vit.input / dino.patch;
        if across > 64 || !across.is_multiple_of(convnext.last_side()) {
            let expected = format!("one whose last map ({} a side) fits {across} × {across} patches", convnext.last_side());
            return Err(r.bad(keys::CONVNEXT_INPUT, convnext.input, &expected));
        }

        let params = VisionParams {
            projection_dim: r.count(keys::PROJECTION_DIM, 1..=65_536)?,
            image_size: r.count(keys::IMAGE_SIZE, 1..=8192)?,
            image_mean: r.triple(keys::IMAGE_MEAN, false)?,
            image_std: r.triple(keys::IMAGE_STD, true)?,
            pad_rgb: match file.u8_array(&key(keys::PAD_RGB))? {
                &[r, g, b] => [r, g, b],
                other => return Err(r.bad(keys::PAD_RGB, format!("{} values", other.len()), "3")),
            },
            pad_anchor: match file.str(&key(keys::PAD_ANCHOR))? {
                "centre" => Anchor::Centre,
                "top_left" => Anchor::TopLeft,
                other => return Err(r.bad(keys::PAD_ANCHOR, format!("`{}`", printable(other)), "`centre` or `top_left`")),
            },
            grid,
            encoders: r.encoders()?,
            vit,
            convnext,
            dino,
            projector_eps: r.eps(keys::PROJ_EPS)?,
        };
        Ok(params)
    }

    /// Views of a picture: the whole and its sub-images.
    pub fn views(&self) -> usize {
        1 + self.grid * self.grid
    }

    /// Patches a side of a ViT's input; every encoder's map is brought to this size.
    pub fn patches_across(&self) -> usize {
        self.vit.input / self.dino.patch
    }

    /// Rows of a view without its tags: one for the whole, one per patch.
    pub fn tokens(&self) -> usize {
        1 + self.patches_across().pow(2)
    }

    /// Rows that a picture adds to a prompt, tags included.
    pub fn image_rows(&self) -> usize {
        self.views() * (self.tokens() + 2)
    }

    /// Width of the concatenated features.
    pub fn features(&self) -> usize {
        self.encoders.iter().map(|&e| self.width_of(e)).sum()
    }

    /// Width of an encoder's output.
    pub fn width_of(&self, encoder: Encoder) -> usize {
        match encoder {
            Encoder::ConvNext => self.convnext.width(),
            Encoder::DinoV2 => self.dino.width,
        }
    }
}

/// Our key `name` of the vision half.
fn key(name: &str) -> String {
    Half::Vision.key(name)
}

/// Checked access to metadata.
struct Reader<'a> {
    file: &'a Gguf,
}

impl Reader<'_> {
    fn bad(&self, name: &str, found: impl std::fmt::Display, expected: &str) -> crate::RuntimeError {
        self.file.invalid(format!("metadata `{}` is {found}, expected {expected}", key(name)), None, REMEDY).into()
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

    fn encoders(&self) -> Result<Vec<Encoder>> {
        let names = self.file.str_array(&key(keys::ENCODERS))?;
        let shown = printable(&names.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", "));
        let known = |name: &String| match name.as_str() {
            "convnext" => Ok(Encoder::ConvNext),
            "dinov2" => Ok(Encoder::DinoV2),
            _ => Err(self.bad(keys::ENCODERS, &shown, "`convnext` and `dinov2`, which this version runs")),
        };
        let encoders = names.iter().map(known).collect::<Result<Vec<_>>>()?;
        match encoders[..] {
            [Encoder::ConvNext, Encoder::DinoV2] | [Encoder::DinoV2, Encoder::ConvNext] => Ok(encoders),
            _ => Err(self.bad(keys::ENCODERS, &shown, "`convnext` and `dinov2`, once each")),
        }
    }
}

/// A LayerNorm's parameters.
pub(super) struct Norm<T: Target> {
    pub(super) weight: T::Vector,
    pub(super) bias: T::Vector,
}

impl<T: Target> Norm<T> {
    /// `x` normalised into `out`.
    pub(super) fn apply(&self, t: &T, x: &T::Buffer, eps: f32, out: &mut T::Buffer) -> Result<()> {
        Ok(t.layer_norm(x, &self.weight, &self.bias, eps, out)?)
    }
}

/// Tensors of a file, held against the shapes that its metadata call for.
pub(super) struct Tensors<'a, T: Target> {
    pub(super) target: &'a T,
    pub(super) file: &'a Gguf,
    /// Names that were asked for.
    asked: RefCell<HashSet<&'a str>>,
}

impl<'a, T: Target> Tensors<'a, T> {
    pub(super) fn new(target: &'a T, file: &'a Gguf) -> Self {
        Tensors { target, file, asked: RefCell::default() }
    }

    /// Checks that everything in the file was asked for: what belongs to an encoder and is left out would change the result.
    pub(super) fn all_asked(&self) -> Result<()> {
        let asked = self.asked.borrow();
        for tensor in self.file.tensors().iter().filter(|t| !asked.contains(t.name())) {
            if tensor.name().starts_with("v.") {
                let what = "the metadata describe a model without this tensor";
                return Err(self.file.invalid(what, Some(tensor.name()), REMEDY).into());
            }
            tracing::warn!("tensor \"{}\" is not used", printable(tensor.name()));
        }
        Ok(())
    }

    /// The tensor `name` of shape `[rows, cols]`, or `[cols]` when `rows` is 1.
    fn shaped(&self, name: &str, rows: usize, cols: usize) -> Result<&'a Tensor> {
        let tensor = self.file.tensor(name)?;
        self.asked.borrow_mut().insert(tensor.name());
        if (tensor.rows(), tensor.cols()) != (rows, cols) {
            let what = format!("shape [{}, {}], expected [{rows}, {cols}] by the metadata", tensor.rows(), tensor.cols());
            return Err(self.file.invalid(what, Some(name), REMEDY).into());
        }
        Ok(tensor)
    }

    /// A table `[rows, cols]` used element by element.
    pub(super) fn table(&self, name: &str, rows: usize, cols: usize) -> Result<T::Vector> {
        Ok(self.target.vector(self.shaped(name, rows, cols)?)?)
    }

    /// A vector.
    pub(super) fn vector(&self, name: &str, len: usize) -> Result<T::Vector> {
        self.table(name, 1, len)
    }

    /// A vector on the host.
    pub(super) fn values(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensor = self.shaped(name, 1, len)?;
        let mut values = vec![0.0; len];
        sphinx_quant::block::dequantize(tensor.ty(), tensor.bytes(), &mut values);
        Ok(values)
    }

    /// A linear layer `[out, in]` with its bias.
    pub(super) fn linear(&self, weight: &str, bias: &str, out: usize, inputs: usize) -> Result<Linear<T>> {
        let tensor = self.shaped(weight, out, inputs)?;
        Ok(Linear { weight: self.target.matrix(std::slice::from_ref(tensor))?, bias: Some(self.vector(bias, out)?) })
    }

    /// A LayerNorm.
    pub(super) fn norm(&self, weight: &str, bias: &str, len: usize) -> Result<Norm<T>> {
        Ok(Norm { weight: self.vector(weight, len)?, bias: self.vector(bias, len)? })
    }
}
