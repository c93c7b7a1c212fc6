// SPEC §5, from accumulators: bias, `h` for backward, activation. A column's gate and up projection are in one thread, half of the
// accumulators apart.
#pragma once

#include "experts/activation.cuh"
#include "experts/hopper/sigmoid.cuh"
#include "experts/hopper/staging.cuh"
#include "experts/hopper/units.cuh"

namespace da_moe::hopper {

template <class K>
class Output {
public:
    __device__ __forceinline__ Output(const HopperGemm& p, unsigned char* shared, int warpgroup)
        : p_(p.product),
          out_(target(p.out, p.product.out, p.product.out_stride, p.product.out_f32)),
          hidden_(target(p.hidden, p.product.hidden, p.product.hidden_stride, p.product.hidden_f32)),
          staging_(shared, warpgroup) {}

    __device__ __forceinline__ void prepare(const Unit&, const Segment&) const {}

    __device__ __forceinline__ void write(const Unit& unit, const Segment& rows, const float (&d)[ACCUMULATORS]) {
#pragma unroll
        for (int first = 0; first < COLUMNS / (K::GATED ? 2 : 1); first += SPAN) {
            const int column = unit.column + first;
            if (column < p_.columns) {
                const Values values{p_, d, unit.expert, first, column};
                keep(rows, column, values);
                activated(rows, column, values);
            }
        }
    }

    __device__ __forceinline__ void finish() const { staging_.finish(); }

private:
    // Columns that are finished before the next: a plane of the storage type, two of f32.
    static constexpr int SPAN = ROW_BYTES / 2;
    static constexpr int OF_SPAN = SPAN / GROUP;

    // What a thread has of SPAN columns.
    struct Values {
        const GroupedGemm& p;
        const float (&d)[ACCUMULATORS];
        int expert;
        // Of the unit, and of the output.
        int first;
        int column;

        // Before the activation: of the gate if there is one (half 0), or of the up projection.
        __device__ __forceinline__ void before(float (&v)[OF_GROUP], int half, int group) const {
            const int at = half * (ACCUMULATORS / 2) + (first / GROUP + group) * OF_GROUP;
#pragma unroll
            for (int i = 0; i < OF_GROUP; i++) {
                v[i] = d[at + i];
            }
            if (p.bias != nullptr) {
                add_bias(v, half, column + group * GROUP + lane_index() % 4 * 2);
            }
        }

        __device__ __forceinline__ void after(float (&v)[OF_GROUP], int group) const {
            before(v, 0, group);
#pragma unroll
            for (int i = 0; i < OF_GROUP; i++) {
                v[i] = K::GATED ? gate_curve<Approximate>(p.activation, v[i]).value : curve<Approximate>(p.activation, v[i]).value;
            }
            if constexpr (K::GATED) {
                float up[OF_GROUP];
                before(up, 1, group);
#pragma unroll
                for (int i = 0; i < OF_GROUP; i++) {
                    v[i] *= up[i];
                }
            }
        }

    private:
        __device__ __forceinline__ void add_bias(float (&v)[OF_GROUP], int half, int first_column) const {
            using S = typename K::Storage;
            const S* bias = static_cast<const S*>(p.bias) + expert * p.bias_stride + half * p.columns;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int at = first_column + i / 2 * 8 + i % 2;
                const float of_column = at < p.columns ? to_float(bias[at]) : 0.0f;
                v[i / 2 * 4 + i % 2] += of_column;
                v[i / 2 * 4 + i % 2 + 2] += of_column;
            }
        }
    };

    __device__ __forceinline__ void keep(const Segment& rows, int column, const Values& values) {
        if (p_.hidden == nullptr) {
            return;
        }
#pragma unroll
        for (int half = 0; half < (K::GATED ? 2 : 1); half++) {
            const auto before = [&](float (&v)[OF_GROUP], int group) { values.before(v, half, group); };
            if (p_.hidden_f32 != 0) {
                put_f32(hidden_, rows, half, column, before);
            } else {
                staging_.store(hidden_, rows, half, column, before);
            }
        }
    }

    // What is f32 has no activation: the host sees to that.
    __device__ __forceinline__ void activated(const Segment& rows, int column, const Values& values) {
        if constexpr (!K::GATED) {
            if (p_.out_f32 != 0) {
                put_f32(out_, rows, 0, column, [&](float (&v)[OF_GROUP], int group) { values.before(v, 0, group); });
                return;
            }
        }
        staging_.store(out_, rows, 0, column, [&](float (&v)[OF_GROUP], int group) { values.after(v, group); });
    }

    template <class Value>
    __device__ __forceinline__ void put_f32(const Target& to, const Segment& rows, int half, int column, const Value& value) {
#pragma unroll
        for (int part = 0; part < 2; part++) {
            staging_.store_f32(to, rows, half, column + part * (SPAN / 2), [&](float (&v)[OF_GROUP], int group) {
                value(v, part * (OF_SPAN / 2) + group);
            });
        }
    }

    __device__ __forceinline__ Target target(const TensorMap& map, void* rows, int64_t stride, int is_f32) const {
        const int size = is_f32 != 0 ? 4 : 2;
        return {&map, static_cast<unsigned char*>(rows), stride * size, static_cast<int64_t>(p_.columns) * size, p_.columns};
    }

    const GroupedGemm& p_;
    const Target out_;
    const Target hidden_;
    Staging<K> staging_;
};

}  // namespace da_moe::hopper
