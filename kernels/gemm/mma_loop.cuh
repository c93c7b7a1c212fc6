// The main loop for tensor cores on sm_80 and later: mma.sync with f32 accumulators, ldmatrix, cp.async in four stages. For
// bf16 and f16; and for f32 as TF32, which keeps 10 bits of each factor and must be asked for.
//
// A tile is 128 rows by 128 rows of weights, 64 bytes deep. Eight warps share all rows of A and have 16 rows of weights each, so
// that a tile with fewer rows skips whole 16-row fragments in every warp alike. Shared memory holds rows of four 16-byte
// chunks, chunk c of row r at c ^ (r / 2 mod 4): both the copies and ldmatrix are then free of bank conflicts.
//
// Barriers: one __syncthreads a step, after each thread has waited for its own copies of the stage that is read next;
// the same barrier says that the stage before it is free to be filled. One before the first step and one after the last, because
// the products of a tile leave through the same shared memory.
#pragma once

#include "../device/ptx.cuh"
#include "../device/storage.cuh"
#include "epilogue.cuh"
#include "operands.cuh"

namespace da_moe {

// d += a · b on the tensor cores.
template <class S>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_bf16(d, a, b);
}
template <>
__device__ __forceinline__ void mma<float>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const uint32_t rounded_a[4] = {ptx::round_tf32(a[0]), ptx::round_tf32(a[1]), ptx::round_tf32(a[2]),
                                   ptx::round_tf32(a[3])};
    const uint32_t rounded_b[2] = {ptx::round_tf32(b[0]), ptx::round_tf32(b[1])};
    ptx::mma_tf32(d, rounded_a, rounded_b);
}
template <>
__device__ __forceinline__ void mma<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_f16(d, a, b);
}

// ALIGNED: every row of both operands starts at a multiple of 16 bytes, and so can be copied in the background.
template <class S, bool GATED, bool ALIGNED>
class MmaLoop {
public:
    static constexpr int WARPS = 8;
    static constexpr int THREADS = WARPS * WARP;
    static constexpr int ROW_STEP = 16;
    static constexpr int TILE_ROWS = GEMM_TILE;
    static constexpr int TILE_COLUMNS = GATED ? GEMM_TILE / 2 : GEMM_TILE;
    using Output = TileOutput<S, TILE_ROWS, GEMM_TILE, GATED, 8>;

    __device__ __forceinline__ MmaLoop(const GroupedGemm& p, unsigned char* shared)
        : p_(p), shared_(shared), address_(ptx::shared_address(shared)) {}

    // The products of a tile stay in the registers of the block.
    __device__ __forceinline__ void run(const Tile& tile) {
        fragments_ = (tile.rows + ROW_STEP - 1) / ROW_STEP;
#pragma unroll
        for (int copy = 0; copy < COPIES; copy++) {
            const int row = copied_row(copy);
            a_[copy] = operand_a<S>(p_, tile, row);
            b_[copy] = operand_b<S, GATED, 8>(p_, tile, row);
        }
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                products_[f][0][i] = 0.0f;
                products_[f][1][i] = 0.0f;
            }
        }
        const int steps = (p_.depth + STEP - 1) / STEP;
        // No thread may fill a stage from which another still writes the tile before.
        __syncthreads();
        for (int step = 0; step < STAGES - 1; step++) {
            fill(step, steps);
        }
        for (int step = 0; step < steps; step++) {
            ptx::cp_async_wait<STAGES - 2>();
            __syncthreads();
            fill(step + STAGES - 1, steps);
            multiply(step % STAGES);
        }
        ptx::cp_async_wait<0>();
        __syncthreads();
    }

    // Hands over the products, and with them the shared memory that the stages were in.
    __device__ __forceinline__ Output output() {
        Output output(p_, reinterpret_cast<float*>(shared_));
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++) {
            const int row = f * ROW_STEP + lane_index() / 4;
            const int column = warp_index() * 16 + lane_index() % 4 * 2;
#pragma unroll
            for (int part = 0; part < 2; part++) {
                const float(&products)[4] = products_[f][part];
                output.put(row, column + part * 8, products[0], products[1]);
                output.put(row + 8, column + part * 8, products[2], products[3]);
            }
        }
        return output;
    }

private:
    // Elements of one step of the depth, and of the 16 bytes that are copied at once: a product takes two of those.
    static constexpr int STEP = 64 / static_cast<int>(sizeof(S));
    static constexpr int STAGES = 4;
    static constexpr int FRAGMENTS = TILE_ROWS / ROW_STEP;
    static constexpr int CHUNK = 16 / static_cast<int>(sizeof(S));
    static constexpr int CHUNKS = STEP / CHUNK;
    static constexpr int ROWS_A_COPY = THREADS / CHUNKS;
    static constexpr int COPIES = TILE_ROWS / ROWS_A_COPY;
    static constexpr int OPERAND_BYTES = TILE_ROWS * STEP * static_cast<int>(sizeof(S));

    static_assert(STAGES * 2 * OPERAND_BYTES == GEMM_SHARED_BYTES, "what the launch gives a block");
    static_assert(Output::BYTES <= GEMM_SHARED_BYTES, "the products take the place of the stages");

    __device__ __forceinline__ static int copied_row(int copy) {
        return copy * ROWS_A_COPY + static_cast<int>(threadIdx.x) / CHUNKS;
    }

    // Byte offset of a chunk in one operand of one stage.
    __device__ __forceinline__ static int place(int row, int chunk) {
        return row * STEP * static_cast<int>(sizeof(S)) + (chunk ^ (row / 2 % CHUNKS)) * 16;
    }

    __device__ __forceinline__ static int stage_offset(int stage, bool b) { return (stage * 2 + b) * OPERAND_BYTES; }

    // Starts the copies of a step; past the last one an empty group keeps the count of groups in step.
    __device__ __forceinline__ void fill(int step, int steps) {
        if (step < steps) {
            const int chunk = static_cast<int>(threadIdx.x) % CHUNKS;
            const int first = step * STEP + chunk * CHUNK;
#pragma unroll
            for (int copy = 0; copy < COPIES; copy++) {
                const int at = place(copied_row(copy), chunk);
                copy_chunk(stage_offset(step % STAGES, false) + at, a_[copy], first);
                copy_chunk(stage_offset(step % STAGES, true) + at, b_[copy], first);
            }
        }
        ptx::cp_async_commit();
    }

    // The elements of a chunk of a row from `first` on; zeros past its depth and for a row that is not there.
    __device__ __forceinline__ void copy_chunk(int at, const S* row, int first) {
        const int count = row == nullptr ? 0 : min(max(p_.depth - first, 0), CHUNK);
        if constexpr (ALIGNED) {
            // An address is wanted even where nothing is read.
            const void* source = count > 0 ? static_cast<const void*>(row + first) : p_.b;
            ptx::cp_async_16(address_ + at, source, count * static_cast<int>(sizeof(S)));
        } else {
            Vector<S, CHUNK> chunk;
#pragma unroll
            for (int i = 0; i < CHUNK; i++) {
                chunk.elements[i] = i < count ? row[first + i] : from_float<S>(0.0f);
            }
            chunk.store(reinterpret_cast<S*>(shared_ + at));
        }
    }

    __device__ __forceinline__ void multiply(int stage) {
        const uint32_t a_at = address_ + stage_offset(stage, false);
        const uint32_t b_at = address_ + stage_offset(stage, true);
        const int lane = lane_index();
#pragma unroll
        for (int k = 0; k < CHUNKS / 2; k++) {
            // Matrices in the order (first 8 rows, first chunk), (first 8, second), (last 8, first), (last 8, second).
            uint32_t b[4];
            ptx::ldmatrix_x4(b, b_at + place(warp_index() * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
            const uint32_t halves[2][2] = {{b[0], b[1]}, {b[2], b[3]}};
#pragma unroll
            for (int f = 0; f < FRAGMENTS; f++) {
                if (f < fragments_) {
                    // In the order (first 8 rows, first chunk), (last 8, first), (first 8, second), (last 8, second).
                    uint32_t a[4];
                    ptx::ldmatrix_x4(a, a_at + place(f * ROW_STEP + lane % 16, 2 * k + lane / 16));
                    mma<S>(products_[f][0], a, halves[0]);
                    mma<S>(products_[f][1], a, halves[1]);
                }
            }
        }
    }

    const GroupedGemm& p_;
    unsigned char* shared_;
    uint32_t address_;
    int fragments_ = 0;
    const S* a_[COPIES];
    const S* b_[COPIES];
    float products_[FRAGMENTS][2][4];
};

}  // namespace da_moe
