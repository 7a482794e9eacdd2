//! A vision transformer of pre-norm blocks, whose every token is kept.
//!
//! CLIP, EVA and DINOv2 are this with other names, another activation, a norm in front of the first block or scales behind
//! attention and MLP.

use sphinx_quant::gguf::names;
use sphinx_targets::{After, AttendShape, Columns, Linear, Mlp, Target};

use super::params::{VitParams, mlp_rows};
use super::tensors::{Norm, Tensors};
use super::views::{Map, patchify};
use crate::Result;
use crate::source::window::Window;

/// Names of a layer's weight and bias.
type Pair = (&'static str, &'static str);

/// What a tower's tensors are called; those of block `i` are templates.
pub(super) struct Names {
    pub(super) patch: &'static str,
    pub(super) patch_bias: Option<&'static str>,
    pub(super) class: &'static str,
    pub(super) positions: &'static str,
    /// Norm in front of the first block.
    pub(super) pre_norm: Option<Pair>,
    pub(super) norm1: Pair,
    pub(super) qkv: Pair,
    pub(super) proj: Pair,
    pub(super) norm2: Pair,
    pub(super) up: Pair,
    pub(super) down: Pair,
    /// Scales per channel of what attention and MLP add.
    pub(super) scales: Option<[&'static str; 2]>,
    pub(super) norm: Pair,
}

/// A tower's weights.
pub(super) struct Vit<T: Target> {
    params: VitParams,
    patch: Linear<T>,
    class: Vec<f32>,
    positions: T::Vector,
    pre_norm: Option<Norm<T>>,
    blocks: Vec<Block<T>>,
    window: Option<Window>,
    norm: Norm<T>,
    /// Patches of a view.
    patches: usize,
}

struct Block<T: Target> {
    norm1: Norm<T>,
    qkv: Linear<T>,
    proj: Linear<T>,
    scale1: Option<T::Vector>,
    norm2: Norm<T>,
    mlp: Mlp<T>,
    scale2: Option<T::Vector>,
}

impl<T: Target> Vit<T> {
    /// The tower `n` for views of `across` × `across` patches.
    pub(super) fn load(tensors: &Tensors<T>, n: &Names, params: &VitParams, across: usize) -> Result<Vit<T>> {
        let &VitParams { width, hidden, patch, activation, .. } = params;
        let patches = across * across;
        let block = |i: usize| -> Result<Block<T>> {
            let name = |template: &str| names::at(template, i, 0);
            let norm = |(weight, bias): Pair| tensors.norm(&name(weight), &name(bias), width);
            let linear = |(weight, bias): Pair, out: usize, inputs: usize| tensors.linear(&name(weight), &name(bias), out, inputs);
            let scale = |which: usize| n.scales.map(|scales| tensors.vector(&name(scales[which]), width)).transpose();
            Ok(Block {
                norm1: norm(n.norm1)?,
                qkv: linear(n.qkv, 3 * width, width)?,
                proj: linear(n.proj, width, width)?,
                scale1: scale(0)?,
                norm2: norm(n.norm2)?,
                mlp: Mlp { up: linear(n.up, mlp_rows(activation, hidden), width)?, act: activation, down: linear(n.down, width, hidden)? },
                scale2: scale(1)?,
            })
        };
        let pixels = 3 * patch * patch;
        let (blocks, window) = tensors.blocks(params.blocks, block)?;
        Ok(Vit {
            params: params.clone(),
            patch: match n.patch_bias {
                Some(bias) => tensors.linear(n.patch, bias, width, pixels)?,
                None => tensors.linear_without_bias(n.patch, width, pixels)?,
            },
            class: tensors.values(n.class, 1, width)?,
            positions: tensors.table(n.positions, 1 + patches, width)?,
            pre_norm: n.pre_norm.map(|(weight, bias)| tensors.norm(weight, bias, width)).transpose()?,
            blocks,
            window,
            norm: tensors.norm(n.norm.0, n.norm.1, width)?,
            patches,
        })
    }

    /// Rows of a view: the class token, then one per patch.
    pub(super) fn tokens(&self) -> usize {
        1 + self.patches
    }

    /// Tokens of each view after the last norm, `[views · tokens, width]`.
    ///
    /// `views` are normalised as the tower wants them.
    pub(super) fn forward(&self, t: &T, views: &[Map]) -> Result<T::Buffer> {
        let VitParams { width, heads, eps, .. } = self.params;
        let tokens = self.tokens();
        let rows = views.len() * tokens;
        let mut x = self.embed(t, views)?;
        let mut normed = t.buffer(rows, width)?;
        let mut qkv = t.buffer(rows, 3 * width)?;
        let mut mixed = t.buffer(rows, width)?;
        let shape = AttendShape { batch: views.len(), q_tokens: tokens, kv_tokens: tokens, heads, head_dim: width / heads };
        for (i, block) in self.blocks.iter().enumerate() {
            let _turn = self.window.as_ref().map(|w| w.turn(i));
            block.norm1.apply(t, &x, eps, &mut normed)?;
            t.linear(&normed, &block.qkv, After::Nothing, &mut qkv)?;
            let part = |i: usize| Columns { buffer: &qkv, first: i * width };
            t.attend(part(0), part(1), part(2), shape, &mut mixed)?;
            t.linear(&mixed, &block.proj, added(&block.scale1), &mut x)?;
            block.norm2.apply(t, &x, eps, &mut normed)?;
            t.mlp(&normed, &block.mlp, added(&block.scale2), &mut x)?;
        }
        self.norm.apply(t, &x, eps, &mut normed)?;
        Ok(normed)
    }

    /// Patches embedded, class tokens in front, positions added.
    fn embed(&self, t: &T, views: &[Map]) -> Result<T::Buffer> {
        let VitParams { width, patch, eps, .. } = self.params;
        let mut pixels = t.buffer(views.len() * self.patches, 3 * patch * patch)?;
        for (k, view) in views.iter().enumerate() {
            t.write(&patchify(view, patch), &mut pixels, k * self.patches)?;
        }
        let mut embedded = t.buffer(views.len() * self.patches, width)?;
        t.linear(&pixels, &self.patch, After::Nothing, &mut embedded)?;
        let tokens = self.tokens();
        let mut x = t.buffer(views.len() * tokens, width)?;
        for k in 0..views.len() {
            t.write(&self.class, &mut x, k * tokens)?;
            t.copy(&embedded, k * self.patches, self.patches, &mut x, k * tokens + 1, 0)?;
        }
        t.add_table(&mut x, &self.positions)?;
        let Some(norm) = &self.pre_norm else { return Ok(x) };
        let mut normed = t.buffer(views.len() * tokens, width)?;
        norm.apply(t, &x, eps, &mut normed)?;
        Ok(normed)
    }
}

/// What a branch does with the residual stream: adds to it, scaled where there are scales.
fn added<V>(scale: &Option<V>) -> After<'_, V> {
    scale.as_ref().map_or(After::Add, After::ScaleAdd)
}
