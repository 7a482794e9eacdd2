//! Experts that are read from the file when they are needed, into a cache of so many bytes.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sphinx_quant::gguf::Gguf;
use sphinx_quant::tensor::Bytes;
use sphinx_quant::{GgmlType, Tensor};
use sphinx_targets::{Activation, Carrier, Linear, Mlp, Pin, Target, TargetError};

use super::disk::{DirectFile, Disk};
use super::policy::Policy;
use super::resident::part;
use super::store::{Carry, Client, Failure, Part, Setup, Stats, Store, Unit, Visit};
use super::{Asked, Experts};
use crate::source::LanguageParams;
use crate::source::stacks::{self, Stack};
use crate::{Result, RuntimeError};

/// How experts are streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streaming {
    /// Bytes of the cache.
    pub cache_bytes: usize,
    /// What gives way.
    pub policy: Policy,
    /// Compare checksums at every read, not at the first alone.
    pub verify_reads: bool,
    /// Threads that read.
    pub readers: usize,
}

/// Threads that read when nobody says how many. One keeps a simple disk busy with reads of this size; others want several at a time.
pub const READERS: usize = 4;

/// The experts of a file, of which some are in memory.
pub struct Streamed<T: Target> {
    store: Store<Mlp<T>>,
    file: PathBuf,
    experts: usize,
    plans: Arc<[Plan]>,
    /// What the target makes of a unit that is in memory.
    made: Mutex<Vec<Option<Arc<Mlp<T>>>>>,
}

/// Where the matrices of an expert lie in its parts.
struct Plan {
    parts: Vec<Part>,
    matrices: [Matrix; 3],
}

struct Matrix {
    name: Arc<str>,
    ty: GgmlType,
    dims: Vec<usize>,
    part: usize,
    /// From the part's own first byte on.
    start: usize,
    bytes: usize,
}

impl Plan {
    /// The plan for the matrices `tensors`, whose file is padded to `alignment`.
    fn new(file: &Gguf, tensors: [Tensor; 3]) -> Plan {
        let mut order = [0, 1, 2];
        order.sort_unstable_by_key(|&i: &usize| tensors[i].backing().1.start);
        let mut parts: Vec<Part> = Vec::new();
        let mut places = [(0, 0); 3];
        for i in order {
            let range = tensors[i].backing().1;
            let checksum = file.part_checksum(&tensors[i]);
            // What only padding parts is read in one piece.
            let last = parts.len().wrapping_sub(1);
            match parts.last_mut().filter(|p| (range.start as u64) < p.offset + (p.bytes + file.alignment() as usize) as u64) {
                Some(joined) => {
                    places[i] = (last, range.start - joined.offset as usize);
                    joined.bytes = range.end - joined.offset as usize;
                }
                None => {
                    places[i] = (parts.len(), 0);
                    parts.push(Part { offset: range.start as u64, bytes: range.len(), checksums: Vec::new() });
                }
            }
            let (part, start) = places[i];
            parts[part].checksums.extend(checksum.map(|sum| (start..start + range.len(), sum)));
        }
        let matrix = |i: usize| Matrix {
            name: tensors[i].name().into(),
            ty: tensors[i].ty(),
            dims: tensors[i].dims().to_vec(),
            part: places[i].0,
            start: places[i].1,
            bytes: tensors[i].backing().1.len(),
        };
        Plan { matrices: [matrix(0), matrix(1), matrix(2)], parts }
    }

    /// Matrix `i` in buffers that hold the parts.
    fn tensor(&self, i: usize, parts: &[Arc<Bytes>]) -> Option<Tensor> {
        let m = &self.matrices[i];
        let start = self.parts[m.part].skip() + m.start;
        Tensor::new(&m.name, m.ty, &m.dims, Arc::clone(parts.get(m.part)?), start..start + m.bytes)
    }

    /// The expert in buffers that hold the parts; `matrix` makes its matrices. Fine ones, because routers further up choose by what
    /// experts make.
    fn expert<T: Target>(
        &self,
        parts: &[Arc<Bytes>],
        matrix: impl Fn(&[Tensor]) -> Result<T::Matrix, TargetError>,
    ) -> Result<Mlp<T>, Failure> {
        let tensor = |i: usize| self.tensor(i, parts).ok_or_else(|| Failure::Misplaced(Arc::clone(&self.matrices[i].name)));
        let linear = |parts: &[Tensor]| matrix(parts).map(|weight| Linear { weight, bias: None }).map_err(Failure::Device);
        Ok(Mlp { up: linear(&[tensor(0)?, tensor(1)?])?, act: Activation::SiluGate, down: linear(&[tensor(2)?])? })
    }
}

/// Makes experts on a device of the bytes that are read for them.
struct ToDevice<T: Target> {
    carrier: Box<dyn Carrier<T>>,
    plans: Arc<[Plan]>,
}

impl<T: Target> Carry<Mlp<T>> for ToDevice<T> {
    fn carry(&self, unit: usize, parts: &[Arc<Bytes>]) -> Result<Mlp<T>, Failure> {
        self.plans[unit].expert(parts, |tensors| self.carrier.matrix_fine(tensors))
    }

    fn pin(&self, memory: &mut [u8]) -> Option<Pin> {
        self.carrier.pin(memory)
    }
}

impl<T: Target> Streamed<T> {
    /// The experts in `file`, which `params` were read from.
    ///
    /// # Errors
    /// When a tensor is missing, the file cannot be opened again, or not one expert fits.
    pub fn open(t: &T, file: &Gguf, params: &LanguageParams, streaming: Streaming) -> Result<Streamed<T>> {
        let io = |source| RuntimeError::Io { file: file.path().to_owned(), source };
        let disk = DirectFile::open(file.path(), file.file_bytes()).map_err(io)?;
        Streamed::over(t, Box::new(disk), file, params, streaming)
    }

    /// The same, read from `disk`.
    pub(crate) fn over(t: &T, disk: Box<dyn Disk>, file: &Gguf, params: &LanguageParams, streaming: Streaming) -> Result<Streamed<T>> {
        let mut plans = Vec::with_capacity(params.layers * params.experts);
        for layer in 0..params.layers {
            let [gate, up, down] = Stack::ALL.map(|stack| stacks::runs(file, stack, layer, params.experts));
            let (gate, up, down) = (gate?, up?, down?);
            for e in 0..params.experts {
                let gate = part(file, Stack::Gate, layer, &gate, e)?;
                let up = part(file, Stack::Up, layer, &up, e)?;
                let down = part(file, Stack::Down, layer, &down, e)?;
                plans.push(Plan::new(file, [gate, up, down]));
            }
        }
        let how = disk.how();
        let plans: Arc<[Plan]> = plans.into();
        let carry = t.carrier().map(|carrier| Box::new(ToDevice { carrier, plans: Arc::clone(&plans) }) as Box<dyn Carry<Mlp<T>>>);
        let place = if carry.is_some() { "on the device" } else { "in memory" };
        let setup = Setup {
            layers: params.layers,
            experts: params.experts,
            used: params.experts_used,
            units: plans.iter().map(|p| p.parts.clone()).collect(),
            budget_bytes: streaming.cache_bytes,
            carry,
            policy: streaming.policy,
            verify_reads: streaming.verify_reads,
            threads: streaming.readers,
        };
        let store = Store::new(disk, setup).map_err(|source| RuntimeError::Io { file: file.path().to_owned(), source })?;
        tracing::info!(
            "experts are read {how} into a cache of {} MiB {place} ({} of {} experts), policy {}",
            streaming.cache_bytes >> 20,
            streaming.cache_bytes / largest(&plans).max(1),
            plans.len(),
            streaming.policy.name(),
        );
        let made = Mutex::new(plans.iter().map(|_| None).collect());
        Ok(Streamed { store, file: file.path().to_owned(), experts: params.experts, plans, made })
    }

    /// What happened so far.
    pub fn stats(&self) -> Stats {
        self.store.stats()
    }

    /// Bytes of memory that the cache has taken: all of it, or buffers on the way to the device.
    pub fn held_bytes(&self) -> usize {
        self.store.held_bytes()
    }

    /// Bytes of the experts that are on the device, or on their way.
    pub fn device_bytes(&self) -> usize {
        self.store.carried_bytes()
    }

    /// Bytes that the cache may take, wherever it is.
    pub fn budget_bytes(&self) -> usize {
        self.store.budget_bytes()
    }

    fn made(&self) -> MutexGuard<'_, Vec<Option<Arc<Mlp<T>>>>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that the largest unit takes.
fn largest(plans: &[Plan]) -> usize {
    plans.iter().map(|p| p.parts.iter().map(Part::room).sum()).max().unwrap_or(0)
}

/// A visit, as the store sees it.
struct Visitor<'a, T: Target> {
    streamed: &'a Streamed<T>,
    t: &'a T,
    layer: usize,
    work: &'a mut dyn FnMut(u32, &Mlp<T>) -> Result<()>,
}

/// What ends a visit.
enum Ended {
    Work(RuntimeError),
    Store(u32, Failure),
}

impl From<(u32, Failure)> for Ended {
    fn from((id, failure): (u32, Failure)) -> Ended {
        Ended::Store(id, failure)
    }
}

impl<T: Target> Client<Mlp<T>> for Visitor<'_, T> {
    type Error = Ended;

    fn work(&mut self, id: u32, there: &Unit<Mlp<T>>) -> Result<(), Ended> {
        let parts = match there {
            Unit::Carried(expert) => return (self.work)(id, expert).map_err(Ended::Work),
            Unit::Read(parts) => parts,
        };
        let unit = self.layer * self.streamed.experts + id as usize;
        let there = self.streamed.made()[unit].clone();
        let expert = match there {
            Some(expert) => expert,
            None => {
                let expert = Arc::new(self.streamed.make(self.t, unit, parts).map_err(Ended::Work)?);
                self.streamed.made()[unit] = Some(Arc::clone(&expert));
                expert
            }
        };
        (self.work)(id, &expert).map_err(Ended::Work)
    }

    fn forget(&mut self, unit: usize) -> bool {
        let mut made = self.streamed.made();
        if made[unit].as_ref().is_some_and(|expert| Arc::strong_count(expert) > 1) {
            return false;
        }
        made[unit] = None;
        true
    }
}

impl<T: Target> Streamed<T> {
    fn make(&self, t: &T, unit: usize, parts: &[Arc<Bytes>]) -> Result<Mlp<T>> {
        self.plans[unit].expert(parts, |tensors| t.matrix_fine(tensors)).map_err(|failure| match failure {
            // Nothing is copied here.
            Failure::Device(e) => e.into(),
            failure => self.failed(unit / self.experts, (unit % self.experts) as u32, failure),
        })
    }

    fn failed(&self, layer: usize, expert: u32, failure: Failure) -> RuntimeError {
        RuntimeError::Expert { file: self.file.clone(), layer, expert, failure }
    }
}

impl<T: Target> Experts<T> for Streamed<T> {
    fn visit(&self, t: &T, asked: Asked<'_>, work: &mut dyn FnMut(u32, &Mlp<T>) -> Result<()>) -> Result<()> {
        let layer = asked.layer;
        let visit = Visit { layer, ids: asked.ids, odds: asked.odds, next: asked.next };
        let mut visitor = Visitor { streamed: self, t, layer, work };
        self.store.visit(visit, &mut visitor).map_err(|ended| match ended {
            Ended::Work(e) => e,
            Ended::Store(expert, failure) => self.failed(layer, expert, failure),
        })
    }

    fn wants_guesses(&self) -> bool {
        true
    }
}
