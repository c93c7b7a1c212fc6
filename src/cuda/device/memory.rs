//! Elements in a device's memory.

#![allow(unsafe_code, reason = "memory that an engine already owns is the engine's word")]

use crate::cuda::device::Device;
use crate::cuda::device::bytes::{bytes_of, bytes_of_mut};
use crate::{Buffer, DType, Error, ForeignMemory, Result, Slice, SliceMut, expect_host, same_elements};
use std::fmt;
use std::sync::Arc;

/// Elements on a device: owned and given back when dropped, or an engine's, borrowed and never given back.
///
/// `TensorRef::new(&memory, shape)` views them, for a [`Layer`](crate::Layer) on the same device.
pub struct DeviceMemory<D: Device> {
    device: Arc<D>,
    address: u64,
    dtype: DType,
    count: usize,
    owned: bool,
}

impl<D: Device> DeviceMemory<D> {
    /// Uninitialised room for `count` elements.
    pub(in crate::cuda) fn alloc(device: &Arc<D>, name: &str, dtype: DType, count: usize) -> Result<Self> {
        let address = device.alloc(name, bytes(dtype, count)?)?;
        Ok(Self { device: device.clone(), address, dtype, count, owned: true })
    }

    /// Sets every byte.
    pub(in crate::cuda) fn fill(&mut self, stream: u64, value: u8) -> Result<()> {
        // SAFETY: this is memory of the device; the stream is one of the device.
        unsafe { self.device.fill(stream, self.address, value, self.count * self.dtype.size()) }
    }

    /// A copy in host memory, in a stream's order.
    pub(in crate::cuda) fn read_on(&self, stream: u64) -> Result<Buffer> {
        let mut buffer = Buffer::zeros(self.dtype, self.count);
        let bytes = bytes_of_mut((&mut buffer).into()).unwrap_or_default();
        // SAFETY: this is memory of the device, and the buffer has as many bytes; the stream is as in `fill`.
        unsafe { self.device.download(stream, self.address, bytes) }?;
        Ok(buffer)
    }

    /// Overwrites every element, in a stream's order.
    pub(in crate::cuda) fn write_on(&mut self, stream: u64, elements: Slice<'_>) -> Result<()> {
        same_elements(self.dtype, self.count, elements)?;
        expect_host("write", "elements", elements)?;
        // SAFETY: this is memory of the device, and there are as many bytes: type and number were compared.
        unsafe { self.device.upload(stream, self.address, bytes_of(elements).unwrap_or_default()) }
    }

    /// Elements that are there already.
    ///
    /// # Errors
    /// [`Error::Value`] for an address that is null or that no element of the type can have, [`Error::Overflow`], and
    /// [`Error::Location`] for memory that the device is known not to reach.
    ///
    /// # Safety
    /// They stay there, in memory that `device` reaches, until the result is dropped. While a view of the result is in use
    /// they are read and written through it alone, in the order of its stream.
    pub(in crate::cuda) unsafe fn borrow(device: &Arc<D>, address: u64, dtype: DType, count: usize) -> Result<Self> {
        let refuse = |problem| Err(Error::Value { op: "borrow", argument: "address", problem });
        if address == 0 && count > 0 {
            return refuse(format!("null, for {count} elements"));
        }
        if !address.is_multiple_of(dtype.size() as u64) {
            return refuse(format!("{address:#x} is no multiple of {}, the size of {dtype}", dtype.size()));
        }
        let bytes = bytes(dtype, count)?;
        if let Some(found) = if bytes == 0 { None } else { device.memory_elsewhere(address, bytes)? } {
            let expected = format!("memory of {}", device.describe());
            return Err(Error::Location { op: "borrow", argument: "address", expected, found });
        }
        Ok(Self { device: device.clone(), address, dtype, count, owned: false })
    }

    /// Device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The device.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Bytes of so many elements.
fn bytes(dtype: DType, count: usize) -> Result<usize> {
    let limit = isize::MAX as usize / dtype.size();
    if count > limit {
        return Err(Error::Overflow { what: "device memory", sizes: vec![count], limit });
    }
    Ok(count * dtype.size())
}

impl<D: Device> ForeignMemory for DeviceMemory<D> {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn count(&self) -> usize {
        self.count
    }

    fn location(&self) -> String {
        format!("memory of {}", self.device.describe())
    }

    fn read(&self) -> Result<Buffer> {
        self.device.synchronize_all()?;
        self.read_on(self.device.own_stream())
    }

    fn write(&mut self, elements: Slice<'_>) -> Result<()> {
        self.device.synchronize_all()?;
        self.write_on(self.device.own_stream(), elements)
    }
}

impl<D: Device> Drop for DeviceMemory<D> {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: allocated by `alloc`, and this is the only drop.
            unsafe { self.device.free(self.address) };
        }
    }
}

impl<D: Device> fmt::Debug for DeviceMemory<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, dtype, count, owned, .. } = self;
        write!(f, "DeviceMemory({count} of {dtype} at {address:#x}, owned: {owned})")
    }
}

impl<'a, D: Device> From<&'a DeviceMemory<D>> for Slice<'a> {
    fn from(memory: &'a DeviceMemory<D>) -> Self {
        Slice::Foreign(memory)
    }
}

impl<'a, D: Device> From<&'a mut DeviceMemory<D>> for SliceMut<'a> {
    fn from(memory: &'a mut DeviceMemory<D>) -> Self {
        SliceMut::Foreign(memory)
    }
}
