//! All encoders, pooling, skip tokens and the padded-view cache over a small random model.
//!
//! The towers' witness is written here once more, plainly and in f64, from what the specification says.

use sphinx_quant::block;
use sphinx_quant::gguf::{Array, Gguf, Value, keys, names};
use sphinx_runtime::vision::resize::{Square, normalise};
use sphinx_runtime::vision::views::{Map, Views};
use sphinx_runtime::vision::{Observe, Picture, Recorder, VisionParams};

mod vision_model;

use vision_model::{CLIP, DIM, DINO, EVA, HEADS, Model, QF, QUERIES, WIDTHS, flat, noise, number, observed, target, text};

/// Rows of numbers.
type Rows = Vec<Vec<f64>>;

/// The model's tensors, in f64.
struct Weights {
    file: Gguf,
}

impl Weights {
    fn rows(&self, template: &str, i: usize) -> Rows {
        let tensor = self.file.tensor(&names::at(template, i, 0)).unwrap();
        let mut values = vec![0.0; tensor.len()];
        block::dequantize(tensor.ty(), tensor.bytes(), &mut values);
        values.chunks_exact(tensor.cols()).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
    }

    fn vector(&self, template: &str, i: usize) -> Vec<f64> {
        self.rows(template, i).concat()
    }

    fn linear(&self, x: &Rows, weight: &str, bias: Option<&str>, i: usize) -> Rows {
        let w = self.rows(weight, i);
        let b = bias.map_or(vec![0.0; w.len()], |b| self.vector(b, i));
        x.iter().map(|x| w.iter().zip(&b).map(|(w, b)| b + x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()).collect()).collect()
    }

    fn norm(&self, x: &Rows, weight: &str, bias: &str, i: usize, eps: f64) -> Rows {
        let (w, b) = (self.vector(weight, i), self.vector(bias, i));
        let row = |x: &Vec<f64>| {
            let n = x.len() as f64;
            let mean = x.iter().sum::<f64>() / n;
            let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            x.iter().zip(&w).zip(&b).map(|((v, w), b)| (v - mean) / (var + eps).sqrt() * w + b).collect()
        };
        x.iter().map(row).collect()
    }
}

/// erf by its series: good to 1e-8 where it is not 1.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn quick_gelu(x: f64) -> f64 {
    x / (1.0 + (-1.702 * x).exp())
}

fn map(x: Rows, f: fn(f64) -> f64) -> Rows {
    x.into_iter().map(|row| row.into_iter().map(f).collect()).collect()
}

fn add(a: &Rows, b: &Rows) -> Rows {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
}

fn columns(x: &Rows, first: usize, width: usize) -> Rows {
    x.iter().map(|row| row[first..first + width].to_vec()).collect()
}

fn attention(q: &Rows, k: &Rows, v: &Rows, heads: usize) -> Rows {
    let width = q[0].len() / heads;
    let mut out = vec![Vec::new(); q.len()];
    for h in 0..heads {
        let [q, k, v] = [q, k, v].map(|x| columns(x, h * width, width));
        for (q, out) in q.iter().zip(&mut out) {
            let scores: Vec<f64> =
                k.iter().map(|k| (q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() / (width as f64).sqrt()).exp()).collect();
            let total: f64 = scores.iter().sum();
            out.extend((0..width).map(|c| scores.iter().zip(&v).map(|(s, v)| s / total * v[c]).sum::<f64>()));
        }
    }
    out
}

/// Patches of 7 of the 28 × 28 tile at (`row`, `column`) of the recorded square, channel-major.
fn patches(recorder: &Recorder, row: usize, column: usize) -> Rows {
    let (shape, image) = &recorder.stages["image"];
    let side = shape[1];
    let patch = |i: usize| {
        let (y0, x0) = (28 * row + i / 4 * 7, 28 * column + i % 4 * 7);
        let pixel = |j: usize| f64::from(image[(j / 49 * side + y0 + j / 7 % 7) * side + x0 + j % 7]);
        (0..147).map(pixel).collect()
    };
    (0..16).map(patch).collect()
}

/// CLIP over one view: `[17, CLIP]`.
fn clip(w: &Weights, patches: &Rows, act: fn(f64) -> f64) -> Rows {
    const EPS: f64 = 1e-5f32 as f64;
    let mut x = vec![w.vector(names::CLIP_CLS, 0)];
    x.extend(w.linear(patches, names::CLIP_PATCH_W, None, 0));
    x = w.norm(&add(&x, &w.rows(names::CLIP_POS, 0)), names::CLIP_PRE_NORM_W, names::CLIP_PRE_NORM_B, 0, EPS);
    for i in 0..2 {
        let normed = w.norm(&x, names::CLIP_NORM1_W, names::CLIP_NORM1_B, i, EPS);
        let qkv = w.linear(&normed, names::CLIP_QKV_W, Some(names::CLIP_QKV_B), i);
        let [q, k, v] = [0, 1, 2].map(|part| columns(&qkv, part * CLIP, CLIP));
        x = add(&x, &w.linear(&attention(&q, &k, &v, HEADS), names::CLIP_PROJ_W, Some(names::CLIP_PROJ_B), i));
        let normed = w.norm(&x, names::CLIP_NORM2_W, names::CLIP_NORM2_B, i, EPS);
        let hidden = map(w.linear(&normed, names::CLIP_FC1_W, Some(names::CLIP_FC1_B), i), act);
        x = add(&x, &w.linear(&hidden, names::CLIP_FC2_W, Some(names::CLIP_FC2_B), i));
    }
    w.norm(&x, names::CLIP_NORM_W, names::CLIP_NORM_B, 0, EPS)
}

/// The Q-Former and its tower over one view: `[QUERIES, QF]`.
fn qformer(w: &Weights, patches: &Rows) -> Rows {
    const EPS: f64 = 1e-6f32 as f64;
    let mut x = vec![w.vector(names::EVA_CLS, 0)];
    x.extend(w.linear(patches, names::EVA_PATCH_W, Some(names::EVA_PATCH_B), 0));
    x = add(&x, &w.rows(names::EVA_POS, 0));
    for i in 0..2 {
        let normed = w.norm(&x, names::EVA_NORM1_W, names::EVA_NORM1_B, i, EPS);
        let qkv = w.linear(&normed, names::EVA_QKV_W, Some(names::EVA_QKV_B), i);
        let [q, k, v] = [0, 1, 2].map(|part| columns(&qkv, part * EVA, EVA));
        x = add(&x, &w.linear(&attention(&q, &k, &v, HEADS), names::EVA_PROJ_W, Some(names::EVA_PROJ_B), i));
        let normed = w.norm(&x, names::EVA_NORM2_W, names::EVA_NORM2_B, i, EPS);
        let hidden = map(w.linear(&normed, names::EVA_FC1_W, Some(names::EVA_FC1_B), i), gelu);
        x = add(&x, &w.linear(&hidden, names::EVA_FC2_W, Some(names::EVA_FC2_B), i));
    }
    let seen = w.norm(&x, names::EVA_NORM_W, names::EVA_NORM_B, 0, EPS);

    const TINY: f64 = 1e-12;
    let mut y = w.norm(&w.rows(names::QF_QUERY, 0), names::QF_EMBD_NORM_W, names::QF_EMBD_NORM_B, 0, TINY);
    for i in 0..3 {
        let q = w.linear(&y, names::QF_Q_W, Some(names::QF_Q_B), i);
        let k = w.linear(&y, names::QF_K_W, Some(names::QF_K_B), i);
        let v = w.linear(&y, names::QF_V_W, Some(names::QF_V_B), i);
        let found = w.linear(&attention(&q, &k, &v, HEADS), names::QF_PROJ_W, Some(names::QF_PROJ_B), i);
        y = w.norm(&add(&found, &y), names::QF_NORM_W, names::QF_NORM_B, i, TINY);
        if i % 2 == 0 {
            let q = w.linear(&y, names::QF_CROSS_Q_W, Some(names::QF_CROSS_Q_B), i);
            let k = w.linear(&seen, names::QF_CROSS_K_W, Some(names::QF_CROSS_K_B), i);
            let v = w.linear(&seen, names::QF_CROSS_V_W, Some(names::QF_CROSS_V_B), i);
            let found = w.linear(&attention(&q, &k, &v, HEADS), names::QF_CROSS_PROJ_W, Some(names::QF_CROSS_PROJ_B), i);
            y = w.norm(&add(&found, &y), names::QF_CROSS_NORM_W, names::QF_CROSS_NORM_B, i, TINY);
        }
        let hidden = map(w.linear(&y, names::QF_FC1_W, Some(names::QF_FC1_B), i), gelu);
        let found = w.linear(&hidden, names::QF_FC2_W, Some(names::QF_FC2_B), i);
        y = w.norm(&add(&found, &y), names::QF_FFN_NORM_W, names::QF_FFN_NORM_B, i, TINY);
    }
    y
}

fn rows_of(stage: &(Vec<usize>, Vec<f32>)) -> Rows {
    stage.1.chunks_exact(stage.0[1]).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
}

fn assert_close(got: &Rows, want: &Rows, bound: f64, what: &str) {
    assert_eq!((got.len(), got[0].len()), (want.len(), want[0].len()), "{what}");
    let worst = got.iter().flatten().zip(want.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst <= bound, "{what}: differs by {worst:e}");
}

/// What the bridge makes of recorded stages: the rows of view `k` in their tags.
fn bridge(w: &Weights, recorder: &Recorder, k: usize, pool: bool) -> Rows {
    const EPS: f64 = 1e-5f32 as f64;
    let stage = |name: &str| rows_of(&recorder.stages[&format!("view.{k}.{name}")]);
    let (clip, convnext, dino) = (stage("clip"), stage("convnext"), stage("dinov2"));
    let mut features: Rows = (0..17).map(|r| [&clip[r][..], &convnext[r], &dino[r]].concat()).collect();
    if pool && k > 0 {
        let mut rows = vec![features[0].clone()];
        for y in [0, 2] {
            for x in [0, 2] {
                let four = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(dy, dx)| &features[1 + 4 * (y + dy) + x + dx]);
                rows.push((0..features[0].len()).map(|c| four.iter().map(|row| row[c]).sum::<f64>() / 4.0).collect());
            }
        }
        features = rows;
    }
    let queries = w.linear(&stage("qformer"), names::QPROJ_W, Some(names::QPROJ_B), 0);
    let mut rows = vec![w.vector(names::START_IMG, 0)];
    rows.extend(w.norm(&queries, names::QPROJ_NORM_W, names::QPROJ_NORM_B, 0, EPS));
    let features = w.linear(&features, names::PROJ_W, Some(names::PROJ_B), 0);
    rows.extend(w.norm(&features, names::PROJ_NORM_W, names::PROJ_NORM_B, 0, EPS));
    rows.push(w.vector(names::END_IMG, 0));
    rows
}

#[test]
fn towers_and_bridge_against_a_plain_witness() {
    let target = target(2);
    for (quick, pool) in [(false, false), (true, true)] {
        let model = Model::all_four(2).with(keys::CLIP_QUICK_GELU, Value::Bool(quick)).with(keys::VIEW_POOL_PARTS, Value::Bool(pool));
        let weights = Weights { file: model.open() };
        let vision = model.load(&target);
        let (rows, recorder) = observed(&target, &vision, &noise(70, 40));
        for k in 1..5 {
            let patches = patches(&recorder, (k - 1) / 2, (k - 1) % 2);
            let stage = |name: &str| rows_of(&recorder.stages[&format!("view.{k}.{name}")]);
            let act = if quick { quick_gelu } else { gelu };
            assert_close(&stage("clip"), &clip(&weights, &patches, act), 2e-5, "clip");
            assert_close(&stage("qformer"), &qformer(&weights, &patches), 2e-5, "qformer");
        }
        let want: Rows = (0..5).flat_map(|k| bridge(&weights, &recorder, k, pool)).collect();
        assert_eq!(want.len(), if pool { 24 + 4 * 12 } else { 5 * 24 });
        assert_close(&rows_of(&(vec![rows.count, DIM], rows.rows.clone())), &want, 2e-5, "rows");
        assert!(rows.timings.clip_s > 0.0 && rows.timings.qformer_s > 0.0);
    }
}

/// A tile's rows are those of a picture that is that tile, wherever it is among how many others.
#[test]
fn many_views_are_each_as_if_alone() {
    let target = target(2);
    let (five, alone) = (Model::all_four(5).load(&target), Model::all_four(0).load(&target));
    let picture = noise(140, 140);
    let all = five.encode(&target, &picture, &mut ()).unwrap();
    assert_eq!((all.views, all.count), (26, 26 * 24));
    for k in [1, 2, 14, 15, 16, 17, 25] {
        let (row, column) = ((k - 1) / 5, (k - 1) % 5);
        let lines = (28 * row..28 * (row + 1)).flat_map(|y| &picture.rgb()[(140 * y + 28 * column) * 3..][..28 * 3]);
        let tile = Picture::from_rgb(28, 28, lines.copied().collect()).unwrap();
        let one = alone.encode(&target, &tile, &mut ()).unwrap();
        assert!(all.rows[24 * k * DIM..24 * (k + 1) * DIM] == one.rows, "view {k}");
    }
}

#[test]
fn stages_of_all_four() {
    let target = target(2);
    let vision = Model::all_four(2).load(&target);
    let (_, recorder) = observed(&target, &vision, &noise(20, 50));
    assert_eq!(recorder.stages.len(), 2 + 5 * 4);
    for k in 0..5 {
        for (name, shape) in [("clip", [17, CLIP]), ("convnext", [17, WIDTHS[2]]), ("dinov2", [17, DINO]), ("qformer", [QUERIES, QF])] {
            assert_eq!(recorder.stages[&format!("view.{k}.{name}")].0, shape, "{name}");
        }
    }
}

#[test]
fn rows_in_the_order_and_the_tags_that_metadata_ask_for() {
    let target = target(2);
    let encode = |model: &Model| model.load(&target).encode(&target, &noise(50, 50), &mut ()).unwrap().rows;
    let usual = encode(&Model::all_four(0));
    let turned = encode(&Model::all_four(0).with(keys::VIEW_ROWS, vision_model::strings(&["features", "qformer"])));
    let bare = encode(&Model::all_four(0).with(keys::VIEW_TAGGED, Value::Bool(false)));
    let row = |rows: &[f32], r: usize, n: usize| rows[r * DIM..(r + n) * DIM].to_vec();
    assert_eq!(usual.len(), 24 * DIM);
    assert_eq!(bare, row(&usual, 1, 22));
    let want = [row(&usual, 0, 1), row(&usual, 6, 17), row(&usual, 1, 5), row(&usual, 23, 1)].concat();
    assert_eq!(turned, want);
}

/// 3 × 3 tiles cut from the square: what lies outside of a 10:1 picture is padding, and is encoded once.
#[test]
fn padding_is_encoded_once() {
    let target = target(2);
    let models = [
        Model::all_four(3),
        Model::all_four(3).with(keys::VIEW_POOL_PARTS, Value::Bool(true)),
        Model::all_four(3).with(keys::PAD_RGB, Value::Array(Array::U8(vec![9, 250, 31]))),
    ];
    for model in models {
        let vision = model.load(&target);
        // Picture, then how many views are at hand the first and the second time. Sides beyond 84 are resampled.
        for (picture, first, second) in [
            (noise(840, 84), 5, 6),
            (noise(84, 840), 6, 6),
            (noise(84, 8), 6, 6),
            // The odd row of padding goes to the bottom, so that only the lowest three are without content.
            (noise(84, 29), 3, 3),
            (noise(84, 30), 0, 0),
            (noise(50, 40), 0, 0),
            (noise(1, 1), 0, 0),
        ] {
            let (all, _) = observed(&target, &vision, &picture);
            assert_eq!((all.cached_views, all.skipped_views, all.views), (0, 0, 10));
            for cached in [first, second] {
                let some = vision.encode(&target, &picture, &mut ()).unwrap();
                assert_eq!(some.cached_views, cached, "{}×{}", picture.width(), picture.height());
                assert!(some.rows == all.rows, "to the bit");
            }
        }
    }
}

/// The table of long and short sides at which content just does not reach six of the tiles of a 3 × 3 grid over a square of 672:
/// a resize lets it bleed over, so the ratio is a little more than 3. What counts are pixels, so that a tap too faint to
/// change one may leave a tile padding at a short side of one more.
#[test]
fn tiles_of_padding_by_aspect_ratio() {
    let mut model = Model::all_four(3)
        .with(keys::IMAGE_SIZE, number(672))
        .with(keys::VIT_INPUT, number(224))
        .with(keys::VIT_BOARD, number(672))
        .with(keys::CONVNEXT_INPUT, number(256));
    for patch in [keys::CLIP_PATCH, keys::EVA_PATCH, keys::DINO_PATCH] {
        model = model.with(patch, number(14));
    }
    model = model.with(keys::CONVNEXT_DEPTHS, vision_model::u32s(&[1; 4])).with(keys::CONVNEXT_WIDTHS, vision_model::u32s(&[32; 4]));
    let p = VisionParams::read(&model.open()).unwrap();
    let colour = normalise(&Square { side: 1, rgb: p.padding.rgb.to_vec() }, p.image_mean, p.image_std);
    let colour = [colour[0], colour[1], colour[2]];
    let padding = |width: usize, height: usize| {
        let square = p.padding.square(&noise(width, height), 672);
        let image = Map { side: 672, planes: normalise(&square, p.image_mean, p.image_std) };
        Views::new(image.rows(), &p, &(0..10).collect::<Vec<_>>()).padding(&p, colour)
    };
    for (long, short) in [(200, 62), (300, 96), (500, 164), (672, 224), (1000, 328), (1344, 442)] {
        assert_eq!(padding(long, short), [1, 2, 3, 7, 8, 9], "{long}×{short}");
        assert_eq!(padding(short, long), [1, 3, 4, 6, 7, 9], "{short}×{long}");
        assert!(padding(long, short + 1).ends_with(&[7, 8, 9]), "{long}×{}", short + 1);
        assert!(padding(long, short + long / 50).is_empty(), "{long}×{}", short + long / 50);
    }
    assert_eq!(padding(672, 225), [7, 8, 9]);
    assert!(padding(672, 226).is_empty());
}

/// Pictures that are of the padding's colour through and through, or nearly.
#[test]
fn flat_pictures_are_padding_too() {
    let target = target(2);
    let pad = [122, 116, 104];
    let vision = Model::all_four(3).load(&target);
    let (all, _) = observed(&target, &vision, &flat(37, 50, pad));
    for (picture, cached) in [(flat(37, 50, pad), 8), (flat(1, 1, pad), 10), (flat(84, 84, pad), 10), (flat(300, 200, pad), 10)] {
        let some = vision.encode(&target, &picture, &mut ()).unwrap();
        assert_eq!((some.cached_views, some.rows == all.rows), (cached, true));
    }
    // One pixel of one tile, a little brighter, is enough; the whole picture is then no padding either.
    let mut pixels = pad.repeat(84 * 84);
    pixels[(84 * 40 + 40) * 3] += 1;
    let speck = Picture::from_rgb(84, 84, pixels).unwrap();
    let (all, _) = observed(&target, &vision, &speck);
    let some = vision.encode(&target, &speck, &mut ()).unwrap();
    assert_eq!((some.cached_views, some.rows == all.rows), (8, true));
    // Tiles of a resized square may differ from one another in a last bit: each place is kept on its own.
    let vision = Model::five_views().load(&target);
    let (all, _) = observed(&target, &vision, &flat(90, 50, pad));
    for cached in [0, 5] {
        let some = vision.encode(&target, &flat(50, 90, pad), &mut ()).unwrap();
        assert_eq!((some.cached_views, some.rows == all.rows), (cached, true));
    }
}

/// Somebody who wants one stage.
struct Only(&'static str, usize);

impl Observe for Only {
    fn wants(&self, stage: &str) -> bool {
        stage == self.0
    }

    fn stage(&mut self, _: &str, _: &[usize], _: &[f32]) {
        self.1 += 1;
    }
}

#[test]
fn a_view_that_is_watched_is_encoded() {
    let target = target(2);
    let vision = Model::all_four(3).load(&target);
    let picture = noise(840, 84);
    let first = vision.encode(&target, &picture, &mut ()).unwrap();
    let mut one = Only("view.2.qformer", 0);
    let second = vision.encode(&target, &picture, &mut one).unwrap();
    assert_eq!((second.cached_views, one.1, second.rows == first.rows), (5, 1, true));
    let mut none = Only("view.2.vit", 0);
    assert_eq!(vision.encode(&target, &picture, &mut none).unwrap().cached_views, 6);
}

#[test]
fn empty_sub_images_become_learned_rows() {
    let target = target(2);
    let picture = noise(200, 60);
    for anchor in ["centre", "top_left"] {
        let plain = Model::all_four(3).with(keys::PAD_ANCHOR, text(anchor));
        let (whole, all_stages) = observed(&target, &plain.load(&target), &picture);
        // Rows of the tensor, rows per empty sub-image, whether tagged.
        for (rows, tokens, tagged) in [(1, 1, false), (2, 2, true), (9, 1, true), (18, 2, false)] {
            let model = plain.clone().skipping(rows, tokens).with(keys::SKIP_TAGGED, Value::Bool(tagged));
            let weights = Weights { file: model.open() };
            let learned = weights.rows(names::SKIP_TOKEN, 0);
            let vision = model.load(&target);
            let (got, stages) = observed(&target, &vision, &picture);
            let empty: &[usize] = if anchor == "centre" { &[1, 2, 3, 7, 8, 9] } else { &[4, 5, 6, 7, 8, 9] };
            assert_eq!((got.skipped_views, got.cached_views, got.views), (6, 0, 10));
            let extra = if tagged { 2 } else { 0 };
            assert_eq!(got.count, 4 * 24 + 6 * (tokens + extra));
            assert_eq!((vision.image_rows(), vision.rows_of(100, 100), vision.rows_of(200, 60)), (240, 240, got.count));
            let mut at = 0;
            for k in 0..10 {
                let take = |n: usize| got.rows[at * DIM..(at + n) * DIM].to_vec();
                if !empty.contains(&k) {
                    assert!(take(24) == whole.rows[24 * k * DIM..24 * (k + 1) * DIM], "view {k}");
                    at += 24;
                    continue;
                }
                assert!(stages.stages.keys().all(|name| !name.starts_with(&format!("view.{k}."))), "view {k} has no stages");
                let first = if rows > tokens { (k - 1) * tokens } else { 0 };
                let mut want: Vec<f64> = learned[first..first + tokens].concat();
                if tagged {
                    want = [weights.vector(names::START_IMG, 0), want, weights.vector(names::END_IMG, 0)].concat();
                }
                assert_eq!(take(tokens + extra).iter().map(|&v| f64::from(v)).collect::<Vec<_>>(), want, "view {k}");
                at += tokens + extra;
            }
            assert_eq!(at, got.count);
            for (name, stage) in stages.stages.iter().filter(|(name, _)| name.starts_with("view")) {
                assert!(*stage == all_stages.stages[name], "{name}");
            }
        }
    }
}

#[test]
fn skipped_and_kept_views_go_together() {
    let target = target(2);
    // 2 × 2 at the top left: a 10:1 picture leaves the lower two empty, and one of padding's colour is encoded where it is.
    let vision = Model::all_four(2).with(keys::PAD_ANCHOR, text("top_left")).skipping(1, 1).load(&target);
    let picture = flat(100, 10, [122, 116, 104]);
    assert_eq!(vision.rows_of(100, 10), 3 * 24 + 2);
    let (all, _) = observed(&target, &vision, &picture);
    for cached in [1, 3] {
        let some = vision.encode(&target, &picture, &mut ()).unwrap();
        assert_eq!((some.skipped_views, some.cached_views, some.rows == all.rows), (2, cached, true));
    }
    // Nothing is left to encode now, and the tall picture still gets its own places.
    assert_eq!(vision.rows_of(10, 100), 3 * 24 + 2);
    let tall = vision.encode(&target, &flat(10, 100, [122, 116, 104]), &mut ()).unwrap();
    assert_eq!((tall.skipped_views, tall.cached_views), (2, 3));
    assert!(tall.rows != all.rows, "the learned row stands elsewhere");
    // One pixel thick: never skipped.
    assert_eq!([(100, 1), (1, 100), (100, 2), (1, 1)].map(|(w, h)| vision.rows_of(w, h)), [120, 120, 74, 120]);
}

#[test]
fn resized_before_it_is_padded() {
    let target = target(2);
    let model = Model::all_four(3).with(keys::PAD_ORDER, text("resize_pad")).with(keys::GRID, number(3));
    let vision = model.clone().skipping(1, 1).load(&target);
    // 84 × 28 after the resize: exactly the middle row of tiles, whatever came before.
    for (w, h) in [(840, 280), (84, 28), (21, 7), (1000, 333)] {
        let (rows, recorder) = observed(&target, &vision, &noise(w, h));
        assert_eq!((rows.skipped_views, rows.count), (6, 4 * 24 + 6), "{w}×{h}");
        let (_, image) = &recorder.stages["image"];
        let pad = image[0];
        assert!((0..84 * 28).all(|i| image[i] == pad), "nothing bleeds into the padding");
        assert!((84 * 28..84 * 56).any(|i| image[i] != pad));
    }
    assert_eq!(vision.rows_of(840, 300), 240);
    // Without skip rows the same views are padding, and are encoded once.
    let vision = model.load(&target);
    let (all, _) = observed(&target, &vision, &noise(840, 280));
    let some = vision.encode(&target, &noise(840, 280), &mut ()).unwrap();
    assert_eq!((some.cached_views, some.rows == all.rows), (5, true));
}
