//! The vision half over a small random model: layout by metadata, views, batching, and what is refused.

use std::collections::HashMap;
use std::path::Path;

use sphinx_quant::gguf::{Array, Gguf, Plan, TensorPlan, Value, Writer, keys, keys::Half, names};
use sphinx_quant::{ErrorKind, GgmlType};
use sphinx_runtime::vision::{Picture, Recorder, Vision};
use sphinx_targets::cpu::{CpuOptions, CpuTarget};

const WIDTHS: [usize; 3] = [32, 64, 96];
const DINO: usize = 64;
const HIDDEN: usize = 96;
const DIM: usize = 48;

/// A vision half to be written: metadata by our key, tensors `[rows, cols]` by name.
struct Model {
    metadata: Vec<(&'static str, Value)>,
    tensors: Vec<(String, usize, usize)>,
    /// Tensors that hold one value throughout.
    filled: HashMap<String, f32>,
}

fn u32s(values: &[usize]) -> Value {
    Value::Array(Array::U32(values.iter().map(|&v| v as u32).collect()))
}

fn f32s(values: &[f32]) -> Value {
    Value::Array(Array::F32(values.to_vec()))
}

fn strings(values: &[&str]) -> Value {
    Value::Array(Array::Str(values.iter().map(|&v| v.to_owned()).collect()))
}

impl Model {
    /// Five views: a square of 128, ConvNeXt at 64, DINOv2 at 28 with patches of 7, 4 × 4 patches.
    fn five_views() -> Model {
        let text = |s: &str| Value::Str(s.into());
        let metadata = vec![
            (keys::PAIR_ID, text("0123456789abcdef0123456789abcdef")),
            (keys::PROJECTION_DIM, Value::U32(DIM as u32)),
            (keys::IMAGE_SIZE, Value::U32(128)),
            (keys::IMAGE_MEAN, f32s(&[0.48, 0.46, 0.41])),
            (keys::IMAGE_STD, f32s(&[0.27, 0.26, 0.28])),
            (keys::PAD_RGB, Value::Array(Array::U8(vec![122, 116, 104]))),
            (keys::PAD_ANCHOR, text("centre")),
            (keys::GRID, Value::U32(2)),
            (keys::ENCODERS, strings(&["convnext", "dinov2"])),
            (keys::VIT_INPUT, Value::U32(28)),
            (keys::VIT_BOARD, Value::U32(56)),
            (keys::CONVNEXT_INPUT, Value::U32(64)),
            (keys::CONVNEXT_BOARD, Value::U32(128)),
            (keys::CONVNEXT_DEPTHS, u32s(&[1, 2, 1])),
            (keys::CONVNEXT_WIDTHS, u32s(&WIDTHS)),
            (keys::CONVNEXT_EPS, Value::F32(1e-5)),
            (keys::DINO_BLOCK_COUNT, Value::U32(2)),
            (keys::DINO_EMBEDDING_LENGTH, Value::U32(DINO as u32)),
            (keys::DINO_FEED_FORWARD_LENGTH, Value::U32(HIDDEN as u32)),
            (keys::DINO_HEAD_COUNT, Value::U32(2)),
            (keys::DINO_PATCH, Value::U32(7)),
            (keys::DINO_EPS, Value::F32(1e-6)),
            (keys::DINO_MLP, text("swiglu")),
            (keys::DINO_MEAN, f32s(&[0.485, 0.456, 0.406])),
            (keys::DINO_STD, f32s(&[0.229, 0.224, 0.225])),
            (keys::PROJ_EPS, Value::F32(1e-5)),
        ];
        let mut tensors = Vec::new();
        let mut add = |template: &str, i: usize, j: usize, rows: usize, cols: usize| tensors.push((names::at(template, i, j), rows, cols));
        add(names::CNX_STEM_W, 0, 0, WIDTHS[0], 48);
        for name in [names::CNX_STEM_B, names::CNX_STEM_NORM_W, names::CNX_STEM_NORM_B] {
            add(name, 0, 0, 1, WIDTHS[0]);
        }
        for (i, (depth, w)) in [1, 2, 1].into_iter().zip(WIDTHS).enumerate() {
            if i > 0 {
                add(names::CNX_DOWN_NORM_W, i, 0, 1, WIDTHS[i - 1]);
                add(names::CNX_DOWN_NORM_B, i, 0, 1, WIDTHS[i - 1]);
                add(names::CNX_DOWN_W, i, 0, w, 4 * WIDTHS[i - 1]);
                add(names::CNX_DOWN_B, i, 0, 1, w);
            }
            for j in 0..depth {
                add(names::CNX_DW_W, i, j, 49, w);
                add(names::CNX_FC1_W, i, j, 4 * w, w);
                add(names::CNX_FC1_B, i, j, 1, 4 * w);
                add(names::CNX_FC2_W, i, j, w, 4 * w);
                for name in [names::CNX_DW_B, names::CNX_NORM_W, names::CNX_NORM_B, names::CNX_FC2_B, names::CNX_GAMMA] {
                    add(name, i, j, 1, w);
                }
            }
        }
        add(names::CNX_HEAD_NORM_W, 0, 0, 1, WIDTHS[2]);
        add(names::CNX_HEAD_NORM_B, 0, 0, 1, WIDTHS[2]);
        add(names::DINO_PATCH_W, 0, 0, DINO, 147);
        add(names::DINO_PATCH_B, 0, 0, 1, DINO);
        add(names::DINO_CLS, 0, 0, 1, DINO);
        add(names::DINO_POS, 0, 0, 17, DINO);
        for i in 0..2 {
            for name in [names::DINO_NORM1_W, names::DINO_NORM1_B, names::DINO_PROJ_B, names::DINO_LS1, names::DINO_NORM2_W] {
                add(name, i, 0, 1, DINO);
            }
            for name in [names::DINO_NORM2_B, names::DINO_W3_B, names::DINO_LS2] {
                add(name, i, 0, 1, DINO);
            }
            add(names::DINO_QKV_W, i, 0, 3 * DINO, DINO);
            add(names::DINO_QKV_B, i, 0, 1, 3 * DINO);
            add(names::DINO_PROJ_W, i, 0, DINO, DINO);
            add(names::DINO_W12_W, i, 0, 2 * HIDDEN, DINO);
            add(names::DINO_W12_B, i, 0, 1, 2 * HIDDEN);
            add(names::DINO_W3_W, i, 0, DINO, HIDDEN);
        }
        add(names::DINO_NORM_W, 0, 0, 1, DINO);
        add(names::DINO_NORM_B, 0, 0, 1, DINO);
        add(names::PROJ_W, 0, 0, DIM, WIDTHS[2] + DINO);
        for name in [names::PROJ_B, names::PROJ_NORM_W, names::PROJ_NORM_B, names::START_IMG, names::END_IMG] {
            add(name, 0, 0, 1, DIM);
        }
        Model { metadata, tensors, filled: HashMap::new() }
    }

    fn with(mut self, key: &str, value: Value) -> Model {
        self.metadata.iter_mut().find(|(k, _)| *k == key).unwrap().1 = value;
        self
    }

    /// Writes the file and opens it.
    fn open(&self) -> Gguf {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mmproj.gguf");
        let mut metadata = vec![(keys::ARCHITECTURE.to_owned(), Value::Str(keys::ARCH_VISION.into()))];
        metadata.extend(self.metadata.iter().map(|(key, value)| (Half::Vision.key(key), value.clone())));
        let dims = |rows: usize, cols: usize| if rows == 1 { vec![cols] } else { vec![cols, rows] };
        let plan =
            |(name, rows, cols): &(String, usize, usize)| TensorPlan { name: name.clone(), ty: GgmlType::F32, dims: dims(*rows, *cols) };
        let plan = Plan { metadata, tensors: self.tensors.iter().map(plan).collect(), alignment: 32 };
        let mut writer = Writer::create(&path, plan).unwrap();
        for (name, rows, cols) in &self.tensors {
            // A tensor's values depend on its name only.
            let mut state = name.bytes().fold(7u64, |s, b| s.wrapping_mul(31).wrapping_add(b.into()));
            let scale = 1.7 / if *rows == 1 { 4.0 } else { (*cols as f32).sqrt() };
            let shift = if name.contains("norm") && name.ends_with("weight") { 1.0 } else { 0.0 };
            for _ in 0..rows * cols {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let random = shift + scale * ((state >> 40) as f32 / (1 << 23) as f32 - 1.0);
                writer.write(&self.filled.get(name).copied().unwrap_or(random).to_le_bytes()).unwrap();
            }
        }
        writer.finish().unwrap().commit().unwrap();
        Gguf::open(&path).unwrap()
    }

    /// What loading says.
    fn refusal(&self) -> String {
        let error = Vision::load(&target(1), &self.open()).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        error.to_string()
    }
}

fn target(threads: usize) -> CpuTarget {
    CpuTarget::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap()
}

fn noise(width: usize, height: usize) -> Picture {
    Picture::from_rgb(width, height, (0..width * height * 3).map(|i| (i * i * 31 % 253) as u8).collect()).unwrap()
}

fn encode(model: &Model, picture: &Picture) -> (Vec<f32>, Recorder) {
    let target = target(2);
    let vision = Vision::load(&target, &model.open()).unwrap();
    let mut recorder = Recorder::default();
    let rows = vision.encode(&target, picture, &mut recorder).unwrap();
    assert_eq!((rows.count, rows.dim), (vision.image_rows(), vision.dim()));
    assert_eq!(rows.rows.len(), rows.count * rows.dim);
    assert_eq!(recorder.stages["rows"].1, rows.rows);
    (rows.rows, recorder)
}

#[test]
fn five_views_and_their_stages() {
    let model = Model::five_views();
    let (rows, recorder) = encode(&model, &noise(90, 50));
    assert_eq!(rows.len(), 95 * DIM);
    let shapes: Vec<_> = recorder.stages.iter().map(|(name, (shape, _))| (name.as_str(), shape.clone())).collect();
    let mut want = vec![("image", vec![3, 128, 128]), ("rows", vec![95, DIM])];
    let names: Vec<String> = (0..5).flat_map(|k| [format!("view.{k}.convnext"), format!("view.{k}.dinov2")]).collect();
    for name in &names {
        want.push((name, vec![17, if name.ends_with("convnext") { WIDTHS[2] } else { DINO }]));
    }
    assert_eq!(shapes, want);
    // The same start and end row around every view, and views that differ.
    for view in rows.chunks_exact(19 * DIM) {
        assert_eq!(view[..DIM], rows[..DIM]);
        assert_eq!(view[18 * DIM..], rows[18 * DIM..19 * DIM]);
    }
    assert!(rows[19 * DIM..38 * DIM] != rows[38 * DIM..57 * DIM], "tiles differ");
    // The token in front of a map is its mean.
    let (_, map) = &recorder.stages["view.3.convnext"];
    for c in 0..WIDTHS[2] {
        let mean = (1..17).map(|r| map[r * WIDTHS[2] + c]).sum::<f32>() / 16.0;
        assert!((mean - map[c]).abs() < 1e-5);
    }
}

#[test]
fn a_view_does_not_depend_on_its_company() {
    let (five, _) = encode(&Model::five_views(), &noise(90, 50));
    let (one, _) = encode(&Model::five_views().with(keys::GRID, Value::U32(0)), &noise(90, 50));
    assert_eq!(one.len(), 19 * DIM);
    assert!(five[..19 * DIM] == one, "the whole picture alone");
    let target = target(1);
    let vision = Vision::load(&target, &Model::five_views().open()).unwrap();
    assert!(vision.encode(&target, &noise(90, 50), &mut ()).unwrap().rows == five, "one thread");
}

#[test]
fn padding_alone_gives_equal_views() {
    let flat = Picture::from_rgb(1, 1, vec![122, 116, 104]).unwrap();
    let (rows, _) = encode(&Model::five_views(), &flat);
    let views: Vec<_> = rows.chunks_exact(19 * DIM).collect();
    for view in &views[2..] {
        // The cubic's four weights add up to 1 but for rounding, differently from column to column.
        let worst = views[1].iter().zip(*view).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{worst}");
    }
}

#[test]
fn every_shape_of_picture_gives_the_same_number_of_rows() {
    let target = target(2);
    let file = Model::five_views().with(keys::PAD_ANCHOR, Value::Str("top_left".into())).open();
    let vision = Vision::load(&target, &file).unwrap();
    for (w, h) in [(1, 1), (2, 1), (1, 10_000), (3, 1), (100, 10), (20_000, 1)] {
        assert_eq!(vision.encode(&target, &noise(w, h), &mut ()).unwrap().count, 95, "{w}×{h}");
    }
}

#[test]
fn the_order_of_features_is_the_files() {
    let model = Model::five_views().with(keys::ENCODERS, strings(&["dinov2", "convnext"]));
    let (swapped, recorder) = encode(&model, &noise(30, 20));
    let (plain, reference) = encode(&Model::five_views(), &noise(30, 20));
    assert!(swapped != plain, "the projection sees another order");
    for (name, stage) in recorder.stages.iter().filter(|(name, _)| name.starts_with("view")) {
        assert!(*stage == reference.stages[name], "{name}");
    }
}

#[test]
fn a_small_map_is_repeated() {
    // ConvNeXt sees the ViT's views, enlarged to 32: its last map is 2 × 2 for 4 × 4 patches.
    let model = Model::five_views().with(keys::CONVNEXT_INPUT, Value::U32(32)).with(keys::CONVNEXT_BOARD, Value::U32(0));
    let (_, recorder) = encode(&model, &noise(77, 60));
    let (shape, map) = &recorder.stages["view.2.convnext"];
    assert_eq!(shape, &[17, WIDTHS[2]]);
    let token = |y: usize, x: usize| &map[(1 + 4 * y + x) * WIDTHS[2]..][..WIDTHS[2]];
    for y in 0..4 {
        for x in 0..4 {
            assert_eq!(token(y, x), token(y / 2 * 2, x / 2 * 2));
        }
    }
    assert_ne!(token(0, 0), token(0, 2));
}

#[test]
fn metadata_out_of_range_are_refused_by_name() {
    let one = |v: u32| Value::U32(v);
    let cases = [
        (keys::PROJECTION_DIM, one(0)),
        (keys::PROJECTION_DIM, one(u32::MAX)),
        (keys::IMAGE_SIZE, one(0)),
        (keys::IMAGE_SIZE, one(1 << 20)),
        (keys::IMAGE_SIZE, Value::Str("128".into())),
        (keys::IMAGE_MEAN, f32s(&[f32::NAN, 0.0, 0.0])),
        (keys::IMAGE_MEAN, f32s(&[0.5, 0.5])),
        (keys::IMAGE_STD, f32s(&[0.0, 0.3, 0.3])),
        (keys::IMAGE_STD, f32s(&[f32::INFINITY, 0.3, 0.3])),
        (keys::PAD_RGB, Value::Array(Array::U8(vec![1, 2]))),
        (keys::PAD_ANCHOR, Value::Str("left".into())),
        (keys::GRID, one(100)),
        (keys::ENCODERS, strings(&["convnext", "clip"])),
        (keys::ENCODERS, strings(&["convnext", "convnext"])),
        (keys::ENCODERS, strings(&[])),
        (keys::VIT_INPUT, one(0)),
        (keys::VIT_BOARD, one(57)),
        (keys::CONVNEXT_INPUT, one(60)),
        (keys::CONVNEXT_BOARD, one(127)),
        (keys::CONVNEXT_DEPTHS, u32s(&[])),
        (keys::CONVNEXT_DEPTHS, u32s(&[1, 0, 1])),
        (keys::CONVNEXT_DEPTHS, u32s(&[1; 9])),
        (keys::CONVNEXT_WIDTHS, u32s(&[32, 64])),
        (keys::CONVNEXT_WIDTHS, u32s(&[32, 64, 1 << 30])),
        (keys::CONVNEXT_EPS, Value::F32(0.0)),
        (keys::DINO_BLOCK_COUNT, one(u32::MAX)),
        (keys::DINO_EMBEDDING_LENGTH, one(0)),
        (keys::DINO_FEED_FORWARD_LENGTH, one(0)),
        (keys::DINO_HEAD_COUNT, one(5)),
        (keys::DINO_PATCH, one(0)),
        (keys::DINO_PATCH, one(9)),
        (keys::DINO_EPS, Value::F32(f32::NAN)),
        (keys::DINO_MLP, Value::Str("relu".into())),
        (keys::DINO_MLP, Value::Str("x".repeat(100_000))),
        (keys::ENCODERS, strings(&["convnext"; 100_000])),
        (keys::DINO_MEAN, f32s(&[])),
        (keys::DINO_STD, f32s(&[-1.0, 1.0, 1.0])),
        (keys::PROJ_EPS, Value::F32(-1e-5)),
    ];
    for (key, value) in cases {
        let text = Model::five_views().with(key, value.clone()).refusal();
        assert!(text.len() < 1000, "{key}: {} bytes of message", text.len());
        assert!(text.contains(&Half::Vision.key(key)), "{key} = {value:?}: {text}");
    }
    for i in 0..Model::five_views().metadata.len() {
        let mut model = Model::five_views();
        let (key, _) = model.metadata.remove(i);
        let text = model.refusal();
        assert!(text.contains(&Half::Vision.key(key)), "{key} missing: {text}");
    }
}

#[test]
fn tensors_must_have_the_shapes_that_metadata_call_for() {
    let count = Model::five_views().tensors.len();
    for i in 0..count {
        let mut model = Model::five_views();
        model.tensors[i].2 += 32;
        let name = model.tensors[i].0.clone();
        let text = model.refusal();
        assert!(text.contains(&name) && text.contains("expected ["), "{name}: {text}");
    }
    let mut model = Model::five_views();
    let (name, ..) = model.tensors.remove(count / 2);
    let text = model.refusal();
    assert!(text.contains(&name) && text.contains("missing"), "{text}");
    // One that nothing asks for would be left out of the result.
    let text = Model::five_views().with(keys::DINO_BLOCK_COUNT, Value::U32(1)).refusal();
    assert!(text.contains("without this tensor: tensor \"v.dino.1."), "{text}");
    let mut model = Model::five_views();
    model.tensors.push(("a.stranger".into(), 1, 4));
    Vision::load(&target(1), &model.open()).unwrap();
}

#[test]
fn a_row_that_is_no_number_is_an_error() {
    let mut model = Model::five_views();
    model.filled.insert(names::PROJ_NORM_B.into(), f32::NAN);
    let target = target(1);
    let vision = Vision::load(&target, &model.open()).unwrap();
    let error = vision.encode(&target, &noise(4, 4), &mut ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("an image row at position 1 is not a finite number"), "{error}");
}

#[test]
fn a_language_half_is_no_vision_half() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let metadata = vec![(keys::ARCHITECTURE.to_owned(), Value::Str("llama".into()))];
    let tensors = vec![TensorPlan { name: "x".into(), ty: GgmlType::F32, dims: vec![1] }];
    let mut writer = Writer::create(&path, Plan { metadata, tensors, alignment: 32 }).unwrap();
    writer.write(&[0; 4]).unwrap();
    writer.finish().unwrap().commit().unwrap();
    let error = Vision::load(&target(1), &Gguf::open(Path::new(&path)).unwrap()).err().unwrap();
    assert!(error.to_string().contains("architecture `llama` is no vision half"), "{error}");
}
