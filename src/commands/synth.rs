//! `sphinx synth`: random models.

use std::time::Instant;

use anyhow::Result;
use sphinx_convert::SynthOptions;
use sphinx_quant::recipe::{ExpertLayout, Recipe};

use super::convert::{expert_layout, pad_anchor, print, recipe, threads};
use crate::arguments::SynthArgs;
use crate::failure::Failure;
use crate::progress::Bar;

pub fn run(args: SynthArgs, no_progress: bool) -> Result<()> {
    let own = args.recipe.as_deref().map(Recipe::from_file).transpose()?;
    let named = |name: &Option<String>| name.as_deref().map(recipe).transpose();
    let layout = expert_layout(args.expert_layout);
    let quant = own.clone().map_or_else(|| named(&args.quant), |r| Ok(Some(r)))?;
    if quant.is_none() && layout == ExpertLayout::Contiguous {
        return Err(Failure::usage("--expert-layout is for GGUF files; say with --quant which"));
    }
    let options = SynthOptions {
        family: args.family,
        scale: args.scale,
        quant: quant.map(|r| r.with_expert_layout(layout)),
        vision_quant: own.map_or_else(|| named(&args.vision_quant), |r| Ok(Some(r)))?,
        vision: !args.no_vision,
        llama_type: args.llama_type,
        layers: args.layers,
        layout: args.layout,
        skip_tokens: args.skip_tokens,
        pad_anchor: args.pad_anchor.map(pad_anchor),
        router_skew: args.router_skew,
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
