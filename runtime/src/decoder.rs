//! The language model: embeddings, decoder layers, logits.

use std::sync::Arc;

use sphinx_quant::gguf::{Gguf, names};
use sphinx_targets::{After, KvShape, KvType, Linear, Rope, Target};

use crate::Result;
use crate::experts::{Provider, Streaming};
use crate::plan::layer_places;
use crate::source::LanguageParams;
use crate::source::window::{Window, whole_pages};

mod layer;
pub mod moe;

use layer::Layer;
use moe::MixtureScratch;

/// Rows of logits that are computed at once.
pub(crate) const LOGIT_ROWS: usize = 16;

/// A decoder of the LLaMA kind, dense or a mixture of experts, over mapped weights.
pub struct Decoder<T: Target> {
    embed: T::Matrix,
    layers: Vec<Layer<T>>,
    /// Which layers' weights are read for every run, if not all stay in memory.
    window: Option<Window>,
    /// What [`layer::Ffn::Mixture`] visits; no layers in a dense model.
    experts: Provider<T>,
    norm: T::Vector,
    output: Linear<T>,
    params: LanguageParams,
}

/// Buffers of one session, named by what they hold. Nothing else is allocated while it runs.
pub struct Scratch<T: Target> {
    /// The sequence's rows on their way through the layers `[chunk, dim]`.
    pub x: T::Buffer,
    /// Rows after a norm `[chunk, dim]`.
    normed: T::Buffer,
    /// Queries, keys and values `[chunk, (heads + 2·kv heads) · head_dim]`.
    qkv: T::Buffer,
    /// What attention gathered `[chunk, heads · head_dim]`.
    mixed: T::Buffer,
    /// What a mixture needs besides.
    mixture: Option<MixtureScratch<T>>,
    /// Rows whose logits are wanted `[16, dim]`.
    picked: T::Buffer,
    /// Their logits `[16, vocabulary]`.
    logits: T::Buffer,
}

impl<T: Target> Scratch<T> {
    /// Bytes of the buffers, which hold `chunk` rows.
    pub(crate) fn bytes(&self, t: &T, chunk: usize) -> usize {
        let rows = [&self.x, &self.normed, &self.qkv, &self.mixed].map(|b| chunk * t.width(b));
        let picked = [&self.picked, &self.logits].map(|b| chunk.min(LOGIT_ROWS) * t.width(b));
        let mixture = self.mixture.as_ref().map_or(0, |m| m.numbers(t, chunk));
        4 * (rows.iter().sum::<usize>() + picked.iter().sum::<usize>() + mixture)
    }
}

impl<T: Target> Decoder<T> {
    /// The decoder in `file`, which `params` were read from. A mixture's experts are streamed where `streaming` says how, and what
    /// is asked of them is written down where `trace` is set.
    ///
    /// # Errors
    /// When a tensor is missing or of a type the target does not compute with.
    pub fn load(t: &T, file: &Gguf, params: &LanguageParams, streaming: Option<Streaming>, trace: bool) -> Result<Decoder<T>> {
        let rope = Arc::new(Rope::new(params.head_dim, params.rope_base, params.rope_scale));
        let layers = (0..params.layers).map(|i| Layer::load(t, file, params, &rope, i)).collect::<Result<Vec<_>>>()?;
        let output = if params.tied_output { names::TOKEN_EMBD } else { names::OUTPUT };
        Ok(Decoder {
            embed: t.matrix(&[file.tensor(names::TOKEN_EMBD)?.clone()])?,
            layers,
            window: None,
            experts: Provider::load(t, file, params, streaming, trace)?,
            norm: t.vector(file.tensor(names::OUTPUT_NORM)?)?,
            output: Linear { weight: t.matrix(&[file.tensor(output)?.clone()])?, bias: None },
            params: params.clone(),
        })
    }

    /// From now on only the first `resident` layers stay in memory.
    pub(crate) fn stream_layers(&mut self, file: &Gguf, resident: usize) {
        let mut places: Vec<_> = layer_places(file, self.params.layers).into_iter().map(whole_pages).collect();
        places.iter_mut().take(resident).for_each(Vec::clear);
        self.window = file.tensors().first().map(|t| Window::new(t.backing().0, places, true));
    }

    /// Sizes and constants.
    pub fn params(&self) -> &LanguageParams {
        &self.params
    }

    /// A mixture's experts.
    pub fn experts(&self) -> &Provider<T> {
        &self.experts
    }

    /// Buffers for runs of at most `chunk` rows.
    ///
    /// # Errors
    /// When memory does not suffice.
    pub fn scratch(&self, t: &T, chunk: usize) -> Result<Scratch<T>> {
        let p = &self.params;
        let picked = chunk.min(LOGIT_ROWS);
        Ok(Scratch {
            x: t.buffer(chunk, p.dim)?,
            normed: t.buffer(chunk, p.dim)?,
            qkv: t.buffer(chunk, p.qkv_width())?,
            mixed: t.buffer(chunk, p.heads * p.head_dim)?,
            mixture: p.is_mixture().then(|| MixtureScratch::new(t, p, chunk)).transpose()?,
            picked: t.buffer(picked, p.dim)?,
            logits: t.buffer(picked, p.vocabulary)?,
        })
    }

    /// Empty caches of `capacity` positions, one per layer.
    ///
    /// # Errors
    /// When memory does not suffice.
    pub fn caches(&self, t: &T, capacity: usize, ty: KvType) -> Result<Vec<T::Kv>> {
        let p = &self.params;
        let shape = KvShape { capacity, heads: p.heads, kv_heads: p.kv_heads, head_dim: p.head_dim, ty };
        Ok(self.layers.iter().map(|_| t.kv(shape)).collect::<Result<_, _>>()?)
    }

    /// Writes the embeddings of `ids` to `s.x` from row `first` on.
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn embed(&self, t: &T, ids: &[u32], s: &mut Scratch<T>, first: usize) -> Result<()> {
        Ok(t.embed(&self.embed, ids, &mut s.x, first)?)
    }

    /// Takes the rows of `s.x`, which stand at positions `pos` and on, through all layers, in place.
    ///
    /// # Errors
    /// When the target fails.
    pub fn forward(&self, t: &T, s: &mut Scratch<T>, caches: &mut [T::Kv], pos: usize) -> Result<()> {
        for (i, (l, kv)) in self.layers.iter().zip(caches).enumerate() {
            let _turn = self.window.as_ref().map(|w| w.turn(i));
            layer::layer(t, l, self.layers.get(i + 1), &self.experts, s, kv, pos)?;
        }
        Ok(())
    }

    /// Logits of the `rows` (at most 16) rows of `s.x` from `first` on, into `out` `[rows, vocabulary]`.
    ///
    /// # Errors
    /// When the target fails.
    pub fn logits(&self, t: &T, s: &mut Scratch<T>, first: usize, rows: usize, out: &mut [f32]) -> Result<()> {
        t.set_rows(&mut s.picked, rows)?;
        t.copy(&s.x, first, rows, &mut s.picked, 0, 0)?;
        t.rms_norm(&s.picked, &self.norm, self.params.eps, &mut s.normed)?;
        t.linear(&s.normed, &self.output, After::Nothing, &mut s.logits)?;
        Ok(t.read(&s.logits, 0, out)?)
    }
}
