//! SPHINX models: a picture and text in, text out.
//!
//! A model is two GGUF files. [`Sphinx::open`](sphinx::Sphinx::open) reads the language half and finds the vision half
//! beside it; [`vision`] turns a picture into rows of the decoder's width, [`tokenizer`] turns text into ids, and a
//! [`session`] runs both through the [`decoder`] and lets a [`sampler`] choose what comes next.
//!
//! Everything is written over [`sphinx_targets::Target`] and never sees a thread or a device.

pub mod decoder;
pub mod error;
pub mod eval;
pub mod experts;
pub mod film;
pub mod imatrix;
pub mod memory;
pub mod plan;
pub mod prompt;
pub mod sampler;
pub mod session;
pub mod source;
pub mod sphinx;
pub mod stream;
pub mod tokenizer;
pub mod vision;

pub use error::{Result, RuntimeError};
pub use film::Film;
pub use memory::Memory;
pub use plan::Plan;
pub use prompt::{Template, Turn};
pub use sampler::Sampling;
pub use session::{FinishReason, Reply, Request, Session, Timings};
pub use source::LanguageParams;
pub use sphinx::{Options, Sphinx};
pub use tokenizer::Tokenizer;
pub use vision::{ImageRows, Picture};
