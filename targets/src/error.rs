//! What can go wrong while computing.

use sphinx_quant::{ErrorKind, GgmlType};

/// Every failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Shapes that do not fit: the model and its file disagree, or a bug of ours.
    #[error("{op}: {what}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// Expected and found.
        what: String,
    },
    /// The format is not one this operation takes.
    #[error("{op}: tensor \"{tensor}\" is {ty}, which this operation does not take")]
    Type {
        /// The operation.
        op: &'static str,
        /// The tensor.
        tensor: String,
        /// Its format.
        ty: GgmlType,
    },
    /// The device or its library failed.
    #[error("{device}: {what}")]
    Device {
        /// The device.
        device: String,
        /// What it said.
        what: String,
    },
    /// The system started no more threads.
    #[error("starting {count} threads: {source} — ask for fewer with --threads")]
    Threads {
        /// How many were wanted.
        count: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// A setting has a value it does not know.
    #[error("{name}={value} is not known — {remedy}")]
    Option {
        /// The setting: an environment variable or a flag.
        name: &'static str,
        /// Its value.
        value: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A buffer does not fit into memory.
    #[error("no memory for {bytes} bytes ({what})")]
    Memory {
        /// What was asked for.
        bytes: usize,
        /// What it was for.
        what: &'static str,
    },
}

impl TargetError {
    /// What the error means for the caller.
    pub fn kind(&self) -> ErrorKind {
        match self {
            TargetError::Shape { .. } | TargetError::Type { .. } => ErrorKind::Invalid,
            TargetError::Device { .. } => ErrorKind::Internal,
            TargetError::Threads { .. } => ErrorKind::Io,
            TargetError::Option { .. } => ErrorKind::Usage,
            TargetError::Memory { .. } => ErrorKind::Budget,
        }
    }
}

#[cfg(feature = "candle")]
impl From<candle_core::Error> for TargetError {
    fn from(e: candle_core::Error) -> Self {
        // Without the backtrace that it carries for developers.
        fn plain(e: &candle_core::Error) -> String {
            match e {
                candle_core::Error::WithBacktrace { inner, .. } => plain(inner),
                candle_core::Error::Context { inner, context } => format!("{context}: {}", plain(inner)),
                e => e.to_string(),
            }
        }
        TargetError::Device { device: "candle".into(), what: plain(&e) }
    }
}

/// Result of this crate.
pub type Result<T, E = TargetError> = std::result::Result<T, E>;
