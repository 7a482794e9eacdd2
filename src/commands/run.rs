//! `sphinx run`: one question, one answer.

use std::io::Write;
use std::ops::ControlFlow;

use anyhow::Result;
use serde_json::json;
use sphinx_runtime::{ImageRows, Options, Reply, Request, Session};
use sphinx_targets::Target;

use super::model;
use crate::arguments::RunArgs;
use crate::device::{self, Job};
use crate::output::{self, say};

pub fn run(args: RunArgs, verbose: u8) -> Result<()> {
    device::dispatch(args.model.device, args.model.threads, Run { args: &args, verbose })
}

struct Run<'a> {
    args: &'a RunArgs,
    verbose: u8,
}

impl Job for Run<'_> {
    type Out = ();

    fn run<T: Target>(self, target: T) -> Result<()> {
        let args = self.args;
        let text_only = args.pictures.image.is_empty() && args.pictures.video.is_none();
        let model = model::open_with(target, &args.model, &Options { text_only, ..model::options(&args.model) })?;
        let prompt = model::prompt(&model, &args.prompt, args.generate.system.as_deref(), args.generate.raw);
        let text = if args.generate.truncate { 1 } else { prompt.len() };
        let image = model::look(&model, &args.pictures, text, args.generate.max_tokens)?;
        let stops = model::stops(&model, &args.generate);
        let request = model::request(&args.generate, &stops);
        let mut session = model.session()?;
        let reply = stream(&mut session, &prompt, image.as_ref(), &request, args.json)?;
        if args.json {
            let out = json!({
                "text": reply.text.trim(), "tokens": reply.tokens, "finish_reason": reply.finish.name(), "prompt_tokens": reply.prompt_tokens,
                "image_tokens": reply.image_tokens, "dropped_tokens": reply.dropped_tokens,
                "timings": model::timings_json(model.load_s(), image.as_ref(), &reply), "memory": model::memory_json(),
            });
            say!("{out}")?;
        } else {
            output::text("\n")?;
        }
        if self.verbose > 0 {
            model::stage_table(&model::reply_stages(model.load_s(), image.as_ref(), &reply));
            model::plan_table(&model, session.taken_bytes());
        }
        Ok(())
    }
}

/// Generates a reply and prints it as it comes, unless `quiet`.
pub fn stream<T: Target>(
    session: &mut Session<'_, T>,
    prompt: &[u32],
    image: Option<&ImageRows>,
    request: &Request<'_>,
    quiet: bool,
) -> Result<Reply> {
    let mut writer = Trimmed::default();
    let mut failed = None;
    let reply = session.generate(prompt, image, request, &mut |text| match if quiet { Ok(()) } else { writer.push(text) } {
        Ok(()) => ControlFlow::Continue(()),
        Err(e) => {
            failed = Some(e);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(reply), |e| Err(output::unsaid(e)))
}

/// Prints text as it comes, without white space at either end.
#[derive(Default)]
struct Trimmed {
    begun: bool,
    held: String,
}

impl Trimmed {
    /// Prints all of `text` but leading white space of the whole and white space that may yet be trailing.
    fn push(&mut self, text: &str) -> std::io::Result<()> {
        self.held.push_str(if self.begun { text } else { text.trim_start() });
        let end = self.held.trim_end().len();
        if end == 0 && !self.begun {
            self.held.clear();
            return Ok(());
        }
        self.begun = true;
        let mut out = std::io::stdout().lock();
        out.write_all(&self.held.as_bytes()[..end])?;
        self.held.drain(..end);
        out.flush()
    }
}
