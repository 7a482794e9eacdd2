//! A mixture of experts: a router chooses a few experts for every row, and the row's result is their weighted sum.

use sphinx_targets::{After, Linear, Target};

use crate::Result;
use crate::experts::{Asked, Experts, Guess};
use crate::source::LanguageParams;

/// The mixture of one layer; its experts are kept elsewhere.
pub struct Mixture<T: Target> {
    /// `[experts, dim]`.
    pub router: Linear<T>,
    /// Which layer's experts are its own.
    pub layer: usize,
}

/// Buffers of a session that runs a mixture, named by what they hold.
pub struct MixtureScratch<T: Target> {
    /// What the router says `[chunk, experts]`.
    scores: T::Buffer,
    /// The same, where the choice is made.
    host_scores: Vec<f32>,
    routes: Routes,
    /// The current row as the next layer's router would see it, were this layer's experts to add nothing `[1, dim]`.
    ahead: T::Buffer,
    /// Which experts it would choose.
    guess: Routes,
    /// All experts of a layer: what a long prompt goes through.
    all: Vec<u32>,
    /// What each row's experts made of it `[chunk · used, dim]`.
    results: T::Buffer,
}

impl<T: Target> MixtureScratch<T> {
    /// Buffers for runs of at most `chunk` rows.
    pub(super) fn new(t: &T, params: &LanguageParams, chunk: usize) -> Result<MixtureScratch<T>> {
        Ok(MixtureScratch {
            scores: t.buffer(chunk, params.experts)?,
            host_scores: vec![0.0; chunk * params.experts],
            routes: Routes::new(params.experts, params.experts_used, chunk),
            ahead: t.buffer(1, params.dim)?,
            guess: Routes::new(params.experts, params.experts_used, 1),
            all: (0..params.experts as u32).collect(),
            results: t.buffer(chunk * params.experts_used, params.dim)?,
        })
    }

    /// Numbers in the buffers, which hold `chunk` rows.
    pub(super) fn numbers(&self, t: &T, chunk: usize) -> usize {
        let results = chunk * self.routes.used * t.width(&self.results);
        2 * chunk * t.width(&self.scores) + t.width(&self.ahead) + results
    }
}

impl<T: Target> Mixture<T> {
    /// Adds what the chosen experts make of the rows of `normed` to those of `x`. Each expert is visited once.
    ///
    /// `next` is the mixture of the next layer and the norm before it. Where experts are read ahead of their use, its router is
    /// asked what it would choose if this layer's experts added nothing: mostly it chooses the same when they have.
    pub(super) fn forward(
        &self,
        t: &T,
        experts: &dyn Experts<T>,
        normed: &T::Buffer,
        next: Option<Next<'_, T>>,
        s: &mut MixtureScratch<T>,
        x: &mut T::Buffer,
    ) -> Result<()> {
        let MixtureScratch { scores, host_scores, routes, ahead, guess, all, results } = s;
        t.linear(normed, &self.router, After::Nothing, scores)?;
        let scores_of_rows = &mut host_scores[..t.rows(normed) * routes.experts];
        t.read(scores, 0, scores_of_rows)?;
        routes.choose(scores_of_rows);
        let (used, rows) = (routes.used, t.rows(normed));
        let next = match next.filter(|_| experts.wants_guesses()) {
            None => None,
            // So many rows use about every expert.
            Some(next) if rows > 1 => {
                (rows >= CERTAIN_ROWS).then_some(Guess { layer: next.mixture.layer, ids: all.as_slice(), certain: true })
            }
            Some(next) => {
                t.rms_norm(x, next.norm, next.eps, ahead)?;
                t.linear(ahead, &next.mixture.router, After::Nothing, scores)?;
                let scores_of_row = &mut host_scores[..routes.experts];
                t.read(scores, 0, scores_of_row)?;
                guess.choose(scores_of_row);
                Some(Guess { layer: next.mixture.layer, ids: guess.chosen(), certain: false })
            }
        };
        t.set_rows(results, rows * used)?;
        let asked = Asked { layer: self.layer, rows, ids: routes.ids(), odds: routes.odds(), next };
        experts.visit(t, asked, &mut |id, expert| Ok(t.expert_mlp(normed, routes.slots(id), used, expert, results)?))?;
        Ok(t.mix_experts(results, routes.weights(), used, x)?)
    }
}

/// The mixture of the layer that comes next, and the norm before it.
#[derive(Clone, Copy)]
pub(super) struct Next<'a, T: Target> {
    pub(super) norm: &'a T::Vector,
    pub(super) eps: f32,
    pub(super) mixture: &'a Mixture<T>,
}

/// Rows of a chunk from which on it is taken for certain that it goes through all experts.
const CERTAIN_ROWS: usize = 64;

/// Which experts the rows of a chunk go through, and with what weight.
///
/// Row `r` has the slots `r · used` to `r · used + used − 1`, best expert first.
#[derive(Debug)]
pub struct Routes {
    experts: usize,
    used: usize,
    /// Expert of each slot.
    chosen: Vec<u32>,
    /// Weight of each slot; those of a row add up to 1.
    weights: Vec<f32>,
    /// The slots of each expert in turn, ascending.
    grouped: Vec<u32>,
    /// Where in `grouped` each expert's slots begin, and the last one's end `[experts + 1]`.
    starts: Vec<u32>,
    /// Experts that have a slot, ascending.
    ids: Vec<u32>,
    /// Probabilities of one row.
    probabilities: Vec<f32>,
    /// Their mean over the rows.
    odds: Vec<f32>,
}

impl Routes {
    /// Room for `rows` rows; `used` of `experts` experts per row.
    pub fn new(experts: usize, used: usize, rows: usize) -> Routes {
        Routes {
            experts,
            used: used.min(experts),
            chosen: Vec::with_capacity(rows * used),
            weights: Vec::with_capacity(rows * used),
            grouped: Vec::with_capacity(rows * used),
            starts: vec![0; experts + 1],
            ids: Vec::with_capacity(experts),
            probabilities: vec![0.0; experts],
            odds: vec![0.0; experts],
        }
    }

    /// Chooses from the router's `scores` `[rows, experts]`: a softmax over all experts, of which the largest are kept
    /// (of equal ones the first) and divided by their sum. Allocates nothing as long as the rows have room.
    pub fn choose(&mut self, scores: &[f32]) {
        self.chosen.clear();
        self.weights.clear();
        self.starts.fill(0);
        self.odds.fill(0.0);
        for row in scores.chunks_exact(self.experts.max(1)) {
            softmax(row, &mut self.probabilities);
            self.odds.iter_mut().zip(&self.probabilities).for_each(|(sum, p)| *sum += p);
            let first = self.weights.len();
            for _ in 0..self.used {
                // A number that is none is never larger, but when nothing else is left it is taken: the result then
                // shows it.
                let taken = &self.chosen[first..];
                let best = (0..self.experts as u32)
                    .filter(|e| !taken.contains(e))
                    .reduce(|best, e| if self.probabilities[e as usize] > self.probabilities[best as usize] { e } else { best });
                let Some(best) = best else { break };
                self.chosen.push(best);
                self.weights.push(self.probabilities[best as usize]);
                self.starts[best as usize + 1] += 1;
            }
            let kept = &mut self.weights[first..];
            let sum: f32 = kept.iter().sum();
            kept.iter_mut().for_each(|w| *w /= sum);
        }
        let rows = (self.weights.len() / self.used.max(1)).max(1) as f32;
        self.odds.iter_mut().for_each(|sum| *sum /= rows);
        self.group();
    }

    /// Sorts slots by expert.
    fn group(&mut self) {
        self.ids.clear();
        self.ids.extend((0..self.experts as u32).filter(|&e| self.starts[e as usize + 1] > 0));
        for e in 0..self.experts {
            self.starts[e + 1] += self.starts[e];
        }
        self.grouped.clear();
        self.grouped.resize(self.chosen.len(), 0);
        for (slot, &e) in (0u32..).zip(&self.chosen) {
            let at = &mut self.starts[e as usize];
            self.grouped[*at as usize] = slot;
            *at += 1;
        }
        // Each start has moved to the next one's place.
        self.starts.copy_within(..self.experts, 1);
        self.starts[0] = 0;
    }

    /// Experts that some row goes through, ascending.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Slots of expert `id`, ascending.
    pub fn slots(&self, id: u32) -> &[u32] {
        let id = id as usize;
        &self.grouped[self.starts[id] as usize..self.starts[id + 1] as usize]
    }

    /// Weight of each slot `[rows · used]`.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// What the router thinks of all experts `[experts]`, in the mean over rows.
    pub fn odds(&self) -> &[f32] {
        &self.odds
    }

    /// Expert of each slot `[rows · used]`.
    pub fn chosen(&self) -> &[u32] {
        &self.chosen
    }
}

/// `out = exp(x − max x) / Σ`, in f32.
fn softmax(x: &[f32], out: &mut [f32]) {
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for (out, x) in out.iter_mut().zip(x) {
        *out = (x - largest).exp();
        sum += *out;
    }
    out.iter_mut().for_each(|p| *p /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::cell::RefCell;

    use sphinx_quant::{GgmlType, Tensor};
    use sphinx_targets::cpu::{CpuOptions, CpuTarget};
    use sphinx_targets::{Activation, Mlp};

    /// Six experts that come in whatever order, and what was asked for.
    struct Shuffled {
        experts: Vec<Mlp<CpuTarget>>,
        backwards: bool,
        visits: RefCell<Vec<Vec<u32>>>,
    }

    impl Experts<CpuTarget> for Shuffled {
        fn visit(&self, _: &CpuTarget, asked: Asked<'_>, work: &mut dyn FnMut(u32, &Mlp<CpuTarget>) -> Result<()>) -> Result<()> {
            assert_eq!((asked.layer, asked.rows), (3, 20));
            assert!((asked.odds.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            self.visits.borrow_mut().push(asked.ids.to_vec());
            let mut order = asked.ids.to_vec();
            if self.backwards {
                order.reverse();
            }
            order.into_iter().try_for_each(|id| work(id, &self.experts[id as usize]))
        }
    }

    #[test]
    fn experts_come_once_per_chunk_and_in_any_order() {
        let t = CpuTarget::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
        let (dim, hidden, experts, used, rows) = (32, 64, 6, 2, 20);
        let numbers = |n: usize, seed: usize| (0..n).map(move |i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5);
        let linear = |rows: usize, cols: usize, seed: usize| {
            let bytes: Vec<u8> = numbers(rows * cols, seed).flat_map(f32::to_le_bytes).collect();
            let tensor = Tensor::owned("w", GgmlType::F32, &[cols, rows], &bytes).unwrap();
            Linear { weight: t.matrix(&[tensor]).unwrap(), bias: None }
        };
        let expert = |e: usize| Mlp { up: linear(2 * hidden, dim, e), act: Activation::SiluGate, down: linear(dim, hidden, 50 + e) };
        let mixture = Mixture { router: linear(experts, dim, 99), layer: 3 };
        let input: Vec<f32> = numbers(rows * dim, 7).collect();
        let mut results = Vec::new();
        for backwards in [false, true] {
            let source = Shuffled { experts: (0..experts).map(expert).collect(), backwards, visits: RefCell::default() };
            let (mut normed, mut x) = (t.buffer(rows, dim).unwrap(), t.buffer(rows, dim).unwrap());
            t.write(&input, &mut normed, 0).unwrap();
            t.write(&input, &mut x, 0).unwrap();
            let mut s = MixtureScratch {
                scores: t.buffer(rows, experts).unwrap(),
                host_scores: vec![0.0; rows * experts],
                routes: Routes::new(experts, used, rows),
                ahead: t.buffer(1, dim).unwrap(),
                guess: Routes::new(experts, used, 1),
                all: (0..experts as u32).collect(),
                results: t.buffer(rows * used, dim).unwrap(),
            };
            mixture.forward(&t, &source, &normed, None, &mut s, &mut x).unwrap();
            let visits = source.visits.into_inner();
            assert_eq!(visits.len(), 1);
            assert!(visits[0].len() > 2 && visits[0].is_sorted_by(|a, b| a < b), "{visits:?}");
            results.push(x.values().to_vec());
        }
        assert_eq!(results[0], results[1]);
        assert_ne!(results[0], input);
    }

    fn routes(experts: usize, used: usize, scores: &[f32]) -> Routes {
        let mut routes = Routes::new(experts, used, scores.len() / experts);
        routes.choose(&vec![9.0; scores.len()]); // what was chosen before leaves no trace
        routes.choose(scores);
        routes
    }

    #[test]
    fn the_best_are_kept_and_renormalised() {
        let r = routes(4, 2, &[0.0, 2.0, 1.0, -1.0, 3.0, -2.0, 0.0, 3.5]);
        assert_eq!(r.chosen(), [1, 2, 3, 0]);
        assert_eq!(r.ids(), [0, 1, 2, 3]);
        assert_eq!([0, 1, 2, 3].map(|e| r.slots(e).to_vec()), [vec![3], vec![0], vec![1], vec![2]]);
        // Two of a softmax, renormalised, are a softmax of two.
        let of_two = |a: f64, b: f64| (a.exp() / (a.exp() + b.exp())) as f32;
        for (got, want) in r.weights().iter().zip([of_two(2.0, 1.0), of_two(1.0, 2.0), of_two(3.5, 3.0), of_two(3.0, 3.5)]) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
    }

    #[test]
    fn of_equals_the_first_is_taken() {
        let r = routes(4, 3, &[1.0, 1.0, 1.0, 1.0]);
        assert_eq!((r.chosen(), r.ids()), ([0, 1, 2].as_slice(), [0, 1, 2].as_slice()));
        assert_eq!(r.slots(3), [0u32; 0]);
        let r = routes(4, 2, &[0.0, 5.0, 0.0, 5.0]);
        assert_eq!(r.chosen(), [1, 3]);
        assert_eq!(r.weights(), [0.5, 0.5]);
    }

    #[test]
    fn every_expert_has_its_slots_in_order() {
        let rows = 50;
        let scores: Vec<f32> = (0..rows * 7).map(|i| ((i * 37) % 101) as f32 * 0.1).collect();
        let r = routes(7, 3, &scores);
        let mut seen = vec![false; rows * 3];
        for &id in r.ids() {
            assert!(r.slots(id).is_sorted_by(|a, b| a < b) && !r.slots(id).is_empty());
            for &slot in r.slots(id) {
                assert_eq!(r.chosen()[slot as usize], id);
                assert!(!std::mem::replace(&mut seen[slot as usize], true));
            }
        }
        assert!(seen.iter().all(|&s| s) && r.ids().is_sorted());
        for row in r.weights().chunks(3) {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6 && row.is_sorted_by(|a, b| a >= b));
        }
    }

    #[test]
    fn numbers_that_are_none_stay_visible() {
        for bad in [f32::NAN, f32::INFINITY] {
            let r = routes(3, 2, &[0.0, bad, 1.0]);
            assert!(r.weights().iter().any(|w| w.is_nan()), "{bad}");
            assert_eq!(r.chosen().len(), 2);
        }
        let r = routes(3, 2, &[0.0, f32::NEG_INFINITY, 1.0]);
        assert_eq!(r.chosen(), [2, 0]);
    }

    #[test]
    fn all_experts_can_be_used() {
        let r = routes(2, 2, &[0.0, 1.0]);
        assert_eq!(r.chosen(), [1, 0]);
        let r = routes(1, 1, &[5.0, 6.0]);
        assert_eq!((r.chosen(), r.weights()), ([0, 0].as_slice(), [1.0, 1.0].as_slice()));
    }
}
