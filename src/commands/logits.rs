//! `sphinx logits`: one row per text token, predicting the next.

use anyhow::Result;
use sphinx_targets::Target;

use super::model;
use crate::arguments::LogitsArgs;
use crate::device::{self, Job};
use crate::failure::shown;
use crate::output::{self, Array, note};

pub fn run(args: LogitsArgs) -> Result<()> {
    output::free(&args.output, args.force)?;
    device::dispatch(args.model.device, args.model.threads, Logits(&args))
}

struct Logits<'a>(&'a LogitsArgs);

impl Job for Logits<'_> {
    type Out = ();

    fn run<T: Target>(self, target: T) -> Result<()> {
        let args = self.0;
        let model = model::open(target, &args.model)?;
        let tokens = match &args.prompt {
            Some(text) => model::prompt(&model, text, None, args.raw),
            None => args.tokens.clone(),
        };
        let image = model::look(&model, &args.pictures, tokens.len(), 0)?;
        let logits = model.session()?.logits(&tokens, image.as_ref())?;
        let vocabulary = model.params().vocabulary;
        let ids = tokens.iter().map(|&id| i64::from(id)).collect();
        let tensors = [
            ("logits".to_owned(), Array::F32(vec![tokens.len(), vocabulary], logits)),
            ("tokens".to_owned(), Array::I64(vec![tokens.len()], ids)),
        ];
        output::safetensors(&args.output, &tensors)?;
        note!("{}: {} rows of {vocabulary}", shown(&args.output), tokens.len());
        Ok(())
    }
}
