//! `sphinx synth`: random models.

use std::time::Instant;

use anyhow::Result;
use sphinx_convert::SynthOptions;
use sphinx_quant::recipe::Recipe;

use super::convert::{pad_anchor, print, recipe, threads};
use crate::arguments::SynthArgs;
use crate::progress::Bar;

pub fn run(args: SynthArgs, no_progress: bool) -> Result<()> {
    let own = args.recipe.as_deref().map(Recipe::from_file).transpose()?;
    let named = |name: &Option<String>| name.as_deref().map(recipe).transpose();
    let options = SynthOptions {
        family: args.family,
        scale: args.scale,
        quant: own.clone().map_or_else(|| named(&args.quant), |r| Ok(Some(r)))?,
        vision_quant: own.map_or_else(|| named(&args.vision_quant), |r| Ok(Some(r)))?,
        vision: !args.no_vision,
        llama_type: args.llama_type,
        layers: args.layers,
        layout: args.layout,
        skip_tokens: args.skip_tokens,
        pad_anchor: args.pad_anchor.map(pad_anchor),
        shards: args.shards,
        seed: args.seed,
        output: args.output,
        threads: threads(args.threads),
        force: args.force,
    };
    options.files().iter().for_each(|file| crate::interrupt::writes(file));
    let start = Instant::now();
    let report = sphinx_convert::synth(&options, &Bar::new(no_progress))?;
    print(&report, false, Some(start.elapsed().as_secs_f64()))
}
