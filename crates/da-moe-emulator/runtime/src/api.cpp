// What the Rust side calls, by C names. Functions that can fail return a `Kind`, and leave the text in the device.
#include <mutex>
#include <new>

#include "machine.h"
#include "emulator/ptx.h"

using emu::Allocation;
using emu::Entry;
using emu::Kind;
using emu::Machine;

extern Entry __start_emulator_kernels[] __attribute__((weak, visibility("hidden")));
extern Entry __stop_emulator_kernels[] __attribute__((weak, visibility("hidden")));

namespace {

int refuse(Machine& machine, Kind kind, std::string message) {
    machine.message = std::move(message);
    return static_cast<int>(kind);
}

// The allocation at an address of the host's, or null with a message.
Allocation* find(Machine& machine, uint64_t address, size_t bytes) {
    Allocation* allocation = machine.global.find(address);
    if (!allocation) {
        machine.message = "address " + std::to_string(address) + " is no memory of the device";
        return nullptr;
    }
    if (address - allocation->base + bytes > allocation->bytes) {
        machine.message = "a copy of " + std::to_string(bytes) + " bytes at `" + allocation->name + "`+" +
                          std::to_string(address - allocation->base) + " leaves its " +
                          std::to_string(allocation->bytes) + " bytes";
        return nullptr;
    }
    return allocation;
}

// Machines that no device uses. A machine that has run before has its stacks and shadow memory at hand, and tests make
// a device for every launch.
class IdleMachines {
public:
    Machine* take() {
        const std::lock_guard<std::mutex> guard(mutex);
        if (machines.empty()) {
            return new (std::nothrow) Machine;
        }
        Machine* machine = machines.back().release();
        machines.pop_back();
        return machine;
    }
    void give(Machine* machine) {
        machine->global.clear();
        machine->message.clear();
        machine->work = {};
        machine->traffic = {};
        const std::lock_guard<std::mutex> guard(mutex);
        machines.emplace_back(machine);
        if (machines.size() > MOST) {
            machines.erase(machines.begin());
        }
    }

private:
    static constexpr size_t MOST = 4;
    std::mutex mutex;
    std::vector<std::unique_ptr<Machine>> machines;
};

IdleMachines idle_machines;

// A NaN alone hides bugs: `NaN > best` is false. So the poison is, in turn, NaN, 3.4e38, about 5e4, and zero.
unsigned char poison_of(uint64_t seed) {
    constexpr unsigned char patterns[] = {0xff, 0x7f, 0x47, 0x00};
    return patterns[seed / 3 % 4];
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

const char* emulator_kernel(size_t index) {
    const auto count = static_cast<size_t>(__stop_emulator_kernels - __start_emulator_kernels);
    return index < count ? __start_emulator_kernels[index].name : nullptr;
}

const char* emulator_kernel_file(size_t index) {
    return __start_emulator_kernels[index].file;
}

size_t emulator_kernel_parameters(size_t index) {
    return __start_emulator_kernels[index].parameter_count;
}

const size_t* emulator_kernel_parameter_sizes(size_t index) {
    return __start_emulator_kernels[index].parameter_sizes;
}

Machine* emulator_device_new() {
    return idle_machines.take();
}

void emulator_device_delete(Machine* machine) {
    idle_machines.give(machine);
}

const char* emulator_message(const Machine* machine) {
    return machine->message.c_str();
}

void emulator_schedule(Machine* machine, uint64_t seed, int policy, uint32_t resident) {
    machine->seed = seed;
    machine->policy = static_cast<emu::Policy>(policy);
    machine->resident = resident;
    machine->poison = poison_of(seed);
}

uint64_t emulator_alloc(Machine* machine, const char* name, size_t bytes) {
    const uintptr_t address = machine->global.allocate(name, bytes, machine->poison);
    if (address == 0) {
        refuse(*machine, Kind::Memory,
               "cannot allocate `" + std::string(name) + "` of " + std::to_string(bytes) + " bytes");
    }
    return address;
}

int emulator_free(Machine* machine, uint64_t address) {
    if (!machine->global.release(address)) {
        return refuse(*machine, Kind::Memory,
                      "address " + std::to_string(address) + " is not the start of an allocation");
    }
    return 0;
}

int emulator_upload(Machine* machine, uint64_t address, const void* source, size_t bytes) {
    Allocation* allocation = find(*machine, address, bytes);
    if (!allocation) {
        return static_cast<int>(Kind::Memory);
    }
    if (bytes > 0) {
        memcpy(reinterpret_cast<void*>(address), source, bytes);
        std::fill_n(allocation->states.begin() + static_cast<long>(address - allocation->base), bytes,
                    emu::ByteState::Written);
    }
    return 0;
}

int emulator_download(Machine* machine, uint64_t address, void* target, size_t bytes) {
    if (!find(*machine, address, bytes)) {
        return static_cast<int>(Kind::Memory);
    }
    if (bytes > 0) {
        memcpy(target, reinterpret_cast<const void*>(address), bytes);
    }
    return 0;
}

int emulator_read_only(Machine* machine, uint64_t address) {
    Allocation* allocation = find(*machine, address, 0);
    if (!allocation) {
        return static_cast<int>(Kind::Memory);
    }
    allocation->read_only = true;
    return 0;
}

int emulator_unwritten(Machine* machine, uint64_t address, size_t* bytes) {
    const Allocation* allocation = find(*machine, address, 0);
    if (!allocation) {
        return static_cast<int>(Kind::Memory);
    }
    *bytes = 0;
    for (emu::ByteState state : allocation->states) {
        *bytes += state == emu::ByteState::Unwritten;
    }
    return 0;
}

void emulator_work(const Machine* machine, emu::Work* work) {
    *work = machine->work;
}

void emulator_count_traffic(Machine* machine, int counting) {
    machine->traffic.counting = counting != 0;
}

void emulator_traffic(const Machine* machine, emu::TrafficTotals* totals) {
    *totals = machine->traffic.totals;
}

// 1, and the place is the device's message; or 0.
int emulator_shared_place(Machine* machine, size_t rank, emu::SharedPlace* counts) {
    emu::Site site;
    if (!machine->traffic.place(rank, site, *counts)) {
        return 0;
    }
    machine->message = emu::relative_paths(emu::describe_site(site));
    return 1;
}

int emulator_tensor_map(Machine* machine, void* map, uint64_t address, const emu::TensorMapShape* shape) {
    if (!find(*machine, address, 0)) {
        return static_cast<int>(Kind::Memory);
    }
    if (const char* wrong = emu::encode_tensor_map(map, address, *shape)) {
        return refuse(*machine, Kind::Async, std::string("tensor map: ") + wrong);
    }
    return 0;
}

int emulator_launch(Machine* machine, size_t kernel, const unsigned* grid, const unsigned* block, unsigned shared,
                    unsigned cluster, void** parameters) {
    const emu::LaunchShape shape{{grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared, cluster};
    try {
        return static_cast<int>(machine->launch(__start_emulator_kernels[kernel], shape, parameters));
    } catch (const std::bad_alloc&) {
        return refuse(*machine, Kind::Memory, "the host has no memory for the launch");
    }
}

}  // extern "C"
#pragma GCC visibility pop
