//! The store over a disk of its own that fails, lies and waits when it is told to.

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
            offset.is_multiple_of(ALIGN as u64) && buffer.len().is_multiple_of(ALIGN) && (buffer.as_ptr() as usize).is_multiple_of(ALIGN)
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

fn store(disk: &Arc<Faulty>, slots: usize, change: impl FnOnce(&mut Setup<u8>)) -> Store<u8> {
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
        carry: None,
        policy: Policy::Foresight,
        verify_reads: false,
        threads: 2,
    };
    change(&mut setup);
    Store::new(Box::new(Arc::clone(disk)), setup).unwrap()
}

/// Waits for what other threads do, and not for ever.
#[track_caller]
fn until(done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "it does not come about");
        std::thread::yield_now();
    }
}

/// Writes down what it works on, and checks it.
#[derive(Default)]
struct Worker {
    layer: usize,
    worked: Vec<u32>,
    held: Option<usize>,
    stop_at: Option<u32>,
}

impl Client<u8> for Worker {
    type Error = Said;

    fn work(&mut self, id: u32, unit: &Unit<u8>) -> Result<(), Said> {
        let wanted = value(self.layer * 4 + id as usize);
        match unit {
            Unit::Read(parts) => {
                assert_eq!(parts.len(), 2);
                for part in parts {
                    assert!(part.as_slice()[100..100 + BYTES].iter().all(|&b| b == wanted), "{id}");
                }
            }
            Unit::Carried(found) => assert_eq!(**found, wanted, "{id}"),
        }
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

fn ask(store: &Store<u8>, layer: usize, ids: &[u32], next: Option<Guess<'_>>) -> Result<Vec<u32>, String> {
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
    until(|| s.stats().ahead_bytes >= 2 * ROOM as u64);
    // One came true, one not; it stays until something better comes.
    assert_eq!(ask(&s, 1, &[2, 3], None).unwrap(), [2, 3]);
    let stats = s.stats();
    assert_eq!((stats.hits, stats.foreseen, stats.misses, stats.guesses, stats.guessed), (0, 1, 2, 2, 1));
    assert_eq!(stats.read_bytes, 4 * ROOM as u64);

    // With the disk closed, a guess that turns out wrong never gets read.
    *disk.closed.lock().unwrap() = true;
    let reads = std::thread::scope(|scope| {
        let visitor = scope.spawn(|| ask(&s, 1, &[0], Some(Guess { layer: 2, ids: &[0, 1, 2], certain: false })));
        until(|| s.stats().misses >= 3);
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
    for porter in [None, Some(Arc::new(Porter::default()))] {
        let disk = Arc::new(Faulty { lying: NOBODY.into(), ..Faulty::default() });
        let s = store(&disk, 3, |setup| setup.carry = porter.clone().map(|p| Box::new(p) as Box<dyn Carry<u8>>));
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
        assert!(s.held_bytes() <= 3 * ROOM && s.carried_bytes() <= 3 * ROOM);
    }
}

/// Carries units by looking at them, when it is let.
#[derive(Default)]
struct Porter {
    carried: AtomicU64,
    /// Where it waits before it carries, with whoever is to meet it there.
    gate: Option<std::sync::Barrier>,
    /// This unit it drops.
    clumsy: Option<usize>,
    pins: Arc<AtomicU64>,
}

/// Counts pins that live.
struct Pinned(Arc<AtomicU64>);

impl Drop for Pinned {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Carry<u8> for Arc<Porter> {
    fn carry(&self, unit: usize, parts: &[Arc<Bytes>]) -> Result<u8, Failure> {
        if let Some(gate) = &self.gate {
            gate.wait();
        }
        self.carried.fetch_add(1, Ordering::Relaxed);
        if self.clumsy == Some(unit) {
            return Err(Failure::Device(TargetError::Device { device: "hands".into(), what: "full".into() }));
        }
        let bytes = || parts.iter().flat_map(|part| &part.as_slice()[100..100 + BYTES]).copied();
        let first = bytes().next().unwrap();
        assert!(parts.len() == 2 && bytes().all(|b| b == first), "unit {unit} is one and whole");
        Ok(first)
    }

    fn pin(&self, memory: &mut [u8]) -> Option<Pin> {
        assert!(memory.len() >= BYTES + 100 && memory.len().is_multiple_of(ALIGN));
        self.pins.fetch_add(1, Ordering::Relaxed);
        Some(Box::new(Pinned(Arc::clone(&self.pins))))
    }
}

fn carrying(disk: &Arc<Faulty>, slots: usize, porter: Porter) -> (Store<u8>, Arc<Porter>) {
    let porter = Arc::new(porter);
    let s = store(disk, slots, |setup| {
        setup.carry = Some(Box::new(Arc::clone(&porter)));
        // Alone it meets nobody of its kind at the gate.
        setup.threads = if porter.gate.is_some() { 1 } else { 2 };
    });
    (s, porter)
}

#[test]
fn units_that_are_carried_leave_their_buffers_to_others() {
    for slots in 1..=12 {
        let disk = Arc::new(Faulty { lying: NOBODY.into(), ..Faulty::default() });
        let (s, porter) = carrying(&disk, slots, Porter::default());
        for round in 0..6u32 {
            for layer in 0..3 {
                let ids: Vec<u32> = (0..4).filter(|id| round % 3 == 0 || (id + round) % 3 != 0).collect();
                let guess = Guess { layer: (layer + 1) % 3, ids: &[3, 0], certain: round % 2 == 0 };
                assert_eq!(ask(&s, layer, &ids, Some(guess)).unwrap(), ids);
                assert!(s.carried_bytes() <= slots * ROOM, "{slots}: {}", s.carried_bytes());
                assert!(s.held_bytes() <= ON_THEIR_WAY * ROOM, "{slots}: {}", s.held_bytes());
            }
        }
        let (pins, held) = (porter.pins.load(Ordering::Relaxed), s.held_bytes());
        assert_eq!(pins as usize, held / (ROOM / 2), "every buffer is pinned, once");
        let stats = s.stats();
        assert!(porter.carried.load(Ordering::Relaxed) * ROOM as u64 <= stats.read_bytes);
        if slots == 12 {
            assert_eq!((porter.carried.load(Ordering::Relaxed), s.carried_bytes()), (12, 12 * ROOM), "each once");
        }
        drop(s);
        assert_eq!(porter.pins.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn one_is_worked_on_while_another_is_carried() {
    /// Meets the porter while it works on expert 0.
    struct Meeting(Arc<Porter>, Vec<u32>);

    impl Client<u8> for Meeting {
        type Error = Said;

        fn work(&mut self, id: u32, _: &Unit<u8>) -> Result<(), Said> {
            if self.1.is_empty() {
                self.0.gate.as_ref().unwrap().wait();
            }
            self.1.push(id);
            Ok(())
        }

        fn forget(&mut self, _: usize) -> bool {
            true
        }
    }

    let disk = Arc::new(Faulty { lying: NOBODY.into(), ..Faulty::default() });
    let (s, porter) = carrying(&disk, 12, Porter { gate: Some(std::sync::Barrier::new(2)), ..Porter::default() });
    std::thread::scope(|scope| {
        // The first is carried when this thread comes to the gate; the second when the work on the first does.
        scope.spawn(|| porter.gate.as_ref().unwrap().wait());
        let mut meeting = Meeting(Arc::clone(&porter), Vec::new());
        s.visit(Visit { layer: 0, ids: &[0, 1], odds: &[0.25; 4], next: None }, &mut meeting).map_err(|Said(e)| e).unwrap();
        assert_eq!(meeting.1.len(), 2);
    });
}

#[test]
fn what_cannot_be_carried_is_said_and_the_rest_goes_on() {
    let disk = Arc::new(Faulty { lying: NOBODY.into(), ..Faulty::default() });
    let (s, porter) = carrying(&disk, 12, Porter { clumsy: Some(5), ..Porter::default() });
    for _ in 0..2 {
        let error = ask(&s, 1, &[0, 1, 2], None).unwrap_err();
        assert!(error.starts_with("1: Device") && error.contains("full"), "{error}");
        assert_eq!(ask(&s, 1, &[0, 2, 3], None).unwrap(), [0, 2, 3]);
        assert_eq!(s.carried_bytes(), 3 * ROOM);
    }
    // As a guess it disturbs nobody.
    let carried = porter.carried.load(Ordering::Relaxed);
    assert_eq!(ask(&s, 0, &[0], Some(Guess { layer: 1, ids: &[1], certain: false })).unwrap(), [0]);
    until(|| porter.carried.load(Ordering::Relaxed) >= carried + 2);
    assert_eq!(ask(&s, 1, &[0], None).unwrap(), [0]);
    assert_eq!(s.carried_bytes(), 4 * ROOM);
}

#[test]
fn a_guess_that_is_being_carried_arrives() {
    let disk = Arc::new(Faulty { lying: NOBODY.into(), ..Faulty::default() });
    let (s, porter) = carrying(&disk, 12, Porter { gate: Some(std::sync::Barrier::new(2)), ..Porter::default() });
    let gate = porter.gate.as_ref().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| gate.wait());
        assert_eq!(ask(&s, 0, &[0], Some(Guess { layer: 1, ids: &[2], certain: false })).unwrap(), [0]);
    });
    until(|| s.stats().ahead_bytes >= ROOM as u64);
    // It is wrong, but its bytes are there; what is wanted comes beside it.
    std::thread::scope(|scope| {
        scope.spawn(|| [gate.wait(), gate.wait()]);
        assert_eq!(ask(&s, 1, &[3], None).unwrap(), [3]);
    });
    until(|| s.carried_bytes() == 3 * ROOM && porter.carried.load(Ordering::Relaxed) >= 3);
    let before = s.stats();
    assert_eq!(ask(&s, 1, &[2], None).unwrap(), [2]);
    assert_eq!((s.stats().since(&before).foreseen, s.stats().since(&before).read_bytes), (1, 0));
}
