// The main loop for f32, in f32: no tensor cores, whose TF32 keeps 10 bits of a factor. A tile is 128 vectors of A by 128
// vectors of B, 16 deep; each of 256 threads has 8 × 8 products, added up in the order of the depth. Elements of a 16-bit
// type are widened on their way into shared memory: what meets f32 has to be multiplied in f32.
//
// A thread's vectors of an operand are four neighbours of the first 64 and the same four of the last, and a warp's are 16 of
// A and 32 of B of each: a warp multiplies the halves that have something in them. While the first half of
// a step is multiplied, the next step's elements of A are on their way from memory into registers, and B's during the second;
// what says where their rows are was read a step before that.
//
// Barriers: one before the first step and one after each, which says that the step after it has been written to the other of
// two stages, and that this one has been read. The products of a tile leave through the same shared memory.
#pragma once

#include "abi.h"
#include "device/storage.cuh"
#include "device/warp.cuh"
#include "experts/operands.cuh"
#include "experts/product_tile.cuh"

// Shared memory of a kernel with such a loop.
#define F32_SHARED(name, Loop)                                  \
    SHARED_ARRAY(float4, name##_of_block, Loop::SHARED_BYTES / 16); \
    unsigned char* name = reinterpret_cast<unsigned char*>(name##_of_block)

namespace da_moe {

template <class SourceA, class SourceB>
class F32Loop {
public:
    static constexpr int THREADS = 256;
    static constexpr bool ALONE = false;
    static constexpr int TILE_ROWS = GEMM_F32_TILE;
    static constexpr int TILE_COLUMNS = GEMM_F32_TILE;
    // Elements of one step of the depth.
    static constexpr int STEP = 16;
    using Products = ProductTile<TILE_ROWS / 2, TILE_COLUMNS>;
    static constexpr int SHARED_BYTES = 2 * 2 * STEP * (TILE_ROWS + 4) * static_cast<int>(sizeof(float));

    // SHARED_BYTES of shared memory.
    __device__ __forceinline__ explicit F32Loop(unsigned char* shared) : shared_(reinterpret_cast<float*>(shared)) {}

    __device__ __forceinline__ void run(const SourceA& from_a, const SourceB& from_b, int rows, int depth) {
        const int first_of_warp = warp_index() * WARP;
        rows_ = halves(rows, row(first_of_warp));
        columns_ = halves(from_b.vectors(), column(first_of_warp));
        Copy<SourceA> a(from_a, depth);
        Copy<SourceB> b(from_b, depth);
#pragma unroll
        for (int i = 0; i < OWN; i++) {
#pragma unroll
            for (int j = 0; j < OWN; j++) {
                products_[i][j] = 0.0f;
            }
        }
        a.load(0);
        b.load(0);
        a.store(shared_);
        b.store(shared_ + STEP * PITCH);
        __syncthreads();
        for (int step = 0; step < depth; step += STEP) {
            const float* stage = shared_ + step / STEP % 2 * STAGE;
            float* other = shared_ + (step / STEP + 1) % 2 * STAGE;
            const bool goes_on = step + STEP < depth;
            if (goes_on) {
                a.load(step + STEP);
            }
            multiply(stage, 0, min(depth - step, STEP / 2));
            if (goes_on) {
                a.store(other);
                b.load(step + STEP);
            }
            multiply(stage, STEP / 2, min(depth - step, STEP));
            if (goes_on) {
                b.store(other + STEP * PITCH);
            }
            __syncthreads();
        }
    }

    // Hands over the products of one half of the rows, in the shared memory that the stages were in.
    template <int HALF>
    __device__ __forceinline__ Products half_of_products() const {
        Products products(shared_);
        const int thread = this_thread();
#pragma unroll
        for (int i = 0; i < NEIGHBOURS; i++) {
            const float(&of_row)[OWN] = products_[HALF * NEIGHBOURS + i];
            products.put(row(thread) + i, column(thread), make_float4(of_row[0], of_row[1], of_row[2], of_row[3]));
            products.put(row(thread) + i, column(thread) + APART, make_float4(of_row[4], of_row[5], of_row[6], of_row[7]));
        }
        return products;
    }

private:
    // Vectors of each operand in one thread's products, neighbours among them, and where the others are.
    static constexpr int OWN = 8;
    static constexpr int NEIGHBOURS = 4;
    static constexpr int APART = TILE_ROWS / 2;
    // One more than a multiple of the banks would do; four more keep 16-byte accesses aligned.
    static constexpr int PITCH = TILE_ROWS + 4;
    static constexpr int STAGE = 2 * STEP * PITCH;
    static_assert(Products::BYTES <= SHARED_BYTES, "the products take the place of the stages");

    // First vectors of a thread.
    __device__ __forceinline__ static int row(int thread) { return thread / WARP / 2 * 16 + thread % WARP / 8 * NEIGHBOURS; }
    __device__ __forceinline__ static int column(int thread) { return thread / WARP % 2 * 32 + thread % 8 * NEIGHBOURS; }

    // Halves of a warp's vectors that have something in them.
    __device__ __forceinline__ static int halves(int vectors, int first) {
        return (first < vectors ? 1 : 0) + (first + APART < vectors ? 1 : 0);
    }

    // What is made of it is computed for every step, because the products leave no registers to keep it in.
    __device__ __forceinline__ static int this_thread() { return computed_here(static_cast<int>(threadIdx.x)); }

    // What one thread copies: eight neighbours in memory, along the depth or across it.
    template <class Source, bool ACROSS = Source::ACROSS>
    class Copy {
    public:
        __device__ __forceinline__ Copy(const Source& from, int depth)
            : row_(from.row(static_cast<int>(threadIdx.x) % TILE_ROWS)), depth_(depth) {}

        __device__ __forceinline__ void load(int step) {
            const int from = step + first(this_thread());
            const int count = row_.is_there ? min(max(depth_ - from, 0), OUTPUT_CHUNK) : 0;
            next_ = raw_chunk(row_.at + from, count);
        }

        __device__ __forceinline__ void store(float* to) const {
            const int thread = this_thread();
            to += first(thread) * PITCH + thread % TILE_ROWS;
#pragma unroll
            for (int i = 0; i < OUTPUT_CHUNK; i++) {
                to[i * PITCH] = to_float(next_.elements[i]);
            }
        }

    private:
        __device__ __forceinline__ static int first(int thread) { return thread / TILE_ROWS * OUTPUT_CHUNK; }

        const Row<typename Source::Element> row_;
        int depth_;
        Vector<typename Source::Element, OUTPUT_CHUNK> next_;
    };

    template <class Source>
    class Copy<Source, true> {
    public:
        // A source has no rows past the depth.
        __device__ __forceinline__ Copy(const Source& from, int)
            : from_(from), picked_(from.pick(k(static_cast<int>(threadIdx.x)))) {}

        __device__ __forceinline__ void load(int step) {
            const int thread = this_thread();
            const auto row = from_.picked(picked_);
            takes_part_ = from_.takes_part(picked_);
            picked_ = from_.pick(step + STEP + k(thread));
            const int count = row.is_there ? min(max(from_.width() - first(thread), 0), OUTPUT_CHUNK) : 0;
            next_ = raw_chunk(row.at + first(thread), count);
        }

        __device__ __forceinline__ void store(float* to) const {
            const int thread = this_thread();
            to += k(thread) * PITCH + first(thread);
#pragma unroll
            for (int i = 0; i < OUTPUT_CHUNK; i += NEIGHBOURS) {
                Vector<float, NEIGHBOURS> four;
#pragma unroll
                for (int j = 0; j < NEIGHBOURS; j++) {
                    four.elements[j] = takes_part_ ? to_float(next_.elements[i + j]) : 0.0f;
                }
                four.store(to + i);
            }
        }

    private:
        static constexpr int THREADS_A_ROW = TILE_COLUMNS / OUTPUT_CHUNK;
        __device__ __forceinline__ static int k(int thread) { return thread / THREADS_A_ROW; }
        __device__ __forceinline__ static int first(int thread) { return thread % THREADS_A_ROW * OUTPUT_CHUNK; }

        const Source& from_;
        int picked_;
        bool takes_part_ = true;
        Vector<typename Source::Element, OUTPUT_CHUNK> next_;
    };

    // Elements of the depth from `k` on, before `end`.
    __device__ __forceinline__ void multiply(const float* stage, int k, int end) {
        if (rows_ == 2 && columns_ == 2) {
            multiply_halves<2, 2>(stage, k, end);
        } else if (rows_ == 2 && columns_ == 1) {
            multiply_halves<2, 1>(stage, k, end);
        } else if (rows_ == 1 && columns_ == 2) {
            multiply_halves<1, 2>(stage, k, end);
        } else if (rows_ == 1 && columns_ == 1) {
            multiply_halves<1, 1>(stage, k, end);
        }
    }

    template <int ROWS, int COLUMNS>
    __device__ __forceinline__ void multiply_halves(const float* stage, int k, int end) {
        const int thread = this_thread();
        const float* a = stage + k * PITCH + row(thread);
        const float* b = stage + (STEP + k) * PITCH + column(thread);
        // Not unrolled: registers for a second set of factors would cost the second block a multiprocessor, whose warps are
        // what these wait behind.
#pragma unroll 1
        for (; k < end; k++, a += PITCH, b += PITCH) {
            multiply_one<ROWS, COLUMNS>(a, b);
        }
    }

    template <int ROWS, int COLUMNS>
    __device__ __forceinline__ void multiply_one(const float* a, const float* b) {
        Vector<float, NEIGHBOURS> of_a[ROWS], of_b[COLUMNS];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            of_a[i] = Vector<float, NEIGHBOURS>::load(a + i * APART);
        }
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            of_b[j] = Vector<float, NEIGHBOURS>::load(b + j * APART);
        }
#pragma unroll
        for (int i = 0; i < ROWS * NEIGHBOURS; i++) {
#pragma unroll
            for (int j = 0; j < COLUMNS * NEIGHBOURS; j++) {
                products_[i][j] +=
                    of_a[i / NEIGHBOURS].elements[i % NEIGHBOURS] * of_b[j / NEIGHBOURS].elements[j % NEIGHBOURS];
            }
        }
    }

    float* shared_;
    int rows_ = 0;
    int columns_ = 0;
    float products_[OWN][OWN];
};

}  // namespace da_moe
