//! A cache of experts that keeps to a number of bytes, filled by threads of its own.
//!
//! What is kept is a *unit*: all matrices of one expert of one layer, in one or more parts of the file. A visit asks for the units
//! of a layer and works on those that are there while the others arrive. Guesses about the next layer are read when nothing
//! that is wanted has to be, and dropped when they turn out wrong. The memory of units that give way is used again.
//!
//! Where weights are computed with in memory of another kind, units are *carried* there by the thread that has read them, beside
//! the computing: then the budget is of that memory, and here are buffers for a few units on their way, no more.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sphinx_quant::tensor::Bytes;
use sphinx_targets::{Pin, TargetError};
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
/// Units on their way to where they are carried: some are read while another is carried.
const ON_THEIR_WAY: usize = 3;

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

/// What brings units to where they are worked on, as `U`.
pub trait Carry<U>: Send + Sync {
    /// Brings unit `unit`, whose parts are in `parts`. When it returns, nobody but the caller holds these.
    ///
    /// # Errors
    /// Whatever keeps it from there.
    fn carry(&self, unit: usize, parts: &[Arc<Bytes>]) -> Result<U, Failure>;

    /// Readies memory that it carries from, as long as the result lives; `None` where there is nothing to do.
    fn pin(&self, memory: &mut [u8]) -> Option<Pin>;
}

/// A unit that is there.
#[derive(Debug)]
pub enum Unit<U> {
    /// Its parts, in memory.
    Read(Vec<Arc<Bytes>>),
    /// What was made of it where it was carried to.
    Carried(Arc<U>),
}

impl<U> Clone for Unit<U> {
    fn clone(&self) -> Unit<U> {
        match self {
            Unit::Read(parts) => Unit::Read(parts.clone()),
            Unit::Carried(made) => Unit::Carried(Arc::clone(made)),
        }
    }
}

/// What a store holds and how it goes about it.
pub struct Setup<U> {
    /// Layers, experts of a layer, and how many of them a row uses.
    pub layers: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// How many of them a row uses.
    pub used: usize,
    /// The parts of expert `e` of layer `l` at `l · experts + e`.
    pub units: Vec<Vec<Part>>,
    /// Bytes that units may take together, wherever they are.
    pub budget_bytes: usize,
    /// What carries units elsewhere, if they do not stay in memory.
    pub carry: Option<Box<dyn Carry<U>>>,
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
    /// The bytes of this tensor do not lie as its type asks for.
    Misplaced(Arc<str>),
    /// It was read, and cannot be carried to the device.
    Device(TargetError),
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
pub trait Client<U> {
    /// Its errors.
    type Error: From<(u32, Failure)>;

    /// Works on expert `id`.
    ///
    /// # Errors
    /// What it likes; the visit ends with it.
    fn work(&mut self, id: u32, unit: &Unit<U>) -> Result<(), Self::Error>;

    /// Lets go of what it made of unit `unit`; false when that is in use.
    fn forget(&mut self, unit: usize) -> bool;
}

/// The store. Dropping it ends its threads.
pub struct Store<U> {
    shared: Arc<Shared<U>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<U> {
    disk: Box<dyn Disk>,
    units: Vec<Vec<Part>>,
    experts: usize,
    used: usize,
    /// Bytes of units.
    budget_bytes: usize,
    /// Bytes of buffers: the same, unless units are carried away.
    memory_bytes: usize,
    /// Bytes of the largest part.
    largest_part: usize,
    carry: Option<Box<dyn Carry<U>>>,
    verify_reads: bool,
    state: Mutex<State<U>>,
    /// There is something to read, or it is over.
    work: Condvar,
    /// A unit has arrived, or failed, or memory came free.
    done: Condvar,
}

/// Memory that a part is read into.
struct Buffer {
    /// Let go of before the bytes are.
    _pin: Option<Pin>,
    bytes: Arc<Bytes>,
}

impl Buffer {
    fn len(&self) -> usize {
        self.bytes.as_slice().len()
    }
}

struct State<U> {
    places: Vec<Place<U>>,
    /// Visits that have yet to work on a unit.
    pins: Vec<u32>,
    wanted: VecDeque<Job>,
    ahead: VecDeque<Job>,
    /// Jobs that threads are at, also such as were given up meanwhile: their buffers come back.
    in_hand: usize,
    /// Buffers of nobody.
    spare: Vec<Buffer>,
    /// Bytes of all buffers.
    held_bytes: usize,
    /// Bytes of units that are carried, or on their way.
    carried_bytes: usize,
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

enum Place<U> {
    Absent,
    Reading(Reading),
    Ready {
        unit: Unit<U>,
        /// Read for a guess and not used yet.
        ahead: bool,
    },
    Failed(Failure),
}

/// A unit on its way.
struct Reading {
    /// Jobs with another one belong to an earlier try that was given up.
    ticket: u64,
    parts: Vec<Option<Buffer>>,
    left: usize,
    ahead: bool,
    /// All is read, and a thread carries it: too late to give it up.
    carried: bool,
}

/// A part to be read.
struct Job {
    ticket: u64,
    unit: usize,
    part: usize,
    buffer: Buffer,
    /// Bytes of the buffer that are there.
    done: usize,
    tries: u32,
}

impl<U: Send + Sync + 'static> Store<U> {
    /// An empty store over `disk`.
    ///
    /// # Errors
    /// When a thread does not start.
    pub fn new(disk: Box<dyn Disk>, setup: Setup<U>) -> io::Result<Store<U>> {
        let Setup { layers, experts, used, units, budget_bytes, carry, policy, verify_reads, threads } = setup;
        let largest_part = units.iter().flatten().map(Part::room).max().unwrap_or(0);
        let most_parts = units.iter().map(Vec::len).max().unwrap_or(0);
        let memory_bytes = if carry.is_some() { ON_THEIR_WAY * most_parts * largest_part } else { budget_bytes };
        let state = State {
            places: units.iter().map(|_| Place::Absent).collect(),
            pins: vec![0; units.len()],
            wanted: VecDeque::new(),
            ahead: VecDeque::new(),
            in_hand: 0,
            spare: Vec::new(),
            held_bytes: 0,
            carried_bytes: 0,
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
            memory_bytes,
            largest_part,
            carry,
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

    /// Bytes of the units that are carried elsewhere, or on their way.
    pub fn carried_bytes(&self) -> usize {
        self.shared.lock().carried_bytes
    }

    /// Bytes that units may take, wherever they are.
    pub fn budget_bytes(&self) -> usize {
        self.shared.budget_bytes
    }

    /// Has `client` work once on each of the experts of a visit, in the order in which they are to be had.
    ///
    /// # Errors
    /// What `client` returns, or what kept an expert from being read. The store stays as good as before.
    pub fn visit<C: Client<U>>(&self, visit: Visit<'_>, client: &mut C) -> Result<(), C::Error> {
        self.shared.visit(visit, client)
    }
}

impl<U> Drop for Store<U> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl<U> Shared<U> {
    fn lock(&self) -> MutexGuard<'_, State<U>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that a unit takes of the budget.
    fn room(&self, unit: usize) -> usize {
        self.units[unit].iter().map(Part::room).sum()
    }

    /// Bytes of a buffer for `part`. Those that are emptied at once are of one size, and so do for every part.
    fn buffer_bytes(&self, part: &Part) -> usize {
        if self.carry.is_some() { self.largest_part } else { part.room() }
    }

    fn unit(&self, layer: usize, id: u32) -> usize {
        layer * self.experts + id as usize
    }

    fn visit<C: Client<U>>(&self, visit: Visit<'_>, client: &mut C) -> Result<(), C::Error> {
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
                let Some(there) = self.take_up(&mut s, unit) else { continue };
                drop(s);
                let worked = client.work(id, &there);
                drop(there);
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
                let need = self.room(self.unit(layer, id));
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
    fn give_up_wrong(&self, s: &mut State<U>, layer: usize, ids: &[u32]) {
        for id in (0..self.experts as u32).filter(|id| !ids.contains(id)) {
            let unit = self.unit(layer, id);
            if s.pins[unit] == 0 {
                self.give_up(s, unit);
            }
        }
    }

    /// Stops reading `unit` if it is a guess. Buffers of parts that a thread has in hand come back later.
    fn give_up(&self, s: &mut State<U>, unit: usize) -> bool {
        if !matches!(&s.places[unit], Place::Reading(r) if r.ahead && !r.carried) {
            return false;
        }
        let Place::Reading(reading) = std::mem::replace(&mut s.places[unit], Place::Absent) else { return false };
        s.ahead_bytes -= self.room(unit);
        self.uncarried(s, unit);
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
    fn promote(&self, s: &mut State<U>, unit: usize) {
        let Place::Reading(reading) = &mut s.places[unit] else { return };
        if std::mem::take(&mut reading.ahead) {
            let ticket = reading.ticket;
            s.ahead_bytes -= self.room(unit);
            let (mine, left) = std::mem::take(&mut s.ahead).into_iter().partition::<Vec<_>, _>(|job| job.ticket == ticket);
            s.ahead = left.into();
            s.wanted.extend(mine);
            self.work.notify_all();
        }
    }

    /// Begins to read `unit`; false when it has no room. As a guess, only what is worth less than `ahead` gives way to it.
    fn start<C: Client<U>>(&self, s: &mut State<U>, unit: usize, ahead: Option<Option<f64>>, client: &mut C) -> bool {
        let parts = &self.units[unit];
        loop {
            // Buffers of the very size first.
            let mut found = vec![None; parts.len()];
            for (at, buffer) in s.spare.iter().enumerate() {
                if let Some(part) = (0..parts.len()).find(|&p| found[p].is_none() && self.buffer_bytes(&parts[p]) == buffer.len()) {
                    found[part] = Some(at);
                }
            }
            let missing: usize = found.iter().zip(parts).filter(|(f, _)| f.is_none()).map(|(_, p)| self.buffer_bytes(p)).sum();
            let room = match &self.carry {
                _ if s.held_bytes + missing > self.memory_bytes => {
                    if let Some(at) = (0..s.spare.len()).find(|at| !found.contains(&Some(*at))) {
                        s.held_bytes -= s.spare.swap_remove(at).len();
                        continue;
                    }
                    match self.carry {
                        // Buffers come free by themselves; sooner when a guess gives way to what is wanted.
                        Some(_) => ahead.is_none() && self.give_up_any(s),
                        None => self.make_room(s, ahead, client),
                    }
                }
                Some(_) if s.carried_bytes + self.room(unit) > self.budget_bytes => self.make_room(s, ahead, client),
                _ => {
                    self.enqueue(s, unit, &found, ahead.is_some());
                    return true;
                }
            };
            if !room {
                return false;
            }
        }
    }

    /// Has the unit that is worth least give way; false when none may.
    fn make_room<C: Client<U>>(&self, s: &mut State<U>, ahead: Option<Option<f64>>, client: &mut C) -> bool {
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
        ahead.is_none() && self.give_up_any(s)
    }

    /// Stops reading a guess; false when there is none.
    fn give_up_any(&self, s: &mut State<U>) -> bool {
        (0..self.units.len()).any(|unit| s.pins[unit] == 0 && self.give_up(s, unit))
    }

    /// `unit` is not carried any more, nor going to be.
    fn uncarried(&self, s: &mut State<U>, unit: usize) {
        if self.carry.is_some() {
            s.carried_bytes -= self.room(unit);
        }
    }

    fn evict(&self, s: &mut State<U>, unit: usize) {
        let Place::Ready { unit: there, ahead } = std::mem::replace(&mut s.places[unit], Place::Absent) else { return };
        if ahead {
            s.stats.wasted_bytes += self.units[unit].iter().map(|p| p.bytes as u64).sum::<u64>();
            s.ahead_bytes -= self.room(unit);
        }
        self.uncarried(s, unit);
        let Unit::Read(parts) = there else { return };
        for bytes in parts {
            self.put_back(s, Buffer { _pin: None, bytes });
        }
    }

    /// A buffer is nobody's again, unless somebody still holds it; it is theirs then.
    fn put_back(&self, s: &mut State<U>, mut buffer: Buffer) {
        match Arc::get_mut(&mut buffer.bytes) {
            Some(_) => s.spare.push(buffer),
            None => s.held_bytes -= buffer.len(),
        }
    }

    /// Queues the parts of `unit`, with the spare buffers at `found` and new ones; without memory for these the unit has failed.
    fn enqueue(&self, s: &mut State<U>, unit: usize, found: &[Option<usize>], ahead: bool) {
        let parts = &self.units[unit];
        let mut buffers = Vec::with_capacity(parts.len());
        for (part, found) in parts.iter().zip(found) {
            let buffer = match found {
                Some(at) => std::mem::replace(&mut s.spare[*at], Buffer { _pin: None, bytes: Arc::new(Bytes::owned(&[])) }),
                None => match Bytes::pages(self.buffer_bytes(part)) {
                    Ok(mut pages) => {
                        let pin = self.carry.as_ref().zip(pages.as_mut_slice()).and_then(|(carry, memory)| carry.pin(memory));
                        let buffer = Buffer { _pin: pin, bytes: Arc::new(pages) };
                        s.held_bytes += buffer.len();
                        buffer
                    }
                    Err(e) => {
                        s.spare.extend(buffers);
                        s.spare.retain(|b| b.len() > 0);
                        s.places[unit] = Place::Failed(Failure::Io(e));
                        return;
                    }
                },
            };
            buffers.push(buffer);
        }
        s.spare.retain(|b| b.len() > 0);
        if self.carry.is_some() {
            s.carried_bytes += self.room(unit);
        }
        s.tickets += 1;
        let ticket = s.tickets;
        let jobs = buffers.into_iter().enumerate().map(|(part, buffer)| Job { ticket, unit, part, buffer, done: 0, tries: 0 });
        if ahead {
            s.ahead_bytes += self.room(unit);
            s.ahead.extend(jobs);
        } else {
            s.wanted.extend(jobs);
        }
        let left = parts.len();
        let parts = (0..left).map(|_| None).collect();
        s.places[unit] = Place::Reading(Reading { ticket, parts, left, ahead, carried: false });
        self.work.notify_all();
    }

    /// Begins to read what the next layer will want.
    fn start_guess<C: Client<U>>(&self, s: &mut State<U>, guess: Guess<'_>, client: &mut C) {
        if !guess.certain {
            s.guess.0 = guess.layer;
            s.guess.1.clear();
            s.guess.1.extend_from_slice(guess.ids);
        }
        let p = if guess.certain { 1.0 } else { s.trust };
        let limit = s.ranking.worth_ahead(guess.layer, p);
        for &id in guess.ids {
            let unit = self.unit(guess.layer, id);
            if s.ahead_bytes + self.room(unit) > self.budget_bytes / AHEAD_SHARE {
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
    fn read_job<'a>(&'a self, mut s: MutexGuard<'a, State<U>>, mut job: Job) -> MutexGuard<'a, State<U>> {
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
                return self.arrive(s, job);
            }
        }
    }

    /// Reads the next `most` bytes of a part.
    fn read_piece(&self, part: &Part, job: &mut Job, most: usize) -> io::Result<usize> {
        let start = part.offset - part.skip() as u64;
        let buffer = Arc::get_mut(&mut job.buffer.bytes).and_then(Bytes::as_mut_slice);
        let Some(buffer) = buffer else { return Err(io::ErrorKind::InvalidInput.into()) };
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
        let bytes = &job.buffer.bytes.as_slice()[part.skip()..part.skip() + part.bytes];
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

    /// A part is there. With the last one its unit is, once it has been carried to where it belongs.
    fn arrive<'a>(&'a self, mut s: MutexGuard<'a, State<U>>, job: Job) -> MutexGuard<'a, State<U>> {
        let (unit, ticket) = (job.unit, job.ticket);
        let reading = match &mut s.places[unit] {
            Place::Reading(reading) if reading.ticket == ticket => reading,
            _ => {
                s.stats.wasted_bytes += job.done as u64;
                s.spare.push(job.buffer);
                self.done.notify_all();
                return s;
            }
        };
        reading.parts[job.part] = Some(job.buffer);
        reading.left -= 1;
        if reading.left > 0 {
            return s;
        }
        let buffers: Vec<Buffer> = std::mem::take(&mut reading.parts).into_iter().flatten().collect();
        let Some(carry) = &self.carry else {
            let ahead = reading.ahead;
            let parts = buffers.into_iter().map(|buffer| buffer.bytes).collect();
            s.places[unit] = Place::Ready { unit: Unit::Read(parts), ahead };
            self.done.notify_all();
            return s;
        };
        reading.carried = true;
        drop(s);
        let parts: Vec<Arc<Bytes>> = buffers.iter().map(|buffer| Arc::clone(&buffer.bytes)).collect();
        let carried = carry.carry(unit, &parts);
        drop(parts);
        s = self.lock();
        for buffer in buffers {
            self.put_back(&mut s, buffer);
        }
        // It may have become wanted meanwhile.
        let ahead = matches!(&s.places[unit], Place::Reading(reading) if reading.ahead);
        match carried {
            Ok(made) => s.places[unit] = Place::Ready { unit: Unit::Carried(Arc::new(made)), ahead },
            Err(failure) => self.failed(&mut s, unit, ahead, failure),
        }
        self.done.notify_all();
        s
    }

    /// Unit `unit` is not to be had. Whoever wants it is told; a guess that fails is tried again when it is wanted.
    fn failed(&self, s: &mut State<U>, unit: usize, ahead: bool, failure: Failure) {
        self.uncarried(s, unit);
        if ahead {
            s.ahead_bytes -= self.room(unit);
        }
        s.places[unit] = if ahead { Place::Absent } else { Place::Failed(failure) };
    }

    /// Gives up a unit whose part cannot be read. Nothing of it is kept.
    fn fail(&self, s: &mut State<U>, job: Job, failure: Failure) {
        if let Place::Reading(reading) = &mut s.places[job.unit]
            && reading.ticket == job.ticket
        {
            let (ahead, ticket) = (reading.ahead, reading.ticket);
            let buffers: Vec<Buffer> = std::mem::take(&mut reading.parts).into_iter().flatten().collect();
            self.failed(s, job.unit, ahead, failure);
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

    /// Unit `unit` for work on it; `None` when it is not there.
    fn take_up(&self, s: &mut State<U>, unit: usize) -> Option<Unit<U>> {
        let Place::Ready { unit: there, ahead } = &mut s.places[unit] else { return None };
        let (there, foreseen) = (there.clone(), std::mem::take(ahead));
        if foreseen {
            s.ahead_bytes -= self.room(unit);
        }
        Some(there)
    }
}

impl<U> State<U> {
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
mod tests;
