//! Element types. Storage is f32, bf16 or f16; integers and bytes appear in plans and masks.

use std::fmt;

pub use half::{bf16, f16};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// bfloat16: 8 exponent bits, 7 fraction bits.
    Bf16,
    /// IEEE half precision: 5 exponent bits, 10 fraction bits.
    F16,
    /// 32-bit signed integer: ids, counts, offsets.
    I32,
    /// Byte: masks.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::U8 => 1,
        }
    }

    /// Whether activations and weights may be stored in this type (SPEC, preamble).
    pub const fn is_storage(self) -> bool {
        matches!(self, DType::F32 | DType::Bf16 | DType::F16)
    }

    /// The lower-case name used on command lines and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::I32 => "i32",
            DType::U8 => "u8",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [DType::F32, DType::Bf16, DType::F16]
            .into_iter()
            .find(|dtype| dtype.name() == name)
            .ok_or_else(|| format!("`{name}` is not a storage type; choose f32, bf16 or f16"))
    }
}

/// A floating-point type that activations and weights can be stored in; arithmetic happens in f32.
pub trait Storage: crate::Element + fmt::Debug {
    /// What `h` is kept in for backward: bf16 for bf16, which has the range of f32; f32 for f16, whose range `h` may leave (silu of −∞ is
    /// NaN, though it is 0 long before).
    type Hidden: Storage;
    /// Widens to f32, exactly.
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn from_f32(value: f32) -> Self;
    /// The slice itself when it already is f32: lets f32 code paths skip every copy.
    fn as_f32(slice: &[Self]) -> Option<&[f32]>;
    /// As [`Storage::as_f32`], for writing.
    fn as_f32_mut(slice: &mut [Self]) -> Option<&mut [f32]>;
}

impl Storage for f32 {
    type Hidden = f32;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
    fn as_f32(slice: &[Self]) -> Option<&[f32]> {
        Some(slice)
    }
    fn as_f32_mut(slice: &mut [Self]) -> Option<&mut [f32]> {
        Some(slice)
    }
}

macro_rules! half_storage {
    ($type:ty, $hidden:ty) => {
        impl Storage for $type {
            type Hidden = $hidden;
            #[inline(always)]
            fn to_f32(self) -> f32 {
                <$type>::to_f32(self)
            }
            #[inline(always)]
            fn from_f32(value: f32) -> Self {
                <$type>::from_f32(value)
            }
            fn as_f32(_: &[Self]) -> Option<&[f32]> {
                None
            }
            fn as_f32_mut(_: &mut [Self]) -> Option<&mut [f32]> {
                None
            }
        }
    };
}

half_storage!(bf16, bf16);
half_storage!(f16, f32);
