//! One decoder layer.

use std::sync::Arc;

use sphinx_quant::gguf::{Gguf, names};
use sphinx_targets::{Activation, After, Linear, Mlp, Rope, Target, TargetError};

use super::Scratch;
use super::moe::{Mixture, MixtureScratch, Next};
use crate::Result;
use crate::experts::Experts;
use crate::source::LanguageParams;

/// Parameters of a decoder layer.
pub struct Layer<T: Target> {
    attn_norm: T::Vector,
    /// Query, key and value, stacked.
    qkv: Linear<T>,
    rope: Arc<Rope>,
    attn_output: Linear<T>,
    ffn_norm: T::Vector,
    ffn: Ffn<T>,
    eps: f32,
}

/// The feed-forward part of a layer.
pub enum Ffn<T: Target> {
    /// One for all rows.
    Dense(Mlp<T>),
    /// A few of many, chosen row by row.
    Mixture(Mixture<T>),
}

impl<T: Target> Ffn<T> {
    /// Adds what it makes of `normed` to `x`.
    fn forward(
        &self,
        t: &T,
        experts: &dyn Experts<T>,
        normed: &T::Buffer,
        next: Option<Next<'_, T>>,
        mixture: Option<&mut MixtureScratch<T>>,
        x: &mut T::Buffer,
    ) -> Result<()> {
        match (self, mixture) {
            (Ffn::Dense(mlp), _) => Ok(t.mlp(normed, mlp, After::Add, x)?),
            (Ffn::Mixture(m), Some(s)) => m.forward(t, experts, normed, next, s, x),
            (Ffn::Mixture(_), None) => Err(TargetError::Shape { op: "mixture", what: "scratch of a dense model".into() }.into()),
        }
    }
}

impl<T: Target> Layer<T> {
    /// Layer `i` of `file`.
    pub fn load(t: &T, file: &Gguf, params: &LanguageParams, rope: &Arc<Rope>, i: usize) -> Result<Layer<T>> {
        let tensor = |name| file.tensor(&names::at(name, i, 0)).cloned();
        // Whatever a mixture's routers see comes through fine matrices: the error of 8-bit activations would now and then
        // choose other experts. A dense layer has nothing to choose.
        let mixture = params.is_mixture();
        let linear = |parts: &[_]| {
            let weight = if mixture { t.matrix_fine(parts) } else { t.matrix(parts) };
            weight.map(|weight| Linear { weight, bias: None })
        };
        let ffn = if mixture {
            Ffn::Mixture(Mixture { router: linear(&[tensor(names::FFN_GATE_INP)?])?, layer: i })
        } else {
            Ffn::Dense(Mlp {
                up: linear(&[tensor(names::FFN_GATE)?, tensor(names::FFN_UP)?])?,
                act: Activation::SiluGate,
                down: linear(&[tensor(names::FFN_DOWN)?])?,
            })
        };
        Ok(Layer {
            attn_norm: t.vector(&tensor(names::ATTN_NORM)?)?,
            qkv: linear(&[tensor(names::ATTN_Q)?, tensor(names::ATTN_K)?, tensor(names::ATTN_V)?])?,
            rope: rope.clone(),
            attn_output: linear(&[tensor(names::ATTN_OUTPUT)?])?,
            ffn_norm: t.vector(&tensor(names::FFN_NORM)?)?,
            ffn,
            eps: params.eps,
        })
    }

    /// Its mixture, if it has one.
    fn mixture(&self) -> Option<Next<'_, T>> {
        match &self.ffn {
            Ffn::Dense(_) => None,
            Ffn::Mixture(mixture) => Some(Next { norm: &self.ffn_norm, eps: self.eps, mixture }),
        }
    }
}

/// One decoder layer, in place on `s.x` `[rows, dim]`, whose first row stands at position `pos`; `next` is the one after it.
pub fn layer<T: Target>(
    t: &T,
    l: &Layer<T>,
    next: Option<&Layer<T>>,
    experts: &dyn Experts<T>,
    s: &mut Scratch<T>,
    kv: &mut T::Kv,
    pos: usize,
) -> Result<()> {
    t.rms_norm(&s.x, &l.attn_norm, l.eps, &mut s.normed)?;
    t.linear(&s.normed, &l.qkv, After::Nothing, &mut s.qkv)?;
    t.rope_append(&mut s.qkv, &l.rope, kv, pos)?; // rotates q and k, stores k and v
    t.attend_cached(&s.qkv, kv, pos, &mut s.mixed)?;
    t.linear(&s.mixed, &l.attn_output, After::Add, &mut s.x)?; // x += …
    t.rms_norm(&s.x, &l.ffn_norm, l.eps, &mut s.normed)?;
    let next = next.and_then(Layer::mixture);
    l.ffn.forward(t, experts, &s.normed, next, s.mixture.as_mut(), &mut s.x) // x += …
}
