//! `kernels/device/ptx.cuh`, as it was reviewed.

use super::{Golden, Header, Intrinsic};

const MMA_OPERANDS: &str =
    r#""+f"(d[0]),"+f"(d[1]),"+f"(d[2]),"+f"(d[3]):"r"(a[0]),"r"(a[1]),"r"(a[2]),"r"(a[3]),"r"(b[0]),"r"(b[1])"#;
const LDMATRIX_OPERANDS: &str = r#""=r"(out[0]),"=r"(out[1]),"=r"(out[2]),"=r"(out[3]):"r"(row):"memory""#;

pub const PTX: Header = Header {
    path: "device/ptx.cuh",
    kernels: "conformance/conformance.cu",
    golden: GOLDEN,
    pure: &["ex2", "round_tf32"],
    intrinsics: &[Intrinsic {
        name: "shared_address",
        body: "return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));",
    }],
    helpers: &[],
};

const GOLDEN: &[Golden] = &[
    Golden { name: "shared_address", instruction: "", operands: "" },
    Golden {
        name: "cp_async_16",
        instruction: "cp.async.cg.shared.global [%0], [%1], 16, %2;",
        operands: r#":"r"(target),"l"(source),"r"(source_bytes):"memory""#,
    },
    Golden {
        name: "cp_async_16_if",
        instruction: "{ .reg .pred ignore; setp.eq.u32 ignore, %2, 0; cp.async.cg.shared.global [%0], [%1], 16, ignore; }",
        operands: r#":"r"(target),"l"(source),"r"(static_cast<uint32_t>(is_there)):"memory""#,
    },
    Golden { name: "cp_async_commit", instruction: "cp.async.commit_group;", operands: r#"::"memory""# },
    Golden { name: "cp_async_wait", instruction: "cp.async.wait_group %0;", operands: r#":"n"(GROUPS):"memory""# },
    Golden {
        name: "ldmatrix_x4",
        instruction: "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];",
        operands: LDMATRIX_OPERANDS,
    },
    Golden {
        name: "ldmatrix_x4_trans",
        instruction: "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];",
        operands: LDMATRIX_OPERANDS,
    },
    Golden {
        name: "mma_bf16",
        instruction: "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, \
                      {%8, %9}, {%0, %1, %2, %3};",
        operands: MMA_OPERANDS,
    },
    Golden {
        name: "mma_f16",
        instruction: "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, \
                      {%0, %1, %2, %3};",
        operands: MMA_OPERANDS,
    },
    Golden { name: "ex2", instruction: "ex2.approx.ftz.f32 %0, %1;", operands: r#""=f"(result):"f"(x)"# },
    Golden {
        name: "round_tf32",
        instruction: "cvt.rna.tf32.f32 %0, %1;",
        operands: r#""=r"(rounded):"f"(__uint_as_float(bits))"#,
    },
    Golden {
        name: "mma_tf32",
        instruction: "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, \
                      {%0, %1, %2, %3};",
        operands: MMA_OPERANDS,
    },
];
