//! candle's tensors as the library's views, without a copy, and the library's results as candle's tensors.

use crate::engine::Engine;
use crate::types::unknown;
use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Error, Layout, Result, Shape, Storage, StorageRef, Tensor, bail};
use da_moe::{Slice, SliceMut, TensorMut, TensorRef};

/// A tensor whose storage is locked for reading.
pub(crate) struct ReadGuard<'t> {
    name: &'static str,
    storage: StorageRef<'t>,
    layout: &'t Layout,
}

impl<'t> ReadGuard<'t> {
    pub fn new(name: &'static str, tensor: &'t Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        Ok(Self { name, storage, layout })
    }

    /// Its elements, from the first of the tensor on, where `engine` reaches them.
    pub fn borrow<'s>(&'s self, engine: &'s Engine) -> Result<Borrowed<'s>> {
        let (name, first) = (self.name, self.layout.start_offset());
        let elements = match (&*self.storage, engine) {
            (Storage::Cpu(storage), Engine::Cpu { .. }) => Elements::Host(host(name, storage, first)?),
            #[cfg(feature = "cuda")]
            (Storage::Cuda(storage), Engine::Cuda(engine)) => {
                Elements::Device(engine.gpu().read(name, storage, first)?)
            }
            _ => bail!("`{name}` is on another device than the layer's weights"),
        };
        Ok(Borrowed { name, layout: self.layout, elements })
    }
}

/// The memory of a tensor, for the time of a call.
pub(crate) struct Borrowed<'s> {
    name: &'static str,
    layout: &'s Layout,
    elements: Elements<'s>,
}

enum Elements<'s> {
    Host(Slice<'s>),
    #[cfg(feature = "cuda")]
    Device(crate::cuda::DeviceElements<'s>),
}

impl Borrowed<'_> {
    pub fn view<const R: usize>(&self) -> Result<TensorRef<'_, R>> {
        let (name, dims) = (self.name, self.layout.dims());
        let (Ok(shape), Ok(strides)) = (dims.try_into(), self.layout.stride().try_into()) else {
            bail!("`{name}` has shape {dims:?}, {R} dimensions are expected");
        };
        let elements = match &self.elements {
            Elements::Host(elements) => *elements,
            #[cfg(feature = "cuda")]
            Elements::Device(elements) => elements.elements(),
        };
        TensorRef::strided(elements, shape, strides).map_err(|error| Error::msg(format!("`{name}`: {error}")))
    }
}

fn host<'s>(name: &str, storage: &'s CpuStorage, first: usize) -> Result<Slice<'s>> {
    fn from<T>(elements: &[T], first: usize) -> &[T] {
        elements.get(first..).unwrap_or_default()
    }
    Ok(match storage {
        CpuStorage::F32(elements) => from(elements, first).into(),
        CpuStorage::BF16(elements) => from(elements, first).into(),
        CpuStorage::F16(elements) => from(elements, first).into(),
        CpuStorage::I32(elements) => from(elements, first).into(),
        CpuStorage::U8(elements) => from(elements, first).into(),
        other => return unknown(name, other.dtype()),
    })
}

/// Memory of candle's for a result, to be written by the library.
pub(crate) struct Output {
    name: &'static str,
    storage: Storage,
    shape: Shape,
}

impl Output {
    /// For a tensor with the shape and type of `tensor`, beside it.
    pub fn like(name: &'static str, tensor: &Tensor, engine: &Engine) -> Result<Self> {
        let count = tensor.elem_count();
        let storage = match (tensor.dtype(), engine) {
            #[cfg(feature = "cuda")]
            (dtype, Engine::Cuda(engine)) => Storage::Cuda(engine.gpu().uninitialised(name, dtype, count)?),
            (DType::F32, Engine::Cpu { .. }) => Storage::Cpu(CpuStorage::F32(vec![Default::default(); count])),
            (DType::BF16, Engine::Cpu { .. }) => Storage::Cpu(CpuStorage::BF16(vec![Default::default(); count])),
            (DType::F16, Engine::Cpu { .. }) => Storage::Cpu(CpuStorage::F16(vec![Default::default(); count])),
            (other, Engine::Cpu { .. }) => return unknown(name, other),
        };
        Ok(Self { name, storage, shape: tensor.shape().clone() })
    }

    /// Its elements for writing.
    pub fn borrow_mut<'s>(&'s mut self, engine: &'s Engine) -> Result<BorrowedMut<'s>> {
        let name = self.name;
        let elements = match (&mut self.storage, engine) {
            (Storage::Cpu(CpuStorage::F32(elements)), Engine::Cpu { .. }) => ElementsMut::Host(elements.into()),
            (Storage::Cpu(CpuStorage::BF16(elements)), Engine::Cpu { .. }) => ElementsMut::Host(elements.into()),
            (Storage::Cpu(CpuStorage::F16(elements)), Engine::Cpu { .. }) => ElementsMut::Host(elements.into()),
            #[cfg(feature = "cuda")]
            (Storage::Cuda(storage), Engine::Cuda(engine)) => ElementsMut::Device(engine.gpu().write(name, storage)?),
            _ => bail!("the result `{name}` is in memory that the library does not write"),
        };
        Ok(BorrowedMut { name, shape: &self.shape, elements })
    }

    pub fn into_tensor(self) -> Tensor {
        Tensor::from_storage(self.storage, self.shape, BackpropOp::none(), false)
    }

    pub fn into_storage(self) -> (Storage, Shape) {
        (self.storage, self.shape)
    }
}

/// The memory of a result, for the time of a call. A struct beside [`Borrowed`]: what is written has no strides and one view at a time.
pub(crate) struct BorrowedMut<'s> {
    name: &'static str,
    shape: &'s Shape,
    elements: ElementsMut<'s>,
}

enum ElementsMut<'s> {
    Host(SliceMut<'s>),
    #[cfg(feature = "cuda")]
    Device(crate::cuda::DeviceElements<'s>),
}

impl BorrowedMut<'_> {
    pub fn view<const R: usize>(&mut self) -> Result<TensorMut<'_, R>> {
        let (name, dims) = (self.name, self.shape.dims());
        let Ok(shape) = dims.try_into() else { bail!("`{name}` has shape {dims:?}, {R} dimensions are expected") };
        let elements = match &mut self.elements {
            ElementsMut::Host(elements) => elements.reborrow(),
            #[cfg(feature = "cuda")]
            ElementsMut::Device(elements) => elements.elements_mut(),
        };
        TensorMut::new(elements, shape).map_err(|error| Error::msg(format!("`{name}`: {error}")))
    }
}
