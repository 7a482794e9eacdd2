//! The Q-Former of BLIP-2: learned queries that look at an EVA tower's rows.
//!
//! A BERT: a norm follows each sum, where the vision transformers norm what goes into a branch. The queries attend to each
//! other in every layer, and to the picture in every second one.

use sphinx_quant::gguf::names;
use sphinx_targets::{Activation, After, AttendShape, Columns, Linear, Mlp, Target};

use super::eva;
use super::params::QFormerParams;
use super::tensors::{Norm, Tensors};
use super::views::Map;
use super::vit::Vit;
use crate::Result;

/// The tower's and the queries' weights.
pub(super) struct QFormer<T: Target> {
    params: QFormerParams,
    eva: Vit<T>,
    /// `[queries, width]`.
    queries: Vec<f32>,
    embd_norm: Norm<T>,
    layers: Vec<Layer<T>>,
}

struct Layer<T: Target> {
    own: Attention<T>,
    /// Attention to the picture.
    cross: Option<Attention<T>>,
    mlp: Mlp<T>,
    norm: Norm<T>,
}

struct Attention<T: Target> {
    q: Linear<T>,
    k: Linear<T>,
    v: Linear<T>,
    proj: Linear<T>,
    norm: Norm<T>,
}

/// The queries and what they are computed with.
struct Scratch<T: Target> {
    /// Rows in and out of a branch, `[views · queries, width]`.
    x: T::Buffer,
    /// `x` and what a branch adds to it.
    sum: T::Buffer,
    q: T::Buffer,
    mixed: T::Buffer,
}

impl<T: Target> QFormer<T> {
    /// Queries over a tower of `across` × `across` patches.
    pub(super) fn load(tensors: &Tensors<T>, params: &QFormerParams, across: usize) -> Result<QFormer<T>> {
        let &QFormerParams { width, hidden, queries, .. } = params;
        let layer = |i: usize| -> Result<Layer<T>> {
            let name = |template: &str| names::at(template, i, 0);
            let linear = |weight: &str, bias: &str, out: usize, inputs: usize| tensors.linear(&name(weight), &name(bias), out, inputs);
            let norm = |weight: &str, bias: &str| tensors.norm(&name(weight), &name(bias), width);
            let cross = || -> Result<Attention<T>> {
                let seen = params.eva.width;
                Ok(Attention {
                    q: linear(names::QF_CROSS_Q_W, names::QF_CROSS_Q_B, width, width)?,
                    k: linear(names::QF_CROSS_K_W, names::QF_CROSS_K_B, width, seen)?,
                    v: linear(names::QF_CROSS_V_W, names::QF_CROSS_V_B, width, seen)?,
                    proj: linear(names::QF_CROSS_PROJ_W, names::QF_CROSS_PROJ_B, width, width)?,
                    norm: norm(names::QF_CROSS_NORM_W, names::QF_CROSS_NORM_B)?,
                })
            };
            Ok(Layer {
                own: Attention {
                    q: linear(names::QF_Q_W, names::QF_Q_B, width, width)?,
                    k: linear(names::QF_K_W, names::QF_K_B, width, width)?,
                    v: linear(names::QF_V_W, names::QF_V_B, width, width)?,
                    proj: linear(names::QF_PROJ_W, names::QF_PROJ_B, width, width)?,
                    norm: norm(names::QF_NORM_W, names::QF_NORM_B)?,
                },
                cross: params.crosses(i).then(cross).transpose()?,
                mlp: Mlp {
                    up: linear(names::QF_FC1_W, names::QF_FC1_B, hidden, width)?,
                    act: Activation::Gelu,
                    down: linear(names::QF_FC2_W, names::QF_FC2_B, width, hidden)?,
                },
                norm: norm(names::QF_FFN_NORM_W, names::QF_FFN_NORM_B)?,
            })
        };
        Ok(QFormer {
            params: params.clone(),
            eva: Vit::load(tensors, &eva::NAMES, &params.eva, across)?,
            queries: tensors.values(names::QF_QUERY, queries, width)?,
            embd_norm: tensors.norm(names::QF_EMBD_NORM_W, names::QF_EMBD_NORM_B, width)?,
            layers: (0..params.blocks).map(layer).collect::<Result<_>>()?,
        })
    }

    /// Rows that a view has of this, and their width.
    pub(super) fn shape_of_view(&self) -> (usize, usize) {
        (self.params.queries, self.params.width)
    }

    /// What the queries found in each view, `[views · queries, width]`.
    pub(super) fn forward(&self, t: &T, views: &[Map]) -> Result<T::Buffer> {
        let QFormerParams { width, queries, eps, .. } = self.params;
        let (batch, tokens) = (views.len(), self.eva.tokens());
        let rows = batch * queries;
        let seen = self.eva.forward(t, views)?;
        let mut keys = [t.buffer(batch * tokens, width)?, t.buffer(batch * tokens, width)?];
        let mut own = [t.buffer(rows, width)?, t.buffer(rows, width)?];
        let mut s =
            Scratch { x: t.buffer(rows, width)?, sum: t.buffer(rows, width)?, q: t.buffer(rows, width)?, mixed: t.buffer(rows, width)? };

        for k in 0..batch {
            t.write(&self.queries, &mut s.sum, k * queries)?;
        }
        self.embd_norm.apply(t, &s.sum, eps, &mut s.x)?;
        for layer in &self.layers {
            t.linear(&s.x, &layer.own.k, After::Nothing, &mut own[0])?;
            t.linear(&s.x, &layer.own.v, After::Nothing, &mut own[1])?;
            self.attend(t, &layer.own, &own, self.shape(batch, queries), &mut s)?;
            if let Some(cross) = &layer.cross {
                t.linear(&seen, &cross.k, After::Nothing, &mut keys[0])?;
                t.linear(&seen, &cross.v, After::Nothing, &mut keys[1])?;
                self.attend(t, cross, &keys, self.shape(batch, tokens), &mut s)?;
            }
            t.copy(&s.x, 0, rows, &mut s.sum, 0, 0)?;
            t.mlp(&s.x, &layer.mlp, After::Add, &mut s.sum)?;
            layer.norm.apply(t, &s.sum, eps, &mut s.x)?;
        }
        Ok(s.x)
    }

    fn shape(&self, batch: usize, kv_tokens: usize) -> AttendShape {
        let QFormerParams { width, heads, queries, .. } = self.params;
        AttendShape { batch, q_tokens: queries, kv_tokens, heads, head_dim: width / heads }
    }

    /// `x = norm(x + proj(attention(q(x), k, v)))`.
    fn attend(&self, t: &T, a: &Attention<T>, [k, v]: &[T::Buffer; 2], shape: AttendShape, s: &mut Scratch<T>) -> Result<()> {
        let all = |buffer| Columns { buffer, first: 0 };
        t.linear(&s.x, &a.q, After::Nothing, &mut s.q)?;
        t.attend(all(&s.q), all(k), all(v), shape, &mut s.mixed)?;
        t.copy(&s.x, 0, t.rows(&s.x), &mut s.sum, 0, 0)?;
        t.linear(&s.mixed, &a.proj, After::Add, &mut s.sum)?;
        a.norm.apply(t, &s.sum, self.params.eps, &mut s.x)
    }
}
