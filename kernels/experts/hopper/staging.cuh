// A warpgroup's way out of two planes by turns: one is made while the other is stored.
#pragma once

#include "experts/hopper/planes.cuh"

namespace da_moe::hopper {

template <class K>
class Staging {
public:
    __device__ __forceinline__ Staging(unsigned char* shared, int warpgroup)
        : warpgroup_(warpgroup), planes_(shared + K::STAGES * STAGE_BYTES + warpgroup * K::PLANES * PLANE_BYTES) {}

    // Columns from `column` on in the storage type, `value(v, g)` gives the accumulators of the g-th group of 16. None that is past
    // the last column.
    template <class Value>
    __device__ __forceinline__ void store(const Target& to, const Segment& rows, int half, int column, const Value& value) {
        if (column >= to.columns) {
            return;
        }
        pass([&](unsigned char* plane) { fill(plane, value); },
             [&](const unsigned char* plane) { leave<2>(to, rows, half, column, plane); });
    }

    // The same in f32: half as many columns.
    template <class Value>
    __device__ __forceinline__ void store_f32(const Target& to, const Segment& rows, int half, int column, const Value& value) {
        if (column >= to.columns) {
            return;
        }
        pass([&](unsigned char* plane) { fill_f32(plane, value); },
             [&](const unsigned char* plane) { leave<4>(to, rows, half, column, plane); });
    }

    // A plane is made by `fill` as soon as nobody reads what was there, and leaves by `out`, both by all threads.
    template <class Fill, class Out>
    __device__ __forceinline__ void pass(const Fill& fill, const Out& out) {
        unsigned char* plane = planes_ + turn_ * PLANE_BYTES;
        turn_ ^= 1;
        if (Warpgroup::is_leader()) {
            ptx::bulk_wait_read<K::PLANES - 1>();
        }
        warpgroup_.barrier();
        fill(plane);
        ptx::fence_proxy_async();
        warpgroup_.barrier();
        out(plane);
        if (Warpgroup::is_leader()) {
            // A group of none as well, so that a plane is a group.
            ptx::bulk_commit();
        }
    }

    // Four groups of 16 columns, as they lie.
    template <class Value>
    __device__ __forceinline__ static void fill(unsigned char* plane, const Value& value) {
#pragma unroll
        for (int group = 0; group < ROW_BYTES / 2 / GROUP; group++) {
            float v[OF_GROUP];
            value(v, group);
            uint32_t packed[OF_GROUP / 2];
            pack<typename K::Storage>(packed, v);
            ptx::stmatrix_x4(lane_row(plane, group), packed);
        }
    }

    template <class Value>
    __device__ __forceinline__ static void fill_f32(unsigned char* plane, const Value& value) {
        const int row = Warpgroup::row() + lane_index() / 4, pair = lane_index() % 4;
#pragma unroll
        for (int group = 0; group < ROW_BYTES / 4 / GROUP; group++) {
            float v[OF_GROUP];
            value(v, group);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int at = swizzled(row + i % 2 * 8, 4 * group + i / 2 * 2 + pair / 2) + pair % 2 * 8;
                *reinterpret_cast<float2*>(plane + at) = make_float2(v[2 * i], v[2 * i + 1]);
            }
        }
    }

    // Before the end: what TMA has still to read is shared memory of this block.
    __device__ __forceinline__ static void finish() {
        if (Warpgroup::is_leader()) {
            ptx::bulk_wait_read<0>();
        }
    }

private:
    const Warpgroup warpgroup_;
    unsigned char* planes_;
    int turn_ = 0;
};

}  // namespace da_moe::hopper
