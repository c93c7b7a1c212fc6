// Block 0 reads what block 1 overwrites. `role` picks one of the two, or lets both act, with nothing to order them.
#include <emulator/cuda.h>

constexpr int BOTH = 2;

extern "C" __global__ void write_after_read(int* value, int* out, int role) {
    const int mine = blockIdx.x;
    if (role != mine && role != BOTH) {
        return;
    }
    if (mine == 0) {
        out[0] = value[0];  // the read
    } else {
        value[0] = 7;  // the write
    }
}
GPU_KERNEL(write_after_read)
