//! Positioned reads that leave the page cache alone, so that the system never holds a second copy of an expert.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Offsets, lengths and buffers of reads past the page cache are multiples of this many bytes.
pub const ALIGN: usize = 4096;

/// What experts are read from; a test has one that fails.
pub trait Disk: Send + Sync {
    /// Reads into all of `buffer`, or up to the end of the file, from `offset` on, and says how many bytes that were. Offset, length
    /// and the place of the buffer are multiples of [`ALIGN`].
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// How it reads, for logs.
    fn how(&self) -> &'static str;
}

/// A file, read past the page cache where its file system allows that; elsewhere the pages are dropped after each read.
#[derive(Debug)]
pub struct DirectFile {
    direct: AtomicBool,
    unbuffered: Option<File>,
    file: File,
}

impl DirectFile {
    /// Opens the file at `path`, of `bytes` bytes.
    ///
    /// # Errors
    /// What the system says; also when the file has another length by now.
    pub fn open(path: &Path, bytes: u64) -> io::Result<DirectFile> {
        let file = File::open(path)?;
        let found = file.metadata()?.len();
        if found != bytes {
            return Err(io::Error::other(format!("the file changed while in use: it has {found} bytes, had {bytes}")));
        }
        let unbuffered = unbuffered(path);
        Ok(DirectFile { direct: AtomicBool::new(unbuffered.is_some()), unbuffered, file })
    }
}

/// The file once more, opened for reads past the page cache; `None` where there is no such thing.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn unbuffered(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;

    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).ok()?;
    std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).ok()
}

#[cfg(target_vendor = "apple")]
fn unbuffered(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    rustix::fs::fcntl_nocache(&file, true).ok()?;
    Some(file)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn unbuffered(_path: &Path) -> Option<File> {
    None
}

/// Reads until `buffer` is full or the file ends.
fn read_fully(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(file, &mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            // A read past the cache that ended at the end of the file cannot go on from there.
            Err(_) if done > 0 => break,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(done)
}

impl Disk for DirectFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Some(file) = self.unbuffered.as_ref().filter(|_| self.direct.load(Ordering::Relaxed)) {
            match read_fully(file, buffer, offset) {
                // Some file systems open a file so, and then do not read it so.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => self.direct.store(false, Ordering::Relaxed),
                done => return done,
            }
        }
        let done = read_fully(&self.file, buffer, offset)?;
        #[cfg(not(target_vendor = "apple"))]
        let _ = rustix::fs::fadvise(&self.file, offset, std::num::NonZeroU64::new(done as u64), rustix::fs::Advice::DontNeed);
        Ok(done)
    }

    fn how(&self) -> &'static str {
        if self.direct.load(Ordering::Relaxed) { "past the page cache" } else { "through the page cache" }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use sphinx_quant::tensor::Bytes;

    use super::*;

    #[test]
    fn reads_what_is_there_up_to_the_end() {
        // Beside the sources: the system's temporary directory may be one that has no unbuffered reads.
        for dir in [env!("CARGO_MANIFEST_DIR"), ""] {
            let mut file = if dir.is_empty() { tempfile::NamedTempFile::new() } else { tempfile::NamedTempFile::new_in(dir) }.unwrap();
            let data: Vec<u8> = (0..3 * ALIGN as u32 + 100).map(|i| (i % 251) as u8).collect();
            file.write_all(&data).unwrap();
            let disk = DirectFile::open(file.path(), data.len() as u64).unwrap();
            let mut bytes = Bytes::pages(4 * ALIGN).unwrap();
            let buffer = bytes.as_mut_slice().unwrap();
            assert_eq!(disk.read_at(buffer, 0).unwrap(), data.len());
            assert!(buffer[..data.len()] == data);
            assert_eq!(disk.read_at(&mut buffer[..ALIGN], 2 * ALIGN as u64).unwrap(), ALIGN);
            assert!(buffer[..ALIGN] == data[2 * ALIGN..3 * ALIGN]);
            assert_eq!(disk.read_at(buffer, 3 * ALIGN as u64).unwrap(), 100);
            assert_eq!(disk.read_at(buffer, 8 * ALIGN as u64).unwrap(), 0);
        }
    }

    #[test]
    fn another_length_is_another_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"abc").unwrap();
        let error = DirectFile::open(file.path(), 4).unwrap_err();
        assert!(error.to_string().contains("has 3 bytes, had 4"), "{error}");
    }
}
