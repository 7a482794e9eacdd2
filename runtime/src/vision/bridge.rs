//! From what the encoders see to rows of the decoder's width.

use sphinx_quant::gguf::names;
use sphinx_targets::{After, Linear, MapShape, Target};

use super::params::{SkipParams, ViewRows, VisionParams};
use super::tensors::{Norm, Tensors};
use crate::Result;

/// The projections, the learned rows around every view, and those that stand for an empty one.
pub(super) struct Bridge<T: Target> {
    features: Projection<T>,
    queries: Option<Projection<T>>,
    start: Vec<f32>,
    end: Vec<f32>,
    skip: Option<Skip>,
}

/// A linear layer and a norm.
struct Projection<T: Target> {
    linear: Linear<T>,
    norm: Norm<T>,
    eps: f32,
}

struct Skip {
    params: SkipParams,
    /// `[tokens, dim]`, or as many for each sub-image.
    rows: Vec<f32>,
}

impl<T: Target> Projection<T> {
    /// `x` `[rows, …]` to `[rows, dim]`.
    fn forward(&self, t: &T, x: &T::Buffer) -> Result<T::Buffer> {
        let (rows, dim) = (t.rows(x), t.matrix_shape(&self.linear.weight).0);
        let mut projected = t.buffer(rows, dim)?;
        t.linear(x, &self.linear, After::Nothing, &mut projected)?;
        let mut normed = t.buffer(rows, dim)?;
        self.norm.apply(t, &projected, self.eps, &mut normed)?;
        Ok(normed)
    }
}

impl<T: Target> Bridge<T> {
    pub(super) fn load(tensors: &Tensors<T>, params: &VisionParams) -> Result<Bridge<T>> {
        let (dim, eps) = (params.projection_dim, params.projector_eps);
        let skip = |params: SkipParams, parts: usize| -> Result<Skip> {
            let places = if tensors.rows_of(names::SKIP_TOKEN)? == params.tokens { 1 } else { parts };
            Ok(Skip { params, rows: tensors.values(names::SKIP_TOKEN, places * params.tokens, dim)? })
        };
        let queries = |width: usize| -> Result<Projection<T>> {
            let linear = tensors.linear(names::QPROJ_W, names::QPROJ_B, dim, width)?;
            Ok(Projection { linear, norm: tensors.norm(names::QPROJ_NORM_W, names::QPROJ_NORM_B, dim)?, eps })
        };
        Ok(Bridge {
            features: Projection {
                linear: tensors.linear(names::PROJ_W, names::PROJ_B, dim, params.features())?,
                norm: tensors.norm(names::PROJ_NORM_W, names::PROJ_NORM_B, dim)?,
                eps,
            },
            queries: params.qformer.as_ref().map(|q| queries(q.width)).transpose()?,
            start: tensors.values(names::START_IMG, 1, dim)?,
            end: tensors.values(names::END_IMG, 1, dim)?,
            skip: params.skip.map(|s| skip(s, params.views() - 1)).transpose()?,
        })
    }

    /// Rows of the views `places` without their tags, `[view_tokens, dim]` each.
    ///
    /// `features`: `[views · tokens, features]`; `queries`: `[views · queries, width]`.
    pub(super) fn tokens(
        &self,
        t: &T,
        params: &VisionParams,
        places: &[usize],
        features: T::Buffer,
        queries: Option<T::Buffer>,
    ) -> Result<Vec<Vec<f32>>> {
        let features = if params.pool_parts { pooled(t, params, places, features)? } else { features };
        let features = self.features.forward(t, &features)?;
        let queries = match (&self.queries, queries) {
            (Some(projection), Some(queries)) => Some(projection.forward(t, &queries)?),
            _ => None,
        };
        let dim = self.start.len();
        let (mut feature_row, mut query_row) = (0, 0);
        let view = |&place: &usize| -> Result<Vec<f32>> {
            let mut view = vec![0.0; params.view_tokens(place) * dim];
            let mut rest = &mut view[..];
            for part in &params.view_rows {
                let (rows, at, source) = match (part, &queries) {
                    (ViewRows::Features, _) => (params.feature_rows(place), &mut feature_row, &features),
                    (ViewRows::QFormer, Some(queries)) => (t.rows(queries) / places.len(), &mut query_row, queries),
                    (ViewRows::QFormer, None) => continue,
                };
                let (mine, others) = rest.split_at_mut(rows * dim);
                t.read(source, *at, mine)?;
                *at += rows;
                rest = others;
            }
            Ok(view)
        };
        places.iter().map(view).collect()
    }

    /// Appends a view to `rows`, in its tags if views have them.
    pub(super) fn append(&self, params: &VisionParams, tokens: &[f32], rows: &mut Vec<f32>) {
        self.surround(params.tagged, tokens, rows);
    }

    /// Appends what stands for the empty view `place` to `rows`.
    pub(super) fn append_skipped(&self, place: usize, rows: &mut Vec<f32>) {
        let Some(skip) = &self.skip else { return };
        let len = skip.params.tokens * self.start.len();
        let first = if skip.rows.len() > len { (place - 1) * len } else { 0 };
        self.surround(skip.params.tagged, &skip.rows[first..first + len], rows);
    }

    fn surround(&self, tagged: bool, tokens: &[f32], rows: &mut Vec<f32>) {
        let [start, end] = if tagged { [&self.start[..], &self.end[..]] } else { [&[][..]; 2] };
        rows.extend_from_slice(start);
        rows.extend_from_slice(tokens);
        rows.extend_from_slice(end);
    }
}

/// `features` of the views `places`, the patch rows of sub-images averaged over 2×2 neighbourhoods.
fn pooled<T: Target>(t: &T, params: &VisionParams, places: &[usize], features: T::Buffer) -> Result<T::Buffer> {
    let (across, tokens, width) = (params.patches_across(), params.tokens(), t.width(&features));
    let mut out = t.buffer(places.iter().map(|&k| params.feature_rows(k)).sum(), width)?;
    let mut patches = t.buffer(across * across, width)?;
    let mut means = t.buffer(across * across / 4, width)?;
    let map = MapShape { batch: 1, height: across, width: across };
    let mut at = 0;
    for (i, &place) in places.iter().enumerate() {
        let (first, rows) = (i * tokens, params.feature_rows(place));
        if rows == tokens {
            t.copy(&features, first, rows, &mut out, at, 0)?;
        } else {
            t.copy(&features, first + 1, tokens - 1, &mut patches, 0, 0)?;
            t.pool_2x2(&patches, map, &mut means)?;
            t.copy(&features, first, 1, &mut out, at, 0)?;
            t.copy(&means, 0, rows - 1, &mut out, at + 1, 0)?;
        }
        at += rows;
    }
    Ok(out)
}

/// A map `[views · side², width]` as tokens of the views from `view` on, in columns `column..` of `features`
/// `[… · (1 + across²), …]`: the mean of each view's map stands in for a class token, and a map smaller than `across` is repeated.
pub(super) fn place_map<T: Target>(
    t: &T,
    map: &T::Buffer,
    side: usize,
    across: usize,
    features: &mut T::Buffer,
    view: usize,
    column: usize,
) -> Result<()> {
    let views = t.rows(map) / (side * side);
    let mut means = t.buffer(views, t.width(map))?;
    t.mean_rows(map, side * side, &mut means)?;
    let tokens = 1 + across * across;
    let repeat = across / side;
    for k in 0..views {
        let (first, to) = (k * side * side, (view + k) * tokens);
        t.copy(&means, k, 1, features, to, column)?;
        if repeat == 1 {
            t.copy(map, first, side * side, features, to + 1, column)?;
            continue;
        }
        for i in 0..across * across {
            let from = first + i / across / repeat * side + i % across / repeat;
            t.copy(map, from, 1, features, to + 1 + i, column)?;
        }
    }
    Ok(())
}
