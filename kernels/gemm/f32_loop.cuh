// The main loop for f32, in f32: no tensor cores, whose TF32 keeps 10 bits of a factor. A tile is 64 rows by 64 rows of
// weights, 16 deep; each of 256 threads has 4 × 4 products, added up in the order of the depth. Rows of A may be of a
// 16-bit type, widened while they are loaded: what meets f32 weights has to be multiplied in f32.
//
// Barriers: one before a step is filled, one before it is read; the first of a tile also says that the tile before has left.
#pragma once

#include "../device/storage.cuh"
#include "epilogue.cuh"
#include "operands.cuh"

namespace da_moe {

template <class A, bool GATED>
class F32Loop {
public:
    static constexpr int THREADS = 256;
    static constexpr int ROW_STEP = 4;
    static constexpr int TILE_ROWS = GEMM_F32_TILE;
    static constexpr int TILE_COLUMNS = GATED ? GEMM_F32_TILE / 2 : GEMM_F32_TILE;
    using Output = TileOutput<float, TILE_ROWS, GEMM_F32_TILE, GATED, 2>;

    __device__ __forceinline__ F32Loop(const GroupedGemm& p, unsigned char*) : p_(p) {}

    __device__ __forceinline__ void run(const Tile& tile) {
        // Transposed, so that a thread's four rows and four columns are neighbours.
        SHARED_ARRAY(float, a, STEP * PITCH);
        SHARED_ARRAY(float, b, STEP * PITCH);
        const int row = static_cast<int>(threadIdx.x) / (THREADS / TILE_ROWS);
        const int first = static_cast<int>(threadIdx.x) % (THREADS / TILE_ROWS) * OWN;
        const A* from_a = operand_a<A>(p_, tile, row);
        const float* from_b = operand_b<float, GATED, 2>(p_, tile, row);
#pragma unroll
        for (int i = 0; i < OWN; i++) {
#pragma unroll
            for (int j = 0; j < OWN; j++) {
                products_[i][j] = 0.0f;
            }
        }
        for (int step = 0; step < p_.depth; step += STEP) {
            __syncthreads();
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                const bool inside = step + first + i < p_.depth;
                a[(first + i) * PITCH + row] = inside && from_a != nullptr ? to_float(from_a[step + first + i]) : 0.0f;
                b[(first + i) * PITCH + row] = inside && from_b != nullptr ? from_b[step + first + i] : 0.0f;
            }
            __syncthreads();
#pragma unroll
            for (int k = 0; k < STEP; k++) {
                multiply(a + k * PITCH + first_row(), b + k * PITCH + first_column());
            }
        }
    }

    // Hands over the products through shared memory of their own.
    __device__ __forceinline__ Output output() {
        SHARED_ARRAY(float4, tile, Output::BYTES / sizeof(float4));
        Output output(p_, reinterpret_cast<float*>(tile));
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            output.put(first_row() + i, first_column(), products_[i][0], products_[i][1]);
            output.put(first_row() + i, first_column() + 2, products_[i][2], products_[i][3]);
        }
        return output;
    }

private:
    static constexpr int STEP = 16;
    // Rows and columns of one thread, and elements that it copies of each operand.
    static constexpr int OWN = 4;
    // One more than a multiple of the banks would do; four more keep 16-byte accesses aligned.
    static constexpr int PITCH = TILE_ROWS + OWN;

    __device__ __forceinline__ static int first_row() { return static_cast<int>(threadIdx.x) / 16 * OWN; }
    __device__ __forceinline__ static int first_column() { return static_cast<int>(threadIdx.x) % 16 * OWN; }

    __device__ __forceinline__ void multiply(const float* a, const float* b) {
#pragma unroll
        for (int i = 0; i < OWN; i++) {
#pragma unroll
            for (int j = 0; j < OWN; j++) {
                products_[i][j] += a[i] * b[j];
            }
        }
    }

    const GroupedGemm& p_;
    float products_[OWN][OWN];
};

}  // namespace da_moe
