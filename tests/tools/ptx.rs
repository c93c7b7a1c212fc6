//! The text of inline PTX, which no test without a GPU executes: every wrapper of `kernels/device/ptx.cuh` and
//! `ptx_sm90.cuh` as it was reviewed against the PTX manual, with its twin on the emulator beside it and a kernel that a GPU
//! can be asked with (`tests/kernels/conformance`). A changed, added or lost instruction is noticed here first.

mod portable;
mod preprocessed;
mod sm90;

use da_moe::cuda::Emulated;
use preprocessed::{preprocessed, shortened};
use std::collections::BTreeSet;
use std::fs;

/// An instruction and its operands, without spaces: outputs, inputs and what else it touches. `…` stands for the numbers
/// between two.
struct Golden {
    name: &'static str,
    instruction: &'static str,
    operands: &'static str,
}

/// A wrapper that is one of CUDA's own functions instead of PTX.
struct Intrinsic {
    name: &'static str,
    body: &'static str,
}

/// A file of wrappers, and where a GPU is asked about them.
struct Header {
    path: &'static str,
    kernels: &'static str,
    /// In the order of the file. Not pure, so `volatile`, are all but those of `pure`.
    golden: &'static [Golden],
    /// Instructions that a compiler may merge, move and drop: their results are functions of their operands.
    pure: &'static [&'static str],
    intrinsics: &'static [Intrinsic],
    /// What the emulator's version has besides, for itself.
    helpers: &'static [&'static str],
}

const HEADERS: [&Header; 2] = [&portable::PTX, &sm90::PTX];

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
    [nvcc, emulator].map(|version| wrappers(&preprocessed(version)))
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
    let returned = after.strip_suffix(" != 0;").map_or_else(|| after.to_string(), |value| format!("{value};"));
    if returned != result.map_or(String::new(), |name| format!(" return {name};")) {
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
fn unreviewed(header: &Header, source: &str) -> Vec<String> {
    let [nvcc, _] = versions(source);
    let names: Vec<&str> = nvcc.iter().map(|wrapper| wrapper.name.as_str()).collect();
    let reviewed: Vec<&str> = header.golden.iter().map(|golden| golden.name).collect();
    if names != reviewed {
        return vec![format!("wrappers are {names:?}, and GOLDEN has {reviewed:?}")];
    }
    let change = |(wrapper, golden): (&Wrapper, &Golden)| {
        let same = match assembly(&wrapper.body) {
            Some((volatile, instruction, operands)) => {
                shortened(&instruction) == golden.instruction
                    && shortened(&operands) == golden.operands
                    && volatile != header.pure.contains(&golden.name)
            }
            None => header.intrinsics.iter().any(|known| known.name == golden.name && known.body == wrapper.body),
        };
        (!same).then(|| format!("{} is now {}", golden.name, wrapper.body))
    };
    nvcc.iter().zip(header.golden).filter_map(change).collect()
}

#[test]
fn instructions_are_as_reviewed() {
    for header in HEADERS {
        assert_eq!(unreviewed(header, &read(header.path)), Vec::<String>::new(), "{}", header.path);
    }
}

/// Text of a file, what is made of it, and the wrapper that is told.
type Change = (&'static str, &'static str, &'static str);

fn noticed(header: &Header, changes: &[Change]) {
    let source = read(header.path);
    for (from, to, wrapper) in changes {
        assert!(source.contains(from), "{from}");
        let changes = unreviewed(header, &source.replacen(from, to, 1));
        assert!(
            !changes.is_empty() && changes.iter().all(|text| text.contains(wrapper)),
            "{from} -> {to}: {changes:?}"
        );
    }
}

#[test]
fn a_changed_instruction_is_noticed() {
    let changes = [
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
    ];
    noticed(&portable::PTX, &changes);
    let changes = [
        ("[%0], [%1, {%3, %4}], [%2];", "[%0], [%1, {%4, %3}], [%2];", "tma_load_2d"),
        ("{%2, %3, %4}], [%1];", "{%2, %3, %4}], [%1]; ", "tma_store_3d"),
        ("wait_group.read %0", "wait_group %0", "bulk_wait_read"),
        ("@!done bra", "@done bra", "mbarrier_wait"),
        ("elected != 0", "elected == 0", "elect"),
        ("arrive.noinc.", "arrive.", "cp_async_arrive"),
        (r#""f"(second), "f"(first)"#, r#""f"(first), "f"(second)"#, "pack_bf16"),
        ("%45, ", "%54, ", "wgmma"),
        ("c(of[i + 6]), c(of[i + 7])", "c(of[i + 7]), c(of[i + 6])", "wgmma"),
        ("PTX_TIMES_8(of, c, i + 24)", "PTX_TIMES_8(of, c, i + 16)", "wgmma"),
        (r#"1, 1, %130, %131;""#, r#"1, 1, %131, %130;""#, "wgmma"),
        (r#"PTX_WGMMA("bf16", "0", PTX_WRITTEN)"#, r#"PTX_WGMMA("bf16", "0", PTX_READ_WRITTEN)"#, "wgmma_first_bf16"),
    ];
    noticed(&sm90::PTX, &changes);
}

/// Families of instructions that read or write memory, or wait for who does. (`wgmma` itself is held in its place by the
/// fence before it and the commit after it.)
const MEMORY: &[&str] = &["cp.async", "ldmatrix", "stmatrix", "bar", "fence", "prefetch", "_group"];

/// A number without an operand would not assemble; an operand without a number would be silently unused.
#[test]
fn every_operand_is_named_in_its_instruction() {
    for Golden { name, instruction, operands } in HEADERS.iter().flat_map(|header| header.golden) {
        // `%%` is a register's own sign. Of a range the ends stand for all.
        let instruction = instruction.replace("%%", "");
        let named: BTreeSet<usize> = instruction
            .split('%')
            .skip(1)
            .map(|rest| rest.split([',', ';', ']', '}', '…']).next().unwrap_or(rest))
            .map(|number| number.parse().unwrap_or_else(|_| panic!("{name}: %{number}")))
            .collect();
        let count = operands.matches("\"(").count();
        assert_eq!(named.len(), count, "{name}: {named:?}");
        let last = if operands.contains('…') { count + 125 } else { count.saturating_sub(1) };
        assert_eq!(named.last().copied().unwrap_or_default(), last, "{name}");
        // What reads or writes memory says so, or accesses of the same memory would move past it.
        let moves = MEMORY.iter().any(|family| instruction.contains(family));
        assert_eq!(moves, operands.ends_with("\"memory\""), "{name}");
    }
}

#[test]
fn every_instruction_has_a_twin_and_a_conformance_kernel() {
    for header in HEADERS {
        let [nvcc, mut emulator] = versions(&read(header.path));
        emulator.retain(|wrapper| !header.helpers.contains(&&*wrapper.name));
        let signatures = |wrappers: &[Wrapper]| wrappers.iter().map(|w| w.signature.clone()).collect::<BTreeSet<_>>();
        assert_eq!(
            signatures(&nvcc),
            signatures(&emulator),
            "functions of nvcc and of the emulator in {}",
            header.path
        );
        let kernels = read(header.kernels);
        for Wrapper { name, .. } in &nvcc {
            let called = ["(", "<"].iter().any(|open| kernels.contains(&format!("ptx::{name}{open}")));
            assert!(called, "no kernel of {} calls ptx::{name}", header.kernels);
        }
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
