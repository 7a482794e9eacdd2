//! Threads: fork and join in about a microsecond, spinning first and sleeping when there is nothing to do.
//!
//! One job runs at a time. It is cut into pieces, always in the same way, and every thread gets a contiguous run of
//! them, the calling thread the first. A thread works through its own from the front; when it has none left, it takes
//! the last one of whoever has most left. On a quiet machine that is a static split, with its locality; when a
//! neighbour takes a processor away, the others do what it leaves, and nobody waits for a thread that has not begun.
//! Nothing is allocated. The way work is cut, and who does it, never shows in results, because no operation adds up
//! across pieces.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A piece of work: called with the worker's number and its range.
type Job<'a> = dyn Fn(usize, Range<usize>) + Sync + 'a;

/// How long an idle worker looks for work before it sleeps: about what lies between the jobs of one token. Beside a busy
/// neighbour its looking takes time from those that work.
const SPIN_IDLE: Duration = Duration::from_micros(25);
/// How long the caller looks whether a worker has finished its last piece before it sleeps, too. Longer means that the
/// worker was probably stopped in the middle; a sleeping caller leaves a processor on which it can go on.
const SPIN_LAST: Duration = Duration::from_micros(20);
/// Looks between two looks at the clock.
const LOOKS: u32 = 32;

/// States of a worker. Nothing to do; it looks for work.
const SHUT: u32 = 0;
/// Nothing to do, and it sleeps or is about to.
const ASLEEP: u32 = 1;
/// There is a job that it may begin, until the caller shuts it out again.
const OPEN: u32 = 2;
/// It has begun.
const INSIDE: u32 = 3;
/// It has begun, and the caller sleeps until it is done.
const AWAITED: u32 = 4;
/// It shall end.
const STOP: u32 = 5;

/// What concerns one thread, with cache lines of its own, so that whoever looks at it is not disturbed by its
/// neighbours. A run moves these to their workers and back, and the job to them.
#[repr(align(128))]
struct Desk {
    /// See the states above.
    state: AtomicU32,
    /// The pieces of the current job that are left of its own: the first in the upper half, the end in the lower.
    left: AtomicU64,
}

/// Something with cache lines of its own.
#[repr(align(128))]
struct Apart<T>(T);

/// How a job is cut.
#[derive(Clone, Copy)]
struct Cut {
    n: usize,
    pieces: usize,
    /// The length of all pieces but the last; 0 when they are as even as they can be.
    grain: usize,
}

impl Cut {
    fn piece(&self, piece: usize) -> Range<usize> {
        match self.grain {
            0 => part(self.n, self.pieces, piece),
            grain => piece * grain..((piece + 1) * grain).min(self.n),
        }
    }
}

/// What caller and workers share.
struct Shared {
    /// The current job, valid from a worker's `OPEN` until it is done or shut out again.
    job: Apart<UnsafeCell<Option<(*const Job<'static>, Cut)>>>,
    /// Per thread, the caller being the first.
    desks: Vec<Desk>,
    /// The first panic of the current job; what a sleeping caller waits with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    done: Condvar,
}

// SAFETY: `job` is written by the caller only while no worker reads it: before it opens their desks (release), and
// after every worker is done with the job before (acquire) or was shut out of it. The rest is `Sync` itself.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` closure, and only used while the caller of `run` keeps it alive.
unsafe impl Send for Shared {}

impl Shared {
    /// The next piece for a worker: the first left of its own, else the last of whoever has most left.
    fn claim(&self, worker: usize) -> Option<usize> {
        // Relaxed: a piece is a number, and what it stands for was published before the desk was opened.
        let take = |desk: &Desk, next: fn(u32, u32) -> (u32, u32)| {
            let next = |left| {
                let (first, end) = unpack(left);
                (first < end).then(|| next(first, end)).map(|(first, end)| pack(first, end))
            };
            desk.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok().map(unpack)
        };
        if let Some((first, _)) = take(&self.desks[worker], |first, end| (first + 1, end)) {
            return Some(first as usize);
        }
        loop {
            let left = |desk: &Desk| {
                let (first, end) = unpack(desk.left.load(Ordering::Relaxed));
                end.saturating_sub(first)
            };
            let (most, desk) = self.desks.iter().map(|desk| (left(desk), desk)).max_by_key(|&(left, _)| left)?;
            if most == 0 {
                return None;
            }
            if let Some((_, end)) = take(desk, |first, end| (first, end - 1)) {
                return Some(end as usize - 1);
            }
        }
    }

    /// Does pieces until none is left.
    fn work(&self, worker: usize, cut: Cut, job: &Job<'_>) -> thread::Result<()> {
        catch_unwind(AssertUnwindSafe(|| {
            while let Some(piece) = self.claim(worker) {
                job(worker, cut.piece(piece));
            }
        }))
    }

    fn panic(&self) -> MutexGuard<'_, Option<Box<dyn Any + Send>>> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when a worker that finds no more to do has nothing to do with the job any more.
    fn await_worker(&self, desk: &Desk) {
        // One that has not begun is shut out.
        if desk.state.compare_exchange(OPEN, SHUT, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return;
        }
        let is_done = || desk.state.load(Ordering::Acquire) != INSIDE;
        if look(SPIN_LAST, is_done) || desk.state.compare_exchange(INSIDE, AWAITED, Ordering::Acquire, Ordering::Acquire).is_err() {
            return;
        }
        let mut guard = self.panic();
        while desk.state.load(Ordering::Acquire) == AWAITED {
            guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Looks until it is found, for some time; whether it was.
fn look(time: Duration, found: impl Fn() -> bool) -> bool {
    let mut start = None;
    loop {
        for _ in 0..LOOKS {
            if found() {
                return true;
            }
            spin_loop();
        }
        if start.get_or_insert_with(Instant::now).elapsed() >= time {
            return false;
        }
    }
}

fn pack(first: u32, end: u32) -> u64 {
    u64::from(first) << 32 | u64::from(end)
}

fn unpack(left: u64) -> (u32, u32) {
    ((left >> 32) as u32, left as u32)
}

/// A fixed number of threads, the caller being one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    threads: usize,
    /// One job at a time.
    turn: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` threads (at least one), of which it starts all but the caller's.
    ///
    /// Work is cut for all of them, but no more are started than there are processors: the others would only
    /// take the processors from those that work.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let processors = thread::available_parallelism().map_or(threads, usize::from);
        Pool::with_started(threads, threads.min(processors))
    }

    fn with_started(threads: usize, started: usize) -> std::io::Result<Pool> {
        let (threads, started) = (threads.max(1), started.max(1));
        let desk = || Desk { state: AtomicU32::new(SHUT), left: AtomicU64::new(0) };
        let shared = Arc::new(Shared {
            job: Apart(UnsafeCell::new(None)),
            desks: std::iter::repeat_with(desk).take(started).collect(),
            panic: Mutex::new(None),
            done: Condvar::new(),
        });
        let mut pool = Pool { shared, workers: Vec::new(), threads, turn: Mutex::new(()) };
        for worker in 1..started {
            let shared = Arc::clone(&pool.shared);
            let handle = thread::Builder::new().name(format!("sphinx-{worker}")).spawn(move || live(&shared, worker))?;
            pool.workers.push(handle);
        }
        Ok(pool)
    }

    /// How many threads work is cut for, the caller's included. Workers' numbers are lower.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Cuts `0..n` evenly, one range per thread, calls `job(worker, range)` for each, and returns when all are done.
    ///
    /// A worker is called for a second range when the one whose it is has not begun it. A panic in any of them is
    /// passed on, after all have finished. `job` must not run anything on the same pool.
    pub fn run(&self, n: usize, job: &Job<'_>) {
        self.deal(Cut { n, pieces: self.threads.min(n), grain: 0 }, job);
    }

    /// As [`Pool::run`], with ranges that begin at multiples of `grain` and are that long, but for the last: a worker
    /// is called for as many as it gets to.
    ///
    /// A range should be some 10 to 100 µs of work: taking one costs an atomic operation, and the last one is waited
    /// for.
    pub fn run_by(&self, n: usize, grain: usize, job: &Job<'_>) {
        let grain = grain.max(1).max(n.div_ceil(u32::MAX as usize));
        self.deal(Cut { n, pieces: n.div_ceil(grain), grain }, job);
    }

    /// As [`Pool::run_by`], with ranges of at most `most` that are as even as they can be, equally many for every worker.
    pub fn run_evenly(&self, n: usize, most: usize, job: &Job<'_>) {
        let most = most.max(1).max(n.div_ceil(u32::MAX as usize / self.threads));
        let each = n.div_ceil(self.threads * most);
        self.deal(Cut { n, pieces: (self.threads * each).min(n), grain: 0 }, job);
    }

    fn deal(&self, cut: Cut, job: &Job<'_>) {
        let shared = &*self.shared;
        if self.workers.is_empty() || cut.pieces <= 1 {
            for piece in 0..cut.pieces {
                job(0, cut.piece(piece));
            }
            return;
        }
        let turn: MutexGuard<'_, ()> = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: only the lifetime is forgotten; `deal` does not return, nor unwind, before all workers are done or
        // shut out, and none touches the job after that.
        let forever: *const Job<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(job)) };
        // SAFETY: no worker reads `job` now: all were done or shut out before the previous `deal` returned.
        unsafe { *shared.job.0.get() = Some((forever, cut)) };
        for (worker, desk) in shared.desks.iter().enumerate() {
            let mine = part(cut.pieces, shared.desks.len(), worker);
            desk.left.store(pack(mine.start as u32, mine.end as u32), Ordering::Relaxed);
        }
        let workers = || shared.desks[1..].iter().zip(&self.workers).take(cut.pieces - 1);
        for (desk, worker) in workers() {
            if desk.state.swap(OPEN, Ordering::AcqRel) == ASLEEP {
                worker.thread().unpark();
            }
        }
        let mine = shared.work(0, cut, job);
        workers().for_each(|(desk, _)| shared.await_worker(desk));
        let theirs = shared.panic().take();
        drop(turn);
        if let Some(panic) = mine.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Gives the threads the rows of `data` (each `width` long) in contiguous groups: `job(worker, first row, rows)`.
    pub fn rows<T: Send>(&self, data: &mut [T], width: usize, job: &(dyn Fn(usize, usize, &mut [T]) + Sync)) {
        self.rows_cut(data, width, job, |rows, job| self.run(rows, job));
    }

    /// As [`Pool::rows`], in groups of `grain` rows, as [`Pool::run_by`].
    pub fn rows_by<T: Send>(&self, data: &mut [T], width: usize, grain: usize, job: &(dyn Fn(usize, usize, &mut [T]) + Sync)) {
        self.rows_cut(data, width, job, |rows, job| self.run_by(rows, grain, job));
    }

    fn rows_cut<T: Send>(
        &self,
        data: &mut [T],
        width: usize,
        job: &(dyn Fn(usize, usize, &mut [T]) + Sync),
        run: impl FnOnce(usize, &Job<'_>),
    ) {
        if width == 0 {
            return;
        }
        let rows = data.len() / width;
        let data = Disjoint::new(data);
        run(rows, &|worker, range| {
            // SAFETY: every row is in one range of a run.
            let mine = unsafe { data.piece(range.start * width..range.end * width) };
            job(worker, range.start, mine);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (desk, worker) in self.shared.desks[1..].iter().zip(&self.workers) {
            desk.state.store(STOP, Ordering::Release);
            worker.thread().unpark();
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
fn live(shared: &Shared, worker: usize) {
    let state = &shared.desks[worker].state;
    loop {
        if !look(SPIN_IDLE, || state.load(Ordering::Relaxed) != SHUT) {
            // Either this sees that the desk was opened meanwhile, or who opens it sees the sleeper.
            if state.compare_exchange(SHUT, ASLEEP, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                while state.load(Ordering::Relaxed) == ASLEEP {
                    thread::park();
                }
            }
            continue;
        }
        match state.compare_exchange(OPEN, INSIDE, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {}
            Err(STOP) => return,
            Err(_) => continue, // shut out meanwhile
        }
        // SAFETY: written before the desk was opened, and not again before this worker is done below.
        let job = unsafe { *shared.job.0.get() };
        if let Some((job, cut)) = job {
            // SAFETY: the caller of `deal` keeps the closure alive until all workers are done.
            if let Err(panic) = shared.work(worker, cut, unsafe { &*job }) {
                shared.panic().get_or_insert(panic);
            }
        }
        if state.swap(SHUT, Ordering::AcqRel) == AWAITED {
            // The caller looks at the state under the lock: it either saw this, or is waiting already.
            drop(shared.panic());
            shared.done.notify_one();
        }
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

    /// Elements of the slice.
    #[allow(clippy::len_without_is_empty)] // nobody asks
    pub fn len(&self) -> usize {
        self.len
    }

    /// Asks for the cache line of element `i`, which will be written.
    #[inline(always)]
    pub fn ask(&self, i: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a hint, which may name any address; every x86-64 processor has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.start.wrapping_add(i).cast()) }
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a hint, which may name any address.
        unsafe {
            std::arch::asm!("prfm pstl1keep, [{0}]", in(reg) self.start.wrapping_add(i), options(nostack, readonly, preserves_flags));
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = i;
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
    use std::sync::atomic::{AtomicU8, AtomicUsize};

    use proptest::prelude::*;

    use super::*;

    /// A pool that starts all its threads, whatever the machine.
    fn pool(threads: usize) -> Pool {
        Pool::with_started(threads, threads).unwrap()
    }

    #[test]
    fn every_index_is_run_once_under_repetition() {
        for threads in [1, 2, 3, 7] {
            let pool = pool(threads);
            for turn in 0..3_000usize {
                let n = turn % 19;
                let sum = std::sync::atomic::AtomicU64::new(0);
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

    proptest! {
        #[test]
        fn every_index_is_in_one_range(which in 0usize..8, n in 0usize..3_000, grain in 0usize..200, started in 1usize..=16) {
            let threads = [1, 2, 3, 4, 7, 8, 16, 33][which];
            let pool = Pool::with_started(threads, threads.min(started)).unwrap();
            let seen: Vec<AtomicU8> = (0..n).map(|_| AtomicU8::new(0)).collect();
            let see = |worker: usize, range: Range<usize>| {
                assert!(worker < threads && !range.is_empty());
                seen[range].iter().for_each(|s| _ = s.fetch_add(1, Ordering::Relaxed));
            };
            for turn in 1..=20 {
                pool.run_by(n, grain, &|worker, range| {
                    let grain = grain.max(1);
                    assert!(range.start.is_multiple_of(grain) && (range.len() == grain || range.end == n));
                    see(worker, range);
                });
                pool.run(n, &|worker, range| {
                    assert!((0..threads).any(|w| part(n, threads, w) == range));
                    see(worker, range);
                });
                let (lengths, pieces) = (AtomicU64::new(0), AtomicUsize::new(0));
                pool.run_evenly(n, grain, &|worker, range| {
                    assert!(range.len() <= grain.max(1));
                    lengths.fetch_or(1 << range.len().min(63), Ordering::Relaxed);
                    pieces.fetch_add(1, Ordering::Relaxed);
                    see(worker, range);
                });
                prop_assert!(lengths.load(Ordering::Relaxed).count_ones() <= 2);
                let pieces = pieces.into_inner();
                prop_assert!(pieces == n || pieces.is_multiple_of(threads));
                prop_assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 3 * turn));
            }
        }
    }

    #[test]
    fn nobody_waits_for_a_slow_worker_but_for_its_piece() {
        for threads in [2, 3, 4, 8, 16] {
            let pool = pool(threads);
            for slow in 0..threads {
                let (done, slowly) = (AtomicUsize::new(0), AtomicUsize::new(0));
                pool.run_by(1_000, 7, &|worker, _| {
                    if worker == slow {
                        slowly.fetch_add(1, Ordering::Relaxed);
                        // It takes as long as all the others need for everything else.
                        let start = Instant::now();
                        while done.load(Ordering::Relaxed) < 142 && start.elapsed().as_secs() < 20 {
                            thread::yield_now();
                        }
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(done.into_inner(), 143);
                assert!(slowly.into_inner() <= 1, "worker {slow} of {threads}");
            }
        }
    }

    #[test]
    fn a_sleeping_caller_is_woken() {
        let pool = pool(3);
        for turn in 0..30 {
            let count = AtomicUsize::new(0);
            pool.run_by(30, 1, &|worker, _| {
                if worker > 0 && turn % 3 != 0 {
                    thread::sleep(2 * SPIN_LAST);
                }
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 30);
        }
    }

    #[test]
    fn no_more_threads_than_processors() {
        let pool = Pool::new(1_000).unwrap();
        assert_eq!(pool.threads(), 1_000);
        assert!(pool.workers.len() < thread::available_parallelism().map_or(1_000, usize::from));
    }

    #[test]
    fn parked_workers_wake() {
        let pool = pool(3);
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
        let pool = pool(4);
        for turn in 0..200usize {
            let who = turn % 4;
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run_by(40, [1, 10][turn / 4 % 2], &|_, range| {
                    if range.contains(&(10 * who)) {
                        panic!("piece {who}");
                    }
                });
            }));
            let message = caught.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(*message, format!("piece {who}"));
            let count = AtomicUsize::new(0);
            pool.run(4, &|_, range| {
                count.fetch_add(range.len(), Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 4);
        }
    }

    #[test]
    fn callers_take_turns() {
        let pool = pool(2);
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
        let pool = pool(3);
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
