//! A whole `.pth` file: what is accepted can be read, or its checksum is wrong.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sphinx_convert::checkpoint::{Checkpoint, Rule};

fuzz_target!(|bytes: &[u8]| {
    let Ok(checkpoint) = Checkpoint::from_pth_bytes(Path::new("x.pth"), bytes.to_vec()) else { return };
    for name in checkpoint.names() {
        let Ok(tensor) = checkpoint.merged(name, Rule::Same) else { continue };
        let mut row = vec![0.0; tensor.cols()];
        for r in 0..tensor.rows() {
            if let Err(e) = tensor.read_rows(r..r + 1, &mut row) {
                assert!(e.to_string().contains("checksum"), "{e}");
                break;
            }
        }
    }
});
