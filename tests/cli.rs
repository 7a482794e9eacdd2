//! What a user and a script see of the command line: output, files, exit codes.
//!
//! Every test runs the built program on the committed case `light`, in a directory of its own.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use assert_cmd::Command;
use assert_cmd::cargo::cargo_bin;
use serde_json::Value;
use support::{fixture, max_abs, recorded};
use tempfile::TempDir;

const QUESTION: &str = "What's in the image?";
/// The template around [`QUESTION`] with the system text `S`.
const IN_TEMPLATE: &str = "S\n\n### Human: What's in the image?\n### Assistant:";

/// A directory to work in.
struct Desk(TempDir);

impl Desk {
    fn empty() -> Desk {
        Desk(tempfile::tempdir().expect("a directory"))
    }

    /// With the model `light.gguf` and its picture `image.png`.
    fn with_model(quant: &str) -> Desk {
        let desk = Desk::empty();
        desk.ok(&["convert", checkpoint(), "-o", "light.gguf", "--quant", quant, "--vision-quant", quant]);
        fs::copy(fixture("light/image.png"), desk.path("image.png")).expect("a copy");
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("a file")
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).expect("written");
    }

    /// A copy of `from` in which the byte `at` (from the end when negative) is another.
    fn flip(&self, from: &str, to: &str, at: i64) {
        let mut bytes = self.read(from);
        let at = if at < 0 { bytes.len() - at.unsigned_abs() as usize } else { at as usize };
        bytes[at] ^= 1;
        self.write(to, &bytes);
    }

    fn names(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.0.path()).expect("the directory");
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    fn sphinx(&self, args: &[&str]) -> Command {
        Command::from_std(self.process(args))
    }

    fn process(&self, args: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(cargo_bin!("sphinx"));
        command.args(args).current_dir(self.0.path());
        for name in ["SPHINX_ISA", "SPHINX_ACTIVATIONS", "SPHINX_LOG", "RUST_BACKTRACE"] {
            command.env_remove(name);
        }
        command
    }

    /// What a command that succeeds writes: standard output and standard error.
    fn both(&self, args: &[&str]) -> (String, String) {
        let out = self.sphinx(args).output().expect("the program runs");
        let (stdout, stderr) = (String::from_utf8(out.stdout).expect("UTF-8"), String::from_utf8(out.stderr).expect("UTF-8"));
        assert!(out.status.success(), "{args:?}: {:?}: {stderr}", out.status);
        assert!(!self.names().iter().any(|n| n.ends_with(".partial")), "{args:?} left {:?}", self.names());
        (stdout, stderr)
    }

    /// Standard output of a command that succeeds without a word on standard error.
    fn ok(&self, args: &[&str]) -> String {
        let (stdout, stderr) = self.both(args);
        assert_eq!(stderr, "", "{args:?}");
        stdout
    }

    /// The one JSON value that a command writes.
    fn json(&self, args: &[&str]) -> Value {
        let stdout = self.ok(args);
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {stdout}"))
    }

    /// The error line of a command that must exit with `code`, without writing or removing anything.
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let before = self.names();
        let out = self.sphinx(args).output().expect("the program runs");
        let stderr = String::from_utf8(out.stderr).expect("UTF-8");
        assert_eq!((out.status.code(), out.stdout.len()), (Some(code), 0), "{args:?}: {stderr}");
        assert_eq!(self.names(), before, "{args:?}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        let line = stderr.trim_end().strip_prefix("error: ").unwrap_or_else(|| panic!("{args:?}: {stderr}"));
        line.to_owned()
    }

    /// As [`fails`](Desk::fails), and the line has the form `FILE: what — remedy`.
    fn refuses(&self, code: i32, file: &str, args: &[&str]) -> String {
        let line = self.fails(code, args);
        let rest = line.strip_prefix(file).and_then(|r| r.strip_prefix(": ")).unwrap_or_else(|| panic!("{args:?}: {line}"));
        let (what, remedy) = rest.split_once(" — ").unwrap_or_else(|| panic!("{args:?}: {line}"));
        assert!(!what.is_empty() && !remedy.is_empty(), "{args:?}: {line}");
        line
    }
}

fn checkpoint() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/light/checkpoint")
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value} is no object")).keys().map(String::as_str).collect()
}

/// `value` is an object with these keys and no others.
#[track_caller]
fn has_keys(value: &Value, want: &[&str]) {
    assert_eq!(keys(value), want.iter().copied().collect());
}

/// The numbers at `names` of `value` are there, finite and not negative.
#[track_caller]
fn has_numbers(value: &Value, names: &[&str]) {
    for name in names {
        assert!(value[*name].as_f64().is_some_and(|x| x.is_finite() && x >= 0.0), "{name}: {value}");
    }
}

fn ids(value: &Value) -> Vec<u64> {
    value.as_array().expect("an array").iter().map(|v| v.as_u64().expect("an id")).collect()
}

/// Greedy, `n` tokens.
fn greedy<'a>(prompt: &'a str, n: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["run", "light.gguf", "-p", prompt, "--temperature", "0", "--max-tokens", n], more].concat()
}

#[test]
fn help_lists_every_command() {
    let desk = Desk::empty();
    let help = desk.ok(&["--help"]);
    for name in [
        "convert",
        "quantize",
        "imatrix",
        "inspect",
        "verify",
        "run",
        "chat",
        "tokenize",
        "embed",
        "logits",
        "bench",
        "fit",
        "synth",
        "eval",
        "demo",
        "doctor",
        "completions",
    ] {
        assert!(help.lines().any(|l| l.trim_start().starts_with(&format!("{name} "))), "{name} is not in {help}");
        assert!(desk.ok(&[name, "--help"]).contains("Usage: sphinx "), "{name}");
    }
    assert_eq!(desk.ok(&["--version"]), format!("sphinx {}\n", env!("CARGO_PKG_VERSION")));
    for senseless in [&["frobnicate"][..], &["run"], &["run", "x.gguf"], &["logits", "x.gguf", "-o", "y"], &["bench", "x", "--repeat", "0"]]
    {
        let line = desk.fails(2, senseless);
        assert!(line.contains(" — "), "{senseless:?}: {line}");
    }
    let out = desk.sphinx(&[]).output().expect("the program runs");
    assert_eq!((out.status.code(), out.stdout.len()), (Some(2), 0));
}

#[test]
fn convert_writes_both_halves_or_nothing() {
    let desk = Desk::empty();
    let price = desk.json(&["convert", checkpoint(), "-o", "a.gguf", "--dry-run", "--json"]);
    assert!(desk.names().is_empty(), "{:?}", desk.names());
    assert_eq!(price["dry_run"], true);

    let done = desk.json(&["convert", checkpoint(), "-o", "a.gguf", "--json", "--threads", "1"]);
    assert_eq!(desk.names().into_iter().collect::<Vec<_>>(), ["a.gguf", "mmproj-a.gguf"]);
    for (report, name) in done["files"].as_array().expect("files").iter().zip(["a.gguf", "mmproj-a.gguf"]) {
        assert_eq!(report["path"], name);
        assert_eq!(report["bytes"].as_u64(), Some(desk.read(name).len() as u64), "{name}");
    }
    let sizes = |r: &Value| r["files"].as_array().expect("files").iter().map(|f| f["bytes"].as_u64()).collect::<Vec<_>>();
    assert_eq!(sizes(&price), sizes(&done), "a dry run tells the sizes");

    // The number of threads is not in the bytes.
    let text = desk.ok(&["convert", checkpoint(), "-o", "b.gguf", "--threads", "4"]);
    assert!(text.contains("b.gguf") && text.contains("mmproj-b.gguf"), "{text}");
    assert!(desk.read("a.gguf") == desk.read("b.gguf") && desk.read("mmproj-a.gguf") == desk.read("mmproj-b.gguf"));

    // What exists is not touched, unless told to.
    desk.write("b.gguf", b"mine");
    desk.refuses(2, "b.gguf", &["convert", checkpoint(), "-o", "b.gguf"]);
    assert_eq!(desk.read("b.gguf"), b"mine");
    fs::remove_file(desk.path("b.gguf")).expect("removed");
    desk.refuses(2, "mmproj-b.gguf", &["convert", checkpoint(), "-o", "b.gguf"]);
    desk.ok(&["convert", checkpoint(), "-o", "b.gguf", "--force"]);
    assert!(desk.read("a.gguf") == desk.read("b.gguf"));

    assert!(desk.fails(2, &["convert", checkpoint(), "-o", "c.gguf", "--quant", "Q9"]).contains("Q4_K_M"));
    assert!(desk.fails(5, &["convert", checkpoint(), "-o", "c.gguf", "--max-memory", "64K"]).contains("--max-memory"));
    desk.refuses(4, "nowhere", &["convert", "nowhere", "-o", "c.gguf"]);
}

#[test]
fn a_damaged_checkpoint_leaves_nothing_behind() {
    let desk = Desk::empty();
    fs::create_dir(desk.path("ck")).expect("a directory");
    for entry in fs::read_dir(checkpoint()).expect("the checkpoint") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), desk.path("ck").join(entry.file_name())).expect("a copy");
    }
    // In the middle of the numbers of some tensor, which only their CRC-32 can tell.
    let shard = "ck/consolidated.00-of-02.model.pth";
    desk.flip(shard, shard, (desk.read(shard).len() / 2) as i64);
    let line = desk.refuses(3, shard, &["convert", "ck", "-o", "a.gguf"]);
    assert!(line.contains("CRC-32") && line.contains("tensor \""), "{line}");
    assert_eq!(desk.names().into_iter().collect::<Vec<_>>(), ["ck"]);
    desk.write(shard, b"no archive");
    desk.refuses(3, shard, &["convert", "ck", "-o", "a.gguf"]);
    fs::remove_file(desk.path(shard)).expect("removed");
    let line = desk.fails(3, &["convert", "ck", "-o", "a.gguf"]);
    assert!(line.contains("consolidated.00-of-02"), "{line}");
}

#[test]
fn quantize_keeps_the_pair() {
    let desk = Desk::with_model("F16");
    for (from, to, quant) in [("light.gguf", "small.gguf", "Q4_K_M"), ("mmproj-light.gguf", "mmproj-small.gguf", "Q8_0")] {
        desk.ok(&["quantize", from, "-o", to, "--quant", quant]);
        assert!(desk.read(to).len() < desk.read(from).len() * 3 / 4, "{to}");
        let again = desk.json(&["quantize", from, "-o", "again.gguf", "--quant", quant, "--threads", "1", "--force", "--json"]);
        assert!(desk.read("again.gguf") == desk.read(to), "{to} depends on the threads");
        assert_eq!(again["files"][0]["bytes"].as_u64(), Some(desk.read(to).len() as u64));
        desk.refuses(2, to, &["quantize", from, "-o", to, "--quant", quant]);
    }
    desk.refuses(2, "light.gguf", &["quantize", "light.gguf", "-o", "light.gguf", "--quant", "F32", "--force"]);
    // Any quantisation of either half still pairs with any of the other.
    for (model, mmproj) in [("small.gguf", "mmproj-small.gguf"), ("small.gguf", "mmproj-light.gguf"), ("light.gguf", "mmproj-small.gguf")] {
        let out = desk.json(&["run", model, "--mmproj", mmproj, "--image", "image.png", "-p", "x", "--max-tokens", "1", "--json"]);
        assert_eq!(out["image_tokens"], 259);
    }
    desk.ok(&["quantize", "small.gguf", "-o", "wide.gguf", "--quant", "F32"]);
    let types = &desk.json(&["inspect", "wide.gguf", "--json"])["types"];
    assert_eq!((types[0]["type"].as_str(), types.as_array().map(Vec::len)), (Some("F32"), Some(1)));
}

#[test]
fn inspect_shows_files_and_checkpoints() {
    let desk = Desk::with_model("Q4_K_M");
    let file = desk.json(&["inspect", "light.gguf", "--tensors", "--json"]);
    assert_eq!((file["architecture"].as_str(), file["version"].as_u64()), (Some("llama"), Some(3)));
    assert_eq!(file["metadata"]["llama.block_count"], 2);
    assert_eq!(file["bytes"].as_u64(), Some(desk.read("light.gguf").len() as u64));
    let tensors = file["tensors"].as_array().expect("tensors");
    assert_eq!(tensors[0]["name"], "token_embd.weight");
    assert_eq!(tensors[0]["dims"], serde_json::json!([64, 800]));
    assert!(!keys(&desk.json(&["inspect", "light.gguf", "--json"])).contains("tensors"));
    let text = desk.ok(&["inspect", "mmproj-light.gguf", "--tensors"]);
    assert!(text.contains("sphinx-vision") && text.contains("v.dino.pos"), "{text}");
    // The card: a cache of 1000 positions is two layers of one key head of 32 channels, keys and values, two bytes each.
    let card = &desk.json(&["inspect", "light.gguf", "--context", "1000", "--json"])["card"];
    assert_eq!((card["llama_type"].as_str(), card["picture"]["rows"].as_u64()), (Some("llama_ens_light"), Some(259)));
    assert_eq!(card["memory"]["cache_f16_bytes"], 2 * 32 * 2 * 2 * 1000);
    let weights: usize = ["light.gguf", "mmproj-light.gguf"].iter().map(|f| desk.read(f).len()).sum();
    let stated = card["memory"]["weights_bytes"].as_u64().expect("a number") as usize;
    assert!(stated < weights && stated > weights * 8 / 10, "{stated} of {weights}");

    // The second opinion agrees.
    let other = desk.json(&["inspect", "light.gguf", "--tensors", "--json", "--with", "gguf-rs"]);
    assert_eq!(other["metadata"]["general.architecture"], "llama");
    assert_eq!(other["tensors"].as_array().map(Vec::len), Some(tensors.len()));
    assert!(desk.ok(&["inspect", "light.gguf", "--with", "gguf-rs"]).contains("gguf-rs"));
    assert!(desk.fails(2, &["inspect", checkpoint(), "--with", "gguf-rs"]).contains("GGUF"));

    let folder = desk.json(&["inspect", checkpoint(), "--tensors", "--json"]);
    assert_eq!(folder["llama_type"], "llama_ens_light");
    let shards = folder["tensors"].as_array().expect("tensors").iter().find(|t| t["name"] == "llma.tok_embeddings.weight");
    assert_eq!(shards.expect("the embeddings")["shapes"], serde_json::json!([[800, 32], [800, 32]]));
    let shard = format!("{}/consolidated.00-of-02.model.pth", checkpoint());
    assert!(desk.ok(&["inspect", &shard, "--tensors"]).contains("llma.tok_embeddings.weight"));
}

#[test]
fn verify_finds_what_changed() {
    let desk = Desk::with_model("Q4_K_M");
    for half in ["light.gguf", "mmproj-light.gguf"] {
        assert!(desk.ok(&["verify", half]).contains("tensors hold"));
        let found = desk.json(&["verify", half, "--against", checkpoint(), "--json"]);
        assert_eq!((found["ok"].as_bool(), found["checksums"].as_bool()), (Some(true), Some(true)));
        assert!(found["tensors"].as_array().expect("tensors").iter().all(|t| t["error"]["ok"] == true && t["intact"] == true));
    }
    // One bit of one weight.
    desk.flip("light.gguf", "bit.gguf", -5000);
    let line = desk.refuses(6, "bit.gguf", &["verify", "bit.gguf"]);
    assert!(line.contains("tensor \"output.weight\" at offset 0x"), "{line}");
    let out = desk.sphinx(&["verify", "bit.gguf", "--json"]).output().expect("the program runs");
    let found: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!((out.status.code(), found["ok"].as_bool()), (Some(6), Some(false)));
    // One bit of the header, the end cut off, something appended.
    desk.flip("light.gguf", "header.gguf", 24 + 8 + 25);
    desk.refuses(3, "header.gguf", &["verify", "header.gguf"]);
    let bytes = desk.read("light.gguf");
    desk.write("cut.gguf", &bytes[..bytes.len() - 5000]);
    assert!(desk.refuses(3, "cut.gguf", &["verify", "cut.gguf"]).contains("complete"));
    desk.write("long.gguf", &[&bytes[..], &[0; 64]].concat());
    let (_, warning) = desk.both(&["verify", "long.gguf"]);
    assert!(warning.starts_with("warning: long.gguf: 64 bytes"), "{warning}");
    desk.refuses(3, "long.gguf", &["verify", "long.gguf", "--strict"]);
    // Another model's vision half beside it.
    desk.ok(&["synth", "--family", "tiny", "--scale", "nano", "-o", "other.gguf"]);
    fs::rename(desk.path("mmproj-other.gguf"), desk.path("mmproj-long.gguf")).expect("renamed");
    assert!(desk.refuses(6, "long.gguf", &["verify", "long.gguf"]).contains("mmproj-long.gguf"));
    // A file of another checkpoint: much is wrong.
    let out = desk.sphinx(&["verify", "other.gguf", "--against", checkpoint()]).output().expect("the program runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(6), "{stderr}");
    assert!(stderr.starts_with("error: other.gguf: ") && stderr.contains(" more)"), "{stderr}");
    assert!(stdout.lines().filter(|l| l.starts_with("tensor \"")).count() > 5, "{stdout}");
}

#[test]
fn run_answers_as_text_and_as_json() {
    let desk = Desk::with_model("Q4_K_M");
    let image = ["--image", "image.png"];
    let out = desk.json(&greedy(QUESTION, "8", &[&image[..], &["--json"]].concat()));
    has_keys(&out, &["text", "tokens", "finish_reason", "prompt_tokens", "image_tokens", "dropped_tokens", "timings", "memory"]);
    assert_eq!((ids(&out["tokens"]).len(), out["finish_reason"].as_str()), (8, Some("length")));
    assert_eq!((out["image_tokens"].as_u64(), out["dropped_tokens"].as_u64()), (Some(259), Some(0)));
    has_numbers(&out["timings"], &["load_s", "encode_s", "prefill_s", "prefill_positions", "first_token_s", "decode_s", "decode_tokens"]);
    has_numbers(&out["timings"]["image"], &["preprocess_s", "convnext_s", "dinov2_s", "project_s"]);
    has_numbers(&out["memory"], &["rss_anon_bytes", "rss_file_bytes", "peak_rss_bytes"]);
    let text = out["text"].as_str().expect("a text");
    assert_eq!(text, text.trim());
    assert_eq!(desk.ok(&greedy(QUESTION, "8", &image)), format!("{text}\n"));
    let ids_of = |args: &[&str]| desk.json(&[&["tokenize", "light.gguf"], args].concat());
    let id_list = ids(&out["tokens"]).iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let decoded = ids_of(&["--decode", &id_list, "--json"]);
    assert_eq!(decoded.as_str().map(str::trim), Some(text));

    // Without a picture the prompt has the same text ids and no rows.
    let blind = desk.json(&greedy(QUESTION, "8", &["--json"]));
    assert_eq!((&blind["prompt_tokens"], blind["image_tokens"].as_u64()), (&out["prompt_tokens"], Some(0)));
    assert!(blind["timings"]["image"].is_null());
    assert_ne!(blind["tokens"], out["tokens"], "the picture changes nothing");

    // -v tells about stages, on standard error only.
    let (stdout, stderr) = desk.both(&greedy(QUESTION, "8", &[&image[..], &["-v"]].concat()));
    assert_eq!(stdout, format!("{text}\n"));
    for stage in ["load", "preprocess", "convnext", "dinov2", "project", "prefill", "decode", "memory:"] {
        assert!(stderr.lines().any(|l| l.trim_start().starts_with(stage)), "{stage} is not in {stderr}");
    }
}

#[test]
fn greedy_text_depends_on_nothing_but_the_model() {
    let desk = Desk::with_model("F32");
    let want: Value = serde_json::from_slice(&fs::read(fixture("light/case.json")).expect("the case")).expect("JSON");
    let want = want["greedy_text"].as_str().expect("a text").trim().to_owned() + "\n";
    let mut devices = vec![vec!["--threads", "1"], vec!["--threads", "2"], vec!["--chunk", "7"], vec!["--context", "400"]];
    if cfg!(feature = "candle") {
        devices.push(vec!["--device", "candle-cpu"]);
    }
    for device in devices {
        assert_eq!(desk.ok(&greedy(QUESTION, "16", &[&["--image", "image.png"], &device[..]].concat())), want, "{device:?}");
    }
    // 8-bit weights too, whatever the number of threads.
    let desk = Desk::with_model("Q8_0");
    let one = desk.json(&greedy(QUESTION, "32", &["--image", "image.png", "--threads", "1", "--json"]));
    let two = desk.json(&greedy(QUESTION, "32", &["--image", "image.png", "--threads", "2", "--json"]));
    assert_eq!((&one["tokens"], &one["text"]), (&two["tokens"], &two["text"]));
    for kv in ["f32", "q8_0"] {
        desk.ok(&greedy(QUESTION, "4", &["--kv", kv]));
    }
}

#[test]
fn generation_flags_do_what_they_say() {
    let desk = Desk::with_model("Q8_0");
    let whole = desk.json(&greedy("Hello", "24", &["--json"]));
    let text = whole["text"].as_str().expect("a text");
    // A stop text out of the middle of the answer: what comes before it is the answer.
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| w.len() >= 3).collect();
    let stop = words.last().unwrap_or_else(|| panic!("no word in {text:?}"));
    let cut = desk.json(&greedy("Hello", "24", &["--stop", "no such text", "--stop", stop, "--json"]));
    assert_eq!(cut["finish_reason"], "stop");
    assert_eq!(cut["text"].as_str(), Some(text[..text.find(stop).expect("the word")].trim()));
    let (cut, all) = (ids(&cut["tokens"]), ids(&whole["tokens"]));
    assert!(cut.len() < all.len() && all.starts_with(&cut));

    // Prompts: in the template, with a system text, as it is.
    let prompt_tokens = |more: &[&str]| {
        desk.json(&greedy(QUESTION, "1", &[more, &["--json"]].concat()))["prompt_tokens"].as_u64().expect("a number") as usize
    };
    let tokens = |text: &str| ids(&desk.json(&["tokenize", "light.gguf", text, "--bos"])).len();
    assert_eq!(prompt_tokens(&["--system", "S"]), tokens(IN_TEMPLATE));
    assert_eq!(prompt_tokens(&["--raw"]), tokens(QUESTION));
    assert!(prompt_tokens(&[]) > prompt_tokens(&["--system", "S"]));

    // Draws follow the seed.
    let draw = |seed: &str| {
        let args = ["run", "light.gguf", "-p", "x", "--temperature", "1", "--top-p", "0.95", "--max-tokens", "12", "--seed", seed];
        desk.ok(&args)
    };
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));

    // No room is usage; --truncate makes room.
    let long = "word ".repeat(60);
    let line = desk.fails(2, &greedy(&long, "8", &["--context", "100", "--raw"]));
    assert!(line.contains("--truncate"), "{line}");
    let cut = desk.json(&greedy(&long, "8", &["--context", "100", "--raw", "--truncate", "--json"]));
    assert_eq!(cut["prompt_tokens"], 92);
    assert_eq!(cut["dropped_tokens"].as_u64(), Some(tokens(&long) as u64 - 92));
    for bad in
        [&["--temperature=1000"][..], &["--temperature=-1"], &["--temperature=nan"], &["--top-p=2"], &["--stop="], &["--max-tokens=0"]]
    {
        desk.fails(2, &[&["run", "light.gguf", "-p", "x"], bad].concat());
    }
}

#[test]
fn chat_is_a_conversation() {
    let desk = Desk::with_model("Q8_0");
    let script = "Hello\nAnd then?\n/stats\n/save talk.txt\n/bogus\n/image nowhere.png\n/save talk.txt\n/clear\n\nHello\n\
                  /image image.png\nWhat is it?\n/help\n/quit\nnever asked\n";
    let chat = ["chat", "light.gguf", "--system", "S", "--temperature", "0", "--max-tokens", "6"];
    let out = desk.sphinx(&chat).write_stdin(script).output().expect("the program runs");
    let (stdout, stderr) = (String::from_utf8(out.stdout).expect("UTF-8"), String::from_utf8(out.stderr).expect("UTF-8"));
    assert!(out.status.success(), "{stderr}");

    // The same four prompts, asked one by one.
    let answer = |question: &str, before: &str, image: &[&str]| {
        let raw = format!("S\n\n### Human: {before}{question}\n### Assistant:");
        let out = desk.json(&greedy(&raw, "6", &[&["--raw", "--stop", "\n###", "--json"], image].concat()));
        out["text"].as_str().expect("a text").to_owned()
    };
    let first = answer("Hello", "", &[]);
    let second = answer("And then?", &format!("Hello\n### Assistant: {first}\n### Human: "), &[]);
    let seen = answer("What is it?", "", &["--image", "image.png"]);
    assert_eq!(stdout, format!("{first}\n{second}\n{first}\n{seen}\n"));
    let talk = format!("Human: Hello\nAssistant: {first}\n\nHuman: And then?\nAssistant: {second}\n\n");
    assert_eq!(String::from_utf8(desk.read("talk.txt")).expect("UTF-8"), talk);

    let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 3, "{stderr}");
    for (line, word) in errors.iter().zip(["/bogus", "nowhere.png", "talk.txt"]) {
        assert!(line.contains(word) && line.contains(" — "), "{line}");
    }
    assert!(stderr.contains("positions: ") && stderr.contains("/save FILE"), "{stderr}");
    desk.fails(2, &["chat", "light.gguf", "--raw"]);
}

#[test]
fn tokenize_treats_marks_as_text() {
    let desk = Desk::with_model("Q8_0");
    for text in ["Hello, world", "<s>[INST] </s><unk>", "<0x41>", "### Human:", "- a\n\tb  c", "", "né 漢 🦀"] {
        let plain = ids(&desk.json(&["tokenize", "light.gguf", text]));
        assert!(plain.iter().all(|id| *id > 2), "{text:?} became a control token: {plain:?}");
        let with_bos = ids(&desk.json(&["tokenize", "light.gguf", text, "--bos"]));
        assert_eq!(with_bos, [&[1], &plain[..]].concat(), "{text:?}");
        assert_eq!(ids(&desk.json(&["tokenize", "light.gguf", text, "--with", "tokenizers"])), plain, "{text:?}");
        let list = plain.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        assert_eq!(desk.json(&["tokenize", "light.gguf", &list, "--decode", "--json"]).as_str(), Some(text));
        assert_eq!(desk.ok(&["tokenize", "light.gguf", "--decode", &list]), format!("{text}\n"));
    }
    assert_eq!(desk.ok(&["tokenize", "light.gguf", "x", "--bos"]).matches('\n').count(), 1);
    assert!(desk.fails(2, &["tokenize", "light.gguf", "--decode", "1,800"]).contains("800"));
    desk.fails(2, &["tokenize", "light.gguf", "--decode", "1,x"]);
}

#[test]
fn embed_writes_every_stage() {
    let desk = Desk::with_model("F32");
    desk.both(&["embed", "light.gguf", "--image", "image.png", "-o", "e.safetensors"]);
    let stages = recorded(&desk.path("e.safetensors"));
    let shapes: Vec<(&str, &[usize])> = {
        let mut all: Vec<_> = stages.iter().map(|(name, (shape, _))| (name.as_str(), shape.as_slice())).collect();
        all.sort_unstable();
        all
    };
    let want: [(&str, &[usize]); 4] =
        [("image", &[3, 512, 512]), ("rows", &[259, 64]), ("view.0.convnext", &[257, 64]), ("view.0.dinov2", &[257, 64])];
    assert_eq!(shapes, want);
    let expected = recorded(&fixture("light/expected.safetensors"));
    for name in ["view.0.convnext", "view.0.dinov2"] {
        let error = max_abs(&support::every(&stages[name].1, 64, 16), &expected[name].1);
        assert!(error < 2e-3, "{name} is {error} off");
    }
    let before = desk.read("e.safetensors");
    let again = ["embed", "light.gguf", "--image", "image.png", "-o", "e.safetensors"];
    desk.refuses(2, "e.safetensors", &again);
    desk.both(&[&again[..], &["--force", "--threads", "1"]].concat());
    assert!(desk.read("e.safetensors") == before, "the rows depend on the threads");
    desk.refuses(4, "nowhere", &["embed", "light.gguf", "--image", "image.png", "-o", "nowhere/e.safetensors"]);
    desk.refuses(4, "nowhere.png", &["embed", "light.gguf", "--image", "nowhere.png", "-o", "f.safetensors"]);

    // Five views, counted from the whole picture.
    let five = fixture("light5/checkpoint");
    desk.ok(&["convert", five.to_str().expect("UTF-8"), "-o", "five.gguf"]);
    desk.both(&["embed", "five.gguf", "--image", "image.png", "-o", "five.safetensors"]);
    let stages = recorded(&desk.path("five.safetensors"));
    let mut want: BTreeSet<String> = ["image", "rows"].map(str::to_owned).into();
    want.extend((0..5).flat_map(|k| [format!("view.{k}.convnext"), format!("view.{k}.dinov2")]));
    assert_eq!(stages.keys().cloned().collect::<BTreeSet<_>>(), want);
    assert_eq!((&stages["rows"].0[..], &stages["image"].0[..]), (&[1295, 256][..], &[3, 1024, 1024][..]));
}

#[test]
fn logits_are_of_the_ids_given() {
    let desk = Desk::with_model("F32");
    let logits = |name: &str, args: &[&str]| {
        desk.both(&[&["logits", "light.gguf", "-o", name], args].concat());
        let mut file = recorded(&desk.path(name));
        let ((shape, values), (count, tokens)) = (file.remove("logits").expect("logits"), file.remove("tokens").expect("tokens"));
        assert!(file.is_empty());
        assert_eq!((shape, count), (vec![tokens.len(), 800], vec![tokens.len()]));
        (tokens.iter().map(|&id| id as u64).collect::<Vec<_>>(), values)
    };
    // Exactly these ids: no BOS is added, one in the middle is kept.
    let (tokens, values) = logits("a", &["--tokens", "300,1,2,300,799"]);
    assert_eq!(tokens, [300, 1, 2, 300, 799]);
    assert!(values.iter().all(|v| v.is_finite()));
    let (_, prefix) = logits("b", &["--tokens", "300,1,2"]);
    assert_eq!(max_abs(&prefix, &values[..prefix.len()]), 0.0, "a row sees what follows it");
    for same in [["--threads", "1"], ["--threads", "3"], ["--chunk", "2"]] {
        let (_, again) = logits(same[1], &[&["--tokens", "300,1,2,300,799"], &same[..]].concat());
        assert_eq!(max_abs(&again, &values), 0.0, "{same:?} changes the logits");
    }

    let tokenized = |text: &str| ids(&desk.json(&["tokenize", "light.gguf", text, "--bos"]));
    assert_eq!(logits("c", &["-p", QUESTION, "--raw"]).0, tokenized(QUESTION));
    let expected = recorded(&fixture("light/expected.safetensors"));
    for (name, more, golden) in [("d", &["--image", "image.png"][..], "logits"), ("e", &[], "text_logits")] {
        let (tokens, values) = logits(name, &[&["-p", QUESTION], more].concat());
        assert_eq!(tokens, expected["tokens"].1.iter().map(|&id| id as u64).collect::<Vec<_>>());
        let error = max_abs(&values, &expected[golden].1);
        assert!(error < 2e-3, "{golden} are {error} off");
    }
    desk.fails(2, &["logits", "light.gguf", "--tokens", "1,800", "-o", "f"]);
    desk.refuses(2, "a", &["logits", "light.gguf", "--tokens", "1", "-o", "a"]);
}

#[test]
fn bench_keeps_its_schema() {
    let desk = Desk::with_model("Q4_K_M");
    let quick = ["bench", "light.gguf", "--prompt-tokens", "5", "--gen-tokens", "3", "--repeat", "2"];
    let out = desk.json(&[&quick[..], &["--image", "image.png", "--output", "json", "--threads", "2"]].concat());
    has_keys(
        &out,
        &[
            "schema",
            "model",
            "machine",
            "device",
            "target",
            "memory_budget_bytes",
            "plan",
            "disk_gb_per_s",
            "major_faults",
            "memory_stall_s",
            "cold",
            "load_s",
            "image",
            "prefill",
            "decode",
            "first_token_s",
            "peak_rss_bytes",
            "disk_read_bytes",
            "experts",
            "runs",
        ],
    );
    has_keys(&out["model"], &["name", "quant", "params", "bytes"]);
    has_keys(&out["machine"], &["cpu", "isa", "threads", "memory_bytes"]);
    has_keys(
        &out["image"],
        &["views", "skipped_views", "preprocess_s", "convnext_s", "dinov2_s", "clip_s", "qformer_s", "project_s", "total_s"],
    );
    has_keys(&out["prefill"], &["tokens", "s", "tokens_per_s", "expert_passes"]);
    has_keys(&out["decode"], &["tokens", "s", "tokens_per_s"]);
    assert_eq!((out["schema"].as_u64(), out["cold"].as_bool(), out["experts"].is_null()), (Some(1), Some(false), true));
    assert_eq!((out["model"]["quant"].as_str(), out["device"].as_str()), (Some("Q4_K_M"), Some("cpu")));
    assert_eq!(out["model"]["bytes"].as_u64(), Some((desk.read("light.gguf").len() + desk.read("mmproj-light.gguf").len()) as u64));
    assert_eq!((out["prefill"]["tokens"].as_u64(), out["decode"]["tokens"].as_u64()), (Some(5 + 259), Some(3)));
    assert_eq!((out["machine"]["threads"].as_u64(), out["image"]["views"].as_u64()), (Some(2), Some(1)));
    assert!(out["image"]["clip_s"].is_null() && out["image"]["qformer_s"].is_null());
    has_numbers(&out, &["load_s", "first_token_s"]);
    has_numbers(&out["image"], &["skipped_views", "preprocess_s", "convnext_s", "dinov2_s", "project_s", "total_s"]);
    let runs = out["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 2);
    for run in runs {
        has_keys(run, &["prefill_tokens_per_s", "decode_tokens_per_s"]);
        has_numbers(run, &["prefill_tokens_per_s", "decode_tokens_per_s"]);
    }

    // Without a picture the vision file is not opened, so it may be anything.
    desk.write("mmproj-light.gguf", b"anything");
    let out = desk.json(&[&quick[..], &["--output", "json", "--cold"]].concat());
    assert_eq!((out["cold"].as_bool(), out["image"].is_null(), out["runs"].as_array().map(Vec::len)), (Some(true), true, Some(2)));
    assert_eq!(out["prefill"]["tokens"], 5);
    let csv = desk.ok(&[&quick[..], &["--output", "csv"]].concat());
    assert_eq!(csv.lines().count(), 2);
    assert!(csv.starts_with("cold,decode.s,"), "{csv}");
    let table = desk.ok(&quick);
    assert!(table.contains("| prefill |") && table.contains("5 positions"), "{table}");
}

#[test]
fn bench_keeps_to_a_budget() {
    let desk = Desk::with_model("Q4_K_M");
    let quick = ["bench", "light.gguf", "--prompt-tokens", "5", "--gen-tokens", "3", "--repeat", "1", "--context", "64"];
    let one = desk.json(&[&quick[..], &["--memory", "256M", "--output", "json"]].concat());
    assert_eq!(one["memory_budget_bytes"], 256 << 20);
    let by = one["memory"]["enforced_by"].as_str().expect("a text");
    assert!(["cgroup v1", "cgroup v2", "own accounting"].contains(&by), "{by}");
    assert_eq!((one["memory"]["within_budget"].as_bool(), one["memory"]["kills"].as_u64().unwrap_or(0)), (Some(true), 0));
    let parts: Vec<&str> = one["plan"]["parts"].as_array().expect("parts").iter().filter_map(|p| p["name"].as_str()).collect();
    assert_eq!(parts, ["program", "language", "keys and values", "buffers"]);

    let curve = desk.json(&[&quick[..], &["--memory", "128M,1G", "--output", "json", "--plot", "curve.svg"]].concat());
    let budgets: Vec<Option<u64>> = curve["curve"].as_array().expect("a curve").iter().map(|r| r["memory_budget_bytes"].as_u64()).collect();
    assert_eq!(budgets, [Some(128 << 20), Some(1 << 30)]);
    assert!(String::from_utf8(desk.read("curve.svg")).expect("text").starts_with("<svg"));
    let table = desk.ok(&[&quick[..], &["--memory", "128M,1G"]].concat());
    assert_eq!(table.lines().filter(|l| l.starts_with("| ")).count(), 3, "{table}");
    let csv = desk.ok(&[&quick[..], &["--memory", "128M,1G", "--output", "csv"]].concat());
    assert_eq!(csv.lines().count(), 3);

    let table = desk.ok(&[&quick[..], &["--target", "pi-5-8"]].concat());
    assert!(table.contains("| budget | 7.00 GiB |"), "{table}");
    assert!(desk.fails(2, &[&quick[..], &["--target", "toaster"]].concat()).contains("pi-5-8"));
    assert!(desk.fails(5, &[&quick[..], &["--memory", "1M"]].concat()).contains("the budget is 1 MiB"));
    assert!(desk.fails(2, &["run", "light.gguf", "-p", "x", "--memory", "1G,2G"]).contains("bench"));
    assert!(desk.fails(2, &[&quick[..], &["--trace", "t.jsonl"]].concat()).contains("dense"));
}

#[test]
fn a_picture_that_the_budget_does_not_hold_is_refused_before_it_is_decoded() {
    let desk = Desk::with_model("Q8_0");
    // A header of 6000 × 4000 pixels and nothing behind it.
    let mut bmp = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
    bmp.extend([6000u32.to_le_bytes(), 4000u32.to_le_bytes()].concat());
    bmp.extend([1, 0, 24, 0]);
    bmp.extend([0; 24]);
    desk.write("large.bmp", &bmp);
    let ask = ["run", "light.gguf", "--image", "large.bmp", "-p", "x", "--memory"];
    let text = desk.fails(5, &[&ask[..], &["128M"]].concat());
    assert!(text.contains("6000 × 4000 takes") && text.contains("scale the picture down"), "{text}");
    assert!(desk.fails(3, &[&ask[..], &["8G"]].concat()).contains("ends before the picture does"));
}

#[test]
fn a_mixture_answers_within_a_budget_and_leaves_a_trace() {
    let desk = Desk::empty();
    let checkpoint = fixture("moe5/checkpoint");
    desk.ok(&["convert", checkpoint.to_str().expect("a path"), "-o", "moe.gguf", "--quant", "Q8_0"]);
    let run = |more: &[&str]| {
        desk.json(&[&["run", "moe.gguf", "-p", "x", "--json", "--temperature", "0", "--max-tokens", "12"][..], more].concat())
    };
    let resident = run(&[]);
    for more in [
        &["--expert-cache", "96K"][..],
        &["--expert-cache", "1M", "--expert-policy", "lru"],
        &["--expert-cache", "200K", "--verify-reads", "--memory", "1G"],
    ] {
        assert_eq!(run(more)["tokens"], resident["tokens"], "{more:?}");
    }
    let quick = ["bench", "moe.gguf", "--prompt-tokens", "70", "--gen-tokens", "6", "--repeat", "2", "--output", "json"];
    let out = desk.json(&[&quick[..], &["--expert-cache", "128K", "--trace", "trace.jsonl", "--memory", "1G"]].concat());
    let experts = &out["experts"];
    has_numbers(experts, &["hits", "misses", "hit_rate", "bytes_per_token", "stall_s", "guess_recall"]);
    assert_eq!(experts["cache_bytes"], 128 << 10);
    // The prompt goes through a layer before the next begins: each expert is read once at most, and a page more for its ends.
    let passes = out["prefill"]["expert_passes"].as_f64().expect("a number");
    assert!(passes > 0.2 && passes < 2.0, "{passes}");
    let trace = String::from_utf8(desk.read("trace.jsonl")).expect("text");
    let layers: u64 =
        serde_json::from_str::<Value>(trace.lines().next().expect("a line")).expect("JSON")["layers"].as_u64().expect("a number");
    // A warm-up and two repetitions, each a prompt and six tokens.
    assert_eq!(trace.lines().count() as u64, 1 + 3 * 7 * layers);
    // On a device that copies weights, what is dropped from the cache is dropped there too.
    if cfg!(feature = "candle") {
        let on_candle = |more: &[&str]| run(&[&["--device", "candle-cpu"], more].concat())["tokens"].clone();
        assert_eq!(on_candle(&["--expert-cache", "96K"]), on_candle(&[]));
    }
    // Experts that lie in the map are read by the system, which does not say how.
    let out = desk.json(&quick);
    assert!(out["experts"]["cache_bytes"].is_null() && out["experts"]["hits"].is_null() && !out["experts"].is_null());
}

#[test]
fn fit_says_what_a_model_needs() {
    let desk = Desk::with_model("Q4_K_M");
    let out = desk.json(&["fit", "light.gguf", "--memory", "1G", "--context", "512", "--json"]);
    assert_eq!((out["fits"].as_bool(), out["budget_bytes"].as_u64(), out["images"].as_u64()), (Some(true), Some(1 << 30), Some(1)));
    let peak = out["peak_bytes"].as_u64().expect("a number");
    let names: Vec<&str> = out["plan"]["parts"].as_array().expect("parts").iter().filter_map(|p| p["name"].as_str()).collect();
    assert_eq!(names, ["program", "language", "encoders", "keys and values", "buffers"]);
    // Less of everything needs less.
    let sum = |of: &Value| of["plan"]["parts"].as_array().expect("parts").iter().filter_map(|p| p["bytes"].as_u64()).sum::<u64>();
    let usual = ["fit", "light.gguf", "--memory", "1G", "--json"];
    for less in [&["--context", "300"][..], &["--context", "512", "--kv", "q8_0"], &["--context", "512", "--images", "0"]] {
        assert!(sum(&desk.json(&[&usual[..], less].concat())) < sum(&out), "{less:?}");
    }
    assert!(desk.ok(&["fit", "light.gguf", "--target", "pi-5-8"]).contains("Raspberry Pi 5"));

    // A checkpoint is priced as what convert would make of it.
    let of_checkpoint = desk.json(&["fit", checkpoint(), "--memory", "1G", "--context", "512", "--vision-quant", "Q4_K_M", "--json"]);
    assert_eq!(of_checkpoint["peak_bytes"].as_u64(), Some(peak));

    let line = desk.fails(5, &["fit", "light.gguf", "--memory", "2M"]);
    assert!(line.contains("light.gguf") && line.contains("--memory"), "{line}");
    assert!(desk.fails(2, &["fit", "light.gguf", "--images", "9", "--context", "512"]).contains("--context"));
    assert!(desk.fails(3, &["fit", "image.png"]).contains("image.png"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_model_cut_short_while_it_runs_is_an_io_error() {
    let desk = Desk::with_model("Q8_0");
    let args = ["bench", "light.gguf", "--prompt-tokens", "8", "--gen-tokens", "100", "--context", "128", "--repeat", "100000"];
    let mut child = desk.process(&args).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the program starts");
    std::thread::sleep(std::time::Duration::from_millis(600));
    fs::File::options().write(true).open(desk.path("light.gguf")).expect("the file").set_len(4096).expect("shorter");
    let status = child.wait().expect("an end");
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("UTF-8");
    assert_eq!(status.code(), Some(4), "{said}");
    assert!(said.contains("light.gguf: the model file changed while in use — "), "{said}");
}

#[test]
fn synth_makes_models_that_run() {
    let desk = Desk::empty();
    let synth = ["synth", "--family", "tiny", "--scale", "nano", "--llama-type", "llama_ens_light"];
    desk.ok(&[&synth[..], &["-o", "dir"]].concat());
    assert!(desk.path("dir/tokenizer.model").is_file() && desk.path("dir/meta.json").is_file());
    desk.ok(&["convert", "dir", "-o", "converted.gguf", "--strict"]);
    desk.ok(&[&synth[..], &["-o", "a.gguf", "--seed", "7", "--threads", "1"]].concat());
    desk.ok(&[&synth[..], &["-o", "b.gguf", "--seed", "7", "--threads", "2"]].concat());
    desk.ok(&[&synth[..], &["-o", "c.gguf", "--seed", "8"]].concat());
    for half in ["a.gguf", "mmproj-a.gguf"] {
        assert!(desk.read(half) == desk.read(&half.replace("a.gguf", "b.gguf")), "{half} depends on the threads");
        assert!(desk.read(half) != desk.read(&half.replace("a.gguf", "c.gguf")), "{half} does not depend on the seed");
    }
    desk.ok(&[&synth[..], &["-o", "d.gguf", "--no-vision"]].concat());
    assert!(desk.path("d.gguf").is_file() && !desk.path("mmproj-d.gguf").exists());
    fs::copy(fixture("light/image.png"), desk.path("image.png")).expect("a copy");
    for model in ["converted.gguf", "a.gguf"] {
        let out = desk.json(&["run", model, "--image", "image.png", "-p", "x", "--max-tokens", "4", "--json"]);
        assert_eq!(out["image_tokens"], 259, "{model}");
    }
    desk.refuses(2, "a.gguf", &[&synth[..], &["-o", "a.gguf"]].concat());
    desk.refuses(2, "dir", &[&synth[..], &["-o", "dir"]].concat());
    desk.fails(2, &["synth", "--family", "huge", "--scale", "nano", "-o", "e.gguf"]);
}

/// The committed cases with pictures, and what `convert` must be told of them.
const MEMBERS: &[(&str, &[&str])] = &[
    ("ens", &[]),
    ("ens5", &["--clip-activation", "quick-gelu"]),
    ("ens5p2", &[]),
    ("ens10", &[]),
    ("moe", &[]),
    ("moe5", &[]),
    ("moe-light", &[]),
    ("moe5-light", &[]),
    ("intern", &[]),
    ("intern5", &[]),
    ("skip", &["--pad-anchor", "top_left"]),
    ("nine", &["--layout", "layout.toml"]),
];

#[test]
fn every_member_converts_and_answers() {
    for &(name, flags) in MEMBERS {
        let (desk, case) = (Desk::empty(), fixture(name));
        let about = support::case_json(&case);
        if case.join("layout.toml").exists() {
            fs::copy(case.join("layout.toml"), desk.path("layout.toml")).expect("a copy");
        }
        let (checkpoint, picture) = (case.join("checkpoint"), case.join("image.png"));
        let (checkpoint, picture) = (checkpoint.to_str().expect("a name"), picture.to_str().expect("a name"));
        desk.ok(&[&["convert", checkpoint, "-o", "m.gguf", "--strict"], flags].concat());
        let question = about["prompt"].as_str().expect("a prompt");
        let out = desk.json(&["run", "m.gguf", "--image", picture, "-p", question, "--max-tokens", "3", "--json"]);
        assert_eq!(out["image_tokens"], about["image_rows"], "{name}");
        let card = &desk.json(&["inspect", "m.gguf", "--json"])["card"];
        assert_eq!(
            card["picture"]["towers"].as_array().map(Vec::len),
            Some(if about["vision"]["llama_type"].as_str().is_some_and(|t| t.ends_with("light")) { 2 } else { 4 }),
            "{name}: {card}"
        );
        // What converted is what the checkpoint says, and everything in there is accounted for.
        let told: Vec<&str> = flags.iter().copied().filter(|f| *f != "--clip-activation" && *f != "quick-gelu").collect();
        for half in ["m.gguf", "mmproj-m.gguf"] {
            let found = desk.json(&[&["verify", half, "--against", checkpoint, "--json"], &told[..]].concat());
            assert_eq!(
                (found["ok"].as_bool(), found["sources"]["unknown"].as_array().map(Vec::len)),
                (Some(true), Some(0)),
                "{name}: {found}"
            );
        }
    }
}

#[test]
fn a_skip_token_needs_to_know_where_padding_lies() {
    let desk = Desk::empty();
    let checkpoint = fixture("skip/checkpoint");
    let line = desk.fails(3, &["convert", checkpoint.to_str().expect("a name"), "-o", "m.gguf"]);
    assert!(line.contains("--pad-anchor") && line.contains("llma.skip_token"), "{line}");
}

#[test]
fn several_pictures_and_frames_follow_one_another() {
    let desk = Desk::with_model("Q8_0");
    let ask = ["run", "light.gguf", "-p", QUESTION, "--temperature", "0", "--max-tokens", "4", "--json"];
    let run = |more: &[&str]| desk.json(&[&ask[..], more].concat());
    let twice = run(&["--image", "image.png", "--image", "image.png"]);
    assert_eq!(twice["image_tokens"], 2 * 259);
    fs::create_dir(desk.path("film")).expect("a folder");
    for frame in ["1.png", "2.png", "10.png"] {
        fs::copy(desk.path("image.png"), desk.path("film").join(frame)).expect("a copy");
    }
    let film = run(&["--video", "film", "--frames", "2"]);
    assert_eq!((&film["image_tokens"], &film["tokens"]), (&twice["image_tokens"], &twice["tokens"]));
    assert_eq!(run(&["--video", "film"])["image_tokens"], 3 * 259);
    // 1000 positions hold three pictures, and the line says so before one is encoded.
    let many = ["--image", "image.png"].repeat(4);
    let line = desk.fails(2, &[&ask[..], &many, &["--context", "1000"]].concat());
    assert!(line.contains("4 pictures × 259 rows") && line.contains("at most 3 pictures of 259 rows"), "{line}");
    desk.fails(2, &[&ask[..], &["--video", "film", "--image", "image.png"]].concat());
    desk.fails(2, &[&ask[..], &["--frames", "2"]].concat());
    desk.write("film.mp4", b"\0\0\0\x18ftypmp42");
    assert!(desk.refuses(3, "film.mp4", &[&ask[..], &["--video", "film.mp4"]].concat()).contains("external decoder"));
}

#[test]
fn importance_is_measured_and_used() {
    let desk = Desk::with_model("F16");
    desk.write(
        "data.jsonl",
        b"{\"question\": \"What is it?\", \"image\": \"image.png\", \"answer\": \"a dog\"}\n{\"text\": \"Some words.\"}\n",
    );
    let (_, said) = desk.both(&["imatrix", "light.gguf", "--data", "data.jsonl", "-o", "i.gguf"]);
    assert!(said.starts_with("i.gguf: "), "{said}");
    let seen = desk.json(&["inspect", "i.gguf", "--tensors", "--json"]);
    let names: BTreeSet<&str> = seen["tensors"].as_array().expect("tensors").iter().filter_map(|t| t["name"].as_str()).collect();
    for name in
        ["blk.1.ffn_down.weight", "blk.0.attn_q.weight", "output.weight", "v.dino.0.qkv.weight", "v.cnx.2.1.fc2.weight", "v.proj.weight"]
    {
        assert!(
            names.contains(format!("{name}.in_sum2").as_str()) && names.contains(format!("{name}.counts").as_str()),
            "{name}: {names:?}"
        );
    }
    for half in ["light.gguf", "mmproj-light.gguf"] {
        desk.ok(&["quantize", half, "-o", "plain", "--quant", "Q4_0", "--force"]);
        desk.ok(&["quantize", half, "-o", "weighed", "--quant", "Q4_0", "--imatrix", "i.gguf", "--force"]);
        assert!(desk.read("plain") != desk.read("weighed"), "{half}: the weights change nothing");
    }
    desk.ok(&["convert", checkpoint(), "-o", "c.gguf", "--quant", "Q4_0", "--imatrix", "i.gguf"]);
    // Rows that are none, an output that exists, a matrix of another model.
    desk.write("bad.jsonl", b"{\"question\": 3}\n");
    desk.fails(3, &["imatrix", "light.gguf", "--data", "bad.jsonl", "-o", "j.gguf"]);
    desk.refuses(2, "i.gguf", &["imatrix", "light.gguf", "--data", "data.jsonl", "-o", "i.gguf"]);
    desk.ok(&["synth", "--family", "tiny", "--scale", "nano", "-o", "other.gguf", "--quant", "F16", "--no-vision"]);
    desk.fails(3, &["quantize", "other.gguf", "-o", "o.gguf", "--quant", "Q4_0", "--imatrix", "i.gguf"]);
}

#[test]
fn verify_gates_the_error() {
    let desk = Desk::with_model("Q8_0");
    desk.ok(&["verify", "light.gguf", "--against", checkpoint(), "--max-rmse", "0.1"]);
    let out = desk.sphinx(&["verify", "light.gguf", "--against", checkpoint(), "--max-rmse", "1e-9"]).output().expect("the program runs");
    assert_eq!(out.status.code(), Some(6), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn every_family_is_made_up() {
    for (family, rows) in [("tiny", 1295), ("plus", 1295), ("intern2", 1295), ("moe", 1455)] {
        let desk = Desk::empty();
        desk.ok(&["synth", "--family", family, "--scale", "nano", "-o", "m.gguf"]);
        let picture = fixture("light/image.png");
        let args = ["run", "m.gguf", "--image", picture.to_str().expect("a name"), "-p", "x", "--max-tokens", "3", "--json"];
        assert_eq!(desk.json(&args)["image_tokens"], rows, "{family}");
        desk.ok(&["synth", "--family", family, "--scale", "nano", "-o", "dir", "--shards", "2"]);
        desk.ok(&["convert", "dir", "-o", "c.gguf", "--strict"]);
    }
}

#[test]
fn demo_needs_nothing() {
    let desk = Desk::empty();
    // No home, a temporary folder, and a working directory that takes nothing.
    let here = desk.path("read-only");
    fs::create_dir(&here).expect("a directory");
    let mut permissions = fs::metadata(&here).expect("its metadata").permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&here, permissions).expect("read-only");
    let temporary = desk.path("temporary");
    fs::create_dir(&temporary).expect("a directory");
    let run = |args: &[&str]| {
        let mut command = desk.process(args);
        let out = command.current_dir(&here).env_clear().env("TMPDIR", &temporary).output().expect("the program runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(fs::read_dir(&temporary).expect("the temporary folder").count(), 0);
        String::from_utf8(out.stdout).expect("UTF-8")
    };
    // The first two questions of each of the first four pictures of the test set.
    let set = fs::read_to_string(support::root().join("nano/test.jsonl")).expect("the test set");
    let set: Vec<Value> = set.lines().take(20).map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let out: Value = serde_json::from_str(&run(&["demo", "--json"])).expect("JSON");
    let answers = out["answers"].as_array().expect("answers");
    assert_eq!((answers.len(), out["of"].as_u64(), out["toy"].as_bool()), (8, Some(8), Some(true)));
    let mut right = 0;
    for (i, got) in answers.iter().enumerate() {
        let row = &set[5 * (i / 2) + i % 2];
        for (ours, theirs) in [("image", "image"), ("question", "question"), ("truth", "answer")] {
            assert_eq!(got[ours], row[theirs], "{ours} of answer {i}");
        }
        assert_eq!(got["right"].as_bool(), Some(got["answer"] == got["truth"]), "{got}");
        right += u64::from(got["right"] == true);
    }
    // Accuracy has its own test; eight questions may hold a wrong answer or two.
    assert!(out["right"] == right && right >= 5, "{out}");
    let text = run(&["demo"]);
    for got in answers {
        let (answer, truth) = (got["answer"].as_str().expect("an answer"), got["truth"].as_str().expect("the truth"));
        let word = if got["right"] == true { "right" } else { "wrong" };
        let lines =
            format!("question  {}\nanswer    {answer}\ntruth     {truth}  ({word})\n", got["question"].as_str().expect("a question"));
        assert!(text.contains(&lines), "{lines} in {text}");
    }
    assert!(text.contains("toy") && text.contains("sphinx convert") && text.contains("tokens/s"), "{text}");
    assert!(!text.contains('\u{1b}'), "no picture is drawn in a pipe: {text:?}");
    let own = fixture("light/image.png");
    let own = own.to_str().expect("UTF-8");
    let out: Value = serde_json::from_str(&run(&["demo", "--json", "--image", own, "-p", "Why?"])).expect("JSON");
    let answers = out["answers"].as_array().expect("answers");
    assert_eq!((answers.len(), &answers[0]["question"], &answers[0]["truth"]), (1, &Value::from("Why?"), &Value::Null));
    assert_eq!((answers[0]["image_tokens"].as_u64(), out["of"].as_u64()), (Some(259), Some(0)));
    let out: Value = serde_json::from_str(&run(&["demo", "--json", "-p", "How many shapes are there?"])).expect("JSON");
    assert_eq!(out["answers"][0]["image"], "test/000.png");
    let line = desk.sphinx(&["demo"]).env("TMPDIR", desk.path("nowhere")).output().expect("the program runs");
    assert_eq!(line.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&line.stderr).contains("nowhere"));
}

#[test]
fn eval_scores_a_model() {
    let desk = Desk::with_model("Q8_0");
    // Greedy answers of this model are the right ones of this set, but for the last.
    let said =
        |question: &str| desk.json(&greedy(question, "8", &["--image", "image.png", "--json"]))["text"].as_str().expect("text").to_owned();
    let row = |id: u32, question: &str, answer: &str, category: &str| {
        serde_json::json!({ "id": id, "image": "image.png", "question": question, "answer": answer, "category": category }).to_string()
    };
    let rows =
        [row(1, "Why?", &said("Why?"), "why"), row(2, "Where?", &said("Where?"), "where"), row(3, "Why?", "nothing a model says", "why")];
    desk.write("set.jsonl", rows.join("\n").as_bytes());
    let base = ["eval", "light.gguf", "--dataset", "jsonl", "set.jsonl", "--max-tokens", "8"];
    let with = |more: &[&'static str]| [&base[..], more].concat();
    let out = desk.json(&with(&["--json", "-o", "records.jsonl"]));
    let model = &out["models"][0];
    assert_eq!((out["rows"].as_u64(), model["all"]["right"].as_u64(), model["all"]["total"].as_u64()), (Some(3), Some(2), Some(3)));
    assert_eq!(model["groups"]["category"]["why"]["right"], 1);
    assert_eq!((model["quant"].as_str(), model["vision_quant"].as_str(), &model["against"]), (Some("Q8_0"), Some("Q8_0"), &Value::Null));
    let interval = model["all"]["interval_95"].as_array().expect("an interval");
    assert!(interval[0].as_f64() < Some(0.5) && interval[1].as_f64() > Some(0.8), "{interval:?}");
    let records = String::from_utf8(desk.read("records.jsonl")).expect("UTF-8");
    let records: Vec<Value> = records.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let right: Vec<_> = records.iter().map(|r| (r["id"].as_str(), r["right"].as_bool())).collect();
    assert_eq!(right, [(Some("1"), Some(true)), (Some("2"), Some(true)), (Some("3"), Some(false))]);
    let told = ["answer", "finish_reason", "groups", "id", "kl", "line", "model", "ms", "options", "parsed", "prompt_sha256", "question"];
    has_keys(&records[0], &[&told[..], &["right", "scoring", "text", "tokens"]].concat());
    desk.fails(2, &with(&["-o", "records.jsonl"]));

    // What an interrupted run had written is taken as it is, and the rest is made; a line that was cut off is made again.
    let text = String::from_utf8(desk.read("records.jsonl")).expect("UTF-8");
    let (first, rest) = text.split_once('\n').expect("lines");
    let lied = first.replace("\"right\":true", "\"right\":false");
    desk.write("again.jsonl.partial", format!("{lied}\n{}", &rest[..rest.len() / 3]).as_bytes());
    let out = desk.json(&with(&["--json", "-o", "again.jsonl", "--resume"]));
    assert_eq!((out["models"][0]["all"]["right"].as_u64(), out["models"][0]["all"]["total"].as_u64()), (Some(1), Some(3)));
    assert_eq!(String::from_utf8(desk.read("again.jsonl")).expect("UTF-8").lines().count(), 3);
    assert!(!desk.names().contains("again.jsonl.partial"));
    desk.write("other.jsonl.partial", format!("{}\n", first.replace("\"line\":1", "\"line\":7")).as_bytes());
    assert!(desk.fails(3, &with(&["-o", "other.jsonl", "--resume"])).contains("other questions"));
    fs::remove_file(desk.path("other.jsonl.partial")).expect("removed");

    // Against itself a model diverges by nothing; against its F32 twin by something, and little.
    let against = |file: &'static str| desk.json(&with(&["--json", "--against", file]))["models"][0]["against"].clone();
    let same = against("light.gguf");
    assert_eq!((same["kl_nats"].as_f64(), same["top1"].as_f64()), (Some(0.0), Some(1.0)));
    desk.ok(&["convert", checkpoint(), "-o", "wide.gguf", "--quant", "F32", "--vision-quant", "F32"]);
    let twin = against("wide.gguf");
    assert!(twin["kl_nats"].as_f64().is_some_and(|kl| kl > 0.0 && kl < 0.1), "{twin}");
    assert!(desk.ok(&base).contains("95 % interval"));
    // Records of a run with other rules are not taken for this one's.
    desk.write("rules.jsonl.partial", format!("{first}\n").as_bytes());
    let line = desk.fails(3, &with(&["-o", "rules.jsonl", "--resume", "--against", "wide.gguf"]));
    assert!(line.contains("other questions, models or rules"), "{line}");
    fs::remove_file(desk.path("rules.jsonl.partial")).expect("removed");
    // A model of text alone is asked what has no picture.
    support::foreign(&desk.path("light.gguf"), &desk.path("plain.gguf"));
    desk.write("text.jsonl", br#"{"question": "Why?", "answer": "so"}"#);
    let out = desk.json(&["eval", "plain.gguf", "--dataset", "jsonl", "text.jsonl", "--max-tokens", "4", "--json"]);
    assert_eq!((&out["models"][0]["vision_quant"], &out["models"][0]["bytes"]["vision"]), (&Value::Null, &Value::Null));
    desk.fails(3, &["eval", "plain.gguf", "--dataset", "jsonl", "set.jsonl"]);
    assert!(desk.ok(&with(&["--markdown", "--limit", "1"])).contains("| all "));
}

#[test]
fn eval_knows_other_rules_and_precisions() {
    let desk = Desk::with_model("Q8_0");
    let rows = [
        r#"{"question": "Which?", "image": "image.png", "choices": ["red", "blue"], "answer": "B"}"#,
        r#"{"question": "Which one?", "choices": ["up", "down", "left"], "answer": "up"}"#,
    ];
    desk.write("set.jsonl", rows.join("\n").as_bytes());
    let out = desk.json(&["eval", "light.gguf", "--dataset", "jsonl", "set.jsonl", "--scoring", "likelihood", "--json", "-o", "r.jsonl"]);
    assert_eq!(out["models"][0]["all"]["unread"], 0);
    let records = String::from_utf8(desk.read("r.jsonl")).expect("UTF-8");
    for (line, n) in records.lines().zip([2, 3]) {
        let record: Value = serde_json::from_str(line).expect("JSON");
        let options = record["options"].as_array().expect("options");
        let best =
            options.iter().max_by(|a, b| a["logprob_per_token"].as_f64().partial_cmp(&b["logprob_per_token"].as_f64()).expect("numbers"));
        assert_eq!((options.len(), &best.expect("a best")["choice"]), (n, &record["text"]));
        assert!(options.iter().all(|o| o["logprob_per_token"].as_f64().is_some_and(|p| p < 0.0)));
    }
    // Letters are asked for, and what is none is unread and wrong.
    let out =
        desk.json(&["eval", "light.gguf", "--dataset", "jsonl", "set.jsonl", "--json", "--max-tokens", "4", "--force", "-o", "r.jsonl"]);
    assert_eq!(out["models"][0]["all"]["total"], 2);
    assert!(String::from_utf8(desk.read("r.jsonl")).expect("UTF-8").contains("A. red\\nB. blue\\nAnswer with"));

    // A checkpoint at several precisions, each against F16.
    desk.write("few.jsonl", br#"{"question": "Why?", "image": "image.png", "answer": "x", "category": "why"}"#);
    let sweep =
        ["eval", checkpoint(), "--dataset", "jsonl", "few.jsonl", "--max-tokens", "4", "--quant", "F16,Q4_0", "--vision-quant", "Q8_0,F16"];
    let before = desk.names();
    let out = desk.json(&[&sweep[..], &["--work", ".", "--json"]].concat());
    assert_eq!(desk.names(), before, "conversions are removed");
    let models = out["models"].as_array().expect("models");
    let names: Vec<_> =
        models.iter().map(|m| (m["quant"].as_str().expect("a name"), m["vision_quant"].as_str().expect("a name"))).collect();
    assert_eq!(names, [("F16", "Q8_0"), ("Q4_0", "Q8_0"), ("F16", "F16"), ("Q4_0", "F16")]);
    let kl = |i: usize| models[i]["against"]["kl_nats"].as_f64().expect("a divergence");
    assert!(kl(2) == 0.0 && kl(0) > 0.0 && kl(3) > kl(0), "{models:?}");
    let bytes = |i: usize, half: &str| models[i]["bytes"][half].as_u64().expect("bytes");
    assert!(bytes(0, "language") > bytes(1, "language") && bytes(0, "vision") < bytes(2, "vision"));
    assert!(desk.ok(&sweep).contains("top-1 %"));

    // What cannot be asked or judged is named before anything is converted.
    for (line, word) in [
        (&br#"{"question": "Why?"}"#[..], "no answer"),
        (br#"{"question": "Why?", "choices": ["a", "b"], "answer": "c"}"#, "no reply can meet"),
        (br#"{"question": "Why?", "choices": ["a"], "answer": "a"}"#, "1 choices"),
        (b"", "no row"),
    ] {
        desk.write("bad.jsonl", line);
        let error = desk.fails(3, &["eval", "light.gguf", "--dataset", "jsonl", "bad.jsonl"]);
        assert!(error.contains(word) && error.contains("bad.jsonl"), "{error}");
    }
    desk.fails(4, &["eval", "light.gguf", "--dataset", "jsonl", "nowhere.jsonl"]);
    desk.fails(2, &["eval", "light.gguf", "--dataset", "pope", "set.jsonl"]);
    desk.fails(2, &["eval", "light.gguf", "--dataset", "jsonl", "few.jsonl", "--quant", "Q8_0"]);
    desk.fails(2, &["eval", checkpoint(), "--dataset", "jsonl", "few.jsonl", "--quant", "Q9"]);
    desk.fails(2, &["eval", checkpoint(), "--dataset", "jsonl", "few.jsonl", "--mmproj", "light.gguf"]);
}

#[test]
fn doctor_and_completions() {
    let desk = Desk::empty();
    let report = desk.json(&["doctor", "--json"]);
    has_numbers(&report, &["threads", "memory_read_gb_per_s"]);
    has_numbers(&report["disk"], &["write_mb_per_s", "read_mb_per_s"]);
    assert!(report["isa"].is_string() && report["features"].is_array() && report["members"].as_array().is_some_and(|m| m.len() == 4));
    let text = desk.ok(&["doctor"]);
    assert!(text.contains("kernels") && text.contains(report["isa"].as_str().expect("a name")), "{text}");
    assert!(desk.names().is_empty(), "{:?}", desk.names());
    desk.fails(4, &["doctor", "--disk", "nowhere"]);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = desk.ok(&["completions", shell]);
        assert!(script.contains("sphinx") && script.contains("tokenize") && script.contains("max-tokens"), "{shell}");
    }
}

#[test]
fn devices_that_are_not_there_are_explained() {
    let desk = Desk::with_model("Q8_0");
    let report = desk.json(&["doctor", "--json"]);
    assert_eq!(report["target"]["device"], "cpu");
    let devices = report["devices"].as_array().expect("devices");
    assert_eq!(devices.iter().map(|d| d["device"].as_str().expect("a name")).collect::<Vec<_>>(), ["cpu", "candle-cpu", "cuda", "metal"]);
    for device in devices.iter().filter(|d| d["usable"] == false) {
        let (name, why) = (device["device"].as_str().expect("a name"), device["why_not"].as_str().expect("a reason"));
        let commands =
            [&["run", "light.gguf", "-p", "x"][..], &["bench", "light.gguf"], &["logits", "light.gguf", "--prompt", "x", "-o", "x.st"]];
        for command in commands {
            let line = desk.fails(2, &[command, &["--device", name]].concat());
            assert!(line.contains(why) && line.contains("--device cpu"), "{line}");
        }
    }
    assert!(desk.fails(2, &["run", "light.gguf", "-p", "x", "--device", "gpu"]).contains("cuda:N"));
}

#[test]
fn wrong_files_are_named_and_explained() {
    let desk = Desk::with_model("Q8_0");
    desk.write("noise.gguf", &fs::read(fixture("light/image.png")).expect("the picture"));
    desk.write("empty.gguf", b"");
    fs::create_dir(desk.path("folder")).expect("a directory");
    for command in [&["run", "-p", "x"][..], &["inspect"], &["verify"], &["tokenize", "x"], &["bench"], &["chat"]] {
        let with = |file: &'static str| {
            let mut args = command.to_vec();
            args.insert(1, file);
            args
        };
        desk.refuses(3, "noise.gguf", &with("noise.gguf"));
        desk.refuses(3, "empty.gguf", &with("empty.gguf"));
        desk.refuses(4, "nowhere.gguf", &with("nowhere.gguf"));
        if command[0] != "inspect" {
            desk.fails(4, &with("folder"));
        }
    }
    // The halves, exchanged, missing, and of two models.
    let image = ["--image", "image.png"];
    assert!(desk.refuses(3, "mmproj-light.gguf", &["run", "mmproj-light.gguf", "-p", "x"]).contains("vision half"));
    desk.refuses(3, "light.gguf", &greedy("x", "1", &["--image", "image.png", "--mmproj", "light.gguf"]));
    desk.refuses(4, "nowhere", &greedy("x", "1", &["--image", "image.png", "--mmproj", "nowhere"]));
    desk.ok(&["synth", "--family", "tiny", "--scale", "nano", "-o", "other.gguf"]);
    let line = desk.refuses(3, "mmproj-other.gguf", &greedy("x", "1", &[&image[..], &["--mmproj", "mmproj-other.gguf"]].concat()));
    assert!(line.contains("pair id") && line.contains("light.gguf"), "{line}");
    fs::remove_file(desk.path("mmproj-other.gguf")).expect("removed");
    assert!(desk.refuses(3, "other.gguf", &["run", "other.gguf", "-p", "x", "--image", "image.png"]).contains("mmproj-other.gguf"));
    // Pictures.
    desk.write("half.png", &desk.read("image.png")[..500]);
    desk.write("text.png", b"<svg/>");
    for (code, file) in [(3, "half.png"), (3, "text.png"), (4, "nowhere.png")] {
        desk.refuses(code, file, &greedy("x", "1", &["--image", file]));
        desk.refuses(code, file, &["embed", "light.gguf", "--image", file, "-o", "out"]);
        desk.refuses(code, file, &["demo", "--image", file]);
    }
}

#[test]
fn a_file_that_somebody_else_made_is_text_only() {
    let desk = Desk::with_model("Q8_0");
    support::foreign(&desk.path("light.gguf"), &desk.path("plain.gguf"));
    let ours = desk.json(&greedy(QUESTION, "8", &["--json"]));
    let args = ["run", "plain.gguf", "-p", QUESTION, "--temperature", "0", "--max-tokens", "8"];
    assert_eq!(desk.json(&[&args[..], &["--json"]].concat())["tokens"], ours["tokens"]);
    let line = desk.refuses(3, "plain.gguf", &[&args[..], &["--image", "image.png"]].concat());
    assert!(line.contains("text only"), "{line}");
    // Nor does another model's vision half belong to it.
    desk.refuses(3, "mmproj-light.gguf", &[&args[..], &["--image", "image.png", "--mmproj", "mmproj-light.gguf"]].concat());
    assert!(desk.ok(&["verify", "plain.gguf"]).contains("tensors hold"));
}

#[test]
fn an_error_is_one_line_whatever_a_name_holds() {
    let desk = Desk::empty();
    let name = "bad\u{1b}[31m\r\nname\u{7f}\u{9b}.gguf";
    let shown = "bad\\u{1b}[31m\\r\\nname\\u{7f}\\u{9b}.gguf";
    desk.refuses(4, shown, &["run", name, "-p", "x"]);
    desk.refuses(4, shown, &["convert", name, "-o", "x.gguf"]);
    if cfg!(unix) {
        desk.write(name, b"noise, but long enough for a header of GGUF");
        for command in ["inspect", "verify"] {
            desk.refuses(3, shown, &[command, name]);
        }
        desk.refuses(3, shown, &["demo", "--image", name]);
        desk.refuses(2, shown, &["convert", checkpoint(), "-o", name]);
    }
    let line = desk.sphinx(&["--json-errors", "inspect", "nowhere.gguf"]).output().expect("the program runs").stderr;
    let error: Value = serde_json::from_slice(&line).expect("JSON");
    assert_eq!((error["code"].as_u64(), error["kind"].as_str()), (Some(4), Some("io")));
    assert!(error["error"].as_str().is_some_and(|e| e.starts_with("nowhere.gguf: ")));
}

#[cfg(target_os = "linux")]
#[test]
fn standard_output_may_be_full_or_gone() {
    let desk = Desk::with_model("Q8_0");
    let commands = [
        &["tokenize", "light.gguf", "x"][..],
        &["run", "light.gguf", "-p", "x", "--max-tokens", "3"],
        &["run", "light.gguf", "-p", "x", "--max-tokens", "3", "--json"],
        &["inspect", "light.gguf"],
        &["verify", "light.gguf", "--json"],
        &["convert", checkpoint(), "-o", "y.gguf", "--dry-run"],
        &["completions", "bash"],
        &["demo"],
    ];
    for args in commands {
        let full = fs::File::options().write(true).open("/dev/full").expect("/dev/full");
        let out = desk.process(args).stdout(full).output().expect("the program runs");
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(4), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: standard output: ") && stderr.lines().count() == 1, "{args:?}: {stderr}");

        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let out = desk.process(args).stdout(writer).output().expect("the program runs");
        assert_eq!((out.status.code(), String::from_utf8_lossy(&out.stderr).as_ref()), (Some(0), ""), "{args:?}");
    }
}

#[cfg(unix)]
#[test]
fn an_interruption_exits_with_130() {
    let desk = Desk::with_model("Q8_0");
    for signal in ["-INT", "-TERM"] {
        let mut chat = desk.process(&["chat", "light.gguf", "--temperature", "0", "--max-tokens", "2"]);
        let mut chat = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
        let mut input = chat.stdin.take().expect("a pipe");
        writeln!(input, "Hello").expect("written");
        let mut line = String::new();
        BufReader::new(chat.stdout.take().expect("a pipe")).read_line(&mut line).expect("an answer");
        let kill = std::process::Command::new("kill").args([signal, &chat.id().to_string()]).status().expect("kill");
        assert!(kill.success());
        assert_eq!(chat.wait().expect("an end").code(), Some(130), "{signal}");
    }
}

/// Whether the control group of `bench` in process `pid` exists; the groups are below this process's own.
#[cfg(target_os = "linux")]
fn has_group(pid: u32) -> bool {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let name = format!("sphinx-bench-{pid}");
    sphinx_runtime::memory::groups(&groups).any(|g| Path::new(g.root).join(g.path.trim_start_matches('/')).join(&name).exists())
}

#[cfg(target_os = "linux")]
#[test]
fn a_bench_leaves_no_control_group_behind() {
    let desk = Desk::with_model("Q8_0");
    for (repeat, end) in [("1", None), ("100000", Some("-TERM"))] {
        let args =
            ["bench", "light.gguf", "--memory", "256M", "--prompt-tokens", "4", "--gen-tokens", "4", "--context", "32", "--repeat", repeat];
        let mut bench = desk.process(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
        let pid = bench.id();
        let seen = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            has_group(pid) || bench.try_wait().expect("a state").is_some()
        });
        assert!(seen);
        if let Some(signal) = end {
            if !has_group(pid) {
                bench.kill().expect("killed");
                bench.wait().expect("an end");
                println!("skipped: no control group may be made here");
                return;
            }
            assert!(std::process::Command::new("kill").args([signal, &pid.to_string()]).status().expect("kill").success());
        }
        assert_eq!(bench.wait().expect("an end").code(), Some(if end.is_some() { 130 } else { 0 }));
        assert!(!has_group(pid), "{args:?} left its group");
    }
}

#[test]
fn progress_stays_out_of_pipes() {
    let desk = Desk::empty();
    let mut convert = desk.process(&["convert", checkpoint(), "-o", "a.gguf", "-v"]);
    let mut convert = convert.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut all = Vec::new();
    convert.stdout.take().expect("a pipe").read_to_end(&mut all).expect("read");
    convert.stderr.take().expect("a pipe").read_to_end(&mut all).expect("read");
    assert!(convert.wait().expect("an end").success());
    assert!(!all.contains(&0x1b) && !all.contains(&b'\r'), "{}", String::from_utf8_lossy(&all));
    assert!(Path::new(&desk.path("a.gguf")).is_file());
}
