//! The compiled kernels inside this library, or why there are none.

use crate::cuda::device::Architecture;
use crate::{Error, Result};
use std::fmt;

/// One file of `kernels/`, compiled for every architecture of [`BuildReport::Built`], or for Hopper alone.
#[derive(Clone, Copy)]
pub struct Image {
    /// The file's name without `.cu`.
    pub name: &'static str,
    /// What has the kernels' instructions.
    pub architecture: Architecture,
    /// Machine code and PTX, as `cuModuleLoadData` takes them. Aligned to 16 bytes, as drivers read it in words.
    pub fatbin: &'static [u8],
    /// What ptxas said: registers, spills and shared memory of every kernel on every architecture.
    pub ptxas: &'static str,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({}, {} bytes)", self.name, self.fatbin.len())
    }
}

/// How the kernels were built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildReport {
    /// They are in the library.
    Built {
        /// `sm_…` is machine code for one architecture; `compute_…` is PTX, which drivers translate for later ones.
        architectures: &'static [&'static str],
        /// Name and version.
        compiler: &'static str,
    },
    /// They are not.
    NotBuilt {
        /// Why not, to be read after a colon.
        reason: &'static str,
    },
}

/// The compiled kernels; `None` where they were not built, and [`build_report`] says why.
pub fn kernels() -> Option<&'static [Image]> {
    IMAGES
}

/// The compiled kernels, or the error for a caller who needs them.
///
/// # Errors
/// [`Error::KernelsNotBuilt`] with the reason.
pub fn require_kernels() -> Result<&'static [Image]> {
    match (IMAGES, REPORT) {
        (Some(images), _) => Ok(images),
        (None, BuildReport::NotBuilt { reason }) => Err(Error::KernelsNotBuilt { reason: reason.into() }),
        (None, BuildReport::Built { .. }) => Err(Error::KernelsNotBuilt { reason: "there are no kernels".into() }),
    }
}

/// With which compiler and for which architectures the kernels were built, or why they were not.
pub fn build_report() -> BuildReport {
    REPORT
}

/// Bytes at an address that words can be read from.
#[repr(C, align(16))]
#[allow(dead_code, reason = "where kernels are not built, there is nothing to align")]
struct Aligned<T: ?Sized>(T);

#[allow(unused_macros, reason = "where kernels are not built, there is nothing to include")]
macro_rules! image {
    ($name:literal, $architecture:ident) => {{
        static FATBIN: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin")));
        Image {
            name: $name,
            architecture: Architecture::$architecture,
            fatbin: &FATBIN.0,
            ptxas: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptxas.txt")),
        }
    }};
}

// `IMAGES` and `REPORT`, by the build script.
include!(concat!(env!("OUT_DIR"), "/images.rs"));
