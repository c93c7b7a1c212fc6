// The emulator, as api.cpp of its runtime defines it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emu {

struct Machine;

// As the runtime has it.
struct TensorMapShape {
    uint32_t rank, element_bytes, swizzle;
    uint64_t dims[5], strides[4];
    uint32_t box_dims[5];
};

}

extern "C" {

const char* emulator_kernel(size_t index);
size_t emulator_kernel_parameters(size_t index);
const size_t* emulator_kernel_parameter_sizes(size_t index);
emu::Machine* emulator_device_new();
const char* emulator_message(const emu::Machine* machine);
void emulator_schedule(emu::Machine* machine, uint64_t seed, int policy, uint32_t resident);
uint64_t emulator_alloc(emu::Machine* machine, const char* name, size_t bytes);
int emulator_free(emu::Machine* machine, uint64_t address);
int emulator_upload(emu::Machine* machine, uint64_t address, const void* source, size_t bytes);
int emulator_download(emu::Machine* machine, uint64_t address, void* target, size_t bytes);
int emulator_tensor_map(emu::Machine* machine, void* map, uint64_t address, const emu::TensorMapShape* shape);
int emulator_launch(emu::Machine* machine, size_t kernel, const unsigned* grid, const unsigned* block, unsigned shared,
                    unsigned cluster, void** parameters);

}  // extern "C"
