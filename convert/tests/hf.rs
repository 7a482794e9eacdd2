//! Hugging Face directories become the same model files as their twins in the public layout, bit for bit; and what such a directory
//! can say that this program does not compute is refused by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use sphinx_convert::tokenizer::{Kind, Piece, Tokenizer, encode_sentencepiece};
use sphinx_convert::*;
use sphinx_quant::ErrorKind;
use sphinx_quant::gguf::{Gguf, Value as Meta};
use sphinx_quant::recipe::Recipe;
use tempfile::TempDir;

const DIM: usize = 16;
const HEADS: usize = 4;
const KV: usize = 2;
const WIDTH: usize = DIM / HEADS;
const HIDDEN: usize = 48;
const LAYERS: usize = 2;
const EXPERTS: usize = 3;
const VOCAB: usize = 3 + 256 + 3;

/// A matrix, or a vector when there are no rows.
#[derive(Clone)]
struct Matrix {
    shape: Vec<usize>,
    data: Vec<f32>,
}

type Tensors = BTreeMap<String, Matrix>;

/// Numbers that depend on the name and the place alone; every one is different.
fn numbers(name: &str, shape: &[usize]) -> Matrix {
    let seed = name.bytes().fold(0u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b))) % 1000;
    let count: usize = shape.iter().product();
    Matrix { shape: shape.to_vec(), data: (0..count).map(|i| seed as f32 + i as f32 / 4096.0).collect() }
}

impl Matrix {
    fn rows(&self) -> Vec<Vec<f32>> {
        self.data.chunks_exact(self.shape[1]).map(<[f32]>::to_vec).collect()
    }

    fn of(rows: Vec<Vec<f32>>) -> Matrix {
        Matrix { shape: vec![rows.len(), rows[0].len()], data: rows.concat() }
    }

    /// Channels of every head moved from pairs to halves, as Hugging Face has them.
    fn halves(&self) -> Matrix {
        let rows = self.rows();
        let order = |head: usize| (0..WIDTH).map(move |i| head * WIDTH + if i < WIDTH / 2 { 2 * i } else { 2 * (i - WIDTH / 2) + 1 });
        Matrix::of((0..rows.len() / WIDTH).flat_map(order).map(|r| rows[r].clone()).collect())
    }

    fn turned(&self) -> Matrix {
        let rows = self.rows();
        Matrix::of((0..self.shape[1]).map(|c| rows.iter().map(|r| r[c]).collect()).collect())
    }

    fn below(parts: &[&Matrix]) -> Matrix {
        Matrix::of(parts.iter().flat_map(|m| m.rows()).collect())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    Llama,
    Mixtral,
    InternLm2,
}

/// The same weights in the public layout, experts fused or not, and under Hugging Face names.
fn twins(family: Family, fused: bool) -> (Tensors, Tensors) {
    let (mut ours, mut theirs) = (Tensors::new(), Tensors::new());
    let intern = family == Family::InternLm2;
    let mut both = |a: &str, b: String, m: &Matrix| {
        ours.insert(format!("llma.{a}"), m.clone());
        theirs.insert(b, m.clone());
    };
    let (embed, head) = if intern { ("model.tok_embeddings", "output") } else { ("model.embed_tokens", "lm_head") };
    both("tok_embeddings.weight", format!("{embed}.weight"), &numbers("e", &[VOCAB, DIM]));
    both("output.weight", format!("{head}.weight"), &numbers("o", &[VOCAB, DIM]));
    both("norm.weight", "model.norm.weight".into(), &numbers("n", &[DIM]));
    for i in 0..LAYERS {
        let at = |name: &str| format!("layers.{i}.{name}.weight");
        let hub = |theirs: &str, intern_name: &str| format!("model.layers.{i}.{}.weight", if intern { intern_name } else { theirs });
        both(&at("attention_norm"), hub("input_layernorm", "attention_norm"), &numbers(&format!("an{i}"), &[DIM]));
        both(&at("ffn_norm"), hub("post_attention_layernorm", "ffn_norm"), &numbers(&format!("fn{i}"), &[DIM]));
        both(&at("attention.wo"), hub("self_attn.o_proj", "attention.wo"), &numbers(&format!("wo{i}"), &[DIM, DIM]));
        if family != Family::Mixtral {
            for (w, name, shape) in [("w1", "gate", [HIDDEN, DIM]), ("w2", "down", [DIM, HIDDEN]), ("w3", "up", [HIDDEN, DIM])] {
                let named = hub(&format!("mlp.{name}_proj"), &format!("feed_forward.{w}"));
                both(&at(&format!("feed_forward.{w}")), named, &numbers(&format!("{w}{i}"), &shape));
            }
        } else {
            both(&at("feed_forward.gate"), hub("block_sparse_moe.gate", ""), &numbers(&format!("g{i}"), &[EXPERTS, DIM]));
        }
    }
    for i in 0..LAYERS {
        let q = numbers(&format!("wq{i}"), &[DIM, DIM]);
        let k = numbers(&format!("wk{i}"), &[KV * WIDTH, DIM]);
        let v = numbers(&format!("wv{i}"), &[KV * WIDTH, DIM]);
        for (name, m) in [("wq", &q), ("wk", &k), ("wv", &v)] {
            ours.insert(format!("llma.layers.{i}.attention.{name}.weight"), m.clone());
        }
        let (q, k) = (q.halves(), k.halves());
        if intern {
            let group = HEADS / KV;
            let (q, k, v) = (q.rows(), k.rows(), v.rows());
            let block = |g: usize| {
                let key = g * WIDTH..(g + 1) * WIDTH;
                [&q[g * group * WIDTH..(g + 1) * group * WIDTH], &k[key.clone()], &v[key]].concat()
            };
            theirs.insert(format!("model.layers.{i}.attention.wqkv.weight"), Matrix::of((0..KV).flat_map(block).collect()));
        } else {
            for (name, m) in [("q", &q), ("k", &k), ("v", &v)] {
                theirs.insert(format!("model.layers.{i}.self_attn.{name}_proj.weight"), m.clone());
            }
        }
        if family == Family::Mixtral {
            for (w, shape) in [("w1", [HIDDEN, DIM]), ("w2", [DIM, HIDDEN]), ("w3", [HIDDEN, DIM])] {
                let experts: Vec<Matrix> = (0..EXPERTS).map(|e| numbers(&format!("{w}{i}.{e}"), &shape)).collect();
                for (e, m) in experts.iter().enumerate() {
                    theirs.insert(format!("model.layers.{i}.block_sparse_moe.experts.{e}.{w}.weight"), m.clone());
                    if !fused {
                        ours.insert(format!("llma.layers.{i}.feed_forward.experts.{e}.{w}.weight"), m.clone());
                    }
                }
                if fused {
                    let turned: Vec<Matrix> = experts.iter().map(|m| if w == "w2" { m.turned() } else { m.clone() }).collect();
                    ours.insert(format!("llma.layers.{i}.feed_forward.{w}"), Matrix::below(&turned.iter().collect::<Vec<_>>()));
                }
            }
        }
    }
    (ours, theirs)
}

fn save(path: &Path, tensors: &Tensors) {
    let bytes: BTreeMap<&String, Vec<u8>> =
        tensors.iter().map(|(n, m)| (n, m.data.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
    let views = tensors.iter().map(|(n, m)| (n.as_str(), TensorView::new(Dtype::F32, m.shape.clone(), &bytes[n]).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The smallest vocabulary there is, with a NUL piece and one filler when it is InternLM2's.
fn vocabulary(intern: bool) -> Vec<u8> {
    let piece = |text: &str, score: f32, kind: Kind| Piece { text: text.into(), score, kind };
    let mut pieces = vec![piece("<unk>", 0.0, Kind::Unknown), piece("<s>", 0.0, Kind::Control), piece("</s>", 0.0, Kind::Control)];
    pieces.extend((0..256).map(|b| piece(&format!("<0x{b:02X}>"), 0.0, Kind::Byte)));
    pieces.push(piece(if intern { "\0" } else { "b" }, -1.0, Kind::Normal));
    pieces.push(piece("a", -2.0, Kind::Normal));
    pieces.push(piece(if intern { "[UNUSED_TOKEN_0]" } else { "ab" }, -3.0, Kind::Normal));
    encode_sentencepiece(&Tokenizer { pieces, unk: 0, bos: 1, eos: 2, add_space_prefix: !intern })
}

fn hub_config(family: Family) -> Value {
    let mut config = json!({
        "hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV, "intermediate_size": HIDDEN,
        "rms_norm_eps": 1e-5, "rope_theta": 20000.0, "vocab_size": VOCAB, "max_position_embeddings": 512, "hidden_act": "silu",
        "tie_word_embeddings": false, "attention_bias": false, "rope_scaling": {"type": "linear", "factor": 4.0},
    });
    let more = match family {
        Family::Llama => json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "mlp_bias": false}),
        Family::Mixtral => {
            json!({"model_type": "mixtral", "num_local_experts": EXPERTS, "num_experts_per_tok": 2, "head_dim": WIDTH, "sliding_window": null})
        }
        Family::InternLm2 => json!({"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "bias": false}),
    };
    let (Value::Object(config_map), Value::Object(more)) = (&mut config, more) else { panic!() };
    config_map.extend(more);
    config
}

fn write_hub(folder: &Path, family: Family, tensors: &Tensors, config: &Value) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.model"), vocabulary(family == Family::InternLm2)).unwrap();
    // In two parts, so that an index is read too.
    let middle = tensors.keys().nth(tensors.len() / 2).unwrap().clone();
    let (mut first, mut map) = (tensors.clone(), serde_json::Map::new());
    let second = first.split_off(&middle);
    for (i, part) in [first, second].iter().enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", i + 1);
        save(&folder.join(&file), part);
        map.extend(part.keys().map(|n| (n.clone(), Value::from(file.clone()))));
    }
    std::fs::write(folder.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
}

fn write_ours(folder: &Path, family: Family, llama_type: &str, tensors: &Tensors) {
    std::fs::create_dir_all(folder).unwrap();
    let mut config = json!({
        "dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV, "norm_eps": 1e-5, "rope_theta": 20000, "rope_scaling": 0.25,
        "max_seq_len": 512,
    });
    if family == Family::Mixtral {
        config["hidden_dim"] = HIDDEN.into();
        config["moe"] = json!({"num_experts": EXPERTS, "num_experts_per_tok": 2});
    } else {
        config["multiple_of"] = 8.into();
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("meta.json"), json!({"llama_type": llama_type}).to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.model"), vocabulary(family == Family::InternLm2)).unwrap();
    save(&folder.join("model.safetensors"), tensors);
}

fn options(input: &Path, output: &Path) -> ConvertOptions {
    let f32s = Recipe::named("F32").unwrap();
    ConvertOptions {
        inputs: vec![input.to_owned()],
        output: output.to_owned(),
        quant: f32s.clone(),
        vision_quant: f32s,
        llama_type: None,
        context: None,
        vision: None,
        layout: None,
        arch: Arch::Llama,
        rope_order: None,
        clip_quick_gelu: false,
        skip_tensor: None,
        pad_anchor: None,
        imatrix: None,
        max_memory: None,
        threads: 1,
        force: false,
        strict: false,
    }
}

/// Names, types, shapes and bytes of a model file, and its settings but for where they came from.
type Contents = (BTreeMap<String, (String, Vec<usize>, Vec<u8>)>, BTreeMap<String, Meta>);

fn contents(path: &Path) -> Contents {
    let g = Gguf::open(path).unwrap();
    let tensors = g.tensors().iter().map(|t| (t.name().to_owned(), (t.ty().to_string(), t.dims().to_vec(), t.bytes().to_vec())));
    // Both ids and the digest of the header depend on the names that tensors had.
    let origin = ["general.name", "llama_type", "pair_id", "checksum.header"];
    let settings = g.metadata().iter().filter(|(k, _)| !origin.iter().any(|end| k.ends_with(end))).map(|(k, v)| (k.clone(), v.clone()));
    (tensors.collect(), settings.collect())
}

/// Settings that only one of them has, or both differently.
fn odd_settings<'a>(a: &'a Contents, b: &'a Contents) -> Vec<&'a String> {
    a.1.keys().chain(b.1.keys()).filter(|k| a.1.get(*k) != b.1.get(*k)).collect()
}

fn folder() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}

#[test]
fn twins_are_equal_bit_for_bit() {
    for (family, llama_type, fused) in [
        (Family::Llama, "llama", false),
        (Family::Mixtral, "mixtral", false),
        (Family::Mixtral, "mixtral_sparse", true),
        (Family::InternLm2, "llama", false),
    ] {
        let (_dir, at) = folder();
        let (ours, theirs) = twins(family, fused);
        write_ours(&at.join("ours"), family, llama_type, &ours);
        write_hub(&at.join("theirs"), family, &theirs, &hub_config(family));
        let made = |name: &str| {
            let output = at.join(format!("{name}.gguf"));
            let report = convert(&options(&at.join(name), &output), &()).unwrap();
            assert_eq!(report.warnings, Vec::<String>::new(), "{family:?} {name}");
            contents(&output)
        };
        let (a, b) = (made("ours"), made("theirs"));
        assert_eq!(a.0.keys().collect::<Vec<_>>(), b.0.keys().collect::<Vec<_>>(), "{family:?}");
        for (name, tensor) in &a.0 {
            assert!(*tensor == b.0[name], "{family:?} {llama_type}: {name} differs");
        }
        assert_eq!(odd_settings(&a, &b), Vec::<&String>::new(), "{family:?}");
        let nul = a.1.get("sphinx.nul_piece_id");
        assert_eq!(nul, (family == Family::InternLm2).then_some(&Meta::U32(259)));
    }
}

#[test]
fn one_matrix_for_both_ends_is_written_twice() {
    for family in [Family::Llama, Family::InternLm2] {
        let (_dir, at) = folder();
        let (_, mut theirs) = twins(family, false);
        theirs.retain(|name, _| !["lm_head.weight", "output.weight"].contains(&name.as_str()));
        let mut config = hub_config(family);
        write_hub(&at.join("untied"), family, &theirs, &config);
        let error = convert(&options(&at.join("untied"), &at.join("a.gguf")), &()).unwrap_err().to_string();
        assert!(error.contains("an expected tensor is missing") && !error.contains("llma."), "{error}");
        config["tie_word_embeddings"] = true.into();
        write_hub(&at.join("tied"), family, &theirs, &config);
        convert(&options(&at.join("tied"), &at.join("b.gguf")), &()).unwrap();
        let tensors = contents(&at.join("b.gguf")).0;
        assert!(tensors["output.weight"] == tensors["token_embd.weight"]);
    }
}

#[test]
fn a_decoder_and_a_visual_half_make_a_whole() {
    let (_dir, at) = folder();
    let whole = at.join("whole");
    let invention = SynthOptions { seed: 5, threads: 2, ..SynthOptions::new("tiny", "nano", whole.clone()) };
    synth(&invention, &()).unwrap();
    // Taken apart: the decoder under Hugging Face names, the rest in a file of its own.
    let opened = checkpoint::Checkpoint::open(std::slice::from_ref(&whole)).unwrap();
    let (mut decoder, mut visual) = (Tensors::new(), Tensors::new());
    let config = opened.config().clone();
    for name in opened.names() {
        let merged = opened.merged(name, checkpoint::Rule::Same).unwrap();
        let mut m = Matrix { shape: merged.shape().to_vec(), data: vec![0.0; merged.rows() * merged.cols()] };
        merged.read_rows(0..merged.rows(), &mut m.data).unwrap();
        let short = name.strip_prefix("llma.").unwrap();
        if ["layers.", "tok_embeddings.", "norm.", "output."].iter().any(|p| short.starts_with(p)) {
            // Named as an InternLM2 names them that does not pack its attention; rotary pairs as they are.
            decoder.insert(if short == "output.weight" { short.into() } else { format!("model.{short}") }, m);
        } else {
            visual.insert(name.to_owned(), m);
        }
    }
    let hidden = decoder["model.layers.0.feed_forward.w1.weight"].shape[0];
    let of = |key: &str| config[key].clone();
    let hub = json!({
        "model_type": "internlm2", "hidden_size": of("dim"), "num_hidden_layers": of("n_layers"), "num_attention_heads": of("n_heads"),
        "num_key_value_heads": of("n_kv_heads"), "intermediate_size": hidden, "rms_norm_eps": of("norm_eps"), "rope_theta": of("rope_theta"),
        "max_position_embeddings": of("max_seq_len"),
    });
    write_hub(&at.join("decoder"), Family::InternLm2, &decoder, &hub);
    std::fs::copy(whole.join("tokenizer.model"), at.join("decoder/tokenizer.model")).unwrap();
    save(&at.join("visual.safetensors"), &visual);

    convert(&options(&whole, &at.join("w.gguf")), &()).unwrap();
    let o = ConvertOptions {
        llama_type: Some("llama_ens5_light".into()),
        rope_order: Some(registry::RopeOrder::Pairs),
        ..options(&at.join("decoder"), &at.join("p.gguf"))
    };
    for vision in [at.join("visual.safetensors"), whole.clone()] {
        let o = ConvertOptions { vision: Some(vision.clone()), force: true, ..o.clone() };
        let report = convert(&o, &()).unwrap();
        // Of a whole checkpoint that gives its visual half, the decoder is not worth two hundred warnings.
        assert!(report.warnings.len() <= 1, "{:?}", report.warnings);
        for file in ["w.gguf", "mmproj-w.gguf"] {
            let (a, b) = (contents(&at.join(file)), contents(&at.join(file.replace("w.", "p."))));
            assert!(a.0 == b.0, "{file}: tensors differ");
            assert_eq!(odd_settings(&a, &b), Vec::<&String>::new(), "{file}");
        }
    }
    // Channels half a head apart, as the family has them, is another model.
    let o = ConvertOptions { rope_order: None, llama_type: None, vision: Some(whole), force: true, ..o };
    convert(&o, &()).unwrap();
    assert!(contents(&at.join("w.gguf")).0["blk.0.attn_q.weight"] != contents(&at.join("p.gguf")).0["blk.0.attn_q.weight"]);
    let o = ConvertOptions { vision: Some(at.join("visual.safetensors")), ..o };
    let error = convert(&o, &()).unwrap_err();
    assert!(error.kind() == ErrorKind::Usage && error.to_string().contains("--llama-type"), "{error}");
    for (llama_type, want) in [("mixtral_sparse_ens5", "not what this decoder is"), ("llama", "is text only"), ("x", "is unknown")] {
        let error = convert(&ConvertOptions { llama_type: Some(llama_type.into()), ..o.clone() }, &()).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

/// Converting a LLaMA whose settings or tensors were spoilt.
fn spoilt(spoil: impl FnOnce(&mut Value, &mut Tensors)) -> Result<Report> {
    let (_dir, at) = folder();
    let (_, mut tensors) = twins(Family::Llama, false);
    let mut config = hub_config(Family::Llama);
    spoil(&mut config, &mut tensors);
    write_hub(&at.join("hub"), Family::Llama, &tensors, &config);
    dry_run(&options(&at.join("hub"), &at.join("x.gguf")), &())
}

#[test]
fn settings_that_make_another_model_are_refused_by_name() {
    for (key, value, want) in [
        ("model_type", json!("qwen2"), "supported Hugging Face models: llama, mixtral, internlm2"),
        ("model_type", json!("mixtral"), "name different models"),
        ("architectures", json!(["LlavaForConditionalGeneration"]), "LlavaForConditionalGeneration"),
        ("attention_bias", json!(true), "attention_bias is true"),
        ("mlp_bias", json!(true), "mlp_bias is true"),
        ("bias", json!(true), "bias is true"),
        ("quantization_config", json!({"quant_method": "gptq", "bits": 4}), "quantization_config is {"),
        ("hidden_act", json!("gelu"), "hidden_act is \"gelu\""),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor is 0.5"),
        ("head_dim", json!(8), "head_dim is 8"),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0}), "rope_scaling is {"),
        ("rope_parameters", json!({"rope_type": "yarn", "factor": 8.0}), "rope_parameters is {"),
        ("rope_theta", json!("x"), "rope_theta is \"x\""),
        ("hidden_size", Value::Null, "hidden_size is missing"),
        ("hidden_size", json!(24), "hidden_size is 24, but the tensor has 16 rows"),
        ("hidden_size", json!(0), "hidden_size is 0"),
        ("hidden_size", json!(16.5), "hidden_size is 16.5"),
        ("hidden_size", json!([16]), "hidden_size is [16]"),
        ("hidden_size", json!(u64::MAX), "hidden_size is 18446744073709551615"),
        ("num_hidden_layers", json!(3), "model.layers.2"),
        ("num_hidden_layers", json!(1), "num_hidden_layers is 1, but there is a layer beyond"),
        ("num_hidden_layers", json!(1 << 20), "model.layers.2"),
        ("num_attention_heads", json!(3), "does not split into 3 heads"),
        ("num_attention_heads", json!(16), "does not split into 16 heads of even width"),
        ("num_key_value_heads", json!(3), "do not share 3 key heads"),
        ("num_key_value_heads", json!(4), "self_attn.k_proj"),
        ("intermediate_size", json!(49), "intermediate_size is 49, but the tensor has 48 rows"),
        ("vocab_size", json!(VOCAB + 1), "vocab_size is 263, but the tensor has 262 rows"),
        ("rms_norm_eps", json!(-1), "rms_norm_eps is -1"),
        ("max_position_embeddings", json!(-5), "max_position_embeddings is -5"),
    ] {
        let error = spoilt(|config, _| config[key] = value.clone()).expect_err(want);
        let text = error.to_string();
        assert!(error.kind() == ErrorKind::Invalid && text.contains(want) && !text.contains("llma."), "{key}: {text}");
    }
    for (config, want) in [(json!([]), "not an object"), (json!({}), "neither model_type nor architectures")] {
        let error = spoilt(|c, _| *c = config).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    let notes = |key: &str, value: Value| spoilt(|config, _| config[key] = value).unwrap().warnings;
    assert!(notes("sliding_window", json!(4096))[0].contains("sliding_window 4096 is ignored"));
    assert!(notes("rope_scaling", json!({"type": "dynamic", "factor": 2.0}))[0].contains("dynamic"));
    assert_eq!(notes("use_cache", json!("whatever")), Vec::<String>::new());
}

#[test]
fn tensors_of_another_model_are_refused_by_name() {
    let error = |spoil: fn(&mut Tensors)| {
        let error = spoilt(|_, t| spoil(t)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        error.to_string()
    };
    let bias = error(|t| drop(t.insert("model.layers.1.self_attn.q_proj.bias".into(), numbers("b", &[DIM]))));
    assert!(bias.contains("has a bias") && bias.contains("self_attn.q_proj.bias"), "{bias}");
    let both = error(|t| drop(t.insert("llma.norm.weight".into(), numbers("b", &[DIM]))));
    assert!(both.contains("two layouts"), "{both}");
    let missing = error(|t| drop(t.remove("model.layers.1.mlp.up_proj.weight")));
    assert!(missing.contains("missing: tensor \"model.layers.1.mlp.up_proj.weight\""), "{missing}");
    let shape = error(|t| drop(t.insert("model.layers.1.self_attn.v_proj.weight".into(), numbers("b", &[DIM, DIM]))));
    assert!(shape.contains("shape is [16, 16], expected [8, 16]") && shape.contains("v_proj"), "{shape}");
    // What the code keeps in its states and nobody needs.
    let more = spoilt(|_, t| drop(t.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), numbers("f", &[WIDTH / 2])))).unwrap();
    assert_eq!(more.warnings, Vec::<String>::new());
}
