//! `sphinx demo`: the whole way on the toy model that the binary carries. Needs no file and no network.

use std::io::IsTerminal;
use std::time::Instant;

use anyhow::Result;
use image::{DynamicImage, RgbImage};
use serde_json::json;
use sphinx_convert::ConvertOptions;
use sphinx_runtime::vision::Picture;
use sphinx_runtime::{ImageRows, Memory, Options, Reply, Request, Sampling, Session, Sphinx};
use sphinx_targets::cpu::CpuTarget;

use super::convert::{self, recipe, threads};
use super::model;
use super::run::stream;
use crate::arguments::DemoArgs;
use crate::failure::Failure;
use crate::output::{self, say};
use crate::progress::Bar;
use crate::{device, nano, table};

/// What is asked of a picture that comes without a question.
const QUESTION: &str = "What's in the image?";
/// How many questions of each scene of the test set are asked.
const QUESTIONS_PER_SCENE: usize = 2;
/// Widest a picture is drawn, in columns of the terminal.
const COLUMNS: u32 = 48;

/// A picture and what to ask about it; the right answer where it is known.
struct Case {
    name: String,
    picture: Picture,
    questions: Vec<(String, Option<String>)>,
}

fn cases(args: &DemoArgs) -> Result<Vec<Case>> {
    let own = args.prompt.clone().unwrap_or_else(|| QUESTION.to_owned());
    if let Some(file) = &args.image {
        let name = file.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
        return Ok(vec![Case { name, picture: Picture::open(file)?, questions: vec![(own, None)] }]);
    }
    let mut cases = Vec::new();
    for scene in nano::scenes()? {
        let picture = Picture::from_bytes(scene.png, scene.name)?;
        let asked = scene.questions.into_iter().take(QUESTIONS_PER_SCENE).map(|q| (q.question, Some(q.answer)));
        cases.push(Case { name: scene.name.into(), picture, questions: asked.collect() });
    }
    if args.prompt.is_some() {
        cases.truncate(1);
        cases[0].questions = vec![(own, None)];
    }
    Ok(cases)
}

pub fn run(args: DemoArgs, no_progress: bool, verbose: u8) -> Result<()> {
    let start = Instant::now();
    let cases = cases(&args)?;
    let mut builder = tempfile::Builder::new();
    let folder = builder.prefix("sphinx-demo-").tempdir().map_err(|e| Failure::io(&std::env::temp_dir(), &e))?;
    crate::interrupt::holds(folder.path());
    let (checkpoint, output) = (folder.path().join("checkpoint"), folder.path().join("nano.gguf"));
    let tell = |text: &str| if args.json { Ok(()) } else { say!("{text}") };
    tell("SPHINX-Nano is a toy: a SPHINX in miniature, trained on drawings of coloured\nshapes. It knows nothing else.\n")?;
    let bytes = nano::unpack(&checkpoint)?;
    tell(&format!("checkpoint, as PyTorch wrote it  {}", table::bytes(bytes)))?;
    let mut options = ConvertOptions::new(vec![checkpoint], output.clone(), recipe("Q4_K_M")?, recipe("Q8_0")?);
    (options.threads, options.strict) = (threads(None), true);
    let converting = Instant::now();
    let mut report = sphinx_convert::convert(&options, &Bar::new(no_progress))?;
    for file in &mut report.files {
        // Where they lay is gone when this is read.
        file.path = file.path.file_name().map(Into::into).unwrap_or_default();
    }
    if !args.json {
        convert::print(&report, false, Some(converting.elapsed().as_secs_f64()))?;
    }
    let model = Sphinx::open(device::cpu(None)?, &output, &Options::default())?;
    let mut session = model.session()?;
    let mut replies = Vec::new();
    let mut results = Vec::new();
    let mut seen = None;
    for case in &cases {
        let size = format!("{}×{}", case.picture.width(), case.picture.height());
        tell(&format!("\n{}, {size}", case.name))?;
        if !args.json {
            draw(&case.picture)?;
        }
        let image = model.encode(&case.picture, &mut ())?;
        for (i, (question, truth)) in case.questions.iter().enumerate() {
            tell(&format!("question  {question}"))?;
            let reply = ask(&model, &mut session, question, &image, args.json)?;
            let answer = reply.text.trim();
            let right = truth.as_ref().map(|truth| answer == truth);
            if let (Some(truth), Some(right), false) = (truth, right, args.json) {
                let wrong = if right { "right" } else { "wrong" };
                say!("truth     {truth}  ({wrong})")?;
            }
            results.push(json!({
                "image": case.name, "question": question, "answer": answer, "truth": truth, "right": right, "tokens": reply.tokens,
                "finish_reason": reply.finish.name(), "image_tokens": reply.image_tokens, "prompt_tokens": reply.prompt_tokens,
                "timings": model::timings_json(model.load_s(), (i == 0).then_some(&image), &reply),
            }));
            replies.push(reply);
        }
        tell(&speed(image.timings.total_s(), &replies[replies.len() - case.questions.len()..]))?;
        seen = Some(image);
    }
    let total_s = start.elapsed().as_secs_f64();
    let known = results.iter().filter(|r| !r["right"].is_null()).count();
    let right = results.iter().filter(|r| r["right"] == true).count();
    if args.json {
        let out = json!({
            "model": "SPHINX-Nano", "toy": true, "answers": results, "right": right, "of": known, "files": report.files,
            "memory": model::memory_json(), "total_s": total_s,
        });
        return say!("{out}");
    }
    let score = if known > 0 { format!("{right} of {known} right, in ") } else { "Done in ".to_owned() };
    say!("\n{score}{}. Now a picture of your own, a few shapes on a plain ground:", table::seconds(total_s))?;
    say!("  sphinx demo --image drawing.png -p \"What shape is red?\"")?;
    say!("A real SPHINX answers about anything. With a released checkpoint:")?;
    say!("  sphinx convert SPHINX-Tiny-1k/ -o tiny.gguf\n  sphinx run tiny.gguf --image photo.jpg -p \"What's in the image?\"")?;
    if let (true, Some(reply)) = (verbose > 0, replies.last()) {
        model::stage_table(&model::reply_stages(model.load_s(), seen.as_ref(), reply));
    }
    Ok(())
}

/// Asks, and prints the answer as it comes unless `quiet`.
fn ask(model: &Sphinx<CpuTarget>, session: &mut Session<'_, CpuTarget>, question: &str, image: &ImageRows, quiet: bool) -> Result<Reply> {
    let prompt = model::prompt(model, question, None, false);
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let request = Request { sampling, max_tokens: 64, stop: &model.params().stop, truncate: false };
    if !quiet {
        output::text("answer    ")?;
    }
    let reply = stream(session, &prompt, Some(image), &request, quiet)?;
    if !quiet {
        output::text("\n")?;
    }
    Ok(reply)
}

/// How fast the answers about one picture came, and the memory they took.
fn speed(encode_s: f64, replies: &[Reply]) -> String {
    let tokens: usize = replies.iter().map(|r| r.timings.decode_tokens).sum();
    let decode_s: f64 = replies.iter().map(|r| r.timings.decode_s).sum();
    let first = encode_s + replies.first().map_or(0.0, |r| r.timings.first_token_s);
    let rate = if decode_s > 0.0 { format!("{:.0} tokens/s, ", tokens as f64 / decode_s) } else { String::new() };
    let memory = Memory::now().map_or(String::new(), |m| format!(", memory {} at the peak", table::bytes(m.peak_bytes)));
    format!("          {rate}first token after {} (picture included){memory}", table::seconds(first))
}

/// How pictures get onto a terminal beside coloured half blocks, which every terminal with colours can show.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ways {
    kitty: bool,
    iterm: bool,
    sixel: bool,
}

impl Ways {
    /// Told by the variables that terminals set. Asking the terminal itself would wait for ever where nobody answers, on a
    /// recorded or a remote-controlled one; so it is asked only where it is known that it answers.
    fn of(variable: impl Fn(&str) -> Option<String>) -> Ways {
        let (term, program) = (variable("TERM").unwrap_or_default(), variable("TERM_PROGRAM").unwrap_or_default());
        let multiplexed = ["screen", "tmux"].iter().any(|m| term.starts_with(m)) || variable("TMUX").is_some();
        if multiplexed {
            return Ways::default();
        }
        let sixel = ["foot", "mlterm", "contour"].iter().any(|t| term.starts_with(t)) || variable("KONSOLE_VERSION").is_some();
        Ways { kitty: matches!(&*term, "xterm-kitty" | "xterm-ghostty"), iterm: matches!(&*program, "iTerm.app" | "WezTerm"), sixel }
    }
}

/// Draws the picture where somebody can see it: in kitty's, iTerm's or the sixel way, or as coloured half blocks.
fn draw(picture: &Picture) -> Result<()> {
    if !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some() {
        return Ok(());
    }
    let (width, height) = (picture.width() as u32, picture.height() as u32);
    let Some(pixels) = RgbImage::from_raw(width, height, picture.rgb().to_vec()) else { return Ok(()) };
    // What a terminal answers is read from it, so it must be one at both ends.
    let ways = if std::io::stdin().is_terminal() { Ways::of(|name| std::env::var(name).ok()) } else { Ways::default() };
    let columns = if width >= height { COLUMNS } else { (COLUMNS * width / height).max(1) };
    let config = viuer::Config {
        absolute_offset: false,
        width: Some(columns),
        use_kitty: ways.kitty,
        use_iterm: ways.iterm,
        use_sixel: ways.sixel,
        ..viuer::Config::default()
    };
    // A terminal that cannot be drawn on still reads text.
    if let Err(e) = viuer::print(&DynamicImage::ImageRgb8(pixels), &config) {
        tracing::debug!("the picture cannot be drawn: {e}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_known_by_their_variables() {
        let ways = |set: &[(&str, &str)]| Ways::of(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()));
        assert_eq!(ways(&[]), Ways::default());
        assert_eq!(ways(&[("TERM", "xterm-256color")]), Ways::default());
        assert!(ways(&[("TERM", "xterm-kitty")]).kitty);
        assert!(ways(&[("TERM", "xterm-256color"), ("TERM_PROGRAM", "iTerm.app")]).iterm);
        assert!(ways(&[("TERM", "foot")]).sixel);
        assert_eq!(ways(&[("TERM", "tmux-256color"), ("TERM_PROGRAM", "iTerm.app")]), Ways::default());
        assert_eq!(ways(&[("TERM", "xterm-kitty"), ("TMUX", "/tmp/tmux-0")]), Ways::default());
    }
}
