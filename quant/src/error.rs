//! What can be wrong with a GGUF file, a recipe or a tensor.

use std::path::{Path, PathBuf};

/// What an error means for the caller: the command line turns it into an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense (exit 2).
    Usage,
    /// An input file is invalid or not supported (exit 3).
    Invalid,
    /// Missing file, permission, failed read or write, full disk, file changed (exit 4).
    Io,
    /// Does not fit the memory budget (exit 5).
    Budget,
    /// A verification or gate failed (exit 6).
    Verify,
    /// Stopped by the user (exit 130).
    Interrupted,
    /// A bug of ours (exit 1).
    Internal,
}

/// Every failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum QuantError {
    /// A read, write or map failed.
    #[error("{}: {source} — check the path, its permissions and the free space", shown(file))]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a GGUF file that this version reads.
    #[error("{}: {}{}{} — {remedy}", shown(file), one_line(what), in_tensor(tensor), at_offset(offset))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        what: String,
        /// The tensor it is about, if one.
        tensor: Option<String>,
        /// Where in the file, in bytes, if known.
        offset: Option<u64>,
        /// What the user can do.
        remedy: &'static str,
    },
    /// A row cannot be stored in the format.
    #[error(
        "tensor \"{}\": rows of {cols} elements are no multiple of {ty}'s block of {block} — choose another type for it",
        printable(tensor)
    )]
    RowLength {
        /// The tensor.
        tensor: String,
        /// Elements per row.
        cols: usize,
        /// The block format.
        ty: crate::GgmlType,
        /// Its block length.
        block: usize,
    },
    /// A recipe file or name cannot be understood.
    #[error("recipe {name}: {what}")]
    Recipe {
        /// The recipe's name or file.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The caller broke an order of this crate, such as writing more bytes than planned.
    #[error("a bug in this program: {0} — please report it")]
    Internal(String),
}

/// Result of this crate.
pub type Result<T, E = QuantError> = std::result::Result<T, E>;

impl QuantError {
    /// What the error means for the caller.
    pub fn kind(&self) -> ErrorKind {
        match self {
            QuantError::Io { .. } => ErrorKind::Io,
            QuantError::Invalid { .. } => ErrorKind::Invalid,
            QuantError::RowLength { .. } | QuantError::Recipe { .. } => ErrorKind::Usage,
            QuantError::Internal(_) => ErrorKind::Internal,
        }
    }
}

/// `: tensor "NAME"` with the name made printable, or nothing.
fn in_tensor(name: &Option<String>) -> String {
    name.as_ref().map_or(String::new(), |n| format!(": tensor \"{}\"", printable(n)))
}

/// ` at offset 0x…`, or nothing.
fn at_offset(offset: &Option<u64>) -> String {
    offset.map_or(String::new(), |o| format!(" at offset {o:#x}"))
}

/// A path on one line.
fn shown(path: &Path) -> String {
    one_line(&path.to_string_lossy())
}

/// `text` with its control characters escaped.
pub fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// A name from a file, safe to print: control characters escaped, cut at 200 bytes.
pub fn printable(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if out.len() + c.len_utf8() > 200 {
            out.push('…');
            break;
        }
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}
