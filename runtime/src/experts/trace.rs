//! What a mixture asked for, visit by visit, and how caches of any size and policy would have done.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use super::Asked;
use super::policy::{Policy, Ranking};

/// One visit of a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Visited {
    /// Which layer.
    pub layer: usize,
    /// Rows that went through it together.
    pub rows: usize,
    /// The experts that they used, ascending.
    pub ids: Vec<u32>,
    /// What the router thought of all experts, in the mean over rows.
    pub odds: Vec<f32>,
    /// What was guessed for the next layer, likeliest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guess: Vec<u32>,
}

/// All visits of a run, in order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// Layers of the model.
    pub layers: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Of them, those that a row uses.
    pub used: usize,
    /// The visits.
    #[serde(skip)]
    pub visits: Vec<Visited>,
}

impl Trace {
    /// Nothing visited yet.
    pub fn new(layers: usize, experts: usize, used: usize) -> Trace {
        Trace { layers, experts, used, visits: Vec::new() }
    }

    pub(super) fn push(&mut self, asked: &Asked<'_>) {
        let guess = asked.next.filter(|next| !next.certain).map(|next| next.ids.to_vec()).unwrap_or_default();
        self.visits.push(Visited { layer: asked.layer, rows: asked.rows, ids: asked.ids.to_vec(), odds: asked.odds.to_vec(), guess });
    }

    pub(super) fn take(&mut self) -> Trace {
        let visits = std::mem::take(&mut self.visits);
        Trace { visits, ..self.clone() }
    }

    /// Writes one JSON object a line: the model's sizes, then a visit each.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", serde_json::to_string(self)?)?;
        self.visits.iter().try_for_each(|visit| Ok(writeln!(out, "{}", serde_json::to_string(visit)?)?))
    }

    /// Reads what [`write`](Trace::write) wrote.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::InvalidData`] with the line for anything else.
    pub fn read(file: impl BufRead) -> io::Result<Trace> {
        let wrong = |line: usize, what: String| io::Error::new(io::ErrorKind::InvalidData, format!("line {line}: {what}"));
        let mut trace: Option<Trace> = None;
        for (i, line) in file.lines().enumerate() {
            let line = line?;
            match &mut trace {
                None => trace = Some(serde_json::from_str(&line).map_err(|e| wrong(i + 1, e.to_string()))?),
                Some(trace) => {
                    let visit: Visited = serde_json::from_str(&line).map_err(|e| wrong(i + 1, e.to_string()))?;
                    let ids = visit.ids.iter().chain(&visit.guess).all(|&id| (id as usize) < trace.experts);
                    if visit.layer >= trace.layers || !ids || visit.odds.len() != trace.experts {
                        return Err(wrong(i + 1, "a layer or an expert that the model does not have".into()));
                    }
                    trace.visits.push(visit);
                }
            }
        }
        trace.ok_or_else(|| wrong(1, "the file is empty".into()))
    }

    /// How a cache of `slots` experts does on the visits of single rows, of which the first `warm` are not counted.
    pub fn replay(&self, keeper: Keeper, slots: usize, warm: usize) -> Replay {
        let visits: Vec<&Visited> = self.visits.iter().filter(|v| v.rows == 1).collect();
        let key = |layer: usize, id: u32| layer * self.experts + id as usize;
        // When each use is followed by the next one of the same expert, found from behind.
        let mut next_use = vec![usize::MAX; self.layers * self.experts];
        let mut upcoming: Vec<Vec<usize>> = visits.iter().map(|v| vec![usize::MAX; v.ids.len()]).collect();
        for (i, v) in visits.iter().enumerate().rev() {
            for (at, &id) in v.ids.iter().enumerate() {
                upcoming[i][at] = std::mem::replace(&mut next_use[key(v.layer, id)], i);
            }
        }
        let policy = match keeper {
            Keeper::Policy(policy) => policy,
            Keeper::Optimum => Policy::Lru, // not asked
        };
        let mut ranking = Ranking::new(policy, self.layers, self.experts, self.used);
        let mut cached: Vec<usize> = Vec::with_capacity(slots);
        let mut replay = Replay::default();
        for (i, v) in visits.iter().enumerate() {
            ranking.visit(v.layer, &v.ids, &v.odds, self.used);
            let wanted: Vec<usize> = v.ids.iter().map(|&id| key(v.layer, id)).collect();
            for &want in &wanted {
                let hit = cached.contains(&want);
                if i >= warm {
                    replay.uses += 1;
                    replay.hits += usize::from(hit);
                }
                if hit {
                    continue;
                }
                if cached.len() >= slots {
                    let worth = |k: usize| match keeper {
                        Keeper::Policy(_) => ranking.worth(k / self.experts, (k % self.experts) as u32),
                        Keeper::Optimum => -(next_use[k] as f64),
                    };
                    let others = cached.iter().enumerate().filter(|(_, k)| !wanted.contains(k));
                    let Some((at, _)) = others.min_by(|a, b| worth(*a.1).total_cmp(&worth(*b.1))) else { continue };
                    cached.swap_remove(at);
                }
                cached.push(want);
            }
            for (&want, &next) in wanted.iter().zip(&upcoming[i]) {
                next_use[want] = next;
            }
        }
        replay
    }

    /// How many of the guesses about the next layer came true.
    pub fn recall(&self) -> Replay {
        let mut all = Replay::default();
        for pair in self.visits.windows(2).filter(|p| p[0].rows == 1 && p[1].rows == 1 && !p[0].guess.is_empty()) {
            all.uses += pair[1].ids.len();
            all.hits += pair[1].ids.iter().filter(|id| pair[0].guess.contains(id)).count();
        }
        all
    }
}

/// Who decides what gives way in a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// A policy that a store can have.
    Policy(Policy),
    /// Belady's: that whose next use is furthest away, which only a replay knows.
    Optimum,
}

/// What a replay counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// Uses of experts.
    pub uses: usize,
    /// Of them, those that were there.
    pub hits: usize,
}

impl Replay {
    /// The share that were there.
    pub fn rate(self) -> f64 {
        self.hits as f64 / self.uses.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One layer, one expert a row.
    fn trace(ids: &[u32]) -> Trace {
        let visit = |&id: &u32| Visited { layer: 0, rows: 1, ids: vec![id], odds: vec![0.25; 4], guess: Vec::new() };
        Trace { visits: ids.iter().map(visit).collect(), ..Trace::new(1, 4, 1) }
    }

    #[test]
    fn the_optimum_knows_the_future() {
        // With two slots: 0 and 1 miss, 2 misses and replaces 1, 0 is there, 2 is there, 1 misses.
        let t = trace(&[0, 1, 2, 0, 2, 1]);
        assert_eq!(t.replay(Keeper::Optimum, 2, 0), Replay { uses: 6, hits: 2 });
        // Least recently used: 2 replaces 0, 0 replaces 1, 2 is there, 1 misses.
        assert_eq!(t.replay(Keeper::Policy(Policy::Lru), 2, 0), Replay { uses: 6, hits: 1 });
        assert_eq!(t.replay(Keeper::Policy(Policy::Lru), 2, 4), Replay { uses: 2, hits: 1 });
        assert_eq!(t.replay(Keeper::Optimum, 4, 0), Replay { uses: 6, hits: 3 });
    }

    #[test]
    fn no_policy_beats_the_optimum() {
        let ids: Vec<u32> = (0..400u32).map(|i| (i * i / 7 + i / 3) % 4).collect();
        let t = trace(&ids);
        for slots in 1..4 {
            let best = t.replay(Keeper::Optimum, slots, 0).hits;
            for policy in Policy::ALL {
                assert!(t.replay(Keeper::Policy(policy), slots, 0).hits <= best, "{policy:?} {slots}");
            }
        }
    }

    #[test]
    fn written_traces_are_read_back() {
        let mut t = trace(&[3, 1]);
        t.visits[0].guess = vec![1, 2];
        let mut file = Vec::new();
        t.write(&mut file).unwrap();
        assert_eq!(Trace::read(file.as_slice()).unwrap(), t);
        assert_eq!(t.recall(), Replay { uses: 1, hits: 1 });
        for (text, what) in [
            ("", "empty"),
            ("{}", "line 1"),
            ("{\"layers\":1,\"experts\":2,\"used\":1}\n{\"layer\":1,\"rows\":1,\"ids\":[],\"odds\":[0,1]}", "line 2"),
        ] {
            let error = Trace::read(text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
    }
}
