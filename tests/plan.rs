//! Plans of true-size models, from headers alone: within the budget or refused, and the more memory the better.

mod support;

use std::path::{Path, PathBuf};
use std::time::Instant;

use sphinx_convert::SynthOptions;
use sphinx_quant::ErrorKind;
use sphinx_runtime::plan::{Holding, Plan, Priced, Wish};
use sphinx_runtime::source::Source;
use sphinx_targets::KvType;
use support::recipe;

const GIB: u64 = 1 << 30;

/// Headers of a member at its true size; data are a hole.
fn outline(folder: &Path, family: &str, vision_quant: &str) -> PathBuf {
    let output = folder.join(format!("{family}.gguf"));
    let options = SynthOptions { vision_quant: Some(recipe(vision_quant)), ..SynthOptions::new(family, "full", output.clone()) };
    sphinx_convert::synth_outline(&options).expect("headers are written");
    output
}

fn part<'a>(plan: &'a Plan, name: &str) -> &'a sphinx_runtime::plan::Part {
    plan.parts.iter().find(|p| p.name == name).expect("the part")
}

#[test]
fn every_plan_keeps_its_budget_and_more_memory_is_never_worse() {
    let folder = tempfile::tempdir().expect("a directory");
    let mut points = 0;
    for (family, vision_quant) in [("tiny", "Q4_K_M"), ("intern2", "Q8_0"), ("plus", "Q8_0"), ("moe", "Q8_0")] {
        let source = Source::open(&outline(folder.path(), family, vision_quant), None).expect("the model opens");
        let vision = source.open_vision().expect("the other half");
        for file in [None, Some(&vision)] {
            let priced = Priced::new(source.language(), source.params(), file).expect("a price");
            for kv in [KvType::F16, KvType::Q8_0] {
                for context in [2048, 4096] {
                    let mut before: Option<Plan> = None;
                    for half_gib in 1..80 {
                        let memory = half_gib * GIB / 2;
                        points += 1;
                        let wish = Wish { memory: Some(memory), context, kv, threads: 2, ..Wish::default() };
                        let start = Instant::now();
                        let plan = match priced.plan(&wish) {
                            Ok(plan) => plan,
                            Err(e) => {
                                assert!(before.is_none(), "{family} fits less, but not {half_gib} halves: {e}");
                                assert_eq!(e.kind(), ErrorKind::Budget);
                                let text = e.to_string();
                                assert!(text.contains(family) && text.contains("the budget is") && text.contains("--memory"), "{text}");
                                continue;
                            }
                        };
                        assert!(start.elapsed().as_millis() < 100);
                        assert!(plan.peak_bytes <= memory, "{family} {half_gib}: {plan:?}");
                        if let Some(before) = &before {
                            assert!(plan.resident_layers >= before.resident_layers && plan.encoders_streamed <= before.encoders_streamed);
                            if let (Some(a), Some(b)) = (before.streaming, plan.streaming) {
                                assert!(b.cache_bytes >= a.cache_bytes);
                            }
                        }
                        before = Some(plan);
                    }
                    let largest = before.expect("a plan for 40 GiB");
                    assert!(largest.streaming.is_none() && !largest.encoders_streamed && largest.ahead, "{family}");
                }
            }
        }
    }
    assert!(points > 1000);
}

#[test]
fn a_device_that_weights_are_copied_to_is_filled_and_not_overfilled() {
    let folder = tempfile::tempdir().expect("a directory");
    for family in ["tiny", "moe"] {
        let source = Source::open(&outline(folder.path(), family, "Q8_0"), None).expect("the model opens");
        let vision = source.open_vision().expect("the other half");
        let priced = Priced::new(source.language(), source.params(), Some(&vision)).expect("a price");
        let wish = Wish { threads: 2, ..Wish::default() };
        let all = priced.copied(&wish, None).expect("nobody knows how much is free");
        let experts = all.parts.iter().find(|p| p.name == "experts").map_or(0, |p| p.bytes);
        assert_eq!(experts > 20 * GIB, family == "moe");
        let mut refused = 0;
        for half_gib in 1..80 {
            let free = half_gib * GIB / 2;
            match priced.copied(&wish, Some(free)) {
                Ok(plan) => {
                    assert!(plan.peak_bytes <= free && plan.resident_layers == source.params().layers && !plan.encoders_streamed);
                    assert_eq!(part(&plan, "encoders").holding, Holding::Resident);
                    // All of it, or experts in what the rest leaves.
                    match plan.streaming {
                        None => assert_eq!(plan, all),
                        Some(s) => assert_eq!(plan.peak_bytes, all.peak_bytes - experts + s.cache_bytes as u64),
                    }
                    assert_eq!(plan.streaming.is_some(), free - free / 16 < all.peak_bytes, "{family} {half_gib}");
                }
                Err(e) => {
                    refused += 1;
                    let text = e.to_string();
                    assert!(e.kind() == ErrorKind::Budget && text.contains("free there") && text.contains("--device cpu"), "{text}");
                    assert!(free < all.peak_bytes - experts + 2 * GIB);
                }
            }
        }
        assert!(refused > 0, "{family}");
        // A wish counts as far as there is room.
        if family == "moe" {
            let cache = |wished, free| {
                let plan = priced.copied(&Wish { expert_cache: Some(wished), ..wish.clone() }, free).expect("it fits");
                plan.streaming.expect("experts are streamed").cache_bytes as u64
            };
            assert_eq!((cache(3 * GIB, None), cache(3 * GIB, Some(24 * GIB))), (3 * GIB, 3 * GIB));
            assert!(cache(20 * GIB, Some(16 * GIB)) < 15 * GIB);
        }
        std::fs::remove_file(folder.path().join(format!("{family}.gguf"))).expect("gone");
    }
}

#[test]
fn the_members_fit_where_they_are_said_to() {
    let folder = tempfile::tempdir().expect("a directory");
    let plan = |family: &str, vision_quant: &str, gib: u64| {
        let source = Source::open(&outline(folder.path(), family, vision_quant), None).expect("the model opens");
        let vision = source.open_vision().expect("the other half");
        let priced = Priced::new(source.language(), source.params(), Some(&vision)).expect("a price");
        priced.plan(&Wish { memory: Some(gib * GIB), threads: 2, ..Wish::default() })
    };
    // SPHINX-Tiny-1k with 4-bit encoders on 2 GiB, resident; 7B with encoders on 4 GiB, streamed.
    let tiny = plan("tiny", "Q4_K_M", 2).expect("it fits");
    assert_eq!(tiny.resident_layers, 22);
    std::fs::remove_file(folder.path().join("tiny.gguf")).expect("gone");
    let intern = plan("intern2", "Q8_0", 4).expect("it fits");
    assert!(
        intern.encoders_streamed && intern.resident_layers > 16 && part(&intern, "language").holding == Holding::Streamed,
        "{intern:?}"
    );
    let moe = plan("moe", "Q8_0", 8).expect("it fits");
    let cache = moe.streaming.expect("experts are streamed").cache_bytes as u64;
    assert!(cache > 5 * GIB && cache < 7 * GIB, "{moe:?}");
}
