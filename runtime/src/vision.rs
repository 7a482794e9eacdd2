//! From a picture to the rows that enter the decoder.
//!
//! A picture is padded to a square and resized ([`resize`]), cut into views ([`views`]), each view goes through two
//! encoders, ConvNeXt and DINOv2, and what they see at each patch is joined and projected to the decoder's width. All
//! of it follows the metadata of the vision half ([`params`]); nothing here knows a model by name.

mod bridge;
mod convnext;
mod dinov2;
pub mod params;
pub mod preprocess;
pub mod resize;
pub mod views;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use sphinx_quant::gguf::{Gguf, keys, keys::Half};
use sphinx_targets::Target;

pub use params::VisionParams;
pub use preprocess::Picture;

use crate::{Result, RuntimeError};
use bridge::Bridge;
use convnext::ConvNext;
use dinov2::DinoV2;
use params::{Encoder, Tensors};
use views::{Map, Views, renormalise};

/// The vision half of a model: encoders, projection, image tags.
///
/// Loading takes milliseconds: weights stay where they are in the mapped file.
pub struct Vision<T: Target> {
    params: VisionParams,
    pair_id: String,
    file: PathBuf,
    convnext: ConvNext<T>,
    dino: DinoV2<T>,
    bridge: Bridge<T>,
}

/// A picture as the decoder sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageRows {
    /// `[count, dim]`: per view a start row, its tokens and an end row.
    pub rows: Vec<f32>,
    /// Rows.
    pub count: usize,
    /// Width of a row.
    pub dim: usize,
    /// Views, the whole picture included.
    pub views: usize,
    /// What it took.
    pub timings: VisionTimings,
}

/// Seconds spent on a picture, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct VisionTimings {
    /// Padding, resize, normalisation, views.
    pub preprocess_s: f64,
    /// ConvNeXt over all views.
    pub convnext_s: f64,
    /// DINOv2 over all views.
    pub dinov2_s: f64,
    /// Projection.
    pub project_s: f64,
}

impl VisionTimings {
    /// All parts together.
    pub fn total_s(&self) -> f64 {
        self.preprocess_s + self.convnext_s + self.dinov2_s + self.project_s
    }
}

/// Somebody who wants to see what is computed on the way.
pub trait Observe {
    /// Whether stage `stage` is of interest; what is not is not even read from the device.
    fn wants(&self, stage: &str) -> bool {
        let _ = stage;
        false
    }

    /// Stage `name` of shape `shape`, outermost first.
    fn stage(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let _ = (name, shape, values);
    }
}

/// Nobody.
impl Observe for () {}

/// Keeps every stage: `image` `[3, S, S]`, `view.K.convnext` and `view.K.dinov2` `[tokens, width]`, `rows` `[rows, dim]`.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    /// Shape and values by name.
    pub stages: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Observe for Recorder {
    fn wants(&self, _: &str) -> bool {
        true
    }

    fn stage(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.stages.insert(name.to_owned(), (shape.to_vec(), values.to_vec()));
    }
}

impl<T: Target> Vision<T> {
    /// The vision half in `file`.
    ///
    /// # Errors
    /// `Invalid` when it is no vision half, a metadata value is missing or out of range, a tensor is missing or has
    /// another shape than the metadata call for.
    pub fn load(target: &T, file: &Gguf) -> Result<Vision<T>> {
        let params = VisionParams::read(file)?;
        let tensors = Tensors::new(target, file);
        let vision = Vision {
            pair_id: file.str(&Half::Vision.key(keys::PAIR_ID))?.to_owned(),
            file: file.path().to_owned(),
            convnext: ConvNext::load(&tensors, &params.convnext)?,
            dino: DinoV2::load(&tensors, &params.dino, params.patches_across())?,
            bridge: Bridge::load(&tensors, &params)?,
            params,
        };
        tensors.all_asked()?;
        Ok(vision)
    }

    /// Rows that a picture adds to a prompt.
    pub fn image_rows(&self) -> usize {
        self.params.image_rows()
    }

    /// Width of a row.
    pub fn dim(&self) -> usize {
        self.params.projection_dim
    }

    /// What both halves of a model carry.
    pub fn pair_id(&self) -> &str {
        &self.pair_id
    }

    /// The layout.
    pub fn params(&self) -> &VisionParams {
        &self.params
    }

    /// Runs a picture through the encoders; `observe` sees the stages it wants, in the order of [`Recorder`].
    ///
    /// # Errors
    /// What the target reports; [`RuntimeError::NotFinite`] when a row holds something that is no number.
    pub fn encode(&self, target: &T, picture: &Picture, observe: &mut dyn Observe) -> Result<ImageRows> {
        let (t, p) = (target, &self.params);
        let mut timings = VisionTimings::default();
        let views = timed(&mut timings.preprocess_s, || self.preprocess(picture, observe));
        let (count, tokens) = (p.views(), p.tokens());

        let mut features = t.buffer(count * tokens, p.features())?;
        let mut column = 0;
        for &encoder in &p.encoders {
            let (name, seconds) = match encoder {
                Encoder::ConvNext => ("convnext", &mut timings.convnext_s),
                Encoder::DinoV2 => ("dinov2", &mut timings.dinov2_s),
            };
            timed(seconds, || match encoder {
                Encoder::ConvNext => {
                    let map = self.convnext.forward(t, &views.convnext)?;
                    bridge::place_map(t, &map, count, p.convnext.last_side(), p.patches_across(), &mut features, column)
                }
                Encoder::DinoV2 => {
                    let mut inputs = views.vit.clone();
                    for view in &mut inputs {
                        renormalise(view, p.image_mean, p.image_std, p.dino.mean, p.dino.std);
                    }
                    let all = self.dino.forward(t, &inputs)?;
                    Ok(t.copy(&all, 0, count * tokens, &mut features, 0, column)?)
                }
            })?;
            self.report(t, name, &features, column, p.width_of(encoder), observe)?;
            column += p.width_of(encoder);
        }
        drop(views);

        let rows = timed(&mut timings.project_s, || self.bridge.forward(t, &features, count))?;
        drop(features);
        let dim = p.projection_dim;
        if let Some(at) = rows.iter().position(|v| !v.is_finite()) {
            return Err(RuntimeError::NotFinite { file: self.file.clone(), what: "an image row", position: at / dim });
        }
        if observe.wants("rows") {
            observe.stage("rows", &[rows.len() / dim, dim], &rows);
        }
        Ok(ImageRows { count: rows.len() / dim, dim, views: count, timings, rows })
    }

    /// The encoders' inputs, CLIP-normalised.
    fn preprocess(&self, picture: &Picture, observe: &mut dyn Observe) -> Views {
        let p = &self.params;
        let square = resize::pad_and_resize(picture, p.image_size, p.pad_rgb, p.pad_anchor);
        let image = Map { side: square.side, planes: resize::normalise(&square, p.image_mean, p.image_std) };
        if observe.wants("image") {
            observe.stage("image", &[3, image.side, image.side], &image.planes);
        }
        Views::new(&image, p)
    }

    /// Shows `width` columns of `features` from `column` on, one stage per view.
    fn report(&self, t: &T, encoder: &str, features: &T::Buffer, column: usize, width: usize, observe: &mut dyn Observe) -> Result<()> {
        let (tokens, all) = (self.params.tokens(), self.params.features());
        for k in 0..self.params.views() {
            let name = format!("view.{k}.{encoder}");
            if observe.wants(&name) {
                let mut joined = vec![0.0; tokens * all];
                t.read(features, k * tokens, &mut joined)?;
                let values: Vec<f32> = joined.chunks_exact(all).flat_map(|row| row[column..column + width].iter().copied()).collect();
                observe.stage(&name, &[tokens, width], &values);
            }
        }
        Ok(())
    }
}

/// Runs `work` and adds the time it took to `seconds`.
fn timed<R>(seconds: &mut f64, work: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = work();
    *seconds += start.elapsed().as_secs_f64();
    result
}
