//! Where the experts of a mixture come from. The decoder asks for those that a chunk of rows needs and never knows
//! whether they were there already; what it computes does not depend on the order in which they come.

use std::sync::{Mutex, PoisonError};

use sphinx_quant::gguf::Gguf;
use sphinx_targets::{Mlp, Target};

use crate::Result;
use crate::source::LanguageParams;

pub mod disk;
pub mod policy;
mod resident;
pub mod store;
mod streamed;
pub mod trace;

pub use policy::Policy;
pub use resident::Resident;
pub use store::{Failure, Guess, Stats};
pub use streamed::{READERS, Streamed, Streaming};
use trace::Trace;

/// What a chunk of rows wants of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Which layer.
    pub layer: usize,
    /// Rows of the chunk.
    pub rows: usize,
    /// The experts that they go through, ascending, no repetition.
    pub ids: &'a [u32],
    /// What the router thinks of all experts `[experts]`, in the mean over the rows; 1 in sum.
    pub odds: &'a [f32],
    /// What the next layer will want, as far as one can tell.
    pub next: Option<Guess<'a>>,
}

/// The experts of all layers.
pub trait Experts<T: Target> {
    /// Calls `work` once for each of the experts asked for, in an order of its own.
    ///
    /// # Errors
    /// What `work` returns first; when there is no such layer or expert, or it cannot be had.
    fn visit(&self, t: &T, asked: Asked<'_>, work: &mut dyn FnMut(u32, &Mlp<T>) -> Result<()>) -> Result<()>;

    /// Whether it makes use of [`Asked::next`].
    fn wants_guesses(&self) -> bool {
        false
    }
}

/// The experts of a model, however they are had.
pub struct Provider<T: Target> {
    kind: Kind<T>,
    trace: Option<Mutex<Trace>>,
}

enum Kind<T: Target> {
    Resident(Resident<T>),
    Streamed(Streamed<T>),
}

impl<T: Target> Provider<T> {
    /// The experts in `file`, which `params` were read from: in the map, or streamed. None for a dense model.
    ///
    /// # Errors
    /// When a tensor is missing or of a type the target does not compute with.
    pub fn load(t: &T, file: &Gguf, params: &LanguageParams, streaming: Option<Streaming>, trace: bool) -> Result<Provider<T>> {
        let kind = match streaming.filter(|_| params.is_mixture()) {
            Some(streaming) => Kind::Streamed(Streamed::open(t, file, params, streaming)?),
            None => Kind::Resident(Resident::load(t, file, params)?),
        };
        let trace = (trace && params.is_mixture()).then(|| Mutex::new(Trace::new(params.layers, params.experts, params.experts_used)));
        Ok(Provider { kind, trace })
    }

    /// The streamed ones.
    pub fn streamed(&self) -> Option<&Streamed<T>> {
        match &self.kind {
            Kind::Resident(_) => None,
            Kind::Streamed(s) => Some(s),
        }
    }

    /// What was asked for since the last time, if anybody writes it down.
    pub fn take_trace(&self) -> Option<Trace> {
        let trace = self.trace.as_ref()?;
        Some(trace.lock().unwrap_or_else(PoisonError::into_inner).take())
    }
}

impl<T: Target> Experts<T> for Provider<T> {
    fn visit(&self, t: &T, asked: Asked<'_>, work: &mut dyn FnMut(u32, &Mlp<T>) -> Result<()>) -> Result<()> {
        if let Some(trace) = &self.trace {
            trace.lock().unwrap_or_else(PoisonError::into_inner).push(&asked);
        }
        match &self.kind {
            Kind::Resident(r) => r.visit(t, asked, work),
            Kind::Streamed(s) => s.visit(t, asked, work),
        }
    }

    fn wants_guesses(&self) -> bool {
        self.trace.is_some() || matches!(self.kind, Kind::Streamed(_))
    }
}
