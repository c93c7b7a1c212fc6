//! A device: memory, the checker's state, and launches.

use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::module::{Machine, Module};
use crate::tensor_map::{TensorMap, TensorMapShape};
use crate::traffic::{SharedPlace, Traffic};
use crate::work::Work;
use crate::{Error, Kind, Report};

/// How the threads of a launch are interleaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Seeds every choice, and selects the poison of memory that nothing has written: NaN, 3.4e38, about 5e4, or zero.
    pub seed: u64,
    /// Which warp runs next.
    pub policy: Policy,
    /// How many blocks are alive at once. With 1, blocks run one after the other. Clusters are alive as a whole, one at least.
    pub resident: u32,
}

/// Which warp runs next, among those that can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// All in turn, always in the same order.
    RoundRobin,
    /// Any.
    Random,
    /// The one with the highest of random priorities, which change rarely: one warp runs far ahead of the others.
    Priorities,
}

impl Schedule {
    /// One of many schedules: consecutive seeds go through the policies, the poisons and 1 to 4 resident blocks.
    pub fn from_seed(seed: u64) -> Self {
        let policy = match seed % 3 {
            0 => Policy::RoundRobin,
            1 => Policy::Random,
            _ => Policy::Priorities,
        };
        // 1, 2, 3, 4 in an order that does not go along with the policies or the poisons.
        let resident = 1 + (seed.wrapping_add(seed / 4) % 4) as u32;
        Self { seed, policy, resident }
    }
}

/// The blocks of a launch. An array of their numbers along x, y and z is a grid without clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// How many along x, y and z.
    pub blocks: [u32; 3],
    /// How many blocks, neighbours along x, make a cluster: 1, 2, 4 or 8.
    pub cluster: u32,
}

impl From<[u32; 3]> for Grid {
    fn from(blocks: [u32; 3]) -> Self {
        Self { blocks, cluster: 1 }
    }
}

/// An emulated device. Launches on different devices may run at the same time; those on one take turns.
#[derive(Debug)]
pub struct Device {
    module: Arc<Module>,
    machine: Mutex<NonNull<Machine>>,
}

// SAFETY: the machine keeps nothing of the thread that uses it, and the mutex lets one in at a time.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// A device without memory, for kernels of `module`.
    ///
    /// # Panics
    ///
    /// If the host has no memory for it.
    pub fn new(module: Arc<Module>, schedule: Schedule) -> Self {
        // SAFETY: the function takes nothing and gives a machine, or null.
        let machine = NonNull::new(unsafe { (module.functions.device_new)() }).expect("memory for a device");
        let device = Self { module, machine: Mutex::new(machine) };
        device.set_schedule(schedule);
        device
    }

    /// The schedule of launches, and the poison of allocations, from now on.
    pub fn set_schedule(&self, schedule: Schedule) {
        let policy = match schedule.policy {
            Policy::RoundRobin => 0,
            Policy::Random => 1,
            Policy::Priorities => 2,
        };
        let machine = self.lock();
        // SAFETY: the machine lives as long as the device, and is locked.
        unsafe { (self.module.functions.schedule)(machine.as_ptr(), schedule.seed, policy, schedule.resident.max(1)) }
    }

    /// Allocates exactly `bytes` bytes, aligned to 256 and no more, and gives their device address. They are poisoned,
    /// and count as unwritten. Reports call the allocation `name`.
    pub fn alloc(&self, name: &str, bytes: usize) -> Result<u64, Error> {
        let name = CString::new(name.replace('\0', "?")).expect("zeros were replaced");
        let machine = self.lock();
        // SAFETY: the machine lives as long as the device, and is locked; the name lives during the call.
        match unsafe { (self.module.functions.alloc)(machine.as_ptr(), name.as_ptr(), bytes) } {
            0 => Err(self.report(&machine, Kind::Memory)),
            address => Ok(address),
        }
    }

    /// Writes `bytes` at an address inside an allocation.
    pub fn upload(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let machine = self.lock();
        // SAFETY: as in `alloc`; the bytes live during the call.
        let code = unsafe { (self.module.functions.upload)(machine.as_ptr(), address, bytes.as_ptr(), bytes.len()) };
        self.check(&machine, code)
    }

    /// Reads from an address inside an allocation. Bytes that nothing has written are poison.
    pub fn download(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let machine = self.lock();
        // SAFETY: as in `upload`, and nobody else has the bytes.
        let code =
            unsafe { (self.module.functions.download)(machine.as_ptr(), address, bytes.as_mut_ptr(), bytes.len()) };
        self.check(&machine, code)
    }

    /// From now on, a kernel that writes to the allocation is reported. Uploads still may.
    pub fn read_only(&self, address: u64) -> Result<(), Error> {
        let machine = self.lock();
        // SAFETY: as in `set_schedule`.
        let code = unsafe { (self.module.functions.read_only)(machine.as_ptr(), address) };
        self.check(&machine, code)
    }

    /// How many bytes of the allocation neither an upload nor a kernel has written.
    pub fn unwritten(&self, address: u64) -> Result<usize, Error> {
        let machine = self.lock();
        let mut bytes = 0;
        // SAFETY: as in `set_schedule`; the count lives during the call.
        let code = unsafe { (self.module.functions.unwritten)(machine.as_ptr(), address, &mut bytes) };
        self.check(&machine, code).map(|()| bytes)
    }

    /// How much all launches on this device have asked for, those that failed included. The same for every schedule, unless
    /// the kernel itself decides by who comes first.
    pub fn work(&self) -> Work {
        let machine = self.lock();
        let mut work = Work::default();
        // SAFETY: as in `set_schedule`; the counts live during the call.
        unsafe { (self.module.functions.work)(machine.as_ptr(), &mut work) };
        work
    }

    /// From now on [`Device::traffic`] counts, or does not. Launches take longer while it does.
    pub fn count_traffic(&self, counting: bool) {
        let machine = self.lock();
        // SAFETY: as in `set_schedule`.
        unsafe { (self.module.functions.count_traffic)(machine.as_ptr(), counting.into()) }
    }

    /// How the accesses of launches lay in memory, while they were counted. The same for every schedule, as with
    /// [`Device::work`]; of a launch that fails, some accesses are left out.
    pub fn traffic(&self) -> Traffic {
        let machine = self.lock();
        let mut traffic = Traffic::default();
        // SAFETY: as in `work`.
        unsafe { (self.module.functions.traffic)(machine.as_ptr(), &mut traffic) };
        traffic
    }

    /// The place in the kernels' code that has lost the most wavefronts of shared memory, but for `rank` others. None if
    /// there are not so many places.
    pub fn shared_place(&self, rank: usize) -> Option<SharedPlace> {
        let machine = self.lock();
        let mut counts = [0; 3];
        // SAFETY: as in `work`.
        let found = unsafe { (self.module.functions.shared_place)(machine.as_ptr(), rank, &mut counts) };
        let [accesses, wavefronts, ideal_wavefronts] = counts;
        let place = || SharedPlace { place: self.message(&machine), accesses, wavefronts, ideal_wavefronts };
        (found != 0).then(place)
    }

    /// Frees the allocation that starts at `address`.
    pub fn free(&self, address: u64) -> Result<(), Error> {
        let machine = self.lock();
        // SAFETY: as in `set_schedule`.
        let code = unsafe { (self.module.functions.free)(machine.as_ptr(), address) };
        self.check(&machine, code)
    }

    /// Encodes a tensor map of a tensor at `address`, under the rules of `cuTensorMapEncodeTiled`.
    pub fn tensor_map(&self, address: u64, shape: &TensorMapShape) -> Result<TensorMap, Error> {
        let machine = self.lock();
        let mut map = TensorMap([0; 16]);
        let bytes = (&raw mut map.0).cast();
        // SAFETY: as in `set_schedule`; the map has the 128 bytes that are written, the shape lives during the call.
        let code = unsafe { (self.module.functions.tensor_map)(machine.as_ptr(), bytes, address, shape) };
        self.check(&machine, code).map(|()| map)
    }

    /// Runs a kernel to its end, with parameters as cuLaunchKernel's `kernelParams`: one pointer for each.
    ///
    /// A launch that fails leaves the device usable: memory keeps what was written until then.
    ///
    /// # Safety
    ///
    /// Each pointer points to a live value of its parameter's type.
    pub unsafe fn launch(
        &self,
        kernel: &str,
        grid: impl Into<Grid>,
        block: [u32; 3],
        shared_bytes: u32,
        parameters: &[*mut c_void],
    ) -> Result<(), Error> {
        let (index, found) = self.module.find(kernel)?;
        if found.parameters.len() != parameters.len() {
            let (expected, actual) = (found.parameters.len(), parameters.len());
            return Err(Error::Parameters { kernel: kernel.into(), expected, actual });
        }
        let Grid { blocks, cluster } = grid.into();
        let (machine, launch) = (self.lock(), self.module.functions.launch);
        // SAFETY: as in `set_schedule`. The index is the kernel's and there are as many parameters as it has; that they
        // point to values of its types is the caller's promise.
        let code =
            unsafe { launch(machine.as_ptr(), index, &blocks, &block, shared_bytes, cluster, parameters.as_ptr()) };
        self.check(&machine, code)
    }

    /// As [`Device::launch`], with the bytes of each parameter: addresses as those of a `u64`, numbers by `to_ne_bytes`.
    ///
    /// Nothing here is unsafe: sizes are compared with the kernel's own, and a kernel's accesses are checked before they
    /// are made.
    pub fn launch_bytes(
        &self,
        kernel: &str,
        grid: impl Into<Grid>,
        block: [u32; 3],
        shared_bytes: u32,
        parameters: &[&[u8]],
    ) -> Result<(), Error> {
        let (_, found) = self.module.find(kernel)?;
        let sizes = found.parameters.iter().zip(parameters).enumerate();
        if let Some((index, (&expected, given))) = sizes.into_iter().find(|(_, (size, given))| **size != given.len()) {
            return Err(Error::ParameterSize { kernel: kernel.into(), index, expected, actual: given.len() });
        }
        let mut values: Vec<Vec<Aligned>> = parameters.iter().map(|bytes| Aligned::copies(bytes)).collect();
        let pointers: Vec<*mut c_void> = values.iter_mut().map(|value| value.as_mut_ptr().cast()).collect();
        // SAFETY: each value is live and as large as its parameter, and as aligned as any; any bytes are a value of the
        // plain types that kernels take. What they point to is checked by the machine.
        unsafe { self.launch(kernel, grid, block, shared_bytes, &pointers) }
    }

    /// The module whose kernels this device runs.
    pub fn module(&self) -> &Arc<Module> {
        &self.module
    }

    /// A panic while the lock was held cannot have left the machine half-changed: it is changed by calls that return.
    fn lock(&self) -> MutexGuard<'_, NonNull<Machine>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, machine: &MutexGuard<'_, NonNull<Machine>>, code: c_int) -> Result<(), Error> {
        if code == 0 { Ok(()) } else { Err(self.report(machine, Kind::from_code(code))) }
    }

    fn report(&self, machine: &MutexGuard<'_, NonNull<Machine>>, kind: Kind) -> Error {
        Error::Report(Report { kind, message: self.message(machine) })
    }

    fn message(&self, machine: &MutexGuard<'_, NonNull<Machine>>) -> String {
        // SAFETY: the machine is locked, so its message does not change while it is copied.
        let message = unsafe { CStr::from_ptr((self.module.functions.message)(machine.as_ptr())) };
        message.to_string_lossy().into_owned()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let machine = self.lock();
        // SAFETY: the machine was made with the device, nobody else has it, and the module is still loaded.
        unsafe { (self.module.functions.device_delete)(machine.as_ptr()) }
    }
}

/// Bytes of a parameter, as aligned as a tensor map, which is more than any other type asks for.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Aligned([u8; 64]);

impl Aligned {
    /// As many as hold `bytes`; at least one, so that there is an address.
    fn copies(bytes: &[u8]) -> Vec<Self> {
        let mut copies = vec![Self([0; 64]); bytes.len().div_ceil(64).max(1)];
        for (to, from) in copies.iter_mut().zip(bytes.chunks(64)) {
            to.0[..from.len()].copy_from_slice(from);
        }
        copies
    }
}
