// Modules and their functions: the kernels that an image names, each with the emulator's kernel of that name.
#include "driver.h"

#include <cstring>

using namespace driver;

namespace {

// Shared memory of a block that does not ask for more.
constexpr int SHARED_BYTES = 48 << 10;

enum class FunctionAttribute : int {
    MostThreads = 0,
    SharedBytes = 1,
    ConstantBytes = 2,
    LocalBytes = 3,
    Registers = 4,
    PtxVersion = 5,
    BinaryVersion = 6,
    CacheMode = 7,
    MostDynamicShared = 8,
    PreferredCarveout = 9,
    ClusterMustBeSet = 10,
    ClusterWidth = 11,
    ClusterHeight = 12,
    ClusterDepth = 13,
};

constexpr size_t NONE = SIZE_MAX;

size_t emulated_kernel(const std::string& name) {
    for (size_t index = 0; const char* known = emulator_kernel(index); index++) {
        if (name == known) {
            return index;
        }
    }
    return NONE;
}

// What keeps a kernel of the emulator from standing for the compiled one; empty: nothing.
std::string difference(const Facts& facts, size_t kernel) {
    if (kernel == NONE) {
        return "the emulator has no kernel `" + facts.name + "`";
    }
    const size_t count = emulator_kernel_parameters(kernel);
    const size_t* const sizes = emulator_kernel_parameter_sizes(kernel);
    bool same = count == facts.parameters.size();
    for (size_t i = 0; same && i < count; i++) {
        same = sizes[i] == facts.parameters[i].bytes;
    }
    return same ? "" : "the parameters of `" + facts.name + "` are others in the emulator: it is of another version";
}

// For the option that a caller has given as a buffer for what went wrong.
void write_log(unsigned count, const int* options, void** values, const std::string& text) {
    constexpr int ERROR_LOG = 5, ERROR_LOG_BYTES = 6;
    char* buffer = nullptr;
    size_t bytes = 0;
    for (unsigned i = 0; i < count; i++) {
        if (options[i] == ERROR_LOG) {
            buffer = static_cast<char*>(values[i]);
        } else if (options[i] == ERROR_LOG_BYTES) {
            bytes = reinterpret_cast<size_t>(values[i]);
            values[i] = reinterpret_cast<void*>(std::min(text.size(), bytes));
        }
    }
    if (buffer && bytes > 0) {
        snprintf(buffer, bytes, "%s", text.c_str());
    }
}

Result load(Session& session, Handle* module, const void* data, std::string* problem) {
    if (const Result wrong = refuse_while_recording(session)) {
        return wrong;
    }
    const Gpu& gpu = Settings::get().gpu;
    Image image = read_image(data, gpu.major, gpu.minor);
    *problem = image.problem;
    for (size_t i = 0; i < image.kernels.size() && image.result == Success; i++) {
        const std::string why = difference(image.kernels[i], emulated_kernel(image.kernels[i].name));
        if (!why.empty()) {
            image.result = InvalidImage;
            *problem = why;
        }
    }
    if (!problem->empty()) {
        fprintf(stderr, "libcuda of the emulator: an image: %s\n", problem->c_str());
    }
    if (image.result != Success) {
        return image.result;
    }
    *module = session->modules.add({});
    for (Facts& facts : image.kernels) {
        Function function{};
        function.kernel = emulated_kernel(facts.name);
        function.most_dynamic_shared = SHARED_BYTES - facts.shared_bytes;
        function.module = *module;
        function.facts = std::move(facts);
        session->modules.find(*module)->functions.push_back(session->functions.add(std::move(function)));
    }
    session.note("%zu kernels", session->modules.find(*module)->functions.size());
    return Success;
}

// Calls `body` with the function of the handle.
template <class Body>
Result with_function(const char* name, Handle handle, Body body) {
    return call(name, Needs::Context, [&](Session& session) -> Result {
        Function* function = session->functions.find(handle);
        if (!function) {
            return InvalidHandle;
        }
        session.note("%s", function->facts.name.c_str());
        return body(session, *function);
    });
}

// Calls `body` with the module of the handle.
template <class Body>
Result with_module(const char* name, Handle handle, Body body) {
    return call(name, Needs::Context, [&](Session& session) -> Result {
        Module* module = session->modules.find(handle);
        return module ? body(session, *module) : InvalidHandle;
    });
}

}  // namespace

EXPORT Result cuModuleLoadData(Handle* module, const void* image) {
    return call("cuModuleLoadData", Needs::Context, [&](Session& session) {
        std::string problem;
        return load(session, module, image, &problem);
    });
}

EXPORT Result cuModuleLoadDataEx(Handle* module, const void* image, unsigned count, int* options, void** values) {
    return call("cuModuleLoadDataEx", Needs::Context, [&](Session& session) {
        std::string problem;
        const Result result = load(session, module, image, &problem);
        write_log(count, options, values, result == Success ? "" : problem);
        return result;
    });
}

EXPORT Result cuModuleUnload(Handle handle) {
    return with_module("cuModuleUnload", handle, [&](Session& session, Module& module) {
        if (const Result wrong = refuse_while_recording(session)) {
            return wrong;
        }
        for (const Handle function : module.functions) {
            session->functions.remove(function);
        }
        session->modules.remove(handle);
        return Success;
    });
}

EXPORT Result cuModuleGetFunctionCount(unsigned* count, Handle handle) {
    return with_module("cuModuleGetFunctionCount", handle, [&](Session&, Module& module) {
        *count = static_cast<unsigned>(module.functions.size());
        return Success;
    });
}

EXPORT Result cuModuleEnumerateFunctions(Handle* functions, unsigned count, Handle handle) {
    return with_module("cuModuleEnumerateFunctions", handle, [&](Session&, Module& module) {
        const size_t all = std::min<size_t>(count, module.functions.size());
        std::copy_n(module.functions.begin(), all, functions);
        return Success;
    });
}

EXPORT Result cuModuleGetFunction(Handle* function, Handle handle, const char* name) {
    return with_module("cuModuleGetFunction", handle, [&](Session& session, Module& module) {
        session.note("%s", name);
        for (const Handle candidate : module.functions) {
            if (session->functions.find(candidate)->facts.name == name) {
                *function = candidate;
                return Success;
            }
        }
        return NotFound;
    });
}

EXPORT Result cuModuleGetGlobal_v2(Address*, size_t*, Handle handle, const char* name) {
    return with_module("cuModuleGetGlobal", handle, [&](Session& session, Module&) {
        session.note("%s", name);
        return NotFound;  // kernels of the emulator have none
    });
}

EXPORT Result cuFuncGetName(const char** name, Handle handle) {
    return with_function("cuFuncGetName", handle, [&](Session&, Function& function) {
        *name = function.facts.name.c_str();
        return Success;
    });
}

EXPORT Result cuFuncGetModule(Handle* module, Handle handle) {
    return with_function("cuFuncGetModule", handle, [&](Session&, Function& function) {
        *module = function.module;
        return Success;
    });
}

EXPORT Result cuFuncLoad(Handle handle) {
    return with_function("cuFuncLoad", handle, [&](Session& session, Function& function) {
        const Result wrong = function.loaded ? Success : refuse_while_recording(session);
        function.loaded |= wrong == Success;
        return wrong;
    });
}

EXPORT Result cuFuncIsLoaded(int* loaded, Handle handle) {
    return with_function("cuFuncIsLoaded", handle, [&](Session&, Function& function) {
        *loaded = function.loaded;
        return Success;
    });
}

EXPORT Result cuFuncGetParamInfo(Handle handle, size_t index, size_t* offset, size_t* bytes) {
    return with_function("cuFuncGetParamInfo", handle, [&](Session&, Function& function) {
        if (index >= function.facts.parameters.size()) {
            return InvalidValue;
        }
        *offset = function.facts.parameters[index].offset;
        if (bytes) {
            *bytes = function.facts.parameters[index].bytes;
        }
        return Success;
    });
}

EXPORT Result cuFuncGetParamCount(Handle handle, size_t* count) {
    return with_function("cuFuncGetParamCount", handle, [&](Session&, Function& function) {
        *count = function.facts.parameters.size();
        return Success;
    });
}

EXPORT Result cuFuncGetAttribute(int* value, FunctionAttribute attribute, Handle handle) {
    return with_function("cuFuncGetAttribute", handle, [&](Session&, Function& function) {
        const Facts& facts = function.facts;
        switch (attribute) {
            case FunctionAttribute::MostThreads:
                *value = most_threads(facts);
                return Success;
            case FunctionAttribute::SharedBytes:
                *value = facts.shared_bytes;
                return Success;
            case FunctionAttribute::LocalBytes:
                *value = facts.local_bytes;
                return Success;
            case FunctionAttribute::Registers:
                *value = facts.registers;
                return Success;
            case FunctionAttribute::PtxVersion:
                *value = facts.ptx_version;
                return Success;
            case FunctionAttribute::BinaryVersion:
                *value = facts.binary_version;
                return Success;
            case FunctionAttribute::MostDynamicShared:
                *value = function.most_dynamic_shared;
                return Success;
            case FunctionAttribute::PreferredCarveout:
                *value = -1;
                return Success;
            case FunctionAttribute::ClusterMustBeSet:
                *value = facts.in_clusters;
                return Success;
            case FunctionAttribute::ClusterWidth:
            case FunctionAttribute::ClusterHeight:
            case FunctionAttribute::ClusterDepth:
                *value = static_cast<int>(facts.cluster[int(attribute) - int(FunctionAttribute::ClusterWidth)]);
                return Success;
            case FunctionAttribute::ConstantBytes:
            case FunctionAttribute::CacheMode:
                *value = 0;
                return Success;
            default:
                return InvalidValue;
        }
    });
}

EXPORT Result cuFuncSetAttribute(Handle handle, FunctionAttribute attribute, int value) {
    return with_function("cuFuncSetAttribute", handle, [&](Session& session, Function& function) {
        session.note("%d = %d", static_cast<int>(attribute), value);
        switch (attribute) {
            case FunctionAttribute::MostDynamicShared:
                if (value < 0 || value + function.facts.shared_bytes > Settings::get().gpu.shared_block) {
                    return InvalidValue;
                }
                function.most_dynamic_shared = value;
                return Success;
            case FunctionAttribute::PreferredCarveout:
                return value >= -1 && value <= 100 ? Success : InvalidValue;
            default:
                return InvalidValue;
        }
    });
}

EXPORT Result cuFuncSetCacheConfig(Handle handle, int) {
    return with_function("cuFuncSetCacheConfig", handle, [](Session&, Function&) { return Success; });
}
