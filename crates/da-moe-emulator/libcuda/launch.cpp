// Launches: what the hardware has no room for is refused, what a kernel does wrong ends the context.
#include "driver.h"

#include <cstring>

using namespace driver;

namespace {

constexpr int WARP = 32;
constexpr int REGISTERS = 65536;          // of a block, and of a multiprocessor
constexpr int REGISTER_STEP = 8;          // of a thread: warps have them by 256
constexpr int WARP_STEP = 4;              // warps have their registers by this many
constexpr int MOST_WARPS = 64;            // of a multiprocessor
constexpr int MOST_BLOCKS = 32;
constexpr int SHARED_STEP = 128;
constexpr int RESERVED_SHARED = 1 << 10;  // of every block, for the driver

int up(int value, int step) {
    return (value + step - 1) / step * step;
}

// Warps that have registers for as many as the function needs, at once.
int warps_with_registers(const Facts& facts) {
    const int registers = up(std::max(facts.registers, 1), REGISTER_STEP);
    return REGISTERS / (registers * WARP) / WARP_STEP * WARP_STEP;
}

struct Shape {
    unsigned grid[3], block[3], shared;

    uint64_t threads() const {
        return static_cast<uint64_t>(block[0]) * block[1] * block[2];
    }
};

// Blocks of a cluster on every GPU that has clusters.
constexpr uint64_t MOST_OF_A_CLUSTER = 8;

// What this way of launching has no room to say is as the kernel is compiled.
Result check_cluster(const unsigned grid[3], const Facts& facts) {
    const auto& [x, y, z] = facts.cluster;
    if (!x || !y || !z) {
        return facts.in_clusters ? InvalidClusterSize : Success;
    }
    const uint64_t blocks = static_cast<uint64_t>(x) * y * z;
    if (grid[0] % x || grid[1] % y || grid[2] % z || blocks > MOST_OF_A_CLUSTER) {
        return InvalidClusterSize;
    }
    // Those of the emulator are neighbours along x, and 1, 2, 4 or 8.
    return blocks == x && !(x & (x - 1)) ? Success : NotSupported;
}

Result check(const Shape& shape, const Function& function) {
    const auto& [grid, block, shared] = shape;
    if (!grid[0] || !grid[1] || !grid[2] || grid[0] > INT32_MAX || grid[1] > 65535 || grid[2] > 65535) {
        return InvalidValue;
    }
    if (!shape.threads() || block[0] > 1024 || block[1] > 1024 || block[2] > 64 || shape.threads() > 1024) {
        return InvalidValue;
    }
    if (shape.threads() > static_cast<uint64_t>(function.facts.most_threads)) {
        return InvalidValue;
    }
    if (shared > static_cast<unsigned>(function.most_dynamic_shared)) {
        return InvalidValue;
    }
    const auto warps = static_cast<int>((shape.threads() + WARP - 1) / WARP);
    return warps > warps_with_registers(function.facts) ? LaunchOutOfResources : check_cluster(grid, function.facts);
}

// What CUDA says of what the emulator has found. Of most of it a GPU says nothing: it runs on, with whatever numbers come of it.
Result fault_of(int kind) {
    enum { OutOfBounds = 2, Misaligned = 7, ReadOnly = 8, StackOverflow = 10, Memory = 11 };
    switch (kind) {
        case OutOfBounds:
        case ReadOnly:
        case Memory:
            return IllegalAddress;
        case Misaligned:
            return MisalignedAddress;
        case StackOverflow:
            return HardwareStackError;
        default:
            return LaunchFailed;
    }
}

// A kernel with copies of its parameters.
class Launch {
public:
    Launch(const Function& function, const Shape& shape, void** given)
        : name(function.facts.name),
          kernel(function.kernel),
          shape(shape),
          cluster(std::max(1u, function.facts.cluster[0])) {
        for (size_t i = 0; i < function.facts.parameters.size(); i++) {
            const size_t bytes = function.facts.parameters[i].bytes;
            auto copy = std::make_unique<Aligned[]>((bytes + sizeof(Aligned) - 1) / sizeof(Aligned));
            memcpy(copy.get(), given[i], bytes);
            parameters.push_back(std::move(copy));
        }
    }

    Result run(Driver& driver) const {
        const Settings& settings = Settings::get();
        driver.counts.launches++;
        const bool meant = driver.counts.launches == settings.fail_launch || name == settings.fail_kernel;
        if (meant) {
            driver.fail(settings.fault, "`" + name + "` was told to fail");
            return driver.fault;
        }
        std::vector<void*> addresses;
        for (const auto& parameter : parameters) {
            addresses.push_back(parameter.get());
        }
        const int kind =
            emulator_launch(driver.machine, kernel, shape.grid, shape.block, shape.shared, cluster, addresses.data());
        if (kind != 0) {
            driver.fail(fault_of(kind), emulator_message(driver.machine));
        }
        return driver.fault;
    }

private:
    // As aligned as a tensor map, which is more than any other parameter asks for.
    struct alignas(64) Aligned {
        unsigned char bytes[64];
    };

    std::string name;
    size_t kernel;
    Shape shape;
    unsigned cluster;  // blocks of one
    std::vector<std::unique_ptr<Aligned[]>> parameters;
};

// Blocks of the function that a multiprocessor holds at once.
int blocks_at_once(const Function& function, int threads, size_t shared) {
    const Gpu& gpu = Settings::get().gpu;
    const Facts& facts = function.facts;
    if (threads > most_threads(facts) || shared > static_cast<size_t>(gpu.shared_block - facts.shared_bytes)) {
        return 0;
    }
    const int warps = (threads + WARP - 1) / WARP;
    const int bytes = up(facts.shared_bytes + static_cast<int>(shared) + RESERVED_SHARED, SHARED_STEP);
    const int by_warps = MOST_WARPS / warps, by_registers = warps_with_registers(facts) / warps;
    return std::min({by_warps, by_registers, gpu.shared_multiprocessor / bytes, MOST_BLOCKS});
}

}  // namespace

int driver::most_threads(const Facts& facts) {
    return std::min({1024, facts.most_threads, warps_with_registers(facts) * WARP});
}

EXPORT Result cuLaunchKernel(Handle handle, unsigned x, unsigned y, unsigned z, unsigned threads_x, unsigned threads_y,
                             unsigned threads_z, unsigned shared, Handle stream, void** parameters, void** extra) {
    return call("cuLaunchKernel", Needs::Context, [&](Session& session) -> Result {
        Function* function = session->functions.find(handle);
        if (!function) {
            return InvalidHandle;
        }
        session.note("%s, grid %u %u %u, %u threads, %u bytes", function->facts.name.c_str(), x, y, z,
                     threads_x * threads_y * threads_z, shared);
        if (extra) {
            return NotSupported;
        }
        const Shape shape{{x, y, z}, {threads_x, threads_y, threads_z}, shared};
        if (const Result wrong = check(shape, *function)) {
            return wrong;
        }
        if (!parameters && !function->facts.parameters.empty()) {
            return InvalidValue;
        }
        // A function that is not loaded yet is loaded now, which a recording has no place for.
        if (!function->loaded) {
            if (const Result wrong = refuse_while_recording(session)) {
                return wrong;
            }
            function->loaded = true;
        }
        const auto launch = std::make_shared<Launch>(*function, shape, parameters);
        const Result wrong = start(session, stream, [launch](Driver& driver) { return launch->run(driver); });
        return wrong || !Settings::get().launch_blocking ? wrong : session->tell();
    });
}

EXPORT Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Handle handle, int threads, size_t shared) {
    return call("cuOccupancyMaxActiveBlocksPerMultiprocessor", Needs::Context, [&](Session& session) {
        const Function* function = session->functions.find(handle);
        if (!function || threads <= 0) {
            return function ? InvalidValue : InvalidHandle;
        }
        *blocks = blocks_at_once(*function, threads, shared);
        return Success;
    });
}

EXPORT Result cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, Handle handle, int threads,
                                                                   size_t shared, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, handle, threads, shared);
}
