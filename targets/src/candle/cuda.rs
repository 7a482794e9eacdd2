//! Copies to an NVIDIA GPU beside its computing: a stream of their own, from memory that the system does not move.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use candle_core::quantized::cuda::QCudaStorage;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{CudaDevice, Device};

use super::matrix::Tile;
use crate::{Pin, Result, TargetError};

/// The GPU of number `ordinal`, with one stream for everything that candle does there.
pub(super) fn device(ordinal: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    // SAFETY: candle works on the one stream of this device, whichever thread asks, so that its operations come one after another;
    // the copies of a `Lane` order themselves by events and are over before anybody sees what they have written.
    unsafe { device.as_cuda_device()?.disable_event_tracking() };
    Ok(device)
}

/// Bytes that are free on the GPU.
pub(super) fn free_bytes(device: &CudaDevice) -> Option<u64> {
    device.cuda_stream().context().mem_get_info().ok().map(|(free, _)| free as u64)
}

/// A stream for copies.
pub(super) struct Lane {
    device: CudaDevice,
    computing: Arc<CudaStream>,
    copies: Arc<CudaStream>,
}

impl Lane {
    pub(super) fn new(device: &CudaDevice) -> Result<Lane> {
        let computing = device.cuda_stream();
        let copies = computing.context().new_stream().map_err(failed)?;
        Ok(Lane { device: device.clone(), computing, copies })
    }

    /// Copies of `tiles`, of a matrix with `cols` columns, that are there when it returns. From pinned memory the GPU fetches them
    /// itself while it computes.
    pub(super) fn bring(&self, tiles: &[Tile<'_>], cols: usize, dtype: GgmlDType) -> Result<Vec<QTensor>> {
        let mut tensors = Vec::new();
        let begin = |tile: &Tile<'_>| -> Result<()> {
            let storage = QCudaStorage::zeros(&self.device, tile.rows * cols, dtype)?;
            let (room, mut to) = (storage.storage_size_in_bytes(), storage.device_ptr()? as sys::CUdeviceptr);
            let bytes: usize = tile.pieces.iter().map(|piece| piece.len()).sum();
            if bytes > room {
                let what = format!("{bytes} bytes are to be copied into {room}");
                return Err(TargetError::Device { device: "cuda".into(), what });
            }
            // Before copies are asked for: what they write into must outlive them.
            tensors.push(QTensor::new(QStorage::Cuda(storage), (tile.rows, cols))?);
            // Memory is cleared first, in the computing stream.
            self.copies.join(&self.computing).map_err(failed)?;
            for piece in &tile.pieces {
                // SAFETY: from `to` on are the bytes of this piece and of those after it, within the `room` bytes on the GPU that
                // nobody else knows of and that `tensors` keeps until the copies are over, below; the piece is borrowed as long.
                unsafe { result::memcpy_htod_async(to, piece, self.copies.cu_stream()) }.map_err(failed)?;
                to += piece.len() as sys::CUdeviceptr;
            }
            Ok(())
        };
        let begun = tiles.iter().try_for_each(begin);
        // Also when one has failed: those before it are still under way.
        let over = self.copies.synchronize().map_err(failed);
        begun.and(over)?;
        Ok(tensors)
    }

    /// Has the system keep `memory` where it is.
    pub(super) fn pin(&self, memory: &mut [u8]) -> Option<Pin> {
        let context = Arc::clone(self.computing.context());
        context.bind_to_thread().ok()?;
        let at = memory.as_mut_ptr();
        // SAFETY: the memory belongs to the caller, who keeps it as long as the pin; it is merely kept from being moved.
        let locked = unsafe { sys::cuMemHostRegister_v2(at.cast(), memory.len(), sys::CU_MEMHOSTREGISTER_PORTABLE) }.result();
        match locked {
            Ok(()) => Some(Box::new(Pinned { context, at: at as usize })),
            Err(e) => {
                // Copies are slower then, and no worse.
                tracing::debug!("{} MiB are not pinned: {e}", memory.len() >> 20);
                None
            }
        }
    }
}

/// Memory that the system keeps where it is.
struct Pinned {
    context: Arc<CudaContext>,
    at: usize,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: it was registered under this address, and the owner of the memory lets go of this before that. Copies from it
            // are over, because `Lane::bring` waits for them.
            let _ = unsafe { sys::cuMemHostUnregister(self.at as *mut _) };
        }
    }
}

fn failed(error: DriverError) -> TargetError {
    TargetError::Device { device: "cuda".into(), what: error.to_string() }
}

/// On a GPU, or on a stand-in for its driver that copies late and looks at addresses (`.ci/cuda`).
#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use candle_core::Tensor;
    use sphinx_quant::tensor::Bytes;

    use super::*;

    fn lane() -> (Device, Lane) {
        let device = device(0).expect("a GPU, or a stand-in for its driver");
        let lane = Lane::new(device.as_cuda_device().unwrap()).unwrap();
        (device, lane)
    }

    #[test]
    fn copies_are_there_when_it_returns_whatever_is_computed_meanwhile() {
        let (device, lane) = lane();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let x = Tensor::zeros((64, 64), candle_core::DType::F32, &device).unwrap();
                while !over.load(Ordering::Relaxed) {
                    for _ in 0..20 {
                        let _ = (&x + 1.0).unwrap();
                    }
                    device.synchronize().unwrap();
                }
            });
            let threads: Vec<_> = (0..3u8)
                .map(|thread| {
                    let lane = &lane;
                    scope.spawn(move || {
                        let (rows, cols) = (96, 256);
                        let bytes = rows * cols / 32 * 34;
                        let mut memory = Bytes::pages(bytes).unwrap();
                        let pin = lane.pin(memory.as_mut_slice().unwrap());
                        assert!(pin.is_some());
                        for round in 0..20u8 {
                            let value = |at: usize| (at as u8).wrapping_mul(31) ^ (thread * 50 + round);
                            memory.as_mut_slice().unwrap()[..bytes].iter_mut().enumerate().for_each(|(at, b)| *b = value(at));
                            // Two tiles, the first in two pieces.
                            let (first, second) = memory.as_slice()[..bytes].split_at(bytes / 3 * 2);
                            let (a, b) = first.split_at(first.len() / 4);
                            let tiles = [Tile { pieces: vec![a, b], rows: rows / 3 * 2 }, Tile { pieces: vec![second], rows: rows / 3 }];
                            let tensors = lane.bring(&tiles, cols, GgmlDType::Q8_0).unwrap();
                            memory.as_mut_slice().unwrap().fill(0);
                            let found = tensors.iter().flat_map(|t| t.data().unwrap().into_owned());
                            assert!(found.eq((0..bytes).map(value)), "thread {thread}, round {round}");
                        }
                    })
                })
                .collect();
            let outcomes: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            over.store(true, Ordering::Relaxed);
            assert!(outcomes.iter().all(Result::is_ok));
        });
    }

    #[test]
    fn memory_is_pinned_as_long_as_the_pin_lives() {
        let (_, lane) = lane();
        let mut memory = Bytes::pages(1 << 20).unwrap();
        let memory = memory.as_mut_slice().unwrap();
        let pin = lane.pin(memory);
        assert!(pin.is_some() && lane.pin(memory).is_none(), "once");
        drop(pin);
        assert!(lane.pin(memory).is_some());
    }

    #[test]
    fn a_tile_that_is_too_long_is_refused() {
        let (_, lane) = lane();
        let bytes = [0; 35];
        let refused = lane.bring(&[Tile { pieces: vec![&bytes], rows: 1 }], 32, GgmlDType::Q8_0);
        assert!(refused.unwrap_err().to_string().contains("35 bytes are to be copied into 34"));
    }
}
