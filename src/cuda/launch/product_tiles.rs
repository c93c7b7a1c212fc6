//! What tiles of products cost the multiprocessors that have them: bytes that come from L2 or go there, wavefronts of shared
//! memory, instructions that are issued. Counted as the kernels are written (`kernels/experts/portable`, `kernels/experts/f32`); tests hold the wavefronts
//! against the emulator and the instructions against the machine code.

use crate::cuda::abi;
use crate::cuda::cost::{Unit, hopper};

/// Threads of a warp.
const WARP: f64 = 32.0;
/// Bytes that shared memory gives or takes in a wavefront.
const WAVEFRONT: f64 = 128.0;
/// Rows, and columns, of a fragment of the tensor cores.
const FRAGMENT: usize = 16;
/// Bytes of the depth that are copied, and multiplied in two halves, at a time.
const STEP_BYTES: usize = 64;
/// Warps that divide a tile's rows, and its columns.
const WARPS: [usize; 2] = [2, 4];
/// Fragments of rows that one warp has at most, and of columns.
const FRAGMENTS: usize = 4;
/// Elements of the depth that a product in f32 takes at a time.
const STEP: usize = 16;
/// Rows and columns of a warp in each half of a tile of f32.
const F32_WARP: [usize; 2] = [16, 32];

/// Instructions of a warp in a step beside those that load fragments and multiply them, at most: copies, addresses, jumps.
const STEP_OVERHEAD: usize = 190;
/// Instructions of a warp for an element of the depth in f32 beside reads and products.
const F32_OVERHEAD: usize = 8;

/// Blocks that divide a unit of a Hopper product.
const HOPPER_BLOCKS: f64 = 2.0;
/// Instructions of the warps of a block that bring a step of rows, and of a warpgroup that multiplies it, at most. Not counted yet: warps that
/// bring a step of a weight's gradient have up to 230 each, and multiply it with up to 95.
const HOPPER_BRINGING: f64 = 4.0 * 120.0;
const HOPPER_MULTIPLYING: f64 = 4.0 * 80.0;

/// Tiles of one shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tiles {
    pub count: f64,
    pub rows: usize,
    pub columns: usize,
}

/// Of some tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct TileWork {
    /// Factors alone.
    pub l2_bytes: f64,
    pub wavefronts: f64,
    pub instructions: f64,
}

/// How an operand of a product comes from shared memory, where that is of tensor cores: its fragments for a half of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Operand {
    /// Bytes of an element.
    pub size: f64,
    /// Fragments that a warp loads at once: four matrices of 128 bytes.
    at_once: usize,
    /// Instructions for that, and for each fragment that is multiplied.
    load: usize,
    widen: usize,
}

impl Operand {
    /// A word of each element, where `ldmatrix` cannot turn it.
    pub const WORDS: Self = Self { load: 4, ..Self::by_matrices(4.0) };
    /// Half of the bytes of what it is multiplied with: two fragments at once, whose four words a lane are eight values.
    pub const WIDENED: Self = Self { at_once: 2, widen: 4, ..Self::by_matrices(2.0) };

    /// A fragment by an `ldmatrix`.
    pub const fn by_matrices(size: f64) -> Self {
        Self { size, at_once: 1, load: 1, widen: 0 }
    }

    /// Loads for so many fragments of one warp.
    fn loads(self, fragments: usize) -> usize {
        fragments.div_ceil(self.at_once)
    }
}

/// `operands` are the rows and the columns.
pub(super) fn tile_work(
    unit: Unit,
    tiles: impl IntoIterator<Item = Tiles>,
    depth: f64,
    operands: [Operand; 2],
) -> TileWork {
    let sizes = operands.map(|operand| operand.size);
    tiles.into_iter().fold(TileWork::default(), |sum, tiles| {
        let [wavefronts, instructions] = match unit {
            Unit::Wgmma16 => by_wgmma(tiles, depth),
            Unit::Scalar => in_f32(tiles, depth),
            Unit::Tensor16 | Unit::Tensor32 => on_tensor_cores(tiles, depth, operands),
        };
        let factors = depth * (tiles.rows as f64 * sizes[0] + tiles.columns as f64 * sizes[1]);
        TileWork {
            l2_bytes: sum.l2_bytes + tiles.count * factors,
            wavefronts: sum.wavefronts + tiles.count * wavefronts,
            instructions: sum.instructions + tiles.count * instructions,
        }
    })
}

/// Tiles of a matrix, by the size of its own.
pub(super) fn tiles_of(count: f64, [rows, columns]: [usize; 2], [height, width]: [usize; 2]) -> Vec<Tiles> {
    let sides = |all: usize, tile: usize| [(all / tile, tile), (usize::from(!all.is_multiple_of(tile)), all % tile)];
    let mut tiles = Vec::new();
    for (high, rows) in sides(rows, height) {
        for (wide, columns) in sides(columns, width) {
            tiles.push(Tiles { count: count * (high * wide) as f64, rows, columns });
        }
    }
    tiles.retain(|tiles| tiles.count > 0.0);
    tiles
}

/// Wavefronts and instructions of both blocks of a cluster that have a unit.
fn by_wgmma(tiles: Tiles, depth: f64) -> [f64; 2] {
    let steps = (depth / hopper::STEP as f64).ceil();
    let warpgroups = tiles.rows.div_ceil(hopper::WARPGROUP_ROWS) as f64;
    let wavefronts = HOPPER_BLOCKS * hopper::SHARED + warpgroups * hopper::SHARED_OF_WARPGROUP;
    let instructions = HOPPER_BLOCKS * HOPPER_BRINGING + warpgroups * HOPPER_MULTIPLYING;
    [steps * wavefronts, steps * instructions]
}

/// Wavefronts and instructions of one tile.
fn on_tensor_cores(tiles: Tiles, depth: f64, [a, b]: [Operand; 2]) -> [f64; 2] {
    let step = STEP_BYTES as f64 / a.size.max(b.size);
    let steps = (depth / step).ceil();
    let of_warp = |vectors: usize, warp: usize, warps: usize| {
        ((vectors.div_ceil(FRAGMENT) + warps - 1 - warp) / warps).min(FRAGMENTS)
    };
    let (mut loads, mut first_loads, mut instructions) = (0.0, 0.0, 0.0);
    for row_warp in 0..WARPS[0] {
        for column_warp in 0..WARPS[1] {
            let rows = of_warp(tiles.rows, row_warp, WARPS[0]);
            let columns = of_warp(tiles.columns, column_warp, WARPS[1]);
            let is_ahead = columns == FRAGMENTS;
            // Of rows and of columns, and how often rows' fragments are multiplied from memory.
            let (of_rows, of_columns, times) = match (rows, is_ahead) {
                (0, true) => (0, 0, 0),
                (_, true) => (a.loads(rows), b.loads(FRAGMENTS), 1),
                _ => (columns * a.loads(rows), b.loads(columns), columns),
            };
            first_loads += if is_ahead { (a.loads(FRAGMENTS) + b.loads(FRAGMENTS)) as f64 } else { 0.0 };
            loads += 2.0 * (of_rows + of_columns) as f64;
            let widened = times * rows * a.widen + if times == 0 { 0 } else { columns * b.widen };
            // A fragment of columns is two products'.
            let of_half = 2 * rows * columns + of_rows * a.load + of_columns * b.load + widened;
            instructions += (2 * of_half + STEP_OVERHEAD) as f64;
        }
    }
    let sides = [abi::GEMM_TILE_ROWS, abi::GEMM_TILE_COLUMNS].map(f64::from);
    let copied = (sides[0] * a.size + sides[1] * b.size) * step / WAVEFRONT;
    // Four matrices of 128 bytes.
    let factors = steps * (copied + 4.0 * loads) + 4.0 * first_loads;
    let half = tiles.rows.div_ceil(abi::GEMM_TILE_ROWS as usize / 2) as f64 / 2.0;
    let leave = half * sides[0] * sides[1] + tiles.rows as f64 * tiles.columns.next_multiple_of(8) as f64;
    [factors + leave * 4.0 / WAVEFRONT, steps * instructions]
}

/// As above in f32.
fn in_f32(tiles: Tiles, depth: f64) -> [f64; 2] {
    let side = abi::GEMM_F32_TILE as usize;
    let halves = |vectors: usize, first: usize| usize::from(first < vectors) + usize::from(first + side / 2 < vectors);
    let (mut reads, mut instructions) = (0.0, 0.0);
    for row in (0..side / 2).step_by(F32_WARP[0]) {
        for column in (0..side / 2).step_by(F32_WARP[1]) {
            let [rows, columns] = [halves(tiles.rows, row), halves(tiles.columns, column)];
            if rows > 0 && columns > 0 {
                reads += (rows + columns) as f64;
                instructions += (rows * columns * 16 + rows + columns + F32_OVERHEAD) as f64;
            }
        }
    }
    // 16 bytes a lane for either; copies are 4 bytes an element.
    let steps = (depth / STEP as f64).ceil();
    let copied = steps * (2 * side * STEP) as f64 * 4.0 / WAVEFRONT;
    let half = tiles.rows.div_ceil(side / 2) as f64 / 2.0;
    let leave = half * (side * side) as f64 + (tiles.rows * tiles.columns.next_multiple_of(8)) as f64;
    [depth * reads * 16.0 * WARP / WAVEFRONT + copied + leave * 4.0 / WAVEFRONT, depth * instructions]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_a_matrix() {
        let tiles = tiles_of(3.0, [300, 520], [128, 256]);
        let area: f64 = tiles.iter().map(|tiles| tiles.count * (tiles.rows * tiles.columns) as f64).sum();
        assert_eq!(area, 3.0 * 300.0 * 520.0);
        assert_eq!(tiles.iter().map(|tiles| tiles.count).sum::<f64>(), 3.0 * 3.0 * 3.0);
        assert_eq!(tiles_of(1.0, [0, 256], [128, 256]), []);
    }

    /// 62% of 2048 multiply-adds a clock, or of 1024 in TF32, leave a step of a whole tile 826 clocks; shared memory needs 704 of
    /// them, 512 or 544 beside f16 in TF32, and the four schedulers, which issue an instruction a clock each, fewer.
    #[test]
    fn products_are_what_a_whole_tile_waits_for() {
        let whole = Tiles { count: 1.0, rows: 128, columns: 256 };
        let products = f64::from(128 * 256 * 32) / (0.62 * 2048.0);
        let (halves, tf32) = (Operand::by_matrices(2.0), Operand::by_matrices(4.0));
        for (operands, depth, wavefronts) in [
            ([halves; 2], 32.0, 704.0),
            ([tf32, Operand::WIDENED], 16.0, 512.0),
            ([Operand::WORDS, Operand::WIDENED], 16.0, 512.0),
            ([Operand::WIDENED, Operand::WORDS], 16.0, 544.0),
        ] {
            let step = |of: usize| {
                let [deep, shallow] = [20.0, 10.0].map(|steps| on_tensor_cores(whole, steps * depth, operands)[of]);
                (deep - shallow) / 10.0
            };
            assert_eq!(step(0), wavefronts);
            assert!(step(0) < products && step(1) / 4.0 < products, "{} {} {products}", step(0), step(1) / 4.0);
        }
        let whole = Tiles { count: 1.0, rows: 128, columns: 128 };
        let [deep, shallow] = [512.0, 256.0].map(|depth| in_f32(whole, depth));
        let clocks = 256.0 * 128.0;
        // 128 lanes multiply.
        assert!((deep[0] - shallow[0]) / clocks < 1.1 && (deep[1] - shallow[1]) / 4.0 / clocks < 1.25);
    }
}
