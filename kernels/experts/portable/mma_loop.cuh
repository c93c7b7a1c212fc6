// The main loop for tensor cores on sm_80 and later: mma.sync with f32 accumulators, ldmatrix, cp.async in four stages. For
// bf16 and f16; for TF32 values beside f16, whose products are TF32's; and, where both operands run along the depth, for f32
// rounded to TF32, which keeps 10 bits of each factor and must be asked for.
//
// A tile is 128 vectors of A by 256 vectors of B, 64 bytes of the larger type deep. Its eight warps are two by four: fragments
// of 16 vectors are dealt out to the warps of a side in turn, four to each, so that a tile with fewer rows or columns costs
// every warp the same to within one. How a step of an operand lies in shared memory, and how it gets there, is the operand's
// (mma_operands.cuh, tf32_operands.cuh).
//
// Fragments of one half of a step are loaded while those of the half before are multiplied, across the barrier too. Warps
// whose columns are not all there, in a tile at the edge, load what they multiply and no more, both halves before the barrier.
//
// Barriers: one before the first step and one in the middle of each, after each thread has waited for its own copies of the
// next stage; it also says that all have read the stage of this step, which is filled again at once. One after the last,
// because the products of a tile leave through the same shared memory.
#pragma once

#include "abi.h"
#include "device/ptx.cuh"
#include "experts/portable/mma_operands.cuh"
#include "experts/portable/tf32_operands.cuh"
#include "experts/product_tile.cuh"

namespace da_moe {

// d += a · b on the tensor cores, of words that hold elements of type S.
template <class S>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_bf16(d, a, b);
}
template <>
__device__ __forceinline__ void mma<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_f16(d, a, b);
}
template <>
__device__ __forceinline__ void mma<tf32>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_tf32(d, a, b);
}

// What elements of two types are multiplied as: one type of 16 bits as it is, everything else as TF32.
template <class A, class B>
struct MultipliedAs {
    using Type = tf32;
};
template <>
struct MultipliedAs<bf16, bf16> {
    using Type = bf16;
};
template <>
struct MultipliedAs<f16, f16> {
    using Type = f16;
};

// ALIGNED: every row of both operands starts at a multiple of 16 bytes, and so can be copied in the background.
template <bool ALIGNED, class SourceA, class SourceB>
class MmaLoop {
public:
    using Factor = typename MultipliedAs<typename SourceA::Element, typename SourceB::Element>::Type;
    static constexpr int THREADS = MMA_THREADS;
    // On a multiprocessor, with registers left beside the products on their way out.
    static constexpr bool ALONE = ALIGNED;
    static constexpr int TILE_ROWS = GEMM_TILE_ROWS;
    static constexpr int TILE_COLUMNS = GEMM_TILE_COLUMNS;
    // Elements of one step of the depth.
    static constexpr int STEP = MMA_STEP_BYTES / static_cast<int>(sizeof(Factor));
    // Half of a tile's rows at a time has room where the stages were.
    using Products = ProductTile<TILE_ROWS / 2, TILE_COLUMNS>;

    __device__ __forceinline__ explicit MmaLoop(unsigned char* shared)
        : shared_(shared), address_(ptx::shared_address(shared)) {}

    // The products of a tile with so many rows stay in the registers of the block.
    __device__ __forceinline__ void run(const SourceA& from_a, const SourceB& from_b, int rows, int depth) {
        rows_ = SideA::fragments(rows, row_warp());
        columns_ = SideB::fragments(from_b.vectors(), column_warp());
        A a(from_a, shared_, address_, depth, row_warp());
        B b(from_b, shared_ + A::BYTES, address_ + A::BYTES, depth, column_warp());
#pragma unroll
        for (int i = 0; i < SideA::FRAGMENTS; i++) {
#pragma unroll
            for (int j = 0; j < 2 * SideB::FRAGMENTS; j++) {
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    products_[i][j][k] = 0.0f;
                }
            }
        }
        const int steps = (depth + STEP - 1) / STEP;
        // Past the last step an empty group keeps the count of groups in step.
        const auto fill = [&](int step) {
            if (step < steps) {
                a.fill(stage(step), step);
                b.fill(stage(step), step);
            }
            ptx::cp_async_commit();
        };
        for (int step = 0; step < STAGES; step++) {
            fill(step);
        }
        ptx::cp_async_wait<STAGES - 1>();
        __syncthreads();
        Fragments f;
        if (steps > 0 && is_ahead()) {
            load_first(f, a, b);
        }
        for (int step = 0; step < steps; step++) {
            multiply<0>(f, a, b, stage(step));
            ptx::cp_async_wait<STAGES - 2>();
            __syncthreads();
            fill(step + STAGES);
            // After the last step its own first half once more: there is no other, and nobody multiplies it.
            multiply<1>(f, a, b, stage(min(step + 1, steps - 1)));
        }
        ptx::cp_async_wait<0>();
        __syncthreads();
    }

    // Hands over the products of one half of the rows, in the shared memory that the stages were in.
    template <int HALF>
    __device__ __forceinline__ Products half_of_products() const {
        Products products(reinterpret_cast<float*>(shared_));
        const int thread = computed_here(static_cast<int>(threadIdx.x));
        const int lane = thread % WARP;
        const int first_row = thread / WARP / SideB::WARPS * MMA_FRAGMENT + lane / 4;
        const int first_column = thread / WARP % SideB::WARPS * MMA_FRAGMENT + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < SideA::FRAGMENTS / 2; i++) {
            const int row = i * SideA::STRIDE + first_row;
#pragma unroll
            for (int j = 0; j < 2 * SideB::FRAGMENTS; j++) {
                const int column = j / 2 * SideB::STRIDE + j % 2 * 8 + first_column;
                const float(&of_pair)[4] = products_[HALF * SideA::FRAGMENTS / 2 + i][j];
                products.put(row, column, of_pair[0], of_pair[1]);
                products.put(row + 8, column, of_pair[2], of_pair[3]);
            }
        }
        return products;
    }

private:
    using SideA = MmaSide<true, TILE_ROWS, 2>;
    using SideB = MmaSide<false, TILE_COLUMNS, 4>;
    using A = MmaOperand<ALIGNED, SourceA, SideA, STEP>;
    using B = MmaOperand<ALIGNED, SourceB, SideB, STEP>;

    static constexpr int STAGES = 4;
    static constexpr int STAGE_BYTES = A::BYTES + B::BYTES;

    static_assert(STAGES * STAGE_BYTES <= GEMM_SHARED_BYTES, "what the launch gives a block");
    static_assert(Products::ROWS == SideA::FRAGMENTS / 2 * SideA::STRIDE, "a half is half of every warp's fragments");
    static_assert(Products::BYTES <= GEMM_SHARED_BYTES, "the products take the place of the stages");
    static_assert(SideA::WARPS * SideB::WARPS * WARP == THREADS, "every warp has a place");

    __device__ __forceinline__ static int row_warp() { return warp_index() / SideB::WARPS; }
    __device__ __forceinline__ static int column_warp() { return warp_index() % SideB::WARPS; }
    __device__ __forceinline__ static int stage(int step) {
        return static_cast<int>(static_cast<unsigned>(step) % STAGES) * STAGE_BYTES;
    }
    // Where rows start anywhere, copies take the registers that fragments ahead of time would.
    __device__ __forceinline__ bool is_ahead() const { return ALIGNED && columns_ == SideB::FRAGMENTS; }

    // What is multiplied next: of A in both halves of a step, since all of A's meet each of B's.
    struct Fragments {
        uint32_t a[2][SideA::FRAGMENTS][A::WORDS];
        uint32_t b[SideB::FRAGMENTS][B::WORDS];
    };

    __device__ __forceinline__ static void load_first(Fragments& f, const A& a, const B& b) {
        load_rows<SideA::FRAGMENTS, 0>(f, a, 0);
#pragma unroll
        for (int j = 0; j < SideB::FRAGMENTS; j += B::AT_ONCE) {
            b.load(f.b + j, 0, j, 0);
        }
    }

    // HALF of a step. `next` is the stage that the half after it is in.
    template <int HALF>
    __device__ __forceinline__ void multiply(Fragments& f, const A& a, const B& b, int next) {
        if (!is_ahead()) {
            if (HALF == 0) {
                multiply_edge(a, b, next);
            }
            return;
        }
        switch (rows_) {
            case 4:
                return multiply_rows<4, HALF>(f, a, b, next);
            case 3:
                return multiply_rows<3, HALF>(f, a, b, next);
            case 2:
                return multiply_rows<2, HALF>(f, a, b, next);
            case 1:
                return multiply_rows<1, HALF>(f, a, b, next);
            default:
                return;
        }
    }

    // Loads the other half's fragments into the registers of those that are multiplied no more.
    template <int ROWS, int HALF>
    __device__ __forceinline__ void multiply_rows(Fragments& f, const A& a, const B& b, int next) {
        load_rows<ROWS, 1 - HALF>(f, a, next);
        uint32_t of_a[ROWS][4];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            A::factor(of_a[i], f.a[HALF][i]);
        }
#pragma unroll
        for (int j = 0; j < SideB::FRAGMENTS; j++) {
            uint32_t of_b[4];
            B::factor(of_b, f.b[j]);
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                multiply_pair(i, j, of_a[i], of_b);
            }
            if ((j + 1) % B::AT_ONCE == 0) {
                const int first = j + 1 - B::AT_ONCE;
                b.load(f.b + first, next, first, 1 - HALF);
            }
        }
    }

    // What comes with a row's fragment but is past ROWS is multiplied by nobody.
    template <int ROWS, int HALF>
    __device__ __forceinline__ static void load_rows(Fragments& f, const A& a, int stage) {
#pragma unroll
        for (int i = 0; i < ROWS; i += A::AT_ONCE) {
            a.load(f.a[HALF] + i, stage, i, HALF);
        }
    }

    // A whole step of a tile whose last columns are not there.
    __device__ __forceinline__ void multiply_edge(const A& a, const B& b, int stage) {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            uint32_t held_b[B::AT_ONCE][B::WORDS];
#pragma unroll
            for (int j = 0; j < SideB::FRAGMENTS - (ALIGNED ? 1 : 0); j++) {
                if (j < columns_) {
                    if (j % B::AT_ONCE == 0) {
                        b.load(held_b, stage, j, k);
                    }
                    uint32_t of_b[4];
                    B::factor(of_b, held_b[j % B::AT_ONCE]);
                    uint32_t held_a[A::AT_ONCE][A::WORDS];
#pragma unroll
                    for (int i = 0; i < SideA::FRAGMENTS; i++) {
                        if (i < rows_) {
                            if (i % A::AT_ONCE == 0) {
                                a.load(held_a, stage, i, k);
                            }
                            uint32_t of_a[4];
                            A::factor(of_a, held_a[i % A::AT_ONCE]);
                            multiply_pair(i, j, of_a, of_b);
                        }
                    }
                }
            }
        }
    }

    __device__ __forceinline__ void multiply_pair(int i, int j, const uint32_t (&of_a)[4], const uint32_t (&of_b)[4]) {
        mma<Factor>(products_[i][2 * j], of_a, {of_b[0], of_b[1]});
        mma<Factor>(products_[i][2 * j + 1], of_a, {of_b[2], of_b[3]});
    }

    unsigned char* shared_;
    uint32_t address_;
    // Fragments of this warp that have something in them.
    int rows_ = 0;
    int columns_ = 0;
    float products_[SideA::FRAGMENTS][2 * SideB::FRAGMENTS][4];
};

}  // namespace da_moe
