//! Any bytes as a GGUF file: refused, or everything in it can be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sphinx_quant::gguf::Gguf;

fuzz_target!(|data: &[u8]| {
    let Ok(g) = Gguf::from_bytes("fuzz", data.to_vec()) else {
        return;
    };
    for (i, t) in g.tensors().iter().enumerate() {
        assert_eq!(Some(t.bytes().len()), t.ty().row_bytes(t.cols()).map(|n| n * t.rows()));
        assert_eq!(g.tensor_index(t.name()), Some(i));
        assert!(g.offset(i) + t.bytes().len() as u64 <= g.file_bytes());
        let _ = g.check_tensor(i);
        let _ = g.non_finite(i);
    }
    for (k, v) in g.metadata() {
        assert!(g.get(k).is_some());
        let _ = (g.opt_u32(k), g.opt_str_array(k), g.u32_array(k), v.type_name());
    }
    let _ = g.check_padding();
});
