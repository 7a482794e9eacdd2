//! Which token comes next.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use crate::{Result, RuntimeError};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the best token.
    pub temperature: f32,
    /// A token stays while the probability of all better ones is at most this.
    pub top_p: f32,
    /// Start of the random numbers: equal seeds give equal replies.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.1, top_p: 0.5, seed: 0 }
    }
}

impl Sampling {
    /// Always the best token.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0 };

    /// Whether the numbers make sense.
    ///
    /// # Errors
    /// [`RuntimeError::Usage`] for a temperature outside 0..=100 or a top-p outside 0..=1, NaN included.
    pub fn check(&self) -> Result<()> {
        if !(0.0..=100.0).contains(&self.temperature) {
            return Err(RuntimeError::Usage(format!("temperature is {}, expected 0 (greedy) to 100", self.temperature)));
        }
        if !(0.0..=1.0).contains(&self.top_p) {
            return Err(RuntimeError::Usage(format!("top-p is {}, expected 0 to 1", self.top_p)));
        }
        Ok(())
    }
}

/// Chooses tokens; its buffers serve one vocabulary.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: Pcg64,
    weights: Vec<f32>,
    nucleus: Vec<(u32, f32)>,
}

impl Sampler {
    /// A sampler for `vocabulary` tokens.
    ///
    /// # Errors
    /// As [`Sampling::check`].
    pub fn new(sampling: Sampling, vocabulary: usize) -> Result<Sampler> {
        sampling.check()?;
        Ok(Sampler {
            sampling,
            random: Pcg64::seed_from_u64(sampling.seed),
            weights: Vec::with_capacity(vocabulary),
            nucleus: Vec::with_capacity(vocabulary),
        })
    }

    /// The next token after `logits`, which are finite.
    pub fn pick(&mut self, logits: &[f32]) -> u32 {
        if self.sampling.temperature <= 0.0 {
            return best(logits);
        }
        self.fill_nucleus(logits);
        let mass: f64 = self.nucleus.iter().map(|&(_, p)| f64::from(p)).sum();
        let mut left = self.random.random::<f64>() * mass;
        for &(id, p) in &self.nucleus {
            left -= f64::from(p);
            if left < 0.0 {
                return id;
            }
        }
        // Rounding can leave a crumb: it belongs to the last token that stayed.
        self.nucleus.last().map_or(0, |&(id, _)| id)
    }

    /// The tokens that stay and their probabilities before renormalising, best first, the lower id of equals first.
    pub fn nucleus(&mut self, logits: &[f32]) -> &[(u32, f32)] {
        self.fill_nucleus(logits);
        &self.nucleus
    }

    fn fill_nucleus(&mut self, logits: &[f32]) {
        let Sampling { temperature, top_p, .. } = self.sampling;
        let max = greatest(logits) / temperature;
        self.weights.clear();
        // Half the smallest number is e^−103.97: what is less is 0, and most of a vocabulary is at low temperatures.
        let weight = |&x: &f32| Some(x / temperature - max).filter(|&x| x >= -104.0).map_or(0.0, f32::exp);
        self.weights.extend(logits.iter().map(weight));
        let sum = self.weights.iter().map(|&w| f64::from(w)).sum::<f64>() as f32;
        // Tokens below this share have, all together, less than 1 − p: the mass before each of them exceeds p, so they
        // need not be sorted. The margin is for rounding.
        let least = (1.0 - top_p) / logits.len() as f32 * 0.9;
        self.nucleus.clear();
        let shares = (0u32..).zip(self.weights.iter().map(|&w| w / sum));
        self.nucleus.extend(shares.filter(|&(_, p)| p >= least));
        if self.nucleus.len() > FEW {
            let least = least_share(&self.nucleus, top_p);
            self.nucleus.retain(|&(_, p)| p >= least);
        }
        self.nucleus.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut mass = 0.0f64;
        let stay = self.nucleus.iter().take_while(|&&(_, p)| {
            mass += f64::from(p);
            mass as f32 - p <= top_p
        });
        let stay = stay.count().max(1);
        self.nucleus.truncate(stay);
    }
}

/// Tokens that are sorted without a thought.
const FEW: usize = 64;

/// A share such that all tokens below it have more than p before them, so that they need not be sorted.
fn least_share(tokens: &[(u32, f32)], top_p: f32) -> f32 {
    // Shares by their exponent and three bits more: an order of sets that needs no comparing.
    const BITS: u32 = 20;
    const SETS: usize = (1f32.to_bits() >> BITS) as usize + 1;
    let mut masses = [0.0f64; SETS];
    for (_, share) in tokens {
        masses[((share.to_bits() >> BITS) as usize).min(SETS - 1)] += f64::from(*share);
    }
    // The margin is for rounding.
    let enough = f64::from(top_p) + 1e-5;
    let mut mass = 0.0;
    let crosses = masses.iter().rposition(|more| {
        mass += more;
        mass > enough
    });
    crosses.map_or(0.0, |set| f32::from_bits((set as u32) << BITS))
}

/// The greatest of finite numbers; −∞ for none.
fn greatest(x: &[f32]) -> f32 {
    // Independent lanes, which compilers turn into vectors.
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = x.as_chunks::<32>();
    let mut lanes = [f32::NEG_INFINITY; 32];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &x)| *lane = greater(*lane, x));
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, greater)
}

/// Index of the greatest logit, the lowest of equals.
pub fn best(logits: &[f32]) -> u32 {
    let max = greatest(logits);
    logits.iter().position(|&x| x == max).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random_logits(seed: u64, n: usize, spread: f32) -> Vec<f32> {
        let mut random = Pcg64::seed_from_u64(seed);
        (0..n).map(|_| (random.random::<f32>() - 0.5) * spread).collect()
    }

    /// The rule as the reference states it: sort all, drop what has more than `p` before it.
    fn sorted_whole(logits: &[f32], t: f32, p: f32) -> Vec<(u32, f32)> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = logits.iter().map(|x| (x / t - max / t).exp()).collect();
        let sum = weights.iter().map(|&w| f64::from(w)).sum::<f64>() as f32;
        let mut all: Vec<(u32, f32)> = (0..).zip(weights.iter().map(|w| w / sum)).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut mass = 0.0f64;
        all.retain(|&(_, share)| {
            mass += f64::from(share);
            mass as f32 - share <= p
        });
        all
    }

    #[test]
    fn the_nucleus_is_that_of_a_whole_sort() {
        for case in 0..200u64 {
            let logits = random_logits(case, 1 + (case as usize * 37) % 900, 1.0 + (case % 12) as f32);
            let t = [0.1, 0.7, 1.0, 5.0][case as usize % 4];
            let p = [0.0, 0.1, 0.5, 0.75, 0.95, 0.999, 1.0][case as usize % 7];
            let mut sampler = Sampler::new(Sampling { temperature: t, top_p: p, seed: 0 }, logits.len()).unwrap();
            let (ours, whole) = (sampler.nucleus(&logits).to_vec(), sorted_whole(&logits, t, p));
            assert_eq!(ours, whole, "case {case}");
        }
    }

    #[test]
    fn many_equals_and_many_zeros_are_as_in_a_whole_sort() {
        for case in 0..60u64 {
            // Few different logits, some of whose shares vanish.
            let logits: Vec<f32> = random_logits(case, 3_000, 40.0).iter().map(|x| x.round() * (case % 5) as f32).collect();
            let (t, p) = ([0.1, 1.0, 100.0][case as usize % 3], [0.0, 0.3, 0.9, 0.9999, 1.0][case as usize % 5]);
            let mut sampler = Sampler::new(Sampling { temperature: t, top_p: p, seed: 0 }, logits.len()).unwrap();
            assert_eq!(sampler.nucleus(&logits), sorted_whole(&logits, t, p), "case {case}");
        }
    }

    #[test]
    fn the_best_is_the_first_greatest() {
        for n in [1, 2, 31, 32, 33, 64, 1_000] {
            for case in 0..50 {
                let logits: Vec<f32> = random_logits(case, n, 6.0).iter().map(|x| x.round()).collect();
                let mut want = 0;
                for (i, x) in logits.iter().enumerate() {
                    want = if *x > logits[want] { i } else { want };
                }
                assert_eq!(best(&logits), want as u32, "{logits:?}");
            }
        }
        assert_eq!(best(&[]), 0);
    }

    #[test]
    fn the_token_that_crosses_p_stays() {
        // Shares 0.5, 0.25, 0.25: before the second lies 0.5.
        let logits = [2f32.ln(), 0.0, 0.0];
        let kept = |p: f32| Sampler::new(Sampling { temperature: 1.0, top_p: p, seed: 0 }, 3).unwrap().nucleus(&logits).len();
        assert_eq!((kept(0.0), kept(0.4), kept(0.6), kept(1.0)), (1, 1, 2, 3));
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let mut sampler = Sampler::new(Sampling::GREEDY, 4).unwrap();
        assert_eq!(sampler.pick(&[1.0, 3.0, 3.0, -1.0]), 1);
        assert_eq!(sampler.pick(&[-5.0; 4]), 0);
    }

    #[test]
    fn equal_seeds_draw_equally_and_frequencies_follow_shares() {
        let logits = [3f32.ln(), 0.0];
        let draw = |seed| {
            let mut s = Sampler::new(Sampling { temperature: 1.0, top_p: 1.0, seed }, 2).unwrap();
            (0..4000).map(|_| s.pick(&logits)).collect::<Vec<u32>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
        let ones = draw(7).iter().sum::<u32>();
        assert!((850..1150).contains(&ones), "{ones} of 4000, expected about 1000");
    }

    #[test]
    fn senseless_numbers_are_refused() {
        let sampling = Sampling::default();
        for temperature in [-1.0, f32::NAN, f32::INFINITY, 101.0] {
            assert!(Sampling { temperature, ..sampling }.check().is_err());
        }
        for top_p in [-0.1, 1.1, f32::NAN] {
            assert!(Sampling { top_p, ..sampling }.check().is_err());
        }
    }
}
