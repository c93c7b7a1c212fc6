//! From nothing to a GPU: the driver's library, the driver, the device.

use super::context::refused;
use crate::cuda::device::{Architecture, Target};
use crate::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};
use libloading::Library;
use std::sync::OnceLock;

/// The driver's library, as the system's loader knows it.
const LIBRARY: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };

/// cudarc tries other names of the library first, and may find the one that programs are linked with.
const STUB: &str = "`libcuda.so` on the loader's path is the stub that programs are linked with; take its folder, one that \
                    ends in `stubs`, out of LD_LIBRARY_PATH";

/// A device that answered.
pub(super) struct Gpu {
    pub(super) device: sys::CUdevice,
    /// Model, architecture and driver, for people.
    pub(super) description: String,
    pub(super) target: Target,
    /// Bytes of shared memory that a block may have, for kernels that ask for it.
    pub(super) shared_bytes: u32,
}

pub(super) fn gpu(ordinal: u32) -> Result<Gpu> {
    load_library()?;
    result::init().map_err(|error| match error.0 {
        CUresult::CUDA_ERROR_STUB_LIBRARY => Error::NoDriver { problem: STUB.into() },
        CUresult::CUDA_ERROR_NO_DEVICE => Error::NoDevice { reason: "the NVIDIA driver finds none".into() },
        _ => refused("cuInit", error, "the NVIDIA driver does not start"),
    })?;
    let count = result::device::get_count().map_err(|error| refused("cuDeviceGetCount", error, "all GPUs"))?;
    let Some(index) = i32::try_from(ordinal).ok().filter(|index| *index < count) else {
        return Err(Error::NoDevice {
            reason: format!("number {ordinal} was asked for, and this machine has {count}"),
        });
    };
    let about = format!("GPU {ordinal}");
    let device = result::device::get(index).map_err(|error| refused("cuDeviceGet", error, &about))?;
    let unknown = |error| refused("cuDeviceGetAttribute", error, &about);
    let facts = Facts::of(device).map_err(unknown)?;
    facts.check()?;
    // SAFETY: the device is one that the driver named.
    let number = |attribute| unsafe { result::device::get_attribute(device, attribute) }.map_err(unknown);
    let multiprocessors = number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let shared_bytes = number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    Ok(Gpu {
        device,
        description: facts.describe(),
        target: Target {
            architecture: Architecture::of_compute_capability(facts.architecture),
            multiprocessors: usize::try_from(multiprocessors).unwrap_or(1),
        },
        shared_bytes: shared_bytes.unsigned_abs(),
    })
}

/// cudarc panics where the library is missing, even in the text of an error, so nothing of it is called before this.
fn load_library() -> Result<()> {
    static LOADED: OnceLock<Result<Library, String>> = OnceLock::new();
    // SAFETY: NVIDIA's library is made to be loaded like this; what runs when it is loaded is its own initialisation. It
    // stays loaded, so cudarc, which looks for it under the same name, finds this one.
    let loaded = LOADED.get_or_init(|| unsafe { Library::new(LIBRARY) }.map_err(|error| in_one_line(&error)));
    match loaded {
        Ok(_) => Ok(()),
        Err(problem) => Err(Error::NoDriver { problem: problem.clone() }),
    }
}

/// An error with everything behind it.
fn in_one_line(error: &dyn std::error::Error) -> String {
    let all = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    all.collect::<Vec<_>>().join(": ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What decides whether the kernels can run.
struct Facts {
    name: String,
    /// Compute capability.
    architecture: (i32, i32),
    /// CUDA version of the driver.
    driver: (i32, i32),
}

impl Facts {
    /// The CUDA version that the kernels are compiled by: what it makes, older drivers do not read.
    const DRIVER: (i32, i32) = (13, 0);
    /// The oldest architecture that there is code for.
    const ARCHITECTURE: (i32, i32) = (8, 0);

    fn of(device: sys::CUdevice) -> Result<Self, DriverError> {
        // SAFETY: the device is one that the driver named.
        let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) };
        let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let mut version = 0;
        // SAFETY: the address is of a live integer.
        unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
        let driver = (version / 1000, version % 1000 / 10);
        Ok(Self { name: result::device::get_name(device)?, architecture: (major, minor), driver })
    }

    fn check(&self) -> Result<()> {
        if self.driver < Self::DRIVER {
            return Err(Error::DriverTooOld { found: self.driver, needed: Self::DRIVER });
        }
        if self.architecture < Self::ARCHITECTURE {
            let (device, found) = (self.name.clone(), self.architecture);
            return Err(Error::Architecture { device, found, needed: Self::ARCHITECTURE });
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let Self { name, architecture: (major, minor), driver } = self;
        format!("{name}, sm_{major}{minor}, driver for CUDA {}.{}", driver.0, driver.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same answer every time, and no panic.
    #[test]
    fn a_missing_driver_is_an_error() {
        for _ in 0..2 {
            match load_library() {
                Ok(()) => {}
                Err(Error::NoDriver { problem }) => {
                    assert!(problem.contains(LIBRARY) && !problem.contains('\n'), "{problem}")
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn what_cannot_run_the_kernels_is_told_why() {
        let facts = |architecture, driver| Facts { name: "a GPU".into(), architecture, driver };
        assert!(facts((9, 0), (13, 0)).check().is_ok() && facts((8, 0), (14, 2)).check().is_ok());
        let refused = |facts: Facts| facts.check().expect_err("refused").to_string();
        assert!(refused(facts((9, 0), (12, 8))).contains("CUDA 12.8, these kernels need one for 13.0"));
        assert!(refused(facts((7, 5), (13, 1))).contains("a GPU is sm_75, there are kernels for sm_80"));
        assert_eq!(facts((9, 0), (13, 0)).describe(), "a GPU, sm_90, driver for CUDA 13.0");
    }
}
