//! Tensors through threads: one reads, many work, one writes, in pieces of a few MiB.
//!
//! A fixed number of slots goes round, so memory is bounded whatever the size of a tensor. Pieces are whole rows and are
//! written in order, so the result does not depend on the number of threads or the size of a piece.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;

use crossbeam_channel::bounded;
use sphinx_quant::block::quantize;
use sphinx_quant::gguf::Writer;
use sphinx_quant::imatrix::Imatrix;
use sphinx_quant::quality::Quality;
use sphinx_quant::{GgmlType, QuantError};

use crate::error::{ConvertError, Result};
use crate::report::Progress;

/// A piece on its way. Buffers keep their room from one piece to the next.
#[derive(Default)]
pub(crate) struct Slot {
    /// Rows as numbers.
    pub floats: Vec<f32>,
    /// Rows as they are written.
    pub bytes: Vec<u8>,
    /// For whoever works on it.
    pub scratch: Vec<f32>,
    /// What the work has measured.
    pub quality: Quality,
}

/// Where a tensor's rows come from and what is done to them.
pub(crate) trait Source: Sync {
    /// Reads `rows`. Called on one thread, in order.
    fn read(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
        let _ = (rows, slot);
        Ok(())
    }
    /// Works on `rows` until `slot.bytes` is what shall be written. Called on any thread, in any order.
    fn make(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()>;
}

/// One tensor's worth of work.
pub(crate) struct Job<'a> {
    /// What does it.
    pub source: Box<dyn Source + 'a>,
    /// Its name in the input.
    pub name: &'a str,
    /// The format it has.
    pub from: String,
    /// The format it gets.
    pub to: String,
    /// Rows to read.
    pub rows: usize,
    /// Numbers in such a row.
    pub cols: usize,
    /// Whether it cannot be cut.
    pub whole: bool,
    /// Its size in the input, for the progress.
    pub bytes_in: u64,
}

impl Job<'_> {
    fn piece_rows(&self, piece_bytes: u64) -> usize {
        let row = 4 * self.cols.max(1) as u64;
        if self.whole { self.rows.max(1) } else { ((piece_bytes / row) as usize).max(1) }
    }
}

/// The importance of a tensor's columns, expert by expert; what is no stack is one expert.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    /// Rows of an expert.
    rows: usize,
    experts: Vec<Option<Vec<f32>>>,
}

impl Weights {
    /// All columns alike.
    pub fn none() -> Weights {
        Weights::default()
    }

    /// What `imatrix` knows of experts `experts` of the tensor called `name`, each `rows` × `cols`. A stack goes by the name of
    /// the whole.
    ///
    /// # Errors
    /// `Invalid` when the matrix knows the tensor with another shape.
    pub fn of(imatrix: Option<&Imatrix>, name: &str, experts: Range<usize>, rows: usize, cols: usize) -> Result<Weights> {
        let Some(imatrix) = imatrix else { return Ok(Weights::none()) };
        let experts = experts.map(|e| imatrix.weights(name, e, cols)).collect::<sphinx_quant::Result<Vec<_>>>()?;
        Ok(Weights { rows, experts })
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.experts.iter().all(Option::is_none)
    }

    /// Memory they take.
    pub fn bytes(&self) -> u64 {
        self.experts.iter().flatten().map(|w| 4 * w.len() as u64).sum()
    }

    /// Appends `values`, which are whole rows of `cols` beginning with row `first` of the tensor, to `out` as `ty`.
    pub fn encode(&self, ty: GgmlType, first: usize, cols: usize, values: &[f32], out: &mut Vec<u8>) {
        let start = out.len();
        let row_bytes = cols / ty.block_len() * ty.block_bytes();
        out.resize(start + values.len() / cols.max(1) * row_bytes, 0);
        let out = &mut out[start..];
        if self.is_empty() {
            return quantize(ty, values, None, out);
        }
        for (i, (row, out)) in values.chunks_exact(cols).zip(out.chunks_exact_mut(row_bytes)).enumerate() {
            let weights = self.experts.get((first + i) / self.rows.max(1)).and_then(Option::as_deref);
            quantize(ty, row, weights, out);
        }
    }
}

/// What takes the finished pieces, in order.
pub(crate) trait Sink: Send {
    /// Takes a piece of job number `job`.
    fn write(&mut self, job: usize, slot: &Slot) -> Result<()>;
}

impl Sink for Writer {
    fn write(&mut self, _job: usize, slot: &Slot) -> Result<()> {
        Ok(Writer::write(self, &slot.bytes)?)
    }
}

/// How much may be under way at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    threads: usize,
    slots: usize,
    piece_bytes: u64,
    /// Upper estimate of the memory used, in bytes.
    pub peak_bytes: u64,
}

/// Budget when nobody states one.
pub(crate) const DEFAULT_MEMORY: u64 = 1 << 30;
/// The program itself, thread stacks, file buffers.
const BASE: u64 = 24 << 20;
/// Pieces smaller than this cost more in bookkeeping than they save.
const SMALLEST_PIECE: u64 = 64 << 10;
const LARGEST_PIECE: u64 = 4 << 20;
/// All slots together, unless the rows are too wide for it.
const ALL_SLOTS: u64 = 96 << 20;

impl Limits {
    /// Divides a budget. `fixed`: bytes held all the while (headers, tables); `shapes`: rows, columns and wholeness of
    /// every tensor.
    ///
    /// # Errors
    /// `Budget` when not even three slots of the widest row fit.
    pub fn plan(max_memory: Option<u64>, threads: usize, fixed: u64, shapes: impl Iterator<Item = (usize, usize, bool)>) -> Result<Limits> {
        let (mut widest, mut whole) = (SMALLEST_PIECE, 0u64);
        for (rows, cols, is_whole) in shapes {
            if is_whole {
                whole = whole.max(4 * rows as u64 * cols as u64);
            } else {
                widest = widest.max(4 * cols as u64);
            }
        }
        let threads = threads.max(1);
        let budget = max_memory.unwrap_or(DEFAULT_MEMORY);
        let held = BASE + fixed + 3 * whole;
        let room = budget.saturating_sub(held);
        // A piece lies in a slot twice: as numbers and as bytes, which are never more.
        let size = |slots: usize| (room / (2 * slots as u64)).min(ALL_SLOTS / (2 * slots as u64)).min(LARGEST_PIECE);
        let fits = |slots: usize| room / (2 * slots as u64) >= widest;
        let wanted = 2 * threads + 2;
        let Some(slots) = [wanted, threads + 2, 3].into_iter().find(|&s| fits(s)) else {
            let least = (held + 6 * widest).div_ceil(1 << 20);
            let what = format!("the work needs {least} MiB of memory, the budget is {} MiB — raise --max-memory", budget >> 20);
            return Err(ConvertError::Budget(what));
        };
        let piece_bytes = size(slots).max(widest);
        Ok(Limits { threads, slots, piece_bytes, peak_bytes: held + 2 * slots as u64 * piece_bytes })
    }
}

/// A piece that waits for a worker.
struct Task {
    seq: u64,
    job: usize,
    rows: Range<usize>,
    slot: Slot,
}

/// A piece that waits for the writer.
struct Done {
    seq: u64,
    job: usize,
    rows: Range<usize>,
    slot: Result<Slot>,
}

/// Runs `jobs` in order into `sink`. Calls everything of `progress` but `begin` and `end`.
///
/// # Errors
/// The first one, in the order of the pieces, of reading, working or writing.
pub(crate) fn run(jobs: &[Job<'_>], sink: &mut dyn Sink, limits: &Limits, progress: &dyn Progress) -> Result<()> {
    let (free_in, free_out) = bounded::<Slot>(limits.slots);
    let (task_in, task_out) = bounded::<Task>(limits.slots);
    let (done_in, done_out) = bounded::<Done>(limits.slots);
    for _ in 0..limits.slots {
        let _ = free_in.send(Slot::default());
    }
    thread::scope(|scope| {
        for _ in 0..limits.threads {
            let (task_out, done_in) = (task_out.clone(), done_in.clone());
            scope.spawn(move || {
                for Task { seq, job, rows, mut slot } in task_out {
                    // A panic here would leave the writer waiting for this piece.
                    let made = catch_unwind(AssertUnwindSafe(|| jobs[job].source.make(rows.clone(), &mut slot)));
                    let slot = match made {
                        Ok(result) => result.map(|()| slot),
                        Err(_) => Err(QuantError::Internal(format!("a thread panicked at tensor \"{}\"", jobs[job].name)).into()),
                    };
                    if done_in.send(Done { seq, job, rows, slot }).is_err() {
                        return;
                    }
                }
            });
        }
        drop((task_out, done_in));

        let writer = scope.spawn(move || -> Result<()> {
            let mut waiting = BTreeMap::new();
            let mut next = 0;
            for done in done_out {
                waiting.insert(done.seq, done);
                while let Some(Done { job, rows, slot, .. }) = waiting.remove(&next) {
                    let mut slot = slot?;
                    sink.write(job, &slot)?;
                    next += 1;
                    let Job { bytes_in, rows: all, .. } = &jobs[job];
                    let bytes_at = |row: usize| (u128::from(*bytes_in) * row as u128 / (*all).max(1) as u128) as u64;
                    progress.advance(bytes_at(rows.end) - bytes_at(rows.start));
                    if 4 * slot.floats.capacity() as u64 > limits.piece_bytes {
                        slot = Slot::default(); // a whole table has been here; do not keep its room
                    }
                    slot.quality = Quality::default();
                    let _ = free_in.send(slot);
                }
            }
            Ok(())
        });

        let read = || -> Result<()> {
            let mut seq = 0;
            for (index, job) in jobs.iter().enumerate() {
                progress.tensor(job.name, &job.from, &job.to);
                let step = job.piece_rows(limits.piece_bytes);
                for start in (0..job.rows).step_by(step) {
                    let rows = start..(start + step).min(job.rows);
                    // Without a slot the writer has failed and says why.
                    let Ok(mut slot) = free_out.recv() else { return Ok(()) };
                    job.source.read(rows.clone(), &mut slot)?;
                    if task_in.send(Task { seq, job: index, rows, slot }).is_err() {
                        return Ok(());
                    }
                    seq += 1;
                }
            }
            Ok(())
        };
        let read = read();
        drop(task_in);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(read)
    })
}

/// Refuses a file that exists, unless told otherwise, and whatever is no file always.
pub(crate) fn refuse_existing(path: &Path, force: bool) -> Result<()> {
    match path.symlink_metadata().map(|m| m.file_type()) {
        Err(_) => Ok(()),
        Ok(_) if !force => {
            Err(ConvertError::Usage(format!("{}: exists — use --force to replace it, or choose another name", path.display())))
        }
        Ok(t) if t.is_file() || t.is_symlink() => Ok(()),
        Ok(_) => Err(ConvertError::Usage(format!("{}: is no regular file, so it is not replaced — choose another name", path.display()))),
    }
}

/// Fails when the file system of `path`'s directory has less than `need` bytes left.
pub(crate) fn check_free_space(path: &Path, need: u64) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(parent).map_err(|e| ConvertError::io(parent, e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < need {
            let mib = |n: u64| n.div_ceil(1 << 20);
            let what = format!("no space: {} MiB are needed, {} MiB are free", mib(need), mib(free));
            return Err(ConvertError::io(path, std::io::Error::new(std::io::ErrorKind::StorageFull, what)));
        }
    }
    #[cfg(not(unix))]
    let _ = (parent, need);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Counter {
        fail_at: Option<usize>,
        panic_at: Option<usize>,
        reads: AtomicUsize,
    }

    impl Source for &Counter {
        fn read(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            slot.floats.clear();
            slot.floats.extend(rows.map(|r| r as f32));
            Ok(())
        }
        fn make(&self, rows: Range<usize>, slot: &mut Slot) -> Result<()> {
            if self.fail_at.is_some_and(|r| rows.contains(&r)) {
                return Err(ConvertError::Verify(format!("row {}", self.fail_at.unwrap_or(0))));
            }
            assert!(!self.panic_at.is_some_and(|r| rows.contains(&r)), "as asked");
            slot.bytes.clear();
            slot.bytes.extend(slot.floats.iter().flat_map(|x| x.to_le_bytes()));
            Ok(())
        }
    }

    #[derive(Default)]
    struct Collected(Vec<u8>, Option<usize>);

    impl Sink for Collected {
        fn write(&mut self, _job: usize, slot: &Slot) -> Result<()> {
            self.0.extend(&slot.bytes);
            match self.1 {
                Some(limit) if self.0.len() > limit => Err(ConvertError::Usage("full".into())),
                _ => Ok(()),
            }
        }
    }

    fn run_counter(threads: usize, counter: &Counter, limit: Option<usize>) -> (Result<()>, Vec<u8>) {
        let job = |name| Job {
            source: Box::new(counter),
            name,
            from: "a".into(),
            to: "b".into(),
            rows: 5000,
            cols: 1,
            whole: false,
            bytes_in: 77,
        };
        let jobs = [job("x"), job("y")];
        let mut sink = Collected(vec![], limit);
        let limits = Limits { threads, slots: threads + 2, piece_bytes: 400, peak_bytes: 0 };
        let result = run(&jobs, &mut sink, &limits, &());
        (result, sink.0)
    }

    fn counter() -> Counter {
        Counter { fail_at: None, panic_at: None, reads: AtomicUsize::new(0) }
    }

    #[test]
    fn order_does_not_depend_on_threads() {
        let want: Vec<u8> = [0..5000, 0..5000].into_iter().flatten().flat_map(|r| (r as f32).to_le_bytes()).collect();
        for threads in [1, 2, 7] {
            let (result, bytes) = run_counter(threads, &counter(), None);
            result.unwrap();
            assert!(bytes == want);
        }
    }

    #[test]
    fn failures_end_the_run() {
        let c = Counter { fail_at: Some(2500), ..counter() };
        assert!(matches!(run_counter(3, &c, None).0, Err(ConvertError::Verify(_))));
        let c = Counter { panic_at: Some(2500), ..counter() };
        assert_eq!(run_counter(3, &c, None).0.unwrap_err().kind(), sphinx_quant::ErrorKind::Internal);
        let c = counter();
        assert!(matches!(run_counter(3, &c, Some(100)).0, Err(ConvertError::Usage(_))));
        assert!(c.reads.load(Ordering::Relaxed) < 100);
    }

    #[test]
    fn budgets() {
        let shapes = || [(32000, 2048, false), (1370, 1536, true)].into_iter();
        let plenty = Limits::plan(None, 2, 4 << 20, shapes()).unwrap();
        assert!(plenty.peak_bytes < 150 << 20, "{plenty:?}");
        let tight = Limits::plan(Some(60 << 20), 8, 4 << 20, shapes()).unwrap();
        assert!(tight.peak_bytes <= 60 << 20 && tight.piece_bytes >= 8192, "{tight:?}");
        let error = Limits::plan(Some(16 << 20), 2, 4 << 20, shapes()).unwrap_err();
        assert_eq!(error.kind(), sphinx_quant::ErrorKind::Budget);
        assert!(error.to_string().contains("16 MiB"), "{error}");
    }
}
