// Softmax and top-k over experts: one token a block of 128 threads, at most 256 experts.
#include <emulator/cuda.h>

constexpr int THREADS = 128, MAX_EXPERTS = 256, PER_THREAD = MAX_EXPERTS / THREADS;

__device__ __forceinline__ float warp_max(float v) {
    for (int offset = 16; offset > 0; offset /= 2) {
        v = fmaxf(v, __shfl_xor_sync(~0u, v, offset));
    }
    return v;
}

__device__ __forceinline__ float warp_sum(float v) {
    for (int offset = 16; offset > 0; offset /= 2) {
        v += __shfl_xor_sync(~0u, v, offset);
    }
    return v;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    topk_gate(const __nv_bfloat16* logits, float* weights, int* experts, int* counts, int* over, int* over_count, int E,
              int K, float threshold) {
    SHARED_ARRAY(float, red, 4);
    SHARED_ARRAY(float, prob, MAX_EXPERTS);
    const int t = threadIdx.x, lane = t & 31, warp = t >> 5, token = blockIdx.x;
    const __nv_bfloat16* row = logits + (size_t)token * E;

    float v[PER_THREAD], m = -INFINITY;
    for (int i = 0; i < PER_THREAD; i++) {
        const int e = t + i * THREADS;
        v[i] = e < E ? __bfloat162float(row[e]) : -INFINITY;
        m = fmaxf(m, v[i]);
    }
    m = warp_max(m);
    if (lane == 0) {
        red[warp] = m;
    }
    __syncthreads();
    m = fmaxf(fmaxf(red[0], red[1]), fmaxf(red[2], red[3]));
    __syncthreads();  // red is reused

    float s = 0;
    for (int i = 0; i < PER_THREAD; i++) {
        v[i] = __expf(v[i] - m);
        s += v[i];
    }
    s = warp_sum(s);
    if (lane == 0) {
        red[warp] = s;
    }
    __syncthreads();
    s = red[0] + red[1] + red[2] + red[3];
    for (int i = 0; i < PER_THREAD; i++) {
        const int e = t + i * THREADS;
        prob[e] = e < E ? v[i] / s : -1.0f;
    }

    // Every expert over the threshold goes to a list: one atomic a warp.
    for (int i = 0; i < PER_THREAD; i++) {
        const int e = t + i * THREADS;
        const bool chosen = e < E && v[i] / s > threshold;
        const unsigned ballot = __ballot_sync(~0u, chosen);
        int base = 0;
        if (lane == 0 && ballot != 0) {
            base = atomicAdd(over_count, __popc(ballot));
        }
        base = __shfl_sync(~0u, base, 0);
        if (chosen) {
            over[base + __popc(ballot & ((1u << lane) - 1))] = token * E + e;
        }
    }
    __syncthreads();

    if (warp != 0) {
        return;
    }
    for (int k = 0; k < K; k++) {
        float best = -2.0f;
        int index = 1 << 30;
        for (int e = lane; e < MAX_EXPERTS; e += 32) {
            if (prob[e] > best) {
                best = prob[e];
                index = e;
            }
        }
        for (int offset = 16; offset > 0; offset /= 2) {
            const float other = __shfl_xor_sync(~0u, best, offset);
            const int other_index = __shfl_xor_sync(~0u, index, offset);
            if (other > best || (other == best && other_index < index)) {
                best = other;
                index = other_index;
            }
        }
        if (lane == (index & 31)) {
            prob[index] = -1.0f;  // only this lane reads it again
        }
        if (lane == 0) {
            weights[token * K + k] = best;
            experts[token * K + k] = index;
            atomicAdd(&counts[index], 1);
        }
    }
}
GPU_KERNEL(topk_gate)
