//! A cache of experts that keeps to a number of bytes, filled by threads of its own.
//!
//! What is kept is a *unit*: all matrices of one expert of one layer, in one or more parts of the file. A visit asks for the units
//! of a layer and works on those that are there while the others arrive. Guesses about the next layer are read when nothing
//! that is wanted has to be, and dropped when they turn out wrong. The memory of units that give way is used again.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sphinx_quant::tensor::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::disk::{ALIGN, Disk};
use super::policy::{Policy, Ranking};

/// Bytes that are read at a time: of what is wanted now, and of a guess, which may be broken off in between.
const PIECE: usize = 16 << 20;
const PIECE_AHEAD: usize = 4 << 20;
/// How often a read is tried, and how long between two tries.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(20);
/// How much of the budget guesses may take at a time: one part in so many.
const AHEAD_SHARE: usize = 4;
/// How fast the store learns how often guesses come true.
const LEARN: f32 = 0.02;

/// Part of a unit: consecutive bytes of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where they begin.
    pub offset: u64,
    /// How many.
    pub bytes: usize,
    /// Recorded XXH3-64s, and of which of the bytes each is.
    pub checksums: Vec<(Range<usize>, u64)>,
}

impl Part {
    /// Bytes of the buffer that the part bears before its own, because reads begin at multiples of [`ALIGN`].
    pub fn skip(&self) -> usize {
        (self.offset % ALIGN as u64) as usize
    }

    /// Bytes that its buffer takes.
    pub fn room(&self) -> usize {
        (self.skip() + self.bytes).next_multiple_of(ALIGN)
    }
}

/// What a store holds and how it goes about it.
pub struct Setup {
    /// Layers, experts of a layer, and how many of them a row uses.
    pub layers: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// How many of them a row uses.
    pub used: usize,
    /// The parts of expert `e` of layer `l` at `l · experts + e`.
    pub units: Vec<Vec<Part>>,
    /// Bytes that the buffers may take together.
    pub budget_bytes: usize,
    /// What gives way.
    pub policy: Policy,
    /// Compare checksums at every read, not at the first alone.
    pub verify_reads: bool,
    /// Threads that read.
    pub threads: usize,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Experts that were still there from an earlier use when they were wanted.
    pub hits: u64,
    /// Experts that a guess had read, or begun to read, when they were wanted.
    pub foreseen: u64,
    /// Experts whose reading began when they were wanted.
    pub misses: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes read for guesses.
    pub ahead_bytes: u64,
    /// Of them, what was dropped unused.
    pub wasted_bytes: u64,
    /// Guesses made, and how many of them were used at the next visit.
    pub guesses: u64,
    /// How many came true.
    pub guessed: u64,
    /// Seconds in which a visit had nothing to do but wait.
    pub stall_s: f64,
    /// Reads that were tried again.
    pub retries: u64,
}

impl Stats {
    /// What happened since `earlier`.
    pub fn since(&self, earlier: &Stats) -> Stats {
        Stats {
            hits: self.hits - earlier.hits,
            foreseen: self.foreseen - earlier.foreseen,
            misses: self.misses - earlier.misses,
            read_bytes: self.read_bytes - earlier.read_bytes,
            ahead_bytes: self.ahead_bytes - earlier.ahead_bytes,
            wasted_bytes: self.wasted_bytes - earlier.wasted_bytes,
            guesses: self.guesses - earlier.guesses,
            guessed: self.guessed - earlier.guessed,
            stall_s: self.stall_s - earlier.stall_s,
            retries: self.retries - earlier.retries,
        }
    }
}

/// Why a unit could not be had.
#[derive(Debug)]
pub enum Failure {
    /// The system, or the file's end, or no memory.
    Io(io::Error),
    /// Other bytes than were once written.
    Damaged {
        /// Recorded.
        expected: u64,
        /// Computed.
        found: u64,
    },
    /// Not even one unit has room: bytes that it takes, and bytes that there are.
    Budget {
        /// Bytes of the unit.
        need: usize,
        /// Bytes of the store.
        budget: usize,
    },
}

/// What the next layer will want, as far as one can tell.
#[derive(Clone, Copy, Debug)]
pub struct Guess<'a> {
    /// Which layer.
    pub layer: usize,
    /// The experts, likeliest first.
    pub ids: &'a [u32],
    /// Whether it is no guess: a long prompt goes through all experts.
    pub certain: bool,
}

/// What a visit is about.
#[derive(Clone, Copy, Debug)]
pub struct Visit<'a> {
    /// Which layer.
    pub layer: usize,
    /// Experts that are wanted, ascending.
    pub ids: &'a [u32],
    /// What the router thinks of all of the layer's experts, in the mean over rows; 1 in sum.
    pub odds: &'a [f32],
    /// What comes next.
    pub next: Option<Guess<'a>>,
}

/// What a visit needs of whoever makes something of the bytes.
pub trait Client {
    /// Its errors.
    type Error: From<(u32, Failure)>;

    /// Works on expert `id`, whose parts are in `parts`.
    ///
    /// # Errors
    /// What it likes; the visit ends with it.
    fn work(&mut self, id: u32, parts: &[Arc<Bytes>]) -> Result<(), Self::Error>;

    /// Lets go of what it made of unit `unit`; false when that is in use.
    fn forget(&mut self, unit: usize) -> bool;
}

/// The store. Dropping it ends its threads.
pub struct Store {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    disk: Box<dyn Disk>,
    units: Vec<Vec<Part>>,
    experts: usize,
    used: usize,
    budget_bytes: usize,
    verify_reads: bool,
    state: Mutex<State>,
    /// There is something to read, or it is over.
    work: Condvar,
    /// A unit has arrived, or failed, or memory came free.
    done: Condvar,
}

struct State {
    places: Vec<Place>,
    /// Visits that have yet to work on a unit.
    pins: Vec<u32>,
    wanted: VecDeque<Job>,
    ahead: VecDeque<Job>,
    /// Jobs that threads are at, also such as were given up meanwhile: their buffers come back.
    in_hand: usize,
    /// Buffers of nobody.
    spare: Vec<Bytes>,
    /// Bytes of all buffers.
    held_bytes: usize,
    /// Bytes of units that are guesses.
    ahead_bytes: usize,
    ranking: Ranking,
    /// Checksums of parts that were read, where none is recorded.
    learnt: Vec<Vec<Option<u64>>>,
    /// Which parts were compared already.
    compared: Vec<Vec<bool>>,
    /// What the last guess was, to learn how often guesses come true.
    guess: (usize, Vec<u32>),
    trust: f32,
    stats: Stats,
    tickets: u64,
    stop: bool,
}

enum Place {
    Absent,
    Reading(Reading),
    Ready {
        parts: Vec<Arc<Bytes>>,
        /// Read for a guess and not used yet.
        ahead: bool,
    },
    Failed(Failure),
}

/// A unit on its way.
struct Reading {
    /// Jobs with another one belong to an earlier try that was given up.
    ticket: u64,
    parts: Vec<Option<Bytes>>,
    left: usize,
    ahead: bool,
}

/// A part to be read.
struct Job {
    ticket: u64,
    unit: usize,
    part: usize,
    buffer: Bytes,
    /// Bytes of the buffer that are there.
    done: usize,
    tries: u32,
}

impl Store {
    /// An empty store over `disk`.
    ///
    /// # Errors
    /// When a thread does not start.
    pub fn new(disk: Box<dyn Disk>, setup: Setup) -> io::Result<Store> {
        let Setup { layers, experts, used, units, budget_bytes, policy, verify_reads, threads } = setup;
        let state = State {
            places: units.iter().map(|_| Place::Absent).collect(),
            pins: vec![0; units.len()],
            wanted: VecDeque::new(),
            ahead: VecDeque::new(),
            in_hand: 0,
            spare: Vec::new(),
            held_bytes: 0,
            ahead_bytes: 0,
            ranking: Ranking::new(policy, layers, experts, used),
            learnt: units.iter().map(|parts| vec![None; parts.len()]).collect(),
            compared: units.iter().map(|parts| vec![false; parts.len()]).collect(),
            guess: (usize::MAX, Vec::with_capacity(experts)),
            trust: 0.8,
            stats: Stats::default(),
            tickets: 0,
            stop: false,
        };
        let shared = Arc::new(Shared {
            disk,
            units,
            experts,
            used,
            budget_bytes,
            verify_reads,
            state: Mutex::new(state),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let mut store = Store { shared, threads: Vec::new() };
        for _ in 0..threads.max(1) {
            let shared = Arc::clone(&store.shared);
            store.threads.push(std::thread::Builder::new().name("sphinx-experts".into()).spawn(move || shared.read_all())?);
        }
        Ok(store)
    }

    /// What happened so far.
    pub fn stats(&self) -> Stats {
        self.shared.lock().stats
    }

    /// Bytes of memory that the store has taken.
    pub fn held_bytes(&self) -> usize {
        self.shared.lock().held_bytes
    }

    /// Bytes that it may take.
    pub fn budget_bytes(&self) -> usize {
        self.shared.budget_bytes
    }

    /// Has `client` work once on each of the experts of a visit, in the order in which they are to be had.
    ///
    /// # Errors
    /// What `client` returns, or what kept an expert from being read. The store stays as good as before.
    pub fn visit<C: Client>(&self, visit: Visit<'_>, client: &mut C) -> Result<(), C::Error> {
        self.shared.visit(visit, client)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unit(&self, layer: usize, id: u32) -> usize {
        layer * self.experts + id as usize
    }

    fn visit<C: Client>(&self, visit: Visit<'_>, client: &mut C) -> Result<(), C::Error> {
        let Visit { layer, ids, odds, mut next } = visit;
        let mut s = self.lock();
        s.ranking.visit(layer, ids, odds, self.used);
        s.judge(layer, ids);
        self.give_up_wrong(&mut s, layer, ids);
        for &id in ids {
            let unit = self.unit(layer, id);
            s.pins[unit] += 1;
            s.count(unit);
            self.promote(&mut s, unit);
        }
        let mut todo = ids.to_vec();
        let result = loop {
            let started = todo.iter().all(|&id| {
                let unit = self.unit(layer, id);
                !matches!(s.places[unit], Place::Absent) || self.start(&mut s, unit, None, client)
            });
            if started && let Some(guess) = next.take() {
                self.start_guess(&mut s, guess, client);
            }
            // What is ready first; then the sum of failures; then patience.
            if let Some(at) = todo.iter().position(|&id| matches!(s.places[self.unit(layer, id)], Place::Ready { .. })) {
                let id = todo.remove(at);
                let unit = self.unit(layer, id);
                let parts = s.take_up(unit);
                drop(s);
                let worked = client.work(id, &parts);
                drop(parts);
                s = self.lock();
                s.pins[unit] -= 1;
                self.done.notify_all();
                match worked {
                    Ok(()) => continue,
                    Err(e) => break Err(e),
                }
            }
            if let Some(&id) = todo.iter().find(|&&id| matches!(s.places[self.unit(layer, id)], Place::Failed(_))) {
                let unit = self.unit(layer, id);
                let Place::Failed(failure) = std::mem::replace(&mut s.places[unit], Place::Absent) else { continue };
                break Err((id, failure).into());
            }
            let Some(&id) = todo.first() else { break Ok(()) };
            let waiting = s.in_hand > 0 || s.places.iter().any(|p| matches!(p, Place::Reading(_)));
            let others = s.pins.iter().map(|&n| n as usize).sum::<usize>() > todo.len();
            if !waiting && !others {
                let need = self.units[self.unit(layer, id)].iter().map(Part::room).sum();
                break Err((id, Failure::Budget { need, budget: self.budget_bytes }).into());
            }
            let start = Instant::now();
            s = self.done.wait(s).unwrap_or_else(PoisonError::into_inner);
            s.stats.stall_s += start.elapsed().as_secs_f64();
        };
        for id in todo {
            s.pins[self.unit(layer, id)] -= 1;
        }
        result
    }

    /// Gives up what is read ahead of this layer's visit and not wanted after all.
    fn give_up_wrong(&self, s: &mut State, layer: usize, ids: &[u32]) {
        for id in (0..self.experts as u32).filter(|id| !ids.contains(id)) {
            let unit = self.unit(layer, id);
            if s.pins[unit] == 0 {
                self.give_up(s, unit);
            }
        }
    }

    /// Stops reading `unit` if it is a guess. Buffers of parts that a thread has in hand come back later.
    fn give_up(&self, s: &mut State, unit: usize) -> bool {
        if !matches!(&s.places[unit], Place::Reading(r) if r.ahead) {
            return false;
        }
        let Place::Reading(reading) = std::mem::replace(&mut s.places[unit], Place::Absent) else { return false };
        let room: usize = self.units[unit].iter().map(Part::room).sum();
        s.ahead_bytes -= room;
        for (part, buffer) in reading.parts.into_iter().enumerate() {
            if let Some(buffer) = buffer {
                s.stats.wasted_bytes += self.units[unit][part].bytes as u64;
                s.spare.push(buffer);
            }
        }
        let (gone, left) = std::mem::take(&mut s.ahead).into_iter().partition::<Vec<_>, _>(|job| job.ticket == reading.ticket);
        s.ahead = left.into();
        for job in gone {
            s.stats.wasted_bytes += job.done as u64;
            s.spare.push(job.buffer);
        }
        true
    }

    /// Makes a guess that came true something that is wanted.
    fn promote(&self, s: &mut State, unit: usize) {
        let Place::Reading(reading) = &mut s.places[unit] else { return };
        if std::mem::take(&mut reading.ahead) {
            let ticket = reading.ticket;
            s.ahead_bytes -= self.units[unit].iter().map(Part::room).sum::<usize>();
            let (mine, left) = std::mem::take(&mut s.ahead).into_iter().partition::<Vec<_>, _>(|job| job.ticket == ticket);
            s.ahead = left.into();
            s.wanted.extend(mine);
            self.work.notify_all();
        }
    }

    /// Begins to read `unit`; false when it has no room. As a guess, only what is worth less than `ahead` gives way to it.
    fn start<C: Client>(&self, s: &mut State, unit: usize, ahead: Option<Option<f64>>, client: &mut C) -> bool {
        let parts = &self.units[unit];
        loop {
            // Buffers of the very size first.
            let mut found = vec![None; parts.len()];
            for (at, buffer) in s.spare.iter().enumerate() {
                let len = buffer.as_slice().len();
                if let Some(part) = (0..parts.len()).find(|&p| found[p].is_none() && parts[p].room() == len) {
                    found[part] = Some(at);
                }
            }
            let missing: usize = found.iter().zip(parts).filter(|(f, _)| f.is_none()).map(|(_, p)| p.room()).sum();
            if s.held_bytes + missing <= self.budget_bytes {
                self.enqueue(s, unit, &found, ahead.is_some());
                return true;
            }
            if let Some(at) = (0..s.spare.len()).find(|at| !found.contains(&Some(*at))) {
                s.held_bytes -= s.spare.swap_remove(at).as_slice().len();
                continue;
            }
            if !self.make_room(s, ahead, client) {
                return false;
            }
        }
    }

    /// Has the unit that is worth least give way; false when none may.
    fn make_room<C: Client>(&self, s: &mut State, ahead: Option<Option<f64>>, client: &mut C) -> bool {
        let mut ready: Vec<(f64, usize)> = (0..self.units.len())
            .filter(|&unit| s.pins[unit] == 0 && matches!(s.places[unit], Place::Ready { .. }))
            .map(|unit| (s.ranking.worth(unit / self.experts, (unit % self.experts) as u32), unit))
            .collect();
        ready.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (worth, unit) in ready {
            if matches!(ahead, Some(Some(limit)) if worth >= limit) {
                break;
            }
            if client.forget(unit) {
                self.evict(s, unit);
                return true;
            }
        }
        // A guess gives way to what is wanted.
        ahead.is_none() && (0..self.units.len()).any(|unit| s.pins[unit] == 0 && self.give_up(s, unit))
    }

    fn evict(&self, s: &mut State, unit: usize) {
        let Place::Ready { parts, ahead } = std::mem::replace(&mut s.places[unit], Place::Absent) else { return };
        if ahead {
            s.stats.wasted_bytes += self.units[unit].iter().map(|p| p.bytes as u64).sum::<u64>();
            s.ahead_bytes -= self.units[unit].iter().map(Part::room).sum::<usize>();
        }
        for (bytes, part) in parts.into_iter().zip(&self.units[unit]) {
            match Arc::into_inner(bytes) {
                Some(buffer) => s.spare.push(buffer),
                // Somebody still holds it; it is theirs then.
                None => s.held_bytes -= part.room(),
            }
        }
    }

    /// Queues the parts of `unit`, with the spare buffers at `found` and new ones; without memory for these the unit has failed.
    fn enqueue(&self, s: &mut State, unit: usize, found: &[Option<usize>], ahead: bool) {
        let parts = &self.units[unit];
        let mut buffers = Vec::with_capacity(parts.len());
        for (part, found) in parts.iter().zip(found) {
            let buffer = match found {
                Some(at) => std::mem::replace(&mut s.spare[*at], Bytes::owned(&[])),
                None => match Bytes::pages(part.room()) {
                    Ok(pages) => {
                        s.held_bytes += part.room();
                        pages
                    }
                    Err(e) => {
                        s.spare.extend(buffers);
                        s.spare.retain(|b| !b.as_slice().is_empty());
                        s.places[unit] = Place::Failed(Failure::Io(e));
                        return;
                    }
                },
            };
            buffers.push(buffer);
        }
        s.spare.retain(|b| !b.as_slice().is_empty());
        s.tickets += 1;
        let ticket = s.tickets;
        let jobs = buffers.into_iter().enumerate().map(|(part, buffer)| Job { ticket, unit, part, buffer, done: 0, tries: 0 });
        if ahead {
            s.ahead_bytes += parts.iter().map(Part::room).sum::<usize>();
            s.ahead.extend(jobs);
        } else {
            s.wanted.extend(jobs);
        }
        let left = parts.len();
        s.places[unit] = Place::Reading(Reading { ticket, parts: (0..left).map(|_| None).collect(), left, ahead });
        self.work.notify_all();
    }

    /// Begins to read what the next layer will want.
    fn start_guess<C: Client>(&self, s: &mut State, guess: Guess<'_>, client: &mut C) {
        if !guess.certain {
            s.guess.0 = guess.layer;
            s.guess.1.clear();
            s.guess.1.extend_from_slice(guess.ids);
        }
        let p = if guess.certain { 1.0 } else { s.trust };
        let limit = s.ranking.worth_ahead(guess.layer, p);
        for &id in guess.ids {
            let unit = self.unit(guess.layer, id);
            let room: usize = self.units[unit].iter().map(Part::room).sum();
            if s.ahead_bytes + room > self.budget_bytes / AHEAD_SHARE {
                break;
            }
            if matches!(s.places[unit], Place::Absent) && !self.start(s, unit, Some(limit), client) {
                break;
            }
        }
    }

    /// What a reading thread does.
    fn read_all(&self) {
        let mut s = self.lock();
        while !s.stop {
            let job = match s.wanted.pop_front() {
                Some(job) => Some(job),
                None => s.ahead.pop_front(),
            };
            let Some(job) = job else {
                s = self.work.wait(s).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            s.in_hand += 1;
            s = self.read_job(s, job);
            s.in_hand -= 1;
            self.done.notify_all();
        }
    }

    /// Reads a piece of `job` and puts it back, or all the rest of it.
    fn read_job<'a>(&'a self, mut s: MutexGuard<'a, State>, mut job: Job) -> MutexGuard<'a, State> {
        let part = &self.units[job.unit][job.part];
        loop {
            let ahead = match &s.places[job.unit] {
                Place::Reading(r) if r.ticket == job.ticket => r.ahead,
                _ => {
                    // Given up meanwhile.
                    s.stats.wasted_bytes += job.done as u64;
                    s.spare.push(job.buffer);
                    self.done.notify_all();
                    return s;
                }
            };
            if ahead && (!s.wanted.is_empty() || s.stop) {
                s.ahead.push_front(job);
                return s;
            }
            drop(s);
            let piece = if ahead { PIECE_AHEAD } else { PIECE };
            let read = self.read_piece(part, &mut job, piece);
            let whole = job.done >= part.skip() + part.bytes;
            let sum = if read.is_ok() && whole { self.check(&job, part) } else { Ok(()) };
            s = self.lock();
            match read.map_err(Failure::Io).and_then(|n| sum.map(|()| n)) {
                Ok(n) => {
                    s.stats.read_bytes += n as u64;
                    if ahead {
                        s.stats.ahead_bytes += n as u64;
                    }
                }
                Err(failure) => {
                    job.tries += 1;
                    job.done = 0;
                    if job.tries < TRIES {
                        s.stats.retries += 1;
                        s = self.work.wait_timeout(s, PAUSE).map_or_else(|e| e.into_inner().0, |(s, _)| s);
                        continue;
                    }
                    self.fail(&mut s, job, failure);
                    return s;
                }
            }
            if whole {
                self.arrive(&mut s, job);
                return s;
            }
        }
    }

    /// Reads the next `most` bytes of a part.
    fn read_piece(&self, part: &Part, job: &mut Job, most: usize) -> io::Result<usize> {
        let start = part.offset - part.skip() as u64;
        let Some(buffer) = job.buffer.as_mut_slice() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let end = part.room().min(job.done + most);
        let read = self.disk.read_at(&mut buffer[job.done..end], start + job.done as u64)?;
        let there = job.done + read;
        // At the end of the file the last page is not whole.
        if there < end.min(part.skip() + part.bytes) {
            let what = format!("the file changed while in use: it ends at byte {}", start + there as u64);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        job.done = end;
        Ok(read)
    }

    /// Compares the checksum of a part that is whole, where that is due.
    fn check(&self, job: &Job, part: &Part) -> Result<(), Failure> {
        let (learnt, compared) = {
            let s = self.lock();
            (s.learnt[job.unit][job.part], s.compared[job.unit][job.part])
        };
        if (compared || part.checksums.is_empty()) && !self.verify_reads {
            return Ok(());
        }
        let bytes = &job.buffer.as_slice()[part.skip()..part.skip() + part.bytes];
        for (range, expected) in &part.checksums {
            let found = xxh3_64(&bytes[range.clone()]);
            if found != *expected {
                return Err(Failure::Damaged { expected: *expected, found });
            }
        }
        // Where nothing is recorded, later reads are held against the first.
        let found = if part.checksums.is_empty() { Some(xxh3_64(bytes)) } else { None };
        if let (Some(expected), Some(found)) = (learnt, found)
            && expected != found
        {
            return Err(Failure::Damaged { expected, found });
        }
        let mut s = self.lock();
        s.learnt[job.unit][job.part] = found;
        s.compared[job.unit][job.part] = true;
        Ok(())
    }

    fn arrive(&self, s: &mut State, job: Job) {
        let State { places, .. } = s;
        let place = &mut places[job.unit];
        if let Place::Reading(reading) = place
            && reading.ticket == job.ticket
        {
            reading.parts[job.part] = Some(job.buffer);
            reading.left -= 1;
            if reading.left == 0 {
                let ahead = reading.ahead;
                let parts = std::mem::take(&mut reading.parts).into_iter().flatten().map(Arc::new).collect();
                *place = Place::Ready { parts, ahead };
                self.done.notify_all();
            }
        } else {
            s.stats.wasted_bytes += job.done as u64;
            s.spare.push(job.buffer);
            self.done.notify_all();
        }
    }

    /// Gives up a unit whose part cannot be read. Nothing of it is kept.
    fn fail(&self, s: &mut State, job: Job, failure: Failure) {
        let place = &mut s.places[job.unit];
        if let Place::Reading(reading) = place
            && reading.ticket == job.ticket
        {
            let (ahead, ticket) = (reading.ahead, reading.ticket);
            let buffers: Vec<Bytes> = std::mem::take(&mut reading.parts).into_iter().flatten().collect();
            // Whoever wants it is told; a guess that fails is tried again when it is wanted.
            *place = if ahead { Place::Absent } else { Place::Failed(failure) };
            if ahead {
                s.ahead_bytes -= self.units[job.unit].iter().map(Part::room).sum::<usize>();
            }
            s.spare.extend(buffers);
            for queue in [&mut s.wanted, &mut s.ahead] {
                let (gone, left) = std::mem::take(queue).into_iter().partition::<Vec<_>, _>(|job| job.ticket == ticket);
                *queue = left.into();
                s.spare.extend(gone.into_iter().map(|job| job.buffer));
            }
        }
        s.spare.push(job.buffer);
        self.done.notify_all();
    }
}

impl State {
    /// Notes how unit `unit` was found.
    fn count(&mut self, unit: usize) {
        match &self.places[unit] {
            Place::Ready { ahead: false, .. } => self.stats.hits += 1,
            Place::Ready { ahead: true, .. } | Place::Reading(_) => self.stats.foreseen += 1,
            Place::Absent | Place::Failed(_) => self.stats.misses += 1,
        }
        // What failed for another visit is tried anew.
        if matches!(self.places[unit], Place::Failed(_)) && self.pins[unit] == 1 {
            self.places[unit] = Place::Absent;
        }
    }

    /// The parts of a unit that is ready, for work on them.
    fn take_up(&mut self, unit: usize) -> Vec<Arc<Bytes>> {
        let Place::Ready { parts, ahead } = &mut self.places[unit] else { return Vec::new() };
        if std::mem::take(ahead) {
            self.ahead_bytes -= parts.iter().map(|p| p.as_slice().len()).sum::<usize>();
        }
        parts.clone()
    }

    /// Learns from what became of the last guess.
    fn judge(&mut self, layer: usize, ids: &[u32]) {
        if self.guess.0 != layer {
            return;
        }
        self.guess.0 = usize::MAX;
        for id in &self.guess.1 {
            let came = ids.contains(id);
            self.stats.guesses += 1;
            self.stats.guessed += u64::from(came);
            self.trust += LEARN * (f32::from(u8::from(came)) - self.trust);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// A file of units of one byte value each, whose reads can be made to fail, to lie, to wait.
    #[derive(Default)]
    struct Faulty {
        /// Reads so far.
        reads: AtomicU64,
        /// Of the next reads so many fail.
        failing: AtomicU64,
        /// Reads of this unit fail always.
        broken: Option<u64>,
        /// Reads of this unit give other bytes.
        lying: AtomicU64,
        /// Whether reads wait.
        closed: Mutex<bool>,
        open: Condvar,
        short: AtomicBool,
    }

    /// Bytes of a part of a unit; they begin 100 bytes behind a multiple of the alignment.
    const BYTES: usize = 3 * ALIGN - 200;
    const STEP: u64 = 4 * ALIGN as u64;
    const NOBODY: u64 = u64::MAX;

    impl Disk for Arc<Faulty> {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            let mut closed = self.closed.lock().unwrap();
            while *closed {
                closed = self.open.wait(closed).unwrap();
            }
            drop(closed);
            assert!(
                offset.is_multiple_of(ALIGN as u64)
                    && buffer.len().is_multiple_of(ALIGN)
                    && (buffer.as_ptr() as usize).is_multiple_of(ALIGN)
            );
            let unit = offset / STEP / 2;
            let fails = self.failing.try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
            if fails || self.broken == Some(unit) {
                return Err(io::Error::other("the disk is on strike"));
            }
            if self.short.load(Ordering::Relaxed) {
                return Ok(ALIGN);
            }
            let lie = if self.lying.load(Ordering::Relaxed) == unit { 128 } else { 0 };
            buffer.fill(value(unit as usize) ^ lie);
            Ok(buffer.len())
        }

        fn how(&self) -> &'static str {
            "badly"
        }
    }

    fn value(unit: usize) -> u8 {
        unit as u8 + 1
    }

    /// Bytes of memory of a unit.
    const ROOM: usize = 6 * ALIGN;

    fn store(disk: &Arc<Faulty>, slots: usize, change: impl FnOnce(&mut Setup)) -> Store {
        let (layers, experts) = (3, 4);
        let unit = |unit: usize| {
            let part = |part: u64| Part {
                offset: (2 * unit as u64 + part) * STEP + 100,
                bytes: BYTES,
                checksums: vec![(0..BYTES, xxh3_64(&vec![value(unit); BYTES]))],
            };
            vec![part(0), part(1)]
        };
        let mut setup = Setup {
            layers,
            experts,
            used: 2,
            units: (0..layers * experts).map(unit).collect(),
            budget_bytes: slots * ROOM,
            policy: Policy::Foresight,
            verify_reads: false,
            threads: 2,
        };
        change(&mut setup);
        Store::new(Box::new(Arc::clone(disk)), setup).unwrap()
    }

    /// Writes down what it works on, and checks it.
    #[derive(Default)]
    struct Worker {
        layer: usize,
        worked: Vec<u32>,
        held: Option<usize>,
        stop_at: Option<u32>,
    }

    impl Client for Worker {
        type Error = Said;

        fn work(&mut self, id: u32, parts: &[Arc<Bytes>]) -> Result<(), Said> {
            for part in parts {
                assert!(part.as_slice()[100..100 + BYTES].iter().all(|&b| b == value(self.layer * 4 + id as usize)), "{id}");
            }
            assert_eq!(parts.len(), 2);
            self.worked.push(id);
            if self.stop_at == Some(id) { Err(Said(format!("{id} will not do"))) } else { Ok(()) }
        }

        fn forget(&mut self, unit: usize) -> bool {
            self.held != Some(unit)
        }
    }

    /// An error as text.
    #[derive(Debug)]
    struct Said(String);

    impl From<(u32, Failure)> for Said {
        fn from((id, failure): (u32, Failure)) -> Said {
            Said(format!("{id}: {failure:?}"))
        }
    }

    fn ask(store: &Store, layer: usize, ids: &[u32], next: Option<Guess<'_>>) -> Result<Vec<u32>, String> {
        let mut worker = Worker { layer, ..Worker::default() };
        store.visit(Visit { layer, ids, odds: &[0.25; 4], next }, &mut worker).map_err(|Said(what)| what)?;
        worker.worked.sort_unstable();
        Ok(worker.worked)
    }

    #[test]
    fn what_is_there_is_not_read_again() {
        let disk = Arc::new(Faulty { lying: NOBODY.into(), ..Faulty::default() });
        let s = store(&disk, 12, |_| {});
        for _ in 0..3 {
            for layer in 0..3 {
                assert_eq!(ask(&s, layer, &[1, 3], None).unwrap(), [1, 3]);
            }
        }
        let stats = s.stats();
        assert_eq!((stats.misses, stats.hits, stats.read_bytes), (6, 12, 6 * ROOM as u64));
        assert_eq!(s.held_bytes(), 6 * ROOM);
    }

    #[test]
    fn any_room_for_one_will_do_and_is_never_exceeded() {
        for slots in 1..=12 {
            let disk = Arc::new(Faulty { lying: NOBODY.into(), ..Faulty::default() });
            let s = store(&disk, slots, |_| {});
            for round in 0..6u32 {
                for layer in 0..3 {
                    let ids: Vec<u32> = (0..4).filter(|id| round % 3 == 0 || (id + round) % 3 != 0).collect();
                    let next = [3, 0];
                    let guess = Guess { layer: (layer + 1) % 3, ids: &next, certain: round % 2 == 0 };
                    assert_eq!(ask(&s, layer, &ids, Some(guess)).unwrap(), ids);
                    assert!(s.held_bytes() <= slots * ROOM, "{slots}: {}", s.held_bytes());
                }
            }
        }
    }

    #[test]
    fn no_room_for_one_is_said() {
        let disk = Arc::new(Faulty { lying: NOBODY.into(), ..Faulty::default() });
        let s = store(&disk, 1, |setup| setup.budget_bytes -= 1);
        assert_eq!(ask(&s, 0, &[2], None).unwrap_err(), format!("2: Budget {{ need: {ROOM}, budget: {} }}", ROOM - 1));
    }

    #[test]
    fn guesses_are_read_and_wrong_ones_given_up() {
        let disk = Arc::new(Faulty { lying: NOBODY.into(), ..Faulty::default() });
        let s = store(&disk, 12, |_| {});
        assert_eq!(ask(&s, 0, &[0], Some(Guess { layer: 1, ids: &[2, 1], certain: false })).unwrap(), [0]);
        while s.stats().ahead_bytes < 2 * ROOM as u64 {
            std::thread::yield_now();
        }
        // One came true, one not; it stays until something better comes.
        assert_eq!(ask(&s, 1, &[2, 3], None).unwrap(), [2, 3]);
        let stats = s.stats();
        assert_eq!((stats.hits, stats.foreseen, stats.misses, stats.guesses, stats.guessed), (0, 1, 2, 2, 1));
        assert_eq!(stats.read_bytes, 4 * ROOM as u64);

        // With the disk closed, a guess that turns out wrong never gets read.
        *disk.closed.lock().unwrap() = true;
        let reads = std::thread::scope(|scope| {
            let visitor = scope.spawn(|| ask(&s, 1, &[0], Some(Guess { layer: 2, ids: &[0, 1, 2], certain: false })));
            while s.stats().misses < 3 {
                std::thread::yield_now();
            }
            *disk.closed.lock().unwrap() = false;
            disk.open.notify_all();
            visitor.join().unwrap().unwrap();
            ask(&s, 2, &[3], None).unwrap();
            disk.reads.load(Ordering::Relaxed)
        });
        assert!(reads <= 2 * 9, "{reads}");
    }

    #[test]
    fn a_read_is_tried_three_times() {
        let disk = Arc::new(Faulty { lying: NOBODY.into(), failing: 2.into(), ..Faulty::default() });
        let s = store(&disk, 12, |setup| setup.threads = 1);
        assert_eq!(ask(&s, 0, &[1], None).unwrap(), [1]);
        assert_eq!(s.stats().retries, 2);

        let disk = Arc::new(Faulty { lying: NOBODY.into(), broken: Some(5), ..Faulty::default() });
        let s = store(&disk, 12, |_| {});
        for _ in 0..2 {
            let error = ask(&s, 1, &[0, 1, 2], None).unwrap_err();
            assert!(error.starts_with("1: Io") && error.contains("on strike"), "{error}");
            // The next request is as good as any.
            assert_eq!(ask(&s, 1, &[0, 2, 3], None).unwrap(), [0, 2, 3]);
        }
        assert!(disk.reads.load(Ordering::Relaxed) >= 6 + 2 * 3);
    }

    #[test]
    fn a_guess_that_cannot_be_read_disturbs_nobody() {
        let disk = Arc::new(Faulty { lying: NOBODY.into(), broken: Some(5), ..Faulty::default() });
        let s = store(&disk, 12, |_| {});
        for _ in 0..3 {
            assert_eq!(ask(&s, 0, &[0], Some(Guess { layer: 1, ids: &[1], certain: false })).unwrap(), [0]);
            std::thread::sleep(3 * PAUSE);
            assert_eq!(ask(&s, 1, &[0], None).unwrap(), [0]);
        }
    }

    #[test]
    fn other_bytes_are_noticed() {
        let disk = Arc::new(Faulty { lying: 6.into(), ..Faulty::default() });
        let s = store(&disk, 12, |_| {});
        let error = ask(&s, 1, &[2], None).unwrap_err();
        assert!(error.starts_with("2: Damaged"), "{error}");
        disk.lying.store(NOBODY, Ordering::Relaxed);
        assert_eq!(ask(&s, 1, &[2], None).unwrap(), [2]);

        // Compared at the first read alone, unless the caller wants it always, recorded or not.
        for (verify_reads, recorded) in [(false, true), (true, true), (true, false)] {
            let disk = Arc::new(Faulty { lying: NOBODY.into(), ..Faulty::default() });
            let s = store(&disk, 1, |setup| {
                setup.verify_reads = verify_reads;
                setup.units.iter_mut().flatten().filter(|_| !recorded).for_each(|part| part.checksums.clear());
            });
            ask(&s, 0, &[1], None).unwrap();
            ask(&s, 0, &[0], None).unwrap(); // takes its room
            disk.lying.store(1, Ordering::Relaxed);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ask(&s, 0, &[1], None)));
            match outcome {
                Ok(found) => assert!(verify_reads && found.unwrap_err().contains("Damaged"), "{verify_reads} {recorded}"),
                Err(_) => assert!(!verify_reads), // the worker saw them
            }
        }
    }

    #[test]
    fn a_file_that_ends_early_is_said() {
        let disk = Arc::new(Faulty { lying: NOBODY.into(), short: true.into(), ..Faulty::default() });
        let s = store(&disk, 12, |setup| setup.threads = 1);
        let error = ask(&s, 0, &[0], None).unwrap_err();
        assert!(error.contains("changed while in use: it ends at byte 4096"), "{error}");
    }

    #[test]
    fn work_that_fails_ends_the_visit_and_nothing_else() {
        let disk = Arc::new(Faulty { lying: NOBODY.into(), ..Faulty::default() });
        let s = store(&disk, 2, |_| {});
        let mut worker = Worker { stop_at: Some(1), ..Worker::default() };
        let visit = Visit { layer: 0, ids: &[0, 1, 2, 3], odds: &[0.25; 4], next: None };
        assert_eq!(s.visit(visit, &mut worker).unwrap_err().0, "1 will not do");
        assert_eq!(ask(&s, 0, &[0, 1, 2, 3], None).unwrap(), [0, 1, 2, 3]);
    }

    #[test]
    fn what_is_in_use_does_not_give_way() {
        let disk = Arc::new(Faulty { lying: NOBODY.into(), ..Faulty::default() });
        let s = store(&disk, 2, |_| {});
        ask(&s, 0, &[0, 1], None).unwrap();
        let mut worker = Worker { layer: 1, held: Some(0), ..Worker::default() };
        s.visit(Visit { layer: 1, ids: &[0, 1, 2], odds: &[0.25; 4], next: None }, &mut worker).unwrap();
        let hits = s.stats().hits;
        ask(&s, 0, &[0], None).unwrap();
        assert_eq!(s.stats().hits, hits + 1);
    }

    #[test]
    fn many_visitors_share_a_small_store() {
        let disk = Arc::new(Faulty { lying: NOBODY.into(), ..Faulty::default() });
        let s = store(&disk, 3, |_| {});
        std::thread::scope(|scope| {
            for seed in 0..4u32 {
                let s = &s;
                scope.spawn(move || {
                    for i in 0..60u32 {
                        let layer = ((i + seed) % 3) as usize;
                        let ids: Vec<u32> = (0..4).filter(|id| (i * 7 + seed + id) % 3 != 0).collect();
                        let guess = Guess { layer: (layer + 1) % 3, ids: &[1, 2], certain: false };
                        assert_eq!(ask(s, layer, &ids, Some(guess)).unwrap(), ids);
                    }
                });
            }
        });
        assert!(s.held_bytes() <= 3 * ROOM);
    }
}
