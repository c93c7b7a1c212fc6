// Kernels for the driver's library: one that is right, and some that are not.
#include <emulator/cuda.h>

struct Sum {
    const int* a;
    const int* b;
    int* out;
    int count;
};

extern "C" __global__ void sum(const Sum p) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.count) {
        p.out[i] = p.a[i] + p.b[i];
    }
}
GPU_KERNEL(sum)

extern "C" __global__ void past_the_end(int* values, int count) {
    values[count + threadIdx.x] = 1;
}
GPU_KERNEL(past_the_end)

extern "C" __global__ void between_words(char* bytes) {
    *reinterpret_cast<int*>(bytes + 2) = 1;
}
GPU_KERNEL(between_words)

extern "C" __global__ void gives_up() {
    __trap();
}
GPU_KERNEL(gives_up)
