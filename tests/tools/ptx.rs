//! The text of inline PTX, which no test without a GPU executes: every wrapper of `kernels/device/ptx.cuh` as it was
//! reviewed against the PTX manual, with its twin on the emulator beside it and a kernel that a GPU can be asked with
//! (`tests/kernels/conformance`). A changed, added or lost instruction is noticed here first.

use da_moe::cuda::Emulated;
use std::collections::BTreeSet;
use std::fs;

/// An instruction and its operands, without spaces: outputs, inputs and what else it touches.
struct Golden {
    name: &'static str,
    instruction: &'static str,
    operands: &'static str,
}

const MMA_OPERANDS: &str =
    r#""+f"(d[0]),"+f"(d[1]),"+f"(d[2]),"+f"(d[3]):"r"(a[0]),"r"(a[1]),"r"(a[2]),"r"(a[3]),"r"(b[0]),"r"(b[1])"#;
const LDMATRIX_OPERANDS: &str = r#""=r"(out[0]),"=r"(out[1]),"=r"(out[2]),"=r"(out[3]):"r"(row):"memory""#;

/// In the order of the file. Not pure, so `volatile`, are all but those of `PURE`.
const GOLDEN: &[Golden] = &[
    Golden { name: "shared_address", instruction: "", operands: "" },
    Golden {
        name: "cp_async_16",
        instruction: "cp.async.cg.shared.global [%0], [%1], 16, %2;",
        operands: r#":"r"(target),"l"(source),"r"(source_bytes):"memory""#,
    },
    Golden {
        name: "cp_async_16_if",
        instruction: "{ .reg .pred ignore; setp.eq.u32 ignore, %2, 0; cp.async.cg.shared.global [%0], [%1], 16, ignore; }",
        operands: r#":"r"(target),"l"(source),"r"(static_cast<uint32_t>(is_there)):"memory""#,
    },
    Golden { name: "cp_async_commit", instruction: "cp.async.commit_group;", operands: r#"::"memory""# },
    Golden { name: "cp_async_wait", instruction: "cp.async.wait_group %0;", operands: r#":"n"(GROUPS):"memory""# },
    Golden {
        name: "ldmatrix_x4",
        instruction: "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];",
        operands: LDMATRIX_OPERANDS,
    },
    Golden {
        name: "ldmatrix_x4_trans",
        instruction: "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];",
        operands: LDMATRIX_OPERANDS,
    },
    Golden {
        name: "mma_bf16",
        instruction: "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, \
                      {%8, %9}, {%0, %1, %2, %3};",
        operands: MMA_OPERANDS,
    },
    Golden {
        name: "mma_f16",
        instruction: "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, \
                      {%0, %1, %2, %3};",
        operands: MMA_OPERANDS,
    },
    Golden { name: "ex2", instruction: "ex2.approx.ftz.f32 %0, %1;", operands: r#""=f"(result):"f"(x)"# },
    Golden {
        name: "round_tf32",
        instruction: "cvt.rna.tf32.f32 %0, %1;",
        operands: r#""=r"(rounded):"f"(__uint_as_float(bits))"#,
    },
    Golden {
        name: "mma_tf32",
        instruction: "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, \
                      {%0, %1, %2, %3};",
        operands: MMA_OPERANDS,
    },
];

/// Instructions that a compiler may merge, move and drop: their results are functions of their operands.
const PURE: &[&str] = &["ex2", "round_tf32"];

/// Wrappers that are one of CUDA's own functions instead of PTX.
const INTRINSICS: &[(&str, &str)] =
    &[("shared_address", "return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));")];

/// One function of the file.
#[derive(Debug, PartialEq)]
struct Wrapper {
    name: String,
    /// Result and parameters.
    signature: String,
    body: String,
}

/// The two versions of the file: nvcc's and the emulator's.
fn versions(source: &str) -> [Vec<Wrapper>; 2] {
    let (_, rest) = source.split_once("namespace da_moe::ptx {").expect("the namespace");
    let (_, rest) = rest.split_once("#if defined(__CUDACC__)").expect("nvcc's version");
    let (nvcc, rest) = rest.split_once("\n#else\n").expect("the emulator's version");
    let (emulator, _) = rest.split_once("\n#endif\n").expect("the end of both");
    [nvcc, emulator].map(wrappers)
}

/// Functions after `PTX_FN`. Braces in strings come in pairs, so counting them finds the end of a body.
fn wrappers(source: &str) -> Vec<Wrapper> {
    let one = |text: &str| {
        let (head, body) = text.split_once(") {").expect("a function");
        let name = head.split_once('(').expect("parameters").0.split(' ').next_back().expect("a name");
        let mut depth = 1;
        let end = body.find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0
        });
        let body = body[..end.expect("the end of a body")].split_whitespace().collect::<Vec<_>>().join(" ");
        let signature = head.split_whitespace().collect::<Vec<_>>().join(" ") + ")";
        Wrapper { name: name.into(), signature, body }
    };
    source.split("\nPTX_FN ").skip(1).map(one).collect()
}

/// Whether it is volatile, the instruction and the operands of a body's one `asm`, which must be all there is but for
/// the variable that it leaves its result in.
fn assembly(body: &str) -> Option<(bool, String, String)> {
    let (before, rest) = body.split_once("asm")?;
    let (rest, after) = rest.split_once(");")?;
    let result = before.split([' ', ';']).nth(1);
    if after != result.map_or(String::new(), |name| format!(" return {name};")) {
        return None;
    }
    let (volatile, rest) = match rest.strip_prefix(" volatile") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    // Strings side by side are one; the first colon outside of one ends the instruction.
    let (mut instruction, mut in_string) = (String::new(), false);
    let text = rest.strip_prefix('(')?;
    let end = text.find(|c| {
        match c {
            '"' => in_string = !in_string,
            _ if in_string => instruction.push(c),
            _ => {}
        }
        c == ':' && !in_string
    });
    let operands = &text[end? + 1..];
    Some((volatile, instruction, operands.split_whitespace().collect()))
}

fn read(name: &str) -> String {
    let path = Emulated::sources().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What differs from the reviewed lines.
fn unreviewed(source: &str) -> Vec<String> {
    let [nvcc, _] = versions(source);
    let names: Vec<&str> = nvcc.iter().map(|wrapper| wrapper.name.as_str()).collect();
    let reviewed: Vec<&str> = GOLDEN.iter().map(|golden| golden.name).collect();
    if names != reviewed {
        return vec![format!("wrappers are {names:?}, and GOLDEN has {reviewed:?}")];
    }
    let change = |(wrapper, golden): (&Wrapper, &Golden)| {
        let same = match assembly(&wrapper.body) {
            Some((volatile, instruction, operands)) => {
                instruction == golden.instruction
                    && operands == golden.operands
                    && volatile != PURE.contains(&golden.name)
            }
            None => INTRINSICS.contains(&(golden.name, &*wrapper.body)),
        };
        (!same).then(|| format!("{} is now {}", golden.name, wrapper.body))
    };
    nvcc.iter().zip(GOLDEN).filter_map(change).collect()
}

#[test]
fn instructions_are_as_reviewed() {
    assert_eq!(unreviewed(&read("device/ptx.cuh")), Vec::<String>::new());
}

#[test]
fn a_changed_instruction_is_noticed() {
    let source = read("device/ptx.cuh");
    for (from, to, wrapper) in [
        ("x4.trans.shared", "x4.shared", "ldmatrix_x4_trans"),
        ("[%0], [%1], 16, %2;", "[%0], [%1], 8, %2;", "cp_async_16"),
        (r#""r"(target), "l"(source)"#, r#""l"(source), "r"(target)"#, "cp_async_16"),
        ("bf16.bf16.f32 {%0, %1", "bf16.bf16.f32 {%1, %0", "mma_bf16"),
        (r#""r"(a[1]), "r"(a[2])"#, r#""r"(a[2]), "r"(a[1])"#, "mma_bf16"),
        ("ignore, %2, 0;", "ignore, %2, 1;", "cp_async_16_if"),
        (
            r#"asm volatile("cp.async.commit_group;" ::: "memory");"#,
            r#"asm volatile("cp.async.commit_group;");"#,
            "commit",
        ),
        (r#"asm volatile("cp.async.wait_group"#, r#"asm("cp.async.wait_group"#, "cp_async_wait"),
        ("__cvta_generic_to_shared(pointer)", "reinterpret_cast<size_t>(pointer)", "shared_address"),
        ("PTX_FN void ldmatrix_x4(", "PTX_FN void ldmatrix_x2(", "ldmatrix_x2"),
    ] {
        assert!(source.contains(from), "{from}");
        let changes = unreviewed(&source.replacen(from, to, 1));
        assert!(changes.len() == 1 && changes[0].contains(wrapper), "{from} -> {to}: {changes:?}");
    }
}

/// A number without an operand would not assemble; an operand without a number would be silently unused.
#[test]
fn every_operand_is_named_in_its_instruction() {
    for Golden { name, instruction, operands } in GOLDEN {
        let named: BTreeSet<&str> = instruction
            .split('%')
            .skip(1)
            .map(|rest| rest.split([',', ';', ']', '}']).next().unwrap_or(rest))
            .collect();
        let count = operands.matches("\"(").count();
        let numbers: BTreeSet<String> = (0..count).map(|number| number.to_string()).collect();
        assert_eq!(named, numbers.iter().map(String::as_str).collect(), "{name}");
        // What reads or writes memory says so, or accesses of the same memory would move past it.
        let moves = ["cp.async", "ldmatrix"].iter().any(|family| instruction.contains(family));
        assert_eq!(moves, operands.ends_with("\"memory\""), "{name}");
    }
}

#[test]
fn every_instruction_has_a_twin_and_a_conformance_kernel() {
    let [nvcc, emulator] = versions(&read("device/ptx.cuh"));
    let signatures = |wrappers: &[Wrapper]| wrappers.iter().map(|w| w.signature.clone()).collect::<BTreeSet<_>>();
    assert_eq!(signatures(&nvcc), signatures(&emulator), "functions of nvcc and of the emulator");
    let kernels = read("conformance/conformance.cu");
    for Wrapper { name, .. } in &nvcc {
        let called = ["(", "<"].iter().any(|open| kernels.contains(&format!("ptx::{name}{open}")));
        assert!(called, "no kernel of conformance.cu calls ptx::{name}");
    }
}

#[test]
fn the_file_is_understood() {
    let source = "\
namespace da_moe::ptx {
#if defined(__CUDACC__)
#define PTX_FN static
template <int N>
PTX_FN void first(int (&out)[2],
                  int x) {
    asm volatile(\"one.b16 {%0, \"
                 \"%1}, [%2];\" : \"=r\"(out[0]), \"=r\"(out[1]) : \"r\"(x) : \"memory\");
}
#else
#define PTX_FN static
PTX_FN void first(int (&out)[2], int x) { for (;;) { emu::first(out, x); } }
PTX_FN float second() { return 0; }
#endif
";
    let [nvcc, emulator] = versions(source);
    assert_eq!((nvcc.len(), emulator.len()), (1, 2));
    assert_eq!(nvcc[0].signature, emulator[0].signature);
    assert_eq!(emulator[0].body, "for (;;) { emu::first(out, x); }");
    let operands = r#""=r"(out[0]),"=r"(out[1]):"r"(x):"memory""#;
    assert_eq!(assembly(&nvcc[0].body), Some((true, "one.b16 {%0, %1}, [%2];".into(), operands.into())));
    assert_eq!(assembly(&emulator[1].body), None);
}
