//! Wrong, broken and malicious input, as the built program meets it: exit 3 and one line that names the file, nothing
//! written, little memory; and what surrounds a run, such as odd names, full disks and pipes.
//!
//! The crates test their parsers far more closely; here every group has a few cases on the way from the command line.

mod support;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;
use sphinx_quant::gguf::{Array, Gguf, Plan, TensorPlan, Value, Writer};
use tempfile::TempDir;

/// A model of the committed case `light`, made once: `light.gguf` and its vision half, in F32.
static MODEL: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a directory");
    support::convert(&support::fixture("light/checkpoint"), folder.path(), "light", "F32");
    folder
});

fn model() -> PathBuf {
    MODEL.path().join("light.gguf")
}

fn vision() -> PathBuf {
    MODEL.path().join("mmproj-light.gguf")
}

fn picture() -> PathBuf {
    support::fixture("light/image.png")
}

/// A directory of one test.
struct Desk(TempDir);

impl Desk {
    fn new() -> Desk {
        Desk(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("written");
        path
    }

    /// A copy of the committed checkpoint with two shards.
    fn checkpoint(&self) -> PathBuf {
        let folder = self.path("checkpoint");
        fs::create_dir(&folder).expect("a directory");
        for entry in fs::read_dir(support::fixture("light/checkpoint")).expect("the case") {
            let entry = entry.expect("an entry");
            fs::copy(entry.path(), folder.join(entry.file_name())).expect("a copy");
        }
        folder
    }

    fn names(&self) -> Vec<OsString> {
        let mut names: Vec<_> = fs::read_dir(self.0.path()).expect("the directory").map(|e| e.expect("an entry").file_name()).collect();
        names.sort();
        names
    }

    /// `sphinx ARGS` here. On Linux with an address space of 700 MiB: what a file merely declares is never allocated.
    fn sphinx<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
        let mut command = if cfg!(target_os = "linux") {
            let line = support::command_line(cargo_bin!("sphinx"));
            // An emulator has memory of its own.
            let limit = if line.len() > 1 { 1_433_600 } else { 716_800 };
            let mut sh = Command::new("sh");
            sh.arg("-c").arg(format!("ulimit -v {limit}; exec \"$0\" \"$@\"")).args(line);
            sh
        } else {
            Command::new(cargo_bin!("sphinx"))
        };
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        for name in ["SPHINX_ISA", "SPHINX_ACTIVATIONS", "SPHINX_LOG", "RUST_BACKTRACE"] {
            command.env_remove(name);
        }
        command
    }

    /// The error line of a command that must exit with `code` soon, silently but for that line, and leave the directory as it was.
    #[track_caller]
    fn fails<A: AsRef<OsStr>>(&self, code: i32, args: &[A]) -> String {
        let shown: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy().into_owned()).collect();
        let (before, start) = (self.names(), Instant::now());
        let out = finish(self.sphinx(args));
        let stderr = String::from_utf8(out.stderr).expect("UTF-8");
        assert_eq!(out.status.code(), Some(code), "{shown:?}: {:?}: {stderr}", out.status);
        // Two seconds by themselves; other tests run beside this one.
        assert!(start.elapsed() < Duration::from_secs(20), "{shown:?} took {:?}", start.elapsed());
        assert_eq!(self.names(), before, "{shown:?}");
        assert!(out.stdout.is_empty(), "{shown:?}");
        let line = stderr.trim_end().strip_prefix("error: ").unwrap_or_else(|| panic!("{shown:?}: {stderr}"));
        assert!(!line.chars().any(char::is_control) && line.len() < 1500, "{shown:?}: {line:?}");
        assert!(line.contains(" — "), "{shown:?}: {line}");
        line.to_owned()
    }

    #[track_caller]
    fn ok<A: AsRef<OsStr>>(&self, args: &[A]) -> Output {
        let out = finish(self.sphinx(args));
        assert!(out.status.success(), "{:?}: {}", out.status, String::from_utf8_lossy(&out.stderr));
        out
    }

    /// What `run` says of a model that must be refused.
    #[track_caller]
    fn refused(&self, model: &Path, wanted: &str) {
        let line = self.fails(3, &run(model));
        let name = model.file_name().expect("a name").to_string_lossy();
        assert!(line.contains(wanted) && line.contains(&*name), "wanted: {wanted}\nfound: {line}");
    }

    /// What `embed` says of a vision half that must be refused.
    #[track_caller]
    fn blind(&self, mmproj: &Path, wanted: &str) {
        let line = self.fails(3, &args(&[&"embed", &model(), &"--mmproj", &mmproj, &"--image", &picture(), &"-o", &"out.st"]));
        assert!(line.contains(wanted), "wanted: {wanted}\nfound: {line}");
    }

    /// What `embed` says of a picture, which must end with `code`.
    #[track_caller]
    fn unseen(&self, code: i32, picture: &Path, wanted: &str) {
        let line = self.fails(code, &args(&[&"embed", &model(), &"--image", &picture, &"-o", &"out.st"]));
        assert!(line.contains(wanted), "wanted: {wanted}\nfound: {line}");
    }

    /// What `convert` says of a checkpoint, which must end with `code`.
    #[track_caller]
    fn unconverted(&self, code: i32, checkpoint: &Path, wanted: &str) {
        let line = self.fails(code, &args(&[&"convert", &checkpoint, &"-o", &"out.gguf"]));
        assert!(line.contains(wanted), "wanted: {wanted}\nfound: {line}");
    }
}

/// Waits for `command`, which hangs when it opens a pipe that nobody writes, at most a minute.
#[track_caller]
fn finish(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs");
    let (mut out, mut err) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
    let read = |from: &mut dyn std::io::Read| {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).map(|_| bytes).expect("read")
    };
    std::thread::scope(|scope| {
        let (stdout, stderr) = (scope.spawn(|| read(&mut out)), scope.spawn(|| read(&mut err)));
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("its status") {
                break status;
            }
            if start.elapsed() > Duration::from_secs(60) {
                child.kill().expect("killed");
                panic!("{command:?} hangs");
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        Output { status, stdout: stdout.join().expect("read"), stderr: stderr.join().expect("read") }
    })
}

fn args(list: &[&dyn AsRef<OsStr>]) -> Vec<OsString> {
    list.iter().map(|&a| AsRef::<OsStr>::as_ref(a).to_owned()).collect()
}

fn run(model: &Path) -> Vec<OsString> {
    args(&[&"run", &model, &"-p", &"hi", &"--max-tokens", &"2", &"--temperature", &"0", &"--threads", &"1"])
}

/// A GGUF file taken apart, to be written again with other contents.
struct Edit {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(TensorPlan, Vec<u8>)>,
}

impl Edit {
    fn of(path: &Path) -> Edit {
        let file = Gguf::open(path).expect("a model");
        let metadata = file.metadata().iter().filter(|(k, _)| !k.contains(".checksum.")).cloned().collect();
        let plan = |t: &sphinx_quant::Tensor| TensorPlan { name: t.name().into(), ty: t.ty(), dims: t.dims().to_vec() };
        let tensors = file.tensors().iter().map(|t| (plan(t), t.bytes().to_vec())).collect();
        Edit { metadata, tensors }
    }

    fn set(mut self, key: &str, value: Value) -> Edit {
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some((_, v)) => *v = value,
            None => self.metadata.push((key.into(), value)),
        }
        self
    }

    fn without(mut self, name: &str) -> Edit {
        self.metadata.retain(|(k, _)| k != name);
        self.tensors.retain(|(t, _)| t.name != name);
        self
    }

    /// All tensors whose name contains `part` with `value` throughout.
    fn fill(mut self, part: &str, value: f32) -> Edit {
        for (_, bytes) in self.tensors.iter_mut().filter(|(t, _)| t.name.contains(part)) {
            bytes.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&value.to_le_bytes()));
        }
        self
    }

    fn save(self, desk: &Desk, name: &str) -> PathBuf {
        let path = desk.path(name);
        let (tensors, data): (Vec<_>, Vec<_>) = self.tensors.into_iter().unzip();
        let mut writer = Writer::create(&path, Plan { metadata: self.metadata, tensors, alignment: 32 }).expect("a plan");
        data.iter().for_each(|bytes| writer.write(bytes).expect("written"));
        writer.finish().and_then(|f| f.commit()).expect("finished");
        path
    }
}

fn text(value: &str) -> Value {
    Value::Str(value.into())
}

#[test]
fn broken_containers() {
    let desk = Desk::new();
    let whole = fs::read(model()).expect("the model");
    let at = |place: usize, with: &[u8]| {
        let mut bytes = whole.clone();
        bytes[place..place + with.len()].copy_from_slice(with);
        bytes
    };
    let cases: [(&[u8], &str); 12] = [
        (b"", "empty"),
        (&whole[..23], "too short"),
        (b"gguf\x03\0\0\0 and so on, as if it were one", "lower-case"),
        (b"PK\x03\x04 and so on, as if it were one", "zip archive"),
        (b"<!DOCTYPE html><html>", "HTML page"),
        (&at(4, &2u32.to_le_bytes()), "version 2"),
        (&at(4, &3u32.to_be_bytes()), "big-endian"),
        (&at(8, &u64::MAX.to_le_bytes()), "18446744073709551615 tensors"),
        (&at(16, &u64::MAX.to_le_bytes()), "18446744073709551615 metadata keys"),
        (&at(24, &u64::MAX.to_le_bytes()), "key"),
        (&at(3000, &[whole[3000] ^ 1]), ""),
        (&whole[..whole.len() - 1], "past the end of the file"),
    ];
    for (bytes, wanted) in cases {
        let file = desk.write("m.gguf", bytes);
        desk.refused(&file, wanted);
        for command in ["inspect", "verify"] {
            let line = desk.fails(3, &args(&[&command, &file]));
            assert!(line.contains(wanted) && line.contains("m.gguf"), "{line}");
        }
    }
    for part in 1..20 {
        let file = desk.write("m.gguf", &whole[..whole.len() * part / 20]);
        desk.refused(&file, "");
    }
    let mut longer = whole.clone();
    longer.push(0);
    let file = desk.write("m.gguf", longer);
    assert!(desk.fails(3, &args(&[&"verify", &file, &"--strict"])).contains("1 bytes follow"));
    let out = desk.ok(&run(&file));
    assert!(String::from_utf8_lossy(&out.stderr).contains("1 bytes follow the last tensor"));
    let file = desk.write("m.gguf.partial", whole);
    desk.refused(&file, "unfinished");
}

#[test]
fn a_gigabyte_behind_the_tensors_is_not_read() {
    let desk = Desk::new();
    let file = desk.path("m.gguf");
    fs::copy(model(), &file).expect("a copy");
    let sparse = fs::File::options().write(true).open(&file).and_then(|f| f.set_len(300 << 20));
    sparse.expect("a sparse file");
    assert!(desk.fails(3, &args(&[&"verify", &file, &"--strict"])).contains("bytes follow"));
    desk.ok(&run(&file));
}

#[test]
fn settings_of_a_mixture() {
    let desk = Desk::new();
    let folder = tempfile::tempdir().expect("a directory");
    let good = support::convert(&support::fixture("mixtral/checkpoint"), folder.path(), "m", "F32");
    let number = Value::U32;
    for (key, value, wanted) in [
        ("llama.expert_count", number(0), "experts"),
        ("llama.expert_count", number(7), "ffn_"),
        ("llama.expert_count", number(u32::MAX), "llama.expert_count"),
        ("llama.expert_count", Value::Str("8".into()), "llama.expert_count"),
        ("llama.expert_used_count", number(0), "llama.expert_used_count"),
        ("llama.expert_used_count", number(9), "llama.expert_used_count"),
        ("llama.feed_forward_length", number(95), "ffn_"),
        ("general.architecture", text("sphinx-llama"), "sphinx-llama."),
    ] {
        let file = Edit::of(&good).set(key, value).save(&desk, "m.gguf");
        desk.refused(&file, wanted);
    }
    for gone in ["blk.0.ffn_gate_inp.weight", "blk.1.ffn_down_exps.weight"] {
        let file = Edit::of(&good).without(gone).save(&desk, "m.gguf");
        desk.refused(&file, gone);
    }
    // Experts that are no numbers, and a router that is none: refused when the answer is none.
    for part in ["ffn_gate_inp", "ffn_down_exps"] {
        let file = Edit::of(&good).fill(part, f32::NAN).save(&desk, "m.gguf");
        desk.refused(&file, "");
    }
}

#[test]
fn data_sets_layouts_and_importance() {
    let desk = Desk::new();
    let out = desk.path("out.gguf");
    let (light, skip) = (support::fixture("light/checkpoint"), support::fixture("skip/checkpoint"));
    for bytes in [&b""[..], b"\xff", b"[", b"{\"question\": 1}", b"{\"question\": \"x\", \"image\": \"data:image/png;base64,????\"}"] {
        let data = desk.write("data.jsonl", bytes);
        desk.fails(3, &args(&[&"imatrix", &model(), &"--data", &data, &"-o", &out]));
    }
    let layouts = [
        "grid = -1",
        "grid = 4000000000",
        "image_size = 0",
        "encoders = []",
        "encoders = [\"eyes\"]",
        "grid = 2\nvit_board = 225",
        "surprise = 1",
        "grid = [",
        "\0",
    ];
    for layout in layouts {
        let file = desk.write("layout.toml", layout.as_bytes());
        desk.fails(3, &args(&[&"convert", &light, &"-o", &out, &"--layout", &file]));
    }
    desk.fails(3, &args(&[&"convert", &skip, &"-o", &out, &"--pad-anchor", &"top_left", &"--skip-tensor", &"llma.start_img.none"]));
    for bytes in [&b""[..], b"GGUF", &fs::read(model()).expect("the model"), b"\x01\0\0\0\x10\0\0\0blk"] {
        let file = desk.write("i.gguf", bytes);
        desk.fails(3, &args(&[&"quantize", &model(), &"-o", &out, &"--quant", &"Q4_0", &"--imatrix", &file]));
    }
}

#[test]
fn settings_of_the_language_half() {
    let desk = Desk::new();
    let number = Value::U32;
    let cases = [
        ("general.architecture", text("whisper"), "expected one of llama"),
        ("general.architecture", text("x\x1b[2J\n"), "\\u{1b}[2J"),
        ("llama.attention.head_count", number(0), "llama.attention.head_count"),
        ("llama.attention.head_count_kv", number(3), "llama.attention.head_count_kv"),
        ("llama.block_count", number(1 << 31), "llama.block_count"),
        ("llama.block_count", Value::I32(-1), "llama.block_count"),
        ("llama.embedding_length", number(66), "66"),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN), "llama.attention.layer_norm_rms_epsilon"),
        ("llama.rope.freq_base", Value::F32(0.0), "llama.rope.freq_base"),
        ("llama.expert_count", number(8), "llama.expert_used_count"),
        ("llama.vocab_size", number(801), "801"),
        ("split.count", Value::U16(2), "one of 2 parts"),
        ("sphinx.template", text("{{ ''.__class__ }}"), "never run"),
        ("sphinx.stop", Value::Array(Array::Str(vec!["x".into(); 100])), "sphinx.stop"),
        ("tokenizer.ggml.model", text("gpt2"), "tokenizer.ggml.model"),
        ("tokenizer.ggml.bos_token_id", number(800), "begin piece is 800"),
        ("tokenizer.ggml.scores", Value::Array(Array::F32(vec![f32::NAN; 800])), "score NaN"),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1; 799])), "799 types"),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![6; 800])), "byte piece"),
    ];
    for (key, value, wanted) in cases {
        let file = Edit::of(&model()).set(key, value).save(&desk, "m.gguf");
        desk.refused(&file, wanted);
    }
    for gone in ["llama.embedding_length", "tokenizer.ggml.tokens", "blk.1.ffn_down.weight", "token_embd.weight"] {
        let file = Edit::of(&model()).without(gone).save(&desk, "m.gguf");
        desk.refused(&file, gone);
    }
    let mut turned = Edit::of(&model());
    let (plan, _) = turned.tensors.iter_mut().find(|(t, _)| t.name == "blk.0.ffn_up.weight").expect("a tensor");
    plan.dims.reverse();
    let file = turned.save(&desk, "m.gguf");
    desk.refused(&file, "expected [");
}

#[test]
fn settings_of_the_vision_half() {
    let desk = Desk::new();
    let cases = [
        ("pair_id", text(&"0".repeat(32)), "does not belong to"),
        ("image.std", Value::Array(Array::F32(vec![0.0; 3])), "image.std"),
        ("image.size", Value::U32(u32::MAX), "image.size"),
        ("dinov2.patch_size", Value::U32(0), "dinov2.patch_size"),
        ("dinov2.embedding_length", Value::U32(96), "96"),
        ("convnext.depths", Value::Array(Array::U32(vec![u32::MAX; 4])), "convnext.depths"),
        ("convnext.depths", Value::Array(Array::U32(vec![1, 1, 1, 1])), "without this tensor"),
        ("encoders", Value::Array(Array::Str(vec!["convnext".into(); 10_000])), "encoders"),
    ];
    for (key, value, wanted) in cases {
        let file = Edit::of(&vision()).set(&format!("sphinx-vision.{key}"), value).save(&desk, "mmproj-m.gguf");
        desk.blind(&file, wanted);
    }
    let file = Edit::of(&vision()).without("v.proj.weight").save(&desk, "mmproj-m.gguf");
    desk.blind(&file, "v.proj.weight");
    desk.blind(&model(), "expected \"sphinx-vision\"");
    desk.refused(&vision(), "vision half");

    // The language half knows how many rows a picture becomes.
    let language = Edit::of(&model()).set("sphinx.image_rows", Value::U32(7)).save(&desk, "m.gguf");
    let line = desk.fails(3, &args(&[&"embed", &language, &"--mmproj", &vision(), &"--image", &picture(), &"-o", &"out.st"]));
    assert!(line.contains("259 rows") && line.contains("expects 7"), "{line}");
    let plain = Edit::of(&model()).without("sphinx.pair_id").save(&desk, "plain.gguf");
    let line = desk.fails(3, &args(&[&"run", &plain, &"--image", &picture(), &"-p", &"x"]));
    assert!(line.contains("text only"), "{line}");
}

#[test]
fn weights_that_are_no_numbers() {
    let desk = Desk::new();
    for (part, value) in [("output_norm", f32::NAN), ("token_embd", f32::INFINITY), ("ffn_down", f32::NAN), ("", 3e38)] {
        let file = Edit::of(&model()).fill(part, value).save(&desk, "m.gguf");
        desk.refused(&file, "not a finite number");
        desk.fails(3, &args(&[&"logits", &file, &"--tokens", &"1,5", &"-o", &"out.st"]));
        let out = finish(desk.sphinx(&args(&[&"verify", &file])));
        assert_eq!(out.status.code(), Some(if value.is_finite() { 0 } else { 6 }));
    }
    let file = Edit::of(&vision()).fill("v.proj.weight", f32::NAN).save(&desk, "mmproj-m.gguf");
    desk.blind(&file, "not a finite number");
    let file = Edit::of(&model()).fill("", 0.0).save(&desk, "m.gguf");
    desk.ok(&run(&file));
}

/// One stored entry after the other, as a zip archive.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let start = out.len() as u32;
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        common.extend(crc32(data).to_le_bytes());
        common.extend([(data.len() as u32).to_le_bytes(); 2].concat());
        common.extend((name.len() as u32).to_le_bytes());
        out.extend([b"PK\x03\x04", common.as_slice(), name.as_bytes(), data].concat());
        directory.extend([b"PK\x01\x02\x14\x00", common.as_slice(), &[0; 10], &start.to_le_bytes(), name.as_bytes()].concat());
    }
    let (count, at) = (entries.len() as u16, out.len() as u32);
    let end = [&[0; 4][..], &[count.to_le_bytes(); 2].concat(), &(directory.len() as u32).to_le_bytes(), &at.to_le_bytes(), &[0; 2]];
    [out.as_slice(), &directory, b"PK\x05\x06", &end.concat()].concat()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &b| (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 }))
}

#[test]
fn malicious_checkpoints() {
    let desk = Desk::new();
    let checkpoint = desk.checkpoint();
    let shard = checkpoint.join("consolidated.00-of-02.model.pth");
    let whole = fs::read(&shard).expect("a shard");
    let stem = "consolidated.00-of-02.model";
    let pickled = |stream: &[u8]| zip(&[(&format!("{stem}/data.pkl"), stream), (&format!("{stem}/data/0"), &[0; 4])]);
    let owned = desk.path("owned");
    let system = [b"\x80\x02cos\nsystem\nU\x20touch ", format!("{:<26}", "owned").as_bytes(), b"\x85R."].concat();
    let mut flipped = whole.clone();
    let middle = whole.len() / 2;
    flipped[middle] ^= 1;
    let mut prepended = b"#!/bin/sh\n".to_vec();
    prepended.extend(&whole);
    let cases: [(&[u8], &str); 13] = [
        (&pickled(&system), "os.system is not allowed"),
        (&pickled(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R."), "builtins.eval is not allowed"),
        (&pickled(&[b"\x80\x02]q\x00", b"h\x00\x86q\x00".repeat(60).as_slice(), b"."].concat()), "no dictionary"),
        (&pickled(&[b"\x80\x02", b"(".repeat(1_000_000).as_slice(), b"."].concat()), "nests more than"),
        (&pickled(b"\x80\x04\x8d\0\0\0\x54\x02\0\0\0abc"), "ends inside"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "legacy"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"<!doctype html>", "web page"),
        (&whole[..whole.len() / 2], "incomplete"),
        (&whole[..whole.len() - 1], "end record"),
        (&prepended, "no zip archive"),
        (&flipped, "checksum"),
        (b"", "empty"),
    ];
    for (bytes, wanted) in cases {
        fs::write(&shard, bytes).expect("written");
        desk.unconverted(3, &checkpoint, wanted);
    }
    assert!(!owned.exists() && !checkpoint.join("owned").exists(), "something was executed");

    fs::remove_file(&shard).expect("removed");
    desk.unconverted(3, &checkpoint, "consolidated");
    fs::write(&shard, &whole).expect("written");
    for (name, content, wanted) in [
        ("config.json", "[1]".to_owned(), "not an object"),
        ("config.json", "[".repeat(100_000), "not valid JSON"),
        ("config.json", "{\"dim\": 64, \"dim\": 65}".into(), "twice"),
        ("config.json", "{\"dim\": 1e999}".into(), "not valid JSON"),
        ("config.json", "{\"n_heads\": 0}".into(), "n_heads"),
        ("meta.json", "{\"llama_type\": \"gpt\\u001b[2J\"}".into(), "llama_ens5"),
        ("tokenizer.model", "\u{a}\u{7f}".into(), "SentencePiece"),
    ] {
        let file = checkpoint.join(name);
        let good = fs::read(&file).expect("a file");
        fs::write(&file, content).expect("written");
        desk.unconverted(3, &checkpoint, wanted);
        fs::write(&file, good).expect("written");
    }
    desk.ok(&args(&[&"convert", &checkpoint, &"-o", &"out.gguf"]));
}

#[test]
fn malicious_safetensors() {
    let desk = Desk::new();
    let one = |header: &str, data: &[u8]| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    let tensor = r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    let cases = [
        (vec![0; 8], ""),
        ([&(1u64 << 63).to_le_bytes()[..], b"{}"].concat(), ""),
        (one("[1]", b""), ""),
        (one(&format!("{{\"a\":{tensor}}}"), &[0; 7]), ""),
        (one(&format!("{{\"a\":{tensor},\"a\":{tensor}}}"), &[0; 8]), "a"),
        (one(&format!("{{\"a\":{tensor},\"b\":{tensor}}}"), &[0; 8]), ""),
        (one(&tensor.replace("[2]", "[4294967296,4294967296]").replace("{\"d", "{\"a\":{\"d").replace("]}", "]}}"), &[0; 8]), ""),
        (one(&format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000)), b""), ""),
    ];
    for (bytes, wanted) in cases {
        let file = desk.write("model.safetensors", bytes);
        let line = desk.fails(3, &args(&[&"inspect", &file]));
        assert!(line.contains("model.safetensors") && line.contains(wanted), "{line}");
    }
}

#[test]
fn pictures() {
    let desk = Desk::new();
    let whole = fs::read(picture()).expect("the picture");
    let chunk = |name: &[u8; 4], data: &[u8]| {
        let body = [name, data].concat();
        [&(data.len() as u32).to_be_bytes()[..], &body, &crc32(&body).to_be_bytes()].concat()
    };
    let png = |width: u32, height: u32, data: &[u8]| {
        let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", &header).as_slice(), &chunk(b"IDAT", data), &chunk(b"IEND", b"")].concat()
    };
    let tiny = b"\x78\x9c\x03\x00\x00\x00\x00\x01";
    let cases: [(&[u8], &str); 13] = [
        (b"", "empty"),
        (b"hello", "format unknown"),
        (b"<?xml version='1.0'?><svg/>", "format SVG"),
        (b"<!DOCTYPE html>", "format HTML"),
        (b"%PDF-1.7", "format PDF"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "format AVIF"),
        (b"II*\0\x08\0\0\0", "format TIFF"),
        (&png(65_535, 65_535, tiny), "pixels 65535 × 65535; cap 100 MP"),
        (&png(30_000, 1, tiny), "pixels 30000 × 1"),
        (&png(0, 5, tiny), "format PNG"),
        (&png(10_000, 10_000, tiny), "format PNG"),
        (&png(u32::MAX, u32::MAX, tiny), "format PNG"),
        (&whole[..whole.len() - 40], "format PNG"),
    ];
    for (bytes, wanted) in cases {
        // The last but three is within the cap: its pixels may be made room for before they turn out not to be there.
        let file = desk.write("a.png", bytes);
        desk.unseen(3, &file, wanted);
    }
    for part in 0..20 {
        let file = desk.write("a.png", &whole[..whole.len() * part / 20]);
        desk.unseen(3, &file, "format");
    }
    let large = desk.path("large.png");
    fs::File::create(&large).and_then(|f| f.set_len(1 << 40)).expect("a sparse file");
    desk.unseen(3, &large, "64 MiB");
    let file = desk.write("picture.txt", whole);
    desk.ok(&args(&[&"embed", &model(), &"--image", &file, &"-o", &"out.st"]));
}

#[test]
fn directories_for_files_and_the_reverse() {
    let desk = Desk::new();
    let folder = desk.path("folder");
    fs::create_dir(&folder).expect("a directory");
    desk.fails(4, &run(&folder));
    desk.fails(4, &args(&[&"verify", &folder]));
    desk.unseen(4, &folder, "folder");
    desk.unconverted(3, &folder, "folder");
    desk.unconverted(3, &picture(), "image.png");
    desk.unconverted(3, &model(), "light.gguf");
    desk.unconverted(4, &desk.path("nothing"), "nothing");
    desk.fails(4, &run(&desk.path("nothing.gguf")));
    desk.unseen(4, &desk.path("nothing.png"), "nothing.png");
    // What is no file is not replaced, whoever asks.
    desk.fails(2, &args(&[&"convert", &support::fixture("light/checkpoint"), &"-o", &folder, &"--force"]));
    desk.fails(2, &args(&[&"embed", &model(), &"--image", &picture(), &"-o", &folder, &"--force"]));
    assert!(folder.is_dir());
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_not_waited_for() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let desk = Desk::new();
    let pipe = desk.path("pipe.gguf");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a fifo");
    desk.fails(4, &run(&pipe));
    desk.unseen(4, &pipe, "not a regular file");
    desk.unseen(4, Path::new("/dev/zero"), "not a regular file");
    desk.unconverted(3, &pipe, "not a regular file");
    desk.fails(4, &args(&[&"embed", &model(), &"--mmproj", &pipe, &"--image", &picture(), &"-o", &"out.st"]));
    desk.fails(2, &args(&[&"quantize", &model(), &"-o", &pipe, &"--quant", &"F16", &"--force"]));
    let checkpoint = desk.checkpoint();
    for name in ["config.json", "tokenizer.model", "consolidated.01-of-02.model.pth"] {
        let (file, kept) = (checkpoint.join(name), desk.path("kept"));
        fs::rename(&file, &kept).expect("moved");
        mknodat(CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a fifo");
        desk.unconverted(3, &checkpoint, "");
        fs::rename(&kept, &file).expect("moved back");
    }
}

#[test]
fn odd_names() {
    let desk = Desk::new();
    let mut names: Vec<OsString> = ["with spaces.gguf", "ünïcödé 名.gguf", "%s%n.gguf", "-dash.gguf"].map(Into::into).into();
    names.push("n".repeat(250).into());
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::ffi::OsStrExt;
        names.push(OsStr::from_bytes(b"no\xff\xfeunicode.gguf").into());
        names.push("line\n\x1b[31m.gguf".into());
    }
    for name in names {
        fs::copy(model(), desk.path(&name)).expect("a copy");
        for more in [&["inspect"][..], &["inspect", "--json"], &["verify"], &["verify", "--json"]] {
            let mut list: Vec<OsString> = more.iter().map(Into::into).collect();
            list.extend(["--".into(), name.clone()]);
            let out = desk.ok(&list);
            assert!(!out.stdout.contains(&0x1b) && String::from_utf8(out.stdout).is_ok(), "{name:?}");
        }
        desk.ok(&run(&desk.path(&name)));
        let out = desk.path("out.gguf");
        desk.ok(&args(&[&"quantize", &desk.path(&name), &"-o", &out, &"--quant", &"Q8_0", &"--json"]));
        fs::remove_file(out).expect("removed");
        fs::remove_file(desk.path(&name)).expect("removed");
    }
    let long = desk.path("n".repeat(300));
    desk.fails(4, &args(&[&"quantize", &model(), &"-o", &long, &"--quant", &"F16"]));
}

#[cfg(unix)]
#[test]
fn a_limit_on_file_sizes_is_no_signal() {
    let desk = Desk::new();
    let limited = |args: &[&dyn AsRef<OsStr>]| {
        let mut sh = Command::new("sh");
        sh.args(["-c", "ulimit -f 20; exec \"$0\" \"$@\""]).args(support::command_line(cargo_bin!("sphinx")));
        sh.args(self::args(args)).current_dir(desk.0.path()).env_remove("RUST_BACKTRACE");
        let out = finish(sh);
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(4), "{:?}: {stderr}", out.status);
        assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr}");
        assert!(desk.names().iter().all(|n| n == "synth"), "{:?} is left", desk.names());
    };
    limited(&[&"convert", &support::fixture("light/checkpoint"), &"-o", &"a.gguf"]);
    limited(&[&"quantize", &model(), &"-o", &"b.gguf", &"--quant", &"F16"]);
    limited(&[&"embed", &model(), &"--image", &picture(), &"-o", &"c.st"]);
    limited(&[&"logits", &model(), &"--tokens", &"1,2,3,4,5,6,7,8", &"-o", &"d.st"]);
    limited(&[&"synth", &"--family", &"tiny", &"--scale", &"nano", &"-o", &"e.gguf"]);
    limited(&[&"synth", &"--family", &"tiny", &"--scale", &"nano", &"-o", &"synth"]);
    assert_eq!(fs::read_dir(desk.path("synth")).expect("a directory").count(), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn standard_error_may_be_full() {
    let desk = Desk::new();
    let full = || fs::File::options().write(true).open("/dev/full").expect("a device");
    let status = |args: &[OsString], stdout: bool| {
        let mut command = desk.sphinx(args);
        command.stdout(if stdout { Stdio::from(full()) } else { Stdio::null() }).stderr(full());
        command.status().expect("the program runs").code()
    };
    assert_eq!(status(&args(&[&"inspect", &"nothing"]), false), Some(4));
    assert_eq!(status(&args(&[&"run", &model(), &"-p", &"x", &"--max-tokens", &"2", &"-v"]), false), Some(0));
    // More positions than the model was made for: a warning that nobody hears.
    assert_eq!(status(&args(&[&"run", &model(), &"-p", &"x", &"--max-tokens", &"2", &"--context", &"9999"]), false), Some(0));
    assert_eq!(status(&args(&[&"embed", &model(), &"--image", &picture(), &"-o", &"out.st"]), false), Some(0));
    assert_eq!(status(&args(&[&"verify", &model()]), true), Some(4));
}

#[test]
fn long_prompts_and_large_numbers() {
    let desk = Desk::new();
    for long in ["a".repeat(100_000), "hello ".repeat(16_000), "<s></s>".repeat(14_000)] {
        let line = desk.fails(2, &args(&[&"run", &model(), &"-p", &long]));
        assert!(line.contains("tokens, ") && line.contains("are available"), "{line}");
    }
    // One line of 5 MB, and the conversation goes on.
    let line = desk.write("line", [&b"a".repeat(5_000_000)[..], b"\nhello\n"].concat());
    let mut chat = desk.sphinx(&args(&[&"chat", &model(), &"--max-tokens", &"2"]));
    chat.stdin(fs::File::open(line).expect("a file"));
    let out = finish(chat);
    assert!(out.status.success() && !out.stdout.is_empty());
    assert!(String::from_utf8_lossy(&out.stderr).contains("the prompt needs at least"), "{}", String::from_utf8_lossy(&out.stderr));
    for (flag, value) in
        [("--threads", "1000000000000"), ("--threads", "0"), ("--context", "9223372036854775807"), ("--chunk", "1099511627776")]
    {
        let out = finish(desk.sphinx(&args(&[&"run", &model(), &"-p", &"x", &flag, &value])));
        assert_eq!(out.status.code(), Some(2), "{flag} {value}: {}", String::from_utf8_lossy(&out.stderr));
    }
}
