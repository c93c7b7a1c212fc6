//! Typed memory whose element type is known at run time only: borrowed, mutably borrowed, owned.

use crate::{DType, ForeignMemory, Result, Storage, bf16, f16};

/// A type that a tensor's memory can hold.
pub trait Element: Copy + Default + Send + Sync + 'static {
    /// Its runtime tag.
    const DTYPE: DType;
    /// The typed slice, if the element type is this one.
    fn from_slice(slice: Slice<'_>) -> Option<&[Self]>;
    /// The typed slice, if the element type is this one.
    fn from_slice_mut(slice: SliceMut<'_>) -> Option<&mut [Self]>;
}

macro_rules! typed_memory {
    ($($variant:ident: $type:ty),*) => {
        /// Shared borrow of elements.
        #[derive(Clone, Copy, Debug)]
        pub enum Slice<'a> {
            $(#[doc = concat!("Elements of type ", stringify!($type), ".")] $variant(&'a [$type]),)*
            /// Elements on a device.
            Foreign(&'a (dyn ForeignMemory + 'static)),
        }

        /// Exclusive borrow of elements.
        #[derive(Debug)]
        pub enum SliceMut<'a> {
            $(#[doc = concat!("Elements of type ", stringify!($type), ".")] $variant(&'a mut [$type]),)*
            /// Elements on a device.
            Foreign(&'a mut (dyn ForeignMemory + 'static)),
        }

        /// Owned elements.
        #[derive(Clone, Debug)]
        pub enum Buffer {
            $(#[doc = concat!("Elements of type ", stringify!($type), ".")] $variant(Vec<$type>)),*
        }

        impl Slice<'_> {
            /// Element type.
            pub fn dtype(&self) -> DType {
                match self {
                    $(Slice::$variant(_) => DType::$variant,)*
                    Slice::Foreign(memory) => memory.dtype(),
                }
            }

            /// Number of elements.
            pub fn len(&self) -> usize {
                match self {
                    $(Slice::$variant(s) => s.len(),)*
                    Slice::Foreign(memory) => memory.count(),
                }
            }

            /// Whether there are no elements.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }
        }

        impl Slice<'_> {
            /// A copy in host memory. Waits where the elements are on a device.
            ///
            /// # Errors
            /// The device's.
            pub fn to_host(self) -> Result<Buffer> {
                match self {
                    $(Slice::$variant(s) => Ok(s.to_vec().into()),)*
                    Slice::Foreign(memory) => memory.read(),
                }
            }
        }

        impl<'a> SliceMut<'a> {
            /// The first `count` elements; all, when there are not as many, or when they are on a device.
            pub(crate) fn first(self, count: usize) -> SliceMut<'a> {
                match self {
                    $(SliceMut::$variant(s) => {
                        let count = count.min(s.len());
                        SliceMut::$variant(&mut s[..count])
                    })*
                    SliceMut::Foreign(memory) => SliceMut::Foreign(memory),
                }
            }
        }

        impl SliceMut<'_> {
            /// The same elements, read-only.
            pub fn as_ref(&self) -> Slice<'_> {
                match self {
                    $(SliceMut::$variant(s) => Slice::$variant(s),)*
                    SliceMut::Foreign(memory) => Slice::Foreign(&**memory),
                }
            }

            /// The same borrow for a shorter time.
            pub fn reborrow(&mut self) -> SliceMut<'_> {
                match self {
                    $(SliceMut::$variant(s) => SliceMut::$variant(s),)*
                    SliceMut::Foreign(memory) => SliceMut::Foreign(&mut **memory),
                }
            }
        }

        impl Buffer {
            /// `len` zeros of type `dtype`.
            pub fn zeros(dtype: DType, len: usize) -> Self {
                match dtype {
                    $(DType::$variant => Buffer::$variant(vec![<$type>::default(); len])),*
                }
            }
        }

        impl<'a> From<&'a Buffer> for Slice<'a> {
            fn from(buffer: &'a Buffer) -> Self {
                match buffer { $(Buffer::$variant(s) => Slice::$variant(s)),* }
            }
        }

        impl<'a> From<&'a mut Buffer> for SliceMut<'a> {
            fn from(buffer: &'a mut Buffer) -> Self {
                match buffer { $(Buffer::$variant(s) => SliceMut::$variant(s)),* }
            }
        }

        $(
            impl Element for $type {
                const DTYPE: DType = DType::$variant;
                fn from_slice(slice: Slice<'_>) -> Option<&[$type]> {
                    match slice { Slice::$variant(s) => Some(s), _ => None }
                }
                fn from_slice_mut(slice: SliceMut<'_>) -> Option<&mut [$type]> {
                    match slice { SliceMut::$variant(s) => Some(s), _ => None }
                }
            }
            impl<'a> From<&'a [$type]> for Slice<'a> {
                fn from(slice: &'a [$type]) -> Self { Slice::$variant(slice) }
            }
            impl<'a> From<&'a Vec<$type>> for Slice<'a> {
                fn from(slice: &'a Vec<$type>) -> Self { Slice::$variant(slice) }
            }
            impl<'a> From<&'a mut [$type]> for SliceMut<'a> {
                fn from(slice: &'a mut [$type]) -> Self { SliceMut::$variant(slice) }
            }
            impl<'a> From<&'a mut Vec<$type>> for SliceMut<'a> {
                fn from(slice: &'a mut Vec<$type>) -> Self { SliceMut::$variant(slice) }
            }
            impl From<Vec<$type>> for Buffer {
                fn from(elements: Vec<$type>) -> Self { Buffer::$variant(elements) }
            }
        )*
    };
}

typed_memory!(F32: f32, Bf16: bf16, F16: f16, I32: i32, U8: u8);

impl Buffer {
    /// Element type.
    pub fn dtype(&self) -> DType {
        Slice::from(self).dtype()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        Slice::from(self).len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, if they are of type `T`.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        T::from_slice(self.into())
    }

    /// The elements for writing, if they are of type `T`.
    pub fn as_mut_slice<T: Element>(&mut self) -> Option<&mut [T]> {
        T::from_slice_mut(self.into())
    }

    /// Every element widened to f32 (integers above 2^24 round).
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Buffer::F32(v) => v.clone(),
            Buffer::Bf16(v) => v.iter().map(|e| Storage::to_f32(*e)).collect(),
            Buffer::F16(v) => v.iter().map(|e| Storage::to_f32(*e)).collect(),
            Buffer::I32(v) => v.iter().map(|e| *e as f32).collect(),
            Buffer::U8(v) => v.iter().map(|e| f32::from(*e)).collect(),
        }
    }

    /// `values` rounded to the storage type `dtype`; integer types truncate toward zero.
    pub fn from_f32(dtype: DType, values: &[f32]) -> Self {
        match dtype {
            DType::F32 => values.to_vec().into(),
            DType::Bf16 => values.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>().into(),
            DType::F16 => values.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>().into(),
            DType::I32 => values.iter().map(|v| *v as i32).collect::<Vec<_>>().into(),
            DType::U8 => values.iter().map(|v| *v as u8).collect::<Vec<_>>().into(),
        }
    }
}
