//! Borrowed views of tensors, checked once when they are made.

use crate::{DType, Element, Error, Result, Slice, SliceMut};

/// A read-only view: memory, shape and strides (in elements). Row-major when built with [`TensorRef::new`].
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a, const R: usize> {
    data: Slice<'a>,
    shape: [usize; R],
    strides: [usize; R],
}

/// A writable view with the same geometry as [`TensorRef`]. Its elements never overlap.
#[derive(Debug)]
pub struct TensorMut<'a, const R: usize> {
    data: SliceMut<'a>,
    shape: [usize; R],
    strides: [usize; R],
}

impl<'a, const R: usize> TensorRef<'a, R> {
    /// A dense row-major view of exactly `data`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shape's product is not the number of elements.
    pub fn new(data: impl Into<Slice<'a>>, shape: [usize; R]) -> Result<Self> {
        let data = data.into();
        exact_len(data.len(), &shape)?;
        Ok(Self { data, shape, strides: row_major(&shape) })
    }

    /// A dense row-major view of the first elements of `data`, which may be longer.
    ///
    /// # Errors
    /// [`Error::Stride`] when `data` is too short.
    pub fn prefix(data: impl Into<Slice<'a>>, shape: [usize; R]) -> Result<Self> {
        Self::strided(data, shape, row_major(&shape))
    }

    /// A strided view into `data`; the last stride must be 1 (or the last extent at most 1).
    ///
    /// # Errors
    /// [`Error::Stride`] when the view reaches past `data` or its rows are not contiguous.
    pub fn strided(data: impl Into<Slice<'a>>, shape: [usize; R], strides: [usize; R]) -> Result<Self> {
        let data = data.into();
        check_strides(data.len(), &shape, &strides)?;
        Ok(Self { data, shape, strides })
    }

    /// The memory behind the view.
    pub fn data(&self) -> Slice<'a> {
        self.data
    }

    /// Extents.
    pub fn shape(&self) -> [usize; R] {
        self.shape
    }

    /// Distance between neighbours along each dimension, in elements.
    pub fn strides(&self) -> [usize; R] {
        self.strides
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// The typed elements from the view's first to the end of its memory, if they are of type `T`.
    pub fn elements<T: Element>(&self) -> Option<&'a [T]> {
        T::from_slice(self.data)
    }

    /// As [`TensorRef::elements`], or what is wrong.
    ///
    /// # Errors
    /// [`Error::Location`] when they are on a device, [`Error::DType`] when they are of another type.
    pub fn host_elements<T: Element>(&self, op: &'static str, argument: &'static str) -> Result<&'a [T]> {
        expect_host(op, argument, self.data)?;
        let expected = || T::DTYPE.to_string();
        self.elements().ok_or_else(|| Error::DType { op, argument, expected: expected(), found: self.dtype() })
    }

    /// Refuses a view that has not this shape.
    ///
    /// # Errors
    /// [`Error::Shape`] naming `op` and `argument`.
    pub fn expect_shape(&self, op: &'static str, argument: &'static str, shape: [usize; R]) -> Result<()> {
        same_shape(op, argument, &self.shape, &shape)
    }

    /// Refuses a view whose element type is not one of `accepted`.
    ///
    /// # Errors
    /// [`Error::DType`] naming `op` and `argument`.
    pub fn expect_dtype(&self, op: &'static str, argument: &'static str, accepted: &[DType]) -> Result<()> {
        one_of(op, argument, self.dtype(), accepted)
    }
}

impl<'a, const R: usize> TensorMut<'a, R> {
    /// A dense row-major view of exactly `data`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shape's product is not the number of elements.
    pub fn new(data: impl Into<SliceMut<'a>>, shape: [usize; R]) -> Result<Self> {
        let data = data.into();
        exact_len(data.as_ref().len(), &shape)?;
        Ok(Self { data, shape, strides: row_major(&shape) })
    }

    /// A dense row-major view of the first elements of `data`, which may be longer.
    ///
    /// # Errors
    /// [`Error::Stride`] when `data` is too short.
    pub fn prefix(data: impl Into<SliceMut<'a>>, shape: [usize; R]) -> Result<Self> {
        let data = data.into();
        let strides = row_major(&shape);
        check_strides(data.as_ref().len(), &shape, &strides)?;
        Ok(Self { data, shape, strides })
    }

    /// The view's elements, whatever their type: what is past its last element is left out.
    pub fn into_data(self) -> SliceMut<'a> {
        let count = self.count();
        self.data.first(count)
    }

    /// The number of elements.
    fn count(&self) -> usize {
        // A product with a 0 in it is 0, however large the other extents are.
        if self.shape.contains(&0) { 0 } else { self.shape.iter().product() }
    }

    /// The typed elements of the view, if they are of type `T`.
    pub fn into_elements<T: Element>(self) -> Option<&'a mut [T]> {
        let count = self.count();
        T::from_slice_mut(self.data).map(|elements| &mut elements[..count])
    }

    /// As [`TensorMut::into_elements`], or what is wrong.
    ///
    /// # Errors
    /// [`Error::Location`] when they are on a device, [`Error::DType`] when they are of another type.
    pub fn into_host_elements<T: Element>(self, op: &'static str, argument: &'static str) -> Result<&'a mut [T]> {
        let found = self.data.as_ref().dtype();
        expect_host(op, argument, self.data.as_ref())?;
        self.into_elements().ok_or_else(|| Error::DType { op, argument, expected: T::DTYPE.to_string(), found })
    }

    /// Extents.
    pub fn shape(&self) -> [usize; R] {
        self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.data.as_ref().dtype()
    }

    /// The same elements, read-only.
    pub fn as_ref(&self) -> TensorRef<'_, R> {
        TensorRef { data: self.data.as_ref(), shape: self.shape, strides: self.strides }
    }

    /// The same view for a shorter time.
    pub fn reborrow(&mut self) -> TensorMut<'_, R> {
        TensorMut { data: self.data.reborrow(), shape: self.shape, strides: self.strides }
    }

    /// Refuses a view that has not this shape.
    ///
    /// # Errors
    /// [`Error::Shape`] naming `op` and `argument`.
    pub fn expect_shape(&self, op: &'static str, argument: &'static str, shape: [usize; R]) -> Result<()> {
        same_shape(op, argument, &self.shape, &shape)
    }

    /// Refuses a view whose element type is not one of `accepted`.
    ///
    /// # Errors
    /// [`Error::DType`] naming `op` and `argument`.
    pub fn expect_dtype(&self, op: &'static str, argument: &'static str, accepted: &[DType]) -> Result<()> {
        one_of(op, argument, self.dtype(), accepted)
    }
}

/// Refuses memory that only a device can reach.
///
/// # Errors
/// [`Error::Location`] naming `op` and `argument`.
pub fn expect_host(op: &'static str, argument: &'static str, memory: Slice<'_>) -> Result<()> {
    match memory {
        Slice::Foreign(memory) => {
            Err(Error::Location { op, argument, expected: "host memory".into(), found: memory.location() })
        }
        _ => Ok(()),
    }
}

/// Strides of a dense row-major tensor. Extents whose product overflows saturate and are refused by the length check.
fn row_major<const R: usize>(shape: &[usize; R]) -> [usize; R] {
    let mut strides = [1usize; R];
    for d in (0..R.saturating_sub(1)).rev() {
        strides[d] = strides[d + 1].saturating_mul(shape[d + 1].max(1));
    }
    strides
}

fn exact_len(len: usize, shape: &[usize]) -> Result<()> {
    let product = shape.iter().try_fold(1usize, |a, &b| a.checked_mul(b));
    if product == Some(len) {
        return Ok(());
    }
    Err(Error::Shape { op: "tensor", argument: "data", expected: shape.to_vec(), found: vec![len] })
}

fn check_strides(len: usize, shape: &[usize], strides: &[usize]) -> Result<()> {
    let refuse = |problem: String| {
        Err(Error::Stride { op: "tensor", argument: "data", shape: shape.to_vec(), strides: strides.to_vec(), problem })
    };
    if let (Some(&extent), Some(&stride)) = (shape.last(), strides.last())
        && extent > 1
        && stride != 1
    {
        return refuse("the last dimension must be contiguous".into());
    }
    if shape.contains(&0) {
        return Ok(());
    }
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(0usize, |sum, (&extent, &stride)| sum.checked_add((extent - 1).checked_mul(stride)?));
    match last {
        Some(last) if last < len => Ok(()),
        _ => refuse(format!("the view reaches past its {len} elements")),
    }
}

fn same_shape(op: &'static str, argument: &'static str, found: &[usize], expected: &[usize]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape { op, argument, expected: expected.to_vec(), found: found.to_vec() })
}

fn one_of(op: &'static str, argument: &'static str, found: DType, accepted: &[DType]) -> Result<()> {
    if accepted.contains(&found) {
        return Ok(());
    }
    let mut expected: Vec<_> = accepted.iter().map(|dtype| dtype.name()).collect();
    expected.dedup();
    let expected = expected.join(" or ");
    Err(Error::DType { op, argument, expected, found })
}
