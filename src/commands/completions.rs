//! `sphinx completions SHELL`.

use anyhow::Result;
use clap::CommandFactory;

use crate::arguments::{Cli, CompletionsArgs};
use crate::output;

pub fn run(args: CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sphinx", &mut script);
    output::text(&String::from_utf8_lossy(&script))
}
