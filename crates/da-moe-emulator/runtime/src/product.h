// The arithmetic of wgmma, for one warp.
#pragma once

#include <cstdint>
#include <vector>

namespace emu {

// 16 rows of `n` accumulators in order, and where the lanes have them: accumulators[lane][i].
void gather_accumulators(std::vector<float>& sums, float* const* accumulators, int n);
void scatter_accumulators(const std::vector<float>& sums, float* const* accumulators, int n);

// Adds the products of a, with value (row, k) at [k * 16 + row], and b, with value (k, column) at [k * n + column]. Bits
// of `not_zero` and `not_finite` say of each k whether b has such values. Sums are made in the order of k. Products of a
// zero with a number are left out, so that a sum that is -0 may stay so where the hardware has 0.
struct Factors {
    const float *a, *b;
    int n, depth;
    uint32_t not_zero, not_finite;
};
void multiply_rows(std::vector<float>& sums, const Factors& factors);

}  // namespace emu
