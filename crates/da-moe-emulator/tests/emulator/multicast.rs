//! What several blocks, or warps, load for each other: boxes by multicast, and gathered operands of wgmma.

use da_moe_emulator::{Device, Error, Grid, Kind, TensorMapShape};
use half::bf16;

use crate::common::{compile, compiler, download, input, lines_with, mutant, output, parameter, passes, reports};

const FILE: &str = "multicast.cu";

/// Two clusters do the same.
fn multicast(device: &Device) -> Result<(), Error> {
    const STEPS: i32 = 5;
    let values: Vec<i32> = (0..256 * STEPS).map(|i| i * i % 1013).collect();
    let (source, out) = (input(device, "source", &values), output::<i32>(device, "out", 128));
    let map = device.tensor_map(source, &TensorMapShape::matrix(4, 0, 16, 16 * STEPS as u64, 64, [16, 8]))?;
    let parameters = [parameter(&map), parameter(&out), parameter(&STEPS)];
    let grid = Grid { blocks: [4, 1, 1], cluster: 2 };
    // SAFETY: a tensor map, an address and an int, as the kernel takes them.
    unsafe { device.launch("multicast", grid, [64, 1, 1], 2048, &parameters)? };
    let sums: Vec<i32> = (0..32).map(|lane| values.iter().skip(lane).step_by(32).sum()).collect();
    assert_eq!(download::<i32>(device, out, 128), [&sums[..]; 4].concat());
    assert_eq!(device.work().copied_bytes, 4 * 1024 * STEPS as u64);
    Ok(())
}

fn bug(kinds: &[Kind], from: &str, to: &str, lines: &[&str]) {
    let lines: Vec<_> = lines.iter().flat_map(|line| lines_with(FILE, line)).collect();
    reports(&mutant(FILE, from, to), kinds, FILE, &lines, multicast);
}

const LOAD: &str = "emu::tma_load(";
const MASK: &str = "2, at, 3);";
const READ: &str = "sum += ";
const WAIT: &str = "gpu::mbar_wait(";

#[test]
fn blocks_load_for_each_other() {
    passes(&compile(&compiler(FILE)), multicast);
    // To one other block, the address of which may be mapped.
    let to_one = "emu::tma_load(emu::map_shared(gpu::smem(tile) + rank * 512, 0), &map, emu::map_shared(full + 8 * s, 0), 2, at, 0); \
                  emu::tma_load(emu::map_shared(gpu::smem(tile) + rank * 512, 1), &map, emu::map_shared(full + 8 * s, 1), 2, at, 0);";
    let whole = "emu::tma_load(gpu::smem(tile) + rank * 512, &map, full + 8 * s, 2, at, 3);";
    passes(&mutant(FILE, whole, to_one), multicast);
}

#[test]
fn a_multicast_that_does_not_reach_all_or_reaches_nobody() {
    bug(&[Kind::Deadlock], MASK, "2, at, 1 << rank);", &[WAIT]);
    bug(&[Kind::Deadlock], MASK, "2, at, 0);", &[WAIT]);
    bug(&[Kind::OutOfBounds], MASK, "2, at, 7);", &[LOAD]);
    let split = "emu::map_shared(full + 8 * s, 1), 2, at, 0);";
    bug(&[Kind::Async], "full + 8 * s, 2, at, 3);", &format!("rank == 1 ? full + 8 * s : {split}"), &[LOAD]);
}

#[test]
fn a_tile_overwritten_while_the_other_block_reads_it() {
    let found = [Kind::Race, Kind::Async];
    let ends = ["emu::mbarrier_init(empty + 8 * s, 2);", "emu::mbarrier_init(empty + 8 * s, 1);"];
    bug(&found, ends[0], ends[1], &[LOAD, READ, "emu::mbarrier_arrive"]);
    let own = compiler(FILE).replace(FILE, ends[0], ends[1]).replace(FILE, "if (lane < 2)", "if (lane == rank)");
    let own = own.replace(FILE, "emu::map_shared(empty + 8 * s, lane)", "emu::map_shared(empty + 8 * s, rank)");
    let lines = [LOAD, READ].map(|line| lines_with(FILE, line)).concat();
    reports(&compile(&own), &[Kind::Race], FILE, &lines, multicast);
}

#[test]
fn a_box_read_before_it_has_come() {
    let to = "if (lane != 5) gpu::mbar_wait(full + 8 * s, phase);";
    let found = [Kind::Race, Kind::Uninitialised];
    bug(&found, "gpu::mbar_wait(full + 8 * s, phase);", to, &[LOAD, READ]);
}

#[test]
fn mbarriers_of_the_other_block_that_may_not_be_there() {
    bug(&[Kind::Async], "emu::fence_mbarrier_init();", "", &[LOAD, "emu::mbarrier_arrive_remote("]);
    let without = |name: &str| format!("emu::cluster_{name}();");
    let module =
        compile(&compiler(FILE).replace(FILE, "emu::cluster_arrive();  // the mbarriers", "__syncthreads();").replace(
            FILE,
            &format!("{}    // the mbarriers", without("wait")),
            "",
        ));
    let lines = [LOAD, "emu::mbarrier_arrive_remote("].map(|line| lines_with(FILE, line)).concat();
    reports(&module, &[Kind::Race, Kind::Async, Kind::OutOfBounds], FILE, &lines, multicast);
}

fn gathered(device: &Device) -> Result<(), Error> {
    let number = |i: usize| bf16::from_f32((i * 31 % 17) as f32 - 8.0);
    let a: Vec<bf16> = (0..4096).map(number).collect();
    let b: Vec<bf16> = (0..4096).map(|i| number(i + 7)).collect();
    let (at, bt, c) = (input(device, "A", &a), input(device, "B", &b), output::<f32>(device, "C", 4096));
    let parameters = [parameter(&at), parameter(&bt), parameter(&c)];
    // SAFETY: three addresses, as the kernel takes them.
    unsafe { device.launch("gathered", [1, 1, 1], [160, 1, 1], 2 * 8192, &parameters)? };
    let dot = |at: usize| (0..64).map(|k| a[at / 64 * 64 + k].to_f32() * b[at % 64 * 64 + k].to_f32()).sum::<f32>();
    assert_eq!(download::<f32>(device, c, 4096), (0..4096).map(dot).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn gathered_operands_need_the_fence_of_their_readers() {
    passes(&compile(&compiler(FILE)), gathered);
    let product = [lines_with(FILE, "gpu::wgmma_m64n64k16("), lines_with(FILE, "gpu::cp_async16(at")].concat();
    let fence = "emu::fence_proxy_async();  // of the readers";
    let bug = |kinds: &[Kind], from: &str, to: &str| reports(&mutant(FILE, from, to), kinds, FILE, &product, gathered);
    bug(&[Kind::Async], fence, "");
    bug(&[Kind::Async], fence, "if (t < 96) emu::fence_proxy_async();");
    // The copies come after any fence of their thread.
    let copies = "emu::cp_async_mbarrier_arrive_noinc(full);  // the copies";
    let module = compile(&compiler(FILE).replace(FILE, fence, "").replace(
        FILE,
        copies,
        &format!("emu::fence_proxy_async(); {copies}"),
    ));
    reports(&module, &[Kind::Async], FILE, &product, gathered);
    // The fence of a reader that does not know of them yet.
    let wait = "gpu::mbar_wait(full, 0);\n    emu::fence_proxy_async();  // of the readers";
    bug(&[Kind::Async], wait, "emu::fence_proxy_async(); gpu::mbar_wait(full, 0);\n");
    let early = [Kind::Race, Kind::Async, Kind::Uninitialised];
    bug(&early, "gpu::mbar_wait(full, 0);", "if (t >= 32) gpu::mbar_wait(full, 0);");
}
