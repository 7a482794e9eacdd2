//! `sphinx fit`: what a model needs of memory, and how it would be held.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;
use sphinx_convert::ConvertOptions;
use sphinx_runtime::plan::{Holding, Priced, Wish};
use sphinx_runtime::source::Source;
use sphinx_runtime::{Memory, Plan, RuntimeError};
use sphinx_targets::{KvType, Profile};

use super::convert::recipe;
use super::model;
use crate::arguments::FitArgs;
use crate::failure::Failure;
use crate::output::say;
use crate::table;

pub fn run(args: FitArgs) -> Result<()> {
    // Of a checkpoint, headers are made as convert would make them, with nothing behind them.
    let folder = args.model.is_dir().then(tempfile::tempdir).transpose().map_err(|e| Failure::io(&std::env::temp_dir(), &e))?;
    let path = match &folder {
        Some(folder) => outline(&args, folder.path())?,
        None => args.model.clone(),
    };
    let source = Source::open(&path, args.mmproj.as_deref())?;
    let params = source.params();
    let profile = args.target.as_deref().map(Profile::named).transpose()?;
    let vision = if args.images > 0 && source.has_vision() { Some(source.open_vision()?) } else { None };
    if args.images > 0 && vision.is_none() && args.mmproj.is_some() {
        return Err(Failure::usage("the vision half is not there"));
    }
    let priced = Priced::new(source.language(), params, vision.as_ref())?;
    let context = args.context.unwrap_or(params.context);
    let rows = args.images * params.image_rows.unwrap_or(0);
    if rows >= context {
        return Err(Failure::usage(format!(
            "{} pictures are {rows} rows, the context has {context} — give more with --context",
            args.images
        )));
    }
    let wish = Wish {
        memory: Some(args.memory.or(profile.as_ref().map(Profile::budget_bytes)).or_else(Memory::available).unwrap_or(u64::MAX)),
        context,
        kv: args.kv.map_or(if params.whole_precision { KvType::F32 } else { KvType::F16 }, model::kv_type),
        chunk: args.chunk,
        threads: profile.as_ref().map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), |p| p.threads),
        ..Wish::default()
    };
    let plan = match priced.plan(&wish) {
        Ok(plan) => plan,
        Err(RuntimeError::Budget(what)) => {
            if args.json {
                say!("{}", json!({ "model": args.model, "fits": false, "budget_bytes": wish.memory, "why": what }))?;
            }
            return Err(RuntimeError::Budget(what).into());
        }
        Err(e) => return Err(e.into()),
    };
    let token = seconds_per_token(&plan, params.experts, params.experts_used, profile.as_ref());
    if args.json {
        return say!(
            "{}",
            json!({
                "model": args.model, "fits": true, "budget_bytes": plan.budget_bytes, "peak_bytes": plan.peak_bytes, "plan": plan,
                "images": args.images, "image_rows": params.image_rows,
                "target_profile": profile.as_ref().map(|p| json!({
                    "name": p.name, "emulated": true, "source": p.source, "from_source": p.from_source, "assumed": p.assumed, "measured": p.measured,
                })),
                "disk_seconds_per_token_at_most": token,
            })
        );
    }
    let budget = match &profile {
        Some(p) => format!("{} ({}, its system aside; {}; {})", table::bytes(plan.budget_bytes), p.name, p.source, p.basis()),
        None if args.memory.is_none() => format!("{} (what this machine has free)", table::bytes(plan.budget_bytes)),
        None => table::bytes(plan.budget_bytes),
    };
    say!("budget    {budget}")?;
    let rows = plan.parts.iter().map(|p| vec![p.name.to_owned(), table::bytes(p.bytes), held(p.holding, p.of_bytes)]);
    say!("{}", table::plain(&["part", "memory", ""], rows))?;
    say!("peak      {}, {} positions, prompts in pieces of {}", table::bytes(plan.peak_bytes), plan.context, plan.chunk)?;
    if let (Some(s), Some(p)) = (token, &profile) {
        say!("decoding  waits {} for the disk per token at most, if it reads {} GB/s", table::seconds(s), p.disk_gb_per_s)?;
    }
    Ok(())
}

/// How a part is held, in words.
pub fn held(holding: Holding, of_bytes: u64) -> String {
    match holding {
        Holding::Resident => "resident".to_owned(),
        Holding::Streamed => format!("streamed, of {}", table::bytes(of_bytes)),
        Holding::Buffers => "while it runs".to_owned(),
    }
}

/// What reading takes per token on a device's disk, if no expert were used twice in a row: even use of all experts.
fn seconds_per_token(plan: &Plan, experts: usize, used: usize, profile: Option<&Profile>) -> Option<f64> {
    let disk = profile?.disk_gb_per_s * 1e9;
    let part = |name: &str| plan.parts.iter().find(|p| p.name == name && p.holding == Holding::Streamed);
    let dense = part("language").map_or(0.0, |p| p.of_bytes.saturating_sub(p.bytes) as f64);
    let missed =
        part("experts").map_or(0.0, |p| (1.0 - p.bytes as f64 / p.of_bytes as f64) * p.of_bytes as f64 * used as f64 / experts as f64);
    Some((dense + missed) / disk).filter(|s| *s > 0.0)
}

/// Headers of the files that a checkpoint would be converted to, in `folder`.
fn outline(args: &FitArgs, folder: &Path) -> Result<PathBuf> {
    let output = folder.join("model.gguf");
    let options = ConvertOptions::new(vec![args.model.clone()], output.clone(), recipe(&args.quant)?, recipe(&args.vision_quant)?);
    sphinx_convert::outline(&options, &())?;
    Ok(output)
}
