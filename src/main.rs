//! `sphinx`: converts SPHINX-X checkpoints and runs them.
//!
//! Arguments in, text out, no arithmetic: every command reads its arguments, calls a library crate and prints.

mod arguments;
mod commands;
mod dataset;
mod device;
mod failure;
mod group;
mod interrupt;
mod nano;
mod output;
mod plot;
mod progress;
mod table;

use std::process::ExitCode;

use arguments::{Cli, Command};
use clap::Parser;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::usage(&error),
    };
    let json_errors = cli.json_errors;
    progress::start_logging(cli.verbose);
    interrupt::listen();
    failure::announce_panics();
    match std::panic::catch_unwind(|| run(cli)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => failure::report(&error, json_errors),
        Err(_) => failure::panicked(),
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Convert(a) => commands::convert::run(a, cli.no_progress),
        Command::Quantize(a) => commands::quantize::run(a, cli.no_progress),
        Command::Imatrix(a) => commands::imatrix::run(a, cli.no_progress),
        Command::Inspect(a) => commands::inspect::run(a),
        Command::Verify(a) => commands::verify::run(a, cli.no_progress),
        Command::Run(a) => commands::run::run(a, cli.verbose),
        Command::Chat(a) => commands::chat::run(a, cli.verbose),
        Command::Tokenize(a) => commands::tokenize::run(a),
        Command::Embed(a) => commands::embed::run(a, cli.verbose),
        Command::Logits(a) => commands::logits::run(a),
        Command::Bench(a) => commands::bench::run(a),
        Command::Fit(a) => commands::fit::run(a),
        Command::Synth(a) => commands::synth::run(a, cli.no_progress),
        Command::Eval(a) => commands::eval::run(a, cli.no_progress),
        Command::Demo(a) => commands::demo::run(a, cli.no_progress, cli.verbose),
        Command::Doctor(a) => commands::doctor::run(a),
        Command::Completions(a) => commands::completions::run(a),
    }
}
