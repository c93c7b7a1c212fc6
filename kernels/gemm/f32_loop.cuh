// The main loop for f32, in f32: no tensor cores, whose TF32 keeps 10 bits of a factor. A tile is 64 vectors of A by 64
// vectors of B, 16 deep; each of 256 threads has 4 × 4 products, added up in the order of the depth. Elements of a 16-bit
// type are widened while they are loaded: what meets f32 has to be multiplied in f32.
//
// Barriers: one before a step is filled, one before it is read; the first of a tile also says that the tile before has left.
#pragma once

#include "../abi.h"
#include "../device/storage.cuh"
#include "product_tile.cuh"

namespace da_moe {

template <class SourceA, class SourceB>
class F32Loop {
public:
    static constexpr int THREADS = 256;
    static constexpr int TILE_ROWS = GEMM_F32_TILE;
    static constexpr int TILE_COLUMNS = GEMM_F32_TILE;
    // Elements of one step of the depth.
    static constexpr int STEP = 16;
    using Products = ProductTile<TILE_ROWS, TILE_COLUMNS>;

    __device__ __forceinline__ explicit F32Loop(unsigned char*) {}

    __device__ __forceinline__ void run(const SourceA& from_a, const SourceB& from_b, int rows, int depth) {
        // By depth, so that a thread's four vectors of each are neighbours.
        SHARED_ARRAY(float, a, STEP * PITCH);
        SHARED_ARRAY(float, b, STEP * PITCH);
        const Copy<SourceA> copy_a(from_a);
        const Copy<SourceB> copy_b(from_b);
#pragma unroll
        for (int i = 0; i < OWN; i++) {
#pragma unroll
            for (int j = 0; j < OWN; j++) {
                products_[i][j] = 0.0f;
            }
        }
        // A thread without products of its own only copies, and the last step ends with the depth.
        const bool has_products = first_row() < rows && first_column() < from_b.vectors();
        for (int step = 0; step < depth; step += STEP) {
            __syncthreads();
            copy_a.fill(a, step, depth);
            copy_b.fill(b, step, depth);
            __syncthreads();
            const int last = has_products ? depth - step : 0;
#pragma unroll
            for (int k = 0; k < STEP; k++) {
                if (k < last) {
                    multiply(a + k * PITCH + first_row(), b + k * PITCH + first_column());
                }
            }
        }
    }

    // Hands over the products through shared memory of their own.
    __device__ __forceinline__ Products products() {
        SHARED_ARRAY(float4, tile, Products::BYTES / sizeof(float4));
        Products products(reinterpret_cast<float*>(tile));
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            products.put(first_row() + i, first_column(), products_[i][0], products_[i][1]);
            products.put(first_row() + i, first_column() + 2, products_[i][2], products_[i][3]);
        }
        return products;
    }

private:
    // Vectors of each operand in one thread's products, and elements of each that it copies.
    static constexpr int OWN = 4;
    // One more than a multiple of the banks would do; four more keep 16-byte accesses aligned.
    static constexpr int PITCH = TILE_ROWS + OWN;

    __device__ __forceinline__ static int first_row() { return static_cast<int>(threadIdx.x) / 16 * OWN; }
    __device__ __forceinline__ static int first_column() { return static_cast<int>(threadIdx.x) % 16 * OWN; }

    // What one thread copies: neighbours in memory, along the depth or across it.
    template <class Source, bool ACROSS = Source::ACROSS>
    class Copy {
    public:
        __device__ __forceinline__ explicit Copy(const Source& from) : row_(from.row(row())) {}

        __device__ __forceinline__ void fill(float* to, int step, int depth) const {
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                const int k = first() + i;
                const bool inside = row_ != nullptr && step + k < depth;
                to[k * PITCH + row()] = inside ? to_float(row_[step + k]) : 0.0f;
            }
        }

    private:
        static constexpr int THREADS_A_ROW = STEP / OWN;
        __device__ __forceinline__ static int row() { return static_cast<int>(threadIdx.x) / THREADS_A_ROW; }
        __device__ __forceinline__ static int first() { return static_cast<int>(threadIdx.x) % THREADS_A_ROW * OWN; }

        const typename Source::Element* row_;
    };

    template <class Source>
    class Copy<Source, true> {
    public:
        __device__ __forceinline__ explicit Copy(const Source& from) : from_(from) {}

        // A source has no rows past the depth.
        __device__ __forceinline__ void fill(float* to, int step, int) const {
            const int k = static_cast<int>(threadIdx.x) / 16;
            const int first = first_column();
            const auto* row = from_.row(step + k);
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                const bool inside = row != nullptr && first + i < from_.width();
                to[k * PITCH + first + i] = inside ? to_float(row[first + i]) : 0.0f;
            }
        }

    private:
        const Source& from_;
    };

    __device__ __forceinline__ void multiply(const float* a, const float* b) {
#pragma unroll
        for (int i = 0; i < OWN; i++) {
#pragma unroll
            for (int j = 0; j < OWN; j++) {
                products_[i][j] += a[i] * b[j];
            }
        }
    }

    float products_[OWN][OWN];
};

}  // namespace da_moe
