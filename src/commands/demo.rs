//! `sphinx demo`: the whole way on a random model of nano size. Needs no file and no network.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use sphinx_convert::{ConvertOptions, SynthOptions};
use sphinx_runtime::vision::Picture;
use sphinx_runtime::{Options, Request, Sampling, Sphinx};

use super::convert::{recipe, threads};
use super::model;
use super::run::Trimmed;
use crate::arguments::DemoArgs;
use crate::failure::Failure;
use crate::output::{self, say};
use crate::progress::Bar;
use crate::{device, table};

/// A picture of ours: gradients, a rectangle, a disc.
const PICTURE: &[u8] = include_bytes!("../../tests/fixtures/light5/image.png");

/// A directory under the system's temporary one that goes away with its value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder> {
        let path = std::env::temp_dir().join(format!("sphinx-demo-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|e| Failure::io(&path, &e))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

pub fn run(args: DemoArgs, no_progress: bool, verbose: u8) -> Result<()> {
    let start = Instant::now();
    let picture = match &args.image {
        Some(file) => Picture::open(file)?,
        None => Picture::from_bytes(PICTURE, "the built-in picture")?,
    };
    let folder = Folder::new()?;
    let (checkpoint, output) = (folder.0.join("checkpoint"), folder.0.join("nano.gguf"));
    let tell = |text: &str| if args.json { Ok(()) } else { say!("{text}") };
    tell("A SPHINX-Tiny-1k of nano size with random weights: it shows the way from checkpoint to text, and knows nothing.\n")?;
    let bar = Bar::new(no_progress);
    let synth = SynthOptions { threads: threads(None), ..SynthOptions::new("tiny", "nano", checkpoint.clone()) };
    let made = sphinx_convert::synth(&synth, &bar)?;
    tell(&format!("checkpoint   {} in PyTorch's format", table::bytes(made.files.iter().map(|f| f.bytes).sum())))?;
    let mut convert = ConvertOptions::new(vec![checkpoint], output.clone(), recipe("Q4_K_M")?, recipe("Q8_0")?);
    (convert.threads, convert.strict) = (threads(None), true);
    let report = sphinx_convert::convert(&convert, &bar)?;
    for file in &report.files {
        let name = file.path.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
        tell(&format!("{name:<16} {:>10}, {} tensors", table::bytes(file.bytes), file.tensors))?;
    }
    let model = Sphinx::open(device::cpu(None)?, &output, &Options::default())?;
    let image = model.encode(&picture, &mut ())?;
    tell(&format!("\npicture      {}×{}, {} views, {} rows", picture.width(), picture.height(), image.views, image.count))?;
    tell(&format!("question     {}", args.prompt))?;
    let prompt = model::prompt(&model, &args.prompt, None, false);
    let request = Request { sampling: Sampling::default(), max_tokens: 24, stop: &model.params().stop, truncate: false };
    let mut out = Trimmed::default();
    if !args.json {
        output::text("answer       ")?;
    }
    let reply = model.session()?.generate(&prompt, Some(&image), &request, &mut |text| {
        if !args.json && out.push(text).is_err() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    let total_s = start.elapsed().as_secs_f64();
    if args.json {
        let out = json!({
            "question": args.prompt, "answer": reply.text.trim(), "tokens": reply.tokens, "finish_reason": reply.finish.name(),
            "image_tokens": reply.image_tokens, "prompt_tokens": reply.prompt_tokens, "random_weights": true,
            "files": report.files, "timings": model::timings_json(model.load_s(), Some(&image), &reply), "memory": model::memory_json(),
            "total_s": total_s,
        });
        return say!("{out}");
    }
    say!("\n\nDone in {}. Random weights speak gibberish; real ones answer. With a SPHINX checkpoint:", table::seconds(total_s))?;
    say!("  sphinx convert SPHINX-Tiny-1k/ -o tiny.gguf\n  sphinx run tiny.gguf --image photo.jpg -p \"What's in the image?\"")?;
    if verbose > 0 {
        model::stage_table(&model::reply_stages(model.load_s(), Some(&image), &reply));
    }
    Ok(())
}
