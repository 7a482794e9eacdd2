//! Signals. Ctrl-C and SIGTERM: unfinished outputs, temporary folders and control groups are removed, then exit 130. A file size limit
//! is an I/O error, and so is a model file that is cut short while it is mapped.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// Folders of ours under the system's temporary one.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// A control group of ours, with a process of ours in it.
static GROUP: Mutex<Option<PathBuf>> = Mutex::new(None);
#[cfg(unix)]
static BEYOND_LIMIT: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Starts listening.
pub fn listen() {
    let set = ctrlc::set_handler(|| {
        for path in UNFINISHED.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            let _gone = std::fs::remove_file(path);
        }
        for folder in FOLDERS.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            let _gone = std::fs::remove_dir_all(folder);
        }
        // Held to the end: who makes a group or has seen its process end waits here, and says nothing of it.
        let group = GROUP.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(group) = group.as_deref() {
            crate::group::end(group);
        }
        std::process::exit(130);
    });
    if let Err(e) = set {
        tracing::debug!("no handler for Ctrl-C: {e}");
    }
    // Taken, it leaves a write beyond the limit on file sizes as an error; untaken, it ends the process.
    #[cfg(unix)]
    if let Err(e) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, &BEYOND_LIMIT) {
        tracing::debug!("no handler for the limit on file sizes: {e}");
    }
}

/// Remembers that the weights of `model` are mapped: a file that is cut short while pages of it are missing makes the system send a
/// signal, and this program says what happened and ends as for any other read that failed.
#[cfg(unix)]
pub fn maps(model: &Path) {
    let name = sphinx_quant::error::printable(&model.display().to_string());
    let message = format!("error: {name}: the model file changed while in use — leave it alone while it runs, or get it again\n");
    let end = move || {
        let _ = rustix::io::write(rustix::stdio::stderr(), message.as_bytes());
        signal_hook::low_level::exit(4);
    };
    // SAFETY: the action makes one system call on bytes that were made before, and ends the process: nothing that a signal may
    // not do, and nothing is gone on with.
    if let Err(e) = unsafe { signal_hook::low_level::register(signal_hook::consts::SIGBUS, end) } {
        tracing::debug!("no handler for files that are cut short: {e}");
    }
}

/// Where there is no such signal.
#[cfg(not(unix))]
pub fn maps(_model: &Path) {}

/// Remembers that `path` is about to be written through `path.partial`.
pub fn writes(path: &Path) {
    UNFINISHED.lock().unwrap_or_else(|e| e.into_inner()).push(partial(path));
}

/// Remembers that `folder` is a temporary one of ours.
pub fn holds(folder: &Path) {
    FOLDERS.lock().unwrap_or_else(|e| e.into_inner()).push(folder.to_owned());
}

/// Remembers the control group that this process made last, until it is gone.
pub fn groups(group: Option<&Path>) {
    *GROUP.lock().unwrap_or_else(|e| e.into_inner()) = group.map(Path::to_owned);
}

/// The name under which `path` is written before it is whole.
pub fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}
