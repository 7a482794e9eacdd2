//! `sphinx verify`: structure, checksums, numbers, and the error against a checkpoint.

use anyhow::Result;
use sphinx_convert::Against;
use sphinx_quant::error::{one_line, printable};

use super::convert::{pad_anchor, rope_order};
use crate::arguments::VerifyArgs;
use crate::failure::{Failure, shown};
use crate::output::{note, say};
use crate::progress::Bar;
use crate::table;

pub fn run(args: VerifyArgs, no_progress: bool) -> Result<()> {
    let against = (!args.against.is_empty()).then(|| Against {
        inputs: args.against,
        llama_type: args.llama_type,
        vision: args.vision,
        layout: args.layout,
        rope_order: args.rope_order.map(rope_order),
        skip_tensor: args.skip_tensor,
        pad_anchor: args.pad_anchor.map(pad_anchor),
        max_rmse: args.max_rmse,
        strict: args.strict,
        threads: args.threads,
        max_memory: args.max_memory,
    });
    let found = sphinx_convert::verify(&args.path, against.as_ref(), &Bar::new(no_progress))?;
    let trailing = found.trailing_bytes;
    if args.json {
        say!("{}", serde_json::to_string(&found)?)?;
    } else {
        // The first becomes the error line.
        for problem in found.problems.iter().skip(1) {
            say!("{}", one_line(problem))?;
        }
        if let Some(s) = &found.sources {
            let rows = found.tensors.iter().filter_map(|t| {
                let e = t.error.as_ref()?;
                Some(vec![
                    printable(&t.name),
                    t.ty.clone(),
                    format!("{:.3e}", e.rmse),
                    format!("{:.3e}", e.relative_rmse),
                    format!("{:.6}", e.cosine),
                    format!("{:.3e}", e.max_abs),
                ])
            });
            say!("{}", table::plain(&["tensor", "type", "RMSE", "of its size", "cosine", "largest error"], rows))?;
            say!(
                "checkpoint: {} tensors, {} compared, {} of the other half, {} that no model needs, {} unknown",
                s.total,
                s.compared,
                s.other_half,
                s.unused.len(),
                s.unknown.len()
            )?;
            for name in &s.unknown {
                say!("unknown: {name}")?;
            }
        }
    }
    if let Some(first) = found.problems.first() {
        let file = shown(&args.path);
        // A problem of the file's contents names it already, and some know their own remedy.
        let first = if first.starts_with(&file) { first.clone() } else { format!("{file}: {first}") };
        let first = if first.contains(" — ") { first } else { format!("{first} — convert it again") };
        let more = found.problems.len() - 1;
        return Err(Failure::verify(if more > 0 { format!("{first} ({more} more)") } else { first }));
    }
    if trailing > 0 {
        if args.strict {
            return Err(Failure::invalid(format!(
                "{}: {trailing} bytes follow the last tensor — is it the whole file, and only it?",
                shown(&args.path)
            )));
        }
        note!("warning: {}: {trailing} bytes follow the last tensor", shown(&args.path));
    }
    if !args.json {
        say!("{}: {} tensors hold", shown(&args.path), found.tensors.len())?;
    }
    Ok(())
}
