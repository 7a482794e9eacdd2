//! `sphinx imatrix`: what text and pictures activate, column by column.

use anyhow::Result;
use sphinx_runtime::imatrix::Collector;
use sphinx_runtime::{Options, Sphinx, Turn};
use sphinx_targets::cpu::{CpuOptions, CpuTarget};

use crate::arguments::ImatrixArgs;
use crate::dataset::{Row, Rows};
use crate::failure::{Failure, shown};
use crate::output::{self, note};
use crate::progress;

pub fn run(args: ImatrixArgs, no_progress: bool) -> Result<()> {
    output::free(&args.output, args.force)?;
    let options = CpuOptions { threads: args.threads, record: true, ..CpuOptions::from_env()? };
    let options_of_model = Options { mmproj: args.mmproj.clone(), context: args.context, ..Options::default() };
    let model = Sphinx::open(CpuTarget::new(options)?, &args.model, &options_of_model)?;
    let wanted = args.rows.unwrap_or(usize::MAX);
    let total = {
        // A first pass, so that a bad row is found before hours of work, and the bar knows how much there is.
        let mut rows = Rows::open(&args.data)?;
        let mut count = 0;
        while count < wanted && rows.next()?.is_some() {
            count += 1;
        }
        count
    };
    if total == 0 {
        return Err(Failure::invalid(format!("{}: no row in it — a row is {{\"question\": …, \"image\": …}}", shown(&args.data))));
    }
    let mut rows = Rows::open(&args.data)?;
    let mut collector = Collector::new(&model)?;
    let bar = progress::counter("imatrix", total as u64, no_progress);
    for _ in 0..total {
        let Some(row) = rows.next()? else { break };
        collector.add(&rows.pictures(&row)?, &text_of(&model, &row)?)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let sequences = collector.sequences();
    let mut matrix = collector.finish();
    matrix.datasets = vec![args.data.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())];
    matrix.write(&args.output)?;
    note!("{}: {} matrices from {total} rows in {sequences} sequences", shown(&args.output), matrix.len());
    Ok(())
}

/// What the decoder reads: the question in the template with its answer, as in a conversation, or the text as it is.
fn text_of(model: &Sphinx<CpuTarget>, row: &Row) -> Result<String> {
    match (&row.question, &row.text) {
        (Some(question), _) => {
            let turn = Turn { question: question.clone(), answer: row.answer() };
            Ok(model.params().template.render(None, &[turn])?)
        }
        (None, text) => Ok(text.clone().unwrap_or_default()),
    }
}
