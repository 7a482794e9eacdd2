//! Standard output, and files that appear whole or not at all.

use std::fmt::Arguments;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use safetensors::tensor::{Dtype, View};

use crate::failure::{Failure, shown};

/// Like `println!`, but a full disk and a reader that has gone away are errors, not panics.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::output::line(format_args!($($text)*))
    };
}
pub(crate) use say;

/// Like `eprintln!`, but a standard error that takes nothing changes nothing.
macro_rules! note {
    ($($text:tt)*) => {
        $crate::output::aside(format_args!($($text)*))
    };
}
pub(crate) use note;

/// Writes a line to standard error; see [`note`].
pub fn aside(text: Arguments<'_>) {
    let _unheard = writeln!(std::io::stderr().lock(), "{text}");
}

/// Writes a line to standard output; see [`say`].
pub fn line(text: Arguments<'_>) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").map_err(unsaid)
}

/// Writes `text` to standard output.
pub fn text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(unsaid)
}

/// The error of a write to standard output.
pub fn unsaid(error: std::io::Error) -> anyhow::Error {
    if error.kind() == std::io::ErrorKind::BrokenPipe { error.into() } else { Failure::io(Path::new("standard output"), &error) }
}

/// Refuses a file that exists, unless it may be replaced, whatever is no file, and a directory that does not exist.
/// To be called before any work.
pub fn free(path: &Path, force: bool) -> Result<()> {
    match path.symlink_metadata().map(|m| m.file_type()) {
        Ok(_) if !force => return Err(Failure::usage(format!("{}: exists — choose another name or say --force", shown(path)))),
        Ok(t) if !t.is_file() && !t.is_symlink() => {
            return Err(Failure::usage(format!("{}: is no regular file, so it is not replaced — choose another name", shown(path))));
        }
        _ => {}
    }
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    directory.metadata().map(|_| ()).map_err(|e| Failure::io(directory, &e))
}

/// Writes `path` through `path.partial`, synced and renamed.
pub fn write(path: &Path, fill: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let partial = crate::interrupt::partial(path);
    crate::interrupt::writes(path);
    let attempt = || -> std::io::Result<()> {
        fill(&partial)?;
        std::fs::File::open(&partial)?.sync_all()?;
        std::fs::rename(&partial, path)
    };
    attempt().map_err(|e| {
        let _gone = std::fs::remove_file(&partial);
        Failure::io(path, &e)
    })
}

/// A tensor to write: numbers of one type and a shape.
pub enum Array {
    F32(Vec<usize>, Vec<f32>),
    I64(Vec<usize>, Vec<i64>),
}

impl View for &Array {
    fn dtype(&self) -> Dtype {
        match self {
            Array::F32(..) => Dtype::F32,
            Array::I64(..) => Dtype::I64,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Array::F32(shape, _) | Array::I64(shape, _) => shape,
        }
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        match self {
            Array::F32(_, v) => bytemuck::cast_slice(v).into(),
            Array::I64(_, v) => bytemuck::cast_slice(v).into(),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Array::F32(_, v) => v.len() * 4,
            Array::I64(_, v) => v.len() * 8,
        }
    }
}

/// Writes tensors as safetensors.
pub fn safetensors(path: &Path, tensors: &[(String, Array)]) -> Result<()> {
    let views = tensors.iter().map(|(name, array)| (name.clone(), array));
    // In memory first: the crate's own way into a file goes through a name that nobody would clear away.
    let bytes = safetensors::serialize(views, None)?;
    write(path, |partial| std::fs::write(partial, &bytes))
}
