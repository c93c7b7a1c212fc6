// SPEC §1: one value for each head and token straight from 16-bit queries and keys, by tensor cores. S = q·kᵀ is formed a
// tile at a time in registers and reduced there; nothing of its size is in memory.
//
//   importance_query_key_{bf16,f16}_64    width up to 64: own rows stay in registers
//   importance_query_key_{bf16,f16}_128   width up to 128
//   importance_query_key_{bf16,f16}       any width: own rows come again with every tile
//
// Every measure is the same walk: received ones keep keys and meet queries, given ones the other way round, and what a
// thread does with 64 scores depends on the measure alone (attention/reduce.cuh):
//   received-max                    1 multiply-add and 1 maximum a score: max e^(s−lse) = e^max(s−lse)
//   received-sum, received-mean     + 1 power of two and 1 sum
//   given-peak with lse             as received-max
//   given-peak, log-sum-exp         a running maximum, 1 power of two and 1 sum against it
//   given-entropy                   + 1 multiply-add
// Received measures need the log-sum-exp of every query: the caller's, or a launch of the same kernel before.
//
// Grid (T / 128 + B, H), which lengths on the device do not change (attention/sequence_tile.cuh), block 4 warps: 128 rows, 32 a
// warp, against 64 columns at a time. Under a causal mask tiles that no row sees are not in the loop, warps that see none
// of a tile do not multiply, and only tiles on the diagonal compare positions. A column's shift of −∞ hides masked tokens,
// whose rows are read like all others, and tails, which are rows of zeros.
//
// Barriers: one a chunk (64 elements of the width; 32 for any width), over a ring of three stages filled by cp.async:
// 24 KiB of shared memory, 36 KiB for any width. A row's columns are spread over four lanes, which are combined in their
// order at the end: the same bits every run, no atomics.
//
// Operations: 2·width·H·Σ n² (half of it when causal). Bytes: T·(H + Hk)·width·2 + 8·H·T of memory, and H·Σ n²/128·width·2
// of the second-level cache, since every tile of rows meets the whole sequence. Floor for n = 8192, H = 32, width 128:
// 0.56 ms at 989 T operations/s, 0.78 ms at 5.5 TB/s of that cache; twice with the log-sum-exp.

#include "importance/attention/tensor_core.cuh"
#include "importance/attention/walk.cuh"

// Two blocks a multiprocessor leave a thread the registers for its rows, its sums and what comes next.
#define QUERY_KEY(storage, suffix, chunks)                                            \
    extern "C" __global__ void __launch_bounds__(da_moe::THREADS, 2)                  \
        importance_query_key_##suffix(const __grid_constant__ ImportanceQueryKey p) { \
        da_moe::measure<da_moe::TensorCore<storage, chunks>>(p);                      \
    }                                                                                 \
    GPU_KERNEL(importance_query_key_##suffix)

QUERY_KEY(da_moe::bf16, bf16_64, 1)
QUERY_KEY(da_moe::bf16, bf16_128, 2)
QUERY_KEY(da_moe::bf16, bf16, 0)
QUERY_KEY(da_moe::f16, f16_64, 1)
QUERY_KEY(da_moe::f16, f16_128, 2)
QUERY_KEY(da_moe::f16, f16, 0)
