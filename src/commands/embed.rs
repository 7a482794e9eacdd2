//! `sphinx embed`: the rows a picture becomes, and each stage on the way.

use anyhow::Result;
use sphinx_runtime::vision::Recorder;
use sphinx_targets::Target;

use super::model;
use crate::arguments::EmbedArgs;
use crate::device::{self, Job};
use crate::failure::shown;
use crate::output::{self, Array, note};

pub fn run(args: EmbedArgs, verbose: u8) -> Result<()> {
    output::free(&args.output, args.force)?;
    device::dispatch(args.model.device, args.model.threads, Embed { args: &args, verbose })
}

struct Embed<'a> {
    args: &'a EmbedArgs,
    verbose: u8,
}

impl Job for Embed<'_> {
    type Out = ();

    fn run<T: Target>(self, target: T) -> Result<()> {
        let model = model::open(target, &self.args.model)?;
        let mut recorder = Recorder::default();
        let rows = model::encode(&model, &self.args.image, &mut recorder)?;
        let stages: Vec<_> = recorder.stages.into_iter().map(|(name, (shape, values))| (name, Array::F32(shape, values))).collect();
        output::safetensors(&self.args.output, &stages)?;
        note!("{}: {} rows of {} from {} views", shown(&self.args.output), rows.count, rows.dim, rows.views);
        if self.verbose > 0 {
            model::stage_table(&model::vision_stages(&rows.timings));
        }
        Ok(())
    }
}
