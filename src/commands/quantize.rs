//! `sphinx quantize`: GGUF to GGUF.

use std::time::Instant;

use anyhow::Result;
use sphinx_convert::QuantizeOptions;
use sphinx_quant::recipe::Recipe;

use super::convert::{expert_layout, print, recipe, threads};
use crate::arguments::QuantizeArgs;
use crate::failure::Failure;
use crate::progress::Bar;

pub fn run(args: QuantizeArgs, no_progress: bool) -> Result<()> {
    let quant = match (&args.recipe, &args.quant) {
        (Some(file), _) => Recipe::from_file(file)?,
        (None, Some(name)) => recipe(name)?,
        (None, None) => return Err(Failure::usage("give --quant or --recipe")),
    };
    let options = QuantizeOptions {
        input: args.input,
        output: args.output,
        quant: quant.with_expert_layout(expert_layout(args.expert_layout)),
        imatrix: args.imatrix,
        threads: threads(args.threads),
        max_memory: args.max_memory,
        force: args.force,
    };
    crate::interrupt::writes(&options.output);
    let start = Instant::now();
    let report = sphinx_convert::quantize(&options, &Bar::new(no_progress))?;
    print(&report, args.json, Some(start.elapsed().as_secs_f64()))
}
