//! What the machine can do at most, which the other benches take their shares of.
//!
//! `cargo bench -p sphinx-targets --no-default-features --bench limits`, then words that a limit's name must
//! have one of, such as `-- read zmm`, and `--rounds N`; `SPHINX_THREADS` sets the larger number of
//! threads. One thread is timed in processor time, several by the clock on the wall.

mod support;

use support::clock::median;
use support::limits::{Limit, Limits};

fn main() {
    let arguments = support::Arguments::read(9);
    let counts = support::thread_counts();
    println!("median (least to most) of {} rounds", arguments.rounds);
    for &threads in &counts {
        let mut limits = Limits::new(threads);
        let mut all = vec![Vec::new(); Limit::ALL.len()];
        for round in 0..=arguments.rounds {
            for (limit, rates) in Limit::ALL.into_iter().zip(&mut all).filter(|(limit, _)| arguments.want(limit.name())) {
                // The first round touches memory and wakes the machine.
                rates.extend(limits.rate(limit).filter(|_| round > 0));
            }
        }
        for (limit, rates) in Limit::ALL.into_iter().zip(all).filter(|(limit, _)| arguments.want(limit.name())) {
            let digits = if limit == Limit::Read { 1 } else { 3 };
            let show = |rate: f64| format!("{:.digits$}", limit.in_units(rate));
            let (least, most) = rates.iter().fold((f64::INFINITY, 0.0f64), |(l, m), &r| (l.min(r), m.max(r)));
            match rates.is_empty() {
                true => println!("{threads} threads  {:<20} absent", limit.name()),
                false => println!(
                    "{threads} threads  {:<20} {:>6} {} ({} to {})",
                    limit.name(),
                    show(median(rates)),
                    limit.unit(),
                    show(least),
                    show(most)
                ),
            }
        }
    }
}
