// SPEC §1: one value for each head and token from an attention matrix P[B, H, S, S] that the caller has anyway.
//
//   importance_received_{f32,bf16,f16}[_wide]   received-max, received-sum, received-mean: a reduction over queries
//   importance_given_{f32,bf16,f16}[_wide]      given-peak, given-entropy, given-self: a reduction over keys
//
// Block 8 warps. received: grid (B · S / (32·VEC), H), a lane has VEC keys and a warp every eighth query, four of them in
// flight; one barrier, before the warps' results are combined in their order. given: grid (B · S / 8, H), a warp has one
// query and its lanes every 32nd vector of keys, two of them in flight; with a mask two barriers for every 2048 keys, whose
// part in it the block first makes bits of.
//
// Both read every visible probability once (given-self only the diagonal) and write one f32 a head and token, which
// `importance_reduce` reads: H·T·(n·s + 4) bytes for storage of s bytes (half of it when causal); floor: that over the
// memory bandwidth, 1.4 ms at 3 TB/s for B 8, H 16, n 4096 in bf16. `_wide` kernels read 128 bits at once and need every
// stride to be a multiple of that.
//
// A masked token is neither key nor query; a probability that is NaN counts as 0. Values of masked tokens are 0, and those
// of tokens past the side of the matrix, which a sequence should not have.

#include "abi.h"
#include "device/block.cuh"
#include "device/partition.cuh"
#include "device/storage.cuh"

namespace da_moe {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;

__device__ __forceinline__ bool takes_part(const ImportanceProbabilities& p, int token) {
    return p.mask == nullptr || p.mask[token] != 0;
}

// A block's part of one head of one sequence.
struct MatrixTile {
    Partition sequences;
    int sequence;
    // Of the blocks that share the matrix, this one.
    int tile;
    // The sequence's first token, and how many there are; of these, as many as the matrix has rows.
    int first;
    int tokens;
    int length;

    __device__ __forceinline__ explicit MatrixTile(const ImportanceProbabilities& p)
        : sequences{p.cu_seqlens, p.sequences, p.tokens},
          sequence(static_cast<int>(blockIdx.x) / p.tiles),
          tile(static_cast<int>(blockIdx.x) % p.tiles) {
        const Range range = sequences.range(sequence);
        first = range.first;
        tokens = range.end - range.first;
        length = min(tokens, p.side);
    }

    template <class S>
    __device__ __forceinline__ const S* matrix(const ImportanceProbabilities& p) const {
        return static_cast<const S*>(p.probabilities) + sequence * p.sequence_stride + blockIdx.y * p.head_stride;
    }

    // Writes the value of a token, counted from the sequence's first, if it is of no other sequence.
    __device__ __forceinline__ void put(const ImportanceProbabilities& p, int row, float value) const {
        const int token = first + row;
        if (sequences.of(token) == sequence) {
            p.values[static_cast<int64_t>(blockIdx.y) * p.tokens + token] = takes_part(p, token) ? value : 0.0f;
        }
    }

    __device__ __forceinline__ void put_past_the_side(const ImportanceProbabilities& p) const {
        for (int row = length + static_cast<int>(threadIdx.x); tile == 0 && row < tokens; row += THREADS) {
            put(p, row, 0.0f);
        }
    }
};

__device__ __forceinline__ float probability(float value) { return value == value ? value : 0.0f; }

// What a lane's keys received from the queries that a warp has seen.
template <int VEC>
struct Received {
    float values[VEC];
    // Queries that took part.
    int queries;

    // A query's row, zeros where it takes no part. Under a causal mask a key receives nothing from queries before it.
    template <bool LARGEST, bool CAUSAL, class S>
    __device__ __forceinline__ void add(const Vector<S, VEC>& row, int query, int key) {
#pragma unroll
        for (int v = 0; v < VEC; v++) {
            const bool sees = !CAUSAL || key + v <= query;
            const float probable = sees ? to_float(row.elements[v]) : 0.0f;
            // The maximum drops NaN by itself.
            values[v] = LARGEST ? fmaxf(values[v], probable) : values[v] + probability(probable);
        }
    }
};

// All of a warp's queries, of which every one from `diagonal_end` on sees all of its keys. QUERIES rows are asked for before
// the first is used.
template <bool LARGEST, class S, int VEC>
__device__ __forceinline__ void receive(const ImportanceProbabilities& p, const MatrixTile& place, int key, int diagonal_end,
                                        Received<VEC>& received) {
    constexpr int QUERIES = 4;
    const S* column = place.matrix<S>(p) + key;
    const int first = (p.causal ? place.tile * WARP * VEC : 0) + warp_index();
#pragma unroll 1
    for (int start = first; start < place.length; start += QUERIES * WARPS) {
        Vector<S, VEC> rows[QUERIES];
        bool asks[QUERIES];
#pragma unroll
        for (int i = 0; i < QUERIES; i++) {
            const int query = min(start + i * WARPS, place.length - 1);
            rows[i] = Vector<S, VEC>::load(column + query * p.row_stride);
            asks[i] = takes_part(p, place.first + query) && start + i * WARPS < place.length;
        }
#pragma unroll
        for (int i = 0; i < QUERIES; i++) {
            const int query = start + i * WARPS;
            rows[i].keep_if(asks[i]);
            received.queries += asks[i];
            if (start < diagonal_end) {
                received.template add<LARGEST, true>(rows[i], query, key);
            } else {
                received.template add<LARGEST, false>(rows[i], query, key);
            }
        }
    }
}

template <class S, int VEC>
__device__ __forceinline__ void received(const ImportanceProbabilities& p) {
    constexpr int TILE = WARP * VEC;
    static_assert(TILE <= THREADS, "a thread writes one key's value at most");
    SHARED_ARRAY(float, partial, WARPS * TILE);
    SHARED_ARRAY(int, queries, WARPS);
    SHARED_ARRAY(int, scratch, MAX_WARPS);
    const MatrixTile place(p);
    place.put_past_the_side(p);
    const int tile = place.tile * TILE;
    if (tile >= place.length) {
        return;
    }
    const int key = tile + lane_index() * VEC;
    const bool largest = p.measure == MEASURE_RECEIVED_MAX;
    Received<VEC> mine = {};
    if (key < place.length) {
        // Under a causal mask no query before the tile's first key sees any of it, and every one past its last sees all.
        const int diagonal_end = p.causal ? tile + TILE : 0;
        if (largest) {
            receive<true, S>(p, place, key, diagonal_end, mine);
        } else {
            receive<false, S>(p, place, key, diagonal_end, mine);
        }
    }
#pragma unroll
    for (int v = 0; v < VEC; v++) {
        partial[warp_index() * TILE + lane_index() * VEC + v] = mine.values[v];
    }
    if (lane_index() == 0) {
        queries[warp_index()] = mine.queries;
    }
    __syncthreads();
    const int i = static_cast<int>(threadIdx.x);
    const bool writes = i < TILE && tile + i < place.length;
    int early = 0;
    if (p.measure == MEASURE_RECEIVED_MEAN && p.causal) {
        int all;
        early = block_exclusive_sum(writes && takes_part(p, place.first + tile + i) ? 1 : 0, scratch, all);
    }
    if (!writes) {
        return;
    }
    float result = 0.0f;
    int seen_by = -early;
    for (int warp = 0; warp < WARPS; warp++) {
        const float part = partial[warp * TILE + i];
        result = largest ? fmaxf(result, part) : result + part;
        seen_by += queries[warp];
    }
    place.put(p, tile + i, p.measure == MEASURE_RECEIVED_MEAN ? result / static_cast<float>(max(seen_by, 1)) : result);
}

// -P ln P, with 0 ln 0 = 0. The fast logarithm's error is absolute, and matters only where the logarithm is near 0: at
// most one probability of a row is above one half.
__device__ __forceinline__ float surprise(float probable) {
    if (!(probable > 0.0f)) {
        return 0.0f;
    }
    return -probable * (probable > 0.5f ? logf(probable) : __logf(probable));
}

// Which of some keys take part: a bit each, in shared memory.
struct KeyBits {
    static constexpr int KEYS = 2048;
    uint32_t* words;

    // From key `first` up to `end`, by the whole block; every warp reads its words of the mask before it needs the first.
    __device__ __forceinline__ void fill(const uint8_t* mask, int first, int end) const {
        constexpr int ROUNDS = 4;
        for (int word = warp_index() * ROUNDS; word * WARP < end - first && word < KEYS / WARP; word += WARPS * ROUNDS) {
            uint8_t bytes[ROUNDS];
#pragma unroll
            for (int round = 0; round < ROUNDS; round++) {
                const int key = first + (word + round) * WARP + lane_index();
                bytes[round] = key < end ? mask[key] : 0;
            }
#pragma unroll
            for (int round = 0; round < ROUNDS; round++) {
                const unsigned bits = __ballot_sync(FULL_WARP, bytes[round] != 0);
                if (lane_index() == 0) {
                    words[word + round] = bits;
                }
            }
        }
    }

    // The COUNT bits from the `place`-th, a multiple of COUNT, on.
    template <int COUNT>
    __device__ __forceinline__ unsigned at(int place) const {
        return words[place / WARP] >> place % WARP & ((1u << COUNT) - 1u);
    }
};

struct Given {
    float peak;
    float entropy;
    int visible;

    template <bool ENTROPY, class S, int VEC>
    __device__ __forceinline__ void add(const Vector<S, VEC>& row, unsigned seen) {
        visible += __popc(seen);
#pragma unroll
        for (int v = 0; v < VEC; v++) {
            const float probable = seen >> v & 1u ? probability(to_float(row.elements[v])) : 0.0f;
            if constexpr (ENTROPY) {
                entropy += surprise(probable);
            } else {
                peak = fmaxf(peak, probable);
            }
        }
    }
};

// Adds keys from `first` to before `end` of a row. VECTORS of them are asked for before the first is used.
template <bool ENTROPY, class S, int VEC>
__device__ __forceinline__ void give(const ImportanceProbabilities& p, const S* row, int first, int end, KeyBits bits,
                                     Given& given) {
    constexpr int VECTORS = 2;
    constexpr unsigned ALL = (1u << VEC) - 1u;
#pragma unroll 1
    for (int start = first + lane_index() * VEC; start < end; start += VECTORS * WARP * VEC) {
        Vector<S, VEC> keys[VECTORS];
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const int key = start + i * WARP * VEC;
            keys[i] = Vector<S, VEC>::load(row + (key < end ? key : start));
        }
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const int key = start + i * WARP * VEC;
            const int there = min(max(end - key, 0), VEC);
            const unsigned taking_part = p.mask == nullptr || there == 0 ? ALL : bits.at<VEC>(key - first);
            given.template add<ENTROPY>(keys[i], taking_part & ((1u << there) - 1u));
        }
    }
}

// What a warp's query gives, by all warps of the block; nothing where it takes no part.
template <bool ENTROPY, class S, int VEC>
__device__ __forceinline__ Given give_all(const ImportanceProbabilities& p, const MatrixTile& place, int query, bool asks) {
    SHARED_ARRAY(uint32_t, words, KeyBits::KEYS / WARP);
    const KeyBits bits = {words};
    const S* row = place.matrix<S>(p) + query * p.row_stride;
    const int block_end = p.causal ? min((place.tile + 1) * WARPS, place.length) : place.length;
    const int end = !asks ? 0 : p.causal ? query + 1 : place.length;
    const int keys = p.mask == nullptr ? block_end : KeyBits::KEYS;
    Given given = {};
    for (int first = 0; first < block_end; first += keys) {
        if (p.mask != nullptr) {
            __syncthreads();
            bits.fill(p.mask + place.first, first, block_end);
            __syncthreads();
        }
        give<ENTROPY, S, VEC>(p, row, first, min(end, first + keys), bits, given);
    }
    return given;
}

template <class S, int VEC>
__device__ __forceinline__ void given(const ImportanceProbabilities& p) {
    const MatrixTile place(p);
    place.put_past_the_side(p);
    const int query = place.tile * WARPS + warp_index();
    const bool asks = query < place.length && takes_part(p, place.first + query);
    float result = 0.0f;
    if (p.measure == MEASURE_GIVEN_SELF) {
        result = asks ? probability(to_float(place.matrix<S>(p)[query * p.row_stride + query])) : 0.0f;
    } else if (p.measure == MEASURE_GIVEN_PEAK) {
        result = warp_max(give_all<false, S, VEC>(p, place, query, asks).peak);
    } else {
        const Given mine = give_all<true, S, VEC>(p, place, query, asks);
        const float entropy = warp_sum(mine.entropy);
        const int visible = __reduce_add_sync(FULL_WARP, mine.visible);
        result = visible > 1 ? entropy / logf(static_cast<float>(visible)) : 0.0f;
    }
    if (lane_index() == 0 && query < place.length) {
        place.put(p, query, result);
    }
}

}  // namespace
}  // namespace da_moe

// Three blocks a multiprocessor leave a thread the registers for four rows in flight.
#define KERNELS(storage, suffix, vec)                                                     \
    extern "C" __global__ void __launch_bounds__(da_moe::THREADS, 3)                      \
        importance_received_##suffix(const __grid_constant__ ImportanceProbabilities p) { \
        da_moe::received<storage, vec>(p);                                                \
    }                                                                                     \
    GPU_KERNEL(importance_received_##suffix)                                              \
    extern "C" __global__ void __launch_bounds__(da_moe::THREADS, 4)                      \
        importance_given_##suffix(const __grid_constant__ ImportanceProbabilities p) {    \
        da_moe::given<storage, vec>(p);                                                   \
    }                                                                                     \
    GPU_KERNEL(importance_given_##suffix)

KERNELS(float, f32, 1)
KERNELS(float, f32_wide, 4)
KERNELS(da_moe::bf16, bf16, 1)
KERNELS(da_moe::bf16, bf16_wide, 8)
KERNELS(da_moe::f16, f16, 1)
KERNELS(da_moe::f16, f16_wide, 8)
