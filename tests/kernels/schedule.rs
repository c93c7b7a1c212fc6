//! Work follows the rows, and what a causal mask shows. That the schedulers hand out every row and every tile once is asked
//! of themselves; how much is multiplied and copied is counted by the emulator while the kernels run, on the shapes that the
//! speed goals are stated for, so that a loop that stopped skipping what is not there fails here although its results
//! would be right.

use super::alone::{Asked, Done, compile, compiler, gradient, integers, kernels, mutant, product, run, zeros};
use da_moe::DType;
use da_moe::cuda::{Launch, abi};
use da_moe_emulator::{Device, Module, Schedule, Work};
use da_moe_harness::product::offsets;
use std::path::Path;
use std::ptr::{without_provenance, without_provenance_mut};
use std::sync::Arc;

/// Rows and columns of a tile.
const TILE: [usize; 2] = [128, 256];
/// Rows that are multiplied at once, and columns.
const STEP: usize = 16;
/// Elements of the depth of a step of a main loop, and where one of its factors is TF32.
const DEPTH: usize = 32;
const DEPTH_TF32: usize = 16;

const BF16: [DType; 2] = [DType::Bf16; 2];

/// Sizes rounded up to whole steps, and added.
fn padded(counts: &[usize], step: usize) -> usize {
    counts.iter().map(|count| count.next_multiple_of(step)).sum()
}

/// Rows of `experts` experts when `rows` rows fall on them at random.
pub fn random_counts(experts: usize, rows: usize) -> Vec<usize> {
    let mut counts = vec![0; experts];
    let mut state = 7u64;
    for _ in 0..rows {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        counts[(state >> 33) as usize % experts] += 1;
    }
    counts
}

/// Rows of fine-256 at mean k 3 (T 16384, E 256), and of marin (T 8192, k 2, E 8).
fn fine_and_marin() -> [Vec<usize>; 2] {
    [random_counts(256, 16384 * 3), random_counts(8, 8192 * 2)]
}

const UNEVEN: [usize; 9] = [1, 127, 0, 128, 129, 0, 0, 300, 17];

/// Asks a scheduler which of `places` it hands out, how often each.
fn handed_out(kernel: &str, counts: &[usize], sizes: &[usize], places: usize, [blocks, seed]: [usize; 2]) -> Vec<i32> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/schedule.cu");
    let device = Device::new(compile(&compiler(&file)), Schedule::from_seed(seed as u64));
    let offsets = offsets(counts);
    let (rows, experts) = (offsets[counts.len()], counts.len() as i32);
    let covered = zeros(&device, "covered", places * 4);
    let mut parameters = vec![integers(&device, "offsets", &offsets).to_ne_bytes().to_vec()];
    let sizes = [rows, experts].into_iter().chain(sizes.iter().map(|size| *size as i32));
    parameters.extend(sizes.map(|size| size.to_ne_bytes().to_vec()));
    parameters.push(covered.to_ne_bytes().to_vec());
    let parameters: Vec<&[u8]> = parameters.iter().map(Vec::as_slice).collect();
    device.launch_bytes(kernel, [blocks as u32, 1, 1], [32, 1, 1], 0, &parameters).unwrap();
    let mut bytes = vec![0; places * 4];
    device.download(covered, &mut bytes).unwrap();
    bytes.as_chunks().0.iter().map(|count| i32::from_ne_bytes(*count)).collect()
}

#[test]
fn every_row_is_in_one_tile_whatever_the_skew() {
    let mut one_of_many = vec![0; 512];
    one_of_many[300] = 1000;
    let [fine, marin] = fine_and_marin();
    for counts in [&UNEVEN[..], &one_of_many, &[0; 512], &[1; 512], &fine, &marin] {
        let rows: usize = counts.iter().sum();
        for (seed, blocks) in [1, 2, 3, 7, 64].into_iter().enumerate() {
            let columns = [1, 256, 257, 800][seed % 4];
            let covered = handed_out("schedule", counts, &[columns], rows * columns.div_ceil(TILE[1]), [blocks, seed]);
            assert!(covered.iter().all(|count| *count == 1), "{columns} columns, {blocks} blocks");
        }
    }
}

#[test]
fn every_tile_of_a_gradient_has_one_block() {
    for (seed, [left, right]) in [[129usize, 400], [128, 128], [128, 512]].into_iter().enumerate() {
        let tiles = UNEVEN.len() * left.div_ceil(TILE[0]) * right.div_ceil(TILE[1]);
        let covered = handed_out("weight_schedule", &UNEVEN, &[left, right], tiles, [tiles, seed]);
        assert!(covered.iter().all(|count| *count == 1), "{left} by {right}");
    }
}

/// What was asked for.
fn work(done: Done) -> Work {
    done.device.work()
}

/// Rows that tensor cores multiply for these, when no column and no depth is padded.
fn multiplied_rows(module: &Arc<Module>, counts: &[usize]) -> usize {
    work(product(module, Asked::of(DType::Bf16), counts, [DEPTH, STEP])).multiply_adds as usize / (DEPTH * STEP)
}

#[test]
fn padding_stays_within_the_goals() {
    let module = compile(&kernels("experts/portable/grouped_gemm.cu"));
    let [fine, marin] = fine_and_marin();
    for (name, counts, goal, found) in [("fine-256", fine, 1.15, 1.06), ("marin", marin, 1.05, 1.01)] {
        let rows = counts.iter().sum::<usize>() as f64;
        let multiplied = multiplied_rows(&module, &counts);
        assert_eq!(multiplied, padded(&counts, STEP), "{name}: half a step an expert is lost");
        assert!(multiplied as f64 <= goal * rows, "{name} multiplies {multiplied} rows for {rows}");
        assert!(multiplied as f64 <= found * rows, "{name} multiplies {multiplied} rows for {rows}, more than it did");
    }
}

#[test]
fn tensor_cores_multiply_whole_steps_of_what_is_there() {
    let module = compile(&kernels("experts/portable/grouped_gemm.cu"));
    assert_eq!(multiplied_rows(&module, &UNEVEN), 16 + 128 + 128 + 144 + 304 + 32);
    assert_eq!(multiplied_rows(&module, &[0; 70]), 0);
    for [depth, columns] in [[8, 1], [40, 24], [64, 272]] {
        let work = work(product(&module, Asked::of(DType::Bf16), &UNEVEN, [depth, columns]));
        let area = columns.next_multiple_of(STEP) * depth.next_multiple_of(DEPTH);
        assert_eq!(work.multiply_adds as usize, padded(&UNEVEN, STEP) * area, "{columns} columns, {depth} deep");
    }
}

const F32_SIZES: [[usize; 2]; 4] = [[16, 8], [17, 8], [16, 64], [33, 200]];

/// Nothing counts f32's multiplications, but they read their factors from shared memory.
fn f32_read(module: &Arc<Module>, sizes: [usize; 2]) -> usize {
    work(product(module, Asked::of(DType::F32), &UNEVEN, sizes)).shared_read_bytes as usize
}

/// What has to be read for [`UNEVEN`] rows, a depth and columns. A warp has 16 rows and 32 columns of each half of a tile's
/// 128, and of either those with something in them; 16 bytes a lane are its factors of one of them. On their way out
/// products are read once, in chunks of eight.
fn f32_needed([depth, columns]: [usize; 2]) -> usize {
    let halves = |vectors: usize, first: usize| [first, first + 64].iter().filter(|first| **first < vectors).count();
    let tiles = |vectors: usize| (0..vectors).step_by(128).map(move |first| (vectors - first).min(128));
    let of_tile = |rows: usize, columns: usize| -> usize {
        let warps = (0..4).flat_map(|row| (0..2).map(move |column| [row * 16, column * 32]));
        let factors = warps.map(|[row, column]| [halves(rows, row), halves(columns, column)]);
        factors.filter(|both| !both.contains(&0)).map(|[rows, columns]| rows + columns).sum()
    };
    let factors: usize = UNEVEN
        .iter()
        .flat_map(|rows| tiles(*rows))
        .flat_map(|rows| tiles(columns).map(move |columns| of_tile(rows, columns)))
        .sum();
    factors * depth * 32 * 16 + UNEVEN.iter().sum::<usize>() * columns.div_ceil(8) * 32
}

#[test]
fn f32_multiplies_what_is_there_and_no_padded_depth() {
    let module = compile(&kernels("experts/portable/grouped_gemm.cu"));
    for sizes in F32_SIZES {
        assert_eq!(f32_read(&module, sizes), f32_needed(sizes), "{sizes:?}");
    }
}

#[test]
fn gradients_cost_their_experts_rows() {
    let module = compile(&kernels("experts/portable/weight_gradient.cu"));
    // Whole steps of 32 rows, or 16; nothing for experts without any.
    let area = 129usize.next_multiple_of(STEP) * 400;
    let uneven = [1, 31, 0, 32, 33, 0, 300];
    let multiplied =
        |types, counts: &[usize], sides| work(gradient(&module, false, types, counts, sides)).multiply_adds as usize;
    for (types, step) in [(BF16, DEPTH), ([DType::F32, DType::F16], DEPTH_TF32), ([DType::F16, DType::F32], DEPTH_TF32)]
    {
        assert_eq!(multiplied(types, &uneven, [129, 400]), padded(&uneven, step) * area, "{types:?}");
    }
    for (counts, goal) in fine_and_marin().into_iter().zip([1.15, 1.01]) {
        let multiplied = multiplied(BF16, &counts, [STEP, STEP]) / (STEP * STEP);
        assert_eq!(multiplied, padded(&counts, DEPTH));
        assert!(multiplied as f64 <= goal * counts.iter().sum::<usize>() as f64, "{multiplied}");
    }
}

/// Rows that a block of a walk keeps, those of one of its warps, and the columns that they meet at a time.
const OWN: usize = 128;
const WARP: usize = 32;
const WALK: usize = 64;
/// Elements of a query or key.
const WIDTH: usize = 64;

/// Which rows see which columns.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mask {
    None,
    /// Rows are keys: those that a query sees are no later than itself.
    CausalKeys,
    CausalQueries,
}

/// What a walk over sequences of these lengths asks for.
fn walk(module: &Arc<Module>, mask: Mask, lengths: &[usize]) -> Work {
    let device = Device::new(module.clone(), Schedule::from_seed(lengths.len() as u64));
    let (offsets, tokens) = (offsets(lengths), lengths.iter().sum::<usize>());
    let received = mask == Mask::CausalKeys;
    let p = abi::ImportanceQueryKey {
        q: without_provenance(zeros(&device, "q", tokens * WIDTH * 2) as usize),
        k: without_provenance(zeros(&device, "k", tokens * WIDTH * 2) as usize),
        q_token_stride: WIDTH as i64,
        k_token_stride: WIDTH as i64,
        lse: without_provenance(zeros(&device, "lse", tokens * 4) as usize),
        cu_seqlens: without_provenance(integers(&device, "cu_seqlens", &offsets) as usize),
        values: without_provenance_mut(zeros(&device, "values", tokens * 4) as usize),
        tokens: tokens as i32,
        sequences: lengths.len() as i32,
        width: WIDTH as i32,
        heads_per_key: 1,
        measure: if received { abi::MEASURE_RECEIVED_SUM } else { abi::MEASURE_GIVEN_ENTROPY },
        causal: i32::from(mask != Mask::None),
        scale: 1.0,
        wide: 1,
        ..Default::default()
    };
    let grid = [(tokens / OWN + lengths.len()) as u32, 1, 1];
    run(
        &device,
        &Launch { kernel: "importance_query_key_bf16_64", grid, threads: OWN as u32, shared: 0, cluster: 1 },
        p,
    );
    device.work()
}

/// Tiles of `rows` rows by [`WALK`] columns in which at least one row sees one column, by looking at every pair.
fn tiles_in_sight(mask: Mask, lengths: &[usize], rows: usize) -> usize {
    let sees = |row: usize, column: usize| match mask {
        Mask::None => true,
        Mask::CausalKeys => row <= column,
        Mask::CausalQueries => column <= row,
    };
    let of_sequence = |length: usize| {
        let tiles =
            (0..length).step_by(rows).flat_map(|row| (0..length).step_by(WALK).map(move |column| (row, column)));
        let seen = |&(row, column): &(usize, usize)| {
            (row..length.min(row + rows)).any(|row| (column..length.min(column + WALK)).any(|column| sees(row, column)))
        };
        tiles.filter(seen).count()
    };
    lengths.iter().map(|&length| of_sequence(length)).sum()
}

/// No more than is in sight: a block copies its rows once, and of the columns the tiles that one of its rows sees; a warp
/// multiplies the tiles that one of its own rows sees.
fn least_walk(mask: Mask, lengths: &[usize]) -> Work {
    let columns = tiles_in_sight(mask, lengths, OWN) * WALK;
    Work {
        multiply_adds: (tiles_in_sight(mask, lengths, WARP) * WARP * WALK * WIDTH) as u64,
        copied_bytes: ((padded(lengths, WARP) + columns) * WIDTH * 2) as u64,
        shared_read_bytes: 0,
    }
}

/// All but what is read of shared memory.
fn walked(module: &Arc<Module>, mask: Mask, lengths: &[usize]) -> Work {
    Work { shared_read_bytes: 0, ..walk(module, mask, lengths) }
}

const LENGTHS: [&[usize]; 6] = [&[1], &[640], &[64, 128], &[300, 0, 33], &[129, 1, 193], &[512, 65]];

#[test]
fn what_a_causal_mask_hides_is_neither_copied_nor_multiplied() {
    let module = compile(&kernels("importance/importance_attention.cu"));
    for mask in [Mask::None, Mask::CausalKeys, Mask::CausalQueries] {
        for lengths in LENGTHS {
            assert_eq!(walked(&module, mask, lengths), least_walk(mask, lengths), "{mask:?}, {lengths:?}");
        }
    }
    // Little more than half of a long sequence.
    let [all, half] = [Mask::None, Mask::CausalKeys].map(|mask| least_walk(mask, &[640]));
    assert!(half.multiply_adds * 20 <= all.multiply_adds * 11 && half.copied_bytes * 10 <= all.copied_bytes * 7);
}

/// Changes to the kernels that leave their results right and cost time.
#[test]
fn waste_is_found() {
    let attention = [
        ["sequence_tile.cuh", "keeps_keys(p) ? Span{place.row, place.length}", "keeps_keys(p) ? Span{0, place.length}"],
        ["sequence_tile.cuh", "Span{0, min(place.row + OWN, place.length)}", "Span{0, place.length}"],
        ["walk.cuh", "last_column < row ? Sight::None : column < last_row", "column < last_row"],
        ["walk.cuh", "column > last_row ? Sight::None : last_column > row", "last_column > row"],
    ];
    for [file, from, to] in attention {
        let walks = kernels("importance/importance_attention.cu");
        let module = mutant(&walks, [&format!("attention/{file}"), from, to], "importance_query_key_bf16_64");
        let masks = [Mask::CausalKeys, Mask::CausalQueries];
        assert!(masks.iter().any(|mask| walked(&module, *mask, &[300]) != least_walk(*mask, &[300])), "{to}");
    }
    for [from, to] in [["(first + APART < vectors ? 1 : 0)", "1"], ["min(depth - step, STEP));", "STEP);"]] {
        let products = kernels("experts/portable/grouped_gemm.cu");
        let module = mutant(&products, ["experts/f32/f32_loop.cuh", from, to], "grouped_gemm_f32_plain");
        assert!(F32_SIZES.iter().any(|sizes| f32_read(&module, *sizes) != f32_needed(*sizes)), "{to} for {from}");
    }
    let gradients = kernels("experts/portable/weight_gradient.cu");
    let area = STEP * STEP;
    let multiplied =
        |module: &Arc<Module>| work(gradient(module, false, BF16, &[40], [STEP, STEP])).multiply_adds as usize;
    assert_eq!(multiplied(&compile(&gradients)), 64 * area);
    for (file, from, to, times) in [
        ("mma_loop.cuh", "if (i < rows_) {", "if (rows_ > 0) {", 4),
        ("mma_loop.cuh", "if (j < columns_) {", "if (columns_ > 0) {", 3),
        ("mma_operands.cuh", "- warp + WARPS - 1) / WARPS", "+ WARPS - 1) / WARPS", 8),
    ] {
        let wasteful = mutant(&gradients, [file, from, to], "grouped_gemm_bf16_tn");
        assert_eq!(multiplied(&wasteful), times * 64 * area, "{to}");
    }
}
