//! A kernel's launch, with whatever its one parameter is.

use crate::Result;
use crate::cuda::abi::{self, TensorMap};
use crate::cuda::cost::{Contents, Work};
use crate::cuda::device::{Device, TensorBoxes};
use std::any::TypeId;
use std::ffi::c_void;
use std::fmt;
use std::mem::MaybeUninit;

/// A kernel by name and how many threads run it: a pure function of sizes and types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Name of the kernel, as in `kernels/*.cu`.
    pub kernel: &'static str,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// Blocks, neighbours along x, that are at work at once and reach each other's shared memory: what the kernel is compiled
    /// for, 1 for most.
    pub cluster: u32,
}

impl Launch {
    /// A launch along x alone.
    pub(in crate::cuda) const fn linear(kernel: &'static str, blocks: u32, threads: u32) -> Self {
        Self { kernel, grid: [blocks, 1, 1], threads, shared: 0, cluster: 1 }
    }

    /// Blocks, in all directions.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|blocks| u64::from(*blocks)).product()
    }
}

/// The one parameter of a kernel, by value: a struct of [`abi`]. Implemented in the stage's file of `launch`, where the kernel is
/// chosen; that is all a kernel has to be known by.
pub trait Parameters: Copy + fmt::Debug + 'static {
    /// Tensor maps that it begins with.
    const MAPS: usize = 0;

    /// What a launch with these costs at least.
    fn work(&self, launch: &Launch, contents: &Contents) -> Work;
}

/// Bytes of the largest struct that kernels take.
const ROOM: usize = {
    let (mut room, mut index) = (0, 0);
    while index < abi::LAYOUTS.len() {
        if abi::LAYOUTS[index].size > room {
            room = abi::LAYOUTS[index].size;
        }
        index += 1;
    }
    room
};

/// What is known of the type of a call's parameter.
struct Kind {
    of: fn() -> TypeId,
    work: fn(&Call, &Contents) -> Work,
    debug: fn(&Call, &mut fmt::Formatter<'_>) -> fmt::Result,
}

impl Kind {
    const fn of<P: Parameters>() -> &'static Self {
        const {
            assert!(size_of::<P>() <= ROOM && align_of::<P>() <= align_of::<Bytes>());
            &Self {
                of: TypeId::of::<P>,
                work: |call, contents| call.read::<P>().work(&call.launch, contents),
                debug: |call, f| call.read::<P>().fmt(f),
            }
        }
    }
}

/// As much as any parameter needs, aligned as the strictest of CUDA's own types, a tensor map.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bytes(MaybeUninit<[u8; ROOM]>);

/// Tensor maps that a parameter begins with, at most.
const MAPS: usize = 4;
const _: () = assert!(MAPS * size_of::<TensorMap>() <= ROOM);

/// A launch with its parameter. It has no heap memory, so that launching takes none.
#[derive(Clone, Copy)]
pub struct Call {
    /// What runs.
    pub launch: Launch,
    kind: &'static Kind,
    /// What the tensor maps are of that the parameter begins with. Only a device encodes them.
    maps: [Option<TensorBoxes>; MAPS],
    bytes: Bytes,
}

// SAFETY: addresses of device memory are numbers to the host: nothing is read through them there, by any thread.
unsafe impl Send for Call {}

impl Call {
    pub(in crate::cuda) fn new<P: Parameters>(launch: Launch, parameters: P) -> Self {
        let mut bytes = Bytes(MaybeUninit::uninit());
        // SAFETY: `Kind::of` holds the type's size and alignment against those of the bytes.
        unsafe { bytes.0.as_mut_ptr().cast::<P>().write(parameters) };
        Self { launch, kind: Kind::of::<P>(), maps: [None; MAPS], bytes }
    }

    /// As [`Call::new`] with parameters that begin with tensor maps, of which there are those that are given here.
    pub(in crate::cuda) fn with_maps<P: Parameters>(
        launch: Launch,
        parameters: P,
        maps: [Option<TensorBoxes>; MAPS],
    ) -> Self {
        const {
            assert!(P::MAPS <= MAPS && size_of::<P>() >= P::MAPS * size_of::<TensorMap>());
            assert!(align_of::<P>() == align_of::<TensorMap>());
        };
        debug_assert!(maps[P::MAPS..].iter().all(Option::is_none));
        Self { maps, ..Self::new(launch, parameters) }
    }

    /// The same by their places.
    pub(in crate::cuda) fn all_maps(&self) -> [Option<TensorBoxes>; MAPS] {
        self.maps
    }

    /// What the tensor maps are of that the parameter begins with.
    pub fn maps(&self) -> impl Iterator<Item = &TensorBoxes> {
        self.maps.iter().flatten()
    }

    /// The parameter, if it is of type `P`.
    pub fn parameters<P: Parameters>(&self) -> Option<&P> {
        ((self.kind.of)() == TypeId::of::<P>()).then(|| self.read())
    }

    /// The parameter of a call that was made with a `P`.
    fn read<P: Parameters>(&self) -> &P {
        debug_assert!((self.kind.of)() == TypeId::of::<P>());
        // SAFETY: `new` wrote a `P` there: callers have looked, or are `Kind`'s functions for that type, which `new` chose.
        unsafe { &*self.bytes.0.as_ptr().cast::<P>() }
    }

    /// What it costs at least, on such contents.
    pub fn work(&self, contents: &Contents) -> Work {
        (self.kind.work)(self, contents)
    }

    /// Starts the kernel on a stream.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// The stream is one of `device`; every pointer in the parameters is null where `kernels/abi.h` allows it, or the address of memory of this device
    /// that is as large as is said there.
    pub unsafe fn run(&self, device: &(impl Device + ?Sized), stream: u64) -> Result<()> {
        let mut bytes = self.bytes;
        for (place, boxes) in self.maps.iter().enumerate() {
            if let Some(boxes) = boxes {
                let map = device.tensor_map(boxes)?;
                // SAFETY: the bytes have room for all maps, and `with_maps` held the alignment of the parameter against theirs.
                unsafe { bytes.0.as_mut_ptr().cast::<TensorMap>().add(place).write(map) };
            }
        }
        let address: *mut c_void = bytes.0.as_mut_ptr().cast();
        // SAFETY: the address is of a live struct of the type that this kernel takes; its pointers are the caller's word.
        unsafe { device.launch(stream, &self.launch, &[address]) }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parameters = fmt::from_fn(|f| (self.kind.debug)(self, f));
        f.debug_struct("Call").field("launch", &self.launch).field("parameters", &parameters).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_its_parameter_and_no_other() {
        let p = abi::GateBias { candidates: 7, ..Default::default() };
        let call = Call::new(Launch::linear("gate_bias", 1, 256), p);
        assert_eq!(call.parameters::<abi::GateBias>().map(|p| p.candidates), Some(7));
        assert!(call.parameters::<abi::Gate>().is_none());
        assert!(format!("{call:?}").contains("candidates: 7"), "{call:?}");
        let (copy, largest) = (call, Call::new(call.launch, abi::Gate { candidates: 9, ..Default::default() }));
        assert_eq!(copy.parameters::<abi::GateBias>().map(|p| p.candidates), Some(7));
        assert_eq!(largest.parameters::<abi::Gate>().map(|p| p.candidates), Some(9));
    }
}
