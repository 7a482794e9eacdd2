//! `sphinx tokenize`: text to ids and back.

use anyhow::Result;
use sphinx_quant::gguf::Gguf;
use sphinx_runtime::tokenizer::Tokenizer;

use crate::arguments::{TokenizeArgs, TokenizerKind};
use crate::failure::Failure;
use crate::output::say;

pub fn run(args: TokenizeArgs) -> Result<()> {
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&args.model)?)?;
    let witness = match args.with {
        TokenizerKind::Own => None,
        TokenizerKind::Tokenizers => Some(tokenizer.hugging_face()?),
    };
    let crate_error = |e: Box<dyn std::error::Error + Send + Sync>| Failure::invalid(format!("tokenizers: {e} — try without --with"));
    if args.decode {
        let ids = args.text.split(',').filter(|s| !s.trim().is_empty()).map(|s| s.trim().parse::<u32>());
        let ids: Vec<u32> =
            ids.collect::<Result<_, _>>().map_err(|_| Failure::usage("--decode takes ids separated by commas, as in 1,2,3"))?;
        tokenizer.check(&ids)?;
        let text = match &witness {
            None => tokenizer.decode(&ids),
            Some(w) => w.decode(&ids, true).map_err(crate_error)?,
        };
        return if args.json { say!("{}", serde_json::to_string(&text)?) } else { say!("{text}") };
    }
    let mut ids = match &witness {
        None => tokenizer.encode(&args.text),
        Some(_) if args.text.is_empty() => Vec::new(),
        Some(w) => w.encode(args.text.as_str(), false).map_err(crate_error)?.get_ids().to_vec(),
    };
    if args.bos {
        ids.insert(0, tokenizer.bos());
    }
    say!("{}", serde_json::to_string(&ids)?)
}
