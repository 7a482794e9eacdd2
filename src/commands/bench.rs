//! `sphinx bench`: load, encoding, prefill, decoding.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};
use sphinx_quant::gguf::{Gguf, keys};
use sphinx_quant::recipe::Recipe;
use sphinx_runtime::vision::{ImageRows, Picture, VisionTimings};
use sphinx_runtime::{Memory, Sphinx};
use sphinx_targets::Target;

use super::{doctor, model};
use crate::arguments::{BenchArgs, Format};
use crate::device::{self, Job};
use crate::failure::Failure;
use crate::output::{self, say};
use crate::table;

pub fn run(args: BenchArgs) -> Result<()> {
    let report = if args.cold {
        // Every repetition starts a fresh, cold model: pages that are mapped cannot be dropped.
        let mut runs = Vec::new();
        let mut head = None;
        for _ in 0..args.repeat {
            drop_from_cache(&args.model.model)?;
            if args.image.is_some() {
                let vision = args.model.mmproj.clone().unwrap_or_else(|| sphinx_convert::mmproj_path(&args.model.model));
                drop_from_cache(&vision)?;
            }
            let (h, mut r) = device::dispatch(args.model.device, args.model.threads, Bench { args: &args, repeat: 1, warm: false })?;
            runs.append(&mut r);
            head = Some(h);
        }
        report(&args, head, &runs)
    } else {
        let (head, runs) = device::dispatch(args.model.device, args.model.threads, Bench { args: &args, repeat: args.repeat, warm: true })?;
        report(&args, Some(head), &runs)
    };
    match args.output {
        Format::Json => say!("{report}"),
        Format::Csv => output::text(&csv(&report)),
        Format::Md => say!("{}", markdown(&report)),
    }
}

/// Asks the system to forget a file's pages.
fn drop_from_cache(path: &Path) -> Result<()> {
    let file = std::fs::File::open(path).map_err(|e| Failure::io(path, &e))?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(|e| Failure::io(path, &e.into()))
}

struct Bench<'a> {
    args: &'a BenchArgs,
    repeat: usize,
    warm: bool,
}

/// What does not change between repetitions.
struct Head {
    model: Value,
    target: String,
    /// Null for a dense model. Experts that lie in the mapped file are read by the system, which does not say how.
    experts: Value,
}

/// One repetition.
struct Run {
    load_s: f64,
    image: Option<(VisionTimings, usize, usize)>,
    prefill_tokens: usize,
    prefill_s: f64,
    decode_s: f64,
    disk_read_bytes: Option<u64>,
}

impl Run {
    fn image_s(&self) -> f64 {
        self.image.map_or(0.0, |(t, ..)| t.total_s())
    }
}

impl Job for Bench<'_> {
    type Out = (Head, Vec<Run>);

    fn run<T: Target>(self, target: T) -> Result<(Head, Vec<Run>)> {
        let args = self.args;
        let before = disk_read_bytes();
        let model = model::open(target, &args.model)?;
        let picture = args.image.as_deref().map(Picture::open).transpose()?;
        let experts = if model.params().is_mixture() {
            json!({ "cache_bytes": null, "hits": null, "misses": null, "bytes_per_token": null, "stall_s": null })
        } else {
            Value::Null
        };
        let head = Head { model: describe(&model, picture.is_some())?, target: model.target().name(), experts };
        let mut runs = Vec::new();
        for i in 0..self.repeat + usize::from(self.warm) {
            let start = if i == 0 { before } else { disk_read_bytes() };
            let mut run = once(&model, args, picture.as_ref())?;
            run.disk_read_bytes = disk_read_bytes().zip(start).map(|(now, then)| now.saturating_sub(then));
            if i > 0 || !self.warm {
                runs.push(run);
            }
        }
        Ok((head, runs))
    }
}

fn once<T: Target>(model: &Sphinx<T>, args: &BenchArgs, picture: Option<&Picture>) -> Result<Run> {
    let vocabulary = model.params().vocabulary as u32;
    let mut random = Pcg64::seed_from_u64(20_240_205);
    let mut draw = || random.random_range(0..vocabulary);
    let ids: Vec<u32> = std::iter::repeat_with(&mut draw).take(args.prompt_tokens).collect();
    let image: Option<ImageRows> = picture.map(|p| model.encode(p, &mut ())).transpose()?;
    let mut session = model.session()?;
    let start = Instant::now();
    session.prefill(&ids, image.as_ref())?;
    let prefill_s = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for _ in 0..args.gen_tokens {
        session.step(draw())?;
    }
    let decode_s = start.elapsed().as_secs_f64();
    let prefill_tokens = ids.len() + image.as_ref().map_or(0, |i| i.count);
    let image = image.map(|i| (i.timings, i.views, i.skipped_views));
    Ok(Run { load_s: model.load_s(), image, prefill_tokens, prefill_s, decode_s, disk_read_bytes: None })
}

/// The recipe that a file says it was made by.
pub fn precision(file: &Gguf) -> Option<&'static str> {
    let ty = file.opt_u32(keys::FILE_TYPE).ok()??;
    Recipe::names().iter().copied().find(|n| Recipe::named(n).is_some_and(|r| r.file_type() == ty))
}

/// The JSON object `model`: name, precision, parameters and bytes of what is used.
fn describe<T: Target>(model: &Sphinx<T>, with_vision: bool) -> Result<Value> {
    let file = model.language();
    let quant = precision(file);
    let mut params: u64 = file.tensors().iter().map(|t| t.len() as u64).sum();
    let mut bytes = file.file_bytes();
    if with_vision {
        let vision = model.source().open_vision()?;
        params += vision.tensors().iter().map(|t| t.len() as u64).sum::<u64>();
        bytes += vision.file_bytes();
    }
    let stem = file.path().file_stem().map(|s| s.to_string_lossy().into_owned());
    Ok(json!({ "name": model.params().name.clone().or(stem), "quant": quant, "params": params, "bytes": bytes }))
}

/// Bytes this process had the disk read, from `/proc/self/io`.
fn disk_read_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/io").ok()?;
    text.lines().find_map(|l| l.strip_prefix("read_bytes: "))?.trim().parse().ok()
}

/// The middle value, or the mean of the two.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut v: Vec<f64> = values.collect();
    v.sort_by(f64::total_cmp);
    match v.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => v[n / 2],
        n => (v[n / 2 - 1] + v[n / 2]) / 2.0,
    }
}

fn report(args: &BenchArgs, head: Option<Head>, runs: &[Run]) -> Value {
    let (Some(head), Some(first)) = (head, runs.first()) else { return Value::Null };
    let of = |f: fn(&Run) -> f64| median(runs.iter().map(f));
    let vision = |f: fn(&VisionTimings) -> f64| median(runs.iter().filter_map(|r| r.image.as_ref().map(|(t, ..)| f(t))));
    // A tower that is not there takes no time at all; its figure is absent rather than zero.
    let tower = |f: fn(&VisionTimings) -> f64| Some(vision(f)).filter(|s| *s > 0.0);
    let image = first.image.map(|(_, views, skipped)| {
        json!({
            "views": views, "skipped_views": skipped, "preprocess_s": vision(|t| t.preprocess_s), "convnext_s": tower(|t| t.convnext_s),
            "dinov2_s": tower(|t| t.dinov2_s), "clip_s": tower(|t| t.clip_s), "qformer_s": tower(|t| t.qformer_s), "project_s": vision(|t| t.project_s),
            "total_s": median(runs.iter().map(Run::image_s)),
        })
    });
    // What really computes: fewer threads than processors where two of them share a core.
    let cpu = device::cpu(args.model.threads).ok();
    let (tokens, generated) = (first.prefill_tokens, args.gen_tokens);
    let (prefill_s, decode_s) = (of(|r| r.prefill_s), of(|r| r.decode_s));
    let disk: Option<Vec<f64>> = runs.iter().map(|r| r.disk_read_bytes.map(|b| b as f64)).collect();
    json!({
        "schema": 1,
        "model": head.model,
        "machine": {
            "cpu": doctor::cpu_name(), "isa": cpu.as_ref().map(|t| t.isa().name()),
            "threads": cpu.as_ref().map(|t| t.threads()), "memory_bytes": doctor::memory_info().map(|m| m.0),
        },
        "device": args.model.device.name(),
        "target": head.target,
        "memory_budget_bytes": null,
        "cold": args.cold,
        "load_s": of(|r| r.load_s),
        "image": image,
        "prefill": { "tokens": tokens, "s": prefill_s, "tokens_per_s": tokens as f64 / prefill_s },
        "decode": { "tokens": generated, "s": decode_s, "tokens_per_s": generated as f64 / decode_s },
        "first_token_s": median(runs.iter().map(|r| r.image_s() + r.prefill_s)),
        "peak_rss_bytes": Memory::now().map(|m| m.peak_bytes),
        "disk_read_bytes": disk.map(|d| median(d.into_iter()) as u64),
        "experts": head.experts,
        "runs": runs.iter().map(|r| json!({
            "prefill_tokens_per_s": tokens as f64 / r.prefill_s, "decode_tokens_per_s": generated as f64 / r.decode_s,
        })).collect::<Value>(),
    })
}

/// The figures as `(name, text)`.
fn figures(report: &Value) -> Vec<(String, String)> {
    fn walk(prefix: &str, value: &Value, out: &mut Vec<(String, String)>) {
        match value {
            Value::Object(o) => {
                for (k, v) in o {
                    let name = if prefix.is_empty() { k.clone() } else { format!("{prefix}.{k}") };
                    walk(&name, v, out);
                }
            }
            Value::Array(_) => (),
            Value::String(s) => out.push((prefix.to_owned(), s.clone())),
            other => out.push((prefix.to_owned(), other.to_string())),
        }
    }
    let mut out = Vec::new();
    walk("", report, &mut out);
    out
}

fn csv(report: &Value) -> String {
    let quoted = |s: &str| if s.contains([',', '"', '\n']) { format!("\"{}\"", s.replace('"', "\"\"")) } else { s.to_owned() };
    let all = figures(report);
    let line = |f: fn(&(String, String)) -> &String| all.iter().map(|x| quoted(f(x))).collect::<Vec<_>>().join(",");
    format!("{}\n{}\n", line(|x| &x.0), line(|x| &x.1))
}

fn markdown(r: &Value) -> String {
    let s = |v: &Value| v.as_f64().map_or("–".into(), table::seconds);
    let rate = |v: &Value| v.as_f64().map_or("–".into(), |x| format!("{x:.1} tokens/s"));
    let mut rows = vec![("load", s(&r["load_s"]), String::new())];
    if r["image"].is_object() {
        let views = r["image"]["views"].to_string();
        for part in ["preprocess", "clip", "convnext", "dinov2", "qformer", "project"]
            .into_iter()
            .filter(|p| !r["image"][format!("{p}_s")].is_null())
        {
            rows.push((part, s(&r["image"][format!("{part}_s")]), String::new()));
        }
        rows.push(("picture", s(&r["image"]["total_s"]), format!("{views} views")));
    }
    rows.push(("prefill", s(&r["prefill"]["s"]), format!("{} positions, {}", r["prefill"]["tokens"], rate(&r["prefill"]["tokens_per_s"]))));
    rows.push(("decode", s(&r["decode"]["s"]), format!("{} tokens, {}", r["decode"]["tokens"], rate(&r["decode"]["tokens_per_s"]))));
    rows.push(("first token", s(&r["first_token_s"]), String::new()));
    let mut text = format!(
        "{} {} on {}, median of {}\n\n| stage | time | |\n|---|---:|---|\n",
        r["model"]["name"].as_str().unwrap_or("?"),
        r["model"]["quant"].as_str().unwrap_or(""),
        r["target"].as_str().unwrap_or("?"),
        r["runs"].as_array().map_or(0, Vec::len),
    );
    for (name, time, what) in rows {
        text += &format!("| {name} | {time} | {what} |\n");
    }
    if let Some(peak) = r["peak_rss_bytes"].as_u64() {
        text += &format!("| peak memory | {} | mapped pages counted |\n", table::bytes(peak));
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let r = json!({ "a": "x, y", "b": { "c": 1.5 }, "runs": [1] });
        assert_eq!(csv(&r), "a,b.c\n\"x, y\",1.5\n");
    }
}
