//! Copies to an NVIDIA GPU beside its computing: a stream of their own, from memory that the system does not move.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use candle_core::quantized::cuda::QCudaStorage;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{CudaDevice, Device};

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

    /// Copies of `pieces`, bytes and rows each of a matrix with `cols` columns, that are there when it returns. From pinned memory
    /// the GPU fetches them itself while it computes.
    pub(super) fn bring<'a>(&self, pieces: impl Iterator<Item = (&'a [u8], usize)>, cols: usize, dtype: GgmlDType) -> Result<Vec<QTensor>> {
        let mut tensors = Vec::new();
        let mut begin = |(bytes, rows): (&[u8], usize)| -> Result<()> {
            let storage = QCudaStorage::zeros(&self.device, rows * cols, dtype)?;
            let (room, to) = (storage.storage_size_in_bytes(), storage.device_ptr()? as sys::CUdeviceptr);
            if bytes.len() > room {
                let what = format!("{} bytes are to be copied into {room}", bytes.len());
                return Err(TargetError::Device { device: "cuda".into(), what });
            }
            // Before the copy is asked for: what it writes into must outlive it.
            tensors.push(QTensor::new(QStorage::Cuda(storage), (rows, cols))?);
            // Memory is cleared first, in the computing stream.
            self.copies.join(&self.computing).map_err(failed)?;
            // SAFETY: `to` are `room` bytes on the GPU, which nobody else knows of and which `tensors` keeps until the copies are
            // over, below; `bytes` are borrowed as long.
            unsafe { result::memcpy_htod_async(to, bytes, self.copies.cu_stream()) }.map_err(failed)
        };
        let begun = pieces.map(&mut begin).collect::<Result<()>>();
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
