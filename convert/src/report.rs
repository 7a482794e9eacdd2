//! What a conversion tells while it runs, and what it has done when it ends.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// Watches a long piece of work. Every method has an empty body: implement what you show.
///
/// Calls come from several threads, never two of `begin`, `tensor` and `end` at once.
pub trait Progress: Sync {
    /// Work named `what` starts; `total_bytes` will be announced through [`advance`](Progress::advance).
    fn begin(&self, what: &str, total_bytes: u64) {
        let _ = (what, total_bytes);
    }
    /// The tensor `name` is next, stored as `from`, to be written as `to`.
    fn tensor(&self, name: &str, from: &str, to: &str) {
        let _ = (name, from, to);
    }
    /// `bytes` more are done.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
    }
    /// Something the user should know; it does not stop the work.
    fn warn(&self, message: &str) {
        let _ = message;
    }
    /// The work announced by the last `begin` is over, well or badly.
    fn end(&self) {}
}

impl Progress for () {}

/// Work that is being watched; over when dropped, however that comes about.
pub(crate) struct Watched<'a>(&'a dyn Progress);

impl<'a> Watched<'a> {
    pub fn begin(progress: &'a dyn Progress, what: &str, total_bytes: u64) -> Watched<'a> {
        progress.begin(what, total_bytes);
        Watched(progress)
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What was written, or would be.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The files, language half first.
    pub files: Vec<FileReport>,
    /// Every tensor, in file order.
    pub rows: Vec<RowReport>,
    /// What was odd about the input.
    pub warnings: Vec<String>,
    /// The pair id of both halves; empty after a dry run, which reads no data.
    pub pair_id: String,
    /// Upper estimate of the memory used, in bytes.
    pub peak_bytes: u64,
    /// Whether nothing was written because only the price was asked for.
    pub dry_run: bool,
}

/// One file of a [`Report`].
#[derive(Clone, Debug, Serialize)]
pub struct FileReport {
    /// Where it is.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// How many tensors it holds.
    pub tensors: usize,
}

/// One tensor of a [`Report`].
#[derive(Clone, Debug, Serialize)]
pub struct RowReport {
    /// Its name in the input.
    pub source: String,
    /// Its name in the output.
    pub name: String,
    /// The number format it had.
    pub from: String,
    /// The number format it got.
    pub to: String,
    /// Its shape in the output, outermost first.
    pub shape: Vec<usize>,
    /// Bytes in the input.
    pub bytes_in: u64,
    /// Bytes in the output, padding not counted.
    pub bytes_out: u64,
}

/// A path as JSON, which has no other text than Unicode: other bytes of a name become U+FFFD.
pub(crate) fn lossy<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&path.display())
}

impl Report {
    /// Size of all files together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }
}
