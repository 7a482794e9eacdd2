//! Which target runs, from the flags.

use anyhow::Result;
use clap::ValueEnum;
use sphinx_targets::Target;
use sphinx_targets::cpu::{CpuOptions, CpuTarget};

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// Our kernels on this machine's processor.
    Cpu,
    /// candle on this machine's processor: the second witness, slower, for debugging.
    #[cfg(feature = "candle")]
    CandleCpu,
}

impl Device {
    /// The name as the flag spells it.
    pub fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            #[cfg(feature = "candle")]
            Device::CandleCpu => "candle-cpu",
        }
    }
}

/// Work that runs on any target.
pub trait Job {
    /// What it gives.
    type Out;

    /// Runs on `target`.
    fn run<T: Target>(self, target: T) -> Result<Self::Out>;
}

/// Runs `job` on the device asked for.
pub fn dispatch<J: Job>(device: Device, threads: Option<usize>, job: J) -> Result<J::Out> {
    match device {
        Device::Cpu => job.run(cpu(threads)?),
        #[cfg(feature = "candle")]
        Device::CandleCpu => {
            if threads.is_some() {
                tracing::warn!("--threads has no effect on candle-cpu; set RAYON_NUM_THREADS");
            }
            job.run(sphinx_targets::candle::CandleTarget::cpu()?)
        }
    }
}

/// The CPU target, with the debug switches of the environment (`SPHINX_ISA`, `SPHINX_ACTIVATIONS`).
pub fn cpu(threads: Option<usize>) -> Result<CpuTarget> {
    Ok(CpuTarget::new(CpuOptions { threads, ..CpuOptions::from_env()? })?)
}
