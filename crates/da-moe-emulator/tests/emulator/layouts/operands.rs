//! Operands of wgmma in shared memory, by their descriptors, A in registers, and accumulators.

use da_moe_emulator::{Device, Error, Kind, Schedule};

use super::tiles::{BEHIND, Block, Image, TILE_BYTES, Tile, Type};
use super::{FILE, agrees, misread, registers, same};
use crate::common::{compile, compiler, download, input, mutant, output, parameter};

/// One product of a warpgroup: D = A B.
struct Product {
    element: Type,
    /// In device memory: the image, and words of A or 0.
    image: u64,
    words: u64,
    descriptors: [u64; 2],
    transposed: [bool; 2],
    n: usize,
}

impl Product {
    /// By row and column, of 64 rows and `n` columns.
    fn run(&self, device: &Device, accumulators: &[Vec<usize>]) -> Result<Vec<f32>, Error> {
        let Self { element, image, words, descriptors: [a, b], n, .. } = self;
        let out = output::<f32>(device, "product", 64 * n);
        let (pieces, columns) = ((2 * TILE_BYTES / 16) as i32, *n as i32);
        let [transposed_a, transposed_b] = self.transposed.map(i32::from);
        let tf32 = i32::from(*element == Type::Tf32);
        let parameters = [
            parameter(image),
            parameter(&pieces),
            parameter(words),
            parameter(a),
            parameter(b),
            parameter(&columns),
            parameter(&transposed_a),
            parameter(&transposed_b),
            parameter(&tf32),
            parameter(&out),
        ];
        // SAFETY: an address, an int, an address, two descriptors, four ints and an address, as the kernel takes them.
        unsafe { device.launch("layout_wgmma", [1, 1, 1], [128, 1, 1], 2 * TILE_BYTES as u32, &parameters)? };
        let values = download::<f32>(device, out, 64 * n);
        device.free(out)?;
        let mut product = vec![f32::NAN; 64 * n];
        for (thread, places) in accumulators.iter().enumerate() {
            for (i, place) in places[..n / 2].iter().enumerate() {
                product[place / 256 * n + place % 256] = values[thread * (n / 2) + i];
            }
        }
        Ok(product)
    }
}

fn run(device: &Device, product: Product, accumulators: &[Vec<usize>]) -> Vec<f32> {
    product.run(device, accumulators).unwrap_or_else(|error| panic!("{error}"))
}

fn accumulators(device: &Device) -> Result<(), String> {
    let table = registers("wgmma_accumulators");
    let tile = Tile::plain();
    // 256 m + n, as the product of (m, 1) and (256, n).
    let mut image = Image::new(Type::F16);
    for m in 0..64 {
        image.put(tile.place(m, 0), m);
        image.put(tile.place(m, 1), 1);
    }
    for n in 0..256 {
        image.put(TILE_BYTES + tile.place(n, 0), 256);
        image.put(TILE_BYTES + tile.place(n, 1), n);
    }
    let image = input(device, "image", &image.0);
    for n in (8..=256).step_by(8) {
        let descriptors = [tile.start(true), tile.start(false) + BEHIND];
        let product = Product { element: Type::F16, image, words: 0, descriptors, transposed: [false; 2], n };
        for (at, value) in run(device, product, &table).into_iter().enumerate() {
            let expected = (at / n * 256 + at % n) as f32;
            same(value, expected, || format!("n = {n}, row {}, column {}", at / n, at % n))?;
        }
    }
    Ok(())
}

/// Every element of the tile says where it is, and the other operand is the unit matrix.
fn operands(device: &Device, element: Type, tiles: &[Tile]) -> Result<(), String> {
    let table = registers("wgmma_accumulators");
    let unit_tile = Tile::plain();
    let unit = |is_a| unit_tile.start(is_a) + BEHIND;
    let (bytes, depth) = (element.bytes(), element.depth());
    let mut image = Image::new(element);
    for at in 0..TILE_BYTES / bytes {
        image.put_bits(at * bytes, element.named(at));
    }
    image.put_unit(&unit_tile);
    let image = input(device, "image", &image.0);
    for tile in tiles {
        for block in &tile.blocks {
            let (descriptors, transposed, n) = if block.is_a {
                ([block.descriptor, unit(false)], [tile.mn_major, false], depth)
            } else {
                ([unit(true), block.descriptor], [false, tile.mn_major], block.rows)
            };
            let found = run(device, Product { element, image, words: 0, descriptors, transposed, n }, &table);
            for i in 0..block.rows {
                for k in 0..depth {
                    let at = if block.is_a { i * depth + k } else { k * block.rows + i };
                    let byte = element.name_of(found[at]).wrapping_mul(bytes);
                    same(byte, tile.place(block.mn + i, block.k + k * bytes / 2), || {
                        let Block { is_a, rows, mn, k: first, .. } = block;
                        let of = format!("of {rows} from ({mn}, {first}), as A: {is_a}");
                        format!("{} {of}: the byte of element ({i}, {k})", tile.name)
                    })?;
                }
            }
        }
    }
    Ok(())
}

fn operands_of_16_bits(device: &Device) -> Result<(), String> {
    operands(device, Type::F16, &Tile::all())
}

/// TF32 has no transposed operands.
fn operands_of_tf32(device: &Device) -> Result<(), String> {
    let tiles: Vec<_> = Tile::all().into_iter().filter(|tile| !tile.mn_major).collect();
    operands(device, Type::Tf32, &tiles)
}

/// A in registers, every element of it with its place, times the unit matrix.
fn a_in_registers(device: &Device, element: Type, table: &str) -> Result<(), String> {
    let (tile, depth) = (Tile::plain(), element.depth());
    let per_word = 4 / element.bytes();
    let words: Vec<u32> =
        registers(table).iter().flat_map(|places| places.chunks(per_word).map(|word| element.word(word))).collect();
    let mut image = Image::new(element);
    image.put_unit(&tile);
    let (image, words) = (input(device, "image", &image.0), input(device, "words", &words));
    let descriptors = [0, tile.start(false) + BEHIND];
    let product = Product { element, image, words, descriptors, transposed: [false; 2], n: depth };
    for (place, value) in run(device, product, &registers("wgmma_accumulators")).into_iter().enumerate() {
        same(value, place as f32, || format!("{table}: place {place}"))?;
    }
    Ok(())
}

fn a_of_16_bits(device: &Device) -> Result<(), String> {
    a_in_registers(device, Type::F16, "wgmma_a_16_bit")
}

fn a_of_tf32(device: &Device) -> Result<(), String> {
    a_in_registers(device, Type::Tf32, "wgmma_a_tf32")
}

#[test]
fn accumulators_of_wgmma() {
    agrees(accumulators);
}

#[test]
fn operands_of_wgmma() {
    agrees(operands_of_16_bits);
}

#[test]
fn operands_of_wgmma_of_tf32() {
    agrees(operands_of_tf32);
}

#[test]
fn a_of_wgmma_in_registers() {
    agrees(a_of_16_bits);
    agrees(a_of_tf32);
}

#[test]
fn misread_accumulators() {
    misread(accumulators, "* (n / 2) + i] = d[i];", "* (n / 2) + i] = d[i ^ 2];");
}

#[test]
fn misread_registers_of_a() {
    for check in [a_of_16_bits, a_of_tf32] {
        misread(check, "own[i] = words[t * 4 + i];", "own[i] = words[t * 4 + (i & 1) * 2 + i / 2];");
    }
    misread(a_of_16_bits, "own[i] = words[t * 4 + i];", "own[i] = words[t * 4 + i] << 16 | words[t * 4 + i] >> 16;");
}

/// Tiles of one kind, for misreadings of their descriptors.
fn some(device: &Device, name: &str) -> Result<(), String> {
    let tiles: Vec<_> = Tile::all().into_iter().filter(|tile| tile.name == name).collect();
    assert_eq!(tiles.len(), 1, "{name}");
    operands(device, Type::F16, &tiles)
}

#[test]
fn misread_operands() {
    let call = "{element, n, a + start, b + start, false, transposed_a != 0, transposed_b != 0}";
    let with = |operand: &str| {
        let of = |name: &str| operand.replace('_', name);
        format!("{{element, n, {} + start, {} + start, false, transposed_a != 0, transposed_b != 0}}", of("a"), of("b"))
    };
    let exchanged = with("((_ & ~0x3fff3fff0000ull) | (_ >> 16 & 0x3fff) << 32 | (_ >> 32 & 0x3fff) << 16)");
    // The two distances, where both count: without a swizzle, and where rows (columns) are contiguous.
    misread(|device| some(device, "k 0 k_first"), call, &exchanged);
    misread(|device| some(device, "mn 0 mn_first"), call, &exchanged);
    misread(|device| some(device, "mn 32 k_first"), call, &exchanged);
    // The swizzle of half the width, and none.
    let narrower = with("(_ + (1ull << 62))");
    misread(|device| some(device, "k 128 k_first"), call, &narrower);
    misread(|device| some(device, "mn 64 k_first"), call, &narrower);
    misread(|device| some(device, "k 32 mn_first"), call, &with("(_ & ~(3ull << 62))"));
}

/// What a product of these descriptors is reported as.
fn refused(descriptors: [u64; 2], transposed: [bool; 2], element: Type) -> String {
    let device = Device::new(compile(&compiler(FILE)), Schedule::from_seed(0));
    let image = input(&device, "image", &Image::new(element).0);
    let product = Product { element, image, words: 0, descriptors, transposed, n: 16 };
    let error = product.run(&device, &registers("wgmma_accumulators")).expect_err("the product is refused");
    let report = error.report().unwrap_or_else(|| panic!("{error}"));
    assert_eq!(report.kind, Kind::Async, "{report}");
    report.message.clone()
}

#[test]
fn descriptors_that_mean_nothing() {
    let tile = Tile::plain();
    let (a, b) = (tile.start(true), tile.start(false));
    for bit in [14, 15, 30, 31, 46, 48, 52, 61] {
        for descriptors in [[a | 1 << bit, b], [a, b | 1 << bit]] {
            let message = refused(descriptors, [false; 2], Type::F16);
            assert!(message.contains("bits that mean nothing"), "bit {bit}: {message}");
        }
    }
    for bit in [49, 51] {
        assert!(refused([a | 1 << bit, b], [false; 2], Type::F16).contains("a base offset"));
    }
    // The second row of a swizzle's pattern, for each width.
    for (mode, row) in [(1u64, 128), (2, 128), (2, 256), (3, 128)] {
        let message = refused([a | mode << 62, (b + row / 16) | mode << 62], [false; 2], Type::F16);
        assert!(message.contains("a start within the pattern"), "{message}");
    }
    for transposed in [[true, false], [false, true]] {
        assert!(refused([a, b], transposed, Type::Tf32).contains("transposed"));
    }
}

#[test]
fn registers_of_a_changed_before_the_wait() {
    let device = Device::new(
        mutant(FILE, "emu::wgmma_commit();", "emu::wgmma_commit();\n    own[2] += 1;"),
        Schedule::from_seed(0),
    );
    let tile = Tile::plain();
    let image = input(&device, "image", &Image::new(Type::F16).0);
    let words = input(&device, "words", &[0u32; 512]);
    let descriptors = [0, tile.start(false)];
    let product = Product { element: Type::F16, image, words, descriptors, transposed: [false; 2], n: 16 };
    let error = product.run(&device, &registers("wgmma_accumulators")).expect_err("a report");
    assert!(error.to_string().contains("changes A's registers before the wait"), "{error}");
}
