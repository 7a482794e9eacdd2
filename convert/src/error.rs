//! What can go wrong between a checkpoint and a model file.

use std::path::{Path, PathBuf};

use sphinx_quant::{ErrorKind, QuantError};

/// Every failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Opening, reading or writing failed, or the file changed while it was in use.
    #[error("{}: {source} — check the path, its permissions and the free space", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An input is not what this version reads.
    #[error("{}: {what}{}{} — {remedy}", file.display(), in_tensor(tensor), at_offset(offset))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What is wrong with it; printable.
        what: String,
        /// The tensor it is about, if one.
        tensor: Option<String>,
        /// Where in the file, in bytes, if known.
        offset: Option<u64>,
        /// What the user can do.
        remedy: String,
    },
    /// The caller asked for something that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// It does not fit the memory budget.
    #[error("{0}")]
    Budget(String),
    /// A verification found a difference.
    #[error("{0}")]
    Verify(String),
    /// A GGUF file, a recipe or a block format.
    #[error(transparent)]
    Quant(#[from] QuantError),
}

/// Result of this crate.
pub type Result<T, E = ConvertError> = std::result::Result<T, E>;

impl ConvertError {
    /// What the error means for the caller.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ConvertError::Io { .. } => ErrorKind::Io,
            ConvertError::Invalid { .. } => ErrorKind::Invalid,
            ConvertError::Usage(_) => ErrorKind::Usage,
            ConvertError::Budget(_) => ErrorKind::Budget,
            ConvertError::Verify(_) => ErrorKind::Verify,
            ConvertError::Quant(e) => e.kind(),
        }
    }

    /// A failed system call on `file`.
    pub fn io(file: &Path, source: std::io::Error) -> ConvertError {
        ConvertError::Io { file: file.to_owned(), source }
    }

    /// Something wrong with the contents of `file`, no tensor and no offset known.
    pub fn invalid(file: &Path, what: impl Into<String>, remedy: impl Into<String>) -> ConvertError {
        ConvertError::Invalid { file: file.to_owned(), what: what.into(), tensor: None, offset: None, remedy: remedy.into() }
    }

    /// The same error, about this tensor (an [`Invalid`](ConvertError::Invalid) one only).
    pub fn of_tensor(mut self, name: &str) -> ConvertError {
        if let ConvertError::Invalid { tensor, .. } = &mut self {
            *tensor = Some(name.to_owned());
        }
        self
    }

    /// The same error, at this place in the file, in bytes (an [`Invalid`](ConvertError::Invalid) one only).
    pub fn at(mut self, bytes: u64) -> ConvertError {
        if let ConvertError::Invalid { offset, .. } = &mut self {
            *offset = Some(bytes);
        }
        self
    }
}

/// `: tensor "NAME"` with the name made printable, or nothing.
fn in_tensor(name: &Option<String>) -> String {
    name.as_ref().map_or(String::new(), |n| format!(": tensor \"{}\"", sphinx_quant::error::printable(n)))
}

/// ` at offset 0x…`, or nothing.
fn at_offset(offset: &Option<u64>) -> String {
    offset.map_or(String::new(), |o| format!(" at offset {o:#x}"))
}
