//! From checkpoint to model files and back, on made-up checkpoints and, where they lie beside the repository, on the goldens.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sphinx_convert::checkpoint::Checkpoint;
use sphinx_convert::*;
use sphinx_quant::gguf::{Gguf, Value};
use sphinx_quant::recipe::Recipe;
use sphinx_quant::{ErrorKind, GgmlType};
use tempfile::TempDir;

fn recipe(name: &str) -> Recipe {
    Recipe::named(name).unwrap()
}

fn options(input: &Path, output: &Path, quant: &str, vision: &str) -> ConvertOptions {
    ConvertOptions { threads: 2, ..ConvertOptions::new(vec![input.to_owned()], output.to_owned(), recipe(quant), recipe(vision)) }
}

fn invention(output: &Path) -> SynthOptions {
    SynthOptions { seed: 5, threads: 2, ..SynthOptions::new("tiny", "nano", output.to_owned()) }
}

/// A made-up nano checkpoint, and a folder for what becomes of it.
fn nano() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("nano");
    synth(&invention(&checkpoint), &()).unwrap();
    (dir, checkpoint)
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// Both halves as bytes.
fn halves(language: &Path) -> [Vec<u8>; 2] {
    [read(language), read(&mmproj_path(language))]
}

fn str_key(g: &Gguf, key: &str) -> String {
    match g.get(key) {
        Some(Value::Str(s)) => s.clone(),
        other => panic!("{key}: {other:?}"),
    }
}

fn floats(t: &sphinx_quant::Tensor) -> Vec<f32> {
    let mut out = vec![0.0; t.len()];
    sphinx_quant::block::dequantize(t.ty(), t.bytes(), &mut out);
    out
}

/// Collects what is told.
#[derive(Default)]
struct Told {
    warnings: Mutex<Vec<String>>,
    tensors: Mutex<usize>,
    total: Mutex<u64>,
    done: Mutex<u64>,
}

impl Progress for Told {
    fn begin(&self, _what: &str, total: u64) {
        *self.total.lock().unwrap() = total;
    }
    fn tensor(&self, _name: &str, _from: &str, _to: &str) {
        *self.tensors.lock().unwrap() += 1;
    }
    fn advance(&self, bytes: u64) {
        *self.done.lock().unwrap() += bytes;
    }
    fn warn(&self, message: &str) {
        self.warnings.lock().unwrap().push(message.to_owned());
    }
}

#[test]
fn files_do_not_depend_on_threads_or_budget() {
    let (dir, checkpoint) = nano();
    for (quant, vision) in [("F32", "F32"), ("Q8_0", "Q8_0"), ("Q4_K_M", "F16")] {
        let mut first = None;
        for (threads, memory) in [(1, None), (2, None), (4, Some(48 << 20))] {
            let folder = dir.path().join(format!("{quant}-{threads}"));
            std::fs::create_dir(&folder).unwrap();
            let output = folder.join("m.gguf");
            let o = ConvertOptions { threads, max_memory: memory, ..options(&checkpoint, &output, quant, vision) };
            let report = convert(&o, &()).unwrap();
            assert!(report.peak_bytes < 256 << 20 && !report.dry_run);
            let bytes = halves(&output);
            assert_eq!(report.bytes(), bytes.iter().map(|b| b.len() as u64).sum::<u64>());
            assert!(first.get_or_insert_with(|| bytes.clone()) == &bytes, "{quant} with {threads} threads");
            let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(left.len(), 2, "{left:?}");
        }
    }
}

#[test]
fn progress_adds_up_and_dry_runs_price_exactly() {
    let (dir, checkpoint) = nano();
    let output = dir.path().join("m.gguf");
    let o = options(&checkpoint, &output, "Q4_K_M", "Q8_0");
    let price = dry_run(&o, &()).unwrap();
    assert!(price.dry_run && price.pair_id.is_empty() && !output.exists());
    let told = Told::default();
    let report = convert(&o, &told).unwrap();
    assert_eq!(*told.total.lock().unwrap(), *told.done.lock().unwrap());
    assert_eq!(*told.tensors.lock().unwrap(), report.rows.len());
    assert!(told.warnings.lock().unwrap().is_empty(), "{:?}", told.warnings);
    let sizes = |r: &Report| r.files.iter().map(|f| (f.path.clone(), f.bytes, f.tensors)).collect::<Vec<_>>();
    assert_eq!(sizes(&price), sizes(&report));
    for f in &report.files {
        assert_eq!(f.bytes, std::fs::metadata(&f.path).unwrap().len());
        let g = Gguf::open(&f.path).unwrap();
        assert_eq!(g.tensors().len(), f.tensors);
        for t in g.tensors() {
            let row = report.rows.iter().find(|r| r.name == t.name()).unwrap();
            assert_eq!((row.to.as_str(), row.bytes_out as usize), (t.ty().name(), t.bytes().len()));
            assert_eq!(row.shape, t.dims().iter().rev().copied().collect::<Vec<_>>());
        }
    }
}

#[test]
fn quantising_a_whole_precision_file_equals_converting() {
    let (dir, checkpoint) = nano();
    let whole = dir.path().join("whole.gguf");
    let a = convert(&options(&checkpoint, &whole, "F32", "F32"), &()).unwrap();
    for name in ["Q8_0", "Q4_K_M", "Q4_0", "F16", "F32"] {
        let direct = dir.path().join(format!("direct-{name}.gguf"));
        let b = convert(&options(&checkpoint, &direct, name, name), &()).unwrap();
        assert_eq!(a.pair_id, b.pair_id);
        for (input, want) in [(whole.clone(), direct.clone()), (mmproj_path(&whole), mmproj_path(&direct))] {
            let output = dir.path().join("again.gguf");
            let o = QuantizeOptions {
                input,
                output: output.clone(),
                quant: recipe(name),
                imatrix: None,
                threads: 3,
                max_memory: None,
                force: true,
            };
            let c = quantize(&o, &()).unwrap();
            assert_eq!(c.pair_id, a.pair_id);
            assert_eq!(c.bytes(), std::fs::metadata(&output).unwrap().len());
            assert!(read(&output) == read(&want), "{name} {}", want.display());
        }
    }
}

#[test]
fn dequantising_gives_the_numbers_it_stands_for() {
    let (dir, checkpoint) = nano();
    let small = dir.path().join("small.gguf");
    convert(&options(&checkpoint, &small, "Q4_K_M", "Q8_0"), &()).unwrap();
    for input in [small.clone(), mmproj_path(&small)] {
        let output = dir.path().join("wide.gguf");
        let o = QuantizeOptions {
            input: input.clone(),
            output: output.clone(),
            quant: recipe("F32"),
            imatrix: None,
            threads: 2,
            max_memory: None,
            force: true,
        };
        quantize(&o, &()).unwrap();
        let (a, b) = (Gguf::open(&input).unwrap(), Gguf::open(&output).unwrap());
        assert_eq!(b.get("general.quantization_version"), None);
        assert_eq!(b.get("general.file_type"), Some(&Value::U32(0)));
        for (x, y) in a.tensors().iter().zip(b.tensors()) {
            assert_eq!((x.name(), x.dims(), y.ty()), (y.name(), y.dims(), GgmlType::F32));
            assert!(floats(x) == floats(y), "{}", x.name());
        }
    }
}

#[test]
fn existing_outputs_are_refused_before_any_work() {
    let (dir, checkpoint) = nano();
    let output = dir.path().join("m.gguf");
    std::fs::write(mmproj_path(&output), "mine").unwrap();
    let o = options(&checkpoint, &output, "Q8_0", "Q8_0");
    let told = Told::default();
    assert_eq!(convert(&o, &told).unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!((*told.tensors.lock().unwrap(), output.exists()), (0, false));
    assert_eq!(read(&mmproj_path(&output)), b"mine");
    convert(&ConvertOptions { force: true, ..o.clone() }, &()).unwrap();
    assert_eq!(convert(&o, &()).unwrap_err().kind(), ErrorKind::Usage);
    let q = QuantizeOptions {
        input: output.clone(),
        output: output.clone(),
        quant: recipe("F16"),
        imatrix: None,
        threads: 1,
        max_memory: None,
        force: true,
    };
    assert_eq!(quantize(&q, &()).unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(quantize(&QuantizeOptions { force: false, ..q }, &()).unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(synth(&invention(&checkpoint), &()).unwrap_err().kind(), ErrorKind::Usage);
    // What is no file is never replaced.
    let folder = dir.path().join("folder.gguf");
    std::fs::create_dir(&folder).unwrap();
    let message = convert(&ConvertOptions { output: folder.clone(), force: true, ..o }, &()).unwrap_err();
    assert!(message.kind() == ErrorKind::Usage && message.to_string().contains("no regular file"), "{message}");
    assert!(folder.is_dir());
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_no_unicode_are_reported() {
    use std::os::unix::ffi::OsStrExt;
    let (dir, checkpoint) = nano();
    let output = dir.path().join(std::ffi::OsStr::from_bytes(b"m\xff.gguf"));
    let report = convert(&options(&checkpoint, &output, "Q8_0", "Q8_0"), &()).unwrap();
    assert!(serde_json::to_string(&report).unwrap().contains("m\u{fffd}.gguf"));
    let v = verify(&output, None, &()).unwrap();
    assert!(v.ok && serde_json::to_string(&v).unwrap().contains("mmproj-m\u{fffd}.gguf"));
}

#[test]
fn a_budget_too_small_is_refused() {
    let (dir, checkpoint) = nano();
    let o = ConvertOptions { max_memory: Some(1 << 20), ..options(&checkpoint, &dir.path().join("m.gguf"), "F16", "F16") };
    let error = convert(&o, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Budget);
    assert!(error.to_string().contains("--max-memory"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Renames a tensor inside the archive: names of equal length keep the pickle whole, and its checksum is put right.
fn rename(checkpoint: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let path = checkpoint.join("consolidated.00-of-01.model.pth");
    let mut bytes = read(&path);
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|w| w == what);
    // data.pkl is the first entry: its checksum lies in the header at the front and in the central directory.
    let crc_at = 14;
    let old: [u8; 4] = bytes[crc_at..crc_at + 4].try_into().unwrap();
    let u16_at = |bytes: &[u8], at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let start = 30 + u16_at(&bytes, 26) + u16_at(&bytes, 28);
    let size = u32::from_le_bytes(bytes[22..26].try_into().unwrap()) as usize;
    let at = start + find(&bytes[start..start + size], from.as_bytes()).unwrap();
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    let new = crc32fast::hash(&bytes[start..start + size]).to_le_bytes();
    bytes[crc_at..crc_at + 4].copy_from_slice(&new);
    let entry = bytes.windows(4).rposition(|w| w == old).unwrap();
    bytes[entry..entry + 4].copy_from_slice(&new);
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn missing_and_unknown_tensors() {
    for gone in ["llma.layers.1.feed_forward.w2.weight", "llma.dinov2_vitg14.blocks.1.ls2.gamma", "llma.start_img"] {
        let (dir, checkpoint) = nano();
        rename(&checkpoint, gone, &gone.replace('l', "x"));
        let o = options(&checkpoint, &dir.path().join("m.gguf"), "F16", "F16");
        let error = convert(&o, &()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(gone), "{error}");
        assert_eq!(dry_run(&o, &()).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
    }
    // A name that nobody claims: here the one tensor that is in every checkpoint and used by nobody.
    let (dir, checkpoint) = nano();
    rename(&checkpoint, "llma.dinov2_vitg14.mask_token", "llma.dinov2_vitg14.mask_tokes");
    let o = options(&checkpoint, &dir.path().join("m.gguf"), "F16", "F16");
    let told = Told::default();
    let report = convert(&o, &told).unwrap();
    assert!(report.warnings.len() == 1 && report.warnings[0].contains("mask_tokes"), "{:?}", report.warnings);
    assert_eq!(*told.warnings.lock().unwrap(), report.warnings);
    let error = convert(&ConvertOptions { strict: true, force: true, ..o }, &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("mask_tokes"), "{error}");
    // A learned skip token changes what the model computes.
    rename(&checkpoint, "llma.dinov2_vitg14.mask_tokes", "llma.dinov2_vitg14.skip_token");
    let o = options(&checkpoint, &dir.path().join("n.gguf"), "F16", "F16");
    assert!(convert(&o, &()).unwrap_err().to_string().contains("skip"));
}

fn set_json(path: &Path, key: &str, value: serde_json::Value) {
    let mut json: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&read(path)).unwrap();
    json.insert(key.into(), value);
    std::fs::write(path, serde_json::to_vec(&json).unwrap()).unwrap();
}

#[test]
fn settings_that_do_not_fit_the_tensors_are_named() {
    for (key, value, words) in [
        ("dim", 512.into(), ["dim is 512", "256 wide"]),
        ("n_layers", 1.into(), ["n_layers is 1", "2 layers"]),
        ("n_layers", 3.into(), ["missing", "llma.layers.2."]),
        ("n_kv_heads", 4.into(), ["[128, 256]", "[256, 256]"]),
        ("ffn_dim_multiplier", 2.into(), ["1536", "768"]),
        ("lora_rank", 8.into(), ["lora_rank", "merge"]),
    ] {
        let (dir, checkpoint) = nano();
        set_json(&checkpoint.join("config.json"), key, value);
        let error = convert(&options(&checkpoint, &dir.path().join("m.gguf"), "F16", "F16"), &()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        for word in words {
            assert!(error.to_string().contains(word), "{key}: {error}");
        }
    }
    // The vocabulary against the embeddings, both numbers named.
    let (dir, checkpoint) = nano();
    let wrong = tokenizer::encode_sentencepiece(&synth::vocabulary(801));
    std::fs::write(checkpoint.join("tokenizer.model"), wrong).unwrap();
    let error = convert(&options(&checkpoint, &dir.path().join("m.gguf"), "F16", "F16"), &()).unwrap_err().to_string();
    assert!(error.contains("801") && error.contains("800"), "{error}");
    std::fs::remove_file(checkpoint.join("tokenizer.model")).unwrap();
    let error = convert(&options(&checkpoint, &dir.path().join("m.gguf"), "F16", "F16"), &()).unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("tokenizer.model"), "{error}");
}

#[test]
fn types_are_asked_for_inferred_and_overridden() {
    let (dir, checkpoint) = nano();
    let output = dir.path().join("m.gguf");
    let o = options(&checkpoint, &output, "Q8_0", "Q8_0");
    std::fs::remove_file(checkpoint.join("meta.json")).unwrap();
    let error = convert(&o, &()).unwrap_err().to_string();
    assert!(error.contains("--llama-type") && error.contains("llama_ens5_light"), "{error}");
    convert(&ConvertOptions { llama_type: Some("llama_ens_light".into()), ..o.clone() }, &()).unwrap();
    let (language, vision) = (Gguf::open(&output).unwrap(), Gguf::open(&mmproj_path(&output)).unwrap());
    assert_eq!(language.u32("sphinx.image_rows").unwrap(), 259);
    assert_eq!(vision.u32("sphinx-vision.grid").unwrap(), 0);
    for refused in ["mixtral_sparse_ens5", "llama_peft", "nonsense"] {
        let error = convert(&ConvertOptions { llama_type: Some(refused.into()), force: true, ..o.clone() }, &()).unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains(refused), "{error}");
    }
    // Text only, inferred, and no second file.
    let text = dir.path().join("text");
    synth(&SynthOptions { vision: false, ..invention(&text) }, &()).unwrap();
    std::fs::remove_file(text.join("meta.json")).unwrap();
    let output = dir.path().join("t.gguf");
    let report = convert(&options(&text, &output, "Q8_0", "Q8_0"), &()).unwrap();
    assert!(report.files.len() == 1 && !mmproj_path(&output).exists());
    let g = Gguf::open(&output).unwrap();
    assert_eq!((str_key(&g, "sphinx.llama_type"), g.opt_u32("sphinx.image_rows").unwrap()), ("llama".into(), None));
}

#[test]
fn the_two_halves_carry_their_metadata() {
    let (dir, checkpoint) = nano();
    let output = dir.path().join("m.gguf");
    set_json(&checkpoint.join("config.json"), "rope_scaling", 0.5.into());
    let o = ConvertOptions { context: Some(2000), ..options(&checkpoint, &output, "Q4_K_M", "Q8_0") };
    let report = convert(&o, &()).unwrap();
    let g = Gguf::open(&output).unwrap();
    assert_eq!(g.arch(), "llama");
    assert_eq!(str_key(&g, "general.name"), "nano");
    for (key, want) in [
        ("general.file_type", 15),
        ("general.quantization_version", 2),
        ("llama.context_length", 2000),
        ("llama.embedding_length", 256),
        ("llama.block_count", 2),
        ("llama.feed_forward_length", 768),
        ("llama.attention.head_count", 4),
        ("llama.attention.head_count_kv", 2),
        ("llama.rope.dimension_count", 64),
        ("llama.vocab_size", 800),
        ("tokenizer.ggml.bos_token_id", 1),
        ("tokenizer.ggml.eos_token_id", 2),
        ("tokenizer.ggml.unknown_token_id", 0),
        ("sphinx.image_rows", 1295),
        ("sphinx.config_max_seq_len", 2048),
    ] {
        assert_eq!(g.u32(key).unwrap(), want, "{key}");
    }
    assert_eq!((g.f32("llama.rope.scaling.factor").unwrap(), g.f32("llama.rope.freq_base").unwrap()), (2.0, 10000.0));
    assert_eq!(g.str_array("sphinx.stop").unwrap(), ["\n###"]);
    assert_eq!(g.str_array("tokenizer.ggml.tokens").unwrap().len(), 800);
    let v = Gguf::open(&mmproj_path(&output)).unwrap();
    assert_eq!(v.arch(), "sphinx-vision");
    assert_eq!(str_key(&g, "sphinx.pair_id"), report.pair_id);
    assert_eq!(str_key(&v, "sphinx-vision.pair_id"), report.pair_id);
    assert!(report.pair_id.len() == 32 && report.pair_id.bytes().all(|b| b.is_ascii_hexdigit()));
    assert_eq!(v.u32_array("sphinx-vision.convnext.depths").unwrap(), [1, 1, 2, 1]);
    assert_eq!(v.u32_array("sphinx-vision.convnext.widths").unwrap(), [32, 64, 128, 256]);
    assert_eq!(v.u32("sphinx-vision.dinov2.attention.head_count").unwrap(), 4);
    assert_eq!(v.str_array("sphinx-vision.encoders").unwrap(), ["convnext", "dinov2"]);
    assert_eq!((v.u32("sphinx-vision.vit.board").unwrap(), v.u32("sphinx-vision.convnext.board").unwrap()), (448, 1024));
    // Position table finished, kernels channels last, tags flat; the fallbacks of the recipes.
    for (name, dims, ty) in [
        ("v.dino.pos", vec![256, 257], GgmlType::F32),
        ("v.cnx.0.0.dw.weight", vec![32, 49], GgmlType::F32),
        ("v.cnx.1.down.weight", vec![128, 64], GgmlType::Q8_0),
        ("v.cnx.stem.weight", vec![48, 32], GgmlType::F16),
        ("v.dino.patch.weight", vec![588, 256], GgmlType::F16),
        ("v.start_img", vec![256], GgmlType::F32),
    ] {
        let t = v.tensor(name).unwrap();
        assert_eq!((t.dims(), t.ty()), (&dims[..], ty), "{name}");
    }
}

#[test]
fn the_vision_half_may_come_from_elsewhere() {
    let (dir, checkpoint) = nano();
    let text = dir.path().join("text");
    synth(&SynthOptions { vision: false, ..invention(&text) }, &()).unwrap();
    let (whole, apart) = (dir.path().join("a.gguf"), dir.path().join("b.gguf"));
    let a = convert(&options(&checkpoint, &whole, "F16", "F16"), &()).unwrap();
    let llama_type = Some("llama_ens5_light".to_owned());
    let b = convert(&ConvertOptions { vision: Some(checkpoint.clone()), llama_type, ..options(&text, &apart, "F16", "F16") }, &()).unwrap();
    assert_eq!(a.pair_id, b.pair_id);
    let bytes = |p: &Path| Gguf::open(p).unwrap().tensors().iter().map(|t| t.bytes().to_vec()).collect::<Vec<_>>();
    assert!(bytes(&mmproj_path(&whole)) == bytes(&mmproj_path(&apart)) && bytes(&whole) == bytes(&apart));
    let o = ConvertOptions { vision: Some(checkpoint), ..options(&text, &dir.path().join("c.gguf"), "F16", "F16") };
    assert_eq!(convert(&o, &()).unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    let (dir, checkpoint) = nano();
    // Overwrite the last number of the last tensor's data with a bf16 NaN, checksums put right.
    let path = checkpoint.join("consolidated.00-of-01.model.pth");
    let c = Checkpoint::inspect(&path).unwrap();
    let m = c.merged("llma.end_img", checkpoint::Rule::Same).unwrap();
    let mut values = vec![0.0; m.cols()];
    m.read_rows(0..1, &mut values).unwrap();
    let wanted: Vec<u8> = values.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect();
    let mut bytes = read(&path);
    let at = bytes.windows(wanted.len()).position(|w| w == wanted).unwrap();
    let old = crc32fast::hash(&bytes[at..at + wanted.len()]).to_le_bytes();
    bytes[at..at + 2].copy_from_slice(&[0xc0, 0x7f]);
    let new = crc32fast::hash(&bytes[at..at + wanted.len()]).to_le_bytes();
    while let Some(crc) = bytes.windows(4).position(|w| w == old) {
        bytes[crc..crc + 4].copy_from_slice(&new);
    }
    std::fs::write(&path, bytes).unwrap();
    let error = convert(&options(&checkpoint, &dir.path().join("m.gguf"), "F16", "F16"), &()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("llma.end_img") && error.to_string().contains("NaN"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn verifying_finds_damage_and_measures_loss() {
    let (dir, checkpoint) = nano();
    let output = dir.path().join("m.gguf");
    let report = convert(&options(&checkpoint, &output, "Q4_K_M", "Q8_0"), &()).unwrap();
    for path in [output.clone(), mmproj_path(&output)] {
        let v = verify(&path, Some(&Against::new(&checkpoint)), &()).unwrap();
        assert!(v.ok && v.checksums && v.problems.is_empty(), "{:?}", v.problems);
        assert!(v.other_half.as_ref().is_some_and(|o| o.matches) && v.pair_id == report.pair_id);
        for t in &v.tensors {
            let error = t.error.unwrap();
            assert!(t.intact == Some(true) && t.finite && error.ok, "{t:?}");
            assert!(t.ty != "F32" || error.rmse == 0.0, "{t:?}");
            assert!(error.cosine > 0.99, "{t:?}");
        }
    }
    // One flipped bit in the data.
    let mut bytes = read(&output);
    let g = Gguf::open(&output).unwrap();
    let index = g.tensors().iter().position(|t| t.name() == "blk.1.ffn_up.weight").unwrap();
    let at = g.offset(index) as usize + 1000;
    drop(g);
    bytes[at] ^= 4;
    std::fs::write(&output, &bytes).unwrap();
    let v = verify(&output, None, &()).unwrap();
    assert!(!v.ok && v.problems.iter().any(|p| p.contains("blk.1.ffn_up.weight")), "{:?}", v.problems);
    let q = QuantizeOptions {
        input: output.clone(),
        output: dir.path().join("q.gguf"),
        quant: recipe("F16"),
        imatrix: None,
        threads: 2,
        max_memory: None,
        force: false,
    };
    assert_eq!(quantize(&q, &()).unwrap_err().kind(), ErrorKind::Invalid);
    assert!(!q.output.exists());
    // The other half of another model.
    let stranger = dir.path().join("stranger");
    synth(&SynthOptions { seed: 6, ..invention(&stranger) }, &()).unwrap();
    convert(&ConvertOptions { force: true, ..options(&stranger, &output, "F16", "F16") }, &()).unwrap();
    let v = verify(&output, Some(&Against::new(&checkpoint)), &()).unwrap();
    assert!(!v.ok && v.problems.iter().any(|p| p.contains("differs from the checkpoint")), "{:?}", v.problems);
    let other = dir.path().join("o.gguf");
    convert(&options(&checkpoint, &other, "F16", "F16"), &()).unwrap();
    std::fs::copy(mmproj_path(&output), mmproj_path(&other)).unwrap();
    let v = verify(&other, None, &()).unwrap();
    assert!(!v.ok && v.other_half.is_some_and(|o| !o.matches));
}

#[test]
fn made_up_models_depend_on_the_seed_alone() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, threads: usize, seed: u64, gguf: bool| {
        let output = dir.path().join(if gguf { format!("{name}.gguf") } else { name.into() });
        let quant = gguf.then(|| recipe("Q4_K_M"));
        let report = synth(&SynthOptions { threads, seed, quant, ..invention(&output) }, &()).unwrap();
        for f in &report.files {
            assert_eq!(f.bytes, std::fs::metadata(&f.path).unwrap().len(), "{}", f.path.display());
        }
        if gguf { halves(&output).concat() } else { read(&output.join("consolidated.00-of-01.model.pth")) }
    };
    for gguf in [false, true] {
        let a = make("a", 1, 1, gguf);
        assert!(a == make("b", 4, 1, gguf));
        assert!(a != make("c", 1, 2, gguf));
    }
    for path in [dir.path().join("a.gguf"), dir.path().join("mmproj-a.gguf")] {
        let v = verify(&path, None, &()).unwrap();
        assert!(v.ok && v.tensors.iter().all(|t| t.finite) && v.other_half.is_some(), "{:?}", v.problems);
    }
    // The same keys as a converted model, and the same tensors.
    let converted = dir.path().join("d.gguf");
    convert(&options(&dir.path().join("a"), &converted, "Q4_K_M", "Q8_0"), &()).unwrap();
    for (made, converted) in [("a.gguf", "d.gguf"), ("mmproj-a.gguf", "mmproj-d.gguf")] {
        let (a, b) = (Gguf::open(&dir.path().join(made)).unwrap(), Gguf::open(&dir.path().join(converted)).unwrap());
        let keys = |g: &Gguf| g.metadata().iter().map(|(k, _)| k.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&a), keys(&b));
        let tensors = |g: &Gguf| g.tensors().iter().map(|t| (t.name().to_owned(), t.ty(), t.dims().to_vec())).collect::<Vec<_>>();
        assert_eq!(tensors(&a), tensors(&b));
    }
    for (family, scale) in [("unheard", "nano"), ("tiny", "huge")] {
        let o = SynthOptions { family: family.into(), scale: scale.into(), ..invention(&dir.path().join("x")) };
        assert_eq!(synth(&o, &()).unwrap_err().kind(), ErrorKind::Usage);
    }
    let o = SynthOptions { quant: Some(recipe("F16")), ..invention(&dir.path().join("x")) };
    assert_eq!(synth(&o, &()).unwrap_err().kind(), ErrorKind::Usage);
}

#[test]
fn checkpoints_can_be_looked_at() {
    let (_dir, checkpoint) = nano();
    let info = inspect_checkpoint(&checkpoint).unwrap();
    assert_eq!((info.llama_type.as_deref(), info.supported, info.tokenizer), (Some("llama_ens5_light"), true, true));
    let wq = info.tensors.iter().find(|t| t.name == "llma.layers.0.attention.wq.weight").unwrap();
    assert_eq!((wq.dtype.as_deref(), wq.shapes.as_slice()), (Some("BF16"), &[vec![256, 256]][..]));
    assert_eq!(info.config["dim"], 256);
}

/// A golden checkpoint beside the repository.
fn golden(case: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/goldens")).join(case).join("checkpoint");
    let there = path.is_dir();
    if !there {
        eprintln!("skipped: no goldens at {}", path.display());
    }
    there.then_some(path)
}

/// A tensor of a checkpoint, whole.
fn whole(c: &Checkpoint, name: &str, rule: checkpoint::Rule) -> Vec<f32> {
    let m = c.merged(name, rule).unwrap();
    let mut out = vec![0.0; m.rows() * m.cols()];
    m.read_rows(0..m.rows(), &mut out).unwrap();
    out
}

#[test]
fn goldens_convert_number_by_number() {
    use checkpoint::Rule;
    for (case, rows) in [("light", 259), ("light5", 1295)] {
        let Some(folder) = golden(case) else { return };
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("g.gguf");
        let report = convert(&options(&folder, &output, "F32", "F32"), &()).unwrap();
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
        let (g, v) = (Gguf::open(&output).unwrap(), Gguf::open(&mmproj_path(&output)).unwrap());
        assert_eq!(g.u32("sphinx.image_rows").unwrap(), rows);
        let c = Checkpoint::open(std::slice::from_ref(&folder)).unwrap();
        for (name, source, rule) in [
            ("token_embd.weight", "llma.tok_embeddings.weight", Rule::Dim1),
            ("blk.1.attn_k.weight", "llma.layers.1.attention.wk.weight", Rule::Dim0),
            ("blk.0.attn_output.weight", "llma.layers.0.attention.wo.weight", Rule::Dim1),
            ("blk.1.ffn_down.weight", "llma.layers.1.feed_forward.w2.weight", Rule::Dim1),
            ("output_norm.weight", "llma.norm.weight", Rule::Same),
        ] {
            assert!(floats(g.tensor(name).unwrap()) == whole(&c, source, rule), "{case} {name}");
        }
        for (name, source) in [
            ("v.dino.patch.weight", "llma.dinov2_vitg14.patch_embed.proj.weight"),
            ("v.dino.1.w12.weight", "llma.dinov2_vitg14.blocks.1.mlp.w12.weight"),
            ("v.end_img", "llma.end_img"),
            ("v.proj.weight", "llma.visual_proj.0.weight"),
        ] {
            assert!(floats(v.tensor(name).unwrap()) == whole(&c, source, Rule::Same), "{case} {name}");
        }
        let kernel = whole(&c, "llma.openclip_convnext_xxl.stages.2.blocks.1.conv_dw.weight", Rule::Same);
        let laid = floats(v.tensor("v.cnx.2.1.dw.weight").unwrap());
        assert!((0..49 * 128).all(|i| laid[i] == kernel[(i % 128) * 49 + i / 128]));
        let down = whole(&c, "llma.openclip_convnext_xxl.stages.3.downsample.1.weight", Rule::Same);
        let laid = floats(v.tensor("v.cnx.3.down.weight").unwrap());
        assert!((0..256 * 512).all(|i| laid[i] == down[(i / 512) * 512 + (i % 128) * 4 + i % 512 / 128]));
        let v = verify(&mmproj_path(&output), Some(&Against::new(&folder)), &()).unwrap();
        assert!(v.ok, "{:?}", v.problems);
    }
}

#[test]
fn pair_ids_do_not_depend_on_shards_or_precision_of_the_outcome() {
    let Some(folder) = golden("light5") else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut ids = BTreeMap::new();
    for quant in ["F32", "Q8_0", "Q4_0"] {
        let output = dir.path().join(format!("{quant}.gguf"));
        let report = convert(&options(&folder, &output, quant, quant), &()).unwrap();
        ids.insert(report.pair_id.clone(), quant);
        // A half of one goes with the other half of another.
        std::fs::rename(mmproj_path(&output), dir.path().join("mmproj-F32.gguf.new")).unwrap();
        std::fs::rename(dir.path().join("mmproj-F32.gguf.new"), dir.path().join("mmproj-F32.gguf")).unwrap();
        let v = verify(&dir.path().join("F32.gguf"), None, &()).unwrap();
        assert!(v.ok && v.other_half.is_some_and(|o| o.matches));
    }
    assert_eq!(ids.len(), 1, "{ids:?}");
}

#[test]
fn genuine_tokenizers_are_read() {
    let oracle = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/oracle"));
    for (file, prefix) in [("tokenizer-tiny.model", true), ("tokenizer-tiny-noprefix.model", false)] {
        let path = oracle.join(file);
        if !path.is_file() {
            eprintln!("skipped: no {}", path.display());
            return;
        }
        let t = tokenizer::Tokenizer::read(&path).unwrap();
        assert_eq!((t.pieces.len(), t.unk, t.bos, t.eos, t.add_space_prefix), (800, 0, 1, 2, prefix), "{file}");
    }
}
