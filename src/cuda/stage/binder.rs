//! The tensors of one stage's call: already on the device, or host tensors that are copied there for the time of the call.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use crate::cuda::device::bytes::{bytes_of, bytes_of_mut};
use crate::cuda::device::memory::DeviceMemory;
use crate::cuda::device::stream::Stream;
use crate::cuda::device::workspace::Workspace;
use crate::cuda::device::{Call, Device, Target};
use crate::{Element, Error, Result, Slice, SliceMut, TensorMut, TensorRef};
use std::any::Any;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;

/// Where the tensors of a call are.
enum Location<'a, D: Device> {
    /// On the device; the stream's workspace is theirs to work in.
    Device {
        stream: &'a Stream<D>,
        /// Bytes of it that the call uses so far.
        used: usize,
    },
    /// In host memory. Each has an allocation of its own, of exactly its size, for the time of the stage.
    Host(Vec<u64>),
}

/// Turns the tensors of one stage's call into addresses. What it allocated is given back when dropped, on every path.
pub(in crate::cuda) struct Binder<'a, D: Device> {
    device: &'a Arc<D>,
    target: Target,
    stage: &'static str,
    location: Location<'a, D>,
}

/// An output on its way: where it is on the device and, for one in host memory, where it goes.
pub(in crate::cuda) struct Output<'a, T> {
    name: &'static str,
    address: u64,
    to: SliceMut<'a>,
    of: PhantomData<T>,
}

impl<T> Output<'_, T> {
    /// Where the kernel writes.
    pub fn address(&self) -> *mut T {
        self.address as *mut T
    }
}

impl<'a, D: Device> Binder<'a, D> {
    /// For tensors in host memory.
    pub fn host(device: &'a Arc<D>, target: Target, stage: &'static str) -> Self {
        Self { device, target, stage, location: Location::Host(Vec::new()) }
    }

    /// For tensors on the device.
    pub fn device(device: &'a Arc<D>, target: Target, stage: &'static str, stream: &'a Stream<D>) -> Result<Self> {
        stream.expect_device(stage, device)?;
        Ok(Self { device, target, stage, location: Location::Device { stream, used: Workspace::HEADER } })
    }

    /// What kernels are chosen for.
    pub fn target(&self) -> Target {
        self.target
    }

    fn stream(&self) -> u64 {
        match &self.location {
            Location::Device { stream, .. } => stream.handle(),
            Location::Host(_) => self.device.own_stream(),
        }
    }

    /// The elements of type `T` that a view reaches, from its first to its last, for reading only.
    pub fn input<T: Element, const R: usize>(
        &mut self,
        name: &'static str,
        view: &TensorRef<'_, R>,
    ) -> Result<*const T> {
        view.expect_dtype(self.stage, name, &[T::DTYPE])?;
        Ok(self.storage(name, view)?.cast())
    }

    /// As [`Binder::input`], of whatever type.
    pub fn storage<const R: usize>(&mut self, name: &'static str, view: &TensorRef<'_, R>) -> Result<*const c_void> {
        let Location::Host(held) = &mut self.location else {
            return on_device(self.device, self.stage, name, view.data()).map(|address| address as *const c_void);
        };
        let bytes = &host_bytes(self.stage, name, view.data())?[..reach(view) * view.dtype().size()];
        let address = alloc(self.device, held, name, bytes.len())?;
        // SAFETY: the allocation has as many bytes.
        unsafe {
            self.device.upload(self.device.own_stream(), address, bytes)?;
            self.device.read_only(address)?;
        }
        Ok(address as *const c_void)
    }

    /// As [`Binder::input`]; null for a view that is not there.
    pub fn optional<T: Element, const R: usize>(
        &mut self,
        name: &'static str,
        view: &Option<TensorRef<'_, R>>,
    ) -> Result<*const T> {
        view.as_ref().map_or(Ok(std::ptr::null()), |view| self.input(name, view))
    }

    /// As [`Binder::storage`]; null for a view that is not there.
    pub fn optional_storage<const R: usize>(
        &mut self,
        name: &'static str,
        view: &Option<TensorRef<'_, R>>,
    ) -> Result<*const c_void> {
        view.as_ref().map_or(Ok(std::ptr::null()), |view| self.storage(name, view))
    }

    /// Room for a tensor of type `T` that the stage writes.
    pub fn output<'t, T: Element, const R: usize>(
        &mut self,
        name: &'static str,
        view: TensorMut<'t, R>,
    ) -> Result<Output<'t, T>> {
        view.expect_dtype(self.stage, name, &[T::DTYPE])?;
        let Output { name, address, to, .. } = self.storage_output(name, view)?;
        Ok(Output { name, address, to, of: PhantomData })
    }

    /// As [`Binder::output`], of whatever type.
    pub fn storage_output<'t, const R: usize>(
        &mut self,
        name: &'static str,
        view: TensorMut<'t, R>,
    ) -> Result<Output<'t, c_void>> {
        let to = view.into_data();
        let address = match &mut self.location {
            Location::Device { .. } => on_device(self.device, self.stage, name, to.as_ref())?,
            Location::Host(held) => {
                let bytes = host_bytes(self.stage, name, to.as_ref())?.len();
                alloc(self.device, held, name, bytes)?
            }
        };
        Ok(Output { name, address, to, of: PhantomData })
    }

    /// A tensor that the stage reads and writes.
    pub fn in_out<'t, T: Element, const R: usize>(
        &mut self,
        name: &'static str,
        view: TensorMut<'t, R>,
    ) -> Result<Output<'t, T>> {
        let output = self.output(name, view)?;
        self.bring(&output)?;
        Ok(output)
    }

    /// As [`Binder::storage_output`], for a tensor that the stage adds to unless `beta` is 0.
    pub fn storage_in_out<'t, const R: usize>(
        &mut self,
        name: &'static str,
        view: TensorMut<'t, R>,
        beta: f32,
    ) -> Result<Output<'t, c_void>> {
        let output = self.storage_output(name, view)?;
        if beta != 0.0 {
            self.bring(&output)?;
        }
        Ok(output)
    }

    /// Copies what a host output holds to where the kernel reads it.
    fn bring<T>(&self, output: &Output<'_, T>) -> Result<()> {
        let (Location::Host(_), Some(bytes)) = (&self.location, bytes_of(output.to.as_ref())) else { return Ok(()) };
        // SAFETY: the allocation has as many bytes.
        unsafe { self.device.upload(self.stream(), output.address, bytes) }
    }

    /// Room for what passes between launches: header zero, uninitialised elsewhere. The same room every time, so for one set
    /// of launches after another.
    pub fn workspace(&mut self, needed: Workspace) -> Result<u64> {
        match &mut self.location {
            Location::Device { stream, .. } => {
                let address = stream.workspace(self.stage, needed)?;
                if needed.zeroed > Workspace::HEADER {
                    // More than stays zero between launches: the rest is where other stages write.
                    // SAFETY: the workspace is as large.
                    unsafe { self.device.fill(stream.handle(), address, 0, needed.zeroed) }?;
                }
                Ok(address)
            }
            Location::Host(held) => {
                let address = alloc(self.device, held, "workspace", needed.bytes)?;
                // SAFETY: the header is a part of the allocation.
                unsafe { self.device.fill(self.device.own_stream(), address, 0, needed.zeroed) }?;
                Ok(address)
            }
        }
    }

    /// Uninitialised room for `bytes` bytes that pass between launches; never the same as other scratch of the call, so for
    /// stages that have no [`Binder::workspace`].
    pub fn scratch(&mut self, name: &str, bytes: usize) -> Result<u64> {
        match &mut self.location {
            Location::Device { stream, used } => {
                let at = *used;
                *used = at.saturating_add(bytes).div_ceil(256).saturating_mul(256);
                Ok(stream.workspace(self.stage, Workspace { zeroed: 0, bytes: *used })? + at as u64)
            }
            Location::Host(held) => alloc(self.device, held, name, bytes),
        }
    }

    /// Starts launches in order.
    ///
    /// # Safety
    /// As [`Call::run`].
    pub unsafe fn run(&self, calls: impl IntoIterator<Item = Call>) -> Result<()> {
        calls.into_iter().try_for_each(|call| match &self.location {
            // SAFETY: the caller's.
            Location::Device { stream, .. } => unsafe { stream.start(self.stage, call) },
            // SAFETY: the caller's; the stream is the device's own.
            Location::Host(_) => unsafe { call.run(&**self.device, self.stream()) },
        })
    }

    /// Sets an output to zeros.
    pub fn zero<T>(&self, output: &Output<'_, T>) -> Result<()> {
        let of = output.to.as_ref();
        // SAFETY: where the output is there is room for all of its elements.
        unsafe { self.device.fill(self.stream(), output.address, 0, of.len() * of.dtype().size()) }
    }

    /// Brings an output back to host memory, if that is where it belongs; every element must have been written.
    pub fn take<'t, T>(&self, output: Output<'t, T>) -> Result<SliceMut<'t>> {
        let mut to = output.to;
        let (Location::Host(_), Some(bytes)) = (&self.location, bytes_of_mut(to.reborrow())) else { return Ok(to) };
        // SAFETY: the allocation is of this call, and has as many bytes.
        match unsafe { self.device.unwritten(output.address) }? {
            // SAFETY: as above.
            0 => unsafe { self.device.download(self.stream(), output.address, bytes) }?,
            bytes => {
                let problem = format!("{bytes} bytes of the output `{}` were not written", output.name);
                return Err(Error::Kernel { kernel: self.stage.into(), problem });
            }
        }
        Ok(to)
    }

    /// As [`Binder::take`] for the first `count` elements; the rest means nothing and need not have been written.
    pub fn take_first<T>(&self, mut output: Output<'_, T>, count: usize) -> Result<()> {
        let size = output.to.as_ref().dtype().size();
        let (Location::Host(_), Some(bytes)) = (&self.location, bytes_of_mut(output.to.reborrow())) else {
            return Ok(());
        };
        let bytes = &mut bytes[..count * size];
        // SAFETY: the allocation is of this call, and has at least as many bytes.
        unsafe { self.device.download(self.stream(), output.address, bytes) }
    }
}

impl<D: Device> std::ops::Drop for Binder<'_, D> {
    fn drop(&mut self) {
        if let Location::Host(held) = &self.location {
            // SAFETY: allocated by this call, which has waited for its results or failed.
            held.iter().for_each(|&address| unsafe { self.device.free(address) });
        }
    }
}

fn alloc<D: Device>(device: &Arc<D>, held: &mut Vec<u64>, name: &str, bytes: usize) -> Result<u64> {
    let address = device.alloc(name, bytes)?;
    held.push(address);
    Ok(address)
}

fn host_bytes<'b>(op: &'static str, argument: &'static str, data: Slice<'b>) -> Result<&'b [u8]> {
    crate::expect_host(op, argument, data)?;
    Ok(bytes_of(data).unwrap_or_default())
}

/// Device address of elements that `device` reaches.
pub(in crate::cuda) fn on_device<D: Device>(
    device: &Arc<D>,
    op: &'static str,
    argument: &'static str,
    data: Slice<'_>,
) -> Result<u64> {
    let found = match data {
        Slice::Foreign(memory) => {
            let any: &dyn Any = memory;
            match any.downcast_ref::<DeviceMemory<D>>() {
                Some(memory) if memory.device().id() == device.id() => return Ok(memory.address()),
                _ => memory.location(),
            }
        }
        _ => "host memory".into(),
    };
    Err(Error::Location { op, argument, expected: format!("memory of {}", device.describe()), found })
}

/// Elements from a view's first to its last.
fn reach<const R: usize>(view: &TensorRef<'_, R>) -> usize {
    if view.shape().contains(&0) {
        return 0;
    }
    view.shape().iter().zip(view.strides()).map(|(extent, stride)| (extent - 1) * stride).sum::<usize>() + 1
}
