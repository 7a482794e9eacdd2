//! `sphinx bench`: load, encoding, prefill, decoding.

use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Result;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};
use sphinx_quant::gguf::{Gguf, keys};
use sphinx_quant::recipe::Recipe;
use sphinx_runtime::experts::disk::{DirectFile, Disk};
use sphinx_runtime::experts::{READERS, Stats};
use sphinx_runtime::vision::{ImageRows, Picture, VisionTimings};
use sphinx_runtime::{Memory, Options, Plan, Sphinx};
use sphinx_targets::{Profile, Target};

use super::{doctor, model};
use crate::arguments::{BenchArgs, Format};
use crate::device::{self, Job};
use crate::failure::Failure;
use crate::group::Group;
use crate::output::{self, say};
use crate::{plot, table};

pub fn run(mut args: BenchArgs) -> Result<()> {
    let profile = args.target.as_deref().map(Profile::named).transpose()?;
    if let Some(profile) = &profile {
        args.model.memory = vec![profile.budget_bytes()];
        args.model.threads = Some(profile.threads.min(std::thread::available_parallelism().map_or(1, usize::from)));
    }
    if let Some(group) = &args.group {
        Group::enter(group).map_err(|e| Failure::io(group, &e))?;
    } else if !args.model.memory.is_empty() {
        return enforced(&args, profile.as_ref());
    }
    show(&args, &measure(&args)?)
}

/// Prints a report the way the flags want it.
fn show(args: &BenchArgs, report: &Value) -> Result<()> {
    match args.output {
        Format::Json => say!("{report}"),
        Format::Csv => match report["curve"].as_array() {
            None => output::text(&csv(std::slice::from_ref(report))),
            Some(curve) => output::text(&csv(curve)),
        },
        Format::Md => say!("{}", report["curve"].as_array().map_or_else(|| markdown(report), |curve| budgets(curve))),
    }
}

/// Measures in this process.
fn measure(args: &BenchArgs) -> Result<Value> {
    if args.cold {
        // Every repetition starts a fresh, cold model: pages that are mapped cannot be dropped.
        let mut runs = Vec::new();
        let mut head = None;
        for _ in 0..args.repeat {
            drop_from_cache(&args.model.model)?;
            if args.image.is_some() {
                let vision = args.model.mmproj.clone().unwrap_or_else(|| sphinx_convert::mmproj_path(&args.model.model));
                drop_from_cache(&vision)?;
            }
            let (h, mut r) = device::dispatch(args.model.device, args.model.threads, Bench { args, repeat: 1, warm: false })?;
            runs.append(&mut r);
            head = Some(h);
        }
        Ok(report(args, head, &runs))
    } else {
        let (head, runs) = device::dispatch(args.model.device, args.model.threads, Bench { args, repeat: args.repeat, warm: true })?;
        Ok(report(args, Some(head), &runs))
    }
}

/// Measures each budget in a process of its own, which the system keeps to it where it can.
fn enforced(args: &BenchArgs, profile: Option<&Profile>) -> Result<()> {
    let program = std::env::current_exe().map_err(|e| Failure::io(Path::new("the program itself"), &e))?;
    let mut curve = Vec::new();
    for &budget in &args.model.memory {
        let group = Group::create(budget);
        let mut child = std::process::Command::new(&program);
        child.args(child_arguments(std::env::args_os().skip(1), budget));
        if let Some(profile) = profile {
            child.arg("--threads").arg(args.model.threads.unwrap_or(profile.threads).to_string());
        }
        // Without a group the process only accounts for itself; that it is told one is how it knows that it is the child.
        child.arg("--group").arg(group.as_ref().map_or(Path::new("/dev/null"), Group::path));
        let output = child.stderr(std::process::Stdio::inherit()).output().map_err(|e| Failure::io(&program, &e))?;
        let counted = group.as_ref().map(Group::counted).unwrap_or_default();
        if !output.status.success() {
            if counted.kills.is_some_and(|n| n > 0) {
                return Err(Failure::verify(format!("within {} the process was ended for want of memory", table::bytes(budget))));
            }
            // The child has said why; ending here leaves nothing to be dropped.
            drop(group);
            std::process::exit(output.status.code().unwrap_or(1));
        }
        let mut report: Value = serde_json::from_slice(&output.stdout)?;
        report["memory"] = json!({
            "enforced_by": group.as_ref().map_or("own accounting", Group::name),
            "peak_bytes": counted.peak_bytes, "kills": counted.kills,
            "within_budget": report["peak_rss_bytes"].as_u64().map(|peak| peak <= budget),
        });
        if let Some(profile) = profile {
            report["target_profile"] = json!({
                "name": profile.name, "emulated": ["memory", "threads"], "source": profile.source, "from_source": profile.from_source,
                "assumed": profile.assumed, "measured": profile.measured,
            });
        }
        curve.push(report);
    }
    if let Some(file) = &args.plot {
        let point =
            |r: &Value| Some((r["memory_budget_bytes"].as_u64()? as f64 / f64::from(1 << 30), r["decode"]["tokens_per_s"].as_f64()?));
        let name = curve[0]["model"]["name"].as_str().unwrap_or("model").to_owned();
        plot::curve(file, &name, "memory, GiB", "decoding, tokens/s", &curve.iter().filter_map(point).collect::<Vec<_>>())?;
    }
    let report = if curve.len() == 1 { curve.swap_remove(0) } else { json!({ "schema": 1, "curve": curve }) };
    show(args, &report)
}

/// The command line of the process that measures one budget: this one's without what is decided for it here.
fn child_arguments(given: impl Iterator<Item = OsString>, budget: u64) -> Vec<OsString> {
    let mut out = Vec::new();
    let mut given = given.peekable();
    while let Some(argument) = given.next() {
        let text = argument.to_string_lossy().into_owned();
        let own = ["--memory", "--output", "--plot", "--target", "--group"];
        if own.contains(&text.as_str()) {
            given.next();
        } else if !own.iter().any(|flag| text.strip_prefix(flag).is_some_and(|rest| rest.starts_with('='))) {
            out.push(argument);
        }
    }
    out.extend(["--output", "json", "--memory", &budget.to_string()].map(OsString::from));
    out
}

/// Asks the system to forget a file's pages.
fn drop_from_cache(path: &Path) -> Result<()> {
    let file = std::fs::File::open(path).map_err(|e| Failure::io(path, &e))?;
    #[cfg(not(target_vendor = "apple"))]
    return rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(|e| Failure::io(path, &e.into()));
    #[cfg(target_vendor = "apple")]
    {
        drop(file);
        Err(Failure::usage("--cold: this system drops no single file from its cache — run `purge` before, without --cold"))
    }
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
    mixture: bool,
    /// Bytes of all experts, and of the cache that they are streamed into.
    experts: (u64, Option<u64>),
    plan: Plan,
    /// What the disk reads, measured before anything else, in GB/s.
    disk_gb_per_s: Option<f64>,
}

/// One repetition.
struct Run {
    load_s: f64,
    image: Option<(VisionTimings, usize, usize)>,
    prefill_tokens: usize,
    prefill_s: f64,
    decode_s: f64,
    disk_read_bytes: Option<u64>,
    /// What the experts' cache did in prefill, and in decoding.
    experts: Option<(Stats, Stats)>,
    major_faults: Option<u64>,
    stall_s: Option<f64>,
    /// What the session took: keys and values, buffers.
    taken_bytes: (usize, usize),
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
        let options = Options { trace: args.trace.is_some(), text_only: args.image.is_none(), ..model::options(&args.model) };
        let disk_gb_per_s = if args.group.is_some() { disk_speed(&args.model.model) } else { None };
        let model = model::open_with(target, &args.model, &options)?;
        let mut room = model.plan().room_for_pictures();
        let picture = args.image.as_deref().map(|file| Picture::open_within(file, &mut room)).transpose()?;
        let stacks = model.language().tensors().iter().filter(|t| t.name().contains("_exps"));
        let head = Head {
            model: describe(&model, picture.is_some())?,
            target: model.target().name(),
            mixture: model.params().is_mixture(),
            experts: (stacks.map(|t| t.bytes().len() as u64).sum(), model.decoder().experts().streamed().map(|s| s.budget_bytes() as u64)),
            plan: model.plan().clone(),
            disk_gb_per_s,
        };
        let mut runs = Vec::new();
        for i in 0..self.repeat + usize::from(self.warm) {
            let start = if i == 0 { before } else { disk_read_bytes() };
            let (faults, stall) = (major_faults(), memory_stall_s());
            let mut run = once(&model, args, picture.as_ref())?;
            run.disk_read_bytes = disk_read_bytes().zip(start).map(|(now, then)| now.saturating_sub(then));
            run.major_faults = major_faults().zip(faults).map(|(now, then)| now.saturating_sub(then));
            run.stall_s = memory_stall_s().zip(stall).map(|(now, then)| now - then);
            if i > 0 || !self.warm {
                runs.push(run);
            }
        }
        if let Some(path) = &args.trace {
            let Some(trace) = model.decoder().experts().take_trace() else {
                return Err(Failure::usage("a dense model asks for no experts; leave --trace out"));
            };
            let write = || {
                let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
                trace.write(&mut file)?;
                std::io::Write::flush(&mut file)
            };
            write().map_err(|e| Failure::io(path, &e))?;
        }
        if model.plan().budget_given && tracing::enabled!(tracing::Level::INFO) {
            model::plan_table(&model, runs.last().map_or((0, 0), |r| r.taken_bytes));
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
    let stats = || model.decoder().experts().streamed().map(|s| s.stats());
    let (at_first, start) = (stats(), Instant::now());
    session.prefill(&ids, image.as_ref())?;
    let prefill_s = start.elapsed().as_secs_f64();
    let (between, start) = (stats(), Instant::now());
    for _ in 0..args.gen_tokens {
        session.step(draw())?;
    }
    let decode_s = start.elapsed().as_secs_f64();
    let prefill_tokens = ids.len() + image.as_ref().map_or(0, |i| i.count);
    let image = image.map(|i| (i.timings, i.views, i.skipped_views));
    let experts = at_first.zip(between).zip(stats()).map(|((a, b), c)| (b.since(&a), c.since(&b)));
    Ok(Run {
        load_s: model.load_s(),
        image,
        prefill_tokens,
        prefill_s,
        decode_s,
        disk_read_bytes: None,
        experts,
        major_faults: None,
        stall_s: None,
        taken_bytes: session.taken_bytes(),
    })
}

/// What the disk under `path` reads past the page cache, in GB/s: pieces of an expert's size from all over the file, as many at a time as
/// the store of experts reads.
fn disk_speed(path: &Path) -> Option<f64> {
    const PIECE: usize = 32 << 20;
    let bytes = std::fs::metadata(path).ok()?.len();
    let pieces = (bytes / PIECE as u64).min(48);
    let disk = DirectFile::open(path, bytes).ok()?;
    let next = AtomicU64::new(0);
    let read = || -> Option<()> {
        let mut buffer = sphinx_quant::tensor::Bytes::pages(PIECE).ok()?;
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= pieces {
                return Some(());
            }
            // A step that is coprime with their number visits all pieces in no order that a disk could foresee.
            let at = (i * 7919 % pieces) * (bytes / PIECE as u64 / pieces) * PIECE as u64;
            disk.read_at(buffer.as_mut_slice()?, at).ok()?;
        }
    };
    let start = Instant::now();
    let readers: Vec<Option<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..READERS).map(|_| scope.spawn(read)).collect();
        threads.into_iter().map(|t| t.join().unwrap_or(None)).collect()
    });
    let fine = pieces > 3 && readers.iter().all(Option::is_some);
    fine.then(|| pieces as f64 * PIECE as f64 / start.elapsed().as_secs_f64() / 1e9)
}

/// Pages that this process had to wait for the disk for.
fn major_faults() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name may hold anything but ends at the last parenthesis; the tenth field after it.
    text.rsplit_once(')')?.1.split_whitespace().nth(9)?.parse().ok()
}

/// Seconds since the start of the machine in which something waited for memory.
fn memory_stall_s() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/pressure/memory").ok()?;
    let line = text.lines().find(|l| l.starts_with("some "))?;
    Some(line.rsplit_once("total=")?.1.trim().parse::<u64>().ok()? as f64 / 1e6)
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
    // Null where experts lie in the mapped file: the system reads them and does not say how.
    let experts = |f: &dyn Fn(&(Stats, Stats)) -> f64| -> Option<f64> {
        let all = runs.iter().map(|r| r.experts.as_ref().map(f)).collect::<Option<Vec<_>>>()?;
        Some(median(all.into_iter())).filter(|x| x.is_finite())
    };
    let disk: Option<Vec<f64>> = runs.iter().map(|r| r.disk_read_bytes.map(|b| b as f64)).collect();
    json!({
        "schema": 1,
        "model": head.model,
        "machine": {
            "cpu": doctor::cpu_name(), "isa": cpu.as_ref().map(|t| t.isa().name()),
            "threads": cpu.as_ref().map(|t| t.threads()), "memory_bytes": Memory::system().map(|m| m.0),
        },
        "device": args.model.device.name(),
        "target": head.target,
        "memory_budget_bytes": head.plan.budget_given.then_some(head.plan.budget_bytes),
        "cold": args.cold,
        "load_s": of(|r| r.load_s),
        "image": image,
        "prefill": {
            "tokens": tokens, "s": prefill_s, "tokens_per_s": tokens as f64 / prefill_s,
            "expert_passes": experts(&|(p, _)| p.read_bytes as f64 / head.experts.0 as f64),
        },
        "decode": { "tokens": generated, "s": decode_s, "tokens_per_s": generated as f64 / decode_s },
        "first_token_s": median(runs.iter().map(|r| r.image_s() + r.prefill_s)),
        "peak_rss_bytes": Memory::now().map(|m| m.peak_bytes),
        "disk_read_bytes": disk.map(|d| median(d.into_iter()) as u64),
        "major_faults": runs.iter().map(|r| r.major_faults.map(|n| n as f64)).collect::<Option<Vec<_>>>().map(|v| median(v.into_iter()) as u64),
        "memory_stall_s": runs.iter().map(|r| r.stall_s).collect::<Option<Vec<_>>>().map(|v| median(v.into_iter())),
        "experts": head.mixture.then(|| json!({
            "cache_bytes": head.experts.1,
            "hits": experts(&|(_, d)| d.hits as f64), "misses": experts(&|(_, d)| (d.foreseen + d.misses) as f64),
            "foreseen": experts(&|(_, d)| d.foreseen as f64),
            "hit_rate": experts(&|(_, d)| d.hits as f64 / (d.hits + d.foreseen + d.misses) as f64),
            "bytes_per_token": experts(&|(_, d)| d.read_bytes as f64 / generated as f64),
            "stall_s": experts(&|(_, d)| d.stall_s), "prefill_stall_s": experts(&|(p, _)| p.stall_s),
            "ahead_bytes_per_token": experts(&|(_, d)| d.ahead_bytes as f64 / generated as f64),
            "wasted_bytes_per_token": experts(&|(_, d)| d.wasted_bytes as f64 / generated as f64),
            "guess_recall": experts(&|(_, d)| d.guessed as f64 / d.guesses as f64),
            "bound_tokens_per_s": head.disk_gb_per_s.and_then(|gb| experts(&|(_, d)| gb * 1e9 * generated as f64 / d.read_bytes as f64)),
        })),
        "disk_gb_per_s": head.disk_gb_per_s,
        "plan": head.plan,
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

fn csv(reports: &[Value]) -> String {
    let quoted = |s: &str| if s.contains([',', '"', '\n']) { format!("\"{}\"", s.replace('"', "\"\"")) } else { s.to_owned() };
    let all: Vec<_> = reports.iter().map(figures).collect();
    let line =
        |row: &[(String, String)], f: fn(&(String, String)) -> &String| row.iter().map(|x| quoted(f(x))).collect::<Vec<_>>().join(",");
    let head = all.first().map(|row| line(row, |x| &x.0)).unwrap_or_default();
    std::iter::once(head).chain(all.iter().map(|row| line(row, |x| &x.1))).map(|l| l + "\n").collect()
}

/// One row per budget.
fn budgets(curve: &[Value]) -> String {
    let number = |v: &Value, digits: usize| v.as_f64().map_or("–".into(), |x| format!("{x:.digits$}"));
    let gib = |v: &Value| v.as_f64().map_or("–".into(), |x| format!("{:.2}", x / f64::from(1 << 30)));
    let first = &curve[0];
    let mut text = format!(
        "{} {} on {}, kept to the budget by {}, disk {} GB/s\n\n\
         | budget, GiB | prompt, t/s | decoding, t/s | bound, t/s | hit rate | GB per token | passes | major faults | stall, s | peak, GiB |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        first["model"]["name"].as_str().unwrap_or("?"),
        first["model"]["quant"].as_str().unwrap_or(""),
        first["target"].as_str().unwrap_or("?"),
        first["memory"]["enforced_by"].as_str().unwrap_or("?"),
        number(&first["disk_gb_per_s"], 2),
    );
    for r in curve {
        let e = &r["experts"];
        let per_token = e["bytes_per_token"].as_f64().map_or("–".into(), |b| format!("{:.2}", b / 1e9));
        text += &format!(
            "| {} | {} | {} | {} | {} | {per_token} | {} | {} | {} | {} |\n",
            gib(&r["memory_budget_bytes"]),
            number(&r["prefill"]["tokens_per_s"], 1),
            number(&r["decode"]["tokens_per_s"], 2),
            number(&e["bound_tokens_per_s"], 2),
            number(&e["hit_rate"], 2),
            number(&r["prefill"]["expert_passes"], 2),
            number(&r["major_faults"], 0),
            number(&e["stall_s"], 1),
            gib(&r["peak_rss_bytes"]),
        );
    }
    text.trim_end().to_owned()
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
    if let Some(e) = r["experts"].as_object().filter(|e| !e["cache_bytes"].is_null()) {
        let f = |v: &Value| v.as_f64().unwrap_or(f64::NAN);
        let (hits, gb, stall) = (100.0 * f(&e["hit_rate"]), f(&e["bytes_per_token"]) / 1e9, f(&e["stall_s"]));
        let cache = e["cache_bytes"].as_u64().map_or(String::new(), table::bytes);
        text += &format!("| experts | {hits:.0} % there | cache {cache}, {gb:.2} GB read per token, {stall:.1} s waited |\n");
        text += &format!("| passes | {:.2} | over the experts in prefill |\n", f(&r["prefill"]["expert_passes"]));
    }
    if let Some(by) = r["memory"]["enforced_by"].as_str() {
        let budget = r["memory_budget_bytes"].as_u64().map_or(String::new(), table::bytes);
        text += &format!("| budget | {budget} | kept by {by} |\n");
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
    fn the_child_measures_one_budget() {
        let given = ["bench", "m.gguf", "--memory", "8G,12G", "--output=md", "--repeat", "2", "--plot", "a.svg"].map(OsString::from);
        let child = child_arguments(given.into_iter(), 5);
        assert_eq!(child, ["bench", "m.gguf", "--repeat", "2", "--output", "json", "--memory", "5"]);
    }

    #[test]
    fn csv_quotes_what_needs_it() {
        let r = json!({ "a": "x, y", "b": { "c": 1.5 }, "runs": [1] });
        assert_eq!(csv(&[r.clone(), r]), "a,b.c\n\"x, y\",1.5\n\"x, y\",1.5\n");
    }
}
