//! `sphinx convert`: a checkpoint directory to two GGUF files.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use sphinx_convert::registry::RopeOrder;
use sphinx_convert::variant::PadAnchor;
use sphinx_convert::{Arch, ConvertOptions, Report};
use sphinx_quant::recipe::{ExpertLayout, Recipe};

use crate::arguments::{ArchArg, ClipActivation, ConvertArgs, LayoutArg, PadAnchorArg, RopeOrderArg};
use crate::failure::{Failure, shown};
use crate::output::say;
use crate::progress::Bar;
use crate::table;

/// The recipe called `name`.
pub fn recipe(name: &str) -> Result<Recipe> {
    Recipe::named(name).ok_or_else(|| Failure::usage(format!("unknown precision {name:?} — choose one of {}", Recipe::names().join(", "))))
}

/// What the flag means.
pub fn expert_layout(layout: LayoutArg) -> ExpertLayout {
    match layout {
        LayoutArg::Stacked => ExpertLayout::Stacked,
        LayoutArg::Contiguous => ExpertLayout::Contiguous,
    }
}

/// Threads asked for, or the cores this process may use.
pub fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
}

/// What the flag means.
pub fn rope_order(order: RopeOrderArg) -> RopeOrder {
    match order {
        RopeOrderArg::Pairs => RopeOrder::Pairs,
        RopeOrderArg::Halves => RopeOrder::Halves,
    }
}

/// What the flag means.
pub fn pad_anchor(anchor: PadAnchorArg) -> PadAnchor {
    match anchor {
        PadAnchorArg::Centre => PadAnchor::Centre,
        PadAnchorArg::TopLeft => PadAnchor::TopLeft,
    }
}

pub fn run(args: ConvertArgs, no_progress: bool) -> Result<()> {
    let (quant, vision_quant) = match &args.recipe {
        Some(file) => (Recipe::from_file(file)?, Recipe::from_file(file)?),
        None => (recipe(&args.quant)?, recipe(&args.vision_quant)?),
    };
    let options = ConvertOptions {
        inputs: args.inputs,
        output: args.output,
        quant: quant.with_expert_layout(expert_layout(args.expert_layout)),
        vision_quant,
        llama_type: args.llama_type,
        context: args.context,
        vision: args.vision,
        layout: args.layout,
        arch: match args.arch {
            ArchArg::Llama => Arch::Llama,
            ArchArg::Internlm2 => Arch::Internlm2,
        },
        rope_order: args.rope_order.map(rope_order),
        clip_quick_gelu: args.clip_activation == ClipActivation::QuickGelu,
        skip_tensor: args.skip_tensor,
        pad_anchor: args.pad_anchor.map(pad_anchor),
        imatrix: args.imatrix,
        max_memory: args.max_memory,
        threads: threads(args.threads),
        force: args.force,
        strict: args.strict,
    };
    crate::interrupt::writes(&options.output);
    crate::interrupt::writes(&sphinx_convert::mmproj_path(&options.output));
    let bar = Bar::new(no_progress);
    let start = Instant::now();
    let report = if args.dry_run { sphinx_convert::dry_run(&options, &bar)? } else { sphinx_convert::convert(&options, &bar)? };
    print(&report, args.json, (!args.dry_run).then(|| start.elapsed().as_secs_f64()))
}

/// The report for people, or as JSON. `took_s`: the wall time, unless nothing was written.
pub fn print(report: &Report, json: bool, took_s: Option<f64>) -> Result<()> {
    if json {
        return say!("{}", serde_json::to_string(report)?);
    }
    for file in &report.files {
        say!("{}  {} tensors  {}", shown(Path::new(&file.path)), file.tensors, table::bytes(file.bytes))?;
    }
    let bytes_in: u64 = report.rows.iter().map(|r| r.bytes_in).sum();
    let bytes_out: u64 = report.rows.iter().map(|r| r.bytes_out).sum();
    let mut by_type: Vec<(String, u64, u64)> = Vec::new();
    for row in &report.rows {
        match by_type.iter_mut().find(|(ty, ..)| *ty == row.to) {
            Some((_, n, bytes)) => (*n, *bytes) = (*n + 1, *bytes + row.bytes_out),
            None => by_type.push((row.to.clone(), 1, row.bytes_out)),
        }
    }
    by_type.sort_by_key(|&(_, _, bytes)| std::cmp::Reverse(bytes));
    let rows = by_type.into_iter().map(|(ty, n, bytes)| vec![ty, n.to_string(), table::bytes(bytes)]);
    say!("{}", table::plain(&["type", "tensors", "size"], rows))?;
    let out = format!("{} out", table::bytes(bytes_out));
    let to = if bytes_in > 0 { format!("{} in, {out}", table::bytes(bytes_in)) } else { out };
    match took_s {
        // What is drawn is not read.
        Some(s) if bytes_in == 0 => say!("{to}, {} ({:.0} MB/s written)", table::seconds(s), bytes_out as f64 / s / 1e6),
        Some(s) => say!("{to}, {} ({:.0} MB/s read)", table::seconds(s), bytes_in as f64 / s / 1e6),
        None => say!("{to}; nothing was written"),
    }
}
