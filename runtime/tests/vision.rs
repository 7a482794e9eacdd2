//! The vision half over a small random model: layout by metadata, views, batching, and what is refused.

use std::path::Path;

use sphinx_quant::gguf::{Array, Gguf, Plan, TensorPlan, Value, Writer, keys, keys::Half, names};
use sphinx_quant::{ErrorKind, GgmlType};
use sphinx_runtime::vision::{ImageRows, Picture, Recorder, Vision, VisionParams};

mod vision_model;

use vision_model::{DIM, DINO, Model, WIDTHS, f32s, noise, observed, strings, target, u32s};

fn encode(model: &Model, picture: &Picture) -> (Vec<f32>, Recorder) {
    let target = target(2);
    let (rows, recorder) = observed(&target, &model.load(&target), picture);
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
        (keys::PAD_ORDER, Value::Str("resize".into())),
        (keys::PAD_ORDER, one(1)),
        (keys::GRID, one(100)),
        (keys::ENCODERS, strings(&["convnext", "vit"])),
        (keys::ENCODERS, strings(&["convnext", "convnext"])),
        (keys::ENCODERS, strings(&[])),
        (keys::VIT_INPUT, one(0)),
        (keys::VIT_BOARD, one(57)),
        (keys::VIT_BOARD, one(1 << 16)),
        (keys::VIEW_ROWS, strings(&[])),
        (keys::VIEW_ROWS, strings(&["features", "features"])),
        (keys::VIEW_ROWS, strings(&["qformer"])),
        (keys::VIEW_ROWS, strings(&["features", "cls"])),
        (keys::VIEW_POOL_PARTS, one(1)),
        (keys::VIEW_TAGGED, one(0)),
        (keys::SKIP_ENABLED, one(1)),
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
    let of_all_four = [
        (keys::CLIP_BLOCK_COUNT, one(0)),
        (keys::CLIP_EMBEDDING_LENGTH, one(u32::MAX)),
        (keys::CLIP_FEED_FORWARD_LENGTH, one(1 << 20)),
        (keys::CLIP_HEAD_COUNT, one(7)),
        (keys::CLIP_PATCH, one(5)),
        (keys::CLIP_EPS, Value::F32(0.2)),
        (keys::CLIP_QUICK_GELU, one(1)),
        (keys::EVA_BLOCK_COUNT, one(5000)),
        (keys::EVA_EMBEDDING_LENGTH, one(0)),
        (keys::EVA_FEED_FORWARD_LENGTH, one(0)),
        (keys::EVA_HEAD_COUNT, one(3)),
        (keys::EVA_PATCH, one(3)),
        (keys::EVA_EPS, Value::F32(f32::INFINITY)),
        (keys::QF_BLOCK_COUNT, one(0)),
        (keys::QF_EMBEDDING_LENGTH, one(1 << 30)),
        (keys::QF_FEED_FORWARD_LENGTH, one(0)),
        (keys::QF_HEAD_COUNT, one(5)),
        (keys::QF_EPS, Value::F32(0.0)),
        (keys::QF_QUERIES, one(5000)),
        (keys::QF_CROSS_EVERY, one(0)),
        (keys::SKIP_TOKENS, one(0)),
        (keys::SKIP_TOKENS, one(5000)),
        (keys::SKIP_TAGGED, one(1)),
    ];
    for (key, value) in of_all_four {
        let text = Model::all_four(2).skipping(1, 1).with(key, value.clone()).refusal();
        assert!(text.contains(&Half::Vision.key(key)), "{key} = {value:?}: {text}");
    }
    let text = Model::all_four(2).with(keys::CLIP_PATCH, one(14)).refusal();
    assert!(text.contains("dinov2.patch_size` is 7, expected 14, which is the other encoder's"), "{text}");
    let huge = Model::five_views()
        .with(keys::GRID, one(9))
        .with(keys::CONVNEXT_BOARD, one(64 * 9))
        .with(keys::DINO_PATCH, one(1))
        .with(keys::VIT_INPUT, one(64))
        .with(keys::VIT_BOARD, one(64 * 9))
        .with(keys::PROJECTION_DIM, one(65_536));
    let text = huge.refusal();
    assert!(text.contains("projection_dim` is 65536, expected 1597 at most where a picture becomes 336118 rows"), "{text}");
    // An odd number of patches cannot be pooled, and skipping needs sub-images.
    let odd = Model::all_four(2)
        .with(keys::VIT_INPUT, one(21))
        .with(keys::VIT_BOARD, one(42))
        .with(keys::ENCODERS, strings(&["dinov2", "clip"]))
        .with(keys::VIEW_POOL_PARTS, Value::Bool(true));
    assert!(odd.refusal().contains("view.pool_parts` is true, expected false where views have 3 × 3 patches"));
    let whole = Model::all_four(0).skipping(1, 1);
    assert!(whole.refusal().contains("skip.enabled` is true, expected false where there are no sub-images"));
    for whole in [Model::five_views(), Model::all_four(2)] {
        for i in 0..whole.metadata.len() {
            let mut model = whole.clone();
            let (key, _) = model.metadata.remove(i);
            // Without a word on them, a view's rows are the features alone, and the Q-Former's tensors are too many.
            let about = if key == keys::VIEW_ROWS { "without this tensor".into() } else { Half::Vision.key(key) };
            let text = model.refusal();
            assert!(text.contains(&about), "{key} missing: {text}");
        }
    }
}

#[test]
fn tensors_must_have_the_shapes_that_metadata_call_for() {
    let all = Model::all_four(2).skipping(2, 2);
    for i in 0..all.tensors.len() {
        let mut model = all.clone();
        model.tensors[i].2 += 32;
        let name = model.tensors[i].0.clone();
        let text = model.refusal();
        assert!(text.contains(&name) && text.contains("expected ["), "{name}: {text}");
    }
    for rows in [1, 3, 6, 10] {
        let text = Model::all_four(2).skipping(rows, 2).refusal();
        assert!(text.contains("shape [") && text.contains("expected [8, 48]") && text.contains(names::SKIP_TOKEN), "{text}");
    }
    let mut model = Model::five_views();
    let (name, ..) = model.tensors.remove(model.tensors.len() / 2);
    let text = model.refusal();
    assert!(text.contains(&name) && text.contains("missing"), "{text}");
    // One that nothing asks for would be left out of the result.
    let text = Model::five_views().with(keys::DINO_BLOCK_COUNT, Value::U32(1)).refusal();
    assert!(text.contains("without this tensor: tensor \"v.dino.1."), "{text}");
    let mut model = Model::five_views();
    model.tensors.push(("a.stranger".into(), 1, 4));
    Vision::load(&target(1), &model.open()).unwrap();
}

/// Layouts of full size, read from metadata alone: none of them has a name here.
#[test]
fn layouts_are_data() {
    let one = |v: u32| Value::U32(v);
    let light = |grid: u32, input: u32| {
        Model::five_views()
            .with(keys::GRID, one(grid))
            .with(keys::IMAGE_SIZE, one(input * grid.max(1)))
            .with(keys::VIT_INPUT, one(224))
            .with(keys::VIT_BOARD, one(224 * grid))
            .with(keys::CONVNEXT_INPUT, one(input))
            .with(keys::CONVNEXT_BOARD, one(input * grid.max(1)))
            .with(keys::CONVNEXT_DEPTHS, u32s(&[3, 4, 30, 3]))
            .with(keys::CONVNEXT_WIDTHS, u32s(&[384, 768, 1536, 3072]))
            .with(keys::DINO_PATCH, one(14))
            .with(keys::DINO_BLOCK_COUNT, one(40))
            .with(keys::DINO_EMBEDDING_LENGTH, one(1536))
            .with(keys::DINO_HEAD_COUNT, one(24))
            .with(keys::DINO_FEED_FORWARD_LENGTH, one(4096))
    };
    let all = |model: Model, grid: u32| {
        let mut model = model
            .with(keys::ENCODERS, strings(&["clip", "convnext", "dinov2"]))
            .with(keys::VIEW_ROWS, strings(&["qformer", "features"]))
            .with(keys::GRID, one(grid));
        for (key, value) in [
            (keys::CLIP_BLOCK_COUNT, 24),
            (keys::CLIP_EMBEDDING_LENGTH, 1024),
            (keys::CLIP_FEED_FORWARD_LENGTH, 4096),
            (keys::CLIP_HEAD_COUNT, 16),
            (keys::CLIP_PATCH, 14),
            (keys::EVA_BLOCK_COUNT, 39),
            (keys::EVA_EMBEDDING_LENGTH, 1408),
            (keys::EVA_FEED_FORWARD_LENGTH, 6144),
            (keys::EVA_HEAD_COUNT, 16),
            (keys::EVA_PATCH, 14),
            (keys::QF_BLOCK_COUNT, 12),
            (keys::QF_EMBEDDING_LENGTH, 768),
            (keys::QF_FEED_FORWARD_LENGTH, 3072),
            (keys::QF_HEAD_COUNT, 12),
            (keys::QF_QUERIES, 32),
            (keys::QF_CROSS_EVERY, 2),
        ] {
            model = model.with(key, one(value));
        }
        model.with(keys::CLIP_EPS, Value::F32(1e-5)).with(keys::EVA_EPS, Value::F32(1e-6)).with(keys::QF_EPS, Value::F32(1e-12))
    };
    let nearest = |grid: u32| {
        let model = all(light(grid, 256).with(keys::CONVNEXT_BOARD, one(0)), grid);
        model.with(keys::IMAGE_SIZE, one(224 * grid.max(1)))
    };
    // As the table of variants has them: views, rows of a picture, width of the features.
    for (model, want) in [
        (light(0, 512), (1, 259, 4608)),
        (light(2, 512), (5, 1295, 4608)),
        (all(light(0, 512), 0), (1, 291, 5632)),
        (all(light(2, 512), 2), (5, 1455, 5632)),
        (nearest(0), (1, 291, 5632)),
        (nearest(2), (5, 1455, 5632)),
        (nearest(2).with(keys::VIEW_POOL_PARTS, Value::Bool(true)), (5, 687, 5632)),
        (nearest(3), (10, 2910, 5632)),
        (light(3, 512), (10, 2590, 4608)),
        (light(6, 512), (37, 9583, 4608)),
        (nearest(6).with(keys::IMAGE_SIZE, one(4608)), (37, 10_767, 5632)),
        (nearest(8).with(keys::IMAGE_SIZE, one(4608)), (65, 18_915, 5632)),
        (all(light(8, 512), 8), (65, 18_915, 5632)),
        (all(light(9, 512), 9), (82, 23_862, 5632)),
        (nearest(3).with(keys::VIEW_TAGGED, Value::Bool(false)), (10, 2890, 5632)),
        (light(2, 512).with(keys::ENCODERS, strings(&["dinov2"])), (5, 1295, 1536)),
        (light(2, 512).with(keys::ENCODERS, strings(&["convnext"])), (5, 1295, 3072)),
        (nearest(2).with(keys::ENCODERS, strings(&["clip"])).with(keys::VIEW_ROWS, strings(&["features"])), (5, 1295, 1024)),
    ] {
        let mut model = model;
        model.tensors.truncate(1);
        let params = VisionParams::read(&model.open()).unwrap();
        assert_eq!((params.views(), params.image_rows(), params.features()), want);
        assert_eq!(params.rows_of(1000, 100), params.image_rows(), "nothing is skipped");
    }
}

/// A square of 192 in 3 × 3 tiles, and a few sets of encoders, each in its own order.
#[test]
fn any_encoders_over_any_grid() {
    let three = Model::five_views().with(keys::GRID, Value::U32(3)).with(keys::IMAGE_SIZE, Value::U32(192));
    let three = three.with(keys::VIT_BOARD, Value::U32(84)).with(keys::CONVNEXT_BOARD, Value::U32(192));
    let (rows, recorder) = encode(&three, &noise(90, 50));
    assert_eq!((rows.len(), recorder.stages.len()), (190 * DIM, 22));
    let (reference, five) = encode(&Model::five_views(), &noise(90, 50));
    assert_eq!(reference.len(), 95 * DIM);
    for (encoders, width, gone) in [
        (&["dinov2"][..], DINO, "v.cnx."),
        (&["convnext"][..], WIDTHS[2], "v.dino."),
        (&["dinov2", "convnext"][..], DINO + WIDTHS[2], "v.none."),
    ] {
        let mut model = Model::five_views().with(keys::ENCODERS, strings(encoders));
        model.tensors.retain(|(name, ..)| !name.starts_with(gone));
        model.tensors.iter_mut().find(|(name, ..)| name == names::PROJ_W).unwrap().2 = width;
        let (rows, seen) = encode(&model, &noise(90, 50));
        assert_eq!(rows.len(), 95 * DIM);
        for (name, stage) in seen.stages.iter().filter(|(name, _)| name.starts_with("view")) {
            assert!(*stage == five.stages[name], "{name}");
        }
    }
}

#[test]
fn pictures_are_joined_in_order() {
    let target = target(2);
    let vision = Model::five_views().load(&target);
    let one = vision.encode(&target, &noise(90, 50), &mut ()).unwrap();
    let two = vision.encode(&target, &noise(10, 50), &mut ()).unwrap();
    let both = ImageRows::join(&[one.clone(), two.clone()]);
    assert_eq!((both.count, both.dim, both.views), (190, DIM, 10));
    assert_eq!(both.pictures, [95, 95]);
    assert_eq!(both.rows, [one.rows.clone(), two.rows.clone()].concat());
    assert!(both.timings.total_s() >= one.timings.total_s() + two.timings.total_s() - 1e-9);
    let more = ImageRows::join(&[both, one.clone()]);
    assert_eq!((more.pictures, more.count), (vec![95, 95, 95], 285));
    assert_eq!(ImageRows::join(&[]), ImageRows::default());
    assert_eq!(ImageRows::join(std::slice::from_ref(&one)), one);
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
