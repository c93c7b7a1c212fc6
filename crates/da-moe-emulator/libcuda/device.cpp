// The driver itself, its device, and the primary context.
#include "driver.h"

#include <cstring>

using namespace driver;

namespace {

// Every context of the device is this one.
char primary;

Handle primary_context() {
    return &primary;
}

// Attributes of devices that are not those of one model.
struct DeviceAttribute {
    int number, value;
};

constexpr DeviceAttribute ATTRIBUTES[] = {
    {1, 1024},         // threads of a block
    {2, 1024},         // along x
    {3, 1024},         // along y
    {4, 64},           // along z
    {5, 2147483647},   // blocks along x
    {6, 65535},        // along y
    {7, 65535},        // along z
    {8, 48 << 10},     // shared memory of a block that does not ask for more
    {9, 64 << 10},     // constant memory
    {10, 32},          // threads of a warp
    {11, 2147483647},  // pitch
    {12, 65536},       // registers of a block
    {13, 1755000},     // clock in kHz
    {14, 512},         // alignment of textures
    {15, 1},           // copies beside kernels
    {19, 1},           // host memory can be mapped
    {31, 1},           // kernels beside kernels
    {32, 1},           // ECC
    {36, 2619000},     // memory clock in kHz
    {37, 5120},        // memory bus in bits
    {39, 2048},        // threads of a multiprocessor
    {40, 3},           // copy engines
    {41, 1},           // unified addressing
    {78, 1},           // priorities of streams
    {82, 65536},       // registers of a multiprocessor
    {83, 1},           // managed memory
    {89, 1},           // concurrently
    {95, 1},           // cooperative launches
    {106, 32},         // blocks of a multiprocessor
    {111, 1 << 10},    // shared memory of a block that the driver keeps
    {115, 1},          // memory pools
};

int attribute(int number) {
    const Settings& settings = Settings::get();
    const Gpu& gpu = settings.gpu;
    switch (number) {
        case 16:
            return gpu.multiprocessors;
        case 38:
            return gpu.l2_bytes;
        case 75:
            return gpu.major;
        case 76:
            return gpu.minor;
        case 81:
            return gpu.shared_multiprocessor;
        case 88:
            return settings.pageable;
        case 97:
            return gpu.shared_block;
        case 120:
            return gpu.major >= 9;  // clusters
        default:
            break;
    }
    for (const DeviceAttribute& known : ATTRIBUTES) {
        if (known.number == number) {
            return known.value;
        }
    }
    return 0;
}

Result check_device(int device) {
    return device >= 0 && device < Settings::get().devices ? Success : InvalidDevice;
}

}  // namespace

EXPORT Result cuInit(unsigned flags) {
    return call("cuInit", Needs::Nothing, [&](Session& session) -> Result {
        const Settings& settings = Settings::get();
        if (flags != 0) {
            return InvalidValue;
        }
        if (!session->log && !settings.log.empty()) {
            session->log = fopen(settings.log.c_str(), "w");
            if (session->log) {
                setvbuf(session->log, nullptr, _IOLBF, 0);
            }
        }
        if (settings.devices == 0) {
            return NoDevice;
        }
        if (!session->initialized) {
            session->machine = emulator_device_new();
            emulator_schedule(session->machine, settings.seed, 1, 2);
            session->initialized = true;
        }
        return Success;
    });
}

EXPORT Result cuDriverGetVersion(int* version) {
    *version = Settings::get().driver_version;
    return Success;
}

EXPORT Result cuDeviceGetCount(int* count) {
    return call("cuDeviceGetCount", Needs::Driver, [&](Session&) {
        *count = Settings::get().devices;
        return Success;
    });
}

EXPORT Result cuDeviceGet(int* device, int ordinal) {
    return call("cuDeviceGet", Needs::Driver, [&](Session&) {
        *device = ordinal;
        return check_device(ordinal);
    });
}

EXPORT Result cuDeviceGetName(char* name, int bytes, int device) {
    return call("cuDeviceGetName", Needs::Driver, [&](Session&) {
        snprintf(name, static_cast<size_t>(bytes), "%s", Settings::get().gpu.name);
        return check_device(device);
    });
}

EXPORT Result cuDeviceGetUuid_v2(char* bytes, int device) {
    return call("cuDeviceGetUuid", Needs::Driver, [&](Session&) {
        memcpy(bytes, "emulated device ", 16);
        return check_device(device);
    });
}

EXPORT Result cuDeviceTotalMem_v2(size_t* bytes, int device) {
    return call("cuDeviceTotalMem", Needs::Driver, [&](Session&) {
        *bytes = Settings::get().memory_bytes;
        return check_device(device);
    });
}

EXPORT Result cuDeviceGetAttribute(int* value, int number, int device) {
    return call("cuDeviceGetAttribute", Needs::Driver, [&](Session& session) {
        session.note("%d", number);
        *value = attribute(number);
        return check_device(device);
    });
}

EXPORT Result cuDevicePrimaryCtxRetain(Handle* context, int device) {
    return call("cuDevicePrimaryCtxRetain", Needs::Driver, [&](Session& session) {
        if (const Result wrong = check_device(device)) {
            return wrong;
        }
        if (session->told != Success) {
            return session->told;
        }
        session->references++;
        session.note("%d", session->references);
        *context = primary_context();
        return Success;
    });
}

EXPORT Result cuDevicePrimaryCtxRelease_v2(int device) {
    return call("cuDevicePrimaryCtxRelease", Needs::Driver, [&](Session& session) {
        if (const Result wrong = check_device(device)) {
            return wrong;
        }
        if (session->references == 0) {
            return InvalidContext;
        }
        session->references--;
        session.note("%d", session->references);
        if (session->references == 0) {
            session->destroy_context();
        }
        return Success;
    });
}

EXPORT Result cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
    return call("cuDevicePrimaryCtxGetState", Needs::Driver, [&](Session& session) {
        *flags = 0;
        *active = session->references > 0;
        return check_device(device);
    });
}

EXPORT Result cuCtxSetCurrent(Handle context) {
    return call("cuCtxSetCurrent", Needs::Driver, [&](Session&) {
        if (context && context != primary_context()) {
            return InvalidContext;
        }
        current_context() = context;
        return Success;
    });
}

EXPORT Result cuCtxGetCurrent(Handle* context) {
    return call("cuCtxGetCurrent", Needs::Driver, [&](Session&) {
        *context = current_context();
        return Success;
    });
}

EXPORT Result cuCtxGetDevice(int* device) {
    return call("cuCtxGetDevice", Needs::Context, [&](Session&) {
        *device = 0;
        return Success;
    });
}

EXPORT Result cuCtxSynchronize() {
    return call("cuCtxSynchronize", Needs::Context, [](Session& session) {
        if (const Result wrong = refuse_beside_any_recording(session)) {
            return wrong;
        }
        session->counts.context_waits++;
        return session.wait();
    });
}

EXPORT Result cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    return call("cuCtxGetStreamPriorityRange", Needs::Context, [&](Session&) {
        *least = 0;
        *greatest = -5;
        return Success;
    });
}
