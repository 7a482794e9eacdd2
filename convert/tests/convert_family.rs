//! What every member of the family becomes: experts, packed attention, skip rows, layouts, and what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sphinx_convert::checkpoint::{Checkpoint, Rule};
use sphinx_convert::registry::RopeOrder;
use sphinx_convert::variant::PadAnchor;
use sphinx_convert::*;
use sphinx_quant::block::quantize;
use sphinx_quant::gguf::Gguf;
use sphinx_quant::imatrix::Imatrix;
use sphinx_quant::recipe::Recipe;
use sphinx_quant::{ErrorKind, GgmlType};
use tempfile::TempDir;

fn recipe(name: &str) -> Recipe {
    Recipe::named(name).unwrap()
}

fn options(input: &Path, output: &Path) -> ConvertOptions {
    let o = ConvertOptions::new(vec![input.to_owned()], output.to_owned(), recipe("F32"), recipe("F32"));
    ConvertOptions { threads: 2, strict: true, ..o }
}

/// A made-up checkpoint of this type in so many shards.
fn made(folder: &Path, family: &str, llama_type: &str, shards: usize) -> PathBuf {
    let path = folder.join(format!("{llama_type}-{shards}"));
    let o = SynthOptions { llama_type: Some(llama_type.into()), shards, seed: 3, ..SynthOptions::new(family, "nano", path.clone()) };
    synth(&o, &()).unwrap();
    path
}

/// A tensor of a checkpoint in whole, and its shape.
fn whole(checkpoint: &Path, name: &str, rule: Rule) -> (Vec<f32>, Vec<usize>) {
    let c = Checkpoint::open(&[checkpoint.to_owned()]).unwrap();
    let m = c.merged(name, rule).unwrap();
    let mut out = vec![0.0; m.rows() * m.cols()];
    m.read_rows(0..m.rows(), &mut out).unwrap();
    (out, m.shape().to_vec())
}

fn floats(file: &Gguf, name: &str) -> Vec<f32> {
    let t = file.tensor(name).unwrap();
    assert_eq!(t.ty(), GgmlType::F32, "{name}");
    t.bytes().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// All tensors of a file: type, dimensions and bytes by name.
fn tensors(path: &Path) -> BTreeMap<String, (GgmlType, Vec<usize>, Vec<u8>)> {
    let file = Gguf::open(path).unwrap();
    file.tensors().iter().map(|t| (t.name().to_owned(), (t.ty(), t.dims().to_vec(), t.bytes().to_vec()))).collect()
}

fn refusal(o: &ConvertOptions) -> (ErrorKind, String) {
    let error = convert(o, &()).unwrap_err();
    (error.kind(), error.to_string())
}

/// Rewrites one setting of config.json.
fn set(checkpoint: &Path, key: &str, value: serde_json::Value) {
    let path = checkpoint.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(path, config.to_string()).unwrap();
}

/// Rewrites a checkpoint as one safetensors file, tensors changed on the way.
fn rewrite(checkpoint: &Path, change: impl Fn(&mut BTreeMap<String, (Vec<f32>, Vec<usize>)>)) {
    let mut all: BTreeMap<String, (Vec<f32>, Vec<usize>)> = {
        let c = Checkpoint::open(&[checkpoint.to_owned()]).unwrap();
        c.names().map(|n| (n.to_owned(), whole(checkpoint, n, Rule::Same))).collect()
    };
    change(&mut all);
    let bytes = all.iter().map(|(n, (v, s))| (n, v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>(), s)).collect::<Vec<_>>();
    let view = |b, s: &Vec<usize>| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, s.clone(), b).unwrap();
    let file = safetensors::serialize(bytes.iter().map(|(n, b, s)| (n.as_str(), view(b, s))), None).unwrap();
    for entry in std::fs::read_dir(checkpoint).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "pth" || e == "safetensors") {
            std::fs::remove_file(path).unwrap();
        }
    }
    std::fs::write(checkpoint.join("model.safetensors"), file).unwrap();
}

fn folder() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}

#[test]
fn every_type_converts_and_does_not_depend_on_its_shards() {
    let (_dir, at) = folder();
    for (family, llama_type, encoders, rows) in [
        ("tiny", "llama_ens", 3, 291),
        ("tiny", "llama_ens5", 3, 1455),
        ("tiny", "llama_ens5p2", 3, 687),
        ("tiny", "llama_ens10", 3, 2910),
        ("tiny", "llama_ens_light", 2, 259),
        ("moe", "mixtral_sparse_ens", 3, 291),
        ("moe", "mixtral_sparse_ens5", 3, 1455),
        ("moe", "mixtral_sparse_ens_light", 2, 259),
        ("moe", "mixtral_sparse_ens5_light", 2, 1295),
        ("intern2", "internlm2_ens_light", 2, 259),
        ("intern2", "internlm2_ens5_light", 2, 1295),
    ] {
        let [one, two] = [1, 2].map(|shards| {
            let checkpoint = made(&at, family, llama_type, shards);
            let output = at.join(format!("{shards}.gguf"));
            let report = convert(&ConvertOptions { force: true, ..options(&checkpoint, &output) }, &()).unwrap();
            assert_eq!(report.warnings, Vec::<String>::new(), "{llama_type}");
            (report.pair_id, tensors(&output), tensors(&mmproj_path(&output)))
        });
        assert_eq!(one.0, two.0, "{llama_type}");
        assert!(one.1 == two.1 && one.2 == two.2, "{llama_type}");
        let vision = Gguf::open(&mmproj_path(&at.join("2.gguf"))).unwrap();
        let language = Gguf::open(&at.join("2.gguf")).unwrap();
        assert_eq!(vision.str_array("sphinx-vision.encoders").unwrap().len(), encoders, "{llama_type}");
        assert_eq!(language.u32("sphinx.image_rows").unwrap(), rows, "{llama_type}");
        assert_eq!(language.str("sphinx.llama_type").unwrap(), llama_type);
        assert_eq!(vision.find("v.qf.query").is_some(), encoders == 3);
        assert_eq!(language.alignment(), if family == "moe" { 16384 } else { 32 });
    }
}

#[test]
fn experts_are_stacked_and_the_third_matrix_is_turned() {
    let (_dir, at) = folder();
    let checkpoint = made(&at, "moe", "mixtral_sparse_ens_light", 2);
    let output = at.join("m.gguf");
    let report = convert(&options(&checkpoint, &output), &()).unwrap();
    let file = Gguf::open(&output).unwrap();
    let experts = file.u32("llama.expert_count").unwrap() as usize;
    let hidden = file.u32("llama.feed_forward_length").unwrap() as usize;
    let dim = file.u32("llama.embedding_length").unwrap() as usize;
    let rule = Rule::Expert { experts };
    for (source, name) in [("w1", "ffn_gate_exps"), ("w3", "ffn_up_exps")] {
        let (values, shape) = whole(&checkpoint, &format!("llma.layers.1.feed_forward.{source}"), rule);
        assert_eq!(shape, [experts * hidden, dim]);
        let name = format!("blk.1.{name}.weight");
        assert_eq!(file.tensor(&name).unwrap().dims(), [dim, hidden, experts]);
        assert!(floats(&file, &name) == values, "{name}");
    }
    let (values, _) = whole(&checkpoint, "llma.layers.1.feed_forward.w2", rule);
    let turned: Vec<f32> = (0..experts * dim)
        .flat_map(|row| {
            let (expert, column) = (row / dim, row % dim);
            let values = &values;
            (0..hidden).map(move |unit| values[(expert * hidden + unit) * dim + column])
        })
        .collect();
    assert_eq!(file.tensor("blk.1.ffn_down_exps.weight").unwrap().dims(), [hidden, dim, experts]);
    assert!(floats(&file, "blk.1.ffn_down_exps.weight") == turned);
    // The router stays as precise as it is in any recipe, and every stack begins with a page.
    let q = at.join("q.gguf");
    convert(&ConvertOptions { quant: recipe("Q4_0"), ..options(&checkpoint, &q) }, &()).unwrap();
    let q = Gguf::open(&q).unwrap();
    assert_eq!(q.tensor("blk.0.ffn_gate_inp.weight").unwrap().ty(), GgmlType::F32);
    // Eight experts: what is small keeps more.
    assert_eq!(
        (q.tensor("blk.0.ffn_up_exps.weight").unwrap().ty(), q.tensor("blk.0.attn_v.weight").unwrap().ty()),
        (GgmlType::Q4_0, GgmlType::Q8_0)
    );
    for t in q.tensors().iter().filter(|t| t.dims().len() == 3) {
        assert!(t.backing().1.start.is_multiple_of(16384), "{} begins at {:?}", t.name(), t.backing().1);
    }
    let down = report.rows.iter().find(|r| r.name == "blk.1.ffn_down_exps.weight").unwrap();
    assert_eq!((down.shape.as_slice(), down.bytes_in), (&[experts, dim, hidden][..], (2 * experts * dim * hidden) as u64));
}

#[test]
fn little_memory_gives_the_same_file() {
    let (_dir, at) = folder();
    let checkpoint = made(&at, "moe", "mixtral_sparse", 2);
    let [plenty, little] = [None, Some(27 << 20)].map(|max_memory| {
        let output = at.join("m.gguf");
        let quant = recipe("Q4_K_M");
        let report = convert(&ConvertOptions { max_memory, quant, force: true, ..options(&checkpoint, &output) }, &()).unwrap();
        (report.peak_bytes, std::fs::read(&output).unwrap())
    });
    assert!(little.0 <= 27 << 20 && plenty.0 > little.0, "{} and {}", little.0, plenty.0);
    assert!(plenty.1 == little.1);
}

#[test]
fn an_expert_has_one_owner() {
    let (_dir, at) = folder();
    let [one, two] = [1, 2].map(|shards| made(&at, "moe", "mixtral", shards));
    let output = at.join("m.gguf");
    let report = convert(&options(&two, &output), &()).unwrap();
    let stack = report.rows.iter().find(|r| r.name == "blk.0.ffn_up_exps.weight").unwrap();
    assert_eq!(stack.source, "llma.layers.0.feed_forward.experts.{0..7}.w3.weight");
    let file = Gguf::open(&output).unwrap();
    let want: Vec<f32> =
        (0..8).flat_map(|e| whole(&two, &format!("llma.layers.0.feed_forward.experts.{e}.w2.weight"), Rule::Owner).0).collect();
    assert!(floats(&file, "blk.0.ffn_down_exps.weight") == want);
    let from_one = at.join("one.gguf");
    convert(&options(&one, &from_one), &()).unwrap();
    assert!(tensors(&from_one) == tensors(&output));
    // An alias is recorded under the usual name, and names alone tell what it is.
    std::fs::write(two.join("meta.json"), r#"{"llama_type": "mistral"}"#).unwrap();
    convert(&ConvertOptions { force: true, ..options(&two, &output) }, &()).unwrap();
    assert_eq!(Gguf::open(&output).unwrap().str("sphinx.llama_type").unwrap(), "mixtral");
    std::fs::remove_file(two.join("meta.json")).unwrap();
    convert(&ConvertOptions { force: true, ..options(&two, &output) }, &()).unwrap();
    // One expert more than config.json says, and one fewer than there should be.
    rewrite(&one, |all| {
        let extra = all["llma.layers.0.feed_forward.experts.7.w1.weight"].clone();
        all.insert("llma.layers.0.feed_forward.experts.8.w1.weight".into(), extra);
    });
    let (kind, message) = refusal(&ConvertOptions { force: true, ..options(&one, &output) });
    assert!(kind == ErrorKind::Invalid && message.contains("moe.num_experts is 8, but the checkpoint has 9"), "{message}");
    rewrite(&one, |all| all.retain(|n, _| !n.contains(".experts.8.") && n != "llma.layers.1.feed_forward.experts.5.w3.weight"));
    let (_, message) = refusal(&ConvertOptions { force: true, ..options(&one, &output) });
    assert!(message.contains("an expected tensor is missing") && message.contains("layers.1.feed_forward.experts.5.w3"), "{message}");
}

/// Rows of heads, `width` each, from halves to pairs.
fn pairs(rows: &[f32], cols: usize, width: usize) -> Vec<f32> {
    let row = |head: usize, c: usize| &rows[(head * width + c) * cols..][..cols];
    let order = |c: usize| if c.is_multiple_of(2) { c / 2 } else { c / 2 + width / 2 };
    let heads = rows.len() / cols / width;
    (0..heads).flat_map(|h| (0..width).flat_map(move |c| row(h, order(c)).to_vec())).collect()
}

#[test]
fn packed_attention_is_taken_apart() {
    let (_dir, at) = folder();
    let checkpoint = made(&at, "intern2", "internlm2_ens_light", 2);
    let output = at.join("m.gguf");
    let report = convert(&options(&checkpoint, &output), &()).unwrap();
    let file = Gguf::open(&output).unwrap();
    let number = |key: &str| file.u32(&format!("llama.{key}")).unwrap() as usize;
    let (dim, heads, kv) = (number("embedding_length"), number("attention.head_count"), number("attention.head_count_kv"));
    let (width, group) = (dim / heads, heads / kv + 2);
    assert!(kv > 1 && group > 3, "a case worth testing");
    let (values, shape) = whole(&checkpoint, "llma.layers.1.attention.wqkv.weight", Rule::Dim0);
    assert_eq!(shape, [kv * group * width, dim]);
    let head = |index: usize| values[index * width * dim..(index + 1) * width * dim].to_vec();
    let q: Vec<f32> = (0..kv).flat_map(|g| (0..group - 2).map(move |h| g * group + h)).flat_map(head).collect();
    let k: Vec<f32> = (0..kv).map(|g| g * group + group - 2).flat_map(head).collect();
    let v: Vec<f32> = (0..kv).map(|g| g * group + group - 1).flat_map(head).collect();
    let check = |file: &Gguf, q: &[f32], k: &[f32]| {
        assert!(floats(file, "blk.1.attn_q.weight") == q && floats(file, "blk.1.attn_k.weight") == k);
        assert!(floats(file, "blk.1.attn_v.weight") == v, "values do not turn");
    };
    check(&file, &pairs(&q, dim, width), &pairs(&k, dim, width));
    let rows: Vec<_> = report.rows.iter().filter(|r| r.source.starts_with("llma.layers.1.attention.wqkv")).collect();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows.iter().map(|r| r.bytes_in).sum::<u64>(), 2 * values.len() as u64, "each its share");
    // Stated otherwise.
    let o = ConvertOptions { rope_order: Some(RopeOrder::Pairs), arch: Arch::Internlm2, force: true, ..options(&checkpoint, &output) };
    convert(&o, &()).unwrap();
    let file = Gguf::open(&output).unwrap();
    check(&file, &q, &k);
    assert_eq!((file.arch(), file.u32("internlm2.block_count").is_ok()), ("internlm2", true));
    // Groups of heads that are cut between shards.
    set(&checkpoint, "n_kv_heads", 1.into());
    let (_, message) = refusal(&ConvertOptions { force: true, ..options(&checkpoint, &output) });
    assert!(message.contains("1 key heads do not divide among 2 shards"), "{message}");
}

#[test]
fn separate_attention_turns_only_when_told() {
    let (_dir, at) = folder();
    let checkpoint = made(&at, "tiny", "llama", 2);
    let output = at.join("m.gguf");
    let (k, shape) = whole(&checkpoint, "llma.layers.0.attention.wk.weight", Rule::Dim0);
    let read = |rope_order| {
        convert(&ConvertOptions { rope_order, force: true, ..options(&checkpoint, &output) }, &()).unwrap();
        let file = Gguf::open(&output).unwrap();
        (floats(&file, "blk.0.attn_k.weight"), floats(&file, "blk.0.attn_v.weight"), file.u32("llama.rope.dimension_count").unwrap())
    };
    let (plain, v, width) = read(None);
    assert!(plain == k);
    let (turned, same, _) = read(Some(RopeOrder::Halves));
    assert!(turned == pairs(&k, shape[1], width as usize) && turned != k && same == v);
}

#[test]
fn skip_rows_need_an_anchor() {
    let (_dir, at) = folder();
    let base = made(&at, "tiny", "llama_ens5_light", 1);
    let output = at.join("m.gguf");
    let dim = 256;
    let with = |name: &'static str, shape: Vec<usize>| {
        let checkpoint = at.join("with");
        let _ = std::fs::remove_dir_all(&checkpoint);
        std::fs::create_dir(&checkpoint).unwrap();
        for entry in std::fs::read_dir(&base).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, checkpoint.join(path.file_name().unwrap())).unwrap();
        }
        rewrite(&checkpoint, |all| {
            let count = shape.iter().product::<usize>();
            all.insert(name.into(), ((0..count).map(|i| i as f32).collect(), shape.clone()));
        });
        checkpoint
    };
    let open = || Gguf::open(&mmproj_path(&output)).unwrap();
    for (name, shape, tokens, rows) in [
        ("llma.skip_token", vec![dim], 1, 1),
        ("llma.skip_token", vec![1, 1, dim], 1, 1),
        ("llma.skip_token", vec![3, dim], 3, 3),
        ("llma.skip_embed", vec![1, 2, dim], 2, 2),
        ("llma.my_skip", vec![4, 2, dim], 2, 8),
    ] {
        let checkpoint = with(name, shape.clone());
        let o = ConvertOptions { force: true, ..options(&checkpoint, &output) };
        let (kind, message) = refusal(&o);
        assert!(kind == ErrorKind::Invalid && message.contains("where pictures were padded") && message.contains(name), "{message}");
        convert(&ConvertOptions { pad_anchor: Some(PadAnchor::TopLeft), ..o }, &()).unwrap();
        let file = open();
        assert_eq!(file.tensor("v.skip_token").unwrap().dims(), [dim, rows], "{shape:?}");
        assert!(floats(&file, "v.skip_token") == (0..rows * dim).map(|i| i as f32).collect::<Vec<_>>());
        assert_eq!((file.bool("sphinx-vision.skip.enabled").unwrap(), file.u32("sphinx-vision.skip.tokens").unwrap()), (true, tokens));
        assert_eq!((file.bool("sphinx-vision.skip.tagged").unwrap(), file.str("sphinx-vision.pad.anchor").unwrap()), (false, "top_left"));
    }
    let anchored = |checkpoint: &Path| ConvertOptions { force: true, pad_anchor: Some(PadAnchor::Centre), ..options(checkpoint, &output) };
    // A stated name, a shape that is none, no such tensor.
    let checkpoint = with("llma.empty_view", vec![2, dim]);
    let (_, message) = refusal(&anchored(&checkpoint));
    assert!(message.contains("unknown tensor") && message.contains("llma.empty_view"), "{message}");
    let named = |name: &str| ConvertOptions { skip_tensor: Some(name.into()), ..anchored(&checkpoint) };
    convert(&named("llma.empty_view"), &()).unwrap();
    assert_eq!(open().u32("sphinx-vision.skip.tokens").unwrap(), 2);
    assert!(refusal(&named("llma.nothing")).1.contains("missing"));
    let (_, message) = refusal(&anchored(&with("llma.skip_token", vec![dim + 1])));
    assert!(message.contains("is not that of skip rows"), "{message}");
    // Two that look alike.
    let checkpoint = with("llma.skip_a", vec![dim]);
    rewrite(&checkpoint, |all| {
        let other = all["llma.skip_a"].clone();
        all.insert("llma.skip_b".into(), other);
    });
    let (_, message) = refusal(&anchored(&checkpoint));
    assert!(message.contains("llma.skip_a") && message.contains("llma.skip_b") && message.contains("--skip-tensor"), "{message}");
    // A model of one view has no use for such rows: they are unknown, which strict minds.
    let checkpoint = with("llma.skip_token", vec![dim]);
    std::fs::write(checkpoint.join("meta.json"), r#"{"llama_type": "llama_ens_light"}"#).unwrap();
    assert!(refusal(&anchored(&checkpoint)).1.contains("unknown tensor"));
    let report = convert(&ConvertOptions { strict: false, ..anchored(&checkpoint) }, &()).unwrap();
    assert!(report.warnings.iter().any(|w| w.contains("llma.skip_token")) && open().find("v.skip_token").is_none());
    assert_eq!(refusal(&ConvertOptions { skip_tensor: Some("llma.skip_token".into()), ..anchored(&checkpoint) }).0, ErrorKind::Usage);
}

#[test]
fn a_layout_is_data() {
    let (_dir, at) = folder();
    let checkpoint = made(&at, "tiny", "llama_ens5_light", 1);
    let (output, layout) = (at.join("m.gguf"), at.join("nine.toml"));
    std::fs::write(&layout, "image_size = 1536\ngrid = 3\npad_anchor = \"top_left\"\ntagged = false\n").unwrap();
    let o = ConvertOptions { layout: Some(layout.clone()), ..options(&checkpoint, &output) };
    convert(&o, &()).unwrap();
    let (language, vision) = (Gguf::open(&output).unwrap(), Gguf::open(&mmproj_path(&output)).unwrap());
    assert_eq!(language.u32("sphinx.image_rows").unwrap(), 10 * 257);
    let number = |key: &str| vision.u32(&format!("sphinx-vision.{key}")).unwrap();
    assert_eq!(["image.size", "grid", "vit.board", "convnext.board"].map(number), [1536, 3, 672, 1536]);
    assert_eq!((vision.str("sphinx-vision.pad.anchor").unwrap(), vision.bool("sphinx-vision.view.tagged").unwrap()), ("top_left", false));
    std::fs::write(&layout, "grid = 99\n").unwrap();
    let (kind, message) = refusal(&ConvertOptions { force: true, ..o });
    assert!(kind == ErrorKind::Invalid && message.contains("nine.toml") && message.contains("grid = 99"), "{message}");
    // CLIP's and EVA's tables are not resized: another input needs another checkpoint.
    let four = made(&at, "tiny", "llama_ens5", 1);
    std::fs::write(&layout, "vit_input = 112\nconvnext_input = 256\n").unwrap();
    let (_, message) = refusal(&ConvertOptions { layout: Some(layout.clone()), force: true, ..options(&four, &output) });
    assert!(message.contains("positional_embedding") && message.contains("[257, "), "{message}");
    // Flags about pictures, and none to look at.
    let text = made(&at, "tiny", "llama", 1);
    let plain = || ConvertOptions { force: true, ..options(&text, &output) };
    for o in [
        ConvertOptions { layout: Some(layout), ..plain() },
        ConvertOptions { vision: Some(checkpoint.clone()), ..plain() },
        ConvertOptions { pad_anchor: Some(PadAnchor::Centre), ..plain() },
        ConvertOptions { skip_tensor: Some("x".into()), ..plain() },
        ConvertOptions { clip_quick_gelu: true, ..plain() },
    ] {
        assert_eq!(refusal(&o).0, ErrorKind::Usage);
    }
}

#[test]
fn clip_computes_what_it_is_told() {
    let (_dir, at) = folder();
    let checkpoint = made(&at, "tiny", "llama_ens", 1);
    let output = at.join("m.gguf");
    for clip_quick_gelu in [false, true] {
        convert(&ConvertOptions { clip_quick_gelu, force: true, ..options(&checkpoint, &output) }, &()).unwrap();
        let vision = Gguf::open(&mmproj_path(&output)).unwrap();
        assert_eq!(vision.bool("sphinx-vision.clip.use_quick_gelu").unwrap(), clip_quick_gelu);
        let number = |key: &str| vision.u32(&format!("sphinx-vision.{key}")).unwrap();
        assert_eq!(number("clip.attention.head_count"), number("clip.embedding_length") / 64);
        assert_eq!(number("eva.attention.head_count"), number("eva.embedding_length") / 88);
        assert_eq!((number("qformer.query_count"), number("qformer.cross_attention_frequency")), (32, 2));
    }
}

#[test]
fn settings_and_tensors_of_a_mixture_agree() {
    let (_dir, at) = folder();
    let output = at.join("m.gguf");
    let spoilt = |spoil: &dyn Fn(&Path)| {
        let checkpoint = made(&at, "moe", "mixtral_sparse", 1);
        spoil(&checkpoint);
        let message = refusal(&options(&checkpoint, &output));
        std::fs::remove_dir_all(&checkpoint).unwrap();
        assert_eq!(message.0, ErrorKind::Invalid, "{}", message.1);
        message.1
    };
    let message = spoilt(&|c| set(c, "hidden_dim", 320.into()));
    assert!(message.contains("hidden_dim is 320 in 8 experts"), "{message}");
    let message = spoilt(&|c| set(c, "moe", serde_json::json!({"num_experts": 4, "num_experts_per_tok": 2})));
    assert!(message.contains("moe.num_experts is 4, but the router has shape [8, "), "{message}");
    let message = spoilt(&|c| std::fs::write(c.join("meta.json"), r#"{"llama_type": "llama"}"#).unwrap());
    assert!(message.contains("there is a router, but llama_type llama is no mixture"), "{message}");
    let message = spoilt(&|c| rewrite(c, |all| all.retain(|n, _| n != "llma.layers.1.feed_forward.w2")));
    assert!(message.contains("an expected tensor is missing") && message.contains("llma.layers.1.feed_forward.w2"), "{message}");
    let message = spoilt(&|c| {
        rewrite(c, |all| {
            all.insert("llma.layers.0.feed_forward.w4".into(), (vec![0.0], vec![1]));
        });
    });
    assert!(message.contains("unknown tensor") && message.contains("w4"), "{message}");
    let dense = made(&at, "tiny", "llama", 1);
    let (_, message) = refusal(&ConvertOptions { llama_type: Some("mixtral_sparse".into()), ..options(&dense, &output) });
    assert!(message.contains("there is no router, but llama_type mixtral_sparse is a mixture"), "{message}");
    let moe = made(&at, "moe", "mixtral_sparse", 1);
    assert_eq!(refusal(&ConvertOptions { arch: Arch::Internlm2, ..options(&moe, &output) }).0, ErrorKind::Usage);
}

#[test]
fn experts_of_different_formats_are_runs() {
    let (_dir, at) = folder();
    let checkpoint = made(&at, "moe", "mixtral_sparse", 2);
    let mixed = "base = \"Q8_0\"\n[[rule]]\npattern = \"blk.*.ffn_down_exps.weight\"\ntype = \"F16\"\nexperts = \"2-4\"\n";
    let [whole, cut] = [recipe("Q8_0"), Recipe::parse("mixed", mixed).unwrap()].map(|quant| {
        let output = at.join("m.gguf");
        let report = convert(&ConvertOptions { quant, force: true, ..options(&checkpoint, &output) }, &()).unwrap();
        let file = Gguf::open(&output).unwrap();
        assert_eq!(
            report.rows.iter().map(|r| r.bytes_out).sum::<u64>(),
            file.tensors().iter().map(|t| t.bytes().len() as u64).sum::<u64>()
        );
        (report, file.arch().to_owned(), tensors(&output))
    });
    assert_eq!((whole.1.as_str(), cut.1.as_str()), ("llama", "sphinx-llama"));
    assert_eq!(whole.0.pair_id, cut.0.pair_id, "it is the same model");
    let bytes_in = |r: &Report| r.rows.iter().map(|r| r.bytes_in).sum::<u64>();
    assert_eq!(bytes_in(&whole.0), bytes_in(&cut.0));
    let down = &whole.2["blk.1.ffn_down_exps.weight"];
    let runs = [0, 2, 5].map(|first| &cut.2[&format!("blk.1.ffn_down_exps.{first}.weight")]);
    assert_eq!(runs.map(|r| (r.0, r.1[2])), [(GgmlType::Q8_0, 2), (GgmlType::F16, 3), (GgmlType::Q8_0, 3)]);
    let expert = down.2.len() / 8;
    assert!(runs[0].2 == down.2[..2 * expert] && runs[2].2 == down.2[5 * expert..]);
    assert!(!cut.2.contains_key("blk.1.ffn_down_exps.weight") && cut.2.contains_key("blk.1.ffn_up_exps.weight"));
}

#[test]
fn importance_reaches_the_right_expert() {
    let (_dir, at) = folder();
    let checkpoint = made(&at, "moe", "mixtral_sparse", 1);
    let plain = at.join("plain.gguf");
    let o = ConvertOptions { quant: recipe("Q4_0"), ..options(&checkpoint, &plain) };
    convert(&o, &()).unwrap();
    let before = tensors(&plain);
    let (name, cols) = ("blk.0.ffn_up_exps.weight", before["blk.0.ffn_up_exps.weight"].1[0]);
    let mut imatrix = Imatrix::new();
    imatrix.datasets = vec!["a test".into()];
    // Every expert cares for columns of its own, expert 3 was never reached.
    let sums = |expert: usize| (0..cols).map(|c| if c % 8 == expert { 500.0 } else { 1.0 }).collect::<Vec<f64>>();
    for expert in (0..8).filter(|&e| e != 3) {
        imatrix.add(name, 8, expert, &sums(expert), 2);
    }
    let file = at.join("imatrix.gguf");
    imatrix.write(&file).unwrap();
    let weighed = at.join("weighed.gguf");
    let o = ConvertOptions { imatrix: Some(file), output: weighed.clone(), ..o };
    let report = convert(&o, &()).unwrap();
    assert!(report.warnings.iter().any(|w| w.contains("knows 1 tensors")), "{:?}", report.warnings);
    let after = tensors(&weighed);
    let exact = at.join("exact.gguf");
    convert(&options(&checkpoint, &exact), &()).unwrap();
    let values = floats(&Gguf::open(&exact).unwrap(), name);
    let mut want = Vec::new();
    for (index, row) in values.chunks(cols).enumerate() {
        let weights = imatrix.weights(name, index / (values.len() / cols / 8), cols).unwrap();
        let mut bytes = vec![0; cols / 32 * 18];
        quantize(GgmlType::Q4_0, row, weights.as_deref(), &mut bytes);
        want.extend(bytes);
    }
    let row = cols / 32 * 18;
    let rows = want.len() / row;
    let apart = |other: &[u8]| {
        want.chunks(row).zip(other.chunks(row)).enumerate().filter(|(_, (a, b))| a != b).map(|(i, _)| i * 8 / rows).collect::<Vec<_>>()
    };
    assert_eq!(apart(&after[name].2), [0; 0], "rows of these experts");
    assert!(after[name].2 != before[name].2);
    for (other, tensor) in before.iter().filter(|(n, _)| n.as_str() != name) {
        assert!(*tensor == after[other], "{other}");
    }
    // Of another model.
    let mut foreign = Imatrix::new();
    foreign.add(name, 8, 0, &vec![1.0; cols + 32], 1);
    foreign.write(&at.join("foreign.gguf")).unwrap();
    let (kind, message) = refusal(&ConvertOptions { imatrix: Some(at.join("foreign.gguf")), force: true, ..o });
    assert!(kind == ErrorKind::Invalid && message.contains(name) && message.contains("foreign.gguf"), "{message}");
}

#[test]
fn a_checkpoint_has_a_card() {
    let (_dir, at) = folder();
    let moe = made(&at, "moe", "mixtral_sparse_ens5", 2);
    let info = inspect_checkpoint(&moe).unwrap();
    let card = info.card.unwrap();
    assert_eq!((info.problem, info.supported, card.llama_type.as_str()), (None, true, "mixtral_sparse_ens5"));
    let picture = card.picture.unwrap();
    assert_eq!((picture.views, picture.rows, picture.towers.as_slice()), (5, 1455, &["clip", "convnext", "dinov2", "qformer"][..]));
    assert_eq!(card.decoder.mixture.map(|m| (m.experts, m.used)), Some((8, 2)));
    let parts: Vec<_> = card.parts.iter().map(|p| p.part).collect();
    let all = ["embeddings", "decoder", "experts", "output", "clip", "convnext", "dinov2", "eva", "q-former", "projections"];
    assert_eq!(parts, all);
    assert_eq!(card.parameters, card.parts.iter().map(|p| p.parameters).sum::<u64>());
    assert_eq!(card.bytes, 2 * card.parameters, "all of it is BF16, replicas counted once");
    let intern = inspect_checkpoint(&made(&at, "intern2", "internlm2_ens_light", 1)).unwrap().card.unwrap();
    assert_eq!((intern.decoder.packed_attention, intern.decoder.rope_order), (true, "halves"));
    // Without a type there is no card, but a reason.
    std::fs::remove_file(moe.join("meta.json")).unwrap();
    let info = inspect_checkpoint(&moe).unwrap();
    assert!(info.card.is_none() && info.problem.unwrap().contains("mixtral_sparse_ens (1 view), mixtral_sparse_ens5 (5 views)"));
}
