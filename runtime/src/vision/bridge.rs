//! From encoders' features to rows of the decoder's width.

use sphinx_quant::gguf::names;
use sphinx_targets::{After, Linear, Target};

use super::params::{Norm, Tensors, VisionParams};
use crate::Result;

/// The projection and the learned rows around every view.
pub(super) struct Bridge<T: Target> {
    linear: Linear<T>,
    norm: Norm<T>,
    eps: f32,
    start: Vec<f32>,
    end: Vec<f32>,
}

impl<T: Target> Bridge<T> {
    pub(super) fn load(tensors: &Tensors<T>, params: &VisionParams) -> Result<Bridge<T>> {
        let dim = params.projection_dim;
        Ok(Bridge {
            linear: tensors.linear(names::PROJ_W, names::PROJ_B, dim, params.features())?,
            norm: tensors.norm(names::PROJ_NORM_W, names::PROJ_NORM_B, dim)?,
            eps: params.projector_eps,
            start: tensors.values(names::START_IMG, dim)?,
            end: tensors.values(names::END_IMG, dim)?,
        })
    }

    /// Features `[views · tokens, features]` to rows `[views · (tokens + 2), dim]`: start, tokens, end per view.
    pub(super) fn forward(&self, t: &T, features: &T::Buffer, views: usize) -> Result<Vec<f32>> {
        let dim = self.start.len();
        let tokens = t.rows(features) / views;
        let mut projected = t.buffer(views * tokens, dim)?;
        t.linear(features, &self.linear, After::Nothing, &mut projected)?;
        let mut normed = t.buffer(views * tokens, dim)?;
        self.norm.apply(t, &projected, self.eps, &mut normed)?;
        let mut rows = vec![0.0; views * (tokens + 2) * dim];
        for (k, view) in rows.chunks_exact_mut((tokens + 2) * dim).enumerate() {
            view[..dim].copy_from_slice(&self.start);
            t.read(&normed, k * tokens, &mut view[dim..(tokens + 1) * dim])?;
            view[(tokens + 1) * dim..].copy_from_slice(&self.end);
        }
        Ok(rows)
    }
}

/// A map `[views · side², width]` as tokens in columns `column..` of `features` `[views · (1 + across²), …]`: the mean
/// of each view's map stands in for a class token, and a map smaller than `across` is repeated.
pub(super) fn place_map<T: Target>(
    t: &T,
    map: &T::Buffer,
    views: usize,
    side: usize,
    across: usize,
    features: &mut T::Buffer,
    column: usize,
) -> Result<()> {
    let mut means = t.buffer(views, t.width(map))?;
    t.mean_rows(map, side * side, &mut means)?;
    let tokens = 1 + across * across;
    let repeat = across / side;
    for k in 0..views {
        t.copy(&means, k, 1, features, k * tokens, column)?;
        let first = k * side * side;
        if repeat == 1 {
            t.copy(map, first, side * side, features, k * tokens + 1, column)?;
            continue;
        }
        for i in 0..across * across {
            let from = first + i / across / repeat * side + i % across / repeat;
            t.copy(map, from, 1, features, k * tokens + 1 + i, column)?;
        }
    }
    Ok(())
}
