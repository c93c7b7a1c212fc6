// Operands of TF32 products whose rows lie across the depth: a step is 16 rows, of f32 values or of f16, which TF32 holds all
// of. mma.sync wants 32-bit words, which ldmatrix cannot turn; so words are read one by one, and 16-bit elements turned two
// at a time and then widened.
//
// Fragments are those of mma_operands.cuh, 16 vectors by 8 of the depth: word (v, k) is that of vector lane / 4 + 8 v and of
// element lane mod 4 + 4 k, and the order of the four is the side's.
#pragma once

#include "device/tf32.cuh"
#include "experts/portable/mma_operands.cuh"

namespace da_moe {

// Of a fragment's words, the one for last vectors or not, and the second elements or not.
template <class Side>
__device__ __forceinline__ constexpr int word_of(int last_vectors, int second) {
    return Side::IS_A ? last_vectors + 2 * second : 2 * last_vectors + second;
}

// f32 values. A warp's lanes want eight neighbours of four rows, which the turn of a row's chunks puts into different banks.
template <bool ALIGNED, class Source, class Side>
class MmaOperand<ALIGNED, Source, Side, 16, true, 4> : public CopyAcross<ALIGNED, Source, Side, 16> {
public:
    using Copy = CopyAcross<ALIGNED, Source, Side, 16>;
    static constexpr int AT_ONCE = 1;
    static constexpr int WORDS = 4;

    __device__ __forceinline__ MmaOperand(const Source& from, unsigned char* shared, uint32_t address, int, int warp)
        : Copy(from, shared, address) {
        const int vector = warp * MMA_FRAGMENT + lane_index() / 4;
        lane_ = Copy::place(lane_index() % 4, vector / Copy::CHUNK) + vector % Copy::CHUNK * Copy::SIZE;
    }

    __device__ __forceinline__ void load(uint32_t (*to)[WORDS], int stage, int f, int k) const {
#pragma unroll
        for (int last_vectors = 0; last_vectors < 2; last_vectors++) {
            // Eight vectors are two chunks, a bit of a place in which the lane's own vector has none.
            const unsigned char* from = this->shared() + stage + (lane_ ^ last_vectors * 2 * 16);
#pragma unroll
            for (int second = 0; second < 2; second++) {
                const int straight = f * Side::STRIDE / Copy::CHUNK + (k * 8 + second * 4) * Copy::CHUNKS;
                to[0][word_of<Side>(last_vectors, second)] = *reinterpret_cast<const uint32_t*>(from + straight * 16);
            }
        }
    }

    __device__ __forceinline__ static void factor(uint32_t (&out)[4], const uint32_t (&held)[WORDS]) {
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            out[i] = as_factor<typename Copy::S>(held[i]);
        }
    }

private:
    static_assert(Side::STRIDE / Copy::CHUNK % 8 == 0, "a place's turn does not change from fragment to fragment");

    int lane_;
};

// f16 values. Two rows that ldmatrix turns into one word are four apart, so that a lane gets the two elements of a vector that
// it multiplies; a word is widened when it is.
template <bool ALIGNED, class Source, class Side>
class MmaOperand<ALIGNED, Source, Side, 16, true, 2> : public CopyAcross<ALIGNED, Source, Side, 16> {
public:
    using Copy = CopyAcross<ALIGNED, Source, Side, 16>;
    static constexpr int AT_ONCE = 2;
    static constexpr int WORDS = 2;

    __device__ __forceinline__ MmaOperand(const Source& from, unsigned char* shared, uint32_t address, int, int warp)
        : Copy(from, shared, address) {
        // Of the four matrices those of the second fragment are last, and of a fragment's that of the last vectors.
        const int matrix = lane_index() / 8;
        const int chunk = warp * MMA_FRAGMENT / Copy::CHUNK + matrix % 2 + matrix / 2 * CHUNKS_APART;
        const int row = lane_index() % 8;
        lane_ = Copy::place(row / 2 + row % 2 * 4, chunk);
    }

    __device__ __forceinline__ void load(uint32_t (*to)[WORDS], int stage, int f, int k) const {
        uint32_t words[4];
        const int straight = f * CHUNKS_APART + k * 8 * Copy::CHUNKS;
        ptx::ldmatrix_x4_trans(words, this->address() + stage + lane_ + straight * 16);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[i / WORDS][i % WORDS] = words[i];
        }
    }

    __device__ __forceinline__ static void factor(uint32_t (&out)[4], const uint32_t (&held)[WORDS]) {
#pragma unroll
        for (int last_vectors = 0; last_vectors < 2; last_vectors++) {
            const uint32_t both = held[last_vectors];
            out[word_of<Side>(last_vectors, 0)] = widened(both & 0xffffu);
            out[word_of<Side>(last_vectors, 1)] = widened(both >> 16);
        }
    }

private:
    static constexpr int CHUNKS_APART = Side::STRIDE / Copy::CHUNK;
    static_assert(AT_ONCE * CHUNKS_APART % 8 == 0, "a place's turn does not change from pair to pair");

    // Exact: TF32 has f16's fraction and more exponents.
    __device__ __forceinline__ static uint32_t widened(uint32_t bits) {
        return __float_as_uint(to_float(__ushort_as_half(static_cast<unsigned short>(bits))));
    }

    int lane_;
};

}  // namespace da_moe
