//! From a picture to the rows that enter the decoder.
//!
//! A picture is padded to a square and resized ([`resize`]) and cut into views ([`views`]). Each view goes through the
//! encoders, some of ConvNeXt, CLIP and DINOv2; what they see at each patch is joined and projected to the decoder's width. A
//! Q-Former, where there is one, adds rows of its own. All of it follows the metadata of the vision half ([`params`]);
//! nothing here knows a model by name.
//!
//! A view without anything of the picture costs nothing: a model that has learned rows for it gets these, and for the others
//! what such a view becomes is computed once per model and kept.

mod bridge;
mod clip;
mod convnext;
mod dinov2;
mod eva;
pub mod params;
pub mod preprocess;
mod qformer;
pub mod resize;
mod tensors;
pub mod views;
mod vit;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use sphinx_quant::gguf::{Gguf, keys, keys::Half};
use sphinx_quant::tensor::Bytes;
use sphinx_targets::Target;

pub use params::VisionParams;
pub use preprocess::{Picture, Room};

use crate::{Result, RuntimeError};
use bridge::Bridge;
pub(crate) use convnext::BATCHED_POSITIONS;
use convnext::ConvNext;
use params::{DinoParams, Encoder};
use qformer::QFormer;
use tensors::Tensors;
use views::{Map, Views};
use vit::Vit;

/// The vision half of a model: encoders, projections, learned rows.
///
/// Loading takes milliseconds: weights stay where they are in the mapped file.
pub struct Vision<T: Target> {
    params: VisionParams,
    pair_id: String,
    file: PathBuf,
    /// One per encoder of the metadata, in their order.
    towers: Vec<Tower<T>>,
    qformer: Option<QFormer<T>>,
    bridge: Bridge<T>,
    /// The file's bytes, where weights are in memory only while they are used.
    streamed: Option<Arc<Bytes>>,
    /// What views of padding alone become, without tags, by [`Vision::padding_key`].
    padding: Mutex<BTreeMap<usize, Tokens>>,
}

/// An encoder's weights.
enum Tower<T: Target> {
    Clip(Vit<T>),
    ConvNext(ConvNext<T>),
    DinoV2(Vit<T>, DinoParams),
}

/// Rows of a view without its tags, `[view tokens, dim]`.
type Tokens = Arc<[f32]>;

/// A picture, or several, as the decoder sees them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageRows {
    /// `[count, dim]`: per view a start row, its tokens and an end row, where the layout has no other wish.
    pub rows: Vec<f32>,
    /// Rows.
    pub count: usize,
    /// Width of a row.
    pub dim: usize,
    /// Rows of each picture.
    pub pictures: Vec<usize>,
    /// Views, the whole picture included, and also those that were skipped.
    pub views: usize,
    /// Views that hold nothing of the picture and became the model's learned rows.
    pub skipped_views: usize,
    /// Views of padding alone whose tokens another such view had already become.
    pub cached_views: usize,
    /// What it took.
    pub timings: VisionTimings,
}

impl ImageRows {
    /// Several pictures as one: their rows in order, each with its tags. All are to be of one width; a session refuses rows
    /// whose number and width do not agree.
    pub fn join(images: &[ImageRows]) -> ImageRows {
        let mut all = ImageRows { dim: images.first().map_or(0, |i| i.dim), ..ImageRows::default() };
        for image in images {
            all.rows.extend_from_slice(&image.rows);
            all.count += image.count;
            all.pictures.extend_from_slice(&image.pictures);
            all.views += image.views;
            all.skipped_views += image.skipped_views;
            all.cached_views += image.cached_views;
            all.timings.add(&image.timings);
        }
        all
    }
}

/// Seconds spent on a picture, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct VisionTimings {
    /// Padding, resize, normalisation, views.
    pub preprocess_s: f64,
    /// CLIP over all views.
    pub clip_s: f64,
    /// ConvNeXt over all views.
    pub convnext_s: f64,
    /// DINOv2 over all views.
    pub dinov2_s: f64,
    /// The Q-Former and its tower over all views.
    pub qformer_s: f64,
    /// Projections.
    pub project_s: f64,
}

impl VisionTimings {
    /// All parts together.
    pub fn total_s(&self) -> f64 {
        self.preprocess_s + self.clip_s + self.convnext_s + self.dinov2_s + self.qformer_s + self.project_s
    }

    /// Adds what another picture took.
    fn add(&mut self, other: &VisionTimings) {
        let VisionTimings { preprocess_s, clip_s, convnext_s, dinov2_s, qformer_s, project_s } = other;
        self.preprocess_s += preprocess_s;
        self.clip_s += clip_s;
        self.convnext_s += convnext_s;
        self.dinov2_s += dinov2_s;
        self.qformer_s += qformer_s;
        self.project_s += project_s;
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

/// Keeps every stage: `image` `[3, S, S]`; per view that is not skipped what each encoder saw, `view.K.clip`, `view.K.convnext` and
/// `view.K.dinov2` `[tokens, width]`, before any pooling, and `view.K.qformer` `[queries, width]`; `rows` `[rows, dim]`.
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

/// Where the rows of a view come from.
enum Origin {
    /// From this view of those that are encoded.
    Encoded(usize),
    /// From an earlier view of padding alone.
    Kept(Tokens),
    /// From the model: nothing of the picture is there.
    Skipped,
}

/// A picture, cut up.
struct Plan {
    /// Inputs of the views that are to be encoded.
    views: Views,
    /// One per view.
    origins: Vec<Origin>,
    /// What to keep: padding key, view of those encoded.
    keep: Vec<(usize, usize)>,
}

impl<T: Target> Vision<T> {
    /// The vision half in `file`.
    ///
    /// # Errors
    /// `Invalid` when it is no vision half, a metadata value is missing or out of range, a tensor is missing or has
    /// another shape than the metadata call for.
    pub fn load(target: &T, file: &Gguf) -> Result<Vision<T>> {
        Vision::load_with(target, file, false, false)
    }

    /// The same, with activations of 16 bits where the target would round them to 8: for a mixture of experts, whose routers
    /// turn an error of the rows into another expert.
    ///
    /// # Errors
    /// As [`load`](Vision::load).
    pub fn load_fine(target: &T, file: &Gguf) -> Result<Vision<T>> {
        Vision::load_with(target, file, true, false)
    }

    /// Either of them; where `streamed` is set, the weights of a block are in memory only while it runs.
    pub(crate) fn load_with(target: &T, file: &Gguf, fine: bool, streamed: bool) -> Result<Vision<T>> {
        let params = VisionParams::read(file)?;
        let tensors = Tensors::new(target, file, fine, streamed);
        let across = params.patches_across();
        let tower = |encoder: &Encoder| -> Result<Tower<T>> {
            Ok(match encoder {
                Encoder::Clip(vit) => Tower::Clip(Vit::load(&tensors, &clip::NAMES, vit, across)?),
                Encoder::ConvNext(convnext) => Tower::ConvNext(ConvNext::load(&tensors, convnext)?),
                Encoder::DinoV2(dino) => {
                    Tower::DinoV2(Vit::load(&tensors, dinov2::names(dino.vit.activation), &dino.vit, across)?, dino.clone())
                }
            })
        };
        let vision = Vision {
            pair_id: file.str(&Half::Vision.key(keys::PAIR_ID))?.to_owned(),
            file: file.path().to_owned(),
            towers: params.encoders.iter().map(tower).collect::<Result<_>>()?,
            qformer: params.qformer.as_ref().map(|q| QFormer::load(&tensors, q, params.vit.input / q.eva.patch)).transpose()?,
            bridge: Bridge::load(&tensors, &params)?,
            streamed: file.tensors().first().filter(|_| streamed).map(|t| Arc::clone(t.backing().0)),
            padding: Mutex::default(),
            params,
        };
        tensors.all_asked()?;
        Ok(vision)
    }

    /// Rows that a picture adds to a prompt when nothing of it is skipped.
    pub fn image_rows(&self) -> usize {
        self.params.image_rows()
    }

    /// Rows that a picture of `width` × `height` pixels adds to a prompt.
    pub fn rows_of(&self, width: usize, height: usize) -> usize {
        self.params.rows_of(width, height)
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
    /// A view of padding alone is encoded once per model; what it becomes is kept, and is what encoding it again would
    /// give, to the bit. A view whose stages `observe` wants is always encoded.
    ///
    /// # Errors
    /// What the target reports; [`RuntimeError::NotFinite`] when a row holds something that is no number.
    pub fn encode(&self, target: &T, picture: &Picture, observe: &mut dyn Observe) -> Result<ImageRows> {
        let (p, dim) = (&self.params, self.params.projection_dim);
        let mut timings = VisionTimings::default();
        let Plan { views, origins, keep } = timed(&mut timings.preprocess_s, || self.plan(picture, observe));
        let tokens = if views.places.is_empty() { Ok(Vec::new()) } else { self.encode_views(target, views, &mut timings, observe) };
        if let Some(bytes) = &self.streamed {
            // What comes next, also after an error, has weights and buffers of its own.
            bytes.evict(0..bytes.as_slice().len());
            target.free_scratch();
        }
        let tokens: Vec<Tokens> = tokens?.into_iter().map(Tokens::from).collect();
        for (key, view) in keep {
            self.kept().insert(key, Arc::clone(&tokens[view]));
        }

        let mut rows = Vec::with_capacity(p.image_rows() * dim);
        let (mut skipped_views, mut encoded) = (0, 0);
        for (k, origin) in origins.iter().enumerate() {
            match origin {
                Origin::Encoded(view) => {
                    encoded = encoded.max(view + 1);
                    self.bridge.append(p, &tokens[*view], &mut rows);
                }
                Origin::Kept(tokens) => self.bridge.append(p, tokens, &mut rows),
                Origin::Skipped => {
                    skipped_views += 1;
                    self.bridge.append_skipped(k, &mut rows);
                }
            }
        }
        if let Some(at) = rows.iter().position(|v| !v.is_finite()) {
            return Err(RuntimeError::NotFinite { file: self.file.clone(), what: "an image row", position: at / dim });
        }
        let count = rows.len() / dim;
        if observe.wants("rows") {
            observe.stage("rows", &[count, dim], &rows);
        }
        let cached_views = origins.len() - skipped_views - encoded;
        Ok(ImageRows { rows, count, dim, pictures: vec![count], views: origins.len(), skipped_views, cached_views, timings })
    }

    /// Cuts a picture up and finds out which of its views have to be encoded.
    fn plan(&self, picture: &Picture, observe: &mut dyn Observe) -> Plan {
        let p = &self.params;
        let square = p.padding.square(picture, p.image_size);
        let image = Map { side: square.side, planes: resize::normalise(&square, p.image_mean, p.image_std) };
        drop(square);
        if observe.wants("image") {
            observe.stage("image", &[3, image.side, image.side], &image.planes);
        }
        let skipped = p.skipped(picture.width(), picture.height());
        let places: Vec<usize> = (0..p.views()).filter(|&k| !skipped[k]).collect();
        let mut views = Views::new(image.rows(), p, &places);
        drop(image);

        let mut padding = views.padding(p, self.pad_colour());
        padding.retain(|&k| !self.stages_of(k).any(|stage| observe.wants(&stage)));
        let kept = self.kept();
        // The first view of each kind of padding that is not kept yet is encoded like any other.
        let mut fresh: BTreeMap<usize, usize> = BTreeMap::new();
        for &k in padding.iter().filter(|&&k| !kept.contains_key(&self.padding_key(k))) {
            fresh.entry(self.padding_key(k)).or_insert(k);
        }
        views.retain(|k| !padding.contains(&k) || fresh.values().any(|&first| first == k));
        let encoded = |place: usize| views.places.iter().position(|&k| k == place);
        let origin = |k: usize| {
            let key = self.padding_key(k);
            match (skipped[k], padding.contains(&k)) {
                (true, _) => Some(Origin::Skipped),
                (false, false) => encoded(k).map(Origin::Encoded),
                (false, true) => match kept.get(&key) {
                    Some(tokens) => Some(Origin::Kept(Arc::clone(tokens))),
                    None => encoded(*fresh.get(&key)?).map(Origin::Encoded),
                },
            }
        };
        let origins = (0..p.views()).filter_map(origin).collect();
        let keep = fresh.iter().filter_map(|(&key, &first)| Some((key, encoded(first)?))).collect();
        Plan { views, origins, keep }
    }

    /// Runs `views` through every encoder, one encoder after the other: their rows without tags.
    fn encode_views(&self, t: &T, views: Views, timings: &mut VisionTimings, observe: &mut dyn Observe) -> Result<Vec<Vec<f32>>> {
        let p = &self.params;
        let Views { places, vit, convnext } = views;
        let (count, tokens) = (places.len(), p.tokens());
        let mut features = t.buffer(count * tokens, p.features())?;
        let mut column = 0;
        for (tower, encoder) in self.towers.iter().zip(&p.encoders) {
            let seconds = match tower {
                Tower::Clip(_) => &mut timings.clip_s,
                Tower::ConvNext(_) => &mut timings.convnext_s,
                Tower::DinoV2(..) => &mut timings.dinov2_s,
            };
            for batch in batches(count) {
                let vit = &vit[batch.clone()];
                let place = |all: &T::Buffer, features: &mut T::Buffer| {
                    t.copy(all, 0, batch.len() * tokens, features, batch.start * tokens, column)
                };
                timed(seconds, || -> Result<()> {
                    match tower {
                        Tower::Clip(clip) => place(&clip.forward(t, vit)?, &mut features)?,
                        Tower::DinoV2(dino, params) => {
                            place(&dino.forward(t, &dinov2::inputs(params, vit, p.image_mean, p.image_std))?, &mut features)?;
                        }
                        Tower::ConvNext(net) => {
                            let map = net.forward(t, &convnext[batch.clone()])?;
                            bridge::place_map(t, &map, net.last_side(), p.patches_across(), &mut features, batch.start, column)?;
                        }
                    }
                    Ok(())
                })?;
            }
            report(t, &places, encoder.name(), &features, column..column + encoder.width(), observe)?;
            column += encoder.width();
        }
        drop(convnext);
        let mut queries = None;
        if let Some(qformer) = &self.qformer {
            let (rows, width) = qformer.shape_of_view();
            let mut all = t.buffer(count * rows, width)?;
            for batch in batches(count) {
                timed(&mut timings.qformer_s, || -> Result<()> {
                    let found = qformer.forward(t, &vit[batch.clone()])?;
                    Ok(t.copy(&found, 0, batch.len() * rows, &mut all, batch.start * rows, 0)?)
                })?;
            }
            report(t, &places, QFORMER, &all, 0..width, observe)?;
            queries = Some(all);
        }
        drop(vit);
        timed(&mut timings.project_s, || self.bridge.tokens(t, p, &places, features, queries))
    }

    /// The colour of padding, normalised.
    fn pad_colour(&self) -> [f32; 3] {
        let pixel = resize::Square { side: 1, rgb: self.params.padding.rgb.to_vec() };
        let planes = resize::normalise(&pixel, self.params.image_mean, self.params.image_std);
        std::array::from_fn(|c| planes[c])
    }

    /// Views of padding alone that have one key have the same inputs: 0 for the whole picture, 1 for sub-images where all of
    /// them are cut from the square itself; where they are cut from a resized one they may differ in a last bit.
    fn padding_key(&self, place: usize) -> usize {
        let p = &self.params;
        let boards = [Some(p.vit.board), p.convnext().and_then(|c| c.tiling).map(|tiling| tiling.board)];
        let cut = boards.into_iter().flatten().all(|board| board == p.image_size);
        if cut { place.min(1) } else { place }
    }

    /// Names of what can be seen of view `place`.
    fn stages_of(&self, place: usize) -> impl Iterator<Item = String> {
        let names = self.params.encoders.iter().map(Encoder::name).chain(self.qformer.is_some().then_some(QFORMER));
        names.map(move |name| stage(place, name))
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<usize, Tokens>> {
        self.padding.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The Q-Former in the name of a stage.
const QFORMER: &str = "qformer";

/// The stage of view `place` in which `encoder` has seen it.
fn stage(place: usize, encoder: &str) -> String {
    format!("view.{place}.{encoder}")
}

/// Shows the columns `columns` of `buffer`, whose rows are those of the views `places`, one stage per view.
fn report<T: Target>(
    t: &T,
    places: &[usize],
    encoder: &str,
    buffer: &T::Buffer,
    columns: Range<usize>,
    observe: &mut dyn Observe,
) -> Result<()> {
    let (rows, all) = (t.rows(buffer) / places.len(), t.width(buffer));
    for (i, &place) in places.iter().enumerate() {
        let name = stage(place, encoder);
        if observe.wants(&name) {
            let mut joined = vec![0.0; rows * all];
            t.read(buffer, i * rows, &mut joined)?;
            let values: Vec<f32> = joined.chunks_exact(all).flat_map(|row| row[columns.clone()].iter().copied()).collect();
            observe.stage(&name, &[rows, columns.len()], &values);
        }
    }
    Ok(())
}

/// Views that go through an encoder together: enough of them that unpacking a weight once for all costs little, and few enough
/// that what they occupy on the way does not grow with the grid.
const BATCH: usize = 16;

/// `count` views in batches.
fn batches(count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(BATCH).map(move |first| first..count.min(first + BATCH))
}

/// Runs `work` and adds the time it took to `seconds`.
fn timed<R>(seconds: &mut f64, work: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = work();
    *seconds += start.elapsed().as_secs_f64();
    result
}
