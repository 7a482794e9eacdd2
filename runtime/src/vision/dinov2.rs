//! DINOv2: a vision transformer whose every token is kept.

use sphinx_quant::gguf::names;
use sphinx_targets::{Activation, After, AttendShape, Columns, Linear, Mlp, Target};

use super::params::{DinoParams, Norm, Tensors};
use super::views::{Map, patchify};
use crate::Result;

/// The encoder's weights.
pub(super) struct DinoV2<T: Target> {
    params: DinoParams,
    patch: Linear<T>,
    class: Vec<f32>,
    positions: T::Vector,
    blocks: Vec<Block<T>>,
    norm: Norm<T>,
    /// Patches of a view.
    patches: usize,
}

struct Block<T: Target> {
    norm1: Norm<T>,
    qkv: Linear<T>,
    proj: Linear<T>,
    scale1: T::Vector,
    norm2: Norm<T>,
    mlp: Mlp<T>,
    scale2: T::Vector,
}

impl<T: Target> DinoV2<T> {
    /// The encoder for views of `across` × `across` patches.
    pub(super) fn load(tensors: &Tensors<T>, params: &DinoParams, across: usize) -> Result<DinoV2<T>> {
        let (width, hidden) = (params.width, params.hidden);
        let patches = across * across;
        let block = |i: usize| -> Result<Block<T>> {
            let name = |template: &str| names::at(template, i, 0);
            let (up, up_bias, up_rows, down, down_bias) = match params.activation {
                Activation::SiluGate => (names::DINO_W12_W, names::DINO_W12_B, 2 * hidden, names::DINO_W3_W, names::DINO_W3_B),
                _ => (names::DINO_FC1_W, names::DINO_FC1_B, hidden, names::DINO_FC2_W, names::DINO_FC2_B),
            };
            Ok(Block {
                norm1: tensors.norm(&name(names::DINO_NORM1_W), &name(names::DINO_NORM1_B), width)?,
                qkv: tensors.linear(&name(names::DINO_QKV_W), &name(names::DINO_QKV_B), 3 * width, width)?,
                proj: tensors.linear(&name(names::DINO_PROJ_W), &name(names::DINO_PROJ_B), width, width)?,
                scale1: tensors.vector(&name(names::DINO_LS1), width)?,
                norm2: tensors.norm(&name(names::DINO_NORM2_W), &name(names::DINO_NORM2_B), width)?,
                mlp: Mlp {
                    up: tensors.linear(&name(up), &name(up_bias), up_rows, width)?,
                    act: params.activation,
                    down: tensors.linear(&name(down), &name(down_bias), width, hidden)?,
                },
                scale2: tensors.vector(&name(names::DINO_LS2), width)?,
            })
        };
        Ok(DinoV2 {
            params: params.clone(),
            patch: tensors.linear(names::DINO_PATCH_W, names::DINO_PATCH_B, width, 3 * params.patch * params.patch)?,
            class: tensors.values(names::DINO_CLS, width)?,
            positions: tensors.table(names::DINO_POS, 1 + patches, width)?,
            blocks: (0..params.blocks).map(block).collect::<Result<_>>()?,
            norm: tensors.norm(names::DINO_NORM_W, names::DINO_NORM_B, width)?,
            patches,
        })
    }

    /// Tokens of each view after the last norm, `[views · (1 + patches), width]`, the class token first.
    ///
    /// `views` are normalised as DINOv2 wants them.
    pub(super) fn forward(&self, t: &T, views: &[Map]) -> Result<T::Buffer> {
        let DinoParams { width, heads, eps, .. } = self.params;
        let tokens = 1 + self.patches;
        let rows = views.len() * tokens;
        let mut x = self.embed(t, views)?;
        let mut normed = t.buffer(rows, width)?;
        let mut qkv = t.buffer(rows, 3 * width)?;
        let mut mixed = t.buffer(rows, width)?;
        let shape = AttendShape { batch: views.len(), q_tokens: tokens, kv_tokens: tokens, heads, head_dim: width / heads };
        for block in &self.blocks {
            block.norm1.apply(t, &x, eps, &mut normed)?;
            t.linear(&normed, &block.qkv, After::Nothing, &mut qkv)?;
            let part = |i: usize| Columns { buffer: &qkv, first: i * width };
            t.attend(part(0), part(1), part(2), shape, &mut mixed)?;
            t.linear(&mixed, &block.proj, After::ScaleAdd(&block.scale1), &mut x)?;
            block.norm2.apply(t, &x, eps, &mut normed)?;
            t.mlp(&normed, &block.mlp, After::ScaleAdd(&block.scale2), &mut x)?;
        }
        self.norm.apply(t, &x, eps, &mut normed)?;
        Ok(normed)
    }

    /// Patches embedded, class tokens in front, positions added.
    fn embed(&self, t: &T, views: &[Map]) -> Result<T::Buffer> {
        let DinoParams { width, patch, .. } = self.params;
        let mut pixels = t.buffer(views.len() * self.patches, 3 * patch * patch)?;
        for (k, view) in views.iter().enumerate() {
            t.write(&patchify(view, patch), &mut pixels, k * self.patches)?;
        }
        let mut embedded = t.buffer(views.len() * self.patches, width)?;
        t.linear(&pixels, &self.patch, After::Nothing, &mut embedded)?;
        let tokens = 1 + self.patches;
        let mut x = t.buffer(views.len() * tokens, width)?;
        for k in 0..views.len() {
            t.write(&self.class, &mut x, k * tokens)?;
            t.copy(&embedded, k * self.patches, self.patches, &mut x, k * tokens + 1, 0)?;
        }
        t.add_table(&mut x, &self.positions)?;
        Ok(x)
    }
}
