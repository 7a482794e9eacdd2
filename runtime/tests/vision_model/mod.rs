//! Small vision halves of any layout, written as GGUF: weights are random, and a tensor's depend on its name only.

#![allow(dead_code)] // each test file uses its own part
use std::collections::HashMap;

use sphinx_quant::ErrorKind;
use sphinx_quant::GgmlType;
use sphinx_quant::gguf::{Array, Gguf, Plan, TensorPlan, Value, Writer, keys, keys::Half, names};
use sphinx_runtime::vision::{ImageRows, Picture, Recorder, Vision};
use sphinx_targets::cpu::{CpuOptions, CpuTarget};

pub const WIDTHS: [usize; 3] = [32, 64, 96];
pub const DINO: usize = 64;
pub const DINO_HIDDEN: usize = 96;
pub const CLIP: usize = 48;
pub const EVA: usize = 40;
pub const QUERIES: usize = 5;
pub const QF: usize = 36;
pub const DIM: usize = 48;
/// Heads of CLIP, EVA and the Q-Former.
pub const HEADS: usize = 2;

/// A vision half to be written: metadata by our key, tensors `[rows, cols]` by name.
#[derive(Clone)]
pub struct Model {
    pub metadata: Vec<(&'static str, Value)>,
    pub tensors: Vec<(String, usize, usize)>,
    /// Tensors that hold one value throughout.
    pub filled: HashMap<String, f32>,
}

pub fn u32s(values: &[usize]) -> Value {
    Value::Array(Array::U32(values.iter().map(|&v| v as u32).collect()))
}

pub fn f32s(values: &[f32]) -> Value {
    Value::Array(Array::F32(values.to_vec()))
}

pub fn strings(values: &[&str]) -> Value {
    Value::Array(Array::Str(values.iter().map(|&v| v.to_owned()).collect()))
}

pub fn text(value: &str) -> Value {
    Value::Str(value.into())
}

pub fn number(value: usize) -> Value {
    Value::U32(value as u32)
}

impl Model {
    /// Five views: a square of 128, ConvNeXt at 64, DINOv2 at 28 with patches of 7, 4 × 4 patches.
    pub fn five_views() -> Model {
        let metadata = vec![
            (keys::PAIR_ID, text("0123456789abcdef0123456789abcdef")),
            (keys::PROJECTION_DIM, number(DIM)),
            (keys::IMAGE_SIZE, number(128)),
            (keys::IMAGE_MEAN, f32s(&[0.48, 0.46, 0.41])),
            (keys::IMAGE_STD, f32s(&[0.27, 0.26, 0.28])),
            (keys::PAD_RGB, Value::Array(Array::U8(vec![122, 116, 104]))),
            (keys::PAD_ANCHOR, text("centre")),
            (keys::GRID, number(2)),
            (keys::ENCODERS, strings(&["convnext", "dinov2"])),
            (keys::VIT_INPUT, number(28)),
            (keys::VIT_BOARD, number(56)),
            (keys::CONVNEXT_INPUT, number(64)),
            (keys::CONVNEXT_BOARD, number(128)),
            (keys::CONVNEXT_DEPTHS, u32s(&[1, 2, 1])),
            (keys::CONVNEXT_WIDTHS, u32s(&WIDTHS)),
            (keys::CONVNEXT_EPS, Value::F32(1e-5)),
            (keys::DINO_BLOCK_COUNT, number(2)),
            (keys::DINO_EMBEDDING_LENGTH, number(DINO)),
            (keys::DINO_FEED_FORWARD_LENGTH, number(DINO_HIDDEN)),
            (keys::DINO_HEAD_COUNT, number(2)),
            (keys::DINO_PATCH, number(7)),
            (keys::DINO_EPS, Value::F32(1e-6)),
            (keys::DINO_MLP, text("swiglu")),
            (keys::DINO_MEAN, f32s(&[0.485, 0.456, 0.406])),
            (keys::DINO_STD, f32s(&[0.229, 0.224, 0.225])),
            (keys::PROJ_EPS, Value::F32(1e-5)),
        ];
        let mut model = Model { metadata, tensors: Vec::new(), filled: HashMap::new() };
        model.add_convnext();
        model.add_dinov2();
        model.add(names::PROJ_W, 0, 0, DIM, WIDTHS[2] + DINO);
        for name in [names::PROJ_B, names::PROJ_NORM_W, names::PROJ_NORM_B, names::START_IMG, names::END_IMG] {
            model.add(name, 0, 0, 1, DIM);
        }
        model
    }

    /// All encoders and `1 + grid²` views: tiles of 28 cut from the square, ConvNeXt at 32 from the same tiles, its 2 × 2 map
    /// repeated to 4 × 4 patches.
    pub fn all_four(grid: usize) -> Model {
        let mut model = Model::five_views()
            .with(keys::GRID, number(grid))
            .with(keys::IMAGE_SIZE, number(28 * grid.max(1)))
            .with(keys::VIT_BOARD, number(28 * grid))
            .with(keys::CONVNEXT_INPUT, number(32))
            .with(keys::CONVNEXT_BOARD, number(0))
            .with(keys::ENCODERS, strings(&["clip", "convnext", "dinov2"]))
            .with(keys::VIEW_ROWS, strings(&["qformer", "features"]))
            .with(keys::CLIP_BLOCK_COUNT, number(2))
            .with(keys::CLIP_EMBEDDING_LENGTH, number(CLIP))
            .with(keys::CLIP_FEED_FORWARD_LENGTH, number(4 * CLIP))
            .with(keys::CLIP_HEAD_COUNT, number(HEADS))
            .with(keys::CLIP_PATCH, number(7))
            .with(keys::CLIP_EPS, Value::F32(1e-5))
            .with(keys::EVA_BLOCK_COUNT, number(2))
            .with(keys::EVA_EMBEDDING_LENGTH, number(EVA))
            .with(keys::EVA_FEED_FORWARD_LENGTH, number(60))
            .with(keys::EVA_HEAD_COUNT, number(HEADS))
            .with(keys::EVA_PATCH, number(7))
            .with(keys::EVA_EPS, Value::F32(1e-6))
            .with(keys::QF_BLOCK_COUNT, number(3))
            .with(keys::QF_EMBEDDING_LENGTH, number(QF))
            .with(keys::QF_FEED_FORWARD_LENGTH, number(56))
            .with(keys::QF_HEAD_COUNT, number(HEADS))
            .with(keys::QF_EPS, Value::F32(1e-12))
            .with(keys::QF_QUERIES, number(QUERIES))
            .with(keys::QF_CROSS_EVERY, number(2));
        model.add_clip();
        model.add_qformer();
        model.tensors.retain(|(name, ..)| name != names::PROJ_W);
        model.add(names::PROJ_W, 0, 0, DIM, CLIP + WIDTHS[2] + DINO);
        model
    }

    pub fn with(mut self, key: &'static str, value: Value) -> Model {
        self.metadata.retain(|(k, _)| *k != key);
        self.metadata.push((key, value));
        self
    }

    /// With skip tokens, `[rows, DIM]` of them in all, `tokens` for each empty sub-image.
    pub fn skipping(self, rows: usize, tokens: usize) -> Model {
        let mut model = self.with(keys::SKIP_ENABLED, Value::Bool(true)).with(keys::SKIP_TOKENS, number(tokens));
        model.add(names::SKIP_TOKEN, 0, 0, rows, DIM);
        model
    }

    pub fn add(&mut self, template: &str, i: usize, j: usize, rows: usize, cols: usize) {
        self.tensors.push((names::at(template, i, j), rows, cols));
    }

    /// A linear layer `[out, in]` and its bias.
    fn linear(&mut self, weight: &str, bias: &str, i: usize, out: usize, inputs: usize) {
        self.add(weight, i, 0, out, inputs);
        self.add(bias, i, 0, 1, out);
    }

    fn vectors(&mut self, templates: &[&str], i: usize, width: usize) {
        for template in templates {
            self.add(template, i, 0, 1, width);
        }
    }

    fn add_convnext(&mut self) {
        self.add(names::CNX_STEM_W, 0, 0, WIDTHS[0], 48);
        self.vectors(&[names::CNX_STEM_B, names::CNX_STEM_NORM_W, names::CNX_STEM_NORM_B], 0, WIDTHS[0]);
        for (i, (depth, w)) in [1, 2, 1].into_iter().zip(WIDTHS).enumerate() {
            if i > 0 {
                self.vectors(&[names::CNX_DOWN_NORM_W, names::CNX_DOWN_NORM_B], i, WIDTHS[i - 1]);
                self.linear(names::CNX_DOWN_W, names::CNX_DOWN_B, i, w, 4 * WIDTHS[i - 1]);
            }
            for j in 0..depth {
                self.add(names::CNX_DW_W, i, j, 49, w);
                self.add(names::CNX_FC1_W, i, j, 4 * w, w);
                self.add(names::CNX_FC1_B, i, j, 1, 4 * w);
                self.add(names::CNX_FC2_W, i, j, w, 4 * w);
                for name in [names::CNX_DW_B, names::CNX_NORM_W, names::CNX_NORM_B, names::CNX_FC2_B, names::CNX_GAMMA] {
                    self.add(name, i, j, 1, w);
                }
            }
        }
        self.vectors(&[names::CNX_HEAD_NORM_W, names::CNX_HEAD_NORM_B], 0, WIDTHS[2]);
    }

    fn add_dinov2(&mut self) {
        self.linear(names::DINO_PATCH_W, names::DINO_PATCH_B, 0, DINO, 147);
        self.add(names::DINO_CLS, 0, 0, 1, DINO);
        self.add(names::DINO_POS, 0, 0, 17, DINO);
        for i in 0..2 {
            self.vectors(&[names::DINO_NORM1_W, names::DINO_NORM1_B, names::DINO_NORM2_W, names::DINO_NORM2_B], i, DINO);
            self.vectors(&[names::DINO_LS1, names::DINO_LS2], i, DINO);
            self.linear(names::DINO_QKV_W, names::DINO_QKV_B, i, 3 * DINO, DINO);
            self.linear(names::DINO_PROJ_W, names::DINO_PROJ_B, i, DINO, DINO);
            self.linear(names::DINO_W12_W, names::DINO_W12_B, i, 2 * DINO_HIDDEN, DINO);
            self.linear(names::DINO_W3_W, names::DINO_W3_B, i, DINO, DINO_HIDDEN);
        }
        self.vectors(&[names::DINO_NORM_W, names::DINO_NORM_B], 0, DINO);
    }

    fn add_clip(&mut self) {
        self.add(names::CLIP_PATCH_W, 0, 0, CLIP, 147);
        self.add(names::CLIP_CLS, 0, 0, 1, CLIP);
        self.add(names::CLIP_POS, 0, 0, 17, CLIP);
        self.vectors(&[names::CLIP_PRE_NORM_W, names::CLIP_PRE_NORM_B, names::CLIP_NORM_W, names::CLIP_NORM_B], 0, CLIP);
        for i in 0..2 {
            self.vectors(&[names::CLIP_NORM1_W, names::CLIP_NORM1_B, names::CLIP_NORM2_W, names::CLIP_NORM2_B], i, CLIP);
            self.linear(names::CLIP_QKV_W, names::CLIP_QKV_B, i, 3 * CLIP, CLIP);
            self.linear(names::CLIP_PROJ_W, names::CLIP_PROJ_B, i, CLIP, CLIP);
            self.linear(names::CLIP_FC1_W, names::CLIP_FC1_B, i, 4 * CLIP, CLIP);
            self.linear(names::CLIP_FC2_W, names::CLIP_FC2_B, i, CLIP, 4 * CLIP);
        }
    }

    fn add_qformer(&mut self) {
        self.linear(names::EVA_PATCH_W, names::EVA_PATCH_B, 0, EVA, 147);
        self.add(names::EVA_CLS, 0, 0, 1, EVA);
        self.add(names::EVA_POS, 0, 0, 17, EVA);
        self.vectors(&[names::EVA_NORM_W, names::EVA_NORM_B], 0, EVA);
        for i in 0..2 {
            self.vectors(&[names::EVA_NORM1_W, names::EVA_NORM1_B, names::EVA_NORM2_W, names::EVA_NORM2_B], i, EVA);
            self.linear(names::EVA_QKV_W, names::EVA_QKV_B, i, 3 * EVA, EVA);
            self.linear(names::EVA_PROJ_W, names::EVA_PROJ_B, i, EVA, EVA);
            self.linear(names::EVA_FC1_W, names::EVA_FC1_B, i, 60, EVA);
            self.linear(names::EVA_FC2_W, names::EVA_FC2_B, i, EVA, 60);
        }
        self.add(names::QF_QUERY, 0, 0, QUERIES, QF);
        self.vectors(&[names::QF_EMBD_NORM_W, names::QF_EMBD_NORM_B], 0, QF);
        for i in 0..3 {
            self.linear(names::QF_Q_W, names::QF_Q_B, i, QF, QF);
            self.linear(names::QF_K_W, names::QF_K_B, i, QF, QF);
            self.linear(names::QF_V_W, names::QF_V_B, i, QF, QF);
            self.linear(names::QF_PROJ_W, names::QF_PROJ_B, i, QF, QF);
            self.vectors(&[names::QF_NORM_W, names::QF_NORM_B, names::QF_FFN_NORM_W, names::QF_FFN_NORM_B], i, QF);
            if i % 2 == 0 {
                self.linear(names::QF_CROSS_Q_W, names::QF_CROSS_Q_B, i, QF, QF);
                self.linear(names::QF_CROSS_K_W, names::QF_CROSS_K_B, i, QF, EVA);
                self.linear(names::QF_CROSS_V_W, names::QF_CROSS_V_B, i, QF, EVA);
                self.linear(names::QF_CROSS_PROJ_W, names::QF_CROSS_PROJ_B, i, QF, QF);
                self.vectors(&[names::QF_CROSS_NORM_W, names::QF_CROSS_NORM_B], i, QF);
            }
            self.linear(names::QF_FC1_W, names::QF_FC1_B, i, 56, QF);
            self.linear(names::QF_FC2_W, names::QF_FC2_B, i, QF, 56);
        }
        self.linear(names::QPROJ_W, names::QPROJ_B, 0, DIM, QF);
        self.vectors(&[names::QPROJ_NORM_W, names::QPROJ_NORM_B], 0, DIM);
    }

    /// Writes the file and opens it.
    pub fn open(&self) -> Gguf {
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

    pub fn load(&self, target: &CpuTarget) -> Vision<CpuTarget> {
        Vision::load(target, &self.open()).unwrap()
    }

    /// What loading says.
    pub fn refusal(&self) -> String {
        let error = Vision::load(&target(1), &self.open()).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        error.to_string()
    }
}

pub fn target(threads: usize) -> CpuTarget {
    CpuTarget::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap()
}

pub fn noise(width: usize, height: usize) -> Picture {
    Picture::from_rgb(width, height, (0..width * height * 3).map(|i| (i * i * 31 % 253) as u8).collect()).unwrap()
}

pub fn flat(width: usize, height: usize, colour: [u8; 3]) -> Picture {
    Picture::from_rgb(width, height, colour.repeat(width * height)).unwrap()
}

/// Every view encoded and seen.
pub fn observed(target: &CpuTarget, vision: &Vision<CpuTarget>, picture: &Picture) -> (ImageRows, Recorder) {
    let mut recorder = Recorder::default();
    let rows = vision.encode(target, picture, &mut recorder).unwrap();
    assert_eq!((rows.count, rows.dim), (vision.rows_of(picture.width(), picture.height()), vision.dim()));
    assert_eq!((rows.rows.len(), &rows.pictures), (rows.count * rows.dim, &vec![rows.count]));
    assert_eq!(recorder.stages["rows"].1, rows.rows);
    (rows, recorder)
}
