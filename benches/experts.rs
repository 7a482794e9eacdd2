//! Caches of experts of every size and policy on a recorded trace, beside the optimum that knows the future.
//!
//! `cargo bench -p sphinx-runtime --no-default-features --bench experts -- TRACE.jsonl …` replays what `sphinx bench --trace` wrote.
//! Without a trace three routers are made up, from a fixed seed: one that uses all experts evenly and repeats itself now and then,
//! as a trained Mixtral does, one with favourites (a Zipf-like load), and one with favourites that stay for a while.

use std::fs::File;
use std::io::BufReader;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use sphinx_runtime::experts::Policy;
use sphinx_runtime::experts::trace::{Keeper, Trace, Visited};

const LAYERS: usize = 32;
const EXPERTS: usize = 8;
const USED: usize = 2;
const TOKENS: usize = 600;
/// Tokens that go by before anything is counted.
const WARM: usize = 100;

fn main() {
    let files: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    for file in &files {
        let trace = File::open(file).and_then(|f| Trace::read(BufReader::new(f)));
        match trace {
            Ok(trace) => show(file, &trace),
            Err(e) => eprintln!("{file}: {e}"),
        }
    }
    if files.is_empty() {
        show("made up: even, seldom the same again", &made_up(0.0, 0.3));
        show("made up: favourites", &made_up(1.2, 0.0));
        show("made up: favourites that stay", &made_up(1.2, 0.9));
    }
}

/// A router whose liking for expert `r` falls like a power of its rank, and of whose moods a share `stays` from one token to the
/// next.
fn made_up(zipf: f64, stays: f64) -> Trace {
    let mut random = Pcg64::seed_from_u64(7);
    let mut trace = Trace::new(LAYERS, EXPERTS, USED);
    let liking: Vec<Vec<f64>> = (0..LAYERS)
        .map(|_| {
            let mut ranks: Vec<usize> = (0..EXPERTS).collect();
            (1..EXPERTS).rev().for_each(|i| ranks.swap(i, random.random_range(0..=i)));
            ranks.iter().map(|&r| -zipf * ((r + 1) as f64).ln()).collect()
        })
        .collect();
    let mut mood = vec![vec![0.0f64; EXPERTS]; LAYERS];
    for _ in 0..TOKENS {
        for layer in 0..LAYERS {
            for m in &mut mood[layer] {
                // Close enough to a normal draw: twelve uniform ones.
                let fresh: f64 = (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0;
                *m = stays * *m + (1.0 - stays * stays).sqrt() * fresh;
            }
            let scores: Vec<f64> = liking[layer].iter().zip(&mood[layer]).map(|(l, m)| (l + m).exp()).collect();
            let sum: f64 = scores.iter().sum();
            let mut order: Vec<u32> = (0..EXPERTS as u32).collect();
            order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
            let mut ids = order[..USED].to_vec();
            ids.sort_unstable();
            trace.visits.push(Visited { layer, rows: 1, ids, odds: scores.iter().map(|s| (s / sum) as f32).collect(), guess: Vec::new() });
        }
    }
    trace
}

fn show(name: &str, trace: &Trace) {
    let all = trace.layers * trace.experts;
    let decoding = trace.visits.iter().filter(|v| v.rows == 1).count();
    let warm = (WARM * trace.layers).min(decoding / 5);
    println!("\n{name}: {decoding} visits of single rows, {warm} of them to warm up; hit rates\n");
    println!("| experts kept, of {all} | {} | optimum |", Policy::ALL.map(Policy::name).join(" | "));
    println!("|---:|{}", "---:|".repeat(Policy::ALL.len() + 1));
    for eighths in 1..8 {
        let slots = all * eighths / 8;
        let rate = |keeper| format!("{:.3}", trace.replay(keeper, slots, warm).rate());
        let policies = Policy::ALL.map(|p| rate(Keeper::Policy(p))).join(" | ");
        println!("| {slots} | {policies} | {} |", rate(Keeper::Optimum));
    }
    let recall = trace.recall();
    if recall.uses > 0 {
        println!("\nguesses about the next layer: {:.1} % of what was used", 100.0 * recall.rate());
    }
}
