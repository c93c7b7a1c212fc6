//! Boxes of the tensor memory accelerator in shared memory.

use da_moe_emulator::{Device, TensorMapShape};

use super::{BOXES, agrees, launch, misread, numbers, same};
use crate::common::{download, input, output, parameter};

/// A line of the table: a box of 16-bit elements, and where its pieces of 16 bytes land.
struct TmaBox {
    swizzle: usize,
    width: usize,
    height: usize,
    target: usize,
    pieces: Vec<usize>,
}

impl TmaBox {
    fn all() -> Vec<Self> {
        let boxes: Vec<Self> = BOXES.lines().map(|line| Self::read(&numbers(line.split(',').skip(1)))).collect();
        assert!(!boxes.is_empty());
        boxes
    }

    fn read(fields: &[usize]) -> Self {
        let [swizzle, _, width, height, target] = fields[..5] else { panic!("{fields:?}") };
        assert_eq!(fields.len(), 5 + width * height / 8);
        Self { swizzle, width, height, target, pieces: fields[5..].to_vec() }
    }

    fn bytes(&self) -> usize {
        self.width * self.height * 2
    }

    /// Copies the box from six places of a matrix that is about twice as large: inside, past each edge, and past all of it.
    fn check(&self, device: &Device) -> Result<(), String> {
        let (inner, outer) = (2 * self.width - 3, 2 * self.height - 1);
        let row = inner.next_multiple_of(8);
        let elements: Vec<u16> = (0..row * outer).map(|i| i as u16 + 1).collect();
        let matrix = input(device, "matrix", &elements);
        let (box_dims, row_bytes) = ([self.width as u32, self.height as u32], row as u64 * 2);
        let shape = TensorMapShape::matrix(2, self.swizzle as u32, inner as u64, outer as u64, row_bytes, box_dims);
        let map = device.tensor_map(matrix, &shape).unwrap_or_else(|error| panic!("{error}"));
        let (width, height) = (self.width as i32, self.height as i32);
        for (x, y) in [(0, 0), (3, 2), (width, height), (-5, -1), (inner as i32, 0), (0, -height)] {
            let out = output::<u16>(device, "box", self.bytes() / 2);
            let (target, size) = (self.target as u32, self.bytes() as u32);
            let parameters =
                [parameter(&map), parameter(&x), parameter(&y), parameter(&target), parameter(&size), parameter(&out)];
            launch(device, "layout_tma", 1, 32, target + size, &parameters);
            let found = download::<u16>(device, out, self.bytes() / 2);
            device.free(out).expect("an allocation");
            for (piece, address) in self.pieces.iter().enumerate() {
                for e in 0..8 {
                    let column = i64::from(x) + (piece % (self.width / 8) * 8 + e) as i64;
                    let row_of = i64::from(y) + (piece / (self.width / 8)) as i64;
                    let inside = (0..inner as i64).contains(&column) && (0..outer as i64).contains(&row_of);
                    let expected = if inside { elements[row_of as usize * row + column as usize] } else { 0 };
                    same(found[address * 8 + e - self.target / 2], expected, || {
                        let Self { swizzle, width, height, target, .. } = self;
                        let of = format!("{width} by {height} to {target}, swizzle {swizzle}, from ({x}, {y})");
                        format!("box {of}: row {row_of}, column {column}")
                    })?;
                }
            }
        }
        device.free(matrix).expect("an allocation");
        Ok(())
    }
}

fn copies(device: &Device) -> Result<(), String> {
    TmaBox::all().iter().try_for_each(|one| one.check(device))
}

#[test]
fn boxes_of_the_tensor_memory_accelerator() {
    agrees(copies);
}

#[test]
fn misread_boxes() {
    // As if the swizzle, if it is one of 128 bytes, went by the place in the box; rows and columns exchanged.
    misread(copies, "out[i] = box[i];", "out[i] = box[(i ^ (target >> 7 & 7) << 3) % (bytes / 2)];");
    misread(copies, "full, x, y)", "full, y, x)");
}

/// The swizzle in a formula, which is right of every box, and its misreadings, each of which is wrong of some.
#[test]
fn formulas_of_the_swizzle() {
    // Bits 7 to 9 of an address are xored to bits 4 to 6: of a narrower swizzle the lower of them.
    let swizzle = |width: usize, bits: usize| (bits & (width / 16).saturating_sub(1)) << 4;
    let holds = |place: &dyn Fn(&TmaBox, usize) -> usize| {
        TmaBox::all()
            .iter()
            .all(|one| (0..one.pieces.len()).all(|piece| place(one, piece * 16) == one.pieces[piece] * 16))
    };
    let by = |bits: &dyn Fn(&TmaBox, usize, usize) -> usize| {
        holds(&|one, offset| {
            let address = one.target + offset;
            address ^ swizzle(one.swizzle, bits(one, offset, address))
        })
    };
    assert!(by(&|_, _, address| address >> 7));
    assert!(!by(&|_, offset, _| offset >> 7), "by the place in the box");
    assert!(!by(&|one, offset, _| offset / (one.width * 2)), "by the box's row");
    assert!(!by(&|_, _, address| address >> 6), "by bits 6 and on");
    assert!(!by(&|_, _, address| address >> 8), "by bits 8 and on");
    assert!(!by(&|_, _, address| 7 - (address >> 7 & 7)), "backwards");
    assert!(!by(&|_, _, _| 0), "not at all");
}
