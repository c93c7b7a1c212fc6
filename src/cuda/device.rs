//! Where kernels run: the CUDA driver, or the emulator on machines without a GPU. Everything above this file decides what
//! to launch and with which parameters, and never knows which of the two it talks to.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::abi;
use crate::Result;
use std::ffi::c_void;
use std::sync::Arc;

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
}

impl Launch {
    /// A launch along x alone.
    pub(super) const fn linear(kernel: &'static str, blocks: u32, threads: u32) -> Self {
        Self { kernel, grid: [blocks, 1, 1], threads, shared: 0 }
    }
}

macro_rules! parameters {
    ($($kind:ident),* $(,)?) => {
        /// The one argument of a kernel, by value.
        #[derive(Clone, Copy, Debug)]
        #[allow(clippy::large_enum_variant, reason = "lives on the stack for the time of one launch")]
        pub enum Parameters {
            $(#[doc = concat!("Of the kernels that take `", stringify!($kind), "`.")] $kind(abi::$kind)),*
        }

        impl Parameters {
            /// Where the struct lies, for the launch's parameter array.
            fn address(&self) -> *mut c_void {
                match self {
                    $(Parameters::$kind(p) => std::ptr::from_ref(p).cast_mut().cast()),*
                }
            }
        }

        $(
            impl From<abi::$kind> for Parameters {
                fn from(p: abi::$kind) -> Self {
                    Parameters::$kind(p)
                }
            }
        )*
    };
}

parameters!(
    ImportanceProbabilities,
    ImportanceQueryKey,
    ImportanceRouterEntropy,
    ImportanceReduce,
    ImportanceNormalize,
    ImportanceRunning,
    Budget,
    Gate,
    GivenRouting,
    GateBias,
    GroupedGemm,
    Permute,
    Combine,
    CombineBackward,
    PermuteBackward,
    GateBackward,
    GateDx,
    RoutingBackward,
);

/// A launch with its parameters.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// What runs.
    pub launch: Launch,
    /// On what.
    pub parameters: Parameters,
}

impl Call {
    pub(super) fn new(launch: Launch, parameters: impl Into<Parameters>) -> Self {
        Self { launch, parameters: parameters.into() }
    }

    /// Runs the kernel, in order with everything else on this device.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// Every pointer in the parameters is null where `kernels/abi.h` allows it, or the address of memory of this device
    /// that is as large as is said there.
    pub unsafe fn run(&self, device: &(impl Device + ?Sized)) -> Result<()> {
        // SAFETY: the address is of a live struct of the type that this kernel takes; its pointers are the caller's word.
        unsafe { device.launch(&self.launch, &[self.parameters.address()]) }
    }
}

/// Memory and launches of one device. Calls are ordered: a download sees what was launched before it.
pub trait Device: Send + Sync {
    /// What it is, for people.
    fn describe(&self) -> String;

    /// How many multiprocessors it has, for kernels whose blocks stay and take tile after tile.
    fn multiprocessors(&self) -> usize;

    /// The address of `bytes` bytes of uninitialised memory, aligned to 256. `name` is for reports.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn alloc(&self, name: &str, bytes: usize) -> Result<u64>;

    /// Gives back what [`Device::alloc`] gave.
    fn free(&self, address: u64);

    /// Copies to the device.
    ///
    /// # Errors
    /// The device's.
    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()>;

    /// Copies from the device, after everything launched before.
    ///
    /// # Errors
    /// The device's.
    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()>;

    /// From now on kernels may only read this allocation, where the device can watch that.
    ///
    /// # Errors
    /// The device's.
    fn read_only(&self, _address: u64) -> Result<()> {
        Ok(())
    }

    /// Bytes of an allocation that nothing has written yet; 0 where the device cannot know.
    ///
    /// # Errors
    /// The device's.
    fn unwritten(&self, _address: u64) -> Result<usize> {
        Ok(0)
    }

    /// Starts a kernel with `parameters` as `cuLaunchKernel` takes them: one address for each of its parameters.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// The parameters are of the kernel's types, and what they point to is memory of this device of the size the kernel
    /// expects.
    unsafe fn launch(&self, launch: &Launch, parameters: &[*mut c_void]) -> Result<()>;
}

impl<D: Device + ?Sized> Device for Arc<D> {
    fn describe(&self) -> String {
        (**self).describe()
    }

    fn multiprocessors(&self) -> usize {
        (**self).multiprocessors()
    }

    fn alloc(&self, name: &str, bytes: usize) -> Result<u64> {
        (**self).alloc(name, bytes)
    }

    fn free(&self, address: u64) {
        (**self).free(address);
    }

    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        (**self).upload(address, bytes)
    }

    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        (**self).download(address, bytes)
    }

    fn read_only(&self, address: u64) -> Result<()> {
        (**self).read_only(address)
    }

    fn unwritten(&self, address: u64) -> Result<usize> {
        (**self).unwritten(address)
    }

    unsafe fn launch(&self, launch: &Launch, parameters: &[*mut c_void]) -> Result<()> {
        // SAFETY: the caller's word.
        unsafe { (**self).launch(launch, parameters) }
    }
}
