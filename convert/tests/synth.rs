//! Made-up models: every member of the family, in shards or not, as a checkpoint and straight to model files.

use std::path::{Path, PathBuf};

use sphinx_convert::variant::PadAnchor;
use sphinx_convert::*;
use sphinx_quant::ErrorKind;
use sphinx_quant::gguf::{Array, Gguf, Value};
use sphinx_quant::recipe::Recipe;

fn recipe(name: &str) -> Recipe {
    Recipe::named(name).unwrap()
}

fn nano(family: &str, llama_type: &str, output: &Path) -> SynthOptions {
    SynthOptions { threads: 2, llama_type: Some(llama_type.into()), ..SynthOptions::new(family, "nano", output.to_owned()) }
}

fn options(input: &Path, output: &Path, quant: &str, vision: &str) -> ConvertOptions {
    let mut o = ConvertOptions::new(vec![input.to_owned()], output.to_owned(), recipe(quant), recipe(vision));
    (o.threads, o.strict) = (2, true);
    o
}

fn keys(g: &Gguf) -> Vec<(&str, String)> {
    // Numbers and texts are the same but for the name, the pair id, and what is counted over bytes.
    let own = |k: &str| ["general.name", "checksum", "pair_id"].iter().any(|end| k.contains(end));
    g.metadata().iter().map(|(k, v)| (k.as_str(), if own(k) { String::new() } else { format!("{v:?}") })).collect()
}

fn tensors(g: &Gguf) -> Vec<(String, String, Vec<usize>)> {
    g.tensors().iter().map(|t| (t.name().to_owned(), t.ty().to_string(), t.dims().to_vec())).collect()
}

/// Every type, with the families that it fits.
const TYPES: [(&str, &str); 17] = [
    ("tiny", "llama_ens_light"),
    ("plus", "llama_ens5_light"),
    ("plus", "llama_ens"),
    ("tiny", "llama_ens5"),
    ("plus", "llama_ens5p2"),
    ("intern2", "llama_ens10"),
    ("moe", "mixtral_sparse_ens"),
    ("moe", "mixtral_sparse_ens5"),
    ("moe", "mixtral_sparse_ens_light"),
    ("moe", "mixtral_sparse_ens5_light"),
    ("intern2", "internlm2_ens_light"),
    ("intern2", "internlm2_ens5_light"),
    ("tiny", "internlm2_ens5_light"),
    ("plus", "llama"),
    ("moe", "mixtral_sparse"),
    ("moe", "mixtral"),
    ("moe", "mistral"),
];

#[test]
fn every_type_converts_and_equals_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    for (family, llama_type) in TYPES {
        let folder = dir.path().join(format!("{family}-{llama_type}"));
        let (checkpoint, whole) = (folder.join("made"), folder.join("whole.gguf"));
        let made = synth(&nano(family, llama_type, &checkpoint), &()).unwrap();
        // Not a word about any tensor, neither a missing nor an unknown one.
        let report = convert(&options(&checkpoint, &whole, "F32", "F32"), &()).unwrap_or_else(|e| panic!("{llama_type}: {e}"));
        assert!(report.warnings.is_empty(), "{llama_type}: {:?}", report.warnings);
        for f in &report.files {
            let v = verify(&f.path, Some(&Against::new(&checkpoint)), &()).unwrap();
            assert!(v.ok, "{llama_type}: {:?}", v.problems);
            assert!(v.tensors.iter().all(|t| t.error.is_some_and(|e| e.rmse == 0.0 && e.ok)), "{llama_type}");
            let s = v.sources.unwrap();
            assert_eq!((s.total, s.unknown.len()), (made.rows.len(), 0), "{llama_type}");
            assert_eq!(s.compared + s.other_half + s.unused.len(), s.total, "{llama_type}");
        }
        // Straight to model files: the same keys, tensors, formats and order as by way of the checkpoint.
        let (by_way, straight) = (folder.join("a.gguf"), folder.join("b.gguf"));
        convert(&options(&checkpoint, &by_way, "Q4_K_M", "Q8_0"), &()).unwrap();
        synth(&nano(family, llama_type, &straight), &()).unwrap();
        assert_eq!(mmproj_path(&by_way).exists(), mmproj_path(&straight).exists());
        for (a, b) in [(by_way.clone(), straight.clone()), (mmproj_path(&by_way), mmproj_path(&straight))] {
            if !a.exists() {
                continue;
            }
            let (a, b) = (Gguf::open(&a).unwrap(), Gguf::open(&b).unwrap());
            assert_eq!(keys(&a), keys(&b), "{llama_type}");
            assert_eq!(tensors(&a), tensors(&b), "{llama_type}");
            assert_eq!(a.alignment(), b.alignment());
            assert_eq!(a.alignment(), if family == "moe" && a.arch() == "llama" { 16384 } else { 32 });
            let v = verify(b.path(), None, &()).unwrap();
            assert!(v.ok && v.checksums, "{llama_type}: {:?}", v.problems);
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn shards_make_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    for (family, llama_type, counts) in [
        ("moe", "mixtral_sparse_ens5", &[1, 2, 8][..]),
        ("moe", "mixtral", &[1, 4]),
        ("intern2", "internlm2_ens_light", &[1, 2]),
        ("plus", "llama", &[1, 4]),
    ] {
        let mut first: Option<Vec<Vec<u8>>> = None;
        for &shards in counts {
            let folder = dir.path().join(format!("{llama_type}-{shards}"));
            // The file's name for the model is the directory's.
            let (checkpoint, output) = (folder.join("made"), folder.join("m.gguf"));
            let made = synth(&SynthOptions { shards, ..nano(family, llama_type, &checkpoint) }, &()).unwrap();
            let files = made.files.iter().filter(|f| f.path.extension().is_some_and(|e| e == "pth")).count();
            assert_eq!(files, shards);
            convert(&options(&checkpoint, &output, "Q8_0", "Q8_0"), &()).unwrap_or_else(|e| panic!("{llama_type} in {shards}: {e}"));
            let halves = [output.clone(), mmproj_path(&output)];
            let bytes: Vec<Vec<u8>> = halves.iter().filter(|p| p.exists()).map(|p| std::fs::read(p).unwrap()).collect();
            assert!(*first.get_or_insert_with(|| bytes.clone()) == bytes, "{llama_type} in {shards} shards");
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }
}

#[test]
fn numbers_depend_on_seed_and_name_alone() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, threads: usize, seed: u64| {
        let output = dir.path().join(format!("{name}.gguf"));
        synth(&SynthOptions { threads, seed, ..nano("moe", "mixtral_sparse_ens", &output) }, &()).unwrap();
        [output.clone(), mmproj_path(&output)].map(|p| std::fs::read(p).unwrap())
    };
    assert!(make("a", 1, 3) == make("b", 4, 3));
    assert!(make("c", 2, 4) != make("d", 2, 3));
}

#[test]
fn recipes_cut_stacks_straight_to_model_files() {
    let dir = tempfile::tempdir().unwrap();
    let text = "base = \"Q4_K_M\"\n[[rule]]\npattern = \"blk.1.ffn_*_exps.weight\"\nexperts = \"2-3\"\ntype = \"Q8_0\"\n";
    let output = dir.path().join("cut.gguf");
    let quant = Some(Recipe::parse("mine", text).unwrap());
    synth(&SynthOptions { quant, ..nano("moe", "mixtral_sparse", &output) }, &()).unwrap();
    let g = Gguf::open(&output).unwrap();
    assert_eq!(g.arch(), "sphinx-llama");
    let names =
        |part: &str| g.tensors().iter().filter(|t| t.name().contains(part)).map(|t| (t.name().to_owned(), t.dims()[2])).collect::<Vec<_>>();
    let run = |j: usize, n: usize| (format!("blk.1.ffn_up_exps.{j}.weight"), n);
    assert_eq!(names("blk.1.ffn_up_exps"), [run(0, 2), run(2, 2), run(4, 4)]);
    assert_eq!(names("blk.0.ffn_up_exps"), [("blk.0.ffn_up_exps.weight".to_owned(), 8)]);
    // What is not cut holds the same numbers as in a file without the recipe.
    let plain = dir.path().join("plain.gguf");
    synth(&nano("moe", "mixtral_sparse", &plain), &()).unwrap();
    let p = Gguf::open(&plain).unwrap();
    let (whole, last) = (p.tensor("blk.1.ffn_up_exps.weight").unwrap(), g.tensor("blk.1.ffn_up_exps.4.weight").unwrap());
    assert!(whole.part(4 * whole.dims()[1]..whole.rows()).unwrap().bytes() == last.bytes());
}

#[test]
fn layouts_and_skip_rows() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("nine.toml");
    std::fs::write(&layout, "image_size = 1536\ngrid = 3\n").unwrap();
    let checkpoint = dir.path().join("made");
    let made = SynthOptions { layout: Some(layout.clone()), skip_tokens: Some(2), ..nano("tiny", "llama_ens5_light", &checkpoint) };
    synth(&made, &()).unwrap();
    let refused = convert(&options(&checkpoint, &dir.path().join("x.gguf"), "F16", "F16"), &()).unwrap_err();
    assert!(refused.kind() == ErrorKind::Invalid && refused.to_string().contains("llma.skip_token"), "{refused}");
    let by_way = dir.path().join("a.gguf");
    let o = ConvertOptions {
        pad_anchor: Some(PadAnchor::TopLeft),
        layout: Some(layout.clone()),
        ..options(&checkpoint, &by_way, "F16", "F16")
    };
    convert(&o, &()).unwrap();
    let straight = dir.path().join("b.gguf");
    let quants = (Some(recipe("F16")), Some(recipe("F16")));
    let o = SynthOptions {
        output: straight.clone(),
        pad_anchor: Some(PadAnchor::TopLeft),
        quant: quants.0,
        vision_quant: quants.1,
        ..made.clone()
    };
    synth(&o, &()).unwrap();
    let (a, b) = (Gguf::open(&mmproj_path(&by_way)).unwrap(), Gguf::open(&mmproj_path(&straight)).unwrap());
    assert_eq!(keys(&a), keys(&b));
    assert_eq!(tensors(&a), tensors(&b));
    assert_eq!(b.tensor("v.skip_token").unwrap().dims(), [256, 2]);
    assert_eq!(b.get("sphinx-vision.grid"), Some(&Value::U32(3)));
    assert_eq!(b.get("sphinx-vision.skip.enabled"), Some(&Value::Bool(true)));
    // Against the checkpoint: where pictures are padded changes no tensor.
    let against = Against { layout: Some(layout), ..Against::new(&checkpoint) };
    assert!(verify(a.path(), Some(&against), &()).unwrap().ok);
    for (o, word) in [
        (SynthOptions { pad_anchor: None, output: dir.path().join("c.gguf"), ..o.clone() }, "--pad-anchor"),
        (SynthOptions { pad_anchor: Some(PadAnchor::Centre), output: dir.path().join("c"), ..made.clone() }, "convert"),
        (SynthOptions { llama_type: Some("llama".into()), output: dir.path().join("c"), ..made.clone() }, "text only"),
        (SynthOptions { layout: None, llama_type: Some("llama_ens_light".into()), output: dir.path().join("c"), ..made }, "no sub-images"),
    ] {
        let e = synth(&o, &()).unwrap_err();
        assert!(e.kind() == ErrorKind::Usage && e.to_string().contains(word), "{e}");
    }
}

#[test]
fn intern_vocabularies_have_holes_and_a_nul_piece() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("made");
    synth(&nano("intern2", "internlm2_ens_light", &checkpoint), &()).unwrap();
    let output = dir.path().join("m.gguf");
    convert(&options(&checkpoint, &output, "F16", "F16"), &()).unwrap();
    let g = Gguf::open(&output).unwrap();
    let Some(Value::Array(Array::I32(kinds))) = g.get("tokenizer.ggml.token_type") else { panic!("no kinds") };
    assert_eq!((kinds.len(), kinds.iter().filter(|&&k| k == 5).count()), (800, 16));
    let nul = g.u32("sphinx.nul_piece_id").unwrap() as usize;
    let tokens = g.str_array("tokenizer.ggml.tokens").unwrap();
    assert!(!tokens[nul].is_empty() && !tokens[nul].contains('\0'));
    assert_eq!(tokens[799], "[UNUSED_TOKEN_15]");
    assert_eq!(g.get("tokenizer.ggml.add_space_prefix"), Some(&Value::Bool(false)));
}

#[test]
fn what_is_not_made_up() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let base = |family: &str, output: PathBuf| SynthOptions::new(family, "nano", output);
    let usage = |o: &SynthOptions, word: &str| {
        let e = synth(o, &()).unwrap_err();
        assert!(e.kind() == ErrorKind::Usage && e.to_string().contains(word), "{word}: {e}");
    };
    usage(&base("huge", at("x")), "tiny, intern2, plus, moe");
    usage(&SynthOptions { scale: "micro".into(), ..base("moe", at("x")) }, "nano or full");
    usage(&SynthOptions { llama_type: Some("mixtral".into()), ..base("plus", at("x")) }, "has experts");
    usage(&SynthOptions { llama_type: Some("llama_ens".into()), ..base("moe", at("x")) }, "has no experts");
    usage(&SynthOptions { shards: 2, ..base("moe", at("x.gguf")) }, "no shards");
    usage(&SynthOptions { shards: 3, ..base("tiny", at("x")) }, "3 shards");
    usage(&SynthOptions { shards: 65, ..base("tiny", at("x")) }, "65 shards");
    usage(&SynthOptions { shards: 3, llama_type: Some("mixtral".into()), ..base("moe", at("x")) }, "do not divide");
    usage(&SynthOptions { shards: 4, ..base("intern2", at("x")) }, "2 key heads");
    usage(&SynthOptions { layers: Some(9999), ..base("tiny", at("x")) }, "9999 layers");
    usage(&SynthOptions { quant: Some(recipe("F16")), ..base("tiny", at("x")) }, "directory");
    let e = synth(&SynthOptions { llama_type: Some("gpt".into()), ..base("tiny", at("x")) }, &()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    // A directory with shards of another cut would be no checkpoint.
    synth(&SynthOptions { vision: false, shards: 2, ..base("tiny", at("made")) }, &()).unwrap();
    usage(&SynthOptions { vision: false, ..base("tiny", at("made")) }, "--force");
    usage(&SynthOptions { vision: false, force: true, ..base("tiny", at("made")) }, "another checkpoint");
    let three = SynthOptions { vision: false, shards: 2, force: true, layers: Some(3), ..base("tiny", at("made")) };
    synth(&three, &()).unwrap();
    let output = at("m.gguf");
    convert(&options(&at("made"), &output, "F16", "F16"), &()).unwrap();
    assert_eq!(Gguf::open(&output).unwrap().u32("llama.block_count").unwrap(), 3);
}
