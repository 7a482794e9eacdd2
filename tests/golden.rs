//! The model against recorded activations, stage by stage, so that a wrong answer names its stage.
//!
//! The committed cases always run; more of the same form beside the repository run where they are.

mod support;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;

use sphinx_runtime::vision::{ImageRows, Picture, Recorder};
use sphinx_runtime::{Options, Request, Sampling, Sphinx};
use sphinx_targets::cpu::{CpuOptions, CpuTarget, Isa};
use sphinx_targets::{KvType, Target};
use support::{convert, cosines, every, fixture, max_abs, recorded, shared_case, widen};

/// What a run of a case gives.
struct Run {
    stages: HashMap<String, (Vec<usize>, Vec<f32>)>,
    rows: ImageRows,
    tokens: Vec<u32>,
    logits: Vec<f32>,
    text_logits: Vec<f32>,
    greedy: Vec<u32>,
    vocabulary: usize,
}

fn case_json(case: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(case.join("case.json")).expect("case.json")).expect("JSON")
}

fn picture(case: &Path) -> Picture {
    let name = case_json(case)["image"].as_str().unwrap_or("image.png").to_owned();
    Picture::open(&case.join(name)).expect("the picture")
}

fn run<T: Target>(target: T, model: &Path, case: &Path) -> Run {
    let prompt = case_json(case)["prompt"].as_str().expect("a prompt").to_owned();
    let model = Sphinx::open(target, model, &Options::default()).expect("the model opens");
    let mut recorder = Recorder::default();
    let rows = model.encode(&picture(case), &mut recorder).expect("the picture encodes");
    let tokens = model.tokenizer().encode_with_bos(&model.params().template.question(None, &prompt));
    let mut session = model.session().expect("a session");
    let logits = session.logits(&tokens, Some(&rows)).expect("logits");
    let text_logits = session.logits(&tokens, None).expect("logits");
    let request = Request { sampling: Sampling::GREEDY, max_tokens: 16, stop: &model.params().stop, truncate: false };
    let reply = session.generate(&tokens, Some(&rows), &request, &mut |_| ControlFlow::Continue(())).expect("a reply");
    let vocabulary = model.params().vocabulary;
    Run { stages: recorder.stages.into_iter().collect(), rows, tokens, logits, text_logits, greedy: reply.tokens, vocabulary }
}

fn cpu() -> CpuTarget {
    CpuTarget::new(CpuOptions::from_env().expect("the environment")).expect("a target")
}

/// The rows of `run` that were recorded: all, or every 16th.
fn recorded_rows(run: &Run, want: &[f32]) -> Vec<f32> {
    if want.len() == run.rows.rows.len() { run.rows.rows.clone() } else { every(&run.rows.rows, run.rows.dim, 16) }
}

/// Every stage of an F32 model within the bars.
fn exact(name: &str, run: &Run, case: &Path) {
    let want = recorded(&case.join("expected.safetensors"));
    for (stage, (shape, values)) in want.iter().filter(|(k, _)| k.starts_with("view.")) {
        let got = every(&run.stages[stage].1, shape[1], 16);
        assert!(max_abs(&got, values) <= 2e-4, "{name} {stage}: {}", max_abs(&got, values));
    }
    let rows = recorded_rows(run, &want["rows"].1);
    assert!(max_abs(&rows, &want["rows"].1) <= 4e-3, "{name} rows: {}", max_abs(&rows, &want["rows"].1));
    let tokens: Vec<f32> = run.tokens.iter().map(|&t| t as f32).collect();
    assert_eq!(tokens, want["tokens"].1, "{name}: tokens");
    for (stage, got) in [("logits", &run.logits), ("text_logits", &run.text_logits)] {
        assert!(max_abs(got, &want[stage].1) <= 2e-4, "{name} {stage}: {}", max_abs(got, &want[stage].1));
    }
    let greedy: Vec<f32> = run.greedy.iter().map(|&t| t as f32).collect();
    assert_eq!(greedy, want["greedy"].1, "{name}: greedy ids");
}

/// The padded and resized square equals the recorded one, byte for byte.
fn square(name: &str, case: &Path) {
    use sphinx_runtime::vision::resize::{Anchor, pad_and_resize};
    let size = if case_json(case)["type"].as_str() == Some("llama_ens5_light") { 1024 } else { 512 };
    let got = pad_and_resize(&picture(case), size, [122, 116, 104], Anchor::Centre);
    let file = case.join("square.png");
    if file.exists() {
        let want = Picture::open(&file).expect("the recorded square");
        assert!(got.rgb == want.rgb(), "{name}: the square differs");
    } else {
        use sha2::Digest;
        let sum: String = sha2::Sha256::digest(&got.rgb).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(Some(sum.as_str()), case_json(case)["square_sha256"].as_str(), "{name}: the square differs");
    }
}

fn cases() -> Vec<(&'static str, std::path::PathBuf)> {
    // In `faint` every norm sees values near 1e-3: a wrong epsilon anywhere is a wrong answer there.
    let mut cases = vec![("light", fixture("light")), ("light5", fixture("light5")), ("faint", fixture("faint"))];
    cases.extend(["light", "light5"].into_iter().filter_map(|n| Some((n, shared_case(n)?))));
    cases
}

#[test]
fn whole_precision_equals_the_reference_at_every_stage() {
    for (name, case) in cases() {
        square(name, &case);
        let folder = tempfile::tempdir().expect("a folder");
        let model = convert(&case.join("checkpoint"), folder.path(), name, "F32");
        exact(name, &run(cpu(), &model, &case), &case);
    }
}

#[cfg(feature = "candle")]
#[test]
fn whole_precision_on_candle_equals_the_reference_too() {
    for name in ["light", "light5", "faint"] {
        let folder = tempfile::tempdir().expect("a folder");
        let model = convert(&fixture(name).join("checkpoint"), folder.path(), name, "F32");
        let target = sphinx_targets::candle::CandleTarget::cpu().expect("candle");
        exact(name, &run(target, &model, &fixture(name)), &fixture(name));
    }
}

#[test]
fn half_precision_and_eight_bits_stay_close() {
    for (name, case) in cases() {
        let want = recorded(&case.join("expected.safetensors"));
        for (quant, rows_bar, logits_bar) in [("F16", 0.9999, 0.9999), ("Q8_0", 0.999, 0.998)] {
            let folder = tempfile::tempdir().expect("a folder");
            let model = convert(&case.join("checkpoint"), folder.path(), name, quant);
            let got = run(cpu(), &model, &case);
            let (least, _) = cosines(&recorded_rows(&got, &want["rows"].1), &want["rows"].1, got.rows.dim);
            assert!(least >= rows_bar, "{name} {quant} rows: {least}");
            for (stage, logits) in [("logits", &got.logits), ("text_logits", &got.text_logits)] {
                let (least, _) = cosines(logits, &want[stage].1, got.vocabulary);
                assert!(least >= logits_bar, "{name} {quant} {stage}: {least}");
            }
        }
    }
}

/// Quantised weights against the F32 run on the same weights de-quantised: this tests the kernels, not the format.
fn against_widened(name: &str, case: &Path, quant: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let model = convert(&case.join("checkpoint"), folder.path(), name, quant);
    let want = run(cpu(), &widen(&model, "wide"), case);
    let got = run(cpu(), &model, case);
    let (least, _) = cosines(&got.rows.rows, &want.rows.rows, got.rows.dim);
    assert!(least >= 0.999, "{name} {quant} rows: {least}");
    for (stage, a, b) in [("logits", &got.logits, &want.logits), ("text_logits", &got.text_logits, &want.text_logits)] {
        let (least, mean) = cosines(a, b, got.vocabulary);
        assert!(least >= 0.997 && mean >= 0.9995, "{name} {quant} {stage}: least {least}, mean {mean}");
    }
    let plain = CpuOptions { isa: Some(Isa::Portable), f32_activations: true, ..CpuOptions::default() };
    let got = run(CpuTarget::new(plain).expect("a target"), &model, case);
    for (stage, a, b) in [
        ("rows", &got.rows.rows, &want.rows.rows),
        ("logits", &got.logits, &want.logits),
        ("text_logits", &got.text_logits, &want.text_logits),
    ] {
        assert!(max_abs(a, b) <= 2e-3, "{name} {quant} {stage}, portable with f32 activations: {}", max_abs(a, b));
    }
}

#[test]
fn q4_k_m_computes_what_its_weights_say() {
    against_widened("light5", &fixture("light5"), "Q4_K_M");
}

#[test]
fn q4_0_computes_what_its_weights_say() {
    against_widened("light", &fixture("light"), "Q4_0");
}

#[test]
fn q6_k_computes_what_its_weights_say() {
    against_widened("light5", &fixture("light5"), "Q6_K");
}

#[test]
fn q5_k_m_computes_what_its_weights_say() {
    against_widened("light5", &fixture("light5"), "Q5_K_M");
}

#[test]
fn an_eight_bit_cache_stays_close() {
    let case = fixture("light5");
    let want = recorded(&case.join("expected.safetensors"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = convert(&case.join("checkpoint"), folder.path(), "light5", "F32");
    for (kv, bar) in [(KvType::F16, 0.999_999), (KvType::Q8_0, 0.9995)] {
        let model = Sphinx::open(cpu(), &file, &Options { kv: Some(kv), ..Options::default() }).expect("the model opens");
        let rows = model.encode(&picture(&case), &mut ()).expect("the picture encodes");
        let tokens: Vec<u32> = want["tokens"].1.iter().map(|&t| t as u32).collect();
        let logits = model.session().expect("a session").logits(&tokens, Some(&rows)).expect("logits");
        let (least, _) = cosines(&logits, &want["logits"].1, model.params().vocabulary);
        assert!(least >= bar, "{kv:?}: {least}");
    }
}
