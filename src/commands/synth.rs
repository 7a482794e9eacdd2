//! `sphinx synth`: random models.

use std::time::Instant;

use anyhow::Result;
use sphinx_convert::SynthOptions;

use super::convert::{print, recipe, threads};
use crate::arguments::SynthArgs;
use crate::progress::Bar;

pub fn run(args: SynthArgs, no_progress: bool) -> Result<()> {
    let options = SynthOptions {
        family: args.family,
        scale: args.scale,
        quant: args.quant.as_deref().map(recipe).transpose()?,
        vision_quant: args.vision_quant.as_deref().map(recipe).transpose()?,
        vision: !args.no_vision,
        llama_type: args.llama_type,
        seed: args.seed,
        output: args.output,
        threads: threads(args.threads),
        force: args.force,
    };
    crate::interrupt::writes(&options.output);
    crate::interrupt::writes(&sphinx_convert::mmproj_path(&options.output));
    let start = Instant::now();
    let report = sphinx_convert::synth(&options, &Bar::new(no_progress))?;
    print(&report, false, Some(start.elapsed().as_secs_f64()))
}
