//! ConvNeXt: the trunk of an OpenCLIP model, its last map kept whole.

use sphinx_quant::gguf::names;
use sphinx_targets::{Activation, After, Linear, MapShape, Mlp, Target};

use super::params::ConvNextParams;
use super::tensors::{Norm, Tensors};
use super::views::{Map, patchify};
use crate::Result;
use crate::source::window::Window;

/// Stages with more positions per view than this run view by view: their weights are few, their maps are not.
pub(crate) const BATCHED_POSITIONS: usize = 1024;

/// The encoder's weights.
pub(super) struct ConvNext<T: Target> {
    params: ConvNextParams,
    stem: Linear<T>,
    stem_norm: Norm<T>,
    stages: Vec<Stage<T>>,
    head_norm: Norm<T>,
}

struct Stage<T: Target> {
    /// Norm and 2×2 convolution of stride 2 that lead into the stage; the first has none.
    down: Option<(Norm<T>, Linear<T>)>,
    blocks: Vec<Block<T>>,
    window: Option<Window>,
}

struct Block<T: Target> {
    kernel: T::Vector,
    kernel_bias: T::Vector,
    norm: sphinx_targets::Norm<T>,
    mlp: Mlp<T>,
    gamma: T::Vector,
}

impl<T: Target> ConvNext<T> {
    pub(super) fn load(tensors: &Tensors<T>, params: &ConvNextParams) -> Result<ConvNext<T>> {
        let patch = 3 * ConvNextParams::PATCH * ConvNextParams::PATCH;
        let taps = ConvNextParams::KERNEL * ConvNextParams::KERNEL;
        let first = params.widths[0];
        let mut stages = Vec::with_capacity(params.depths.len());
        for (i, (&depth, &width)) in params.depths.iter().zip(&params.widths).enumerate() {
            let name = |template: &str, j: usize| names::at(template, i, j);
            let down = match i.checked_sub(1) {
                None => None,
                Some(before) => {
                    let from = params.widths[before];
                    let norm = tensors.norm(&name(names::CNX_DOWN_NORM_W, 0), &name(names::CNX_DOWN_NORM_B, 0), from)?;
                    Some((norm, tensors.linear(&name(names::CNX_DOWN_W, 0), &name(names::CNX_DOWN_B, 0), width, 4 * from)?))
                }
            };
            let block = |j: usize| -> Result<Block<T>> {
                let name = |template: &str| name(template, j);
                Ok(Block {
                    kernel: tensors.table(&name(names::CNX_DW_W), taps, width)?,
                    kernel_bias: tensors.vector(&name(names::CNX_DW_B), width)?,
                    norm: tensors.norm(&name(names::CNX_NORM_W), &name(names::CNX_NORM_B), width)?.with_eps(params.eps),
                    mlp: Mlp {
                        up: tensors.linear(&name(names::CNX_FC1_W), &name(names::CNX_FC1_B), 4 * width, width)?,
                        act: Activation::Gelu,
                        down: tensors.linear(&name(names::CNX_FC2_W), &name(names::CNX_FC2_B), width, 4 * width)?,
                    },
                    gamma: tensors.vector(&name(names::CNX_GAMMA), width)?,
                })
            };
            let (blocks, window) = tensors.blocks(depth, block)?;
            // A stage that runs view by view goes through its few weights once for each: they stay.
            let window = window.filter(|_| params.side(i).pow(2) <= BATCHED_POSITIONS);
            stages.push(Stage { down, blocks, window });
        }
        Ok(ConvNext {
            params: params.clone(),
            stem: tensors.linear(names::CNX_STEM_W, names::CNX_STEM_B, first, patch)?,
            stem_norm: tensors.norm(names::CNX_STEM_NORM_W, names::CNX_STEM_NORM_B, first)?,
            stages,
            head_norm: tensors.norm(names::CNX_HEAD_NORM_W, names::CNX_HEAD_NORM_B, params.width())?,
        })
    }

    /// Side of the last map.
    pub(super) fn last_side(&self) -> usize {
        self.params.last_side()
    }

    /// The last map of each view after the head's norm, `[views · side², width]`, positions in raster order.
    pub(super) fn forward(&self, t: &T, views: &[Map]) -> Result<T::Buffer> {
        let positions = |stage: usize| self.params.side(stage).pow(2);
        let alone = (0..self.stages.len()).take_while(|&i| positions(i) > BATCHED_POSITIONS && views.len() > 1).count();
        let mut x = match alone {
            0 => self.stem(t, views)?,
            _ => {
                let (rows, width) = (positions(alone - 1), self.params.widths[alone - 1]);
                let mut joined = t.buffer(views.len() * rows, width)?;
                for (k, view) in views.iter().enumerate() {
                    let mut x = self.stem(t, std::slice::from_ref(view))?;
                    for stage in 0..alone {
                        x = self.stage(t, stage, x, 1)?;
                    }
                    t.copy(&x, 0, rows, &mut joined, k * rows, 0)?;
                }
                joined
            }
        };
        for stage in alone..self.stages.len() {
            x = self.stage(t, stage, x, views.len())?;
        }
        let mut out = t.buffer(t.rows(&x), self.params.width())?;
        self.head_norm.apply(t, &x, self.params.eps, &mut out)?;
        Ok(out)
    }

    /// 4×4 patches through the stem and its norm: `[views · side², width]`.
    fn stem(&self, t: &T, views: &[Map]) -> Result<T::Buffer> {
        let (rows, width) = (self.params.side(0).pow(2), self.params.widths[0]);
        let mut embedded = t.buffer(views.len() * rows, width)?;
        {
            let mut patches = t.buffer(views.len() * rows, 3 * ConvNextParams::PATCH * ConvNextParams::PATCH)?;
            for (k, view) in views.iter().enumerate() {
                t.write(&patchify(view, ConvNextParams::PATCH), &mut patches, k * rows)?;
            }
            t.linear(&patches, &self.stem, After::Nothing, &mut embedded)?;
        }
        let mut x = t.buffer(views.len() * rows, width)?;
        self.stem_norm.apply(t, &embedded, self.params.eps, &mut x)?;
        Ok(x)
    }

    /// Stage `index` from the map before it, of `batch` views.
    fn stage(&self, t: &T, index: usize, x: T::Buffer, batch: usize) -> Result<T::Buffer> {
        let stage = &self.stages[index];
        let (side, width) = (self.params.side(index), self.params.widths[index]);
        let mut x = match &stage.down {
            Some(down) => self.halve(t, down, x, batch, self.params.side(index - 1), width)?,
            None => x,
        };
        let map = MapShape { batch, height: side, width: side };
        let mut mixed = t.buffer(map.positions(), width)?;
        for (i, block) in stage.blocks.iter().enumerate() {
            let _turn = stage.window.as_ref().map(|w| w.turn(i));
            t.conv_depthwise(&x, map, &block.kernel, &block.kernel_bias, &mut mixed)?;
            t.normed_mlp(&mixed, &block.norm, &block.mlp, After::ScaleAdd(&block.gamma), &mut x)?;
        }
        Ok(x)
    }

    /// Norm, then a 2×2 convolution of stride 2, over maps of `side`. Each buffer goes as soon as it has been read.
    fn halve(
        &self,
        t: &T,
        (norm, conv): &(Norm<T>, Linear<T>),
        x: T::Buffer,
        batch: usize,
        side: usize,
        width: usize,
    ) -> Result<T::Buffer> {
        let map = MapShape { batch, height: side, width: side };
        let mut normed = t.buffer(map.positions(), t.width(&x))?;
        norm.apply(t, &x, self.params.eps, &mut normed)?;
        drop(x);
        let mut folded = t.buffer(map.positions() / 4, 4 * t.width(&normed))?;
        t.fold_2x2(&normed, map, &mut folded)?;
        drop(normed);
        let mut out = t.buffer(map.positions() / 4, width)?;
        t.linear(&folded, conv, After::Nothing, &mut out)?;
        Ok(out)
    }
}
