//! The backend: the stages' kernels on one device, for tensors that are there.

#![allow(unsafe_code, reason = "memory and streams that an engine already owns are the engine's word")]

use crate::cuda::device::memory::DeviceMemory;
use crate::cuda::device::stream::Stream;
use crate::cuda::device::workspace::Workspace;
use crate::cuda::device::{Architecture, Device, Target};
use crate::cuda::launch::experts::Factors;
use crate::cuda::memory_plan::{self, Most};
use crate::cuda::stage::binder::{Binder, on_device};
use crate::cuda::stage::{self, Options};
use crate::{
    Backend, BiasUpdate, CombineArgs, CombineBackwardArgs, DType, ExpertsArgs, ExpertsBackwardArgs, GateArgs,
    GateBackwardArgs, ImportanceArgs, Inputs, Keep, LayerConfig, Memory, PermuteArgs, PermuteBackwardArgs, Result,
    RouterArgs, RoutingArgs, RoutingBackwardArgs, Slice, TensorMut, TensorRef,
};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The kernels on a device `D`: a [`Backend`] whose tensors are [`DeviceMemory`] and whose calls are queued on a [`Stream`].
///
/// Cheap to clone; any number of threads may use it, each with its own streams.
pub struct Kernels<D: Device> {
    device: Arc<D>,
    target: Target,
    options: Options,
}

impl<D: Device> Kernels<D> {
    /// The kernels on `device`.
    pub fn new(device: Arc<D>) -> Self {
        Self { target: device.target(), device, options: Options::default() }
    }

    /// The device.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// What kernels are chosen for: the device's own, unless [`Kernels::architecture`] asked for another.
    pub fn target(&self) -> Target {
        self.target
    }

    /// The same with kernels of this architecture, whatever the device has besides: to compare them on one GPU, or to have the
    /// bits of another.
    ///
    /// # Errors
    /// [`crate::Error::NotForDevice`] where the device does not run them.
    pub fn architecture(mut self, asked: Architecture) -> Result<Self> {
        if !self.device.target().architecture.runs(asked) {
            return Err(crate::Error::NotForDevice { asked: asked.name(), device: self.device.describe() });
        }
        self.target.architecture = asked;
        Ok(self)
    }

    pub(super) fn options(&self) -> Options {
        self.options
    }

    /// The same with so many tokens for each warp of the gate, whatever the number of tokens: what large batches do, in a
    /// small one.
    pub fn tokens_per_warp(mut self, tokens: usize) -> Self {
        self.options.tokens_per_warp = Some(tokens);
        self
    }

    /// The same with f32 operands multiplied as `factors` says.
    pub fn factors(mut self, factors: Factors) -> Self {
        self.options.factors = factors;
        self
    }

    /// A new stream with `workspace` bytes to work in, see [`Kernels::workspace_bytes`].
    ///
    /// # Errors
    /// When memory or stream cannot be had.
    pub fn stream(&self, workspace: usize) -> Result<Stream<D>> {
        Stream::new(&self.device, workspace)
    }

    /// An engine's own stream, by its handle (a `CUstream` as a number), with U8 memory to work in.
    ///
    /// # Errors
    /// [`crate::Error::Location`] for a stream of another context; [`crate::Error::Workspace`], [`crate::Error::DType`] or
    /// [`crate::Error::Location`] for memory that cannot be its workspace.
    ///
    /// # Safety
    /// The handle is of a stream that is still there when the result is dropped; should somebody record on it then, what was
    /// started on it before has ended.
    pub unsafe fn borrow_stream(&self, handle: u64, workspace: DeviceMemory<D>) -> Result<Stream<D>> {
        // SAFETY: the caller's.
        unsafe { Stream::on(&self.device, handle, workspace) }
    }

    /// `count` zeros of type `dtype` on the device. Waits for that alone.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn zeros(&self, dtype: DType, count: usize) -> Result<DeviceMemory<D>> {
        let mut memory = DeviceMemory::alloc(&self.device, "zeros", dtype, count)?;
        let stream = self.device.own_stream();
        memory.fill(stream, 0)?;
        // SAFETY: the device's own stream.
        unsafe { self.device.synchronize(stream) }?;
        Ok(memory)
    }

    /// A copy of elements in host memory. Waits for that alone.
    ///
    /// # Errors
    /// When the memory cannot be had, or [`crate::Error::Location`] for elements that are not in host memory.
    pub fn upload<'a>(&self, elements: impl Into<Slice<'a>>) -> Result<DeviceMemory<D>> {
        let elements = elements.into();
        let mut memory = DeviceMemory::alloc(&self.device, "upload", elements.dtype(), elements.len())?;
        // Nobody else has it yet, so there is nothing to wait for.
        memory.write_on(self.device.own_stream(), elements)?;
        Ok(memory)
    }

    /// Elements that an engine owns, by the address of the first: never given back by this library.
    ///
    /// # Errors
    /// [`crate::Error::Value`] for an address that is null or misaligned, [`crate::Error::Overflow`], and
    /// [`crate::Error::Location`] for memory that is known to be of another context.
    ///
    /// # Safety
    /// There are `count` elements of type `dtype`, in memory that this device's context reaches, until the result is
    /// dropped. While a view of the result is in use they are read and written through it alone, in its stream's order.
    pub unsafe fn borrow(&self, dtype: DType, address: u64, count: usize) -> Result<DeviceMemory<D>> {
        // SAFETY: the caller's.
        unsafe { DeviceMemory::borrow(&self.device, address, dtype, count) }
    }

    /// Bytes of workspace with which a stream can carry any call of a layer that is no larger than `most`.
    ///
    /// # Errors
    /// [`crate::Error::Overflow`].
    pub fn workspace_bytes(&self, config: &LayerConfig, most: Most) -> Result<usize> {
        memory_plan::workspace(self.target, config, most, self.options)
    }

    /// The same stage by stage.
    ///
    /// # Errors
    /// [`crate::Error::Overflow`].
    pub fn workspace_bytes_by_stage(&self, config: &LayerConfig, most: Most) -> Result<Vec<(&'static str, usize)>> {
        memory_plan::workspace_by_stage(self.target, config, most, self.options)
    }

    fn binder<'a>(&'a self, stage: &'static str, stream: &'a Stream<D>) -> Result<Binder<'a, D>> {
        Binder::device(&self.device, self.target, stage, stream)
    }
}

#[cfg(feature = "cuda")]
impl Kernels<super::Driver> {
    /// The kernels on a GPU, by number.
    ///
    /// # Errors
    /// As [`Driver::open`](super::Driver::open).
    pub fn open(ordinal: u32) -> Result<Self> {
        Ok(Self::new(Arc::new(super::Driver::open(ordinal)?)))
    }
}

impl<D: Device> Clone for Kernels<D> {
    fn clone(&self) -> Self {
        Self { device: self.device.clone(), target: self.target, options: self.options }
    }
}

impl<D: Device> fmt::Debug for Kernels<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernels({}, {:?}, {:?})", self.device.describe(), self.target.architecture, self.options)
    }
}

impl<D: Device> Backend for Kernels<D> {
    type Stream = Stream<D>;

    fn describe(&self) -> String {
        self.device.describe()
    }

    fn allocate(&self, dtype: DType, len: usize) -> Result<Memory> {
        Ok(Memory::Foreign(Box::new(self.zeros(dtype, len)?)))
    }

    fn row_type(&self, storage: DType) -> DType {
        memory_plan::row_type(storage)
    }

    fn check_location(&self, op: &'static str, argument: &'static str, memory: Slice<'_>) -> Result<()> {
        on_device(&self.device, op, argument, memory).map(drop)
    }

    fn check_stream(
        &self,
        op: &'static str,
        stream: &Stream<D>,
        config: &LayerConfig,
        inputs: &Inputs<'_>,
        keep: Keep,
    ) -> Result<()> {
        stream.expect_device(op, &self.device)?;
        let bytes = self.workspace_bytes(config, Most::of(inputs, keep))?;
        stream.workspace(op, Workspace { zeroed: 0, bytes }).map(drop)
    }

    fn time(&self, stream: &Stream<D>, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        stream.time(work)
    }

    /// Nothing is read without waiting. Kernels do not trust contents with memory: an id, row or offset out of range counts
    /// as none.
    fn check_contents(&self, _: &LayerConfig, _: &Inputs<'_>, _: usize) -> Result<()> {
        Ok(())
    }

    fn router(&self, stream: &Stream<D>, args: RouterArgs<'_>) -> Result<()> {
        stage::router(&mut self.binder("router", stream)?, args)
    }

    fn importance(&self, stream: &Stream<D>, args: ImportanceArgs<'_>) -> Result<()> {
        stage::importance(&mut self.binder("importance", stream)?, args)
    }

    fn gate(&self, stream: &Stream<D>, args: GateArgs<'_>) -> Result<()> {
        stage::gate(&mut self.binder("gate", stream)?, self.options, args)
    }

    fn routing(&self, stream: &Stream<D>, args: RoutingArgs<'_>) -> Result<()> {
        stage::routing(&mut self.binder("routing", stream)?, self.options, args)
    }

    fn permute(&self, stream: &Stream<D>, args: PermuteArgs<'_>) -> Result<()> {
        stage::permute(&mut self.binder("permute", stream)?, args)
    }

    fn experts(&self, stream: &Stream<D>, args: ExpertsArgs<'_>) -> Result<()> {
        stage::experts(&mut self.binder("experts", stream)?, self.options, args)
    }

    fn combine(&self, stream: &Stream<D>, args: CombineArgs<'_>) -> Result<()> {
        stage::combine(&mut self.binder("combine", stream)?, args)
    }

    fn combine_backward(&self, stream: &Stream<D>, args: CombineBackwardArgs<'_>) -> Result<()> {
        stage::combine_backward(&mut self.binder("combine_backward", stream)?, args)
    }

    fn experts_backward(&self, stream: &Stream<D>, args: ExpertsBackwardArgs<'_>) -> Result<()> {
        stage::experts_backward(&mut self.binder("experts_backward", stream)?, self.options, args)
    }

    fn permute_backward(&self, stream: &Stream<D>, args: PermuteBackwardArgs<'_>) -> Result<()> {
        stage::permute_backward(&mut self.binder("permute_backward", stream)?, args)
    }

    fn gate_backward(&self, stream: &Stream<D>, args: GateBackwardArgs<'_>) -> Result<()> {
        stage::gate_backward(&mut self.binder("gate_backward", stream)?, self.options, args)
    }

    fn routing_backward(&self, stream: &Stream<D>, args: RoutingBackwardArgs<'_>) -> Result<()> {
        stage::routing_backward(&mut self.binder("routing_backward", stream)?, args)
    }

    fn update_bias(
        &self,
        stream: &Stream<D>,
        update: BiasUpdate,
        load: TensorRef<'_, 1>,
        bias: TensorMut<'_, 1>,
    ) -> Result<()> {
        stage::update_bias(&mut self.binder("update_bias", stream)?, update, load, bias)
    }
}
