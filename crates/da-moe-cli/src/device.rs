//! Where the layer is executed.

use crate::{Error, Result};
use da_moe::{Cpu, cuda};
use std::fmt;
use std::str::FromStr;

/// A device as named on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The fastest that there is.
    #[default]
    Auto,
    /// All cores of this machine.
    Cpu,
    /// An NVIDIA GPU by number.
    Cuda(u32),
}

impl Device {
    /// The backend for this device.
    ///
    /// # Errors
    /// For a GPU, always: the library's error when it was built without kernels, else [`Error::Device`], because layers
    /// do not run on it yet. Nothing is computed elsewhere instead.
    pub fn open(self) -> Result<Cpu> {
        match self {
            Device::Auto | Device::Cpu => Ok(Cpu::new()),
            Device::Cuda(_) => {
                cuda::require_kernels()?;
                Err(Error::Device {
                    device: self.to_string(),
                    problem: "this version has kernels for forward, but cannot run a layer on a GPU yet; use `auto` or \
                              `cpu`",
                })
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let unknown = || format!("`{name}` is not a device; choose auto, cpu, cuda or cuda:N");
        match name.split_once(':') {
            None if name == "auto" => Ok(Device::Auto),
            None if name == "cpu" => Ok(Device::Cpu),
            None if name == "cuda" => Ok(Device::Cuda(0)),
            Some(("cuda", index)) => index.parse().map(Device::Cuda).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}
