//! The bytes of host elements.

#![allow(unsafe_code, reason = "elements are seen as bytes; each block names what it relies on")]

use crate::{Element, Slice, SliceMut};

/// The bytes of elements; none of those on a device.
pub(in crate::cuda) fn bytes_of(slice: Slice<'_>) -> Option<&[u8]> {
    fn of<T: Element>(elements: &[T]) -> &[u8] {
        // SAFETY: every `Element` is an integer or a float, without padding, and any byte may be read as u8.
        unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
    }
    match slice {
        Slice::F32(s) => Some(of(s)),
        Slice::Bf16(s) => Some(of(s)),
        Slice::F16(s) => Some(of(s)),
        Slice::I32(s) => Some(of(s)),
        Slice::U8(s) => Some(s),
        Slice::Foreign(_) => None,
    }
}

/// As [`bytes_of`], for writing.
pub(in crate::cuda) fn bytes_of_mut(slice: SliceMut<'_>) -> Option<&mut [u8]> {
    fn of<T: Element>(elements: &mut [T]) -> &mut [u8] {
        let bytes = size_of_val(elements);
        // SAFETY: every `Element` is an integer or a float: no padding, and every bit pattern is a value.
        unsafe { std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), bytes) }
    }
    match slice {
        SliceMut::F32(s) => Some(of(s)),
        SliceMut::Bf16(s) => Some(of(s)),
        SliceMut::F16(s) => Some(of(s)),
        SliceMut::I32(s) => Some(of(s)),
        SliceMut::U8(s) => Some(s),
        SliceMut::Foreign(_) => None,
    }
}
