// One kernel a fault, each at the line that says so. All take two buffers of 100 ints, `in` read-only and filled.
#include <assert.h>
#include <emulator/cuda.h>

#define FAULT(name) extern "C" __global__ void name(const int* in, int* out)

FAULT(read_past_the_end) {
    out[threadIdx.x] = in[threadIdx.x + 40];  // fault: read_past_the_end
}
GPU_KERNEL(read_past_the_end)

FAULT(write_before_the_start) {
    if (threadIdx.x == 0) {
        out[-1] = in[0];  // fault: write_before_the_start
    }
}
GPU_KERNEL(write_before_the_start)

FAULT(null_pointer) {
    const int* nothing = in - reinterpret_cast<uintptr_t>(in) / 4;
    out[threadIdx.x] = nothing[0];  // fault: null_pointer
}
GPU_KERNEL(null_pointer)

FAULT(read_of_unwritten) {
    if (threadIdx.x == 7) {
        out[8] = out[7] + in[0];  // fault: read_of_unwritten
    }
}
GPU_KERNEL(read_of_unwritten)

FAULT(atomic_on_unwritten) {
    atomicAdd(&out[0], in[0]);  // fault: atomic_on_unwritten
}
GPU_KERNEL(atomic_on_unwritten)

FAULT(write_to_read_only) {
    const_cast<int*>(in)[threadIdx.x] = out == nullptr;  // fault: write_to_read_only
}
GPU_KERNEL(write_to_read_only)

FAULT(atomic_on_read_only) {
    atomicMax(const_cast<int*>(in), out == nullptr);  // fault: atomic_on_read_only
}
GPU_KERNEL(atomic_on_read_only)

FAULT(misaligned_vector) {
    if (threadIdx.x == 0) {
        const int4 four = *reinterpret_cast<const int4*>(in + 2);  // fault: misaligned_vector
        out[0] = four.x + four.y + four.z + four.w;
    }
}
GPU_KERNEL(misaligned_vector)

FAULT(misaligned_shared) {
    DYN_SMEM(raw, 8);
    if (threadIdx.x == 0) {
        *reinterpret_cast<int4*>(raw) = make_int4(in[0], 0, 0, 0);  // fault: misaligned_shared
        out[0] = raw[0];
    }
}
GPU_KERNEL(misaligned_shared)

FAULT(shared_past_the_end) {
    SHARED_ARRAY(int, values, 8);
    int* alias = values;
    if (threadIdx.x == 0) {
        alias[in[0] + 8] = 1;  // fault: shared_past_the_end
        out[0] = values[0];
    }
}
GPU_KERNEL(shared_past_the_end)

FAULT(dynamic_past_the_end) {
    DYN_SMEM(raw, 16);
    if (threadIdx.x == 0) {
        raw[in[0] + 64] = 1;  // fault: dynamic_past_the_end
        out[0] = raw[0];
    }
}
GPU_KERNEL(dynamic_past_the_end)

FAULT(uninitialised_shared) {
    SHARED_ARRAY(int, values, 64);
    if (threadIdx.x > 0) {
        values[threadIdx.x] = in[threadIdx.x];
    }
    __syncthreads();
    out[threadIdx.x] = values[threadIdx.x];  // fault: uninitialised_shared
}
GPU_KERNEL(uninitialised_shared)

FAULT(half_of_a_pair) {
    SHARED_ARRAY(__half2, pairs, 32);
    if (threadIdx.x == 0) {
        pairs[3].x = __float2half((float)in[0]);
        const __half2 pair = pairs[3];  // fault: half_of_a_pair
        out[0] = (int)__high2float(pair);
    }
}
GPU_KERNEL(half_of_a_pair)

FAULT(index_of_a_local) {
    int local[4] = {1, 2, 3, 4};
    out[threadIdx.x] = local[in[0] + 4];  // fault: index_of_a_local
}
GPU_KERNEL(index_of_a_local)

__device__ int third_of(const int (&of_caller)[2][2], int index) {
    return of_caller[1][index];  // fault: index_through_a_reference
}
FAULT(index_through_a_reference) {
    const int local[2][2] = {{1, 2}, {3, 4}};
    out[threadIdx.x] = third_of(local, in[0] + 2);
}
GPU_KERNEL(index_through_a_reference)

// Not a fault that is seen: a pointer does not know the array's length, and the place is the thread's own stack.
FAULT(pointer_past_a_local) {
    int local[4] = {1, 2, 3, 4};
    int* alias = local;
    out[threadIdx.x] = alias[in[0] + 4] == 0;
}
GPU_KERNEL(pointer_past_a_local)

// The same as far away as the next thread's stack.
FAULT(pointer_far_past_a_local) {
    int local[4] = {1, 2, 3, 4};
    int* alias = local;
    if (threadIdx.x == 0) {
        out[0] = alias[in[0] + (64 << 10) / 4];  // fault: pointer_far_past_a_local
    }
}
GPU_KERNEL(pointer_far_past_a_local)

FAULT(index_of_a_shared) {
    SHARED_ARRAY(float, values, 4);
    values[in[0] + 4] = 0;  // fault: index_of_a_shared
    out[0] = 0;
}
GPU_KERNEL(index_of_a_shared)

FAULT(locals_of_another) {
    SHARED_ARRAY(int*, pointers, 1);
    int mine = in[threadIdx.x];
    if (threadIdx.x == 0) {
        pointers[0] = &mine;
    }
    __syncthreads();
    out[threadIdx.x] = *pointers[0];  // fault: locals_of_another
    __syncthreads();
}
GPU_KERNEL(locals_of_another)

__device__ int counter;
FAULT(variable_of_the_module) {
    counter = in[0];  // fault: variable_of_the_module
    out[0] = 0;
}
GPU_KERNEL(variable_of_the_module)

__noinline__ __device__ int deep(const int* in, int level) {  // fault: endless_recursion
    volatile int frame[64];
    frame[level % 64] = in[0];
    return level > 100000 ? 0 : deep(in, level + 1) + frame[level % 64];
}
FAULT(endless_recursion) {
    out[0] = deep(in, 0);
}
GPU_KERNEL(endless_recursion)

FAULT(trap) {
    if (in[0] == 0) {
        __trap();  // fault: trap
    }
    out[0] = 1;
}
GPU_KERNEL(trap)

FAULT(assertion) {
    assert(in[threadIdx.x] == 1);  // fault: assertion
    out[0] = 1;
}
GPU_KERNEL(assertion)

FAULT(no_fault) {
    SHARED_ARRAY(int, values, 64);
    const int t = threadIdx.x;
    values[t] = in[t];
    __syncthreads();
    out[t] = values[63 - t];
}
GPU_KERNEL(no_fault)

// Block 0 gives the address of its shared memory to block 1, and waits until that has used it. Takes an empty `mail`.
extern "C" __global__ void shared_of_another(unsigned long long* mail) {
    SHARED_ARRAY(int, value, 1);
    value[0] = 1;
    if (blockIdx.x == 0) {
        atomicExch(&mail[0], (unsigned long long)value);
        while (atomicAdd(&mail[1], 0) == 0) {}
    } else {
        unsigned long long address = 0;
        while (address == 0) {
            address = atomicAdd(&mail[0], 0);
        }
        const int other = *(int*)address;  // fault: shared_of_another
        atomicExch(&mail[1], other);
    }
}
GPU_KERNEL(shared_of_another)
