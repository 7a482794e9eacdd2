//! Experts from disk: the same numbers as from the map, whatever the cache, the policy and the number of threads.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use sphinx_convert::QuantizeOptions;
use sphinx_quant::recipe::ExpertLayout;
use sphinx_runtime::experts::{Policy, Stats, Streaming};
use sphinx_runtime::{Options, Picture, RuntimeError, Sphinx};
use sphinx_targets::Target;
use sphinx_targets::cpu::{CpuOptions, CpuTarget};
use support::{Quiet, convert, fixture, recipe, root};

/// Logits of a prompt with a picture and of `steps` greedy steps after it, and what the cache did.
fn greedy(model: &Path, image: Option<&Path>, threads: usize, streaming: Option<Streaming>, steps: usize) -> (Vec<f32>, Stats) {
    let target = CpuTarget::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).expect("a target");
    let (logits, stats, _) = greedy_on(target, model, image, streaming, steps);
    (logits, stats)
}

/// The same on any target, and how many bytes of memory and of the device the cache took.
fn greedy_on<T: Target>(
    target: T,
    model: &Path,
    image: Option<&Path>,
    streaming: Option<Streaming>,
    steps: usize,
) -> (Vec<f32>, Stats, [usize; 2]) {
    let options = Options { streaming, ..Options::default() };
    let model = Sphinx::open(target, model, &options).expect("the model opens");
    let image = image.map(|image| model.encode(&Picture::open(image).expect("a picture"), &mut ()).expect("rows"));
    let mut session = model.session().expect("a session");
    let prompt: Vec<u32> = (0..90).map(|i| 3 + (i * 7919) % (model.params().vocabulary as u32 - 3)).collect();
    let mut all = session.prefill(&prompt, image.as_ref()).expect("logits").to_vec();
    let mut last = all.clone();
    for _ in 0..steps {
        let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).expect("a token");
        last = session.step(best as u32).expect("logits").to_vec();
        all.extend_from_slice(&last);
    }
    let streamed = model.decoder().experts().streamed();
    let bytes = streamed.map_or([0; 2], |s| [s.held_bytes(), s.device_bytes()]);
    (all, streamed.map(|s| s.stats()).unwrap_or_default(), bytes)
}

/// Bytes of memory that the largest expert takes.
fn one(model: &Path) -> usize {
    let file = sphinx_quant::gguf::Gguf::open(model).expect("the file");
    let mut layers: BTreeMap<&str, usize> = BTreeMap::new();
    for t in file.tensors().iter().filter(|t| t.name().contains("_exps")) {
        // An expert may begin anywhere in its first page.
        *layers.entry(t.name().split('.').nth(1).expect("a layer")).or_default() += (t.bytes().len() / t.dims()[2] + 8191) / 4096 * 4096;
    }
    layers.into_values().max().expect("experts")
}

#[test]
fn streamed_and_resident_experts_give_the_same_logits() {
    let nano = root().join("nano");
    for (name, checkpoint, image) in [
        ("moe5", fixture("moe5/checkpoint"), Some(fixture("moe5/image.png"))),
        ("mixtral", fixture("mixtral/checkpoint"), None),
        ("nano", nano.join("moe"), Some(nano.join("test/000.png"))),
    ] {
        let folder = tempfile::tempdir().expect("a directory");
        let model = convert(&checkpoint, folder.path(), name, "Q4_K_M");
        let image = image.as_deref();
        let (resident, _) = greedy(&model, image, 1, None, 64);
        let one = one(&model);
        let mut hits = Vec::new();
        for (slots, policy, threads) in
            [(1, Policy::Foresight, 1), (3, Policy::Lru, 2), (5, Policy::Lfu, 1), (7, Policy::Foresight, 2), (1000, Policy::Foresight, 2)]
        {
            let streaming = Streaming { cache_bytes: slots * one, policy, verify_reads: slots == 3, readers: 2 };
            let (streamed, stats) = greedy(&model, image, threads, Some(streaming), 64);
            assert_eq!(streamed.len(), resident.len());
            let differing = streamed.iter().zip(&resident).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert_eq!(differing, 0, "{name}, room for {slots}, {policy:?}, {threads} threads");
            assert!(stats.hits + stats.misses + stats.foreseen >= 65);
            hits.push(stats.hits);
        }
        // Room for all: after the prompt nothing is read.
        assert!(hits[4] >= hits[0] && hits[4] > 64, "{hits:?}");
    }
}

/// candle's CPU device goes the way that GPUs go: weights are copied, experts by the threads that read them.
#[cfg(feature = "candle")]
#[test]
fn experts_that_are_copied_to_a_device_are_the_same() {
    let folder = tempfile::tempdir().expect("a directory");
    let model = convert(&fixture("moe5/checkpoint"), folder.path(), "moe5", "Q4_K_M");
    let image = fixture("moe5/image.png");
    let on = |copies, streaming| {
        let target = sphinx_targets::candle::CandleTarget::cpu().expect("a target").with_copies(copies);
        greedy_on(target, &model, Some(&image), streaming, 24)
    };
    let (in_place, _, _) = on(false, None);
    let (resident, _, _) = on(true, None);
    assert!(in_place == resident, "copies are what they were made of");
    let one = one(&model);
    for (slots, policy, readers) in [(1, Policy::Foresight, 1), (3, Policy::Lru, 4), (1000, Policy::Foresight, 2)] {
        let streaming = Streaming { cache_bytes: slots * one, policy, verify_reads: slots == 3, readers };
        let (streamed, stats, [memory, device]) = on(true, Some(streaming));
        assert!(streamed == resident, "room for {slots}, {policy:?}, {readers} readers");
        assert!(stats.hits + stats.misses + stats.foreseen >= 25);
        // The cache is on the device. Here are buffers for three on their way, of one size for every part.
        assert!(device > 0 && device <= slots * one && memory > 0 && memory <= 3 * 3 * one, "{memory} and {device} for {slots} of {one}");
        // In memory, where nothing is copied.
        let (in_memory, _, [memory, device]) = on(false, Some(streaming));
        assert!(in_memory == resident && device == 0 && memory <= slots * one);
    }
}

#[test]
fn experts_side_by_side_are_the_same_experts() {
    let case = fixture("moe5");
    let folder = tempfile::tempdir().expect("a directory");
    let stacked = convert(&case.join("checkpoint"), folder.path(), "stacked", "Q4_K_M");
    let recipe = |layout| recipe("Q4_K_M").with_expert_layout(layout);
    let quantise = |input: &Path, name: &str, layout| {
        let output = folder.path().join(format!("{name}.gguf"));
        let options = QuantizeOptions {
            input: input.to_owned(),
            output: output.clone(),
            quant: recipe(layout),
            imatrix: None,
            threads: 2,
            max_memory: None,
            force: false,
        };
        sphinx_convert::quantize(&options, &Quiet).expect("the file is written");
        output
    };
    let contiguous = quantise(&stacked, "contiguous", ExpertLayout::Contiguous);
    let back = quantise(&contiguous, "back", ExpertLayout::Stacked);
    std::fs::copy(folder.path().join("mmproj-stacked.gguf"), folder.path().join("mmproj-contiguous.gguf")).expect("the other half");
    assert!(std::fs::read(&stacked).expect("a file") == std::fs::read(back).expect("a file"), "there and back again");

    // Each expert is one run of bytes, and a reader of other makes refuses the architecture by its name.
    let file = sphinx_quant::gguf::Gguf::open(&contiguous).expect("the file");
    assert_eq!(file.arch(), "sphinx-llama");
    let place = |stack: &str| {
        let t = file.tensor(&format!("blk.1.ffn_{stack}_exps.2.weight")).expect("an expert");
        t.backing().1
    };
    let (gate, up, down) = (place("gate"), place("up"), place("down"));
    assert!(gate.end <= up.start && up.start < gate.end + 16384 && up.end <= down.start && down.start < up.end + 16384);
    drop(file);

    let image = case.join("image.png");
    let (resident, _) = greedy(&stacked, Some(&image), 2, None, 16);
    for streaming in
        [None, Some(Streaming { cache_bytes: 4 * one(&stacked) + 65536, policy: Policy::Foresight, verify_reads: true, readers: 2 })]
    {
        let (other, _) = greedy(&contiguous, Some(&image), 2, streaming, 16);
        assert!(other == resident, "{streaming:?}");
    }
}

#[test]
fn layers_and_encoders_that_come_and_go_are_the_same() {
    let case = fixture("light5");
    let folder = tempfile::tempdir().expect("a directory");
    let path = convert(&case.join("checkpoint"), folder.path(), "light", "Q8_0");
    let logits = |resident_layers, stream_encoders| {
        let target = CpuTarget::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).expect("a target");
        let options = Options { resident_layers, stream_encoders, ..Options::default() };
        let model = Sphinx::open(target, &path, &options).expect("the model opens");
        let picture = Picture::open(&case.join("image.png")).expect("a picture");
        let image = model.encode(&picture, &mut ()).expect("rows");
        let again = model.encode(&picture, &mut ()).expect("rows");
        assert!(image.rows == again.rows);
        let mut session = model.session().expect("a session");
        let mut all = session.prefill(&[1, 5, 9, 77], Some(&image)).expect("logits").to_vec();
        for id in [3, 4, 5] {
            all.extend_from_slice(session.step(id).expect("logits"));
        }
        all
    };
    let resident = logits(None, false);
    for (layers, encoders) in [(Some(0), true), (Some(1), false), (None, true)] {
        assert!(logits(layers, encoders) == resident, "{layers:?} {encoders}");
    }
}

#[test]
fn a_cache_that_holds_no_expert_is_refused_with_the_sum() {
    let case = fixture("moe5");
    let folder = tempfile::tempdir().expect("a directory");
    let model = convert(&case.join("checkpoint"), folder.path(), "moe", "Q8_0");
    let target = CpuTarget::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).expect("a target");
    let streaming = Streaming { cache_bytes: 4096, policy: Policy::Foresight, verify_reads: false, readers: 1 };
    let model = Sphinx::open(target, &model, &Options { streaming: Some(streaming), ..Options::default() }).expect("the model opens");
    let error = model.session().expect("a session").prefill(&[1, 2, 3], None).map(<[f32]>::len).expect_err("no room");
    assert!(matches!(error, RuntimeError::Expert { .. }) && error.to_string().contains("--memory"), "{error}");
}

#[test]
fn a_file_cut_short_while_it_runs_ends_the_request() {
    let case = fixture("moe5");
    let folder = tempfile::tempdir().expect("a directory");
    let path = convert(&case.join("checkpoint"), folder.path(), "moe", "Q8_0");
    let target = CpuTarget::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).expect("a target");
    let streaming = Streaming { cache_bytes: one(&path), policy: Policy::Foresight, verify_reads: false, readers: 1 };
    let model = Sphinx::open(target, &path, &Options { streaming: Some(streaming), ..Options::default() }).expect("the model opens");
    let mut session = model.session().expect("a session");
    session.prefill(&[1, 2, 3], None).expect("logits");
    // What is mapped keeps its pages as long as it stays whole; experts lie further back.
    let file = sphinx_quant::gguf::Gguf::open(&path).expect("the file");
    let (index, first) = (0..file.tensors().len())
        .filter(|&i| file.tensors()[i].name().contains("_exps"))
        .map(|i| (i, file.offset(i)))
        .max_by_key(|&(_, offset)| offset)
        .expect("experts");
    let whole = std::fs::read(&path).expect("the file");
    let cut = first + file.tensors()[index].bytes().len() as u64 / 2;
    drop(file);
    std::fs::File::options().write(true).open(&path).expect("the file").set_len(cut.next_multiple_of(4096)).expect("shorter");
    session.reset();
    let outcome = (0..20).try_for_each(|i| {
        session.reset();
        session.prefill(&[1, 5 + i, 9], None).map(|_| ())
    });
    let error = outcome.expect_err("a part of an expert is gone");
    assert!(error.to_string().contains("changed while in use") && error.kind() == sphinx_quant::ErrorKind::Io, "{error}");
    // When the file is whole again, so is the next request.
    std::fs::write(&path, whole).expect("the file");
    session.reset();
    session.prefill(&[1, 2, 3], None).expect("logits again");
}
