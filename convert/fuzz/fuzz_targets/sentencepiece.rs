//! A SentencePiece model.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = sphinx_convert::tokenizer::parse_sentencepiece(bytes);
});
