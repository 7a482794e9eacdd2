//! The first steps of the README, and the example, as a newcomer would take them.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use assert_cmd::cargo::cargo_bin;
use support::{convert, fixture, root};

/// What the README writes in front of every command of the program.
const CARGO_RUN: &str = "cargo run --release -- ";

/// A block of commands and the output that follows it.
struct Step {
    commands: Vec<String>,
    output: Vec<String>,
}

/// The blocks marked `sh` under "First steps" that run the program.
fn first_steps() -> Vec<Step> {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let (_, section) = readme.split_once("\n## First steps\n").expect("a section \"First steps\"");
    let section = section.split("\n## ").next().expect("its text");
    let mut blocks = Vec::new();
    let mut lines = section.lines();
    while let Some(line) = lines.next() {
        if let Some(kind) = line.strip_prefix("```") {
            let block: Vec<String> = lines.by_ref().take_while(|l| *l != "```").map(str::to_owned).collect();
            blocks.push((kind, block));
        }
    }
    let runs = |(kind, block): &(&str, Vec<String>)| *kind == "sh" && block.iter().all(|l| l.starts_with(CARGO_RUN));
    let steps = (0..blocks.len()).filter(|&i| runs(&blocks[i])).map(|i| {
        let output = blocks.get(i + 1).filter(|(kind, _)| *kind == "text").map(|(_, block)| block.clone());
        Step { commands: blocks[i].1.clone(), output: output.expect("output after the commands") }
    });
    steps.collect()
}

/// The arguments of a command line: words, or texts in double quotes.
fn arguments(command: &str) -> Vec<String> {
    let rest = command.strip_prefix(CARGO_RUN).expect("a run of the program");
    let pieces = rest.split('"').enumerate();
    let words = pieces.flat_map(|(i, piece)| match i % 2 {
        0 => piece.split_whitespace().map(str::to_owned).collect(),
        _ => vec![piece.to_owned()],
    });
    words.collect()
}

/// Whether a line of output tells a time or a speed, which no two runs share.
fn varies(line: &str) -> bool {
    let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '/');
    words.any(|w| matches!(w, "ms" | "s" | "MB/s" | "GB/s" | "tokens/s"))
}

/// A directory in which the paths of the repository hold.
fn checkout() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a directory");
    let case = Path::new("tests/fixtures/light5");
    fs::create_dir_all(folder.path().join(case).join("checkpoint")).expect("a directory");
    for name in ["", "checkpoint"] {
        for entry in fs::read_dir(root().join(case).join(name)).expect("the case") {
            let entry = entry.expect("an entry");
            if entry.file_type().expect("a type").is_file() {
                fs::copy(entry.path(), folder.path().join(case).join(name).join(entry.file_name())).expect("a copy");
            }
        }
    }
    folder
}

#[test]
fn the_first_steps_work() {
    let steps = first_steps();
    let commands: Vec<Vec<String>> = steps.iter().flat_map(|s| &s.commands).map(|c| arguments(c)).collect();
    let verbs: Vec<&str> = commands.iter().map(|c| c[0].as_str()).collect();
    assert_eq!(verbs, ["demo", "convert", "run"]);
    assert!(commands[2].contains(&"What's in the image?".to_owned()), "{:?}", commands[2]);

    let folder = checkout();
    for step in &steps {
        let mut printed = String::new();
        for command in &step.commands {
            let out = Command::new(cargo_bin!("sphinx")).args(arguments(command)).current_dir(folder.path()).output();
            let out = out.expect("the program runs");
            let (stdout, stderr) = (String::from_utf8(out.stdout).expect("UTF-8"), String::from_utf8_lossy(&out.stderr));
            assert!(out.status.success() && stderr.is_empty(), "{command}: {stderr}");
            assert!(!stdout.trim().is_empty(), "{command} printed nothing");
            printed += &stdout;
        }
        let printed: Vec<&str> = printed.lines().map(str::trim_end).collect();
        let shown: Vec<&str> = step.output.iter().map(|l| l.trim_end()).filter(|l| !l.is_empty() && !varies(l)).collect();
        assert!(shown.len() >= 3, "the README shows {shown:?}");
        let mut rest = printed.iter();
        for line in shown {
            assert!(rest.any(|l| *l == line), "the README shows {line:?}, the program printed (in this order) {printed:#?}");
        }
    }
    for name in ["light5.gguf", "mmproj-light5.gguf"] {
        assert!(folder.path().join(name).is_file(), "{name}");
    }
}

/// The example `ask`. A whole `cargo test` has built it beside this test; it is built now if only this test was.
fn ask() -> PathBuf {
    let this = std::env::current_exe().expect("this test");
    let profile = this.parent().and_then(Path::parent).expect("target/PROFILE/deps/readme");
    let example = profile.join("examples").join(format!("ask{}", std::env::consts::EXE_SUFFIX));
    let written = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    if written(&example) < written(&root().join("examples/ask.rs")) {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--example", "ask", "--offline"]).current_dir(root());
        build.arg("--target-dir").arg(profile.parent().expect("target"));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        if !cfg!(feature = "candle") {
            build.arg("--no-default-features");
        }
        assert!(build.status().expect("cargo").success());
    }
    example
}

#[test]
fn the_example_answers() {
    let lines = fs::read_to_string(root().join("examples/ask.rs")).expect("the example").lines().count();
    assert!(lines <= 40, "the example has {lines} lines");
    let folder = tempfile::tempdir().expect("a directory");
    let model = convert(&fixture("light/checkpoint"), folder.path(), "light", "Q4_K_M");
    let out = Command::new(ask()).arg(&model).arg(fixture("light/image.png")).arg("What's in the image?").output();
    let out = out.expect("the example runs");
    let stdout = String::from_utf8(out.stdout).expect("UTF-8");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let (answer, last) = stdout.trim_end().rsplit_once('\n').expect("an answer and a last line");
    assert!(!answer.trim().is_empty() && last.starts_with('[') && last.contains(" tokens in "), "{stdout}");
    let out = Command::new(ask()).arg("nowhere.gguf").arg("x").arg("y").output().expect("the example runs");
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("nowhere.gguf"));
}
