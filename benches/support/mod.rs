//! What the benches share: clocks, the machine's limits, and weights in a mapped file.
#![allow(dead_code)] // each bench uses its part

pub mod clock;
pub mod limits;
pub mod weights;

/// Threads to measure with: one, and as many as `SPHINX_THREADS` says or as there are physical cores.
pub fn thread_counts() -> Vec<usize> {
    let asked = std::env::var("SPHINX_THREADS").ok().and_then(|v| v.parse().ok());
    let most = asked.unwrap_or_else(sphinx_targets::cpu::pool::default_threads).max(1);
    if most == 1 { vec![1] } else { vec![most, 1] }
}

/// The command line of a bench: words that the names of cases must contain, one of them, and `--rounds N`.
pub struct Arguments {
    words: Vec<String>,
    pub rounds: usize,
}

impl Arguments {
    /// Reads them; cargo adds `--bench`.
    pub fn read(rounds: usize) -> Arguments {
        let mut all = std::env::args().skip(1).filter(|a| a != "--bench");
        let mut found = Arguments { words: Vec::new(), rounds };
        while let Some(a) = all.next() {
            if a == "--rounds" {
                found.rounds = all.next().and_then(|n| n.parse().ok()).filter(|&n| n > 0).expect("--rounds takes a number");
            } else {
                found.words.push(a);
            }
        }
        found
    }

    /// Whether a case of this name is wanted.
    pub fn want(&self, name: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|w| name.split([' ', '/']).any(|part| part == w))
    }
}
