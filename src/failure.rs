//! Errors become one line and an exit code.

use std::process::ExitCode;

use sphinx_convert::error::ConvertError;
use sphinx_quant::error::printable;
use sphinx_quant::{ErrorKind, QuantError};
use sphinx_runtime::RuntimeError;
use sphinx_targets::TargetError;

/// A failure that a command itself found, with the meaning that decides the exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    kind: ErrorKind,
    message: String,
}

impl Failure {
    /// The command line asks for something that makes no sense.
    pub fn usage(message: impl Into<String>) -> anyhow::Error {
        Failure { kind: ErrorKind::Usage, message: message.into() }.into()
    }

    /// A verification did not hold.
    pub fn verify(message: impl Into<String>) -> anyhow::Error {
        Failure { kind: ErrorKind::Verify, message: message.into() }.into()
    }

    /// An input is invalid.
    pub fn invalid(message: impl Into<String>) -> anyhow::Error {
        Failure { kind: ErrorKind::Invalid, message: message.into() }.into()
    }

    /// A read or write failed.
    pub fn io(path: &std::path::Path, error: &std::io::Error) -> anyhow::Error {
        let message = format!("{}: {error} — check the path, its permissions and the free space", path.display());
        Failure { kind: ErrorKind::Io, message }.into()
    }
}

/// What `error` means; anything that no crate of ours classified is a bug of ours.
fn kind(error: &anyhow::Error) -> ErrorKind {
    for cause in error.chain() {
        if let Some(e) = cause.downcast_ref::<Failure>() {
            return e.kind;
        } else if let Some(e) = cause.downcast_ref::<RuntimeError>() {
            return e.kind();
        } else if let Some(e) = cause.downcast_ref::<ConvertError>() {
            return e.kind();
        } else if let Some(e) = cause.downcast_ref::<QuantError>() {
            return e.kind();
        } else if let Some(e) = cause.downcast_ref::<TargetError>() {
            return e.kind();
        } else if let Some(e) = cause.downcast_ref::<std::io::Error>() {
            // `sphinx inspect … | head` is no failure of the reader's.
            return if e.kind() == std::io::ErrorKind::BrokenPipe { ErrorKind::Interrupted } else { ErrorKind::Io };
        }
    }
    ErrorKind::Internal
}

/// The exit code of the contract.
fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Internal => 1,
        ErrorKind::Usage => 2,
        ErrorKind::Invalid => 3,
        ErrorKind::Io => 4,
        ErrorKind::Budget => 5,
        ErrorKind::Verify => 6,
        ErrorKind::Interrupted => 130,
    }
}

/// Prints `error` on one line of standard error and gives its exit code.
pub fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    let kind = kind(error);
    let code = code(kind);
    if error.chain().any(|c| c.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)) {
        return ExitCode::SUCCESS;
    }
    // A name out of a file may hold anything; the terminal sees one line of printable text.
    let text: String = format!("{error:#}").chars().flat_map(escape).collect();
    if json {
        eprintln!("{}", serde_json::json!({ "error": text, "kind": format!("{kind:?}").to_lowercase(), "code": code }));
    } else {
        eprintln!("error: {text}");
    }
    ExitCode::from(code)
}

fn escape(c: char) -> Vec<char> {
    if c.is_control() { c.escape_default().collect() } else { vec![c] }
}

/// A path, safe to print in a line.
pub fn shown(path: &std::path::Path) -> String {
    printable(&path.to_string_lossy())
}
