//! The kernels of all images, by name, loaded when the GPU is opened: a layer call only looks them up.

use super::context::refused;
use crate::cuda::{BuildReport, Image, Launch, build_report};
use crate::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUfunction_attribute as Attribute};
use std::collections::HashMap;
use std::ffi::CStr;
use std::mem::MaybeUninit;

/// Loaded modules, and every function in them.
#[derive(Default)]
pub(super) struct Functions {
    modules: Vec<sys::CUmodule>,
    by_name: HashMap<String, Function>,
}

/// A kernel that is ready to be started.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Bytes of dynamic shared memory that a block may have.
    most_shared: u32,
}

// SAFETY: handles are the driver's, valid in every thread of the process.
unsafe impl Send for Functions {}
// SAFETY: as above.
unsafe impl Sync for Functions {}

impl Functions {
    /// Loads every kernel of every image into the current context of a GPU whose blocks may have `most_shared` bytes of
    /// shared memory; `gpu` is for messages. The driver would load a kernel when it is first started otherwise, which waits
    /// for the GPU and has no place in a recording.
    pub(super) fn load(images: &[Image], most_shared: u32, gpu: &str) -> Result<Self> {
        let mut functions = Self::default();
        for image in images {
            // SAFETY: a fatbin says in its header how long it is, and nvcc wrote this one; a context is current.
            let module = unsafe { result::module::load_data(image.fatbin.as_ptr().cast()) };
            let module = module.map_err(|error| {
                let built = match build_report() {
                    BuildReport::Built { architectures, .. } => architectures.join(", "),
                    BuildReport::NotBuilt { reason } => reason.into(),
                };
                refused("cuModuleLoadData", error, &format!("kernels `{}`, built for {built}, on {gpu}", image.name))
            })?;
            functions.modules.push(module);
            // SAFETY: the module was loaded just now, and is unloaded when `functions` is dropped.
            unsafe { functions.add(module, image.name, most_shared) }?;
        }
        Ok(functions)
    }

    /// Finds and loads every kernel of a module.
    ///
    /// # Safety
    /// The module is loaded in the current context.
    unsafe fn add(&mut self, module: sys::CUmodule, image: &str, most_shared: u32) -> Result<()> {
        let in_image = |call| move |error| refused(call, error, &format!("kernels `{image}`"));
        // SAFETY: the caller's.
        let handles = unsafe { handles(module) }.map_err(in_image("cuModuleEnumerateFunctions"))?;
        for handle in handles {
            // SAFETY: the driver named the function just now.
            let name = unsafe { name(handle) }.map_err(in_image("cuFuncGetName"))?;
            // SAFETY: as above.
            let function = unsafe { Function::load(handle, &name, most_shared) }?;
            self.by_name.insert(name, function);
        }
        Ok(())
    }

    /// The kernel of a launch. Asks nothing of the driver.
    pub(super) fn find(&self, launch: &Launch) -> Result<sys::CUfunction> {
        let Launch { kernel, shared, .. } = *launch;
        let refuse = |problem| Err(Error::Cuda { call: "cuLaunchKernel", problem });
        match self.by_name.get(kernel) {
            None => refuse(format!("there is no kernel `{kernel}`")),
            Some(function) if shared > function.most_shared => {
                let most = function.most_shared;
                refuse(format!("`{kernel}` needs {shared} bytes of shared memory, a block may have {most}"))
            }
            Some(function) => Ok(function.handle),
        }
    }
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
    /// Brings a function onto the GPU, and lets it have as much dynamic shared memory as there is beside its own.
    ///
    /// # Safety
    /// The function's module is loaded in the current context.
    unsafe fn load(handle: sys::CUfunction, name: &str, most_shared: u32) -> Result<Self> {
        let of = |call| move |error| refused(call, error, &format!("kernel `{name}`"));
        // SAFETY: the caller's.
        unsafe { sys::cuFuncLoad(handle) }.result().map_err(of("cuFuncLoad"))?;
        let fixed = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: the caller's.
        let fixed = unsafe { result::function::get_function_attribute(handle, fixed) };
        let fixed = fixed.map_err(of("cuFuncGetAttribute"))?;
        let most_shared = most_shared.saturating_sub(fixed.unsigned_abs());
        let dynamic = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = i32::try_from(most_shared).unwrap_or(i32::MAX);
        // SAFETY: the caller's.
        unsafe { result::function::set_function_attribute(handle, dynamic, bytes) }
            .map_err(of("cuFuncSetAttribute"))?;
        Ok(Self { handle, most_shared })
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
        let function = Function { handle: 8 as sys::CUfunction, most_shared: 1000 };
        functions.by_name.insert("known".into(), function);
        let launch = |kernel, shared| Launch { shared, ..Launch::linear(kernel, 1, 32) };
        assert_eq!(functions.find(&launch("known", 1000)).unwrap() as usize, 8);
        let error = functions.find(&launch("unknown", 0)).unwrap_err().to_string();
        assert!(error.contains("there is no kernel `unknown`"), "{error}");
        let error = functions.find(&launch("known", 1001)).unwrap_err().to_string();
        assert!(error.contains("needs 1001 bytes of shared memory, a block may have 1000"), "{error}");
    }
}
