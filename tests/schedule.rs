//! The work of the grouped products follows the rows, forward and back: counted from the schedulers that the kernels use, on
//! the shapes that the speed goals are stated for.

use da_moe::cuda::Emulated;
use da_moe_emulator::{Compiler, Device, Module, Schedule};
use std::path::Path;
use std::sync::{Arc, OnceLock};

const TILE_COLUMNS: usize = 128;

fn module() -> Arc<Module> {
    static MODULE: OnceLock<Arc<Module>> = OnceLock::new();
    let compile = || {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/schedule.cu");
        let cache = concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels");
        let module = Compiler::new(cache).include(Emulated::sources()).file(file).compile();
        module.unwrap_or_else(|error| panic!("{error}"))
    };
    MODULE.get_or_init(compile).clone()
}

/// Rows that tiles of one column pay for, when the experts have these numbers of rows; checks that every row of every
/// column is in exactly one tile.
fn paid_rows(counts: &[usize], columns: usize, blocks: u32, seed: u64) -> usize {
    let mut offsets = vec![0i32];
    counts.iter().for_each(|count| offsets.push(offsets[offsets.len() - 1] + *count as i32));
    let (rows, column_tiles) = (offsets[counts.len()] as usize, columns.div_ceil(TILE_COLUMNS));
    let device = Device::new(module(), Schedule::from_seed(seed));
    let place = |name, bytes: &[u8]| {
        let address = device.alloc(name, bytes.len()).unwrap();
        device.upload(address, bytes).unwrap();
        address
    };
    let offsets: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_ne_bytes()).collect();
    let mut covered = vec![0u8; rows * column_tiles * 4];
    let addresses = [place("offsets", &offsets), place("covered", &covered), place("paid", &[0; 8])];
    let [offsets, cover, paid] = addresses.map(u64::to_ne_bytes);
    let [rows, experts, columns] = [rows, counts.len(), columns].map(|size| (size as i32).to_ne_bytes());
    device
        .launch_bytes("schedule", [blocks, 1, 1], [32, 1, 1], 0, &[&offsets, &rows, &experts, &columns, &cover, &paid])
        .unwrap();
    device.download(addresses[1], &mut covered).unwrap();
    assert!(covered.chunks(4).all(|count| count == 1i32.to_ne_bytes()), "every row of every column in one tile");
    let mut paid = [0; 8];
    device.download(addresses[2], &mut paid).unwrap();
    u64::from_ne_bytes(paid) as usize / column_tiles
}

/// Rows that the tiles of gradients `[left, right]` pay for, for each tile of one expert's; checks that every tile of every
/// expert has one block.
fn paid_depth(counts: &[usize], [left, right]: [usize; 2], seed: u64) -> usize {
    let mut offsets = vec![0i32];
    counts.iter().for_each(|count| offsets.push(offsets[offsets.len() - 1] + *count as i32));
    let rows = offsets[counts.len()];
    let tiles = left.div_ceil(TILE_COLUMNS) * right.div_ceil(TILE_COLUMNS);
    let device = Device::new(module(), Schedule::from_seed(seed));
    let place = |name, bytes: &[u8]| {
        let address = device.alloc(name, bytes.len()).unwrap();
        device.upload(address, bytes).unwrap();
        address
    };
    let offsets: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_ne_bytes()).collect();
    let mut covered = vec![0u8; counts.len() * tiles * 4];
    let addresses = [place("offsets", &offsets), place("covered", &covered), place("paid", &[0; 8])];
    let [offsets, cover, paid] = addresses.map(u64::to_ne_bytes);
    let [rows, experts, m, n] = [rows, counts.len() as i32, left as i32, right as i32].map(i32::to_ne_bytes);
    let parameters: [&[u8]; 7] = [&offsets, &rows, &experts, &m, &n, &cover, &paid];
    let grid = [(counts.len() * tiles) as u32, 1, 1];
    device.launch_bytes("weight_schedule", grid, [32, 1, 1], 0, &parameters).unwrap();
    device.download(addresses[1], &mut covered).unwrap();
    assert!(covered.chunks(4).all(|count| count == 1i32.to_ne_bytes()), "every tile of every gradient in one block");
    let mut paid = [0; 8];
    device.download(addresses[2], &mut paid).unwrap();
    u64::from_ne_bytes(paid) as usize / tiles
}

/// Rows of `experts` experts when `rows` rows fall on them at random.
fn random_counts(experts: usize, rows: usize) -> Vec<usize> {
    let mut counts = vec![0; experts];
    let mut state = 7u64;
    for _ in 0..rows {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        counts[(state >> 33) as usize % experts] += 1;
    }
    counts
}

#[test]
fn every_row_is_in_one_tile_whatever_the_skew() {
    let uneven = [1, 127, 0, 128, 129, 0, 0, 300, 17];
    for (seed, blocks) in [1, 2, 3, 7, 64].into_iter().enumerate() {
        for columns in [1, 128, 129, 400] {
            assert_eq!(paid_rows(&uneven, columns, blocks, seed as u64), 16 + 128 + 128 + 144 + 304 + 32);
        }
    }
    let mut one_of_many = vec![0; 512];
    one_of_many[300] = 1000;
    assert_eq!(paid_rows(&one_of_many, 128, 3, 1), 1008);
    assert_eq!(paid_rows(&[0; 512], 128, 3, 2), 0);
    assert_eq!(paid_rows(&[1; 512], 128, 5, 3), 512 * 16);
}

#[test]
fn padding_stays_within_the_goals() {
    // fine-256: T 16384, mean k 3, E 256; marin: T 8192, k 2, E 8. One column of tiles stands for all.
    let (fine, marin) = (16384 * 3, 8192 * 2);
    let paid = paid_rows(&random_counts(256, fine), 128, 8, 1);
    assert!(paid as f64 <= 1.15 * fine as f64, "fine-256 pays for {paid} rows of {fine}");
    assert!((paid as f64) < 1.06 * fine as f64, "steps of 16 rows: half a step an expert is lost");
    let paid = paid_rows(&random_counts(8, marin), 128, 8, 2);
    assert!(paid as f64 <= 1.05 * marin as f64, "marin pays for {paid} rows of {marin}");
    assert!((paid as f64) < 1.01 * marin as f64, "two thousand rows an expert lose next to nothing");
}

#[test]
fn gradients_cost_their_experts_rows() {
    // Whole steps of 32 rows; nothing for the 511 experts without any.
    assert_eq!(paid_depth(&[1, 31, 0, 32, 33, 0, 300], [129, 400], 1), 32 + 32 + 32 + 64 + 320);
    let mut one_of_many = vec![0; 512];
    one_of_many[300] = 1000;
    assert_eq!(paid_depth(&one_of_many, [128, 128], 2), 1024);
    assert_eq!(paid_depth(&[0; 512], [128, 256], 3), 0);
    let (fine, marin) = (16384 * 3, 8192 * 2);
    let paid = paid_depth(&random_counts(256, fine), [128, 128], 4);
    assert!(paid as f64 <= 1.15 * fine as f64, "fine-256 pays for {paid} rows of {fine}");
    let paid = paid_depth(&random_counts(8, marin), [128, 128], 5);
    assert!(paid as f64 <= 1.01 * marin as f64, "marin pays for {paid} rows of {marin}");
}
