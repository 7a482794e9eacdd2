//! What can go wrong between a model file, a picture, a text and an answer.

use std::path::PathBuf;

use sphinx_quant::error::printable;
use sphinx_quant::{ErrorKind, QuantError};
use sphinx_targets::TargetError;

use crate::experts::Failure;

/// Every failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The container is not readable.
    #[error(transparent)]
    Quant(#[from] QuantError),
    /// An operation failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A model file is readable, but not a model that this version runs.
    #[error("{}: {what} — {remedy}", printable(&file.display().to_string()))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What is wrong, with what was expected and found.
        what: String,
        /// What the user can do.
        remedy: &'static str,
    },
    /// A picture cannot be read.
    #[error("{}: {what} — {remedy}", printable(&file.display().to_string()))]
    Picture {
        /// The picture's file, or the name its bytes were given.
        file: PathBuf,
        /// What is wrong.
        what: String,
        /// What the user can do.
        remedy: &'static str,
    },
    /// A request that makes no sense, or does not fit the context.
    #[error("{0}")]
    Usage(String),
    /// Does not fit the memory budget.
    #[error("{0}")]
    Budget(String),
    /// The model computed something that is no number.
    #[error("{}: {what} at position {position} is not a finite number — check the file with `sphinx verify`", printable(&file.display().to_string()))]
    NotFinite {
        /// The model file.
        file: PathBuf,
        /// What was computed.
        what: &'static str,
        /// Where in the sequence, image rows counted.
        position: usize,
    },
    /// An expert cannot be had.
    #[error("{}: expert {expert} of layer {layer} {}", printable(&file.display().to_string()), why(failure))]
    Expert {
        /// The model file.
        file: PathBuf,
        /// Its layer.
        layer: usize,
        /// Its number.
        expert: u32,
        /// What went wrong.
        failure: Failure,
    },
    /// A read failed.
    #[error("{}: {source} — check the path and its permissions", printable(&file.display().to_string()))]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl RuntimeError {
    /// What the error means for the caller.
    pub fn kind(&self) -> ErrorKind {
        match self {
            RuntimeError::Quant(e) => e.kind(),
            RuntimeError::Target(e) => e.kind(),
            RuntimeError::Invalid { .. } | RuntimeError::Picture { .. } | RuntimeError::NotFinite { .. } => ErrorKind::Invalid,
            RuntimeError::Usage(_) => ErrorKind::Usage,
            RuntimeError::Budget(_) => ErrorKind::Budget,
            RuntimeError::Io { .. } | RuntimeError::Expert { failure: Failure::Io(_), .. } => ErrorKind::Io,
            RuntimeError::Expert { failure: Failure::Damaged { .. } | Failure::Misplaced(_), .. } => ErrorKind::Invalid,
            RuntimeError::Expert { failure: Failure::Budget { .. }, .. } => ErrorKind::Budget,
            RuntimeError::Expert { failure: Failure::Device(e), .. } => e.kind(),
        }
    }
}

/// What kept an expert away, and what to do.
fn why(failure: &Failure) -> String {
    match failure {
        Failure::Io(e) => format!("cannot be read: {e} — check the disk and the file, then ask again"),
        Failure::Damaged { expected, found } => {
            format!("is damaged: its checksum is {found:016x}, recorded is {expected:016x} — get or convert the file again")
        }
        Failure::Budget { need, budget } => {
            format!("takes {} MiB, the cache has {} MiB — give more with --memory", need.div_ceil(1 << 20), budget >> 20)
        }
        Failure::Misplaced(tensor) => {
            format!("does not lie in tensor \"{}\" as its type asks for — convert the file again", printable(tensor))
        }
        Failure::Device(e) => format!("cannot be copied to the device: {e} — give a smaller --expert-cache, then ask again"),
    }
}

/// Result of this crate.
pub type Result<T, E = RuntimeError> = std::result::Result<T, E>;
