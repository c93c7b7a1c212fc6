//! Tensor maps, as the driver encodes them.

use super::context::refused;
use crate::Result;
use crate::cuda::abi::TensorMap;
use crate::cuda::device::{Elements, TensorBoxes};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::mem::MaybeUninit;

/// Host arithmetic of the driver's: no context is needed, nothing waits.
pub(super) fn encode(boxes: &TensorBoxes) -> Result<TensorMap> {
    let elements = match boxes.elements {
        Elements::Half => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
        Elements::Float => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    };
    let address = std::ptr::without_provenance_mut::<c_void>(boxes.address as usize);
    let (box_extents, steps) = (boxes.box_extents(), [1_u32; 4]);
    let mut map = MaybeUninit::<sys::CUtensorMap>::uninit();
    // SAFETY: the driver reads `rank` extents and steps, one stride less, and writes the map; the address is a number to it.
    let encoded = unsafe {
        sys::cuTensorMapEncodeTiled(
            map.as_mut_ptr(),
            elements,
            boxes.rank as u32,
            address,
            boxes.extents.as_ptr(),
            boxes.strides.as_ptr(),
            box_extents.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    encoded.result().map_err(|error| refused("cuTensorMapEncodeTiled", error, format_args!("{boxes:?}")))?;
    // SAFETY: the driver succeeded, so the map is written.
    Ok(TensorMap { words: unsafe { map.assume_init() }.opaque })
}
