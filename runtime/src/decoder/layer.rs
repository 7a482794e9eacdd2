//! One decoder layer.

use std::sync::Arc;

use sphinx_quant::gguf::{Gguf, names};
use sphinx_targets::{Activation, After, Linear, Mlp, Rope, Target};

use super::Scratch;
use crate::Result;
use crate::source::LanguageParams;

/// Parameters of a decoder layer.
pub struct Layer<T: Target> {
    attn_norm: T::Vector,
    /// Query, key and value, stacked.
    qkv: Linear<T>,
    rope: Arc<Rope>,
    attn_output: Linear<T>,
    ffn_norm: T::Vector,
    ffn: Mlp<T>,
    eps: f32,
}

impl<T: Target> Layer<T> {
    /// Layer `i` of `file`.
    pub fn load(t: &T, file: &Gguf, params: &LanguageParams, rope: &Arc<Rope>, i: usize) -> Result<Layer<T>> {
        let tensor = |name| file.tensor(&names::at(name, i, 0)).cloned();
        let linear = |parts: &[_]| t.matrix(parts).map(|weight| Linear { weight, bias: None });
        Ok(Layer {
            attn_norm: t.vector(&tensor(names::ATTN_NORM)?)?,
            qkv: linear(&[tensor(names::ATTN_Q)?, tensor(names::ATTN_K)?, tensor(names::ATTN_V)?])?,
            rope: rope.clone(),
            attn_output: linear(&[tensor(names::ATTN_OUTPUT)?])?,
            ffn_norm: t.vector(&tensor(names::FFN_NORM)?)?,
            ffn: Mlp {
                up: linear(&[tensor(names::FFN_GATE)?, tensor(names::FFN_UP)?])?,
                act: Activation::SiluGate,
                down: linear(&[tensor(names::FFN_DOWN)?])?,
            },
            eps: params.eps,
        })
    }
}

/// One decoder layer, in place on `s.x` `[rows, dim]`, whose first row stands at position `pos`.
pub fn layer<T: Target>(t: &T, l: &Layer<T>, s: &mut Scratch<T>, kv: &mut T::Kv, pos: usize) -> Result<()> {
    t.rms_norm(&s.x, &l.attn_norm, l.eps, &mut s.normed)?;
    t.linear(&s.normed, &l.qkv, After::Nothing, &mut s.qkv)?;
    t.rope_append(&mut s.qkv, &l.rope, kv, pos)?; // rotates q and k, stores k and v
    t.attend_cached(&s.qkv, kv, pos, &mut s.mixed)?;
    t.linear(&s.mixed, &l.attn_output, After::Add, &mut s.x)?; // x += …
    t.rms_norm(&s.x, &l.ffn_norm, l.eps, &mut s.normed)?;
    t.mlp(&s.normed, &l.ffn, After::Add, &mut s.x)?; // x += …
    Ok(())
}
