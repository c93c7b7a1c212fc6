// A warpgroup's way out: planes of 64 rows by 128 bytes, put together in shared memory and stored from there.
//
// Whole planes are stored by TMA, while the next one is made in the other room. An expert's last rows are not whole: what lies
// after them is another expert's, so they are copied piece by piece.
#pragma once

#include "experts/hopper/multiply.cuh"
#include "experts/scheduler.cuh"

namespace da_moe::hopper {

// A matrix that is written: its tensor map, and the same for who copies.
struct Target {
    const TensorMap* map;
    unsigned char* rows;
    // From one row to the next, and from one half of a row to the other.
    int64_t row_bytes;
    int64_t half_bytes;
    // Of a half.
    int columns;
};

// Accumulators of a thread: of each 16 columns it has two of the first 8 in row `lane / 4` of its warp's 16, two in row 8 further,
// and the same of the second 8.
constexpr int GROUP = 16;
constexpr int OF_GROUP = GROUP / 2;

template <class S>
class Staging {
public:
    __device__ __forceinline__ Staging(unsigned char* shared, int warpgroup)
        : warpgroup_(warpgroup),
          planes_(shared + STAGES * STAGE_BYTES + warpgroup * PLANES * PLANE_BYTES),
          row_(warp_index() % (WARPGROUP / WARP) * 16) {}

    // Columns from `column` on in the storage type, `value(v, g)` gives the accumulators of the g-th group of 16. None that is past
    // the last column.
    template <class Value>
    __device__ __forceinline__ void store(const Target& to, const Segment& rows, int half, int column, const Value& value) {
        constexpr int WIDTH = ROW_BYTES / 2;
        if (column >= to.columns) {
            return;
        }
        unsigned char* plane = begin();
        const int row = row_ + lane_index() % 16;
        const uint32_t at = ptx::shared_address(plane);
#pragma unroll
        for (int group = 0; group < WIDTH / GROUP; group++) {
            float v[OF_GROUP];
            value(v, group);
            const uint32_t packed[4] = {Mma<S>::pack(v[0], v[1]), Mma<S>::pack(v[2], v[3]), Mma<S>::pack(v[4], v[5]),
                                        Mma<S>::pack(v[6], v[7])};
            ptx::stmatrix_x4(at + static_cast<uint32_t>(swizzled(row, 2 * group + lane_index() / 16)), packed);
        }
        end<2>(to, rows, half, column, plane);
    }

    // The same in f32: half as many columns.
    template <class Value>
    __device__ __forceinline__ void store_f32(const Target& to, const Segment& rows, int half, int column, const Value& value) {
        constexpr int WIDTH = ROW_BYTES / 4;
        if (column >= to.columns) {
            return;
        }
        unsigned char* plane = begin();
        const int row = row_ + lane_index() / 4, pair = lane_index() % 4;
#pragma unroll
        for (int group = 0; group < WIDTH / GROUP; group++) {
            float v[OF_GROUP];
            value(v, group);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int at = swizzled(row + i % 2 * 8, 4 * group + i / 2 * 2 + pair / 2) + pair % 2 * 8;
                *reinterpret_cast<float2*>(plane + at) = make_float2(v[2 * i], v[2 * i + 1]);
            }
        }
        end<4>(to, rows, half, column, plane);
    }

    // Before the end: what TMA has still to read is shared memory of this block.
    __device__ __forceinline__ void finish() const {
        if (is_leader()) {
            ptx::bulk_wait_read<0>();
        }
    }

private:
    // Room for a plane that nobody reads any more.
    __device__ __forceinline__ unsigned char* begin() {
        unsigned char* plane = planes_ + turn_ * PLANE_BYTES;
        turn_ ^= 1;
        if (is_leader()) {
            ptx::bulk_wait_read<PLANES - 1>();
        }
        barrier();
        return plane;
    }

    template <int SIZE>
    __device__ __forceinline__ void end(const Target& to, const Segment& rows, int half, int column, unsigned char* plane) const {
        ptx::fence_proxy_async();
        barrier();
        if (rows.count < WARPGROUP_ROWS) {
            copy<SIZE>(to, rows, half, column, plane);
        } else if (is_leader()) {
            ptx::tma_store_3d(to.map, ptx::shared_address(plane), column, half, rows.first);
        }
        if (is_leader()) {
            // A group of none as well, so that a plane is a group.
            ptx::bulk_commit();
        }
    }

    template <int SIZE>
    __device__ __forceinline__ void copy(const Target& to, const Segment& rows, int half, int column,
                                         const unsigned char* plane) const {
        unsigned char* first = to.rows + half * to.half_bytes + static_cast<int64_t>(column) * SIZE;
        const int pieces = min((to.columns - column) * SIZE / 16, PIECES);
#pragma unroll 1
        for (int i = thread(); i < rows.count * PIECES; i += WARPGROUP) {
            const int row = i / PIECES, piece = i % PIECES;
            if (piece < pieces) {
                *reinterpret_cast<uint4*>(first + (rows.first + row) * to.row_bytes + piece * 16) =
                    *reinterpret_cast<const uint4*>(plane + swizzled(row, piece));
            }
        }
    }

    __device__ __forceinline__ static int thread() { return static_cast<int>(threadIdx.x) % WARPGROUP; }
    __device__ __forceinline__ static bool is_leader() { return thread() == 0; }

    // Of this warpgroup alone. Numbers are constants: a number in a register would take all sixteen barriers.
    __device__ __forceinline__ void barrier() const {
        if (warpgroup_ == 0) {
            ptx::barrier<1, WARPGROUP>();
        } else {
            ptx::barrier<2, WARPGROUP>();
        }
    }

    const int warpgroup_;
    unsigned char* planes_;
    // First row of this warp.
    const int row_;
    int turn_ = 0;
};

}  // namespace da_moe::hopper
