//! NVIDIA GPUs: the library's kernels on candle's stream, in candle's memory. **Not yet run on a GPU.**

#![allow(
    unsafe_code,
    reason = "candle's memory and stream are borrowed by address; each block names what it relies on"
)]

mod borrow;

use crate::carried::Carried;
use crate::how::Start;
use crate::lock;
use crate::types::unknown;
use borrow::{Range, on};
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::{CudaStorageSlice, DeviceId, cudarc};
use candle_core::{CudaDevice, CudaStorage, DeviceLocation, Error, Result, bail};
use cudarc::driver::{CudaStream, SyncOnDrop};
use da_moe::cuda::{Cuda, Device, DeviceMemory, Driver, Most, Stream, Workspace};
use da_moe::{
    DType, Gradients, Inputs, Keep, Layer, LayerConfig, Normalize, Policy, STATE_LEN, Slice, SliceMut, State, Step,
    TensorMut, TensorRef, Weights,
};
use std::sync::{Arc, Mutex, Weak};
use std::thread::ThreadId;

/// The kernels, loaded once for each of candle's devices, and the stream that all layers there are called on.
pub(crate) struct Gpu {
    // Given back first: it is candle's stream, which `stream` keeps.
    work: Mutex<Work>,
    cuda: Cuda,
    device: CudaDevice,
    stream: Arc<CudaStream>,
}

/// What one call at a time has.
struct Work {
    stream: Stream<Driver>,
    /// The last that called.
    thread: ThreadId,
}

static GPUS: Mutex<Vec<(DeviceId, Weak<Gpu>)>> = Mutex::new(Vec::new());

impl Gpu {
    fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        let mut all = lock(&GPUS);
        all.retain(|(_, gpu)| gpu.strong_count() > 0);
        let known = all.iter().find(|(id, _)| *id == device.id()).and_then(|(_, gpu)| gpu.upgrade());
        if let Some(gpu) = known {
            return Ok(gpu);
        }
        let gpu = Arc::new(Self::open(device)?);
        all.push((device.id(), Arc::downgrade(&gpu)));
        Ok(gpu)
    }

    fn open(device: &CudaDevice) -> Result<Self> {
        let DeviceLocation::Cuda { gpu_id } = device.location() else {
            bail!("{device:?} is no NVIDIA GPU");
        };
        let cuda = Cuda::open(gpu_id as u32).map_err(Error::wrap)?;
        let stream = device.cuda_stream();
        let work = Work {
            stream: on(&cuda, &stream, Workspace::HEADER).map_err(Error::wrap)?,
            thread: std::thread::current().id(),
        };
        Ok(Self { work: Mutex::new(work), cuda, device: device.clone(), stream })
    }

    /// Borrows a tensor's elements from number `first` on, for reading.
    pub fn read<'s>(&'s self, name: &str, storage: &'s CudaStorage, first: usize) -> Result<DeviceElements<'s>> {
        self.expect_own(name, storage)?;
        let stream = &*self.stream;
        let (dtype, range) = match &storage.slice {
            CudaStorageSlice::F32(slice) => (DType::F32, Range::read(slice, stream, first)),
            CudaStorageSlice::BF16(slice) => (DType::Bf16, Range::read(slice, stream, first)),
            CudaStorageSlice::F16(slice) => (DType::F16, Range::read(slice, stream, first)),
            CudaStorageSlice::I32(slice) => (DType::I32, Range::read(slice, stream, first)),
            CudaStorageSlice::U8(slice) => (DType::U8, Range::read(slice, stream, first)),
            _ => return unknown(name, storage.dtype()),
        };
        self.borrow(name, dtype, range)
    }

    /// Borrows a result's elements, for writing.
    pub fn write<'s>(&'s self, name: &str, storage: &'s mut CudaStorage) -> Result<DeviceElements<'s>> {
        self.expect_own(name, storage)?;
        let (stream, found) = (&*self.stream, storage.dtype());
        let (dtype, range) = match &mut storage.slice {
            CudaStorageSlice::F32(slice) => (DType::F32, Range::write(slice, stream)),
            CudaStorageSlice::BF16(slice) => (DType::Bf16, Range::write(slice, stream)),
            CudaStorageSlice::F16(slice) => (DType::F16, Range::write(slice, stream)),
            _ => return unknown(name, found),
        };
        self.borrow(name, dtype, range)
    }

    fn borrow<'s>(&'s self, name: &str, dtype: DType, range: Range<'s>) -> Result<DeviceElements<'s>> {
        // SAFETY: the range is of a live slice, which stays borrowed, shared or exclusively, for as long as the result is
        // there; candle's devices use the primary context, as the library does; kernels are started on the stream that the
        // slice was made ready for.
        let memory = unsafe { self.cuda.borrow(dtype, range.address, range.count) };
        let memory = memory.map_err(|error| Error::msg(format!("`{name}`: {error}")))?;
        Ok(DeviceElements { memory, _order: range.order })
    }

    /// Memory for a result, uninitialised.
    pub fn uninitialised(&self, name: &str, dtype: candle_core::DType, count: usize) -> Result<CudaStorage> {
        // SAFETY: every result of the library's is written whole before candle sees it, or is dropped unread.
        let slice = unsafe {
            match dtype {
                candle_core::DType::F32 => CudaStorageSlice::F32(self.device.alloc(count)?),
                candle_core::DType::BF16 => CudaStorageSlice::BF16(self.device.alloc(count)?),
                candle_core::DType::F16 => CudaStorageSlice::F16(self.device.alloc(count)?),
                other => return unknown(name, other),
            }
        };
        Ok(CudaStorage { slice, device: self.device.clone() })
    }

    /// candle orders work by device: what another one of the same GPU does is not ordered with this one's.
    fn expect_own(&self, name: &str, storage: &CudaStorage) -> Result<()> {
        if storage.device().same_device(&self.device) {
            return Ok(());
        }
        bail!("`{name}` is on another device than the layer's weights")
    }

    /// Calls with a stream that has `workspace` bytes to work in.
    fn call(&self, workspace: usize, call: impl FnOnce(&Stream<Driver>) -> da_moe::Result<()>) -> da_moe::Result<()> {
        let mut work = lock(&self.work);
        let thread = std::thread::current().id();
        if work.thread != thread {
            // candle's usual stream is each thread's own behind one handle. What is reused from call to call, workspace and
            // steps, is ordered by one such stream alone.
            self.cuda.device().synchronize_all()?;
            work.thread = thread;
        }
        if work.stream.workspace_bytes() < workspace {
            work.stream = on(&self.cuda, &self.stream, workspace)?;
        }
        call(&work.stream)
    }
}

/// Memory of candle's, until the kernels that use it are queued.
pub(crate) struct DeviceElements<'s> {
    memory: DeviceMemory<Driver>,
    /// Tells candle, when dropped, that what was queued by then uses the memory.
    _order: SyncOnDrop<'s>,
}

impl DeviceElements<'_> {
    pub fn elements(&self) -> Slice<'_> {
        (&self.memory).into()
    }

    pub fn elements_mut(&mut self) -> SliceMut<'_> {
        (&mut self.memory).into()
    }
}

/// A layer on a GPU, with what it carries between calls.
pub(crate) struct Engine {
    layer: Layer<Cuda>,
    carried: Mutex<State>,
    gpu: Arc<Gpu>,
}

impl Engine {
    pub fn new(config: LayerConfig, device: &CudaDevice) -> Result<Self> {
        let gpu = Gpu::of(device)?;
        let layer = Layer::new(gpu.cuda.clone(), config).map_err(Error::wrap)?;
        let carried = Mutex::new(layer.state().map_err(Error::wrap)?);
        Ok(Self { layer, carried, gpu })
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub fn config(&self) -> &LayerConfig {
        self.layer.config()
    }

    pub fn step(&self, tokens: usize, dtype: DType, keep: Keep) -> da_moe::Result<Step> {
        self.layer.step(tokens, dtype, keep)
    }

    /// Only a layer whose calls depend on what is carried waits for it to be told, or to be put back.
    pub fn forward(
        &self,
        start: Start,
        inputs: &Inputs<'_>,
        weights: &Weights<'_>,
        step: &mut Step,
        y: TensorMut<'_, 2>,
    ) -> da_moe::Result<Carried> {
        let workspace = self.workspace(inputs)?;
        let mut carried = lock(&self.carried);
        let call = |state: &mut State| {
            self.gpu.call(workspace, |stream| self.layer.forward(stream, inputs, weights, state, step, y))
        };
        match start {
            Start::Told if self.carries() => {
                let before = read_state(&carried)?;
                call(&mut carried)?;
                Ok(before)
            }
            Start::Earlier(before) if self.carries() => {
                let mut state = self.layer.state()?;
                write_state(&mut state, before)?;
                call(&mut state)?;
                Ok(before)
            }
            _ => {
                call(&mut carried)?;
                Ok(Carried::NONE)
            }
        }
    }

    pub fn backward(
        &self,
        inputs: &Inputs<'_>,
        weights: &Weights<'_>,
        dy: TensorRef<'_, 2>,
        step: &mut Step,
        gradients: &mut Gradients<'_>,
    ) -> da_moe::Result<()> {
        self.gpu
            .call(self.workspace(inputs)?, |stream| self.layer.backward(stream, inputs, weights, dy, step, gradients))
    }

    /// Whether calls depend on what earlier ones have left.
    fn carries(&self) -> bool {
        matches!(self.config().importance.normalize, Normalize::Running { .. })
            || matches!(self.config().experts_per_token.policy, Policy::BudgetRunning { .. })
    }

    pub fn state(&self) -> da_moe::Result<Carried> {
        read_state(&lock(&self.carried))
    }

    pub fn set_state(&self, values: Carried) -> da_moe::Result<()> {
        write_state(&mut lock(&self.carried), values)
    }

    /// Enough for forward and backward of such a call.
    fn workspace(&self, inputs: &Inputs<'_>) -> da_moe::Result<usize> {
        self.gpu.cuda.workspace_bytes(self.layer.config(), Most::of(inputs, Keep::Hidden))
    }
}

/// What a state holds, after everything that was started before.
fn read_state(state: &State) -> da_moe::Result<Carried> {
    let mut values = [0.0; STATE_LEN];
    values.iter_mut().zip(state.values.to_host()?.to_f32()).for_each(|(value, read)| *value = read);
    Ok(Carried::new(values))
}

fn write_state(state: &mut State, carried: Carried) -> da_moe::Result<()> {
    state.values.write(&carried.values().to_vec().into())
}
