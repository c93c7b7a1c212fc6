//! Where the layer is executed.

use crate::Result;
use da_moe::cuda::Cuda;
use da_moe::{Backend, Cpu};
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

/// An opened device.
#[derive(Clone, Debug)]
pub(crate) enum Opened {
    Cpu(Cpu),
    Cuda(Cuda),
}

impl Device {
    /// The backend for this device: for `auto` the first GPU, or the CPU where there is none or it cannot be used.
    ///
    /// # Errors
    /// The library's, for a GPU that was asked for by name: nothing is computed elsewhere instead.
    pub(crate) fn open(self) -> Result<Opened> {
        match self {
            Device::Cpu => Ok(Opened::Cpu(Cpu::new())),
            Device::Cuda(ordinal) => Ok(Opened::Cuda(Cuda::open(ordinal)?)),
            Device::Auto => Ok(Cuda::open(0).map_or_else(|_| Opened::Cpu(Cpu::new()), Opened::Cuda)),
        }
    }

    /// What `auto` chooses here, and why, in one line.
    pub(crate) fn explain_auto() -> String {
        match Cuda::open(0) {
            Ok(cuda) => cuda.describe(),
            Err(error) => format!("{} ({error})", Cpu::new().describe()),
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
