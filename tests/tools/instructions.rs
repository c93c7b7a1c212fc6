//! Instructions of the kernels' machine code, as `cuobjdump -sass` lists them.

use da_moe_harness::machine_code::{cuobjdump, readable_images};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{iter, thread};

/// One instruction: `@!P0 LDG.E.128.CONSTANT R8, [R2.64]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    pub address: u32,
    /// Such as `!P0`; empty where there is none.
    pub predicate: String,
    /// `LDG.E.128.CONSTANT`.
    pub opcode: String,
    /// `R8` and `[R2.64]`.
    pub operands: Vec<String>,
}

impl Instruction {
    /// None for lines without one, such as the second half of an encoding.
    fn read(line: &str) -> Option<Self> {
        let (address, rest) = line.strip_prefix("/*")?.split_once("*/")?;
        let (text, _) = rest.split_once(';')?;
        let address = u32::from_str_radix(address, 16).ok()?;
        let (predicate, text) = match text.trim().strip_prefix('@') {
            Some(rest) => rest.split_once(' ')?,
            None => ("", text),
        };
        let (opcode, operands) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let operands = operands.split(',').map(|operand| operand.trim().to_string()).collect();
        Some(Self { address, predicate: predicate.into(), opcode: opcode.into(), operands })
    }

    /// What it is, without how: `LDG` of `LDG.E.128.CONSTANT`.
    pub fn family(&self) -> &str {
        family(&self.opcode)
    }

    /// Whether it has a part of a name, such as `128`.
    pub fn has(&self, part: &str) -> bool {
        self.opcode.split('.').any(|of_opcode| of_opcode == part)
    }

    /// Whether no thread ever runs it.
    pub fn never_runs(&self) -> bool {
        self.predicate == "!PT"
    }

    /// Where it may jump to.
    pub fn target(&self) -> Option<u32> {
        let jumps = ["BRA", "BRX", "CALL", "BSSY", "JMP"].contains(&self.family());
        let hexadecimal = |operand: &String| u32::from_str_radix(operand.strip_prefix("0x")?, 16).ok();
        self.operands.iter().rev().find_map(hexadecimal).filter(|_| jumps)
    }

    /// The number of a register operand, without what is said about it: 124 of `R124.reuse`.
    pub fn register(&self, operand: usize) -> Option<u32> {
        register(self.operands.get(operand)?)
    }

    /// Whether a register is named in any operand, also within an address.
    pub fn names(&self, register: u32) -> bool {
        let words = self.operands.iter().flat_map(|operand| operand.split(|c: char| !c.is_ascii_alphanumeric()));
        words.filter_map(self::register).any(|named| named == register)
    }
}

/// What an instruction is, without how.
pub fn family(opcode: &str) -> &str {
    opcode.split('.').next().unwrap_or_default()
}

fn register(operand: &str) -> Option<u32> {
    operand.split('.').next()?.strip_prefix('R')?.parse().ok()
}

/// The instructions of one kernel on one machine.
pub struct Listing {
    pub kernel: String,
    pub machine: String,
    pub instructions: Vec<Instruction>,
}

/// One for each function in what `cuobjdump -sass` prints.
pub fn listings(sass: &str) -> Vec<Listing> {
    let (mut all, mut machine) = (Vec::<Listing>::new(), "");
    for line in sass.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("code for ") {
            machine = name;
        } else if let Some(name) = line.strip_prefix("Function : ") {
            all.push(Listing { kernel: name.into(), machine: machine.into(), instructions: Vec::new() });
        } else if let Some(last) = all.last_mut() {
            last.instructions.extend(Instruction::read(line));
        }
    }
    all
}

/// Whether a name is what a pattern with at most one `*` says.
pub fn matches(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => name.strip_prefix(start).is_some_and(|rest| rest.ends_with(end)),
        None => name == pattern,
    }
}

/// The instructions of every kernel, in any order, read once for all tests; none where there is nothing to read.
pub fn machine_code() -> Option<&'static [Listing]> {
    static ALL: OnceLock<Option<Vec<Listing>>> = OnceLock::new();
    let read = || {
        let (images, program) = readable_images()?;
        let read = |image| listings(&cuobjdump(&program, "-sass", image));
        // Each takes a core, and the last of them a minute.
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicUsize::new(0);
        let some = || iter::from_fn(|| images.get(next.fetch_add(1, Ordering::Relaxed))).flat_map(read).collect();
        Some(thread::scope(|scope| {
            let readers: Vec<_> = (0..threads).map(|_| scope.spawn(some)).collect();
            readers.into_iter().flat_map(|reader| -> Vec<Listing> { reader.join().expect("a listing") }).collect()
        }))
    };
    ALL.get_or_init(read).as_deref()
}
