//! Boxes of rank 4 that make the operands of wgmma: where the accelerator puts elements is where descriptors find them.

use da_moe_emulator::{Device, TensorMapShape};

use super::tiles::{TILE_BYTES, Tile};
use super::{agrees, launch, misread, same};
use crate::common::{download, input, output, parameter};

/// Loads a tile of 256 by 64 in two boxes, from a matrix that is longer and wider than it, and the element of the matrix
/// at each place in the tile.
fn load(device: &Device, tile: &Tile) -> Vec<u16> {
    let elements: Vec<u16> = (0..WIDTH * HEIGHT).map(|i| i as u16).collect();
    let matrix = input(device, "matrix", &elements);
    let row_bytes = WIDTH as u64 * 2;
    // Rows of 64 elements of k, 128 at once; or as many tiles of 64 by 64 side by side, in each of which mn is contiguous.
    let (dims, strides, box_dims, second) = if tile.mn_major {
        ([64, 64, 4, 1, 1], [row_bytes, 128, 16, 0], [64, 64, 2, 1, 1], [0, 0, 2, 0])
    } else {
        ([64, 256, 1, 1, 1], [row_bytes, 16, 0, 0], [64, 128, 1, 1, 1], [0, 128, 0, 0])
    };
    let shape = TensorMapShape { rank: 4, element_bytes: 2, swizzle: 128, dims, strides, box_dims };
    let map = device.tensor_map(matrix, &shape).unwrap_or_else(|error| panic!("{error}"));
    let (second, bytes): ([i32; 4], _) = (second, TILE_BYTES as u32 / 2);
    let out = output::<u16>(device, "tile", TILE_BYTES / 2);
    let parameters = [parameter(&map), parameter(&second), parameter(&bytes), parameter(&out)];
    launch(device, "layout_tiles", 1, 32, TILE_BYTES as u32, &parameters);
    download(device, out, TILE_BYTES / 2)
}

const WIDTH: usize = 264;
const HEIGHT: usize = 256;

fn tiles(device: &Device) -> Result<(), String> {
    let tiles = Tile::all();
    for name in ["k 128 k_first", "k 128 mn_first", "mn 128 k_first"] {
        let tile = tiles.iter().find(|tile| tile.name == name).expect("a tile of that name");
        let found = load(device, tile);
        for mn in 0..256 {
            for k in 0..64 {
                let (row, column) = if tile.mn_major { (k, mn) } else { (mn, k) };
                let expected = (row * WIDTH + column) as u16;
                same(found[tile.place(mn, k) / 2], expected, || format!("{name}: element ({mn}, {k})"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn boxes_of_rank_4_are_operands() {
    agrees(tiles);
}

#[test]
fn misread_boxes_of_rank_4() {
    misread(tiles, "4, second.at", "4, first");
    misread(
        tiles,
        "out[i] = reinterpret_cast<const uint16_t*>(sm)[i];",
        "out[i] = reinterpret_cast<const uint16_t*>(sm)[i ^ 8];",
    );
}
