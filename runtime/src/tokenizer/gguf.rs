//! The tokenizer that a language file carries.

use sphinx_quant::QuantError;
use sphinx_quant::gguf::Gguf;
use sphinx_quant::gguf::keys::{self, Half};

use super::{Tokenizer, Vocabulary};

const REMEDY: &str = "convert the checkpoint again, or get the file again";

impl Tokenizer {
    /// The tokenizer of `file`. Missing special ids are those that llama.cpp assumes: unknown 0, begin 1, end 2.
    ///
    /// # Errors
    /// [`QuantError::Invalid`] naming the file when it is not a SentencePiece byte-pair vocabulary, or its arrays are
    /// broken (see [`Tokenizer::new`]).
    pub fn from_gguf(file: &Gguf) -> Result<Tokenizer, QuantError> {
        let model = file.str(keys::TOK_MODEL)?;
        if model != "llama" {
            let what = format!("key \"{}\" is \"{}\", expected \"llama\"", keys::TOK_MODEL, sphinx_quant::error::printable(model));
            return Err(file.invalid(what, None, "only SentencePiece byte-pair tokenizers are supported"));
        }
        let v = Vocabulary {
            pieces: file.str_array(keys::TOK_TOKENS)?,
            scores: file.f32_array(keys::TOK_SCORES)?,
            types: file.i32_array(keys::TOK_TYPES)?,
            bos: file.opt_u32(keys::TOK_BOS)?.unwrap_or(1),
            eos: file.opt_u32(keys::TOK_EOS)?.unwrap_or(2),
            unk: file.opt_u32(keys::TOK_UNK)?.unwrap_or(0),
            add_space_prefix: file.opt_bool(keys::TOK_ADD_SPACE_PREFIX)?.unwrap_or(true),
            nul: file.opt_u32(&Half::Language.key(keys::NUL_PIECE))?,
        };
        Tokenizer::new(v).map_err(|what| file.invalid(format!("tokenizer: {what}"), None, REMEDY))
    }
}
