#include "settings.h"

#include <cstdio>
#include <cstdlib>

namespace driver {

namespace {

std::string text(const char* name) {
    const char* value = getenv(name);
    return value ? value : "";
}

// A mistyped number must not look like a test that passes.
uint64_t number(const char* name, uint64_t otherwise) {
    const std::string value = text(name);
    if (value.empty()) {
        return otherwise;
    }
    char* end = nullptr;
    const uint64_t result = strtoull(value.c_str(), &end, 10);
    if (*end != 0) {
        fprintf(stderr, "libcuda of the emulator: %s is `%s`, which is no number\n", name, value.c_str());
        abort();
    }
    return result;
}

Gpu gpu(uint64_t architecture) {
    switch (architecture) {
        case 75:
            return {"Emulated T4", 7, 5, 40, 64 << 10, 64 << 10, 4 << 20};
        case 80:
            return {"Emulated A100", 8, 0, 108, 163 << 10, 164 << 10, 40 << 20};
        case 90:
            return {"Emulated H100", 9, 0, 132, 227 << 10, 228 << 10, 50 << 20};
        case 100:
            return {"Emulated B200", 10, 0, 148, 227 << 10, 228 << 10, 126 << 20};
        default:
            fprintf(stderr, "libcuda of the emulator: there is no sm_%d to be played, only 75, 80, 90 and 100\n",
                    static_cast<int>(architecture));
            abort();
    }
}

Settings read() {
    Settings settings{};
    settings.gpu = gpu(number("EMULATED_CUDA_ARCHITECTURE", 90));
    const auto whole = static_cast<uint64_t>(settings.gpu.multiprocessors);
    settings.gpu.multiprocessors = static_cast<int>(number("EMULATED_CUDA_MULTIPROCESSORS", whole));
    settings.devices = static_cast<int>(number("EMULATED_CUDA_DEVICES", 1));
    settings.driver_version = static_cast<int>(number("EMULATED_CUDA_DRIVER", 13000));
    settings.memory_bytes = number("EMULATED_CUDA_MEMORY", 80ull << 30);
    settings.pageable = number("EMULATED_CUDA_PAGEABLE", 0) != 0;
    settings.launch_blocking = number("CUDA_LAUNCH_BLOCKING", 0) != 0;
    settings.seed = number("EMULATED_CUDA_SEED", 1);
    settings.fail_launch = number("EMULATED_CUDA_FAIL_LAUNCH", 0);
    settings.fail_kernel = text("EMULATED_CUDA_FAIL_KERNEL");
    settings.fault = static_cast<Result>(number("EMULATED_CUDA_FAULT", IllegalAddress));
    settings.hang_launch = number("EMULATED_CUDA_HANG_LAUNCH", 0);
    settings.refuse_call = text("EMULATED_CUDA_REFUSE");
    settings.refusal = static_cast<Result>(number("EMULATED_CUDA_REFUSAL", InvalidValue));
    settings.slow_recording = number("EMULATED_CUDA_SLOW_RECORDING", 0);
    settings.log = text("EMULATED_CUDA_LOG");
    return settings;
}

}  // namespace

const Settings& Settings::get() {
    static const Settings settings = read();
    return settings;
}

}  // namespace driver
