//! Writes a `.pth` file as `torch.save` does: an uncompressed ZIP of a pickle and one entry per tensor.

use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::error::{ConvertError, Result};
use crate::pipeline::{Sink, Slot};

/// torch aligns data to this many bytes.
const ALIGNMENT: u16 = 64;

/// An archive being written, under its name with `.partial` behind. Dropping it unfinished removes it.
pub struct Archive {
    zip: Option<ZipWriter<BufWriter<File>>>,
    /// The tensor whose entry is open.
    open: Option<usize>,
    /// Bytes of every tensor.
    sizes: Vec<u64>,
    /// Everything in the archive lies under this name.
    stem: String,
    path: PathBuf,
    partial: PathBuf,
}

/// A whole archive on the disk that has not got its name yet. Dropping it removes it.
pub struct Closed {
    bytes: u64,
    path: PathBuf,
    partial: PathBuf,
}

impl Closed {
    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives the file its name.
    pub fn commit(mut self) -> Result<()> {
        let partial = std::mem::take(&mut self.partial);
        std::fs::rename(&partial, &self.path).map_err(|e| {
            self.partial = partial;
            ConvertError::io(&self.path, e)
        })
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        if !self.partial.as_os_str().is_empty() {
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

impl Archive {
    /// Begins an archive of bf16 tensors: names and shapes.
    pub fn create(path: &Path, tensors: &[(&str, &[usize])]) -> Result<Archive> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).map_err(|e| ConvertError::io(path, e))?;
        let sizes = tensors.iter().map(|(_, shape)| 2 * shape.iter().product::<usize>() as u64).collect();
        let zip = Some(ZipWriter::new(BufWriter::with_capacity(1 << 20, file)));
        let stem = path.file_stem().map_or("archive".into(), |s| s.to_string_lossy().into_owned());
        let mut archive = Archive { zip, open: None, sizes, stem, path: path.to_owned(), partial };
        archive.entry("data.pkl", &pickle(tensors))?;
        archive.entry("byteorder", b"little")?;
        Ok(archive)
    }

    fn io(&self, source: std::io::Error) -> ConvertError {
        ConvertError::io(&self.path, source)
    }

    fn start(&mut self, name: &str, bytes: u64) -> Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(ALIGNMENT)
            .large_file(bytes >= u64::from(u32::MAX));
        let name = format!("{}/{name}", self.stem);
        let Some(zip) = &mut self.zip else { return Ok(()) };
        zip.start_file(name, options).map_err(|e| self.io(e.into()))
    }

    fn entry(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.start(name, content.len() as u64)?;
        self.bytes(content)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(zip) = &mut self.zip else { return Ok(()) };
        zip.write_all(bytes).map_err(|e| self.io(e))
    }

    /// Writes the directory of the archive and puts everything on the disk, still under the `.partial` name.
    pub fn finish(mut self) -> Result<Closed> {
        self.entry("version", b"3\n")?;
        let mut closed = Closed { bytes: 0, path: self.path.clone(), partial: self.partial.clone() };
        let Some(zip) = self.zip.take() else { return Ok(closed) };
        let mut file = zip.finish().map_err(|e| self.io(e.into()))?;
        closed.bytes = file.stream_position().and_then(|n| file.flush().map(|()| n)).map_err(|e| self.io(e))?;
        file.get_ref().sync_all().map_err(|e| self.io(e))?;
        Ok(closed)
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if let Some(zip) = self.zip.take() {
            // Its own end would write the archive's, and complain on standard error where that fails.
            std::mem::forget(zip);
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

impl Sink for Archive {
    fn write(&mut self, job: usize, slot: &Slot) -> Result<()> {
        if self.open != Some(job) {
            self.start(&format!("data/{job}"), self.sizes[job])?;
            self.open = Some(job);
        }
        self.bytes(&slot.bytes)
    }
}

/// The description: `{"model": {name: tensor, …}}`, in protocol 2. What is said often goes into the memo the first time.
fn pickle(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    const STORAGE: u8 = 0;
    const CPU: u8 = 1;
    const BF16: u8 = 2;
    const REBUILD: u8 = 3;
    const ORDERED: u8 = 4;
    let mut p = Pickle { out: vec![0x80, 2], known: [false; 5] };
    p.out.push(b'}');
    p.text("model");
    p.out.push(b'}');
    p.out.push(b'(');
    for (index, (name, shape)) in tensors.iter().enumerate() {
        p.text(name);
        p.again(REBUILD, |p| p.global("torch._utils", "_rebuild_tensor_v2"));
        p.out.push(b'(');
        p.out.push(b'(');
        p.again(STORAGE, |p| p.text("storage"));
        p.again(BF16, |p| p.global("torch", "BFloat16Storage"));
        p.text(&index.to_string());
        p.again(CPU, |p| p.text("cpu"));
        p.int(shape.iter().product());
        p.out.extend(b"tQ"); // the storage
        p.int(0); // where in it the tensor starts
        p.tuple(shape);
        let stride = |i: usize| shape[i + 1..].iter().product();
        p.tuple(&(0..shape.len()).map(stride).collect::<Vec<usize>>());
        p.out.push(0x89); // needs no gradient
        p.again(ORDERED, |p| p.global("collections", "OrderedDict"));
        p.out.extend(b")R"); // no hooks
        p.out.extend(b"tR"); // the tensor
    }
    p.out.extend(b"us."); // into the inner dictionary, that into the outer, stop
    p.out
}

struct Pickle {
    out: Vec<u8>,
    known: [bool; 5],
}

impl Pickle {
    fn text(&mut self, s: &str) {
        self.out.push(b'X');
        self.out.extend((s.len() as u32).to_le_bytes());
        self.out.extend(s.as_bytes());
    }

    fn global(&mut self, module: &str, name: &str) {
        self.out.extend(format!("c{module}\n{name}\n").as_bytes());
    }

    /// Something said the first time, and from the memo from then on.
    fn again(&mut self, memo: u8, say: impl Fn(&mut Pickle)) {
        if self.known[usize::from(memo)] {
            self.out.extend([b'h', memo]);
        } else {
            say(self);
            self.out.extend([b'q', memo]);
            self.known[usize::from(memo)] = true;
        }
    }

    fn int(&mut self, n: usize) {
        match i32::try_from(n) {
            Ok(n) => {
                self.out.push(b'J');
                self.out.extend(n.to_le_bytes());
            }
            Err(_) => {
                self.out.extend([0x8a, 9]);
                self.out.extend((n as u64).to_le_bytes());
                self.out.push(0); // not negative
            }
        }
    }

    fn tuple(&mut self, items: &[usize]) {
        self.out.push(b'(');
        items.iter().for_each(|&n| self.int(n));
        self.out.push(b't');
    }
}
