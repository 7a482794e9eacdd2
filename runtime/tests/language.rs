//! The decoder and its sessions against the PyTorch reference, and language files that are wrong.
//!
//! `fixtures/make_language.py` made the model and what is expected of it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use sphinx_quant::gguf::write::{Plan, TensorPlan, Writer};
use sphinx_quant::gguf::{Array, Gguf, Value};
use sphinx_quant::{ErrorKind, GgmlType};
use sphinx_runtime::vision::ImageRows;
use sphinx_runtime::{FinishReason, Options, Request, RuntimeError, Sampling, Sphinx, Template};
use sphinx_targets::KvType;
use sphinx_targets::cpu::{CpuOptions, CpuTarget};

const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/nano.gguf");
const EXPECTED: &[u8] = include_bytes!("fixtures/nano.safetensors");
const GREEDY: Request<'static> = Request { sampling: Sampling::GREEDY, max_tokens: 24, stop: &[], truncate: false };

fn open_with(path: &Path, options: &Options) -> Result<Sphinx<CpuTarget>, RuntimeError> {
    let target = CpuTarget::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
    Sphinx::open(target, path, options)
}

fn nano(options: Options) -> Sphinx<CpuTarget> {
    open_with(Path::new(NANO), &options).unwrap()
}

fn floats(name: &str) -> Vec<f32> {
    let all = SafeTensors::deserialize(EXPECTED).unwrap();
    all.tensor(name).unwrap().data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn ids(name: &str) -> Vec<u32> {
    let all = SafeTensors::deserialize(EXPECTED).unwrap();
    all.tensor(name).unwrap().data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
}

fn picture() -> ImageRows {
    ImageRows { rows: floats("rows"), count: 7, dim: 32, pictures: vec![7], views: 1, ..ImageRows::default() }
}

fn quiet(_: &str) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn assert_close(ours: &[f32], theirs: &[f32], bound: f32) {
    assert_eq!(ours.len(), theirs.len());
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= bound, "differs by {worst}, at most {bound} is allowed");
}

#[test]
fn logits_are_the_references_whatever_the_chunk() {
    let (tokens, image) = (ids("tokens"), picture());
    let mut first: Option<[Vec<f32>; 2]> = None;
    for chunk in [512, 1, 3, 64] {
        let model = nano(Options { chunk: Some(chunk), ..Options::default() });
        assert_eq!(model.kv(), KvType::F32); // whole-precision weights: a reference run
        let mut session = model.session().unwrap();
        let ours = [session.logits(&tokens, None).unwrap(), session.logits(&tokens, Some(&image)).unwrap()];
        assert_close(&ours[0], &floats("text_logits"), 2e-4);
        assert_close(&ours[1], &floats("logits"), 2e-4);
        assert_eq!(first.get_or_insert_with(|| ours.clone()), &ours, "chunks of {chunk}");
    }
}

#[test]
fn greedy_replies_are_the_references() {
    let model = nano(Options::default());
    let tokens = ids("tokens");
    let mut session = model.session().unwrap();
    let mut shown = String::new();
    let reply = session
        .generate(&tokens, Some(&picture()), &GREEDY, &mut |text| {
            shown.push_str(text);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(reply.tokens, ids("greedy"));
    assert_eq!(reply.text, model.tokenizer().decode(&reply.tokens));
    assert_eq!(reply.text, shown);
    assert_eq!((reply.prompt_tokens, reply.image_tokens, reply.finish), (tokens.len(), 7, FinishReason::Length));
    assert_eq!((reply.timings.prefill_positions, reply.timings.decode_tokens), (tokens.len() + 7, 23));
    let reply = session.generate(&tokens, None, &GREEDY, &mut quiet).unwrap();
    assert_eq!(reply.tokens, ids("text_greedy"));
}

#[test]
fn half_precision_caches_stay_close() {
    let tokens = ids("tokens");
    let model = nano(Options { kv: Some(KvType::F16), ..Options::default() });
    let mut session = model.session().unwrap();
    let ours = session.logits(&tokens, Some(&picture())).unwrap();
    assert_close(&ours, &floats("logits"), 2e-2);
    assert_eq!(session.cache_bytes(), 2 * 2 * 256 * 16 * 2); // layers, keys and values, positions, width, bytes
}

#[test]
fn a_session_keeps_the_common_prefix() {
    let model = nano(Options { chunk: Some(5), ..Options::default() });
    let (tokens, image) = (ids("tokens"), picture());
    let mut other = picture();
    other.rows[3] += 1.0;
    let mut longer = tokens.clone();
    longer.extend([300, 301, 302]);
    let mut changed = longer.clone();
    changed[10] = 5;
    let mut foreign = longer.clone();
    foreign[0] = 7;
    let cases: [(&[u32], Option<&ImageRows>, usize); 8] = [
        (&tokens, Some(&image), 0),
        (&longer, Some(&image), tokens.len() + 7),
        (&longer, Some(&image), longer.len() + 6), // the last position runs again: its logits are wanted
        (&changed, Some(&image), 10 + 7),
        (&changed, Some(&other), 1),
        (&changed, None, 1),
        (&longer, None, 10),
        (&foreign, None, 0),
    ];
    let mut session = model.session().unwrap();
    for (i, (sequence, image, reused)) in cases.into_iter().enumerate() {
        let ours = session.prefill(sequence, image).unwrap().to_vec();
        assert_eq!(session.reused_positions(), reused, "case {i}");
        assert_eq!(session.positions(), sequence.len() + image.map_or(0, |i| i.count));
        assert_eq!(ours, model.session().unwrap().prefill(sequence, image).unwrap(), "case {i}");
    }
    session.reset();
    session.prefill(&foreign, None).unwrap();
    assert_eq!(session.reused_positions(), 0);
}

/// Another picture, of other rows.
fn second() -> ImageRows {
    let mut other = picture();
    other.rows.iter_mut().for_each(|v| *v = -*v);
    other.rows.truncate(5 * 32);
    ImageRows { count: 5, pictures: vec![5], ..other }
}

#[test]
fn several_pictures_are_one_block_after_the_first_token() {
    let model = nano(Options { chunk: Some(5), ..Options::default() });
    let tokens = ids("tokens");
    let (a, b) = (picture(), second());
    let both = ImageRows::join(&[a.clone(), b.clone()]);
    assert_eq!((both.count, both.pictures.as_slice(), both.views), (12, [7, 5].as_slice(), 2));
    // The same numbers as one picture of twelve rows: nothing stands between two pictures.
    let one = ImageRows { pictures: vec![12], ..both.clone() };
    let logits = |image: &ImageRows| model.session().unwrap().logits(&tokens, Some(image)).unwrap();
    assert_eq!(logits(&both), logits(&one));
    assert_ne!(logits(&both), logits(&ImageRows::join(&[b.clone(), a.clone()])));
    let mut longer = tokens.clone();
    longer.extend([300, 301, 302]);
    let (n, m) = (tokens.len(), longer.len());
    let both_swapped = ImageRows::join(&[b.clone(), a.clone()]);
    let twice = ImageRows::join(&[a.clone(), b.clone(), b.clone()]);
    let cases: [(&[u32], Option<&ImageRows>, usize); 8] = [
        (&tokens, Some(&a), 0),
        (&tokens, Some(&both), 1 + 7), // a picture more: the first one stays
        (&longer, Some(&both), n + 12),
        (&longer, Some(&twice), 1 + 12),
        (&longer, Some(&a), 1 + 7), // two pictures less
        (&longer, Some(&both_swapped), 1),
        (&tokens, Some(&b), 1 + 5),
        (&tokens, None, 1),
    ];
    let mut session = model.session().unwrap();
    for (i, (sequence, image, reused)) in cases.into_iter().enumerate() {
        let ours = session.prefill(sequence, image).unwrap().to_vec();
        assert_eq!(session.reused_positions(), reused, "case {i}");
        assert_eq!(ours, model.session().unwrap().prefill(sequence, image).unwrap(), "case {i}");
    }
    // A conversation: what was answered is part of the prefix of the next turn.
    let reply = session.generate(&longer, Some(&twice), &GREEDY, &mut quiet).unwrap();
    assert_eq!(reply.image_tokens, 17);
    let mut turn = longer.clone();
    turn.extend(&reply.tokens);
    turn.extend([9, 10, 11]);
    let ours = session.prefill(&turn, Some(&twice)).unwrap().to_vec();
    assert_eq!(session.reused_positions(), m + 17 + reply.tokens.len() - 1); // the last one was never run
    assert_eq!(ours, model.session().unwrap().prefill(&turn, Some(&twice)).unwrap());
}

#[test]
fn too_many_pictures_are_counted() {
    let model = nano(Options { context: Some(60), ..Options::default() });
    let tokens = ids("tokens");
    let five = ImageRows::join(&vec![picture(); 5]);
    let request = Request { max_tokens: 20, ..GREEDY };
    let mut session = model.session().unwrap();
    let message = session.generate(&tokens, Some(&five), &request, &mut quiet).unwrap_err().to_string();
    let sum =
        "1 first token + 17 of text + 5 pictures × 7 rows + 20 new tokens = 73, the context has 60; at most 3 pictures of 7 rows would fit";
    assert!(message.contains(sum) && message.contains("give fewer pictures"), "{message}");
    // It is true: three fit and four do not; and it is the same before anything is encoded.
    let with = |n: usize| ImageRows::join(&vec![picture(); n]);
    assert!(session.generate(&tokens, Some(&with(3)), &request, &mut quiet).is_ok());
    assert!(session.generate(&tokens, Some(&with(4)), &request, &mut quiet).is_err());
    assert!(model.check_fit(18, &[7; 3], 20).is_ok());
    assert_eq!(model.check_fit(18, &[7; 5], 20).unwrap_err().to_string(), message);
    let mixed = model.check_fit(18, &[7, 5, 7, 7], 20).unwrap_err().to_string();
    assert!(mixed.contains("+ 26 rows of 4 pictures +") && mixed.contains("at most 3 pictures of 7 rows"), "{mixed}");
    assert!(model.check_fit(59, &[], 1).is_ok() && model.check_fit(60, &[], 1).is_err());
    assert!(model.check_fit(usize::MAX, &[usize::MAX; 3], usize::MAX).is_err());
    // For logits nothing is new.
    let message = session.logits(&tokens, Some(&with(7))).unwrap_err().to_string();
    assert!(message.contains("7 pictures × 7 rows = 67, the context has 60; at most 6 pictures"), "{message}");
}

#[test]
fn steps_equal_a_prefill() {
    let model = nano(Options::default());
    let tokens = ids("tokens");
    let mut session = model.session().unwrap();
    assert!(session.step(5).is_err());
    session.prefill(&tokens[..4], Some(&picture())).unwrap();
    for n in 4..tokens.len() {
        let row = session.step(tokens[n]).unwrap().to_vec();
        assert_eq!(row, model.session().unwrap().prefill(&tokens[..=n], Some(&picture())).unwrap());
    }
    // What steps added is part of the prefix too.
    session.prefill(&tokens, Some(&picture())).unwrap();
    assert_eq!(session.reused_positions(), tokens.len() + 6);
}

#[test]
fn a_stop_text_is_cut_off_with_its_tokens() {
    let model = nano(Options::default());
    let (tokens, greedy) = (ids("tokens"), ids("text_greedy"));
    let t = model.tokenizer();
    for n in 1..greedy.len() {
        // The texts of token n and the one after it, where they are whole characters.
        let (before, stop) = (t.decode(&greedy[..n]), t.decode(&greedy[..(n + 2).min(greedy.len())]));
        let Some(stop) = stop.strip_prefix(&before).filter(|s| !s.is_empty() && !s.contains('\u{FFFD}')) else { continue };
        let stops = [stop.to_owned()];
        let mut shown = String::new();
        let reply = model
            .session()
            .unwrap()
            .generate(&tokens, None, &Request { stop: &stops, ..GREEDY }, &mut |text| {
                shown.push_str(text);
                ControlFlow::Continue(())
            })
            .unwrap();
        let whole = t.decode(&greedy);
        assert_eq!(reply.text, whole[..whole.find(stop).unwrap()], "{stop:?}");
        assert_eq!(reply.text, shown);
        assert_eq!(reply.finish, FinishReason::Stop);
        assert!(greedy.starts_with(&reply.tokens));
        assert!(!t.decode(&reply.tokens).contains(stop));
    }
}

#[test]
fn eos_ends_a_reply_and_is_no_part_of_it() {
    // With the first greedy token as the end token, the reply is empty.
    let greedy = ids("text_greedy");
    let mut edit = Edit::nano();
    edit.set("tokenizer.ggml.eos_token_id", Value::U32(greedy[2]));
    let file = edit.save();
    let model = file.open().unwrap();
    let reply = model.session().unwrap().generate(&ids("tokens"), None, &GREEDY, &mut quiet).unwrap();
    assert_eq!((reply.tokens.as_slice(), reply.finish), (&greedy[..2], FinishReason::Stop));
    assert_eq!(reply.text, model.tokenizer().decode(&greedy[..2]));
}

#[test]
fn a_caller_can_break_off() {
    let model = nano(Options { chunk: Some(4), ..Options::default() });
    let tokens = ids("tokens");
    let mut session = model.session().unwrap();
    let reply = session.generate(&tokens, None, &GREEDY, &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!((reply.finish, reply.tokens.len()), (FinishReason::Cancelled, 0));
    assert_eq!(session.positions(), 4); // between two pieces of the prompt
    assert!(session.step(5).is_err());
    let mut left = 8;
    let reply = session
        .generate(&tokens, None, &GREEDY, &mut |_| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(reply.finish, FinishReason::Cancelled);
    assert!(ids("text_greedy").starts_with(&reply.tokens) && !reply.tokens.is_empty());
    assert_eq!(session.generate(&tokens, None, &GREEDY, &mut quiet).unwrap().tokens, ids("text_greedy"));
}

#[test]
fn equal_seeds_give_equal_replies() {
    let model = nano(Options::default());
    let reply = |seed| {
        let request = Request { sampling: Sampling { temperature: 1.0, top_p: 0.9, seed }, ..GREEDY };
        model.session().unwrap().generate(&ids("tokens"), None, &request, &mut quiet).unwrap().tokens
    };
    assert_eq!(reply(3), reply(3));
    assert_ne!(reply(3), reply(4));
}

#[test]
fn prompts_that_do_not_fit() {
    let (tokens, image) = (ids("tokens"), picture());
    assert_eq!(tokens.len(), 18);
    let model = nano(Options { context: Some(40), ..Options::default() });
    let mut session = model.session().unwrap();
    let usage = |e: RuntimeError| {
        assert_eq!(e.kind(), ErrorKind::Usage);
        e.to_string()
    };
    // Room 33; with 16 new tokens 17 are left for 18.
    let request = Request { max_tokens: 16, ..GREEDY };
    let message = usage(session.generate(&tokens, Some(&image), &request, &mut quiet).unwrap_err());
    assert!(message.contains("needs 18 tokens, 17 are available"), "{message}");
    let sum =
        "1 first token + 17 of text + 1 picture × 7 rows + 16 new tokens = 41, the context has 40; not one picture of 7 rows would fit";
    assert!(message.contains(sum) && message.contains("--context 41 or more"), "{message}");
    assert!(session.generate(&tokens, Some(&image), &Request { max_tokens: 15, ..GREEDY }, &mut quiet).is_ok());
    // Truncation keeps the last ids; the picture follows whatever is first.
    let cut = session.generate(&tokens, Some(&image), &Request { truncate: true, ..request.clone() }, &mut quiet).unwrap();
    let whole = session.generate(&tokens[1..], Some(&image), &request, &mut quiet).unwrap();
    assert_eq!((cut.tokens, cut.dropped_tokens, cut.prompt_tokens), (whole.tokens, 1, 17));
    let message =
        usage(session.generate(&tokens, Some(&image), &Request { max_tokens: 33, truncate: true, ..GREEDY }, &mut quiet).unwrap_err());
    assert!(message.contains("no position is left"), "{message}");
    usage(session.generate(&tokens, None, &Request { max_tokens: 0, ..GREEDY }, &mut quiet).unwrap_err());
    usage(session.generate(&tokens, None, &Request { stop: &[String::new()], ..GREEDY }, &mut quiet).unwrap_err());
    usage(session.logits(&[1; 41], None).unwrap_err());
    usage(session.logits(&[1; 34], Some(&image)).unwrap_err());
    usage(session.logits(&[], None).unwrap_err());
    let message = usage(session.logits(&[1, 800], None).unwrap_err());
    assert!(message.contains("800"), "{message}");
    let narrow = ImageRows { rows: vec![0.0; 7 * 16], dim: 16, ..picture() };
    assert!(usage(session.logits(&[1], Some(&narrow)).unwrap_err()).contains("width 16"));
    let short = ImageRows { pictures: vec![3, 3], ..picture() };
    assert!(usage(session.logits(&[1], Some(&short)).unwrap_err()).contains("[3, 3] per picture"));
    for n in 1..=22 {
        session.prefill(&tokens, None).unwrap();
        if n > 1 {
            session.step(4).unwrap();
        }
    }
    session.prefill(&[1; 40], None).unwrap();
    assert!(usage(session.step(4).unwrap_err()).contains("context of 40"));
}

/// A copy of the nano model that can be spoiled.
struct Edit {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(TensorPlan, Vec<u8>)>,
}

struct Saved {
    folder: tempfile::TempDir,
}

impl Saved {
    fn path(&self) -> PathBuf {
        self.folder.path().join("model.gguf")
    }

    fn open(&self) -> Result<Sphinx<CpuTarget>, RuntimeError> {
        open_with(&self.path(), &Options::default())
    }
}

impl Edit {
    fn nano() -> Edit {
        let file = Gguf::open(Path::new(NANO)).unwrap();
        let plan = |t: &sphinx_quant::Tensor| TensorPlan { name: t.name().into(), ty: t.ty(), dims: t.dims().to_vec() };
        Edit { metadata: file.metadata().to_vec(), tensors: file.tensors().iter().map(|t| (plan(t), t.bytes().to_vec())).collect() }
    }

    fn set(&mut self, key: &str, value: Value) {
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some(pair) => pair.1 = value,
            None => self.metadata.push((key.into(), value)),
        }
    }

    fn remove(&mut self, key: &str) {
        self.metadata.retain(|(k, _)| k != key);
    }

    fn tensor(&mut self, name: &str) -> &mut (TensorPlan, Vec<u8>) {
        self.tensors.iter_mut().find(|t| t.0.name == name).unwrap()
    }

    fn add_tensor(&mut self, name: &str, dims: &[usize]) {
        let plan = TensorPlan { name: name.into(), ty: GgmlType::F32, dims: dims.to_vec() };
        self.tensors.push((plan, vec![0; 4 * dims.iter().product::<usize>()]));
    }

    fn save_as(&self, path: &Path) {
        let plan = Plan { metadata: self.metadata.clone(), tensors: self.tensors.iter().map(|t| t.0.clone()).collect(), alignment: 32 };
        let mut writer = Writer::create(path, plan).unwrap();
        for (_, bytes) in &self.tensors {
            writer.write(bytes).unwrap();
        }
        writer.finish().unwrap().commit().unwrap();
    }

    fn save(&self) -> Saved {
        let saved = Saved { folder: tempfile::tempdir().unwrap() };
        self.save_as(&saved.path());
        saved
    }

    /// Opens the spoiled file, which must be refused as invalid in words that contain `words`.
    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let file = self.save();
        let Err(e) = file.open() else { panic!("was not refused, expected {words:?}") };
        assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
        let message = e.to_string();
        assert!(message.starts_with(&file.path().display().to_string()), "{message}");
        assert!(words.iter().all(|w| message.contains(w)), "{message}: expected {words:?}");
    }
}

#[test]
fn hyper_parameters_out_of_range_are_named() {
    let sizes = ["block_count", "embedding_length", "feed_forward_length", "attention.head_count", "context_length"];
    for key in sizes.map(|k| format!("llama.{k}")) {
        let values =
            [Value::U32(0), Value::U32(u32::MAX), Value::U32(1 << 31), Value::I32(-1), Value::F32(f32::NAN), Value::Str("2".into())];
        for value in values {
            let mut edit = Edit::nano();
            edit.set(&key, value);
            edit.refused(&[&key]);
        }
        let mut edit = Edit::nano();
        edit.remove(&key);
        edit.refused(&[&key]);
    }
    for stops in [vec![String::new()], vec!["x".repeat(1025)], vec!["x".into(); 65]] {
        let mut edit = Edit::nano();
        edit.set("sphinx.stop", Value::Array(Array::Str(stops)));
        edit.refused(&["sphinx.stop", "at most 64"]);
    }
    let single = [
        ("attention.head_count", Value::U32(3)),
        ("attention.head_count", Value::U32(32)),
        ("attention.head_count_kv", Value::U32(0)),
        ("attention.head_count_kv", Value::U32(3)),
        ("attention.head_count_kv", Value::Bool(true)),
        ("attention.layer_norm_rms_epsilon", Value::F32(0.0)),
        ("attention.layer_norm_rms_epsilon", Value::F32(-1e-5)),
        ("attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)),
        ("attention.layer_norm_rms_epsilon", Value::U32(1)),
        ("rope.freq_base", Value::F32(0.0)),
        ("rope.freq_base", Value::F32(f32::NAN)),
        ("rope.freq_base", Value::F32(f32::INFINITY)),
        ("rope.dimension_count", Value::U32(8)),
        ("rope.scaling.type", Value::Str("yarn".into())),
        ("rope.scaling.factor", Value::F32(-1.0)),
        ("rope.scaling.factor", Value::F32(f32::NAN)),
        ("vocab_size", Value::U32(801)),
        ("context_length", Value::U32(1)),
    ];
    for (key, value) in single {
        let key = format!("llama.{key}");
        let mut edit = Edit::nano();
        edit.set(&key, value);
        edit.refused(&[&key]);
    }
}

#[test]
fn models_that_are_something_else() {
    let mut edit = Edit::nano();
    edit.set("llama.expert_count", Value::U32(8));
    edit.set("llama.expert_used_count", Value::U32(2));
    edit.refused(&["blk.0.ffn_gate_inp.weight", "missing"]);
    let mut edit = Edit::nano();
    edit.set("general.architecture", Value::Str("whisper".into()));
    edit.refused(&["\"whisper\"", "expected one of llama, internlm2, sphinx-llama"]);
    let mut edit = Edit::nano();
    edit.set("general.architecture", Value::Str("sphinx-vision".into()));
    edit.refused(&["this is the vision half", "give the language file"]);
    let mut edit = Edit::nano();
    edit.set("sphinx.template", Value::Str("{{ evil }}".into()));
    edit.refused(&["sphinx.template", "expected one of v1"]);
    let mut edit = Edit::nano();
    edit.set("tokenizer.ggml.model", Value::Str("gpt2".into()));
    edit.refused(&["tokenizer.ggml.model", "gpt2"]);
    let mut edit = Edit::nano();
    edit.set("tokenizer.ggml.eos_token_id", Value::U32(800));
    edit.refused(&["tokenizer", "800"]);
    let mut edit = Edit::nano();
    edit.set("tokenizer.ggml.scores", Value::from(vec![0f32; 799]));
    edit.refused(&["tokenizer", "799 scores"]);
}

#[test]
fn tensors_that_do_not_fit() {
    let all: Vec<TensorPlan> = Edit::nano().tensors.into_iter().map(|t| t.0).collect();
    assert_eq!(all.len(), 3 + 2 * 9);
    for plan in &all {
        let mut edit = Edit::nano();
        edit.set("sphinx.pair_id", Value::Str("0".repeat(32)));
        edit.tensors.retain(|t| t.0.name != plan.name);
        edit.refused(&["missing", &plan.name]);
        // One row less, and turned around.
        let mut edit = Edit::nano();
        let (spoiled, bytes) = edit.tensor(&plan.name);
        *spoiled.dims.last_mut().unwrap() -= 1;
        bytes.truncate(4 * spoiled.dims.iter().product::<usize>());
        edit.refused(&[&plan.name, if plan.name == "token_embd.weight" { "799 rows" } else { "expected [" }]);
        if plan.dims.len() == 2 && plan.dims[0] != plan.dims[1] {
            let mut edit = Edit::nano();
            edit.tensor(&plan.name).0.dims.reverse();
            edit.refused(&[&plan.name]);
        }
    }
    let mut edit = Edit::nano();
    edit.set("llama.block_count", Value::U32(1));
    edit.refused(&["blk.1.", "1 layers"]);
    for (name, words) in
        [("blk.0.attn_q.bias", "llama model has not"), ("rope_freqs.weight", "has not"), ("blk.0.ffn_gate_inp.weight", "dense")]
    {
        let mut edit = Edit::nano();
        edit.add_tensor(name, &[32]);
        edit.refused(&[name, words]);
    }
    let mut edit = Edit::nano();
    edit.add_tensor("something.else", &[32]);
    let file = edit.save();
    assert_eq!(file.open().unwrap().params().unused_tensors, ["something.else"]);
}

#[test]
fn a_plain_file_may_share_its_embedding_table() {
    let mut edit = Edit::nano();
    edit.tensors.retain(|t| t.0.name != "output.weight");
    let mut copied = Edit::nano();
    let table = copied.tensor("token_embd.weight").1.clone();
    copied.tensor("output.weight").1 = table;
    let (tied, copied) = (edit.save(), copied.save());
    let logits = |file: &Saved| file.open().unwrap().session().unwrap().logits(&[1, 5, 9], None).unwrap();
    assert_eq!(logits(&tied), logits(&copied));
}

#[test]
fn numbers_that_are_none_end_the_run() {
    let mut edit = Edit::nano();
    edit.tensor("blk.1.ffn_norm.weight").1[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let file = edit.save();
    let model = file.open().unwrap();
    let e = model.session().unwrap().generate(&[1, 5, 9], None, &GREEDY, &mut quiet).unwrap_err();
    assert!(matches!(e, RuntimeError::NotFinite { position: 2, .. }), "{e}");
    assert_eq!(e.kind(), ErrorKind::Invalid);
    assert!(e.to_string().contains("model.gguf"));
    // All-zero weights, though, are numbers.
    let mut edit = Edit::nano();
    edit.tensors.iter_mut().for_each(|t| t.1.fill(0));
    let file = edit.save();
    let reply = file.open().unwrap().session().unwrap().generate(&[1, 5, 9], None, &GREEDY, &mut quiet).unwrap();
    assert_eq!(reply.tokens, [0; 24]);
}

#[test]
fn the_two_halves_must_be_a_pair() {
    let file = Edit::nano().save();
    let picture = |model: &Sphinx<CpuTarget>| model.vision().err().unwrap().to_string();
    assert!(picture(&file.open().unwrap()).contains("text only"));

    let mut language = Edit::nano();
    language.set("sphinx.pair_id", Value::Str("a".repeat(32)));
    language.save_as(&file.folder.path().join("ours.gguf"));
    let vision = file.folder.path().join("mmproj-ours.gguf");
    let mut other = Edit::nano();
    other.set("general.architecture", Value::Str("sphinx-vision".into()));
    other.set("sphinx-vision.pair_id", Value::Str("b".repeat(32)));
    other.tensors.truncate(1);
    other.save_as(&vision);
    let ours = file.folder.path().join("ours.gguf");
    let message = picture(&open_with(&ours, &Options::default()).unwrap());
    assert!(message.contains("ours.gguf") && message.contains("mmproj-ours.gguf") && message.contains("pair id bbbb"), "{message}");
    // A vision half that was asked for is checked at once.
    let given = Options { mmproj: Some(vision.clone()), ..Options::default() };
    assert_eq!(open_with(&ours, &given).err().unwrap().kind(), ErrorKind::Invalid);
    assert_eq!(open_with(&file.path(), &given).err().unwrap().kind(), ErrorKind::Invalid);
    let given = Options { mmproj: Some(file.path()), ..Options::default() };
    assert!(open_with(&ours, &given).err().unwrap().to_string().contains("sphinx-vision"));
    let given = Options { mmproj: Some(file.folder.path().join("mmproj-none.gguf")), ..Options::default() };
    assert_eq!(open_with(&ours, &given).err().unwrap().kind(), ErrorKind::Io);
    assert_eq!(open_with(&file.folder.path().join("none.gguf"), &Options::default()).err().unwrap().kind(), ErrorKind::Io);
}

#[test]
fn asking_puts_the_template_around_a_question() {
    let model = nano(Options { context: Some(1024), ..Options::default() });
    assert_eq!(model.params().template, Template::V1);
    assert_eq!(model.params().stop, ["\n###"]);
    let reply = model.ask(&[], "Why?", &mut quiet).unwrap();
    let prompt = model.tokenizer().encode_with_bos(&Template::V1.question(None, "Why?"));
    let stop = model.params().stop.clone();
    let request = Request { stop: &stop, ..Request::default() };
    let same = model.session().unwrap().generate(&prompt, None, &request, &mut quiet).unwrap();
    assert_eq!((reply.tokens, reply.prompt_tokens), (same.tokens, prompt.len()));
}

#[test]
fn senseless_options_are_refused() {
    for options in [Options { context: Some(0), ..Options::default() }, Options { chunk: Some(0), ..Options::default() }] {
        assert_eq!(open_with(Path::new(NANO), &options).err().unwrap().kind(), ErrorKind::Usage);
    }
}
