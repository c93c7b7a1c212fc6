//! The kernels of all images, by name.

use super::context::refused;
use crate::cuda::{BuildReport, Image, build_report};
use crate::{Error, Result};
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUfunction_attribute, CUresult};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Mutex, PoisonError};

/// What a kernel may use without being asked for more.
const DEFAULT_SHARED_BYTES: u32 = 48 * 1024;

/// Loaded modules, and the functions found in them so far.
#[derive(Default)]
pub(super) struct Functions {
    modules: Vec<sys::CUmodule>,
    found: Mutex<HashMap<String, Function>>,
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// The largest amount of dynamic shared memory that it was prepared for.
    shared_bytes: u32,
}

// SAFETY: handles are the driver's, valid in every thread of the process; the map is behind a lock.
unsafe impl Send for Functions {}
// SAFETY: as above.
unsafe impl Sync for Functions {}

impl Functions {
    /// Loads every image into the current context; `gpu` is for messages.
    pub(super) fn load(images: &[Image], gpu: &str) -> Result<Self> {
        let mut functions = Self::default();
        for image in images {
            // SAFETY: a fatbin says in its header how long it is, and nvcc wrote this one; a context is current.
            let module = unsafe { result::module::load_data(image.fatbin.as_ptr().cast()) };
            functions.modules.push(module.map_err(|error| {
                let built = match build_report() {
                    BuildReport::Built { architectures, .. } => architectures.join(", "),
                    BuildReport::NotBuilt { reason } => reason.into(),
                };
                refused("cuModuleLoadData", error, &format!("kernels `{}`, built for {built}, on {gpu}", image.name))
            })?);
        }
        Ok(functions)
    }

    /// A kernel, prepared for that much dynamic shared memory.
    pub(super) fn find(&self, name: &str, shared_bytes: u32) -> Result<sys::CUfunction> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let mut function = match found.get(name) {
            Some(function) => *function,
            None => Function { handle: self.look_up(name)?, shared_bytes: DEFAULT_SHARED_BYTES },
        };
        if shared_bytes > function.shared_bytes {
            function.allow(name, shared_bytes)?;
        }
        // Known names are the usual case, and need no copy.
        match found.get_mut(name) {
            Some(known) => *known = function,
            None => drop(found.insert(name.into(), function)),
        }
        Ok(function.handle)
    }

    fn look_up(&self, name: &str) -> Result<sys::CUfunction> {
        let unknown = || Error::Cuda { call: "cuModuleGetFunction", problem: format!("there is no kernel `{name}`") };
        let c_name = CString::new(name).map_err(|_| unknown())?;
        for &module in &self.modules {
            // SAFETY: modules are unloaded when `self` is dropped, not before.
            match unsafe { result::module::get_function(module, c_name.clone()) } {
                Ok(function) => return Ok(function),
                Err(error) if error.0 == CUresult::CUDA_ERROR_NOT_FOUND => {}
                Err(error) => return Err(refused("cuModuleGetFunction", error, &format!("kernel `{name}`"))),
            }
        }
        Err(unknown())
    }
}

impl Function {
    /// Above the usual amount, the driver wants to be told before the launch.
    fn allow(&mut self, name: &str, shared_bytes: u32) -> Result<()> {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let value = i32::try_from(shared_bytes).unwrap_or(i32::MAX);
        // SAFETY: the function's module is loaded.
        let done = unsafe { result::function::set_function_attribute(self.handle, attribute, value) };
        let about = || format!("{shared_bytes} bytes of shared memory for `{name}`");
        done.map_err(|error| refused("cuFuncSetAttribute", error, &about()))?;
        self.shared_bytes = shared_bytes;
        Ok(())
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
