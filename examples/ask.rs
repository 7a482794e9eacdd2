//! Asks a model about a picture and prints the answer as it comes.
//!
//!     cargo run --release --example ask -- MODEL.gguf PICTURE "What is in the picture?"

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use sphinx_runtime::{Options, Picture, Sphinx};
use sphinx_targets::cpu::{CpuOptions, CpuTarget};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, model, picture, question] = arguments.as_slice() else {
        return Err("usage: ask MODEL.gguf PICTURE QUESTION".into());
    };
    let model = Sphinx::open(CpuTarget::new(CpuOptions::default())?, Path::new(model), &Options::default())?;
    let picture = Picture::open(Path::new(picture))?;
    let reply = model.ask(&[picture], question, &mut |text| {
        print!("{text}");
        match std::io::stdout().flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    println!("\n[{} tokens in {:.1} s]", reply.tokens.len(), reply.timings.prefill_s + reply.timings.decode_s);
    Ok(())
}
