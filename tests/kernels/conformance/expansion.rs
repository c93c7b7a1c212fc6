//! Some PTX instructions are none of the machine's: ptxas makes ordinary operations of them, which say what a GPU will
//! give without one. They are read from the compiled kernel and executed here, on the words that a GPU would get.

use super::SEED;
use super::cases::Case;
use super::expected::wrong;
use da_moe::f16;
use da_moe_harness::machine_code::{cuobjdump, readable_images};
use std::collections::BTreeMap;

/// Kernels that load a word, make another one of it and store that, and whose instruction is such.
const EXPANDED: &[&str] = &["conformance_round_tf32"];

/// One instruction: `@!P0 LOP3.LUT R0, R0, 0xffffe000, RZ, 0xc0, !PT`.
#[derive(Debug)]
struct Instruction {
    predicate: Option<String>,
    opcode: String,
    operands: Vec<String>,
}

impl Instruction {
    /// None for lines without one, such as the second half of an encoding.
    fn read(line: &str) -> Option<Self> {
        let (_, rest) = line.trim().strip_prefix("/*")?.split_once("*/")?;
        let (text, _) = rest.split_once(';')?;
        let (predicate, text) = match text.trim().strip_prefix('@') {
            Some(rest) => rest.split_once(' ').map(|(predicate, text)| (Some(predicate.into()), text))?,
            None => (None, text),
        };
        let (opcode, operands) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let operands = operands.split(", ").map(|operand| operand.trim().into()).collect();
        Some(Self { predicate, opcode: opcode.into(), operands })
    }
}

/// The machines that have the kernel, each with its instructions.
fn listings(sass: &str, kernel: &str) -> Vec<(String, Vec<Instruction>)> {
    let (mut found, mut machine, mut inside) = (Vec::<(String, Vec<Instruction>)>::new(), "", false);
    for line in sass.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("code for ") {
            machine = name;
        } else if let Some(name) = line.strip_prefix("Function : ") {
            inside = name == kernel;
            if inside {
                found.push((machine.into(), Vec::new()));
            }
        } else if let (true, Some((_, last))) = (inside, found.last_mut()) {
            last.extend(Instruction::read(line));
        }
    }
    found
}

/// Registers and predicates of one thread. What an instruction that is not understood has written is not there.
#[derive(Default)]
struct Thread {
    registers: BTreeMap<String, u32>,
    predicates: BTreeMap<String, bool>,
}

impl Thread {
    fn value(&self, operand: &str) -> Option<u32> {
        if let Some(digits) = operand.strip_prefix("0x") {
            return u32::from_str_radix(digits, 16).ok();
        }
        if operand == "RZ" { Some(0) } else { self.registers.get(operand).copied() }
    }

    fn holds(&self, predicate: &str) -> Option<bool> {
        match predicate.strip_prefix('!') {
            Some(other) => self.holds(other).map(|value| !value),
            None if predicate == "PT" => Some(true),
            None => self.predicates.get(predicate).copied(),
        }
    }

    /// The word that an instruction writes to its first operand.
    fn result(&self, opcode: &str, operands: &[&str]) -> Option<u32> {
        match (opcode, operands) {
            ("IMAD.IADD" | "IMAD.IADD.U32", [_, a, "0x1", b]) => Some(self.value(a)?.wrapping_add(self.value(b)?)),
            // A constant as two f16 numbers, 0 times 0 plus each.
            ("HFMA2.MMA", [_, "-RZ", "RZ", high, low]) => {
                let bits = |number: &str| number.parse().ok().map(|value| u32::from(f16::from_f32(value).to_bits()));
                Some(bits(high)? << 16 | bits(low)?)
            }
            ("LOP3.LUT", [_, a, b, c, table, "!PT"]) => {
                let [a, b, c, table] = [self.value(a)?, self.value(b)?, self.value(c)?, self.value(table)?];
                let bit = |i: u32| (a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1);
                Some((0..32).map(|i| (table >> bit(i) & 1) << i).sum())
            }
            _ => None,
        }
    }

    /// Executes a kernel that loads `word`, and gives what it stores.
    fn run(mut self, instructions: &[Instruction], word: u32) -> Option<u32> {
        for Instruction { predicate, opcode, operands } in instructions {
            let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
            let is_taken = match predicate {
                Some(predicate) => self.holds(predicate)?,
                None => true,
            };
            match (opcode.as_str(), &operands[..]) {
                _ if !is_taken => {}
                ("LDG.E", [target, _]) => drop(self.registers.insert((*target).into(), word)),
                ("STG.E", [_, source]) => return self.value(source),
                ("FSETP.GEU.AND", [target, "PT", value, "+INF", "PT"]) => {
                    let value = f32::from_bits(self.value(value.trim_matches('|'))?);
                    // Greater, equal or not to be compared.
                    self.predicates.insert((*target).into(), !value.is_finite());
                }
                (_, [target, ..]) => match self.result(opcode, &operands) {
                    Some(value) => drop(self.registers.insert((*target).into(), value)),
                    None => drop(self.registers.remove(*target)),
                },
                _ => {}
            }
        }
        None
    }
}

/// What is wrong with the words that a kernel's machine code makes of its input.
fn problem(case: &Case, instructions: &[Instruction]) -> Option<String> {
    let input = case.input(SEED);
    let found: Option<Vec<u32>> = input.iter().map(|word| Thread::default().run(instructions, *word)).collect();
    match found {
        Some(found) => wrong(&case.expected(&input), &found),
        None => Some(format!("the machine code is not understood: {instructions:#?}")),
    }
}

#[test]
fn machine_code_does_what_is_expected_of_it() {
    let Some((images, program)) = readable_images() else { return };
    let image = images.iter().find(|image| image.name == "conformance").expect("the image of the kernels");
    let sass = cuobjdump(&program, "-sass", image);
    for kernel in EXPANDED {
        let listings = listings(&sass, kernel);
        assert!(!listings.is_empty(), "no machine code of {kernel}");
        for (machine, instructions) in listings {
            assert_eq!(problem(Case::named(kernel), &instructions), None, "{kernel} on {machine}");
        }
    }
}

/// As the compiler writes it for one machine, without the addresses and the encodings.
const ROUND_TF32: &str = "
    code for sm_90a
        Function : conformance_round_tf32
    /*0050*/  LDC.64 R4, c[0x0][0x218] ;
    /*0090*/  LDG.E R0, desc[UR4][R2.64] ;
    /*00a0*/  HFMA2.MMA R9, -RZ, RZ, 0, 0.00048828125 ;
    /*00b0*/  IMAD.WIDE R4, R7, 0x4, R4 ;
    /*00c0*/  FSETP.GEU.AND P0, PT, |R0|, +INF , PT ;
    /*00d0*/  @!P0 IMAD.IADD.U32 R0, R0, 0x1, R9 ;
    /*00e0*/  LOP3.LUT R0, R0, 0xffffe000, RZ, 0xc0, !PT ;
    /*0100*/  STG.E desc[UR4][R4.64], R0 ;
    /*0110*/  EXIT ;
        Function : other
    /*0110*/  EXIT ;
";

#[test]
fn machine_code_is_executed() {
    let found = |sass: &str| {
        let listings = listings(sass, EXPANDED[0]);
        assert_eq!(listings.len(), 1);
        assert_eq!((listings[0].0.as_str(), listings[0].1.len()), ("sm_90a", 9));
        problem(Case::named(EXPANDED[0]), &listings[0].1)
    };
    assert_eq!(found(ROUND_TF32), None);
    for (from, to) in [
        ("@!P0 IMAD", "IMAD"),
        ("@!P0", "@P0"),
        ("0.00048828125", "0.0004882813"),
        ("0.00048828125", "0.000244140625"),
        ("0xffffe000, RZ, 0xc0", "0xfffff000, RZ, 0xc0"),
        ("RZ, 0xc0", "RZ, 0xfc"),
        ("|R0|, +INF", "|R9|, +INF"),
        ("LOP3.LUT R0, R0", "LOP3.LUT R1, R0"),
        ("IMAD.IADD.U32", "IMAD.ISUB"),
    ] {
        assert!(ROUND_TF32.contains(from), "{from}");
        // The first constant is the same number in fewer digits.
        assert_eq!(found(&ROUND_TF32.replacen(from, to, 1)).is_some(), to != "0.0004882813", "{from} -> {to}");
    }
}
