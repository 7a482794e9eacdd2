//! Threads: fork and join in about a microsecond, spinning first and parking when there is nothing to do.
//!
//! One job runs at a time. It is cut into as many contiguous ranges as there are threads, always in the same way,
//! and the calling thread takes the first; nothing is allocated. The way work is cut never shows in results,
//! because no operation adds up across ranges.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// A piece of work: called with the worker's number and its range.
type Job<'a> = dyn Fn(usize, Range<usize>) + Sync + 'a;

/// How long an idle worker looks for work before it parks, in turns of some 10 to 40 ns.
const SPINS_BEFORE_PARK: u32 = 4_000;
/// How long the caller spins for the last worker before it lets others run between looks.
const SPINS_BEFORE_YIELD: u32 = 2_000;

/// Something with cache lines of its own, so that whoever waits for it is not disturbed by its neighbours.
#[repr(align(128))]
struct Apart<T>(T);

/// What caller and workers share. A run moves two cache lines each way: `start` to the workers, `done` back.
struct Shared {
    start: Apart<Start>,
    /// Per worker, the number of the last job it finished.
    done: Vec<Apart<AtomicU32>>,
    /// Per worker, whether it sleeps or is about to.
    parked: Vec<Apart<AtomicBool>>,
    stop: AtomicBool,
    panicked: AtomicBool,
    /// The first panic of the current job.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    threads: usize,
}

/// What tells the workers to start.
struct Start {
    /// Number of the current job; a change is the signal.
    epoch: AtomicU32,
    /// The current job and its length, valid from the change of `epoch` until all workers are done with it.
    job: UnsafeCell<Option<(*const Job<'static>, usize)>>,
}

// SAFETY: `job` is written by the caller only while no worker reads it: before `epoch` is changed (release), and
// after every worker has said that it is done with the job before (acquire). Everything else is `Sync` itself.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` closure, and only used while the caller of `run` keeps it alive.
unsafe impl Send for Shared {}

/// A fixed number of threads, the caller being one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
    /// One job at a time.
    turn: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` threads (at least one), of which it starts all but the caller's.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            start: Apart(Start { epoch: AtomicU32::new(0), job: UnsafeCell::new(None) }),
            done: (0..threads).map(|_| Apart(AtomicU32::new(0))).collect(),
            parked: (0..threads).map(|_| Apart(AtomicBool::new(false))).collect(),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
            threads,
        });
        let mut pool = Pool { shared, workers: Vec::new(), handles: Vec::new(), turn: Mutex::new(()) };
        for worker in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let handle = thread::Builder::new().name(format!("sphinx-{worker}")).spawn(move || work(&shared, worker))?;
            pool.handles.push(handle.thread().clone());
            pool.workers.push(handle);
        }
        Ok(pool)
    }

    /// How many threads there are, the caller's included.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Calls `job(worker, range)` for the ranges of `0..n` that the threads get, and returns when all are done.
    ///
    /// Workers whose range is empty are not called. A panic in any of them is passed on, after all have finished.
    /// `job` must not call `run` on the same pool.
    pub fn run(&self, n: usize, job: &Job<'_>) {
        let threads = self.shared.threads;
        if threads == 1 || n <= 1 {
            if n > 0 {
                job(0, 0..n);
            }
            return;
        }
        let turn: MutexGuard<'_, ()> = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime is forgotten; `run` does not return, nor unwind, before all workers are done, and
        // none touches the job after it said so.
        let forever: *const Job<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(job)) };
        // SAFETY: no worker reads `job` now: all were done before the previous `run` returned.
        unsafe { *shared.start.0.job.get() = Some((forever, n)) };
        // Only the holder of `turn` changes the epoch.
        let epoch = shared.start.0.epoch.load(Ordering::Relaxed).wrapping_add(1);
        shared.start.0.epoch.store(epoch, Ordering::SeqCst);
        for (parked, handle) in shared.parked[1..].iter().zip(&self.handles) {
            if parked.0.load(Ordering::SeqCst) {
                handle.unpark();
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| job(0, part(n, threads, 0))));
        let mut spins = 0;
        for done in &shared.done[1..] {
            while done.0.load(Ordering::Acquire) != epoch {
                if spins < SPINS_BEFORE_YIELD {
                    spins += 1;
                    spin_loop();
                } else {
                    thread::yield_now();
                }
            }
        }
        let theirs = if shared.panicked.load(Ordering::Relaxed) {
            shared.panicked.store(false, Ordering::Relaxed);
            shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
        } else {
            None
        };
        drop(turn);
        if let Err(panic) = mine {
            resume_unwind(panic);
        }
        if let Some(panic) = theirs {
            resume_unwind(panic);
        }
    }

    /// Gives the threads the rows of `data` (each `width` long) in contiguous groups: `job(worker, first row, rows)`.
    pub fn rows<T: Send>(&self, data: &mut [T], width: usize, job: &(dyn Fn(usize, usize, &mut [T]) + Sync)) {
        if width == 0 {
            return;
        }
        let rows = data.len() / width;
        let data = Disjoint::new(data);
        self.run(rows, &|worker, range| {
            // SAFETY: `run` gives every row to one worker.
            let mine = unsafe { data.piece(range.start * width..range.end * width) };
            job(worker, range.start, mine);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.start.0.epoch.fetch_add(1, Ordering::SeqCst);
        for handle in &self.handles {
            handle.unpark();
        }
        for worker in self.workers.drain(..) {
            // A worker never panics by itself: jobs are caught.
            let _ = worker.join();
        }
    }
}

/// The range of `0..n` that worker `worker` of `threads` gets.
pub fn part(n: usize, threads: usize, worker: usize) -> Range<usize> {
    let cut = |w: usize| w * (n / threads) + w.min(n % threads);
    cut(worker)..cut(worker + 1)
}

/// A worker's life.
fn work(shared: &Shared, worker: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        loop {
            let epoch = shared.start.0.epoch.load(Ordering::Acquire);
            if epoch != seen {
                seen = epoch;
                break;
            }
            if spins < SPINS_BEFORE_PARK {
                spins += 1;
                spin_loop();
                continue;
            }
            // Announce, look again, then sleep: either this look sees the new epoch, or the caller sees the flag.
            shared.parked[worker].0.store(true, Ordering::SeqCst);
            while shared.start.0.epoch.load(Ordering::SeqCst) == seen {
                thread::park();
            }
            shared.parked[worker].0.store(false, Ordering::SeqCst);
        }
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: written before the epoch that was just acquired, and not again before this worker is done below.
        let job = unsafe { *shared.start.0.job.get() };
        if let Some((job, n)) = job {
            let range = part(n, shared.threads, worker);
            if !range.is_empty() {
                // SAFETY: the caller of `run` keeps the closure alive until all workers are done.
                let job = unsafe { &*job };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(worker, range))) {
                    shared.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
                    shared.panicked.store(true, Ordering::Relaxed);
                }
            }
        }
        shared.done[worker].0.store(seen, Ordering::Release);
    }
}

/// A slice of which the workers of one job write disjoint pieces.
pub struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: pieces are handed out under `piece`'s contract that they do not overlap, so sharing it shares no element.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Takes the slice for the time of a job.
    pub fn new(slice: &'a mut [T]) -> Disjoint<'a, T> {
        Disjoint { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No two pieces that overlap may be alive at the same time.
    #[allow(clippy::mut_from_ref)] // that is what the contract is about
    pub unsafe fn piece(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the slice that `new` borrowed mutably, and not aliased by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// Threads to use when nobody says: the physical cores that this process may run on.
pub fn default_threads() -> usize {
    let allowed = thread::available_parallelism().map_or(1, usize::from);
    physical_cores().map_or(allowed, |cores| cores.min(allowed)).max(1)
}

/// Distinct physical cores among the processors this process may use; `None` where the system does not tell.
fn physical_cores() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cores = std::collections::BTreeSet::new();
    for cpu in list(allowed.trim())? {
        let siblings = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).ok()?;
        cores.insert(siblings);
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// The numbers of a list such as `0-3,8`.
fn list(text: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for item in text.split(',') {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= first && last - first < 1 << 16 {
            all.extend(first..=last);
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize};

    use super::*;

    #[test]
    fn every_index_is_run_once_under_repetition() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            for turn in 0..3_000usize {
                let n = turn % 19;
                let sum = AtomicU64::new(0);
                let mut seen = vec![0u8; n];
                let cells = Disjoint::new(&mut seen);
                pool.run(n, &|worker, range| {
                    assert!(worker < threads);
                    sum.fetch_add(range.clone().map(|i| i as u64 + 1).sum(), Ordering::Relaxed);
                    // SAFETY: ranges of one run do not overlap.
                    unsafe { cells.piece(range) }.iter_mut().for_each(|c| *c += 1);
                });
                assert_eq!(sum.into_inner(), (n * (n + 1) / 2) as u64);
                assert!(seen.iter().all(|&c| c == 1), "{seen:?}");
            }
        }
    }

    #[test]
    fn parked_workers_wake() {
        let pool = Pool::new(3).unwrap();
        for _ in 0..20 {
            thread::sleep(std::time::Duration::from_millis(2));
            let count = AtomicUsize::new(0);
            pool.run(3, &|_, range| {
                count.fetch_add(range.len(), Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 3);
        }
    }

    #[test]
    fn panics_are_passed_on_and_leave_the_pool_usable() {
        let pool = Pool::new(4).unwrap();
        for turn in 0..200usize {
            let who = turn % 4;
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(4, &|worker, _| {
                    if worker == who {
                        panic!("worker {worker}");
                    }
                });
            }));
            let message = caught.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(*message, format!("worker {who}"));
            let count = AtomicUsize::new(0);
            pool.run(4, &|_, range| {
                count.fetch_add(range.len(), Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 4);
        }
    }

    #[test]
    fn callers_take_turns() {
        let pool = Pool::new(2).unwrap();
        let total = AtomicUsize::new(0);
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..500 {
                        pool.run(10, &|_, range| {
                            total.fetch_add(range.len(), Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 500 * 10);
    }

    #[test]
    fn rows_are_cut_between_rows() {
        let pool = Pool::new(3).unwrap();
        let mut data = vec![0usize; 7 * 5];
        pool.rows(&mut data, 5, &|_, first, rows| {
            assert_eq!(rows.len() % 5, 0);
            for (r, row) in rows.chunks_mut(5).enumerate() {
                row.fill(first + r);
            }
        });
        assert!(data.chunks(5).enumerate().all(|(r, row)| row.iter().all(|&v| v == r)));
    }

    #[test]
    fn lists_of_processors() {
        assert_eq!(list("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(list("x"), None);
        assert!(default_threads() >= 1);
    }
}
