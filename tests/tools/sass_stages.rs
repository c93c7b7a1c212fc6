//! What ptxas made of the loops that read global memory beside the products: that loads do not wait for one another.
//! A loop that lost this still computes the right numbers, so no other test would notice.
//!
//! Without compiled kernels, or without `cuobjdump` to read them, one line on standard error says that nothing was
//! checked; with `DA_MOE_CUDA=1` that is a failure.

use super::instructions::{Instruction, Listing, listings, machine_code, matches};
use std::collections::BTreeMap;

/// Loads that are on their way at once where most of them are.
const AT_ONCE: &[(&str, usize)] = &[
    // Four rows, and whether their queries take part.
    ("importance_received_*", 8),
    ("importance_given_*", 4),
    ("importance_normalize", 5),
    ("importance_running", 5),
    ("gate_32", 16),
    ("gate_64", 16),
    ("gate_128", 16),
    ("gate_256", 16),
    ("gate_512", 16),
    ("routing_32", 16),
    ("routing_64", 16),
    ("routing_128", 16),
    ("routing_256", 16),
    ("routing_512", 16),
    ("permute_count", 16),
    // Eight entries' experts, and weights.
    ("permute_scatter", 12),
    ("bias_gradient_*", 8),
];

/// Why loads may wait for one another.
#[derive(Clone, Copy, Debug)]
enum Why {
    /// A binary search: what it reads next depends on what it read.
    Search,
    /// What is left when a loop was unrolled: three times round at most.
    Remainder,
    /// Once round for up to 32 slots or 256 candidates.
    Short,
    /// One block that is over before a launch is.
    Launch,
}

/// How many loops of one load after another a kernel for sm_90a may have, and why.
const ONE_AFTER_ANOTHER: &[(&str, &[(Why, usize)])] = &[
    ("budget_ties", &[(Why::Remainder, 1), (Why::Short, 1)]),
    ("combine_constants_*", &[(Why::Short, 1), (Why::Remainder, 1)]),
    ("gate_backward_*", &[(Why::Short, 2), (Why::Remainder, 1)]),
    ("gate_bias", &[(Why::Launch, 3)]),
    ("importance_given_*", &[(Why::Search, 2)]),
    ("importance_normalize", &[(Why::Search, 4)]),
    ("importance_own_key_*", &[(Why::Remainder, 1)]),
    // Tiles, and rows that are written; with rows at multiples of 16 bytes, and at others.
    ("importance_query_key_*", &[(Why::Search, 3), (Why::Remainder, 4)]),
    ("importance_rank", &[(Why::Search, 6)]),
    ("importance_received_*", &[(Why::Search, 2)]),
    ("importance_reduce", &[(Why::Remainder, 2)]),
    ("importance_router_entropy", &[(Why::Remainder, 2)]),
    // Of rows in 16 bits a lane has one load a slot.
    ("permute_backward_*", &[(Why::Short, 3)]),
    ("routing_backward", &[(Why::Short, 2), (Why::Search, 1)]),
    ("row_weight_gradient_*", &[(Why::Search, 1), (Why::Remainder, 1)]),
];

/// Instructions for the comparison of two values when ranks are found.
const RANK_INSTRUCTIONS: f64 = 5.0;

/// What kernels with products of matrices are called, whose loops `sass_products.rs` looks at, and single instructions.
const OTHERS: [&str; 3] = ["grouped_gemm_", "weight_gradient_sum_", "conformance_"];

/// The loops that have no other loop in them: from where a jump leads back to, to that jump.
fn loops(code: &[Instruction]) -> Vec<&[Instruction]> {
    let jumps = code.iter().enumerate().filter(|(_, instruction)| instruction.family() == "BRA");
    let back = jumps.filter_map(|(last, jump)| {
        let target = jump.target().filter(|&target| target < jump.address)?;
        Some((code.iter().position(|instruction| instruction.address == target)?, last))
    });
    let mut all: Vec<(usize, usize)> = back.collect();
    all.sort_unstable();
    all.dedup();
    let has_another = |of: &(usize, usize)| all.iter().any(|other| other != of && other.0 >= of.0 && other.1 <= of.1);
    all.iter().filter(|of| !has_another(of)).map(|&(first, last)| &code[first..=last]).collect()
}

fn is_load(instruction: &Instruction) -> bool {
    instruction.family() == "LDG" && !instruction.never_runs()
}

/// The first register that a load fills, and how many there are.
fn filled(load: &Instruction) -> Option<(u32, u32)> {
    let count = if load.has("128") {
        4
    } else if load.has("64") {
        2
    } else {
        1
    };
    Some((load.register(0)?, count))
}

/// How many loads at most have been asked for while none of what they bring was used.
fn at_once(code: &[Instruction]) -> usize {
    let (mut pending, mut most) = (Vec::<(u32, u32)>::new(), 0);
    for instruction in code {
        pending.retain(|&(first, count)| !(first..first + count).any(|register| instruction.names(register)));
        pending.extend(filled(instruction).filter(|_| is_load(instruction)));
        most = most.max(pending.len());
    }
    most
}

#[test]
fn loads_are_on_their_way_together() {
    let Some(all) = machine_code() else { return };
    for (pattern, least) in AT_ONCE {
        let mut kernels = all.iter().filter(|code| matches(&code.kernel, pattern)).peekable();
        assert!(kernels.peek().is_some(), "no kernel is named `{pattern}`");
        for Listing { kernel, machine, instructions } in kernels {
            let most = at_once(instructions);
            assert!(most >= *least, "{kernel} on {machine}: {most} loads at once of {least}");
        }
    }
}

#[test]
fn no_loop_loads_one_after_another_but_those_that_must() {
    let Some(all) = machine_code() else { return };
    let mut wrong = BTreeMap::new();
    let is_of_a_stage = |code: &&Listing| !OTHERS.iter().any(|start| code.kernel.starts_with(start));
    for Listing { kernel, instructions, .. } in all.iter().filter(|code| code.machine == "sm_90a").filter(is_of_a_stage)
    {
        let found =
            loops(instructions).into_iter().filter(|body| body.iter().any(is_load) && at_once(body) < 2).count();
        let allowed =
            ONE_AFTER_ANOTHER.iter().find(|(pattern, _)| matches(kernel, pattern)).map_or(&[][..], |(_, why)| why);
        if found > allowed.iter().map(|(_, count)| count).sum() {
            wrong.insert(kernel, format!("{found} loops of {allowed:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn ranks_cost_as_many_instructions_as_their_file_says() {
    let Some(all) = machine_code() else { return };
    for Listing { machine, instructions, .. } in all.iter().filter(|code| code.kernel == "importance_rank") {
        // Each read of another value is for comparisons with four.
        let pairs = |body: &[Instruction]| 4 * body.iter().filter(|instruction| instruction.family() == "LDS").count();
        let bodies = loops(instructions).into_iter().filter(|body| pairs(body) > 0 && body.len() > 4 * pairs(body));
        let cost = bodies.map(|body| body.len() as f64 / pairs(body) as f64).fold(f64::INFINITY, f64::min);
        assert!(cost <= RANK_INSTRUCTIONS, "{cost} instructions a pair on {machine}");
    }
}

#[test]
fn loops_and_loads_are_understood() {
    let sass = "
\tcode for sm_90a
\t\tFunction : both
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 LDG.E R8, desc[UR4][R2.64+0x10] ;
        /*0030*/                   FADD R9, R7, R8 ;
        /*0040*/               @P1 BRA 0x10 ;
        /*0050*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0060*/                   IADD3 R2, R4, R2, RZ ;
        /*0070*/              @!PT LDG.E R5, desc[UR4][R2.64] ;
        /*0080*/               @P1 BRA 0x50 ;
        /*0090*/               @P2 BRA 0x0 ;
        /*00a0*/                   EXIT ;
";
    let all = listings(sass);
    let found = loops(&all[0].instructions);
    assert_eq!(found.iter().map(|body| (body[0].address, body.len())).collect::<Vec<_>>(), [(0x10, 4), (0x50, 4)]);
    assert_eq!(found.iter().map(|body| at_once(body)).collect::<Vec<_>>(), [2, 1]);
}
