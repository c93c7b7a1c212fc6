//! The library loaded once more for each test, because it keeps its state for a whole process; and its functions.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::process::Command;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs};

use da_moe_emulator::{Compiler, Libcuda};
use libloading::Library;

use crate::image::{Image, Kernel, fatbin};

pub type Handle = *mut c_void;

/// Handles of the stream that is always there, and of each thread's own.
pub const LEGACY: Handle = null_mut();
pub const PER_THREAD: Handle = std::ptr::without_provenance_mut(2);

const TEMPORARY: &str = env!("CARGO_TARGET_TMPDIR");

/// The library with the tests' kernels.
pub fn compiled() -> Libcuda {
    let kernels = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernels/libcuda.cu");
    Compiler::new(Path::new(TEMPORARY).join("kernels")).file(kernels).libcuda().expect("a library")
}

macro_rules! functions {
    ($($name:ident = $symbol:literal($($argument:ident: $type:ty),*);)*) => {
        /// Functions of one copy of the library, by short names.
        pub struct Cuda {
            $($name: unsafe extern "C" fn($($type),*) -> c_int,)*
        }

        impl Cuda {
            fn of(library: &'static Library) -> Self {
                // SAFETY: each symbol is a function of this type.
                unsafe { Self { $($name: *library.get($symbol.as_bytes()).expect($symbol),)* } }
            }

            $(
                #[allow(clippy::too_many_arguments, reason = "as many as the driver's own has")]
                pub fn $name(&self, $($argument: $type),*) -> c_int {
                    // SAFETY: what pointers point to is live, and as large as the function says; handles may be anything.
                    unsafe { (self.$name)($($argument),*) }
                }
            )*
        }
    };
}

functions! {
    init = "cuInit"(flags: c_uint);
    count = "cuDeviceGetCount"(count: &mut c_int);
    attribute = "cuDeviceGetAttribute"(value: &mut c_int, number: c_int, device: c_int);
    retain = "cuDevicePrimaryCtxRetain"(context: &mut Handle, device: c_int);
    release = "cuDevicePrimaryCtxRelease_v2"(device: c_int);
    set_current = "cuCtxSetCurrent"(context: Handle);
    wait_for_all = "cuCtxSynchronize"();
    alloc = "cuMemAlloc_v2"(address: &mut u64, bytes: usize);
    free = "cuMemFree_v2"(address: u64);
    fill = "cuMemsetD8Async"(address: u64, value: u8, bytes: usize, stream: Handle);
    upload = "cuMemcpyHtoD_v2"(to: u64, from: *const i32, bytes: usize);
    download = "cuMemcpyDtoH_v2"(to: *mut i32, from: u64, bytes: usize);
    copy = "cuMemcpyDtoDAsync_v2"(to: u64, from: u64, bytes: usize, stream: Handle);
    open_stream = "cuStreamCreate"(stream: &mut Handle, flags: c_uint);
    close_stream = "cuStreamDestroy_v2"(stream: Handle);
    wait = "cuStreamSynchronize"(stream: Handle);
    is_done = "cuStreamQuery"(stream: Handle);
    hold_back = "cuStreamWaitEvent"(stream: Handle, event: Handle, flags: c_uint);
    event = "cuEventCreate"(event: &mut Handle, flags: c_uint);
    mark = "cuEventRecord"(event: Handle, stream: Handle);
    is_past = "cuEventQuery"(event: Handle);
    wait_for = "cuEventSynchronize"(event: Handle);
    between = "cuEventElapsedTime_v2"(milliseconds: &mut f32, start: Handle, end: Handle);
    begin = "cuStreamBeginCapture_v2"(stream: Handle, mode: c_int);
    end = "cuStreamEndCapture"(stream: Handle, graph: &mut Handle);
    is_recording = "cuStreamIsCapturing"(stream: Handle, status: &mut c_int);
    exchange_mode = "cuThreadExchangeStreamCaptureMode"(mode: &mut c_int);
    instantiate = "cuGraphInstantiateWithFlags"(executable: &mut Handle, graph: Handle, flags: u64);
    replay = "cuGraphLaunch"(executable: Handle, stream: Handle);
    load = "cuModuleLoadDataEx"(module: &mut Handle, image: *const u8, count: c_uint, options: *const c_int, values: *mut Handle);
    unload = "cuModuleUnload"(module: Handle);
    functions = "cuModuleGetFunctionCount"(count: &mut c_uint, module: Handle);
    function = "cuModuleGetFunction"(function: &mut Handle, module: Handle, name: *const c_char);
    load_function = "cuFuncLoad"(function: Handle);
    fact = "cuFuncGetAttribute"(value: &mut c_int, attribute: c_int, function: Handle);
    set_fact = "cuFuncSetAttribute"(function: Handle, attribute: c_int, value: c_int);
    parameter = "cuFuncGetParamInfo"(function: Handle, index: usize, offset: &mut usize, bytes: &mut usize);
    launch = "cuLaunchKernel"(
        function: Handle, x: c_uint, y: c_uint, z: c_uint, threads_x: c_uint, threads_y: c_uint, threads_z: c_uint,
        shared: c_uint, stream: Handle, parameters: *mut *mut c_void, extra: *mut *mut c_void
    );
    tensor_map = "cuTensorMapEncodeTiled"(
        map: *mut u64, elements: c_int, rank: c_uint, address: u64, extents: *const u64, strides: *const u64,
        box_extents: *const c_uint, steps: *const c_uint, interleave: c_int, swizzle: c_int, promotion: c_int,
        fill: c_int
    );
    blocks_at_once = "cuOccupancyMaxActiveBlocksPerMultiprocessor"(
        blocks: &mut c_int, function: Handle, threads: c_int, shared: usize
    );
}

impl Cuda {
    /// A copy of the library that nobody else uses.
    pub fn load_library() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = Path::new(TEMPORARY).join(format!("libcuda-{}-{number}", std::process::id()));
        let copy = compiled().copy_to(&folder).expect("a copy");
        // SAFETY: the library does nothing when it is loaded. It is never unloaded, so its functions stay.
        let library = unsafe { Library::new(copy.folder().join("libcuda.so.1")) }.expect("a library");
        fs::remove_dir_all(&folder).expect("what is loaded needs no file");
        Self::of(Box::leak(Box::new(library)))
    }

    /// The same, with a context that is current in this thread.
    pub fn open() -> (Self, Handle) {
        let cuda = Self::load_library();
        let mut context = null_mut();
        assert_eq!(cuda.init(0), 0);
        assert_eq!(cuda.retain(&mut context, 0), 0);
        assert_eq!(cuda.set_current(context), 0);
        (cuda, context)
    }

    pub fn stream(&self, flags: c_uint) -> Handle {
        let mut stream = null_mut();
        assert_eq!(self.open_stream(&mut stream, flags), 0);
        stream
    }

    pub fn new_event(&self) -> Handle {
        let mut event = null_mut();
        assert_eq!(self.event(&mut event, 0), 0);
        event
    }

    pub fn memory(&self, values: &[i32]) -> u64 {
        let mut address = 0;
        assert_eq!(self.alloc(&mut address, size_of_val(values)), 0);
        assert_eq!(self.upload(address, values.as_ptr(), size_of_val(values)), 0);
        address
    }

    pub fn values<const N: usize>(&self, address: u64) -> [i32; N] {
        let mut values = [0; N];
        assert_eq!(self.download(values.as_mut_ptr(), address, size_of_val(&values)), 0);
        values
    }

    /// The module of an image; what the library says of it where it refuses.
    pub fn module(&self, image: &Image) -> Result<Handle, (c_int, String)> {
        let (mut module, mut text) = (null_mut(), [0_u8; 200]);
        let options = [5, 6];
        let mut values = [text.as_mut_ptr().cast(), std::ptr::without_provenance_mut(text.len())];
        let result = self.load(&mut module, image.start(), 2, options.as_ptr(), values.as_mut_ptr());
        let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
        match result {
            0 => Ok(module),
            _ => Err((result, String::from_utf8_lossy(text).into_owned())),
        }
    }

    pub fn kernel(&self, module: Handle, name: &std::ffi::CStr) -> Handle {
        let mut function = null_mut();
        assert_eq!(self.function(&mut function, module, name.as_ptr()), 0, "{name:?}");
        function
    }

    /// The test's kernel of that name, as `kernel` has it.
    pub fn loaded(&self, kernel: Kernel) -> Handle {
        let name = std::ffi::CString::new(kernel.name).expect("a name");
        let module = self.module(&fatbin(&[kernel], 90)).expect("a module");
        let function = self.kernel(module, &name);
        assert_eq!(self.load_function(function), 0);
        function
    }

    /// Starts a kernel in one block of `threads`.
    pub fn start(&self, function: Handle, threads: c_uint, stream: Handle, parameters: &mut [*mut c_void]) -> c_int {
        self.launch(function, 1, 1, 1, threads, 1, 1, 0, stream, parameters.as_mut_ptr(), null_mut())
    }

    /// Starts `sum` on `count` numbers.
    pub fn sum(&self, function: Handle, stream: Handle, [a, b, out]: [u64; 3], count: i32) -> c_int {
        let mut sum = Sum { a, b, out, count };
        self.start(function, 32, stream, &mut [(&raw mut sum).cast()])
    }
}

/// The parameter of `sum`.
#[repr(C)]
struct Sum {
    a: u64,
    b: u64,
    out: u64,
    count: i32,
}

/// Runs a test again in a process of its own that has these settings: true there, and false where it has been run.
pub fn alone(test: &str, settings: &[(&str, &str)]) -> bool {
    const MARK: &str = "DA_MOE_EMULATOR_ALONE";
    let name = format!("{test} {settings:?}");
    if env::var(MARK).is_ok_and(|running| running == name) {
        return true;
    }
    if env::var_os(MARK).is_none() {
        let mut command = Command::new(env::current_exe().expect("this program has a path"));
        command.args(["--exact", test]).env(MARK, &name).envs(settings.iter().copied());
        let output = command.output().expect("a process");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
    false
}
