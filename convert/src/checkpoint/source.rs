//! A file that is read at positions, never mapped: what was read can be dropped from memory again.

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{ConvertError, Result};

/// From this length on, pages are given back after they were read.
const DROP_BYTES: usize = 64 << 10;

/// An open regular file, or bytes that stand for one.
pub(super) struct Source {
    path: PathBuf,
    bytes: u64,
    data: Data,
}

enum Data {
    File { file: File, seen: Stamp },
    Memory(Vec<u8>),
}

/// What tells whether a file is still the one that was opened.
#[derive(Clone, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<std::time::SystemTime>,
    inode: Option<(u64, u64)>,
}

impl Stamp {
    fn of(meta: &Metadata) -> Stamp {
        Stamp { bytes: meta.len(), modified: meta.modified().ok(), inode: inode(meta) }
    }
}

#[cfg(unix)]
fn inode(meta: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((meta.dev(), meta.ino()))
}

#[cfg(not(unix))]
fn inode(_: &Metadata) -> Option<(u64, u64)> {
    None
}

/// Opens without waiting for a writer, should the name have become a pipe since it was looked at.
fn open_now(path: &Path) -> io::Result<File> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    }
    options.open(path)
}

/// A failed open: a loop of links is a broken input, everything else a matter of the system.
fn opening(path: &Path, error: io::Error) -> ConvertError {
    #[cfg(unix)]
    if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
        return ConvertError::invalid(path, "is a loop of symbolic links", "put the file itself there");
    }
    ConvertError::io(path, error)
}

impl Source {
    /// Opens a regular file; anything else (a pipe, a device, a directory) is refused without being opened.
    pub fn open(path: &Path) -> Result<Source> {
        let not_regular = || ConvertError::invalid(path, "is not a regular file", "give a checkpoint file, or the directory that holds it");
        if !std::fs::metadata(path).map_err(|e| opening(path, e))?.is_file() {
            return Err(not_regular());
        }
        let file = open_now(path).map_err(|e| opening(path, e))?;
        let meta = file.metadata().map_err(|e| ConvertError::io(path, e))?;
        if !meta.is_file() {
            return Err(not_regular());
        }
        Ok(Source { path: path.to_owned(), bytes: meta.len(), data: Data::File { file, seen: Stamp::of(&meta) } })
    }

    /// Bytes that stand for the file `path`.
    pub fn memory(path: &Path, bytes: Vec<u8>) -> Source {
        Source { path: path.to_owned(), bytes: bytes.len() as u64, data: Data::Memory(bytes) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length when opened.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Device and inode, where the system has them.
    pub fn inode(&self) -> Option<(u64, u64)> {
        match &self.data {
            Data::File { seen, .. } => seen.inode,
            Data::Memory(_) => None,
        }
    }

    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// [`ConvertError::Io`], also when the file has become shorter.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        match &self.data {
            Data::File { file, .. } => read_at(file, offset, out).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => {
                    ConvertError::io(&self.path, io::Error::new(e.kind(), "the file became shorter while it was read"))
                }
                _ => ConvertError::io(&self.path, e),
            }),
            Data::Memory(bytes) => {
                let start = usize::try_from(offset).ok();
                match start.and_then(|s| bytes.get(s..s.checked_add(out.len())?)) {
                    Some(found) => {
                        out.copy_from_slice(found);
                        Ok(())
                    }
                    None => Err(ConvertError::io(&self.path, io::ErrorKind::UnexpectedEof.into())),
                }
            }
        }
    }

    /// `count` bytes from `offset`. The caller has checked that the file holds them, and that `count` is small.
    pub fn read_vec(&self, offset: u64, count: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; count];
        self.read(offset, &mut out)?;
        Ok(out)
    }

    /// Tells the system that these bytes will not be needed again soon. A hint: short stretches are left alone.
    pub fn forget(&self, offset: u64, count: usize) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let (Data::File { file, .. }, Some(length)) = (&self.data, std::num::NonZeroU64::new(count as u64))
            && count >= DROP_BYTES
        {
            // Only a hint: that it failed changes nothing.
            let _ = rustix::fs::fadvise(file, offset, Some(length), rustix::fs::Advice::DontNeed);
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let _ = (offset, count >= DROP_BYTES);
    }

    /// Checks that the path still leads to the file that was opened, and that nobody wrote to it.
    pub fn unchanged(&self) -> Result<()> {
        let Data::File { file, seen } = &self.data else { return Ok(()) };
        let open = file.metadata().map(|m| Stamp::of(&m));
        let named = std::fs::metadata(&self.path).map(|m| Stamp::of(&m));
        match (open, named) {
            (Ok(open), Ok(named)) if open == *seen && named == *seen => Ok(()),
            (Err(e), _) | (_, Err(e)) => Err(ConvertError::io(&self.path, e)),
            _ => Err(ConvertError::io(&self.path, io::Error::other("the file changed while it was being read"))),
        }
    }
}

#[cfg(unix)]
fn read_at(file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !out.is_empty() {
        match file.seek_read(out, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                out = &mut out[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
