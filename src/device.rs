//! Which target runs, from the flags.

use std::str::FromStr;

use anyhow::Result;
use sphinx_targets::Target;
#[cfg(feature = "candle")]
use sphinx_targets::candle::CandleTarget;
use sphinx_targets::cpu::{CpuOptions, CpuTarget};

use crate::failure::Failure;

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Our kernels on this machine's processor.
    Cpu,
    /// candle on this machine's processor: the second witness, slower, for debugging.
    CandleCpu,
    /// candle on the NVIDIA GPU of this number.
    Cuda(usize),
    /// candle on the GPU of an Apple machine.
    Metal,
}

impl Device {
    /// Those that every command line may name, with what they are.
    pub const ALL: [(Device, &'static str); 4] = [
        (Device::Cpu, "our kernels on this machine's processor"),
        (Device::CandleCpu, "candle on the processor, to check results with"),
        (Device::Cuda(0), "candle on an NVIDIA GPU"),
        (Device::Metal, "candle on the GPU of an Apple machine"),
    ];

    /// The name as the flag spells it, without a number.
    pub fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::CandleCpu => "candle-cpu",
            Device::Cuda(_) => "cuda",
            Device::Metal => "metal",
        }
    }

    /// What keeps this program from running on the device, and what to do; `Ok` where nothing does.
    ///
    /// # Errors
    /// The reason, for a user to read.
    pub fn usable(self) -> Result<(), String> {
        let built = |with: &str, needs: &str| {
            Err(format!("this program was built without {} — build it with --features {with}{needs}, or use --device cpu", self.name()))
        };
        match self {
            Device::Cpu => Ok(()),
            Device::CandleCpu if cfg!(feature = "candle") => Ok(()),
            Device::CandleCpu => built("candle", ""),
            Device::Cuda(_) if cfg!(feature = "cuda") => self.gpu(),
            Device::Cuda(_) => built("cuda", " where the CUDA toolkit is"),
            Device::Metal if cfg!(feature = "metal") => self.gpu(),
            Device::Metal => built("metal", " on an Apple machine"),
        }
    }

    /// Refuses a device that this program cannot use.
    ///
    /// # Errors
    /// Usage, with the reason.
    pub fn check(self) -> Result<()> {
        self.usable().map_err(|why| Failure::usage(format!("--device {}: {why}", self.name())))
    }

    /// Whether the GPU answers.
    fn gpu(self) -> Result<(), String> {
        #[cfg(any(feature = "cuda", feature = "metal"))]
        return self.candle().map(|_| ()).map_err(|e| format!("{e:#} — install its driver, or use --device cpu"));
        #[cfg(not(any(feature = "cuda", feature = "metal")))]
        Err("there is none".to_owned())
    }

    /// candle on it.
    ///
    /// # Errors
    /// What the driver says.
    #[cfg(feature = "candle")]
    pub fn candle(self) -> Result<CandleTarget> {
        match self {
            #[cfg(feature = "cuda")]
            Device::Cuda(number) => Ok(CandleTarget::cuda(number)?),
            #[cfg(feature = "metal")]
            Device::Metal => Ok(CandleTarget::metal()?),
            _ => Ok(CandleTarget::cpu()?),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let unknown = || format!("{text:?} is none of cpu, candle-cpu, cuda, cuda:N, metal");
        match text.split_once(':') {
            Some(("cuda", number)) => number.parse().map(Device::Cuda).map_err(|_| unknown()),
            Some(_) => Err(unknown()),
            None => Device::ALL.into_iter().map(|(device, _)| device).find(|d| d.name() == text).ok_or_else(unknown),
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
    device.check()?;
    match device {
        Device::Cpu => job.run(cpu(threads)?),
        #[cfg(feature = "candle")]
        Device::CandleCpu | Device::Cuda(_) | Device::Metal => {
            if threads.is_some() && device == Device::CandleCpu {
                tracing::warn!("--threads has no effect on candle-cpu; set RAYON_NUM_THREADS");
            }
            job.run(device.candle()?)
        }
        #[cfg(not(feature = "candle"))]
        _ => unreachable!("a device that was not built is refused"),
    }
}

/// The CPU target, with the debug switches of the environment (`SPHINX_ISA`, `SPHINX_ACTIVATIONS`).
pub fn cpu(threads: Option<usize>) -> Result<CpuTarget> {
    Ok(CpuTarget::new(CpuOptions { threads, ..CpuOptions::from_env()? })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_spelt() {
        for (device, _) in Device::ALL {
            assert_eq!(device.name().parse(), Ok(device));
        }
        assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
        for wrong in ["gpu", "cuda:", "cuda:x", "cpu:0", ""] {
            assert!(wrong.parse::<Device>().unwrap_err().contains("cuda:N"), "{wrong}");
        }
    }

    #[test]
    fn what_was_not_built_says_how_to_build_it() {
        assert_eq!(Device::Cpu.usable(), Ok(()));
        for (device, feature) in [(Device::Cuda(0), cfg!(feature = "cuda")), (Device::Metal, cfg!(feature = "metal"))] {
            if !feature {
                let why = device.usable().unwrap_err();
                assert!(why.contains("built without") && why.contains("--features") && why.contains("--device cpu"), "{why}");
            }
        }
    }
}
