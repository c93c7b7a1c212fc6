//! Where the layer is executed.

use crate::{Error, Result};
use da_moe::{Backend, Cpu, Cuda};
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
    /// With the reason where `auto` found no GPU.
    Cpu(Cpu, Why),
    Cuda(Cuda),
}

/// Why `auto` did not choose a GPU; nothing where it did, or where the device was named.
#[derive(Clone, Debug, Default)]
pub(crate) struct Why(Option<String>);

impl Why {
    /// A device as it is told of, in one line.
    pub(crate) fn after(&self, device: String) -> String {
        match &self.0 {
            Some(reason) => format!("{device} ({reason})"),
            None => device,
        }
    }
}

impl From<da_moe::Error> for Why {
    fn from(error: da_moe::Error) -> Self {
        Self(Some(error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")))
    }
}

impl Device {
    /// The same for training in candle, which has its own way to a GPU; `auto` is the CPU.
    ///
    /// # Errors
    /// candle's, for a GPU that is not there or that this program was not built for.
    pub(crate) fn for_training(self) -> Result<candle_core::Device> {
        match self {
            Device::Cpu | Device::Auto => Ok(candle_core::Device::Cpu),
            Device::Cuda(ordinal) => {
                let device = candle_core::Device::new_cuda(ordinal as usize);
                device.map_err(|error| Error::Usage(format!("--device cuda:{ordinal}: {error}")))
            }
        }
    }

    /// The backend for this device: for `auto` the first GPU, or the CPU where there is none or it cannot be used.
    ///
    /// # Errors
    /// The library's, for a GPU that was asked for by name: nothing is computed elsewhere instead.
    pub(crate) fn open(self) -> Result<Opened> {
        match self {
            Device::Cpu => Ok(Opened::Cpu(Cpu::new(), Why::default())),
            Device::Cuda(ordinal) => Ok(Opened::Cuda(Cuda::open(ordinal)?)),
            Device::Auto => Ok(Cuda::open(0).map_or_else(|error| Opened::Cpu(Cpu::new(), error.into()), Opened::Cuda)),
        }
    }

    /// What `auto` chooses here, and why, in one line.
    pub(crate) fn explain_auto() -> String {
        match Device::Auto.open() {
            Ok(Opened::Cuda(cuda)) => cuda.describe(),
            Ok(Opened::Cpu(cpu, why)) => why.after(cpu.describe()),
            Err(error) => error.to_string(),
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
