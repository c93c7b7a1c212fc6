//! `kernels/device/ptx_sm90.cuh`, as it was reviewed.

use super::{Golden, Header};

pub const PTX: Header = Header {
    path: "device/ptx_sm90.cuh",
    kernels: "conformance/hopper/conformance_hopper.cu",
    golden: GOLDEN,
    pure: &["pack_bf16", "pack_f16", "rcp"],
    intrinsics: &[],
    helpers: &["encoded"],
};

const ADDING: &str = r#""+f"(d[0])…"+f"(d[127]):"l"(a),"l"(b),"n"(A_ACROSS),"n"(B_ACROSS)"#;
const FIRST: &str = r#""=f"(d[0])…"=f"(d[127]):"l"(a),"l"(b),"n"(A_ACROSS),"n"(B_ACROSS)"#;

const GOLDEN: &[Golden] = &[
    Golden { name: "cluster_rank", instruction: "mov.u32 %0, %%cluster_ctarank;", operands: r#""=r"(rank)"# },
    Golden {
        name: "map_shared",
        instruction: "mapa.shared::cluster.u32 %0, %1, %2;",
        operands: r#""=r"(mapped):"r"(address),"r"(rank)"#,
    },
    // Without a word about it, an arrival releases and a wait acquires.
    Golden { name: "cluster_arrive", instruction: "barrier.cluster.arrive.aligned;", operands: r#"::"memory""# },
    Golden { name: "cluster_wait", instruction: "barrier.cluster.wait.aligned;", operands: r#"::"memory""# },
    Golden {
        name: "mbarrier_init",
        instruction: "mbarrier.init.shared::cta.b64 [%0], %1;",
        operands: r#":"r"(mbarrier),"r"(count):"memory""#,
    },
    Golden {
        name: "fence_mbarrier_init",
        instruction: "fence.mbarrier_init.release.cluster;",
        operands: r#"::"memory""#,
    },
    Golden {
        name: "mbarrier_arrive_expect",
        instruction: "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;",
        operands: r#":"r"(mbarrier),"r"(bytes):"memory""#,
    },
    // A release that the block sees, not the cluster.
    Golden {
        name: "mbarrier_arrive_remote",
        instruction: "mbarrier.arrive.shared::cluster.b64 _, [%0];",
        operands: r#":"r"(mbarrier):"memory""#,
    },
    Golden {
        name: "cp_async_arrive",
        instruction: "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];",
        operands: r#":"r"(mbarrier):"memory""#,
    },
    Golden {
        name: "mbarrier_wait",
        instruction: "{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; \
                      @!done bra again; }",
        operands: r#":"r"(mbarrier),"r"(parity):"memory""#,
    },
    Golden { name: "fence_proxy_async", instruction: "fence.proxy.async.shared::cta;", operands: r#"::"memory""# },
    Golden { name: "prefetch_tensor_map", instruction: "prefetch.tensormap [%0];", operands: r#":"l"(map):"memory""# },
    Golden {
        name: "tma_load_2d",
        instruction: "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes \
                      [%0], [%1, {%3, %4}], [%2];",
        operands: r#":"r"(target),"l"(map),"r"(mbarrier),"r"(x),"r"(y):"memory""#,
    },
    Golden {
        name: "tma_load_3d",
        instruction: "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes \
                      [%0], [%1, {%3, %4, %5}], [%2];",
        operands: r#":"r"(target),"l"(map),"r"(mbarrier),"r"(x),"r"(y),"r"(z):"memory""#,
    },
    Golden {
        name: "tma_load_4d",
        instruction: "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes \
                      [%0], [%1, {%3, %4, %5, %6}], [%2];",
        operands: r#":"r"(target),"l"(map),"r"(mbarrier),"r"(x),"r"(y),"r"(z),"r"(w):"memory""#,
    },
    Golden {
        name: "tma_load_4d_multicast",
        instruction: "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes\
                      .multicast::cluster [%0], [%1, {%3, %4, %5, %6}], [%2], %7;",
        operands: r#":"r"(target),"l"(map),"r"(mbarrier),"r"(x),"r"(y),"r"(z),"r"(w),"h"(blocks):"memory""#,
    },
    Golden {
        name: "tma_store_2d",
        instruction: "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];",
        operands: r#":"l"(map),"r"(source),"r"(x),"r"(y):"memory""#,
    },
    Golden {
        name: "tma_store_3d",
        instruction: "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];",
        operands: r#":"l"(map),"r"(source),"r"(x),"r"(y),"r"(z):"memory""#,
    },
    Golden {
        name: "tma_add_3d",
        instruction: "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group \
                      [%0, {%2, %3, %4}], [%1];",
        operands: r#":"l"(map),"r"(source),"r"(x),"r"(y),"r"(z):"memory""#,
    },
    Golden { name: "bulk_commit", instruction: "cp.async.bulk.commit_group;", operands: r#"::"memory""# },
    Golden {
        name: "bulk_wait_read",
        instruction: "cp.async.bulk.wait_group.read %0;",
        operands: r#":"n"(GROUPS):"memory""#,
    },
    Golden {
        name: "elect",
        instruction: "{ .reg .pred here; elect.sync _|here, 0xffffffff; selp.u32 %0, 1, 0, here; }",
        operands: r#""=r"(elected)"#,
    },
    Golden {
        name: "take_registers",
        instruction: "setmaxnreg.inc.sync.aligned.u32 %0;",
        operands: r#":"n"(REGISTERS)"#,
    },
    Golden {
        name: "give_registers",
        instruction: "setmaxnreg.dec.sync.aligned.u32 %0;",
        operands: r#":"n"(REGISTERS)"#,
    },
    Golden { name: "barrier", instruction: "bar.sync %0, %1;", operands: r#":"n"(ID),"n"(THREADS):"memory""# },
    Golden { name: "barrier_arrive", instruction: "bar.arrive %0, %1;", operands: r#":"n"(ID),"n"(THREADS):"memory""# },
    Golden {
        name: "stmatrix_x4",
        instruction: "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};",
        operands: r#":"r"(row),"r"(in[0]),"r"(in[1]),"r"(in[2]),"r"(in[3]):"memory""#,
    },
    Golden {
        name: "stmatrix_x4_trans",
        instruction: "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};",
        operands: r#":"r"(row),"r"(in[0]),"r"(in[1]),"r"(in[2]),"r"(in[3]):"memory""#,
    },
    // The first source is the upper half.
    Golden {
        name: "pack_bf16",
        instruction: "cvt.rn.bf16x2.f32 %0, %1, %2;",
        operands: r#""=r"(packed):"f"(second),"f"(first)"#,
    },
    Golden {
        name: "pack_f16",
        instruction: "cvt.rn.f16x2.f32 %0, %1, %2;",
        operands: r#""=r"(packed):"f"(second),"f"(first)"#,
    },
    Golden { name: "rcp", instruction: "rcp.approx.ftz.f32 %0, %1;", operands: r#""=f"(result):"f"(x)"# },
    Golden { name: "wgmma_fence", instruction: "wgmma.fence.sync.aligned;", operands: r#"::"memory""# },
    Golden { name: "wgmma_commit", instruction: "wgmma.commit_group.sync.aligned;", operands: r#"::"memory""# },
    Golden {
        name: "wgmma_wait",
        instruction: "wgmma.wait_group.sync.aligned %0;",
        operands: r#":"n"(GROUPS):"memory""#,
    },
    // After the descriptors: whether it adds, which a constant may say, then neither operand negated, and which of them are across the depth.
    Golden {
        name: "wgmma_bf16",
        instruction: "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {%0…%127}, %128, %129, 1, 1, 1, %130, %131;",
        operands: ADDING,
    },
    Golden {
        name: "wgmma_f16",
        instruction: "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {%0…%127}, %128, %129, 1, 1, 1, %130, %131;",
        operands: ADDING,
    },
    Golden {
        name: "wgmma_first_bf16",
        instruction: "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {%0…%127}, %128, %129, 0, 1, 1, %130, %131;",
        operands: FIRST,
    },
    Golden {
        name: "wgmma_first_f16",
        instruction: "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {%0…%127}, %128, %129, 0, 1, 1, %130, %131;",
        operands: FIRST,
    },
];
