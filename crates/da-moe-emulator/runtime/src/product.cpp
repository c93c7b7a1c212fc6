#include "product.h"

#include <cmath>
#include <cstring>

namespace emu {

namespace {

constexpr int ROWS = 16, LANES_OF_A_WARP = 32;
constexpr int MAX_DEPTH = 16;

// Calls `move(place in sums, place of the lane)` for all pairs of neighbouring accumulators of a lane.
template <class Move>
inline void for_each_pair(int lane, int n, Move move) {
    const int row = lane / 4, column = lane % 4 * 2;
    for (int block = 0; block < n / 8; block++) {
        move(row * n + block * 8 + column, block * 4);
        move((row + 8) * n + block * 8 + column, block * 4 + 2);
    }
}

// One row of a with one k, that is not left out.
struct Term {
    float a;
    const float* b;
};

typedef float Lanes __attribute__((vector_size(32)));

// WIDTH vectors of sums, which stay in registers through all terms.
template <int WIDTH>
inline __attribute__((always_inline)) void add_terms(float* sums, const Term* terms, int count, int column) {
    Lanes sum[WIDTH];
    memcpy(sum, sums + column, sizeof sum);
    for (int t = 0; t < count; t++) {
        Lanes b[WIDTH];
        memcpy(b, terms[t].b + column, sizeof b);
        for (int i = 0; i < WIDTH; i++) {
            sum[i] += terms[t].a * b[i];
        }
    }
    memcpy(sums + column, sum, sizeof sum);
}

// Not for FMA: the tensor cores' sums are not fused either way, and results are to be the same on every machine.
__attribute__((target_clones("avx2", "default"))) void add_row(float* sums, const Term* terms, int count, int n) {
    int column = 0;
    for (; column + 64 <= n; column += 64) {
        add_terms<8>(sums, terms, count, column);
    }
    for (; column < n; column += 8) {
        add_terms<1>(sums, terms, count, column);
    }
}

}  // namespace

void gather_accumulators(std::vector<float>& sums, float* const* accumulators, int n) {
    sums.resize(static_cast<size_t>(ROWS * n));
    for (int lane = 0; lane < LANES_OF_A_WARP; lane++) {
        for_each_pair(lane, n, [&](int place, int i) { memcpy(sums.data() + place, accumulators[lane] + i, 8); });
    }
}

void scatter_accumulators(const std::vector<float>& sums, float* const* accumulators, int n) {
    for (int lane = 0; lane < LANES_OF_A_WARP; lane++) {
        for_each_pair(lane, n, [&](int place, int i) { memcpy(accumulators[lane] + i, sums.data() + place, 8); });
    }
}

void multiply_rows(std::vector<float>& sums, const Factors& factors) {
    const int n = factors.n;
    for (int row = 0; row < ROWS; row++) {
        Term terms[MAX_DEPTH];
        int count = 0;
        for (int k = 0; k < factors.depth; k++) {
            const float a = factors.a[k * ROWS + row];
            const bool zero_a = a == 0.0f && !(factors.not_finite >> k & 1);
            const bool zero_b = !(factors.not_zero >> k & 1) && std::isfinite(a);
            if (!zero_a && !zero_b) {
                terms[count++] = {a, factors.b + k * n};
            }
        }
        if (count > 0) {
            add_row(&sums[static_cast<size_t>(row * n)], terms, count, n);
        }
    }
}

}  // namespace emu
