//! What can go wrong: before a kernel runs, and in one.

use std::fmt;
use std::path::PathBuf;

/// Why a kernel could not be compiled or run, or what was found when it ran.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no compiler that the emulator can use.
    #[error("kernels on the CPU need g++: {0}")]
    NoCompiler(String),
    /// The compiler, or the linker, refused.
    #[error("the compiler refused:\n{stderr}\nIts command was: {command}")]
    Compile {
        /// The command.
        command: String,
        /// Its error output.
        stderr: String,
    },
    /// A replacement asked for with [`Compiler::replace`](crate::Compiler::replace) does not fit the sources.
    #[error("cannot replace in `{file}`: {why}: {from:?}")]
    Replace {
        /// The file as it was named.
        file: String,
        /// The text that should be replaced.
        from: String,
        /// What is wrong.
        why: String,
    },
    /// The compiled module could not be loaded.
    #[error("{}: {source}", path.display())]
    Load {
        /// The shared library.
        path: PathBuf,
        /// What the dynamic linker said.
        source: libloading::Error,
    },
    /// The module has no kernel of that name.
    #[error("no kernel `{name}` in this module, which has {}", kernels.join(", "))]
    NoKernel {
        /// The name.
        name: String,
        /// What there is.
        kernels: Vec<String>,
    },
    /// The kernel was launched with another number of parameters than it has.
    #[error("kernel `{kernel}` has {expected} parameters and was launched with {actual}")]
    Parameters {
        /// The kernel.
        kernel: String,
        /// How many it has.
        expected: usize,
        /// How many were given.
        actual: usize,
    },
    /// The kernel was launched with a parameter of another size than its own.
    #[error("parameter {index} of kernel `{kernel}` has {expected} bytes and was given {actual}")]
    ParameterSize {
        /// The kernel.
        kernel: String,
        /// Which parameter, from 0.
        index: usize,
        /// How many bytes it has.
        expected: usize,
        /// How many were given.
        actual: usize,
    },
    /// The checker found a fault.
    #[error(transparent)]
    Report(#[from] Report),
}

impl Error {
    /// The report, if this is one.
    pub fn report(&self) -> Option<&Report> {
        match self {
            Self::Report(report) => Some(report),
            _ => None,
        }
    }
}

/// A fault that the checker found.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct Report {
    /// What kind of fault.
    pub kind: Kind,
    /// What happened, in which block and thread, at which line of the kernel.
    pub message: String,
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Two accesses to one place, at least one of them a write, that nothing orders.
    Race,
    /// An access outside every allocation or shared array, or an index outside a local array.
    OutOfBounds,
    /// A read of memory that nothing has written.
    Uninitialised,
    /// Threads that must do the same together do not: a barrier or a warp-wide function in divergent code.
    Divergence,
    /// No thread can go on.
    Deadlock,
    /// Threads poll for something that does not come.
    Livelock,
    /// An address that is not a multiple of the access's size.
    Misaligned,
    /// A write to an allocation that was declared read-only.
    ReadOnly,
    /// Wrong use of an asynchronous operation: `cp.async`, mbarriers, TMA, `wgmma`.
    Async,
    /// A thread's locals do not fit its stack.
    StackOverflow,
    /// Memory that is not the kernel's to touch, or a wrong use of memory by the host.
    Memory,
    /// A launch that the hardware would refuse, a trap, or a failed assertion.
    Launch,
}

impl Kind {
    /// In the order of the runtime's `Kind`, which counts from 1.
    const ALL: [Self; 12] = [
        Self::Race,
        Self::OutOfBounds,
        Self::Uninitialised,
        Self::Divergence,
        Self::Deadlock,
        Self::Livelock,
        Self::Misaligned,
        Self::ReadOnly,
        Self::Async,
        Self::StackOverflow,
        Self::Memory,
        Self::Launch,
    ];

    pub(crate) fn from_code(code: i32) -> Self {
        Self::ALL[usize::try_from(code - 1).expect("0 is no fault")]
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Race => "race",
            Self::OutOfBounds => "out of bounds",
            Self::Uninitialised => "uninitialised memory",
            Self::Divergence => "divergence",
            Self::Deadlock => "deadlock",
            Self::Livelock => "livelock",
            Self::Misaligned => "misaligned",
            Self::ReadOnly => "read-only memory",
            Self::Async => "asynchronous operation",
            Self::StackOverflow => "stack overflow",
            Self::Memory => "memory",
            Self::Launch => "launch",
        })
    }
}
