//! Importance matrices: what the inputs of every weight matrix look like while a model reads texts and sees pictures.

use sphinx_quant::gguf::Gguf;
use sphinx_quant::imatrix::Imatrix;
use sphinx_quant::recipe::stack_of;
use sphinx_targets::cpu::{CpuTarget, Recorded};

use crate::session::Session;
use crate::sphinx::Sphinx;
use crate::vision::Picture;
use crate::{Result, RuntimeError};

/// Runs texts and pictures through a model on a [`CpuTarget`] that records ([`CpuOptions::record`]), and gathers what it saw
/// of both halves.
///
/// [`CpuOptions::record`]: sphinx_targets::cpu::CpuOptions::record
pub struct Collector<'m> {
    model: &'m Sphinx<CpuTarget>,
    session: Session<'m, CpuTarget>,
    matrix: Imatrix,
}

impl<'m> Collector<'m> {
    /// Nothing seen yet. What the target recorded before is dropped.
    ///
    /// # Errors
    /// When memory for a session does not suffice.
    pub fn new(model: &'m Sphinx<CpuTarget>) -> Result<Collector<'m>> {
        let session = model.session()?;
        let _ = model.target().take_record();
        let mut matrix = Imatrix::new();
        matrix.chunk_size = u32::try_from(session.capacity()).unwrap_or(u32::MAX);
        Ok(Collector { model, session, matrix })
    }

    /// Lets the model see `pictures` and read `text`, which is used as it is, after the begin token and the pictures' rows.
    /// A text that is longer than the context goes on in a sequence of its own, without the pictures.
    ///
    /// # Errors
    /// As [`Sphinx::encode`] and [`Session::logits`]; [`RuntimeError::Usage`] when the target does not record.
    pub fn add(&mut self, pictures: &[Picture], text: &str) -> Result<()> {
        let image = self.model.encode_all(pictures)?;
        let ids = self.model.tokenizer().encode(text);
        let room = self.session.capacity() - 1;
        let (first, rest) = ids.split_at(ids.len().min(room.saturating_sub(image.as_ref().map_or(0, |i| i.count))));
        self.run(first, image.as_ref())?;
        for piece in rest.chunks(room) {
            self.run(piece, None)?;
        }
        Ok(())
    }

    /// Runs one sequence and takes in what was recorded.
    fn run(&mut self, ids: &[u32], image: Option<&crate::ImageRows>) -> Result<()> {
        let mut sequence = Vec::with_capacity(ids.len() + 1);
        sequence.push(self.model.tokenizer().bos());
        sequence.extend_from_slice(ids);
        self.session.run_all(&sequence, image)?;
        let records = self.model.target().take_record();
        if records.is_empty() {
            return Err(RuntimeError::Usage("nothing was recorded: the target was not made for it".into()));
        }
        for record in &records {
            take_in(&mut self.matrix, self.model.language(), record)?;
        }
        self.matrix.chunks = self.matrix.chunks.saturating_add(1);
        Ok(())
    }

    /// Sequences seen so far.
    pub fn sequences(&self) -> u32 {
        self.matrix.chunks
    }

    /// All that was seen, under the names that tensors have in both files; a stack of experts that is cut into runs goes by
    /// the name of the whole. Where the data came from is the caller's to add.
    pub fn finish(self) -> Imatrix {
        self.matrix
    }
}

/// Adds what one matrix, or some experts of a stack, were multiplied with.
fn take_in(matrix: &mut Imatrix, language: &Gguf, record: &Recorded) -> Result<()> {
    let Some((stack, first)) = stack_of(&record.tensor) else {
        matrix.add(&record.tensor, 1, 0, &record.sums, record.rows);
        return Ok(());
    };
    let tensor = language.tensor(&record.tensor)?;
    let experts = language.opt_u32(&language.arch_key(sphinx_quant::gguf::keys::EXPERT_COUNT))?.unwrap_or(0) as usize;
    let matrices = record.matrices(tensor).filter(|range| first + range.end <= experts).ok_or_else(|| {
        let what = format!("{} rows at byte {} are no experts of it", record.outputs, record.offset_bytes);
        language.invalid(what, Some(&record.tensor), "the file is damaged; convert it again")
    })?;
    for expert in matrices {
        matrix.add(&stack, experts, first + expert, &record.sums, record.rows);
    }
    Ok(())
}
