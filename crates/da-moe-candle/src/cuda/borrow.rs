//! Slices and streams of cudarc, which candle's are, by address. Apart from candle, so that the library's tests can
//! have them borrowed without it.

use super::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};
use da_moe::DType;
use da_moe::cuda::{Cuda, Driver, Stream, Workspace};

/// candle's stream, with a workspace of its own.
pub(super) fn on(cuda: &Cuda, stream: &CudaStream, workspace: usize) -> da_moe::Result<Stream<Driver>> {
    let workspace = cuda.zeros(DType::U8, workspace.max(Workspace::HEADER))?;
    // SAFETY: a stream of the GPU's primary context, or the one that every thread has of its own there; the caller keeps it
    // for longer than the result.
    unsafe { cuda.borrow_stream(stream.cu_stream() as u64, workspace) }
}

/// Elements of one of candle's slices, by address.
pub(super) struct Range<'s> {
    pub(super) address: u64,
    pub(super) count: usize,
    /// Tells candle, when dropped, that what was queued by then uses the elements.
    pub(super) order: SyncOnDrop<'s>,
}

impl<'s> Range<'s> {
    /// From number `first` on, for reading.
    pub(super) fn read<T>(slice: &'s CudaSlice<T>, stream: &'s CudaStream, first: usize) -> Self {
        let count = slice.len().saturating_sub(first);
        let (address, order) = slice.device_ptr(stream);
        Self { address: address + ((slice.len() - count) * size_of::<T>()) as u64, count, order }
    }

    /// All of them, for writing.
    pub(super) fn write<T>(slice: &'s mut CudaSlice<T>, stream: &'s CudaStream) -> Self {
        let count = slice.len();
        let (address, order) = slice.device_ptr_mut(stream);
        Self { address, count, order }
    }
}
