//! What launches cost at least is what they move and multiply.

use crate::cuda::abi;
use crate::cuda::cost::{Bound, Contents, Machine, Unit, Work};
use crate::cuda::device::{Architecture, Call, Launch, Parameters, Target};
use crate::cuda::launch::experts::{self, Factors};
use crate::cuda::launch::experts_backward::Backward;
use crate::cuda::launch::gate;
use crate::cuda::launch::gate_backward;
use crate::cuda::launch::permute;
use crate::{Activation, DType, LayerConfig};
use std::ptr::without_provenance;

const CONTENTS: Contents = Contents { rows: 1000, pairs: 4096.0 * 4096.0 };

fn gemm(activation: i32) -> abi::GroupedGemm {
    abi::GroupedGemm {
        offsets: without_provenance(256),
        rows: 4000,
        experts: 8,
        depth: 256,
        columns: 512,
        activation,
        a_stride: 256,
        b_stride: 256,
        b_expert_stride: 2 * 512 * 256,
        ..Default::default()
    }
}

fn work_of(storage: DType, factors: Factors, p: abi::GroupedGemm) -> Work {
    experts::calls(Target::H100, storage, factors, p).next().unwrap().work(&CONTENTS)
}

#[test]
fn a_product_counts_rows_that_there_are_and_weights_once() {
    let plain = work_of(DType::Bf16, Factors::F32, gemm(abi::ACTIVATION_NONE));
    assert_eq!(plain.operations, 2.0 * 1000.0 * 256.0 * 512.0);
    assert_eq!(plain.bytes, 2.0 * (8.0 * 512.0 * 256.0 + 1000.0 * 256.0 + 1000.0 * 512.0));
    let gated = work_of(DType::Bf16, Factors::F32, gemm(abi::ACTIVATION_SWIGLU));
    assert_eq!(gated.operations, 2.0 * plain.operations);
    // 125 rows an expert are one tile high, 512 columns two wide, of both halves four.
    assert_eq!((plain.tiles, gated.tiles), (8 * 2, 8 * 4));
    let kept =
        abi::GroupedGemm { hidden: without_provenance::<u8>(256).cast_mut().cast(), ..gemm(abi::ACTIVATION_SWIGLU) };
    assert_eq!(work_of(DType::F16, Factors::F32, kept).bytes - gated.bytes, 2.0 * 1000.0 * 1024.0);
    // Fewer rows than experts leave weights unread.
    let few = abi::GroupedGemm { rows: 3, ..gemm(abi::ACTIVATION_NONE) };
    assert_eq!(work_of(DType::F32, Factors::F32, few).bytes, 4.0 * (3.0 * 512.0 * 256.0 + 3.0 * 256.0 + 3.0 * 512.0));
}

#[test]
fn units_follow_the_kernels() {
    let unit = |storage, factors| work_of(storage, factors, gemm(abi::ACTIVATION_NONE)).unit;
    assert_eq!(unit(DType::Bf16, Factors::F32), Unit::Tensor16);
    assert_eq!(unit(DType::F32, Factors::F32), Unit::Scalar);
    assert_eq!(unit(DType::F32, Factors::Tf32), Unit::Tensor32);
    let mixed = experts::Operands { rows: DType::Bf16, weights: DType::F32 };
    let mixed = experts::calls(Target::H100, mixed, Factors::F32, gemm(abi::ACTIVATION_NONE)).next().unwrap();
    assert_eq!(mixed.work(&CONTENTS).unit, Unit::Scalar);
    let h100 = Machine::H100;
    assert!(h100.rate(Unit::Scalar) < h100.rate(Unit::Tensor32) && h100.rate(Unit::Tensor16) < h100.tensor);
}

/// The number of tiles of whole ones is that of blocks where nothing else limits them, but for one ragged row of
/// tiles that a launch allows for.
#[test]
fn tiles_are_those_of_the_launches() {
    let many = Target { multiprocessors: 1 << 20, ..Target::H100 };
    for (storage, activation) in [(DType::Bf16, 0), (DType::F32, 0), (DType::Bf16, abi::ACTIVATION_SWIGLU)] {
        let p = abi::GroupedGemm { offsets: std::ptr::null(), rows: 1280, experts: 1, ..gemm(activation) };
        let all = experts::calls(many, storage, Factors::F32, p).next().unwrap();
        let tiles = all.work(&CONTENTS).tiles;
        let columns = tiles / 10;
        assert_eq!(u64::from(all.launch.grid[0]), tiles + columns, "{}", all.launch.kernel);
    }
}

#[test]
fn scores_are_counted_and_never_stored() {
    let call = |kernel, p: abi::ImportanceQueryKey| {
        Call::new(Launch { kernel, grid: [33, 16, 1], threads: 128, shared: 0, cluster: 1 }, p)
    };
    let p = abi::ImportanceQueryKey { tokens: 4096, width: 128, heads_per_key: 4, ..Default::default() };
    let walk = call("importance_query_key_bf16_128", p).work(&CONTENTS);
    assert_eq!(walk.operations, 2.0 * 128.0 * 16.0 * 4096.0 * 4096.0);
    assert_eq!(walk.bytes, 4096.0 * (20.0 * 128.0 * 2.0 + 16.0 * 4.0));
    assert_eq!(walk.tiles, 32 * 16);
    let masked = abi::ImportanceQueryKey { causal: 1, ..p };
    assert_eq!(call("importance_query_key_bf16_128", masked).work(&CONTENTS).operations, walk.operations / 2.0);
    let own = call("importance_own_key_bf16", p).work(&CONTENTS);
    assert_eq!((own.operations, own.unit), (2.0 * 128.0 * 16.0 * 4096.0, Unit::Scalar));
}

/// Experts' products of 16-bit rows are Hopper's own, on the way back those of bf16 alone; everything else is the same.
#[test]
fn hopper_has_products_of_its_own() {
    let portable = Target { architecture: Architecture::Portable, ..Target::H100 };
    for storage in [DType::F32, DType::Bf16, DType::F16] {
        let launches = |target| -> [Vec<&str>; 2] {
            let p = abi::GroupedGemm { out_stride: 512, ..gemm(abi::ACTIVATION_SWIGLU) };
            let forward = experts::calls(target, storage, Factors::F32, p);
            let mut back = Backward::new(storage, Activation::Swiglu, [100, 400, 64, 96, 8]);
            back.kept = without_provenance(256);
            back.bind(target, 0);
            let back = back.calls(target, Factors::F32).map(|call| call.launch.kernel).collect();
            [forward.map(|call| call.launch.kernel).collect(), back]
        };
        let ([there, back], [on_hopper, back_on_hopper]) = (launches(portable), launches(Target::H100));
        assert_eq!(back != back_on_hopper, storage == DType::Bf16, "{back:?} {back_on_hopper:?}");
        assert_eq!(there != on_hopper, storage != DType::F32, "{there:?} {on_hopper:?}");
        assert_eq!(on_hopper[0].ends_with("_gated_packed_hopper"), storage != DType::F32);
    }
}

/// A unit reads its rows and its weights from L2 once, for both blocks; half a unit is half of the wavefronts and a quarter more.
#[test]
fn a_unit_on_hopper_costs_what_its_rows_need() {
    let of = |rows: i32| {
        let p =
            abi::GroupedGemm { out_stride: 256, rows, columns: 256, experts: 1, offsets: std::ptr::null(), ..gemm(0) };
        work_of(DType::Bf16, Factors::F32, p)
    };
    let (whole, half) = (of(256), of(128));
    assert_eq!((whole.tiles, whole.unit), (1, Unit::Wgmma16));
    assert_eq!(whole.l2_bytes, 2.0 * (256.0 * 256.0 + 256.0 * 256.0) + 2.0 * 256.0 * 256.0);
    assert_eq!([whole.wavefronts, half.wavefronts], [4.0 * 2.0 * 1024.0, 4.0 * 2.0 * 640.0]);
    assert_eq!(whole.operations, 2.0 * 256.0 * 256.0 * 256.0);
    // Four schedulers issue what a step needs in less than the 1024 clocks that its products take.
    assert!(whole.instructions / (2.0 * 4.0 * 4.0) < 300.0);
}

#[test]
fn small_launches_cost_a_launch() {
    let config = LayerConfig::da_moe(64, 64, 8, 4);
    let gate = gate::calls(Target::H100, gate::parameters(&config, 100, false)).next().unwrap();
    let gate = gate.work(&CONTENTS);
    assert_eq!(gate.bytes, 100.0 * (4.0 * 8.0 + 4.0 * 13.0));
    let (seconds, bound) = Machine::H100.time(&gate);
    assert!(bound == Bound::Launch && seconds > 3e-6 && seconds < 3.1e-6);
    let plan: Vec<_> =
        permute::calls(Target::H100, permute::parameters(&config, 100)).map(|call| call.work(&CONTENTS)).collect();
    assert_eq!(plan.iter().map(|work| work.bytes).collect::<Vec<_>>(), [1600.0, 8000.0]);
}

#[test]
fn combine_counts_rows_of_their_own_type() {
    let p = abi::Combine { tokens: 100, width: 64, slots: 4, row_count: 4000, ..Default::default() };
    let bytes = |kernel, p| Call::new(Launch::linear(kernel, 1, 256), p).work(&CONTENTS).bytes;
    assert_eq!(bytes("combine_bf16_wide", p), 2.0 * (1000.0 + 100.0) * 64.0 + 12.0 * 400.0);
    let shared = abi::Combine { shared: without_provenance(256), ..p };
    assert_eq!(bytes("combine_f16_f32rows", shared), (4.0 * (1000.0 + 100.0) + 2.0 * 100.0) * 64.0 + 12.0 * 400.0);
}

#[test]
fn the_way_back_counts_what_it_moves() {
    fn call(kernel: &'static str, p: impl Parameters) -> Work {
        Call::new(Launch { kernel, grid: [7, 2, 1], threads: 256, shared: 0, cluster: 1 }, p).work(&CONTENTS)
    }
    let permute = abi::PermuteBackward { tokens: 100, width: 64, slots: 4, row_count: 4000, ..Default::default() };
    let of_f32 = call("permute_backward_bf16_f32rows", permute);
    assert_eq!((of_f32.bytes, of_f32.tiles), (4.0 * (1000.0 + 100.0) * 64.0 + 16.0 * 400.0, 14));
    let shared = abi::PermuteBackward { shared_dx: without_provenance(256), ..permute };
    let of_bf16 = call("permute_backward_bf16_wide", shared);
    assert_eq!(of_bf16.bytes, (2.0 * (1000.0 + 100.0) + 4.0 * 100.0) * 64.0 + 16.0 * 400.0);
    let dx = abi::GateDx { tokens: 100, width: 64, ..Default::default() };
    assert_eq!(call("gate_dx_f16", dx).bytes, 100.0 * 64.0 * 6.0);
    let dx = abi::GateDx { of_router: without_provenance(256), ..dx };
    assert_eq!(call("gate_dx_f32_wide", dx).bytes, 100.0 * 64.0 * 12.0);
    let config = LayerConfig::da_moe(64, 64, 8, 4);
    let gate = gate_backward::calls(Target::H100, gate_backward::parameters(&config, 100, 1.0)).next().unwrap();
    assert_eq!(gate.work(&CONTENTS).bytes, 100.0 * (8.0 * 8.0 + 12.0 * 4.0));
    let combine = abi::CombineBackward { tokens: 100, slots: 4, gradients: 2, width: 64, ..Default::default() };
    assert_eq!(call("combine_backward_bf16", combine).bytes, 8.0 * 400.0);
    assert_eq!(call("combine_constants_bf16", combine).bytes, 4.0 * 400.0 + 2.0 * 64.0 * 2.0);
    let routing = abi::RoutingBackward { tokens: 100, slots: 4, columns: 3, ..Default::default() };
    assert_eq!(call("routing_backward", routing).bytes, 8.0 * 400.0 + 4.0 * 300.0);
}
