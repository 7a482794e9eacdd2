//! How many instructions the kernels take: a guard against regressions that a busy machine does not disturb.
//!
//! Runs itself under callgrind, with AVX2 kernels (valgrind knows no AVX-512) on one thread, and compares every case with what
//! `instructions.tsv` expects. A case that takes more than the tolerance fails. After a change that is meant to cost, or that
//! saves, record anew and commit the file with the reason:
//!
//!     cargo test -p sphinx-runtime --no-default-features --test instructions -- --record
//!
//! Counts depend on the compiler, so the file names the one it was recorded with; another gets a wider tolerance, until somebody
//! records with it. They are counts of the tests' profile, which CI has built anyway: kernels are optimised in it, but check
//! their arithmetic, so that they say what changed, not how fast anything is.

use std::fmt::Write;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use sphinx_quant::{GgmlType, Tensor, block};
use sphinx_runtime::sampler::{Sampler, Sampling};
use sphinx_runtime::tokenizer::{Tokenizer, Vocabulary};
use sphinx_targets::cpu::{CpuOptions, CpuTarget, Isa};
use sphinx_targets::{Activation, After, AttendShape, Columns, KvShape, KvType, Linear, MapShape, Mlp, Rope, Target};

/// More than the expected count by this much fails.
const TOLERANCE: f64 = 0.03;
/// The same for a compiler other than the one that the counts were recorded with.
const OTHER_COMPILER: f64 = 0.15;

fn main() -> ExitCode {
    let has = |flag: &str| std::env::args().any(|a| a == flag);
    if has("--count") {
        run(&mut |_| ());
        return ExitCode::SUCCESS;
    }
    // `cargo test WORD` asks every test for those with that word in their names.
    if std::env::args().skip(1).any(|a| !a.starts_with('-') && !"instructions".contains(&a)) {
        return ExitCode::SUCCESS;
    }
    if !Isa::Avx2.available() {
        println!("instructions: skipped, they are counted with AVX2");
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("instructions: skipped, there is no valgrind");
        return ExitCode::SUCCESS;
    }
    let mut names = Vec::new();
    let counts = count();
    run_names(&mut names);
    assert_eq!(names.len(), counts.len(), "callgrind counted every case");
    let found: Vec<(String, u64)> = names.into_iter().zip(counts).collect();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/instructions.tsv");
    if has("--record") {
        let mut text = format!("# {}\n", compiler());
        found.iter().for_each(|(name, n)| writeln!(text, "{name}\t{n}").expect("a string takes all"));
        std::fs::write(&file, text).expect("the counts can be written");
        println!("instructions: {} cases recorded", found.len());
        return ExitCode::SUCCESS;
    }
    compare(&file, &found)
}

/// Prints all cases and says whether they are within the tolerance.
fn compare(file: &Path, found: &[(String, u64)]) -> ExitCode {
    let text = std::fs::read_to_string(file).expect("there are recorded counts");
    let mut lines = text.lines();
    let recorded = lines.next().unwrap_or_default().trim_start_matches("# ");
    let expected: Vec<(&str, u64)> =
        lines.map(|l| l.split_once('\t').expect("name and count")).map(|(n, c)| (n, c.parse().expect("a count"))).collect();
    let same = recorded == compiler();
    let tolerance = if same { TOLERANCE } else { OTHER_COMPILER };
    if !same {
        println!("instructions: recorded with {recorded}, this is {}: {:.0} % are tolerated", compiler(), 100.0 * tolerance);
    }
    let mut bad = 0;
    for (name, count) in found {
        let Some(&(_, want)) = expected.iter().find(|(n, _)| n == name) else {
            println!("{name:<28} {count:>12}  not recorded");
            bad += 1;
            continue;
        };
        let change = *count as f64 / want as f64 - 1.0;
        let verdict = match change {
            c if c > tolerance => "MORE",
            c if c < -tolerance => "fewer: record them",
            _ => "",
        };
        bad += usize::from(change > tolerance);
        println!("{name:<28} {count:>12} {:>+7.2} %  {verdict}", 100.0 * change);
    }
    for (name, _) in expected.iter().filter(|(name, _)| !found.iter().any(|(n, _)| n == name)) {
        println!("{name:<28} recorded, but no case");
        bad += 1;
    }
    println!("instructions: {} cases, {bad} out of bounds", found.len());
    if bad > 0 {
        println!("where that is meant: cargo test -p sphinx-runtime --no-default-features --test instructions -- --record");
    }
    if bad > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The version of the compiler in use.
fn compiler() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-V").output();
    output.map_or_else(|_| "an unknown compiler".into(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

/// Instructions of every case, in order.
fn count() -> Vec<u64> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // What was counted is forgotten where a case begins and written down where it ends: callgrind.out.1, .2 and so on.
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--zero-before=*case_begins*", "--dump-before=*case_ends*", "--dump-line=no"])
        .arg(format!("--callgrind-out-file={}", folder.path().join("out").display()))
        .arg(std::env::current_exe().expect("a program knows where it is"))
        .arg("--count")
        .output()
        .expect("valgrind starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (1..).map(|i| folder.path().join(format!("out.{i}"))).map_while(|file| total(&file)).collect()
}

/// The total of a file of callgrind's; `None` when there is no such file.
fn total(file: &PathBuf) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|l| l.strip_prefix("totals: "))?.trim().parse().ok()
}

/// Callgrind looks for these two.
#[inline(never)]
fn case_begins() {
    black_box(());
}

#[inline(never)]
fn case_ends() {
    black_box(());
}

/// What is done with a case: it is given its name and its work.
type Visit<'a> = &'a mut dyn FnMut(&str, &mut dyn FnMut());

/// Runs every case, once so that memory is there and once to be counted.
fn run(seen: &mut dyn FnMut(&str)) {
    cases(&mut |name, work| {
        work();
        case_begins();
        work();
        case_ends();
        seen(name);
    });
}

fn run_names(names: &mut Vec<String>) {
    cases(&mut |name, _| names.push(name.to_owned()));
}

/// Numbers that look random enough, none of them zero.
fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.4999).collect()
}

type Vector = <CpuTarget as Target>::Vector;
type Buffer = <CpuTarget as Target>::Buffer;

/// A target and what makes its operands.
struct Bench(CpuTarget);

impl Bench {
    fn vector(&self, n: usize) -> Vector {
        self.0.vector_from(&numbers(n)).expect("memory")
    }

    fn filled(&self, rows: usize, width: usize) -> Buffer {
        let mut buffer = self.0.buffer(rows, width).expect("memory");
        self.0.write(&numbers(rows * width), &mut buffer, 0).expect("it fits");
        buffer
    }

    /// A layer of equal rows, which is quick to quantise.
    fn layer(&self, ty: GgmlType, outputs: usize, inputs: usize) -> Linear<CpuTarget> {
        let mut row = vec![0u8; ty.row_bytes(inputs).expect("whole blocks")];
        block::quantize(ty, &numbers(inputs), None, &mut row);
        let tensor = Tensor::owned("bench", ty, &[inputs, outputs], &row.repeat(outputs)).expect("the bytes are a matrix");
        Linear { weight: self.0.matrix(&[tensor]).expect("a matrix"), bias: None }
    }
}

/// All cases, small ones: callgrind is some fifty times slower than the machine.
fn cases(visit: Visit<'_>) {
    let options = CpuOptions { threads: Some(1), isa: Some(Isa::Avx2), ..CpuOptions::default() };
    let b = &Bench(CpuTarget::new(options).expect("one thread"));
    let t = &b.0;
    matrices(b, visit);
    attention(b, visit);

    let (rows, width) = (16, 2048);
    let (x, weight, bias, mut out) = (b.filled(rows, width), b.vector(width), b.vector(width), b.filled(rows, width));
    visit("rms_norm", &mut || t.rms_norm(&x, &weight, 1e-5, &mut out).expect("shapes fit"));
    visit("layer_norm", &mut || t.layer_norm(&x, &weight, &bias, 1e-6, &mut out).expect("shapes fit"));
    for (name, act) in [("gelu", Activation::Gelu), ("quick_gelu", Activation::QuickGelu), ("silu_gate", Activation::SiluGate)] {
        let hidden = 512;
        let up = b.layer(GgmlType::Q8_0, if act == Activation::SiluGate { 2 * hidden } else { hidden }, 256);
        let mlp = Mlp { up, act, down: b.layer(GgmlType::Q8_0, 256, hidden) };
        let (x, mut out) = (b.filled(rows, 256), b.filled(rows, 256));
        visit(&format!("mlp/{name}"), &mut || t.mlp(&x, &mlp, After::Nothing, &mut out).expect("shapes fit"));
    }
    for side in [16, 32] {
        let (map, channels) = (MapShape { batch: 1, height: side, width: side }, 64);
        let (x, kernel, bias, mut out) =
            (b.filled(side * side, channels), b.vector(49 * channels), b.vector(channels), b.filled(side * side, channels));
        visit(&format!("conv_depthwise/{side}"), &mut || t.conv_depthwise(&x, map, &kernel, &bias, &mut out).expect("shapes fit"));
    }
    texts(visit);
}

/// Layers of every type, for one row, a few and a batch.
fn matrices(b: &Bench, visit: Visit<'_>) {
    for ty in GgmlType::ALL {
        let (outputs, inputs) = (256, 1024);
        let layer = b.layer(ty, outputs, inputs);
        for rows in [1, 4, 32] {
            let (x, mut out) = (b.filled(rows, inputs), b.filled(rows, outputs));
            visit(&format!("linear/{ty}/{rows}"), &mut || b.0.linear(&x, &layer, After::Nothing, &mut out).expect("shapes fit"));
        }
    }
}

/// Attention of encoders, and of the decoder: a prompt and a token after it.
fn attention(b: &Bench, visit: Visit<'_>) {
    let t = &b.0;
    let shape = AttendShape { batch: 1, q_tokens: 257, kv_tokens: 257, heads: 1, head_dim: 64 };
    let (qkv, mut out) = (b.filled(257, 3 * 64), b.filled(257, 64));
    let part = |i: usize| Columns { buffer: &qkv, first: 64 * i };
    visit("attend/257", &mut || t.attend(part(0), part(1), part(2), shape, &mut out).expect("shapes fit"));
    for (name, ty) in [("f32", KvType::F32), ("f16", KvType::F16), ("q8_0", KvType::Q8_0)] {
        let (heads, kv_heads, head_dim) = (8, 1, 64);
        let mut kv = t.kv(KvShape { capacity: 1024, heads, kv_heads, head_dim, ty }).expect("memory");
        let rope = Rope::new(head_dim, 10_000.0, 1.0);
        for (rows, pos) in [(128, 0), (1, 511)] {
            let (mut qkv, mut out) = (b.filled(rows, (heads + 2 * kv_heads) * head_dim), b.filled(rows, heads * head_dim));
            visit(&format!("rope_append/{name}/{rows}"), &mut || t.rope_append(&mut qkv, &rope, &mut kv, pos).expect("shapes fit"));
            visit(&format!("attend_cached/{name}/{rows}"), &mut || t.attend_cached(&qkv, &kv, pos, &mut out).expect("shapes fit"));
        }
    }
}

/// The tokenizer, from its start, and the choice of a token.
fn texts(visit: Visit<'_>) {
    let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    pieces.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    let letters = || ('a'..='z').map(String::from);
    pieces.extend(["\u{2581}".to_owned()].into_iter().chain(letters()));
    pieces.extend(letters().flat_map(|a| letters().map(move |b| a.clone() + &b)));
    pieces.extend(letters().flat_map(|a| letters().map(move |b| format!("\u{2581}{a}{b}"))));
    let scores: Vec<f32> = (0..pieces.len()).map(|i| -(i as f32)).collect();
    let kind = |i: usize| match i {
        0 => 2,
        1 | 2 => 3,
        3..259 => 6,
        _ => 1,
    };
    let types: Vec<i32> = (0..pieces.len()).map(kind).collect();
    let vocabulary =
        Vocabulary { pieces: &pieces, scores: &scores, types: &types, bos: 1, eos: 2, unk: 0, add_space_prefix: true, nul: None };
    let start = || Tokenizer::new(vocabulary).expect("a vocabulary");
    visit("tokenizer/new", &mut || drop(black_box(start())));
    // Hash tables are seeded anew each time: several of them come to about the same.
    let tokenizers: Vec<Tokenizer> = (0..12).map(|_| start()).collect();
    let text = "what stands in the middle of the picture, and how many of them are there? ".repeat(8);
    visit("tokenizer/encode", &mut || tokenizers.iter().for_each(|t| drop(black_box(t.encode(&text)))));

    let logits: Vec<f32> = numbers(32_000).iter().map(|v| 20.0 * v).collect();
    for (name, sampling) in [("greedy", Sampling::GREEDY), ("nucleus", Sampling { temperature: 0.7, top_p: 0.9, seed: 1 })] {
        let mut sampler = Sampler::new(sampling, logits.len()).expect("sound settings");
        visit(&format!("sampler/{name}"), &mut || _ = black_box(sampler.pick(&logits)));
    }
}
