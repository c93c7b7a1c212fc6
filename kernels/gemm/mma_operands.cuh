// How an operand of the tensor cores lies in shared memory: 128 vectors of 64 bytes a step, copied in by 256 threads, handed
// out as the fragments that mma.sync wants. Both layouts are free of bank conflicts, copying and reading.
//
// A fragment is four 8 × 8 matrices. Of A: 16 vectors by 32 bytes of depth, in the order (first 8 vectors, first half),
// (last 8, first half), (first 8, second half), (last 8, second half). Of B, whose pairs are two products' operands:
// (first 8, first half), (first 8, second half), (last 8, first half), (last 8, second half).
#pragma once

#include "../abi.h"
#include "../device/ptx.cuh"
#include "../device/storage.cuh"
#include "../device/warp.cuh"

namespace da_moe {

constexpr int MMA_STEP_BYTES = 64;
constexpr int MMA_THREADS = 256;

// Copies 16 bytes of a row from element `first` on, of which `count` elements are there; the others become zero.
template <bool ALIGNED, class Source>
__device__ __forceinline__ void copy_chunk(const Source& from, unsigned char* shared, uint32_t address, int at,
                                           const typename Source::Element* row, int first, int count) {
    using S = typename Source::Element;
    constexpr int CHUNK = 16 / static_cast<int>(sizeof(S));
    count = row == nullptr ? 0 : min(max(count, 0), CHUNK);
    if constexpr (ALIGNED) {
        // An address is wanted even where nothing is read.
        const S* source = count > 0 ? row + first : from.somewhere();
        ptx::cp_async_16(address + at, source, count * static_cast<int>(sizeof(S)));
    } else {
        Vector<S, CHUNK> chunk;
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            chunk.elements[i] = i < count ? row[first + i] : from_float<S>(0.0f);
        }
        chunk.store(reinterpret_cast<S*>(shared + at));
    }
}

template <bool ALIGNED, class Source, bool ACROSS = Source::ACROSS>
class MmaOperand;

// Rows along the depth: 128 rows of four 16-byte chunks, chunk c of row r at c ^ (r / 2 mod 4).
template <bool ALIGNED, class Source>
class MmaOperand<ALIGNED, Source, false> {
public:
    __device__ __forceinline__ MmaOperand(const Source& from, unsigned char* shared, uint32_t address, int depth)
        : from_(from), shared_(shared), address_(address), depth_(depth) {
#pragma unroll
        for (int copy = 0; copy < COPIES; copy++) {
            rows_[copy] = from.row(copied_row(copy));
        }
    }

    __device__ __forceinline__ void fill(int stage, int step) {
        const int chunk = static_cast<int>(threadIdx.x) % CHUNKS;
        const int first = (step * CHUNKS + chunk) * CHUNK;
#pragma unroll
        for (int copy = 0; copy < COPIES; copy++) {
            const int at = stage + place(copied_row(copy), chunk);
            copy_chunk<ALIGNED>(from_, shared_, address_, at, rows_[copy], first, depth_ - first);
        }
    }

    __device__ __forceinline__ void fragment_of_a(uint32_t (&out)[4], int stage, int first, int k) const {
        const int lane = lane_index();
        ptx::ldmatrix_x4(out, address_ + stage + place(first + lane % 16, 2 * k + lane / 16));
    }

    __device__ __forceinline__ void fragment_of_b(uint32_t (&out)[4], int stage, int first, int k) const {
        const int lane = lane_index();
        ptx::ldmatrix_x4(out, address_ + stage + place(first + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
    }

private:
    using S = typename Source::Element;
    static constexpr int CHUNK = 16 / static_cast<int>(sizeof(S));
    static constexpr int CHUNKS = MMA_STEP_BYTES / 16;
    static constexpr int ROWS_A_COPY = MMA_THREADS / CHUNKS;
    static constexpr int COPIES = GEMM_TILE / ROWS_A_COPY;

    __device__ __forceinline__ static int copied_row(int copy) {
        return copy * ROWS_A_COPY + static_cast<int>(threadIdx.x) / CHUNKS;
    }

    __device__ __forceinline__ static int place(int row, int chunk) {
        return row * MMA_STEP_BYTES + (chunk ^ (row / 2 % CHUNKS)) * 16;
    }

    const Source& from_;
    unsigned char* shared_;
    uint32_t address_;
    int depth_;
    const S* rows_[COPIES];
};

// Rows across the depth, of 16-bit elements: 32 rows of sixteen 16-byte chunks, chunk c of row r at c ^ (r mod 8), turned
// by ldmatrix. Where the next step's rows are is asked for a step ahead, since a gathered row's token has to be read first.
template <bool ALIGNED, class Source>
class MmaOperand<ALIGNED, Source, true> {
public:
    __device__ __forceinline__ MmaOperand(const Source& from, unsigned char* shared, uint32_t address, int)
        : from_(from), shared_(shared), address_(address) {
        find_rows(0);
    }

    __device__ __forceinline__ void fill(int stage, int step) {
        const int chunk = static_cast<int>(threadIdx.x) % CHUNKS;
        const int first = chunk * CHUNK;
#pragma unroll
        for (int copy = 0; copy < COPIES; copy++) {
            const int at = stage + place(copied_row(copy), chunk);
            copy_chunk<ALIGNED>(from_, shared_, address_, at, rows_[copy], first, from_.width() - first);
        }
        find_rows(step + 1);
    }

    __device__ __forceinline__ void fragment_of_a(uint32_t (&out)[4], int stage, int first, int k) const {
        const int lane = lane_index();
        const int row = k * 16 + lane / 16 * 8 + lane % 8;
        ptx::ldmatrix_x4_trans(out, address_ + stage + place(row, first / CHUNK + lane / 8 % 2));
    }

    __device__ __forceinline__ void fragment_of_b(uint32_t (&out)[4], int stage, int first, int k) const {
        const int lane = lane_index();
        ptx::ldmatrix_x4_trans(out, address_ + stage + place(k * 16 + lane % 16, first / CHUNK + lane / 16));
    }

private:
    using S = typename Source::Element;
    static_assert(sizeof(S) == 2, "ldmatrix turns 16-bit elements");
    static constexpr int CHUNK = 16 / static_cast<int>(sizeof(S));
    static constexpr int CHUNKS = GEMM_TILE / CHUNK;
    static constexpr int ROWS = MMA_STEP_BYTES / static_cast<int>(sizeof(S));
    static constexpr int ROWS_A_COPY = MMA_THREADS / CHUNKS;
    static constexpr int COPIES = ROWS / ROWS_A_COPY;

    __device__ __forceinline__ static int copied_row(int copy) {
        return copy * ROWS_A_COPY + static_cast<int>(threadIdx.x) / CHUNKS;
    }

    __device__ __forceinline__ static int place(int row, int chunk) { return (row * CHUNKS + (chunk ^ row % 8)) * 16; }

    __device__ __forceinline__ void find_rows(int step) {
#pragma unroll
        for (int copy = 0; copy < COPIES; copy++) {
            rows_[copy] = from_.row(step * ROWS + copied_row(copy));
        }
    }

    const Source& from_;
    unsigned char* shared_;
    uint32_t address_;
    const S* rows_[COPIES];
};

}  // namespace da_moe
