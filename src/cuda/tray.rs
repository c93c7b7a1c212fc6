//! Host tensors on a device for the time of one stage: copied in, computed, copied out, given back.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::device::{Call, Device};
use super::workspace::Workspace;
use crate::{Element, Error, Result, Slice, SliceMut, TensorMut, TensorRef};
use std::ffi::c_void;
use std::marker::PhantomData;

/// The device memory of one stage's call; given back when dropped, on every path.
pub(super) struct Tray<'a, D: Device> {
    device: &'a D,
    stage: &'static str,
    held: Vec<u64>,
}

/// An output on its way: where it is on the device and where it goes.
pub(super) struct Output<'a, T> {
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

impl<'a, D: Device> Tray<'a, D> {
    pub fn new(device: &'a D, stage: &'static str) -> Self {
        Self { device, stage, held: Vec::new() }
    }

    fn alloc(&mut self, name: &str, bytes: usize) -> Result<u64> {
        let address = self.device.alloc(name, bytes)?;
        self.held.push(address);
        Ok(address)
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

    /// As [`Tray::input`], of whatever type.
    pub fn storage<const R: usize>(&mut self, name: &'static str, view: &TensorRef<'_, R>) -> Result<*const c_void> {
        let reached = reach(view);
        let bytes = &bytes_of(view.data())[..reached * view.dtype().size()];
        let address = self.alloc(name, bytes.len())?;
        self.device.upload(address, bytes)?;
        self.device.read_only(address)?;
        Ok(address as *const c_void)
    }

    /// As [`Tray::input`]; null for a view that is not there.
    pub fn optional<T: Element, const R: usize>(
        &mut self,
        name: &'static str,
        view: &Option<TensorRef<'_, R>>,
    ) -> Result<*const T> {
        view.as_ref().map_or(Ok(std::ptr::null()), |view| self.input(name, view))
    }

    /// As [`Tray::storage`]; null for a view that is not there.
    pub fn optional_storage<const R: usize>(
        &mut self,
        name: &'static str,
        view: &Option<TensorRef<'_, R>>,
    ) -> Result<*const c_void> {
        view.as_ref().map_or(Ok(std::ptr::null()), |view| self.storage(name, view))
    }

    /// Uninitialised room for a tensor of type `T` that the stage writes.
    pub fn output<'t, T: Element, const R: usize>(
        &mut self,
        name: &'static str,
        view: TensorMut<'t, R>,
    ) -> Result<Output<'t, T>> {
        view.expect_dtype(self.stage, name, &[T::DTYPE])?;
        let Output { name, address, to, .. } = self.storage_output(name, view)?;
        Ok(Output { name, address, to, of: PhantomData })
    }

    /// As [`Tray::output`], of whatever type.
    pub fn storage_output<'t, const R: usize>(
        &mut self,
        name: &'static str,
        view: TensorMut<'t, R>,
    ) -> Result<Output<'t, c_void>> {
        let to = view.into_data();
        let address = self.alloc(name, to.as_ref().len() * to.as_ref().dtype().size())?;
        Ok(Output { name, address, to, of: PhantomData })
    }

    /// A tensor that the stage reads and writes.
    pub fn in_out<'t, T: Element, const R: usize>(
        &mut self,
        name: &'static str,
        view: TensorMut<'t, R>,
    ) -> Result<Output<'t, T>> {
        let output = self.output(name, view)?;
        self.device.upload(output.address, bytes_of(output.to.as_ref()))?;
        Ok(output)
    }

    /// As [`Tray::storage_output`], for a tensor that the stage adds to unless `beta` is 0.
    pub fn storage_in_out<'t, const R: usize>(
        &mut self,
        name: &'static str,
        view: TensorMut<'t, R>,
        beta: f32,
    ) -> Result<Output<'t, c_void>> {
        let output = self.storage_output(name, view)?;
        if beta != 0.0 {
            self.device.upload(output.address, bytes_of(output.to.as_ref()))?;
        }
        Ok(output)
    }

    /// Uninitialised room for what passes between two launches.
    pub fn scratch(&mut self, name: &str, bytes: usize) -> Result<u64> {
        self.alloc(name, bytes)
    }

    /// A stage's workspace: zero where it must be, uninitialised elsewhere.
    pub fn workspace(&mut self, workspace: Workspace) -> Result<u64> {
        let address = self.alloc("workspace", workspace.bytes)?;
        self.device.upload(address, &vec![0; workspace.zeroed])?;
        Ok(address)
    }

    /// Runs launches in order.
    ///
    /// # Safety
    /// As [`Call::run`].
    pub unsafe fn run(&self, calls: impl IntoIterator<Item = Call>) -> Result<()> {
        // SAFETY: the caller's.
        calls.into_iter().try_for_each(|call| unsafe { call.run(self.device) })
    }

    /// Copies an output back; every element of it must have been written.
    pub fn take<T>(&self, output: Output<'_, T>) -> Result<()> {
        match self.device.unwritten(output.address)? {
            0 => self.device.download(output.address, bytes_of_mut(output.to)),
            bytes => Err(Error::Kernel {
                kernel: self.stage.into(),
                problem: format!("{bytes} bytes of the output `{}` were not written", output.name),
            }),
        }
    }

    /// Copies the first `count` elements of an output back; the rest means nothing and need not have been written.
    pub fn take_first<T>(&self, output: Output<'_, T>, count: usize) -> Result<()> {
        let size = output.to.as_ref().dtype().size();
        self.device.download(output.address, &mut bytes_of_mut(output.to)[..count * size])
    }
}

impl<D: Device> Drop for Tray<'_, D> {
    fn drop(&mut self) {
        self.held.iter().for_each(|&address| self.device.free(address));
    }
}

/// Elements from a view's first to its last.
fn reach<const R: usize>(view: &TensorRef<'_, R>) -> usize {
    if view.shape().contains(&0) {
        return 0;
    }
    view.shape().iter().zip(view.strides()).map(|(extent, stride)| (extent - 1) * stride).sum::<usize>() + 1
}

/// The bytes of elements.
fn bytes_of(slice: Slice<'_>) -> &[u8] {
    fn of<T: Element>(elements: &[T]) -> &[u8] {
        // SAFETY: every `Element` is an integer or a float, without padding, and any byte may be read as u8.
        unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
    }
    match slice {
        Slice::F32(s) => of(s),
        Slice::Bf16(s) => of(s),
        Slice::F16(s) => of(s),
        Slice::I32(s) => of(s),
        Slice::U8(s) => s,
    }
}

/// As [`bytes_of`], for writing.
fn bytes_of_mut(slice: SliceMut<'_>) -> &mut [u8] {
    fn of<T: Element>(elements: &mut [T]) -> &mut [u8] {
        let bytes = size_of_val(elements);
        // SAFETY: every `Element` is an integer or a float: no padding, and every bit pattern is a value.
        unsafe { std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), bytes) }
    }
    match slice {
        SliceMut::F32(s) => of(s),
        SliceMut::Bf16(s) => of(s),
        SliceMut::F16(s) => of(s),
        SliceMut::I32(s) => of(s),
        SliceMut::U8(s) => s,
    }
}
