// One block's work: it keeps a tile of rows, meets every tile of columns that they see, and writes a value a row.
//
// Shared memory is a ring of three stages of one chunk each. While a stage is multiplied the next two are on their way;
// the one barrier a chunk says both that a stage has arrived and that the stage to be overwritten is done with.
#pragma once

#include "importance/attention/reduce.cuh"
#include "importance/attention/tile.cuh"

namespace da_moe {

constexpr int RING = 3;

// The chunks of the walk in order, on their way to shared memory. WIDE: every row starts at a multiple of 16 bytes.
template <class Engine, bool WIDE>
struct Feed {
    using S = typename Engine::Storage;
    static constexpr int WALK_PIECES = WALK * Engine::PIECES;
    // Where the own rows do not stay in registers they come again with every tile.
    static constexpr int STAGE = WALK_PIECES + (Engine::CHUNKS > 0 ? 0 : OWN * Engine::PIECES);
    static_assert(Engine::CHUNKS == 0 || OWN * Engine::PIECES <= RING * STAGE, "the own tile passes through the ring");

    uint4* ring;
    Rows<S> own;
    Rows<S> walk;
    int own_row;
    int end;
    int chunks;
    // What is fetched next.
    int row;
    int chunk;
    int stage;

    // A chunk of the rows of every warp that has any.
    __device__ __forceinline__ void load_own(const ImportanceQueryKey& p, uint4* to, int chunk) const {
        const int rows = (own.count - own_row + WARP - 1) / WARP * WARP;
        load_tile<OWN, Engine::PIECES, Engine::STEP, WIDE>(p, to, own, own_row, rows, chunk * Engine::CHUNK);
    }

    // One chunk, and one group of copies even past the end, so that groups can be counted.
    __device__ __forceinline__ void fetch(const ImportanceQueryKey& p) {
        if (row < end) {
            uint4* to = ring + stage * STAGE;
            load_tile<WALK, Engine::PIECES, Engine::STEP, WIDE>(p, to, walk, row, WALK, chunk * Engine::CHUNK);
            if constexpr (Engine::CHUNKS == 0) {
                load_own(p, to + WALK_PIECES, chunk);
            }
        }
        ptx::cp_async_commit();
        stage = stage + 1 == RING ? 0 : stage + 1;
        chunk += 1;
        if (chunk == chunks) {
            chunk = 0;
            row += WALK;
        }
    }
};

// Own rows to registers, through the ring while it is free.
template <class Engine, bool WIDE>
__device__ __forceinline__ void keep_own(const ImportanceQueryKey& p, const SequenceTile& place, Engine& engine,
                                         const Feed<Engine, WIDE>& feed) {
    if constexpr (Engine::CHUNKS > 0) {
#pragma unroll
        for (int chunk = 0; chunk < Engine::CHUNKS; chunk++) {
            feed.load_own(p, feed.ring, chunk);
            ptx::cp_async_commit();
            ptx::cp_async_wait<0>();
            __syncthreads();
            if (has_rows(place, warp_index())) {
                engine.keep(feed.ring, chunk, p.width);
            }
            __syncthreads();
        }
    }
}

// The log-sum-exp of a query in exponents of two.
__device__ __forceinline__ float lse_of(const ImportanceQueryKey& p, int token) {
    return p.lse[blockIdx.y * p.lse_stride + token] * LOG2_E;
}

// What a column's shift is made of, read a tile before it is looked at: nothing waits for it.
struct Shift {
    // 0 past the end and where the token takes no part.
    uint8_t part;
    // Where columns are queries; in exponents of two.
    float lse;

    __device__ __forceinline__ static Shift of(const ImportanceQueryKey& p, const SequenceTile& place, int row, int end) {
        const int token = place.sequence + min(row, end - 1);
        const uint8_t part = row < end ? (p.mask == nullptr ? 1 : p.mask[token]) : 0;
        return {part, keeps_keys(p) ? lse_of(p, token) : 0.0f};
    }

    __device__ __forceinline__ float value() const { return part != 0 ? -lse : -INFINITY; }
};

// Which of a tile's columns a warp's rows see under a causal mask.
enum class Sight { None, Some, All };

__device__ __forceinline__ Sight sight_of(const ImportanceQueryKey& p, const SequenceTile& place, int column) {
    if (!has_rows(place, warp_index())) {
        return Sight::None;
    }
    if (!p.causal) {
        return Sight::All;
    }
    const int row = place.row + warp_index() * WARP;
    const int last_row = row + WARP - 1;
    const int last_column = column + WALK - 1;
    if (keeps_keys(p)) {
        return last_column < row ? Sight::None : column < last_row ? Sight::Some : Sight::All;
    }
    return column > last_row ? Sight::None : last_column > row ? Sight::Some : Sight::All;
}

// Takes a tile's scores into the rows; `column` is the first, counted from the sequence's first token.
template <class Engine>
__device__ __forceinline__ void absorb_tile(const ImportanceQueryKey& p, const SequenceTile& place, const Engine& engine,
                                            Seen (&seen)[Engine::R], const float* shifts, int column, Sight sight) {
    const float scale = p.scale;
    const bool keys = keeps_keys(p);
    float x[Engine::R][Engine::C];
#pragma unroll
    for (int c = 0; c < Engine::C; c++) {
        const float shift = shifts[Engine::column(c)];
#pragma unroll
        for (int r = 0; r < Engine::R; r++) {
            x[r][c] = engine.score(r, c) * scale + shift;
        }
    }
    // What a token that takes no part holds may be anything, and so may its scores.
    if (p.mask != nullptr) {
#pragma unroll
        for (int c = 0; c < Engine::C; c++) {
            const bool hidden = shifts[Engine::column(c)] == -INFINITY;
#pragma unroll
            for (int r = 0; r < Engine::R; r++) {
                x[r][c] = hidden ? -INFINITY : x[r][c];
            }
        }
    }
    if (sight == Sight::Some) {
#pragma unroll
        for (int r = 0; r < Engine::R; r++) {
#pragma unroll
            for (int c = 0; c < Engine::C; c++) {
                const int row = place.row + Engine::row(r);
                const int met = column + Engine::column(c);
                const bool visible = keys ? row <= met : met <= row;
                x[r][c] = visible ? x[r][c] : -INFINITY;
            }
        }
    }
    // Against a known log-sum-exp a NaN score is a probability that counts as 0.
    if (p.measure == MEASURE_GIVEN_ENTROPY && p.lse != nullptr) {
#pragma unroll
        for (int r = 0; r < Engine::R; r++) {
#pragma unroll
            for (int c = 0; c < Engine::C; c++) {
                x[r][c] = fmaxf(x[r][c], -INFINITY);
            }
        }
    }
    absorb(reduction_of(p), seen, x);
}

// Combines what the lanes that share a row have seen, in their order, and writes each row's value.
template <class Engine>
__device__ __forceinline__ void finish(const ImportanceQueryKey& p, const SequenceTile& place, const Seen (&seen)[Engine::R],
                                       float4* of_lanes) {
    SHARED_ARRAY(int, scratch, MAX_WARPS);
    // The groups left are empty ones, and the ring is free for other use when every warp is here.
    ptx::cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int r = 0; r < Engine::R; r++) {
        const int row = Engine::row(r);
        if (place.row + row < place.length) {
            const int lane = lane_index() % Engine::LANES;
            of_lanes[lane * OWN + row] = {seen[r].largest, seen[r].sum, seen[r].weighted, 0.0f};
        }
    }
    __syncthreads();
    const bool counts = p.measure == MEASURE_RECEIVED_MEAN || p.measure == MEASURE_GIVEN_ENTROPY;
    const int visible = counts ? count_visible(p, place, scratch) : 0;
    const int row = static_cast<int>(threadIdx.x);
    if (place.row + row >= place.length) {
        return;
    }
    Seen whole = Seen::nothing(reduction_of(p));
#pragma unroll
    for (int lane = 0; lane < Engine::LANES; lane++) {
        const float4 part = of_lanes[lane * OWN + row];
        whole.merge({part.x, part.y, part.z});
    }
    const int token = place.sequence + place.row + row;
    if (sequences_of(p).of(token) != place.index) {
        return;
    }
    float value = 0.0f;
    if (takes_part(p, token)) {
        const float lse = p.lse == nullptr || keeps_keys(p) ? 0.0f : lse_of(p, token);
        value = value_of(p, whole, lse, visible);
    }
    p.values[static_cast<int64_t>(blockIdx.y) * p.tokens + token] = value;
}

template <class Engine, bool WIDE>
__device__ __forceinline__ void walk(const ImportanceQueryKey& p, const SequenceTile& place, uint4* ring, float* shifts) {
    using Chunks = Feed<Engine, WIDE>;
    const Span span = walk_of(p, place);
    const int chunks = Engine::CHUNKS > 0 ? Engine::CHUNKS : (p.width + Engine::CHUNK - 1) / Engine::CHUNK;
    const bool keys = keeps_keys(p);
    const auto own = rows_of<typename Engine::Storage>(p, place, keys);
    const auto met = rows_of<typename Engine::Storage>(p, place, !keys);
    Chunks feed = {ring, own, met, place.row, span.end, chunks, span.first, 0, 0};
    Engine engine;
    keep_own(p, place, engine, feed);
    Seen seen[Engine::R];
#pragma unroll
    for (int r = 0; r < Engine::R; r++) {
        seen[r] = Seen::nothing(reduction_of(p));
    }
    for (int ahead = 0; ahead < RING - 1; ahead++) {
        feed.fetch(p);
    }
    const int thread = static_cast<int>(threadIdx.x);
    Shift ahead = thread < WALK ? Shift::of(p, place, span.first + thread, span.end) : Shift{};
    for (int column = span.first; column < span.end; column += WALK) {
        // Overwrites the shifts of the tile before the last: every thread has passed a barrier since it read them.
        float* shifts_now = shifts + column % (2 * WALK);
        if (thread < WALK) {
            shifts_now[thread] = ahead.value();
            ahead = Shift::of(p, place, column + WALK + thread, span.end);
        }
        const Sight sight = sight_of(p, place, column);
        engine.clear();
#pragma unroll(Engine::CHUNKS > 0 ? Engine::CHUNKS : 1)
        for (int chunk = 0; chunk < chunks; chunk++) {
            ptx::cp_async_wait<RING - 2>();
            __syncthreads();
            feed.fetch(p);
            // The copies just started go where the last stage was; this one comes after it.
            const uint4* now = ring + feed.stage * Chunks::STAGE;
            if (sight != Sight::None) {
                engine.multiply(now + Chunks::WALK_PIECES, now, chunk, p.width);
            }
        }
        if (sight != Sight::None) {
            absorb_tile(p, place, engine, seen, shifts_now, column, sight);
        }
    }
    finish<Engine>(p, place, seen, reinterpret_cast<float4*>(ring));
}

template <class Engine>
__device__ __forceinline__ void measure(const ImportanceQueryKey& p) {
    constexpr int PIECES = RING * Feed<Engine, true>::STAGE;
    SHARED_ARRAY(uint4, ring, PIECES);
    SHARED_ARRAY(float, shifts, 2 * WALK);
    static_assert(Engine::LANES * OWN <= PIECES, "what the lanes have seen fits in the ring");
    // Under a causal mask the last queries have the longest walk: they begin.
    const bool backwards = p.causal && !keeps_keys(p);
    const SequenceTile place = find_sequence_tile(p, static_cast<int>(backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x));
    if (place.row >= place.length) {
        return;
    }
    if (p.wide) {
        walk<Engine, true>(p, place, ring, shifts);
    } else {
        walk<Engine, false>(p, place, ring, shifts);
    }
}

}  // namespace da_moe
