//! The description of a `.pth` file, alone and inside an archive whose checksums are right.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sphinx_convert::checkpoint::{Checkpoint, Rule, pickle};

#[allow(dead_code)]
#[path = "../../tests/checkpoint/forge.rs"]
mod forge;

fuzz_target!(|stream: &[u8]| {
    if pickle::unpickle(stream).is_err() {
        return;
    }
    let storage: Vec<u8> = (0..64).collect();
    let Ok(checkpoint) = Checkpoint::from_pth_bytes(Path::new("x.pth"), forge::pth(stream, &storage)) else { return };
    for name in checkpoint.names() {
        for rule in [Rule::Same, Rule::Dim0, Rule::Dim1, Rule::Expert { experts: 2 }] {
            let Ok(tensor) = checkpoint.merged(name, rule) else { continue };
            let mut out = vec![0.0; tensor.rows() * tensor.cols()];
            tensor.read_rows(0..tensor.rows(), &mut out).expect("checked when opened");
        }
    }
});
