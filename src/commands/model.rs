//! What the commands that run a model share: opening, encoding, tables of stages.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use sphinx_runtime::experts::Policy;
use sphinx_runtime::vision::{ImageRows, Observe, Picture, VisionTimings};
use sphinx_runtime::{Film, Memory, Options, Reply, Request, Sampling, Sphinx};
use sphinx_targets::{KvType, Target};

use super::fit::held;
use crate::arguments::{GenerateArgs, KvArg, ModelArgs, PictureArgs, PolicyArg};
use crate::failure::Failure;
use crate::output::note;
use crate::table;

/// The cache's precision as the flag spells it.
pub fn kv_type(kv: KvArg) -> KvType {
    match kv {
        KvArg::F32 => KvType::F32,
        KvArg::F16 => KvType::F16,
        KvArg::Q8_0 => KvType::Q8_0,
    }
}

/// How the flags want a model opened.
pub fn options(args: &ModelArgs) -> Options {
    let kv = args.kv.map(kv_type);
    Options {
        mmproj: args.mmproj.clone(),
        context: args.context,
        kv,
        chunk: args.chunk,
        memory: args.memory.first().copied(),
        expert_cache: args.expert_cache,
        expert_policy: match args.expert_policy {
            PolicyArg::Lru => Policy::Lru,
            PolicyArg::Lfu => Policy::Lfu,
            PolicyArg::Foresight => Policy::Foresight,
        },
        verify_reads: args.verify_reads,
        ..Options::default()
    }
}

/// Opens the model of the flags on `target`.
pub fn open<T: Target>(target: T, args: &ModelArgs) -> Result<Sphinx<T>> {
    open_with(target, args, &options(args))
}

/// The same with other options.
pub fn open_with<T: Target>(target: T, args: &ModelArgs, options: &Options) -> Result<Sphinx<T>> {
    if args.memory.len() > 1 {
        return Err(Failure::usage("several budgets are for `sphinx bench`; give one"));
    }
    crate::interrupt::maps(&args.model);
    let model = Sphinx::open(target, &args.model, options)?;
    tracing::info!("context {}, cache {:?}", model.context(), model.kv());
    Ok(model)
}

/// Decodes and encodes the picture in `file`.
pub fn encode<T: Target>(model: &Sphinx<T>, file: &Path, observe: &mut dyn Observe) -> Result<ImageRows> {
    // The vision half first: a model without one says so before a large picture is decoded.
    model.vision()?;
    let picture = Picture::open_within(file, &mut model.plan().room_for_pictures())?;
    Ok(model.encode(&picture, observe)?)
}

/// Frames of a film when nobody says how many.
const USUAL_FRAMES: usize = 8;

/// Decodes and encodes what the flags show, in order; `None` when they show nothing. `text` and `new` are the positions
/// that the prompt and the answer need beside the pictures: what does not fit is refused before anything is encoded.
pub fn look<T: Target>(model: &Sphinx<T>, args: &PictureArgs, text: usize, new: usize) -> Result<Option<ImageRows>> {
    if args.image.is_empty() && args.video.is_none() {
        return Ok(None);
    }
    // The vision half first: a model without one says so before a large picture is decoded.
    let vision = model.vision()?;
    // What a picture takes at least: one so long that every sub-image that can be empty is.
    let fewest = vision.rows_of(2, 1 << 14).min(vision.rows_of(1 << 14, 2));
    let mut room = model.plan().room_for_pictures();
    let pictures = match &args.video {
        None => {
            model.check_fit(text, &vec![fewest; args.image.len()], new)?;
            args.image.iter().map(|file| Picture::open_within(file, &mut room)).collect::<Result<Vec<_>, _>>()?
        }
        Some(path) => {
            let film = Film::open(path)?;
            let fit = model.context().saturating_sub(text + new) / vision.image_rows().max(1);
            let frames = args.frames.unwrap_or(USUAL_FRAMES.min(fit).max(1)).min(film.frames());
            model.check_fit(text, &vec![fewest; frames], new)?;
            tracing::info!("{frames} of {} frames", film.frames());
            film.pick(frames, &mut room)?
        }
    };
    let rows: Vec<usize> = pictures.iter().map(|p| vision.rows_of(p.width(), p.height())).collect();
    model.check_fit(text, &rows, new)?;
    Ok(model.encode_all(&pictures)?)
}

/// The prompt's ids: BOS, then the question in the template, or the text as it is.
pub fn prompt<T: Target>(model: &Sphinx<T>, text: &str, system: Option<&str>, raw: bool) -> Vec<u32> {
    if raw {
        return model.tokenizer().encode_with_bos(text);
    }
    model.tokenizer().encode_with_bos(&model.params().template.question(system, text))
}

/// The texts that end a reply: the caller's, else the template's, none for raw text.
pub fn stops<T: Target>(model: &Sphinx<T>, args: &GenerateArgs) -> Vec<String> {
    match (args.stop.is_empty(), args.raw) {
        (false, _) => args.stop.clone(),
        (true, false) => model.params().stop.clone(),
        (true, true) => Vec::new(),
    }
}

/// What to generate, from the flags.
pub fn request<'a>(args: &GenerateArgs, stop: &'a [String]) -> Request<'a> {
    Request {
        sampling: Sampling { temperature: args.temperature, top_p: args.top_p, seed: args.seed },
        max_tokens: args.max_tokens,
        stop,
        truncate: args.truncate,
    }
}

/// A stage: its name, its seconds, what it worked on and how fast.
pub type Stage = (&'static str, f64, String);

/// The stages of encoding a picture.
pub fn vision_stages(t: &VisionTimings) -> Vec<Stage> {
    let towers = [("clip", t.clip_s), ("convnext", t.convnext_s), ("dinov2", t.dinov2_s), ("qformer", t.qformer_s)];
    let mut stages = vec![("preprocess", t.preprocess_s, String::new())];
    // A tower that the model has takes some time.
    stages.extend(towers.into_iter().filter(|(_, s)| *s > 0.0).map(|(name, s)| (name, s, String::new())));
    stages.push(("project", t.project_s, String::new()));
    stages
}

/// The stages of a whole answer.
pub fn reply_stages(load_s: f64, image: Option<&ImageRows>, reply: &Reply) -> Vec<Stage> {
    let t = &reply.timings;
    let rate = |n: usize, s: f64| if s > 0.0 { format!("{n} positions, {:.1} tokens/s", n as f64 / s) } else { format!("{n} positions") };
    let mut stages = vec![("load", load_s, String::new())];
    stages.extend(image.map(|i| vision_stages(&i.timings)).unwrap_or_default());
    stages.push(("prefill", t.prefill_s, rate(t.prefill_positions, t.prefill_s)));
    stages.push(("decode", t.decode_s, rate(t.decode_tokens, t.decode_s)));
    stages
}

/// Prints stages and memory to standard error.
pub fn stage_table(stages: &[Stage]) {
    let rows = stages.iter().map(|(name, s, what)| vec![(*name).to_owned(), table::seconds(*s), what.clone()]);
    note!("{}", table::plain(&["stage", "time", ""], rows));
    if let Some(m) = Memory::now() {
        let (own, mapped, peak) = (table::bytes(m.anonymous_bytes), table::bytes(m.mapped_bytes), table::bytes(m.peak_bytes));
        note!("memory: {own} own, {mapped} of mapped files, {peak} at the peak (both together)");
    }
}

/// Prints what each part of the memory was estimated to take, beside what it takes now, to standard error. `session` is what a
/// conversation takes: keys and values, and buffers.
pub fn plan_table<T: Target>(model: &Sphinx<T>, (kv, buffers): (usize, usize)) {
    let plan = model.plan();
    let file = |path: Option<&Path>| path.map_or(Some(0), Memory::of_file);
    let language = file(Some(model.language().path()));
    let encoders = file(model.source().has_vision().then(|| model.source().vision_path()));
    let streamed = model.decoder().experts().streamed();
    // Buffers here, and experts there, where they are copied to a device.
    let experts = streamed.map(|s| s.held_bytes() as u64);
    let experts_there = streamed.map_or(0, |s| s.device_bytes() as u64);
    let (kv, buffers) = (kv as u64, (buffers + model.target().scratch_bytes()) as u64);
    let now = Memory::now();
    let program = now.zip(language).zip(encoders).map(|((now, language), encoders)| {
        let others = language + encoders + experts.unwrap_or(0) + kv + buffers;
        (now.anonymous_bytes + now.mapped_bytes).saturating_sub(others)
    });
    let actual = |name: &str| match name {
        "program" => program,
        "language" => language,
        // Those in the mapped file are counted with the rest of it.
        "experts" => experts.map(|bytes| bytes + experts_there),
        "encoders" => encoders,
        "keys and values" => Some(kv),
        _ => Some(buffers),
    };
    let shown = |bytes: Option<u64>| bytes.map_or_else(|| String::from("–"), table::bytes);
    let parts =
        plan.parts.iter().map(|p| vec![p.name.to_owned(), table::bytes(p.bytes), shown(actual(p.name)), held(p.holding, p.of_bytes)]);
    let peak = vec!["peak".to_owned(), table::bytes(plan.peak_bytes), shown(now.map(|m| m.peak_bytes)), String::new()];
    note!("{}", table::plain(&["memory", "estimate", "at the end", ""], parts.chain([peak])));
}

/// Memory as JSON.
pub fn memory_json() -> Value {
    Memory::now().map_or(
        Value::Null,
        |m| json!({ "rss_anon_bytes": m.anonymous_bytes, "rss_file_bytes": m.mapped_bytes, "peak_rss_bytes": m.peak_bytes }),
    )
}

/// Timings of a whole answer as JSON.
pub fn timings_json(load_s: f64, image: Option<&ImageRows>, reply: &Reply) -> Value {
    let t = &reply.timings;
    let encode_s = image.map(|i| i.timings.total_s());
    json!({
        "load_s": load_s, "image": image.map(|i| i.timings), "encode_s": encode_s, "prefill_s": t.prefill_s,
        "prefill_positions": t.prefill_positions, "first_token_s": t.first_token_s + encode_s.unwrap_or(0.0),
        "decode_s": t.decode_s, "decode_tokens": t.decode_tokens,
    })
}
