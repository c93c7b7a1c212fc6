//! The kernels of all images, by name, loaded when the GPU is opened, unless somebody wants them later: a layer call only
//! looks them up.

use super::context::refused;
use crate::cuda::BuildReport;
use crate::cuda::Image;
use crate::cuda::Launch;
use crate::cuda::device::images::build_report;
use crate::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute, CUjit_option};
use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Loaded modules, and every function in them.
#[derive(Default)]
pub(super) struct Functions {
    modules: Vec<sys::CUmodule>,
    by_name: HashMap<String, Function>,
    /// Bytes of shared memory that a block of this GPU may have.
    most_shared: u32,
    took: Duration,
}

/// A kernel, and what is known of it once it is loaded.
struct Function {
    handle: sys::CUfunction,
    facts: OnceLock<Facts>,
}

/// What the driver says of a kernel's machine code.
#[derive(Clone, Copy, Default)]
struct Facts {
    /// Bytes of dynamic shared memory that a block may have.
    most_shared: u32,
    /// Architecture that it is for: 80 or 90.
    binary: u32,
    /// Architecture of the PTX that it was made from. The build's own code for sm_90a says 90; what the driver compiles here
    /// from the portable PTX says 80.
    ptx: u32,
    registers: u32,
    local_bytes: u32,
    /// Blocks of a cluster along x: what a launch that says nothing of clusters gets.
    cluster: u32,
}

/// Which machine code runs on a GPU, and what it takes, by [`Driver::loaded`](super::Driver::loaded).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedKernels {
    /// How many.
    pub kernels: usize,
    /// Least and greatest architecture that the code is for, as 10 · major + minor.
    pub binary: (u32, u32),
    /// The same of the PTX that the code was made from, by the build or by the driver.
    pub ptx: (u32, u32),
    /// Most registers of a thread.
    pub registers: u32,
    /// Most bytes of a thread's local memory; there should be none.
    pub local_bytes: u32,
    /// How long loading took.
    pub took: Duration,
}

impl LoadedKernels {
    /// Whether the driver compiled portable PTX because none of the build's machine code fits the GPU, or it did not take it:
    /// what runs is not what the build looked at then.
    pub fn are_compiled_by_the_driver(&self) -> bool {
        self.binary != self.ptx
    }
}

impl fmt::Display for LoadedKernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernels, binary, ptx, registers, local_bytes, took } = self;
        let range =
            |(least, most): (u32, u32)| if least == most { most.to_string() } else { format!("{least}-{most}") };
        write!(f, "{kernels} kernels, machine code for {}", range(*binary))?;
        if self.are_compiled_by_the_driver() {
            write!(f, ", COMPILED BY THE DRIVER from PTX for {}", range(*ptx))?;
        }
        let took = took.as_secs_f64();
        write!(f, ", at most {registers} registers and {local_bytes} bytes of local memory, loaded in {took:.1} s")
    }
}

// SAFETY: handles are the driver's, valid in every thread of the process.
unsafe impl Send for Functions {}
// SAFETY: as above.
unsafe impl Sync for Functions {}

impl Functions {
    /// Finds every kernel of every image, for the current context of a GPU whose blocks may have `most_shared` bytes of shared
    /// memory; `gpu` is for messages.
    pub(super) fn find_all<'i>(
        images: impl IntoIterator<Item = &'i Image>,
        most_shared: u32,
        gpu: &str,
    ) -> Result<Self> {
        let mut functions = Self::default();
        functions.most_shared = most_shared;
        for image in images {
            let module = load_image(image, gpu)?;
            functions.modules.push(module);
            // SAFETY: the module was loaded just now, and is unloaded when `functions` is dropped.
            unsafe { functions.add(module, image.name) }?;
        }
        Ok(functions)
    }

    /// Brings every kernel onto the GPU. The driver would load one when it is first started otherwise, which waits for the GPU
    /// and has no place in a recording.
    pub(super) fn load_all(&mut self) -> Result<()> {
        let start = Instant::now();
        for (name, function) in &self.by_name {
            function.load(name, self.most_shared)?;
        }
        self.took = start.elapsed();
        Ok(())
    }

    /// What was loaded, of all kernels together.
    pub(super) fn loaded(&self) -> LoadedKernels {
        let loaded = || self.by_name.values().filter_map(|function| function.facts.get());
        let all = |of: fn(&Facts) -> u32| loaded().map(of);
        let range = |of| (all(of).min().unwrap_or_default(), all(of).max().unwrap_or_default());
        LoadedKernels {
            kernels: loaded().count(),
            binary: range(|facts| facts.binary),
            ptx: range(|facts| facts.ptx),
            registers: range(|facts| facts.registers).1,
            local_bytes: range(|facts| facts.local_bytes).1,
            took: self.took,
        }
    }

    /// Finds every kernel of a module.
    ///
    /// # Safety
    /// The module is loaded in the current context.
    unsafe fn add(&mut self, module: sys::CUmodule, image: &str) -> Result<()> {
        let in_image = |call| move |error| refused(call, error, format_args!("kernels `{image}`"));
        // SAFETY: the caller's.
        let handles = unsafe { handles(module) }.map_err(in_image("cuModuleEnumerateFunctions"))?;
        for handle in handles {
            // SAFETY: the driver named the function just now.
            let name = unsafe { name(handle) }.map_err(in_image("cuFuncGetName"))?;
            self.by_name.insert(name, Function { handle, facts: OnceLock::new() });
        }
        Ok(())
    }

    /// The kernel of a launch. Asks nothing of the driver once it is loaded.
    pub(super) fn find(&self, launch: &Launch) -> Result<sys::CUfunction> {
        let Launch { kernel, shared, cluster, .. } = *launch;
        let refuse = |problem| Err(Error::Cuda { call: "cuLaunchKernel", problem });
        let Some(function) = self.by_name.get(kernel) else {
            return refuse(format!("there is no kernel `{kernel}`"));
        };
        let Facts { most_shared, cluster: compiled, .. } = function.load(kernel, self.most_shared)?;
        if shared > most_shared {
            return refuse(format!("`{kernel}` needs {shared} bytes of shared memory, a block may have {most_shared}"));
        }
        // A block alone and a cluster of one are the same.
        let [cluster, compiled] = [cluster, compiled].map(|blocks| blocks.max(1));
        if cluster != compiled {
            return refuse(format!("`{kernel}` is compiled for clusters of {compiled} blocks, not of {cluster}"));
        }
        Ok(function.handle)
    }
}

/// Loads an image into the current context, for a GPU that is described by `gpu`.
fn load_image(image: &Image, gpu: &str) -> Result<sys::CUmodule> {
    // What the driver says of code that it cannot use, or cannot compile.
    let mut log = [0_u8; 2048];
    let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut::<c_void>(log.len())];
    let mut module = std::ptr::null_mut();
    let data = image.fatbin.as_ptr().cast();
    // SAFETY: a fatbin says in its header how long it is, and nvcc wrote this one; a context is current; there are as many
    // values as options, each of its option's type, and the log is as long as is said there.
    let done = unsafe {
        let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        sys::cuModuleLoadDataEx(&raw mut module, data, 2, options, values)
    };
    done.result().map(|()| module).map_err(|error| {
        let built = match build_report() {
            BuildReport::Built { architectures, .. } => architectures.join(", "),
            BuildReport::NotBuilt { reason } => reason.into(),
        };
        let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
        let log = log.split_whitespace().collect::<Vec<_>>().join(" ");
        let about = format_args!("kernels `{}`, built for {built}, on {gpu}; its log: {log:?}", image.name);
        refused("cuModuleLoadDataEx", error, about)
    })
}

/// Every function of a module.
///
/// # Safety
/// The module is loaded in the current context.
unsafe fn handles(module: sys::CUmodule) -> Result<Vec<sys::CUfunction>, DriverError> {
    let mut count = 0;
    // SAFETY: the address is of a live integer; the module is the caller's word.
    unsafe { sys::cuModuleGetFunctionCount(&raw mut count, module) }.result()?;
    let mut handles = vec![std::ptr::null_mut(); count as usize];
    // SAFETY: there is room for as many handles; the module is the caller's word.
    unsafe { sys::cuModuleEnumerateFunctions(handles.as_mut_ptr(), count, module) }.result()?;
    Ok(handles)
}

/// # Safety
/// The function's module is loaded.
unsafe fn name(function: sys::CUfunction) -> Result<String, DriverError> {
    let mut name = MaybeUninit::uninit();
    // SAFETY: the driver writes the address of a text that lives as long as the module.
    unsafe {
        sys::cuFuncGetName(name.as_mut_ptr(), function).result()?;
        Ok(CStr::from_ptr(name.assume_init()).to_string_lossy().into_owned())
    }
}

impl Function {
    /// Brings it onto the GPU unless it is there, and lets it have as much dynamic shared memory as there is beside its own.
    fn load(&self, name: &str, most_shared: u32) -> Result<Facts> {
        if let Some(facts) = self.facts.get() {
            return Ok(*facts);
        }
        let handle = self.handle;
        let of = |call| move |error| refused(call, error, format_args!("kernel `{name}`"));
        // SAFETY: the driver named the function, and its module is unloaded when the last use of `self` is over.
        unsafe { sys::cuFuncLoad(handle) }.result().map_err(of("cuFuncLoad"))?;
        // SAFETY: as above.
        let number = |attribute| unsafe { result::function::get_function_attribute(handle, attribute) };
        let number = |attribute| number(attribute).map(i32::unsigned_abs).map_err(of("cuFuncGetAttribute"));
        let facts = Facts {
            most_shared: most_shared.saturating_sub(number(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?),
            binary: number(Attribute::CU_FUNC_ATTRIBUTE_BINARY_VERSION)?,
            ptx: number(Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)?,
            registers: number(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: number(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            cluster: number(Attribute::CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH)?,
        };
        let dynamic = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = i32::try_from(facts.most_shared).unwrap_or(i32::MAX);
        // SAFETY: as above.
        unsafe { result::function::set_function_attribute(handle, dynamic, bytes) }
            .map_err(of("cuFuncSetAttribute"))?;
        Ok(*self.facts.get_or_init(|| facts))
    }
}

impl Drop for Functions {
    fn drop(&mut self) {
        for &module in &self.modules {
            // SAFETY: loaded once by `load`; the context is still held. The driver's refusal would change nothing.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_without_the_driver() {
        let mut functions = Functions::default();
        for (name, registers, ptx, cluster) in [("known", 90, 90, 0), ("other", 100, 89, 2)] {
            let facts = Facts { most_shared: 1000, binary: 90, ptx, registers, local_bytes: 0, cluster };
            let function = Function { handle: 8 as sys::CUfunction, facts: facts.into() };
            functions.by_name.insert(name.into(), function);
        }
        let loaded = functions.loaded();
        assert_eq!((loaded.binary, loaded.ptx, loaded.registers), ((90, 90), (89, 90), 100));
        assert!(loaded.are_compiled_by_the_driver());
        let words = "2 kernels, machine code for 90, COMPILED BY THE DRIVER from PTX for 89-90, at most 100 registers";
        assert!(loaded.to_string().starts_with(words), "{loaded}");
        let launch = |kernel, shared| Launch { shared, ..Launch::linear(kernel, 1, 32) };
        assert_eq!(functions.find(&launch("known", 1000)).unwrap() as usize, 8);
        let error = functions.find(&launch("unknown", 0)).unwrap_err().to_string();
        assert!(error.contains("there is no kernel `unknown`"), "{error}");
        let error = functions.find(&launch("known", 1001)).unwrap_err().to_string();
        assert!(error.contains("needs 1001 bytes of shared memory, a block may have 1000"), "{error}");
        for (kernel, compiled, right, wrong) in [("known", 1, [0, 1], 2), ("other", 2, [2, 2], 1)] {
            let find = |cluster| functions.find(&Launch { cluster, ..launch(kernel, 0) });
            assert!(right.into_iter().all(|cluster| find(cluster).is_ok()), "{kernel}");
            let (error, words) =
                (find(wrong).unwrap_err().to_string(), format!("clusters of {compiled} blocks, not of {wrong}"));
            assert!(error.contains(&words), "{error}");
        }
    }
}
