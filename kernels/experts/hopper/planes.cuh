// What a multiplying warpgroup leaves by: planes of 64 rows by 128 bytes, put together in shared memory and stored from there.
#pragma once

#include "experts/hopper/multiply.cuh"
#include "experts/scheduler.cuh"

namespace da_moe::hopper {

// Accumulators of a thread: of each 16 columns it has two of the first 8 in row `lane / 4` of its warp's 16, two in row 8 further,
// and the same of the second 8.
constexpr int GROUP = 16;
constexpr int OF_GROUP = GROUP / 2;

// A multiplying warpgroup, 0 or 1 of its block.
class Warpgroup {
public:
    __device__ __forceinline__ explicit Warpgroup(int number) : number_(number) {}

    __device__ __forceinline__ int number() const { return number_; }
    __device__ __forceinline__ static int thread() { return static_cast<int>(threadIdx.x) % WARPGROUP; }
    // The thread that asks TMA.
    __device__ __forceinline__ static bool is_leader() { return thread() == 0; }
    // First of this warp's 16 rows.
    __device__ __forceinline__ static int row() { return warp_index() % (WARPGROUP / WARP) * 16; }

    // Of this warpgroup alone. Numbers are constants: a number in a register would take all sixteen barriers.
    __device__ __forceinline__ void barrier() const {
        if (number_ == 0) {
            ptx::barrier<1, WARPGROUP>();
        } else {
            ptx::barrier<2, WARPGROUP>();
        }
    }

private:
    const int number_;
};

// A matrix of rows that are written: its tensor map, and the same for who copies.
struct Target {
    const TensorMap* map;
    unsigned char* rows;
    // From one row to the next, and from one half of a row to the other.
    int64_t row_bytes;
    int64_t half_bytes;
    // Of a half.
    int columns;
};

// Where this lane's row of the warp's 16 and of a group of columns is in a plane, as ldmatrix and stmatrix ask for it.
__device__ __forceinline__ uint32_t lane_row(const unsigned char* plane, int group) {
    const int row = Warpgroup::row() + lane_index() % 16;
    return ptx::shared_address(plane) + static_cast<uint32_t>(swizzled(row, 2 * group + lane_index() / 16));
}

// What a thread has of a group, two elements a word.
template <class S>
__device__ __forceinline__ void pack(uint32_t (&packed)[OF_GROUP / 2], const float (&v)[OF_GROUP]) {
#pragma unroll
    for (int i = 0; i < OF_GROUP / 2; i++) {
        packed[i] = Mma<S>::pack(v[2 * i], v[2 * i + 1]);
    }
}

// A plane of elements of SIZE bytes leaves. Whole ones are stored by TMA, while others are made. An expert's last rows are not
// whole: what lies after them is another expert's, so they are copied piece by piece. By all threads, which have seen it full.
template <int SIZE>
__device__ __forceinline__ void leave(const Target& to, const Segment& rows, int half, int column, const unsigned char* plane) {
    if (rows.count == WARPGROUP_ROWS) {
        if (Warpgroup::is_leader()) {
            ptx::tma_store_3d(to.map, ptx::shared_address(plane), column, half, rows.first);
        }
        return;
    }
    unsigned char* first = to.rows + half * to.half_bytes + static_cast<int64_t>(column) * SIZE;
    const int pieces = min((to.columns - column) * SIZE / 16, PIECES);
#pragma unroll 1
    for (int i = Warpgroup::thread(); i < rows.count * PIECES; i += WARPGROUP) {
        const int row = i / PIECES, piece = i % PIECES;
        if (piece < pieces) {
            *reinterpret_cast<uint4*>(first + (rows.first + row) * to.row_bytes + piece * 16) =
                *reinterpret_cast<const uint4*>(plane + swizzled(row, piece));
        }
    }
}

}  // namespace da_moe::hopper
