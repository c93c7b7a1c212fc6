// How an operand of the tensor cores lies in shared memory: so many vectors of a step's depth, copied in by 256 threads,
// handed out as the fragments that mma.sync wants. All layouts are free of bank conflicts, copying and reading. What is
// multiplied as TF32 and lies across the depth is in tf32_operands.cuh.
//
// A fragment is four 8 × 8 matrices. Of A: 16 vectors by 32 bytes of depth, in the order (first 8 vectors, first half),
// (last 8, first half), (first 8, second half), (last 8, second half). Of B, whose pairs are two products' operands:
// (first 8, first half), (first 8, second half), (last 8, first half), (last 8, second half).
//
// A lane's place in a fragment is computed once; where a fragment is relative to the warp's first one is known to the
// compiler, so that a step costs an operand one addition for each half of its depth.
//
// An operand loads AT_ONCE neighbouring fragments of a warp at a time, WORDS registers each, and makes of the registers of one
// the four words that are multiplied.
#pragma once

#include "abi.h"
#include "device/ptx.cuh"
#include "device/storage.cuh"
#include "device/warp.cuh"
#include "experts/operands.cuh"

namespace da_moe {

// Of a vector in a step, of the larger type where there are two.
constexpr int MMA_STEP_BYTES = 64;
constexpr int MMA_THREADS = 256;
// Vectors of a fragment.
constexpr int MMA_FRAGMENT = 16;

// One side of a tile: its vectors, and the warps that divide them. Fragment f is warp f mod WARPS's.
template <bool IS_A_, int VECTORS_, int WARPS_>
struct MmaSide {
    static constexpr bool IS_A = IS_A_;
    static constexpr int VECTORS = VECTORS_;
    static constexpr int WARPS = WARPS_;
    // Fragments of one warp, and vectors from one to its next.
    static constexpr int FRAGMENTS = VECTORS / (MMA_FRAGMENT * WARPS);
    static constexpr int STRIDE = MMA_FRAGMENT * WARPS;

    // Of the two bits that say which of a fragment's matrices a lane has the address of: the one for the vectors, and the
    // one for the depth.
    __device__ __forceinline__ static int last_vectors() { return IS_A ? lane_index() / 8 % 2 : lane_index() / 16; }
    __device__ __forceinline__ static int last_half() { return IS_A ? lane_index() / 16 : lane_index() / 8 % 2; }

    // Fragments with something in them that one warp has, of so many vectors.
    __device__ __forceinline__ static int fragments(int vectors, int warp) {
        return (min((vectors + MMA_FRAGMENT - 1) / MMA_FRAGMENT, FRAGMENTS * WARPS) - warp + WARPS - 1) / WARPS;
    }
};

// Copies 16 bytes to shared memory, of which `count` elements are there; the others become zero.
template <bool ALIGNED, class S>
__device__ __forceinline__ void copy_chunk(unsigned char* shared, uint32_t address, int at, const S* from, int count) {
    constexpr int CHUNK = 16 / static_cast<int>(sizeof(S));
    count = min(max(count, 0), CHUNK);
    if constexpr (ALIGNED) {
        ptx::cp_async_16(address + at, from, count * static_cast<int>(sizeof(S)));
    } else {
        Vector<S, CHUNK> chunk;
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            chunk.elements[i] = i < count ? from[i] : from_float<S>(0.0f);
        }
        chunk.store(reinterpret_cast<S*>(shared + at));
    }
}

// As above where all of the elements are there or none.
template <bool ALIGNED, class S>
__device__ __forceinline__ void copy_whole(unsigned char* shared, uint32_t address, int at, const S* from, bool is_there) {
    if constexpr (ALIGNED) {
        ptx::cp_async_16_if(address + at, from, is_there);
    } else {
        copy_chunk<false>(shared, address, at, from, is_there ? 16 / static_cast<int>(sizeof(S)) : 0);
    }
}

// What is multiplied of a word of a fragment: f32 is rounded to TF32, everything else is what it is.
template <class S>
__device__ __forceinline__ uint32_t as_factor(uint32_t word) { return word; }
template <>
__device__ __forceinline__ uint32_t as_factor<float>(uint32_t word) { return ptx::round_tf32(word); }

// DEPTH elements of the depth are a step; SIZE is that of an element.
template <bool ALIGNED, class Source, class Side, int DEPTH, bool ACROSS = Source::ACROSS,
          int SIZE = static_cast<int>(sizeof(typename Source::Element))>
class MmaOperand;

// Rows along the depth: a row of four 16-byte chunks a vector, chunk c of row r at c ^ (r / 2 mod 4).
template <bool ALIGNED, class Source, class Side, int DEPTH, int SIZE>
class MmaOperand<ALIGNED, Source, Side, DEPTH, false, SIZE> {
public:
    static constexpr int BYTES = Side::VECTORS * MMA_STEP_BYTES;
    static constexpr int AT_ONCE = 1;
    static constexpr int WORDS = 4;

    // `warp` is the calling warp's number on this side.
    __device__ __forceinline__ MmaOperand(const Source& from, unsigned char* shared, uint32_t address, int depth, int warp)
        : shared_(shared), address_(address), depth_(depth) {
        const int row = warp * MMA_FRAGMENT + Side::last_vectors() * 8 + lane_index() % 8;
        lane_ = place(row, Side::last_half());
#pragma unroll
        for (int copy = 0; copy < COPIES; copy++) {
            const Row<S> row = from.row(copied_row(copy));
            there_ |= (row.is_there ? 1u : 0u) << copy;
            if (copy < ADDRESSES) {
                rows_[copy] = row.at + copied_chunk() * CHUNK;
            }
        }
        distance_ = from.distance(ROWS_A_COPY);
    }

    __device__ __forceinline__ void fill(int stage, int step) const {
        const int at = stage + place(copied_row(0), copied_chunk());
        const int first = step * CHUNKS * CHUNK;
        if (first + CHUNKS * CHUNK <= depth_) {
#pragma unroll
            for (int copy = 0; copy < COPIES; copy++) {
                copy_whole<ALIGNED>(shared_, address_, at + copy * COPY_BYTES, row(copy) + first, is_there(copy));
            }
            return;
        }
        const int count = max(depth_ - first - copied_chunk() * CHUNK, 0);
        const int from = count > 0 ? first : 0;
#pragma unroll
        for (int copy = 0; copy < COPIES; copy++) {
            copy_chunk<ALIGNED>(shared_, address_, at + copy * COPY_BYTES, row(copy) + from, is_there(copy) ? count : 0);
        }
    }

    // Fragment `f` of the warp's own, in half `k` of the step's depth.
    __device__ __forceinline__ void load(uint32_t (*to)[WORDS], int stage, int f, int k) const {
        ptx::ldmatrix_x4(to[0], address_ + stage + (lane_ ^ k * 32) + f * Side::STRIDE * MMA_STEP_BYTES);
    }

    __device__ __forceinline__ static void factor(uint32_t (&out)[4], const uint32_t (&held)[WORDS]) {
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            out[i] = as_factor<S>(held[i]);
        }
    }

private:
    using S = typename Source::Element;
    static_assert(DEPTH * SIZE == MMA_STEP_BYTES, "a row of a step is its four chunks");
    static constexpr int CHUNK = 16 / static_cast<int>(sizeof(S));
    static constexpr int CHUNKS = MMA_STEP_BYTES / 16;
    static constexpr int ROWS_A_COPY = MMA_THREADS / CHUNKS;
    static constexpr int COPIES = Side::VECTORS / ROWS_A_COPY;
    static constexpr int COPY_BYTES = ROWS_A_COPY * MMA_STEP_BYTES;
    static_assert(ROWS_A_COPY % 8 == 0 && Side::STRIDE % 8 == 0, "a place's turn does not change from copy to copy");

    // Rows that are not gathered are found from the first.
    static constexpr int ADDRESSES = Source::GATHERED ? COPIES : 1;

    __device__ __forceinline__ const S* row(int copy) const {
        return Source::GATHERED ? rows_[copy % ADDRESSES] : rows_[0] + copy * distance_;
    }

    __device__ __forceinline__ bool is_there(int copy) const { return (there_ >> copy & 1) != 0; }

    __device__ __forceinline__ static int copied_row(int copy) {
        return copy * ROWS_A_COPY + static_cast<int>(threadIdx.x) / CHUNKS;
    }
    __device__ __forceinline__ static int copied_chunk() { return static_cast<int>(threadIdx.x) % CHUNKS; }

    __device__ __forceinline__ static int place(int row, int chunk) {
        return row * MMA_STEP_BYTES + (chunk ^ (row / 2 % CHUNKS)) * 16;
    }

    unsigned char* shared_;
    uint32_t address_;
    int depth_;
    int lane_;
    uint32_t there_ = 0;
    int64_t distance_;
    const S* rows_[ADDRESSES];
};

// How rows across the depth are copied: DEPTH rows with a 16-byte chunk for every few vectors. Of 16-bit elements chunk c of
// row r is at c ^ (r mod 8), of 32 bits at c ^ 2 (r mod 4). A row is picked a step before it is copied, since a gathered row's
// token has to be read first.
template <bool ALIGNED, class Source, class Side, int DEPTH>
class CopyAcross {
public:
    using S = typename Source::Element;
    static constexpr int SIZE = static_cast<int>(sizeof(S));
    static constexpr int BYTES = Side::VECTORS * DEPTH * SIZE;
    static constexpr int CHUNK = 16 / SIZE;
    static constexpr int CHUNKS = Side::VECTORS / CHUNK;

    __device__ __forceinline__ CopyAcross(const Source& from, unsigned char* shared, uint32_t address)
        : from_(from), shared_(shared), address_(address), picked_(from.pick(copied_row())) {}

    __device__ __forceinline__ void fill(int stage, int step) {
        const Row<S> row = from_.picked(picked_);
        // Chunks that a thread copies are eight apart, which leaves their places' turns alone.
        const int at = stage + place(copied_row(), copied_chunk());
        if (ALIGNED && from_.width() >= Side::VECTORS) {
#pragma unroll
            for (int copy = 0; copy < COPIES; copy++) {
                const S* chunk = row.at + (copied_chunk() + copy * THREADS_A_ROW) * CHUNK;
                copy_whole<ALIGNED>(shared_, address_, at + copy * THREADS_A_ROW * 16, chunk, row.is_there);
            }
        } else {
            const int width = row.is_there ? from_.width() : 0;
#pragma unroll(ALIGNED ? COPIES : 1)
            for (int copy = 0; copy < COPIES; copy++) {
                const int first = (copied_chunk() + copy * THREADS_A_ROW) * CHUNK;
                const S* chunk = row.at + (first < width ? first : 0);
                copy_chunk<ALIGNED>(shared_, address_, at + copy * THREADS_A_ROW * 16, chunk, width - first);
            }
        }
        // Last, so that it takes the register that the row before it has left, and is waited for in the next step alone.
        picked_ = from_.pick((step + 1) * DEPTH + copied_row());
    }

protected:
    __device__ __forceinline__ static int place(int row, int chunk) {
        const int turn = SIZE == 2 ? row % 8 : row % 4 * 2;
        return (row * CHUNKS + (chunk ^ turn)) * 16;
    }

    __device__ __forceinline__ const unsigned char* shared() const { return shared_; }
    __device__ __forceinline__ uint32_t address() const { return address_; }

private:
    static constexpr int THREADS_A_ROW = MMA_THREADS / DEPTH;
    static constexpr int COPIES = CHUNKS / THREADS_A_ROW;
    static_assert(THREADS_A_ROW % 8 == 0, "a place's turn does not change from copy to copy");

    __device__ __forceinline__ static int copied_row() { return static_cast<int>(threadIdx.x) / THREADS_A_ROW; }
    __device__ __forceinline__ static int copied_chunk() { return static_cast<int>(threadIdx.x) % THREADS_A_ROW; }

    const Source& from_;
    unsigned char* shared_;
    uint32_t address_;
    int picked_;
};

// Rows across the depth, of 16-bit elements, turned by ldmatrix.
template <bool ALIGNED, class Source, class Side>
class MmaOperand<ALIGNED, Source, Side, 32, true, 2> : public CopyAcross<ALIGNED, Source, Side, 32> {
public:
    using Copy = CopyAcross<ALIGNED, Source, Side, 32>;
    static constexpr int AT_ONCE = 1;
    static constexpr int WORDS = 4;

    __device__ __forceinline__ MmaOperand(const Source& from, unsigned char* shared, uint32_t address, int, int warp)
        : Copy(from, shared, address) {
        const int row = Side::last_half() * 8 + lane_index() % 8;
        lane_ = Copy::place(row, warp * MMA_FRAGMENT / Copy::CHUNK + Side::last_vectors());
    }

    __device__ __forceinline__ void load(uint32_t (*to)[WORDS], int stage, int f, int k) const {
        // Where fragments are less than eight chunks apart, part of the way is turned.
        constexpr int CHUNKS_APART = Side::STRIDE / Copy::CHUNK;
        const int turned = f * CHUNKS_APART % 8;
        const int straight = f * CHUNKS_APART - turned + k * 16 * Copy::CHUNKS;
        ptx::ldmatrix_x4_trans(to[0], this->address() + stage + (lane_ ^ turned * 16) + straight * 16);
    }

    __device__ __forceinline__ static void factor(uint32_t (&out)[4], const uint32_t (&held)[WORDS]) {
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            out[i] = held[i];
        }
    }

private:
    int lane_;
};

}  // namespace da_moe
