//! Which expert gives way when another needs its memory.

/// What decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The one used longest ago.
    Lru,
    /// The one used least often, use of long ago counting less.
    Lfu,
    /// The one whose next use is furthest away, as far as recency, the router's probabilities and the place of its layer tell.
    #[default]
    Foresight,
}

impl Policy {
    /// All of them.
    pub const ALL: [Policy; 3] = [Policy::Lru, Policy::Lfu, Policy::Foresight];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Lru => "lru",
            Policy::Lfu => "lfu",
            Policy::Foresight => "foresight",
        }
    }

    /// The policy called `name`.
    pub fn named(name: &str) -> Option<Policy> {
        Policy::ALL.into_iter().find(|p| p.name() == name)
    }
}

/// What is remembered of every expert, and what follows from it. Time is counted in visits of layers.
#[derive(Clone, Debug)]
pub struct Ranking {
    policy: Policy,
    layers: usize,
    experts: usize,
    /// Visits so far.
    now: u64,
    /// The layer of the last visit.
    layer: usize,
    seen: Vec<Seen>,
    /// Visits of each layer.
    visits: Vec<u32>,
    /// How far off the two means were that a use was told by: squares, over many visits of all layers.
    errors: [f32; 2],
}

/// What is remembered of one expert.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    last_use: u64,
    /// Uses, halved by and by.
    uses: f32,
    /// How probable a use at the next visit of its layer is: means over the last few visits, and over many.
    soon: f32,
    usual: f32,
}

/// How much of a mean the newest visit is.
const SOON: f32 = 0.3;
const USUAL: f32 = 0.03;
/// How much of the mean error the newest is.
const ERROR: f32 = 0.0005;
/// How much more the mean that errs less counts.
const TRUST: f32 = 100.0;
/// What uses lose from one visit of their layer to the next.
const FADE: f32 = 0.98;

impl Ranking {
    /// For `layers` layers of `experts` experts each, of which `used` are used at a time.
    pub fn new(policy: Policy, layers: usize, experts: usize, used: usize) -> Ranking {
        let even = used as f32 / experts.max(1) as f32;
        let seen = Seen { soon: even, usual: even, ..Seen::default() };
        Ranking {
            policy,
            layers,
            experts,
            now: 0,
            layer: layers.saturating_sub(1),
            seen: vec![seen; layers * experts],
            visits: vec![0; layers],
            errors: [0.2; 2],
        }
    }

    /// Takes note of a visit of `layer`: `ids` are used, and `odds` `[experts]` is what its router thinks of all of them, 1 in sum.
    pub fn visit(&mut self, layer: usize, ids: &[u32], odds: &[f32], used: usize) {
        self.now += 1;
        self.layer = layer;
        let now = self.now;
        // Of a long prompt all are used, which says nothing about the next token.
        let telling = ids.len() <= used;
        let visits = self.visits.get_mut(layer).map_or(0, |n| {
            *n = n.saturating_add(1);
            *n
        });
        // A mean over many visits is one over all as long as there are few.
        let usual = USUAL.max(1.0 / (visits as f32 + 4.0));
        for (id, seen) in self.seen.iter_mut().skip(layer * self.experts).take(self.experts).enumerate() {
            let chosen = ids.contains(&(id as u32));
            seen.uses *= FADE;
            if chosen {
                seen.uses += 1.0;
                seen.last_use = now;
            }
            // An expert that was nearly chosen is likelier to be next time than one that was not thought of.
            let thought = (odds.get(id).copied().unwrap_or(0.0) * used as f32).min(1.0);
            let use_now = if telling { 0.5 * (f32::from(u8::from(chosen)) + thought) } else { thought };
            if telling {
                for (error, mean) in self.errors.iter_mut().zip([seen.soon, seen.usual]) {
                    *error += ERROR * ((f32::from(u8::from(chosen)) - mean).powi(2) - *error);
                }
            }
            seen.soon += SOON * (use_now - seen.soon);
            seen.usual += usual * (use_now - seen.usual);
        }
    }

    /// What keeping expert `id` of `layer` is worth: of those in memory the one that is worth least gives way.
    pub fn worth(&self, layer: usize, id: u32) -> f64 {
        let Some(seen) = self.seen.get(layer * self.experts + id as usize) else { return 0.0 };
        match self.policy {
            Policy::Lru => seen.last_use as f64,
            Policy::Lfu => f64::from(seen.uses),
            Policy::Foresight => {
                // Some routers have moods, others only favourites: what has told the next use better counts more.
                let late = 1.0 / (1.0 + (TRUST * (self.errors[0] - self.errors[1])).exp());
                -self.wait(layer, f64::from(late * seen.soon + (1.0 - late) * seen.usual))
            }
        }
    }

    /// What reading an expert ahead is worth that will be used with probability `p` when `layer` comes, in the same measure as
    /// [`worth`](Ranking::worth); `None` where the policy has no such measure.
    pub fn worth_ahead(&self, layer: usize, p: f32) -> Option<f64> {
        (self.policy == Policy::Foresight).then(|| -self.wait(layer, f64::from(p)))
    }

    /// Visits until an expert of `layer` is used that is used with probability `p` every time.
    fn wait(&self, layer: usize, p: f64) -> f64 {
        let layers = self.layers.max(1);
        // From the layer of the last visit on, that layer itself being a whole turn away.
        let turn = (layer + layers - self.layer - 1) % layers + 1;
        turn as f64 + (1.0 / p.clamp(1e-3, 1.0) - 1.0) * layers as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranking(policy: Policy) -> Ranking {
        let mut r = Ranking::new(policy, 2, 4, 1);
        for id in [0, 0, 0, 1, 0, 2] {
            for layer in 0..2 {
                r.visit(layer, &[id], &[0.25; 4], 1);
            }
        }
        r
    }

    #[test]
    fn names() {
        for policy in Policy::ALL {
            assert_eq!(Policy::named(policy.name()), Some(policy));
        }
        assert_eq!(Policy::named("fifo"), None);
    }

    #[test]
    fn lru_keeps_what_came_last() {
        let r = ranking(Policy::Lru);
        let worth = [0, 1, 2, 3].map(|id| r.worth(0, id));
        assert!(worth[2] > worth[0] && worth[0] > worth[1] && worth[1] > worth[3], "{worth:?}");
    }

    #[test]
    fn lfu_keeps_what_comes_often() {
        let r = ranking(Policy::Lfu);
        let worth = [0, 1, 2, 3].map(|id| r.worth(0, id));
        assert!(worth[0] > worth[2] && worth[2] > worth[1] && worth[1] > worth[3], "{worth:?}");
    }

    #[test]
    fn foresight_prefers_the_layer_that_comes_next_among_equals() {
        let mut r = Ranking::new(Policy::Foresight, 8, 4, 1);
        r.visit(3, &[], &[], 1);
        let worth: Vec<f64> = (0..8).map(|layer| r.worth(layer, 0)).collect();
        // Layer 4 is next, layer 2 next to last, layer 3 has just been; of it nothing was used, which makes it worth still less.
        for (sooner, later) in [(4, 5), (5, 7), (7, 0), (0, 2), (2, 3)] {
            assert!(worth[sooner] > worth[later], "{sooner} {later} {worth:?}");
        }
        // A probable one of the layer just passed is worth more than an improbable one of the next.
        assert!(r.worth_ahead(3, 0.9) > Some(r.worth(4, 0)));
        assert!(Ranking::new(Policy::Lru, 8, 4, 1).worth_ahead(3, 0.9).is_none());
    }

    #[test]
    fn foresight_hears_the_router() {
        let mut r = Ranking::new(Policy::Foresight, 1, 3, 1);
        r.visit(0, &[0], &[0.55, 0.4, 0.05], 1);
        let worth = [0, 1, 2].map(|id| r.worth(0, id));
        assert!(worth[0] > worth[1] && worth[1] > worth[2], "{worth:?}");
    }
}
