//! Fragments in the registers of a warp: mma.sync, ldmatrix and stmatrix.

use da_moe_emulator::Device;
use half::bf16;

use super::{agrees, launch, misread, registers, same};
use crate::common::{download, input, output, parameter};

/// A product of mma.sync: how many elements of A and B are in a word, and the table's name.
struct Mma {
    name: &'static str,
    k: usize,
    packed: usize,
}

/// One product, by element: A, B and C, and what the sum of A · B and C is.
struct Product {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    expected: Vec<f32>,
}

const M: usize = 16;
const N: usize = 8;

impl Mma {
    /// One product for each element of A and of B that alone is 1 where the others tell which of them it meets, and one of
    /// nothing, whose sum is C.
    fn products(&self) -> Vec<Product> {
        let k = self.k;
        let one = |count: usize, one: usize| (0..count).map(|place| f32::from(u8::from(place == one))).collect();
        let places = |count: usize| (1..=count).map(|place| place as f32).collect::<Vec<_>>();
        let product = |a: Vec<f32>, b: Vec<f32>, c: Vec<f32>| {
            let dot = |at: usize| (0..k).map(|i| a[at / N * k + i] * b[i * N + at % N]).sum::<f32>();
            let expected = (0..M * N).map(|at| dot(at) + c[at]).collect();
            Product { a, b, c, expected }
        };
        let of_a = (0..M * k).map(|at| product(one(M * k, at), places(k * N), vec![0.0; M * N]));
        let of_b = (0..k * N).map(|at| product(places(M * k), one(k * N, at), vec![0.0; M * N]));
        let of_c = product(vec![0.0; M * k], vec![0.0; k * N], places(M * N));
        of_a.chain(of_b).chain([of_c]).collect()
    }

    fn table(&self, operand: &str) -> Vec<Vec<usize>> {
        registers(&format!("{}_{operand}", self.name))
    }

    /// The words of all lanes.
    fn words(&self, product: &Product, [a, b, c]: &[Vec<Vec<usize>>; 3]) -> Vec<u32> {
        let packed = |values: &[f32]| match values {
            [value] => value.to_bits(),
            [low, high] => {
                let bits = |x: &f32| u32::from(bf16::from_f32(*x).to_bits());
                bits(low) | bits(high) << 16
            }
            _ => unreachable!("one or two elements in a word"),
        };
        let mut words = Vec::new();
        for lane in 0..32 {
            for (places, elements) in [(&a[lane], &product.a), (&b[lane], &product.b)] {
                let values: Vec<_> = places.iter().map(|&place| elements[place]).collect();
                words.extend(values.chunks(self.packed).map(packed));
            }
            words.extend(c[lane].iter().map(|&place| product.c[place].to_bits()));
        }
        words
    }

    fn check(&self, device: &Device) -> Result<(), String> {
        let products = self.products();
        let tables = ["a", "b", "c"].map(|operand| self.table(operand));
        let words: Vec<_> = products.iter().flat_map(|product| self.words(product, &tables)).collect();
        let at = input(device, "words", &words);
        let out = output::<f32>(device, "products", products.len() * M * N);
        let tf32 = i32::from(self.packed == 1);
        let parameters = [parameter(&at), parameter(&out), parameter(&tf32)];
        launch(device, "layout_mma", products.len() as u32, 32, 0, &parameters);
        let found = download::<f32>(device, out, products.len() * M * N);
        let places = tables[2].concat();
        for (number, (product, found)) in products.iter().zip(found.chunks(M * N)).enumerate() {
            for (&value, &place) in found.iter().zip(&places) {
                same(value, product.expected[place], || format!("{}: product {number}, place {place}", self.name))?;
            }
        }
        Ok(())
    }
}

fn of_16_bits(device: &Device) -> Result<(), String> {
    Mma { name: "mma_m16n8k16", k: 16, packed: 2 }.check(device)
}

fn of_tf32(device: &Device) -> Result<(), String> {
    Mma { name: "mma_m16n8k8_tf32", k: 8, packed: 1 }.check(device)
}

/// Matrices of an instruction, whether they are transposed, and the places of the halves of a lane's words.
fn moves(instruction: &str) -> impl Iterator<Item = (i32, i32, String, Vec<Vec<usize>>)> {
    [1, 2, 4].into_iter().flat_map(move |matrices| {
        [0, 1].map(|transposed| {
            let name = format!("{instruction}_x{matrices}{}", ["", "_trans"][transposed as usize]);
            let places = registers(&name);
            assert!(places.iter().all(|halves| halves.len() == 2 * matrices as usize));
            (matrices, transposed, name, places)
        })
    })
}

/// Where the row of shared memory is that a lane gives the address of.
fn row_of(lane: usize) -> usize {
    lane * 7 % 32
}

fn loads(device: &Device) -> Result<(), String> {
    let mut rows = vec![0u16; 32 * 8];
    for place in 0..32 * 8 {
        rows[row_of(place / 8) * 8 + place % 8] = place as u16;
    }
    let rows = input(device, "rows", &rows);
    for (matrices, transposed, name, places) in moves("ldmatrix") {
        let out = output::<u16>(device, "fragments", 32 * 8);
        let parameters = [parameter(&rows), parameter(&out), parameter(&matrices), parameter(&transposed)];
        launch(device, "layout_ldmatrix", 1, 32, 0, &parameters);
        let found = download::<u16>(device, out, 32 * 8);
        for (lane, places) in places.iter().enumerate() {
            for (half, &place) in places.iter().enumerate() {
                let found = usize::from(found[lane * 8 + half]);
                same(found, place, || format!("{name}: lane {lane}, half {half}"))?;
            }
        }
    }
    Ok(())
}

fn stores(device: &Device) -> Result<(), String> {
    let words = input(device, "words", &(1..=32 * 8).collect::<Vec<u16>>());
    for (matrices, transposed, name, places) in moves("stmatrix") {
        let out = output::<u16>(device, "rows", 32 * 8);
        let parameters = [parameter(&words), parameter(&out), parameter(&matrices), parameter(&transposed)];
        launch(device, "layout_stmatrix", 1, 32, 0, &parameters);
        let found = download::<u16>(device, out, 32 * 8);
        // Rows that no lane gives stay zero.
        let mut expected = vec![0; 32 * 8];
        for (lane, places) in places.iter().enumerate() {
            for (half, &place) in places.iter().enumerate() {
                expected[row_of(place / 8) * 8 + place % 8] = (lane * 8 + half + 1) as u16;
            }
        }
        same(found, expected, || name)?;
    }
    Ok(())
}

#[test]
fn fragments_of_mma() {
    agrees(of_16_bits);
    agrees(of_tf32);
}

#[test]
fn fragments_of_ldmatrix() {
    agrees(loads);
}

#[test]
fn fragments_of_stmatrix() {
    agrees(stores);
}

#[test]
fn misread_fragments_of_mma() {
    for check in [of_16_bits, of_tf32] {
        misread(check, "{own[0], own[1], own[2], own[3]}", "{own[0], own[2], own[1], own[3]}");
        misread(check, "{own[4], own[5]}", "{own[5], own[4]}");
        misread(check, "* 4 + i] = d[i];", "* 4 + i] = d[i ^ 2];");
    }
}

#[test]
fn misread_fragments_of_ldmatrix() {
    misread(loads, "transposed != 0", "transposed == 0");
    misread(loads, "+ i] = loaded[i];", "+ i] = loaded[i] >> 16 | loaded[i] << 16;");
}

#[test]
fn misread_fragments_of_stmatrix() {
    misread(stores, "transposed == 1", "transposed == 0");
    misread(stores, "{words[lane * 4], words[lane * 4 + 1]", "{words[lane * 4 + 1], words[lane * 4]");
}
