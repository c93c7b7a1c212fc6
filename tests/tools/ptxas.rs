//! What ptxas says of the kernels, and how many of their blocks a multiprocessor has room for.

use std::fmt;

/// What a multiprocessor of sm_80 has, the smaller of the two: registers, handed out to a warp in portions of 256, and
/// bytes of shared memory, of which every block costs 1 KiB more than it asks for.
const REGISTERS: u32 = 65536;
const SHARED_BYTES: u32 = 164 << 10;

/// What ptxas says of one function.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    pub kernel: String,
    pub machine: String,
    /// Those of a function that a kernel calls are counted with the kernel's: none here.
    pub registers: Option<u32>,
    /// Bytes of static shared memory of a block.
    pub shared: u32,
    /// Stack frame, spill stores, spill loads, in bytes.
    pub local: [u32; 3],
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [stack, stores, loads] = self.local;
        let registers = self.registers.map_or("called".into(), |count| format!("{count:>3} registers"));
        write!(f, "{:>7} {registers:>13}", self.machine)?;
        write!(f, "  {stack:>4} stack {stores:>4} spill stores {loads:>4} spill loads  {}", self.kernel)
    }
}

/// One entry for each function and machine of `ptxas --verbose`.
pub fn resources(ptxas: &str) -> Vec<Resources> {
    let (mut all, mut machine) = (Vec::<Resources>::new(), "");
    for line in ptxas.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            machine = rest.split('\'').nth(2).unwrap_or_default();
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            all.push(Resources { kernel: name.trim().into(), machine: machine.into(), ..Resources::default() });
        } else if let Some(last) = all.last_mut() {
            let numbers: Vec<u32> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
            match numbers.as_slice() {
                &[stack, stores, loads] if line.contains("bytes stack frame") => last.local = [stack, stores, loads],
                [registers, ..] if line.contains(" registers") => {
                    last.registers = Some(*registers);
                    let shared = line.split(", ").find_map(|part| part.strip_suffix(" bytes smem"));
                    last.shared = shared.map_or(0, |bytes| bytes.parse().expect("a number of bytes"));
                }
                _ => {}
            }
        }
    }
    all
}

/// Blocks of so many threads that a multiprocessor's registers and shared memory have room for.
pub fn blocks(entry: &Resources, threads: u32, shared: u32) -> u32 {
    let of_warp = (entry.registers.unwrap_or(255) * 32).next_multiple_of(256);
    let by_registers = REGISTERS / (of_warp * threads.div_ceil(32));
    by_registers.min(SHARED_BYTES / (entry.shared + shared + 1024))
}
