//! The same vocabulary in Hugging Face's `tokenizers`: a second opinion.

use tokenizers::decoders::{DecoderWrapper, byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders, strip::Strip};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Sequence, replace::Replace};

use super::{Kind, SPACE, Tokenizer, escape};
use crate::{Result, RuntimeError};

impl Tokenizer {
    /// A `tokenizers` tokenizer that encodes and decodes as this one does, with merges rebuilt from the scores.
    ///
    /// It knows no user-defined pieces and no special tokens: everything it is given is text.
    ///
    /// # Errors
    /// [`RuntimeError::Usage`] when that crate does not take the vocabulary.
    pub fn hugging_face(&self) -> Result<tokenizers::Tokenizer> {
        let refused = |e: tokenizers::Error| RuntimeError::Usage(format!("tokenizers: {e}"));
        let vocab: Vocab = (0u32..).zip(self.pieces.iter()).map(|(id, piece)| (piece.to_owned(), id)).collect();
        let unknown = self.piece(self.unk).unwrap_or_default().to_owned();
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, self.merges())
            .unk_token(unknown)
            .fuse_unk(true)
            .byte_fallback(self.bytes.is_some())
            .build()
            .map_err(refused)?;
        let space = SPACE.to_string();
        let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
        let mut decoders: Vec<DecoderWrapper> =
            vec![Replace::new(space.as_str(), " ").map_err(refused)?.into(), ByteFallback::new().into(), Fuse::new().into()];
        if self.add_space_prefix {
            normalizers.push(Prepend::new(space.clone()).into());
            decoders.push(Strip::new(' ', 1, 0).into());
        }
        normalizers.push(Replace::new(" ", space.as_str()).map_err(refused)?.into());
        let mut out = tokenizers::Tokenizer::new(bpe);
        out.with_normalizer(Some(Sequence::new(normalizers))).map_err(refused)?;
        out.with_decoder(Some(Decoders::new(decoders)));
        Ok(out)
    }

    /// Every way to cut a piece into two pieces, best piece first; among the cuts of equally good pieces the longest
    /// left part, then the longest right part, which is what "leftmost first" comes to.
    fn merges(&self) -> Merges {
        let mergeable = |kind: Kind| matches!(kind, Kind::Normal | Kind::UserDefined | Kind::Unused);
        let mut merges = Vec::new();
        for (id, (piece, &kind)) in self.pieces.iter().zip(&self.kinds).enumerate() {
            if !mergeable(kind) {
                continue;
            }
            let piece = escape(piece);
            let chars = piece.chars().count();
            for (left_chars, (cut, _)) in piece.char_indices().enumerate().skip(1) {
                let (left, right) = piece.split_at(cut);
                if self.ids.find(left, &self.pieces).is_some() && self.ids.find(right, &self.pieces).is_some() {
                    merges.push((self.scores[id], left_chars, chars - left_chars, (left.to_string(), right.to_string())));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
        merges.into_iter().map(|m| m.3).collect()
    }
}
