//! A compiled module: kernels, and the machine that runs them.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::{Library, Symbol};

use crate::Error;
use crate::tensor_map::TensorMapShape;
use crate::traffic::Traffic;
use crate::work::Work;

/// The runtime's device. Only pointers to it exist here.
#[repr(C)]
pub(crate) struct Machine {
    _private: [u8; 0],
}

/// The runtime's functions. They are what `api.cpp` defines, and stay valid while the module's library is loaded.
pub(crate) struct Functions {
    pub(crate) device_new: unsafe extern "C" fn() -> *mut Machine,
    pub(crate) device_delete: unsafe extern "C" fn(*mut Machine),
    pub(crate) message: unsafe extern "C" fn(*const Machine) -> *const c_char,
    pub(crate) schedule: unsafe extern "C" fn(*mut Machine, u64, c_int, u32),
    pub(crate) alloc: unsafe extern "C" fn(*mut Machine, *const c_char, usize) -> u64,
    pub(crate) free: unsafe extern "C" fn(*mut Machine, u64) -> c_int,
    pub(crate) upload: unsafe extern "C" fn(*mut Machine, u64, *const u8, usize) -> c_int,
    pub(crate) download: unsafe extern "C" fn(*mut Machine, u64, *mut u8, usize) -> c_int,
    pub(crate) read_only: unsafe extern "C" fn(*mut Machine, u64) -> c_int,
    pub(crate) unwritten: unsafe extern "C" fn(*mut Machine, u64, *mut usize) -> c_int,
    pub(crate) work: unsafe extern "C" fn(*const Machine, *mut Work),
    pub(crate) count_traffic: unsafe extern "C" fn(*mut Machine, c_int),
    pub(crate) traffic: unsafe extern "C" fn(*const Machine, *mut Traffic),
    pub(crate) shared_place: unsafe extern "C" fn(*mut Machine, usize, *mut [u64; 3]) -> c_int,
    pub(crate) tensor_map: unsafe extern "C" fn(*mut Machine, *mut c_void, u64, *const TensorMapShape) -> c_int,
    pub(crate) launch: unsafe extern "C" fn(
        *mut Machine,
        usize,
        *const [u32; 3],
        *const [u32; 3],
        u32,
        u32,
        *const *mut c_void,
    ) -> c_int,
}

pub(crate) struct Kernel {
    name: String,
    /// Where it is written, as the compiler was given it.
    file: PathBuf,
    /// Bytes of each parameter.
    pub(crate) parameters: Vec<usize>,
}

/// A loaded module. [`Device`](crate::Device)s run its kernels.
pub struct Module {
    pub(crate) functions: Functions,
    kernels: Vec<Kernel>,
    // Dropped last: the functions are its code.
    _library: Library,
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module").field("kernels", &self.kernels()).finish_non_exhaustive()
    }
}

impl Module {
    pub(crate) fn load(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Load { path: path.into(), source };
        // SAFETY: the library was linked here, from the runtime and kernels. It initialises nothing but C++ constants.
        let library = unsafe { Library::new(path) }.map_err(failed)?;

        // SAFETY: every name is defined in `api.cpp` with the type of the field it goes to.
        let functions = unsafe {
            Functions {
                device_new: function(&library, "emulator_device_new").map_err(failed)?,
                device_delete: function(&library, "emulator_device_delete").map_err(failed)?,
                message: function(&library, "emulator_message").map_err(failed)?,
                schedule: function(&library, "emulator_schedule").map_err(failed)?,
                alloc: function(&library, "emulator_alloc").map_err(failed)?,
                free: function(&library, "emulator_free").map_err(failed)?,
                upload: function(&library, "emulator_upload").map_err(failed)?,
                download: function(&library, "emulator_download").map_err(failed)?,
                read_only: function(&library, "emulator_read_only").map_err(failed)?,
                unwritten: function(&library, "emulator_unwritten").map_err(failed)?,
                work: function(&library, "emulator_work").map_err(failed)?,
                count_traffic: function(&library, "emulator_count_traffic").map_err(failed)?,
                traffic: function(&library, "emulator_traffic").map_err(failed)?,
                shared_place: function(&library, "emulator_shared_place").map_err(failed)?,
                tensor_map: function(&library, "emulator_tensor_map").map_err(failed)?,
                launch: function(&library, "emulator_launch").map_err(failed)?,
            }
        };

        // SAFETY: as above. Indices below the one that gives null are kernels, whose names are constants.
        let kernels = unsafe {
            let name: unsafe extern "C" fn(usize) -> *const c_char =
                function(&library, "emulator_kernel").map_err(failed)?;
            let file: unsafe extern "C" fn(usize) -> *const c_char =
                function(&library, "emulator_kernel_file").map_err(failed)?;
            let parameters: unsafe extern "C" fn(usize) -> usize =
                function(&library, "emulator_kernel_parameters").map_err(failed)?;
            let sizes: unsafe extern "C" fn(usize) -> *const usize =
                function(&library, "emulator_kernel_parameter_sizes").map_err(failed)?;
            let names = (0..).map(|index| (index, name(index))).take_while(|(_, name)| !name.is_null());
            names
                .map(|(index, name)| Kernel {
                    name: CStr::from_ptr(name).to_string_lossy().into_owned(),
                    file: CStr::from_ptr(file(index)).to_string_lossy().into_owned().into(),
                    parameters: std::slice::from_raw_parts(sizes(index), parameters(index)).to_vec(),
                })
                .collect()
        };
        Ok(Self { functions, kernels, _library: library })
    }

    /// The names of the module's kernels, in the order of its files.
    pub fn kernels(&self) -> Vec<String> {
        self.kernels.iter().map(|kernel| kernel.name.clone()).collect()
    }

    /// Whether the module has a kernel of that name.
    pub fn has(&self, name: &str) -> bool {
        self.kernels.iter().any(|kernel| kernel.name == name)
    }

    /// Bytes of each parameter of a kernel.
    pub fn parameter_sizes(&self, name: &str) -> Result<&[usize], Error> {
        self.find(name).map(|(_, kernel)| kernel.parameters.as_slice())
    }

    /// The file that a kernel is written in.
    ///
    /// # Errors
    /// [`Error::NoKernel`].
    pub fn file(&self, name: &str) -> Result<&Path, Error> {
        self.find(name).map(|(_, kernel)| kernel.file.as_path())
    }

    pub(crate) fn find(&self, name: &str) -> Result<(usize, &Kernel), Error> {
        let found = self.kernels.iter().enumerate().find(|(_, kernel)| kernel.name == name);
        found.ok_or_else(|| Error::NoKernel { name: name.into(), kernels: self.kernels() })
    }
}

/// The library's function of that name.
///
/// # Safety
///
/// `T` is the type of the function.
unsafe fn function<T: Copy>(library: &Library, name: &str) -> Result<T, libloading::Error> {
    // SAFETY: the caller's promise.
    let symbol: Symbol<'_, T> = unsafe { library.get(name.as_bytes()) }?;
    Ok(*symbol)
}
