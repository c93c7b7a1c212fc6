//! Clusters of blocks, copies that an mbarrier waits for, and what warps agree about.

use std::sync::{Arc, LazyLock};

use da_moe_emulator::{Device, Error, Grid, Kind, Module, Policy, Schedule};

use crate::common::{
    SCHEDULES, compile, compiler, download, input, lines_with, mutant, output, parameter, passes, reports,
};

const FILE: &str = "clusters.cu";
static MODULE: LazyLock<Arc<Module>> = LazyLock::new(|| compile(&compiler(FILE)));

fn grid(blocks: u32, cluster: u32) -> Grid {
    Grid { blocks: [blocks, 1, 1], cluster }
}

fn ring(device: &Device) -> Result<(), Error> {
    let (values, out) = (output::<i32>(device, "values", 8 * 64), output::<i32>(device, "out", 8 * 64));
    // SAFETY: two addresses, as the kernel takes them.
    unsafe { device.launch("ring", grid(8, 4), [64, 1, 1], 0, &[parameter(&values), parameter(&out)])? };
    let before = |block: i32| block / 4 * 4 + (block + 3) % 4;
    let expected: Vec<i32> = (0..512).map(|i| 1000 * before(i / 64) + 63 - i % 64).collect();
    assert_eq!(download::<i32>(device, out, 512), expected);
    Ok(())
}

fn meeting(device: &Device, size: u32) -> Result<(), Error> {
    let values = output::<i32>(device, "values", 8 * 32);
    let (out, of_a_cluster) = (output::<i32>(device, "out", 8 * 32), size as i32);
    let parameters = [parameter(&values), parameter(&out), parameter(&of_a_cluster)];
    // SAFETY: two addresses and an int, as the kernel takes them.
    unsafe { device.launch("meeting", grid(8, size), [96, 1, 1], 0, &parameters)? };
    let first = |block: i32| block / of_a_cluster * of_a_cluster;
    let sum = |i: i32| (0..of_a_cluster).map(|block| 100 * (first(i / 32) + block) + i % 32).sum();
    assert_eq!(download::<i32>(device, out, 256), (0..256).map(sum).collect::<Vec<i32>>());
    Ok(())
}

fn gather(device: &Device) -> Result<(), Error> {
    const STEPS: i32 = 5;
    let at = input(device, "in", &(0..128 * STEPS).collect::<Vec<i32>>());
    let out = output::<i32>(device, "out", 128 * STEPS as usize);
    let parameters = [parameter(&at), parameter(&out), parameter(&STEPS)];
    // SAFETY: two addresses and an int, as the kernel takes them.
    unsafe { device.launch("gather", [1, 1, 1], [64, 1, 1], 0, &parameters)? };
    let row = |i: i32| i / 128 * 32 + 31 - (i / 4 % 32 + 1) % 32;
    let expected: Vec<i32> = (0..128 * STEPS).map(|i| 4 * row(i) + i % 4).collect();
    assert_eq!(download::<i32>(device, out, expected.len()), expected);
    Ok(())
}

/// Which lane was elected, each of eight times in each of two warps.
fn elections(device: &Device) -> Result<Vec<i32>, Error> {
    let out = output::<i32>(device, "out", 16);
    // SAFETY: an address, as the kernel takes it.
    unsafe { device.launch("elections", [1, 1, 1], [64, 1, 1], 0, &[parameter(&out)])? };
    Ok(download(device, out, 16))
}

fn registers(device: &Device) -> Result<(), Error> {
    let out = output::<i32>(device, "out", 384);
    // SAFETY: an address, as the kernel takes it.
    unsafe { device.launch("registers", [1, 1, 1], [384, 1, 1], 0, &[parameter(&out)]) }
}

type Launch = fn(&Device) -> Result<(), Error>;

/// Each of these changes is found, by reports of these kinds at one of these lines.
fn bugs(launch: Launch, found: &[(&[Kind], &str, &str, &[&str])]) {
    for (kinds, from, to, lines) in found {
        let lines: Vec<_> = lines.iter().flat_map(|line| lines_with(FILE, line)).collect();
        reports(&mutant(FILE, from, to), kinds, FILE, &lines, launch);
    }
}

#[test]
fn blocks_of_a_cluster_tell_each_other() {
    passes(&MODULE, ring);
    for size in [1, 2, 4, 8] {
        passes(&MODULE, |device| meeting(device, size));
    }
}

#[test]
fn clusters_that_do_not_fit_are_refused() {
    let device = Device::new(MODULE.clone(), Schedule::from_seed(0));
    let out = output::<i32>(&device, "out", 64);
    for (blocks, cluster) in [(3, 3), (16, 16), (2, 4), (6, 4), (1, 0)] {
        // SAFETY: an address, as the kernel takes it.
        let launched = unsafe { device.launch("elections", grid(blocks, cluster), [64, 1, 1], 0, &[parameter(&out)]) };
        let kind = launched.unwrap_err().report().map(|report| report.kind);
        assert_eq!(kind, Some(Kind::Launch), "{blocks} blocks in clusters of {cluster}");
    }
}

#[test]
fn a_cluster_is_alive_as_a_whole() {
    for policy in [Policy::RoundRobin, Policy::Random, Policy::Priorities] {
        for resident in [1, 2, 3, 5, 100] {
            ring(&Device::new(MODULE.clone(), Schedule { seed: 1, policy, resident })).unwrap();
        }
    }
}

const ARRIVES: &str = "emu::mbarrier_arrive_remote(";
const WAITS: &str = "gpu::mbar_wait(mbarrier, 0);";

#[test]
fn mbarriers_of_other_blocks() {
    bugs(
        ring,
        &[
            (&[Kind::Async], "emu::fence_mbarrier_init();", "", &[ARRIVES]),
            (
                &[Kind::Async, Kind::Race, Kind::Uninitialised],
                "mbarrier_init(mbarrier, 2);",
                "mbarrier_init(mbarrier, 1);",
                &[ARRIVES, "out[64 * me + t] =", "values[64 * me + t] ="],
            ),
            (&[Kind::Deadlock], "mbarrier_init(mbarrier, 2);", "mbarrier_init(mbarrier, 3);", &[WAITS]),
            (&[Kind::Deadlock], "if (t % 32 == 0) {", "if (t == 0) {", &[WAITS]),
            (&[Kind::Async], ARRIVES, "emu::mbarrier_arrive(", &[ARRIVES]),
            (&[Kind::OutOfBounds], "(mbarrier, next)", "(mbarrier, next + 4)", &[ARRIVES]),
            (&[Kind::Misaligned], "(mbarrier, next)", "(mbarrier + 4, next)", &[ARRIVES]),
            // The arrival tells of the arriving lane alone.
            (&[Kind::Race, Kind::Uninitialised], "__syncwarp();", "", &["out[64 * me + t] =", "values[64 * me + t] ="]),
            // A barrier of the block says nothing of the others' mbarriers.
            (
                &[Kind::Race],
                "emu::cluster_arrive();\n    emu::cluster_wait();\n    values",
                "__syncthreads();\n\n    values",
                &[ARRIVES],
            ),
        ],
    );
}

#[test]
fn a_block_that_ends_while_others_reach_for_it() {
    bugs(ring, &[(&[Kind::Async], WAITS, "return;", &[ARRIVES])]);
}

#[test]
fn mbarriers_are_fenced_before_the_barrier() {
    let from = "emu::fence_mbarrier_init();\n    }\n    emu::cluster_arrive();\n    emu::cluster_wait();";
    let to = "}\n    emu::cluster_arrive();\n    if (t == 0) emu::fence_mbarrier_init();\n    emu::cluster_wait();";
    bugs(ring, &[(&[Kind::Async], from, to, &[ARRIVES])]);
}

#[test]
fn barriers_of_clusters() {
    let (arrive, wait) = ("emu::cluster_arrive();  // nothing", "emu::cluster_wait();\n    int sum");
    let (reads, writes) = ("for (int i = 0; i < size", "values[32 * me + lane] =");
    bugs(
        |device| meeting(device, 4),
        &[
            (&[Kind::Race, Kind::Uninitialised], wait, "int sum", &[reads, writes]),
            (&[Kind::Async], arrive, "", &["emu::cluster_wait();"]),
            (&[Kind::Async], arrive, "emu::cluster_arrive(); emu::cluster_arrive();", &[arrive]),
            (
                &[Kind::Divergence, Kind::Async],
                arrive,
                "if (lane < 8) emu::cluster_arrive();",
                &[arrive, "emu::cluster_wait();"],
            ),
            // What is written after the arrival, or by a thread that ends without one, is told to nobody.
            (&[Kind::Race, Kind::Uninitialised], "emu::cluster_arrive();  // the values", "", &[reads, writes]),
            (
                &[Kind::Deadlock],
                "if (t >= 64) {\n        return;",
                "if (t >= 64) {\n        if (me == 3) emu::named_barrier(1, 64, true); return;",
                &["emu::cluster_wait();"],
            ),
        ],
    );
}

#[test]
fn arrays_lie_in_the_same_place_in_every_block() {
    passes(&MODULE, |device| {
        let out = output::<u32>(device, "out", 12);
        // SAFETY: an address, as the kernel takes it.
        unsafe { device.launch("places", grid(4, 2), [1, 1, 1], 64, &[parameter(&out)])? };
        let places = download::<u32>(device, out, 12);
        assert!(places.chunks(3).all(|of_a_block| of_a_block == &places[..3]), "{places:?}");
        Ok(())
    });
}

#[test]
fn copies_arrive_when_they_have_come() {
    passes(&MODULE, gather);
}

#[test]
fn copies_that_are_not_waited_for() {
    let (reads, copies) = ("const int4 row =", "emu::cp_async(");
    let arrives = "emu::cp_async_mbarrier_arrive_noinc(";
    bugs(
        gather,
        &[
            (
                &[Kind::Async, Kind::Race, Kind::Uninitialised],
                "gpu::mbar_wait(full + 8 * s, phase);",
                "",
                &[reads, copies],
            ),
            (&[Kind::Async, Kind::Race], "gpu::mbar_wait(empty + 8 * s, phase ^ 1);", "", &[reads, copies, arrives]),
            (&[Kind::Async], arrives, "emu::mbarrier_arrive(", &[reads, copies]),
            (&[Kind::Async], arrives, "emu::cp_async_mbarrier_arrive_noinc((1 << 24) + ", &[arrives]),
            (
                &[Kind::Async, Kind::Race],
                "mbarrier_init(full + 8 * s, 32);",
                "mbarrier_init(full + 8 * s, 31);",
                &[arrives, copies, reads],
            ),
            (
                &[Kind::Deadlock],
                "mbarrier_init(full + 8 * s, 32);",
                "mbarrier_init(full + 8 * s, 33);",
                &["gpu::mbar_wait(full"],
            ),
            // The arrival is that of the copies before it, and of nothing else.
            (
                &[Kind::Race, Kind::Async],
                "emu::cp_async(gpu::smem(&stages[32 * s + lane]), in + 4 * row, 16, 16);",
                "stages[32 * s + lane] = reinterpret_cast<const int4*>(in)[row];",
                &[reads, copies],
            ),
        ],
    );
}

#[test]
fn a_block_that_ends_before_its_copies() {
    // The last stage is left to itself: even to a thread that would have read it, it is not known to have come.
    let (from, to) = (
        "} else {\n            gpu::mbar_wait(full",
        "} else if (step < steps - 1) {\n            gpu::mbar_wait(full",
    );
    bugs(gather, &[(&[Kind::Async], from, to, &["emu::cp_async_mbarrier_arrive_noinc("])]);
}

#[test]
fn a_thread_that_does_not_wait_for_its_own_copy() {
    let to = "emu::cp_async_mbarrier_arrive_noinc(full + 8 * s); out[lane] = stages[32 * s + lane].x;";
    let lines = ["emu::cp_async_mbarrier_arrive_noinc(", "emu::cp_async("];
    bugs(gather, &[(&[Kind::Async, Kind::Race], "emu::cp_async_mbarrier_arrive_noinc(full + 8 * s);", to, &lines)]);
}

#[test]
fn a_copy_after_the_arrival() {
    let to = "emu::cp_async_mbarrier_arrive_noinc(full + 8 * s);\n            if (step == steps - 1) \
              emu::cp_async(gpu::smem(&stages[32 * (1 - s) + lane]), in, 16, 16);";
    let module = mutant(FILE, "emu::cp_async_mbarrier_arrive_noinc(full + 8 * s);", to);
    for seed in 0..SCHEDULES {
        let error = gather(&Device::new(module.clone(), Schedule::from_seed(seed))).unwrap_err();
        let kind = error.report().map(|report| report.kind);
        assert!(matches!(kind, Some(Kind::Async | Kind::Race)), "seed {seed}: {error}");
    }
}

#[test]
fn any_lane_is_elected() {
    let lanes: Vec<i32> = (0..SCHEDULES)
        .map(|seed| {
            let lanes = elections(&Device::new(MODULE.clone(), Schedule::from_seed(seed))).unwrap();
            assert!(lanes.iter().all(|lane| *lane == lanes[0]), "{lanes:?}");
            lanes[0]
        })
        .collect();
    assert!(lanes.iter().any(|lane| *lane != lanes[0]), "{lanes:?}");
}

#[test]
fn an_election_without_all_lanes() {
    let (from, to) = ("if (emu::elect_sync()) {", "if (threadIdx.x % 32 > 3 && emu::elect_sync()) {");
    bugs(|device| elections(device).map(drop), &[(&[Kind::Divergence, Kind::Deadlock], from, to, &[from])]);
}

#[test]
fn registers_go_from_warps_to_warps() {
    passes(&MODULE, registers);
}

#[test]
fn registers_that_are_not_there() {
    let (given, taken) =
        ("emu::set_max_registers(40, false);  // given", "emu::set_max_registers(232, true);  // taken");
    let of = |count: u32, increase| format!("emu::set_max_registers({count}, {increase});");
    bugs(
        registers,
        &[
            (&[Kind::Deadlock], taken, &of(240, true), &[taken]),
            (&[Kind::Deadlock], given, "", &[taken]),
            (&[Kind::Async], given, &of(16, false), &[given]),
            (&[Kind::Async], taken, &of(236, true), &[taken]),
            (&[Kind::Async], taken, &of(264, true), &[taken]),
            (&[Kind::Async], taken, &of(160, true), &[taken]),
            (&[Kind::Async], given, &of(176, false), &[given]),
            (&[Kind::Divergence], given, "emu::set_max_registers(threadIdx.x < 32 ? 40 : 48, false);", &[given]),
            (&[Kind::Divergence], given, "emu::set_max_registers(threadIdx.x % 32 == 5 ? 40 : 48, false);", &[given]),
            (
                &[Kind::Divergence],
                given,
                "emu::set_max_registers(40, false); if (threadIdx.x < 96) emu::set_max_registers(32, false);",
                &[given],
            ),
        ],
    );
}

#[test]
fn a_deadlock_tells_how_many_registers_are_missing() {
    let module = mutant(FILE, "emu::set_max_registers(232, true);", "emu::set_max_registers(240, true);");
    let error = registers(&Device::new(module, Schedule::from_seed(0))).unwrap_err().to_string();
    assert!(error.contains("from 168 to 240 registers: the block's warps have given 256 that nobody"), "{error}");
}

#[test]
fn a_warpgroup_has_all_its_warps() {
    let launch = |device: &Device| {
        let out = output::<i32>(device, "out", 96);
        // SAFETY: an address, as the kernel takes it.
        unsafe { device.launch("registers", [1, 1, 1], [96, 1, 1], 0, &[parameter(&out)]) }
    };
    reports(&MODULE, &[Kind::Divergence], FILE, &lines_with(FILE, "// given"), launch);
}
