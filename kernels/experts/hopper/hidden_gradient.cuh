// SPEC §6, from accumulators of `da = W_outᵀ dy_t`: `dh = (g·da) ∘ act'` and `g·a`, with `h` as forward kept it, and the unit's part of
// `dg = ⟨a, da⟩`.
//
// `h` comes by TMA into the planes that `dh` leaves by, 64 columns at a time: while those are computed, the next come into the other
// pair of planes. `g·a` has a fifth.
#pragma once

#include "experts/activation.cuh"
#include "experts/hopper/planes.cuh"
#include "experts/hopper/produce.cuh"
#include "experts/hopper/product.cuh"
#include "experts/hopper/sigmoid.cuh"

namespace da_moe::hopper {

// HALVES: of `h`, the gate's and those of the up projection, or none but its own.
template <int HALVES_OF_H, class WayOfIt>
struct HiddenKind {
    using Storage = bf16;
    using Way = WayOfIt;
    using Unit = hopper::Unit;
    using Units = hopper::Units<HiddenKind>;
    static constexpr int HALVES = HALVES_OF_H;
    // Of the product.
    static constexpr bool GATED = false;
    static constexpr bool GATHERED = true;
    static constexpr bool A_ACROSS = false;
    static constexpr bool B_ACROSS = true;
    static constexpr int STAGES = 3;
    static constexpr int PLANES = 5;
    static constexpr bool MAY_BE_EMPTY = false;
    static_assert(STAGES * STAGE_BYTES + 2 * PLANES * PLANE_BYTES == BARRIERS_AT, "as the host asks for");
};

template <class K>
class HiddenGradientOutput {
public:
    __device__ __forceinline__ HiddenGradientOutput(const HopperHiddenGradient& p, unsigned char* shared, int warpgroup)
        : p_(p),
          dh_(target(p.out, p.gradient.product.out, p.gradient.product.out_stride)),
          activated_(target(p.activated, p.gradient.activated, p.gradient.activated_stride)),
          warpgroup_(warpgroup),
          planes_(shared + K::STAGES * STAGE_BYTES + warpgroup * K::PLANES * PLANE_BYTES),
          arrived_(arrived(ptx::shared_address(shared), warpgroup)) {}

    // By one thread, before a fence and a barrier of the cluster.
    __device__ __forceinline__ static void init(const unsigned char* shared) {
#pragma unroll
        for (int i = 0; i < 2 * PAIRS; i++) {
            ptx::mbarrier_init(arrived(ptx::shared_address(shared), 0) + static_cast<uint32_t>(8 * i), 1);
        }
    }

    // Asks for what the first columns of a unit need. The last but one pair of planes was left to be filled before the last one was used.
    __device__ __forceinline__ void prepare(const Unit& unit, const Segment& rows) {
        if (Warpgroup::is_leader()) {
            ask(turn_, rows, unit.column);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int row = lane_of_row(i);
            const float* weight = p_.gradient.row_weight;
            weights_[i] = weight == nullptr || row >= rows.count ? 1.0f : weight[rows.first + row];
        }
    }

    __device__ __forceinline__ void write(const Unit& unit, const Segment& rows, const float (&d)[ACCUMULATORS]) {
        const int columns = p_.gradient.product.columns;
        float parts[2] = {0.0f, 0.0f};
#pragma unroll
        for (int first = 0; first < COLUMNS; first += SPAN) {
            const int column = unit.column + first;
            if (column < columns) {
                const bool is_more = first + SPAN < COLUMNS && column + SPAN < columns;
                write_span(rows, column, is_more, parts, [&](float (&v)[OF_GROUP], int group) {
#pragma unroll
                    for (int i = 0; i < OF_GROUP; i++) {
                        v[i] = d[(first / GROUP + group) * OF_GROUP + i];
                    }
                });
            }
        }
        const int part_count = (columns + COLUMNS - 1) / COLUMNS;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            // Four lanes have a row.
            parts[i] += __shfl_xor_sync(FULL_WARP, parts[i], 1);
            parts[i] += __shfl_xor_sync(FULL_WARP, parts[i], 2);
            const int row = lane_of_row(i);
            if (lane_index() % 4 == 0 && row < rows.count) {
                p_.gradient.parts[static_cast<int64_t>(rows.first + row) * part_count + unit.column / COLUMNS] = parts[i];
            }
        }
    }

    __device__ __forceinline__ static void finish() {
        if (Warpgroup::is_leader()) {
            ptx::bulk_wait_read<0>();
        }
    }

private:
    static constexpr int SPAN = ROW_BYTES / 2;
    static constexpr int PAIRS = 2;
    static_assert(K::PLANES == 2 * PAIRS + 1, "and one for what is activated");

    // The warpgroup's mbarriers lie behind the ring's.
    __device__ __forceinline__ static uint32_t arrived(uint32_t shared, int warpgroup) {
        return shared + static_cast<uint32_t>(BARRIERS_AT + 8 * (2 * K::STAGES + PAIRS * warpgroup));
    }
    // Row `i` of the two that a thread has.
    __device__ __forceinline__ static int lane_of_row(int i) { return Warpgroup::row() + lane_index() / 4 + 8 * i; }

    __device__ __forceinline__ unsigned char* plane(int turn, int half) const {
        return planes_ + (turn % PAIRS * 2 + half) * PLANE_BYTES;
    }

    // By the leader.
    __device__ __forceinline__ void ask(int turn, const Segment& rows, int column) const {
        const uint32_t arrived = arrived_ + static_cast<uint32_t>(8 * (turn % PAIRS));
        ptx::mbarrier_arrive_expect(arrived, K::HALVES * PLANE_BYTES);
#pragma unroll
        for (int half = 0; half < K::HALVES; half++) {
            ptx::tma_load_3d(ptx::shared_address(plane(turn, half)), &p_.hidden, arrived, column, half, rows.first);
        }
    }

    // `da(v, g)` gives the accumulators of the g-th group of 16 columns.
    template <class Gradient>
    __device__ __forceinline__ void write_span(const Segment& rows, int column, bool is_more, float (&parts)[2],
                                               const Gradient& da) {
        unsigned char* const activated = planes_ + 2 * PAIRS * PLANE_BYTES;
        if (Warpgroup::is_leader()) {
            ptx::bulk_wait_read<0>();
        }
        warpgroup_.barrier();
        // Nothing of the span before has still to be read, by TMA or by threads: neither the other pair nor the plane of what is activated.
        if (is_more && Warpgroup::is_leader()) {
            ask(turn_ + 1, rows, column + SPAN);
        }
        ptx::mbarrier_wait(arrived_ + static_cast<uint32_t>(8 * (turn_ % PAIRS)), static_cast<uint32_t>(turn_ / PAIRS % 2));
#pragma unroll
        for (int group = 0; group < SPAN / GROUP; group++) {
            float of_group[OF_GROUP];
            da(of_group, group);
            write_group(group, of_group, activated, parts);
        }
        ptx::fence_proxy_async();
        warpgroup_.barrier();
#pragma unroll
        for (int half = 0; half < K::HALVES; half++) {
            leave<2>(dh_, rows, half, column, plane(turn_, half));
        }
        leave<2>(activated_, rows, 0, column, activated);
        if (Warpgroup::is_leader()) {
            ptx::bulk_commit();
        }
        turn_++;
    }

    __device__ __forceinline__ void write_group(int group, const float (&da)[OF_GROUP], const unsigned char* activated,
                                                float (&parts)[2]) const {
        const uint32_t at[2] = {lane_row(plane(turn_, 0), group), lane_row(plane(turn_, K::HALVES - 1), group)};
        float h[OF_GROUP], up[OF_GROUP], a[OF_GROUP];
        read(h, at[0]);
        if constexpr (K::HALVES == 2) {
            read(up, at[1]);
        }
#pragma unroll
        for (int i = 0; i < OF_GROUP; i++) {
            const int row = i / 2 % 2;
            const int activation = p_.gradient.product.activation;
            const Curve gate = K::HALVES == 2 ? gate_curve<Approximate>(activation, h[i]) : curve<Approximate>(activation, h[i]);
            const float other = K::HALVES == 2 ? up[i] : 1.0f;
            const float of_row = weights_[row] * da[i];
            parts[row] += gate.value * other * da[i];
            a[i] = weights_[row] * (gate.value * other);
            h[i] = of_row * gate.slope * other;
            up[i] = of_row * gate.value;
        }
        // All lanes have read what now gives way.
        __syncwarp();
        write(at[0], h);
        if constexpr (K::HALVES == 2) {
            write(at[1], up);
        }
        write(lane_row(activated, group), a);
    }

    __device__ __forceinline__ static void read(float (&v)[OF_GROUP], uint32_t at) {
        uint32_t words[OF_GROUP / 2];
        ptx::ldmatrix_x4(words, at);
#pragma unroll
        for (int i = 0; i < OF_GROUP / 2; i++) {
            v[2 * i] = __uint_as_float(words[i] << 16);
            v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }

    __device__ __forceinline__ static void write(uint32_t at, const float (&v)[OF_GROUP]) {
        uint32_t packed[OF_GROUP / 2];
        pack<bf16>(packed, v);
        ptx::stmatrix_x4(at, packed);
    }

    __device__ __forceinline__ Target target(const TensorMap& map, void* rows, int64_t stride) const {
        const int columns = p_.gradient.product.columns;
        return {&map, static_cast<unsigned char*>(rows), stride * 2, static_cast<int64_t>(columns) * 2, columns};
    }

    const HopperHiddenGradient& p_;
    const Target dh_;
    const Target activated_;
    const Warpgroup warpgroup_;
    unsigned char* const planes_;
    const uint32_t arrived_;
    float weights_[2];
    // Spans written so far.
    int turn_ = 0;
};

template <class K>
__device__ __forceinline__ void hidden_gradient(const HopperHiddenGradient& p, unsigned char* shared) {
    const GroupedGemm& product = p.gradient.product;
    const auto begin = [&] {
        HiddenGradientOutput<K>::init(shared);
        ptx::prefetch_tensor_map(&p.b);
        ptx::prefetch_tensor_map(&p.hidden);
        ptx::prefetch_tensor_map(&p.out);
        ptx::prefetch_tensor_map(&p.activated);
    };
    block<K>(Units<K>(product), p.clocks, shared, begin,
             [&](Ring<K>& ring, int rank) { produce_gathered(p.b, product, ring, rank); },
             [&](int warpgroup) { return HiddenGradientOutput<K>(p, shared, warpgroup); });
}

}  // namespace da_moe::hopper
