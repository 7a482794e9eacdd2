//! How long something took, by the clock on the wall and by the processors' own.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

/// Seconds.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    /// By the clock on the wall.
    pub wall: f64,
    /// Processor time per thread. It does not see that a neighbour had the processor, so that one thread can be measured
    /// on a busy machine; of several threads it counts what one of them waits for another that was held up.
    pub cpu: f64,
}

impl Took {
    /// What counts: processor time of one thread, wall time of several.
    pub fn seconds(self, threads: usize) -> f64 {
        if threads == 1 { self.cpu } else { self.wall }
    }
}

/// Runs `work`, which occupies `threads` threads from start to end.
pub fn time(threads: usize, work: impl FnOnce()) -> Took {
    let cpu = || {
        let t = clock_gettime(ClockId::ProcessCPUTime);
        t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
    };
    let (wall_start, cpu_start) = (Instant::now(), cpu());
    work();
    Took { cpu: (cpu() - cpu_start) / threads as f64, wall: wall_start.elapsed().as_secs_f64() }
}

/// The middle value, or the mean of the two; not a number when there is none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.into_iter().collect();
    all.sort_by(f64::total_cmp);
    match all.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => all[n / 2],
        n => (all[n / 2 - 1] + all[n / 2]) / 2.0,
    }
}
