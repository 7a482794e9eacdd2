//! `sphinx verify`: structure, checksums, numbers, and the error against a checkpoint.

use anyhow::Result;
use sphinx_quant::error::printable;

use crate::arguments::VerifyArgs;
use crate::failure::{Failure, shown};
use crate::progress::Bar;
use crate::table;

pub fn run(args: VerifyArgs, no_progress: bool) -> Result<()> {
    let found = sphinx_convert::verify(&args.path, args.against.as_deref(), &Bar::new(no_progress))?;
    let trailing = found.trailing_bytes;
    if args.json {
        println!("{}", serde_json::to_string(&found)?);
    } else {
        for problem in &found.problems {
            println!("{}", printable(problem));
        }
        if args.against.is_some() {
            let rows = found.tensors.iter().filter_map(|t| {
                let e = t.error.as_ref()?;
                Some(vec![printable(&t.name), t.ty.clone(), format!("{:.3e}", e.rmse), format!("{:.6}", e.cosine), format!("{:.3e}", e.max_abs)])
            });
            println!("{}", table::plain(&["tensor", "type", "RMSE", "cosine", "largest error"], rows));
        }
    }
    if !found.ok {
        return Err(Failure::verify(format!("{}: {} problems found — convert it again", shown(&args.path), found.problems.len())));
    }
    if trailing > 0 {
        if args.strict {
            return Err(Failure::invalid(format!("{}: {trailing} bytes follow the last tensor — is it the whole file, and only it?", shown(&args.path))));
        }
        eprintln!("warning: {}: {trailing} bytes follow the last tensor", shown(&args.path));
    }
    if !args.json {
        println!("{}: {} tensors hold", shown(&args.path), found.tensors.len());
    }
    Ok(())
}
