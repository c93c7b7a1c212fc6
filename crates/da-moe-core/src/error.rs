//! The one error type of this crate: what was wrong, with the names and numbers a caller needs.

use crate::DType;

/// Everything that can be refused (SPEC §7). Nothing has been written when one of these is returned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the configuration is out of its domain.
    #[error("config field `{field}`: {problem}")]
    Config {
        /// Path of the field, as in the JSON form.
        field: String,
        /// What is wrong, with the value.
        problem: String,
    },

    /// The configuration is not valid JSON, has an unknown field or a value of the wrong type.
    #[error("config{}: {problem}", if field.is_empty() { String::new() } else { format!(" field `{field}`") })]
    Json {
        /// Path of the offending value; empty for the whole document.
        field: String,
        /// The parser's message.
        problem: String,
    },

    /// The leak rule of SPEC §1: the number of experts would depend on later tokens.
    #[error(
        "config field `{field}`: with causal attention `{choice}` looks at later tokens, so k would leak the future; \
         causal-safe choices: {safe}; or set `importance.allow_future` to true"
    )]
    Leak {
        /// Path of the field.
        field: String,
        /// The choice that sees the future.
        choice: &'static str,
        /// What may stand there instead.
        safe: &'static str,
    },

    /// A tensor has the wrong shape.
    #[error("{op}: `{argument}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The operation that refused.
        op: &'static str,
        /// The tensor's name as in the documentation.
        argument: &'static str,
        /// Required shape.
        expected: Vec<usize>,
        /// Given shape.
        found: Vec<usize>,
    },

    /// A tensor's strides do not fit its shape or its memory.
    #[error("{op}: `{argument}` with shape {shape:?} and strides {strides:?}: {problem}")]
    Stride {
        /// The operation that refused.
        op: &'static str,
        /// The tensor's name.
        argument: &'static str,
        /// Its shape.
        shape: Vec<usize>,
        /// Its strides, in elements.
        strides: Vec<usize>,
        /// What is wrong.
        problem: String,
    },

    /// A tensor has the wrong element type.
    #[error("{op}: `{argument}` is {found}, expected {expected}")]
    DType {
        /// The operation that refused.
        op: &'static str,
        /// The tensor's name.
        argument: &'static str,
        /// What is accepted.
        expected: String,
        /// What was given.
        found: DType,
    },

    /// A tensor is not where the backend can reach it.
    #[error("{op}: `{argument}` is in {found}, expected {expected}")]
    Location {
        /// The operation that refused.
        op: &'static str,
        /// The tensor's name.
        argument: &'static str,
        /// What the backend reaches.
        expected: String,
        /// Where the tensor is.
        found: String,
    },

    /// The configuration needs a tensor that was not given.
    #[error("{op}: `{argument}` is missing: {why}")]
    Missing {
        /// The operation that refused.
        op: &'static str,
        /// The tensor's name.
        argument: &'static str,
        /// Which choice needs it.
        why: String,
    },

    /// A tensor was given that the configuration has no place for.
    #[error("{op}: `{argument}` was given, but {why}")]
    Unexpected {
        /// The operation that refused.
        op: &'static str,
        /// The tensor's name.
        argument: &'static str,
        /// Why it cannot be used.
        why: String,
    },

    /// A tensor's contents are out of their domain.
    #[error("{op}: `{argument}`: {problem}")]
    Value {
        /// The operation that refused.
        op: &'static str,
        /// The tensor's name.
        argument: &'static str,
        /// What is wrong, with position and value.
        problem: String,
    },

    /// A product of sizes does not fit the index type.
    #[error("{what} overflows: {sizes:?} multiply to more than {limit}")]
    Overflow {
        /// Which quantity.
        what: &'static str,
        /// The factors.
        sizes: Vec<usize>,
        /// The largest representable value.
        limit: usize,
    },

    /// The memory for a buffer cannot be had.
    #[error("{bytes} bytes of memory cannot be had")]
    Memory {
        /// How much was asked for.
        bytes: usize,
    },

    /// The threads of a pool cannot be started.
    #[error("{threads} threads cannot be started: {problem}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system said.
        problem: String,
    },

    /// Buffers were made for fewer tokens, or for another purpose, than this call needs.
    #[error("{op}: {problem}")]
    Workspace {
        /// The operation that refused.
        op: &'static str,
        /// What is too small or absent.
        problem: String,
    },

    /// A GPU was asked for, but this library was built without its CUDA kernels.
    #[error(
        "CUDA kernels are not built into this program: {reason}; \
         to have them, put nvcc 13 on PATH (in the project's folder `cargo xtask cuda` is enough) and build with DA_MOE_CUDA=1"
    )]
    KernelsNotBuilt {
        /// Why they were left out.
        reason: String,
    },

    /// The NVIDIA driver is not there, or its library cannot be loaded.
    #[error("no GPU: the NVIDIA driver cannot be loaded: {problem}")]
    NoDriver {
        /// What the system's loader said.
        problem: String,
    },

    /// The NVIDIA driver is older than the kernels.
    #[error("the NVIDIA driver is for CUDA {}.{}, these kernels need one for {}.{}", found.0, found.1, needed.0, needed.1)]
    DriverTooOld {
        /// CUDA version of the driver: major, minor.
        found: (i32, i32),
        /// CUDA version that the kernels were compiled for.
        needed: (i32, i32),
    },

    /// The GPU is of an architecture that there are no kernels for.
    #[error("{device} is sm_{}{}, there are kernels for sm_{}{} and later", found.0, found.1, needed.0, needed.1)]
    Architecture {
        /// The GPU's model.
        device: String,
        /// Its compute capability: major, minor.
        found: (i32, i32),
        /// The oldest one that there are kernels for.
        needed: (i32, i32),
    },

    /// Kernels of an architecture were asked for that the device does not run.
    #[error("{device} does not run kernels for {asked}")]
    NotForDevice {
        /// The architecture.
        asked: &'static str,
        /// What the device is.
        device: String,
    },

    /// There is no GPU, or none of that number.
    #[error("no GPU: {reason}")]
    NoDevice {
        /// What is missing.
        reason: String,
    },

    /// A kernel did what it must not, as seen by the emulator, or left an output unwritten.
    #[error("kernel `{kernel}`: {problem}")]
    Kernel {
        /// Name of the kernel, or of the stage.
        kernel: String,
        /// What was seen.
        problem: String,
    },

    /// The CUDA driver refused a call.
    #[error("{call}: {problem}")]
    Cuda {
        /// The driver's function.
        call: &'static str,
        /// What the driver said, and what it was about.
        problem: String,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
