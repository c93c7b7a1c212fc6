// SPEC §6, from accumulators: a weight's gradient in its own type or in f32, in place of what is there or added to it; as it lies, or turned.
#pragma once

#include "experts/hopper/product.cuh"
#include "experts/hopper/staging.cuh"
#include "experts/hopper/weight_factors.cuh"

namespace da_moe::hopper {

template <class K>
class WeightOutput {
public:
    __device__ __forceinline__ WeightOutput(const HopperWeightGradient& p, unsigned char* shared, int warpgroup)
        : p_(p), staging_(shared, warpgroup) {}

    __device__ __forceinline__ static void prepare(const typename K::Unit&, const Segment&) {}

    __device__ __forceinline__ void write(const typename K::Unit& unit, const Segment& rows, const float (&d)[ACCUMULATORS]) {
        const bool adds = p_.gradient.beta != 0.0f && p_.gradient.out_f32 == 0;
        write_spans(unit, rows, [&](float (&v)[OF_GROUP], int group) {
#pragma unroll
            for (int i = 0; i < OF_GROUP; i++) {
                v[i] = d[group * OF_GROUP + i];
            }
            if (adds) {
                add_old(v, unit, rows, unit.column + group * GROUP);
            }
        });
    }

    // Of an expert without rows: nothing is added, or zeros are written.
    __device__ __forceinline__ void write_empty(const typename K::Unit& unit, const Segment& rows) {
        if (p_.gradient.beta == 0.0f) {
            write_spans(unit, rows, [](float (&v)[OF_GROUP], int) {
#pragma unroll
                for (int i = 0; i < OF_GROUP; i++) {
                    v[i] = 0.0f;
                }
            });
        }
    }

    __device__ __forceinline__ void finish() const { staging_.finish(); }

private:
    using S = typename K::Storage;
    // Columns of B in a plane, or two of f32.
    static constexpr int SPAN = ROW_BYTES / 2;
    static constexpr int OF_SPAN = SPAN / GROUP;

    // `value(v, g)` gives the accumulators of the g-th group of the unit's columns of B.
    template <class Value>
    __device__ __forceinline__ void write_spans(const typename K::Unit& unit, const Segment& rows, const Value& value) {
#pragma unroll
        for (int span = 0; span < COLUMNS / SPAN; span++) {
            const int column = unit.column + span * SPAN;
            if (column < K::b(p_.gradient).columns) {
                const auto of_span = [&](float (&v)[OF_GROUP], int group) { value(v, span * OF_SPAN + group); };
                if (p_.gradient.out_f32 != 0) {
                    write_f32(unit.expert, rows.first, column, of_span);
                } else {
                    write_stored(unit.expert, rows.first, column, of_span);
                }
            }
        }
    }

    template <class Value>
    __device__ __forceinline__ void write_stored(int expert, int row, int column, const Value& value) {
        staging_.pass(
            [&](unsigned char* plane) {
                if constexpr (K::TURNED) {
                    fill_turned(plane, value);
                } else {
                    staging_.fill(plane, value);
                }
            },
            [&](const unsigned char* plane) { out(plane, expert, row, column, false); });
    }

    template <class Value>
    __device__ __forceinline__ void write_f32(int expert, int row, int column, const Value& value) {
        constexpr int HALF = SPAN / 2;
        const bool adds = p_.gradient.beta != 0.0f;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            staging_.pass(
                [&](unsigned char* plane) {
                    if constexpr (K::TURNED) {
                        fill_turned_f32(plane, half, value);
                    } else {
                        staging_.fill_f32(plane, [&](float (&v)[OF_GROUP], int group) { value(v, half * OF_SPAN / 2 + group); });
                    }
                },
                [&](const unsigned char* plane) {
                    out(plane, expert, row + (K::TURNED ? half * HALF : 0), column + (K::TURNED ? 0 : half * HALF), adds);
                });
        }
    }

    // What is past the last row or column stays out.
    __device__ __forceinline__ void out(const unsigned char* plane, int expert, int row, int column, bool adds) const {
        if (!Warpgroup::is_leader()) {
            return;
        }
        const int x = K::TURNED ? row : column, y = K::TURNED ? column : row;
        if (adds) {
            ptx::tma_add_3d(&p_.out, ptx::shared_address(plane), x, y, expert);
        } else {
            ptx::tma_store_3d(&p_.out, ptx::shared_address(plane), x, y, expert);
        }
    }

    // A row of the plane for each of 64 columns, by matrices of 8 × 8 that are turned as they are stored.
    template <class Value>
    __device__ __forceinline__ static void fill_turned(unsigned char* plane, const Value& value) {
        const int matrix = lane_index() / 8;
        const int piece = Warpgroup::row() / PIECE + matrix % 2;
#pragma unroll
        for (int group = 0; group < OF_SPAN; group++) {
            float v[OF_GROUP];
            value(v, group);
            uint32_t packed[OF_GROUP / 2];
            pack<S>(packed, v);
            const int row = group * GROUP + matrix / 2 * 8 + lane_index() % 8;
            ptx::stmatrix_x4_trans(ptx::shared_address(plane) + static_cast<uint32_t>(swizzled(row, piece)), packed);
        }
    }

    // The same in f32, which has room for 32 rows: those of the first two warps, or of the other two.
    template <class Value>
    __device__ __forceinline__ static void fill_turned_f32(unsigned char* plane, int half, const Value& value) {
        if (Warpgroup::row() / 32 != half) {
            return;
        }
        const int first = Warpgroup::row() % 32 + lane_index() / 4;
#pragma unroll
        for (int group = 0; group < OF_SPAN; group++) {
            float v[OF_GROUP];
            value(v, group);
#pragma unroll
            for (int i = 0; i < OF_GROUP; i++) {
                const int row = group * GROUP + column_of(i), place = first + i / 2 % 2 * 8;
                *reinterpret_cast<float*>(plane + swizzled(row, place / 4) + place % 4 * 4) = v[i];
            }
        }
    }

    // The column, of 16, of accumulator `i` of a thread.
    __device__ __forceinline__ static int column_of(int i) { return i / 4 * 8 + lane_index() % 4 * 2 + i % 2; }

    // One rounding for the sum with what is there, in the type of the weights.
    __device__ __forceinline__ void add_old(float (&v)[OF_GROUP], const typename K::Unit& unit, const Segment& rows,
                                            int first_column) const {
        const WeightGradient& p = p_.gradient;
        const S* old = static_cast<const S*>(p.out) + unit.expert * p.out_expert_stride;
#pragma unroll
        for (int i = 0; i < OF_GROUP; i++) {
            const int row = rows.first + Warpgroup::row() + lane_index() / 4 + i / 2 % 2 * 8;
            const int column = first_column + column_of(i);
            if (row < K::a(p).columns && column < K::b(p).columns) {
                v[i] += p.beta * to_float(old[K::TURNED ? column * p.out_stride + row : row * p.out_stride + column]);
            }
        }
    }

    const HopperWeightGradient& p_;
    Staging<K> staging_;
};

template <class K>
__device__ __forceinline__ void weight_gradient(const HopperWeightGradient& p, unsigned char* shared) {
    const auto begin = [&] {
        ptx::prefetch_tensor_map(&p.packed);
        ptx::prefetch_tensor_map(&p.out);
    };
    block<K>(WeightUnits<K>(p.gradient), p.clocks, shared, begin,
             [&](Ring<K>& ring, int rank) { produce_factors(p, ring, rank); },
             [&](int warpgroup) { return WeightOutput<K>(p, shared, warpgroup); });
}

}  // namespace da_moe::hopper
